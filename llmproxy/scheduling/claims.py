"""Sums of memory: what a GPU has, what a model claims of it, and what is left.  Pure.

All sums are whole numbers of units: bytes where the size of the GPU is known, else millionths of it, since
vLLM claims a share of a GPU (``--gpu-memory-utilization``) and two models at 0.45 fit whatever its size is.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

__all__ = ["NOTHING", "SHARES", "Memory", "Room", "fits", "minus", "plus"]

SHARES = 1_000_000
"""Units of a GPU whose size is not known."""

Memory = Mapping[str, int]
"""Units by GPU."""

NOTHING: Memory = {}


@frozen
class Room:
    """The memory of one GPU.

    :ivar total: units, see :data:`SHARES`.
    :ivar reserve: units that stay free, as the operator wants it.
    :ivar leased: units that are lent to something else at present.
    :ivar known: the size is known: units are bytes.
    """

    total: int = SHARES
    reserve: int = 0
    leased: int = 0
    known: bool = False

    @property
    def capacity(self) -> int:
        """Units that models may claim together."""
        return self.total - self.reserve - self.leased

    def units(self, memory: float | int) -> int:
        """Units of a claim.

        :param memory: a fraction (``float``) or bytes (``int``), which are all of a GPU of unknown size.
        """
        if isinstance(memory, float):
            return int(memory * self.total)
        return memory if self.known else (self.total if memory else 0)

    def told(self, units: int) -> str:
        """Units for a person: ``16.0 GiB``, or ``0.45``."""
        if self.known:
            return f"{units / 2**30:.1f} GiB"
        return f"{units / self.total:.2f}"


def plus(*sums: Memory) -> dict[str, int]:
    """Sums together."""
    total: dict[str, int] = {}
    for one in sums:
        for gpu, units in one.items():
            total[gpu] = total.get(gpu, 0) + units
    return total


def minus(one: Memory, other: Memory) -> dict[str, int]:
    """What ``one`` is beyond ``other``; may be less than nothing."""
    return plus(one, {gpu: -units for gpu, units in other.items()})


def fits(wanted: Memory, free: Memory) -> bool:
    """Whether there is room on each GPU that it is about, also where it wants nothing more there.

    Where more is held than there is, nothing fits.
    """
    return all(units <= free.get(gpu, 0) for gpu, units in wanted.items())
