"""Parts of planners that say how many workers each pool needs: from sizes to role changes, one after the other. Pure.

Consumes a `ClusterView` and the sizes wanted; produces the next change. The number of workers is fixed, so a start of
one kind is a stop of the other. Workers that neither pool needs are not stopped: they keep their role and work on,
until the other pool needs them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite

from dopd.cluster import ClusterView, WorkerView
from dopd.policy.base import ForecastView, Plan, Role
from dopd.slo import Slo

GIVE_UP_S = 180.0
"""A change that is not there by then is given up: longer than the longest drain and start together."""
PREFILL_START_S, DECODE_START_S = 30.0, 45.0
"""The paper's: a prefill instance takes up to 30 s, a decode instance half as long again (algorithms.md 1.11)."""


def starts(
    cold: float = 0, prefill_start_s: float = PREFILL_START_S, decode_start_s: float = DECODE_START_S
) -> Mapping[Role, float]:
    """Seconds that a role takes to start, by role: none, unless changes are `cold`."""
    return {"prefill": prefill_start_s, "decode": decode_start_s} if cold else {}


def members(cluster: ClusterView, role: Role) -> list[WorkerView]:
    """Those that serve in this role."""
    return [worker for worker in cluster.workers if worker.serving and worker.role == role]


@dataclass(frozen=True, slots=True)
class Swaps:
    """Changes to be made in this order, each once the one before is read back; decided at `since_s`."""

    pending: tuple[tuple[str, Role], ...] = ()
    since_s: float = 0.0

    def left(self, cluster: ClusterView, now_s: float) -> "Swaps":
        """Without those that are done, or whose worker has gone; none when they take too long."""
        if not self.pending or now_s - self.since_s > GIVE_UP_S:
            return NOTHING
        known = {worker.worker_id: worker for worker in cluster.workers}
        pending = [(w, role) for w, role in self.pending if w in known and not _done(known[w], role)]
        return replace(self, pending=tuple(pending))

    @property
    def next(self) -> dict[str, Role]:
        """The one to be commanded now."""
        return dict(self.pending[:1])


NOTHING = Swaps()


def _done(worker: WorkerView, role: Role) -> bool:
    return worker.serving and worker.role == role


def swaps_to(cluster: ClusterView, prefill: int, decode: int, now_s: float) -> Swaps:
    """The fewest changes that give each pool what it needs, of workers with the least work.

    Nobody changes whom a person has pinned. `prefill` and `decode` are no more together than there are workers.
    """
    sides: tuple[tuple[Role, Role, int], ...] = (("decode", "prefill", prefill), ("prefill", "decode", decode))
    for old, new, size in sides:
        missing = size - len(members(cluster, new))
        if missing > 0:
            able = sorted((worker for worker in members(cluster, old) if not worker.pinned), key=_work)
            return Swaps(tuple((worker.worker_id, new) for worker in able[:missing]), now_s)
    return NOTHING


def _work(worker: WorkerView) -> tuple[int, int, str]:
    return worker.queued_prefill_tokens + worker.context_tokens, worker.running + worker.waiting, worker.worker_id


def clamp(prefill: int, decode: int, most: int, gpus: tuple[int, int] = (1, 1), least: int = 1) -> tuple[int, int]:
    """The released clamp to `most` GPUs (algorithms.md 1.7 step 7), an instance of each kind having `gpus`.

    It favours prefill, and may leave a GPU that a decode worker could have had.
    """
    while (total := prefill * gpus[0] + decode * gpus[1]) > most and (prefill, decode) != (least, least):
        prefill = max(least, int(prefill * most / total))
        decode = max(least, (most - prefill * gpus[0]) // gpus[1])
    return prefill, decode


# --- planners that size both pools in equal intervals -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sized:
    """What a sizing came to before the clamp, and the numbers that it came from, for the record."""

    prefill: int
    decode: int
    inputs: Mapping[str, float] = field(default_factory=dict)


FIRST = Plan({}, reason="first_interval", needs="an interval to look at")
Size = Callable[[ForecastView, ClusterView, Slo], Sized]


@dataclass(frozen=True, slots=True)
class Pace:
    """The state of `Intervals`: the changes under way, when to adjust next, when work was last seen, and what the last
    adjustment said, which holds until the next."""

    swaps: Swaps = NOTHING
    due_s: float | None = None
    seen_s: float | None = None
    said: Plan = FIRST


class Intervals:
    """A `Planner` that sizes both pools every `interval_s`, by the loop of the released planners (1.7, 1.14).

    While changes are under way it does nothing else: applying blocks. After `idle_s` without a request, and where the
    numbers allow no sizing, one worker of each kind is what is needed (1.7 step 8).
    """

    def __init__(self, size: Size, interval_s: float, idle_s: float) -> None:
        self._size, self._interval_s, self._idle_s = size, interval_s, idle_s

    def initial(self) -> Pace:
        return Pace()

    def plan(
        self, state: Pace, forecast: ForecastView | None, cluster: ClusterView, slo: Slo, now_s: float
    ) -> tuple[Pace, Plan]:
        due_s = now_s + self._interval_s if state.due_s is None else state.due_s
        seen_s = now_s if state.seen_s is None or _busy(cluster) else state.seen_s
        state = replace(state, swaps=state.swaps.left(cluster, now_s), due_s=due_s, seen_s=seen_s)
        if state.swaps.pending:
            return state, replace(state.said, roles=state.swaps.next, reason="changing")
        if now_s < due_s:
            return state, state.said
        said, sizes = self._adjusted(forecast, cluster, slo, now_s - seen_s)
        swaps = swaps_to(cluster, *sizes, now_s)
        return Pace(swaps, now_s + self._interval_s, seen_s, said), replace(said, roles=swaps.next)

    def _adjusted(
        self, forecast: ForecastView | None, cluster: ClusterView, slo: Slo, idle_s: float
    ) -> tuple[Plan, tuple[int, int]]:
        """What is to be said, and what each pool needs."""
        most = len(members(cluster, "prefill")) + len(members(cluster, "decode"))
        if most < 2:
            return Plan({}, reason="too_few_workers", needs="two workers that serve"), (0, 0)
        if forecast is None:
            return Plan({}, reason="no_forecast", needs="a forecast of the next interval"), (1, 1)
        if idle_s > self._idle_s:
            return Plan({}, reason="idle"), (1, 1)
        means = (forecast.requests_per_s, forecast.isl_tokens_mean, forecast.osl_tokens_mean)
        if not all(isfinite(mean) and mean > 0 for mean in means):
            return Plan({}, reason="no_load", needs="requests with prompts and answers"), (1, 1)
        sized = self._size(forecast, cluster, slo)
        prefill, decode = clamp(sized.prefill, sized.decode, most)
        inputs = {**sized.inputs, "n_prefill": float(prefill), "n_decode": float(decode)}
        return Plan({}, reason="sized", inputs=inputs), (prefill, decode)


def _busy(cluster: ClusterView) -> bool:
    in_hand = any(worker.running or worker.waiting for worker in cluster.workers)
    return in_hand or cluster.waiting_prefill_tokens > 0 or cluster.waiting_decodes > 0
