"""Asks the Docker engine."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import evolve

from llmproxy.config.model import DockerSettings
from llmproxy.doctor.facts import Container, Engine, Image, Mount, Published
from llmproxy.doctor.gather.commands import read_text
from llmproxy.doctor.gather.nvidia import required_cuda
from llmproxy.doctor.gather.swarm import read_standing
from llmproxy.runtimes.docker_host import docker_host

__all__ = ["TIMEOUT", "gather_engine", "inspect_backends", "read_inspection", "read_listed"]

TIMEOUT = 5.0
"""Seconds for each call; one that hangs is asked nothing more."""

Json = Mapping[str, Any]


def gather_engine(settings: DockerSettings, timeout: float = TIMEOUT) -> Engine:
    """How far one gets with it, and all containers as a list shows them."""
    host = docker_host(settings)
    found = Engine(host, "error", others=_others(host), local=host.startswith("unix:"))
    if host.startswith("unix:"):
        found = _look_at_socket(found, urlsplit(host).path)
        if found.state != "error":
            return found
    return _ask(settings, found, timeout)


def _look_at_socket(found: Engine, path: str) -> Engine:
    found = evolve(found, user=os.geteuid(), groups=tuple(sorted({os.getegid(), *os.getgroups()})))
    try:
        told = os.stat(path)
    except PermissionError:
        return evolve(found, state="forbidden", detail="a folder above it is closed")
    except OSError as error:
        state = "dangling" if os.path.islink(path) else "absent"
        return evolve(found, state=state, detail=os.strerror(error.errno or 0))
    if not stat.S_ISSOCK(told.st_mode):
        return evolve(found, state="no_socket")
    return evolve(found, group=told.st_gid)


def _others(host: str) -> tuple[str, ...]:
    """Sockets at the places where Docker Desktop, rootless engines and Colima have theirs."""
    home, runtime = Path.home(), os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    places = (
        Path("/var/run/docker.sock"),
        home / ".docker/run/docker.sock",
        home / ".docker/desktop/docker.sock",
        Path(runtime) / "docker.sock",
        home / ".colima/default/docker.sock",
    )
    return tuple(f"unix://{place}" for place in places if f"unix://{place}" != host and _is_socket(place))


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except OSError:
        return False


def _ask(settings: DockerSettings, found: Engine, timeout: float) -> Engine:
    # The SDK takes a third of a second to import.
    import requests
    import urllib3
    from docker.errors import DockerException

    from llmproxy.runtimes.docker_client import describe, make_client

    try:
        client = make_client(settings, timeout)
        try:
            version, began = client.version(), time.time()
            info = client.info()
            listed = client.containers(all=True)
        finally:
            client.close()
    except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        return evolve(found, state=_state(error), detail=describe(error))
    containers = (read_listed(each) for each in listed if isinstance(each, Mapping) and each.get("Names"))
    return evolve(
        found,
        state="answers",
        version=str(version.get("Version") or ""),
        api_version=str(version.get("ApiVersion") or ""),
        system=str(info.get("OperatingSystem") or ""),
        data_root=str(info.get("DockerRootDir") or ""),
        runtimes=tuple(info.get("Runtimes") or ()),
        cdi=tuple(
            str(each.get("ID")) for each in info.get("DiscoveredDevices") or () if isinstance(each, Mapping)
        ),
        apart=_apart(info.get("SystemTime"), began),
        ours=_is_ours(listed),
        containers={each.name: each for each in containers},
        swarm=read_standing(info.get("Swarm") or {}),
    )


def _is_ours(listed: Iterable[Json]) -> bool:
    """Whether we run in one of these containers; an engine may also run beside us in another's."""
    from llmproxy.runtimes.docker_reach import own_container_id

    own = own_container_id(read_text("/proc/self/mountinfo") or "", socket.gethostname())
    return own is not None and any(str(each.get("Id") or "").startswith(own) for each in listed)


def _state(error: BaseException) -> str:
    """``requests`` hides the cause under several layers."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, PermissionError):
            return "forbidden"
        if isinstance(cause, ConnectionRefusedError):
            return "refused"
        if isinstance(cause, TimeoutError):
            return "silent"
        cause = cause.__cause__ or cause.__context__
    return "error"


def _apart(text: Any, now: float) -> float | None:
    """Seconds that the engine's clock is ahead; its nanoseconds are more than Python reads."""
    try:
        date, _, zone = str(text)[:19], "", "+00:00"
        if not str(text).endswith("Z"):
            zone = str(text)[-6:]
        return datetime.fromisoformat(date + zone).timestamp() - now
    except ValueError:
        return None


def read_listed(each: Json) -> Container:
    """One of ``GET /containers/json``."""
    labels = each.get("Labels") or {}
    name = min((one.lstrip("/") for one in each["Names"]), key=lambda one: (one.count("/"), one))
    return Container(
        name,
        state=str(each.get("State") or ""),
        image=str(each.get("Image") or ""),
        service=labels.get("com.docker.compose.service"),
        project=labels.get("com.docker.compose.project"),
        published=tuple(
            Published(str(port.get("IP") or "0.0.0.0"), int(port["PublicPort"]), int(port["PrivatePort"]))
            for port in each.get("Ports") or ()
            if port.get("PublicPort") and port.get("Type", "tcp") == "tcp"
        ),
    )


def inspect_backends(
    settings: DockerSettings,
    found: Engine,
    names: Iterable[str],
    images: Iterable[str],
    timeout: float = TIMEOUT,
) -> Engine:
    """The same, with all that is to be known of these containers, and of these images."""
    if not found.answers:
        return found
    import requests
    import urllib3
    from docker.errors import DockerException, NotFound

    from llmproxy.runtimes.docker_client import make_client

    containers, known = dict(found.containers), dict(found.images)
    try:
        client = make_client(settings, timeout)
        try:
            for name in names:
                if name in containers:
                    containers[name] = read_inspection(client.inspect_container(name), containers[name])
            # What a container was made from may have been named differently since.
            wanted = dict.fromkeys(
                (*images, *(containers[name].image for name in names if name in containers))
            )
            for image in wanted:
                try:
                    config = client.inspect_image(image).get("Config") or {}
                    known[image] = Image(image, True, required_cuda(config.get("Env") or ()))
                except NotFound:
                    known[image] = Image(image, False)
        finally:
            client.close()
    except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError):
        pass  # a container may have gone meanwhile; what is known so far is told
    return evolve(found, containers=containers, images=known)


def read_inspection(info: Json, listed: Container) -> Container:
    """The answer of ``GET /containers/{id}/json``, added to what the list told."""
    from llmproxy.runtimes.docker_facts import read_devices, read_server

    config, host = info.get("Config") or {}, info.get("HostConfig") or {}
    args, environment = read_server(config)
    asked = read_devices(host)
    return evolve(
        listed,
        # The list names an image that lost its name by its id; the container remembers.
        image=str(config.get("Image") or listed.image),
        published=listed.published or _bindings(host),
        mounts=tuple(
            Mount(
                str(each.get("Source") if each.get("Type") == "bind" else each.get("Name") or ""),
                str(each.get("Destination") or ""),
                not each.get("RW", True),
                each.get("Type") == "bind",
            )
            for each in info.get("Mounts") or ()
        ),
        restart=str((host.get("RestartPolicy") or {}).get("Name") or "no"),
        user=str(config.get("User") or ""),
        gpu=None if asked is None else bool(asked.ids or asked.count),
        args=args,
        environment=environment,
    )


def _bindings(host: Json) -> tuple[Published, ...]:
    """The ports of a container that does not run, which the list does not tell."""
    found = []
    for inner, places in (host.get("PortBindings") or {}).items():
        number, _, protocol = str(inner).partition("/")
        for place in places or () if protocol == "tcp" else ():
            port = str(place.get("HostPort") or "")
            if port.isascii() and port.isdecimal() and int(port):
                found.append(Published(place.get("HostIp") or "0.0.0.0", int(port), int(number)))
    return tuple(found)
