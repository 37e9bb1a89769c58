// Draws the part of a picture to search with. Without this its four numbers can be typed.

const panel = document.querySelector(".ims-crop");
if (panel) setUpCrop(panel);

function setUpCrop(panel) {
  const picture = panel.querySelector(".ims-crop-picture");
  const mark = picture.querySelector("rect");
  const fields = Object.fromEntries(
    ["left", "top", "width", "height"].map((side) => [side, panel.querySelector(`[name=_crop_${side}]`)]),
  );
  let start = null; // where the mouse went down, in percent

  // The picture itself takes a moment to make: only for those who want to draw on it.
  panel.closest("details").addEventListener("toggle", () => {
    const image = picture.querySelector("img");
    if (!image.src.endsWith(image.dataset.picture)) image.src = image.dataset.picture;
  });
  picture.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    start = place(event);
    picture.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  picture.addEventListener("pointermove", (event) => {
    if (start) choose(start, place(event));
  });
  picture.addEventListener("pointerup", () => (start = null));
  picture.addEventListener("pointercancel", () => (start = null));
  panel.addEventListener("input", show);

  function place(event) {
    const box = picture.getBoundingClientRect();
    const share = (at, from, length) => Math.min(100, Math.max(0, (100 * (at - from)) / length));
    return { x: share(event.clientX, box.left, box.width), y: share(event.clientY, box.top, box.height) };
  }

  function choose(a, b) {
    const left = Math.min(a.x, b.x);
    const top = Math.min(a.y, b.y);
    // One percent at least, and inside: rounding up the width must not pass the edge.
    const [width, height] = [Math.abs(a.x - b.x), Math.abs(a.y - b.y)].map((side) => Math.max(1, side));
    const down = (number) => Math.floor(10 * number) / 10;
    fields.left.value = down(Math.min(left, 99));
    fields.top.value = down(Math.min(top, 99));
    fields.width.value = down(Math.min(width, 100 - fields.left.value));
    fields.height.value = down(Math.min(height, 100 - fields.top.value));
    show();
  }

  function show() {
    const [left, top, width, height] = ["left", "top", "width", "height"].map((side) => Number(fields[side].value) || 0);
    const whole = width >= 100 && height >= 100;
    const shown = { x: left, y: top, width: whole ? 0 : width, height: whole ? 0 : height };
    for (const [name, value] of Object.entries(shown)) mark.setAttribute(name, value);
  }
}
