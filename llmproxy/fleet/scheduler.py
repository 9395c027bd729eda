"""Decides which backends run, as far as GPU memory goes: asks the placement, and carries its plan out.

It looks at the whole fleet whenever something has changed, and when time alone may have changed something;
:mod:`llmproxy.scheduling.placement` says what is to be done.  A request to a backend that is ready never
comes here.

A backend that claims no GPU of ours (of a Swarm, of a ``url``) is in nobody's way, and nobody in its: it is
looked at by itself.  With thousands of them the plan of all, at each step of each, would be all that is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llmproxy.backend.backend import Backend
from llmproxy.backend.conduct import Conduct
from llmproxy.backend.makeup import Makeup
from llmproxy.backend.surroundings import Decision
from llmproxy.config.model import Config
from llmproxy.errors import does_not_fit, not_allowed
from llmproxy.fleet.crowd import gone_in, neighbours
from llmproxy.fleet.places import Places, is_here
from llmproxy.fleet.snapshot import lease_model, model_of, rooms_for
from llmproxy.runtimes.gpus import AbsentMeter, IGpuMeter, is_absent, settle
from llmproxy.runtimes.interface import IHosts
from llmproxy.scheduling.claims import Room, plus
from llmproxy.scheduling.history import History
from llmproxy.scheduling.learned import Learned
from llmproxy.scheduling.leases import GpuLease, Leases
from llmproxy.scheduling.outlook import Leave, Model, Plan, Refuse, Rules, Start, Wait
from llmproxy.scheduling.placement import plan

__all__ = ["Scheduler"]

FREED_BOUND = 10.0
"""Seconds that a start waits for GPU memory to come back that a stop gave up: a CUDA context is gone within
one or two, and Ollama gives it five.  What is still missing then is used by something else."""

SLEEP_BOUND = 5.0
"""The same, for what falling asleep gives back: vLLM answers when it has."""

CAME_BACK = 0.5
"""Part of what a sleeper should give back that has to come back; vLLM has been seen to free 6 of 20 GB."""

TRY_AGAIN = 1.0
"""Seconds until the next look after one that failed."""

NEVER_LONGER = 3600.0
"""Seconds between two looks at most while anything waits."""

Settle = Callable[[Mapping[str, int], float], Deferred[bool]]


class Scheduler:
    """The scheduler of one fleet.

    :param backends: all of them, those that are configured no more included, by names that tell them apart.
    :param record: told of each decision.
    :param changed: called when leases changed.
    :param host_memory: bytes of host memory for sleepers when the operator says nothing.
    :param hosts: the runtime that runs backends on several machines, if one does.
    :ivar places: on which hosts they are.
    :ivar sound: its last look has come to its end.
    :ivar frozen: it decides nothing for now: another process does, or is about to.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        config: Config,
        backends: Callable[[], Mapping[str, Backend]],
        record: Callable[[Decision], None],
        learned: Learned,
        history: History,
        *,
        host_memory: int = 0,
        hosts: IHosts | None = None,
    ) -> None:
        self.config = config
        self.places = Places(hosts, config)
        self.leases = Leases()
        self.meter: IGpuMeter = AbsentMeter("not looked for")
        self.settle: Settle = lambda enough, bound: settle(clock, self.meter, enough, bound)
        self.leases_changed: Callable[[], None] = lambda: None
        self.sound = True
        self.frozen = False
        self._clock = clock
        self._backends = backends
        self._record = record
        self._learned = learned
        self._history = history
        self._host_memory = host_memory
        self._totals: dict[str, int | None] = {}
        # Starts that are decided on and have not begun, and those whose memory is waited for.
        self._granted: set[Conduct] = set()
        self._settling: dict[Conduct, Deferred[bool]] = {}
        self._ranks: dict[Conduct, tuple[int, int, bool]] = {}
        self._waits: dict[str, Wait] = {}
        # Somebody waits, or may not leave yet, so that any change may be the one that is waited for.
        self._unsettled = False
        # Before that a GPU looks empty: memory that has not been lent yet is not lent.
        self._knows = False
        self._told: dict[str, Decision] = {}
        self._looking = False
        self._again = False
        # What is to be looked at soon: these by themselves, or all.
        self._apart: set[Makeup] = set()
        self._all = False
        self._soon: IDelayedCall | None = None
        self._later: IDelayedCall | None = None
        self._closed = False

    # -- what it hears ------------------------------------------------------------------------------

    def wanted(self, backend: Conduct) -> None:
        """See :class:`~llmproxy.backend.surroundings.IScheduler`."""
        admission = backend.admission
        rank = (backend.lifecycle.attempt, admission.urgency, admission.may_evict)
        if admission.waiting > 1 and self._ranks.get(backend) == rank:
            # A thousand who wait for the same are one demand.
            return
        self._ranks[backend] = rank
        self.look(backend)

    def moved(self, backend: Conduct) -> None:
        """See :class:`~llmproxy.backend.surroundings.IScheduler`."""
        if backend.state not in ("absent", "sleeping"):
            self._granted.discard(backend)
            self._ranks.pop(backend, None)
            self._waits.pop(backend.name, None)
        if self._is_apart(backend):
            if backend in self._granted or _has_wishes(backend):
                self.soon(backend)
        elif self._looking or self._unsettled or self._granted or _has_wishes(backend):
            # What happens in the middle of carrying out a plan may be what the rest of it waits for.
            self.soon()

    def idle(self, backend: Conduct) -> None:
        """See :class:`~llmproxy.backend.surroundings.IScheduler`."""
        if backend.state == "draining":
            self.look(backend)
        elif backend.wishes.any or (self._waits and not self._is_apart(backend)):
            self.soon(backend)

    def soon(self, at: Makeup | None = None) -> None:
        """Look when what happens at present is over.

        :param at: the only one of which something has changed; None: anything may have.
        """
        if at is not None and self._is_apart(at):
            self._apart.add(at)
        else:
            self._all = True
        if self._soon is None and not self._closed:
            self._soon = self._clock.callLater(0, self._look_now)

    def _look_now(self) -> None:
        self._soon = None
        apart, self._apart = self._apart, set()
        everything, self._all = self._all, False
        self._forget_grants()
        if everything:
            self.look()
            return
        for backend in sorted(apart, key=lambda one: one.name):
            self.look(backend)

    def _forget_grants(self) -> None:
        # What was begun and came to nothing, now that the steps in which it was begun are over.
        self._granted = {
            backend
            for backend in self._granted
            if backend in self._settling or backend.state not in ("absent", "sleeping", "failed")
        }

    def look(self, at: Makeup | None = None) -> None:
        """See :class:`~llmproxy.backend.surroundings.IScheduler`."""
        if at is not None and self._is_apart(at):
            self._look_at(at)
            return
        if self._looking:
            self._again = True
            return
        if self.frozen:
            return
        self._looking = True
        try:
            self._expire()
            while not self._closed:
                self._again = False
                self._carry_out(self.plan())
                if not self._again:
                    break
            self.sound = True
        except Exception:
            # A fault of our own must neither be one request's alone, nor pass for health.
            self._log.failure("scheduling")
            self.sound = False
            self._look_later(self._clock.seconds() + TRY_AGAIN, self._clock.seconds())
        finally:
            self._looking = False

    def _is_apart(self, backend: Makeup) -> bool:
        """It claims no GPU of ours, and needs no host."""
        runtime: object = backend.runtime
        return not backend.needs.gpus and runtime is not self.places.hosts

    def _look_at(self, backend: Makeup) -> None:
        """Look at one that nobody is in the way of."""
        assert isinstance(backend, Backend), "there are no others"
        if self._looking:
            self.soon(backend)
            return
        if self.frozen or self._closed:
            return
        self._looking = True
        now = self._clock.seconds()
        try:
            granted = backend in self._granted
            seen = model_of(backend, backend.name, {}, self._learned, self.places, granted=granted)
            found = plan([seen], {}, self.rules(), now)
            self._waits.pop(backend.name, None)
            for wait in found.waits:
                self._waits[wait.name] = wait
                self._tell(Decision(now, wait.name, "wait", wait.why))
            for leave in found.leaves:
                self._leave(leave, backend, {}, now)
            for start in found.starts:
                self._start(start, backend, now)
            if self._again:
                # Whoever has asked for that may be another one, which is looked at with all.
                self._again = False
                self.soon()
            self.sound = True
        except Exception:
            # As in ``look``.
            self._log.failure("scheduling")
            self.sound = False
            self._look_later(now + TRY_AGAIN, now)
        finally:
            self._looking = False

    def thaw(self) -> None:
        """Decide again, beginning with what was left undone."""
        self.frozen = False
        self.soon()

    @property
    def settling(self) -> bool:
        """A start has been decided on, and waits for its memory."""
        return bool(self._settling)

    def close(self) -> None:
        """Decide nothing any more."""
        self._closed = True
        for call in (self._soon, self._later):
            if call is not None and call.active():
                call.cancel()
        settling, self._settling = self._settling, {}
        for waiting in settling.values():
            waiting.cancel()

    def reload(self, config: Config) -> None:
        """Settings have changed."""
        self.config = self.places.config = config
        # What was of backends that have ended since the last time.
        backends = self._backends()
        present = set(backends.values())
        self._ranks = {backend: rank for backend, rank in self._ranks.items() if backend in present}
        self._told = {
            name: told for name, told in self._told.items() if name in backends or self.leases.get(name)
        }
        self.soon()

    def fleet_known(self) -> None:
        """What runs already has been looked for, and counts."""
        self._knows = True
        if not all(lease.held for lease in self.leases):
            self.soon()

    def found_meter(self, meter: IGpuMeter, settle_by: Settle) -> None:
        """GPU memory can be measured from now on."""
        self.meter, self.settle = meter, settle_by
        self._totals = {}
        self.soon()

    # -- looking ------------------------------------------------------------------------------------

    def models(self, rooms: Mapping[str, Room]) -> list[Model]:
        """All that counts at present: what holds memory, is wanted, or is due."""
        models = [
            model_of(backend, name, rooms, self._learned, self.places, granted=backend in self._granted)
            for name, backend in self._relevant().items()
        ]
        models += self.places.doubles(self._backends(), rooms)
        if self._knows:
            models += [lease_model(lease, rooms) for lease in self.leases if not lease.held]
        return models

    def _relevant(self) -> dict[str, Backend]:
        return {
            name: backend
            for name, backend in self._backends().items()
            if backend.state not in ("absent", "failed")
            or backend.admission.waiting
            or backend.wishes.run_since is not None
            # Also when all who waited have left since: it is about to start.
            or backend in self._granted
            or backend.unsure
        }

    def rooms(self, more: Iterable[Backend] = ()) -> dict[str, Room]:
        """The GPUs that count at present."""
        backends = [*self._relevant().values(), *more]
        gpus = {gpu for backend in backends for gpu in self.places.everywhere(backend)}
        gpus |= {lease.gpu for lease in self.leases} | set(self.config.all_gpus)
        for gpu in gpus - self._totals.keys():
            unknown = is_absent(self.meter) or not is_here(gpu)
            total = None if unknown else self.meter.total(gpu)
            if total is not None or unknown:
                # What could not be read once may be read the next time.
                self._totals[gpu] = total
        return rooms_for(sorted(gpus), self.config, self._totals, list(self.leases))

    def rules(self) -> Rules:
        """How demands are weighed."""
        ends: dict[str, float] = {}
        for lease in self.leases:
            if lease.held:
                ends[lease.gpu] = min(ends.get(lease.gpu, lease.until), lease.until)
        host = self.config.host_memory_for_sleep
        return Rules(
            self.config.scheduler.max_wait_before_drain,
            self._host_memory if host is None else host,
            ends,
        )

    def plan(self, hypothetical: Backend | None = None) -> Plan:
        """What is to be done now.

        :param hypothetical: as if somebody asked for this one at this moment.
        """
        now = self._clock.seconds()
        rooms = self.rooms(() if hypothetical is None else (hypothetical,))
        models = self.models(rooms)
        if hypothetical is not None:
            models = [model for model in models if model.name != hypothetical.name]
            asked = model_of(
                hypothetical,
                hypothetical.name,
                rooms,
                self._learned,
                self.places,
                granted=hypothetical in self._granted,
            )
            if asked.phase in ("absent", "asleep") and not asked.waiting:
                asked = evolve(asked, waiting=1, waiting_since=now, may_evict=True)
            models.append(asked)
        return plan(models, rooms, self.rules(), now)

    # -- carrying out -------------------------------------------------------------------------------

    def _carry_out(self, found: Plan) -> None:
        now = self._clock.seconds()
        self.places.end_doubles()
        backends = self._backends()
        self._waits = {wait.name: wait for wait in found.waits}
        for wait in found.waits:
            self._tell(Decision(now, wait.name, "wait", wait.why, ", ".join(wait.on) or None))
        for refuse in found.refusals:
            self._refuse(refuse, backends.get(refuse.name), now)
        for leave in found.leaves:
            self._leave(leave, backends[leave.name], backends, now)
        for start in found.starts:
            lease = self.leases.get(start.name)
            if lease is not None and start.name not in backends:
                self._grant_lease(lease, now)
            else:
                self._start(start, backends[start.name], now)
        self._unsettled = bool(self._waits) or any(map(_has_wishes, backends.values()))
        self._look_later(found.look_again, now)

    def _tell(self, decision: Decision) -> None:
        """Record it, unless it is what was said last."""
        last = self._told.get(decision.backend)
        same = last is not None and (last.kind, last.whom) == (decision.kind, decision.whom)
        if same and decision.kind in ("wait", "refuse"):
            # How long it still takes changes all the time.
            return
        self._told[decision.backend] = decision
        self._record(decision)

    def _start(self, start: Start, backend: Backend, now: float) -> None:
        self._granted.add(backend)
        if start.host:
            self.places.put(backend, start.host)
        if backend.needs.gpus or start.host:
            self._tell(Decision(now, start.name, "start", start.why))
        rooms = {} if self._is_apart(backend) else self.rooms()
        gpus = self.places.gpus(backend)
        wanted = {
            gpu: rooms[gpu].units(backend.needs.memory) for gpu in gpus if rooms[gpu].known and is_here(gpu)
        }
        if backend.state == "sleeping" or is_absent(self.meter) or not wanted:
            self._begin(backend)
            return
        freed = self._settling[backend] = self.settle(wanted, FREED_BOUND)
        freed.addCallbacks(lambda enough: self._freed(backend, enough), lambda _: None)

    def _freed(self, backend: Backend, enough: bool) -> None:
        self._settling.pop(backend, None)
        if not enough:
            self._log.warn(
                "{backend} is started though its GPU has less free memory than it wants:"
                " something else uses it",
                backend=backend.name,
            )
        self._begin(backend)

    def _begin(self, backend: Backend) -> None:
        if backend.state in ("absent", "sleeping"):
            backend.granted()
        # It may be started only when the present step of its lifecycle is over, or not at all.
        self.soon(backend)

    def _leave(self, leave: Leave, backend: Backend, backends: Mapping[str, Backend], now: float) -> None:
        if backend.gate.busy and not leave.drain:
            # An earlier step has brought it a request: one that was refused, say, had another one behind it.
            self._again = True
            return
        for_whom = backends.get(leave.whom or "")
        if for_whom is not None:
            for_whom.wishes.swapped_in = True
        if leave.whom is not None and not (backend.state == "draining" and leave.why == "drained"):
            self._history.evicted(backend.name, now, leave.whom)
            kind = "drain" if leave.drain else "evict"
            self._tell(Decision(now, leave.name, kind, leave.why, leave.whom))
        elif leave.why == "idle":
            self._history.reaped(backend.name, now)
            if backend.needs.gpus:
                self._tell(Decision(now, leave.name, "reap", f"idle, {_how(leave.how)}"))
        backend.carry_out(leave)

    def evict(self, leave: Leave) -> None:
        """One leaves to make room in a cluster, whose nodes the placement knows nothing of."""
        backends = self._backends()
        self._leave(leave, backends[leave.name], backends, self._clock.seconds())

    def _refuse(self, refuse: Refuse, backend: Backend | None, now: float) -> None:
        self._tell(Decision(now, refuse.name, "refuse", refuse.why))
        if backend is None:
            self._refuse_lease(refuse, now)
        elif refuse.forbidden:
            backend.refuse_waiting(
                not_allowed(
                    f"This key may not have another model leave, and {refuse.why}.",
                    hint="Try again when the other one is idle, or use a key with may_evict.",
                )
            )
        else:
            again = None if refuse.until is None else max(1.0, refuse.until - now)
            backend.refuse_waiting(does_not_fit(refuse.name, refuse.why, retry_after=again))

    def _look_later(self, when: float | None, now: float) -> None:
        if self._later is not None and self._later.active():
            self._later.cancel()
        self._later = None
        end = self.leases.next_end()
        times = [time for time in (when, end) if time is not None]
        if times and not self._closed:
            seconds = min(max(0.001, min(times) - now), NEVER_LONGER)
            self._later = self._clock.callLater(seconds, self._look_when_due)

    def _look_when_due(self) -> None:
        self._later = None
        self._forget_grants()
        self.look()

    # -- sleeping -----------------------------------------------------------------------------------

    def memory_came_back(self, backend: Conduct) -> Callable[[], Deferred[bool]]:
        """See :class:`~llmproxy.backend.surroundings.IScheduler`."""
        rooms = self.rooms()
        enough: dict[str, int] = {}
        if not is_absent(self.meter):
            seen = model_of(backend, backend.name, rooms, self._learned, self.places, granted=False)
            for gpu in filter(is_here, self.places.gpus(backend)):
                free = self.meter.free(gpu)
                if rooms[gpu].known and free is not None:
                    enough[gpu] = free + int(CAME_BACK * (seen.claim[gpu] - seen.kept[gpu]))
        return lambda: self.settle(enough, SLEEP_BOUND) if enough else succeed(True)

    # -- leases -------------------------------------------------------------------------------------

    def lease(self, gpu: str, memory: float | int, seconds: float, note: str) -> GpuLease:
        """Lend memory of a GPU; models make room for it.

        :param memory: a fraction (``float``) or bytes (``int``).
        :raises llmproxy.errors.Refusal: ``does_not_fit``: it could never be had.
        """
        now = self._clock.seconds()
        lease = self.leases.take(gpu, memory, now + seconds, note, now)
        self.leases_changed()
        self.look()
        if self.leases.get(lease.name) is None:
            raise does_not_fit(lease.name, self._told.pop(lease.name).reason, retry_after=None)
        return lease

    def release(self, name: str) -> GpuLease | None:
        """End a lease before its time; None when there is none of that name."""
        lease = self.leases.end(name)
        if lease is not None:
            self._lease_over(lease, "released")
        return lease

    def _expire(self) -> None:
        for lease in self.leases.expire(self._clock.seconds()):
            self._lease_over(lease, "its time is over")

    def _lease_over(self, lease: GpuLease, why: str) -> None:
        self._waits.pop(lease.name, None)
        self._told.pop(lease.name, None)
        self._record(Decision(self._clock.seconds(), lease.name, "release", why))
        self.leases_changed()
        self.soon()

    def _grant_lease(self, lease: GpuLease, now: float) -> None:
        lease.held = True
        what = f" for {lease.note}" if lease.note else ""
        self._tell(Decision(now, lease.name, "lease", f"GPU {lease.gpu} has room{what}"))
        self.leases_changed()

    def _refuse_lease(self, refuse: Refuse, now: float) -> None:
        lease = self.leases.end(refuse.name)
        if lease is not None:
            self.leases_changed()

    # -- telling ------------------------------------------------------------------------------------

    def waits(self, name: str) -> Wait | None:
        """What a backend or a lease waits for; None when it does not wait."""
        return self._waits.get(name)

    def room_for(self, backend: Makeup) -> tuple[str, float | None] | None:
        """See :class:`~llmproxy.backend.surroundings.IScheduler`."""
        wait, backends = self._waits.get(backend.name), self._backends()
        if wait is None:
            return None
        return wait.why, gone_in([backends.get(name) for name in wait.on], self._clock.seconds())

    def neighbours(self, backend: Makeup) -> tuple[str, ...]:
        """See :class:`~llmproxy.backend.surroundings.IScheduler`."""
        return neighbours(backend, self._backends().values(), self.places.gpus)

    def decided(self, name: str) -> Decision | None:
        """The last decision about a backend or a lease."""
        return self._told.get(name)

    def claimed(self) -> dict[str, int]:
        """Units that are held on each GPU, see :mod:`llmproxy.scheduling.claims`."""
        rooms = self.rooms()
        held = plus(*(model.held for model in self.models(rooms)))
        return {gpu: held.get(gpu, 0) for gpu in rooms}


def _has_wishes(backend: Conduct) -> bool:
    """It waits for something to be decided."""
    return backend.state == "draining" or backend.admission.waiting > 0 or backend.wishes.any


def _how(how: str) -> str:
    return "stops" if how == "stop" else f"falls asleep at level {how}"
