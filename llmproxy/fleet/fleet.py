"""All backends: which there are, who serves which model, start-up with adoption, and the ordered end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from attrs import evolve, fields
from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.backend.backend import Backend
from llmproxy.backend.knock import Knock
from llmproxy.backend.probe import Connect
from llmproxy.backend.surroundings import Decision, Event, Surroundings
from llmproxy.config.model import BackendSpec, Config
from llmproxy.fleet.names import index_names
from llmproxy.fleet.scheduler import Scheduler
from llmproxy.runtimes.interface import Address, HostState, ICluster, IHosts, IRuntime
from llmproxy.scheduling.history import History
from llmproxy.scheduling.learned import MOST, Learned

if TYPE_CHECKING:
    from llmproxy.fleet.lookout import Lookout
    from llmproxy.fleet.pressure import Pressure

__all__ = ["EVENTS_KEPT", "Fleet"]

EVENTS_KEPT = 1000
"""Transitions and decisions that are remembered for those who ask later."""

WATCH_LIMIT = 5.0
"""Seconds that the first look at what runs may take before requests are served without it."""

_TUNING = frozenset(
    {
        "abandon_idle",
        "aliases",
        "auth",
        "fallback",
        "health",
        "heartbeat_after",
        "heartbeat_every",
        "hidden",
        "idle",
        "max_in_flight",
        "max_keep_alive",
        "max_wait",
        "max_waiting",
        "min_residency",
        "models",
        "pinned",
        "prewarm",
        "priority",
        "replicas",
        "request_defaults",
        "request_overrides",
        "rewrite_model",
        "sleep",
        "sleep_idle",
        "start_timeout",
        "stop_grace",
    }
)
"""Settings that change nothing of a backend that runs; any other one ends it, and the next request starts it
as it is configured now."""


def _same_server(old: BackendSpec, new: BackendSpec) -> bool:
    return all(
        getattr(old, attribute.name) == getattr(new, attribute.name)
        for attribute in fields(BackendSpec)
        if attribute.name not in _TUNING
    )


class Fleet:
    """The backends by route.

    :param runtimes: by the name that ``runtime`` has in the configuration.
    :param connect: makes the endpoint for an address.
    :param knock_at: what says at once that nobody listens at an address, where that can be said.
    :param host_memory: bytes of host memory that sleepers may take when the operator says nothing.
    :ivar learned: what was measured of starts, sleeps and stops.
    :ivar history: what happened, for advice.
    :ivar scheduler: decides which backends run.
    :ivar heir: what those go to who have waited for a backend of that route that is there no more.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        connect: Connect,
        runtimes: Mapping[str, IRuntime],
        config: Config,
        knock_at: Callable[[Address], Knock | None] = lambda _: None,
        *,
        host_memory: int = 0,
    ) -> None:
        hosts = next((one for one in runtimes.values() if isinstance(one, IHosts)), None)
        self.config = config
        self.backends: dict[str, Backend] = {}
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.closing = False
        self.learned = Learned(most=_remembered(config))
        self.history = History()
        self.scheduler = Scheduler(
            clock,
            config,
            self._by_name,
            self._record,
            self.learned,
            self.history,
            host_memory=host_memory,
            hosts=hosts,
        )
        self._lookout: Lookout | None = None
        if hosts is not None:
            from llmproxy.fleet.lookout import Lookout

            self._lookout = Lookout(
                clock,
                connect,
                self.scheduler.places,
                lambda: list(self._by_name().values()),
                self._record,
                lambda: self.scheduler.frozen,
            )
            hosts.on_hosts_change(self._hosts_changed)
        self._pressure: Pressure | None = None
        self.heir: Callable[[str], Backend | None] = self.route
        self._clock = clock
        self._runtimes = runtimes
        self._names: dict[str, Backend] | None = None
        # By the names that tell them from those of the same route.
        self._retired: dict[str, Backend] = {}
        self._count_retired = 0
        self._successions: list[tuple[set[Backend], Deferred[None]]] = []
        self._listeners: list[Callable[[Event], None]] = []
        self._surroundings = Surroundings(
            clock,
            connect,
            self._record,
            self.scheduler,
            self.learned,
            self.history,
            config.drain,
            config.scheduler.drain_limit,
            config.backend_key,
            _secrets(config),
            knock_at,
            self._renamed,
            self._record,
        )
        for spec in config.backends.values():
            self._add(spec)

    # -- looking up ---------------------------------------------------------------------------------

    def route(self, name: str) -> Backend | None:
        """The backend of a route; names are matched without regard to case."""
        return self.backends.get(name.lower())

    def serving(self, model: str) -> Backend | None:
        """The backend that serves a model: by its own name, an alias, or the route's name."""
        if self._names is None:
            self._names = index_names(self.backends.values())
        return self._names.get(model) or self.route(model)

    def _renamed(self) -> None:
        # Made anew when it is next needed: a thousand backends that tell their names one after the other cost
        # one index.
        self._names = None

    # -- start and end ------------------------------------------------------------------------------

    def start(self) -> Deferred[None]:
        """Start the runtimes and look at what runs; fires when that is known, or after a limit.

        What runs is adopted, and what is to be prewarmed is started.
        """
        for runtime in self._runtimes.values():
            runtime.start()
        looked = self._watch(self.backends.values())
        looked.addTimeout(WATCH_LIMIT, self._clock, lambda *_: None)
        looked.addCallback(lambda _: self.scheduler.fleet_known())
        return looked.addCallback(lambda _: self._prewarm(self.backends.values()))

    def _watch(self, backends: Iterable[Backend]) -> Deferred[None]:
        watches = []
        for backend in backends:
            watch = backend.watch()
            watch.addErrback(self._not_watched, backend.name)
            watches.append(watch)
        return DeferredList(watches).addCallback(lambda _: None)

    def _not_watched(self, failure: Failure, name: str) -> None:
        if failure.check(CancelledError):
            self._log.warn("not known yet whether {backend} runs", backend=name)
        else:
            self._log.failure("watching {backend}", failure, backend=name)

    def _prewarm(self, backends: Iterable[Backend]) -> None:
        for backend in backends:
            if backend.spec.prewarm:
                backend.demand()

    def refuse_new(self) -> None:
        """Take no more requests, and send away those who wait."""
        self.closing = True
        for backend in self.backends.values():
            backend.refuse_all()

    def in_flight(self) -> int:
        """Requests in flight, over all backends."""
        return sum(backend.admission.in_flight for backend in self._all())

    def _all(self) -> list[Backend]:
        """Those of the configuration, and those that it has no more and that have not ended yet."""
        return [*self.backends.values(), *self._retired.values()]

    def _by_name(self) -> dict[str, Backend]:
        return {**self.backends, **self._retired} if self._retired else self.backends

    @property
    def changing(self) -> list[str]:
        """Backends of which something has been begun that cannot be left to another process."""
        names = [backend.name for backend in self._all() if backend.changing]
        return names or (["a start that waits for memory"] if self.scheduler.settling else [])

    def hand_over(self, heir: Callable[[str], Backend | None]) -> None:
        """Another process decides from now on; what is in flight goes on here.

        :param heir: what stands here for a backend there.
        """
        self.scheduler.close()
        if self._lookout is not None:
            self._lookout.close()
        if self._pressure is not None:
            self._pressure.close()
        # At the end of this process they go on.
        self.config = evolve(self.config, stop_backends_on_exit=False)
        self.heir = heir
        for backend in self._all():
            backend.hand_over()

    def occupied(self) -> dict[str, int]:
        """How many requests are in flight, by route."""
        counts: dict[str, int] = {}
        for backend in self._all():
            if backend.admission.in_flight:
                counts[backend.name] = counts.get(backend.name, 0) + backend.admission.in_flight
        return counts

    def cut(self, reason: str) -> None:
        """Break off what is in flight."""
        for backend in self._all():
            backend.cut(reason)

    def close(self) -> Deferred[None]:
        """End: stop the backends when so configured, then let go of everything else."""
        self.refuse_new()
        ended: Deferred[None] = succeed(None)
        if self.config.stop_backends_on_exit and not self.scheduler.frozen:
            # While it is frozen another process decides about them, or will.
            ended = self._stop_all()
        return ended.addCallback(lambda _: self._let_go())

    def _stop_all(self) -> Deferred[None]:
        stops: list[Deferred[None]] = []
        for backend in self._all():
            backend.stop_wanted("the proxy ends", force=True)
            stops.append(backend.ended())
        return DeferredList(stops).addCallback(lambda _: None)

    def _let_go(self) -> Deferred[None]:
        for backend in self._all():
            # What has not finished by now must not look as if it had.
            backend.cut("llmproxy ends")
        self.scheduler.close()
        if self._lookout is not None:
            self._lookout.close()
        if self._pressure is not None:
            self._pressure.close()
        for backend in self._all():
            backend.close()
        return DeferredList([runtime.close() for runtime in self._runtimes.values()]).addCallback(
            lambda _: None
        )

    def ping(self) -> Deferred[None]:
        """Fire when every runtime that a backend needs answers.

        :raises llmproxy.runtimes.interface.RuntimeUnavailable: one does not.
        """
        needed = {backend.spec.runtime for backend in self.backends.values()}
        answer: Deferred[None] = succeed(None)
        for name in sorted(needed):
            answer = answer.addCallback(self._ping, name)
        return answer

    def _ping(self, _: None, name: str) -> Deferred[None]:
        return self._runtimes[name].ping()

    def hosts(self) -> tuple[HostState, ...]:
        """The machines that backends run on, where there are several; none otherwise."""
        return self.scheduler.places.states()

    def _hosts_changed(self) -> None:
        assert self._lookout is not None
        self._lookout.look()
        self.scheduler.soon()

    @property
    def secrets(self) -> tuple[str, ...]:
        """What is shown to nobody, wherever it turns up."""
        return self._surroundings.secrets

    # -- configuration ------------------------------------------------------------------------------

    def apply(self, config: Config) -> list[str]:
        """Make the fleet as ``config`` has it; only backends whose settings changed are touched.

        :return: what was done, a line for each change.
        """
        old, self.config = self.config, config
        self._surroundings = evolve(
            self._surroundings,
            drain=config.drain,
            drain_limit=config.scheduler.drain_limit,
            backend_key=config.backend_key,
            secrets=_secrets(config),
        )
        self.learned.most = _remembered(config)
        self.scheduler.reload(config)
        done: list[str] = []
        fresh: list[Backend] = []
        for route in [route for route in self.backends if route not in config.backends]:
            removed = self.backends.pop(route)
            self._note_retired(removed)
            self._renamed()
            self._retire(removed, "its route was removed", succeeded=False)
            done.append(f"removed {route}")
        for route, spec in config.backends.items():
            present = self.backends.get(route)
            if present is not None:
                present.surroundings = self._surroundings
            if present is None:
                former = self._former_gone(route)
                added = self._add(spec, former)
                if former is None:
                    fresh.append(added)
                done.append(f"added {route}")
            elif present.spec == spec:
                continue
            elif _same_server(present.spec, spec):
                present.retune(spec)
                done.append(f"retuned {route}")
            else:
                self._replace(present, spec)
                done.append(f"replaced {route}")
        self._watch(fresh).addCallback(lambda _: self._prewarm(fresh))
        if _engines(old) != _engines(config):
            done.append("hosts changed: takes effect at the next start")
        if old.listen != config.listen:
            done.append("listen changed: takes effect at the next start")
        return done

    def _add(self, spec: BackendSpec, predecessor: Deferred[None] | None = None) -> Backend:
        backend = Backend(self._surroundings, self._runtimes[spec.runtime], spec, predecessor)
        self.backends[spec.route] = backend
        self._renamed()
        if self._pressure is None and isinstance(backend.runtime, ICluster):
            self._press(backend.runtime)
        return backend

    def _press(self, cluster: ICluster) -> None:
        # Few have one.
        from llmproxy.fleet.pressure import Pressure

        runtime: object = cluster
        self._pressure = Pressure(
            self._clock,
            cluster,
            self.scheduler,
            self.learned,
            lambda: {name: one for name, one in self.backends.items() if one.runtime is runtime},
            lambda: self.config.scheduler.max_wait_before_drain,
        )
        self._pressure.start()

    def _replace(self, old: Backend, spec: BackendSpec) -> None:
        self._note_retired(old)
        # It must be found before those who wait are handed on to it.
        self._add(spec, self._former_gone(spec.route))
        self._retire(old, "its configuration changed", succeeded=True)

    def _note_retired(self, old: Backend) -> None:
        self._count_retired += 1
        self._retired[f"{old.name} (former {self._count_retired})"] = old

    def _retire(self, old: Backend, cause: str, *, succeeded: bool) -> None:
        ended = old.retire(cause, succeeded=succeeded)
        # It is cancelled when the proxy ends before it does.
        ended.addCallbacks(lambda _: self._has_ended(old), lambda failure: failure.trap(CancelledError))

    def _former_gone(self, route: str) -> Deferred[None] | None:
        """Fires when all former backends of a route have ended, which may be several after quick reloads, and
        the present one is watched; None when there are none."""
        former = {backend for backend in self._retired.values() if backend.name == route}
        if not former:
            return None
        gone: Deferred[None] = Deferred()
        self._successions.append((former, gone))
        return gone

    def _has_ended(self, old: Backend) -> None:
        self._retired = {name: one for name, one in self._retired.items() if one is not old}
        present = self.backends.get(old.name)
        others = [
            backend for backend in (*self._retired.values(), present) if backend and backend.name == old.name
        ]
        if all(backend.runtime is not old.runtime for backend in others):
            old.runtime.unwatch(old.name)
        for succession in list(self._successions):
            former, gone = succession
            if old not in former:
                continue
            former.remove(old)
            if not former:
                self._successions.remove(succession)
                # One route has one watcher, so that a successor cannot be told anything before.
                watched = self._watch([] if present is None else [present])
                watched.addCallback(gone.callback)

    # -- events -------------------------------------------------------------------------------------

    def follow(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Tell ``listener`` of each event from now on; call what is returned to end that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _record(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Decision):
            self._log.info(
                "{backend}: {kind} ({reason})",
                backend=event.backend,
                kind=event.kind,
                reason=event.reason,
                whom=event.whom,
            )
        else:
            self._log.info(
                "{backend}: {from} -> {to} ({reason})",
                backend=event.backend,
                **{"from": event.old, "to": event.new},
                reason=event.reason,
            )
        for listener in list(self._listeners):
            listener(event)


def _engines(config: Config) -> dict[str, tuple[object, ...]]:
    """What the runtime knows of hosts; their GPUs are the scheduler's."""
    return {name: (host.docker, host.tls, host.address) for name, host in config.hosts.items()}


def _secrets(config: Config) -> tuple[str, ...]:
    keys = tuple(key.secret for key in config.keys if key.secret)
    keys = keys if config.backend_key is None else (*keys, config.backend_key)
    return tuple(dict.fromkeys((*keys, *config.secrets)))


def _remembered(config: Config) -> int:
    """How many configurations are remembered: those of each backend before and after a change, at least."""
    return max(MOST, 2 * len(config.backends))
