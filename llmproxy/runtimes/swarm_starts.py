"""The starts that are under way, one for each service however many ask for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.engines.phases import Phase
from llmproxy.runtimes.interface import Address, Instance, RuntimeUnavailable, StartRefused, Step
from llmproxy.runtimes.shared import Shared
from llmproxy.runtimes.swarm_ends import Ends
from llmproxy.runtimes.swarm_manager import Manager
from llmproxy.runtimes.swarm_monitor import Monitor
from llmproxy.runtimes.swarm_reach import task_port
from llmproxy.runtimes.swarm_scale import end_run
from llmproxy.runtimes.swarm_start import Arrival, Arrived, Begun, begin, make_service
from llmproxy.runtimes.swarm_state import service_name
from llmproxy.runtimes.swarm_watch import SwarmWatch, instance_of, run_name

__all__ = ["Starts"]

T = TypeVar("T")

ROUNDS = 4
"""How often a start begins anew when somebody else stops or removes the service meanwhile."""


@define(eq=False)
class Starts:
    """Starts services.

    :ivar watch: who watches a route here, whose view of a run is the one that counts.
    :ivar me: names this proxy.
    """

    _reactor: IReactorTime
    _manager: Manager
    _monitor: Monitor
    _ends: Ends
    _settings: DockerSettings
    _backend_key: str | None = field(repr=False)
    _me: str
    _watch: Callable[[str], SwarmWatch | None]
    _starts: dict[str, Shared[Instance]] = field(factory=dict, init=False)
    _arrivals: set[Arrival] = field(factory=set, init=False)
    # Those that are to be given up as soon as what has been asked of the manager is done.
    _stopped: set[str] = field(factory=set, init=False)

    def close(self) -> None:
        """Give up all of them; what is being started goes on."""
        for arrival in list(self._arrivals):
            arrival.fail(Failure(CancelledError()))
        for started in list(self._starts.values()):
            started.cancel()

    def under_way(self, name: str) -> bool:
        """Whether that service is being started."""
        return name in self._starts

    def start(self, spec: BackendSpec, step: Step) -> Deferred[Instance]:
        """See :meth:`llmproxy.runtimes.interface.IRuntime.ensure_started`."""
        name = service_name(spec)
        started = self._starts.get(name)
        if started is None:
            begun = Deferred.fromCoroutine(self._start(spec, name, step))
            started = Shared(begun.addBoth(self._over, name))
            if not started.over:
                self._starts[name] = started
        return started.wait()

    def stop(self, name: str) -> Deferred[None]:
        """That service is not to run: nobody needs to wait for its first task.

        :return: fires when no start of it is under way, and all that one has asked for has been done.
        """
        started = self._starts.get(name)
        if started is None:
            return succeed(None)
        self._stopped.add(name)
        for arrival in list(self._arrivals):
            if arrival.name == name:
                arrival.fail(Failure(_stopped(name)))
        return started.wait().addBoth(lambda _: None)

    def _over(self, result: T, name: str) -> T:
        self._starts.pop(name, None)
        self._stopped.discard(name)
        return result

    async def _start(self, spec: BackendSpec, name: str, step: Step) -> Instance:
        for _ in range(ROUNDS):
            begun = await self._manager.call(
                lambda client: begin(client, spec, self._backend_key, self._settings)
            )
            if begun is None and name not in self._stopped:
                await self._create(spec, name, step)
            if name in self._stopped:
                raise _stopped(name)
            if begun is None:
                continue
            arrived = await self._arrive(spec, begun, step)
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
        await self._manager.call(lambda client: make_service(client, spec, self._backend_key, self._settings))

    async def _arrive(self, spec: BackendSpec, begun: Begun, step: Step) -> Arrived:
        arrival = Arrival(self._reactor, spec, begun, step)
        self._arrivals.add(arrival)
        self._monitor.add(arrival)
        try:
            return await arrival.over
        except StartRefused:
            mark = arrival.to_end
            if mark is not None:
                # Nobody shall try behind our back what has failed.
                with suppress(RuntimeUnavailable):
                    await self._manager.call(lambda client: end_run(client, arrival.name, mark))
            raise
        finally:
            self._arrivals.discard(arrival)
            self._monitor.remove(arrival)

    async def _begun(self, spec: BackendSpec, arrived: Arrived) -> Instance:
        watch, picture = self._watch(spec.route), arrived.picture
        over = watch.is_over if watch is not None else lambda _: False
        run, task = run_name(picture, over), arrived.verdict.task
        instance = instance_of(spec, picture, arrived.here, run, self._me)
        if instance is None:
            assert picture.service is not None
            # It has ended already: there is nothing better to say.
            where = Address(arrived.here.reach.published, task_port(spec, picture.service), "published")
            instance = Instance(run, (where,))
        if arrived.verdict.kind == "ended" and task is not None:
            if watch is not None:
                watch.was_brief(instance, picture, task)
            else:
                await self._ends.failed(spec, picture, task)
        elif watch is not None:
            watch.started(instance)
            # It may have ended since that look.
            self._monitor.look(service_name(spec))
        return instance


def _stopped(name: str) -> StartRefused:
    return StartRefused(f"service {name!r} was stopped before it ran", "Start it again.")
