// The picture of a directory: squares in the order of its files, each of one file or of a run of them. A square fills
// from below by how much of it is cached, so that the picture can be read without its colours.

const GAP = 2;

export function cellSize(cells) {
  if (cells <= 80) return 24;
  if (cells <= 300) return 18;
  if (cells <= 700) return 13;
  return 9;
}

export class CellPicture {
  constructor(cells, size, columns) {
    this.cells = cells;
    this.size = size;
    this.columns = Math.max(1, columns);
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", "Not counted yet");
    const step = size + GAP;
    const width = Math.min(cells.length, this.columns) * step;
    const height = Math.ceil(cells.length / this.columns) * step;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(width * ratio));
    this.canvas.height = Math.max(1, Math.round(height * ratio));
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    this.pen = this.canvas.getContext("2d");
    this.pen.scale(ratio, ratio);
  }

  draw(colours, marked) {
    const { pen, size } = this;
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.cells.forEach((cell, at) => {
      const x = (at % this.columns) * (size + GAP) + 1;
      const y = Math.floor(at / this.columns) * (size + GAP) + 1;
      this.#square(cell, x, y, size, colours);
      if (marked && cell.start < marked.stop && cell.stop > marked.start) {
        pen.strokeStyle = colours.ink;
        pen.lineWidth = 2;
        pen.strokeRect(x, y, size, size);
      }
    });
  }

  #square(cell, x, y, size, colours) {
    const { pen } = this;
    const corner = size > 12 ? 3 : 1.5;
    pen.beginPath();
    if (!cell.known) {
      pen.setLineDash([2, 2]);
      pen.strokeStyle = colours.quiet;
      pen.lineWidth = 1;
      pen.roundRect(x + 0.5, y + 0.5, size - 1, size - 1, corner);
      pen.stroke();
      pen.setLineDash([]);
      return;
    }
    pen.roundRect(x, y, size, size, corner);
    if (cell.cached >= cell.total) {
      pen.fillStyle = colours.whole;
      pen.fill();
    } else if (cell.cached <= 0) {
      pen.fillStyle = colours.track;
      pen.fill();
      this.#edge(x, y, corner, colours);
    } else {
      pen.fillStyle = colours.partBack;
      pen.fill();
      pen.save();
      pen.clip();
      const filled = Math.max(1, Math.min(size - 1, size * cell.cached / cell.total));
      pen.fillStyle = colours.part;
      pen.fillRect(x, y + size - filled, size, filled);
      pen.restore();
      this.#edge(x, y, corner, colours);
    }
  }

  // A square that is not whole has to be seen on the card, whatever the colours of its inside.
  #edge(x, y, corner, colours) {
    const { pen, size } = this;
    pen.beginPath();
    pen.roundRect(x + 0.5, y + 0.5, size - 1, size - 1, corner);
    pen.strokeStyle = colours.edge;
    pen.lineWidth = 1;
    pen.stroke();
  }

  // The cell below a pointer; undefined: none.
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / (this.size + GAP));
    const row = Math.floor((event.clientY - box.top) / (this.size + GAP));
    return column < this.columns ? this.cells[row * this.columns + column] : undefined;
  }
}

export function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { whole: read("--whole"), part: read("--part"), partBack: read("--part-back"), track: read("--track"), edge: read("--edge"), quiet: read("--quiet"), ink: read("--ink") };
}
