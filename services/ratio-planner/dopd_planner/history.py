"""The planner's decisions and what came of them, folded from the ledger's log; and which are worth a record.

Consumes `DecisionRecord`s and `ChangeOutcome`s; produces the last of them, and the changes that are still under way.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from dopd.ledger import Ledger
from dopd.policy.base import Plan
from dopd_proto.codec import DecodeError, decode, encode
from dopd_proto.control import Change, ChangeOutcome, Considered, DecisionRecord
from dopd_proto.telemetry import Forecast

LOG = "decisions"
KEEP = 500
"""Decisions in memory."""
CALM_S, NUMBERS_S = 5.0, 60.0
"""A round that changes nothing is recorded no sooner than so long after the last record, one whose numbers alone are
new no sooner than that."""
NEW_NUMBER = 0.25
LISTENING = "listening"
_ENTRIES: tuple[Any, ...] = (DecisionRecord, ChangeOutcome)
NUMBERS = ("requests_per_s", "prefill_work", "tokens_per_s")


class History:
    """The last decisions, oldest first, `keep` of them."""

    def __init__(self, keep: int = KEEP) -> None:
        self._keep = keep
        self._records: dict[str, DecisionRecord] = {}

    def add(self, entry: DecisionRecord | ChangeOutcome) -> None:
        """The next entry of the log. What belongs to a decision that is forgotten is ignored."""
        if isinstance(entry, DecisionRecord):
            self._records[entry.decision_id] = entry
            if len(self._records) > self._keep:
                del self._records[next(iter(self._records))]
        elif entry.decision_id in self._records:
            record = self._records[entry.decision_id]
            changes = tuple(_after(c, entry) if c.worker_id == entry.worker_id else c for c in record.changes)
            self._records[entry.decision_id] = msgspec.structs.replace(record, changes=changes)

    def last(self, limit: int) -> tuple[DecisionRecord, ...]:
        """The newest ones, oldest first."""
        return tuple(self._records.values())[-limit:] if limit > 0 else ()

    def like(self, decision_id: str) -> tuple[DecisionRecord, ...]:
        """The decision of this id, or those whose id begins so."""
        exact = self._records.get(decision_id)
        found = [record for name, record in self._records.items() if name.startswith(decision_id)]
        return (exact,) if exact is not None else tuple(found)

    def under_way(self) -> Iterator[tuple[DecisionRecord, Change]]:
        """Changes that were commanded and have not ended."""
        for record in self._records.values():
            for change in record.changes:
                if change.outcome in ("", "accepting") and not record.dry_run:
                    yield record, change

    def is_news(self, record: DecisionRecord) -> bool:
        """Whether a round that changes nothing says anything new."""
        last = next(reversed(self._records.values()), None)
        if last is None:
            return True
        passed_s = record.at_s - last.at_s
        if _gist(record) != _gist(last):
            return passed_s >= CALM_S
        return passed_s >= NUMBERS_S and any(_differ(record, last, name) for name in NUMBERS)


def _gist(record: DecisionRecord) -> tuple[object, ...]:
    if record.reason == LISTENING:  # whom it has heard so far is no news
        return (record.reason,)
    wanted = record.alternatives[:1] and (record.alternatives[0].prefill, record.alternatives[0].decode)
    return (record.reason, record.binding, record.prefill, record.decode, wanted)


def _differ(one: DecisionRecord, other: DecisionRecord, name: str) -> bool:
    new, old = one.inputs.get(name, 0.0), other.inputs.get(name, 0.0)
    return abs(new - old) > NEW_NUMBER * max(abs(new), abs(old))


def _after(change: Change, entry: ChangeOutcome) -> Change:
    if entry.outcome == "accepting":
        return msgspec.structs.replace(change, outcome="accepting", accepting_s=entry.after_s)
    if entry.outcome == "drained":
        return msgspec.structs.replace(change, outcome="drained", drained_s=entry.after_s)
    return msgspec.structs.replace(change, outcome=entry.outcome)


def draft(why: str, plan: Plan, changes: tuple[Change, ...], forecast: Forecast | None) -> DecisionRecord:
    """The record of a plan, but for who decides, when, and the split there is."""
    return DecisionRecord(
        decision_id="", at_s=0.0, term=0, why=why, reason=plan.reason or "unsaid", prefill=0, decode=0,
        needs=plan.needs, binding=plan.binding, inputs=dict(plan.inputs),
        alternatives=tuple(
            Considered(prefill=a.prefill, decode=a.decode, attainment=a.attainment, headroom=a.headroom,
                       binding=a.binding)
            for a in plan.alternatives
        ),
        forecast=forecast, changes=changes,
    )  # fmt: skip


async def write(ledger: Ledger, entry: DecisionRecord | ChangeOutcome) -> None:
    """To the log. Raises LedgerLost."""
    await ledger.append(LOG, encode(entry))


async def recall(ledger: Ledger, keep: int = KEEP) -> History:
    """What the last `keep` entries of the log say. Raises LedgerLost. Entries of another format are passed over."""
    history = History(keep)
    for payload in await _tail(ledger, keep):
        try:
            entry: DecisionRecord | ChangeOutcome = decode(payload, _ENTRIES)
        except DecodeError:
            continue
        history.add(entry)
    return history


async def _tail(ledger: Ledger, count: int) -> Sequence[bytes]:
    """The last entries of the log, whose end is found by doubling and halving."""
    there, beyond = 0, 1
    while await ledger.read(LOG, beyond, 1):
        there, beyond = beyond, 2 * beyond
    while beyond - there > 1:
        middle = (there + beyond) // 2
        if await ledger.read(LOG, middle, 1):
            there = middle
        else:
            beyond = middle
    return [entry.payload for entry in await ledger.read(LOG, there - count + 1, count)]
