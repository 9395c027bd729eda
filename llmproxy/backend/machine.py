r"""The states of one backend: every transition, and nothing that does I/O.

Inputs say what happened or what is wanted; effects are commands that :mod:`llmproxy.backend.backend` carries
out; :mod:`llmproxy.backend.effects` has both.  It is an Automat ``TypeMachineBuilder`` machine;
:mod:`llmproxy.backend.lifecycle` in front of it settles what a table of transitions cannot express: whether
news belongs to the present attempt.

::

    absent -> starting -> ready -> draining -> stopping -> absent
                 |          ^  \        |          ^ |
                 |          |   v       v          | +-> failed  (refuses until its cool-down is over)
                 |       waking  falling_asleep ---+
                 |          ^       |              |
                 +--found---+-- sleeping ----------+

A wish that arrives while stopping is not lost: :meth:`Effects.reconsider` is called as soon as the backend
is absent again.  News of an attempt that is over is dropped, so that an old start cannot make a new one
ready.  Inputs return None, so that Automat queues those that an effect causes while it runs; effects must
not raise.
"""

from __future__ import annotations

from typing import Any

from attrs import define
from automat import TypeMachineBuilder

from llmproxy.backend.effects import Effects, Inputs, StartFailure, State

__all__ = ["Core", "machine"]


@define
class Core:
    """What all states have: the effects, and what is shown."""

    effects: Effects
    state: State = "absent"
    attempt: int = 0
    failures: int = 0

    def enter(self, new: State, cause: str) -> None:
        """Show the new state."""
        old, self.state = self.state, new
        self.effects.moved(old, new, cause)


def _reason(inputs: Inputs, core: Core, failure: StartFailure) -> StartFailure:
    """What ``stopping_failed`` carries: it cools down afterwards, for this reason."""
    return failure


_builder = TypeMachineBuilder(Inputs, Core)
_absent = _builder.state("absent")
_starting = _builder.state("starting")
_ready = _builder.state("ready")
_draining = _builder.state("draining")
_stopping = _builder.state("stopping")
_stopping_failed = _builder.state("stopping_failed", _reason)
_failed = _builder.state("failed")
_falling_asleep = _builder.state("falling_asleep")
_sleeping = _builder.state("sleeping")
_waking = _builder.state("waking")

_NEWS = "launched healthy start_failed start_unavailable start_broken_off"
_DOZING = "slept sleep_failed found_asleep woken wake_failed"

# What changes nothing, meant as such: each state's inputs that come late, or say what is known.
_IGNORED: dict[Any, str] = {
    _absent: f"{_NEWS} died sick leave drain stopped cooled doze {_DOZING}",
    _starting: "demand found sick stopped cooled doze slept sleep_failed woken wake_failed",
    _ready: f"demand found {_NEWS} stopped cooled {_DOZING}",
    _draining: f"demand found {_NEWS} drain stopped cooled {_DOZING}",
    # Its end is what stopping waits for, and the runtime tells it by ``stopped``; a demand is a waiter, and
    # waiters are counted when it is absent.
    _stopping: f"demand found {_NEWS} died sick leave drain cooled doze {_DOZING}",
    _stopping_failed: f"demand found {_NEWS} died sick leave drain cooled doze {_DOZING}",
    # Who asks a failed backend is refused before the machine is told.
    _failed: f"demand {_NEWS} died sick leave drain stopped doze {_DOZING}",
    # Waiters are counted when it is asleep.  That it is sick, the request to sleep finds out.
    _falling_asleep: f"demand found {_NEWS} sick drain stopped cooled doze found_asleep woken wake_failed",
    _sleeping: f"found {_NEWS} sick stopped cooled doze {_DOZING}",
    _waking: f"demand found {_NEWS} sick stopped cooled doze slept sleep_failed found_asleep",
}
for _state, _names in _IGNORED.items():
    for _name in _names.split():
        _state.upon(getattr(Inputs, _name)).loop().returns(None)


@_absent.upon(Inputs.demand).to(_starting)
def _start(inputs: Inputs, core: Core) -> None:
    core.attempt += 1
    core.enter("starting", "wanted")
    core.effects.launch(core.attempt)


@_absent.upon(Inputs.found).to(_starting)
def _adopt(inputs: Inputs, core: Core) -> None:
    core.attempt += 1
    core.enter("starting", "found running")
    core.effects.arm("start")
    core.effects.probe(core.attempt)


@_failed.upon(Inputs.found).to(_starting)
def _adopt_failed(inputs: Inputs, core: Core) -> None:
    core.effects.disarm("cool_down")
    core.attempt += 1
    core.enter("starting", "found running")
    core.effects.arm("start")
    core.effects.probe(core.attempt)


@_starting.upon(Inputs.launched).loop()
def _launched(inputs: Inputs, core: Core) -> None:
    # The deadline counts from here: creating a container may include a pull of many gigabytes.
    core.effects.arm("start")
    core.effects.probe(core.attempt)


@_starting.upon(Inputs.healthy).to(_ready)
def _healthy(inputs: Inputs, core: Core) -> None:
    core.effects.disarm("start")
    core.failures = 0
    core.enter("ready", "healthy")
    core.effects.arm("idle")
    core.effects.open_gate()


def _fail(core: Core, failure: StartFailure) -> None:
    core.failures += 1
    core.effects.close_gate()
    core.enter("failed", failure.message)
    # Before anybody is told how long it takes: who comes back just then must not be too early.
    core.effects.arm("cool_down")
    core.effects.refuse(failure)


@_starting.upon(Inputs.start_failed).to(_failed)
def _start_failed(inputs: Inputs, core: Core, failure: StartFailure) -> None:
    core.effects.disarm("start")
    _fail(core, failure)


@_starting.upon(Inputs.start_unavailable).to(_absent)
def _start_unavailable(inputs: Inputs, core: Core, failure: StartFailure) -> None:
    core.effects.disarm("start")
    core.effects.close_gate()
    core.enter("absent", failure.message)
    core.effects.refuse(failure)
    core.effects.reconsider()


@_starting.upon(Inputs.start_broken_off).to(_stopping_failed)
def _start_broken_off(inputs: Inputs, core: Core, failure: StartFailure) -> None:
    core.effects.disarm("start")
    core.failures += 1
    core.effects.close_gate()
    core.enter("stopping", failure.message)
    core.effects.refuse(failure)
    core.effects.stop(core.attempt)


@_starting.upon(Inputs.died).to(_absent)
def _start_ended(inputs: Inputs, core: Core, cause: str) -> None:
    core.effects.disarm("start")
    core.effects.close_gate()
    core.enter("absent", cause)
    core.effects.reconsider()


@_starting.upon(Inputs.leave).to(_stopping)
def _leave_start(inputs: Inputs, core: Core, cause: str) -> None:
    core.effects.disarm("start")
    core.effects.close_gate()
    core.enter("stopping", cause)
    core.effects.refuse(StartFailure("stopped", f"It was stopped while it started: {cause}."))
    core.effects.stop(core.attempt)


# A start that nobody waits for has nothing in flight to drain.
_starting.upon(Inputs.drain).to(_stopping)(_leave_start)


@_ready.upon(Inputs.died).to(_absent)
def _died(inputs: Inputs, core: Core, cause: str) -> None:
    core.effects.disarm("idle")
    core.effects.close_gate()
    core.enter("absent", cause)
    core.effects.cut(cause)
    core.effects.reconsider()


@_ready.upon(Inputs.sick).to(_stopping)
def _sick(inputs: Inputs, core: Core, cause: str) -> None:
    core.effects.disarm("idle")
    core.effects.close_gate()
    core.enter("stopping", cause)
    core.effects.cut(cause)
    core.effects.stop(core.attempt)


@_ready.upon(Inputs.leave).to(_stopping)
def _leave(inputs: Inputs, core: Core, cause: str) -> None:
    core.effects.disarm("idle")
    core.effects.close_gate()
    core.enter("stopping", cause)
    core.effects.cut(cause)
    core.effects.stop(core.attempt)


@_ready.upon(Inputs.drain).to(_draining)
def _drain(inputs: Inputs, core: Core, cause: str) -> None:
    core.effects.disarm("idle")
    core.effects.close_gate()
    core.enter("draining", cause)
    core.effects.arm("drain")


def _fall_asleep(core: Core, level: int, cause: str) -> None:
    core.enter("falling_asleep", cause)
    core.effects.sleep(core.attempt, level)


@_ready.upon(Inputs.doze).to(_falling_asleep)
def _doze(inputs: Inputs, core: Core, level: int, cause: str) -> None:
    core.effects.disarm("idle")
    core.effects.close_gate()
    _fall_asleep(core, level, cause)


@_draining.upon(Inputs.doze).to(_falling_asleep)
def _doze_drained(inputs: Inputs, core: Core, level: int, cause: str) -> None:
    core.effects.disarm("drain")
    _fall_asleep(core, level, cause)


def _rest(core: Core, cause: str) -> None:
    core.enter("sleeping", cause)
    core.effects.arm("sleep_idle")
    core.effects.reconsider()


@_falling_asleep.upon(Inputs.slept).to(_sleeping)
def _slept(inputs: Inputs, core: Core) -> None:
    _rest(core, "asleep")


@_starting.upon(Inputs.found_asleep).to(_sleeping)
def _found_asleep(inputs: Inputs, core: Core) -> None:
    core.effects.disarm("start")
    core.effects.close_gate()
    _rest(core, "found asleep")


@_sleeping.upon(Inputs.demand).to(_waking)
def _wake(inputs: Inputs, core: Core) -> None:
    core.effects.disarm("sleep_idle")
    core.enter("waking", "wanted")
    core.effects.wake(core.attempt)


@_waking.upon(Inputs.woken).to(_ready)
def _woken(inputs: Inputs, core: Core) -> None:
    core.enter("ready", "awake")
    core.effects.arm("idle")
    core.effects.open_gate()


def _give_up(core: Core, cause: str) -> None:
    """Stop it; who waits goes on waiting, and has it started afresh when it is absent."""
    core.enter("stopping", cause)
    core.effects.stop(core.attempt)


@_falling_asleep.upon(Inputs.sleep_failed).to(_stopping)
def _sleep_failed(inputs: Inputs, core: Core, cause: str) -> None:
    _give_up(core, cause)


_falling_asleep.upon(Inputs.leave).to(_stopping)(_sleep_failed)


@_waking.upon(Inputs.wake_failed).to(_stopping)
def _wake_failed(inputs: Inputs, core: Core, cause: str) -> None:
    _give_up(core, cause)


@_waking.upon(Inputs.leave).to(_stopping)
def _leave_waking(inputs: Inputs, core: Core, cause: str) -> None:
    core.enter("stopping", cause)
    core.effects.refuse(StartFailure("stopped", f"It was stopped while it woke: {cause}."))
    core.effects.stop(core.attempt)


_waking.upon(Inputs.drain).to(_stopping)(_leave_waking)


@_sleeping.upon(Inputs.leave).to(_stopping)
def _leave_sleeping(inputs: Inputs, core: Core, cause: str) -> None:
    core.effects.disarm("sleep_idle")
    _give_up(core, cause)


_sleeping.upon(Inputs.drain).to(_stopping)(_leave_sleeping)


@_sleeping.upon(Inputs.died).to(_absent)
def _died_sleeping(inputs: Inputs, core: Core, cause: str) -> None:
    core.effects.disarm("sleep_idle")
    core.enter("absent", cause)
    core.effects.reconsider()


@_waking.upon(Inputs.died).to(_absent)
def _died_waking(inputs: Inputs, core: Core, cause: str) -> None:
    core.enter("absent", cause)
    core.effects.reconsider()


_falling_asleep.upon(Inputs.died).to(_absent)(_died_waking)


@_draining.upon(Inputs.leave).to(_stopping)
def _drained(inputs: Inputs, core: Core, cause: str) -> None:
    core.effects.disarm("drain")
    core.enter("stopping", cause)
    core.effects.cut(cause)
    core.effects.stop(core.attempt)


_draining.upon(Inputs.sick).to(_stopping)(_drained)


@_draining.upon(Inputs.died).to(_absent)
def _died_draining(inputs: Inputs, core: Core, cause: str) -> None:
    core.effects.disarm("drain")
    core.enter("absent", cause)
    core.effects.cut(cause)
    core.effects.reconsider()


@_stopping.upon(Inputs.stopped).to(_absent)
def _stopped(inputs: Inputs, core: Core) -> None:
    core.enter("absent", "stopped")
    core.effects.reconsider()


@_stopping_failed.upon(Inputs.stopped).to(_failed)
def _stopped_failed(inputs: Inputs, core: Core, failure: StartFailure) -> None:
    core.enter("failed", failure.message)
    core.effects.arm("cool_down")


@_failed.upon(Inputs.cooled).to(_absent)
def _cooled(inputs: Inputs, core: Core) -> None:
    core.effects.disarm("cool_down")
    core.enter("absent", "may be tried again")
    core.effects.reconsider()


machine = _builder.build()
"""Makes the inputs of a new machine, given its :class:`Core`."""
