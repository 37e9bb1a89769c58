// What the map fetches from the server.

import { decodePoints } from "./image_similarity_map_points.js";

export async function fetchPoints(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  return decodePoints(await response.arrayBuffer());
}

export async function fetchJson(url) {
  const response = await fetch(url, { headers: { Accept: "application/json" } });
  const answer = await response.json();
  if (!answer.ok) throw new Error(answer.error);
  return answer;
}

/** An address with parameters added. */
export function withParameters(url, pairs) {
  const made = new URL(url, location.href);
  for (const [name, value] of pairs) made.searchParams.append(name, value);
  return made.href;
}

/** What pictures.json says of items: asked for together, and kept. */
export class Details {
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
