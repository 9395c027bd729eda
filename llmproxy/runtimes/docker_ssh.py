"""A Docker engine on a machine that is reached by ``ssh``.

The machine's own ``ssh`` command makes the connection, so that keys, agents, jump hosts and known hosts are
what they are everywhere else; at the other end ``docker system dial-stdio`` passes it on to the engine, as it
does for the ``docker`` command.  Between that command and us is a pair of sockets: requests wait as long as
they are told to, and streams can be broken off, which the Docker SDK's own ssh connections cannot do.
"""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from typing import IO, Any, cast
from urllib.parse import urlsplit

import urllib3.connection
import urllib3.connectionpool
from docker.api.client import APIClient
from docker.transport.unixconn import UnixHTTPAdapter

__all__ = ["ssh_client", "ssh_command"]

CONNECT_LIMIT = 10
"""Seconds that ``ssh`` may take to connect."""

ALIVE_EVERY, ALIVE_MOST = 5, 3
"""Seconds between questions whether the other machine is still there, and how many may go unanswered: an end
that nobody tells of is noticed after 15 s."""

END_LIMIT = 1.0
"""Seconds that ``ssh`` may take to end."""

MOST_SAID = 1000
"""Bytes of what ``ssh`` says that are told."""

OLDEST = "1.41"
"""The API of Docker 20.10, the oldest engine that is spoken to."""


class _SshError(OSError):
    """What ``ssh`` said when it ended."""


def ssh_command(host: str) -> list[str]:
    """What connects to an engine.

    :param host: ``ssh://[user@]host[:port][/path/of/its/socket]``.
    """
    parts = urlsplit(host)
    command = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_LIMIT}"]
    command += ["-o", f"ServerAliveInterval={ALIVE_EVERY}", "-o", f"ServerAliveCountMax={ALIVE_MOST}"]
    if parts.port is not None:
        command += ["-p", str(parts.port)]
    if parts.username:
        command += ["-l", parts.username]
    dial = ["docker", "system", "dial-stdio"]
    if parts.path.strip("/"):
        dial[1:1] = ["--host", f"unix://{parts.path}"]
    # Its shell gets one line.
    return [*command, "--", parts.hostname or "", shlex.join(dial)]


class _Connection(urllib3.connection.HTTPConnection):
    """One ``ssh`` with one connection to the engine behind it."""

    def __init__(self, command: list[str], timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._answered = False
        self._told = "ssh ended"

    def connect(self) -> None:
        """Start it; whether it gets there is known when the engine answers."""
        if shutil.which(self._command[0]) is None:
            raise _SshError("there is no ssh command on this machine; install OpenSSH's client")
        ours, theirs = socket.socketpair()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the connection
        with theirs:
            # In a session of its own: neither a terminal's Ctrl-C nor a question on it is for that process.
            self._process = subprocess.Popen(
                self._command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._said,
                start_new_session=True,
            )
        ours.settimeout(self.timeout if isinstance(self.timeout, int | float) else None)
        self._answered = False
        self.sock = ours

    def send(self, data: Any) -> None:
        """Pass it on, as far as there is somebody who takes it: why there is nobody, the answer tells."""
        with suppress(ConnectionError):
            super().send(data)

    def getresponse(self) -> Any:
        """The engine's answer, or why ssh did not get there."""
        problem: ConnectionError | None = None
        try:
            answer = super().getresponse()
            self._answered = True
            return answer
        except ConnectionError as error:
            problem = error
        # Not from within the clause above: it is this one that is to be told, not that something ended.
        raise problem if self._answered else _SshError(self._told)

    def close(self) -> None:
        """End it."""
        super().close()
        process, self._process = self._process, None
        said, self._said = self._said, None
        if process is None or said is None:
            return
        if not self._answered:
            # It has ended by itself, and says why.
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_LIMIT)
        process.terminate()
        try:
            process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with said:
            said.seek(0)
            words = said.read(MOST_SAID).decode("utf-8", "replace").split()
        self._told = " ".join(words) or f"ssh ended with exit status {process.returncode}"


class _Pool(urllib3.connectionpool.HTTPConnectionPool):
    def __init__(self, command: list[str], timeout: float, maxsize: int) -> None:
        super().__init__("localhost", timeout=timeout, maxsize=maxsize)
        self._command = command
        self._seconds = timeout

    def _new_conn(self) -> Any:
        return _Connection(self._command, self._seconds)


class _Adapter(UnixHTTPAdapter):
    """The SDK's own for a socket, but for where the socket comes from."""

    def __init__(self, command: list[str], timeout: int) -> None:
        self._command = command
        super().__init__("http+unix:///ssh", timeout)

    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        """The connections that are kept: one for all calls, where the SDK has one for each URL."""
        with self.pools.lock:
            pool = self.pools.get("")
            if pool is None:
                pool = self.pools[""] = _Pool(self._command, self.timeout, self.max_pool_size)
        return pool


def ssh_client(host: str, timeout: float) -> APIClient:
    """A client of the engine there, which speaks the newest version that both sides know.

    :raises docker.errors.DockerException: it does not answer.
    """
    # No socket is opened before something is asked; what it asks then goes through the adapter.
    seconds = max(1, round(timeout))
    client: Any = APIClient(base_url="unix:///ssh", version=OLDEST, timeout=seconds)
    client.mount("http+docker://", _Adapter(ssh_command(host), seconds))
    try:
        client._version = client._retrieve_server_version()
    except BaseException:
        client.close()
        raise
    return cast(APIClient, client)
