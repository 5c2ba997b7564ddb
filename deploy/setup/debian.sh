#!/usr/bin/env bash
# debian.sh SUITE DIR PACKAGE...   unpacks packages of that Debian release into DIR, without root and without installing
# them: for tools that a test wants and the machine lacks. Asks the mirror that the system's own sources name.
set -euo pipefail
suite=$1 dir=$2; shift 2
command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "no apt-get or dpkg here" >&2; exit 1; }
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null || true; } |
    { grep -v '^#' | grep -oE 'https?://[^ ]+/debian/?( |$)' || true; } | sed -n '1s/ *$//p')
[ -n "$mirror" ] && [ -f "$keyring" ] || { echo "the system's sources name no Debian mirror" >&2; exit 1; }

apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt"/lists/partial "$apt"/archives/partial "$dir"
echo "deb [signed-by=$keyring] $mirror $suite main" >"$apt/sources.list"
options=(-qq -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$apt/lists"
    -o Dir::Cache="$apt" -o Dir::Cache::archives="$apt/archives" -o APT::Sandbox::User= -o Acquire::http::Timeout=20)
apt-get "${options[@]}" update >&2
(cd "$apt" && apt-get "${options[@]}" download "${@/%//$suite}" >&2)
for package in "$apt"/*.deb; do dpkg -x "$package" "$dir"; done
