"""What the live page remembers, and what it forgets: lanes, bins, traffic, requests, decisions."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_gateway.live import KEEP_S, decisions, snapshot
from dopd_gateway.live.bins import BIN_S, Bin, Bins
from dopd_gateway.live.lanes import MOST_CHANGES, MOST_LANES
from dopd_gateway.live.recent import KEPT, MOST_PHASES, PER_S
from dopd_gateway.live.traffic import MOST_ROWS, Traffic, band
from dopd_proto.control import Change
from tests.live_past import LEVELS, NOW_S, Looking, arrivals, decision, forecast, over, worker

# --- lanes ------------------------------------------------------------------------------------------------------------


def test_a_flip_begins_when_the_worker_says_and_its_old_work_is_seen() -> None:
    looking = Looking()
    looking.see(worker())
    looking.see(worker())
    looking.see(worker(role="prefill", accepting_at_s=NOW_S + 2.25, drained_at_s=None))
    looking.see(worker(role="prefill", accepting_at_s=NOW_S + 2.25, drained_at_s=NOW_S + 3.5))
    assert looking.told() == [
        (1.0, "decode", "serving", ""),
        (2.25, "prefill", "overlap", "flip"),
        (4.0, "prefill", "serving", ""),
    ]


def test_a_flip_by_another_clock_begins_when_it_is_heard() -> None:
    looking = Looking()
    looking.see(worker())
    looking.see(worker(role="prefill", accepting_at_s=NOW_S - 50.0))
    looking.see(worker(role="decode", accepting_at_s=NOW_S + 50.0))
    assert [at_s for at_s, *_ in looking.told()] == [1.0, 2.0, 3.0]


def test_a_lost_worker_a_stopped_one_and_one_that_begins_anew_are_told_apart() -> None:
    looking = Looking()
    looking.see(worker("w1"), worker("w2"), worker("w3"))
    looking.see(worker("w1"), worker("w2", phase="stopping"), worker("w3"))
    looking.see(worker("w3", incarnation="w3-2"))
    assert looking.told("w1")[-1] == (2.0, "decode", "lost", "")
    assert looking.told("w2")[-1] == (2.0, "decode", "stopped", "")
    assert looking.told("w3")[-1] == (3.0, "decode", "serving", "restart")
    assert {w: row["phase"] for w, row in snapshot.snapshot(looking.past, looking.now_s)["workers"].items()} == {
        "w1": "lost", "w2": "stopped", "w3": "serving",
    }  # fmt: skip
    looking.see(worker("w1"), worker("w3", incarnation="w3-2"))
    assert looking.told("w1")[-1] == (4.0, "decode", "serving", "back")


def test_lanes_forget_what_is_long_over_and_workers_that_are_long_gone() -> None:
    looking = Looking()
    looking.see(worker("w1"), worker("w2"))
    looking.see(worker("w1", role="prefill", accepting_at_s=NOW_S + 2.0))
    assert len(looking.told("w1")) == 2 and looking.told("w2")[-1][2] == "lost"
    looking.see(worker("w1", role="prefill"), after_s=KEEP_S)
    assert [role for _, role, _, _ in looking.told("w1")] == ["prefill"] and "w2" not in looking.lanes.by_worker


def test_lanes_and_their_changes_are_bounded_and_those_without_a_lane_are_counted() -> None:
    looking = Looking()
    many = [worker(f"w{n}") for n in range(MOST_LANES + 7)]
    looking.see(*many[:MOST_LANES])
    looking.see(*many[1:])  # the first one is gone: its lane goes to another
    assert len(looking.lanes.by_worker) == MOST_LANES and "w0" not in looking.lanes.by_worker
    assert looking.lanes.left_out == 6
    for n in range(2 * MOST_CHANGES):
        looking.see(worker(role="prefill" if n % 2 else "decode"), after_s=0.5)
    assert len(looking.told()) == MOST_CHANGES


# --- bins -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-4, 500.0), min_size=1, max_size=300))
def test_quantiles_of_a_bin_are_right_within_three_per_cent(values_s: list[float]) -> None:
    one = Bin(NOW_S)
    for value_s in values_s:
        one.add("stop", value_s, None, met=True)
    row, ordered = one.row(), sorted(values_s)
    for share in (50, 90):
        exact_s = ordered[-(-share * len(ordered) // 100) - 1]
        assert row[f"ttft_p{share}_s"] == pytest.approx(exact_s, rel=0.031)
    assert "tpot_p50_s" not in row and len(one.ttft) <= 320


def test_bins_are_bounded_and_the_last_minute_is_that_of_its_bins() -> None:
    bins = Bins.since(NOW_S)
    for second in range(int(2 * KEEP_S)):
        bins.at(NOW_S + second).add("stop", 0.1, 0.01, met=second % 2 == 0)
    now_s = NOW_S + 2 * KEEP_S
    bins.at(now_s)
    assert len(bins.rows) <= KEEP_S / BIN_S + 1 and min(bins.rows) >= now_s - KEEP_S
    assert all(row["ended"] == BIN_S for row in bins.rows.values())
    minute = bins.last_minute(now_s)
    assert minute["ended"] == 60 and minute["met"] == 30 and minute["since_s"] == now_s - 60.0
    assert bins.last_minute(now_s + 1000.0)["ended"] == 0  # all of them are older


# --- traffic ----------------------------------------------------------------------------------------------------------


def test_windows_of_several_gateways_that_end_almost_together_are_one() -> None:
    traffic = Traffic(10.0)
    traffic.arrived(arrivals("g1", NOW_S + 10.003, 40), NOW_S + 10.0)
    traffic.arrived(arrivals("g2", NOW_S + 9.998, 25), NOW_S + 10.0)
    assert traffic.arrivals() == {NOW_S + 10.0: 6.5}


def test_the_shortest_horizon_is_held_against_what_came_and_every_one_looks_ahead() -> None:
    traffic = Traffic(10.0)
    for start_s in (NOW_S, NOW_S + 10.0):
        for horizon_s, rate in ((300.0, 7.0), (10.0, 8.0)):
            traffic.expected(forecast(start_s, horizon_s, rate, (1.0, 8.0, 12.0, 20.0)), start_s)
    row = {"horizon_s": 10.0, "mean": 8.0, "low": 1.0, "high": 12.0, "share": 0.8}
    assert traffic.forecasts() == {NOW_S: row, NOW_S + 10.0: row}
    assert set(traffic.ahead(NOW_S + 15.0)) == {10.0, 300.0} and set(traffic.ahead(NOW_S + 21.0)) == {300.0}
    traffic.expected(forecast(NOW_S + 20.0, 10.0, 8.0), NOW_S + 20.0)
    assert traffic.forecasts()[NOW_S + 20.0] == {"horizon_s": 10.0, "mean": 8.0}  # without quantiles no band


@pytest.mark.parametrize(("levels", "places"), [(LEVELS, (0, 2)), ((0.5, 0.95, 0.05), (2, 1)), ((0.25, 0.9), (0, 1))])
def test_the_band_is_between_the_lowest_level_and_its_counterpart(
    levels: tuple[float, ...], places: tuple[int, int]
) -> None:
    assert band(levels) == places


def test_traffic_is_bounded() -> None:
    traffic = Traffic(0.1)
    for n in range(3 * MOST_ROWS):
        now_s = NOW_S + n / 10
        traffic.arrived(arrivals("g1", now_s, 1), now_s)
        traffic.expected(forecast(now_s, float(n % 20), 1.0), now_s)
    assert len(traffic.arrivals()) == MOST_ROWS and len(traffic.said) <= 8


# --- requests ---------------------------------------------------------------------------------------------------------


def test_few_requests_a_second_are_kept_those_that_missed_apart_and_nothing_of_what_was_said() -> None:
    past = Looking().past
    for n in range(200):
        over(past, NOW_S + n / 100, ttft_s=2.5 if n % 50 == 0 else 0.1)
    rows = [row for _, row in past.recent.met.rows]
    assert len(rows) == 2 * PER_S and len(past.recent.missed.rows) == 4
    assert all(len(row["phases"]) <= MOST_PHASES and row["osl"] == 100 and row["met"] for row in rows)
    assert not any(row["met"] for _, row in past.recent.missed.rows)
    for n in range(100):
        over(past, NOW_S + 10 + n)
    assert len(past.recent.met.rows) == KEPT
    numbers = [number for number, _ in past.recent.met.rows]
    assert all(b == a + 1 for a, b in pairwise(numbers))
    text = json.dumps(snapshot.snapshot(past, NOW_S + 200.0))
    assert "77000001" not in text and "77000002" not in text


# --- decisions --------------------------------------------------------------------------------------------------------


def test_decisions_are_told_in_words_the_newest_first_and_those_alike_once() -> None:
    moved = Change(worker_id="w4", before="decode", role="prefill", outcome="drained")
    records = [decision(1), decision(2, "grow_prefill", moved), decision(3), decision(4), decision(5)]
    rows = decisions.rows(records)
    assert [(row["id"], row["times"], row["since_s"] - NOW_S) for row in rows] == [
        ("d-5", 3, 3.0), ("d-2", 1, 2.0), ("d-1", 1, 1.0)
    ]  # fmt: skip
    assert rows[1]["split"] == "2P2D > 3P1D" and rows[1]["changes"] == ["w4: decode to prefill, drained"]
    assert rows[1]["said"].startswith("Too few prefill workers") and rows[1]["said"] in rows[1]["words"]
    assert len(decisions.rows([decision(n, f"r{n}") for n in range(50)])) == decisions.MOST_ROWS
