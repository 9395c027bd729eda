"""Backends as containers of several Docker engines, without a Swarm.

Each host has a :class:`~llmproxy.runtimes.docker.DockerRuntime` of its own, which knows of no other; what all
tell of one backend is put together in :class:`~llmproxy.runtimes.hosts_route.Route`.  A host that goes away
takes nothing with it but what runs there, and that only when it answers nobody any more
(:meth:`HostsRuntime.lose`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attrs import define, evolve, field
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.compose import ComposeService
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import LOCAL, BackendSpec, DockerSettings
from llmproxy.runtimes.docker_host import docker_host
from llmproxy.runtimes.hosts_route import Route
from llmproxy.runtimes.interface import (
    Exit,
    Facts,
    HostState,
    Instance,
    IRuntime,
    RuntimeUnavailable,
    StartRefused,
    Step,
    Watcher,
    unheard,
)

__all__ = ["HostsRuntime", "IEngine"]


class IEngine(IRuntime, Protocol):
    """One host's runtime (:class:`~llmproxy.runtimes.docker_later.DockerWhenNeeded`)."""

    settings: DockerSettings

    def catalogue(self) -> Deferred[list[LabelledContainer]]: ...

    def on_catalogue_change(self, callback: Callable[[], None]) -> None: ...

    def on_standing(self, callback: Callable[[str], None]) -> None: ...

    def settled(self) -> Deferred[None]: ...

    def doubt(self) -> None: ...

    def has_container(self, route: str) -> bool: ...


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
    # Why a host is away; empty: it is there.  What is not in it is not known yet.
    _away: dict[str, str] = field(factory=dict)
    _routes: dict[str, Route] = field(factory=dict, init=False)
    _ending: dict[tuple[str, str], Deferred[None]] = field(factory=dict, init=False)
    _listeners: list[Callable[[], None]] = field(factory=list, init=False)
    _catalogues: dict[str, list[LabelledContainer]] = field(factory=dict, init=False)
    _seen: set[str] = field(factory=set, init=False)
    # How often each host has come or gone, so that old news is known for such.
    _changes: dict[str, int] = field(factory=dict, init=False)
    _closed: bool = field(default=False, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self._catalogues.update(self._labelled)
        for host, engine in self._engines.items():
            engine.on_standing(lambda reason, host=host: self._standing(host, reason))  # type: ignore[misc]

    # -- IRuntime ------------------------------------------------------------------------------------------

    def start(self) -> None:
        for engine in self._engines.values():
            engine.start()

    def close(self) -> Deferred[None]:
        self._closed = True
        ending, self._ending = self._ending, {}
        for stop in ending.values():
            stop.cancel()
        return DeferredList([engine.close() for engine in self._engines.values()]).addCallback(lambda _: None)

    def ping(self) -> Deferred[None]:
        """Fires as soon as one of them answers: with it there is something to serve from."""
        pings = [
            fail(RuntimeUnavailable(f"host {host} is away: {self._away[host]}"))
            if self.is_away(host) and host != LOCAL
            else engine.ping()
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
        if self.is_away(host) and host != LOCAL:
            # The event stream tries all the time; each try of ours may take half a minute.
            return fail(RuntimeUnavailable(f"host {host} is away: {self._away[host]}"))
        if route is not None:
            route.begin(host)

        def started(instance: Instance) -> Instance:
            current = self._routes.get(spec.route)
            return instance if route is None or current is not route else route.started(host, instance)

        def not_started(failure: Failure) -> Failure:
            if failure.check(RuntimeUnavailable):
                self._doubt(host)
            if route is not None and not failure.check(CancelledError):
                route.not_started()
            return failure

        return self._engines[host].ensure_started(spec, step).addCallbacks(started, not_started)

    def stop(self, spec: BackendSpec, grace: float) -> Deferred[None]:
        route = self._routes.get(spec.route)
        host = self._home(spec, route)
        if host is None:
            return succeed(None)
        if self.is_away(host) and host != LOCAL:
            if route is not None:
                route.lose(host)
            return fail(RuntimeUnavailable(f"host {host} is away: {self._away[host]}"))

        def stopped(_: None) -> None:
            if route is not None:
                route.stopped(host)

        def not_stopped(failure: Failure) -> Failure:
            if failure.check(RuntimeUnavailable):
                self._doubt(host)
                if route is not None:
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
        bound = {route.spec.host for route in self._routes.values()}
        return [
            HostState(
                name,
                docker_host(engine.settings),
                self._away.get(name, "it has not answered yet"),
                expected=name != LOCAL
                or name in self._seen
                or name in bound
                or engine.settings.host is not None
                or "DOCKER_HOST" in os.environ,
            )
            for name, engine in self._engines.items()
        ]

    def on_hosts_change(self, callback: Callable[[], None]) -> None:
        self._listeners.append(callback)

    def is_away(self, host: str) -> bool:
        return bool(self._away.get(host))

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
            if self._away.get(host) == ""
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

        asked = []
        for host, engine in self._engines.items():
            if self._away.get(host) != "" and host != LOCAL:
                # When it is there its catalogue is asked for, too.
                asked.append(fail(RuntimeUnavailable(self._away.get(host, "it has not answered yet"))))
            else:
                asked.append(engine.catalogue().addCallback(heard, host))

        def all_heard(answers: list[tuple[bool, object]]) -> list[LabelledContainer]:
            if not any(answered for answered, _ in answers):
                raise RuntimeUnavailable("no host answers")
            return [one for host in self._engines for one in self._catalogues.get(host, ())]

        return DeferredList(asked, consumeErrors=True).addCallback(all_heard)

    def on_catalogue_change(self, callback: Callable[[], None]) -> None:
        """Call back when a container with a route label was created, removed or renamed on one of them."""
        for engine in self._engines.values():
            engine.on_catalogue_change(callback)

    # -- hosts that come and go ----------------------------------------------------------------------------

    def _standing(self, host: str, reason: str) -> None:
        now = self._changes[host] = self._changes.get(host, 0) + 1
        if reason:
            self._note(host, reason)
            return

        def settled(_: None) -> None:
            if self._changes[host] == now:
                self._note(host, "")

        # Before it is known what runs there its GPUs look empty.
        self._engines[host].settled().addCallback(settled)

    def _note(self, host: str, reason: str) -> None:
        if self._closed:
            return
        if not reason:
            self._seen.add(host)
        before = self._away.get(host)
        self._away[host] = reason
        if bool(before) == bool(reason) and before is not None:
            return
        if reason:
            self._log.warn("host {host} is away: {reason}", host=host, reason=reason)
        else:
            self._log.info("host {host} is there", host=host)
        for route in list(self._routes.values()):
            if host in route.hosts:
                route.settle()
        self._tell()

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()

    def _doubt(self, host: str) -> None:
        """A call to it has failed: nothing more is asked of it until it is there again."""
        if not self.is_away(host):
            self._changes[host] = self._changes.get(host, 0) + 1
            self._note(host, "it did not answer")
            self._engines[host].doubt()

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
                if result.check(RuntimeUnavailable):
                    self._doubt(host)
                elif not result.check(CancelledError):
                    self._log.failure("ending {backend} on {host}", result, backend=key[0], host=host)
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
