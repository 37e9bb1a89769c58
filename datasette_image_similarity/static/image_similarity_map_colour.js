// Colours by a column: groups of points, their colours, and the legend that switches them.

// Paul Tol's "muted" scheme, told apart with every kind of colour blindness. Where it is used
// again, names on the map tell groups apart.
const CATEGORIES = ["#332288", "#cc6677", "#44aa99", "#ddcc77", "#88ccee", "#882255", "#117733", "#aa4499", "#999933"];
// Viridis without its palest end, so that it shows on a light ground: more is darker.
const SCALE = ["#bade28", "#6ccd5a", "#35b779", "#1f9e89", "#26828e", "#3e4a89", "#440154"];
const REST = "#8d949d";
const MOST_VALUES = 20; // of a column, as the server sends them; all others are one more
const RASTER = 24;

/** Points in groups: `labels`, `counts`, `colours`, and `of`, the group of each point. */
export class Colouring {
  /** From the answer of column.json. `xy` has the points' places, x and y in turn. */
  constructor(data, xy) {
    const scaled = data.kind === "number";
    const { labels, of } = scaled ? groupsOfNumbers(data.numbers) : groupsOfValues(data.values, data.codes);
    const none = labels.length; // the group of points without a value
    const counts = new Array(none + 1).fill(0);
    for (const group of of) counts[group]++;
    // What the server has put together comes last.
    const other = scaled || none <= MOST_VALUES ? -1 : none - 1;
    this.named = scaled ? [] : labels.map((_, group) => group).filter((group) => group !== other);
    this.named.sort((a, b) => counts[b] - counts[a]);
    this.order = scaled ? labels.map((_, group) => group) : [...this.named];
    if (other >= 0) this.order.push(other);
    if (counts[none]) {
      labels.push("(none)");
      this.order.push(none);
    }
    Object.assign(this, { labels, counts, of });
    this.colours = labels.map(() => REST);
    if (scaled) this.#shade(none);
    else this.#tell(this.middles(xy));
  }

  /** Numbers: from pale to dark. */
  #shade(groups) {
    const last = SCALE.length - 1;
    for (let g = 0; g < groups; g++) this.colours[g] = SCALE[groups > 1 ? Math.round(g * last / (groups - 1)) : 3];
  }

  /** Categories: the largest have a colour each; the others that of a group far from them. */
  #tell(middles) {
    const used = CATEGORIES.map(() => []);
    this.named.forEach((group, at) => {
      const middle = middles[group];
      const apart = (places) => Math.min(...places.map(([x, y]) => Math.hypot(x - middle[0], y - middle[1])));
      const all = used.map(apart); // farther than anything from a colour that is not used yet
      const colour = at < CATEGORIES.length ? at : all.indexOf(Math.max(...all));
      used[colour].push(middle);
      this.colours[group] = CATEGORIES[colour];
    });
  }

  /** For each group the place where most of it is: the fullest of the squares of a raster. */
  middles(xy) {
    const groups = this.labels.length + 1;
    const square = (at) => Math.min(Math.max(Math.floor((at + 1) / 2 * RASTER), 0), RASTER - 1);
    const sums = new Float64Array(groups * RASTER * RASTER * 3);
    this.of.forEach((group, i) => {
      const at = ((group * RASTER + square(xy[2 * i])) * RASTER + square(xy[2 * i + 1])) * 3;
      sums[at]++;
      sums[at + 1] += xy[2 * i];
      sums[at + 2] += xy[2 * i + 1];
    });
    return this.labels.map((_, group) => {
      let best = group * RASTER * RASTER * 3;
      for (let at = best; at < (group + 1) * RASTER * RASTER * 3; at += 3) if (sums[at] > sums[best]) best = at;
      const count = sums[best] || 1;
      return [sums[best + 1] / count, sums[best + 2] / count];
    });
  }
}

function groupsOfValues(values, codes) {
  const none = values.length;
  const known = (code) => Number.isInteger(code) && code >= 0 && code < none;
  return { labels: values.map(String), of: Uint32Array.from(codes, (code) => (known(code) ? code : none)) };
}

/** Numbers in up to seven groups of about as many points each; fewer distinct numbers: one each. */
function groupsOfNumbers(numbers) {
  const is = (number) => typeof number === "number";
  const sorted = Float64Array.from(numbers.filter(is)).sort();
  const distinct = sorted.filter((number, i) => number !== sorted[i - 1]);
  let starts = [...distinct];
  if (distinct.length > SCALE.length) {
    starts = SCALE.map((_, g) => sorted[Math.floor(g * sorted.length / SCALE.length)]);
    starts = starts.filter((start, g) => start !== starts[g - 1]);
  }
  const groupOf = (number) => {
    let group = starts.length - 1;
    while (group > 0 && number < starts[group]) group--;
    return group;
  };
  const of = Uint32Array.from(numbers, (number) => (is(number) ? groupOf(number) : starts.length));
  const ends = starts.map(() => -Infinity);
  numbers.forEach((number, i) => {
    if (is(number)) ends[of[i]] = Math.max(ends[of[i]], number);
  });
  const text = (number) => number.toLocaleString("en", { maximumSignificantDigits: 5, useGrouping: Math.abs(number) >= 10000 });
  const labels = starts.map((start, g) => (start === ends[g] ? text(start) : `${text(start)} – ${text(ends[g])}`));
  return { labels, of };
}

/** The legend's rows, for a list: a button that shows only this value, one that hides it. */
export function legendRows({ labels, counts, colours, order }, { only, hidden }) {
  return order.map((group) => {
    const label = labels[group];
    const name = element("span", "ims-legend-name", shownAs(label));
    const count = element("span", "ims-legend-count", counts[group].toLocaleString("en"));
    const swatch = element("span", "ims-swatch");
    swatch.style.background = colours[group];
    const choose = button("ims-legend-only", only.has(label), "only", label);
    choose.append(swatch, name, count);
    choose.title = label;
    choose.setAttribute("aria-label", `Only ${name.textContent}, ${count.textContent} pictures`);
    const hide = button("ims-legend-hide", hidden.has(label), "hidden", label);
    hide.textContent = hidden.has(label) ? "show" : "hide";
    hide.setAttribute("aria-label", `Hide ${name.textContent}`);
    const row = element("li", "ims-legend-row");
    row.classList.toggle("ims-off", hidden.has(label) || (only.size > 0 && !only.has(label)));
    row.append(choose, hide);
    return row;
  });
}

/** Names on the map, for the groups that have one, the largest first. */
export function names({ labels, colours, named }) {
  return named.map((group) => {
    const name = element("span", "ims-map-name", shownAs(labels[group]));
    name.style.borderColor = colours[group];
    return name;
  });
}

function shownAs(label) {
  return label.trim() ? label : "(empty)";
}

function element(tag, name, text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

function button(name, pressed, set, label) {
  const made = element("button", name);
  made.type = "button";
  made.dataset.set = set;
  made.dataset.label = label;
  made.setAttribute("aria-pressed", pressed);
  return made;
}

/** "#rrggbb" and an alpha of 0 to 255 as four bytes in one number, as the GPU reads them. */
export function packed(colour, alpha) {
  const rgb = parseInt(colour.slice(1), 16);
  return ((alpha << 24) | ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16)) >>> 0;
}
