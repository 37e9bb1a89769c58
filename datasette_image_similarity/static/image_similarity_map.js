// The map's page: what is asked by mouse, touch and keyboard becomes what is drawn and listed.

import { filtersOf, hashOf, parseRegion, readHash, REGION, regionText } from "./image_similarity_map_address.js";
import { Colouring, legendRows, names } from "./image_similarity_map_colour.js";
import { Details, fetchJson, fetchPoints, withParameters } from "./image_similarity_map_data.js";
import { webgl } from "./image_similarity_map_draw.js";
import { Card, placeNames } from "./image_similarity_map_over.js";
import { gridLayout, inside, scatterLayout, simplify } from "./image_similarity_map_points.js";
import { Scene } from "./image_similarity_map_scene.js";
import { Camera, listen } from "./image_similarity_map_view.js";

const MANY = 20_000; // points, from which some dots may be left out while the map moves
const still = matchMedia("(prefers-reduced-motion: reduce)");
const root = document.getElementById("ims-map");
if (root) start();

async function start() {
  const canvas = root.querySelector("canvas");
  if (!webgl(canvas)) {
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
    this.card = new Card(this.part, this.scene, this.details);
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
      this.card.place();
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
      this.keepInSight();
    } catch (error) {
      if (error.name === "AbortError") return;
      there.removeAttribute("aria-busy");
      this.say(`The list cannot be had: ${error.message}`);
    }
  }

  /** Move what is selected out from under the tray. */
  keepInSight() {
    const { camera, region, layout } = this;
    const tray = document.querySelector("#ims-map-list.ims-tray")?.getBoundingClientRect();
    camera.covered = tray ? Math.max(this.canvas.getBoundingClientRect().bottom - tray.top, 0) : 0;
    if (region?.layout !== layout) return this.moveBy(0, 0);
    const tops = region.corners.map((corner) => camera.toScreen(...corner)[1]);
    const hidden = Math.max(...tops) - (camera.height - camera.covered - 12);
    const room = Math.min(...tops) - 12; // its top stays in sight as well
    this.moveBy(0, -Math.max(0, Math.min(hidden, room)));
  }

  say(text) {
    document.getElementById("ims-map-status").textContent = text.trim();
  }

  /** Names of the groups that are shown, while nothing moves between layouts. */
  placeNames() {
    const { colouring, scene, layout, only, hidden } = this;
    if (!colouring) return;
    const resting = scene.progress === 0 || scene.progress === 1;
    this.middles[layout] ??= colouring.middles(this.layouts[layout].xy);
    const places = colouring.named.map((group) => {
      const label = colouring.labels[group];
      const shown = resting && !hidden.has(label) && (!only.size || only.has(label));
      return shown ? this.middles[layout][group] : null;
    });
    placeNames([...this.part("names").children], places, this.camera);
  }

  /** Show the card of a point; -1 for none. `pinned`: it stays, with links, until it is closed. */
  async point(i, pinned = false) {
    const { card, colouring } = this;
    if (i === card.i && pinned === card.pinned) return;
    this.canvas.style.cursor = i >= 0 && this.mode === "pan" ? "pointer" : "";
    const label = i >= 0 && colouring ? colouring.labels[colouring.of[i]] : "";
    try {
      const picture = await card.show(i, { pinned, value: label && `${this.color}: ${label}` });
      if (!picture) return;
      root.dataset.pointed = picture.pk;
      if (this.byKeyboard) this.say(`${picture.caption}. Enter opens it.`);
    } catch (error) {
      this.say(error.message);
    }
  }

  async open(i, elsewhere) {
    try {
      const { url } = await this.details.get(this.points.id[i]);
      if (elsewhere) window.open(url, "_blank", "noopener");
      else location.href = url;
    } catch (error) {
      this.say(error.message);
    }
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
        if (this.card.pinned) return;
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
    this.canvas.addEventListener("blur", () => !this.card.pinned && this.point(-1));
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
      Enter: () => this.card.i >= 0 && this.open(this.card.i, false),
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
    const { color, only, hidden, layout, view: [x, y, zoom] } = readHash(location.hash);
    Object.assign(this, { only, hidden });
    this.setLayout(this.layouts[layout] ? layout : "scatter", false);
    this.camera.set({ x, y, zoom: Math.min(Math.max(zoom, 1), this.camera.mostZoom) });
    this.readRegion();
    this.refresh();
    const offered = [...this.part("color").options].some(({ value }) => value === color);
    if (color !== this.color) this.setColor(offered ? color : null);
  }

  writeHash() {
    const { x, y, zoom } = this.camera;
    const hash = hashOf({ ...this, view: [x, y, zoom] });
    history.replaceState(null, "", location.pathname + location.search + hash);
  }

  writeViewSoon() {
    clearTimeout(this.writing);
    this.writing = setTimeout(() => this.writeHash(), 250);
  }
}
