"""Where scenarios play: the peers, the load generator, and the rounds in which they take turns."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from bench import peers
from bench.figures import Figure, Goal, Round
from bench.peers import Peer, Tools
from bench.processes import ROOT, on_cores, others_cores
from bench.traffic import CHAT

__all__ = ["FULL", "QUICK", "Plan", "Scenario", "Stage"]

LOAD_LIMIT = 60.0
"""Seconds that a load may take beyond its own length."""

MEGABYTE = 1e6
KILOBYTE = 1e3
MICRO = 1e6
MILLI = 1e3


@frozen
class Plan:
    """How much is measured.

    :ivar rounds: turns of all peers; ``repeats`` of what hardly differs from one time to the next.
    :ivar seconds: the measured window of each load; ``warm_up`` goes before.
    :ivar connections: of the small requests.
    :ivar streams: at ``rate`` tokens a second each; ``crowd`` of them at ``crowd_rate``.
    :ivar starts: cold starts for the hand-over.
    :ivar delays: shortest and longest time (seconds) until the started server listens.
    :ivar waiters: of the hand-over to many; ``held`` of the memory.
    :ivar open_streams: of the memory, at ``open_rate`` tokens a second each.
    :ivar idle: seconds for which an idle proxy is watched.
    :ivar backends: of a large configuration.
    :ivar download: bytes of the large answer; ``upload`` of the large request.
    :ivar churn: seconds; 0: none.
    """

    rounds: int = 5
    repeats: int = 2
    seconds: float = 2.0
    warm_up: float = 0.7
    connections: tuple[int, int, int] = (1, 16, 256)
    streams: int = 50
    rate: float = 50.0
    crowd: int = 1000
    crowd_rate: float = 10.0
    starts: int = 30
    delays: tuple[float, float] = (0.2, 1.5)
    waiters: int = 1000
    held: int = 10_000
    open_streams: int = 2000
    open_rate: float = 0.5
    idle: float = 20.0
    backends: int = 1000
    download: int = 1 << 30
    upload: int = 64 << 20
    churn: float = 600.0


FULL = Plan()
QUICK = Plan(
    rounds=1,
    repeats=1,
    seconds=0.2,
    warm_up=0.05,
    connections=(1, 4, 16),
    streams=5,
    crowd=10,
    starts=2,
    delays=(0.05, 0.1),
    waiters=20,
    held=20,
    open_streams=10,
    open_rate=20.0,
    idle=0.5,
    backends=20,
    download=1 << 20,
    upload=1 << 20,
    churn=1.0,
)


@define
class Stage:
    """What a scenario is given.

    :ivar work: a folder for settings and logs.
    :ivar wanted: names of the peers to be measured.
    :ivar tell: told of the progress, line by line.
    :ivar files: files that a process may open.
    :ivar on_start: called with each llmproxy that is to be measured, once it answers (for a profiler).
    :ivar notes: remarks that belong below the table.
    """

    plan: Plan
    work: Path
    tools: Tools
    wanted: Sequence[str]
    tell: Callable[[str], None]
    files: int
    on_start: Callable[[Peer], None] | None = None
    notes: list[str] = field(factory=list)
    _stack: ExitStack = field(factory=ExitStack)
    _backend: int | None = None
    _peers: list[Peer] | None = None

    def close(self) -> None:
        """End every process."""
        self._stack.close()

    @property
    def backend(self) -> int:
        """The port of the canned backend."""
        if self._backend is None:
            self._backend = self._stack.enter_context(peers.backend(self.work))
        return self._backend

    @property
    def peers(self) -> list[Peer]:
        """All peers, started once for the whole run."""
        if self._peers is None:
            self._peers = []
            for name in self.wanted:
                context = peers.start(name, self.tools, self.backend, self.folder("peers"))
                if context is not None:
                    peer = self._stack.enter_context(context)
                    self.started(peer)
                    self._peers.append(peer)
        return self._peers

    def started(self, peer: Peer) -> None:
        """Tell whoever wants to look into llmproxy that it runs."""
        if peer.name == "llmproxy" and self.on_start is not None:
            self.on_start(peer)

    @contextmanager
    def llmproxy(
        self, backends: Mapping[str, Mapping[str, Any]], work: Path, *, pinned: bool = True
    ) -> Iterator[Peer]:
        """An llmproxy with other backends; see :func:`bench.peers.llmproxy`."""
        with peers.llmproxy(backends, work, reactor=self.tools.reactor, pinned=pinned) as proxy:
            self.started(proxy)
            yield proxy

    def folder(self, name: str) -> Path:
        """A folder of its own."""
        path = self.work / name
        path.mkdir(exist_ok=True)
        return path

    def rounds(self, measure: Callable[[Peer], dict[str, float]]) -> list[Round]:
        """Every peer in turn, round after round, each round beginning with another peer."""
        found = []
        for number in range(self.plan.rounds):
            turn = number % max(1, len(self.peers))
            round_: Round = {}
            for peer in (*self.peers[turn:], *self.peers[:turn]):
                round_[peer.name] = measure(peer)
            found.append(round_)
            self.tell(f"  round {number + 1} of {self.plan.rounds}")
        return found

    def load(
        self, peer: Peer, kind: str, *, query: str = "", path: str | None = None, **options: object
    ) -> dict[str, float]:
        """Run the load generator once, by the plan where ``options`` do not say otherwise.

        :raises RuntimeError: the peer answered wrongly, or not in time.
        """
        with self.loading(peer, kind, query=query, path=path, **options) as process:
            seconds = float(str(options.get("seconds", self.plan.seconds)))
            return finish(process, peer, kind, seconds * 3 + LOAD_LIMIT)

    def loading(
        self, peer: Peer, kind: str, *, query: str = "", path: str | None = None, **options: object
    ) -> _Load:
        """Start the load generator; to be used as a context, which ends it."""
        settings: dict[str, object] = {"seconds": self.plan.seconds, "warm_up": self.plan.warm_up, **options}
        watch = settings.pop("watch", peer.pids)
        assert isinstance(watch, list)
        command = [sys.executable, "-m", "bench.load", kind, "--port", str(peer.port)]
        command += ["--path", (peer.prefix + CHAT if path is None else path) + query]
        for name, value in settings.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        for pid in watch:
            command += ["--watch", str(pid)]
        return _Load(command)


class _Load:
    """A running load generator, ended with the block."""

    def __init__(self, command: list[str]) -> None:
        self._command = command

    def __enter__(self) -> subprocess.Popen[str]:
        with on_cores(others_cores()):
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        return self._process

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def finish(process: subprocess.Popen[str], peer: Peer, kind: str, limit: float) -> dict[str, float]:
    """Wait for a load generator and read its result.

    :param limit: seconds.
    :raises RuntimeError: it failed, or is not over in time.
    """
    try:
        told, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the {kind} through {peer.name} did not end within {limit:g} s") from None
    if process.returncode != 0:
        raise RuntimeError(f"the {kind} through {peer.name} failed: {errors.strip()[-1000:]}")
    result: dict[str, float] = json.loads(told)
    return result


def until(what: str, true: Callable[[], bool], limit: float, every: float = 0.1) -> None:
    """Wait until something is so.

    :raises RuntimeError: it is not within ``limit`` seconds.
    """
    deadline = time.monotonic() + limit
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {limit:g} s")
        time.sleep(every)


@frozen
class Scenario:
    """Some figures that are measured together.

    :ivar name: as in ``--only``.
    :ivar about: one line.
    :ivar run: measures; the figures of each round.
    """

    name: str
    about: str
    figures: tuple[Figure, ...]
    goals: tuple[Goal, ...]
    run: Callable[[Stage], list[Round]]
