#!/bin/sh
# Serve docker-compose.yml's models, or the built-in demo models when no Docker engine answers.
#   PORT=8000 or LISTEN=tcp:8000 (any Twisted endpoint string); further arguments go to `twistd llmproxy`.
set -eu
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin

set -a
. ./.env
set +a

listen=${LISTEN:-${PORT:+tcp:$PORT}}
# The command line beats llmproxy.yaml, so it is only used when something was asked for.
[ -z "$listen" ] || set -- --listen "$listen" "$@"

# docker.from_env() honours DOCKER_HOST as the proxy itself does.
if why=$("$bin/python" -W ignore 2>&1 <<'PY'
import sys

import docker

try:
    docker.from_env(timeout=5).ping()
except Exception as error:  # whatever it is, the demo can be served
    known = {
        "FileNotFoundError": "its socket does not exist",
        "PermissionError": "this user may not use its socket",
        "ConnectionRefusedError": "nothing listens on its socket",
        "NewConnectionError": "nothing listens at DOCKER_HOST",
    }
    sys.exit(next((words for name, words in known.items() if name in str(error)), str(error)[:200]))
PY
); then
    echo "Docker answers: serving the models of docker-compose.yml on ${listen:-tcp:8000}." >&2
    COMPOSE_FILE=${COMPOSE_FILE:-docker-compose.yml}
    export COMPOSE_FILE
else
    echo "No Docker engine answers ($why): serving the built-in demo models on ${listen:-tcp:8000}." >&2
    set -- --demo "$@"
fi
exec "$bin/twistd" -n --pidfile= llmproxy "$@"
