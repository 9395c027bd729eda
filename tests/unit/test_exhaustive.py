"""Every order of what may happen to a few backends on one GPU, to a small depth.

``make explore`` goes deeper.
"""

from __future__ import annotations

import pytest

from llmproxy.backend.gate import Gate
from llmproxy.backend.lifecycle import Lifecycle
from tests.model.explore import Found, explore, reach
from tests.model.world import FLEETS, Broken, World


@pytest.mark.parametrize("name", sorted(FLEETS))
def test_every_order(name: str) -> None:
    """Nothing that must not be ever is, and everybody is answered in the end, whatever comes before what."""
    depth = 4 if len(FLEETS[name]) == 2 else 3
    seen = explore(FLEETS[name], depth)
    assert (seen.depth, seen.complete) == (depth, True)
    assert seen.states > 150


def test_what_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that lets everybody start at once is found out, with the steps that show it."""
    monkeypatch.setattr("llmproxy.scheduling.placement.fits", lambda need, free: True)
    monkeypatch.setattr("llmproxy.scheduling.placement._Planner._closed", lambda self, memory, by: None)
    with pytest.raises(Found, match="do not fit together") as found:
        explore(FLEETS["exclusive"], 3)
    assert {name for what, name in found.value.path if what == "asked for"} == {"a", "b"}


@pytest.mark.parametrize("pause", ["a while", "long"])
def test_what_is_stopped_too_early_is_found(pause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop with a request in flight is seen, though the scheduler lives through whatever it meets."""
    monkeypatch.setattr(Lifecycle, "drain", Lifecycle.leave)
    monkeypatch.setattr(Gate, "cut", lambda self, reason: None)
    path = [("asked for", "a"), ("started", "a"), ("healthy", "a"), ("wait", "a moment"), ("asked for", "b")]
    world = reach(FLEETS["exclusive"], path)
    with pytest.raises(Broken, match="a is stopped with a request in flight"):
        world.do(("wait", pause))


def test_a_world_ends_clean() -> None:
    """A world in which nothing happened leaves nothing over."""
    World(FLEETS["three"]).close()
