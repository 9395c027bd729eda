"""What watchers are told, and lines of output."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.runtimes.interface import Address, Exit, Instance
from llmproxy.runtimes.lines import LONGEST_LINE, Lines
from llmproxy.runtimes.telling import Teller
from tests.fakes import RecordingWatcher

HERE = (Address("127.0.0.1", 1, "process"),)


def run(name: str) -> Instance:
    """A run of that name."""
    return Instance(name, HERE)


def test_absent_once() -> None:
    """That nothing runs is told once, and only to who knows nothing yet."""
    watcher = RecordingWatcher()
    teller = Teller(watcher)
    teller.absent()
    teller.absent()
    assert watcher.events == [("gone", None, Exit())]


def test_gone_once() -> None:
    """A run is gone once, and late news of it is dropped."""
    watcher = RecordingWatcher()
    teller = Teller(watcher)
    teller.running(run("1"))
    teller.ended("1", Exit(3))
    teller.ended("1", Exit(4))
    teller.running(run("1"))
    teller.absent()
    assert watcher.events == [("running", run("1")), ("gone", "1", Exit(3))]


def test_another_run() -> None:
    """Another run is the end of the one before."""
    watcher = RecordingWatcher()
    teller = Teller(watcher)
    teller.running(run("1"))
    teller.running(run("2"))
    assert watcher.events == [("running", run("1")), ("gone", "1", Exit()), ("running", run("2"))]


def test_end_of_an_unknown_run() -> None:
    """The end of a run that the watcher never heard of is not told."""
    watcher = RecordingWatcher()
    Teller(watcher).ended("1", Exit(3))
    assert watcher.events == []


def test_answered() -> None:
    """The end of a run that ensure_started gave away is told, though running was not."""
    watcher = RecordingWatcher()
    teller = Teller(watcher)
    teller.answered(run("1"))
    teller.ended("1", Exit(3))
    assert watcher.events == [("gone", "1", Exit(3))]


def test_running_again() -> None:
    """The same run is told again when asked for, or with other addresses."""
    watcher = RecordingWatcher()
    teller = Teller(watcher)
    teller.running(run("1"))
    teller.running(run("1"))
    teller.running(run("1"), again=True)
    teller.running(Instance("1", (Address("10.0.0.1", 1, "bridge"),)))
    assert watcher.kinds() == ["running"] * 3


@given(st.lists(st.sampled_from(["run1", "run2", "end1", "end2", "answer1", "answer2", "absent"])))
def test_rules(steps: list[str]) -> None:
    """Whatever comes: gone at most once for a run, and never for one not told or answered."""
    watcher = RecordingWatcher()
    teller = Teller(watcher)
    known: set[str | None] = {None}
    for step in steps:
        verb, number = step.rstrip("12"), step[-1]
        if verb == "run":
            teller.running(run(number))
        elif verb == "end":
            teller.ended(number, Exit())
        elif verb == "answer":
            known.add(number)
            teller.answered(run(number))
        else:
            teller.absent()
    ended: list[str | None] = []
    for event in watcher.events:
        if event[0] == "running":
            known.add(event[1].run)
            assert event[1].run not in ended
        else:
            assert event[1] in known
            assert event[1] not in ended
            ended.append(event[1])


@given(st.text(alphabet="aé\n", max_size=60), st.integers(1, 7))
def test_lines(text: str, size: int) -> None:
    """However the bytes are cut, the lines are the same."""
    found: list[str] = []
    lines = Lines(found.append)
    data = text.encode()
    for start in range(0, len(data), size):
        lines.feed(data[start : start + size])
    lines.feed(b"", last=True)
    assert found == text.split("\n")[: None if not text.endswith("\n") and text else -1]


def test_line_without_end() -> None:
    """A line that never ends is broken, and a terminal's line end is one."""
    found: list[str] = []
    lines = Lines(found.append)
    lines.feed(b"x" * (LONGEST_LINE + 1) + b"\r\n")
    lines.feed(b"y" * (LONGEST_LINE + 1))
    assert found[0] == "x" * (LONGEST_LINE + 1)
    assert found[1] == "y" * LONGEST_LINE
