"""A short run of every fuzz target, by the same seeds each time; ``make fuzz`` goes on for longer."""

from __future__ import annotations

import os

import pytest
from hypothesis import strategies as st

from tests.fuzz.drive import TARGETS, fuzz

SECONDS = float(os.environ.get("LLMPROXY_FUZZ_SECONDS", "20"))
"""For all of them together."""

SEED = int(os.environ.get("LLMPROXY_FUZZ_SEED", "1"))

_SHARES = sum(target.share for target in TARGETS.values())


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found(name: str) -> None:
    """No input breaks what must be true of all of them."""
    rounds, inputs = fuzz(name, SECONDS * TARGETS[name].share / _SHARES, SEED)
    assert rounds >= 1
    assert inputs >= 50


def test_what_is_found_can_be_had_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault names the seed that finds it, and that seed finds it again."""
    from tests.fuzz import drive

    def check(value: object) -> None:
        assert b"\x00" not in bytes(str(value), "latin-1", "replace"), "found"

    broken = drive.Target(st.text(), check)
    monkeypatch.setitem(drive.TARGETS, "broken", broken)
    for _ in range(2):
        with pytest.raises(AssertionError, match="found") as raised:
            fuzz("broken", 5, 3)
        (note,) = [note for note in raised.value.__notes__ if note.startswith("again: ")]
        assert "ONLY=broken SEED=" in note
