"""Ends one run of a container: TERM, a second TERM, KILL.  Timers, not threads, do the waiting."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from docker.api.client import APIClient
from docker.errors import APIError, NotFound
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.runtimes.docker_client import Engine
from llmproxy.runtimes.docker_state import Snapshot, read_snapshot
from llmproxy.runtimes.interface import RuntimeUnavailable

__all__ = ["KILL_AGAIN", "LOOK_EVERY", "Stopping"]

LOOK_EVERY = 1.0
"""Seconds between looks at a container whose end the event stream should tell, in case it does not."""
KILL_AGAIN = 10.0
"""Seconds between further KILLs of one that does not die; Docker itself waits as long before it complains."""


@define(eq=False)
class Stopping:
    """One stop under way.

    Signals go through ``POST /containers/{id}/kill``: it marks the container as stopped by hand (moby,
    ``daemon/kill.go``, ``ExitOnNext``), so that no restart policy starts it again.  An engine that does
    restart it is caught by :meth:`_look`: it is told to stop in its own way.

    :ivar ended: fires when the end of the run has been seen; cancel it to give up.
    """

    _reactor: IReactorTime
    _engine: Engine
    _snapshot: Snapshot
    _over: Callable[[Stopping], None]
    ended: Deferred[None] = field(init=False)
    _timers: list[IDelayedCall] = field(factory=list, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self.ended = Deferred(lambda _: self._finish())

    @property
    def container_id(self) -> str:
        """The container that is being stopped."""
        return self._snapshot.id

    def start(self, grace: float) -> Deferred[None]:
        """Send the first signal and set the timers.

        :param grace: seconds until KILL; 0 kills at once.
        """
        term = self._snapshot.stop_signal
        if grace <= 0 or self._snapshot.status == "restarting":
            self._kill_for_good()
        else:
            self._signal(term, unpause=self._snapshot.status == "paused")
            self._later(grace / 2, self._signal, term)
            self._later(grace, self._kill_for_good)
        self._later(LOOK_EVERY, self._look)
        return self.ended

    def died(self, at: int) -> None:
        """The event stream tells of the container's end.

        :param at: nanoseconds, the engine's clock.
        """
        if at >= self._snapshot.started_ns:
            self.done()

    def done(self) -> None:
        """It has ended."""
        if not self.ended.called:
            self._finish()
            self.ended.callback(None)

    def fail(self, reason: Failure) -> None:
        """The engine does not answer."""
        if not self.ended.called:
            self._finish()
            self.ended.errback(reason)

    def _finish(self) -> None:
        timers, self._timers = self._timers, []
        for timer in timers:
            if timer.active():
                timer.cancel()
        self._over(self)

    def _later(self, seconds: float, job: Callable[..., None], *args: str) -> None:
        self._timers = [timer for timer in self._timers if timer.active()]
        self._timers.append(self._reactor.callLater(seconds, job, *args))

    def _kill_for_good(self) -> None:
        if self._snapshot.status == "restarting":
            self._stop_call()
        else:
            self._signal("SIGKILL")
        self._later(KILL_AGAIN, self._kill_for_good)

    def _signal(self, signal: str, unpause: bool = False) -> None:
        container = self._snapshot.id

        def send(client: APIClient) -> None:
            if unpause:
                # A paused process takes TERM only when it goes on; sent first, it cannot serve in between.
                client.kill(container, signal)
                client.unpause(container)
            else:
                client.kill(container, signal)

        self._engine.call(send).addErrback(self._refused)

    def _stop_call(self) -> None:
        """The engine's own stop, without grace: it also ends the waiting of a restart policy."""
        container = self._snapshot.id
        stopped = self._engine.call(lambda client: client.stop(container, timeout=0))
        stopped.addCallbacks(lambda _: self._look_now(), self._refused)

    def _refused(self, reason: Failure) -> None:
        if self.ended.called:
            return
        if reason.check(NotFound):
            self.done()
        elif reason.check(RuntimeUnavailable):
            self.fail(reason)
        elif reason.check(APIError):
            # 409: it is not running (any more).  Whatever it is, looking tells.
            self._look_now()
        else:
            self.fail(reason)

    def _look(self) -> None:
        self._look_now()
        self._later(LOOK_EVERY, self._look)

    def _look_now(self) -> None:
        container = self._snapshot.id
        looked = self._engine.call(lambda client: read_snapshot(client.inspect_container(container)))
        looked.addCallbacks(self._seen, self._not_seen)

    def _seen(self, now: Snapshot) -> None:
        if self.ended.called:
            return
        if now.alive and now.run != self._snapshot.run:
            self._stop_call()
        elif not now.alive:
            self.done()

    def _not_seen(self, reason: Failure) -> None:
        if self.ended.called:
            return
        if reason.check(NotFound):
            self.done()
        elif reason.check(RuntimeUnavailable):
            self.fail(reason)
        else:
            self._log.debug("looking at {id} failed: {why}", id=self._snapshot.id[:12], why=reason.value)
