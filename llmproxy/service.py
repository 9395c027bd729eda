"""The proxy as one Twisted service: what listens, the fleet behind it, and the order of start and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from attrs import evolve
from twisted.application.service import Service
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.model import Config, Limits
from llmproxy.errors import ConfigError
from llmproxy.fleet.fleet import Fleet
from llmproxy.listening.listen import listen
from llmproxy.reactors.descriptors import accept_gently, room_for
from llmproxy.web.family import Family
from llmproxy.web.site import ProxySite

if TYPE_CHECKING:
    from llmproxy.listening.serving import Certificates
    from llmproxy.upgrade.inherited import Inherited
    from llmproxy.web.family import Family

__all__ = ["ProxyService"]

DRAIN_LOOK = 0.05
"""Seconds between looks at what is still in flight while the proxy ends."""

FIRST_WORDS = 0.3
"""Seconds that a client who has just connected has for its first request when the proxy ends."""

OTHER_FILES = 96
"""Of the process: the log, state and usage, what listens, threads of the Docker client, bodies in files."""

FILES_OF_A_BACKEND = 4
"""A probe, a control, its events or log, its process."""


class ProxyService(Service):
    """Listens, serves, reloads, and ends in order.

    The order of the end cannot be left to ``MultiService``, which stops all its children at once: first no
    new connections, then those who wait are refused, then what is in flight finishes within ``drain``
    seconds, then the backends are left or stopped.

    :param reload: reads all sources of the configuration again.
    :param failed: called with one line when the proxy cannot listen.
    :param adopted: called with the application that this becomes a part of.
    :ivar inherited: sockets that the process before this one has listened on.
    :ivar begun: called once it is known what runs and requests are dispatched.
    :ivar reloaded: called with True when the configuration is about to be read again, and with False when
        that is over.
    :ivar ending: called when the end begins.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        fleet: Fleet,
        site: ProxySite,
        reload: Callable[[], Deferred[Config]],
        failed: Callable[[str], None],
        adopted: Callable[[Any], None] = lambda application: None,
    ) -> None:
        self._reactor = reactor
        self._adopted = adopted
        self._fleet = fleet
        self._site = site
        self._reload = reload
        self._failed = failed
        self.inherited: Inherited | None = None
        self.begun: list[Callable[[], None]] = []
        self.reloaded: list[Callable[[bool], None]] = []
        self.ending: list[Callable[[], None]] = []
        self._ports: list[IListeningPort] = []
        self._named: dict[str, Any] = {}
        self._handed_over = False
        self._listens: tuple[str, ...] = ()
        self._certificates: Certificates | None = None

    def setServiceParent(self, parent: Any) -> None:
        """See :class:`twisted.application.service.IService`."""
        super().setServiceParent(parent)
        self._adopted(parent)

    def startService(self) -> None:
        """Listen at once; requests are dispatched as soon as it is known what runs."""
        super().startService()
        for note in self._fleet.config.notes:
            self._log.warn("{note}", note=note)
        self._bound()
        self._site.ready = Deferred()
        self._listens = self._fleet.config.listen
        listens = [self._listen(description) for description in self._fleet.config.listen]
        DeferredList(listens).addCallback(lambda _: self._listening())

    def _listen(self, description: str) -> Deferred[None]:
        try:
            listening = listen(
                self._reactor, description, self._site, self._serve_certificates, self.inherited
            )
        except ConfigError as cause:
            # The files have changed since the settings were read.
            self._failed(str(cause))
            return succeed(None)

        def refused(failure: Failure) -> None:
            self._failed(f"cannot listen on {description}: {failure.value}")

        def listens(port: IListeningPort) -> None:
            self._ports.append(port)
            self._named[description] = port

        done: Deferred[None] = listening.addCallbacks(listens, refused)
        return done

    def _serve_certificates(self) -> Certificates:
        if self._certificates is None:
            # Most proxies have no TLS of their own.
            from llmproxy.listening.serving import Certificates

            self._certificates = Certificates(self._reactor)
        return self._certificates

    def collect(self) -> Iterator[Family]:
        """What metrics tell of that which is served: see :class:`~llmproxy.web.family.Collector`."""
        timers = Family("gauge", "llmproxy_timers", "Calls that the reactor has planned.", ())
        timers.add((), len(self._reactor.getDelayedCalls()))
        yield timers
        if self._certificates is not None:
            yield from self._certificates.collect()

    def _bound(self) -> None:
        """Serve no more connections than there are file descriptors for, and say so."""
        config = self._fleet.config
        limits, told = fitting(config.limits, len(config.backends), room_for)
        self._site.bound(limits)
        if told:
            self._log.warn("{told}", told=told)

    def _listening(self) -> None:
        if len(self._ports) != len(self._fleet.config.listen):
            return
        for port in self._ports:
            accept_gently(port, self._reactor)
            self._log.info("listening on {where}", where=_where(port.getHost()))
        if self.inherited is not None:
            # The process before this one still serves.
            self.pause()
        routes = ", ".join(f"/{name}" for name in self._fleet.backends) or "none yet"
        self._log.info("routes: {routes}", routes=routes)
        started = maybeDeferred(self._fleet.start)
        started.addErrback(lambda failure: self._log.failure("looking at what runs", failure))
        started.addCallback(lambda _: self._started())

    def _started(self) -> None:
        self._site.fleet_started()
        for tell in self.begun:
            tell()

    # -- another process takes its place ------------------------------------------------------------

    @property
    def sockets(self) -> dict[str, int]:
        """Descriptors of what listens, by endpoint."""
        return {description: port.fileno() for description, port in self._named.items()}

    def pause(self) -> None:
        """Accept no connection until :meth:`resume`; who comes waits in the kernel's queue."""
        for port in self._ports:
            cast(Any, port).stopReading()

    def resume(self) -> None:
        """Accept again."""
        for port in self._ports:
            cast(Any, port).startReading()

    def hand_over(self) -> None:
        """Let go of the sockets that another process listens on, and end without touching a backend."""
        self._handed_over = True
        self._ports, named, self._named = [], self._named, {}
        for port in named.values():
            port.stopReading()
            # Twisted would end the socket itself, which is that process's as well.
            port.connected = False
            port.socket.close()

    # -- while it runs ------------------------------------------------------------------------------

    def reload(self, why: str) -> Deferred[None]:
        """Read the configuration again and touch only what changed; a bad one changes nothing.

        :param why: for the log.
        """
        if self._handed_over:
            return succeed(None)
        if self._certificates is not None:
            self._certificates.look(asked=True)
        for tell in self.reloaded:
            tell(True)
        done = self._reload().addCallback(self._apply, why).addErrback(self._not_reloaded)
        return done.addCallback(self._has_reloaded)

    def _has_reloaded(self, _: None) -> None:
        for tell in self.reloaded:
            tell(False)

    def _not_reloaded(self, failure: Failure) -> None:
        if isinstance(failure.value, ConfigError):
            self._log.error("not reloaded, the old configuration stays: {why}", why=str(failure.value))
        else:
            self._log.failure("reading the configuration again", failure)

    def _apply(self, config: Config, why: str) -> None:
        if not self.running or self._fleet.closing:
            return
        if self._fleet.config.keys and not config.keys and config.listen != self._listens:
            # Without keys everybody may do everything, and what listens stays open to the network until then.
            raise ConfigError("no key is configured any more; listening on loopback only needs a new start")
        self._site.use_keys(config.keys)
        self._site.believe(config.trusted_proxies, config.allowed_hosts)
        changes = "; ".join(self._fleet.apply(config)) or "nothing about backends changed"
        self._bound()
        self._log.info("configuration read again ({why}): {changes}", why=why, changes=changes)

    def stopService(self) -> Deferred[None]:
        """End in order; fires when everything has."""
        super().stopService()
        for tell in self.ending:
            tell()
        if self._certificates is not None:
            self._certificates.close()
        ports, self._ports = self._ports, []
        closing: list[Deferred[Any]] = [maybeDeferred(port.stopListening) for port in ports]
        # Who has just been let in is about to ask, and is served as if it had been a moment earlier.
        if any(self._site.newcomers()):
            self._site.closing = True
            closing.append(self._until(lambda: not any(self._site.newcomers()), FIRST_WORDS))
            refused = DeferredList(closing).addCallback(lambda _: self._refuse())
        else:
            self._refuse()
            refused = DeferredList(closing).addCallback(lambda _: None)
        closed = refused.addCallback(lambda _: self._drained())
        closed = closed.addCallback(lambda _: self._fleet.close())
        return closed.addCallback(lambda _: self._let_go_clients())

    def _refuse(self) -> None:
        self._fleet.refuse_new()
        self._site.close_idle()
        # Those who still wait for the first look at what runs are told, too.
        self._site.fleet_started()

    def _drained(self) -> Deferred[None]:
        if not self._busy():
            return succeed(None)
        self._log.info(
            "{count} requests in flight, waiting up to {drain:g} s for them",
            count=self._fleet.in_flight(),
            drain=self._fleet.config.drain,
        )
        return self._until(lambda: not self._busy(), self._fleet.config.drain)

    def _until(self, over: Callable[[], bool], seconds: float) -> Deferred[None]:
        deadline = self._reactor.seconds() + seconds

        def look() -> None:
            if over() or self._reactor.seconds() >= deadline:
                looking.stop()

        looking = LoopingCall(look)
        looking.clock = self._reactor
        return looking.start(DRAIN_LOOK).addCallback(lambda _: None)

    def _busy(self) -> bool:
        return self._fleet.in_flight() > 0 or any(channel.unsent() for channel in self._site.channels)

    def _let_go_clients(self) -> None:
        for channel in list(self._site.channels):
            channel.loseConnection()
        self._site.access_log.flush()


def fitting(limits: Limits, backends: int, room: Callable[[int], int]) -> tuple[Limits, str]:
    """The limits that can be kept with the file descriptors that there are, and a line where they differ.

    :param backends: how many backends there are.
    :param room: sees to it that so many files may be open, as far as that is allowed, and says how many may.
    """
    others = OTHER_FILES + FILES_OF_A_BACKEND * backends
    allowed = room(others + 2 * limits.max_connections)
    # A client's connection, and one to its backend.
    most = max(1, (allowed - others) // 2)
    if most >= limits.max_connections:
        return limits, ""
    return evolve(limits, max_connections=most), (
        f"only {allowed} files may be open, so that at most {most} connections are served at once, and not"
        f" {limits.max_connections}: raise the limit (LimitNOFILE= in systemd's unit, ulimits in Compose,"
        " ulimit -n), or lower limits.max_connections"
    )


def _where(address: IAddress) -> str:
    """An address as a person would type it."""
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    return str(getattr(address, "name", address))
