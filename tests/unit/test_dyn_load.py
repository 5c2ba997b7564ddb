"""DYN-LOAD's thresholds (algorithms.md 1.13), one by one and in the loop."""

from dataclasses import replace

import pytest

from dopd.cluster import ClusterView, WorkerView
from dopd.policy.base import ForecastView, Plan, Role
from dopd.policy.dyn_load import Load, Seen, Thresholds, look, wanted
from dopd.slo import Slo
from tests.planner_rig import after, cluster_of, split_of, worker

MIDDLE = 0.7


def seen(*queues: float, kv: float = MIDDLE) -> list[Seen]:
    return [Seen(queue, kv) for queue in queues]


def test_a_queue_above_five_per_worker_asks_for_prefill_where_decode_can_spare_one() -> None:
    assert wanted(seen(5.1, 5.1), (2, 2), (2, 1), False) == ((3, 1), False)
    assert wanted(seen(5.0, 5.0), (2, 2), (2, 1), False) == ((2, 1), False)
    assert wanted(seen(9.0, 9.0), (2, 2), (2, 2), False) == ((2, 2), False), "nobody can be spared"


def test_a_queue_that_shrinks_fast_enough_asks_for_nothing() -> None:
    # Mean 8, and 6 with a trend of -4 would be below 5 three intervals on.
    assert wanted(seen(10.0, 6.0), (2, 2), (2, 1), False) == ((2, 1), False)
    assert wanted(seen(8.3, 8.0), (2, 2), (2, 1), False) == ((3, 1), False)


def test_memory_above_nine_tenths_asks_for_decode_where_prefill_can_spare_one() -> None:
    assert wanted(seen(1.0, kv=0.91), (2, 2), (1, 2), False) == ((1, 3), True)
    assert wanted(seen(1.0, kv=0.90), (2, 2), (1, 2), False) == ((1, 2), False)
    assert wanted(seen(1.0, kv=0.91), (2, 2), (2, 2), False) == ((2, 2), False)


def test_an_empty_queue_and_half_empty_memory_free_a_worker_each() -> None:
    assert wanted(seen(0.1, kv=0.4), (3, 3), (3, 3), False) == ((2, 2), False)
    assert wanted(seen(0.2, kv=0.5), (3, 3), (3, 3), False) == ((3, 3), False)
    assert wanted(seen(0.1, kv=0.4), (3, 3), (1, 1), False) == ((1, 1), False), "one of each is the least"
    assert wanted(seen(1.0, kv=0.4), (3, 3), (3, 3), True) == ((3, 3), False), "decode has just grown"


def test_what_is_freed_may_be_used_in_the_same_round() -> None:
    assert wanted(seen(6.0, 7.0, kv=0.4), (2, 2), (2, 2), False) == ((3, 1), False)
    assert wanted(seen(0.1, kv=0.95), (2, 2), (2, 2), False) == ((1, 3), True)


def test_needs_never_exceed_the_workers_and_change_by_one() -> None:
    for queue in (0.0, 1.0, 9.0):
        for kv in (0.1, 0.7, 1.5):
            for needs in ((1, 1), (2, 3), (4, 4), (1, 4)):
                (prefill, decode), _ = wanted(seen(queue, queue, kv=kv), (4, 4), needs, False)
                assert prefill >= 1 <= decode and prefill + decode <= 8
                assert prefill <= 5 >= decode


# --- what is looked at ------------------------------------------------------------------------------------------------


def crowd(role: Role, waiting: int, used: int = 0) -> WorkerView:
    return worker("w", role, waiting=waiting, kv_used_tokens=used, kv_total_tokens=100)


def test_each_waiting_request_counts_as_two_hundredths_of_the_memory() -> None:
    cluster = ClusterView((crowd("prefill", 3), crowd("prefill", 4), crowd("decode", 5, 40), crowd("decode", 0, 60)))
    assert look(cluster).queue == 3.5
    assert look(cluster).kv == pytest.approx((0.4 + 0.1 + 0.6) / 2)
    assert look(replace(cluster, waiting_decodes=5)).kv == pytest.approx((0.4 + 0.2 + 0.6) / 2)


def test_who_waits_in_the_gateways_waits_for_decode_unless_prefill_queues_are_long() -> None:
    workers = (crowd("prefill", 1), crowd("decode", 0, 40))
    assert look(ClusterView(workers, waiting_prefill_tokens=5000), 500.0).kv == pytest.approx(0.4 + 0.2)
    assert look(ClusterView(workers, waiting_prefill_tokens=5000)).kv == pytest.approx(0.4), "of unknown length"
    crowded = (crowd("prefill", 12), crowd("decode", 0, 40))
    assert look(ClusterView(crowded, waiting_prefill_tokens=5000), 500.0) == Seen(12.0, 0.4)


# --- the loop ---------------------------------------------------------------------------------------------------------


def rounds(cluster: ClusterView, count: int) -> list[tuple[ClusterView, Plan]]:
    """A round a second; the prefill queue stays long, and memory half empty."""
    planner, made = Thresholds(), []
    state = planner.initial()
    for number in range(count):
        loaded = (replace(w, waiting=9 * (w.role == "prefill"), kv_total_tokens=100) for w in cluster.workers)
        state, plan = planner.plan(state, None, ClusterView(tuple(loaded)), Slo(), float(number))
        cluster = after(cluster, plan)
        made.append((cluster, plan))
    return made


def test_the_pools_move_by_one_worker_every_twenty_seconds() -> None:
    made = rounds(cluster_of(2, 4), 65)
    assert [split_of(made[second][0])[0] for second in (19, 20, 39, 40, 60)] == [2, 3, 3, 4, 5]
    assert made == rounds(cluster_of(2, 4), 65)
    assert all(split_of(cluster)[1] >= 1 for cluster, _ in rounds(cluster_of(2, 2), 200))


def test_without_a_worker_in_each_role_it_says_so() -> None:
    plan = Thresholds().plan(Load(), ForecastView(1, 1, 1, 1), cluster_of(2, 0), Slo(), 0.0)[1]
    assert plan.reason == "too_few_workers" and plan.needs and not plan.roles
