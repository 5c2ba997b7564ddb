"""A round of the control loop as one trace: window, forecast, decision, command, accepting, drained."""

from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dopd.obs.telemetry import Begun, Span, Tracing, begin
from dopd.worker import role
from dopd.worker.turn import Turn
from dopd_proto.control import RoleChange
from tests.planned_runs import Looked, planned_run

BEFORE = ("arrivals", "forecast", "decision", "command")
COMMAND = RoleChange(
    worker_id="w1",
    incarnation="w1-1",
    role="decode",
    epoch=1,
    decision_id="d",
    drain="wait",
    deadline_s=9.0,
    sent_s=1.0,
)


class Traced:
    """What all services of a run have sent."""

    def __init__(self) -> None:
        self.made: list[tuple[Tracing, InMemorySpanExporter]] = []

    def __call__(self, service: str, instance: str) -> Tracing:
        exporter = InMemorySpanExporter()
        self.made.append((Tracing(service, instance, exporter, lambda: 0.0), exporter))
        return self.made[-1][0]

    def spans(self) -> list[ReadableSpan]:
        """All of them; nothing more comes."""
        for tracing, _ in self.made:
            tracing._provider.shutdown()
        return [span for _, exporter in self.made for span in exporter.get_finished_spans()]


def chain(spans: list[ReadableSpan], last: ReadableSpan) -> list[ReadableSpan]:
    """From the root to this span."""
    known = {span.context.span_id: span for span in spans if span.context is not None}
    found = [last]
    while found[0].parent is not None:
        found.insert(0, known[found[0].parent.span_id])
    return found


@pytest.fixture(scope="module")
def traced() -> tuple[Looked, list[ReadableSpan]]:
    tracing = Traced()
    looked = planned_run(tracing=tracing)
    return looked, tracing.spans()


def test_from_the_window_to_the_last_old_work_everything_is_in_one_trace(
    traced: tuple[Looked, list[ReadableSpan]],
) -> None:
    looked, spans = traced
    turns = [chain(spans, span) for span in spans if span.name in ("accepting", "drained")]
    assert {tuple(one.name for one in turn) for turn in turns} == {(*BEFORE, "accepting"), (*BEFORE, "drained")}
    services = ["gateway", "forecaster", "ratio-planner", "ratio-planner", "worker"]
    for turn in turns:
        assert [one.resource.attributes["service.name"] for one in turn] == services
        starts = [one.start_time or 0 for one in turn]
        assert starts == sorted(starts)
        window, forecast, _, command, last = turn
        assert (window.end_time or 0) <= (forecast.start_time or 0)
        assert last.attributes is not None and command.attributes is not None
        assert last.attributes["dopd.worker_id"] == command.attributes["dopd.worker_id"]
    drained = [c for record in looked.moves for c in record.changes if c.outcome == "drained"]
    assert len([turn for turn in turns if turn[-1].name == "drained"]) >= len(drained) > 2


def test_every_decision_of_the_record_has_its_span(traced: tuple[Looked, list[ReadableSpan]]) -> None:
    looked, spans = traced
    by_id = {(s.attributes or {})["dopd.decision_id"]: s for s in spans if s.name == "decision"}
    assert by_id.keys() == {record.decision_id for record in looked.records}
    for record in looked.records:
        context = by_id[record.decision_id].context
        assert context is not None
        assert record.traceparent == f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
        assert (by_id[record.decision_id].parent is None) == (record.forecast is None)


def test_a_trace_does_not_change_a_run(traced: tuple[Looked, list[ReadableSpan]]) -> None:
    def told(looked: Looked) -> list[tuple[object, ...]]:
        return [(r.at_s, r.reason, [(c.worker_id, c.role, c.accepting_s) for c in r.changes]) for r in looked.records]

    plain = planned_run()
    assert told(plain) == told(traced[0])
    assert not any(record.traceparent for record in plain.records)


# --- parts ----------------------------------------------------------------------------------------------------------


def ended(work: Callable[[Tracing], None]) -> list[ReadableSpan]:
    tracing = Traced()
    work(tracing("worker", "w1"))
    return tracing.spans()


def test_a_drain_that_waits_takes_new_work_when_the_old_is_gone() -> None:
    def work(tracing: Tracing) -> None:
        cause = begin(tracing, Begun("command", 1.0))
        turn = Turn("w1", tracing)
        state = role.change(role.RoleState("prefill"), COMMAND, True, 2.0)
        turn.commanded(COMMAND, 2.0)
        turn.saw(state)
        turn.saw(role.settle(state, {"prefill"}, 3.0))
        turn.saw(role.settle(state, set(), 5.0))
        cause.end(6.0)

    accepting, drained, _ = ended(work)
    assert [(s.name, s.start_time, s.end_time) for s in (accepting, drained)] == [
        ("accepting", 2 * 10**9, 5 * 10**9), ("drained", 5 * 10**9, 5 * 10**9),
    ]  # fmt: skip


def test_a_change_that_another_takes_over_ends_as_superseded() -> None:
    def work(tracing: Tracing) -> None:
        turn = Turn("w1", tracing)
        for now_s in (1.0, 2.0):
            turn.commanded(COMMAND, now_s)

    (first,) = ended(work)
    assert first.status.description == "superseded" and first.end_time == 2 * 10**9


def test_links_name_the_other_windows_of_a_forecast() -> None:
    def work(tracing: Tracing) -> None:
        windows = [begin(tracing, Begun("arrivals", float(n))) for n in range(3)]
        for window in windows:
            window.end(3.0)
        begin(tracing, Begun("forecast", 3.0), windows[-1].traceparent, [w.traceparent for w in windows[:-1]]).end(4.0)

    *windows, forecast = ended(work)
    assert forecast.parent is not None and windows[-1].context is not None
    assert forecast.parent.span_id == windows[-1].context.span_id
    assert [link.context.span_id for link in forecast.links] == [w.context.span_id for w in windows[:-1] if w.context]


def test_while_tracing_is_off_the_callers_span_is_handed_on() -> None:
    parent = f"00-{1:032x}-{2:016x}-01"
    span = begin(None, Begun("decision", 1.0), parent)
    span.end(2.0)
    assert span == Span(parent)
