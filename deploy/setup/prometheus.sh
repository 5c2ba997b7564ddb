#!/usr/bin/env bash
# Prints the folder of a prometheus and its promtool; unpacks Debian's package into .tools where there is none. Only the
# tests of dashboards and alerts need them. Needs no root, and starts nothing.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

find_folder() {
    local candidate
    for candidate in "${PROMETHEUS_BIN:-}" "$(dirname "$(command -v prometheus || true)")" "$TOOLS/bin"; do
        if "$candidate/prometheus" --version >/dev/null 2>&1 && "$candidate/promtool" --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

find_folder && exit
say "prometheus: none found, unpacking Debian's package into .tools (19 MB to download)"
if (unpack_debian prometheus prometheus usr/bin/prometheus usr/bin/promtool); then
    find_folder && exit
fi
die "prometheus and promtool 2.42 or newer are needed for the tests of dashboards and alerts, and could not be fetched." \
    "Put both into .tools/bin, or name their folder: PROMETHEUS_BIN=/path/to/folder"
