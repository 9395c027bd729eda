"""Three machines for a proxy, which are three Docker engines of this one: by a socket, by TLS, by ssh."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from tests.certificates import authority, issue
from tests.integration.engine import DEMO_IMAGE, docker
from tests.integration.private_engine import PrivateEngine, save_image
from tests.integration.proxy import free_port
from tests.integration.world import until

__all__ = ["Cable", "Hosts", "Sshd", "require_sshd"]

SSHD = "/usr/sbin/sshd"


def require_sshd() -> None:
    """Skip the test where there is no ssh server; fail it in continuous integration."""
    if os.path.exists(SSHD) and shutil.which("ssh"):
        return
    reason = "OpenSSH's server and client are not installed (apt-get install openssh-server)"
    if os.environ.get("LLMPROXY_REQUIRE_DOCKER") or os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@define
class Sshd:
    """An ssh server with keys of its own, and an ``ssh`` for the proxy that has the key for it."""

    folder: Path
    port: int = field(factory=free_port)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start it and wait until it listens."""
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "host").exists():
            for name in ("host", "user"):
                command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
                subprocess.run(command, check=True, timeout=20)
            (folder / "authorized").write_text((folder / "user.pub").read_text())
            (folder / "known").write_text(f"[127.0.0.1]:{self.port} {(folder / 'host.pub').read_text()}")
            self._write_programs()
        Path("/run/sshd").mkdir(exist_ok=True)  # it changes its root to there
        with open(folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._listens, 15)

    def _write_programs(self) -> None:
        folder = self.folder
        settings = {
            "Port": str(self.port),
            "ListenAddress": "127.0.0.1",
            "HostKey": f"{folder}/host",
            "AuthorizedKeysFile": f"{folder}/authorized",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
        }
        (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        wanted = {
            "IdentityFile": f"{folder}/user",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": f"{folder}/known",
            "StrictHostKeyChecking": "yes",
        }
        (folder / "ssh_config").write_text("".join(f"{name} {value}\n" for name, value in wanted.items()))
        programs = folder / "bin"
        programs.mkdir()
        # The command that a user has configured in ~/.ssh/config, which is that of root here.
        ssh = programs / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
        ssh.chmod(0o755)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    @property
    def path(self) -> str:
        """``PATH`` of who is to reach it."""
        return f"{self.folder}/bin:{os.environ['PATH']}"

    def hang_up(self) -> None:
        """End it with all its connections."""
        if self._process is None:
            return
        children = subprocess.run(
            ["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        self._process.kill()
        self._process.wait(10)
        self._process = None
        for child in map(int, children):
            # Each connection has a process, and one of less privilege below it.
            subprocess.run(["pkill", "-KILL", "-P", str(child)], check=False)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


class Cable:
    """Passes connections on to a port until it is cut."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self._ends: list[socket.socket] = []
        self._listening: socket.socket | None = None

    def plug(self) -> None:
        """Listen."""
        listening = self._listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        listening.listen(64)
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def cut(self) -> None:
        """End all connections, and take no more."""
        listening, self._listening = self._listening, None
        if listening is not None:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
        ends, self._ends = self._ends, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            self._ends += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@define
class Hosts:
    """``local`` by a socket, ``rack`` by TLS, ``tower`` by ssh.

    :ivar cable: what leads to the engine of ``rack``.
    """

    folder: Path
    engines: dict[str, PrivateEngine]
    sshd: Sshd
    cable: Cable
    _options: dict[str, tuple[str, ...]] = field(factory=dict)

    @classmethod
    @contextmanager
    def make(cls, folder: Path) -> Iterator[Hosts]:
        """All of them, with the image of the demo server."""
        with ExitStack() as stack:
            cable = Cable(free_port())
            stack.callback(cable.cut)
            sshd = Sshd(folder / "ssh")
            sshd.start()
            stack.callback(sshd.hang_up)
            addresses = {
                name: f"198.18.{20 + number}.1/24" for number, name in enumerate(("local", "rack", "tower"))
            }
            hosts = cls(
                folder, {name: PrivateEngine(network=each) for name, each in addresses.items()}, sshd, cable
            )
            hosts._options["rack"] = hosts._tls()
            image = folder / "image.tar"
            save_image(image)
            for engine in hosts.engines.values():
                stack.callback(engine.close)

            def prepare(name: str) -> None:
                hosts.start(name)
                hosts.engines[name].load(image)

            with ThreadPoolExecutor(len(hosts.engines)) as pool:
                list(pool.map(prepare, hosts.engines))
            image.unlink()
            # An engine that ends waits for its containers, one after the other.
            stack.callback(hosts.clear)
            cable.plug()
            yield hosts

    def _tls(self) -> tuple[str, ...]:
        """Certificates for both sides; the options of the engine."""
        signer = authority()
        (self.folder / "ca.pem").write_bytes(signer.pem)
        issue("localhost", by=signer).write(self.folder, "server")
        issue("proxy", names=(), by=signer).write(self.folder, "client")
        issue("stranger", names=(), by=authority("others")).write(self.folder, "stranger")
        return (
            *("-H", f"tcp://127.0.0.1:{self.cable.target}", "--tlsverify"),
            *("--tlscacert", f"{self.folder}/ca.pem"),
            *("--tlscert", f"{self.folder}/server.pem", "--tlskey", f"{self.folder}/server.key"),
        )

    def start(self, name: str) -> None:
        """Start its engine, if it does not run."""
        if not self.engines[name].runs:
            self.engines[name].start(*self._options.get(name, ()))

    def recover(self) -> None:
        """Everything is there, and empty."""
        self.cable.cut()
        self.cable.plug()
        if self.sshd._process is None:
            self.sshd.start()
        for name in self.engines:
            self.start(name)
        self.clear()

    def clear(self) -> None:
        """Remove all containers."""
        for name, engine in self.engines.items():
            names = self.docker(name, "ps", "-aq").split() if engine.runs else ()
            if names:
                self.docker(name, "rm", "-f", "-v", *names)

    def docker(self, name: str, *arguments: str) -> str:
        """The docker command, at one of them."""
        return docker("-H", self.engines[name].host, *arguments)

    def running(self, container: str) -> list[str]:
        """The hosts on which a container of that name runs."""
        return [
            name
            for name, engine in self.engines.items()
            if engine.runs
            and self.docker(name, "ps", "--format", "{{.Names}}", "--filter", f"name=^{container}$")
        ]

    def settings(self, **gpus: Any) -> dict[str, Any]:
        """What llmproxy.yaml has for them."""
        tower = self.engines["tower"].host.removeprefix("unix://")
        files = {key: f"{self.folder}/{name}" for key, name in CLIENT.items()}
        return {
            "docker": {"host": self.engines["local"].host},
            "hosts": {
                "rack": {
                    "docker": f"tcp://localhost:{self.cable.port}",
                    "tls": files,
                    "address": RACK,
                    **({"gpus": gpus["rack"]} if "rack" in gpus else {}),
                },
                "tower": {"docker": f"ssh://root@127.0.0.1:{self.sshd.port}{tower}"},
            },
        }

    def unplug(self, name: str, container: str) -> None:
        """Its port leads nowhere from now on, while it goes on running: what passes it on is ended."""
        engine = self.engines[name]
        assert engine._dockerd is not None
        address = self.docker(
            name, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container
        )
        found = subprocess.run(
            ["pgrep", "-P", str(engine._dockerd.pid), "-f", f"container-ip {address} "],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for pid in map(int, found):
            os.kill(pid, signal.SIGKILL)


RACK = "127.0.0.2"
"""Where what runs on ``rack`` is reached.  Engines of one machine take the same ports of it in turn, and what
is sent to a host without power must not come to somebody else."""

CLIENT = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}


def model(name: str, **more: Any) -> dict[str, Any]:
    """A demo server whose container the proxy makes, on any host."""
    command = ["python3", "-m", "llmproxy.demo", "--host", "0.0.0.0", "--port", "8000"]
    return {
        "image": DEMO_IMAGE,
        "container": f"llmproxy-test-hosts-{name}",
        "args": [*command, "--model", f"{name}-model", *more.pop("arguments", ())],
        "port": 8000,
        "models": [f"{name}-model"],
        "gpu_memory": 0.6,
        "stop_grace": 3,
        **more,
    }
