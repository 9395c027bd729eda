"""Traces of a real proxy, as a collector gets them: OpenTelemetry's protobuf over HTTP."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.integration.conftest import Launch
from tests.integration.proxy import Proxy, at_once, chat, demo, free_port
from tests.integration.world import until
from tests.serving import serving

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(ThreadingHTTPServer):
    """Takes spans, and keeps them.

    :ivar resources: the attributes of what they came from.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.fields: list[dict[str, str]] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def named(self, name: str) -> list[Span]:
        """Those of that name that have come."""
        return [span for span in list(self.spans) if span.name == name]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        asked = ExportTraceServiceRequest.FromString(body)
        self.server.fields.append({"path": self.path, **dict(self.headers.items())})
        for resource in asked.resource_spans:
            about = resource.resource.attributes
            self.server.resources.append({one.key: one.value.string_value for one in about})
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nobody reads it."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """One that runs."""
    with serving(Collector()) as server:
        yield server


def traced(endpoint: str, **more: str) -> dict[str, str]:
    """What turns tracing on, with spans that leave soon."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100", **more}


def attributes(span: Span) -> dict[str, Any]:
    """Its attributes."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def echo(proxy: Proxy, fields: list[tuple[str, str]]) -> dict[str, list[str]]:
    """The header fields that a backend gets."""
    answer = proxy.ask("GET", "/a/echo", headers=fields)
    assert answer.status == 200, answer
    found: dict[str, list[str]] = {}
    for name, value in answer.json["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


def test_a_cold_request_is_told_to_the_collector(launch: Launch, collector: Collector) -> None:
    """Request, hold, start with its phases, first byte and stream; what the backend heard is among them."""
    environment = traced(collector.endpoint, OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test")
    proxy = launch({"a": demo("--start-delay", "0.3", "--token-delay", "0.02")}, environment=environment)
    parent = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
    answer = proxy.chat("a", stream=True, max_tokens=5, headers=parent)
    assert answer.status == 200
    (request,) = until(lambda: collector.named("POST /v1/chat/completions"))
    (start,) = until(lambda: collector.named("start a"))
    (hold,) = until(lambda: collector.named("hold"))
    (upstream,) = until(lambda: collector.named("POST a"))
    (first,), (stream,) = collector.named("first byte"), collector.named("stream")
    assert request.trace_id.hex() == TRACE
    assert request.parent_span_id.hex() == SPAN
    assert request.kind == Span.SPAN_KIND_SERVER
    assert {span.parent_span_id for span in (hold, upstream)} == {request.span_id}
    assert {span.parent_span_id for span in (first, stream)} == {upstream.span_id}
    assert [link.span_id for link in hold.links] == [start.span_id]
    assert [link.span_id for link in start.links] == [request.span_id]
    assert start.trace_id.hex() != TRACE
    assert "loading weights" in [event.name for event in start.events]
    seconds = {
        span.name: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 for span in collector.spans
    }
    held = float(answer.header("X-LLMProxy-Cold-Start") or 0)
    assert seconds["hold"] == pytest.approx(held, abs=0.01)
    assert 0.3 < seconds["start a"] <= seconds["hold"] + 0.05
    assert seconds["stream"] >= 0.08
    assert abs(time.time() - request.end_time_unix_nano / 1e9) < 20
    found = attributes(request)
    assert found["llmproxy.request_id"] == answer.header("X-Request-ID")
    assert (found["llmproxy.backend"], found["llmproxy.key"], found["http.response.status_code"]) == (
        "a",
        "site",
        200,
    )
    assert found["gen_ai.usage.output_tokens"] > 0
    (resource, *_) = collector.resources
    assert resource["service.name"] == "llmproxy"
    assert resource["deployment.environment.name"] == "test"
    assert collector.fields[0]["path"] == "/v1/traces"
    # Keys and what was said are in none of it.
    everything = b"".join(span.SerializeToString() for span in collector.spans)
    for secret in (b"Hello there", b"for-tests"):
        assert secret not in everything


def test_the_backend_hears_of_the_span_that_was_sent(launch: Launch, collector: Collector) -> None:
    """In ``traceparent``; without tracing it hears what the client said, to the letter."""
    proxy = launch({"a": demo()}, environment=traced(collector.endpoint, OTEL_SERVICE_NAME="mine"))
    heard = echo(proxy, [("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "vendor=1")])
    (upstream,) = until(lambda: collector.named("GET a"))
    assert heard["traceparent"] == [f"00-{TRACE}-{upstream.span_id.hex()}-01"]
    assert heard["tracestate"] == ["vendor=1"]
    assert collector.resources[0]["service.name"] == "mine"
    plain = launch({"a": demo()})
    said = [("traceparent", "anything at all"), ("tracestate", "vendor=1 , other=2")]
    heard = echo(plain, said)
    assert [
        (name, value) for name, values in heard.items() for value in values if name.startswith("trace")
    ] == said


def test_what_is_left_is_told_at_the_end(launch: Launch, collector: Collector) -> None:
    """A proxy that ends sends its last spans, and no later than it would end anyway."""
    environment = traced(collector.endpoint, OTEL_BSP_SCHEDULE_DELAY="600000")
    proxy = launch({"a": demo()}, environment=environment, stop_backends_on_exit=True)
    assert proxy.chat("a").status == 200
    assert collector.spans == []
    proxy.stop()
    assert len(collector.named("POST /v1/chat/completions")) == 1


def test_a_collector_that_is_away_is_no_harm(launch: Launch) -> None:
    """Requests are answered, the log says so without a flood, and the proxy ends in time."""
    environment = traced(f"http://127.0.0.1:{free_port()}", OTEL_EXPORTER_OTLP_TIMEOUT="1")
    proxy = launch({"a": demo()}, environment=environment, stop_backends_on_exit=True)
    for _ in range(5):
        assert proxy.chat("a").status == 200
    until(lambda: "OpenTelemetry: " in proxy.log())
    assert proxy.log().count("OpenTelemetry: ") == 1
    assert "Traceback" not in proxy.log()
    begun = time.monotonic()
    proxy.stop()
    assert time.monotonic() - begun < 10


def test_without_the_package_it_says_what_to_install(launch: Launch) -> None:
    """And serves all the same."""
    proxy = launch({"a": demo()}, start=False, environment=traced("http://127.0.0.1:9"))
    # A package of that name that has nothing in it stands before the real one.
    (proxy.folder / "opentelemetry").mkdir()
    (proxy.folder / "opentelemetry" / "__init__.py").write_text("")
    proxy.environment["PYTHONPATH"] = os.pathsep.join((str(proxy.folder), proxy.environ()["PYTHONPATH"]))
    proxy.start()
    until(lambda: "pip install 'llmproxy[otel]'" in proxy.log())
    assert proxy.chat("a").status == 200


def test_all_who_wait_are_linked_to_the_start(launch: Launch, collector: Collector) -> None:
    """Many that wait for one start: each is linked to it, and it to each of them."""
    proxy = launch({"a": demo("--start-delay", "0.5")}, environment=traced(collector.endpoint))
    answers = at_once(5, lambda _: proxy.ask("POST", "/v1/chat/completions", chat("a-model")).status)
    assert answers == [200] * 5
    until(lambda: len(collector.named("POST /v1/chat/completions")) == 5)
    (start,) = until(lambda: collector.named("start a"))
    asked = {span.span_id for span in collector.named("POST /v1/chat/completions")}
    assert {link.span_id for link in start.links} == asked
    for hold in collector.named("hold"):
        assert [link.span_id for link in hold.links] == [start.span_id]
