"""Backends as services of a Docker Swarm: from no task to several, on whatever nodes they find room."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from uuid import uuid4

from attrs import define, field
from docker.api.client import APIClient
from docker.errors import APIError, NotFound
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.engines.phases import Phase
from llmproxy.runtimes.docker import DockerReactor
from llmproxy.runtimes.docker_client import Engine
from llmproxy.runtimes.docker_create import find_image
from llmproxy.runtimes.docker_events import EventStream
from llmproxy.runtimes.docker_facts import read_image, read_server
from llmproxy.runtimes.docker_threads import shielded
from llmproxy.runtimes.fingerprint import fingerprint
from llmproxy.runtimes.interface import (
    Address,
    Exit,
    Facts,
    Instance,
    Reservations,
    RuntimeUnavailable,
    StartRefused,
    Step,
    Watcher,
    unheard,
)
from llmproxy.runtimes.swarm_body import is_outdated
from llmproxy.runtimes.swarm_calls import find, get, trouble
from llmproxy.runtimes.swarm_catalogue import Labels, list_labelled
from llmproxy.runtimes.swarm_events import Happening, read_happening
from llmproxy.runtimes.swarm_labels import NOTE_EVERY, RUN
from llmproxy.runtimes.swarm_logs import Follower, read_tail, read_task_tail
from llmproxy.runtimes.swarm_monitor import Monitor, Subject
from llmproxy.runtimes.swarm_reach import config_of, task_port
from llmproxy.runtimes.swarm_room import read_reservations
from llmproxy.runtimes.swarm_scale import (
    Leaving,
    end_run,
    fewer,
    grow,
    look_at,
    note_used,
    put_out,
)
from llmproxy.runtimes.swarm_start import Arrival, Arrived, begin, make_service
from llmproxy.runtimes.swarm_state import Picture, SwarmTask, service_name
from llmproxy.runtimes.swarm_stop import Ending
from llmproxy.runtimes.swarm_watch import SwarmWatch, instance_of, run_name

__all__ = ["SwarmRuntime"]

T = TypeVar("T")

ROUNDS = 4
"""How often a start begins anew when somebody else stops or removes the service meanwhile."""
LAST_LINES = 200
"""Lines of a failed run's output that are kept: with its last task Swarm removes them."""
LEAVING_WITHIN = 4.0
"""Seconds until it is known which task leaves, where Swarm chooses it."""


@define(eq=False)
class SwarmRuntime:
    """See :class:`llmproxy.runtimes.interface.IRuntime` and
    :class:`~llmproxy.runtimes.interface.IReplicator`.

    :ivar backend_key: ``VLLM_API_KEY`` of vLLM services created here.
    """

    _reactor: DockerReactor
    settings: DockerSettings
    _backend_key: str | None = field(default=None, kw_only=True, repr=False)
    _me: str = field(factory=lambda: uuid4().hex[:8], init=False)
    _engine: Engine = field(init=False)
    _monitor: Monitor = field(init=False)
    _events: EventStream = field(init=False)
    _watches: dict[str, SwarmWatch] = field(factory=dict, init=False)
    _starts: dict[str, Deferred[Instance]] = field(factory=dict, init=False)
    _arrivals: set[Arrival] = field(factory=set, init=False)
    _endings: list[Ending] = field(factory=list, init=False)
    _followers: set[Follower] = field(factory=set, init=False)
    _noted: dict[str, float] = field(factory=dict, init=False)
    _last_words: dict[str, str] = field(factory=dict, init=False, repr=False)
    _labels: Labels = field(init=False)
    _closed: bool = field(default=False, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self._engine = Engine(self.settings, self._reactor)
        self._monitor = Monitor(self._reactor, self._engine)
        self._labels = Labels(self._reactor, self.catalogue)
        self._events = EventStream(
            self._reactor,
            self.settings,
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
        cancelled = Failure(CancelledError())
        for ending in list(self._endings):
            ending.fail(cancelled)
        for arrival in list(self._arrivals):
            arrival.fail(cancelled)
        for follower in list(self._followers):
            follower.ended.cancel()
        for started in list(self._starts.values()):
            started.cancel()
        self._monitor.close()
        self._labels.close()
        self._engine.close()
        return succeed(None)

    def ping(self) -> Deferred[None]:
        return self._safely(self._engine.call(_ping))

    def watch(self, spec: BackendSpec, watcher: Watcher) -> Deferred[None]:
        self.unwatch(spec.route)
        watch = SwarmWatch(
            self._reactor, spec, watcher, self._finish, lambda: service_name(spec) in self._starts, self._me
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
        name = service_name(spec)
        started = self._starts.get(name)
        if started is None:
            started = Deferred.fromCoroutine(self._start(spec, name, step))
            if not started.called:
                self._starts[name] = started
                started.addBoth(self._start_over, name)
        answer = shielded(started)
        started.addErrback(lambda _: None)  # told to those who still wait
        return answer

    def stop(self, spec: BackendSpec, grace: float) -> Deferred[None]:
        stopped = Deferred.fromCoroutine(self._stop(service_name(spec), grace))
        answer = shielded(stopped)
        stopped.addErrback(lambda _: None)  # told to the one who still waits
        return answer

    def facts(self, spec: BackendSpec) -> Deferred[Facts]:
        return self._safely(self._engine.call(lambda client: self._read_facts(client, spec)))

    def logs(self, spec: BackendSpec, tail: int) -> Deferred[str]:
        name = service_name(spec)

        def kept(found: str) -> str:
            return found or "\n".join(self._last_words.get(name, "").splitlines()[-tail:] if tail > 0 else ())

        return self._safely(self._engine.call(lambda client: read_tail(client, name, tail))).addCallback(kept)

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
        done = self._safely(self._engine.call(lambda client: grow(client, name, replicas)))
        return done.addCallback(lambda _: self._monitor.look())

    def can_choose(self, spec: BackendSpec, task: str) -> bool:
        watch = self._watches.get(spec.route)
        if watch is None or watch.picture is None or not self._monitor.node:
            return False
        return any(
            each.id == task and each.node == self._monitor.node and each.container
            for each in watch.picture.alive
        )

    def retire(self, spec: BackendSpec, task: str, replicas: int) -> Deferred[None]:
        return Deferred.fromCoroutine(self._retire(spec, task, replicas))

    def note_use(self, spec: BackendSpec, replicas: int) -> None:
        name, now = service_name(spec), self._reactor.seconds()
        last = self._noted.get(name)
        if last is not None and now - last < NOTE_EVERY:
            return
        self._noted[name] = now
        noted = self._safely(
            self._engine.call(lambda client: note_used(client, name, self._me, now, replicas))
        )
        noted.addErrback(lambda reason: self._log.debug("not noted: {why}", why=reason.value))

    # -- ICluster ------------------------------------------------------------------------------------------

    def reservations(self) -> Deferred[Reservations]:
        return self._safely(self._engine.call(_read_reservations))

    def service_of(self, spec: BackendSpec) -> str:
        return service_name(spec)

    # -- Routes by label -----------------------------------------------------------------------------------

    def catalogue(self) -> Deferred[list[LabelledContainer]]:
        """All services with a route label.

        :raises RuntimeUnavailable: the engine does not answer, or manages no Swarm.
        """
        return self._safely(self._engine.call(list_labelled))

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

    # -- Helpers -------------------------------------------------------------------------------------------

    def _safely(self, deferred: Deferred[T]) -> Deferred[T]:
        """Where the engine says no and that can only mean that something is wrong with it."""

        def no(reason: Failure) -> T:
            error = reason.value
            if not isinstance(error, APIError):
                reason.raiseException()
            raise trouble(self._engine.host, error) from error

        return deferred.addErrback(no)

    def _call(self, job: Callable[[APIClient], T]) -> Deferred[T]:
        return self._safely(self._engine.call(job))

    def _read_facts(self, client: APIClient, spec: BackendSpec) -> Facts:
        service = find(client, service_name(spec))
        image = str((service.container.get("Image") if service is not None else spec.image) or "")
        known = find_image(client, image) if image else None
        # One that is made anew before it starts says nothing of what comes.
        if service is None or (not service.replicas and is_outdated(spec, service, self._backend_key)):
            return read_image(spec, known or {}, self._backend_key)
        args, environment = read_server(config_of(service, (known or {}).get("Config")))
        return Facts(args, environment, None, fingerprint(image, args, environment))

    # -- Starting ------------------------------------------------------------------------------------------

    def _start_over(self, result: T, name: str) -> T:
        self._starts.pop(name, None)
        return result

    async def _start(self, spec: BackendSpec, name: str, step: Step) -> Instance:
        for _ in range(ROUNDS):
            known = await self._call(lambda client: begin(client, spec, self._backend_key, self.settings))
            if known is None:
                await self._create(spec, name, step)
                continue
            arrived = await self._arrive(spec, known, step)
            if arrived.verdict.kind in ("runs", "ended"):
                return await self._begun(spec, arrived)
        raise StartRefused(
            f"service {name!r} is stopped or removed by somebody else whenever it is started",
            f"See what does that: docker service ps {name}, docker events --filter type=service",
        )

    async def _create(self, spec: BackendSpec, name: str, step: Step) -> None:
        if spec.image is None:
            raise StartRefused(
                f"service {name!r} does not exist",
                "Deploy it (docker stack deploy; its name is STACK_SERVICE, docker service ls shows it), or"
                " give the backend an image.",
            )
        step(Phase("creating"))
        await self._call(lambda client: make_service(client, spec, self._backend_key, self.settings))

    async def _arrive(self, spec: BackendSpec, known: frozenset[str], step: Step) -> Arrived:
        arrival = Arrival(self._reactor, self._engine, spec, known, step)
        self._arrivals.add(arrival)
        self._monitor.add(arrival)
        try:
            return await arrival.over
        except StartRefused:
            # Nobody shall try behind our back what has failed.
            with suppress(RuntimeUnavailable):
                await self._call(lambda client: put_out(client, service_name(spec)))
            raise
        finally:
            self._arrivals.discard(arrival)
            self._monitor.remove(arrival)

    async def _begun(self, spec: BackendSpec, arrived: Arrived) -> Instance:
        watch, picture = self._watches.get(spec.route), arrived.picture
        over = watch.is_over if watch is not None else lambda _: False
        run, task = run_name(picture, over), arrived.verdict.task
        instance = instance_of(spec, picture, arrived.here, run, self._me)
        if instance is None:
            assert picture.service is not None
            # It has ended already: there is nothing better to say.
            where = Address(arrived.here.reach.published, task_port(spec, picture.service), "published")
            instance = Instance(run, (where,))
        if arrived.verdict.kind == "ended" and task is not None:
            exit = await self._finish(spec, picture, task)
            if watch is not None:
                watch.started(instance)
                # Said after the one who waits for the start has its answer.
                self._reactor.callLater(0, watch.ended, run, exit)
        elif watch is not None:
            watch.started(instance)
            # It may have ended since that look.
            self._monitor.look()
        return instance

    # -- Ending --------------------------------------------------------------------------------------------

    def _finish(self, spec: BackendSpec, picture: Picture, task: SwarmTask) -> Deferred[Exit]:
        """The last task of a run has ended by itself: keep its last words, and let Swarm start no other."""
        name = service_name(spec)
        service = picture.service
        mark = "" if service is None else service.labels.get(RUN, "")

        def finish(client: APIClient) -> tuple[str, bool]:
            terminal = service is not None and bool(service.container.get("TTY"))
            lines = read_task_tail(client, task.id, LAST_LINES, raw=terminal)
            oom = task.exit.oom or _out_of_memory(client, task)
            end_run(client, name, mark)
            return "\n".join(line.text for line in lines), oom

        def finished(found: tuple[str, bool]) -> Exit:
            words, oom = found
            self._last_words[name] = words
            self._monitor.look()
            return Exit(task.exit.code, oom)

        return self._call(finish).addCallback(finished)

    async def _stop(self, name: str, grace: float) -> None:
        found = await self._call(lambda client: look_at(client, name))
        if found is None or not (found.service.replicas or found.alive):
            return
        if found.service.replicas:
            await self._call(lambda client: put_out(client, name))
        if found.alive:
            await self._end(name, found.alive, found.node).start(grace)

    def _end(self, name: str, tasks: dict[str, SwarmTask], node: str) -> Ending:
        ending = Ending(self._reactor, self._engine, name, tasks, node, self._ending_over)
        self._endings.append(ending)
        self._monitor.add(ending)
        return ending

    def _ending_over(self, ending: Ending) -> None:
        if ending in self._endings:
            self._endings.remove(ending)
        self._monitor.remove(ending)

    # -- One fewer -----------------------------------------------------------------------------------------

    async def _retire(self, spec: BackendSpec, task: str, replicas: int) -> None:
        name = service_name(spec)
        found = await self._call(lambda client: look_at(client, name))
        if found is None or found.service.replicas != replicas:
            return
        chosen = found.alive.get(task)
        if chosen is not None and chosen.wanted and chosen.container and chosen.node == found.node:
            ending = self._end(name, {task: chosen}, found.node)
            # Of those that are left Swarm takes away one that does not run, once it knows of that.
            ending.told = True
            ended = ending.start(spec.stop_grace, term=True)
            ended.addCallback(lambda _: self._call(lambda client: fewer(client, name, replicas)))
            ended.addErrback(
                lambda reason: self._log.warn("task of {name}: {why}", name=name, why=reason.value)
            )
            return
        if await self._call(lambda client: fewer(client, name, replicas)):
            await self._leaving(name, frozenset(id for id, each in found.alive.items() if each.wanted))

    async def _leaving(self, name: str, tasks: frozenset[str]) -> None:
        leaving: Subject = (subject := Leaving(name, tasks))
        self._monitor.add(leaving)
        late = self._reactor.callLater(LEAVING_WITHIN, subject.known.cancel)
        try:
            with suppress(CancelledError):
                await subject.known
        finally:
            self._monitor.remove(leaving)
            if late.active():
                late.cancel()


def _read_reservations(client: APIClient) -> Reservations:
    services = get(client, "services") or ()
    tasks = get(client, "tasks", filters={"desired-state": ["running"]}) or ()
    return read_reservations(get(client, "nodes") or (), services, tasks)


def _ping(client: APIClient) -> None:
    get(client, "swarm")


def _out_of_memory(client: APIClient, task: SwarmTask) -> bool:
    """Whether the kernel ended it for memory; Swarm does not tell of that, and only our own engine does."""
    if not task.container or task.code != 137:
        return False
    try:
        state: Any = client.inspect_container(task.container).get("State") or {}
    except NotFound:
        return False
    return bool(state.get("OOMKilled"))
