"""Child processes of the proxy: what is seen of them, and what becomes of what cannot be seen."""

from __future__ import annotations

import builtins
import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes import process, process_group
from llmproxy.runtimes.process import ProcessRuntime
from llmproxy.runtimes.process_group import Group, read_process, session_members

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
