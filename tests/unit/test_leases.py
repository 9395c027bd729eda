"""Leases of GPU memory, as they are kept from one run of the proxy to the next."""

from __future__ import annotations

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
        {**GOOD, "since": "now"},
        {},
    ],
)
def test_what_cannot_be_read_is_left_out(wrong: object) -> None:
    """A lease that is none takes none of the others along."""
    leases = Leases()
    leases.load([wrong, GOOD])
    assert [lease.name for lease in leases] == ["lease-1"]
    leases.load(wrong)
    assert [lease.name for lease in leases] == ["lease-1"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "gpu", "memory", "until", "note", "since"]), inner)
        ),
        max_leaves=8,
    )
)
def test_anything_may_stand_in_the_file(found: object) -> None:
    """Whatever it is, nothing is raised, and what was read is a lease."""
    leases = Leases()
    leases.load(found)
    assert all(lease.memory > 0 and isinstance(lease.name, str) for lease in leases)
