"""From decisions to slips, batch tags and the KV budget."""

from dopd.cluster import ClusterView, WorkerView
from dopd.policy.base import Dispatch, Placement, SegmentPlan
from dopd_gateway.placing import batch_tags, kv_room, out_of_role, slip_of
from dopd_proto.base import Role


def worker(worker_id: str, role: Role = "mixed", serving: bool = True) -> WorkerView:
    return WorkerView(worker_id, f"{worker_id}-1", role, epoch=3, serving=serving, kv_domain=f"of-{worker_id}")


CLUSTER = ClusterView((worker("w1"), worker("w2")))


def place(*segments: tuple[str | None, int | None], request_id: str = "r") -> Placement:
    return Placement(request_id, tuple(SegmentPlan(*segment) for segment in segments))


def test_a_segment_is_bound_to_the_life_and_the_epoch_of_its_worker() -> None:
    slip = slip_of(place(("w1", 5), ("w2", None)), CLUSTER)
    assert slip is not None
    assert [(s.worker_id, s.incarnation, s.epoch, s.role, s.stop) for s in slip] == [
        ("w1", "w1-1", 3, "prefill", 5),
        ("w2", "w2-1", 3, "decode", None),
    ]


def test_a_second_segment_may_be_left_open() -> None:
    slip = slip_of(place(("w1", 5), (None, None)), CLUSTER)
    assert slip is not None and [s.worker_id for s in slip] == ["w1"]


def test_two_segments_on_one_worker_are_one() -> None:
    slip = slip_of(place(("w1", 5), ("w1", None)), CLUSTER)
    assert slip is not None and [(s.worker_id, s.role, s.stop) for s in slip] == [("w1", "decode", None)]


def test_an_unknown_worker_makes_no_slip() -> None:
    assert slip_of(place(("w9", 5), ("w2", None)), CLUSTER) is None
    assert slip_of(place(("w1", 5), ("w9", None)), CLUSTER) is None
    assert slip_of(place((None, None)), CLUSTER) is None


def test_any_role_is_allowed_only_while_none_of_the_right_one_serves() -> None:
    split = ClusterView((worker("w1", "prefill"), worker("w2", "decode")))
    half = ClusterView((worker("w1", "prefill"), worker("w2", "decode", serving=False)))
    for cluster, expected in ((CLUSTER, False), (split, False), (half, True)):
        slip = slip_of(place(("w1", 5), ("w2", None)), cluster)
        assert slip is not None and out_of_role(slip, cluster) is expected


def test_the_members_of_a_batch_wait_for_those_on_the_same_worker() -> None:
    members = [("a", "w1"), ("b", "w2"), ("c", "w1")]
    placements = tuple(place((where, None), request_id=who) for who, where in members)
    tags = batch_tags(Dispatch(placements, together=True), "b7")
    assert {who: (tag.batch_id, tag.size, tag.exclusive) for who, tag in tags.items()} == {
        "a": ("b7.w1", 2, False),
        "b": ("b7.w2", 1, False),
        "c": ("b7.w1", 2, False),
    }
    assert batch_tags(Dispatch(placements), "b7") == {}
    assert all(tag.exclusive for tag in batch_tags(Dispatch(placements, exclusive=True), "b7").values())


def test_the_kv_budget_is_shared_by_gateways_and_used_up_by_what_is_not_fetched() -> None:
    room = kv_room({"a": 1000, "b": 1000, "c": 0}, 0.5, {"a": 100, "b": 900}, gateways=2)
    assert (room["a"], room["b"]) == (150, -650)
    assert room["c"] > 1 << 40


def test_a_prompt_above_the_whole_budget_may_go_while_nothing_is_in_flight() -> None:
    assert kv_room({"a": 100}, 0.5, {}, 1, longest_tokens=80) == {"a": 80}
    assert kv_room({"a": 100}, 0.5, {"a": 10}, 1, longest_tokens=80) == {"a": 40}
