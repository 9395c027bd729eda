"""What goes wrong: each fault is begun, goes on for a moment, and is over when its function returns.

A window (:mod:`tests.integration.chaos.windows`) tells what it excuses. What is meant to be unseen by clients
excuses nothing: a backend or a proxy that stands still for a moment, an upgrade, a reload with a good or a
bad file, a clock that is stepped, an engine's API that is slow."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

from attrs import frozen

from tests.integration.chaos.stage import GPU_ROUTES, ROUTES, SMALL, Stage
from tests.integration.chaos.windows import ALL, BACKEND, TERMED
from tests.integration.docker_world import DockerWorld
from tests.integration.proxy import ADMIN, NOT_RELOADED, READ_AGAIN

__all__ = ["BACKEND_FAULTS", "PROXY_FAULTS", "Fault", "able", "chosen"]


@frozen
class Fault:
    """One kind.

    :ivar kinds: of runtimes that it is for; empty: all.
    :ivar weight: how often it comes beside others.
    """

    name: str
    act: Callable[[Stage, random.Random], None]
    weight: int = 3
    kinds: Sequence[str] = ()

    def is_for(self, kind: str) -> bool:
        """Whether it can be done to such a runtime."""
        return not self.kinds or kind in self.kinds


BACKEND_FAULTS: list[Fault] = []
PROXY_FAULTS: list[Fault] = []

Act = Callable[[Stage, random.Random], None]


def _fault(into: list[Fault], name: str, weight: int = 3, kinds: Sequence[str] = ()) -> Callable[[Act], Act]:
    def add(act: Act) -> Act:
        into.append(Fault(name, act, weight, kinds))
        return act

    return add


def able(faults: Sequence[Fault], stage: Stage, only: Collection[str] = ()) -> list[Fault]:
    """Those that can be done here.

    :param only: these by name; all if empty.
    """
    return [
        each
        for each in faults
        if each.is_for(stage.kind) and each.name not in stage.absent and (not only or each.name in only)
    ]


def chosen(faults: Sequence[Fault], random: random.Random) -> Fault:
    """One of them."""
    return random.choices(faults, [each.weight for each in faults])[0]


def _with(route: str) -> Sequence[str]:
    """Whoever may be told of it: those that wait for its GPU wait for its end or its start."""
    return GPU_ROUTES if route in GPU_ROUTES else (route,)


# -- backends -------------------------------------------------------------------------------------
# Where nothing runs there is nothing to be harmed: that is no fault, and excuses nothing.


def _send(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@_fault(BACKEND_FAULTS, "killed", 4)
def kill(stage: Stage, random: random.Random) -> None:
    """KILL, from outside."""
    route = random.choice(ROUTES)
    pids = stage.pids(route)
    if not pids:
        return
    with (
        stage.windows.open("killed", BACKEND, (route,)),
        stage.windows.open("(killed)", {"refused"}, _with(route)),
    ):
        _send(pids, signal.SIGKILL)


@_fault(BACKEND_FAULTS, "stopped", 3)
def stop(stage: Stage, random: random.Random) -> None:
    """TERM, from outside: ``docker stop`` by somebody."""
    route = random.choice(ROUTES)
    pids = stage.pids(route)
    if not pids:
        return
    with (
        stage.windows.open("stopped", TERMED, (route,)),
        stage.windows.open("(stopped)", {"refused"}, _with(route)),
    ):
        _send(pids, signal.SIGTERM)
        stage.rest(0.3)


@_fault(BACKEND_FAULTS, "paused", 3)
def pause(stage: Stage, random: random.Random) -> None:
    """It stands still for a moment: it hangs before the head, and in mid-stream.  Nobody is cut for it."""
    route = random.choice(ROUTES)
    pids = stage.pids(route)
    if not pids:
        return
    with stage.windows.open("paused", (), (route,)):
        _send(pids, signal.SIGSTOP)
        stage.rest(random.uniform(0.3, 4))
        _send(pids, signal.SIGCONT)


@_fault(BACKEND_FAULTS, "removed", 3, ("docker",))
def remove(stage: Stage, random: random.Random) -> None:
    """``docker rm -f`` by somebody."""
    route = random.choice(ROUTES)
    world = stage.proxy.world
    assert isinstance(world, DockerWorld)
    try:
        present = stage.containers()
    except AssertionError:
        return  # the engine is away
    if world.name(route) not in present:
        return
    with (
        stage.windows.open("removed", BACKEND, (route,)),
        stage.windows.open("(removed)", {"refused"}, _with(route)),
    ):
        world.docker("rm", "-f", world.name(route), check=False)


def _ail(stage: Stage, random: random.Random, name: str, excuses: Collection[str] = (), **what: Any) -> None:
    route = random.choice(ROUTES)
    url = stage.ailing(route)
    if url is None:
        return
    with stage.windows.open(name, excuses, (route,)):
        stage.ail(url, **what)
        stage.rest(what.get("seconds", 0))


@_fault(BACKEND_FAULTS, "unhealthy", 2)
def unhealthy(stage: Stage, random: random.Random) -> None:
    """Its health path fails, or never answers; its answers are as good as ever, and come as ever."""
    seconds, health = random.uniform(0.5, 4), random.choice(("503", "hang"))
    _ail(stage, random, "unhealthy", seconds=seconds, health=health)


@_fault(BACKEND_FAULTS, "slow", 2)
def slow(stage: Stage, random: random.Random) -> None:
    """Its tokens come slowly."""
    seconds = random.uniform(0.5, 3)
    _ail(stage, random, "slow", seconds=seconds, pace=0.03)


@_fault(BACKEND_FAULTS, "hangs before the head", 2)
def hang(stage: Stage, random: random.Random) -> None:
    """No answer begins for a moment."""
    seconds = random.uniform(0.5, 4)
    _ail(stage, random, "hangs before the head", seconds=seconds, head="hang")


@_fault(BACKEND_FAULTS, "connections reset", 3)
def reset(stage: Stage, random: random.Random) -> None:
    """All answers that it gives are cut in mid-stream."""
    _ail(stage, random, "connections reset", {"cut", "refused"}, reset=True)


# -- the proxy itself -----------------------------------------------------------------------------


@_fault(PROXY_FAULTS, "proxy killed", 3)
def kill_proxy(stage: Stage, random: random.Random) -> None:
    """KILL to all of its processes, and a new one."""
    with stage.windows.open("proxy killed", ALL), stage.starting:
        for pid in stage.look().proxies:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        stage.gone(10)
        stage.rest(random.uniform(0, 1))
        stage.configure()
        stage.start_proxy()


@_fault(PROXY_FAULTS, "proxy ended", 2)
def end_proxy(stage: Stage, random: random.Random) -> None:
    """TERM, and a new one when it has ended: what is in flight ends well within its drain."""
    with stage.windows.open("proxy ended", {"refused", "unreachable"}), stage.starting:
        for pid in stage.look().proxies:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if not stage.gone(9):
            with stage.windows.open("(drain over)", ALL):
                if not stage.gone(15):
                    stage.records.wrong.append(
                        "the proxy had not ended 24 s after TERM, with a drain of 10 s"
                    )
                    for pid in stage.look().proxies:
                        os.kill(pid, signal.SIGKILL)
                    stage.gone(10)
        stage.configure()
        stage.start_proxy()


@_fault(PROXY_FAULTS, "proxy stands still", 2)
def stop_proxy(stage: Stage, random: random.Random) -> None:
    """STOP, and CONT after a moment."""
    with stage.windows.open("proxy stands still"):
        pid = stage.signal(signal.SIGSTOP)
        stage.rest(random.uniform(0.2, 3))
        if pid is not None:
            os.kill(pid, signal.SIGCONT)


def _hang_up(stage: Stage, wanted: str) -> None:
    proxies = stage.look().proxies
    if not proxies:
        return
    try:
        told = stage.proxy.hang_up(proxies[-1], seconds=15)
    except AssertionError:
        stage.records.wrong.append("a reload was not told of within 15 s")
        return
    if told != wanted:
        stage.records.wrong.append(f"a reload was answered {told!r}, and {wanted!r} is right")


@_fault(PROXY_FAULTS, "reload", 2)
def reload(stage: Stage, random: random.Random) -> None:
    """HUP with a file in which one backend is another one."""
    with stage.windows.open("reload"):
        stage.generation += 1
        stage.configure()
        _hang_up(stage, READ_AGAIN)


@_fault(PROXY_FAULTS, "bad reload", 2)
def bad_reload(stage: Stage, random: random.Random) -> None:
    """HUP with a file that is no good."""
    with stage.windows.open("bad reload"):
        stage.spoil()
        _hang_up(stage, NOT_RELOADED)
        stage.configure()


_UPGRADED = "upgraded: llmproxy"
_NOT_UPGRADED = "no upgrade: "
_BUSY = "is being created or stopped; try again later"
_KEPT_FROM_STARTING = "In ft_shm_init()"
"""What libfaketime says when it has kept a process from starting: what it shares with the children of its
first process, and theirs, is gone when that one ends, and now and then it does not get over that."""


@_fault(PROXY_FAULTS, "upgrade", 3)
def upgrade(stage: Stage, random: random.Random) -> None:
    """SIGUSR2: another process takes its place."""
    with stage.windows.open("upgrade"):
        before = len(stage.proxy.log())
        old = stage.signal(signal.SIGUSR2)
        if old is None:
            return
        deadline = time.monotonic() + 45
        while True:
            log = stage.proxy.log()[before:]
            if _UPGRADED in log:
                break
            if _NOT_UPGRADED in log:
                if _BUSY not in log and _KEPT_FROM_STARTING not in log:
                    stage.records.wrong.append(f"an upgrade failed: {log[-1500:]}")
                return
            if time.monotonic() > deadline:
                if _KEPT_FROM_STARTING not in log:
                    stage.records.wrong.append(f"an upgrade was not over after 45 s: {log[-1500:]}")
                return
            stage.rest(0.05)
        # Another signal is for whoever serves.
        deadline = time.monotonic() + 20
        while old in stage.look().proxies:
            if time.monotonic() > deadline:
                stage.records.wrong.append(
                    "the old process was there 20 s after an upgrade, with a drain of 10 s"
                )
                return
            stage.rest(0.1)


def _may_end_both(killed: int, old: int, log: str) -> bool:
    """Whether no process may be left when one of them was killed: the old one, before it had given its place
    away, or the new one, when it had."""
    return (killed == old) != (_UPGRADED in log)


@_fault(PROXY_FAULTS, "killed in an upgrade", 1)
def kill_in_upgrade(stage: Stage, random: random.Random) -> None:
    """One of its processes is killed while the other takes its place."""
    with stage.windows.open("killed in an upgrade", ALL), stage.starting:
        before = len(stage.proxy.log())
        old = stage.signal(signal.SIGUSR2)
        stage.rest(random.uniform(0, 2.5))
        proxies = stage.look().proxies
        if old is None or not proxies:
            return
        killed = random.choice(proxies)
        with suppress(ProcessLookupError):
            os.kill(killed, signal.SIGKILL)
        # The old one goes on, unless the new one had begun to serve: then it finishes what it has, and ends.
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if not stage.look().proxies:
                log = stage.proxy.log()[before:]
                if not _may_end_both(killed, old, log):
                    which = "old" if killed == old else "new"
                    stage.records.wrong.append(
                        f"the {which} process was killed, and both ended: {log[-1500:]}"
                    )
                stage.start_proxy()
            with suppress(AssertionError):
                if stage.serves() and len(stage.look().proxies) == 1:
                    return
            stage.rest(0.1)
        stage.records.wrong.append("nobody serves 30 s after an upgrade in which a process was killed")


@_fault(PROXY_FAULTS, "operator", 3)
def operate(stage: Stage, random: random.Random) -> None:
    """Somebody starts, stops or restarts a backend by the API."""
    route, verb = random.choice(ROUTES), random.choice(("start", "stop", "restart", "sleep", "wake", "reset"))
    with (
        stage.windows.open("operator", {"refused"}, _with(route)),
        suppress(ConnectionError),
    ):
        answer = stage.proxy.ask("POST", f"/api/backends/{route}/{verb}", key=ADMIN)
        if answer.status not in (200, 202, 404, 409, 503):
            stage.records.wrong.append(
                f"{verb} {route} was answered with {answer.status}: {answer.body[:300]!r}"
            )


# -- the machine ----------------------------------------------------------------------------------


@_fault(PROXY_FAULTS, "disk full", 2)
def fill_disk(stage: Stage, random: random.Random) -> None:
    """Nothing more can be written where its state is.  A process needs its record to be started."""
    ballast = stage.folder / "state" / "ballast"
    with stage.windows.open("disk full", {"refused"} if stage.kind == "process" else ()):
        try:
            with suppress(OSError), open(ballast, "wb", buffering=0) as file:
                for _ in range(2 * SMALL // 4096):  # and no more, should it be on another disk
                    file.write(b"\0" * 4096)
            stage.rest(random.uniform(0.5, 4))
        finally:
            ballast.unlink(missing_ok=True)


@_fault(PROXY_FAULTS, "clock", 2)
def step_clock(stage: Stage, random: random.Random) -> None:
    """The time of day makes a step, and another one back."""
    with stage.windows.open("clock"):
        stage.step_clock(random.choice((-86_400, -3600, -60, 60, 3600, 86_400)))
        stage.rest(random.uniform(1.5, 5))
        stage.step_clock(0)
        stage.rest(1.1)  # it is read once a second


@_fault(PROXY_FAULTS, "descriptors", 2)
def use_up_descriptors(stage: Stage, random: random.Random) -> None:
    """It may open hardly any files more."""
    with stage.windows.open("descriptors", {"unreachable", "refused"}):
        proxies = stage.look().proxies
        with suppress(OSError, ProcessLookupError):
            stage.limit_descriptors(proxies[-1], random.randint(0, 6))
        stage.rest(random.uniform(0.5, 3))
        with suppress(OSError, ProcessLookupError):
            stage.limit_descriptors(proxies[-1], None)


@_fault(PROXY_FAULTS, "memory", 1)
def short_memory(stage: Stage, random: random.Random) -> None:
    """It may have hardly more memory than it has: it goes on, or the kernel ends it as KILL does."""
    with stage.windows.open("memory", ALL), stage.starting:
        proxies = stage.look().proxies
        if not proxies:
            return
        try:
            stage.memory.limited(random.choice((2, 8, 16)) << 20)
            stage.memory.take(proxies[-1])
            stage.rest(random.uniform(1, 3))
        finally:
            stage.memory.close()
        if stage.gone(1):  # who is ended by the kernel is there for a moment more
            stage.configure()
            stage.start_proxy()


# -- the engine -----------------------------------------------------------------------------------


@_fault(PROXY_FAULTS, "engine restarted", 1, ("docker",))
def restart_engine(stage: Stage, random: random.Random) -> None:
    """The engine ends, by TERM or KILL, with all of its containers, and comes again."""
    assert stage.engine is not None
    with stage.windows.open("engine restarted", TERMED, after=6):
        stage.engine.end(random.choice((signal.SIGTERM, signal.SIGKILL)))
        stage.rest(random.uniform(0, 2))
        stage.engine.start()


@_fault(PROXY_FAULTS, "events cut", 3, ("docker",))
def cut_events(stage: Stage, random: random.Random) -> None:
    """The stream of the engine's events ends."""
    assert stage.line is not None
    with stage.windows.open("events cut"):
        stage.line.cut_events()


@_fault(PROXY_FAULTS, "API cut", 2, ("docker",))
def cut_api(stage: Stage, random: random.Random) -> None:
    """All calls that are under way are cut."""
    assert stage.line is not None
    with stage.windows.open("API cut", {"refused"}):
        stage.line.cut_all()


@_fault(PROXY_FAULTS, "API slow", 3, ("docker",))
def slow_api(stage: Stage, random: random.Random) -> None:
    """Each call takes longer."""
    assert stage.line is not None
    with stage.windows.open("API slow"):
        stage.line.delay = random.uniform(0.05, 0.6)
        stage.rest(random.uniform(1, 5))
        stage.line.delay = 0.0


@_fault(PROXY_FAULTS, "API failing", 3, ("docker",))
def fail_api(stage: Stage, random: random.Random) -> None:
    """Each call fails: by 500, by no connection, or by silence."""
    assert stage.line is not None
    how = random.choice(("failing", "refusing", "silent"))
    with stage.windows.open("API failing", {"refused"}):
        setattr(stage.line, how, True)
        stage.rest(random.uniform(0.5, 4))
        setattr(stage.line, how, False)
