"""What ``make coverage`` needs in each process: a plugin of coverage, named in ``tests/coverage.ini``.

Proxies, demo servers and commands of the tests are processes of their own.  coverage measures those whose
environment tells it to, and writes down what it has seen at their orderly end.  Here it is told, too, where a
test makes the environment, and nothing is lost where a process ends by a signal, which no exit handler sees,
or becomes another program.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from coverage import Coverage
from coverage.exceptions import CoverageException

__all__ = ["coverage_init", "main"]

LEAST = 95.0
"""Percent of the branches by themselves, without the lines, that have to be covered."""

TOLD = "COVERAGE_PROCESS_CONFIG"
"""The environment variable in which ``patch = subprocess`` tells how to measure."""
SAVE = signal.SIGRTMIN + 7
"""Asks a process to save what it has seen, before it is killed.  It ignores the signal from then on."""
PATIENCE = 3.0
"""Seconds that one has for it; what hangs, or is stopped, has nothing saved."""


def coverage_init(_registry: object, _options: dict[str, str]) -> None:
    """Called by coverage in each process that it measures."""
    subprocess.Popen.__init__ = _measured(subprocess.Popen.__init__)  # type: ignore[method-assign]
    os.kill = _asks_first(os.kill)
    os.execv = _saves_first(os.execv)
    with suppress(ValueError):
        signal.signal(SAVE, _save_now)


def _save() -> None:
    found = Coverage.current()
    if found is not None:
        # Whatever ends a process shall end it all the same.
        with suppress(CoverageException, OSError):
            found.save()


def _save_now(*_: object) -> None:
    _save()
    signal.signal(SAVE, signal.SIG_IGN)


def _measured(start: Callable[..., None]) -> Callable[..., None]:
    def measured(self: object, *words: Any, env: Any = None, **more: Any) -> None:
        if env is not None and TOLD in os.environ:
            env = {**env, TOLD: os.environ[TOLD]}
        start(self, *words, env=env, **more)

    return measured


def _saves_first(execute: Callable[..., Any]) -> Callable[..., Any]:
    mine = os.getpid()

    def saves(*words: Any) -> Any:
        # A process that was forked a moment ago has seen nothing of its own.
        if os.getpid() == mine:
            _save()
        return execute(*words)

    return saves


def _asks_first(kill: Callable[[int, int], None]) -> Callable[[int, int], None]:
    def asks(pid: int, number: int) -> None:
        if pid == os.getpid():
            # How twistd ends: by the signal that it was ended by.
            if number and signal.getsignal(number) is signal.SIG_DFL:
                _save()
        elif number == signal.SIGKILL and _can_save(pid):
            deadline = time.monotonic() + PATIENCE
            kill(pid, SAVE)
            while _can_save(pid) and time.monotonic() < deadline:
                time.sleep(0.005)
        kill(pid, number)

    return asks


def _can_save(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    caught = int(told.get("SigCgt", "0"), 16)
    return bool(caught >> (SAVE - 1) & 1) and told["State"].strip()[0] not in "TtZX"


def main() -> int:
    """Say how much of the branches was covered by what was combined; 1 if that is too little."""
    file = "build/coverage/coverage.json"
    found = Coverage(config_file="tests/coverage.ini", plugins=())
    found.load()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        found.json_report(outfile=file)
    totals = json.loads(Path(file).read_text(encoding="utf-8"))["totals"]
    part = 100 * totals["covered_branches"] / totals["num_branches"]
    print(f"Of {totals['num_branches']} branches {part:.2f} % are covered; at least {LEAST:g} % have to be.")
    return int(part < LEAST)


if __name__ == "__main__":
    sys.exit(main())
