"""Messages of the emulated KV store. Real KV never travels on the bus; these carry the names of chunks only."""

from dopd_proto.base import Message


class StoreLookup(Message):
    """How many of the leading chunks are there?"""

    keys: tuple[bytes, ...]


class StorePut(Message):
    """These chunks can be fetched from now on."""

    keys: tuple[bytes, ...]


class StoreAnswer(Message):
    """Leading chunks found, or chunks stored."""

    found: int
