"""The KV store of emulated engines: which chunks exist, least recently used dropped first. Holds names, not bytes.

`KvStore` is what an engine uses. `LocalStore` answers at once, for engines in one process; `store.py` serves one to
other processes.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol


class KvStore(Protocol):
    """Answers by callback, so that a simulation in one process pays for no task."""

    total_tokens: int
    ok: bool

    def lookup(self, keys: Sequence[bytes], answer: Callable[[int], None]) -> None:
        """How many of the leading chunks are there; 0 when the store does not answer in time."""

    def put(self, keys: Sequence[bytes], done: Callable[[], None]) -> None:
        """Store chunks; `done` when they can be fetched by others, or when the store gave no answer in time."""


class LocalStore:
    """A pool of `total_tokens` in chunks of `chunk_tokens`."""

    def __init__(self, total_tokens: int, chunk_tokens: int) -> None:
        self.total_tokens = total_tokens
        self.ok = True
        self.chunk_tokens = chunk_tokens
        self.looked_up = self.found = self.dropped = 0  # chunks so far
        self._room = total_tokens // chunk_tokens
        self._chunks: OrderedDict[bytes, None] = OrderedDict()

    def lookup(self, keys: Sequence[bytes], answer: Callable[[int], None]) -> None:
        answer(self.match(keys))

    def put(self, keys: Sequence[bytes], done: Callable[[], None]) -> None:
        self.insert(keys)
        done()

    def match(self, keys: Sequence[bytes]) -> int:
        """Leading chunks that are here, now used most recently."""
        count = 0
        for key in keys:
            if key not in self._chunks:
                break
            self._chunks.move_to_end(key)
            count += 1
        self.looked_up += len(keys)
        self.found += count
        return count

    def insert(self, keys: Sequence[bytes]) -> None:
        """Add chunks, dropping the least recently used."""
        for key in keys:
            self._chunks[key] = None
            self._chunks.move_to_end(key)
        while len(self._chunks) > self._room:
            self._chunks.popitem(last=False)
            self.dropped += 1

    def clear(self) -> None:
        """Forget everything."""
        self._chunks.clear()

    def __len__(self) -> int:
        return len(self._chunks)
