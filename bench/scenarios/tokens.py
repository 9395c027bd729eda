"""What a streamed token costs, and how much later it comes."""

from __future__ import annotations

from bench.figures import Figure, Goal, Round, added
from bench.peers import Peer
from bench.stage import MICRO, MILLI, Scenario, Stage

__all__ = ["SCENARIO"]

_KEYS = [f"{case}_latency_{share}_ms" for case in ("token", "crowd") for share in ("p50", "p99")]


def _run(stage: Stage) -> list[Round]:
    plan = stage.plan
    cases = {"token": (plan.streams, plan.rate), "crowd": (plan.crowd, plan.crowd_rate)}

    def measure(peer: Peer) -> dict[str, float]:
        figures = {}
        for case, (connections, rate) in cases.items():
            # That all streams are open, and no more are being opened.
            warm_up = plan.warm_up + connections / 1000
            got = stage.load(peer, "streams", connections=connections, rate=rate, warm_up=warm_up)
            for share in ("p50", "p99"):
                figures[f"{case}_latency_{share}_ms"] = got[f"latency_{share}"] * MILLI
            if peer.pid is not None:
                figures[f"cpu_per_{case}_us"] = got["cpu_each"] * MICRO
        return figures

    rounds = stage.rounds(measure)
    for round_ in rounds:
        for peer, values in added(round_, _KEYS).items():
            round_[peer] |= values
    return rounds


SCENARIO = Scenario(
    "tokens",
    "50 streams of 50 tokens/s, and 1,000 of 10",
    (
        Figure("cpu_per_token_us", "CPU per token, 50 streams of 50/s", "us", 1),
        Figure("token_latency_p50_ms", "token latency, 50 streams, p50", "ms", 3),
        Figure("token_latency_p99_ms", "token latency, 50 streams, p99", "ms", 3),
        Figure("added_token_latency_p50_ms", "token latency added, 50 streams, p50", "ms", 3),
        Figure("added_token_latency_p99_ms", "token latency added, 50 streams, p99", "ms", 3),
        Figure("cpu_per_crowd_us", "CPU per token, 1,000 streams of 10/s", "us", 1),
        Figure("crowd_latency_p50_ms", "token latency, 1,000 streams, p50", "ms", 3),
        Figure("crowd_latency_p99_ms", "token latency, 1,000 streams, p99", "ms", 3),
        Figure("added_crowd_latency_p50_ms", "token latency added, 1,000 streams, p50", "ms", 3),
        Figure("added_crowd_latency_p99_ms", "token latency added, 1,000 streams, p99", "ms", 3),
    ),
    (
        Goal("cpu_per_token_us", 2.0, "nginx"),
        Goal("cpu_per_token_us", 1.0, "node"),
        Goal("added_token_latency_p99_ms", 2.0, "nginx"),
    ),
    _run,
)
