"""EngineCore as a child process, and the line to it.

Consumes `VllmSettings` and vLLM requests; produces vLLM's messages, one per engine step. This is the layer under vLLM's
`AsyncLLM`: token ids in, token ids out, all outputs of a step in one message. No tokenizer, no task per request, and
the origin of cached tokens comes with the first output.
"""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from vllm.config import KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core_client import AsyncMPClient, EngineCoreClient
from vllm.v1.executor import Executor

from dopd.engine.vllm.settings import VllmSettings

STOP_TIMEOUT_S = 5.0


class Core:
    """One EngineCore. `start`, any number of requests, `stop`."""

    def __init__(self, settings: VllmSettings) -> None:
        self._settings = settings
        self._client: AsyncMPClient | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    async def start(self) -> VllmConfig:
        """Load the model in a child process, off the loop. Raises whatever vLLM raises."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[AsyncMPClient] = loop.create_future()

        def live() -> None:
            # In the kernel's eyes this thread is the child's parent: it has to live as long as the child.
            try:
                client = _client(self._settings)
            except BaseException as error:
                _tell(loop, ready, error)
                return
            _tell(loop, ready, client)
            self._stopping.wait()
            client.shutdown(timeout=STOP_TIMEOUT_S)

        self._thread = threading.Thread(target=live, name="engine-core-keeper", daemon=True)
        self._thread.start()
        try:
            self._client = client = await asyncio.wait_for(ready, self._settings.start_timeout_s)
        except BaseException:
            self._stopping.set()
            raise
        return client.vllm_config

    @property
    def pids(self) -> list[int]:
        """The processes of the engine."""
        manager = self._client.resources.engine_manager if self._client else None
        return [process.pid for process in manager.processes if process.is_alive()] if manager else []

    async def next_step(self) -> EngineCoreOutputs:
        """What the next step made. Raises EngineDeadError when the child is gone."""
        assert self._client is not None
        return await self._client.get_output_async()

    async def add(self, request: EngineCoreRequest) -> None:
        assert self._client is not None
        await self._client.add_request_async(request)

    async def abort(self, request_ids: Sequence[str]) -> None:
        assert self._client is not None
        await self._client.abort_requests_async(list(request_ids))

    async def call(self, method: str, *args: object) -> Any:
        """A method of EngineCore, such as those that `scheduler.py` adds."""
        assert self._client is not None
        return await self._client.call_utility_async(method, *args)

    async def stop(self) -> None:
        """End the child. Returns when it is gone."""
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)


def _tell(loop: asyncio.AbstractEventLoop, ready: "asyncio.Future[AsyncMPClient]", outcome: Any) -> None:
    def settle() -> None:
        if ready.done():
            return
        if isinstance(outcome, BaseException):
            ready.set_exception(outcome)
        else:
            ready.set_result(outcome)

    loop.call_soon_threadsafe(settle)


def _client(settings: VllmSettings) -> AsyncMPClient:
    config = _engine_args(settings).create_engine_config(UsageContext.ENGINE_CONTEXT)
    return EngineCoreClient.make_async_mp_client(config, Executor.get_class(config), log_stats=True)


def _engine_args(settings: VllmSettings) -> AsyncEngineArgs:
    chosen = {
        "max_model_len": settings.max_model_len,
        "kv_cache_memory_bytes": settings.kv_cache_memory_bytes,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
    }
    return AsyncEngineArgs(
        model=settings.model,
        dtype=settings.dtype,
        seed=settings.seed,
        tensor_parallel_size=settings.tensor_parallel_size,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        block_size=settings.block_size,
        enforce_eager=settings.enforce_eager,
        enable_prefix_caching=True,
        # EngineCore needs the tokenizer for grammars alone.
        skip_tokenizer_init=not settings.grammars,
        scheduling_policy="priority",
        scheduler_cls="dopd.engine.vllm.scheduler.PolicyScheduler",
        worker_extension_cls="dopd.engine.vllm.resume.WorkerExtension",
        kv_transfer_config=_link(settings),
        **{key: value for key, value in chosen.items() if value is not None},
    )


def _link(settings: VllmSettings) -> KVTransferConfig | None:
    if not settings.lmcache_port:
        return None
    return KVTransferConfig(
        kv_connector="SafeLMCacheMPConnector",
        kv_connector_module_path="dopd.engine.vllm.connector",
        # Any worker may prefill or decode: a role is routing only.
        kv_role="kv_both",
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={
            "lmcache.mp.host": f"tcp://{settings.lmcache_host}",
            "lmcache.mp.port": settings.lmcache_port,
            "lmcache.mp.mq_timeout": settings.mq_timeout_s,
            "lmcache.mp.heartbeat_interval": settings.heartbeat_s,
            "lmcache.mp.save_decode_cache": settings.save_decode_cache,
            "lmcache.mp.mp_transfer_mode": "engine_driven",
        },
    )
