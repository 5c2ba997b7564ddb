"""Static splits: names, who gets a prompt, who an answer, and what happens when one phase is full."""

from dataclasses import replace

import pytest

from dopd.cluster import ClusterView, Role, WorkerView
from dopd.errors import ConfigError
from dopd.policy import policy_named, sizes
from dopd.policy.base import RequestView, SegmentPlan
from dopd.policy.simple import SIMPLE
from dopd.policy.static_split import StaticSplit, named_split, static_split
from dopd.slo import Slo

ROOM = {"a": 100_000}


def worker(worker_id: str, role: Role, **more: int) -> WorkerView:
    given = WorkerView(worker_id, worker_id, role, 0, True, credit=4, kv_total_tokens=100_000, kv_domain="a")
    return replace(given, **more)


def request(number: int, isl: int = 1000, **more: int) -> RequestView:
    given = RequestView(f"r{number}", isl, isl, 100.0, 0.0, 100, Slo(), 0, float(number))
    return replace(given, **more)


def decided(
    *workers: WorkerView, queue: list[RequestView], room: dict[str, int] = ROOM, now_s: float = 0.0
) -> dict[str, list[SegmentPlan]]:
    _, dispatches, _ = StaticSplit().step(None, queue, ClusterView(workers, room), now_s)
    return {p.request_id: list(p.segments) for dispatch in dispatches for p in dispatch.placements}


def test_every_split_has_a_name() -> None:
    assert named_split("static-3p5d") == (3, 5)
    assert policy_named("static-12p4d").split == (12, 4)
    assert policy_named("static-3p5d") == static_split(3, 5)


@pytest.mark.parametrize("name", ["static-0p4d", "static-4p0d", "static-3p", "static-3p5", "static", "static-03p5d"])
def test_what_is_no_split_is_an_unknown_name(name: str) -> None:
    with pytest.raises(ConfigError, match="static-<n>p<m>d"):
        policy_named(name)


def test_a_split_goes_before_the_default_sizes_and_contradicts_any_others() -> None:
    assert sizes(static_split(3, 5), (2, 2), default=(2, 2)) == (3, 5)
    assert sizes(static_split(3, 5), (3, 5), default=(2, 2)) == (3, 5)
    assert sizes(SIMPLE, (7, 1), default=(2, 2)) == (7, 1)
    with pytest.raises(ConfigError, match="contradicts static-3p5d"):
        sizes(static_split(3, 5), (5, 3), default=(2, 2))


def test_a_prompt_goes_where_the_fewest_tokens_wait_not_the_fewest_requests() -> None:
    long_one = worker("p1", "prefill", queued_prefill_tokens=9000, running=1)
    short_ones = worker("p2", "prefill", queued_prefill_tokens=1200, running=3)
    plan = decided(long_one, short_ones, worker("d1", "decode"), queue=[request(1)])
    assert plan["r1"] == [SegmentPlan("p2", 1000), SegmentPlan("d1")]


def test_an_answer_goes_where_requests_and_context_together_are_least() -> None:
    many_short = worker("d1", "decode", running=12, decoding=12, context_tokens=6000)
    few_long = worker("d2", "decode", running=6, decoding=6, context_tokens=24_000)
    plan = decided(worker("p1", "prefill"), many_short, few_long, queue=[request(1)])
    assert plan["r1"][1] == SegmentPlan("d1"), "12 + 6000 / mean of 1667 is less than 6 + 24000 / 1667"


def test_what_a_round_gives_counts_within_the_round() -> None:
    workers = [worker("p1", "prefill"), worker("p2", "prefill"), worker("d1", "decode"), worker("d2", "decode")]
    plan = decided(*workers, queue=[request(number) for number in range(4)])
    assert sorted(segments[0].worker_id or "" for segments in plan.values()) == ["p1", "p1", "p2", "p2"]
    assert sorted(segments[1].worker_id or "" for segments in plan.values()) == ["d1", "d1", "d2", "d2"]


def test_without_a_place_to_decode_the_prompt_is_computed_all_the_same() -> None:
    plan = decided(worker("p1", "prefill"), worker("d1", "decode", credit=0), queue=[request(1)])
    assert plan["r1"] == [SegmentPlan("p1", 1000), SegmentPlan(None)]


def test_who_waits_for_decode_holds_up_no_prompt() -> None:
    stuck = request(0, kv_tokens=999)
    plan = decided(worker("p1", "prefill"), worker("d1", "decode", credit=0), queue=[stuck, request(1)])
    assert list(plan) == ["r1"]


def test_prompts_that_wait_in_the_store_count_against_its_room() -> None:
    stuck = request(0, isl=1500, kv_tokens=1499)
    workers = [worker("p1", "prefill"), worker("d1", "decode", credit=0)]
    assert decided(*workers, queue=[stuck, request(1)], room={"a": 2000}) == {}
    assert list(decided(*workers, queue=[stuck, request(1)], room={"a": 2499})) == ["r1"]


def test_who_is_too_late_in_any_case_comes_last() -> None:
    queue = [request(1), request(2), request(3)]  # they came at 1, 2 and 3 s, with 2 s to their first token
    assert list(decided(worker("p1", "prefill", credit=1), worker("d1", "decode"), queue=queue, now_s=3.5)) == ["r2"]
    assert list(decided(worker("p1", "prefill", credit=3), worker("d1", "decode"), queue=queue, now_s=3.5))[-1] == "r1"


def test_no_more_waits_at_a_prefill_worker_than_keeps_it_busy() -> None:
    workers = [worker("p1", "prefill", queued_prefill_tokens=20_000), worker("d1", "decode")]
    assert decided(*workers, queue=[request(1)]) == {}


def test_first_come_first_served_within_a_phase() -> None:
    plan = decided(worker("p1", "prefill", credit=1), worker("d1", "decode"), queue=[request(1), request(2, isl=10)])
    assert list(plan) == ["r1"]
