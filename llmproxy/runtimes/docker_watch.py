"""One watched backend: asks the engine how it is, one question at a time, and tells its watcher."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.docker_state import Event, Snapshot, container_name
from llmproxy.runtimes.interface import Exit, Instance, RuntimeUnavailable, Watcher
from llmproxy.runtimes.telling import Teller

__all__ = ["LOOK_AGAIN", "Look", "Watch"]

LOOK_AGAIN = 1.0
"""Seconds after which a look that failed is repeated while the event stream stands."""

Look = Callable[[BackendSpec], "Deferred[tuple[Snapshot, Instance] | None]"]


@define(eq=False)
class Watch:
    """Level-triggered: events say that something happened, the look says how things are.

    An event that comes during a look makes its answer worthless, so the look is repeated.  Only the end of
    the present run is told from the event itself, as a look may stall for 20 s.

    :ivar own: containers that we have created; that they are there is no news.
    """

    _reactor: IReactorTime
    spec: BackendSpec
    _watcher: Watcher
    _look: Look
    _connected: Callable[[], bool]
    _starting: Callable[[], bool]
    _own: set[str]
    name: str = field(init=False)
    teller: Teller = field(init=False)
    _container: str | None = field(default=None, init=False)
    _container_known: bool = field(default=False, init=False)
    _run: Snapshot | None = field(default=None, init=False)
    # How often a run came back from a pause: it was told as gone, and a run is gone only once.
    _pauses: dict[str, int] = field(factory=dict, init=False)
    _oom_at: int = field(default=0, init=False)
    _looking: bool = field(default=False, init=False)
    _dirty: bool = field(default=False, init=False)
    _again: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _settled: list[Deferred[None]] = field(factory=list, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self.name = container_name(self.spec)
        self.teller = Teller(self._watcher)

    def close(self) -> None:
        """Tell no more."""
        self._closed = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._settle()

    @property
    def there(self) -> bool:
        """There was such a container when it was last looked for."""
        return self._container is not None

    def settled(self) -> Deferred[None]:
        """Fires when the present look is over, whether it told anything or not."""
        if not self._looking:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._settled.append(waiting)
        return waiting

    def reconcile(self, *, again: bool = False) -> None:
        """See how it is and tell; ``again`` even if nothing changed."""
        self._again = self._again or again
        if self._looking:
            self._dirty = True
        elif not self._closed:
            self._looking, self._dirty = True, False
            self._look(self.spec).addCallbacks(self._looked, self._failed)

    def started(self, snapshot: Snapshot, instance: Instance) -> Instance:
        """``ensure_started`` has this run; its end is told from now on."""
        instance = self._named(snapshot, instance)
        self._container, self._container_known = snapshot.id, True
        self._run = snapshot
        self.teller.answered(instance)
        return instance

    def over(self, snapshot: Snapshot, instance: Instance) -> None:
        """That run, just started, has ended already."""
        self.teller.ended(instance.run, self._exit(snapshot))

    def matches(self, event: Event) -> bool:
        """Whether it is about our container."""
        return event.name == self.name or event.old_name == self.name or event.id == self._container

    def event(self, event: Event) -> None:
        """Something happened to our container."""
        present = self._run is not None and event.id == self._run.id and event.at >= self._run.started_ns
        if event.action == "oom" and event.id == self._container:
            self._oom_at = event.at
        elif event.action == "die" and present and self._run is not None:
            run, self._run = self._run, None
            oom = run.exit.oom or self._oom_at >= run.started_ns
            self.teller.ended(self._run_name(run), Exit(event.exit_code, oom))
        elif event.action == "pause" and present and self._run is not None:
            self._paused(self._run)
        elif event.action in ("create", "destroy", "rename", "update"):
            self._replaced(event)
        self.reconcile()

    def _replaced(self, event: Event) -> None:
        before = self._container
        if event.action == "destroy" and event.id == before:
            self._container = None
        elif event.action == "create" or (event.action == "rename" and event.name == self.name):
            self._container = event.id
        elif event.action == "rename" and event.id == before:
            self._container = None
        elif event.action != "update":
            return
        self._container_known = True
        # Our own creating changes nothing that anybody wished for; what others do to what we created does.
        ours = event.action == "create" and event.id in self._own
        if self.teller.told and not self._starting() and not ours:
            self._watcher.changed()

    def _paused(self, run: Snapshot) -> None:
        name = self._run_name(run)
        if self.teller.known == name:
            self._pauses[run.run] = self._pauses.get(run.run, 0) + 1
            self.teller.ended(name, Exit())

    def _run_name(self, snapshot: Snapshot) -> str:
        pauses = self._pauses.get(snapshot.run, 0)
        return f"{snapshot.run}~{pauses}" if pauses else snapshot.run

    def _named(self, snapshot: Snapshot, instance: Instance) -> Instance:
        return Instance(self._run_name(snapshot), instance.addresses, instance.started_at)

    def _exit(self, snapshot: Snapshot) -> Exit:
        return Exit(snapshot.exit.code, snapshot.exit.oom or 0 < snapshot.started_ns <= self._oom_at)

    def _looked(self, found: tuple[Snapshot, Instance] | None) -> None:
        self._looking = False
        if self._closed:
            return
        if self._dirty:
            self.reconcile()
            return
        again, self._again = self._again, False
        self._tell(found, again)
        self._settle()

    def _tell(self, found: tuple[Snapshot, Instance] | None, again: bool) -> None:
        container = found[0].id if found is not None else None
        replaced = self._container_known and container != self._container
        self._container, self._container_known = container, True
        if found is None:
            self._run = None
            self.teller.absent()
        else:
            snapshot, instance = found
            if snapshot.serving:
                self._run = snapshot
                self._pauses = {run: count for run, count in self._pauses.items() if run == snapshot.run}
                self.teller.running(self._named(snapshot, instance), again=again)
            elif snapshot.status == "paused":
                self._run = snapshot
                self._paused(snapshot)
                self.teller.absent()
            else:
                self._run = None
                if self.teller.known == self._run_name(snapshot) and snapshot.status != "restarting":
                    self.teller.ended(self._run_name(snapshot), self._exit(snapshot))
                self.teller.absent()
        if replaced and not self._starting() and container not in self._own:
            self._watcher.changed()

    def _failed(self, reason: Failure) -> None:
        self._looking = False
        if self._closed:
            return
        if not reason.check(RuntimeUnavailable):
            self._log.failure("looking at container {name} failed", failure=reason, name=self.name)
        # While the stream is down, the resync after its return looks again.
        if self._connected() and not (self._timer is not None and self._timer.active()):
            self._timer = self._reactor.callLater(LOOK_AGAIN, self.reconcile)
        self._settle()

    def _settle(self) -> None:
        settled, self._settled = self._settled, []
        for waiting in settled:
            if not waiting.called:
                waiting.callback(None)
