"""What goes wrong: each fault is begun, goes on for a moment, and is over when its function returns.

A window (:mod:`tests.integration.chaos.windows`) tells what it excuses. What is meant to be unseen by clients
excuses nothing: a backend or a proxy that stands still for a moment, an upgrade, a reload with a good or a
bad file, a clock that is stepped, an engine's API that is slow."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from tests.integration.chaos.stage import GPU_ROUTES, ROUTES, Stage
from tests.integration.chaos.windows import ALL, BACKEND, TERMED
from tests.integration.docker_world import DockerWorld
from tests.integration.proxy import ADMIN

__all__ = ["BACKEND_FAULTS", "PROXY_FAULTS", "Fault", "chosen", "memory_can_be_limited"]


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


BACKEND_FAULTS: list[Fault] = []
PROXY_FAULTS: list[Fault] = []

Act = Callable[[Stage, random.Random], None]


def _fault(into: list[Fault], name: str, weight: int = 3, kinds: Sequence[str] = ()) -> Callable[[Act], Act]:
    def add(act: Act) -> Act:
        into.append(Fault(name, act, weight, kinds))
        return act

    return add


def chosen(faults: Sequence[Fault], stage: Stage, random: random.Random, only: Sequence[str] = ()) -> Fault:
    """One that can be done here."""
    can = [
        each
        for each in faults
        if (not each.kinds or stage.kind in each.kinds)
        and each.name not in stage.absent
        and (not only or each.name in only)
    ]
    return random.choices(can, [each.weight for each in can])[0]


def _with(route: str) -> Sequence[str]:
    """Whoever may be told of it: those that wait for its GPU wait for its end or its start."""
    return GPU_ROUTES if route in GPU_ROUTES else (route,)


# -- backends -------------------------------------------------------------------------------------


def _send(stage: Stage, route: str, number: int) -> None:
    for pid in stage.pids(route):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@_fault(BACKEND_FAULTS, "killed", 4)
def kill(stage: Stage, random: random.Random) -> None:
    """KILL, from outside."""
    route = random.choice(ROUTES)
    with (
        stage.windows.open("killed", BACKEND, (route,)),
        stage.windows.open("(killed)", {"refused"}, _with(route)),
    ):
        _send(stage, route, signal.SIGKILL)


@_fault(BACKEND_FAULTS, "stopped", 3)
def stop(stage: Stage, random: random.Random) -> None:
    """TERM, from outside: ``docker stop`` by somebody."""
    route = random.choice(ROUTES)
    with (
        stage.windows.open("stopped", TERMED, (route,)),
        stage.windows.open("(stopped)", {"refused"}, _with(route)),
    ):
        _send(stage, route, signal.SIGTERM)
        time.sleep(0.3)


@_fault(BACKEND_FAULTS, "paused", 3)
def pause(stage: Stage, random: random.Random) -> None:
    """It stands still for a moment: it hangs before the head, and in mid-stream.  Nobody is cut for it."""
    route = random.choice(ROUTES)
    with stage.windows.open("paused", (), (route,)):
        _send(stage, route, signal.SIGSTOP)
        time.sleep(random.uniform(0.3, 4))
        _send(stage, route, signal.SIGCONT)


@_fault(BACKEND_FAULTS, "removed", 3, ("docker",))
def remove(stage: Stage, random: random.Random) -> None:
    """``docker rm -f`` by somebody."""
    route = random.choice(ROUTES)
    world = stage.proxy.world
    assert isinstance(world, DockerWorld)
    with (
        stage.windows.open("removed", BACKEND, (route,)),
        stage.windows.open("(removed)", {"refused"}, _with(route)),
    ):
        world.docker("rm", "-f", world.name(route), check=False)


@_fault(BACKEND_FAULTS, "unhealthy", 2)
def unhealthy(stage: Stage, random: random.Random) -> None:
    """Its health path fails, or never answers; its answers are as good as ever, and come as ever."""
    route, seconds = random.choice(ROUTES), random.uniform(0.5, 4)
    with stage.windows.open("unhealthy", (), (route,)):
        stage.ail(route, seconds=seconds, health=random.choice(("503", "hang")))
        time.sleep(seconds)


@_fault(BACKEND_FAULTS, "slow", 2)
def slow(stage: Stage, random: random.Random) -> None:
    """Its tokens come slowly."""
    route, seconds = random.choice(ROUTES), random.uniform(0.5, 3)
    with stage.windows.open("slow", (), (route,)):
        stage.ail(route, seconds=seconds, pace=0.03)
        time.sleep(seconds)


@_fault(BACKEND_FAULTS, "hangs before the head", 2)
def hang(stage: Stage, random: random.Random) -> None:
    """No answer begins for a moment."""
    route, seconds = random.choice(ROUTES), random.uniform(0.5, 4)
    with stage.windows.open("hangs before the head", (), (route,)):
        stage.ail(route, seconds=seconds, head="hang")
        time.sleep(seconds)


@_fault(BACKEND_FAULTS, "connections reset", 3)
def reset(stage: Stage, random: random.Random) -> None:
    """All answers that it gives are cut in mid-stream."""
    route = random.choice(ROUTES)
    with stage.windows.open("connections reset", {"cut", "refused"}, (route,)):
        stage.ail(route, reset=True)


# -- the proxy itself -----------------------------------------------------------------------------


@_fault(PROXY_FAULTS, "proxy killed", 3)
def kill_proxy(stage: Stage, random: random.Random) -> None:
    """KILL to all of its processes, and a new one."""
    with stage.windows.open("proxy killed", ALL), stage.starting:
        for pid in stage.look().proxies:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        stage.gone(10)
        time.sleep(random.uniform(0, 1))
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
        time.sleep(random.uniform(0.2, 3))
        if pid is not None:
            os.kill(pid, signal.SIGCONT)


def _hang_up(stage: Stage) -> None:
    marks = ("configuration read again", "not reloaded")
    before = len(stage.proxy.log())
    if stage.signal(signal.SIGHUP) is None:
        return
    deadline = time.monotonic() + 15
    while not any(mark in stage.proxy.log()[before:] for mark in marks):
        if time.monotonic() > deadline:
            if not stage.kept_from_starting():
                stage.records.wrong.append("a reload was not told of within 15 s")
            return
        time.sleep(0.05)


@_fault(PROXY_FAULTS, "reload", 2)
def reload(stage: Stage, random: random.Random) -> None:
    """HUP with a file in which one backend is another one."""
    with stage.windows.open("reload"):
        stage.generation += 1
        stage.configure()
        _hang_up(stage)


@_fault(PROXY_FAULTS, "bad reload", 2)
def bad_reload(stage: Stage, random: random.Random) -> None:
    """HUP with a file that is no good."""
    with stage.windows.open("bad reload"):
        stage.spoil()
        _hang_up(stage)
        stage.configure()


@_fault(PROXY_FAULTS, "upgrade", 3)
def upgrade(stage: Stage, random: random.Random) -> None:
    """SIGUSR2: another process takes its place."""
    with stage.windows.open("upgrade"):
        old = stage.signal(signal.SIGUSR2)
        deadline = time.monotonic() + 30
        while stage.look().proxies[-1:] == [old]:
            if time.monotonic() > deadline:
                if not stage.kept_from_starting():
                    stage.records.wrong.append("an upgrade had not begun after 30 s")
                return
            time.sleep(0.05)
        # Another signal is for whoever serves.
        while old in stage.look().proxies and time.monotonic() < deadline:
            time.sleep(0.1)


@_fault(PROXY_FAULTS, "killed in an upgrade", 1)
def kill_in_upgrade(stage: Stage, random: random.Random) -> None:
    """One of its processes is killed while the other takes its place."""
    with stage.windows.open("killed in an upgrade", ALL), stage.starting:
        stage.signal(signal.SIGUSR2)
        time.sleep(random.uniform(0, 2.5))
        proxies = stage.look().proxies
        if proxies:
            with suppress(ProcessLookupError):
                os.kill(random.choice(proxies), signal.SIGKILL)
        # The old one goes on, unless the new one had begun to serve: then it finishes what it has, and ends.
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if not stage.look().proxies:
                stage.start_proxy()
            with suppress(AssertionError):
                if stage.answers() and len(stage.look().proxies) == 1:
                    return
            time.sleep(0.1)
        stage.records.wrong.append("nobody serves 30 s after an upgrade in which a process was killed")


@_fault(PROXY_FAULTS, "operator", 3)
def operate(stage: Stage, random: random.Random) -> None:
    """Somebody starts, stops or restarts a backend by the API."""
    route, verb = random.choice(ROUTES), random.choice(("start", "stop", "restart", "sleep", "wake", "reset"))
    with (
        stage.windows.open("operator", {"refused"}, _with(route)),
        suppress(OSError),
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
        with suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        time.sleep(random.uniform(0.5, 4))
        ballast.unlink(missing_ok=True)


@_fault(PROXY_FAULTS, "clock", 2)
def step_clock(stage: Stage, random: random.Random) -> None:
    """The time of day makes a step, and another one back."""
    with stage.windows.open("clock"):
        stage.step_clock(random.choice((-86_400, -3600, -60, 60, 3600, 86_400)))
        time.sleep(random.uniform(1.5, 5))
        stage.step_clock(0)
        time.sleep(1.1)  # it is read once a second


@_fault(PROXY_FAULTS, "descriptors", 2)
def use_up_descriptors(stage: Stage, random: random.Random) -> None:
    """It may open hardly any files more."""
    with stage.windows.open("descriptors", {"unreachable", "refused"}):
        proxies = stage.look().proxies
        with suppress(OSError, ProcessLookupError):
            stage.limit_descriptors(proxies[-1], random.randint(0, 6))
        time.sleep(random.uniform(0.5, 3))
        with suppress(OSError, ProcessLookupError):
            stage.limit_descriptors(proxies[-1], None)


_MEMORY = Path("/sys/fs/cgroup/memory")


@_fault(PROXY_FAULTS, "memory", 1)
def short_memory(stage: Stage, random: random.Random) -> None:
    """It may have hardly more memory than it has: it goes on, or the kernel ends it as KILL does."""
    group = _MEMORY / f"llmproxy-chaos-{stage.token}"
    with stage.windows.open("memory", ALL), stage.starting:
        pid = (stage.look().proxies or [0])[-1]
        if not pid:
            return
        home = next(
            line.split(":", 2)[2]
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            if ":memory:" in line
        )
        group.mkdir(exist_ok=True)
        try:
            (group / "memory.limit_in_bytes").write_text(str(random.choice((2, 8, 16)) << 20))
            (group / "cgroup.procs").write_text(str(pid))
            time.sleep(random.uniform(1, 3))
        finally:
            (group / "memory.limit_in_bytes").write_text("-1")
            for each in (group / "cgroup.procs").read_text().split():
                with suppress(OSError):
                    (_MEMORY / home.lstrip("/") / "cgroup.procs").write_text(each)
            for _ in range(50):
                with suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.05)
        if not stage.look().proxies:
            stage.configure()
            stage.start_proxy()


# -- the engine -----------------------------------------------------------------------------------


@_fault(PROXY_FAULTS, "engine restarted", 1, ("docker",))
def restart_engine(stage: Stage, random: random.Random) -> None:
    """The engine ends, by TERM or KILL, with all of its containers, and comes again."""
    assert stage.engine is not None
    with stage.windows.open("engine restarted", TERMED, after=6):
        stage.engine.end(random.choice((signal.SIGTERM, signal.SIGKILL)))
        time.sleep(random.uniform(0, 2))
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
        time.sleep(random.uniform(1, 5))
        stage.line.delay = 0.0


@_fault(PROXY_FAULTS, "API failing", 3, ("docker",))
def fail_api(stage: Stage, random: random.Random) -> None:
    """Each call fails: by 500, by no connection, or by silence."""
    assert stage.line is not None
    how = random.choice(("failing", "refusing", "silent"))
    with stage.windows.open("API failing", {"refused"}):
        setattr(stage.line, how, True)
        time.sleep(random.uniform(0.5, 4))
        setattr(stage.line, how, False)


def memory_can_be_limited() -> bool:
    """Whether a group of ours can be made here."""
    group = _MEMORY / f"llmproxy-chaos-try-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(1 << 24))
    except OSError:
        return False
    finally:
        with suppress(OSError):
            group.rmdir()
    return True
