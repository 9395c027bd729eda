"""How long a start in a Swarm waits for what, and how an end is seen."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import BackendSpec, DockerSettings
from llmproxy.engines.phases import Phase
from llmproxy.runtimes.interface import Exit, Instance, RuntimeUnavailable, StartRefused, unheard
from llmproxy.runtimes.swarm_labels import RUN
from llmproxy.runtimes.swarm_scale import Leaving
from llmproxy.runtimes.swarm_start import AWAY_MOST, PREPARED_WITHIN, UNREACHED_MOST, Arrival, Begun
from llmproxy.runtimes.swarm_starts import Starts
from llmproxy.runtimes.swarm_state import Picture, SwarmTask
from llmproxy.runtimes.swarm_stop import Ending
from llmproxy.runtimes.swarm_watch import SwarmWatch
from tests.fakes import RecordingWatcher
from tests.unit.swarm_cases import FAR, picture, task

SPEC = BackendSpec("m", runtime="swarm", service="m", port=8000, start_timeout=60.0)
AWAY = Failure(RuntimeUnavailable("away"))
ROOM = "no suitable node (insufficient resources on 3 nodes)"


class ArrivalTests(SynchronousTestCase):
    """One start."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.steps: list[Phase] = []
        self.arrival = Arrival(self.clock, SPEC, Begun(frozenset(), True), self.steps.append)

    def sees(self, *tasks: SwarmTask, replicas: int = 1) -> None:
        self.arrival.seen(picture(*tasks, replicas=replicas, labels={RUN: "mark"}), FAR)

    def refused(self) -> str:
        error: Any = self.failureResultOf(self.arrival.over, StartRefused).value
        self.assertTrue(error.hint)
        return str(error)

    def test_it_runs(self) -> None:
        """Its phases are told, each once, until it runs."""
        pending = task("a", "pending", ran=False)
        self.sees(pending)
        self.sees(pending)
        self.sees(evolve(pending, error=ROOM))
        self.sees(evolve(pending, state="preparing"))
        self.sees(task("a", port=32768))
        self.sees()
        arrived = self.successResultOf(self.arrival.over)
        self.assertEqual(arrived.verdict.kind, "runs")
        self.assertEqual(self.steps, [Phase("placing"), Phase("placing", reason=ROOM), Phase("pulling")])

    def test_no_node_in_time(self) -> None:
        """It is refused with Swarm's reason."""
        pending = task("a", "pending", error=ROOM, ran=False)
        self.sees(pending)
        self.clock.advance(59)
        self.sees(pending)
        self.assertNoResult(self.arrival.over)
        self.clock.advance(1)
        self.sees(pending)
        self.assertIn(ROOM, self.refused())

    def test_a_long_pull(self) -> None:
        """Once it has a node its image may take long to come; not for ever."""
        preparing = task("a", "preparing", ran=False)
        self.sees(preparing)
        self.clock.advance(PREPARED_WITHIN - 1)
        self.sees(preparing)
        self.assertNoResult(self.arrival.over)
        self.clock.advance(1)
        self.sees(preparing)
        self.assertIn("preparing all the time", self.refused())

    def test_no_way_to_it(self) -> None:
        """It runs, and no address leads to it: that is told, with what to do."""
        self.sees(task("a"))
        self.clock.advance(UNREACHED_MOST)
        self.sees(task("a"))
        self.assertIn("no address leads to it", self.refused())
        self.assertEqual(self.arrival.to_end, "mark")

    def test_no_way_to_what_another_has_started(self) -> None:
        """It may serve that other proxy, and goes on."""
        self.arrival = Arrival(self.clock, SPEC, Begun(frozenset(), False), self.steps.append)
        self.sees(task("a"))
        self.clock.advance(UNREACHED_MOST)
        self.sees(task("a"))
        self.refused()
        self.assertIsNone(self.arrival.to_end)

    def test_the_manager_goes(self) -> None:
        """Another one may take its place; when none does, that is told."""
        self.arrival.unseen(AWAY)
        self.clock.advance(AWAY_MOST - 1)
        self.arrival.unseen(AWAY)
        self.sees(task("a", "pending", ran=False))
        self.arrival.unseen(AWAY)
        self.clock.advance(AWAY_MOST - 1)
        self.arrival.unseen(AWAY)
        self.assertNoResult(self.arrival.over)
        self.clock.advance(1)
        self.arrival.unseen(AWAY)
        self.failureResultOf(self.arrival.over, RuntimeUnavailable)

    def test_refused_by_its_node(self) -> None:
        """In the words of that node."""
        self.sees(task("a", "rejected", "shutdown", ran=False, error="No such image: i:1"))
        self.assertEqual(self.refused(), "service 'm' cannot be started: No such image: i:1")
        self.assertEqual(self.arrival.to_end, "mark")


class FakeManager:
    """Answers when the test says so.  Also a monitor, of which nobody is told anything."""

    def __init__(self) -> None:
        self.calls: list[Deferred[Any]] = []
        self.subjects: list[object] = []

    def call(self, job: object) -> Deferred[Any]:
        self.calls.append(Deferred())
        return self.calls[-1]

    def add(self, subject: object) -> None:
        self.subjects.append(subject)

    def remove(self, subject: object) -> None:
        self.subjects.remove(subject)


class StoppedStartTests(SynchronousTestCase):
    """A start that is stopped before its first task runs."""

    def setUp(self) -> None:
        manager: Any = FakeManager()
        ends: Any = None
        self.manager: FakeManager = manager
        self.starts = Starts(
            Clock(), manager, manager, ends, DockerSettings(), None, "me", lambda route: None
        )
        self.started = self.starts.start(SPEC, unheard)

    def test_while_it_is_written_down(self) -> None:
        """What is asked of the manager already is waited for, so that the stop ends that, too."""
        stopped = self.starts.stop("m")
        self.assertNoResult(stopped)
        self.manager.calls[0].callback(Begun(frozenset(), True))
        self.failureResultOf(self.started, StartRefused)
        self.successResultOf(stopped)
        self.assertEqual(self.manager.subjects, [])

    def test_before_its_service_is_there(self) -> None:
        """It does not go on to start what it has just created."""
        self.manager.calls[0].callback(None)
        self.failureResultOf(self.started, StartRefused)
        self.started = self.starts.start(evolve(SPEC, image="i"), unheard)
        self.manager.calls[1].callback(None)
        stopped = self.starts.stop("m")
        self.assertNoResult(stopped)
        self.manager.calls[2].callback(None)
        self.failureResultOf(self.started, StartRefused)
        self.successResultOf(stopped)
        self.assertEqual(len(self.manager.calls), 3)

    def test_while_it_waits_for_a_node(self) -> None:
        """It is over at once, and another start after that is one of its own."""
        self.manager.calls[0].callback(Begun(frozenset(), True))
        self.assertEqual(len(self.manager.subjects), 1)
        self.successResultOf(self.starts.stop("m"))
        self.failureResultOf(self.started, StartRefused)
        self.starts.start(SPEC, unheard)
        self.manager.calls[1].callback(Begun(frozenset(), True))
        self.assertEqual(len(self.manager.subjects), 1)

    def test_what_does_not_start(self) -> None:
        """There is nothing to wait for."""
        self.successResultOf(self.starts.stop("other"))


class FakeEnds:
    """Ends a run that has failed when the test says so."""

    def __init__(self) -> None:
        self.failures: list[Deferred[Exit]] = []

    def failed(self, spec: BackendSpec, found: Picture, ended: SwarmTask) -> Deferred[Exit]:
        self.failures.append(Deferred())
        return self.failures[-1]


FAILED = task("a", "failed", "shutdown", 5, code=3, error="task: non-zero exit (3)")
MARK = {RUN: "mark"}


class BriefStartTests(SynchronousTestCase):
    """A backend that has ended before it was seen running."""

    def setUp(self) -> None:
        self.manager, self.ends = FakeManager(), FakeEnds()
        self.watcher = RecordingWatcher()
        self.watch: SwarmWatch | None = SwarmWatch(
            Clock(), SPEC, self.watcher, self.ends.failed, lambda: False, "me"
        )

    def start(self) -> Deferred[Instance]:
        manager: Any = self.manager
        ends: Any = self.ends
        starts = Starts(Clock(), manager, manager, ends, DockerSettings(), None, "me", lambda _: self.watch)
        started = starts.start(SPEC, unheard)
        self.manager.calls[0].callback(Begun(frozenset(), True))
        (arrival,) = self.manager.subjects
        assert isinstance(arrival, Arrival)
        arrival.seen(picture(FAILED, labels=MARK), FAR)
        return started

    def sees(self, *tasks: SwarmTask, replicas: int = 1) -> None:
        assert self.watch is not None
        self.watch.seen(picture(*tasks, replicas=replicas, labels=MARK), FAR)

    def test_its_status(self) -> None:
        """It is told once nobody goes on trying, whatever is seen of the service meanwhile."""
        self.sees(replicas=0)
        self.assertEqual(self.successResultOf(self.start()).run, "s1:mark")
        self.sees(FAILED, task("b", second=11, port=32768))
        self.sees(FAILED, task("b", "shutdown", "shutdown", 12), replicas=0)
        self.assertEqual(self.watcher.kinds(), ["gone"])
        self.ends.failures[0].callback(Exit(3))
        self.sees(FAILED, replicas=0)
        self.assertEqual(self.watcher.events[1:], [("gone", "s1:mark", Exit(3))])

    def test_its_end_is_seen_first(self) -> None:
        """A look that says the same at the same time changes nothing."""
        started = self.start()
        self.sees(FAILED, replicas=0)
        self.ends.failures[0].callback(Exit(3))
        self.sees(FAILED, replicas=0)
        self.successResultOf(started)
        self.assertEqual(self.watcher.events, [("gone", "s1:mark", Exit(3))])

    def test_the_manager_is_away_then(self) -> None:
        """The next look that succeeds ends it."""
        self.successResultOf(self.start())
        self.ends.failures[0].errback(AWAY)
        self.assertEqual(self.watcher.events, [])
        self.sees(FAILED)
        self.ends.failures[1].callback(Exit(3))
        self.assertEqual(self.watcher.events, [("gone", "s1:mark", Exit(3))])

    def test_nobody_watches(self) -> None:
        """The start is over when Swarm starts no other."""
        self.watch = None
        started = self.start()
        self.assertNoResult(started)
        self.ends.failures[0].callback(Exit(3))
        self.assertEqual(self.successResultOf(started).run, "s1:mark")


class FakeEngine:
    """Writes down what is asked of it."""

    def __init__(self) -> None:
        self.asked = 0

    def call(self, job: object) -> Deferred[None]:
        self.asked += 1
        return succeed(None)


class EndingTests(SynchronousTestCase):
    """Two tasks that end, one of them on our own engine (node a)."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.engine = FakeEngine()
        self.over: list[Ending] = []
        self.near, self.far = task("near", node="a"), task("far", node="b", slot=2)
        tasks = {each.id: each for each in (self.near, self.far)}
        engine: Any = self.engine
        self.ending = Ending(self.clock, engine, "m", tasks, "a", self.over.append)

    def sees(self, *tasks: SwarmTask, down: str = "") -> None:
        self.ending.seen(picture(*tasks, replicas=0, down=down), FAR)

    def test_both_end(self) -> None:
        """It is over when the last one has ended; what is started meanwhile is not waited for."""
        ended = self.ending.start(30)
        self.assertEqual(self.engine.asked, 1)
        self.sees(self.near, self.far)
        self.sees(evolve(self.near, state="shutdown"), self.far, task("new", slot=3))
        self.assertNoResult(ended)
        self.sees(task("new", slot=3))
        self.successResultOf(ended)
        self.assertEqual(self.over, [self.ending])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_signals(self) -> None:
        """TERM, a second one at half the time, KILL at the end of it and again; not to other engines."""
        ended = self.ending.start(30)
        for seconds, asked in ((14.9, 1), (0.2, 2), (14.8, 2), (0.2, 3), (10, 4)):
            self.clock.advance(seconds)
            self.assertEqual(self.engine.asked, asked)
        self.sees(self.far)
        self.clock.advance(10)
        self.assertEqual(self.engine.asked, 4)
        self.sees()
        self.successResultOf(ended)

    def test_at_once(self) -> None:
        """Also one whose container comes only now is killed."""
        self.ending.start(0)
        self.assertEqual(self.engine.asked, 1)
        self.sees(self.near, self.far)
        self.assertEqual(self.engine.asked, 1)
        self.sees(evolve(self.near, container="later"), self.far)
        self.assertEqual(self.engine.asked, 2)

    def test_its_node_is_lost(self) -> None:
        """Nobody will hear of its end."""
        ended = self.ending.start(30)
        self.sees(self.far, down="b")
        self.successResultOf(ended)

    def test_swarm_must_know(self) -> None:
        """What our own engine tells is enough, but not where Swarm is to take away what does not run."""
        died = evolve(self.near, died=task("x", "failed", code=143).exit)
        ended = self.ending.start(30)
        self.ending.told = True
        self.sees(died)
        self.assertNoResult(ended)
        self.sees(evolve(self.near, state="failed"))
        self.successResultOf(ended)

    def test_the_manager_goes(self) -> None:
        """It cannot be seen whether they end."""
        ended = self.ending.start(30)
        self.ending.unseen(AWAY)
        self.clock.advance(AWAY_MOST)
        self.ending.unseen(AWAY)
        self.failureResultOf(ended, RuntimeUnavailable)
        self.assertEqual(self.over, [self.ending])

    def test_given_up(self) -> None:
        """No signal comes any more."""
        ended = self.ending.start(30)
        ended.addErrback(lambda _: None)
        ended.cancel()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class LeavingTests(SynchronousTestCase):
    """One of two leaves, and Swarm says which."""

    def test_it_is_known(self) -> None:
        """When one of them is to end, or has ended."""
        for now in (task("b", "running", "remove", slot=2), task("b", "shutdown", "shutdown", slot=2)):
            leaving = Leaving("m", frozenset(("a", "b")))
            leaving.seen(picture(task("a"), task("b", slot=2), task("c", slot=3)), FAR)
            self.assertNoResult(leaving.known)
            leaving.seen(picture(task("a"), now, task("c", slot=3)), FAR)
            leaving.seen(picture(), FAR)
            self.successResultOf(leaving.known)

    def test_it_cannot_be_seen(self) -> None:
        """The manager is away."""
        leaving = Leaving("m", frozenset("a"))
        leaving.unseen(AWAY)
        self.failureResultOf(leaving.known, RuntimeUnavailable)
