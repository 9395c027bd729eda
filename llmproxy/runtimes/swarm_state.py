"""What a Swarm's manager says of services, tasks and nodes, read into values.  Pure.

Field names are those of the Docker Engine API (``Service``, ``Task``, ``Node``), the same from 1.41
(Docker 20.10) on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.docker_state import MANAGED, nanoseconds
from llmproxy.runtimes.interface import Exit

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

_OVER = frozenset(("complete", "shutdown", "failed", "rejected", "remove", "orphaned"))
"""Past ``running``: nothing more comes of such a task."""
_BY_ITSELF = frozenset(("complete", "failed", "rejected"))
"""Ends that nobody asked for."""
_WANTED = frozenset(
    (
        "new",
        "pending",
        "allocated",
        "assigned",
        "accepted",
        "preparing",
        "ready",
        "starting",
        "running",
    )
)
_UNPLACED = frozenset(("new", "allocated", "pending"))
"""Before the scheduler has found a node."""
_NON_ZERO = "task: non-zero exit"
"""How Swarm's agent tells of a container that ran and ended (moby,
``daemon/cluster/executor/container/errors.go``)."""


def service_name(spec: BackendSpec) -> str:
    """The service behind a route."""
    return spec.service or f"llmproxy-{spec.route}"


@frozen
class Attachment:
    """One network of a task.

    :ivar address: of the task in it, without the length of its prefix.
    :ivar ingress: it is the one of the routing mesh.
    """

    id: str
    name: str
    address: str
    ingress: bool = False


@frozen
class SwarmTask:
    """One task as it is.

    :ivar state: Swarm's word (``pending``, ``running``, ``failed``); ``desired``: where it is to go.
    :ivar error: what went wrong, as Swarm says it.
    :ivar container: id of its container, on its node; empty before there is one.
    :ivar created_ns: nanoseconds of POSIX time by the manager's clock; ``changed_ns``: of its present state.
    :ivar ports: published by its node for this very task: port in the container, port of the node.
    :ivar on_host: it shares its node's network.
    :ivar died: its container has ended, as our own engine has told before Swarm does.
    :ivar oom: the kernel killed its container for memory; only our own engine tells.
    """

    id: str
    service: str
    node: str
    slot: int
    state: str
    desired: str
    error: str = ""
    container: str = ""
    code: int | None = None
    created_ns: int = 0
    changed_ns: int = 0
    ports: tuple[tuple[int, int], ...] = ()
    attachments: tuple[Attachment, ...] = ()
    on_host: bool = False
    died: Exit | None = None
    oom: bool = False

    @property
    def over(self) -> bool:
        """It has ended."""
        return self.died is not None or self.state in _OVER

    @property
    def told_over(self) -> bool:
        """Swarm itself knows that it has ended."""
        return self.state in _OVER

    @property
    def runs(self) -> bool:
        """Its container runs."""
        return self.state == "running" and self.died is None

    @property
    def wanted(self) -> bool:
        """It is to run; otherwise it is being ended."""
        return self.desired in _WANTED

    @property
    def unplaced(self) -> bool:
        """No node has been found for it so far."""
        return self.state in _UNPLACED

    @property
    def ended_by_itself(self) -> bool:
        """Nobody asked it to end."""
        return self.state in _BY_ITSELF or (self.died is not None and self.wanted)

    @property
    def ran(self) -> bool:
        """It has ended, and its container did run before that."""
        return (
            self.died is not None
            or self.state == "complete"
            or (
                self.state == "failed"
                and (self.error.startswith(_NON_ZERO) or self.error == "task: unhealthy container")
            )
        )

    @property
    def exit(self) -> Exit:
        """How its container ended."""
        if self.died is not None:
            return self.died
        if self.state in ("failed", "complete"):
            return Exit(self.code, self.oom)
        # One that was asked to end may be told with the code that it began with.
        return Exit(self.code or None, self.oom) if self.state == "shutdown" else Exit()


def read_task(info: Json) -> SwarmTask:
    """Read one of the answer of ``GET /tasks``."""
    status: Json = info.get("Status") or {}
    container: Json = status.get("ContainerStatus") or {}
    ports = (status.get("PortStatus") or {}).get("Ports") or ()
    code = container.get("ExitCode")
    return SwarmTask(
        id=str(info["ID"]),
        service=str(info.get("ServiceID") or ""),
        node=str(info.get("NodeID") or ""),
        slot=int(info.get("Slot") or 0),
        state=str(status.get("State") or "new"),
        desired=str(info.get("DesiredState") or "running"),
        error=" ".join(str(status.get("Err") or "").split()),
        container=str(container.get("ContainerID") or ""),
        code=code if isinstance(code, int) and container.get("ContainerID") else None,
        created_ns=nanoseconds(info.get("CreatedAt")),
        changed_ns=nanoseconds(status.get("Timestamp")),
        # Each is told twice where the node has addresses of both versions.
        ports=tuple(
            dict.fromkeys(
                (int(port["TargetPort"]), int(port["PublishedPort"]))
                for port in ports
                if port.get("PublishMode") == "host"
                and port.get("Protocol", "tcp") == "tcp"
                and port.get("TargetPort")
                and port.get("PublishedPort")
            )
        ),
        attachments=tuple(_attachments(info.get("NetworksAttachments") or ())),
        on_host=any(
            ((each.get("Network") or {}).get("Spec") or {}).get("Name") == "host"
            for each in info.get("NetworksAttachments") or ()
        ),
    )


def _attachments(found: Iterable[Json]) -> Iterable[Attachment]:
    for each in found:
        network: Json = each.get("Network") or {}
        spec: Json = network.get("Spec") or {}
        for address in each.get("Addresses") or ():
            yield Attachment(
                str(network.get("ID") or ""),
                str(spec.get("Name") or ""),
                str(address).partition("/")[0],
                bool(spec.get("Ingress")),
            )


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
