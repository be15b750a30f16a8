// What a person marks: agree or disagree with a result, and regions of a class. The server keeps them.

import { getJson, postJson } from "./api.js";
import { bars, byId, fill, make, options, short, toast } from "./elements.js";
import { extent, withPath } from "./shapes.js";

export class Marks {
  constructor({ changed, jump, layer }) {
    Object.assign(this, { changed, jump, layerNow: layer, facts: null, marks: [], tile: null });
    byId("undo").addEventListener("click", () => this.undo());
  }

  async open(facts) {
    Object.assign(this, { facts, marks: [], tile: null });
    byId("marks").hidden = !facts.canMark;
    this.verdict();
    this.tileButtons(null);
    this.take(await getJson(`/api/slides/${facts.number}/marks`), facts.number);
  }

  take(answer, number) {
    if (number !== this.facts.number) return;
    this.marks = answer.marks.map(withPath);
    byId("undo").disabled = !answer.canUndo;
    byId("marks-count").textContent = this.marks.length ? String(this.marks.length) : "";
    const { tiles, fault } = answer.adapt;
    const label = answer.label ? ` In labels.csv this slide is ${answer.label}.` : "";
    byId("marks-adapt").textContent = (fault ? `adapt would refuse these marks: ${fault}`
      : tiles ? `For adapt: ${Object.entries(tiles).map(([name, count]) => `${count} ${count === 1 ? "tile" : "tiles"} of ${name}`).join(", ")}.` : "") + label;
    this.classes();
    this.list();
    this.verdict();
    this.tileButtons(this.tile);
    this.changed();
  }

  /** Classes that may be named: the models', and those that were named before. */
  names() {
    const marked = this.marks.map((mark) => mark.class).filter((name) => name && !name.endsWith("*"));
    return [...new Set([...this.facts.classes.map((one) => one.name), ...marked])];
  }

  classes() {
    fill(byId("class-names"), ...this.names().map((name) => make("option", { value: name })));
    if (!byId("class-name").value) byId("class-name").value = this.names().at(-1) ?? "";
  }

  async change(content) {
    const { number, version } = this.facts;
    try {
      this.take(await postJson(`/api/slides/${number}/marks`, { ...content, version }), number);
      return true;
    } catch (error) {
      toast(error.message);
      return false;
    }
  }

  region(points) {
    return this.change({ do: "region", points, class: byId("class-name").value });
  }

  undo() {
    if (!byId("undo").disabled) this.change({ do: "undo" });
  }

  remove(id) {
    return this.change({ do: "remove", id });
  }

  /** What was said of a slide, or of a tile, by this layer's model; undefined if nothing was. */
  said(about, model, box) {
    return this.marks.find((mark) => mark.about === about && mark.model === model && (about === "slide" || this.inside(mark, box)));
  }

  inside(mark, [x, y, width, height]) {
    const [left, top, right, bottom] = extent(mark);
    const [midX, midY] = [(left + right) / 2, (top + bottom) / 2];
    // A mark lies around the middle of its tile; at the slide's edge it is cut.
    return left >= x - 1 && top >= y - 1 && right <= x + width + 1 && bottom <= y + height + 1
      && (Math.abs(midX - x - width / 2) < width / 4 || right >= this.facts.slideSize[0] - 1)
      && (Math.abs(midY - y - height / 2) < height / 4 || bottom >= this.facts.slideSize[1] - 1);
  }

  /** Agree, disagree and name the right class; or what was said already, to take it back. */
  buttons(target, already, shown, send) {
    if (!this.facts.canMark || !shown) return fill(target);
    if (already) {
      const right = already.about === "tile" && already.verdict === "disagree" && !already.class.endsWith("*") ? `, it is ${already.class}` : "";
      return fill(target, make("span", {}, `You ${already.verdict}${already.about === "slide" ? "" : right}.`),
        make("button", { onclick: () => this.remove(already.id) }, "Remove"));
    }
    const others = this.names().filter((name) => name !== shown);
    const choice = make("select", { "aria-label": "What it is instead" });
    options(choice, ["disagree: not known what", ...others.map((name) => `disagree: ${name}`)]);
    choice.prepend(make("option", { value: "", selected: true }, "Disagree …"));
    choice.value = "";
    choice.addEventListener("change", () => {
      const place = Number(choice.value);
      send({ right: false, class: place ? others[place - 1] : null });
    });
    return fill(target, make("button", { class: "agree", onclick: () => send({ right: true, class: null }) }, "Agree"), choice);
  }

  /** The slide's result, and what is thought of it. */
  verdict() {
    const { entry, layers } = this.facts;
    const number = this.layerNow();
    const model = layers[number]?.name;
    const said = entry.opinions.find((one) => one.model === model) ?? entry.opinions[0];
    const facts = [entry.tissue_mm2 ? `${short(entry.tissue_mm2)} mm² of tissue` : "", entry.tiles ? `${entry.tiles} tiles` : ""];
    const small = make("div", { class: "faint" }, facts.filter(Boolean).join(", "));
    if (!said) {
      fill(byId("verdict-text"), make("div", {}, entry.status === "slide" ? "No results." : entry.status), small);
      return fill(byId("verdict-marks"));
    }
    const what = said.of_tiles ? "of its tiles" : said.calibrated ? "calibrated probability" : "not calibrated";
    const lines = [make("div", { class: "big" }, `${said.result} ${short(said.score)}`), make("div", { class: "faint" }, `${what}, by ${said.model}`)];
    if (said.decision) {
      const chip = make("span", { class: `chip ${said.decision === "confirmed" ? "good" : "warn"}` }, said.decision);
      const sure = typeof said.confidence === "number" ? [make("span", {}, `confidence ${short(said.confidence)}`)] : [];
      lines.push(make("div", { class: "line" }, ...sure, chip));
    }
    for (const reason of said.reasons) lines.push(make("div", { class: "faint" }, reason));
    if (said.trained_on) lines.push(make("div", { class: "faint" }, "The model learned from this slide: this is no test of it."));
    lines.push(bars(Object.entries(said.numbers).map(([name, value]) => ({ name, value }))), small);
    fill(byId("verdict-text"), ...lines);
    const layer = layers.findIndex((one) => one.name === said.model);
    return this.buttons(byId("verdict-marks"), this.said("slide", said.model), said.result, (said2) => this.change({ do: "slide", layer, ...said2 }));
  }

  tileButtons(tile) {
    this.tile = tile;
    const target = byId("tile-marks");
    if (!tile) return fill(target);
    const layer = this.layerNow();
    const model = this.facts.layers[layer]?.name;
    const shown = tile.layers.find((one) => one.name === model)?.shown;
    const already = this.said("tile", model, tile.box);
    return this.buttons(target, already, shown, (said) => this.sayOfTile(said));
  }

  sayOfTile(said) {
    if (this.tile) return this.change({ do: "tile", layer: this.layerNow(), row: this.tile.row, ...said });
    toast("Click a tile first.", true);
    return undefined;
  }

  list() {
    fill(byId("marks-list"), ...this.marks.map((mark) => {
      const dot = make("span", { class: "dot" });
      dot.style.background = `rgb(${mark.colour.join(" ")})`;
      const name = mark.label ?? (mark.about === "tile" ? `Tile: ${mark.verdict}, ${mark.class}` : mark.class ?? "no class");
      const [left, top, right, bottom] = extent(mark);
      const go = () => this.jump([left, top, right - left, bottom - top], mark.about === "tile" ? 1.5 : 0.3);
      const item = make("li", {}, dot, make("button", { class: "jump", title: name, onclick: go }, name));
      if (mark.id) item.append(make("button", { class: "drop", title: "Remove this mark", "aria-label": "Remove this mark", onclick: () => this.remove(mark.id) }, "×"));
      return item;
    }));
  }
}
