// Numbers as text, as the commands print them (cli/text_tables.py), and elements. Names of objects are hostile: they
// reach the page as text alone, never as markup, which the page's policy (Trusted Types) forbids as well.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function size(bytes) {
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < UNITS.length - 1) { value /= 1024; unit += 1; }
  return unit ? `${value.toFixed(1)} ${UNITS[unit]}` : `${Math.round(value)} B`;
}

export const rate = (bytesPerS) => `${size(bytesPerS)}/s`;

export const count = (number) => Math.round(number).toLocaleString("en");

export const counted = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;

// 100% only if nothing is missing, 0% only if nothing is cached.
export function percent(part, whole) {
  if (whole <= 0 || part >= whole) return "100%";
  if (part <= 0) return "0%";
  const share = 100 * part / whole;
  return share < 0.1 ? "<0.1%" : `${Math.min(share, 99.9).toFixed(1)}%`;
}

export const share = (part, whole) => (whole > 0 ? Math.max(0, Math.min(1, part / whole)) : 1);

export function duration(seconds) {
  let rest = Math.floor(seconds);
  if (rest < 60) return `${rest} s`;
  const parts = [];
  for (const [name, length] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    const number = Math.floor(rest / length);
    rest -= number * length;
    if (number || parts.length) parts.push(`${number} ${name}`);
    if (parts.length === 2) break;
  }
  return parts.join(" ");
}

export const byId = (id) => document.getElementById(id);

export function element(tag, { text, className, ...more } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  for (const [name, value] of Object.entries(more)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Only where it differs: a screen reader reads a live region again, and a selection is lost, when text is replaced.
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

export function bar(fraction) {
  const inner = element("span");
  inner.style.width = `${100 * fraction}%`;
  return element("span", { className: "bar", "aria-hidden": "true" }, inner);
}

export function setBar(target, fraction) {
  target.firstChild.style.width = `${100 * fraction}%`;
}

// Keeps the rows of a table in step with items: rows stay the same elements, so that focus and selection stay.
export class Rows {
  constructor(body, make) {
    this.body = body;
    this.make = make;
    this.rows = new Map();
  }

  show(items, keyOf) {
    const keys = new Set(items.map(keyOf));
    for (const [key, row] of this.rows) {
      if (!keys.has(key)) { row.element.remove(); this.rows.delete(key); }
    }
    items.forEach((item, at) => {
      const key = keyOf(item);
      let row = this.rows.get(key);
      if (!row) { row = this.make(item); this.rows.set(key, row); }
      row.update(item);
      if (this.body.children[at] !== row.element) this.body.insertBefore(row.element, this.body.children[at] ?? null);
    });
  }
}
