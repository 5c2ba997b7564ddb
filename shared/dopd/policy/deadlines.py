"""Which of the waiting jobs to do in time, so that the fewest are late (Moore and Hodgson, Management Science 1968).

Consumes jobs with a due time and a length; produces those that can be in time, by due time, and the late ones. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from dopd.policy.base import RequestView


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt to compute: `work_s` on one worker, its result due at `due_s`."""

    request: RequestView
    work_s: float
    due_s: float


def split_late(jobs: Sequence[Job], now_s: float, busy_s: float, workers: int) -> tuple[list[Job], list[Job]]:
    """(in time, late): the first by due time; no choice has fewer late ones on one worker. O(n log n).

    Each worker has `busy_s` of work ahead of these jobs. List scheduling ends a job on several workers no later than
    all work before it, spread evenly, and then its own (Graham 1969): so they count as one worker, so many times as
    fast, on which a job is due (1 - 1/workers) of its own length sooner. With one worker that is exact.
    The lowest priority is late first, of equal ones the longest.
    """
    if not workers:
        return [], list(jobs)
    alone = 1 - 1 / workers
    due = sorted([(job.due_s - alone * job.work_s, place, job) for place, job in enumerate(jobs)])
    late: list[Job] = []
    chosen: list[tuple[int, float, int]] = []
    end_s = now_s + busy_s
    for order, (due_s, _, job) in enumerate(due):
        if now_s + job.work_s > job.due_s:
            late.append(job)
            continue
        heappush(chosen, (job.request.priority, -job.work_s, order))
        end_s += job.work_s / workers
        while end_s > due_s and chosen:
            _, length, victim = heappop(chosen)
            end_s += length / workers
            late.append(due[victim][2])
    return [due[order][2] for order in sorted(order for _, _, order in chosen)], late
