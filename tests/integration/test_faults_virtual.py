"""Seeded fault runs of a whole cluster in virtual time: whatever breaks, a request ends once, and nothing is left."""

import asyncio
import random
from typing import Any

import msgspec
import pytest

from dopd_proto.base import DrainMode
from dopd_proto.request import TokenBatch
from tests.house import CONFIG, OTHER, House, on, run_house

SEEDS = range(4)
FEW = range(3)
DRAINS: tuple[DrainMode, ...] = ("overlap", "migrate", "wait")


async def quiet(house: House) -> None:
    """Nothing breaks."""


@pytest.mark.parametrize("seed", FEW)
def test_without_faults_every_request_gets_its_exact_tokens_and_nothing_is_left(seed: int) -> None:
    house = run_house(quiet, seed)
    assert house.kv_misses() == 0


# --- workers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_worker_that_crashes_costs_no_token_and_comes_back(seed: int, role: Any) -> None:
    async def crash(house: House) -> None:
        await asyncio.sleep(house.rng.uniform(0.1, 1.0))
        victim = house.worker_with(role)
        house.cluster.kill_worker(victim)
        await house.restart(victim, role, house.rng.choice([0.05, 1.0, 6.0]))

    run_house(crash, seed, pools_kept=False)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_crash_in_the_middle_of_a_hand_over_costs_no_token(seed: int, both: bool) -> None:
    """The decode worker dies when the work has just been accepted; `both`: the prefill worker, too."""

    async def crash(house: House) -> None:
        await asyncio.sleep(0.2)
        seen: list[str] = []

        def watch(subject: str, message: Any) -> None:
            if subject.endswith(".decode"):
                seen.append(subject.split(".")[3])

        house.fault(watch)
        for _ in range(2):
            seen.clear()
            await house.until(lambda: seen)
            # From before the work is there to after the answer is back.
            await asyncio.sleep(house.rng.uniform(0.0, 6e-4))
            victims = [*seen[:1], *([house.worker_with("prefill")] if both else [])]
            for victim in dict.fromkeys(victims):
                role = house.cluster.workers[victim].role.role
                house.cluster.kill_worker(victim)
                await house.restart(victim, role, 0.1)

    run_house(crash, seed, pools_kept=False)


@pytest.mark.parametrize("drain", DRAINS)
@pytest.mark.parametrize("seed", FEW)
def test_a_crash_during_a_role_change_costs_no_token_and_both_pools_live_on(seed: int, drain: DrainMode) -> None:
    async def crash(house: House) -> None:
        await asyncio.sleep(house.rng.uniform(0.2, 0.6))
        victim = house.worker_with(house.rng.choice(["prefill", "decode"]))
        role = house.cluster.workers[victim].role.role
        change = asyncio.ensure_future(house.set_role(victim, OTHER[role], drain))
        await asyncio.sleep(house.rng.uniform(0.0, 0.2))
        house.cluster.kill_worker(victim)
        await house.restart(victim, role, 1.0)
        await change
        await asyncio.sleep(5.0)
        assert {worker.role.role for worker in house.cluster.workers.values()} == {"prefill", "decode"}

    run_house(crash, seed, pools_kept=False)


@pytest.mark.parametrize("stall_s", [1.0, 4.0, 9.0])
@pytest.mark.parametrize("seed", FEW)
def test_a_stalled_engine_costs_no_token(seed: int, stall_s: float) -> None:
    """Below the limit the work waits; above it goes elsewhere, and what the engine makes later is not heard."""

    async def stall(house: House) -> None:
        await asyncio.sleep(0.5)
        victim = house.worker_with(house.rng.choice(["prefill", "decode"]))
        house.cluster.engines[victim].stall(stall_s)
        await asyncio.sleep(stall_s + 1.0)

    run_house(stall, seed)


@pytest.mark.parametrize("slow_s", [2.0, 30.0])
@pytest.mark.parametrize("seed", FEW)
def test_a_stalled_decode_worker_holds_prefill_back_and_nothing_is_computed_twice(seed: int, slow_s: float) -> None:
    """Credit and the KV budget hold it back; a worker that says that it is slow is helped by a role change, too."""
    config = msgspec.structs.replace(
        CONFIG,
        cluster=msgspec.structs.replace(CONFIG.cluster, prefill=2, decode=1),
        worker=msgspec.structs.replace(CONFIG.worker, slow_s=slow_s, stall_s=15.0, max_prefills=4),
        engine=msgspec.structs.replace(CONFIG.engine, sim_store_tokens=40_000),
    )
    budget = int(40_000 * CONFIG.gateway.kv_budget_share)
    most: list[int] = []

    async def stall(house: House) -> None:
        await asyncio.sleep(0.6)
        house.cluster.engines["w3"].stall(10.0)
        gateway = house.cluster.gateway
        for _ in range(99):
            await asyncio.sleep(0.1)
            most.append(sum(r.total_tokens for r in gateway._requests.values() if r.unfetched))
        if slow_s > 10.0:
            assert gateway._waiting, "prefill was not held back"

    house = run_house(stall, seed, requests=90, rate=60.0, config=config)
    assert house.kv_misses() == 0
    assert 0 < max(most) <= budget
    assert all(answer.error is None for answer in house.answers)


# --- messages -------------------------------------------------------------------------------------------------------

WORK = (".prefill", ".decode")
MESSAGES = {
    "work": WORK,
    "answers": ("_INBOX",),
    "tokens": (".tokens.",),
    "role commands": (".role",),
    "worker states": ("state.worker",),
    "gateway states": ("state.gateway",),
    "aborts": (".abort",),
    "everything": ("dopd.", "_INBOX"),
}


@pytest.mark.parametrize("what", MESSAGES)
@pytest.mark.parametrize("how", ["drop", "delay", "duplicate"])
@pytest.mark.parametrize("seed", range(2))
def test_messages_lost_late_or_doubled_cost_no_token(seed: int, what: str, how: str) -> None:
    async def disturb(house: House) -> None:
        rng = random.Random(seed)
        verdict = {"drop": "drop", "duplicate": "duplicate", "delay": lambda: rng.uniform(0.0, 0.3)}[how]
        house.fault(on(*MESSAGES[what], share=0.1 if how == "drop" else 0.3, verdict=verdict, rng=rng))
        await house.flips(3)

    run_house(disturb, seed, errors_allowed=what == "everything")


@pytest.mark.parametrize("seed", SEEDS)
def test_the_last_batch_of_tokens_may_be_lost(seed: int) -> None:
    """Every batch that ends a request is lost the first time; nothing comes after it that would show the gap."""
    seen: set[str] = set()

    def fault(_: str, message: Any) -> Any:
        if isinstance(message, TokenBatch):
            ends = [run.request_id for run in message.runs if run.end in ("length", "handed_over")]
            if ends and not seen.issuperset(ends):
                seen.update(ends)
                return "drop"
        return None

    async def lose(house: House) -> None:
        house.fault(fault)
        await house.answered()

    house = run_house(lose, seed)
    slow = max(answer.ended_s - (answer.times_s or [0.0])[-1] for answer in house.answers)
    assert slow < 5.0, f"a client waited {slow} s for an end that had been made"


def test_a_lost_batch_with_the_end_of_one_request_is_noticed_when_others_go_on() -> None:
    """Batches of long ones follow the lost end of a short one: the hole is in the numbers of the batches."""
    lost: list[float] = []

    async def lose(house: House) -> None:
        long = [house.ask(house.cluster.gateway, 100, 800) for _ in range(4)]
        short = house.ask(house.cluster.gateway, 100, 40)

        def fault(_: str, message: Any) -> Any:
            ends = isinstance(message, TokenBatch) and any(run.end == "length" for run in message.runs)
            if ends and not lost:
                lost.append(house.runtime.now())
                return "drop"
            return None

        house.fault(fault)
        await asyncio.wait({short})
        assert lost
        assert house.runtime.now() - lost[0] < 1.0
        assert not any(task.done() for task in long)

    run_house(lose, 0, requests=0)


# --- broker, gateways -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("down_s", [0.2, 2.0, 8.0])
@pytest.mark.parametrize("seed", FEW)
def test_while_the_broker_is_away_everything_waits_and_goes_on_afterwards(seed: int, down_s: float) -> None:
    async def away(house: House) -> None:
        await asyncio.sleep(house.rng.uniform(0.3, 1.0))
        house.cluster.broker.down()
        await asyncio.sleep(down_s)
        house.cluster.broker.up()

    run_house(away, seed)


@pytest.mark.parametrize("name", ["g1", "w1", "w3", "planner"])
@pytest.mark.parametrize("cut_s", [1.0, 5.0])
def test_a_process_cut_off_from_the_broker_finds_its_place_again(name: str, cut_s: float) -> None:
    """Longer than its lease: the others have given it up meanwhile."""

    async def cut(house: House) -> None:
        await asyncio.sleep(0.5)
        house.cluster.buses[name].cut()
        await asyncio.sleep(cut_s)
        house.cluster.buses[name].mend()

    house = run_house(cut, 1)
    assert max(answer.ended_s - answer.asked_s for answer in house.answers) < cut_s + 15.0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gateway_that_crashes_leaves_nothing_on_workers_and_does_not_touch_the_other(seed: int) -> None:
    async def crash(house: House) -> None:
        await asyncio.sleep(house.rng.uniform(0.3, 1.0))
        house.kill_gateway("g2")
        await asyncio.sleep(house.cluster.config.gateway.lease_s + 1.0)
        held = [h for w in house.cluster.workers.values() for h in w._held.values()]
        assert not [h for h in held if h.work.gateway_id == "g2"]

    house = run_house(crash, seed, gateways=2)
    assert all(answer.left for answer in house.answers if answer.ends == 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gateway_that_comes_back_under_its_name_serves_at_once(seed: int) -> None:
    """Hand-overs for its former life are still under way; they must not push the new life out."""

    async def crash(house: House) -> None:
        await asyncio.sleep(0.3)
        late = house.rng.uniform(0.2, 1.0)
        house.fault(lambda subject, _: late if subject.endswith(".decode") else None)
        await asyncio.sleep(0.3)
        house.kill_gateway("g2")
        await house.cluster.add_gateway("g2")

    run_house(crash, seed, gateways=2)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_client_that_leaves_frees_what_its_request_held(seed: int) -> None:
    async def leave(house: House) -> None:
        asking = asyncio.ensure_future(house.load(25, 40.0))
        for _ in range(12):
            await asyncio.sleep(house.rng.uniform(0.02, 0.1))
            waiting = [task for task in house.tasks if not task.done()]
            if waiting:
                house.rng.choice(waiting).cancel()
        await asking
        # No lease and no buffer has run out yet: the memory is free because of the aborts.
        for task in house.tasks:
            task.cancel()
        await asyncio.sleep(0.1)
        assert not any(worker._held for worker in house.cluster.workers.values())
        assert not any(engine._core.pool.used for engine in house.cluster.engines.values())

    run_house(leave, seed, requests=0)


def test_an_abort_that_was_lost_is_said_again() -> None:
    async def leave(house: House) -> None:
        task = house.ask(house.cluster.gateway, 200, 2000)
        await house.until(lambda: len(house.answers[0].tokens) > 20)
        house.fault(lambda subject, _: "drop" if subject.endswith(".abort") else None)
        task.cancel()
        await asyncio.sleep(0.1)
        house.fault(None)
        await asyncio.sleep(0.2)
        assert not any(worker._held for worker in house.cluster.workers.values())

    run_house(leave, 0, requests=0)


# --- roles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drain", [*DRAINS, "all"])
@pytest.mark.parametrize("seed", FEW)
def test_roles_change_under_load_without_a_lost_token_or_a_second_prefill(seed: int, drain: Any) -> None:
    async def flip(house: House) -> None:
        made = await house.flips(12, DRAINS if drain == "all" else (drain,))
        assert made >= 4

    house = run_house(flip, seed, requests=60)
    assert house.kv_misses() == 0


@pytest.mark.parametrize("seed", FEW)
def test_a_prefill_given_back_before_it_ran_is_not_taken_for_computed(seed: int) -> None:
    """`migrate` of a prefill worker with a long queue: nothing of those prompts is in the store."""

    async def flip(house: House) -> None:
        await asyncio.sleep(0.05)
        for _ in range(16):
            house.ask(house.cluster.gateway, 1500, 20)
        await asyncio.sleep(0.05)
        assert not await house.set_role("w1", "decode", "migrate")

    house = run_house(flip, seed)
    assert house.kv_misses() == 0
    assert sum(r.missed_tokens for r in house.cluster.gateway._requests.values()) == 0


@pytest.mark.parametrize("seed", FEW)
def test_a_planner_that_crashes_comes_back_with_a_higher_epoch_and_the_same_pins(seed: int) -> None:
    async def crash(house: House) -> None:
        assert not await house.set_role("w1", "decode", "overlap")
        before = house.cluster.workers["w1"].role.epoch
        await house.cluster.planner.pins.pin("w1", "decode")
        house.cluster.kill_planner("planner")
        planner = await house.cluster.add_planner("planner")
        await asyncio.sleep(house.cluster.config.planner.lease_s + 1.0)
        assert planner.leading and planner.pins.roles == {"w1": "decode"}
        assert not await house.set_role("w1", "prefill", "wait")
        assert house.cluster.workers["w1"].role.epoch >> 32 > before >> 32

    run_house(crash, seed)


@pytest.mark.parametrize("lost_answer", [False, True])
def test_wishes_of_several_people_at_once_are_all_carried_out(lost_answer: bool) -> None:
    """`lost_answer`: a pin was written, and the ledger's word that it was did not come back."""

    async def wish(house: House) -> None:
        if lost_answer:
            pins, _ = house.cluster.ledger.keys.get("pins", (msgspec.msgpack.encode({}), 0))
            house.cluster.ledger.keys["pins"] = (pins, 77)
        house.cluster.ledger.delay_s = 0.02
        wishes = [house.set_role(w, role, "overlap") for w, role in (("w1", "decode"), ("w3", "prefill"))]  # type: ignore[arg-type]
        assert await asyncio.gather(*wishes) == ["", ""]
        assert house.cluster.planner.pins.roles == {}
        house.cluster.ledger.delay_s = 0.0

    run_house(wish, 0)


@pytest.mark.parametrize("seed", FEW)
def test_of_two_planners_one_leads_and_a_stale_leader_is_refused(seed: int) -> None:
    async def split(house: House) -> None:
        first = house.cluster.planner
        second = await house.cluster.add_planner("planner2")
        await asyncio.sleep(2.0)
        assert (first.leading, second.leading) == (True, False)
        # The first loses the ledger and does not notice, as after a long freeze: it goes on to command.
        assert first.lead.lease is not None
        stale = first.lead.lease
        first._ledger.is_lost = True  # type: ignore[attr-defined]
        await asyncio.sleep(house.cluster.config.planner.lease_s + 2.0)
        assert (first.leading, second.leading) == (False, True)
        assert not await house.set_role("w1", "decode", "overlap")
        role = house.cluster.workers["w1"].role
        assert role.epoch >> 32 == stale.term + 1
        first.lead.lease = stale
        state = first.heard.live()["w1"]
        # Nothing can be recorded, so nothing is commanded; and what was recorded before the freeze is refused.
        wish = first_wish(first, state)
        first._command(wish)
        await asyncio.sleep(0.5)
        assert house.cluster.workers["w1"].role.role == "decode"
        first.lead.lease = None
        first._ledger.is_lost = False  # type: ignore[attr-defined]

    run_house(split, seed)


def first_wish(planner: Any, state: Any) -> Any:
    from dopd_planner.core import Wish

    now_s = planner._runtime.now()
    return Wish("w1", state.incarnation, "prefill", "overlap", planner.lead.term << 32 | 99, "d", now_s, now_s + 60)


@pytest.mark.parametrize("seed", FEW)
def test_without_the_ledger_all_roles_are_held_and_requests_go_on(seed: int) -> None:
    async def lose(house: House) -> None:
        await asyncio.sleep(0.3)
        house.cluster.ledger.lost()
        before = {w: worker.role for w, worker in house.cluster.workers.items()}
        assert await house.set_role("w1", "decode", "overlap", timeout_s=3.0)
        await asyncio.sleep(3.0)
        assert not house.cluster.planner.leading
        assert {w: worker.role for w, worker in house.cluster.workers.items()} == before
        house.cluster.ledger.found()
        await asyncio.sleep(house.cluster.config.planner.lease_s)
        assert not await house.set_role("w1", "decode", "overlap")

    run_house(lose, seed)


def test_a_planner_that_has_heard_nobody_yet_asks_people_to_try_again() -> None:
    """To say that there is no such worker would be final, and wrong."""

    async def ask(house: House) -> None:
        house.cluster.kill_planner("planner")
        await asyncio.sleep(house.cluster.config.planner.lease_s)
        house.fault(lambda subject, _: 0.5 if "state.worker" in subject else None)
        await house.cluster.add_planner("planner")
        await asyncio.sleep(0.1)
        assert "Unavailable" in await house.set_role("w1", "decode", "overlap")
        await asyncio.sleep(1.0)
        assert not await house.set_role("w1", "decode", "overlap")
        await asyncio.sleep(house.cluster.config.planner.lease_s)
        assert "no worker 'w9'" in await house.set_role("w9", "decode", "overlap")

    run_house(ask, 0, requests=5)


def test_a_planner_that_has_just_started_does_not_take_silence_for_an_empty_pool() -> None:
    """It hears two decode workers before it hears a prefill worker."""

    async def restart(house: House) -> None:
        house.cluster.kill_planner("planner")
        await asyncio.sleep(house.cluster.config.planner.lease_s)
        house.fault(lambda subject, _: 2.0 if subject.endswith(("worker.w1", "worker.w2")) else None)
        await house.cluster.add_planner("planner")
        await asyncio.sleep(6.0)
        roles = [house.cluster.workers[w].role.role for w in ("w1", "w2", "w3", "w4")]
        assert roles == ["prefill", "prefill", "decode", "decode"]

    run_house(restart, 0, requests=0)


# --- all at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_with_everything_at_once_every_request_ends_once_and_nothing_is_left(seed: int) -> None:
    async def chaos(house: House) -> None:
        rng = random.Random(seed)
        flips = asyncio.ensure_future(house.flips(8))
        for _ in range(4):
            await asyncio.sleep(rng.uniform(0.1, 0.8))
            kind = rng.choice(["crash", "stall", "broker", "cut", "lossy", "planner"])
            worker_id = rng.choice(sorted(house.cluster.workers))
            role = house.cluster.workers[worker_id].role.role
            if kind == "crash":
                house.cluster.kill_worker(worker_id)
                await house.restart(worker_id, role, rng.uniform(0.05, 4.0))
            elif kind == "stall":
                house.cluster.engines[worker_id].stall(rng.uniform(0.5, 8.0))
            elif kind == "broker":
                house.cluster.broker.down()
                await asyncio.sleep(rng.uniform(0.1, 4.0))
                house.cluster.broker.up()
            elif kind == "cut":
                name = rng.choice([worker_id, "g1", "g2"])
                house.cluster.buses[name].cut()
                await asyncio.sleep(rng.uniform(0.1, 4.0))
                house.cluster.buses[name].mend()
            elif kind == "lossy":
                house.fault(on("dopd.", "_INBOX", share=0.05, verdict="drop", rng=rng))
                await asyncio.sleep(0.5)
                house.fault(None)
            else:
                house.cluster.kill_planner("planner")
                await house.cluster.add_planner("planner")
        await flips

    run_house(chaos, seed, gateways=2, requests=60, errors_allowed=True, pools_kept=False)


def test_the_first_work_of_a_crashed_worker_is_done_by_another_within_two_leases() -> None:
    """Not only at the deadline."""

    async def crash(house: House) -> None:
        await asyncio.sleep(0.5)
        house.cluster.kill_worker(house.worker_with("decode"))

    house = run_house(crash, 3, pools_kept=False)
    slowest = max(answer.ended_s - answer.asked_s for answer in house.answers)
    assert slowest < 2 * CONFIG.worker.lease_s + 5.0


def test_work_that_is_on_its_way_is_not_taken_for_lost() -> None:
    """A worker that missed nothing else is asked about it, too, when one of its batches is late."""

    async def late(house: House) -> None:
        gateway = house.cluster.gateway
        house.fault(lambda subject, _: 0.5 if subject.endswith((".prefill", ".decode")) else None)
        house.ask(gateway, 500, 20)
        await house.until(lambda: gateway._requests)
        request = next(iter(gateway._requests.values()))
        assert await house.until(lambda: request.slip)
        for segment in request.slip:
            gateway._mend.missed_batch(segment.worker_id, segment.incarnation)
        await house.until(lambda: request.ended)
        assert (request.attempt, request.failures) == (1, 0)

    run_house(late, 1, requests=1)


def test_a_request_that_waits_for_a_place_is_not_taken_for_lost() -> None:
    """It may have been given back after somebody asked about it, and before its worker is heard."""

    async def asked(house: House) -> None:
        gateway = house.cluster.gateway
        house.cluster.broker.down()  # nothing is placed meanwhile
        house.ask(gateway, 500, 20)
        await house.until(lambda: gateway._requests)
        request = next(iter(gateway._requests.values()))
        gateway._mend.ask_again(request)
        await asyncio.sleep(0.1)
        house.cluster.broker.up()
        await house.until(lambda: request.ended)
        assert (request.attempt, request.failures) == (1, 0)

    run_house(asked, 1, requests=1)
