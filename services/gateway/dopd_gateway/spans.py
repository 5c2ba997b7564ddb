"""A request that is over, as spans: one for all of it, one for each phase.

Consumes the request with its timeline; produces one call of `Tracing.record`. Never per token: a span costs as much as
some tokens do.
"""

from dopd.errors import RequestError
from dopd.obs.telemetry import Stretch, Tracing
from dopd_gateway.core import End, Request
from dopd_gateway.timeline import Phase


class Spans:
    """`Gateway`'s `on_ended` while tracing is on."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def __call__(self, request: Request, end: End, error: RequestError | None) -> None:
        ended_s = request.timeline.ended_s
        assert ended_s is not None  # it is over
        whole = Stretch("completion", request.arrived_s, ended_s, _about(request, end, error))
        parts = [_part(phase) for phase in request.timeline.phases(ended_s)]
        text = error.message if error is not None else ""
        self._tracing.record(whole, parts, request.inbound.traceparent, text)


def _about(request: Request, end: End, error: RequestError | None) -> dict[str, str | int | float]:
    about: dict[str, str | int | float] = {
        "dopd.request_id": request.request_id,
        "dopd.isl_tokens": len(request.inbound.tokens),
        "dopd.osl_tokens": len(request.output),
        "dopd.attempts": request.attempt,
        "dopd.end": end,
    }
    if error is not None:
        about["error.type"] = error.code
    return about


def _part(phase: Phase) -> Stretch:
    place = phase.place
    about: dict[str, str | int | float] = {}
    if place.attempt:
        about["dopd.attempt"] = place.attempt
    if place.epoch is not None:
        about |= {"dopd.worker_id": place.where, "dopd.epoch": place.epoch}
    return Stretch(phase.name, phase.start_s, phase.end_s, about)
