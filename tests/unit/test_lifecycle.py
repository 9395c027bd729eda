"""The lifecycle machine alone: inputs in, effects out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.backend.lifecycle import COOL_DOWN_FIRST, COOL_DOWN_MOST, Lifecycle, StartFailure, cool_down

FAILED = StartFailure("failed", "it broke", exit_code=1)
TIMEOUT = StartFailure("timeout", "too slow")
AWAY = StartFailure("unavailable", "no engine")

STATES = (
    "absent",
    "starting",
    "ready",
    "draining",
    "stopping",
    "failed",
    "falling_asleep",
    "sleeping",
    "waking",
)


class Recorder:
    """Writes down every effect."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.timers: set[str] = set()
        self.gate = False
        self.trail: list[str] = ["absent"]

    def launch(self, attempt: int) -> None:
        self.done.append(("launch", attempt))

    def probe(self, attempt: int) -> None:
        self.done.append(("probe", attempt))

    def open_gate(self) -> None:
        self.gate = True
        self.done.append(("open_gate",))

    def close_gate(self) -> None:
        self.gate = False
        self.done.append(("close_gate",))

    def cut(self, reason: str) -> None:
        self.done.append(("cut",))

    def refuse(self, failure: StartFailure) -> None:
        self.done.append(("refuse", failure.kind))

    def stop(self, attempt: int) -> None:
        self.done.append(("stop", attempt))

    def sleep(self, attempt: int, level: int) -> None:
        self.done.append(("sleep", attempt, level))

    def wake(self, attempt: int) -> None:
        self.done.append(("wake", attempt))

    def arm(self, timer: str) -> None:
        self.timers.add(timer)

    def disarm(self, timer: str) -> None:
        self.timers.discard(timer)

    def moved(self, old: str, new: str, cause: str) -> None:
        assert old == self.trail[-1]
        self.trail.append(new)

    def reconsider(self) -> None:
        self.done.append(("reconsider",))


def in_state(state: str, effects: Recorder | None = None) -> tuple[Lifecycle, Recorder]:
    """A lifecycle that was brought to ``state`` by its inputs."""
    effects = Recorder() if effects is None else effects
    lifecycle = Lifecycle(effects)
    if state == "absent":
        return lifecycle, effects
    lifecycle.demand()
    if state == "starting":
        return lifecycle, effects
    lifecycle.launched(1)
    if state == "failed":
        lifecycle.start_failed(1, FAILED)
        return lifecycle, effects
    lifecycle.healthy(1)
    if state == "draining":
        lifecycle.drain("test")
    elif state == "stopping":
        lifecycle.leave("test")
    elif state in ("falling_asleep", "sleeping", "waking"):
        lifecycle.doze(1, "test")
        if state != "falling_asleep":
            lifecycle.slept(1)
        if state == "waking":
            lifecycle.demand()
    assert lifecycle.state == state
    return lifecycle, effects


INPUTS = {
    "demand": lambda m: m.demand(),
    "found": lambda m: m.found(),
    "launched": lambda m: m.launched(m.attempt),
    "healthy": lambda m: m.healthy(m.attempt),
    "start_failed": lambda m: m.start_failed(m.attempt, FAILED),
    "unavailable": lambda m: m.start_failed(m.attempt, AWAY),
    "overdue": lambda m: m.start_overdue(m.attempt, TIMEOUT),
    "died": lambda m: m.died("gone"),
    "sick": lambda m: m.sick("dead engine"),
    "leave": lambda m: m.leave("operator"),
    "drain": lambda m: m.drain("operator"),
    "doze": lambda m: m.doze(1, "idle"),
    "slept": lambda m: m.slept(m.attempt),
    "sleep failed": lambda m: m.sleep_failed(m.attempt, "500"),
    "found asleep": lambda m: m.found_asleep(m.attempt),
    "woken": lambda m: m.woken(m.attempt),
    "wake failed": lambda m: m.wake_failed(m.attempt, "500"),
    "drain overdue": lambda m: m.drain_overdue(),
    "stopped": lambda m: m.stopped(m.attempt),
    "cooled": lambda m: m.cooled(),
    "forgive": lambda m: m.forgive(),
}

# Every cell that is no mere staying; whatever is not here stays where it is, and is meant to.
MOVES = {
    ("absent", "demand"): "starting",
    ("absent", "found"): "starting",
    ("starting", "healthy"): "ready",
    ("starting", "start_failed"): "failed",
    ("starting", "unavailable"): "absent",
    ("starting", "overdue"): "stopping",
    ("starting", "died"): "absent",
    ("starting", "leave"): "stopping",
    ("starting", "drain"): "stopping",
    ("starting", "found asleep"): "sleeping",
    ("ready", "died"): "absent",
    ("ready", "sick"): "stopping",
    ("ready", "leave"): "stopping",
    ("ready", "drain"): "draining",
    ("ready", "doze"): "falling_asleep",
    ("draining", "died"): "absent",
    ("draining", "sick"): "stopping",
    ("draining", "leave"): "stopping",
    ("draining", "doze"): "falling_asleep",
    ("falling_asleep", "slept"): "sleeping",
    ("falling_asleep", "sleep failed"): "stopping",
    ("falling_asleep", "leave"): "stopping",
    ("falling_asleep", "died"): "absent",
    ("sleeping", "demand"): "waking",
    ("sleeping", "leave"): "stopping",
    ("sleeping", "drain"): "stopping",
    ("sleeping", "died"): "absent",
    ("waking", "woken"): "ready",
    ("waking", "wake failed"): "stopping",
    ("waking", "leave"): "stopping",
    ("waking", "drain"): "stopping",
    ("waking", "died"): "absent",
    ("stopping", "stopped"): "absent",
    ("failed", "found"): "starting",
    ("failed", "cooled"): "absent",
    ("failed", "forgive"): "absent",
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", sorted(INPUTS))
def test_every_input_in_every_state(state: str, name: str) -> None:
    """Each input moves each state where the table says, and everywhere else it changes nothing."""
    lifecycle, _ = in_state(state)
    INPUTS[name](lifecycle)
    assert lifecycle.state == MOVES.get((state, name), state)


# What each of them does, in its order; whatever is not here does nothing.
EFFECTS = {
    ("absent", "demand"): "moved:starting launch:1",
    ("absent", "found"): "moved:starting arm:start probe:1",
    ("starting", "healthy"): "disarm:start moved:ready arm:idle open_gate",
    ("starting", "start_failed"): "disarm:start close_gate moved:failed arm:cool_down refuse:failed",
    ("starting", "unavailable"): "disarm:start close_gate moved:absent refuse:unavailable reconsider",
    ("starting", "overdue"): "disarm:start close_gate moved:stopping refuse:timeout stop:1",
    ("starting", "died"): "disarm:start close_gate moved:absent reconsider",
    ("starting", "leave"): "disarm:start close_gate moved:stopping refuse:stopped stop:1",
    ("starting", "drain"): "disarm:start close_gate moved:stopping refuse:stopped stop:1",
    ("starting", "found asleep"): "disarm:start close_gate moved:sleeping arm:sleep_idle reconsider",
    ("ready", "died"): "disarm:idle close_gate moved:absent cut reconsider",
    ("ready", "sick"): "disarm:idle close_gate moved:stopping cut stop:1",
    ("ready", "leave"): "disarm:idle close_gate moved:stopping cut stop:1",
    ("ready", "drain"): "disarm:idle close_gate moved:draining arm:drain",
    ("ready", "doze"): "disarm:idle close_gate moved:falling_asleep sleep:1:1",
    ("draining", "died"): "disarm:drain moved:absent cut reconsider",
    ("draining", "sick"): "disarm:drain moved:stopping cut stop:1",
    ("draining", "leave"): "disarm:drain moved:stopping cut stop:1",
    ("draining", "doze"): "disarm:drain moved:falling_asleep sleep:1:1",
    ("falling_asleep", "slept"): "moved:sleeping arm:sleep_idle reconsider",
    ("falling_asleep", "sleep failed"): "moved:stopping stop:1",
    ("falling_asleep", "leave"): "moved:stopping stop:1",
    ("falling_asleep", "died"): "moved:absent reconsider",
    ("sleeping", "demand"): "disarm:sleep_idle moved:waking wake:1",
    ("sleeping", "leave"): "disarm:sleep_idle moved:stopping stop:1",
    ("sleeping", "drain"): "disarm:sleep_idle moved:stopping stop:1",
    ("sleeping", "died"): "disarm:sleep_idle moved:absent reconsider",
    ("waking", "woken"): "moved:ready arm:idle open_gate",
    ("waking", "wake failed"): "moved:stopping stop:1",
    ("waking", "leave"): "moved:stopping refuse:stopped stop:1",
    ("waking", "drain"): "moved:stopping refuse:stopped stop:1",
    ("waking", "died"): "moved:absent reconsider",
    ("stopping", "stopped"): "moved:absent reconsider",
    ("failed", "found"): "disarm:cool_down moved:starting arm:start probe:2",
    ("failed", "cooled"): "disarm:cool_down moved:absent reconsider",
    ("failed", "forgive"): "disarm:cool_down moved:absent reconsider",
    ("starting", "launched"): "arm:start probe:1",
    ("draining", "drain overdue"): "cut",
}


class Teller(Recorder):
    """Writes down timers and moves among the other effects."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[tuple[str, str, str]] = []

    def arm(self, timer: str) -> None:
        self.done.append(("arm", timer))

    def disarm(self, timer: str) -> None:
        self.done.append(("disarm", timer))

    def moved(self, old: str, new: str, cause: str) -> None:
        self.moves.append((old, new, cause))
        self.done.append(("moved", new))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", sorted(INPUTS))
def test_what_each_transition_does(state: str, name: str) -> None:
    """Each input in each state has the effects of the table, in that order, and no other one."""
    lifecycle, effects = in_state(state, Teller())
    effects.done.clear()
    INPUTS[name](lifecycle)
    assert " ".join(":".join(map(str, effect)) for effect in effects.done) == EFFECTS.get((state, name), "")


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_what_is_overdue_hears_of_nothing_but_its_end(name: str) -> None:
    """It is shown as stopping, whatever comes; when it has ended, it has failed and cools down."""
    lifecycle, effects = in_state("starting", Teller())
    lifecycle.start_overdue(1, TIMEOUT)
    effects.done.clear()
    INPUTS[name](lifecycle)
    ended = name == "stopped"
    assert lifecycle.state == ("failed" if ended else "stopping")
    assert effects.done == ([("moved", "failed"), ("arm", "cool_down")] if ended else [])


def test_news_of_another_attempt_changes_nothing_anywhere() -> None:
    """Neither an older nor a newer one is the present one, in whichever state it is."""
    for state in STATES:
        lifecycle, effects = in_state(state, Teller())
        effects.done.clear()
        before = lifecycle.state, lifecycle.attempt
        for attempt in (lifecycle.attempt - 1, lifecycle.attempt + 1):
            lifecycle.launched(attempt)
            lifecycle.healthy(attempt)
            lifecycle.start_failed(attempt, FAILED)
            lifecycle.start_failed(attempt, AWAY)
            lifecycle.start_overdue(attempt, TIMEOUT)
            lifecycle.slept(attempt)
            lifecycle.sleep_failed(attempt, "500")
            lifecycle.found_asleep(attempt)
            lifecycle.woken(attempt)
            lifecycle.wake_failed(attempt, "500")
            lifecycle.stopped(attempt)
        assert (lifecycle.state, lifecycle.attempt, effects.done) == (*before, [])


def test_the_cause_of_a_move_is_told() -> None:
    """What is given as the reason of a change is what is shown for it."""
    told = {"died": "gone", "sick": "dead engine", "leave": "operator", "drain": "operator", "doze": "idle"}
    told |= {"sleep failed": "500", "wake failed": "500", "start_failed": "it broke", "overdue": "too slow"}
    told |= {"unavailable": "no engine", "demand": "wanted", "found": "found running"}
    told |= {"healthy": "healthy", "stopped": "stopped", "cooled": "may be tried again"}
    told |= {
        "forgive": "may be tried again",
        "slept": "asleep",
        "woken": "awake",
        "found asleep": "found asleep",
    }
    for (state, name), new in MOVES.items():
        teller = Teller()
        lifecycle, _ = in_state(state, teller)
        teller.moves.clear()
        INPUTS[name](lifecycle)
        [(*move, cause)] = teller.moves
        assert move == [state, new]
        assert (name, cause) == (name, told[name])


def test_starts_are_numbered_and_those_that_fail_in_a_row_are_counted() -> None:
    """Each start has the next number, also of what is found running; health forgets what failed before."""
    lifecycle, _ = in_state("absent")
    assert (lifecycle.attempt, lifecycle.failures) == (0, 0)
    lifecycle.found()
    lifecycle.start_failed(1, FAILED)
    lifecycle.found()
    assert (lifecycle.attempt, lifecycle.failures) == (2, 1)
    lifecycle.start_overdue(2, TIMEOUT)
    assert lifecycle.failures == 2
    lifecycle.stopped(2)
    lifecycle.cooled()
    lifecycle.demand()
    lifecycle.start_failed(3, AWAY)
    assert (lifecycle.attempt, lifecycle.failures) == (3, 2)
    lifecycle.demand()
    lifecycle.healthy(4)
    assert (lifecycle.attempt, lifecycle.failures) == (4, 0)


def test_cool_downs_in_a_row() -> None:
    """5 s, and twice as long after each failure, up to 5 minutes; as a number that a header can have."""
    assert [cool_down(failures) for failures in range(1, 9)] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert isinstance(cool_down(10_000), float)


def test_a_start_in_order() -> None:
    """A demand launches, the launch is probed, and health opens the gate."""
    lifecycle, effects = in_state("absent")
    lifecycle.demand()
    lifecycle.demand()
    lifecycle.launched(1)
    assert effects.timers == {"start"}
    lifecycle.healthy(1)
    assert effects.done == [("launch", 1), ("probe", 1), ("open_gate",)]
    assert effects.timers == {"idle"}


def test_news_of_an_old_attempt_is_dropped() -> None:
    """An old start can neither make a new one ready nor make it fail."""
    lifecycle, effects = in_state("failed")
    lifecycle.cooled()
    lifecycle.demand()
    assert lifecycle.attempt == 2
    lifecycle.launched(1)
    lifecycle.healthy(1)
    lifecycle.start_failed(1, FAILED)
    lifecycle.start_overdue(1, TIMEOUT)
    lifecycle.healthy(2)
    assert effects.trail == ["absent", "starting", "failed", "absent", "starting", "ready"]


def test_an_overdue_start_is_stopped_and_then_cools_down() -> None:
    """Who waited is refused at once; the cool-down begins when what ran has ended."""
    lifecycle, effects = in_state("starting")
    lifecycle.launched(1)
    lifecycle.start_overdue(1, TIMEOUT)
    assert effects.done[-2:] == [("refuse", "timeout"), ("stop", 1)]
    assert effects.timers == set()
    lifecycle.stopped(1)
    assert lifecycle.state == "failed"
    assert effects.timers == {"cool_down"}


def test_a_sleep_in_order() -> None:
    """It closes, sleeps, and wakes for a demand; who came meanwhile is looked at when it is asleep."""
    lifecycle, effects = in_state("ready")
    effects.done.clear()
    lifecycle.doze(2, "idle")
    lifecycle.demand()
    lifecycle.slept(1)
    assert effects.done == [("close_gate",), ("sleep", 1, 2), ("reconsider",)]
    assert effects.timers == {"sleep_idle"}
    lifecycle.demand()
    lifecycle.woken(1)
    assert effects.done[3:] == [("wake", 1), ("open_gate",)]
    assert effects.timers == {"idle"}


def test_a_sleep_or_a_wake_that_fails_becomes_a_stop_that_refuses_nobody() -> None:
    """Who waits is served by the cold start that follows."""
    for state, fail in (("falling_asleep", "sleep failed"), ("waking", "wake failed")):
        lifecycle, effects = in_state(state)
        INPUTS[fail](lifecycle)
        assert effects.done[-1] == ("stop", 1)
        assert not any(effect[0] == "refuse" for effect in effects.done)
        lifecycle.stopped(1)
        assert [lifecycle.state, *effects.done[-1]] == ["absent", "reconsider"]


def test_news_of_an_old_sleep_is_dropped() -> None:
    """An answer of a run that is over puts no other one to sleep, and wakes none."""
    lifecycle, effects = in_state("falling_asleep")
    lifecycle.died("killed")
    lifecycle.demand()
    lifecycle.launched(2)
    lifecycle.healthy(2)
    lifecycle.doze(1, "idle")
    lifecycle.slept(1)
    lifecycle.sleep_failed(1, "late")
    lifecycle.slept(2)
    lifecycle.demand()
    lifecycle.woken(1)
    lifecycle.wake_failed(1, "late")
    assert effects.trail[-3:] == ["falling_asleep", "sleeping", "waking"]


def test_the_drain_limit_breaks_off_what_is_in_flight() -> None:
    """And then it has drained, which is for others to find."""
    lifecycle, effects = in_state("draining")
    lifecycle.drain_overdue()
    assert [lifecycle.state, *effects.done[-1]] == ["draining", "cut"]
    lifecycle.leave("drained")
    lifecycle.drain_overdue()
    assert lifecycle.state == "stopping"


def test_a_wish_while_stopping_is_looked_at_afterwards() -> None:
    """Whoever came while it was being stopped is counted as soon as it is absent."""
    lifecycle, effects = in_state("stopping")
    lifecycle.demand()
    lifecycle.stopped(1)
    assert effects.done[-1] == ("reconsider",)


def test_failures_in_a_row_are_counted_and_forgiven() -> None:
    """Each failed start counts, and a healthy one or a reset forgets them."""
    lifecycle, _ = in_state("failed")
    assert lifecycle.failures == 1
    lifecycle.cooled()
    lifecycle.demand()
    lifecycle.start_failed(2, FAILED)
    assert lifecycle.failures == 2
    lifecycle.forgive()
    assert (lifecycle.state, lifecycle.failures) == ("absent", 0)


@given(st.integers(1, 10_000))
def test_cool_down_doubles_up_to_its_bound(failures: int) -> None:
    """The cool-down is 5 s at first, doubles, and never passes 5 minutes."""
    seconds = cool_down(failures)
    assert COOL_DOWN_FIRST <= seconds <= COOL_DOWN_MOST
    assert cool_down(failures + 1) == min(2 * seconds, COOL_DOWN_MOST)


@given(st.lists(st.sampled_from(sorted(INPUTS)), max_size=40))
def test_whatever_happens(names: list[str]) -> None:
    """In any order of inputs the gate is open in ready alone, each state has its own timers, and what was
    launched or found is stopped before it is absent unless it ended by itself."""
    effects = Recorder()
    lifecycle = Lifecycle(effects)
    for name in names:
        INPUTS[name](lifecycle)
        assert effects.gate is (lifecycle.state == "ready")
        allowed = {
            "absent": set(),
            "starting": {"start"},
            "ready": {"idle"},
            "draining": {"drain"},
            "stopping": set(),
            "failed": {"cool_down"},
            "falling_asleep": set(),
            "sleeping": {"sleep_idle"},
            "waking": set(),
        }[lifecycle.state]
        assert effects.timers <= allowed
        if lifecycle.state in ("ready", "draining", "failed", "sleeping"):
            assert effects.timers == allowed
    launches = sum(1 for effect in effects.done if effect[0] == "launch")
    assert launches <= lifecycle.attempt
    refused = [effect for effect in effects.done if effect[0] == "refuse"]
    assert len(refused) <= lifecycle.attempt
