"""The front over HTTP/2: what a client sees, and what it may not do."""

from __future__ import annotations

import gc
import json
from typing import Any
from unittest.mock import patch

from h2.errors import ErrorCodes
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure

from llmproxy.config.model import Limits
from llmproxy.reactors.writing import Left
from llmproxy.web.h2.connection import H2Connection
from llmproxy.web.h2.machine import MOST_STREAMS
from llmproxy.web.h2.stream import FULL
from llmproxy.web.site import SPARE
from llmproxy.web.underway import open_requests
from tests.front import FrontCase
from tests.h2client import Answer, H2Client
from tests.unit.test_front import EVENTS, OK, TLSTransport

STREAM = json.dumps({"model": "coder3b", "stream": True}).encode()
PLAIN = json.dumps({"model": "coder3b"}).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Case(FrontCase):
    """A proxy that HTTP/2 is spoken with."""

    def h2(self, **how: Any) -> H2Client:
        client = H2Client(self.site, **how)
        self.addCleanup(client.leave)
        return client

    def tearDown(self) -> None:
        self.assertEqual(self.log.failures, [])


class AnswerTests(Case):
    """Requests and their answers."""

    def test_a_request_is_passed_on_as_http_1(self) -> None:
        """With the host that it is for, its length, and nothing of HTTP/2 in it; the key is ours."""
        self.warm("coder")
        client = self.h2()
        stream = client.ask(
            b"POST",
            b"/coder/v1/chat/completions?x=1",
            PLAIN,
            (b"content-type", b"application/json"),
            (b"cookie", b"a=1"),
            (b"cookie", b"b=2"),
            (b"te", b"trailers"),
        )
        head = self.far().received.partition(b"\r\n\r\n")[0].split(b"\r\n")
        self.assertEqual(head[0], b"POST /v1/chat/completions?x=1 HTTP/1.1")
        for line in (
            b"host: h",
            b"content-type: application/json",
            b"cookie: a=1; b=2",
            b"Authorization: Bearer own",
            b"X-Forwarded-For: 192.0.2.9",
            b"X-Forwarded-Proto: https",
            b"X-Forwarded-Host: h",
            b"Content-Length: %d" % len(PLAIN),
        ):
            self.assertEqual(head.count(line), 1, line)
        self.assertFalse([line for line in head if line.startswith((b":", b"te", b"Transfer"))])
        self.assertEqual(self.body(), PLAIN)
        self.far().send(OK.replace(b"\r\n\r\n", b"\r\nX-Odd: 1\r\nConnection: keep-alive\r\n\r\n"))
        answer = client.answer(stream)
        self.assertEqual((answer.status, answer.body, answer.ended), (200, b"ok", True))
        self.assertEqual(answer.fields[b"x-odd"], b"1")
        self.assertEqual(answer.fields[b"x-llmproxy-backend"], b"coder")
        self.assertEqual(answer.fields[b"content-length"], b"2")
        self.assertNotIn(b"connection", answer.fields)
        entry = self.log.entries[-1]
        self.assertEqual((entry.status, entry.outcome, entry.client), (200, "ok", "192.0.2.9"))

    def test_the_proxys_own_answers(self) -> None:
        """Refusals, JSON, redirects and heads alone come as they do by HTTP/1.1."""
        client = self.h2()
        cases: tuple[tuple[bytes, bytes, int], ...] = (
            (b"GET", b"/v1/models", 200),
            (b"HEAD", b"/v1/models", 200),
            (b"GET", b"/nothing/x", 404),
            (b"GET", b"/coder", 308),
            (b"GET", b"/healthz", 200),
            (b"OPTIONS", b"*", 204),
            (b"GET", b"/coder/../api/backends", 400),
            (b"GET", b"/x#y", 400),
        )
        for method, path, status in cases:
            answer = client.answer(client.ask(method, path))
            self.assertEqual((answer.status, answer.ended, answer.reset), (status, True, None), path)
            self.assertIn(b"x-request-id", answer.fields)
            self.assertEqual(bool(answer.body), method == b"GET" and status != 308, path)
        wrong = self.h2(key=b"wrong")
        answer = wrong.answer(wrong.get(b"/v1/models"))
        self.assertEqual((answer.status, json.loads(answer.body)["error"]["code"]), (401, "invalid_api_key"))
        self.assertEqual(client.answer(client.get(b"/healthz")).status, 200)

    def test_a_cold_start_with_heartbeats(self) -> None:
        """The stream begins with comments while it is held, and goes on with the engine's events."""
        client = self.h2()
        stream = client.ask(b"POST", b"/v1/chat/completions", STREAM)
        self.assertEqual(client.answer(stream).status, 0)
        self.clock.advance(8)
        answer = client.answer(stream)
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.fields[b"content-type"], b"text/event-stream; charset=utf-8")
        self.assertTrue(answer.body.startswith(b': llmproxy {"state"'), answer.body)
        self.ready()
        self.far().send(EVENTS + chunk(b"data: 1\n\n"))
        self.assertTrue(client.answer(stream).body.endswith(b"data: 1\n\n"))
        self.assertFalse(client.answer(stream).ended)
        self.far().send(chunk(b"data: 2\n\n") + b"0\r\n\r\n")
        answer = client.answer(stream)
        self.assertTrue(answer.body.endswith(b"data: 1\n\ndata: 2\n\n"))
        self.assertTrue(answer.ended)

    def test_each_event_leaves_as_it_comes(self) -> None:
        """Nothing of a stream waits for what follows."""
        self.warm("coder")
        client = self.h2()
        stream = client.ask(b"POST", b"/v1/chat/completions", STREAM)
        self.far().send(EVENTS)
        self.assertEqual(client.answer(stream).status, 200)
        for count in range(1, 4):
            self.far().send(chunk(b"data: x\n\n"))
            self.assertEqual(client.answer(stream).body.count(b"data"), count)

    def test_an_answer_that_breaks_off_has_no_clean_end(self) -> None:
        """What came is delivered, the error event too, and then the stream is reset."""
        self.warm("coder")
        client = self.h2()
        stream = client.ask(b"POST", b"/v1/chat/completions", STREAM)
        self.far().send(EVENTS + chunk(b"data: 1\n\n"))
        self.far().close()
        answer = client.answer(stream)
        self.assertIn(b"data: 1\n\n", answer.body)
        self.assertIn(b"backend_died", answer.body)
        self.assertEqual((answer.ended, answer.reset), (False, ErrorCodes.INTERNAL_ERROR))
        self.assertEqual(self.log.entries[-1].outcome, "backend_died")
        self.assertEqual(client.answer(client.get(b"/healthz")).status, 200)

    def test_bodies_without_a_length(self) -> None:
        """Their length is told to the backend, which gets them whole."""
        self.warm("coder")
        client = self.h2()
        body = b"x" * 50_000
        stream = client.ask(b"POST", b"/coder/upload", body)
        self.assertEqual(len(self.body()), 50_000)
        self.assertIn(b"Content-Length: 50000\r\n", self.far().received)
        self.far().send(OK)
        self.assertEqual(client.answer(stream).status, 200)
        # Nor has a request without a body one.
        client.get(b"/coder/x")
        self.assertNotIn(b"Content-Length", self.far().received.rpartition(b"GET /x")[2])

    def test_expect_100_continue(self) -> None:
        """It is told to go on, once its head is taken."""
        client = self.h2()
        stream = client.machine.get_next_available_stream_id()
        client.answers[stream] = Answer()
        waits = (b"expect", b"100-continue")
        client.machine.send_headers(stream, client.head(b"POST", b"/v1/chat/completions", waits))
        self.assertEqual(client.answer(stream).interim, [b"100"])

    def test_nothing_is_left_for_the_collector_of_cycles(self) -> None:
        """Of requests that are over, whatever came of them."""
        self.warm("coder")
        client = self.h2()

        def exchange() -> None:
            client.ask(b"POST", b"/v1/chat/completions", STREAM)
            self.far().send(EVENTS + chunk(b"data: ") + b"0\r\n\r\n")
            client.get(b"/coder/x")
            self.far().send(OK)
            client.cancel(client.get(b"/coder/x"))
            client.get(b"/nowhere")
            client.events.clear()
            client.answers.clear()

        exchange()
        exchange()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        exchange()
        self.assertEqual(gc.collect(), 0)

    def test_what_is_open_is_shown(self) -> None:
        """All requests of a connection, as they are answered at once."""
        self.warm("coder")
        client = self.h2()
        for _ in range(3):
            client.ask(b"POST", b"/v1/chat/completions", STREAM)
        self.assertEqual(len(list(open_requests(self.site))), 3)

    def test_a_trusted_proxy_speaks_for_its_clients(self) -> None:
        """Each stream has a client of its own."""
        self.site.believe(("192.0.2.0/24",), ())
        self.warm("coder")
        client = self.h2()
        for address in (b"198.51.100.1", b"198.51.100.2"):
            client.get(b"/coder/x", (b"x-forwarded-for", address))
            self.assertIn(b"X-Forwarded-For: %b\r\n" % address, self.far().received)
            self.far().send(OK)
            self.assertEqual(self.log.entries[-1].client.encode(), address)


class ManyTests(Case):
    """Streams beside each other."""

    def test_a_hundred_streams_at_once(self) -> None:
        """Each gets its own answer, in whatever order the backend has them ready."""
        self.warm("coder")
        client = self.h2()
        streams = [client.ask(b"POST", b"/coder/%d" % n, b"%d" % n) for n in range(MOST_STREAMS)]
        self.assertEqual(len(self.servers.requests), MOST_STREAMS)
        for far in reversed(self.servers.requests):
            number = far.received.rpartition(b"\r\n\r\n")[2]
            far.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(number), number))
        for count, stream in enumerate(streams):
            answer = client.answer(stream)
            self.assertEqual((answer.status, answer.body, answer.ended), (200, b"%d" % count, True))
        self.assertEqual(client.channel.streams, {})

    def test_a_stream_that_is_not_read_stalls_no_other(self) -> None:
        """Its backend is paused, and goes on when the client does; nothing is lost."""
        self.warm("coder")
        client = self.h2(reads=False)
        client.open_window(10_000_000)
        slow = client.ask(b"POST", b"/v1/chat/completions", STREAM)
        far = self.far()
        far.send(EVENTS)
        data = b"data: %b\n\n" % (b"x" * 991)
        sent = 0
        while far.transport.producerState == "producing":
            far.send(chunk(data))
            sent += len(data)
            self.assertLess(sent, 300_000)
        self.assertEqual(client.answer(slow).held, 65535)
        self.assertGreater(client.channel.streams[slow].request.channel.dataBuffer, b"")
        self.assertLess(len(client.channel.streams[slow].dataBuffer), FULL + 2 * len(data))
        other = client.ask(b"POST", b"/coder/x", b"1")
        self.far().send(OK)
        self.assertEqual((client.answer(other).status, client.answer(other).ended), (200, True))
        client.open_window(1_000_000, slow)
        self.assertEqual(far.transport.producerState, "producing")
        self.assertEqual(client.answer(slow).held, sent)
        far.send(b"0\r\n\r\n")
        answer = client.answer(slow)
        self.assertTrue(answer.ended)
        self.assertEqual(answer.body, data * (sent // len(data)))

    def test_an_answer_that_ends_before_it_is_read(self) -> None:
        """The end comes behind the rest; the backend is free meanwhile."""
        self.warm("coder")
        client = self.h2(reads=False)
        client.open_window(10_000_000)
        stream = client.get(b"/coder/x")
        body = b"y" * 100_000
        self.far().send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + body)
        self.assertEqual(self.backend("coder").admission.in_flight, 0)
        self.assertEqual((client.answer(stream).held, client.answer(stream).ended), (65535, False))
        self.assertGreater(client.channel.unsent(), 0)
        client.open_window(40_000, stream)
        self.assertEqual((client.answer(stream).body, client.answer(stream).ended), (body, True))
        self.assertEqual(client.channel.unsent(), 0)

    def test_the_connections_window_is_shared_fairly(self) -> None:
        """A frame of each in turn."""
        self.warm("coder")
        client = self.h2(reads=False)
        client.machine.update_settings({4: 200_000})
        client.flush()
        streams = []
        for _ in range(3):
            streams.append(client.get(b"/coder/x"))
            self.far().send(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + b"z" * 60_000)
        got = [client.answer(stream).held for stream in streams]
        self.assertEqual(got, [60_000, 5535, 0])
        client.open_window(65_536)
        more = [client.answer(stream).held - before for stream, before in zip(streams, got, strict=True)]
        self.assertEqual(more[0], 0)
        self.assertEqual(more[1], more[2])
        client.open_window(1_000_000)
        self.assertTrue(all(client.answer(stream).ended for stream in streams))

    def test_a_client_whose_socket_is_full(self) -> None:
        """Nothing more is sent nor read, and all goes on when there is room."""
        self.warm("coder")
        client = self.h2()
        client.open_window(10_000_000)
        client.machine.update_settings({4: 10_000_000})
        client.flush()
        stream = client.ask(b"POST", b"/v1/chat/completions", STREAM)
        far = self.far()
        far.send(EVENTS)
        client.answer(stream)
        client.channel.pauseProducing()
        self.assertEqual(client.transport.producerState, "paused")
        for _ in range(100):
            if far.transport.producerState == "producing":
                far.send(chunk(b"x" * 1000))
        self.assertEqual(far.transport.producerState, "paused")
        self.assertEqual(client.transport.value(), b"")
        client.channel.resumeProducing()
        self.assertEqual(client.transport.producerState, "producing")
        self.assertEqual(far.transport.producerState, "producing")
        self.assertGreater(len(client.answer(stream).body), FULL)

    def test_the_cancel_of_one_stream_ends_just_its_own_upstream_request(self) -> None:
        """The others go on, on the same connection."""
        self.warm("coder")
        client = self.h2()
        first = client.ask(b"POST", b"/v1/chat/completions", STREAM)
        second = client.ask(b"POST", b"/v1/chat/completions", STREAM)
        one, two = self.servers.requests[-2:]
        for far in (one, two):
            far.send(EVENTS + chunk(b"data: 1\n\n"))
        client.cancel(first)
        self.assertTrue(one.closed)
        self.assertFalse(two.closed)
        self.assertEqual(self.backend("coder").admission.in_flight, 1)
        self.assertEqual(self.log.entries[-1].outcome, "client_gone")
        two.send(b"0\r\n\r\n")
        self.assertTrue(client.answer(second).ended)

    def test_the_cancel_of_a_held_request_gives_its_place_up(self) -> None:
        """And that of one whose body is still coming costs nothing."""
        client = self.h2()
        held = client.ask(b"POST", b"/v1/chat/completions", STREAM)
        self.assertEqual(self.site.held, 1)
        client.cancel(held)
        self.assertEqual(self.site.held, 0)
        coming = client.machine.get_next_available_stream_id()
        client.machine.send_headers(coming, client.head(b"POST", b"/v1/chat/completions"))
        client.machine.send_data(coming, b"x" * 100)
        client.cancel(coming)
        self.assertEqual((self.site.room.memory, client.channel.streams), (0, {}))

    def test_a_hang_up_is_told_to_all(self) -> None:
        """Held and in flight alike."""
        self.warm("coder")
        client = self.h2()
        client.ask(b"POST", b"/v1/chat/completions", STREAM)
        client.ask(b"POST", b"/v1/chat/completions", json.dumps({"model": "sitechat"}).encode())
        self.assertEqual((self.site.held, self.backend("coder").admission.in_flight), (1, 1))
        client.leave()
        self.assertEqual((self.site.held, self.backend("coder").admission.in_flight), (0, 0))
        self.assertEqual(self.site.channels, set())

    def test_one_too_many_may_be_asked_elsewhere(self) -> None:
        """It is refused before anything was done for it."""
        self.warm("coder")
        client = self.h2()
        for _ in range(MOST_STREAMS):
            client.get(b"/coder/x")
        raw = Frames(1 + 2 * MOST_STREAMS)
        client.answers[raw.stream] = Answer()
        # The library would not let an honest client; nor does that of the server.
        client.raw(raw.request(client))
        self.assertTrue(client.transport.disconnecting)


class EndTests(Case):
    """How connections end."""

    def test_at_the_end_of_the_proxy_streams_finish(self) -> None:
        """The client is told to open no more; what it opens all the same may be asked elsewhere."""
        self.warm("coder")
        client = self.h2()
        stream = client.ask(b"POST", b"/v1/chat/completions", STREAM)
        self.far().send(EVENTS)
        idle = self.h2()
        self.site.close_idle()
        idle.flush()
        self.assertTrue(idle.transport.disconnecting)
        late = Frames(stream + 2)
        client.flush()
        (refused,) = client.crude(late.request(client))
        assert isinstance(refused, RstStreamFrame)
        self.assertEqual((refused.stream_id, refused.error_code), (late.stream, ErrorCodes.REFUSED_STREAM))
        assert client.goaway is not None
        self.assertEqual((client.goaway.error_code, client.goaway.last_stream_id), (0, stream))
        self.assertFalse(client.transport.disconnecting)
        self.far().send(chunk(b"data: 1\n\n") + b"0\r\n\r\n")
        data = bytes(client.transport.value())
        self.assertIn(b"data: 1\n\n", data)
        self.assertTrue(client.transport.disconnecting)

    def test_an_idle_connection_is_ended(self) -> None:
        """After ``idle_timeout``; one with a request held is not."""
        client, busy = self.h2(), self.h2()
        busy.ask(b"POST", b"/v1/chat/completions", STREAM)
        for _ in range(20):
            self.clock.advance(5)
        self.assertTrue(client.transport.disconnecting)
        client.flush()
        assert client.goaway is not None
        self.assertEqual(client.goaway.error_code, 0)
        self.assertFalse(busy.transport.disconnecting)

    def test_a_body_that_does_not_come(self) -> None:
        """408, on its own stream alone."""
        client = self.h2()
        stream = client.machine.get_next_available_stream_id()
        client.answers[stream] = Answer()
        client.machine.send_headers(stream, client.head(b"POST", b"/v1/chat/completions"))
        client.flush()
        for _ in range(60):
            self.clock.advance(5)
        answer = client.answer(stream)
        self.assertEqual(answer.status, 408)
        self.assertTrue(answer.ended)

    def test_an_answer_that_is_not_taken(self) -> None:
        """Its stream is reset after ``write_timeout``, and the connection goes on."""
        self.site.limits = Limits(write_timeout=20.0)
        self.warm("coder")
        client = self.h2(reads=False)
        client.open_window(10_000_000)
        stream = client.get(b"/coder/x")
        self.far().send(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"z" * 100_000)
        for _ in range(4):
            self.clock.advance(5)
        self.assertIsNone(client.answer(stream).reset)
        for _ in range(4):
            self.clock.advance(5)
        self.assertEqual(client.answer(stream).reset, ErrorCodes.CANCEL)
        self.assertEqual(self.log.entries[-1].error, "write_timeout")
        self.assertTrue(self.far().closed)
        self.assertEqual(client.answer(client.get(b"/healthz")).status, 200)

    def test_past_max_connections_it_is_told(self) -> None:
        """In an answer, and then the connection ends."""
        self.site.limits = Limits(max_connections=1)
        self.h2()
        client = self.h2()
        answer = client.answer(client.get(b"/healthz"))
        self.assertEqual(answer.status, 503)
        self.assertTrue(client.transport.disconnecting)

    def test_a_client_that_says_goodbye(self) -> None:
        """What it has open is answered, and then the connection ends; at once when nothing is open."""
        self.warm("coder")
        client, idle = self.h2(), self.h2()
        client.get(b"/coder/x")
        for one in (client, idle):
            one.machine.close_connection()
            one.flush()
        self.assertTrue(idle.transport.disconnecting)
        self.assertFalse(client.transport.disconnecting)
        self.far().send(OK)
        self.assertIn(b"ok", client.transport.value())
        self.assertTrue(client.transport.disconnecting)
        self.assertEqual(client.channel.streams, {})

    def test_many_goodbyes(self) -> None:
        """To say it once is enough; who goes on and on is let go."""
        self.warm("coder")
        client = self.h2()
        client.get(b"/coder/x")
        goodbye = GoAwayFrame(0, last_stream_id=0).serialize()
        client.crude(goodbye)
        self.assertFalse(client.transport.disconnecting)
        frames = client.crude(goodbye * 10_000)
        self.assertIsInstance(frames[-1], GoAwayFrame)
        self.assertTrue(client.transport.disconnecting)
        self.assertTrue(self.far().closed)

    def test_one_that_comes_at_the_end_of_the_proxy(self) -> None:
        """A connection that was accepted just then is told to go elsewhere, and ends."""
        self.site.close_idle()
        client = self.h2()
        assert client.goaway is not None
        self.assertEqual((client.goaway.error_code, client.goaway.last_stream_id), (0, 0))
        self.assertTrue(client.transport.disconnecting)
        client.channel.close_if_idle()
        self.assertEqual(client.transport.value(), b"")

    def test_far_past_max_connections_nobody_is_told(self) -> None:
        """Whoever comes with very many gets no answer, so that to tell them costs nothing either."""
        self.site.limits = Limits(max_connections=1)
        clients = [self.h2() for _ in range(SPARE + 3)]
        aborted = [getattr(client.transport, "aborted", False) for client in clients]
        self.assertEqual(aborted, [False] * (SPARE + 1) + [True] * 2)

    def test_one_that_is_turned_away_and_asks_nothing(self) -> None:
        """It is not waited for: others want its place."""
        self.site.limits = Limits(max_connections=1)
        self.h2()
        client = self.h2()
        self.assertFalse(client.transport.disconnecting)
        for _ in range(10):
            self.clock.advance(5)
        self.assertTrue(client.transport.aborted)

    def test_a_socket_that_takes_nothing_more(self) -> None:
        """After ``write_timeout`` the whole connection ends, and the log says why of each request on it."""
        self.site.limits = Limits(write_timeout=20.0)
        self.warm("coder")
        client = self.h2()
        client.get(b"/coder/x")
        with patch("llmproxy.web.patience.left", return_value=Left(b"", 1000)):
            for _ in range(8):
                self.clock.advance(5)
        self.assertTrue(client.transport.aborted)
        client.leave()
        self.assertEqual(self.log.entries[-1].error, "write_timeout")
        self.assertTrue(self.far().closed)

    def test_no_least_rate(self) -> None:
        """Without ``min_body_rate`` a body has its time, however much of it has come."""
        self.site.limits = Limits(body_timeout=20.0, min_body_rate=0)
        client = self.h2()
        stream = client.machine.get_next_available_stream_id()
        client.answers[stream] = Answer()
        client.machine.send_headers(stream, client.head(b"POST", b"/v1/chat/completions"))
        client.machine.send_data(stream, b"x" * 10_000)
        client.flush()
        for _ in range(3):
            self.clock.advance(5)
        self.assertEqual(client.answer(stream).status, 0)
        for _ in range(6):
            self.clock.advance(5)
        self.assertEqual(client.answer(stream).status, 408)


class LimitTests(Case):
    """Requests that are not taken."""

    def test_whom_it_is_for_must_be_said(self) -> None:
        """400 without an authority, as HTTP/1.1 has it of Host."""
        client = self.h2()
        stream = client.machine.get_next_available_stream_id()
        client.answers[stream] = Answer()
        fields = [one for one in client.head(b"GET", b"/v1/models") if one[0] != b":authority"]
        client.machine.config.validate_outbound_headers = False
        client.machine.send_headers(stream, fields, end_stream=True)
        answer = client.answer(stream)
        self.assertEqual(answer.status, 400)
        self.assertIn("Host", json.loads(answer.body)["error"]["message"])

    def refused(self, status: int, *fields: tuple[bytes, bytes], path: bytes = b"/v1/models") -> None:
        client = self.h2()
        answer = client.answer(client.get(path, *fields))
        self.assertEqual((answer.status, answer.ended), (status, True))
        self.assertEqual(client.answer(client.get(b"/healthz")).status, 200)

    def test_heads_are_bounded(self) -> None:
        """By their size, the number of fields, and the length of the target; others go on."""
        self.refused(431, (b"x-a", b"y" * 20_000), (b"x-b", b"y" * 20_000))
        self.refused(431, *((b"x-%d" % n, b"") for n in range(201)))
        self.refused(414, path=b"/" + b"x" * 17_000)

    def test_bodies_are_bounded(self) -> None:
        """By what they say of themselves, and by what comes; the rest is not wanted."""
        client = self.h2()
        told = client.machine.get_next_available_stream_id()
        client.answers[told] = Answer()
        client.machine.send_headers(told, client.head(b"POST", b"/coder/x", (b"content-length", b"200000")))
        answer = client.answer(told)
        self.assertEqual((answer.status, answer.ended), (413, True))
        self.assertEqual(json.loads(answer.body)["error"]["code"], "body_too_large")
        stream = client.machine.get_next_available_stream_id()
        client.answers[stream] = Answer()
        client.machine.send_headers(stream, client.head(b"POST", b"/coder/x"))
        for _ in range(10):
            if client.answer(stream).status:
                break
            client.machine.send_data(stream, b"x" * 16_000)
        self.assertEqual(client.answer(stream).status, 413)
        self.assertEqual(self.site.room.memory + self.site.room.disk, 0)
        self.assertEqual(client.answer(client.get(b"/healthz")).status, 200)

    def test_a_websocket_is_not_served(self) -> None:
        """501, which says how; RFC 8441 is not offered."""
        client = self.h2()
        frames = Frames(1)
        for fields in (
            [(b":protocol", b"websocket"), (b":scheme", b"https"), (b":path", b"/coder/x")],
            [],
        ):
            client.answers[frames.stream] = Answer()
            client.machine.get_next_available_stream_id()
            client.machine.send_headers(frames.stream, client.head(b"GET", b"/")[:4], end_stream=False)
            client.machine.data_to_send()
            client.raw(frames.head([(b":method", b"CONNECT"), *fields, (b":authority", b"h")]))
            answer = client.answers[frames.stream]
            self.assertEqual(answer.status, 501)
            self.assertIn("HTTP/1.1", json.loads(answer.body)["error"]["hint"])
            frames.stream += 2


class Frames:
    """Frames that no honest client sends.

    :ivar stream: the number of the next stream.
    """

    def __init__(self, stream: int = 1) -> None:
        self.stream = stream
        self.encoder = Encoder()

    def head(self, fields: Any, flags: tuple[str, ...] = ("END_HEADERS", "END_STREAM")) -> bytes:
        frame = HeadersFrame(self.stream, self.encoder.encode(fields))
        for flag in flags:
            frame.flags.add(flag)
        return bytes(frame.serialize())

    def request(self, client: H2Client, path: bytes = b"/coder/x") -> bytes:
        return self.head(client.head(b"GET", path))


class FloodTests(Case):
    """Work for nothing."""

    def flooded(self, frames: list[Frame] | bytes, count: int, what: str) -> H2Client:
        client = self.h2()
        data = frames if isinstance(frames, bytes) else b"".join(bytes(frame.serialize()) for frame in frames)
        with capturedLogs() as events:
            for _ in range(count):
                client.raw(data)
                if client.transport.disconnecting:
                    break
        self.assertTrue(client.transport.disconnecting)
        assert client.goaway is not None
        self.assertEqual(client.goaway.error_code, ErrorCodes.ENHANCE_YOUR_CALM)
        (line,) = [event for event in events if event["log_level"] is LogLevel.warn]
        self.assertIn(what, line["log_format"].format(**line))
        return client

    def test_rapid_reset(self) -> None:
        """CVE-2023-44487: the connection is ended; few of the requests have got as far as the backend."""
        self.warm("coder")
        client = self.h2()
        frames = Frames()
        sent = 0
        while not client.transport.disconnecting and sent < 1000:
            reset = RstStreamFrame(frames.stream, error_code=8)
            client.raw(frames.request(client) + bytes(reset.serialize()))
            frames.stream += 2
            sent += 1
        self.assertLess(sent, 300)
        assert client.goaway is not None
        self.assertEqual(client.goaway.error_code, ErrorCodes.ENHANCE_YOUR_CALM)
        self.assertEqual(self.servers.requests, [])
        self.assertEqual(self.backend("coder").admission.in_flight, 0)
        self.clock.advance(2)
        self.assertTrue(client.transport.aborted)

    def test_resets_one_at_a_time(self) -> None:
        """Each in a piece of its own: what was begun is ended, and then they are too many."""
        self.warm("coder")
        client = self.h2()
        count = 0
        while count < 400 and not client.transport.disconnecting:
            count += 1
            stream = client.get(b"/coder/x")
            client.cancel(stream)
        self.assertTrue(150 < count < 300, count)
        self.assertEqual(self.backend("coder").admission.in_flight, 0)
        self.assertTrue(all(far.closed for far in self.servers.requests))

    def test_now_and_then_one_may_be_cancelled(self) -> None:
        """However long the connection lives."""
        self.warm("coder")
        client = self.h2()
        for _ in range(1000):
            client.cancel(client.get(b"/coder/x"))
            self.clock.advance(0.1)
        self.assertFalse(client.transport.disconnecting)

    def test_streams_that_we_are_made_to_reset(self) -> None:
        """CVE-2025-8671: they count like those that the client resets, and what was begun for them ends."""
        self.warm("coder")
        client = self.h2()
        frames = Frames()
        count = 0
        while count < 400 and not client.transport.disconnecting:
            count += 1
            request = frames.request(client)
            client.crude(request)
            window = WindowUpdateFrame(frames.stream, window_increment=2**31 - 1)
            (*_, last) = client.crude(bytes(window.serialize()))
            self.assertEqual(self.backend("coder").admission.in_flight, 0)
            frames.stream += 2
        self.assertIsInstance(last, GoAwayFrame)
        self.assertTrue(150 < count < 300, count)

    def test_malformed_requests_count_too(self) -> None:
        """Each is reset, and at last the connection is ended."""
        client = self.h2()
        frames = Frames()
        count = 0
        while count < 400 and not client.transport.disconnecting:
            count += 1
            said = client.crude(frames.head(client.head(b"GET", b"/", (b"connection", b"x"))))
            frames.stream += 2
        self.assertIsInstance(said[0], RstStreamFrame)
        self.assertIsInstance(said[-1], GoAwayFrame)
        self.assertTrue(150 < count < 300, count)

    def test_ping(self) -> None:
        """CVE-2019-9512."""
        self.flooded([PingFrame(0, b"12345678")] * 100, 20, "PING")

    def test_settings(self) -> None:
        """CVE-2019-9515."""
        self.flooded([SettingsFrame(0, {4: 65535})] * 100, 20, "SETTINGS")

    def test_priority(self) -> None:
        """CVE-2019-9513."""
        frame = PriorityFrame(1)
        frame.depends_on, frame.stream_weight = 3, 5
        self.flooded([frame] * 100, 20, "PRIORITY")

    def test_window_updates(self) -> None:
        """More than there can be reason for."""
        self.flooded([WindowUpdateFrame(0, window_increment=1)] * 100, 40, "WINDOW_UPDATE")

    def test_unknown_frames(self) -> None:
        """Each is to be ignored, and they are not for nothing."""
        self.flooded(b"\0\0\1\xee\0\0\0\0\0x" * 100, 20, "unknown")

    def test_empty_data(self) -> None:
        """CVE-2019-9518."""
        client = self.h2()
        frames = Frames()
        client.raw(frames.head(client.head(b"POST", b"/coder/x"), ("END_HEADERS",)))
        data = bytes(DataFrame(1, b"").serialize()) * 100
        for _ in range(20):
            client.raw(data)
        assert client.goaway is not None
        self.assertEqual(client.goaway.error_code, ErrorCodes.ENHANCE_YOUR_CALM)

    def test_a_header_block_without_an_end(self) -> None:
        """CONTINUATION for ever: it is bounded by what a head may be, not by the number of frames."""
        client = self.h2()
        begun = HeadersFrame(1, b"\0")
        client.raw(bytes(begun.serialize()))
        sent = 0
        while not client.transport.disconnecting and sent < 1_000_000:
            frame = bytes(ContinuationFrame(1, b"x" * 16_000).serialize())
            client.raw(frame)
            sent += len(frame)
        self.assertLess(sent, 150_000)
        small = self.h2()
        small.raw(bytes(begun.serialize()))
        count = 0
        while count < 1000 and not small.transport.disconnecting:
            count += 1
            small.raw(bytes(ContinuationFrame(1, b"").serialize()))
        self.assertLess(count, 100)

    def test_a_header_bomb(self) -> None:
        """A small block that stands for a large head: what it comes to is bounded."""
        client = self.h2()
        frames = Frames()
        frames.encoder.encode([(b"x-large", b"y" * 3900)])
        bomb = frames.head([*client.head(b"GET", b"/"), *[(b"x-large", b"y" * 3900)] * 1000])
        client.raw(bomb[:3] + bomb[3:])
        self.assertTrue(client.transport.disconnecting)

    def test_what_is_no_http_2(self) -> None:
        """Is answered with GOAWAY, and the connection ends; so does one with a fault in a frame."""
        for data in (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"\0\0\0", b"\xff" * 100):
            connection = H2Connection(self.site)
            transport = TLSTransport()
            connection.makeConnection(transport)
            connection.dataReceived(data)
            if data != b"\0\0\0":
                self.assertTrue(transport.disconnecting)
            connection.dataReceived(b"more")
            connection.connectionLost(Failure(ConnectionError()))


FRAMES = st.builds(
    lambda kind, flags, stream, body: (
        len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body
    ),
    st.integers(0, 11),
    st.sampled_from((0, 1, 4, 5, 8, 0x20, 0x2D, 255)),
    st.sampled_from((0, 1, 3, 2, 5)),
    st.binary(max_size=40),
)
REAL = st.builds(
    lambda stream, path, method: (stream, path, method),
    st.sampled_from((1, 3, 5, 7)),
    st.sampled_from((b"/coder/x", b"/v1/models", b"/v1/chat/completions", b"*")),
    st.sampled_from((b"GET", b"POST", b"HEAD")),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(FRAMES, REAL), max_size=12), st.integers(1, 40))
def test_any_frames_are_survived(frames: list[Any], size: int) -> None:
    """Whatever comes, in whatever pieces: no fault of ours is logged, and nothing is left when it is over."""
    case = Case()
    case.setUp()
    case.warm("coder")
    client = H2Client(case.site)
    encoder = Encoder()
    wire = b""
    for frame in frames:
        if isinstance(frame, bytes):
            wire += frame
        else:
            stream, path, method = frame
            made = HeadersFrame(stream, encoder.encode(client.head(method, path)))
            made.flags.add("END_HEADERS")
            made.flags.add("END_STREAM")
            wire += bytes(made.serialize())
    for at in range(0, len(wire), size):
        client.channel.dataReceived(wire[at : at + size])
    for far in case.servers.requests:
        far.send(OK)
    client.leave()
    assert case.log.failures == []
    assert case.site.channels == set()
    assert case.site.held == 0
    assert case.backend("coder").admission.in_flight == 0
    assert case.site.room.memory == 0
