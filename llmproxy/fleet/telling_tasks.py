"""What ``why`` says of a backend that runs as several tasks.  Pure; loaded where there is such a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from attrs import frozen

from llmproxy.config.model import Replicas
from llmproxy.words import duration

__all__ = ["Scaled", "Tally", "tell_tasks"]

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


@frozen
class Scaled:
    """The last time that there was to be one task more, or one fewer: when (POSIX seconds), and why."""

    at: float
    direction: Literal["out", "in"]
    why: str


@frozen
class Tally:
    """How many tasks there are.

    :ivar states: of each task that runs (:attr:`llmproxy.backend.serving.TaskState.state`).
    :ivar pending: why not all that are wanted run; empty: they do, or nobody says.
    """

    settings: Replicas
    wanted: int = 0
    states: Sequence[str] = ()
    pending: str = ""
    scaled: Scaled | None = None


def tell_tasks(tally: Tally, now: float) -> list[str]:
    """How many run, how each of the others is, how many there may be, and what changed that last.

    :param now: POSIX seconds.
    """
    lines = [_running(tally)] if tally.wanted or tally.states else []
    for state, words in (
        ("starting", "not healthy yet"),
        ("resting", "given nothing new: about to leave, or silent"),
        ("leaving", "leaving"),
    ):
        count = tally.states.count(state)
        if count:
            lines.append(f"{count} of them {'is' if count == 1 else 'are'} {words}.")
    lines.append(_bounds(tally.settings))
    scaled = tally.scaled
    if scaled is not None:
        ago = duration(max(0.0, now - scaled.at))
        lines.append(f"It was last scaled {scaled.direction} {ago} ago: {scaled.why}.")
    return lines


def _running(tally: Tally) -> str:
    staying = len(tally.states) - tally.states.count("leaving")
    missing = tally.wanted - staying
    if missing <= 0:
        if len(tally.states) == 1:
            return "1 task runs, which is all that are wanted."
        told = "" if len(tally.states) == tally.wanted else f", and {tally.wanted} are wanted"
        return f"{len(tally.states)} tasks run{told}."
    verb = "runs" if staying == 1 else "run"
    one = missing == 1 and tally.wanted <= len(_ORDINALS)
    rest = f"the {_ORDINALS[tally.wanted - 1]}" if one else f"{missing} more"
    single = missing == 1
    if not tally.pending:
        told = f"{rest} {'is' if single else 'are'} on {'its' if single else 'their'} way"
    elif _unplaced(tally.pending):
        told = f"{rest} {'waits' if single else 'wait'} for a node: {tally.pending.rstrip('.')}"
    else:
        told = f"{rest} {'does' if single else 'do'} not run: {tally.pending.rstrip('.')}"
    return f"{staying} of {tally.wanted} tasks {verb}; {told}."


def _unplaced(pending: str) -> bool:
    """Whether Swarm says that it has found no node."""
    return "no suitable node" in pending or "no node" in pending


def _bounds(settings: Replicas) -> str:
    each = settings.target_in_flight
    load = f"one for each {each} requests" if each != 1 else "one for each request"
    if settings.max == 1 and settings.min <= 1:
        return "There may be 1 task (replicas)."
    if settings.min == settings.max:
        return f"There are to be {settings.max} tasks (replicas)."
    least = max(1, settings.min)
    return f"There may be {least} to {settings.max} tasks, {load} (replicas)."
