"""Looks at all services that somebody wants to know of: with one question for all of them.

The manager's events tell of services and nodes, and those of our own engine of its containers; of tasks
elsewhere nothing tells, so that they are listed: often while something changes, seldom while nothing does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from attrs import define, evolve, field, frozen
from docker.api.client import APIClient
from docker.errors import NotFound
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.runtimes.docker_reach import find_reach
from llmproxy.runtimes.interface import Exit, RuntimeUnavailable
from llmproxy.runtimes.swarm_calls import get, list_nodes, list_services, list_tasks
from llmproxy.runtimes.swarm_events import Happening
from llmproxy.runtimes.swarm_manager import Manager
from llmproxy.runtimes.swarm_reach import Here
from llmproxy.runtimes.swarm_state import Picture, SwarmNode, SwarmService, SwarmTask

__all__ = ["BUSY_EVERY", "REST_EVERY", "Found", "Monitor", "Subject"]

BUSY_EVERY = 0.25
"""Seconds between looks while something changes or somebody waits for it."""
REST_EVERY = 2.0
"""Seconds between looks while nothing does."""
AGAIN_AFTER = 1.0
"""Seconds after a look that failed."""
CLOSEST = 0.05
"""Seconds between looks at least, however many events there are."""
NODES_EVERY = 10.0
"""Seconds after which nodes are listed again without an event."""


class Subject(Protocol):
    """Who wants to know of one service."""

    @property
    def name(self) -> str:
        """The service's."""

    @property
    def busy(self) -> bool:
        """Whether it is to be looked at often."""

    def seen(self, picture: Picture, here: Here) -> None:
        """That is how it is; of a look that began after the subject was added."""

    def unseen(self, reason: Failure) -> None:
        """The look failed: the manager does not answer."""


@frozen
class Found:
    """What one look has found: services by name, their tasks by the service's id, nodes by id."""

    services: Mapping[str, SwarmService]
    tasks: Mapping[str, tuple[SwarmTask, ...]]
    nodes: Mapping[str, SwarmNode]
    here: Here


@define(eq=False)
class Monitor:
    """Looks, one look after the other, and tells all subjects."""

    _reactor: IReactorTime
    _manager: Manager
    _subjects: list[Subject] = field(factory=list, init=False)
    _nodes: Mapping[str, SwarmNode] = field(factory=dict, init=False)
    _nodes_at: float | None = field(default=None, init=False)
    _here: Here | None = field(default=None, init=False)
    _looking: bool = field(default=False, init=False)
    _dirty: bool = field(default=False, init=False)
    _began: float = field(default=0.0, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)
    # Containers of our own engine, of which Swarm may not have heard so far.
    _died: dict[str, tuple[int | None, int]] = field(factory=dict, init=False)
    _oom: set[str] = field(factory=set, init=False)
    _log = Logger()

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        self._subjects.clear()
        self._forget_timer()

    @property
    def node(self) -> str:
        """Id of the node whose engine we talk to; empty before the first look."""
        return "" if self._here is None else self._here.node

    @property
    def remembered(self) -> int:
        """Containers of which something is remembered."""
        return len(self._died.keys() | self._oom)

    def add(self, subject: Subject) -> None:
        """Tell it from now on; the first look is at once."""
        self._subjects.append(subject)
        self.look()

    def remove(self, subject: Subject) -> None:
        """Tell it no more."""
        self._subjects = [each for each in self._subjects if each is not subject]
        if not self._subjects:
            self._forget_timer()

    def look(self, *, nodes: bool = False) -> None:
        """Something has happened, or is about to.

        :param nodes: to a node.
        """
        if nodes:
            self._nodes_at = None
        if self._closed or not self._subjects:
            return
        self._dirty = True
        if not self._looking:
            self._after(max(0.0, self._began + CLOSEST - self._reactor.seconds()))

    def heard(self, event: Happening) -> None:
        """Our own engine has told of something."""
        if event.action == "oom":
            self._oom.add(event.id)
        elif event.type == "container" and event.action == "die":
            self._died[event.id] = (event.code, event.at)
        self.look(nodes=event.type == "node")

    def _after(self, seconds: float) -> None:
        self._forget_timer()
        self._timer = self._reactor.callLater(seconds, self._begin)

    def _forget_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _begin(self) -> None:
        self._timer = None
        subjects = list(self._subjects)
        if not subjects:
            return
        self._looking, self._dirty, self._began = True, False, self._reactor.seconds()
        names = {subject.name for subject in subjects}
        nodes = self._nodes
        if self._nodes_at is None or self._began - self._nodes_at >= NODES_EVERY:
            nodes, self._nodes_at = {}, self._began
        before = self._here
        host = self._manager.engine.host
        looked = self._manager.call(lambda client: _look(client, host, names, nodes, before))
        looked.addCallbacks(self._looked, self._failed, callbackArgs=(subjects,), errbackArgs=(subjects,))

    def _looked(self, found: Found, subjects: Iterable[Subject]) -> None:
        self._nodes, self._here = found.nodes, found.here
        tasks_of = {service: self._known_better(tasks) for service, tasks in found.tasks.items()}
        self._forget_dead(found)
        for subject in subjects:
            if not self._here_still(subject):
                continue
            service = found.services.get(subject.name)
            tasks = () if service is None else tasks_of.get(service.id, ())
            self._tell(subject.seen, Picture(service, tasks, found.nodes), found.here)
        self._next(BUSY_EVERY if any(subject.busy for subject in self._subjects) else REST_EVERY)

    def _known_better(self, tasks: tuple[SwarmTask, ...]) -> tuple[SwarmTask, ...]:
        """With what our own engine has told."""
        return tuple(self._as_told(task) if task.container else task for task in tasks)

    def _as_told(self, task: SwarmTask) -> SwarmTask:
        oom = task.container in self._oom
        if task.told_over or task.container not in self._died:
            return evolve(task, oom=True) if oom else task
        code, at = self._died[task.container]
        return evolve(task, died=Exit(code, oom), changed_ns=max(at, task.changed_ns), oom=oom)

    def _forget_dead(self, found: Found) -> None:
        """Containers of services that nobody wants to know of, and those that are not there any more."""
        if self._died or self._oom:
            known = {task.container for tasks in found.tasks.values() for task in tasks}
            self._died = {each: told for each, told in self._died.items() if each in known}
            self._oom &= known

    def _failed(self, reason: Failure, subjects: Iterable[Subject]) -> None:
        self._nodes_at = None
        if not reason.check(RuntimeUnavailable, CancelledError):
            self._log.failure("looking at services failed", failure=reason)
        for subject in subjects:
            if self._here_still(subject):
                self._tell(subject.unseen, reason)
        self._next(AGAIN_AFTER, failed=True)

    def _here_still(self, subject: Subject) -> bool:
        return any(each is subject for each in self._subjects)

    def _tell(self, tell: Callable[..., None], *args: Any) -> None:
        try:
            tell(*args)
        except Exception:
            # One that cannot be told must not keep the others from being told.
            self._log.failure("telling of a service failed")

    def _next(self, seconds: float, failed: bool = False) -> None:
        self._looking = False
        if self._closed or not self._subjects:
            return
        if self._dirty and not failed:
            seconds = max(0.0, self._began + CLOSEST - self._reactor.seconds())
        self._after(seconds)


def _look(
    client: APIClient,
    host: str,
    names: Iterable[str],
    nodes: Mapping[str, SwarmNode],
    before: Here | None,
) -> Found:
    node = "" if before is None else before.node
    if not nodes:
        nodes = list_nodes(client)
        node = str((client.info().get("Swarm") or {}).get("NodeID") or "")
    services = list_services(client, names)
    try:
        tasks = list_tasks(client, (service.id for service in services.values()))
    except NotFound:
        # One was removed in between.
        services = list_services(client, names)
        tasks = list_tasks(client, (service.id for service in services.values()))
    here = Here(find_reach(client, host), node, {} if before is None else before.local)
    if here.reach.local:
        here = evolve(here, local=_local(client, here, [each for those in tasks.values() for each in those]))
    return Found(services, tasks, nodes, here)


def _local(client: APIClient, here: Here, tasks: Iterable[SwarmTask]) -> dict[str, tuple[str, ...]]:
    """Addresses of the containers that run on this node; those that are known do not change."""
    found: dict[str, tuple[str, ...]] = {}
    gateway: Mapping[str, Any] | None = None
    for task in tasks:
        if task.state != "running" or task.node != here.node or not task.container:
            continue
        known = here.local.get(task.container)
        if known:
            found[task.container] = known
            continue
        try:
            info = client.inspect_container(task.container)
        except NotFound:
            continue
        # The addresses of an overlay network are not for the host.
        overlays = {each.id for each in task.attachments}
        networks = ((info.get("NetworkSettings") or {}).get("Networks") or {}).values()
        own = [
            str(net["IPAddress"])
            for net in networks
            if net.get("NetworkID") not in overlays and net.get("IPAddress")
        ]
        if not own:
            # Each container that is on overlay networks alone has a leg on this bridge, to get out by.
            if gateway is None:
                try:
                    gateway = get(client, "networks/docker_gwbridge").get("Containers") or {}
                except NotFound:
                    gateway = {}
            leg = str((gateway.get(task.container) or {}).get("IPv4Address") or "").partition("/")[0]
            own = [leg] if leg else []
        found[task.container] = tuple(own)
    return found
