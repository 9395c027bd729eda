"""Starts the new process: the same command line, and whatever code is installed by now."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from llmproxy.upgrade.inherited import VARIABLE, told_of

__all__ = ["Child", "command_line", "no_upgrade", "start"]

_MORE = ("--nodaemon", "--pidfile=")

_NOT_PASSED = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID")
"""What is about the process that it was said to."""


def command_line(words: Sequence[str]) -> list[str]:
    """The command line of the new process.

    :param words: the present one, the interpreter's own included.
    :raises ValueError: it is not twistd's.
    """
    if "llmproxy" not in words:
        raise ValueError("it was not started by twistd")
    # What is said last counts; twistd ends when it finds the file of another one's process id.
    at = list(words).index("llmproxy")
    more = [] if tuple(words[at - 2 : at]) == _MORE else _MORE
    return [sys.executable, *words[1:at], *more, *words[at:]]


def no_upgrade(
    twistd: Mapping[str, Any],
    environ: Mapping[str, str],
    words: Sequence[str],
    pid: int,
    parent: int,
    first: Callable[[], str],
    *,
    successor: bool,
) -> str | None:
    """Why this process cannot give its place to another one; None: it can.

    :param twistd: its options.
    :param first: tells the name of the process with the number 1.
    :param successor: it has taken another one's place itself, so that nobody depends on its number.
    """
    if not twistd.get("nodaemon"):
        return "it was started as a daemon; start it by twistd -n, as deploy/systemd does"
    try:
        command_line(words)
    except ValueError as cause:
        return str(cause)
    if successor or environ.get("NOTIFY_SOCKET"):
        return None
    if environ.get("SYSTEMD_EXEC_PID") == str(pid):
        return "systemd would take the end of this process for the end of the service; use Type=notify"
    if pid == 1 or (parent == 1 and first() not in ("systemd", "init")):
        return (
            "this container ends with this very process; recreate it: docker compose up -d launcher"
            " (who waits is told to come back, and new connections wait)"
        )
    return None


def first_process() -> str:
    """The name of the process with the number 1."""
    try:
        with open("/proc/1/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "init"


SHIM = """\
import os, signal, sys
pid = os.fork()
if not pid:
    os.execv(sys.argv[2], sys.argv[2:])
os.closerange(3, int(sys.argv[1]))
signal.signal(signal.SIGUSR1, lambda *_: os.kill(pid, signal.SIGKILL))
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
os._exit(code if code >= 0 else 128 - code)
"""
"""Stands between the two processes until the new one serves.  Then it ends, and leaves the new one to whoever
supervises the old one: systemd waits for the end of its own children alone, and kills at once what is not one
where it should let it end in order."""


class Child(ProcessProtocol):
    """The process between, and so the new one for as long as it does not serve.

    :param ended: called with what it ended with, in words.
    """

    def __init__(self, ended: Callable[[str], None]) -> None:
        self._ended = ended
        self.alive = True

    def processEnded(self, reason: Failure) -> None:
        """See :class:`twisted.internet.protocol.ProcessProtocol`."""
        self.alive = False
        error = reason.value
        how = "status 0"
        if isinstance(error, ProcessTerminated):
            how = f"signal {error.signal}" if error.signal is not None else f"status {error.exitCode}"
        self._ended(how)

    def kill(self) -> None:
        """The new process is not wanted any more."""
        self._send(signal.SIGUSR1)

    def let_go(self) -> None:
        """The new process stands on its own once this has ended, which it does also while it stands still."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.alive and self.transport is not None:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess(int(number))


def start(
    reactor: Any,
    words: Sequence[str],
    folder: str,
    line: int,
    sockets: Mapping[str, int],
    ended: Callable[[str], None],
) -> Child:
    """Start it.

    :param words: the present command line.
    :param folder: where the present process was started.
    :param line: descriptor of its end of the line.
    :param sockets: descriptors of what listens, by endpoint.
    :raises OSError: it cannot be started.
    """
    child = Child(ended)
    mapping = {0: 0, 1: 1, 2: 2, 3: line}
    told: dict[str, int] = {}
    for number, (description, fd) in enumerate(sockets.items(), 4):
        mapping[number] = fd
        told[description] = number
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED}
    environment[VARIABLE] = told_of(3, told)
    command = command_line(words)
    shim = [sys.executable, "-I", "-S", "-c", SHIM, str(4 + len(told)), *command]
    reactor.spawnProcess(child, sys.executable, shim, environment, folder, childFDs=mapping)
    return child
