"""Recommendations from recorded use."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.scheduling.advice import LEAST_DAYS, LEAST_SAVED, LEAST_STARTS, Advice, Present, advise
from llmproxy.scheduling.history import Entry

NOW = 1_760_000_000.0
MINUTE = 60.0
DAY = 86400.0
ONE = {"0": 1.0}
ALONE = Present(10 * MINUTE, {"0": 0.9})
HALF = Present(10 * MINUTE, {"0": 0.45})


def use(backend: str, at: float, seconds: float = MINUTE) -> list[Entry]:
    """A use that needed a start."""
    at += NOW
    return [Entry(at, backend, "started"), Entry(at, backend, "used", until=at + seconds)]


def record(*uses: list[Entry]) -> list[Entry]:
    """In the order of their times."""
    return sorted((entry for entries in uses for entry in entries), key=lambda entry: entry.at)


def every(backend: str, minutes: float, days: float, begin: float = 0.0) -> list[Entry]:
    """A use of a minute every so often."""
    count = int(days * DAY / (minutes * MINUTE))
    return record(*(use(backend, begin + index * minutes * MINUTE) for index in range(count + 1)))


def test_a_longer_idle_time() -> None:
    """One who comes back every 22 minutes needs 25, and is not told to keep it for a day."""
    (advice,) = advise(every("coder", 22, 3), {"coder": ALONE}, ONE)
    assert (advice.setting, advice.present, advice.value) == ("idle", 600.0, 1500.0)
    assert (advice.starts, advice.saved, advice.others, advice.evictions) == (197, 196, 0, 0)
    assert advice.per_day == pytest.approx(196 / 3, rel=0.01)
    assert advice.held == pytest.approx((196 * 11 + 15) * MINUTE / 3, rel=0.01)
    assert str(advice) == (
        "coder: raise idle from 10m to 25m: 196 of 197 starts in 3 days would not have been needed"
    )


def test_only_starts_that_it_would_have_saved_count() -> None:
    """Nights are not bridged: of three bursts a day the gaps between them stay."""
    uses = [
        use("coder", day * DAY + hour * 3600 + minute * MINUTE)
        for day in range(4)
        for hour in (9, 14, 20)
        for minute in (0, 20, 40)
    ]
    (advice,) = advise(record(*uses), {"coder": ALONE}, ONE)
    assert str(advice) == (
        "coder: raise idle from 10m to 20m: 24 of 36 starts in 3 days would not have been needed"
    )


def test_another_that_was_used_in_between() -> None:
    """It would have had to leave all the same, so that a longer idle time saves nothing."""
    entries = record(every("coder", 40, 3), every("chat", 40, 3, begin=20 * MINUTE))
    assert advise(entries, {"coder": ALONE, "chat": ALONE}, ONE) == []


def test_another_that_fits_beside_it() -> None:
    """Is in nobody's way; each is judged by itself."""
    entries = record(every("coder", 40, 3), every("chat", 40, 3, begin=20 * MINUTE))
    found = advise(entries, {"coder": HALF, "chat": HALF}, ONE)
    assert [(advice.backend, advice.value) for advice in found] == [("coder", 2700.0), ("chat", 2700.0)]


def test_what_a_longer_idle_time_costs_others() -> None:
    """Who finds it still there waits until it has left."""
    entries = record(every("coder", 22, 3), *(use("chat", hour * 3600 + 900) for hour in range(72)))
    (advice,) = advise(entries, {"coder": ALONE, "chat": evolve(ALONE, idle=MINUTE)}, ONE)
    assert (advice.backend, advice.value, advice.others) == ("coder", 1500.0, 0)
    assert advice.evictions > 0
    assert str(advice).endswith(
        f"; one would have had to make room for another {advice.evictions} times more"
    )


def trio() -> list[Entry]:
    """One that is used all the time, and two that come by turns while it is not in use for a moment."""
    return record(
        every("small", 9, 2),
        every("other", 90, 2, begin=3 * MINUTE),
        every("third", 90, 2, begin=48 * MINUTE),
    )


def test_a_pin() -> None:
    """For one in frequent use that others push out, where each of them fits beside it."""
    present = {
        "small": Present(10 * MINUTE, {"0": 0.45}, priority=-1, reload_seconds=60.0),
        "other": Present(0.0, {"0": 0.5}, reload_seconds=30.0),
        "third": Present(0.0, {"0": 0.5}, reload_seconds=30.0),
    }
    (advice,) = advise(trio(), present, ONE)
    assert (advice.backend, advice.setting, advice.present, advice.value) == ("small", "pinned", False, True)
    assert str(advice) == (
        "small: pin it: 63 of 64 starts in 2 days would not have been needed; others would have started once"
        " more"
    )
    assert (advice.evictions, advice.held) == (-63, 0.0)


@pytest.mark.parametrize("claim", [0.6, 0.9])
def test_no_pin_that_shuts_another_out(claim: float) -> None:
    """Whether that one was ever used or not."""
    present = {
        "small": Present(10 * MINUTE, {"0": 0.45}, priority=-1),
        "other": Present(0.0, {"0": 0.5}),
        "third": Present(0.0, {"0": 0.5}),
        "never": Present(0.0, {"0": claim}),
    }
    assert advise(trio(), present, ONE) == []
    # What could not run anyway is no reason.
    present["never"] = Present(0.0, {"0": 1.5})
    assert [advice.setting for advice in advise(trio(), present, ONE)] == ["pinned"]


def test_who_leaves() -> None:
    """Only who is in the way: not one on another GPU, nor one that is spared because a larger one leaves."""
    turns = [
        *(use("far", hour * 3600) for hour in range(48)),
        *(use("small", hour * 3600 + 60) for hour in range(48)),
        *(use("large", hour * 3600 + 120) for hour in range(48)),
        *(use("coder", hour * 3600 + 1200) for hour in range(48)),
    ]
    present = {
        "far": Present(0.0, {"1": 0.9}),
        "small": Present(0.0, {"0": 0.2}, reload_seconds=10.0),
        "large": Present(0.0, {"0": 0.7}),
        "coder": Present(0.0, {"0": 0.7}),
    }
    capacities = {"0": 1.0, "1": 1.0}
    # Coder and large take turns, and a pin would shut one of them out; the others stay as they are.
    assert advise(record(*turns), present, capacities) == []
    present["small"] = Present(MINUTE, {"0": 0.2})
    (advice,) = advise(record(*turns), present, capacities)
    assert (advice.backend, advice.value, advice.saved, advice.starts) == ("small", 3600.0, 47, 48)


def test_no_pin_beside_others_that_are_pinned() -> None:
    """They have to fit together, and each other one beside all of them."""
    present = {
        "small": Present(10 * MINUTE, {"0": 0.45}, priority=-1),
        "other": Present(0.0, {"0": 0.5}),
        "third": Present(0.0, {"0": 0.5}),
        "king": Present(0.0, {"0": 0.2}, pinned=True),
    }
    assert advise(trio(), present, ONE) == []


def test_no_pin_that_makes_two_leave_in_use() -> None:
    """Two that are used at the same time and fit together would push each other out."""
    uses = [
        *(use("big", hour * 3600, 1800) for hour in range(48)),
        *(use("large", hour * 3600 + 60, 1800) for hour in range(48)),
        *(use("small", hour * 3600 + 2400) for hour in range(48)),
    ]
    present = {
        "small": Present(0.0, {"0": 0.4}, priority=-1),
        "big": Present(0.0, {"0": 0.5}),
        "large": Present(0.0, {"0": 0.5}),
    }
    assert [advice.setting for advice in advise(record(*uses), present, ONE)] == []


def test_too_little_is_known() -> None:
    """Too short a time, too few starts, too little to gain."""
    assert advise([], {"coder": ALONE}, ONE) == []
    short = every("coder", 22, LEAST_DAYS * 0.9)
    assert advise(short, {"coder": ALONE}, ONE) == []
    few = record(*(use("coder", index * DAY / 2) for index in range(LEAST_STARTS - 1)))
    assert advise(few, {"coder": ALONE}, ONE) == []
    rare = record(
        every("coder", 2880, 20), *(use("coder", d * 4 * DAY + 900) for d in range(LEAST_SAVED + 1))
    )
    assert advise(rare, {"coder": ALONE}, ONE) == []
    quick = {"coder": evolve(ALONE, reload_seconds=0.3)}
    assert advise(every("coder", 22, 3), quick, ONE) == []


def test_what_nobody_started_is_not_advised_on() -> None:
    """The record has uses only: somebody else keeps it running."""
    entries = [entry for entry in every("coder", 22, 3) if entry.kind == "used"]
    assert advise(entries, {"coder": ALONE}, ONE) == []


def test_what_is_configured_no_more_is_ignored() -> None:
    """It is neither advised on nor in anybody's way."""
    entries = record(every("coder", 40, 3), every("gone", 40, 3, begin=20 * MINUTE))
    (advice,) = advise(entries, {"coder": ALONE}, ONE)
    assert advice.backend == "coder"


def test_never_is_long_enough() -> None:
    """One that is never reaped needs no longer idle time."""
    assert advise(every("coder", 22, 3), {"coder": evolve(ALONE, idle=0.0)}, ONE) == []


def test_words() -> None:
    """Numbers of one are words."""
    advice = Advice("a", "idle", 90.0, 300.0, 9, 8, 1, 1, 0.0, 1.2, 100.0)
    assert str(advice) == (
        "a: raise idle from 90s to 5m: 8 of 9 starts in a day would not have been needed; others would have"
        " started once more; one would have had to make room for another once more"
    )
    assert advice.per_day == pytest.approx(7 / 1.2)


def uses() -> st.SearchStrategy[list[Entry]]:
    """Any record of three backends over some days."""
    one = st.tuples(st.sampled_from("abc"), st.integers(0, 3 * 1440), st.integers(1, 60))
    return st.lists(one, max_size=60).map(
        lambda found: record(*(use(name, at * MINUTE, length * MINUTE) for name, at, length in found))
    )


PRESENT = st.builds(
    Present,
    st.sampled_from((0.0, 300.0, 600.0, 3600.0)),
    st.dictionaries(st.sampled_from("01"), st.sampled_from((0.2, 0.45, 0.55, 0.9, 1.2)), max_size=2),
    st.booleans(),
    st.integers(-1, 1),
    st.floats(1, 300),
)


@given(uses(), st.fixed_dictionaries(dict.fromkeys("abc", PRESENT)))
def test_any_record(entries: list[Entry], present: dict[str, Present]) -> None:
    """At most one sentence for each, for a change, with a gain, and never a pin that shuts one out."""
    capacities = {"0": 1.0, "1": 1.0}
    found = advise(entries, present, capacities)
    assert len({advice.backend for advice in found}) == len(found)
    for advice in found:
        its = present[advice.backend]
        assert advice.saved <= advice.starts
        assert advice.gain > 0
        assert advice.per_day > 0
        assert str(advice)
        if advice.setting == "idle":
            assert 0 < its.idle == advice.present < advice.value
        else:
            assert not its.pinned
            assert fit(present, capacities, {advice.backend}) >= fit(present, capacities, set())


def fit(present: dict[str, Present], capacities: dict[str, float], more: Iterable[str]) -> set[str]:
    """Who can run beside all that is pinned, and the ones of ``more``."""
    pinned = {name for name, its in present.items() if its.pinned} | set(more)
    return {
        name
        for name in present
        if all(
            sum(present[other].claims.get(gpu, 0.0) for other in pinned | {name}) <= capacities[gpu] + 1e-6
            for gpu in present[name].claims
        )
    }
