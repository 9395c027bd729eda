"""Who leaves: the cheapest set of models whose leaving makes enough room.  Pure.

It is a covering problem (each GPU's lack is to be covered, at the least cost), small enough to be solved
exactly: only what is resident on the GPUs in question counts, and that had to fit there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from llmproxy.scheduling.claims import Memory

__all__ = ["Exit", "cheapest", "weight"]

MOST_STEPS = 20_000
"""Partial sets that are looked at.  Up to a dozen residents, each of which may sleep or stop, it is exact;
beyond that the best set that was found by then is taken."""

ROUNDING = 1e-9
"""Share by which sums of costs may differ from what they are, as they are added in another order."""

RECENT = 10.0
"""Seconds of idleness that halve what it costs to lose a model: who pauses for some seconds mostly comes
back.  So short that of two which take about as long to load, the one that was used before the other leaves:
measured times differ by some hundredths from one start to the next."""


@frozen
class Exit:
    """One way in which one model may leave.

    :ivar how: ``stop``, or a level of sleep: ``1``, ``2``.
    :ivar frees: what is free afterwards, by GPU; never less than nothing.
    :ivar cost: what is lost by it, see :func:`weight`.
    :ivar host: bytes of host memory that it takes (those of a sleeper's weights).
    """

    name: str
    how: str
    frees: Memory
    cost: float
    host: int = 0


def weight(seconds: float, *, idle_for: float, priority: int) -> float:
    """What it costs to lose a model: the time to have it back, the more the likelier it is wanted again.

    :param seconds: to load it again, or to wake it.
    :param idle_for: seconds since its last use.
    :param priority: each step counts double.
    """
    recency = 1.0 / (1.0 + max(0.0, idle_for) / RECENT)
    return float(max(seconds, 0.001) * recency * 2.0 ** max(-20, min(20, priority)))


def cheapest(lack: Memory, exits: Iterable[Exit], host: int) -> list[Exit] | None:
    """The cheapest set that covers ``lack``; None when there is none.

    At most one exit of each model is taken.  Of sets that cost the same, the one with fewer models is taken.

    :param lack: units that are missing, by GPU.
    :param host: bytes of host memory that sleepers may take together.
    """
    wanted = {gpu: units for gpu, units in lack.items() if units > 0}
    if not wanted:
        return []
    choices: dict[str, list[Exit]] = {}
    for one in exits:
        if any(one.frees.get(gpu, 0) > 0 for gpu in wanted):
            choices.setdefault(one.name, []).append(one)
    models = sorted(choices.values(), key=lambda of: (min(one.cost for one in of), of[0].name))
    return _Search(list(wanted.items()), [sorted(of, key=_price) for of in models], host).run()


def _price(one: Exit) -> tuple[float, str]:
    return (one.cost, one.how)


class _Search:
    """Depth first, the cheapest first, and no further where it cannot become better."""

    def __init__(self, wanted: list[tuple[str, int]], models: Sequence[list[Exit]], host: int) -> None:
        self._gpus = [gpu for gpu, _ in wanted]
        self._lack = [units for _, units in wanted]
        self._models = models
        self._host = host
        self._best: list[Exit] | None = None
        self._price: tuple[float, int] = (float("inf"), 0)
        self._steps = 0
        # What all models from the i-th on could free together: where that is too little, it is no use.
        self._most: list[list[int]] = [[0] * len(wanted)]
        for of in reversed(models):
            gains = [max(one.frees.get(gpu, 0) for one in of) for gpu in self._gpus]
            self._most.append([a + b for a, b in zip(self._most[-1], gains, strict=True)])
        self._most.reverse()
        # What a unit costs at least of those from the i-th on: the rest of the lack costs no less than that.
        self._rates: list[list[float]] = [[float("inf")] * len(wanted)]
        for of in reversed(models):
            rates = [
                min(
                    (one.cost / one.frees[gpu] for one in of if one.frees.get(gpu, 0) > 0),
                    default=float("inf"),
                )
                for gpu in self._gpus
            ]
            self._rates.append([min(pair) for pair in zip(self._rates[-1], rates, strict=True)])
        self._rates.reverse()

    def run(self) -> list[Exit] | None:
        self._begin()
        self._go(0, self._lack, self._host, 0.0, [])
        return self._best

    def _begin(self) -> None:
        """A set to begin with, so that there is one however many steps the best would take.

        The cheapest models, each by the exit that frees most without host memory, less those not needed."""
        taken: list[Exit] = []
        for of in self._models:
            stops = [one for one in of if not one.host]
            if stops and not self._covers(taken):
                taken.append(max(stops, key=lambda one: sum(one.frees.get(gpu, 0) for gpu in self._gpus)))
        if not self._covers(taken):
            return
        for one in sorted(taken, key=_price, reverse=True):
            rest = [other for other in taken if other is not one]
            taken = rest if self._covers(rest) else taken
        self._best, self._price = taken, (sum(one.cost for one in taken), len(taken))

    def _covers(self, taken: Sequence[Exit]) -> bool:
        return all(
            sum(one.frees.get(gpu, 0) for one in taken) >= units
            for gpu, units in zip(self._gpus, self._lack, strict=True)
        )

    def _go(self, at: int, lack: list[int], host: int, cost: float, taken: list[Exit]) -> None:
        if (cost, len(taken)) >= self._price:
            return
        if all(units <= 0 for units in lack):
            self._best, self._price = list(taken), (cost, len(taken))
            return
        self._steps += 1
        if self._steps > MOST_STEPS:
            return
        if any(units > most for units, most in zip(lack, self._most[at], strict=True)):
            return
        # A little less than that, since the sum of costs may be rounded otherwise.
        least = max(units * rate for units, rate in zip(lack, self._rates[at], strict=True) if units > 0)
        if cost + least * (1 - ROUNDING) > self._price[0]:
            return
        for one in self._models[at]:
            if one.host <= host:
                left = [units - one.frees.get(gpu, 0) for gpu, units in zip(self._gpus, lack, strict=True)]
                taken.append(one)
                self._go(at + 1, left, host - one.host, cost + one.cost, taken)
                taken.pop()
        self._go(at + 1, lack, host, cost, taken)
