"""What all backends share, and what they tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from llmproxy.backend.effects import State
from llmproxy.backend.knock import Knock
from llmproxy.backend.probe import Connect
from llmproxy.runtimes.interface import Address
from llmproxy.scheduling.history import History
from llmproxy.scheduling.learned import Learned

if TYPE_CHECKING:
    from llmproxy.backend.conduct import Conduct
    from llmproxy.backend.makeup import Makeup

__all__ = ["Decision", "Event", "IScheduler", "LastStart", "Surroundings", "Transition"]


@frozen
class Transition:
    """One step of a lifecycle, for the log and for whoever follows the events."""

    at: float
    backend: str
    old: State
    new: State
    reason: str


@frozen
class Decision:
    """What the scheduler has decided about a backend, and why.

    :ivar kind: ``start``, ``drain``, ``evict``, ``reap``, ``wait`` or ``refuse``; ``lost``: its host is away
        and it does not answer; for a lease of GPU memory ``lease`` and ``release``; ``scale out`` and
        ``scale in`` of a backend of several tasks; ``phase`` is no decision: a start has come that far.
    :ivar whom: the backend, or the lease, that it is done for, if any."""

    at: float
    backend: str
    kind: str
    reason: str
    whom: str | None = None


Event = Transition | Decision


@frozen
class LastStart:
    """The last start that succeeded: when it was ready (POSIX seconds), how long it took, and its parts."""

    at: float
    seconds: float
    phases: dict[str, float]


class IScheduler(Protocol):
    """Decides which backends run, as far as GPU memory goes; see :mod:`llmproxy.fleet.scheduler`."""

    def wanted(self, backend: Conduct) -> None:
        """Somebody waits for it: answered by ``granted``, ``refuse_waiting``, or later."""

    def moved(self, backend: Conduct) -> None:
        """It is in another state."""

    def idle(self, backend: Conduct) -> None:
        """Nothing is in flight there any more."""

    def look(self, at: Makeup | None = None) -> None:
        """Something else has changed: of this one, or anything."""

    def room_for(self, backend: Makeup) -> tuple[str, float | None] | None:
        """What it waits for: why, and for how many seconds as far as that is known; None: it does not."""

    def neighbours(self, backend: Makeup) -> tuple[str, ...]:
        """What else has memory of its GPUs at present."""

    def memory_came_back(self, backend: Conduct) -> Callable[[], Deferred[bool]]:
        """To be called once it sleeps: tells whether that brought its memory back."""


@frozen
class Surroundings:
    """What every backend shares.

    :ivar connect: makes the endpoint for an address.
    :ivar record: told of each transition.
    :ivar scheduler: decides who may start, and who leaves.
    :ivar learned: what was measured of starts, sleeps and stops.
    :ivar history: what happened, for advice.
    :ivar drain: seconds that requests in flight get when the backend has to go.
    :ivar drain_limit: the same, when it has to go for another one.
    :ivar backend_key: sent to backends whose own key is not known.
    :ivar secrets: never to be shown, wherever they turn up.
    :ivar knock_at: what says at once that nobody listens at an address, where that can be said.
    :ivar renamed: told when the names that a backend serves may be others.
    :ivar announce: told of each phase of a start.
    """

    clock: IReactorTime
    connect: Connect
    record: Callable[[Transition], None]
    scheduler: IScheduler
    learned: Learned
    history: History
    drain: float
    drain_limit: float
    backend_key: str | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    knock_at: Callable[[Address], Knock | None] = lambda _: None
    renamed: Callable[[], None] = lambda: None
    announce: Callable[[Decision], None] = lambda _: None
