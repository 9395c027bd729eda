"""Keeps the books: gathers what requests took, writes it down now and then, and tells of it.

Nothing of this is on a request's way: what is over comes by the batch from the access log, and what is
written goes to a thread.  A proxy that is killed forgets what it had gathered since the last time,
:data:`GATHER` or :data:`GPU_GATHER` seconds at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.backend.surroundings import Event as FleetEvent
from llmproxy.backend.surroundings import Transition
from llmproxy.usage.ledger import Account, Ledger, Sums, day_of
from llmproxy.usage.occupancy import Occupancy
from llmproxy.usage.rates import Rates
from llmproxy.usage.records import Entry, Open, Record, StoreError, record_of

if TYPE_CHECKING:
    from llmproxy.usage.store import Store

__all__ = ["Book", "Lane"]

GATHER = 2.0
"""Seconds in which requests gather to one write."""

GPU_GATHER = 10.0
"""Seconds in which GPU time gathers while nothing else is written: a model that idles is cheap to watch."""

MOST_WAITING = 20_000
"""Requests that wait to be written, where that takes long or fails; the oldest are given up."""

MOST_AT_ONCE = 200
"""Requests of one write that are kept one by one, of those that went well and of the others: a hundred in a
second are more than anybody reads, and to write one takes a tenth of what relaying it does.  The sums have
all."""

LAST_WRITE = 5.0
"""Seconds that the end of the proxy waits for what is being written."""

T = TypeVar("T")


class Lane(Protocol):
    """A thread in which one thing is done after the other; :class:`llmproxy.runtimes.docker_threads.Lane`."""

    def run(self, job: Callable[[], T]) -> Deferred[T]:
        """Do it there."""

    def close(self) -> None:
        """Nothing more will be done."""


@define(eq=False)
class _Batch:
    """What is being written."""

    sums: Mapping[Account, Sums]
    records: list[Record]
    written: bool = False


@define(eq=False)
class Book:
    """The books of one proxy.

    :ivar open_requests: those that are not over.
    :ivar ledger: what is not written yet, and what there was since the proxy began.
    :ivar rates: how fast tokens come, for whoever looks.
    """

    _clock: IReactorTime
    _lane: Lane
    _make_store: Callable[[], Store]
    _claim: Callable[[str], float]
    open_requests: Callable[[], Iterable[Open]] = lambda: ()
    ledger: Ledger = field(factory=Ledger)
    rates: Rates = field(factory=Rates)
    _occupancy: Occupancy = field(factory=Occupancy, init=False)
    _records: deque[Record] = field(factory=lambda: deque(maxlen=MOST_WAITING), init=False)
    _store: Store | None = field(default=None, init=False)
    _due: IDelayedCall | None = field(default=None, init=False)
    _batch: _Batch | None = field(default=None, init=False)
    _taken: list[int] = field(factory=lambda: [0, 0], init=False)
    _failing: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _log = Logger()

    # -- what happens -------------------------------------------------------------------------------

    def observe(self, entries: Sequence[Entry]) -> None:
        """Requests are over."""
        mine = [entry for entry in entries if entry.route != "-"]
        if not mine:
            return
        self.ledger.count(mine)
        self._take_down(mine)
        self._later(GATHER)

    def _take_down(self, entries: Iterable[Entry]) -> None:
        taken, records = self._taken, self._records
        for entry in entries:
            well = entry.outcome == "ok"
            if taken[well] < MOST_AT_ONCE:
                taken[well] += 1
                records.append(record_of(entry))

    def heard(self, event: FleetEvent) -> None:
        """Something happened to a backend."""
        if isinstance(event, Transition):
            held = self._occupancy.moved(event.backend, event.new, event.at)
            if held:
                self._charge(event.backend, held, event.at)
            if self._occupancy.backends:
                self._later(GPU_GATHER)

    # -- what is told -------------------------------------------------------------------------------

    def requests(
        self, limit: int, before: int | None, where: Mapping[str, str]
    ) -> Deferred[list[dict[str, Any]]]:
        """Requests that are over, the newest first; see :meth:`llmproxy.usage.store.Store.requests`."""
        return self._asked(lambda store: store.requests(limit, before, where))

    def usage(self, by: Sequence[str], first: str, last: str) -> Deferred[list[dict[str, Any]]]:
        """Sums; see :meth:`llmproxy.usage.store.Store.usage`."""
        return self._asked(lambda store: store.usage(by, first, last))

    def _asked(self, question: Callable[[Store], T]) -> Deferred[T]:
        self.flush()
        store = self._opened()
        return self._lane.run(lambda: question(store))

    # -- another process takes its place ------------------------------------------------------------

    def leave_off(self) -> None:
        """Another process charges GPU time from now on; requests are still written down."""
        self._share_out()
        self._occupancy = Occupancy()
        self.flush()

    def skip(self) -> None:
        """Another process has charged GPU time up to now."""
        self._occupancy.told(self._clock.seconds())

    # -- writing ------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write down what there is; what is asked afterwards has it."""
        if self._due is not None:
            self._due.cancel()
        self._write()

    def close(self) -> None:
        """Write what is left, here and now: the reactor has stopped."""
        if self._closed:
            return
        self._closed = True
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self._share_out()
        if self._batch is not None:
            self._await_writer(self._batch)
        self._lane.close()
        if self.ledger.empty and not self._records:
            return
        # One of its own: the thread may still have the other.
        store = self._make_store()
        try:
            store.write(self.ledger.take(), list(self._records), day_of(self._clock.seconds()))
        except StoreError as error:
            self._log.warn("What was used last is not written down: {error}", error=error)
        store.close()

    def _await_writer(self, batch: _Batch) -> None:
        """Let the thread finish what it writes, so that it is known what is left."""
        over = Event()
        self._lane.run(over.set)
        if over.wait(LAST_WRITE) and not batch.written:
            self._give_back(batch)

    def _later(self, seconds: float) -> None:
        if self._closed:
            return
        if self._due is None:
            self._due = self._clock.callLater(seconds, self._write)
        elif self._due.getTime() > self._clock.seconds() + seconds:
            self._due.reset(seconds)

    def _write(self) -> None:
        self._due = None
        self._share_out()
        if self._occupancy.backends:
            self._later(GPU_GATHER)
        if self.ledger.empty and not self._records:
            return
        if self._batch is not None:
            self._later(GATHER)
            return
        store = self._opened()
        self._taken = [0, 0]
        batch = self._batch = _Batch(self.ledger.take(), list(self._records))
        self._records.clear()
        today = day_of(self._clock.seconds())

        def write() -> None:
            store.write(batch.sums, batch.records, today)
            batch.written = True

        def written(_: None) -> None:
            self._batch = None
            self._failing = False
            self._tell(store)

        def failed(failure: Failure) -> None:
            if self._closed:
                # It has been seen to.
                return
            self._batch = None
            if not self._failing:
                self._log.warn("Usage cannot be written down now: {error}", error=failure.value)
            self._failing = True
            self._tell(store)
            self._give_back(batch)
            self._later(GPU_GATHER)

        self._lane.run(write).addCallbacks(written, failed)

    def _give_back(self, batch: _Batch) -> None:
        self.ledger.give_back(batch.sums)
        room = MOST_WAITING - len(self._records)
        self._records.extendleft(reversed(batch.records[-room:] if room else []))

    def _opened(self) -> Store:
        if self._store is None:
            self._store = self._make_store()
        return self._store

    def _tell(self, store: Store) -> None:
        notes, store.notes[:] = list(store.notes), []
        for note in notes:
            self._log.warn("{note}", note=note)

    # -- GPU time -----------------------------------------------------------------------------------

    def _share_out(self) -> None:
        """Charge the GPU time of all backends up to now."""
        now = self._clock.seconds()
        if self._occupancy.backends:
            open_ = list(self.open_requests())
            for backend, held in self._occupancy.told(now).items():
                self._charge(backend, held, now, [one for one in open_ if one.backend == backend])
        self.ledger.forget(self._occupancy.backends)

    def _charge(self, backend: str, held: float, now: float, open_: Sequence[Open] = ()) -> None:
        self.ledger.occupied(backend, held * self._claim(backend), held, now, open_)
