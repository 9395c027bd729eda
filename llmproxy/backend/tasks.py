"""The tasks of a backend that runs as several: which there are, which are healthy, and so get requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from llmproxy.backend.gate import Gate
from llmproxy.backend.probe import Connect, Prober, Verdict, probe_once
from llmproxy.backend.replica import Replica
from llmproxy.backend.serving import TaskState
from llmproxy.relay.pool import ConnectionPool
from llmproxy.runtimes.interface import Address, Task

__all__ = ["SICK_AFTER", "Tasks"]

SICK_AFTER = 10.0
"""Seconds for which no task is healthy, though there are some that were, until the backend counts as sick: a
container whose engine has died ends within a few, and its end says more."""


class Tasks:
    """Asks each task for its health, and keeps those in the gate that are healthy. Nobody knocks first: tasks
    may be on other machines, where a knock waits for the network.

    :param health: the path that is asked.
    :param limit: requests handed to one task at once at most.
    :param none_left: called with the cause when the last one that got requests has ended, and others are
        there.
    :param sick: called with the cause when none that is there has been healthy for :data:`SICK_AFTER`."""

    def __init__(
        self,
        clock: IReactorTime,
        connect: Connect,
        gate: Gate,
        health: Callable[[], str],
        limit: Callable[[], int | None],
        none_left: Callable[[str], None],
        sick: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._gate = gate
        self._health = health
        self._limit = limit
        self._none_left = none_left
        self._sick = sick
        self._there: dict[str, Task] = {}
        self._probers: dict[str, Prober] = {}
        self._asked: dict[str, Deferred[Verdict]] = {}
        self._healthy: dict[str, Replica] = {}
        self._first: Callable[[], None] | None = None
        self._patient = False
        self._open = False
        self._overdue: IDelayedCall | None = None

    # -- which there are ----------------------------------------------------------------------------

    def begin(self, tasks: Sequence[Task], healthy: Callable[[], None], *, patient: bool) -> None:
        """Ask these from now on.

        :param healthy: called when the first of them is, and the gate may be opened.
        :param patient: nobody waits for them.
        """
        self.end()
        self._first, self._patient = healthy, patient
        self.follow(tasks)

    def follow(self, tasks: Iterable[Task]) -> None:
        """There are these now."""
        present = {task.id: task for task in tasks}
        gone = self._there.keys() - present.keys()
        before, self._there = self._there, present
        leaving = [task.id for task in present.values() if task.leaving]
        # What is broken off below goes on to others, and to none of these.
        for id in leaving:
            self._gate.rest(id, True)
        for id in [*gone, *leaving]:
            self._forget(id)
        if gone:
            self._gate.lose("the task that answered has ended", *gone)
        if self._first is None:
            return
        for task in present.values():
            if not task.leaving and task.id not in self._healthy:
                known = before.get(task.id)
                if known is not None and known.addresses != task.addresses:
                    self._ask_no_more(task.id)
                if task.id not in self._probers:
                    self._probe(task)
        self._resize()
        stay = not all(task.leaving for task in present.values())
        if self._open and gone and stay and not len(self._gate.roster):
            self._none_left("the last task that was healthy has ended")

    def open(self) -> None:
        """Requests may go to those that are healthy."""
        self._open = True
        self._resize()
        self._gate.open(*self._healthy.values())

    def end(self) -> None:
        """Their health does not matter any more.  What is in flight at one is still told of its end."""
        self._open, self._first = False, None
        for id in [*self._probers, *self._asked]:
            self._ask_no_more(id)
        self._healthy.clear()
        self._calm()

    def hurry(self) -> None:
        """Somebody waits now."""
        self._patient = False
        for prober in self._probers.values():
            prober.hurry()

    @property
    def patient(self) -> bool:
        """They are asked less and less often."""
        return any(prober.patient for prober in self._probers.values())

    def resized(self) -> None:
        """The limit of each is another one now."""
        self._resize()

    def states(self) -> tuple[TaskState, ...]:
        """How each of them is."""
        return tuple(self._state_of(task) for task in self._there.values())

    def _state_of(self, task: Task) -> TaskState:
        replica = self._gate.roster.get(task.id)
        in_flight = 0 if replica is None else replica.in_flight
        address = task.addresses[0] if replica is None else replica.address
        state: Literal["starting", "ready", "resting", "leaving"]
        if task.leaving:
            state = "leaving"
        elif replica is None:
            state = "starting"
        else:
            state = "resting" if replica.resting else "ready"
        return TaskState(task.id, task.node, state, address, in_flight)

    # -- their health -------------------------------------------------------------------------------

    def _probe(self, task: Task) -> None:
        self._probers[task.id] = Prober(
            self._clock,
            self._connect,
            task.addresses,
            self._health(),
            lambda address: self._is_healthy(task.id, address),
            patient=self._patient,
        )

    def _is_healthy(self, id: str, address: Address) -> None:
        self._probers.pop(id, None)
        self._calm()
        kept = self._gate.roster.get(id)
        if kept is not None and kept.address == address:
            # It was silent, and what was in flight there may have gone on.
            self._healthy[id] = kept
            self._gate.rest(id, False)
        else:
            pool = ConnectionPool(self._clock, self._connect(address))
            replica = self._healthy[id] = Replica(id, address, pool)
            if self._open:
                self._gate.join(replica)
        self._resize()
        if not self._open and self._first is not None:
            self._first()

    def suspect(self, replica: Replica) -> None:
        """An answer of it was broken: see whether it is dead, and have others answer meanwhile."""
        id = replica.id
        if not self._open or self._healthy.get(id) is not replica or id in self._asked:
            return
        if len(self._gate.roster.takers) > 1:
            self._gate.rest(id, True)
        asked = self._asked[id] = probe_once(self._clock, self._connect, replica.address, self._health())
        # It is cancelled when that does not matter any more; nothing else can fail.
        asked.addCallbacks(lambda verdict: self._judged(replica, verdict), lambda _: None)

    def _judged(self, replica: Replica, verdict: Verdict) -> None:
        id = replica.id
        self._asked.pop(id, None)
        if verdict == "healthy":
            self._gate.rest(id, False)
            return
        if verdict == "silent" and not replica.resting:
            # It is the only one, and a busy server may be silent for a while.
            return
        del self._healthy[id]
        if verdict != "silent":
            self._gate.lose(f"the health path of the task that answered is {verdict}", id)
        self._resize()
        if id in self._there:
            self._probe(self._there[id])
        if not self._gate.roster.takers and self._overdue is None:
            self._overdue = self._clock.callLater(SICK_AFTER, self._is_overdue)

    def _is_overdue(self) -> None:
        self._overdue = None
        if not self._gate.roster.takers:
            self._sick(f"no task has been healthy for {SICK_AFTER:g} s")

    def _calm(self) -> None:
        overdue, self._overdue = self._overdue, None
        if overdue is not None:
            overdue.cancel()

    def _forget(self, id: str) -> None:
        self._ask_no_more(id)
        self._healthy.pop(id, None)

    def _ask_no_more(self, id: str) -> None:
        prober = self._probers.pop(id, None)
        if prober is not None:
            prober.stop()
        asked = self._asked.pop(id, None)
        if asked is not None:
            asked.cancel()

    def _resize(self) -> None:
        each = self._limit()
        takers = len(self._gate.roster.takers) if self._open else len(self._healthy)
        self._gate.admission.max_in_flight = None if each is None else each * max(1, takers)
