"""The demo server: vLLM's answers, streams and faults, in memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies
from treq.testing import RequestTraversalAgent
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.demo import faults, shapes
from llmproxy.demo.generation import Generation
from llmproxy.demo.journal import Journal
from llmproxy.demo.server import DemoResource, site
from llmproxy.demo.settings import Settings, parse

ASK = {"model": "demo", "messages": [{"role": "user", "content": "good morning"}]}


class Answer:
    """One exchange with the server over a raw connection that is read as it grows."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport

    @property
    def raw(self) -> bytes:
        return bytes(self.transport.value())

    @property
    def head(self) -> str:
        return self.raw.partition(b"\r\n\r\n")[0].decode()

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    @property
    def body(self) -> bytes:
        """The body, its chunks put together; the end chunk is kept as ``<end>``."""
        rest = self.raw.partition(b"\r\n\r\n")[2]
        if "transfer-encoding: chunked" not in self.head.lower():
            return rest
        found = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            found += rest[:length] if length else b"<end>"
            rest = rest[length + 2 :]
        return found

    @property
    def json(self) -> Any:
        return json.loads(self.body.replace(b"<end>", b""))

    @property
    def events(self) -> list[str]:
        return [part.removeprefix("data: ") for part in self.body.decode().split("\n\n")]


class DemoCase(SynchronousTestCase):
    """A demo server on a clock."""

    factory: Any

    def setUp(self) -> None:
        self.clock = Clock()
        self.exits: list[int] = []
        self.exhausted = 0
        self.make(Settings())

    def make(self, settings: Settings) -> None:
        self.resource = DemoResource(settings, self.clock, exit=self.exits.append, exhaust=self.exhaust)
        self.factory = site(self.resource)
        self.factory._reactor = self.clock
        self.factory.startFactory()
        self.addCleanup(self.factory.stopFactory)

    def exhaust(self) -> None:
        self.exhausted += 1

    def ask(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        self.protocol = self.factory.buildProtocol(None)
        transport: Any = StringTransport()
        transport.abortConnection = transport.loseConnection
        transport.protocol = self.protocol
        self.protocol.makeConnection(transport)
        lines = [f"{method} {target} HTTP/1.1", "Host: demo"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.protocol.dataReceived("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return Answer(transport)

    def post(self, what: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", path, json.dumps(what).encode(), named)

    def run_out(self) -> None:
        """Let all timers fire that the answers under way still set."""
        while self.clock.getDelayedCalls():
            self.clock.advance(1)


class PathTests(DemoCase):
    def test_health_is_empty_and_open(self) -> None:
        """/health and /ping answer 200 with no body and without a key."""
        self.make(Settings(api_key="k"))
        for path in ("/health", "/ping"):
            answer = self.ask("GET", path)
            self.assertEqual((answer.status, answer.body), (200, b""))

    def test_health_modes(self) -> None:
        """/health says 503 or never answers when the server was told so."""
        self.make(Settings(health_mode="503"))
        self.assertEqual(self.ask("GET", "/health").status, 503)
        self.make(Settings(health_mode="hang"))
        self.assertEqual(self.ask("GET", "/health").raw, b"")

    def test_key_is_needed_under_v1_only(self) -> None:
        """Without the key, /v1 answers vLLM's 401; OPTIONS and other paths stay open."""
        self.make(Settings(api_key="k"))
        refused = self.ask("GET", "/v1/models")
        self.assertEqual((refused.status, refused.json), (401, {"error": "Unauthorized"}))
        for scheme in ("Bearer", "bearer"):
            answer = self.ask("GET", "/v1/models", headers={"Authorization": f"{scheme} k"})
            self.assertEqual(answer.status, 200)
        self.assertEqual(self.ask("GET", "/v1/models", headers={"x-api-key": "k"}).status, 401)
        self.assertEqual(self.ask("OPTIONS", "/v1/models").status, 405)
        self.assertEqual(self.ask("GET", "/version").status, 200)

    def test_unknown_path_and_method(self) -> None:
        """What vLLM does not have is 404, and a wrong method 405 with Allow."""
        self.assertEqual(self.ask("GET", "/nope").json, {"detail": "Not Found"})
        wrong = self.ask("GET", "/v1/completions")
        self.assertEqual(wrong.status, 405)
        self.assertIn("Allow: POST", wrong.head)
        self.assertEqual(self.ask("HEAD", "/health").status, 405)

    def test_models(self) -> None:
        """/v1/models lists every name that the server serves."""
        self.make(Settings(models=("a", "b")))
        data = self.ask("GET", "/v1/models").json["data"]
        self.assertEqual([model["id"] for model in data], ["a", "b"])

    def test_tokenize(self) -> None:
        """/tokenize counts words."""
        self.assertEqual(self.post({"prompt": "one two three"}, "/tokenize").json["count"], 3)

    def test_metrics_and_load_show_what_runs(self) -> None:
        """/metrics and /load count the running requests."""
        self.post({**ASK, "stream": True}, X_Demo_Token_Delay="1")
        self.assertEqual(self.ask("GET", "/load").json, {"server_load": 1})
        text = self.ask("GET", "/metrics").body
        self.assertIn(b'vllm:num_requests_running{engine="0",model_name="demo"} 1', text)

    def test_echo_tells_the_request_as_it_came(self) -> None:
        """/echo tells method, raw target, the headers in order and spelling, and the body's digest."""
        answer = self.ask("PUT", "/echo/a%2Fb?x=%20", b"abc", {"X-cAsE": "1", "a": "2", "x-case": "3"}).json
        self.assertEqual((answer["method"], answer["target"]), ("PUT", "/echo/a%2Fb?x=%20"))
        sent = [["Host", "demo"], ["X-cAsE", "1"], ["a", "2"], ["x-case", "3"], ["Content-Length", "3"]]
        self.assertEqual(answer["headers"], sent)
        self.assertEqual(answer["sha256"], hashlib.sha256(b"abc").hexdigest())

    def test_upload(self) -> None:
        """/upload tells the length and digest of what it was sent."""
        answer = self.ask("POST", "/upload", b"x" * 1000).json
        self.assertEqual(answer, {"length": 1000, "sha256": hashlib.sha256(b"x" * 1000).hexdigest()})

    def test_big(self) -> None:
        """/big sends so many bytes, with their length or in chunks."""
        plain = self.ask("GET", "/big?bytes=100000")
        self.assertIn("Content-Length: 100000", plain.head)
        self.assertEqual(len(plain.body), 100000)
        chunked = self.ask("GET", "/big?bytes=100000&chunked=1")
        self.assertEqual(len(chunked.body), 100000 + len(b"<end>"))
        self.assertEqual(self.ask("GET", "/big").status, 400)

    def test_websocket_handshake_and_echo(self) -> None:
        """/ws accepts a handshake with RFC 6455's own example key and echoes bytes from then on."""
        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",  # no secret
            "Sec-WebSocket-Protocol": "one, two",
        }
        answer = self.ask("GET", "/ws", headers=headers)
        self.assertIn("101 Switching Protocols", answer.head)
        self.assertIn("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", answer.head)
        self.assertIn("Sec-WebSocket-Protocol: one", answer.head)
        answer.transport.protocol.dataReceived(b"\x81\x00raw")
        self.assertTrue(answer.raw.endswith(b"\r\n\r\n\x81\x00raw"))
        self.assertEqual(self.ask("GET", "/ws").status, 426)
        self.assertEqual(len(self.resource.open), 1)
        answer.transport.protocol.connectionLost(_gone())
        self.assertEqual(self.resource.open, {})

    def test_an_agent_can_talk_to_it(self) -> None:
        """It serves a Twisted Web client in memory."""
        agent = RequestTraversalAgent(self.resource)
        response = self.successResultOf(agent.request(b"GET", b"http://demo/version"))
        self.assertEqual(response.code, 200)


class CompletionTests(DemoCase):
    def test_chat(self) -> None:
        """A chat completion repeats the user's words and tells its usage."""
        answer = self.post(ASK)
        self.run_out()
        found = answer.json
        self.assertIn("good morning", found["choices"][0]["message"]["content"])
        self.assertEqual(found["object"], "chat.completion")
        self.assertEqual(found["choices"][0]["finish_reason"], "stop")
        usage = found["usage"]
        self.assertEqual(usage["prompt_tokens"], 2)
        self.assertEqual(usage["total_tokens"], 2 + usage["completion_tokens"])

    def test_text_completion_with_exact_length(self) -> None:
        """ignore_eos makes a completion exactly max_tokens long."""
        answer = self.post({"prompt": "a b", "max_tokens": 5, "ignore_eos": True}, "/v1/completions")
        self.run_out()
        self.assertEqual(answer.json["choices"][0]["text"], " a b a b a")
        self.assertEqual(answer.json["usage"]["completion_tokens"], 5)

    def test_stream(self) -> None:
        """A stream has the role first, a chunk for each token, the usage that was asked for, and [DONE]."""
        body = {**ASK, "stream": True, "max_tokens": 3, "stream_options": {"include_usage": True}}
        answer = self.post(body, X_Request_Id="r1")
        self.run_out()
        self.assertIn("text/event-stream", answer.head)
        role, *pieces, usage, done, end = answer.events
        self.assertEqual((done, end), ("[DONE]", "<end>"))
        self.assertEqual(json.loads(role)["choices"][0]["delta"], {"role": "assistant", "content": ""})
        self.assertEqual(json.loads(role)["id"], "chatcmpl-r1")
        deltas = [json.loads(piece)["choices"][0] for piece in pieces]
        self.assertEqual("".join(choice["delta"]["content"] for choice in deltas), "You said: good")
        self.assertEqual([choice["finish_reason"] for choice in deltas], [None, None, "length"])
        self.assertEqual(json.loads(usage)["usage"]["completion_tokens"], 3)
        self.assertEqual(json.loads(usage)["choices"], [])

    def test_stream_is_paced(self) -> None:
        """The head comes at once, and each token after its own pause."""
        answer = self.post({**ASK, "stream": True}, X_Demo_Token_Delay="2")
        self.clock.advance(0)
        self.assertEqual(answer.body.count(b"data:"), 1)
        for number in (2, 3):
            self.clock.advance(2)
            self.clock.advance(0)
            self.assertEqual(answer.body.count(b"data:"), number)

    def test_slow_reader_slows_the_stream(self) -> None:
        """While the connection takes nothing, no token is produced."""
        answer = self.post({**ASK, "stream": True}, X_Demo_Token_Delay="1")
        (generation,) = self.resource.running
        generation.pauseProducing()
        before = answer.raw
        self.run_out()
        self.assertEqual(answer.raw, before)
        generation.resumeProducing()
        self.run_out()
        self.assertTrue(answer.body.endswith(b"[DONE]\n\n<end>"))

    def test_client_leaves(self) -> None:
        """When its client leaves, a stream stops at once and is counted as aborted."""
        self.post({**ASK, "stream": True}, X_Demo_Token_Delay="1")
        self.clock.advance(1)
        self.protocol.connectionLost(_gone())
        self.assertEqual((self.resource.stats.running, self.resource.stats.aborted), (0, 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refusals(self) -> None:
        """Unknown models, bad JSON, other content types and bad limits get vLLM's error objects."""
        cases: list[tuple[bytes, int, str]] = [
            (b'{"model": "nope", "messages": []}', 404, "NotFoundError"),
            (b'{"model": ', 400, "Bad Request"),
            (b"[]", 400, "Bad Request"),
            (b"{}", 400, "Bad Request"),
            (json.dumps({**ASK, "max_tokens": 0}).encode(), 400, "BadRequestError"),
            (json.dumps({**ASK, "stream_options": {}}).encode(), 400, "BadRequestError"),
            (json.dumps({**ASK, "demo_fault": "nope"}).encode(), 400, "BadRequestError"),
            (json.dumps({**ASK, "demo_token_delay": "x"}).encode(), 400, "BadRequestError"),
        ]
        for body, status, kind in cases:
            answer = self.ask("POST", "/v1/chat/completions", body)
            self.assertEqual((answer.status, answer.json["error"]["type"]), (status, kind))
            self.assertEqual(answer.json["error"]["code"], status)
        answer = self.ask("POST", "/v1/chat/completions", b"x", {"Content-Type": "text/plain"})
        self.assertIn("Unsupported Media Type", answer.json["error"]["message"])


class FaultTests(DemoCase):
    def fault(self, name: str, stream: bool = True) -> Answer:
        answer = self.post({**ASK, "stream": stream}, X_Demo_Fault=name)
        self.run_out()
        return answer

    def test_error_event(self) -> None:
        """error-event ends a stream as a dying vLLM engine does, and is a 500 without a stream."""
        events = self.fault("error-event=2").events
        self.assertEqual(json.loads(events[3])["error"]["code"], 500)
        self.assertEqual(events[4:], ["[DONE]", "<end>"])
        self.assertEqual(self.fault("error-event", stream=False).status, 500)

    def test_connection_faults(self) -> None:
        """die-before-head, die-mid-stream and close-mid-body close the connection with no end of message."""
        early = self.fault("die-before-head")
        self.assertEqual((early.raw, early.transport.disconnecting), (b"", True))
        for name in ("die-mid-stream=2", "close-mid-body=2"):
            answer = self.fault(name)
            self.assertEqual(answer.body.count(b"data:"), 3)
            self.assertTrue(answer.transport.disconnecting)
            self.assertNotIn(b"<end>", answer.body)
        half = self.fault("close-mid-body", stream=False)
        self.assertIn("Content-Length", half.head)
        self.assertRaises(ValueError, lambda: half.json)

    def test_silence(self) -> None:
        """hang never answers, and stall goes silent in the middle; both end with their client."""
        self.assertEqual(self.fault("hang").raw, b"")
        self.assertEqual(self.fault("stall=1").body.count(b"data:"), 2)
        self.assertEqual(self.resource.stats.running, 2)
        self.protocol.connectionLost(_gone())
        self.assertEqual(self.resource.stats.running, 1)

    def test_slow_head(self) -> None:
        """slow-head keeps the head back for so many seconds."""
        answer = self.post(ASK, X_Demo_Fault="slow-head=3")
        self.clock.advance(2.9)
        self.assertEqual(answer.raw, b"")
        self.run_out()
        self.assertEqual(answer.status, 200)

    def test_process_faults(self) -> None:
        """exit, exit-mid-stream and oom end the process."""
        self.fault("exit=3")
        self.fault("exit-mid-stream=1")
        self.fault("oom")
        self.assertEqual((self.exits, self.exhausted), ([3, 1], 1))

    def test_status(self) -> None:
        """A number is answered as that status."""
        self.assertEqual(self.fault("503").json["error"]["code"], 503)

    def test_ailments(self) -> None:
        """For as long as it ails, /health fails, tokens are slow and no answer begins; then all is well."""
        self.post({"seconds": 5, "health": "503", "head": "hang"}, "/demo/ail")
        held = self.post(ASK)
        self.assertEqual((self.ask("GET", "/health").status, held.raw), (503, b""))
        self.post({"seconds": 3, "health": "hang", "pace": 1}, "/demo/ail")
        paced, health = self.post({**ASK, "stream": True, "max_tokens": 2}), self.ask("GET", "/health")
        self.clock.advance(0.5)
        self.assertEqual((paced.body.count(b'"content":"You'), health.raw), (0, b""))
        self.clock.advance(2.5)
        self.run_out()
        self.assertEqual(
            (self.ask("GET", "/health").status, paced.events[-2], held.status), (200, "[DONE]", 200)
        )
        running = self.post({**ASK, "stream": True}, X_Demo_Token_Delay="1")
        self.post({"reset": True}, "/demo/ail")
        self.assertTrue(running.transport.disconnecting)
        for wrong in ({"seconds": -1}, {"seconds": 1, "health": "poor"}, {"seconds": 1, "pace": "slow"}):
            self.assertEqual(self.post(wrong, "/demo/ail").status, 400)

    def test_break_off(self) -> None:
        """Breaking a running answer off twice tells of it once."""
        answer = self.post({**ASK, "stream": True}, X_Demo_Token_Delay="1")
        generations: list[Generation] = list(self.resource.running)
        for act in (generations[0].break_off, generations[0].break_off):
            act()
        self.assertEqual(answer.body.count(b'"error"'), 1)


@given(strategies.text())
def test_faults_parse_or_refuse(text: str) -> None:
    """Any text is a list of faults or is refused with 400."""
    try:
        status = 200 if faults.parse(text) else 0
    except shapes.BadRequest as refused:
        status = refused.status
    assert status in (200, 400)


@given(strategies.text())
def test_tokens_keep_the_text(text: str) -> None:
    """Joined, the tokens are the text up to trailing white space."""
    assert "".join(shapes.tokens(text)) == text.rstrip()


def test_vllm_command_line() -> None:
    """A command line written for vLLM is understood, and what is not known is kept for the log."""
    line = ["serve", "some/model", "--served-model-name", "a", "b", "--port", "8001", "--max-model-len", "9"]
    settings = parse(line, {"VLLM_API_KEY": "k", "LLMPROXY_DEMO_START_DELAY": "2"})
    assert (settings.models, settings.port, settings.api_key) == (("a", "b"), 8001, "k")
    assert settings.start_delay == 2
    assert settings.unknown == ("--max-model-len", "9")
    assert parse(["--model", "x", "--model", "y"], {}).models == ("x", "y")
    assert parse([], {}).models == ("demo",)


def _gone() -> Any:
    from twisted.internet.error import ConnectionDone
    from twisted.python.failure import Failure

    return Failure(ConnectionDone())


def test_a_journal(tmp_path: Path) -> None:
    """Each event is a line at the end of the file, which servers share; each has a life of its own."""
    file = tmp_path / "journal"
    one, other = Journal(str(file), "a"), Journal(str(file), "b")
    one.note("start", pid=7)
    other.note("start")
    one.note("end", open=["r-1"])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["model"], line["what"]) for line in lines] == [("a", "start"), ("b", "start"), ("a", "end")]
    assert (lines[0]["pid"], lines[2]["open"]) == (7, ["r-1"])
    assert lines[0]["life"] == lines[2]["life"] != lines[1]["life"]
    assert lines[0]["at"] <= lines[2]["at"]


def test_a_journal_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server lives on; and without the variable nothing is written anywhere."""
    Journal(str(tmp_path / "none" / "journal"), "a").note("start")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMPROXY_DEMO_JOURNAL", "")
    Journal.of_environment("a").note("start")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("LLMPROXY_DEMO_JOURNAL", "journal")
    Journal.of_environment("a").note("start")
    assert [each.name for each in tmp_path.iterdir()] == ["journal"]
