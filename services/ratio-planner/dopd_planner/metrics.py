"""The planner's numbers for its operator port.

Consumes what it has written to the ledger, and the planner itself when somebody looks; produces samples of `METRICS`.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from dopd.obs.metric_table import Sample
from dopd.policy.base import Plan
from dopd_planner.service import RatioPlanner
from dopd_proto.control import ChangeOutcome, DecisionRecord

Observe = Callable[[float], None]
OUTCOMES = ("accepting", "drained", "worker_lost", "superseded", "timed_out")


class PlannerMetrics:
    """What this process has decided and seen come true."""

    def __init__(self, histogram: Callable[[str], Observe]) -> None:
        """`histogram` gives what takes the values of one."""
        self._decisions: Counter[tuple[str, str]] = Counter()
        self._outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self._took = {stage: histogram(f"dopd_role_change_{stage}_seconds") for stage in ("accepting", "drained")}

    def written(self, entry: DecisionRecord | ChangeOutcome) -> None:
        """`RatioPlanner`'s `on_written`."""
        if isinstance(entry, DecisionRecord):
            self._decisions[entry.why, entry.reason] += 1
        else:
            self._outcomes[entry.outcome] += 1
            if entry.after_s is not None:
                self._took[entry.outcome](entry.after_s)

    def samples(self, planner: RatioPlanner) -> Iterator[Sample]:
        """All of it; the split as the planner hears it."""
        yield "dopd_planner_leading", (), float(planner.leading)
        split = Counter({"prefill": 0, "decode": 0, "mixed": 0})
        split.update(state.role for state in planner.heard.live().values())
        for role, count in split.items():
            yield "dopd_planner_workers", (role,), count
        yield "dopd_planner_pinned_workers", (), len(planner.pins.roles)
        yield from _planned(planner.planned)
        for labels, count in self._decisions.items():
            yield "dopd_planner_decisions_total", labels, count
        for outcome, count in self._outcomes.items():
            yield "dopd_role_changes_total", (outcome,), count


def _planned(plan: Plan | None) -> Iterator[Sample]:
    """The splits that the last plan considered, of which the first was chosen."""
    if plan is None or not plan.alternatives:
        return
    chosen = plan.alternatives[0]
    yield "dopd_planner_wanted_workers", ("prefill",), chosen.prefill
    yield "dopd_planner_wanted_workers", ("decode",), chosen.decode
    for one in plan.alternatives:
        split = (f"{one.prefill}P{one.decode}D",)
        yield "dopd_planner_predicted_attainment_ratio", split, one.attainment
        yield "dopd_planner_predicted_headroom_ratio", split, one.headroom
