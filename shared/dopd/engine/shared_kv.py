"""The store behind the KV stores of several hosts, as one worker knows it: whether it can be reached from here.

Consumes a question that the store answers, asked again and again; produces `reached`, which the worker's state tells.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger(__name__)

ASK_EVERY_S = 0.25
LOST_AFTER = 3
"""So many questions without an answer, one after the other: a single one may be late on a busy machine."""


class SharedKv:
    """`name` is the same for all who share it; `token_s` what a token of KV takes more through it, in seconds.

    `ask` says whether it answers; it must end by itself and raise nothing.
    """

    def __init__(self, name: str, token_s: float, ask: Callable[[], Awaitable[bool]]) -> None:
        self.name, self.token_s = name, token_s
        self.reached = False
        self._ask, self._failed = ask, LOST_AFTER

    async def watch(self) -> None:
        """Ask for ever."""
        while True:
            self._failed = 0 if await self._ask() else self._failed + 1
            before, self.reached = self.reached, self._failed < LOST_AFTER
            if self.reached != before:
                log.warning("kv_shared_changed", name=self.name, reached=self.reached)
            await asyncio.sleep(ASK_EVERY_S)
