"""One backend over a runtime in memory: demands, holds, races and the end, in any order."""

from __future__ import annotations

from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.backend import Backend
from llmproxy.backend.gate import Lease
from llmproxy.backend.knock import Knock
from llmproxy.backend.probe import INTERVAL, PATIENCE_FIRST, PATIENCE_MOST, Prober
from llmproxy.backend.surroundings import Decision, Surroundings, Transition
from llmproxy.config.model import BackendSpec, Config
from llmproxy.errors import Refusal
from llmproxy.fleet.scheduler import Scheduler
from llmproxy.runtimes.interface import Address, Exit, Facts
from llmproxy.scheduling.history import History
from llmproxy.scheduling.learned import Learned
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Servers


@define(eq=False)
class Request:
    """A waiter that writes down what it is told."""

    backend: Backend
    leases: list[Lease] = field(factory=list)
    refusals: list[Refusal] = field(factory=list)
    cuts: list[str] = field(factory=list)
    left: bool = False
    priority: int = 0
    may_evict: bool = True

    def affinity(self) -> bytes | None:
        return None

    def admitted(self, lease: Lease) -> None:
        self.leases.append(lease)

    def refused(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)

    def cut(self, reason: str) -> None:
        self.cuts.append(reason)
        self.leases[0].release()

    def handed_on(self, route: str | None) -> None:
        raise AssertionError("no configuration changes here")

    @property
    def answers(self) -> int:
        return len(self.leases) + len(self.refusals)


class Rig:
    """A backend with everything around it in memory."""

    def __init__(self, **settings: object) -> None:
        self.clock = Clock()
        self.runtime = self.make_runtime()
        self.runtime.start()
        self.servers = Servers()
        self.trail: list[Transition] = []
        self.spec = BackendSpec(route="m", container="m", models=("model",), **settings)  # type: ignore[arg-type]
        self.decisions: list[Decision] = []
        learned, history = Learned(), History()
        self.scheduler = Scheduler(
            self.clock, Config(), lambda: {"m": self.backend}, self.decisions.append, learned, history
        )
        surroundings = Surroundings(
            self.clock,
            self.servers.connect,
            self.trail.append,
            self.scheduler,
            learned,
            history,
            drain=30.0,
            drain_limit=600.0,
            secrets=("s3cr3t",),
            announce=self.decisions.append,
        )
        self.backend = Backend(surroundings, self.runtime, self.spec)
        self.backend.watch()

    def make_runtime(self) -> FakeRuntime:
        self.world = FakeController()
        return FakeRuntime(self.world)

    def request(self) -> Request:
        request = Request(self.backend)
        self.backend.enter(request)
        return request

    def ready(self, after: float = INTERVAL) -> None:
        self.servers.mode = "healthy"
        self.clock.advance(after)

    def states(self) -> list[str]:
        return [transition.new for transition in self.trail]


class BackendTests(SynchronousTestCase):
    """One backend, one story each."""

    def assertQuiet(self, rig: Rig) -> None:
        """Nothing is left to happen after the end."""
        rig.scheduler.close()
        rig.backend.close()
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_two_hundred_cold_requests_cause_one_start(self) -> None:
        """N requests at once start it once, and all are admitted."""
        rig = Rig()
        requests = [rig.request() for _ in range(200)]
        rig.ready()
        self.assertEqual(rig.world.count("ensure_started"), 1)
        self.assertEqual([len(request.leases) for request in requests], [1] * 200)

    def test_a_waiter_that_leaves_takes_only_its_own_place(self) -> None:
        """The start goes on for the others."""
        rig = Rig()
        first, second = rig.request(), rig.request()
        rig.backend.leave(first)
        rig.ready()
        self.assertEqual((first.answers, len(second.leases)), (0, 1))

    def test_an_abandoned_start_goes_on_and_is_reaped_early(self) -> None:
        """When the last waiter has left it becomes ready all the same, and goes after abandon_idle."""
        rig = Rig(idle=600, abandon_idle=60)
        request = rig.request()
        rig.backend.leave(request)
        rig.ready()
        self.assertEqual(rig.backend.state, "ready")
        rig.clock.advance(59)
        self.assertEqual(rig.backend.state, "ready")
        rig.clock.advance(1)
        self.assertEqual(rig.states()[-2:], ["stopping", "absent"])

    def test_an_abandoned_start_says_nothing_of_the_next(self) -> None:
        """A start that nobody had to wait for keeps its full idle time, whoever left an earlier one."""
        rig = Rig(idle=600, abandon_idle=60)
        request = rig.request()
        rig.backend.leave(request)
        rig.world.exit("m", 1)
        rig.backend.reset()
        rig.backend.demand()
        rig.ready()
        rig.clock.advance(61)
        self.assertEqual(rig.backend.state, "ready")

    def test_idle_counts_from_the_last_byte_of_the_last_answer(self) -> None:
        """A request in flight for longer than idle keeps it, and the full time counts from its end."""
        rig = Rig(idle=10)
        request = rig.request()
        rig.ready()
        rig.clock.pump([1.0] * 25)
        self.assertEqual(rig.backend.state, "ready")
        request.leases[0].release()
        rig.clock.pump([1.0] * 9)
        self.assertEqual(rig.backend.state, "ready")
        rig.clock.pump([1.0] * 2)
        self.assertEqual(rig.backend.state, "absent")

    def test_idle_zero_means_never(self) -> None:
        """With idle 0 it is never reaped."""
        rig = Rig(idle=0)
        rig.request()
        rig.ready()
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_monitoring_neither_wakes_nor_keeps_awake(self) -> None:
        """A visit to an absent backend is turned down, and one to a ready backend leaves its idle clock."""
        rig = Rig(idle=10)
        visitor = Request(rig.backend)
        self.assertFalse(rig.backend.visit(visitor))
        self.assertEqual(rig.backend.state, "absent")
        rig.request()
        rig.ready()
        rig.backend.gate.leases()[0].release()
        rig.clock.advance(8)
        self.assertTrue(rig.backend.visit(visitor))
        visitor.leases[0].release()
        rig.clock.advance(2)
        self.assertEqual(rig.backend.state, "absent")

    def test_an_exit_while_starting_is_told_with_its_log(self) -> None:
        """All waiters are refused once, with exit code, diagnosis and log tail, secrets removed."""
        rig = Rig()
        requests = [rig.request() for _ in range(3)]
        rig.world.print_line("m", "key is s3cr3t")
        rig.world.print_line("m", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
        rig.world.exit("m", 1)
        self.assertEqual(rig.backend.state, "failed")
        for request in requests:
            (refusal,) = request.refusals
            self.assertEqual((refusal.status, refusal.code), (503, "backend_start_failed"))
            self.assertIn("exit status 1", refusal.message)
            self.assertIn("CUDA out of memory", refusal.message)
            self.assertNotIn("s3cr3t", refusal.message)
            self.assertEqual(refusal.retry_after, 5)
        again = rig.request()
        self.assertEqual(again.refusals[0].code, "backend_start_failed")
        self.assertEqual(rig.world.count("ensure_started"), 1)

    def test_the_cool_down_ends_by_time_reset_or_change(self) -> None:
        """After the cool-down, a reset or a change of the container the next request starts it again."""
        for end in (
            lambda rig: rig.clock.advance(5),
            lambda rig: rig.backend.reset(),
            lambda rig: rig.world.change("m"),
        ):
            rig = Rig()
            rig.request()
            rig.world.exit("m", 1)
            end(rig)
            self.assertEqual(rig.backend.state, "absent")
            rig.request()
            self.assertEqual(rig.backend.state, "starting")

    def test_who_comes_when_told_to_is_not_early(self) -> None:
        """A client that obeys Retry-After to the millisecond starts it again, though the timer is a little
        late; one that comes sooner is refused."""
        rig = Rig()
        rig.request()
        rig.world.exit("m", 1)
        rig.clock.advance(4.9)
        rig.request()
        self.assertEqual(rig.backend.state, "failed")
        rig.clock.advance(0.095)
        rig.request()
        self.assertEqual(rig.backend.state, "starting")

    def test_a_change_while_the_log_is_read_ends_the_cool_down(self) -> None:
        """A container that is removed while it starts is a failed start, and the next request starts it."""
        rig = Rig()
        request = rig.request()
        log: Deferred[str] = Deferred()
        self.patch(FakeRuntime, "logs", lambda self, spec, tail: log)
        rig.world.exit("m", 137)
        rig.world.change("m")
        self.assertEqual(rig.backend.state, "starting")
        log.callback("")
        self.assertEqual([refusal.code for refusal in request.refusals], ["backend_start_failed"])
        self.assertEqual(rig.backend.state, "absent")
        rig.request()
        self.assertEqual(rig.backend.state, "starting")

    def test_a_refused_start_has_its_hint(self) -> None:
        """A missing image is told as such, at once."""
        rig = Rig()
        rig.world.refuse_next_start("m", "no such image", "pull it")
        request = rig.request()
        self.assertEqual(request.refusals[0].hint, "pull it")

    def test_an_absent_engine_is_no_failed_start(self) -> None:
        """While the runtime is away requests get runtime_unavailable; when it is back, all is well."""
        rig = Rig()
        rig.world.go_away()
        self.assertEqual(rig.request().refusals[0].code, "runtime_unavailable")
        self.assertEqual(rig.backend.state, "absent")
        rig.world.come_back()
        request = rig.request()
        rig.ready()
        self.assertEqual(len(request.leases), 1)

    def test_a_health_path_that_hangs_counts_against_the_deadline(self) -> None:
        """It is refused with backend_start_timeout, stopped, and cools down."""
        rig = Rig(start_timeout=20)
        rig.servers.mode = "hang"
        request = rig.request()
        rig.clock.pump([0.5] * 39)
        self.assertEqual(request.answers, 0)
        rig.clock.pump([0.5] * 2)
        self.assertEqual(request.refusals[0].code, "backend_start_timeout")
        self.assertFalse(rig.world.is_running("m"))
        self.assertEqual(rig.backend.state, "failed")
        self.assertQuiet(rig)

    def test_a_request_while_stopping_starts_it_again(self) -> None:
        """A wish that comes while it is being stopped is not lost."""
        rig = Rig(idle=10)
        rig.world.hold_stops = True
        rig.request()
        rig.ready()
        rig.backend.gate.leases()[0].release()
        rig.clock.advance(10)
        self.assertEqual(rig.backend.state, "stopping")
        rig.servers.mode = "refuse"
        request = rig.request()
        self.assertEqual(request.answers, 0)
        rig.world.finish_stop("m")
        self.assertEqual(rig.backend.state, "starting")
        rig.ready()
        self.assertEqual(len(request.leases), 1)

    def test_a_stop_waits_for_what_is_in_flight(self) -> None:
        """An operator's stop drains first; a forced one, or the drain limit, cuts."""
        rig = Rig()
        request = rig.request()
        rig.ready()
        rig.backend.stop_wanted("operator")
        self.assertEqual(rig.backend.state, "draining")
        request.leases[0].release()
        self.assertEqual(rig.backend.state, "absent")
        for act in (
            lambda rig: rig.backend.stop_wanted("x", force=True),
            lambda rig: (rig.backend.stop_wanted("x"), rig.clock.advance(30)),
        ):
            rig = Rig()
            request = rig.request()
            rig.ready()
            act(rig)
            self.assertEqual(len(request.cuts), 1)
            self.assertEqual(rig.backend.state, "absent")

    def test_an_operators_stop_of_a_start_waits_for_the_launch(self) -> None:
        """What is being created is stopped as soon as it can be, and stays stopped."""
        rig = Rig()
        rig.world.hold_starts = True
        request = rig.request()
        rig.backend.stop_wanted("operator")
        self.assertEqual(request.refusals[0].code, "not_running")
        rig.world.finish_start("m")
        self.assertFalse(rig.world.is_running("m"))
        self.assertEqual(rig.backend.state, "absent")

    def test_what_runs_is_adopted(self) -> None:
        """A container that someone else started is probed and becomes ready without a start of ours."""
        rig = Rig()
        rig.world.become_running("m")
        self.assertEqual(rig.backend.state, "starting")
        rig.ready(PATIENCE_FIRST)
        self.assertEqual(rig.backend.state, "ready")
        self.assertEqual(rig.world.count("ensure_started"), 0)

    def test_an_end_from_outside_is_noticed_at_once(self) -> None:
        """A ready backend that dies cuts what is in flight, and the next request starts it."""
        rig = Rig()
        request = rig.request()
        rig.ready()
        rig.world.exit("m", 137)
        self.assertEqual((rig.backend.state, len(request.cuts)), ("absent", 1))
        rig.request()
        self.assertEqual(rig.world.count("ensure_started"), 2)

    def test_what_nobody_waits_for_is_asked_less_and_less_often(self) -> None:
        """A backend that was found and does not answer costs two questions a minute in the end."""
        rig = Rig(start_timeout=10_000)
        rig.servers.mode = "sick"
        rig.world.become_running("m")
        rig.clock.pump([1.0] * 600)
        before = rig.servers.probes
        rig.clock.pump([1.0] * 600)
        self.assertEqual(rig.servers.probes - before, 600 / PATIENCE_MOST)
        rig.scheduler.close()
        rig.backend.close()
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_the_first_request_has_it_asked_at_once(self) -> None:
        """However long it was away, what comes back is found within two intervals of a request."""
        for mode in ("healthy", "sick"):
            rig = Rig(start_timeout=10_000)
            rig.servers.mode = "sick"
            rig.world.become_running("m")
            rig.clock.pump([1.0] * 600)
            rig.servers.mode = mode
            request = rig.request()
            if mode == "sick":
                self.assertEqual(request.answers, 0)
                rig.ready()
            self.assertEqual((rig.backend.state, len(request.leases)), ("ready", 1))

    def test_what_is_asked_seldom_is_asked_once_more_before_it_is_given_up(self) -> None:
        """What became healthy after it was last asked is not stopped for having taken too long."""
        rig = Rig(start_timeout=30)
        rig.servers.mode = "sick"
        rig.world.become_running("m")
        rig.clock.pump([1.0] * 17)
        rig.servers.mode = "healthy"
        rig.clock.pump([1.0] * 13)
        self.assertEqual(rig.backend.state, "ready")
        rig = Rig(start_timeout=30)
        rig.servers.mode = "sick"
        rig.world.become_running("m")
        rig.clock.pump([1.0] * 36)
        self.assertEqual((rig.backend.state, rig.world.is_running("m")), ("failed", False))

    def test_who_looks_has_it_asked_at_once(self) -> None:
        """Monitoring need not wait for half a minute to see what is ready."""
        rig = Rig(start_timeout=10_000)
        rig.servers.mode = "sick"
        rig.world.become_running("m")
        rig.clock.pump([1.0] * 100)
        rig.servers.mode = "healthy"
        self.assertEqual(rig.backend.state, "starting")
        rig.backend.visit(Request(rig.backend))
        self.assertEqual(rig.backend.state, "ready")

    def test_what_is_kept_warm_is_not_asked_seldom(self) -> None:
        """Somebody wants it, though nobody waits for it now."""
        rig = Rig(start_timeout=10_000, prewarm=True)
        rig.servers.mode = "sick"
        rig.world.become_running("m")
        rig.clock.pump([1.0] * 100)
        rig.ready()
        self.assertEqual(rig.backend.state, "ready")

    def test_a_restart_from_outside_is_followed(self) -> None:
        """A container that someone restarts is adopted in its new run."""
        rig = Rig()
        rig.request()
        rig.ready()
        rig.servers.mode = "refuse"
        rig.world.restart("m")
        self.assertEqual(rig.backend.state, "starting")
        rig.ready(PATIENCE_FIRST)
        self.assertEqual(rig.backend.state, "ready")

    def test_a_broken_answer_sets_off_a_probe(self) -> None:
        """A dead engine is found by the probe before its container has ended."""
        rig = Rig()
        request = rig.request()
        rig.ready()
        rig.servers.mode = "sick"
        request.leases[0].release(suspicious=True)
        self.assertEqual(rig.backend.state, "absent")
        self.assertFalse(rig.world.is_running("m"))

    def test_what_cannot_be_asked_is_not_taken_for_dead(self) -> None:
        """A loaded model is not stopped because the proxy has no descriptor for a connection to it."""
        rig = Rig()
        request = rig.request()
        rig.ready()
        rig.servers.mode = "lacking"
        request.leases[0].release(suspicious=True)
        self.assertEqual(rig.backend.state, "ready")
        rig.servers.mode = "refuse"
        request = rig.request()
        request.leases[0].release(suspicious=True)
        self.assertEqual(rig.backend.state, "absent")

    def test_a_broken_answer_of_a_healthy_engine_changes_nothing(self) -> None:
        """The probe that it sets off finds all well."""
        rig = Rig()
        request = rig.request()
        rig.ready()
        request.leases[0].release(suspicious=True)
        self.assertEqual(rig.backend.state, "ready")

    def test_max_in_flight_queues_the_rest(self) -> None:
        """Beyond max_in_flight requests wait, and go in order as others end."""
        rig = Rig(max_in_flight=1)
        first, second, third = rig.request(), rig.request(), rig.request()
        rig.ready()
        self.assertEqual([len(r.leases) for r in (first, second, third)], [1, 0, 0])
        first.leases[0].release()
        self.assertEqual([len(r.leases) for r in (first, second, third)], [1, 1, 0])

    def test_the_queue_is_bounded(self) -> None:
        """One more than max_waiting gets 429 queue_full with Retry-After."""
        rig = Rig(max_waiting=2)
        rig.request(), rig.request()
        (refusal,) = rig.request().refusals
        self.assertEqual((refusal.status, refusal.code, refusal.backend), (429, "queue_full", "m"))
        self.assertIsNotNone(refusal.retry_after)

    def test_models_and_key_are_read_from_the_container(self) -> None:
        """--served-model-name and --api-key of the server itself are used."""
        rig = Rig()
        rig.spec = rig.backend.spec = BackendSpec(route="m", container="m")
        rig.backend.identity.models = ()
        args = ("vllm", "serve", "x/y", "--served-model-name", "one", "two", "--api-key", "own")
        rig.world.set_facts("m", Facts(args))
        rig.backend.changed()
        self.assertEqual(rig.backend.models, ("one", "two"))
        self.assertEqual(rig.backend.authorization, b"Bearer own")

    def test_the_proxys_end_refuses_those_who_wait(self) -> None:
        """They are told shutting_down, and the backend goes on."""
        rig = Rig()
        request = rig.request()
        rig.backend.refuse_all()
        self.assertEqual(request.refusals[0].code, "shutting_down")
        self.assertTrue(rig.world.is_running("m"))
        self.assertQuiet(rig)


class AnyOrder(RuleBasedStateMachine):
    """Clients, operators, time and the world act in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(idle=10, abandon_idle=3, start_timeout=20, max_waiting=4, max_in_flight=3)
        self.requests: list[Request] = []
        self.world = self.rig.world
        self.backend = self.rig.backend

    @rule()
    def ask(self) -> None:
        self.requests.append(self.rig.request())

    @rule(index=st.integers(0, 100))
    def hang_up(self, index: int) -> None:
        waiting = [request for request in self.requests if not request.answers and not request.left]
        if waiting:
            request = waiting[index % len(waiting)]
            request.left = True
            self.backend.leave(request)

    @rule(index=st.integers(0, 100), suspicious=st.booleans())
    def finish(self, index: int, suspicious: bool) -> None:
        leases = sorted(self.backend.gate.leases(), key=id)
        if leases:
            leases[index % len(leases)].release(suspicious=suspicious)

    @rule(mode=st.sampled_from(["refuse", "healthy", "sick", "hang"]))
    def server(self, mode: str) -> None:
        self.rig.servers.mode = mode

    @rule(seconds=st.sampled_from([INTERVAL, 0.5, 2.5, 6.0, 11.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.rig.clock.advance(seconds)

    @rule(hold_starts=st.booleans(), hold_stops=st.booleans(), tell=st.sampled_from(["after", "before"]))
    def pace(self, hold_starts: bool, hold_stops: bool, tell: str) -> None:
        self.world.hold_starts, self.world.hold_stops = hold_starts, hold_stops
        self.world.tell_running = tell  # type: ignore[assignment]

    @precondition(lambda self: self.world.starting())
    @rule()
    def start_happens(self) -> None:
        self.world.finish_start("m")

    @precondition(lambda self: self.world.starting())
    @rule()
    def start_refused(self) -> None:
        self.world.refuse_start("m")

    @precondition(lambda self: self.world.stopping())
    @rule()
    def stop_happens(self) -> None:
        self.world.finish_stop("m")

    @precondition(lambda self: self.world.is_running("m"))
    @rule(code=st.sampled_from([0, 1, 137]))
    def dies(self, code: int) -> None:
        self.world.exit("m", code)

    @precondition(lambda self: not self.world.is_running("m"))
    @rule()
    def someone_starts_it(self) -> None:
        self.world.become_running("m")

    @rule(force=st.booleans())
    def operator_stops(self, force: bool) -> None:
        self.backend.stop_wanted("operator", force=force)

    @rule()
    def operator_starts(self) -> None:
        self.backend.demand()

    @rule()
    def operator_resets(self) -> None:
        self.backend.reset()

    @rule()
    def engine_away(self) -> None:
        self.world.go_away()

    @rule()
    def engine_back(self) -> None:
        self.world.come_back()

    @invariant()
    def every_demand_is_answered_at_most_once(self) -> None:
        for request in self.requests:
            assert request.answers <= 1
            assert len(request.cuts) <= len(request.leases)

    @invariant()
    def bounds_hold(self) -> None:
        assert self.backend.admission.waiting <= 4
        assert self.backend.admission.in_flight <= 3
        assert self.backend.admission.in_flight == len(self.backend.gate.leases())

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if self.backend.admission.waiting:
            assert self.backend.state in ("starting", "ready", "draining", "stopping"), self.backend.state
            if self.backend.state == "ready":
                assert self.backend.admission.in_flight == 3

    @invariant()
    def a_stop_never_meets_a_request_in_flight(self) -> None:
        if self.backend.state in ("stopping", "absent", "failed"):
            assert self.backend.admission.in_flight == 0

    def teardown(self) -> None:
        """Whatever happened, everybody gets an answer, and after the end nothing is left to happen."""
        self.world.hold_starts = self.world.hold_stops = False
        self.world.come_back()
        for _ in range(4):
            for route in list(self.world.starting()):
                self.world.finish_start(route)
            for route in list(self.world.stopping()):
                self.world.finish_stop(route)
            self.rig.servers.mode = "healthy"
            self.rig.clock.pump([INTERVAL, 3.0, INTERVAL])
            for lease in self.backend.gate.leases():
                lease.release()
        for request in self.requests:
            assert request.answers == 1 or request.left
        self.backend.refuse_all()
        self.backend.close()
        assert self.rig.clock.getDelayedCalls() == []


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def test_exit_is_told_in_words() -> None:
    """The way a run ended reads as a person would say it."""
    from llmproxy.backend.failures import describe_exit

    assert describe_exit(Exit(1)) == "exit status 1"
    assert describe_exit(Exit(137, oom=True)) == "exit status 137, killed for lack of memory"
    assert describe_exit(Exit(None)) == "an unknown exit status"


def test_a_port_where_nobody_listens_is_only_knocked_at() -> None:
    """A connection is made when somebody listens there, and from then on every time."""
    clock, servers = Clock(), Servers(mode="sick")
    knocks: list[Address] = []
    made: list[Knocking] = []
    listening = False

    class Knocking(Knock):
        def __init__(self, address: Address) -> None:
            self.address, self.closed = address, False
            made.append(self)

        def is_refused(self) -> bool:
            knocks.append(self.address)
            return not listening

        def close(self) -> None:
            self.closed = True

    found: list[Address] = []
    here = Address("127.0.0.1", 1, "process")
    prober = Prober(clock, servers.connect, [here], "/health", found.append, knock_at=Knocking)
    clock.pump([INTERVAL] * 9)
    assert (len(knocks), servers.probes) == (10, 0)
    listening = True
    clock.pump([INTERVAL] * 10)
    assert (len(knocks), servers.probes) == (11, 10)
    servers.mode = "healthy"
    clock.pump([INTERVAL] * 2)
    assert found == [here]
    prober.stop()
    assert [knock.closed for knock in made] == [True]
    assert clock.getDelayedCalls() == []
