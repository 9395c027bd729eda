"""One backend: carries out what its lifecycle decides, and tells the lifecycle what happens.

Requests enter by :meth:`Backend.enter` and are told by the :class:`Waiter` protocol; the runtime tells of
the run itself by the :class:`~llmproxy.runtimes.interface.Watcher` methods.  Everything happens in the
reactor's thread.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.model import BackendSpec
from llmproxy.errors import Refusal, shutting_down
from llmproxy.fleet.admission import Admission
from llmproxy.fleet.failures import describe_exit, exit_failure, overdue_failure, refusal_for
from llmproxy.fleet.gate import Gate, Waiter
from llmproxy.fleet.identity import Identity
from llmproxy.fleet.lifecycle import Lifecycle, StartFailure, State, Timer, cool_down
from llmproxy.fleet.probe import ANSWER_LIMIT, Prober, probe_once
from llmproxy.fleet.surroundings import LastStart, Surroundings, Transition
from llmproxy.fleet.timers import Timers
from llmproxy.relay.pool import ConnectionPool
from llmproxy.runtimes.interface import (
    Address,
    Exit,
    Facts,
    Instance,
    IRuntime,
    RuntimeUnavailable,
    StartRefused,
)

__all__ = ["Backend"]

LOG_LIMIT = 2.0
"""Seconds that a refusal waits for the log it quotes; Docker's API can stall for many more."""

LAST_LOOK = 2 * ANSWER_LIMIT
"""Seconds in which a backend that was asked seldom may still answer when its time to start is over."""

DIAGNOSIS_LINES = 80
"""Lines of log that are searched for the cause of a failed start."""


class Backend:
    """One model server behind a route.

    :ivar spec: what the operator asked for.
    :ivar predecessor: fires when an earlier backend of the same route has ended; a start waits for it.
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
        self.gate = Gate(surroundings.clock, self.admission, self._drained, self.suspect)
        self.lifecycle = Lifecycle(self)
        self.identity = Identity(spec.models or ())
        self.since = surroundings.clock.seconds()
        self.last_start: LastStart | None = None
        self.last_failure: StartFailure | None = None
        self.last_failure_at = 0.0
        self.surroundings = surroundings
        self._predecessor = predecessor
        self._timers = Timers(surroundings.clock, self._fired)
        self._prober: Prober | None = None
        self._healthy_at: Address | None = None
        self._instance: Instance | None = None
        self._present: Instance | None = None
        self._last_gone: tuple[str | None, Exit] = (None, Exit())
        self._changes = 0
        self._launching = False
        self._found = False
        self._after_launch: list[Callable[[], None]] = []
        self._failure: StartFailure | None = None
        self._closing = False
        self._suspecting = False
        self._abandoned = False
        self._wished = False
        self._started_at = self.since
        self._launched_at = self.since
        self._watched: list[tuple[frozenset[State], Deferred[None]]] = []

    # -- requests -----------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The route, which names the backend everywhere."""
        return self.spec.route

    @property
    def state(self) -> State:
        """The state that is shown."""
        return self.lifecycle.state

    @property
    def address(self) -> Address | None:
        """Where it answers while it is ready."""
        return self.gate.address

    @property
    def authorization(self) -> bytes | None:
        """The ``Authorization`` that the backend gets instead of the client's."""
        return self.identity.authorization(self.surroundings.backend_key)

    @property
    def models(self) -> tuple[str, ...]:
        """The names that it serves, as far as they are known."""
        return self.identity.models

    @property
    def instance(self) -> Instance | None:
        """The run that is known, if any."""
        return self._instance

    def enter(self, waiter: Waiter) -> bool:
        """Ask for the backend on behalf of a request; starts it when it is absent.

        :return: True when the waiter is held now; False when it has been told already.
        """
        refusal = self.refusal
        if refusal is not None:
            waiter.refused(refusal)
            return False
        try:
            held = self.gate.enter(waiter)
        except Refusal as full:
            waiter.refused(full.about(self.name, self.state))
            return False
        if held:
            self._wanted()
        return held

    def _wanted(self) -> None:
        self.hurry()
        self.lifecycle.demand()

    def hurry(self) -> None:
        """Somebody wants to know whether it is ready: if that is not known, ask at once."""
        if self._prober is not None:
            self._prober.hurry()

    def visit(self, waiter: Waiter) -> bool:
        """Reach the backend if it is ready, without waking it or keeping it awake (monitoring).

        :return: whether the waiter was admitted.
        """
        self.hurry()
        return self.gate.visit(waiter)

    def leave(self, waiter: Waiter) -> None:
        """A held waiter gives up its place; the start goes on."""
        self.admission.leave(waiter)

    @property
    def refusal(self) -> Refusal | None:
        """Why no request is taken at present; None when they are."""
        if self._closing:
            return shutting_down().about(self.name, self.state)
        if self._failure is not None:
            return self._refusal_for(self._failure)
        return None

    def _refusal_for(self, failure: StartFailure) -> Refusal:
        left = self.retry_in
        if left is None:
            left = cool_down(max(1, self.lifecycle.failures))
        refusal = refusal_for(failure, start_timeout=self.spec.start_timeout, retry_after=left)
        return refusal.about(self.name, self.state)

    def _drained(self) -> None:
        self.lifecycle.drained()

    def suspect(self) -> None:
        """An answer was broken: ask for its health now, rather than wait for news of its end.

        vLLM answers ``/health`` with 503 for some seconds before a dead engine's container exits.
        """
        if self.state != "ready" or self._suspecting or self.address is None:
            return
        self._suspecting = True
        attempt = self.lifecycle.attempt
        answer = probe_once(
            self.surroundings.clock, self.surroundings.connect, self.address, self.spec.health
        )

        def heard(verdict: str) -> None:
            self._suspecting = False
            # A busy server may be silent for a while; only a clear answer counts.
            if verdict in ("unhealthy", "refused") and attempt == self.lifecycle.attempt:
                self.lifecycle.sick(f"a broken answer, and its health path is {verdict}")

        answer.addCallback(heard)

    # -- what the operator and the fleet want -------------------------------------------------------

    def watch(self) -> Deferred[None]:
        """Follow what the runtime knows of it; fires when the present state is known."""
        return self.runtime.watch(self.spec, self).addCallback(lambda _: self._read_facts())

    def demand(self) -> None:
        """Start it without a request (the operator, or ``prewarm``)."""
        if self._failure is None and not self._closing:
            # A request that comes while it ends waits in the queue; a wish has nothing else to remember it.
            self._wished = self.state in ("draining", "stopping")
            self._wanted()

    def stop_wanted(self, cause: str, *, force: bool = False) -> None:
        """End it when it has drained; at once when ``force``."""
        self._wished = False
        self.lifecycle.stop_wanted(cause, busy=self.gate.busy, force=force)

    def reset(self) -> None:
        """Forget failed starts, so that the next request tries again."""
        self.lifecycle.forgive()

    def refuse_all(self) -> None:
        """Take no more requests and send away those who wait: the proxy ends."""
        self._closing = True
        for waiter in self.admission.dismiss():
            waiter.refused(shutting_down().about(self.name, self.state))

    def when(self, *states: State) -> Deferred[None]:
        """Fire when it is in one of these states."""
        if self.state in states:
            return succeed(None)
        waiting: Deferred[None] = Deferred(lambda d: self._forget_watch(d))
        self._watched.append((frozenset(states), waiting))
        return waiting

    def _forget_watch(self, gone: Deferred[None]) -> None:
        self._watched = [entry for entry in self._watched if entry[1] is not gone]

    def retune(self, spec: BackendSpec) -> None:
        """Settings changed that leave the running backend as it is."""
        self.spec = spec
        self.admission.max_waiting = spec.max_waiting
        self.admission.max_in_flight = spec.max_in_flight
        if spec.models is not None:
            self.identity.models = spec.models
        self.surroundings.renamed()
        if self.state == "ready":
            self.arm("idle")
        self.gate.advance()

    def retire(self, cause: str, *, succeeded: bool) -> Deferred[None]:
        """It is configured no more: those who wait go to its successor, and it ends when it has drained.

        Fires when it has ended.
        """
        self._closing = True
        for waiter in self.admission.dismiss():
            waiter.handed_on(self.name if succeeded else None)
        self.reset()
        self.stop_wanted(cause)
        return self.when("absent", "failed").addCallback(lambda _: self.close())

    def close(self) -> None:
        """Let go of timers and connections; the backend itself is left as it is."""
        self._closing = True
        self._timers.close()
        if self._prober is not None:
            self._prober.stop()
        self.gate.close()
        watched, self._watched = self._watched, []
        for _, waiting in watched:
            waiting.cancel()

    def logs(self, tail: int) -> Deferred[str]:
        """The last lines of its output, secrets removed."""
        return self.runtime.logs(self.spec, tail).addCallback(self.redacted)

    def redacted(self, text: str) -> str:
        """``text`` without secrets."""
        return self.identity.redacted(text, self.surroundings.secrets)

    def _read_facts(self) -> Deferred[None]:
        def read(facts: Facts) -> None:
            self.identity.learn(self.spec, facts)
            self.surroundings.renamed()

        def unread(failure: Failure) -> None:
            # They are read again when the runtime is back, and when it runs.
            failure.trap(RuntimeUnavailable, StartRefused)

        return self.runtime.facts(self.spec).addCallbacks(read, unread)

    # -- Watcher: what the runtime tells ------------------------------------------------------------

    def running(self, instance: Instance) -> None:
        """See :class:`~llmproxy.runtimes.interface.Watcher`."""
        self._present = instance
        if self._closing or self._launching:
            return
        if self._instance is None:
            self._adopt()
        elif self._instance.run == instance.run:
            self._instance = instance
        else:
            # The run that was known ended unheard, and another took its place.
            self._instance = None
            self.lifecycle.died("it was restarted by someone else")

    def _adopt(self) -> None:
        if self._present is not None and self.state in ("absent", "failed"):
            self._instance = self._present
            self._started_at = self._launched_at = self.surroundings.clock.seconds()
            self._found = True
            self.lifecycle.found()

    def gone(self, run: str | None, exit: Exit) -> None:
        """See :class:`~llmproxy.runtimes.interface.Watcher`."""
        self._last_gone = (run, exit)
        if exit.oom:
            # Clients mostly hear of it as of a broken connection, before its cause is known.
            self._log.warn("{backend} ended with {exit}", backend=self.name, exit=describe_exit(exit))
        if self._present is not None and run in (None, self._present.run):
            self._present = None
        if not self.models:
            self._read_facts()
        if self._instance is not None and run in (None, self._instance.run):
            self._ended(exit)

    def _ended(self, exit: Exit) -> None:
        self._instance = None
        if self.state == "starting":
            if self._prober is not None:
                self._prober.stop()
            attempt, changes = self.lifecycle.attempt, self._changes

            def explained(log: str) -> None:
                self._start_failed(attempt, exit_failure(exit, log))
                if changes != self._changes:
                    # It was replaced or removed while its log was read: that start says nothing of the next.
                    self.lifecycle.forgive()

            self._with_log(explained)
        else:
            self.lifecycle.died(f"it ended with {describe_exit(exit)}")

    def changed(self) -> None:
        """See :class:`~llmproxy.runtimes.interface.Watcher`."""
        self._changes += 1
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
        """See :class:`~llmproxy.fleet.lifecycle.Effects`."""
        self._instance = None
        self._found = False
        self._launching = True
        self._started_at = self.surroundings.clock.seconds()
        before = self._predecessor
        if before is None:
            launched = self.runtime.ensure_started(self.spec)
        else:
            self._predecessor = None
            launched = before.addCallback(lambda _: self._launch_after())
        launched.addCallbacks(
            self._launched, self._launch_failed, callbackArgs=(attempt,), errbackArgs=(attempt,)
        )

    def _launch_after(self) -> Deferred[Instance]:
        if self._closing:
            # Its turn has come too late: what would be started now would only be ended again.
            return fail(StartRefused("It is not wanted any more."))
        return self.runtime.ensure_started(self.spec)

    def _launched(self, instance: Instance, attempt: int) -> None:
        self._instance = self._present = instance
        self._launch_over()
        if self.state != "starting" or attempt != self.lifecycle.attempt:
            return
        self._launched_at = self.surroundings.clock.seconds()
        run, exit = self._last_gone
        if run == instance.run:
            # It ended before the runtime's answer to the start was through.
            self._present = None
            self._ended(exit)
        else:
            self.lifecycle.launched(attempt)

    def _launch_failed(self, failure: Failure, attempt: int) -> None:
        self._launch_over()
        cause = failure.value
        if isinstance(cause, RuntimeUnavailable):
            told = StartFailure("unavailable", str(cause))
        elif isinstance(cause, StartRefused):
            told = StartFailure("failed", str(cause), hint=cause.hint)
        else:
            self._log.failure("starting {backend}", failure, backend=self.name)
            told = StartFailure("failed", f"The start failed inside llmproxy ({type(cause).__name__}).")
        self._start_failed(attempt, evolve(told, message=self.redacted(told.message)))

    def _launch_over(self) -> None:
        self._launching = False
        pending, self._after_launch = self._after_launch, []
        for call in pending:
            call()

    def probe(self, attempt: int) -> None:
        """See :class:`~llmproxy.fleet.lifecycle.Effects`."""
        assert self._instance is not None, "only what runs is asked for its health"

        def healthy(address: Address) -> None:
            self._healthy_at = address
            self.lifecycle.healthy(attempt)

        self._prober = Prober(
            self.surroundings.clock,
            self.surroundings.connect,
            self._instance.addresses,
            self.spec.health,
            healthy,
            knock_at=self.surroundings.knock_at,
            patient=self._found and not self.admission.waiting and not self.spec.prewarm,
        )

    def open_gate(self) -> None:
        """See :class:`~llmproxy.fleet.lifecycle.Effects`."""
        assert self._healthy_at is not None
        now = self.surroundings.clock.seconds()
        self.last_start = LastStart(
            now,
            now - self._started_at,
            {"create": self._launched_at - self._started_at, "health": now - self._launched_at},
        )
        pool = ConnectionPool(self.surroundings.clock, self.surroundings.connect(self._healthy_at))
        self.gate.open(self._healthy_at, pool)
        if not self.models:
            self._read_facts()

    def close_gate(self) -> None:
        """See :class:`~llmproxy.fleet.lifecycle.Effects`."""
        self.gate.close()
        if self._prober is not None:
            self._prober.stop()
            self._prober = None

    def cut(self, reason: str) -> None:
        """See :class:`~llmproxy.fleet.lifecycle.Effects`."""
        self.gate.cut(reason)

    def refuse(self, failure: StartFailure) -> None:
        """See :class:`~llmproxy.fleet.lifecycle.Effects`."""
        if failure.kind in ("failed", "timeout"):
            self._failure = self.last_failure = failure
            self.last_failure_at = self.surroundings.clock.seconds()
        refusal = self._refusal_for(failure)
        for waiter in self.admission.dismiss():
            waiter.refused(refusal)

    def stop(self, attempt: int) -> None:
        """See :class:`~llmproxy.fleet.lifecycle.Effects`."""

        def end() -> None:
            ended = self.runtime.stop(self.spec, self.spec.stop_grace)
            ended.addErrback(self._stop_failed)
            ended.addCallback(lambda _: self._stopped(attempt))

        if self._launching:
            # What is being started cannot be stopped yet.
            self._after_launch.append(end)
        else:
            end()

    def _stop_failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, RuntimeUnavailable):
            self._log.failure("stopping {backend}", failure, backend=self.name)

    def _stopped(self, attempt: int) -> None:
        if self._present is not None and self._instance is not None:
            # News of this end may still be on its way; another run that someone has begun counts.
            self._present = None if self._present.run == self._instance.run else self._present
        self._instance = None
        self.lifecycle.stopped(attempt)

    def arm(self, timer: Timer) -> None:
        """See :class:`~llmproxy.fleet.lifecycle.Effects`."""
        seconds: float | None
        if timer == "idle":
            seconds = self._idle_left()
        elif timer == "start":
            seconds = self.spec.start_timeout
        elif timer == "drain":
            seconds = self.surroundings.drain
        else:
            seconds = cool_down(self.lifecycle.failures)
        if seconds is None:
            self._timers.disarm(timer)
        else:
            self._timers.arm(timer, seconds)

    def disarm(self, timer: Timer) -> None:
        """See :class:`~llmproxy.fleet.lifecycle.Effects`."""
        self._timers.disarm(timer)

    def _fired(self, timer: Timer) -> None:
        if timer == "idle":
            self.lifecycle.idle_due(
                busy=self.gate.busy,
                idle_for=self.surroundings.clock.seconds() - self.gate.used_at,
                limit=self._idle_limit,
            )
        elif timer == "start" and self._prober is not None and self._prober.patient:
            # It may have become healthy since it was last asked.
            self._prober.hurry()
            self._timers.arm("start", LAST_LOOK)
        elif timer == "start":
            attempt = self.lifecycle.attempt
            self._with_log(lambda log: self.lifecycle.start_overdue(attempt, overdue_failure(log)))
        elif timer == "drain":
            self.lifecycle.drain_overdue()
        else:
            self.lifecycle.cooled()

    @property
    def _idle_limit(self) -> float:
        limit = self.spec.idle
        return min(limit, self.spec.abandon_idle) if self._abandoned and self.gate.unused else limit

    @property
    def idle_in(self) -> float | None:
        """Seconds until it is reaped if no request comes; None when it is not going to be."""
        return self._idle_left() if self.state == "ready" and not self.gate.busy else None

    def _idle_left(self) -> float | None:
        if self.spec.idle <= 0:
            return None
        limit = self._idle_limit
        if self.gate.busy:
            # The clock starts when the last answer has ended, which is later than now.
            return limit
        return max(0.0, self.gate.used_at + limit - self.surroundings.clock.seconds())

    @property
    def retry_in(self) -> float | None:
        """Seconds until it may be started again after a failed start; None when it may now."""
        return self._timers.left("cool_down")

    def moved(self, old: State, new: State, cause: str) -> None:
        """See :class:`~llmproxy.fleet.lifecycle.Effects`."""
        now = self.since = self.surroundings.clock.seconds()
        if new == "ready":
            self.gate.used_at = now
            self._abandoned = self.admission.abandoned
        if new == "starting" or (old == "failed" and new == "absent"):
            self._failure = None
        if new in ("starting", "failed"):
            self._wished = self.admission.abandoned = False
        self.surroundings.record(Transition(now, self.name, old, new, cause))
        ready, self._watched = (
            [entry for entry in self._watched if new in entry[0]],
            [entry for entry in self._watched if new not in entry[0]],
        )
        for _, waiting in ready:
            waiting.callback(None)

    def reconsider(self) -> None:
        """See :class:`~llmproxy.fleet.lifecycle.Effects`."""
        if self._closing:
            return
        if self._present is not None:
            self._adopt()
        elif self.admission.waiting or self._wished:
            self.lifecycle.demand()
