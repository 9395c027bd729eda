"""Memory that nobody uses any more is given back to the system."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from llmproxy.garbage import TIDY_EVERY, WORKED, Tidy, give_back


@pytest.mark.parametrize(
    ("work", "given"), [([0.0] * 3, 0), ([2 * WORKED, 0.0, 2 * WORKED], 2), ([0.6 * WORKED] * 4, 2)]
)
def test_it_is_given_back_after_some_work(work: list[float], given: int) -> None:
    """A proxy at rest has nothing to do."""
    clock, worked, count = Clock(), 5.0, 0

    def give() -> None:
        nonlocal count
        count += 1

    Tidy(clock, lambda: worked, give).start()
    for more in work:
        worked += more
        clock.advance(TIDY_EVERY)
    assert count == given


def _resident() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def test_a_hole_in_the_heap_is_given_back() -> None:
    """What a crowd has used stands below what has been made last, where the C library leaves it."""
    crowd = [bytes(50_000) for _ in range(1000)]
    last = bytes(50_000)
    crowd.clear()
    before = _resident()
    give_back()
    assert before - _resident() > 30_000_000
    assert last
