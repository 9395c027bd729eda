"""How much later an answer begins than without a proxy."""

from __future__ import annotations

from bench.figures import Figure, Goal, Round, added
from bench.peers import Peer
from bench.stage import MILLI, Scenario, Stage

__all__ = ["SCENARIO"]

_CASES = (("one", 1, 0.002), ("fifty", 50, 0.1))
"""Requests at once, and the seconds for which the backend thinks about each, more or less: so that fifty are
no more than 500 a second, which no peer has to queue."""

_KEYS = [f"first_byte_{name}_{share}_ms" for name, _, _ in _CASES for share in ("p50", "p99")]


def _run(stage: Stage) -> list[Round]:
    def measure(peer: Peer) -> dict[str, float]:
        figures = {}
        for name, connections, wait in _CASES:
            got = stage.load(peer, "requests", query=f"?wait={wait}", connections=connections)
            for share in ("p50", "p99"):
                figures[f"first_byte_{name}_{share}_ms"] = got[f"on_the_way_{share}"] * MILLI
        return figures

    rounds = stage.rounds(measure)
    for round_ in rounds:
        for peer, values in added(round_, _KEYS).items():
            round_[peer] |= values
    return rounds


SCENARIO = Scenario(
    "firstbyte",
    "time to the first byte, less the backend's own",
    (
        Figure("first_byte_one_p50_ms", "first byte, 1 request, p50", "ms", 3),
        Figure("first_byte_one_p99_ms", "first byte, 1 request, p99", "ms", 3),
        Figure("added_first_byte_one_p50_ms", "first byte added, 1 request, p50", "ms", 3),
        Figure("added_first_byte_one_p99_ms", "first byte added, 1 request, p99", "ms", 3),
        Figure("first_byte_fifty_p50_ms", "first byte, 50 requests at once, p50", "ms", 3),
        Figure("first_byte_fifty_p99_ms", "first byte, 50 requests at once, p99", "ms", 3),
        Figure("added_first_byte_fifty_p50_ms", "first byte added, 50 at once, p50", "ms", 3),
        Figure("added_first_byte_fifty_p99_ms", "first byte added, 50 at once, p99", "ms", 3),
    ),
    (Goal("added_first_byte_one_p50_ms", 1.0),),
    _run,
)
