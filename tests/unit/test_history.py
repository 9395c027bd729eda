"""What is remembered of what happened."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.scheduling.history import MERGE, MOST, OLDEST, Entry, History
from tests.unit.test_learned import JSON

NOW = 1_760_000_000.0
NAMES = st.sampled_from("abc")
TIMES = st.floats(0, 3 * OLDEST).map(lambda seconds: NOW + seconds)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("used"), NAMES, TIMES, TIMES),
        st.tuples(st.sampled_from(("started", "woken", "reaped", "evicted")), NAMES, TIMES, NAMES),
    ),
    max_size=40,
)


def after(steps: list[Any], most: int = MOST) -> History:
    """What is known after these calls."""
    history = History(most)
    for name, *arguments in steps:
        getattr(history, name)(*arguments)
    return history


def test_what_happened_in_its_order() -> None:
    """Uses stand where they began."""
    history = History()
    history.started("coder", NOW, "wanted")
    history.woken("chat", NOW + 1, "wanted")
    history.used("chat", NOW + 1, NOW + 300)
    history.used("coder", NOW, NOW + 600)
    history.reaped("coder", NOW + 1200, "idle")
    history.evicted("chat", NOW + 1300, "coder")
    assert history.entries == (
        Entry(NOW, "coder", "started", "wanted"),
        Entry(NOW, "coder", "used", until=NOW + 600),
        Entry(NOW + 1, "chat", "woken", "wanted"),
        Entry(NOW + 1, "chat", "used", until=NOW + 300),
        Entry(NOW + 1200, "coder", "reaped", "idle"),
        Entry(NOW + 1300, "chat", "evicted", "coder"),
    )


def test_uses_close_together_are_one() -> None:
    """Unless something happened in between."""
    history = History()
    history.used("coder", NOW, NOW + 10)
    history.used("coder", NOW + 10 + MERGE, NOW + 60)
    history.used("coder", NOW + 61 + MERGE, NOW + 100)
    history.reaped("coder", NOW + 101)
    history.used("coder", NOW + 102, NOW + 103)
    uses = [(entry.at - NOW, entry.until - NOW) for entry in history.entries if entry.kind == "used"]
    assert uses == [(0, 60), (61 + MERGE, 100), (102, 103)]


def test_steady_use_is_one_entry() -> None:
    """A thousand requests fill nothing."""
    history = History()
    for second in range(1000):
        history.used("coder", NOW + second, NOW + second + 0.5)
    assert history.entries == (Entry(NOW, "coder", "used", until=NOW + 999.5),)


def test_the_oldest_are_forgotten() -> None:
    """By number and by age."""
    history = History(most=3)
    for second in range(5):
        history.started("coder", NOW + second)
    assert [entry.at for entry in history.entries] == [NOW + 2, NOW + 3, NOW + 4]
    history.used("chat", NOW + 5, NOW + 6)
    history.started("coder", NOW + OLDEST + 4)
    assert [entry.at for entry in history.entries] == [NOW + 4, NOW + 5, NOW + OLDEST + 4]
    history.started("coder", NOW + 2 * OLDEST)
    assert [entry.at for entry in history.entries] == [NOW + OLDEST + 4, NOW + 2 * OLDEST]


def test_what_was_written_by_a_wrong_clock_is_forgotten() -> None:
    """A machine that woke in another year, and was set right."""
    history = History()
    history.started("coder", NOW)
    history.used("coder", NOW + OLDEST / 2, NOW + OLDEST / 2)
    history.started("coder", NOW + OLDEST / 2)
    history.used("chat", NOW + OLDEST / 2, NOW + OLDEST / 2)
    history.started("coder", NOW + 1)
    assert [entry.at for entry in history.entries] == [NOW, NOW + 1]


@given(STEPS, st.integers(1, 9))
def test_it_is_bounded(steps: list[Any], most: int) -> None:
    """Whatever happens in whatever order, of more backends than entries."""
    assert len(after(steps, most).entries) <= most


@given(STEPS, st.integers(1, 9))
def test_a_dump_is_loaded_as_it_was(steps: list[Any], most: int) -> None:
    """Through JSON."""
    history = after(steps, most)
    again = History(most)
    again.started("forgotten", NOW)
    again.load(json.loads(json.dumps(history.dump(), allow_nan=False)))
    assert again.entries == history.entries
    assert again.dump() == history.dump()


@given(STEPS, st.data())
def test_a_damaged_entry_costs_itself(steps: list[Any], data: st.DataObject) -> None:
    """Whatever stands in the place of one, the others are taken."""
    history = after(steps)
    dumped = history.dump()
    at = data.draw(st.integers(0, len(dumped["entries"])))
    damage = data.draw(JSON | st.lists(JSON | st.sampled_from(("used", "reaped", 5)), min_size=4, max_size=4))
    dumped["entries"].insert(at, damage)
    again = History()
    again.load(dumped)
    known = list(again.entries)
    assert [entry for entry in known if entry in history.entries] == list(history.entries)
    assert len(known) <= len(history.entries) + 1


@given(JSON)
def test_anything_else_starts_afresh(dumped: Any) -> None:
    """No version, another version, or no mapping at all."""
    history = History()
    for wrong in (dumped, {"version": 2, "entries": []}, {"version": 1, "entries": dumped}):
        history.load(wrong)
        json.dumps(history.dump(), allow_nan=False)


def test_a_full_history_fits_into_the_file() -> None:
    """Names of twenty letters leave half of the file to others."""
    history = History()
    for second in range(2 * MOST):
        history.evicted("a" * 20, NOW + second, "b" * 20)
    assert len(history.entries) == MOST
    assert len(json.dumps(history.dump(), separators=(",", ":"))) < 400_000


def test_a_use_of_long_ago_is_forgotten() -> None:
    """Also that of a backend that has not been heard of since."""
    history = History()
    history.used("gone", NOW, NOW + 60)
    history.started("coder", NOW + OLDEST + 61)
    assert [entry.backend for entry in history.entries] == ["coder"]


def test_more_than_is_kept_is_not_loaded() -> None:
    """The last ones count."""
    history = History()
    for second in range(5):
        history.started("coder", NOW + second)
    again = History(most=2)
    again.load(history.dump())
    assert again.entries == history.entries[-2:]
