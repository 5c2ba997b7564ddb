"""A request's timeline: what marks become phases, what is told twice, what happens to too many."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dopd_gateway.timeline import MOST, Place, Timeline
from dopd_proto.request import Timing

G = Place("g1")
W1, W2 = Place("w1", 1, 7), Place("w2", 1, 8)


def arrived() -> Timeline:
    line = Timeline()
    line.begin("queued", 1.0, G)
    line.placed(2.0, G)
    return line


def names(line: Timeline) -> list[str]:
    return [phase.name for phase in line.phases(99.0)]


def test_a_segments_timing_becomes_its_phases_and_the_fetch_lies_between_two_waits() -> None:
    line = arrived()
    line.ran(W1, Timing(received_s=3.0, fetch_s=4.0, fetched_s=5.0, scheduled_s=6.0), (7.0, 8.0), True, True)
    line.first_token(7.0, 7.5, W1)
    line.close(9.0)
    assert [(p.name, p.start_s, p.end_s, p.place.where) for p in line.phases(99.0)] == [
        ("queued", 1.0, 2.0, "g1"),
        ("sent", 2.0, 3.0, "g1"),
        ("prefill_queued", 3.0, 4.0, "w1"),
        ("kv_transfer", 4.0, 5.0, "w1"),
        ("prefill_queued", 5.0, 6.0, "w1"),
        ("prefilling", 6.0, 7.0, "w1"),
        ("first_token_sent", 7.0, 7.5, "w1"),
        ("decoding", 7.0, 9.0, "w1"),
    ]


def test_what_is_told_twice_counts_once_and_what_is_not_known_is_left_out() -> None:
    line = arrived()
    whole = Timing(received_s=3.0, scheduled_s=4.0, done_s=6.0)
    for _ in range(3):
        line.ran(W1, whole, (5.0,), True, goes_on=True)
    line.ran(W2, Timing(received_s=7.0), (8.0,), False, goes_on=True)
    assert names(line) == [
        "queued",
        "sent",
        "prefill_queued",
        "prefilling",
        "handing_over",
        "decode_queued",
        "decoding",
    ]
    assert line.phases(99.0)[-1].end_s == 99.0


def test_two_segments_of_one_worker_are_told_apart_by_their_times() -> None:
    line = arrived()
    line.ran(W1, Timing(received_s=3.0, scheduled_s=4.0, done_s=5.0), (5.0,), True, goes_on=True)
    line.ran(W1, Timing(received_s=5.5, scheduled_s=6.0), (7.0,), False, goes_on=True)
    assert names(line)[-3:] == ["decode_queued", "first_decode_step", "decoding"]


def test_a_segment_without_tokens_hands_over_when_it_was_done() -> None:
    line = arrived()
    line.ran(W1, Timing(received_s=3.0, scheduled_s=4.0, done_s=6.0), (), True, goes_on=True)
    assert [(p.name, p.start_s) for p in line.phases(7.0)][-2:] == [("prefilling", 4.0), ("handing_over", 6.0)]


def test_a_lost_attempt_is_lost_from_the_last_that_was_known() -> None:
    handed = arrived()
    handed.ran(W1, Timing(received_s=3.0, scheduled_s=4.0, done_s=5.0), (5.0,), True, goes_on=True)
    handed.ran(W1, Timing(accepted_s=5.5), (), True, goes_on=False)
    handed.lost(5.0, W2)
    assert [(p.name, p.start_s) for p in handed.phases(9.0)][-2:] == [("handing_over", 5.0), ("lost", 5.5)]
    silent = arrived()
    silent.lost(0.0, W1)
    assert names(silent) == ["queued", "sent"]


def test_another_attempt_forgets_what_was_known_of_the_one_before() -> None:
    line = arrived()
    line.ran(W1, Timing(received_s=3.0, accepted_s=8.0), (), True, goes_on=True)
    line.placed(10.0, G)
    line.ran(W1, Timing(received_s=11.0), (), True, goes_on=True)
    line.lost(0.0, W1)
    assert line.phases(12.0)[-1][:3] == ("lost", 11.0, 12.0)


@given(st.integers(0, 400))
def test_however_many_attempts_the_phases_are_bounded_and_without_a_hole(attempts: int) -> None:
    line = Timeline()
    for number in range(attempts):
        line.begin("queued", float(2 * number), G)
        line.placed(2 * number + 1.0, G)
    line.close(2.0 * attempts)
    phases = line.phases(0.0)
    assert len(phases) == min(2 * attempts, MOST)
    assert all(a.end_s == b.start_s for a, b in pairwise(phases))
    assert not phases or (phases[0].start_s, phases[-1].end_s) == (0.0, 2.0 * attempts)
