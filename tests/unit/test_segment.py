"""From work to an engine job, from a finished job to the next work."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dopd.worker import segment
from dopd.worker.segment import Held
from dopd_proto.base import pack_tokens, unpack_tokens
from dopd_proto.request import DecodeWork, PrefillWork, Sampling, Segment, Work


def bound(worker_id: str = "w1", stop: int | None = None) -> Segment:
    return Segment(worker_id=worker_id, incarnation="i", epoch=0, role="mixed", stop=stop)


def work(prompt: int, stop: int | None = None, output: int = 0, most: int = 10, kind: type[Work] | None = None) -> Work:
    kind = kind or (DecodeWork if stop is None else PrefillWork)
    return kind(
        request_id="r", attempt=2, gateway_id="g", gateway_incarnation="g-1", deadline_s=9.0, priority=3,
        tokens=pack_tokens(range(prompt + output)), prompt_tokens=prompt, sampling=Sampling(max_tokens=most),
        segment=bound(stop=stop),
    )  # fmt: skip


def finish(held: Held) -> None:
    """As the engine would: the tokens of the job, unless they are dropped."""
    job = segment.job_of(held)
    made = job.max_new_tokens if job.emit else 0
    held.made += range(1000, 1000 + made)
    held.times_s += [0.1 * place for place in range(made)]


def test_the_job_of_a_whole_request_makes_all_tokens() -> None:
    held = segment.hold(work(5))
    job = segment.job_of(held)
    assert (list(job.tokens), job.prompt_tokens, job.max_new_tokens, job.emit) == ([0, 1, 2, 3, 4], 5, 10, True)
    assert (job.job_id, job.priority) == ("r.2.d", 3)


def test_a_cut_at_the_end_of_the_prompt_makes_the_first_token() -> None:
    held = segment.hold(work(5, stop=5))
    finish(held)
    assert (held.kind, len(held.made), segment.complete(held), segment.kv_tokens(held)) == ("prefill", 1, False, 5)
    then = segment.next_work(held, bound("w2"))
    assert (unpack_tokens(then.tokens), then.prompt_tokens, then.kv_tokens) == ([0, 1, 2, 3, 4, 1000], 5, 5)
    assert (then.segment.worker_id, then.attempt, then.priority, then.batch) == ("w2", 2, 3, None)


def test_a_cut_inside_the_prompt_makes_no_token_and_hands_the_whole_prompt_on() -> None:
    held = segment.hold(work(5, stop=3))
    job = segment.job_of(held)
    assert (list(job.tokens), job.max_new_tokens, job.emit) == ([0, 1, 2], 1, False)
    finish(held)
    then = segment.next_work(held, bound("w2"))
    assert (unpack_tokens(then.tokens), then.kv_tokens) == ([0, 1, 2, 3, 4], 3)


def test_a_cut_behind_the_prompt_makes_tokens_up_to_it() -> None:
    held = segment.hold(work(5, stop=8))
    finish(held)
    assert (len(held.made), segment.kv_tokens(held)) == (4, 8)
    assert len(unpack_tokens(segment.next_work(held, bound("w2")).tokens)) == 9


def test_a_cut_at_or_behind_the_end_completes_the_request() -> None:
    for stop in (14, 15, 99):
        held = segment.hold(work(5, stop=stop))
        finish(held)
        assert len(held.made) == 10 and segment.complete(held)


def test_a_new_attempt_counts_the_tokens_already_sent() -> None:
    held = segment.hold(work(5, output=4))
    assert (held.index, segment.job_of(held).max_new_tokens) == (4, 6)
    assert segment.hold(work(5, stop=7, output=4)).index == 4


@pytest.mark.parametrize("bad", [work(0), work(5, output=10), work(5, stop=0), work(5, stop=-3), work(5, most=0)])
def test_lengths_that_make_no_sense_are_refused(bad: Work) -> None:
    with pytest.raises(ValueError):
        segment.hold(bad)


def test_the_demand_of_a_segment_ends_at_its_cut() -> None:
    assert segment.hold(work(5)).most_tokens == 15
    assert segment.hold(work(5, stop=3)).most_tokens == 4
    assert segment.hold(work(5, stop=99)).most_tokens == 15


def test_what_was_made_can_be_told_again_from_any_index() -> None:
    held = segment.hold(work(5, output=2))
    finish(held)
    assert segment.since(held, 0)[0] == held.made
    tokens, times_s = segment.since(held, 5)
    assert (tokens[0], len(tokens), len(times_s)) == (1003, 5, 5)


@given(st.integers(1, 30), st.integers(1, 20), st.integers(0, 19), st.integers(1, 60))
def test_two_segments_make_every_token_exactly_once(prompt: int, most: int, output: int, cut: int) -> None:
    assume(output < most)
    first = segment.hold(work(prompt, stop=cut, output=output, most=most))
    finish(first)
    made = len(first.made)
    assert made == max(0, min(most - output, cut - prompt - output + 1))
    if segment.complete(first):
        return
    assert segment.kv_tokens(first) == cut
    second = segment.hold(segment.next_work(first, bound("w2")))
    assert second.index == output + made
    finish(second)
    assert second.index + len(second.made) == most and segment.complete(second)


def test_kv_of_another_domain_is_far_and_the_engine_is_told_how_much_of_it_there_is() -> None:
    held = segment.hold(work(5, stop=5))
    finish(held)
    then = segment.next_work(held, bound("w2"), "host-a")
    assert (then.kv_tokens, then.kv_domain) == (5, "host-a")
    assert segment.is_far(then, "host-b") and not segment.is_far(then, "host-a")
    assert not segment.is_far(work(5), "host-b")
    far, near = (segment.job_of(segment.hold(then), domain) for domain in ("host-b", "host-a"))
    assert (far.far_tokens, near.far_tokens) == (5, 0)
