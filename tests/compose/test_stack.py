"""The compose stack in a real Docker engine: up, asked, scaled, its roles changed, broken. No request fails and every
token is the one that the emulated model gives, as docs/semantics.md promises.

In the order in which they stand: the first ones find one worker of each role, the later ones two.
"""

import asyncio
import random

import pytest

from dopd.bus.nats_bus import NatsBus
from dopd.errors import BrokerRefuses
from tests.compose.stack import HTTP, NATS, OPERATOR, Clients, Container, Stack, clients_of, first_token_s

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(290)]
# The stack is made by the first test that needs it.
FIRST = pytest.mark.timeout(1500)


CRASH = """
import os, signal
for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
    if pid not in (1, os.getpid()):
        os.kill(pid, signal.SIGKILL)
"""
"""Process 1 is Docker's init, which ends with its only child."""


START_S = 90.0
"""A container of ours may take so long to be there on a machine that has much else to do."""


# --- up ---------------------------------------------------------------------------------------------------------------


@FIRST
async def test_up_waits_until_a_request_can_be_served(stack: Stack) -> None:
    began_s = asyncio.get_running_loop().time()
    took_s = await first_token_s(stack.urls()[0], began_s)
    print(f"\nfirst token {took_s:.3f} s after `up --wait` returned")
    assert {one.state for one in stack.containers()} == {"running"}


async def test_no_container_can_do_more_than_it_needs(stack: Stack) -> None:
    for container in stack.containers():
        host, user = stack.inspect(container)["HostConfig"], stack.inspect(container)["Config"]["User"]
        assert user == "10001:10001", container
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and not host["CapAdd"], container
        assert "no-new-privileges:true" in host["SecurityOpt"], container
        # The broker's is the test's.
        allowed = {"gateway": {HTTP, OPERATOR}, "nats": {NATS}}.get(container.service, set())
        assert {own for own, published in container.ports.items() if published} == allowed, container


async def test_http_and_nats_give_the_same_tokens(stack: Stack) -> None:
    async with clients_of(stack) as clients:
        await clients.settled(1, 1)
        asked = []
        for stream in (True, False):
            for ask in (clients.ask_http, clients.ask):
                clients.rng = random.Random("one prompt")  # the same for all
                asked.append(await ask(300, 40, stream=stream, url=clients.gateways[0]) if ask == clients.ask_http
                             else await ask(300, 40, stream=stream))  # fmt: skip
        for one in asked:
            await one.done.wait()
        assert clients.verdict() == []
        assert len({tuple(one.tokens) for one in asked}) == 1 and len(asked[0].tokens) == 40


async def test_the_load_generator_and_the_operators_commands_run_as_services(stack: Stack) -> None:
    report = await stack.aside(stack.compose, "run", "--rm", "loadgen", timeout_s=120.0)
    assert "goodput" in report.lower(), report
    roles = await stack.aside(stack.compose, "run", "--rm", "operator", "roles")
    assert "2 workers" in roles and all(one.host in roles for one in stack.containers("prefill-worker")), roles


# --- scale and roles --------------------------------------------------------------------------------------------------


async def test_workers_are_added_under_load_and_each_has_a_name_of_its_own(stack: Stack) -> None:
    async with clients_of(stack) as clients:
        await clients.settled(1, 1)
        async with clients.load():
            await stack.aside(stack.up, prefill_worker=2, decode_worker=2)
            await clients.settled()
        workers = [*stack.containers("prefill-worker"), *stack.containers("decode-worker")]
        assert {one.host for one in workers} == set(clients.cluster.states)


@pytest.mark.parametrize("drain", ["overlap", "migrate", "wait"])
async def test_a_role_changes_under_load(stack: Stack, drain: str) -> None:
    async with clients_of(stack) as clients:
        await clients.settled()
        async with clients.load():
            await asyncio.sleep(1.0)
            worker_id = clients.busiest("decode")
            await clients.set_role(worker_id, "prefill", drain)  # type: ignore[arg-type]
            assert clients.cluster.states[worker_id].role == "prefill"
            await asyncio.sleep(2.0)
            await clients.set_role(worker_id, "decode", drain)  # type: ignore[arg-type]
            await clients.roles("unpin", worker_id)
        await clients.settled()
        await clients.idle()


# --- workers break ----------------------------------------------------------------------------------------------------


def container_of(stack: Stack, worker_id: str) -> Container:
    return next(one for one in stack.containers() if one.host == worker_id)


async def hit(stack: Stack, clients: Clients, role: str) -> Container:
    """The busiest worker of this role, as soon as it has something to lose."""
    await clients.until(lambda: clients.in_flight(clients.busiest(role)) > 0, 20.0, f"work at a {role} worker")
    return container_of(stack, clients.busiest(role))


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_worker_that_is_killed_costs_no_token(stack: Stack, role: str) -> None:
    async with clients_of(stack) as clients:
        await clients.settled()
        async with clients.load():
            await asyncio.sleep(2.0)
            victim = await hit(stack, clients, role)
            await stack.out("kill", victim.id)
            await asyncio.sleep(5.0)
            # Docker starts nothing anew that a person has killed.
            assert container_of(stack, victim.host).state == "exited"
            await stack.out("start", victim.id)
            await clients.until(lambda: clients.heard(victim.host), START_S, "it is back under its name")
            await asyncio.sleep(1.0)
        await clients.settled()
        await clients.idle()


async def test_a_worker_whose_process_dies_is_started_anew_under_its_name(stack: Stack) -> None:
    async with clients_of(stack) as clients:
        await clients.settled()
        async with clients.load():
            await asyncio.sleep(1.0)
            victim = await hit(stack, clients, "decode")
            old = clients.cluster.states[victim.host].incarnation
            await stack.aside(stack.docker.works, "exec", victim.id, "python", "-c", CRASH)
            await clients.until(lambda: clients.cluster.states[victim.host].incarnation != old, START_S, "a new life")
        await clients.settled()


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_worker_that_is_paused_costs_no_token_and_adds_none_when_it_goes_on(stack: Stack, role: str) -> None:
    async with clients_of(stack) as clients:
        await clients.settled()
        async with clients.load():
            await asyncio.sleep(2.0)
            victim = await hit(stack, clients, role)
            await stack.aside(stack.pause, victim)
            await asyncio.sleep(6.0)  # longer than its lease
            await stack.out("unpause", victim.id)
            await asyncio.sleep(2.0)
        await clients.settled()
        await clients.idle()


async def test_a_worker_that_is_cut_off_costs_no_token_and_serves_again_when_it_is_back(stack: Stack) -> None:
    async with clients_of(stack) as clients:
        await clients.settled()
        async with clients.load():
            await asyncio.sleep(2.0)
            victim = await hit(stack, clients, "decode")
            await stack.out("network", "disconnect", "dopd-test_bus", victim.id)
            await asyncio.sleep(6.0)
            assert not clients.heard(victim.host)
            await stack.out("network", "connect", "dopd-test_bus", victim.id)
            await clients.until(lambda: clients.heard(victim.host), START_S, "it is heard again")
            await asyncio.sleep(1.0)
        await clients.settled()
        await clients.idle()


# --- the rest breaks --------------------------------------------------------------------------------------------------


async def test_a_broker_that_is_restarted_ends_no_stream(stack: Stack) -> None:
    """Over HTTP: what a client of the broker itself hears while it is away is not promised."""
    async with clients_of(stack) as clients:
        await clients.settled()
        async with clients.open_load(4.0, 400, 80):
            await asyncio.sleep(3.0)
            await stack.aside(stack.compose, "restart", "nats")
            await asyncio.sleep(5.0)
        assert clients.verdict() == [] and not clients.failures()
        assert not [asked.broken for asked in clients.asked if asked.broken]
        await clients.settled()


async def test_gateways_and_planner_are_restarted_one_after_the_other(stack: Stack) -> None:
    """As an upgrade does: new HTTP requests go to the other gateway; NATS needs nobody to tell it."""
    async with clients_of(stack) as clients:
        await stack.aside(stack.up, gateway=2, prefill_worker=2, decode_worker=2)
        await clients.settled()
        both = list(stack.containers("gateway"))
        assert len(both) == len(clients.gateways) == 2
        async with clients.load():
            await asyncio.sleep(2.0)
            for one in both:
                clients.gateways = [other.url for other in stack.containers("gateway") if other.id != one.id]
                await stack.out("restart", "-t", 30, one.id)
                # Its port may be another one now.
                await clients.until_ready(container_of(stack, one.host).url, START_S)
            (planner,) = stack.containers("ratio-planner")
            await stack.out("restart", "-t", 10, planner.id)
            await clients.settled()
            worker_id = clients.busiest("decode")
            await clients.set_role(worker_id, "prefill", "overlap")
            await clients.set_role(worker_id, "decode", "overlap")
            await clients.roles("unpin", worker_id)


async def test_workers_are_taken_away_under_load(stack: Stack) -> None:
    async with clients_of(stack) as clients:
        await stack.aside(stack.up, gateway=1, prefill_worker=2, decode_worker=2)
        await clients.settled()
        async with clients.load():
            await asyncio.sleep(2.0)
            await stack.aside(stack.up, gateway=1, prefill_worker=1, decode_worker=1)
            await asyncio.sleep(1.0)
        await clients.settled(1, 1)


# --- encrypted --------------------------------------------------------------------------------------------------------


async def test_with_tls_the_stack_serves_and_the_broker_hears_nobody_without(stack: Stack) -> None:
    ca_file = await stack.aside(stack.up_with_tls)
    await first_token_s(stack.urls()[0], 0.0)
    url = stack.nats_url("client")
    bus = await NatsBus.connect(url, "with", ca_file=str(ca_file))
    await bus.drain()
    with pytest.raises(BrokerRefuses):
        await NatsBus.connect(url, "without", max_reconnect=0)
