"""The NATS target against the gateway's NATS side: in virtual time on the bus in memory, and once on a real broker."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dopd.bus import Bus
from dopd.bus.memory import MemoryBroker
from dopd.bus.nats_bus import NatsBus
from dopd.errors import DeadlineExceeded, LoadError, RequestError, Unavailable
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.nats_api import NatsApi
from dopd_loadgen.completion_events import Unanswered
from dopd_loadgen.drive import DriveSettings, drive
from dopd_loadgen.model import Phase, Planned, Record
from dopd_loadgen.target_nats import NatsSettings, NatsTarget, settle
from dopd_proto.request import Completion, Usage
from tests.nats_server import NatsServer, server_binary
from tests.text_side import MODEL, ScriptedGateway, ids_of, pieces, text_gateway, tiny_vocabulary

SAID = ids_of(" fox ツ 🦊 dog")
PROBE = pieces(SAID[:1])


def prompt(_: Planned) -> list[int]:
    return [5, 6, 7]


def asked(
    *script: Any, osl: int = len(SAID), model: str = MODEL, gateway: ScriptedGateway | None = None, **how: Any
) -> Record:
    """One request at second 1, answered by the script, in virtual time."""
    gateway = gateway or ScriptedGateway(PROBE)

    async def main() -> Record:
        broker = MemoryBroker(latency_s=0.001)
        text = TextGateway(gateway, tiny_vocabulary(), VirtualRuntime(), Slo(), timeout_s=600.0)
        await NatsApi(broker.connect("gateway"), text).start()

        async def dial(_: str) -> Bus:
            return broker.connect("client")

        target = NatsTarget("memory", model, prompt, NatsSettings(**how), dial)
        await target.open()
        gateway.script = script
        (record,) = await drive([Planned(0, 1.0, 3, osl)], target, DriveSettings(timeout_s=20))
        await target.close()
        return record

    return run_virtual(main())


def test_tokens_are_counted_and_timed_also_without_text() -> None:
    first, *rest = pieces(SAID, sizes=[1, 3])
    record = asked(0.5, first, 0.25, *rest)
    assert record.counts == [1, 3, *[1] * (len(SAID) - 4)] and record.failure == ""
    assert record.times_s[0] == pytest.approx(1.5, abs=0.01) and record.times_s[1] == pytest.approx(1.75, abs=0.01)
    assert (record.status, record.finish_reason, record.prompt_tokens) == (200, "length", 3)
    assert record.sent_s == pytest.approx(1.0) and record.request_id and len(record.trace_id) == 32
    assert record.ended_s is not None and record.ended_s >= record.times_s[-1]
    assert record.timeline == (Phase("queued", 1.0, 2.5, "g1"),)


def test_every_token_is_asked_for_and_the_time_it_may_take() -> None:
    gateway = ScriptedGateway(PROBE)
    asked(*pieces(SAID), gateway=gateway, timeout_s=7.0)
    probe, inbound = gateway.inbounds
    s = inbound.sampling
    assert (s.max_tokens, s.min_tokens, s.ignore_eos, s.temperature) == (len(SAID), len(SAID), True, 0.0)
    assert inbound.tokens == [5, 6, 7] and probe.sampling.max_tokens == 1
    assert inbound.deadline_s - probe.deadline_s == pytest.approx(1.0, abs=0.01) and probe.deadline_s < 7.1


@pytest.mark.parametrize(
    ("script", "failure", "status", "tokens"),
    [
        ([Unavailable("full")], "rejected", 503, 0),
        ([DeadlineExceeded("too late")], "timeout", 504, 0),
        ([*pieces(SAID[:3], end=None), RequestError("the engine died")], "server_error", 500, 3),
        (pieces(SAID[:3], end="stop"), "short", 200, 3),
        (pieces(SAID[:3], end=None), "timeout", 0, 3),
    ],
)
def test_each_failure_is_counted_under_its_name(script: Any, failure: str, status: int, tokens: int) -> None:
    record = asked(*script)
    assert (record.failure, record.status, sum(record.counts)) == (failure, status, tokens) and record.detail


def test_a_free_length_may_end_early() -> None:
    record = asked(*pieces(SAID[:3], end="stop"), forced=False)
    assert (record.failure, record.forced, record.finish_reason) == ("", False, "stop")


def test_a_request_above_the_limits_is_the_clients_fault() -> None:
    assert asked(osl=1_000_000).failure == "client_error"


def test_chunks_that_got_lost_make_a_stream_that_is_not_whole() -> None:
    last = Completion(
        request_id="r", model=MODEL, finish_reason="length", usage=Usage(prompt_tokens=3, completion_tokens=9), seq=9
    )
    with pytest.raises(Unanswered, match="2 of 9 chunks are missing") as caught:
        settle(Record(0, 3, 9, 0.0), last, chunks=7)
    assert caught.value.kind == "truncated"


def refused(model: str, dial: Callable[[str], Awaitable[Bus]], **how: Any) -> LoadError:
    async def main() -> LoadError:
        with pytest.raises(LoadError) as caught:
            await NatsTarget("nats://x", model, prompt, NatsSettings(**how), dial).open()
        return caught.value

    return run_virtual(main())


def test_a_broker_without_a_gateway_is_named_after_the_wait() -> None:
    async def dial(_: str) -> Bus:
        return MemoryBroker().connect("client")

    error = refused(MODEL, dial, ready_timeout_s=3.0)
    assert error.where == "nats://x" and "NoResponders" in error.reason and "is a gateway up?" in error.reason


def test_a_model_has_to_be_named_and_to_exist() -> None:
    async def never(_: str) -> Bus:
        raise AssertionError("not even connected")

    assert "name the one to ask for" in refused("", never).reason
    with pytest.raises(LoadError, match=f"this gateway serves '{MODEL}'"):
        asked(model="gpt-9")


@pytest.mark.nats
async def test_it_works_on_a_real_broker_and_says_when_there_is_none(tmp_path: Path) -> None:
    server = NatsServer(server_binary(), tmp_path)
    server.start()
    try:
        bus = await NatsBus.connect(server.url, "gateway")
        gateway = ScriptedGateway(PROBE)
        api = NatsApi(bus, text_gateway(gateway))
        await api.start()
        target = NatsTarget(server.url, MODEL, prompt, NatsSettings())
        await target.open()
        gateway.script = pieces(SAID, sizes=[2])
        schedule = [Planned(i, i * 0.01, 3, len(SAID)) for i in range(20)]
        records = await drive(schedule, target, DriveSettings(timeout_s=20))
        await target.close()
        await api.stop(timeout_s=1.0)
        await bus.drain()
    finally:
        server.stop()
    assert [r.failure for r in records] == [""] * 20
    assert all(r.counts == [2, *[1] * (len(SAID) - 2)] for r in records)
    with pytest.raises(LoadError, match=re.escape("is the broker up")):
        await asyncio.wait_for(NatsTarget(server.url, MODEL, prompt, NatsSettings()).open(), 30)
