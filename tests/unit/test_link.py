"""Transfers that share a link, and what an emulated engine makes of several fetches at once."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd.engine.contract import Job
from dopd.engine.sim.core import SimCore
from dopd.perf.link import Link
from dopd.perf.model import transfer_s
from dopd.perf.profile import named
from dopd_proto.request import Sampling

PROFILE = replace(named("h200-llama-3.1-8b-fp8-tp1"), transfer_fixed_s=0.5, transfer_bytes_per_s=131_072 * 1000.0)
"""A thousand tokens a second."""


def test_an_idle_link_takes_the_time_of_the_transfer_alone() -> None:
    link = Link(PROFILE)
    assert link.move(256, 7.0) == 7.0 + transfer_s(PROFILE, 256)
    assert link.move(256, 100.0) == 100.0 + transfer_s(PROFILE, 256)


def test_nothing_to_move_is_there_at_once_however_busy_the_link_is() -> None:
    link = Link(PROFILE)
    link.move(5000, 1.0)
    assert link.move(0, 2.0) == link.move(-1, 2.0) == 2.0


@pytest.mark.parametrize("count", [1, 2, 7])
def test_equal_transfers_at_once_end_after_the_bytes_of_all(count: int) -> None:
    link = Link(PROFILE)
    ends = [link.move(1000, 3.0) for _ in range(count)]
    assert ends == pytest.approx([3.0 + 0.5 + n for n in range(1, count + 1)])
    assert ends[-1] == pytest.approx(3.0 + transfer_s(PROFILE, count * 1000))


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0.0, 3.0)), max_size=30))
def test_a_link_is_never_idle_while_somebody_waits_and_never_faster_than_alone(asked: list[tuple[int, float]]) -> None:
    link, now_s, busy_until_s = Link(PROFILE), 0.0, 0.0
    for tokens, gap_s in asked:
        now_s += gap_s
        arrived_s = link.move(tokens, now_s)
        assert arrived_s >= now_s + transfer_s(PROFILE, tokens) - 1e-9
        if tokens:
            busy_until_s = max(busy_until_s, now_s) + tokens / 1000
            assert arrived_s == pytest.approx(busy_until_s + 0.5)


def ready(core: SimCore) -> list[float]:
    return [seq.ready_s for seq in core.waiting]


def fetch(core: SimCore, job_id: str, tokens: int, now_s: float) -> None:
    """Submit a job of which the store has all whole chunks."""
    prompt = [3 + ord(job_id)] * tokens
    core.submit(Job(job_id, prompt, tokens, 5, Sampling(max_tokens=5)), tokens // core.chunk_tokens, 0, now_s)


def test_several_requests_that_fetch_at_once_at_one_engine_take_longer_than_one() -> None:
    core = SimCore(PROFILE, save_decode=False)
    for name in "abc":
        fetch(core, name, 1024, now_s=10.0)
    fetch(core, "d", 100, now_s=10.0)  # less than a chunk: nothing to fetch
    assert ready(core) == pytest.approx([10.0 + 0.5 + 1.024 * n for n in (1, 2, 3)] + [10.0])


def test_the_times_of_a_fetch_tell_what_the_wait_for_the_link_was() -> None:
    core = SimCore(PROFILE, save_decode=False)
    fetch(core, "a", 1024, now_s=10.0)
    fetch(core, "b", 1024, now_s=10.0)
    begun: dict[str, tuple[float | None, float | None]] = {}
    now_s = 10.0
    while len(begun) < 2:
        took_s = core.begin_step(now_s)
        now_s = core.retry_at(now_s) if took_s is None else now_s + took_s
        for output in core.end_step(now_s)[0] if took_s is not None else ():
            if output.cached is not None:
                begun[output.job_id] = (output.cached.fetch_s, output.cached.fetched_s)
    assert begun["a"] == (10.0, pytest.approx(11.524))
    assert begun["b"] == (10.0, pytest.approx(12.548))
