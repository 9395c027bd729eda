"""On which host a model starts: cases one by one, and what holds for any fleet on any hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.scheduling.claims import SHARES, Memory, Room, fits, minus, plus
from llmproxy.scheduling.hosts import COMING, HELD, IDLE, NEVER, Offer, best, spare
from llmproxy.scheduling.hosts import NOW as ROOM_NOW
from llmproxy.scheduling.placement import Model, Place, Plan, Rules, Start, plan

TENTH = SHARES // 10
NOW = 1_700_000_000.25
RULES = Rules(max_wait_before_drain=30.0)
HOSTS = ("local", "tower", "rack")


def gpu(host: str, index: int = 0) -> str:
    """As the scheduler names it."""
    return str(index) if host == "local" else f"{host}/{index}"


def on(host: str, name: str, tenths: int, phase: str = "ready", **more: Any) -> Model:
    """A model that runs there."""
    claim = {gpu(host): tenths * TENTH}
    usual: dict[str, Any] = {"claim": claim, "held": claim, "used_at": NOW - 60.0, "at": host}
    return Model(name, phase, **{**usual, **more})  # type: ignore[arg-type]


def places(tenths: int, *hosts: str, there: str = "") -> tuple[Place, ...]:
    return tuple(Place(host, {gpu(host): tenths * TENTH}, host == there) for host in hosts or HOSTS)


def wanted(name: str, where: tuple[Place, ...], waited: float = 1.0, **more: Any) -> Model:
    """An absent one that somebody has waited for."""
    return Model(name, waiting=1, waiting_since=NOW - waited, places=where, **more)


def look(*models: Model, rooms: Mapping[str, Room] | None = None, now: float = NOW) -> Plan:
    return plan(models, rooms or {gpu(host): Room() for host in HOSTS}, RULES, now)


# -- one by one -------------------------------------------------------------------------------------


def test_it_starts_where_there_is_room() -> None:
    """And the plan says where."""
    found = look(wanted("a", places(6)), on("local", "b", 5), on("tower", "c", 5))
    assert found.starts == (Start("a", "it fits on rack", "rack"),)
    assert found.leaves == ()


def test_most_is_left_beside_it() -> None:
    """Of several hosts with room the emptiest is taken; of equal ones the first, with fewest others."""
    assert look(wanted("a", places(3)), on("local", "b", 5), on("tower", "c", 2)).starts[0].host == "rack"
    assert look(wanted("a", places(3)), on("local", "b", 1), on("rack", "c", 2)).starts[0].host == "tower"
    assert look(wanted("a", places(3))).starts[0].host == "local"
    nowhere = tuple(Place(host) for host in HOSTS)
    crowded = Model("b", "ready", at="local", used_at=NOW)
    assert look(wanted("a", nowhere), crowded).starts[0].host == "tower"


def test_its_container_draws_it() -> None:
    """Where it was before there are its image and its weights: that counts more than what is left."""
    found = look(wanted("a", places(3, there="tower")), on("tower", "c", 5))
    assert found.starts[0].host == "tower"
    assert look(wanted("a", places(6, there="tower")), on("tower", "c", 5)).starts[0].host == "local"


def test_a_quiet_host_goes_before_one_where_somebody_starts() -> None:
    """One starts at a time on a GPU, and the other host's is free."""
    found = look(wanted("a", places(3, "tower", "rack")), on("tower", "b", 3, "starting"))
    assert found.starts[0].host == "rack"


def test_two_that_are_wanted_take_two_hosts() -> None:
    """What the first takes is not offered to the second."""
    found = look(wanted("a", places(9)), wanted("b", places(9), waited=0.5))
    assert {start.name: start.host for start in found.starts} == {"a": "local", "b": "tower"}


def test_the_cheapest_leave_for_it() -> None:
    """Where nothing has room, it goes where losing others costs least."""
    found = look(
        wanted("a", places(9)),
        on("local", "b", 5, reload=60.0),
        on("tower", "c", 5, reload=5.0),
        on("rack", "d", 5, reload=30.0),
    )
    assert [(leave.name, leave.whom) for leave in found.leaves] == [("c", "a")]
    assert "makes room for a on tower" in found.leaves[0].why
    assert found.waits[0].why == "until c has left on tower"


def test_who_leaves_already_is_waited_for() -> None:
    """The next look finds them leaving, and nobody else is made to leave on another host."""
    leaving = on("tower", "c", 5, "leaving", reload=60.0)
    found = look(wanted("a", places(9)), on("local", "b", 5, reload=1.0), leaving, on("rack", "d", 5))
    assert found.leaves == ()
    assert found.waits[0].on == ("c",)


def test_busy_hosts_are_waited_for_everywhere() -> None:
    """It looks again when the first residency on any of them is over."""
    found = look(
        wanted("a", places(9)),
        on("local", "b", 9, busy=True),
        on("tower", "c", 9, busy=True, stays_until=NOW + 3.0),
        on("rack", "d", 9, busy=True, stays_until=NOW + 9.0),
    )
    assert (found.starts, found.leaves) == ((), ())
    assert found.look_again == NOW + 3.0
    assert found.waits[0].why == "b is busy on local"


def test_an_overdue_one_has_busy_ones_drain_on_one_host() -> None:
    """On the cheapest, and on no other."""
    found = look(
        wanted("a", places(9), waited=31.0),
        on("local", "b", 9, busy=True, reload=60.0),
        on("tower", "c", 9, busy=True, reload=5.0),
        on("rack", "d", 9, busy=True, reload=60.0),
    )
    assert [(leave.name, leave.drain) for leave in found.leaves] == [("c", True)]


def test_who_may_not_evict_takes_what_is_free() -> None:
    """Where there is none it is refused, as on one host."""
    full = [on(host, name, 9) for host, name in zip(HOSTS, "bcd", strict=True)]
    assert look(wanted("a", places(9), may_evict=False), *full[:2]).starts[0].host == "rack"
    found = look(wanted("a", places(9), may_evict=False), *full)
    assert [one.forbidden for one in found.refusals] == [True]


def test_what_fits_on_no_host_is_refused_with_all_sums() -> None:
    """A GPU that is too small, one that is pinned, and one that is not there."""
    rooms = {"0": Room(SHARES // 2), "tower/0": Room()}
    where = (*places(9, "local", "tower"), Place("rack", {}, lacks=("1",)))
    found = look(wanted("a", where), on("tower", "c", 5, pinned=True), rooms=rooms)
    assert (found.starts, found.waits) == ((), ())
    why = found.refusals[0].why
    assert "of GPU 0" in why
    assert "pinned by c" in why
    assert "rack has no GPU 1" in why


def test_lent_memory_that_comes_back_is_told() -> None:
    """The refusal says when it could fit on one of them."""
    rooms = {gpu(host): Room(leased=SHARES // 2) for host in HOSTS}
    rules = Rules(lease_ends={"0": NOW + 60, "tower/0": NOW + 30, "rack/0": NOW + 90})
    found = plan([wanted("a", places(9))], rooms, rules, NOW)
    assert found.refusals[0].until == NOW + 30


def test_an_offer_that_is_none() -> None:
    """Where no host is good for it there is no best."""
    place = Place("a")
    assert best([Offer(place, NEVER), Offer(place, NEVER)]) is None
    assert best([]) is None
    assert best([Offer(place, HELD), Offer(place, IDLE, 9.0), Offer(place, IDLE, 1.0)]) == Offer(
        place, IDLE, 1.0
    )
    assert best([Offer(place, COMING), Offer(place, ROOM_NOW, spare=0.0)]) == Offer(
        place, ROOM_NOW, spare=0.0
    )


def test_the_tightest_gpu_counts() -> None:
    """Of a claim on two, what is left of the fuller one."""
    rooms = {"0": Room(10), "1": Room(10)}
    assert spare({"0": 2, "1": 2}, {"0": 10, "1": 5}, rooms) == 0.3
    assert spare({}, {}, rooms) == 1.0


# -- whatever happens -------------------------------------------------------------------------------

ROOMS = {gpu(host, index): Room() for host in HOSTS for index in range(2)}


@st.composite
def residents(draw: st.DrawFn) -> list[Model]:
    """What runs somewhere, and fits there."""
    free = {name: room.capacity for name, room in ROOMS.items()}
    found = []
    for number in range(draw(st.integers(0, 6))):
        host, index = draw(st.sampled_from(HOSTS)), draw(st.integers(0, 1))
        claim = {gpu(host, index): draw(st.integers(1, 9)) * TENTH}
        if not fits(claim, free):
            continue
        free = minus(free, claim)
        phase = draw(st.sampled_from(["ready", "ready", "starting", "leaving", "draining", "asleep"]))
        held = {name: units // 10 for name, units in claim.items()} if phase == "asleep" else claim
        found.append(
            Model(
                f"r{number}",
                phase,  # type: ignore[arg-type]
                claim=claim,
                held=held,
                busy=draw(st.booleans()) if phase in ("ready", "draining") else False,
                pinned=draw(st.booleans()) and phase == "ready",
                used_at=NOW - draw(st.integers(0, 100)),
                stays_until=NOW + draw(st.integers(-50, 50)),
                reload=draw(st.integers(1, 60)),
                at=host,
            )
        )
    return found


@st.composite
def demands(draw: st.DrawFn) -> list[Model]:
    """What is wanted, each on some hosts with one claim or another."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        where = []
        for host in draw(st.lists(st.sampled_from(HOSTS), min_size=1, max_size=3, unique=True)):
            indices = draw(st.sampled_from([(), (0,), (1,), (0, 1)]))
            units = draw(st.integers(1, 10)) * TENTH
            where.append(
                Place(host, {gpu(host, index): units for index in indices}, there=draw(st.booleans()))
            )
        found.append(
            wanted(
                f"w{number}",
                tuple(where),
                waited=draw(st.integers(0, 60)),
                may_evict=draw(st.booleans()),
                urgency=draw(st.integers(0, 2)),
            )
        )
    return found


def claim_at(model: Model, host: str) -> Memory:
    return next(place.claim for place in model.places if place.host == host)


@given(residents(), demands())
@settings(max_examples=400, deadline=None)
def test_what_holds_for_any_fleet(running: list[Model], asked: list[Model]) -> None:
    """Each demand is answered once; it starts where it may be, beside what is there; nobody leaves who must
    not, nor where it frees nothing for whom it is said to leave."""
    found = look(*running, *asked, rooms=ROOMS)
    by_name = {model.name: model for model in (*running, *asked)}
    answered = [one.name for one in found.starts]
    answered += [one.name for one in found.waits] + [one.name for one in found.refusals]
    assert sorted(name for name in answered if name.startswith("w")) == sorted(one.name for one in asked)
    taken = plus(*(model.held for model in running))
    for start in found.starts:
        model = by_name[start.name]
        assert start.host in {place.host for place in model.places}
        taken = plus(taken, claim_at(model, start.host))
        assert start.why.endswith(f" on {start.host}")
    assert all(taken.get(name, 0) <= room.capacity for name, room in ROOMS.items() if name in taken)
    for leave in found.leaves:
        model = by_name[leave.name]
        assert not model.pinned or leave.whom is None
        if leave.whom is not None and leave.why != "drained":
            hosts = {place.host for place in by_name[leave.whom].places}
            assert model.at in hosts
            assert by_name[leave.whom].may_evict


@given(residents(), demands())
@settings(max_examples=200, deadline=None)
def test_the_first_in_turn_starts_where_anything_has_room(running: list[Model], asked: list[Model]) -> None:
    """As long as one of its hosts has room and is quiet it neither waits nor has others leave."""
    only = asked[0]
    free = minus({name: room.capacity for name, room in ROOMS.items()}, plus(*(one.held for one in running)))
    loud = {
        name for one in running if one.phase in ("starting", "leaving") for name in {**one.claim, **one.held}
    }
    loud |= {name for one in running if one.phase == "draining" and not one.busy for name in one.held}
    possible = {
        place.host for place in only.places if fits(place.claim, free) and not loud.intersection(place.claim)
    }
    found = look(*running, only, rooms=ROOMS)
    if possible:
        assert [start.name for start in found.starts] == [only.name]
        assert found.starts[0].host in possible
        assert all(leave.whom is None for leave in found.leaves)


@given(residents(), demands())
@settings(max_examples=200, deadline=None)
def test_one_host_is_as_if_there_were_no_others(running: list[Model], asked: list[Model]) -> None:
    """Offered to one host alone, it is served as with that very claim."""
    offered = [evolve(one, places=one.places[:1]) for one in asked]
    fixed = [evolve(one, claim=one.places[0].claim, places=(), at=one.places[0].host) for one in asked]
    one, other = look(*running, *offered, rooms=ROOMS), look(*running, *fixed, rooms=ROOMS)
    assert [start.name for start in one.starts] == [start.name for start in other.starts]
    assert [(leave.name, leave.how, leave.whom) for leave in one.leaves] == [
        (leave.name, leave.how, leave.whom) for leave in other.leaves
    ]
    assert [wait.name for wait in one.waits] == [wait.name for wait in other.waits]
    assert [refuse.name for refuse in one.refusals] == [refuse.name for refuse in other.refusals]


# -- what an offer is worth -----------------------------------------------------------------------------


def test_who_never_leaves_is_not_offered() -> None:
    """Neither a pinned one nor one that stays: another host is taken, however dear who leaves there."""
    busy = on("tower", "x", 5, busy=True)
    for stays in (
        on("tower", "p", 5, pinned=True, reload=1.0),
        on("tower", "p", 5, stays_until=NOW + 9, reload=1.0),
    ):
        found = look(wanted("a", places(4, "tower", "local")), busy, stays, on("local", "y", 9))
        assert [(leave.name, leave.whom) for leave in found.leaves] == [("y", "a")]


def test_a_residency_that_is_over_is_not_looked_at_again() -> None:
    """It would look again at once, and for ever."""
    found = look(
        wanted("a", places(9, "local", "tower")),
        on("local", "b", 9, busy=True, stays_until=NOW),
        on("tower", "c", 9, busy=True, stays_until=NOW),
    )
    assert found.look_again == NOW + 29.0
