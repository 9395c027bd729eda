"""Backends as containers of several Docker engines, without a Swarm.

Each host has a :class:`~llmproxy.runtimes.docker.DockerRuntime` of its own, which knows of no other; what all
tell of one backend is put together in :class:`~llmproxy.runtimes.hosts_route.Route`.  A host that goes away
takes nothing with it but what runs there, and that only when it answers nobody any more
(:meth:`HostsRuntime.lose`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import define, evolve, field
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.compose import ComposeService
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import LOCAL, BackendSpec
from llmproxy.runtimes.hosts_route import Route
from llmproxy.runtimes.hosts_standing import IEngine, Standing
from llmproxy.runtimes.interface import (
    Exit,
    Facts,
    HostState,
    Instance,
    RuntimeUnavailable,
    StartRefused,
    Step,
    Watcher,
    unheard,
)

__all__ = ["HostsRuntime"]


@define(eq=False)
class _Listener:
    """Hears of one backend on one host."""

    _route: Route
    _host: str

    def running(self, instance: Instance) -> None:
        self._route.running(self._host, instance)

    def gone(self, run: str | None, exit: Exit) -> None:
        self._route.gone(self._host, run, exit)

    def changed(self) -> None:
        self._route.changed(self._host)


@define(eq=False)
class HostsRuntime:
    """See :class:`llmproxy.runtimes.interface.IRuntime` and :class:`~llmproxy.runtimes.interface.IHosts`.

    :param engines: by the name of their host, the local one first.
    :param compose: services from which containers are created, on the local host.
    :param labelled: containers with route labels as they were found before the start.
    :param away: hosts that did not answer then, and why.
    """

    _engines: Mapping[str, IEngine]
    _compose: Callable[[], Sequence[ComposeService]] = field(default=lambda: ())
    _labelled: Mapping[str, list[LabelledContainer]] = field(factory=dict)
    _away: Mapping[str, str] = field(factory=dict)
    _standing: Standing = field(init=False)
    _routes: dict[str, Route] = field(factory=dict, init=False)
    _ending: dict[tuple[str, str], Deferred[None]] = field(factory=dict, init=False)
    _listeners: list[Callable[[], None]] = field(factory=list, init=False)
    _catalogues: dict[str, list[LabelledContainer]] = field(factory=dict, init=False)
    _closed: bool = field(default=False, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self._catalogues.update(self._labelled)
        self._standing = Standing(self._engines, self._away, self._changed)

    # -- IRuntime ------------------------------------------------------------------------------------------

    def start(self) -> None:
        for engine in self._engines.values():
            engine.start()

    def close(self) -> Deferred[None]:
        self._closed = True
        self._standing.close()
        ending, self._ending = self._ending, {}
        for stop in ending.values():
            stop.cancel()
        return DeferredList([engine.close() for engine in self._engines.values()]).addCallback(lambda _: None)

    def ping(self) -> Deferred[None]:
        """Fires as soon as one of them answers: with it there is something to serve from."""
        pings = [
            fail(self._standing.unavailable(host)) if self._standing.refuses(host) else engine.ping()
            for host, engine in self._engines.items()
        ]
        first = DeferredList(pings, fireOnOneCallback=True, consumeErrors=True)

        def answered(result: object) -> None:
            if isinstance(result, list):
                said = "; ".join(str(failure.value) for _, failure in result)
                raise RuntimeUnavailable(f"no host answers: {said}")
            for pong in pings:
                pong.cancel()

        return first.addCallback(answered)

    def watch(self, spec: BackendSpec, watcher: Watcher) -> Deferred[None]:
        self.unwatch(spec.route)
        hosts = tuple(host for host in self._engines if spec.host in (None, host))
        route = Route(spec, hosts, watcher, self.is_away, self._tell)
        self._routes[spec.route] = route
        watches = {host: self._engines[host].watch(spec, _Listener(route, host)) for host in hosts}
        # Nobody waits for one that hangs.
        told = DeferredList([watches[host] for host in hosts if not self.is_away(host)], consumeErrors=True)

        def settled(_: object) -> None:
            if self._routes.get(spec.route) is route:
                route.settle()

        return told.addCallback(settled)

    def unwatch(self, route: str) -> None:
        known = self._routes.pop(route, None)
        for host in () if known is None else known.hosts:
            self._engines[host].unwatch(route)

    def ensure_started(self, spec: BackendSpec, step: Step = unheard) -> Deferred[Instance]:
        route = self._routes.get(spec.route)
        host = self._for_start(spec, route)
        if host is None:
            return fail(
                StartRefused(
                    f"backend {spec.route!r}: host {spec.host!r} is not known yet",
                    "New hosts are known from the next start on: llmproxy upgrade",
                )
            )
        if self._standing.refuses(host):
            return fail(self._standing.unavailable(host))
        if route is not None:
            route.begin(host)

        def started(instance: Instance) -> Instance:
            current = self._routes.get(spec.route)
            return instance if route is None or current is not route else route.started(host, instance)

        def not_started(failure: Failure) -> Failure:
            self._standing.failed(host, failure)
            if route is not None and not failure.check(CancelledError):
                route.not_started()
            return failure

        return self._engines[host].ensure_started(spec, step).addCallbacks(started, not_started)

    def stop(self, spec: BackendSpec, grace: float) -> Deferred[None]:
        route = self._routes.get(spec.route)
        host = self._home(spec, route)
        if host is None:
            return succeed(None)
        if self._standing.refuses(host):
            if route is not None:
                route.lose(host)
            return fail(self._standing.unavailable(host))

        def stopped(_: None) -> None:
            if route is not None:
                route.stopped(host)

        def not_stopped(failure: Failure) -> Failure:
            self._standing.failed(host, failure)
            if failure.check(RuntimeUnavailable) and route is not None:
                route.lose(host)
            return failure

        return self._engines[host].stop(spec, grace).addCallbacks(stopped, not_stopped)

    def facts(self, spec: BackendSpec) -> Deferred[Facts]:
        route = self._routes.get(spec.route)
        host = self._home(spec, route)
        if host is None:
            return succeed(Facts())
        if route is not None:
            route.read = host
        return self._engines[host].facts(spec)

    def logs(self, spec: BackendSpec, tail: int) -> Deferred[str]:
        host = self._home(spec, self._routes.get(spec.route))
        return succeed("") if host is None else self._engines[host].logs(spec, tail)

    def follow_logs(self, spec: BackendSpec, tail: int, line: Callable[[str], None]) -> Deferred[None]:
        host = self._home(spec, self._routes.get(spec.route))
        return succeed(None) if host is None else self._engines[host].follow_logs(spec, tail, line)

    # -- IHosts --------------------------------------------------------------------------------------------

    def hosts(self) -> list[HostState]:
        return self._standing.states({route.spec.host for route in self._routes.values()})

    def on_hosts_change(self, callback: Callable[[], None]) -> None:
        self._listeners.append(callback)

    def is_away(self, host: str) -> bool:
        return self._standing.is_away(host)

    def host_of(self, spec: BackendSpec) -> str:
        route = self._routes.get(spec.route)
        return "" if route is None else route.at or route.placed

    def places(self, spec: BackendSpec) -> dict[str, bool]:
        route = self._routes.get(spec.route)
        if route is None:
            return {}
        if route.at:
            return {route.at: True}
        found = {
            host: self._engines[host].has_container(spec.route)
            for host in route.hosts
            if self._standing.is_there(host)
        }
        composed = any(service.container_name == spec.container for service in self._compose())
        possible = {
            host: there
            for host, there in found.items()
            if there or spec.image is not None or (composed and host == LOCAL)
        }
        if possible or len(found) < len(route.hosts):
            # It may be on a host that is away.
            return possible
        # Where it is nowhere, a start says so.
        return dict(list(found.items())[:1])

    def place(self, spec: BackendSpec, host: str) -> None:
        route = self._routes.get(spec.route)
        if route is not None and not route.at:
            route.placed = host

    def doubles(self) -> list[tuple[str, str]]:
        return [(name, host) for name, route in self._routes.items() for host in route.doubles()]

    def end_doubles(self) -> None:
        for route in list(self._routes.values()):
            for host in route.doubles():
                self._end_double(route, host)

    def lose(self, spec: BackendSpec) -> None:
        route = self._routes.get(spec.route)
        if route is not None and route.at:
            self._log.warn(
                "{backend} is taken for ended: its host {host} is away, and it does not answer",
                backend=spec.route,
                host=route.at,
            )
            route.lose(route.at)

    # -- Routes by label -----------------------------------------------------------------------------------

    def catalogue(self) -> Deferred[list[LabelledContainer]]:
        """All containers with a route label; of a host that is away, those that it had.

        :raises RuntimeUnavailable: no engine answers.
        """

        def heard(found: list[LabelledContainer], host: str) -> None:
            self._catalogues[host] = [evolve(one, host=host) for one in found]

        asked: list[Deferred[None]] = []
        for host, engine in self._engines.items():
            if host == LOCAL or self._standing.is_there(host):
                asked.append(engine.catalogue().addCallback(heard, host))
            else:
                # When it is there, all are asked again.
                asked.append(fail(self._standing.unavailable(host)))

        def all_heard(answers: list[tuple[bool, None]]) -> list[LabelledContainer]:
            if not any(answered for answered, _ in answers):
                raise RuntimeUnavailable("no host answers")
            return [one for host in self._engines for one in self._catalogues.get(host, ())]

        return DeferredList(asked, consumeErrors=True).addCallback(all_heard)

    def on_catalogue_change(self, callback: Callable[[], None]) -> None:
        """Call back when a container with a route label was created, removed or renamed on one of them."""
        for engine in self._engines.values():
            engine.on_catalogue_change(callback)

    # -- hosts that come and go ----------------------------------------------------------------------------

    def _changed(self, host: str) -> None:
        for route in list(self._routes.values()):
            if host in route.hosts:
                route.settle()
        self._tell()

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()

    def _end_double(self, route: Route, host: str) -> None:
        key = (route.spec.route, host)
        if key in self._ending or self.is_away(host) or self._closed:
            return
        self._log.warn(
            "{backend} runs on {host}, too, and is on {at}: it is ended on {host}",
            backend=route.spec.route,
            host=host,
            at=route.at,
        )
        stopping = self._ending[key] = self._engines[host].stop(route.spec, route.spec.stop_grace)

        def over(result: object) -> None:
            self._ending.pop(key, None)
            if isinstance(result, Failure):
                self._standing.failed(host, result)
                if not result.check(RuntimeUnavailable, CancelledError):
                    self._log.failure("ending {backend} on {host}", result, backend=key[0], host=host)
                if not self.is_away(host):
                    # It is tried again when something has changed.
                    return
            else:
                # That is told, too, but perhaps only after this.
                route.runs.pop(host, None)
            self._tell()

        stopping.addBoth(over)

    # -- where ---------------------------------------------------------------------------------------------

    def _for_start(self, spec: BackendSpec, route: Route | None) -> str | None:
        if route is not None and (route.at or route.placed):
            return route.at or route.placed
        return self._home(spec, route)

    def _home(self, spec: BackendSpec, route: Route | None) -> str | None:
        """Where it is, or would be looked for; None: nowhere that is known here."""
        if route is not None and route.at:
            return route.at
        hosts = [host for host in self._engines if spec.host in (None, host)]
        if route is not None and route.placed in hosts:
            return route.placed

        def nearest(host: str) -> tuple[bool, bool]:
            lacks = not self._engines[host].has_container(spec.route)
            # Without an image there is no other place for it than where it is.
            return (lacks, self.is_away(host)) if spec.image is None else (self.is_away(host), lacks)

        return min(hosts, key=nearest, default=None)
