"""The planner of `dopd`: the split of prefill and decode workers that serves most of what is expected and what waits.

Consumes a forecast and the cluster; produces a `Plan` (algorithms.md 1.5 in rate form, 1.13, 1.14 and 7). Every split
of the workers there are is judged (`capacity`); a change must be worth what it costs. A plan gives roles anew, so it
neither adds a worker nor takes one away. Whatever it decides, also nothing, it says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, inf, isfinite
from statistics import median

from dopd.cluster import ClusterView, WorkerView
from dopd.perf.model import step_s
from dopd.policy.base import Alternative, ForecastView, Ground, Plan, Role
from dopd.policy.capacity import Decoder, Demand, Prompts, Splits, prompts_of
from dopd.slo import Slo

FINE = 0.99
"""Of requests within their targets: less is a shortage, which is mended at once."""
HEADROOM_WORTH = 0.25
"""What headroom counts beside attainment, as far as there is too little of it."""
FLIP_S, HOLD_S = 2.0, 30.0
"""A role change costs a worker's work for so long, and its gain lasts for so long."""
REGRET, REGRET_S = 0.1, 60.0
"""So much more a change must be worth that undoes the last one within so long: forecasts waver."""
CLEAR = 0.03
"""Where a change mends so much of a lack, nobody waits for a second forecast."""
LEVELS = (1 / 6, 1 / 2, 5 / 6)
"""Attainment is expected over what the forecast holds possible: the mean over these quantiles."""
BUSY_S, IDLE_S, SURPRISE = 5.0, 0.1, 1.4
"""Where prefill workers have less than 0.1 s of prompts waiting, no more than 1.4 times the work comes that has kept
them busy in the last seconds, whatever the forecast says: a forecast is slow to see that prompts are over."""
KEPT = 5
"""Alternatives in a plan."""
BAND = 0.15
"""Steps that differ less than this from the profile say nothing."""


@dataclass(frozen=True, slots=True)
class State:
    """`grown` is the pool that the last change, at `changed_s`, has made larger. `round` is the forecast that was
    looked at last, `wanted` the pool that it wanted larger, `times` in so many forecasts running. `correction`: D20.
    `busy` prefill workers of late, as of `seen_s`."""

    changed_s: float = -inf
    grown: str = ""
    round: float = -inf
    wanted: str = ""
    times: int = 0
    correction: float = 1.0
    busy: float = 0.0
    seen_s: float = -inf


@dataclass(frozen=True, slots=True)
class Pools:
    """The workers that serve, by role. `mixed` ones count as decode workers: they take prompts as well."""

    prefill: tuple[WorkerView, ...]
    decode: tuple[WorkerView, ...]

    @property
    def split(self) -> tuple[int, int]:
        return len(self.prefill), len(self.decode)

    def splits(self) -> list[tuple[int, int]]:
        """All that can be had, with a worker in each pool, leaving alone whom a person has pinned."""
        least, most = sum(w.pinned for w in self.prefill), sum(self.split) - sum(w.pinned for w in self.decode)
        return [(n, sum(self.split) - n) for n in range(max(1, least), min(sum(self.split) - 1, most) + 1)]


class RatioPlanner:
    """Attainment is expected over the forecast; headroom is kept at its `quantile`: 0.9 where a lack costs nine times
    what a surplus does.

    Prompts that wait should be done within `clear_s`. More than `alarm` of that target waiting per
    prefill worker is an emergency. A pool whose lack is predicted grows at once; without a lack a better split must be
    wanted by `confirmations` forecasts, and is if the present one has less than `enough` headroom. For `cooldown_s`
    a pool that has grown does not shrink. Switches: `forecast`, `variance` and `local` 0 go without the forecast, the
    variance of prompt lengths, and the time that decode workers have for prompts.
    """

    def __init__(
        self,
        ground: Ground | None = None,
        quantile: float = 0.9,
        enough: float = 0.25,
        alarm: float = 0.5,
        clear_s: float = 5.0,
        confirmations: float = 2,
        cooldown_s: float = 10.0,
        forecast: float = 1,
        variance: float = 1,
        local: float = 1,
    ) -> None:
        self._profile = (ground or Ground()).profile
        self._quantile, self._enough, self._alarm, self._clear_s = quantile, enough, alarm, clear_s
        self._confirmations, self._cooldown_s = int(confirmations), cooldown_s
        self._forecast, self._variance, self._local = bool(forecast), bool(variance), bool(local)
        # In a full step of prompts the fixed cost is a tenth of the rest (1.10).
        self._batch_tokens = 10 * self._profile.prefill_fixed_s / max(1e-9, self._profile.prefill_token_s)

    def initial(self) -> State:
        return State()

    def plan(
        self, state: State, forecast: ForecastView | None, cluster: ClusterView, slo: Slo, now_s: float
    ) -> tuple[State, Plan]:
        """The roles to change now; none, with the reason, where that is best."""
        serving = [w for w in cluster.workers if w.serving]
        pools = Pools(
            tuple(w for w in serving if w.role == "prefill"), tuple(w for w in serving if w.role != "prefill")
        )
        splits = pools.splits()
        if len(serving) < 2 or not all(pools.split):
            return state, Plan({}, reason="too_few_workers", needs="a serving worker in each pool")
        if splits == [pools.split]:
            return state, Plan({}, reason="no_choice", needs="a third worker, or one that is not pinned")
        blind, needs = self._blind(forecast, now_s)
        seen = None if blind else forecast
        state = replace(
            state, correction=self._corrected(state.correction, pools), busy=_busy(state, pools, now_s), seen_s=now_s
        )
        demand, decoder, inputs = self._demand(seen, pools, cluster, slo, state, self._quantile)
        if not demand.prefill_work and not demand.tokens_per_s:
            return state, Plan({}, reason=blind or "no_demand", needs=needs or "requests", inputs=inputs)
        reserve = Splits(self._profile, slo, demand, decoder, self._local)
        likely = [
            Splits(self._profile, slo, self._demand(seen, pools, cluster, slo, state, level)[0], decoder,
                   self._local)
            for level in (LEVELS if seen is not None else ())
        ]  # fmt: skip
        judged = {split: _expected_of(reserve, likely, split) for split in {*splits, pools.split}}
        now = judged[pools.split]
        if blind:  # step by step, since nobody knows how far to go (1.13)
            judged = {split: one for split, one in judged.items() if abs(split[0] - now.prefill) <= 1}
        best = max(judged.values(), key=lambda one: (self._worth(one) - _cost(now, one), one.headroom, one.prefill))
        full = "prefill" if best.prefill > now.prefill else "decode"
        limit = self._alarm * slo.ttft_s * now.prefill if full == "prefill" else now.decode
        alarm = inputs["backlog_s" if full == "prefill" else "decode_backlog"] > limit
        if now_s - state.changed_s < slo.ttft_s:
            reason = "settling"
        else:
            state, reason = self._judge(state, now, best, alarm, blind, forecast, now_s)
        changes = reason.startswith(("grow", "emergency", "rebalance"))
        chosen = best if changes else now
        roles = flips(pools, best.prefill - now.prefill) if changes else {}
        order = sorted(
            judged.values(), key=lambda one: (_cost(now, one) - self._worth(one), -one.headroom, one.prefill)
        )
        return state, Plan(
            roles=roles,
            reason=reason,
            needs=needs,
            binding=_binding(chosen, splits, self._enough),
            inputs={**inputs, "worth_now": self._worth(now), "worth_best": self._worth(best)},
            alternatives=tuple(dict.fromkeys([chosen, now, *order[:KEPT]])),
        )

    # --- whether to change --------------------------------------------------------------------------------------

    def _worth(self, one: Alternative) -> float:
        return one.attainment + HEADROOM_WORTH * max(-1.0, min(one.headroom, self._enough))

    def _judge(
        self,
        state: State,
        now: Alternative,
        best: Alternative,
        alarm: bool,
        blind: str,
        forecast: ForecastView | None,
        now_s: float,
    ) -> tuple[State, str]:
        """The reason; it begins with grow, emergency or rebalance where the roles change."""
        moved = abs(best.prefill - now.prefill)
        pool = "prefill" if best.prefill > now.prefill else "decode"
        cost = _cost(now, best)
        if pool != state.grown and not alarm and now_s - state.changed_s < REGRET_S:
            cost += REGRET
        gain = self._worth(best) - self._worth(now)
        if not moved or gain <= cost:
            fine = now.attainment >= FINE and now.headroom >= self._enough
            told = "best_split" if not moved else "headroom_fine" if fine else "gain_below_cost"
            return replace(state, wanted="", times=0), blind or told
        if blind and not alarm:
            return replace(state, wanted="", times=0), blind
        if not alarm and pool != state.grown and now_s - state.changed_s < self._cooldown_s:
            return state, "cooldown"
        if alarm or (now.attainment < FINE and gain > cost + CLEAR):
            return replace(state, changed_s=now_s, grown=pool, wanted="", times=0), (
                f"{'emergency' if alarm else 'grow'}_{pool}"
            )
        turn = forecast.start_s if forecast is not None else now_s
        if turn != state.round:
            times = state.times + 1 if pool == state.wanted else 1
            state = replace(state, round=turn, wanted=pool, times=times)
        if state.times < self._confirmations:
            return state, "awaiting_confirmation"
        return replace(state, changed_s=now_s, grown=pool, wanted="", times=0), f"rebalance_{pool}"

    # --- what is wanted -----------------------------------------------------------------------------------------

    def _blind(self, forecast: ForecastView | None, now_s: float) -> tuple[str, str]:
        """Why the forecast is not used, and what it lacks; ("", "") when it is."""
        if not self._forecast:
            return "forecast_off", ""
        if forecast is None:
            return "no_forecast", "a forecast; is the forecaster running?"
        if forecast.horizon_s and now_s > forecast.start_s + 2 * forecast.horizon_s:
            return "forecast_stale", "a newer forecast; is the forecaster running?"
        lengths = (forecast.isl_tokens_mean, forecast.osl_tokens_mean, forecast.requests_per_s)
        if not all(isfinite(one) and one >= 0 for one in lengths):
            return "forecast_unknown", "requests that show how long prompts and answers are"
        return "", ""

    def _demand(
        self,
        forecast: ForecastView | None,
        pools: Pools,
        cluster: ClusterView,
        slo: Slo,
        state: State,
        level: float,
    ) -> tuple[Demand, Decoder, dict[str, float]]:
        """From the forecast and from what waits; without a forecast from what is being done."""
        prompts, work, tokens_per_s = self._expected(forecast, level)
        decoding = sum(w.decoding for w in pools.decode)
        seen_tokens = sum(w.context_tokens for w in pools.decode) / decoding if decoding else 0.0
        context = seen_tokens or (prompts.isl_tokens + (forecast.osl_tokens_mean / 2 if forecast else 0.0)) or 1.0
        kv_tokens = min((w.kv_total_tokens for w in pools.decode if w.kv_total_tokens), default=0)
        decoder = Decoder(self._profile, slo.tpot_s, context, kv_tokens, state.correction)
        workers = sum(pools.split)
        waiting = cluster.waiting_prefill_tokens + sum(w.queued_prefill_tokens for w in (*pools.prefill, *pools.decode))
        backlog_s = waiting * prompts.token_s
        if forecast is None:
            work = state.busy
        elif any(w.decoding for w in pools.decode) and backlog_s < IDLE_S * len(pools.prefill):
            work = min(work, SURPRISE * state.busy + 0.5)
        if forecast is None or _lengths_unknown(forecast):
            tokens_per_s = sum(w.decoding / decoder.step_s(w.decoding) for w in pools.decode if w.decoding)
        made = sum(w.decoding / w.step_s for w in pools.decode if w.step_s)
        unplaced = cluster.waiting_decodes + sum(w.waiting for w in pools.decode if not w.queued_prefill_tokens)
        unplaced += sum(max(0, w.decoding - decoder.bound) for w in pools.decode)
        demand = Demand(
            prefill_work=work + min(backlog_s / self._clear_s, workers),
            tokens_per_s=max(tokens_per_s, made) + min(2 * unplaced / slo.tpot_s, workers * decoder.tokens_per_s),
            context_tokens=context,
            prompts=prompts,
        )
        return demand, decoder, {
            "requests_per_s": forecast.requests_per_s if forecast else 0.0,
            "isl_tokens": prompts.isl_tokens,
            "osl_tokens": forecast.osl_tokens_mean if forecast else 0.0,
            "prefill_work": work,
            "tokens_per_s": tokens_per_s,
            "backlog_s": backlog_s,
            "decode_backlog": unplaced,
            "context_tokens": context,
            "most_requests": decoder.bound,
            "worker_tokens_per_s": decoder.tokens_per_s,
            "correction": state.correction,
            "busy_prefill": state.busy,
            "quantile": self._quantile,
        }  # fmt: skip

    def _expected(self, forecast: ForecastView | None, level: float) -> tuple[Prompts, float, float]:
        """Prompts, prefill work and output tokens per second at this quantile."""
        if forecast is None:
            return prompts_of(self._profile, self._batch_tokens, 0.0, self._batch_tokens), 0.0, 0.0
        isl_var = forecast.isl_tokens_var if self._variance else 0.0
        prompts = prompts_of(self._profile, forecast.isl_tokens_mean, isl_var, self._batch_tokens)
        work = forecast.requests_per_s * prompts.batched_s * _over("prefill_work", forecast, level)
        tokens_per_s = forecast.requests_per_s * forecast.osl_tokens_mean * _over("decode_work", forecast, level)
        return prompts, work, tokens_per_s

    def _corrected(self, before: float, pools: Pools) -> float:
        """Observed over predicted decode step (D20), within a half and twice, followed slowly."""
        ratios = [
            w.step_s / step_s(self._profile, 0, 0, w.decoding, w.context_tokens)
            for w in pools.decode
            if w.step_s and w.decoding and not w.queued_prefill_tokens
        ]
        if not ratios:
            return before
        observed = min(2.0, max(0.5, median(ratios)))
        return 0.9 * before + 0.1 * (observed if abs(observed - 1) > BAND else 1.0)


def _lengths_unknown(forecast: ForecastView) -> bool:
    """No answer has ended: what is known of their length is the limit that was asked for."""
    answers = forecast.series.get("osl_tokens_mean")
    return answers is not None and answers.reason == "osl_from_limit"


def _over(name: str, forecast: ForecastView, level: float) -> float:
    """The quantile of this series over its mean; that of the requests where the series is not told."""
    series = forecast.series.get(name) or forecast.series.get("requests_per_s")
    if series is None or not series.point > 0:
        return 1.0
    over = series.at(level) / series.point
    return over if isfinite(over) else 1.0


def _expected_of(reserve: Splits, likely: Sequence[Splits], split: tuple[int, int]) -> Alternative:
    """The split with its mean attainment, and its headroom at the quantile."""
    one = reserve.judged(*split)
    if not likely:
        return one
    return replace(one, attainment=sum(each.judged(*split).attainment for each in likely) / len(likely))


def _busy(state: State, pools: Pools, now_s: float) -> float:
    """Prefill workers at work, as a mean that fades."""
    seen = float(sum(1 for w in pools.prefill if w.running or w.waiting or w.queued_prefill_tokens))
    kept = exp(-(now_s - state.seen_s) / BUSY_S) if now_s >= state.seen_s else 0.0
    return kept * state.busy + (1 - kept) * seen


def _cost(now: Alternative, then: Alternative) -> float:
    """Of the attainment until the next change, what the changes between two splits take."""
    return FLIP_S / HOLD_S * abs(then.prefill - now.prefill) / (now.prefill + now.decode)


def flips(pools: Pools, more_prefill: int) -> dict[str, Role]:
    """New roles for the workers with the least work of their old one; those that still drain last."""
    if more_prefill > 0:
        return {w.worker_id: "prefill" for w in _idlest(pools.decode)[:more_prefill]}
    return {w.worker_id: "decode" for w in _idlest(pools.prefill)[:-more_prefill]}


def _idlest(workers: Sequence[WorkerView]) -> list[WorkerView]:
    free = [w for w in workers if not w.pinned]
    return sorted(
        free,
        key=lambda w: (not w.drained, w.queued_prefill_tokens, w.context_tokens, w.running + w.waiting, w.worker_id),
    )


def _binding(chosen: Alternative, splits: Sequence[tuple[int, int]], enough: float) -> str:
    """What limits the chosen split: `minimum` where the other pool has no worker left to give."""
    others = [prefill for prefill, _ in splits]
    last = chosen.prefill == (max(others) if chosen.binding == "prefill" else min(others))
    return "minimum" if last and chosen.headroom < enough else chosen.binding
