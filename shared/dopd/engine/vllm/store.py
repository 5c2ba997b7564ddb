"""The KV store of one machine: an `lmcache server` process, started, watched and stopped.

Consumes `StoreSettings`; produces the server's ports. The transfer is engine driven and through shared memory: on a CPU
the one that is fast and has no race between the end of a prefill and its fetch.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from dopd.engine.vllm import environment
from dopd.engine.vllm.resp import place
from dopd.errors import EngineError
from dopd.runtime.lifeline import die_with

SHARED_MEMORY = Path("/dev/shm")


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ports 0 and an empty name are chosen. `l2` is LMCache's JSON of an adapter behind the memory, say a folder."""

    host: str = "127.0.0.1"
    port: int = 0
    http_port: int = 0
    shm_name: str = ""
    size_gb: float = 1.0
    chunk_tokens: int = 32
    max_workers: int = 2
    l2: str = ""
    log_file: str = ""
    start_timeout_s: float = 60.0


def resolved(settings: StoreSettings) -> StoreSettings:
    """The settings with free ports and a name that no other store on this machine has."""
    port = settings.port or free_port(settings.host)
    return msgspec.structs.replace(
        settings,
        port=port,
        http_port=settings.http_port or free_port(settings.host),
        shm_name=settings.shm_name or f"dopd-{os.getpid()}-{port}",
    )


def lmcache_command(settings: StoreSettings) -> list[str]:
    """The command line of the server for resolved settings."""
    script = Path(sys.executable).with_name("lmcache")
    options = {
        "--host": settings.host,
        "--port": settings.port,
        "--http-host": settings.host,
        "--http-port": settings.http_port,
        "--chunk-size": settings.chunk_tokens,
        "--l1-size-gb": settings.size_gb,
        "--max-workers": settings.max_workers,
        "--eviction-policy": "LRU",
        # The server's default is the transfer with the race.
        "--supported-transfer-mode": "engine_driven",
        "--shm-name": settings.shm_name,
    }
    if settings.l2:
        options["--l2-adapter"] = settings.l2
    words = [word for pair in options.items() for word in map(str, pair)]
    return [str(script), "server", *words, "--no-l1-use-lazy"]


def shared_adapter(url: str) -> str:
    """LMCache's JSON for the store of `redis://HOST:PORT` behind its own, "" for none. Raises ConfigError."""
    if not url:
        return ""
    host, port = place(url)
    client = {"module_path": "dopd.engine.vllm.resp", "class_name": "RespClient"}
    return json.dumps({"type": "native_plugin", **client, "adapter_params": {"host": host, "port": port}})


def free_port(host: str) -> int:
    """A TCP port that nobody has now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


class LmcacheStore:
    """`async with LmcacheStore(settings) as store:` runs a server; it dies with this process, whatever happens."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = resolved(settings)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def segments(self) -> list[Path]:
        """The files of the server's shared memory; LMCache puts its own prefix before the name."""
        return list(SHARED_MEMORY.glob(f"*{self.settings.shm_name}"))

    async def start(self) -> None:
        """Start the server, after a death with the same ports. Raises EngineError when it does not come up."""
        self._free_shared_memory()
        environment.prepare(model="")
        with self._log() as log:
            self._process = await asyncio.create_subprocess_exec(
                *lmcache_command(self.settings),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=partial(die_with, os.getpid()),
                # Ctrl-C is for us: the engines still use the store while they end.
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(self.settings.start_timeout_s):
                while not await self.healthy():
                    if not self.alive:
                        raise EngineError(f"the LMCache server ended with code {self._process.returncode}")
                    await asyncio.sleep(0.1)
        except (TimeoutError, EngineError) as error:
            await self.stop()
            raise EngineError(f"the LMCache server did not start: {error}; {self._hint()}") from error

    async def healthy(self) -> bool:
        """Whether the server answers."""
        with contextlib.suppress(OSError, EOFError, TimeoutError, ValueError):
            return (await self._http("GET", "/healthcheck"))[0] == 200
        return False

    async def clear(self) -> None:
        """Forget all KV in memory."""
        await self._http("POST", "/cache/clear")

    async def status(self) -> str:
        """The server's own report, JSON."""
        return (await self._http("GET", "/status"))[1]

    def kill(self) -> None:
        """SIGKILL, as a crash would (for tests)."""
        if self._process and self.alive:
            self._process.kill()

    async def stop(self) -> None:
        """End the server and give its shared memory back. May be called twice."""
        process, self._process = self._process, None
        if process is not None:
            for end in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, TimeoutError):
                    process.send_signal(end)
                    await asyncio.wait_for(process.wait(), timeout=3.0)
                    break
            await process.wait()
        self._free_shared_memory()

    def _free_shared_memory(self) -> None:
        # A killed server leaves its segment behind, and memory with it.
        with contextlib.suppress(OSError):
            for segment in self.segments:
                segment.unlink(missing_ok=True)

    def _log(self) -> BinaryIO:
        return Path(self.settings.log_file or os.devnull).open("ab")

    def _hint(self) -> str:
        return f"see {self.settings.log_file}" if self.settings.log_file else "set log_file to see why"

    async def _http(self, method: str, path: str) -> tuple[int, str]:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection(self.settings.host, self.settings.http_port)
            try:
                head = f"{method} {path} HTTP/1.0\r\nHost: {self.settings.host}\r\nContent-Length: 0\r\n\r\n"
                writer.write(head.encode())
                answer = (await reader.read()).decode()
            finally:
                writer.close()
        status, _, rest = answer.partition("\r\n")
        return int(status.split()[1]), rest.partition("\r\n\r\n")[2]

    async def __aenter__(self) -> "LmcacheStore":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def available() -> bool:
    """Whether LMCache is installed in this environment."""
    return shutil.which(str(Path(sys.executable).with_name("lmcache"))) is not None
