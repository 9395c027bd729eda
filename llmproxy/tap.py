"""``twistd llmproxy``: reads the settings and puts every concrete part together.

The only module that knows them all, and the only one that uses the global reactor.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.application.service import IService
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure

from llmproxy import __version__
from llmproxy.backend.knock import knock_at
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.loader import Loader
from llmproxy.config.model import Config, digest_of
from llmproxy.config.resolve import CommandLine
from llmproxy.engines.redaction import redact, secret_values
from llmproxy.errors import ConfigError, UpgradeFailed
from llmproxy.fleet.fleet import Fleet
from llmproxy.fleet.keeping import remember
from llmproxy.garbage import Tidy, tune_collector
from llmproxy.listening.listen import check
from llmproxy.observe.log import log_to
from llmproxy.reactors import install_unless_chosen
from llmproxy.relay.endpoints import endpoint_for
from llmproxy.runtimes.docker_later import DockerWhenNeeded, read_labels
from llmproxy.runtimes.docker_threads import Lane
from llmproxy.runtimes.gpus import IGpuMeter, driver_is_here, find_meter, is_absent, open_nvml, settle
from llmproxy.runtimes.interface import Address, IRuntime, RuntimeUnavailable
from llmproxy.runtimes.process import ProcessRuntime
from llmproxy.runtimes.swarm_later import SwarmWhenNeeded, read_service_labels
from llmproxy.runtimes.url import UrlRuntime
from llmproxy.service import ProxyService
from llmproxy.usage.keeping import keep_book
from llmproxy.web.accesslog import AccessLog, Entry
from llmproxy.web.auth import Authenticator
from llmproxy.web.metrics import Metrics, MetricsResource
from llmproxy.web.resources import RootResource
from llmproxy.web.site import ProxySite
from llmproxy.web.underway import open_sums

if TYPE_CHECKING:
    from llmproxy.fleet.state_file import StateFile
    from llmproxy.runtimes.hosts import HostsRuntime
    from llmproxy.systemd import Supervised
    from llmproxy.upgrade.inherited import Inherited
    from llmproxy.upgrade.new import Successor
    from llmproxy.upgrade.old import Upgrader
    from llmproxy.usage.book import Book

__all__ = ["Options", "makeService"]

LABELS_LIMIT = 5.0
"""Seconds that the start waits for the engine's labels; an engine that is away is no fault of a setting."""

END = 10.0
"""Seconds for what remains to be done when all answers have finished."""

_log = Logger()


def _refuse(message: str) -> NoReturn:
    """End with one line and exit status 2, before anything was started."""
    message = redact(message, secret_values(os.environ))
    sys.stderr.write(f"llmproxy: {message}\n")
    raise SystemExit(2)


def _exit_failed(message: str) -> NoReturn:
    sys.stdout.flush()
    # Twisted's log has taken the place of sys.stderr.
    if sys.__stderr__ is not None:
        sys.__stderr__.write(f"llmproxy: {message}\n")
        sys.__stderr__.flush()
    os._exit(1)


class Options(usage.Options):
    """The command line of ``twistd llmproxy``."""

    synopsis = "[--config FILE] [--listen ENDPOINT]... [--demo]"
    longdesc = (
        "A lazy reverse proxy in front of vLLM models: it starts the model that a request names, holds the"
        " request until the engine is healthy, and stops what nobody uses. Settings come from llmproxy.yaml,"
        " container labels, the environment and this command line; `llmproxy config` shows them all."
    )
    optParameters = [
        ["config", "c", None, "the configuration file [./llmproxy.yaml, /etc/llmproxy/llmproxy.yaml]"],
    ]
    optFlags = [["demo", None, "serve the built-in demo models; needs neither Docker nor a GPU"]]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    def opt_listen(self, endpoint: str) -> None:
        """Listen there: a Twisted endpoint string such as tcp:8000, unix:/run/llmproxy.sock or
        systemd:domain=INET:index=0. May be given several times. [tcp:8000]"""
        self["listen"].append(endpoint)

    opt_l = opt_listen

    def opt_version(self) -> NoReturn:
        """Show the version of llmproxy and end."""
        sys.stdout.write(f"llmproxy {__version__}\n")
        raise SystemExit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse, and end with exit status 2 where twistd itself would print its whole help and end with 0."""
        try:
            super().parseOptions(options)
        except usage.UsageError as cause:
            _refuse(f"{cause} (see twistd llmproxy --help)")

    def parseArgs(self, *arguments: str) -> None:
        """There are none."""
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}")


def makeService(options: Options) -> IService:
    """Read the settings and make the service.

    :raises SystemExit: with status 2 and one line on standard error when a setting is not allowed.
    """
    install_unless_chosen()
    from twisted.internet import reactor

    inherited = _inherited()
    try:
        return _Assembly(reactor, options, os.environ, inherited).service()
    except ConfigError as cause:
        if inherited is not None:
            from llmproxy.upgrade.new import refuse

            refuse(inherited, redact(str(cause), secret_values(os.environ)))
        _refuse(str(cause))


def _inherited() -> Inherited | None:
    """What this process has of the one whose place it takes (``llmproxy upgrade``)."""
    if "LLMPROXY_UPGRADE" not in os.environ:
        return None
    from llmproxy.upgrade.inherited import Inherited

    return Inherited.take(os.environ)


def _host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class _Assembly:
    """Puts the parts together, and reads the settings again when asked."""

    def __init__(
        self,
        reactor: Any,
        options: Options,
        environ: Mapping[str, str],
        inherited: Inherited | None = None,
    ) -> None:
        self._reactor = reactor
        self._inherited = inherited
        # twistd has not changed it yet.
        self._folder = os.getcwd()
        self._supervised: Supervised | None = None
        self._succeeds: Successor | None = None
        self._upgrader: Upgrader | None = None
        self._twistd: Mapping[str, Any] = getattr(options, "parent", None) or {}
        command_line = CommandLine(
            listen=tuple(options["listen"]), demo=bool(options["demo"]), python=sys.executable
        )
        self._environ = dict(environ)
        self._loader = Loader(self._environ, command_line, options["config"])
        self._demo = command_line.demo
        self._docker: DockerWhenNeeded | HostsRuntime | None = None
        self._swarm: SwarmWhenNeeded | None = None
        self._labelled: list[LabelledContainer] = []
        self._hosts_away: dict[str, str] = {}
        self._services: list[LabelledContainer] = []
        self._starting = True
        self._stopping = False

    def service(self) -> ProxyService:
        """Everything, ready to be started."""
        self._labelled = self._containers()
        config = self._load()
        runtimes = self._runtimes(config)
        self._fleet = Fleet(
            self._reactor, self._connect, runtimes, config, knock_at, host_memory=_host_memory() // 2
        )
        state = self._remember(config)
        self._reactor.callWhenRunning(self._measure_gpus)
        metrics = Metrics(self._fleet, __version__)
        book = keep_book(self._fleet, self._reactor, Lane(self._reactor, "usage", 1))
        metrics.count_tokens(book.ledger.totals)

        def observe(entries: Sequence[Entry]) -> None:
            metrics.observe(entries)
            book.observe(entries)
            site.limiter.observe(entries)

        access_log = AccessLog(self._reactor, observe, lambda: self._fleet.secrets)
        root = RootResource(self._fleet)
        root.putChild(b"metrics", MetricsResource(metrics, access_log.flush))
        site = ProxySite(root, self._reactor, Authenticator(config.keys), config.limits, access_log)
        site.believe(config.trusted_proxies, config.allowed_hosts)
        site.book, book.open_requests = book, lambda: open_sums(site)
        site.state_dir = config.state_dir
        site.use_keys(config.keys)
        site.read_key_file()
        self._service = ProxyService(
            self._reactor, self._fleet, site, self._load_again, self._cannot_listen, self._log_for
        )
        metrics.tell(self._service)
        self._take_and_give_place(site, state, book)
        self._supervise()
        self._reactor.callWhenRunning(self._listen_to_signals)
        self._reactor.callWhenRunning(tune_collector)
        self._reactor.callWhenRunning(Tidy(self._reactor).start)
        self._reactor.callWhenRunning(self._trace, site)
        # Of what is cut at the end it is known only when its connection has gone.
        self._reactor.addSystemEventTrigger("after", "shutdown", access_log.flush)
        self._reactor.addSystemEventTrigger("after", "shutdown", book.close)
        if self._docker is not None:
            self._docker.on_catalogue_change(self._catalogue_changed)
        if self._swarm is not None:
            self._swarm.on_catalogue_change(self._services_changed)
        return self._service

    def _trace(self, site: ProxySite) -> None:
        if not any(name.startswith("OTEL_") for name in self._environ):
            return
        from llmproxy.observe.tracing import trace

        def ends(last: Callable[[], None]) -> None:
            self._reactor.addSystemEventTrigger("after", "shutdown", last)

        site.tracer = trace(self._environ, self._fleet, self._reactor, ends)

    def _log_for(self, application: Any) -> None:
        log_to(
            application,
            self._twistd,
            lambda: self._fleet.config.log,
            self._reactor,
            lambda: self._fleet.secrets,
        )

    def _containers(self) -> list[LabelledContainer]:
        if self._demo:
            return []
        bare = self._loader.bare()
        if bare.hosts:
            from llmproxy.runtimes.hosts_later import read_all_labels

            found, self._hosts_away = read_all_labels(bare, LABELS_LIMIT)
        else:
            try:
                found = read_labels(bare.docker, LABELS_LIMIT)
            except RuntimeUnavailable as cause:
                _log.info("labels will be read when the engine answers: {cause}", cause=str(cause))
                return []
        try:
            self._services = read_service_labels(bare.docker, LABELS_LIMIT)
        except RuntimeUnavailable as cause:
            _log.info("labels of services will be read when their manager answers: {cause}", cause=str(cause))
        return found

    def _runtimes(self, config: Config) -> dict[str, IRuntime]:
        digests = {key.digest for key in config.keys}
        process = ProcessRuntime(
            self._reactor,
            config.state_dir,
            backend_key=config.backend_key,
            secret_names=frozenset(
                name for name, value in self._environ.items() if digest_of(value) in digests
            ),
        )
        self._process = process
        if self._inherited is None:
            # When the reactor runs, the children that are still wanted have been adopted.
            self._reactor.callWhenRunning(self._end_strays)
        runtimes: dict[str, IRuntime] = {"process": process, "url": UrlRuntime()}
        if not self._demo:
            if config.hosts:
                from llmproxy.runtimes.hosts_later import hosts_runtime

                self._docker = hosts_runtime(
                    self._reactor, config, lambda: self._loader.compose, self._labelled, self._hosts_away
                )
            else:
                self._docker = DockerWhenNeeded(
                    self._reactor,
                    config.docker,
                    compose=lambda: self._loader.compose,
                    backend_key=config.backend_key,
                )
            runtimes["docker"] = self._docker
            self._swarm = SwarmWhenNeeded(self._reactor, config.docker, backend_key=config.backend_key)
            runtimes["swarm"] = self._swarm
        return runtimes

    def _end_strays(self) -> None:
        backends = self._fleet.config.backends.values()
        self._process.end_strays([spec for spec in backends if spec.runtime == "process"])

    def _remember(self, config: Config) -> StateFile:
        state = remember(self._fleet, self._reactor, config.state_dir)
        self._reactor.addSystemEventTrigger("after", "shutdown", state.close)
        return state

    # -- one process takes another's place ----------------------------------------------------------

    def _take_and_give_place(self, site: ProxySite, state: StateFile, book: Book) -> None:
        proxy = (self._reactor, self._fleet, site, self._service, state, book)
        if self._inherited is not None:
            from llmproxy.upgrade.new import Successor

            self._succeeds = Successor(
                *proxy, self._inherited, served=self._serves, alone=self._end_strays, stop=self._stop
            )
            self._process.spared = self._succeeds.marks.spared

        def upgrader() -> Upgrader:
            from llmproxy.upgrade.old import Parts, Upgrader

            parts = Parts(*proxy, self._supervised, self._stop)
            if self._succeeds is not None:
                parts.former, parts.decides_again = self._succeeds.has_former, self._succeeds.decides_again
            return Upgrader(parts, folder=self._folder)

        def upgrade() -> Deferred[dict[str, Any]]:
            why = self._no_upgrade()
            if why is not None:
                return fail(UpgradeFailed(why))
            if self._upgrader is None:
                self._upgrader = upgrader()
            return self._upgrader.upgrade()

        site.upgrade = self._upgrade = upgrade

    def _no_upgrade(self) -> str | None:
        from llmproxy.upgrade.spawn import first_process, no_upgrade

        return no_upgrade(
            self._twistd,
            self._environ,
            sys.orig_argv,
            os.getpid(),
            os.getppid(),
            first_process,
            successor=self._succeeds is not None,
        )

    def _asked_to_upgrade(self) -> None:
        self._upgrade().addErrback(lambda failure: _log.error("no upgrade: {why}", why=str(failure.value)))

    def _supervise(self) -> None:
        if not self._environ.get("NOTIFY_SOCKET"):
            return
        from llmproxy.systemd import supervised

        one = self._supervised = supervised(self._reactor, lambda: self._fleet.scheduler.sound)
        if one is None:
            return
        if self._succeeds is None:
            self._service.begun.append(self._serves)
        self._service.reloaded.append(lambda begins: one.reloads() if begins else self._serves())
        self._service.ending.append(self._ends)

    def _serves(self) -> None:
        if self._supervised is not None:
            self._supervised.serves(f"llmproxy {__version__}, routes: {len(self._fleet.backends)}")

    def _ends(self) -> None:
        config = self._fleet.config
        within = config.drain + END
        if config.stop_backends_on_exit:
            within += max((spec.stop_grace for spec in config.backends.values()), default=0.0)
        if self._supervised is not None:
            self._supervised.ends(within, "ending: answers finish")
            self._supervised.close()

    def _measure_gpus(self) -> None:
        """Look for NVML, in a thread: with a driver that is about to load it takes seconds."""
        if not driver_is_here():
            self._fleet.scheduler.meter = open_nvml()
            return
        lane = Lane(self._reactor, "nvml", 1)
        self._reactor.addSystemEventTrigger("before", "shutdown", lane.close)

        def found(meter: IGpuMeter) -> None:
            if is_absent(meter):
                # It knows why.
                self._fleet.scheduler.meter = meter
                lane.close()
                return

            def settled(enough: Mapping[str, int], bound: float) -> Deferred[bool]:
                return settle(self._reactor, meter, enough, bound, run=lane.run)

            self._fleet.scheduler.found_meter(meter, settled)

        find_meter(self._reactor, lane.run).addCallback(found)

    def _connect(self, address: Address) -> Any:
        return endpoint_for(self._reactor, address.host, address.port, tls=address.tls)

    def _catalogue_changed(self) -> None:
        self._service.reload("labels of containers")

    def _services_changed(self) -> None:
        self._service.reload("labels of services")

    def _load(self) -> Config:
        """Every source as it is now.

        :raises llmproxy.errors.ConfigError: a setting is not allowed.
        """
        config = self._loader.load([*self._labelled, *self._services])
        for description in config.listen:
            # A renewed certificate that is wrong keeps no other setting from being read.
            has = () if self._inherited is None else self._inherited.names
            check(self._reactor, description, files=self._starting, has=has)
        self._starting = False
        return config

    def _load_again(self) -> Deferred[Config]:
        if self._docker is None:
            return succeed(None).addCallback(lambda _: self._load())
        catalogue = self._docker.catalogue()
        catalogue.addCallbacks(self._note_labels, self._keep_labels)
        if self._swarm is not None:
            services = self._swarm.catalogue().addCallbacks(self._note_services, self._keep_labels)
            catalogue.addCallback(lambda _: services)
        return catalogue.addCallback(lambda _: self._load())

    def _note_labels(self, found: list[LabelledContainer]) -> None:
        self._labelled = found

    def _note_services(self, found: list[LabelledContainer]) -> None:
        self._services = found

    def _keep_labels(self, failure: Failure) -> None:
        # While the engine is away its labels are taken to be as they were: no route must vanish for that, and
        # there may be no engine at all.
        failure.trap(RuntimeUnavailable)

    def _cannot_listen(self, message: str) -> None:
        _log.error("{message}", message=message)
        if self._succeeds is not None:
            self._succeeds.refuse(message)
        # twistd ends with 0 whatever made the reactor stop; a supervisor must see that this was a failure.
        self._reactor.addSystemEventTrigger("after", "shutdown", _exit_failed, message)
        # What is refused at once is refused before the reactor runs, when it cannot be stopped yet.
        self._reactor.callWhenRunning(self._stop)

    def _stop(self) -> None:
        # A signal may have come first.
        if not self._stopping and self._service.running:
            self._stopping = True
            self._reactor.stop()

    def _listen_to_signals(self) -> None:
        # Python runs handlers between two steps of the main thread, the reactor's own.
        signal.signal(signal.SIGUSR2, lambda *_: self._reactor.callFromThread(self._asked_to_upgrade))
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._service.reload, "HUP"))
