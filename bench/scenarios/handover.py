"""How soon held requests are handed over once their backend is there, and what waiting costs."""

from __future__ import annotations

import random
import time

from bench.cpu import cpu_seconds
from bench.engine import record_of
from bench.figures import Figure, Goal, Round, percentile
from bench.peers import Peer
from bench.sleepers import ask, sleeper, state, stop
from bench.stage import MILLI, Scenario, Stage, finish, until
from bench.traffic import CHAT

__all__ = ["SCENARIO"]

LIMIT = 60.0
"""Seconds that many waiters may take."""


def _starts(stage: Stage) -> dict[str, float]:
    """Cold starts, one after the other, each of another backend that listens after a time of its own."""
    plan, folder = stage.plan, stage.folder("starts")
    dice = random.Random(1)
    records = {f"start{number}": folder / f"{number}.json" for number in range(plan.starts)}
    backends = {
        name: sleeper(record, f"{dice.uniform(*plan.delays):.4f}") for name, record in records.items()
    }
    taken, seen = [], []
    with stage.llmproxy(backends, folder, pinned=False) as proxy:
        for name, record in records.items():
            ask(proxy, f"/{name}/json")
            noted = record_of(record)
            stop(proxy, name)
            taken.append((noted["arrived"] - noted["healthy"]) * MILLI)
            seen.append((noted["arrived"] - noted["listening"]) * MILLI)
    stage.tell("  cold starts, ms after readiness: " + " ".join(f"{value:.1f}" for value in taken))
    return {
        "handover_p50_ms": percentile(taken, 0.50),
        "handover_p95_ms": percentile(taken, 0.95),
        "handover_max_ms": max(taken),
        "noticed_p50_ms": percentile(seen, 0.50),
        "noticed_p95_ms": percentile(seen, 0.95),
    }


def _many(stage: Stage, number: int) -> dict[str, float]:
    """Many waiters before one backend."""
    plan, folder = stage.plan, stage.folder(f"many{number}")
    go, record = folder / "go", folder / "record.json"
    backends = {"cold": sleeper(record, str(go), max_waiting=plan.waiters)}
    with stage.llmproxy(backends, folder, pinned=False) as proxy:
        assert proxy.pid is not None
        options = {"path": f"/cold{CHAT}", "connections": plan.waiters, "seconds": LIMIT, "watch": []}
        with stage.loading(proxy, "hold", **options) as load:  # type: ignore[arg-type]
            until("all wait", lambda: _waiting(proxy) == plan.waiters or load.poll() is not None, LIMIT)
            time.sleep(plan.warm_up)
            used, began = cpu_seconds([proxy.pid]), time.monotonic()
            time.sleep(plan.seconds)
            share = (cpu_seconds([proxy.pid]) - used) / (time.monotonic() - began)
            go.touch()
            finish(load, proxy, "hold", LIMIT)
        until("all arrived", lambda: record_of(record)["requests"] == plan.waiters, 5.0)
        noted = record_of(record)
    return {
        "waiting_cpu_percent": share * 100,
        "many_first_ms": (noted["arrived"] - noted["healthy"]) * MILLI,
        "many_last_ms": (noted["last_arrived"] - noted["healthy"]) * MILLI,
    }


def _waiting(proxy: Peer) -> int:
    return int(state(proxy, "cold")["waiting"])


def _run(stage: Stage) -> list[Round]:
    rounds: list[Round] = [{"llmproxy": _many(stage, number)} for number in range(stage.plan.repeats)]
    rounds[0]["llmproxy"] |= _starts(stage)
    return rounds


SCENARIO = Scenario(
    "handover",
    "cold starts, and 1,000 who wait for one",
    (
        Figure("handover_p50_ms", "hand-over after readiness, p50 of the starts", "ms"),
        Figure("handover_p95_ms", "hand-over after readiness, p95", "ms"),
        Figure("handover_max_ms", "hand-over after readiness, slowest", "ms"),
        Figure("noticed_p50_ms", "from listening to the held request, p50", "ms"),
        Figure("noticed_p95_ms", "from listening to the held request, p95", "ms"),
        Figure("many_first_ms", "1,000 waiters: first handed over", "ms"),
        Figure("many_last_ms", "1,000 waiters: last handed over", "ms", 0),
        Figure("waiting_cpu_percent", "CPU while 1,000 wait", "%", 2),
    ),
    (
        Goal("handover_p50_ms", 10.0),
        Goal("handover_p95_ms", 25.0),
        Goal("waiting_cpu_percent", 2.0),
    ),
    _run,
)
