// What is drawn at a moment: dots, and as many pictures as have room.

import { Batch, Renderer, Textures } from "./image_similarity_map_draw.js";
import { Levels, NO_LEVEL, rangesIn } from "./image_similarity_map_points.js";
import { packed } from "./image_similarity_map_colour.js";

const STEP = Math.SQRT2; // zoom from one level of pictures to the next
const FADE = 0.04; // a picture has appeared after so much more of its zoom
const ROOM = 4; // pixels between pictures
const LEAST_CELL = 5; // pixels: smaller cells of the grid are plain squares
const THUMBNAILS = 240; // that are drawn at once, at most
const SHEET_BYTES = 600e6; // of textures that sheets may take

const DOT = "#3f4a5e";
const FAINT = "#9aa1ab";

export class Scene {
  /** `details(item)` promises what pictures.json says of an item. */
  constructor(canvas, points, layouts, camera, { atlas, details, redraw, arrived }) {
    Object.assign(this, { canvas, points, layouts, camera, atlas, details, redraw, arrived });
    const { n } = points;
    this.open = points.passes.slice(); // passes the filters, and the legend shows it
    this.bright = this.open.slice(); // open, and selected if there is a selection
    this.off = new Uint8Array(n); // hidden by the legend
    this.colours = null; // of the groups, and the group of each point
    this.groups = null;
    this.progress = 0; // from the scatter (0) to the grid (1)
    this.pictures = 0; // drawn in the last frame, small or large
    this.step = 1; // every so many-th dot is drawn
    this.bytes = new Uint32Array(n); // colour of each dot
    this.perRow = Math.floor(points.sheetSide / points.tileSide); // tiles of a sheet
    this.perSheet = this.perRow ** 2;
    this.start();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.start();
      this.recolour();
    });
  }

  /** Everything that lives on the GPU; again after it was lost. */
  start() {
    const { points } = this;
    this.renderer = new Renderer(this.canvas);
    const sheetBytes = points.sheetSide ** 2 * 4 * 4 / 3;
    this.mostSheets = Math.max(4, Math.floor(SHEET_BYTES / sheetBytes));
    this.sheets = new Textures(this.renderer, this.mostSheets, 3, this.arrived);
    this.thumbnails = new Textures(this.renderer, THUMBNAILS + 60, 6, this.arrived);
    this.renderer.upload("start", this.layouts.scatter.xy);
    this.renderer.upload("end", (this.layouts.grid ?? this.layouts.scatter).xy);
  }

  get layout() {
    return this.progress < 0.5 ? this.layouts.scatter : this.layouts.grid;
  }

  /** After open, bright, off, colours or groups have changed. */
  recolour() {
    const { n } = this.points;
    const [plain, faint] = [packed(DOT, 150), packed(FAINT, 56)];
    const shades = this.colours?.map((colour) => packed(colour, 225));
    for (let i = 0; i < n; i++) {
      if (this.off[i]) this.bytes[i] = 0;
      else if (!this.bright[i]) this.bytes[i] = faint;
      else this.bytes[i] = shades ? shades[this.groups[i]] : plain;
    }
    this.frames = this.colours?.map((colour) => packed(colour, 255));
    this.renderer.upload("colour", new Uint8Array(this.bytes.buffer));
    this.redraw();
  }

  /** After open or the window has changed: which pictures have room at which zoom. */
  relevel() {
    const { camera } = this;
    const spacing = (level) => (this.side(STEP ** level) + ROOM) / (camera.base * STEP ** level);
    this.levels = new Levels(this.layouts.scatter, this.open, spacing);
    this.levels.make(this.level());
    this.prepare(this.levels);
    this.redraw();
  }

  /** Make the levels of pictures that coming closer will need, one at a time. */
  prepare(levels) {
    setTimeout(() => {
      const wanted = levels === this.levels && levels.waiting.length > 0;
      if (!wanted || STEP ** levels.made > this.camera.mostZoom) return;
      levels.make(levels.made);
      if (levels.made - 1 <= this.level()) this.redraw();
      this.prepare(levels);
    }, 20);
  }

  /** The side of a picture of the scatter, in CSS pixels. */
  side(zoom) {
    const { width, height } = this.camera;
    const smaller = Math.min(width, height);
    const first = Math.min(Math.max(smaller * 0.066, 30), 48);
    return Math.min(first * zoom ** 0.3, Math.max(smaller * 0.4, 120), 280);
  }

  draw() {
    const { camera, renderer, canvas } = this;
    const ratio = canvas.width / camera.width;
    renderer.clear();
    renderer.drawDots(this.ranges(this.dotSize()), this.step, {
      progress: this.progress,
      centre: [camera.x, camera.y],
      scale: [2 * camera.scale / camera.width, 2 * camera.scale / camera.height],
      size: this.dotSize() * ratio,
      square: this.progress === 1,
    });
    this.drawPictures(ratio);
  }

  /** Ranges of points that hold all in the window, and so many pixels around it. */
  ranges(around) {
    const { camera, points, progress } = this;
    if (progress > 0 && progress < 1) return [[0, points.n]];
    const [left, top] = camera.toMap(-around, -around);
    const [right, bottom] = camera.toMap(camera.width + around, camera.height + around);
    return rangesIn(this.layout, left, bottom, right, top);
  }

  dotSize() {
    const { camera, layouts, points, progress } = this;
    const [width, height] = layouts.scatter.extent;
    const room = Math.sqrt(4 * width * height / Math.max(points.n, 1)) * camera.base;
    const scattered = Math.min(Math.max(room * 0.55 * camera.zoom ** 0.4, 2.4), 12);
    const cell = this.cell();
    const gridded = cell * (cell < LEAST_CELL ? 0.88 : 0.3); // behind its picture
    return scattered * (1 - progress) + Math.max(gridded, 1) * progress;
  }

  drawPictures(ratio) {
    const { camera, renderer, points } = this;
    const batches = this.gather();
    const ordered = [...batches].sort(([, a], [, b]) => b.length - a.length);
    const border = this.border();
    const close = this.closest(ratio);
    this.pictures = 0;
    const draw = (batch, texture) => renderer.drawPictures(batch, texture, camera.width, camera.height, border);
    const sheets = new Set(); // those drawn
    // A sheet of thousands is not worth its megabytes for a few pictures that come as thumbnails.
    const few = close.length ? this.perSheet / 64 : 0;
    for (const [sheet, batch] of ordered.slice(0, this.mostSheets)) {
      if (batch.length < few && !this.sheets.held.has(sheet)) continue;
      const texture = this.sheets.get(sheet, () => this.atlas(sheet));
      if (!texture) continue;
      draw(batch, texture);
      sheets.add(sheet);
      this.pictures += batch.length;
    }
    for (const { i, box, frame, alpha } of close) {
      const key = points.id[i];
      const texture = this.thumbnails.get(key, async () => (await this.details(key)).thumbnail);
      if (!texture) continue;
      const one = new Batch();
      one.add(...box, [0, 0, 1, 1], frame, alpha);
      draw(one, texture);
      if (!sheets.has(Math.floor(points.slot[i] / this.perSheet))) this.pictures++;
    }
  }

  /** The width of frames: of the groups' colours, or white to part pictures from dots. */
  border() {
    const side = this.progress < 0.5 ? this.side(this.camera.zoom) : this.cell();
    if (!this.frames) return this.progress < 1 ? 1 : 0;
    return side < 20 ? 1 : side < 60 ? 2 : 3;
  }

  /** The side of a cell of the grid, in CSS pixels. */
  cell() {
    return this.layouts.grid ? this.layouts.grid.unit * this.camera.scale : 0;
  }

  /** The last level of pictures that this zoom shows. */
  level() {
    return Math.floor(Math.log(this.camera.zoom) / Math.log(STEP) + 1e-6);
  }

  /** The pictures in the window, by sheet, and one by one in `large` while nothing moves. */
  gather() {
    const { camera, points, progress, layouts } = this;
    const from = layouts.scatter.xy;
    const to = (layouts.grid ?? layouts.scatter).xy;
    const level = this.level();
    const everything = camera.zoom >= camera.mostZoom;
    const scattered = this.side(camera.zoom);
    const cell = this.cell();
    const gridded = cell >= LEAST_CELL ? cell * (cell > 30 ? 0.95 : 1) - 2 * this.border() : 0;
    const { perRow, perSheet } = this;
    const tile = points.tileSide / points.sheetSide;
    const paper = packed("#ffffff", 255);
    const batches = new Map();
    this.large = [];
    const add = (i) => {
      if (this.off[i]) return;
      const at = this.levels.of[i];
      const placed = this.open[i] && (at <= level || everything);
      const side = (placed ? scattered : 0) * (1 - progress) + gridded * progress;
      if (side < 4) return;
      const [left, top] = camera.toScreen(
        from[2 * i] + (to[2 * i] - from[2 * i]) * progress,
        from[2 * i + 1] + (to[2 * i + 1] - from[2 * i + 1]) * progress,
      );
      if (left < -side || top < -side || left > camera.width + side || top > camera.height + side) return;
      const appeared = placed && at > 0 && at !== NO_LEVEL ? (camera.zoom / STEP ** at - 1) / FADE : 1;
      let alpha = this.bright[i] ? 1 : this.open[i] ? 0.3 : 0.14;
      if (progress < 1) alpha *= Math.min(Math.max(appeared, progress), 1);
      const aspect = points.aspect[i];
      const box = [left, top, side / 2 * Math.min(1, aspect), side / 2 * Math.min(1, 1 / aspect)];
      const frame = this.frames && this.bright[i] ? this.frames[this.groups[i]] : paper;
      const sheet = Math.floor(points.slot[i] / perSheet);
      const inSheet = points.slot[i] % perSheet;
      let batch = batches.get(sheet);
      if (!batch) batches.set(sheet, (batch = new Batch()));
      const part = tilePart(inSheet % perRow, Math.floor(inSheet / perRow), tile, aspect);
      batch.add(...box, part, frame, alpha);
      if (progress === 0 || progress === 1) this.large.push({ i, box, frame, alpha });
    };
    for (const [first, end] of this.ranges(Math.max(scattered, gridded))) for (let i = first; i < end; i++) add(i);
    return batches;
  }

  /** If pictures are larger than their tiles, those to draw finer: the nearest to the middle. */
  closest(ratio) {
    const { camera, points, large } = this;
    const side = large.length ? 2 * Math.max(large[0].box[2], large[0].box[3]) : 0;
    if (side * ratio < points.tileSide * 1.1) return [];
    const away = ({ box }) => (box[0] - camera.width / 2) ** 2 + (box[1] - camera.height / 2) ** 2;
    return large.sort((a, b) => away(a) - away(b)).slice(0, THUMBNAILS);
  }

  /** The point at a place of the window: the picture that covers it, or the nearest dot. */
  at(left, top, reach) {
    const { camera, points, layout, progress } = this;
    if (progress > 0 && progress < 1) return -1;
    const cell = layout.name === "grid" ? this.cell() : 0;
    const side = cell || this.side(camera.zoom);
    const level = this.level();
    const [x, y] = camera.toMap(left, top);
    const around = Math.max(side, reach) / camera.scale;
    let [best, least] = [-1, reach * reach];
    for (const [first, end] of rangesIn(layout, x - around, y - around, x + around, y + around)) {
      for (let i = first; i < end; i++) {
        if (!this.open[i]) continue;
        const dx = Math.abs(layout.xy[2 * i] - x) * camera.scale;
        const dy = Math.abs(layout.xy[2 * i + 1] - y) * camera.scale;
        const aspect = cell ? 1 : points.aspect[i];
        const covers = (cell || this.levels.of[i] <= level || camera.zoom >= camera.mostZoom)
          && dx <= side / 2 * Math.min(1, aspect) && dy <= side / 2 * Math.min(1, 1 / aspect);
        const distance = covers ? -1 / (1 + dx + dy) : dx * dx + dy * dy;
        if (distance < least) [best, least] = [i, distance];
      }
    }
    return best;
  }

  /** The place and size of a point in the window: [left, top, width, height]. */
  boxOf(i) {
    const { camera, layout, points } = this;
    const [left, top] = camera.toScreen(layout.xy[2 * i], layout.xy[2 * i + 1]);
    let side = this.dotSize();
    if (layout.name === "grid") side = this.cell();
    else if (this.levels.of[i] <= this.level()) side = this.side(camera.zoom);
    const aspect = side > 14 ? points.aspect[i] : 1;
    return [left, top, side * Math.min(1, aspect), side * Math.min(1, 1 / aspect)];
  }
}

/** The part of its sheet that a picture fills: a tile holds it whole, in its middle. */
function tilePart(column, row, tile, aspect) {
  const width = tile * Math.min(1, aspect);
  const height = tile * Math.min(1, 1 / aspect);
  return [column * tile + (tile - width) / 2, row * tile + (tile - height) / 2, width, height];
}
