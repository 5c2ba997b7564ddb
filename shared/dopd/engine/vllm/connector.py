"""The LMCache connector that outlives its server: lost KV costs a recompute, never the engine.

Consumes what vLLM asks of a KV connector, inside EngineCore's process; produces the same as LMCache's own connector,
plus `HEALTH`: whether the store answers, and how much was lost.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

from lmcache.integration.vllm.lmcache_mp_connector import LMCacheMPConnector

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


class SafeLMCacheMPConnector(LMCacheMPConnector):
    """LMCache's connector, with time-outs that end where they happen."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
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
        healthy = HEALTH.ok
        try:
            found: tuple[int | None, bool] = super().get_num_new_matched_tokens(request, num_computed_tokens)
        except Exception as error:
            HEALTH.lost("look-up", error)
            return 0, False
        if healthy and not HEALTH.ok:
            HEALTH.lost("look-up", TimeoutError("no answer"))
        return found

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
