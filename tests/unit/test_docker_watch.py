"""What a watched container's events come to."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.docker_state import Event, Snapshot
from llmproxy.runtimes.docker_watch import Watch
from llmproxy.runtimes.interface import Instance
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
