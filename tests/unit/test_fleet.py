"""All backends together: which there are, reload, and the end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import evolve
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.gate import Lease
from llmproxy.backend.probe import INTERVAL
from llmproxy.backend.surroundings import Event, Transition
from llmproxy.config.model import BackendSpec, Config, Key
from llmproxy.errors import Refusal
from llmproxy.fleet.fleet import Fleet
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Servers


class Waiting:
    """A waiter that writes down what it is told."""

    priority = 0
    may_evict = True

    def __init__(self) -> None:
        self.leases: list[Lease] = []
        self.refusals: list[Refusal] = []
        self.routes: list[str | None] = []

    def affinity(self) -> bytes | None:
        return None

    def admitted(self, lease: Lease) -> None:
        self.leases.append(lease)

    def refused(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)

    def cut(self, reason: str) -> None:
        self.leases.pop().release()

    def handed_on(self, route: str | None) -> None:
        self.routes.append(route)


def spec(route: str, **fields: object) -> BackendSpec:
    """One that all others fit beside."""
    settings: dict[str, Any] = {"gpu_memory": 0.0, **fields}
    return BackendSpec(route=route, container=f"c-{route}", models=(f"m-{route}",), **settings)


def _states(events: Iterable[Event]) -> list[str]:
    return [event.new for event in events if isinstance(event, Transition)]


class FleetTests(SynchronousTestCase):
    """One fleet, one story each."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.world = FakeController()
        self.servers = Servers(mode="healthy")
        self.config = Config(backends={"a": spec("a"), "b": spec("b", aliases=("bee",))})

    def fleet(self, config: Config | None = None) -> Fleet:
        fleet = Fleet(
            self.clock, self.servers.connect, {"docker": FakeRuntime(self.world)}, config or self.config
        )
        self.successResultOf(fleet.start())
        return fleet

    def with_backends(self, **specs: BackendSpec) -> Config:
        return evolve(self.config, backends=specs)

    def test_a_model_is_found_by_name_alias_and_route(self) -> None:
        """In this order; anything else is nobody's."""
        fleet = self.fleet()
        for name, route in (("m-a", "a"), ("bee", "b"), ("B", "b")):
            found = fleet.serving(name)
            assert found is not None
            self.assertEqual(found.name, route)
        self.assertIsNone(fleet.serving("nobody"))

    def test_what_runs_at_the_start_is_adopted(self) -> None:
        """Nothing is started twice."""
        self.world.become_running("a")
        fleet = self.fleet()
        self.assertEqual(fleet.backends["a"].state, "ready")
        self.assertEqual(self.world.count("ensure_started"), 0)

    def test_prewarmed_backends_are_started(self) -> None:
        """With the proxy, and those that a reload adds, too."""
        fleet = self.fleet(self.with_backends(a=spec("a", prewarm=True)))
        self.assertEqual(fleet.backends["a"].state, "ready")
        fleet.apply(self.with_backends(a=spec("a", prewarm=True), c=spec("c", prewarm=True)))
        self.assertEqual(fleet.backends["c"].state, "ready")

    def test_a_reload_leaves_alone_what_did_not_change(self) -> None:
        """The same backend goes on."""
        fleet = self.fleet()
        fleet.backends["a"].demand()
        before = fleet.backends["a"]
        self.assertEqual(fleet.apply(self.config), [])
        self.assertIs(fleet.backends["a"], before)
        self.assertEqual(before.state, "ready")

    def test_a_reload_retunes_what_runs(self) -> None:
        """Another idle time takes effect at once, and nothing is stopped."""
        fleet = self.fleet()
        fleet.backends["a"].demand()
        fleet.apply(self.with_backends(a=spec("a", idle=5.0), b=self.config.backends["b"]))
        self.clock.advance(4)
        self.assertEqual(fleet.backends["a"].state, "ready")
        self.clock.advance(1)
        self.assertEqual(fleet.backends["a"].state, "absent")

    def test_a_changed_server_is_replaced_when_its_streams_have_ended(self) -> None:
        """What is in flight finishes; what comes meanwhile waits for the new one."""
        fleet = self.fleet()
        fleet.backends["a"].demand()
        streaming, waiting = Waiting(), Waiting()
        fleet.backends["a"].enter(streaming)
        done = fleet.apply(self.with_backends(a=spec("a", port=9), b=self.config.backends["b"]))
        self.assertEqual(done, ["replaced a"])
        self.assertTrue(self.world.is_running("a"))
        fleet.backends["a"].enter(waiting)
        self.assertEqual(waiting.leases, [])
        streaming.leases[0].release()
        self.clock.advance(INTERVAL)
        self.assertEqual(self.world.count("stop", "a"), 1)
        self.assertEqual(self.world.count("ensure_started", "a"), 2)
        self.assertEqual(len(waiting.leases), 1)

    def test_waiters_of_a_replaced_backend_are_handed_on(self) -> None:
        """They are told the route to enter again; those of a removed one that there is none."""
        self.world.hold_starts = True
        fleet = self.fleet()
        first, second = Waiting(), Waiting()
        fleet.backends["a"].enter(first)
        fleet.backends["b"].enter(second)
        fleet.apply(self.with_backends(a=spec("a", port=9)))
        self.assertEqual((first.routes, second.routes), (["a"], [None]))

    def test_a_removed_route_is_stopped(self) -> None:
        """And watched no more."""
        fleet = self.fleet()
        fleet.backends["b"].demand()
        self.assertEqual(fleet.apply(self.with_backends(a=spec("a"))), ["removed b"])
        self.assertFalse(self.world.is_running("b"))
        self.assertEqual(self.world.count("unwatch", "b"), 1)
        self.assertIsNone(fleet.route("b"))

    def test_a_second_reload_waits_for_the_first_ones_end_too(self) -> None:
        """Of two quick changes only the last is started, when what runs has drained, and it is watched."""
        for asked_between in (False, True):
            fleet = self.fleet()
            fleet.backends["a"].demand()
            streaming, waiting = Waiting(), Waiting()
            fleet.backends["a"].enter(streaming)
            fleet.apply(self.with_backends(a=spec("a", port=9)))
            if asked_between:
                fleet.backends["a"].enter(Waiting())
            fleet.apply(self.with_backends(a=spec("a", port=10)))
            starts = self.world.count("ensure_started", "a")
            fleet.backends["a"].enter(waiting)
            self.assertTrue(self.world.is_running("a"))
            self.assertEqual((waiting.leases, fleet.in_flight()), ([], 1))
            streaming.leases[0].release()
            self.clock.advance(INTERVAL)
            self.assertEqual(self.world.count("ensure_started", "a"), starts + 1)
            self.assertEqual(len(waiting.leases), 1)
            self.world.exit("a", 1)
            self.assertEqual(fleet.backends["a"].state, "absent")
            self.successResultOf(fleet.close())

    def test_a_route_that_comes_back_waits_for_its_old_end(self) -> None:
        """It neither adopts what is about to end nor is unwatched with it."""
        fleet = self.fleet()
        fleet.backends["a"].demand()
        streaming, waiting = Waiting(), Waiting()
        fleet.backends["a"].enter(streaming)
        fleet.apply(self.with_backends(b=spec("b")))
        fleet.apply(self.with_backends(a=spec("a"), b=spec("b")))
        self.assertEqual(fleet.backends["a"].state, "absent")
        fleet.backends["a"].enter(waiting)
        streaming.leases[0].release()
        self.clock.advance(INTERVAL)
        self.assertEqual(len(waiting.leases), 1)
        self.assertEqual(self.world.count("unwatch", "a"), 0)
        self.world.exit("a", 1)
        self.assertEqual(fleet.backends["a"].state, "absent")

    def test_the_end_counts_and_cuts_what_is_configured_no_more(self) -> None:
        """A stream of a removed route is waited for like any other, and cut like any other."""
        fleet = self.fleet()
        fleet.backends["a"].demand()
        streaming = Waiting()
        fleet.backends["a"].enter(streaming)
        fleet.apply(self.with_backends(b=spec("b")))
        self.assertEqual(fleet.in_flight(), 1)
        self.successResultOf(fleet.close())
        self.assertEqual((streaming.leases, fleet.in_flight()), ([], 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_new_secrets_count_for_old_backends(self) -> None:
        """A key that a reload adds is not shown in logs."""
        fleet = self.fleet()
        fleet.apply(evolve(self.config, keys=(Key("k", "brand-new"),)))
        self.assertEqual(fleet.backends["a"].redacted("brand-new"), "***")

    def test_the_end_leaves_backends_running(self) -> None:
        """And nothing else: no timer, no runtime."""
        fleet = self.fleet()
        fleet.backends["a"].demand()
        self.successResultOf(fleet.close())
        self.assertTrue(self.world.is_running("a"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_end_stops_backends_when_so_configured(self) -> None:
        """stop_backends_on_exit waits for their end."""
        fleet = self.fleet(evolve(self.config, stop_backends_on_exit=True))
        fleet.backends["a"].demand()
        self.world.hold_stops = True
        closing = fleet.close()
        self.assertNoResult(closing)
        self.world.finish_stop("a")
        self.successResultOf(closing)
        self.assertFalse(self.world.is_running("a"))

    def test_events_are_kept_and_followed(self) -> None:
        """Each transition with its reason."""
        fleet = self.fleet()
        heard: list[Event] = []
        end = fleet.follow(heard.append)
        fleet.backends["a"].demand()
        end()
        fleet.backends["a"].stop_wanted("test")
        self.assertEqual(_states(heard), ["starting", "ready"])
        self.assertEqual(_states(fleet.events), ["starting", "ready", "stopping", "absent"])
