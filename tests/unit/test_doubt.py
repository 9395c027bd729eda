"""What becomes of a model, and of those that need its room, when nobody knows whether it runs."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.logger import LogLevel, capturedLogs

from llmproxy.backend.doubt import DOUBT_MOST, STOP_AGAIN
from llmproxy.fleet.fleet import Fleet
from tests.fake_swarm import FakeReplicator, FakeSwarm
from tests.fakes import FakeController, FakeRuntime
from tests.one_gpu import Client, OneGpu


class DoubtTests(OneGpu):
    """A start, or a stop, that its engine did not answer."""

    def apart(self, engine: FakeController) -> FakeController:
        """x and y do not fit beside each other, and only x is that engine's."""
        self.build(x={}, y={})
        self.end()
        specs = dict(self.config.backends)
        specs["y"] = evolve(specs["y"], runtime="process", command=("y",))
        self.config = evolve(self.config, backends=specs)
        self.world = FakeController(hold_stops=True)
        its = FakeReplicator(engine) if isinstance(engine, FakeSwarm) else FakeRuntime(engine)
        runtimes = {"docker": its, "process": FakeRuntime(self.world)}
        self.fleet = Fleet(self.clock, self.servers.connect, runtimes, self.config)
        self.fleet.start()
        return engine

    def unsure(self) -> FakeController:
        """x has been started by an engine that did not answer to it; y, which does not fit beside it, waits.

        :return: the engine.
        """
        engine = self.apart(FakeController(hold_starts=True))
        asked = self.ask("x")
        engine.go_away("it said 500")
        self.assertEqual([refusal.code for refusal in asked.refusals], ["runtime_unavailable"])
        self.waiting = self.ask("y")
        self.settle()
        self.assertEqual((self.waiting.served, self.world.count("ensure_started", "y")), (False, 0))
        return engine

    def test_a_start_that_nobody_knows_of_keeps_its_room(self) -> None:
        """It runs after all, and is found; only when it has left the other one starts."""
        engine = self.unsure()
        engine.hold_starts = False
        engine._away = None
        engine.become_running("x")
        self.settle()
        self.assertEqual((self.world.count("ensure_started", "y"), engine.count("stop", "x")), (1, 1))
        self.assertTrue(self.waiting.served)

    def test_a_stop_that_nobody_knows_of_keeps_its_room(self) -> None:
        """It runs on, and is found when the engine answers; only when it has left the other one starts."""
        engine = self.apart(FakeController(hold_stops=True))
        self.serve("x")
        self.clock.advance(60)
        waiting = self.ask("y")
        self.settle()
        self.assertEqual(engine.count("stop", "x"), 1)
        engine.go_away("it said 500")
        self.settle()
        self.assertEqual(self.fleet.backends["x"].state, "absent")
        self.assertEqual((waiting.served, self.world.count("ensure_started", "y")), (False, 0))
        engine.hold_stops = False
        engine.come_back()
        self.settle()
        self.assertEqual((engine.count("stop", "x"), engine.is_running("x")), (2, False))
        self.assertTrue(waiting.served)

    def removed(self, engine: FakeController | None = None) -> FakeController:
        """x is configured no more, and its engine did not answer to its stop; y waits for its room.

        :return: the engine.
        """
        engine = self.apart(engine or FakeController(hold_stops=True))
        self.serve("x")
        backends = {"y": self.config.backends["y"]}
        self.fleet.apply(evolve(self.config, backends=backends))
        self.waiting = self.ask("y")
        self.settle()
        self.assertEqual(engine.stopping(), {"x"})
        engine.go_away("it said 500")
        self.settle()
        self.assertEqual((self.waiting.served, self.world.count("ensure_started", "y")), (False, 0))
        return engine

    def test_a_stop_of_what_is_configured_no_more_keeps_its_room(self) -> None:
        """Until the engine says that it has ended."""
        engine = self.removed()
        engine.exit("x", 143)
        engine.come_back()
        self.settle()
        self.assertTrue(self.waiting.served)
        self.assertEqual(engine.count("unwatch", "x"), 1)

    def test_what_is_configured_no_more_and_runs_on_is_stopped_again(self) -> None:
        """At once when the engine says so, and then with pauses, until one stop is answered."""
        engine = self.removed()
        for tries in (2, 3):
            engine.come_back()
            self.settle()
            self.clock.advance(STOP_AGAIN if tries > 2 else 0)
            self.assertEqual((engine.count("stop", "x"), engine.stopping()), (tries, {"x"}))
            engine.go_away("it said 500")
        engine.come_back()
        self.settle()
        self.clock.advance(STOP_AGAIN - 0.1)
        self.assertEqual((engine.count("stop", "x"), self.waiting.served), (3, False))
        self.clock.advance(0.1)
        engine.finish_stop("x")
        self.settle()
        self.assertEqual((engine.count("stop", "x"), self.waiting.served), (4, True))
        self.assertEqual(engine.count("unwatch", "x"), 1)

    def test_what_another_proxy_has_started_is_left_alone(self) -> None:
        """Several may ask for a service; elsewhere it is a policy that has restarted it."""
        for engine, tries in ((FakeSwarm(hold_stops=True), 1), (FakeController(hold_stops=True), 2)):
            self.removed(engine)
            engine.exit("x", 143)
            other = engine.become_running("x")
            engine.come_back()
            self.settle()
            self.assertEqual((engine.count("stop", "x"), engine.instance("x")), (tries, other))
            self.assertEqual(self.waiting.served, tries == 1)

    def test_a_stop_of_what_is_configured_no_more_takes_as_long_as_it_takes(self) -> None:
        """While the engine is at it, nobody takes its room."""
        engine = self.removed()
        engine.come_back()
        self.settle()
        self.clock.advance(2 * DOUBT_MOST)
        self.settle()
        self.assertFalse(self.waiting.served)
        engine.exit("x", 137)
        self.settle()
        self.assertTrue(self.waiting.served)

    def test_a_stop_that_comes_to_nothing_after_all_that_time_is_the_last(self) -> None:
        """It is told that it may have to be ended by hand."""
        engine = self.removed()
        engine.come_back()
        self.settle()
        self.clock.advance(2 * DOUBT_MOST)
        with capturedLogs() as told:
            engine.go_away("it said 500")
            self.settle()
        self.assertEqual([event["backend"] for event in told if event["log_level"] is LogLevel.warn], ["x"])
        self.assertTrue(self.waiting.served)

    def replaced(self) -> FakeController:
        """x has another configuration, and its stop is on its way."""
        engine = self.apart(FakeController(hold_stops=True))
        self.serve("x")
        self.change(gpu_memory=0.3)
        return engine

    def change(self, **fields: Any) -> None:
        changed = evolve(self.config.backends["x"], **fields)
        self.config = evolve(self.config, backends={**self.config.backends, "x": changed})
        self.fleet.apply(self.config)

    def test_a_successor_starts_when_the_stop_is_answered(self) -> None:
        """Not when its predecessor's end is seen: the engine may be about to end what has that name."""
        engine = self.replaced()
        waiting = self.ask("x")
        engine.go_away("it said 500")
        self.settle()
        engine.come_back()
        self.settle()
        self.assertEqual((engine.count("stop", "x"), engine.stopping()), (2, {"x"}))
        engine.vanish("x")
        self.settle()
        self.assertEqual((engine.count("ensure_started", "x"), engine.is_running("x")), (1, False))
        engine.finish_stop("x")
        self.settle()
        self.assertEqual((waiting.served, engine.is_running("x")), (True, True))

    def test_the_proxy_ends_when_that_stop_is_answered(self) -> None:
        """Where it stops its backends at its end."""
        engine = self.removed()
        engine.come_back()
        self.settle()
        self.fleet.config = evolve(self.fleet.config, stop_backends_on_exit=True)
        closed = self.fleet.close()
        self.settle()
        self.assertNoResult(closed)
        engine.finish_stop("x")
        self.successResultOf(closed)

    def test_no_other_process_takes_over_meanwhile(self) -> None:
        """It would know nothing of it: neither while the engine is away, nor between two tries."""
        engine = self.removed()
        self.assertEqual(list(self.fleet.changing), ["x"])
        for _ in range(2):
            engine.come_back()
            self.settle()
            engine.go_away("it said 500")
            self.assertEqual(list(self.fleet.changing), ["x"])

    def test_one_that_never_had_its_turn_is_no_doubt(self) -> None:
        """Two that were replaced while they waited for the first one's end have not been started."""
        engine = self.replaced()
        self.moves("x")
        engine.go_away("it said 500")
        self.settle()
        self.assertEqual(self.states()["x"], "starting")
        for memory in (0.2, 0.1):
            self.change(gpu_memory=memory)
            self.moves("x")
        self.clock.advance(DOUBT_MOST)
        self.settle()
        self.assertEqual(self.fleet.changing, [])

    def moves(self, name: str) -> None:
        """Somebody asks, who goes on to whatever takes its place."""

        class Moves(Client):
            def handed_on(self, route: str | None) -> None:
                pass

        self.fleet.backends[name].enter(Moves())
        self.settle()

    def test_a_start_that_nobody_knows_of_is_ended_where_it_is_configured_no_more(self) -> None:
        """It had come to something."""
        engine = self.unsure()
        self.fleet.apply(evolve(self.config, backends={"y": self.config.backends["y"]}))
        engine.hold_starts = False
        engine._away = None
        engine.become_running("x")
        self.settle()
        self.assertEqual((engine.count("stop", "x"), engine.is_running("x")), (1, False))
        self.assertTrue(self.waiting.served)

    def test_an_engine_of_what_is_configured_no_more_never_comes_back(self) -> None:
        """Nobody waits for it for ever; it is told that it may have to be ended by hand."""
        engine = self.removed()
        with capturedLogs() as told:
            self.clock.advance(DOUBT_MOST)
            self.settle()
        self.assertEqual([event["backend"] for event in told if event["log_level"] is LogLevel.warn], ["x"])
        self.assertTrue(self.waiting.served)
        self.assertEqual(engine.count("unwatch", "x"), 1)

    def test_the_proxy_ends_in_doubt_of_what_is_configured_no_more(self) -> None:
        """It is waited for no more, which is no error."""
        self.removed()

    def test_a_successor_waits_for_the_stop_that_nobody_knows_of(self) -> None:
        """It is not started beside what may still run."""
        engine = self.apart(FakeController(hold_stops=True))
        self.serve("x")
        changed = evolve(self.config.backends["x"], container="another")
        self.fleet.apply(evolve(self.config, backends={**self.config.backends, "x": changed}))
        waiting = self.ask("x")
        self.settle()
        engine.go_away("it said 500")
        engine._away = None
        self.settle()
        self.assertEqual((waiting.served, engine.count("ensure_started", "x")), (False, 1))
        engine.exit("x", 143)
        self.settle()
        self.assertEqual((waiting.served, engine.count("ensure_started", "x")), (True, 2))

    def test_a_successor_starts_when_what_was_not_stopped_has_been(self) -> None:
        """The engine says that it runs on, and it is told to end once more: it is not as it is configured."""
        engine = self.apart(FakeController(hold_stops=True))
        self.serve("x")
        changed = evolve(self.config.backends["x"], stop_grace=2.0, container="another")
        self.fleet.apply(evolve(self.config, backends={**self.config.backends, "x": changed}))
        waiting = self.ask("x")
        engine.go_away("it said 500")
        self.settle()
        engine.come_back()
        self.settle()
        self.assertEqual((waiting.served, self.states()["x"], engine.stopping()), (False, "absent", {"x"}))
        engine.finish_stop("x")
        self.settle()
        self.assertEqual((waiting.served, engine.count("ensure_started", "x")), (True, 2))

    def test_a_start_that_came_to_nothing_gives_its_room_back(self) -> None:
        """As soon as the engine says so."""
        self.unsure().come_back()
        self.settle()
        self.assertTrue(self.waiting.served)

    def test_an_engine_that_never_comes_back(self) -> None:
        """Nobody waits for it for ever."""
        self.unsure()
        self.clock.advance(DOUBT_MOST)
        self.settle()
        self.assertTrue(self.waiting.served)

    def test_what_nobody_knows_of_may_be_asked_for_again(self) -> None:
        """Its own room is no obstacle to it."""
        engine = self.unsure()
        self.assertEqual(len(self.ask("x").refusals), 1)
        self.assertEqual(engine.count("ensure_started", "x"), 2)
