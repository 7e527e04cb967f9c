// The map of a volume: a directory at a time, as a picture and as a table. It counts in small steps, each a request, as
// `hayloft ls` does, and again when what is cached of the volume has changed.

import { askCount, askDirectory, Refusal } from "./daemon.js";
import { CellPicture, cellSize, colours } from "./map_cells.js";
import { addParts, segmentsOf, totals } from "./map_model.js";
import { bar, byId, count, counted, element, percent, Rows, setBar, setText, share, size } from "./text.js";

const SHOWN = 100;
const LEAST_PAUSE_MS = 3000;
const LONGEST_PAUSE_MS = 60000;
const SEPARATE_FIGURES = 25;

const state = { volume: null, trail: [], listing: null, segments: [], figures: [], shown: SHOWN, sweep: 0, marked: null, cachedBytes: null };
// Each load of a directory has a number: what an earlier one still waits for is dropped.
let loads = 0;

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const path = () => state.trail.at(-1)?.path ?? "";

export const mapVolume = () => state.volume;

export function chooseVolume(volumeId, announce = false) {
  state.volume = volumeId;
  state.trail = [];
  byId("map-section").hidden = volumeId === null;
  if (volumeId === null) { loads += 1; return; }
  setText(byId("map-volume"), volumeId);
  load(announce);
}

// The daemon answers again, or the page is seen again.
export function resumeMap() {
  if (state.volume !== null) load(false);
}

export function pauseMap() { loads += 1; }

export function noteCachedBytes(cachedBytes) { state.cachedBytes = cachedBytes; }

async function load(moveFocus) {
  const number = ++loads;
  const current = () => number === loads;
  try {
    const listing = await askDirectory(state.volume, path(), 0);
    if (!current()) return;
    byId("map-error").hidden = true;
    const same = state.listing && state.listing.snapshot_id === listing.snapshot_id && state.listing.at === `${state.volume}/${path()}`;
    if (!same) {
      state.shown = SHOWN;
      state.segments = segmentsOf(listing);
      state.listing = listing;
      listing.at = `${state.volume}/${path()}`;
      showTrail(moveFocus);
      makeFigures();
    }
    showEntries();
    await countForEver(current);
  } catch (error) {
    if (!current()) return;
    if (error instanceof Refusal) fail(error.message);
    // Otherwise one answer was late, or the daemon is away: then the page says so, and resumes the map when it is back.
    await wait(LEAST_PAUSE_MS);
    if (current()) load(false);
  }
}

// The volume was unmounted, or shows another snapshot by now, in which the directory may not be.
function fail(message) {
  setText(byId("map-error"), message);
  byId("map-error").hidden = false;
  state.trail = [];
  state.listing = null;
}

async function countForEver(current) {
  for (;;) {
    const before = state.cachedBytes;
    const beganMs = performance.now();
    await sweep(current);
    if (!current()) return;
    const tookMs = performance.now() - beganMs;
    await wait(Math.min(LONGEST_PAUSE_MS, Math.max(LEAST_PAUSE_MS, tookMs)));
    for (let waitedMs = 0; current() && before !== null && state.cachedBytes === before && waitedMs < LONGEST_PAUSE_MS; waitedMs += 500) await wait(500);
    if (!current()) return;
    await refreshEntries(current);
    if (!current()) return;
  }
}

// Files tell their cached bytes when they are listed.
async function refreshEntries(current) {
  const known = new Map(state.listing.entries.map((one) => [one.path, one]));
  let cookie = 0;
  let seen = 0;
  do {
    const page = await askDirectory(state.volume, path(), cookie);
    if (!current()) return;
    if (page.snapshot_id !== state.listing.snapshot_id) { state.listing = null; load(false); return; }
    for (const one of page.entries) if (known.has(one.path)) known.get(one.path).cached_bytes = one.cached_bytes;
    seen += page.entries.length;
    cookie = page.next_cookie;
  } while (cookie && seen < state.shown);
}

async function sweep(current) {
  const number = ++state.sweep;
  for (const one of state.segments) {
    let start = one.start;
    while (start < one.stop) {
      const found = await askCount({ volume: state.volume, snapshot: state.listing.snapshot_id, start, stop: one.stop, origin: one.start, cell: one.cell });
      if (!current()) return;
      addParts(one, found.parts, number);
      start = found.next_row;
      redraw(one);
      if (!one.counted) showProgress(start);
    }
    one.counted = true;
    updateEntries();
  }
  showSummary();
}

// Files are in the order of the manifest, and so are the segments: what is before a file is counted.
function showProgress(row) {
  const [start, stop] = state.listing.rows;
  setText(byId("map-summary"), `Counting: ${count(row - start)} of ${counted(stop - start, "file")}.`);
}

function perCell() {
  const cell = state.segments[0]?.cell ?? 1;
  return cell > 1 ? ` Each square is ${counted(cell, "file")}.` : " Each square is a file.";
}

// -- the picture --

function makeFigures() {
  const host = byId("map-picture");
  const together = state.segments.length > SEPARATE_FIGURES;
  const groups = together ? [state.segments] : state.segments.map((one) => [one]);
  const cells = state.segments.reduce((sum, one) => sum + one.cells.length, 0);
  const side = cellSize(cells);
  const most = Math.max(1, Math.floor(host.clientWidth / (side + 2)));
  state.figures = groups.map((segments) => {
    const own = segments.flatMap((one) => one.cells);
    const columns = groups.length === 1 ? most : Math.min(most, Math.max(7, Math.ceil(Math.sqrt(own.length * 2.2))));
    const picture = new CellPicture(own, side, columns);
    const name = together ? "all names" : segmentName(segments[0]);
    const caption = element("figcaption", {}, element("bdi", { text: name }));
    const figure = element("figure", {}, ...(groups.length === 1 ? [] : [caption]), picture.canvas);
    figure.style.minWidth = groups.length === 1 ? "" : "6rem";
    const made = { segments, picture, name, element: figure };
    picture.canvas.addEventListener("pointermove", (event) => point(made, picture.at(event)));
    picture.canvas.addEventListener("pointerleave", () => point(made, undefined));
    return made;
  });
  host.replaceChildren(...state.figures.map((one) => one.element));
  setText(byId("map-summary"), "Counting.");
  redraw(null);
}

function segmentName(one) {
  if (one.entry) return `${one.entry.shown}/`;
  return state.listing.next_cookie ? "other names" : "files here";
}

function redraw(segment) {
  const tones = colours();
  for (const figure of state.figures) {
    if (segment === null || figure.segments.includes(segment)) figure.picture.draw(tones, state.marked);
  }
}

function labelFigure({ picture, segments, name }) {
  const sum = totals(segments.flatMap((one) => one.cells));
  const text = `${name}: ${percent(sum.cached, sum.total)} of ${size(sum.total)} cached, ${count(sum.complete)} of ${counted(sum.files, "file")} complete`;
  if (picture.canvas.getAttribute("aria-label") !== text) picture.canvas.setAttribute("aria-label", text);
}

function point(figure, cell) {
  if (!cell) { mark(null); setText(byId("map-pointed"), ""); return; }
  const entry = state.listing.entries.find((one) => one.rows[0] <= cell.start && cell.start < one.rows[1]);
  const files = cell.stop - cell.start;
  const first = cell.start - state.listing.rows[0] + 1;
  let name = files === 1 ? `file ${count(first)}` : `files ${count(first)} to ${count(first + files - 1)}`;
  if (entry) name = entry.type === "file" && files === 1 ? entry.shown : `${entry.shown}${entry.type === "directory" ? "/" : ""} – ${name}`;
  setText(byId("map-pointed"), `${name}: ${cell.known ? `${percent(cell.cached, cell.total)} of ${size(cell.total)}` : "not counted yet"}`);
  mark(cell, entry?.path);
}

function mark(range, entryPath) {
  state.marked = range;
  for (const [key, row] of rows.rows) row.element.classList.toggle("pointed", range !== null && key === entryPath);
  redraw(null);
}

let lastWidth = 0;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width === lastWidth) return;  // it became higher, by what is drawn here
  lastWidth = contentRect.width;
  if (!state.listing) return;
  makeFigures();
  showSummary();
}).observe(byId("map-picture"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(null));

function showSummary() {
  if (!state.segments.every((one) => one.counted)) return;
  const sum = totals(state.segments.flatMap((one) => one.cells));
  for (const figure of state.figures) labelFigure(figure);
  setText(byId("map-summary"), `${percent(sum.cached, sum.total)} of ${size(sum.total)} cached; ${count(sum.complete)} of ${counted(sum.files, "file")} complete.${perCell()}`);
}

// -- the table --

function cachedOf(entry) {
  const segment = state.segments.find((one) => one.start <= entry.rows[0] && entry.rows[0] < one.stop);
  if (!segment) return entry.cached_bytes;
  if (entry.type === "directory") return segment.counted && segment.entry?.path === entry.path ? totals(segment.cells).cached : null;
  if (segment.cell > 1) return entry.cached_bytes;
  const cell = segment.cells[entry.rows[0] - segment.start];
  return cell.known ? cell.cached : entry.cached_bytes;
}

function entryRow(entry) {
  const name = entry.type === "directory"
    ? element("button", { className: "name", type: "button" }, element("bdi", { text: `${entry.shown}/` }))
    : element("bdi", { text: entry.shown });
  const cells = { bar: bar(0), share: element("span") };
  const row = element("tr", {}, element("th", { scope: "row" }, name), element("td", { className: "share" }, cells.bar, cells.share),
    element("td", { className: "number", text: size(entry.total_bytes) }), element("td", { className: "number", text: count(entry.files) }));
  if (entry.type === "directory") name.addEventListener("click", () => enter([...state.trail, { path: entry.path, shown: entry.shown }]));
  const range = { start: entry.rows[0], stop: entry.rows[1] };
  for (const event of ["pointerenter", "focusin"]) row.addEventListener(event, () => mark(range, entry.path));
  for (const event of ["pointerleave", "focusout"]) row.addEventListener(event, () => mark(null));
  return {
    element: row,
    update(one) {
      const cached = cachedOf(one);
      setBar(cells.bar, cached === null ? 0 : share(cached, one.total_bytes));
      setText(cells.share, cached === null ? "counting" : percent(cached, one.total_bytes));
    },
  };
}

const rows = new Rows(byId("entries").tBodies[0], entryRow);

function showEntries() {
  const { entries, next_cookie: next } = state.listing;
  rows.show(entries.slice(0, state.shown), (one) => one.path);
  const left = entries.length - state.shown;
  byId("more").hidden = left <= 0 && !next;
  setText(byId("more"), left > 0 && !next ? `Show ${count(Math.min(SHOWN, left))} more of ${counted(left, "name")}` : `Show ${SHOWN} more names`);
}

function updateEntries() { if (state.listing) showEntries(); }

byId("more").addEventListener("click", async () => {
  const listing = state.listing;
  state.shown += SHOWN;
  if (state.shown > listing.entries.length && listing.next_cookie) {
    const page = await askDirectory(state.volume, path(), listing.next_cookie);
    if (state.listing !== listing) return;
    listing.entries.push(...page.entries);
    listing.next_cookie = page.next_cookie;
  }
  showEntries();
});

// -- where it is --

function enter(trail) {
  state.trail = trail;
  load(true);
}

function showTrail(moveFocus) {
  const places = [{ path: "", shown: "all files" }, ...state.trail];
  const items = places.map((one, at) => {
    const last = at === places.length - 1;
    if (last) return element("li", { "aria-current": "page", tabindex: "-1" }, element("bdi", { text: one.shown }));
    const button = element("button", { className: "name", type: "button" }, element("bdi", { text: one.shown }));
    button.addEventListener("click", () => enter(state.trail.slice(0, at)));
    return element("li", {}, button);
  });
  byId("map-path").replaceChildren(...items);
  if (moveFocus) items.at(-1).focus();
}
