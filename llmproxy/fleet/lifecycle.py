"""The lifecycle of one backend: every transition, and nothing that does I/O.

Inputs say what happened or what is wanted; effects are named commands that :mod:`llmproxy.fleet.backend`
carries out.  The machine is an Automat ``TypeMachineBuilder`` machine; :class:`Lifecycle` in front of it
settles what a table of transitions cannot express: whether news belongs to the present attempt, and whether
a backend is busy.

::

    absent -> starting -> ready -> draining -> stopping -> absent
                 |                                 |
                 +-> failed  (refuses until its cool-down is over, then absent)

A wish that arrives while stopping is not lost: :meth:`Effects.reconsider` is called as soon as the backend
is absent again.  News of an attempt that is over is dropped, so that an old start cannot make a new one
ready.  Inputs return None, so that Automat queues those that an effect causes while it runs; effects must
not raise.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from attrs import define, frozen
from automat import TypeMachineBuilder

__all__ = ["COOL_DOWN_FIRST", "COOL_DOWN_MOST", "Effects", "Lifecycle", "StartFailure", "State", "cool_down"]

State = Literal["absent", "starting", "ready", "draining", "stopping", "failed"]
Timer = Literal["start", "idle", "drain", "cool_down"]

COOL_DOWN_FIRST = 5.0
"""Seconds of the first cool-down after a failed start: long enough that a client that retries each second
does not restart a broken model for ever, short enough for a person who has just fixed it."""
COOL_DOWN_MOST = 300.0
"""Seconds that a cool-down grows to; Kubernetes bounds its crash-loop back-off by the same five minutes."""


def cool_down(failures: int) -> float:
    """Seconds to refuse after ``failures`` failed starts in a row (at least 1): doubles from 5 s to 5 min."""
    return float(min(COOL_DOWN_MOST, COOL_DOWN_FIRST * 2 ** min(failures - 1, 10)))


@frozen
class StartFailure:
    """Why a start came to nothing.

    :ivar kind: ``failed``, ``timeout`` (health did not come), ``unavailable`` (the runtime does not answer;
        says nothing about the backend, so there is no cool-down) or ``stopped`` (somebody stopped it).
    :ivar message: the cause, for a person, secrets removed.
    :ivar log_tail: last lines of the backend's output, secrets removed.
    """

    kind: Literal["failed", "timeout", "unavailable", "stopped"]
    message: str
    hint: str | None = None
    exit_code: int | None = None
    oom: bool = False
    log_tail: str = ""


class Effects(Protocol):
    """What the machine has done to the world.  Nothing here may raise."""

    def launch(self, attempt: int) -> None:
        """Have the runtime start it; answer with ``launched`` or ``start_failed``."""

    def probe(self, attempt: int) -> None:
        """Ask its health path until it answers 200; answer with ``healthy``."""

    def open_gate(self) -> None:
        """Hand over those who wait, and from now on every request at once."""

    def close_gate(self) -> None:
        """Hand over no more requests; end probing."""

    def cut(self, reason: str) -> None:
        """Break off every request in flight: the backend has died, or must go now."""

    def refuse(self, failure: StartFailure) -> None:
        """Refuse all who wait, once."""

    def stop(self, attempt: int) -> None:
        """Have the runtime end it; answer with ``stopped``."""

    def arm(self, timer: Timer) -> None:
        """Set this timer to its configured time (again, if it runs)."""

    def disarm(self, timer: Timer) -> None:
        """Forget this timer."""

    def moved(self, old: State, new: State, cause: str) -> None:
        """Tell the world of a transition."""

    def reconsider(self) -> None:
        """It is absent now: if somebody waits or it runs after all, say so (``demand``, ``found``)."""


class _Inputs(Protocol):
    def demand(self) -> None:
        """Somebody wants it to run."""

    def found(self) -> None:
        """It runs already, started by someone else or by an earlier life of this proxy."""

    def launched(self) -> None:
        """The runtime has started it."""

    def healthy(self) -> None:
        """Its health path answered 200."""

    def start_failed(self, failure: StartFailure) -> None:
        """The start came to nothing, and nothing of it is left running."""

    def start_unavailable(self, failure: StartFailure) -> None:
        """The runtime did not answer, so that nothing is known of the start."""

    def start_broken_off(self, failure: StartFailure) -> None:
        """The start is given up, and what runs of it has to go."""

    def died(self, cause: str) -> None:
        """Its run has ended."""

    def sick(self, cause: str) -> None:
        """It runs, but its engine is dead."""

    def leave(self, cause: str) -> None:
        """It shall end now; nothing is in flight, or what is does not count."""

    def drain(self, cause: str) -> None:
        """It shall end when the last request in flight has."""

    def stopped(self) -> None:
        """The runtime has seen its end, or cannot say (then the next news of it counts)."""

    def cooled(self) -> None:
        """The cool-down is over, or was lifted."""


@define
class _Core:
    effects: Effects
    state: State = "absent"
    attempt: int = 0
    failures: int = 0

    def enter(self, new: State, cause: str) -> None:
        old, self.state = self.state, new
        self.effects.moved(old, new, cause)


def _reason(inputs: _Inputs, core: _Core, failure: StartFailure) -> StartFailure:
    """What ``stopping_failed`` carries: it cools down afterwards, for this reason."""
    return failure


_builder = TypeMachineBuilder(_Inputs, _Core)
_absent = _builder.state("absent")
_starting = _builder.state("starting")
_ready = _builder.state("ready")
_draining = _builder.state("draining")
_stopping = _builder.state("stopping")
_stopping_failed = _builder.state("stopping_failed", _reason)
_failed = _builder.state("failed")

# What changes nothing, meant as such: each state's inputs that come late, or say what is known.
_IGNORED: dict[Any, str] = {
    _absent: "launched healthy start_failed start_unavailable start_broken_off died sick leave drain stopped"
    " cooled",
    _starting: "demand found sick stopped cooled",
    _ready: "demand found launched healthy start_failed start_unavailable start_broken_off stopped cooled",
    _draining: "demand found launched healthy start_failed start_unavailable start_broken_off drain stopped"
    " cooled",
    # Its end is what stopping waits for, and the runtime tells it by ``stopped``; a demand is a waiter, and
    # waiters are counted when it is absent.
    _stopping: "demand found launched healthy start_failed start_unavailable start_broken_off died sick leave"
    " drain cooled",
    _stopping_failed: "demand found launched healthy start_failed start_unavailable start_broken_off died"
    " sick leave drain cooled",
    # Who asks a failed backend is refused before the machine is told.
    _failed: "demand launched healthy start_failed start_unavailable start_broken_off died sick leave drain"
    " stopped",
}
for _state, _names in _IGNORED.items():
    for _name in _names.split():
        _state.upon(getattr(_Inputs, _name)).loop().returns(None)


@_absent.upon(_Inputs.demand).to(_starting)
def _start(inputs: _Inputs, core: _Core) -> None:
    core.attempt += 1
    core.enter("starting", "wanted")
    core.effects.launch(core.attempt)


@_absent.upon(_Inputs.found).to(_starting)
def _adopt(inputs: _Inputs, core: _Core) -> None:
    core.attempt += 1
    core.enter("starting", "found running")
    core.effects.arm("start")
    core.effects.probe(core.attempt)


@_failed.upon(_Inputs.found).to(_starting)
def _adopt_failed(inputs: _Inputs, core: _Core) -> None:
    core.effects.disarm("cool_down")
    core.attempt += 1
    core.enter("starting", "found running")
    core.effects.arm("start")
    core.effects.probe(core.attempt)


@_starting.upon(_Inputs.launched).loop()
def _launched(inputs: _Inputs, core: _Core) -> None:
    # The deadline counts from here: creating a container may include a pull of many gigabytes.
    core.effects.arm("start")
    core.effects.probe(core.attempt)


@_starting.upon(_Inputs.healthy).to(_ready)
def _healthy(inputs: _Inputs, core: _Core) -> None:
    core.effects.disarm("start")
    core.failures = 0
    core.enter("ready", "healthy")
    core.effects.arm("idle")
    core.effects.open_gate()


def _fail(core: _Core, failure: StartFailure) -> None:
    core.failures += 1
    core.effects.close_gate()
    core.enter("failed", failure.message)
    core.effects.refuse(failure)
    core.effects.arm("cool_down")


@_starting.upon(_Inputs.start_failed).to(_failed)
def _start_failed(inputs: _Inputs, core: _Core, failure: StartFailure) -> None:
    core.effects.disarm("start")
    _fail(core, failure)


@_starting.upon(_Inputs.start_unavailable).to(_absent)
def _start_unavailable(inputs: _Inputs, core: _Core, failure: StartFailure) -> None:
    core.effects.disarm("start")
    core.effects.close_gate()
    core.enter("absent", failure.message)
    core.effects.refuse(failure)
    core.effects.reconsider()


@_starting.upon(_Inputs.start_broken_off).to(_stopping_failed)
def _start_broken_off(inputs: _Inputs, core: _Core, failure: StartFailure) -> None:
    core.effects.disarm("start")
    core.failures += 1
    core.effects.close_gate()
    core.enter("stopping", failure.message)
    core.effects.refuse(failure)
    core.effects.stop(core.attempt)


@_starting.upon(_Inputs.died).to(_absent)
def _start_ended(inputs: _Inputs, core: _Core, cause: str) -> None:
    core.effects.disarm("start")
    core.effects.close_gate()
    core.enter("absent", cause)
    core.effects.reconsider()


@_starting.upon(_Inputs.leave).to(_stopping)
def _leave_start(inputs: _Inputs, core: _Core, cause: str) -> None:
    core.effects.disarm("start")
    core.effects.close_gate()
    core.enter("stopping", cause)
    core.effects.refuse(StartFailure("stopped", f"It was stopped while it started: {cause}."))
    core.effects.stop(core.attempt)


# A start that nobody waits for has nothing in flight to drain.
_starting.upon(_Inputs.drain).to(_stopping)(_leave_start)


@_ready.upon(_Inputs.died).to(_absent)
def _died(inputs: _Inputs, core: _Core, cause: str) -> None:
    core.effects.disarm("idle")
    core.effects.close_gate()
    core.enter("absent", cause)
    core.effects.cut(cause)
    core.effects.reconsider()


@_ready.upon(_Inputs.sick).to(_stopping)
def _sick(inputs: _Inputs, core: _Core, cause: str) -> None:
    core.effects.disarm("idle")
    core.effects.close_gate()
    core.enter("stopping", cause)
    core.effects.cut(cause)
    core.effects.stop(core.attempt)


@_ready.upon(_Inputs.leave).to(_stopping)
def _leave(inputs: _Inputs, core: _Core, cause: str) -> None:
    core.effects.disarm("idle")
    core.effects.close_gate()
    core.enter("stopping", cause)
    core.effects.cut(cause)
    core.effects.stop(core.attempt)


@_ready.upon(_Inputs.drain).to(_draining)
def _drain(inputs: _Inputs, core: _Core, cause: str) -> None:
    core.effects.disarm("idle")
    core.effects.close_gate()
    core.enter("draining", cause)
    core.effects.arm("drain")


@_draining.upon(_Inputs.leave).to(_stopping)
def _drained(inputs: _Inputs, core: _Core, cause: str) -> None:
    core.effects.disarm("drain")
    core.enter("stopping", cause)
    core.effects.cut(cause)
    core.effects.stop(core.attempt)


_draining.upon(_Inputs.sick).to(_stopping)(_drained)


@_draining.upon(_Inputs.died).to(_absent)
def _died_draining(inputs: _Inputs, core: _Core, cause: str) -> None:
    core.effects.disarm("drain")
    core.enter("absent", cause)
    core.effects.cut(cause)
    core.effects.reconsider()


@_stopping.upon(_Inputs.stopped).to(_absent)
def _stopped(inputs: _Inputs, core: _Core) -> None:
    core.enter("absent", "stopped")
    core.effects.reconsider()


@_stopping_failed.upon(_Inputs.stopped).to(_failed)
def _stopped_failed(inputs: _Inputs, core: _Core, failure: StartFailure) -> None:
    core.enter("failed", failure.message)
    core.effects.arm("cool_down")


@_failed.upon(_Inputs.cooled).to(_absent)
def _cooled(inputs: _Inputs, core: _Core) -> None:
    core.effects.disarm("cool_down")
    core.enter("absent", "may be tried again")
    core.effects.reconsider()


_machine = _builder.build()


class Lifecycle:
    """The lifecycle of one backend, as its surroundings see it.

    :param effects: carries out what is decided here.
    """

    def __init__(self, effects: Effects) -> None:
        self._core = _Core(effects)
        self._inputs = _machine(self._core)

    @property
    def state(self) -> State:
        """The state that is shown; the machine itself is told what happens, and not asked."""
        return self._core.state

    @property
    def attempt(self) -> int:
        """Number of the present or last start."""
        return self._core.attempt

    @property
    def failures(self) -> int:
        """Failed starts in a row."""
        return self._core.failures

    def demand(self) -> None:
        """Somebody wants it to run."""
        self._inputs.demand()

    def found(self) -> None:
        """It runs, and not by a start of ours."""
        self._inputs.found()

    def launched(self, attempt: int) -> None:
        """The runtime has started what ``attempt`` asked for."""
        if attempt == self._core.attempt:
            self._inputs.launched()

    def healthy(self, attempt: int) -> None:
        """Its health path answered 200 to the probes of ``attempt``."""
        if attempt == self._core.attempt:
            self._inputs.healthy()

    def start_failed(self, attempt: int, failure: StartFailure) -> None:
        """``attempt`` came to nothing, and nothing of it runs any more."""
        if attempt != self._core.attempt:
            return
        if failure.kind == "unavailable":
            self._inputs.start_unavailable(failure)
        else:
            self._inputs.start_failed(failure)

    def start_overdue(self, attempt: int, failure: StartFailure) -> None:
        """``attempt`` is past its deadline; what runs of it is stopped."""
        if attempt == self._core.attempt:
            self._inputs.start_broken_off(failure)

    def died(self, cause: str) -> None:
        """The run that was known has ended by itself."""
        self._inputs.died(cause)

    def sick(self, cause: str) -> None:
        """The engine of a ready backend was found dead while its container runs."""
        self._inputs.sick(cause)

    def stop_wanted(self, cause: str, *, busy: bool, force: bool = False) -> None:
        """It shall end: at once when nothing is in flight or ``force``, else when it has drained."""
        if busy and not force:
            self._inputs.drain(cause)
        else:
            self._inputs.leave(cause)

    def drained(self) -> None:
        """The last request in flight has ended."""
        if self._core.state == "draining":
            self._inputs.leave("drained")

    def drain_overdue(self) -> None:
        """What is in flight has had its time."""
        if self._core.state == "draining":
            self._inputs.leave("drain limit reached")

    def idle_due(self, *, busy: bool, idle_for: float, limit: float) -> None:
        """The idle timer fired: reap after ``limit`` seconds without a request in flight.

        The timer is not moved with each request; when it turns out to be early it is armed again.
        """
        if self._core.state != "ready":
            return
        if busy or idle_for < limit:
            self._core.effects.arm("idle")
        else:
            self._inputs.leave(f"idle for {limit:g} s")

    def stopped(self, attempt: int) -> None:
        """The end of what ``attempt`` had started has been seen."""
        if attempt == self._core.attempt:
            self._inputs.stopped()

    def cooled(self) -> None:
        """The cool-down is over, or the operator or a change of the container lifted it."""
        self._inputs.cooled()

    def forgive(self) -> None:
        """Forget earlier failures, so that the next cool-down is short again."""
        self._core.failures = 0
        self._inputs.cooled()
