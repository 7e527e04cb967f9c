// What `hayloft status` shows: facts, conditions, volumes.

import { bar, byId, count, counted, duration, element, percent, rate, Rows, setBar, setText, share, size } from "./text.js";

const SLOW_S = 3;

const facts = new Map();

function fact(name, value, detail, fraction) {
  let shown = facts.get(name);
  if (!shown) {
    shown = { value: element("span", { className: "value" }), detail: element("span", { className: "detail" }), bar: null };
    const data = element("dd", {}, shown.value);
    if (fraction !== undefined) { shown.bar = bar(fraction); data.append(shown.bar); }
    data.append(shown.detail);
    byId("facts").append(element("div", {}, element("dt", { text: name }), data));
    facts.set(name, shown);
  }
  setText(shown.value, value);
  setText(shown.detail, detail);
  if (shown.bar) setBar(shown.bar, fraction);
}

function showFacts(status) {
  const counters = status.counters;
  const { cache_used_bytes: used, cache_limit_bytes: limit, cache_free_bytes: free } = counters;
  fact("Cache", `${size(used)}, ${percent(used, limit)}`, `of ${size(limit)}; ${count(counters.cache_evicted_objects)} objects evicted`, share(used, limit));
  const sharedWith = status.cache.shared_with ? `, shared with ${status.cache.shared_with}` : "";
  const disk = counters.cache_disk_in_use ? "" : "; it keeps failing and is not used";
  fact("Disk", `${size(free)} free`, `${size(counters.cache_free_floor_bytes)} stay free${sharedWith}; ${status.cache.directory} (${status.cache.file_system})${disk}`);
  const reads = status.reads;
  const opened = reads.opened_bytes;
  fact("Hits", reads.hit_ratio === null ? "–" : percent(opened - Math.min(opened, reads.fetched_for_readers_bytes), opened),
    reads.hit_ratio === null ? "no file was opened yet" : `of ${size(opened)} opened; ${size(reads.fetched_for_readers_bytes)} fetched for readers`);
  const rates = status.rates;
  fact("Fetched from stores", size(counters.origin_bytes),
    `in ${counted(counters.origin_requests, "request")}${rates ? `; now ${rate(rates.fetched_bytes)}, ${count(rates.requests)} requests/s` : ""}`);
  const waits = status.volumes.filter((one) => one.store_wait_s >= SLOW_S).sort((a, b) => b.store_wait_s - a.store_wait_s);
  fact("Store", waits.length ? `waits for ${Math.round(waits[0].store_wait_s)} s` : "no request waits", waits.length ? `${waits[0].endpoint}, for ${waits[0].volume_id}` : "");
  const errors = Object.entries(counters.read_errors).sort().map(([name, number]) => `${count(number)} ${name}`).join(", ");
  fact("Warmups and errors", counters.warmups ? `${counted(counters.warmups, "warmup")} running` : "no warmup runs",
    `${size(counters.warmup_bytes)} fetched by warmups; ${errors ? `reads that failed: ${errors}` : "no read failed"}`);
}

const SEVERE = new Set(["inaccessible", "data loss", "data_loss"]);

let lastConditions = "";

function showConditions(conditions) {
  const now = JSON.stringify(conditions);
  if (now === lastConditions) return;
  lastConditions = now;
  byId("conditions").replaceChildren(...conditions.map((one) => {
    const title = element("strong", { text: `${one.reason} (${one.severity})` });
    if (one.volume_id) title.append(" – ", element("bdi", { text: one.volume_id }));
    return element("li", { className: SEVERE.has(one.severity) ? "bad" : "" }, title, `${one.sentence} ${one.remedy}`);
  }));
}

export function warmupText(warmup) {
  if (warmup.state === "none") return "–";
  if (warmup.state !== "running" || !warmup.total_files) return warmup.state;
  return `${percent(warmup.done_bytes, warmup.total_bytes)}${warmup.eta_s === null ? "" : `, ${duration(warmup.eta_s)}`}`;
}

let choose = () => {};

function volumeRow(volume) {
  const button = element("button", { className: "name", type: "button" }, element("bdi", { text: volume.volume_id }));
  button.addEventListener("click", () => choose(volume.volume_id, true));
  const cells = { bar: bar(0), share: element("span"), of: element("td", { className: "number" }), files: element("td", { className: "number" }), warmup: element("td"), state: element("td") };
  const dataset = element("td", { className: "dataset" }, element("bdi", { text: volume.url }));
  const row = element("tr", {}, element("th", { scope: "row" }, button), dataset, element("td", { className: "share" }, cells.bar, cells.share), cells.of, cells.files, cells.warmup, cells.state);
  return {
    element: row,
    update(one) {
      const known = one.cached_bytes !== null;
      setBar(cells.bar, known ? share(one.cached_bytes, one.total_bytes) : 0);
      setText(cells.share, known ? percent(one.cached_bytes, one.total_bytes) : "counting");
      setText(cells.of, size(one.total_bytes));
      setText(cells.files, count(one.files));
      setText(cells.warmup, warmupText(one.warmup));
      const words = one.conditions.length ? one.conditions.map((each) => each.reason) : ["ok"];
      setText(cells.state, [...words, ...(one.pinned ? ["pinned"] : [])].join(", "));
    },
  };
}

const volumeRows = new Rows(byId("volumes").tBodies[0], volumeRow);

export function markVolume(volumeId) {
  for (const [key, row] of volumeRows.rows) {
    if (key === volumeId) row.element.setAttribute("aria-current", "true");
    else row.element.removeAttribute("aria-current");
  }
}

export function onChoice(action) { choose = action; }

export function showStatus(found) {
  const { status } = found;
  const conditions = found.all_conditions;
  setText(byId("version"), `${status.daemon.version}, process ${status.daemon.process_id}, up ${duration(status.daemon.uptime_s)}`);
  setText(byId("verdict"), conditions.length ? `${counted(conditions.length, "condition")} of the node or its volumes.` : "Nothing is wrong.");
  showConditions(conditions);
  showFacts(status);
  byId("volumes-none").hidden = status.volumes.length > 0;
  byId("volumes-scroll").hidden = status.volumes.length === 0;
  volumeRows.show(status.volumes, (one) => one.volume_id);
}
