// Which part of a map is seen, and the gestures that change it: mouse, touch, wheel.

const MARGIN = 0.94; // of the window's height, at zoom 1
const TOOLS = 66; // pixels at each side that wide windows keep for the tools
const CLICK = { mouse: 4, pen: 8, touch: 10 }; // pixels a pointer may move and still click

/** A place in map coordinates at the window's middle, and how much it is enlarged. */
export class Camera {
  constructor(mostZoom) {
    Object.assign(this, { x: 0, y: 0, zoom: 1, width: 1, height: 1, base: 1, mostZoom });
    this.covered = 0; // pixels at the bottom that something lies over
  }

  /** The window's size in CSS pixels, and what has to fit into it at zoom 1. */
  resize(width, height, [halfWidth, halfHeight]) {
    Object.assign(this, { width, height });
    const inner = width > 600 ? width - 2 * TOOLS : width * MARGIN;
    this.base = Math.min(inner / halfWidth, height * MARGIN / halfHeight) / 2;
  }

  /** CSS pixels to one unit of the map. */
  get scale() {
    return this.base * this.zoom;
  }

  toScreen(x, y) {
    return [this.width / 2 + (x - this.x) * this.scale, this.height / 2 - (y - this.y) * this.scale];
  }

  toMap(left, top) {
    return [this.x + (left - this.width / 2) / this.scale, this.y - (top - this.height / 2) / this.scale];
  }

  moveBy(dx, dy) {
    this.x -= dx / this.scale;
    this.y += dy / this.scale;
    this.#stay();
  }

  /** Zoom by a factor; what is at this place of the window stays there. */
  zoomBy(factor, left = this.width / 2, top = this.height / 2) {
    const [x, y] = this.toMap(left, top);
    this.zoom = Math.min(Math.max(this.zoom * factor, 1), this.mostZoom);
    const [nowX, nowY] = this.toMap(left, top);
    this.x += x - nowX;
    this.y += y - nowY;
    this.#stay();
  }

  set({ x, y, zoom }) {
    Object.assign(this, { x, y, zoom });
    this.#stay();
  }

  #stay() {
    // At zoom 1 the whole map is in the middle; closer, some of it always stays in sight.
    const free = Math.min(1, (this.zoom - 1) * 2);
    this.x = Math.min(Math.max(this.x, -free), free);
    this.y = Math.min(Math.max(this.y, -free - this.covered / this.scale), free);
  }
}

/** Turn what a pointer does on a canvas into calls.
 *
 * `on` has: pan(dx, dy), zoom(factor, left, top) → whether anything changed, drawn(corners, done)
 * with corners in pixels or null when a drawing is given up, click(left, top, event),
 * hover(left, top) or hover() when the pointer has left; and `mode()`: pan, rectangle or lasso.
 */
export function listen(canvas, on) {
  const pointers = new Map(); // id → [left, top]
  let start = null; // [left, top] of a pointer that may still click
  let drawing = null; // { shape, corners }
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, place(event));
    if (pointers.size > 1) {
      if (drawing) on.drawn(null);
      start = drawing = null;
      return;
    }
    start = place(event);
    const shape = event.shiftKey && on.mode() === "pan" ? "rectangle" : on.mode();
    drawing = shape === "pan" ? null : { shape, corners: [start] };
  });

  canvas.addEventListener("pointermove", (event) => {
    const here = place(event);
    const before = pointers.get(event.pointerId);
    if (!before) {
      if (event.pointerType !== "touch") on.hover(...here);
      return;
    }
    if (pointers.size === 2) return pinch(event.pointerId, here);
    if (start && Math.hypot(here[0] - start[0], here[1] - start[1]) <= CLICK[event.pointerType]) return;
    start = null;
    pointers.set(event.pointerId, here);
    if (drawing) on.drawn(drawTo(here), false);
    else on.pan(here[0] - before[0], here[1] - before[1]);
  });

  for (const kind of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(kind, (event) => {
      if (!pointers.delete(event.pointerId)) return;
      const clicked = start && kind === "pointerup";
      if (drawing && !clicked) on.drawn(kind === "pointerup" ? drawTo(place(event)) : null, true);
      else if (clicked) on.click(...start, event);
      start = drawing = null;
    });
  }

  canvas.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch") on.hover();
  });

  canvas.addEventListener("auxclick", (event) => {
    if (event.button === 1) on.click(...place(event), event);
  });

  canvas.addEventListener("wheel", (event) => {
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    const speed = event.ctrlKey ? 0.01 : 0.0016; // ctrl: two fingers on a track pad
    const delta = Math.min(Math.max(event.deltaY * lines, -300), 300);
    // All of the map is in sight already: the page scrolls on.
    if (on.zoom(Math.exp(-delta * speed), ...place(event)) || event.ctrlKey) event.preventDefault();
  }, { passive: false });

  function pinch(id, here) {
    const [other] = [...pointers].filter(([one]) => one !== id).map(([, at]) => at);
    const before = pointers.get(id);
    const apart = (one) => Math.max(Math.hypot(one[0] - other[0], one[1] - other[1]), 1);
    on.pan((here[0] - before[0]) / 2, (here[1] - before[1]) / 2);
    on.zoom(apart(here) / apart(before), (here[0] + other[0]) / 2, (here[1] + other[1]) / 2);
    pointers.set(id, here);
  }

  function drawTo(here) {
    const { shape, corners } = drawing;
    if (shape === "lasso") {
      const [left, top] = corners.at(-1);
      if (Math.hypot(here[0] - left, here[1] - top) >= 3) corners.push(here);
      return corners;
    }
    const [[left, top]] = corners;
    return [[left, top], [here[0], top], here, [left, here[1]]];
  }

  return {
    /** Give up what is being drawn. */
    cancel() {
      if (drawing) on.drawn(null);
      drawing = start = null;
    },
  };
}
