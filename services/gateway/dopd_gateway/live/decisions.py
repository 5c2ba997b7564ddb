"""What the planner decided, in the words of `dopd explain`. Pure: `DecisionRecord`s in, rows of the page out."""

from collections.abc import Sequence
from typing import Any

from dopd.obs.explain import reason, split, words
from dopd_proto.control import DecisionRecord

MOST_ROWS = 12
ALIKE = ("split", "why", "reason", "changes", "dry_run")


def rows(records: Sequence[DecisionRecord]) -> list[dict[str, Any]]:
    """Of records with the newest last; it comes first here.

    Where one follows upon the same one, and neither changes anything, they are one row: the newest, with how many there
    are and since when.
    """
    made: list[dict[str, Any]] = []
    for record in reversed(records):
        row = _row(record)
        if made and not row["changes"] and all(row[key] == made[-1][key] for key in ALIKE):
            made[-1] |= {"times": made[-1]["times"] + 1, "since_s": row["at_s"]}
        elif len(made) < MOST_ROWS:
            made.append(row)
        else:
            break
    return made


def _row(record: DecisionRecord) -> dict[str, Any]:
    at_s = round(record.at_s, 3)
    return {
        "id": record.decision_id, "at_s": at_s, "since_s": at_s, "times": 1, "split": split(record), "why": record.why,
        "reason": record.reason, "said": reason(record), "words": words(record), "dry_run": record.dry_run,
        "changes": [f"{c.worker_id}: {c.before} to {c.role}, {c.outcome or 'commanded'}" for c in record.changes],
    }  # fmt: skip
