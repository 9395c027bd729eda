"""Several tasks of one backend: which get requests, how many there are, and how a request goes on to
another."""

from __future__ import annotations

from collections import Counter
from typing import Any

from attrs import define, evolve, frozen
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.scaler import LONGEST, TICK
from llmproxy.backend.tasks import SICK_AFTER
from llmproxy.config.model import Replicas
from llmproxy.http.affinity import affinity_key
from llmproxy.runtimes.interface import Address
from llmproxy.scheduling.affinity import BOUND, choose
from llmproxy.scheduling.replicas import OTHERS_SEEN, Load, ReplicaPolicy, needed
from tests.fake_swarm import FakeReplicator, FakeSwarm
from tests.fakes import FakeRuntime
from tests.unit.test_backend import Request, Rig

QUICK = Replicas(0, 4, target_in_flight=2, out_after=5.0, in_after=20.0)


@frozen
class One:
    """A task with so much to do."""

    id: str
    in_flight: int


LOADS = st.lists(st.integers(0, 50), min_size=1, max_size=12).map(
    lambda loads: [One(f"t{number}", load) for number, load in enumerate(loads)]
)


class ChoiceTests(SynchronousTestCase):
    """To which task a request goes."""

    @given(LOADS)
    def test_the_one_with_the_fewest(self, tasks: list[One]) -> None:
        """Where nothing is known of a request it goes where the fewest are in flight."""
        self.assertEqual(choose(tasks, None).in_flight, min(one.in_flight for one in tasks))

    @given(LOADS, st.binary(max_size=20))
    def test_nobody_is_overrun(self, tasks: list[One], key: bytes) -> None:
        """However many belong together, no task gets more than its bound."""
        mean = (sum(one.in_flight for one in tasks) + 1) / len(tasks)
        self.assertLess(choose(tasks, key).in_flight, BOUND * mean + 1)

    @given(st.binary(max_size=20), st.integers(2, 9))
    def test_those_that_belong_together_meet(self, key: bytes, count: int) -> None:
        """The same key goes to the same task, whatever the order in which tasks are told of."""
        tasks = [One(f"t{number}", 0) for number in range(count)]
        self.assertEqual(choose(tasks, key), choose(tasks[::-1], key))

    @given(st.binary(max_size=20), st.integers(2, 9))
    def test_a_task_that_goes_moves_only_its_own(self, key: bytes, count: int) -> None:
        """Keys of the others stay where they are."""
        tasks = [One(f"t{number}", 0) for number in range(count)]
        chosen = choose(tasks, key)
        others = [one for one in tasks if one is not tasks[0]]
        if chosen is not tasks[0]:
            self.assertEqual(choose(others, key), chosen)

    def test_keys_are_spread(self) -> None:
        """No task is everybody's."""
        tasks = [One(f"t{number}", 0) for number in range(4)]
        counts = Counter(choose(tasks, b"%d" % number).id for number in range(400))
        self.assertEqual(len(counts), 4)
        self.assertGreater(min(counts.values()), 60)


class AffinityTests(SynchronousTestCase):
    """What requests have in common."""

    def test_turns_of_one_conversation(self) -> None:
        """They begin alike, however much follows."""
        system = '{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}'
        first = affinity_key(b'{"model": "m", "messages": [%s]}' % system.encode())
        later = affinity_key(
            b'{"model": "m", "messages": [%s, {"role": "user", "content": "and now?"}]}' % system.encode()
        )
        self.assertIsNotNone(first)
        self.assertEqual(first, later)

    def test_who_says_so(self) -> None:
        """What a client says of itself goes before its prompt, in each API's own field."""
        for field in ("user", "session", "session_id", "prompt_cache_key", "safety_identifier"):
            one = affinity_key(b'{"%s": "ada", "messages": [1]}' % field.encode())
            self.assertEqual(one, affinity_key(b'{"%s": "ada", "prompt": "x"}' % field.encode()))
            self.assertNotEqual(one, affinity_key(b'{"%s": "bob", "messages": [1]}' % field.encode()))
        self.assertEqual(
            affinity_key(b'{"metadata": {"user_id": "ada"}, "messages": [1]}'),
            affinity_key(b'{"metadata": {"user_id": "ada"}, "messages": [2]}'),
        )

    def test_other_prompts(self) -> None:
        """Prompts of completions, responses and embeddings count, and models are kept apart."""
        keys = [
            affinity_key(body)
            for body in (
                b'{"prompt": "a"}',
                b'{"prompt": "b"}',
                b'{"input": ["c"]}',
                b'{"instructions": "be brief", "input": "a"}',
                b'{"system": "be brief", "messages": [{"content": "a"}]}',
                b'{"model": "x", "prompt": "a"}',
            )
        ]
        self.assertNotIn(None, keys)
        self.assertEqual(len(set(keys)), len(keys))

    @given(
        st.binary() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(repr).map(str.encode)
    )
    def test_anything_else(self, body: bytes) -> None:
        """Nothing that a client sends is a fault."""
        key = affinity_key(body)
        self.assertTrue(key is None or isinstance(key, bytes))


class PolicyTests(SynchronousTestCase):
    """How many tasks there shall be."""

    def over(self, policy: ReplicaPolicy, load: Load, seconds: float, begin: float = 0.0) -> list[int]:
        return [policy.step(begin + at / 2, QUICK, load) for at in range(int(seconds * 2) + 1)]

    def test_out_when_it_lasts(self) -> None:
        """A load beyond the target has one more when it has lasted, and not before."""
        steps = self.over(ReplicaPolicy(), Load(3, 1, 1), 5.0)
        self.assertEqual(steps, [0] * 10 + [1])

    def test_a_short_rush(self) -> None:
        """A break begins the count anew."""
        policy = ReplicaPolicy()
        self.over(policy, Load(3, 1, 1), 4.5)
        policy.step(4.6, QUICK, Load(2, 1, 1))
        self.assertEqual(set(self.over(policy, Load(3, 1, 1), 4.5, 5.0)), {0})

    def test_one_at_a_time(self) -> None:
        """While one is on its way there is no other, whatever comes."""
        self.assertEqual(set(self.over(ReplicaPolicy(), Load(100, 2, 1), 60.0)), {0})
        self.assertEqual(sum(self.over(ReplicaPolicy(), Load(100, 4, 4), 60.0)), 0)

    def test_in_when_it_lasts(self) -> None:
        """A load that one fewer would carry with room to spare has one fewer, at last."""
        steps = self.over(ReplicaPolicy(), Load(1, 2, 2), 20.0)
        self.assertEqual((set(steps[:-1]), steps[-1]), ({0}, -1))

    def test_between_is_rest(self) -> None:
        """At a load that one fewer would carry only just, nothing changes, in neither direction."""
        self.assertEqual(set(self.over(ReplicaPolicy(), Load(2, 2, 2), 300.0)), {0})

    def test_what_another_proxy_needs(self) -> None:
        """As long as another one needs them, all stay."""
        self.assertEqual(set(self.over(ReplicaPolicy(), Load(0, 3, 3, needed_at=30.0), 45.0)), {0})

    def test_the_limits(self) -> None:
        """Settings that have changed are followed at once."""
        self.assertEqual(ReplicaPolicy().step(0.0, QUICK, Load(100, 5, 5)), -1)
        self.assertEqual(ReplicaPolicy().step(0.0, evolve(QUICK, min=2), Load(0, 1, 1)), 1)
        self.assertEqual(set(self.over(ReplicaPolicy(), Load(0, 1, 1), 300.0)), {0})

    @given(st.integers(0, 1000), st.integers(1, 100))
    def test_needed(self, load: int, target: int) -> None:
        """So many carry it, and one fewer does not."""
        settings = Replicas(target_in_flight=target)
        count = needed(load, settings)
        self.assertGreaterEqual(count * target, load)
        self.assertTrue(count == 1 or (count - 1) * target < load)

    @given(st.lists(st.integers(0, 40), min_size=1, max_size=400))
    def test_it_never_swings(self, loads: list[int]) -> None:
        """Between one more and one fewer there is always the time that the latter takes."""
        policy, wanted, out_at = ReplicaPolicy(), 1, -1000.0
        for at, load in enumerate(loads):
            step = policy.step(float(at), QUICK, Load(load, wanted, wanted))
            if step > 0:
                out_at = float(at)
            if step < 0:
                self.assertGreaterEqual(at - out_at, QUICK.in_after)
                policy.done()
            wanted += step
            self.assertTrue(1 <= wanted <= QUICK.max)


class SeveralRig(Rig):
    """A backend of several tasks with everything around it in memory."""

    swarm: FakeSwarm

    def __init__(self, **settings: object) -> None:
        super().__init__(runtime="swarm", service="m", **{"replicas": QUICK, **settings})

    def make_runtime(self) -> FakeRuntime:
        self.world = self.swarm = FakeSwarm()
        return FakeReplicator(self.swarm)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds / TICK) + 1):
            self.clock.advance(TICK)

    def tasks(self) -> list[str]:
        return self.swarm.tasks("m")

    def where(self, *requests: Request) -> list[str]:
        """The tasks that have them now."""
        return [request.leases[-1].replica.id for request in requests]


@define(eq=False)
class Belonging(Request):
    """A request that belongs to others."""

    key: bytes = b""

    def affinity(self) -> bytes | None:
        return self.key


class Moving(Request):
    """A request that goes on to another task when its own is lost."""

    def cut(self, reason: str) -> None:
        self.cuts.append(reason)
        self.leases[-1].release()
        self.backend.enter(self)


class SeveralTests(SynchronousTestCase):
    """A backend of several tasks, one story each."""

    def assertQuiet(self, rig: SeveralRig) -> None:
        rig.scheduler.close()
        rig.backend.close()
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def busy(self, count: int, tasks: int, **settings: object) -> tuple[SeveralRig, list[Request]]:
        """A backend that has so many requests, and so many tasks for them."""
        rig = SeveralRig(**settings)
        requests = [rig.request() for _ in range(count)]
        rig.ready()
        rig.run(6 * tasks)
        self.assertEqual(len(rig.tasks()), tasks)
        return rig, requests

    def test_cold_start(self) -> None:
        """It is started once, and is ready when its task is healthy."""
        rig = SeveralRig()
        requests = [rig.request() for _ in range(5)]
        self.assertEqual(rig.backend.state, "starting")
        rig.ready()
        self.assertEqual(rig.world.count("ensure_started"), 1)
        self.assertEqual(rig.where(*requests), ["t1"] * 5)
        self.assertQuiet(rig)

    def test_scale_out_and_in(self) -> None:
        """A load that lasts has one more task at a time, up to the maximum; when it is over, one fewer."""
        rig, requests = self.busy(20, 4)
        told = [(call[0], call[-1]) for call in rig.world.calls if call[0] == "scale"]
        self.assertEqual(told, [("scale", 2), ("scale", 3), ("scale", 4)])
        rig.run(60)
        self.assertEqual(len(rig.tasks()), 4)
        for request in requests:
            request.leases[0].release()
        rig.run(70)
        self.assertEqual(len(rig.tasks()), 1)
        self.assertEqual(rig.backend.state, "ready")
        kinds = [decision.kind for decision in rig.decisions if decision.kind.startswith("scale")]
        self.assertEqual(kinds, ["scale out"] * 3 + ["scale in"] * 3)
        rig.run(700)
        self.assertEqual(rig.backend.state, "absent")
        self.assertQuiet(rig)

    def test_new_tasks_get_what_comes(self) -> None:
        """A task gets requests when it is healthy, and not before."""
        rig, requests = self.busy(2, 1)
        rig.servers.modes["10.0.0.2"] = "refuse"
        requests += [rig.request() for _ in range(2)]
        rig.run(6)
        self.assertEqual(len(rig.tasks()), 2)
        self.assertEqual(rig.where(rig.request()), ["t1"])
        rig.servers.modes.clear()
        rig.run(1)
        self.assertEqual(rig.where(rig.request(), rig.request()), ["t2", "t2"])
        self.assertEqual(rig.where(*requests), ["t1"] * 4)

    def test_those_that_belong_together(self) -> None:
        """Requests of one kind go to one task, and to another one before that has too many."""
        rig, _ = self.busy(4, 2)
        for lease in rig.backend.gate.leases():
            lease.release()
        alike = [Belonging(rig.backend, key=b"one") for _ in range(2)]
        for request in alike:
            rig.backend.enter(request)
            request.leases[0].release()
        self.assertEqual(len(set(rig.where(*alike))), 1)
        many = [Belonging(rig.backend, key=b"one") for _ in range(8)]
        for request in many:
            rig.backend.enter(request)
        self.assertEqual(sorted(Counter(rig.where(*many)).values()), [3, 5])

    def test_a_limit_is_each_ones(self) -> None:
        """So many requests go to each task at once, and the others are held."""
        rig, requests = self.busy(20, 4, max_in_flight=3)
        self.assertEqual(rig.backend.admission.in_flight, 12)
        self.assertEqual(rig.backend.admission.waiting, 8)
        admitted = [request for request in requests if request.leases]
        self.assertEqual(set(Counter(rig.where(*admitted)).values()), {3})

    def test_a_task_that_ends(self) -> None:
        """What is in flight there is cut as lost; the others go on, and nothing goes there any more."""
        rig, requests = self.busy(4, 2)
        more = [rig.request() for _ in range(4)]
        rig.swarm.end_task("m", "t2")
        cut = [request for request in (*requests, *more) if request.cuts]
        self.assertEqual(set(rig.where(*cut)), {"t2"})
        self.assertTrue(all(request.leases[0].replica.lost for request in cut))
        self.assertEqual(rig.where(rig.request()), ["t1"])
        self.assertEqual(rig.backend.state, "ready")

    def moving(self, *ids: str) -> tuple[SeveralRig, list[Moving]]:
        """Three tasks, and requests that go on from each of these."""
        rig, requests = self.busy(6, 3)
        for request in requests:
            request.leases[0].release()
        moving = [Moving(rig.backend) for _ in range(3)]
        for each in moving:
            rig.backend.enter(each)
        return rig, [each for each in moving if rig.where(each)[0] in ids]

    def test_several_that_end_at_once(self) -> None:
        """What was in flight at one of them goes on to none of the others that have ended."""
        rig, moving = self.moving("t1", "t2")
        instance = rig.world.instance("m")
        assert instance is not None
        rig.swarm.say("m", tasks=instance.tasks[2:])
        went = [[lease.replica.id for lease in request.leases[1:]] for request in moving]
        self.assertEqual(went, [["t3"], ["t3"]])

    def test_one_that_ends_as_another_leaves(self) -> None:
        """What goes on goes to none that is told to be leaving at the same time."""
        rig, moving = self.moving("t3")
        instance = rig.world.instance("m")
        assert instance is not None
        first, second, _ = instance.tasks
        rig.swarm.say("m", tasks=(evolve(first, leaving=True), second))
        self.assertEqual(rig.where(*moving), ["t2"])

    def test_the_last_one_ends(self) -> None:
        """With its last task the backend ends; the next request starts it."""
        rig, requests = self.busy(1, 1)
        rig.swarm.end_task("m", "t1")
        self.assertEqual(rig.backend.state, "absent")
        self.assertEqual(len(requests[0].cuts), 1)
        again = rig.request()
        rig.ready()
        self.assertEqual(rig.where(again), ["t2"])

    def test_the_last_one_is_replaced(self) -> None:
        """Where another one runs already in the place of the last, who waits waits for that."""
        rig, _ = self.busy(1, 1)
        rig.servers.modes["10.0.0.2"] = "refuse"
        rig.swarm.end_and_replace("m", "t1")
        self.assertEqual(rig.backend.state, "starting")
        waits = rig.request()
        rig.servers.modes.clear()
        rig.clock.advance(1)
        self.assertEqual(rig.where(waits), ["t2"])
        self.assertEqual(rig.world.count("ensure_started"), 1)

    def test_a_task_that_leaves(self) -> None:
        """One that is being ended gets nothing new, and what it has goes on; with no other one, requests
        are held until there is another."""
        rig, requests = self.busy(1, 1)
        rig.swarm.leave_task("m", "t1")
        waits = rig.request()
        self.assertEqual((requests[0].cuts, waits.answers), ([], 0))
        self.assertEqual(rig.backend.state, "ready")
        rig.swarm.run_task("m")
        rig.clock.advance(1)
        self.assertEqual(rig.where(waits), ["t2"])
        requests[0].leases[0].release()
        rig.swarm.end_task("m", "t1")
        self.assertEqual((requests[0].cuts, rig.backend.state), ([], "ready"))
        self.assertQuiet(rig)

    def test_a_start_that_is_taken_away(self) -> None:
        """A task that is lost with its node while it starts is no failed start: another one is started."""
        rig = SeveralRig()
        waits = rig.request()
        rig.swarm.end_task("m", "t1", None)
        self.assertEqual((rig.backend.state, waits.refusals), ("starting", []))
        self.assertEqual(rig.world.count("ensure_started"), 2)
        rig.ready()
        self.assertEqual(rig.where(waits), ["t2"])

    def test_those_that_are_left_end_unwell(self) -> None:
        """That they end while their health is asked is no failed start; the next one may be."""
        rig, _ = self.busy(1, 1)
        rig.servers.mode = "refuse"
        rig.swarm.end_and_replace("m", "t1")
        waits = rig.request()
        self.assertEqual(rig.backend.state, "starting")
        rig.swarm.end_task("m", "t2", 1)
        self.assertEqual((rig.backend.state, waits.refusals), ("starting", []))
        self.assertEqual(rig.world.count("ensure_started"), 2)
        rig.swarm.end_task("m", "t3", 1)
        self.assertEqual((rig.backend.state, len(waits.refusals)), ("failed", 1))

    def test_the_last_one_ends_beside_one_that_leaves(self) -> None:
        """What only leaves is not waited for: with its end the backend has ended, and is started anew."""
        rig, _ = self.busy(1, 1)
        rig.servers.modes["10.0.0.2"] = "refuse"
        rig.swarm.run_task("m")
        rig.swarm.leave_task("m", "t2")
        rig.swarm.end_task("m", "t1")
        waits = rig.request()
        self.assertEqual((rig.backend.state, waits.answers), ("ready", 0))
        rig.swarm.end_task("m", "t2")
        rig.clock.advance(1)
        self.assertEqual((rig.world.count("ensure_started"), rig.where(waits)), (2, ["t3"]))

    def test_stopped_while_it_waits_for_a_node(self) -> None:
        """A start that waits for a node for ever can be stopped, and those who wait are told so at once."""
        rig = SeveralRig()
        rig.world.hold_starts = True
        waits = rig.request()
        rig.backend.stop_wanted("by hand", force=True)
        self.assertEqual(rig.backend.state, "absent")
        self.assertEqual([refusal.code for refusal in waits.refusals], ["not_running"])
        again = rig.request()
        rig.world.finish_start("m")
        rig.ready()
        self.assertEqual(rig.where(again), ["t1"])

    def test_another_address(self) -> None:
        """A task that turns out to answer elsewhere is asked there."""
        rig = SeveralRig()
        waits = rig.request()
        rig.servers.modes["10.0.0.9"] = "healthy"
        instance = rig.world.instance("m")
        assert instance is not None
        moved = evolve(instance.tasks[0], addresses=(Address("10.0.0.9", 8000, "published"),))
        rig.swarm.say("m", tasks=(moved,))
        rig.clock.advance(1)
        self.assertEqual(rig.where(waits), ["t1"])

    def test_a_sick_task(self) -> None:
        """One whose health path says no after a broken answer is taken out, and back in when it is well."""
        rig, _ = self.busy(4, 2)
        rig.servers.modes["10.0.0.2"] = "sick"
        broken = rig.request()
        self.assertEqual(rig.where(broken), ["t2"])
        broken.leases[0].release(suspicious=True)
        self.assertEqual(rig.where(rig.request(), rig.request()), ["t1", "t1"])
        rig.servers.modes.clear()
        rig.clock.advance(1)
        self.assertEqual(rig.where(rig.request()), ["t2"])

    def test_a_silent_task(self) -> None:
        """One that says nothing gets nothing new while there are others; what it has is left alone."""
        rig, _ = self.busy(4, 2)
        rig.servers.modes["10.0.0.2"] = "hang"
        first, second = rig.request(), rig.request()
        self.assertEqual(rig.where(first, second), ["t2", "t2"])
        first.leases[0].release(suspicious=True)
        self.assertEqual(rig.where(rig.request()), ["t1"])
        rig.clock.advance(3)
        self.assertEqual((rig.where(rig.request()), second.cuts), (["t1"], []))
        rig.servers.modes.clear()
        rig.run(3)
        self.assertEqual(rig.where(rig.request()), ["t2"])

    def test_the_only_one_is_sick(self) -> None:
        """Where none is left, requests are held while its end may come; else it is started anew."""
        rig, requests = self.busy(1, 1)
        rig.servers.mode = "sick"
        requests[0].leases[0].release(suspicious=True)
        waits = rig.request()
        self.assertEqual((rig.backend.state, waits.answers), ("ready", 0))
        rig.clock.advance(SICK_AFTER)
        self.assertEqual(rig.states()[-3:], ["stopping", "absent", "starting"])
        rig.ready()
        self.assertEqual(rig.where(waits), ["t2"])

    def test_the_only_one_has_died(self) -> None:
        """Its end is told a moment after its broken answers: then it is started anew at once."""
        rig, requests = self.busy(1, 1)
        rig.servers.mode = "refuse"
        requests[0].leases[0].release(suspicious=True)
        waits = rig.request()
        rig.swarm.end_task("m", "t1")
        self.assertEqual(rig.backend.state, "starting")
        rig.ready()
        self.assertEqual(rig.where(waits), ["t2"])

    def test_the_one_that_leaves_has_nothing_in_flight(self) -> None:
        """What shall leave gets nothing new, and leaves when what it has is over."""
        rig, requests = self.busy(8, 2, replicas=evolve(QUICK, target_in_flight=4))
        long = rig.request()
        self.assertEqual(rig.where(long), ["t2"])
        for request in requests[1:]:
            request.leases[0].release()
        rig.run(60)
        self.assertEqual((len(rig.tasks()), rig.where(rig.request())), (2, ["t2"]))
        requests[0].leases[0].release()
        rig.run(30)
        self.assertEqual(rig.tasks(), ["t2"])
        self.assertEqual(long.cuts, [])

    def test_a_new_rush_keeps_it(self) -> None:
        """One that was about to leave gets requests again when they are more again."""
        rig, requests = self.busy(8, 2, replicas=evolve(QUICK, target_in_flight=4))
        second = rig.request()
        for request in requests[1:]:
            request.leases[0].release()
        rig.run(30)
        self.assertEqual(sum(replica.resting for replica in rig.backend.gate.roster), 1)
        rush = [rig.request() for _ in range(6)]
        self.assertEqual(len(set(rig.where(*rush))), 1)
        rig.run(1)
        self.assertEqual(sum(replica.resting for replica in rig.backend.gate.roster), 0)
        self.assertEqual((len(rig.tasks()), second.cuts), (2, []))

    def chosen(self) -> tuple[SeveralRig, list[Request], str]:
        """Two tasks with a request each, of which one shall leave when that is over."""
        rig, requests = self.busy(8, 2, replicas=evolve(QUICK, target_in_flight=4))
        requests.append(rig.request())
        for request in requests[:7]:
            request.leases[0].release()
        rig.run(21)
        (leaver,) = [replica.id for replica in rig.backend.gate.roster if replica.resting]
        self.assertEqual(len(rig.tasks()), 2)
        return rig, requests[7:], leaver

    def test_one_that_shall_leave_and_is_well(self) -> None:
        """That its health is asked after a broken answer, and is good, gives it nothing new."""
        rig, requests, leaver = self.chosen()
        (ours,) = [request for request in requests if rig.where(request) == [leaver]]
        ours.leases[0].release(suspicious=True)
        rig.clock.advance(0.1)
        self.assertNotEqual(rig.where(rig.request()), [leaver])

    def test_one_that_is_told_to_leave_stays_so(self) -> None:
        """What shall leave, and is being ended by whoever runs it, gets nothing even when it may stay."""
        rig, _, leaver = self.chosen()
        rig.swarm.leave_task("m", leaver)
        rush = [rig.request() for _ in range(6)]
        rig.run(1)
        self.assertNotIn(leaver, rig.where(*rush, *(rig.request() for _ in range(6))))

    def test_one_that_was_not_ended(self) -> None:
        """Where another proxy has changed their number just then nothing is done, and it is used again."""
        rig, requests, leaver = self.chosen()
        rig.swarm._change("m", replicas=3)
        for request in requests:
            if rig.where(request) == [leaver]:
                request.leases[0].release()
        rig.clock.advance(TICK)
        self.assertEqual(rig.world.count("retire"), 1)
        rig.swarm.say("m", replicas=2)
        self.assertNotIn(leaver, rig.where(rig.request()))
        more = [rig.request() for _ in range(2)]
        rig.run(rig.spec.stop_grace + 2 * LONGEST)
        more += [rig.request() for _ in range(4)]
        self.assertIn(leaver, rig.where(*more))

    def test_one_that_is_not_well_leaves_first(self) -> None:
        """Never the last one that gets requests, however little it has."""
        rig, requests = self.busy(4, 2)
        rig.servers.modes["10.0.0.2"] = "hang"
        broken = rig.request()
        self.assertEqual(rig.where(broken), ["t2"])
        broken.leases[0].release(suspicious=True)
        for request in requests[:3]:
            request.leases[0].release()
        rig.run(21)
        self.assertEqual(rig.where(rig.request()), ["t1"])
        self.assertEqual(rig.tasks(), ["t1"])

    def test_whom_others_choose(self) -> None:
        """Where somebody else chooses which one leaves, nothing is in flight at any of them when it does."""
        rig, requests = self.busy(4, 2)
        rig.swarm.choosable = False
        rig.swarm.hold_scaling = True
        for request in requests[1:]:
            request.leases[0].release()
        rig.run(60)
        self.assertEqual(rig.world.count("retire"), 0)
        requests[0].leases[0].release()
        rig.run(1)
        self.assertEqual(rig.world.count("retire"), 1)
        waits = rig.request()
        self.assertEqual(waits.answers, 0)
        rig.swarm.finish_scaling()
        self.assertEqual(rig.where(waits), ["t2"])
        self.assertQuiet(rig)

    def test_a_manager_that_does_not_answer(self) -> None:
        """Nobody is held for longer than a moment because of it."""
        rig, requests = self.busy(4, 2)
        rig.swarm.choosable = False
        rig.swarm.hold_scaling = True
        for request in requests:
            request.leases[0].release()
        rig.run(20)
        self.assertEqual(rig.world.count("retire"), 1)
        waits = rig.request()
        self.assertEqual(waits.answers, 0)
        rig.clock.advance(LONGEST)
        self.assertEqual(waits.answers, 1)

    def test_a_pending_task_is_the_first_to_leave(self) -> None:
        """One more that found no node is given up when the load is over, and nobody else."""
        rig = SeveralRig()
        rig.swarm.at_once = False
        requests = [rig.request() for _ in range(4)]
        rig.ready()
        rig.run(60)
        instance = rig.world.instance("m")
        assert instance is not None
        self.assertEqual((instance.replicas, rig.tasks()), (2, ["t1"]))
        for request in requests[1:]:
            request.leases[0].release()
        rig.run(30)
        self.assertEqual(rig.world.calls[-1][0], "note_use")
        self.assertIn(("retire", "m", "", 2), rig.world.calls)
        self.assertEqual((rig.tasks(), requests[0].cuts), (["t1"], []))

    def test_another_proxy_uses_it(self) -> None:
        """While another one says so, no task leaves and it is not idle."""
        rig, requests = self.busy(4, 2, idle=10)
        for request in requests:
            request.leases[0].release()
        for _ in range(10):
            rig.swarm.say("m", used_at=rig.clock.seconds())
            rig.run(30)
        self.assertEqual((len(rig.tasks()), rig.backend.state), (2, "ready"))
        rig.run(OTHERS_SEEN + 30)
        self.assertEqual(rig.backend.state, "absent")

    def test_use_is_noted(self) -> None:
        """What is needed is said while something is in flight, and not at rest."""
        rig, requests = self.busy(3, 2)
        self.assertIn(("note_use", "m", 2), rig.world.calls)
        for request in requests:
            request.leases[0].release()
        rig.run(60)
        rig.world.calls.clear()
        rig.run(60)
        self.assertEqual(rig.world.count("note_use"), 0)

    def test_short_use_is_noted(self) -> None:
        """Also what is over before the next look, where there are more tasks than must be."""
        rig, requests = self.busy(3, 2)
        for request in requests:
            request.leases[0].release()
        rig.run(1)
        rig.world.calls.clear()
        rig.clock.advance(TICK / 2)
        rig.request().leases[0].release()
        rig.clock.advance(TICK)
        rig.clock.advance(TICK)
        self.assertEqual(rig.world.count("note_use"), 1)

    def test_what_another_process_carries_is_noted(self) -> None:
        """It is in use, whoever has brought it there."""
        rig, requests = self.busy(1, 1)
        requests[0].leases[0].release()
        rig.run(1)
        rig.world.calls.clear()
        occupied = rig.backend.gate.occupy()
        rig.run(1)
        self.assertGreater(rig.world.count("note_use"), 0)
        occupied.release()

    def test_settings_that_change(self) -> None:
        """More tasks may be wanted, or fewer, without a restart."""
        rig, requests = self.busy(4, 2)
        rig.backend.retune(evolve(rig.spec, replicas=Replicas(0, 1)))
        for request in requests:
            request.leases[0].release()
        rig.run(2)
        self.assertEqual(len(rig.tasks()), 1)

    def test_adopted(self) -> None:
        """What runs already is found with all of its tasks."""
        rig = SeveralRig()
        rig.world.become_running("m")
        rig.swarm.run_task("m")
        rig.servers.mode = "healthy"
        rig.clock.advance(1)
        self.assertEqual(rig.backend.state, "ready")
        self.assertEqual(set(rig.where(rig.request(), rig.request())), {"t1", "t2"})
        self.assertEqual(rig.world.count("ensure_started"), 0)


class SeveralMachine(RuleBasedStateMachine):
    """Requests, tasks, a Swarm, time and health, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = SeveralRig(max_in_flight=None, idle=120)
        self.requests: list[Request] = []
        self.rig.servers.mode = "healthy"

    @rule(count=st.integers(1, 6))
    def ask(self, count: int) -> None:
        self.requests += [self.rig.request() for _ in range(count)]

    @rule(seconds=st.sampled_from([0.02, 0.5, 3.0, 10.0, 40.0]))
    def wait(self, seconds: float) -> None:
        left = seconds
        while left > 0:
            self.rig.clock.advance(min(0.5, left))
            left -= 0.5

    @rule(pick=st.integers(0, 50), suspicious=st.booleans())
    def end(self, pick: int, suspicious: bool) -> None:
        leases = self.rig.backend.gate.leases()
        if leases:
            leases[pick % len(leases)].release(suspicious=suspicious)

    @precondition(lambda self: self.rig.world.is_running("m"))
    @rule(pick=st.integers(0, 10), leaving=st.booleans())
    def lose(self, pick: int, leaving: bool) -> None:
        instance = self.rig.world.instance("m")
        assert instance is not None
        task = instance.tasks[pick % len(instance.tasks)]
        if leaving:
            self.rig.swarm.leave_task("m", task.id)
        else:
            self.rig.swarm.end_task("m", task.id)

    @precondition(lambda self: self.rig.world.is_running("m"))
    @rule()
    def run_one(self) -> None:
        self.rig.swarm.run_task("m")

    @precondition(lambda self: self.rig.world.is_running("m"))
    @rule(replicas=st.integers(1, 4), heard=st.booleans())
    def another_proxy(self, replicas: int, heard: bool) -> None:
        self.rig.swarm._change("m", replicas=replicas)
        if heard:
            self.rig.swarm.say("m", used_at=self.rig.clock.seconds())

    @precondition(lambda self: self.rig.world.is_running("m"))
    @rule(count=st.integers(1, 3))
    def lose_several(self, count: int) -> None:
        instance = self.rig.world.instance("m")
        assert instance is not None
        if instance.tasks[count:]:
            self.rig.swarm.say("m", tasks=instance.tasks[count:])

    @rule(choosable=st.booleans(), at_once=st.booleans())
    def swarm(self, choosable: bool, at_once: bool) -> None:
        self.rig.swarm.choosable, self.rig.swarm.at_once = choosable, at_once

    @rule(host=st.integers(1, 8), mode=st.sampled_from(["healthy", "sick", "refuse", "hang"]))
    def health(self, host: int, mode: str) -> None:
        self.rig.servers.modes[f"10.0.0.{host}"] = mode

    @rule()
    def away(self) -> None:
        self.rig.world.go_away()
        self.rig.clock.advance(1)
        self.rig.world.come_back()

    @invariant()
    def in_flight_is_what_is_leased(self) -> None:
        gate = self.rig.backend.gate
        leases = Counter(lease.replica.id for lease in gate.leases())
        assert gate.admission.in_flight == sum(leases.values())
        for replica in gate.roster:
            assert replica.in_flight == leases[replica.id]

    @invariant()
    def only_what_is_there_is_in_the_gate(self) -> None:
        instance = self.rig.world.instance("m")
        there = {} if instance is None else {task.id: task for task in instance.tasks}
        for replica in self.rig.backend.gate.roster:
            assert replica.id in there
            assert replica.ailing or not there[replica.id].leaving

    @invariant()
    def each_is_told_once(self) -> None:
        for request in self.requests:
            assert request.answers <= 1

    def teardown(self) -> None:
        """In the end everything is well, and everybody is answered."""
        self.rig.servers.modes.clear()
        self.rig.swarm.at_once = True
        for _ in range(1500):
            self.rig.clock.advance(0.5)
            # What leaves does end.
            instance = self.rig.world.instance("m")
            for task in () if instance is None else instance.tasks:
                if task.leaving:
                    self.rig.swarm.end_task("m", task.id)
            if all(request.answers for request in self.requests):
                break
        assert all(request.answers == 1 for request in self.requests)
        self.rig.scheduler.close()
        self.rig.backend.close()
        assert self.rig.clock.getDelayedCalls() == []


SeveralMachineTests: Any = SeveralMachine.TestCase
