"""How a child process is begun: its command, its environment, and why it cannot be."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import sys
from collections.abc import Callable, Container, Mapping
from contextlib import closing

from attrs import define, field
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import StartRefused
from llmproxy.runtimes.spare import NONE_LEFT

__all__ = [
    "Child",
    "child_environment",
    "find_command",
    "free_port",
    "is_listened_on",
    "is_taken",
    "refused_for",
    "with_port",
]

PORTS = range(20_000, 32_000)
"""Ports for ``${port}``: below those that Linux gives to outgoing connections (``ip_local_port_range``, from
32768), one of which could take a port between its choice and the child's bind."""

_NOT_PASSED = ("LLMPROXY_", "MAP__")
_NOT_PASSED_NAMES = frozenset(
    {
        "VLLM_API_KEY",
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
    }
)


def child_environment(
    own: Mapping[str, str],
    spec: BackendSpec,
    port: int,
    backend_key: str | None,
    secret_names: frozenset[str],
) -> dict[str, str]:
    """What a child sees: the proxy's environment without the proxy's own settings and keys, and without what
    systemd means for the proxy alone; then what the backend's settings say.

    :param secret_names: more names that hold keys of clients.
    """
    environment = {
        name: value
        for name, value in own.items()
        if not name.startswith(_NOT_PASSED) and name not in _NOT_PASSED_NAMES and name not in secret_names
    }
    if backend_key is not None:
        environment["VLLM_API_KEY"] = backend_key
    environment["PORT"] = str(port)
    environment.update((name, with_port(value, port)) for name, value in spec.environment.items())
    return environment


def with_port(text: str, port: int) -> str:
    """With its port in place of ``${port}``."""
    return text.replace("${port}", str(port))


def refused_for(spec: BackendSpec, error: OSError) -> StartRefused:
    """The machine lacks something that it needs."""
    if error.errno in NONE_LEFT:
        hint = "No file descriptor is left: raise the limit (LimitNOFILE= in systemd's unit, ulimit -n)."
    elif error.errno in (errno.EAGAIN, errno.ENOMEM):
        hint = "The machine lacks memory or process numbers."
    else:
        hint = (
            "Its log and a record of it are written to state_dir: see to it that it can be written to, and"
            " has room for them."
        )
    return StartRefused(f"backend {spec.route!r} cannot be started: {error.strerror}", hint)


def free_port(taken: Container[int]) -> tuple[int, Callable[[], None]]:
    """A port that nobody listens on.

    :param taken: those of our own.
    :return: and what gives it back: until then no other llmproxy of this machine chooses it, whose child
        could come first and answer for ours.
    :raises OSError: there are no descriptors for a look at it.
    :raises StartRefused: there is none.
    """
    for port in random.sample(PORTS, 200):
        if port in taken:
            continue
        # unix(7): a name in the abstract namespace is nobody's once its socket is closed, however that comes.
        hold = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            if sys.platform == "linux":
                hold.bind(f"\0llmproxy/port/{port}")
            with closing(socket.socket()) as probe:
                probe.bind(("127.0.0.1", port))
            return port, hold.close
        except OSError as error:
            hold.close()
            if error.errno in NONE_LEFT:
                raise
    raise StartRefused("no free port was found", "Give the backend a port of its own.")


def is_taken(port: int) -> bool:
    """Whether a child could not listen there: something else does, or has a connection from there."""
    with closing(socket.socket()) as probe:
        # What an earlier run has left of its connections is in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def is_listened_on(port: int) -> bool:
    """Whether a port that is taken is so by something that listens there, as far as the machine says that."""
    try:
        for family in ("tcp", "tcp6"):
            with open(f"/proc/net/{family}", encoding="ascii") as file:
                if any(_listens(line.split(), port) for line in file):
                    return True
    except FileNotFoundError:
        return family == "tcp"  # without IPv6 there is no list of that
    except OSError:
        return True
    return False


def _listens(fields: list[str], port: int) -> bool:
    # proc(5): the local address and port, those of the other side, the state; TCP_LISTEN is 10.
    return fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port


def find_command(spec: BackendSpec, environment: Mapping[str, str]) -> str:
    """The file to execute.

    :raises StartRefused: there is none.
    """
    if not spec.command:
        raise StartRefused(
            f"backend {spec.route!r} has no command", "Set `command` to what starts the server."
        )
    if spec.cwd is not None and not os.path.isdir(spec.cwd):
        raise StartRefused(f"there is no directory {spec.cwd}", "Check the backend's `cwd`.")
    name = spec.command[0]
    if os.path.dirname(name):
        path = os.path.join(os.path.abspath(spec.cwd or "."), name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
        raise StartRefused(f"there is no executable file {path}", "Check the backend's `command`.")
    found = shutil.which(name, path=environment.get("PATH", os.defpath))
    if found is None:
        raise StartRefused(
            f"there is no command {name!r}",
            "Install it, or give its whole path; PATH is that of llmproxy itself.",
        )
    return os.path.abspath(found)


@define(eq=False)
class Child(ProcessProtocol):
    """Hears of the end of a process that we started ourselves, which may come before ``spawnProcess`` has
    returned: Twisted looks for children that have ended already as the last thing that it does there.

    :ivar pid: its number, also when it has ended.
    """

    pid: int = field(default=0, init=False)
    _code: int | None = field(default=None, init=False)
    _tell: Callable[[int], None] | None = field(default=None, init=False)

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.pid = int(self.transport.pid)

    def kill(self) -> None:
        """End it.

        :raises twisted.internet.error.ProcessExitedAlready: it has ended.
        """
        assert self.transport is not None
        self.transport.signalProcess("KILL")

    def processEnded(self, reason: Failure) -> None:
        error = reason.value
        code = 0
        if isinstance(error, ProcessTerminated):
            # 128 + signal, as a shell and Docker tell it.
            code = 128 + error.signal if error.signal is not None else int(error.exitCode or 0)
        self._code = code
        if self._tell is not None:
            self._tell(code)

    def tell_end(self, tell: Callable[[int], None]) -> None:
        """Tell its exit status: when it ends, or at once."""
        self._tell = tell
        if self._code is not None:
            tell(self._code)
