"""The books of a fleet, with what they need: a thread, a file, and what each backend has of its GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReactorTime

from llmproxy.fleet.fleet import Fleet
from llmproxy.usage.book import Book, Lane
from llmproxy.usage.records import Kept

if TYPE_CHECKING:
    from llmproxy.usage.store import Store

__all__ = ["gpus_of", "keep_book"]


def keep_book(fleet: Fleet, clock: IReactorTime, lane: Lane) -> Book:
    """Begin to keep the books; it follows the fleet from now on.

    :param lane: one thread of their own.
    """
    folder = fleet.config.state_dir

    def kept() -> Kept:
        usage = fleet.config.usage
        return Kept(usage.history, max(1, int(usage.retention // 86400)))

    def store() -> Store:
        # SQLite takes a megabyte, which a proxy that serves nobody can do without.
        from llmproxy.usage.store import Store

        return Store(folder, kept)

    book = Book(clock, lane, store, lambda name: gpus_of(fleet, name))
    fleet.follow(book.heard)
    return book


def gpus_of(fleet: Fleet, name: str) -> float:
    """How many GPUs a backend claims: 0.9 of one is 0.9; 0: none, or it is not known any more."""
    backend = fleet.backends.get(name)
    if backend is None or not backend.needs.gpus:
        return 0.0
    rooms, memory = fleet.scheduler.rooms([backend]), backend.needs.memory
    gpus = fleet.scheduler.places.gpus(backend)
    return sum(rooms[gpu].units(memory) / rooms[gpu].total for gpu in gpus if gpu in rooms)
