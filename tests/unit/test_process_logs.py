"""The logs of child processes, where files cannot be opened for a while."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from llmproxy.runtimes import process_logs
from llmproxy.runtimes.process_logs import FOLLOW_EVERY, TRIM_EVERY, LogFile


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no log can be opened, nor its size be seen."""

    def unopened(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(process_logs, "open", unopened, raising=False)
    monkeypatch.setattr(os.path, "getsize", unopened)


def test_a_log_that_cannot_be_opened_is_trimmed_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither its beginning nor a later look fails, and the next look keeps it small."""
    monkeypatch.setattr(process_logs, "LARGEST", 100)
    clock = Clock()
    log = LogFile(clock, str(tmp_path / "a.log"))
    with open(log.open_new(), "wb") as file:
        file.write(b"a line\n" * 100)
    with monkeypatch.context() as patch:
        failing(patch)
        log.begin()
        clock.advance(TRIM_EVERY)
    assert (tmp_path / "a.log").stat().st_size == 700
    clock.advance(TRIM_EVERY)
    assert (tmp_path / "a.log").read_bytes() == b"a line\n" * 7
    log.end()
    assert clock.getDelayedCalls() == []


def test_a_log_that_cannot_be_opened_is_followed_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was written meanwhile comes with the next look that can be taken."""
    clock = Clock()
    log = LogFile(clock, str(tmp_path / "a.log"))
    lines: list[str] = []
    with open(log.open_new(), "wb", buffering=0) as file:
        ended = log.follow(0, lines.append)
        with monkeypatch.context() as patch:
            failing(patch)
            file.write(b"one\n")
            clock.advance(FOLLOW_EVERY)
            assert lines == []
        file.write(b"two\n")
        clock.advance(FOLLOW_EVERY)
        assert lines == ["one", "two"]
        with monkeypatch.context() as patch:
            failing(patch)
            log.end()
    assert ended.called
    assert clock.getDelayedCalls() == []
