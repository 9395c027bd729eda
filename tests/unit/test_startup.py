"""What is known of a start while it is under way, over a runtime in memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.progress import Forecast
from llmproxy.backend.startup import FOUND
from llmproxy.config.model import BackendSpec, Config
from llmproxy.fleet.fleet import Fleet
from llmproxy.runtimes.interface import RuntimeUnavailable
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Servers
from tests.unit.test_backend import Request, Rig

SHARDS = "Loading safetensors checkpoint shards: {}% Completed | 1/2 [00:01<00:01, 1.5it/s]"
TAKEN = "torch.compile took 6.0 s in total"


class StartupTests(SynchronousTestCase):
    """One backend and its starts."""

    def assertQuiet(self, rig: Rig) -> None:
        rig.scheduler.close()
        rig.backend.close()
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def start(self, rig: Rig, slower: float = 1.0) -> None:
        """A whole start: 2 s until it runs, and then 20 s, 10 of them for weights."""
        rig.world.hold_starts = True
        rig.request()
        rig.clock.advance(2)
        rig.world.finish_start("m")
        for seconds, line in ((4, SHARDS.format(0)), (5, SHARDS.format(50)), (5, SHARDS.format(100))):
            rig.clock.advance(seconds * slower)
            rig.world.print_line("m", line)
        rig.clock.advance(6 * slower)
        rig.world.print_line("m", TAKEN)
        rig.ready(0.1)

    def test_phases_of_a_start(self) -> None:
        """They come from the runtime and from the log, and the last start tells them with their seconds."""
        rig = Rig()
        rig.world.hold_starts = True
        rig.request()
        self.assertEqual(rig.backend.forecast().phase, "creating")
        rig.clock.advance(1)
        rig.world.pull("m")
        self.assertEqual(rig.backend.forecast().phase, "pulling")
        rig.world.pull("m", 0.25)
        self.assertEqual(rig.backend.forecast().progress, 0.25)
        rig.clock.advance(9)
        rig.world.finish_start("m")
        self.assertEqual(rig.backend.forecast().phase, "starting")
        rig.clock.advance(5)
        rig.world.print_line("m", SHARDS.format(50))
        forecast = rig.backend.forecast()
        self.assertEqual((forecast.phase, forecast.progress, forecast.since), ("loading weights", 0.5, 15.0))
        rig.clock.advance(5)
        rig.ready(0.1)
        start = rig.backend.last_start
        assert start is not None
        self.assertEqual(list(start.phases), ["creating", "pulling", "starting", "loading weights"])
        self.assertEqual(list(start.phases.values())[:3], [1.0, 9.0, 5.0])
        self.assertAlmostEqual(start.seconds, 20.1)
        self.assertEqual(rig.backend.forecast(), Forecast())
        self.assertQuiet(rig)

    def test_the_second_start_is_foretold(self) -> None:
        """The first one is not known; of the next the rest is, and it never grows within a phase."""
        rig = Rig()
        self.start(rig)
        for lease in rig.backend.gate.leases():
            lease.release()
        rig.backend.stop_wanted("test")
        self.assertEqual(rig.backend.state, "absent")
        rig.servers.mode = "refuse"
        rig.world.hold_starts = True
        rig.request()
        self.assertAlmostEqual(rig.backend.forecast().eta or 0, 22.1)
        rig.clock.advance(2)
        rig.world.finish_start("m")
        shown: list[tuple[str | None, float]] = []
        for _ in range(60):
            rig.clock.advance(0.5)
            if len(shown) == 10:
                rig.world.print_line("m", SHARDS.format(0))
            forecast = rig.backend.forecast()
            assert forecast.eta is not None
            shown.append((forecast.phase, forecast.eta))
        for (phase, before), (same, after) in pairwise(shown):
            if phase == same:
                self.assertLessEqual(after, before)
        self.assertGreater(shown[0][1], 19)
        # The phase takes longer than it did; what comes after it is still to come.
        self.assertAlmostEqual(shown[-1][1], 6.1, 1)
        rig.ready(0.1)
        self.assertQuiet(rig)

    def test_only_new_phases_are_told(self) -> None:
        """One event for each, none for the first and for a percent."""
        rig = Rig()
        self.start(rig)
        told = [decision.reason for decision in rig.decisions if decision.kind == "phase"]
        self.assertEqual(told, ["loading weights", "compiling"])

    def test_the_log_is_followed_while_it_starts(self) -> None:
        """From its beginning to its end, however it ends, and without the lines of earlier runs."""
        rig = Rig()
        rig.world.print_line("m", SHARDS.format(90))
        rig.request()
        self.assertEqual(rig.world.count("follow_logs"), 1)
        self.assertEqual(rig.backend.forecast().phase, "starting")
        rig.ready()
        self.assertEqual(rig.world._followers["m"], [])
        rig.servers.mode = "refuse"
        rig.world.exit("m", 1)
        rig.request()
        self.assertEqual(len(rig.world._followers["m"]), 1)
        rig.backend.stop_wanted("test", force=True)
        rig.world.print_line("m", TAKEN)
        self.assertEqual(rig.backend.forecast(), Forecast())
        self.assertQuiet(rig)

    def test_a_start_needs_no_log(self) -> None:
        """One that cannot be followed tells no phases, and of another engine none is read."""
        rig = Rig()
        self.patch(FakeRuntime, "follow_logs", lambda *_: fail(RuntimeUnavailable("away")))
        request = rig.request()
        rig.ready()
        self.assertEqual(len(request.leases), 1)
        self.assertQuiet(rig)
        other = Rig(engine="generic")
        other.request()
        self.assertEqual(other.world.count("follow_logs"), 0)
        other.clock.advance(3)
        other.ready(0.1)
        assert other.backend.last_start is not None
        self.assertEqual(list(other.backend.last_start.phases), ["creating", "starting"])

    def test_what_ran_already_is_followed_when_it_is_not_ready_at_once(self) -> None:
        """Its phases are told, and nothing is learned of them."""
        rig = Rig()
        rig.world.become_running("m")
        self.assertEqual(rig.world.count("follow_logs"), 0)
        rig.clock.advance(FOUND)
        self.assertEqual(rig.world.count("follow_logs"), 1)
        rig.world.print_line("m", SHARDS.format(50))
        self.assertEqual(rig.backend.forecast().phase, "loading weights")
        rig.backend.hurry()
        rig.ready(1)
        self.assertEqual(rig.backend.state, "ready")
        self.assertEqual(
            rig.backend.surroundings.learned.estimate("m", rig.backend.fingerprint).measured, set()
        )
        quick = Rig()
        quick.servers.mode = "healthy"
        quick.world.become_running("m")
        self.assertEqual(quick.backend.state, "ready")
        quick.clock.advance(2)
        self.assertEqual(quick.world.count("follow_logs"), 0)
        self.assertQuiet(rig)

    def test_a_start_that_is_over_before_its_log_answers(self) -> None:
        """What comes late belongs to nobody."""
        rig = Rig()
        waiting: Deferred[None] = Deferred()

        def follow(runtime: FakeRuntime, spec: BackendSpec, tail: int, line: Any) -> Deferred[None]:
            rig.backend.stop_wanted("test", force=True)
            return waiting

        self.patch(FakeRuntime, "follow_logs", follow)
        rig.request()
        self.assertTrue(waiting.called)
        self.assertEqual(rig.backend.forecast(), Forecast())
        self.assertQuiet(rig)

    def test_those_who_find_the_queue_full_are_told_when(self) -> None:
        """As far as that is known; else soon."""
        rig = Rig(max_waiting=1)
        rig.world.hold_starts = True
        rig.request()
        (refusal,) = rig.request().refusals
        self.assertEqual((refusal.code, refusal.retry_after), ("queue_full", 1.0))
        learned = rig.backend.surroundings.learned
        learned.started("m", rig.backend.fingerprint, {"creating": 5.0, "starting": 40.0}, 45.0)
        rig.backend.stop_wanted("test", force=True)
        rig.world.fail_start("m", RuntimeUnavailable("away"))
        rig.request()
        (refusal,) = rig.request().refusals
        self.assertEqual((refusal.code, refusal.retry_after), ("queue_full", 45.0))
        rig.clock.advance(4000)
        self.assertEqual(rig.backend.retry_after(7), 40.0)

    def test_the_proxys_end_is_told_with_it(self) -> None:
        """A start goes on without the proxy."""
        rig = Rig()
        rig.world.hold_starts = True
        learned = rig.backend.surroundings.learned
        learned.started("m", rig.backend.fingerprint, {"creating": 5.0, "starting": 40.0}, 45.0)
        request = rig.request()
        rig.backend.refuse_all()
        self.assertEqual([refusal.retry_after for refusal in request.refusals], [45.0])

    def test_a_start_past_its_time_tells_how_far_it_was(self) -> None:
        """Beside the log's last line."""
        rig = Rig(start_timeout=60)
        request = rig.request()
        rig.world.print_line("m", SHARDS.format(50))
        rig.clock.advance(60)
        (refusal,) = request.refusals
        self.assertIn("It was loading weights then.", refusal.message)


class RoomTests(SynchronousTestCase):
    """Two that do not fit on one GPU together."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.world = FakeController()
        self.servers = Servers(mode="healthy")
        specs = {
            name: BackendSpec(route=name, container=name, models=(name,), gpu_memory=0.6, gpus=("0",))
            for name in ("a", "b")
        }
        self.fleet = Fleet(
            self.clock, self.servers.connect, {"docker": FakeRuntime(self.world)}, Config(backends=specs)
        )
        self.successResultOf(self.fleet.start())
        self.a, self.b = self.fleet.backends["a"], self.fleet.backends["b"]
        self.fleet.learned.started("b", self.b.fingerprint, {"creating": 1.0, "starting": 29.0}, 30.0)
        self.fleet.learned.stopped("a", self.a.fingerprint, 4.0)

    def test_who_waits_for_room_is_told_for_what(self) -> None:
        """And how long the other one's end and its own start take; nobody knows when a busy one has done."""
        busy = Request(self.a)
        self.a.enter(busy)
        self.clock.advance(1)
        self.assertEqual(self.a.state, "ready")
        waiting = Request(self.b)
        self.b.enter(waiting)
        self.clock.advance(1)
        forecast = self.b.forecast()
        self.assertEqual((forecast.phase, forecast.eta, forecast.since), ("waiting for room", None, 1.0))
        self.assertIn("a is busy", forecast.reason or "")
        self.assertEqual(self.b.retry_after(5), 5)
        self.world.hold_stops = True
        busy.leases[0].release()
        self.clock.advance(40)
        self.assertEqual(self.a.state, "stopping")
        self.assertEqual(self.b.forecast().phase, "waiting for room")
        self.assertAlmostEqual(self.b.forecast().eta or 0, 30.0 + max(0.0, self.a.since + 4 - 42))
        # It is wanted again itself while it ends.
        again = Request(self.a)
        self.a.enter(again)
        self.assertIn(self.a.forecast().phase, ("stopping", "waiting for room"))
        self.world.hold_starts = True
        self.world.finish_stop("a")
        self.clock.advance(1)
        self.assertEqual(self.b.state, "starting")
        self.assertAlmostEqual(self.b.forecast().eta or 0, 29.0, 0)

    def test_who_waits_for_anothers_start_is_told_how_long_that_takes(self) -> None:
        """One starts at a time; its end is not known before it has begun to serve."""
        self.fleet.learned.started("a", self.a.fingerprint, {"creating": 1.0, "starting": 19.0}, 20.0)
        self.servers.mode = "refuse"
        self.a.enter(Request(self.a))
        self.clock.advance(5)
        self.b.enter(Request(self.b))
        self.clock.advance(1)
        forecast = self.b.forecast()
        self.assertEqual(forecast.phase, "waiting for room")
        self.assertAlmostEqual(forecast.eta or 0, 19.0 - 6 + 30.0)

    def test_a_failed_start_names_its_neighbours(self) -> None:
        """Where the GPU's memory is the cause."""
        self.servers.mode = "refuse"
        self.assertEqual(self.fleet.scheduler.neighbours(self.b), ())
        self.world.become_running("a")
        self.assertEqual(self.fleet.scheduler.neighbours(self.b), ("a",))
        self.world.become_running("b")
        self.clock.advance(2)
        self.world.print_line("b", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
        self.world.exit("b", 1)
        failure = self.b.last_failure
        assert failure is not None
        self.assertIn("llmproxy runs there as well: a.", failure.hint or "")
