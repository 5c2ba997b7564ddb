"""Stand-ins for base images, under the same tags, where no registry is reachable: for tests alone, of a private engine.

Consumes this machine's own Python, nats-server and libraries, and Debian's static busybox; produces tar files for
`docker import`. They are as much of the real images as our Dockerfile and health checks use.
"""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dopd.bus.server import find_nats_server

ROOT = Path(__file__).parents[2]
APPLETS = ("sh", "mkdir", "chown", "chmod", "wget", "cat", "ls", "env", "rm", "id")
FOR_WHEELS = (
    "libm.so.6", "libdl.so.2", "librt.so.1", "libutil.so.1", "libpthread.so.0", "libresolv.so.2", "libnss_dns.so.2",
    "libnss_files.so.2", "libgcc_s.so.1", "libstdc++.so.6", "libz.so.1", "libgomp.so.1", "libnuma.so.1",
)  # fmt: skip
"""What binary wheels expect of a system."""
NOT_IN_IMAGES = ("site-packages", "dist-packages", "test", "__pycache__", "idlelib", "turtledemo")


def python_image(folder: Path) -> Path:
    """A file system with this Python under /usr/local."""
    root = _system(folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    prefix = Path(sys.base_prefix)
    binary = root / "usr/local/bin" / version
    shutil.copy2((prefix / "bin" / version).resolve(), binary)
    for name in ("python3", "python"):
        (binary.parent / name).symlink_to(version)
    library = root / "usr/local/lib" / version
    shutil.copytree(
        prefix / "lib" / version, library, symlinks=False, ignore=shutil.ignore_patterns(*NOT_IN_IMAGES, "config-3*")
    )
    wheels = Path("/usr/share/python-wheels")  # Debian keeps ensurepip's there
    if wheels.is_dir():
        shutil.copytree(wheels, root / "usr/share/python-wheels", dirs_exist_ok=True)
    _libraries(root, [binary, *library.glob("lib-dynload/*.so")])
    if lscpu := shutil.which("lscpu"):  # vLLM's CPU build asks it
        shutil.copy2(lscpu, root / "bin/lscpu")
        _libraries(root, [root / "bin/lscpu"])
    system = Path("/lib") / f"{platform.machine()}-linux-gnu"
    _libraries(root, [file for name in FOR_WHEELS if (file := system / name).exists()])
    return root


def broker_image(folder: Path) -> Path:
    """A file system with nats-server."""
    root = _system(folder)
    binary = root / "usr/local/bin/nats-server"
    shutil.copy2(find_nats_server().resolve(), binary)
    _libraries(root, [binary])
    return root


def _system(folder: Path) -> Path:
    """What every image has: a shell, a name service, certificates, a place for temporary files."""
    root = folder / "root"
    for name in ("bin", "usr/local/bin", "usr/local/lib", "etc/ssl/certs", "proc", "sys", "dev", "run", "root", "opt"):
        (root / name).mkdir(parents=True)
    for name in ("tmp", "var/tmp"):
        (root / name).mkdir(parents=True)
        (root / name).chmod(0o1777)
    (root / "usr/bin").symlink_to("../bin")
    busybox = folder / "busybox"
    subprocess.run([ROOT / "deploy/setup/debian.sh", "bookworm", busybox, "busybox-static"], check=True, timeout=120)
    shutil.copy2(busybox / "bin/busybox", root / "bin/busybox")
    for name in APPLETS:
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    if certificates.is_file():
        shutil.copy2(certificates, root / "etc/ssl/certs/ca-certificates.crt")
    return root


def _libraries(root: Path, files: list[Path]) -> None:
    """The shared libraries of these programs and libraries, where the loader looks for them."""
    wanted: set[Path] = {file for file in files if not file.is_relative_to(root)}
    for file in files:
        told = subprocess.run(["ldd", file], capture_output=True, text=True, timeout=10, check=False).stdout
        wanted |= {Path(path) for path in re.findall(r"(/\S+) \(0x", told)}
    for path in wanted:
        here = path.parent if path.is_relative_to("/lib") or path.is_relative_to("/lib64") else Path("/usr/local/lib")
        to = root / here.relative_to("/") / path.name
        if not to.exists():
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path.resolve(), to)
