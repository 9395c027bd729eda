"""Leases: GPU memory that is lent to something else for a while (a game, ComfyUI, training).  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard

from attrs import asdict, define, field

__all__ = ["LONGEST", "GpuLease", "Leases"]

LONGEST = 7 * 24 * 3600.0
"""Seconds that a lease may be for: what is wanted for longer is a ``reserve``."""

_MOST = 2.0**63
"""More than any memory and any time."""


@define
class GpuLease:
    """Memory of one GPU that models do not get.

    :ivar memory: a fraction of the GPU (``float``) or bytes (``int``).
    :ivar until: when it ends by itself (POSIX seconds).
    :ivar note: what it is for.
    :ivar held: the memory is free for it; before that models still have to leave.
    :ivar since: when it was asked for.
    """

    name: str
    gpu: str
    memory: float | int
    until: float
    note: str = ""
    held: bool = False
    since: float = 0.0


@define
class Leases:
    """Those that have not ended."""

    _leases: dict[str, GpuLease] = field(factory=dict)
    _count: int = 0

    def __iter__(self) -> Any:
        return iter(list(self._leases.values()))

    def get(self, name: str) -> GpuLease | None:
        """That lease, unless it has ended."""
        return self._leases.get(name)

    def take(self, gpu: str, memory: float | int, until: float, note: str, now: float) -> GpuLease:
        """A new one."""
        self._count += 1
        while f"lease-{self._count}" in self._leases:
            self._count += 1
        lease = GpuLease(f"lease-{self._count}", gpu, memory, until, note, since=now)
        self._leases[lease.name] = lease
        return lease

    def end(self, name: str) -> GpuLease | None:
        """It ends before its time; None when there is none of that name."""
        return self._leases.pop(name, None)

    def expire(self, now: float) -> list[GpuLease]:
        """Those whose time is over, which have ended now."""
        over = [lease for lease in self._leases.values() if lease.until <= now]
        for lease in over:
            del self._leases[lease.name]
        return over

    def next_end(self) -> float | None:
        """When the next one ends by itself."""
        return min((lease.until for lease in self._leases.values()), default=None)

    def dump(self) -> list[dict[str, Any]]:
        """For the state file: a proxy that was started again must not give the memory away."""
        return [asdict(lease) for lease in self._leases.values()]

    def load(self, dumped: object) -> None:
        """What was dumped; what cannot be read is left out."""
        for one in dumped if isinstance(dumped, list) else ():
            lease = _read(one)
            if lease is not None:
                self._leases[lease.name] = lease


def _read(one: object) -> GpuLease | None:
    if not isinstance(one, dict):
        return None
    texts: Iterable[object] = (one.get("name"), one.get("gpu"), one.get("note", ""))
    memory, until, since = one.get("memory"), one.get("until"), one.get("since", 0.0)
    if not all(isinstance(text, str) for text in texts):
        return None
    if not _is_number(memory) or not _is_number(until) or not _is_number(since) or memory <= 0:
        return None
    held, note = bool(one.get("held")), one.get("note", "")
    return GpuLease(one["name"], one["gpu"], memory, float(until), note, held, float(since))


def _is_number(value: object) -> TypeGuard[int | float]:
    """Python reads ``NaN``, ``Infinity`` and integers of any length in JSON, with which nobody can reckon."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -_MOST <= value <= _MOST  # false of NaN, and right of integers that are too large for a float
    )
