"""Seeded chance: a numpy generator for a name, the same in every process."""

import hashlib

from numpy.random import PCG64, Generator


def generator(seed: int, name: str) -> Generator:
    """Streams of different names or seeds have nothing in common; equal ones are equal in every process."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return Generator(PCG64(int.from_bytes(digest[:16], "big")))
