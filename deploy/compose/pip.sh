#!/bin/sh
# pip of an environment, in a build: pip.sh DIR ARGUMENTS. Behind a proxy with an authority of its own, the build secret
# `ca` holds the certificates to trust; else it is empty.
set -eu
if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi
env=$1
shift
exec "$env/bin/python3" -m pip --disable-pip-version-check --no-input "$@"
