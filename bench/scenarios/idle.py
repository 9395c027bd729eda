"""What a proxy costs that nobody uses, and how soon it answers after its start."""

from __future__ import annotations

import time
from typing import Any

from bench import peers
from bench.cpu import cpu_seconds, resident_bytes
from bench.figures import Figure, Goal, Round
from bench.processes import wait_for
from bench.sleepers import sleeper
from bench.stage import MEGABYTE, Scenario, Stage

__all__ = ["SCENARIO"]

FEW = 3

LOOK_EVERY = 0.005
"""Seconds between looks whether the proxy answers yet."""


def _one(stage: Stage, name: str, count: int, number: int, idle: float) -> dict[str, float]:
    folder = stage.folder(f"idle-{name}-{number}")
    backends: dict[str, Any] = {
        f"model{index}": sleeper(folder / f"{index}.json", "0", models=[f"vendor/model-{index}"])
        for index in range(count)
    }
    began = time.monotonic()
    reactor = stage.tools.reactor
    with peers.started_llmproxy(backends, folder, reactor=reactor, pinned=True) as (proxy, process, log):
        wait_for("llmproxy", proxy.port, "/healthz", process, log, every=LOOK_EVERY)
        figures = {f"start_{name}_s": time.monotonic() - began}
        if idle:
            assert proxy.pid is not None
            wait_for("llmproxy", proxy.port, "/readyz", process, log)
            time.sleep(min(2.0, idle))
            used, since = cpu_seconds([proxy.pid]), time.monotonic()
            time.sleep(idle)
            share = (cpu_seconds([proxy.pid]) - used) / (time.monotonic() - since)
            figures[f"idle_cpu_{name}_percent"] = share * 100
            figures[f"idle_cpu_{name}_s_per_minute"] = share * 60
            figures[f"idle_{name}_mb"] = resident_bytes([proxy.pid]) / MEGABYTE
    return figures


def _run(stage: Stage) -> list[Round]:
    rounds: list[Round] = []
    for number in range(stage.plan.repeats):
        # It is the same each time: once is enough for what takes long.
        idle = stage.plan.idle if number == 0 else 0.0
        few = _one(stage, "few", FEW, number, idle)
        rounds.append({"llmproxy": few | _one(stage, "large", stage.plan.backends, number, idle)})
    return rounds


SCENARIO = Scenario(
    "idle",
    "nobody asks: 3 and 1,000 backends, none running",
    (
        Figure("idle_cpu_few_percent", "idle CPU, 3 backends", "%", 3),
        Figure("idle_cpu_large_percent", "idle CPU, 1,000 backends", "%", 3),
        Figure("idle_cpu_few_s_per_minute", "idle CPU in a minute, 3 backends", "s", 3),
        Figure("idle_cpu_large_s_per_minute", "idle CPU in a minute, 1,000 backends", "s", 3),
        Figure("idle_few_mb", "memory, 3 backends", "MB", 1),
        Figure("idle_large_mb", "memory, 1,000 backends", "MB", 1),
        Figure("start_few_s", "start to /healthz, 3 backends", "s"),
        Figure("start_large_s", "start to /healthz, 1,000 backends", "s"),
    ),
    (
        Goal("idle_cpu_large_percent", 0.5),
        Goal("start_large_s", 3.0),
    ),
    _run,
)
