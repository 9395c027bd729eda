"""Which models there are, how many ask for which, and for how long.  Pure, but for dice with a seed."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from random import Random

from attrs import frozen

__all__ = ["Demand", "Model", "models"]

SIZES = ((8, 0.25), (16, 0.30), (24, 0.20), (40, 0.15), (80, 0.08), (160, 0.02))
"""GiB of GPU memory that a model reserves, its cache included, and the part of all models that do."""

WEIGHTS = 0.6
"""Part of that which are weights, and have to be fetched and loaded."""

SERVICE = (math.log(9.0), 0.55)
"""Of a streamed answer, as in :mod:`bench.simulation.loads`: half take less than 9 s."""

LONGEST = 120.0
"""Seconds of an answer at most."""


@frozen
class Model:
    """One of them.

    :ivar room: GiB of GPU memory that a task of it reserves.
    """

    name: str
    room: int

    @property
    def weights(self) -> float:
        """GiB that are fetched and loaded."""
        return self.room * WEIGHTS


def models(number: int, seed: int, largest: int) -> list[Model]:
    """So many models.

    :param largest: GiB of the largest node: what no node can hold would wait for ever.
    """
    dice = Random(f"{seed} models")
    sizes = [size for size, _ in SIZES if size <= largest]
    parts = [part for size, part in SIZES if size <= largest]
    return [Model(f"m{each:05d}", dice.choices(sizes, parts)[0]) for each in range(number)]


class Demand:
    """Zipf's law over models whose ranks drift.

    :param rate: requests a second, of all together.
    :param exponent: the model of rank r is asked for in proportion to ``r ** -exponent``.
    :ivar order: the models by rank, the most asked for first.
    """

    def __init__(self, those: Sequence[Model], rate: float, exponent: float, seed: int) -> None:
        self.order = list(those)
        self._dice = Random(f"{seed} demand")
        self._dice.shuffle(self.order)
        self._rate = rate
        self._sums: list[float] = [*accumulate(rank**-exponent for rank in range(1, len(those) + 1))]

    def pause(self) -> float:
        """Seconds until the next request."""
        return self._dice.expovariate(self._rate)

    def pick(self) -> Model:
        """Which model it is for."""
        return self.order[self._rank()]

    def seconds(self) -> float:
        """How long its answer takes."""
        return min(LONGEST, self._dice.lognormvariate(*SERVICE))

    def share(self, rank: int) -> float:
        """Part of all requests that the model of this rank (from 0) gets."""
        before = self._sums[rank - 1] if rank else 0.0
        return (self._sums[rank] - before) / self._sums[-1]

    def drift(self) -> None:
        """Two models change places: at any rank alike on a logarithmic scale, so that it is as likely that
        one of the first ten changes as one between rank 100 and 1,000."""
        a, b = (self._any_rank() for _ in range(2))
        self.order[a], self.order[b] = self.order[b], self.order[a]

    def _rank(self) -> int:
        return min(bisect_left(self._sums, self._dice.random() * self._sums[-1]), len(self.order) - 1)

    def _any_rank(self) -> int:
        return min(int(len(self.order) ** self._dice.random()), len(self.order)) - 1
