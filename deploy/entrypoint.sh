#!/bin/sh
# Say at once what is wrong when the Docker socket is mounted and this user may not use it, then run the command.
socket=/var/run/docker.sock
case ${DOCKER_HOST:-} in
unix://*) socket=${DOCKER_HOST#unix://} ;;
esac
if [ -S "$socket" ] && ! [ -w "$socket" ]; then
    gid=$(stat -L -c %g "$socket")
    echo "llmproxy: $socket belongs to group $gid, and this container (groups $(id -G)) may not use it." >&2
    echo "llmproxy: put DOCKER_GID=$gid into .env and bring the launcher up again." >&2
fi
exec "$@"
