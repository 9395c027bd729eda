"""What a Swarm's nodes have, and what services reserve of it.  Pure.

Of the Docker Engine API: ``Node.Description.Resources``, ``TaskTemplate.Resources.Reservations`` and
``TaskTemplate.Placement.Constraints``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmproxy.runtimes.interface import Reservations

__all__ = ["allowed_nodes", "read_reservations", "reserved", "resources"]

Json = Mapping[str, Any]

CPU = "NanoCPUs"
MEMORY = "MemoryBytes"

_CONSTRAINT = re.compile(r"\s*([a-z.]+?)(?:\.labels\.([^=!\s]+))?\s*(==|!=)\s*(\S.*?)\s*")
_TAKES_ROOM = frozenset(("assigned", "accepted", "preparing", "ready", "starting", "running"))
"""States of a task in which its node keeps its reservation."""


def resources(found: Json) -> dict[str, int]:
    """Amounts by resource of a ``ResourceObject``: processors, memory, and generic ones, of which those that
    have names (``NVIDIA-GPU=GPU-3f2a...``) count one each."""
    amounts = {name: int(found.get(name) or 0) for name in (CPU, MEMORY) if found.get(name)}
    for one in found.get("GenericResources") or ():
        counted, named = one.get("DiscreteResourceSpec"), one.get("NamedResourceSpec")
        if counted:
            kind, amount = str(counted.get("Kind")), int(counted.get("Value") or 0)
        elif named:
            kind, amount = str(named.get("Kind")), 1
        else:
            continue
        amounts[kind] = amounts.get(kind, 0) + amount
    return amounts


def reserved(service: Json) -> dict[str, int]:
    """What each task of a service reserves of its node."""
    template = (service.get("Spec") or {}).get("TaskTemplate") or {}
    return resources((template.get("Resources") or {}).get("Reservations") or {})


def allowed_nodes(service: Json, nodes: Iterable[Json]) -> frozenset[str] | None:
    """Ids of the nodes that its constraints allow; None: all of them. A constraint that is not understood
    forbids nothing."""
    template = (service.get("Spec") or {}).get("TaskTemplate") or {}
    constraints = (template.get("Placement") or {}).get("Constraints") or ()
    if not constraints:
        return None
    return frozenset(
        str(node["ID"]) for node in nodes if all(_meets(node, str(each)) for each in constraints)
    )


def _meets(node: Json, constraint: str) -> bool:
    match = _CONSTRAINT.fullmatch(constraint)
    if match is None:
        return True
    subject, label, operator, value = match.groups()
    spec: Json = node.get("Spec") or {}
    description: Json = node.get("Description") or {}
    found: object
    if label is not None and subject == "node":
        found = (spec.get("Labels") or {}).get(label, "")
    elif label is not None and subject == "engine":
        found = ((description.get("Engine") or {}).get("Labels") or {}).get(label, "")
    elif subject in ("node.id", "node.hostname", "node.role"):
        found = {
            "node.id": node.get("ID"),
            "node.hostname": description.get("Hostname"),
            "node.role": spec.get("Role"),
        }[subject]
    else:
        return True
    # Swarm compares without regard to case (moby/swarmkit, manager/constraint).
    same = str(found).lower() == value.lower()
    return same if operator == "==" else not same


def read_reservations(nodes: Iterable[Json], services: Iterable[Json], tasks: Iterable[Json]) -> Reservations:
    """What there is, what is taken, and by whom.

    :param nodes: the answer of ``GET /nodes``; and so on for the others.
    """
    known = list(nodes)
    by_id = {str(service["ID"]): service for service in services}
    rooms = {
        str(node["ID"]): resources((node.get("Description") or {}).get("Resources") or {})
        for node in known
        if (node.get("Status") or {}).get("State") == "ready"
        and (node.get("Spec") or {}).get("Availability", "active") == "active"
    }
    needs = {_name(service): reserved(service) for service in by_id.values()}
    taken: dict[str, dict[str, int]] = {}
    for task in tasks:
        service = by_id.get(str(task.get("ServiceID")))
        node = str(task.get("NodeID") or "")
        if service is None or not node or (task.get("Status") or {}).get("State") not in _TAKES_ROOM:
            continue
        counts = taken.setdefault(_name(service), {})
        counts[node] = counts.get(node, 0) + 1
    allowed = {_name(service): allowed_nodes(service, known) for service in by_id.values()}
    return Reservations(rooms, needs, taken, allowed)


def _name(service: Json) -> str:
    return str((service.get("Spec") or {}).get("Name") or "")
