"""What the planner decides: cases one by one, and what holds for any fleet whatever happens to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from attrs import define, evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulation.loads import Kind, Request
from bench.simulation.policies import Placement
from bench.simulation.world import World
from llmproxy.scheduling.claims import SHARES, Memory, Room, fits, minus, plus
from llmproxy.scheduling.placement import (
    Leave,
    Model,
    Plan,
    Refuse,
    Rules,
    Start,
    plan,
)
from llmproxy.scheduling.turns import LEAST_STEP

TENTH = SHARES // 10
NOW = 1_700_000_000.25
RULES = Rules(max_wait_before_drain=30.0)


def gpu(tenths: int, *names: str) -> dict[str, int]:
    """So many tenths of each of these GPUs."""
    return dict.fromkeys(names or ("0",), tenths * TENTH)


def model(name: str, phase: str, tenths: int, *gpus: str, **more: Any) -> Model:
    """A model that holds what it claims, if it runs."""
    claim = gpu(tenths, *gpus)
    given_: dict[str, Any] = {"claim": claim, "used_at": NOW - 60.0}
    if phase in ("starting", "ready", "draining", "leaving"):
        given_["held"] = claim
    return Model(name, phase, **{**given_, **more})  # type: ignore[arg-type]


def wanted(name: str, tenths: int, *gpus: str, waited: float = 1.0, **more: Any) -> Model:
    """An absent one that somebody has waited for."""
    return model(name, "absent", tenths, *gpus, waiting=1, waiting_since=NOW - waited, **more)


def look(
    *models: Model, rooms: Mapping[str, Room] | None = None, rules: Rules = RULES, now: float = NOW
) -> Plan:
    """The plan; four GPUs unless it is said otherwise."""
    return plan(models, rooms or {str(number): Room() for number in range(4)}, rules, now)


def names(found: tuple[Any, ...]) -> list[str]:
    return [one.name for one in found]


# -- one by one -------------------------------------------------------------------------------------


def test_starts_where_there_is_room() -> None:
    """A demand that fits starts at once."""
    assert look(wanted("a", 9)).starts == (Start("a", "it fits"),)


def test_the_idle_leave_for_it() -> None:
    """What does not fit has the idle one leave, and starts when that has left."""
    found = look(wanted("a", 9), model("b", "ready", 5))
    assert names(found.leaves) == ["b"]
    assert (found.leaves[0].whom, found.leaves[0].drain) == ("a", False)
    assert found.starts == ()
    assert names(found.waits) == ["a"]


def test_busy_ones_drain_once_it_has_waited() -> None:
    """A busy one is left alone until the demand has waited for long enough; then it drains."""
    busy = model("b", "ready", 5, busy=True)
    early = look(wanted("a", 9), busy)
    assert early.leaves == ()
    assert early.look_again == NOW + 29.0
    late = look(wanted("a", 9, waited=30.0), busy)
    assert [(one.name, one.drain) for one in late.leaves] == [("b", True)]


def test_a_busy_one_drains_after_its_residency() -> None:
    """After a swap an overdue demand waits for the residency of who is there, and no longer."""
    busy = model("b", "ready", 5, busy=True, stays_until=NOW + 3.0)
    first = look(wanted("a", 9, waited=40.0), busy)
    assert (first.leaves, first.look_again) == ((), NOW + 3.0)
    second = look(wanted("a", 9, waited=40.0), busy, now=NOW + 3.0)
    assert [(one.name, one.drain) for one in second.leaves] == [("b", True)]


@pytest.mark.parametrize("limit", [0.1, 0.3, 30.0, 33.3])
@pytest.mark.parametrize("since", [NOW + 0.3, NOW + 1 / 3, 12345.678, 0.1])
def test_at_the_time_that_it_named_it_acts(limit: float, since: float) -> None:
    """At ``look_again`` the wait is over, however the seconds round; else it would look again for ever."""
    rules = Rules(max_wait_before_drain=limit)
    a = evolve(wanted("a", 9), waiting_since=since)
    busy = model("b", "ready", 5, busy=True)
    again = look(a, busy, rules=rules, now=since).look_again
    assert again is not None
    assert names(look(a, busy, rules=rules, now=again).leaves) == ["b"]


def test_aging_where_nobody_waits_for_a_busy_one() -> None:
    """With ``max_wait_before_drain`` 0 waiting still counts, second by second, against more urgent ones."""
    rules = Rules(max_wait_before_drain=0.0)
    old, new = wanted("old", 9, waited=10.0), wanted("new", 9, waited=1.0, urgency=5)
    assert names(look(old, new, rules=rules).starts) == ["old"]


def test_whose_turn_it_is() -> None:
    """The more urgent; then the one that most wait for, for the shortest start; unless another has waited for
    that much longer."""

    def first(*models: Model) -> str:
        return names(look(*models).starts)[0]

    assert first(wanted("a", 9), wanted("b", 9, urgency=1)) == "b"
    assert first(wanted("a", 9, waited=20.0), evolve(wanted("b", 9), waiting=2)) == "b"
    assert first(wanted("a", 9, waited=20.0), wanted("b", 9, reload=20.0)) == "b"
    assert first(wanted("a", 9, waited=20.0), wanted("b", 9)) == "a"
    assert first(wanted("a", 9, waited=31.0), evolve(wanted("b", 9), waiting=99)) == "a"
    assert first(wanted("a", 9, waited=59.0), wanted("b", 9, urgency=1)) == "b"
    assert first(wanted("a", 9, waited=61.0), wanted("b", 9, urgency=1)) == "a"


def test_one_that_drained_for_another_comes_after_it() -> None:
    """However many ask for it meanwhile: else it would be started again at once."""
    drained = evolve(wanted("b", 9, waited=20.0), waiting=50)
    assert names(look(wanted("a", 9, waited=50.0), drained).starts) == ["a"]


def test_a_sleeper_keeps_no_more_than_it_had() -> None:
    """Where what it keeps asleep is estimated as more than what it claims, sleep frees nothing."""
    small = model("b", "ready", 1, sleeps=(1, 2), kept=gpu(2))
    assert [one.how for one in look(wanted("a", 10), small).leaves] == ["stop"]


def test_a_pinned_one_that_is_wanted_is_like_any_other() -> None:
    """Pinned says that it does not leave; absent and wanted, it has others leave for it."""
    found = look(wanted("a", 9, pinned=True), model("b", "ready", 5))
    assert names(found.leaves) == ["b"]


def test_pinned_ones_are_not_idle() -> None:
    """A pinned one does not leave for being idle; it does when somebody wants it to."""
    assert look(model("a", "ready", 9, pinned=True, due="idle")).leaves == ()
    assert names(look(model("a", "ready", 9, pinned=True, due="stop")).leaves) == ["a"]


def test_a_pinned_one_that_leaves_is_in_nobodys_way() -> None:
    """One that has been told to stop counts no longer as what will never leave."""
    leaving = model("p", "leaving", 9, pinned=True)
    found = look(wanted("a", 9), leaving)
    assert found.refusals == ()
    assert found.waits[0].on == ("p",)


def test_refused_with_the_sums() -> None:
    """What can never fit is refused, and is told why, for each GPU."""
    found = look(wanted("a", 8), model("p", "ready", 3, pinned=True))
    assert found.refusals == (Refuse("a", "it needs 0.80 of GPU 0, which has 1.00, 0.30 of it pinned by p"),)


def test_refused_until_the_lease_ends() -> None:
    """Where only what is lent is in its way, it is told when that comes back."""
    rooms = {"0": Room(leased=5 * TENTH), "1": Room()}
    rules = Rules(lease_ends={"0": NOW + 100.0})
    assert look(wanted("a", 9), rooms=rooms, rules=rules).refusals[0].until == NOW + 100.0
    pinned = model("p", "ready", 3, "1", pinned=True)
    both = look(wanted("a", 9, "0", "1"), pinned, rooms=rooms, rules=rules)
    assert both.refusals[0].until is None, "the pinned one does not leave when the lease ends"
    assert "lent" in both.refusals[0].why
    assert "pinned by p" in both.refusals[0].why


def test_without_the_right_to_evict() -> None:
    """Who may not have others leave is told so at once, whether they are busy or not; and starts where there
    is room, or will be."""
    for more in ({}, {"busy": True}, {"stays_until": NOW + 20.0}):
        found = look(wanted("a", 9, may_evict=False), model("b", "ready", 5, **more))
        assert [one.forbidden for one in found.refusals] == [True]
        assert found.leaves == ()
    assert names(look(wanted("a", 5, may_evict=False), model("b", "ready", 5)).starts) == ["a"]
    assert names(look(wanted("a", 9, may_evict=False), model("b", "leaving", 5)).waits) == ["a"]


def test_host_memory_is_promised_while_it_drains() -> None:
    """Host memory for one that will fall asleep when it has drained is not given to another one."""
    rules = Rules(host_memory=10)
    draining = model(
        "b", "draining", 4, "1", busy=True, leaves_as="1", rest=gpu(0, "1"), host=10, sleeps=(1,)
    )
    idle = model("c", "ready", 9, sleeps=(1,), host=10)
    found = look(wanted("a", 9), draining, idle, rules=rules)
    assert [(one.name, one.how) for one in found.leaves] == [("c", "stop")]


def test_of_two_that_nobody_uses_the_one_that_is_wanted_stays() -> None:
    """A sleeper that is waited for is not the one that is stopped for another, however long it has slept."""
    a = wanted("a", 9, waited=5.0)
    c = Model("c", "asleep", claim=gpu(9), held=gpu(1), reload=60.0, used_at=NOW - 60.0)
    b = evolve(c, name="b", used_at=NOW - 9999.0, waiting=1, waiting_since=NOW - 1.0, wake={1: 600.0})
    assert names(look(a, b, c).leaves) == ["c"]


def test_a_sleeper_does_not_make_room_for_itself() -> None:
    """One that wakes needs what it keeps: stopping it would gain nothing."""
    asleep = Model("b", "asleep", claim=gpu(4), held=gpu(1), waiting=1, waiting_since=NOW - 40.0)
    found = look(
        asleep, model("c", "ready", 4, busy=True, stays_until=NOW + 9.0), model("p", "ready", 3, pinned=True)
    )
    assert found.leaves == ()
    assert found.look_again == NOW + 9.0


def test_a_sleeper_that_has_got_its_turn_keeps_what_it_keeps() -> None:
    """One that waits for another to leave, so that it can wake, is not stopped for one after it."""
    asleep = Model("b", "asleep", claim=gpu(9), held=gpu(1), waiting=1, waiting_since=NOW - 40.0, used_at=0.0)
    found = look(asleep, wanted("a", 2, waited=39.0), model("c", "ready", 5, busy=True))
    assert [(one.name, one.whom) for one in found.leaves] == [("c", "b")]


def test_nobody_starts_before_one_whose_turn_it_is() -> None:
    """One that needs two GPUs and waits only until the first is quiet gets the second; else others would
    start on the one and on the other in turns, for ever."""
    found = look(
        model("x", "starting", 3, "0"),
        wanted("a", 5, "0", "1", waited=50.0),
        wanted("b", 3, "1", waited=1.0),
    )
    assert found.starts == ()
    assert {one.name: one.on for one in found.waits} == {"a": ("x",), "b": ("a",)}


def test_nobody_starts_before_one_that_has_drained_may_leave() -> None:
    """One that has drained and waits until one of its GPUs is quiet lets nobody start on the other."""
    found = look(
        model("x", "starting", 3, "0"),
        model("v", "draining", 5, "0", "1", leaves_as="stop"),
        wanted("b", 3, "1"),
    )
    assert (found.starts, found.leaves) == ((), ())
    assert found.waits[0].on == ("v",)


def test_what_is_idle_leaves_after_those_who_are_wanted_have_started() -> None:
    """A start does not wait until one that is merely idle has left beside it."""
    found = look(model("b", "ready", 3, due="idle"), wanted("a", 5))
    assert names(found.starts) == ["a"]
    assert found.leaves == ()
    assert names(look(model("b", "ready", 3, due="idle")).leaves) == ["b"]


def test_room_is_kept_for_one_that_has_waited_for_long() -> None:
    """What is free is kept for an overdue demand that cannot have the rest yet; before that, it is not."""
    stays = model("b", "ready", 5, stays_until=NOW + 20.0)
    small = wanted("c", 3, waited=1.0)
    kept = look(wanted("a", 9, waited=40.0), small, stays)
    assert (kept.starts, kept.look_again) == ((), NOW + 20.0)
    assert names(look(wanted("a", 9, waited=5.0), small, stays).starts) == ["c"]


def test_two_that_have_waited_for_long_do_not_block_each_other() -> None:
    """The one that has waited for longest is served; the other one keeps nothing from it."""
    found = look(wanted("a", 9, "0", "1", waited=40.0), wanted("b", 9, "1", "2", waited=35.0))
    assert names(found.starts) == ["a"]
    assert names(found.waits) == ["b"]


# -- whatever happens -------------------------------------------------------------------------------


MOST_LOOKS = 4
"""Looks after which nothing is left to be done until something else changes."""


@define
class Watched(Placement):
    """Does what the plan says, and holds it to what must be true of any plan."""

    def look(self, world: World) -> float | None:
        # What is done moves somebody, after which it is looked again.
        for _ in range(MOST_LOOKS):
            self._budgets(world)
            found = self.decide(world)
            self._is_right(world, found)
            self.carry_out(world, found)
            if not (found.starts or found.leaves):
                break
        again = self.decide(world)
        assert (again.starts, again.leaves) == ((), ()), "it does more and more without a change"
        moving = any(one.phase in ("starting", "leaving", "draining") for one in world.servers.values())
        if not moving and any(one.phase != "ready" for one in world.waiting.values()):
            assert again.look_again is not None, "nothing happens any more"
        return again.look_again

    def _budgets(self, world: World) -> None:
        assert all(units >= 0 for units in world.free.values()), world.free
        assert sum(one.asleep_host for one in world.servers.values()) <= self.rules.host_memory

    def _is_right(self, world: World, found: Plan) -> None:
        seen = world.seen()
        assert len({*names(found.starts), *names(found.leaves)}) == len(found.starts) + len(found.leaves)
        coming: Memory = plus(
            *(minus(one.held, one.rest) for one in seen.values() if one.phase in ("draining", "leaving")),
            *(self._frees(seen[one.name], one) for one in found.leaves if seen[one.name].phase != "draining"),
        )
        for leave in found.leaves:
            self._may_leave(seen[leave.name], leave, world.now)
            if leave.whom is not None:
                demand = seen[leave.whom]
                assert demand.waiting
                assert demand.may_evict
                assert fits(minus(demand.claim, demand.held), plus(world.free, coming)), "in vain"
        for refusal in found.refusals:
            if refusal.forbidden:
                assert not seen[refusal.name].may_evict
            else:
                self._never_fits(seen, seen[refusal.name], world.rooms)
                assert "it needs" in refusal.why

    @staticmethod
    def _frees(model: Model, leave: Leave) -> Memory:
        return model.held if leave.how == "stop" else minus(model.held, model.kept)

    @staticmethod
    def _may_leave(model: Model, leave: Leave, now: float) -> None:
        assert model.phase in ("ready", "draining", "asleep")
        assert leave.drain or not model.busy
        if leave.whom is None:
            assert model.due or model.phase == "draining"
            assert not (model.pinned and model.due == "idle")
        else:
            assert not model.pinned
            assert model.served
            assert model.stays_until <= now
            assert model.phase != "draining"

    @staticmethod
    def _never_fits(seen: Mapping[str, Model], model: Model, rooms: Mapping[str, Room]) -> None:
        pinned = [one for one in seen.values() if one.pinned and one is not model]
        left = minus(
            {name: room.capacity for name, room in rooms.items()}, plus(*(one.held for one in pinned))
        )
        assert not fits(model.claim, left)


MINUTES = 12


@frozen
class Story:
    """A fleet and what happens to it.

    :ivar steady: requests that are repeated, and after how long each.
    :ivar troubles: at which time, what, and to whom.
    """

    kinds: tuple[Kind, ...]
    rooms: Mapping[str, Room]
    steady: tuple[tuple[float, Request], ...]
    single: tuple[Request, ...]
    troubles: tuple[tuple[float, str, int], ...]
    rules: Rules
    min_residency: float
    parallel: int

    @property
    def requests(self) -> list[Request]:
        """All of them, in the order of time."""
        found = list(self.single)
        for every, first in self.steady:
            count = int((MINUTES * 60 - first.at) / every)
            found += [evolve(first, at=first.at + every * number) for number in range(count)]
        return sorted(found, key=lambda one: one.at)


SLEEPS: tuple[tuple[int, ...], ...] = ((), (1,), (2,), (1, 2))


@st.composite
def kinds(draw: st.DrawFn, gpus: list[str]) -> Kind:
    """One model: on one GPU or on several, small or large, which sleeps or does not."""
    on = draw(st.lists(st.sampled_from(gpus), min_size=1, max_size=2, unique=True))
    sleeps = draw(st.sampled_from(SLEEPS))
    return Kind(
        "",
        gpu(draw(st.integers(1, 10)), *on),
        reload=draw(st.sampled_from([20.0, 40.0, 61.5])),
        stop=draw(st.sampled_from([0.5, 5.0])),
        sleeps=sleeps,
        kept=gpu(1, *on) if draw(st.booleans()) and sleeps else {},
        host=draw(st.integers(1, 3)),
        pinned=draw(st.integers(0, 9)) == 0,
        priority=draw(st.integers(0, 1)),
    )


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Some models are asked for steadily, so that they are never idle; others now and then."""
    gpus = [str(number) for number in range(draw(st.integers(1, 3)))]
    found = draw(st.lists(kinds(gpus), min_size=2, max_size=6))
    fleet = tuple(evolve(kind, name=f"m{number}") for number, kind in enumerate(found))
    steady = []
    for kind in fleet:
        every = draw(st.sampled_from([0.0, 4.0, 15.0]))
        if every:
            first = draw(st.integers(0, MINUTES * 30))
            seconds = draw(st.sampled_from([3.0, 20.0]))
            steady.append((every, Request(first, kind.name, seconds, draw(st.integers(0, 2)))))
    requests = [
        Request(
            at / 10,
            draw(st.sampled_from(fleet)).name,
            draw(st.sampled_from([0.5, 10.0, 45.0])),
            draw(st.integers(0, 2)),
            may_evict=draw(st.integers(0, 3)) > 0,
        )
        for at in draw(st.lists(st.integers(0, MINUTES * 600), max_size=12))
    ]
    what = st.sampled_from(["crash", "stop", "idle", "lease"])
    troubles = draw(st.lists(st.tuples(st.integers(0, MINUTES * 60), what, st.integers(0, 9)), max_size=8))
    return Story(
        fleet,
        {name: Room(reserve=draw(st.sampled_from([0, TENTH]))) for name in gpus},
        tuple(steady),
        tuple(requests),
        tuple(troubles),
        Rules(draw(st.sampled_from([0.0, 7.3, 30.0])), draw(st.integers(0, 5))),
        draw(st.sampled_from([0.0, 30.0])),
        draw(st.sampled_from([256, 256, 3])),
    )


LEASE = 60.0


def trouble(world: World, lease_ends: dict[str, float], what: str, whom: int) -> None:
    """Something happens from outside."""
    server = list(world.servers.values())[whom % len(world.servers)]
    if what == "crash":
        world.crash(server.name)
    elif what != "lease":
        world.wish(server.name, "stop" if what == "stop" else "idle")
    else:
        name = sorted(world.rooms)[whom % len(world.rooms)]
        if world.free[name] > 0 and not world.rooms[name].leased:
            lease_ends[name] = world.now + LEASE
            world.lend(name, world.free[name])
            world.later(LEASE, world.lend, name, 0)


def play(story: Story) -> tuple[World, Watched]:
    """What comes of it."""
    lease_ends: dict[str, float] = {}
    policy = Watched(evolve(story.rules, lease_ends=lease_ends), story.min_residency)
    world = World(policy, story.kinds, dict(story.rooms), parallel=story.parallel)
    world.clock.advance(NOW)
    world = World(policy, story.kinds, dict(story.rooms), parallel=story.parallel, clock=world.clock)
    for at, what, whom in story.troubles:
        world.later(at, trouble, world, lease_ends, what, whom)
    world.replay(story.requests)
    return world, policy


def bound(story: Story, world: World) -> float:
    """Seconds after which any request has been handed over.

    Until it has aged past the most urgent, step by step, others may come first.  Then each of the other
    models is served before it at most once, and its own may have to leave first; each such turn is the
    residency of who is there, the end of its answers, its leaving, and starts: those
    that were under way on the GPUs that are needed, and the one itself.  What happens from outside costs
    turns.
    """
    start, leave, answer = (world.longest.get(key, 0.0) for key in ("start", "leave", "answer"))
    count = len(story.kinds)
    turn = story.min_residency + answer + count * leave + 3 * start
    step = max(story.rules.max_wait_before_drain, LEAST_STEP)
    return (3 + 1) * step + (count + 1 + 2 * len(story.troubles)) * turn


@given(stories())
@settings(max_examples=60, deadline=None)
def test_whatever_happens(story: Story) -> None:
    """No budget is exceeded, nobody is cut off or evicted in vain, and all are served within the bound."""
    world, _ = play(story)
    if story.parallel == 256:
        worst = max((wait for waits in world.waits.values() for wait in waits), default=0.0)
        assert worst <= bound(story, world)
    served = sum(len(waits) for waits in world.waits.values())
    assert served + sum(world.refused.values()) == len(story.requests), "each is answered once"
