"""How NATS tools find the public subjects: the answers of a NATS micro service to `$SRV.PING`, `INFO` and `STATS`.

Consumes requests on `$SRV.…` (any payload) and the counts of `Endpoint`s; produces JSON as the service protocol of NATS
has it (ADR-32). Only discovery is here: the requests themselves come in by `nats_api.py`, with streams, credit and load
sharing as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import msgspec

from dopd.bus import Bus, Delivery, Subscription
from dopd_proto.base import Foreign
from dopd_proto.subjects import Address

NAME = "dopd"
DESCRIPTION = "LLM serving with prefill and decode on separate workers; messages are MessagePack, see docs/nats-api.md"
VERBS = ("PING", "INFO", "STATS")


@dataclass(slots=True)
class Endpoint:
    """One subject, with what became of its requests. `metadata` has texts only."""

    name: str
    subject: str
    queue_group: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    took_s: float = 0.0

    def ended(self, took_s: float, error: str = "") -> None:
        """A request was answered, after so long; `error` is `status:code` where it failed."""
        self.requests += 1
        self.took_s += took_s
        if error:
            self.errors += 1
            self.last_error = error

    def info(self) -> dict[str, Any]:
        """What it is."""
        return {**self._where(), "metadata": dict(self.metadata)}

    def stats(self) -> dict[str, Any]:
        """What it did; times in nanoseconds."""
        took_ns = round(self.took_s * 1e9)
        return {
            **self._where(), "num_requests": self.requests, "num_errors": self.errors, "last_error": self.last_error,
            "processing_time": took_ns, "average_processing_time": took_ns // max(1, self.requests), "data": None,
        }  # fmt: skip

    def _where(self) -> dict[str, Any]:
        return {"name": self.name, "subject": self.subject, "queue_group": self.queue_group}


class Discovery:
    """One gateway as an instance of the service, between `start` and `stop`. Every instance answers for itself."""

    def __init__(
        self, bus: Bus, instance: str, started_s: float, endpoints: Sequence[Endpoint], metadata: Mapping[str, str]
    ) -> None:
        """`instance` is this life of the gateway, `started_s` seconds since the epoch."""
        self._bus, self._instance, self._endpoints = bus, instance, endpoints
        self._started = datetime.fromtimestamp(started_s, UTC).isoformat().replace("+00:00", "Z")
        self._metadata, self._version = dict(metadata), version("dopd")
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Be found: by everybody, by the service's name, by this instance's id."""
        for verb in VERBS:
            for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{NAME}", f"$SRV.{verb}.{NAME}.{self._instance}"):
                self._subscriptions.append(await self._bus.subscribe(Address(subject, (Foreign,)), self._on_request))

    async def stop(self) -> None:
        """Be found no more."""
        for subscription in self._subscriptions:
            await subscription.stop()

    def _on_request(self, delivery: Delivery[Foreign]) -> None:
        if delivery.reply_to:
            self._bus.answer(delivery.reply_to, Foreign(payload=self._answer(delivery.subject.split(".")[1])))

    def _answer(self, verb: str) -> bytes:
        body: dict[str, Any] = {
            "type": f"io.nats.micro.v1.{verb.lower()}_response", "name": NAME, "id": self._instance,
            "version": self._version, "metadata": self._metadata,
        }  # fmt: skip
        if verb == "INFO":
            body |= {"description": DESCRIPTION, "endpoints": [each.info() for each in self._endpoints]}
        elif verb == "STATS":
            body |= {"started": self._started, "endpoints": [each.stats() for each in self._endpoints]}
        return msgspec.json.encode(body)
