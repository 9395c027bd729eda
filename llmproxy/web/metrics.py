"""``/metrics``: what Prometheus is told.

What is so now is read from the fleet when somebody asks.  What has happened is counted from the requests
that are over, which are handed in by the batch, and from the fleet's transitions.  No label holds anything
that a client chose, and so what is kept is bounded by the backends that were ever configured.

A backend that is configured no more has no gauges; its counters and histograms stay until the proxy ends, as
they would in Prometheus's own libraries: removed, a counter that comes back would look like a restart.

Counting is ours, because it happens with every request; all that is told goes through ``prometheus_client``.
That takes some microseconds for a sample, in the reactor's thread, and so there are no samples for nothing: a
backend has counters and histograms from its first request or start on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, get_args

from attrs import define, field

from llmproxy.backend.lifecycle import State
from llmproxy.backend.surroundings import Decision, Event
from llmproxy.errors import Refusal
from llmproxy.fleet.fleet import Fleet
from llmproxy.web.family import Collector, Family
from llmproxy.web.histogram import Buckets, Histogram
from llmproxy.web.ownhost import require_own_host
from llmproxy.web.resource import ProxyResource, require_admin
from llmproxy.web.sharing import Sharing
from llmproxy.web.starts import Starts

if TYPE_CHECKING:
    from llmproxy.web.exposition import Exposition
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
    def error(self) -> str:
        """Code of the refusal that it was answered with; empty when there was none."""

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
    """Counts what happens in one proxy, and is a :class:`~llmproxy.web.family.Collector`.

    :param fleet: the backends; it is followed from now on, so make this before the fleet starts.
    :param version: of the proxy.
    """

    def __init__(self, fleet: Fleet, version: str) -> None:
        self.fleet = fleet
        self._requests: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self._refusals: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._times: dict[str, _Times] = {}
        self._collectors: tuple[Collector, ...] = (self, Starts(fleet), Sharing(fleet))
        self._version = version
        self._tokens: Mapping[tuple[str, str, str], int] = {}
        self._scalings: defaultdict[tuple[str, str], int] = defaultdict(int)
        fleet.follow(self._heard)

    def _heard(self, event: Event) -> None:
        if isinstance(event, Decision) and event.kind in ("scale out", "scale in"):
            self._scalings[event.backend, event.kind.removeprefix("scale ")] += 1

    def tell(self, collector: Collector) -> None:
        """Tell of that, too; before anybody has asked."""
        self._collectors = (*self._collectors, collector)

    def count_tokens(self, totals: Mapping[tuple[str, str, str], int]) -> None:
        """Tell of tokens, too.

        :param totals: by backend, name of the key, and kind; it is read when somebody asks.
        """
        self._tokens = totals

    @cached_property
    def _exposition(self) -> Exposition:
        # See there why it is imported as late as this.
        from llmproxy.web.exposition import Exposition

        return Exposition(self._collectors, self._version)

    def observe(self, entries: Sequence[Finished]) -> None:
        """Count requests that are over, each of them once."""
        requests, known = self._requests, self._times
        for entry in entries:
            route = entry.route
            times = known.get(route)
            if times is None:
                times = self._new(route)
            if entry.error:
                self._refusals[NO_BACKEND if times is None else route, entry.error] += 1
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
        return self._exposition.render(accept)

    def collect(self) -> Iterator[Family]:
        """See :class:`~llmproxy.web.family.Collector`."""
        # Few have a Swarm, and nobody may ever ask.
        from llmproxy.web.scaling import tell_scaling

        yield from self._fleet_now()
        yield from tell_scaling(self.fleet.backends, self._scalings)
        requests = Family(
            "counter",
            "llmproxy_requests",
            "Requests that are over, by outcome (ok, refused, client_gone, backend_died, error) and HTTP"
            " status; code 0: no answer was begun; backend -: it was about none.",
            ("backend", "outcome", "code"),
        )
        for (route, outcome, status), count in self._requests.items():
            requests.add((route, outcome, str(status)), count)
        yield requests
        yield self._tokens_told()
        refusals = Family(
            "counter",
            "llmproxy_refusals",
            "Requests that llmproxy answered with an error of its own, by the error's code.",
            ("backend", "error"),
        )
        for about, count in self._refusals.items():
            refusals.add(about, count)
        yield refusals
        yield _histograms(
            "llmproxy_hold_seconds",
            "Seconds that requests were held for the backend; only those that were.",
            ((route, times.hold) for route, times in self._times.items()),
        )
        yield _histograms(
            "llmproxy_time_to_first_byte_seconds",
            "Seconds from the request to the first byte of the backend's answer, the hold included.",
            ((route, times.first_byte) for route, times in self._times.items()),
        )
        yield _histograms(
            "llmproxy_request_seconds",
            "Seconds from the request to the end of the answer, the hold included; without refused requests.",
            ((route, times.request) for route, times in self._times.items()),
        )

    def _tokens_told(self) -> Family:
        tokens = Family(
            "counter",
            "llmproxy_tokens",
            "Tokens by kind: prompt, completion, and estimated (of streams whose engine did not tell, counted"
            " by their events).",
            ("backend", "key", "kind"),
        )
        for about, count in self._tokens.items():
            tokens.add(about, count)
        return tokens

    def _fleet_now(self) -> Iterator[Family]:
        states = Family(
            "gauge",
            "llmproxy_backend_state",
            "Whether the backend is in this state; one of them is 1.",
            ("backend", "state"),
        )
        in_flight = Family(
            "gauge", "llmproxy_in_flight", "Requests handed to the backend and not finished.", ("backend",)
        )
        waiting = Family(
            "gauge", "llmproxy_waiting", "Requests held until the backend is ready.", ("backend",)
        )
        longest = Family(
            "gauge",
            "llmproxy_longest_wait_seconds",
            "Seconds for which somebody has been waiting for the backend; 0 when nobody does.",
            ("backend",),
        )
        sound = Family(
            "gauge",
            "llmproxy_scheduler_sound",
            "Whether the scheduler decides as it should; /healthz says 503 when it does not.",
            (),
        )
        sound.add((), 1 if self.fleet.scheduler.sound else 0)
        for name, backend in self.fleet.backends.items():
            now = backend.state
            for state in get_args(State):
                states.add((name, state), 1 if state == now else 0)
            in_flight.add((name,), backend.admission.in_flight)
            waiting.add((name,), backend.admission.waiting)
            since = backend.admission.waiting_since
            longest.add((name,), 0.0 if since is None else backend.surroundings.clock.seconds() - since)
        yield from (states, in_flight, waiting, longest, sound)


def _histograms(name: str, meaning: str, each: Iterable[tuple[str, Histogram]]) -> Family:
    family = Family("histogram", name, meaning, ("backend",))
    for route, histogram in each:
        family.add((route,), histogram)
    return family


class MetricsResource(ProxyResource):
    """``/metrics``, for everybody or for administrators, as ``metrics_access`` has it.

    :param settle: called before each answer; it hands all requests that are over to ``metrics.observe``.
    """

    def __init__(self, metrics: Metrics, settle: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._metrics = metrics
        self._settle = settle

    def serve(self, request: ProxyRequest) -> None:
        """See :class:`~llmproxy.web.resource.ProxyResource`."""
        config = self._metrics.fleet.config
        if not config.keys:
            require_own_host(request, keyed=False)
        elif config.metrics_access == "admin":
            require_admin(request)
        if any(request.postpath or ()):
            raise Refusal(404, "route_not_found", "There is no such path.", kind="invalid_request_error")
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"Allow", b"GET, HEAD")
            raise Refusal(405, "invalid_request", "This path takes GET.", kind="invalid_request_error")
        self._settle()
        body, kind = self._metrics.render(request.fields.get(b"accept", b"").decode("latin-1"))
        request.answer(200, body, [(b"Content-Type", kind.encode("ascii"))])
