"""What is measured of backends, and what is expected of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.scheduling.learned import KEPT, MOST, MOST_PHASES, RELOAD, SLEEP, STOP, WAKE, Estimate, Learned

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from("abc")
SECONDS = st.floats(allow_nan=True) | st.integers()
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("started"), NAMES, NAMES, st.dictionaries(NAMES, SECONDS), SECONDS),
        st.tuples(st.just("woke"), NAMES, NAMES, st.integers(0, 3), SECONDS),
        st.tuples(st.just("slept"), NAMES, NAMES, SECONDS),
        st.tuples(st.just("stopped"), NAMES, NAMES, SECONDS),
        st.tuples(st.just("kept_asleep"), NAMES, NAMES, st.integers()),
    ),
    max_size=40,
)


def after(steps: list[Any], most: int = MOST) -> Learned:
    """What is known after these calls."""
    learned = Learned(most)
    for name, *arguments in steps:
        getattr(learned, name)(*arguments)
    return learned


def test_nothing_known() -> None:
    """The documented defaults, and it says that nothing of it was measured."""
    expected = Estimate(RELOAD, WAKE, SLEEP, STOP, {}, KEPT, frozenset())
    assert Learned().estimate("coder", "f") == expected


def test_measured() -> None:
    """Each kind of measurement has its place in the estimate; other configurations know nothing of it."""
    learned = Learned()
    learned.started("coder", "f", {"loading": 20.0, "graphs": 10.0}, 31.0)
    learned.woke("coder", "f", 1, 0.5)
    learned.woke("coder", "f", 2, 2.5)
    learned.slept("coder", "f", 1.5)
    learned.stopped("coder", "f", 4.0)
    learned.kept_asleep("coder", "f", 10**9)
    estimate = learned.estimate("coder", "f")
    assert estimate == Estimate(
        31.0,
        0.5,
        1.5,
        4.0,
        {"loading": 20.0, "graphs": 10.0},
        10**9,
        frozenset(
            ("reload_seconds", "wake_seconds", "sleep_seconds", "stop_seconds", "phases", "kept_asleep")
        ),
    )
    assert list(estimate.phases) == ["loading", "graphs"]
    assert learned.estimate("coder", "f", 2).wake_seconds == 2.5
    assert learned.estimate("coder", "other") == learned.estimate("chat", "f") == Estimate()


def test_one_slow_start_is_outvoted() -> None:
    """A cold page cache counts until it is outvoted, and a lasting change counts after three starts."""
    learned = Learned()
    estimates = []
    for seconds in (180.0, 40.0, 42.0, 41.0, 43.0, 90.0, 91.0, 92.0):
        learned.started("coder", "f", {}, seconds)
        estimates.append(learned.estimate("coder", "f").reload_seconds)
    assert estimates == [180.0, 40.0, 42.0, 41.0, 42.0, 42.0, 43.0, 90.0]


def test_what_was_kept_asleep_is_the_most() -> None:
    """One that kept more than usual may do so again, and the next start would fail."""
    learned = Learned()
    for amount in (9, 1, 1, 1, 1):
        learned.kept_asleep("coder", "f", amount)
    assert learned.estimate("coder", "f").kept_asleep == 9
    learned.kept_asleep("coder", "f", 1)
    assert learned.estimate("coder", "f").kept_asleep == 1


def test_a_phase_that_most_starts_lack_is_not_expected() -> None:
    """A download happens once; the order is that of the last start."""
    learned = Learned()
    learned.started("coder", "f", {"download": 300.0, "loading": 20.0}, 330.0)
    learned.started("coder", "f", {"loading": 18.0, "graphs": 9.0}, 28.0)
    learned.started("coder", "f", {"graphs": 8.0, "loading": 19.0}, 28.0)
    phases = learned.estimate("coder", "f").phases
    assert list(phases.items()) == [("graphs", 8.0), ("loading", 19.0)]


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, True, "1", None])
def test_what_cannot_be_true_is_dropped(seconds: Any) -> None:
    """The clock was set meanwhile, or a file says so."""
    learned = Learned()
    learned.started("coder", "f", {}, seconds)
    learned.woke("coder", "f", 1, seconds)
    learned.slept("coder", "f", seconds)
    learned.stopped("coder", "f", seconds)
    learned.kept_asleep("coder", "f", seconds)
    learned.woke("coder", "f", 3, 1.0)
    assert learned.dump()["configurations"] == []
    learned.started("coder", "f", {"loading": seconds}, 30.0)
    assert learned.estimate("coder", "f").phases == {}


def test_configurations_not_seen_for_longest_are_forgotten() -> None:
    """To measure one is to see it, and so is to ask about it."""
    learned = Learned(most=2)
    learned.stopped("a", "f", 1.0)
    learned.stopped("b", "f", 2.0)
    learned.estimate("a", "f")
    learned.stopped("c", "f", 3.0)
    assert learned.estimate("b", "f").stop_seconds == STOP
    assert learned.estimate("a", "f").stop_seconds == 1.0
    assert learned.estimate("c", "f").stop_seconds == 3.0


@given(STEPS, st.integers(1, 9))
def test_a_dump_is_loaded_as_it_was(steps: list[Any], most: int) -> None:
    """Through JSON, the order in which they are forgotten included."""
    learned = after(steps, most)
    again = Learned(most)
    again.stopped("forgotten", "f", 1.0)
    again.load(json.loads(json.dumps(learned.dump(), allow_nan=False)))
    assert again == learned
    assert again.dump() == learned.dump()
    for route in "abc":
        for fingerprint in "abc":
            assert again.estimate(route, fingerprint, 2) == learned.estimate(route, fingerprint, 2)


@given(STEPS, st.data())
def test_a_damaged_dump_costs_what_is_damaged(steps: list[Any], data: st.DataObject) -> None:
    """Whatever stands in the place of one configuration, the others are taken."""
    dumped = after(steps).dump()
    entries = dumped["configurations"]
    at = data.draw(st.integers(0, len(entries)))
    damaged = [*entries[:at], data.draw(JSON), *entries[at:]]
    learned = Learned()
    learned.load({**dumped, "configurations": damaged})
    assert [entry for entry in learned.dump()["configurations"] if entry in entries] == entries


@given(STEPS.filter(bool), st.data())
def test_a_damaged_value_costs_little(steps: list[Any], data: st.DataObject) -> None:
    """Any value within a configuration may be anything."""
    dumped = after([*steps, ("stopped", "z", "z", 1.0)]).dump()
    entry = data.draw(st.sampled_from(dumped["configurations"]))
    entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(JSON)
    learned = Learned()
    learned.load(dumped)
    again = Learned()
    again.load(learned.dump())
    assert again == learned


@given(JSON)
def test_anything_else_starts_afresh(dumped: Any) -> None:
    """No version, another version, or no mapping at all."""
    learned = Learned()
    for wrong in (dumped, {"version": 2, "configurations": []}, {"version": 1, "configurations": dumped}):
        learned.load(wrong)
        json.dumps(learned.dump(), allow_nan=False)


def test_a_dump_is_bounded() -> None:
    """As many configurations as are remembered, each with as much as is remembered, fit into the file."""
    learned = Learned()
    phases = {f"phase number {number}": 12.345 for number in range(100)}
    for number in range(3 * MOST):
        for _ in range(9):
            learned.started(f"route-{number}", "f" * 32, phases, 123.456)
    entries = learned.dump()["configurations"]
    assert len(entries) == MOST
    assert all(len(of_one) <= MOST_PHASES for entry in entries for _, of_one in entry["starts"])
