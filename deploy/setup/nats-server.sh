#!/usr/bin/env bash
# Prints the path of a nats-server; unpacks one into .tools where there is none. Needs no root and installs nothing
# system-wide: Debian's package, once installed, starts a broker on port 4222.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

find_server() {
    # /usr/sbin: Debian puts it there, outside an ordinary user's PATH.
    local candidate
    for candidate in "${NATS_SERVER_BIN:-}" "$(command -v nats-server || true)" /usr/sbin/nats-server \
        "$TOOLS/bin/nats-server"; do
        if [ -n "$candidate" ] && "$candidate" --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

[ -z "${NATS_SERVER_BIN:-}" ] || "$NATS_SERVER_BIN" --version >/dev/null 2>&1 ||
    die "NATS_SERVER_BIN=$NATS_SERVER_BIN does not run"

find_server && exit
say "nats-server: none found, unpacking Debian's package into .tools"
if (unpack_debian nats-server nats usr/sbin/nats-server); then
    find_server && exit
fi
die "nats-server 2.9 or newer is needed and could not be fetched. One of:" "" \
    "  macOS           brew install nats-server" \
    "  Debian, Ubuntu  sudo apt-get update, then make setup again" \
    "  any machine     unpack a release archive of the nats-server project (github.com/nats-io/nats-server/releases)," \
    "                  check its sha256, and put the binary at .tools/bin/nats-server" "" \
    "Or name one: NATS_SERVER_BIN=/path/to/nats-server make setup"
