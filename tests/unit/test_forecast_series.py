"""From windows to series: several gateways, restarts, lost and late windows, idle time, and numbers that cannot be."""

import math
from itertools import permutations

import pytest

from dopd.perf.profile import named
from dopd_forecaster.bins import GAP_BINS, KEEP_BINS, below
from dopd_forecaster.series import SERIES, Series
from dopd_proto.telemetry import ArrivalWindow, OutcomeWindow

PROFILE = named("h200-llama-3.1-8b-fp8-tp1")


def series(short_tokens: int = 128) -> Series:
    return Series(10.0, PROFILE, PROFILE, short_tokens)


def arrivals(
    start_s: float, requests: int = 10, isl: int = 100, gateway: str = "g1", end_s: float | None = None, life: int = 1,
    limit: int = 50,
) -> ArrivalWindow:  # fmt: skip
    histogram = [0] * 20
    histogram[isl.bit_length()] = requests
    return ArrivalWindow(
        gateway_id=gateway, incarnation=f"{gateway}-{life}", start_s=start_s, requests=requests,
        end_s=start_s + 10 if end_s is None else end_s, isl_tokens_sum=requests * isl,
        isl_tokens_square_sum=requests * isl * isl, osl_tokens_limit_sum=requests * limit,
        isl_tokens_histogram=tuple(histogram),
    )  # fmt: skip


def outcomes(start_s: float, completed: int, made: int, context: int = 0, gateway: str = "g1") -> OutcomeWindow:
    return OutcomeWindow(
        gateway_id=gateway, incarnation=f"{gateway}-1", start_s=start_s, end_s=start_s + 10, completed=completed,
        failed=0, osl_tokens_sum=0, gateway_ttft_s_sum=0.0, tpot_s_sum=0.0, made_tokens=made,
        made_context_tokens=context,
    )  # fmt: skip


def rates(*windows: ArrivalWindow, at_s: float | None = None) -> list[float]:
    """Requests per second in the bins that are closed when the windows came in, each at its end."""
    seen = series()
    for window in windows:
        now_s = window.end_s if at_s is None else at_s
        assert seen.add_arrivals(window, now_s) == ""
        seen.close(now_s)
    return seen.values("requests_per_s")


# --- values -----------------------------------------------------------------------------------------------------------


def test_a_window_gives_rate_work_and_lengths() -> None:
    seen = series()
    seen.add_outcomes(outcomes(0, completed=4, made=80, context=8080), 10.0)
    seen.add_arrivals(arrivals(0, requests=20, isl=100), 10.0)
    assert seen.close(10.0) == [0]
    value = {name: seen.values(name)[-1] for name in SERIES}
    assert value["requests_per_s"] == 2.0
    alone_s = PROFILE.prefill_fixed_s + 100 * PROFILE.prefill_token_s + 1e4 * PROFILE.prefill_token2_s
    assert value["prefill_work"] == pytest.approx(2.0 * alone_s)
    decode_s = 20 * PROFILE.decode_request_s + 2020 * PROFILE.decode_context_s
    assert value["decode_work"] == pytest.approx(2.0 * decode_s)
    assert (value["isl_tokens_mean"], value["isl_square_mean"]) == (100, 10_000)
    assert (value["osl_tokens_mean"], value["short_share"]) == (20, 1.0)


def test_prefill_work_counts_the_variance_of_lengths() -> None:
    """D6: two of 1,000 tokens cost less than one of 100 and one of 1,900."""
    alike, mixed = series(), series()
    alike.add_arrivals(arrivals(0, requests=2, isl=1000), 10.0)
    mixed.add_arrivals(arrivals(0, requests=1, isl=100, gateway="g1"), 10.0)
    mixed.add_arrivals(arrivals(0, requests=1, isl=1900, gateway="g2"), 10.0)
    alike.close(10.0), mixed.close(10.0)
    gap = mixed.values("prefill_work")[0] - alike.values("prefill_work")[0]
    assert gap == pytest.approx(PROFILE.prefill_token2_s * 2 * 900**2 / 10)


def test_while_nothing_has_completed_the_limit_stands_in_for_the_length() -> None:
    seen = series()
    seen.add_arrivals(arrivals(0, requests=10, limit=300), 10.0)
    seen.close(10.0)
    assert seen.osl_from_limit
    assert seen.decode_s() == pytest.approx(300 * PROFILE.decode_request_s)
    assert math.isnan(seen.values("osl_tokens_mean")[0])


def test_running_requests_count_so_that_short_answers_do_not_pass_for_all() -> None:
    """Half of the answers have 10 tokens, half 200 at one a second: a mean over completed ones alone begins at 10."""
    seen, completed_of, late = series(), [], []
    for number in range(60):
        # 10 requests a bin: 5 end within it, 5 of 20 bins ago end now; those between make 10 tokens each
        long_ends = 5 if number >= 20 else 0
        made = 5 * 10 + 5 * 10 * min(number + 1, 20)
        seen.add_outcomes(outcomes(number * 10, 5 + long_ends, made), number * 10 + 10)
        seen.add_arrivals(arrivals(number * 10, limit=500), number * 10 + 10)
        seen.close(number * 10 + 10)
        completed_of.append((5 * 10 + long_ends * 200) / (5 + long_ends))
        late.append(seen.values("osl_tokens_mean")[-1])
    assert completed_of[10] == 10 and late[10] > 80
    assert late[-1] == pytest.approx((10 + 200) / 2)


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0), (1, 1), (2, 3), (128, 3 + 5), (96, 3 + 2.5), (10**6, 12)])
def test_the_share_of_short_prompts_is_read_off_the_classes_of_length(tokens: int, expected: float) -> None:
    histogram = [1, 2, 0, 0, 0, 0, 0, 5, 0, 4]
    assert below(histogram, tokens) == expected


# --- gateways ---------------------------------------------------------------------------------------------------------


def test_gateways_add_up_whatever_the_order_in_which_they_are_heard() -> None:
    windows = [arrivals(0, 10), arrivals(0, 30, gateway="g2"), arrivals(10, 20), arrivals(10, 0, gateway="g2")]
    for order in permutations(windows):
        seen = series()
        for window in order:
            seen.add_arrivals(window, 20.0)
        seen.close(20.0)
        assert seen.values("requests_per_s") == [4.0, 2.0]


def test_a_bin_waits_for_the_slower_gateway_but_not_for_ever() -> None:
    seen = series()
    for gateway in ("g1", "g2"):
        seen.add_arrivals(arrivals(0, 10, gateway=gateway), 10.0)
    assert seen.close(10.0) == [0]
    seen.add_arrivals(arrivals(10, 10), 20.0)
    assert seen.close(20.0) == []
    assert seen.close(25.0) == [1]


def test_a_lost_window_is_no_drop_of_the_load() -> None:
    """g2 said nothing of bin 1, and goes on in bin 2."""
    found = rates(
        arrivals(0, 10), arrivals(0, 30, gateway="g2"), arrivals(10, 10), arrivals(20, 10),
        arrivals(20, 30, gateway="g2"),
    )  # fmt: skip
    assert found == [4.0, 4.0, 4.0]


def test_a_window_that_comes_late_takes_the_place_of_what_was_assumed() -> None:
    seen = series()
    for window in (arrivals(0, 10), arrivals(0, 30, gateway="g2"), arrivals(10, 10)):
        seen.add_arrivals(window, window.end_s)
        seen.close(window.end_s)
    seen.close(26.0)
    assert seen.values("requests_per_s") == [4.0, 4.0]
    assert seen.add_arrivals(arrivals(10, 50, gateway="g2"), 27.0) == ""
    assert seen.values("requests_per_s") == [4.0, 6.0]


def test_a_gateway_that_vanishes_stops_counting_after_three_windows() -> None:
    windows = [arrivals(0, 30, gateway="g2"), *(arrivals(10 * number, 10) for number in range(8))]
    found = rates(*windows)
    assert found[:3] == [4.0, 4.0, 4.0] and found[-1] == 1.0


def test_a_gateway_that_restarts_is_one_and_not_two() -> None:
    """The old life's last 4 s are lost; the bin is worth what was seen of it, not 40 % less."""
    found = rates(arrivals(0, 10), arrivals(10, 10), arrivals(24, 6, life=2, end_s=30), arrivals(30, 10, life=2))
    assert found == [1.0, 1.0, 1.0, 1.0]


def test_a_gateway_that_joins_adds_what_it_counts() -> None:
    found = rates(arrivals(0, 10), arrivals(10, 10), arrivals(14, 6, gateway="g2", end_s=20), arrivals(20, 10))
    assert found[1] == pytest.approx(1.6)


def test_windows_of_another_length_are_spread_over_the_bins() -> None:
    found = rates(arrivals(0, 60, end_s=30), arrivals(30, 30, end_s=60))
    assert found == pytest.approx([2.0, 2.0, 2.0, 1.0, 1.0, 1.0])


def test_a_timer_that_fires_a_little_early_does_not_hold_up_the_bin() -> None:
    found = rates(arrivals(0, 10, end_s=9.9), arrivals(9.9, 10, end_s=20.02))
    assert len(found) == 2
    assert found == pytest.approx([1.0, 1.0], rel=0.03)


# --- time without anything --------------------------------------------------------------------------------------------


def test_no_request_is_a_zero_and_no_mean() -> None:
    seen = series()
    seen.add_arrivals(arrivals(0, requests=0), 10.0)
    seen.close(10.0)
    assert seen.values("requests_per_s") == [0.0]
    assert math.isnan(seen.values("isl_tokens_mean")[0])


def test_what_the_one_gateway_did_not_tell_of_is_not_zero() -> None:
    """It lives on, so its windows were lost."""
    assert rates(arrivals(0, 10), arrivals(30, 20)) == [1.0, 1.0, 1.0, 2.0]


def test_nobody_there_for_some_bins_leaves_them_unknown() -> None:
    found = rates(arrivals(0, 10), arrivals(100, 20, life=2))
    assert found[0] == 1.0 and found[-1] == 2.0 and len(found) == 11
    assert all(math.isnan(value) for value in found[1:-1])


def test_after_a_long_gap_all_begins_anew() -> None:
    gap_s = (GAP_BINS + 1) * 10.0
    assert rates(arrivals(0, 10), arrivals(10 + gap_s, 20, life=2)) == [2.0]


def test_an_unknown_bin_makes_a_flow_over_it_unknown_and_leaves_it_out_of_a_mean() -> None:
    seen = series()
    for window in (arrivals(0, 10, isl=100), arrivals(20, 20, isl=400, life=2)):
        seen.add_arrivals(window, window.end_s)
        seen.close(window.end_s)
    assert math.isnan(seen.actual("requests_per_s", 0, 3)[0])
    assert seen.actual("isl_tokens_mean", 0, 3) == (pytest.approx((10 * 100 + 20 * 400) / 30), 30)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_the_same_time_of_the_same_life_counts_once() -> None:
    seen = series()
    assert seen.add_arrivals(arrivals(0), 10.0) == ""
    assert seen.add_arrivals(arrivals(0), 10.0) == "duplicate"
    assert seen.add_arrivals(arrivals(5, end_s=12), 12.0) == "duplicate"
    assert seen.add_outcomes(outcomes(0, 1, 1), 10.0) == ""
    assert seen.add_outcomes(outcomes(0, 1, 1), 10.0) == "duplicate"


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        (arrivals(math.nan), "not_finite"),
        (arrivals(0, end_s=math.inf), "not_finite"),
        (arrivals(0, end_s=0.0), "empty"),
        (arrivals(0, end_s=-5.0), "empty"),
        (arrivals(0, requests=-1), "negative"),
        (arrivals(5000.0), "future"),
        (arrivals(1000.0 - (KEEP_BINS + 1) * 10.0), "old"),
    ],
)
def test_a_window_that_cannot_be_is_refused_with_its_reason(window: ArrivalWindow, reason: str) -> None:
    seen = series()
    assert seen.add_arrivals(window, 1000.0) == reason
    assert seen.close(1000.0) == [] and seen.values("requests_per_s") == []


def test_memory_does_not_grow_with_time() -> None:
    seen = series()
    for number in range(2 * KEEP_BINS):
        seen.add_outcomes(outcomes(number * 10, 1, 1), number * 10 + 10)
        seen.add_arrivals(arrivals(number * 10, life=1 + number // 100), number * 10 + 10)
        seen.close(number * 10 + 10)
    assert len(seen.values("requests_per_s")) == KEEP_BINS
    assert len(seen._bins._parts) <= KEEP_BINS + 1 and len(seen._bins._taken) <= 4
