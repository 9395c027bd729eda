"""The cheapest set is never dearer than the one that is found by trying all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
