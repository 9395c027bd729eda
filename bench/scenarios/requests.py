"""What a small request costs, and how many of them one core answers."""

from __future__ import annotations

from bench.figures import Figure, Goal, Round
from bench.peers import Peer
from bench.stage import MICRO, MILLI, Scenario, Stage

__all__ = ["SCENARIO"]

_NAMES = ("one", "some", "many")


def _run(stage: Stage) -> list[Round]:
    def measure(peer: Peer) -> dict[str, float]:
        figures = {}
        for name, connections in zip(_NAMES, stage.plan.connections, strict=True):
            got = stage.load(peer, "requests", connections=connections)
            figures[f"requests_per_second_{name}"] = got["per_second"]
            figures[f"request_{name}_p50_ms"] = got["latency_p50"] * MILLI
            figures[f"request_{name}_p99_ms"] = got["latency_p99"] * MILLI
            if peer.pid is not None:
                figures[f"cpu_per_request_{name}_us"] = got["cpu_each"] * MICRO
        return figures

    return stage.rounds(measure)


SCENARIO = Scenario(
    "requests",
    "small requests on 1, 16 and 256 connections",
    (
        Figure("cpu_per_request_one_us", "CPU per small request, 1 connection", "us", 1),
        Figure("cpu_per_request_some_us", "CPU per small request, 16 connections", "us", 1),
        Figure("cpu_per_request_many_us", "CPU per small request, 256 connections", "us", 1),
        Figure("requests_per_second_one", "requests per second, 1 connection", "1/s", 0),
        Figure("requests_per_second_some", "requests per second, 16 connections", "1/s", 0),
        Figure("requests_per_second_many", "requests per second, 256 connections", "1/s", 0),
        Figure("request_one_p50_ms", "time of a request, 1 connection, p50", "ms", 3),
        Figure("request_one_p99_ms", "time of a request, 1 connection, p99", "ms", 3),
        Figure("request_some_p50_ms", "time of a request, 16 connections, p50", "ms"),
        Figure("request_some_p99_ms", "time of a request, 16 connections, p99", "ms"),
        Figure("request_many_p50_ms", "time of a request, 256 connections, p50", "ms"),
        Figure("request_many_p99_ms", "time of a request, 256 connections, p99", "ms"),
    ),
    (
        Goal("cpu_per_request_some_us", 3.5, "nginx"),
        Goal("cpu_per_request_some_us", 0.6, "node"),
    ),
    _run,
)
