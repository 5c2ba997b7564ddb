"""The planner's memory of its decisions, what of it is worth a record, and how it is told."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dopd import policy
from dopd.ledger.memory import MemoryStore
from dopd.obs.explain import REASONS, table, words
from dopd_planner import decisions_cli, history
from dopd_planner.history import History
from dopd_planner.sight import Pace, cluster_view, forecast_view
from dopd_proto.control import Change, ChangeOutcome, Considered, DecisionRecord
from dopd_proto.telemetry import Forecast, GatewayState, SeriesForecast, WorkerState

CHANGE = Change(worker_id="w3", before="decode", role="prefill", incarnation="w3-1", epoch=7, deadline_s=60.0)


def a_record(number: int = 1, at_s: float = 0.0, **more: Any) -> DecisionRecord:
    fields: dict[str, Any] = {
        "decision_id": f"decision-{number}", "at_s": at_s, "term": 1, "why": "plan", "reason": "best_split",
        "prefill": 2, "decode": 2, "inputs": {"requests_per_s": 10.0},
    }  # fmt: skip
    return DecisionRecord(**fields | more)


def test_outcomes_are_folded_into_their_decision() -> None:
    told = History()
    told.add(a_record(changes=(CHANGE,)))
    assert [change.outcome for _, change in told.under_way()] == [""]
    told.add(ChangeOutcome(decision_id="decision-1", worker_id="w3", outcome="accepting", after_s=0.5))
    assert [change.outcome for _, change in told.under_way()] == ["accepting"]
    told.add(ChangeOutcome(decision_id="decision-1", worker_id="w3", outcome="drained", after_s=2.0))
    told.add(ChangeOutcome(decision_id="decision-0", worker_id="w3", outcome="timed_out"))
    (record,) = told.last(5)
    assert (record.changes[0].accepting_s, record.changes[0].drained_s) == (0.5, 2.0)
    assert not list(told.under_way()) and told.last(0) == ()


def test_what_a_dry_run_decided_is_not_under_way() -> None:
    told = History()
    told.add(a_record(changes=(CHANGE,), dry_run=True))
    assert not list(told.under_way())


def test_only_the_last_decisions_are_kept() -> None:
    told = History()
    for number in range(history.KEEP + 10):
        told.add(a_record(number))
    assert len(told.last(10_000)) == history.KEEP and told.last(10_000)[0].decision_id == "decision-10"
    assert [record.decision_id for record in told.like("decision-50")] == ["decision-50"]
    assert len(told.like("decision-4")) > 100 and told.like("decision-5000") == ()


def test_a_round_without_change_is_news_when_its_reason_or_its_numbers_are() -> None:
    told = History()
    assert told.is_news(a_record())
    told.add(a_record())
    assert not told.is_news(a_record(at_s=1000.0))
    assert not told.is_news(a_record(at_s=1.0, reason="cooldown")), "reasons may alternate from round to round"
    assert told.is_news(a_record(at_s=6.0, reason="cooldown"))
    assert not told.is_news(a_record(at_s=6.0, inputs={"requests_per_s": 20.0}))
    assert told.is_news(a_record(at_s=61.0, inputs={"requests_per_s": 20.0}))
    assert not told.is_news(a_record(at_s=61.0, inputs={"requests_per_s": 11.0}))


@pytest.mark.parametrize("entries", [0, 1, 2, 3, 7, 8, 9, 600])
def test_the_end_of_the_log_is_found_and_what_is_foreign_is_passed_over(entries: int) -> None:
    async def written() -> History:
        ledger = MemoryStore().open()
        await ledger.append(history.LOG, msgspec.msgpack.encode({"kind": "of old"}))
        for number in range(entries):
            await history.write(ledger, a_record(number))
        return await history.recall(ledger)

    found = asyncio.run(written()).last(10_000)
    assert [record.decision_id for record in found] == [
        f"decision-{number}" for number in range(max(0, entries - history.KEEP), entries)
    ]


def test_a_decision_is_told_in_words() -> None:
    forecast = Forecast(
        start_s=0.0, horizon_s=10.0, model="ses", requests_per_s=10.0, isl_tokens_mean=1.0, isl_tokens_var=0.0,
        osl_tokens_mean=1.0, quantile_levels=(0.5, 0.9),
        series=(SeriesForecast(name="prefill_work", model="ses", point=1.5, quantiles=(1.4, 2.5), error=0.2),),
    )  # fmt: skip
    refused = Change(worker_id="w4", before="decode", role="prefill", outcome="refused: would leave no decode worker")
    splits = (
        Considered(prefill=3, decode=1, attainment=0.98, headroom=0.1, binding="prefill"),
        Considered(prefill=2, decode=2, attainment=0.5, headroom=-0.4, binding="prefill"),
    )
    record = a_record(
        reason="grow_prefill", binding="minimum", needs="x", forecast=forecast, alternatives=splits,
        changes=(CHANGE, refused), dry_run=True,
    )  # fmt: skip
    told = words(record)
    for part in (
        "2 prefill and 2 decode workers > 3P1D", REASONS["grow_prefill"], "It lacked x.", "the one worker", "90%",
        "1.5", "ses, 20%", "3P1D: 98.0%", "(chosen)", "(present)", "refused: would leave no decode worker", "dry run",
    ):  # fmt: skip
        assert part in told, part
    assert "w3>prefill open" in table([record]) and "w4" not in table([record])


def test_every_reason_of_every_planner_has_words() -> None:
    """Read off the sources: whatever stands where a reason stands."""
    folder = Path(policy.__file__).parent
    source = "".join(file.read_text() for file in sorted(folder.glob("*.py")))
    coded = set(re.findall(r'reason="(\w+)"', source)) | set(re.findall(r'return "(\w+)", "', source))
    coded |= set(re.findall(r'return state, "(\w+)"', source)) | {"best_split", "headroom_fine", "gain_below_cost"}
    coded |= {f"{kind}_{pool}" for kind in ("grow", "emergency", "rebalance") for pool in ("prefill", "decode")}
    coded |= {history.LISTENING, "policy_failed"}
    assert len(coded) >= 25 and coded <= REASONS.keys()


def test_the_command_asks_the_planner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    async def answer(url: str, ca_file: str, request: Any) -> tuple[DecisionRecord, ...]:
        asked.append(request)
        found = (a_record(1), a_record(2, changes=(CHANGE,)))
        return found[1:] if request.decision_id == "decision-2" else found

    monkeypatch.setattr(decisions_cli, "_ask", answer)
    assert decisions_cli.decisions(["--nats", "nats://x", "--changes"]) == 0
    assert "decision-2" in (shown := capsys.readouterr().out) and "decision-1" not in shown
    assert decisions_cli.decisions(["--nats", "nats://x", "--json"]) == 0
    assert [one["decision_id"] for one in json.loads(capsys.readouterr().out)] == ["decision-1", "decision-2"]
    assert decisions_cli.explain(["decision-2", "--nats", "nats://x"]) == 0
    assert "w3: decode to prefill" in capsys.readouterr().out
    assert decisions_cli.explain(["decision-2", "--nats", "nats://x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"][0]["worker_id"] == "w3"
    assert decisions_cli.explain(["decision", "--nats", "nats://x"]) == 1
    assert "2 decisions begin" in capsys.readouterr().err
    assert [request.limit for request in asked[:2]] == [10_000, 20]


def test_without_a_broker_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert decisions_cli.decisions(["--nats", "nats://127.0.0.1:1"]) == 1
    assert "is the cluster up" in capsys.readouterr().err


# --- what a planner is shown ----------------------------------------------------------------------------------------


def a_state(sent_s: float, steps: int, **more: Any) -> WorkerState:
    fields: dict[str, Any] = {
        "worker_id": "w1", "incarnation": "w1-1", "role": "decode", "epoch": 1, "phase": "serving", "model": "m",
        "kv_domain": "a", "sent_s": sent_s, "lease_s": 3.0, "steps": steps, "running": 4, "decoding": 4,
    }  # fmt: skip
    return WorkerState(**fields | more)


def test_a_steps_time_is_taken_while_nothing_but_decoding_goes_on() -> None:
    pace = Pace()
    for quarter in range(1, 12):
        pace.saw(a_state(0.25 * quarter, 10 * quarter))
    assert pace.step_s == pytest.approx(0.025)
    pace.saw(a_state(3.0, 121, queued_prefill_tokens=500))
    assert pace.step_s == 0.0


def test_the_view_has_the_roles_commanded_the_pins_and_what_waits_at_gateways() -> None:
    gateway = {"incarnation": "g", "sent_s": 0.0, "lease_s": 3.0}
    gateways = [
        GatewayState(gateway_id="g1", waiting_prefill_tokens=700, waiting_decodes=2, **gateway),  # type: ignore[arg-type]
        GatewayState(gateway_id="g2", waiting_prefill_tokens=300, **gateway),  # type: ignore[arg-type]
    ]
    view = cluster_view({"w1": a_state(0.0, 1)}, gateways, {}, {"w1": "decode"}, {"w1": "prefill"})
    assert (view.workers[0].role, view.workers[0].pinned, view.workers[0].step_s) == ("prefill", True, 0.0)
    assert (view.waiting_prefill_tokens, view.waiting_decodes) == (1000, 2)
    assert forecast_view(None) is None
