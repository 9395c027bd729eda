"""A small world in which everything that can happen to a few backends on one GPU can be made to happen, step
by step.

The real backends, the real scheduler and the real placement over a runtime, a clock and engines in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from attrs import define, field
from twisted.internet.task import Clock

from llmproxy.backend.backend import Backend
from llmproxy.backend.gate import Lease
from llmproxy.backend.surroundings import Event, Transition
from llmproxy.config.model import BackendSpec, Config, Scheduler
from llmproxy.errors import Refusal
from llmproxy.fleet.fleet import Fleet
from llmproxy.runtimes.interface import Address, Facts
from tests.fakes import FakeController, FakeRuntime
from tests.inmemory import Servers

__all__ = ["FLEETS", "Broken", "Request", "World"]

Step = tuple[str, str]
"""What happens, and to which backend ("" where it is to none)."""

OUTSTANDING = 2
"""Requests to one backend that are not answered, at most."""

PAUSES = {"a moment": 0.03, "a while": 31.0, "long": 700.0}
"""Seconds that may pass: until the next probe; beyond a residency, a drain and a cool-down; beyond an idle
time."""

PATIENCE = 4000
"""Steps in which everybody must have been answered, when nothing goes wrong any more."""

CONTROLS = {
    "POST /sleep": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "POST /wake_up": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "POST /collective_rpc": b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"results":[null]}',
    "POST /reset_prefix_cache": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "GET /is_sleeping": b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"is_sleeping":false}',
}

DEV = Facts(args=("--enable-sleep-mode",), environment={"VLLM_SERVER_DEV_MODE": "1"})

FLEETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "exclusive": {"a": {"gpu_memory": 0.6}, "b": {"gpu_memory": 0.6}},
    "sleepers": {"a": {"gpu_memory": 0.6, "sleep": "1"}, "b": {"gpu_memory": 0.6, "sleep": "1"}},
    "pinned": {"a": {"gpu_memory": 0.6, "pinned": True}, "b": {"gpu_memory": 0.6}},
    "three": {"a": {"gpu_memory": 0.6}, "b": {"gpu_memory": 0.6}, "c": {"gpu_memory": 0.3}},
    "crowded": {"a": {"gpu_memory": 0.9}, "b": {"gpu_memory": 0.5, "priority": 1}, "c": {"gpu_memory": 0.5}},
}
"""Fleets to explore: what each backend claims of one GPU, and how it may leave it."""


class Broken(AssertionError):
    """What must never be has been."""


@define(eq=False)
class Request:
    """One request, which writes down what it is told."""

    backend: Backend
    lease: Lease | None = None
    refusal: Refusal | None = None
    told: int = 0
    over: bool = False
    broken_off: str = ""
    priority: int = 0
    may_evict: bool = True

    def affinity(self) -> bytes | None:
        return None

    def admitted(self, lease: Lease) -> None:
        self.told += 1
        self.lease = lease

    def refused(self, refusal: Refusal) -> None:
        self.told += 1
        self.refusal = refusal
        self.over = True

    def cut(self, reason: str) -> None:
        self.broken_off = reason
        self.finish()

    def handed_on(self, route: str | None) -> None:
        self.broken_off = "handed on, though no configuration changes here"

    def finish(self) -> None:
        """Its answer has ended."""
        assert self.lease is not None
        self.over = True
        self.lease.release()


@define(eq=False)
class World:
    """One fleet and what may happen to it.

    :ivar requests: all that were asked and are not over.
    """

    fields: Mapping[str, Mapping[str, Any]]
    clock: Clock = field(factory=Clock)
    requests: list[Request] = field(factory=list)
    runtime: FakeController = field(factory=lambda: FakeController(hold_starts=True, hold_stops=True))
    servers: Servers = field(factory=lambda: Servers(mode="refuse", controls=dict(CONTROLS)))
    fleet: Fleet = field(init=False)
    # Those that have given back their memory, and may be ended as they are.
    _asleep: set[str] = field(factory=set, init=False)
    # What must not be and was seen within the code under test, which takes care of whatever is raised there.
    _noted: list[str] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        specs = {}
        for number, (name, settings) in enumerate(self.fields.items()):
            specs[name] = BackendSpec(name, container=name, models=(name,), stop_grace=1.0, **settings)
            self.runtime.set_addresses(name, Address(f"10.0.0.{number}", 8000, "network"))
            if settings.get("sleep"):
                self.runtime.set_facts(name, DEV)
        config = Config(
            backends=specs,
            scheduler=Scheduler(max_wait_before_drain=30, drain_limit=60),
            host_memory_for_sleep=2**40,
        )
        self.runtime.on_stop = self._stop_asked
        self.fleet = Fleet(self.clock, self.servers.connect, {"docker": FakeRuntime(self.runtime)}, config)
        self.fleet.start()
        self.fleet.follow(self._heard)

    def _heard(self, event: Event) -> None:
        if isinstance(event, Transition) and event.new == "sleeping":
            self._asleep.add(event.backend)
        elif isinstance(event, Transition) and event.new in ("waking", "absent"):
            self._asleep.discard(event.backend)

    # -- what may happen ----------------------------------------------------------------------------

    def steps(self) -> dict[Step, Callable[[], None]]:
        """All that may happen now."""
        found: dict[Step, Callable[[], None]] = {}
        for name, backend in self.fleet.backends.items():
            mine = [request for request in self.requests if request.backend is backend]
            if len(mine) < OUTSTANDING:
                found["asked for", name] = partial(self._ask, backend)
            if any(request.lease for request in mine):
                found["answered", name] = partial(self._answer, mine)
            if any(not request.told for request in mine):
                found["given up", name] = partial(self._give_up, mine)
            if name in self.runtime.starting():
                found["started", name] = partial(self._start, name)
                found["refused", name] = partial(self.runtime.refuse_start, name)
            if name in self.runtime.stopping():
                found["stopped", name] = partial(self.runtime.finish_stop, name)
            if self.runtime.is_running(name):
                found["died", name] = partial(self._die, name)
                if self._mode(name) != "healthy":
                    found["healthy", name] = partial(self._heal, name)
            if backend.state in ("ready", "sleeping"):
                found["told to stop", name] = partial(backend.stop_wanted, "by hand")
        for pause in PAUSES:
            found["wait", pause] = partial(self._wait, PAUSES[pause])
        return found

    def do(self, step: Step) -> None:
        """Have it happen, and see that nothing is wrong then.

        :raises Broken: something is.
        """
        self.steps()[step]()
        self._check_noted()
        for request in self.requests:
            if request.broken_off not in ("", "drain limit reached") and step != (
                "died",
                request.backend.name,
            ):
                raise Broken(f"{request.backend.name} was cut: {request.broken_off}")
        self.requests = [request for request in self.requests if not request.over]
        self._check()

    def _ask(self, backend: Backend) -> None:
        request = Request(backend)
        self.requests.append(request)
        backend.enter(request)

    def _answer(self, mine: list[Request]) -> None:
        next(request for request in mine if request.lease).finish()

    def _give_up(self, mine: list[Request]) -> None:
        request = next(request for request in mine if not request.told)
        request.over = True
        request.backend.leave(request)

    def _start(self, name: str) -> None:
        self.runtime.finish_start(name)

    def _die(self, name: str) -> None:
        self.servers.modes.pop(self._host(name), None)
        self.runtime.exit(name, 1)

    def _heal(self, name: str) -> None:
        self.servers.modes[self._host(name)] = "healthy"

    def _wait(self, seconds: float) -> None:
        # As reactors do: what is due is done at about its time.
        left = seconds
        while left > 0:
            calls = self.clock.getDelayedCalls()
            due = min((call.getTime() for call in calls), default=None)
            pause = left if due is None else min(left, max(0.03, due - self.clock.seconds()))
            if left > 5.0:
                pause = max(pause, min(left, 1.0))
            self.clock.advance(pause)
            left -= pause

    def _host(self, name: str) -> str:
        return f"10.0.0.{list(self.fields).index(name)}"

    def _mode(self, name: str) -> str:
        return self.servers.modes.get(self._host(name), "refuse")

    # -- what must never be -------------------------------------------------------------------------

    def _stop_asked(self, name: str, grace: float) -> None:
        self.servers.modes.pop(self._host(name), None)
        if self.fleet.backends[name].gate.busy:
            self._noted.append(f"{name} is stopped with a request in flight")

    def _check_noted(self) -> None:
        if self._noted:
            raise Broken("; ".join(self._noted))

    def _check(self) -> None:
        self._check_noted()
        taken = {name for name in self.fields if self._takes(name)}
        if sum(self.fields[name]["gpu_memory"] for name in taken) > 1.0:
            raise Broken(f"{', '.join(sorted(taken))} do not fit together")
        for name in self.runtime.starting():
            if self.runtime.is_running(name):
                raise Broken(f"{name} is started while it runs")
        for request in self.requests:
            if request.told > 1:
                raise Broken(f"a request to {request.backend.name} was told twice")
        for name, backend in self.fleet.backends.items():
            leases = sum(1 for request in self.requests if request.backend is backend and request.lease)
            waiting = sum(1 for request in self.requests if request.backend is backend and not request.told)
            if (backend.admission.in_flight, backend.admission.waiting) != (leases, waiting):
                raise Broken(f"{name} has lost count")
            if backend.gate.roster.takers and not self.runtime.is_running(name):
                raise Broken(f"requests are handed to {name}, which does not run")
        if not self.fleet.scheduler.sound:
            raise Broken("the scheduler has failed")

    def _takes(self, name: str) -> bool:
        awake = self.runtime.is_running(name) and name not in self._asleep
        return awake or name in self.runtime.starting()

    # -- what must come in the end ------------------------------------------------------------------

    def settle(self) -> None:
        """From here on nothing goes wrong any more: everybody must be answered, and nothing be left over.

        :raises Broken: it is not so.
        """
        for _ in range(PATIENCE):
            if not self.requests:
                break
            for name in list(self.runtime.starting()):
                self.runtime.finish_start(name)
            for name in list(self.runtime.stopping()):
                self.runtime.finish_stop(name)
            for name in self.fields:
                if self.runtime.is_running(name):
                    self._heal(name)
            for request in self.requests:
                if request.lease and not request.over:
                    request.finish()
            self.requests = [request for request in self.requests if not request.over]
            self.clock.advance(0.5)
            self._check()
        if self.requests:
            raise Broken(f"nobody ever answers a request to {self.requests[0].backend.name}")
        self.close()

    def close(self) -> None:
        """End.

        :raises Broken: a timer is left over.
        """
        self.runtime.hold_stops = False
        self.fleet.close()
        self._check_noted()
        if self.clock.getDelayedCalls():
            raise Broken(f"timers are left over: {self.clock.getDelayedCalls()}")

    # -- what it looks like -------------------------------------------------------------------------

    def looks(self) -> object:
        """What tells this state from others.  Times count by the second, and those long past as long past."""
        now = self.clock.seconds()
        scheduler = self.fleet.scheduler
        backends = []
        used = sorted(self.fleet.backends, key=lambda name: self.fleet.backends[name].gate.used_at)
        waited = sorted(self.fleet.backends, key=lambda name: self.fleet.backends[name].wanted_since or 0.0)
        for name, backend in self.fleet.backends.items():
            wishes, present = backend.wishes, backend._present
            backends.append(
                (
                    backend.state,
                    min(backend.lifecycle.failures, 3),
                    sum(1 for request in self.requests if request.backend is backend and request.lease),
                    sum(1 for request in self.requests if request.backend is backend and not request.told),
                    (wishes.run_since is None, wishes.stop, wishes.sleep, wishes.leaves_as),
                    (wishes.swapped_in, wishes.unfit is None),
                    (present.known is None, present.there is None, backend._launcher.launching),
                    (backend.admission.abandoned, backend.awaited, backend.gate.unused, backend._found),
                    (name in self.runtime.starting(), self.runtime.is_running(name)),
                    (name in self.runtime.stopping(), self._mode(name)),
                    tuple(
                        sorted(
                            (kind, _rounded(backend._timers.left(kind))) for kind in backend._timers._calls
                        )
                    ),
                    _rounded(min(40.0, now - backend.since)),
                    _rounded(min(40.0, now - (backend.wanted_since or now))),
                    backend in scheduler._granted,
                )
            )
        return tuple(backends), tuple(used), tuple(waited), tuple(sorted(scheduler._waits))


def _rounded(seconds: float | None) -> int:
    return -1 if seconds is None else round(seconds)
