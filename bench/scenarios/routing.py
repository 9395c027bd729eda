"""Whether a request costs more when there are many backends."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from bench.figures import Figure, Goal, Round
from bench.peers import ROUTE, Peer, far_backend
from bench.sleepers import sleeper
from bench.stage import MICRO, Scenario, Stage
from bench.traffic import CHAT

__all__ = ["SCENARIO"]

FEW = 3


def _start(stage: Stage, stack: ExitStack, name: str, count: int) -> Peer:
    folder = stage.folder(f"routing-{name}")
    backends: dict[str, Any] = {
        f"model{index}": sleeper(folder / f"{index}.json", "0", models=[f"vendor/model-{index}"])
        for index in range(count - 1)
    }
    # The last one is asked: whoever searched from the first on would be seen.
    backends[ROUTE] = far_backend(stage.backend)
    return stack.enter_context(stage.llmproxy(backends, folder))


def _run(stage: Stage) -> list[Round]:
    rounds: list[Round] = []
    with ExitStack() as stack:
        proxies = {
            "few": _start(stage, stack, "few", FEW),
            "large": _start(stage, stack, "large", stage.plan.backends),
        }
        for number in range(stage.plan.rounds):
            figures: dict[str, float] = {}
            for by, path in (("route", f"/{ROUTE}{CHAT}"), ("model", CHAT)):
                for name, proxy in proxies.items():
                    got = stage.load(proxy, "requests", path=path, connections=stage.plan.connections[1])
                    figures[f"by_{by}_{name}_us"] = got["cpu_each"] * MICRO
                figures[f"by_{by}_ratio"] = figures[f"by_{by}_large_us"] / figures[f"by_{by}_few_us"]
            rounds.append({"llmproxy": figures})
            stage.tell(f"  round {number + 1} of {stage.plan.rounds}")
    return rounds


SCENARIO = Scenario(
    "routing",
    "a request among 3 and among 1,000 backends",
    (
        Figure("by_route_few_us", "CPU per request by route, 3 backends", "us", 1),
        Figure("by_route_large_us", "CPU per request by route, 1,000 backends", "us", 1),
        Figure("by_route_ratio", "CPU per request by route, 1,000 over 3", ""),
        Figure("by_model_few_us", "CPU per request by model, 3 backends", "us", 1),
        Figure("by_model_large_us", "CPU per request by model, 1,000 backends", "us", 1),
        Figure("by_model_ratio", "CPU per request by model, 1,000 over 3", ""),
    ),
    (Goal("by_route_ratio", 1.15), Goal("by_model_ratio", 1.15)),
    _run,
)
