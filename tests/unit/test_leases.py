"""Leases of GPU memory, as they are kept from one run of the proxy to the next."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.scheduling.leases import Leases

GOOD: dict[str, Any] = {"name": "lease-1", "gpu": "0", "memory": 0.5, "until": 20.0, "note": "a game"}


def test_they_come_back_as_they_were() -> None:
    """What was written down is read again, and a name that was given out is not given out twice."""
    before = Leases()
    for gpu in "01":
        before.take(gpu, 0.5, 20.0, "a game", 10.0)
    before.end("lease-1")
    before.take("0", 1 << 30, 30.0, "", 11.0)
    after = Leases()
    after.load(before.dump())
    assert list(after) == list(before)
    assert [lease.name for lease in after] == ["lease-2", "lease-3"]
    names = {after.take("0", 0.1, 40.0, "", 12.0).name for _ in range(3)}
    assert len(names) == 3
    assert not names & {"lease-2", "lease-3"}


@pytest.mark.parametrize(
    "wrong",
    [
        "lease-1",
        {**GOOD, "name": 1},
        {**GOOD, "gpu": None},
        {**GOOD, "note": 2},
        {**GOOD, "memory": True},
        {**GOOD, "memory": "0.5"},
        {**GOOD, "memory": 0},
        {**GOOD, "memory": -1},
        {**GOOD, "until": None},
        {**GOOD, "until": True},
        {**GOOD, "until": math.nan},
        {**GOOD, "until": 10**400},
        {**GOOD, "memory": math.nan},
        {**GOOD, "memory": math.inf},
        {**GOOD, "memory": 10**400},
        {**GOOD, "since": "now"},
        {**GOOD, "since": True},
        {**GOOD, "since": 10**400},
        {},
    ],
)
def test_what_cannot_be_read_is_left_out(wrong: object) -> None:
    """A lease that is none takes none of the others along."""
    leases = Leases()
    leases.load([wrong])
    leases.load(wrong)
    assert list(leases) == []
    leases.load([wrong, GOOD, wrong])
    assert [(lease.name, lease.memory) for lease in leases] == [("lease-1", 0.5)]


WHATEVER = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.sampled_from([10**400, -(10**400), math.nan, math.inf])
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.none(), max_size=1)
)


ALMOST = st.dictionaries(st.sampled_from([*GOOD, "since", "held"]), WHATEVER, max_size=2).map(
    lambda changed: {**GOOD, **changed}
)
"""Leases, but for what is changed of them."""


@given(st.lists(ALMOST, max_size=4))
def test_anything_may_stand_in_the_file(found: object) -> None:
    """Whatever is wrong, nothing is raised, and what was read is a lease, with which one can reckon."""
    leases = Leases()
    leases.load(found)
    for lease in leases:
        assert all(isinstance(text, str) for text in (lease.name, lease.gpu, lease.note))
        assert 0 < lease.memory < math.inf
        assert all(isinstance(at, float) and math.isfinite(at) for at in (lease.until, lease.since))
    over = [lease.name for lease in leases if lease.until <= 10.0]
    assert [lease.name for lease in leases.expire(10.0)] == over
