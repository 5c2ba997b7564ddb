#!/usr/bin/env bash
# Writes the locks from the *.in files: one joint resolve, then one file for each thing that is installed on its own.
# Needs uv on PATH, and a place where uv finds torch's CPU build (README.md).
set -euo pipefail
export LC_ALL=C # comm and sort must agree on an order
cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

resolve() { # resolve OUT [uv options] FILE.in...; pins that OUT already holds are kept where they fit
    local out=$1; shift
    uv pip compile --quiet --no-header --no-annotate --python-version 3.11 \
        --python-platform x86_64-manylinux_2_28 --output-file "$out.txt" "$@" >/dev/null
    sort "$out.txt" >"$out"
}

write() { # write NAME TITLE < pins
    { echo "# $2"; echo "# Written by compile.sh for Python 3.11, Linux x86-64; install with --no-deps."; cat; } >"$1.txt"
    echo "$1.txt: $(grep -c == "$1.txt") pins"
}

resolve "$tmp/all" --excludes excludes.txt base.in dev.in cpu.in
resolve "$tmp/base" --constraint "$tmp/all" base.in
resolve "$tmp/dev" --constraint "$tmp/all" base.in dev.in
resolve "$tmp/cpu" --constraint "$tmp/all" --excludes excludes.txt base.in cpu.in

# vLLM's GPU build pins some packages otherwise than its CPU build: start from the CPU pins, and let only those move.
# torch comes from PyPI here, so uv must not see the CPU build.
grep -v '^torch==' "$tmp/all" >"$tmp/gpu.txt"
unset UV_FIND_LINKS UV_TORCH_BACKEND
resolve "$tmp/gpu" --constraint "$tmp/base" base.in gpu.in

write base "What every service, the simulated engine and the load generator need." <"$tmp/base"
comm -13 "$tmp/base" "$tmp/dev" | write dev "What dev adds to base.txt."
comm -13 "$tmp/base" "$tmp/cpu" | grep -v '^torch==' | write cpu "What the CPU engine adds to base.txt; torch apart, in torch-cpu.txt."
grep '^torch==' "$tmp/cpu" | write torch-cpu "torch's CPU build, which PyPI does not have."
comm -13 "$tmp/base" "$tmp/gpu" | write gpu "What the GPU engine adds to base.txt. Resolved, not yet run."
