// The role of each worker over time, a lane each. The document in, a figure out.

import { axis, times } from "./chart.js";
import { el, svg } from "./dom.js";
import { clock, inOrder, many } from "./words.js";

const GAP = 9, FOOT = 22, MOST_TOLD = 6;
const LETTERS = { prefill: "P", decode: "D", mixed: "M" };
export const PHASES = {
  overlap: "old work left", lost: "lost", stopped: "stopped", draining: "draining", starting: "starting",
  stalled: "stalled", failed: "failed", stopping: "stopping", serving: "serving",
};
const WHYS = {
  flip: (lane, n) => `${lane[n - 1][1]} → ${lane[n][1]}`,
  restart: (lane, n) => `started anew as ${lane[n][1]}`,
  back: (lane, n) => `heard again, ${lane[n][1]}`,
};

export function drawRoles(figure, doc, fromS, toS) {
  const names = Object.keys(doc.lanes).sort(inOrder);
  const high = names.length > 24 ? 12 : 20;
  const left = Math.min(110, 14 + 7.5 * Math.max(2, ...names.map((name) => name.length)));
  const x = axis(Math.max(240, figure.clientWidth), fromS, toS, left);
  const bottom = GAP + Math.max(1, names.length) * (high + GAP);
  const marks = [hatch(), ...times(x, bottom, 0)];
  names.forEach((name, n) => marks.push(...lane(name, doc.lanes[name], x, GAP + n * (high + GAP), high, toS)));
  if (!names.length) marks.push(svg("text", { x: x.left, y: GAP + high - 6 }, "no worker is heard"));
  const told = changes(doc.lanes);
  const size = `0 0 ${x.right + 12} ${bottom + FOOT}`;
  const picture = svg("svg", { viewBox: size, height: bottom + FOOT, role: "img" }, ...marks);
  picture.setAttribute("aria-label", `Roles of ${many(names.length, "worker")} over time. ${told}`);
  figure.replaceChildren(picture, legend(), el("figcaption", {}, told));
}

function lane(name, stretches, x, top, high, toS) {
  const short = name.length > 13 ? `${name.slice(0, 12)}…` : name;
  const made = [svg("text", { x: 0, y: top + high - high / 4 - 1, class: "ink" }, svg("title", {}, name), short)];
  stretches.forEach(([atS, role, phase, why], n) => {
    const endS = n + 1 < stretches.length ? stretches[n + 1][0] : toS;
    const from = Math.max(x.left, x.at(atS)), to = Math.min(x.right, x.at(endS));
    if (to < x.left) return;
    made.push(...stretch(`${name}: ${role}, ${PHASES[phase]}, ${clock(atS)} to ${clock(endS)}`, role, phase, from, to, top, high));
    if (why && x.at(atS) >= x.left) made.push(mark(why, from, top, high));
  });
  return made;
}

function stretch(title, role, phase, from, to, top, high) {
  const box = { x: from, y: top, width: Math.max(1, to - from), height: high };
  if (phase === "lost" || phase === "stopped") {
    const word = to - from > 8 * phase.length ? [svg("text", { x: from + 6, y: top + high - 6 }, phase === "lost" ? "✕ lost" : phase)] : [];
    return [svg("rect", { ...box, y: top + 0.5, height: high - 1, class: "gap" }, svg("title", {}, title)), ...word];
  }
  const made = [svg("rect", { ...box, class: `fill ${role}` }, svg("title", {}, title))];
  if (phase !== "serving") made.push(svg("rect", { ...box, fill: "url(#hatch)", "pointer-events": "none" }));
  const room = to - from - 8;
  const word = room > 46 ? role : room > 10 ? LETTERS[role] : "";
  if (word && high > 14 && phase === "serving") made.push(svg("text", { x: from + 6, y: top + high - 6, class: "on", "pointer-events": "none" }, word));
  return made;
}

function mark(why, at, top, high) {
  const middle = top + high / 2;
  return why === "flip"
    ? svg("path", { d: `M${at - 6} ${top - 7}h12l-5 7v${high}h-2v${-high}z`, class: "mark" })
    : svg("circle", { cx: at, cy: middle, r: 4, class: "mark" });
}

function hatch() {
  const line = svg("path", { d: "M-2 8L8 -2M3 13L13 3", class: "hatch" });
  return svg("defs", {}, svg("pattern", { id: "hatch", width: 10, height: 10, patternUnits: "userSpaceOnUse" }, line));
}

function legend() {
  const keys = [
    ...Object.keys(LETTERS).map((role) => [[svg("rect", { width: 22, height: 12, class: `fill ${role}` })], role]),
    [[svg("rect", { width: 22, height: 12, class: "fill decode" }), svg("rect", { width: 22, height: 12, fill: "url(#hatch)" })], "not serving, or old work left"],
    [[svg("path", { d: "M5 0h12l-5 7v5h-2v-5z", class: "mark" })], "role changed"],
    [[svg("circle", { cx: 11, cy: 6, r: 4, class: "mark" })], "started anew, or back"],
    [[svg("rect", { x: 0.5, y: 0.5, width: 21, height: 11, class: "gap" })], "lost or stopped"],
  ];
  return el("ul", { class: "legend soft" }, ...keys.map(([marks, name]) =>
    el("li", {}, svg("svg", { viewBox: "0 0 22 12", "aria-hidden": "true" }, ...marks), name)));
}

function changes(lanes) {
  const found = [];
  for (const [name, stretches] of Object.entries(lanes)) {
    stretches.forEach(([atS, , phase, why], n) => {
      if (WHYS[why] && n > 0) found.push([atS, `${clock(atS)} ${name} ${WHYS[why](stretches, n)}`]);
      if (phase === "lost" || phase === "stopped") found.push([atS, `${clock(atS)} ${name} ${phase}`]);
    });
  }
  found.sort((a, b) => b[0] - a[0]);
  if (!found.length) return "No role has changed in this time.";
  const more = found.length > MOST_TOLD ? `; and ${found.length - MOST_TOLD} before` : "";
  return `Last: ${found.slice(0, MOST_TOLD).map(([, text]) => text).join("; ")}${more}.`;
}
