// Makes the review of duplicates quicker: keys, zoom, no reload between groups. Every
// decision is an ordinary form and every move an ordinary link, which the keys press.

const status = document.getElementById("imd-status");
const alert = document.getElementById("imd-alert");
const review = () => document.getElementById("imd-review");
let busy = false;

// Going from group to group

document.addEventListener("click", (event) => {
  const link = event.target.closest("#imd-review a[data-go]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  show(link.href);
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!review().contains(form)) return;
  event.preventDefault();
  const body = new URLSearchParams(new FormData(form));
  const pressed = event.submitter;
  if (pressed?.name) body.set(pressed.name, pressed.value);
  show(form.getAttribute("action"), { method: "POST", body });
});

addEventListener("popstate", () => show(location.href, {}, false));

async function show(url, options = {}, remember = true) {
  if (busy) return;
  busy = true;
  alert.textContent = "";
  const chosen = chosenPicture()?.querySelector(".imd-number")?.textContent;
  const row = document.activeElement?.closest(".imd-groups > li")?.id;
  let response, page;
  try {
    response = await fetch(url, { ...options, headers: { Accept: "text/html" } });
    page = new DOMParser().parseFromString(await response.text(), "text/html");
  } catch {
    alert.textContent = "The server cannot be reached. Nothing has changed: try again.";
    return;
  } finally {
    busy = false;
  }
  const made = page.getElementById("imd-review");
  if (!made) {
    const said = page.querySelector("section.content p")?.textContent;
    // After a conflict the newest state is shown, with the reason above it.
    if (response.status === 409 && options.method) await show(location.href, {}, false);
    alert.textContent = said || "The server could not answer.";
    return;
  }
  const stays = heading(made) === heading(review());
  if (!stays) fit();
  review().replaceWith(document.adoptNode(made));
  status.textContent = page.getElementById("imd-status").textContent.trim();
  if (remember && response.url !== location.href) history.pushState(null, "", response.url);
  draw();
  focus(stays ? chosen : null, row);
  preload();
}

const heading = (part) => part.querySelector("#imd-group")?.textContent;

// What was pressed is gone: the same picture, the same row of the list, or the heading.
function focus(number, row) {
  const picture = pictures().find((one) => one.querySelector(".imd-number").textContent === number);
  const target =
    picture?.querySelector(".imd-view") ??
    document.getElementById(row)?.querySelector("a") ??
    document.getElementById("imd-group") ??
    review().querySelector(".imd-tabs [aria-current]");
  target?.focus({ preventScroll: true });
}

function preload() {
  for (const url of review().dataset.preload?.split(" ") ?? []) new Image().src = url;
}

// Keys

const pictures = () => [...review().querySelectorAll("[data-picture]")];
const chosenPicture = () => document.activeElement?.closest("[data-picture]");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target.closest("input, textarea, select, [contenteditable], dialog")) return;
  const { key } = event;
  if (key === "Enter" && event.target.closest("a, button, summary")) return;
  if (key === "Escape") return closeOpen();
  if (key.startsWith("Arrow") && arrow(key, event.shiftKey)) return event.preventDefault();
  if (event.repeat) return;
  const quoted = CSS.escape(key);
  const pressed =
    review().querySelector(`[data-key~="${quoted}"]`) ??
    chosenPicture()?.querySelector(`[data-own="${quoted}"]`);
  if (pressed) {
    event.preventDefault();
    pressed.click();
  } else if (review().querySelector(`[data-own="${quoted}"]`)) {
    status.textContent = "Choose a picture first, with the arrow keys or a click.";
  }
});

function closeOpen() {
  const open = review().querySelector("details[open]");
  if (open) {
    open.open = false;
    open.querySelector("summary").focus();
  }
}

function arrow(key, moving) {
  const across = { ArrowLeft: -1, ArrowRight: 1 }[key] ?? 0;
  if (moving) {
    if (zoom === 1) return false;
    x -= (across * 0.15) / zoom;
    y -= (({ ArrowUp: -1, ArrowDown: 1 }[key] ?? 0) * 0.15) / zoom;
    draw();
    return true;
  }
  const all = pictures();
  if (!across || !all.length) return false;
  const now = all.indexOf(chosenPicture());
  const next = now < 0 ? (across > 0 ? 0 : all.length - 1) : now + across;
  const view = all[Math.min(Math.max(next, 0), all.length - 1)].querySelector(".imd-view");
  view.focus({ preventScroll: true });
  view.closest("th").scrollIntoView({ block: "nearest", inline: "nearest" });
  return true;
}

// One zoom for all pictures. (x, y) is how far each is moved, in parts of its frame.

const MOST = 16;
let zoom = 1;
let x = 0;
let y = 0;

function draw() {
  const reach = (1 - 1 / zoom) / 2; // no picture leaves its frame
  x = Math.min(Math.max(x, -reach), reach);
  y = Math.min(Math.max(y, -reach), reach);
  const { style } = review();
  style.setProperty("--zoom", zoom);
  style.setProperty("--x", `${x * 100}%`);
  style.setProperty("--y", `${y * 100}%`);
  review().classList.toggle("imd-zoomed", zoom > 1);
  const said = document.getElementById("imd-zoom");
  if (said) said.value = `${Number(zoom.toPrecision(2))}×`;
}

function fit() {
  [zoom, x, y] = [1, 0, 0];
}

// What lies at (atX, atY), in parts of the frame from its middle, stays there.
function zoomTo(wanted, atX = 0, atY = 0) {
  const next = Math.min(Math.max(wanted, 1), MOST);
  x += atX / next - atX / zoom;
  y += atY / next - atY / zoom;
  zoom = next;
  draw();
}

function within(view, { clientX, clientY }) {
  const box = view.getBoundingClientRect();
  return [(clientX - box.left) / box.width - 0.5, (clientY - box.top) / box.height - 0.5];
}

document.addEventListener("click", (event) => {
  const way = event.target.closest("[data-zoom]")?.dataset.zoom;
  if (way === "in") zoomTo(zoom * 1.5);
  if (way === "out") zoomTo(zoom / 1.5);
  if (way === "fit") zoomTo(1);
});

document.addEventListener(
  "wheel",
  (event) => {
    const view = event.target.closest?.(".imd-view");
    if (!view || (zoom === 1 && event.deltaY > 0)) return; // fitted: the page scrolls on
    event.preventDefault();
    zoomTo(zoom * Math.exp(-event.deltaY / 400), ...within(view, event));
  },
  { passive: false },
);

const fingers = new Map(); // pointers on a picture, by id
let apart = 0; // how far two of them were apart

document.addEventListener("pointerdown", (event) => {
  const view = event.target.closest(".imd-view");
  if (!view || event.button) return;
  view.focus({ preventScroll: true });
  fingers.set(event.pointerId, { view, clientX: event.clientX, clientY: event.clientY });
  apart = spread();
  if (zoom > 1 || fingers.size > 1) event.preventDefault();
});

document.addEventListener("pointermove", (event) => {
  const finger = fingers.get(event.pointerId);
  if (!finger) return;
  const box = finger.view.getBoundingClientRect();
  if (fingers.size === 1 && zoom > 1) {
    x += (event.clientX - finger.clientX) / box.width / zoom;
    y += (event.clientY - finger.clientY) / box.height / zoom;
  }
  finger.clientX = event.clientX;
  finger.clientY = event.clientY;
  const now = spread();
  if (apart && now) zoomTo((zoom * now) / apart, ...within(finger.view, middle()));
  apart = now;
  draw();
});

for (const type of ["pointerup", "pointercancel"]) {
  document.addEventListener(type, (event) => {
    fingers.delete(event.pointerId);
    apart = spread();
  });
}

function spread() {
  const [one, two] = fingers.values();
  return two ? Math.hypot(one.clientX - two.clientX, one.clientY - two.clientY) : 0;
}

function middle() {
  const [one, two] = fingers.values();
  return { clientX: (one.clientX + two.clientX) / 2, clientY: (one.clientY + two.clientY) / 2 };
}

draw();
preload();
