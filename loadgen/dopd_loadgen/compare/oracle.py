"""`oracle-ratio`: the ratio that somebody would choose who knows what comes, window by window. Flips are free.

Consumes a contender, a setting, a schedule; produces a `Run`. Every static split is simulated whole first. Then, at the
start of each window, a child process is forked for each ratio: the virtual loop touches no file and no thread, so a
fork is an exact copy of the cluster and of its future. The child takes the ratio, goes on for a horizon on the true
arrivals, and reports how many requests missed their targets by then; the parent goes on with the best.

That is done with a horizon of one window, which follows the load closest, and with one of two, which sees what a ratio
leaves behind for the next. The best of these runs and the static ones is the result, so it is never worse than any
static split. What it is not: the best plan there is, which would need every sequence of ratios.
"""

import asyncio
import os
import select
import signal
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import msgspec

from dopd.errors import ConfigError, LoadError
from dopd.perf.profile import named
from dopd_loadgen.compare import ground, ratio
from dopd_loadgen.compare.model import Contender, Setting
from dopd_loadgen.compare.tally import Enough, Tally
from dopd_loadgen.model import Planned, Run
from dopd_loadgen.sim import Simulation, Stage, simulate

LOOK_DEADLINE_S = 900.0
"""Real time that one child may take."""
FLUSH_S, ORPHAN_S = 0.01, 5.0


@dataclass(frozen=True, slots=True)
class Look:
    """How far the oracle looks: at the start of each window, and for how long it tries each ratio, in seconds.

    `horizon_s` 0 stands for two runs, of one and of two windows. `dopd` 1 moves the ratio under dopd's scheduling, so
    that what is left between the two is the planner's; 0 under that of the static splits.
    """

    window_s: float = 60.0
    horizon_s: float = 0.0
    dopd: float = 0.0

    @classmethod
    def of(cls, params: Mapping[str, float]) -> "Look":
        """From the name's parameters. Raises ConfigError."""
        known = cls.__dataclass_fields__.keys()
        if unknown := params.keys() - known:
            raise ConfigError("--policies", "oracle-ratio", f"does not know {', '.join(unknown)}; {', '.join(known)}")
        look = cls(**params)
        if not 0 < look.window_s <= min(look.horizons_s):
            raise ConfigError("--policies", "oracle-ratio", "window_s must be above 0, and horizon_s no shorter")
        return look

    @property
    def horizons_s(self) -> tuple[float, ...]:
        """One run is made with each."""
        return (self.horizon_s,) if self.horizon_s else (self.window_s, 2 * self.window_s)

    @property
    def note(self) -> str:
        """In words."""
        horizons = " or ".join(f"{horizon_s:g}" for horizon_s in self.horizons_s)
        under = ", under dopd's scheduling" if self.dopd else ""
        return f"every {self.window_s:g} s the ratio with the fewest misses over the next {horizons} s{under}"


class Outlook(msgspec.Struct, frozen=True, order=True):
    """What a ratio came to: misses, and requests still open, which decide between ratios of equal misses."""

    missed: int
    open: int


def run(
    contender: Contender, setting: Setting, schedule: Sequence[Planned], seed: int, span_s: float, look: Look
) -> Run:
    """The run. Raises LoadError when threads are about, which do not survive a fork, or a child comes to nothing."""
    if threading.active_count() > 1:
        raise LoadError(contender.name, "forks, and there are other threads; run it in a process of its own")
    split, fewest, best = _best_static(contender, setting, schedule, seed, span_s)
    start = ground.simulation(_with_split(contender, split), setting, seed, span_s)
    for horizon_s in look.horizons_s:
        if not fewest:
            break
        tally = ground.tally_of(setting, span_s, fewest - 1)
        watcher = _Watcher(setting.workers, look.window_s, horizon_s, span_s, tally)
        moved = _moved(watcher, schedule, replace(start, watch=tally, beside=watcher.decide))
        if moved is not None:
            fewest, best = tally.missed, ground.measured(moved, setting)
    return msgspec.structs.replace(best, label=contender.name)


def _moved(watcher: "_Watcher", schedule: Sequence[Planned], what: Simulation) -> Run | None:
    """The run with the ratios of the watcher; None when it is no better than the best known."""
    try:
        made = simulate(schedule, what)
        watcher.report_as_child()
        return made
    except Enough:
        return None
    finally:
        watcher.end_as_child()


def _best_static(
    contender: Contender, setting: Setting, schedule: Sequence[Planned], seed: int, span_s: float
) -> tuple[tuple[int, int], int, Run]:
    """The split with the fewest misses, how many, and its run. The likeliest first: the others end at its misses."""
    profile = named(setting.config.engine.profile)
    best: tuple[tuple[int, int], int, Run] | None = None
    for split in ratio.likeliest_first(setting.workers, ratio.prefill_share(profile, schedule)):
        what = ground.simulation(_with_split(contender, split), setting, seed, span_s)
        tried = ground.attempt(what, schedule, setting, float("inf") if best is None else best[1] - 1)
        if tried is not None:
            best = split, *tried
        if best is not None and not best[1]:
            break
    assert best is not None, "the first is never cut short"
    return best


def _with_split(contender: Contender, split: tuple[int, int]) -> Contender:
    kind = contender.policy.name.partition("-")[0]
    policy = replace(contender.policy, name=f"{kind}-{split[0]}p{split[1]}d", split=split)
    return replace(contender, policy=policy, prefill=split[0], decode=split[1])


class _Watcher:
    """Decides beside the load. In a child it plays one ratio, reports, and ends the process."""

    def __init__(self, workers: int, window_s: float, horizon_s: float, span_s: float, tally: Tally) -> None:
        self._workers, self._span_s, self._tally = workers, span_s, tally
        self._window_s, self._horizon_s = window_s, horizon_s
        self._parent = os.getpid()
        self._answer = -1

    # --- in the parent ------------------------------------------------------------------------------------------

    async def decide(self, stage: Stage) -> None:
        """At the start of each window."""
        bus = stage.cluster.broker.connect("oracle")
        start_s = 0.0
        while start_s < self._span_s:
            await _until(stage, start_s)
            present = ratio.of(stage.cluster)
            chosen = present
            best = await self._tried(stage, bus, present, None)
            assert best is not None, "nothing cuts the present ratio short"
            for split in ratio.nearest_first(self._workers, present):
                if best.missed <= self._tally.missed:
                    break  # nobody else will miss anything: no ratio can do better
                outlook = await self._tried(stage, bus, split, best)
                if outlook is not None and outlook < best:
                    chosen, best = split, outlook
            ratio.take(stage.cluster, bus, chosen)
            start_s += self._window_s

    async def _tried(self, stage: Stage, bus: Any, split: tuple[int, int], best: Outlook | None) -> Outlook | None:
        """What the ratio comes to; None when it has more misses than the best."""
        reader, writer = os.pipe()
        loop = asyncio.get_running_loop()
        pid = os.fork()
        if pid == 0:
            asyncio._set_running_loop(loop)  # asyncio asks by process whose loop it is
            os.close(reader)
            await self._play(stage, bus, split, best, writer)
        os.close(writer)
        try:
            return _heard(reader, split)
        finally:
            os.close(reader)
            _ended(pid)

    # --- in a child ---------------------------------------------------------------------------------------------

    async def _play(
        self, stage: Stage, bus: Any, split: tuple[int, int], best: Outlook | None, writer: int
    ) -> NoReturn:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self._answer = writer
        self._tally.limit = float("inf") if best is None else best.missed
        self._tally.enough = lambda missed: self._report(None)
        now_s = stage.cluster.runtime.now()
        ratio.take(stage.cluster, bus, split)
        end_s = now_s + self._horizon_s
        while (left_s := end_s - stage.cluster.runtime.now()) > 0:
            await asyncio.sleep(min(ORPHAN_S, left_s))
            if os.getppid() != self._parent:
                os._exit(1)
        for engine in stage.cluster.engines.values():
            engine.kill()  # it tells of every token that it has made: this copy of the cluster ends here anyway
        await asyncio.sleep(FLUSH_S)
        self._report(Outlook(*self._tally.outlook(end_s - stage.zero_s)))

    def _report(self, outlook: Outlook | None) -> NoReturn:
        os.write(self._answer, msgspec.json.encode({"outlook": outlook}))
        os._exit(0)

    def report_as_child(self) -> None:
        """The load ended before the horizon."""
        if os.getpid() != self._parent:
            self._report(Outlook(self._tally.missed, 0))

    def end_as_child(self) -> None:
        """Nothing of a child may go back to who called the parent."""
        if os.getpid() != self._parent:
            os.write(self._answer, msgspec.json.encode({"error": traceback.format_exc()[-4000:]}))
            os._exit(1)


def _heard(reader: int, split: tuple[int, int]) -> Outlook | None:
    """The child's report. Raises LoadError when it has none in time."""
    ready, _, _ = select.select([reader], [], [], LOOK_DEADLINE_S)
    said = os.read(reader, 65_536) if ready else b""
    if not said:
        raise LoadError("oracle-ratio", f"trying {split} came to {'nothing' if ready else 'no end in time'}")
    report = msgspec.json.decode(said)
    if "error" in report:
        raise LoadError("oracle-ratio", f"trying {split} failed: {report['error']}")
    return None if report["outlook"] is None else msgspec.convert(report["outlook"], Outlook)


def _ended(pid: int) -> None:
    """No zombie, and no child that goes on after its parent has given up. A Ctrl-C that it got was meant for all."""
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGINT:
        raise KeyboardInterrupt


async def _until(stage: Stage, at_s: float) -> None:
    left_s = stage.zero_s + at_s - stage.cluster.runtime.now()
    if left_s > 0:
        await asyncio.sleep(left_s)
