"""What of a backend serves: its one run; :mod:`llmproxy.backend.together` has several tasks of it."""

from __future__ import annotations

from typing import Literal, Protocol

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from llmproxy.backend.engine import Engine
from llmproxy.backend.gate import Gate
from llmproxy.backend.probe import Connect
from llmproxy.backend.replica import Replica
from llmproxy.relay.pool import ConnectionPool
from llmproxy.runtimes.interface import Address, Instance

__all__ = ["Alone", "Replication", "Serving", "TaskState"]


@frozen
class TaskState:
    """One of several tasks, as it is shown.

    :ivar state: ``starting`` until it is healthy, and again while it is not; ``ready``; ``resting``: nothing
        new for it, as it shall leave or is silent; ``leaving``: it is being ended by whoever runs it.
    :ivar address: where it answers, or is asked first."""

    id: str
    node: str
    state: Literal["starting", "ready", "resting", "leaving"]
    address: Address
    in_flight: int


@frozen
class Replication:
    """Of a backend that runs as several tasks: which there are, and how many are wanted.

    :ivar pending: why not all of those run; empty: they do, or nobody says.
    """

    wanted: int
    pending: str
    tasks: tuple[TaskState, ...]


class Serving(Protocol):
    """Finds out what is healthy, and has it in the gate."""

    def probe(self, attempt: int, known: Instance, *, found: bool, patient: bool) -> None:
        """Ask for its health, and tell the lifecycle when it is.

        :param found: it ran already.
        :param patient: nobody waits for it.
        """

    def open(self) -> None:
        """It is healthy: requests may come."""

    def ask_no_more(self) -> None:
        """Its health does not matter any more, or has been told."""

    def hurry(self) -> None:
        """Somebody waits for it now."""

    @property
    def patient(self) -> bool:
        """It is asked less and less often."""

    def suspect(self, replica: Replica) -> None:
        """An answer was broken: see whether it is dead."""

    def follow(self, known: Instance | None) -> None:
        """That is what runs now of the run that is known; None: it has ended."""

    def retuned(self) -> None:
        """Its settings have changed."""

    def tasks(self) -> tuple[TaskState, ...]:
        """Those that there are; none where it does not run as tasks."""


class Alone:
    """One run, which is healthy or not."""

    def __init__(self, clock: IReactorTime, connect: Connect, gate: Gate, engine: Engine) -> None:
        self._clock = clock
        self._connect = connect
        self._gate = gate
        self._engine = engine

    def probe(self, attempt: int, known: Instance, *, found: bool, patient: bool) -> None:
        """See :class:`Serving`."""
        self._engine.probe(attempt, known.addresses, found=found, patient=patient)

    def open(self) -> None:
        """See :class:`Serving`."""
        address = self._engine.address
        assert address is not None, "it has been healthy"
        self._gate.open(Replica("", address, ConnectionPool(self._clock, self._connect(address))))

    def ask_no_more(self) -> None:
        """See :class:`Serving`."""
        self._engine.ask_no_more()

    def hurry(self) -> None:
        """See :class:`Serving`."""
        self._engine.hurry()

    @property
    def patient(self) -> bool:
        """See :class:`Serving`."""
        return self._engine.asked_patiently

    def suspect(self, replica: Replica) -> None:
        """See :class:`Serving`."""
        self._engine.suspect()

    def follow(self, known: Instance | None) -> None:
        """See :class:`Serving`."""

    def retuned(self) -> None:
        """See :class:`Serving`."""

    def tasks(self) -> tuple[TaskState, ...]:
        """See :class:`Serving`."""
        return ()
