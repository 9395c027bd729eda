"""``python -m bench.simulate_swarm``: what llmproxy makes of a Swarm of a thousand nodes and ten thousand
models.

Nothing is started and no time passes: nodes, tasks and requests are simulated on a clock of their own, while
the fleet, its backends, its scheduler and its rules are llmproxy's, and the processor time that these take is
measured. The same arguments give the same figures, but for the processor's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import evolve
from rich.console import Console

from bench.swarm.pressing import RULES
from bench.swarm.tables import carried, comparison
from bench.swarm.world import Setting, World

__all__ = ["main"]

WIDTH = 180
"""Columns of the tables where the output is no terminal."""


def _at_least(least: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(value: str) -> float:
        found = kind(value)
        if not least <= found < float("inf"):
            raise argparse.ArgumentTypeError(f"{value}: {least:g} or more is wanted")
        return found

    number.__name__ = kind.__name__
    return number


def _rules(value: str) -> list[tuple[str, float | None]]:
    """``none,llmproxy:3600``: rules, each with an idle time of its own if need be."""
    found: list[tuple[str, float | None]] = []
    for one in value.split(","):
        name, colon, idle = one.partition(":")
        if name not in RULES:
            raise argparse.ArgumentTypeError(f"{name}: there are {', '.join(RULES)}")
        try:
            found.append((name, float(idle) if colon else None))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{one}: seconds are wanted behind the colon") from None
    return found


def _parser() -> argparse.ArgumentParser:
    normal = Setting()
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulate_swarm",
        description="Simulate a Swarm with more models than it has room for, under llmproxy's own fleet;"
        " docs/scaling.md tells how to read it.",
    )
    numbers: tuple[tuple[str, type[int] | type[float], float, str], ...] = (
        ("nodes", int, 1, "of 80, 160 or 320 GiB of GPU memory"),
        ("models", int, 1, "of 8 to 160 GiB"),
        ("rate", float, 0.001, "requests a second"),
        ("exponent", float, 0.0, "of Zipf's law"),
        ("minutes", float, 1, "that are counted"),
        ("warm", float, 0, "minutes before that"),
        ("idle", float, 1, "seconds without a request after which a model is stopped"),
        ("replicas", int, 1, "tasks of one model at most"),
        ("target", int, 1, "requests in flight for each task"),
        ("drift", float, 0, "seconds between two changes of rank; 0: none"),
        ("mtbf", float, 0, "days between two failures of one node; 0: none"),
        ("repair", float, 0, "minutes until it is back"),
        ("seed", int, 0, "of all that is left to chance"),
    )
    for name, kind, least, told in numbers:
        default = getattr(normal, name)
        parser.add_argument(
            f"--{name}",
            type=_at_least(least, kind),
            default=default,
            metavar="N",
            help=f"{told} [{default:g}]",
        )
    parser.add_argument(
        "--rules",
        type=_rules,
        default=[("none", None), ("llmproxy", None)],
        metavar="A,B:IDLE",
        help=f"who leaves while tasks are pending, a run for each: {', '.join(RULES)} [none,llmproxy]",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Simulate; the exit status."""
    options = vars(_parser().parse_args(arguments))
    rules, target = options.pop("rules"), options.pop("json")
    setting = Setting(**options)
    progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    outcomes = []
    for rule, idle in rules:
        one = evolve(setting, rule=rule, idle=setting.idle if idle is None else idle)
        progress.print(f"{rule}, idle {one.idle:g} s")
        outcomes.append(World(one, progress.print).run())
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    title = (
        f"{setting.nodes:,} nodes, {setting.models:,} models, {setting.rate:g} requests/s,"
        f" {setting.minutes:g} minutes, seed {setting.seed}"
    )
    console.print(comparison(outcomes, title))
    console.print(carried(outcomes))
    if target is not None:
        document = {"title": title, "runs": [one.document() for one in outcomes]}
        target.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
