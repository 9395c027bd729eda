"""When a Swarm's services are looked at, and who is told."""

from __future__ import annotations

from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from llmproxy.runtimes.interface import Exit, RuntimeUnavailable
from llmproxy.runtimes.swarm_events import Happening
from llmproxy.runtimes.swarm_look import Found
from llmproxy.runtimes.swarm_monitor import AGAIN_AFTER, BUSY_EVERY, CLOSEST, REST_EVERY, SHARE, Monitor
from llmproxy.runtimes.swarm_reach import Here
from llmproxy.runtimes.swarm_state import Picture, SwarmTask, read_service
from tests.unit.swarm_cases import FAR, service, task


@define(eq=False)
class Who:
    """Wants to know of one service."""

    name: str = "m"
    busy: bool = False
    seen_: list[Picture] = field(factory=list)
    unseen_: list[Failure] = field(factory=list)
    breaks: bool = False

    def seen(self, picture: Picture, here: Here) -> None:
        self.seen_.append(picture)
        assert not self.breaks

    def unseen(self, reason: Failure) -> None:
        self.unseen_.append(reason)


@define(eq=False)
class FakeManager:
    """Answers when the test says so."""

    asked: list[Deferred[Any]] = field(factory=list)
    engine: Any = None

    def __attrs_post_init__(self) -> None:
        class Engine:
            host = "unix:///x"

        self.engine = Engine

    def call(self, job: object) -> Deferred[Any]:
        self.asked.append(Deferred())
        return self.asked[-1]

    def answer(self, *tasks: SwarmTask) -> None:
        """The latest look finds these."""
        self.asked[-1].callback(Found({"m": read_service(service())}, {"s1": tasks}, {}, FAR))


def watched(*who: Who) -> tuple[Clock, FakeManager, Monitor]:
    """A monitor that these are added to."""
    clock, manager = Clock(), FakeManager()
    clock.advance(1000)
    anything: Any = manager
    monitor = Monitor(clock, anything)
    for each in who:
        monitor.add(each)
    return clock, manager, monitor


def test_often_while_somebody_is_busy() -> None:
    """And seldom when nobody is; one look comes after the other."""
    who = Who(busy=True)
    clock, manager, _ = watched(who)
    clock.advance(0)
    assert len(manager.asked) == 1
    clock.advance(0.1)
    assert len(manager.asked) == 1, "one has not been answered"
    manager.answer(task("a"))
    clock.advance(BUSY_EVERY)
    assert len(manager.asked) == 2
    who.busy = False
    manager.answer()
    clock.advance(REST_EVERY - 0.01)
    assert len(manager.asked) == 2
    clock.advance(0.01)
    assert len(manager.asked) == 3
    assert [len(picture.tasks) for picture in who.seen_] == [1, 0]


def test_events_are_looked_after_at_once() -> None:
    """But not more often than it makes sense; one that comes during a look has it repeated."""
    who = Who()
    clock, manager, monitor = watched(who)
    clock.advance(0)
    for _ in range(100):
        monitor.look()
    manager.answer()
    clock.advance(CLOSEST)
    assert len(manager.asked) == 2
    manager.answer()
    clock.advance(1)
    assert len(manager.asked) == 2
    monitor.look()
    monitor.look()
    clock.advance(0)
    assert len(manager.asked) == 3


def test_nobody_is_told_how_it_was_before() -> None:
    """Who comes during a look hears of the next one; who has left hears no more."""
    first, second = Who(), Who()
    clock, manager, monitor = watched(first)
    clock.advance(0)
    monitor.add(second)
    manager.answer()
    assert (len(first.seen_), len(second.seen_)) == (1, 0)
    clock.advance(CLOSEST)
    monitor.remove(first)
    manager.answer()
    assert (len(first.seen_), len(second.seen_)) == (1, 1)
    monitor.remove(second)
    assert clock.getDelayedCalls() == []


def test_the_manager_is_away() -> None:
    """All are told, and it is tried again."""
    first, second = Who(), Who("other")
    clock, manager, monitor = watched(first, second)
    clock.advance(0)
    manager.asked[0].errback(RuntimeUnavailable("away"))
    assert (len(first.unseen_), len(second.unseen_)) == (1, 1)
    monitor.look()
    clock.advance(AGAIN_AFTER)
    assert len(manager.asked) == 2
    manager.answer(task("a"))
    assert first.seen_[0].service is not None
    assert second.seen_[0].service is None
    monitor.close()
    assert clock.getDelayedCalls() == []


def test_one_that_cannot_be_told() -> None:
    """It keeps nobody else from being told."""
    first, second = Who(breaks=True), Who()
    clock, manager, monitor = watched(first, second)
    clock.advance(0)
    manager.answer()
    assert len(second.seen_) == 1
    monitor.close()


def test_what_our_own_engine_tells() -> None:
    """The end of a container counts at once, with its status and whether it was for memory; Swarm's own word
    replaces it."""
    who = Who()
    clock, manager, monitor = watched(who)
    clock.advance(0)
    manager.answer(task("a"), task("b", slot=2))
    monitor.heard(Happening("container", "oom", "c-a", service="m"))
    monitor.heard(Happening("container", "die", "c-a", 137, 5, "m"))
    monitor.heard(Happening("container", "die", "somebody else's", 1, 5, "x"))
    clock.advance(CLOSEST)
    manager.answer(task("a"), task("b", slot=2))
    assert [each.died for each in who.seen_[-1].tasks] == [Exit(137, True), None]
    clock.advance(REST_EVERY)
    manager.answer(task("a", "failed", "shutdown", code=137), task("b", slot=2))
    told = who.seen_[-1].tasks[0]
    assert (told.died, told.exit) == (None, Exit(137, True))
    clock.advance(REST_EVERY)
    manager.answer()
    assert len(monitor.deaths) == 0


def test_containers_of_nobody() -> None:
    """Of services that nobody wants to know of nothing is kept: no look would ever forget it."""
    _, _, monitor = watched()
    for each in range(100):
        monitor.heard(Happening("container", "die", f"c{each}", 1, 5, "x"))
    assert len(monitor.deaths) == 0


def test_only_those_that_change_are_looked_at_often() -> None:
    """Of many services the few that are busy, or of which something was heard; all of them now and then."""
    busy, idle = Who("busy", busy=True), Who("idle")
    clock, manager, monitor = watched(busy, idle)
    clock.advance(0)

    def looks(seconds: float) -> tuple[int, int]:
        """How often both were told within that time."""
        before = len(busy.seen_), len(idle.seen_)
        for _ in range(round(seconds / 0.01)):
            if not manager.asked[-1].called:
                manager.answer()
            clock.advance(0.01)
        return len(busy.seen_) - before[0], len(idle.seen_) - before[1]

    looks(0.01)
    often, seldom = looks(10)
    assert 35 <= often <= 40
    assert 4 <= seldom <= 5
    busy.busy = False
    looks(REST_EVERY)
    assert looks(10) in ((5, 5), (4, 4))
    monitor.heard(Happening("service", "update", "s2", service="idle"))
    assert looks(0.1) == (0, 1)
    monitor.heard(Happening("service", "update", "s3", service="nobody's"))
    assert looks(0.1) == (0, 0)
    monitor.heard(Happening("node", "update", "n"))
    assert looks(0.1) == (1, 1)
    busy.busy, idle.name = True, "busy"
    looks(REST_EVERY)
    often, as_often = looks(3)
    assert often == as_often > 10, "whoever wants to know of the same service is told the same"


def test_a_look_that_takes_long() -> None:
    """All services are looked at the less often the longer that takes."""
    who = Who()
    clock, manager, _ = watched(who)
    clock.advance(0)
    clock.advance(1.0)
    manager.answer()
    clock.advance(1.0 / SHARE - 1.1)
    assert len(manager.asked) == 1
    clock.advance(0.2)
    assert len(manager.asked) == 2
