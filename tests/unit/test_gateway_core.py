"""One request in the gateway: what it takes of the runs that come, what it shows, what work it makes."""

import random
from array import array

from hypothesis import given
from hypothesis import strategies as st

from dopd.slo import Slo
from dopd_gateway import core
from dopd_gateway.core import Request, Taken
from dopd_gateway.lengths import Lengths
from dopd_gateway.stream import Inbound
from dopd_proto.base import pack_tokens, unpack_tokens
from dopd_proto.request import BatchTag, DecodeWork, PrefillWork, Run, Sampling, Segment

PROMPT = [7, 8, 9]


def segment(worker_id: str, stop: int | None = None) -> Segment:
    return Segment(worker_id=worker_id, incarnation=f"{worker_id}-1", epoch=0, role="mixed", stop=stop)


def a_request(*slip: Segment, most: int = 10) -> Request:
    inbound = Inbound(list(PROMPT), Sampling(max_tokens=most), Slo(), deadline_s=9.0, priority=2)
    return Request("r", inbound, 0.0, attempt=1, slip=slip, unfetched=len(slip) > 1, placed_tokens=len(PROMPT))


def run(index: int, *tokens: int, **more: object) -> Run:
    times_s = tuple(float(index + place) for place in range(len(tokens)))
    return Run(request_id="r", attempt=1, index=index, tokens=pack_tokens(tokens), times_s=times_s, **more)  # type: ignore[arg-type]


def feed(request: Request, new: Run, worker_id: str) -> list[Taken]:
    """As the gateway does: what a run makes possible is taken with it."""
    taken = [core.take(request, new, worker_id, f"{worker_id}-1")]
    while later := core.due(request):
        taken.append(core.take(request, *later))
    return taken


@given(
    st.integers(1, 12),
    st.integers(0, 12),
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), max_size=6),
    st.integers(0, 1 << 32),
)
def test_each_token_is_taken_once_and_in_order_however_the_runs_come(
    count: int, cut: int, repeats: list[tuple[int, int]], order: int
) -> None:
    cut = min(cut, count - 1)
    tokens = [100 + place for place in range(count)]
    sent = [("w1", run(place, tokens[place])) for place in range(cut)]
    sent += [("w1", run(cut, end="handed_over"))]
    sent += [
        ("w2", run(place, tokens[place], end="length" if place + 1 == count else None)) for place in range(cut, count)
    ]
    for start, length in repeats:
        worker_id, upto = ("w1", cut) if start < cut else ("w2", count)
        if start < upto:
            part = tokens[start : min(upto, start + length)]
            end = "length" if start + len(part) == count else None
            sent.append((worker_id, run(start, *part, end=end)))
    random.Random(order).shuffle(sent)
    request = a_request(segment("w1", 3 + cut), segment("w2"), most=count)
    pieces, ends = [], []
    for worker_id, new in sent:
        for taken in feed(request, new, worker_id):
            if taken.piece is not None:
                assert taken.piece.index == sum(len(piece.tokens) for piece in pieces)
                assert len(taken.piece.tokens) == len(taken.piece.times_s)
                pieces.append(taken.piece)
            ends += [taken.end] if taken.end == "length" else []
            if ends:  # the gateway forgets the request here
                break
        if ends:
            break
    assert [token for piece in pieces for token in piece.tokens] == tokens == request.output
    assert ends == ["length"]
    assert [time_s for piece in pieces for time_s in piece.times_s] == [float(place) for place in range(count)]


def test_a_run_that_is_too_early_is_kept_and_the_hole_reported() -> None:
    request = a_request(segment("w1"))
    assert feed(request, run(1, 51), "w1") == [Taken(gap=True)]
    assert [taken.piece.tokens for taken in feed(request, run(0, 50), "w1") if taken.piece] == [(50,), (51,)]


def test_the_word_of_the_second_worker_moves_the_responsibility() -> None:
    request = a_request(segment("w1", 3), segment("w2"))
    feed(request, run(0, 50, started=True), "w1")
    assert request.holder() == segment("w1", 3) and request.unfetched
    feed(request, run(1, 51, started=True), "w2")
    assert request.holder() == segment("w2") and not request.unfetched


def test_only_workers_of_the_slip_are_known() -> None:
    request = a_request(segment("w1"))
    assert request.knows("w1", "w1-1")
    assert not request.knows("w1", "w1-2")
    assert not request.knows("w2", "w2-1")


def test_the_first_and_the_last_time_are_those_of_the_tokens() -> None:
    request = a_request(segment("w1"))
    feed(request, run(0, 50, 51), "w1")
    feed(request, run(1, 51, 52), "w1")
    assert (request.first_s, request.last_s) == (0.0, 2.0)


def test_a_cut_inside_the_prompt_has_stored_no_more_than_the_cut() -> None:
    request = a_request(segment("w1", 2), segment("w2"))
    assert core.stored_tokens(request, "open") == 2
    request.output += [50]  # from an earlier attempt
    request.placed_tokens = 4
    assert core.stored_tokens(request, "open") == 2
    request.output += [51]
    assert core.stored_tokens(request, "open") == 4


def test_work_that_was_given_back_untouched_has_stored_nothing() -> None:
    request = a_request(segment("w1", 3), segment("w2"))
    assert core.stored_tokens(request, "migrated") == 0


def test_the_view_counts_what_is_left() -> None:
    request = a_request(most=10)
    request.output += [50, 51]
    request.kv_tokens = 4
    seen = core.view(request, Lengths())
    assert (seen.isl_tokens, seen.uncached_tokens, seen.kv_tokens, seen.max_new_tokens) == (5, 1, 4, 8)
    assert (seen.osl_tokens, seen.priority, seen.arrived_s) == (8.0, -2, 0.0)  # policies: the highest first


def test_a_first_segment_with_an_end_is_prefill_work_and_names_the_next() -> None:
    request = a_request(segment("w1", 5), segment("w2"))
    request.output += [50]
    tag = BatchTag(batch_id="b")
    work = core.work_of(request, ("g", "g-1"), tag, any_role=True)
    assert isinstance(work, PrefillWork)
    assert (work.then, work.segment, work.batch, work.any_role) == (segment("w2"), segment("w1", 5), tag, True)
    assert (unpack_tokens(work.tokens), work.prompt_tokens, work.deadline_s) == ([7, 8, 9, 50], 3, 9.0)


def test_a_segment_to_the_end_is_decode_work() -> None:
    work = core.work_of(a_request(segment("w1")), ("g", "g-1"), None, any_role=False)
    assert isinstance(work, DecodeWork)
    assert (work.gateway_id, work.gateway_incarnation, work.batch) == ("g", "g-1", None)


def test_a_segment_that_ends_before_its_request_leaves_it_open() -> None:
    request = a_request(most=10)  # 3 tokens of prompt: the last of the output is made from 12 tokens
    assert [core.left_open(request, segment("w1", stop)) for stop in (2, 3, 11, 12, None)] == [True] * 3 + [False] * 2
    assert not core.left_open(a_request(most=1), segment("w1", 3)), "the prefill's token is the only one"


def test_kv_of_an_open_segment_counts_until_another_worker_has_the_request() -> None:
    request = a_request(segment("w1", 3))
    request.unfetched = core.left_open(request, request.slip[-1])
    feed(request, run(0, 5, started=True, end="open"), "w1")
    assert request.unfetched


def likely(*tokens: int) -> dict[str, bytes]:
    """A row of two for each token: the token itself, and the one after it."""
    ids = [each for token in tokens for each in (token, token + 1)]
    return {"logprob_ids": pack_tokens(ids), "logprobs": array("f", [-each / 4 for each in ids]).tobytes()}


def test_log_probabilities_come_once_and_with_their_tokens_however_the_runs_overlap() -> None:
    request = a_request(segment("w1", 3), segment("w2"))
    sent = [
        ("w1", run(0, 10, **likely(10))),
        ("w2", run(3, 40, 50, **likely(40, 50))),
        ("w1", run(0, 10, 20, **likely(10, 20))),
        ("w1", run(1, 20, 30, **likely(20, 30))),
        ("w2", run(3, 40, 50, **likely(40, 50))),
    ]
    pieces = [taken.piece for worker_id, each in sent for taken in feed(request, each, worker_id) if taken.piece]
    rows = [row for piece in pieces for row in piece.logprobs]
    assert [token for piece in pieces for token in piece.tokens] == [10, 20, 30, 40, 50]
    assert rows == [([token, token + 1], [-token / 4, -(token + 1) / 4]) for token in (10, 20, 30, 40, 50)]
