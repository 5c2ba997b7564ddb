"""Ratios of prefill to decode workers: which there are, which a load asks for, and who changes to get there.

Consumes views of a cluster, a profile and a schedule; produces splits in an order, and `RoleChange`s on the bus.
"""

from collections.abc import Sequence

from dopd.bus import Bus
from dopd.cluster import ClusterView, WorkerView
from dopd.perf.model import step_s
from dopd.perf.profile import Profile
from dopd_loadgen.cluster import LocalCluster
from dopd_loadgen.model import Planned
from dopd_proto.base import Role
from dopd_proto.control import RoleChange
from dopd_proto.subjects import ROLE_CHANGE

Split = tuple[int, int]
COMMAND_S = 60.0


def splits(workers: int) -> list[Split]:
    """Every ratio with a worker of each role."""
    return [(prefill, workers - prefill) for prefill in range(1, workers)]


def likeliest_first(workers: int, prefill_share: float) -> list[Split]:
    """Those closest to the share of work that is prefill."""
    return sorted(splits(workers), key=lambda split: abs(split[0] - prefill_share * workers))


def nearest_first(workers: int, present: Split) -> list[Split]:
    """The other ratios, those with the fewest changes first."""
    return sorted((s for s in splits(workers) if s != present), key=lambda split: abs(split[0] - present[0]))


def prefill_share(profile: Profile, schedule: Sequence[Planned]) -> float:
    """The part of a GPU's time that prompts take, with large batches in both phases."""
    most, running = profile.max_step_tokens, profile.max_running
    prefill_s = decode_s = 0.0
    for one in schedule:
        isl, made = one.isl_tokens, one.osl_tokens - 1
        prefill_s += step_s(profile, isl, isl * isl, 0, 0) - profile.prefill_fixed_s * max(0.0, 1 - isl / most)
        decode_s += made * step_s(profile, 0, 0, running, running * (isl + made / 2)) / running
    return prefill_s / (prefill_s + decode_s) if decode_s else 1.0


def of(cluster: LocalCluster) -> Split:
    """The present ratio."""
    roles = [worker.role.role for worker in cluster.workers.values()]
    return roles.count("prefill"), roles.count("decode")


def changes(view: ClusterView, roles: dict[str, Role], wanted: Split) -> dict[str, Role]:
    """Who changes to which role: those with the least work of their present one."""
    spare = sum(role == "prefill" for role in roles.values()) - wanted[0]
    old, new = _NAMES if spare > 0 else _NAMES[::-1]
    able = sorted((w for w in view.workers if roles.get(w.worker_id) == old), key=_work)
    return {worker.worker_id: new for worker in able[: abs(spare)]}


_NAMES: tuple[Role, Role] = ("prefill", "decode")


def _work(worker: WorkerView) -> tuple[float, int, str]:
    return worker.queued_prefill_tokens + worker.context_tokens, worker.running + worker.waiting, worker.worker_id


def take(cluster: LocalCluster, bus: Bus, wanted: Split) -> None:
    """Command the changes. The old work is finished beside the new."""
    now_s = cluster.runtime.now()
    roles: dict[str, Role] = {worker_id: worker.role.role for worker_id, worker in cluster.workers.items()}
    for worker_id, role in changes(cluster.gateway.cluster(), roles, wanted).items():
        worker = cluster.workers[worker_id]
        command = RoleChange(
            worker_id=worker_id, incarnation=worker.incarnation, role=role, epoch=worker.role.epoch + 1,
            decision_id=cluster.runtime.new_id("ratio"), drain="overlap", deadline_s=now_s + COMMAND_S, sent_s=now_s,
        )  # fmt: skip
        bus.publish(ROLE_CHANGE.at(worker_id=worker_id), command)
