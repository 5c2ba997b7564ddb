"""The live page without a browser: what it remembers and forgets, its document and patches, its colours and files."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dopd.slo import Slo
from dopd_gateway.core import Request
from dopd_gateway.live import KEEP_S, decisions, snapshot
from dopd_gateway.live.bins import BIN_S, Bin, Bins
from dopd_gateway.live.lanes import MOST_CHANGES, MOST_LANES, Lanes
from dopd_gateway.live.listeners import HELD_BYTES
from dopd_gateway.live.past import About, Past
from dopd_gateway.live.recent import KEPT, MOST_PHASES, PER_S
from dopd_gateway.live.snapshot import difference
from dopd_gateway.live.traffic import MOST_ROWS, Traffic, band
from dopd_gateway.over import outcome_of
from dopd_gateway.stream import Inbound
from dopd_gateway.timeline import Place
from dopd_proto.base import Role
from dopd_proto.control import Change, DecisionRecord
from dopd_proto.request import Sampling
from dopd_proto.telemetry import ArrivalWindow, Forecast, GatewayState, OutcomeWindow, SeriesForecast, WorkerState

NOW_S = 1_763_692_800.0
PAGE = Path(snapshot.__file__).parent / "page"
LEVELS = (0.1, 0.5, 0.9, 0.95)


def worker(worker_id: str = "w1", role: Role = "decode", **fields: object) -> WorkerState:
    state = WorkerState(
        worker_id=worker_id, incarnation=f"{worker_id}-1", role=role, epoch=1, phase="serving", model="m",
        kv_domain="local", sent_s=NOW_S, lease_s=3.0, drained_at_s=0.0, kv_used_tokens=430, kv_total_tokens=1000,
    )  # fmt: skip
    return replace(state, **fields)


class Looking:
    """Lanes, and the gateway's knowledge second by second."""

    def __init__(self) -> None:
        self.past = Past.since(About("g1", "g1-1", "m", NOW_S, Slo(2.0, 0.08)), 10.0)
        self.now_s = NOW_S

    @property
    def lanes(self) -> Lanes:
        return self.past.lanes

    def see(self, *states: WorkerState, after_s: float = 1.0) -> None:
        self.now_s += after_s
        known = {state.worker_id: (state, self.now_s) for state in states}
        self.past.look(known, waiting=0, connected=True, now_s=self.now_s)

    def told(self, worker_id: str = "w1") -> list[tuple[float, str, str, str]]:
        return [(at_s - NOW_S, *rest) for at_s, *rest in self.lanes.by_worker[worker_id].stretches]  # type: ignore[misc]


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


def arrivals(gateway_id: str, end_s: float, requests: int) -> ArrivalWindow:
    return ArrivalWindow(
        gateway_id=gateway_id, incarnation="i", start_s=end_s - 10.0, end_s=end_s, requests=requests, isl_tokens_sum=1,
        isl_tokens_square_sum=1, osl_tokens_limit_sum=1,
    )  # fmt: skip


def forecast(start_s: float, horizon_s: float, rate: float, quantiles: tuple[float, ...] = ()) -> Forecast:
    series = (SeriesForecast(name="requests_per_s", model="ses", point=rate, quantiles=quantiles),) if quantiles else ()
    return Forecast(
        start_s=start_s, horizon_s=horizon_s, model="ses", requests_per_s=rate, isl_tokens_mean=1, isl_tokens_var=1,
        osl_tokens_mean=1, bin_s=10.0, quantile_levels=LEVELS, series=series,
    )  # fmt: skip


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


def over(past: Past, at_s: float, ttft_s: float = 0.1, tokens: int = 100, prompt: int = 5) -> None:
    """A request that ended at `at_s`."""
    request = Request("req-1", Inbound([77_000_001] * prompt, Sampling(max_tokens=9), Slo(2.0, 0.08), 0.0), at_s - 3.0)
    request.output[:] = [77_000_002] * tokens
    request.timeline.begin("queued", at_s - 3.0, Place("g1"))
    request.timeline.first_token(at_s - 3.0 + ttft_s, at_s - 3.0 + ttft_s, Place("w1", 1))
    for n in range(90):
        request.timeline.begin("decoding" if n % 2 else "sent", at_s - 2.9 + n / 100, Place(f"w{n}", 1))
    request.timeline.close(at_s)
    past.over(request, outcome_of(request, "length", None))


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


def decision(number: int, reason: str = "best_split", *changes: Change) -> DecisionRecord:
    return DecisionRecord(
        decision_id=f"d-{number}", at_s=NOW_S + number, term=1, why="plan", reason=reason, prefill=2, decode=2,
        changes=changes,
    )  # fmt: skip


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


# --- the document -----------------------------------------------------------------------------------------------------


def full() -> tuple[Past, float]:
    """As much as it ever remembers."""
    looking = Looking()
    past = looking.past
    for n in range(int(KEEP_S / 5)):
        states = [worker(f"w{w}", "prefill" if (n + w) % 7 else "decode") for w in range(30)]
        looking.see(*states, after_s=5.0)
        for k in range(3):
            over(past, looking.now_s + k, ttft_s=0.1 if k else 3.0)
        past.arrived(arrivals("g1", looking.now_s, n), looking.now_s)
        past.expected(forecast(looking.now_s, 10.0, 2.0, (1.0, 2.0, 3.0, 4.0)), looking.now_s)
    now_s = looking.now_s
    past.gateway(GatewayState(gateway_id="g1", incarnation="g1-1", sent_s=now_s, lease_s=3.0, waiting=4), now_s)
    past.ended(
        OutcomeWindow(gateway_id="g1", incarnation="i", start_s=now_s - 10, end_s=now_s, completed=1, failed=0,
                      osl_tokens_sum=1, gateway_ttft_s_sum=1.0, tpot_s_sum=1.0, made_tokens=100), now_s,
    )  # fmt: skip
    past.decided(tuple(decision(n, f"r{n}") for n in range(30)))
    return past, now_s


def nulls(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(nulls, value.values()))
    return sum(map(nulls, value)) if isinstance(value, list | tuple) else value is None


def test_the_document_has_the_keys_that_are_documented_no_nulls_and_a_bounded_size() -> None:
    past, now_s = full()
    made = snapshot.snapshot(past, now_s)
    rows = re.findall(r"^\| (`.*?) \| ", snapshot.__doc__ or "", re.MULTILINE)
    assert set(made) == {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert nulls(made) == 0
    assert len(json.dumps(made)) < HELD_BYTES / 2
    empty = snapshot.snapshot(Looking().past, NOW_S)
    assert set(made) - set(empty) == {"rates", "decisions"} and nulls(empty) == 0


def test_a_quiet_second_changes_little() -> None:
    past, now_s = full()
    before = snapshot.snapshot(past, now_s)
    assert set(difference(before, snapshot.snapshot(past, now_s + 0.5))) == {"at_s"}
    over(past, now_s + 0.5)
    change = difference(before, snapshot.snapshot(past, now_s + 0.5))
    assert set(change) == {"at_s", "bins", "minute", "met"} and len(json.dumps(change)) < 4000


def merged(document: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7386, section 2."""
    made = dict(document)
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        elif isinstance(value, dict):
            known = made.get(key)
            made[key] = merged(known if isinstance(known, dict) else {}, value)
        else:
            made[key] = value
    return made


leaf = st.integers(0, 3) | st.text(max_size=2) | st.booleans() | st.lists(st.integers(0, 2), max_size=2)
documents = st.recursive(
    st.dictionaries(st.sampled_from("abcd"), leaf, max_size=4),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), leaf | inner, max_size=4),
    max_leaves=12,
)


@given(documents, documents)
def test_a_patch_makes_the_later_document_of_the_earlier_one(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert merged(before, difference(before, after)) == after
    assert difference(after, after) == {}


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_page_asks_nobody_else_and_makes_no_html_of_text() -> None:
    for file in PAGE.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, which nobody asks for
        assert not re.search(r"https?:|//\w+\.\w|@import|url\((?!#)", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), file
        for name in re.findall(r'(?:from|src=|href=) ?"(?:\./)?([\w.]+\.(?:js|css|svg))"', text):
            assert (PAGE / name).exists(), name
    markup = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", markup)  # its own policy would refuse them


def colours(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css))


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, "contrast ratio"."""

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_what_it_stands_on(scheme: str) -> None:
    css = (PAGE / "live.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme: dark)", 1)
    found = colours(light) if scheme == "light" else colours(light) | colours(dark.split("* {", 1)[0])
    on_paper = ("ink", "soft", "bad", "good", "wait")
    pairs = [(text, "paper") for text in on_paper] + [("ink", "well"), ("soft", "well"), ("ink", "note")]
    pairs += [("on", role) for role in ("prefill", "decode", "mixed")]
    for text, ground in pairs:
        assert contrast(found[text], found[ground]) >= 4.5, (scheme, text, ground)
