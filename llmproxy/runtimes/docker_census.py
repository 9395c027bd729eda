"""Which containers there are, asked once for however many want to know.

A thousand backends without a container would be a thousand questions at the start, and again whenever the
event stream comes back; each costs this process about 4 ms.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen
from docker.api.client import APIClient
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from llmproxy.runtimes.docker_state import is_called

__all__ = ["Census", "Containers", "list_containers"]


@frozen
class Containers:
    """All containers of an engine, running or not."""

    ids: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()

    def has(self, name: str) -> bool:
        """Whether there is one of that name or id."""
        # No more ids are looked at than names that might be one: there may be a thousand of both.
        return name in self.names or (
            len(name) >= 12 and any(is_called({"Id": each}, name) for each in self.ids)
        )


def list_containers(client: APIClient) -> Containers:
    """Ask the engine."""
    found = client.containers(all=True)
    names = (name.removeprefix("/") for each in found for name in each.get("Names") or ())
    return Containers(tuple(each["Id"] for each in found), frozenset(names))


@define(eq=False)
class Census:
    """Lists once for all who ask before the list is begun.  Nobody is told how things were before that.

    :param ask: has the engine list its containers.
    """

    _reactor: IReactorTime
    _ask: Callable[[], Deferred[Containers]]
    _waiting: list[Deferred[Containers]] = field(factory=list, init=False)
    _asking: bool = field(default=False, init=False)

    def containers(self) -> Deferred[Containers]:
        """Those that there are now.

        :raises RuntimeUnavailable: the engine does not answer.
        """
        waiting: Deferred[Containers] = Deferred()
        self._waiting.append(waiting)
        if not self._asking:
            self._asking = True
            # A start or a reload asks for all backends in one turn of the reactor.
            self._reactor.callLater(0, self._begin)
        return waiting

    def _begin(self) -> None:
        asked, self._waiting = self._waiting, []
        self._ask().addBoth(self._heard, asked)

    def _heard(self, answer: Containers | Failure, asked: list[Deferred[Containers]]) -> None:
        for waiting in asked:
            waiting.callback(answer)
        if self._waiting:
            self._begin()
        else:
            self._asking = False
