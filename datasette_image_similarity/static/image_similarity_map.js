// The map's page: what is asked by mouse, touch and keyboard becomes what is drawn and listed.
//
// The address keeps it all: the selection as a filter of the server's (`?_image_region=`), what
// only this script knows behind the "#": color, only, hide, layout, view.

import { Colouring, legendRows, names } from "./image_similarity_map_colour.js";
import { decodePoints, gridLayout, inside, scatterLayout, simplify } from "./image_similarity_map_points.js";
import { Scene } from "./image_similarity_map_scene.js";
import { Camera, listen } from "./image_similarity_map_view.js";

const REGION = "_image_region";
const MANY = 20_000; // points, from which some dots may be left out while the map moves
const still = matchMedia("(prefers-reduced-motion: reduce)");
const root = document.getElementById("ims-map");
if (root) start();

async function start() {
  const canvas = root.querySelector("canvas");
  if (!canvas.getContext("webgl2")) {
    return sayUnusable("This browser has no WebGL 2, with which the map is drawn. The pictures are listed here instead.");
  }
  try {
    const [points, columns] = await Promise.all([fetchPoints(root.dataset.points), fetchJson(root.dataset.columns)]);
    new Page(canvas, points, columns.columns);
    root.dataset.state = "ready";
  } catch (error) {
    sayUnusable(`The map cannot be drawn: ${error.message}. The pictures are listed here instead.`);
    throw error;
  }
}

function sayUnusable(text) {
  root.dataset.state = "unusable";
  document.getElementById("ims-map-message").textContent = text;
}

async function fetchPoints(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  return decodePoints(await response.arrayBuffer());
}

async function fetchJson(url) {
  const response = await fetch(url, { headers: { Accept: "application/json" } });
  const answer = await response.json();
  if (!answer.ok) throw new Error(answer.error);
  return answer;
}

/** The part of an address that decides which points pass: all but selection and page. */
function filtersOf(url) {
  const left = [...url.searchParams].filter(([name]) => ![REGION, "_next", "_size"].includes(name));
  return JSON.stringify(left.sort());
}

/** An address with parameters added. */
function withParameters(url, pairs) {
  const made = new URL(url, location.href);
  for (const [name, value] of pairs) made.searchParams.append(name, value);
  return made.href;
}

/** What pictures.json says of items: asked for together, and kept. */
class Details {
  constructor(url) {
    this.url = url;
    this.known = new Map();
    this.waiting = [];
  }

  get(item) {
    if (!this.known.has(item)) {
      this.known.set(item, new Promise((found, failed) => this.waiting.push({ item, found, failed })));
      if (this.waiting.length === 1) setTimeout(() => this.#ask(), 20);
    }
    return this.known.get(item);
  }

  async #ask() {
    const asked = this.waiting.splice(0, 200);
    if (this.waiting.length) setTimeout(() => this.#ask(), 20);
    try {
      const answer = await fetchJson(withParameters(this.url, asked.map(({ item }) => ["_item", item])));
      const found = new Map(answer.pictures.map((picture) => [picture.id, picture]));
      for (const one of asked) {
        if (found.has(one.item)) one.found(found.get(one.item));
        else one.failed(new Error("This picture is no longer there"));
      }
    } catch (error) {
      for (const one of asked) {
        this.known.delete(one.item);
        one.failed(error);
      }
    }
  }
}

class Page {
  constructor(canvas, points, columns) {
    this.canvas = canvas;
    this.points = points;
    this.part = (name) => root.querySelector(`[data-part=${name}]`);
    this.layouts = { scatter: scatterLayout(points), grid: points.columns ? gridLayout(points) : null };
    this.camera = new Camera(256 * Math.max(1, Math.sqrt(points.n / 4000)));
    this.details = new Details(root.dataset.pictures);
    this.scene = new Scene(canvas, points, this.layouts, this.camera, {
      atlas: (sheet) => root.dataset.atlas.replace("NUMBER", sheet),
      details: (item) => this.details.get(item),
      redraw: () => this.redraw(),
      arrived: () => this.redrawSoon(),
    });
    this.layout = "scatter";
    this.mode = "pan";
    this.region = null; // { layout, corners in map coordinates }
    this.color = null;
    this.colouring = null;
    this.only = new Set();
    this.hidden = new Set();
    this.pointed = -1;
    this.frame = 0;
    this.pace = 1;
    this.offerColumns(columns);
    this.part("grid").hidden = !this.layouts.grid;
    this.listen();
    this.resize();
    this.readAddress();
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  // Drawing

  redraw() {
    this.frame ||= requestAnimationFrame((now) => {
      this.frame = 0;
      this.keepPace(now);
      this.scene.draw();
      this.drawRegion();
      this.placeRing();
      this.placeNames();
      const { x, y, zoom, scale } = this.camera;
      root.dataset.zoom = zoom.toFixed(3);
      root.dataset.view = [x, y, scale].map((one) => one.toFixed(6)).join(" ");
      root.dataset.drawn = this.scene.pictures;
      this.part("out").disabled = zoom <= 1;
      this.part("in").disabled = zoom >= this.camera.mostZoom;
      this.writeViewSoon();
    });
  }

  /** Pictures arrive one by one: draw some at once. */
  redrawSoon() {
    this.arriving ??= setTimeout(() => {
      this.arriving = null;
      this.redraw();
    }, 120);
  }

  resize() {
    const box = this.canvas.getBoundingClientRect();
    if (!box.width || !box.height) return;
    const ratio = Math.min(devicePixelRatio, 2);
    this.canvas.width = Math.round(box.width * ratio);
    this.canvas.height = Math.round(box.height * ratio);
    this.camera.resize(box.width, box.height, this.layouts[this.layout].extent);
    this.scene.relevel();
  }

  /** The map moves for now: see keepPace(). */
  move() {
    this.inMotion = true;
    clearTimeout(this.resting);
    this.resting = setTimeout(() => {
      this.inMotion = false;
      this.redraw();
    }, 150);
    this.redraw();
  }

  /** Where frames take long (no graphics card), draw fewer dots until the map rests. */
  keepPace(now) {
    const took = now - this.drawnAt;
    this.drawnAt = now;
    if (this.inMotion && took < 1000 && this.points.n > MANY) {
      if (took > 50) this.pace = Math.min(this.pace * 2, 16);
      else if (took < 20) this.pace = Math.max(this.pace / 2, 1);
    }
    this.scene.step = this.inMotion ? this.pace : 1;
  }

  /** Call `step` with 0 to 1 over some time; at once where motion is not wanted. */
  animate(milliseconds, step) {
    cancelAnimationFrame(this.moving);
    if (still.matches) {
      step(1);
      return this.redraw();
    }
    const began = performance.now();
    const next = (now) => {
      const part = Math.min(Math.max((now - began) / milliseconds, 0), 1);
      step(part < 0.5 ? 4 * part ** 3 : 1 - (2 - 2 * part) ** 3 / 2);
      this.move();
      if (part < 1) this.moving = requestAnimationFrame(next);
    };
    this.moving = requestAnimationFrame(next);
  }

  zoomTo(factor) {
    const { camera } = this;
    const from = camera.zoom;
    this.animate(180, (part) => camera.zoomBy(from * factor ** part / camera.zoom));
  }

  moveBy(dx, dy) {
    let done = 0;
    this.animate(150, (part) => {
      this.camera.moveBy(dx * (part - done), dy * (part - done));
      done = part;
    });
  }

  reset() {
    const { x, y, zoom } = this.camera;
    this.animate(300, (part) => {
      const left = 1 - part;
      this.camera.set({ x: x * left, y: y * left, zoom: zoom ** left });
    });
  }

  setLayout(name, animated = true) {
    if (!this.layouts[name]) return;
    const { camera, scene } = this;
    this.layout = root.dataset.layout = name;
    for (const other of ["scatter", "grid"]) this.part(other).setAttribute("aria-pressed", other === name);
    const [from, to] = [scene.progress, name === "grid" ? 1 : 0];
    if (from === to) return;
    const { x, y, zoom, base } = camera;
    camera.resize(camera.width, camera.height, this.layouts[name].extent);
    const endBase = camera.base;
    const step = (part) => {
      const left = 1 - part;
      scene.progress = from * left + to * part;
      camera.base = base * left + endBase * part;
      camera.set({ x: x * left, y: y * left, zoom: zoom ** left });
    };
    this.point(-1);
    if (animated) this.animate(900, step);
    else step(1);
    this.writeHash();
  }

  // Colours and the legend

  offerColumns(columns) {
    const select = this.part("color");
    for (const { name, label } of columns) select.add(new Option(label ?? name, name));
    select.addEventListener("change", () => {
      this.only.clear();
      this.hidden.clear();
      this.setColor(select.value || null);
      this.writeHash();
    });
  }

  async setColor(name) {
    this.color = name;
    this.part("color").value = name ?? "";
    root.dataset.color = name ?? "";
    let colouring = null;
    if (name) {
      try {
        const data = await fetchJson(withParameters(root.dataset.column, [["_column", name]]));
        colouring = new Colouring(data, this.layouts.scatter.xy);
      } catch (error) {
        this.say(`${name}: ${error.message}`);
      }
    }
    if (this.color !== name) return; // another has been chosen since
    this.colouring = colouring;
    this.middles = {};
    this.part("names").replaceChildren(...(colouring ? names(colouring) : []));
    this.part("fold").hidden = !colouring;
    this.fold(!colouring || this.camera.width < 600);
    this.refresh();
  }

  /** After colour, legend or selection has changed. */
  refresh() {
    const { scene, points, colouring, only, hidden, region } = this;
    const groups = colouring?.of;
    const isHidden = colouring?.labels.map((label) => hidden.has(label));
    const isOut = colouring?.labels.map((label) => hidden.has(label) || (only.size > 0 && !only.has(label)));
    const selected = region && inside(this.layouts[region.layout].xy, region.corners);
    let [shown, chosen, changed] = [0, 0, false];
    for (let i = 0; i < points.n; i++) {
      scene.off[i] = groups && isHidden[groups[i]] ? 1 : 0;
      const open = points.passes[i] && !(groups && isOut[groups[i]]) ? 1 : 0;
      changed ||= open !== scene.open[i];
      scene.open[i] = open;
      scene.bright[i] = scene.open[i] && (!selected || selected[i]) ? 1 : 0;
      shown += scene.open[i];
      chosen += selected ? selected[i] & points.passes[i] : 0;
    }
    scene.groups = groups;
    scene.colours = colouring?.colours;
    if (colouring) {
      const list = this.part("values");
      const { scrollTop } = list;
      const focused = document.activeElement?.dataset;
      list.replaceChildren(...legendRows(colouring, this));
      list.scrollTop = scrollTop;
      if (focused?.set) {
        const again = [...list.querySelectorAll("button")];
        again.find(({ dataset: one }) => one.set === focused.set && one.label === focused.label)?.focus();
      }
      this.part("everything").hidden = !only.size && !hidden.size;
    }
    root.dataset.shown = shown;
    root.dataset.selected = region ? chosen : "";
    if (changed) scene.relevel();
    scene.recolour();
  }

  legendClicked(event) {
    const chosen = event.target.closest("button[data-set]");
    if (!chosen) return;
    const { set, label } = chosen.dataset;
    if (!this[set].delete(label)) {
      this[set].add(label);
      this[set === "only" ? "hidden" : "only"].delete(label);
    }
    this.refresh();
    this.writeHash();
    this.say(`${Number(root.dataset.shown).toLocaleString("en")} pictures shown`);
  }

  /** Put the legend away, or bring it back. */
  fold(away) {
    this.part("legend").hidden = away;
    this.part("fold").setAttribute("aria-expanded", !away);
  }

  // The selection

  /** Select what lies in a region, or nothing; the list of pictures follows. */
  select(region) {
    const address = new URL(location.href);
    address.searchParams.delete(REGION);
    address.searchParams.delete("_next");
    if (region) address.searchParams.set(REGION, regionText(region, this.layouts, this.camera.scale));
    history.pushState(null, "", address);
    this.readRegion();
    this.refresh();
    this.list();
  }

  readRegion() {
    const text = new URL(location.href).searchParams.get(REGION);
    this.region = text && parseRegion(text, this.layouts);
  }

  selectView() {
    const { width, height } = this.camera;
    this.drawn([[0, 0], [width, 0], [width, height], [0, height]], true);
  }

  drawn(pixels, done) {
    const outline = this.part("outline");
    outline.setAttribute("points", pixels && !done ? pixels.map((one) => one.join()).join(" ") : "");
    if (!pixels || !done || pixels.length < 3) return;
    const corners = pixels.length > 4 ? simplify(pixels, 0.7) : pixels;
    this.setMode("pan");
    this.select({ layout: this.layout, corners: corners.map((one) => this.camera.toMap(...one)) });
  }

  drawRegion() {
    const { region, camera, scene } = this;
    const seen = region && region.layout === this.layout && (scene.progress === 0 || scene.progress === 1);
    const corners = seen ? region.corners.map((one) => camera.toScreen(...one).map((at) => at.toFixed(1)).join()) : [];
    this.part("region").setAttribute("points", corners.join(" "));
  }

  /** The server's list for the address: the same that is there without a script. */
  async list(url = location.href) {
    this.asked?.abort();
    this.asked = new AbortController();
    const there = document.getElementById("ims-map-list");
    there.setAttribute("aria-busy", "true");
    try {
      const response = await fetch(url, { headers: { Accept: "text/html" }, signal: this.asked.signal });
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const list = page.getElementById("ims-map-list");
      if (!list) throw new Error(page.querySelector("section.content p")?.textContent ?? response.status);
      there.replaceWith(document.adoptNode(list));
      const controls = page.querySelector(".ims-controls");
      if (controls) document.querySelector(".ims-controls")?.replaceWith(document.adoptNode(controls));
      this.say(list.querySelector("h2").textContent);
    } catch (error) {
      if (error.name === "AbortError") return;
      there.removeAttribute("aria-busy");
      this.say(`The list cannot be had: ${error.message}`);
    }
  }

  say(text) {
    document.getElementById("ims-map-status").textContent = text.trim();
  }

  // The picture that is pointed at

  /** Show the card of a point; -1 for none. `pinned`: it stays, with links, until it is closed. */
  async point(i, pinned = false) {
    if (i === this.pointed && pinned === this.pinned) return;
    this.pointed = i;
    this.pinned = pinned;
    this.canvas.style.cursor = i >= 0 && this.mode === "pan" ? "pointer" : "";
    this.placeRing();
    const card = this.part("card");
    card.classList.toggle("ims-pinned", pinned);
    if (i < 0) {
      card.hidden = true;
      return;
    }
    let picture;
    try {
      picture = await this.details.get(this.points.id[i]);
    } catch (error) {
      return this.say(error.message);
    }
    if (i !== this.pointed) return;
    const image = this.part("picture");
    if (image.getAttribute("src") !== picture.thumbnail) image.src = picture.thumbnail;
    image.width = picture.width;
    image.height = picture.height;
    image.alt = picture.caption;
    const caption = this.part("caption");
    caption.textContent = picture.caption;
    this.part("row").href = caption.href = picture.url;
    this.part("similar").href = picture.similar_url;
    const value = this.colouring ? this.colouring.labels[this.colouring.of[i]] : "";
    this.part("value").textContent = value ? `${this.part("color").selectedOptions[0].text}: ${value}` : "";
    card.hidden = false;
    root.dataset.pointed = picture.pk;
    this.placeCard();
    if (this.byKeyboard) this.say(`${picture.caption}. Enter opens it.`);
  }

  placeRing() {
    const ring = this.part("ring");
    ring.hidden = this.pointed < 0;
    if (this.pointed < 0) return;
    const [left, top, width, height] = this.scene.boxOf(this.pointed);
    Object.assign(ring.style, {
      left: `${left - width / 2 - 4}px`, top: `${top - height / 2 - 4}px`,
      width: `${width + 8}px`, height: `${height + 8}px`,
    });
    ring.classList.toggle("ims-round", width < 14);
    if (!this.part("card").hidden) this.placeCard();
  }

  /** Each group's name where most of it is, unless a larger group's is there. */
  placeNames() {
    const { colouring, scene, camera, layout, only, hidden } = this;
    if (!colouring) return;
    const resting = scene.progress === 0 || scene.progress === 1;
    this.middles[layout] ??= colouring.middles(this.layouts[layout].xy);
    const boxes = [];
    [...this.part("names").children].forEach((name, at) => {
      const group = colouring.named[at];
      const label = colouring.labels[group];
      const [x, y] = camera.toScreen(...this.middles[layout][group]);
      const [width, height] = [(name.wide ??= name.offsetWidth) / 2 + 2, 12];
      const free = boxes.every((box) => Math.abs(box.x - x) > box.width + width || Math.abs(box.y - y) > 2 * height);
      const shown = resting && free && !hidden.has(label) && (!only.size || only.has(label));
      name.classList.toggle("ims-away", !shown);
      if (!shown) return;
      boxes.push({ x, y, width });
      name.style.transform = `translate(${Math.round(x - width)}px, ${Math.round(y - height)}px)`;
    });
  }

  /** Beside the point, and inside the window; a pinned card has its place in the style sheet. */
  placeCard() {
    const card = this.part("card");
    if (this.pinned) return card.removeAttribute("style");
    const [left, top, width] = this.scene.boxOf(this.pointed);
    const room = this.camera.width - card.offsetWidth - 8;
    let x = left + width / 2 + 14;
    if (x > room) x = left - width / 2 - 14 - card.offsetWidth;
    const y = Math.min(Math.max(top - card.offsetHeight / 2, 8), this.camera.height - card.offsetHeight - 8);
    card.style.transform = `translate(${Math.max(8, Math.min(x, room))}px, ${Math.max(8, y)}px)`;
  }

  async open(i, elsewhere) {
    const { url } = await this.details.get(this.points.id[i]);
    if (elsewhere) window.open(url, "_blank", "noopener");
    else location.href = url;
  }

  // What is done by mouse, touch and keyboard

  listen() {
    this.gestures = listen(this.canvas, {
      mode: () => this.mode,
      pan: (dx, dy) => {
        cancelAnimationFrame(this.moving);
        this.camera.moveBy(dx, dy);
        this.move();
      },
      zoom: (factor, left, top) => {
        const before = this.camera.zoom;
        cancelAnimationFrame(this.moving);
        this.camera.zoomBy(factor, left, top);
        this.move();
        return this.camera.zoom !== before || before > 1;
      },
      drawn: (pixels, done) => this.drawn(pixels, done),
      click: (left, top, event) => {
        const touched = event.pointerType === "touch";
        const i = this.scene.at(left, top, touched ? 22 : 8);
        if (i < 0 || touched) return this.point(i, touched);
        this.open(i, event.ctrlKey || event.metaKey || event.button === 1);
      },
      hover: (left, top) => {
        this.byKeyboard = false;
        if (this.pinned) return;
        cancelAnimationFrame(this.hovering);
        this.hovering = requestAnimationFrame(() => {
          this.point(left === undefined || this.mode !== "pan" ? -1 : this.scene.at(left, top, 8));
        });
      },
    });
    const click = (name, act) => this.part(name).addEventListener("click", act);
    click("in", () => this.zoomTo(2));
    click("out", () => this.zoomTo(0.5));
    click("reset", () => this.reset());
    click("scatter", () => this.setLayout("scatter"));
    click("grid", () => this.setLayout("grid"));
    for (const mode of ["pan", "rectangle", "lasso"]) click(mode, () => this.setMode(mode));
    click("view", () => this.selectView());
    click("close", () => this.point(-1));
    click("fold", () => this.fold(!this.part("legend").hidden));
    click("values", (event) => this.legendClicked(event));
    click("everything", () => {
      this.only.clear();
      this.hidden.clear();
      this.refresh();
      this.writeHash();
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => !this.pinned && this.point(-1));
    window.addEventListener("popstate", () => {
      this.readAddress();
      this.list();
    });
    document.addEventListener("click", (event) => this.followed(event));
  }

  /** Links of the list and of chips: without leaving the page where only the list changes. */
  followed(event) {
    const link = event.target.closest("a[href]");
    if (!link || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const to = new URL(link.href);
    if (to.pathname !== location.pathname || !link.closest("#ims-map-list, .ims-controls")) return;
    to.hash = location.hash;
    if (filtersOf(to) !== filtersOf(new URL(location.href))) {
      link.href = to; // other points, but the same view
      return;
    }
    event.preventDefault();
    history.pushState(null, "", to);
    this.readRegion();
    this.refresh();
    this.list().then(() => document.getElementById("ims-map-list").scrollTo(0, 0));
  }

  setMode(mode) {
    this.gestures.cancel();
    this.mode = root.dataset.mode = mode;
    for (const one of ["pan", "rectangle", "lasso"]) this.part(one).setAttribute("aria-pressed", one === mode);
    if (mode !== "pan") this.point(-1);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? 200 : 60;
    const acts = {
      ArrowLeft: () => this.moveBy(step, 0), ArrowRight: () => this.moveBy(-step, 0),
      ArrowUp: () => this.moveBy(0, step), ArrowDown: () => this.moveBy(0, -step),
      "+": () => this.zoomTo(2), "=": () => this.zoomTo(2), "-": () => this.zoomTo(0.5),
      0: () => this.reset(),
      g: () => this.setLayout(this.layout === "grid" ? "scatter" : "grid"),
      s: () => this.selectView(),
      Enter: () => this.pointed >= 0 && this.open(this.pointed, false),
      Escape: () => (this.mode === "pan" ? this.region && this.select(null) : this.setMode("pan")),
    };
    const act = acts[event.key];
    if (!act) return;
    event.preventDefault();
    act();
    if (/^Arrow|^[+=0-]$/.test(event.key)) this.pointAtMiddleSoon();
  }

  /** By keyboard, the picture in the middle is the one that is pointed at. */
  pointAtMiddleSoon() {
    this.byKeyboard = true;
    clearTimeout(this.settled);
    this.settled = setTimeout(() => {
      const { width, height } = this.camera;
      if (this.byKeyboard) this.point(this.scene.at(width / 2, height / 2, 60));
    }, still.matches ? 0 : 200);
  }

  // The address

  readAddress() {
    const said = new URLSearchParams(location.hash.slice(1));
    this.setLayout(this.layouts[said.get("layout")] ? said.get("layout") : "scatter", false);
    const view = (said.get("view") ?? "").split(",").map(Number);
    const [x, y, zoom] = view.length === 3 && view.every(Number.isFinite) ? view : [0, 0, 1];
    this.camera.set({ x, y, zoom: Math.min(Math.max(zoom, 1), this.camera.mostZoom) });
    this.only = new Set(said.getAll("only"));
    this.hidden = new Set(said.getAll("hide"));
    this.readRegion();
    const offered = [...this.part("color").options].some((one) => one.value === said.get("color"));
    const color = offered ? said.get("color") || null : null;
    if (color !== this.color || (color && !this.colouring)) this.setColor(color);
    else this.refresh();
    if (color !== null && !this.colouring) this.refresh();
  }

  writeHash() {
    const said = new URLSearchParams();
    const { x, y, zoom } = this.camera;
    if (this.color) said.set("color", this.color);
    for (const label of this.only) said.append("only", label);
    for (const label of this.hidden) said.append("hide", label);
    if (this.layout !== "scatter") said.set("layout", this.layout);
    if (zoom > 1.001) said.set("view", [x.toFixed(5), y.toFixed(5), zoom.toFixed(3)].join());
    const hash = said.size ? `#${said}` : location.pathname + location.search;
    history.replaceState(null, "", hash);
  }

  writeViewSoon() {
    clearTimeout(this.writing);
    this.writing = setTimeout(() => this.writeHash(), 250);
  }
}

/** A region as its filter's value: "x1,y1,x2,y2,…", with "grid:" before it on the grid. */
function regionText({ layout, corners }, layouts, scale) {
  const there = layouts[layout];
  const digits = Math.ceil(Math.log10(layout === "grid" ? scale * there.unit : scale)) + 1;
  const numbers = there.toAddress(corners).flat().map((one) => Number(one.toFixed(Math.max(digits, 2))));
  return (layout === "grid" ? "grid:" : "") + numbers.join();
}

function parseRegion(text, layouts) {
  const layout = text.startsWith("grid:") ? "grid" : "scatter";
  const numbers = text.replace(/^grid:/, "").split(",").map(Number);
  if (!layouts[layout] || numbers.length < 6 || numbers.length % 2 || !numbers.every(Number.isFinite)) return null;
  const corners = [];
  for (let at = 0; at < numbers.length; at += 2) corners.push([numbers[at], numbers[at + 1]]);
  return { layout, corners: layouts[layout].fromAddress(corners) };
}
