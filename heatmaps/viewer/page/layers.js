// Which heatmap is shown and how: channel, opacity, threshold, colours, and the legend that says what they mean.

import { getRaster } from "./api.js";
import { byId, options, short, toast } from "./elements.js";
import { Heat, colourTable } from "./heat.js";

export class Layers {
  /** `changed` is called when the picture has to be drawn anew, `chosen` when another channel was chosen. */
  constructor(scales, { changed, chosen }) {
    Object.assign(this, { scales, changed, chosen, heat: null, layers: [], slide: null, layer: 0, channel: 0 });
    this.names = Object.keys(scales);
    this.tables = Object.fromEntries(this.names.map((name) => [name, colourTable(scales[name])]));
    this.view = { opacity: 0.55, scale: this.names[0], rank: false, heat: true, grey: false };
    options(byId("scale-choice"), this.names);
    const on = (id, act, event = "input") => byId(id).addEventListener(event, act);
    on("layer-choice", () => this.choose(Number(byId("layer-choice").value), 0));
    on("channel-choice", () => this.choose(this.layer, Number(byId("channel-choice").value)));
    on("opacity", () => this.set({ opacity: Number(byId("opacity").value) }));
    on("threshold", () => this.set({ threshold: Number(byId("threshold").value) }));
    on("scale-choice", () => this.set({ scale: this.names[Number(byId("scale-choice").value)] }));
    on("heat-on", () => this.set({ heat: byId("heat-on").checked }));
    on("grey", () => this.set({ grey: byId("grey").checked }));
    on("rank", () => { this.view.rank = byId("rank").checked; this.choose(this.layer, this.channel); });
    on("range-low", () => this.range(), "change");
    on("range-high", () => this.range(), "change");
    on("range-reset", () => this.set(this.usual()), "click");
  }

  /** The channel that is shown: {name, title, low, high}; undefined where there is none. */
  current() { return this.layers[this.layer]?.channels[this.channel]; }

  /** Its usual range: fixed, the same on every slide. Ranks always go from 0 to 1. */
  usual() {
    const channel = this.current();
    const [low, high] = this.view.rank || !channel ? [0, 1] : [channel.low, channel.high];
    return { low, high, threshold: low };
  }

  /** Another slide; the layer of the same name stays chosen. `link` is what the address asks for. */
  async open(facts, link = {}) {
    const before = { model: this.layers[this.layer]?.name, channel: this.current()?.name };
    Object.assign(this, { slide: facts.number, layers: facts.layers, heat: null });
    byId("layer").hidden = !facts.layers.length;
    options(byId("layer-choice"), facts.layers.map((layer) => layer.name));
    const layer = Math.max(0, facts.layers.findIndex((one) => one.name === (link.model ?? before.model)));
    const channels = facts.layers[layer]?.channels ?? [];
    const asked = channels.findIndex((one) => one.name === (link.channel ?? before.channel));
    const likely = facts.entry.opinions.find((one) => one.model === facts.layers[layer]?.name)?.result;
    const first = Math.max(0, channels.findIndex((one) => one.name === likely));
    for (const key of ["opacity", "heat", "rank", "grey"]) if (link[key] !== undefined) this.view[key] = link[key];
    if (this.names.includes(link.scale)) this.view.scale = link.scale;
    const range = Object.fromEntries(["low", "high", "threshold"].filter((key) => link[key] !== undefined).map((key) => [key, link[key]]));
    const same = before.channel !== undefined && asked >= 0 && layer >= 0 && !Object.keys(range).length;
    if (facts.layers.length) await this.choose(layer, asked >= 0 ? asked : first, same ? this.view : range);
    else this.changed();
  }

  /** Show a channel. */
  async choose(layer, channel, range = {}) {
    Object.assign(this, { layer, channel, heat: null });
    const chosen = this.layers[layer];
    options(byId("channel-choice"), (chosen?.channels ?? []).map((one) => one.name));
    const { low, high, threshold } = { ...this.usual(), ...range };
    Object.assign(this.view, high > low ? { low, high, threshold } : this.usual());
    this.chosen();
    this.controls();
    this.changed();
    if (chosen?.fault) toast(`${chosen.name}: ${chosen.fault}`);
    if (!this.current()) return;
    this.pending?.abort();
    this.pending = new AbortController();
    try {
      const raster = await getRaster(this.slide, layer, channel, this.view.rank, this.pending.signal);
      this.heat = new Heat(raster);
      this.paint();
    } catch (error) {
      if (error.name !== "AbortError") toast(error.message);
    }
  }

  set(part) {
    Object.assign(this.view, part);
    this.controls();
    const onlyDrawn = Object.keys(part).every((key) => ["opacity", "heat", "grey"].includes(key));
    if (onlyDrawn) this.changed();
    else this.paint();
  }

  range() {
    const [low, high] = ["range-low", "range-high"].map((id) => Number.parseFloat(byId(id).value));
    if (low < high) this.set({ low, high, threshold: Math.max(this.view.threshold, low) });
    else { toast("The lower end of the range has to be below the upper one."); this.controls(); }
  }

  /** Colour the raster anew, once a frame at most. */
  paint() {
    if (!this.heat || this.painting) return;
    this.painting = true;
    requestAnimationFrame(() => {
      this.painting = false;
      this.heat?.paint(this.tables[this.view.scale], this.view);
      this.changed();
    });
  }

  draw(context, frame) {
    if (this.heat && this.view.heat) this.heat.draw(context, frame, this.view.opacity);
  }

  /** What the address says of the layer. */
  link() {
    const { opacity, threshold, low, high, scale, rank, heat, grey } = this.view;
    const channel = this.current();
    if (!channel) return {};
    const usual = this.usual();
    const changed = low !== usual.low || high !== usual.high;
    return {
      model: this.layers[this.layer].name, channel: channel.name, opacity, below: threshold, scale,
      low: changed ? low : undefined, high: changed ? high : undefined,
      rank: rank ? 1 : undefined, heat: heat ? undefined : 0, grey: grey ? 1 : undefined,
    };
  }

  controls() {
    const { opacity, threshold, low, high, scale, rank, heat, grey } = this.view;
    const channel = this.current();
    byId("layer-choice").value = String(this.layer);
    byId("channel-choice").value = String(this.channel);
    Object.assign(byId("threshold"), { min: low, max: high, step: (high - low) / 200, value: threshold });
    byId("threshold-out").textContent = short(threshold);
    byId("opacity").value = opacity;
    byId("opacity-out").textContent = `${Math.round(100 * opacity)} %`;
    byId("heat-on").checked = heat;
    byId("rank").checked = rank;
    byId("grey").checked = grey;
    byId("stage").classList.toggle("grey", grey && heat && Boolean(channel));
    byId("scale-choice").value = String(this.names.indexOf(scale));
    byId("range-low").value = low;
    byId("range-high").value = high;
    byId("channel-title").textContent = channel?.title ?? "";
    this.legend();
  }

  legend() {
    const { threshold, low, high, scale, rank } = this.view;
    const canvas = byId("legend");
    const context = canvas.getContext("2d");
    const colours = context.createImageData(256, 1);
    new Uint32Array(colours.data.buffer).set(this.tables[scale]);
    const strip = document.createElement("canvas");
    strip.width = 256;
    strip.height = 1;
    strip.getContext("2d").putImageData(colours, 0, 0);
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(strip, 0, 0, canvas.width, canvas.height);
    const hidden = ((threshold - low) / (high - low)) * canvas.width;
    context.fillStyle = "rgb(37 41 45 / 85%)";
    context.fillRect(0, 0, hidden, canvas.height);
    const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => short(low + share * (high - low)));
    byId("legend-ticks").replaceChildren(...ticks.map((tick) => Object.assign(document.createElement("span"), { textContent: tick })));
    const usual = this.usual();
    byId("legend-text").textContent = rank ? "Ranks within this slide: colours are not comparable between slides."
      : low === usual.low && high === usual.high ? "The same number has the same colour on every slide."
        : `Range set by hand; usually ${short(usual.low)} to ${short(usual.high)}.`;
  }
}
