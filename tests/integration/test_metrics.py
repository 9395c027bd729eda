"""``/metrics`` of the real proxy, read by Prometheus's own parsers."""

from __future__ import annotations

import http.client

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from tests.integration.conftest import Launch
from tests.integration.proxy import ADMIN, KEY, Proxy, demo
from tests.integration.world import until

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(proxy: Proxy, accept: str = "", key: str | None = None) -> Samples:
    """All samples, by name and labels."""
    answer = proxy.ask("GET", "/metrics", headers={"Accept": accept}, key=key)
    assert answer.status == 200
    parse = parse_openmetrics if accept else parse_plain
    kind = "application/openmetrics-text; version=1.0.0" if accept else "text/plain; version=0.0.4"
    assert (answer.header("Content-Type") or "").startswith(kind)
    found: Samples = {}
    for family in parse(answer.body.decode()):
        for sample in family.samples:
            about = (sample.name, frozenset(sample.labels.items()))
            assert about not in found
            found[about] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float | None:
    """One sample of llmproxy's own; None when there is none."""
    return samples.get((f"llmproxy_{name}", frozenset(labels.items())))


def requests(samples: Samples, backend: str) -> dict[tuple[str, str], float]:
    """How many there were, by outcome and code."""
    return {
        (labels["outcome"], labels["code"]): number
        for (name, about), number in samples.items()
        if name == "llmproxy_requests_total" and (labels := dict(about))["backend"] == backend
    }


def test_what_happened_is_told(launch: Launch) -> None:
    """Requests by their ends, the start, durations and states; every request is in the next scrape."""
    proxy = launch({"a": demo("--start-delay", "0.3"), "b": demo()})
    before = requests(scrape(proxy), "-")
    for _ in range(3):
        assert proxy.chat("a").status == 200
    assert proxy.ask("GET", "/a/health").status == 200
    assert proxy.chat("a", demo_fault="500").status == 500
    assert proxy.chat("a", key="wrong").status == 401
    assert proxy.chat("unknown").status == 404
    for accept in ("", OPENMETRICS):
        samples = scrape(proxy, accept)
        assert requests(samples, "a") == {("ok", "200"): 4, ("ok", "500"): 1}
        assert requests(samples, "b") == {}
        none = requests(samples, "-")
        assert {
            code: none["refused", code] - before.get(("refused", code), 0) for code in ("401", "404")
        } == {
            "401": 1,
            "404": 1,
        }
        assert value(samples, "backend_state", backend="a", state="ready") == 1
        assert value(samples, "backend_state", backend="a", state="absent") == 0
        assert value(samples, "backend_state", backend="b", state="absent") == 1
        assert value(samples, "in_flight", backend="a") == 0
        assert value(samples, "waiting", backend="a") == 0
        assert value(samples, "starts_total", backend="a", result="ok") == 1
        assert value(samples, "start_seconds_count", backend="a", phase="total") == 1
        took = value(samples, "start_seconds_sum", backend="a", phase="total") or 0.0
        # The first request was held for the whole start, and nearly no longer.
        assert value(samples, "hold_seconds_count", backend="a") == 1
        held = value(samples, "hold_seconds_sum", backend="a") or 0.0
        assert 0.3 < held == pytest.approx(took, abs=1.0)
        for name in ("time_to_first_byte_seconds", "request_seconds"):
            assert value(samples, f"{name}_count", backend="a") == 5
            assert value(samples, f"{name}_bucket", backend="a", le="+Inf") == 5
            assert (value(samples, f"{name}_sum", backend="a") or 0.0) >= held
            assert value(samples, f"{name}_count", backend="b") is None
        assert samples["process_resident_memory_bytes", frozenset()] > 1024 * 1024


def test_a_stream_is_in_flight_and_then_over(launch: Launch) -> None:
    """While it lasts it is in the gauge, and no earlier than it is over in the counters."""
    proxy = launch({"a": demo()})
    with proxy.streaming("a"):
        samples = scrape(proxy)
        assert value(samples, "in_flight", backend="a") == 1
        assert requests(samples, "a") == {}
    # It has left.
    until(lambda: requests(scrape(proxy), "a") == {("client_gone", "200"): 1})
    assert value(scrape(proxy), "in_flight", backend="a") == 0
    with pytest.raises(http.client.IncompleteRead):
        proxy.chat("a", stream=True, demo_fault="die-mid-stream=2", max_tokens=5)
    assert requests(scrape(proxy), "a")["backend_died", "200"] == 1


def test_it_is_open_unless_it_is_said_otherwise(launch: Launch) -> None:
    """Anybody reads it, whatever key comes along."""
    proxy = launch({"a": demo()})
    for key in (None, "wrong", KEY, ADMIN):
        assert value(scrape(proxy, key=key), "waiting", backend="a") == 0


def test_it_can_be_for_administrators(launch: Launch) -> None:
    """No key and a wrong one are 401, a client's is 403; a reload opens it again."""
    proxy = launch({"a": demo()}, metrics_access="admin")
    for key, status, code in (
        (None, 401, "invalid_api_key"),
        ("wrong", 401, "invalid_api_key"),
        (KEY, 403, "not_allowed"),
    ):
        answer = proxy.ask("GET", "/metrics", key=key)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert b"llmproxy_" not in answer.body
    samples = scrape(proxy, key=ADMIN)
    assert value(samples, "waiting", backend="a") == 0
    assert {code: requests(samples, "-")["refused", code] for code in ("401", "403")} == {"401": 2, "403": 1}
    proxy.configure({"a": demo()}, metrics_access="open")
    proxy.hang_up()
    assert value(scrape(proxy), "waiting", backend="a") == 0
