"""The planner's numbers for its operator port.

Consumes what it has written to the ledger, and the planner itself when somebody looks; produces samples of `METRICS`.
"""

from collections import Counter
from collections.abc import Iterator

from dopd.obs.metric_table import Sample
from dopd_planner.service import RatioPlanner
from dopd_proto.control import ChangeOutcome, DecisionRecord


class PlannerMetrics:
    """What this process has decided and seen come true."""

    def __init__(self) -> None:
        self._decisions: Counter[tuple[str, str]] = Counter()
        self._outcomes: Counter[str] = Counter()

    def written(self, entry: DecisionRecord | ChangeOutcome) -> None:
        """`RatioPlanner`'s `on_written`."""
        if isinstance(entry, DecisionRecord):
            self._decisions[entry.why, entry.reason] += 1
        else:
            self._outcomes[entry.outcome] += 1

    def samples(self, planner: RatioPlanner) -> Iterator[Sample]:
        """All of it; the split as the planner hears it."""
        yield "dopd_planner_leading", (), float(planner.leading)
        split = Counter({"prefill": 0, "decode": 0, "mixed": 0})
        split.update(state.role for state in planner.heard.live().values())
        for role, count in split.items():
            yield "dopd_planner_workers", (role,), count
        yield "dopd_planner_pinned_workers", (), len(planner.pins.roles)
        for labels, count in self._decisions.items():
            yield "dopd_planner_decisions_total", labels, count
        for outcome, count in self._outcomes.items():
            yield "dopd_role_changes_total", (outcome,), count
