// What an address says of the map, and how it is written.
//
// The selection is a filter of the server's (`?_image_region=`); what only the drawing knows is
// behind the "#": color, only, hide, layout, view.

export const REGION = "_image_region";

/** The part of an address that decides which points pass: all but selection and page. */
export function filtersOf(url) {
  const left = [...url.searchParams].filter(([name]) => ![REGION, "_next", "_size"].includes(name));
  return JSON.stringify(left.sort());
}

/** What is behind the "#": { color, only, hidden, layout, view: [x, y, zoom] }. */
export function readHash(hash) {
  const said = new URLSearchParams(hash.slice(1));
  const view = (said.get("view") ?? "").split(",").map(Number);
  return {
    color: said.get("color") || null,
    only: new Set(said.getAll("only")),
    hidden: new Set(said.getAll("hide")),
    layout: said.get("layout") ?? "scatter",
    view: view.length === 3 && view.every(Number.isFinite) ? view : [0, 0, 1],
  };
}

/** The same as an address with nothing before the "#"; without it where all is as it is at first. */
export function hashOf({ color, only, hidden, layout, view: [x, y, zoom] }) {
  const said = new URLSearchParams();
  if (color) said.set("color", color);
  for (const label of only) said.append("only", label);
  for (const label of hidden) said.append("hide", label);
  if (layout !== "scatter") said.set("layout", layout);
  if (zoom > 1.001) said.set("view", [x.toFixed(5), y.toFixed(5), zoom.toFixed(3)].join());
  return said.size ? `#${said}` : "";
}

/** A region as its filter's value: "x1,y1,x2,y2,…", with "grid:" before it on the grid. */
export function regionText({ layout, corners }, layouts, scale) {
  const there = layouts[layout];
  const digits = Math.ceil(Math.log10(layout === "grid" ? scale * there.unit : scale)) + 1;
  const numbers = there.toAddress(corners).flat().map((one) => Number(one.toFixed(Math.max(digits, 2))));
  return (layout === "grid" ? "grid:" : "") + numbers.join();
}

export function parseRegion(text, layouts) {
  const layout = text.startsWith("grid:") ? "grid" : "scatter";
  const numbers = text.replace(/^grid:/, "").split(",").map(Number);
  if (!layouts[layout] || numbers.length < 6 || numbers.length % 2 || !numbers.every(Number.isFinite)) return null;
  const corners = [];
  for (let at = 0; at < numbers.length; at += 2) corners.push([numbers[at], numbers[at + 1]]);
  return { layout, corners: layouts[layout].fromAddress(corners) };
}
