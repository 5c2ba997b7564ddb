"""A worker's numbers for its operator port.

Consumes the state that it last published and its `Tally`, when somebody looks; produces samples of `METRICS`.
"""

from collections.abc import Iterator
from typing import get_args, get_type_hints

from dopd.obs.metric_table import Sample
from dopd.worker.host import Worker
from dopd_proto.base import Role
from dopd_proto.request import RunEnd, WorkReply
from dopd_proto.telemetry import Phase, WorkerState

REASONS = tuple(filter(None, get_args(get_type_hints(WorkReply)["reason"])))
"""Why work may be refused."""


def samples(worker: Worker, now_s: float) -> Iterator[Sample]:
    """All of one worker's. What its state says is as old as its last heartbeat."""
    if worker.said is not None:
        yield from _of_state(worker.said)
    tally = worker.tally
    for end, count in {**dict.fromkeys(get_args(RunEnd), 0), **tally.ended}.items():
        yield "dopd_worker_segments_total", (end,), count
    for reason, count in {**dict.fromkeys(REASONS, 0), **tally.refused}.items():
        yield "dopd_worker_refusals_total", (reason,), count
    for origin, tokens in tally.input_tokens.items():
        yield "dopd_worker_input_tokens_total", (origin,), tokens
    yield "dopd_worker_role_changes_total", (), tally.role_changes
    yield "dopd_worker_held_requests", (), len(worker.held)
    in_hand = sum(len(held.made) for held in worker.held)
    yield "dopd_worker_output_tokens_total", (), tally.made_tokens + in_hand
    steps = worker.said.steps if worker.said is not None else 0
    yield "dopd_engine_step_seconds", (), (steps, tally.busy_until_s(now_s))


def _of_state(state: WorkerState) -> Iterator[Sample]:
    for role in get_args(Role):
        yield "dopd_worker_role", (role,), float(state.role == role)
    for phase in get_args(Phase):
        yield "dopd_worker_phase", (phase,), float(state.phase == phase)
    yield "dopd_worker_running_requests", (), state.running
    yield "dopd_worker_decoding_requests", (), state.decoding
    yield "dopd_worker_waiting_requests", (), state.waiting
    yield "dopd_worker_queued_prefill_tokens", (), state.queued_prefill_tokens
    yield "dopd_worker_context_tokens", (), state.context_tokens
    granted = sum(max(0, grant.limit - grant.received) for grant in state.grants)
    yield "dopd_worker_granted_requests", (), granted
    yield "dopd_kv_used_tokens", (), state.kv_used_tokens
    yield "dopd_kv_total_tokens", (), state.kv_total_tokens
    yield "dopd_kv_store_tokens", (), state.store_total_tokens
    yield "dopd_kv_store_up", (), float(state.store_ok)
    yield "dopd_kv_misses_total", (), state.kv_misses
