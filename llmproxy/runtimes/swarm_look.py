"""One look at a Swarm: services, their tasks, the nodes, and how our own host reaches its containers.
Blocks: it is for a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import evolve, frozen
from docker.api.client import APIClient
from docker.errors import NotFound

from llmproxy.runtimes.docker_reach import find_reach
from llmproxy.runtimes.swarm_calls import get, list_nodes, list_services, list_tasks
from llmproxy.runtimes.swarm_reach import Here
from llmproxy.runtimes.swarm_state import SwarmNode, SwarmService, SwarmTask

__all__ = ["Found", "look"]


@frozen
class Found:
    """What one look has found: services by name, their tasks by the service's id, nodes by id."""

    services: Mapping[str, SwarmService]
    tasks: Mapping[str, tuple[SwarmTask, ...]]
    nodes: Mapping[str, SwarmNode]
    here: Here


def look(
    client: APIClient,
    host: str,
    names: Iterable[str],
    nodes: Mapping[str, SwarmNode],
    before: Here | None,
    *,
    whole: bool,
) -> Found:
    """See how these services are.

    :param host: where the engine is.
    :param nodes: that are known; none: they are asked for.
    :param before: what was found of our own place the last time.
    :param whole: there are no other services that anybody wants to know of.
    :raises docker.errors.APIError: the engine says no.
    """
    node = "" if before is None else before.node
    if not nodes:
        nodes = list_nodes(client)
        node = str((client.info().get("Swarm") or {}).get("NodeID") or "")
    services = list_services(client, names)
    try:
        tasks = list_tasks(client, (service.id for service in services.values()))
    except NotFound:
        # One was removed in between.
        services = list_services(client, names)
        tasks = list_tasks(client, (service.id for service in services.values()))
    known = {} if before is None else before.local
    here = Here(find_reach(client, host), node, known)
    if here.reach.local:
        found = _local(client, here, [each for those in tasks.values() for each in those])
        here = evolve(here, local=found if whole else {**known, **found})
    return Found(services, tasks, nodes, here)


def _local(client: APIClient, here: Here, tasks: Iterable[SwarmTask]) -> dict[str, tuple[str, ...]]:
    """Addresses of the containers that run on this node; those that are known do not change."""
    found: dict[str, tuple[str, ...]] = {}
    gateway: Mapping[str, Any] | None = None
    for task in tasks:
        if task.state != "running" or task.node != here.node or not task.container:
            continue
        known = here.local.get(task.container)
        if known:
            found[task.container] = known
            continue
        try:
            info = client.inspect_container(task.container)
        except NotFound:
            continue
        # The addresses of an overlay network are not for the host.
        overlays = {each.id for each in task.attachments}
        networks = ((info.get("NetworkSettings") or {}).get("Networks") or {}).values()
        own = [
            str(net["IPAddress"])
            for net in networks
            if net.get("NetworkID") not in overlays and net.get("IPAddress")
        ]
        if not own:
            # Each container that is on overlay networks alone has a leg on this bridge, to get out by.
            if gateway is None:
                try:
                    gateway = get(client, "networks/docker_gwbridge").get("Containers") or {}
                except NotFound:
                    gateway = {}
            leg = str((gateway.get(task.container) or {}).get("IPv4Address") or "").partition("/")[0]
            own = [leg] if leg else []
        found[task.container] = tuple(own)
    return found
