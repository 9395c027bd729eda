#!/bin/sh
# Say at once what is wrong when the Docker socket is mounted and this user may not use it, then run the command.
say() {
    if [ "${LLMPROXY_LOG_FORMAT:-}" = json ]; then
        printf '{"time":"%s","level":"warn","logger":"llmproxy.entrypoint","message":"%s"}\n' \
            "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(printf %s "$1" | sed 's/[\\"]/\\&/g' | tr -d '\000-\037\177')"
    else
        echo "llmproxy: $1"
    fi >&2
}
socket=/var/run/docker.sock
case ${DOCKER_HOST:-} in
unix://*) socket=${DOCKER_HOST#unix://} ;;
esac
if [ -S "$socket" ] && ! [ -w "$socket" ]; then
    gid=$(stat -L -c %g "$socket")
    say "$socket belongs to group $gid, and this container (groups $(id -G)) may not use it."
    say "put DOCKER_GID=$gid into .env and bring the launcher up again."
fi
exec "$@"
