"""Several engines as one runtime: where a backend is, and what its watcher is told of it."""

from __future__ import annotations

from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.compose import ComposeService
from llmproxy.config.labels import LabelledContainer
from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.docker_ssh import ssh_command
from llmproxy.runtimes.hosts import HostsRuntime
from llmproxy.runtimes.hosts_route import MOST_LOSSES, Route
from llmproxy.runtimes.interface import (
    Exit,
    Facts,
    IHosts,
    Instance,
    IRuntime,
    RuntimeFaulty,
    RuntimeUnavailable,
    StartRefused,
)
from tests.fake_hosts import FakeEngine, FakeHosts
from tests.fakes import RecordingWatcher

SPEC = BackendSpec("chat", container="chat", image="demo:1")


class HostsCase(SynchronousTestCase):
    """Three hosts, one backend."""

    def setUp(self) -> None:
        self.world = FakeHosts()
        self.runtime = self.world.runtime
        self.watcher = RecordingWatcher()

    def begin(self, spec: BackendSpec = SPEC) -> None:
        self.spec = spec
        self.runtime.start()
        # As the scheduler does.
        self.runtime.on_hosts_change(self.runtime.end_doubles)
        self.addCleanup(self.runtime.close)
        self.successResultOf(self.runtime.watch(spec, self.watcher))

    def start_on(self, host: str) -> Instance:
        self.runtime.place(self.spec, host)
        return self.successResultOf(self.runtime.ensure_started(self.spec))

    def told(self) -> list[Any]:
        return [event[:2] for event in self.watcher.events]

    @property
    def at(self) -> str:
        return self.runtime.host_of(self.spec)


class WhereTests(HostsCase):
    """On which host it is, and may be."""

    def test_it_is_a_runtime_on_hosts(self) -> None:
        """It keeps both interfaces."""
        runtime: IRuntime = self.runtime
        assert isinstance(runtime, IHosts)

    def test_nothing_runs_anywhere(self) -> None:
        """That is told once all hosts have said so."""
        self.begin()
        self.assertEqual(self.watcher.events, [("gone", None, Exit())])
        self.assertEqual(self.at, "")

    def test_what_is_not_known_yet_is_waited_for(self) -> None:
        """A host that has not answered yet may have it; one that is known to be away is not waited for."""
        self.world.worlds["rack"]._away = "slow"
        self.runtime.start()
        self.addCleanup(self.runtime.close)
        self.runtime._standing._away.pop("rack")
        self.successResultOf(self.runtime.watch(SPEC, self.watcher))
        self.assertEqual(self.watcher.events, [])
        self.world.engines["rack"].go_away()
        self.assertEqual(self.watcher.kinds(), ["gone"])

    def test_a_host_that_hangs_is_not_waited_for(self) -> None:
        """It was away before the start, and is asked all the same."""
        self.world.worlds["rack"]._away = "slow"
        self.runtime = HostsRuntime(self.world.engines, away={"rack": "slow"})
        self.begin()
        self.assertEqual(self.watcher.kinds(), ["gone"])
        self.assertIn(("watch", "chat"), self.world.worlds["rack"].calls)

    def test_what_runs_is_found_wherever_it_is(self) -> None:
        """Its host is known by that."""
        instance = self.world.worlds["rack"].become_running("chat")
        self.begin()
        self.assertEqual(self.watcher.events, [("running", instance)])
        self.assertEqual((self.at, self.runtime.places(SPEC)), ("rack", {"rack": True}))

    def test_it_starts_where_it_is_placed(self) -> None:
        """And nowhere else."""
        self.begin()
        self.start_on("tower")
        self.assertEqual((self.world.running("chat"), self.at), (["tower"], "tower"))

    def test_its_end_is_told_and_it_may_be_anywhere_again(self) -> None:
        """With how it ended."""
        self.begin()
        run = self.start_on("tower").run
        self.world.worlds["tower"].exit("chat", 3)
        self.assertEqual(self.watcher.events[-1], ("gone", run, Exit(3)))
        self.assertEqual(list(self.runtime.places(SPEC)), ["local", "tower", "rack"])

    def test_a_stop_is_told_once(self) -> None:
        """Whoever waited for it may place it anew at once."""
        self.begin()
        run = self.start_on("tower").run
        seen: list[str] = []
        self.runtime.stop(SPEC, 1).addCallback(lambda _: seen.append(self.at))
        self.assertEqual(seen, [""])
        self.assertEqual([event[1] for event in self.watcher.events if event[0] == "gone"], [None, run])

    def test_places_tell_where_its_container_is(self) -> None:
        """An image can be anywhere; without one only its containers count."""
        self.world.engines["rack"].containers.add("chat")
        self.begin()
        self.assertEqual(self.runtime.places(SPEC), {"local": False, "tower": False, "rack": True})
        self.begin_other(BackendSpec("chat", container="chat"))
        self.assertEqual(self.runtime.places(self.spec), {"rack": True})

    def begin_other(self, spec: BackendSpec) -> None:
        self.spec = spec
        self.successResultOf(self.runtime.watch(spec, self.watcher))

    def test_a_service_of_the_compose_file_is_made_on_the_local_host(self) -> None:
        """Compose knows of no other."""
        service = ComposeService("chat", "chat")
        self.runtime = HostsRuntime(self.world.engines, compose=lambda: [service])
        self.begin(BackendSpec("chat", container="chat"))
        self.assertEqual(self.runtime.places(self.spec), {"local": False})

    def test_one_that_is_nowhere_says_so_when_it_is_started(self) -> None:
        """As with one engine."""
        self.begin(BackendSpec("chat", container="chat"))
        self.assertEqual(self.runtime.places(self.spec), {"local": False})
        self.world.engines["rack"].go_away()
        self.assertEqual(self.runtime.places(self.spec), {})

    def test_a_host_may_be_fixed(self) -> None:
        """Then no other is even asked."""
        self.begin(BackendSpec("chat", container="chat", image="demo:1", host="rack"))
        self.assertEqual(list(self.runtime.places(self.spec)), ["rack"])
        self.assertNotIn(("watch", "chat"), self.world.worlds["tower"].calls)

    def test_a_host_that_the_runtime_does_not_know_yet(self) -> None:
        """Settings were read again: the start says what to do."""
        self.begin(BackendSpec("chat", container="chat", host="new"))
        refused = self.failureResultOf(self.runtime.ensure_started(self.spec), StartRefused)
        self.assertIn("upgrade", str(refused.value.hint))
        self.successResultOf(self.runtime.stop(self.spec, 1))
        self.assertEqual(self.successResultOf(self.runtime.logs(self.spec, 1)), "")

    def test_facts_and_logs_are_those_of_where_it_is(self) -> None:
        """Or of where its container is; after a start elsewhere they are read again."""
        for name, world in self.world.worlds.items():
            world.set_facts("chat", Facts((name,)))
            world.print_line("chat", name)
        self.world.engines["tower"].containers.add("chat")
        self.begin()
        self.assertEqual(self.successResultOf(self.runtime.facts(SPEC)), Facts(("tower",)))
        self.start_on("rack")
        self.assertIn("changed", self.watcher.kinds())
        self.assertEqual(self.successResultOf(self.runtime.facts(SPEC)), Facts(("rack",)))
        self.assertEqual(self.successResultOf(self.runtime.logs(SPEC, 5)), "rack")


class AwayTests(HostsCase):
    """A host goes away, and comes back."""

    def test_only_what_is_there_is_concerned(self) -> None:
        """And even that runs until it is known otherwise."""
        self.begin()
        self.start_on("rack")
        before = list(self.watcher.events)
        self.world.engines["tower"].go_away()
        self.world.engines["rack"].go_away()
        self.assertEqual(self.watcher.events, before)
        self.assertEqual(self.at, "rack")
        away = {one.name: one.away for one in self.runtime.hosts()}
        self.assertEqual(away, {"local": "", "tower": "its cable is out", "rack": "its cable is out"})

    def test_nothing_is_placed_on_it(self) -> None:
        """Until it is back."""
        heard: list[None] = []
        self.runtime.on_hosts_change(lambda: heard.append(None))
        self.begin()
        heard.clear()
        self.world.engines["tower"].go_away()
        self.world.engines["tower"].tell_standing()
        self.assertEqual((list(self.runtime.places(SPEC)), len(heard)), (["local", "rack"], 1))
        self.world.engines["tower"].come_back()
        self.assertEqual((list(self.runtime.places(SPEC)), len(heard)), (["local", "tower", "rack"], 2))

    def test_a_start_there_fails_at_once(self) -> None:
        """Without waiting for a connection that does not come."""
        self.begin(BackendSpec("chat", image="demo:1", host="rack"))
        self.world.engines["rack"].go_away()
        self.world.worlds["rack"].calls.clear()
        refused = self.failureResultOf(self.runtime.ensure_started(self.spec), RuntimeUnavailable)
        self.assertEqual(str(refused.value), "host rack is away: its cable is out")
        self.assertEqual(self.world.worlds["rack"].calls, [])

    def test_what_was_lost_may_be_started_elsewhere(self) -> None:
        """Its end is told, as nobody can see it."""
        self.begin()
        run = self.start_on("rack").run
        self.world.engines["rack"].go_away()
        self.runtime.lose(SPEC)
        self.assertEqual(self.watcher.events[-1], ("gone", run, Exit()))
        self.start_on("tower")
        self.assertEqual(self.at, "tower")

    def test_the_one_that_came_back_is_ended(self) -> None:
        """It serves nobody; the other one goes on."""
        self.test_what_was_lost_may_be_started_elsewhere()
        before = len(self.watcher.events)
        self.world.engines["rack"].come_back()
        self.assertEqual(self.world.running("chat"), ["tower"])
        self.assertEqual(self.watcher.events[before:], [])

    def test_the_only_one_is_adopted_when_it_comes_back(self) -> None:
        """By another name, as its end has been told."""
        self.begin()
        run = self.start_on("rack").run
        self.world.engines["rack"].go_away()
        self.runtime.lose(SPEC)
        self.world.engines["rack"].come_back()
        kind, instance = self.watcher.events[-1]
        self.assertEqual((kind, instance.run, self.at), ("running", f"{run}+1", "rack"))
        self.world.worlds["rack"].exit("chat", 3)
        self.assertEqual(self.watcher.events[-1], ("gone", f"{run}+1", Exit(3)))

    def test_it_is_adopted_however_long_it_was_away(self) -> None:
        """Another one was started meanwhile, and has ended by itself."""
        self.test_what_was_lost_may_be_started_elsewhere()
        self.world.worlds["tower"].exit("chat")
        self.world.engines["rack"].come_back()
        self.assertEqual((self.at, self.watcher.kinds()[-1]), ("rack", "running"))

    def test_it_comes_back_while_another_one_starts(self) -> None:
        """The start is not disturbed; when it fails, the one that is there counts."""
        self.begin()
        self.start_on("rack")
        self.world.engines["rack"].go_away()
        self.runtime.lose(SPEC)
        self.world.worlds["tower"].hold_starts = True
        self.runtime.place(SPEC, "tower")
        starting = self.runtime.ensure_started(SPEC)
        self.world.engines["rack"].come_back()
        self.assertEqual(self.world.running("chat"), ["rack"])
        self.world.worlds["tower"].refuse_start("chat")
        self.failureResultOf(starting, StartRefused)
        self.assertEqual((self.at, self.watcher.kinds()[-1]), ("rack", "running"))

    def test_it_comes_back_and_the_other_one_starts(self) -> None:
        """Then it is ended."""
        self.begin()
        self.start_on("rack")
        self.world.engines["rack"].go_away()
        self.runtime.lose(SPEC)
        self.world.worlds["tower"].hold_starts = True
        self.runtime.place(SPEC, "tower")
        starting = self.runtime.ensure_started(SPEC)
        self.world.engines["rack"].come_back()
        self.world.worlds["tower"].finish_start("chat")
        self.successResultOf(starting)
        self.assertEqual((self.at, self.world.running("chat")), ("tower", ["tower"]))

    def test_a_stop_of_what_is_away(self) -> None:
        """Nobody can say, so that it is taken for ended; should it turn up, it is adopted."""
        self.begin()
        self.start_on("rack")
        self.world.engines["rack"].go_away()
        self.failureResultOf(self.runtime.stop(SPEC, 1), RuntimeUnavailable)
        self.assertEqual(self.at, "")
        self.world.engines["rack"].come_back()
        self.assertEqual(self.at, "rack")

    def test_a_call_that_fails_is_news_of_its_host(self) -> None:
        """The event stream may not have noticed yet: nothing is placed there, and it is looked after."""
        self.begin()
        self.start_on("rack")
        self.world.worlds["rack"].go_away("cut off")
        self.failureResultOf(self.runtime.stop(SPEC, 1), RuntimeUnavailable)
        self.assertEqual(list(self.runtime.places(SPEC)), ["local", "tower"])
        self.assertEqual(self.world.engines["rack"].doubted, 1)

    def test_an_engine_that_complains_is_there(self) -> None:
        """It cannot do this one thing; its host is not away for that."""
        self.begin()
        self.world.worlds["rack"].hold_starts = True
        self.runtime.place(SPEC, "rack")
        starting = self.runtime.ensure_started(SPEC)
        self.world.worlds["rack"].fail_start("chat", RuntimeFaulty("no registry"))
        self.failureResultOf(starting, RuntimeUnavailable)
        self.assertIn("rack", self.runtime.places(SPEC))
        self.assertEqual(self.world.engines["rack"].doubted, 0)

    def test_old_news_of_a_host_is_dropped(self) -> None:
        """It came back, and went away before it was known what runs there."""
        settled: Deferred[None] = Deferred()
        self.begin()
        engine = self.world.engines["rack"]
        engine.go_away()
        engine.looking = settled
        engine.come_back()
        self.assertNotIn("rack", self.runtime.places(SPEC))
        engine.go_away()
        settled.callback(None)
        self.assertNotIn("rack", self.runtime.places(SPEC))

    def test_what_somebody_starts_while_the_other_is_away(self) -> None:
        """It stays until more is known: the one that is away may have ended."""
        self.begin()
        self.start_on("rack")
        self.world.engines["rack"].go_away()
        self.world.worlds["tower"].become_running("chat")
        self.assertEqual((self.at, self.world.running("chat")), ("rack", ["tower", "rack"]))
        self.runtime.lose(SPEC)
        self.assertEqual(self.at, "tower")
        self.world.engines["rack"].come_back()
        self.assertEqual(self.world.running("chat"), ["tower"])

    def test_one_engine_under_two_names(self) -> None:
        """The same run is no double of itself."""
        instance = self.world.worlds["tower"].become_running("chat")
        self.world.worlds["rack"]._instances["chat"] = instance
        self.begin()
        self.assertEqual(self.world.running("chat"), ["tower", "rack"])

    def test_ready_means_that_one_answers(self) -> None:
        """One lost host makes nobody unready; all of them do."""
        self.begin()
        self.world.engines["local"].go_away()
        self.world.engines["rack"].go_away()
        self.successResultOf(self.runtime.ping())
        self.world.engines["tower"].go_away()
        said = self.failureResultOf(self.runtime.ping(), RuntimeUnavailable)
        self.assertIn("host rack is away: its cable is out", str(said.value))

    def test_many_losses(self) -> None:
        """Only so many are remembered, so that a host that comes and goes for ever fills no memory."""
        self.begin()
        world, engine = self.world.worlds["rack"], self.world.engines["rack"]
        runs = []
        for _ in range(MOST_LOSSES + 1):
            self.runtime.place(SPEC, "rack")
            runs.append(self.successResultOf(self.runtime.ensure_started(SPEC)).run)
            engine.go_away()
            self.runtime.lose(SPEC)
            del world._instances["chat"]
            engine.come_back()
            self.assertEqual(self.at, "")
        self.assertEqual(len(set(runs)), MOST_LOSSES + 1)
        route = self.runtime._routes["chat"]
        self.assertNotIn(runs[0], route._losses)
        self.assertEqual(len(route._losses), MOST_LOSSES)

    def test_a_double_that_cannot_be_ended(self) -> None:
        """It is logged, and tried again when something has changed."""
        self.test_what_was_lost_may_be_started_elsewhere()
        engine = self.world.engines["rack"]
        patched = self.patch(FakeEngine, "stop", lambda *_: fail(RuntimeError("a fault")))
        engine.come_back()
        logged = self.flushLoggedErrors(RuntimeError)
        self.assertEqual({str(failure.value) for failure in logged}, {"a fault"})
        self.assertEqual(self.world.running("chat"), ["tower", "rack"])
        patched.restore()
        self.runtime.end_doubles()
        self.assertEqual(self.world.running("chat"), ["tower"])

    def test_a_double_on_a_host_that_goes_away(self) -> None:
        """That is told, as others may wait for it."""
        self.test_what_was_lost_may_be_started_elsewhere()
        engine = self.world.engines["rack"]
        stopping: Deferred[None] = Deferred()
        self.patch(FakeEngine, "stop", lambda *_: stopping)
        engine.come_back()
        told: list[str] = []
        self.runtime.on_hosts_change(lambda: told.append("changed"))
        self.world.worlds["rack"].go_away("cut off")
        engine.tell_standing()
        told.clear()
        stopping.errback(RuntimeUnavailable("cut off"))
        self.assertEqual(told, ["changed"])
        self.assertEqual((self.at, self.flushLoggedErrors()), ("tower", []))

    def test_the_end_in_the_middle_of_ending_a_double(self) -> None:
        """Nobody waits for it any more."""
        self.test_what_was_lost_may_be_started_elsewhere()
        given_up: list[str] = []
        stopping: Deferred[None] = Deferred(lambda _: given_up.append("rack"))
        self.patch(FakeEngine, "stop", lambda *_: stopping)
        self.world.engines["rack"].come_back()
        self.successResultOf(self.runtime.close())
        self.assertEqual((given_up, self.flushLoggedErrors()), (["rack"], []))


class UnwatchedTests(HostsCase):
    """Backends that nobody watches, as before the proxy has begun, or after a reload."""

    def setUp(self) -> None:
        super().setUp()
        self.spec = SPEC
        self.runtime.start()
        self.addCleanup(self.runtime.close)

    def test_they_are_started_and_stopped_all_the_same(self) -> None:
        """On the host that is nearest; nobody is told."""
        self.successResultOf(self.runtime.ensure_started(SPEC))
        self.assertEqual(self.world.running("chat"), ["local"])
        self.successResultOf(self.runtime.facts(SPEC))
        self.successResultOf(self.runtime.stop(SPEC, 1))
        self.assertEqual((self.world.running("chat"), self.watcher.events), ([], []))

    def test_nothing_is_known_of_them(self) -> None:
        """They have no place, and cannot be lost."""
        self.runtime.lose(SPEC)
        self.runtime.place(SPEC, "rack")
        self.assertEqual((self.runtime.places(SPEC), self.at), ({}, ""))

    def test_on_a_host_that_there_is_not(self) -> None:
        """There is nothing to stop, to read or to tell."""
        spec = BackendSpec("chat", container="chat", host="attic")
        self.successResultOf(self.runtime.stop(spec, 1))
        self.assertEqual(self.successResultOf(self.runtime.facts(spec)), Facts())
        self.assertEqual(self.successResultOf(self.runtime.logs(spec, 5)), "")
        self.successResultOf(self.runtime.follow_logs(spec, 5, self.fail))

    def test_on_a_host_that_is_away(self) -> None:
        """A stop says so, as does one that fails on the way."""
        spec = BackendSpec("chat", container="chat", host="rack")
        self.successResultOf(self.runtime.ensure_started(spec))
        self.world.worlds["rack"].go_away("cut off")
        self.failureResultOf(self.runtime.stop(spec, 1), RuntimeUnavailable)
        self.world.engines["rack"].go_away()
        self.failureResultOf(self.runtime.stop(spec, 1), RuntimeUnavailable)
        self.failureResultOf(self.runtime.ensure_started(spec), RuntimeUnavailable)

    def test_one_that_is_watched_anew_while_it_starts(self) -> None:
        """A start from before the reload is no news for who watches now."""
        self.successResultOf(self.runtime.watch(SPEC, self.watcher))
        self.world.worlds["local"].hold_starts = True
        starting = self.runtime.ensure_started(SPEC)
        other = RecordingWatcher()
        watching = self.runtime.watch(SPEC, other)
        self.runtime.unwatch("chat")
        self.world.worlds["local"].finish_start("chat")
        self.successResultOf(starting)
        self.successResultOf(watching)
        self.assertNotIn("running", other.kinds())


class LabelTests(HostsCase):
    """Routes by labels on all hosts."""

    def test_all_hosts_are_asked(self) -> None:
        """Each container with its host; of one that is away those that it had."""
        self.world.engines["tower"].labelled = [LabelledContainer("a", {})]
        self.world.engines["rack"].labelled = [LabelledContainer("b", {})]
        self.begin()
        both = [LabelledContainer("a", {}, "tower"), LabelledContainer("b", {}, "rack")]
        self.assertEqual(self.successResultOf(self.runtime.catalogue()), both)
        self.world.engines["rack"].go_away()
        self.assertEqual(self.successResultOf(self.runtime.catalogue()), both)
        for engine in self.world.engines.values():
            engine.go_away()
        self.failureResultOf(self.runtime.catalogue(), RuntimeUnavailable)

    def test_what_was_found_before_the_start_is_known(self) -> None:
        """A host that goes away right then takes no route with it."""
        found = {"rack": [LabelledContainer("b", {}, "rack")]}
        self.runtime = HostsRuntime(self.world.engines, labelled=found)
        self.begin()
        self.world.engines["rack"].go_away()
        self.assertEqual(self.successResultOf(self.runtime.catalogue()), found["rack"])


def test_the_command_for_ssh() -> None:
    """It asks no questions, gives up in time, and takes nothing of a host for an option."""
    words = ssh_command("ssh://me@tower:2222/run/user/1000/docker.sock")
    assert words[:2] == ["ssh", "-T"]
    assert "BatchMode=yes" in words
    assert words[-7:-1] == ["-p", "2222", "-l", "me", "--", "tower"]
    assert words[-1] == "docker --host unix:///run/user/1000/docker.sock system dial-stdio"
    assert ssh_command("ssh://tower")[-3:] == ["--", "tower", "docker system dial-stdio"]
    assert "'" in ssh_command("ssh://tower/a;b")[-1]


HOSTS = st.sampled_from(["local", "tower", "rack"])


class World(RuleBasedStateMachine):
    """Engines that come and go, starts, stops and losses in any order."""

    @initialize()
    def begin(self) -> None:
        self.world = FakeHosts()
        self.runtime = self.world.runtime
        self.watcher = RecordingWatcher()
        self.runtime.start()
        self.runtime.on_hosts_change(self.runtime.end_doubles)
        self.runtime.watch(SPEC, self.watcher)
        self.alive: set[str] = set()
        self.heard = 0

    @rule(host=HOSTS)
    def away(self, host: str) -> None:
        self.world.engines[host].go_away()

    @rule(host=HOSTS)
    def back(self, host: str) -> None:
        self.world.engines[host].come_back()

    @rule(host=HOSTS)
    def ends(self, host: str) -> None:
        if self.world.worlds[host].is_running("chat"):
            self.world.worlds[host].exit("chat")

    @rule(host=HOSTS)
    def somebody_starts(self, host: str) -> None:
        if not self.world.worlds[host].is_running("chat"):
            self.world.worlds[host].become_running("chat")

    @rule(place=st.integers(0, 2))
    def start(self, place: int) -> None:
        places = list(self.runtime.places(SPEC))
        if places:
            self.runtime.place(SPEC, places[place % len(places)])
            self.runtime.ensure_started(SPEC).addCallbacks(
                lambda instance: self.alive.add(instance.run), lambda _: None
            )

    @rule()
    def stop(self) -> None:
        self.runtime.stop(SPEC, 1).addErrback(lambda _: None)

    @rule()
    def lose(self) -> None:
        if self.runtime.is_away(self.runtime.host_of(SPEC)):
            self.runtime.lose(SPEC)

    @invariant()
    def told_in_order(self) -> None:
        """No run is told as ended that was not told of, nor twice; at most one is alive."""
        for event in self.watcher.events[self.heard :]:
            if event[0] == "running":
                self.alive.add(event[1].run)
            elif event[0] == "gone" and event[1] is not None:
                assert event[1] in self.alive, event
                self.alive.discard(event[1])
        self.heard = len(self.watcher.events)
        assert len(self.alive) <= 1, self.alive

    @invariant()
    def never_twice(self) -> None:
        """On those hosts that can be seen it runs once at most, and where it is said to be."""
        at = self.runtime.host_of(SPEC)
        if at and not self.runtime.is_away(at):
            assert [host for host in self.world.running("chat") if not self.runtime.is_away(host)] == [at]

    @invariant()
    def what_is_told_is_so(self) -> None:
        """Where it is said to be on a host that can be seen, the watcher knows that it runs, and it does."""
        at = self.runtime.host_of(SPEC)
        if at and not self.runtime.is_away(at):
            assert self.world.worlds[at].is_running("chat")
        assert bool(at) == bool(self.alive)


World.TestCase.settings = hypothesis_settings(max_examples=200, stateful_step_count=40, deadline=None)
TestWorld = World.TestCase


class RouteTests(SynchronousTestCase):
    """What is told of one backend, whatever order its news comes in."""

    def setUp(self) -> None:
        self.watcher = RecordingWatcher()
        self.route = Route(SPEC, ("local", "tower"), self.watcher, lambda host: False, lambda: None)

    def test_one_that_ends_before_its_start_is_answered(self) -> None:
        """Its end is told once the answer has come, and not that it ran; then it is looked at anew."""
        self.route.begin("tower")
        self.route.gone("tower", "r1", Exit(3))
        self.route.started("tower", Instance("r1", ()))
        self.assertEqual(self.watcher.events, [("gone", "r1", Exit(3)), ("changed",)])
        self.assertEqual(self.route.runs, {})

    def test_a_change_on_the_host_that_counts(self) -> None:
        """One on another host changes nothing that anybody wished for."""
        self.route.changed("tower")
        self.assertEqual(self.watcher.kinds(), ["changed"])
        self.route.running("local", Instance("r1", ()))
        self.assertTrue(self.route.known())
        before = self.watcher.kinds()
        self.route.changed("tower")
        self.assertEqual(self.watcher.kinds(), before)
        self.route.changed("local")
        self.assertEqual(self.watcher.kinds(), [*before, "changed"])

    def test_a_stop_of_one_that_is_starting(self) -> None:
        """It is still there, where it is starting."""
        self.route.begin("tower")
        self.route.stopped("tower")
        self.route.lose("local")
        self.assertEqual(self.route.at, "tower")
