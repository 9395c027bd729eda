"""Spans of requests and starts, as OpenTelemetry's own exporter in memory gets them."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any
from unittest import mock

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent

from llmproxy.observe.spans import Spans
from llmproxy.observe.tracing import OFTEN, Quiet, trace, unwanted
from tests.front import FrontCase
from tests.inmemory import Far
from tests.unit.test_front import KEY, Client

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
CHAT = {"model": "coder3b", "messages": [], "stream": True}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'd\r\ndata: {"a":1}\r\n'
END = b"0\r\n\r\n"


def sent(far: Far) -> list[tuple[str, str]]:
    """The header fields of the last request that a backend got, as they were written."""
    head = far.received[far.received.rindex(b" HTTP/1.1\r\n") :]
    lines = head.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]


def named(far: Far, name: str) -> list[str]:
    """The values of one field that a backend got."""
    return [value for key, value in sent(far) if key.lower() == name]


class OffTests(FrontCase):
    """Nobody traces."""

    def test_trace_context_is_passed_on_unaltered(self) -> None:
        """As the client wrote it, whatever it says and however often."""
        self.warm("coder")
        fields = [
            ("TraceParent", PARENT),
            ("tracestate", "a=1,b=2"),
            ("Tracestate", " c=3"),
            ("traceparent", "nonsense"),
            ("baggage", "user=1"),
        ]
        head = "".join(f"{name}: {value}\r\n" for name, value in fields).encode()
        self.client().get(b"/coder/x", KEY + head)
        got = [(n, v) for n, v in sent(self.far()) if n.lower() in ("traceparent", "tracestate", "baggage")]
        self.assertEqual(got, [(name, value.strip()) for name, value in fields])

    def test_the_request_id_is_passed_on(self) -> None:
        """The client's own, or the one that the answer has; the log has the same."""
        self.warm("coder")
        for field, given in ((b"", None), (b"X-Request-Id: abc-1\r\n", "abc-1")):
            client = self.client().get(b"/coder/x", KEY + field)
            (told,) = named(self.far(), "x-request-id")
            self.far().send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Request-Id: theirs\r\n\r\n")
            _, headers, _ = client.answer()
            self.assertEqual(headers["x-request-id"], told)
            self.assertEqual(self.log.entries[-1].request_id, told)
            self.assertIn(given, (None, told))

    def test_nothing_of_opentelemetry_is_imported(self) -> None:
        """Nor of what speaks to it."""
        code = (
            "import sys, llmproxy.tap, llmproxy.web.resources;"
            "late = ('opentelemetry', 'llmproxy.observe.spans', 'llmproxy.observe.tracing', 'google');"
            "print([name for name in sys.modules if name.startswith(late)])"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        self.assertEqual(ran.stdout.strip(), "[]")


class SpanTests(FrontCase):
    """Somebody does."""

    def build(self, *arguments: Any, **settings: Any) -> None:
        super().build(*arguments, **settings)
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.spans = Spans(provider, self.fleet)
        self.site.tracer = self.spans

    def tearDown(self) -> None:
        self.assertEqual(self.spans._open, {})

    def told(self) -> dict[str, ReadableSpan]:
        """The spans that have ended since the last time, by name."""
        found = self.exporter.get_finished_spans()
        self.exporter.clear()
        by_name = {span.name: span for span in found}
        self.assertEqual(len(by_name), len(found), [span.name for span in found])
        return by_name

    def stream(self, headers: bytes = b"") -> Client:
        return self.client().post(b"/v1/chat/completions", CHAT, KEY + headers)

    def answer(self) -> None:
        """The backend's answer, in three seconds."""
        self.clock.advance(1)
        self.far().send(HEAD + EVENT)
        self.clock.advance(2)
        self.far().send(END)

    def test_a_request_has_its_parts(self) -> None:
        """The request, what was sent to the backend, and its first byte and stream, at their times."""
        self.warm("coder")
        self.told()
        begun = self.clock.seconds()
        self.stream(b"User-Agent: curl/8\r\n")
        self.answer()
        spans = self.told()
        self.assertEqual(set(spans), {"POST /v1/chat/completions", "POST coder", "first byte", "stream"})
        request, upstream = spans["POST /v1/chat/completions"], spans["POST coder"]
        self.assertEqual((request.kind, upstream.kind), (SpanKind.SERVER, SpanKind.CLIENT))
        self.assertIsNone(request.parent)
        for child, parent in (
            (upstream, request),
            (spans["first byte"], upstream),
            (spans["stream"], upstream),
        ):
            assert child.parent is not None
            self.assertEqual(child.parent.span_id, parent.context.span_id)
            self.assertEqual(child.context.trace_id, request.context.trace_id)
        for name, start, end in (
            ("POST /v1/chat/completions", 0, 3),
            ("POST coder", 0, 3),
            ("first byte", 0, 1),
            ("stream", 1, 3),
        ):
            times = (spans[name].start_time, spans[name].end_time)
            for told, wanted in zip(times, (begun + start, begun + end), strict=True):
                assert told is not None
                self.assertAlmostEqual(told / 1e9, wanted, 5)
        found = dict(request.attributes or {})
        entry = self.log.entries[-1]
        self.assertEqual(found.pop("http.response.body.size"), entry.sent)
        self.assertEqual(found.pop("http.request.body.size"), entry.received)
        self.assertEqual(found.pop("llmproxy.request_id"), entry.request_id)
        self.assertEqual(
            found,
            {
                "http.request.method": "POST",
                "url.path": "/v1/chat/completions",
                "url.scheme": "http",
                "network.protocol.version": "1.1",
                "user_agent.original": "curl/8",
                "http.route": "/v1/chat/completions",
                "http.response.status_code": 200,
                "client.address": entry.client,
                "llmproxy.backend": "coder",
                "llmproxy.state": "ready",
                "llmproxy.key": "me",
                "llmproxy.outcome": "ok",
                "llmproxy.held": 0.0,
                "gen_ai.usage.output_tokens": 1,
            },
        )
        self.assertEqual(entry.trace_id, f"{request.context.trace_id:032x}")

    def test_it_is_a_part_of_the_clients_trace(self) -> None:
        """And the backend's work is a part of what the proxy sent, with the state that came along."""
        self.warm("coder")
        self.told()
        self.stream(
            f"Traceparent: {PARENT}\r\ntracestate: a=1\r\nTracestate: b=2\r\nbaggage: c=3\r\n".encode()
        )
        self.answer()
        spans = self.told()
        request, upstream = spans["POST /v1/chat/completions"], spans["POST coder"]
        assert request.parent is not None
        self.assertTrue(request.parent.is_remote)
        self.assertEqual(f"{request.parent.span_id:016x}", SPAN)
        self.assertEqual(f"{request.context.trace_id:032x}", TRACE)
        far = self.far()
        self.assertEqual(named(far, "traceparent"), [f"00-{TRACE}-{upstream.context.span_id:016x}-01"])
        self.assertEqual(named(far, "tracestate"), ["a=1,b=2"])
        self.assertEqual(named(far, "baggage"), ["c=3"])
        self.assertEqual(self.log.entries[-1].trace_id, TRACE)

    def test_what_the_client_does_not_sample_is_not_told(self) -> None:
        """Its trace goes on to the backend as it is."""
        self.warm("coder")
        self.told()
        self.stream(f"traceparent: 00-{TRACE}-{SPAN}-00\r\n".encode())
        (told,) = named(self.far(), "traceparent")
        self.assertTrue(told.startswith(f"00-{TRACE}-") and told.endswith("-00"), told)
        self.answer()
        self.assertEqual(self.told(), {})
        self.assertEqual(self.log.entries[-1].trace_id, TRACE)

    def test_what_is_no_trace_context_is_none(self) -> None:
        """A new trace begins, and the backend hears of no other."""
        self.warm("coder")
        for fields in (
            "traceparent: nonsense\r\n",
            f"traceparent: {PARENT}\r\ntraceparent: {PARENT}\r\n",
            f"traceparent: 00-{'0' * 32}-{SPAN}-01\r\n",
        ):
            self.told()
            self.stream(fields.encode())
            self.answer()
            request = self.told()["POST /v1/chat/completions"]
            self.assertIsNone(request.parent)
            (told,) = named(self.far(), "traceparent")
            self.assertEqual(told[3:35], f"{request.context.trace_id:032x}")

    def test_a_hold_and_the_start_that_it_waited_for(self) -> None:
        """They name each other, whoever came first, and the start is a trace of its own."""
        self.stream()
        self.clock.advance(1)
        self.client().get(b"/coder/v1/other")
        self.clock.advance(1)
        self.ready()
        for far in self.servers.requests:
            far.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        found = self.exporter.get_finished_spans()
        holds = [span for span in found if span.name == "hold"]
        (start,) = [span for span in found if span.name == "start coder"]
        requests = [span for span in found if span.kind is SpanKind.SERVER]
        self.assertEqual(len(holds), 2)
        for hold in holds:
            self.assertEqual([link.context.span_id for link in hold.links], [start.context.span_id])
        self.assertEqual(
            {link.context.span_id for link in start.links}, {span.context.span_id for span in requests}
        )
        self.assertIsNone(start.parent)
        self.assertNotIn(start.context.trace_id, {span.context.trace_id for span in requests})
        self.assertEqual(
            dict(start.attributes or {}),
            {
                "llmproxy.backend": "coder",
                "llmproxy.why": "wanted",
                "llmproxy.to": "ready",
                "llmproxy.reason": "healthy",
            },
        )
        self.assertEqual(start.status.status_code, StatusCode.UNSET)
        assert start.end_time is not None
        assert start.start_time is not None
        self.assertGreater((start.end_time - start.start_time) / 1e9, 2.0)
        # Another one later has nothing to do with it.
        self.exporter.clear()
        self.stream()
        self.answer()
        self.assertNotIn("hold", self.told())

    def test_a_start_that_fails(self) -> None:
        """Is an error, and so is the request, with the code that its client got."""
        client = self.stream()
        self.clock.advance(1)
        self.world.exit("coder", 1)
        self.clock.advance(1)
        self.assertEqual(client.error()[0], 503)
        spans = self.told()
        start, request = spans["start coder"], spans["POST /v1/chat/completions"]
        self.assertEqual(start.status.status_code, StatusCode.ERROR)
        self.assertEqual(request.status.status_code, StatusCode.ERROR)
        attributes = request.attributes or {}
        self.assertEqual(attributes["error.type"], "backend_start_failed")
        self.assertEqual(attributes["http.response.status_code"], 503)
        self.assertNotIn("POST coder", spans)
        self.assertIn("hold", spans)

    def test_a_backend_that_dies(self) -> None:
        """Both the request and what was sent are errors."""
        self.warm("coder")
        self.told()
        client = self.stream()
        self.far().send(HEAD + EVENT)
        self.far().close(ConnectionResetError())
        client.leave()
        spans = self.told()
        for name in ("POST /v1/chat/completions", "POST coder"):
            self.assertEqual(spans[name].status.status_code, StatusCode.ERROR)
            self.assertEqual((spans[name].attributes or {})["error.type"], "backend_died")

    def test_a_client_that_leaves(self) -> None:
        """Its request is over, with no status where there was no answer."""
        self.warm("coder")
        self.told()
        self.stream().leave()
        spans = self.told()
        request = spans["POST /v1/chat/completions"].attributes or {}
        self.assertEqual(request["llmproxy.outcome"], "client_gone")
        self.assertNotIn("http.response.status_code", request)
        self.assertIn("POST coder", spans)
        self.assertNotIn("stream", spans)

    def test_what_reaches_no_backend(self) -> None:
        """A refusal is a span; the questions of those who watch are none."""
        self.client().get(b"/healthz", b"")
        self.client().get(b"/readyz", b"")
        self.assertEqual(self.told(), {})
        self.client().get(b"/coder/v1/x?key=secret", b"")
        spans = self.told()
        self.assertEqual(set(spans), {"GET"})
        attributes = spans["GET"].attributes or {}
        self.assertEqual(attributes["error.type"], "invalid_api_key")
        self.assertNotIn("secret", repr(attributes))

    def test_names_are_few(self) -> None:
        """Whatever clients ask for: a route and what is known behind it."""
        self.warm("coder")
        self.told()
        for method, path, name in (
            (b"GET", b"/coder/v1/models", "GET /coder/*"),
            (b"GET", b"/coder/some/thing/else", "GET /coder/*"),
            (b"POST", b"/coder/v1/completions", "POST /coder/v1/completions"),
            (b"PROPFIND", b"/coder/x", "HTTP /coder/*"),
            (b"GET", b"/v1/models/1", "GET /v1/*"),
            (b"GET", b"/who/knows", "GET"),
        ):
            self.client().send(b"%b %b HTTP/1.1\r\nHost: h\r\n%b\r\n" % (method, path, KEY))
            if self.servers.requests and not self.far().received.startswith(b"GET /health"):
                self.far().send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            spans = self.exporter.get_finished_spans()
            self.exporter.clear()
            (request,) = [span for span in spans if span.kind is SpanKind.SERVER]
            self.assertEqual(request.name, name)


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({}, ""),
        ({"OTEL_SERVICE_NAME": "x"}, ""),
        (ENDPOINT, None),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, None),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, None),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, ""),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, None),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "zipkin"}, "only otlp"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "4318"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "http/protobuf"),
    ],
)
def test_whether_it_is_wanted(environ: dict[str, str], why: str | None) -> None:
    """By OpenTelemetry's own variables; what cannot be done is told."""
    found = unwanted(environ)
    if why:
        assert found is not None
        assert why in found
    else:
        assert found == why


class BeginTests(FrontCase):
    """What is said when the proxy starts."""

    def begin(self, environ: dict[str, str]) -> list[str]:
        with capturedLogs() as events:
            self.assertIsNone(trace(environ, self.fleet, self.clock, lambda last: None))
        return [formatEvent(event) for event in events]

    def test_nothing_is_said_of_what_nobody_wants(self) -> None:
        """No line, no tracer."""
        self.assertEqual(self.begin({}), [])

    def test_what_cannot_be_done_is_told(self) -> None:
        """With what to do about it; the proxy runs all the same."""
        (told,) = self.begin({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
        self.assertIn("not traced", told)
        with mock.patch.dict(sys.modules, {"opentelemetry.exporter.otlp.proto.http.trace_exporter": None}):
            (told,) = self.begin(ENDPOINT)
        self.assertIn("pip install 'llmproxy[otel]'", told)


def test_complaints_are_told_now_and_then() -> None:
    """A collector that is away fails with each batch: one line a minute, in the reactor's thread."""
    reactor: Any = MemoryReactorClock()
    reactor.callFromThread = lambda call, *arguments: call(*arguments)
    logger = logging.Logger("opentelemetry.test")
    logger.addHandler(Quiet(reactor))
    with capturedLogs() as events:
        logger.info("not worth it")
        logger.error("Failed to export: %s\nTraceback", "refused")
        for _ in range(3):
            logger.warning("again")
        reactor.advance(OFTEN)
        logger.warning("and again")
    told = [formatEvent(event) for event in events]
    assert told == [
        "OpenTelemetry: Failed to export: refused",
        "OpenTelemetry: and again (and 3 more since the last time)",
    ]
