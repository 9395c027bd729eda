"""To which of several tasks of one backend a request goes.  Pure.

vLLM keeps what it has computed of a prompt's beginning in each task for itself (its prefix cache), so that
requests which begin alike are better served where one of them was before; but not at the price of a queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import ceil
from typing import Protocol, TypeVar

__all__ = ["BOUND", "Loaded", "choose"]

BOUND = 1.25
"""How many times the mean load one task may have before a request goes past it to the next one of its order
(Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads"; HAProxy and Envoy have the same
factor at about 1.25 to 1.5)."""


class Loaded(Protocol):
    """One task."""

    @property
    def id(self) -> str:
        """Names it."""

    @property
    def in_flight(self) -> int:
        """How many requests it has."""


T = TypeVar("T", bound=Loaded)


def _weight(key: bytes, one: Loaded) -> bytes:
    """Rendezvous hashing: a task that comes or goes moves only the keys that are its
    own (Thaler and Ravishankar, 1998)."""
    return blake2b(key, key=one.id.encode("utf-8")[:64], digest_size=8).digest()


def choose(tasks: Sequence[T], key: bytes | None) -> T:
    """The one that gets the next request: the one with the fewest in flight; with ``key``, the first of the
    key's own order that is not loaded beyond :data:`BOUND` times the mean.

    :param tasks: not empty.
    :param key: what requests have in common that belong together; None: nothing.
    """
    if key is None:
        return min(tasks, key=lambda one: one.in_flight)
    most = ceil(BOUND * (sum(one.in_flight for one in tasks) + 1) / len(tasks))
    # One of them is always below: their mean is.
    open_to_it = [one for one in tasks if one.in_flight < most]
    return max(open_to_it, key=lambda one: _weight(key, one))
