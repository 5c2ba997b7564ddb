#!/usr/bin/env bash
# Makes .venv from a Python 3.11. PYTHON311 names one; else the first that works is taken.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

is_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

how_to_get() {
    die "$1" "" \
        "  Debian 12       sudo apt-get install -y python3.11 python3.11-venv" \
        "  Ubuntu          the same packages, from the deadsnakes PPA where your release has no Python 3.11" \
        "  Fedora          sudo dnf install -y python3.11" \
        "  macOS           brew install python@3.11" \
        "  anywhere (uv)   uv venv --seed --python 3.11 .venv" "" \
        "Or name one: make setup PYTHON311=/path/to/python3.11"
}

if [ -x "$PYTHON" ] && is_311 "$PYTHON" && "$PYTHON" -m pip --version >/dev/null 2>&1; then
    exit
fi
[ ! -e "$VENV" ] || die "$VENV exists and is no working Python 3.11 environment with pip. Remove it, then run make setup again."

candidates=(python3.11 /usr/bin/python3.11 python3 python)
[ -z "${PYTHON311:-}" ] || candidates=("$PYTHON311")
found=
for candidate in "${candidates[@]}"; do
    is_311 "$candidate" || continue
    found=$candidate
    # Debian splits venv off: the module imports, but ensurepip is missing.
    "$candidate" -c 'import venv, ensurepip' 2>/dev/null || continue
    say "environment: $candidate ($("$candidate" --version)) -> .venv"
    "$candidate" -m venv "$VENV"
    exit
done
[ -z "$found" ] || how_to_get "$found has no venv module (python3.11-venv on Debian)."
how_to_get "Python 3.11 is needed and was not found: the pinned engine was run on 3.11 only."
