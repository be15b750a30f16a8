// A tile's numbers under the pointer, and the tiles to look at first.

import { getJson } from "./api.js";
import { bars, byId, fill, make, short, toast } from "./elements.js";

export class Tiles {
  constructor({ changed, kept, jump }) {
    Object.assign(this, { changed, keptChanged: kept, jump, facts: null, hovered: null, kept: null, wanted: null });
    byId("best-order").addEventListener("input", () => this.best());
  }

  open(facts) {
    Object.assign(this, { facts, hovered: null, kept: null, wanted: null });
    const none = !facts.layers.length;
    byId("tile").hidden = none;
    byId("best").hidden = none;
    this.render();
  }

  /** The tile that is shown: the one that was clicked, or the one under the pointer. */
  shown() { return this.kept ?? this.hovered; }

  /** The pointer is at a place: one question at a time, the newest place wins. */
  async point(x, y) {
    if (!this.facts?.layers.length) return;
    this.wanted = [x, y];
    if (this.asking) return;
    this.asking = true;
    try {
      while (this.wanted) {
        const [atX, atY] = this.wanted;
        this.wanted = null;
        if (this.isOver(this.hovered, atX, atY)) continue;
        this.hovered = atX === null ? null : await this.at(atX, atY);
        this.render();
        this.changed();
      }
    } catch (error) {
      toast(error.message);
    } finally {
      this.asking = false;
    }
  }

  isOver(tile, x, y) {
    if (!tile || x === null) return false;
    const [left, top, width, height] = tile.box;
    return tile.slide === this.facts.number && Math.abs(x - left - width / 2) < width / 4 && Math.abs(y - top - height / 2) < height / 4;
  }

  async at(x, y) {
    const slide = this.facts.number;
    const found = await getJson(`/api/slides/${slide}/tile?x=${x.toFixed(1)}&y=${y.toFixed(1)}`);
    return found.row === undefined || slide !== this.facts.number ? null : { ...found, slide };
  }

  /** Keep the tile at a place; the same one again lets it go. */
  async click(x, y) {
    if (!this.facts?.layers.length) return;
    try {
      const tile = await this.at(x, y);
      this.keep(tile && tile.row !== this.kept?.row ? tile : null);
    } catch (error) {
      toast(error.message);
    }
  }

  keep(tile) {
    this.kept = tile;
    this.render();
    this.keptChanged();
    this.changed();
  }

  render() {
    const tile = this.shown();
    byId("tile-name").textContent = tile ? `${tile.row}${tile === this.kept ? " · kept" : ""}` : "";
    if (!tile) {
      fill(byId("tile-values"), "Point at a tile; click to keep it.");
      return;
    }
    const rows = [];
    for (const layer of tile.layers) {
      rows.push({ group: layer.name });
      for (const [name, value] of layer.values) {
        const channel = this.facts.layers.find((one) => one.name === layer.name)?.channels.find((one) => one.name === name);
        const share = channel && value !== null ? (value - channel.low) / (channel.high - channel.low) : undefined;
        rows.push({ name, value, share: name === "attention" ? 0 : share });
      }
    }
    fill(byId("tile-values"), bars(rows));
  }

  /** The highest tiles of the channel that is shown, or the lowest. */
  async best(layer = this.layer, channel = this.channel) {
    Object.assign(this, { layer, channel });
    const slide = this.facts?.number;
    if (slide === undefined || !this.facts.layers[layer]?.channels.length) return fill(byId("best-list"));
    try {
      const lowest = byId("best-order").value;
      const path = `/api/slides/${slide}/layers/${layer}/${channel}/best?count=12&lowest=${lowest}`;
      const { tiles } = await getJson(path);
      if (slide !== this.facts.number || layer !== this.layer || channel !== this.channel) return undefined;
      fill(byId("best-list"), ...tiles.map((tile) => make("button",
        { title: `tile ${tile.row}: ${tile.value}`, onclick: () => this.visit(tile) },
        make("img", { src: `/slides/${slide}/crops/${tile.row}.jpg`, alt: `tile ${tile.row}`, loading: "lazy" }),
        make("span", {}, short(tile.value)))));
    } catch (error) {
      toast(error.message);
    }
    return undefined;
  }

  /** Go to a tile and keep it. */
  async visit({ row, box }) {
    const slide = this.facts.number;
    this.jump(box);
    try {
      const tile = await getJson(`/api/slides/${slide}/tiles/${row}`);
      if (slide === this.facts.number) this.keep({ ...tile, slide });
    } catch (error) {
      toast(error.message);
    }
  }
}
