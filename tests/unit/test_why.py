"""The words of ``why`` and ``plan``."""

from __future__ import annotations

from typing import Any

from llmproxy.engines.needs import Needs
from llmproxy.fleet.telling import GpuSum, Left, Story, ready_in, tell_plan, tell_why
from llmproxy.scheduling.claims import Room
from llmproxy.scheduling.learned import Estimate
from llmproxy.scheduling.outlook import Leave, Plan, Refuse, Start, Wait

GIB = 2**30
NEEDS = Needs(("0",), 0.6, (), "as it says")
SLEEPS = Needs(("0", "1"), 0.5, (1, 2), "as it says", ("A remark.",))
GPU = GpuSum("0", Room(), {"coder": 600_000})


def told(state: str, **fields: Any) -> list[str]:
    """What is told of ``chat``, which came into that state 100 s ago."""
    needs = fields.pop("needs", NEEDS)
    fields.setdefault("gpus", (GPU,))
    return tell_why(Story("chat", state, 1100.0, 1000.0, needs, fields.pop("start", Estimate()), **fields))


def test_sums_are_told_with_all_who_have_a_part() -> None:
    """In GiB where the size is known, in parts of 1 where it is not; no less than nothing is free."""
    assert str(GPU) == "Of GPU 0's 1.00 coder has 0.60, 0.40 is free."
    room = Room(24 * GIB, GIB, 4 * GIB, known=True)
    assert str(GpuSum("1", room, {"a": 20 * GIB, "b": 0})) == (
        "Of GPU 1's 24.0 GiB a has 20.0 GiB, 4.0 GiB is lent, 1.0 GiB is reserved, 0.0 GiB is free."
    )


def test_who_runs_is_told_with_its_origin() -> None:
    """Who asked for it, and who left for it."""
    assert told("ready")[1].startswith("When another model needs its room")
    assert told("ready", begun="found running")[1] == "It ran already when llmproxy found it."
    assert told("starting", begun="wanted")[1] == "It is being started: wanted."
    lines = told("starting", begun="wanted", phase="loading weights", progress=0.5, eta=12.0)
    assert lines[2] == "It is loading weights (50%), and should be ready in about 12 s."
    assert told("starting", begun="wanted", phase="compiling")[2] == "It is compiling."
    assert told("waking", begun="wanted", woken=True)[1] == "It is being woken: wanted."
    lines = told("ready", begun="wanted", awaited=True, made_room=("a", "b", "c"), in_flight=2)
    assert lines[1] == "It was started for requests that waited for it."
    assert lines[2] == "a, b and c had to leave for it."
    assert "2 requests are in flight there." in lines


def test_who_runs_is_told_when_it_leaves() -> None:
    """It stops or falls asleep, or stays."""
    assert "It stops in 30 s unless a request comes." in told("ready", leaves_in=30.0)
    assert "It falls asleep in 30 s unless a request comes." in told("ready", leaves_in=30.0, needs=SLEEPS)
    assert "It stops in 30 s unless a request comes." in told("sleeping", leaves_in=30.0, needs=SLEEPS)
    assert any(line.startswith("It stays for 20 s more") for line in told("ready", stays_until=1120.0))
    lines = told("ready", pinned=True, leaves_in=None)
    assert "It is pinned: it leaves for no other model, nor because nobody uses it." in lines
    assert not any("needs its room" in line for line in lines)


def test_who_left_is_told_why() -> None:
    """By whom it was evicted, or what else ended it, or that it has not run yet."""
    left = Left(1090.0, "makes room for coder, which has waited for 2 s (idle for 9 s)", "coder")
    assert told("absent", left=left)[1].startswith("It was evicted 10 s ago: it makes room for coder")
    assert told("draining", left=Left(1099.0, "idle for 60 s"))[1] == "It left 1.0 s ago: idle for 60 s."
    assert told("absent")[1] == "Nobody has asked for it since llmproxy knows it."
    assert "Nobody" not in " ".join(told("absent", begun="wanted") + told("stopping"))
    assert "Nobody" not in " ".join(told("absent", waiting=1))
    assert told("falling_asleep")[0] == "chat is falling asleep, for 1 m 40 s."
    assert told("sleeping", level=2)[0] == "chat is sleeping at level 2, for 1 m 40 s."


def test_who_waits_is_told_for_whom_and_how_long() -> None:
    """With the sums, and when those who are busy begin to drain."""
    wait = Wait("chat", "coder is busy", ("coder",))
    assert "It should be ready in about 40 s." in told("absent", waiting=1, wait=wait, eta=40.0)
    lines = told("absent", waiting=3, waiting_since=1088.0, wait=wait, drain_at=1118.0)
    start = lines.index("3 requests wait for it, the first for 12 s.")
    assert lines[start + 1 : start + 4] == [
        "It waits: coder is busy.",
        "In 18 s at the earliest busy ones take no new requests, and leave when drained.",
        "Of GPU 0's 1.00 coder has 0.60, 0.40 is free.",
    ]
    lines = told("absent", waiting_since=1090.0, wait=wait, drain_at=1095.0)
    assert "It has been wanted for 10 s." in lines
    assert not any("busy ones" in line for line in lines)
    assert "1 request waits for it." in told("starting", waiting=1)
    assert "It waits: coder is busy." in told("absent", wait=wait)


def test_who_is_refused_is_told_why() -> None:
    """At present, with the time of the next try; or the last time."""
    lines = told("failed", refused="It ended.", retry_in=5.0, unfit="It does not fit.")
    assert "Requests are refused: It ended. It is tried again in 5.0 s." in lines
    assert "Requests are refused: It ends." in told("absent", refused="It ends.")
    assert "When it was last asked for it was refused: No room." in told("absent", unfit="No room.")
    assert not any("last asked" in line for line in told("absent", unfit="No room.", waiting=1))


def test_needs_and_times_are_told_with_where_they_come_from() -> None:
    """What was measured, and what is only assumed."""
    assert "It needs 0.60 of GPU 0 (as it says)." in told("absent")
    assert "It needs no GPU memory (it runs elsewhere)." in told(
        "absent", needs=Needs(why="it runs elsewhere")
    )
    assert told("ready", needs=Needs(), elsewhere=True)[-1] == "It needs no GPU memory."
    assert "It needs no GPU memory." in told("absent", needs=Needs())
    start = Estimate(reload_seconds=75.0, wake_seconds=2.5, measured=frozenset({"reload_seconds"}))
    known = Room(24 * GIB, known=True)
    lines = told("absent", needs=SLEEPS, start=start, gpus=(GpuSum("0", known), GpuSum("1", Room())))
    assert lines[-3:] == [
        "It needs 12.0 GiB of GPU 0 and 0.50 of GPU 1 (as it says).",
        "A start takes about 1 m 15 s (measured), a wake 2.5 s (assumed), falling asleep 3.0 s (assumed),"
        " a stop 5.0 s (assumed).",
        "A remark.",
    ]


def test_a_plan_is_told_step_by_step() -> None:
    """Who starts or wakes, who leaves and how, who waits, and who does not fit."""
    plan = Plan(
        (Start("a", "it fits"), Start("b", "it fits")),
        (
            Leave("c", "stop", "idle"),
            Leave("d", "1", "makes room for e", whom="e"),
            Leave("f", "stop", "makes room for e (busy)", drain=True, whom="e"),
        ),
        (Wait("e", "until d and f has left", ("d", "f")),),
        (Refuse("g", "it is too large", until=1060.0), Refuse("h", "a would leave", forbidden=True)),
    )
    assert tell_plan(plan, 1000.0, asleep=frozenset({"b"})) == [
        "a starts now: it fits.",
        "b is woken now: it fits.",
        "c stops: nobody has used it for long enough.",
        "d falls asleep at level 1: makes room for e.",
        "f takes no new requests, and then stops: makes room for e (busy).",
        "e waits: until d and f has left.",
        "g does not fit: it is too large. It could fit in 1 m 0 s.",
        "h is refused to keys that may not evict: a would leave.",
    ]


def test_when_it_would_be_ready() -> None:
    """The time of a start or wake, after the slowest of those who leave for it; else nobody can say."""
    known = {
        "a": Estimate(60.0, 3.0, 2.0, 5.0),
        "b": Estimate(stop_seconds=7.0, sleep_seconds=1.0),
        "c": Estimate(stop_seconds=9.0, sleep_seconds=4.0),
    }
    wait = Wait("a", "until b and c has left", ("b", "c"))
    starts = Plan((Start("a", "it fits"),))
    assert ready_in(starts, "a", known, asleep=False) == 60.0
    assert ready_in(starts, "a", known, asleep=True) == 3.0
    assert ready_in(starts, "z", known, asleep=False) is None
    leaves = (Leave("b", "stop", "", whom="a"), Leave("c", "1", "", whom="a"))
    assert ready_in(Plan(leaves=leaves, waits=(wait,)), "a", known, asleep=False) == 67.0
    assert ready_in(Plan(leaves=leaves[:1], waits=(wait,)), "a", known, asleep=False) is None
    assert ready_in(Plan(waits=(wait,)), "a", known, asleep=False) is None
    drains = (Leave("b", "stop", "", drain=True, whom="a"),)
    assert ready_in(Plan(leaves=drains, waits=(wait,)), "a", known, asleep=False) is None
    strange = (Leave("b (former 7f)", "stop", "", whom="a"),)
    assert ready_in(Plan(leaves=strange), "a", known, asleep=False) is None
