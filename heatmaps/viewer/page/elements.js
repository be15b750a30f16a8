// Elements of the page. Text is only ever set as text: a name is data, whatever it looks like.

/** The element of that id. */
export function byId(id) {
  return document.getElementById(id);
}

/** A new element with properties, and children that are elements or texts. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Put these children in place of what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...children);
}

/** A choice among texts; the values are their numbers. */
export function options(select, texts) {
  fill(select, ...texts.map((text, number) => make("option", { value: String(number) }, text)));
}

/** A number in few digits. Below one it is cut off, never rounded up: 0.9996 is not 1, nor 0.7998 the gate's 0.8. */
export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 100) return value.toFixed(0);
  if (size < 0.001) return value.toExponential(1);
  if (size >= 1) return String(Number(value.toPrecision(3)));
  const step = 10 ** (2 - Math.floor(Math.log10(size)));
  return String((Math.sign(value) * Math.floor(Number((size * step).toPrecision(12)))) / step);
}

/** A message that goes away by itself. */
export function toast(text, fine = false) {
  const shown = make("div", { class: fine ? "toast fine" : "toast" }, text);
  const all = byId("toasts");
  while (all.children.length > 3) all.firstChild.remove();
  all.append(shown);
  setTimeout(() => shown.remove(), fine ? 2500 : 9000);
}

/** Rows of name, bar and number; a bar only for numbers from 0 to 1. */
export function bars(rows) {
  const grid = make("div", { class: "bars" });
  for (const row of rows) {
    if (row.group !== undefined) {
      grid.append(make("div", { class: "group", title: row.group }, row.group));
      continue;
    }
    const fillBar = make("div", { class: "fill" });
    const share = row.share ?? (row.value >= 0 && row.value <= 1 ? row.value : 0);
    fillBar.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
    grid.append(make("div", { class: "name", title: row.name }, row.name),
      make("div", { class: "track" }, fillBar), make("div", { class: "number" }, short(row.value)));
  }
  return grid;
}
