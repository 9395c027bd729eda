"""The admin API over a fleet in memory whose models do not fit together."""

from __future__ import annotations

import json
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import Mock, patch

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.interfaces import IReactorThreads
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from llmproxy.backend.control import AGAIN
from llmproxy.config.model import BackendSpec, Config, Gpu, Key, Limits
from llmproxy.fleet.fleet import Fleet
from llmproxy.fleet.keeping import remember
from llmproxy.runtimes.gpus import settle
from llmproxy.runtimes.interface import Facts
from llmproxy.runtimes.url import UrlRuntime
from llmproxy.web.api.following import BEAT
from llmproxy.web.auth import Authenticator
from llmproxy.web.request import ProxyRequest
from llmproxy.web.resources import RootResource
from llmproxy.web.site import ProxySite
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Servers
from tests.one_gpu import CONTROLS, GIB, Meter
from tests.openapi import described
from tests.unit.test_front import ADMIN, OK, Client, Log

DAY = 86400.0


class Threaded(Clock):
    """A clock that says that it has threads, and does at once what they are to do.

    :ivar ran: how often that was.
    """

    ran = 0

    def getThreadPool(self) -> Threaded:
        return self

    def callInThreadWithCallback(self, done: Callable[[bool, Any], None], work: Callable[[], Any]) -> None:
        self.ran += 1
        done(True, work())

    def callFromThread(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        call(*arguments, **named)


class Operator(Client):
    """One who holds each answer of the admin API to its description."""

    asked: tuple[str, str] = ("", "")

    def send(self, data: bytes) -> Operator:
        method, target, _ = data.split(b" ", 2)
        self.asked = (method.decode(), target.decode())
        super().send(data)
        return self

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, fields, body = super().answer()
        described().hold(*self.asked, status, fields, body)
        return status, fields, body


class ApiCase(SynchronousTestCase):
    """A proxy in memory, and an administrator who talks to it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.world = FakeController()
        self.servers = Servers(mode="healthy", controls=dict(CONTROLS))
        self.build(coder={}, chat={})

    def build(self, config: Config | None = None, **models: dict[str, Any]) -> None:
        """A proxy with these backends; each claims 0.6 of GPU 0 unless it says otherwise."""
        specs = {
            name: BackendSpec(route=name, container=name, models=(name,), **{"gpu_memory": 0.6, **fields})
            for name, fields in models.items()
        }
        keys = (Key("root", "admin", admin=True), Key("me", "client"))
        self.config = evolve(config or Config(), backends=specs, keys=keys, host_memory_for_sleep=64 * GIB)
        self.fleet = Fleet(self.clock, self.servers.connect, {"docker": FakeRuntime(self.world)}, self.config)
        self.fleet.start()
        root = RootResource(self.fleet)
        self.site = ProxySite(root, self.clock, Authenticator(keys), Limits(max_body=1000), Log())

    def client(self) -> Client:
        client = Operator(self.site)
        self.addCleanup(client.leave)
        return client

    def get(self, path: str) -> dict[str, Any]:
        status, _, body = self.client().get(b"/api/" + path.encode(), ADMIN).answer()
        self.assertEqual(status, 200, body)
        found = json.loads(body)
        assert isinstance(found, dict)
        return found

    def post(self, path: str, body: Any = b"") -> Client:
        return self.client().post(b"/api/" + path.encode(), body, ADMIN)

    def ask(self, method: bytes, path: str) -> Client:
        head = b"%b /api/%b HTTP/1.1\r\nHost: h\r\n%b\r\n" % (method, path.encode(), ADMIN)
        return self.client().send(head)

    def answered(self, client: Client) -> tuple[int, dict[str, Any]]:
        self.turn()
        status, _, body = client.answer()
        return status, json.loads(body)

    def refused(self, client: Client) -> tuple[int, str, str, str]:
        """Status, code, message and hint of an error."""
        self.turn()
        status, error, _ = client.error()
        return status, error["code"], error["message"], error["hint"] or ""

    def turn(self) -> None:
        """Let happen what happens in the next turns of the reactor."""
        for _ in range(8):
            self.clock.advance(0)

    def warm(self, name: str) -> None:
        self.fleet.backends[name].demand()
        self.turn()
        self.assertEqual(self.state(name), "ready")

    def state(self, name: str) -> str:
        return self.fleet.backends[name].state

    def request(self, name: str) -> Client:
        """One that the backend has not answered yet."""
        return self.client().get(b"/%b/x" % name.encode())

    def why(self, name: str) -> str:
        return "\n".join(self.get(f"backends/{name}/why")["why"])


class ApiTests(ApiCase):
    """One fleet, one story each."""

    # -- sleeping and waking ------------------------------------------------------------------------

    def test_sleep_and_wake_are_waited_for(self) -> None:
        """With wait=1 they answer with the backend asleep, and ready; again they change nothing."""
        self.build(coder={"sleep": "1"})
        self.warm("coder")
        for verb, state, level in (
            ("sleep", "sleeping", 1),
            ("sleep", "sleeping", 1),
            ("wake", "ready", None),
            ("wake", "ready", None),
        ):
            status, view = self.answered(self.post(f"backends/coder/{verb}?wait=1"))
            self.assertEqual((status, view["state"], view["level"]), (200, state, level))
        self.assertEqual(self.world.count("ensure_started"), 1)

    def test_sleep_answers_at_once(self) -> None:
        """202 with the backend as it is then."""
        self.build(coder={"sleep": "1"})
        self.warm("coder")
        self.servers.controls["POST /sleep"] = None
        status, view = self.answered(self.post("backends/coder/sleep"))
        self.assertEqual((status, view["state"]), (202, "falling_asleep"))
        status, view = self.answered(self.post("backends/coder/wake"))
        self.assertEqual((status, view["state"]), (202, "falling_asleep"))

    def test_a_busy_one_sleeps_when_it_has_drained(self) -> None:
        """And who waits for that is told then; it may be woken from there."""
        self.build(coder={"sleep": "1"})
        self.warm("coder")
        self.request("coder")
        waiting = self.post("backends/coder/sleep?wait=1")
        self.turn()
        self.assertEqual((waiting.take(), self.state("coder")), (b"", "draining"))
        woken = self.post("backends/coder/wake?wait=1")
        self.servers.requests[-1].send(OK)
        self.assertEqual(self.answered(woken)[1]["state"], "ready")
        self.assertEqual(self.answered(waiting)[0], 200)
        self.assertIn("POST /sleep?level=1", "".join(self.servers.asked))

    def test_one_that_cannot_be_asked_yet_is_asked_again(self) -> None:
        """Where no descriptor is left for a connection to it, it is neither stopped nor given up."""
        self.build(coder={"sleep": "1"})
        self.warm("coder")
        self.servers.mode = "lacking"
        waiting = self.post("backends/coder/sleep?wait=1")
        self.clock.pump([AGAIN] * 4)
        self.assertEqual((waiting.take(), self.state("coder")), (b"", "falling_asleep"))
        self.servers.mode = "healthy"
        self.clock.pump([AGAIN])
        status, view = self.answered(waiting)
        self.assertEqual((status, view["state"]), (200, "sleeping"))

    def test_a_pinned_one_sleeps_when_the_operator_wants_it(self) -> None:
        """A pin is against other models, not against the operator."""
        self.build(coder={"sleep": "1", "pinned": True})
        self.warm("coder")
        status, view = self.answered(self.post("backends/coder/sleep?wait=1"))
        self.assertEqual((status, view["state"]), (200, "sleeping"))

    def test_who_cannot_sleep_says_why(self) -> None:
        """409, with what it lacks."""
        self.build(
            plain={"gpu_memory": 0.1},
            off={"gpu_memory": 0.1, "sleep": "off"},
            other={"gpu_memory": 0.1, "engine": "generic"},
            absent={"sleep": "1"},
        )
        for name, hint in (
            ("plain", "VLLM_SERVER_DEV_MODE=1"),
            ("off", "Its setting sleep is off."),
            ("other", "generic"),
            ("absent", "llmproxy start absent"),
        ):
            status, code, message, told = self.refused(self.post(f"backends/{name}/sleep"))
            self.assertEqual((status, code), (409, "invalid_request"))
            self.assertIn(hint, told)
            self.assertIn(name, message)
        self.servers.mode = "refuse"
        self.fleet.backends["absent"].demand()
        self.assertIn("starting", self.refused(self.post("backends/absent/sleep"))[2])

    def test_a_remark_says_what_sleep_lacks(self) -> None:
        """Where the flags were read, the very variable that is missing."""
        self.world.set_facts("coder", Facts(args=("serve", "m", "--enable-sleep-mode")))
        self.build(coder={})
        self.assertIn("only with VLLM_SERVER_DEV_MODE=1", self.refused(self.post("backends/coder/sleep"))[3])

    def test_what_runs_elsewhere_is_left_alone(self) -> None:
        """409 for stop, sleep and restart."""
        config = Config(backends={"far": BackendSpec(route="far", runtime="url", url="http://h:1")})
        self.fleet = Fleet(self.clock, self.servers.connect, {"url": UrlRuntime()}, config)
        self.fleet.start()
        self.site.resource = RootResource(self.fleet)
        for verb in ("stop", "sleep", "restart"):
            self.assertEqual(self.refused(self.post(f"backends/far/{verb}"))[0], 409)

    def test_only_sleepers_are_woken(self) -> None:
        """409 for what is absent, with the way to start it; 503 while it is refused."""
        status, _, message, hint = self.refused(self.post("backends/coder/wake"))
        self.assertEqual((status, message), (409, "coder is absent, not asleep."))
        self.assertIn("llmproxy start coder", hint)
        self.world.refuse_next_start("coder")
        self.fleet.backends["coder"].demand()
        self.assertEqual(self.refused(self.post("backends/coder/wake"))[1], "backend_start_failed")

    # -- the same again, and what contradicts -------------------------------------------------------

    def test_to_start_what_runs_changes_nothing(self) -> None:
        """202, and 200 with wait=1, however often; one start in all."""
        self.world.hold_starts = True
        for _ in range(3):
            self.assertEqual(self.answered(self.post("backends/coder/start"))[0], 202)
        waiting = [self.post("backends/coder/start?wait=1") for _ in range(2)]
        self.turn()
        self.assertEqual([one.take() for one in waiting], [b"", b""])
        self.world.finish_start("coder")
        for one in waiting:
            status, view = self.answered(one)
            self.assertEqual((status, view["state"]), (200, "ready"))
        status, view = self.answered(self.post("backends/coder/start?wait=1"))
        self.assertEqual((status, view["state"]), (200, "ready"))
        self.assertEqual(self.answered(self.post("backends/coder/start"))[1]["state"], "ready")
        self.assertEqual(self.world.count("ensure_started"), 1)

    def test_to_stop_what_does_not_run_changes_nothing(self) -> None:
        """Nor does a second stop of what stops; a reset of what has not failed does nothing either."""
        for verb in ("stop", "stop?force=1", "reset"):
            for query in ("", "wait=1"):
                path = f"backends/coder/{verb}{'&' if '?' in verb else '?'}{query}".rstrip("?&")
                status, view = self.answered(self.post(path))
                self.assertEqual((status, view["state"]), (200 if query else 202, "absent"), path)
        self.assertEqual(self.world.count("stop"), 0)
        self.warm("coder")
        self.world.hold_stops = True
        for _ in range(3):
            status, view = self.answered(self.post("backends/coder/stop"))
            self.assertEqual((status, view["state"], view["cut"]), (202, "stopping", 0))
        waiting = self.post("backends/coder/stop?wait=1")
        self.world.finish_stop("coder")
        self.assertEqual(self.answered(waiting)[1]["state"], "absent")
        self.assertEqual(self.world.count("stop"), 1)

    def test_a_stop_that_is_forced_tells_how_many_it_cut(self) -> None:
        """Requests in flight, and no one who only looks; a restart tells it, too."""
        for verb in ("stop", "restart"):
            self.warm("coder")
            held = [self.request("coder") for _ in range(3)]
            looking = self.client().get(b"/coder/metrics")
            self.turn()
            status, view = self.answered(self.post(f"backends/coder/{verb}?force=1&wait=1"))
            self.assertEqual((status, view["cut"], view["in_flight"]), (200, 3, 0))
            for one in (*held, looking):
                self.assertEqual(one.answer()[0], 502)
        self.answered(self.post("backends/coder/stop?force=1&wait=1"))
        self.warm("coder")
        self.assertEqual(self.answered(self.post("backends/coder/stop?force=1"))[1]["cut"], 0)

    def test_a_stop_that_waits_tells_what_the_limit_cut(self) -> None:
        """Those who have not ended in the time that they have are broken off."""
        self.warm("coder")
        held = self.request("coder")
        self.turn()
        waiting = self.post("backends/coder/stop?wait=1")
        self.turn()
        self.assertEqual((waiting.take(), self.state("coder")), (b"", "draining"))
        self.clock.advance(self.config.drain)
        self.turn()
        status, view = self.answered(waiting)
        self.assertEqual((status, view["state"], view["cut"]), (200, "absent", 1))
        self.assertEqual(held.answer()[0], 502)

    def test_a_start_that_fails_is_told_to_who_waited(self) -> None:
        """503 with the cause and when to come back, as a request would have been told."""
        self.world.hold_starts = True
        for verb in ("start", "restart"):
            waiting = self.post(f"backends/coder/{verb}?wait=1")
            self.turn()
            self.world.refuse_start("coder", "no such image")
            self.turn()
            status, error, fields = waiting.error()
            self.assertEqual((status, error["code"], error["state"]), (503, "backend_start_failed", "failed"))
            self.assertIn("no such image", error["message"])
            self.assertEqual(fields["retry-after"], str(error["retry_after"]))

    def test_what_stops_is_not_put_to_sleep(self) -> None:
        """409 while it drains for its end, and while that has not begun; and what wakes is not, either."""
        self.build(coder={"sleep": "1", "gpu_memory": 0.4}, chat={"gpu_memory": 0.4})
        self.warm("coder")
        self.servers.mode = "refuse"
        self.fleet.backends["chat"].demand()
        self.assertEqual(self.answered(self.post("backends/coder/stop"))[1]["state"], "ready")
        status, code, message, hint = self.refused(self.post("backends/coder/sleep"))
        self.assertEqual((status, code, message), (409, "invalid_request", "coder is about to stop."))
        self.assertIn("llmproxy start coder", hint)
        self.build(coder={"sleep": "1"})
        self.servers.mode = "healthy"
        self.warm("coder")
        self.request("coder")
        self.assertEqual(self.answered(self.post("backends/coder/stop"))[1]["state"], "draining")
        self.assertEqual(self.refused(self.post("backends/coder/sleep"))[0], 409)
        self.assertEqual(self.refused(self.post("backends/coder/wake"))[0], 409)
        self.answered(self.post("backends/coder/stop?force=1&wait=1"))
        self.warm("coder")
        self.answered(self.post("backends/coder/sleep?wait=1"))
        self.servers.controls["POST /wake_up"] = None
        self.assertEqual(self.answered(self.post("backends/coder/wake"))[1]["state"], "waking")
        status, _, message, _ = self.refused(self.post("backends/coder/sleep"))
        self.assertEqual((status, "waking" in message), (409, True))

    def test_nothing_is_done_while_the_proxy_ends(self) -> None:
        """503 for each verb, a restart included; what runs goes on."""
        self.warm("coder")
        self.fleet.refuse_new()
        for verb in VERBS:
            status, code, _, _ = self.refused(self.post(f"backends/coder/{verb}?wait=1"))
            self.assertEqual((status, code), (503, "shutting_down"), verb)
        self.assertEqual((self.state("coder"), self.world.count("stop")), ("ready", 0))
        self.assertEqual(self.get("backends/coder")["state"], "ready")

    # -- starts that wait for room ------------------------------------------------------------------

    def test_a_start_waits_for_room(self) -> None:
        """202 with what it waits for; with wait=1 it answers when the other has left and it is ready."""
        self.warm("coder")
        self.request("coder")
        status, view = self.answered(self.post("backends/chat/start"))
        self.assertEqual((status, view["state"]), (202, "absent"))
        self.assertEqual((view["waits"]["on"], view["waits"]["since"]), (["coder"], 1000.0))
        self.assertIn("coder is busy", view["waits"]["why"])
        waiting = self.post("backends/chat/start?wait=1")
        self.turn()
        self.assertEqual(waiting.take(), b"")
        self.servers.requests[-1].send(OK)
        status, view = self.answered(waiting)
        self.assertEqual((status, view["state"], self.state("coder")), (200, "ready", "absent"))
        self.assertEqual(view["decision"]["kind"], "start")
        self.assertEqual(self.get("backends/coder")["decision"]["for"], "chat")

    def test_a_start_that_never_fits_is_refused(self) -> None:
        """503 does_not_fit with the sums, at once."""
        self.build(coder={"pinned": True}, chat={})
        self.warm("coder")
        for query in ("", "?wait=1"):
            status, code, message, _ = self.refused(self.post(f"backends/chat/start{query}"))
            self.assertEqual((status, code), (503, "does_not_fit"))
            self.assertIn("0.60 of it pinned by coder", message)
        self.assertIn("pinned by coder", self.get("backends/chat")["refused"])
        self.assertIn("When it was last asked for it was refused", self.why("chat"))
        self.fleet.apply(
            evolve(self.config, backends={**self.config.backends, "coder": self.spec("coder", pinned=False)})
        )
        status, view = self.answered(self.post("backends/chat/start?wait=1"))
        self.assertEqual((status, view["state"], view["refused"]), (200, "ready", None))

    def spec(self, name: str, **fields: Any) -> BackendSpec:
        return evolve(self.config.backends[name], **fields)

    def test_a_start_that_waits_may_be_refused_later(self) -> None:
        """Once the one that it waits for is pinned, who waits for it is told."""
        self.warm("coder")
        self.request("coder")
        waiting = self.post("backends/chat/start?wait=1")
        self.turn()
        self.fleet.apply(
            evolve(self.config, backends={**self.config.backends, "coder": self.spec("coder", pinned=True)})
        )
        self.assertEqual(self.refused(waiting)[:2], (503, "does_not_fit"))

    def test_a_start_that_is_wanted_no_more_is_told(self) -> None:
        """Who waits for a start that somebody stops before it has begun is answered, and it waits no more."""
        self.warm("coder")
        self.request("coder")
        waiting = self.post("backends/chat/start?wait=1")
        self.turn()
        self.post("backends/chat/stop")
        status, view = self.answered(waiting)
        self.assertEqual((status, view["state"], view["waits"]), (200, "absent", None))

    def test_a_start_ends_with_its_route(self) -> None:
        """Who waits for a backend that is configured no more is answered."""
        self.warm("coder")
        self.request("coder")
        waiting = self.post("backends/chat/start?wait=1")
        self.turn()
        self.fleet.apply(evolve(self.config, backends={"coder": self.config.backends["coder"]}))
        self.assertEqual(self.answered(waiting)[1]["state"], "absent")

    def test_a_restart_beside_a_start_is_not_lost(self) -> None:
        """It stops when its neighbour has started, and starts again after that."""
        self.build(coder={"gpu_memory": 0.4}, chat={"gpu_memory": 0.4})
        self.warm("coder")
        self.servers.mode = "refuse"
        self.fleet.backends["chat"].demand()
        self.assertEqual(self.state("chat"), "starting")
        waiting = self.post("backends/coder/restart?wait=1")
        self.turn()
        self.assertEqual((waiting.take(), self.state("coder")), (b"", "ready"))
        self.servers.mode = "healthy"
        self.clock.pump([1.0] * 10)
        self.assertEqual(self.answered(waiting)[1]["state"], "ready")
        self.assertEqual(self.world.calls.count(("ensure_started", "coder")), 2)

    # -- what is shown ------------------------------------------------------------------------------

    def test_a_backend_is_shown_with_what_it_needs(self) -> None:
        """As it was read, and with how long things take."""
        self.build(coder={"sleep": "1", "pinned": True, "priority": 3})
        view = self.get("backends/coder")
        self.assertEqual(
            view["needs"],
            {
                "gpus": ["0"],
                "memory": 0.6,
                "sleep": [1],
                "why": "gpu_memory in the settings; no GPU is named",
                "remarks": [
                    "To be put to sleep it needs --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1 as well."
                ],
            },
        )
        self.assertEqual((view["pinned"], view["priority"], view["waits"]), (True, 3, None))
        self.assertEqual((view["estimate"]["start"], view["estimate"]["measured"]), (60.0, []))
        self.world.hold_starts = True
        self.fleet.backends["coder"].demand()
        self.clock.advance(7)
        self.world.finish_start("coder")
        estimate = self.get("backends/coder")["estimate"]
        self.assertEqual((estimate["start"], estimate["measured"]), (7.0, ["start"]))
        self.assertEqual(
            (estimate["phases"], self.get("backends/coder")["idle_in"]), ({"creating": 7.0}, None)
        )

    def test_why_tells_the_story_of_a_swap(self) -> None:
        """Who runs, for whom it left, and what is to come."""
        self.assertIn("Nobody has asked for it", self.why("chat"))
        self.warm("coder")
        told = self.why("coder")
        self.assertIn("coder is ready, for 0.0 s.", told)
        self.assertIn("without a request waiting", told)
        self.assertIn("It stops in 10 m 0 s unless a request comes.", told)
        self.assertIn("It needs 0.60 of GPU 0 (gpu_memory in the settings; no GPU is named).", told)
        self.assertIn("A start takes about 0.0 s (measured), a stop 5.0 s (assumed).", told)
        held = self.request("coder")
        self.request("chat")
        self.clock.advance(12)
        told = self.why("chat")
        self.assertIn("1 request waits for it, the first for 12 s.", told)
        self.assertIn("It waits: coder is busy.", told)
        self.assertIn("In 18 s at the earliest busy ones take no new requests", told)
        self.assertIn("Of GPU 0's 1.00 coder has 0.60, 0.40 is free.", told)
        self.assertIn("1 request is in flight there.", self.why("coder"))
        self.servers.requests[0].send(OK)
        self.turn()
        self.assertEqual(held.answer()[0], 200)
        told = self.why("chat")
        self.assertIn("It was started for requests that waited for it.", told)
        self.assertIn("coder had to leave for it.", told)
        self.assertIn("It stays for 30 s more at least, as others left for it.", told)
        self.clock.advance(3)
        told = self.why("coder")
        self.assertIn("It was evicted 3.0 s ago: it makes room for chat", told)

    def test_why_tells_who_was_reaped_or_stopped(self) -> None:
        """With the reason that it had, of a sleeper, too."""
        self.build(coder={"sleep": "1", "idle": 60.0})
        self.warm("coder")
        self.clock.advance(60)
        self.turn()
        told = self.why("coder")
        self.assertIn("coder is sleeping at level 1", told)
        self.assertIn("It left 0.0 s ago: idle for 60 s.", told)
        self.assertIn("It stops in 1 h 0 m unless a request comes.", told)
        self.assertIn("a wake", told)
        self.answered(self.post("backends/coder/wake?wait=1"))
        self.assertIn("It was woken without a request waiting", self.why("coder"))
        self.post("backends/coder/stop")
        self.turn()
        self.assertIn("It left 0.0 s ago: stopped by the operator.", self.why("coder"))

    def test_why_tells_of_failures(self) -> None:
        """Why requests are refused, and until when."""
        self.world.refuse_next_start("coder", "no such image")
        self.fleet.backends["coder"].demand()
        told = self.why("coder")
        self.assertIn("no such image", told)
        self.assertIn("It is tried again in 5.0 s.", told)

    def test_what_was_found_is_told_as_such(self) -> None:
        """Nobody has started it here."""
        self.world.become_running("coder")
        self.turn()
        self.assertIn("It ran already when llmproxy found it.", self.why("coder"))

    def test_a_plan_tells_what_a_request_would_do(self) -> None:
        """Nothing of it is done."""
        self.assertEqual(self.get("plan")["told"], ["Nothing is to be done, and nobody waits for room."])
        found = self.get("plan?backend=coder")
        self.assertEqual(found["plan"]["starts"], [{"name": "coder", "why": "it fits", "host": None}])
        self.assertEqual(found["ready_in"], 60.0)
        self.warm("coder")
        self.assertIn("answered at once", self.get("plan?backend=coder")["told"][0])
        found = self.get("plan?backend=chat")
        (leave,) = found["plan"]["leaves"]
        self.assertEqual((leave["name"], leave["how"], leave["for"]), ("coder", "stop", "chat"))
        self.assertEqual(found["ready_in"], 65.0)
        self.assertIn("chat would be ready in about 1 m 5 s.", found["told"])
        self.assertEqual((self.state("coder"), self.state("chat")), ("ready", "absent"))
        self.request("coder")
        found = self.get("plan?backend=chat")
        self.assertEqual((found["ready_in"], found["plan"]["waits"][0]["on"]), (None, ["coder"]))
        self.assertEqual(self.refused(self.ask(b"GET", "plan?backend=nope"))[0], 404)
        self.assertEqual(self.refused(self.ask(b"GET", "plan?backend=chat&backend=coder"))[0], 400)

    def test_phases_are_events_of_a_start(self) -> None:
        """Also for who looks when it is over."""
        self.servers.mode = "refuse"
        self.fleet.backends["coder"].demand()
        self.world.print_line("coder", "torch.compile took 6.0 s in total")
        self.servers.mode = "healthy"
        self.clock.advance(1)
        self.assertEqual(self.state("coder"), "ready")
        body = self.ask(b"GET", "events").take()
        self.assertIn(b'"from": "starting", "to": "starting", "decision": "phase"', body)
        self.assertIn(b'"reason": "compiling"', body)

    def test_events_end_are_cut_and_chosen_as_asked(self) -> None:
        """Those that are remembered, the last of them, or those about one backend; else they are followed."""

        def told(path: str) -> list[dict[str, Any]]:
            status, _, body = self.ask(b"GET", path).answer()
            self.assertEqual(status, 200)
            lines = body.decode().splitlines()
            return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

        self.fleet.backends["coder"].demand()
        self.clock.advance(1)
        self.fleet.backends["coder"].stop_wanted("test", force=True)
        self.turn()
        self.fleet.backends["chat"].demand()
        every = told("events?follow=0")
        self.assertEqual({event["backend"] for event in every}, {"coder", "chat"})
        self.assertEqual(told("events?follow=0&tail=2"), every[-2:])
        self.assertEqual(told("events?follow=0&tail=0"), [])
        about = told("events?follow=0&backend=CODER")
        self.assertEqual(about, [event for event in every if "coder" in (event["backend"], event.get("for"))])
        self.assertEqual(self.refused(self.ask(b"GET", "events?backend=nope"))[0], 404)
        self.assertEqual(self.refused(self.ask(b"GET", "events?tail=x"))[0], 400)
        follower = self.ask(b"GET", "events?tail=0&backend=coder")
        follower.take()
        self.clock.advance(1)
        self.assertEqual(self.state("chat"), "ready")
        self.assertEqual(follower.take(), b"")
        self.fleet.backends["chat"].stop_wanted("test", force=True)
        self.turn()
        self.fleet.backends["coder"].demand()
        seen = follower.take()
        self.assertNotIn(b'"backend": "chat", "from": "ready"', seen)
        self.assertIn(b'"backend": "coder", "from": "absent", "to": "starting"', seen)

    def test_events_show_that_they_go_on(self) -> None:
        """Where nothing happens a comment comes now and then, until nobody listens."""
        self.build(coder={})
        before = len(self.clock.getDelayedCalls())
        follower = self.ask(b"GET", "events?tail=0")
        follower.take()
        self.clock.pump([BEAT] * 2)
        self.assertEqual(follower.take().count(b": still here\n\n"), 2)
        follower.leave()
        self.assertEqual(len(self.clock.getDelayedCalls()), before)

    def test_who_follows_costs_nothing_when_the_proxy_ends(self) -> None:
        """What is followed is complete then, and nothing is read, told or timed for it any more."""
        self.warm("coder")
        calls = len(self.clock.getDelayedCalls())
        paths = ("events?tail=0", "backends/coder/logs?follow=1")
        followers = [self.ask(b"GET", path) for path in paths]
        followed = self.world._followers["coder"]
        self.assertEqual((len(self.fleet._listeners), len(followed)), (1, 1))
        for follower in followers:
            follower.take()
        self.site.close_idle()
        self.assertEqual((self.fleet._listeners, followed), ([], []))
        for follower in followers:
            self.assertEqual(follower.take(), b"0\r\n\r\n")
            follower.leave()
        self.assertLessEqual(len(self.clock.getDelayedCalls()), calls)

    def test_a_comment_that_cannot_be_sent_ends_no_more_than_comments(self) -> None:
        """It is logged, events go on, and whoever leaves is told nothing any more."""
        self.build(coder={})
        follower = self.ask(b"GET", "events?tail=0")
        with patch.object(ProxyRequest, "write", Mock(side_effect=ZeroDivisionError("a beat"))):
            self.clock.advance(BEAT)
        log: Any = self.site.access_log
        self.assertEqual(log.failures, ["a beat"])
        follower.take()
        self.fleet.backends["coder"].demand()
        self.assertIn(b'"to": "starting"', follower.take())
        follower.leave()
        self.assertEqual(self.fleet._listeners, [])

    def test_a_plan_tells_of_what_is_on_its_way_and_of_refusals(self) -> None:
        """A start that goes on, one that does not fit, and a cool-down."""
        self.build(coder={"pinned": True}, chat={})
        self.servers.mode = "refuse"
        self.fleet.backends["coder"].demand()
        self.assertIn("coder is starting already.", self.get("plan?backend=coder")["told"])
        self.world.print_line("coder", "Loading safetensors checkpoint shards: 0% Completed | 0/2")
        self.clock.advance(3)
        self.world.print_line("coder", "Loading safetensors checkpoint shards: 50% Completed | 1/2")
        view = self.get("backends/coder")
        self.assertEqual((view["phase"], view["progress"], view["eta"]), ("loading weights", 0.5, 3.0))
        found = self.get("plan?backend=coder")
        self.assertEqual(found["ready_in"], 3.0)
        self.assertIn("coder is starting already, and should be ready in about 3.0 s.", found["told"])
        (refusal,) = self.get("plan?backend=chat")["plan"]["refusals"]
        self.assertFalse(refusal["forbidden"])
        self.assertIn("pinned by coder", refusal["why"])
        self.world.refuse_next_start("chat")
        self.fleet.backends["coder"].stop_wanted("test", force=True)
        self.fleet.backends["chat"].demand()
        self.assertIn("are refused at present", self.get("plan?backend=chat")["told"][0])

    def test_gpus_are_summed_up(self) -> None:
        """In fractions where the size is not known, with what holds them."""
        self.warm("coder")
        found = self.get("gpus")
        (gpu,) = found["gpus"]
        self.assertEqual((gpu["gpu"], gpu["unit"], gpu["total"]), ("0", "fraction", 1.0))
        self.assertEqual((gpu["claimed"], gpu["unclaimed"], gpu["measured"]), (0.6, 0.4, None))
        self.assertEqual(gpu["claims"], [{"name": "coder", "state": "ready", "memory": 0.6}])
        self.assertEqual(found["not_measured"], "not looked for")

    def test_gpus_are_measured(self) -> None:
        """In bytes, with the reserve, what is lent, and what a meter reads."""
        self.build(Config(gpus={"0": Gpu(reserve=GIB)}), coder={})
        meter = Meter(20 * GIB)
        self.fleet.scheduler.found_meter(
            meter, lambda enough, bound: settle(self.clock, meter, enough, bound)
        )
        self.answered(self.post("leases", {"memory": "4GiB", "seconds": "1h"}))
        (gpu,) = self.get("gpus")["gpus"]
        self.assertEqual((gpu["unit"], gpu["total"], gpu["reserve"]), ("bytes", 24 * GIB, GIB))
        self.assertEqual((gpu["lent"], gpu["leases"]), (4 * GIB, ["lease-1"]))
        self.assertEqual(gpu["measured"], {"total": 24 * GIB, "free": 20 * GIB})
        self.assertIsNone(self.get("gpus")["not_measured"])

    # -- leases -------------------------------------------------------------------------------------

    def test_memory_is_lent_and_given_back(self) -> None:
        """201 with the lease; it is shown, and ended by DELETE."""
        status, lease = self.answered(self.post("leases", {"memory": 0.5, "seconds": 60, "note": "a game"}))
        self.assertEqual((status, lease["id"], lease["held"], lease["until"]), (201, "lease-1", True, 1060.0))
        self.assertEqual((lease["gpu"], lease["memory"], lease["note"]), ("0", 0.5, "a game"))
        self.assertEqual([one["id"] for one in self.get("leases")["leases"]], ["lease-1"])
        self.assertEqual(self.get("leases/lease-1"), lease)
        status, _, message, _ = self.refused(self.post("backends/coder/start"))
        self.assertEqual(status, 503)
        self.assertIn("0.50 of it lent", message)
        status, ended = self.answered(self.ask(b"DELETE", "leases/lease-1"))
        self.assertEqual((status, ended["held"]), (200, False))
        self.assertEqual(self.get("leases"), {"leases": []})
        status, _, message, _ = self.refused(self.ask(b"DELETE", "leases/lease-1"))
        self.assertEqual((status, message), (404, "There is no lease 'lease-1'. Leases: none."))

    def test_a_lease_waits_for_those_who_leave(self) -> None:
        """201 with what it waits for; with wait=1 it is answered when its memory is free."""
        self.warm("coder")
        self.world.hold_stops = True
        self.request("coder")
        status, lease = self.answered(self.post("leases", {"memory": "50%", "seconds": "40m"}))
        self.assertEqual((status, lease["held"], lease["memory"]), (201, False, 0.5))
        self.assertEqual(lease["waits"]["on"], ["coder"])
        waiting = self.ask(b"GET", "leases/lease-1?wait=1")
        self.servers.requests[-1].send(OK)
        self.turn()
        self.assertEqual(waiting.take(), b"")
        self.world.finish_stop("coder")
        self.assertTrue(self.answered(waiting)[1]["held"])
        status, lease = self.answered(self.post("leases?wait=1", {"memory": 0.1, "seconds": 5}))
        self.assertEqual((status, lease["held"]), (201, True))

    def test_a_lease_that_never_fits_is_refused(self) -> None:
        """503 with the sums; and so is who waited for one that ended or was refused."""
        self.build(coder={"pinned": True}, chat={})
        self.warm("coder")
        body = {"memory": 0.5, "seconds": 60}
        for query in ("", "?wait=1"):
            status, code, message, _ = self.refused(self.post(f"leases{query}", body))
            self.assertEqual((status, code), (503, "does_not_fit"))
            self.assertIn("pinned by coder", message)
        self.assertEqual(self.get("leases"), {"leases": []})
        self.build(coder={}, chat={})
        self.warm("coder")
        self.request("coder")
        waiting = self.post("leases?wait=1", body)
        self.turn()
        self.fleet.scheduler.release("lease-1")
        self.assertIn("it was released", self.refused(waiting)[2])
        waiting = self.post("leases?wait=1", body)
        self.turn()
        pinned = {**self.config.backends, "coder": self.spec("coder", pinned=True)}
        self.fleet.apply(evolve(self.config, backends=pinned))
        self.assertIn("pinned by coder", self.refused(waiting)[2])

    def test_bytes_of_a_gpu_of_unknown_size_are_all_of_it(self) -> None:
        """Which is told, as it is not what was meant."""
        lease = self.answered(self.post("leases", {"memory": "4GiB", "seconds": 60}))[1]
        self.assertIn("all of it is lent: lend a fraction, or set gpus.0.memory.", lease["remark"])
        self.assertIsNone(self.answered(self.ask(b"DELETE", "leases/lease-1"))[1]["waits"])
        self.assertIsNone(self.answered(self.post("leases", {"memory": 0.1, "seconds": 60}))[1]["remark"])

    def test_who_does_not_wait_for_a_lease_leaves_it(self) -> None:
        """It is granted all the same."""
        self.warm("coder")
        self.request("coder")
        waiting = self.post("leases?wait=1", {"memory": 0.5, "seconds": 60})
        waiting.leave()
        self.servers.requests[-1].send(OK)
        self.turn()
        self.assertTrue(self.get("leases/lease-1")["held"])

    def test_a_lease_is_asked_for_properly(self) -> None:
        """400 with what is allowed, for each field; nothing is lent."""
        good = {"gpu": "0", "memory": "1GiB", "seconds": 60}
        for change, allowed in (
            ({"gpu": "7"}, "use one that backends use: 0"),
            ({"gpu": 0}, "use one that backends use: 0"),
            ({"memory": None}, "a percentage such as 50%"),
            ({"memory": 14}, "a size such as 16GiB"),
            ({"memory": "0%"}, "a fraction"),
            ({"memory": "101%"}, "a fraction"),
            ({"memory": 0}, "a fraction"),
            ({"seconds": "8d"}, "from 1s to 7d"),
            ({"seconds": 5e-324}, "from 1s"),
            ({"seconds": 0}, "as in 90s"),
            ({"seconds": None}, "as in 90s"),
            ({"note": 5}, "one line"),
            ({"note": "a\nb"}, "one line"),
            ({"until": 5}, "'until' is not known; use gpu, memory, seconds, note"),
        ):
            status, code, message, _ = self.refused(self.post("leases", {**good, **change}))
            self.assertEqual((status, code), (400, "invalid_request"), change)
            self.assertIn(allowed, message)
        self.assertEqual(self.refused(self.post("leases", b"nonsense"))[0], 400)
        self.build(coder={"gpu_memory": 0})
        self.assertIn("no backend needs GPU memory", self.refused(self.post("leases", good))[2])
        self.assertEqual(self.get("leases"), {"leases": []})

    def test_leases_outlive_the_proxy_and_end_in_time(self) -> None:
        """One that was held is held, one that waited goes on waiting, and one whose time is over has ended,
        though nothing else happens."""
        kept = TemporaryDirectory()
        self.addCleanup(kept.cleanup)
        state = remember(self.fleet, self.clock, kept.name)
        self.warm("coder")
        self.request("coder")
        self.answered(self.post("leases", {"memory": 0.3, "seconds": 60}))
        self.answered(self.post("leases", {"memory": 0.5, "seconds": 600}))
        self.fleet.close()
        state.close()
        self.build(coder={}, chat={})
        self.addCleanup(remember(self.fleet, self.clock, kept.name).close)
        self.assertEqual([one["held"] for one in self.get("leases")["leases"]], [True, False])
        self.assertEqual(self.state("coder"), "ready")
        self.turn()
        self.assertEqual([one["held"] for one in self.get("leases")["leases"]], [True, True])
        self.assertEqual(self.state("coder"), "absent")
        self.clock.advance(60)
        self.assertEqual([one["id"] for one in self.get("leases")["leases"]], ["lease-2"])

    def test_what_ended_unseen_is_in_nobodys_way(self) -> None:
        """A lease whose time is over counts no more, whenever that is noticed."""
        dumped = {"name": "lease-1", "gpu": "0", "memory": 0.9, "until": 1010.0, "held": True}
        self.fleet.scheduler.leases.load([dumped])
        self.clock.advance(20)
        self.warm("coder")

    def test_leases_are_bounded(self) -> None:
        """Each is looked at with every decision."""
        for _ in range(100):
            self.assertEqual(self.answered(self.post("leases", {"memory": 0.001, "seconds": 60}))[0], 201)
        status, _, message, hint = self.refused(self.post("leases", {"memory": 0.001, "seconds": 60}))
        self.assertEqual((status, message), (409, "There are 100 leases already."))
        self.assertIn("release", hint)

    # -- advice -------------------------------------------------------------------------------------

    def test_advice_needs_a_record(self) -> None:
        """Without one it says what is missing."""
        self.assertEqual(self.get("advice")["advice"], [])
        self.assertIn("The record spans 0.0 s", self.get("advice")["told"])
        self.fleet.history.started("coder", 10.0)
        self.fleet.history.used("coder", 10.0, 10.0 + 2 * DAY)
        self.assertIn("Nothing would have been better in the 2.0 days", self.get("advice")["told"])

    def test_advice_comes_from_what_happened(self) -> None:
        """With the settings that are in force, and what would be better."""
        for number in range(100):
            at = number * 1800.0
            self.fleet.history.started("coder", at)
            self.fleet.history.used("coder", at, at + 60.0)
        (one,) = self.get("advice")["advice"]
        self.assertEqual((one["backend"], one["present"] in (600.0, False)), ("coder", True))
        self.assertIn("starts in 2 days would not have been needed", one["told"])
        self.assertGreater(one["per_day"], 10)

    # -- faults -------------------------------------------------------------------------------------

    def test_a_cool_down_is_told_and_reset(self) -> None:
        """A start within it is refused with the failure; after a reset it is tried again."""
        self.world.refuse_next_start("coder", "no such image")
        self.fleet.backends["coder"].demand()
        status, code, message, _ = self.refused(self.post("backends/coder/start?wait=1"))
        self.assertEqual((status, code), (503, "backend_start_failed"))
        self.assertIn("no such image", message)
        self.assertEqual(self.answered(self.post("backends/coder/reset?wait=1"))[1]["state"], "absent")
        self.assertEqual(self.answered(self.post("backends/coder/start?wait=1"))[1]["state"], "ready")

    def test_a_start_without_an_engine_is_told(self) -> None:
        """503 while the engine is away, also when it goes meanwhile, and ``why`` says so."""
        self.world.go_away("no engine here")
        for query in ("", "?wait=1"):
            refused = self.refused(self.post(f"backends/coder/start{query}"))
            self.assertEqual(refused[:3], (503, "runtime_unavailable", "no engine here"))
        self.assertIn("it was refused: no engine here.", self.why("coder"))
        status, view = self.answered(self.post("backends/coder/stop?wait=1"))
        self.assertEqual((status, view["state"]), (200, "absent"))
        self.world.come_back()
        self.world.hold_starts = True
        waiting = self.post("backends/coder/start?wait=1")
        self.turn()
        self.assertEqual((waiting.take(), self.state("coder")), (b"", "starting"))
        self.world.go_away("gone again")
        self.assertEqual(self.refused(waiting)[:3], (503, "runtime_unavailable", "gone again"))
        self.world.come_back()
        # Somebody else starts it.
        self.world.become_running("coder")
        self.turn()
        view = self.get("backends/coder")
        self.assertEqual((view["state"], view["refused"]), ("ready", None))

    def test_logs_that_cannot_be_read_are_told(self) -> None:
        """503 while the engine is away, 400 for what is no number."""
        self.assertEqual(self.refused(self.ask(b"GET", "backends/coder/logs?tail=many"))[0], 400)
        self.world.go_away("no engine here")
        status, code, message, _ = self.refused(self.ask(b"GET", "backends/coder/logs"))
        self.assertEqual((status, code, message), (503, "runtime_unavailable", "no engine here"))

    def test_a_fault_in_a_thread_is_answered(self) -> None:
        """500 without its text, and the log has it."""

        class Broken(Meter):
            def free(self, gpu: str) -> int | None:
                raise ZeroDivisionError("a fault")

        self.fleet.scheduler.meter = Broken()
        status, code, message, _ = self.refused(self.ask(b"GET", "gpus"))
        self.assertEqual((status, code), (500, "error"))
        self.assertNotIn("a fault", message)

    def test_what_may_block_is_done_in_a_thread(self) -> None:
        """Of the reactor's own, where it has any."""
        self.site.clock = reactor = Threaded()
        directlyProvides(reactor, IReactorThreads)
        reactor.advance(1000.0)
        self.assertEqual(self.get("advice")["advice"], [])
        self.assertEqual(reactor.ran, 1)

    # -- paths --------------------------------------------------------------------------------------

    def test_paths_take_what_they_take(self) -> None:
        """404 for others, 405 with Allow for other methods; a slash at the end changes nothing."""
        for path in ("", "nothing", "backends/coder/dance", "backends/a/b/c", "leases/a/b", "plan/x"):
            self.assertEqual(self.refused(self.ask(b"GET", path))[:2], (404, "route_not_found"), path)
        for method, path, allow in (
            (b"PUT", "leases", "GET, HEAD, POST"),
            (b"POST", "leases/lease-1", "GET, HEAD, DELETE"),
            (b"POST", "plan", "GET, HEAD"),
            (b"POST", "gpus", "GET, HEAD"),
            (b"POST", "advice", "GET, HEAD"),
            (b"OPTIONS", "backends/coder/why", "GET, HEAD"),
            (b"GET", "backends/coder/sleep", "POST"),
        ):
            status, _, fields = self.ask(method, path).error()
            self.assertEqual((status, fields["allow"]), (405, allow), path)
        self.assertEqual(self.get("leases/"), self.get("leases"))
        status, _, body = self.ask(b"HEAD", "gpus").answer()
        self.assertEqual((status, body), (200, b""))
        self.assertIn("/api/openapi.json", self.refused(self.ask(b"GET", "nothing"))[3])

    def test_a_look_at_the_head_alone_ends(self) -> None:
        """Of what would be followed as well: the connection is free for the next request."""
        self.warm("coder")
        for path in ("events", "backends/coder/logs?follow=1", "backends/coder/logs"):
            client = self.ask(b"HEAD", path)
            status, fields, body = client.answer()
            self.assertEqual((status, body), (200, b""), path)
            self.assertIn(fields["content-type"].partition(";")[0], ("text/plain", "text/event-stream"))
            self.assertEqual(client.get(b"/api/leases", ADMIN).answer()[0], 200)

    def test_what_is_followed_says_what_all_answers_say(self) -> None:
        """The fields that the contract has on every answer."""
        self.warm("coder")
        for path, backend in (("events", "-"), ("backends/coder/logs?follow=1", "coder")):
            _, fields, _ = self.ask(b"GET", path).answer()
            self.assertEqual(
                (fields["x-llmproxy-backend"], fields["x-llmproxy-cold-start"]), (backend, "0.000")
            )
            self.assertTrue(fields["x-request-id"])

    def test_what_is_not_known_is_refused_by_name(self) -> None:
        """400 for parameters that a path does not have, has twice, or has with another value."""
        self.warm("coder")
        for method, path, name in (
            ("GET", "backends?wait=1", "wait"),
            ("GET", "backends/coder?x", "x"),
            ("GET", "leases?=1", ""),
            ("GET", "gpus?x%3Dy=z", "x=y"),
            ("GET", "plan?backend=chat&backend=coder", "backend"),
            ("GET", "backends/coder/logs?tail=-1", "tail"),
            ("GET", "backends/coder/logs?tail=10001", "tail"),
            ("GET", "backends/coder/logs?tail=%C2%B2", "tail"),
            ("GET", f"backends/coder/logs?tail={'9' * 5000}", "tail"),
            ("GET", "backends/coder/logs?tail=", "tail"),
            ("GET", "backends/coder/logs?follow=maybe", "follow"),
            ("GET", "events?follow=", "follow"),
            ("POST", "backends/coder/start?wait", "wait"),
            ("POST", "backends/coder/start?wait=1;force=1", "wait"),
            ("POST", "backends/coder/stop?wait=1&wait=0", "wait"),
            ("POST", "backends/coder/stop?Force=1", "Force"),
            ("POST", "backends/coder/reset?force=1", "force"),
            ("POST", "leases?waits=1", "waits"),
            ("DELETE", "leases/lease-1?wait=1", "wait"),
        ):
            status, error, _ = self.ask(method.encode(), path).error()
            told = (status, error["code"], error["param"])
            self.assertEqual(told, (400, "invalid_request", name), path)
            self.assertIn(name, error["message"])
        self.assertEqual(self.state("coder"), "ready")
        self.assertEqual(self.answered(self.post("backends/coder/stop?wait=yes&force=False"))[0], 200)

    def test_bodies_are_refused_where_none_is_read(self) -> None:
        """400 with where it is said instead; nothing at all, and an empty object, say nothing."""
        for body in (b'{"wait": true}', b"wait=1", b"\x00" * 900):
            status, code, message, hint = self.refused(self.post("backends/coder/stop", body))
            self.assertEqual((status, code, message), (400, "invalid_request", "This path takes no body."))
            self.assertEqual(hint, "What it takes stands in the query: wait, force.")
        head = b"DELETE /api/leases/lease-1 HTTP/1.1\r\nHost: h\r\n%bContent-Length: 1\r\n\r\n1" % ADMIN
        self.assertEqual(self.refused(self.client().send(head))[0], 400)
        for body in (b"", b"{}", b" {}\r\n"):
            self.assertEqual(self.answered(self.post("backends/coder/stop", body))[0], 202)

    def test_bodies_are_short(self) -> None:
        """413: a lease is asked for in a handful of fields."""
        self.site.limits = Limits()
        note = "x" * 65536
        status, code, message, hint = self.refused(self.post("leases", {"note": note}))
        self.assertEqual((status, code, hint), (413, "body_too_large", ""))
        self.assertIn("65536", message)

    def test_all_of_it_is_for_administrators(self) -> None:
        """403 for a client's key."""
        for path in (b"leases", b"plan", b"gpus", b"advice", b"backends/coder/why"):
            client = self.client().get(b"/api/" + path)
            self.assertEqual(client.error()[0], 403)


VERBS = ("start", "stop", "sleep", "wake", "restart", "reset")
LOOKS = ("backends", "plan", "gpus", "leases", "backends/a/why", "plan?backend=b", "backends/c/why")
NAMES = st.sampled_from("abc")
DEEDS = st.one_of(
    st.tuples(st.just("act"), NAMES, st.sampled_from(VERBS)),
    st.tuples(st.just("ask"), NAMES),
    st.tuples(st.just("die"), NAMES),
    st.tuples(st.just("look"), st.sampled_from(LOOKS)),
    st.tuples(st.just("lend"), st.sampled_from([0.1, 0.3, 0.6]), st.sampled_from([10, 100])),
    st.tuples(st.just("pass"), st.sampled_from([0.0, 0.1, 5.0, 31.0, 100.0])),
    st.tuples(st.sampled_from(["release", "answer", "spoil wakes", "end stops"])),
)


class AnyOrderTests(ApiCase):
    """Whatever is asked in whatever order."""

    @settings(max_examples=100, deadline=None)
    @given(st.lists(DEEDS, min_size=10, max_size=80), st.booleans(), st.sampled_from([0.0, 30.0]))
    def test_everybody_is_answered(self, deeds: list[Any], slow: bool, residency: float) -> None:
        """Who waits for a verb or a lease is answered in the end, by what is allowed for it."""
        self.clock, self.world = Clock(), FakeController(hold_stops=slow)
        self.servers = Servers(mode="healthy", controls=dict(CONTROLS))
        self.build(
            a={"sleep": "1", "min_residency": residency},
            b={"gpu_memory": 0.5, "sleep": "2"},
            c={"gpu_memory": 0.3, "idle": 60.0},
        )
        self.finished = 0
        waiting = [client for deed in deeds if (client := self.do(*deed)) is not None]
        self.servers.controls["POST /wake_up"] = CONTROLS["POST /wake_up"]
        for _ in range(60):
            self.do("end stops")
            self.do("answer")
            self.do("pass", 20.0)
        for client in waiting:
            self.assertIn(client.answer()[0], (200, 201, 400, 409, 503))

    def do(self, deed: str, *about: Any) -> Client | None:
        """Do it; gives who waits for it."""
        match deed, about:
            case "act", (name, verb):
                return self.post(f"backends/{name}/{verb}?wait=1")
            case "lend", (memory, seconds):
                return self.post("leases?wait=1", {"memory": memory, "seconds": seconds})
            case "ask", (name,):
                self.request(name)
            case "die", (name,) if self.world.is_running(name):
                self.world.exit(name, 1)
            case "look", (path,):
                self.get(path)
            case "pass", (seconds,):
                self.clock.advance(seconds)
                self.turn()
            case "release", ():
                for lease in self.get("leases")["leases"]:
                    self.ask(b"DELETE", f"leases/{lease['id']}")
            case "answer", ():
                asked = self.servers.requests[self.finished :]
                self.finished += len(asked)
                for far in asked:
                    far.send(OK)
            case "spoil wakes", ():
                self.servers.controls["POST /wake_up"] = b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"
            case "end stops", ():
                for name in self.world.stopping():
                    self.world.finish_stop(name)
        return None
