"""What a worker says of itself: capacity, phase, and the whole `WorkerState`.

Consumes the engine's load, the role, the work in hand and the gateways' accounts; produces the state that is published.
"""

from collections.abc import Collection

from dopd.config import WorkerConfig
from dopd.engine.contract import Engine, EngineLoad
from dopd.engine.shared_kv import SharedKv
from dopd.worker import credit
from dopd.worker.credit import Account
from dopd.worker.health import Pulse
from dopd.worker.role import RoleState
from dopd.worker.segment import Held
from dopd_proto.base import Role
from dopd_proto.telemetry import Phase, WorkerState


class Vitals:
    """One worker's. `me` is (id, incarnation)."""

    def __init__(
        self,
        me: tuple[str, str],
        model: str,
        kv_domain: str,
        shared: SharedKv | None,
        engine: Engine,
        config: WorkerConfig,
    ) -> None:
        self._me, self._model, self._kv_domain, self._shared = me, model, kv_domain, shared
        self._engine, self._config = engine, config
        self._pulse = Pulse(config.slow_s, config.stall_s)

    def capacity(self, role: Role) -> int:
        """Requests that may be in hand in all, in this role."""
        most = self._config.max_requests or self._engine.max_running
        return min(most, self._config.max_prefills) if role == "prefill" else most

    def state(
        self,
        life: Phase,
        role: RoleState,
        load: EngineLoad,
        held: Collection[Held],
        accounts: dict[str, Account],
        kv_misses: int,
        kv_far_tokens: int,
        now_s: float,
    ) -> WorkerState:
        """The worker now. `life` is what its own start and end make of it; health and role refine "serving"."""
        phase = self._judge(life, role, load, now_s)
        reserved = sum([each.most_tokens for each in held])
        shared = self._shared if self._shared is not None and self._shared.reached and load.store_ok else None
        capacity = self.capacity(role.role)
        free = credit.free_slots(capacity, len(held), reserved, load.kv_total_tokens) if phase == "serving" else 0
        return WorkerState(
            worker_id=self._me[0],
            incarnation=self._me[1],
            role=role.role,
            epoch=role.epoch,
            phase=phase,
            model=self._model,
            kv_domain=self._kv_domain,
            sent_s=now_s,
            lease_s=self._config.lease_s,
            decision_id=role.decision_id,
            accepting_at_s=role.accepting_at_s,
            drained_at_s=role.drained_at_s,
            steps=load.steps,
            running=load.running,
            waiting=load.waiting,
            decoding=load.decoding,
            queued_prefill_tokens=load.queued_prefill_tokens,
            context_tokens=load.context_tokens,
            kv_used_tokens=load.kv_used_tokens,
            kv_total_tokens=load.kv_total_tokens,
            store_total_tokens=load.store_total_tokens,
            store_ok=load.store_ok,
            kv_misses=kv_misses,
            kv_shared=shared.name if shared is not None else "",
            kv_shared_token_s=shared.token_s if shared is not None else 0.0,
            kv_far_tokens=kv_far_tokens,
            max_model_len=self._engine.max_model_len,
            gpus=self._engine.gpus,
            engine=self._engine.label,
            features=self._engine.features,
            grants=credit.grants(accounts, free),
        )

    def _judge(self, life: Phase, role: RoleState, load: EngineLoad, now_s: float) -> Phase:
        if life in ("starting", "stopping"):
            return life
        health = self._pulse.feel(load, now_s)
        if health != "good":
            return "failed" if health == "failed" else "stalled"
        return "draining" if role.next_role is not None else "serving"
