"""What is measured, and in which order: every peer in turns, round after round."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from attrs import frozen

from bench import peers
from bench.cpu import resident_bytes
from bench.figures import added, medians
from bench.load import percentile
from bench.peers import Peer

__all__ = ["FULL", "QUICK", "Plan", "Results", "run"]

LOAD_LIMIT = 30.0
"""Seconds that a load may take beyond its own length."""

HANDOVER_LIMIT = 30.0
"""Seconds that one start may take."""

_MICRO = 1e6
_MILLI = 1e3


@frozen
class Plan:
    """How much is measured.

    :ivar rounds: turns of all peers.
    :ivar seconds: the measured window of each load.
    :ivar streams: streams at once; ``rate`` tokens each second in each.
    :ivar starts: cold starts for the hand-over.
    :ivar delays: shortest and longest time (seconds) until the started server listens.
    """

    rounds: int
    seconds: float
    warm_up: float
    streams: int
    rate: float
    starts: int
    delays: tuple[float, float]
    connections: tuple[int, ...] = (1, 16, 64)


FULL = Plan(rounds=3, seconds=3.0, warm_up=0.5, streams=50, rate=50.0, starts=10, delays=(0.3, 1.0))
QUICK = Plan(rounds=1, seconds=0.3, warm_up=0.1, streams=5, rate=50.0, starts=2, delays=(0.2, 0.3))


@frozen
class Results:
    """What was measured.

    :ivar rounds: of each round, of each peer, each figure.
    :ivar figures: of each peer, the median of each figure.
    :ivar starts: of each cold start, what the server wrote down (``CLOCK_MONOTONIC``).
    """

    rounds: list[dict[str, dict[str, float]]]
    figures: dict[str, dict[str, float]]
    starts: list[dict[str, float]]


Told = Callable[[str], None]


def _load(peer: Peer, kind: str, path: str, plan: Plan, connections: int) -> dict[str, float]:
    """Run the load generator once.

    :raises RuntimeError: the peer answered wrongly, or not in time.
    """
    command = [
        sys.executable,
        "-m",
        "bench.load",
        kind,
        "--port",
        str(peer.port),
        "--path",
        peer.prefix + path,
    ]
    for name, value in (
        ("--connections", connections),
        ("--rate", plan.rate),
        ("--seconds", plan.seconds),
        ("--warm-up", plan.warm_up),
        *(("--header", line) for line in peer.headers),
        *(("--watch", pid) for pid in peer.pids),
    ):
        command += [name, str(value)]
    limit = plan.seconds * 2 + plan.warm_up + LOAD_LIMIT
    try:
        done = subprocess.run(
            command, cwd=peers.ROOT, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the {kind} through {peer.name} did not end within {limit:g} s") from None
    if done.returncode != 0:
        raise RuntimeError(f"the {kind} through {peer.name} failed: {done.stderr.strip()[-1000:]}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _measure(peer: Peer, plan: Plan) -> dict[str, float]:
    """Every figure of one peer, once."""
    figures: dict[str, float] = {}
    for connections in plan.connections:
        got = _load(peer, "requests", "/json", plan, connections)
        figures[f"requests_per_second_{connections}"] = got["per_second"]
        if connections == 1:
            figures["first_byte_p50_ms"] = got["first_byte_p50"] * _MILLI
            figures["first_byte_p99_ms"] = got["first_byte_p99"] * _MILLI
        if connections == 16:
            figures["latency_16_p50_ms"] = got["latency_p50"] * _MILLI
            figures["latency_16_p99_ms"] = got["latency_p99"] * _MILLI
            if peer.pid is not None:
                figures["cpu_per_request_us"] = got["cpu_each"] * _MICRO
    got = _load(peer, "streams", "/stream", plan, plan.streams)
    figures["token_latency_p50_ms"] = got["latency_p50"] * _MILLI
    figures["token_latency_p99_ms"] = got["latency_p99"] * _MILLI
    if peer.pid is not None:
        figures["cpu_per_token_us"] = got["cpu_each"] * _MICRO
    return figures


def _cold_starts(plan: Plan, work: Path, tell: Told) -> list[dict[str, float]]:
    """What started servers wrote down: when each listened, first told its health, and got what was held.

    Each start is of another backend, with a delay of its own.
    """
    delays = random.Random(1)
    records = [work / f"start{number}.json" for number in range(plan.starts)]
    backends = {
        f"start{number}": {
            "runtime": "process",
            "engine": "generic",
            "command": [
                *(sys.executable, "-m", "bench.engine", "${port}"),
                *(f"{delays.uniform(*plan.delays):.4f}", str(record)),
            ],
            "cwd": str(peers.ROOT),
            "stop_grace": 2,
        }
        for number, record in enumerate(records)
    }
    found = []
    with peers.llmproxy(backends, work / "handover", route=None) as proxy:
        for number, record in enumerate(records):
            status, body = peers.get(
                proxy.port, f"/start{number}/json", proxy.headers, timeout=HANDOVER_LIMIT
            )
            if status != 200:
                raise RuntimeError(f"a cold start was answered with {status}: {body[:500]!r}")
            times = json.loads(record.read_text())
            found.append(times)
            stop = f"/api/backends/start{number}/stop?wait=1"
            peers.get(proxy.port, stop, proxy.headers, method="POST", timeout=HANDOVER_LIMIT)
            taken = (times["arrived"] - times["healthy"]) * _MILLI
            tell(f"start {number + 1} of {plan.starts}: handed over after {taken:.1f} ms")
    return found


def run(plan: Plan, work: Path, nginx: str | None, tell: Told) -> Results:
    """Measure everything.

    :param work: an empty folder for settings and logs.
    :param nginx: where nginx is; None: measure without it.
    :param tell: told of the progress, line by line.
    :raises RuntimeError: a peer does not start, or answers wrongly.
    """
    rounds: list[dict[str, dict[str, float]]] = []
    with ExitStack() as stack:
        port = stack.enter_context(peers.backend(work))
        measured: list[Peer] = [stack.enter_context(peers.direct(port))]
        if nginx is not None:
            measured.append(stack.enter_context(peers.nginx(nginx, port, work)))
        far = {"bench": {"runtime": "url", "engine": "generic", "url": f"http://127.0.0.1:{port}"}}
        measured.append(stack.enter_context(peers.llmproxy(far, work / "proxy", route="bench")))
        # What only a start needs may be given back first.
        time.sleep(plan.warm_up)
        memory = {peer.name: resident_bytes(peer.pids) / 1e6 for peer in measured if peer.pid is not None}
        for number in range(plan.rounds):
            round_ = {}
            for peer in measured:
                tell(f"round {number + 1} of {plan.rounds}: {peer.name}")
                round_[peer.name] = _measure(peer, plan)
            for name, values in added(round_).items():
                round_[name] |= values
            rounds.append(round_)
    figures = medians(rounds)
    for name, value in memory.items():
        figures[name]["idle_memory_mb"] = value
    starts = _cold_starts(plan, work, tell)
    figures["llmproxy"] |= _of_starts(starts)
    return Results(rounds, figures, starts)


def _of_starts(starts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    taken = [(times["arrived"] - times["healthy"]) * _MILLI for times in starts]
    seen = [(times["arrived"] - times["listening"]) * _MILLI for times in starts]
    return {
        "handover_p50_ms": percentile(taken, 0.50),
        "handover_p95_ms": percentile(taken, 0.95),
        "readiness_seen_p50_ms": percentile(seen, 0.50),
    }
