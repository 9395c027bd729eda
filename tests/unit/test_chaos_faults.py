"""What chaos says of a proxy that does not take its faults as it has to, and of nothing to be harmed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import cast

import pytest
from attrs import define, field

from tests.integration.chaos import faults, run, watch
from tests.integration.chaos.faults import Fault, able
from tests.integration.chaos.stage import Stage
from tests.integration.chaos.traffic import Records
from tests.integration.chaos.watch import Seen, Watch
from tests.integration.chaos.windows import Windows
from tests.integration.proxy import NOT_RELOADED, READ_AGAIN

OLD, NEW = 7, 8


@define
class FakeProxy:
    """One that says what it is made to say."""

    words: str = ""
    told: str | Exception = READ_AGAIN
    asked: Exception | None = None

    def log(self) -> str:
        return self.words

    def hang_up(self, pid: int, *, seconds: float) -> str:
        assert (pid, seconds) == (OLD, 15)
        if isinstance(self.told, Exception):
            raise self.told
        return self.told

    def ask(self, *_: object, **__: object) -> None:
        assert self.asked is not None
        raise self.asked


@define
class FakeStage:
    """As much of a stage as these faults take.

    :ivar ends: what becomes of a signal.
    """

    proxy: FakeProxy = field(factory=FakeProxy)
    windows: Windows = field(factory=Windows)
    records: Records = field(factory=Records)
    absent: dict[str, str] = field(factory=dict)
    starting: threading.RLock = field(factory=threading.RLock)
    kind: str = "process"
    proxies: list[int] = field(factory=lambda: [OLD])
    ends: Callable[[], None] = lambda: None
    generation: int = 0
    started: int = 0

    def look(self) -> Seen:
        return Seen(0.0, list(self.proxies), {})

    def pids(self, route: str) -> list[int]:
        return []

    def ailing(self, route: str) -> None:
        return None

    def signal(self, number: int) -> int:
        assert number == signal.SIGUSR2
        self.ends()
        return OLD

    def configure(self) -> None:
        pass

    spoil = configure

    def rest(self, seconds: float) -> None:
        pass

    def serves(self) -> bool:
        return bool(self.proxies)

    def start_proxy(self) -> None:
        self.started += 1
        self.proxies = [9]


def wrong(stage: FakeStage, act: faults.Act) -> list[str]:
    """What is said of it."""
    act(cast(Stage, stage), Random(1))
    return stage.records.wrong


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock takes five seconds."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += 5
        return now[0]

    for module in (faults, run, watch):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))


@pytest.mark.parametrize(
    ("act", "told", "found"),
    [
        (faults.reload, READ_AGAIN, ""),
        (faults.reload, NOT_RELOADED, "'configuration read again' is right"),
        (faults.reload, AssertionError("not within 15 s"), "not told of within 15 s"),
        (faults.bad_reload, NOT_RELOADED, ""),
        (faults.bad_reload, READ_AGAIN, "'not reloaded' is right"),
    ],
)
def test_reloads(act: faults.Act, told: str | Exception, found: str) -> None:
    """A good file is taken, and a bad one is not; it is said in time."""
    said = wrong(FakeStage(FakeProxy(told=told)), act)
    assert (found in said[0]) if found else said == []


UPGRADED = "upgraded: llmproxy 1, process 8"
BUSY = "no upgrade: alpha is being created or stopped; try again later"


@pytest.mark.parametrize(
    ("words", "after", "found"),
    [
        (UPGRADED, [NEW], ""),
        (UPGRADED, [OLD, NEW], "the old process was there 20 s after"),
        (BUSY, [OLD], ""),
        ("no upgrade: it ended with 1", [OLD], "an upgrade failed: "),
        ("In ft_shm_init(), sem_open failed\nno upgrade: it ended with 1", [OLD], ""),
        ("upgrade: starting another process", [OLD, NEW], "an upgrade was not over after 45 s"),
    ],
)
def test_upgrades(words: str, after: list[int], found: str) -> None:
    """One goes well, or cannot be done at the time; what was said of an earlier one is nothing to it."""
    stage = FakeStage(FakeProxy("In ft_shm_init()\nupgraded: llmproxy\n"))

    def ends() -> None:
        stage.proxy.words += words
        stage.proxies = after

    stage.ends = ends
    said = wrong(stage, faults.upgrade)
    assert (found in said[0]) if found else said == []


@pytest.mark.parametrize(
    ("killed", "words", "left", "found"),
    [
        (OLD, "", [], ""),
        (OLD, "", [NEW], ""),
        (OLD, UPGRADED, [], "the old process was killed, and both ended"),
        (NEW, "", [], "the new process was killed, and both ended"),
        (NEW, "", [OLD], ""),
        (NEW, UPGRADED, [], ""),
    ],
)
def test_one_of_two_is_killed(
    killed: int, words: str, left: list[int], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one goes on, but where its place is the other's."""
    stage = FakeStage(proxies=[killed])

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (killed, signal.SIGKILL)
        stage.proxy.words += words
        stage.proxies = left

    monkeypatch.setattr(os, "kill", kill)
    said = wrong(stage, faults.kill_in_upgrade)
    assert (found in said[0]) if found else said == []
    assert stage.started == (not left)


@pytest.mark.parametrize("act", [each.act for each in faults.BACKEND_FAULTS if not each.kinds])
def test_nobody_to_be_harmed(act: faults.Act) -> None:
    """No window is opened, which would excuse what nobody did."""
    stage = FakeStage()
    assert wrong(stage, act) == []
    assert stage.windows.all == []
    assert not stage.windows.faults


def test_an_operator_who_is_not_answered() -> None:
    """A connection that ends may be a fault's doing; one that says nothing is wrong."""
    assert wrong(FakeStage(FakeProxy(asked=ConnectionResetError())), faults.operate) == []
    with pytest.raises(TimeoutError):
        wrong(FakeStage(FakeProxy(asked=TimeoutError())), faults.operate)


def test_what_can_be_done() -> None:
    """What is for another runtime, absent or not asked for is not chosen."""
    stage = cast(Stage, FakeStage(absent={"clock": "why"}))
    assert [each.name for each in able(faults.PROXY_FAULTS, stage, ["clock", "memory", "API cut"])] == [
        "memory"
    ]
    assert able(faults.BACKEND_FAULTS, stage, ["removed"]) == []
    assert len(able(faults.BACKEND_FAULTS, stage)) == len(faults.BACKEND_FAULTS) - 1


def test_what_a_fault_raises() -> None:
    """It is told, and the next one is done."""
    stage = FakeStage()
    done: list[int] = []

    def act(_: Stage, __: Random) -> None:
        done.append(1)
        raise TimeoutError

    run._harm(cast(Stage, stage), [Fault("silent", act)], "1", 20)
    assert len(done) > 1
    assert stage.records.wrong == ["fault silent: TimeoutError()"] * len(done)


@pytest.mark.parametrize(
    ("alive", "samples", "found"),
    [(True, 20, ""), (True, 10, "10 times only in 5 s"), (False, 20, "ended after 20 looks")],
)
def test_who_looks(alive: bool, samples: int, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who looks no more, or too seldom, has not seen that nothing ran twice."""
    looks = Watch(lambda: Seen(0.0, [], {}), {}, threading.Event())
    monkeypatch.setattr(looks, "is_alive", lambda: alive)
    looks.samples = samples
    said = looks.lacks()
    assert (found in said[0]) if found else said == []
