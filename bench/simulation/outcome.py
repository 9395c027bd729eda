"""What one policy has made of a load, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from attrs import asdict, frozen
from rich.table import Table

from bench.figures import percentile
from bench.simulation.loads import Request
from bench.simulation.world import World
from llmproxy.scheduling.turns import LEAST_STEP

__all__ = ["Outcome", "Waits", "bound", "by_model", "comparison", "outcome"]

SHOWN = 20
"""Models that have a row of their own: the most asked for."""


@frozen
class Waits:
    """Seconds that requests waited until they were handed over."""

    requests: int
    total: float
    p50: float
    p95: float
    worst: float

    @classmethod
    def of(cls, waits: Sequence[float]) -> Waits:
        total = round(sum(waits), 1)
        p50, p95, worst = (round(percentile(waits, share), 1) for share in (0.5, 0.95, 1.0))
        return cls(len(waits), total, p50, p95, worst)


@frozen
class Outcome:
    """What it cost.

    :ivar swaps: models that left for another one; ``loads``: starts and wakes.
    :ivar idle: share of the time in which a GPU answered nobody while somebody waited.
    :ivar bound: seconds that no request could wait longer than; None: there is no bound.
    """

    policy: str
    swaps: int
    loads: int
    idle: float
    bound: float | None
    waits: Waits
    models: dict[str, Waits]

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        return asdict(self)


def outcome(name: str, world: World, bound: float | None) -> Outcome:
    """What has come of a world that has ended."""
    waits = {model: world.waits[model] for model in sorted(world.waits)}
    lasted = max(world.now - world.began, 0.001) * len(world.rooms)
    return Outcome(
        name,
        world.swaps,
        world.loads,
        round(world.idle / lasted, 4),
        None if bound is None else round(bound, 1),
        Waits.of([wait for several in waits.values() for wait in several]),
        {model: Waits.of(several) for model, several in waits.items()},
    )


def bound(world: World, requests: Iterable[Request], *, max_wait: float, min_residency: float) -> float:
    """Seconds within which llmproxy hands over each of these requests.

    It is ``(1 + steps) * max_wait + (models + 1) * turn``: until it has waited for so much longer than those
    that come that their priority, by so many steps, is worth no more; then each of the other models comes
    first at most once, one turn may be under way, and there is its own.  A turn is what a swap takes at most:
    the residency of who is there, its longest answer, its leaving, and two starts, as
    one may be under way beside it.
    """
    start, leave, answer = (world.longest.get(key, 0.0) for key in ("start", "leave", "answer"))
    turn = min_residency + answer + leave + 2 * start
    levels = [one.priority for one in requests] or [0]
    steps = 1 + max(levels) - min(levels)
    return steps * max(max_wait, LEAST_STEP) + (len(world.servers) + 1) * turn


def comparison(outcomes: Sequence[Outcome], title: str) -> Table:
    """One row for each policy."""
    table = Table(title=title)
    table.add_column("policy")
    for name in ("swaps", "loads", "p50 s", "p95 s", "max s", "bound s", "waiting, all s", "GPU idle"):
        table.add_column(name, justify="right")
    for one in outcomes:
        table.add_row(
            one.policy,
            str(one.swaps),
            str(one.loads),
            *(f"{value:.1f}" for value in (one.waits.p50, one.waits.p95, one.waits.worst)),
            "none" if one.bound is None else f"{one.bound:.0f}",
            f"{one.waits.total:,.0f}",
            f"{100 * one.idle:.0f} %",
        )
    return table


def by_model(outcomes: Sequence[Outcome]) -> Table:
    """One row for each model: p50, p95 and the longest wait under each policy."""
    models = sorted(outcomes[0].models, key=lambda name: (-outcomes[0].models[name].requests, name))
    told = "" if len(models) <= SHOWN else f" (the {SHOWN} most asked for, of {len(models)})"
    table = Table(title=f"waits of each model, s: p50 / p95 / max{told}")
    table.add_column("model")
    table.add_column("requests", justify="right")
    for one in outcomes:
        table.add_column(one.policy, justify="right")
    for name in models[:SHOWN]:
        cells = [one.models[name] for one in outcomes]
        told_waits = (f"{waits.p50:.0f} / {waits.p95:.0f} / {waits.worst:.0f}" for waits in cells)
        table.add_row(name, str(cells[0].requests), *told_waits)
    return table
