"""Crowds of a tenth of their size or less; ``make load`` has them in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.load.crowd import may_open
from tests.integration.load.scenarios import SCENARIOS

PARTS = {"streams-1024": 0.5, "held-1024": 0.1, "silent": 0.1, "storm": 0.1}


@pytest.mark.parametrize("name", list(PARTS))
def test_crowd(name: str, tmp_path: Path) -> None:
    """Everybody is served or told why not, and the proxy serves on afterwards."""
    assert may_open(4000)
    assert SCENARIOS[name](tmp_path / "proxy", PARTS[name]).wrong == []
