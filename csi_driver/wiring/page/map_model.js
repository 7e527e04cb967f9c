// Which files a directory's map shows, and what was counted of them. Nothing here knows the page.

export const MOST_CELLS = 1400;

// Parts of the directory, each with its cells: one for each subdirectory that was listed, and one for each run of other
// files. Files are in the order of the manifest, in which those below a directory are neighbours.
export function segmentsOf(listing) {
  const [start, stop] = listing.rows;
  const cell = Math.max(1, Math.ceil((stop - start) / MOST_CELLS));
  const directories = listing.entries.filter((one) => one.type === "directory").sort((a, b) => a.rows[0] - b.rows[0]);
  const found = [];
  let at = start;
  const others = (until) => { if (until > at) found.push(segment(null, at, until, cell)); };
  for (const entry of directories) {
    others(entry.rows[0]);
    found.push(segment(entry, entry.rows[0], entry.rows[1], cell));
    at = entry.rows[1];
  }
  others(stop);
  return found;
}

function segment(entry, start, stop, cell) {
  const cells = [];
  for (let at = start; at < stop; at += cell) cells.push(newCell(at, Math.min(stop, at + cell)));
  return { entry, start, stop, cell, cells, counted: false };
}

const newCell = (start, stop) => ({ start, stop, total: 0, cached: 0, complete: 0, known: false, sweep: 0 });

// Adds what one step has counted: first file, last file + 1, bytes, cached bytes, complete files. What an earlier sweep
// has counted of a cell stays until the first part of this one.
export function addParts(one, parts, sweep) {
  for (const [start, , total, cached, complete] of parts) {
    const cell = one.cells[Math.floor((start - one.start) / one.cell)];
    if (cell.sweep !== sweep) Object.assign(cell, { sweep, total: 0, cached: 0, complete: 0 });
    cell.total += total;
    cell.cached += cached;
    cell.complete += complete;
    cell.known = true;
  }
}

export function totals(cells) {
  const sum = { total: 0, cached: 0, complete: 0, files: 0 };
  for (const cell of cells) {
    sum.total += cell.total;
    sum.cached += cell.cached;
    sum.complete += cell.complete;
    sum.files += cell.stop - cell.start;
  }
  return sum;
}
