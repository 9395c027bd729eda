"""One backend: carries out what its lifecycle decides, and tells the lifecycle what happens.

The runtime tells of the run itself by the :class:`~llmproxy.runtimes.interface.Watcher` methods, and the
lifecycle decides by the :class:`~llmproxy.backend.effects.Effects` methods.  What is asked of a backend from
outside is in :mod:`llmproxy.backend.backend`.  Everything happens in the reactor's thread.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.backend.admission import Admission
from llmproxy.backend.diary import Diary
from llmproxy.backend.doubt import Doubt
from llmproxy.backend.engine import Engine, Terms
from llmproxy.backend.failures import (
    describe_exit,
    exit_failure,
    launch_failure,
    overdue_failure,
    refusal_for,
)
from llmproxy.backend.gate import Gate, Waiter
from llmproxy.backend.identity import Identity
from llmproxy.backend.launch import Launcher
from llmproxy.backend.lifecycle import Lifecycle, StartFailure, State, cool_down
from llmproxy.backend.lingering import Lingering
from llmproxy.backend.present import Present
from llmproxy.backend.replica import Replica
from llmproxy.backend.serving import Alone, Replication, Serving
from llmproxy.backend.startup import Startup
from llmproxy.backend.surroundings import Decision, LastStart, Surroundings, Transition
from llmproxy.backend.timed import Timed
from llmproxy.backend.timers import Timers
from llmproxy.backend.wishes import Wishes, Witnesses
from llmproxy.config.model import BackendSpec
from llmproxy.engines.needs import read_needs
from llmproxy.errors import Refusal
from llmproxy.runtimes.interface import (
    Exit,
    Facts,
    IHosts,
    Instance,
    IReplicator,
    IRuntime,
    RuntimeUnavailable,
    StartRefused,
)

__all__ = ["Conduct"]

LOG_LIMIT = 2.0
"""Seconds that a refusal waits for the log it quotes; Docker's API can stall for many more."""

DIAGNOSIS_LINES = 400
"""Lines of log that are searched for the cause of a failed start: each of vLLM's processes adds a traceback
of up to a hundred to the one that has it."""


class Conduct(Timed):
    """One backend as its lifecycle and its runtime know it.

    :param predecessor: fires when an earlier backend of the same route has ended; a start waits for it.
    :ivar awaited: somebody waited for it when it became ready.
    """

    _log = Logger()

    def __init__(
        self,
        surroundings: Surroundings,
        runtime: IRuntime,
        spec: BackendSpec,
        predecessor: Deferred[None] | None = None,
    ) -> None:
        self.spec = spec
        self.runtime = runtime
        self.admission: Admission[Waiter] = Admission(spec.max_waiting, spec.max_in_flight)
        self.gate = Gate(surroundings.clock, self.admission, self._drained, self._suspected)
        self.lifecycle = Lifecycle(self)
        self.identity = Identity(spec.models or (), read_needs(spec, Facts()))
        self.since = surroundings.clock.seconds()
        self.last_start: LastStart | None = None
        self.last_failure: StartFailure | None = None
        self.last_failure_at = 0.0
        self.surroundings = surroundings
        self.wishes = Wishes()
        self.awaited = False
        self._engine = Engine(
            spec.route,
            surroundings.clock,
            surroundings.connect,
            surroundings.knock_at,
            self.lifecycle,
            lambda: Terms(self.spec.health, self.authorization, self.needs.sleep, self._may_sleep()),
        )
        self._launcher = Launcher(surroundings.clock, runtime, predecessor)
        self._timers = Timers(surroundings.clock, self._fired)
        self._diary = Diary(
            spec.route, surroundings.learned, surroundings.history, lambda: self.identity.fingerprint
        )
        self._startup = Startup(
            surroundings.clock,
            lambda: self.surroundings.learned.estimate(self.name, self.fingerprint, self.level),
            lambda: self._follow if self._tells_phases else None,
            self._phase_began,
        )
        self._present = Present()
        self._witnesses = Witnesses()
        self._lingering = Lingering()
        self._serving: Serving = (
            self._together(runtime)
            if isinstance(runtime, IReplicator)
            else Alone(surroundings.clock, surroundings.connect, self.gate, self._engine)
        )
        self._found = False
        self._failure: StartFailure | None = None
        self._closing = False
        self._abandoned = False
        self._doubt = Doubt(surroundings.clock, self._doubt_over)
        # The run whose end nobody has answered for.
        self._told_to_end: str | None = None
        # Configured no more, and not let go of yet.
        self._retired = False

    def _together(self, runtime: IReplicator) -> Serving:
        # Few have a Swarm.
        from llmproxy.backend.scaler import Scaler
        from llmproxy.backend.tasks import Tasks
        from llmproxy.backend.together import Together

        around = self.surroundings
        tasks = Tasks(
            around.clock,
            around.connect,
            self.gate,
            lambda: self.spec.health,
            lambda: self.spec.max_in_flight,
            self.look_again,
            self.lifecycle.sick,
        )
        scaler = Scaler(
            around.clock, runtime, self.gate, lambda: self.spec, lambda: self._present.known, self._decided
        )
        return Together(self.lifecycle, tasks, scaler)

    def _decided(self, kind: str, reason: str) -> None:
        around = self.surroundings
        around.announce(Decision(around.clock.seconds(), self.name, kind, reason))

    @property
    def replication(self) -> Replication | None:
        """Its tasks; None where it does not run, or not as tasks."""
        instance = self._present.known
        if instance is None or not instance.tasks:
            return None
        return Replication(instance.replicas, instance.pending, self._serving.tasks())

    # -- what is read from it -----------------------------------------------------------------------

    def _read_facts(self) -> Deferred[None]:
        def read(facts: Facts) -> None:
            self.identity.learn(self.spec, facts)
            self.surroundings.renamed()
            self.surroundings.scheduler.moved(self)

        def unread(failure: Failure) -> None:
            # They are read again when the runtime is back, and when it runs.
            failure.trap(RuntimeUnavailable, StartRefused)

        return self.runtime.facts(self.spec).addCallbacks(read, unread)

    def _refusal_for(self, failure: StartFailure) -> Refusal:
        left = self.retry_in
        if left is None:
            left = cool_down(max(1, self.lifecycle.failures))
        refusal = refusal_for(failure, start_timeout=self.spec.start_timeout, retry_after=left)
        return refusal.about(self.name, self.state)

    def _drained(self) -> None:
        self._diary.used(self.gate.used_at)
        self.surroundings.scheduler.idle(self)

    def _suspected(self, replica: Replica) -> None:
        """An answer was broken: see whether it is dead."""
        if self.state == "ready":
            self._serving.suspect(replica)

    def look_again(self, cause: str) -> None:
        """What is known of it is old: find out how it is, as if it had just been found running."""
        self._present.known = None
        self.lifecycle.died(cause)

    # -- Watcher: what the runtime tells ------------------------------------------------------------

    def running(self, instance: Instance) -> None:
        """See :class:`~llmproxy.runtimes.interface.Watcher`."""
        if self._retired and self._doubt.there and not self._is_anothers(instance):
            # Its stop came to nothing, or its start to something.
            self._doubt.end_it(self._end_it)
            return
        self._doubt.over()
        replaced = self._present.running(instance) if self._heeds else self._note_there(instance)
        if instance.used_at is not None:
            self.gate.used_at = max(self.gate.used_at, instance.used_at)
        if self._present.known is instance:
            self._serving.follow(instance)
        if replaced:
            # The run that was known ended unheard, and another took its place.
            self.lifecycle.died("it was restarted by someone else")
        elif self._heeds and self._present.known is None:
            self._adopt()

    @property
    def _heeds(self) -> bool:
        """What the runtime tells is news, and not the echo of what it is asked for at present."""
        return not self._closing and not self._launcher.launching

    def _is_anothers(self, instance: Instance) -> bool:
        """Several proxies may ask for a service, and this is not the run that we have told to end.  Elsewhere
        another run is one that a policy has restarted."""
        return isinstance(self.runtime, IReplicator) and self._told_to_end not in (None, instance.run)

    def _note_there(self, instance: Instance) -> bool:
        self._present.there = instance
        return False

    def _adopt(self) -> None:
        if self._present.there is not None and self.state in ("absent", "failed") and not self._closing:
            self._present.known = self._present.there
            self._found = True
            self._startup.begin("starting")
            self._startup.runs(found=True)
            self.lifecycle.found()

    def gone(self, run: str | None, exit: Exit) -> None:
        """See :class:`~llmproxy.runtimes.interface.Watcher`."""
        if exit.oom:
            # Clients mostly hear of it as of a broken connection, before its cause is known.
            self._log.warn("{backend} ended with {exit}", backend=self.name, exit=describe_exit(exit))
        self._doubt.over()
        was_known = self._present.gone(run, exit)
        if was_known:
            # Of several tasks, what has had no byte yet can be answered by what comes after them.
            self._serving.follow(None)
        if not self.models:
            self._read_facts()
        if was_known:
            self._ended(exit)

    def _ended(self, exit: Exit) -> None:
        self._present.known = None
        swarm = self.spec.runtime == "swarm"
        if self.state == "starting" and swarm and exit == Exit():
            # Nobody says that it failed: its node was lost or drained, and another one gets it.
            self.lifecycle.died("its task was taken away while it started")
        elif self.state == "starting" and swarm and self._found:
            # No start of ours: it may have served for long, and its other tasks have ended before it.
            self.lifecycle.died(f"its last task ended with {describe_exit(exit)}")
        elif self.state == "starting":
            self._serving.ask_no_more()
            attempt, changes = self.lifecycle.attempt, self._present.changes

            def explained(log: str) -> None:
                others = self.surroundings.scheduler.neighbours(self)
                self._start_failed(attempt, exit_failure(exit, log, others))
                if changes != self._present.changes:
                    # It was replaced or removed while its log was read: that start says nothing of the next.
                    self.lifecycle.forgive()

            self._with_log(explained)
        else:
            self.lifecycle.died(f"it ended with {describe_exit(exit)}")

    def changed(self) -> None:
        """See :class:`~llmproxy.runtimes.interface.Watcher`."""
        self._present.changes += 1
        self.lifecycle.forgive()
        self._read_facts()

    def _with_log(self, use: Callable[[str], None]) -> None:
        log = self.logs(DIAGNOSIS_LINES).addTimeout(LOG_LIMIT, self.surroundings.clock)
        # Without a log the rest still has to be told.
        log.addErrback(lambda _: "")
        log.addCallback(use)
        log.addErrback(lambda failure: self._log.failure("diagnosing a failed start", failure))

    def _start_failed(self, attempt: int, failure: StartFailure) -> None:
        self.lifecycle.start_failed(attempt, failure)
        self._adopt()

    # -- Effects: what the lifecycle decides --------------------------------------------------------

    def launch(self, attempt: int) -> None:
        """See :class:`~llmproxy.backend.effects.Effects`."""
        self._present.known = None
        self._found = False
        self._told_to_end = None
        self._doubt.over()
        self._startup.begin("creating")
        self._launcher.start(
            self.spec,
            self._startup.step,
            lambda instance: self._launched(instance, attempt),
            lambda failure: self._launch_failed(failure, attempt),
        )

    def _launched(self, instance: Instance, attempt: int) -> None:
        exit = self._present.started(instance)
        if self.state != "starting" or attempt != self.lifecycle.attempt:
            return
        if exit is not None:
            # It ended before the runtime's answer to the start was through.
            self._ended(exit)
        else:
            self._startup.runs()
            self.lifecycle.launched(attempt)

    def _launch_failed(self, failure: Failure, attempt: int) -> None:
        elsewhere = isinstance(self.runtime, IHosts) and bool(self.runtime.places(self.spec))
        if failure.check(RuntimeUnavailable) and elsewhere and attempt == self.lifecycle.attempt:
            # Its host was lost in the middle of it, and those who wait are served from another one.
            self.lifecycle.died(f"its start was lost: {self.redacted(str(failure.value))}")
            return
        if failure.check(RuntimeUnavailable, StartRefused) is None:
            self._log.failure("starting {backend}", failure, backend=self.name)
        if failure.check(RuntimeUnavailable) and attempt == self.lifecycle.attempt:
            self._begin_doubt()
        told = launch_failure(failure)
        hint = None if told.hint is None else self.redacted(told.hint)
        self._start_failed(attempt, evolve(told, message=self.redacted(told.message), hint=hint))

    def _begin_doubt(self) -> None:
        """Nobody knows whether it runs: what it claims is kept for it until the runtime says how it is.

        That goes for what is configured no more as well: its successor waits so long, and if it runs on it is
        told to end once more.
        """
        if not self._closing or self._retired:
            self._doubt.begin()
            self._ask_how_it_is()

    def _ask_how_it_is(self) -> None:
        # It is told by that: at once, or when the runtime is back.
        self.runtime.watch(self.spec, self).addErrback(lambda _: None)

    def _end_it(self) -> None:
        self._launcher.stop(self.spec, self._end_answered)

    def _end_answered(self, took: float | None) -> None:
        self._doubt.answered(ended=took is not None)
        if self._doubt.there:
            self._ask_how_it_is()

    def _doubt_over(self, known: bool) -> None:
        if self._retired and not known:
            self._log.warn(
                "{backend} may still run: its runtime did not say what came of its last start or stop, and "
                "it is configured no more. If it runs, it has to be ended by hand",
                backend=self.name,
            )
        self.surroundings.scheduler.moved(self)

    @property
    def unsure(self) -> bool:
        """Nobody knows whether it runs: it was started or stopped, and the runtime has not said what came of
        that."""
        return self._doubt.there

    def probe(self, attempt: int) -> None:
        """See :class:`~llmproxy.backend.effects.Effects`."""
        known = self._present.known
        assert known is not None, "only what runs is asked for its health"
        patient = self._found and not self.admission.waiting and not self.spec.prewarm
        self._serving.probe(attempt, known, found=self._found, patient=patient)

    def open_gate(self) -> None:
        """See :class:`~llmproxy.backend.effects.Effects`."""
        self._serving.open()
        if not self.models:
            self._read_facts()

    @property
    def _tells_phases(self) -> bool:
        return self.spec.engine == "vllm" and self.spec.runtime != "url"

    def _follow(self, line: Callable[[str], None]) -> Deferred[None]:
        # Lines from before are of earlier runs.
        return self.runtime.follow_logs(self.spec, 0, line)

    def _phase_began(self, phase: str) -> None:
        if phase != "starting":  # the transition to that state has told it
            now = self.surroundings.clock.seconds()
            self.surroundings.announce(Decision(now, self.name, "phase", phase))

    def _note_start(self, now: float) -> None:
        phases = self._startup.over()
        self.last_start = LastStart(now, sum(phases.values()), phases)
        if not self._found:
            self._diary.started(now, phases)

    def close_gate(self) -> None:
        """See :class:`~llmproxy.backend.effects.Effects`."""
        self.gate.close()
        self._serving.ask_no_more()

    def cut(self, reason: str) -> None:
        """See :class:`~llmproxy.backend.effects.Effects`."""
        self.gate.cut(reason)

    def refuse(self, failure: StartFailure) -> None:
        """See :class:`~llmproxy.backend.effects.Effects`."""
        if failure.kind in ("failed", "timeout"):
            self._failure = self.last_failure = failure
            self.last_failure_at = self.surroundings.clock.seconds()
        refusal = self._refusal_for(failure)
        if failure.kind == "unavailable":
            # It is absent as before, and nothing else would tell the operator why.
            self.wishes.unfit = refusal
        self.gate.dismiss(lambda waiter: waiter.refused(refusal))

    def stop(self, attempt: int) -> None:
        """See :class:`~llmproxy.backend.effects.Effects`."""
        self._engine.leave_alone()
        self._launcher.stop(self.spec, lambda took: self._stopped(attempt, took))

    def _stopped(self, attempt: int, took: float | None) -> None:
        if took is not None:
            self._diary.stopped(took)
        known = self._present.known
        self._told_to_end = None if known is None else known.run
        self._present.stopped()
        unsure = took is None and self.state == "stopping" and attempt == self.lifecycle.attempt
        if unsure:
            self._begin_doubt()
        self.lifecycle.stopped(attempt)
        if unsure:
            self._adopt()

    def sleep(self, attempt: int, level: int) -> None:
        """See :class:`~llmproxy.backend.effects.Effects`."""
        freed = self.surroundings.scheduler.memory_came_back(self)
        self._engine.sleep(attempt, level, freed, self._diary.slept)

    def wake(self, attempt: int) -> None:
        """See :class:`~llmproxy.backend.effects.Effects`."""
        clock = self.surroundings.clock
        self._startup.begin_waking()
        self._engine.wake(attempt, lambda took: self._diary.woke(clock.seconds(), self.level, took))

    def _start_overdue(self) -> None:
        attempt = self.lifecycle.attempt
        phase = self.forecast().phase
        self._with_log(lambda log: self.lifecycle.start_overdue(attempt, overdue_failure(log, phase)))

    def moved(self, old: State, new: State, cause: str) -> None:
        """See :class:`~llmproxy.backend.effects.Effects`."""
        now = self.since = self.surroundings.clock.seconds()
        if new == "ready":
            self.gate.used_at = now
            self.gate.unused = True
            self._lingering.over()
            self.awaited = self.admission.waiting > 0
            self._abandoned = self.admission.abandoned
            if old == "starting":
                self._note_start(now)
        elif old == "ready":
            self._diary.over()
        if old in ("starting", "waking"):
            self._startup.over()
        if new in ("starting", "waking") or (old == "failed" and new == "absent"):
            self._failure = None
        if new in ("starting", "waking", "failed"):
            self.admission.abandoned = False
        self.wishes.moved(old, new)
        self.surroundings.record(Transition(now, self.name, old, new, cause))
        self._witnesses.tell(new)
        self.surroundings.scheduler.moved(self)

    def reconsider(self) -> None:
        """See :class:`~llmproxy.backend.effects.Effects`."""
        if self._closing:
            return
        if self._present.there is not None and self.state == "absent":
            self._adopt()
        elif self.admission.waiting or self.wishes.run_since is not None:
            self.surroundings.scheduler.wanted(self)
