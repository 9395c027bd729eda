"""What a figure and a goal are, and how what was measured becomes one number.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from attrs import frozen

__all__ = ["Figure", "Goal", "Round", "added", "medians", "outcome", "percentile", "ratios", "spreads"]

Round = dict[str, dict[str, float]]
"""Of each peer, each figure, measured once."""

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


@frozen
class Goal:
    """What a figure of llmproxy should be at most.

    :ivar limit: at most that; with ``peer`` it is so many times that peer's figure.
    """

    key: str
    limit: float
    peer: str | None = None


@frozen
class Outcome:
    """A goal beside what was measured.

    :ivar limit: in the figure's own unit; with a peer it is the ratio that counts.
    :ivar ratio: to the peer's figure, or None.
    :ivar met: None: there is no ratio, as the peer's figure is nothing but noise.
    """

    goal: Goal
    value: float
    limit: float
    ratio: float | None
    met: bool | None


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of all values do not exceed; NaN without values."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def added(round_: Values, keys: Sequence[str]) -> Round:
    """What each peer adds to direct in the same round, as ``added_`` and the figure's name.

    Nothing where direct was not measured.
    """
    direct = round_.get("direct")
    if direct is None:
        return {}
    return {
        peer: {f"added_{key}": values[key] - direct[key] for key in keys}
        for peer, values in round_.items()
        if peer != "direct"
    }


def _each(rounds: Sequence[Values]) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {}
    for round_ in rounds:
        for peer, values in round_.items():
            for key, value in values.items():
                found.setdefault(peer, {}).setdefault(key, []).append(value)
    return found


def medians(rounds: Sequence[Values]) -> Round:
    """Of each peer, the median of each figure over the rounds that have it."""
    return {
        peer: {key: median(several) for key, several in values.items()}
        for peer, values in _each(rounds).items()
    }


def spreads(rounds: Sequence[Values]) -> dict[str, dict[str, tuple[float, float]]]:
    """Of each peer, the lowest and the highest of each figure."""
    return {
        peer: {key: (min(several), max(several)) for key, several in values.items()}
        for peer, values in _each(rounds).items()
    }


def ratios(rounds: Sequence[Values], peer: str) -> dict[str, float]:
    """Each figure of llmproxy over that peer's: the median of the rounds' ratios.

    A machine that is slower in one round is so for both, which the ratio of two medians would not see.  None
    where the peer's figure is not above zero, and so nothing but noise, in half of the rounds.
    """
    found: dict[str, list[float]] = {}
    both: Counter[str] = Counter()
    for round_ in rounds:
        base = round_.get(peer, {})
        for key, value in round_.get("llmproxy", {}).items():
            if key in base:
                both[key] += 1
                if base[key] > 0:
                    found.setdefault(key, []).append(value / base[key])
    return {key: median(several) for key, several in found.items() if 2 * len(several) > both[key]}


def outcome(goal: Goal, figures: Values, to_peer: Mapping[str, float]) -> Outcome | None:
    """Whether llmproxy keeps to a goal; None when a figure for that is missing.

    :param to_peer: the ratios to the goal's peer.
    """
    value = figures.get("llmproxy", {}).get(goal.key)
    if value is None:
        return None
    if goal.peer is None:
        return Outcome(goal, value, goal.limit, None, value <= goal.limit)
    base = figures.get(goal.peer, {}).get(goal.key)
    if base is None:
        return None
    ratio = to_peer.get(goal.key)
    return Outcome(goal, value, goal.limit * base, ratio, None if ratio is None else ratio <= goal.limit)
