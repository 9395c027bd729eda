"""Every order of what may happen to a few backends on one GPU, to a small depth.

``make explore`` goes deeper.
"""

from __future__ import annotations

import pytest

from tests.model.explore import Found, explore
from tests.model.world import FLEETS, World


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


def test_a_world_ends_clean() -> None:
    """A world in which nothing happened leaves nothing over."""
    World(FLEETS["three"]).close()
