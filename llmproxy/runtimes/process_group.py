"""One run of a child process: its leader, and every process that came of it.

The leader is in a session of its own, so that the session's number is the leader's process id.  Numbers and
states are read from ``/proc`` (``proc(5)``).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Protocol

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.runtimes.spare import SPARE

__all__ = ["Group", "GroupReactor", "ProcessInfo", "read_process", "session_members"]

LINGER_EVERY = 0.02
"""Seconds between looks at what is left of a group whose leader has ended: nothing tells of their end."""
POLL_EVERY = 0.25
"""Seconds between looks at an adopted leader where there is no ``pidfd_open`` (Linux before 5.3), and before
the next one where the last failed."""


@frozen
class ProcessInfo:
    """What ``/proc/<pid>/stat`` says.

    :ivar state: ``R``, ``S``, ``D``, ``Z`` and so on.
    :ivar start_time: clock ticks since boot; with ``pid`` it names the process, and ``exec`` keeps it.
    """

    pid: int
    state: str
    group: int
    session: int
    start_time: int

    @property
    def alive(self) -> bool:
        """A zombie has given back everything but its number."""
        return self.state not in ("Z", "X", "x")


def read_process(pid: int) -> ProcessInfo | None:
    """Read about one process; ``None`` when there is none, or none that is for us to see (``hidepid=`` of
    ``/proc``, ``ProtectProc=`` of systemd): our own children are.

    :raises OSError: it cannot be told.
    """

    def read() -> bytes:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read()

    try:
        text = SPARE.use(read).decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command's name, in parentheses, may hold anything, a parenthesis too.
    fields = text.rpartition(")")[2].split()
    return ProcessInfo(pid, fields[0], int(fields[2]), int(fields[3]), int(fields[19]))


def session_members(leader: int, start_time: int) -> list[ProcessInfo]:
    """The processes alive in the session or group of that leader, the leader included.

    While one of them lives its number is given to no other process (POSIX, ``fork``); if the number belongs
    to a process that started at another time, then none of them is left.

    :raises OSError: it cannot be told.
    """
    first = read_process(leader)
    if first is not None and first.start_time != start_time:
        return []
    return [
        info for info in _all_processes() if leader in (info.session, info.group, info.pid) and info.alive
    ]


def _all_processes() -> Iterator[ProcessInfo]:
    for name in SPARE.use(lambda: os.listdir("/proc")):
        if name.isdigit():
            info = read_process(int(name))
            if info is not None:
                yield info


class GroupReactor(IReactorTime, IReactorFDSet):
    """What is needed of the reactor."""


@implementer(IReadDescriptor)
@define(eq=False)
class _ExitDescriptor:
    """Readable when the process has ended (``pidfd_open(2)``)."""

    _fd: int
    _ended: Callable[[], None]

    def fileno(self) -> int:
        return self._fd

    def doRead(self) -> None:
        self._ended()

    def connectionLost(self, reason: Failure) -> None:
        self.close()

    def logPrefix(self) -> str:
        return "process end"

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Over(Protocol):
    def __call__(self, group: Group) -> None: ...


@define(eq=False)
class Group:
    """One run.

    When the leader ends by itself, the rest of its session is killed at once: that is what the end of a
    container is, and vLLM's engine process would keep the GPU's memory.  While it is being stopped the rest
    has until the end of the grace.  The run is over when nobody is left.

    :ivar code: exit status of the leader; ``None`` while it lives or when it is not our child.
    """

    _reactor: GroupReactor
    pid: int
    start_time: int
    _on_over: _Over
    code: int | None = field(default=None, init=False)
    is_over: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _leader_ended: bool = field(default=False, init=False)
    _stopping: bool = field(default=False, init=False)
    _killing: bool = field(default=False, init=False)
    _waiters: list[Deferred[None]] = field(factory=list, init=False)
    _timers: list[IDelayedCall] = field(factory=list, init=False)
    _descriptor: _ExitDescriptor | None = field(default=None, init=False)

    @property
    def has_ended(self) -> bool:
        """Whether its leader has ended, though others may be left."""
        return self._leader_ended

    def observe(self) -> None:
        """Notice the end of a leader that is not our child: one adopted after a restart of the proxy."""
        try:
            fd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            self._poll()
            return
        if not self._is_alive():
            # It ended, and its number may be another's, between the caller's look and the opening.
            os.close(fd)
            self.leader_ended(None)
            return
        self._descriptor = _ExitDescriptor(fd, lambda: self.leader_ended(None))
        self._reactor.addReader(self._descriptor)

    def leader_ended(self, code: int | None) -> None:
        """The first process has ended.

        :param code: its exit status, 128 + signal if one ended it.
        """
        self._forget_descriptor()
        if not self._leader_ended and not self._closed:
            self._leader_ended, self.code = True, code
            self._linger()

    def over(self) -> Deferred[None]:
        """Fires when nobody is left."""
        waiting: Deferred[None] = Deferred()
        if self.is_over:
            waiting.callback(None)
        else:
            self._waiters.append(waiting)
        return waiting

    def stop(self, grace: float) -> Deferred[None]:
        """TERM, a second TERM after half of ``grace`` seconds, then KILL; fires when nobody is left."""
        waiting = self.over()
        if not self.is_over:
            self._stopping = True
            if grace <= 0:
                self._kill()
            else:
                self._terminate()
                self._later(grace / 2, self._terminate)
                self._later(grace, self._kill)
        return waiting

    def close(self) -> None:
        """Look no more; the processes go on."""
        self._closed = True
        self._forget_descriptor()
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        self._timers.clear()
        waiters, self._waiters = self._waiters, []
        for waiting in waiters:
            waiting.cancel()

    def _forget_descriptor(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._reactor.removeReader(descriptor)
            descriptor.close()

    def _later(self, seconds: float, job: Callable[[], None]) -> None:
        self._timers = [timer for timer in self._timers if timer.active()]
        self._timers.append(self._reactor.callLater(seconds, job))

    def _is_alive(self) -> bool:
        try:
            info = read_process(self.pid)
        except OSError:
            return True  # not known to have ended
        return info is not None and info.alive and info.start_time == self.start_time

    def _poll(self) -> None:
        if self._is_alive():
            self._later(POLL_EVERY, self._poll)
        else:
            self.leader_ended(None)

    def _linger(self) -> None:
        members = self._members(self._linger)
        if members is None:
            return
        if not members:
            self._finish()
            return
        if self._killing or not self._stopping:
            self._send(members, signal.SIGKILL)
        self._later(LINGER_EVERY, self._linger)

    def _finish(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        waiters, self._waiters = self._waiters, []
        self.close()
        self._on_over(self)
        for waiting in waiters:
            if not waiting.called:
                waiting.callback(None)

    def _terminate(self) -> None:
        members = self._members(self._terminate) or ()
        self._send([info for info in members if self.pid in (info.pid, info.group)], signal.SIGTERM)

    def _kill(self) -> None:
        self._killing = True
        self._send(self._members(self._kill) or (), signal.SIGKILL)

    def _members(self, again: Callable[[], None]) -> list[ProcessInfo] | None:
        """Who is left of it; ``None``: that cannot be told, and is looked at ``again`` in a moment."""
        try:
            return session_members(self.pid, self.start_time)
        except OSError:
            self._later(POLL_EVERY, again)
            return None

    def _send(self, members: Iterable[ProcessInfo], number: signal.Signals) -> None:
        for info in members:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(info.pid, number)
