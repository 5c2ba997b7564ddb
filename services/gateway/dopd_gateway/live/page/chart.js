// Pictures over time. Times in seconds since the epoch and values in; a figure out, with a legend and a caption.

import { el, svg } from "./dom.js";
import { clock } from "./words.js";

const HEIGHT = 168, RIGHT = 12, TOP = 8, BOTTOM = 22;
const STEPS_S = [10, 15, 30, 60, 120, 300, 600];

/** Where times lie in a picture of this width. */
export function axis(width, fromS, toS, left) {
  const room = width - left - RIGHT;
  const at = (atS) => left + (room * Math.max(0, atS - fromS)) / (toS - fromS);
  const step = STEPS_S.find((s) => (toS - fromS) / s <= Math.max(2, Math.floor(room / 84))) ?? 600;
  const ticks = [];
  for (let atS = Math.ceil(fromS / step) * step; atS <= toS; atS += step) ticks.push(atS);
  return { at, ticks, left, right: width - RIGHT, seconds: step < 60 };
}

/** The axis' names, below a picture that ends there. */
export function times(x, bottom, top) {
  return x.ticks.flatMap((atS) => {
    const place = x.at(atS), anchor = place > x.right - 24 ? "end" : place < x.left + 16 ? "start" : "middle";
    return [
      svg("line", { x1: place, x2: place, y1: top, y2: bottom, class: "axis" }),
      svg("text", { x: place, y: bottom + 15, "text-anchor": anchor }, clock(atS, x.seconds)),
    ];
  });
}

/** A value at or above this one that the eye divides easily, and how many parts it has. */
export function above(value) {
  const size = 10 ** Math.floor(Math.log10(value || 1));
  for (const [factor, parts] of [[1, 2], [2, 2], [3, 3], [4, 4], [5, 5], [6, 3], [8, 4], [10, 2]]) {
    if (value <= factor * size * 1.0001) return { top: factor * size, parts };
  }
  return { top: value, parts: 2 };
}

/**
 * Draw. `series`: `{kind: line|steps|band, look, points, name}`; a point is `[atS, value]`, of steps `[fromS, toS, value]`,
 * of bands `[fromS, toS, low, high]`; a value of null is a gap. `target`: `{value, name}`.
 */
export function draw(figure, { title, fromS, toS, series: all, target, unit, top, caption, empty, aheadS }) {
  const within = (kind, [atS, endS]) => (kind === "line" ? atS : endS) > fromS;
  const series = all.map((one) => ({ ...one, points: one.points.filter((point) => within(one.kind, point)) }));
  const width = Math.max(240, figure.clientWidth);
  const values = series.flatMap((one) => one.points.map((point) => point[point.length - 1])).filter((v) => v !== null);
  const inSight = target && (top || target.value <= 3 * Math.max(...values));
  const scale = top ? { top, parts: 4 } : above(Math.max(...values, inSight ? target.value : 0) || 1);
  const longest = Math.max(...Array.from({ length: scale.parts + 1 }, (_, n) => unit((scale.top * n) / scale.parts).length));
  const x = axis(width, fromS, toS, 14 + 7 * longest), bottom = HEIGHT - BOTTOM;
  const y = (value) => bottom - ((bottom - TOP) * Math.min(value, scale.top)) / scale.top;
  const marks = [...times(x, bottom, TOP)];
  for (let part = 0; part <= scale.parts; part++) {
    const value = (scale.top * part) / scale.parts;
    marks.push(svg("line", { x1: x.left, x2: x.right, y1: y(value), y2: y(value), class: "axis" }));
    marks.push(svg("text", { x: x.left - 6, y: y(value) + 4, "text-anchor": "end" }, unit(value)));
  }
  if (aheadS) {
    marks.push(svg("line", { x1: x.at(aheadS), x2: x.at(aheadS), y1: TOP, y2: bottom, class: "target" }));
    marks.push(svg("text", { x: x.at(aheadS) - 4, y: TOP + 10, "text-anchor": "end" }, "now"));
  }
  for (const one of series) marks.push(...drawn(one, x, y));
  if (inSight) {
    marks.push(svg("line", { x1: x.left, x2: x.right, y1: y(target.value), y2: y(target.value), class: "target" }));
  }
  if (!values.length) {
    marks.push(svg("text", { x: (x.left + x.right) / 2, y: HEIGHT / 2, "text-anchor": "middle" }, empty));
  }
  const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img" }, ...marks);
  picture.setAttribute("aria-label", `${title}. ${caption}`);
  figure.replaceChildren(
    el("h3", {}, title), picture, legend(series, inSight ? target : null), el("figcaption", {}, caption),
  );
}

function drawn(one, x, y) {
  if (one.kind === "band") {
    return one.points.map(([fromS, toS, low, high]) => svg("rect", {
      x: x.at(fromS), width: Math.max(1, x.at(toS) - x.at(fromS)), y: y(high), height: Math.max(1, y(low) - y(high)), class: one.look,
    }));
  }
  const path = one.kind === "steps" ? stairs(one.points, x, y) : curve(one.points, x, y);
  const dots = one.kind === "line" ? lonely(one.points, x, y, one.look) : [];
  return path ? [svg("path", { d: path, class: `line ${one.look}` }), ...dots] : dots;
}

function curve(points, x, y) {
  let path = "", pen = "M";
  for (const [atS, value] of points) {
    if (value === null) pen = "M";
    else {
      path += `${pen}${x.at(atS).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    }
  }
  return path;
}

function stairs(points, x, y) {
  let path = "", lastS = null;
  for (const [fromS, toS, value] of points) {
    const joins = lastS !== null && Math.abs(lastS - fromS) < 1;
    path += `${joins ? "L" : "M"}${x.at(fromS).toFixed(1)} ${y(value).toFixed(1)}H${x.at(toS).toFixed(1)}`;
    lastS = toS;
  }
  return path;
}

/** A value between two gaps has no line. */
function lonely(points, x, y, look) {
  const gap = (n) => n < 0 || n >= points.length || points[n][1] === null;
  return points.flatMap(([atS, value], n) =>
    value !== null && gap(n - 1) && gap(n + 1)
      ? [svg("circle", { cx: x.at(atS), cy: y(value), r: 2.2, class: `dot ${look}` })] : []);
}

function legend(series, target) {
  const keys = series.filter((one) => one.name).map((one) => [one.kind === "band" ? `key ${one.look}` : `key line ${one.look}`, one.name, one.kind]);
  if (target) keys.push(["target", target.name, "line"]);
  return el("ul", { class: "legend soft" }, ...keys.map(([look, name, kind]) => {
    const mark = kind === "band"
      ? svg("rect", { x: 1, y: 1, width: 20, height: 10, class: look })
      : svg("line", { x1: 1, x2: 21, y1: 6, y2: 6, class: look });
    return el("li", {}, svg("svg", { viewBox: "0 0 22 12", "aria-hidden": "true" }, mark), name);
  }));
}
