// Requests that are over, each with where its time went. The document in, lists of the page out.

import { byId, el, keep } from "./dom.js";
import { clock, count, took } from "./words.js";

const LOOKS = {
  queued: "wait", prefill_queued: "wait", decode_queued: "wait", returned: "wait", lost: "wait",
  sent: "move", first_token_sent: "move", handing_over: "move", kv_transfer: "move", finished: "move",
  prefilling: "prefill", first_decode_step: "decode", decoding: "decode",
};
/** Runs beside the others. */
const BESIDE = "first_token_sent";

export function showRequests(doc) {
  for (const kind of ["missed", "met"]) {
    const rows = doc[kind], numbers = Object.keys(rows).sort((a, b) => b - a);
    // A gateway that began anew counts from one again: the id tells whether it is the same request.
    keep(byId(kind), numbers.map((number) => `${number} ${rows[number].id}`), (key) => request(rows[key.split(" ")[0]], doc.slo));
    byId(`${kind}-empty`).hidden = numbers.length > 0;
  }
}

function request(row, slo) {
  const body = el("div");
  const details = el("details", {}, el("summary", {}, head(row, slo), strip(row)), body);
  details.addEventListener("toggle", () => {
    if (details.open && !body.children.length) body.append(...opened(row));
  });
  return el("li", {}, details);
}

function head(row, slo) {
  const parts = [row.ttft_s === undefined ? "no token" : `TTFT ${took(row.ttft_s)}`];
  if (row.tpot_s !== undefined) parts.push(`TPOT ${took(row.tpot_s)}`);
  parts.push(`${count(row.isl)} → ${count(row.osl)} tokens`);
  if (row.attempts > 1) parts.push(`${row.attempts} attempts`);
  return el("span", {}, el("span", { class: row.met ? "good" : "bad" }, verdict(row, slo)), ` in ${took(row.total_s)}: ${parts.join(", ")} `,
    el("span", { class: "soft" }, clock(row.at_s)));
}

function verdict(row, slo) {
  if (row.end === "failed") return `failed: ${row.code ?? "unknown"}`;
  if (row.end === "cancelled") return "client left";
  if (row.met) return "met";
  const missed = [row.ttft_s > slo.ttft_s ? "TTFT" : "", row.tpot_s > slo.tpot_s ? "TPOT" : ""].filter(Boolean);
  return missed.length ? `missed ${missed.join(" and ")}` : "missed its own target";
}

/** All phases in one line. */
function strip(row) {
  const line = el("div", { class: "strip", "aria-hidden": "true" });
  for (const [name, startS, endS] of row.phases) {
    if (name === BESIDE) continue;
    const part = el("i", { class: LOOKS[name] ?? "wait" });
    part.style.width = `${(100 * Math.max(0, endS - startS)) / Math.max(1e-9, row.total_s)}%`;
    line.append(part);
  }
  return line;
}

function opened(row) {
  const rows = row.phases.map(([name, startS, endS, where]) => {
    const bar = el("i", { class: LOOKS[name] ?? "wait" });
    const whole = Math.max(1e-9, row.total_s);
    bar.style.marginLeft = `${Math.min(99, Math.max(0, (100 * startS) / whole))}%`;
    bar.style.width = `${Math.min(100, Math.max(0, (100 * (endS - startS)) / whole))}%`;
    return el("tr", {}, el("th", { scope: "row" }, name.replaceAll("_", " "), el("span", { class: "soft" }, ` ${where}`)),
      el("td", {}, took(Math.max(0, endS - startS))), el("td", {}, el("div", { class: "slot", "aria-hidden": "true" }, bar)));
  });
  const titles = ["phase, process", "took", "when"].map((title) => el("th", { scope: "col" }, title));
  const about = row.trace ? `${row.id}, trace ${row.trace}` : row.id;
  return [
    el("p", { class: "soft" }, about),
    el("table", { class: "fall" }, el("thead", {}, el("tr", {}, ...titles)), el("tbody", {}, ...rows)),
  ];
}
