"""Has more tasks of a backend where there is more to do, and fewer where there is less."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.backend.gate import Gate
from llmproxy.backend.replica import Replica
from llmproxy.config.model import BackendSpec
from llmproxy.runtimes.interface import Instance, IReplicator, RuntimeUnavailable
from llmproxy.scheduling.replicas import OTHERS_SEEN, Load, ReplicaPolicy, needed

__all__ = ["TICK", "Scaler"]

TICK = 0.5
"""Seconds between looks at the load while there is any, or more tasks than must be."""

LONGEST = 5.0
"""Seconds that one change may take until the next look: a manager writes it down within milliseconds, or has
no quorum."""


class Scaler:
    """Of one backend, while it is ready.

    :param instance: what is known of its run.
    :param decided: told of each decision: ``scale out`` or ``scale in``, and why.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        runtime: IReplicator,
        gate: Gate,
        spec: Callable[[], BackendSpec],
        instance: Callable[[], Instance | None],
        decided: Callable[[str, str], None],
    ) -> None:
        self._clock = clock
        self._runtime = runtime
        self._gate = gate
        self._spec = spec
        self._instance = instance
        self._decided = decided
        self._policy: ReplicaPolicy | None = None
        self._ticking: IDelayedCall | None = None
        self._changing = False
        # The one that shall leave, and gets nothing new until it has nothing any more.
        self._leaver: str | None = None
        # Those that are being ended, and until when that may take: another one may go in their place.
        self._going: dict[str, float] = {}
        self._used = False
        gate.busied = self._busied

    def begin(self) -> None:
        """It is ready."""
        self._policy = ReplicaPolicy()
        self.look()

    def over(self) -> None:
        """It is not ready any more."""
        self._policy = None
        self._leaver = None
        self._going.clear()
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

    def _busied(self) -> None:
        # It may be over before the next look.
        self._used = True
        self.look()

    def look(self) -> None:
        """Something may be another way now."""
        if self._policy is not None and self._ticking is None:
            self._ticking = self._clock.callLater(0, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        policy, instance = self._policy, self._instance()
        if policy is None or instance is None:
            return
        spec, admission = self._spec(), self._gate.admission
        load = admission.in_flight + admission.waiting
        if load or self._used:
            self._runtime.note_use(spec, needed(load, spec.replicas))
        self._used = False
        self._see_going()
        if not self._changing:
            takers = len(self._gate.roster.takers) + (self._leaver is not None)
            now = Load(load, instance.replicas, takers, instance.needed_at)
            step = policy.step(self._clock.seconds(), spec.replicas, now)
            if step < 0:
                self._shrink(spec, instance)
            else:
                self._keep()
            if step > 0:
                self._grow(spec, instance, load)
        more = instance.replicas > max(1, spec.replicas.min)
        going_on = load or more or self._changing or self._going
        # What was done may have been told already, and have it look again.
        if going_on and self._ticking is None and self._policy is not None:
            self._ticking = self._clock.callLater(TICK, self._tick)

    def _grow(self, spec: BackendSpec, instance: Instance, load: int) -> None:
        more = instance.replicas + 1
        each = spec.replicas.target_in_flight
        self._decided(
            "scale out", f"{load} requests for {_tasks(instance.replicas)} of {each}: {_tasks(more)}"
        )
        self._change(self._runtime.scale(spec, more))

    def _shrink(self, spec: BackendSpec, instance: Instance) -> None:
        if instance.used_at is not None and self._clock.seconds() - instance.used_at < OTHERS_SEEN:
            # Another proxy has requests there, and nobody here knows at which task.
            self._keep()
            return
        staying = [task.id for task in instance.tasks if not task.leaving]
        if len(staying) < instance.replicas:
            # One that does not even run is the first that goes.
            self._retire(spec, instance, "")
            return
        replica = self._candidate(spec, staying)
        if replica is None:
            if not (self._gate.busy or self._gate.admission.waiting):
                self._gate.pause(True)
                self._retire(spec, instance, "")
            return
        if replica.id != self._leaver:
            self._keep()
            self._leaver = replica.id
            self._gate.spare(replica.id, True)
        if not replica.in_flight:
            self._retire(spec, instance, replica.id)

    def _candidate(self, spec: BackendSpec, staying: list[str]) -> Replica | None:
        """The one that is to leave; None: that is not ours to choose."""
        roster = self._gate.roster
        leaver = None if self._leaver is None else roster.get(self._leaver)
        if leaver is not None and leaver.id in staying:
            return leaver
        # One that is not well before one that is, and never the last that gets requests.
        spare = len(roster.takers) > 1
        ours = [
            replica
            for replica in map(roster.get, staying)
            if replica is not None and (replica.ailing or spare) and not replica.going
            if self._runtime.can_choose(spec, replica.id)
        ]
        return min(ours, key=lambda replica: (not replica.ailing, replica.in_flight), default=None)

    def _retire(self, spec: BackendSpec, instance: Instance, task: str) -> None:
        fewer = instance.replicas - 1
        each = spec.replicas.target_in_flight
        self._decided(
            "scale in", f"too few requests for {_tasks(instance.replicas)} of {each}: {_tasks(fewer)}"
        )
        self._change(self._runtime.retire(spec, task, instance.replicas))

    def _keep(self) -> None:
        """None leaves."""
        leaver, self._leaver = self._leaver, None
        if leaver is not None:
            self._gate.spare(leaver, False)

    def _see_going(self) -> None:
        """Those that should have ended, and have not, get requests again."""
        now = self._clock.seconds()
        for id, until in list(self._going.items()):
            there = self._gate.roster.get(id) is not None
            if not there or now >= until:
                del self._going[id]
                self._gate.spare(id, False)

    def _change(self, changing: Deferred[None]) -> None:
        self._changing = True
        # Those who come meanwhile may be held, which must not last.
        changing.addTimeout(LONGEST, self._clock)

        def changed(_: None) -> None:
            leaver, self._leaver = self._leaver, None
            if leaver is not None and self._gate.roster.get(leaver) is not None:
                self._going[leaver] = self._clock.seconds() + self._spec().stop_grace + LONGEST
                self.look()
            if self._policy is not None:
                self._policy.done()

        def failed(failure: Failure) -> None:
            if failure.check(RuntimeUnavailable, CancelledError, TimeoutError) is None:
                self._log.failure("scaling {backend}", failure, backend=self._spec().route)
            self._keep()

        def over(_: None) -> None:
            self._changing = False
            self._gate.pause(False)

        changing.addCallbacks(changed, failed).addBoth(over)


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"
