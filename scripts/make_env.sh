#!/bin/sh
# Have a .env with a key in it: made from .env.example when it is missing, and a key minted when it has none.
# What stands in an existing .env is never changed. The key is not printed.
set -eu
cd "$(dirname "$0")/.."
umask 077

if [ ! -e .env ]; then
    cp .env.example .env
    chmod 600 .env
    socket=/var/run/docker.sock
    gid=$([ -S "$socket" ] && stat -L -c %g "$socket" 2>/dev/null || echo 0)
    # Group 0 is given to the launcher anyway: Docker Desktop's socket has it.
    [ "$gid" = 0 ] || echo "DOCKER_GID=$gid" >>.env
    echo "Wrote .env (from .env.example)." >&2
fi
if ! grep -Eq '^[[:space:]]*(export[[:space:]]+)?VLLM_API_KEY=.' .env; then
    key=$(openssl rand -hex 32 2>/dev/null || head -c32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
    if grep -Eq '^VLLM_API_KEY=' .env; then
        sed "s/^VLLM_API_KEY=.*/VLLM_API_KEY=$key/" .env >.env.new && cat .env.new >.env && rm -f .env.new
    else
        echo "VLLM_API_KEY=$key" >>.env
    fi
    echo "Minted a fresh VLLM_API_KEY in .env." >&2
fi
