"""Where a task may be reached from here: a network that we share, a port of its node, its own container.
Pure.

Each task is reached for itself and not through Swarm's virtual address, so that it is known which of them a
request is at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import field, frozen

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.docker_reach import Reach, instance_port
from llmproxy.runtimes.interface import Address
from llmproxy.runtimes.swarm_state import Picture, SwarmService, SwarmTask

__all__ = ["Here", "config_of", "task_addresses", "task_port"]

Json = Mapping[str, Any]

_LOOPBACK = ("127.0.0.1", "::1")


@frozen
class Here:
    """From where we look.

    :ivar node: id of the node whose engine we talk to.
    :ivar local: containers of tasks of that node, by id: the addresses at which its host reaches them.
    """

    reach: Reach
    node: str = ""
    local: Mapping[str, tuple[str, ...]] = field(factory=dict)


def config_of(service: SwarmService, image: Json | None = None) -> dict[str, Any]:
    """What its containers run, as ``Config`` of a container.

    :param image: ``Config`` of its image, where that is known.
    """
    container, given = service.container, image or {}
    command = container.get("Command")
    args = container.get("Args")
    if args is None and not command:
        # Whoever gives the entrypoint gives the whole command.
        args = given.get("Cmd")
    return {
        "Entrypoint": list(command or given.get("Entrypoint") or ()),
        "Cmd": list(args or ()),
        "Env": [*(given.get("Env") or ()), *(container.get("Env") or ())],
        "ExposedPorts": {f"{port}/tcp": {} for port in service.targets} or given.get("ExposedPorts") or {},
    }


def task_port(spec: BackendSpec, service: SwarmService, image: Json | None = None) -> int:
    """The port that its servers listen on."""
    return instance_port(spec, config_of(service, image))


def task_addresses(
    spec: BackendSpec, picture: Picture, task: SwarmTask, here: Here, image: Json | None = None
) -> tuple[Address, ...]:
    """Where to try it, most wanted first; empty: it cannot be reached from here."""
    assert picture.service is not None
    port = task_port(spec, picture.service, image)
    found = [*_shared(task, here.reach, port), *_of_node(picture, task, here, port)]
    if not found and task.node == here.node and here.reach.local:
        found = [Address(host, port, "bridge") for host in here.local.get(task.container, ())]
    if not found:
        found = list(_of_mesh(picture, task, here, port))
    return tuple(dict.fromkeys(found))


def _shared(task: SwarmTask, reach: Reach, port: int) -> Iterator[Address]:
    if reach.networks is None:
        return
    ids = set(reach.networks.values()) - {""}
    for each in task.attachments:
        if not each.ingress and (each.id in ids if each.id else each.name in reach.networks):
            yield Address(each.address, port, "network")


def _of_node(picture: Picture, task: SwarmTask, here: Here, port: int) -> Iterator[Address]:
    host = _host(picture, task, here)
    if not host:
        return
    if task.on_host:
        yield Address(host, port, "published")
    yield from (Address(host, outer, "published") for inner, outer in task.ports if inner == port)


def _of_mesh(picture: Picture, task: SwarmTask, here: Here, port: int) -> Iterator[Address]:
    """Any node's port leads to any task, so that it is no address of one.  Better than none."""
    host = _host(picture, task, here)
    if host and picture.service is not None:
        yield from (
            Address(host, outer, "published") for inner, outer in picture.service.ports if inner == port
        )


def _host(picture: Picture, task: SwarmTask, here: Here) -> str:
    """Where published ports of the task's node are reached."""
    node = picture.nodes.get(task.node)
    address = "" if node is None else node.address
    if task.node != here.node:
        return address
    # Our own engine's: as for its containers, unless we are in one that reaches no loopback but its own.
    told = address not in ("", *_LOOPBACK)
    inside = here.reach.networks is not None and here.reach.published in _LOOPBACK
    return address if told and (here.reach.local or inside) else here.reach.published
