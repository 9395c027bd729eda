"""Models that do not all fit on a GPU take turns on it: under load, beside those who interfere, and across
the end of the proxy.

Nothing is declared but names and short times: what each model needs is read from its container.  A wrong
schedule shows by itself, as a server of which vLLM would have died is noted in the GPU's folder; what else
has to hold is read from the proxy's events.  ``LLMPROXY_SHARING_MINUTES`` makes the loads longer, and ``-s``
shows the waits.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field, frozen

from tests.integration.docker_world import DockerWorld
from tests.integration.engine import require_docker
from tests.integration.proxy import Demo, Proxy, chat, content, demo, running
from tests.integration.sharing import (
    Events,
    Fault,
    Gpu,
    Heard,
    Load,
    Move,
    check_turns,
    evictions,
    longest,
    one_at_a_time,
    summary,
)
from tests.integration.world import until

MINUTES = float(os.environ.get("LLMPROXY_SHARING_MINUTES") or 0)
"""Length of each load; 0: as long as continuous integration has time for."""

LIMIT = int(240 + 60 * MINUTES)

DELAY = 1.0  # seconds that a demo server loads
STREAM = 3.0  # seconds of the longest answer
RESIDENCY = 2.0
MAX_WAIT = 3.0
IDLE = 5.0

START = DELAY + 5.0
"""Seconds that a start may take on a busy machine: the engine's part, an interpreter, and the delay."""

COOL_DOWN = 12.0
"""Seconds after a start that failed in which the next one is refused: 5, and 10 when that fails, too."""

BIG, BIGGER = 0.9, 0.92
"""vLLM's default before 0.32 and from then on: beside the former there is room for a sleeper."""

SHARES = {"a": BIGGER, "b": BIG, "c": 0.45, "d": 0.45, "e": 0.6}


def bound(lives: Iterable[Sequence[Move]]) -> float:
    """Seconds that a request may have waited at most, given how long this machine's starts and ends took.

    Who has waited for MAX_WAIT goes by the order of coming, so that each of the others has a turn before it
    once at most; a turn is a residency, the answers in flight then, an end and a start, and so is its own.
    """
    start = max(longest(moves, "starting", "waking") for moves in lives)
    end = max(longest(moves, "stopping", "falling_asleep") for moves in lives)
    return MAX_WAIT + len(SHARES) * (RESIDENCY + 1.2 * STREAM + end + start)


def fleet(kind: str, gpu: str, created: Collection[str], shares: Mapping[str, float]) -> dict[str, Demo]:
    """Two that need the whole GPU, two that fit together, and one that can sleep.

    What they need is said for processes, and read from containers.

    :param gpu: the folder, as the servers see it.
    :param created: those whose containers are left to the proxy.
    """
    common = {
        "idle": f"{IDLE}s",
        "sleep_idle": "10s",
        "min_residency": f"{RESIDENCY}s",
        "stop_grace": "10s",
    }
    backends: dict[str, Demo] = {}
    for route, share in shares.items():
        arguments = ["--gpu", gpu, "--gpu-memory-utilization", str(share), "--start-delay", str(DELAY)]
        settings: dict[str, Any] = {"plain": True} if kind == "docker" else {"gpu_memory": share}
        if route in created:
            settings["created"] = True
        if route == "e":
            arguments.append("--enable-sleep-mode")
            settings["environment"] = {"VLLM_SERVER_DEV_MODE": "1"}
        backends[route] = demo(*arguments, **common, **settings)
    return backends


@define
class Shared:
    """A proxy, the GPU that its models share, and what it told in each of its lives."""

    proxy: Proxy
    gpu: Gpu
    lives: list[list[Move]] = field(factory=list)
    _events: Events | None = field(init=False, default=None)

    def start(self) -> None:
        """Begin a life."""
        self.proxy.start()
        self._events = Events(self.proxy)

    def kill(self) -> None:
        """End it as the kernel would."""
        self.proxy.kill()
        self.hear()

    def hear(self) -> None:
        """Take what it told; nothing more is heard of this life."""
        if self._events is not None:
            self.lives.append(self._events.stop())
            self._events = None

    @property
    def world(self) -> DockerWorld:
        """The containers."""
        assert isinstance(self.proxy.world, DockerWorld)
        return self.proxy.world

    def tell(self, what: str, load: Load) -> None:
        """Print how it went."""
        self.hear()
        moves = [move for life in self.lives for move in life]
        starts = sum(move.new == "starting" and not move.decision for move in moves)
        wakes = sum(move.new == "waking" and not move.decision for move in moves)
        print(
            f"\n{what}: {load.seconds:g} s, {starts} starts, {wakes} wakes,"
            f" {evictions(moves)} left for another one, nobody may wait for {bound(self.lives):.1f} s"
            f"\n{summary(load.heard)}"
        )
        for fault in self.gpu.faults():
            print(f"  {fault}")

    def check_order(self) -> None:
        """One at a time, in each life."""
        for life in self.lives:
            assert not one_at_a_time(life, SHARES)


@contextmanager
def sharing(
    kind: str,
    folder: Path,
    *,
    more: Mapping[str, Demo] = {},
    created: Collection[str] = (),
    **shares: float,
) -> Iterator[Shared]:
    """A proxy with :func:`fleet`; ended with all that it started.

    Containers see the folder of the proxy as ``/starts``.

    :param shares: those that are not as usual.
    """
    gpu = Gpu.make(folder / "gpu")
    place = "/starts/gpu" if kind == "docker" else str(gpu.folder)
    backends = {**fleet(kind, place, created, {**SHARES, **shares}), **more}
    scheduler = {"max_wait_before_drain": f"{MAX_WAIT}s"}
    with running(kind, folder, backends, start=False, scheduler=scheduler) as proxy:
        shared = Shared(proxy, gpu)
        try:
            shared.start()
            yield shared
        finally:
            shared.hear()


def states(proxy: Proxy) -> set[str]:
    """Those that the models which share the GPU are in."""
    return {proxy.state(route) for route in SHARES}


def clients(load: Load, *, streams: bool = True) -> list[Any]:
    """Those who ask in turns, in bursts, and for long answers of each."""
    found = [load.in_turns("a", "b"), load.in_turns("e", "c"), load.in_bursts(list(SHARES))]
    return found + [load.in_streams(route, STREAM, 3.0) for route in SHARES if streams]


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("kind", ["process", pytest.param("docker", marks=pytest.mark.docker)])
def test_load(kind: str, tmp_path: Path) -> None:
    """Whatever is asked for at once, everybody is answered in turn, and no two get into each other's way."""
    if kind == "docker":
        require_docker("demo")
    # It has no flags of a GPU, so that it needs none and waits for nobody.
    more = {"free": demo(idle="1s")}
    with sharing(kind, tmp_path, more=more, a=BIGGER if kind == "docker" else BIG) as shared:
        proxy = shared.proxy
        load = Load(proxy.port, 60 * MINUTES or (15.0 if kind == "docker" else 8.0))
        load.run(*clients(load), load.in_streams("free", 0.5, 2.0))
        # Left alone, each goes or falls asleep by itself.
        until(lambda: states(proxy) <= {"absent", "sleeping"}, IDLE + 15, every=0.5)
        shared.tell(f"load over {kind}", load)
        assert shared.gpu.faults() == []
        check_turns([one for one in load.heard if one.route in SHARES], bound(shared.lives))
        check_turns([one for one in load.heard if one.route == "free"], START)
        shared.check_order()


# -- somebody else interferes ---------------------------------------------------------------------------


@frozen
class Kill:
    """What somebody else did to a container.

    :ivar state: the state that the proxy showed before.
    """

    at: float
    over: float
    route: str
    verb: str
    state: str


def excused(one: Heard, kills: Iterable[Kill], faults: Iterable[Fault]) -> bool:
    """Whether that a request was not answered comes from what somebody else did."""
    failed = one.code == "backend_start_failed"
    for kill in kills:
        if kill.route == one.route:
            # It was in flight, or it waited for the start that was ended so, or came while that cooled down.
            in_flight = one.asked <= kill.over and kill.at <= one.ended <= kill.over + 2
            starts = kill.state != "ready" or kill.verb == "rm"
            cools = failed and starts and kill.at <= one.ended <= kill.over + COOL_DOWN
            if in_flight or cools:
                return True
    return failed and any(
        fault.who == f"{one.route}-model" and fault.at - 1 <= one.ended <= fault.at + COOL_DOWN
        for fault in faults
    )


def goes_on(proxy: Proxy, load: Load) -> None:
    """Whoever was not answered the last time is answered in the end, also where a start failed."""
    last = {one.route: one for one in load.heard}
    for route in [route for route in SHARES if not last[route].good]:
        until(partial(answers, proxy, route), 40, every=1)


def answers(proxy: Proxy, route: str) -> bool:
    """Whether it does."""
    return proxy.chat(route).status == 200


@pytest.mark.docker
@pytest.mark.timeout(LIMIT)
def test_kills(tmp_path: Path) -> None:
    """Containers that are killed, stopped and removed by others cost what was in flight there, and a start
    beside them at most; everybody else is served as if nothing were."""
    require_docker("demo")
    kills: list[Kill] = []
    with sharing("docker", tmp_path, created=("b", "d")) as shared:
        proxy, world = shared.proxy, shared.world
        load = Load(proxy.port, 60 * MINUTES or 25.0, seed=2)

        def interfere() -> None:
            found = {route: proxy.state(route) for route in SHARES}
            there = [route for route, state in found.items() if state not in ("absent", "failed")]
            if not there:
                return
            route = load.random.choice(there)
            verb = load.random.choice(("kill", "stop", "rm") if route in ("b", "d") else ("kill", "stop"))
            began = time.time()
            world.docker(verb, *(("-f",) if verb == "rm" else ()), world.name(route), check=False)
            kills.append(Kill(began, time.time(), route, verb, found[route]))

        load.run(
            *clients(load),
            load.meanwhile(3.0, lambda: asyncio.to_thread(interfere)),
        )
        faults = shared.gpu.faults()
        goes_on(proxy, load)
        shared.tell("kills", load)
        print("\n".join(f"  {kill}" for kill in kills))
        assert len(kills) >= 3
        check_turns(
            load.heard,
            bound(shared.lives) + COOL_DOWN,
            lambda one: excused(one, kills, faults),
        )
        for fault in shared.gpu.faults():
            beside = [kill for kill in kills if kill.at - 0.5 <= fault.at <= kill.over + START]
            assert fault.kind == "profiling", fault
            assert [kill for kill in beside if fault.who != f"{kill.route}-model"], (fault, kills)
        shared.check_order()


# -- the proxy ends -------------------------------------------------------------------------------------


@pytest.mark.docker
@pytest.mark.timeout(LIMIT)
def test_the_proxy_is_killed(tmp_path: Path) -> None:
    """A proxy that is killed in the midst of a start, of an end and of a drain goes on where it was when it
    is started again: what fitted before still counts, and whoever asks is served."""
    require_docker("demo")
    away: list[tuple[float, float]] = []
    with sharing("docker", tmp_path, a=BIG) as shared:
        proxy = shared.proxy
        load = Load(proxy.port, 60 * MINUTES or 30.0, seed=3)
        moments = [{"starting"}, {"stopping", "falling_asleep"}, {"draining"}]

        def kill() -> None:
            wanted = moments[len(away) % len(moments)]
            deadline = time.monotonic() + 15
            while not states(proxy) & wanted and time.monotonic() < deadline:
                time.sleep(0.02)
            began = time.time()
            shared.kill()
            time.sleep(load.random.uniform(0, 1))
            shared.start()
            away.append((began, time.time()))

        load.run(*clients(load), load.meanwhile(6.0, lambda: asyncio.to_thread(kill)))
        goes_on(proxy, load)
        shared.tell("the proxy is killed", load)
        print(f"  away for {[round(end - began, 2) for began, end in away]} s")
        assert len(away) >= 2
        assert shared.gpu.faults() == []
        check_turns(
            load.heard,
            bound(shared.lives),
            lambda one: any(one.asked <= end and one.ended >= began for began, end in away),
        )
        shared.check_order()


def asked(proxy: Proxy, route: str) -> str:
    """What it says, which has to be an answer."""
    answer = proxy.chat(route, stream=True)
    assert answer.status == 200, answer
    assert answer.body.endswith(b"data: [DONE]\n\n")
    return content(answer.body)


@pytest.mark.docker
def test_adoption(tmp_path: Path) -> None:
    """What was ready, what slept and what was starting is found so by the next life of the proxy, and a
    sleeper is awake before it serves."""
    require_docker("demo")
    with sharing("docker", tmp_path) as shared:
        proxy = shared.proxy
        for route in "ecd":
            assert asked(proxy, route).startswith("You said")
        before = {"e": "sleeping", "c": "ready", "d": "ready"}
        assert {route: proxy.state(route) for route in before} == before
        shared.kill()
        shared.start()
        for route, state in before.items():
            proxy.until_state(route, state, seconds=5)
        assert asked(proxy, "e").startswith("You said")
        assert proxy.world.starts("e") == 1

        with proxy.wire() as wire:
            wire.post("/a/v1/chat/completions", json.dumps(chat("a-model")).encode())
            proxy.until_state("a", "starting")
            until(lambda: proxy.world.starts("a"))
            shared.kill()
        shared.start()
        # By now it may be ready.
        assert "a: absent -> starting (found running)" in proxy.log()
        # It waits for its turn, however new the proxy is.
        assert asked(proxy, "c").startswith("You said")
        assert proxy.world.starts("a") == 1
        shared.hear()
        assert shared.gpu.faults() == []
        shared.check_order()


# -- sleep goes wrong -----------------------------------------------------------------------------------


@pytest.mark.docker
@pytest.mark.parametrize("fault", ["sleep-500", "wake-500"])
def test_sleep_faults(tmp_path: Path, fault: str) -> None:
    """A sleep or a wake that fails becomes an end and a start, of which the client sees nothing."""
    require_docker("demo")
    with sharing("docker", tmp_path) as shared:
        proxy = shared.proxy
        assert asked(proxy, "e").startswith("You said")
        assert proxy.ask("POST", "/e/demo/sleep-faults", fault.encode()).status == 200
        assert asked(proxy, "c").startswith("You said")
        proxy.until_state("e", "absent" if fault == "sleep-500" else "sleeping")
        assert asked(proxy, "e").startswith("You said")
        assert proxy.world.starts("e") == 2
        shared.hear()
        moves = [
            (move.old, move.new) for move in shared.lives[0] if move.backend == "e" and not move.decision
        ]
        failed = ("falling_asleep", "stopping") if fault == "sleep-500" else ("waking", "stopping")
        assert failed in moves
        assert shared.gpu.faults() == []
        shared.check_order()
