"""Which prompts begin alike: one system prefix for all, and conversations that grow turn by turn.

Consumes prompt lengths in order of arrival; produces the identities of their leading blocks, as a Mooncake trace has
them.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

Blocks = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sharing:
    """A request goes on with one of the `recent` open conversations with probability `follow`.

    It takes the one whose last prompt comes nearest to its own length less a log-normal growth (median `growth_p50`
    tokens, `growth_sigma` of the logarithm), and shares that prompt's full blocks. All share `system_blocks`.
    """

    system_blocks: int
    follow: float
    growth_p50: float
    growth_sigma: float
    recent: int
    block_tokens: int = 512

    def blocks(self, rng: Generator, isl_tokens: Sequence[int]) -> list[Blocks]:
        """Block ids of each prompt; the last may stand for a part of a block."""
        # A namespace by chance: loads that are mixed must not share.
        fresh = int(rng.integers(1 << 38)) << 24
        system = tuple(range(fresh, fresh + self.system_blocks))
        fresh += self.system_blocks
        made: list[Blocks] = []
        open_isl: deque[int] = deque(maxlen=self.recent)
        open_blocks: deque[Blocks] = deque(maxlen=self.recent)
        for isl in isl_tokens:
            shared = system
            if open_isl and rng.random() < self.follow:
                growth = math.exp(math.log(self.growth_p50) + self.growth_sigma * rng.standard_normal())
                nearest = int(np.abs(np.array(open_isl) - max(0.0, isl - growth)).argmin())
                shared = open_blocks[nearest][: open_isl[nearest] // self.block_tokens] or system
                # The conversation goes on from here: its earlier end is no longer open.
                del open_isl[nearest], open_blocks[nearest]
            count = -(-isl // self.block_tokens)
            shared = shared[:count]
            own = tuple(range(fresh, fresh + count - len(shared)))
            fresh += len(own)
            made.append(shared + own)
            open_isl.append(isl)
            open_blocks.append(made[-1])
        return made
