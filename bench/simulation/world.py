"""A fleet of models that behaves as real ones do, on a clock that takes no time.

It keeps the physical rules by itself, whatever the policy: a model that is started where there is no room, or
beside another that starts or leaves, or that is stopped with a request in flight, ends the simulation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Literal, Protocol

from attrs import define, evolve, field
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

from bench.simulation.loads import Kind, Request
from llmproxy.scheduling.claims import NOTHING, Memory, Room, fits, minus
from llmproxy.scheduling.outlook import Model, Phase

__all__ = ["Broken", "Policy", "Server", "World"]

Due = Literal["", "idle", "stop"]

SPREAD = 0.15
"""Of the logarithm of what a start, a wake or a stop takes: two of three are within 15 % of the typical."""


class Broken(AssertionError):
    """A policy did what must not be done."""


class Policy(Protocol):
    """Who decides.

    :ivar batches: a ready model is handed its requests at once; else the policy does that.
    """

    batches: bool

    def look(self, world: World) -> float | None:
        """Something has changed: decide; when to look again if nothing changes until then."""


@define(eq=False)
class Server:
    """One model.

    :ivar level: of its sleep.
    :ivar flying: what answers at present.
    :ivar timer: the end of its start or its leaving.
    """

    kind: Kind
    phase: Phase = "absent"
    held: Memory = NOTHING
    level: int = 0
    queue: deque[Request] = field(factory=deque)
    flying: set[IDelayedCall] = field(factory=set)
    used_at: float = 0.0
    stays_until: float = 0.0
    served: bool = True
    leaves_as: str = ""
    due: Due = ""
    timer: IDelayedCall | None = None

    @property
    def name(self) -> str:
        return self.kind.name

    @property
    def asleep_host(self) -> int:
        """Host memory that it takes: from when it begins to fall asleep until it has woken."""
        return self.kind.host if self.level == 1 else 0

    def seen(self) -> Model:
        """As the scheduler sees it."""
        kind = self.kind
        going = self.phase in ("draining", "leaving")
        return Model(
            kind.name,
            self.phase,
            claim=kind.claim,
            held=self.held,
            rest=kind.kept if going and self.leaves_as not in ("", "stop") else NOTHING,
            sleeps=kind.sleeps,
            kept=kind.kept,
            host=kind.host,
            asleep_host=self.asleep_host,
            busy=bool(self.flying),
            served=self.served,
            pinned=kind.pinned,
            priority=kind.priority,
            used_at=self.used_at,
            stays_until=self.stays_until,
            due=self.due,
            leaves_as=self.leaves_as,
            reload=kind.reload,
            wake={1: kind.wake, 2: 3 * kind.wake},
            waiting=len(self.queue),
            waiting_since=self.queue[0].at if self.queue else 0.0,
            urgency=max((kind.priority + one.priority for one in self.queue), default=0),
            may_evict=any(one.may_evict for one in self.queue),
        )


@define(eq=False)
class World:
    """The fleet.

    :ivar parallel: requests that one model answers at once; more wait.
    :ivar waits: of each model, how long each of its requests waited until it was handed over.
    :ivar idle: seconds in which a GPU answered nobody while somebody waited, of all GPUs together.
    :ivar longest: seconds of the longest ``start``, ``leave`` and ``answer`` that there were.
    """

    policy: Policy
    kinds: Iterable[Kind]
    rooms: dict[str, Room]
    seed: int = 0
    parallel: int = 256
    clock: Clock = field(factory=Clock)
    servers: dict[str, Server] = field(init=False)
    waiting: dict[str, Server] = field(factory=dict, init=False)
    waits: dict[str, list[float]] = field(factory=dict, init=False)
    refused: dict[str, int] = field(factory=dict, init=False)
    loads: int = field(default=0, init=False)
    swaps: int = field(default=0, init=False)
    idle: float = field(default=0.0, init=False)
    longest: dict[str, float] = field(factory=dict, init=False)
    began: float = field(init=False)
    _counted: float = field(init=False)
    _looks: IDelayedCall | None = field(default=None, init=False)
    _looking: bool = field(default=False, init=False)
    _dice: dict[str, Random] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.servers = {kind.name: Server(kind) for kind in self.kinds}
        self.began = self._counted = self.now

    @property
    def now(self) -> float:
        return float(self.clock.seconds())

    @property
    def free(self) -> Memory:
        found = {gpu: room.capacity for gpu, room in self.rooms.items()}
        for server in self.servers.values():
            found = minus(found, server.held)
        return found

    # -- time ---------------------------------------------------------------------------------------

    def replay(self, requests: Iterable[Request]) -> None:
        """All of them, until each is answered."""
        self._next(iter(requests))
        while self.step():
            pass
        if self.waiting:
            raise Broken(f"nothing happens any more, and {', '.join(self.waiting)} is waited for")

    def step(self) -> bool:
        """Go to the next event; False when there is none."""
        calls = self.clock.getDelayedCalls()
        if not calls:
            return False
        self.clock.advance(max(0.0, min(call.getTime() for call in calls) - self.now))
        return True

    def _next(self, requests: Iterator[Request]) -> None:
        request = next(requests, None)
        if request is not None:
            at = self.began + request.at
            self.later(at - self.now, self._arrive, evolve(request, at=at), requests)

    def later(self, delay: float, what: Callable[..., None], *arguments: object) -> IDelayedCall:
        """An event: after it the policy looks."""

        def happens() -> None:
            self._count()
            what(*arguments)
            self.look()

        call: IDelayedCall = self.clock.callLater(max(0.0, delay), happens)
        return call

    def look(self) -> None:
        """Have the policy decide, now and when it wants to."""
        if self._looks is not None and self._looks.active():
            self._looks.cancel()
        again = self.policy.look(self)
        self._looks = None
        if again is None:
            return
        if again <= self.now:
            raise Broken("it would look again at once, for ever")
        if self.waiting or self.clock.getDelayedCalls():
            self._looks = self.later(again - self.now, lambda: None)

    def _count(self) -> None:
        passed = self.now - self._counted
        self._counted = self.now
        if self.waiting and passed:
            serving = {gpu for one in self.servers.values() if one.flying for gpu in one.kind.claim}
            self.idle += passed * sum(gpu not in serving for gpu in self.rooms)

    def _takes(self, kind: Kind, what: str, typical: float) -> float:
        # Dice of its own for each thing, so that the n-th start of a model is the same under every policy.
        dice = self._dice.setdefault(f"{kind.name} {what}", Random(f"{self.seed} {kind.name} {what}"))
        taken = typical * dice.lognormvariate(0.0, SPREAD)
        key = "start" if what in ("start", "wake") else "leave"
        self.longest[key] = max(self.longest.get(key, 0.0), taken)
        return taken

    # -- requests -----------------------------------------------------------------------------------

    def _arrive(self, request: Request, more: Iterator[Request]) -> None:
        server = self.servers[request.model]
        server.queue.append(request)
        self.waiting[server.name] = server
        if self.policy.batches:
            self.hand_over(server)
        self._next(more)

    def hand_over(self, server: Server, most: int | None = None) -> int:
        """Its requests go to it, if it is ready; how many."""
        count = 0
        while (
            server.queue
            and server.phase == "ready"
            and len(server.flying) < self.parallel
            and (most is None or count < most)
        ):
            request = server.queue.popleft()
            self.waits.setdefault(server.name, []).append(self.now - request.at)
            self.longest["answer"] = max(self.longest.get("answer", 0.0), request.seconds)
            call = self.later(request.seconds, self._answered, server)
            server.flying.add(call)
            server.used_at = self.now
            server.served = True
            if server.due == "idle":
                server.due = ""
            count += 1
        if not server.queue:
            self.waiting.pop(server.name, None)
        return count

    def _answered(self, server: Server) -> None:
        server.flying = {call for call in server.flying if call.active()}
        server.used_at = self.now
        if self.policy.batches:
            self.hand_over(server)

    def refuse(self, name: str) -> None:
        """All who wait for it are told that it cannot be."""
        server = self.servers[name]
        self.refused[name] = self.refused.get(name, 0) + len(server.queue)
        server.queue.clear()
        self.waiting.pop(name, None)

    # -- what a policy does -------------------------------------------------------------------------

    def beside(self, memory: Memory, *phases: Phase) -> Server | None:
        """One in these phases that has memory on these GPUs."""
        for server in self.servers.values():
            if server.phase in phases and any(gpu in memory for gpu in server.held):
                return server
        return None

    def start(self, name: str, stays: float = 0.0) -> None:
        """Start or wake it; it stays for so long then."""
        server, kind = self.servers[name], self.servers[name].kind
        if server.phase not in ("absent", "asleep"):
            raise Broken(f"{name} is {server.phase}, and started")
        if not fits(minus(kind.claim, server.held), self.free):
            raise Broken(f"{name} is started where there is no room")
        if (other := self.beside(kind.claim, "starting", "leaving")) is not None:
            raise Broken(f"{name} is started beside {other.name}, which is {other.phase}")
        if server.phase == "asleep":
            seconds = self._takes(kind, "wake", kind.wake if server.level == 1 else 3 * kind.wake)
        else:
            seconds = self._takes(kind, "start", kind.reload)
        server.phase, server.held, server.served, server.leaves_as = "starting", kind.claim, False, ""
        self.loads += 1
        server.timer = self.later(seconds, self._started, server, stays)

    def _started(self, server: Server, stays: float) -> None:
        server.phase, server.level, server.timer = "ready", 0, None
        server.used_at = self.now
        server.stays_until = self.now + stays
        server.served = not server.queue
        if self.policy.batches:
            self.hand_over(server)

    def drain(self, name: str, how: str = "stop") -> None:
        """It takes no new requests."""
        server = self.servers[name]
        if server.phase != "ready":
            raise Broken(f"{name} is {server.phase}, and drained")
        server.phase, server.leaves_as = "draining", how

    def leave(self, name: str, how: str = "stop") -> None:
        """It stops or falls asleep."""
        server, kind = self.servers[name], self.servers[name].kind
        if server.flying:
            raise Broken(f"{name} is busy, and stopped")
        if server.phase not in ("ready", "draining", "asleep"):
            raise Broken(f"{name} is {server.phase}, and stopped")
        if (other := self.beside(server.held, "starting")) is not None:
            raise Broken(f"{name} is stopped beside {other.name}, which starts")
        server.level = 0 if how == "stop" else int(how)
        what, typical = ("stop", kind.stop) if how == "stop" else ("sleep", kind.sleep)
        seconds = self._takes(kind, what, typical)
        server.phase, server.leaves_as = "leaving", how
        server.timer = self.later(seconds, self._left, server)

    def _left(self, server: Server) -> None:
        server.phase, server.held = "absent", NOTHING
        if server.level:
            server.phase, server.held = "asleep", server.kind.kept
        server.leaves_as, server.due, server.timer, server.stays_until = "", "", None, 0.0

    # -- what happens from outside ------------------------------------------------------------------

    def crash(self, name: str) -> None:
        """It is gone, and what it answered is lost."""
        server = self.servers[name]
        for call in (*server.flying, server.timer):
            if call is not None and call.active():
                call.cancel()
        server.flying.clear()
        server.phase, server.held, server.level, server.served = "absent", NOTHING, 0, True
        server.leaves_as, server.due, server.timer, server.stays_until = "", "", None, 0.0

    def wish(self, name: str, due: Due) -> None:
        """It shall leave: as it is ``idle``, or as somebody wants it to ``stop``."""
        server = self.servers[name]
        if server.phase in ("ready", "asleep") and not (due == "idle" and (server.flying or server.queue)):
            server.due = due

    def lend(self, gpu: str, units: int) -> None:
        """So much of a GPU is lent to something else from now on."""
        self.rooms[gpu] = evolve(self.rooms[gpu], leased=units)

    def seen(self) -> dict[str, Model]:
        """What the scheduler sees: those that are somewhere, or wanted."""
        return {
            name: server.seen()
            for name, server in self.servers.items()
            if server.phase != "absent" or server.queue
        }
