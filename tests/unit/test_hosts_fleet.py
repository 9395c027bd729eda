"""A fleet on several hosts, in memory: where models start, and what becomes of them when a host goes away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.doubt import STOP_AGAIN
from llmproxy.backend.surroundings import Decision
from llmproxy.config.model import BackendSpec, Config, Gpu, Host, Scheduler
from llmproxy.fleet.fleet import Fleet
from llmproxy.fleet.lookout import EVERY, REFUSED_FOR, SILENT_FOR
from llmproxy.fleet.telling import tell_why
from llmproxy.runtimes.interface import Address
from llmproxy.usage.keeping import gpus_of
from llmproxy.web.api.views import backend_view, gpu_sums, story_of
from tests.fake_hosts import FakeHosts
from tests.inmemory import Servers
from tests.one_gpu import CONTROLS, GIB, Client, Meter

HOSTS = {
    "tower": Host("ssh://tower", gpus={"0": Gpu(24 * GIB, GIB)}),
    "rack": Host("tcp://rack:2376", gpus={"0": Gpu(48 * GIB), "1": Gpu(48 * GIB)}),
}


class HostsFleet(SynchronousTestCase):
    """Three hosts, and a story each."""

    def build(self, hosts: Mapping[str, Host] = HOSTS, **models: Mapping[str, Any]) -> None:
        """A fleet with these backends; each claims 0.6 of GPU 0 and has an image unless it says otherwise."""
        self.clock = Clock()
        self.hosts = FakeHosts(("local", *hosts))
        self.servers = Servers(mode="healthy", controls=dict(CONTROLS))
        specs = {
            name: BackendSpec(
                route=name,
                container=name,
                models=(name,),
                **{"image": "demo:1", "gpu_memory": 0.6, "stop_grace": 1.0, **fields},
            )
            for name, fields in models.items()
        }
        for host, world in self.hosts.worlds.items():
            for name in models:
                world.set_addresses(name, Address(host, 8001, "published"))
        self.config = Config(
            backends=specs,
            hosts=hosts,
            gpus={"0": Gpu(16 * GIB)},
            scheduler=Scheduler(max_wait_before_drain=30, drain_limit=100),
        )
        self.fleet = Fleet(self.clock, self.servers.connect, {"docker": self.hosts.runtime}, self.config)
        self.successResultOf(self.fleet.start())
        self.settle()
        self.addCleanup(self.end)

    def end(self) -> None:
        self.fleet.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def settle(self) -> None:
        for _ in range(5):
            self.clock.advance(0)

    def ask(self, name: str) -> Client:
        client = Client()
        self.fleet.backends[name].enter(client)
        self.settle()
        return client

    def serve(self, name: str) -> None:
        client = self.ask(name)
        assert client.served, (name, self.state(name), client.refusals)
        client.done()
        self.settle()

    def state(self, name: str) -> str:
        return self.fleet.backends[name].state

    def at(self, name: str) -> str:
        return self.fleet.scheduler.places.at(self.fleet.backends[name])

    def decisions(self, name: str) -> list[tuple[str, str]]:
        return [
            (event.kind, event.reason)
            for event in self.fleet.events
            if isinstance(event, Decision) and event.backend == name and event.kind != "phase"
        ]

    def wait(self, seconds: float) -> None:
        self.clock.pump([0.5] * int(seconds / 0.5))


class PlacingTests(HostsFleet):
    """By claim over all hosts."""

    def test_each_has_room_somewhere(self) -> None:
        """Three that exclude each other on one GPU run on three; the emptiest is taken first."""
        self.build(a={}, b={}, c={})
        for name in "abc":
            self.serve(name)
        self.assertEqual({self.at(name) for name in "abc"}, {"local", "tower", "rack"})
        self.assertEqual([self.state(name) for name in "abc"], ["ready"] * 3)

    def test_it_is_told_where_and_why(self) -> None:
        """In the events, by why, by the API, and in the sums of the GPUs."""
        self.build(a={"gpu_memory": 40 * GIB})
        self.serve("a")
        self.assertEqual(self.decisions("a"), [("start", "it fits on rack")])
        backend = self.fleet.backends["a"]
        view = backend_view(self.fleet, backend, 0.0)
        self.assertEqual((view["host"], view["needs"]["gpus"]), ("rack", ["rack/0"]))
        told = " ".join(tell_why(story_of(self.fleet, backend, 0.0)))
        self.assertIn("It is on rack.", told)
        self.assertIn("40.0 GiB of GPU rack/0", told)
        sums = {one.gpu: dict(one.held) for one in gpu_sums(self.fleet)}
        self.assertEqual(sums, {"0": {}, "rack/0": {"a": 40 * GIB}, "rack/1": {}, "tower/0": {}})
        self.assertAlmostEqual(gpus_of(self.fleet, "a"), 40 / 48)

    def test_claims_of_hosts_do_not_meet(self) -> None:
        """GPU 0 of one is not GPU 0 of another; a model that is bound to a host has its own there."""
        self.build(a={"host": "tower"}, b={"host": "rack"}, c={"host": "local"})
        for name in "abc":
            self.serve(name)
        self.assertEqual(self.fleet.scheduler.neighbours(self.fleet.backends["a"]), ())
        self.assertEqual([self.at(name) for name in "abc"], ["tower", "rack", "local"])

    def test_it_stays_where_it_is(self) -> None:
        """Another start does not move it; after its end its container draws it back."""
        self.build(a={"host": None}, b={"host": "tower"}, c={"host": "local", "gpu_memory": 0.1})
        self.serve("c")
        self.serve("a")
        first = self.at("a")
        self.fleet.backends["c"].stop_wanted("operator")
        self.fleet.backends["a"].stop_wanted("operator")
        self.settle()
        self.assertEqual((self.state("a"), self.at("a")), ("absent", ""))
        self.serve("b")
        self.serve("a")
        self.assertEqual((self.at("a"), first), ("rack", "rack"))

    def test_who_is_cheapest_leaves(self) -> None:
        """Where no host has room one of them makes it, and it is said on which."""
        self.build(a={"priority": 3}, b={"priority": 3}, c={}, d={})
        for name in "abc":
            self.serve(name)
        where = self.at("c")
        self.serve("d")
        self.assertEqual((self.state("c"), self.at("d")), ("absent", where))
        kinds = [kind for kind, _ in self.decisions("c")]
        self.assertEqual(kinds, ["start", "evict"])
        self.assertIn(f"makes room for d on {where}", self.decisions("c")[1][1])

    def test_a_gpu_that_a_host_has_not(self) -> None:
        """A model that needs two goes where two are; one that needs eight is told what there is."""
        self.build(a={"gpus": ("0", "1"), "host": None}, b={"gpus": ("7",), "host": "rack"})
        self.hosts.engines["local"].go_away()
        self.serve("a")
        self.assertEqual(self.at("a"), "rack")
        (refusal,) = self.ask("b").refusals
        self.assertEqual(refusal.code, "does_not_fit")
        self.assertIn("rack has no GPU 7", refusal.message)

    def test_a_plan_says_where(self) -> None:
        """Before anything is done."""
        self.build(a={"gpu_memory": 40 * GIB})
        found = self.fleet.scheduler.plan(self.fleet.backends["a"])
        self.assertEqual([(start.name, start.host) for start in found.starts], [("a", "rack")])

    def test_the_meter_reads_this_machine_alone(self) -> None:
        """What it tells of GPU 0 says nothing of another host's; the settings do."""
        self.build(a={"host": "tower"})
        self.fleet.scheduler.meter = Meter(0)
        self.serve("a")
        rooms = self.fleet.scheduler.rooms(self.fleet.backends.values())
        self.assertEqual((rooms["tower/0"].total, rooms["tower/0"].reserve), (24 * GIB, GIB))

    def test_without_a_size_parts_are_added_up(self) -> None:
        """As on this machine."""
        self.build({"far": Host("ssh://far")}, a={"host": "far"}, b={"host": "far"})
        self.serve("a")
        self.serve("b")
        self.assertEqual((self.state("a"), self.state("b")), ("absent", "ready"))

    def test_leases_may_be_of_any_hosts_gpu(self) -> None:
        """Models make room for it there."""
        self.build(a={"host": "tower"})
        self.serve("a")
        lease = self.fleet.scheduler.lease("tower/0", 16 * GIB, 60.0, "a game")
        self.settle()
        self.assertTrue(lease.held)
        self.assertEqual(self.state("a"), "absent")


class LosingTests(HostsFleet):
    """A host goes away."""

    def begin(self, **fields: Any) -> Client:
        """One that runs on rack, and a stream on it."""
        self.build(a={"gpu_memory": 10 * GIB, **fields}, b={"host": "tower"})
        for host in ("local", "tower"):
            self.hosts.engines[host].go_away()
        stream = self.ask("a")
        for host in ("local", "tower"):
            self.hosts.engines[host].come_back()
        self.serve("b")
        self.assertEqual(self.at("a"), "rack")
        return stream

    def test_an_engine_that_is_restarted_costs_nothing(self) -> None:
        """What it runs answers, and goes on being used."""
        stream = self.begin()
        self.hosts.engines["rack"].go_away()
        self.wait(2 * SILENT_FOR)
        self.assertEqual((self.state("a"), stream.cuts), ("ready", []))
        self.serve("a")
        self.hosts.engines["rack"].come_back()
        self.wait(5)
        self.assertEqual((self.state("a"), self.at("a"), stream.cuts), ("ready", "rack", []))
        stream.done()

    def test_a_lost_one_is_started_elsewhere(self) -> None:
        """What was in flight is broken off, what is asked from then on is answered; others go on."""
        stream = self.begin()
        self.hosts.engines["rack"].go_away()
        self.servers.modes["rack"] = "refuse"
        self.wait(REFUSED_FOR + EVERY)
        self.assertEqual((self.state("a"), len(stream.cuts)), ("absent", 1))
        kind, why = self.decisions("a")[-1]
        self.assertEqual((kind, why), ("lost", "its host rack is away, and it does not answer"))
        self.serve("a")
        self.assertIn(self.at("a"), ("local", "tower"))
        self.assertEqual((self.state("b"), self.at("b")), ("ready", "tower"))

    def test_a_machine_without_power_is_given_more_time(self) -> None:
        """It says nothing, as one that is busy may for a while."""
        self.begin()
        self.hosts.engines["rack"].go_away()
        self.servers.modes["rack"] = "hang"
        self.wait(SILENT_FOR - 5)
        self.assertEqual(self.state("a"), "ready")
        self.wait(15)
        self.assertEqual(self.state("a"), "absent")

    def test_a_start_on_a_host_that_goes_away(self) -> None:
        """It refuses as every start does, and is given half a minute; the next one is elsewhere."""
        self.build(a={"host": None})
        self.servers.mode = "refuse"
        waiting = self.ask("a")
        host = self.at("a")
        self.hosts.engines[host].go_away()
        self.wait(SILENT_FOR - 5)
        self.assertEqual((self.state("a"), waiting.refusals), ("starting", []))
        self.wait(10)
        self.assertEqual((self.state("a"), len(waiting.refusals)), ("failed", 1))
        self.servers.mode = "healthy"
        self.wait(10)
        self.serve("a")
        self.assertNotEqual(self.at("a"), host)

    def test_a_host_that_is_lost_in_the_middle_of_a_start(self) -> None:
        """Its engine never answers: those who wait are served from another host while there is one."""
        self.build(a={"host": None})
        for world in self.hosts.worlds.values():
            world.hold_starts = True
        waiting = self.ask("a")
        lost: list[str] = []
        for _ in range(2):
            lost.append(self.at("a"))
            self.hosts.engines[lost[-1]].go_away()
            self.settle()
            self.assertEqual((self.state("a"), waiting.refusals), ("starting", []))
        last = self.at("a")
        self.assertEqual({*lost, last}, {"local", "tower", "rack"})
        self.hosts.worlds[last].finish_start("a")
        self.settle()
        self.assertTrue(waiting.served)
        waiting.done()

    def test_every_host_is_lost_in_the_middle_of_a_start(self) -> None:
        """Then it is told so."""
        self.build(a={"host": None})
        for world in self.hosts.worlds.values():
            world.hold_starts = True
        waiting = self.ask("a")
        for _ in range(3):
            self.hosts.engines[self.at("a")].go_away()
            self.settle()
        (refusal,) = waiting.refusals
        self.assertEqual((refusal.status, refusal.code), (503, "runtime_unavailable"))

    def test_one_that_is_seen_in_between_is_not_lost(self) -> None:
        """Only who refuses all the time is."""
        self.begin()
        self.hosts.engines["rack"].go_away()
        for _ in range(5):
            self.servers.modes["rack"] = "refuse"
            self.wait(REFUSED_FOR - 1)
            self.servers.modes["rack"] = "healthy"
            self.wait(EVERY)
        self.assertEqual(self.state("a"), "ready")

    def test_it_never_runs_twice_when_the_host_is_back(self) -> None:
        """The one that was left there is ended; the other one goes on, without a break."""
        self.test_a_lost_one_is_started_elsewhere()
        stream = self.ask("a")
        self.assertEqual(len(self.hosts.running("a")), 2)
        self.hosts.engines["rack"].come_back()
        self.settle()
        self.assertEqual(self.hosts.running("a"), [self.at("a")])
        self.assertEqual((self.state("a"), stream.cuts), ("ready", []))
        stream.done()

    def test_what_is_being_ended_there_has_its_memory_until_then(self) -> None:
        """Nobody starts in its place before."""
        self.test_a_lost_one_is_started_elsewhere()
        self.hosts.worlds["rack"].hold_stops = True
        self.hosts.engines["rack"].come_back()
        self.settle()
        held = {one.gpu: dict(one.held) for one in gpu_sums(self.fleet)}
        self.assertEqual(held["rack/0"], {"a on rack": 10 * GIB})
        self.hosts.worlds["rack"].finish_stop("a")
        self.settle()
        self.assertEqual({one.gpu: dict(one.held) for one in gpu_sums(self.fleet)}["rack/0"], {})

    def test_the_only_one_is_adopted_when_its_host_is_back(self) -> None:
        """Nobody has asked for it meanwhile."""
        self.begin()
        self.hosts.engines["rack"].go_away()
        self.servers.modes["rack"] = "refuse"
        self.wait(REFUSED_FOR + EVERY)
        self.servers.modes["rack"] = "healthy"
        self.hosts.engines["rack"].come_back()
        self.wait(1)
        self.assertEqual((self.state("a"), self.at("a")), ("ready", "rack"))

    def test_a_broken_answer_is_enough(self) -> None:
        """Who is there and finds it dead has not to wait for the lookout: the next start is elsewhere."""
        stream = self.begin()
        self.hosts.engines["rack"].go_away()
        self.servers.modes["rack"] = "refuse"
        assert stream.lease is not None
        stream.lease.release(suspicious=True)
        self.settle()
        self.assertEqual(self.state("a"), "absent")
        self.serve("a")
        self.assertNotEqual(self.at("a"), "rack")

    def test_one_that_can_be_nowhere_else_is_unavailable(self) -> None:
        """With the reason, at once; nobody leaves for it."""
        self.begin(host="rack")
        self.hosts.engines["rack"].go_away()
        self.servers.modes["rack"] = "refuse"
        self.wait(REFUSED_FOR + EVERY)
        (refusal,) = self.ask("a").refusals
        self.assertEqual(refusal.status, 503)
        self.assertIn("rack is away: its cable is out", refusal.message)
        self.hosts.worlds["rack"].exit("a")
        self.hosts.engines["rack"].come_back()
        self.servers.modes["rack"] = "healthy"
        self.settle()
        self.serve("a")

    def test_nothing_waits_for_a_host_that_is_away(self) -> None:
        """A wait is looked at again when it is back."""
        self.build(a={"host": "rack", "gpu_memory": 40 * GIB}, b={"host": "rack", "gpu_memory": 40 * GIB})
        stream = self.ask("a")
        waiting = self.ask("b")
        self.assertFalse(waiting.served or waiting.refusals)
        self.hosts.engines["rack"].go_away()
        self.settle()
        (refusal,) = waiting.refusals
        self.assertIn("rack is away", refusal.message)
        stream.done()

    def test_one_host_makes_nobody_unready(self) -> None:
        """Who is away is told; only without any is there nothing to serve from."""
        self.begin()
        self.hosts.engines["rack"].go_away()
        self.successResultOf(self.fleet.ping())
        self.assertEqual([one.name for one in self.fleet.hosts() if one.away], ["rack"])
        for engine in self.hosts.engines.values():
            engine.go_away()
        self.failureResultOf(self.fleet.ping())

    def test_another_process_decides(self) -> None:
        """While one takes this one's place, nothing is taken for ended here."""
        self.begin()
        self.fleet.scheduler.frozen = True
        self.hosts.engines["rack"].go_away()
        self.servers.modes["rack"] = "refuse"
        self.wait(4 * REFUSED_FOR)
        self.assertEqual(self.state("a"), "ready")
        self.fleet.scheduler.thaw()
        self.wait(2 * REFUSED_FOR)
        self.assertEqual(self.state("a"), "absent")

    def test_a_second_one_is_left_alone_while_another_process_decides(self) -> None:
        """It is ended as soon as this one does."""
        self.test_a_lost_one_is_started_elsewhere()
        self.fleet.scheduler.frozen = True
        self.hosts.engines["rack"].come_back()
        self.settle()
        self.assertEqual(len(self.hosts.running("a")), 2)
        self.fleet.scheduler.thaw()
        self.settle()
        self.assertEqual(self.hosts.running("a"), [self.at("a")])

    def test_another_process_has_taken_over(self) -> None:
        """What is on a second host is for that one to end."""
        self.test_a_lost_one_is_started_elsewhere()
        self.fleet.hand_over(lambda name: None)
        self.hosts.engines["rack"].come_back()
        self.settle()
        self.assertEqual(len(self.hosts.running("a")), 2)

    def test_hosts_are_those_of_the_start(self) -> None:
        """Others are known from the next start on, which is said; their GPUs count at once."""
        self.build(a={"host": "tower"})
        more = {**HOSTS, "attic": Host("ssh://attic")}
        self.assertIn("hosts changed", self.fleet.apply(evolve(self.config, hosts=more))[-1])
        larger = {**HOSTS, "tower": evolve(HOSTS["tower"], gpus={"0": Gpu(80 * GIB)})}
        self.assertIn("hosts changed", self.fleet.apply(evolve(self.config, hosts=larger))[-1])
        self.assertEqual(self.fleet.apply(evolve(self.config, hosts=larger, drain=5.0)), [])
        rooms = self.fleet.scheduler.rooms(self.fleet.backends.values())
        self.assertEqual(rooms["tower/0"].total, 80 * GIB)

    def test_what_is_configured_no_more_is_told_to_end_until_it_does(self) -> None:
        """A host that fails at a stop is left out for a while, which says nothing of what runs there."""
        self.build(x={"host": "tower"}, y={"host": "tower"})
        tower, engine = self.hosts.worlds["tower"], self.hosts.engines["tower"]
        tower.hold_stops = True
        self.serve("x")
        self.fleet.apply(evolve(self.config, backends={"y": self.config.backends["y"]}))
        self.settle()
        for tries in (1, 2, 3):
            self.assertEqual((tower.count("stop", "x"), tower.stopping()), (tries, {"x"}))
            engine.go_away()
            self.settle()
            engine.come_back()
            self.assertFalse(self.ask("y").served)
            self.assertTrue(tower.is_running("x"))
            self.clock.advance(STOP_AGAIN)
            self.settle()
        tower.finish_stop("x")
        self.clock.advance(REFUSED_FOR)
        self.settle()
        self.serve("y")
