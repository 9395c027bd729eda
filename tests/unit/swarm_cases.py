"""What a manager answers, in the least words that are read of it."""

from __future__ import annotations

from typing import Any

from llmproxy.runtimes.docker_reach import Reach
from llmproxy.runtimes.swarm_reach import Here
from llmproxy.runtimes.swarm_state import Picture, SwarmNode, SwarmTask, read_service, read_task

__all__ = ["FAR", "NODES", "node_of", "picture", "service", "stamp", "task"]

NODES = {name: SwarmNode(name, f"host-{name}", f"10.1.0.{number}") for number, name in enumerate("abc", 1)}
FAR = Here(Reach("192.0.2.1", False), "a")
"""The engine is on another machine, at node a."""


def stamp(second: float) -> str:
    """That many seconds into a certain minute, as Go writes it."""
    return f"2026-11-26T20:33:{second:012.9f}Z"


def service(replicas: int | None = 1, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """The answer of ``GET /services/m``.

    :param replicas: None: it runs once on each node.
    """
    mode: dict[str, Any] = {"Global": {}} if replicas is None else {"Replicated": {"Replicas": replicas}}
    container = spec.pop("container", {"Image": "image"})
    return {
        "ID": "s1",
        "Version": {"Index": 7},
        "Spec": {
            "Name": "m",
            "Labels": labels or {},
            "TaskTemplate": {"ContainerSpec": container},
            "Mode": mode,
            **spec,
        },
    }


def task(
    id: str, state: str = "running", desired: str = "running", second: float = 1, **more: Any
) -> SwarmTask:
    """One of them, in its own slot.

    :param second: when it was created, and came into its state.
    """
    status: dict[str, Any] = {"State": state, "Timestamp": stamp(second), "Err": more.pop("error", "")}
    if "code" in more or more.get("ran", True):
        status["ContainerStatus"] = {"ContainerID": f"c-{id}", "ExitCode": more.pop("code", 0)}
    if "port" in more:
        port = {
            "Protocol": "tcp",
            "TargetPort": 8000,
            "PublishedPort": more.pop("port"),
            "PublishMode": "host",
        }
        status["PortStatus"] = {"Ports": [port, port]}
    more.pop("ran", None)
    return read_task(
        {
            "ID": id,
            "ServiceID": "s1",
            "NodeID": more.pop("node", "b"),
            "Slot": more.pop("slot", 1),
            "CreatedAt": stamp(second),
            "Status": status,
            "DesiredState": desired,
            "NetworksAttachments": more.pop("networks", []),
        }
    )


def picture(
    *tasks: SwarmTask, replicas: int | None = 1, down: str = "", labels: dict[str, str] | None = None
) -> Picture:
    """The service with these tasks.

    :param down: nodes that are.
    """
    nodes = {name: node_of(name, name in down) for name in NODES}
    return Picture(read_service(service(replicas, labels)), tasks, nodes)


def node_of(name: str, down: bool = False) -> SwarmNode:
    """One of the three."""
    node = NODES[name]
    return SwarmNode(node.id, node.name, node.address, down)
