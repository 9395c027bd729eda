"""What ``inspect`` and the events stream say, read into values.  Pure.

Field names are those of the Docker Engine API (``ContainerInspect``, ``SystemEvents``), the same from 1.41
(Docker 20.10) on.
"""

from __future__ import annotations

import hashlib
import json
import re
from calendar import timegm
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import Exit

__all__ = [
    "MANAGED",
    "MANAGED_ROUTE",
    "MANAGED_SPEC",
    "ROUTE_LABEL",
    "Event",
    "Snapshot",
    "container_name",
    "is_called",
    "nanoseconds",
    "read_event",
    "made_of",
    "read_snapshot",
    "spec_hash",
]

ROUTE_LABEL = "llmproxy.route"
MANAGED = "llmproxy.managed"
MANAGED_ROUTE = "llmproxy.managed.route"
MANAGED_SPEC = "llmproxy.managed.spec"

Json = Mapping[str, Any]


def container_name(spec: BackendSpec) -> str:
    """The container behind a route: the one named, else ``llmproxy-<route>`` for one that llmproxy creates
    from an image, else one that is called like the route."""
    return spec.container or (f"llmproxy-{spec.route}" if spec.image else spec.route)


def made_of(spec: BackendSpec, backend_key: str | None, *more: object) -> str:
    """Names all that something which is created for a backend depends on.

    :param more: what it depends on besides, as JSON has it.
    """
    parts = [
        spec.image,
        spec.engine,
        spec.args,
        sorted(spec.environment.items()),
        spec.volumes,
        spec.port,
        *more,
        backend_key if spec.engine == "vllm" else None,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def spec_hash(spec: BackendSpec, backend_key: str | None) -> str:
    """Of a created container; another value means that it must be created anew."""
    return made_of(spec, backend_key, spec.gpus)


def is_called(info: Json, name: str) -> bool:
    """Whether what the engine found by that name is meant: its name, or its id as ``docker ps`` shows it.

    The engine also takes the first letters of an id, so that a missing container called ``beef`` would be
    somebody else's whose id happens to begin so.
    """
    if str(info.get("Name", "")).lstrip("/") == name:
        return True
    return re.fullmatch("[0-9a-f]{12,64}", name) is not None and str(info.get("Id", "")).startswith(name)


_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))$")


def nanoseconds(stamp: str | None) -> int:
    """An RFC 3339 time as Go writes it (up to nine digits) in nanoseconds of POSIX time; 0 when there is
    none, as in ``0001-01-01T00:00:00Z``.  ``datetime`` would lose the last three digits, which tell an
    event of this run from one of the run before."""
    match = _TIME.match(stamp or "")
    if match is None:
        return 0
    *parts, fraction, sign, hours, minutes = match.groups()
    seconds = timegm((*(int(part) for part in parts), 0, 0, 0))
    if sign:
        seconds -= (1 if sign == "+" else -1) * (int(hours) * 3600 + int(minutes) * 60)
    return max(0, seconds * 1_000_000_000 + int((fraction or "0").ljust(9, "0")))


@frozen
class Snapshot:
    """One container as it is.

    :ivar run: names its present or last run.
    :ivar status: Docker's word: ``created``, ``running``, ``paused``, ``restarting``, ``removing``,
        ``exited`` or ``dead``.
    :ivar started_ns: start of that run, nanoseconds of POSIX time by the engine's clock; 0 if never.
    :ivar exit: how the run ended, if it has.
    :ivar stop_signal: the signal that asks it to end.
    :ivar info: the whole answer.
    """

    id: str
    name: str
    run: str
    status: str
    started_ns: int
    exit: Exit
    stop_signal: str
    labels: Mapping[str, str]
    info: Json = field(repr=False)

    @property
    def serving(self) -> bool:
        """Whether its processes run.  A paused one holds its memory and answers nobody; one in
        ``restarting`` has no process at all, though Docker says ``Running`` of both."""
        return self.status == "running"

    @property
    def alive(self) -> bool:
        """Whether there is something to stop."""
        return self.status in ("running", "paused", "restarting")

    @property
    def managed(self) -> bool:
        """Whether llmproxy created it."""
        return self.labels.get(MANAGED) == "true"


def read_snapshot(info: Json) -> Snapshot:
    """Read the answer of ``GET /containers/{id}/json``."""
    state: Json = info.get("State") or {}
    config: Json = info.get("Config") or {}
    status = str(state.get("Status") or ("running" if state.get("Running") else "exited"))
    if state.get("Restarting"):
        status = "restarting"
    stamp = state.get("StartedAt") or ""
    return Snapshot(
        id=info["Id"],
        name=str(info.get("Name", "")).lstrip("/"),
        run=f"{info['Id']}:{stamp}",
        status=status,
        started_ns=nanoseconds(stamp),
        exit=Exit(state.get("ExitCode"), bool(state.get("OOMKilled"))),
        stop_signal=config.get("StopSignal") or "SIGTERM",
        labels=config.get("Labels") or {},
        info=info,
    )


@frozen
class Event:
    """One event of a container.

    :ivar action: ``create``, ``start``, ``die``, ``oom`` and so on.
    :ivar at: nanoseconds of POSIX time by the engine's clock.
    :ivar old_name: the name before a ``rename``.
    :ivar exit_code: of a ``die``.
    """

    action: str
    id: str
    name: str
    at: int
    labels: Mapping[str, str]
    old_name: str | None = None
    exit_code: int | None = None


def read_event(raw: Json) -> Event | None:
    """Read one line of ``GET /events``; ``None`` for what is not about a container."""
    actor = raw.get("Actor")
    if raw.get("Type") != "container" or not isinstance(actor, Mapping):
        return None
    attributes: Json = actor.get("Attributes") or {}
    code = str(attributes.get("exitCode", ""))
    old = attributes.get("oldName")
    # "exec_start: sh -c ..." and "health_status: healthy" carry text after a colon.
    return Event(
        action=str(raw.get("Action", "")).partition(":")[0],
        id=str(actor.get("ID", "")),
        name=str(attributes.get("name", "")).lstrip("/"),
        at=int(raw.get("timeNano") or int(raw.get("time") or 0) * 1_000_000_000),
        labels={str(key): str(value) for key, value in attributes.items()},
        old_name=str(old).lstrip("/") if old else None,
        exit_code=int(code) if code.isdigit() else None,
    )
