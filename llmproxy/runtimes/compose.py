"""Creates a missing container from the compose file that describes it."""

from __future__ import annotations

import os
import shutil
import subprocess

from llmproxy.config.model import DockerSettings
from llmproxy.runtimes.interface import StartRefused

__all__ = ["CREATE_TIMEOUT", "create_service", "find_compose"]

CREATE_TIMEOUT = 1800.0
"""Seconds for ``up --no-start``: it pulls the image, 10 GB for vLLM."""
_VERSION_TIMEOUT = 20.0
_FOUND_BY_ITSELF = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
"""Names that Compose looks for (Compose specification, "The Compose file")."""


def _environment(settings: DockerSettings) -> dict[str, str]:
    environment = dict(os.environ)
    if settings.host:
        environment["DOCKER_HOST"] = settings.host
    return environment


def find_compose(settings: DockerSettings) -> tuple[str, ...] | None:
    """The command that is Compose here: the plugin of the ``docker`` command, else ``docker-compose``."""
    if shutil.which("docker"):
        try:
            subprocess.run(
                ["docker", "compose", "version"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_VERSION_TIMEOUT,
                check=True,
                env=_environment(settings),
            )
            return ("docker", "compose")
        except (OSError, subprocess.SubprocessError):
            pass
    return ("docker-compose",) if shutil.which("docker-compose") else None


def create_service(settings: DockerSettings, service: str) -> None:
    """Create the container of that service, and neither start it nor touch others.  Blocks.

    A service that is named on the command line has its profiles enabled by that (Compose specification,
    "profiles"), in Compose 1.29 as in 2.

    :raises StartRefused: Compose is not there, or says no.
    """
    file = settings.compose_file
    assert file is not None
    # The path is of no use on the host when this runs in a container.
    name = os.path.basename(file)
    named = "" if name in _FOUND_BY_ITSELF else f"-f {name} "
    by_hand = f"Try it by hand in the compose file's folder: docker compose {named}up --no-start {service}"
    command = find_compose(settings)
    if command is None:
        raise StartRefused(f"service {service!r} has no container yet, and there is no Compose here", by_hand)
    try:
        done = subprocess.run(
            [*command, "-f", file, "up", "--no-start", "--no-deps", service],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CREATE_TIMEOUT,
            check=False,
            env=_environment(settings),
        )
    except subprocess.TimeoutExpired as error:
        raise StartRefused(
            f"Compose did not create service {service!r} within {CREATE_TIMEOUT:g} s", by_hand
        ) from error
    except OSError as error:
        raise StartRefused(f"Compose cannot be run: {error.strerror}", by_hand) from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = " ".join(" ".join(lines[-3:]).split())[:500] or f"exit status {done.returncode}"
        raise StartRefused(f"Compose could not create service {service!r}: {said}", by_hand)
