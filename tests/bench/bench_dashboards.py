"""A bursty load on an emulated cluster under the eyes of a real Prometheus, as pictures of the dashboards' data.

Run: `make bench BENCH=dashboards`; DASHBOARD_SECONDS=600 says how long, DASHBOARD_FOLDER=docs/dashboards where the
pictures go, else a temporary folder. Prompts and answers take turns, each in bursts; two thirds through a worker is
frozen for 20 s, later the KV store. Where LMCache is installed, its own bench drives a real LMCache server beside it.
Tells which queries had nothing to show.
"""

import asyncio
import os
import random
from functools import partial
from pathlib import Path

import pytest

from dopd import config as configs
from dopd_loadgen.drive import DriveSettings, drive
from dopd_loadgen.model import Planned
from dopd_loadgen.prompts import token_prompt
from dopd_loadgen.target_nats import NatsSettings, NatsTarget
from tests import prometheus_rig
from tests.dashboard_pictures import draw
from tests.e2e.live import Live, demo, live
from tests.integration.test_dashboards import JOBS, driven, lmcache
from tests.prometheus_rig import DASHBOARDS, Prometheus

SECONDS = float(os.environ.get("DASHBOARD_SECONDS", "600"))
FOLDER = os.environ.get("DASHBOARD_FOLDER", "")
PART_S, BURST_S, FROZEN_S, TOKEN_IDS = 75.0, 15.0, 20.0, (3, 32_000)
PARTS = ((7.0, 1100, 16), (9.0, 120, 110))
"""Requests per second, mean input and output tokens: for three prefill workers of four, then for three decode workers.
Every other burst has half as many again."""
MOST_ISL = 1800
SETTINGS = {
    "policy__name": "dopd", "gateway__window_s": 5.0, "forecaster__bin_s": 5.0,
    "forecaster__horizons_s": "[10.0, 60.0]", "slo__tpot_s": 0.1, "engine__profile": "a100-opt-66b-tp4",
}  # fmt: skip
HORIZON, INTERVAL, STEP_S = "10", "20s", 5.0


def bursty(seconds: float) -> list[Planned]:
    """The load, always the same."""
    rng, planned, at_s = random.Random("dashboards"), list[Planned](), 0.0
    while at_s < seconds:
        rate, isl, osl = PARTS[int(at_s / PART_S) % len(PARTS)]
        more = 1.5 if int(at_s / BURST_S) % 2 else 0.75
        at_s += rng.expovariate(rate * more)
        lengths = (min(MOST_ISL, max(2, int(mean * rng.lognormvariate(-0.12, 0.5)))) for mean in (isl, osl))
        planned.append(Planned(len(planned), at_s, *lengths))
    return planned


async def loaded(clients: Live) -> None:
    config = configs.load(clients.up.state.config_file, env={})
    prompt = partial(token_prompt, seed=0, low=TOKEN_IDS[0], high=TOKEN_IDS[1])
    target = NatsTarget(
        config.cluster.broker_url, configs.served_name(config.engine), prompt, NatsSettings(timeout_s=60.0)
    )
    await target.open()
    async with asyncio.TaskGroup() as group:
        group.create_task(broken(clients))
        await drive(bursty(SECONDS), target, DriveSettings(timeout_s=60.0))
    await target.close()


async def broken(clients: Live) -> None:
    """What goes wrong: a worker is frozen, later the KV store. Killed ones would come back at other addresses."""
    for name, wait_s in (("w4", 0.65 * SECONDS), ("store", 0.15 * SECONDS)):
        await asyncio.sleep(wait_s)
        pid = clients.freeze(name)
        await asyncio.sleep(FROZEN_S)
        clients.thaw(pid)


async def seen(folder: Path, to: Path) -> list[str]:
    """The panels without data."""
    targets: dict[str, list[str]] = {}
    with demo(folder / "cluster", **SETTINGS) as up:
        async with lmcache(folder) as store:
            await asyncio.to_thread(up.wait_for, "Ctrl-C stops everything", 120.0)
            for name, job in JOBS.items():
                targets.setdefault(job, []).append(up.state.operator_url(name).removeprefix("http://"))
            if store is not None:
                targets["lmcache"] = [f"{store.settings.host}:{store.settings.http_port}"]
            with Prometheus(folder, targets, every="5s") as prometheus:
                async with live(up) as clients:
                    await clients.until_planner(workers=4)
                    await clients.until(prometheus.sees_all, 60.0, "every target was read")
                    driving = asyncio.create_task(driven(store, int(SECONDS / 5), 2.5)) if store is not None else None
                    await loaded(clients)
                    if driving is not None:
                        await driving
                return await asyncio.to_thread(drawn, prometheus, to)


def drawn(prometheus: Prometheus, to: Path) -> list[str]:
    empty = []
    for file in DASHBOARDS:
        draw(file, prometheus, to / f"{file.stem}.png", INTERVAL, HORIZON, STEP_S)
        for one in prometheus_rig.asked(file):
            if not prometheus_rig.finite(prometheus.over(one.filled(INTERVAL, HORIZON), STEP_S)):
                empty.append(one.key)
    return empty


@pytest.mark.nats
def test_pictures_of_the_dashboards_data(tmp_path: Path) -> None:
    to = Path(FOLDER) if FOLDER else tmp_path
    empty = asyncio.run(seen(tmp_path, to))
    for file in sorted(to.glob("dopd-*.png")):
        print(f"{file}  {file.stat().st_size / 1000:.0f} kB")
    print(f"nothing to show: {', '.join(empty) or '-'}")
