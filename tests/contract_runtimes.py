"""The contract of :class:`llmproxy.runtimes.interface.IRuntime`, held by every runtime.

A subclass of :class:`RuntimeContract` makes a :class:`Rig` for each test: the runtime and the means to do
to a backend what somebody else would do.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, Protocol

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred

from llmproxy.config.model import BackendSpec
from llmproxy.engines.phases import Phase
from llmproxy.runtimes.interface import Exit, IRuntime, StartRefused
from tests.fakes import RecordingWatcher

__all__ = ["Reactor", "Rig", "RuntimeContract", "eventually", "gone", "on_reactor", "pause", "runs"]

P = ParamSpec("P")
Reactor = Any
"""The real one; it is of many interfaces at once, for which there is no type."""

PATIENCE = 30.0
"""Seconds that a real engine may take for anything."""


def on_reactor(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, Deferred[None]]:
    """Run the test on the real reactor."""
    wrapped: Callable[P, Deferred[None]] = ensureDeferred(test)
    return wrapped


def pause(reactor: Reactor, seconds: float) -> Deferred[None]:
    """Fires after that time."""
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)
    return waiting


async def eventually(reactor: Reactor, true: Callable[[], Any], patience: float = PATIENCE) -> None:
    """Wait until it holds."""
    for _ in range(int(patience / 0.02)):
        if true():
            return
        await pause(reactor, 0.02)
    raise AssertionError("it did not come true in time")


class Rig(Protocol):
    """A runtime and its world.

    :ivar can_stop: whether backends can be absent at all, which those of the ``url`` runtime never are.
    """

    reactor: Reactor
    can_stop: bool

    @property
    def runtime(self) -> IRuntime:
        """The one that is tested; started."""

    def make_runtime(self) -> IRuntime:
        """Another runtime over the same world, as after a restart of the proxy; not started yet."""

    def spec(self, route: str) -> BackendSpec:
        """A backend that runs until it is stopped, ends at TERM, and prints the line ``hello``."""

    def stubborn(self, route: str) -> BackendSpec:
        """One that ignores TERM."""

    def brief(self, route: str) -> BackendSpec:
        """One that ends with status 3 as soon as it is started."""

    def broken(self, route: str) -> BackendSpec:
        """One that cannot be started as configured."""

    async def kill(self, spec: BackendSpec) -> None:
        """Somebody else kills it."""

    async def close(self) -> None:
        """Clear away."""


def gone(watcher: RecordingWatcher) -> list[tuple[str | None, Exit]]:
    """What the watcher was told of ends."""
    return [(event[1], event[2]) for event in watcher.events if event[0] == "gone"]


def runs(watcher: RecordingWatcher) -> list[str]:
    """The runs that the watcher was told of, each once."""
    return list(dict.fromkeys(event[1].run for event in watcher.events if event[0] == "running"))


class RuntimeContract:
    """The tests; ``rig`` is a fixture of the subclass's module."""

    @on_reactor
    async def test_ping(self, rig: Rig) -> None:
        """A runtime that answers says so."""
        await rig.runtime.ping()

    @on_reactor
    async def test_first_absent(self, rig: Rig) -> None:
        """Watching a backend that does not run tells that there is nothing to adopt, before it fires."""
        watcher = RecordingWatcher()
        await rig.runtime.watch(rig.spec("a"), watcher)
        if rig.can_stop:
            # Its creation may be told after that, if the rig has only just created it.
            assert watcher.events[0] == ("gone", None, Exit())
            assert set(watcher.kinds()[1:]) <= {"changed"}

    @on_reactor
    async def test_start_and_stop(self, rig: Rig) -> None:
        """A started backend has addresses; its stop fires when it has ended, and its end is told once."""
        watcher, spec = RecordingWatcher(), rig.spec("a")
        await rig.runtime.watch(spec, watcher)
        instance = await rig.runtime.ensure_started(spec)
        assert instance.addresses
        again = await rig.runtime.ensure_started(spec)
        assert again.run == instance.run
        await rig.runtime.stop(spec, 10)
        if not rig.can_stop:
            return
        await eventually(rig.reactor, lambda: instance.run in dict(gone(watcher)))
        await rig.runtime.stop(spec, 10)
        await pause(rig.reactor, 0.1)
        assert [run for run, _ in gone(watcher)] == [None, instance.run]
        assert runs(watcher) in ([], [instance.run])

    @on_reactor
    async def test_steps(self, rig: Rig) -> None:
        """What a start does before it runs is told as phases that come before it runs; nothing has to be."""
        steps: list[Phase] = []
        spec = rig.spec("a")
        await rig.runtime.ensure_started(spec, steps.append)
        await rig.runtime.ensure_started(spec, steps.append)
        assert {step.name for step in steps} <= {"placing", "creating", "pulling"}
        await rig.runtime.stop(spec, 10)

    @on_reactor
    async def test_next_run_differs(self, rig: Rig) -> None:
        """Another start is another run."""
        if not rig.can_stop:
            return
        spec = rig.spec("a")
        first = await rig.runtime.ensure_started(spec)
        await rig.runtime.stop(spec, 10)
        second = await rig.runtime.ensure_started(spec)
        assert first.run != second.run

    @on_reactor
    async def test_stop_of_absent(self, rig: Rig) -> None:
        """Stopping what does not run is done at once."""
        await rig.runtime.stop(rig.spec("a"), 10)

    @on_reactor
    async def test_adopt(self, rig: Rig) -> None:
        """A second runtime over the same world, as after a kill of the proxy, finds the same run, and hears
        of its end."""
        spec, first, second = rig.spec("a"), RecordingWatcher(), RecordingWatcher()
        await rig.runtime.watch(spec, first)
        instance = await rig.runtime.ensure_started(spec)
        other = rig.make_runtime()
        other.start()
        try:
            await other.watch(spec, second)
            assert runs(second) == [instance.run]
            assert "gone" not in second.kinds()
            assert (await other.ensure_started(spec)).run == instance.run
            await other.stop(spec, 10)
            if rig.can_stop:
                await eventually(rig.reactor, lambda: instance.run in dict(gone(second)))
        finally:
            await other.close()

    @on_reactor
    async def test_killed_by_others(self, rig: Rig) -> None:
        """A run that somebody else kills is told as gone, with 128 + 9, and can be started again."""
        if not rig.can_stop:
            return
        watcher, spec = RecordingWatcher(), rig.spec("a")
        await rig.runtime.watch(spec, watcher)
        instance = await rig.runtime.ensure_started(spec)
        await rig.kill(spec)
        await eventually(rig.reactor, lambda: instance.run in dict(gone(watcher)))
        assert dict(gone(watcher))[instance.run] == Exit(137)
        assert (await rig.runtime.ensure_started(spec)).run != instance.run
        await rig.runtime.stop(spec, 10)

    @on_reactor
    async def test_brief(self, rig: Rig) -> None:
        """A backend that ends at once: the start fires with its run, and its end is told with its status."""
        if not rig.can_stop:
            return
        watcher, spec = RecordingWatcher(), rig.brief("a")
        await rig.runtime.watch(spec, watcher)
        instance = await rig.runtime.ensure_started(spec)
        assert instance.addresses
        await eventually(rig.reactor, lambda: instance.run in dict(gone(watcher)))
        assert dict(gone(watcher))[instance.run] == Exit(3)

    @on_reactor
    async def test_refused(self, rig: Rig) -> None:
        """What cannot be started is refused with its cause."""
        if not rig.can_stop:
            return
        with pytest.raises(StartRefused) as caught:
            await rig.runtime.ensure_started(rig.broken("a"))
        assert str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.hint

    @on_reactor
    async def test_grace(self, rig: Rig) -> None:
        """One that ignores TERM is killed when its grace is over, and not before."""
        if not rig.can_stop:
            return
        spec = rig.stubborn("a")
        watcher = RecordingWatcher()
        await rig.runtime.watch(spec, watcher)
        instance = await rig.runtime.ensure_started(spec)
        await self.until_prints(rig, spec, "hello")
        begun = rig.reactor.seconds()
        await rig.runtime.stop(spec, 1.0)
        assert rig.reactor.seconds() - begun >= 0.9
        await eventually(rig.reactor, lambda: instance.run in dict(gone(watcher)))
        assert dict(gone(watcher))[instance.run].code in (137, None)

    @on_reactor
    async def test_kill_at_once(self, rig: Rig) -> None:
        """A grace of 0 kills at once, also while another stop is being patient."""
        if not rig.can_stop:
            return
        spec = rig.stubborn("a")
        await rig.runtime.ensure_started(spec)
        await self.until_prints(rig, spec, "hello")
        begun = rig.reactor.seconds()
        patient = rig.runtime.stop(spec, 60)
        await rig.runtime.stop(spec, 0)
        await patient
        assert rig.reactor.seconds() - begun < 20

    @on_reactor
    async def test_cancelled_start(self, rig: Rig) -> None:
        """Who cancels a start gives up waiting; the start goes on."""
        if not rig.can_stop:
            return
        watcher, spec = RecordingWatcher(), rig.spec("a")
        await rig.runtime.watch(spec, watcher)
        waiting = rig.runtime.ensure_started(spec)
        waiting.addErrback(lambda _: None)
        waiting.cancel()
        instance = await rig.runtime.ensure_started(spec)
        await rig.runtime.stop(spec, 10)
        await eventually(rig.reactor, lambda: instance.run in dict(gone(watcher)))

    @on_reactor
    async def test_unwatched(self, rig: Rig) -> None:
        """After unwatch nothing is told."""
        watcher, spec = RecordingWatcher(), rig.spec("a")
        await rig.runtime.watch(spec, watcher)
        heard = len(watcher.events)
        rig.runtime.unwatch("a")
        await rig.runtime.ensure_started(spec)
        await rig.runtime.stop(spec, 10)
        assert len(watcher.events) == heard

    @on_reactor
    async def test_logs(self, rig: Rig) -> None:
        """The last lines of the output can be read, and followed until the run ends."""
        if not rig.can_stop:
            return
        spec = rig.spec("a")
        await rig.runtime.ensure_started(spec)
        await self.until_prints(rig, spec, "hello")
        assert await rig.runtime.logs(spec, 1) == "hello"
        lines: list[str] = []
        following = rig.runtime.follow_logs(spec, 10, lines.append)
        await eventually(rig.reactor, lambda: "hello" in lines)
        assert not following.called
        given_up = rig.runtime.follow_logs(spec, 10, lambda _: None)
        given_up.addErrback(lambda _: None)
        given_up.cancel()
        await rig.runtime.stop(spec, 10)
        await following

    @on_reactor
    async def test_facts(self, rig: Rig) -> None:
        """What can be read of it has one fingerprint while it runs, for the next proxy, and afterwards."""
        spec = rig.spec("a")
        await rig.runtime.ensure_started(spec)
        first = await rig.runtime.facts(spec)
        other = rig.make_runtime()
        other.start()
        try:
            again = await other.facts(spec)
        finally:
            await other.close()
        assert again.fingerprint == first.fingerprint
        await rig.runtime.stop(spec, 10)
        assert (await rig.runtime.facts(spec)).fingerprint == first.fingerprint

    @on_reactor
    async def test_no_logs(self, rig: Rig) -> None:
        """The log of what never ran is empty."""
        assert await rig.runtime.logs(rig.spec("never"), 5) == ""

    async def until_prints(self, rig: Rig, spec: BackendSpec, line: str) -> None:
        """Wait until that line is in the log."""
        for _ in range(300):
            if line in (await rig.runtime.logs(spec, 10)).splitlines():
                return
            await pause(rig.reactor, 0.05)
        raise AssertionError("it prints nothing")
