"""The lifecycle machine alone: inputs in, effects out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.fleet.lifecycle import COOL_DOWN_FIRST, COOL_DOWN_MOST, Lifecycle, StartFailure, cool_down

FAILED = StartFailure("failed", "it broke", exit_code=1)
TIMEOUT = StartFailure("timeout", "too slow")
AWAY = StartFailure("unavailable", "no engine")

STATES = ("absent", "starting", "ready", "draining", "stopping", "failed")


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

    def arm(self, timer: str) -> None:
        self.timers.add(timer)

    def disarm(self, timer: str) -> None:
        self.timers.discard(timer)

    def moved(self, old: str, new: str, cause: str) -> None:
        assert old == self.trail[-1]
        self.trail.append(new)

    def reconsider(self) -> None:
        self.done.append(("reconsider",))


def in_state(state: str) -> tuple[Lifecycle, Recorder]:
    """A lifecycle that was brought to ``state`` by its inputs."""
    effects = Recorder()
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
        lifecycle.stop_wanted("test", busy=True)
    elif state == "stopping":
        lifecycle.stop_wanted("test", busy=False)
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
    "stop idle": lambda m: m.stop_wanted("operator", busy=False),
    "stop busy": lambda m: m.stop_wanted("operator", busy=True),
    "stop forced": lambda m: m.stop_wanted("operator", busy=True, force=True),
    "drained": lambda m: m.drained(),
    "drain overdue": lambda m: m.drain_overdue(),
    "idle": lambda m: m.idle_due(busy=False, idle_for=600, limit=600),
    "idle early": lambda m: m.idle_due(busy=False, idle_for=1, limit=600),
    "idle busy": lambda m: m.idle_due(busy=True, idle_for=900, limit=600),
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
    ("starting", "stop idle"): "stopping",
    ("starting", "stop busy"): "stopping",
    ("starting", "stop forced"): "stopping",
    ("ready", "died"): "absent",
    ("ready", "sick"): "stopping",
    ("ready", "stop idle"): "stopping",
    ("ready", "stop busy"): "draining",
    ("ready", "stop forced"): "stopping",
    ("ready", "idle"): "stopping",
    ("draining", "died"): "absent",
    ("draining", "sick"): "stopping",
    ("draining", "stop idle"): "stopping",
    ("draining", "stop forced"): "stopping",
    ("draining", "drained"): "stopping",
    ("draining", "drain overdue"): "stopping",
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
        }[lifecycle.state]
        assert effects.timers <= allowed
        if lifecycle.state in ("ready", "draining", "failed"):
            assert effects.timers == allowed
    launches = sum(1 for effect in effects.done if effect[0] == "launch")
    assert launches <= lifecycle.attempt
    refused = [effect for effect in effects.done if effect[0] == "refuse"]
    assert len(refused) <= lifecycle.attempt
