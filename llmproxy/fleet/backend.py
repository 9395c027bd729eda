"""One backend: carries out what its lifecycle decides, and tells the lifecycle what happens.

Requests enter by :meth:`Backend.enter` and are told by the :class:`Waiter` protocol; the runtime tells of
the run itself by the :class:`~llmproxy.runtimes.interface.Watcher` methods.  Everything happens in the
reactor's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.config.model import BackendSpec
from llmproxy.engines.needs import read_needs
from llmproxy.errors import Refusal, shutting_down
from llmproxy.fleet.admission import Admission
from llmproxy.fleet.control import NoAnswer
from llmproxy.fleet.failures import describe_exit, exit_failure, overdue_failure, refusal_for
from llmproxy.fleet.gate import Gate, Waiter
from llmproxy.fleet.identity import Identity
from llmproxy.fleet.launch import Launcher
from llmproxy.fleet.lifecycle import Lifecycle, StartFailure, State, Timer, cool_down
from llmproxy.fleet.outlook import Leave
from llmproxy.fleet.power import Power
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

USE_NOTED = 20.0
"""Seconds of use that are written down as one."""

IDLE_AGAIN = 1.0
"""Seconds after which a backend that is due to leave, and may not yet, is looked at again."""


class Backend:
    """One model server behind a route.

    :param predecessor: fires when an earlier backend of the same route has ended; a start waits for it.
    :ivar spec: what the operator asked for.
    :ivar needs: what it needs of the machine, as far as that is known.
    :ivar fingerprint: tells its configuration from another one behind the same route.
    :ivar wished_at: since when it shall run without a request (reactor seconds); None: it need not.
    :ivar stop_wish: why it shall end as soon as it may; None: it need not.
    :ivar sleep_wish: why it shall fall asleep as soon as it may.
    :ivar leaves_as: how it leaves when it has drained: ``stop``, or a level of sleep.
    :ivar level: of the sleep that it is in or falls into.
    :ivar swapped_in: somebody else had to leave for it.
    :ivar unfit: why it could not be started the last time it was wanted, by what it needs.
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
        self.gate = Gate(surroundings.clock, self.admission, self._drained, self.suspect)
        self.lifecycle = Lifecycle(self)
        self.identity = Identity(spec.models or ())
        self.since = surroundings.clock.seconds()
        self.last_start: LastStart | None = None
        self.last_failure: StartFailure | None = None
        self.last_failure_at = 0.0
        self.surroundings = surroundings
        self.needs = read_needs(spec, Facts())
        self.fingerprint = ""
        self.wished_at: float | None = None
        self.stop_wish: str | None = None
        self.sleep_wish: str | None = None
        self.leaves_as = ""
        self.level = 1
        self.swapped_in = False
        self.unfit: Refusal | None = None
        self.awaited = False
        self._launcher = Launcher(surroundings.clock, runtime, predecessor)
        self._timers = Timers(surroundings.clock, self._fired)
        self._prober: Prober | None = None
        self._healthy_at: Address | None = None
        self._instance: Instance | None = None
        self._present: Instance | None = None
        self._last_gone: tuple[str | None, Exit] = (None, Exit())
        self._changes = 0
        self._found = False
        self._failure: StartFailure | None = None
        self._closing = False
        self._suspecting = False
        self._abandoned = False
        self._leave_cause = ""
        self._powering: Deferred[None] | None = None
        self._powered_at = self.since
        self._used_since: float | None = None
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
        if self.state in ("absent", "sleeping"):
            self.surroundings.scheduler.wanted(self)

    def granted(self) -> None:
        """There is room for it: start it, or wake it."""
        self.unfit = None
        self.lifecycle.demand()

    def refuse_waiting(self, refusal: Refusal) -> None:
        """It is not started for those who wait; others may come."""
        self.unfit = refusal.about(self.name, self.state)
        self.wished_at = None
        for waiter in self.admission.dismiss():
            waiter.refused(self.unfit)

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
        self._note_use(self.surroundings.clock.seconds())
        self.surroundings.scheduler.idle(self)

    def _note_use(self, now: float, *, over: bool = False) -> None:
        """Write down that it was used, now and then."""
        begun = self._used_since
        if begun is None:
            self._used_since = now
        elif over or now - begun >= USE_NOTED:
            self.surroundings.history.used(self.name, begun, self.gate.used_at if over else now)
            self._used_since = None if over else now

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
        if self._failure is None and not self._closing and self.state not in ("ready", "starting", "waking"):
            # A request that comes while it ends waits in the queue; a wish has nothing else to remember it.
            self.wished_at = self.surroundings.clock.seconds()
        if self._failure is None and not self._closing:
            self._wanted()

    def stop_wanted(self, cause: str, *, force: bool = False) -> None:
        """End it when it has drained, and nobody starts beside it; at once when ``force``."""
        self.wished_at = None
        if force or self.state not in ("ready", "draining", "sleeping"):
            # What has not served yet is in nobody's way but its own.
            self.lifecycle.leave(cause)
        else:
            self.stop_wish = cause
            self.surroundings.scheduler.look()

    def sleep_wanted(self, cause: str) -> None:
        """Put it to sleep when it has drained, and nobody starts beside it.

        :raises ValueError: it cannot sleep.
        """
        if not self.needs.sleep:
            raise ValueError(self.name)
        self.wished_at = None
        if self.state == "ready" and self.gate.busy:
            self._leave_cause, self.leaves_as = cause, str(min(self.needs.sleep))
            self.lifecycle.drain(cause)
        elif self.state == "ready":
            self.sleep_wish = cause
            self.surroundings.scheduler.look()

    def carry_out(self, leave: Leave) -> None:
        """The scheduler has decided that it leaves."""
        if leave.why == "drained":
            cause = self._leave_cause
        elif leave.why == "idle":
            limit = self.spec.sleep_idle if self.state == "sleeping" else self._idle_limit
            cause = self.sleep_wish or f"idle for {limit:g} s"
        else:
            cause = self.stop_wish or leave.why
        self._leave_cause, self.leaves_as = cause, leave.how
        if leave.drain:
            self.lifecycle.drain(cause)
        elif leave.how == "stop":
            self.lifecycle.leave(cause)
        else:
            self.level = int(leave.how)
            self.lifecycle.doze(self.level, cause)

    @property
    def due(self) -> bool:
        """It has been idle for so long that it shall leave."""
        now = self.surroundings.clock.seconds()
        if self.state == "sleeping":
            return 0 < self.spec.sleep_idle <= now - self.since
        left = self._idle_left()
        idle = left is not None and left <= 0
        return self.state == "ready" and not self.gate.busy and (idle or self.sleep_wish is not None)

    def reset(self) -> None:
        """Forget failed starts, so that the next request tries again."""
        self.lifecycle.forgive()

    def refuse_all(self) -> None:
        """Take no more requests and send away those who wait: the proxy ends."""
        self._closing = True
        self._launcher.give_up()
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
        self._read_facts()
        if self.state == "ready":
            self.arm("idle")
        elif self.state == "sleeping":
            self.arm("sleep_idle")
        self.gate.advance()

    def retire(self, cause: str, *, succeeded: bool) -> Deferred[None]:
        """It is configured no more: those who wait go to its successor, and it ends when it has drained.

        Fires when it has ended.
        """
        self._closing = True
        self._launcher.give_up()
        for waiter in self.admission.dismiss():
            waiter.handed_on(self.name if succeeded else None)
        self.reset()
        self.stop_wanted(cause)
        return self.when("absent", "failed").addCallback(lambda _: self.close())

    def close(self) -> None:
        """Let go of timers and connections; the backend itself is left as it is."""
        self._closing = True
        self._launcher.give_up()
        self._end_powering()
        self._note_use(self.surroundings.clock.seconds(), over=True)
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
            self.needs, self.fingerprint = read_needs(self.spec, facts), facts.fingerprint
            self.surroundings.renamed()
            self.surroundings.scheduler.moved(self)

        def unread(failure: Failure) -> None:
            # They are read again when the runtime is back, and when it runs.
            failure.trap(RuntimeUnavailable, StartRefused)

        return self.runtime.facts(self.spec).addCallbacks(read, unread)

    # -- Watcher: what the runtime tells ------------------------------------------------------------

    def running(self, instance: Instance) -> None:
        """See :class:`~llmproxy.runtimes.interface.Watcher`."""
        self._present = instance
        if self._closing or self._launcher.launching:
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
            self._launcher.adopted()
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
        """See :class:`~llmproxy.fleet.effects.Effects`."""
        self._instance = None
        self._found = False
        self._launcher.start(
            self.spec,
            lambda instance: self._launched(instance, attempt),
            lambda failure: self._launch_failed(failure, attempt),
        )

    def _launched(self, instance: Instance, attempt: int) -> None:
        self._instance = self._present = instance
        if self.state != "starting" or attempt != self.lifecycle.attempt:
            return
        run, exit = self._last_gone
        if run == instance.run:
            # It ended before the runtime's answer to the start was through.
            self._present = None
            self._ended(exit)
        else:
            self.lifecycle.launched(attempt)

    def _launch_failed(self, failure: Failure, attempt: int) -> None:
        cause = failure.value
        if isinstance(cause, RuntimeUnavailable):
            told = StartFailure("unavailable", str(cause))
        elif isinstance(cause, StartRefused):
            told = StartFailure("failed", str(cause), hint=cause.hint)
        else:
            self._log.failure("starting {backend}", failure, backend=self.name)
            told = StartFailure("failed", f"The start failed inside llmproxy ({type(cause).__name__}).")
        self._start_failed(attempt, evolve(told, message=self.redacted(told.message)))

    def probe(self, attempt: int) -> None:
        """See :class:`~llmproxy.fleet.effects.Effects`."""
        assert self._instance is not None, "only what runs is asked for its health"

        def healthy(address: Address) -> None:
            self._healthy_at = address
            if self._found and self.needs.sleep:
                # Asleep it is as healthy as awake, and requests would hang.
                self._powered(self._look_whether_asleep(self._power(), attempt))
            else:
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
        """See :class:`~llmproxy.fleet.effects.Effects`."""
        assert self._healthy_at is not None
        pool = ConnectionPool(self.surroundings.clock, self.surroundings.connect(self._healthy_at))
        self.gate.open(self._healthy_at, pool)
        if not self.models:
            self._read_facts()

    def _note_start(self, now: float) -> None:
        launcher = self._launcher
        create, health = launcher.answered_at - launcher.asked_at, now - launcher.answered_at
        self.last_start = LastStart(now, create + health, {"create": create, "health": health})
        if not self._found:
            self.surroundings.learned.started(
                self.name, self.fingerprint, self.last_start.phases, self.last_start.seconds
            )
            self.surroundings.history.started(self.name, now)

    def close_gate(self) -> None:
        """See :class:`~llmproxy.fleet.effects.Effects`."""
        self.gate.close()
        if self._prober is not None:
            self._prober.stop()
            self._prober = None

    def cut(self, reason: str) -> None:
        """See :class:`~llmproxy.fleet.effects.Effects`."""
        self.gate.cut(reason)

    def refuse(self, failure: StartFailure) -> None:
        """See :class:`~llmproxy.fleet.effects.Effects`."""
        if failure.kind in ("failed", "timeout"):
            self._failure = self.last_failure = failure
            self.last_failure_at = self.surroundings.clock.seconds()
        refusal = self._refusal_for(failure)
        for waiter in self.admission.dismiss():
            waiter.refused(refusal)

    def stop(self, attempt: int) -> None:
        """See :class:`~llmproxy.fleet.effects.Effects`."""
        self._end_powering()
        self._launcher.stop(self.spec, lambda: self._stopped(attempt))

    def _stopped(self, attempt: int) -> None:
        if self._launcher.stop_seconds is not None:
            self.surroundings.learned.stopped(self.name, self.fingerprint, self._launcher.stop_seconds)
        if self._present is not None and self._instance is not None:
            # News of this end may still be on its way; another run that someone has begun counts.
            self._present = None if self._present.run == self._instance.run else self._present
        self._instance = None
        self.lifecycle.stopped(attempt)

    # -- sleeping and waking ------------------------------------------------------------------------

    def sleep(self, attempt: int, level: int) -> None:
        """See :class:`~llmproxy.fleet.effects.Effects`."""
        self._powered(self._fall_asleep(self._power(), attempt, level))

    def wake(self, attempt: int) -> None:
        """See :class:`~llmproxy.fleet.effects.Effects`."""
        self._powered(self._wake_up(self._power(), attempt))

    def _power(self) -> Power:
        assert self._healthy_at is not None, "it has been healthy"
        around = self.surroundings
        return Power(around.clock, around.connect, self._healthy_at, self.authorization, self.spec.health)

    def _powered(self, doing: Coroutine[Any, Any, None]) -> None:
        self._powered_at = self.surroundings.clock.seconds()
        powering = self._powering = Deferred.fromCoroutine(doing)

        def failed(failure: Failure) -> None:
            # It is cancelled when the backend ends; anything else is told where it happens.
            if self._powering is powering:
                self._log.failure("having {backend} sleep or wake", failure, backend=self.name)

        powering.addErrback(failed)

    def _end_powering(self) -> None:
        powering, self._powering = self._powering, None
        if powering is not None:
            powering.cancel()

    async def _fall_asleep(self, power: Power, attempt: int, level: int) -> None:
        freed = self.surroundings.scheduler.memory_came_back(self)
        try:
            await power.sleep(level, freed)
        except NoAnswer as cause:
            self._log.warn("{backend} does not sleep: {cause}", backend=self.name, cause=str(cause))
            self.lifecycle.sleep_failed(attempt, f"it did not fall asleep: {cause}")
            return
        seconds = self.surroundings.clock.seconds() - self._powered_at
        self.surroundings.learned.slept(self.name, self.fingerprint, seconds)
        self.lifecycle.slept(attempt)

    async def _wake_up(self, power: Power, attempt: int) -> None:
        try:
            await power.wake(self.level)
        except NoAnswer as cause:
            self._log.warn("{backend} does not wake: {cause}", backend=self.name, cause=str(cause))
            self.lifecycle.wake_failed(attempt, f"it did not wake: {cause}")
            return
        now = self.surroundings.clock.seconds()
        self.surroundings.learned.woke(self.name, self.fingerprint, self.level, now - self._powered_at)
        self.surroundings.history.woken(self.name, now)
        self.lifecycle.woken(attempt)

    async def _look_whether_asleep(self, power: Power, attempt: int) -> None:
        if await power.asleep():
            # Nobody says from which level; to load the weights again is right for both.
            self.level = max(self.needs.sleep)
            self.lifecycle.found_asleep(attempt)
        else:
            self.lifecycle.healthy(attempt)

    # -- timers -------------------------------------------------------------------------------------

    def arm(self, timer: Timer) -> None:
        """See :class:`~llmproxy.fleet.effects.Effects`."""
        seconds: float | None
        if timer == "idle":
            seconds = self._idle_left()
        elif timer == "start":
            seconds = self.spec.start_timeout
        elif timer == "drain":
            around = self.surroundings
            seconds = around.drain if self.stop_wish is not None else around.drain_limit
        elif timer == "sleep_idle":
            seconds = self.spec.sleep_idle or None
        else:
            seconds = cool_down(self.lifecycle.failures)
        if seconds is None:
            self._timers.disarm(timer)
        else:
            self._timers.arm(timer, seconds)

    def disarm(self, timer: Timer) -> None:
        """See :class:`~llmproxy.fleet.effects.Effects`."""
        self._timers.disarm(timer)

    def _fired(self, timer: Timer) -> None:
        if timer == "idle":
            # It is not moved with each request; when it turns out to be early it is armed again.
            if self.due:
                self.surroundings.scheduler.look()
            left = self._idle_left()
            if self.state == "ready" and left is not None:
                self._timers.arm(timer, left or IDLE_AGAIN)
        elif timer == "sleep_idle":
            self.surroundings.scheduler.look()
            if self.state == "sleeping":
                self._timers.arm(timer, IDLE_AGAIN)
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
        """See :class:`~llmproxy.fleet.effects.Effects`."""
        now = self.since = self.surroundings.clock.seconds()
        if new == "ready":
            self.gate.used_at = now
            self.gate.unused = True
            self.awaited = self.admission.waiting > 0
            self._abandoned = self.admission.abandoned
            self.leaves_as = ""
            if old == "starting":
                self._note_start(now)
        elif old == "ready":
            self._note_use(now, over=True)
            self.swapped_in, self.sleep_wish = False, None
        if new in ("starting", "waking") or (old == "failed" and new == "absent"):
            self._failure = None
        if new in ("starting", "waking", "failed"):
            self.wished_at = None
            self.admission.abandoned = False
        if new not in ("ready", "draining", "sleeping"):
            self.stop_wish = None
        self.surroundings.record(Transition(now, self.name, old, new, cause))
        ready, self._watched = (
            [entry for entry in self._watched if new in entry[0]],
            [entry for entry in self._watched if new not in entry[0]],
        )
        for _, waiting in ready:
            waiting.callback(None)
        self.surroundings.scheduler.moved(self)

    def reconsider(self) -> None:
        """See :class:`~llmproxy.fleet.effects.Effects`."""
        if self._closing:
            return
        if self._present is not None and self.state == "absent":
            self._adopt()
        elif self.admission.waiting or self.wished_at is not None:
            self.surroundings.scheduler.wanted(self)
