"""KV memory of one emulated engine: blocks by count, whole chunks shared by name with reference counts.

Idle chunks stay as prefix cache and are given up, least recently used first, when somebody needs blocks.
"""

from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """`total` blocks; a shared chunk holds `chunk_blocks` of them."""

    def __init__(self, total: int, chunk_blocks: int) -> None:
        self.total = total
        self.free = total
        self.chunk_blocks = chunk_blocks
        self._users: dict[bytes, int] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be had, idle chunks included."""
        return self.free + len(self._idle) * self.chunk_blocks

    @property
    def used(self) -> int:
        """Blocks that running requests hold; cached idle ones count as free."""
        return self.total - self.available

    def match(self, keys: Sequence[bytes]) -> int:
        """How many of the leading chunks are here."""
        for count, key in enumerate(keys):
            if key not in self._users:
                return count
        return len(keys)

    def allocate(self, blocks: int) -> bool:
        """Take private blocks, dropping idle chunks as needed. False, and nothing taken, when there are too few."""
        if blocks > self.available:
            return False
        while self.free < blocks:
            key, _ = self._idle.popitem(last=False)
            del self._users[key]
            self.free += self.chunk_blocks
        self.free -= blocks
        return True

    def hold(self, keys: Sequence[bytes]) -> None:
        """Use chunks that are here."""
        for key in keys:
            self._users[key] += 1
            self._idle.pop(key, None)

    def share(self, key: bytes) -> None:
        """A running request's private blocks became a whole chunk: name it, or give them back if it exists already."""
        if key in self._users:
            self._users[key] += 1
            self._idle.pop(key, None)
            self.free += self.chunk_blocks
        else:
            self._users[key] = 1

    def release(self, keys: Sequence[bytes], private_blocks: int) -> None:
        """End of a request. The last chunk goes idle first, so that prefixes outlive their tails."""
        self.free += private_blocks
        for key in reversed(keys):
            self._users[key] -= 1
            if not self._users[key]:
                self._idle[key] = None
