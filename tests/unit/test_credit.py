"""How much work each gateway may send a worker."""

from hypothesis import given
from hypothesis import strategies as st

from dopd.worker.credit import Account, free_slots, grants


def accounts(*received: int) -> dict[str, Account]:
    return {f"g{place}": Account(f"g{place}-1", 9.0, received=count) for place, count in enumerate(received)}


def test_an_empty_worker_grants_its_whole_capacity() -> None:
    assert free_slots(8, 0, 0, 1000) == 8
    assert free_slots(8, 3, 0, 0) == 5


def test_memory_bounds_the_slots_at_the_mean_demand_in_hand() -> None:
    assert free_slots(8, 2, 400, 1000) == 3
    assert free_slots(8, 2, 1000, 1000) == 0
    assert free_slots(8, 2, 5000, 1000) == 0


def test_free_slots_are_dealt_out_evenly() -> None:
    dealt = grants(accounts(10, 0, 3), 7)
    assert [(g.gateway_id, g.limit - g.received) for g in dealt] == [("g0", 3), ("g1", 2), ("g2", 2)]
    assert [g.gateway_incarnation for g in dealt] == ["g0-1", "g1-1", "g2-1"]


def test_without_gateways_there_is_no_grant() -> None:
    assert grants({}, 5) == ()


def test_a_grant_says_how_many_token_batches_were_sent() -> None:
    some = accounts(1)
    some["g0"].batches = 4
    [grant] = grants(some, 1)
    assert (grant.received, grant.limit, grant.batches) == (1, 2, 4)


@given(st.lists(st.integers(0, 1000), max_size=6), st.integers(0, 300), st.integers(0, 300), st.integers(0, 10_000))
def test_the_windows_of_all_gateways_are_never_more_than_is_free(
    received: list[int], capacity: int, in_hand: int, reserved: int
) -> None:
    free = free_slots(capacity, in_hand, reserved, 5000)
    assert 0 <= free <= max(0, capacity - in_hand)
    some = accounts(*received)
    dealt = grants(some, free)
    assert sum(grant.limit - grant.received for grant in dealt) == (free if received else 0)
    windows = [grant.limit - grant.received for grant in dealt]
    assert not windows or max(windows) - min(windows) <= 1
    assert [account.limit for _, account in sorted(some.items())] == [grant.limit for grant in dealt]
