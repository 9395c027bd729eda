"""The benchmark suite, run for some seconds: that it works, not what it finds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

from bench.figures import FIGURES
from bench.peers import nginx_path

ROOT = Path(__file__).resolve().parents[2]

LIMIT = 120.0
"""Seconds; it takes about ten."""

OF_DIRECT = {
    *(figure.key for figure in FIGURES if figure.key.startswith(("requests_", "latency_", "first_byte_"))),
    "token_latency_p50_ms",
    "token_latency_p99_ms",
}
ONLY_OF_LLMPROXY = {"handover_p50_ms", "handover_p95_ms", "readiness_seen_p50_ms"}


def test_quick_run_has_every_figure(tmp_path: Path) -> None:
    """A quick run ends by itself, shows the table, and writes every figure of every peer that is there."""
    output = tmp_path / "bench.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "--quick", "--output", str(output)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        shown, errors = process.communicate(timeout=LIMIT)
    finally:
        # TERM, so that it ends what it has started.
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0, errors
    for figure in FIGURES:
        assert figure.title in shown
    every = {figure.key for figure in FIGURES}
    expected = {"direct": OF_DIRECT, "llmproxy": every}
    if nginx_path() is not None:
        expected["nginx"] = every - ONLY_OF_LLMPROXY
    figures = json.loads(output.read_text())["figures"]
    assert {peer: set(values) for peer, values in figures.items()} == expected
    assert all(math.isfinite(value) for values in figures.values() for value in values.values())
