"""The OpenAI-compatible HTTP side: completions and chats (plain or streamed), tokens, models, health and readiness.

Consumes: HTTP requests, a `TextGateway`. Produces: an ASGI app; every error has OpenAI's shape. A client that hangs up
cancels its request, streamed or not. An error before the first token has its own HTTP status, a later one is an event.
"""

from collections import Counter
from collections.abc import MutableMapping
from math import ceil
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from dopd.errors import BadRequest, PayloadTooLarge, RequestError, Unauthorized, Unavailable, UnknownModel
from dopd_gateway.api import TextGateway
from dopd_gateway.event_stream import INTERNAL, EventStream, unless_gone
from dopd_gateway.gate import CALLER, Gate
from dopd_gateway.headers import answer_headers, key_of, with_headers
from dopd_gateway.keys import Keys
from dopd_gateway.openai_parse import CHAT, COMPLETION, Ask, Form, object_of, parse
from dopd_gateway.openai_write import Writer, error_json
from dopd_gateway.openapi import document
from dopd_gateway.tokenize_forms import Detokenize, Tokenize, TokenizeChat, tokenize_form
from dopd_proto.asked import Failure

JSON = "application/json"
_CLIENT_GONE = 499


def create_app(api: TextGateway, max_body_bytes: int, keys: Keys | None = None) -> Starlette:
    """The ASGI app. `max_body_bytes` is the bus's limit, as prompts travel on it. Without `keys` everybody is served.

    Its `state.failures` counts answers that are an error, by code.
    """
    pages = _Pages(api, max_body_bytes)
    routes = [
        Route("/v1/completions", pages.completions, methods=["POST"]),
        Route("/v1/chat/completions", pages.chat, methods=["POST"]),
        Route("/tokenize", pages.tokenize, methods=["POST"]),
        Route("/detokenize", pages.detokenize, methods=["POST"]),
        Route("/v1/models", pages.models, methods=["GET"]),
        Route("/v1/models/{model:path}", pages.model, methods=["GET"]),
        Route("/health", pages.health, methods=["GET"]),
        Route("/ready", pages.ready, methods=["GET"]),
        Route("/openapi.json", pages.openapi, methods=["GET"]),
    ]
    handlers: Any = {
        HTTPException: _on_http_error,
        RequestError: _on_request_error,
        ClientDisconnect: _on_client_gone,
        Exception: _on_bug,
    }
    gate = [Middleware(Gate, keys=keys, now=api.now, refuse=_refuse)] if keys is not None and keys.wanted else []
    app = Starlette(routes=routes, exception_handlers=handlers, middleware=gate)
    # A path with a slash too many is another path, not one to be sent elsewhere.
    app.router.redirect_slashes = False
    app.state.failures = Counter()
    return app


class _Pages:
    def __init__(self, api: TextGateway, max_body_bytes: int) -> None:
        self._api, self._max_body_bytes = api, max_body_bytes

    async def completions(self, request: Request) -> Response | EventStream:
        return await self._answer(request, COMPLETION)

    async def chat(self, request: Request) -> Response | EventStream:
        return await self._answer(request, CHAT)

    async def _answer(self, request: Request, form: Form) -> Response | EventStream:
        ask = parse(await _body(request, self._max_body_bytes), form)
        ask = Ask(with_headers(ask.asked, request.headers), ask.include_usage, ask.continuous_usage)
        answer = await self._api.open(ask.asked, _paying(request))
        writer = Writer(ask, answer.request_id, self._api.now(), answer.prompts)
        headers = answer_headers(answer.request_id, request.headers)
        if ask.asked.stream:
            return EventStream(answer, writer, headers)
        try:
            completion = await unless_gone(request.receive, answer.whole())
        finally:
            answer.close()
        if completion is None:
            return Response(status_code=_CLIENT_GONE)
        return _json(writer.plain(completion), headers)

    async def tokenize(self, request: Request) -> Response:
        asked: Tokenize | TokenizeChat = tokenize_form(object_of(await _body(request, self._max_body_bytes)))
        tokens = await asked.tokens(self._api)
        body = {"count": len(tokens), "max_model_len": self._api.max_model_len, "tokens": tokens}
        return _json(msgspec.json.encode(body))

    async def detokenize(self, request: Request) -> Response:
        asked = Detokenize.of(object_of(await _body(request, self._max_body_bytes)))
        return _json(msgspec.json.encode({"prompt": await self._api.detokenize(asked.model, asked.tokens)}))

    async def openapi(self, _: Request) -> Response:
        return _json(msgspec.json.encode(document(self._api.model)))

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
        card = self._api.card()
        return {
            "id": card.model,
            "object": "model",
            "created": int(card.created_s),
            "owned_by": "dopd",
            "max_model_len": card.max_model_len,
            "features": card.features,
            "chat": card.chat,
        }


async def _body(request: Request, limit_bytes: int) -> bytes:
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind != JSON:
        raise BadRequest(f"the body is said to be {kind[:100]!r}, but must be {JSON}", "content-type")
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


def _paying(request: Request) -> str:
    """Whose rate it counts for: the caller's, or where no key is wanted that of whatever key came."""
    name: str | None = request.scope.get(CALLER)
    return key_of(request.headers) if name is None else name


def _json(body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    return Response(body, status, headers, JSON)


def _error_response(request: Request, failure: Failure, headers: dict[str, str] | None = None) -> Response:
    request.app.state.failures[failure.code] += 1
    retry = {} if failure.retry_after_s is None else {"retry-after": str(max(1, ceil(failure.retry_after_s)))}
    return _json(error_json(failure), {**(headers or {}), **retry}, failure.status)


async def _on_request_error(request: Request, error: RequestError) -> Response:
    return _error_response(request, error.failure())


def _refuse(scope: MutableMapping[str, Any], error: Unauthorized) -> Response:
    return _error_response(Request(scope), error.failure(), {"www-authenticate": "Bearer"})


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}"
    failure = Failure(code=code, message=message, status=error.status_code)
    return _error_response(request, failure, dict(error.headers or {}))


async def _on_client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _on_bug(request: Request, _: Exception) -> Response:
    # Starlette raises it again after this answer, so that the server logs it.
    return _error_response(request, INTERNAL)
