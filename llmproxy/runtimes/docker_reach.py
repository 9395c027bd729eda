"""Where a container may be reached from here: a network that we share, a published port, its own address.

Pure but for :func:`own_container_id`, which reads ``/proc`` and the host name, and :func:`find_reach`, which
asks the engine about the container that we run in.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen
from docker.api.client import APIClient
from docker.errors import NotFound

from llmproxy.config.model import BackendSpec
from llmproxy.engines.vllm import read_flags
from llmproxy.runtimes.docker_facts import read_server
from llmproxy.runtimes.docker_host import host_address
from llmproxy.runtimes.docker_state import Json, Snapshot
from llmproxy.runtimes.interface import Address

__all__ = ["DEFAULT_PORT", "Reach", "addresses", "find_reach", "instance_port", "own_container_id"]

DEFAULT_PORT = 8000
"""vLLM's own default for ``--port``."""


@frozen
class Reach:
    """From where we look.

    :ivar published: address at which the engine's published ports answer us.
    :ivar local: the engine runs on this machine, so that its bridges may be reachable.
    :ivar networks: names and ids of the networks that our own container is joined to; ``None`` when we do
        not run in a container of that engine.
    """

    published: str
    local: bool
    networks: Mapping[str, str] | None = None


_OWN_MOUNT = re.compile(r"/containers/([0-9a-f]{64})/")
_OWN_FILES = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")


def own_container_id(mountinfo: str, hostname: str) -> str | None:
    """The id of the container that we run in, or what may be one.

    Docker mounts ``.../containers/<id>/hostname`` on ``/etc/hostname`` and so on.  Only these mount points
    count: on the Docker host itself ``mountinfo`` lists every container's shared memory, too.

    :param mountinfo: ``/proc/self/mountinfo`` (``proc(5)``: the fourth field is the root of the mount within
        its file system, the fifth the mount point).
    """
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) > 4 and fields[4] in _OWN_FILES:
            match = _OWN_MOUNT.search(fields[3])
            if match:
                return match[1]
    # Docker's default host name is the beginning of the id.
    return hostname if re.fullmatch(r"[0-9a-f]{12}", hostname) else None


def find_reach(client: APIClient, host: str, address: str | None = None) -> Reach:
    """Ask the engine about ourselves; not kept, as we may be joined to another network at any time.

    :param address: where its published ports are reached, if the operator says so.
    """
    published, local = address or host_address(host), host.startswith("unix:")
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            mountinfo = file.read()
    except OSError:
        mountinfo = ""
    own = own_container_id(mountinfo, socket.gethostname())
    if own is None:
        return Reach(published, local)
    try:
        info = client.inspect_container(own)
    except NotFound:
        return Reach(published, local)
    joined = (info.get("NetworkSettings") or {}).get("Networks") or {}
    if set(joined) <= {"host", "none"}:
        # On the host's network everything is as if we ran on the host.
        return Reach(published, local, {} if "none" in joined else None)
    if local and address is None:
        # 127.0.0.1 is the container itself in here; the host answers at its networks' gateways.
        published = next((str(net["Gateway"]) for net in joined.values() if net.get("Gateway")), published)
    return Reach(published, False, {name: str(net.get("NetworkID", "")) for name, net in joined.items()})


def _exposed(config: Json) -> list[int]:
    ports = (str(port).partition("/") for port in config.get("ExposedPorts") or ())
    return sorted(int(number) for number, _, kind in ports if kind in ("", "tcp") and number.isdigit())


def instance_port(spec: BackendSpec, config: Json, args: tuple[str, ...] | None = None) -> int:
    """The port that the server in there listens on.

    :param config: ``Config`` of the container, or of the image with ``args`` in place of its command.
    """
    if spec.port is not None:
        return spec.port
    if spec.engine == "vllm":
        port = read_flags(*read_server(config, args)).port
        if port is not None:
            return port
    exposed = _exposed(config)
    return exposed[0] if len(exposed) == 1 else DEFAULT_PORT


def addresses(
    spec: BackendSpec, snapshot: Snapshot, reach: Reach, lender: Json | None = None
) -> tuple[Address, ...]:
    """Where to try it, most wanted first; never empty.

    :param lender: the container whose network it uses (``network_mode: container:...``).
    """
    port = instance_port(spec, snapshot.info.get("Config") or {})
    settings: Json = (lender or snapshot.info).get("NetworkSettings") or {}
    networks: Mapping[str, Json] = settings.get("Networks") or {}
    found: list[Address] = []
    found.extend(_shared(networks, reach, port))
    if (snapshot.info.get("HostConfig") or {}).get("NetworkMode") == "host" or "host" in networks:
        found.append(Address(reach.published, port, "published"))
    found.extend(_published(settings, reach, port))
    if reach.local:
        found.extend(
            Address(str(net["IPAddress"]), port, "bridge")
            for net in networks.values()
            if net.get("IPAddress")
        )
    # One that has ended already, or on no network at all: there is nothing better to say.
    return tuple(dict.fromkeys(found)) or (Address(reach.published, port, "published"),)


def _shared(networks: Mapping[str, Json], reach: Reach, port: int) -> Iterator[Address]:
    if reach.networks is None:
        return
    ids = set(reach.networks.values()) - {""}
    for name, net in networks.items():
        same = net.get("NetworkID") in ids if net.get("NetworkID") else name in reach.networks
        address = net.get("IPAddress") or net.get("GlobalIPv6Address")
        if same and address:
            yield Address(str(address), port, "network")


def _published(settings: Json, reach: Reach, port: int) -> Iterator[Address]:
    bindings: list[Mapping[str, Any]] = (settings.get("Ports") or {}).get(f"{port}/tcp") or []
    for binding in bindings:
        number = str(binding.get("HostPort") or "")
        if not number.isdigit():
            continue
        bound = str(binding.get("HostIp") or "")
        if bound in ("", "0.0.0.0", "::"):
            yield Address(reach.published, int(number), "published")
        elif not bound.startswith("127.") and bound != "::1":
            yield Address(bound, int(number), "published")
        elif reach.networks is None:
            # The host's loopback: ours too, or else the engine's host, where it may be forwarded.
            yield Address("127.0.0.1" if reach.local else reach.published, int(number), "published")
