"""`dopd top`: the cluster live in a terminal, or one frame of it with `--once`.

Consumes the messages that services send anyway (states, windows, forecasts), and the planner's answers to
`DecisionsRequest`; produces frames on stdout until Ctrl-C. It commands nothing.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console
from rich.live import Live

from dopd.bus import Bus
from dopd.bus.common import shown
from dopd.errors import ConfigError, DopdError
from dopd.obs.log import logs_from
from dopd.runtime.clock import RealRuntime, Runtime
from dopd.runtime.main import add_config_argument
from dopd.supervisor.where import broker, connect
from dopd.top.frame import frame
from dopd.top.listen import last_decisions, listen_to_all
from dopd.top.sight import Sight

ASK_EVERY_S = 2.0
FIRST_S = 1.0
"""The first live frame waits so long for a worker and the planner, instead of saying that there is none."""
DECISIONS_ASKED = 50


class NobodyThere(DopdError):
    """The broker answers, but no worker is heard."""


def main(argv: Sequence[str]) -> int:
    """The command: 0 after Ctrl-C or one frame, 1 nobody there, 2 wrong command line."""
    args = _parser().parse_args(argv)
    try:
        with logs_from("error"):
            return asyncio.run(_run(*broker(args.nats, args.config), args))
    except ConfigError as error:
        print(f"dopd top: {error}", file=sys.stderr)
        return 2
    except DopdError as error:
        print(f"dopd top: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dopd top", description="Show the cluster live; Ctrl-C ends it.")
    parser.add_argument("--nats", metavar="URL", help="the broker (default: the one of `dopd up`, or the config's)")
    parser.add_argument("--once", action="store_true", help="print one frame and end; so it does without a terminal")
    parser.add_argument(
        "--listen", type=_seconds, default=1.5, metavar="S",
        help="with --once: listen so long before (1.5); rates come once in a gateway's window_s, 10 s",
    )  # fmt: skip
    parser.add_argument("--every", type=_seconds, default=0.5, metavar="S", help="draw so often (0.5)")
    add_config_argument(parser)
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 3600.0:
        raise argparse.ArgumentTypeError("0.05 to 3600 seconds")
    return value


async def _run(url: str, ca_file: str, args: argparse.Namespace) -> int:
    runtime = RealRuntime()
    bus = await connect(url, ca_file, "dopd-top")
    bus.on_fault(lambda fault: None)  # the frame says when the broker is out of reach
    sight, console = Sight(), Console()
    asking = asyncio.create_task(_ask(bus, sight))
    try:
        await listen_to_all(bus, sight, runtime)
        if args.once or not console.is_terminal:
            await _once(sight, runtime, console, shown(url), args.listen)
        else:
            await _live(bus, sight, runtime, console, shown(url), args.every)
    finally:
        asking.cancel()
        await bus.drain(timeout_s=1.0)
    return 0


async def _ask(bus: Bus, sight: Sight) -> None:
    """The planner's last decisions, every now and then."""
    while True:
        sight.decisions = await last_decisions(bus, DECISIONS_ASKED)
        await asyncio.sleep(ASK_EVERY_S)


async def _once(sight: Sight, runtime: Runtime, console: Console, url: str, listen_s: float) -> None:
    await asyncio.sleep(listen_s)
    sight.forget(runtime.now())
    if not sight.workers:
        raise NobodyThere(f"no worker was heard at {url} in {listen_s:g} s; is the cluster up?")
    console.print(frame(sight, runtime.now(), (console.width, 10_000), url))


async def _live(bus: Bus, sight: Sight, runtime: Runtime, console: Console, url: str, every_s: float) -> None:
    """Draw until Ctrl-C, and at once when the terminal changes its size."""
    with suppress(TimeoutError):
        async with asyncio.timeout(FIRST_S):
            while not sight.workers or sight.decisions is None:  # noqa: ASYNC110 - who fills it in sets no event
                await asyncio.sleep(0.02)
    stop, resized = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _both, stop, resized)
    loop.add_signal_handler(signal.SIGWINCH, resized.set)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while not stop.is_set():
            resized.clear()
            sight.connected = bus.connected
            if sight.connected:  # else silence says nothing
                sight.forget(runtime.now())
            live.update(frame(sight, runtime.now(), (console.width, console.height), url), refresh=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await resized.wait()


def _both(stop: asyncio.Event, wake: asyncio.Event) -> None:
    stop.set()
    wake.set()
