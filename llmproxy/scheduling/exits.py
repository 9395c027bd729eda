"""The ways in which a model may leave, and what each of them costs and frees.  Pure."""

from __future__ import annotations

from llmproxy.scheduling.claims import NOTHING, Memory, minus
from llmproxy.scheduling.outlook import Model
from llmproxy.scheduling.victims import Exit, weight

__all__ = ["exits_of", "rest_of"]


def rest_of(model: Model, how: str) -> Memory:
    """What it has when it has left; asleep no more than awake, whatever was estimated."""
    if how == "stop":
        return NOTHING
    return {gpu: min(units, model.kept.get(gpu, 0)) for gpu, units in model.held.items()}


def exits_of(model: Model, now: float) -> list[Exit]:
    """The ways in which it may leave."""
    wanted = model.busy or model.waiting
    idle_for = 0.0 if wanted else now - model.used_at

    def cost(seconds: float) -> float:
        return weight(seconds, idle_for=idle_for, priority=model.priority)

    exits = [Exit(model.name, "stop", model.held, cost(model.reload))]
    if model.phase != "asleep":
        for level in model.sleeps:
            host = model.host if level == 1 else 0
            freed = minus(model.held, rest_of(model, str(level)))
            exits.append(Exit(model.name, str(level), freed, cost(model.wake.get(level, 3.0)), host))
    return exits
