"""What is measured: one module for each scenario."""

from __future__ import annotations

from bench.scenarios import churn, firstbyte, handover, idle, large, memory, requests, routing, tokens
from bench.stage import Scenario

__all__ = ["SCENARIOS"]

SCENARIOS: tuple[Scenario, ...] = (
    requests.SCENARIO,
    firstbyte.SCENARIO,
    tokens.SCENARIO,
    handover.SCENARIO,
    memory.SCENARIO,
    idle.SCENARIO,
    routing.SCENARIO,
    large.SCENARIO,
    churn.SCENARIO,
)
"""In the order of the run and of the table."""
