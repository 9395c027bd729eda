"""Outcomes of runs, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from bench.swarm.world import Outcome

__all__ = ["carried", "comparison"]


def _name(outcome: Outcome) -> str:
    setting = outcome.setting
    return f"{setting['rule']}, idle {setting['idle']:g} s"


def comparison(outcomes: Sequence[Outcome], title: str) -> Table:
    """What requests and the cluster had of it, a row for each run."""
    table = Table(title=title)
    table.add_column("pressure rule")
    for name in (
        "held %",
        "p95 s",
        "p99 s",
        "of held: p50",
        "p95",
        "p99",
        "not answered",
        "tasks",
        "reserved %",
        "busy %",
        "pending",
        "starts/h",
        "evicted/h",
        "drained/h",
        "out/in/h",
    ):
        table.add_column(name, justify="right")
    for one in outcomes:
        hour = one.per_hour
        table.add_row(
            _name(one),
            f"{100 * one.cold:.1f}",
            *(f"{value:.0f}" for value in (one.hold_p95, one.hold_p99)),
            *(f"{value:.0f}" for value in (one.held_p50, one.held_p95, one.held_p99)),
            f"{one.requests - one.ends.get('answered', 0):,}",
            f"{one.tasks[-1] if one.tasks else 0:,}",
            *(f"{100 * value:.1f}" for value in (one.used, one.busy)),
            f"{one.pending:.0f}",
            f"{hour['starts']:,.0f}",
            f"{hour.get('evicted', 0):,.0f}",
            f"{hour.get('drained', 0):,.0f}",
            f"{hour['scale-outs']:,.0f}/{hour['scale-ins']:,.0f}",
        )
    return table


def carried(outcomes: Sequence[Outcome]) -> Table:
    """What the proxy's own bookkeeping took of one core."""
    table = Table(title="the proxy's bookkeeping, ms of processor time per second (10 ms: 1 % of a core)")
    table.add_column("pressure rule")
    for name in ("requests/s", "transitions/s", "requests", "scheduler", "timers", "news", "pressure", "all"):
        table.add_column(name, justify="right")
    for name in ("us per request", "ms per start", "MB of memory"):
        table.add_column(name, justify="right")
    for one in outcomes:
        spent = {kind: spent / one.seconds for kind, spent in one.cpu.items() if kind != "simulation"}
        rest = sum(spent.values()) - spent.get("requests", 0.0)
        starts = one.per_hour["starts"] / 3600
        table.add_row(
            _name(one),
            f"{one.requests / one.seconds:.0f}",
            f"{one.events_per_second:.1f}",
            *(
                f"{spent.get(kind, 0.0):.1f}"
                for kind in ("requests", "scheduler", "timers", "news", "pressure")
            ),
            f"{sum(spent.values()):.1f}",
            f"{1000 * spent.get('requests', 0.0) * one.seconds / max(1, one.requests):.0f}",
            f"{rest / starts:.1f}" if starts else "",
            f"{one.fleet_bytes / 1e6:.0f}",
        )
    return table
