"""Fits coefficients to measured step times: non-negative least squares on the relative error.

Consumes a `PointsFile`; produces a `Profile` that keeps the fit's error and the measured grid. Pure.
Prefill t = c0 + c1*sum n + c2*sum(b^2 - a^2), decode t = c0 + c1*batch + c2*context (workloads.md section 3), if asked
with coefficients of their own for large batches (DistServe's form, algorithms.md 5.2).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from dopd.errors import ConfigError
from dopd.perf.model import step_s
from dopd.perf.points import META_COUNTS, META_NUMBERS, Point, PointsFile
from dopd.perf.profile import Grid, PhaseFit, Profile, check_profile

LEAST_POINTS = 4
"""One more than coefficients: with fewer the error would say nothing."""

Array = npt.NDArray[np.float64]
Coefficients = tuple[float, float, float]
Terms = Callable[[Point], tuple[float, float]]


def fit(file: PointsFile) -> Profile:
    """The profile of the points. `large_batch_requests` in the head asks for a second range of decode batches.

    Mixed points are not fitted: their error is that of our rule for mixed steps. Raises ConfigError when a phase has
    too few points, or points that cannot tell the coefficients apart.
    """
    given = {key: file.meta[key] for key in (*META_COUNTS, *META_NUMBERS) if key in file.meta}
    large_from = float(file.meta.get("large_batch_requests", 0)) or float("inf")
    decodes = file.of("decode")
    prefill = _coefficients(file.where, "prefill", file.of("prefill"), _prompts)
    small = _coefficients(file.where, "decode", [p for p in decodes if p.batch_requests < large_from], _decodes)
    large = (0.0, 0.0, 0.0)
    if large_from < float("inf"):
        many = [point for point in decodes if point.batch_requests >= large_from]
        large = _coefficients(file.where, f"decode of {large_from:g} requests and more", many, _decodes)
    profile = Profile(
        str(file.meta["name"]),
        str(file.meta["source"]),
        *prefill,
        *small,
        large_fixed_s=large[0],
        large_request_s=large[1],
        large_context_s=large[2],
        grid=_grid(file.points),
        **given,  # type: ignore[arg-type] # checked when the file was read
    )
    check_profile(file.where, profile)
    return replace(profile, fits=errors(profile, file))


def errors(profile: Profile, file: PointsFile) -> tuple[PhaseFit, ...]:
    """How well the profile tells these points, by phase; phases without points are left out."""
    found = []
    for phase in ("prefill", "decode", "mixed"):
        if points := [point for point in file.points if point.phase == phase]:
            found.append(_error(profile, phase, points))
    return tuple(found)


def _error(profile: Profile, phase: str, points: Sequence[Point]) -> PhaseFit:
    true = np.array([point.latency_s for point in points])
    told = np.array([_told_s(profile, point) for point in points])
    off = np.abs(told / true - 1) * 100
    spread = float(((true - true.mean()) ** 2).sum())
    r2 = 1 - float(((true - told) ** 2).sum()) / spread if spread else 0.0
    return PhaseFit(phase, len(points), round(float(off.mean()), 2), round(float(off.max()), 2), round(r2, 4))


def _told_s(profile: Profile, point: Point) -> float:
    decodes = 0.0 if point.phase == "prefill" else point.batch_requests
    return step_s(profile, point.prompt_tokens, point.prompt_square_tokens2, decodes, point.context_tokens)


def _grid(points: Sequence[Point]) -> Grid:
    decoding = [point for point in points if point.phase != "prefill"]
    return Grid(
        prompt_tokens=max(point.prompt_tokens for point in points),
        batch_requests=max(point.batch_requests for point in decoding),
        context_tokens=max(point.context_tokens for point in decoding),
    )


def _prompts(point: Point) -> tuple[float, float]:
    return point.prompt_tokens, point.prompt_square_tokens2


def _decodes(point: Point) -> tuple[float, float]:
    return point.batch_requests, point.context_tokens


def _coefficients(where: str, phase: str, points: Sequence[Point], terms: Terms) -> Coefficients:
    work = np.array([(1.0, *terms(point)) for point in points]).reshape(-1, 3)
    if len(np.unique(work, axis=0)) < LEAST_POINTS:
        reason = f"{len(np.unique(work, axis=0))} different {phase} steps are too few; measure at least {LEAST_POINTS}"
        raise ConfigError(where, "rows", reason)
    scale = work.max(axis=0)
    if not scale.all() or np.linalg.matrix_rank(work / scale, tol=1e-6) < 3:
        reason = f"the {phase} steps do not vary independently; measure other lengths, and batches at several contexts"
        raise ConfigError(where, "rows", reason)
    times = np.array([point.latency_s for point in points])
    found = non_negative(work / scale / times[:, None], np.ones(len(points))) / scale
    return float(found[0]), float(found[1]), float(found[2])


def non_negative(matrix: Array, target: Array) -> Array:
    """The x >= 0 that minimises |matrix x - target|. Exact: of every subset of columns the free solution, best kept.

    (At the optimum the positive entries solve the free problem on their own columns.) For few columns.
    """
    best, least = np.zeros(matrix.shape[1]), float(target @ target)
    for size in range(1, matrix.shape[1] + 1):
        for columns in map(list, combinations(range(matrix.shape[1]), size)):
            solution = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
            rest = matrix[:, columns] @ solution - target
            if (solution >= 0).all() and float(rest @ rest) < least:
                best, least = np.zeros(matrix.shape[1]), float(rest @ rest)
                best[columns] = solution
    return best
