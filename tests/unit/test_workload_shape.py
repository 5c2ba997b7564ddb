"""Scaling, looping, cutting, clipping and new times do what their names say, for any load."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd.errors import LoadError
from dopd_loadgen.model import Planned
from dopd_loadgen.workload.chance import generator
from dopd_loadgen.workload.lengths import fixed
from dopd_loadgen.workload.shape import clip, cut, loop, numbered, retime, scale, with_lengths, wrapped_span_s

gap_s = st.floats(0, 100).map(lambda gap: round(gap, 6))


@st.composite
def loads(draw: st.DrawFn) -> list[Planned]:
    at_s, made = 0.0, []
    for gap, isl, osl in draw(st.lists(st.tuples(gap_s, st.integers(1, 5000), st.integers(1, 900)), min_size=2)):
        at_s += gap
        blocks = tuple(range(draw(st.integers(0, 3)), -(-isl // 512)))
        made.append(Planned(len(made), at_s, isl, osl, blocks=blocks))
    return [*made, Planned(len(made), at_s + 1.0, 7, 7)]


def gaps(planned: list[Planned]) -> list[float]:
    return [b.at_s - a.at_s for a, b in pairwise(planned)]


@given(loads(), st.floats(0.01, 100))
def test_scaling_divides_every_gap_so_bursts_stay_bursts(planned: list[Planned], factor: float) -> None:
    scaled = scale(planned, factor)
    assert gaps(scaled) == pytest.approx([gap / factor for gap in gaps(planned)], abs=1e-6)
    assert [(one.isl_tokens, one.blocks) for one in scaled] == [(one.isl_tokens, one.blocks) for one in planned]


@given(loads(), st.integers(0, 5), st.floats(0.1, 4.5))
def test_looping_fills_the_duration_with_the_trace_s_rate(planned: list[Planned], seed: int, turns: float) -> None:
    span_s = wrapped_span_s(planned)
    duration_s = turns * span_s
    looped = loop(planned, generator(seed, "loop"), duration_s)
    times = [one.at_s for one in looped]
    assert times == sorted(times) and all(0 <= at_s < duration_s for at_s in times)
    for turn in range(int(turns)):
        of_turn = [one for one in looped if turn * span_s <= one.at_s < (turn + 1) * span_s]
        # Each whole pass has every request once; rounding may carry one over a border.
        assert abs(len(of_turn) - len(planned)) <= 1
    assert looped[: len(planned)] == [one for one in planned if one.at_s < duration_s][: len(looped)]


@given(loads(), st.integers(1, 400))
def test_looping_fills_a_number(planned: list[Planned], number: int) -> None:
    assert len(loop(planned, generator(0, "loop"), num_prompts=number)) == number


def test_passes_begin_at_random_points_and_share_no_blocks() -> None:
    planned = [Planned(n, float(n), n + 1, 1, blocks=(0, n)) for n in range(100)]
    looped = loop(planned, generator(3, "loop"), num_prompts=400)
    passes = [looped[start : start + 100] for start in range(0, 400, 100)]
    first_lengths = [some[0].isl_tokens for some in passes]
    assert first_lengths[0] == 1 and len(set(first_lengths)) == 4
    for a in range(4):
        assert sorted(one.isl_tokens for one in passes[a]) == list(range(1, 101))
        for b in range(a):
            assert not {i for one in passes[a] for i in one.blocks} & {i for one in passes[b] for i in one.blocks}
    assert loop(planned, generator(3, "loop"), num_prompts=400) == looped
    assert loop(planned, generator(4, "loop"), num_prompts=400) != looped


def test_a_first_pass_may_begin_at_a_random_point_that_the_seed_draws() -> None:
    planned = [Planned(n, float(n), n + 1, 1) for n in range(100)]
    turned = [loop(planned, generator(seed, "loop"), 99.0, turn_first=True) for seed in range(6)]
    for one in turned:
        lengths = [each.isl_tokens for each in one]
        first = lengths[0]
        assert lengths == [*range(first, 101), *range(1, first)][: len(lengths)] and len(lengths) >= 98
    assert len({one[0].at_s for one in turned}) == 6


def test_a_load_without_duration_cannot_be_looped() -> None:
    with pytest.raises(LoadError, match="--loop: a load without a duration"):
        loop([Planned(0, 0.0, 1, 1)], generator(0, "loop"), 10.0)


def test_a_loop_that_fills_the_memory_is_refused() -> None:
    with pytest.raises(LoadError, match="the limit is 10000000"):
        loop([Planned(0, 0.0, 1, 1), Planned(1, 1e-6, 1, 1)], generator(0, "loop"), 3600.0)


@given(loads(), st.floats(0, 300), st.floats(0, 300), st.none() | st.integers(0, 20))
def test_cutting_takes_a_window_and_moves_its_start_to_zero(
    planned: list[Planned], start_s: float, length_s: float, number: int | None
) -> None:
    end_s = start_s + length_s
    inside = [one for one in planned if start_s <= one.at_s < end_s][:number]
    kept = cut(planned, start_s, end_s, number)
    assert [one.index for one in kept] == [one.index for one in inside]
    assert [one.at_s for one in kept] == pytest.approx([one.at_s - start_s for one in inside], abs=1e-9)


@given(loads(), st.integers(2, 6000), st.none() | st.integers(1, 5000), st.none() | st.integers(1, 900))
def test_what_is_clipped_fits_the_model_and_is_counted(
    planned: list[Planned], room: int, max_isl: int | None, max_osl: int | None
) -> None:
    made, clipped = clip(planned, max_isl, max_osl, room)
    for before, after in zip(planned, made, strict=True):
        assert after.isl_tokens + after.osl_tokens <= room
        assert 1 <= after.isl_tokens <= min(before.isl_tokens, max_isl or math.inf)
        assert 1 <= after.osl_tokens <= min(before.osl_tokens, max_osl or math.inf)
        assert after.blocks == before.blocks[: len(after.blocks)]
        assert len(after.blocks) <= -(-after.isl_tokens // 512)
        fits = before.isl_tokens + before.osl_tokens <= room
        if fits and max_isl is None and max_osl is None:
            assert after == before
    shorter = [(b.isl_tokens < a.isl_tokens, b.osl_tokens < a.osl_tokens) for a, b in zip(planned, made, strict=True)]
    assert clipped.get("isl", 0) == sum(isl for isl, _ in shorter)
    assert clipped.get("osl", 0) == sum(osl for _, osl in shorter)


def test_the_prompt_gives_way_to_the_answer_but_a_text_does_not() -> None:
    by_length, by_text = Planned(0, 0.0, 900, 200), Planned(1, 0.0, 900, 200, text="word by word")
    made, clipped = clip([by_length, by_text], max_model_len=1000)
    assert [(one.isl_tokens, one.osl_tokens) for one in made] == [(800, 200), (900, 100)]
    assert clipped == {"isl": 1, "osl": 1}
    with pytest.raises(LoadError, match="word by word has 900 tokens"):
        clip([by_text], max_isl=899)


@pytest.mark.parametrize(("flag", "limit"), [("--max-isl", 0), ("--max-osl", -1), ("--max-model-len", 1)])
def test_limits_that_leave_nothing_are_refused(flag: str, limit: int) -> None:
    with pytest.raises(LoadError, match=flag):
        clip([Planned(0, 0.0, 1, 1)], **{flag[2:].replace("-", "_"): limit})


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_new_times_have_the_rate_and_the_variation_of_the_gamma_process(burstiness: float) -> None:
    timed = retime([Planned(n, 9.9, n + 1, 1) for n in range(20_000)], generator(0, "times"), 50.0, burstiness)
    found = [timed[0].at_s, *gaps(timed)]
    mean = sum(found) / len(found)
    cv = (sum((gap - mean) ** 2 for gap in found) / len(found)) ** 0.5 / mean
    # Of 20,000 gaps the mean strays by cv / 141, and the cv by a few percent.
    assert mean == pytest.approx(1 / 50, rel=4 * burstiness**-0.5 / 141)
    assert cv == pytest.approx(burstiness**-0.5, rel=0.06)
    assert [one.isl_tokens for one in timed] == list(range(1, 20_001))


def test_an_infinite_rate_sends_all_at_once() -> None:
    assert {one.at_s for one in retime([Planned(0, 5.0, 1, 1)] * 3, generator(0, "t"), math.inf)} == {0.0}


@pytest.mark.parametrize(("rate", "burstiness", "flag"), [(0.0, 1.0, "--request-rate"), (-1.0, 1.0, "--request-rate"),
    (math.nan, 1.0, "--request-rate"), (1.0, 0.0, "--burstiness"), (1.0, math.nan, "--burstiness")])  # fmt: skip
def test_rates_that_are_none_are_refused(rate: float, burstiness: float, flag: str) -> None:
    with pytest.raises(LoadError, match=flag):
        retime([Planned(0, 0.0, 1, 1)], generator(0, "t"), rate, burstiness)


def test_other_lengths_keep_the_blocks_that_fit() -> None:
    planned = [Planned(0, 0.0, 1500, 10, blocks=(1, 2, 3))]
    (shorter,) = with_lengths(planned, generator(0, "l"), isl=fixed(600))
    assert (shorter.isl_tokens, shorter.osl_tokens, shorter.blocks) == (600, 10, (1, 2))
    (longer,) = with_lengths(planned, generator(0, "l"), isl=fixed(9000), osl=fixed(3))
    assert (longer.isl_tokens, longer.osl_tokens, longer.blocks) == (9000, 3, (1, 2, 3))


def test_indexes_count_from_zero() -> None:
    assert [one.index for one in numbered([Planned(7, 0.0, 1, 1), Planned(3, 1.0, 1, 1)])] == [0, 1]
