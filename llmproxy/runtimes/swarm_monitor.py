"""Looks at all services that somebody wants to know of: with one question for all of them.

The manager's events tell of services and nodes, and those of our own engine of its containers; of tasks
elsewhere nothing tells, so that they are listed: often while something changes, seldom while nothing does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from attrs import define, field
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.runtimes.interface import RuntimeUnavailable
from llmproxy.runtimes.swarm_deaths import Deaths
from llmproxy.runtimes.swarm_events import Happening
from llmproxy.runtimes.swarm_look import Found, look
from llmproxy.runtimes.swarm_manager import Manager
from llmproxy.runtimes.swarm_reach import Here
from llmproxy.runtimes.swarm_state import Picture, SwarmNode

__all__ = ["AGAIN_AFTER", "BUSY_EVERY", "CLOSEST", "REST_EVERY", "Monitor", "Subject"]

BUSY_EVERY = 0.25
"""Seconds between looks while something changes or somebody waits for it."""
REST_EVERY = 2.0
"""Seconds between looks while nothing does."""
AGAIN_AFTER = 1.0
"""Seconds after a look that failed."""
CLOSEST = 0.05
"""Seconds between looks at least, however many events there are."""
SHARE = 0.05
"""Part of the time that looks at all services may take."""
REST_MOST = 30.0
"""Seconds between them at most."""
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


@define(eq=False)
class Monitor:
    """Looks, one look after the other, and tells those subjects whose services it has looked at.

    A Swarm may have thousands of services, of which a few change: only those are looked at often.
    """

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
    deaths: Deaths = field(factory=Deaths, init=False)
    # Of whom something was heard since the last look began; None: of all.
    _touched: set[str] | None = field(factory=set, init=False)
    _all_at: float | None = field(default=None, init=False)
    _rest: float = field(default=REST_EVERY, init=False)
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

    def add(self, subject: Subject) -> None:
        """Tell it from now on; the first look is at once."""
        self._subjects.append(subject)
        self.look(subject.name)

    def remove(self, subject: Subject) -> None:
        """Tell it no more."""
        self._subjects = [each for each in self._subjects if each is not subject]
        if not self._subjects:
            self._forget_timer()

    def look(self, *names: str, nodes: bool = False) -> None:
        """Something has happened, or is about to.

        :param names: to these services; none: to any.
        :param nodes: to a node.
        """
        if nodes:
            self._nodes_at = None
        if self._closed or not self._subjects:
            return
        if not names:
            self._touched = None
        elif self._touched is not None:
            self._touched.update(names)
        self._dirty = True
        if not self._looking:
            self._after(max(0.0, self._began + CLOSEST - self._reactor.seconds()))

    def heard(self, event: Happening) -> None:
        """Our own engine has told of something."""
        if event.type == "node":
            self.look(nodes=True)
        elif any(subject.name == event.service for subject in self._subjects):
            self.deaths.heard(event)
            self.look(event.service)

    def _after(self, seconds: float) -> None:
        self._forget_timer()
        self._timer = self._reactor.callLater(seconds, self._begin)

    def _forget_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _begin(self) -> None:
        self._timer = None
        if not self._subjects:
            return
        touched, self._touched = self._touched, set()
        now = self._began = self._reactor.seconds()
        self._looking, self._dirty = True, False
        due = touched is None or self._all_at is None or now - self._all_at >= self._rest
        wanted = {each.name for each in self._subjects if each.busy} | (touched or set())
        # Whoever wants to know of the same service is told the same at the same time.
        subjects = [each for each in self._subjects if due or each.name in wanted]
        whole = len(subjects) == len(self._subjects)
        if whole:
            self._all_at = now
        names = {subject.name for subject in subjects}
        nodes = self._nodes
        if self._nodes_at is None or now - self._nodes_at >= NODES_EVERY:
            nodes, self._nodes_at = {}, now
        before, host = self._here, self._manager.engine.host
        looked = self._manager.call(lambda client: look(client, host, names, nodes, before, whole=whole))
        looked.addCallback(self._looked, subjects, whole)
        looked.addErrback(self._failed, subjects)

    def _looked(self, found: Found, subjects: Sequence[Subject], whole: bool) -> None:
        self._nodes, self._here = found.nodes, found.here
        for subject in subjects:
            if not self._here_still(subject):
                continue
            service = found.services.get(subject.name)
            tasks = () if service is None else self.deaths.known(found.tasks.get(service.id, ()))
            self._tell(subject.seen, Picture(service, tasks, found.nodes), found.here)
        if whole:
            self.deaths.forget_but(task for tasks in found.tasks.values() for task in tasks)
            # Of many services a look takes long, and must not take all of our time.
            took = self._reactor.seconds() - self._began
            self._rest = min(max(REST_EVERY, took / SHARE), REST_MOST)
        self._next(BUSY_EVERY if any(subject.busy for subject in self._subjects) else self._until_all())

    def _until_all(self) -> float:
        since = self._reactor.seconds() - (self._all_at or 0.0)
        return max(0.0, self._rest - since)

    def _failed(self, reason: Failure, subjects: Sequence[Subject]) -> None:
        self._nodes_at = self._all_at = None
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
