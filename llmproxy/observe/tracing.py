"""Whether requests are traced, by OpenTelemetry's own variables; imported when one of them is set."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llmproxy import __version__
from llmproxy.fleet.fleet import Fleet
from llmproxy.web.tracing import Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["LAST", "Quiet", "trace", "unwanted"]

LAST = 3.0
"""Seconds in which the last spans may leave when the proxy ends, also if the collector is away."""

OFTEN = 60.0
"""Seconds between two complaints of OpenTelemetry: a collector that is away has each batch fail."""

_log = Logger()


def unwanted(environ: Mapping[str, str]) -> str | None:
    """Why requests are not traced: empty when nobody has asked for it; None when they are."""

    def said(*names: str) -> str:
        return next((value for name in names if (value := environ.get(name, "").strip())), "")

    exporter = said("OTEL_TRACES_EXPORTER").lower()
    endpoint = said("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    protocol = said("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL").lower()
    if said("OTEL_SDK_DISABLED").lower() == "true" or exporter == "none" or not (endpoint or exporter):
        return ""
    if exporter not in ("", "otlp"):
        return f"OTEL_TRACES_EXPORTER is {exporter}, and only otlp is supported"
    if protocol not in ("", "http/protobuf"):
        return (
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}; use http/protobuf, on a collector mostly port 4318"
        )
    return None


def trace(
    environ: Mapping[str, str], fleet: Fleet, reactor: Any, ends: Callable[[Callable[[], None]], object]
) -> Tracer | None:
    """Begin to trace, if that is asked for and can be done; the log says so, or why not.

    To be called once the reactor runs: its thread would not survive the fork of a daemon.

    :param ends: is given what is to be called when everything else has ended.
    """
    why = unwanted(environ)
    if why is None:
        try:
            provider = _provider(environ)
            from llmproxy.observe.spans import Spans
        except ImportError as missing:
            why = f"{missing}; pip install 'llmproxy[otel]'"
        else:
            _listen(reactor)
            ends(lambda: _shut_down(provider))
            _log.info("requests are traced (OpenTelemetry, OTLP over HTTP)")
            return Spans(provider, fleet)
    if why:
        _log.warn("requests are not traced: {why}", why=why)
    return None


def _provider(environ: Mapping[str, str]) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    about: dict[str, str] = {"service.version": __version__}
    # What is said here would win over what the environment says.
    if not environ.get("OTEL_SERVICE_NAME") and "service.name=" not in environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        about["service.name"] = "llmproxy"
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    # It gathers, and sends from a thread of its own.
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _shut_down(provider: TracerProvider) -> None:
    """Send what there is, within :data:`LAST`."""
    last = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
    last.start()
    last.join(LAST)


def _listen(reactor: Any) -> None:
    """Have what OpenTelemetry complains of told by the log."""
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(Quiet(reactor))
    logger.propagate = False


class Quiet(logging.Handler):
    """Tells the log what OpenTelemetry says, from the reactor's thread, and not more often than needed.

    :param reactor: the time, and the thread of the log.
    """

    def __init__(self, reactor: Any) -> None:
        super().__init__(logging.WARNING)
        self._reactor = reactor
        self._next = 0.0
        self._missed = 0

    def emit(self, record: logging.LogRecord) -> None:
        """See :class:`logging.Handler`; any thread may call it."""
        # Its tracebacks are those of a library for HTTP: what happened is in the message.
        self._reactor.callFromThread(self._tell, record.getMessage().partition("\n")[0][:500])

    def _tell(self, message: str) -> None:
        clock: IReactorTime = self._reactor
        now = clock.seconds()
        if now < self._next:
            self._missed += 1
            return
        missed, self._missed, self._next = self._missed, 0, now + OFTEN
        more = f" (and {missed} more since the last time)" if missed else ""
        _log.warn("OpenTelemetry: {message}{more}", message=message, more=more)
