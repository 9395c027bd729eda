"""Phases only go forward, and what is expected of them is neither negative nor wild."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.backend.progress import WAKING, Progress
from llmproxy.engines.phases import ORDER, Phase

USUAL = {
    "creating": 1.0,
    "starting": 10.0,
    "loading weights": 20.0,
    "compiling": 8.0,
    "capturing graphs": 5.0,
}


def test_the_first_start_says_nothing() -> None:
    """Until the log tells how much of a phase is done; then the pace of that phase is known."""
    start = Progress(100.0, "creating")
    assert start.left(101.0) is None
    start.advance(Phase("starting"), 102.0)
    assert start.left(103.0) is None
    start.advance(Phase("loading weights", 0.0), 110.0)
    assert start.left(111.0) is None
    start.advance(Phase("loading weights", 0.25), 115.0)
    assert start.left(115.0) == pytest.approx(15.0)
    start.advance(Phase("loading weights", 1.0), 130.0)
    assert start.left(130.0) is None
    start.advance(Phase("compiling"), 131.0)
    assert start.left(131.0) is None


def test_what_earlier_starts_took_is_expected() -> None:
    """The rest of the present phase, and the phases after it; those that were passed over do not count."""
    start = Progress(0.0, "creating", USUAL, 44.0)
    assert start.left(0.5) == pytest.approx(43.5)
    start.advance(Phase("starting"), 1.0)
    assert start.left(6.0) == pytest.approx(38.0)
    start.advance(Phase("loading weights", 0.0), 11.0)
    assert start.left(11.0) == pytest.approx(33.0)
    start.advance(Phase("capturing graphs", 0.0), 31.0)
    assert start.left(31.0) == pytest.approx(5.0)
    assert start.left(99.0) == 0.0


def test_the_pace_counts_as_much_as_is_done() -> None:
    """A phase that runs twice as slow as it used to is believed more and more."""
    start = Progress(0.0, "loading weights", {"loading weights": 20.0, "compiling": 8.0})
    start.advance(Phase("loading weights", 0.5), 20.0)
    left = start.left(20.0)
    assert left is not None
    assert 10.0 + 8.0 < left <= 20.0 + 8.0
    start.advance(Phase("loading weights", 0.9), 36.0)
    assert start.left(36.0) == pytest.approx(8.0 + 0.1 * (0.1 * 20 + 36), abs=0.1)


def test_what_happens_once_is_not_known_beforehand() -> None:
    """A pull or a download takes any time; when its bar tells, its pace is added to the rest."""
    start = Progress(0.0, "creating", USUAL, 44.0)
    start.advance(Phase("pulling"), 1.0)
    assert start.left(2.0) is None
    start.advance(Phase("pulling", 0.5), 31.0)
    assert start.left(31.0) == pytest.approx(30.0 + 43.0)
    start.advance(Phase("starting"), 70.0)
    start.advance(Phase("downloading"), 75.0)
    assert start.left(76.0) is None
    # One that is merely new has most likely little to say.
    other = Progress(0.0, "starting", USUAL)
    other.advance(Phase("profiling"), 30.0)
    assert other.left(31.0) == pytest.approx(5.0)


def test_without_known_phases_the_whole_is_what_is_left() -> None:
    """As where what was learned has other names."""
    start = Progress(0.0, "starting", {"health": 30.0}, 40.0)
    assert start.left(10.0) == pytest.approx(30.0)
    assert start.left(50.0) == 0.0


def test_a_wake_has_one_phase() -> None:
    """And what it took before is expected."""
    wake = Progress(0.0, WAKING, {WAKING: 3.0})
    assert wake.left(1.0) == pytest.approx(2.0)
    assert wake.seconds(2.5) == {WAKING: 2.5}


def test_a_phase_that_is_told_at_its_end_began_before() -> None:
    """Progress bars without line ends reach Docker's log when they are full."""
    start = Progress(0.0, "starting")
    start.advance(Phase("profiling"), 30.0)
    start.advance(Phase("capturing graphs", 1.0), 50.0)
    start.advance(Phase("capturing graphs", 1.0, 14.0), 50.1)
    seconds = start.seconds(51.1)
    assert list(seconds) == ["starting", "profiling", "capturing graphs"]
    assert seconds["profiling"] == pytest.approx(6.1)
    assert seconds["capturing graphs"] == pytest.approx(15.0)
    start = Progress(0.0, "starting")
    start.advance(Phase("compiling", 1.0, 500.0), 40.0)
    assert start.seconds(40.0) == {"starting": 0.0, "compiling": 40.0}


def test_what_is_past_does_not_come_again() -> None:
    """A second model, for speculation, is loaded when graphs of the first are compiled."""
    start = Progress(0.0, "starting")
    assert start.advance(Phase("loading weights", 1.0), 10.0)
    assert not start.advance(Phase("loading weights", 0.1), 11.0)
    assert start.done == 1.0
    assert start.advance(Phase("compiling"), 12.0)
    assert not start.advance(Phase("loading weights", 0.5), 13.0)
    assert start.name == "compiling"
    assert start.forecast(14.0).progress is None


PHASES = st.builds(
    Phase,
    st.sampled_from(ORDER[1:]),
    st.none() | st.floats(0, 1),
    st.none() | st.floats(0, 1e5),
)
EXPECTED = st.dictionaries(st.sampled_from([*ORDER, "health"]), st.floats(0, 1000))


@given(
    EXPECTED,
    st.none() | st.floats(0, 5000),
    st.lists(st.tuples(st.floats(0, 100), st.none() | PHASES), max_size=30),
)
def test_any_start(
    expected: dict[str, float], whole: float | None, happens: list[tuple[float, Phase | None]]
) -> None:
    """Phases go forward, their seconds add up to the whole, and what is left is never negative and grows
    in no phase."""
    now = 1000.0
    start = Progress(now, "creating", expected, whole)
    shown: tuple[str, float | None] = ("creating", None)
    for later, phase in happens:
        now += later
        rank = ORDER.index(start.name)
        if phase is not None:
            moved = start.advance(phase, now)
            assert moved == (ORDER.index(start.name) > rank)
        assert ORDER.index(start.name) >= rank
        seconds = start.seconds(now)
        assert all(each >= 0 for each in seconds.values())
        assert sum(seconds.values()) == pytest.approx(now - 1000.0)
        left = start.left(now)
        assert left is None or left >= 0
        if left is not None and shown[0] == start.name and shown[1] is not None:
            assert left <= shown[1]
        shown = (start.name, left)
        assert start.forecast(now).eta == left
