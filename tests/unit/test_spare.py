"""Where no file descriptor is left, what runs and what is written down can be looked at all the same."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes import process_child
from llmproxy.runtimes.interface import StartRefused
from llmproxy.runtimes.process import LOOK_AGAIN, ProcessRuntime
from llmproxy.runtimes.process_child import free_port, is_taken
from llmproxy.runtimes.process_group import POLL_EVERY, Group, read_process, session_members
from llmproxy.runtimes.process_records import Record, Records, boot_id, command_hash
from llmproxy.runtimes.spare import SPARE, Spare
from tests.descriptors import none_left
from tests.fakes import RecordingWatcher

SPEC = BackendSpec("a", runtime="process", engine="generic", command=("true",))


@pytest.fixture
def kept() -> Iterator[None]:
    """The spare one is there, and goes."""
    SPARE.keep()
    yield
    SPARE.let_go()


def failing(cause: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing can be read."""

    def use(self: Spare, job: object) -> None:
        raise cause

    monkeypatch.setattr(Spare, "use", use)


def own(boot: str = "") -> Record:
    """A record of this very process, which was not started from ``SPEC``."""
    info = read_process(os.getpid())
    assert info is not None
    return Record(info.pid, info.start_time, boot or boot_id(), 20_000, command_hash(SPEC), 1.0)


def test_a_job_is_done_with_the_spare_one(kept: None) -> None:
    """As often as it is needed; without it the job fails as it would."""
    with none_left():
        for _ in range(3):
            assert SPARE.use(lambda: Path(os.devnull).read_bytes()) == b""
        with pytest.raises(OSError, match="Too many open files") as failure:
            Spare().use(lambda: Path(os.devnull).read_bytes())
    assert failure.value.errno == errno.EMFILE


def test_a_spare_one_that_was_lost_is_had_again() -> None:
    """Something else may take its descriptor in the moment in which it is used."""
    spare, taken = Spare(), []
    spare.keep()

    def job() -> bytes:
        data = Path(os.devnull).read_bytes()
        taken.append(os.open(os.devnull, os.O_RDONLY))
        return data

    with none_left():
        assert spare.use(job) == b""
        with pytest.raises(OSError, match="Too many open files"):
            spare.use(job)
        os.close(taken.pop())
        assert spare.use(lambda: b"") == b""
        assert spare.use(job) == b""
        os.close(taken.pop())
    spare.let_go()


def test_what_fails_otherwise_fails(kept: None) -> None:
    """It is not tried again."""
    tries = []

    def job() -> None:
        tries.append(1)
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        SPARE.use(job)
    assert tries == [1]


def test_processes_and_records_are_seen(kept: None, tmp_path: Path) -> None:
    """A process that lives is not taken for one that is gone, nor is its record for one that lacks."""
    records = Records(str(tmp_path))
    record = own()
    with none_left():
        info = read_process(os.getpid())
        assert info is not None
        assert os.getpid() in [each.pid for each in session_members(info.pid, info.start_time)]
        records.write("a", record)
        assert records.read("a") == record
        assert record.is_alive()
        assert list(records.all()) == [("a", record)]
        records.forget("a", record.run)
        assert records.read("a") is None


def test_what_cannot_be_looked_at_is_not_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader counts as alive, and its group is looked at again, until it can be seen how it is."""
    clock: Any = Clock()
    info = read_process(os.getpid())
    assert info is not None
    over: list[Group] = []
    group = Group(clock, info.pid, info.start_time + 1, lambda group: over.append(group))
    with monkeypatch.context() as patch:
        failing(OSError(errno.EIO, "no"), patch)
        group._poll()
        group.leader_ended(None)
        group.stop(0)
        clock.advance(POLL_EVERY)
        assert over == []
    clock.pump([POLL_EVERY] * 2)
    assert over == [group]


def test_what_is_there_is_looked_at_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither running nor absent is said before it can be seen, and nothing is started beside it."""
    clock: Any = Clock()
    runtime = ProcessRuntime(clock, str(tmp_path))
    runtime.start()
    watcher = RecordingWatcher()
    with monkeypatch.context() as patch:
        failing(OSError(errno.EIO, "cannot be read"), patch)
        watched = runtime.watch(SPEC, watcher)
        clock.advance(LOOK_AGAIN)
        assert (watcher.events, watched.called) == ([], False)
        refused: list[Failure] = []
        runtime.ensure_started(SPEC).addErrback(refused.append)
        assert refused[0].check(StartRefused)
        assert "cannot be read" in str(refused[0].value)
    clock.advance(LOOK_AGAIN)
    assert watched.called
    assert len(watcher.events) == 1
    runtime.close()


def test_nobody_asks_any_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who is not watched any more is not looked at again."""
    clock: Any = Clock()
    runtime = ProcessRuntime(clock, str(tmp_path))
    runtime.start()
    with monkeypatch.context() as patch:
        failing(OSError(errno.EIO, "no"), patch)
        watched: Deferred[None] = runtime.watch(SPEC, RecordingWatcher())
        runtime.unwatch("a")
        clock.advance(LOOK_AGAIN)
    assert watched.called
    assert not clock.getDelayedCalls()
    runtime.close()


def test_a_port_that_somebody_listens_on_is_taken() -> None:
    """And one that nobody listens on is not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert is_taken(port)
    assert not is_taken(port)


def test_a_port_that_was_chosen_is_not_chosen_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything listens on it, as for as long as its child starts; given back, it may be."""
    monkeypatch.setattr(process_child, "PORTS", range(20_000, 20_200))
    held = [free_port(()) for _ in range(20)]
    assert len({port for port, _ in held}) == 20
    monkeypatch.setattr(process_child, "PORTS", [held[0][0]] * 200)
    with pytest.raises(StartRefused, match="no free port"):
        free_port(())
    for _, give_back in held:
        give_back()
    port, give_back = free_port(())
    assert port == held[0][0]
    give_back()
    with none_left(), pytest.raises(OSError, match="Too many open files"):
        free_port(())
