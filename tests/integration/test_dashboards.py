"""Every query of the dashboards and alerts, asked of a real Prometheus that reads a running emulated cluster and, where
it is installed, a real LMCache server: none fails, each panel has data, and each alert's series are there.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from dopd.engine.vllm.store import LmcacheStore, StoreSettings, available
from dopd.runtime.lifeline import die_with
from tests import prometheus_rig
from tests.e2e.live import Live, demo, live
from tests.e2e.running import Running
from tests.prometheus_rig import DASHBOARDS, Asked, Prometheus, Series, promtool

pytestmark = [
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform != "linux", reason="Debian's prometheus, and /proc"),
]

HORIZON_S, LOAD_S, AFTER_S = 4, 9.0, 2.5
JOBS = {
    "gateway": "gateway", "forecaster": "forecaster", "planner": "ratio-planner", "store": "kv-store",
    "w1": "prefill-worker", "w2": "prefill-worker", "w3": "decode-worker", "w4": "decode-worker",
}  # fmt: skip
HANG_ON_SPEED = {"DopdSloBurnsFast", "DopdSloBurnsSlowly", "DopdForecastBad"}
"""Alerts that a busy machine may raise."""
LMCACHE_LOAD = (
    "--mode", "cpu", "--num-tokens", "256",
    "--kvcache-shape-spec", "(2,128,16,2,16):float32:2",
)  # fmt: skip


@dataclass
class Seen:
    """What Prometheus told at the end of the load."""

    panels: dict[str, list[Series]] = field(default_factory=dict)
    rules: list[dict[str, Any]] = field(default_factory=list)
    selected: dict[str, list[Any]] = field(default_factory=dict)
    services: set[str] = field(default_factory=set)
    pages: dict[str, str] = field(default_factory=dict)
    arrived: float = 0.0


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A cluster under load for some seconds, with a role change, a wrong request and one that is too late."""
    prometheus_rig.folder_of_programs()
    folder = tmp_path_factory.mktemp("dashboards")
    with demo(
        folder / "cluster",
        policy__name="dopd",
        gateway__window_s=1.0,
        forecaster__bin_s=1.0,
        forecaster__horizons_s=f"[1.0, {HORIZON_S}.0]",
        engine__profile="a100-qwen2.5-14b-bf16-tp1",
    ) as up:
        yield asyncio.run(looked(up, folder))


async def looked(up: Running, folder: Path) -> Seen:
    targets: dict[str, list[str]] = {}
    async with lmcache(folder) as store:
        await asyncio.to_thread(up.wait_for, "Ctrl-C stops everything", 60.0)
        for name, job in JOBS.items():
            targets.setdefault(job, []).append(up.state.operator_url(name).removeprefix("http://"))
        if store is not None:
            targets["lmcache"] = [f"{store.settings.host}:{store.settings.http_port}"]
        async with live(up) as clients:
            await clients.until_planner(workers=4)
            with Prometheus(folder, targets) as prometheus:
                await clients.until(prometheus.sees_all, 30.0, "every target was read")
                async with asyncio.TaskGroup() as group:
                    group.create_task(loaded(clients))
                    if store is not None:
                        group.create_task(driven(store))
                await asyncio.sleep(AFTER_S)
                found = await asyncio.to_thread(look, prometheus)
        async with httpx.AsyncClient() as client:
            for name in JOBS:
                found.pages[name] = (await client.get(up.state.operator_url(name) + "/metrics")).text
    return found


async def loaded(clients: Live) -> None:
    """Rates are there from the second look on, and a few seconds of everything are enough."""
    for worker_id in ("w1", "w2"):  # from now on the planner leaves them alone; the other two are its own
        await clients.set_role(worker_id, "prefill", "overlap")
    async with clients.open_load(4.0, 500, 40):
        await asyncio.sleep(LOAD_S / 2)
        await clients.set_role("w2", "decode", "overlap", until="drained")
        await clients.ask_http(300, 20, timeout_s=0.001)
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{clients.url}/v1/completions", json={"model": "another", "prompt": "x"})
            assert answer.status_code == 404
        await asyncio.sleep(LOAD_S / 2)


def look(prometheus: Prometheus) -> Seen:
    found = Seen()
    for file in DASHBOARDS:
        for one in prometheus_rig.asked(file):
            found.panels[one.key] = prometheus.over(one.filled("5s", str(HORIZON_S)))
    found.rules = [rule for group in prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]
    for rule in found.rules:
        for selector in prometheus_rig.selectors(rule["query"]):
            found.selected[f"{rule['name']}: {selector}"] = prometheus.now(selector)
    found.services = {labels["service"] for labels, _ in prometheus.now("dopd_build_info")}
    found.arrived = prometheus.now("sum(dopd_arrivals_total)")[0][1]
    return found


@asynccontextmanager
async def lmcache(folder: Path) -> AsyncIterator[LmcacheStore | None]:
    """A real LMCache server; None where it is not installed."""
    if not available():
        yield None
        return
    async with LmcacheStore(StoreSettings(size_gb=0.1, log_file=str(folder / "lmcache.log"))) as store:
        yield store


async def driven(store: LmcacheStore, requests: int = 6, every_s: float = 0.4) -> None:
    """LMCache's own bench stores, looks up and fetches, on the CPU."""
    host, port, http_port = store.settings.host, store.settings.port, store.settings.http_port
    bench = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("lmcache")), "bench", "server", *LMCACHE_LOAD,
        "--end", str(requests), "--interval", str(every_s),
        "--rpc-url", f"tcp://{host}:{port}", "--url", f"http://{host}:{http_port}",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        preexec_fn=partial(die_with, os.getpid()),
    )  # fmt: skip
    try:
        async with asyncio.timeout(60.0 + 3 * requests * every_s):
            assert await bench.wait() == 0
    finally:
        if bench.returncode is None:
            bench.kill()
            await bench.wait()


ALL = [one for file in DASHBOARDS for one in prometheus_rig.asked(file)]


@pytest.mark.parametrize("one", ALL, ids=[one.key.replace(" ", "-") for one in ALL])
def test_a_query_of_a_dashboard_has_data(seen: Seen, one: Asked) -> None:
    if one.panel.startswith("LMCache") and not available():
        pytest.skip("lmcache is not installed; see `make setup`")
    assert prometheus_rig.finite(seen.panels[one.key]), one.expr


def test_every_rule_is_evaluated_and_its_series_are_there(seen: Seen) -> None:
    assert [(rule["name"], rule.get("lastError")) for rule in seen.rules if rule["health"] != "ok"] == []
    assert len({rule["name"] for rule in seen.rules if rule["type"] == "alerting"}) >= 15
    assert [key for key, series in seen.selected.items() if not series] == []


def test_a_cluster_that_is_well_raises_no_alert(seen: Seen) -> None:
    active = {rule["name"] for rule in seen.rules if rule["type"] == "alerting" and rule["alerts"]}
    assert active <= HANG_ON_SPEED


def test_a_role_change_is_on_the_timeline_under_the_workers_name(seen: Seen) -> None:
    (series,) = [key for key in seen.panels if "Role of each worker" in key]
    roles = {labels["service"]: [value for _, value in points] for labels, points in seen.panels[series]}
    assert roles.keys() == {"w1", "w2", "w3", "w4"}
    assert set(roles["w2"]) == {1.0, 2.0} and roles["w2"][-1] == 2.0  # prefill, then decode
    assert roles["w1"][-1] == 1.0


def test_what_is_told_of_requests_and_services_is_all_of_them(seen: Seen) -> None:
    assert seen.services >= {"gateway", "forecaster", "ratio-planner", "kv-store", "w1", "w2", "w3", "w4"}
    assert seen.arrived > LOAD_S
    (key,) = [key for key in seen.panels if key == "dopd-traffic / Requests / arrived"]
    assert max(value for _, points in seen.panels[key] for _, value in points) > 1.0


def test_promtool_finds_no_fault_with_what_services_export(seen: Seen) -> None:
    for name, page in seen.pages.items():
        checked = promtool("check", "metrics", text=page)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", ""), name


def told(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def test_promtool_finds_no_fault_with_the_configuration_and_the_rules() -> None:
    checked = promtool("check", "config", "prometheus.yml")
    assert checked.returncode == 0, told(checked)
    tested = promtool("test", "rules", "alerts.test.yml")
    assert tested.returncode == 0, told(tested)
