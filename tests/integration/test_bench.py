"""The benchmark suite, run in its tiny form: that it works, not what it finds."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.cpu import tree
from bench.scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parents[2]

LIMIT = 400.0
"""Seconds; it takes about forty on a quiet machine."""

END_LIMIT = 60.0
"""Seconds from TERM to the end of everything."""


@contextmanager
def _bench(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "--quick", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        # TERM, so that it ends what it has started.
        process.terminate()
        process.communicate(timeout=END_LIMIT)


@pytest.mark.timeout(LIMIT + END_LIMIT)
def test_quick_run_has_every_figure(tmp_path: Path) -> None:
    """A quick run ends by itself, shows the tables, and writes every figure of every peer that is there."""
    output = tmp_path / "bench.json"
    with _bench("--output", str(output)) as process:
        shown, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    figures = [figure for scenario in SCENARIOS for figure in scenario.figures]
    for figure in figures:
        assert figure.title.strip() in shown
    document = json.loads(output.read_text())
    found = document["figures"]
    assert set(found["llmproxy"]) == {figure.key for figure in figures}
    # What is needed for the others may be missing here, which is told.
    missing = [name for name in ("nginx", "node") if name not in found]
    assert {"direct", "treq", "llmproxy"} <= set(found)
    assert len(document["notes"]) >= len(missing)
    assert all(math.isfinite(value) for values in found.values() for value in values.values())
    told = {goal["figure"] for goal in document["goals"]}
    goals = [goal for scenario in SCENARIOS for goal in scenario.goals]
    assert told == {goal.key for goal in goals if goal.peer is None or goal.peer not in missing}


@pytest.mark.timeout(3 * END_LIMIT)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_broken_off_run_ends_what_it_started(tmp_path: Path, number: signal.Signals) -> None:
    """A run that is broken off by TERM or Ctrl-C leaves no process behind, and writes no figures."""
    output = tmp_path / "bench.json"
    with _bench("--only", "requests", "--seconds", "60", "--output", str(output)) as process:
        # In the midst of a load, when all proxies run.
        deadline = time.monotonic() + END_LIMIT
        while not any(map(_is_load, started := _started(process.pid))) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(started) >= 4
        process.send_signal(number)
        _, errors = process.communicate(timeout=END_LIMIT)
    assert process.returncode == 128 + number, errors
    assert [pid for pid in started if _runs(pid)] == []
    assert not output.exists()


def _started(pid: int) -> list[int]:
    try:
        return tree(pid)[1:]
    except FileNotFoundError:
        # One of them ended meanwhile.
        return []


def _is_load(pid: int) -> bool:
    try:
        return b"bench.load" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
