// The points of a map: how they arrive, where they lie, which of them lie where one asks.
//
// Map coordinates: x to the right, y up, the larger extent within [-1, 1]. The grid is laid
// out in the same coordinates; addresses name its regions in units of columns and rows.

const MAGIC = 0x50534d49; // "IMSP", little-endian
const HEADER = 32;
const MOST_CORNERS = 60;
const AWAY = 1e6;
const BLOCK = 256;
export const NO_LEVEL = 255;

/** The arrays of a points.bin, as views on its buffer. Throws an Error for anything else. */
export function decodePoints(buffer) {
  const header = new Uint32Array(buffer, 0, HEADER / 4);
  const [magic, version, n, columns, sheetSide, tileSide, sheets] = header;
  if (magic !== MAGIC || version !== 1) throw new Error("this is no map of version 1");
  if (buffer.byteLength < HEADER + n * 25) throw new Error("the map's points are cut short");
  let at = HEADER;
  const next = (Kind) => {
    const array = new Kind(buffer, at, n);
    at += array.byteLength;
    return array;
  };
  return {
    n, columns, sheetSide, tileSide, sheets,
    x: next(Float32Array), y: next(Float32Array), aspect: next(Float32Array),
    cell: next(Int32Array), slot: next(Uint32Array), id: next(Uint32Array),
    passes: next(Uint8Array),
  };
}

/** Where points lie: `xy` (x, y of each in turn), `extent` (half width, half height). */
export function scatterLayout({ n, x, y }) {
  const xy = new Float32Array(2 * n);
  let [halfWidth, halfHeight] = [1e-3, 1e-3];
  for (let i = 0; i < n; i++) {
    xy[2 * i] = x[i];
    xy[2 * i + 1] = y[i];
    halfWidth = Math.max(halfWidth, Math.abs(x[i]));
    halfHeight = Math.max(halfHeight, Math.abs(y[i]));
  }
  const same = (corners) => corners;
  return {
    name: "scatter", xy, boxes: boxesOf(xy),
    extent: [halfWidth, halfHeight], toAddress: same, fromAddress: same,
  };
}

/** The same for the grid. `unit` is the side of a cell; pictures without a cell are out of sight. */
export function gridLayout({ n, cell, columns }) {
  let rows = 1;
  for (let i = 0; i < n; i++) rows = Math.max(rows, Math.floor(cell[i] / columns) + 1);
  const unit = 2 / Math.max(columns, rows);
  const xy = new Float32Array(2 * n);
  for (let i = 0; i < n; i++) {
    const placed = cell[i] >= 0;
    xy[2 * i] = placed ? (cell[i] % columns + 0.5 - columns / 2) * unit : AWAY;
    xy[2 * i + 1] = placed ? (rows / 2 - Math.floor(cell[i] / columns) - 0.5) * unit : AWAY;
  }
  return {
    name: "grid", xy, unit, boxes: boxesOf(xy),
    extent: [columns * unit / 2, rows * unit / 2],
    toAddress: (corners) => corners.map(([x, y]) => [x / unit + columns / 2, rows / 2 - y / unit]),
    fromAddress: (corners) => corners.map(([c, r]) => [(c - columns / 2) * unit, (rows / 2 - r) * unit]),
  };
}

/** The box (left, bottom, right, top) around each block of points. Their order follows a curve
 * through the map, so that blocks are small. */
function boxesOf(xy) {
  const n = xy.length / 2;
  const boxes = new Float32Array(4 * Math.ceil(n / BLOCK));
  for (let block = 0; block < boxes.length; block += 4) {
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    const end = Math.min((block / 4 + 1) * BLOCK, n);
    for (let i = block / 4 * BLOCK; i < end; i++) {
      const [x, y] = [xy[2 * i], xy[2 * i + 1]];
      if (x < box[0]) box[0] = x;
      if (y < box[1]) box[1] = y;
      if (x > box[2]) box[2] = x;
      if (y > box[3]) box[3] = y;
    }
    boxes.set(box, block);
  }
  return boxes;
}

/** Ranges [first, end) of points that hold all those inside a box, and few others. */
export function rangesIn({ xy, boxes }, left, bottom, right, top) {
  const n = xy.length / 2;
  const ranges = [];
  for (let block = 0; block < boxes.length; block += 4) {
    if (boxes[block] > right || boxes[block + 1] > top || boxes[block + 2] < left || boxes[block + 3] < bottom) continue;
    const first = block / 4 * BLOCK;
    const end = Math.min(first + BLOCK, n);
    if (ranges.at(-1)?.[1] === first) ranges.at(-1)[1] = end;
    else ranges.push([first, end]);
  }
  return ranges;
}

/** Which pictures are shown at which zoom, so that none covers another.
 *
 * A picture of the level k stays `spacing(k)` away, across or up, from every other one of the
 * levels up to k (a sample by Poisson's discs, refined level by level): coming closer adds
 * pictures and takes none away. Levels are made when they are first needed.
 */
export class Levels {
  constructor(layout, eligible, spacing) {
    this.xy = layout.xy;
    this.spacing = spacing;
    this.of = new Uint8Array(eligible.length).fill(NO_LEVEL);
    this.made = 0;
    this.shown = [];
    this.waiting = [];
    for (let i = 0; i < eligible.length; i++) {
      if (eligible[i]) this.waiting.push(i);
    }
    const size = 2 ** Math.ceil(Math.log2(2 * this.waiting.length + 16));
    this.table = new Int32Array(size); // hash of a square → the picture in it
    this.columns = new Int32Array(eligible.length);
    this.rows = new Int32Array(eligible.length);
  }

  make(last) {
    for (; this.made <= last && this.waiting.length; this.made++) this.#add(this.made);
  }

  #add(level) {
    const apart = this.spacing(level);
    const { xy, columns, rows, table } = this;
    const mask = table.length - 1;
    const slot = (column, row) => Math.imul(column, 73856093) ^ Math.imul(row, 19349663);
    table.fill(-1);
    const place = (i) => {
      columns[i] = Math.floor(xy[2 * i] / apart);
      rows[i] = Math.floor(xy[2 * i + 1] / apart);
    };
    const insert = (i) => {
      let at = slot(columns[i], rows[i]) & mask;
      while (table[at] >= 0) at = (at + 1) & mask;
      table[at] = i;
    };
    const taken = (i, column, row) => {
      for (let at = slot(column, row) & mask; table[at] >= 0; at = (at + 1) & mask) {
        const j = table[at];
        if (columns[j] === column && rows[j] === row) {
          const away = Math.max(Math.abs(xy[2 * i] - xy[2 * j]), Math.abs(xy[2 * i + 1] - xy[2 * j + 1]));
          return away < apart; // a square of this side holds one picture at most
        }
      }
      return false;
    };
    for (const i of this.shown) {
      place(i);
      insert(i);
    }
    this.waiting = this.waiting.filter((i) => {
      place(i);
      for (let column = columns[i] - 1; column <= columns[i] + 1; column++) {
        for (let row = rows[i] - 1; row <= rows[i] + 1; row++) {
          if (taken(i, column, row)) return true;
        }
      }
      insert(i);
      this.shown.push(i);
      this.of[i] = level;
      return false;
    });
  }
}

/** Which points lie in a polygon (1 or 0 for each): the rule of even and odd crossings. */
export function inside(xy, corners) {
  const found = new Uint8Array(xy.length / 2);
  const xs = corners.map((corner) => corner[0]);
  const ys = corners.map((corner) => corner[1]);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [bottom, top] = [Math.min(...ys), Math.max(...ys)];
  for (let i = 0; i < found.length; i++) {
    const [x, y] = [xy[2 * i], xy[2 * i + 1]];
    if (!(x >= left && x <= right && y >= bottom && y <= top)) continue;
    let odd = 0;
    for (let a = 0, b = xs.length - 1; a < xs.length; b = a++) {
      if (ys[a] > y !== ys[b] > y && x < (xs[b] - xs[a]) * (y - ys[a]) / (ys[b] - ys[a]) + xs[a]) odd ^= 1;
    }
    found[i] = odd;
  }
  return found;
}

/** A drawn line with few enough corners for an address (Ramer, Douglas, Peucker). */
export function simplify(corners, tolerance) {
  let kept = corners;
  for (; kept.length > MOST_CORNERS || kept === corners; tolerance *= 1.5) {
    kept = [corners[0], ...farthest(corners, 0, corners.length - 1, tolerance), corners.at(-1)];
  }
  return kept;
}

function farthest(corners, first, last, tolerance) {
  const [[ax, ay], [bx, by]] = [corners[first], corners[last]];
  const length = Math.hypot(bx - ax, by - ay);
  let [most, at] = [tolerance, -1];
  for (let i = first + 1; i < last; i++) {
    const [x, y] = corners[i];
    const away = length
      ? Math.abs((bx - ax) * (ay - y) - (ax - x) * (by - ay)) / length
      : Math.hypot(x - ax, y - ay);
    if (away > most) [most, at] = [away, i];
  }
  if (at < 0) return [];
  return [...farthest(corners, first, at, tolerance), corners[at], ...farthest(corners, at, last, tolerance)];
}
