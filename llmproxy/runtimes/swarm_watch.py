"""One watched service: tells its watcher of the runs that its tasks are."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import Address, Exit, Instance, RuntimeUnavailable, Task, Watcher
from llmproxy.runtimes.swarm_labels import RUN, needed_at, others, used_at
from llmproxy.runtimes.swarm_reach import Here, task_addresses
from llmproxy.runtimes.swarm_state import Picture, SwarmTask, service_name
from llmproxy.runtimes.telling import Teller

__all__ = ["RESTLESS", "SwarmWatch", "instance_of", "run_name"]

RESTLESS = 60.0
"""Seconds for which a service that changes is looked at often; it may wait for a node for days."""

Finish = Callable[[BackendSpec, Picture, SwarmTask], "Deferred[Exit]"]


def run_name(picture: Picture, over: Callable[[str], bool] = lambda run: False) -> str:
    """What the run is called whose tasks these are: by the start that a proxy wrote down, else by the oldest
    of its tasks, so that two proxies call it the same.

    :param over: whether a run of that name has ended before; whatever runs now is another one.
    """
    service = picture.service
    assert service is not None
    mark = service.labels.get(RUN, "")
    name = f"{service.id}:{mark}"
    if mark and not over(name):
        return name
    tasks = picture.running or picture.tasks
    return f"{service.id}:{tasks[0].id}" if tasks else name


def instance_of(
    spec: BackendSpec, picture: Picture, here: Here, run: str, me: str, before: Instance | None = None
) -> Instance | None:
    """The run as it is; None when no task of it can be reached.

    :param me: names this proxy, whose own notes tell it nothing.
    :param before: the same run a while ago.
    """
    service = picture.service
    assert service is not None
    known = {} if before is None else {task.id: task.addresses for task in before.tasks}
    tasks: list[Task] = []
    for task in picture.running:
        # Of one that leaves Swarm tells no ports any more.
        found = (() if task.wanted else known.get(task.id, ())) or task_addresses(spec, picture, task, here)
        if found:
            node = picture.nodes.get(task.node)
            tasks.append(Task(task.id, found, not task.wanted, task.node if node is None else node.name))
    if not tasks:
        return None
    addresses: tuple[Address, ...] = tuple(dict.fromkeys(each for task in tasks for each in task.addresses))
    if before is not None:
        started_at = before.started_at
    else:
        started_at = min((task.changed_ns for task in picture.running), default=0) / 1e9 or None
    wanted = service.replicas or 0
    uses = others(service.labels, me)
    return Instance(
        run,
        addresses,
        started_at,
        tuple(tasks),
        wanted,
        picture.pending,
        used_at(uses),
        needed_at(uses, wanted),
    )


@define(eq=False)
class SwarmWatch:
    """A :class:`~llmproxy.runtimes.swarm_monitor.Subject`.

    :ivar finish: called when the last task of a run has ended by itself: scales the service to 0, and tells
        what is known of the end.
    :ivar starting: whether we are starting this very service, so that what changes in it is our own doing.
    :ivar me: names this proxy.
    """

    _reactor: IReactorTime
    spec: BackendSpec
    _watcher: Watcher
    _finish: Finish
    _starting: Callable[[], bool]
    _me: str
    teller: Teller = field(init=False)
    picture: Picture | None = field(default=None, init=False)
    _members: dict[str, str] = field(factory=dict, init=False)
    _instance: Instance | None = field(default=None, init=False)
    _made_of: tuple[str, str] | None = field(default=None, init=False)
    _seen_before: bool = field(default=False, init=False)
    _finishing: bool = field(default=False, init=False)
    _again: bool = field(default=False, init=False)
    _restless_since: float | None = field(default=None, init=False)
    _last: object = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)
    _settled: list[Deferred[None]] = field(factory=list, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self.teller = Teller(self._watcher)

    @property
    def name(self) -> str:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        return service_name(self.spec)

    @property
    def busy(self) -> bool:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        since = self._restless_since
        return since is not None and self._reactor.seconds() - since < RESTLESS

    def close(self) -> None:
        """Tell no more."""
        self._closed = True
        self._settle()

    def settled(self) -> Deferred[None]:
        """Fires after the next look, whether it told anything or not."""
        waiting: Deferred[None] = Deferred()
        self._settled.append(waiting)
        return waiting

    def is_over(self, run: str) -> bool:
        """Whether a run of that name has ended."""
        return self.teller.is_over(run)

    def started(self, instance: Instance) -> None:
        """``ensure_started`` gives this run away; its end is told from now on."""
        self._instance = instance if instance.tasks else None
        self._members.update((task.id, instance.run) for task in instance.tasks)
        self.teller.answered(instance)

    def was_brief(self, instance: Instance, picture: Picture, last: SwarmTask) -> None:
        """``ensure_started`` gives a run away whose last task has ended by itself already.  Its end is told
        like that of any other run; whatever is seen before that is not yet the whole of it."""
        self.started(instance)
        self._members[last.id] = instance.run
        self._end(instance.run, picture, last)

    def unseen(self, reason: Failure) -> None:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        self._again = True
        self._settle()

    def seen(self, picture: Picture, here: Here) -> None:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        self.picture = picture
        self._note_restless(picture)
        if not self._finishing:
            self._tell(picture, here)
            self._note_change(picture)
        self._settle()

    def _tell(self, picture: Picture, here: Here) -> None:
        known = self.teller.known
        running = picture.running if picture.service is not None else ()
        if known is not None and running and not self._failed_unseen(known, picture):
            again, self._again = self._again, False
            self._members.update((task.id, known) for task in running)
            before = self._instance if self._instance is not None and self._instance.run == known else None
            instance = instance_of(self.spec, picture, here, known, self._me, before)
            if instance is not None:
                self._instance = instance
                self.teller.running(instance, again=again)
        elif known is not None:
            if self._over(known, picture) and running:
                self._tell(picture, here)
        elif any(task.wanted for task in running):
            self._again = False
            run = run_name(picture, self.is_over)
            instance = instance_of(self.spec, picture, here, run, self._me)
            if instance is None or all(task.leaving for task in instance.tasks):
                self.teller.absent()
            else:
                self._instance = instance
                self._members = {task.id: instance.run for task in running}
                self.teller.running(instance)
        else:
            self.teller.absent()

    def _failed_unseen(self, run: str, picture: Picture) -> bool:
        """All its tasks have ended by themselves, and Swarm was quick to put others in their place."""
        ours = [task for task in picture.tasks if self._members.get(task.id) == run]
        places = {task.slot for task in ours if task.ended_by_itself}
        return all(task.ended_by_itself for task in ours) and all(
            task.slot in places for task in picture.running
        )

    def _over(self, run: str, picture: Picture) -> bool:
        """No task of it runs any more.

        :return: whether that is told.
        """
        ours = [task for task in picture.tasks if self._members.get(task.id) == run]
        # Swarm itself ends those of a node that is lost or drained, and puts others in their place.
        lost = any(picture.lost(task) and not task.over for task in ours)
        ended = [task for task in ours if task.over]
        last = max(ended, key=lambda task: (task.changed_ns, task.id), default=None)
        replicas = 0 if picture.service is None else picture.service.replicas or 0
        if last is None or lost or not last.ended_by_itself or not replicas:
            self._is_over(run, Exit() if last is None or lost else last.exit)
            return True
        self._end(run, picture, last)
        return False

    def _end(self, run: str, picture: Picture, last: SwarmTask) -> None:
        self._finishing = True
        finished = self._finish(self.spec, picture, last)
        finished.addCallbacks(self._finished, self._not_finished, callbackArgs=(run,))

    def _finished(self, exit: Exit, run: str) -> None:
        self._finishing = False
        if not self._closed:
            self._is_over(run, exit)

    def _not_finished(self, reason: Failure) -> None:
        # The next look begins with it again.
        self._finishing = False
        if not self._closed and not reason.check(RuntimeUnavailable):
            self._log.failure("ending service {name} failed", failure=reason, name=self.name)

    def _is_over(self, run: str, exit: Exit) -> None:
        self._members = {task: name for task, name in self._members.items() if name != run}
        self.teller.ended(run, exit)

    def _note_change(self, picture: Picture) -> None:
        service = picture.service
        made_of = None if service is None else (service.id, service.template)
        replaced, self._made_of = self._seen_before and made_of != self._made_of, made_of
        self._seen_before = True
        if replaced and not self._starting():
            self._watcher.changed()

    def _note_restless(self, picture: Picture) -> None:
        state = (
            picture.service and picture.service.replicas,
            [(task.id, task.state) for task in picture.alive],
        )
        if picture.settled:
            self._restless_since = None
        elif self._restless_since is None or state != self._last:
            self._restless_since = self._reactor.seconds()
        self._last = state

    def _settle(self) -> None:
        settled, self._settled = self._settled, []
        for waiting in settled:
            if not waiting.called:
                waiting.callback(None)
