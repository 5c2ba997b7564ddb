"""The live page in a real browser, over a running emulated cluster; and what its listeners may do."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from dopd_gateway.live.listeners import MOST_LISTENERS
from dopd_gateway.live.snapshot import difference
from dopd_proto.subjects import WORKER_STATE
from dopd_proto.telemetry import WorkerState
from tests.e2e.browser import Browser
from tests.e2e.live import Live, demo, live
from tests.e2e.running import ROOT, Running, wait_until

pytestmark = [
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
EVIL = "<img/src=x/onerror=boom()>"
"""What a worker calls itself that wants to be more."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with demo(
        tmp_path_factory.mktemp("live"),
        gateway__window_s=1.0,
        forecaster__bin_s=1.0,
        forecaster__horizons_s="[1.0, 5.0]",
    ) as up:
        up.wait_for("Ctrl-C stops everything", 60.0)
        up.note()
        yield up


@pytest.fixture(scope="module")
def browser(cluster: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A page that has been open since before the first request; the tests follow on one another."""
    with Browser(tmp_path_factory.mktemp("browser")) as running:
        running.open(cluster.state.page_url())
        yield running


@pytest.fixture
async def clients(cluster: Running) -> AsyncIterator[Live]:
    async with live(cluster) as found:
        yield found


def row(worker_id: str) -> str:
    return f"#workers tr[data-key={json.dumps(worker_id)}]"


def dopd(up: Running, *words: str) -> str:
    env = {**os.environ, "DOPD__CLUSTER__STATE_DIR": str(up.state.root)}
    command = [sys.executable, "-m", "dopd.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=60, check=True).stdout


def test_up_and_status_say_where_the_page_is(cluster: Running) -> None:
    assert cluster.state.page_url() in cluster.output
    assert f" {cluster.state.page_url()}\n" in dopd(cluster, "status")


def test_the_page_shows_the_cluster_without_a_complaint_and_asks_no_other_host(
    cluster: Running, browser: Browser
) -> None:
    browser.until("document.querySelectorAll('#workers tbody tr').length === 4")
    browser.until_text("#link", "^live; this gateway has counted since")
    browser.until_text("#about", "gateway g1, 4 workers: 2 prefill, 2 decode")
    for name, role in (("w1", "prefill"), ("w4", "decode")):
        assert f"{role}\nserving" in browser.text(row(name)).replace("\t", "\n") or role in browser.text(row(name))
    browser.until("document.querySelectorAll('#roles svg rect.fill').length >= 4")
    assert browser.value("[...document.querySelectorAll('h2')].every((title) => title.offsetHeight > 0)")
    assert len({urlsplit(url).netloc for url in browser.asked}) == 1 and len(browser.asked) > 8
    assert browser.errors == []


async def test_requests_show_in_figures_and_as_waterfalls_and_so_do_forecasts(clients: Live, browser: Browser) -> None:
    async with clients.open_load(8.0, 120, 20):
        await asyncio.sleep(4.0)
    await asyncio.to_thread(browser.until, "document.querySelectorAll('#met li').length > 3")
    for figure in ("ttft", "tpot", "goodput", "arrivals"):
        await asyncio.to_thread(browser.until, f"document.querySelectorAll('#{figure} path.line').length > 0")
    await asyncio.to_thread(browser.until, "document.querySelector('#arrivals .band')")
    browser.value("document.querySelector('#met details').open = true")
    await asyncio.to_thread(browser.until_text, "#met table.fall", "prefilling w[1-4].*\n(.*\n)*.*decoding w[1-4]")
    assert "attainment" in browser.text("#now") and "%" in browser.text("#now")
    assert browser.errors == []


async def test_a_change_of_role_shows_in_table_timeline_and_decisions(
    cluster: Running, clients: Live, browser: Browser
) -> None:
    dopd(cluster, "roles", "set", "w3", "prefill")
    browser.until_text(row("w3"), "prefill")
    browser.until_text("#roles figcaption", r"w3 decode → prefill")
    browser.until_text("#decisions", r"2P2D > 3P1D A person wanted it")
    assert browser.value("document.querySelectorAll('#roles path.mark').length") >= 2  # in the lane, in the legend
    await clients.set_role("w3", "decode", "overlap")
    browser.until_text("#roles figcaption", r"w3 prefill → decode")
    browser.until_text("#decisions", r"w3: prefill to decode, drained")
    browser.value("document.querySelectorAll('#decisions details').forEach((one) => { one.open = true })")
    browser.until_text("#decisions", r"Role changes:\n  w3: prefill to decode, drained; took new work after")


def test_a_worker_that_is_killed_is_shown_as_lost(cluster: Running, browser: Browser) -> None:
    env = {**os.environ, "DOPD_CONFIG": str(cluster.state.config_file), "DOPD__WORKER__LEASE_S": "1.0"}
    command = [sys.executable, "-m", "dopd_decode", "--worker-id", "w5"]
    own = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        browser.until_text(row("w5"), "serving", 20.0)
        own.send_signal(signal.SIGKILL)
        browser.until_text(row("w5"), "lost, last heard")
        browser.until_text("#roles figcaption", "w5 lost")
        browser.until_text("#about", "4 workers: ")
    finally:
        own.kill()
        own.wait()


async def test_what_comes_from_outside_stays_text(clients: Live, browser: Browser) -> None:
    state = next(iter(clients.cluster.states.values()))
    fields = {name: getattr(state, name) for name in state.__struct_fields__}
    evil = WorkerState(
        **{**fields, "worker_id": EVIL, "engine": EVIL, "lease_s": 2.0, "grants": (), "phase": "stalled"}
    )
    clients.bus.publish(WORKER_STATE.at(worker_id="w9"), evil)
    await asyncio.to_thread(browser.until, f"document.querySelector({json.dumps(row(EVIL))})")
    assert browser.text(f"{row(EVIL)} th") == EVIL
    assert EVIL[:12] in browser.value("document.querySelector('#roles svg').textContent")
    assert browser.value("document.images.length") == 0 and browser.errors == []


@pytest.mark.parametrize("width", [360, 700, 1200])
def test_the_page_is_never_wider_than_its_window(browser: Browser, width: int) -> None:
    try:
        browser.resize(width, 800, "dark")
        browser.value("document.querySelectorAll('details').forEach((one) => { one.open = true })")
        browser.until(f"document.querySelector('#arrivals svg').getBoundingClientRect().width < {width}")
        assert browser.value("document.documentElement.scrollWidth") <= width
    finally:
        browser.resize(1200, 900)


def test_patches_make_the_document_in_the_browser_too(browser: Browser) -> None:
    rng = random.Random("patches")

    def drawn(depth: int) -> dict[str, Any]:
        keys = rng.sample(["a", "b", "c", "__proto__", "constructor"], rng.randrange(5))
        return {key: drawn(depth - 1) if depth and rng.random() < 0.6 else rng.choice([1, "x", [1, 2]]) for key in keys}

    cases = [(before, difference(before, after), after) for before, after in [(drawn(3), drawn(3)) for _ in range(200)]]
    text = json.dumps(json.dumps(cases))
    made = browser.value(
        f"import('/merge.js').then(({{merge}}) => JSON.stringify(JSON.parse({text}).map(([b, p]) => merge(b, p))))"
    )
    assert json.loads(made) == [after for _, _, after in cases]
    assert browser.value("({}).a === undefined && Object.keys(Object.prototype).length === 0")


def test_the_page_outlives_a_restart_of_the_gateway_and_says_so(cluster: Running, browser: Browser) -> None:
    before = cluster.state.process("gateway")
    assert before is not None
    before.send(signal.SIGKILL)
    browser.until_text("#link", "^Connection lost since")
    browser.until_text("#link", "^live;", 20.0)
    browser.until_text("#notes", "The gateway started anew at .*; what it knew before is gone")
    browser.until("document.querySelectorAll('#workers tbody tr').length === 4")
    assert wait_until(lambda: cluster.state.process("gateway") not in (None, before))
    cluster.note()
    # What cannot be had while it is away is said by the browser; nothing else was complained of.
    assert [error for error in browser.errors if "net::ERR" not in error] == []


# --- listeners --------------------------------------------------------------------------------------------------------


async def test_there_is_a_limit_of_listeners_and_those_who_left_do_not_count(
    cluster: Running, browser: Browser
) -> None:
    browser.call("Page.navigate", url="about:blank")
    url = cluster.state.page_url()
    async with httpx.AsyncClient(base_url=url, timeout=10.0) as client:
        held = [await client.send(client.build_request("GET", "live"), stream=True) for _ in range(MOST_LISTENERS + 1)]
        assert held[0].status_code == 200  # the browser's own place may still be taken
        assert held[-1].status_code == 503 and held[-1].headers["retry-after"]
        assert (await client.get("metrics")).status_code == 200  # operators are never shut out
        for one in held:
            await one.aclose()

        async def admitted() -> bool:
            async with client.stream("GET", "live") as response:
                return response.status_code == 200

        for _ in range(100):
            if await admitted():
                return
            await asyncio.sleep(0.1)
    raise AssertionError("places of those who left are not given to others")


async def test_a_listener_is_told_all_and_then_what_changes(cluster: Running) -> None:
    url = cluster.state.page_url()
    async with httpx.AsyncClient(timeout=20.0) as client, client.stream("GET", f"{url}live") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "default-src 'none'" in response.headers["content-security-policy"]
        lines = response.aiter_lines()
        seen: list[str] = []
        async with asyncio.timeout(20.0):
            async for line in lines:
                seen.append(line)
                if sum(one == "event: update" for one in seen) == 2:
                    break
    assert seen[0].startswith("retry: ") and "event: snapshot" in seen[:3]
    whole = json.loads(next(one for one in seen if one.startswith("data: ")).removeprefix("data: "))
    assert set(whole["workers"]) >= {"w1", "w2", "w3", "w4"} and whole["keep_s"] == 900.0


def test_the_page_has_no_other_methods_and_its_files_are_safe(cluster: Running) -> None:
    with httpx.Client(base_url=cluster.state.page_url(), timeout=10.0) as client:
        page = client.get("")
        assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        assert client.post("").status_code == 405 and client.get("../live.js").status_code == 200
        assert client.get("snapshot.py").status_code == client.get("page/live.js").status_code == 404
        assert page.headers["x-content-type-options"] == "nosniff"
        assert client.head("live").status_code == 404
