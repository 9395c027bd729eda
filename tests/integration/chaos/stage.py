"""The proxy under test and its world: models that do not all fit, one that sleeps, one that is pinned."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from attrs import define, field

from tests.integration.chaos.engine_line import EngineLine
from tests.integration.chaos.memory import MemoryGroup, NoMemoryGroup, memory_group
from tests.integration.chaos.traffic import Records
from tests.integration.chaos.watch import Seen, Watch, look
from tests.integration.chaos.windows import Windows
from tests.integration.docker_world import DockerWorld
from tests.integration.private_engine import PrivateEngine
from tests.integration.proxy import Demo, Proxy, demo
from tests.integration.world import ProcessWorld

__all__ = ["GPU_ROUTES", "ROUTES", "SHARES", "SMALL", "BrokenOff", "Stage"]

Kind = Literal["process", "docker"]

SHARES = {"alpha": 0.5, "beta": 0.5, "nap": 0.45, "pin": 0.1}
"""Of one GPU: alpha, beta and nap do not fit beside each other; nap can sleep, and then fits beside one of
them; pin is pinned."""

GPU_ROUTES = tuple(SHARES)
ROUTES = (*GPU_ROUTES, "free")

SMALL = 8 << 20
"""Bytes of the disk that its state is on."""

_FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


class BrokenOff(Exception):
    """It is over before its time."""


class _World(DockerWorld):
    """Containers of an engine that the proxy reaches over a line of ours."""

    line: EngineLine

    def environment(self) -> dict[str, str]:
        return {"DOCKER_HOST": self.line.host}


@define(eq=False)
class Stage:
    """All of it, from the first start to the last end.

    :ivar token: a word in the command line of each backend, by which its processes are found.
    :ivar absent: what cannot be done here, and why.
    :ivar small_disk: its state is on a disk that is soon full.
    """

    kind: Kind
    folder: Path
    token: str
    engine: PrivateEngine | None = None
    small_disk: bool = True
    windows: Windows = field(factory=Windows)
    records: Records = field(factory=Records)
    absent: dict[str, str] = field(factory=dict)
    over: threading.Event = field(factory=threading.Event)
    proxy: Proxy = field(init=False)
    watch: Watch = field(init=False)
    memory: MemoryGroup = field(init=False)
    line: EngineLine | None = field(init=False, default=None)
    generation: int = field(init=False, default=0)
    starting: threading.RLock = field(init=False, factory=threading.RLock)
    _stack: ExitStack = field(init=False, factory=ExitStack)

    # -- making it --------------------------------------------------------------------------------

    @contextmanager
    def set_up(self) -> Iterator[Stage]:
        """With all of it; nothing is left in any case."""
        with self._stack:
            self._make()
            yield self

    def _make(self) -> None:
        folder = self.folder
        (folder / "gpu").mkdir()
        (folder / "gpu").chmod(0o777)
        (folder / "tmp").mkdir()
        (folder / "starts").mkdir()
        (folder / "journal").touch()
        (folder / "journal").chmod(0o666)
        self._small_disk()
        self._memory()
        self.proxy = Proxy(folder, self._world())
        self._stack.callback(self._end_all)
        self.proxy.environment = {"TMPDIR": str(folder / "tmp"), **self._clock()}
        self.configure()
        held = {route: share for route, share in SHARES.items() if route != "nap"}  # asleep it holds little
        self.watch = Watch(self.look, held, self.over)
        self._stack.callback(self.over.set)

    def _world(self) -> ProcessWorld | DockerWorld:
        if self.kind == "process":
            return ProcessWorld(self.folder)
        assert self.engine is not None
        # A socket's path may have 107 bytes.
        self.line = EngineLine(self.engine.folder / f"{self.token}.sock", self.engine.folder / "docker.sock")
        self._stack.callback(self.line.close)
        world = _World(self.folder, host=self.engine.host)
        world.line = self.line
        return world

    def _small_disk(self) -> None:
        state = self.folder / "state"
        state.mkdir()
        if not self.small_disk:
            return
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL},mode=0777", "chaos", str(state)]
        if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            self._stack.callback(partial(subprocess.run, ["umount", "--lazy", str(state)], check=False))
        else:
            self.absent["disk full"] = "a file system of its own cannot be mounted here"

    def _memory(self) -> None:
        try:
            self.memory = memory_group(f"llmproxy-chaos-{self.token}")
        except NoMemoryGroup as cause:
            self.absent["memory"] = str(cause)
        else:
            self._stack.callback(self.memory.close)

    def _clock(self) -> dict[str, str]:
        if not _FAKETIME.exists():
            self.absent["clock"] = "there is no libfaketime here"
            return {}
        self.step_clock(0)
        return {
            "LD_PRELOAD": str(_FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self.folder / "clock"),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "0",
        }

    def step_clock(self, seconds: int) -> None:
        """From now on the proxy's time of day is off by so much."""
        file = self.folder / "clock"
        file.with_suffix(".new").write_text(f"{seconds:+d}s\n")
        file.with_suffix(".new").replace(file)

    # -- its configuration ------------------------------------------------------------------------

    def backends(self) -> dict[str, Demo]:
        """By route."""
        shared = "/starts" if self.kind == "docker" else str(self.folder)
        found = {}
        for route in ROUTES:
            arguments = ["--start-delay", "0.3", f"--chaos={self.token}", "--keep-alive", "5"]
            environment = {"LLMPROXY_DEMO_JOURNAL": f"{shared}/journal", "LD_PRELOAD": ""}
            settings: dict[str, Any] = {
                "idle": "2s",
                "min_residency": "1s",
                "stop_grace": "6s",
                "start_timeout": "30s",
                "max_wait": "40s",
                "heartbeat_after": "1s",
                "heartbeat_every": "0.5s",
                "sleep_idle": "2s",
                "abandon_idle": "2s",
            }
            if self.kind == "docker":
                settings |= {"created": True, "plain": True}
            if route in SHARES:
                share = SHARES[route]
                arguments += ["--gpu", f"{shared}/gpu", "--gpu-memory-utilization", str(share)]
                settings["gpu_memory"] = share
            elif self.kind == "docker":
                settings["gpu_memory"] = 0
            if route == "nap":
                arguments += ["--enable-sleep-mode"]
                environment["VLLM_SERVER_DEV_MODE"] = "1"
            if route == "pin":
                settings |= {"pinned": True, "idle": 0}
            if route == "free":
                environment["CHAOS_GENERATION"] = str(self.generation)
            found[route] = demo(*arguments, environment=environment, **settings)
        return found

    def configure(self) -> None:
        """Write llmproxy.yaml as it is to be."""
        self.proxy.configure(
            self.backends(),
            state_dir=str(self.folder / "state"),
            gpus={"0": {"memory": "24GiB", "reserve": 0}},
            host_memory_for_sleep="32GiB",
            scheduler={"max_wait_before_drain": "2s"},
            drain="10s",
        )

    def spoil(self) -> None:
        """Write one that is no good."""
        told = yaml.safe_load(self.proxy.file.read_text())
        told["backends"]["alpha"]["idle"] = "for ever"
        self.proxy.file.write_text(yaml.safe_dump(told))

    # -- looking at it ----------------------------------------------------------------------------

    def look(self) -> Seen:
        """What runs now."""
        return look(self.token, str(self.proxy.file))

    def pids(self, route: str) -> Sequence[int]:
        """The processes of a backend."""
        return self.look().backends.get(route, ())

    def journal(self) -> list[dict[str, Any]]:
        """What the backends have written down."""
        lines = (self.folder / "journal").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def containers(self) -> list[str]:
        """Names of all that there are."""
        world = self.proxy.world
        assert isinstance(world, DockerWorld)
        return world.docker("ps", "-a", "--format", "{{.Names}}", "--filter", f"name={world.prefix}").split()

    def ailing(self, route: str) -> str | None:
        """Where a backend is told to be ill; None: it does not run, or is not ready."""
        ready = [
            each for each in self.journal() if each["model"] == f"{route}-model" and each["what"] == "ready"
        ]
        if not ready or not self.pids(route):
            return None
        address = "127.0.0.1"
        world = self.proxy.world
        if isinstance(world, DockerWorld):
            address = world.look(route, ".NetworkSettings.IPAddress")
        return f"http://{address}:{ready[-1]['port']}/demo/ail"

    def ail(self, url: str, **what: Any) -> None:
        """Have a backend be ill for some seconds, behind the proxy's back."""
        asked = urllib.request.Request(url, json.dumps(what).encode(), {"Content-Type": "application/json"})
        with suppress(OSError), urllib.request.urlopen(asked, timeout=3):
            pass

    # -- the proxy --------------------------------------------------------------------------------

    def start_proxy(self, seconds: float = 40.0) -> None:
        """Start it where none runs, and wait until it answers."""
        with self.starting:
            self.rest(0)
            if self.proxy.process is not None:
                self.proxy.process.wait(10)
            self.proxy.start(seconds=seconds)

    def serves(self) -> bool:
        """Whether it answers, whatever process of it does."""
        with suppress(OSError):
            return self.proxy.ask("GET", "/healthz", key=None).status == 200
        return False

    def rest(self, seconds: float) -> None:
        """Do nothing for so long.

        :raises BrokenOff: all of it has been broken off, and nothing more is to be begun.
        """
        if self.over.wait(seconds):
            raise BrokenOff

    def signal(self, number: int) -> int | None:
        """Send it to the process of the proxy that came last; its process id."""
        # A backend that has just been forked has the proxy's command line for a moment.
        before = self.look().proxies
        time.sleep(0.1)
        proxies = [pid for pid in self.look().proxies if pid in before]
        if not proxies:
            return None
        with suppress(ProcessLookupError):
            os.kill(proxies[-1], number)
        return proxies[-1]

    def gone(self, seconds: float) -> bool:
        """Wait until there is no process of it."""
        deadline = time.monotonic() + seconds
        while self.look().proxies:
            if self.proxy.process is not None:
                self.proxy.process.poll()
            if time.monotonic() > deadline:
                return False
            self.rest(0.05)
        return True

    def limit_descriptors(self, pid: int, more: int | None) -> None:
        """Let it have so many more than it has, or as many as ever."""
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        soft = hard if more is None else len(os.listdir(f"/proc/{pid}/fd")) + more
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(soft, hard), hard))

    def _end_all(self) -> None:
        self.over.set()
        # Whoever holds it is about to start one; who gets it later does not.
        held = self.starting.acquire(timeout=60)
        try:
            self._kill_all()
        finally:
            if held:
                self.starting.release()

    def _kill_all(self) -> None:
        for _ in range(100):
            seen = self.look()
            pids = [*seen.proxies, *(pid for each in seen.backends.values() for pid in each)]
            if self.kind == "docker":
                pids = list(seen.proxies)
            if not pids:
                break
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        if self.proxy.process is not None:
            self.proxy.process.kill()
            self.proxy.process.wait(10)
        if self.engine is not None and not self.engine.runs:
            self.engine.start()
        self.proxy.world.close()
