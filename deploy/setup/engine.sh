#!/usr/bin/env bash
# Prints the engine for this machine: gpu, cpu or sim. ENGINE overrides.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

case ${ENGINE:-} in
    gpu | cpu | sim) echo "$ENGINE" ;;
    "")
        if nvidia-smi -L 2>/dev/null | grep -q GPU; then
            echo gpu
        elif [ "$(uname -sm)" = "Linux x86_64" ]; then
            echo cpu
        else
            say "no vLLM packages are pinned for $(uname -sm): simulated engine only (real engines: the container images)"
            echo sim
        fi
        ;;
    *) die "ENGINE is gpu, cpu or sim, not '$ENGINE'" ;;
esac
