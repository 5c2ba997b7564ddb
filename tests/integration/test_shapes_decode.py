"""A decode worker's tokens come when its steps must end, and KV arrives when the link can have moved it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from dopd.perf.model import prefill_s, step_s, transfer_s
from dopd.slo import tpot_s
from dopd_loadgen.model import Planned, Record
from tests.shapes_rig import H200, LATENCY_S, poisson, serve

ISL = 512
# One-sized prompts that cost next to nothing, so that the number of decodes hardly varies in a closed loop.
LIGHT = replace(H200, prefill_fixed_s=H200.decode_fixed_s, prefill_token_s=1e-7, prefill_token2_s=0.0)


def by_step(records: Sequence[Record]) -> list[tuple[float, list[int]]]:
    """Ends of the decode worker's steps, and the output indices of the tokens they made."""
    made: dict[float, list[int]] = defaultdict(list)
    for record in records:
        for index, time_s in enumerate(record.times_s[1:], start=1):
            made[round(time_s, 9)].append(index)
    return sorted(made.items())


# --- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [5.0, 25.0])
def test_every_step_of_a_decode_worker_lasts_as_long_as_what_is_in_it(rate: float) -> None:
    """Who joins has its last input token still to compute, as a prompt of one token; the rest is in the store."""
    steps = by_step(serve(poisson(120, rate, ISL, 80), prefill=2).records)
    joined = 0
    for (start_s, _), (end_s, made) in pairwise(steps):
        contexts = [ISL + index for index in made if index > 1]
        new = len(made) - len(contexts)
        joined += new
        if contexts:  # else the worker may have been idle before
            one = (ISL + 1) ** 2 - ISL**2
            expected = step_s(H200, new, new * one, len(contexts), sum(contexts))
            assert end_s - start_s == pytest.approx(expected, abs=1e-8)
    assert joined > 100


@pytest.mark.parametrize("running", [1, 16, 128])
def test_while_the_same_requests_run_the_gap_is_the_step_time_of_that_batch_and_context(running: int) -> None:
    steps = by_step(serve([Planned(index, 0.0, ISL, 120) for index in range(running)], prefill=4).records)
    gaps = [
        (end_s - start_s, made)
        for (start_s, before), (end_s, made) in pairwise(steps)
        if len(before) == len(made) == running and 1 not in made
    ]
    assert len(gaps) > 20
    for gap_s, made in gaps:
        assert gap_s == pytest.approx(step_s(H200, 0, 0, running, sum(ISL + index for index in made)), abs=1e-8)


@pytest.mark.parametrize("running", [1, 8, 48])
def test_in_a_closed_loop_tpot_is_the_step_time_at_that_concurrency_and_mean_context(running: int) -> None:
    """Within 3 %: now and then one of them is being prefilled instead."""
    osl = 300
    run = serve([Planned(i, 0.0, ISL, osl) for i in range(4 * running)], LIGHT, prefill=2, concurrency=running)
    tpots = [tpot_s(r.times_s[0], r.times_s[-1], osl) for r in run.records]
    expected = step_s(LIGHT, 0, 0, running, running * (ISL + osl // 2))
    assert np.mean(tpots) == pytest.approx(expected, rel=0.03)


def test_a_full_decode_worker_gives_a_batch_of_tokens_per_step_time() -> None:
    """Within 5 %: a place counts as taken from the moment that its request is placed, while it is still prefilled."""
    running, osl = 64, 400
    profile = replace(LIGHT, max_running=running)
    schedule = [Planned(index, 0.0, ISL, osl) for index in range(5 * running)]
    run = serve(schedule, profile, prefill=2, concurrency=2 * running)
    from_s, to_s = (share * max(r.times_s[-1] for r in run.records) for share in (0.2, 0.7))
    tokens = sum(from_s < time_s <= to_s for r in run.records for time_s in r.times_s[1:])
    ideal = running / step_s(profile, 0, 0, running, running * (ISL + osl // 2))
    assert 0.95 * ideal < tokens / (to_s - from_s) < 1.01 * ideal


# --- transfers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bytes_per_s", [146e9, 10e9, 1e9])
def test_the_kv_of_a_prompt_delays_first_and_second_token_by_its_bytes_over_the_link(bytes_per_s: float) -> None:
    """It is put into the store before the first token, and fetched before the second: on an idle link, exactly."""
    profile = replace(H200, transfer_bytes_per_s=bytes_per_s)
    schedule = [Planned(index, 20.0 * index, isl, 2) for index, isl in enumerate((256, 1024, 1300, 4096))]
    for planned, record in zip(schedule, serve(schedule, profile).records, strict=True):
        kept = planned.isl_tokens // profile.chunk_tokens * profile.chunk_tokens
        move_s = profile.transfer_fixed_s + kept * profile.kv_token_bytes / bytes_per_s
        first_s, second_s = record.times_s
        assert first_s - planned.at_s == pytest.approx(LATENCY_S + prefill_s(profile, planned.isl_tokens) + move_s)
        rest = planned.isl_tokens + 1 - kept
        join_s = step_s(profile, rest, (kept + rest) ** 2 - kept**2, 0, 0)
        assert second_s - first_s == pytest.approx(LATENCY_S + move_s + join_s)


def test_twice_the_bytes_per_token_delay_as_much_as_half_the_link() -> None:
    schedule = poisson(60, 4.0, 1024, 20)
    bytes_twice = replace(H200, kv_token_bytes=2 * H200.kv_token_bytes, transfer_bytes_per_s=4e9)
    link_half = replace(H200, transfer_bytes_per_s=2e9)
    one, other = serve(schedule, bytes_twice), serve(schedule, link_half)
    assert [r.times_s for r in one.records] == [r.times_s for r in other.records]
    assert np.mean(one.ttfts_s) > np.mean(serve(schedule).ttfts_s)


def test_kv_of_prompts_that_are_ready_at_once_comes_to_one_worker_one_after_the_other() -> None:
    """The link of a decode worker is shared: the last of eight waits for the bytes of all."""
    isl, prompts = 1024, 8
    profile = replace(H200, transfer_bytes_per_s=1e9)
    # A prompt that is under way already, so that all eight are in the next step.
    schedule = [Planned(0, 0.0, 256, 1), *(Planned(index, 1e-3, isl, 2) for index in range(1, prompts + 1))]
    records = serve(schedule, profile).records[1:]
    assert len({record.times_s[0] for record in records}) == 1
    waits = sorted(record.times_s[1] - record.times_s[0] for record in records)
    for place, wait_s in enumerate(waits, start=1):
        moved_s = LATENCY_S + profile.transfer_fixed_s + place * (transfer_s(profile, isl) - profile.transfer_fixed_s)
        # It may come in the middle of a step for one before it, and its own follows.
        step = step_s(profile, 1, (isl + 1) ** 2 - isl**2, 0, 0)
        assert moved_s < wait_s < moved_s + 2.1 * step
