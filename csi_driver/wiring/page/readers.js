// What `hayloft top` shows: pods and processes.

import { byId, count, element, rate, Rows, setText } from "./text.js";

function cell(className) { return element("td", { className }); }

function readerRow(one) {
  const cells = { open: cell("number"), passed: cell("number"), served: cell("number"), read: cell("number") };
  const row = element("tr", {},
    element("th", { scope: "row", text: String(one.process_id) }),
    element("td", {}, element("bdi", { text: one.command })),
    element("td", {}, element("bdi", { text: one.pod || "–" })),
    element("td", {}, element("bdi", { text: one.volume_id })),
    cells.open, cells.passed, cells.served, cells.read);
  return {
    element: row,
    update(now) {
      setText(cells.open, count(now.open_files + now.mapped));
      setText(cells.passed, rate(now.passed_through_bytes_per_s));
      setText(cells.served, now.served_bytes_per_s === null ? "–" : rate(now.served_bytes_per_s));
      setText(cells.read, now.process_read_bytes_per_s === null ? "–" : rate(now.process_read_bytes_per_s));
    },
  };
}

const rows = new Rows(byId("readers").tBodies[0], readerRow);

export function showReaders(readers) {
  const processes = readers ? readers.processes.slice(0, 200) : [];
  byId("readers-none").hidden = processes.length > 0;
  byId("readers-scroll").hidden = processes.length === 0;
  if (readers) setText(byId("readers-note"), readers.note);
  rows.show(processes, (one) => `${one.process_id} ${one.volume_id} ${one.command} ${one.pod}`);
}
