"""Which waiting requests may start in the next engine step: the meaning of batches and of `exclusive`.

One pure function for every engine. A batch starts when all its members are ready, or, so that a lost member cannot
hold the others for ever, when its oldest has waited `MEMBER_WAIT_S`.
"""

from collections import defaultdict
from collections.abc import Sequence

from dopd.policy.base import StepLimit, StepView, WaitingView

MEMBER_WAIT_S = 2.0


def admissible(step: StepView, limit: StepLimit) -> list[str]:
    """Ids of the waiting requests that may start now, in arrival order."""
    if limit.gate == "closed" or step.exclusive_running:
        return []
    room = _room(step, limit)
    prefills = step.prefills
    members = _members(step.waiting)
    admitted: list[str] = []
    for first in step.waiting:
        batch = members.pop(first.batch_id, []) if first.batch_id else [first]
        if not batch or not _complete(batch):
            continue
        if len(batch) > room and step.decodes + prefills == 0:
            batch = batch[: max(0, room)]  # it will never fit as a whole, and would hold up everybody
        if not batch or len(batch) > room or (first.exclusive and prefills):
            break  # keep the order: what came later does not overtake a batch that only lacks room
        admitted += [member.job_id for member in batch]
        room -= len(batch)
        prefills += len(batch)
        if first.exclusive or limit.gate == "batch":
            break
    return admitted


def _room(step: StepView, limit: StepLimit) -> int:
    most = step.max_running if limit.max_running is None else min(step.max_running, limit.max_running)
    return most - step.decodes - step.prefills


def _members(waiting: Sequence[WaitingView]) -> dict[str, list[WaitingView]]:
    members: dict[str, list[WaitingView]] = defaultdict(list)
    for job in waiting:
        if job.batch_id:
            members[job.batch_id].append(job)
    return members


def _complete(batch: list[WaitingView]) -> bool:
    ready = all(job.ready for job in batch)
    return ready and (len(batch) >= batch[0].batch_size or batch[0].waited_s >= MEMBER_WAIT_S)
