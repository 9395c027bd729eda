"""Child processes of the proxy: what is seen of them, and what becomes of what cannot be seen."""

from __future__ import annotations

import builtins
import errno
import gc
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes import process, process_child, process_group
from llmproxy.runtimes.interface import StartRefused
from llmproxy.runtimes.process import LOOK_AGAIN, STRAY_GRACE, ProcessRuntime
from llmproxy.runtimes.process_child import Child, is_listened_on, is_taken, refused_for
from llmproxy.runtimes.process_group import POLL_EVERY, Group, read_process, session_members
from llmproxy.runtimes.process_logs import LogFile
from llmproxy.runtimes.process_records import Record, Records, boot_id, command_hash
from llmproxy.runtimes.spare import Spare
from tests.fakes import RecordingWatcher

SPEC = BackendSpec("a", runtime="process", engine="generic", command=("true",))


def made(clock: Clock, folder: Path) -> ProcessRuntime:
    """A runtime that has begun to work."""
    runtime = ProcessRuntime(clock, str(folder))  # type: ignore[arg-type]
    runtime.start()
    return runtime


def others_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """``/proc`` is mounted with ``hidepid=1``: it lists everybody, and lets nobody look at others'."""

    def hiding(path: str, *rest: Any) -> Any:
        if path != f"/proc/{os.getpid()}/stat":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return builtins.open(path, *rest)

    monkeypatch.setattr(process_group, "open", hiding, raising=False)
    monkeypatch.setattr(os, "listdir", lambda _: ["1", str(os.getpid()), "self"])


def test_processes_of_others_that_may_not_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are none of ours; ours are seen, and told to end."""
    info = read_process(os.getpid())
    assert info is not None
    others_are_hidden(monkeypatch)
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    assert read_process(1) is None
    assert [each.pid for each in session_members(info.pid, info.start_time)] == [info.pid]
    clock = Clock()
    group = Group(clock, info.pid, info.start_time, lambda _: None)  # type: ignore[arg-type]
    group.stop(2.0).addErrback(lambda _: None)
    clock.pump([1.0, 1.0])
    assert [number for pid, number in sent if pid == info.pid][-1] == signal.SIGKILL
    group.close()


def test_a_machine_that_does_not_name_its_boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The runtime begins all the same: it is looked at again when it is needed."""

    def unread() -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(process, "boot_id", unread)
    runtime = made(Clock(), tmp_path)
    assert (tmp_path / "logs").is_dir()
    runtime.close()


def own(spec: BackendSpec = SPEC) -> Record:
    """A record that has this very process as what was started from that."""
    info = read_process(os.getpid())
    assert info is not None
    return Record(info.pid, info.start_time, boot_id(), 20_000, command_hash(spec), 1.0)


def unopened(*_: Any, **__: Any) -> Any:
    """Nothing can be opened."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_what_is_adopted_without_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its end is noticed although its log cannot be opened, and the log is looked at no more then."""
    clock, watcher = Clock(), RecordingWatcher()
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    runtime = made(clock, tmp_path)
    record = own()
    runtime._records.write("a", record)
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "getsize", unopened)
        runtime.watch(SPEC, watcher)
    assert watcher.kinds() == ["running"]
    # Its number is another's now.
    monkeypatch.setattr(process_group, "read_process", lambda pid: None)
    monkeypatch.setattr(process_group, "session_members", lambda pid, start_time: [])
    clock.advance(POLL_EVERY)
    assert watcher.kinds() == ["running", "gone"]
    assert clock.getDelayedCalls() == []
    runtime.close()


def test_what_has_ended_while_it_was_adopted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is absent, and nobody looks at its log any more."""
    clock, watcher = Clock(), RecordingWatcher()
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    runtime = made(clock, tmp_path)
    runtime._records.write("a", own())
    # Its end comes between the look at its record and the one at itself.
    monkeypatch.setattr(process_group, "read_process", lambda pid: None)
    monkeypatch.setattr(process_group, "session_members", lambda pid, start_time: [])
    runtime.watch(SPEC, watcher)
    assert watcher.kinds() == ["gone"]
    assert clock.getDelayedCalls() == []
    runtime.close()


def test_a_log_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever asks for its lines, or follows it, is told by the Deferred."""
    runtime = made(Clock(), tmp_path)
    told: list[Failure] = []
    with monkeypatch.context() as patch:
        patch.setattr(LogFile, "_tail", unopened)
        asked: list[Deferred[Any]] = [runtime.logs(SPEC, 3), runtime.follow_logs(SPEC, 3, print)]
        for each in asked:
            each.addErrback(told.append)
    assert [failure.type for failure in told] == [OSError] * 2
    runtime.close()


def test_who_gives_up_waiting_for_the_first_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What runs is found all the same, as soon as that can be seen."""
    clock, watcher = Clock(), RecordingWatcher()
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    runtime = made(clock, tmp_path)
    runtime._records.write("a", own())
    with monkeypatch.context() as patch:
        patch.setattr(Spare, "use", unopened)
        watched = runtime.watch(SPEC, watcher)
        watched.addErrback(lambda failure: failure.trap(CancelledError)).cancel()
        assert watched.called
    clock.advance(LOOK_AGAIN)
    assert watcher.kinds() == ["running"]
    runtime.close()
    assert clock.getDelayedCalls() == []


def test_no_look_after_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who is watched no more, or whose runtime is closed, is not waited for."""
    clock = Clock()
    runtime = made(clock, tmp_path)
    monkeypatch.setattr(Spare, "use", unopened)
    for end in (lambda: runtime.unwatch("a"), runtime.close):
        over: list[None] = []
        runtime.watch(SPEC, RecordingWatcher()).addCallback(over.append)
        assert over == []
        end()
        assert over == [None]
        assert clock.getDelayedCalls() == []


def strays_end(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is put down from now on; it ends at once."""
    killed: list[int] = []

    def stop(group: Group, grace: float) -> Deferred[None]:
        killed.append(group.pid)
        group.leader_ended(None)
        return group.over()

    monkeypatch.setattr(Group, "stop", stop)
    monkeypatch.setattr(Group, "observe", lambda _: None)
    monkeypatch.setattr(process_group, "session_members", lambda pid, start_time: [])
    return killed


def test_strays_that_cannot_be_seen_are_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither the list of what was left nor how one of them is needs to be readable at once."""
    clock = Clock()
    runtime = made(clock, tmp_path)
    for route in ("a", "b"):
        runtime._records.write(route, own())
    killed = strays_end(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Records, "all", unopened)
        ended = runtime.end_strays([])
        clock.advance(LOOK_AGAIN)
    assert not ended.called
    with monkeypatch.context() as patch:
        patch.setattr(Record, "is_alive", unopened)
        clock.advance(LOOK_AGAIN)
    assert (ended.called, killed) == (False, [])
    clock.advance(LOOK_AGAIN)
    assert (ended.called, killed) == (True, [os.getpid()] * 2)
    assert list(runtime._records.all()) == []
    assert clock.getDelayedCalls() == []
    runtime.close()


def test_a_stray_that_is_adopted_meanwhile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is none any more."""
    clock = Clock()
    runtime = made(clock, tmp_path)
    runtime._records.write("a", own())
    killed = strays_end(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Records, "all", unopened)
        ended = runtime.end_strays([])
    runtime.watch(SPEC, RecordingWatcher())
    clock.advance(LOOK_AGAIN)
    assert (ended.called, killed) == (True, [])
    runtime.close()
    assert clock.getDelayedCalls() == []


class TestStrays(SynchronousTestCase):
    """What would be logged as an error that nobody has handled fails these tests."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.patch(os, "pidfd_open", unopened)
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.runtime = made(self.clock, Path(folder.name))

    def test_the_proxy_ends_while_strays_do(self) -> None:
        """They are not waited for any more, and nobody needs to hear of that."""
        self.patch(os, "kill", lambda pid, number: None)
        self.runtime._records.write("a", own())
        ended = self.runtime.end_strays([])
        self.clock.advance(STRAY_GRACE / 2)
        self.assertNoResult(ended)
        self.runtime.close()
        self.successResultOf(ended)
        gc.collect()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_proxy_ends_before_strays_can_be_seen(self) -> None:
        """It is not looked for them again."""
        self.patch(Records, "all", unopened)
        ended = self.runtime.end_strays([])
        self.runtime.close()
        self.successResultOf(ended)
        gc.collect()
        self.assertEqual(self.clock.getDelayedCalls(), [])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EMFILE, "file descriptor"),
        (errno.ENFILE, "file descriptor"),
        (errno.EAGAIN, "memory or process numbers"),
        (errno.ENOMEM, "memory or process numbers"),
        *(
            (number, "state_dir")
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
        ),
        (errno.ENOENT, "state_dir"),
        (errno.EIO, "state_dir"),
    ],
)
def test_what_a_start_lacks(number: int, words: str) -> None:
    """The hint is about what is missing: most often that is what is kept of it."""
    refusal = refused_for(SPEC, OSError(number, os.strerror(number)))
    assert os.strerror(number) in str(refusal)
    assert words in str(refusal.hint)


def test_a_port_that_a_connection_has() -> None:
    """It cannot be bound, but nobody listens there: what is said of it says so."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address) as connection:
            port = connection.getsockname()[1]
            assert is_taken(port)
            assert not is_listened_on(port)
            assert is_listened_on(address[1])


def test_a_port_that_is_listened_on_by_another_family() -> None:
    """All addresses count."""
    try:
        server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        assert is_listened_on(server.getsockname()[1])


def test_a_machine_that_does_not_list_its_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what is taken is most likely listened on."""
    for lack in (unopened, without("/proc/net/tcp")):
        monkeypatch.setattr(process_child, "open", lack, raising=False)
        assert is_listened_on(1)


def test_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there by that."""
    monkeypatch.setattr(process_child, "open", without("/proc/net/tcp6"), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert is_listened_on(port)
    assert not is_listened_on(port)


def without(lacking: str) -> Callable[..., Any]:
    """What opens all files but that one, which does not exist."""

    def opened(path: str, *rest: Any, **named: Any) -> Any:
        if path == lacking:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return builtins.open(path, *rest, **named)

    return opened


@pytest.mark.parametrize(("listens", "words"), [(True, "something else listens"), (False, "a connection")])
def test_why_its_port_is_refused(
    listens: bool, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the words that are true."""
    monkeypatch.setattr(process, "is_taken", lambda port: True)
    monkeypatch.setattr(process, "is_listened_on", lambda port: listens)
    runtime = made(Clock(), tmp_path)
    told: list[Failure] = []
    runtime.ensure_started(evolve(SPEC, port=40_000)).addErrback(told.append)
    assert told[0].check(StartRefused)
    assert words in str(told[0].value)
    assert "40000" in str(told[0].value)
    runtime.close()


class _Transport:
    """Of a child that may have been waited for already: its number may be another's by then."""

    def __init__(self, ended: bool) -> None:
        self.pid = os.getpid()
        self.ended = ended
        self.sent: list[str] = []

    def signalProcess(self, name: str) -> None:
        self.sent.append(name)
        if self.ended:
            raise ProcessExitedAlready


@pytest.mark.parametrize("ended", [False, True])
def test_a_child_that_cannot_be_recorded(
    ended: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is put down, and only it: what has its number by now is left alone."""
    transport = _Transport(ended)

    def spawn(self: Any, child: Child, *_: Any) -> None:
        child.makeConnection(transport)

    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
    monkeypatch.setattr(ProcessRuntime, "_spawn_child", spawn)
    monkeypatch.setattr(Records, "write", unopened)
    held: list[int] = []
    monkeypatch.setattr(process, "free_port", lambda taken: (20_000, lambda: held.append(1)))
    runtime = made(Clock(), tmp_path)
    told: list[Failure] = []
    runtime.ensure_started(SPEC).addErrback(told.append)
    assert told[0].check(StartRefused)
    assert (transport.sent, killed) == (["KILL"], [])
    assert held == [1]
    runtime.close()


def test_the_port_of_a_run_is_given_back_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And not before."""
    held: list[int] = []
    monkeypatch.setattr(process, "free_port", lambda taken: (20_000, lambda: held.append(1)))
    child, clock = Child(), Clock()
    monkeypatch.setattr(ProcessRuntime, "_begin", lambda self, spec, port: (child, own()))
    monkeypatch.setattr(process_group, "session_members", lambda pid, start_time: [])
    runtime = made(clock, tmp_path)
    runtime.ensure_started(SPEC)
    clock.advance(0)
    assert held == []
    child.processEnded(Failure(ProcessDone(0)))
    assert held == [1]
    assert clock.getDelayedCalls() == []
    runtime.close()
