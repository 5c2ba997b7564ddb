"""Every subject, typed by the message it carries. `SUBJECTS` is the source of the table in proto/README.md."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dopd_proto import asked, control, request, simstore, telemetry
from dopd_proto.base import Message

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Address(Generic[M]):
    """A concrete subject, or one with wildcards to subscribe to, and the types that may come on it."""

    name: str
    types: tuple[type[M], ...]


@dataclass(frozen=True, slots=True)
class Subject(Generic[M]):
    """A subject with named places, e.g. `dopd.v1.worker.{worker_id}.prefill`."""

    template: str
    types: tuple[type[M], ...]
    sender: str
    receiver: str

    def at(self, **places: str) -> Address[M]:
        """The subject with its places filled in; a missing one becomes the wildcard `*`.

        Raises ValueError for a value that is no single subject token.
        """
        for place, value in places.items():
            if not value or any(c in value for c in ".*> \t\r\n"):
                raise ValueError(f"{place}={value!r} is no single subject token (no dots, blanks or wildcards)")
        return Address(self.template.format_map(_Wild(places)), self.types)


class _Wild(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "*"


GENERATE = Subject("dopd.v1.generate", (asked.Generate,), "client", "gateway")
CHAT = Subject("dopd.v1.chat", (asked.Chat,), "client", "gateway")
MODELS = Subject("dopd.v1.models", (asked.ModelsRequest,), "client", "gateway")
PREFILL_WORK = Subject("dopd.v1.worker.{worker_id}.prefill", (request.PrefillWork,), "gateway", "worker")
DECODE_WORK = Subject("dopd.v1.worker.{worker_id}.decode", (request.DecodeWork,), "gateway, worker", "worker")
ABORT = Subject("dopd.v1.worker.{worker_id}.abort", (request.Abort,), "gateway", "worker")
RESEND = Subject("dopd.v1.worker.{worker_id}.resend", (request.Resend,), "gateway", "worker")
TOKENS = Subject("dopd.v1.gateway.{gateway_id}.tokens.{worker_id}", (request.TokenBatch,), "worker", "gateway")
WORKER_STATE = Subject(
    "dopd.v1.state.worker.{worker_id}", (telemetry.WorkerState,), "worker", "worker, gateway, planner, person"
)
GATEWAY_STATE = Subject(
    "dopd.v1.state.gateway.{gateway_id}", (telemetry.GatewayState,), "gateway", "worker, gateway, planner, person"
)
ARRIVALS = Subject(
    "dopd.v1.window.arrivals.{gateway_id}", (telemetry.ArrivalWindow,), "gateway", "forecaster, gateway, person"
)
OUTCOMES = Subject(
    "dopd.v1.window.outcomes.{gateway_id}", (telemetry.OutcomeWindow,), "gateway", "forecaster, gateway, person"
)
FORECAST = Subject("dopd.v1.forecast", (telemetry.Forecast,), "forecaster", "planner, gateway, person")
ROLE_CHANGE = Subject("dopd.v1.worker.{worker_id}.role", (control.RoleChange,), "planner", "worker")
SIM_STORE = Subject(
    "dopd.v1.simstore.{kv_domain}", (simstore.StoreLookup, simstore.StorePut), "emulated engine", "emulated KV store"
)
ROLES = Subject("dopd.v1.roles", (control.RolesRequest,), "person", "planner")
DECISIONS = Subject("dopd.v1.decisions", (control.DecisionsRequest,), "person, gateway", "planner")

SUBJECTS: tuple[Subject[Any], ...] = (
    GENERATE, CHAT, MODELS, PREFILL_WORK, DECODE_WORK, ABORT, RESEND, TOKENS, WORKER_STATE, GATEWAY_STATE,
    ARRIVALS, OUTCOMES, FORECAST, ROLE_CHANGE, ROLES, DECISIONS, SIM_STORE,
)  # fmt: skip
