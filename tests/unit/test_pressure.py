"""Who leaves a full cluster for what fits nowhere on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.scheduling.pressure import MOST, Relief, Stuck, Tenant, relieve

ROOMS = {"a": {"vram-gib": 80}, "b": {"vram-gib": 80}}


def tenant(name: str, node: str, room: int, idle: float = 100.0, **fields: Any) -> Tenant:
    """Idle for so long at second 1,000."""
    found = Tenant(name, node, {"vram-gib": room}, reload=60.0, used_at=1000.0 - idle)
    return found._replace(**fields)


def stuck(name: str, room: int, since: float = 1000.0) -> Stuck:
    return Stuck(name, {"vram-gib": room}, since)


def names(
    waiting: list[Stuck],
    tenants: list[Tenant],
    rooms: Mapping[str, Mapping[str, int]] = ROOMS,
    *,
    max_wait: float = 30.0,
) -> list[str]:
    """Who leaves at second 1,000."""
    return [one.name for one in relieve(waiting, tenants, rooms, 1000.0, max_wait=max_wait)]


def test_what_leaves_is_on_one_node() -> None:
    """Two that have been idle for longer, on two nodes, would make no room together."""
    tenants = [
        tenant("old", "a", 40, 900.0),
        tenant("busy", "a", 40, in_flight=1),
        tenant("elder", "b", 20, 800.0),
        tenant("young", "b", 60, 60.0),
    ]
    assert names([stuck("large", 70)], tenants) == ["elder", "young"]
    assert names([stuck("small", 40)], tenants) == ["old"]


def test_nobody_leaves_where_there_is_room() -> None:
    """Free already, or on its way: managers are about to use it."""
    leaving = tenant("gone", "a", 80, leaving=True)
    idle = tenant("idle", "b", 80)
    assert names([stuck("x", 80)], [leaving, idle]) == []
    assert names([stuck("x", 80), stuck("y", 80, 1001.0)], [leaving, idle]) == ["idle"]


def test_no_more_leave_than_are_needed() -> None:
    """A small one that was taken first stays when a large one is needed all the same."""
    tenants = [tenant("small", "a", 10, 900.0), tenant("large", "a", 70, 100.0)]
    assert names([stuck("x", 70)], tenants, {"a": {"vram-gib": 80}}) == ["large"]
    assert names([stuck("x", 80)], tenants, {"a": {"vram-gib": 80}}) == ["small", "large"]


def test_the_cheapest_node_is_taken() -> None:
    """What takes longest to have back, was used last or is more important costs more."""
    for costly in (
        {"reload": 300.0},
        {"used_at": 999.0},
        {"priority": 1},
    ):
        tenants = [tenant("dear", "a", 80, **costly), tenant("cheap", "b", 80)]
        assert names([stuck("x", 40)], tenants) == ["cheap"]


def test_who_may_not_leave_stays() -> None:
    """Also where nothing else is there: it goes on being stuck."""
    tenants = [tenant("p", "a", 80, may_leave=False), tenant("q", "b", 80, may_leave=False)]
    assert names([stuck("x", 40, 0.0)], tenants) == []


def test_busy_ones_drain_for_who_has_waited_for_long() -> None:
    """Not before ``max_wait``, and those with the fewest requests first; idle ones always go before them."""
    tenants = [tenant("many", "a", 80, in_flight=9), tenant("few", "b", 80, in_flight=1)]
    assert names([stuck("x", 40, 980.0)], tenants) == []
    found = relieve([stuck("x", 40, 970.0)], tenants, ROOMS, 1000.0, max_wait=30.0)
    assert found == (Relief("few", "x", drain=True),)
    idle = tenant("idle", "a", 80, in_flight=0)
    assert names([stuck("x", 40, 0.0)], [idle, tenants[1]]) == ["idle"]


def test_constraints_count() -> None:
    """Room on a node where it may not be placed is of no use."""
    tenants = [tenant("p", "a", 80, 900.0), tenant("q", "b", 80)]
    assert names([Stuck("x", {"vram-gib": 80}, 0.0, frozenset("b"))], tenants) == ["q"]


def test_all_tasks_of_one_that_leaves_make_room() -> None:
    """A backend leaves as a whole, so that the room of its other tasks is there for the next one."""
    tenants = [tenant("p", "a", 80, 900.0), tenant("p", "b", 80, 900.0)]
    assert names([stuck("x", 80, 0.0), stuck("y", 80, 1.0)], tenants) == ["p"]
    both = [tenant("p", "a", 40, 900.0), tenant("p", "a", 40, 900.0)]
    assert names([stuck("x", 80)], both, {"a": {"vram-gib": 80}}) == ["p"]


def test_nodes_of_unknown_size_are_taken_to_be_full() -> None:
    """What leaves has to be large enough by itself then."""
    tenants = [tenant("p", "c", 40, 900.0), tenant("q", "c", 30, 900.0)]
    assert names([stuck("x", 60)], tenants, {}) == ["p", "q"]
    assert names([stuck("x", 80)], tenants, {}) == []
    leaving = [tenants[0]._replace(leaving=True), tenants[1]]
    assert names([stuck("x", 40)], leaving, {}) == []


def test_each_resource_has_to_fit() -> None:
    """Two that reserve different things do not make room for each other."""
    rooms = {"a": {"vram-gib": 80, "NVIDIA-GPU": 1}}
    tenants = [
        Tenant("gib", "a", {"vram-gib": 80}, 60.0, 0.0),
        Tenant("gpu", "a", {"NVIDIA-GPU": 1}, 60.0, 500.0),
    ]
    assert names([Stuck("x", {"NVIDIA-GPU": 1}, 0.0)], tenants, rooms) == ["gpu"]
    assert sorted(names([Stuck("x", {"NVIDIA-GPU": 1, "vram-gib": 8}, 0.0)], tenants, rooms)) == [
        "gib",
        "gpu",
    ]


def test_a_crowd_is_served_in_turns() -> None:
    """The oldest first, and no more at a time than can be looked at quickly."""
    tenants = [tenant(f"t{each}", f"n{each}", 80) for each in range(2 * MOST)]
    waiting = [stuck(f"s{each}", 80, float(each)) for each in reversed(range(2 * MOST))]
    found = relieve(waiting, tenants, {}, 1000.0, max_wait=30.0)
    assert [one.whom for one in found] == [f"s{each}" for each in range(MOST)]


BACKENDS = st.dictionaries(
    st.sampled_from("pqrstuvw"),
    st.tuples(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 40)), min_size=1, max_size=3),
        st.floats(0.0, 1000.0),
        st.integers(0, 2),
        st.sampled_from(["stays", "may leave", "leaves"]),
    ),
)


def _tenants(drawn: dict[str, Any]) -> list[Tenant]:
    return [
        tenant(
            name,
            node,
            room,
            idle,
            in_flight=in_flight,
            may_leave=what == "may leave",
            leaving=what == "leaves",
        )
        for name, (tasks, idle, in_flight, what) in drawn.items()
        for node, room in tasks
    ]


@given(BACKENDS, st.lists(st.tuples(st.integers(1, 80), st.floats(0.0, 1000.0)), max_size=4))
def test_whoever_leaves_makes_room_for_one_that_is_stuck(
    drawn: dict[str, Any], asked: list[tuple[int, float]]
) -> None:
    """Nobody leaves who may not or who leaves already, nobody twice, and never for one that then still fits
    nowhere."""
    tenants = _tenants(drawn)
    waiting = [stuck(f"s{number}", room, since) for number, (room, since) in enumerate(asked)]
    found = relieve(waiting, tenants, ROOMS, 1000.0, max_wait=30.0)
    gone = [one.name for one in found]
    assert len(set(gone)) == len(gone)
    assert all(
        any(one.name == name and one.may_leave and not one.leaving for one in tenants) for name in gone
    )
    free = {node: room["vram-gib"] for node, room in ROOMS.items()}
    for one in tenants:
        if not one.leaving and one.name not in gone:
            free[one.node] -= one.held["vram-gib"]
    served = {one.whom for one in found}
    assert all(max(free.values()) >= one.needs["vram-gib"] for one in waiting if one.name in served)
