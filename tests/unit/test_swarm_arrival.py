"""What has become of a start in a Swarm."""

from __future__ import annotations

import pytest

from llmproxy.engines.phases import Phase
from llmproxy.runtimes.swarm_arrival import Verdict, judge, no_address_hint, task_hint
from llmproxy.runtimes.swarm_state import Picture
from tests.unit.swarm_cases import picture, task


def judged(found: Picture, known: str = "", reachable: bool = True) -> Verdict:
    """How a start is, of which those had ended before."""
    return judge(found, frozenset(known.split()), lambda task: reachable)


FAILED = task("a", "failed", "shutdown", code=3, error="task: non-zero exit (3)")
REJECTED = task("a", "rejected", "shutdown", ran=False, error="No such image: i:1")


def test_it_runs() -> None:
    """One task that runs and is reached is enough."""
    found = judged(picture(FAILED, task("b", second=2), task("c", "pending", slot=2, ran=False), replicas=2))
    assert (found.kind, found.task and found.task.id) == ("runs", "b")
    assert judged(picture(task("a", "running", "remove"), task("b", "pending", ran=False))).kind == "waiting"


def test_it_has_failed() -> None:
    """One that ran is told by its exit, one that never ran is refused; what Swarm puts in its place changes
    nothing of that, and neither does what ended before."""
    again = task("b", "preparing", "ready", 2, ran=False)
    at_once = task("b", "assigned", "running", 2, ran=False)
    for successor in (again, at_once):
        assert judged(picture(FAILED, successor)).kind == "ended"
        assert judged(picture(REJECTED, successor)).kind == "refused"
        assert judged(picture(REJECTED, successor), known="a").kind == "waiting"
    other = task("b", "preparing", slot=2, ran=False)
    assert judged(picture(REJECTED, other, replicas=2)).kind == "waiting"


def test_it_was_stopped() -> None:
    """Somebody has scaled it to 0, or removed it."""
    assert judged(picture(FAILED, replicas=0), known="a").kind == "stopped"
    assert judged(picture(FAILED, replicas=0)).kind == "ended"
    assert judged(Picture(None)).kind == "missing"


def test_it_waits() -> None:
    """For a node, for its image, or for an address that leads to it."""
    room = "no suitable node (insufficient resources on 3 nodes)"
    found = judged(picture(task("a", "pending", error=room, ran=False)))
    assert (found.kind, found.phase, found.placed) == ("waiting", Phase("placing", reason=room), False)
    found = judged(picture(task("a", "preparing", ran=False)))
    assert (found.phase, found.placed) == (Phase("pulling"), True)
    found = judged(picture(task("a")), reachable=False)
    assert (found.kind, found.placed, found.reached) == ("waiting", True, False)
    assert judged(picture()).kind == "waiting"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("no suitable node (insufficient resources on 3 nodes)", "reserve less"),
        ("no suitable node (scheduling constraints not satisfied on 2 nodes)", "constraints"),
        ("no suitable node (host-mode port already in use on 1 node)", "port that it publishes"),
        ("no suitable node (2 nodes not available for new tasks)", "No node can take it"),
        ("No such image: i:1", "Each node gets the image itself"),
        ("network models not found", "networks of the service"),
        ('starting container failed: exec: "/x": no such file or directory', "command"),
        ("something else", "docker service ps --no-trunc m"),
    ],
)
def test_hints(said: str, words: str) -> None:
    """Each says what can be done."""
    assert words in task_hint(said, "m")
    assert "overlay" in no_address_hint("m")
