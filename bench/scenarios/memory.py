"""What memory is taken by the idle proxy, by an open stream and by a held request."""

from __future__ import annotations

import time

from bench import peers
from bench.cpu import forget_peak, peak_bytes, proportional_bytes, resident_bytes
from bench.engine import record_of, starts_of
from bench.figures import Figure, Goal, Round
from bench.sleepers import sleeper, state
from bench.stage import KILOBYTE, MEGABYTE, Scenario, Stage, finish, until
from bench.traffic import CHAT

__all__ = ["SCENARIO"]

LIMIT = 120.0
"""Seconds that all held requests may take."""

AT_ONCE = 4000
"""Of the held requests, those that are at the backend at once: so that 20,000 open files are enough."""

FILES_BESIDE = 300
"""Open files of a proxy that belong to no request."""


def _fresh(stage: Stage, name: str, number: int) -> dict[str, float]:
    """A peer of its own: one that has worked already has memory to spare."""
    context = peers.start(name, stage.tools, stage.backend, stage.folder(f"fresh{number}"))
    if context is None or name == "direct":
        return {}
    count = stage.plan.open_streams
    with context as peer:
        # What only a start needs may be given back first.
        time.sleep(stage.plan.warm_up)
        stage.load(peer, "requests", connections=1, seconds=0.1, warm_up=0.0)
        idle = resident_bytes(peer.pids)
        figures = {
            "idle_mb": idle / MEGABYTE,
            "idle_proportional_mb": proportional_bytes(peer.pids) / MEGABYTE,
        }
        warm_up = stage.plan.warm_up + count / 800
        got = stage.load(peer, "streams", connections=count, rate=stage.plan.open_rate, warm_up=warm_up)
        figures["per_stream_kb"] = (got["resident"] - idle) / count / KILOBYTE
    return figures


def _held(stage: Stage) -> dict[str, float]:
    """Many requests before one cold backend."""
    folder = stage.folder("held")
    # Each needs a connection of the client's, and one of the backend's when it is handed over.
    count = min(stage.plan.held, stage.files - FILES_BESIDE - AT_ONCE)
    if count < stage.plan.held:
        stage.notes.append(f"only {count} requests were held: more files may not be opened (ulimit -n)")
    go, record = folder / "go", folder / "record.json"
    backends = {"cold": sleeper(record, str(go), max_waiting=count, max_in_flight=AT_ONCE)}
    with stage.llmproxy(backends, folder, pinned=False) as proxy:
        assert proxy.pid is not None
        time.sleep(stage.plan.warm_up)
        before = resident_bytes([proxy.pid])
        options = {"path": f"/cold{CHAT}", "connections": count, "seconds": LIMIT, "watch": []}
        with stage.loading(proxy, "hold", **options) as load:  # type: ignore[arg-type]
            until(
                "all are held",
                lambda: int(state(proxy, "cold")["waiting"]) == count or load.poll() is not None,
                LIMIT,
                0.2,
            )
            held = resident_bytes([proxy.pid])
            forget_peak([proxy.pid])
            go.touch()
            answered = finish(load, proxy, "hold", LIMIT + 30)["count"]
        until("all arrived", lambda: record_of(record)["requests"] == count, 5.0)
        noted = record_of(record)
        # So that the end of the last connections is seen.
        time.sleep(stage.plan.warm_up)
        peak = peak_bytes([proxy.pid])
        after = resident_bytes([proxy.pid])
    return {
        "per_held_kb": (held - before) / count / KILOBYTE,
        "held_unanswered": count - answered,
        "held_starts": len(starts_of(record).read_text().splitlines()),
        "held_last_s": noted["last_arrived"] - noted["healthy"],
        "held_peak_mb": (peak - before) / MEGABYTE,
        "after_held_mb": (after - before) / MEGABYTE,
    }


def _run(stage: Stage) -> list[Round]:
    rounds: list[Round] = []
    for number in range(stage.plan.repeats):
        found = {name: _fresh(stage, name, number) for name in stage.wanted}
        rounds.append({name: values for name, values in found.items() if values})
        stage.tell(f"  round {number + 1} of {stage.plan.repeats}")
    if "llmproxy" in rounds[0]:
        rounds[0]["llmproxy"] |= _held(stage)
    return rounds


SCENARIO = Scenario(
    "memory",
    "idle, 2,000 open streams, 10,000 held requests",
    (
        Figure("idle_mb", "memory, idle (resident)", "MB", 1),
        Figure("idle_proportional_mb", "memory, idle (proportional)", "MB", 1),
        Figure("per_stream_kb", "memory per open stream, of 2,000", "KB", 1),
        Figure("per_held_kb", "memory per held request, of 10,000", "KB", 1),
        Figure("held_unanswered", "10,000 held: not answered", "", 0),
        Figure("held_starts", "10,000 held: starts of the backend", "", 0),
        Figure("held_last_s", "10,000 held: last handed over", "s"),
        Figure("held_peak_mb", "10,000 held: peak memory in the hand-over", "MB", 1),
        Figure("after_held_mb", "10,000 held: memory kept afterwards", "MB", 1),
    ),
    (
        Goal("idle_mb", 60.0),
        Goal("per_held_kb", 25.0),
        Goal("held_unanswered", 0.0),
        Goal("held_starts", 1.0),
    ),
    _run,
)
