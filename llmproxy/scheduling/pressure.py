"""Who leaves a full cluster for what fits nowhere on it.  Pure.

On a Swarm it is the managers that find a node for each task, and the plan of
:mod:`llmproxy.scheduling.placement` has no claims to weigh.  A task that fits nowhere stays pending there
until something else ends, and managers end nothing for it: without this it would wait until an idle model is
reaped, while hundreds idle.

A task needs its room on one node.  So it is of no use to stop whoever has been idle for longest: what leaves
has to be on the same node, and to be enough together with what is free there.  For each task that is stuck,
the oldest first, the node is taken where what has to leave costs least
(:func:`llmproxy.scheduling.victims.weight`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from attrs import define, field, frozen

from llmproxy.scheduling.claims import Memory, plus
from llmproxy.scheduling.victims import weight

__all__ = ["MOST", "Relief", "Stuck", "Tenant", "relieve"]

MOST = 32
"""Stuck ones that are looked at at once; those after them have their turn when these are placed."""


@frozen
class Stuck:
    """A task that fits nowhere at present.

    :ivar name: its backend.
    :ivar needs: what it reserves, by resource: ``vram-gib``, ``NVIDIA-GPU``.
    :ivar since: since when it is pending.
    :ivar nodes: those that its constraints allow; None: all.
    """

    name: str
    needs: Memory
    since: float
    nodes: frozenset[str] | None = None


class Tenant(NamedTuple):
    """A task that has room on a node; there may be thousands, made anew for each look.

    :ivar name: its backend; if that has several tasks, all of them leave together.
    :ivar held: what it has reserved, by resource.
    :ivar reload: seconds to have it back.
    :ivar used_at: when its backend was last used.
    :ivar in_flight: requests of its backend.
    :ivar may_leave: its backend may: it is ready, has served, has stayed for as long as it has to, is not
        pinned, and need not run.
    :ivar leaving: it is on its way already.
    """

    name: str
    node: str
    held: Memory
    reload: float
    used_at: float
    priority: int = 0
    in_flight: int = 0
    may_leave: bool = True
    leaving: bool = False


@frozen
class Relief:
    """A backend that leaves.

    :ivar whom: the one that it leaves for.
    :ivar drain: it is busy, and leaves when it has drained.
    """

    name: str
    whom: str
    drain: bool = False


def relieve(
    stuck: Iterable[Stuck],
    tenants: Iterable[Tenant],
    rooms: Mapping[str, Memory],
    now: float,
    *,
    max_wait: float,
) -> tuple[Relief, ...]:
    """Who leaves now.

    :param tenants: of all nodes: also those that may not leave, as they take room.
    :param rooms: what each node has in all.  One that is not named is taken to be full.
    :param max_wait: seconds that one is stuck before busy ones are drained for it.
    """
    return _Relieving(list(tenants), rooms, now, max_wait).run(stuck)


class _Guest(NamedTuple):
    """A backend that may leave, and all that it has on one node."""

    cost: float
    name: str
    busy: bool
    held: Memory


@define
class _Node:
    """What is free there, or will be, and who may leave, the cheapest first.

    :ivar version: another one whenever any of that has changed.
    """

    free: dict[str, int]
    guests: list[_Guest] = field(factory=list)
    version: int = 0


_Kind = tuple[frozenset[tuple[str, int]], frozenset[str] | None, bool]
"""What is alike for the stuck that need the same: their needs, their nodes, and whether busy ones drain."""


@define(order=True)
class _Way:
    """One way to make room: on this node those leave; the cheapest first.

    :ivar version: of the node, for which it was found.
    """

    cost: float
    number: int
    node: str
    version: int
    victims: list[_Guest] = field(order=False)


@define
class _Relieving:
    tenants: list[Tenant]
    rooms: Mapping[str, Memory]
    now: float
    max_wait: float
    nodes: dict[str, _Node] = field(factory=dict)
    gone: set[str] = field(factory=set)
    ways: dict[_Kind, list[_Way]] = field(factory=dict)

    def run(self, stuck: Iterable[Stuck]) -> tuple[Relief, ...]:
        self._survey()
        found: list[Relief] = []
        for one in sorted(stuck, key=lambda each: (each.since, each.name))[:MOST]:
            overdue = one.since + self.max_wait <= self.now
            way = self._best((frozenset(one.needs.items()), one.nodes, overdue))
            if way is None:
                continue
            # Where nobody has to leave managers find the room, or it is on its way: it is this one's now.
            found += [Relief(victim.name, one.name, drain=victim.busy) for victim in way.victims]
            self._leave({victim.name for victim in way.victims})
            self._change(way.node, one.needs, -1)
        return tuple(found)

    def _survey(self) -> None:
        self.nodes = {name: _Node(dict(room)) for name, room in self.rooms.items()}
        guests: dict[tuple[str, str], _Guest] = {}
        for tenant in self.tenants:
            node = self.nodes.get(tenant.node)
            if node is None:
                node = self.nodes[tenant.node] = _Node({})
            if tenant.node in self.rooms:
                if not tenant.leaving:
                    _add(node.free, tenant.held, -1)
            elif tenant.leaving:
                _add(node.free, tenant.held, 1)
            if tenant.may_leave and not tenant.leaving:
                key = (tenant.node, tenant.name)
                beside = guests.get(key)
                held = tenant.held if beside is None else plus(beside.held, tenant.held)
                guests[key] = _Guest(self._cost(tenant), tenant.name, tenant.in_flight > 0, held)
        for (name, _), guest in guests.items():
            self.nodes[name].guests.append(guest)
        for node in self.nodes.values():
            node.guests.sort(key=_price)

    def _cost(self, tenant: Tenant) -> float:
        idle_for = 0.0 if tenant.in_flight else self.now - tenant.used_at
        # Each request that has to be waited for, and that tells of others to come, costs as much again.
        return weight(tenant.reload, idle_for=idle_for, priority=tenant.priority) * (1 + tenant.in_flight)

    # -- ways to make room --------------------------------------------------------------------------

    def _best(self, kind: _Kind) -> _Way | None:
        """The cheapest one; of many that are stuck most need the same, so that nodes are looked at once."""
        heap = self.ways.get(kind)
        if heap is None:
            names = self.nodes if kind[1] is None else sorted(kind[1] & self.nodes.keys())
            ways = (self._way(kind, name) for name in names)
            heap = self.ways[kind] = [way for way in ways if way is not None]
            heapify(heap)
        while heap and heap[0].version != self.nodes[heap[0].node].version:
            heappop(heap)
        return heap[0] if heap else None

    def _way(self, kind: _Kind, name: str) -> _Way | None:
        """How room is made on this node; None: it cannot be."""
        needs, _, overdue = kind
        node = self.nodes[name]
        staying = [guest for guest in node.guests if guest.name not in self.gone]
        lack = _beyond(dict(needs), node.free)
        victims = _cheapest([guest for guest in staying if overdue or not guest.busy], lack)
        if victims is None:
            return None
        return _Way(sum(guest.cost for guest in victims), len(victims), name, node.version, victims)

    def _leave(self, names: set[str]) -> None:
        """These leave, with all of their tasks."""
        if names:
            self.gone |= names
            for tenant in self.tenants:
                if tenant.name in names and not tenant.leaving:
                    self._change(tenant.node, tenant.held, 1)

    def _change(self, name: str, memory: Memory, times: int) -> None:
        node = self.nodes[name]
        _add(node.free, memory, times)
        node.version += 1
        for kind, heap in self.ways.items():
            way = self._way(kind, name) if kind[1] is None or name in kind[1] else None
            if way is not None:
                heappush(heap, way)


def _price(guest: _Guest) -> tuple[float, str]:
    return guest.cost, guest.name


def _add(free: dict[str, int], memory: Memory, times: int) -> None:
    for key, units in memory.items():
        free[key] = free.get(key, 0) + times * units


def _beyond(wanted: Memory, free: Memory) -> dict[str, int]:
    """What of it is lacking."""
    return {key: units - free.get(key, 0) for key, units in wanted.items() if units > free.get(key, 0)}


def _cheapest(guests: Sequence[_Guest], lack: Memory) -> list[_Guest] | None:
    """A cheap set that covers what is lacking; None: there is none.

    :param guests: the cheapest first.
    """
    taken: list[_Guest] = []
    left = lack
    for guest in guests:
        if not left:
            break
        if any(guest.held.get(key, 0) > 0 for key in left):
            taken.append(guest)
            left = _beyond(left, guest.held)
    if left:
        return None
    # Those that dearer ones have made superfluous, beginning with the dearest of them.
    for guest in reversed(taken[:-1]):
        rest = [other for other in taken if other is not guest]
        if not _beyond(lack, plus(*(other.held for other in rest))):
            taken = rest
    return taken
