"""One large answer and one large request, and the memory that they take."""

from __future__ import annotations

from bench.figures import Figure, Round
from bench.peers import Peer
from bench.stage import MEGABYTE, Scenario, Stage

__all__ = ["SCENARIO"]

LIMIT = 60.0
"""Seconds that one transfer may take."""


def _run(stage: Stage) -> list[Round]:
    sizes = {"download": stage.plan.download, "upload": stage.plan.upload}

    def measure(peer: Peer) -> dict[str, float]:
        figures = {}
        for kind, size in sizes.items():
            got = stage.load(peer, kind, size=size, seconds=LIMIT)
            figures[f"{kind}_mb_per_second"] = size / MEGABYTE / got["seconds"]
            if peer.pid is not None:
                figures[f"{kind}_cpu_ms_per_mb"] = got["cpu"] * 1000 / (size / MEGABYTE)
                figures[f"{kind}_growth_mb"] = got["growth"] / MEGABYTE
        return figures

    return stage.rounds(measure)


SCENARIO = Scenario(
    "large",
    "an answer of 1 GiB and a request of 64 MiB",
    (
        Figure("download_mb_per_second", "answer of 1 GiB", "MB/s", 0),
        Figure("download_cpu_ms_per_mb", "answer of 1 GiB, CPU", "ms/MB", 3),
        Figure("download_growth_mb", "answer of 1 GiB, growth of peak memory", "MB", 1),
        Figure("upload_mb_per_second", "request of 64 MiB", "MB/s", 0),
        Figure("upload_cpu_ms_per_mb", "request of 64 MiB, CPU", "ms/MB", 3),
        Figure("upload_growth_mb", "request of 64 MiB, growth of peak memory", "MB", 1),
    ),
    (),
    _run,
)
