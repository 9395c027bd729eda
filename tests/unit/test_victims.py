"""The cheapest set is never dearer than the one that is found by trying all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.scheduling import victims
from llmproxy.scheduling.claims import Memory, fits, minus, plus
from llmproxy.scheduling.victims import Exit, cheapest, weight

GPUS = ("0", "1", "2")


def brute_force(lack: Memory, exits: Sequence[Exit], host: int) -> float | None:
    """What the cheapest set costs; None: there is none."""
    names = sorted({one.name for one in exits})
    best: float | None = None
    for chosen in product(*([None, *(one for one in exits if one.name == name)] for name in names)):
        taken = [one for one in chosen if one is not None]
        enough = fits(minus(lack, plus(*(one.frees for one in taken))), {})
        if enough and sum(one.host for one in taken) <= host:
            cost = sum(one.cost for one in taken)
            best = cost if best is None else min(best, cost)
    return best


@st.composite
def fleets(draw: st.DrawFn) -> list[Exit]:
    """Up to seven models on up to three GPUs; most can be stopped, some can sleep."""
    found = []
    for number in range(draw(st.integers(0, 7))):
        held = draw(st.dictionaries(st.sampled_from(GPUS), st.integers(1, 10), max_size=3))
        for how in draw(st.sampled_from([("stop",), ("stop", "1"), ("stop", "1", "2"), ("1",), ("1", "2")])):
            kept = 0 if how == "stop" else draw(st.integers(0, 3))
            host = draw(st.integers(1, 5)) if how == "1" else 0
            cost = draw(st.floats(0.001, 100.0) | st.sampled_from([1.0, 2.0, 3.0]))
            found.append(
                Exit(
                    f"m{number}", how, {gpu: max(0, units - kept) for gpu, units in held.items()}, cost, host
                )
            )
    return found


@given(
    st.dictionaries(st.sampled_from(GPUS), st.integers(-5, 20), max_size=3),
    fleets(),
    st.integers(0, 12),
)
@settings(max_examples=150, deadline=None)
def test_no_set_is_cheaper(lack: Memory, exits: list[Exit], host: int) -> None:
    """It finds a set where there is one, which is enough, keeps to the host memory, and costs the least."""
    best = brute_force(lack, exits, host)
    found = cheapest(lack, exits, host)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert fits(minus(lack, plus(*(one.frees for one in found))), {})
    assert sum(one.host for one in found) <= host
    assert len({one.name for one in found}) == len(found)
    assert sum(one.cost for one in found) <= best * (1 + 1e-9)


def test_of_sets_that_cost_the_same_the_smaller_is_taken() -> None:
    """One that leaves is less trouble than two."""
    exits = [
        Exit("a", "stop", {"0": 5}, 1.0),
        Exit("b", "stop", {"0": 5}, 1.0),
        Exit("c", "stop", {"0": 10}, 2.0),
    ]
    assert [one.name for one in cheapest({"0": 10}, exits, 0) or ()] == ["c"]


def test_nobody_leaves_where_nothing_is_lacking() -> None:
    """Room enough needs no victims."""
    assert cheapest({"0": 0, "1": -5}, [Exit("a", "stop", {"0": 5}, 1.0)], 0) == []


@pytest.mark.parametrize("models", [12, 40, 200])
def test_many_small_models_take_no_time(models: int) -> None:
    """The search is bounded: with many residents that may sleep or stop it takes well under a second, and
    finds a set that is enough."""
    exits = []
    for number in range(models):
        cost = 1.0 + (number * 37 % 101) / 10
        exits += [
            Exit(f"m{number}", "stop", {"0": 80 + number % 7}, 10 * cost),
            Exit(f"m{number}", "1", {"0": 70 + number % 5}, cost, 10),
            Exit(f"m{number}", "2", {"0": 75}, 3 * cost),
        ]
    lack = {"0": 40 * models}
    began = time.process_time()
    found = cheapest(lack, exits, 2 * models)
    assert time.process_time() - began < 2.0
    assert found is not None
    assert sum(one.frees["0"] for one in found) >= lack["0"]


def test_what_it_costs_to_lose_a_model() -> None:
    """The longer the reload, the shorter ago it was used, the higher its priority, the dearer."""
    base = weight(60.0, idle_for=60.0, priority=0)
    assert weight(30.0, idle_for=60.0, priority=0) < base
    assert weight(60.0, idle_for=600.0, priority=0) < base
    assert weight(60.0, idle_for=60.0, priority=1) == 2 * base
    assert weight(60.0, idle_for=-5.0, priority=0) == weight(60.0, idle_for=0.0, priority=0)
    assert weight(0.0, idle_for=0.0, priority=-999) > 0


def test_what_a_model_is_worth_in_numbers() -> None:
    """Its seconds, halved after ten of idleness, doubled with each step of priority up to twenty of them."""
    for seconds, idle, priority, worth in (
        (60.0, 0.0, 0, 60.0),
        (60.0, -5.0, 0, 60.0),
        (60.0, 0.5, 0, 60.0 / 1.05),
        (60.0, 10.0, 0, 30.0),
        (60.0, 90.0, 0, 6.0),
        (0.5, 0.0, 0, 0.5),
        (0.0, 0.0, 0, 0.001),
        (1.0, 0.0, 20, 2.0**20),
        (1.0, 0.0, 99, 2.0**20),
        (1.0, 0.0, -20, 2.0**-20),
        (1.0, 0.0, -99, 2.0**-20),
    ):
        assert weight(seconds, idle_for=idle, priority=priority) == pytest.approx(worth)


def test_one_unit_is_a_lack() -> None:
    """It is covered by what frees one, and by nothing that frees none."""
    one, none = Exit("a", "stop", {"0": 1}, 5.0), Exit("b", "stop", {"1": 9}, 1.0)
    assert cheapest({"0": 1, "1": 0}, [one, none], 0) == [one]
    assert cheapest({"0": 2}, [one, none], 0) is None


def test_sleepers_share_host_memory() -> None:
    """What one of them takes is not there for the next."""
    exits = [Exit(name, "1", {"0": 5}, 1.0, 3) for name in "ab"]
    assert cheapest({"0": 10}, exits, 5) is None
    assert len(cheapest({"0": 10}, exits, 6) or ()) == 2


# -- exactly who leaves, and after how many steps -------------------------------------------------------


def way(name: str, how: str, zero: int, one: int, cost: float, host: int = 0) -> Exit:
    """One that frees so much of GPU 0 and of GPU 1."""
    return Exit(name, how, {gpu: units for gpu, units in (("0", zero), ("1", one)) if units}, cost, host)


def chosen(lack: Memory, exits: Sequence[Exit], host: int = 0) -> str:
    """Who leaves, in one line."""
    found = cheapest(lack, exits, host)
    return "nobody is enough" if found is None else " ".join(f"{one.name}:{one.how}" for one in found)


FOUR = [
    way("a", "stop", 1, 0, 4.0),
    Exit("a", "2", {"0": 0}, 5.0),
    way("b", "stop", 1, 1, 2.0),
    Exit("b", "1", {"0": 0, "1": 0}, 6.0, 1),
    way("c", "stop", 5, 1, 8.0),
    way("c", "1", 5, 1, 1.0, 1),
    way("d", "stop", 4, 3, 9.0),
    way("e", "stop", 4, 3, 7.0),
    way("e", "1", 4, 2, 5.0, 1),
]
APART = [
    way("a", "stop", 0, 4, 9.0),
    way("a", "2", 0, 4, 2.0),
    way("b", "stop", 2, 4, 2.0),
    way("c", "stop", 5, 0, 6.0),
    way("d", "stop", 1, 0, 2.0),
    way("d", "2", 1, 0, 9.0),
    way("e", "stop", 2, 0, 4.0),
]
BESIDE = [
    way("a", "stop", 1, 5, 8.0),
    Exit("a", "2", {"0": 0, "1": 4}, 8.0),
    way("b", "stop", 1, 1, 8.0),
    Exit("b", "2", {"0": 0, "1": 0}, 2.0),
    way("c", "stop", 2, 0, 3.0),
    way("c", "2", 1, 0, 6.0),
    way("d", "stop", 0, 2, 9.0),
    way("d", "1", 0, 2, 7.0, 1),
    way("e", "stop", 0, 0, 8.0),
    way("e", "1", 0, 0, 6.0, 1),
]
ALONE = [
    way("a", "stop", 2, 2, 8.0),
    way("a", "2", 1, 2, 3.0),
    way("b", "stop", 0, 1, 6.0),
    way("c", "stop", 1, 4, 8.0),
    Exit("c", "2", {"0": 0, "1": 4}, 3.0),
    way("d", "stop", 3, 4, 3.0),
    way("d", "2", 3, 3, 9.0),
    way("e", "stop", 0, 1, 9.0),
    Exit("e", "1", {"1": 0}, 2.0, 1),
]


@pytest.mark.parametrize(
    ("lack", "exits", "host", "steps", "best", "first"),
    [
        ({"0": 8, "1": 6}, FOUR, 2, 14, "c:1 e:1 d:stop", "e:stop d:stop"),
        ({"0": 5, "1": 4}, APART, 1, 12, "a:2 c:stop", "b:stop d:stop e:stop"),
        ({"0": 0, "1": 8}, BESIDE, 1, 4, "d:1 a:stop b:stop", "d:stop a:stop b:stop"),
        ({"0": 1, "1": 4}, ALONE, 0, 8, "d:stop", "c:stop"),
    ],
)
def test_the_best_is_found_in_few_steps(
    monkeypatch: pytest.MonkeyPatch,
    lack: Memory,
    exits: list[Exit],
    host: int,
    steps: int,
    best: str,
    first: str,
) -> None:
    """Sets that cannot be enough, or are too dear whatever is added, are not looked at; with no steps at all
    it takes the one that it began with."""
    assert chosen(lack, exits, host) == best
    monkeypatch.setattr(victims, "MOST_STEPS", steps)
    assert chosen(lack, exits, host) == best
    monkeypatch.setattr(victims, "MOST_STEPS", 0)
    assert chosen(lack, exits, host) == first


@pytest.mark.parametrize(
    ("lack", "exits", "first"),
    [
        # The dearest that is not needed is left out first: with c, b is not, and then a is.
        (
            {"0": 15},
            [way("a", "stop", 5, 0, 1), way("b", "stop", 6, 0, 2), way("c", "stop", 10, 0, 3)],
            "a c",
        ),
        # Of the ways of one model that which frees most where some is lacking, each GPU by itself.
        ({"0": 2, "1": 1}, [way("a", "1", 5, 0, 1), way("a", "2", 3, 3, 2), way("b", "stop", 0, 1, 3)], "a"),
        (
            {"0": 4, "1": 1},
            [way("a", "1", 2, 2, 1), way("a", "2", 5, 0, 2), way("b", "stop", 0, 1, 3)],
            "a b",
        ),
        ({"0": 4, "1": 0}, [way("a", "1", 3, 3, 1), way("a", "2", 5, 0, 2)], "a"),
        ({"0": 4, "1": -5}, [way("a", "1", 3, 3, 1), way("a", "2", 5, 0, 2)], "a"),
        # Host memory is for the search alone.
        ({"0": 4}, [way("a", "1", 4, 0, 1, host=1), way("b", "stop", 4, 0, 2)], "b"),
        ({"0": 4}, [way("a", "1", 4, 0, 1, host=1)], None),
        ({"0": 9}, [way("a", "stop", 4, 0, 1), way("b", "stop", 4, 0, 2)], None),
    ],
)
def test_where_the_search_begins(
    monkeypatch: pytest.MonkeyPatch, lack: Memory, exits: list[Exit], first: str | None
) -> None:
    """However few steps there are, those that take no host memory are enough where they can be, and nobody
    leaves in vain."""
    monkeypatch.setattr(victims, "MOST_STEPS", 0)
    found = cheapest(lack, exits, 9)
    assert (found and " ".join(one.name for one in found)) == first


def test_a_set_that_is_dearer_than_the_first_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few steps are left to come to a better one."""
    for steps in range(4):
        monkeypatch.setattr(victims, "MOST_STEPS", steps)
        assert chosen({"0": 10}, [way("a", "stop", 3, 0, 0.9), way("b", "stop", 10, 0, 1.2)]) == "b:stop"


def test_of_equal_sets_the_first_by_name_is_taken() -> None:
    """So that two looks at the same fleet agree."""
    assert chosen({"0": 5}, [way("b", "stop", 5, 0, 1.0), way("a", "stop", 5, 0, 1.0)]) == "a:stop"
    assert chosen({"0": 5}, [way("a", "stop", 5, 0, 1.0), way("a", "2", 5, 0, 1.0)]) == "a:2"


def test_of_sets_that_cost_nothing_the_smaller_is_taken() -> None:
    """As of any that cost the same."""
    exits = [way("a", "stop", 5, 0, 0.0), way("b", "stop", 5, 0, 0.0), way("c", "stop", 10, 0, 0.0)]
    assert chosen({"0": 10}, exits) == "c:stop"


def test_a_model_leaves_once() -> None:
    """In one way: what that frees is not freed again in the same way or in another."""
    exits = [way("a", "stop", 5, 0, 1.0), way("a", "2", 4, 0, 0.5), way("b", "1", 5, 0, 2.0, host=9)]
    assert chosen({"0": 10}, exits) == "nobody is enough"
    assert chosen({"0": 10}, exits, host=9) == "a:stop b:1"


def test_each_gpu_is_covered_by_itself() -> None:
    """What is too much on one is not for the other; single units count."""
    exits = [way("a", "stop", 9, 0, 1.0), way("b", "stop", 0, 1, 5.0), way("c", "stop", 1, 1, 5.5)]
    assert chosen({"0": 1, "1": 1}, exits) == "c:stop"
    assert chosen({"0": 2, "1": 1}, exits) == "a:stop b:stop"
    assert chosen({"0": 2, "1": 3}, exits) == "nobody is enough"


def test_what_a_fleet_may_have_asleep_is_shared_as_it_costs_least() -> None:
    """Where host memory is enough for one of two, the one that is dearer to stop sleeps."""
    exits = [
        way("a", "stop", 5, 0, 4.0),
        way("a", "1", 5, 0, 1.0, host=3),
        way("b", "stop", 5, 0, 9.0),
        way("b", "1", 5, 0, 1.0, host=3),
    ]
    for host, best in (
        (0, "a:stop b:stop"),
        (2, "a:stop b:stop"),
        (3, "a:stop b:1"),
        (5, "a:stop b:1"),
        (6, "a:1 b:1"),
    ):
        assert chosen({"0": 10}, exits, host) == best


def test_who_is_stopped_takes_no_host_memory_and_gives_none() -> None:
    """What there is of it is for those that sleep, whoever else leaves."""
    exits = [Exit("a", "stop", {"0": 5}, 1.0), Exit("b", "1", {"0": 5}, 2.0, 3)]
    assert chosen({"0": 10}, exits, 2) == "nobody is enough"
    assert chosen({"0": 10}, exits, 3) == "a:stop b:1"
