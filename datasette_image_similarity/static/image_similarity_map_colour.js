// Colours by a column: groups of points, their colours, and the legend that switches them.

// Paul Tol's "muted" scheme, told apart with every kind of colour blindness; what is left is grey.
const CATEGORIES = ["#332288", "#cc6677", "#44aa99", "#ddcc77", "#88ccee", "#882255", "#117733", "#aa4499", "#999933"];
// Viridis without its palest end, so that it shows on a light ground: more is darker.
const SCALE = ["#bade28", "#6ccd5a", "#35b779", "#1f9e89", "#26828e", "#3e4a89", "#440154"];
const REST = "#8d949d";
const ROWS = 300; // of the legend, at most

/** Points in groups: `labels`, `counts`, and `of`, the group of each point. */
export class Colouring {
  /** From the answer of column.json. */
  constructor(data, n) {
    this.scaled = data.kind === "number";
    const grouped = this.scaled ? groupsOfNumbers(data.numbers) : groupsOfValues(data.values, data.codes);
    Object.assign(this, grouped);
    const none = this.labels.length;
    this.counts = new Array(none).fill(0);
    let missing = 0;
    for (let i = 0; i < n; i++) {
      if (this.of[i] < none) this.counts[this.of[i]]++;
      else missing++;
    }
    if (missing) {
      this.labels.push("(none)");
      this.counts.push(missing);
    }
    this.none = missing ? none : -1;
    this.order = this.labels.map((_, group) => group);
    if (!this.scaled) this.order.sort((a, b) => (a === none) - (b === none) || this.counts[b] - this.counts[a]);
  }

  /** A colour for each group. Categories: the largest have one each, or those that are chosen. */
  colours(only) {
    const colours = this.labels.map(() => REST);
    if (this.scaled) {
      const groups = this.labels.length - (this.none >= 0);
      for (let g = 0; g < groups; g++) colours[g] = SCALE[groups > 1 ? Math.round(g * (SCALE.length - 1) / (groups - 1)) : 3];
      return colours;
    }
    const first = this.order.filter((g) => g !== this.none);
    const chosen = only.size > 0 && [...only].some((label) => !CATEGORIES[first.indexOf(this.labels.indexOf(label))]);
    const coloured = chosen ? first.filter((g) => only.has(this.labels[g])) : first;
    coloured.slice(0, CATEGORIES.length).forEach((g, at) => (colours[g] = CATEGORIES[at]));
    return colours;
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
export function legendRows(colouring, { only, hidden }) {
  const colours = colouring.colours(only);
  const rows = colouring.order.slice(0, ROWS).map((group) => {
    const label = colouring.labels[group];
    const row = document.createElement("li");
    row.className = "ims-legend-row";
    row.classList.toggle("ims-off", hidden.has(label) || (only.size > 0 && !only.has(label)));
    const swatch = document.createElement("span");
    swatch.className = "ims-swatch";
    swatch.style.background = colours[group];
    const name = document.createElement("span");
    name.className = "ims-legend-name";
    name.textContent = label === "" ? "(empty)" : label;
    const count = document.createElement("span");
    count.className = "ims-legend-count";
    count.textContent = colouring.counts[group].toLocaleString("en");
    const choose = button("ims-legend-only", only.has(label), `Only ${label}`, "only", label);
    choose.append(swatch, name, count);
    choose.setAttribute("aria-label", `Only ${name.textContent}, ${count.textContent} pictures`);
    const hide = button("ims-legend-hide", hidden.has(label), `Hide ${label}`, "hidden", label);
    hide.textContent = hidden.has(label) ? "show" : "hide";
    hide.setAttribute("aria-label", `Hide ${name.textContent}`);
    row.append(choose, hide);
    return row;
  });
  const more = colouring.order.length - rows.length;
  if (more > 0) {
    const row = document.createElement("li");
    row.className = "ims-fine";
    row.textContent = `and ${more.toLocaleString("en")} values more`;
    rows.push(row);
  }
  return rows;
}

function button(name, pressed, title, set, label) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = name;
  made.title = title;
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
