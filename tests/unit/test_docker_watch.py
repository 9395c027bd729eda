"""What a watched container's events come to."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.docker_state import Event, Snapshot
from llmproxy.runtimes.docker_watch import LOOK_AGAIN, Watch
from llmproxy.runtimes.interface import Instance, RuntimeUnavailable
from tests.fakes import RecordingWatcher


def event(action: str, ident: str) -> Event:
    """An event of the container that is watched."""
    return Event(action, ident, "m", 1, {})


def watched(watcher: RecordingWatcher, own: set[str]) -> Watch:
    """A watch of a container that is not there at first; further looks are not answered."""
    looks: list[Deferred[tuple[Snapshot, Instance] | None]] = [succeed(None)]

    def look(spec: BackendSpec) -> Deferred[tuple[Snapshot, Instance] | None]:
        return looks.pop() if looks else Deferred()

    watch = Watch(Clock(), BackendSpec("m", container="m"), watcher, look, lambda: True, lambda: False, own)
    watch.reconcile()
    return watch


def test_our_own_creating_is_no_change() -> None:
    """A container that llmproxy itself has created is no news; one that somebody else has created is."""
    watcher = RecordingWatcher()
    watch = watched(watcher, {"ours"})
    watch.event(event("create", "ours"))
    assert "changed" not in watcher.kinds()
    watch.event(event("create", "theirs"))
    assert "changed" in watcher.kinds()


def test_removal_of_what_we_created_is_a_change() -> None:
    """Somebody who removes a container that llmproxy has created changes it: a cool-down ends."""
    watcher = RecordingWatcher()
    watch = watched(watcher, {"ours"})
    watch.event(event("create", "ours"))
    watch.event(event("destroy", "ours"))
    assert watcher.kinds().count("changed") == 1


def test_a_look_that_fails_is_repeated() -> None:
    """A fault of ours is logged, an engine that is away is not; while the events stand it is asked again."""
    clock, asked = Clock(), 0
    errors: list[Exception] = [RuntimeUnavailable("away"), RuntimeError("a fault")]

    def look(spec: BackendSpec) -> Deferred[tuple[Snapshot, Instance] | None]:
        nonlocal asked
        asked += 1
        return fail(errors.pop(0)) if errors else succeed(None)

    watcher = RecordingWatcher()
    watch = Watch(clock, BackendSpec("m", container="m"), watcher, look, lambda: True, lambda: False, set())
    with capturedLogs() as logs:
        watch.reconcile()
        assert (asked, watcher.events, logs) == (1, [], [])
        clock.advance(LOOK_AGAIN)
        assert asked == 2
        assert [str(each["log_failure"].value) for each in logs] == ["a fault"]
        clock.advance(LOOK_AGAIN)
    assert (asked, watcher.kinds(), clock.getDelayedCalls()) == (3, ["gone"], [])


def test_nothing_is_told_when_it_is_over() -> None:
    """A watch that is closed looks no more, whatever was under way or was to be tried again."""
    clock = Clock()
    looks: list[Deferred[tuple[Snapshot, Instance] | None]] = []

    def look(spec: BackendSpec) -> Deferred[tuple[Snapshot, Instance] | None]:
        looks.append(Deferred())
        return looks[-1]

    watcher = RecordingWatcher()
    spec = BackendSpec("m", container="m")
    watch = Watch(clock, spec, watcher, look, lambda: True, lambda: False, set())
    watch.reconcile()
    settled = watch.settled()
    watch.close()
    assert settled.called
    looks[0].errback(RuntimeUnavailable("away"))
    watch.reconcile()
    other = Watch(clock, spec, watcher, look, lambda: True, lambda: False, set())
    other.reconcile()
    looks[1].errback(RuntimeUnavailable("away"))
    assert len(clock.getDelayedCalls()) == 1
    other.close()
    assert (len(looks), watcher.events, clock.getDelayedCalls()) == (2, [], [])
    assert other.settled().called


def test_who_does_not_wait_any_more_is_not_told() -> None:
    """The others are."""
    looks: list[Deferred[tuple[Snapshot, Instance] | None]] = [Deferred()]
    first = looks[0]
    watch = Watch(
        Clock(),
        BackendSpec("m", container="m"),
        RecordingWatcher(),
        lambda spec: looks.pop(),
        lambda: True,
        lambda: False,
        set(),
    )
    watch.reconcile()
    one, other = watch.settled(), watch.settled()
    one.addErrback(lambda _: None)
    one.cancel()
    first.callback(None)
    assert other.called


def test_another_name_for_it() -> None:
    """One that is named away is gone, one that gets the name is another one; others' names are no matter."""
    watcher = RecordingWatcher()
    watch = watched(watcher, set())
    watch.event(Event("create", "a", "m", 1, {}))
    watch.event(Event("rename", "a", "elsewhere", 2, {}))
    before = watcher.kinds().count("changed")
    watch.event(Event("rename", "b", "other", 3, {}))
    watch.event(Event("exec_start", "a", "m", 4, {}))
    assert watcher.kinds().count("changed") == before
    watch.event(Event("rename", "c", "m", 5, {}))
    assert watcher.kinds().count("changed") == before + 1
