// What floats over the drawing: the card of a picture, the ring around it, names of groups.

/** Shows one picture of the map: beside it while the mouse is there, or pinned, with links. */
export class Card {
  /** `part(name)` finds an element; `scene.boxOf(i)` says where a point is in the window. */
  constructor(part, scene, details) {
    Object.assign(this, { part, scene, details });
    this.i = -1; // the point that is shown
    this.pinned = false;
  }

  /** Show a point; -1 for none. `value` is what the map is coloured by. Gives its picture once
   * it is shown, undefined if another one has been asked for meanwhile. May throw. */
  async show(i, { pinned = false, value = "" } = {}) {
    Object.assign(this, { i, pinned });
    const card = this.part("card");
    card.classList.toggle("ims-pinned", pinned);
    card.hidden ||= i < 0;
    this.place();
    if (i < 0) return undefined;
    const picture = await this.details.get(this.scene.points.id[i]);
    if (i !== this.i) return undefined;
    const [image, caption] = [this.part("picture"), this.part("caption")];
    if (image.getAttribute("src") !== picture.thumbnail) image.src = picture.thumbnail;
    Object.assign(image, { width: picture.width, height: picture.height, alt: picture.caption });
    caption.textContent = picture.caption;
    this.part("row").href = caption.href = picture.url;
    this.part("similar").href = picture.similar_url;
    this.part("value").textContent = value;
    card.hidden = false;
    this.place();
    return picture;
  }

  /** After the map has moved. */
  place() {
    const [ring, card] = [this.part("ring"), this.part("card")];
    ring.hidden = this.i < 0;
    if (this.i < 0) return;
    const [left, top, width, height] = this.scene.boxOf(this.i);
    Object.assign(ring.style, {
      left: `${left - width / 2 - 4}px`, top: `${top - height / 2 - 4}px`,
      width: `${width + 8}px`, height: `${height + 8}px`,
    });
    ring.classList.toggle("ims-round", width < 14);
    if (this.pinned) card.style.transform = ""; // its place is in the style sheet
    else if (!card.hidden) card.style.transform = this.#beside(left, top, width, card);
  }

  /** To the right of the point, or to the left where there is no room. */
  #beside(left, top, width, card) {
    const { camera } = this.scene;
    const room = camera.width - card.offsetWidth - 8;
    const right = left + width / 2 + 14;
    const x = right <= room ? right : left - width / 2 - 14 - card.offsetWidth;
    const y = Math.min(top - card.offsetHeight / 2, camera.height - card.offsetHeight - 8);
    return `translate(${Math.max(8, Math.min(x, room))}px, ${Math.max(8, y)}px)`;
  }
}

/** Put each name where most of its group is, unless there is a larger group's name.
 *
 * `names` are elements, the largest group's first; `places` [x, y] on the map, null to hide. */
export function placeNames(names, places, camera) {
  const boxes = [];
  names.forEach((name, at) => {
    const [x, y] = places[at] ? camera.toScreen(...places[at]) : [];
    name.wide ??= name.offsetWidth;
    const [width, height] = [name.wide / 2 + 2, 12]; // halves
    const free = boxes.every((box) => Math.abs(box.x - x) > box.width + width || Math.abs(box.y - y) > 2 * height);
    const shown = places[at] !== null && free;
    name.classList.toggle("ims-away", !shown);
    if (!shown) return;
    boxes.push({ x, y, width });
    name.style.transform = `translate(${Math.round(x - width)}px, ${Math.round(y - height)}px)`;
  });
}
