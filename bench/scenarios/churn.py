"""Whether memory grows while clients of all kinds come and go for minutes."""

from __future__ import annotations

from bench.figures import Figure, Round
from bench.peers import ROUTE, far_backend
from bench.sleepers import sleeper
from bench.stage import MEGABYTE, Scenario, Stage, finish
from bench.traffic import CHAT

__all__ = ["SCENARIO"]

CLIENTS = 16

IDLE = 1.0
"""Seconds after which the backend that is asked now and then is stopped."""

SLACK = 90.0
"""Seconds that the last clients may take."""


def _run(stage: Stage) -> list[Round]:
    seconds, folder = stage.plan.churn, stage.folder("churn")
    if not seconds:
        return []
    stage.tell(f"  {seconds / 60:.1f} minutes of it")
    backends = {
        ROUTE: far_backend(stage.backend),
        "cold": sleeper(folder / "record.json", "0", idle=IDLE),
    }
    with stage.llmproxy(backends, folder, pinned=False) as proxy:
        options = {"connections": CLIENTS, "seconds": seconds, "watch": [proxy.pid]}
        # So that the backend has been stopped, and has to be started again, each time.
        cold = {"also": f"/cold{CHAT}", "pause": min(IDLE + 2.0, seconds / 3)}
        with stage.loading(proxy, "churn", **options, **cold) as load:  # type: ignore[arg-type]
            got = finish(load, proxy, "churn", seconds + SLACK)
    figures = {
        "churn_growth_mb": (got["second_half"] - got["first_half"]) / MEGABYTE,
        "churn_last_mb": got["last"] / MEGABYTE,
        "churn_thousand_requests": got["count"] / 1000,
    }
    return [{"llmproxy": figures}]


SCENARIO = Scenario(
    "churn",
    "minutes of clients that come and go",
    (
        Figure("churn_growth_mb", "churn: memory, second half less first", "MB"),
        Figure("churn_last_mb", "churn: memory at the end", "MB", 1),
        Figure("churn_thousand_requests", "churn: requests", "1000", 1),
    ),
    (),
    _run,
)
