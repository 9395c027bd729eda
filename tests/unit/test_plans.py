"""What the planner decides: the words and the order of whole plans, host memory, and turns."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from llmproxy.scheduling.claims import SHARES, Room
from llmproxy.scheduling.placement import (
    Leave,
    Model,
    Refuse,
    Rules,
)
from tests.unit.test_placement import NOW, TENTH, gpu, look, model, names, wanted

# -- the words and the order of whole plans -----------------------------------------------------------


def only(**rooms: Any) -> dict[str, Room]:
    """GPU 0 alone."""
    return {"0": Room(**rooms)}


@pytest.mark.parametrize(
    ("one", "how"),
    [
        (model("b", "ready", 5, due="stop", sleeps=(1, 2), host=5), "stop"),
        (model("b", "ready", 5, due="idle", sleeps=(1, 2), host=5), "1"),
        (model("b", "ready", 5, due="idle", sleeps=(1, 2), host=6), "2"),
        (model("b", "ready", 5, due="idle", sleeps=(1,), host=6), "stop"),
        (model("b", "ready", 5, due="idle", sleeps=(2,), host=9), "2"),
        (model("b", "ready", 5, due="idle"), "stop"),
        (model("b", "draining", 5, sleeps=(1, 2), host=5, leaves_as="2"), "2"),
        (model("b", "draining", 5, sleeps=(1, 2), host=5), "1"),
        (model("b", "asleep", 5, due="idle", sleeps=(1, 2)), "stop"),
    ],
)
def test_who_leaves_by_itself_leaves_as_gently_as_host_memory_allows(one: Model, how: str) -> None:
    """It sleeps at the lowest level that there is room for; what is to be stopped, or sleeps, is stopped."""
    found = look(one, rules=Rules(host_memory=5))
    why = {"idle": "idle", "stop": "wanted"}.get(one.due, "drained")
    assert found.leaves == (Leave("b", how, why),)


@pytest.mark.parametrize("due", ["idle", "stop"])
def test_who_is_due_and_busy(due: str) -> None:
    """To be stopped it drains; idle it is not."""
    busy = model("b", "ready", 5, busy=True, due=due)
    assert look(busy).leaves == (() if due == "idle" else (Leave("b", "stop", "wanted", drain=True),))
    assert look(model("b", "draining", 5, busy=True, due=due)).leaves == ()
    assert look(model("b", "ready", 5, due="idle", waiting=1)).leaves == ()


@pytest.mark.parametrize("phase", ["draining", "leaving"])
def test_who_leaves_and_is_wanted_again_is_told_to_wait(phase: str) -> None:
    """It starts again when it has been stopped; one that starts or serves has nothing to wait for."""
    found = look(model("b", phase, 5, busy=True, waiting=1, waiting_since=NOW))
    assert [(one.name, one.why) for one in found.waits] == [
        ("b", "it is being stopped, and starts again after that")
    ]
    for other in ("starting", "ready"):
        assert look(model("b", other, 5, waiting=1, waiting_since=NOW)).waits == ()
    stopped = look(model("b", "ready", 5, due="stop", waiting=1, waiting_since=NOW))
    assert (names(stopped.leaves), names(stopped.waits)) == (["b"], ["b"])


def test_why_somebody_leaves_for_another() -> None:
    """For whom, for how long that has waited, and what the one who leaves does at present."""
    for one, state in (
        (model("b", "ready", 5), "idle for 60 s"),
        (model("b", "ready", 5, busy=True), "busy"),
        (model("b", "asleep", 5, held=gpu(5)), "asleep"),
    ):
        (leave,) = look(wanted("a", 9, waited=31.0), one, rooms=only()).leaves
        assert leave.why == f"makes room for a, which has waited for 31 s ({state})"


def test_who_is_waited_for() -> None:
    """Those that leave already, by their names; and nobody who holds nothing where room is needed."""
    found = look(
        wanted("a", 9),
        model("b", "leaving", 3),
        model("c", "draining", 3, busy=True),
        model("d", "leaving", 3, "1"),
    )
    (wait,) = found.waits
    assert (wait.why, wait.on) == ("until b and c has left", ("b", "c"))


@pytest.mark.parametrize("phase", ["starting", "leaving"])
def test_what_fits_waits_for_a_quiet_gpu(phase: str) -> None:
    """Whoever starts or leaves there is waited for, by name, and what is free is kept for it."""
    found = look(wanted("a", 3), model("b", phase, 2), wanted("c", 6, waited=0.5), rooms=only())
    words = "until b has started: one at a time" if phase == "starting" else "until b has left"
    assert found.waits[0].why == words
    assert (found.starts, names(found.waits)) == ((), ["a", "c"])


def test_what_is_in_the_way_is_told() -> None:
    """Who starts for somebody else, who stays after a swap and for how long, who is busy."""
    for one, why in (
        (model("b", "starting", 5), "b starts for somebody else"),
        (model("b", "ready", 5, served=False), "b starts for somebody else"),
        (model("b", "ready", 5, stays_until=NOW + 7), "b stays for 7 s more after a swap"),
        (model("b", "ready", 5, busy=True), "b is busy"),
    ):
        (wait,) = look(wanted("a", 9), one, rooms=only()).waits
        assert wait.why == why


def test_who_is_pinned_is_not_waited_for() -> None:
    """Nobody may have it leave: what does not fit beside it is refused."""
    found = look(wanted("a", 9), model("b", "ready", 5, pinned=True), rooms=only())
    why = "it needs 0.90 of GPU 0, which has 1.00, 0.50 of it pinned by b"
    assert (found.refusals, found.waits) == ((Refuse("a", why),), ())


def test_who_may_have_nobody_leave_is_refused_with_the_names() -> None:
    """It is told who would have to leave, and that it may not have them do so."""
    found = look(wanted("a", 9, may_evict=False), model("b", "ready", 5), rooms=only())
    assert found.refusals == (Refuse("a", "b would have to leave for it", forbidden=True),)


def test_a_promise_to_another_is_waited_for_by_who_may_have_nobody_leave() -> None:
    """It may fit beside that one later; else, or when it has waited for long, it is refused."""
    busy = model("b", "ready", 5, busy=True, stays_until=NOW + 99)
    first = wanted("a", 9, waited=40.0)
    found = look(first, busy, wanted("c", 2, may_evict=False), rooms=only())
    assert (names(found.waits), found.refusals) == (["a", "c"], ())
    assert look(first, busy, wanted("c", 2, waited=35.0, may_evict=False), rooms=only()).refusals != ()
    full = look(model("b", "ready", 10, busy=True), wanted("c", 2, may_evict=False), rooms=only())
    assert (names(full.refusals), full.waits) == (["c"], ())


def test_what_leaves_for_one_is_not_free_for_the_next() -> None:
    """And what leaves beyond that is: nobody else leaves for who fits there then."""
    found = look(
        wanted("a", 6, waited=5.0),
        model("b", "ready", 9),
        wanted("c", 3),
        model("d", "ready", 1),
        rooms=only(),
    )
    assert (names(found.leaves), names(found.waits), found.starts) == (["b"], ["a", "c"], ())
    assert {wait.why for wait in found.waits} == {"until b has left"}


def test_nobody_leaves_beside_one_that_starts() -> None:
    """It is waited for, and nobody after this one takes its turn there."""
    found = look(
        wanted("a", 8, waited=5.0),
        model("s", "starting", 2),
        model("b", "ready", 8),
        wanted("c", 1),
        rooms=only(),
    )
    assert found.leaves == ()
    assert found.waits[0].why == "until s has started: nobody may leave beside it"


# -- host memory, what is on its way, and turns ---------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "memory", "how"),
    [
        # It falls asleep, and takes its part.
        (model("b", "ready", 5, due="idle", sleeps=(1,), host=5), 10, "1"),
        (model("b", "ready", 5, due="idle", sleeps=(1,), host=5), 9, "stop"),
        # It has had its part since it began to drain.
        (model("b", "draining", 5, leaves_as="1", host=5, sleeps=(1,)), 10, "1"),
        (model("b", "draining", 5, leaves_as="1", host=5, sleeps=(1,)), 9, "stop"),
        # It takes none.
        (model("b", "draining", 5, leaves_as="stop", host=5, sleeps=(1,)), 5, "1"),
        (model("b", "ready", 5, due="stop", host=5, sleeps=(1,)), 5, "1"),
        (model("b", "ready", 5, due="idle", host=9, sleeps=(1, 2)), 5, "1"),
        # It sleeps already, and has its part until it has been stopped.
        (model("b", "asleep", 0, asleep_host=5, due="stop"), 9, "stop"),
        (model("b", "asleep", 0, asleep_host=5, due="stop"), 10, "1"),
    ],
)
def test_host_memory_is_given_once(first: Model, memory: int, how: str) -> None:
    """Who falls asleep at level 1 takes what its weights need, once; the next has what is left."""
    second = model("c", "ready", 5, "1", due="idle", sleeps=(1,), host=5)
    found = look(first, second, rules=Rules(host_memory=memory))
    assert {one.name: one.how for one in found.leaves}["c"] == how


def test_who_leaves_for_another_takes_host_memory_once() -> None:
    """What a victim takes to fall asleep is not there for who leaves by itself after it."""
    victim = model("b", "ready", 9, sleeps=(1,), host=5)
    idle = model("c", "ready", 5, "1", due="idle", sleeps=(1,), host=5)
    for memory, how in ((10, "1"), (9, "stop")):
        found = look(wanted("a", 9), victim, idle, rules=Rules(host_memory=memory))
        assert [(one.name, one.how) for one in found.leaves] == [("b", "1"), ("c", how)]


@pytest.mark.parametrize("phase", ["absent", "starting", "leaving"])
def test_who_does_not_run_is_not_stopped(phase: str) -> None:
    """Whatever it is due: one that starts is stopped when it has started."""
    assert look(model("b", phase, 5, due="stop")).leaves == ()


def test_who_is_due_and_leaves_for_another_leaves_once() -> None:
    """It is idle for long enough to leave by itself, and has just been chosen."""
    found = look(wanted("a", 9), model("b", "ready", 5, due="idle"))
    assert [(one.name, one.whom) for one in found.leaves] == [("b", "a")]


@pytest.mark.parametrize(
    ("first", "starts"),
    [
        (model("b", "leaving", 5), False),
        (model("b", "draining", 5), False),
        (model("b", "draining", 5, busy=True), True),
        (model("b", "ready", 5), False),
        (model("b", "ready", 5, busy=True), True),
        (model("b", "ready", 5, due="stop"), False),
        (model("b", "ready", 5, due="stop", busy=True), True),
    ],
)
def test_the_second_gpu_while_the_first_is_made_free(first: Model, starts: bool) -> None:
    """Nobody else starts on the second while somebody leaves the first, as that takes a moment; somebody does
    while that one still drains, which may take long."""
    busy_elsewhere = model("x", "ready", 3, "3", busy=True)
    found = look(wanted("a", 9, "0", "1", waited=40.0), first, busy_elsewhere, wanted("c", 1, "1"))
    assert names(found.starts) == (["c"] if starts else [])
    waits = {one.name: (one.why, one.on) for one in found.waits}
    assert waits["a"] == ("until b has left", ("b",))
    if not starts:
        assert waits["c"] == ("until a has had its turn", ("a",))


def test_nobody_starts_beside_who_has_just_begun_to_leave() -> None:
    """Though it fits there: a GPU has to be quiet for a start."""
    found = look(model("b", "ready", 5, due="stop"), wanted("a", 3))
    assert (names(found.leaves), found.starts) == (["b"], ())
    assert [(one.why, one.on) for one in found.waits] == [("until b has left", ("b",))]


def test_what_one_takes_that_starts_is_not_free_for_the_next() -> None:
    """It has somebody leave then, when the other one has started."""
    found = look(wanted("a", 6, waited=5.0), model("b", "ready", 4), wanted("c", 4))
    assert (names(found.starts), found.leaves) == (["a"], ())
    assert [(one.name, one.why) for one in found.waits] == [
        ("c", "until a has started: nobody may leave beside it")
    ]


def test_what_is_on_its_way_is_for_the_first() -> None:
    """The next one has another one leave."""
    found = look(wanted("a", 5, waited=5.0), model("b", "leaving", 5), wanted("c", 5), model("d", "ready", 5))
    assert [(one.name, one.whom) for one in found.leaves] == [("d", "c")]
    assert {one.name: one.on for one in found.waits} == {"a": ("b",), "c": ("d",)}


def test_only_who_has_memory_where_some_is_lacking_is_in_the_way() -> None:
    """Who is on a GPU with just enough room is not told of, and does not leave."""
    b, d = model("b", "ready", 5), model("d", "ready", 1, "1")
    found = look(wanted("a", 9, "0", "1", may_evict=False), b, d)
    assert [one.why for one in found.refusals] == ["b would have to leave for it"]
    waits = look(wanted("a", 9, "0", "1"), evolve(b, busy=True), evolve(d, busy=True)).waits
    assert [(one.why, one.on) for one in waits] == [("b is busy", ("b",))]


def test_one_unit_is_in_the_way() -> None:
    """One that is lacking, and one that somebody holds."""
    unit = Model("b", "ready", claim={"0": 1}, held={"0": 1}, used_at=NOW - 60.0)
    assert names(look(wanted("a", 10), unit).leaves) == ["b"]


def test_a_promise_of_one_unit_is_waited_for() -> None:
    """Who may have nobody leave waits, for no longer than others wait for busy ones, and keeps nothing."""
    busy = Model("b", "ready", claim={"0": 1}, held={"0": 1}, busy=True, stays_until=NOW + 99)
    first, second = wanted("a", 10, waited=40.0), wanted("c", 2, waited=2.0, may_evict=False)
    found = look(first, busy, second)
    assert (names(found.waits), found.refusals) == (["a", "c"], ())
    assert found.look_again == NOW + 28.0


def test_who_waits_for_a_promise_keeps_nothing() -> None:
    """What is free on its other GPU is there for those after it."""
    busy = model("b", "ready", 5, busy=True, stays_until=NOW + 99)
    second = wanted("c", 9, "0", "1", waited=2.0, may_evict=False)
    found = look(wanted("a", 9, waited=40.0), busy, second, wanted("d", 9, "1"))
    assert (names(found.starts), names(found.waits)) == (["d"], ["a", "c"])


def test_a_promise_where_a_sleeper_needs_no_more() -> None:
    """It is waited for as well, where the sleeper keeps all that it claims there."""
    keeps = {"0": TENTH}
    sleeper = Model(
        "c",
        "asleep",
        claim={**keeps, "1": TENTH},
        held=keeps,
        waiting=1,
        waiting_since=NOW - 2.0,
        may_evict=False,
    )
    busy = model("b", "ready", 5, busy=True, stays_until=NOW + 99)
    found = look(wanted("a", 9, waited=40.0), busy, sleeper)
    assert (names(found.waits), found.refusals) == (["a", "c"], ())


def test_nobody_takes_the_turn_of_who_waits_for_a_start() -> None:
    """Neither on its own GPUs nor on those of who will leave for it."""
    found = look(
        wanted("a", 8, "0", "2", waited=5.0),
        model("s", "starting", 2),
        model("b", "ready", 8, "0", "1"),
        wanted("c", 1, "1", waited=2.0),
        wanted("d", 1, "2"),
        wanted("e", 1, "3"),
    )
    assert (names(found.starts), found.leaves) == (["e"], ())
    assert {one.name: one.on for one in found.waits} == {"a": ("s",), "c": ("a",), "d": ("a",)}


def test_the_sooner_it_wakes_the_earlier_its_turn() -> None:
    """Also where that takes less than a second, or has been measured as nothing."""

    def asleep(name: str, seconds: float, waited: float) -> Model:
        since = NOW - waited
        return Model(
            name, "asleep", claim=gpu(9), held=gpu(1), wake={1: seconds}, waiting=1, waiting_since=since
        )

    for seconds in (0.0, 0.5):
        found = look(asleep("a", 0.9, 2.0), asleep("b", seconds, 1.0), rooms=only(total=2 * SHARES))
        assert names(found.starts) == ["b"]
