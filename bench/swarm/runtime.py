"""The proxy's view of the simulated Swarm: its runtime, and the endpoints that lead to tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from zope.interface import implementer

from bench.swarm import cluster
from bench.swarm.clock import Account
from llmproxy.config.model import BackendSpec
from llmproxy.engines.phases import Phase
from llmproxy.http.headers import Fields
from llmproxy.relay.upstream import ResponseHandler, ResponseHead, UpstreamConnection
from llmproxy.runtimes.interface import (
    Address,
    Exit,
    Facts,
    Instance,
    Reservations,
    Step,
    Task,
    Watcher,
    unheard,
)
from llmproxy.runtimes.swarm_labels import NOTE_EVERY

__all__ = ["RESOURCE", "ClusterRuntime", "SwarmRuntime"]

RESOURCE = "vram-gib"

PORT = 8000
HEALTHY = ResponseHead(200, b"OK", Fields([]), 0, True)


@define(eq=False)
class _Watched:
    """What is known of one service here.

    :ivar run: from its first task that ran to the end of its last; None: none runs.
    :ivar noted: when it was last written down that it is used.
    """

    watcher: Watcher | None = None
    run: str | None = None
    noted: float = 0.0
    step: Step = unheard
    starting: list[Deferred[Instance]] = field(factory=list)
    stopping: list[Deferred[None]] = field(factory=list)


class SwarmRuntime:
    """See :class:`~llmproxy.runtimes.interface.IRuntime` and
    :class:`~llmproxy.runtimes.interface.IReplicator`.

    :param account: what a watcher does with news is the proxy's.
    """

    def __init__(self, swarm: cluster.Cluster, account: Account) -> None:
        self._swarm = swarm
        self._account = account
        self._runs = count(1)
        self._known: dict[str, _Watched] = {}
        swarm.changed = self._changed
        swarm.placed = self._placed

    # -- IRuntime -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Nothing to begin."""

    def close(self) -> Deferred[None]:
        self._known.clear()
        return succeed(None)

    def ping(self) -> Deferred[None]:
        return succeed(None)

    def watch(self, spec: BackendSpec, watcher: Watcher) -> Deferred[None]:
        self._at(spec.route).watcher = watcher
        instance = self._instance(spec.route)
        if instance is None:
            watcher.gone(None, Exit())
        else:
            watcher.running(instance)
        return succeed(None)

    def unwatch(self, route: str) -> None:
        self._at(route).watcher = None

    def ensure_started(self, spec: BackendSpec, step: Step = unheard) -> Deferred[Instance]:
        instance = self._instance(spec.route)
        if instance is not None:
            return succeed(instance)
        started: Deferred[Instance] = Deferred()
        known, service = self._at(spec.route), self._swarm.services[spec.route]
        known.starting.append(started)
        known.step = step
        self._account.inside("simulation", self._swarm.scale, service, max(1, service.replicas))
        step(Phase("placing" if self._swarm.reason(service) else "pulling"))
        return started

    def stop(self, spec: BackendSpec, grace: float) -> Deferred[None]:
        service = self._swarm.services[spec.route]
        stopped: Deferred[None] = Deferred()
        self._at(spec.route).stopping.append(stopped)
        self._account.inside("simulation", self._swarm.scale, service, 0)
        self._tell_stopped(service)
        return stopped

    def facts(self, spec: BackendSpec) -> Deferred[Facts]:
        return succeed(Facts(fingerprint=spec.route))

    def logs(self, spec: BackendSpec, tail: int) -> Deferred[str]:
        return succeed("")

    def follow_logs(self, spec: BackendSpec, tail: int, line: Callable[[str], None]) -> Deferred[None]:
        return Deferred()

    # -- IReplicator --------------------------------------------------------------------------------

    def scale(self, spec: BackendSpec, replicas: int) -> Deferred[None]:
        service = self._swarm.services[spec.route]
        if 0 < service.replicas < replicas:
            self._swarm.counts["scale-outs"] += 1
            self._account.inside("simulation", self._swarm.scale, service, replicas)
        return succeed(None)

    def can_choose(self, spec: BackendSpec, task: str) -> bool:
        return False  # it is on another engine than the one that is spoken to

    def retire(self, spec: BackendSpec, task: str, replicas: int) -> Deferred[None]:
        service = self._swarm.services[spec.route]
        if service.replicas == replicas > 1:
            self._swarm.counts["scale-ins"] += 1
            self._account.inside("simulation", self._swarm.scale, service, replicas - 1)
        return succeed(None)

    def note_use(self, spec: BackendSpec, replicas: int) -> None:
        known, now = self._at(spec.route), self._swarm.now
        if now - known.noted >= NOTE_EVERY:
            # A write to the service's labels, which all managers agree on.
            known.noted = now
            self._swarm.counts["notes"] += 1

    # -- what the Swarm tells -----------------------------------------------------------------------

    def _at(self, route: str) -> _Watched:
        return self._known.setdefault(route, _Watched())

    def _instance(self, route: str) -> Instance | None:
        service, known = self._swarm.services[route], self._at(route)
        there = [task for task in service.tasks.values() if task.host in self._swarm.hosts]
        if not there:
            return None
        if known.run is None:
            known.run = f"{route}-{next(self._runs)}"
        tasks = tuple(
            Task(
                task.id,
                (Address(task.host, PORT, "network"),),
                task.state == "stopping",
                "" if task.node is None else task.node.name,
            )
            for task in there
        )
        return Instance(
            known.run,
            tasks[0].addresses,
            there[0].since,
            tasks,
            service.replicas,
            self._swarm.reason(service),
        )

    def _placed(self, service: cluster.Service) -> None:
        known = self._at(service.name)
        if known.starting:
            self._account.inside("news", known.step, Phase("pulling"))

    def _changed(self, service: cluster.Service) -> None:
        self._account.inside("news", self._tell, service)

    def _tell(self, service: cluster.Service) -> None:
        known = self._at(service.name)
        before, instance = known.run, self._instance(service.name)
        if instance is not None:
            starting, known.starting = known.starting, []
            for started in starting:
                if not started.called:
                    started.callback(instance)
            if known.watcher is not None:
                known.watcher.running(instance)
        elif before is not None:
            known.run = None
            if known.watcher is not None:
                known.watcher.gone(before, Exit(143))
        self._tell_stopped(service)

    def _tell_stopped(self, service: cluster.Service) -> None:
        known = self._at(service.name)
        if not service.tasks and known.stopping:
            stopping, known.stopping = known.stopping, []
            for stopped in stopping:
                if not stopped.called:
                    stopped.callback(None)

    # -- connections --------------------------------------------------------------------------------

    def connect(self, address: Address) -> IStreamClientEndpoint:
        """What the fleet makes endpoints with.  They carry nothing but probes: what is in flight is time."""
        return _Endpoint(self._swarm, self._account, address.host)


class ClusterRuntime(SwarmRuntime):
    """The same, and an ICluster (llmproxy.runtimes.interface): the fleet makes room there by itself."""

    def reservations(self) -> Deferred[Reservations]:
        return succeed(self._account.inside("simulation", self._reservations))

    def _reservations(self) -> Reservations:
        needs: dict[str, dict[str, int]] = {}
        taken: dict[str, Counter[str]] = {}
        for service in self._swarm.services.values():
            if service.tasks:
                needs[service.name] = {RESOURCE: service.model.room}
                there = (task.node.name for task in service.tasks.values() if task.node and task.node.up)
                taken[service.name] = Counter(there)
        rooms = {node.name: {RESOURCE: node.room} for node in self._swarm.nodes if node.up}
        return Reservations(rooms, needs, taken, {})

    def service_of(self, spec: BackendSpec) -> str:
        return spec.route


@implementer(IStreamClientEndpoint)
@define(eq=False)
class _Endpoint:
    swarm: cluster.Cluster
    account: Account
    host: str

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        task = self.swarm.hosts.get(self.host)
        if task is None:
            return fail(ConnectionRefusedError())
        return succeed(_Connection(self.swarm, self.account, task))


class _Connection(UpstreamConnection):
    """Accepted at once, as by a published port; answered when the engine is healthy."""

    def __init__(self, swarm: cluster.Cluster, account: Account, task: cluster.Task) -> None:
        super().__init__()
        self._swarm = swarm
        self._account = account
        self._task = task

    def send(self, head: bytes, body: Any, handler: ResponseHandler, *, head_request: bool = False) -> None:
        def tell() -> None:
            if not self.closed:
                self._account.inside("news", handler.response_head, HEALTHY)

        self._swarm.answered(self._task, tell)

    def abort(self) -> None:
        self.closed = True
