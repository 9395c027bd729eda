"""A Swarm's task, as its manager tells it and as our own engine knows better.  Pure.

Field names are those of the Docker Engine API (``Task``), the same from 1.41 (Docker 20.10) on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

from llmproxy.runtimes.docker_state import nanoseconds
from llmproxy.runtimes.interface import Exit

__all__ = ["Attachment", "SwarmTask", "read_task"]

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
