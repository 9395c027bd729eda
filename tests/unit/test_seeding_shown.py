"""What is seen of a download, and which Python carries it out."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmproxy.cli import seed_command
from llmproxy.runtimes.interface import StartRefused
from llmproxy.seeding.running import find_python

PULL = {"event": "pull", "image": "vllm:1", "part": 0.25}
PLAN = {"event": "plan", "repository": "org/m", "bytes": 3 * 2**30, "had": 2**20}
DONE = {"event": "progress", "bytes": 2 * 2**30}


def test_lines_for_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each thing that begins, and one now and then for how far it is; none for programs."""
    now = [100.0]
    monkeypatch.setattr("llmproxy.cli.seed_command.time.monotonic", lambda: now[0])
    monkeypatch.setattr(seed_command, "sees_progress", lambda: False)
    with seed_command._Shown("chat", quiet=False) as shown:
        shown.heard(PULL)
        shown.heard(PLAN)
        shown.heard(DONE)
        now[0] += 11
        shown.heard(DONE)
        shown.heard({"event": "something new"})
    assert capsys.readouterr().err.splitlines() == [
        "chat: pulling vllm:1",
        "chat: org/m: 1.0 MiB of 3.0 GiB",
        "chat: 2.0 GiB of 3.0 GiB",
    ]
    with seed_command._Shown("chat", quiet=True) as shown:
        shown.heard(PLAN)
    assert capsys.readouterr().err == ""


def test_a_bar_for_who_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what is being done and how far it is, and is taken away in the end."""
    out = Console(force_terminal=True, width=100, record=True, file=StringIO())
    monkeypatch.setattr(seed_command, "sees_progress", lambda: True)
    monkeypatch.setattr(seed_command, "console", lambda **_: out)
    with seed_command._Shown("chat", quiet=False) as shown:
        bar: Any = shown._bar
        (task,) = bar.tasks
        assert (task.description, task.total) == ("chat: looking", None)
        shown.heard(PULL)
        assert (task.description, task.completed, task.total) == ("chat: pulling vllm:1", 25, 100)
        shown.heard(PLAN)
        shown.heard(DONE)
        assert (task.description, task.completed, task.total) == ("chat: org/m", 2 * 2**30, 3 * 2**30)
    assert not bar.live.is_started


def program(folder: Path, name: str, head: str) -> str:
    file = folder / name
    file.write_text(f"{head}\n")
    file.chmod(0o755)
    return str(file)


def test_which_python_a_command_runs(tmp_path: Path) -> None:
    """The one that it is, or the one that its first line names; by a path or by the search path."""
    path = str(tmp_path)
    python = program(tmp_path, "python3", "")
    program(tmp_path, "vllm", f"#!{python}")
    program(tmp_path, "other", "#!/usr/bin/env python3")
    assert find_python((python, "-m", "x"), path, None) == python
    assert find_python(("python3",), path, None) == python
    assert find_python(("vllm", "serve"), path, None) == python
    assert find_python(("./vllm",), "", path) == python
    assert find_python(("other",), path, None) == python


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("none", "there is no command 'none'"),
        ("./none", "there is no command './none'"),
        ("binary", "is no Python script"),
    ],
)
def test_a_command_that_runs_no_python(tmp_path: Path, command: str, words: str) -> None:
    """It is told that it is not there, or that nobody knows what it downloads."""
    program(tmp_path, "binary", "\x7fELF")
    with pytest.raises(StartRefused, match=words):
        find_python((command,), str(tmp_path), str(tmp_path))
