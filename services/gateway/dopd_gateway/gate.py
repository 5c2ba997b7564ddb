"""The door of the HTTP API: whoever has no key is told so before anything of his request's body is read.

Consumes: ASGI requests, `Keys`. Produces: a 401, or the request with its caller's name in the scope.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from dopd.errors import Unauthorized
from dopd_gateway.headers import key_of
from dopd_gateway.keys import Keys

OPEN = ("/health", "/ready")
"""Paths that tell nothing of requests, for those who watch the process."""
CALLER = "dopd.caller"

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


class Gate:
    """An ASGI middleware. `refuse` makes the answer to whoever may not pass."""

    def __init__(
        self, app: App, keys: Keys, now: Callable[[], float], refuse: Callable[[Scope, Unauthorized], App]
    ) -> None:
        self._app, self._keys, self._now, self._refuse = app, keys, now, refuse

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        said = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        try:
            scope[CALLER] = caller(self._keys, key_of({"authorization": said.decode("latin-1")}), self._now())
        except Unauthorized as error:
            await self._refuse(scope, error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def caller(keys: Keys, key: str, now_s: float) -> str:
    """Whose key it is. Raises Unauthorized, which does not repeat the key."""
    if not key:
        raise Unauthorized("this gateway wants an API key, sent as the header Authorization: Bearer KEY")
    name = keys.name_of(key, now_s)
    if name is None:
        raise Unauthorized("this API key is not known here")
    return name
