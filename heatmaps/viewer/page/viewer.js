// The page: puts the parts together, keeps the address in step with the view, and listens to keys.

import { getJson } from "./api.js";
import { byId, fill, make, toast } from "./elements.js";
import { Drawing } from "./drawing.js";
import { Layers } from "./layers.js";
import { readLink, writeLink } from "./link.js";
import { Marks } from "./marks.js";
import { drawBox, drawShape, withPath } from "./shapes.js";
import { SlideList } from "./slides.js";
import { Stage } from "./stage.js";
import { Tiles } from "./tiles.js";

let facts = null;
let outlines = [];
let turns = 0; // of opening a slide; only the last one counts
let opening = false;

const asked = readLink(); // before anything is written there
if (location.search) writeLink(Object.fromEntries(new URLSearchParams(location.hash.slice(1)))); // the secret is in the cookie now

const stage = new Stage({
  draw,
  moved: remember,
  clicked: (x, y) => tiles.click(x, y),
  pointed: (x, y) => {
    byId("place").textContent = x === null || !facts ? "" : `x ${Math.round(x)}, y ${Math.round(y)}`;
    tiles.point(x, y);
  },
});
const redraw = () => stage.redraw();
const tiles = new Tiles({ changed: redraw, kept: () => marks.tileButtons(tiles.kept), jump: (box) => stage.jump(box) });
const marks = new Marks({ changed: redraw, jump: (box, around) => stage.jump(box, around), layer: () => layers?.layer ?? 0 });
const drawing = new Drawing(byId("over"), stage, {
  changed: () => { hint(); redraw(); },
  done: (corners) => marks.region(corners),
});
const list = new SlideList((number) => open(number));
let layers = null;

function draw(context, frame) {
  layers?.draw(context, frame);
  if (byId("show-outlines").checked) {
    for (const shape of outlines) drawShape(context, frame, shape, { width: shape.kind === "tissue" ? 1.5 : 2, filled: shape.kind === "tissue" ? 0 : 0.08 });
  }
  if (byId("show-marks").checked) {
    for (const mark of marks.marks) if (mark.about !== "slide") drawShape(context, frame, mark, { filled: 0.15, dashed: mark.verdict === "disagree" });
  }
  if (tiles.hovered && tiles.hovered !== tiles.kept) drawBox(context, frame, tiles.hovered.box, "#5b6770", 1);
  if (tiles.kept) drawBox(context, frame, tiles.kept.box, "#1a6fa0", 2.5);
  drawing.draw(context, frame);
}

function remember() {
  if (facts && !opening) writeLink({ slide: facts.id, ...stage.view(), ...layers.link() });
}

async function open(number, link = {}) {
  const turn = (turns += 1);
  opening = true;
  drawing.stop();
  try {
    const found = await getJson(`/api/slides/${number}`);
    if (turn !== turns) return;
    outlines = [];
    await stage.open(found);
    if (turn !== turns) return;
    facts = found;
    document.title = `${facts.id} – Microtome`;
    byId("slide-name").textContent = facts.id;
    byId("slide-name").title = facts.id;
    byId("notice").textContent = facts.notice;
    byId("notice").hidden = !facts.notice;
    byId("shapes").hidden = false;
    list.mark(number);
    if ([link.x, link.y, link.zoom].every((one) => one !== undefined)) stage.restore(link);
    tiles.open(facts);
    await Promise.all([marks.open(facts), layers.open(facts, link), showOutlines(turn, number)]);
  } catch (error) {
    if (turn === turns) toast(error.message);
    list.faulty.add(number);
  } finally {
    if (turn === turns) {
      opening = false;
      remember();
      redraw();
      document.body.dataset.slide = String(number); // for tests: this slide is open
    }
  }
}

async function showOutlines(turn, number) {
  try {
    const found = await getJson(`/api/slides/${number}/outlines`);
    if (turn === turns) outlines = found.outlines.map(withPath);
  } catch (error) {
    toast(error.message);
  }
}

function hint() {
  const words = { polygon: "Click the corners, or draw freehand; close at the first corner, by a double click or Enter. Esc ends it.", box: "Drag from corner to corner. Esc ends it." };
  byId("hint").textContent = words[drawing.kind] ?? "";
  byId("hint").hidden = !drawing.active;
  byId("draw-polygon").classList.toggle("on", drawing.kind === "polygon");
  byId("draw-box").classList.toggle("on", drawing.kind === "box");
}

function startDrawing(kind) {
  if (!facts?.canMark) return;
  if (drawing.kind === kind) { drawing.stop(); return; }
  if (!byId("class-name").value.trim()) { toast("Name a class first."); byId("class-name").focus(); return; }
  drawing.start(kind);
}

async function copyLink() {
  remember();
  try {
    await navigator.clipboard.writeText(location.href);
    toast("Link copied. It opens in this browser while the viewer runs.", true);
  } catch {
    toast("Copy the address of this page: it is the link.", true);
  }
}

const toggle = (id) => { byId(id).checked = !byId(id).checked; byId(id).dispatchEvent(new Event("input")); };
const side = (name) => { document.body.classList.toggle(name); };
const KEYS = [
  ["n", "next slide in the list", () => open(list.beside(1))],
  ["p", "slide before", () => open(list.beside(-1))],
  ["0", "whole slide", () => stage.home()],
  ["h", "heatmap on or off", () => toggle("heat-on")],
  ["1 … 9", "class or channel", (key) => layers.current() && layers.layers[layers.layer].channels[key - 1] && layers.choose(layers.layer, key - 1)],
  ["k", "slide in grey under the heatmap", () => toggle("grey")],
  ["[", "less opaque", () => layers.set({ opacity: Math.max(0, layers.view.opacity - 0.1) })],
  ["]", "more opaque", () => layers.set({ opacity: Math.min(1, layers.view.opacity + 0.1) })],
  [",", "show lower tiles too", () => step(-1)],
  [".", "hide lower tiles", () => step(1)],
  ["o", "outlines on or off", () => toggle("show-outlines")],
  ["m", "marks on or off", () => toggle("show-marks")],
  ["a", "agree with the kept tile", () => marks.sayOfTile({ right: true, class: null })],
  ["d", "disagree with the kept tile", () => marks.sayOfTile({ right: false, class: null })],
  ["g", "draw a polygon", () => startDrawing("polygon")],
  ["b", "draw a rectangle", () => startDrawing("box")],
  ["Ctrl+Z", "take back the last mark", () => marks.undo()],
  ["c", "copy a link to this view", copyLink],
  ["l", "slide list on or off", () => side("no-left")],
  ["r", "results on or off", () => side("no-right")],
  ["?", "this list", () => byId("help").showModal()],
  ["+ −, arrows", "zoom, move", null],
];

function step(way) {
  const { low, high, threshold } = layers.view;
  layers.set({ threshold: Math.min(high, Math.max(low, threshold + (way * (high - low)) / 40)) });
  remember();
}

function listen() {
  for (const id of ["show-outlines", "show-marks"]) byId(id).addEventListener("input", redraw);
  byId("right").addEventListener("input", () => requestAnimationFrame(remember));
  byId("toggle-left").addEventListener("click", () => side("no-left"));
  byId("copy-link").addEventListener("click", copyLink);
  byId("show-help").addEventListener("click", () => byId("help").showModal());
  byId("draw-polygon").addEventListener("click", () => startDrawing("polygon"));
  byId("draw-box").addEventListener("click", () => startDrawing("box"));
  fill(byId("key-list"), ...KEYS.flatMap(([key, does]) => [make("dt", {}, key), make("dd", {}, does)]));
  addEventListener("keydown", (event) => {
    if (event.target.closest("input:not([type=checkbox], [type=range]), select, textarea, dialog")) return;
    if (drawing.active && ["Escape", "Enter", "Backspace"].includes(event.key)) {
      ({ Escape: () => drawing.stop(), Enter: () => drawing.close(), Backspace: () => drawing.back() })[event.key]();
      event.preventDefault();
      return;
    }
    if (event.key === "Escape" && tiles.kept) tiles.keep(null);
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") { marks.undo(); event.preventDefault(); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || !layers) return;
    const wanted = /^[1-9]$/.test(event.key) ? "1 … 9" : event.key;
    const act = KEYS.find(([key]) => key === wanted)?.[2];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act(Number(event.key));
  }, true); // before OpenSeadragon, which has keys of its own
  addEventListener("hashchange", () => {
    const link = readLink();
    const number = list.slides.findIndex((slide) => slide.slide_id === link.slide);
    if (number >= 0) open(number, link);
  });
}

async function start() {
  listen();
  try {
    const { slides, scales } = await getJson("/api/slides");
    layers = new Layers(scales, {
      changed: redraw,
      chosen: () => { tiles.best(layers.layer, layers.channel); marks.verdict(); marks.tileButtons(tiles.kept); },
    });
    list.show(slides);
    if (slides.length === 1) document.body.classList.add("no-left");
    const number = slides.findIndex((slide) => slide.slide_id === asked.slide);
    const first = slides.findIndex((slide) => slide.status === "scored" || slide.status === "slide");
    if (asked.slide !== undefined && number < 0) toast("The slide of this link is not here.");
    await open(number >= 0 ? number : Math.max(0, first), number >= 0 ? asked : {});
  } catch (error) {
    toast(error.message);
  }
}

start();
