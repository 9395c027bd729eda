"""What the engine's event stream says that may concern a Swarm's services.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

__all__ = ["Happening", "read_happening"]

_SERVICE = "com.docker.swarm.service.id"
_CONTAINER = frozenset(("start", "die", "destroy"))


@frozen
class Happening:
    """Something has happened.

    :ivar type: ``container``, ``node`` or ``service``.
    :ivar name: the service's, or the node's id.
    """

    type: str
    action: str
    name: str = ""


def read_happening(raw: Mapping[str, Any]) -> Happening | None:
    """Read one line of ``GET /events``; None for what concerns no service."""
    actor = raw.get("Actor")
    if not isinstance(actor, Mapping):
        return None
    kind, action = str(raw.get("Type") or ""), str(raw.get("Action") or "")
    attributes: Mapping[str, Any] = actor.get("Attributes") or {}
    if kind == "container":
        if _SERVICE not in attributes or action not in _CONTAINER:
            return None
        return Happening(kind, action, str(attributes.get("com.docker.swarm.service.name") or ""))
    if kind in ("service", "node"):
        return Happening(kind, action, str(attributes.get("name") or ""))
    return None
