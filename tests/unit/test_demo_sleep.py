"""The demo server's sleep mode: vLLM's answers, what becomes of requests, and what goes wrong on request."""

from __future__ import annotations

import json
from typing import Any

from attrs import define
from hypothesis import given, strategies

from llmproxy.demo import faults
from llmproxy.demo.ledger import GIB, GpuError, Ledger
from llmproxy.demo.memory import Memory, Plan
from llmproxy.demo.server import DemoResource, site
from llmproxy.demo.settings import Settings
from llmproxy.demo.shapes import BadRequest
from tests.unit.test_demo import ASK, Answer, DemoCase, _gone

DEV = {"dev_mode": True, "enable_sleep_mode": True}


@define
class Gpu:
    """A GPU of 100 bytes whose ledger can be changed under the server."""

    ledger: Ledger
    owner: str = "self"
    noted: int = 0

    def change(self, act: Any) -> Ledger:
        self.ledger = act(self.ledger)
        return self.ledger

    def note(self, wrong: GpuError) -> None:
        self.noted += 1


class SleepCase(DemoCase):
    """A demo server whose sleep takes 2 s and whose waking 3 s."""

    def make(self, settings: Settings) -> None:
        self.said: list[str] = []
        self.gpu = Gpu(Ledger(100 * GIB))
        memory = Memory(self.gpu, Plan(utilization=0.8, keeps=settings.plan.keeps))
        memory.check_room()
        memory.profile()
        self.resource = DemoResource(
            settings, self.clock, exit=self.exits.append, memory=memory, say=self.said.append
        )
        self.factory = site(self.resource)
        self.factory._reactor = self.clock
        self.factory.startFactory()
        self.addCleanup(self.factory.stopFactory)

    def setUp(self) -> None:
        super().setUp()
        self.again()

    def again(self, **more: Any) -> None:
        self.make(Settings(**{**DEV, "sleep_seconds": 2.0, "wake_seconds": 3.0, **more}))

    def sleep(self, query: str = "", after: float = 2) -> Answer:
        answer = self.ask("POST", f"/sleep{query}")
        self.clock.advance(after)
        return answer

    def wake(self, query: str = "", after: float = 3) -> Answer:
        answer = self.ask("POST", f"/wake_up{query}")
        self.clock.advance(after)
        return answer

    def arm(self, text: str) -> None:
        self.assertEqual(self.ask("POST", "/demo/sleep-faults", text.encode()).status, 200)

    def stream(self, **more: object) -> Answer:
        """A stream with a token each second, the first of them sent."""
        answer = self.post({**ASK, "stream": True, **more}, X_Demo_Token_Delay="1")
        self.clock.pump([0, 1, 0])
        return answer

    @property
    def sleeping(self) -> bool:
        return bool(self.ask("GET", "/is_sleeping").json["is_sleeping"])

    @property
    def used(self) -> float:
        return round(self.gpu.ledger.used("0") / GIB, 2)

    @property
    def log(self) -> str:
        return "\n".join(self.said)


class PathTests(SleepCase):
    def test_dev_mode_only(self) -> None:
        """Without VLLM_SERVER_DEV_MODE the paths are not there; with it, no key is asked for."""
        paths = ("/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache")
        self.again(dev_mode=False)
        self.assertEqual([self.ask("POST", path).status for path in paths], [404] * 4)
        self.assertEqual(self.ask("GET", "/is_sleeping").status, 404)
        self.again(api_key="k")
        self.assertEqual(self.ask("GET", "/is_sleeping").json, {"is_sleeping": False})
        self.assertEqual([self.ask("GET", path).status for path in paths], [405] * 4)
        self.assertEqual(self.ask("POST", "/is_sleeping").status, 405)

    def test_bad_level_and_mode(self) -> None:
        """A level or a mode that vLLM does not have is 400."""
        for query in ("?level=3", "?level=x", "?mode=nope", "?level=-1"):
            self.assertEqual(self.sleep(query).status, 400)
        self.assertFalse(self.sleeping)

    def test_sleep_blocks_until_done(self) -> None:
        """The answer comes when it sleeps; again is 200; awake again, everything is as it was."""
        answer = self.sleep(after=1.9)
        self.assertEqual((answer.raw, self.used), (b"", 80))
        asked = self.ask("GET", "/is_sleeping")
        self.assertEqual(asked.raw, b"")  # the engine is busy
        self.clock.advance(0.1)
        self.assertEqual((answer.status, answer.json), (200, {"status": "sleeping", "level": 1}))
        self.assertEqual((asked.json, self.used), ({"is_sleeping": True}, 4))
        self.assertIn("Sleep mode freed 76.00 GiB memory, 4.00 GiB memory is still in use.", self.log)
        self.assertIn("It took 2.000000 seconds to fall asleep.", self.log)
        self.assertEqual(self.sleep("?level=2", 0).json, {"status": "sleeping", "level": 2})
        self.assertEqual(
            (self.ask("GET", "/health").status, self.ask("GET", "/v1/models").status), (200, 200)
        )
        self.assertIn(b'sleep_state="weights_offloaded"} 1', self.ask("GET", "/metrics").body)
        waking = self.wake(after=1)
        self.assertEqual((waking.raw, self.used), (b"", 80))
        self.clock.advance(2)
        self.assertEqual(waking.json, {"status": "awake", "tags": None})
        self.assertIn("It took 3.000000 seconds to wake up tags ['kv_cache', 'weights'].", self.log)
        self.assertEqual(self.wake(after=0).json, {"status": "awake", "tags": None})
        self.assertFalse(self.sleeping)
        self.assertIn(b'sleep_state="awake"} 1', self.ask("GET", "/metrics").body)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_is_asked_waits_its_turn(self) -> None:
        """Waking that is asked for while it falls asleep comes after."""
        first, second = self.sleep(after=0), self.wake(after=0)
        self.clock.advance(2)
        self.assertEqual((first.status, second.raw), (200, b""))
        self.clock.advance(3)
        self.assertEqual(second.json["status"], "awake")

    def test_partial_wake(self) -> None:
        """Tags wake parts; it runs requests again when all are back; unknown tags are no error."""
        self.sleep()
        held = self.post(ASK)
        self.assertEqual(self.wake("?tags=weights").json, {"status": "sleeping", "tags": ["weights"]})
        self.assertEqual((self.used, self.sleeping, held.raw), (40, True, b""))
        for tag in ("nope", "scheduling", "weights"):
            self.assertEqual(self.wake(f"?tags={tag}", 0).json, {"status": "sleeping", "tags": [tag]})
        self.assertEqual(self.wake("?tags=kv_cache").json, {"status": "awake", "tags": ["kv_cache"]})
        self.run_out()
        self.assertEqual((self.used, self.sleeping, held.status), (80, False, 200))
        self.sleep()
        self.assertEqual(self.wake("?tags=weights&tags=kv_cache").json["status"], "awake")

    def test_level_0(self) -> None:
        """Level 0 only pauses, at once, and wakes by the scheduling's tag; level 1 goes on from there."""
        self.assertEqual(self.sleep("?level=0", 0).json, {"status": "sleeping", "level": 0})
        self.assertEqual((self.used, self.sleeping), (80, True))
        self.assertEqual(self.wake("?tags=weights", 0).json["status"], "sleeping")
        self.assertEqual(self.wake("?tags=scheduling", 0).json["status"], "awake")
        self.sleep("?level=0", 0)
        self.assertEqual(self.sleep("?mode=wait").json, {"status": "sleeping", "level": 1})
        self.assertEqual(self.used, 4)

    def test_no_memory_is_freed_without_the_flag(self) -> None:
        """Without --enable-sleep-mode only the states change."""
        self.again(enable_sleep_mode=False)
        self.assertEqual(self.sleep().status, 200)
        self.assertEqual((self.used, self.sleeping), (80, True))
        self.assertNotIn("Sleep mode freed", self.log)
        self.assertEqual(self.wake().json["status"], "awake")

    def test_collective_rpc(self) -> None:
        """Only reload_weights is known, and it needs the weights' memory."""
        self.assertEqual(self.post({"method": "reload_weights"}, "/collective_rpc").json, {"results": [None]})
        self.assertEqual(self.post({}, "/collective_rpc").status, 400)
        self.assertEqual(self.post({"method": "nope"}, "/collective_rpc").status, 500)
        self.sleep()
        self.assertEqual(self.post({"method": "reload_weights"}, "/collective_rpc").status, 500)

    def test_reset_prefix_cache(self) -> None:
        """The cache is not reset under a running request, unless that is asked for."""
        self.assertEqual(self.ask("POST", "/reset_prefix_cache").json, {"success": True})
        self.stream()
        self.assertEqual(self.ask("POST", "/reset_prefix_cache").json, {"success": False})
        forced = self.ask("POST", "/reset_prefix_cache?reset_running_requests=true")
        self.assertEqual(forced.json, {"success": True})

    def test_the_asker_leaves(self) -> None:
        """Who does not wait for the answer has still put it to sleep."""
        self.sleep(after=1)
        self.protocol.connectionLost(_gone())
        self.clock.advance(1)
        self.assertTrue(self.sleeping)


class RequestTests(SleepCase):
    def test_abort(self) -> None:
        """mode=abort ends streams with an empty delta, the usage if asked for, and [DONE]; others too."""
        asked = self.stream(stream_options={"include_usage": True})
        whole = self.post(ASK, X_Demo_Token_Delay="1")
        hung = self.post(ASK, X_Demo_Fault="hang")
        self.clock.advance(2.5)
        self.clock.advance(0)
        answer = self.sleep()
        *_, last, usage, done, end = asked.events
        choice = json.loads(last)["choices"][0]
        self.assertEqual((choice["delta"], choice["finish_reason"]), ({}, "abort"))
        self.assertEqual(json.loads(usage)["usage"]["completion_tokens"], 2)
        self.assertEqual((done, end), ("[DONE]", "<end>"))
        found = whole.json
        self.assertEqual((whole.status, found["choices"][0]["finish_reason"]), (200, "abort"))
        self.assertEqual(found["choices"][0]["message"]["content"], "You said:")
        self.assertEqual(hung.json["usage"]["completion_tokens"], 0)
        self.assertEqual((answer.status, self.resource.stats.running), (200, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_wait(self) -> None:
        """mode=wait sleeps when the last running request has ended; those that come meanwhile wait."""
        running = self.stream(max_tokens=4)
        answer = self.sleep("?mode=wait", 2)
        late = self.post(ASK)
        self.clock.pump([0, 1, 0, 1, 0, 1])
        self.assertTrue(running.body.endswith(b"[DONE]\n\n<end>"))
        self.assertEqual((answer.raw, late.raw, self.sleeping_later()), (b"", b"", b""))
        self.clock.pump([0, 2])
        self.assertEqual((answer.status, late.raw), (200, b""))
        self.assertEqual(self.resource.stats.held, 1)

    def sleeping_later(self) -> bytes:
        return self.ask("GET", "/is_sleeping").raw

    def test_keep(self) -> None:
        """mode=keep lets requests stand still, and they go on where they were."""
        running, whole = self.stream(), self.post(ASK, X_Demo_Token_Delay="1")
        before = running.raw
        self.sleep("?mode=keep")
        self.run_out()
        self.assertEqual((running.raw, whole.raw), (before, b""))
        self.wake()
        self.run_out()
        self.assertTrue(running.body.endswith(b"[DONE]\n\n<end>"))
        self.assertIn("good morning", whole.json["choices"][0]["message"]["content"])
        text = "".join(json.loads(event)["choices"][0]["delta"]["content"] for event in running.events[:-2])
        self.assertEqual(text, whole.json["choices"][0]["message"]["content"])

    def test_asleep_requests_hang_until_it_wakes(self) -> None:
        """Asleep, requests are taken and not run or counted; a stream has its head; those left never run."""
        self.sleep()
        stream, whole = self.post({**ASK, "stream": True}), self.post(ASK)
        self.post(ASK)
        self.protocol.connectionLost(_gone())
        self.run_out()
        self.assertEqual((stream.status, stream.body, whole.raw), (200, b"", b""))
        self.assertEqual(self.ask("GET", "/load").json, {"server_load": 0})
        self.assertEqual(self.post({**ASK, "model": "nope"}).status, 404)
        stats = self.ask("GET", "/demo/stats").json
        self.assertEqual((stats["running"], stats["held"], stats["aborted"]), (0, 2, 1))
        self.wake()
        self.run_out()
        self.assertTrue(stream.body.endswith(b"[DONE]\n\n<end>"))
        self.assertEqual(whole.status, 200)
        self.assertEqual((self.resource.stats.finished, self.resource.stats.held), (2, 0))

    def test_level_2_without_a_reload_is_garbage(self) -> None:
        """After level 2 answers are garbage until the weights are loaded again, those under way too."""
        kept = self.stream()
        self.sleep("?level=2&mode=keep")
        self.assertIn(b'sleep_state="discard_all"} 1', self.ask("GET", "/metrics").body)
        held = self.post(ASK)
        self.wake()
        after = self.post({"prompt": "a b"}, "/v1/completions")
        self.run_out()
        self.assertEqual(set(held.json["choices"][0]["message"]["content"]), {"!"})
        self.assertEqual(after.json["choices"][0]["text"], "!!")
        self.assertIn(b"You", kept.body)
        self.assertNotIn(b"morning", kept.body)
        self.assertTrue(kept.body.endswith(b"[DONE]\n\n<end>"))
        self.post({"method": "reload_weights"}, "/collective_rpc")
        again = self.post({"prompt": "a b"}, "/v1/completions")
        self.run_out()
        self.assertEqual(again.json["choices"][0]["text"], " a b")

    def test_reload_before_the_cache_wakes(self) -> None:
        """Weights that are loaded as soon as they have memory spoil nothing."""
        self.sleep("?level=2")
        held = self.post(ASK)
        self.wake("?tags=weights")
        self.assertEqual(self.post({"method": "reload_weights"}, "/collective_rpc").status, 200)
        self.wake("?tags=kv_cache")
        self.run_out()
        self.assertIn("good morning", held.json["choices"][0]["message"]["content"])


class FaultTests(SleepCase):
    def test_sleep_500(self) -> None:
        """sleep-500 leaves it awake with its memory, so many times."""
        self.arm("sleep-500=1")
        self.assertEqual(self.sleep().status, 500)
        self.assertEqual((self.sleeping, self.used), (False, 80))
        self.assertEqual(self.sleep().status, 200)

    def test_sleep_hang(self) -> None:
        """sleep-hang is never answered, nor is whether it sleeps; requests hang."""
        self.again(sleep_faults="sleep-hang")
        answer, asked = self.sleep(), self.ask("GET", "/is_sleeping")
        request = self.post(ASK)
        self.run_out()
        self.assertEqual((answer.raw, asked.raw, request.raw, self.used), (b"", b"", b"", 80))

    def test_sleep_leak(self) -> None:
        """sleep-leak answers 200 and keeps the memory."""
        self.arm("sleep-leak")
        self.assertEqual(self.sleep().json, {"status": "sleeping", "level": 1})
        self.assertEqual((self.sleeping, self.used), (True, 80))
        self.assertEqual(self.wake().json["status"], "awake")

    def test_wake_500(self) -> None:
        """wake-500 leaves it asleep; disarmed, it wakes."""
        self.arm("wake-500")
        self.sleep()
        self.assertEqual(self.wake().status, 500)
        self.assertEqual((self.sleeping, self.used), (True, 4))
        self.arm("")
        self.assertEqual(self.wake().json["status"], "awake")

    def test_wake_hang(self) -> None:
        """wake-hang is never answered, with the memory taken."""
        self.arm("wake-hang")
        self.sleep()
        answer = self.wake()
        self.run_out()
        self.assertEqual((answer.raw, self.used), (b"", 80))

    def test_wake_without_room(self) -> None:
        """When its memory is gone, waking is 500 with CUDA's line, and the process ends soon."""
        running = self.stream()
        self.sleep("?mode=keep")
        held = self.post(ASK)
        self.gpu.ledger = self.gpu.ledger.claimed("other", ("0",), 50 * GIB)
        answer = self.wake(after=0)
        self.assertEqual((answer.status, answer.json["error"]["code"]), (500, 500))
        self.assertIn(
            "ERROR torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 76.00 GiB.", self.log
        )
        self.assertEqual((held.status, self.ask("GET", "/health").status), (500, 503))
        self.assertIn(b"EngineCore encountered an issue", running.body)
        self.assertEqual((self.wake(after=0).status, self.sleep(after=0).status), (500, 500))
        self.assertEqual((self.exits, self.gpu.noted, self.used), ([], 1, 54))
        self.clock.advance(1)
        self.assertEqual((self.exits, self.clock.getDelayedCalls()), ([0], []))

    def test_unknown_fault(self) -> None:
        """A fault of sleep that is not known is 400."""
        self.assertEqual(self.ask("POST", "/demo/sleep-faults", b"sleep-499").status, 400)


@given(
    strategies.lists(strategies.sampled_from(["sleep", "sleep0", "keep", "wake", "weights", "ask", "wait"]))
)
def test_everybody_is_answered(acts: list[str]) -> None:
    """Whatever is asked of it, once it is woken at last every request ends, and all memory is back."""
    case = SleepCase()
    case.setUp()
    queries = {
        "sleep": lambda: case.sleep(after=0),
        "sleep0": lambda: case.sleep("?level=0", 0),
        "keep": lambda: case.sleep("?mode=keep", 0),
        "wake": lambda: case.wake(after=0),
        "weights": lambda: case.wake("?tags=weights", 0),
        "ask": lambda: case.post({**ASK, "stream": True}, X_Demo_Token_Delay="1"),
        "wait": lambda: case.clock.advance(1),
    }
    answers = [found for act in [*acts, "wake"] if (found := queries[act]()) is not None]
    case.run_out()
    assert all(answer.status == 200 for answer in answers)
    assert (case.resource.stats.running, case.resource.stats.held) == (0, 0)
    assert case.used == 80


@given(strategies.text())
def test_sleep_faults_parse_or_refuse(text: str) -> None:
    """Any text is a list of faults of sleep or is refused with 400."""
    try:
        status = 200 if faults.Armed.parse(text) else 0
    except BadRequest as refused:
        status = refused.status
    assert status in (200, 400)
