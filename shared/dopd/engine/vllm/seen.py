"""What EngineCore says of itself, step by step.

Consumes vLLM's `SchedulerStats` with the figures that `scheduler.py` adds; produces the engine's side of `EngineLoad`.
"""

from dataclasses import replace
from typing import Any

import structlog

from dopd.engine.contract import EngineLoad

log = structlog.get_logger(__name__)


class Seen:
    """The last that was heard. A frozen child says nothing, so `steps` stops."""

    def __init__(self) -> None:
        self.load = EngineLoad(alive=False)
        self.computed_tokens = 0
        self.store_losses = 0

    def started(self, kv_total_tokens: int, store_total_tokens: int) -> None:
        self.load = EngineLoad(kv_total_tokens=kv_total_tokens, store_total_tokens=store_total_tokens)

    def ended(self) -> None:
        self.load = replace(self.load, alive=False)

    def step(self, stats: Any) -> None:
        """The statistics of one step."""
        extra = (stats.kv_connector_stats or {}).get("dopd", {})
        self.computed_tokens = extra.get("computed_tokens", 0)
        self.store(extra)
        self.load = replace(
            self.load,
            steps=max(self.load.steps, stats.step_counter),
            running=stats.num_running_reqs,
            kv_used_tokens=round(stats.kv_cache_usage * self.load.kv_total_tokens),
        )

    def store(self, extra: dict[str, Any]) -> None:
        """How the store does."""
        store_ok = extra.get("store_ok", True)
        self.store_losses = extra.get("losses", 0)
        if store_ok != self.load.store_ok:
            log.warning("kv_store_changed", ok=store_ok, losses=self.store_losses)
            self.load = replace(self.load, store_ok=store_ok)
