#!/bin/sh
# Builds and starts the containers, and waits until they are ready. Makes .env with the broker's passwords first, if there
# is none. Arguments go to `docker compose up`; COMPOSE_FILE=compose.yaml:compose.gpu.yaml for real engines.
set -eu
cd "$(dirname "$0")"
if [ ! -e .env ]; then
    (umask 077 && { cat .env.example && ../nats/passwords.sh; } >.env.new && mv .env.new .env)
    echo "made deploy/compose/.env with new passwords of the broker's users" >&2
fi
exec docker compose up --build --detach --wait "$@"
