"""What the engine's event stream says that may concern a Swarm's services.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

__all__ = ["Happening", "read_happening"]

_SERVICE = "com.docker.swarm.service.id"
_NAME = "com.docker.swarm.service.name"
_CONTAINER = frozenset(("start", "die", "oom", "destroy"))


@frozen
class Happening:
    """Something has happened.

    :ivar type: ``container``, ``node`` or ``service``.
    :ivar id: of the container, service or node.
    :ivar service: name of the service that it is about; empty: it is about a node.
    :ivar code: with which a container has ended.
    :ivar at: nanoseconds of POSIX time.
    """

    type: str
    action: str
    id: str = ""
    code: int | None = None
    at: int = 0
    service: str = ""


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
    elif kind not in ("service", "node"):
        return None
    code = str(attributes.get("exitCode", ""))
    return Happening(
        kind,
        action,
        str(actor.get("ID") or ""),
        int(code) if code.isdigit() else None,
        int(raw.get("timeNano") or 0),
        str(attributes.get({"container": _NAME, "service": "name"}.get(kind, ""), "")),
    )
