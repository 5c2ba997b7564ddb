"""`dopd up`: start the cluster of this machine, say where it is, watch it until Ctrl-C, stop it.

Consumes `--config`, `--demo`, `--no-load` and the environment; produces the processes of `stack.py`, progress on
stdout, and exit code 0 (stopped as asked), 1 (could not start) or 2 (cannot run so).
"""

import argparse
import asyncio
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from dopd import config as configs
from dopd.bus.nats_bus import NatsBus
from dopd.bus.server import find_nats_server
from dopd.config import Config
from dopd.errors import BusError, ConfigError, DopdError
from dopd.runtime.main import add_config_argument
from dopd.supervisor import load, stack
from dopd.supervisor.console import Console
from dopd.supervisor.http import get
from dopd.supervisor.model import ensure_model
from dopd.supervisor.ready import Cluster
from dopd.supervisor.resolve import resolve
from dopd.supervisor.run import Supervisor, supervise, together
from dopd.supervisor.spec import Probe
from dopd.supervisor.state import StateDir, shown
from dopd_proto.control import RolesReply, RolesRequest
from dopd_proto.subjects import ROLES


def main(argv: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="dopd up", description="Start the cluster of this machine; Ctrl-C ends it.")
    add_config_argument(parser)
    parser.add_argument("--demo", action="store_true", help="emulated GPUs, and a small constant load")
    parser.add_argument("--no-load", action="store_true", help="with --demo: no load")
    args = parser.parse_args(argv)
    try:
        config = configs.load(args.config)
        state = StateDir(Path(config.cluster.state_dir))
        work = partial(_serve, config, state, args.demo, args.demo and not args.no_load)
        return supervise(state, work, afterwards=state.free_shared_memory)
    except DopdError as error:
        print(f"dopd up: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


async def _serve(
    config: Config, state: StateDir, demo: bool, with_load: bool, supervisor: Supervisor, console: Console
) -> None:
    """Start everything in order, then stay: with the demo's load, or idle."""
    own_broker = not config.cluster.nats_url
    config = resolve(config, console, demo)
    if own_broker:
        await supervisor.start(stack.broker(config, state, find_nats_server()))
    config = await ensure_model(config, state, console)
    state.config_file.touch(0o600)  # the broker's address may have a password in it
    state.config_file.write_bytes(configs.dump(config))
    bus = await NatsBus.connect(config.cluster.broker_url, name="supervisor", ca_file=config.cluster.nats_ca_file)
    try:
        cluster = Cluster()
        await cluster.follow(bus)
        await _start_services(config, state, supervisor, cluster, bus)
        await _welcome(config, state, console)
        if with_load:
            await load.run(stack.gateway_url(config), config.workload, cluster, console)
        await asyncio.Event().wait()
    finally:
        with suppress(BusError):
            await bus.drain(timeout_s=1.0)


async def _start_services(
    config: Config, state: StateDir, supervisor: Supervisor, cluster: Cluster, bus: NatsBus
) -> None:
    """The store; then gateway and workers side by side, the workers a few at a time; at last the planner.

    A planner that sees the first workers alone would mend the lack of the other role, at once and in vain.
    """
    await supervisor.start(stack.store(config, state))
    await together(
        supervisor.start(stack.forecaster(state), stack.gateway(config, state)),
        supervisor.start_all(stack.workers(config, state, cluster)),
    )
    await supervisor.start(stack.planner(state, _planner_answers(bus)))


def _planner_answers(bus: NatsBus) -> Probe:
    async def probe() -> bool:
        try:
            await bus.request(ROLES.at(), RolesRequest(action="list"), (RolesReply,), timeout_s=1.0)
        except DopdError:
            return False
        return True

    return probe


async def _welcome(config: Config, state: StateDir, console: Console) -> None:
    """What a person needs next: where it is, and a line to try."""
    url = stack.gateway_url(config)
    dopd = _typed()
    model = await served_model(url)
    body = msgspec.json.encode({"model": model, "prompt": "Once upon a time", "max_tokens": 16}).decode()
    console.line(f"\nReady after {console.elapsed_s:.1f} s: {url}, the OpenAI API", "bold")
    console.line(f"\n  curl {url}/v1/completions -H 'Content-Type: application/json' -d '{body}'\n")
    if page := state.page_url():
        console.line(f"  {page:<28} the cluster in a browser")
    console.line(f"  {dopd} roles                 who does what")
    console.line(f"  {dopd} roles set w1 decode   change it")
    console.line(f"  {shown(state.logs)}/ has what each process writes. Ctrl-C stops everything.\n")


def _typed() -> str:
    """How a person types the command: by its name where that is found."""
    return "dopd" if shutil.which("dopd") else str(shown(Path(sys.executable).with_name("dopd")))


async def served_model(url: str) -> str:
    """The name under which the gateway serves its model."""
    with suppress(msgspec.MsgspecError, LookupError, TypeError):
        return str(msgspec.json.decode((await get(f"{url}/v1/models"))[1])["data"][0]["id"])
    return ""
