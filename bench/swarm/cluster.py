"""A Docker Swarm as far as placing and starting goes: nodes with GPU memory as a generic resource, and
services.

As SwarmKit does it (``manager/scheduler``): of the nodes that have room the one with the fewest tasks of the
service gets the task, and among those the one with the fewest tasks at all; what fits nowhere stays pending,
and all that is pending is tried again, in no particular order, when room becomes free.  There is no other
strategy and no order among those that wait.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from random import Random
from typing import Literal

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall

from bench.swarm.clock import HeapClock
from bench.swarm.demand import Model

__all__ = ["Cluster", "Node", "Service", "Task", "nodes"]

State = Literal["pending", "preparing", "running", "healthy", "stopping", "ended"]

KINDS = ((80, 0.7), (160, 0.2), (320, 0.1))
"""GiB of GPU memory of a node, and the part of all nodes that have so much: one, two or four GPUs of 80
GiB."""

IMAGE = 9.0
"""GiB of the engine's image, which each node fetches once."""

DISK = 1000.0
"""GiB of weights that a node keeps on its disk; those not used for longest go."""

FETCH = 1.0
"""GiB a second from a registry or a hub, for one task."""

LOAD = 3.0
"""GiB a second from the disk into the GPU."""

PLACING = (0.1, 1.0)
"""Seconds until a manager has placed a task: SwarmKit gathers changes for 50 ms to 1 s before it does."""

CREATING = (1.0, 3.0)
"""Seconds to create networks and the container."""

ENGINE = (math.log(25.0), 0.35)
"""Seconds from the first import to the first answer, without weights: half take less than 25, nine of ten
less than 40."""

STOP = (math.log(3.0), 0.5)
"""Seconds of an end by TERM, memory given back."""

NOTICED = (12.0, 20.0)
"""Seconds until managers take a silent node for down: three missed heartbeats of 5 s."""


@define(eq=False)
class Node:
    """One machine.

    :ivar disk: GiB of weights that it has, by model, the last used last.
    :ivar services: how many tasks it has of each.
    """

    name: str
    room: int
    free: int = 0
    tasks: int = 0
    up: bool = True
    has_image: bool = False
    disk: OrderedDict[str, float] = field(factory=OrderedDict)
    services: Counter[str] = field(factory=Counter)


@define(eq=False)
class Service:
    """One service.

    :ivar replicas: tasks that are wanted.
    :ivar tasks: those that have not ended.
    """

    model: Model
    replicas: int = 0
    tasks: dict[str, Task] = field(factory=dict)

    @property
    def name(self) -> str:
        return self.model.name


@define(eq=False)
class Task:
    """One task.

    :ivar reachable: its node answers.
    :ivar asked: those who have asked for its health before it could answer.
    """

    id: str
    host: str
    service: Service
    since: float
    node: Node | None = None
    state: State = "pending"
    reachable: bool = True
    timer: IDelayedCall | None = None
    asked: list[Callable[[], None]] = field(factory=list)


def nodes(number: int, seed: int) -> list[Node]:
    """So many nodes."""
    dice = Random(f"{seed} nodes")
    rooms = dice.choices([room for room, _ in KINDS], [part for _, part in KINDS], k=number)
    return [Node(f"n{each:04d}", room, room) for each, room in enumerate(rooms)]


class Cluster:
    """All nodes and services.

    :ivar changed: told of a service whose tasks are others.
    :ivar placed: told of one that has a task which was pending and has a node now.
    :ivar pending: tasks that fit nowhere, the oldest first.
    :ivar hosts: running tasks by the address that they have.
    :ivar counts: what happened, how often.
    """

    def __init__(self, clock: HeapClock, those: Sequence[Node], seed: int) -> None:
        self.nodes = list(those)
        self.services: dict[str, Service] = {}
        self.pending: dict[str, Task] = {}
        self.hosts: dict[str, Task] = {}
        self.counts: Counter[str] = Counter()
        self.changed: Callable[[Service], None] = lambda service: None
        self.placed: Callable[[Service], None] = lambda service: None
        self._clock = clock
        self._dice = Random(f"{seed} cluster")
        self._ids = count(1)

    @property
    def room(self) -> int:
        """GiB of GPU memory of all nodes that are up."""
        return sum(node.room for node in self.nodes if node.up)

    @property
    def free(self) -> int:
        """Of that, GiB that nobody has reserved."""
        return sum(node.free for node in self.nodes if node.up)

    def add(self, those: Iterable[Model]) -> None:
        """Services of no tasks."""
        for model in those:
            self.services[model.name] = Service(model)

    def scale(self, service: Service, replicas: int) -> None:
        """Have so many tasks."""
        service.replicas = replicas
        self._reconcile(service)

    def reason(self, service: Service) -> str:
        """Why not all of its tasks run, in Swarm's words."""
        if any(task.state == "pending" for task in service.tasks.values()):
            return f"no suitable node (insufficient resources on {len(self.nodes)} nodes)"
        return ""

    def answered(self, task: Task, tell: Callable[[], None]) -> None:
        """Call when it is healthy: now, or later if it only runs so far."""
        if not task.reachable:
            return
        if task.state == "running":
            task.asked.append(tell)
        elif task.state != "ended":
            tell()

    # -- tasks --------------------------------------------------------------------------------------

    def _reconcile(self, service: Service) -> None:
        there = [task for task in service.tasks.values() if task.state != "stopping"]
        for _ in range(service.replicas - len(there)):
            number = next(self._ids)
            task = Task(
                f"t{number}", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", service, self.now
            )
            service.tasks[task.id] = task
            self._place(task)
        for task in sorted(there, key=self._goes_first)[: max(0, len(there) - service.replicas)]:
            self._stop(task)

    def _goes_first(self, task: Task) -> tuple[bool, int, int]:
        """Those that do not run; then from the nodes with the most tasks of it; then the youngest."""
        crowded = 0 if task.node is None else task.node.services[task.service.name]
        return task.state in ("running", "healthy"), -crowded, -int(task.id[1:])

    @property
    def now(self) -> float:
        return self._clock.rightNow

    def _place(self, task: Task) -> None:
        room, name = task.service.model.room, task.service.name
        fitting = [node for node in self.nodes if node.up and node.free >= room]
        if not fitting:
            self.pending[task.id] = task
            self.counts["pending"] += 1
            return
        self._assign(task, min(fitting, key=lambda node: (node.services[name], node.tasks)))

    def _assign(self, task: Task, node: Node) -> None:
        waited = self.pending.pop(task.id, None) is not None
        model = task.service.model
        node.free -= model.room
        node.tasks += 1
        node.services[model.name] += 1
        task.node, task.state = node, "preparing"
        seconds = self._dice.uniform(*PLACING) + self._dice.uniform(*CREATING)
        if not node.has_image:
            node.has_image = True
            seconds += IMAGE / FETCH * self._dice.lognormvariate(0.0, 0.3)
        self.counts["starts"] += 1
        task.timer = self._clock.callLater(seconds, self._run, task)
        if waited:
            self.placed(task.service)

    def _run(self, task: Task) -> None:
        """Its container runs; the engine loads."""
        node, model = task.node, task.service.model
        assert node is not None
        task.state = "running"
        self.hosts[task.host] = task
        seconds = self._dice.lognormvariate(*ENGINE) + model.weights / LOAD
        if model.name not in node.disk:
            self.counts["fetches"] += 1
            seconds += model.weights / FETCH * self._dice.lognormvariate(0.0, 0.3)
        node.disk[model.name] = model.weights
        node.disk.move_to_end(model.name)
        while sum(node.disk.values()) > DISK:
            node.disk.popitem(last=False)
        task.timer = self._clock.callLater(seconds, self._healthy, task)
        self.counts["loading ms"] += int(1000 * seconds)
        self.changed(task.service)

    def _healthy(self, task: Task) -> None:
        task.state, task.timer = "healthy", None
        asked, task.asked = task.asked, []
        for tell in asked:
            tell()

    def _stop(self, task: Task) -> None:
        if task.state in ("pending", "preparing"):
            self._end(task)
            return
        task.state = "stopping"
        if task.timer is not None and task.timer.active():
            task.timer.cancel()
        task.timer = self._clock.callLater(self._dice.lognormvariate(*STOP), self._end, task)
        self.changed(task.service)

    def _end(self, task: Task) -> None:
        ran = task.host in self.hosts
        if task.timer is not None and task.timer.active():
            task.timer.cancel()
        self.pending.pop(task.id, None)
        self.hosts.pop(task.host, None)
        task.service.tasks.pop(task.id)
        task.state, node = "ended", task.node
        if node is not None:
            node.free += task.service.model.room
            node.tasks -= 1
            node.services[task.service.name] -= 1
            if not node.services[task.service.name]:
                del node.services[task.service.name]
        if ran or not task.service.tasks:
            self.changed(task.service)
        if node is not None:
            self._room_at(node)

    def _room_at(self, node: Node) -> None:
        """What is pending is tried again: where there was no room for it, there can be some at this one
        only."""
        waiting = [task for task in self.pending.values() if task.service.model.room <= node.free]
        self._dice.shuffle(waiting)
        for task in waiting:
            if node.up and task.id in self.pending and task.service.model.room <= node.free:
                self._assign(task, node)

    # -- nodes --------------------------------------------------------------------------------------

    def fail(self, node: Node, back_in: float) -> None:
        """It is gone from one moment to the next, and back after so many seconds."""
        self.counts["nodes lost"] += 1
        node.up = False
        lost = [task for task in self._tasks() if task.node is node]
        for task in lost:
            task.reachable = False
            if task.timer is not None and task.timer.active():
                task.timer.cancel()
        self._clock.callLater(self._dice.uniform(*NOTICED), self._noticed, lost)
        self._clock.callLater(back_in, self._back, node)

    def _tasks(self) -> list[Task]:
        return [task for service in self.services.values() for task in service.tasks.values()]

    def _noticed(self, lost: Sequence[Task]) -> None:
        """Managers have its tasks run elsewhere."""
        for task in lost:
            if task.state != "ended":
                self.counts["tasks lost"] += 1
                self._end(task)
                self._reconcile(task.service)

    def _back(self, node: Node) -> None:
        node.up = True
        self._room_at(node)
