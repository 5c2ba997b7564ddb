"""The OpenAI-compatible HTTP side: completions (plain or streamed), models, health and readiness.

Consumes: HTTP requests, a `TextGateway`. Produces: an ASGI app; every error has OpenAI's shape. A client that hangs up
cancels its request, streamed or not. An error before the first token has its own HTTP status, a later one is an event.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from dopd.errors import PayloadTooLarge, RequestError, Unavailable, UnknownModel
from dopd_gateway.api import TextGateway
from dopd_gateway.event_stream import INTERNAL, EventStream, unless_gone
from dopd_gateway.openai_parse import Ask, parse
from dopd_gateway.openai_write import Writer, error_json
from dopd_proto.request import Failure

_RETRY_AFTER_S = "1"
_CLIENT_GONE = 499


def create_app(api: TextGateway, max_body_bytes: int) -> Starlette:
    """The ASGI app. `max_body_bytes` is the bus's limit, as prompts travel on it."""
    pages = _Pages(api, max_body_bytes)
    routes = [
        Route("/v1/completions", pages.completions, methods=["POST"]),
        Route("/v1/models", pages.models, methods=["GET"]),
        Route("/v1/models/{model:path}", pages.model, methods=["GET"]),
        Route("/health", pages.health, methods=["GET"]),
        Route("/ready", pages.ready, methods=["GET"]),
    ]
    handlers: Any = {
        HTTPException: _on_http_error,
        RequestError: _on_request_error,
        ClientDisconnect: _on_client_gone,
        Exception: _on_bug,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


class _Pages:
    def __init__(self, api: TextGateway, max_body_bytes: int) -> None:
        self._api, self._max_body_bytes = api, max_body_bytes

    async def completions(self, request: Request) -> Response | EventStream:
        ask = _with_headers(parse(await _body(request, self._max_body_bytes)), request.headers)
        answer = await self._api.open(ask.generate)
        writer = Writer(ask, answer.request_id, self._api.now(), answer.prompt)
        if ask.generate.stream:
            return EventStream(answer, writer)
        try:
            completion = await unless_gone(request.receive, answer.whole())
        finally:
            answer.close()
        if completion is None:
            return Response(status_code=_CLIENT_GONE)
        return _json(writer.plain(completion), {"x-request-id": answer.request_id})

    async def models(self, _: Request) -> Response:
        return _json(msgspec.json.encode({"object": "list", "data": [self._card()]}))

    async def model(self, request: Request) -> Response:
        if request.path_params["model"] != self._api.model:
            raise UnknownModel(f"this gateway serves {self._api.model!r}", "model")
        return _json(msgspec.json.encode(self._card()))

    async def health(self, _: Request) -> Response:
        return _json(b'{"status":"ok"}')

    async def ready(self, _: Request) -> Response:
        if not self._api.ready():
            raise Unavailable("no worker serves yet")
        return _json(b'{"status":"ready"}')

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._api.model,
            "object": "model",
            "created": int(self._api.started_s),
            "owned_by": "dopd",
            "max_model_len": self._api.max_model_len,
        }


def _with_headers(ask: Ask, headers: Mapping[str, str]) -> Ask:
    """What the body has no field for: `x-dopd-timeline: 1`, and the caller's `traceparent`."""
    timeline, traceparent = headers.get("x-dopd-timeline") == "1", headers.get("traceparent", "")
    if not timeline and not traceparent:
        return ask
    generate = msgspec.structs.replace(ask.generate, timeline=timeline, traceparent=traceparent)
    return replace(ask, generate=generate)


async def _body(request: Request, limit_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise PayloadTooLarge(int(announced), limit_bytes)
    pieces, size = [], 0
    async for piece in request.stream():
        pieces.append(piece)
        size += len(piece)
        if size > limit_bytes:
            raise PayloadTooLarge(size, limit_bytes)
    return b"".join(pieces)


def _json(body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    return Response(body, status, headers, "application/json")


def _error_response(failure: Failure, headers: dict[str, str] | None = None) -> Response:
    retry = {"retry-after": _RETRY_AFTER_S} if failure.status == Unavailable.status else {}
    return _json(error_json(failure), {**(headers or {}), **retry}, failure.status)


async def _on_request_error(_: Request, error: RequestError) -> Response:
    return _error_response(error.failure())


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _error_response(Failure(code=code, message=message, status=error.status_code), dict(error.headers or {}))


async def _on_client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _on_bug(request: Request, _: Exception) -> Response:
    # Starlette raises it again after this answer, so that the server logs it.
    return _error_response(INTERNAL)
