"""Who decides: llmproxy, and two that are compared with it."""

from __future__ import annotations

from attrs import define, field

from bench.simulation.world import Policy, Server, World
from llmproxy.scheduling.claims import Memory, fits, minus, plus
from llmproxy.scheduling.outlook import Plan, Rules
from llmproxy.scheduling.placement import plan

__all__ = ["FirstCome", "LeastRecent", "Placement"]


@define
class Placement(Policy):
    """llmproxy: asks :func:`llmproxy.scheduling.placement.plan` and does what it says.

    :ivar min_residency: seconds that a model stays after somebody was evicted for it.
    """

    rules: Rules = field(factory=Rules)
    min_residency: float = 30.0
    batches: bool = True
    _swapped: set[str] = field(factory=set, init=False)

    def decide(self, world: World) -> Plan:
        """What it says now."""
        return plan(world.seen().values(), world.rooms, self.rules, world.now)

    def look(self, world: World) -> float | None:
        found = self.decide(world)
        self.carry_out(world, found)
        return found.look_again

    def carry_out(self, world: World, found: Plan) -> None:
        """Do what the plan says."""
        for leave in found.leaves:
            if leave.whom is not None:
                self._swapped.add(leave.whom)
                world.swaps += 1
            if leave.drain:
                world.drain(leave.name, leave.how)
            else:
                world.leave(leave.name, leave.how)
        for start in found.starts:
            world.start(start.name, self.min_residency if start.name in self._swapped else 0.0)
            self._swapped.discard(start.name)
        for refusal in found.refusals:
            world.refuse(refusal.name)
            self._swapped.discard(refusal.name)


def _coming(world: World) -> Memory:
    return plus(*(one.held for one in world.servers.values() if one.phase == "leaving"))


def _evict(world: World, lack: Memory, candidates: list[Server]) -> bool:
    """Those that were used least recently leave, if that is enough."""
    chosen = []
    for one in sorted(candidates, key=lambda one: (one.used_at, one.name)):
        if fits(lack, {}):
            break
        if any(lack.get(gpu, 0) > 0 for gpu in one.held):
            chosen.append(one)
            lack = minus(lack, one.held)
    if not fits(lack, {}) or any(world.beside(one.held, "starting") for one in chosen):
        return False
    for one in chosen:
        world.swaps += 1
        world.leave(one.name)
    return True


@define
class LeastRecent(Policy):
    """On demand, the idle models that were used least recently leave until there is room.

    So do llama-swap's groups and Ollama's scheduler; a busy model goes on taking requests.
    """

    batches: bool = True

    def look(self, world: World) -> float | None:
        free, coming = world.free, _coming(world)
        for server in sorted(world.waiting.values(), key=lambda one: one.queue[0].at):
            if server.phase != "absent":
                continue
            claim = server.kind.claim
            if fits(claim, free):
                if world.beside(claim, "starting", "leaving") is None:
                    world.start(server.name)
            elif not fits(claim, plus(free, coming)):
                idle = [
                    one
                    for one in world.servers.values()
                    if one.phase == "ready" and not one.flying and not one.queue and one.served
                ]
                if not _evict(world, minus(claim, plus(free, coming)), idle):
                    continue
                coming = plus(coming, *(one.held for one in idle if one.phase == "leaving"))
            free = minus(free, claim)
        return None


@define
class FirstCome(Policy):
    """No batches: a request is handed over when all that came before it have been."""

    batches: bool = False

    def look(self, world: World) -> float | None:
        while world.waiting:
            server = min(world.waiting.values(), key=lambda one: one.queue[0].at)
            if server.phase == "ready":
                if not world.hand_over(server, 1):
                    break
                continue
            if server.phase != "absent":
                break
            claim, free = server.kind.claim, world.free
            if fits(claim, free):
                if world.beside(claim, "starting", "leaving") is None:
                    world.start(server.name)
            elif not fits(claim, plus(free, _coming(world))):
                lack = minus(claim, plus(free, _coming(world)))
                idle = [one for one in world.servers.values() if one.phase == "ready" and not one.flying]
                _evict(world, lack, idle)
            break
        return None
