"""Spans of OpenTelemetry: one for each request, with its parts, and one for each start of a model.

Imported when tracing was asked for, and not before.  A request's parts are not measured here: when it is
over, its times are known, and the spans are made of them.  What has to be there before is what the backend is
told (``traceparent``), and what a start says of those who wait for it.

::

    POST /v1/chat/completions     server; child of whatever the client's traceparent names
      hold                        it waited for the model; linked to the start
      POST coder                  client; what the model's traceparent names
        first byte                until the head of the answer
        stream                    from then on
    start coder                   a trace of its own, linked to those who wait for it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from llmproxy import __version__
from llmproxy.backend.surroundings import Event, Transition
from llmproxy.engines.redaction import redact_known
from llmproxy.fleet.fleet import Fleet
from llmproxy.http.headers import Fields
from llmproxy.http.openai import is_inference_path

if TYPE_CHECKING:
    from llmproxy.web.accesslog import Entry
    from llmproxy.web.request import ProxyRequest

__all__ = ["Spans"]

_QUIET = frozenset(("/healthz", "/readyz", "/metrics"))
"""Asked all the time by those who watch: a span only when the answer is not a good one."""

_OWN = frozenset((b"traceparent", b"tracestate"))
_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
)
"""Those that HTTP's semantic conventions know; any other is _OTHER, and no name of a span."""

_FAULTS = frozenset(("backend_died", "error"))


@define(eq=False)
class _Of:
    """The spans of one request while it lasts.

    :ivar sent: what its backend is told.
    :ivar waits: the backend that it waits for, and how it is named in links.
    """

    span: Span
    sent: Span | None = None
    handed: float = 0.0
    waits: tuple[str, SpanContext] | None = None


@define(eq=False)
class _Start:
    """The present or last start of a backend."""

    span: Span
    ended: float | None = None


def _ns(seconds: float) -> int:
    return int(seconds * 1_000_000) * 1000


class Spans:
    """Makes them; a :class:`~llmproxy.web.tracing.Tracer`.

    :param fleet: whose starts are followed from now on.
    """

    def __init__(self, provider: TracerProvider, fleet: Fleet) -> None:
        self._tracer = provider.get_tracer("llmproxy", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._fleet = fleet
        self._open: dict[ProxyRequest, _Of] = {}
        self._starts: dict[str, _Start] = {}
        fleet.follow(self._heard)

    # -- requests -----------------------------------------------------------------------------------

    def held(self, request: ProxyRequest, backend: str) -> None:
        """See :class:`~llmproxy.web.tracing.Tracer`."""
        of = self._of(request)
        context = of.span.get_span_context()
        of.waits = (backend, context)
        start = self._starts.get(backend)
        if start is not None and start.ended is None and context.trace_flags.sampled:
            start.span.add_link(context)

    def handed(self, request: ProxyRequest) -> Fields:
        """See :class:`~llmproxy.web.tracing.Tracer`."""
        of = self._of(request)
        if of.sent is None:
            of.handed = request.site.clock.seconds()
            of.sent = self._tracer.start_span(
                "request", set_span_in_context(of.span), SpanKind.CLIENT, start_time=_ns(of.handed)
            )
        context = of.sent.get_span_context()
        own = [
            (
                b"traceparent",
                b"00-%032x-%016x-%02x" % (context.trace_id, context.span_id, context.trace_flags),
            )
        ]
        state = context.trace_state.to_header()
        if state:
            own.append((b"tracestate", state.encode("ascii", "replace")))
        kept = [field for field in request.fields.raw if field[0].lower() not in _OWN]
        return Fields(kept + own)

    def over(self, request: ProxyRequest, entry: Entry) -> None:
        """See :class:`~llmproxy.web.tracing.Tracer`."""
        of = self._open.pop(request, None)
        if of is None:
            if entry.path in _QUIET and entry.status == 200:
                return
            of = self._new(request)
        span = of.span
        entry.trace_id = f"{span.get_span_context().trace_id:032x}"
        begun, ended = request.arrived, entry.at
        if span.is_recording():
            self._describe(span, request, entry)
            if entry.held > 0.0:
                self._hold(span, entry, begun)
            if of.sent is not None:
                self._exchange(of.sent, entry, begun, of.handed)
        if of.sent is not None:
            of.sent.end(_ns(ended))
        span.end(_ns(ended))

    def _of(self, request: ProxyRequest) -> _Of:
        of = self._open.get(request)
        if of is None:
            of = self._open[request] = self._new(request)
        return of

    def _new(self, request: ProxyRequest) -> _Of:
        method = request.method.decode("latin-1")
        attributes: dict[str, AttributeValue] = {
            "http.request.method": method if method in _METHODS else "_OTHER",
            "url.path": redact_known(request.path.decode("latin-1"), self._fleet.secrets),
            "network.protocol.version": request.clientproto.partition(b"/")[2].decode("ascii"),
        }
        if method not in _METHODS:
            attributes["http.request.method_original"] = method
        if request.channel is not None:
            attributes["url.scheme"] = "https" if request.channel.origin.secure else "http"
        agent = request.fields.get(b"user-agent")
        if agent is not None:
            attributes["user_agent.original"] = agent.decode("latin-1")
        span = self._tracer.start_span(
            method,
            self._parent(request.fields),
            SpanKind.SERVER,
            attributes,
            start_time=_ns(request.arrived),
        )
        return _Of(span)

    def _parent(self, fields: Fields) -> Context:
        """What the client's request is a part of (W3C Trace Context); nothing when it says two."""
        told = fields.all(b"traceparent") if b"traceparent" in fields else []
        if len(told) != 1:
            return Context()
        carrier = {"traceparent": told[0].decode("latin-1").strip()}
        if b"tracestate" in fields:
            carrier["tracestate"] = b",".join(fields.all(b"tracestate")).decode("latin-1")
        return self._propagator.extract(carrier, Context())

    def _describe(self, span: Span, request: ProxyRequest, entry: Entry) -> None:
        route = _route(entry)
        if route:
            span.update_name(f"{entry.method if entry.method in _METHODS else 'HTTP'} {route}")
        tokens = entry.tokens
        known: dict[str, AttributeValue | None] = {
            "http.route": route or None,
            "http.response.status_code": entry.status or None,
            "http.request.body.size": entry.received,
            "http.response.body.size": entry.sent,
            "client.address": entry.client,
            "error.type": entry.error or (entry.outcome if entry.outcome != "ok" else None),
            "llmproxy.request_id": entry.request_id,
            "llmproxy.backend": entry.route if entry.route != "-" else None,
            "llmproxy.state": entry.state if entry.state != "-" else None,
            "llmproxy.key": entry.key if entry.key != "-" else None,
            "llmproxy.outcome": entry.outcome,
            "llmproxy.held": entry.held,
            "gen_ai.usage.input_tokens": tokens.prompt,
            "gen_ai.usage.output_tokens": tokens.completion,
        }
        span.set_attributes({name: value for name, value in known.items() if value is not None})
        if entry.status >= 500 or entry.outcome in _FAULTS:
            span.set_status(Status(StatusCode.ERROR))

    def _hold(self, span: Span, entry: Entry, begun: float) -> None:
        start = self._starts.get(entry.route)
        links = []
        if start is not None and (start.ended is None or start.ended >= begun):
            links.append(Link(start.span.get_span_context()))
        part = self._tracer.start_span(
            "hold",
            set_span_in_context(span),
            attributes={"llmproxy.backend": entry.route, "llmproxy.state": entry.state},
            links=links,
            start_time=_ns(begun),
        )
        part.end(_ns(begun + entry.held))

    def _exchange(self, sent: Span, entry: Entry, begun: float, handed: float) -> None:
        sent.update_name(f"{entry.method if entry.method in _METHODS else 'HTTP'} {entry.route}")
        sent.set_attribute("http.request.method", entry.method if entry.method in _METHODS else "_OTHER")
        sent.set_attribute("llmproxy.backend", entry.route)
        if entry.outcome in _FAULTS:
            sent.set_attribute("error.type", entry.outcome)
            sent.set_status(Status(StatusCode.ERROR))
        if entry.first_byte is None:
            return
        first = begun + entry.first_byte
        sent.set_attribute("http.response.status_code", entry.status)
        if entry.status >= 400:
            sent.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(sent)
        self._tracer.start_span("first byte", inside, start_time=_ns(handed)).end(_ns(first))
        self._tracer.start_span("stream", inside, start_time=_ns(first)).end(_ns(entry.at))

    # -- starts -------------------------------------------------------------------------------------

    def _heard(self, event: Event) -> None:
        start = self._starts.get(event.backend)
        running = start is not None and start.ended is None
        if not isinstance(event, Transition):
            if event.kind == "phase" and start is not None and running:
                start.span.add_event(event.reason, timestamp=_ns(event.at))
            return
        if start is not None and running and event.old in ("starting", "waking"):
            start.ended = event.at
            start.span.set_attributes({"llmproxy.to": event.new, "llmproxy.reason": event.reason})
            if event.new not in ("ready", "sleeping"):
                start.span.set_status(Status(StatusCode.ERROR, event.reason))
            start.span.end(_ns(event.at))
        if event.new in ("starting", "waking"):
            self._begin(event)

    def _begin(self, event: Transition) -> None:
        waiting = [of.waits[1] for of in self._open.values() if of.waits and of.waits[0] == event.backend]
        span = self._tracer.start_span(
            f"{'start' if event.new == 'starting' else 'wake'} {event.backend}",
            Context(),
            attributes={"llmproxy.backend": event.backend, "llmproxy.why": event.reason},
            links=[Link(context) for context in waiting if context.trace_flags.sampled],
            start_time=_ns(event.at),
        )
        self._starts[event.backend] = _Start(span)


def _route(entry: Entry) -> str:
    """The path as far as it is one of few: what spans are named and grouped by."""
    path = entry.path
    if is_inference_path(path) or path in _QUIET:
        return path
    first, _, rest = path[1:].partition("/")
    if entry.route != "-" and first.lower() == entry.route:
        return f"/{entry.route}/{rest}" if is_inference_path("/" + rest) else f"/{entry.route}/*"
    return f"/{first}/*" if first in ("api", "ui", "v1") else ""
