"""Whose turn it is, of those that are waited for.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llmproxy.scheduling.outlook import Model, Rules

__all__ = ["LEAST_STEP", "in_turn"]

LEAST_STEP = 1.0
"""Seconds of waiting that count as a step of urgency at least, so that they do where nobody waits for a busy
model at all (``max_wait_before_drain`` 0)."""


def in_turn(demands: Iterable[Model], rules: Rules) -> Iterator[Model]:
    """One after the other.

    Urgency is worth time: each step of it as much as to have waited for ``max_wait_before_drain`` longer.  Of
    those that came less than that much later than the longest waiting, the most valuable goes first, and so
    on.  So nobody is passed over for ever; and one that had to drain for another comes after it, though
    mostly more wait for it by then: else it would be started again in place of the one that it has left for.

    With the longest waiting always first, 3 to 7 % more would be waited where some models are asked for more
    than others (``python -m bench.simulate --load zipf``), and as much where not.
    """
    step = max(rules.max_wait_before_drain, LEAST_STEP)

    def since(model: Model) -> float:
        return model.waiting_since - model.urgency * step

    left = sorted(demands, key=lambda model: (since(model), model.name))
    while left:
        limit = since(left[0]) + step
        first = min((model for model in left if since(model) < limit), key=_value)
        left.remove(first)
        yield first


def _value(model: Model) -> tuple[float, ...]:
    """The more urgent; then the one that most wait for, and that is there soonest."""
    seconds = model.reload if model.phase == "absent" else min(model.wake.values(), default=model.reload)
    return (-model.urgency, -model.waiting / max(seconds, 0.001), model.waiting_since)
