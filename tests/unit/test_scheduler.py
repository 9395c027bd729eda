"""Several models, one GPU, in memory: who starts, who leaves for it, who sleeps, and who waits."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any
from unittest.mock import Mock

from attrs import evolve
from twisted.internet.defer import Deferred

from llmproxy.backend import power
from llmproxy.backend.surroundings import Decision, Event
from llmproxy.config.model import Config, Gpu
from llmproxy.errors import Refusal
from llmproxy.fleet import scheduler
from llmproxy.fleet.fleet import Fleet
from llmproxy.runtimes.interface import Facts
from llmproxy.scheduling.outlook import Model, Plan
from llmproxy.scheduling.placement import plan
from tests.fakes import FakeController, FakeRuntime
from tests.one_gpu import ASLEEP, GIB, Client, Meter, OneGpu, answer


class SchedulerTests(OneGpu):
    """One fleet on one GPU, one story each."""

    # -- room ---------------------------------------------------------------------------------------

    def test_what_fits_runs_side_by_side(self) -> None:
        """Two at 0.45 share a GPU, with nothing declared but what they claim."""
        self.build(a={"gpu_memory": 0.45}, b={"gpu_memory": 0.45})
        self.serve("a")
        self.serve("b")
        self.assertEqual(self.states(), {"a": "ready", "b": "ready"})

    def test_an_idle_one_leaves_for_who_is_asked_for(self) -> None:
        """It is stopped first, and the other one starts when its end has been seen."""
        self.build(a={}, b={})
        self.serve("a")
        client = self.ask("b")
        self.clock.advance(0)
        self.assertEqual(self.states(), {"a": "stopping", "b": "absent"})
        self.settle()
        self.assertTrue(client.served)
        self.assertEqual(self.states(), {"a": "absent", "b": "ready"})
        self.assertEqual(self.decisions("a"), ["start", "evict"])
        self.assertEqual(self.decisions("b"), ["wait", "start"])

    def test_needs_are_read_from_the_container(self) -> None:
        """Two at vLLM's default exclude each other."""
        self.build(a={"gpu_memory": None}, b={"gpu_memory": None})
        self.world.set_facts("a", Facts(("vllm", "serve", "m", "--gpu-memory-utilization", "0.3")))
        self.world.change("a")
        self.serve("a")
        self.assertEqual(self.fleet.backends["a"].needs.memory, 0.3)
        self.serve("b")
        self.assertEqual(self.states(), {"a": "absent", "b": "ready"})

    def test_a_busy_one_is_waited_for_and_then_admits_nobody_new(self) -> None:
        """Past max_wait_before_drain it drains: who comes queues, and it leaves with nothing cut."""
        self.build(a={}, b={})
        stream = self.ask("a")
        self.settle()
        waiting = self.ask("b")
        self.clock.advance(29)
        self.assertTrue(self.ask("a").served)
        self.clock.advance(1)
        self.assertEqual(self.states()["a"], "draining")
        late = self.ask("a")
        self.assertFalse(late.served)
        self.settle()
        self.assertEqual(self.states()["a"], "draining")
        self.assertEqual(stream.cuts, [])
        for lease in self.fleet.backends["a"].gate.leases():
            lease.release()
        self.settle()
        self.assertTrue(waiting.served)
        self.assertFalse(late.served)
        waiting.done()
        # min_residency
        self.clock.advance(29)
        self.settle()
        self.assertFalse(late.served)
        self.clock.advance(1)
        self.settle()
        self.assertTrue(late.served)

    def test_the_drain_limit_bounds_a_stream_without_end(self) -> None:
        """It is broken off, and tells why."""
        self.build(a={}, b={})
        stream = self.ask("a")
        self.settle()
        waiting = self.ask("b")
        self.clock.advance(30)
        self.clock.advance(99)
        self.assertEqual(stream.cuts, [])
        self.clock.advance(1)
        self.settle()
        self.assertEqual(stream.cuts, ["drain limit reached"])
        self.assertTrue(waiting.served)

    def test_an_operators_stop_bounds_what_drains_for_another_one(self) -> None:
        """It has no more time than one that the operator stops first, and none is added."""
        self.build(a={}, b={})
        self.fleet.apply(evolve(self.config, drain=20))
        stream = self.ask("a")
        self.settle()
        self.ask("b")
        self.clock.advance(30)
        self.assertEqual(self.states()["a"], "draining")
        self.fleet.backends["a"].stop_wanted("operator")
        self.clock.advance(19)
        self.fleet.backends["a"].stop_wanted("operator")
        self.assertEqual(stream.cuts, [])
        self.clock.advance(1)
        self.assertEqual(stream.cuts, ["drain limit reached"])

    def test_a_replaced_one_is_told_by_its_number(self) -> None:
        """Two of one route are two to the scheduler, and clients are told of no address in memory."""
        self.build(a={})
        stream = self.ask("a")
        self.settle()
        self.fleet.apply(
            evolve(self.config, backends={"a": evolve(self.config.backends["a"], gpu_memory=0.55)})
        )
        self.ask("a")
        wait = self.fleet.scheduler.waits("a")
        assert wait is not None
        self.assertEqual(wait.on, ("a (former 1)",))
        stream.done()

    def test_one_start_at_a_time_and_no_stop_beside_it(self) -> None:
        """Who fits waits for the start beside it, and who is idle leaves after it."""
        self.build(a={"gpu_memory": 0.3, "idle": 5}, b={"gpu_memory": 0.3}, c={"gpu_memory": 0.3})
        self.serve("a")
        self.servers.mode = "refuse"
        first, second = self.ask("b"), self.ask("c")
        self.clock.advance(6)
        self.assertEqual(self.states(), {"a": "ready", "b": "starting", "c": "absent"})
        self.servers.mode = "healthy"
        self.clock.pump([0.01] * 10)
        self.settle()
        self.assertTrue(first.served)
        self.assertTrue(second.served)
        self.clock.pump([0.5] * 4)
        self.settle()
        self.assertEqual(self.states(), {"a": "absent", "b": "ready", "c": "ready"})

    def test_an_operators_stop_waits_for_a_start_beside_it_too(self) -> None:
        """Unless it is forced."""
        self.build(a={"gpu_memory": 0.3}, b={"gpu_memory": 0.3}, c={"gpu_memory": 0.3})
        self.serve("a")
        self.serve("b")
        self.servers.mode = "refuse"
        self.ask("c")
        for name in ("a", "b"):
            self.fleet.backends[name].stop_wanted("operator", force=name == "b")
        self.clock.advance(0)
        self.assertEqual(self.states(), {"a": "ready", "b": "stopping", "c": "starting"})
        self.servers.mode = "healthy"
        self.clock.pump([0.01] * 10)
        self.settle()
        self.assertEqual(self.states(), {"a": "absent", "b": "absent", "c": "ready"})

    def test_what_can_never_fit_is_refused_with_the_sums(self) -> None:
        """And nobody is evicted for it."""
        self.build(a={"pinned": True}, b={}, c={"gpu_memory": 0.3})
        self.serve("a")
        self.serve("c")
        (refusal,) = self.ask("b").refusals
        self.assertEqual((refusal.status, refusal.code, refusal.backend), (503, "does_not_fit", "b"))
        self.assertIn("0.60", refusal.message)
        self.assertIn("pinned", refusal.message)
        self.assertEqual(self.states(), {"a": "ready", "b": "absent", "c": "ready"})

    def test_a_pinned_one_that_is_about_to_go_is_in_nobodys_way(self) -> None:
        """Its successor waits for it, though it may not leave yet, as another one starts."""
        self.build(a={"pinned": True, "gpu_memory": 0.5}, b={"gpu_memory": 0.4})
        self.serve("a")
        self.servers.mode = "refuse"
        self.ask("b")
        changed = evolve(self.config.backends["a"], gpu_memory=0.55)
        self.fleet.apply(evolve(self.config, backends={**self.config.backends, "a": changed}))
        client = self.ask("a")
        self.assertEqual((client.refusals, self.fleet.in_flight()), ([], 0))
        self.servers.mode = "healthy"
        self.clock.pump([0.01] * 10)
        self.settle()
        self.assertTrue(client.served)

    def test_the_proxy_ends_before_a_replaced_one_has(self) -> None:
        """That is no fault."""
        self.build(a={})
        self.serve("a")
        changed = evolve(self.config.backends["a"], gpu_memory=0.55)
        self.fleet.apply(evolve(self.config, backends={"a": changed}))
        self.assertEqual(self.world.stopping(), {"a"})
        self.fleet.close()
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_nothing_is_kept_of_those_that_are_configured_no_more(self) -> None:
        """However often the configuration is read again."""
        self.build(a={}, b={})
        stream = self.ask("a")
        self.settle()
        for memory in (0.5, 0.55, 0.5, 0.55):
            former = weakref.ref(self.fleet.backends["b"])
            self.fleet.backends["b"].leave(self.ask("b"))
            changed = evolve(self.config.backends["b"], gpu_memory=memory)
            self.fleet.apply(evolve(self.config, backends={**self.config.backends, "b": changed}))
        self.fleet.apply(evolve(self.config, backends={"a": self.config.backends["a"]}))
        self.fleet.apply(evolve(self.config, backends={"a": self.config.backends["a"]}))
        self.settle()
        gc.collect()
        self.assertIsNone(former())
        stream.done()

    def test_a_pinned_one_is_not_looked_at_all_the_time(self) -> None:
        """It does not leave for having been idle, so nothing is due."""
        self.build(a={"pinned": True, "idle": 5, "sleep": "1", "sleep_idle": 5})
        self.serve("a")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.fleet.backends["a"].sleep_wanted("operator")
        self.settle()
        self.assertEqual((self.states(), self.clock.getDelayedCalls()), ({"a": "sleeping"}, []))

    def test_what_a_refused_client_asks_for_next_is_not_broken_off(self) -> None:
        """It has come to one that was to leave as idle, by the very plan that refused it."""
        self.build(p={"pinned": True, "gpu_memory": 0.5}, a={"gpu_memory": 0.3}, x={}, y={"gpu_memory": 0.3})
        self.serve("p")
        self.serve("a")
        following: list[Client] = []

        class Pipelining(Client):
            def refused(client, refusal: Refusal) -> None:
                following.append(self.ask("a"))

        scheduler = self.fleet.scheduler
        look = scheduler.look
        self.patch(scheduler, "look", lambda *_: None)
        self.fleet.backends["x"].enter(Pipelining())
        waiting = self.ask("y")
        self.patch(scheduler, "look", look)
        look()
        (next_one,) = following
        self.settle()
        self.assertEqual((next_one.served, next_one.cuts, waiting.served), (True, [], False))
        next_one.done()
        self.settle()
        self.assertTrue(waiting.served)

    def test_those_that_need_no_gpu_are_looked_at_by_themselves(self) -> None:
        """A step of one is not weighed with all others; all the same it is started, drained and reaped."""
        crowd = {f"n{each}": {"gpu_memory": 0.0, "idle": 5.0} for each in range(20)}
        self.build(g={}, **crowd)
        sizes: list[int] = []

        def counted(models: Iterable[Model], *rest: Any) -> Plan:
            seen = list(models)
            sizes.append(len(seen))
            return plan(seen, *rest)

        self.settle()
        self.patch(scheduler, "plan", counted)
        for name in crowd:
            self.serve(name)
        busy = self.ask("n3")
        self.fleet.backends["n3"].stop_wanted("asked to")
        self.settle()
        self.assertEqual(self.fleet.backends["n3"].state, "draining")
        busy.done()
        self.settle()
        self.assertEqual(self.fleet.backends["n3"].state, "absent")
        self.clock.advance(5.0)
        self.settle()
        self.assertEqual({self.fleet.backends[name].state for name in crowd}, {"absent"})
        self.assertEqual(set(sizes), {1})

    def test_who_asks_in_the_middle_of_a_look_at_one_by_itself(self) -> None:
        """A model that needs a GPU, and is asked for just then, is started all the same."""
        self.build(g={}, n={"gpu_memory": 0.0})
        following: list[Client] = []

        class Pipelining(Client):
            def cut(client, reason: str) -> None:
                super().cut(reason)
                following.append(self.ask("g"))

        self.serve("n")
        looker = Pipelining()
        self.assertTrue(self.fleet.backends["n"].visit(looker))
        self.fleet.backends["n"].stop_wanted("asked to")
        self.settle()
        (next_one,) = following
        self.assertTrue(next_one.served)

    def test_a_successor_that_fits_beside_its_predecessor(self) -> None:
        """It has its turn at once and waits for the other one's end, which may come meanwhile."""
        self.build(x={"gpu_memory": 0.3}, y={"gpu_memory": 0.3})
        client = self.ask("x")
        self.settle()
        changed = evolve(self.config.backends["x"], container="another")
        self.fleet.apply(evolve(self.config, backends={**self.config.backends, "x": changed}))
        waiting, other = self.ask("x"), self.ask("y")
        self.settle()
        self.assertEqual((self.states(), waiting.served), ({"x": "starting", "y": "absent"}, False))
        client.done()
        self.settle()
        self.assertEqual((waiting.served, other.served), (True, True))

    def test_sizes_and_reserves(self) -> None:
        """Sizes count where the GPU's size is known."""
        self.build(a={"gpu_memory": 14 * GIB}, b={"gpu_memory": 8 * GIB}, c={"gpu_memory": 23 * GIB + 1})
        self.fleet.apply(
            Config(backends=self.config.backends, gpus={"0": Gpu(memory=24 * GIB, reserve=1 * GIB)})
        )
        self.serve("a")
        self.serve("b")
        self.assertEqual(self.states()["a"], "ready")
        (refusal,) = self.ask("c").refusals
        self.assertIn("24.0 GiB", refusal.message)
        self.assertIn("1.0 GiB", refusal.message)

    def test_a_key_that_may_not_evict(self) -> None:
        """Is refused where somebody would have to leave, and served where nobody would."""
        self.build(a={}, b={})
        self.assertEqual(self.ask("a", may_evict=False).refusals, [])
        self.settle()
        for lease in self.fleet.backends["a"].gate.leases():
            lease.release()
        (refusal,) = self.ask("b", may_evict=False).refusals
        self.assertEqual((refusal.status, refusal.code), (403, "not_allowed"))
        self.assertEqual(self.states()["a"], "ready")
        self.assertEqual(self.ask("b").refusals, [])
        self.settle()
        self.assertEqual(self.states()["b"], "ready")

    def test_the_more_urgent_goes_first(self) -> None:
        """By the priority of the backend and of the key."""
        self.build(a={}, b={}, c={}, d={"priority": 1})
        stream = self.ask("a")
        self.settle()
        ordinary, important, backend = self.ask("b"), self.ask("c", 2), self.ask("d")
        stream.done()
        for client in (important, backend, ordinary):
            self.settle()
            self.clock.advance(30)
            self.settle()
            self.assertTrue(client.served)
            client.done()

    def test_a_thousand_who_wait_are_one_demand(self) -> None:
        """The placement is not asked for each of them."""
        self.build(a={}, b={})
        self.ask("a")
        self.settle()
        looks = 0
        plan = self.fleet.scheduler.plan

        def counted(*arguments: Any) -> Any:
            nonlocal looks
            looks += 1
            return plan(*arguments)

        self.patch(self.fleet.scheduler, "plan", counted)
        for _ in range(1000):
            self.ask("b")
        self.assertEqual(looks, 1)

    def test_who_hangs_up_does_not_leave_the_others_waiting(self) -> None:
        """The eviction goes on, and the next in line is served."""
        self.build(a={}, b={}, c={})
        self.serve("a")
        gone, stays = self.ask("b"), self.ask("c")
        self.fleet.backends["b"].leave(gone)
        self.settle()
        self.assertTrue(stays.served)

    def test_clients_that_give_up_and_ask_again_do_not_wait_for_ever(self) -> None:
        """It is the demand that has waited, whoever it is that waits."""
        self.build(a={}, b={})
        self.ask("a")
        self.settle()
        for _ in range(3):
            impatient = self.ask("b")
            self.clock.advance(9.5)
            self.fleet.backends["b"].leave(impatient)
            self.clock.advance(0.5)
        self.ask("b")
        self.assertEqual(self.states()["a"], "draining")

    def test_a_swap_for_nobody_gives_no_right_to_stay(self) -> None:
        """Who comes long after others had left for one that gave up finds it like any other."""
        self.build(a={}, b={})
        self.serve("a")
        gone = self.ask("b")
        self.clock.advance(0)
        self.fleet.backends["b"].leave(gone)
        self.settle()
        self.clock.advance(1000)
        self.serve("b")
        self.assertFalse(self.fleet.backends["b"].wishes.swapped_in)

    def test_a_start_that_fails_makes_way(self) -> None:
        """Its room is free for whoever waits."""
        self.build(a={}, b={})
        self.servers.mode = "refuse"
        failing, waiting = self.ask("a"), self.ask("b")
        self.world.exit("a", 1)
        self.settle()
        self.assertEqual(failing.refusals[0].code, "backend_start_failed")
        self.servers.mode = "healthy"
        self.clock.pump([0.01] * 5)
        self.assertTrue(waiting.served)

    # -- memory that is measured --------------------------------------------------------------------

    def test_a_start_waits_for_the_memory_itself(self) -> None:
        """A stopped one's memory may come back later than its end."""
        self.build(a={}, b={})
        meter = Meter()
        self.fleet.scheduler.found_meter(meter, self.fleet.scheduler.settle)
        self.serve("a")
        meter.now = 9 * GIB
        client = self.ask("b")
        self.settle()
        self.assertEqual(self.states(), {"a": "absent", "b": "absent"})
        other = self.ask("a")
        self.settle()
        self.assertEqual(self.states()["a"], "absent")
        meter.now = 23 * GIB
        self.clock.advance(0.1)
        self.settle()
        self.assertTrue(client.served)
        self.assertFalse(other.served)

    def test_memory_that_something_else_has_is_not_waited_for_for_ever(self) -> None:
        """Past a bound it is started all the same: vLLM itself says best what is missing."""
        self.build(a={})
        self.fleet.scheduler.found_meter(Meter(GIB), self.fleet.scheduler.settle)
        client = self.ask("a")
        self.clock.pump([0.5] * 19)
        self.assertFalse(client.served)
        self.clock.pump([0.5] * 2)
        self.settle()
        self.assertTrue(client.served)

    def test_a_size_that_could_not_be_read_is_read_again(self) -> None:
        """Else sizes in bytes would exclude each other for ever."""
        self.build(a={"gpu_memory": 8 * GIB}, b={"gpu_memory": 8 * GIB})
        meter = Mock(wraps=Meter())
        meter.total.side_effect = [None, 24 * GIB]
        self.fleet.scheduler.found_meter(meter, self.fleet.scheduler.settle)
        self.serve("a")
        self.serve("b")
        self.assertEqual(self.states(), {"a": "ready", "b": "ready"})
        self.assertEqual(meter.total.call_count, 2)

    def settling(self) -> Meter:
        """``a`` has left for ``b``, and its memory has not come back yet."""
        self.build(a={}, b={}, c={})
        meter = Meter()
        self.fleet.scheduler.found_meter(meter, self.fleet.scheduler.settle)
        self.serve("a")
        self.fleet.backends["b"].demand()
        meter.now = 9 * GIB
        self.settle()
        self.assertEqual(self.states(), {"a": "absent", "b": "absent", "c": "absent"})
        return meter

    def comes_back(self, meter: Meter) -> None:
        meter.now = 24 * GIB
        self.clock.pump([0.1] * 3)
        self.settle()

    def test_a_start_that_waits_for_memory_counts_when_those_who_asked_have_left(self) -> None:
        """It goes on, and nobody is started beside it in the same memory."""
        self.build(a={}, b={}, c={})
        meter = Meter()
        self.fleet.scheduler.found_meter(meter, self.fleet.scheduler.settle)
        self.serve("a")
        meter.now = 9 * GIB
        client = self.ask("b")
        self.settle()
        self.fleet.backends["b"].leave(client)
        self.servers.mode = "refuse"
        self.ask("c")
        self.comes_back(meter)
        self.assertEqual(self.states(), {"a": "absent", "b": "starting", "c": "absent"})

    def test_what_is_stopped_while_its_memory_is_waited_for_does_not_start(self) -> None:
        """Nobody wants it any more."""
        meter = self.settling()
        self.fleet.backends["b"].stop_wanted("operator")
        self.comes_back(meter)
        self.assertEqual(self.states()["b"], "absent")
        self.serve("c")

    def test_what_is_removed_while_its_memory_is_waited_for_does_not_start(self) -> None:
        """It would run unseen, and its timers with it."""
        meter = self.settling()
        self.fleet.apply(evolve(self.config, backends={"c": self.config.backends["c"]}))
        self.comes_back(meter)
        self.assertEqual(self.world.running_routes(), set())
        self.serve("c")

    def test_nothing_starts_any_more_when_the_proxy_ends(self) -> None:
        """Also what had waited for its memory."""
        meter = self.settling()
        self.fleet.refuse_new()
        self.comes_back(meter)
        self.assertEqual(self.world.running_routes(), set())

    # -- sleep --------------------------------------------------------------------------------------

    def takes_long_to_start(self, *names: str) -> None:
        """Starts take no time here, which a wake could not be shorter than."""
        for name in names:
            for _ in range(5):
                self.fleet.learned.started(name, "", {}, 60.0)

    def sleeper(self, **fields: Any) -> dict[str, Any]:
        return {"sleep": "1", **fields}

    def test_an_idle_one_falls_asleep_and_wakes(self) -> None:
        """It is reaped by sleep, a request wakes it, and after sleep_idle it is stopped."""
        self.build(a=self.sleeper(idle=10, sleep_idle=100))
        self.serve("a")
        self.clock.advance(10)
        self.settle()
        self.assertEqual(self.states(), {"a": "sleeping"})
        self.assertEqual(self.servers.asked, ["POST /sleep?level=1&mode=wait"])
        self.serve("a")
        self.assertEqual(self.servers.asked[1:], ["POST /wake_up"])
        self.assertEqual(self.world.count("ensure_started"), 1)
        self.clock.advance(10)
        self.settle()
        self.assertEqual(self.states(), {"a": "sleeping"})
        self.clock.advance(100)
        self.settle()
        self.assertEqual(self.states(), {"a": "absent"})

    def test_a_sleeper_makes_room_with_what_it_frees(self) -> None:
        """What it keeps counts: where that is too much it is stopped."""
        self.build(a=self.sleeper(), b={}, c={"gpu_memory": 0.95})
        self.serve("a")
        self.takes_long_to_start("a")
        self.serve("b")
        self.assertEqual(self.states(), {"a": "sleeping", "b": "ready", "c": "absent"})
        self.clock.advance(30)
        self.serve("c")
        self.assertEqual(self.states(), {"a": "absent", "b": "absent", "c": "ready"})

    def test_host_memory_bounds_the_sleepers(self) -> None:
        """When it is used up, the next one sleeps at level 2, or is stopped."""
        self.build(a={"sleep": "1"}, b={"sleep": "1"}, c={})
        self.fleet.apply(Config(backends=self.config.backends, host_memory_for_sleep=20 * GIB))
        for name in ("a", "b", "c"):
            self.serve(name)
            self.takes_long_to_start(name)
            self.clock.advance(30)
        self.assertEqual(self.states(), {"a": "sleeping", "b": "absent", "c": "ready"})

    def test_level_2_loads_the_weights_again(self) -> None:
        """Or it would answer with nonsense."""
        self.build(a={"sleep": "2", "idle": 10})
        self.serve("a")
        self.clock.advance(10)
        self.settle()
        self.serve("a")
        self.assertEqual(
            self.servers.asked,
            [
                "POST /sleep?level=2&mode=wait",
                "POST /wake_up?tags=weights",
                "POST /collective_rpc",
                "POST /wake_up?tags=kv_cache",
                "POST /reset_prefix_cache",
            ],
        )

    def test_a_sleep_that_fails_becomes_a_stop(self) -> None:
        """Refused, or without an answer."""
        for broken in (answer(b"", 500), None):
            self.build(a=self.sleeper(idle=10))
            self.servers.controls["POST /sleep"] = broken
            self.serve("a")
            self.clock.advance(10)
            self.clock.advance(power.SLEEP_LIMIT)
            self.settle()
            self.assertEqual(self.states(), {"a": "absent"})

    def test_a_wake_that_fails_becomes_a_cold_start(self) -> None:
        """Which the client does not see."""
        for broken in (answer(b"", 500), ASLEEP, None):
            self.build(a=self.sleeper(idle=10))
            self.servers.controls["POST /wake_up"] = broken
            self.serve("a")
            self.clock.advance(10)
            client = self.ask("a")
            self.clock.advance(power.WAKE_LIMIT)
            self.settle()
            self.assertTrue(client.served)
            self.assertEqual(client.refusals, [])
            self.assertEqual(self.world.count("ensure_started"), 2)

    def test_memory_that_does_not_come_back_from_a_sleep(self) -> None:
        """It is stopped, since others could not start beside what it keeps."""
        self.build(a=self.sleeper(idle=10))
        meter = Meter(24 * GIB)
        self.fleet.scheduler.found_meter(meter, self.fleet.scheduler.settle)
        self.serve("a")
        meter.now = 9 * GIB
        self.clock.advance(10)
        self.assertEqual(self.states(), {"a": "falling_asleep"})
        self.clock.pump([0.5] * 11)
        self.settle()
        self.assertEqual(self.states(), {"a": "absent"})

    def test_a_sleep_waits_for_what_is_in_flight(self) -> None:
        """The operator's as well."""
        self.build(a=self.sleeper())
        stream = self.ask("a")
        self.settle()
        self.fleet.backends["a"].sleep_wanted("operator")
        self.settle()
        self.assertEqual((self.states(), self.servers.asked), ({"a": "draining"}, []))
        stream.done()
        self.settle()
        self.assertEqual(self.states(), {"a": "sleeping"})
        self.fleet.backends["a"].demand()
        self.settle()
        self.assertEqual(self.states(), {"a": "ready"})
        self.fleet.backends["a"].sleep_wanted("operator")
        self.settle()
        self.assertEqual(self.states(), {"a": "sleeping"})

    def test_a_sleep_that_waits_for_a_start_waits_for_requests_too(self) -> None:
        """It is not forgotten when the last of them ends, also if it is never reaped."""
        self.build(a=self.sleeper(gpu_memory=0.3, idle=0), b={"gpu_memory": 0.3})
        self.serve("a")
        self.servers.mode = "refuse"
        self.ask("b")
        self.fleet.backends["a"].sleep_wanted("operator")
        stream = self.ask("a")
        self.servers.mode = "healthy"
        self.clock.pump([0.01] * 10)
        self.settle()
        self.assertEqual(self.states(), {"a": "ready", "b": "ready"})
        stream.done()
        self.settle()
        self.assertEqual(self.states(), {"a": "sleeping", "b": "ready"})

    def test_one_that_is_found_asleep_is_woken_before_it_serves(self) -> None:
        """Asleep it is healthy, and requests would hang."""
        self.build(a=self.sleeper())
        self.servers.controls["GET /is_sleeping"] = answer(b'{"is_sleeping":true}')
        self.world.become_running("a")
        self.settle()
        self.assertEqual(self.states(), {"a": "sleeping"})
        self.serve("a")
        self.assertEqual(self.servers.asked, ["GET /is_sleeping", "POST /wake_up"])

    def test_one_that_is_found_asleep_before_anything_was_read_from_it(self) -> None:
        """It is asked whether it sleeps, as nobody knows yet that it cannot."""
        self.build(a={"gpu_memory": None})
        self.fleet.close()
        self.world = FakeController(hold_facts=True, hold_stops=True)
        args = ("vllm", "serve", "m", "--enable-sleep-mode", "--gpu-memory-utilization", "0.6")
        self.world.set_facts("a", Facts(args, {"VLLM_SERVER_DEV_MODE": "1"}))
        self.world.become_running("a")
        self.servers.controls["GET /is_sleeping"] = answer(b'{"is_sleeping":true}')
        self.fleet = Fleet(self.clock, self.servers.connect, {"docker": FakeRuntime(self.world)}, self.config)
        started = self.fleet.start()
        self.settle()
        self.world.finish_facts()
        self.successResultOf(started)
        self.assertEqual(self.states(), {"a": "sleeping"})
        self.serve("a")
        self.assertEqual(self.servers.asked[1], "POST /wake_up?tags=weights")

    def find_on_its_way(self) -> None:
        """One that an earlier proxy left falling asleep: meanwhile it does not say whether it sleeps."""
        self.build(a=self.sleeper())
        self.servers.controls["GET /is_sleeping"] = None
        self.world.become_running("a")
        self.settle()
        self.clock.advance(power.ASK_LIMIT)
        self.settle()
        self.assertEqual(self.states(), {"a": "starting"})

    def test_one_that_is_found_on_its_way_to_sleep(self) -> None:
        """It is asked until it says whether it sleeps: asleep, requests would hang."""
        self.find_on_its_way()
        self.servers.controls["GET /is_sleeping"] = answer(b'{"is_sleeping":true}')
        self.clock.advance(1.0)
        self.settle()
        self.assertEqual(self.states(), {"a": "sleeping"})
        self.serve("a")
        self.assertEqual(self.servers.asked[-1], "POST /wake_up")

    def test_one_that_is_found_and_never_says_whether_it_sleeps(self) -> None:
        """Its time to start bounds how long it is asked."""
        self.find_on_its_way()
        for _ in range(700):
            self.clock.advance(0.5)
            self.settle()
        self.assertEqual(self.states(), {"a": "absent"})

    def test_one_that_is_found_on_its_way_and_ends(self) -> None:
        """It is asked no more."""
        self.find_on_its_way()
        self.world.exit("a")
        self.settle()
        asked = len(self.servers.asked)
        for _ in range(20):
            self.clock.advance(0.5)
        self.assertEqual(len(self.servers.asked), asked)

    def test_one_that_is_found_asleep_may_be_half_awake(self) -> None:
        """So that it counts in full until it was woken, or put to sleep by us; it may have to stop."""
        self.build(a=self.sleeper(), b={})
        self.servers.controls["GET /is_sleeping"] = answer(b'{"is_sleeping":true}')
        self.world.become_running("a")
        self.settle()
        self.serve("b")
        self.assertEqual(self.states(), {"a": "absent", "b": "ready"})

    def test_one_that_is_found_asleep_is_not_woken_beside_those_that_run(self) -> None:
        """It counts in full already; that is no room for it to wake in."""
        self.build(a=self.sleeper(), b={})
        self.servers.controls["GET /is_sleeping"] = answer(b'{"is_sleeping":true}')
        for name in ("a", "b"):
            self.world.become_running(name)
        self.settle()
        self.assertEqual(self.states(), {"a": "sleeping", "b": "ready"})
        self.ask("a")
        self.assertEqual(self.states(), {"a": "sleeping", "b": "stopping"})
        self.settle()
        self.assertEqual(self.states(), {"a": "ready", "b": "absent"})

    def test_a_request_in_the_middle_of_falling_asleep(self) -> None:
        """Is served as soon as it can be woken."""
        self.build(a=self.sleeper(idle=10))
        self.servers.controls["POST /sleep"] = None
        self.serve("a")
        self.clock.advance(10)
        client = self.ask("a")
        self.assertEqual(self.states(), {"a": "falling_asleep"})
        (far,) = self.servers_waiting()
        far.send(ASLEEP)
        self.settle()
        self.assertTrue(client.served)

    def servers_waiting(self) -> list[Any]:
        return [far for far in self.servers.controlled if not far.closed]

    # -- leases -------------------------------------------------------------------------------------

    def test_models_make_room_for_a_lease(self) -> None:
        """Idle ones leave, callers are refused until it ends, and then are served again."""
        self.build(a={})
        self.serve("a")
        lease = self.fleet.scheduler.lease("0", 0.5, 600.0, "a game")
        self.assertFalse(lease.held)
        self.settle()
        self.assertTrue(lease.held)
        self.assertEqual(self.states(), {"a": "absent"})
        self.clock.advance(100)
        (refusal,) = self.ask("a").refusals
        self.assertEqual((refusal.code, refusal.retry_after), ("does_not_fit", 500.0))
        self.clock.advance(500)
        self.settle()
        self.assertEqual(list(self.fleet.scheduler.leases), [])
        self.serve("a")

    def test_a_lease_is_released(self) -> None:
        """Whoever comes then is served at once."""
        self.build(a={})
        lease = self.fleet.scheduler.lease("0", 0.5, 600.0, "")
        self.settle()
        self.assertEqual(len(self.ask("a").refusals), 1)
        self.assertIs(self.fleet.scheduler.release(lease.name), lease)
        self.assertIsNone(self.fleet.scheduler.release(lease.name))
        self.serve("a")

    def test_a_lease_waits_for_what_is_in_flight(self) -> None:
        """A busy model drains for it, and who comes to that meanwhile waits."""
        self.build(a={})
        stream = self.ask("a")
        self.settle()
        lease = self.fleet.scheduler.lease("0", 0.5, 600.0, "")
        self.clock.advance(30)
        self.settle()
        self.assertEqual((lease.held, self.states()["a"]), (False, "draining"))
        stream.done()
        self.settle()
        self.assertTrue(lease.held)

    def test_a_lease_that_can_never_be_had(self) -> None:
        """Is refused at once."""
        self.build(a={"pinned": True})
        self.serve("a")
        error = self.assertRaises(Refusal, self.fleet.scheduler.lease, "0", 0.5, 600.0, "")
        self.assertEqual(error.code, "does_not_fit")
        self.assertEqual(list(self.fleet.scheduler.leases), [])
        self.assertIsNone(self.fleet.scheduler.decided("lease-1"))

    def test_a_lease_that_waits_is_not_had_before_it_is_known_what_runs(self) -> None:
        """After a restart a GPU looks empty until then."""
        self.build(a={})
        self.ask("a")
        self.settle()
        lease = self.fleet.scheduler.lease("0", 0.6, 600.0, "")
        self.world.hold_facts = True
        again = Fleet(self.clock, self.servers.connect, {"docker": FakeRuntime(self.world)}, self.config)
        self.addCleanup(again.close)
        again.scheduler.leases.load(self.fleet.scheduler.leases.dump())
        again.scheduler.soon()
        self.clock.advance(0)
        (kept,) = again.scheduler.leases
        self.assertEqual((lease.held, kept.held), (False, False))
        started = again.start()
        self.clock.advance(0)
        self.assertFalse(kept.held)
        self.world.finish_facts()
        self.successResultOf(started)
        self.clock.advance(0)
        self.assertEqual((again.backends["a"].state, kept.held), ("stopping", False))
        self.settle()
        self.assertTrue(kept.held)

    # -- faults -------------------------------------------------------------------------------------

    def test_a_fault_in_a_look_is_no_end_of_the_scheduler(self) -> None:
        """It is logged, told by its health, and the next look is tried soon."""
        self.build(a={})
        plan = self.fleet.scheduler.plan
        self.fleet.scheduler.plan = Mock(side_effect=ZeroDivisionError)  # type: ignore[method-assign]
        client = self.ask("a")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertFalse(self.fleet.scheduler.sound)
        self.fleet.scheduler.plan = plan  # type: ignore[method-assign]
        self.clock.advance(1)
        self.settle()
        self.assertTrue(client.served)
        self.assertTrue(self.fleet.scheduler.sound)

    def test_a_fault_in_whoever_is_told_is_no_end_of_the_scheduler(self) -> None:
        """Whatever was being done: a lease that ends, a start that was decided on."""
        self.build(a={})
        faults = ["release", "start"]

        def told(event: Event) -> None:
            if isinstance(event, Decision) and event.kind in faults:
                faults.remove(event.kind)
                raise ZeroDivisionError

        self.fleet.follow(told)
        self.fleet.scheduler.lease("0", 0.1, 5.0, "")
        self.clock.advance(5)
        self.assertFalse(self.fleet.scheduler.sound)
        client = self.ask("a")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.clock.advance(1)
        self.settle()
        self.assertTrue(client.served)
        self.assertTrue(self.fleet.scheduler.sound)

    def test_a_failed_start_is_forgiven_while_it_is_being_stopped(self) -> None:
        """It does not cool down after that."""
        self.build(a={"start_timeout": 10})
        self.servers.mode = "refuse"
        self.ask("a")
        self.clock.pump([0.1, 10.0])
        self.assertEqual(self.states(), {"a": "stopping"})
        self.fleet.backends["a"].reset()
        self.settle()
        self.assertEqual(self.states(), {"a": "absent"})
        self.assertIsNone(self.fleet.backends["a"].refusal)

    def test_a_fault_in_one_who_is_refused_is_nobody_elses(self) -> None:
        """The others are told, and the backend cools down and may be tried again."""
        self.build(a={})
        self.world.hold_starts = True
        failing = self.ask("a")
        self.patch(failing, "refused", Mock(side_effect=ZeroDivisionError))
        waiting = self.ask("a")
        self.world.refuse_start("a")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual([refusal.code for refusal in waiting.refusals], ["backend_start_failed"])
        self.clock.advance(5)
        self.assertEqual(self.states(), {"a": "absent"})

    # -- the end ------------------------------------------------------------------------------------

    def test_a_reload_changes_what_is_needed(self) -> None:
        """What waits is looked at again."""
        self.build(a={"pinned": True}, b={})
        self.serve("a")
        self.assertEqual(len(self.ask("b").refusals), 1)
        unpinned = evolve(self.config.backends["a"], pinned=False)
        self.fleet.apply(evolve(self.config, backends={**self.config.backends, "a": unpinned}))
        self.settle()
        self.serve("b")

    def test_what_was_learned_is_used(self) -> None:
        """The one that is back sooner leaves."""
        self.build(a={"gpu_memory": 0.4}, b={"gpu_memory": 0.4}, c={"gpu_memory": 0.4})
        for name in ("a", "b"):
            self.serve(name)
        self.takes_long_to_start("a")
        self.serve("c")
        self.assertEqual(self.states(), {"a": "ready", "b": "absent", "c": "ready"})

    def test_nothing_is_left_waiting_at_the_end(self) -> None:
        """Who waits for memory, for time or for a start is told that the proxy ends."""
        self.build(a={}, b={}, c={})
        self.fleet.scheduler.found_meter(Meter(GIB), self.fleet.scheduler.settle)
        clients = [self.ask(name) for name in ("a", "b", "c")]
        closing: Deferred[None] = self.fleet.close()
        self.successResultOf(closing)
        for client in clients:
            self.assertEqual([refusal.code for refusal in client.refusals], ["shutting_down"])
