"""The LMCache connector that outlives its server: lost KV costs a recompute, never the engine.

KV of another host comes by way of a store behind both LMCache servers, which the other one fills after the step: a
request may be here before all of its KV is. It is looked up again for a moment before it is computed anew.

Consumes what vLLM asks of a KV connector, inside EngineCore's process; produces the same as LMCache's own connector,
plus `HEALTH`: whether the store answers, and how much was lost.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from lmcache.integration.vllm.lmcache_mp_connector import LMCacheMPConnector

from dopd.engine.vllm.step_view import FAR_KEY

log = logging.getLogger(__name__)


@dataclass(slots=True)
class StoreHealth:
    """What this process knows of its store. vLLM makes two connectors per process: a scheduler's and a worker's."""

    adapters: list[Any] = field(default_factory=list)
    losses: int = 0
    told: bool = False

    @property
    def ok(self) -> bool:
        ok = all(adapter.is_healthy for adapter in self.adapters)
        self.told = self.told and not ok
        return ok

    def lost(self, what: str, error: Exception) -> None:
        """A failure, usually a time-out. Nobody waits for another one until a heartbeat has been answered again."""
        self.losses += 1
        if not self.told:
            log.warning("kv_store_lost during %s: %r", what, error)
        self.told = True
        for adapter in self.adapters:
            _mark_unhealthy(adapter)


HEALTH = StoreHealth()

FAR_WAIT_S, FAR_AGAIN_S = 0.5, 0.005
"""So long a request waits for KV of another host that is not here yet, and so often it looks."""


@dataclass(slots=True)
class Coming:
    """A request whose KV is on its way: until when to look, and when next."""

    until_s: float
    again_s: float = 0.0


class SafeLMCacheMPConnector(LMCacheMPConnector):
    """LMCache's connector, with time-outs that end where they happen."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._coming: dict[str, Coming] = {}
        if scheduler := getattr(self, "scheduler_adapter", None):
            HEALTH.adapters.append(scheduler)
            # Otherwise it starts with the first look-up, and an idle engine never notices a dead store.
            scheduler._ensure_heartbeat_started()
        if worker := getattr(self, "worker_adapter", None):
            HEALTH.adapters.append(worker)

    def wait_for_save(self) -> None:
        """Store what this step computed. The stock connector lets a time-out end the engine here."""
        try:
            super().wait_for_save()
        except Exception as error:
            HEALTH.lost("store", error)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Fetch KV. What does not come is reported to vLLM as missing blocks, which it computes anew."""
        try:
            super().start_load_kv(forward_context, **kwargs)
        except Exception as error:
            HEALTH.lost("fetch", error)
            self._give_up_fetches()

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Look up. A time-out is a miss."""
        coming, now_s = self._coming.get(request.request_id), time.monotonic()
        if coming is not None and now_s < coming.again_s:
            return None, True
        healthy = HEALTH.ok
        try:
            found: tuple[int | None, bool] = super().get_num_new_matched_tokens(request, num_computed_tokens)
        except Exception as error:
            HEALTH.lost("look-up", error)
            return 0, False
        if healthy and not HEALTH.ok:
            HEALTH.lost("look-up", TimeoutError("no answer"))
        if found[0] is None or not HEALTH.ok:
            return found
        if not self._lacks(request, num_computed_tokens + found[0]):
            self._coming.pop(request.request_id, None)
            return found
        coming = self._coming.setdefault(request.request_id, Coming(now_s + FAR_WAIT_S))
        if now_s >= coming.until_s:
            return found
        coming.again_s = now_s + FAR_AGAIN_S
        self._forget_look_up(request)
        return None, True

    def request_finished(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Nobody waits for it any more."""
        self._coming.pop(request.request_id, None)
        return super().request_finished(request, *args, **kwargs)

    def _lacks(self, request: Any, found: int) -> bool:
        """Whether less was found than another host has computed."""
        extra = request.sampling_params.extra_args if request.sampling_params is not None else None
        chunk = self.scheduler_adapter.lmcache_tokens_per_chunk
        coming: int = min((extra or {}).get(FAR_KEY, 0) // chunk * chunk, request.num_tokens - 1)
        return found < coming

    def _forget_look_up(self, request: Any) -> None:
        """What was found is given free, so that it can be looked up once more."""
        tracker = self._get_request_tracker(request.request_id)
        if tracker.num_lmcache_hit_tokens:
            self.scheduler_adapter.free_lookup_locks(
                tracker.get_token_ids(), 0, tracker.num_lmcache_hit_tokens, request.request_id,
                tracker.cache_salt, tracker.request_configs,
            )  # fmt: skip
        tracker.num_stored_tokens = tracker.num_lmcache_hit_tokens = tracker.num_vllm_hit_tokens = 0
        self.scheduler_adapter.cleanup_lookup_result(request.request_id)

    def _give_up_fetches(self) -> None:
        worker = self.worker_adapter
        for meta in self._get_connector_metadata().requests:
            if meta.direction == "RETRIEVE" and meta.request_id not in worker.retrieve_futures:
                worker.error_block_ids.update(meta.op.flat_block_ids)
                worker._failed_request_ids.add(meta.request_id)
                worker._dropped_retrieves.add(meta.request_id)


def _mark_unhealthy(adapter: Any) -> None:
    # The heartbeat sets these again, and registers the KV pool anew where the server has restarted.
    events = getattr(adapter, "_health_events", None)
    for event in events.values() if events is not None else (adapter._health_event,):
        event.clear()
