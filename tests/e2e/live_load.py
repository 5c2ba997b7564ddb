"""One schedule at a live emulated cluster and at its virtual twin: what came of each, to lay side by side.

Consumes a config and a schedule; produces `Told`, the run and what its planner decided. Live are the processes of
`dopd up --demo`, a real broker and real time; the twin runs the same services with the same config in virtual time.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop
from msgspec import structs

from dopd import config as configs
from dopd.config import Config
from dopd.ledger import Ledger
from dopd.ledger.jetstream import JetStreamLedger
from dopd.ledger.memory import MemoryStore
from dopd.obs.log import logs_from
from dopd.runtime.clock import RealRuntime
from dopd.runtime.virtual import run_virtual
from dopd_loadgen.drive import DriveSettings, drive
from dopd_loadgen.model import Planned, Run
from dopd_loadgen.prompts import token_prompt
from dopd_loadgen.sim import Roles, Simulation, Stage, simulate
from dopd_loadgen.target_nats import PROBE_TOKENS, NatsSettings, NatsTarget
from dopd_planner.history import recall
from dopd_proto.control import DecisionRecord
from dopd_proto.subjects import WORKER_STATE
from tests.e2e.live import live
from tests.e2e.running import Running
from tests.nats_server import server_binary

TIMEOUT_S = 60.0
TOKEN_IDS = (3, 32_000)
ALL = 100_000


@dataclass(frozen=True, slots=True)
class Told:
    """A run, and the planner's decisions that changed roles, the first first."""

    run: Run
    moves: tuple[DecisionRecord, ...]

    @property
    def flips(self) -> int:
        """How often a worker's role changed."""
        return len(self.run.roles) - 1

    @property
    def directions(self) -> set[str]:
        """The roles that workers were given."""
        return {change.role for record in self.moves for change in record.changes}


def later(schedule: Sequence[Planned], by_s: float) -> list[Planned]:
    """The same requests after an idle stretch."""
    return [replace(planned, at_s=planned.at_s + by_s) for planned in schedule]


def run_virtual_twin(config: Config, schedule: Sequence[Planned], seed: int, span_s: float) -> Told:
    """In virtual time. What the cluster has seen before the load is as live: a stretch of the forecaster's bins without
    any but the one request with which the client looks whether it is served. Forecasts after a start hang on that.
    And heartbeats are spread, or planners would see workers in step and as they were half a second ago."""
    beat_s, workers = config.worker.heartbeat_s, sum(config.cluster.sizes)
    before_s = config.forecaster.bin_s - beat_s
    look_in = Planned(len(schedule), before_s / 2, PROBE_TOKENS, 1)
    stores: list[MemoryStore] = []

    async def look(stage: Stage) -> None:
        stores.append(stage.cluster.ledger)

    what = Simulation(
        config, seed, lambda one: token_prompt(one, seed, *TOKEN_IDS), TIMEOUT_S, before_s + span_s, beside=look,
        spread_s=beat_s / workers,
    )  # fmt: skip
    with logs_from("warning"):
        run = simulate([look_in, *later(schedule, before_s)], what)
    run = structs.replace(run, records=run.records[1:], started_unix_s=run.started_unix_s + before_s)
    return Told(run, run_virtual(_moves(stores[0].open())))


def run_live(config: Config, schedule: Sequence[Planned], seed: int, span_s: float, folder: Path) -> Told:
    """On processes of this machine."""
    server_binary()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.json"
    cluster = structs.replace(config.cluster, state_dir=str(folder / "state"))
    gateway = structs.replace(config.gateway, port=0)
    file.write_bytes(configs.dump(structs.replace(config, cluster=cluster, gateway=gateway)))
    command = ["dopd.cli", "up", "--demo", "--no-load", "--config", str(file)]
    with Running(command, folder / "state") as up:
        up.wait_for("Ctrl-C stops everything", 120.0)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(_driven(up, schedule, seed, span_s))
        up.note()
        up.interrupt()
        up.code(60.0)
        assert up.left() == []
    return found


async def _driven(up: Running, schedule: Sequence[Planned], seed: int, span_s: float) -> Told:
    config = configs.load(up.state.config_file, env={})
    url, model, runtime = config.cluster.broker_url, configs.served_name(config.engine), RealRuntime()
    settings = NatsSettings(timeout_s=TIMEOUT_S, timeline=False)
    target = NatsTarget(url, model, lambda one: token_prompt(one, seed, *TOKEN_IDS), settings)
    await target.open()
    async with live(up) as clients:
        first = {worker_id: str(state.role) for worker_id, state in clients.cluster.states.items()}
        await asyncio.sleep(-runtime.now() % config.forecaster.bin_s)  # as the twin, begin with a bin
        roles, started_unix_s = Roles(runtime, first), time.time()
        await clients.bus.subscribe(WORKER_STATE.at(), roles.saw)
        records = await drive(schedule, target, DriveSettings(timeout_s=TIMEOUT_S))
        run = Run(
            label=config.policy.name, api="nats", target=url, model=model, seed=seed, started_unix_s=started_unix_s,
            span_s=span_s, ended_s=runtime.now() - roles.zero_s, slo_ttft_s=config.slo.ttft_s,
            slo_tpot_s=config.slo.tpot_s, records=records, roles=roles.counts,
        )  # fmt: skip
        await clients.idle()
    await target.close()
    return Told(run, await _moves(await JetStreamLedger.open(url, runtime, name="test")))


async def _moves(ledger: Ledger) -> tuple[DecisionRecord, ...]:
    records = (await recall(ledger)).last(ALL)
    await ledger.close()
    return tuple(record for record in records if record.changes)
