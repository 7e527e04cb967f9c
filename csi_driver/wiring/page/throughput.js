// Bytes a second since the page was opened: an area for what readers got, a line for what stores sent.

import { byId, duration, element, rate, setText } from "./text.js";

const LONGEST_S = 300;
const SPANS_S = [60, 120, LONGEST_S];
const TABLE_EVERY_S = 10;
const TABLE_ROWS = 30;
const SVG = "http://www.w3.org/2000/svg";
const SERIES = [
  { key: "passed_through", name: "passed through", style: "passed" },
  { key: "served", name: "served", style: "served" },
  { key: "fetched", name: "fetched", style: "fetched" },
];

const points = [];
// Seconds of the page's clock; null values: the daemon did not answer then.

const legend = new Map();
for (const { key, name, style } of SERIES) {
  const now = element("span", { className: "now", text: "–" });
  byId("throughput-legend").append(element("li", {}, element("span", { className: `key ${style}` }), name, now));
  legend.set(key, now);
}

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// 1, 2 or 5 times a power of ten of a binary unit, so that the lines of the grid have round sizes.
function niceTop(most) {
  let unit = 1024;
  while (unit * 1024 <= most) unit *= 1024;
  for (const step of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]) if (unit * step >= most) return unit * step;
  return unit * 1024;
}

function draw(nowS) {
  const host = byId("throughput-picture");
  const width = Math.max(300, host.clientWidth);
  const height = 208;
  const left = 84, right = 8, top = 10, bottom = 24;
  const spanS = SPANS_S.find((one) => nowS - (points[0]?.timeS ?? nowS) <= one) ?? LONGEST_S;
  const x = (timeS) => left + (width - left - right) * (1 - (nowS - timeS) / spanS);
  const most = Math.max(1024, ...points.map((p) => (p.values ? Math.max(p.values.passed_through + p.values.served, p.values.fetched) : 0)));
  const limit = niceTop(most);
  const y = (value) => top + (height - top - bottom) * (1 - value / limit);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label() });
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    picture.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(limit * part), y2: y(limit * part) }));
    if (part === 0 || part === 0.5 || part === 1) {
      const text = svg("text", { x: left - 8, y: y(limit * part) + 4, "text-anchor": "end" });
      text.textContent = rate(limit * part);
      picture.append(text);
    }
  }
  for (const part of [1, 0.75, 0.5, 0.25, 0]) {
    const agoS = spanS * part;
    const text = svg("text", { x: x(nowS - agoS), y: height - 6, "text-anchor": part === 1 ? "start" : part ? "middle" : "end" });
    text.textContent = agoS ? `−${agoS % 60 ? duration(agoS) : `${agoS / 60} min`}` : "now";
    picture.append(text);
  }
  for (const run of runs()) {
    area(picture, run, x, y, () => 0, (v) => v.passed_through, "passed");
    area(picture, run, x, y, (v) => v.passed_through, (v) => v.passed_through + v.served, "served");
    const line = run.map((p) => `${x(p.timeS).toFixed(1)},${y(p.values.fetched).toFixed(1)}`).join(" L");
    picture.append(svg("path", { class: "line fetched", d: `M${line}` }));
  }
  for (const [fromS, toS] of absences(nowS)) {
    picture.append(svg("rect", { class: "gap", x: x(fromS), y: top, width: Math.max(1, x(toS) - x(fromS)), height: height - top - bottom }));
  }
  host.replaceChildren(picture);
}

function area(picture, run, x, y, low, high, style) {
  const upper = run.map((p) => `${x(p.timeS).toFixed(1)},${y(high(p.values)).toFixed(1)}`);
  const lower = run.map((p) => `${x(p.timeS).toFixed(1)},${y(low(p.values)).toFixed(1)}`).reverse();
  picture.append(svg("path", { class: `area ${style}`, d: `M${[...upper, ...lower].join(" L")} Z` }));
}

function runs() {
  const found = [];
  let run = [];
  for (const point of points) {
    if (point.values) run.push(point);
    else if (run.length) { found.push(run); run = []; }
  }
  if (run.length) found.push(run);
  return found;
}

function absences(nowS) {
  const found = [];
  for (let at = 0; at < points.length; at += 1) {
    if (points[at].values) continue;
    const from = points[at].timeS;
    while (at < points.length && !points[at].values) at += 1;
    found.push([from, at < points.length ? points[at].timeS : nowS]);
  }
  return found;
}

// Not with each second's numbers: the label of a picture is no ticker. The table has them.
let labelled = { text: "", untilS: 0 };
function label() {
  const nowS = performance.now() / 1000;
  if (nowS < labelled.untilS) return labelled.text;
  const last = points.findLast((p) => p.values);
  const values = last ? SERIES.map(({ key, name }) => `${name} ${rate(last.values[key])}`).join(", ") : "nothing measured yet";
  labelled = { text: `Throughput of the last five minutes; lately ${values}. The table below has the numbers.`, untilS: nowS + TABLE_EVERY_S };
  return labelled.text;
}

let tabledS = -Infinity;

function addTableRow(nowS, values) {
  if (nowS - tabledS < TABLE_EVERY_S) return;
  tabledS = nowS;
  const cells = SERIES.map(({ key }) => element("td", { className: "number", text: values ? rate(values[key]) : "no answer" }));
  const rows = byId("throughput-rows");
  rows.prepend(element("tr", {}, element("th", { scope: "row", text: new Date().toLocaleTimeString("en-GB") }), ...cells));
  while (rows.children.length > TABLE_ROWS) rows.lastChild.remove();
}

// values: null while the daemon does not answer.
export function showThroughput(values) {
  const nowS = performance.now() / 1000;
  points.push({ timeS: nowS, values });
  while (points.length && points[0].timeS < nowS - LONGEST_S) points.shift();
  for (const { key } of SERIES) setText(legend.get(key), values ? rate(values[key]) : "–");
  addTableRow(nowS, values);
  draw(nowS);
}
