"""Backends as containers of a Docker engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from attrs import define, field
from docker.api.client import APIClient
from docker.errors import APIError, NotFound
from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.compose import ComposeService
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.engines.phases import Phase
from llmproxy.errors import ConfigError
from llmproxy.runtimes.compose import create_service
from llmproxy.runtimes.docker_catalogue import list_labelled
from llmproxy.runtimes.docker_census import Census, list_containers
from llmproxy.runtimes.docker_client import Engine, describe, find_container
from llmproxy.runtimes.docker_create import create_container, find_image, removal_of, start_hint, verb_for
from llmproxy.runtimes.docker_events import EventStream
from llmproxy.runtimes.docker_facts import read_container, read_image, read_service
from llmproxy.runtimes.docker_guard import check_created
from llmproxy.runtimes.docker_logs import Follower, read_tail
from llmproxy.runtimes.docker_pull import PULL_TIMEOUT, Pull, pull_image
from llmproxy.runtimes.docker_reach import addresses, find_reach
from llmproxy.runtimes.docker_state import (
    MANAGED_SPEC,
    ROUTE_LABEL,
    Event,
    Snapshot,
    container_name,
    read_snapshot,
    spec_hash,
)
from llmproxy.runtimes.docker_stop import Stopping
from llmproxy.runtimes.docker_watch import Watch
from llmproxy.runtimes.interface import (
    Facts,
    Instance,
    RuntimeFaulty,
    RuntimeUnavailable,
    StartRefused,
    Step,
    Watcher,
    unheard,
)
from llmproxy.runtimes.shared import Shared, shielded

__all__ = ["DockerReactor", "DockerRuntime"]

T = TypeVar("T")

START_TIMEOUT = 120.0
"""Seconds for ``start``: the first one that uses a GPU after boot loads kernel modules."""
PING_EVERY = 15.0
"""Seconds between looks at an engine across a network, whose end no closed socket may tell."""
FAR_PING = 15.0
"""Seconds that such a look may take; a busy engine that is taken for lost by it is only asked anew."""
ROUNDS = 4
"""How often a start looks again after it changed something; others may interfere meanwhile."""


class DockerReactor(IReactorTime, IReactorFromThreads):
    """What is needed of the reactor."""


@define(eq=False)
class DockerRuntime:
    """See :class:`llmproxy.runtimes.interface.IRuntime`.

    :ivar backend_key: ``VLLM_API_KEY`` of vLLM containers created here.
    """

    _reactor: DockerReactor
    settings: DockerSettings
    _compose: Callable[[], Sequence[ComposeService]] = field(default=lambda: (), kw_only=True)
    _backend_key: str | None = field(default=None, kw_only=True, repr=False)
    _engine: Engine = field(init=False)
    _census: Census = field(init=False)
    _events: EventStream = field(init=False)
    _connected: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _watches: dict[str, Watch] = field(factory=dict, init=False)
    _starts: dict[str, Shared[Instance]] = field(factory=dict, init=False)
    _stops: list[Stopping] = field(factory=list, init=False)
    _followers: set[Follower] = field(factory=set, init=False)
    _own: set[str] = field(factory=set, init=False)
    _catalogue_changed: list[Callable[[], None]] = field(factory=list, init=False)
    _standing: list[Callable[[str], None]] = field(factory=list, init=False)
    _ping_timer: Any = field(default=None, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self._engine = Engine(self.settings, self._reactor)
        self._census = Census(self._reactor, lambda: self._engine.call(list_containers))
        self._events = EventStream(self._reactor, self.settings, self._stands, self._event, self._lost)

    # -- IRuntime ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._events.start()
        if not self._engine.host.startswith("unix:"):
            self._ping_timer = self._reactor.callLater(PING_EVERY, self._check_far_engine)

    def close(self) -> Deferred[None]:
        self._closed = True
        if self._ping_timer is not None and self._ping_timer.active():
            self._ping_timer.cancel()
        self._events.close()
        for route in list(self._watches):
            self.unwatch(route)
        for stopping in list(self._stops):
            stopping.fail(Failure(CancelledError()))
        for follower in list(self._followers):
            follower.ended.cancel()
        for started in list(self._starts.values()):
            started.cancel()
        self._engine.close()
        return succeed(None)

    def ping(self) -> Deferred[None]:
        return self._safely(self._engine.call(_ping))

    def watch(self, spec: BackendSpec, watcher: Watcher) -> Deferred[None]:
        self.unwatch(spec.route)
        watch = Watch(
            self._reactor,
            spec,
            watcher,
            self._look,
            lambda: self._connected,
            lambda: container_name(spec) in self._starts,
            self._own,
        )
        self._watches[spec.route] = watch
        watch.reconcile()
        return watch.settled()

    def unwatch(self, route: str) -> None:
        watch = self._watches.pop(route, None)
        if watch is not None:
            watch.close()

    def ensure_started(self, spec: BackendSpec, step: Step = unheard) -> Deferred[Instance]:
        name = container_name(spec)
        started = self._starts.get(name)
        if started is None:
            begun = Deferred.fromCoroutine(self._start(spec, name, step))
            started = Shared(begun.addBoth(self._start_over, name))
            if not started.over:
                self._starts[name] = started
        return started.wait()

    def stop(self, spec: BackendSpec, grace: float) -> Deferred[None]:
        return shielded(Deferred.fromCoroutine(self._stop(spec, grace)))

    def facts(self, spec: BackendSpec) -> Deferred[Facts]:
        return self._safely(Deferred.fromCoroutine(self._facts(spec)))

    def logs(self, spec: BackendSpec, tail: int) -> Deferred[str]:
        return self._safely(self._engine.call(lambda client: read_tail(client, container_name(spec), tail)))

    def follow_logs(self, spec: BackendSpec, tail: int, line: Callable[[str], None]) -> Deferred[None]:
        follower = Follower(self._reactor, self.settings, container_name(spec), tail, line)
        self._followers.add(follower)

        def over(result: T) -> T:
            self._followers.discard(follower)
            return result

        return follower.start().addBoth(over)

    # -- Routes by label -----------------------------------------------------------------------------------

    def catalogue(self) -> Deferred[list[LabelledContainer]]:
        """All containers with a route label, running or not.

        :raises RuntimeUnavailable: the engine does not answer.
        """
        return self._safely(self._engine.call(list_labelled))

    def on_catalogue_change(self, callback: Callable[[], None]) -> None:
        """Call back when a container with a route label was created, removed or renamed, and after the
        event stream (came back and) may have missed that."""
        self._catalogue_changed.append(callback)

    # -- One host of several -------------------------------------------------------------------------------

    def on_standing(self, callback: Callable[[str], None]) -> None:
        """Call back when the engine is there, with an empty text, and with the reason each time that it is
        found to be away.  What runs there may not be known yet: see :meth:`settled`."""
        self._standing.append(callback)

    def settled(self) -> Deferred[None]:
        """Fires when the looks that are under way are over."""
        looks = [watch.settled() for watch in self._watches.values()]
        return DeferredList(looks).addCallback(lambda _: None)

    def doubt(self) -> None:
        """It does not answer, though nothing has told so: find out."""
        self._events.reconnect()

    def has_container(self, route: str) -> bool:
        """Whether the container of a watched backend was there when it was last looked for."""
        watch = self._watches.get(route)
        return watch is not None and watch.there

    # -- Events --------------------------------------------------------------------------------------------

    def _stands(self) -> None:
        self._connected = True
        for watch in list(self._watches.values()):
            watch.reconcile(again=True)
        self._tell_standing("")
        self._tell_catalogue()

    def _lost(self, reason: str) -> None:
        if self._connected:
            self._log.warn("lost the Docker engine: {reason}", reason=reason)
        self._connected = False
        self._tell_standing(reason)

    def _tell_standing(self, reason: str) -> None:
        for callback in list(self._standing):
            callback(reason)

    def _event(self, event: Event) -> None:
        if event.action.startswith(("exec_", "health_status", "top", "attach", "resize", "archive")):
            return
        if event.action == "die":
            for stopping in list(self._stops):
                if stopping.container_id == event.id:
                    stopping.died(event.at)
        for watch in list(self._watches.values()):
            if watch.matches(event):
                watch.event(event)
        if event.action in ("create", "destroy", "rename") and ROUTE_LABEL in event.labels:
            self._tell_catalogue()
        if event.action == "destroy":
            self._own.discard(event.id)

    def _tell_catalogue(self) -> None:
        for callback in list(self._catalogue_changed):
            callback()

    def _check_far_engine(self) -> None:
        def missed(reason: Failure) -> None:
            if self._connected:
                self._events.reconnect()

        def again(_: None) -> None:
            if not self._closed:
                self._ping_timer = self._reactor.callLater(PING_EVERY, self._check_far_engine)

        pong = self._safely(self._engine.call(_ping, timeout=FAR_PING))
        pong.addErrback(missed).addBoth(again)

    # -- Looking -------------------------------------------------------------------------------------------

    def _look(self, spec: BackendSpec) -> Deferred[tuple[Snapshot, Instance] | None]:
        return self._safely(Deferred.fromCoroutine(self._look_or_list(spec)))

    async def _look_or_list(self, spec: BackendSpec) -> tuple[Snapshot, Instance] | None:
        if not await self._may_exist(spec):
            return None
        return await self._engine.call(lambda client: self._see(client, spec))

    async def _may_exist(self, spec: BackendSpec) -> bool:
        # One question costs less than a list of all, and hundreds cost more.
        if not self._engine.calls.crowded:
            return True
        return (await self._census.containers()).has(container_name(spec))

    def _see(self, client: APIClient, spec: BackendSpec) -> tuple[Snapshot, Instance] | None:
        info = find_container(client, container_name(spec))
        if info is None:
            return None
        snapshot = read_snapshot(info)
        lender = None
        mode = str((snapshot.info.get("HostConfig") or {}).get("NetworkMode") or "")
        if mode.startswith("container:"):
            try:
                lender = client.inspect_container(mode.partition(":")[2])
            except NotFound:
                lender = None
        found = addresses(
            spec, snapshot, find_reach(client, self._engine.host, self.settings.address), lender
        )
        started_at = snapshot.started_ns / 1e9 if snapshot.started_ns else None
        return snapshot, Instance(snapshot.run, found, started_at)

    async def _facts(self, spec: BackendSpec) -> Facts:
        name = container_name(spec)
        if await self._may_exist(spec):
            info = await self._engine.call(lambda client: find_container(client, name))
            if info is not None:
                snapshot = read_snapshot(info)
                # One that is created anew before it starts says nothing of what comes.
                if snapshot.alive or not self._outdated(spec, snapshot):
                    return read_container(info)
        for service in self._compose():
            if service.container_name == name:
                return read_service(service)
        image, wanted = None, spec.image
        if wanted:
            image = await self._engine.call(lambda client: find_image(client, wanted))
        return read_image(spec, image or {}, self._backend_key)

    def _safely(self, deferred: Deferred[T]) -> Deferred[T]:
        """Where the engine says no and that can only mean that something is wrong with it."""

        def no(reason: Failure) -> T:
            error = reason.value
            if not isinstance(error, APIError):
                reason.raiseException()
            raise RuntimeFaulty(
                f"the Docker engine at {self._engine.host} says: {describe(error)}"
            ) from error

        return deferred.addErrback(no)

    # -- Starting ------------------------------------------------------------------------------------------

    def _start_over(self, result: T, name: str) -> T:
        self._starts.pop(name, None)
        return result

    async def _start(self, spec: BackendSpec, name: str, step: Step) -> Instance:
        for _ in range(ROUNDS):
            found = await self._look(spec)
            if found is None:
                await self._create(spec, name, step)
                continue
            snapshot, instance = found
            if snapshot.serving:
                return self._begun(spec, snapshot, instance)
            if self._outdated(spec, snapshot) or (snapshot.status == "dead" and snapshot.managed):
                await self._change(name, removal_of(snapshot))
                continue
            if snapshot.status in ("removing", "dead"):
                raise StartRefused(
                    f"container {name!r} is {snapshot.status}",
                    f"Remove it and create it anew: docker rm -f {name}",
                )
            await self._change(name, verb_for(snapshot))
            found = await self._look(spec)
            if found is not None:
                return self._begun(spec, *found)
        raise StartRefused(
            f"container {name!r} vanishes whenever it is started",
            "Is it run with --rm, or removed by something else?",
        )

    def _begun(self, spec: BackendSpec, snapshot: Snapshot, instance: Instance) -> Instance:
        watch = self._watches.get(spec.route)
        if watch is None:
            return instance
        instance = watch.started(snapshot, instance)
        if not snapshot.serving:
            # It has ended already; said after the one who waits for the start has its answer.
            self._reactor.callLater(0, watch.over, snapshot, instance)
        else:
            # It may have ended since that look, and its event may have come before we knew the run.
            watch.reconcile()
        return instance

    def _outdated(self, spec: BackendSpec, snapshot: Snapshot) -> bool:
        if not snapshot.managed or spec.image is None:
            return False
        return snapshot.labels.get(MANAGED_SPEC) != spec_hash(spec, self._backend_key)

    async def _change(self, name: str, verb: Callable[[APIClient], object]) -> None:
        try:
            await self._engine.call(verb, lane=self._engine.starts, timeout=START_TIMEOUT)
        except NotFound as error:
            said = describe(error)
            if "no such container" in said.lower():
                return  # removed meanwhile: the next look tells
            raise StartRefused(
                f"container {name!r} cannot be started: {said}", start_hint(said, error)
            ) from error
        except APIError as error:
            said = describe(error)
            if error.status_code == 409 and "already in progress" in said:
                return
            raise StartRefused(
                f"container {name!r} cannot be started: {said}", start_hint(said, error)
            ) from error

    async def _create(self, spec: BackendSpec, name: str, step: Step) -> None:
        engine = self._engine
        if self.settings.compose_file is not None:
            service = await engine.slow.run(lambda: self._service(name))
            if service is not None:
                await self._foretell(service, step)
                await self._compose_service(service.name, name)
                return
        if spec.image is None:
            raise StartRefused(
                f"container {name!r} does not exist",
                "Create it (docker compose up --no-start), name its service in the compose file that "
                "docker.compose_file says, or give the backend an image.",
            )
        image = spec.image
        if await self._lacks(image):
            self._log.info("pulling image {image} for {route}", image=image, route=spec.route)
            pull = Pull(lambda phase: self._reactor.callFromThread(step, phase))
            step(Phase("pulling"))
            await engine.call(
                lambda client: pull_image(client, image, pull.heard), lane=engine.slow, timeout=PULL_TIMEOUT
            )
        self._own.add(
            await self._safely(
                engine.call(
                    lambda client: create_container(
                        client,
                        spec,
                        find_reach(client, engine.host, self.settings.address),
                        self._backend_key,
                        self.settings,
                    ),
                    lane=engine.starts,
                    timeout=START_TIMEOUT,
                )
            )
        )

    async def _compose_service(self, service: str, name: str) -> None:
        refused = None
        try:
            await self._engine.slow.run(lambda: create_service(self.settings, service))
        except StartRefused as error:
            # Its first version wants to listen to what it has made, which a proxy of the socket may refuse:
            # what counts is whether the container is there.
            refused = error
        made = self._engine.call(
            lambda client: check_created(client, name, self.settings), timeout=START_TIMEOUT
        )
        if not await self._safely(made) and refused is not None:
            raise refused

    async def _foretell(self, service: ComposeService, step: Step) -> None:
        """Compose does not say that it pulls before that is over."""
        with suppress(RuntimeUnavailable):  # told by what comes next
            if service.image and await self._lacks(service.image):
                step(Phase("pulling"))

    async def _lacks(self, image: str) -> bool:
        return await self._safely(self._engine.call(lambda client: find_image(client, image))) is None

    def _service(self, name: str) -> ComposeService | None:
        try:
            services = self._compose()
        except ConfigError as error:
            raise StartRefused(f"container {name!r} does not exist, and {error}") from error
        return next((each for each in services if each.container_name == name), None)

    # -- Stopping ------------------------------------------------------------------------------------------

    async def _stop(self, spec: BackendSpec, grace: float) -> None:
        found = await self._look(spec)
        if found is None or not found[0].alive:
            return
        stopping = Stopping(self._reactor, self._engine, found[0], self._stop_over)
        self._stops.append(stopping)
        await stopping.start(grace)

    def _stop_over(self, stopping: Stopping) -> None:
        if stopping in self._stops:
            self._stops.remove(stopping)


def _ping(client: APIClient) -> None:
    client.ping()
