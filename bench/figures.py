"""The figures that are told, what each is, and how what was measured becomes one number.  Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from attrs import frozen

__all__ = ["FIGURES", "GOALS", "Figure", "Goal", "added", "medians", "met", "ratios"]

Values = Mapping[str, Mapping[str, float]]
"""Of each peer, each figure."""


@frozen
class Figure:
    """One line of the table.

    :ivar key: its name in the file.
    :ivar unit: what the numbers are.
    :ivar digits: behind the point, in the table.
    """

    key: str
    title: str
    unit: str
    digits: int = 2


FIGURES = (
    Figure("cpu_per_request_us", "CPU per small request, 16 connections", "us", 1),
    Figure("requests_per_second_1", "requests per second, 1 connection", "1/s", 0),
    Figure("requests_per_second_16", "requests per second, 16 connections", "1/s", 0),
    Figure("requests_per_second_64", "requests per second, 64 connections", "1/s", 0),
    Figure("latency_16_p50_ms", "time of a request, 16 connections, p50", "ms"),
    Figure("latency_16_p99_ms", "time of a request, 16 connections, p99", "ms"),
    Figure("first_byte_p50_ms", "time to first byte, one request, p50", "ms", 3),
    Figure("first_byte_p99_ms", "time to first byte, one request, p99", "ms", 3),
    Figure("added_first_byte_p50_ms", "  added over direct, p50", "ms", 3),
    Figure("added_first_byte_p99_ms", "  added over direct, p99", "ms", 3),
    Figure("cpu_per_token_us", "CPU per streamed token", "us", 1),
    Figure("token_latency_p50_ms", "token latency, p50", "ms", 3),
    Figure("token_latency_p99_ms", "token latency, p99", "ms", 3),
    Figure("added_token_latency_p50_ms", "  added over direct, p50", "ms", 3),
    Figure("added_token_latency_p99_ms", "  added over direct, p99", "ms", 3),
    Figure("idle_memory_mb", "memory before the first load", "MB", 1),
    Figure("readiness_seen_p50_ms", "from listening to the held request, p50", "ms"),
    Figure("handover_p50_ms", "hand-over after readiness, p50", "ms"),
    Figure("handover_p95_ms", "hand-over after readiness, p95", "ms"),
)
"""In the order of the table.  Direct has no processor time of its own, and only llmproxy hands over."""

_ADDED = {
    "added_first_byte_p50_ms": "first_byte_p50_ms",
    "added_first_byte_p99_ms": "first_byte_p99_ms",
    "added_token_latency_p50_ms": "token_latency_p50_ms",
    "added_token_latency_p99_ms": "token_latency_p99_ms",
}


@frozen
class Goal:
    """What a figure of llmproxy should be at most.

    :ivar times_nginx: the limit is this many times nginx's figure; otherwise it is ``limit``.
    """

    key: str
    limit: float = math.nan
    times_nginx: float | None = None


GOALS = (
    Goal("cpu_per_request_us", times_nginx=3.5),
    Goal("cpu_per_token_us", times_nginx=2.0),
    Goal("added_first_byte_p50_ms", 1.0),
    Goal("added_token_latency_p99_ms", times_nginx=2.0),
    Goal("handover_p50_ms", 10.0),
    Goal("handover_p95_ms", 25.0),
    Goal("idle_memory_mb", 60.0),
)


def added(round_: Values) -> dict[str, dict[str, float]]:
    """What each peer of one round adds to direct, which was measured right before."""
    direct = round_["direct"]
    return {
        peer: {key: values[of] - direct[of] for key, of in _ADDED.items()}
        for peer, values in round_.items()
        if peer != "direct"
    }


def medians(rounds: Sequence[Values]) -> dict[str, dict[str, float]]:
    """Of each peer, the median of each figure over the rounds that have it."""
    found: dict[str, dict[str, list[float]]] = {}
    for round_ in rounds:
        for peer, values in round_.items():
            for key, value in values.items():
                found.setdefault(peer, {}).setdefault(key, []).append(value)
    return {peer: {key: median(each) for key, each in values.items()} for peer, values in found.items()}


def ratios(figures: Values) -> dict[str, dict[str, float]]:
    """Of each peer, each figure over nginx's; nothing without nginx."""
    base = figures.get("nginx", {})
    return {
        peer: {key: value / base[key] for key, value in values.items() if base.get(key)}
        for peer, values in figures.items()
        if base
    }


def met(goal: Goal, figures: Values) -> tuple[float, bool] | None:
    """The limit of a goal, and whether llmproxy keeps it; None when a figure for that is missing."""
    value = figures.get("llmproxy", {}).get(goal.key)
    limit = goal.limit
    if goal.times_nginx is not None:
        limit = goal.times_nginx * figures.get("nginx", {}).get(goal.key, math.nan)
    if value is None or math.isnan(limit):
        return None
    return limit, value <= limit
