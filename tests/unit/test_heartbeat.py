"""What a client of each API hears while its backend starts, and when that fails; bytes in, bytes out."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.probe import INTERVAL
from llmproxy.config.model import BackendSpec, Config, Key, Limits
from llmproxy.fleet.fleet import Fleet
from llmproxy.web.auth import Authenticator
from llmproxy.web.resources import RootResource
from llmproxy.web.site import ProxySite
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Servers
from tests.unit.test_front import EVENTS, Client, Log

SHARDS = "Loading safetensors checkpoint shards:  {}% Completed | 1/2 [00:01<00:01, 1.5it/s]"
KEYS = (Key("me", "client"), Key("site", "limited", routes=("coder", "chat")))
CHAT, MESSAGES, RESPONSES = b"/v1/chat/completions", b"/v1/messages?beta=true", b"/v1/responses"


def events(stream: bytes) -> list[bytes]:
    """What is in a chunked body, event by event."""
    found, rest = b"", stream
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        found, rest = found + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return found.split(b"\n\n")[:-1]


class HeartbeatTests(SynchronousTestCase):
    """Two models that share a GPU, and their clients."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.world = FakeController()
        self.servers = Servers()
        self.build()

    def build(self, **more: Any) -> None:
        specs = {
            name: BackendSpec(
                route=name, container=name, models=(f"{name}-model",), gpu_memory=0.6, gpus=("0",), **more
            )
            for name in ("coder", "chat")
        }
        config = Config(backends=specs, keys=KEYS, limits=Limits(max_held=3))
        self.fleet = Fleet(self.clock, self.servers.connect, {"docker": FakeRuntime(self.world)}, config)
        self.fleet.start()
        self.site = ProxySite(RootResource(self.fleet), self.clock, Authenticator(KEYS), config.limits, Log())

    def ask(self, path: bytes, model: str = "coder", key: bytes = b"client", **more: Any) -> Client:
        client = Client(self.site)
        self.addCleanup(client.leave)
        body = {"model": f"{model}-model", "stream": True, **more}
        return client.post(path, body, b"x-api-key: %b\r\n" % key)

    def beats(self, client: Client) -> list[dict[str, Any]]:
        """What the comments of the stream tell since the last look."""
        body = client.take()
        if body.startswith(b"HTTP/1.1 200"):
            body = body.partition(b"\r\n\r\n")[2]
        comments = [line for event in events(body) for line in event.split(b"\n") if line.startswith(b":")]
        return [json.loads(comment.removeprefix(b": llmproxy ")) for comment in comments]

    def learn(self, name: str = "coder") -> None:
        backend = self.fleet.backends[name]
        phases = {"creating": 1.0, "starting": 9.0, "loading weights": 20.0, "compiling": 10.0}
        self.fleet.learned.started(name, backend.fingerprint, phases, 40.0)

    def test_a_form_that_streams(self) -> None:
        """A transcription that is to be streamed hears of the start; one that is not hears nothing."""

        def asked(stream: bytes) -> Client:
            client = Client(self.site)
            self.addCleanup(client.leave)
            fields = ((b"model", b"coder-model"), (b"stream", stream))
            body = b"".join(
                b'--B\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % field for field in fields
            )
            kind = b"x-api-key: client\r\nContent-Type: multipart/form-data; boundary=B\r\n"
            return client.post(b"/v1/audio/transcriptions", body + b"--B--\r\n", kind)

        streams, whole = asked(b"true"), asked(b"false")
        self.clock.advance(8)
        self.assertEqual([beat["state"] for beat in self.beats(streams)], ["starting"])
        self.assertEqual(whole.take(), b"")

    def test_a_cold_start_is_explained(self) -> None:
        """Each heartbeat tells the phase, how much of it is done, and how long the rest takes."""
        self.learn()
        client = self.ask(CHAT)
        self.clock.advance(8)
        (first,) = self.beats(client)
        self.assertEqual(first, {"state": "starting", "phase": "starting", "elapsed": 8, "eta": 31})
        self.clock.advance(2)
        self.world.print_line("coder", SHARDS.format(50))
        self.clock.advance(8)
        (second,) = self.beats(client)
        self.assertEqual(
            (second["phase"], second["elapsed"], second["progress"]), ("loading weights", 18, 0.5)
        )
        self.assertLessEqual(second["eta"], 12)
        self.servers.mode = "healthy"
        self.clock.advance(INTERVAL)
        self.servers.requests[-1].send(EVENTS + b"6\r\ndata: \r\n0\r\n\r\n")
        self.assertEqual(client.take(), b"6\r\ndata: \r\n0\r\n\r\n")

    def test_the_first_start_tells_no_time(self) -> None:
        """Nobody knows it."""
        client = self.ask(CHAT)
        self.clock.advance(8)
        self.assertEqual([beat["eta"] for beat in self.beats(client)], [None])

    def test_anthropics_clients_get_pings(self) -> None:
        """With the same comment."""
        client = self.ask(MESSAGES)
        self.clock.advance(8)
        body = client.take().partition(b"\r\n\r\n")[2]
        (event,) = events(body)
        comment, *ping = event.split(b"\n")
        self.assertTrue(comment.startswith(b': llmproxy {"state":"starting"'))
        self.assertEqual(ping, [b"event: ping", b'data: {"type": "ping"}'])

    def test_a_late_failure_is_told_in_the_clients_words(self) -> None:
        """As the last event, and then the stream ends."""
        asked = {path: self.ask(path) for path in (CHAT, RESPONSES, MESSAGES)}
        self.clock.advance(8)
        for client in asked.values():
            client.take()
        self.world.exit("coder", 1)
        last = {path: events(client.take())[-1] for path, client in asked.items()}
        self.assertTrue(last[CHAT].startswith(b'data: {"error": {"message": '))
        self.assertTrue(
            last[RESPONSES].startswith(b'event: error\ndata: {"type": "error", "code": "backend_st')
        )
        self.assertTrue(
            last[MESSAGES].startswith(b'event: error\ndata: {"type": "error", "error": {"message"')
        )
        self.assertIn(b'"type": "api_error"', last[MESSAGES])

    def test_an_early_failure_is_a_status_for_all(self) -> None:
        """No bytes have left before that."""
        asked = [self.ask(path) for path in (CHAT, RESPONSES, MESSAGES)]
        self.clock.advance(7.9)
        self.world.exit("coder", 1)
        self.assertEqual([client.error()[0] for client in asked], [503, 503, 503])

    def test_one_that_does_not_stream_gets_no_bytes(self) -> None:
        """Before its answer."""
        client = self.ask(CHAT, stream=False)
        self.clock.advance(100)
        self.assertEqual(client.take(), b"")

    def test_an_engines_error_after_heartbeats(self) -> None:
        """Is one event in the client's words."""
        client = self.ask(MESSAGES)
        self.clock.advance(8)
        self.servers.mode = "healthy"
        self.clock.advance(INTERVAL)
        client.take()
        answer = b'{"error": {"message": "too long", "type": "BadRequestError"}}'
        self.servers.requests[-1].send(
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer)
        )
        (event,) = events(client.take())
        told = json.loads(event.removeprefix(b"event: error\ndata: "))
        self.assertEqual(told["error"], {"message": "too long", "type": "invalid_request_error"})
        other = self.ask(CHAT, "chat")
        self.assertEqual(self.fleet.backends["chat"].state, "absent")
        other.leave()

    def test_an_answer_that_breaks_off_is_told_in_the_clients_words(self) -> None:
        """However far it had come."""
        self.servers.mode = "healthy"
        client = self.ask(MESSAGES)
        self.clock.advance(INTERVAL)
        self.servers.requests[-1].send(EVENTS + b"6\r\ndata: \r\n")
        self.servers.requests[-1].close()
        self.assertIn(b'event: error\ndata: {"type": "error", "error": ', client.take())

    def test_an_answer_that_says_nothing(self) -> None:
        """Is told by its status."""
        client = self.ask(CHAT)
        self.clock.advance(8)
        self.servers.mode = "healthy"
        self.clock.advance(INTERVAL)
        client.take()
        self.servers.requests[-1].send(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nooh!")
        (event,) = events(client.take())
        told = json.loads(event.removeprefix(b"data: "))["error"]
        self.assertEqual((told["code"], told["backend"]), ("backend_unavailable", "coder"))
        self.assertIn("status 502", told["message"])

    def test_who_waits_for_room_is_told_why(self) -> None:
        """But not a key that may not use all routes: the reason names others."""
        self.servers.mode = "healthy"
        self.ask(CHAT, "chat", stream=False)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.fleet.backends["chat"].state, "ready")
        free, limited = self.ask(CHAT), self.ask(CHAT, key=b"limited")
        self.clock.advance(8)
        (beat,) = self.beats(free)
        self.assertEqual((beat["state"], beat["phase"], beat["eta"]), ("absent", "waiting for room", None))
        self.assertIn("chat is busy", beat["reason"])
        (beat,) = self.beats(limited)
        self.assertEqual((beat["phase"], "reason" in beat), ("waiting for room", False))

    def test_who_waits_too_long_is_told_when_to_come_back(self) -> None:
        """As is who finds too many held."""
        self.build(max_wait=5.0)
        self.learn()
        clients = [self.ask(CHAT, stream=False) for _ in range(4)]
        status, error, fields = clients.pop().error()
        self.assertEqual((status, error["code"], fields["retry-after"]), (429, "queue_full", "39"))
        self.clock.advance(5)
        for client in clients:
            status, error, fields = client.error()
            self.assertEqual((status, error["code"]), (504, "hold_timeout"))
            self.assertEqual((error["retry_after"], fields["retry-after"]), (34, "34"))
