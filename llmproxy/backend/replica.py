"""Those that a gate hands requests to: a backend's only run, or several tasks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from attrs import define, field

from llmproxy.relay.pool import ConnectionPool
from llmproxy.runtimes.interface import Address
from llmproxy.scheduling.affinity import choose

__all__ = ["Replica", "Roster"]


@define(eq=False)
class Replica:
    """One of them.

    :ivar id: that of its task; empty: it is the only one, and the backend's lifecycle is its own.
    :ivar address: where it answers.
    :ivar pool: connections to it.
    :ivar in_flight: requests that it has, those that count.
    :ivar ailing: it is not known to be healthy at present, or is being ended.
    :ivar going: there shall be one fewer, and that is this one.
    :ivar lost: it is gone, and so is what was in flight.
    """

    id: str
    address: Address
    pool: ConnectionPool
    in_flight: int = 0
    ailing: bool = False
    going: bool = False
    lost: bool = False

    @property
    def resting(self) -> bool:
        """It gets nothing new; what is in flight goes on."""
        return self.ailing or self.going


@define(eq=False)
class Roster:
    """Those of one gate, in the order in which they came.

    :ivar takers: those that get requests.
    """

    takers: list[Replica] = field(factory=list)
    _all: dict[str, Replica] = field(factory=dict)

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    def get(self, id: str) -> Replica | None:
        """That one, if it is there."""
        return self._all.get(id)

    def fill(self, replicas: Iterable[Replica]) -> None:
        """These, and no others."""
        self._all = {replica.id: replica for replica in replicas}
        self.sort_out()

    def add(self, replica: Replica) -> None:
        """One more."""
        self._all[replica.id] = replica
        self.sort_out()

    def remove(self, id: str) -> Replica | None:
        """One fewer."""
        replica = self._all.pop(id, None)
        self.sort_out()
        return replica

    def sort_out(self) -> None:
        """Some rest now, or rest no more."""
        self.takers = [replica for replica in self._all.values() if not replica.resting]

    def choose(self, affinity: Callable[[], bytes | None]) -> Replica:
        """The one for the next request.

        :param affinity: what it has in common with those that it belongs to; asked where there is a choice.
        """
        takers = self.takers
        return takers[0] if len(takers) == 1 else choose(takers, affinity())
