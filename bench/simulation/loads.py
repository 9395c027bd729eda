"""Who asks for what, and when: traces that are replayed, and loads that are made up.  Pure."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

from attrs import frozen

from llmproxy.scheduling.claims import NOTHING, SHARES, Memory

__all__ = ["LOADS", "Kind", "Request", "kinds", "made_up", "trace"]

CLAIMS = (0.9, 0.45, 0.45, 0.3, 0.9, 0.6, 0.3, 0.45)
"""Shares of the GPU that a few models claim, in turns: between one and three of them fit."""

SMALL = 0.08
"""Share that each of many models claims: a dozen of them fit."""

MANY = 50
"""Models from which on they are small."""

SERVICE = (math.log(9.0), 0.55)
"""Of a streamed answer: half take less than 9 s, and nine of ten 3.6 to 22 s."""

LONGEST = 120.0
"""Seconds of an answer at most: vLLM's context, or a client's patience, ends it."""

BURST = (5, 15)
"""Requests of a burst; they come within a minute."""


@frozen
class Request:
    """One request.

    :ivar at: seconds since the beginning.
    :ivar seconds: how long its answer takes once it has been handed over.
    :ivar may_evict: its key may have others leave.
    """

    at: float
    model: str
    seconds: float
    priority: int = 0
    may_evict: bool = True


@frozen
class Kind:
    """What one model is like.

    :ivar claim: GPU memory while it runs; ``kept``: while it sleeps.
    :ivar reload: seconds of a typical start; ``wake``, ``stop``, ``sleep``: of the others.
    :ivar host: bytes of host memory that it takes asleep at level 1.
    """

    name: str
    claim: Memory
    reload: float = 45.0
    wake: float = 2.0
    stop: float = 4.0
    sleep: float = 2.0
    sleeps: tuple[int, ...] = ()
    kept: Memory = NOTHING
    host: int = 0
    pinned: bool = False
    priority: int = 0


def kinds(
    names: Sequence[str], seed: int, claims: Sequence[float] = (), *, sleep: bool = False
) -> list[Kind]:
    """Models of one GPU, whose starts take 30 to 60 s.

    :param claims: shares that they claim, in turns.
    :param sleep: they can sleep, and keep a twentieth of what they claim.
    """
    shares = claims or ((SMALL,) if len(names) >= MANY else CLAIMS)
    found = []
    for number, name in enumerate(names):
        dice = Random(f"{seed} {name}")
        units = int(shares[number % len(shares)] * SHARES)
        found.append(
            Kind(
                name,
                {"0": units},
                reload=round(dice.uniform(30.0, 60.0), 1),
                wake=round(dice.uniform(1.0, 3.0), 1),
                sleeps=(1,) if sleep else (),
                kept={"0": units // 20} if sleep else NOTHING,
                host=units if sleep else 0,
            )
        )
    return found


# -- loads that are made up -------------------------------------------------------------------------


def _seconds(dice: Random) -> float:
    return round(min(LONGEST, dice.lognormvariate(*SERVICE)), 3)


def _times(dice: Random, per_minute: float, minutes: float) -> Iterator[float]:
    at = 0.0
    while True:
        at += dice.expovariate(per_minute / 60.0)
        if at >= minutes * 60.0:
            return
        yield round(at, 3)


def _alternating(names: Sequence[str], dice: Random, rate: float, minutes: float) -> Iterator[Request]:
    """A, B, C, A, B, C: each request is for the next model, at random times."""
    for number, at in enumerate(_times(dice, rate, minutes)):
        yield Request(at, names[number % len(names)], _seconds(dice))


def _bursty(names: Sequence[str], dice: Random, rate: float, minutes: float) -> Iterator[Request]:
    """Somebody works with one model for a minute, then somebody with another one; they may overlap."""
    for at in _times(dice, rate * 2.0 / sum(BURST), minutes):
        name = dice.choice(names)
        for _ in range(dice.randint(*BURST)):
            yield Request(round(at + dice.uniform(0.0, 60.0), 3), name, _seconds(dice))


def _zipf(names: Sequence[str], dice: Random, rate: float, minutes: float) -> Iterator[Request]:
    """Each request is for a random model: the second is asked for half as often as the first, the third a
    third as often."""
    ranks = list(names)
    dice.shuffle(ranks)
    weights = [1.0 / rank for rank in range(1, len(ranks) + 1)]
    for at in _times(dice, rate, minutes):
        yield Request(at, dice.choices(ranks, weights)[0], _seconds(dice))


LOADS: Mapping[str, Callable[[Sequence[str], Random, float, float], Iterator[Request]]] = {
    "alternating": _alternating,
    "bursty": _bursty,
    "zipf": _zipf,
}


def made_up(load: str, names: Sequence[str], seed: int, rate: float, minutes: float) -> list[Request]:
    """A load of :data:`LOADS`, in the order of time.

    :param rate: requests a minute, of all models together.
    """
    found = LOADS[load](names, Random(f"{seed} {load}"), rate, minutes)
    return sorted(found, key=lambda one: (one.at, one.model))


# -- traces -----------------------------------------------------------------------------------------

_FIELDS = ("time", "model", "seconds", "priority")


def _request(found: Mapping[str, Any]) -> Request:
    """One line's request; ``ValueError`` says what is wrong with it."""
    if unknown := [str(name) for name in found if name not in _FIELDS]:
        raise ValueError(f"{unknown[0]}: there are {', '.join(_FIELDS)}")
    numbers = {}
    for name in ("time", "seconds"):
        try:
            numbers[name] = float(found[name])
        except KeyError:
            raise ValueError(f"{name} is missing") from None
        except (TypeError, ValueError):
            raise ValueError(f"{name}: {found[name]!r} is no number") from None
        if not 0 <= numbers[name] < math.inf:
            raise ValueError(f"{name}: {found[name]!r} is not 0 or more seconds")
    model = found.get("model")
    if not isinstance(model, str) or not model.strip():
        raise ValueError("model is missing" if not model else f"model: {model!r} is no name")
    priority = found.get("priority") or 0
    try:
        level = int(priority)
    except (TypeError, ValueError):
        raise ValueError(f"priority: {priority!r} is no whole number") from None
    return Request(numbers["time"], model.strip(), numbers["seconds"], level)


def _row(line: str) -> Mapping[str, Any]:
    """The fields of a line: an object, or values with commas between them."""
    if line.startswith("{"):
        try:
            found = json.loads(line)
        except ValueError as cause:
            raise ValueError(f"is no JSON: {cause}") from None
        return dict(found)
    values = [value.strip() for value in next(csv.reader([line]))]
    if len(values) not in (3, 4):
        raise ValueError(f"has {len(values)} values, and not {', '.join(_FIELDS)} (or without the last)")
    return dict(zip(_FIELDS, values, strict=False))


def trace(lines: Iterable[str]) -> list[Request]:
    """The requests of a trace, in the order of time.

    JSON lines or CSV: ``time,model,seconds[,priority]``; a first line with these names, empty lines and
    those that begin with ``#`` say nothing.  ``ValueError`` names the line that is garbage.
    """
    found = []
    first = True
    for number, text in enumerate(lines, 1):
        line = text.strip().removeprefix("\ufeff")
        if not line or line.startswith("#"):
            continue
        if first and line.replace(" ", "").lower().startswith("time,model,seconds"):
            first = False
            continue
        first = False
        try:
            found.append(_request(_row(line)))
        except (ValueError, csv.Error) as cause:
            raise ValueError(f"line {number}: {cause}") from None
    if not found:
        raise ValueError("line 1: there is no request in it")
    return sorted(found, key=lambda one: one.at)
