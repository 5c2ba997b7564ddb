# Shared by the set-up scripts; sourced, not run.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
VENV=$ROOT/.venv
PYTHON=$VENV/bin/python

say() { echo "==> $*" >&2; }
die() { printf '%s\n' "$@" >&2; exit 1; }

pip_install() { "$PYTHON" -m pip install --no-deps --disable-pip-version-check --no-input "$@" >&2; }

# once NAME FILES WORD... runs `install_NAME` unless a stamp says that it ran with these very files and words.
once() {
    local name=$1 files=$2; shift 2
    local stamp=$VENV/.stamp-$name key
    # shellcheck disable=SC2086 # files is a list
    key="$(cd "$ROOT" && cksum $files) $*"
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ] && return
    rm -f "$stamp"
    "install_$name"
    echo "$key" >"$stamp"
}
