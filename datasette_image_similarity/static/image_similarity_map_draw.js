// Draws a map with WebGL 2: a dot for every point, and pictures over them.
//
// Why no library: regl (and regl-scatterplot, which is built on it) makes its code with
// Function() while the page runs, which a Content-Security-Policy forbids that allows scripts
// of this server only; regl-scatterplot has no touch, keeps two values for each point and
// draws no pictures. What is left for a library to do here is below, in two short programs.

const DOTS = {
  vertex: `#version 300 es
    in vec2 start; in vec2 end; in vec4 colour;
    uniform float progress; uniform vec2 centre; uniform vec2 scale; uniform float size;
    out vec4 fill;
    void main() {
      vec2 place = mix(start, end, progress);
      gl_Position = colour.a == 0.0 ? vec4(2, 2, 2, 1) : vec4((place - centre) * scale, 0, 1);
      gl_PointSize = size;
      fill = vec4(colour.rgb * colour.a, colour.a);
    }`,
  fragment: `#version 300 es
    precision highp float;
    in vec4 fill;
    uniform float size; uniform bool square;
    out vec4 pixel;
    void main() {
      float away = length(gl_PointCoord - 0.5) * size;
      pixel = square ? fill : fill * clamp(size * 0.5 - away + 0.25, 0.0, 1.0);
    }`,
};

const PICTURES = {
  vertex: `#version 300 es
    in vec2 corner; in vec4 box; in vec4 part; in vec4 frame; in float alpha;
    uniform vec2 window; uniform float border;
    out vec2 away; out vec2 inner; out vec4 edge; flat out vec4 tile; out float shown;
    void main() {
      inner = box.zw;
      away = corner * (inner + border);
      vec2 place = (box.xy + away) / window * 2.0 - 1.0;
      gl_Position = vec4(place.x, -place.y, 0, 1);
      tile = part; edge = frame; shown = alpha;
    }`,
  fragment: `#version 300 es
    precision highp float;
    in vec2 away; in vec2 inner; in vec4 edge; flat in vec4 tile; in float shown;
    uniform sampler2D sheet;
    out vec4 pixel;
    void main() {
      vec2 at = away / inner * 0.5 + 0.5;
      vec4 picture = texture(sheet, tile.xy + clamp(at, 0.0, 1.0) * tile.zw, -0.5);
      bool over = any(greaterThan(abs(away), inner));
      pixel = (over ? vec4(edge.rgb * edge.a, edge.a) : vec4(picture.rgb, 1)) * shown;
    }`,
};

const FLOATS = 10; // of a picture: box (4), part of its texture (4), frame (4 bytes), alpha

/** WebGL 2 for a canvas, or null. What is asked for first is what a canvas has ever after. */
export function webgl(canvas) {
  return canvas.getContext("webgl2", { alpha: false, antialias: false });
}

/** Throws an Error for a WebGL 2 that these programs do not run on. */
export class Renderer {
  constructor(canvas) {
    const gl = webgl(canvas);
    this.gl = gl;
    this.ground = getComputedStyle(canvas).backgroundColor.match(/\d+/g).slice(0, 3).map((part) => part / 255);
    this.dots = program(gl, DOTS);
    this.pictures = program(gl, PICTURES);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.largestDot = gl.getParameter(gl.ALIASED_POINT_SIZE_RANGE)[1];
    this.buffers = { start: gl.createBuffer(), end: gl.createBuffer(), colour: gl.createBuffer() };
    this.pointArrays = gl.createVertexArray();
    this.instances = gl.createBuffer();
    this.pictureArrays = gl.createVertexArray();
    gl.bindVertexArray(this.pictureArrays);
    const corners = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, corners);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW);
    attribute(gl, this.pictures, "corner", corners, 2);
    const stride = FLOATS * 4;
    attribute(gl, this.pictures, "box", this.instances, 4, gl.FLOAT, { stride, at: 0, divisor: 1 });
    attribute(gl, this.pictures, "part", this.instances, 4, gl.FLOAT, { stride, at: 16, divisor: 1 });
    attribute(gl, this.pictures, "frame", this.instances, 4, gl.UNSIGNED_BYTE, { stride, at: 32, divisor: 1 });
    attribute(gl, this.pictures, "alpha", this.instances, 1, gl.FLOAT, { stride, at: 36, divisor: 1 });
    gl.bindVertexArray(null);
  }

  /** `name` is start, end (two floats a point) or colour (four bytes a point). */
  upload(name, array) {
    const { gl } = this;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
    gl.bufferData(gl.ARRAY_BUFFER, array, gl.DYNAMIC_DRAW);
  }

  clear() {
    const { gl } = this;
    gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
    gl.clearColor(...this.ground, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
  }

  /** Dots for ranges [first, end) of points, or for every `step`-th point of them.
   *
   * `size` in pixels of the screen's own. */
  drawDots(ranges, step, { progress, centre, scale, size, square }) {
    const { gl, dots } = this;
    gl.useProgram(dots.program);
    gl.uniform1f(dots.at("progress"), progress);
    gl.uniform2f(dots.at("centre"), ...centre);
    gl.uniform2f(dots.at("scale"), ...scale);
    gl.uniform1f(dots.at("size"), Math.min(size, this.largestDot));
    gl.uniform1i(dots.at("square"), square);
    gl.bindVertexArray(this.pointArrays);
    attribute(gl, dots, "start", this.buffers.start, 2, gl.FLOAT, { stride: 8 * step });
    attribute(gl, dots, "end", this.buffers.end, 2, gl.FLOAT, { stride: 8 * step });
    attribute(gl, dots, "colour", this.buffers.colour, 4, gl.UNSIGNED_BYTE, { stride: 4 * step });
    for (const [first, end] of ranges) {
      const from = Math.ceil(first / step);
      gl.drawArrays(gl.POINTS, from, Math.ceil(end / step) - from);
    }
  }

  /** Pictures out of one texture. Lengths in CSS pixels, in a window of this width and height. */
  drawPictures(batch, texture, width, height, border) {
    const { gl, pictures } = this;
    gl.useProgram(pictures.program);
    gl.uniform2f(pictures.at("window"), width, height);
    gl.uniform1f(pictures.at("border"), border);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.instances);
    gl.bufferData(gl.ARRAY_BUFFER, batch.used, gl.STREAM_DRAW);
    gl.bindVertexArray(this.pictureArrays);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, batch.length);
  }

  texture(bitmap) {
    const { gl } = this;
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    return texture;
  }

  forget(texture) {
    this.gl.deleteTexture(texture);
  }
}

/** Pictures to be drawn out of one texture, gathered one by one. */
export class Batch {
  constructor() {
    this.length = 0;
    this.#room(256);
  }

  #room(pictures) {
    const old = this.floats;
    this.floats = new Float32Array(pictures * FLOATS);
    this.words = new Uint32Array(this.floats.buffer);
    if (old) this.floats.set(old);
  }

  /** Centre and half sides in pixels; the part of the texture (left, top, width, height);
   * the frame's colour as four bytes in one number. */
  add(x, y, halfWidth, halfHeight, part, frame, alpha) {
    const at = this.length * FLOATS;
    if (at === this.floats.length) this.#room(this.length * 2);
    const { floats } = this;
    floats[at] = x;
    floats[at + 1] = y;
    floats[at + 2] = halfWidth;
    floats[at + 3] = halfHeight;
    floats.set(part, at + 4);
    this.words[at + 8] = frame;
    floats[at + 9] = alpha;
    this.length++;
  }

  get used() {
    return this.floats.subarray(0, this.length * FLOATS);
  }
}

const WAITS = [1000, 60_000]; // milliseconds before a failed fetch is tried again: first, longest
const GONE = [403, 404, 410]; // answers that another try would not change

/** Textures that are fetched when they are first wanted; the longest unused ones go.
 *
 * One that cannot be fetched is tried again for as long as it is wanted, ever less often. */
export class Textures {
  constructor(renderer, most, atOnce, arrived) {
    Object.assign(this, { renderer, most, atOnce, arrived });
    this.held = new Map(); // key → texture, the last used at the end
    this.failed = new Map(); // key → how long to wait, and until when
    this.coming = new Set();
  }

  /** The texture, or null while it is not there. `address` may be a promise, asked once. */
  get(key, address) {
    const texture = this.held.get(key);
    if (texture) {
      this.held.delete(key);
      this.held.set(key, texture);
      return texture;
    }
    const waits = performance.now() < (this.failed.get(key)?.until ?? 0);
    if (!this.coming.has(key) && !waits && this.coming.size < this.atOnce) this.#fetch(key, address());
    return null;
  }

  async #fetch(key, address) {
    this.coming.add(key);
    try {
      const response = await fetch(await address);
      if (!response.ok) throw Object.assign(new Error(response.status), { gone: GONE.includes(response.status) });
      const bitmap = await createImageBitmap(await response.blob());
      while (this.held.size >= this.most) {
        const [oldest, texture] = this.held.entries().next().value;
        this.renderer.forget(texture);
        this.held.delete(oldest);
      }
      this.held.set(key, this.renderer.texture(bitmap));
      bitmap.close();
      this.failed.delete(key);
    } catch (error) {
      this.#putOff(key, error.gone); // until then its pictures are dots
    }
    this.coming.delete(key);
    this.arrived();
  }

  #putOff(key, gone) {
    const [first, longest] = WAITS;
    const before = this.failed.get(key)?.wait;
    const wait = before ? Math.min(2 * before, longest) : first;
    this.failed.set(key, { wait, until: gone ? Infinity : performance.now() + wait });
    if (!gone) setTimeout(this.arrived, wait);
  }
}

function program(gl, { vertex, fragment }) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS) && !gl.isContextLost()) {
    const said = gl.getAttachedShaders(made).map((shader) => gl.getShaderInfoLog(shader)).join(" ").trim();
    throw new Error(`WebGL 2 cannot be used here: ${said || gl.getProgramInfoLog(made)}`);
  }
  const places = {};
  const at = (name) => (places[name] ??= gl.getUniformLocation(made, name));
  return { program: made, at };
}

function attribute(gl, { program }, name, buffer, size, type = gl.FLOAT, { stride = 0, at = 0, divisor = 0 } = {}) {
  const index = gl.getAttribLocation(program, name);
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.enableVertexAttribArray(index);
  gl.vertexAttribPointer(index, size, type, type === gl.UNSIGNED_BYTE, stride, at);
  gl.vertexAttribDivisor(index, divisor);
}
