"""What a Swarm's nodes have, and what is reserved of it, from the words of the Docker Engine API."""

from __future__ import annotations

from typing import Any

import pytest

from llmproxy.runtimes.swarm_room import allowed_nodes, read_reservations, reserved, resources


def node(id: str, **fields: Any) -> dict[str, Any]:
    """One of the answer of ``GET /nodes``."""
    return {
        "ID": id,
        "Spec": {
            "Role": fields.get("role", "worker"),
            "Availability": fields.get("availability", "active"),
            "Labels": fields.get("labels", {}),
        },
        "Description": {
            "Hostname": fields.get("name", id),
            "Resources": {
                "NanoCPUs": 2_000_000_000,
                "GenericResources": [
                    {"DiscreteResourceSpec": {"Kind": "vram-gib", "Value": 24}},
                    {"NamedResourceSpec": {"Kind": "NVIDIA-GPU", "Value": f"GPU-{id}-0"}},
                    {"NamedResourceSpec": {"Kind": "NVIDIA-GPU", "Value": f"GPU-{id}-1"}},
                ],
            },
            "Engine": {"Labels": {"disk": "ssd"}},
        },
        "Status": {"State": fields.get("state", "ready")},
    }


def service(id: str, name: str, vram: int = 0, constraints: tuple[str, ...] = ()) -> dict[str, Any]:
    """One of the answer of ``GET /services``."""
    generic = [{"DiscreteResourceSpec": {"Kind": "vram-gib", "Value": vram}}] if vram else []
    template = {
        "Resources": {"Reservations": {"GenericResources": generic}},
        "Placement": {"Constraints": list(constraints)},
    }
    return {"ID": id, "Spec": {"Name": name, "TaskTemplate": template}}


def task(service: str, node: str, state: str = "running") -> dict[str, Any]:
    """One of the answer of ``GET /tasks``."""
    return {"ServiceID": service, "NodeID": node, "Status": {"State": state}}


def test_what_a_node_has() -> None:
    """Generic resources count by number, or one for each name."""
    found = node("a")["Description"]["Resources"]
    assert resources(found) == {"NanoCPUs": 2_000_000_000, "vram-gib": 24, "NVIDIA-GPU": 2}
    assert resources({}) == {}


def test_what_is_taken() -> None:
    """Tasks count where they are placed, of all services; nodes that take none are no room."""
    nodes = [node("a"), node("b", availability="drain"), node("c", state="down")]
    services = [service("1", "chat", 16), service("2", "other")]
    tasks = [task("1", "a"), task("1", "a", "starting"), task("1", "a", "shutdown"), task("1", "", "pending")]
    found = read_reservations(nodes, services, [*tasks, task("2", "a"), task("9", "a")])
    assert found.rooms.keys() == {"a"}
    assert found.taken == {"chat": {"a": 2}, "other": {"a": 1}}
    assert found.needs == {"chat": {"vram-gib": 16}, "other": {}}
    assert found.allowed == {"chat": None, "other": None}
    assert reserved(services[0]) == {"vram-gib": 16}


@pytest.mark.parametrize(
    ("constraint", "nodes"),
    [
        ("node.labels.gpu == A100", {"a"}),
        ("node.labels.gpu==a100", {"a"}),
        ("node.labels.gpu != a100", {"b"}),
        ("node.role == manager", {"b"}),
        ("node.hostname == tower", {"a"}),
        ("node.id != a", {"b"}),
        ("engine.labels.disk == ssd", {"a", "b"}),
        ("node.platform.os == linux", {"a", "b"}),
        ("what is this", {"a", "b"}),
    ],
)
def test_constraints(constraint: str, nodes: set[str]) -> None:
    """Each is read as Swarm reads it; what is not understood forbids nothing."""
    there = [node("a", name="tower", labels={"gpu": "a100"}), node("b", role="manager")]
    assert allowed_nodes(service("1", "s", 1, (constraint,)), there) == frozenset(nodes)


def test_all_of_them_count() -> None:
    """A node has to meet every constraint."""
    there = [node("a", labels={"gpu": "a100"}), node("b", role="manager", labels={"gpu": "a100"})]
    both = ("node.labels.gpu == a100", "node.role == worker")
    assert allowed_nodes(service("1", "s", 1, both), there) == frozenset("a")
