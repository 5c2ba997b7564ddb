# Shared by the set-up scripts; sourced, not run.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
VENV=$ROOT/.venv
PYTHON=$VENV/bin/python
TOOLS=$ROOT/.tools

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

# apt with package lists of our own in $1, so that neither root nor the system's state is needed.
private_apt() {
    local work=$1; shift
    apt-get -q -o Dir::State::lists="$work/lists" -o Dir::Cache="$work" \
        -o Dir::Cache::archives="$work/archives" -o APT::Sandbox::User= "$@" >&2
}

# unpack_debian PACKAGE FOLDER PROGRAM... unpacks Debian's package into .tools/FOLDER, without its dependencies, and
# links these programs of it into .tools/bin. Needs no root; run it in a subshell.
unpack_debian() {
    local package=$1 folder=$2 work=$TOOLS/apt-$1 program; shift 2
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    mkdir -p "$work/lists/partial" "$work/archives/partial" "$TOOLS/bin"
    cd "$work"
    rm -f "$package"_*.deb
    # The system's lists first (a second); they are empty in most images, then fetch private ones.
    apt-get -q -o APT::Sandbox::User= download "$package" >&2 2>/dev/null || {
        say "fetching package lists"
        private_apt "$work" update || true # a foreign source that fails must not stop us
        private_apt "$work" download "$package" || return 1
    }
    dpkg -x "$package"_*.deb "$TOOLS/$folder"
    for program in "$@"; do
        ln -sfn "../$folder/$program" "$TOOLS/bin/$(basename "$program")"
    done
    rm -rf "$work"
}
