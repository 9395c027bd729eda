"""Ends tasks: Swarm tells them to end, and those on the engine that we talk to are made to."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from docker.api.client import APIClient
from docker.errors import APIError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.runtimes.docker_client import Engine
from llmproxy.runtimes.docker_stop import KILL_AGAIN
from llmproxy.runtimes.swarm_reach import Here
from llmproxy.runtimes.swarm_state import Picture, SwarmTask

__all__ = ["Ending"]

AWAY_MOST = 10.0
"""Seconds for which the manager may not answer."""


@define(eq=False)
class Ending:
    """A :class:`~llmproxy.runtimes.swarm_monitor.Subject` that waits for the end of some tasks.

    Swarm gives each of them its ``StopGracePeriod`` between TERM and KILL, wherever it is.  To the containers
    on the engine that we talk to signals are sent besides.

    :ivar ended: fires when the end of all of them has been seen; cancel it to give up.
    :ivar told: not before Swarm itself knows of it.
    """

    _reactor: IReactorTime
    _engine: Engine
    name: str
    _tasks: dict[str, SwarmTask]
    _node: str
    _over: Callable[[Ending], None]
    busy: bool = field(default=True, init=False)
    told: bool = field(default=False, init=False)
    ended: Deferred[None] = field(init=False)
    _killing: bool = field(default=False, init=False)
    _killed: set[str] = field(factory=set, init=False)
    _away_since: float | None = field(default=None, init=False)
    _timers: list[IDelayedCall] = field(factory=list, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self.ended = Deferred(lambda _: self._finish())

    def start(self, grace: float) -> Deferred[None]:
        """Send the first signal and set the timers.

        :param grace: seconds until KILL; 0 kills at once.
        """
        if grace <= 0:
            self._kill()
        else:
            self._signal(None)
            self._later(grace / 2, lambda: self._signal(None))
            self._later(grace, self._kill)
        return self.ended

    def seen(self, picture: Picture, here: Here) -> None:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        self._away_since, self._node = None, here.node
        left = picture.tasks if self.told else picture.alive
        alive = {task.id: task for task in left if not task.told_over and not picture.lost(task)}
        self._tasks = {id: alive[id] for id in self._tasks if id in alive}
        if not self._tasks:
            self._done()
        elif self._killing and any(
            task.container and task.container not in self._killed for task in self._tasks.values()
        ):
            # It was created after the others were killed.
            self._signal("SIGKILL")

    def unseen(self, reason: Failure) -> None:
        """See :class:`~llmproxy.runtimes.swarm_monitor.Subject`."""
        now = self._reactor.seconds()
        if self._away_since is None:
            self._away_since = now
        if now - self._away_since >= AWAY_MOST:
            self.fail(reason)

    def fail(self, reason: Failure) -> None:
        """It cannot be seen whether they end."""
        if not self.ended.called:
            self._finish()
            self.ended.errback(reason)

    def _done(self) -> None:
        if not self.ended.called:
            self._finish()
            self.ended.callback(None)

    def _finish(self) -> None:
        timers, self._timers = self._timers, []
        for timer in timers:
            if timer.active():
                timer.cancel()
        self._over(self)

    def _later(self, seconds: float, job: Callable[[], None]) -> None:
        self._timers = [timer for timer in self._timers if timer.active()]
        self._timers.append(self._reactor.callLater(seconds, job))

    def _kill(self) -> None:
        self._killing = True
        self._signal("SIGKILL")
        self._later(KILL_AGAIN, self._kill)

    def _signal(self, signal: str | None) -> None:
        ours = [task.container for task in self._tasks.values() if task.container and task.node == self._node]
        if signal == "SIGKILL":
            self._killed.update(task.container for task in self._tasks.values())
        if ours:
            sent = self._engine.call(lambda client: _send(client, ours, signal))
            sent.addErrback(lambda reason: self._log.debug("{why}", why=reason.value))


def _send(client: APIClient, containers: list[str], signal: str | None) -> None:
    for container in containers:
        try:
            asks = signal or _stop_signal(client, container)
            client.kill(container, asks)
        except APIError:
            # It is not running, or not there any more: the next look tells.
            continue


def _stop_signal(client: APIClient, container: str) -> str:
    config = client.inspect_container(container).get("Config") or {}
    return config.get("StopSignal") or "SIGTERM"
