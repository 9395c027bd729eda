"""In the old process: requests that are handed over go to the new one as if that were their backend."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from attrs import define, evolve
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.web.resource import Resource

from llmproxy.backend.progress import Forecast
from llmproxy.config.model import BackendSpec
from llmproxy.http.headers import Fields
from llmproxy.relay.upstream import UpstreamConnection
from llmproxy.runtimes.interface import Address
from llmproxy.runtimes.spare import NONE_LEFT
from llmproxy.upgrade.handed import Handed, handed_head, own_lines
from llmproxy.web.auth import NOBODY
from llmproxy.web.exchange import Exchange
from llmproxy.web.resource import ProxyResource

if TYPE_CHECKING:
    from llmproxy.backend.backend import Backend
    from llmproxy.backend.gate import Lease, Waiter
    from llmproxy.fleet.fleet import Fleet
    from llmproxy.upgrade.line import Line
    from llmproxy.web.request import ProxyRequest

__all__ = ["Heir", "HeirResource", "Passages", "connect_by", "heirs"]

_FACTORY = Factory.forProtocol(UpstreamConnection)
_FACTORY.noisy = False

AGAIN = 0.5
"""Seconds until it is tried again to make a connection where there was no descriptor for it."""

PATIENCE = 10.0
"""Seconds for which that is tried; whoever waits for a model has most often waited longer."""

Connect = Callable[[], Deferred[UpstreamConnection]]


def connect_by(reactor: Any, line: Line) -> Connect:
    """Makes connections to the new process: a pair of sockets each, of which it gets one."""

    def make() -> UpstreamConnection:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            ours.setblocking(False)
            transport = reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, _FACTORY)
            try:
                line.say("relay", theirs.fileno())
            except OSError:
                transport.abortConnection()
                raise
        connection: UpstreamConnection = transport.protocol
        return connection

    async def connect() -> UpstreamConnection:
        until = reactor.seconds() + PATIENCE
        while True:
            try:
                return make()
            except OSError as cause:
                # This process lacks it until some connection is over; the new one is as it was.
                if cause.errno not in NONE_LEFT or reactor.seconds() >= until:
                    raise
            await deferLater(reactor, AGAIN)

    return lambda: Deferred.fromCoroutine(connect())


class Passages:
    """Connections to the new process, one for each request; has the place of a connection pool."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect

    def kept(self) -> None:
        """None is kept."""

    def connect(self) -> Deferred[UpstreamConnection]:
        """See :meth:`llmproxy.relay.pool.ConnectionPool.connect`."""

        def connected(connection: UpstreamConnection) -> UpstreamConnection:
            connection.on_idle = lambda one: one.abort()
            return connection

        return self._connect().addCallback(connected)


_NOWHERE = Address("", 0, "handed")


@define(eq=False)
class _Passage:
    """Has the place of a :class:`~llmproxy.backend.gate.Lease`."""

    pool: Passages
    address: Address = _NOWHERE
    counted: bool = False
    movable: bool = False

    def release(self, *, suspicious: bool = False) -> None:
        """The exchange is over."""


@define(eq=False)
class Heir:
    """Has the place of a :class:`~llmproxy.backend.backend.Backend` for exchanges that are handed over.

    :ivar prefix: what is put before their paths: the route, for those whose backend is known.
    """

    spec: BackendSpec
    prefix: bytes
    passages: Passages
    state: str = "ready"

    @property
    def name(self) -> str:
        """The route, for errors."""
        return self.spec.route

    @property
    def hands_on(self) -> Heir:
        """See :class:`~llmproxy.backend.makeup.HandsOn`."""
        return self

    def lines(self, fields: Fields) -> bytes:
        """See :class:`~llmproxy.backend.makeup.HandsOn`."""
        return own_lines(fields)

    def head(self, request: ProxyRequest, target: bytes, length: int | None, upgrade: bytes | None) -> bytes:
        """The head of the request for the new process, which also writes down what becomes of it."""
        request.entry = None
        key = None if request.key is NOBODY else request.key.name
        return handed_head(
            request.method,
            self.prefix + target,
            request.fields,
            Handed(request.channel.origin, request.arrived, key),
            request_id=request.request_id,
            length=length,
            upgrade=upgrade,
        )

    def enter(self, waiter: Waiter) -> bool:
        """Hand it over at once."""
        # It is to the exchange what a lease is.
        waiter.admitted(cast("Lease", _Passage(self.passages)))
        return False

    def leave(self, waiter: Waiter) -> None:
        """Nobody waits here."""

    def keep(self, seconds: float) -> None:
        """The new process is told by the request itself."""

    def retry_after(self, otherwise: float) -> float:
        """Nothing is known here."""
        return otherwise

    def forecast(self) -> Forecast:
        """Nothing is known here."""
        return Forecast()


def heirs(fleet: Fleet, passages: Passages) -> Callable[[str], Backend | None]:
    """What stands for the backend of a route from now on."""

    def heir(route: str) -> Backend | None:
        backend = fleet.route(route)
        if backend is None:
            return None
        prefix = b"/" + backend.name.encode("utf-8")
        return cast("Backend", Heir(evolve(backend.spec, auth="passthrough"), prefix, passages))

    return heir


class HeirResource(Resource):
    """The root of the tree from now on: whatever still comes on an old connection is the new process's."""

    def __init__(self, fleet: Fleet, passages: Passages) -> None:
        super().__init__()
        self._all = _HandOver(fleet, cast("Backend", Heir(BackendSpec(route="-"), b"", passages)))

    def getChild(self, path: bytes, request: Any) -> Resource:
        """The same for all paths."""
        return self._all


class _HandOver(ProxyResource):
    def __init__(self, fleet: Fleet, heir: Backend) -> None:
        super().__init__()
        self._fleet = fleet
        self._heir = heir

    def serve(self, request: ProxyRequest) -> None:
        """Hand it over as it is."""
        Exchange(request, self._fleet, self._heir, request.uri).begin()
