"""Hosts whose KV stores are cut off from each other, as a gateway sees and uses them."""

from dataclasses import replace

import pytest

from dopd.cluster import ClusterView, WorkerView
from dopd.policy.base import RequestView
from dopd.policy.dopd import LengthAware
from dopd.slo import Slo
from dopd_gateway import placing
from dopd_gateway.fleet import Fleet, links_of
from dopd_proto.telemetry import WorkerState


def worker(worker_id: str, domain: str, running: int = 0, serving: bool = True) -> WorkerView:
    return WorkerView(
        worker_id, f"{worker_id}-1", "prefill", 1, serving=serving, credit=8, running=running, kv_domain=domain
    )


def view(request_id: str, kv_domain: str = "") -> RequestView:
    kept = {"kv_tokens": 64, "kv_domain": kv_domain} if kv_domain else {}
    return RequestView(request_id, 100, 100, 10.0, 1.0, 10, Slo(), 0, 0.0, **kept)  # type: ignore[arg-type]


def state(worker_id: str, domain: str, shared: str, **more: object) -> WorkerState:
    fields = {"role": "prefill", "epoch": 1, "phase": "serving", "model": "m", "sent_s": 0.0, "lease_s": 3.0}
    return WorkerState(
        worker_id=worker_id, incarnation=f"{worker_id}-1", kv_domain=domain, kv_shared=shared, **fields | more
    )  # type: ignore[arg-type]


def ids(islands: list[ClusterView]) -> list[list[str]]:
    return [[w.worker_id for w in island.workers] for island in islands]


TWO = ClusterView((worker("w1", "a", running=4), worker("w2", "b"), worker("w3", "a")))


def test_a_cluster_of_one_domain_is_one_island_and_the_same_object() -> None:
    one = ClusterView((worker("w1", "a"), worker("w2", "a")))
    assert one.islands()[0] is one and len(one.islands()) == 1
    nobody = ClusterView(())
    assert nobody.islands() == [nobody]


def test_domains_without_a_link_are_islands_and_the_least_loaded_comes_first() -> None:
    assert ids(TWO.islands()) == [["w2"], ["w1", "w3"]]
    busy = replace(TWO, workers=(*TWO.workers, worker("w4", "b", running=9)))
    assert ids(busy.islands()) == [["w1", "w3"], ["w2", "w4"]]


def test_an_island_where_nobody_serves_comes_last() -> None:
    cluster = ClusterView((worker("w1", "a", serving=False), worker("w2", "b", running=9)))
    assert ids(cluster.islands()) == [["w2"], ["w1"]]


def test_links_join_domains_also_over_a_third_one() -> None:
    three = replace(TWO, workers=(*TWO.workers, worker("w4", "c")))
    linked = replace(three, links={("a", "b"): 1e-4, ("b", "a"): 1e-4, ("b", "c"): 1e-4, ("c", "b"): 1e-4})
    assert linked.islands() == [linked]


def test_domains_are_linked_when_all_their_workers_reach_the_same_store() -> None:
    both = [state("w1", "a", "far", kv_shared_token_s=1e-4), state("w2", "b", "far", kv_shared_token_s=2e-4)]
    assert links_of(both) == {("a", "b"): 2e-4, ("b", "a"): 2e-4}
    assert links_of([*both, state("w3", "b", "")]) == {}
    assert links_of([*both, state("w3", "b", "", phase="starting")]) == links_of(both)
    assert links_of([both[0], state("w2", "b", "another")]) == {}
    assert links_of([state("w1", "a", ""), state("w2", "b", "")]) == {}


def test_a_fleet_sees_a_link_come_and_go_and_forgets_it_with_its_workers() -> None:
    fleet = Fleet("g1", "g1-1")
    for each in (state("w1", "a", "far"), state("w2", "b", "far")):
        fleet.heard(each, 0.0)
    assert len(fleet.view({}, {}).islands()) == 1
    fleet.heard(state("w2", "b", "", sent_s=1.0), 1.0)
    assert len(fleet.view({}, {}).islands()) == 2
    fleet.heard(state("w2", "b", "far", sent_s=4.0), 4.0)
    assert len(fleet.view({}, {}).islands()) == 1
    assert fleet.domain_of("w1") == "a"
    fleet.lapsed(4.0)
    assert fleet.view({}, {}).links == {} and fleet.domain_of("w1") == ""


def test_computed_kv_goes_on_where_it_is_and_the_rest_anywhere() -> None:
    islands = TWO.islands()
    queue = [view("fresh"), view("at-a", "a"), view("at-b", "b"), view("gone", "c")]
    offered = [[r.request_id for r in placing.queue_of(island, islands, queue)] for island in islands]
    assert offered == [["fresh", "at-b", "gone"], ["fresh", "at-a", "gone"]]
    assert placing.queue_of(TWO, [TWO], queue) is queue


def test_computed_kv_goes_on_anywhere_when_its_island_does_not_serve() -> None:
    cluster = ClusterView((worker("w1", "a", serving=False), worker("w2", "b")))
    islands = cluster.islands()
    assert [r.request_id for r in placing.queue_of(islands[0], islands, [view("at-a", "a")])] == ["at-a"]


@pytest.mark.parametrize(("token_s", "chosen"), [(0.0, "d-far"), (1e-2, "d-near")])
def test_dopd_decodes_in_another_domain_where_that_is_worth_the_way(token_s: float, chosen: str) -> None:
    near, far = worker("d-near", "a", running=20), worker("d-far", "b")
    decode = [replace(w, role="decode", kv_total_tokens=100_000) for w in (near, far)]
    links = {("a", "b"): token_s, ("b", "a"): token_s}
    cluster = ClusterView((worker("p", "a"), *decode), {"a": 10_000, "b": 10_000}, links=links)
    scheduler = LengthAware(local=0)
    _, [dispatch], _ = scheduler.step(scheduler.initial(), [replace(view("r"), isl_tokens=1000)], cluster, 0.0)
    assert [segment.worker_id for segment in dispatch.placements[0].segments] == ["p", chosen]
    waiting = replace(view("r", "a"), isl_tokens=1000)
    _, [dispatch], _ = scheduler.step(scheduler.initial(), [waiting], cluster, 0.0)
    assert [segment.worker_id for segment in dispatch.placements[0].segments] == [chosen]
