"""The HTTP target against a server of known latencies and every kind of bad manners, and against our own gateway."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from dopd.errors import LoadError
from dopd.runtime.lifeline import PARENT_VARIABLE
from dopd_gateway.http import create_app
from dopd_gateway.http_server import HttpServer
from dopd_loadgen.drive import DriveSettings, clock, drive
from dopd_loadgen.model import Phase, Planned, Record
from dopd_loadgen.target_http import HttpSettings, HttpTarget
from dopd_loadgen.target_ready import refused_field
from tests.selftest_server import MODEL, SelftestServer, Settings, Truth, prompt
from tests.text_side import MODEL as TINY
from tests.text_side import ScriptedGateway, ids_of, pieces, text_gateway

QUICK = Settings(ttft_s=(0.0, 0.01), gap_s=(0.0, 0.002))


def quick(**settings: Any) -> Settings:
    return Settings(ttft_s=QUICK.ttft_s, gap_s=QUICK.gap_s, **settings)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[tuple[SelftestServer, str]]:
    server = SelftestServer(settings)
    url = await server.start()
    try:
        yield server, url
    finally:
        await server.stop()


@asynccontextmanager
async def opened(url: str, model: str = MODEL, **settings: Any) -> AsyncIterator[HttpTarget]:
    target = HttpTarget(url, model, prompt, HttpSettings(ready_timeout_s=0.0, **settings))
    await target.open()
    try:
        yield target
    finally:
        await target.close()


def requests(*behaviours: str, osl: int = 10, every_s: float = 0.0) -> list[Planned]:
    return [Planned(i, i * every_s, 5, osl, text=behaviour) for i, behaviour in enumerate(behaviours)]


async def ask(server: Settings, *behaviours: str, osl: int = 10, timeout_s: float = 20.0, **how: Any) -> list[Record]:
    async with serving(server) as (_, url), opened(url, **how) as target:
        return await drive(requests(*behaviours, osl=osl), target, DriveSettings(timeout_s=timeout_s))


# --- what a load generator is there for -----------------------------------------------------------------------------


@asynccontextmanager
async def other_process(*arguments: str) -> AsyncIterator[str]:
    """The server in a process of its own, so that no loop is shared with the client."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.selftest_server", *arguments),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
    )
    assert process.stdout is not None
    try:
        yield (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
    finally:
        process.kill()
        await process.wait()


def truths_of(url: str) -> dict[int, Truth]:
    with urlopen(f"{url}/truth", timeout=5) as answer:
        return {truth.index: truth for truth in msgspec.json.decode(answer.read(), type=list[Truth])}


def percentiles(values: list[float]) -> NDArray[np.float64]:
    return np.percentile(np.array(values), [10, 50, 90, 99])


async def test_reported_latencies_are_within_two_percent_of_what_the_server_did() -> None:
    """What is wrong with the client is wrong each time; what other work on the machine delays is not."""
    for _ in range(4):
        seen, real = await seen_and_real()
        if seen == pytest.approx(real, rel=0.02):
            return
    assert seen == pytest.approx(real, rel=0.02)


async def seen_and_real() -> NDArray[np.float64]:
    """Percentiles of TTFT, TPOT and gaps, one row each: as the client reports them, and by the server's own log."""
    async with other_process("--seed", "7", "--gap-ms", "20", "80") as url, opened(url) as target:
        zero_s = clock()() + 0.2
        schedule = requests(*[""] * 80, osl=25, every_s=0.03)
        records = await drive(schedule, target, DriveSettings(timeout_s=30, zero_s=zero_s))
        truths = await asyncio.to_thread(truths_of, url)
    assert [r.failure for r in records] == [""] * 80 and all(r.counts == [1] * 25 for r in records)
    writes = [truths[r.index].writes_s for r in records]
    real = [
        [w[0] - zero_s - r.intended_s for w, r in zip(writes, records, strict=True)],
        [(w[-1] - w[0]) / 24 for w in writes],
        [b - a for w in writes for a, b in pairwise(w)],
    ]
    seen = [
        [r.times_s[0] - r.intended_s for r in records],
        [(r.times_s[-1] - r.times_s[0]) / 24 for r in records],
        [b - a for r in records for a, b in pairwise(r.times_s)],
    ]
    return np.array([[percentiles(values) for values in each] for each in (seen, real)])


async def test_a_server_that_stalls_is_seen_by_every_request_that_was_due_meanwhile() -> None:
    """A client that waits for answers before it sends would have one slow request, and good percentiles."""
    every_s, stall_s = 0.05, 2.0
    async with serving(quick(stall_s=stall_s)) as (server, url), opened(url) as target:
        schedule = requests(*[""] * 10, "stall", *[""] * 60, osl=3, every_s=every_s)
        records = await drive(schedule, target, DriveSettings(timeout_s=30))
    truths = {truth.index: truth for truth in server.truths}
    began_s = truths[10].received_s
    # They were sent, though nothing came back …
    during = [t for t in truths.values() if began_s < t.received_s < began_s + 0.9 * stall_s]
    assert len(during) > 0.6 * stall_s / every_s
    # … and each of them waited until the end of the stall, counted from when it should have been sent.
    waited = {r.index: r.times_s[0] - r.intended_s for r in records}
    for truth in during:
        assert waited[truth.index] >= truth.writes_s[0] - truth.received_s
    assert np.percentile(list(waited.values()), 90) > 0.6 * stall_s > 0.3 * stall_s > min(waited.values())


# --- one kind of failure each ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "failure", "status", "tokens", "detail"),
    [
        ("", "", 200, 10, ""),
        ("early_end", "truncated", 200, 5, "without a finish"),
        ("too_short", "short", 200, 5, "5 of 10 tokens"),
        ("malformed", "malformed", 200, 5, "in the event"),
        ("error_event", "server_error", 200, 5, "the engine died"),
        ("mute", "timeout", 200, 5, "no end within 1 s"),
        ("reset", "connection", 200, 5, ""),
        ("hang_up", "connection", 200, 5, "not completed"),
        ("silent", "timeout", 0, 0, "no end within 1 s"),
        ("json", "malformed", 200, 0, "all at once"),
        ("no_http", "malformed", 0, 0, "no HTTP"),
        ("400", "client_error", 400, 0, "no such thing"),
        ("429", "rejected", 429, 0, "slow down"),
        ("500", "server_error", 500, 0, "broken"),
        ("503", "rejected", 503, 0, "full"),
    ],
)
async def test_each_misbehaviour_is_counted_under_its_name(
    behaviour: str, failure: str, status: int, tokens: int, detail: str
) -> None:
    timeout_s = 1.0 if failure == "timeout" else 20.0
    (record,) = await ask(QUICK, behaviour, timeout_s=timeout_s)
    assert (record.failure, record.status, sum(record.counts)) == (failure, status, tokens)
    assert detail in record.detail and record.ended_s is not None and len(record.times_s) == len(record.counts)


async def test_a_server_that_goes_away_is_a_failed_connection() -> None:
    async with serving(QUICK) as (server, url), opened(url) as target:
        await server.stop()
        (record,) = await drive(requests(""), target, DriveSettings(timeout_s=20))
    assert record.failure == "connection" and record.status == 0


async def test_bad_neighbours_leave_good_requests_alone() -> None:
    bad = ("early_end", "malformed", "reset", "500", "no_http")
    records = await ask(QUICK, *("", *bad) * 10)
    assert [r.failure == "" for r in records] == [True, *[False] * len(bad)] * 10


async def test_a_request_that_is_given_up_hangs_up_on_the_server() -> None:
    async with serving(QUICK) as (server, url), opened(url) as target:
        await drive(requests("mute"), target, DriveSettings(timeout_s=0.5))
        for _ in range(100):
            if server.truths[0].hung_up:
                break
            await asyncio.sleep(0.02)
        assert server.truths[0].hung_up


# --- tokens, as the server counts them ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "counts"), [("continuous", [1, 3, 3, 3]), ("at_end", [1, 3, 3, 3]), ("none", [1, 3, 3, 3])]
)
async def test_several_tokens_in_an_event_are_counted_however_the_server_tells(usage: str, counts: list[int]) -> None:
    (record,) = await ask(quick(usage=usage, pack=3), "")
    assert record.counts == counts and record.failure == ""
    assert record.prompt_tokens == (0 if usage == "none" else 7)


async def test_the_timeline_of_the_server_is_in_the_record() -> None:
    (record,) = await ask(quick(timeline=(("queue", 1.0, 2.5, "g1"),)), "")
    assert record.timeline == (Phase("queue", 1.0, 2.5, "g1"),)


async def test_our_gateway_counts_tokens_without_text_and_its_errors_are_understood() -> None:
    """Half characters have no text yet, but are tokens."""
    said = ids_of(" fox ツ 🦊 dog")
    gateway = ScriptedGateway(pieces(said, sizes=[1, 2]))
    server = HttpServer(create_app(text_gateway(gateway), 64_000), "127.0.0.1", 0, stop_timeout_s=1)
    await server.start()
    try:
        async with opened(f"http://127.0.0.1:{server.port}/v1", model="") as target:
            assert target.model == TINY and target.dropped == set()
            whole, refused = await drive(
                [Planned(0, 0.0, 5, len(said)), Planned(1, 0.0, 5, 1_000_000)], target, DriveSettings(timeout_s=10)
            )
    finally:
        await server.stop()
    assert whole.counts == [1, 2, *[1] * (len(said) - 3)] and whole.failure == "" and whole.request_id
    assert whole.prompt_tokens == len(ids_of("0 ")) and whole.timeline == (Phase("queued", 1.0, 2.5, "g1"),)
    assert (refused.failure, refused.status) == ("client_error", 400) and "max_tokens" in refused.detail


# --- what is sent ---------------------------------------------------------------------------------------------------


async def test_every_request_says_how_it_wants_to_be_answered_and_who_traces_it() -> None:
    async with serving(quick(api_key="k")) as (server, url):
        runs = []
        for _ in range(2):
            async with opened(url, api_key="k", seed=3, extra_body={"top_k": 5}) as target:
                runs.append(await drive(requests("", ""), target, DriveSettings()))
    fields = server.truths[0].fields
    assert {name: fields[name] for name in ("max_tokens", "min_tokens", "ignore_eos", "temperature", "top_k")} == {
        "max_tokens": 10,
        "min_tokens": 10,
        "ignore_eos": True,
        "temperature": 0,
        "top_k": 5,
    }
    parents = [truth.traceparent.split("-") for truth in server.truths]
    assert all((p[0], len(p[1]), len(p[2]), p[3]) == ("00", 32, 16, "01") for p in parents)
    assert len({p[1] for p in parents}) == 2
    assert {r.trace_id for r in runs[0]} == {r.trace_id for r in runs[1]} == {p[1] for p in parents}


async def test_a_free_length_is_not_forced() -> None:
    async with serving(QUICK) as (server, url), opened(url, forced=False) as target:
        whole, short = await drive(requests("", "too_short"), target, DriveSettings())
    assert not {"ignore_eos", "min_tokens"} & server.truths[0].fields.keys()
    assert (whole.forced, whole.failure, short.failure) == (False, "", "")


async def test_connections_are_used_again_and_there_is_no_limit_to_them() -> None:
    async with serving(QUICK) as (server, url), opened(url) as target:
        await drive(requests(*[""] * 10, every_s=0.1), target, DriveSettings())
        assert server.connections < 5
        await drive(requests(*["mute"] * 150), target, DriveSettings(timeout_s=2.0))
        assert server.connections >= 150


# --- before the run -------------------------------------------------------------------------------------------------

ALL = ("continuous_usage_stats", "stream_options", "ignore_eos", "min_tokens")


@pytest.mark.parametrize("names_them", [True, False])
@pytest.mark.parametrize("refuses", [ALL[:1], ALL[1:2], ALL[2:], ALL], ids=str)
async def test_fields_that_the_server_refuses_are_left_out(refuses: tuple[str, ...], names_them: bool) -> None:
    settings = quick(refuses=frozenset(refuses), names_them=names_them)
    async with serving(settings) as (_, url), opened(url) as target:
        assert target.dropped >= set(refuses) and (not names_them or len(target.dropped) <= len(refuses) + 1)
        (record,) = await drive(requests(""), target, DriveSettings())
    assert record.failure == "" and sum(record.counts) == 10
    assert record.forced == (not {"ignore_eos", "min_tokens"} <= set(refuses))


def test_a_refusal_takes_out_what_it_names_and_the_finer_thing_first() -> None:
    sent = frozenset(ALL)
    assert refused_field("extra field: min_tokens", sent) == "min_tokens"
    assert refused_field("unknown stream_options", sent) == "continuous_usage_stats"
    assert refused_field("unknown stream_options", sent - {"continuous_usage_stats"}) == "stream_options"
    assert refused_field("no", sent) == "continuous_usage_stats" and refused_field("no", frozenset()) == ""


async def test_a_server_that_is_not_ready_is_waited_for() -> None:
    async with serving(quick(ready_after=2)) as (server, url):
        target = HttpTarget(url, "", prompt, HttpSettings(ready_timeout_s=20.0))
        await target.open()
        await target.close()
    assert target.model == MODEL and server.turned_away == 2


@pytest.mark.parametrize(
    ("server", "how", "reason"),
    [
        (quick(api_key="k"), {}, "refuses the API key, or wants one"),
        (QUICK, {"model": "gpt-9"}, f"has no model 'gpt-9'; there are: {MODEL}"),
        (QUICK, {"path": "/v2/complete"}, "nothing at this path"),
        (quick(ready_after=100), {}, "is not ready (503): still loading"),
    ],
    ids=["key", "model", "path", "loading"],
)
async def test_a_server_that_cannot_be_used_is_named_with_what_to_do(
    server: Settings, how: dict[str, Any], reason: str
) -> None:
    async with serving(server) as (_, url):
        with pytest.raises(LoadError) as caught:
            async with opened(url, **how):
                pass
    assert reason in caught.value.reason and url in caught.value.where


async def test_an_address_where_nobody_listens_is_named() -> None:
    async with serving(QUICK) as (_, url):
        pass
    for model in ("", MODEL):
        with pytest.raises(LoadError, match="is the server up") as caught:
            async with opened(url, model=model):
                pass
        assert caught.value.where == url
