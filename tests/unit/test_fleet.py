"""The workers as one gateway knows them."""

from dataclasses import dataclass, field

import msgspec

from dopd.cluster import WorkerView
from dopd_gateway.fleet import Fleet
from dopd_proto.request import WorkReply
from dopd_proto.telemetry import Grant, WorkerState


def state(worker_id: str = "w1", life: int = 1, sent_s: float = 0.0, **more: object) -> WorkerState:
    fields = {
        "role": "prefill", "epoch": 1, "phase": "serving", "model": "m", "kv_domain": "a", "lease_s": 3.0,
        "grants": granted(0, 8),
    }  # fmt: skip
    return WorkerState(worker_id=worker_id, incarnation=f"{worker_id}-{life}", sent_s=sent_s, **fields | more)  # type: ignore[arg-type]


def granted(received: int, limit: int, batches: int = 0) -> tuple[Grant, ...]:
    return (
        Grant(gateway_id="g2", gateway_incarnation="g2-1", received=5, limit=50),
        Grant(gateway_id="g1", gateway_incarnation="g1-1", received=received, limit=limit, batches=batches),
    )


@dataclass
class Seen:
    """A fleet of one worker."""

    fleet: Fleet = field(default_factory=lambda: Fleet("g1", "g1-1"))

    def __post_init__(self) -> None:
        self.fleet.heard(state(), 0.0)

    @property
    def view(self) -> WorkerView:
        [view] = self.fleet.view({}, {}).workers
        return view


def test_credit_is_what_was_granted_less_what_was_sent() -> None:
    seen = Seen()
    seen.fleet.placed("w1", 100)
    seen.fleet.placed("w1", 100)
    assert seen.view.credit == 6
    seen.fleet.heard(state(sent_s=1.0, grants=granted(1, 9)), 1.0)
    assert seen.view.credit == 7
    seen.fleet.heard(state(sent_s=2.0, phase="stalled", grants=granted(2, 9)), 2.0)
    assert seen.view.credit == 0


def test_the_grant_of_another_gateway_or_of_an_earlier_life_of_this_one_does_not_count() -> None:
    fleet = Fleet("g1", "g1-2")
    fleet.heard(state(), 0.0)
    [view] = fleet.view({}, {}).workers
    assert view.credit == 0


def test_the_load_shows_a_dispatch_until_a_state_does() -> None:
    seen = Seen()
    seen.fleet.placed("w1", 100)
    assert (seen.view.waiting, seen.view.queued_prefill_tokens) == (1, 100)
    seen.fleet.settled("w1", "w1-1", 100, received=True)
    assert (seen.view.waiting, seen.view.queued_prefill_tokens) == (1, 100)
    seen.fleet.heard(state(sent_s=1.0, waiting=1, queued_prefill_tokens=90, grants=granted(1, 9)), 1.0)
    assert (seen.view.waiting, seen.view.queued_prefill_tokens) == (1, 90)


def test_a_state_from_before_the_dispatch_arrived_does_not_hide_it() -> None:
    seen = Seen()
    seen.fleet.placed("w1", 100)
    seen.fleet.settled("w1", "w1-1", 100, received=True)
    seen.fleet.placed("w1", 0)
    seen.fleet.heard(state(sent_s=1.0, grants=granted(0, 8)), 1.0)
    assert (seen.view.waiting, seen.view.queued_prefill_tokens) == (2, 100)


def test_a_dispatch_that_never_arrived_is_forgotten() -> None:
    seen = Seen()
    seen.fleet.placed("w1", 100)
    seen.fleet.settled("w1", "w1-1", 100, received=False)
    assert (seen.view.waiting, seen.view.queued_prefill_tokens, seen.view.credit) == (0, 0, 8)


def test_with_nothing_under_way_the_count_of_the_worker_is_the_truth() -> None:
    seen = Seen()
    seen.fleet.placed("w1", 0)
    seen.fleet.settled("w1", "w1-1", 0, received=False)  # timed out, and yet it arrived
    seen.fleet.heard(state(sent_s=1.0, grants=granted(1, 9)), 1.0)
    assert (seen.view.waiting, seen.view.credit) == (0, 8)


def test_a_new_life_ends_the_old_one_and_its_late_words_are_ignored() -> None:
    seen = Seen()
    seen.fleet.placed("w1", 50)
    assert seen.fleet.heard(state(life=2, sent_s=5.0), 5.0) == "w1-1"
    assert seen.fleet.heard(state(life=1, sent_s=4.0), 5.1) is None
    assert (seen.view.incarnation, seen.view.waiting) == ("w1-2", 0)
    seen.fleet.settled("w1", "w1-1", 50, received=True)  # belongs to the old life
    assert (seen.view.waiting, seen.view.queued_prefill_tokens) == (0, 0)


def test_a_refusal_for_the_role_teaches_the_role() -> None:
    seen = Seen()
    seen.fleet.refused("w1", WorkReply(accepted=False, role="decode", epoch=7, reason="wrong_role"))
    assert (seen.view.role, seen.view.epoch, seen.view.serving) == ("decode", 7, True)


def test_any_other_refusal_leaves_the_worker_alone_until_it_speaks() -> None:
    seen = Seen()
    seen.fleet.refused("w1", None)
    seen.fleet.refused("nobody", None)
    assert not seen.view.serving and seen.view.credit == 0
    seen.fleet.heard(state(sent_s=1.0), 1.0)
    assert seen.view.serving


def test_silence_longer_than_the_lease_is_death() -> None:
    seen = Seen()
    assert seen.fleet.lapsed(3.0) == []
    assert [known.state.worker_id for known in seen.fleet.lapsed(3.1)] == ["w1"]
    assert seen.fleet.view({}, {}).workers == ()
    seen.fleet.placed("w1", 1)
    seen.fleet.settled("w1", "w1-1", 1, received=True)


def test_a_failed_worker_has_lost_its_work() -> None:
    seen = Seen()
    assert seen.fleet.heard(state(sent_s=1.0, phase="failed"), 1.0) == "w1-1"


def test_a_missing_batch_is_noticed_by_the_next_one_or_by_the_states_after_it() -> None:
    seen = Seen()
    assert not seen.fleet.batch_came("w1", "w1-1", 1)
    assert seen.fleet.batch_came("w1", "w1-1", 3)
    for sent_s, overdue in ((1.0, False), (2.0, True), (3.0, False)):
        seen.fleet.heard(state(sent_s=sent_s, grants=granted(0, 8, batches=4)), sent_s)
        assert seen.fleet.batch_overdue("w1") is overdue
    assert not seen.fleet.batch_came("w1", "w1-0", 9)


def test_the_store_is_as_large_as_any_worker_of_the_domain_says() -> None:
    fleet = Fleet("g1", "g1-1")
    for worker_id, domain, tokens in (("w1", "a", 0), ("w2", "a", 100), ("w3", "b", 0)):
        fleet.heard(msgspec.structs.replace(state(worker_id), kv_domain=domain, store_total_tokens=tokens), 0.0)
    assert fleet.store_tokens() == {"a": 100, "b": 0}
    assert [view.worker_id for view in fleet.view({}, {}).workers] == ["w1", "w2", "w3"]


def test_a_state_from_before_an_acceptance_does_not_give_its_credit_again() -> None:
    seen = Seen()
    for _ in range(8):
        seen.fleet.placed("w1", 100)
        seen.fleet.settled("w1", "w1-1", 100, received=True)
    assert seen.view.credit == 0
    seen.fleet.heard(state(sent_s=0.5, grants=granted(5, 8)), 0.5)  # it was on its way when three more were taken
    assert seen.view.credit == 0
    seen.fleet.heard(state(sent_s=0.6, grants=granted(8, 9)), 0.6)
    assert seen.view.credit == 1
    seen.fleet.heard(state(sent_s=3.0, grants=granted(6, 9)), 3.0)  # two were lost, after all
    assert seen.view.credit == 3
