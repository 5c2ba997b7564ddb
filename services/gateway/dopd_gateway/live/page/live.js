// The page: follows /live, keeps the document, draws it, and says when it hears nothing.
// An event `snapshot` is the whole document (its keys: snapshot.py), `update` a JSON merge patch of it.

import { draw } from "./chart.js";
import { showDecisions, showNow, showWorkers } from "./cluster.js";
import { byId, say } from "./dom.js";
import { merge } from "./merge.js";
import { showRequests } from "./requests.js";
import { drawRoles } from "./roles.js";
import { clock, many, percent, rate, took } from "./words.js";

const SILENT_MS = 12000, AGAIN_MS = 3000, HIDDEN_MS = 30000, LEAST_S = 120;

let doc = null, source = null, heardAt = Date.now(), again = 0, lostAt = 0, anew = "", waiting = false, pausing = 0;

function follow() {
  source?.close();
  heardAt = Date.now();
  source = new EventSource("live");
  source.addEventListener("snapshot", (event) => {
    const before = doc?.gateway.incarnation;
    doc = JSON.parse(event.data);
    if (before && before !== doc.gateway.incarnation) {
      anew = `The gateway started anew at ${clock(doc.gateway.since_s)}; what it knew before is gone.`;
    }
    heard();
  });
  source.addEventListener("update", (event) => {
    merge(doc, JSON.parse(event.data));
    heard();
  });
  source.onerror = () => {
    lose();
    // After an answer that is no stream, such as 503, a browser does not try again by itself.
    if (source.readyState === EventSource.CLOSED && !again) again = Date.now() + AGAIN_MS;
  };
}

function heard() {
  heardAt = Date.now();
  again = lostAt = 0;
  say(byId("link"), `live; this gateway has counted since ${clock(doc.gateway.since_s)}`);
  byId("link").className = "up";
  document.body.classList.remove("lost");
  if (!waiting) {
    waiting = true;
    requestAnimationFrame(show);
  }
}

function lose() {
  lostAt ||= heardAt;
  say(byId("link"), `Connection lost since ${clock(lostAt / 1000)}. What is below is as old as that. Trying again …`);
  byId("link").className = "lost";
  document.body.classList.add("lost");
}

/** A page that nobody sees takes no place from others: a gateway has few, and a browser has six per host. */
function pause() {
  source?.close();
  source = null;
  say(byId("link"), "paused while nobody looks");
  byId("link").className = "";
}

function seen() {
  clearTimeout(pausing);
  if (document.hidden) pausing = setTimeout(pause, HIDDEN_MS);
  else if (!source) follow();
}

function watch() {
  if (!source) return;
  const silent = Date.now() - heardAt > SILENT_MS;
  if (silent) lose();
  if (silent || (again && Date.now() > again)) {
    again = 0;
    follow();
  }
}

function show() {
  waiting = false;
  const { gateway } = doc;
  say(byId("model"), gateway.model);
  say(byId("about"), `gateway ${gateway.id}, ${split(doc.workers)}`);
  document.title = `DOPD ${gateway.model}`;
  const notes = [anew, gateway.connected ? "" : "The broker is out of this gateway's reach: what is said of workers may be old."].filter(Boolean);
  byId("notes").hidden = !notes.length;
  say(byId("notes"), notes.join(" "));
  showNow(doc);
  showWorkers(doc);
  const fromS = Math.min(doc.at_s - LEAST_S, Math.max(gateway.since_s, doc.at_s - doc.keep_s));
  drawRoles(byId("roles"), doc, fromS, doc.at_s);
  showArrivals(fromS);
  showOutcomes(fromS);
  showDecisions(doc);
  showRequests(doc);
}

/** Such as `5 workers: 4 prefill, 1 decode`. */
function split(workers) {
  const there = Object.values(workers).filter((one) => one.heard_s === undefined);
  const counts = ["prefill", "decode", "mixed"].map((role) => [there.filter((one) => one.role === role).length, role]);
  const said = counts.filter(([number]) => number).map(([number, role]) => `${number} ${role}`).join(", ");
  return many(there.length, "worker") + (said && `: ${said}`);
}

function showArrivals(fromS) {
  const rows = (some) => Object.entries(some).map(([at, row]) => [Number(at), row]).sort((a, b) => a[0] - b[0]);
  const came = rows(doc.arrivals).map(([endS, value]) => [endS - doc.window_s, endS, value]);
  // Each holds until the next one.
  const said = rows(doc.forecasts).map(([startS, row], n, all) => [startS, Math.min(startS + row.horizon_s, all[n + 1]?.[0] ?? Infinity), row]);
  const ahead = rows(doc.ahead).map(([, row]) => row).slice(1, 2);
  const steps = said.map(([startS, endS, row]) => [startS, endS, row.mean]);
  const bands = said.filter(([, , row]) => row.share).map(([startS, endS, row]) => [startS, endS, row.low, row.high]);
  const endS = Math.max(doc.at_s, ...steps.map((one) => one[1]), ...ahead.map((row) => row.start_s + row.horizon_s));
  const share = said.find(([, , row]) => row.share)?.[2].share;
  const series = [
    { kind: "band", look: "band", points: bands, name: share ? `${percent(share)} of what comes should lie here` : "" },
    { kind: "steps", look: "b dash", points: steps, name: said.length ? `expected, ${took(said[0][2].horizon_s)} ahead` : "" },
    { kind: "steps", look: "b faint", points: ahead.map((row) => [row.start_s, row.start_s + row.horizon_s, row.mean]), name: ahead.length ? `expected, ${took(ahead[0].horizon_s)} ahead` : "" },
    { kind: "steps", look: "a", points: came, name: "came" },
  ];
  const last = came.at(-1);
  const caption = last ? `Came in the last ${took(doc.window_s)} of counting: ${rate(last[2])} requests/s, at all gateways.` : `Gateways count for ${took(doc.window_s)} at a time.`;
  draw(byId("arrivals"), { title: "Requests per second", fromS, toS: endS, aheadS: doc.at_s, series, unit: rate, caption, empty: "no window has ended yet" });
}

function showOutcomes(fromS) {
  const bins = Object.entries(doc.bins).map(([at, row]) => [Number(at), row]).sort((a, b) => a[0] - b[0]);
  const middle = doc.bin_s / 2, ended = bins.filter(([atS]) => atS + doc.bin_s <= doc.at_s);
  const line = (value) => ended.map(([atS, row]) => [atS + middle, value(row) ?? null]);
  say(byId("latency-about"), `Requests of gateway ${doc.gateway.id} that ended, ${took(doc.bin_s)} at a time.`);
  for (const [name, title] of [["ttft", "TTFT"], ["tpot", "TPOT"]]) {
    const target = { value: doc.slo[`${name}_s`], name: `target ${took(doc.slo[`${name}_s`])}` };
    const series = [
      { kind: "line", look: "b dash", points: line((row) => row[`${name}_p90_s`]), name: "90th percentile" },
      { kind: "line", look: "a", points: line((row) => row[`${name}_p50_s`]), name: "median" },
    ];
    const what = name === "ttft" ? "Time to the first token, from arrival at the gateway" : "Time per token after the first";
    draw(byId(name), { title, fromS, toS: doc.at_s, series, target, unit: took, caption: `${what}; target ${took(target.value)}.`, empty: "no request has ended yet" });
  }
  const attained = [{ kind: "line", look: "a", points: line((row) => (row.ended ? row.met / row.ended : null)), name: "" }];
  draw(byId("attainment"), { title: "Attainment", fromS, toS: doc.at_s, series: attained, unit: percent, top: 1, caption: "Share of the requests that ended which met both targets; who failed or left did not.", empty: "no request has ended yet" });
  const good = [
    { kind: "line", look: "b dash", points: line((row) => row.ended / doc.bin_s), name: "ended" },
    { kind: "line", look: "a", points: line((row) => row.met / doc.bin_s), name: "met both targets" },
  ];
  draw(byId("goodput"), { title: "Goodput", fromS, toS: doc.at_s, series: good, unit: rate, caption: "Requests per second.", empty: "nothing yet" });
}

addEventListener("resize", () => doc && requestAnimationFrame(show));
document.addEventListener("visibilitychange", seen);
setInterval(watch, 1000);
follow();
