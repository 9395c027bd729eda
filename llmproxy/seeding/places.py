"""Where a backend's server would run: its image, or its Python, with what it sees there.  Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from llmproxy.config.compose import ComposeService
from llmproxy.config.model import BackendSpec

__all__ = ["Place", "container_body", "of_compose", "of_container", "of_image", "shebang"]

_OWN = ("PATH", "HOSTNAME", "HOME")
"""What the image says of itself, and what Docker sets."""


@frozen
class Place:
    """A container as it is to be made for the download.

    :ivar args: the server's own command line, from which the models are read.
    :ivar volumes: as ``docker run -v`` takes them.
    :ivar volumes_from: a container whose volumes it gets.
    """

    image: str
    args: tuple[str, ...]
    environment: Mapping[str, str] = field(factory=dict, repr=False)
    volumes: tuple[str, ...] = ()
    volumes_from: str | None = None
    user: str = ""
    network: str | None = None


def of_container(info: Mapping[str, Any]) -> Place:
    """A container that is there, as the engine tells of it (``ContainerInspect``)."""
    config, host = info.get("Config") or {}, info.get("HostConfig") or {}
    pairs = (str(pair).partition("=") for pair in config.get("Env") or ())
    network = str(host.get("NetworkMode") or "")
    return Place(
        image=str(info.get("Image") or config.get("Image")),
        args=(*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())),
        environment={name: value for name, _, value in pairs if name not in _OWN},
        # Whatever kind they are of, and also when it does not run.
        volumes_from=str(info["Id"]),
        user=str(config.get("User") or ""),
        # One that it shares with a container may be gone; any other is how it reaches the hub.
        network=None if not network or network.startswith("container:") else network,
    )


def of_compose(service: ComposeService, folder: str, project: str, home: str) -> Place:
    """A service of a compose file.

    :param folder: that of the file, from which relative paths lead.
    """
    return Place(
        image=service.image or "",
        args=service.args,
        environment=service.environment,
        volumes=tuple(_volume(each, folder, project, home) for each in service.volumes),
    )


def _volume(volume: str, folder: str, project: str, home: str) -> str:
    source, colon, rest = volume.partition(":")
    if not colon:
        return volume
    if source.startswith("."):
        source = posixpath.normpath(posixpath.join(folder, source))
    elif source.startswith("~"):
        source = home + source[1:]
    elif "/" not in source and not source.startswith("$"):
        source = f"{project}_{source}"  # a volume by its name, which Compose calls so
    return f"{source}:{rest}"


def of_image(spec: BackendSpec, entrypoint: Sequence[str]) -> Place:
    """A backend that llmproxy would create itself.

    :param entrypoint: of the image.
    """
    return Place(spec.image or "", (*entrypoint, *spec.args), spec.environment, spec.volumes)


def container_body(place: Place, script: str, order: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The body of ``POST /containers/create`` (Docker Engine API).

    :param script: what Python runs in it, with ``order`` as its argument.
    :param environment: what is added to its own.
    """
    host: dict[str, Any] = {
        # The engine removes it when it ends, also when nobody is there any more to do so.
        "AutoRemove": True,
        "Init": True,
        "Binds": list(place.volumes),
        "SecurityOpt": ["no-new-privileges:true"],
    }
    if place.volumes_from is not None:
        host["VolumesFrom"] = [place.volumes_from]
    if place.network is not None:
        host["NetworkMode"] = place.network
    return {
        "Image": place.image,
        "Entrypoint": ["python3", "-c", script],
        "Cmd": [order],
        "Env": [f"{name}={value}" for name, value in {**place.environment, **environment}.items()],
        "User": place.user,
        "Labels": {"com.llmproxy.seed": "true"},
        # Its input ends with us, and it ends with its input.
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }


def shebang(head: bytes) -> str | None:
    """The Python that runs a script, from its first lines, where pip and uv name it."""
    first, _, rest = head.partition(b"\n")
    if not first.startswith(b"#!"):
        return None
    words = first[2:].decode(errors="replace").split()
    if words and words[0].endswith("/sh"):
        # A path that is too long for the first line stands in the second: '''exec' /path/python "$0" "$@"
        words = rest.partition(b"\n")[0].decode(errors="replace").partition("exec'")[2].split()
    if words and words[0].endswith("/env"):
        words = [word for word in words[1:] if not word.startswith("-")]
    found = words[0].strip("\"'") if words else ""
    return found if "python" in posixpath.basename(found) else None
