"""What a Swarm's manager says of services and nodes, read into values, and all of it together.  Pure.

Field names are those of the Docker Engine API (``Service``, ``Node``), the same from 1.41
(Docker 20.10) on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.docker_state import MANAGED
from llmproxy.runtimes.swarm_task import Attachment, SwarmTask, read_task

__all__ = [
    "Attachment",
    "Picture",
    "SwarmNode",
    "SwarmService",
    "SwarmTask",
    "read_node",
    "read_service",
    "read_task",
    "service_name",
]

Json = Mapping[str, Any]


def service_name(spec: BackendSpec) -> str:
    """The service behind a route."""
    return spec.service or f"llmproxy-{spec.route}"


@frozen
class SwarmService:
    """One service as it is.

    :ivar version: of what is written down of it; an update must name it.
    :ivar replicas: how many tasks are wanted; ``None``: it is of a mode that has no such count.
    :ivar mode: Swarm's word for the mode.
    :ivar template: names everything that its tasks are made from.
    :ivar ports: published by the routing mesh: port in the container, port of every node.
    """

    id: str
    name: str
    version: int
    replicas: int | None
    mode: str
    labels: Mapping[str, str]
    template: str
    ports: tuple[tuple[int, int], ...]
    spec: Json = field(repr=False)

    @property
    def managed(self) -> bool:
        """Whether llmproxy created it."""
        return self.labels.get(MANAGED) == "true"

    @property
    def container(self) -> Json:
        """``ContainerSpec`` of its tasks."""
        found: Json = (self.spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}
        return found

    @property
    def targets(self) -> tuple[int, ...]:
        """Ports in the container that it publishes in any way."""
        ports = (self.spec.get("EndpointSpec") or {}).get("Ports") or ()
        found = (port.get("TargetPort") for port in ports if port.get("Protocol", "tcp") == "tcp")
        return tuple(sorted({int(port) for port in found if port}))


def read_service(info: Json) -> SwarmService:
    """Read the answer of ``GET /services/{id}``."""
    spec: Json = info.get("Spec") or {}
    modes: Json = spec.get("Mode") or {}
    mode = next(iter(modes), "Replicated")
    replicas = None
    if mode == "Replicated":
        # The engine takes one for what is not said.
        count = (modes.get("Replicated") or {}).get("Replicas")
        replicas = 1 if count is None else int(count)
    template = json.dumps([spec.get("TaskTemplate"), spec.get("EndpointSpec")], sort_keys=True)
    ports = (info.get("Endpoint") or {}).get("Ports") or ()
    return SwarmService(
        id=str(info["ID"]),
        name=str(spec.get("Name") or ""),
        version=int((info.get("Version") or {}).get("Index") or 0),
        replicas=replicas,
        mode=mode,
        labels=spec.get("Labels") or {},
        template=hashlib.sha256(template.encode()).hexdigest()[:16],
        ports=tuple(
            (int(port["TargetPort"]), int(port["PublishedPort"]))
            for port in ports
            if port.get("PublishMode", "ingress") == "ingress"
            and port.get("Protocol", "tcp") == "tcp"
            and port.get("TargetPort")
            and port.get("PublishedPort")
        ),
        spec=spec,
    )


@frozen
class SwarmNode:
    """One machine of the Swarm.

    :ivar address: of it, as the other machines reach it; empty when it is not known.
    :ivar down: the managers hear nothing of it, so that its tasks count as ended.
    """

    id: str
    name: str
    address: str
    down: bool = False


def read_node(info: Json) -> SwarmNode:
    """Read one of the answer of ``GET /nodes``."""
    status: Json = info.get("Status") or {}
    address = str(status.get("Addr") or "")
    if address in ("", "0.0.0.0", "::", "127.0.0.1"):
        # A manager is seen by itself at no address; the one that it has for other managers is right.
        manager = str((info.get("ManagerStatus") or {}).get("Addr") or "")
        address = manager.rpartition(":")[0].strip("[]") or address
    if address in ("0.0.0.0", "::"):
        address = ""
    return SwarmNode(
        str(info["ID"]),
        str((info.get("Description") or {}).get("Hostname") or info["ID"]),
        address,
        status.get("State") == "down",
    )


@frozen
class Picture:
    """One service with its tasks at one moment.

    :ivar service: None: there is no such service.
    :ivar tasks: all that the managers still know of, those that have ended as well.
    :ivar nodes: of the Swarm, by id.
    """

    service: SwarmService | None
    tasks: tuple[SwarmTask, ...] = ()
    nodes: Mapping[str, SwarmNode] = field(factory=dict, repr=False)

    def lost(self, task: SwarmTask) -> bool:
        """Its node is down: whatever it does there, nobody hears of it."""
        node = self.nodes.get(task.node)
        return node is not None and node.down

    @property
    def running(self) -> tuple[SwarmTask, ...]:
        """Those that run, oldest first."""
        found = (task for task in self.tasks if task.runs and not self.lost(task))
        return tuple(sorted(found, key=lambda task: (task.created_ns, task.id)))

    @property
    def alive(self) -> tuple[SwarmTask, ...]:
        """Those that have not ended."""
        return tuple(task for task in self.tasks if not task.over and not self.lost(task))

    @property
    def settled(self) -> bool:
        """Nothing is about to change by itself: all that are wanted run, and no others."""
        wanted = 0 if self.service is None else self.service.replicas or 0
        alive = self.alive
        return len(alive) == wanted and all(task.runs and task.wanted for task in alive)

    @property
    def pending(self) -> str:
        """Why not all that are wanted run, as Swarm says it; empty: all do, or nobody says."""
        if self.service is None or self.settled:
            return ""
        waiting = [task for task in self.alive if task.wanted and task.state != "running"]
        newest = max(waiting, key=lambda task: (task.created_ns, task.id), default=None)
        if newest is None:
            return ""
        if newest.error or newest.desired != "ready":
            return newest.error
        # It waits to take the place of one that did not do.
        before = [task for task in self.tasks if task.slot == newest.slot and task.ended_by_itself]
        last = max(before, key=lambda task: (task.changed_ns, task.id), default=None)
        return "" if last is None else last.error
