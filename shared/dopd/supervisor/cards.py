"""GPUs of this machine, and which worker gets which.

Consumes the environment and `nvidia-smi`; produces card names for CUDA_VISIBLE_DEVICES, and the share of a card's
memory that one worker may take.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from math import ceil

from dopd.config import Config

MEMORY_SHARE = 0.9  # of a card, for all its workers together


def cards_for(config: Config, env: Mapping[str, str] = os.environ) -> list[str]:
    """The cards that the config's workers run on; none where they do not compute on GPUs."""
    if config.engine.kind != "vllm":
        return []
    from dopd.engine.vllm import environment

    return [] if environment.on_cpu() else cards(env)


def cards(env: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that may be used, as CUDA names them; none where there is no driver."""
    if "CUDA_VISIBLE_DEVICES" in env:
        return [name.strip() for name in env["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    try:
        shown = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(n) for n, _ in enumerate(line for line in shown.stdout.splitlines() if line.startswith("GPU "))]


def card_of(number: int, names: Sequence[str]) -> str:
    """The card of the worker with that number, in turn."""
    return names[number % len(names)]


def shared(workers: int, names: Sequence[str]) -> bool:
    """Whether some card carries more than one worker."""
    return 0 < len(names) < workers


def memory_share(workers: int, names: Sequence[str]) -> float:
    """What one worker may take of its card; 0, the engine's own choice, where it has the card alone."""
    return round(MEMORY_SHARE / ceil(workers / len(names)), 3) if shared(workers, names) else 0.0
