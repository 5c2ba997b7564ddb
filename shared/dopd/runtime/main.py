"""The process entry of every service: arguments, config, log, event loop, signals, bus, exit code.

Consumes the command line (`--config`, and what a service adds), the environment, and the service's coroutine; produces
a process that runs it until SIGTERM or SIGINT, drains the bus, and exits 0 (asked to stop), 1 (crashed) or 2 (cannot be
started so). A service's `__main__` is

    async def serve(ctx: ServiceContext) -> None:
        ...start things that use ctx.bus...
        await ctx.stop.wait()
        ...end them; the bus is drained afterwards...

    if __name__ == "__main__":
        run_service("forecaster", serve)
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import uvloop

from dopd import config as configs
from dopd.bus import Bus
from dopd.bus.common import shown
from dopd.config import Config
from dopd.errors import ConfigError, DopdError
from dopd.obs.log import get_logger, set_up
from dopd.obs.operator_http import OperatorHttp, Page
from dopd.obs.telemetry import Tracing
from dopd.runtime.clock import RealRuntime
from dopd.runtime.lifeline import hold_to_parent, watch_parent
from dopd.runtime.readiness import Readiness

if TYPE_CHECKING:
    from dopd.obs.metrics import Metrics

CONFIG_VARIABLE = "DOPD_CONFIG"
READY_VARIABLE = "DOPD_READY_FILE"
OPERATOR_VARIABLE = "DOPD_OPERATOR_FILE"
TRACING_STOP_S = 2.0
"""How long the last spans may take on their way to the collector."""


@dataclass(frozen=True)
class ServiceContext:
    """What a service is given. It ends soon after `stop` is set; returning earlier ends the process, too.

    `metrics` has the bus and the process already, and is on the operator port. `tracing` is None while it is off.
    `readiness` is to be told when the service does its work, and by what it can be seen. `operator` is the port
    for operators, which takes further pages.
    """

    name: str
    args: argparse.Namespace
    config: Config
    runtime: RealRuntime
    bus: Bus
    stop: asyncio.Event
    metrics: "Metrics"
    tracing: Tracing | None
    readiness: Readiness
    operator: OperatorHttp


Main = Callable[[ServiceContext], Awaitable[None]]


def run_service(
    name: str,
    main: Main,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Run a service to its end and leave the process. `name` also names the bus connection and the log lines.

    With an argument `worker_id` the process is called by it.
    """
    hold_to_parent()
    args = _parse(name, add_arguments, argv)
    try:
        config = configs.load(args.config)
    except ConfigError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    called = getattr(args, "worker_id", "") or name
    set_up(called, config.log.level, config.log.format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(_guarded(called, main, args, config))
    raise SystemExit(code)


def _parse(
    name: str, add_arguments: Callable[[argparse.ArgumentParser], None] | None, argv: Sequence[str] | None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"dopd {name}")
    add_config_argument(parser)
    parser.set_defaults(service=name)
    if add_arguments is not None:
        add_arguments(parser)
    return parser.parse_args(argv)


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """`--config FILE`, with DOPD_CONFIG as its default: the same for every process."""
    named = os.environ.get(CONFIG_VARIABLE)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=Path(named) if named else None,
        help=f"TOML file (default: ${CONFIG_VARIABLE}, else built-in values); DOPD__SECTION__KEY=… overrides a key",
    )


def host_name() -> str:
    """This host's own name, without its domain: of a container it is unique, and stays over restarts."""
    return socket.gethostname().partition(".")[0]


def stop_on_signals(stop: asyncio.Event) -> None:
    """SIGTERM or SIGINT sets `stop`; a second one ends the process at once."""

    def ask(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask, number)


async def _guarded(name: str, main: Main, args: argparse.Namespace, config: Config) -> int:
    """Run and turn an error into one log line and an exit code."""
    log = get_logger()
    stop = asyncio.Event()
    stop_on_signals(stop)
    asyncio.get_running_loop().set_exception_handler(_report_task)
    parent = asyncio.create_task(watch_parent())
    try:
        await _connected(name, main, args, config, stop)
    except DopdError as error:
        log.error("service_failed", error=type(error).__name__, detail=str(error))
        return 2 if isinstance(error, ConfigError) else 1
    except Exception:
        log.error("service_crashed", exc_info=True)
        return 1
    finally:
        parent.cancel()
    log.info("service_stopped")
    return 0


async def _connected(name: str, main: Main, args: argparse.Namespace, config: Config, stop: asyncio.Event) -> None:
    """Connect the bus, run, drain. A stop during the connection attempt ends it."""
    from dopd.bus.nats_bus import NatsBus  # the only client of the real bus; keeps this module importable without nats

    cluster = config.cluster
    connecting = asyncio.ensure_future(NatsBus.connect(cluster.broker_url, name=name, ca_file=cluster.nats_ca_file))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not connecting.done():
        connecting.cancel()
        return
    bus = connecting.result()
    try:
        await _watched(name, main, args, config, stop, bus)
    finally:
        await bus.drain()


async def _watched(
    name: str, main: Main, args: argparse.Namespace, config: Config, stop: asyncio.Event, bus: Bus
) -> None:
    """Run, with the operator port open and the last spans sent at the end."""
    from dopd.obs.metrics import CONTENT_TYPE, Metrics, bus_source  # a moment to import; the commands do without

    runtime = RealRuntime(config.engine.seed)
    metrics = Metrics(name)
    metrics.add(bus_source(bus))
    tracing = Tracing.from_environment(args.service, getattr(args, "gateway_id", name), runtime.now)
    readiness = Readiness(bus)
    pages: dict[str, Page] = {
        "/metrics": (CONTENT_TYPE, metrics.page),
        "/health": ("text/plain", lambda: b"ok\n"),
        "/ready": ("text/plain", readiness.page),
    }
    operator = OperatorHttp(pages, config.observability.operator_host, config.observability.operator_port)
    url = await operator.start()
    try:
        _announce(config, url)
        await main(ServiceContext(name, args, config, runtime, bus, stop, metrics, tracing, readiness, operator))
    finally:
        await operator.stop()
        if tracing is not None:
            await tracing.stop(TRACING_STOP_S)


def _announce(config: Config, operator_url: str) -> None:
    """Say that we are connected: to the log, and to the supervisor, which also wants the operator port."""
    nats_url = shown(config.cluster.broker_url)
    get_logger().info("service_started", pid=os.getpid(), nats_url=nats_url, operator_url=operator_url)
    if file := os.environ.get(OPERATOR_VARIABLE):
        Path(file).write_text(operator_url)
    if ready := os.environ.get(READY_VARIABLE):
        Path(ready).touch()


def _report_task(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    get_logger().error("task_failed", detail=context.get("message", ""), exc_info=context.get("exception"))
