"""What a step time can be at all. Pure; consumes a point or the points of a phase, raises ConfigError for nonsense.

The defect that this is against: milliseconds read as seconds, or the reverse. It made the authors' planner a thousand
times wrong (algorithms.md 1.7), and no later stage can notice it.
"""

from collections.abc import Sequence
from typing import Protocol

from dopd.errors import ConfigError

SHORTEST_STEP_S = 0.5e-3
"""Scheduling, launching and sampling alone take an engine about a millisecond; a GPU's 5 to 300 ms step written as
seconds into a column of milliseconds comes out below."""
MOST_TOKENS_PER_S = 10e6
"""A model of 50 million parameters at a petaflop/s. GPUs and models worth serving do up to 0.2 million."""
LONGEST_DECODE_S = 2.0
"""Reading the weights of a 70B model in bf16 at 70 GB/s. Nothing slower serves anybody; a GPU's 4 to 100 ms decode
step written as milliseconds into a column of seconds comes out above."""
LEAST_TOKENS_PER_S = 20.0
"""Prefill on top of that: an 8B model on a few CPU cores. A GPU's fixed 15 ms for a prompt of 100 tokens, as seconds,
is 7."""


class Step(Protocol):
    """What `Point` has."""

    @property
    def phase(self) -> str: ...
    @property
    def prompt_tokens(self) -> float: ...
    @property
    def prompt_square_tokens2(self) -> float: ...
    @property
    def batch_requests(self) -> float: ...
    @property
    def context_tokens(self) -> float: ...
    @property
    def latency_s(self) -> float: ...


def check_step(where: str, step: Step) -> None:
    """Raises ConfigError for a step that cannot have been: no work, work of another phase, an absurd speed."""
    if step.batch_requests <= 0:
        raise ConfigError(where, "batch_requests", f"{step.batch_requests:g} requests do nothing; give at least 1")
    if (step.phase == "decode") != (step.prompt_tokens == 0):
        raise ConfigError(
            where, "prompt_tokens", f"{step.prompt_tokens:g} in a {step.phase} step; see docs/profiles.md"
        )
    if step.phase == "prefill" and step.context_tokens:
        raise ConfigError(where, "context_tokens", "a prefill step decodes nothing; give 0, or make it mixed")
    # b^2 - a^2 >= (b - a)^2, and n prompts of the same tokens together have the smallest sum of squares.
    least = step.prompt_tokens**2 / step.batch_requests if step.phase == "prefill" else step.prompt_tokens
    if step.prompt_square_tokens2 < 0.999 * least:
        raise ConfigError(where, "prompt_square_tokens2", f"below {least:.0f}, the least for these prompts")
    check_speed(where, "latency_s", step.prompt_tokens, step.batch_requests, step.latency_s)


def check_speed(where: str, key: str, prompt_tokens: float, requests: float, latency_s: float) -> None:
    """Raises ConfigError when no engine can be so fast or so slow."""
    shortest_s = max(SHORTEST_STEP_S, prompt_tokens / MOST_TOKENS_PER_S)
    longest_s = LONGEST_DECODE_S + prompt_tokens / LEAST_TOKENS_PER_S
    work = f"{latency_s:g} s for {prompt_tokens:g} prompt tokens, {requests:g} requests"
    if latency_s < shortest_s:
        reason = f"{work} is faster than any engine ({shortest_s:g} s)"
        raise ConfigError(where, key, f"{reason}; seconds taken for milliseconds?")
    if latency_s > longest_s:
        reason = f"{work} is slower than any engine ({longest_s:g} s)"
        raise ConfigError(where, key, f"{reason}; milliseconds taken for seconds?")


def check_growth(where: str, phase: str, steps: Sequence[Step]) -> None:
    """Raises ConfigError when more work does not take longer: columns mixed up, or one number for all rows."""
    if len(steps) < 2:
        return  # too few to tell; the fit refuses them
    latencies = [step.latency_s for step in steps]
    work = [[step.prompt_tokens for step in steps]]
    if phase == "decode":
        work = [[step.batch_requests for step in steps], [step.context_tokens for step in steps]]
    if all(_covariance(axis, latencies) <= 0 for axis in work):
        raise ConfigError(where, "latency_s", f"does not grow with the work of the {phase} steps; columns mixed up?")


def _covariance(left: Sequence[float], right: Sequence[float]) -> float:
    mean_left, mean_right = sum(left) / len(left), sum(right) / len(right)
    return sum((x - mean_left) * (y - mean_right) for x, y in zip(left, right, strict=True))
