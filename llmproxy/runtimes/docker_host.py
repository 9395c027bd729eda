"""Where the Docker engine is, as far as it can be said without asking it."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.interface import RuntimeUnavailable

__all__ = ["docker_host", "host_address", "require_socket"]

DEFAULT_HOST = "unix:///var/run/docker.sock"


def docker_host(settings: DockerSettings) -> str:
    """Where the engine is, in ``DOCKER_HOST`` form: the setting, else the environment, else the default."""
    return settings.host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST


def host_address(host: str) -> str:
    """The address at which ports published by that engine are reached."""
    parts = urlsplit(host)
    if parts.scheme in ("tcp", "http", "https", "ssh") and parts.hostname not in (None, "", "0.0.0.0", "::"):
        return str(parts.hostname)
    return "127.0.0.1"


def require_socket(host: str) -> None:
    """See whether an engine may be there at all.

    :param host: in ``DOCKER_HOST`` form; one across a network may always be there.
    :raises RuntimeUnavailable: there is no such socket.
    """
    if not host.startswith("unix:"):
        return
    try:
        os.stat(urlsplit(host).path)
    except PermissionError:
        return  # something is there, and who tries to use it is told what is wrong
    except OSError as error:
        raise RuntimeUnavailable(
            f"the Docker engine at {host} does not answer: {os.strerror(error.errno or 0)}"
        ) from error
