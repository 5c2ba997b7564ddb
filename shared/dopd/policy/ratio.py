"""The planner of `dopd`: the split of prefill and decode workers that serves most of what is expected and what waits.

Consumes a forecast and the cluster; produces a `Plan` (algorithms.md 1.13, 1.14 and 7). What is wanted of the workers
says `demand`; every split of them is judged (`capacity`); a change must be worth what it costs. A plan gives roles
anew, so it neither adds a worker nor takes one away. Whatever it decides, also nothing, it says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from dopd.cluster import ClusterView
from dopd.policy.base import Alternative, ForecastView, Ground, Plan
from dopd.policy.capacity import Splits
from dopd.policy.demand import Wanted, busy_of
from dopd.policy.split import Pools, flips
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
KEPT = 5
"""Alternatives in a plan."""


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
        self._quantile, self._enough, self._alarm = quantile, enough, alarm
        self._confirmations, self._cooldown_s, self._local = int(confirmations), cooldown_s, bool(local)
        self._wanted = Wanted(self._profile, clear_s, bool(forecast), bool(variance))

    def initial(self) -> State:
        return State()

    def plan(
        self, state: State, forecast: ForecastView | None, cluster: ClusterView, slo: Slo, now_s: float
    ) -> tuple[State, Plan]:
        """The roles to change now; none, with the reason, where that is best."""
        serving = [w for w in cluster.workers if w.serving]
        pools = Pools.of(serving)
        splits = pools.splits()
        if len(serving) < 2 or not all(pools.split):
            return state, Plan({}, reason="too_few_workers", needs="a serving worker in each pool")
        if splits == [pools.split]:
            return state, Plan({}, reason="no_choice", needs="a third worker, or one that is not pinned")
        blind, needs = self._wanted.blind(forecast, now_s)
        seen = None if blind else forecast
        busy = busy_of(state.busy, state.seen_s, pools, now_s)
        state = replace(state, correction=self._wanted.corrected(state.correction, pools), busy=busy, seen_s=now_s)
        wanted = partial(self._wanted.demand, seen, pools, cluster, slo, state.correction, busy)
        demand, decoder, inputs = wanted(self._quantile)
        inputs["quantile"] = self._quantile
        if not demand.prefill_work and not demand.tokens_per_s:
            return state, Plan({}, reason=blind or "no_demand", needs=needs or "requests", inputs=inputs)
        reserve = Splits(self._profile, slo, demand, decoder, self._local)
        likely = [
            Splits(self._profile, slo, wanted(level)[0], decoder, self._local)
            for level in (LEVELS if seen is not None else ())
        ]
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
        if pool != state.grown and now_s - state.changed_s < REGRET_S:
            cost += REGRET
        gain = self._worth(best) - self._worth(now)
        if not moved or gain <= cost:
            fine = now.attainment >= FINE and now.headroom >= self._enough
            told = "best_split" if not moved else "headroom_fine" if fine else "gain_below_cost"
            return replace(state, wanted="", times=0), blind or told
        if blind and not alarm:
            return replace(state, wanted="", times=0), blind
        if pool != state.grown and now_s - state.changed_s < self._cooldown_s:
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


def _expected_of(reserve: Splits, likely: Sequence[Splits], split: tuple[int, int]) -> Alternative:
    """The split with its mean attainment, and its headroom at the quantile."""
    one = reserve.judged(*split)
    if not likely:
        return one
    return replace(one, attainment=sum(each.judged(*split).attainment for each in likely) / len(likely))


def _cost(now: Alternative, then: Alternative) -> float:
    """Of the attainment until the next change, what the changes between two splits take."""
    return FLIP_S / HOLD_S * abs(then.prefill - now.prefill) / (now.prefill + now.decode)


def _binding(chosen: Alternative, splits: Sequence[tuple[int, int]], enough: float) -> str:
    """What limits the chosen split: `minimum` where the other pool has no worker left to give."""
    others = [prefill for prefill, _ in splits]
    last = chosen.prefill == (max(others) if chosen.binding == "prefill" else min(others))
    return "minimum" if last and chosen.headroom < enough else chosen.binding
