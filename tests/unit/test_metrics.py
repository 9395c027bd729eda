"""What Prometheus is told, read back by its own library's parsers."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast, get_args

from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.backend.effects import State
from llmproxy.backend.gate import Lease
from llmproxy.backend.surroundings import Decision
from llmproxy.config.describe import describe
from llmproxy.config.model import BackendSpec, Config, Gpu, Key
from llmproxy.config.resolve import Sources, read_sources
from llmproxy.errors import ConfigError, Refusal
from llmproxy.fleet.fleet import Fleet
from llmproxy.http.forwarded import UNKNOWN
from llmproxy.http.hosts import Hosts
from llmproxy.runtimes.interface import Address, Instance
from llmproxy.web.auth import Authenticator
from llmproxy.web.exposition import Exposition
from llmproxy.web.family import Family
from llmproxy.web.histogram import Buckets, Histogram
from llmproxy.web.metrics import Metrics, MetricsResource
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Servers
from tests.one_gpu import CONTROLS

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
SECRET = "sk-0123456789abcdef"
STATES = set(get_args(State))


@frozen
class Request:
    """A request that is over."""

    route: str = "a"
    outcome: str = "ok"
    status: int = 200
    held: float = 0.0
    first_byte: float | None = 0.02
    seconds: float = 0.3
    error: str = ""


def spec(route: str, **fields: Any) -> BackendSpec:
    return BackendSpec(
        route=route, container=f"c-{route}", models=(f"m-{route}",), **{"gpu_memory": 0.0, **fields}
    )


class _Waiter:
    """Waits, and is content with whatever comes."""

    def affinity(self) -> bytes | None:
        return None

    def admitted(self, lease: Lease) -> None:
        lease.release()


class Scrape:
    """One answer, parsed."""

    def __init__(self, metrics: Metrics, accept: str = "") -> None:
        body, self.kind = metrics.render(accept)
        self.text = body.decode("utf-8")
        parse = parse_openmetrics if self.kind.startswith("application/openmetrics") else parse_plain
        self.families: dict[str, Metric] = {family.name: family for family in parse(self.text)}
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in self.families.values():
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.samples, f"{key} stands there twice"
                self.samples[key] = sample.value

    def value(self, name: str, **about: str) -> float | None:
        return self.samples.get((name, frozenset(about.items())))

    def named(self, name: str) -> list[dict[str, str]]:
        """The labels of all samples of that name."""
        return [dict(about) for found, about in self.samples if found == name]


class MetricsTests(SynchronousTestCase):
    """A fleet of fakes, and what is told of it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.world = FakeController()
        self.servers = Servers(mode="healthy")
        self.build(Config(backends={"a": spec("a"), "b": spec("b")}))

    def build(self, config: Config) -> None:
        self.fleet = Fleet(self.clock, self.servers.connect, {"docker": FakeRuntime(self.world)}, config)
        self.metrics = Metrics(self.fleet, "1.2.3")
        self.successResultOf(self.fleet.start())

    def scrape(self, accept: str = "") -> Scrape:
        return Scrape(self.metrics, accept)

    # -- what is so now -----------------------------------------------------------------------------

    def test_one_state_of_each_backend_is_1(self) -> None:
        """All states are there, and those it is not in are 0."""
        self.fleet.backends["a"].demand()
        scrape = self.scrape()
        told = scrape.named("llmproxy_backend_state")
        self.assertEqual({about["state"] for about in told}, STATES)
        self.assertEqual(len(told), 2 * len(STATES))
        for backend, state in (("a", "ready"), ("b", "absent")):
            for other in STATES:
                value = scrape.value("llmproxy_backend_state", backend=backend, state=other)
                self.assertEqual(value, 1 if other == state else 0)

    def test_requests_in_flight_and_waiting_are_counted_when_asked(self) -> None:
        """They are read from the fleet."""
        self.fleet.backends["a"].admission.open = True
        self.fleet.backends["a"].admission.enter()
        self.fleet.backends["b"].admission.hold(cast(Any, object()), 0.0)
        scrape = self.scrape()
        self.assertEqual(scrape.value("llmproxy_in_flight", backend="a"), 1)
        self.assertEqual(scrape.value("llmproxy_in_flight", backend="b"), 0)
        self.assertEqual(scrape.value("llmproxy_waiting", backend="a"), 0)
        self.assertEqual(scrape.value("llmproxy_waiting", backend="b"), 1)

    def test_the_longest_wait_is_told(self) -> None:
        """While somebody waits, and 0 when nobody does."""
        start = self.clock.seconds()
        self.fleet.backends["b"].admission.hold(cast(Any, object()), start)
        self.clock.advance(7.5)
        scrape = self.scrape()
        self.assertEqual(scrape.value("llmproxy_longest_wait_seconds", backend="a"), 0)
        self.assertEqual(scrape.value("llmproxy_longest_wait_seconds", backend="b"), 7.5)

    def test_whether_the_scheduler_decides_is_told(self) -> None:
        """As the health path has it."""
        self.assertEqual(self.scrape().value("llmproxy_scheduler_sound"), 1)
        self.fleet.scheduler.sound = False
        self.assertEqual(self.scrape().value("llmproxy_scheduler_sound"), 0)

    def test_refusals_are_counted_by_their_code(self) -> None:
        """Of the backend that they were about, or of none."""
        full = Request(outcome="refused", status=429, error="queue_full")
        self.metrics.observe([full, full, Request(), evolve(full, route="nobody's", error="model_not_found")])
        for accept in ("", OPENMETRICS):
            scrape = self.scrape(accept)
            self.assertEqual(scrape.value("llmproxy_refusals_total", backend="a", error="queue_full"), 2)
            self.assertEqual(scrape.value("llmproxy_refusals_total", backend="-", error="model_not_found"), 1)
            self.assertEqual(len(scrape.named("llmproxy_refusals_total")), 2)

    def test_the_version_and_the_process_are_told(self) -> None:
        """In both formats."""
        for accept in ("", OPENMETRICS):
            scrape = self.scrape(accept)
            self.assertEqual(scrape.value("llmproxy_build_info", version="1.2.3"), 1)
            self.assertTrue(any(name.startswith("python_gc_") for name in scrape.families))

    def test_a_removed_backend_has_no_gauges_and_keeps_its_counts(self) -> None:
        """Counters live as long as the proxy."""
        self.metrics.observe([Request("a"), Request("b")])
        self.fleet.apply(evolve(self.fleet.config, backends={"b": spec("b")}))
        scrape = self.scrape()
        for name in ("llmproxy_backend_state", "llmproxy_in_flight", "llmproxy_waiting"):
            self.assertEqual({about["backend"] for about in scrape.named(name)}, {"b"})
        self.metrics.observe([Request("a")])
        value = self.scrape().value("llmproxy_requests_total", backend="a", outcome="ok", code="200")
        self.assertEqual(value, 2)

    # -- requests -----------------------------------------------------------------------------------

    def test_requests_are_counted_by_outcome_and_status(self) -> None:
        """Over any number of batches, empty ones among them."""
        self.metrics.observe([Request(), Request(), Request(outcome="refused", status=503)])
        self.metrics.observe([])
        self.metrics.observe([Request(), Request("b", "client_gone", 0)])
        for accept in ("", OPENMETRICS):
            scrape = self.scrape(accept)
            for count, backend, outcome, code in (
                (3, "a", "ok", "200"),
                (1, "a", "refused", "503"),
                (1, "b", "client_gone", "0"),
            ):
                about = {"backend": backend, "outcome": outcome, "code": code}
                self.assertEqual(scrape.value("llmproxy_requests_total", **about), count)
            self.assertEqual(len(scrape.named("llmproxy_requests_total")), 3)

    def test_durations_are_observed_where_there_are_any(self) -> None:
        """Holds of held requests only, first bytes where one came, and no request that was refused."""
        self.metrics.observe(
            [
                Request(held=12.0, first_byte=12.5, seconds=20.0),
                Request(seconds=0.25),
                Request(outcome="refused", status=504, held=30.0, first_byte=None, seconds=30.0),
                Request(outcome="backend_died", status=502, first_byte=None, seconds=1.0),
            ]
        )
        for accept in ("", OPENMETRICS):
            scrape = self.scrape(accept)
            for name, count, total in (
                ("llmproxy_hold_seconds", 2, 42.0),
                ("llmproxy_time_to_first_byte_seconds", 2, 12.52),
                ("llmproxy_request_seconds", 3, 21.25),
            ):
                self.assertEqual(scrape.value(f"{name}_count", backend="a"), count)
                self.assertEqual(scrape.value(f"{name}_bucket", backend="a", le="+Inf"), count)
                self.assertAlmostEqual(scrape.value(f"{name}_sum", backend="a") or 0.0, total)
            self.assertEqual(scrape.value("llmproxy_hold_seconds_bucket", backend="a", le="20.0"), 1)
            self.assertEqual(scrape.value("llmproxy_request_seconds_bucket", backend="a", le="0.25"), 1)

    def test_requests_about_no_backend_are_only_counted(self) -> None:
        """They have the label - and no durations."""
        self.metrics.observe([Request("-", first_byte=None)])
        scrape = self.scrape()
        self.assertEqual(scrape.value("llmproxy_requests_total", backend="-", outcome="ok", code="200"), 1)
        self.assertEqual(scrape.named("llmproxy_request_seconds_count"), [])

    def test_no_label_is_made_of_what_is_no_backend(self) -> None:
        """A name that was never configured counts as none, so that nobody can make series."""
        self.metrics.observe([Request("who/knows"), Request('"}\n')])
        scrape = self.scrape()
        self.assertEqual({about["backend"] for about in scrape.named("llmproxy_requests_total")}, {"-"})
        self.assertNotIn("who/knows", scrape.text)

    # -- starts -------------------------------------------------------------------------------------

    def starts(self, backend: str = "a") -> dict[str, float]:
        scrape = self.scrape()
        found = {}
        for about in scrape.named("llmproxy_starts_total"):
            if about["backend"] == backend:
                value = scrape.value("llmproxy_starts_total", **about)
                assert value is not None
                found[about["result"]] = value
        return found

    def start_slowly(self, seconds: float) -> None:
        self.world.hold_starts = True
        self.fleet.backends["a"].demand()
        self.clock.advance(seconds)
        self.world.finish_start("a")

    def test_a_start_is_counted_with_its_phases(self) -> None:
        """And with the whole of it as one more phase."""
        self.start_slowly(7.0)
        self.assertEqual(self.starts(), {"ok": 1})
        for accept in ("", OPENMETRICS):
            scrape = self.scrape(accept)
            for phase, total in (("creating", 7.0), ("starting", 0.0), ("total", 7.0)):
                about = {"backend": "a", "phase": phase}
                self.assertEqual(scrape.value("llmproxy_start_seconds_count", **about), 1)
                self.assertAlmostEqual(scrape.value("llmproxy_start_seconds_sum", **about) or 0.0, total)

    def test_starts_between_two_scrapes_are_all_counted(self) -> None:
        """Each with its own durations."""
        self.start_slowly(3.0)
        self.fleet.backends["a"].stop_wanted("test")
        self.assertEqual(self.fleet.backends["a"].state, "absent")
        self.start_slowly(5.0)
        scrape = self.scrape()
        self.assertEqual(self.starts(), {"ok": 2})
        self.assertEqual(scrape.value("llmproxy_start_seconds_sum", backend="a", phase="total"), 8.0)

    def test_what_ran_already_is_adopted(self) -> None:
        """It counts as a start of that kind, and its duration says nothing."""
        self.world.become_running("a")
        self.assertEqual(self.starts(), {"adopted": 1})
        self.assertEqual(self.scrape().named("llmproxy_start_seconds_count"), [])
        self.fleet.backends["a"].stop_wanted("test")
        self.fleet.backends["a"].demand()
        self.assertEqual(self.starts(), {"adopted": 1, "ok": 1})

    def test_a_start_that_fails_is_counted_each_time(self) -> None:
        """Also when the backend failed before."""
        for count in (1, 2):
            self.world.refuse_next_start("a")
            self.fleet.backends["a"].demand()
            self.assertEqual(self.starts(), {"failed": count})
            self.fleet.backends["a"].reset()
        self.assertEqual(self.scrape().named("llmproxy_start_seconds_count"), [])

    def test_a_start_past_its_deadline_is_a_timeout(self) -> None:
        """Though the backend is stopped then."""
        self.servers.mode = "refuse"
        self.world.hold_stops = True
        self.fleet.backends["a"].demand()
        self.clock.pump([1.0] * 310)
        self.assertEqual(self.fleet.backends["a"].state, "stopping")
        self.assertEqual(self.starts(), {"timeout": 1})
        self.world.finish_stop("a")
        self.assertEqual(self.starts(), {"timeout": 1})

    def test_a_start_that_somebody_ends_was_stopped(self) -> None:
        """Whether the operator did it, or a reload took the backend away."""
        self.servers.mode = "refuse"
        for name in ("a", "b"):
            self.fleet.backends[name].demand()
        self.fleet.backends["a"].stop_wanted("test")
        self.assertEqual(self.starts("a"), {"stopped": 1})
        self.fleet.apply(evolve(self.fleet.config, backends={"a": spec("a")}))
        self.assertEqual(self.starts("b"), {"stopped": 1})

    def test_a_start_without_an_engine_is_unavailable(self) -> None:
        """It says nothing of the backend."""
        self.world.go_away()
        self.fleet.backends["a"].demand()
        self.assertEqual(self.starts(), {"unavailable": 1})

    def test_a_start_that_another_one_takes_the_place_of_is_replaced(self) -> None:
        """The other one is adopted."""
        self.servers.mode = "refuse"
        backend = self.fleet.backends["a"]
        backend.demand()
        backend.running(Instance("another", (Address("127.0.0.1", 1, "network"),), 2.0))
        self.assertEqual(self.starts(), {"replaced": 1})
        self.servers.mode = "healthy"
        self.clock.advance(1)
        self.assertEqual(self.starts(), {"replaced": 1, "adopted": 1})

    # -- sharing a GPU ------------------------------------------------------------------------------

    def share(self, config: Config | None = None, **fields: Any) -> None:
        """Two that do not fit together, and one that needs nothing."""
        self.servers.controls = {**CONTROLS, **self.servers.controls}
        backends = {
            "a": spec("a", gpu_memory=0.6, **fields),
            "b": spec("b", gpu_memory=0.6),
            "c": spec("c"),
        }
        self.build(evolve(config or Config(), backends=backends, host_memory_for_sleep=64 * 2**30))

    def evictions(self) -> dict[tuple[str, str], float]:
        scrape = self.scrape()
        return {
            (about["backend"], about["reason"]): scrape.value("llmproxy_evictions_total", **about) or 0.0
            for about in scrape.named("llmproxy_evictions_total")
        }

    def turn(self) -> None:
        for _ in range(8):
            self.clock.advance(0)

    def test_an_eviction_is_counted_once(self) -> None:
        """By what it was for: another model, idle or drained for it, or a lease."""
        self.share()
        self.fleet.backends["a"].demand()
        self.fleet.backends["b"].demand()
        self.turn()
        self.assertEqual(self.evictions(), {("a", "room"): 1})
        self.clock.advance(30)
        busy = self.fleet.backends["b"]
        self.assertTrue(busy.admission.enter())
        self.fleet.backends["a"].demand()
        self.clock.advance(30)
        self.assertEqual(busy.state, "draining")
        busy.admission.release()
        self.fleet.scheduler.idle(busy)
        self.turn()
        self.assertEqual(self.evictions(), {("a", "room"): 1, ("b", "drained"): 1})
        self.clock.advance(30)
        self.fleet.scheduler.lease("0", 0.5, 60.0, "")
        self.turn()
        self.assertEqual(self.evictions(), {("a", "room"): 1, ("b", "drained"): 1, ("a", "lease"): 1})

    def test_leaving_by_itself_is_no_eviction(self) -> None:
        """Whether it was idle, or the operator stopped it."""
        self.share(idle=60.0)
        for _ in range(2):
            self.fleet.backends["a"].demand()
            self.clock.advance(60)
            self.turn()
            self.assertEqual(self.fleet.backends["a"].state, "absent")
        self.fleet.backends["a"].demand()
        self.fleet.backends["a"].stop_wanted("test")
        self.assertEqual(self.evictions(), {})

    def test_a_former_backend_is_evicted_by_its_route(self) -> None:
        """One that is configured no more has no label of its own."""
        self.share()
        for listener in list(self.fleet._listeners):
            listener(Decision(1.0, "a (former 7f00)", "evict", "makes room", "b"))
        self.assertEqual(self.evictions(), {("a", "room"): 1})

    def test_a_wake_is_no_start(self) -> None:
        """It has a histogram of its own; what is found asleep is adopted."""
        self.share(sleep="1")
        backend = self.fleet.backends["a"]
        backend.demand()
        backend.sleep_wanted("test")
        self.assertEqual(backend.state, "sleeping")
        self.servers.controls["POST /wake_up"] = None
        backend.demand()
        self.clock.advance(2)
        self.servers.controlled[-1].send(CONTROLS["POST /wake_up"])
        self.assertEqual(backend.state, "ready")
        self.assertEqual(self.starts(), {"ok": 1})
        scrape = self.scrape()
        self.assertEqual(scrape.value("llmproxy_wake_seconds_count", backend="a"), 1)
        self.assertEqual(scrape.value("llmproxy_wake_seconds_sum", backend="a"), 2.0)
        self.servers.controls["GET /is_sleeping"] = (
            b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"is_sleeping":true}'
        )
        self.share(sleep="1")
        self.assertEqual(self.fleet.backends["a"].state, "sleeping")
        self.assertEqual(self.starts(), {"adopted": 1})

    def test_a_wake_that_fails_is_a_start(self) -> None:
        """The cold start that follows counts, and the wake does not."""
        self.share(sleep="1")
        backend = self.fleet.backends["a"]
        backend.demand()
        backend.sleep_wanted("test")
        self.servers.controls["POST /wake_up"] = b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"
        backend.admission.hold(cast(Any, _Waiter()), 0.0)
        backend.demand()
        self.turn()
        self.assertEqual((backend.state, self.starts()), ("ready", {"ok": 2}))
        self.assertEqual(self.scrape().named("llmproxy_wake_seconds_count"), [])

    def test_gpu_memory_is_told_in_fractions_or_bytes(self) -> None:
        """As the GPU's size is known or not; what is reserved or lent cannot be claimed."""
        self.share()
        self.fleet.backends["a"].demand()
        scrape = self.scrape()
        self.assertEqual(scrape.value("llmproxy_gpu_memory_claimed", gpu="0"), 0.6)
        self.assertEqual(scrape.value("llmproxy_gpu_memory_capacity", gpu="0"), 1.0)
        gib = 2**30
        self.share(Config(gpus={"0": Gpu(20 * gib, gib), "1": Gpu(8 * gib)}))
        self.fleet.scheduler.lease("0", 3 * gib, 60.0, "")
        scrape = self.scrape()
        self.assertEqual(scrape.value("llmproxy_gpu_memory_claimed", gpu="0"), 12 * gib)
        self.assertEqual(scrape.value("llmproxy_gpu_memory_capacity", gpu="0"), 16 * gib)
        self.assertEqual(scrape.value("llmproxy_gpu_memory_claimed", gpu="1"), 0)

    def test_who_waits_for_room_is_told(self) -> None:
        """Only of those that need any."""
        self.share()
        self.fleet.backends["a"].demand()
        self.fleet.backends["a"].admission.enter()
        self.fleet.backends["b"].demand()
        scrape = self.scrape()
        told = {
            about["backend"]: scrape.value("llmproxy_waiting_for_room", **about)
            for about in scrape.named("llmproxy_waiting_for_room")
        }
        self.assertEqual(told, {"a": 0, "b": 1})

    # -- the whole ----------------------------------------------------------------------------------

    def test_a_thousand_backends_are_told(self) -> None:
        """Every one with all its series, in both formats."""
        names = [f"model-{number}" for number in range(1000)]
        self.build(Config(backends={name: spec(name) for name in names}))
        self.metrics.observe([Request(name, held=1.0) for name in names])
        for accept in ("", OPENMETRICS):
            body, _ = self.metrics.render(accept)
            self.assertEqual(body.count(b"\nllmproxy_backend_state{"), 1000 * len(STATES))
            for family in (b"in_flight", b"waiting", b"requests_total", b"request_seconds_count"):
                self.assertEqual(body.count(b"\nllmproxy_" + family + b"{"), 1000)

    def test_formats_say_the_same(self) -> None:
        """Every sample of llmproxy's own is in both."""
        self.start_slowly(1.0)
        self.metrics.observe([Request(held=1.0), Request("-")])
        old, new = (
            {key: value for key, value in self.scrape(accept).samples.items() if "llmproxy" in key[0]}
            for accept in ("", OPENMETRICS)
        )
        self.assertEqual(old, new)

    def test_families_have_their_types(self) -> None:
        """And all say what they mean."""
        self.start_slowly(1.0)
        self.metrics.observe([Request(held=1.0)])
        for accept in ("", OPENMETRICS):
            families = self.scrape(accept).families
            for name, kind in (
                ("backend_state", "gauge"),
                ("in_flight", "gauge"),
                ("waiting", "gauge"),
                ("requests", "counter"),
                ("starts", "counter"),
                ("start_seconds", "histogram"),
                ("evictions", "counter"),
                ("wake_seconds", "histogram"),
                ("waiting_for_room", "gauge"),
                ("gpu_memory_claimed", "gauge"),
                ("gpu_memory_capacity", "gauge"),
                ("hold_seconds", "histogram"),
                ("time_to_first_byte_seconds", "histogram"),
                ("request_seconds", "histogram"),
            ):
                family = families[f"llmproxy_{name}"]
                self.assertEqual(family.type, kind)
                self.assertTrue(family.documentation.endswith("."))

    def test_an_accept_header_that_makes_no_sense_gets_plain_text(self) -> None:
        """Whatever a scraper may send."""
        for accept in ("application/openmetrics-text; version=x", "a/b;;,", ";=", "\xff"):
            self.assertTrue(self.scrape(accept).kind.startswith("text/plain; version=0.0.4"))


@frozen(eq=False)
class _Collector:
    """Tells of one family."""

    family: Family

    def collect(self) -> Iterator[Family]:
        return iter((self.family,))


class HistogramTests(SynchronousTestCase):
    """Durations by bucket."""

    @given(st.text(), st.lists(st.floats(0, 1e6)))
    def test_any_label_and_any_durations_are_read_back(self, name: str, durations: list[float]) -> None:
        """Escapes are undone, buckets add up, and each duration is in the first bucket that holds it."""
        histogram = Histogram(Buckets(0.5, 1, 100))
        for seconds in durations:
            histogram.observe(seconds)
        told = Family("histogram", "x_seconds", "Some.", ("backend",))
        told.add((name,), histogram)
        body, _ = Exposition([_Collector(told)], "1").render(OPENMETRICS)
        (family,) = (one for one in parse_openmetrics(body.decode()) if one.name == "x_seconds")
        found = {
            (sample.name, sample.labels.get("le")): sample.value
            for sample in family.samples
            if sample.labels["backend"] == name
        }
        for bound in (0.5, 1.0, 100.0):
            under = sum(1 for seconds in durations if seconds <= bound)
            self.assertEqual(found["x_seconds_bucket", str(bound)], under)
        self.assertEqual(found["x_seconds_bucket", "+Inf"], len(durations))
        self.assertEqual(found["x_seconds_count", None], len(durations))
        self.assertAlmostEqual(found["x_seconds_sum", None], sum(durations))

    def test_a_clock_that_was_set_back_lowers_no_sum(self) -> None:
        """A negative duration counts as none."""
        histogram = Histogram(Buckets(1))
        histogram.observe(-5.0)
        self.assertEqual((histogram.counts, histogram.total), ([1, 0], 0.0))


class _Site:
    def __init__(self, keys: list[Key]) -> None:
        self.authenticator = Authenticator(keys)
        self.hosts = Hosts()


class _Request:
    """What the resource uses of a request."""

    def __init__(self, keys: list[Key], method: bytes, secret: str, accept: str, rest: list[bytes]) -> None:
        self.site = _Site(keys)
        self.channel = SimpleNamespace(client="127.0.0.1", origin=UNKNOWN)
        self.method = method
        self.arrived = 0.0
        self.postpath = rest
        self.key: Key | None = None
        self.fields = {b"accept": accept.encode()} if accept else {}
        if secret:
            self.fields[b"authorization"] = f"Bearer {secret}".encode()
        self.headers: dict[bytes, bytes] = {}
        self.status = 0
        self.body = b""

    def setHeader(self, name: bytes, value: bytes) -> None:
        self.headers[name] = value

    def answer(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.status, self.body = status, body
        self.headers.update(headers)

    def refuse(self, refusal: Refusal) -> None:
        self.status = refusal.status


class ResourceTests(SynchronousTestCase):
    """Who may read it, and how."""

    keys = (Key("admin", SECRET, admin=True), Key("site", "sk-site-000000000000"))

    def ask(
        self,
        *,
        access: str = "open",
        keys: tuple[Key, ...] = keys,
        method: bytes = b"GET",
        secret: str = "",
        accept: str = "",
        rest: list[bytes] | None = None,
    ) -> _Request:
        config = Config(backends={"a": spec("a")}, keys=keys, metrics_access=cast(Any, access))
        fleet = Fleet(Clock(), Servers().connect, {"docker": FakeRuntime(FakeController())}, config)
        metrics = Metrics(fleet, "1.2.3")
        waiting = [Request()]
        resource = MetricsResource(metrics, lambda: metrics.observe(waiting))
        request = _Request(list(keys), method, secret, accept, rest or [])
        resource.render(cast(Any, request))
        return request

    def test_it_is_open_by_default(self) -> None:
        """Without a key, and with what was over just before."""
        request = self.ask()
        self.assertEqual(request.status, 200)
        self.assertEqual(request.headers[b"Content-Type"], b"text/plain; version=0.0.4; charset=utf-8")
        self.assertIn(b'llmproxy_requests_total{backend="a",code="200",outcome="ok"} 1.0\n', request.body)

    def test_the_scraper_chooses_the_format(self) -> None:
        """OpenMetrics is what Prometheus asks for."""
        request = self.ask(accept=OPENMETRICS)
        kind = b"application/openmetrics-text; version=1.0.0; charset=utf-8"
        self.assertEqual(request.headers[b"Content-Type"], kind)
        self.assertTrue(request.body.endswith(b"# EOF\n"))
        self.assertEqual(request.body.count(b"# EOF"), 1)

    def test_it_can_be_for_administrators_only(self) -> None:
        """Then no key is 401, another's is 403, and without any keys nothing changes."""
        for status, secret in ((401, ""), (401, "wrong"), (403, self.keys[1].secret), (200, SECRET)):
            self.assertEqual(self.ask(access="admin", secret=secret).status, status)
        self.assertEqual(self.ask(access="admin", keys=()).status, 200)

    def test_it_is_only_read(self) -> None:
        """GET and HEAD; anything else is 405 and says so."""
        self.assertEqual(self.ask(method=b"HEAD").status, 200)
        request = self.ask(method=b"POST")
        self.assertEqual((request.status, request.headers[b"Allow"]), (405, b"GET, HEAD"))

    def test_there_is_nothing_below_it(self) -> None:
        """404, but for a slash at the end."""
        self.assertEqual(self.ask(rest=[b"x"]).status, 404)
        self.assertEqual(self.ask(rest=[b""]).status, 200)

    def test_no_secret_is_told(self) -> None:
        """Neither a key nor its name."""
        body = self.ask(access="admin", secret=SECRET).body
        for word in (SECRET, self.keys[1].secret, "site"):
            self.assertNotIn(word.encode(), body)


class SettingTests(SynchronousTestCase):
    """``metrics_access``."""

    def test_it_is_read_from_file_and_environment(self) -> None:
        """Open unless something else is said; the environment wins."""
        for file, environ, access, source in (
            ("", {}, "open", "default"),
            ("metrics_access: admin", {}, "admin", "llmproxy.yaml metrics_access"),
            (
                "metrics_access: open",
                {"LLMPROXY_METRICS_ACCESS": "admin"},
                "admin",
                "environment LLMPROXY_METRICS_ACCESS",
            ),
            (
                "metrics_access: admin",
                {"LLMPROXY_METRICS_ACCESS": ""},
                "admin",
                "llmproxy.yaml metrics_access",
            ),
        ):
            config = read_sources(Sources(environ, file))
            self.assertEqual(config.metrics_access, access)
            self.assertIn(("metrics_access", access, source), describe(config))

    def test_other_values_are_refused(self) -> None:
        """With what is allowed."""
        for file, environ in (
            ("metrics_access: everyone", {}),
            ("metrics_access: true", {}),
            ("", {"LLMPROXY_METRICS_ACCESS": "none"}),
        ):
            with self.assertRaisesRegex(ConfigError, "use one of open, admin"):
                read_sources(Sources(environ, file))
