// What the cluster does now: tiles, workers, decisions. The document in, elements of the page out.

import { byId, el, keep, say } from "./dom.js";
import { PHASES } from "./roles.js";
import { ago, clock, count, inOrder, many, percent, rate, took } from "./words.js";

/** Numbers of the cluster, and of this gateway's last minute. */
export function showNow(doc) {
  const { queue, rates, minute, slo } = doc;
  const expected = Object.values(doc.ahead).sort((a, b) => a.horizon_s - b.horizon_s)[0];
  const overS = Math.max(1, doc.at_s - minute.since_s);
  const quantile = (name) => (minute[`${name}_p50_s`] === undefined ? "–" : took(minute[`${name}_p50_s`]));
  const tail = (name, targetS) => (minute[`${name}_p90_s`] === undefined ? `target ${took(targetS)}` : `p90 ${took(minute[`${name}_p90_s`])}, target ${took(targetS)}`);
  const tiles = [
    ["requests/s", rates ? rate(rates.requests_per_s) : "–", expected ? `expected ${rate(expected.mean)}` : "no forecast"],
    ["tokens/s", rates ? count(rates.tokens_per_s) : "–", "output"],
    ["waiting", count(queue.waiting), `${count(queue.waiting_tokens)} tokens`],
    ["running", count(queue.running), many(doc.gateway.gateways, "gateway")],
    ["TTFT, median", quantile("ttft"), tail("ttft", slo.ttft_s)],
    ["TPOT, median", quantile("tpot"), tail("tpot", slo.tpot_s)],
    ["attainment", minute.ended ? percent(minute.met / minute.ended) : "–", `of ${many(minute.ended, "request")} in ${overS > 55 ? "a minute" : took(overS)}`],
    ["goodput", `${rate(minute.met / overS)}/s`, minute.failed ? `${count(minute.failed)} failed or left` : "none failed"],
  ];
  keep(byId("now"), tiles.map(([name]) => name), (name) => el("div", {}, el("dt", {}, name), el("dd"), el("dd")));
  tiles.forEach(([, value, more], n) => {
    const [, big, small] = byId("now").children[n].children;
    say(big, value);
    say(small, more);
  });
}

/** A row for each worker, also those that are gone. */
export function showWorkers(doc) {
  const body = byId("workers").tBodies[0];
  keep(body, Object.keys(doc.workers).sort(inOrder), (name) => el("tr", {}, el("th", { scope: "row" }, name), ...Array.from({ length: 8 }, (_, n) => el("td", n >= 5 ? { class: "more" } : {}))));
  for (const row of body.children) fillRow(row, doc.workers[row.dataset.key], doc.at_s);
  byId("left-out").hidden = !doc.left_out && body.children.length > 0;
  say(byId("left-out"), doc.left_out ? `${many(doc.left_out, "more worker")} without a row` : "no worker is heard");
}

function fillRow(row, worker, nowS) {
  const [, role, kv, ...rest] = row.cells;
  const gone = worker.heard_s !== undefined;
  row.className = gone ? "gone" : "";
  const phase = gone ? `${PHASES[worker.phase]}, last heard ${ago(nowS - worker.heard_s)}` : PHASES[worker.phase];
  const look = { lost: "bad", failed: "bad", stalled: "bad", serving: "soft", stopped: "soft" }[worker.phase] ?? "warn";
  const shown = `${worker.role} ${phase} ${look}`;
  if (role.dataset.shown !== shown) {
    role.dataset.shown = shown;
    role.replaceChildren(el("span", { class: `role ${worker.role}` }, worker.role), el("span", { class: `phase ${look}` }, phase));
  }
  if (gone) kv.replaceChildren("–");
  else showBar(kv, worker.kv_total_tokens ? worker.kv_used_tokens / worker.kv_total_tokens : 0);
  const values = gone ? rest.map(() => "–") : [
    count(worker.running), count(worker.waiting), count(worker.queued_tokens), count(worker.context_tokens),
    worker.steps_per_s === undefined ? "–" : worker.steps_per_s.toFixed(1), count(worker.credit),
  ];
  rest.forEach((cell, n) => say(cell, values[n]));
}

function showBar(cell, share) {
  if (cell.children.length !== 2) {
    cell.replaceChildren(el("span", { class: "bar", "aria-hidden": "true" }, el("i")), el("span"));
  }
  const [bar, text] = cell.children;
  bar.className = share > 0.9 ? "bar full" : "bar";
  bar.firstChild.style.width = `${Math.min(100, share * 100)}%`;
  say(text, percent(share));
}

/** The planner's last decisions, in the words of `dopd explain`. */
export function showDecisions(doc) {
  const list = byId("decisions"), decisions = doc.decisions;
  byId("decisions-empty").hidden = decisions !== undefined && decisions.length > 0;
  say(byId("decisions-empty"), decisions === undefined ? "no planner answers" : "no decision yet");
  const byKey = new Map((decisions ?? []).map((one) => [one.id, one]));
  keep(list, [...byKey.keys()], () => el("li", {}, el("details", {}, el("summary"), el("pre", { tabindex: "0" }))));
  for (const item of list.children) {
    const one = byKey.get(item.dataset.key), shown = JSON.stringify(one);
    if (item.dataset.shown === shown) continue;
    item.dataset.shown = shown;
    const [summary, words] = item.firstChild.children;
    summary.replaceChildren(
      el("strong", {}, one.split), ` ${one.said}`, one.dry_run ? " (dry run)" : "",
      ...one.changes.map((change) => el("div", {}, `⇄ ${change}`)),
      el("div", { class: "soft" }, `${clock(one.at_s)}, ${one.reason} (${one.why})`,
        one.times > 1 ? `, ${one.times} times since ${clock(one.since_s)}` : ""),
    );
    say(words, one.words);
  }
}
