"""``/metrics``: what Prometheus is told.

What is so now is read from the fleet when somebody asks.  What has happened is counted from the requests
that are over, which are handed in by the batch, and from the fleet's transitions.  No label holds anything
that a client chose, and so what is kept is bounded by the backends that were ever configured.

A backend that is configured no more has no gauges; its counters and histograms stay until the proxy ends, as
they would in Prometheus's own libraries: removed, a counter that comes back would look like a restart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, cast, get_args

from attrs import define, field
from prometheus_client import CollectorRegistry, GCCollector, Info, PlatformCollector, ProcessCollector
from prometheus_client import exposition as plain
from prometheus_client.openmetrics import exposition as openmetrics
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from llmproxy.errors import Refusal
from llmproxy.fleet.fleet import Fleet
from llmproxy.fleet.lifecycle import State
from llmproxy.web.exposition import Buckets, Histogram, Page, labels
from llmproxy.web.starts import START_SECONDS, STARTS, Starts

if TYPE_CHECKING:
    from llmproxy.web.request import ProxyRequest

__all__ = ["NO_BACKEND", "Finished", "Metrics", "MetricsResource"]

NO_BACKEND = "-"
"""The label ``backend`` of requests that were about none, such as ``/healthz``; the access log's route."""

_HOLD = Buckets(0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_FIRST_BYTE = Buckets(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_REQUEST = Buckets(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Finished(Protocol):
    """What is read of a request that is over; :class:`llmproxy.web.accesslog.Entry` is one."""

    @property
    def route(self) -> str:
        """Name of its backend, or :data:`NO_BACKEND`."""

    @property
    def outcome(self) -> str:
        """``ok``, ``refused``, ``client_gone``, ``backend_died`` or ``error``."""

    @property
    def status(self) -> int:
        """HTTP status of the answer; 0 when there was none."""

    @property
    def held(self) -> float:
        """Seconds that it waited for its backend; 0 when it did not."""

    @property
    def first_byte(self) -> float | None:
        """Seconds from the request to the first byte of the backend's answer; None when none came."""

    @property
    def seconds(self) -> float:
        """Seconds from the request to the end of the answer."""


@define(eq=False)
class _Times:
    """The durations of one backend's requests."""

    hold: Histogram = field(factory=lambda: Histogram(_HOLD))
    first_byte: Histogram = field(factory=lambda: Histogram(_FIRST_BYTE))
    request: Histogram = field(factory=lambda: Histogram(_REQUEST))


class Metrics:
    """Counts what happens in one proxy.

    :param fleet: the backends; it is followed from now on, so make this before the fleet starts.
    :param version: of the proxy.
    :ivar registry: what the library itself collects: process, garbage collector, Python, build.
    """

    def __init__(self, fleet: Fleet, version: str) -> None:
        self.fleet = fleet
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        build = Info("llmproxy_build", "The version of llmproxy; always 1.", registry=self.registry)
        build.info({"version": version})
        self._starts = Starts(fleet)
        self._requests: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self._times: dict[str, _Times] = {}

    def observe(self, entries: Sequence[Finished]) -> None:
        """Count requests that are over, each of them once."""
        requests, known = self._requests, self._times
        for entry in entries:
            route = entry.route
            times = known.get(route)
            if times is None:
                times = self._new(route)
            if times is None:
                requests[NO_BACKEND, entry.outcome, entry.status] += 1
                continue
            outcome = entry.outcome
            requests[route, outcome, entry.status] += 1
            if entry.held > 0.0:
                times.hold.observe(entry.held)
            first_byte = entry.first_byte
            if first_byte is not None:
                times.first_byte.observe(first_byte)
            if outcome != "refused":
                times.request.observe(entry.seconds)

    def _new(self, route: str) -> _Times | None:
        """Begin with a backend; None when there is none of that name: names come from configuration only."""
        if route not in self.fleet.backends:
            return None
        times = self._times[route] = _Times()
        return times

    def render(self, accept: str) -> tuple[bytes, str]:
        """Everything, in the format that the scraper asks for.

        :param accept: its ``Accept`` header.
        :return: body and ``Content-Type``.
        """
        wanted = _wants_openmetrics(accept)
        page = Page(openmetrics=wanted)
        self._write_fleet(page)
        self._write_requests(page)
        self._write_starts(page)
        own = page.text.encode("utf-8")
        if wanted:
            # It ends with the mark of the end, and so comes last.
            return own + openmetrics.generate_latest(self.registry), openmetrics.CONTENT_TYPE_LATEST
        return own + plain.generate_latest(self.registry), plain.CONTENT_TYPE_PLAIN_0_0_4

    def _write_fleet(self, page: Page) -> None:
        backends = [(labels(backend=name), backend) for name, backend in self.fleet.backends.items()]
        states = [(state, labels(state=state)) for state in get_args(State)]
        page.gauge(
            "llmproxy_backend_state",
            "Whether the backend is in this state; one of them is 1.",
            (
                (f"{about},{label}", 1 if backend.state == state else 0)
                for about, backend in backends
                for state, label in states
            ),
        )
        page.gauge(
            "llmproxy_in_flight",
            "Requests handed to the backend and not finished.",
            ((about, backend.admission.in_flight) for about, backend in backends),
        )
        page.gauge(
            "llmproxy_waiting",
            "Requests held until the backend is ready.",
            ((about, backend.admission.waiting) for about, backend in backends),
        )

    def _write_requests(self, page: Page) -> None:
        page.counter(
            "llmproxy_requests_total",
            "Requests that are over, by outcome (ok, refused, client_gone, backend_died, error) and HTTP"
            " status; code 0: no answer was begun; backend -: it was about none.",
            (
                (labels(backend=route, outcome=outcome, code=str(status)), count)
                for (route, outcome, status), count in self._requests.items()
            ),
        )
        page.histogram(
            "llmproxy_hold_seconds",
            "Seconds that requests were held for the backend; only those that were.",
            self._each(lambda times: times.hold),
        )
        page.histogram(
            "llmproxy_time_to_first_byte_seconds",
            "Seconds from the request to the first byte of the backend's answer, the hold included.",
            self._each(lambda times: times.first_byte),
        )
        page.histogram(
            "llmproxy_request_seconds",
            "Seconds from the request to the end of the answer, the hold included; without refused requests.",
            self._each(lambda times: times.request),
        )

    def _each(self, histogram: Callable[[_Times], Histogram]) -> Iterator[tuple[str, Histogram]]:
        for route, times in self._times.items():
            yield labels(backend=route), histogram(times)

    def _write_starts(self, page: Page) -> None:
        page.counter(
            "llmproxy_starts_total",
            STARTS,
            (
                (labels(backend=backend, result=result), count)
                for (backend, result), count in self._starts.results().items()
            ),
        )
        page.histogram(
            "llmproxy_start_seconds",
            START_SECONDS,
            (
                (labels(backend=backend, phase=phase), histogram)
                for (backend, phase), histogram in self._starts.seconds().items()
            ),
        )


def _wants_openmetrics(accept: str) -> bool:
    try:
        _, kind = plain.choose_encoder(accept)
    except TypeError:  # the library compares version numbers; one with a letter in it has no order
        return False
    # Only the kind is taken from there: all names are plain ones, so that no other escaping is of use.
    return kind.startswith("application/openmetrics-text")


class MetricsResource(Resource):
    """``/metrics``, for everybody or for administrators, as ``metrics_access`` has it.

    :param settle: called before each answer; it hands all requests that are over to ``metrics.observe``.
    """

    isLeaf = True

    def __init__(self, metrics: Metrics, settle: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._metrics = metrics
        self._settle = settle

    def render(self, request: Request) -> int:
        """See :class:`twisted.web.resource.IResource`."""
        proxied = cast("ProxyRequest", request)
        try:
            self._serve(proxied)
        except Refusal as refusal:
            proxied.refuse(refusal)
        return NOT_DONE_YET

    def _serve(self, request: ProxyRequest) -> None:
        if self._metrics.fleet.config.metrics_access == "admin":
            authenticator = request.site.authenticator
            request.key = authenticator.authenticate(request.fields, request.arrived)
            authenticator.require_admin(request.key)
        if any(request.postpath or ()):
            raise Refusal(404, "route_not_found", "There is no such path.", kind="invalid_request_error")
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"Allow", b"GET, HEAD")
            raise Refusal(405, "invalid_request", "This path takes GET.", kind="invalid_request_error")
        self._settle()
        body, kind = self._metrics.render(request.fields.get(b"accept", b"").decode("latin-1"))
        request.answer(200, body, [(b"Content-Type", kind.encode("ascii"))])
