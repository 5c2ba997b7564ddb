"""A limit that no policy can pass on a schedule: GPU time that the requests need at least, against what there is.

Consumes a setting and a schedule; produces a `Bound`. Pure. Any engine may do any part of any request at any time, so
splits, moving ratios, aggregation and cuts inside a prompt are all below it. What it takes for granted:

- A good request has its first token by its due time plus the TTFT target, and its last OSL - 1 times the TPOT target
  after that. No work on it is done before it is due.
- Work takes at least the variable costs of the profile, and the fixed cost of a step shared out over as much as a step
  can hold: `max_step_tokens` of prompts; for decodes `max_running` requests, or the whole KV memory as context (where
  no prompts share memory). In a mixed step the larger fixed cost is paid once. Which cost is counted on which part does
  not matter to the truth of the limit, so several ways are tried and the sharpest counts.
- A block of a prompt that another prompt has computed is free; moving KV, routing and waiting are, too, and so is one
  token of each request: an engine that is handed a request makes its first one from the end of the input.
- In any stretch of time, `workers` engines have `workers` seconds a second. So of the requests that are due in
  [s, t], those that are good have done by t' > t what cannot be done later: prefill if t' is behind its deadline, and
  all decode steps but those that fit, at the shortest step there is, between t' and the request's end. As many as fit
  into `workers * (t' - s)`, the cheapest first, can be good. Misses of disjoint stretches add up; the stretches are
  chosen by dynamic programming, from a second or two (where a burst has nothing but the slack of its first tokens) to
  the whole schedule.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dopd.perf.profile import Profile, named
from dopd.slo import Slo
from dopd_loadgen.compare.ground import slo_of, window_of
from dopd_loadgen.compare.model import Setting
from dopd_loadgen.model import Planned

Floats = NDArray[np.float64]
STRETCHES = 512
"""Ends of stretches lie on a grid of so many steps, so that long schedules cost no more than short ones."""
_AFTER_S = (0.0, 5.0, 20.0, 80.0, 320.0)
"""How long behind the last TTFT deadline of a stretch its work is added up."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The limits, and in words what they rest on. `prefill_share` is the part of the GPUs' time that prompts need."""

    goodput_rps: float
    goodput_tps: float
    attainment: float
    prefill_share: float
    why: str


@dataclass(frozen=True, slots=True)
class Costs:
    """Least GPU seconds by token of prompt, token squared, decoded token, and token of context it looks at."""

    token_s: float
    token2_s: float
    decode_s: float
    context_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """One entry per measured request, by due time. `square` is of the tokens to compute, as `step_s` counts it.

    `alone_tokens` and `alone_square` are what is left when every block that any other prompt has is free.
    """

    due_s: Floats
    tokens: Floats
    square: Floats
    alone_tokens: Floats
    alone_square: Floats
    isl: Floats
    osl: Floats


def bound(setting: Setting, schedule: Sequence[Planned], span_s: float) -> Bound:
    """The limits on requests that are due in the measured window, as the figures count them."""
    start_s, end_s = window_of(setting, span_s)
    work = work_of(schedule, start_s, end_s)
    profile, slo = named(setting.config.engine.profile), slo_of(setting)
    count = len(work.due_s)
    if not count:
        return Bound(0.0, 0.0, 1.0, 0.0, "no request is due in the measured window")
    possible = _possible(profile, slo, work)
    shared = any(one.blocks for one in schedule)
    lost = {"requests": 0.0, "tokens": 0.0}
    for costs in ways(profile, shared):
        for what, worth in (("requests", np.ones(count)), ("tokens", work.osl)):
            lost[what] = max(lost[what], _lost(setting.workers, profile, slo, work, costs, worth * possible))
    good = float(possible.sum()) - lost["requests"]
    good_tokens = float((work.osl * possible).sum()) - lost["tokens"]
    rated_s = end_s - start_s
    share = _prefill_share(work, ways(profile, shared)[-1])
    out_of_reach = count - int(possible.sum())
    why = (
        f"{setting.workers} engines without idle time, full batches, any engine doing anything; "
        f"{out_of_reach} of {count} requests cannot be good even alone, {lost['requests']:.0f} more do not fit; "
        f"prompts need {share:.0%} of the GPU time"
    )
    per_s = 1 / rated_s if rated_s > 0 else 0.0
    return Bound(good * per_s, good_tokens * per_s, good / count, share, why)


# --- what a request needs --------------------------------------------------------------------------------------------


def work_of(schedule: Sequence[Planned], start_s: float, end_s: float) -> Work:
    """The measured requests' work. A block counts where it comes first, whether that request is measured or not."""
    ordered = sorted(schedule, key=lambda one: one.at_s)
    uses: dict[int, int] = {}
    for block in itertools.chain.from_iterable(set(one.blocks) for one in ordered):
        uses[block] = uses.get(block, 0) + 1
    seen: set[int] = set()
    rows: list[tuple[float, ...]] = []
    for one in ordered:
        first = _cost(one, [block not in seen for block in one.blocks])
        alone = _cost(one, [uses[block] == 1 for block in one.blocks])
        seen.update(one.blocks)
        if start_s <= one.at_s <= end_s:
            rows.append((one.at_s, *first, *alone, one.isl_tokens, one.osl_tokens))
    columns = np.array(rows, float).reshape(len(rows), 7).T
    return Work(*columns)


def _cost(one: Planned, counted: Sequence[bool]) -> tuple[float, float]:
    """Tokens to compute and their square, from the blocks that count and what follows the blocks."""
    tokens = square = 0
    ends = [min(one.isl_tokens, (place + 1) * one.block_tokens) for place in range(len(counted))]
    parts = zip([0, *ends], [*ends, one.isl_tokens], [*counted, True], strict=True)
    for begin, end, counts in parts:
        if counts and end > begin:
            tokens, square = tokens + end - begin, square + end * end - begin * begin
    return tokens, square


def ways(profile: Profile, shared: bool) -> list[Costs]:
    """Ways to share out the fixed costs, each of them below any step that an engine can make.

    With `shared` prompts the contexts of a step may add up to more than the KV memory.
    """
    p = profile
    most = p.max_running
    regimes = [(p.decode_fixed_s, p.decode_request_s, p.decode_context_s, most)]
    if p.large_batch_requests:
        regimes[0] = (*regimes[0][:3], min(most, p.large_batch_requests - 1))
        regimes.append((p.large_fixed_s, p.large_request_s, p.large_context_s, most))

    def made(prefill: float, by_request: float, by_context: float) -> Costs:
        return Costs(
            p.prefill_token_s + prefill * p.prefill_fixed_s / p.max_step_tokens,
            p.prefill_token2_s,
            min(request_s + by_request * fixed_s / max(1, held) for fixed_s, request_s, _, held in regimes),
            min(context_s + by_context * fixed_s / p.kv_total_tokens for fixed_s, _, context_s, _ in regimes),
        )

    # Both phases share a mixed step's fixed cost, the larger of the two: what one has taken, the other has not.
    least_s, largest_s = min(regime[0] for regime in regimes), max(regime[0] for regime in regimes)
    decode_left = max(0.0, 1 - p.prefill_fixed_s / least_s) if least_s else 0.0
    prefill_left = max(0.0, 1 - largest_s / p.prefill_fixed_s) if p.prefill_fixed_s else 0.0
    by_request = [made(1.0, decode_left, 0.0), made(prefill_left, 1.0, 0.0)]
    return by_request if shared else [made(1.0, 0.0, decode_left), made(prefill_left, 0.0, 1.0), *by_request]


def _decode_s(costs: Costs, isl: Floats, steps: Floats) -> Floats:
    """Of the first so many decode steps."""
    return costs.decode_s * steps + costs.context_s * steps * (isl + (steps + 1) / 2)


def _steps(work: Work) -> Floats:
    """Decode steps per request: the first token is the prefill's, one more comes from the end of a long input."""
    return np.maximum(0.0, work.osl - 2)


def _prefill_s(costs: Costs, tokens: Floats, square: Floats) -> Floats:
    return costs.token_s * tokens + costs.token2_s * square


def _prefill_share(work: Work, costs: Costs) -> float:
    prefill = float(_prefill_s(costs, work.tokens, work.square).sum())
    decode = float(_decode_s(costs, work.isl, _steps(work)).sum())
    return prefill / (prefill + decode) if prefill + decode else 0.0


def _possible(profile: Profile, slo: Slo, work: Work) -> Floats:
    """1 for each request that an idle engine of its own can serve in time, with all shared blocks cached; else 0."""
    costs = Costs(profile.prefill_token_s, profile.prefill_token2_s, profile.decode_request_s, profile.decode_context_s)
    steps = np.ceil(work.alone_tokens / profile.max_step_tokens)
    first_s = profile.prefill_fixed_s * steps + _prefill_s(costs, work.alone_tokens, work.alone_square)
    decode_s = _shortest_step_s(profile, work.isl) * (work.osl - 1)
    fits = work.isl + work.osl <= min(profile.max_model_len, profile.kv_total_tokens)
    in_time = (first_s <= slo.ttft_s) & (decode_s <= slo.tpot_s * (work.osl - 1))
    return np.where(in_time & fits, 1.0, 0.0)


def _shortest_step_s(profile: Profile, isl: Floats) -> Floats:
    """A decode step of this request alone. A large batch may have a smaller fixed cost, but has it for many."""
    p = profile
    step_s = p.decode_fixed_s + p.decode_request_s + p.decode_context_s * isl
    if not p.large_batch_requests:
        return step_s
    large_s = p.large_fixed_s + p.large_request_s * p.large_batch_requests + p.large_context_s * isl
    return np.minimum(step_s, large_s)


# --- what does not fit -----------------------------------------------------------------------------------------------


def _lost(workers: int, profile: Profile, slo: Slo, work: Work, costs: Costs, worth: Floats) -> float:
    """The worth of requests that cannot be good, over the disjoint stretches that show the most of it."""
    first_s, last_s = work.due_s[0], work.due_s[-1]
    grid = np.linspace(first_s, np.nextafter(last_s, np.inf), max(2, min(STRETCHES, int(last_s - first_s) + 1)))
    edges = np.searchsorted(work.due_s, grid)
    edges[-1] = len(work.due_s)
    ends_s = work.due_s + slo.ttft_s + slo.tpot_s * (work.osl - 1)
    prefill_s = _prefill_s(costs, work.tokens, work.square)
    steps, shortest_s = _steps(work), _shortest_step_s(profile, work.isl)

    def shown(begin: int, end: int) -> float:
        span = slice(int(edges[begin]), int(edges[end]))
        if span.stop == span.start:
            return 0.0
        most = 0.0
        for after_s in _AFTER_S:
            by_s = work.due_s[span.stop - 1] + slo.ttft_s + after_s
            later = np.maximum(0.0, (ends_s[span] - by_s) / shortest_s[span])
            by_then = np.maximum(0.0, steps[span] - later)
            need_s = prefill_s[span] + _decode_s(costs, work.isl[span], by_then)
            most = max(most, _unfit(need_s, worth[span], workers * (by_s - work.due_s[span.start])))
        return most

    best = np.zeros(len(grid))
    for end, begins in enumerate(_stretches(len(grid) - 1)):
        best[end] = max([best[max(0, end - 1)], *(best[begin] + shown(begin, end) for begin in begins)])
    return float(best[-1])


def _stretches(last: int) -> list[list[int]]:
    """For each end in 0 .. `last` the beginnings of stretches: lengths are powers of two, four to a length."""
    begins: list[list[int]] = [[] for _ in range(last + 1)]
    length = 1
    while length < 2 * last:
        for begin in range(0, last, max(1, length // 4)):
            begins[min(begin + length, last)].append(begin)
        length *= 2
    return begins


def _unfit(need_s: Floats, worth: Floats, have_s: float) -> float:
    """The worth of what is left over when as much worth as can be is fitted in: a knapsack whose last piece is cut."""
    total = float(need_s[worth > 0].sum())
    if total <= have_s:
        return 0.0
    wanted = worth > 0
    order = np.argsort(need_s[wanted] / worth[wanted], kind="stable")
    needs, worths = np.cumsum(need_s[wanted][order]), worth[wanted][order]
    whole = int(np.searchsorted(needs, have_s, side="right"))
    before = needs[whole - 1] if whole else 0.0
    cut = (have_s - before) / (needs[whole] - before) * worths[whole]
    return float(worths.sum() - worths[:whole].sum() - cut)
