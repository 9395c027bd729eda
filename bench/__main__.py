"""``python -m bench``: run the suite, show a table, write a file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from attrs import asdict
from rich.console import Console
from rich.table import Table

import llmproxy
from bench import peers
from bench.figures import FIGURES, GOALS, Values, met, ratios
from bench.suite import FULL, QUICK, Results, run

WIDTH = 130
"""Columns of the table where the output is no terminal."""

PEERS = ("direct", "nginx", "llmproxy")


def _made_with(nginx: str | None) -> dict[str, Any]:
    told = None
    if nginx is not None:
        asked = subprocess.run([nginx, "-v"], capture_output=True, text=True, timeout=10, check=False)
        told = asked.stderr.strip().rpartition("/")[2]
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "twisted": version("Twisted"),
        "httptools": version("httptools"),
        "llmproxy": llmproxy.__version__,
        "nginx": told,
    }


def _show(results: Results, console: Console) -> None:
    figures: Values = results.figures
    relative = ratios(figures).get("llmproxy", {})
    limits = {goal.key: met(goal, figures) for goal in GOALS}
    table = Table(title="llmproxy beside its peers (medians)")
    table.add_column("figure")
    table.add_column("unit")
    for peer in PEERS:
        table.add_column(peer, justify="right")
    table.add_column("llmproxy / nginx", justify="right")
    table.add_column("goal", justify="right")
    for figure in FIGURES:
        cells = [figures.get(peer, {}).get(figure.key) for peer in PEERS]
        limit = limits.get(figure.key)
        table.add_row(
            figure.title,
            figure.unit,
            *("-" if cell is None else f"{cell:.{figure.digits}f}" for cell in cells),
            f"{relative[figure.key]:.2f}" if figure.key in relative else "",
            "" if limit is None else f"<= {limit[0]:.{figure.digits}f} {'met' if limit[1] else 'missed'}",
        )
    console.print(table)


def _document(results: Results, made_with: Mapping[str, Any], plan: Any) -> dict[str, Any]:
    return {
        "made_with": made_with,
        "plan": asdict(plan),
        "figures": results.figures,
        "ratios_to_nginx": ratios(results.figures),
        "goals": {
            goal.key: {"limit": limit[0], "met": limit[1]}
            for goal in GOALS
            if (limit := met(goal, results.figures)) is not None
        },
        "rounds": results.rounds,
        "starts": results.starts,
    }


def _end(*_: object) -> NoReturn:
    # As an exception, so that every process that was started is ended on the way out.
    raise SystemExit(1)


def main(arguments: Sequence[str]) -> int:
    """Run the suite; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure llmproxy beside other proxies; see docs/benchmarks.md."
    )
    parser.add_argument("--quick", action="store_true", help="some seconds in all: shows only that it works")
    parser.add_argument("--rounds", type=int, help="turns of all peers [3]")
    parser.add_argument("--output", type=Path, default=peers.ROOT / "build" / "bench.json", metavar="FILE")
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = type(plan)(**{**asdict(plan), "rounds": options.rounds})
    signal.signal(signal.SIGTERM, _end)
    progress = Console(stderr=True)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    nginx = peers.nginx_path()
    if nginx is None:
        progress.print("nginx is not installed (Debian: apt install nginx-light): measuring without it")
    made_with = _made_with(nginx)
    work = Path(tempfile.mkdtemp(prefix="llmproxy-bench-"))
    try:
        results = run(plan, work, nginx, lambda line: progress.print(line, highlight=False))
    except RuntimeError as cause:
        progress.print(f"bench: {cause}", markup=False, highlight=False)
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _show(results, console)
    console.print(", ".join(f"{name} {value}" for name, value in made_with.items() if value), highlight=False)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(_document(results, made_with, plan), indent=1) + "\n")
    console.print(f"written: {options.output}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
