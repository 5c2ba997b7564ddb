#!/bin/sh
# Makes a certificate authority for development and a certificate of the broker, for tls.conf:
#
#   deploy/nats/dev-ca.sh [DIR [NAME...]]      DIR: deploy/nats/tls     NAME: more names or addresses of the broker
#
# ca.crt goes to every service and client (cluster.nats_ca_file), server.crt and server.key to the broker. The CA's own
# key is not kept: whoever runs this again gets a new CA. For development and tests; a real broker's certificate comes
# from the CA that you have. Needs openssl.
set -eu
umask 077
dir=${1:-$(dirname "$0")/tls}
[ $# -eq 0 ] || shift
command -v openssl >/dev/null || { echo "dev-ca.sh: openssl is missing (Debian: apt-get install openssl)" >&2; exit 1; }
mkdir -p "$dir"
names=DNS:nats,DNS:localhost,IP:127.0.0.1,IP:::1
for name in "$@"; do
  case $name in
    *[!0-9.]*) names=$names,DNS:$name ;;
    *) names=$names,IP:$name ;;
  esac
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ec="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
# shellcheck disable=SC2086
openssl req -x509 $ec -keyout "$work/ca.key" -out "$work/ca.crt" -days 365 -subj "/CN=DOPD development CA" \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" 2>"$work/said" \
  || { cat "$work/said" >&2; exit 1; }
# shellcheck disable=SC2086
openssl req $ec -keyout "$work/server.key" -out "$work/server.csr" -subj "/CN=nats" 2>"$work/said" \
  || { cat "$work/said" >&2; exit 1; }
printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' "$names" >"$work/extensions"
openssl x509 -req -in "$work/server.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -days 365 \
  -extfile "$work/extensions" -out "$work/server.crt" 2>"$work/said" || { cat "$work/said" >&2; exit 1; }
mv "$work/ca.crt" "$work/server.crt" "$work/server.key" "$dir"
chmod 644 "$dir/ca.crt" "$dir/server.crt"
chmod 755 "$dir"
echo "$dir: ca.crt, server.crt and server.key for $names, valid for a year"
