"""``python -m bench.simulate``: what llmproxy's scheduling makes of a load, beside two other ways.

Nothing is started and no time passes: models are simulated on a clock of their own, and decisions are those
of :mod:`llmproxy.scheduling.placement`.  The same arguments give the same figures, on any machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from bench.simulation.loads import LOADS, Request, kinds, made_up, trace
from bench.simulation.outcome import Outcome, bound, by_model, comparison, outcome
from bench.simulation.policies import FirstCome, LeastRecent, Placement
from bench.simulation.world import Policy, World
from llmproxy.scheduling.claims import SHARES, Room
from llmproxy.scheduling.placement import Rules

__all__ = ["POLICIES", "main", "simulate"]

WIDTH = 130
"""Columns of the tables where the output is no terminal."""

HOST = 4 * SHARES
"""Host memory for sleepers, with ``--sleep``: four times that of the GPU."""

POLICIES: Mapping[str, Callable[[Rules, float], Policy]] = {
    "llmproxy": Placement,
    "least recently used": lambda rules, min_residency: LeastRecent(),
    "first come": lambda rules, min_residency: FirstCome(),
}


def simulate(
    requests: Sequence[Request],
    names: Sequence[str],
    *,
    seed: int = 1,
    claims: Sequence[float] = (),
    max_wait: float = 30.0,
    min_residency: float = 30.0,
    parallel: int = 256,
    sleep: bool = False,
) -> list[Outcome]:
    """Replay requests under each policy."""
    rules = Rules(max_wait, HOST if sleep else 0)
    found = []
    for name, policy in POLICIES.items():
        fleet = kinds(names, seed, claims, sleep=sleep)
        world = World(policy(rules, min_residency), fleet, {"0": Room()}, seed, parallel)
        world.replay(requests)
        limit = None
        if name == "llmproxy":
            limit = bound(world, requests, max_wait=max_wait, min_residency=min_residency)
        found.append(outcome(name, world, limit))
    return found


def _shares(value: str) -> tuple[float, ...]:
    try:
        found = tuple(float(one) for one in value.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value}: numbers with commas between them are wanted") from None
    if not all(0 < one <= 1 for one in found):
        raise argparse.ArgumentTypeError(f"{value}: shares are more than 0 and at most 1")
    return found


def _at_least(least: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(value: str) -> float:
        found = kind(value)
        if not least <= found < float("inf"):
            raise argparse.ArgumentTypeError(f"{value}: {least:g} or more is wanted")
        return found

    number.__name__ = kind.__name__
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulate",
        description="Simulate models that do not all fit on a GPU, under llmproxy's scheduling and two"
        " others; docs/benchmarks.md tells how to read it.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--load", choices=list(LOADS), default="alternating", help="made up [alternating]")
    source.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="replayed: CSV or JSON lines of time, model, seconds and, if need be, priority",
    )
    parser.add_argument(
        "--models", type=_at_least(1, int), default=8, metavar="N", help="of a made-up load [8]"
    )
    parser.add_argument(
        "--rate", type=_at_least(0.01, float), default=12.0, help="its requests a minute [12]"
    )
    parser.add_argument("--minutes", type=_at_least(0.1, float), default=60.0, help="its length [60]")
    parser.add_argument("--seed", type=int, default=1, help="of all that is left to chance [1]")
    parser.add_argument(
        "--claims",
        type=_shares,
        default=(),
        metavar="A,B",
        help="shares of the GPU that the models claim, in turns",
    )
    parser.add_argument(
        "--sleep", action="store_true", help="models can sleep; only llmproxy makes use of it"
    )
    parser.add_argument(
        "--parallel",
        type=_at_least(1, int),
        default=256,
        metavar="N",
        help="answers of a model at once [256]",
    )
    parser.add_argument(
        "--max-wait", type=_at_least(0, float), default=30.0, help="max_wait_before_drain [30]"
    )
    parser.add_argument("--min-residency", type=_at_least(0, float), default=30.0, help="min_residency [30]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Simulate; the exit status."""
    options = _parser().parse_args(arguments)
    problems = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if options.trace is not None:
        try:
            requests = trace(options.trace.read_text("utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as cause:
            problems.print(f"simulate: {options.trace}: {cause}")
            return 1
        except ValueError as cause:
            problems.print(f"simulate: {options.trace}, {cause}")
            return 1
        names = sorted({one.model for one in requests})
        title = f"{options.trace.name}: {len(requests)} requests for {len(names)} models"
    else:
        names = [f"m{number:03d}" for number in range(options.models)]
        requests = made_up(options.load, names, options.seed, options.rate, options.minutes)
        asked = f"{len(requests)} requests for {len(names)} models"
        title = f"{options.load}: {asked} in {options.minutes:g} minutes, seed {options.seed}"
    if not requests:
        problems.print("simulate: nobody asks for anything in that time")
        return 1
    outcomes = simulate(
        requests,
        names,
        seed=options.seed,
        claims=options.claims,
        max_wait=options.max_wait,
        min_residency=options.min_residency,
        parallel=options.parallel,
        sleep=options.sleep,
    )
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(comparison(outcomes, title))
    console.print(by_model(outcomes))
    if options.json is not None:
        document = {"title": title, "policies": [one.document() for one in outcomes]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
