"""A user of a secured broker that tries things, on the bare library: what the broker refuses it, and what it hears."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.secured import SecuredBroker


class Trying:
    """A connection of a user, and what the broker refused it."""

    def __init__(self, client: Client, user: str, errors: list[str]) -> None:
        self.client, self._errors, self._mark = client, errors, f"_INBOX.{user}.mark"

    async def refused(self) -> set[str]:
        """The subjects refused so far; the broker has seen all that was sent."""
        back = asyncio.Event()

        async def seen(_: Msg) -> None:
            back.set()

        # The library's flush may overtake what it still has to write.
        mark = await self.client.subscribe(self._mark, cb=seen)
        await self.client.publish(self._mark, b"")
        await asyncio.wait_for(back.wait(), 5)
        await mark.unsubscribe()
        assert all("permissions violation" in error for error in self._errors), self._errors
        return {error.split('"')[1] for error in self._errors}


@asynccontextmanager
async def trying(broker: SecuredBroker, user: str) -> AsyncIterator[Trying]:
    errors: list[str] = []

    async def note(error: Exception) -> None:
        errors.append(str(error))

    client = await nats.connect(broker.url_of(user), error_cb=note, inbox_prefix=f"_INBOX.{user}")
    try:
        yield Trying(client, user, errors)
    finally:
        await client.close()


def into(heard: set[str]) -> Callable[[Msg], Awaitable[None]]:
    """A handler that keeps the subjects of what comes."""

    async def note(message: Msg) -> None:
        heard.add(message.subject)

    return note
