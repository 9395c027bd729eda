"""What all backends share, and what they tell."""

from __future__ import annotations

from collections.abc import Callable

from attrs import field, frozen
from twisted.internet.interfaces import IReactorTime

from llmproxy.fleet.knock import Knock
from llmproxy.fleet.lifecycle import State
from llmproxy.fleet.probe import Connect
from llmproxy.runtimes.interface import Address

__all__ = ["LastStart", "Surroundings", "Transition"]


@frozen
class Transition:
    """One step of a lifecycle, for the log and for whoever follows the events."""

    at: float
    backend: str
    old: State
    new: State
    reason: str


@frozen
class LastStart:
    """The last start that succeeded: when it was ready (POSIX seconds), how long it took, and its parts."""

    at: float
    seconds: float
    phases: dict[str, float]


@frozen
class Surroundings:
    """What every backend shares.

    :ivar connect: makes the endpoint for an address.
    :ivar record: told of each transition.
    :ivar drain: seconds that requests in flight get when the backend has to go.
    :ivar backend_key: sent to backends whose own key is not known.
    :ivar secrets: never to be shown, wherever they turn up.
    :ivar knock_at: what says at once that nobody listens at an address, where that can be said.
    :ivar renamed: told when the names that a backend serves may be others.
    """

    clock: IReactorTime
    connect: Connect
    record: Callable[[Transition], None]
    drain: float
    backend_key: str | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    knock_at: Callable[[Address], Knock | None] = lambda _: None
    renamed: Callable[[], None] = lambda: None
