"""`dopd top`: what is folded from messages, and frames as text at several sizes of the terminal."""

import io
import os
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

from dopd import cli
from dopd.top.frame import COLUMNS, count, fitting, frame, since
from dopd.top.sight import Sight
from dopd_proto.base import Role
from dopd_proto.control import Change, DecisionRecord
from dopd_proto.telemetry import ArrivalWindow, Forecast, GatewayState, Grant, OutcomeWindow, WorkerState

SNAPSHOTS = Path(__file__).parents[1] / "golden" / "top"
NOW_S = 1000.0


def worker(worker_id: str, role: Role = "decode", **fields: object) -> WorkerState:
    grant = Grant(gateway_id="g1", gateway_incarnation="g1-1", received=10, limit=42)
    state = WorkerState(
        worker_id=worker_id, incarnation=f"{worker_id}-1", role=role, epoch=1, phase="serving", model="emulated",
        kv_domain="local", sent_s=NOW_S, lease_s=3.0, steps=100, running=7, waiting=2, decoding=7,
        context_tokens=12_345, kv_used_tokens=430_000, kv_total_tokens=1_000_000, grants=(grant,),
        engine="h200-llama-3.1-8b-fp8-tp1",
    )  # fmt: skip
    return replace(state, **fields)


def decision(decision_id: str, at_s: float, reason: str, why: str, *changes: Change) -> DecisionRecord:
    return DecisionRecord(
        decision_id=decision_id, at_s=at_s, term=1, why=why, reason=reason, prefill=2, decode=3, changes=changes
    )


def busy() -> Sight:
    """A cluster at work, as it looks at NOW_S."""
    sight = Sight()
    for n in range(1, 4):
        sight.worker(worker(f"w{n}", steps=60), NOW_S - 2.0)
        sight.worker(worker(f"w{n}", steps=100), NOW_S)
    sight.worker(
        worker("w4", "prefill", running=1, waiting=0, queued_prefill_tokens=61_000, kv_used_tokens=950_000,
               phase="draining", kv_misses=3),
        NOW_S,
    )  # fmt: skip
    sight.worker(worker("w10", "prefill", phase="stalled", running=0, waiting=0, kv_used_tokens=0), NOW_S)
    sight.gateway(
        GatewayState(
            gateway_id="g1", incarnation="g1-1", sent_s=NOW_S, lease_s=3.0, waiting=4, running=22,
            waiting_prefill_tokens=5300,
        ),
        NOW_S,
    )  # fmt: skip
    sight.arrivals["g1"] = (
        ArrivalWindow(
            gateway_id="g1", incarnation="g1-1", start_s=985.0, end_s=995.0, requests=83, isl_tokens_sum=1,
            isl_tokens_square_sum=1, osl_tokens_limit_sum=1,
        ),
        NOW_S - 5.0,
    )  # fmt: skip
    sight.outcomes["g1"] = (
        OutcomeWindow(
            gateway_id="g1", incarnation="g1-1", start_s=985.0, end_s=995.0, completed=80, failed=1,
            osl_tokens_sum=8000, gateway_ttft_s_sum=24.8, tpot_s_sum=0.96, made_tokens=15_400,
        ),
        NOW_S - 5.0,
    )  # fmt: skip
    sight.forecast = (
        Forecast(
            start_s=NOW_S, horizon_s=10.0, model="ses", requests_per_s=8.6, isl_tokens_mean=1, isl_tokens_var=1,
            osl_tokens_mean=1, bin_s=10.0,
        ),
        NOW_S - 5.0,
    )  # fmt: skip
    moved = Change(
        worker_id="w4", before="decode", role="prefill", outcome="drained", accepting_s=0.003, drained_s=1.25
    )
    sight.decisions = (
        decision("d-1", NOW_S - 130.0, "grow_prefill", "plan", moved),
        decision("d-2", NOW_S - 4.0, "best_split", "plan"),
    )
    return sight


def drawn(sight: Sight, width: int, height: int) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=width, height=height, color_system=None, force_terminal=False, legacy_windows=False
    )
    console.print(frame(sight, NOW_S, (width, height), "nats://127.0.0.1:4222"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


@pytest.mark.parametrize("size", [(80, 24), (140, 50), (44, 24), (80, 11)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_frame_looks_like_its_snapshot(size: tuple[int, int]) -> None:
    """SNAPSHOTS=write has them written anew, to be looked at."""
    file, text = SNAPSHOTS / f"{size[0]}x{size[1]}.txt", drawn(busy(), *size)
    if os.environ.get("SNAPSHOTS") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("width", [20, 30, 44, 60, 80, 100, 140, 200])
@pytest.mark.parametrize("height", [8, 11, 24, 50])
def test_no_frame_is_larger_than_the_terminal(width: int, height: int) -> None:
    many = busy()
    for n in range(40):
        many.worker(worker(f"x{n}"), NOW_S)
    lines = drawn(many, width, height).splitlines()
    assert len(lines) <= height
    assert max(len(line) for line in lines) <= width
    shown = sum(line.startswith(("w", "x")) and not line.startswith("worker") for line in lines)
    assert shown >= 2 and (shown == 45 or f"+ {45 - shown}" in lines)


def test_columns_leave_one_after_the_other_and_worker_and_role_stay() -> None:
    before = len(COLUMNS)
    for width in range(200, 0, -1):
        now = fitting(width)
        assert before - len(now) in (0, 1)
        before = len(now)
    assert [column.heading for column in fitting(1)] == ["worker", "role"]


def test_an_empty_cluster_and_a_broker_out_of_reach_are_said() -> None:
    text = drawn(Sight(), 80, 24)
    for words in ("no worker is heard", "no window of requests yet", "no gateway is heard", "no planner answers"):
        assert words in text
    assert "the broker is out of reach" in drawn(Sight(connected=False), 80, 24)
    assert "no decision yet" in drawn(Sight(decisions=()), 80, 24)


def test_whoever_is_silent_for_longer_than_its_lease_is_gone_and_windows_grow_old() -> None:
    sight = busy()
    sight.forget(NOW_S + 2.9)
    assert len(sight.workers) == 5 and sight.gateways and sight.rates(NOW_S) is not None
    sight.worker(worker("w1"), NOW_S + 3.0)
    sight.forget(NOW_S + 3.1)
    assert list(sight.workers) == ["w1"] and not sight.gateways
    assert sight.rates(NOW_S) is not None
    sight.forget(NOW_S + 20.1)
    assert sight.rates(NOW_S + 20.1) is None and sight.forecast is None


def test_steps_per_second_count_from_a_new_life_on() -> None:
    sight = Sight()
    sight.worker(worker("w1", steps=1000), 0.0)
    sight.worker(worker("w1", steps=1020), 0.5)
    assert sight.workers["w1"].steps_per_s is None
    sight.worker(worker("w1", steps=1040), 2.0)
    assert sight.workers["w1"].steps_per_s == 20.0
    sight.worker(worker("w1", incarnation="w1-2", steps=3), 2.5)
    assert sight.workers["w1"].steps_per_s is None


def test_rates_are_summed_over_gateways_and_means_are_over_requests() -> None:
    sight = busy()
    window, _ = sight.outcomes["g1"]
    sight.outcomes["g2"] = (
        replace(window, gateway_id="g2", completed=20, gateway_ttft_s_sum=26.2, failed=0),
        NOW_S - 1.0,
    )
    rates = sight.rates(NOW_S)
    assert rates is not None
    assert (rates.completed, rates.failed, rates.age_s, rates.tokens_per_s) == (100, 1, 1.0, 3080.0)
    assert rates.ttft_s == pytest.approx(0.51)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (12_345, "12.3k"), (999_499, "999k"), (999_500, "1M"), (4_100_000, "4.1M"),
     (999_600_000, "1G"), (10**12, "1T")],
)  # fmt: skip
def test_counts_are_short(number: int, text: str) -> None:
    assert count(number) == text


def test_times_are_told_in_one_unit() -> None:
    assert [since(s) for s in (-1.0, 59.0, 61.0, 7300.0, 2e5)] == [
        "0 s ago",
        "59 s ago",
        "1 min ago",
        "2 h ago",
        "2 d ago",
    ]


def test_without_a_broker_top_says_so_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--nats", "nats://127.0.0.1:1"]) == 1
    assert "no broker answers at nats://127.0.0.1:1" in capsys.readouterr().err
