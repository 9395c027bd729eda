"""How measurements become the figures of the benchmark table."""

from __future__ import annotations

import pytest

from bench.figures import Goal, added, medians, met, ratios
from bench.load import percentile


def test_medians_are_taken_over_the_rounds() -> None:
    """Each figure of each peer is the median of its rounds, whatever the other peers have."""
    rounds = [{"direct": {"a": 1.0}, "nginx": {"a": 4.0}}, {"direct": {"a": 3.0}}, {"direct": {"a": 2.0}}]
    assert medians(rounds) == {"direct": {"a": 2.0}, "nginx": {"a": 4.0}}


def test_added_is_the_difference_to_direct_of_the_same_round() -> None:
    """What a peer adds is its figure less the one that was measured without any proxy."""
    latencies = ("first_byte_p50_ms", "first_byte_p99_ms", "token_latency_p50_ms", "token_latency_p99_ms")
    round_ = {"direct": dict.fromkeys(latencies, 1.0), "nginx": dict.fromkeys(latencies, 1.5)}
    assert added(round_) == {"nginx": {f"added_{key}": 0.5 for key in latencies}}


def test_ratios_need_nginx() -> None:
    """Ratios are to nginx's figures; a figure that nginx has not, or has as zero, has none."""
    figures = {"nginx": {"a": 2.0, "b": 0.0}, "llmproxy": {"a": 6.0, "b": 1.0, "c": 1.0}}
    assert ratios(figures)["llmproxy"] == {"a": 3.0}
    assert ratios({"llmproxy": {"a": 1.0}}) == {}


def test_goals() -> None:
    """A goal is a number, or so many times nginx's figure; without that figure it is open."""
    figures = {"nginx": {"a": 2.0}, "llmproxy": {"a": 6.0, "b": 6.0}}
    assert met(Goal("a", times_nginx=3.0), figures) == (6.0, True)
    assert met(Goal("a", times_nginx=2.0), figures) == (4.0, False)
    assert met(Goal("b", 5.0), figures) == (5.0, False)
    assert met(Goal("b", times_nginx=3.0), figures) is None
    assert met(Goal("c", 5.0), figures) is None


def test_percentile() -> None:
    """A percentile is one of the values, the highest at most."""
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 0.5) == 51.0
    assert percentile(values, 0.99) == 100.0
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) != pytest.approx(0.0)
