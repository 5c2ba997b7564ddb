"""The product's scheduling: deadlines, lengths, and prompts computed on decode workers where there is time.

Consumes views; produces placements (algorithms.md 1.10, 6.11 and 7). Prompts go in the order of their deadlines, such
that the fewest miss them; the others last, the cheapest first. A prefill worker is given work only shortly before it is
idle, so the order can change until then. A prompt is computed on the decode worker where that takes no longer than to
wait for a prefill worker and to move the KV, or where it would be late otherwise, as far as the steps there have time
to spare: `Paced` spends no more. Nothing relies on the length of the answer, which nobody knows.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from math import inf

from dopd.cluster import ClusterView
from dopd.perf.model import prefill_s
from dopd.policy.base import BudgetSpec, Dispatch, Ground, Policy, RequestView
from dopd.policy.deadlines import Job, split_late
from dopd.policy.pools import starts
from dopd.policy.ratio import RatioPlanner
from dopd.policy.seating import Round

IDLE_S = 0.02
"""A prefill worker with no more to do than this takes prompts that are late in any case."""
LATE_SHARE = 0.8
"""Of the TPOT target steps may take, and late prompts still be computed: their answers slow down the timely ones."""
PATIENCE = 10.0
"""So many times its TTFT target a late prompt waits before it has a claim."""


class LengthAware:
    """The state is the work, in seconds, that is owed to prompts which are late and have waited for long.

    At most `ahead_s` of work lie before a prompt in a prefill worker. At most `behind_s` a prompt takes on a decode
    worker, what lies before it included: answers that are handed over wait behind it. Of the TTFT target `margin_s`
    are kept for what is not predicted. `late_share` of the prefill work is for late prompts that have waited for long.
    Switches: `local` 0 computes no prompt on a decode worker, `late_last` 0 goes by deadlines alone.
    """

    def __init__(
        self,
        ground: Ground | None = None,
        ahead_s: float = 0.3,
        behind_s: float = 0.3,
        margin_s: float = 0.1,
        late_share: float = 0.02,
        local: float = 1,
        late_last: float = 1,
    ) -> None:
        ground = ground or Ground()
        self._profile, self._tpot_s = ground.profile, ground.slo.tpot_s
        self._ahead_s, self._behind_s, self._margin_s = ahead_s, behind_s if local else 0.0, margin_s
        self._late_share, self._late_last = late_share, bool(late_last)

    def initial(self) -> float:
        return 0.0

    def step(
        self, state: float, queue: Sequence[RequestView], cluster: ClusterView, now_s: float
    ) -> tuple[float, Sequence[Dispatch], float | None]:
        turn = Round(self._profile, self._tpot_s, queue, cluster)
        for request in queue:
            if request.kv_tokens and not turn.finish(request):
                break
        jobs = [self._job(request) for request in queue if not request.kv_tokens]
        if not jobs or not turn.open(self._ahead_s, self._behind_s):
            return state, turn.dispatches, None
        timely, late = self._in_order(jobs, turn, now_s)
        again_s, owed_s = inf, state - self._claimed_s(state, late, turn, now_s)
        for job in timely:
            latest_s = job.due_s - job.work_s - self._ahead_s
            if turn.slow(job.request):  # so would its answer be, and those that it joins: it waits, and is late then
                again_s = min(again_s, latest_s) if now_s < latest_s else again_s
            elif turn.ultra_short(job) and turn.local(job, self._within_s(job, turn, now_s)):
                continue
            elif turn.remote(job, self._ahead_s):
                owed_s += self._late_share * job.work_s
        for job in late:
            if turn.slow(job.request, LATE_SHARE):
                break
            if not turn.local(job, self._within_s(job, turn, now_s)):
                turn.remote(job, IDLE_S)
        owed_s = min(owed_s, max((job.work_s for job in late), default=0.0))
        return owed_s, turn.dispatches, None if again_s == inf else again_s

    def _job(self, request: RequestView) -> Job:
        """The prompt, due when its last step must have ended."""
        due_s = request.arrived_s + request.slo.ttft_s - self._margin_s - self._profile.arrival_s
        return Job(request, prefill_s(self._profile, request.uncached_tokens), due_s)

    def _within_s(self, job: Job, turn: Round, now_s: float) -> float:
        """How long it may take on a decode worker: for its own sake, and for the answers behind it."""
        return min(self._behind_s, turn.patience_s(job.request) / 2, job.due_s - now_s)

    def _in_order(self, jobs: Sequence[Job], turn: Round, now_s: float) -> tuple[list[Job], list[Job]]:
        """Those that can be in time, and the others."""
        if not self._late_last:
            return sorted(jobs, key=lambda job: (-job.request.priority, job.due_s)), []
        busy_s = sum(seat.prompt_s for seat in turn.prefill) / max(1, len(turn.prefill))
        timely, late = split_late(jobs, now_s, busy_s, len(turn.prefill))
        timely.sort(key=lambda job: -job.request.priority)
        late.sort(key=lambda job: (-job.request.priority, job.work_s, job.request.arrived_s))
        return timely, late

    def _claimed_s(self, owed_s: float, late: list[Job], turn: Round, now_s: float) -> float:
        """Binds the late prompt that has waited longest, once as much work is owed. Takes it out of `late`."""
        oldest = min(late, key=lambda job: job.request.arrived_s, default=None)
        if oldest is None or now_s - oldest.request.arrived_s < PATIENCE * oldest.request.slo.ttft_s:
            return 0.0
        if owed_s < oldest.work_s or not turn.remote(oldest, self._ahead_s):
            return 0.0
        late.remove(oldest)
        return oldest.work_s


_NAME = re.compile(r"dopd-([1-9]\d*)p([1-9]\d*)d")


def named_fixed(name: str) -> tuple[int, int] | None:
    """(prefill, decode) workers of `dopd-5p3d`; None for any other name."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def fixed_split(prefill: int, decode: int) -> Policy:
    """`dopd` without its planner: how much is the scheduling's merit, and how much that of moving roles."""
    return replace(DOPD, name=f"dopd-{prefill}p{decode}d", planner=None, split=(prefill, decode))


DOPD = Policy(
    name="dopd",
    scheduler=LengthAware,
    budget=BudgetSpec("dopd.policy.paced:Paced", prefills_only=True),
    planner=RatioPlanner,
    starts=starts,
)
