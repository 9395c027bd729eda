"""A second Docker engine that tests may kill and restart, beside the one that everybody uses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from attrs import define, field

from tests.integration.engine import DEMO_IMAGE, TEST_LABEL, docker, skip_or_fail, why_no_docker
from tests.integration.world import until

__all__ = ["PrivateEngine", "require_private_engine", "save_image", "why_no_private_engine"]


def why_no_private_engine() -> str | None:
    """Why a second engine cannot be run here, if so: it takes root and the programs themselves, which is not
    where Docker Desktop or a socket of another machine is all there is."""
    if os.geteuid() == 0 and shutil.which("dockerd") and shutil.which("containerd") and shutil.which("ip"):
        return why_no_docker("demo")
    return "a second Docker engine needs root, dockerd, containerd and ip"


def require_private_engine() -> None:
    """Skip the test where a second engine cannot be run.  Fail it in continuous integration."""
    skip_or_fail(why_no_private_engine())


@define
class PrivateEngine:
    """One ``dockerd`` and one ``containerd`` with sockets, data and run-time state of their own.

    They are two services, as packages install them, so that one outlives the other.  The engine touches
    no firewall rules, which would be the other engine's, too, and has a bridge of its own that nobody uses:
    started with ``--bridge=none`` it would delete the default bridge, which is the other engine's.  Its
    containers are on the host's network, or on that bridge, where the host reaches them.

    :ivar network: the bridge's address.  Of several engines at a time each needs another one; those that are
        for benchmarks (RFC 2544) are nobody else's, while those for documentation have been seen in use.
    """

    # A socket's path may have 107 bytes; pytest's folders may be deeper.
    folder: Path = field(factory=lambda: Path(tempfile.mkdtemp(prefix="llmproxy-engine-")))
    network: str = "198.18.19.1/24"
    _bridge: str = field(factory=lambda: f"llmpt{uuid4().hex[:8]}")
    _dockerd: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _containerd: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _reserved: bool = field(default=False, init=False)

    @property
    def host(self) -> str:
        """In ``DOCKER_HOST`` form."""
        return f"unix://{self.folder}/docker.sock"

    def start(self, *options: str) -> None:
        """Start it and wait until it answers."""
        folder = self.folder
        if self._containerd is None or self._containerd.poll() is not None:
            config = folder / "containerd.toml"
            config.write_text(f'disabled_plugins = ["cri"]\n[grpc]\naddress = "{folder}/containerd.sock"\n')
            roots = ("--root", f"{folder}/containerd", "--state", f"{folder}/containerd-state")
            self._containerd = self._spawn("containerd", "--config", str(config), *roots)
            until((folder / "containerd.sock").exists, 30)
        if not self._reserved:
            option = f"com.docker.network.bridge.name={self._bridge}"
            docker("network", "create", "--label", TEST_LABEL, "--opt", option, self._bridge)
            self._reserved = True
        (folder / "pid").unlink(missing_ok=True)  # left by one that was killed
        self._make_bridge()
        isolated = (f"--bridge={self.bridge}", "--iptables=false", "--ip-forward=false", "--ip-masq=false")
        places = (
            *("--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"),
            *("--pidfile", f"{folder}/pid", "--containerd", f"{folder}/containerd.sock"),
        )
        self._dockerd = self._spawn("dockerd", *isolated, *places, "-H", self.host, *options)
        until(self._answers, 40)

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _answers(self) -> bool:
        assert self.runs, (self.folder / "log").read_text()[-2000:]
        ask = ["docker", "-H", self.host, "version"]
        try:
            return subprocess.run(ask, capture_output=True, timeout=5, check=False).returncode == 0
        except subprocess.TimeoutExpired:
            return False  # it listens before it has looked at what it left running

    @property
    def runs(self) -> bool:
        """Whether there is a process of it."""
        return self._dockerd is not None and self._dockerd.poll() is None

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self._dockerd is not None
        self._dockerd.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it by that signal, and wait."""
        if self._dockerd is not None and self.runs:
            self.send(number)
            self._dockerd.wait(60)

    def lose(self) -> None:
        """As if its machine had lost its power: it, and all that it runs, is gone at once."""
        assert self._dockerd is not None
        assert self._containerd is not None
        own = [self._dockerd.pid, self._containerd.pid]
        shims = [pid for pid in _processes() if f"{self.folder}/containerd.sock" in _command_of(pid)]
        for pid in (*own, *_below([*own, *shims]), *shims):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._dockerd.wait(30)
        self._containerd.wait(30)

    def load(self, saved: Path | None = None) -> None:
        """Give it the image of the demo server.

        :param saved: where that has been saved already.
        """
        image = saved or self.folder / "image.tar"
        if saved is None:
            save_image(image)
        load = ["docker", "-H", self.host, "load", "--quiet", "--input", str(image)]
        subprocess.run(load, stdout=subprocess.DEVNULL, timeout=240, check=True)
        if saved is None:
            image.unlink()

    @property
    def bridge(self) -> str:
        """Name of its bridge; an interface's may have 15 bytes."""
        return f"llmp{os.getpid()}{self.network.split('.')[2]}"

    def _make_bridge(self) -> None:
        if not Path(f"/sys/class/net/{self.bridge}").exists():
            # One without an address of its own has that of a container's line, and another one when that
            # container ends: what the others send to the host is lost until they ask where it is.
            address = "02:42:" + ":".join(
                f"{int(part):02x}" for part in self.network.split("/")[0].split(".")
            )
            _ip("link", "add", self.bridge, "address", address, "type", "bridge")
            _ip("addr", "add", self.network, "dev", self.bridge)
            _ip("link", "set", self.bridge, "up")

    def close(self) -> None:
        """End it with all that it has."""
        if not self.runs and self._dockerd is not None:
            self.start()  # only it can end what it left running
        self.end()
        if self._containerd is not None:
            self._containerd.terminate()
            self._containerd.wait(30)
            docker("network", "rm", self._bridge, check=False)
        # An engine that was killed leaves them behind.
        for mounted in ("exec/netns/default", "data"):
            subprocess.run(["umount", "--lazy", str(self.folder / mounted)], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)


def save_image(file: Path) -> None:
    """Save the image of the demo server, for engines that have not got it."""
    subprocess.run(["docker", "save", "--output", str(file), DEMO_IMAGE], timeout=240, check=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def _parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _below(parents: Sequence[int]) -> list[int]:
    """Their children, and those of these."""
    children = [pid for pid in _processes() if _parent_of(pid) in parents]
    return [*children, *_below(children)] if children else []
