"""Which levels a rate jumps between, from counts: a hidden Markov model with Poisson counts, by Baum-Welch.

Consumes counts per window; produces the levels' means (counts per window) and the probabilities of going from one to
another within a window. Pure and without chance: it starts from the counts' quantiles.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_LEAST = 1e-4


def fitted(counts: Array, levels: int, rounds: int = 80) -> tuple[Array, Array]:
    """Levels and moves after so many rounds. Two levels start at 0: a short pause and a long one."""
    means, moves = _start(counts, levels)
    first = np.full(levels, 1 / levels)
    for _ in range(rounds):
        log_likely = counts[:, None] * np.log(means) - means
        likely = np.exp(log_likely - log_likely.max(1, keepdims=True))
        forward, backward, norms = _passes(likely, moves, first)
        # Expected stays in each level, and expected moves between them (Rabiner 1989, equations 27, 37, 40).
        stays = forward * backward
        moved = moves * (forward[:-1].T @ (likely[1:] * backward[1:] / norms[1:, None]))
        moves = moved / moved.sum(1, keepdims=True)
        means = np.maximum((stays * counts[:, None]).sum(0) / stays.sum(0), _LEAST)
        first = stays[0] / stays[0].sum()
    return np.where(means <= _LEAST, 0.0, means), moves


def _start(counts: Array, levels: int) -> tuple[Array, Array]:
    edges = np.quantile(counts[counts > 0], np.linspace(0, 1, levels - 1))
    busy = [counts[(counts >= low) & (counts <= high) & (counts > 0)].mean() for low, high in pairwise(edges)]
    stay = np.array([0.5, 0.99, *[0.9] * len(busy)])
    moves = np.tile(((1 - stay) / (levels - 1))[:, None], (1, levels))
    np.fill_diagonal(moves, stay)
    return np.array([10 * _LEAST, 10 * _LEAST, *busy]), moves


def _passes(likely: Array, moves: Array, first: Array) -> tuple[Array, Array, Array]:
    """Scaled forward and backward passes, and the scales."""
    forward, backward, norms = np.empty_like(likely), np.ones_like(likely), np.empty(len(likely))
    ahead = first * likely[0]
    for step in range(len(likely)):
        if step:
            ahead = (forward[step - 1] @ moves) * likely[step]
        norms[step] = ahead.sum()
        forward[step] = ahead / norms[step]
    for step in range(len(likely) - 2, -1, -1):
        backward[step] = moves @ (likely[step + 1] * backward[step + 1]) / norms[step + 1]
    return forward, backward, norms
