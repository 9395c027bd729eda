"""Looks after what runs on hosts that are away.

That an engine does not answer says nothing of what it runs: it may be restarted, or be cut off from us alone.
So nothing ends with it.  But where its backends do not answer either they are taken for ended, so that who
waits for one is served from another host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from llmproxy.backend.backend import Backend
from llmproxy.backend.probe import Connect, Verdict, probe_once
from llmproxy.backend.surroundings import Decision
from llmproxy.fleet.places import Places

__all__ = ["EVERY", "REFUSED_FOR", "SILENT_FOR", "Lookout"]

EVERY = 2.0
"""Seconds between two questions."""

REFUSED_FOR = 4.0
"""Seconds for which one has to refuse, or to say that it is unwell: by then it was asked three times."""

SILENT_FOR = 30.0
"""Seconds for which one has to be silent, as a machine without power is: one that is busy may be silent for a
while, and a switch that is restarted takes half a minute."""

_RUNS = ("starting", "ready", "draining")


@define(eq=False)
class Lookout:
    """Asks the backends of hosts that are away for their health.

    :param frozen: nothing is decided at present: another process does.
    """

    _clock: IReactorTime
    _connect: Connect
    _places: Places
    _backends: Callable[[], Iterable[Backend]]
    _record: Callable[[Decision], None]
    _frozen: Callable[[], bool]
    # Since when each has refused, and since when it has not answered at all.
    _refuses: dict[Backend, float] = field(factory=dict, init=False)
    _silent: dict[Backend, float] = field(factory=dict, init=False)
    _next: IDelayedCall | None = field(default=None, init=False)
    _asking: Deferred[list[tuple[bool, None]]] | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    def look(self) -> None:
        """A host is away, or there again."""
        if self._next is None and self._asking is None and not self._closed:
            self._next = self._clock.callLater(0, self._ask)

    def close(self) -> None:
        """Ask no more."""
        self._closed = True
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._asking is not None:
            self._asking.cancel()

    def _ask(self) -> None:
        self._next = None
        cut_off = [] if self._frozen() else [one for one in self._backends() if self._is_cut_off(one)]
        for known in (self._refuses, self._silent):
            for backend in known.keys() - set(cut_off):
                del known[backend]
        if cut_off:
            asking = self._asking = DeferredList([self._ask_one(one) for one in cut_off], consumeErrors=True)
            asking.addBoth(self._asked)
        elif any(state.away and state.expected for state in self._places.states()):
            # What is there may change, as one that is found to sleep is woken.
            self._later()

    def _is_cut_off(self, backend: Backend) -> bool:
        return backend.state in _RUNS and backend.instance is not None and self._places.is_away(backend)

    def _asked(self, _: object) -> None:
        self._asking = None
        self._later()

    def _later(self) -> None:
        if not self._closed:
            self._next = self._clock.callLater(EVERY, self._ask)

    def _ask_one(self, backend: Backend) -> Deferred[None]:
        addresses = () if backend.instance is None else backend.instance.addresses
        if backend.address is not None:
            addresses = (backend.address,)
        questions = [probe_once(self._clock, self._connect, one, backend.spec.health) for one in addresses]
        return DeferredList(questions, consumeErrors=True).addCallback(self._heard, backend)

    def _heard(self, answers: list[tuple[bool, Verdict]], backend: Backend) -> None:
        verdicts = {verdict for _, verdict in answers}
        now = self._clock.seconds()
        if self._closed or not self._is_cut_off(backend):
            return
        if "healthy" in verdicts:
            self._refuses.pop(backend, None)
            self._silent.pop(backend, None)
            return
        if "silent" in verdicts:
            self._refuses.pop(backend, None)
        else:
            self._refuses.setdefault(backend, now)
        self._silent.setdefault(backend, now)
        # One that starts refuses until it has started.
        refused = backend.state != "starting" and now - self._refuses.get(backend, now) >= REFUSED_FOR
        if refused or now - self._silent[backend] >= SILENT_FOR:
            self._lose(backend, now)

    def _lose(self, backend: Backend, now: float) -> None:
        host, hosts = self._places.at(backend), self._places.hosts
        assert hosts is not None
        self._refuses.pop(backend, None)
        self._silent.pop(backend, None)
        self._record(Decision(now, backend.name, "lost", f"its host {host} is away, and it does not answer"))
        hosts.lose(backend.spec)
