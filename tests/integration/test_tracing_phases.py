"""The phases of requests on an emulated cluster in virtual time: without a hole, and as long as what they explain."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from dopd.cluster import ClusterView
from dopd.config import Config
from dopd.policy.base import Dispatch, Placement, Policy, RequestView, SegmentPlan
from dopd_gateway.core import Request
from dopd_gateway.timeline import MOST, Phase
from tests.house import CONFIG, House, on, run_house

Scenario = Callable[[House], Awaitable[object]]


class Ended:
    """A request that is over."""

    def __init__(self, request: Request, end: str) -> None:
        self.request, self.end = request, end
        self.phases = request.timeline.phases(0.0)
        self.chain = [p for p in self.phases if p.name != "first_token_sent"]
        self.names = [p.name for p in self.phases]


def ended(scenario: Scenario, **how: Any) -> list[Ended]:
    """All requests of a run that are over."""
    found: list[Ended] = []

    async def listening(house: House) -> None:
        for gateway in house.cluster.gateways.values():
            gateway._on_ended = lambda request, end, error: found.append(Ended(request, end))
        await scenario(house)

    run_house(listening, how.pop("seed", 0), **how)
    return found


class Whole:
    """Each request as a whole on the worker that has the least to do."""

    def initial(self) -> None:
        return None

    def step(
        self, state: None, queue: Sequence[RequestView], cluster: ClusterView, now_s: float
    ) -> tuple[None, list[Dispatch], None]:
        able = sorted((w for w in cluster.workers if w.credit > 0), key=lambda w: (w.running + w.waiting, w.worker_id))
        pairs = zip(queue, able, strict=False)
        return None, [Dispatch((Placement(r.request_id, (SegmentPlan(w.worker_id),)),)) for r, w in pairs], None


WHOLE = Policy("whole", Whole, first_roles="mixed")


def under(policy: str) -> Config:
    """The usual cluster under another policy."""
    return msgspec.structs.replace(CONFIG, policy=msgspec.structs.replace(CONFIG.policy, name=policy))


async def quiet(house: House) -> None:
    """Nothing happens but the load."""


def check(one: Ended) -> None:
    """Whatever happened to it: no hole, from the arrival to the end, and the first token's part adds up."""
    request, chain = one.request, one.chain
    assert chain[0].start_s == request.arrived_s and chain[-1].end_s == request.timeline.ended_s
    assert all(a.end_s == b.start_s for a, b in pairwise(chain))
    assert all(p.end_s > p.start_s for p in chain)
    assert len(chain) <= MOST
    if request.first_s is not None:
        at = one.names.index("first_token_sent")
        before = sum(p.end_s - p.start_s for p in one.phases[: at + 1])
        gateway_ttft_s = one.phases[at].end_s - request.arrived_s
        assert before == pytest.approx(gateway_ttft_s, abs=1e-9)
        assert one.phases[at].start_s == request.first_s


def test_a_disaggregated_request_goes_through_all_phases_in_order() -> None:
    found = ended(quiet)
    assert len(found) == 30
    for one in found:
        check(one)
    names = ["sent", "prefilling", "first_token_sent", "handing_over", "kv_transfer", "first_decode_step", "decoding"]
    long = [one for one in found if len(one.request.output) > 2 and len(one.request.inbound.tokens) > 300]
    assert long
    for one in long:
        waits = {"queued", "prefill_queued", "decode_queued"}
        assert [name for name in one.names if name not in waits] == [*names, "finished"]
        where = {p.name: p.place.where for p in one.phases}
        assert where["sent"] == "g1" and where["prefilling"] in ("w1", "w2") and where["kv_transfer"] in ("w3", "w4")
        assert where["prefilling"] == where["handing_over"] and where["decoding"] == where["kv_transfer"]
        transfer, step = (next(p for p in one.phases if p.name == n) for n in ("kv_transfer", "first_decode_step"))
        assert step.start_s >= transfer.end_s


def test_phases_are_the_same_whether_steps_are_advanced_together_or_one_by_one() -> None:
    async def flips(house: House) -> None:
        await house.flips(4)

    runs = [ended(flips, together=together, seed=3) for together in (False, True)]
    single, together = ({one.request.request_id: one.phases for one in found} for found in runs)
    assert len(single) == 30 and single == together


def test_an_aggregated_request_is_prefilled_and_decoded_on_one_worker() -> None:
    found = ended(quiet, config=under("tests.integration.test_tracing_phases:WHOLE"), pools_kept=False)
    for one in found:
        check(one)
        assert not {"handing_over", "kv_transfer", "first_decode_step", "decode_queued"} & set(one.names)
        assert len({p.place.where for p in one.phases}) == 2
    assert any("decoding" in one.names for one in found)


def test_a_cut_inside_the_prompt_leaves_no_hole_and_the_first_token_comes_from_the_second_worker() -> None:
    async def long_prompts(house: House) -> None:
        await asyncio.wait([house.ask(house.cluster.gateway, 8_000, 4) for _ in range(3)])

    found = ended(long_prompts, config=under("tests.policies.dyna:DYNA"), pools_kept=False)
    for one in found:
        check(one)
    inside = [one for one in found if "handing_over" in one.names[: one.names.index("first_token_sent")]]
    assert inside
    for one in inside:
        assert one.names.count("prefilling") == 2 and "first_decode_step" not in one.names
        first, second = (p.place.where for p in one.phases if p.name == "prefilling")
        sent = next(p for p in one.phases if p.name == "first_token_sent")
        assert first != second == sent.place.where
        assert one.names.index("kv_transfer") < one.names.index("first_token_sent")


def test_a_migrated_request_is_returned_queued_and_placed_again() -> None:
    async def migrate(house: House) -> None:
        await asyncio.sleep(0.5)
        await house.flips(4, ["migrate"])

    found = ended(migrate, seed=1)
    for one in found:
        check(one)
    moved = [one for one in found if "returned" in one.names and one.names.count("decoding") > 1]
    assert moved
    for one in moved:
        at = one.names.index("returned")
        after = one.names[at + 1 : at + 3]
        assert after in (["queued", "sent"], ["sent", after[-1]])
        epochs = [p.place.epoch for p in one.phases if p.place.epoch is not None]
        assert len({p.place.attempt for p in one.phases if p.place.attempt}) > 1 and epochs
        assert "lost" not in one.names


def test_a_lost_request_shows_until_when_nobody_noticed_and_its_second_attempt() -> None:
    async def crash(house: House) -> None:
        await asyncio.sleep(0.6)
        victim = house.worker_with("decode")
        house.cluster.kill_worker(victim)
        await house.restart(victim, "decode", 5.0)

    found = ended(crash, seed=2, pools_kept=False)
    for one in found:
        check(one)
    lost = [one for one in found if "lost" in one.names]
    assert lost and all(one.end == "length" for one in lost)
    for one in lost:
        gap = next(p for p in one.phases if p.name == "lost")
        assert gap.end_s - gap.start_s > 0.1
        assert [p.place.attempt for p in one.phases if p.name == "sent"] == [1, 2]
        # Its KV went with the worker or is asked for again: the input is computed anew.
        assert one.names.count("prefilling") == 2


def test_a_request_that_is_cancelled_or_runs_out_of_time_has_phases_up_to_its_end() -> None:
    async def leave(house: House) -> None:
        gateway = house.cluster.gateway
        left = house.ask(gateway, 200, 500)
        await asyncio.sleep(0.5)
        left.cancel()

    found = ended(leave, requests=0)
    assert [one.end for one in found] == ["cancelled"]
    check(found[0])
    assert found[0].names[-1] == "decoding"


@pytest.mark.parametrize("how", ["drop", "duplicate", "late"])
def test_lost_doubled_and_late_batches_leave_no_hole(how: str) -> None:
    async def disturb(house: House) -> None:
        rng = random.Random(how)
        verdict = {"drop": "drop", "duplicate": "duplicate", "late": lambda: rng.uniform(0.0, 0.3)}[how]
        house.fault(on(".tokens.", share=0.2, verdict=verdict, rng=rng))
        await house.answered()

    found = ended(disturb, seed=4)
    assert len(found) == 30
    for one in found:
        check(one)
    whole = [one for one in found if one.names.count("sent") == 1]
    assert whole
    for one in whole:
        assert one.names.count("prefilling") == 1 and one.names.count("handing_over") <= 1


def test_what_nobody_takes_for_long_stays_within_bounds() -> None:
    """Every work is answered by nobody: attempt after attempt, until the time is up."""

    async def deaf(house: House) -> None:
        house.fault(lambda subject, _: "drop" if subject.endswith(".prefill") else None)
        task = house.ask(house.cluster.gateway, 100, 10, timeout_s=50.0)
        await asyncio.wait({task})

    found = ended(deaf, requests=0, errors_allowed=True)
    assert [one.end for one in found] == ["failed"]
    check(found[0])
    counts = Counter(found[0].names)
    assert set(counts) <= {"queued", "sent"} and counts["sent"] > 3


def _durations(phases: list[Phase]) -> float:
    return sum(p.end_s - p.start_s for p in phases)


def test_the_gap_between_the_first_two_tokens_is_made_of_the_hand_over() -> None:
    for one in ended(quiet, seed=5):
        if len(one.request.output) < 2:
            continue
        at = one.names.index("first_token_sent")
        second = next(i for i, name in enumerate(one.names) if i > at and name in ("decoding", "finished"))
        gap = one.phases[at + 1 : second]
        assert {p.name for p in gap} <= {"handing_over", "kv_transfer", "decode_queued", "first_decode_step"}
        assert one.request.first_s is not None
        assert one.request.first_s + _durations(gap) == pytest.approx(one.phases[second].start_s, abs=1e-9)
