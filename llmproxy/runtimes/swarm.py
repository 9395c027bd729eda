"""Backends as services of a Docker Swarm: from no task to several, on whatever nodes they find room."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from uuid import uuid4

from attrs import define, field
from docker.api.client import APIClient
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.runtimes.docker import DockerReactor
from llmproxy.runtimes.docker_client import Engine
from llmproxy.runtimes.docker_create import find_image
from llmproxy.runtimes.docker_events import EventStream
from llmproxy.runtimes.docker_facts import read_image, read_server
from llmproxy.runtimes.fingerprint import fingerprint
from llmproxy.runtimes.interface import Facts, Instance, Reservations, Step, Watcher, unheard
from llmproxy.runtimes.shared import shielded
from llmproxy.runtimes.swarm_body import is_outdated
from llmproxy.runtimes.swarm_calls import find, get
from llmproxy.runtimes.swarm_catalogue import Labels, list_labelled
from llmproxy.runtimes.swarm_ends import Ends
from llmproxy.runtimes.swarm_events import Happening, read_happening
from llmproxy.runtimes.swarm_labels import NOTE_EVERY
from llmproxy.runtimes.swarm_logs import Follower, read_tail
from llmproxy.runtimes.swarm_manager import Manager
from llmproxy.runtimes.swarm_monitor import Monitor
from llmproxy.runtimes.swarm_reach import config_of
from llmproxy.runtimes.swarm_room import read_reservations
from llmproxy.runtimes.swarm_scale import grow, note_used
from llmproxy.runtimes.swarm_starts import Starts
from llmproxy.runtimes.swarm_state import service_name
from llmproxy.runtimes.swarm_watch import SwarmWatch

__all__ = ["NOTE_AGAIN", "SwarmRuntime"]

T = TypeVar("T")

NOTE_AGAIN = 5.0
"""Seconds after which a note that could not be written down is tried again."""


@define(eq=False)
class SwarmRuntime:
    """See :class:`llmproxy.runtimes.interface.IRuntime` and
    :class:`~llmproxy.runtimes.interface.IReplicator`.

    :ivar backend_key: ``VLLM_API_KEY`` of vLLM services created here.
    :ivar me: names this proxy in the notes that proxies leave each other.
    """

    _reactor: DockerReactor
    settings: DockerSettings
    _backend_key: str | None = field(default=None, kw_only=True, repr=False)
    _me: str = field(factory=lambda: uuid4().hex[:8], init=False)
    _manager: Manager = field(init=False)
    _monitor: Monitor = field(init=False)
    _ends: Ends = field(init=False)
    _starts: Starts = field(init=False)
    _events: EventStream = field(init=False)
    _labels: Labels = field(init=False)
    _watches: dict[str, SwarmWatch] = field(factory=dict, init=False)
    _followers: set[Follower] = field(factory=set, init=False)
    _noted: dict[str, float] = field(factory=dict, init=False)
    _closed: bool = field(default=False, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        reactor, settings = self._reactor, self.settings
        self._manager = manager = Manager(Engine(settings, reactor))
        self._monitor = monitor = Monitor(reactor, manager)
        self._ends = Ends(reactor, manager, monitor)
        self._starts = Starts(
            reactor, manager, monitor, self._ends, settings, self._backend_key, self._me, self._watches.get
        )
        self._labels = Labels(reactor, self.catalogue)
        self._events = EventStream(
            reactor,
            settings,
            self._stands,
            self._happened,
            self._lost,
            types=("container", "service", "node"),
            read=read_happening,
        )

    # -- IRuntime ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._events.start()

    def close(self) -> Deferred[None]:
        self._closed = True
        self._events.close()
        for route in list(self._watches):
            self.unwatch(route)
        self._ends.close()
        self._starts.close()
        for follower in list(self._followers):
            follower.ended.cancel()
        self._monitor.close()
        self._labels.close()
        self._manager.engine.close()
        return succeed(None)

    def ping(self) -> Deferred[None]:
        return self._manager.call(_ping)

    def watch(self, spec: BackendSpec, watcher: Watcher) -> Deferred[None]:
        self.unwatch(spec.route)
        watch = SwarmWatch(
            self._reactor,
            spec,
            watcher,
            self._ends.failed,
            lambda: self._starts.under_way(service_name(spec)),
            self._me,
        )
        self._watches[spec.route] = watch
        settled = watch.settled()
        self._monitor.add(watch)
        return settled

    def unwatch(self, route: str) -> None:
        watch = self._watches.pop(route, None)
        if watch is not None:
            self._monitor.remove(watch)
            watch.close()

    def ensure_started(self, spec: BackendSpec, step: Step = unheard) -> Deferred[Instance]:
        # A note may have come to what had just been put out.
        self._noted.pop(service_name(spec), None)
        return self._starts.start(spec, step)

    def stop(self, spec: BackendSpec, grace: float) -> Deferred[None]:
        name = service_name(spec)
        # A start that has asked the manager for tasks would get them behind our back.
        ready = self._starts.stop(name)
        return shielded(ready.addCallback(lambda _: Deferred.fromCoroutine(self._ends.stop(name, grace))))

    def facts(self, spec: BackendSpec) -> Deferred[Facts]:
        return self._manager.call(lambda client: _read_facts(client, spec, self._backend_key))

    def logs(self, spec: BackendSpec, tail: int) -> Deferred[str]:
        name = service_name(spec)

        def or_last_words(found: str) -> str:
            words = self._ends.last_words.get(name, "").splitlines()
            return found or "\n".join(words[-tail:] if tail > 0 else ())

        return self._manager.call(lambda client: read_tail(client, name, tail)).addCallback(or_last_words)

    def follow_logs(self, spec: BackendSpec, tail: int, line: Callable[[str], None]) -> Deferred[None]:
        follower = Follower(self._reactor, self.settings, service_name(spec), tail, line)
        self._followers.add(follower)
        self._monitor.add(follower)

        def over(result: T) -> T:
            self._followers.discard(follower)
            self._monitor.remove(follower)
            return result

        return follower.ended.addBoth(over)

    # -- IReplicator ---------------------------------------------------------------------------------------

    def scale(self, spec: BackendSpec, replicas: int) -> Deferred[None]:
        name = service_name(spec)
        done = self._manager.call(lambda client: grow(client, name, replicas))
        return done.addCallback(lambda _: self._monitor.look(name))

    def can_choose(self, spec: BackendSpec, task: str) -> bool:
        watch = self._watches.get(spec.route)
        if watch is None or watch.picture is None or not self._monitor.node:
            return False
        return any(
            each.id == task and each.node == self._monitor.node and each.container
            for each in watch.picture.alive
        )

    def retire(self, spec: BackendSpec, task: str, replicas: int) -> Deferred[None]:
        return Deferred.fromCoroutine(self._ends.retire(spec, task, replicas))

    def note_use(self, spec: BackendSpec, replicas: int) -> None:
        name, now = service_name(spec), self._reactor.seconds()
        last = self._noted.get(name)
        if last is not None and now - last < NOTE_EVERY:
            return
        self._noted[name] = now

        def failed(reason: Failure) -> None:
            self._log.debug("not noted: {why}", why=reason.value)
            self._noted[name] = now - NOTE_EVERY + NOTE_AGAIN

        noted = self._manager.call(lambda client: note_used(client, name, self._me, now, replicas))
        noted.addErrback(failed)

    # -- ICluster ------------------------------------------------------------------------------------------

    def reservations(self) -> Deferred[Reservations]:
        return self._manager.call(_read_reservations)

    def service_of(self, spec: BackendSpec) -> str:
        return service_name(spec)

    # -- Routes by label -----------------------------------------------------------------------------------

    def catalogue(self) -> Deferred[list[LabelledContainer]]:
        """All services with a route label.

        :raises RuntimeUnavailable: the engine does not answer, or manages no Swarm.
        """
        return self._manager.call(list_labelled)

    def on_catalogue_change(self, callback: Callable[[], None]) -> None:
        """Call back when what labels of services say is another thing than before."""
        self._labels.changed.append(callback)

    # -- Events --------------------------------------------------------------------------------------------

    def _stands(self) -> None:
        self._monitor.look(nodes=True)
        self._labels.look()

    def _lost(self, reason: str) -> None:
        if not self._closed:
            self._log.debug("lost the events of the Swarm: {reason}", reason=reason)

    def _happened(self, event: Happening) -> None:
        self._monitor.heard(event)
        if event.type == "service":
            self._labels.look()


def _read_reservations(client: APIClient) -> Reservations:
    services = get(client, "services") or ()
    tasks = get(client, "tasks", filters={"desired-state": ["running"]}) or ()
    return read_reservations(get(client, "nodes") or (), services, tasks)


def _ping(client: APIClient) -> None:
    get(client, "swarm")


def _read_facts(client: APIClient, spec: BackendSpec, backend_key: str | None) -> Facts:
    service = find(client, service_name(spec))
    image = str((service.container.get("Image") if service is not None else spec.image) or "")
    # Not by its id here: the nodes get it by its name, and this one may do without it.
    known = {**((find_image(client, image) if image else None) or {}), "Id": None}
    # One that is made anew before it starts says nothing of what comes.
    if service is None or (not service.replicas and is_outdated(spec, service, backend_key)):
        return read_image(spec, known, backend_key)
    args, environment = read_server(config_of(service, known.get("Config")))
    return Facts(args, environment, None, fingerprint(image, args, environment))
