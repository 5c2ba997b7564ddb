"""The environment that vLLM and LMCache must find before they are imported.

Consumes the model's name and whether this machine computes on a GPU; produces entries in `os.environ`, which the
engine's child processes inherit. What the user has set stays as it is.
"""

import importlib.metadata
import os
from collections.abc import MutableMapping
from pathlib import Path

COMMON = {
    # EngineCore stays a child process, but it starts no further one for the single model worker.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Never fork: this process has threads and an event loop.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Its warnings at start (no Triton, no tcmalloc, a scheduler of our own) are normal here.
    "VLLM_LOGGING_LEVEL": "ERROR",
    "LMCACHE_LOG_LEVEL": "WARNING",
    "LMCACHE_TRACK_USAGE": "false",
    "LMCACHE_DISABLE_BANNER": "1",
    # Engines that share KV must hash alike.
    "PYTHONHASHSEED": "0",
}
# Several engines share the cores, so none of them may pin threads to all.
CPU_ONLY = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
LOCAL_MODEL = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def on_cpu() -> bool:
    """Whether the CPU build of vLLM is the one installed (both builds are imported as `vllm`)."""
    return any(d.metadata["Name"] == "vllm-cpu" for d in importlib.metadata.distributions())


def prepare(model: str, cpu: bool | None = None, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what is missing. Call it before the first import of vLLM or LMCache."""
    wanted = dict(COMMON)
    if on_cpu() if cpu is None else cpu:
        wanted |= CPU_ONLY
    if Path(model).is_dir():
        wanted |= LOCAL_MODEL
    for key, value in wanted.items():
        environ.setdefault(key, value)
