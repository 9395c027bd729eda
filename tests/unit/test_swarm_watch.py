"""What a watcher of a Swarm's service is told."""

from __future__ import annotations

from typing import Any

from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import Exit, Instance, RuntimeUnavailable
from llmproxy.runtimes.swarm_labels import RUN, USED
from llmproxy.runtimes.swarm_state import Picture, SwarmTask, read_service
from llmproxy.runtimes.swarm_watch import RESTLESS, SwarmWatch, run_name
from tests.fakes import RecordingWatcher
from tests.unit.swarm_cases import FAR, picture, service, task

AWAY = Failure(RuntimeUnavailable("away"))


@define
class Watched:
    """A watch whose pictures the test gives.

    :ivar finished: tasks whose failure was handed on.
    :ivar ends: what comes of the next one of these; else it is done at once.
    """

    starting: bool = False
    finished: list[str] = field(factory=list)
    ends: list[Deferred[Exit]] = field(factory=list)
    clock: Clock = field(factory=Clock)
    watcher: RecordingWatcher = field(factory=RecordingWatcher)
    watch: SwarmWatch = field(init=False)

    def __attrs_post_init__(self) -> None:
        spec = BackendSpec("m", runtime="swarm", service="m", port=8000)
        self.watch = SwarmWatch(self.clock, spec, self.watcher, self.finish, lambda: self.starting, "me")

    def finish(self, spec: BackendSpec, found: Picture, ended: SwarmTask) -> Deferred[Exit]:
        self.finished.append(ended.id)
        return self.ends.pop(0) if self.ends else succeed(ended.exit)

    def sees(self, *tasks: SwarmTask, **more: Any) -> list[tuple[Any, ...]]:
        """What is told of that picture; runs and ends without what is tested elsewhere."""
        before = len(self.watcher.events)
        self.watch.seen(picture(*tasks, **more), FAR)
        told: list[tuple[Any, ...]] = []
        for event in self.watcher.events[before:]:
            if event[0] == "running":
                told.append(("running", event[1].run, [each.id for each in event[1].tasks]))
            else:
                told.append(event)
        return told

    @property
    def instance(self) -> Instance:
        found = [event[1] for event in self.watcher.events if event[0] == "running"][-1]
        assert isinstance(found, Instance)
        return found


def up(id: str, second: float = 1, **more: Any) -> SwarmTask:
    """One that runs and can be reached."""
    return task(id, second=second, port=32768, **more)


FAILED = task("a", "failed", "shutdown", 5, code=3, error="task: non-zero exit (3)")
STARTED = {RUN: "mark"}


def test_from_none_to_several_and_back() -> None:
    """One run from the first task to the end of the last, told again whenever its tasks are others."""
    watched = Watched()
    assert watched.sees(replicas=0) == [("gone", None, Exit())]
    assert watched.sees(task("a", "pending", ran=False), labels=STARTED) == []
    assert watched.sees(up("a"), labels=STARTED) == [("running", "s1:mark", ["a"])]
    assert watched.sees(up("a"), labels=STARTED) == []
    both = watched.sees(up("a"), up("b", 2, slot=2), replicas=2, labels=STARTED)
    assert both == [("running", "s1:mark", ["a", "b"])]
    assert watched.instance.replicas == 2
    ended = task("a", "shutdown", "shutdown", 9, code=143)
    assert watched.sees(ended, up("b", 2, slot=2), labels=STARTED) == [("running", "s1:mark", ["b"])]
    leaving = evolve(up("b", 2, slot=2), desired="remove", ports=())
    assert watched.sees(leaving, replicas=0) == [("running", "s1:mark", ["b"])]
    (left,) = watched.instance.tasks
    assert left.leaving
    assert [each.port for each in left.addresses] == [32768], "of one that leaves its ports are not told"
    assert watched.sees(replicas=0) == [("gone", "s1:mark", Exit())]
    assert watched.finished == []


def test_the_last_one_fails() -> None:
    """Its end is told when the service has been scaled to 0, and nothing before that."""
    watched = Watched(ends=[Deferred()])
    ends = watched.ends[0]
    watched.sees(up("a"), labels=STARTED)
    again = task("b", "preparing", "ready", 6, ran=False)
    assert watched.sees(FAILED, again, labels=STARTED) == []
    assert watched.sees(FAILED, up("b", 6), labels=STARTED) == []
    assert watched.finished == ["a"]
    ends.callback(Exit(3))
    assert watched.watcher.events[-1] == ("gone", "s1:mark", Exit(3))
    assert watched.sees(FAILED, replicas=0) == []


def test_swarm_was_quicker() -> None:
    """One that Swarm has already put in a failed one's place is no part of the run that failed."""
    watched = Watched()
    watched.sees(up("a"), labels=STARTED)
    assert watched.sees(FAILED, up("b", 6), labels=STARTED) == [("gone", "s1:mark", Exit(3))]
    assert watched.finished == ["a"]
    watched = Watched()
    watched.sees(up("a"), labels=STARTED)
    more = watched.sees(FAILED, up("b", 4, slot=2), replicas=2, labels=STARTED)
    assert more == [("running", "s1:mark", ["b"])], "it has been started beside the one that failed"
    assert watched.finished == []


def test_ended_by_somebody_and_another_runs() -> None:
    """A run that nobody needs to finish is told as over, and in the same breath what runs instead."""
    watched = Watched()
    watched.sees(up("a"), labels=STARTED)
    assert watched.sees(FAILED, up("b", 6), replicas=0, labels=STARTED) == [
        ("gone", "s1:mark", Exit(3)),
        ("running", "s1:b", ["b"]),
    ]


def test_the_manager_is_away_then() -> None:
    """The end is not told before it is known that nobody goes on trying."""
    watched = Watched(ends=[fail(RuntimeUnavailable("away"))])
    watched.sees(up("a"), labels=STARTED)
    assert watched.sees(FAILED, labels=STARTED) == []
    watched.watch.unseen(AWAY)
    assert watched.sees(FAILED, labels=STARTED) == [("gone", "s1:mark", Exit(3))]
    assert watched.finished == ["a", "a"]


def test_its_node_is_lost_or_drained() -> None:
    """Then others are Swarm's to start: the service is left as it is, and they are another run."""
    for lost, down in ((up("a"), "b"), (task("a", "shutdown", "shutdown", 5, code=143), "")):
        watched = Watched()
        watched.sees(up("a"), labels=STARTED)
        assert watched.sees(lost, down=down, labels=STARTED) == [("gone", "s1:mark", Exit(lost.exit.code))]
        assert watched.finished == []
        again = watched.sees(lost, up("b", 9, node="c"), down=down, labels=STARTED)
        assert again == [("running", "s1:b", ["b"])]


def test_a_node_is_lost_and_others_run() -> None:
    """The run goes on with those, also when they have just been started in place of all that were lost."""
    watched = Watched()
    watched.sees(up("a"), labels=STARTED)
    assert watched.sees(up("a"), up("b", 9, node="c"), down="b", labels=STARTED) == [
        ("running", "s1:mark", ["b"])
    ]


def test_started_by_somebody_else() -> None:
    """A run without our mark is called by its oldest task, so that another proxy calls it the same."""
    watched = Watched()
    assert watched.sees(up("b", 2, slot=2), up("a"), replicas=2) == [("running", "s1:a", ["a", "b"])]
    assert watched.sees(up("b", 2, slot=2), replicas=2) == [("running", "s1:a", ["b"])]
    assert watched.sees(replicas=0) == [("gone", "s1:a", Exit())]
    assert watched.sees(up("c", 7), labels=STARTED) == [("running", "s1:mark", ["c"])]
    watched.sees(replicas=0, labels=STARTED)
    assert watched.sees(up("d", 9), labels=STARTED) == [("running", "s1:d", ["d"])], "its mark is an old one"


def test_nothing_that_leaves_is_adopted() -> None:
    """What is being ended when we come is not there; one without an address is not there either."""
    watched = Watched()
    assert watched.sees(task("a", "running", "remove", port=32768), replicas=0) == [("gone", None, Exit())]
    assert watched.sees(task("b")) == []


def test_our_own_engine_is_quicker() -> None:
    """A container whose end our engine has told takes no part any more."""
    watched = Watched()
    watched.sees(up("a"), labels=STARTED)
    died = evolve(up("a"), died=Exit(137))
    assert watched.sees(died, labels=STARTED) == [("gone", "s1:mark", Exit(137))]
    assert watched.finished == ["a"]


def test_after_the_manager_was_away() -> None:
    """What runs is told again, so that it is known to be so."""
    watched = Watched()
    settled = watched.watch.settled()
    watched.watch.unseen(AWAY)
    assert settled.called
    assert watched.watcher.events == []
    watched.sees(up("a"), labels=STARTED)
    watched.watch.unseen(AWAY)
    assert watched.sees(up("a"), labels=STARTED) == [("running", "s1:mark", ["a"])]


def test_what_other_proxies_say() -> None:
    """Their notes are told, and our own are not."""
    watched = Watched()
    watched.sees(up("a"), labels={**STARTED, f"{USED}me": "3@1700000000"})
    assert (watched.instance.used_at, watched.instance.needed_at) == (None, None)
    watched.sees(up("a"), labels={**STARTED, f"{USED}other": "2@1700000000"})
    assert (watched.instance.used_at, watched.instance.needed_at) == (1700000000, 1700000000)


def test_another_thing() -> None:
    """A service that is created, made anew or removed by somebody else is a change; a scaled one is none."""
    watched = Watched()
    watched.watch.seen(Picture(None), FAR)
    assert watched.sees(replicas=0) == [("changed",)]
    assert watched.sees(replicas=3, labels={"a": "b"}) == []
    other = evolve(picture(), service=read_service(service(0, container={"Image": "other"})))
    watched.starting = True
    watched.watch.seen(other, FAR)
    assert watched.watcher.kinds().count("changed") == 1, "that is our own doing"
    watched.starting = False
    watched.watch.seen(Picture(None), FAR)
    assert watched.watcher.kinds().count("changed") == 2


def test_how_often_it_is_looked_at() -> None:
    """Often while something changes, and not for ever where nothing comes of it."""
    watched = Watched()
    waiting = task("b", "pending", second=2, slot=2, ran=False)

    def busy(*tasks: SwarmTask) -> bool:
        watched.sees(up("a"), *tasks, replicas=1 + len(tasks))
        return watched.watch.busy

    assert not busy()
    assert busy(waiting)
    watched.clock.advance(RESTLESS)
    assert not busy(waiting)
    assert busy(evolve(waiting, state="preparing"))


def test_closed() -> None:
    """An end that comes too late is told to nobody."""
    watched = Watched(ends=[Deferred()])
    ends = watched.ends[0]
    watched.sees(up("a"), labels=STARTED)
    watched.sees(FAILED, labels=STARTED)
    watched.watch.close()
    ends.callback(Exit(3))
    assert watched.watcher.kinds() == ["running"]


def test_names() -> None:
    """Without any task the mark is the name."""
    assert run_name(picture(labels=STARTED)) == "s1:mark"
    assert run_name(picture()) == "s1:"


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["start", "end", "fail", "leave", "die", "forget", "away", "scale", "lose", "find"]),
        st.integers(0, 3),
    ),
    max_size=25,
)


@given(MOVES)
def test_the_rules_are_kept(moves: list[tuple[str, int]]) -> None:
    """An end is told once for a run and never before the run, nothing of a run after its end, no task is told
    that does not run, and in the end the watcher knows how it is."""
    watched, tasks, replicas, down, made = Watched(), dict[int, SwarmTask](), 1, "", 0
    for move, which in moves:
        present = tasks.get(which)
        if move == "start":
            made += 1
            tasks[which] = up(f"t{made}", made % 50, slot=which)
        elif move == "scale":
            replicas = which
        elif move == "away":
            watched.watch.unseen(AWAY)
        elif move in ("lose", "find"):
            down = "b" if move == "lose" else ""
        elif move == "forget":
            tasks.pop(which, None)
        elif present is not None and not present.over:
            if move == "end":
                tasks[which] = evolve(present, state="shutdown", desired="shutdown")
            elif move == "fail":
                tasks[which] = evolve(present, state="failed", desired="shutdown", code=1)
            elif move == "leave":
                tasks[which] = evolve(present, desired="remove")
            else:
                tasks[which] = evolve(present, died=Exit(137))
        now = picture(*tasks.values(), replicas=replicas, down=down, labels=STARTED)
        watched.watch.seen(now, FAR)
        last = watched.watcher.events[-1]
        if last[0] == "running":
            assert {each.id for each in last[1].tasks} <= {each.id for each in now.running} or not now.running
    alive: str | None = None
    over: set[str] = set()
    for event in watched.watcher.events:
        if event[0] == "running":
            assert event[1].run not in over
            assert alive in (None, event[1].run)
            assert event[1].tasks
            alive = event[1].run
        elif event[0] == "gone" and event[1] is not None:
            assert event[1] == alive
            over.add(event[1])
            alive = None
    if moves:
        adopted = any(each.wanted for each in now.running)
        assert (alive is not None) >= adopted or watched.finished
        if not now.running:
            assert alive is None
