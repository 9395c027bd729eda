"""Explores every order of what may happen, to a bounded depth.

Breadth first over the states that look different (:meth:`tests.model.world.World.looks`); each is reached by
doing its steps again in a new world, as real objects cannot be copied. A state that looks like one that was
seen is not gone on from, so that what tells two states apart and is not looked at may hide something: the
fields that are looked at are those that the code under test decides by."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import define, field

from tests.model.world import Broken, Step, World

__all__ = ["Explored", "Found", "explore"]


class Found(AssertionError):
    """An order of events after which something is wrong."""

    def __init__(self, path: Sequence[Step], cause: BaseException) -> None:
        told = "\n".join(f"  {name or '-'}: {what}" for what, name in path)
        super().__init__(f"{cause!r} after\n{told}")
        self.path = path


@define
class Explored:
    """What was seen.

    :ivar states: states that look different.
    :ivar steps: transitions that were tried.
    :ivar depth: steps that all orders were tried of.
    :ivar complete: to that depth everything was seen, and not only until time was up.
    """

    states: int = 0
    steps: int = 0
    depth: int = 0
    complete: bool = True
    by_depth: list[int] = field(factory=list)


def reach(fleet: Mapping[str, Mapping[str, Any]], path: Sequence[Step]) -> World:
    """A new world after these steps."""
    world = World(fleet)
    for step in path:
        world.do(step)
    return world


def _tried(fleet: Mapping[str, Mapping[str, Any]], path: Sequence[Step]) -> Iterator[tuple[Step, World]]:
    first = reach(fleet, path)
    for step in sorted(first.steps()):
        try:
            world = reach(fleet, path)
            world.do(step)
            yield step, world
        except Broken as cause:
            raise Found((*path, step), cause) from cause


def explore(fleet: Mapping[str, Mapping[str, Any]], depth: int, seconds: float = 1e9) -> Explored:
    """Try all orders of up to ``depth`` steps; from every state that is new, see that all are answered in the
    end.

    :param seconds: of computing after which no further state is looked at.
    :raises Found: something is wrong after some of them.
    """
    seen = {World(fleet).looks()}
    border: list[tuple[Step, ...]] = [()]
    explored = Explored(states=1)
    until = time.process_time() + seconds
    for _ in range(depth):
        following: list[tuple[Step, ...]] = []
        for path in border:
            if time.process_time() > until:
                explored.complete = False
                return explored
            for step, world in _tried(fleet, path):
                explored.steps += 1
                looks = world.looks()
                if looks in seen:
                    continue
                seen.add(looks)
                following.append((*path, step))
                try:
                    world.settle()
                except Broken as cause:
                    raise Found((*path, step, ("settled", "")), cause) from cause
        explored.states = len(seen)
        explored.depth += 1
        explored.by_depth.append(len(following))
        border = following
        if not border:
            break
    return explored
