"""One engine of several on this one machine: its network namespace, its cable, its processes, its end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import define, field

from tests.integration.engine import TEST_LABEL, docker
from tests.integration.world import until

__all__ = ["ROOM", "Node", "ask", "ip", "processes_of"]

API = "v1.41"

ROOM = ("vram-gib", 24)
"""What each node says it has."""


@define(eq=False)
class Node:
    """One engine in its namespace.

    :ivar namespace: name of its network namespace, also of its cgroup and, with a letter, of its cables.
    """

    name: str
    namespace: str
    folder: Path
    address: str
    wire: str
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def socket(self) -> Path:
        """Where its engine is asked."""
        return self.folder / "docker.sock"

    @property
    def host(self) -> str:
        """In ``DOCKER_HOST`` form."""
        return f"unix://{self.socket}"

    def docker(self, *arguments: str, check: bool = True, timeout: float = 120) -> str:
        """The docker command, at this engine.

        :raises AssertionError: it fails; where the engine has ended, with the last that it wrote.
        """
        try:
            return docker("-H", self.host, *arguments, check=check, timeout=timeout)
        except AssertionError as failed:
            if self.runs or self._process is None:
                raise
            raise AssertionError(f"{failed}\n{self._last_words()}") from failed

    def inside(self, *command: str) -> list[str]:
        """That command, to be run in its network."""
        return ["nsenter", f"--net=/var/run/netns/{self.namespace}", *command]

    # -- the engine ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine, without waiting for it."""
        folder = self.folder
        (folder / "pid").unlink(missing_ok=True)  # left by one that was killed
        places = (
            *("--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"),
            *("-H", self.host, "--cgroup-parent", f"/{self.namespace}", "--label", TEST_LABEL),
            # Memory of a GPU that is not there: Swarm counts, and does not look.
            *("--node-generic-resource", f"{ROOM[0]}={ROOM[1]}"),
        )
        with open(folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                self.inside("dockerd", "--log-level", "warn", "--shutdown-timeout", "5", *places),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def until_up(self) -> None:
        """Wait until it answers."""
        until(self._answers, 60, 0.1)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._last_words()
        try:
            asked = subprocess.run(
                ["docker", "-H", self.host, "version"], capture_output=True, timeout=5, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return asked.returncode == 0

    def _last_words(self) -> str:
        """How it ended.  Where Go's runtime gave up, the reason stands before what all its threads did."""
        assert self._process is not None
        log = (self.folder / "log").read_text(errors="replace")
        at = max(log.rfind("\npanic: "), log.rfind("\nfatal error: "), log.rfind("\nSIG"))
        last = log[-2000:] if at < 0 else log[max(at - 1000, 0) : at + 3000]
        return f"{self.name} ended with {self._process.returncode}: {last}"

    def stop(self) -> None:
        """End the engine in order; its containers end, too."""
        assert self._process is not None
        self._process.terminate()
        self.wait()

    def kill(self, *, silent: bool = True) -> None:
        """What a power cut does: everything of this node is gone at once.

        :param silent: nothing leaves it any more, so that no connection to it is closed; else the kernel
            closes them all as the processes end.
        """
        if silent:
            self.cut()
        self._end_all()
        self.wait()

    def wait(self) -> None:
        """Wait until the engine has ended."""
        if self._process is not None:
            self._process.wait(60)

    def _end_all(self) -> None:
        # The engine before its containers, so that it reports nothing; twice, as one may just have begun.
        for _ in range(2):
            for pid in processes_of(self.folder):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @property
    def runs(self) -> bool:
        """Whether there is a process of the engine."""
        return self._process is not None and self._process.poll() is None

    # -- its cable -------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Pull its cable out: nothing reaches it, nothing leaves it."""
        ip("-n", self.wire, "link", "set", self._cable, "down")

    def heal(self) -> None:
        """Put it back in."""
        ip("-n", self.wire, "link", "set", self._cable, "up")

    @property
    def _cable(self) -> str:
        return f"{self.namespace}w"

    def connect(self) -> None:
        """Make its namespace, and a cable to the bridge."""
        ip("netns", "add", self.namespace)
        ip(
            "link",
            "add",
            self._cable,
            "netns",
            self.wire,
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            self.namespace,
        )
        ip("-n", self.wire, "link", "set", self._cable, "master", "wire", "up")
        ip("-n", self.namespace, "link", "set", "lo", "up")
        ip("-n", self.namespace, "addr", "add", f"{self.address}/28", "dev", "eth0")
        ip("-n", self.namespace, "link", "set", "eth0", "up")

    # -- its containers --------------------------------------------------------------------------------------

    def pid_of(self, container: str) -> int:
        """The first process of a container, as this machine counts."""
        return int(self.docker("inspect", "--format", "{{.State.Pid}}", container))

    def kill_container(self, container: str) -> None:
        """End a container's first process behind everybody's back."""
        with suppress(ProcessLookupError):
            os.kill(self.pid_of(container), signal.SIGKILL)


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, method: str, target: str, *, lines: bool = False) -> Any:
    """Ask an engine; what it answers, or of a stream of objects all of them.

    :raises AssertionError: it refuses.
    """
    connection = _Connection(path)
    try:
        connection.request(method, f"/{API}{target}")
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    assert response.status < 300, (target, response.status, body)
    return [json.loads(line) for line in body.splitlines()] if lines else json.loads(body)


def ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
    assert not check or done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def processes_of(folder: Path) -> list[int]:
    """An engine's and its containers', engines first; told by a folder in the command line, or the cgroup."""
    cgroup = f"/{folder.parent.name}{folder.name}/".encode()
    engines, others = [], []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        place = Path("/proc", entry)
        try:
            words = place.joinpath("cmdline").read_bytes().split(b"\0")
            groups = place.joinpath("cgroup").read_bytes()
        except OSError:
            continue
        name = words[0].rpartition(b"/")[2]
        if any(f"{folder}/".encode() in word for word in words) and name.startswith(
            (b"dockerd", b"containerd")
        ):
            engines.append((name, int(entry)))
        elif cgroup in groups:
            others.append(int(entry))
    # dockerd, containerd, the containers' keepers, and the containers.
    return [pid for _, pid in sorted(engines, key=lambda each: (each[0] != b"dockerd", each))] + others
