"""Asking a backend's health path, at short intervals and each time with a limit of its own.

A port that refuses (vLLM's, until the engine is ready) is asked again after :data:`INTERVAL`; one that
accepts and never answers is given up after :data:`ANSWER_LIMIT` and asked again, so that a backend that
hangs counts against the start deadline and nothing else.  Where nobody waits for what is asked, the pauses
grow to :data:`PATIENCE_MOST`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal
from weakref import WeakKeyDictionary, WeakSet

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.python.failure import Failure

from llmproxy.backend.knock import Knock
from llmproxy.http.headers import authority
from llmproxy.relay.endpoints import lacking
from llmproxy.relay.upstream import UPSTREAM, Broken, ResponseHead, UpstreamConnection
from llmproxy.runtimes.interface import Address

__all__ = ["ANSWER_LIMIT", "INTERVAL", "PATIENCE_FIRST", "PATIENCE_MOST", "Prober", "Verdict", "probe_once"]

INTERVAL = 0.018
"""Seconds between probes.  A refused connection on the same machine costs a fraction of a millisecond, so
this keeps the wait after readiness at about 10 ms at the median for less than 2 % of a core."""

MOST_EACH_SECOND = 1000
"""Probes of all backends that are asked every :data:`INTERVAL`; with more than 18 of them the pauses grow.
Each takes 0.2 ms where a connection is made, and hundreds may start at once on a cluster."""

PATIENCE_FIRST = 0.25
PATIENCE_MOST = 30.0
"""Seconds between probes of what runs without a start of ours while nobody waits for it: each pause is twice
as long as the one before.  A backend elsewhere may be away for days, and a configuration may have hundreds; a
probe that is refused costs 0.2 ms.  The first request has it asked at once."""

ANSWER_LIMIT = 2.0
"""Seconds that one probe may take; a healthy vLLM answers ``/health`` in milliseconds, also under load."""

Verdict = Literal["healthy", "unhealthy", "refused", "silent"]

Connect = Callable[[Address], IStreamClientEndpoint]


class _Question:
    """One probe of one address; hears the answer as the handler of its connection."""

    def __init__(
        self, clock: IReactorTime, endpoint: IStreamClientEndpoint, address: Address, path: str
    ) -> None:
        self.answered: Deferred[Verdict] = Deferred(lambda _: self._give_up())
        self._settled = False
        self._head = b"GET %s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: llmproxy\r\nConnection: close\r\n\r\n" % (
            address.prefix.encode("ascii"),
            path.encode("ascii"),
            authority(address.host, address.port, 443 if address.tls else 80),
        )
        self._connection: UpstreamConnection | None = None
        self._limit: IDelayedCall = clock.callLater(ANSWER_LIMIT, self._settle, "silent")
        self._connecting = endpoint.connect(UPSTREAM)
        self._connecting.addCallbacks(self._connected, self._not_connected)

    def _connected(self, connection: object) -> None:
        assert isinstance(connection, UpstreamConnection)
        self._connection = connection
        connection.send(self._head, b"", self)

    def _not_connected(self, failure: Failure) -> None:
        self._settle("silent" if lacking(failure) else "refused")

    def response_head(self, head: ResponseHead) -> None:
        self._settle("healthy" if head.status == 200 else "unhealthy")

    def response_data(self, pieces: list[bytes]) -> None:
        """Its status is all that counts."""

    def response_end(self) -> None:
        """Its status has been told."""

    def response_broken(self, broken: Broken) -> None:
        # Docker's userland proxy accepts for a container that does not listen yet, and closes.
        self._settle("refused")

    def _give_up(self) -> None:
        self._settled = True
        self._close()

    def _settle(self, verdict: Verdict) -> None:
        # To give up connecting is told as its failure, at once.
        if not self._settled:
            self._settled = True
            self._close()
            self.answered.callback(verdict)

    def _close(self) -> None:
        if self._limit.active():
            self._limit.cancel()
        if self._connection is not None:
            self._connection.abort()
        else:
            self._connecting.cancel()


def probe_once(clock: IReactorTime, connect: Connect, address: Address, path: str) -> Deferred[Verdict]:
    """Ask once.

    Fires with ``healthy`` (200), ``unhealthy`` (another status), ``refused`` (no connection, or one that
    closed without an answer) or ``silent`` (nothing within :data:`ANSWER_LIMIT` seconds, or it could not be
    asked for want of a descriptor).
    """
    return _Question(clock, connect(address), address, path).answered


_ASKING: WeakKeyDictionary[IReactorTime, WeakSet[Prober]] = WeakKeyDictionary()
"""Those that ask at present, of each reactor."""


class Prober:
    """Asks until one of the addresses answers 200.

    :param addresses: asked side by side; when several answer, the first of them counts.
    :param healthy: called once, with the address.
    :param knock_at: what says at once that nobody listens at an address, where that can be said.
    :param patient: nobody waits for it yet, so ask less and less often until :meth:`hurry`.
    """

    def __init__(
        self,
        clock: IReactorTime,
        connect: Connect,
        addresses: Sequence[Address],
        path: str,
        healthy: Callable[[Address], None],
        *,
        knock_at: Callable[[Address], Knock | None] = lambda _: None,
        patient: bool = False,
    ) -> None:
        self._clock = clock
        self._path = path
        self._healthy = healthy
        self._stopped = False
        self._knock_at = knock_at
        self._knocks: dict[Address, Knock] = {}
        self._silent = set(addresses)
        self._pauses = dict.fromkeys(addresses, PATIENCE_FIRST) if patient else {}
        # One endpoint for all probes: for TLS it has a context with all trusted certificates.
        self._endpoints = {address: connect(address) for address in addresses}
        self._asking: dict[Address, Deferred[Verdict]] = {}
        self._waiting: dict[Address, IDelayedCall] = {}
        self._others = _ASKING.setdefault(clock, WeakSet())
        self._others.add(self)
        for address in addresses:
            self._ask(address)

    @property
    def patient(self) -> bool:
        """It asks less and less often."""
        return bool(self._pauses)

    def hurry(self) -> None:
        """Somebody waits for it now: ask at once, and every :data:`INTERVAL` from now on."""
        if not self._pauses:
            return
        self._pauses = {}
        waiting, self._waiting = self._waiting, {}
        for address, call in waiting.items():
            call.cancel()
            self._ask(address)

    def _ask(self, address: Address) -> None:
        self._waiting.pop(address, None)
        if self._stopped:
            return
        # Only until somebody listens: to knock is a connection, too, and of no use where it is accepted.
        if address in self._silent and self._is_refused(address):
            self._waiting[address] = self._clock.callLater(self._pause(address), self._ask, address)
            return
        self._silent.discard(address)
        question = _Question(self._clock, self._endpoints[address], address, self._path).answered
        self._asking[address] = question
        question.addCallback(self._heard, address, question)
        # Cancelled by stop(); nothing else can fail.
        question.addErrback(lambda _: None)

    def _is_refused(self, address: Address) -> bool:
        knock = self._knocks.pop(address, None) or self._knock_at(address)
        if knock is None:
            return False
        refused = knock.is_refused()
        if refused and not self._pauses:
            # Many may be asked patiently, and none of them is worth a descriptor meanwhile.
            self._knocks[address] = knock
        else:
            knock.close()
        return refused

    def _heard(self, verdict: Verdict, address: Address, question: Deferred[Verdict]) -> None:
        if self._asking.get(address) is question:
            del self._asking[address]
        if self._stopped:
            return
        if verdict == "healthy":
            self.stop()
            self._healthy(address)
        else:
            self._waiting[address] = self._clock.callLater(self._pause(address), self._ask, address)

    def _pause(self, address: Address) -> float:
        pause = self._pauses.get(address)
        if pause is None:
            return max(INTERVAL, len(self._others) / MOST_EACH_SECOND)
        self._pauses[address] = min(PATIENCE_MOST, pause * 2)
        return pause

    def stop(self) -> None:
        """Ask no more."""
        self._stopped = True
        self._others.discard(self)
        while self._knocks:
            self._knocks.popitem()[1].close()
        asking, self._asking = self._asking, {}
        waiting, self._waiting = self._waiting, {}
        for question in asking.values():
            question.cancel()
        for call in waiting.values():
            call.cancel()
