"""A runtime in memory, and apart from it what drives it.

:class:`FakeController` is the world: which backends run, and what they did.  :class:`FakeRuntime` is one
proxy's view of it and keeps the contract of :mod:`llmproxy.runtimes.interface`; a second one over the same
controller is the proxy after a restart.  No reactor, no clock: everything happens when a test says so.

>>> world = FakeController()
>>> runtime = FakeRuntime(world)
>>> world.hold_starts = True               # ensure_started waits for finish_start or refuse_start
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed

from llmproxy.config.model import BackendSpec
from llmproxy.engines.phases import Phase
from llmproxy.runtimes.interface import (
    Address,
    Exit,
    Facts,
    Instance,
    RuntimeUnavailable,
    StartRefused,
    Step,
    Watcher,
    unheard,
)

__all__ = ["FakeController", "FakeRuntime", "RecordingWatcher"]


@define
class RecordingWatcher:
    """Keeps what it is told.

    :ivar events: ``("running", Instance)``, ``("gone", run, Exit)`` and ``("changed",)``, oldest first.
    """

    events: list[tuple[Any, ...]] = field(factory=list)
    _heard: list[Deferred[None]] = field(factory=list)

    def running(self, instance: Instance) -> None:
        self._tell(("running", instance))

    def gone(self, run: str | None, exit: Exit) -> None:
        self._tell(("gone", run, exit))

    def changed(self) -> None:
        self._tell(("changed",))

    def heard(self) -> Deferred[None]:
        """Fires with the next thing told."""
        waiting: Deferred[None] = Deferred()
        self._heard.append(waiting)
        return waiting

    def kinds(self) -> list[str]:
        """The names of what was told."""
        return [event[0] for event in self.events]

    def _tell(self, event: tuple[Any, ...]) -> None:
        self.events.append(event)
        heard, self._heard = self._heard, []
        for waiting in heard:
            waiting.callback(None)


@define
class _Pending:
    """A start or a stop that the test has not let happen yet."""

    spec: BackendSpec
    step: Step = unheard
    waiters: list[Deferred[Any]] = field(factory=list)


@define
class _Follower:
    line: Callable[[str], None]
    ended: Deferred[None]


@define(eq=False)
class FakeController:
    """The world that fake runtimes look at.

    :ivar hold_starts: while true, ``ensure_started`` waits for :meth:`finish_start` or :meth:`refuse_start`;
        otherwise it fires at once.
    :ivar hold_stops: while true, ``stop`` waits for :meth:`finish_stop`; otherwise the backend ends at once.
    :ivar hold_facts: while true, ``facts`` waits for :meth:`finish_facts`.
    :ivar tell_running: whether a start by ``ensure_started`` is told to the watcher too, and when: as Docker
        does it after the Deferred has fired (``after``), ``before`` it, or ``never``.
    :ivar on_started: called with the route after ``ensure_started`` made it run and everybody was told.
    :ivar on_stop: called with the route and the grace of every ``stop`` that is held.
    :ivar stop_code: exit status of a backend that is stopped.
    :ivar calls: every verb called: ``("ensure_started", route)``, ``("stop", route, grace)``,
        ``("watch", route)``, ``("unwatch", route)``, ``("facts", route)``, ``("logs", route)``,
        ``("follow_logs", route)``.
    """

    hold_starts: bool = False
    hold_stops: bool = False
    hold_facts: bool = False
    tell_running: Literal["after", "before", "never"] = "after"
    stop_code: int = 143
    on_started: Callable[[str], None] = field(default=lambda route: None)
    on_stop: Callable[[str, float], None] = field(default=lambda route, grace: None)
    calls: list[tuple[Any, ...]] = field(factory=list)
    _runtimes: list[FakeRuntime] = field(factory=list)
    _away: str | None = None
    _instances: dict[str, Instance] = field(factory=dict)
    _exits: dict[str, Exit] = field(factory=dict)
    _addresses: dict[str, tuple[Address, ...]] = field(factory=dict)
    _facts: dict[str, Facts] = field(factory=dict)
    _lines: dict[str, list[str]] = field(factory=dict)
    _refusals: dict[str, list[Exception]] = field(factory=dict)
    _starts: dict[str, _Pending] = field(factory=dict)
    _stops: dict[str, _Pending] = field(factory=dict)
    _facts_held: list[tuple[str, Deferred[Facts]]] = field(factory=list)
    _followers: dict[str, list[_Follower]] = field(factory=dict)
    _count: int = 0

    # What the test asks.

    def instance(self, route: str) -> Instance | None:
        """The present run."""
        return self._instances.get(route)

    def is_running(self, route: str) -> bool:
        """Whether it runs."""
        return route in self._instances

    def running_routes(self) -> set[str]:
        """The routes whose backends run."""
        return set(self._instances)

    def starting(self) -> set[str]:
        """The routes whose start the test holds back."""
        return set(self._starts)

    def stopping(self) -> set[str]:
        """The routes whose stop the test holds back."""
        return set(self._stops)

    def count(self, verb: str, route: str | None = None) -> int:
        """How often a verb was called."""
        return sum(1 for call in self.calls if call[0] == verb and route in (None, call[1]))

    # What the test makes happen.

    def set_addresses(self, route: str, *addresses: Address) -> None:
        """Where the next run of that route will be."""
        self._addresses[route] = addresses

    def set_facts(self, route: str, facts: Facts) -> None:
        """What can be read from it."""
        self._facts[route] = facts

    def finish_facts(self) -> None:
        """Answer all ``facts`` calls that wait."""
        held, self._facts_held = self._facts_held, []
        for route, waiting in held:
            if not waiting.called:
                waiting.callback(self._facts.get(route, Facts()))

    def become_running(self, route: str) -> Instance:
        """Somebody else starts it."""
        assert route not in self._instances, f"{route} runs already"
        instance = self._begin(route)
        self._resync()
        return instance

    def exit(self, route: str, code: int | None = 1, *, oom: bool = False) -> None:
        """Its run ends by itself, or somebody else ends it.  A held stop of it is done then, too."""
        instance = self._instances.pop(route)
        self._exits[instance.run] = Exit(code, oom)
        self._resync()
        for follower in self._followers.pop(route, []):
            follower.ended.callback(None)
        stop = self._stops.pop(route, None)
        if stop is not None:
            _fire(stop.waiters, None)

    def vanish(self, route: str) -> None:
        """Its run ends, and those who watch hear of it before a held stop is answered."""
        self._exits[self._instances.pop(route).run] = Exit(143, False)
        self._resync()

    def restart(self, route: str) -> Instance:
        """Somebody else restarts it: another run at once, the end of the old one told first."""
        self.exit(route, 143)
        return self.become_running(route)

    def change(self, route: str) -> None:
        """The thing behind the route is another one now."""
        for runtime in self._present():
            runtime._changed(route)

    def finish_start(self, route: str) -> Instance:
        """Let a held start happen."""
        pending = self._starts.pop(route)
        instance = self._instances.get(route) or self._begin(route)
        self._started(route, instance, pending.waiters)
        return instance

    def pull(self, route: str, progress: float | None = None) -> None:
        """A held start gets its image."""
        self.step(route, Phase("pulling", progress))

    def step(self, route: str, phase: Phase) -> None:
        """A held start has come that far."""
        self._starts[route].step(phase)

    def refuse_start(self, route: str, message: str = "no such image", hint: str | None = None) -> None:
        """Let a held start fail."""
        self.fail_start(route, StartRefused(message, hint))

    def fail_start(self, route: str, error: Exception) -> None:
        """Let a held start fail with this error."""
        for waiting in self._starts.pop(route).waiters:
            if not waiting.called:
                waiting.errback(error)

    def refuse_next_start(self, route: str, message: str = "no such image", hint: str | None = None) -> None:
        """The next ``ensure_started`` of a backend that does not run fails at once."""
        self._refusals.setdefault(route, []).append(StartRefused(message, hint))

    def finish_stop(self, route: str) -> None:
        """Let a held stop happen."""
        if route in self._instances:
            self.exit(route, self.stop_code)
        else:
            _fire(self._stops.pop(route).waiters, None)

    def print_line(self, route: str, line: str) -> None:
        """It prints a line."""
        self._lines.setdefault(route, []).append(line)
        for follower in list(self._followers.get(route, [])):
            follower.line(line)

    def go_away(self, why: str = "the fake engine is away") -> None:
        """The runtime stops to answer; what is under way fails."""
        self._away = why
        for pending in [*self._starts.values(), *self._stops.values()]:
            for waiting in pending.waiters:
                if not waiting.called:
                    waiting.errback(RuntimeUnavailable(why))
        self._starts.clear()
        self._stops.clear()

    def come_back(self) -> None:
        """The runtime answers again; watchers are told how things are."""
        self._away = None
        self._resync()

    # For FakeRuntime.

    def _begin(self, route: str) -> Instance:
        self._count += 1
        addresses = self._addresses.get(route, (Address("127.0.0.1", 9000 + self._count, "network"),))
        instance = Instance(f"{route}-{self._count}", addresses, float(self._count))
        self._instances[route] = instance
        return instance

    def _started(self, route: str, instance: Instance, waiters: list[Deferred[Any]]) -> None:
        if self.tell_running == "before":
            self._resync()
        for runtime in self._present():
            runtime._answered(instance)
        _fire(waiters, instance)
        if self.tell_running == "after":
            self._resync()
        self.on_started(route)

    def _present(self) -> list[FakeRuntime]:
        return [] if self._away is not None else list(self._runtimes)

    def _resync(self) -> None:
        for runtime in self._present():
            runtime._resync()


@define
class _Watch:
    """What one watcher was told.

    :ivar known: the run that it believes alive.
    :ivar told: whether it was told anything.
    """

    spec: BackendSpec
    watcher: Watcher
    known: str | None = None
    told: bool = False


@define(eq=False)
class FakeRuntime:
    """A runtime over a :class:`FakeController`; see :class:`llmproxy.runtimes.interface.IRuntime`.

    :ivar is_started: between ``start`` and ``close``.
    """

    world: FakeController
    is_started: bool = False
    _watches: dict[str, _Watch] = field(factory=dict)

    def start(self) -> None:
        assert not self.is_started
        self.is_started = True
        self.world._runtimes.append(self)

    def close(self) -> Deferred[None]:
        if self.is_started:
            self.world._runtimes.remove(self)
        self.is_started = False
        self._watches.clear()
        return succeed(None)

    def ping(self) -> Deferred[None]:
        return self._unavailable() or succeed(None)

    def watch(self, spec: BackendSpec, watcher: Watcher) -> Deferred[None]:
        self.world.calls.append(("watch", spec.route))
        self._watches[spec.route] = _Watch(spec, watcher)
        if self.world._away is None:
            self._sync(self._watches[spec.route])
        return succeed(None)

    def unwatch(self, route: str) -> None:
        self.world.calls.append(("unwatch", route))
        self._watches.pop(route, None)

    def ensure_started(self, spec: BackendSpec, step: Step = unheard) -> Deferred[Instance]:
        self.world.calls.append(("ensure_started", spec.route))
        away = self._unavailable()
        if away is not None:
            return away
        present = self.world._instances.get(spec.route)
        if present is not None:
            self._answered(present)
            return succeed(present)
        refusals = self.world._refusals.get(spec.route)
        if refusals:
            return fail(refusals.pop(0))
        waiting: Deferred[Instance] = Deferred()
        if self.world.hold_starts:
            self.world._starts.setdefault(spec.route, _Pending(spec, step)).waiters.append(waiting)
        else:
            self.world._started(spec.route, self.world._begin(spec.route), [waiting])
        return waiting

    def stop(self, spec: BackendSpec, grace: float) -> Deferred[None]:
        self.world.calls.append(("stop", spec.route, grace))
        away = self._unavailable()
        if away is not None:
            return away
        if spec.route not in self.world._instances:
            return succeed(None)
        if not self.world.hold_stops:
            self.world.exit(spec.route, self.world.stop_code)
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self.world._stops.setdefault(spec.route, _Pending(spec)).waiters.append(waiting)
        self.world.on_stop(spec.route, grace)
        return waiting

    def facts(self, spec: BackendSpec) -> Deferred[Facts]:
        self.world.calls.append(("facts", spec.route))
        away = self._unavailable()
        if away is not None:
            return away
        if not self.world.hold_facts:
            return succeed(self.world._facts.get(spec.route, Facts()))
        waiting: Deferred[Facts] = Deferred()
        self.world._facts_held.append((spec.route, waiting))
        return waiting

    def logs(self, spec: BackendSpec, tail: int) -> Deferred[str]:
        self.world.calls.append(("logs", spec.route))
        return self._unavailable() or succeed("\n".join(self._tail(spec.route, tail)))

    def follow_logs(self, spec: BackendSpec, tail: int, line: Callable[[str], None]) -> Deferred[None]:
        self.world.calls.append(("follow_logs", spec.route))
        away = self._unavailable()
        if away is not None:
            return away
        for old in self._tail(spec.route, tail):
            line(old)
        if spec.route not in self.world._instances:
            return succeed(None)
        followers = self.world._followers.setdefault(spec.route, [])
        ended: Deferred[None] = Deferred(lambda _: followers.remove(follower))
        follower = _Follower(line, ended)
        followers.append(follower)
        return ended

    def _tail(self, route: str, tail: int) -> list[str]:
        return self.world._lines.get(route, [])[-tail:] if tail > 0 else []

    def _unavailable(self) -> Deferred[Any] | None:
        assert self.is_started, "start() was not called"
        return None if self.world._away is None else fail(RuntimeUnavailable(self.world._away))

    def _answered(self, instance: Instance) -> None:
        """``ensure_started`` gives this run away: its end is to be told, whether ``running`` was or not."""
        for route, watch in self._watches.items():
            if self.world._instances.get(route) == instance and watch.known is None:
                watch.known, watch.told = instance.run, True

    def _changed(self, route: str) -> None:
        if route in self._watches:
            self._watches[route].watcher.changed()

    def _resync(self) -> None:
        for watch in list(self._watches.values()):
            self._sync(watch)

    def _sync(self, watch: _Watch) -> None:
        present = self.world._instances.get(watch.spec.route)
        first, watch.told = not watch.told, True
        if watch.known is not None and (present is None or present.run != watch.known):
            ended, watch.known = watch.known, None
            watch.watcher.gone(ended, self.world._exits.get(ended, Exit()))
        elif first and present is None:
            watch.watcher.gone(None, Exit())
        if present is not None and self.world._instances.get(watch.spec.route) is present:
            watch.known = present.run
            watch.watcher.running(present)


def _fire(waiters: list[Deferred[Any]], result: Any) -> None:
    """Fire those that were not cancelled meanwhile."""
    for waiting in waiters:
        if not waiting.called:
            waiting.callback(result)
