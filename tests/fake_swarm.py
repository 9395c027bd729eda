"""A runtime in memory that may run several tasks of a backend, and apart from it what drives it.

:class:`FakeSwarm` is the world, as :class:`tests.fakes.FakeController` is; each run begins with one task.
"""

from __future__ import annotations

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, succeed

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import Address, Instance, Task
from tests.fakes import FakeController, FakeRuntime

__all__ = ["FakeReplicator", "FakeSwarm"]


@define(eq=False)
class FakeSwarm(FakeController):
    """The world.

    :ivar at_once: tasks that are wanted run at once; else they are pending until :meth:`run_task`.
    :ivar choosable: whether a proxy may say which task leaves.
    :ivar hold_scaling: while true, ``scale`` and ``retire`` wait for :meth:`finish_scaling`.
    """

    at_once: bool = True
    choosable: bool = True
    hold_scaling: bool = False
    _made: int = 0
    _scaling: list[Deferred[None]] = field(factory=list)

    def tasks(self, route: str) -> list[str]:
        """Those that run and are not leaving."""
        instance = self._instances.get(route)
        return [] if instance is None else [task.id for task in instance.tasks if not task.leaving]

    def run_task(self, route: str, *, quietly: bool = False) -> Task:
        """One that is wanted runs now.

        :param quietly: nobody is told yet.
        """
        self._made += 1
        address = Address(f"10.0.0.{self._made}", 8000, "network")
        task = Task(f"t{self._made}", (address,), node=f"node{self._made}")
        self._change(route, tasks=(*self._instances[route].tasks, task))
        if not quietly:
            self._resync()
        return task

    def end_task(self, route: str, id: str, code: int | None = 137) -> None:
        """One has ended."""
        rest = tuple(task for task in self._instances[route].tasks if task.id != id)
        if not rest:
            self.exit(route, code)
            return
        self._change(route, tasks=rest)
        self._resync()

    def end_and_replace(self, route: str, id: str) -> Task:
        """One has ended, and another one runs in its place."""
        task = self.run_task(route, quietly=True)
        self.end_task(route, id)
        return task

    def leave_task(self, route: str, id: str) -> None:
        """One is being ended by whoever runs it."""
        tasks = [evolve(task, leaving=task.leaving or task.id == id) for task in self._instances[route].tasks]
        self._change(route, tasks=tuple(tasks))
        self._resync()

    def say(self, route: str, **told: object) -> None:
        """Something else of the run is another way now."""
        self._change(route, **told)
        self._resync()

    def finish_scaling(self) -> None:
        """Let held changes of the number of tasks be done."""
        held, self._scaling = self._scaling, []
        for waiting in held:
            waiting.callback(None)

    def _change(self, route: str, **told: object) -> None:
        self._instances[route] = evolve(self._instances[route], **told)  # type: ignore[arg-type]

    def _begin(self, route: str) -> Instance:
        begun = super()._begin(route)
        task = self.run_task(route, quietly=True)
        self._instances[route] = instance = evolve(begun, addresses=task.addresses, tasks=(task,))
        return instance

    def _scaled(self) -> Deferred[None]:
        if not self.hold_scaling:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._scaling.append(waiting)
        return waiting


class FakeReplicator(FakeRuntime):
    """See :class:`llmproxy.runtimes.interface.IReplicator`."""

    def __init__(self, swarm: FakeSwarm) -> None:
        super().__init__(swarm)
        self.swarm = swarm

    def stop(self, spec: BackendSpec, grace: float) -> Deferred[None]:
        if spec.route in self.swarm.starting():
            self.swarm.refuse_start(spec.route, "it was stopped before it ran")
        return super().stop(spec, grace)

    def scale(self, spec: BackendSpec, replicas: int) -> Deferred[None]:
        self.swarm.calls.append(("scale", spec.route, replicas))
        away = self._unavailable()
        if away is not None:
            return away
        present = self.swarm.instance(spec.route)
        if present is not None and present.replicas < replicas:
            self.swarm._change(spec.route, replicas=replicas)
            while self.swarm.at_once and len(self.swarm.tasks(spec.route)) < replicas:
                self.swarm.run_task(spec.route, quietly=True)
            self.swarm._resync()
        return self.swarm._scaled()

    def can_choose(self, spec: BackendSpec, task: str) -> bool:
        return self.swarm.choosable

    def retire(self, spec: BackendSpec, task: str, replicas: int) -> Deferred[None]:
        self.swarm.calls.append(("retire", spec.route, task, replicas))
        away = self._unavailable()
        if away is not None:
            return away
        present = self.swarm.instance(spec.route)
        if present is not None and present.replicas == replicas:
            self.swarm._change(spec.route, replicas=replicas - 1)
            running = self.swarm.tasks(spec.route)
            if len(running) >= replicas:
                self.swarm.leave_task(spec.route, task or running[0])
            self.swarm._resync()
        return self.swarm._scaled()

    def note_use(self, spec: BackendSpec, replicas: int) -> None:
        self.swarm.calls.append(("note_use", spec.route, replicas))
