// The list of slides: what is there of each, what a model says, and whether a person has to look.

import { byId, fill, make, options, short } from "./elements.js";

const CHIPS = { confirmed: "good", "review required": "warn", failed: "bad", damaged: "bad", "no tissue": "plain" };

export class SlideList {
  constructor(open) {
    this.open = open;
    this.slides = [];
    this.faulty = new Set(); // those that could not be opened: keys pass over them
    this.current = -1;
    for (const id of ["slide-filter", "slide-order", "slide-model"]) byId(id).addEventListener("input", () => this.render());
  }

  show(slides) {
    this.slides = slides;
    this.models = [...new Set(slides.flatMap((slide) => slide.opinions.map((opinion) => opinion.model)))].sort();
    const chosen = this.models[Number(byId("slide-model").value)];
    options(byId("slide-model"), this.models);
    byId("slide-model").value = String(Math.max(0, this.models.indexOf(chosen)));
    byId("slide-model-line").hidden = this.models.length < 2;
    this.render();
  }

  opinion(slide) {
    const model = this.models[Number(byId("slide-model").value)];
    return slide.opinions.find((opinion) => opinion.model === model);
  }

  /** Numbers of the slides in the order that is shown. */
  order() {
    const wanted = byId("slide-filter").value.trim().toLowerCase();
    const said = this.slides.map((slide) => this.opinion(slide));
    const found = this.slides.map((_, number) => number).filter((number) => {
      const slide = this.slides[number];
      const words = [slide.slide_id, slide.status, said[number]?.result, said[number]?.decision];
      return words.some((word) => word?.toLowerCase().includes(wanted));
    });
    const doubt = (number) => said[number]?.confidence ?? said[number]?.score ?? 2;
    const keys = {
      review: (number) => (said[number]?.decision === "review required" ? 0 : 1) * 10 + doubt(number),
      score: (number) => -(said[number]?.score ?? -1),
      confidence: doubt,
    };
    const key = keys[byId("slide-order").value];
    if (key) found.sort((a, b) => key(a) - key(b));
    else found.sort((a, b) => this.slides[a].slide_id.localeCompare(this.slides[b].slide_id, undefined, { numeric: true }));
    return found;
  }

  render() {
    const numbers = this.order();
    const all = this.slides.length;
    byId("slide-count").textContent = numbers.length === all ? String(all) : `${numbers.length} of ${all}`;
    fill(byId("slide-list"), ...numbers.map((number) => this.line(number)));
  }

  line(number) {
    const slide = this.slides[number];
    const said = this.opinion(slide);
    const chip = said?.decision ?? (said ? "" : slide.status === "slide" ? "" : slide.status);
    const what = said ? `${said.result} ${short(said.score)}${said.of_tiles ? " of tiles" : ""}` : slide.reason;
    const row = make("div", { class: "row" }, make("span", { class: "what", title: what ?? "" }, what ?? ""));
    if (typeof said?.confidence === "number") row.append(make("span", { title: "confidence" }, `conf. ${short(said.confidence)}`));
    if (chip) row.append(make("span", { class: `chip ${CHIPS[chip] ?? "plain"}` }, chip === "review required" ? "review" : chip));
    const item = make("li", { tabIndex: 0, "aria-current": String(number === this.current), onclick: () => this.open(number),
      onkeydown: (event) => { if (event.key === "Enter") this.open(number); } },
    make("div", { class: "name", title: slide.slide_id }, slide.slide_id), row);
    item.dataset.number = String(number);
    return item;
  }

  mark(number) {
    this.current = number;
    for (const item of byId("slide-list").children) {
      const isIt = item.dataset.number === String(number);
      item.setAttribute("aria-current", String(isIt));
      if (isIt) item.scrollIntoView({ block: "nearest" });
    }
  }

  /** The slide after this one in the list, or before it. */
  beside(step) {
    const numbers = this.order().filter((number) => !this.faulty.has(number));
    const place = numbers.indexOf(this.current);
    return numbers[Math.min(Math.max(place + step, 0), numbers.length - 1)];
  }
}
