"""One child process: started, watched until ready, restarted when it ends unasked, stopped within a limit.

Consumes a `Spec`; produces a `Child`. Each child is cut off from the terminal, so that Ctrl-C reaches the supervisor
alone, and leads a process group, so that its own children can be ended with it.
"""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, STDOUT, Process
from contextlib import suppress
from functools import partial
from pathlib import Path

from dopd.config import ENV_PREFIX
from dopd.runtime.clock import OFFSET_VARIABLE, offset_s
from dopd.runtime.lifeline import PARENT_VARIABLE, die_with
from dopd.supervisor.console import Console
from dopd.supervisor.guarding import Guard
from dopd.supervisor.spec import CANNOT_START, STARTS_TRIED, STEADY_S, Spec, StartFailed, backoff_s, ended_how
from dopd.supervisor.state import StateDir, shown
from dopd.supervisor.tail import tail

POLL_S, KILLED_S = 0.05, 2.0
CLOCK_OFFSET = repr(offset_s())
STARTING_GRACE_S = 1.0  # what is still starting has no work in hand


class Child:
    """A process that is kept running until `stop`."""

    def __init__(self, spec: Spec, state: StateDir, console: Console, watcher: Guard) -> None:
        self.spec, self.pid, self.starts = spec, 0, 0
        self._state, self._console, self._guard = state, console, watcher
        self._process: Process | None = None
        self._stop = asyncio.Event()
        self._was_ready = False
        self._log_begin = 0
        self._announcing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Of several that fail together only one is awaited to its end.
        self._first_ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())

    async def start(self) -> None:
        """Start, and wait until it is ready for the first time. Raises StartFailed with the end of its log."""
        self._task = asyncio.create_task(self._keep_running(), name=self.spec.name)
        try:
            await asyncio.wait_for(asyncio.shield(self._first_ready), self.spec.ready_timeout_s)
        except TimeoutError:
            self._first_ready.cancel()
            raise self._failed(f"is not ready after {self.spec.ready_timeout_s:.0f} s") from None

    @property
    def getting_ready(self) -> bool:
        """Whether it was started and has not yet said that it is ready."""
        return self._announcing is not None and not self._announcing.done()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after the grace time. Returns when the process and its group are gone."""
        self._stop.set()
        if self._task is None:
            return
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            grace_s = self.spec.grace_s if self._was_ready else min(STARTING_GRACE_S, self.spec.grace_s)
            await asyncio.wait({self._task}, timeout=grace_s)
            if not self._task.done():
                if self._was_ready:
                    self._console.event(self.spec.name, f"did not stop in {grace_s:.0f} s: killed", "bad")
                self.kill()
                await asyncio.wait({self._task}, timeout=KILLED_S)
        self._task.cancel()
        await asyncio.wait({self._task})

    def kill(self) -> None:
        """SIGKILL to the process and all that it started."""
        self._stop.set()
        if self.pid:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def _keep_running(self) -> None:
        loop = asyncio.get_running_loop()
        crashes = 0
        while not self._stop.is_set():
            began_s = loop.time()
            code = await self._run_once()
            if self._stop.is_set():
                return
            crashes = 1 if loop.time() - began_s > STEADY_S else crashes + 1
            if not self._was_ready and (code == CANNOT_START or crashes >= STARTS_TRIED):
                if not self._first_ready.done():
                    self._first_ready.set_exception(self._failed(f"does not start (exit code {code})"))
                return
            delay_s = backoff_s(crashes)
            self._console.event(
                self.spec.name, f"{ended_how(code)}; starts again in {delay_s:.1f} s ({self._log})", "bad"
            )
            await asyncio.sleep(delay_s)

    async def _run_once(self) -> int:
        """Start the process, announce its readiness, wait for its end."""
        self.spec.before()
        try:
            self._process = await self._spawn()
        except OSError as error:  # no such program, no more processes
            with self._state.log_file(self.spec.name).open("a") as log:
                log.write(f"{self.spec.argv[0]}: {error.strerror}\n")
            return CANNOT_START
        self.pid, self.starts = self._process.pid, self.starts + 1
        self._guard.watch(self.pid)
        self._state.write_pid(self.spec.name, self.pid)
        announcing = self._announcing = asyncio.create_task(self._announce())
        try:
            return await self._process.wait()
        finally:
            announcing.cancel()
            await self._bury()

    async def _spawn(self) -> Process:
        # The overrides are in the resolved config already; there, what was left open has been filled in.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
        env = {**inherited, **self.spec.env, PARENT_VARIABLE: str(os.getpid()), OFFSET_VARIABLE: CLOCK_OFFSET}
        with self._state.log_file(self.spec.name).open("ab") as log:
            self._log_begin = log.tell()
            return await asyncio.create_subprocess_exec(
                *self.spec.argv,
                stdin=DEVNULL,
                stdout=log,
                stderr=STDOUT,
                env=env,
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid()),  # takes no lock between fork and exec
            )

    async def _announce(self) -> None:
        began_s = self._console.elapsed_s
        while not await self.spec.ready():  # noqa: ASYNC110 - the other side is a process, it sets no event here
            await asyncio.sleep(POLL_S)
        took_s = self._console.elapsed_s - began_s
        again = "ready again" if self._was_ready else "ready"
        self._console.event(self.spec.name, f"{again} in {took_s:.1f} s  {self.spec.detail}".rstrip(), "good")
        self._was_ready = True
        if not self._first_ready.done():
            self._first_ready.set_result(None)

    async def _bury(self) -> None:
        """After its end: whatever it started and left goes, too, and is waited for."""
        with suppress(ProcessLookupError, PermissionError):
            for _ in range(int(KILLED_S / POLL_S)):
                os.killpg(self.pid, signal.SIGKILL)
                await asyncio.sleep(POLL_S)
        self._guard.forget(self.pid)
        self._state.remove_pid(self.spec.name)
        self.pid = 0

    @property
    def _log(self) -> Path:
        return shown(self._state.logs / f"{self.spec.name}.log")

    def _failed(self, what: str) -> StartFailed:
        lines = [f"  | {line}" for line in tail(self._log, self._log_begin)]
        return StartFailed("\n".join([f"{self.spec.name} {what}. The end of {self._log}:", *lines]))
