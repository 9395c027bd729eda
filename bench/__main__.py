"""``python -m bench``: run the suite, show tables, write a file."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from attrs import evolve
from rich.console import Console

from bench import loops, node, peers
from bench.processes import ROOT
from bench.profiler import Profiler
from bench.report import Report, made_with
from bench.scenarios import SCENARIOS
from bench.stage import FULL, QUICK, Plan, Stage

WIDTH = 150
"""Columns of the tables where the output is no terminal."""


def _end(number: int, _: object) -> NoReturn:
    # As an exception, so that every process that was started is ended on the way out; once, so that nothing
    # breaks that off.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _names(known: Sequence[str], value: str) -> list[str]:
    asked = value.split(",")
    if unknown := [name for name in asked if name not in known]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(known)}")
    return [name for name in known if name in asked]


def _parser() -> argparse.ArgumentParser:
    names = [scenario.name for scenario in SCENARIOS]
    told = "\n".join(f"  {scenario.name:10} {scenario.about}" for scenario in SCENARIOS)
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure llmproxy beside other proxies; docs/benchmarks.md tells how to read it.",
        epilog=f"scenarios:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="everything in tiny form: shows only that it works"
    )
    parser.add_argument(
        "--only", type=lambda value: _names(names, value), metavar="A,B", help="these scenarios"
    )
    parser.add_argument(
        "--peers",
        type=lambda value: _names(peers.NAMES, value),
        metavar="A,B",
        help="these peers, llmproxy too",
    )
    parser.add_argument("--rounds", type=int, help="turns of all peers [5]")
    parser.add_argument("--seconds", type=float, help="length of each load [2]")
    parser.add_argument("--churn", type=float, metavar="MINUTES", help="length of the churn; 0: none [10]")
    parser.add_argument(
        "--profile", action="store_true", help="look into llmproxy with py-spy; its figures mean less then"
    )
    parser.add_argument("--reactor", help="twistd's reactor for llmproxy, such as uvloop")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json", metavar="FILE")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = evolve(plan, rounds=options.rounds)
    if options.seconds:
        plan = evolve(plan, seconds=options.seconds)
    if options.churn is not None:
        plan = evolve(plan, churn=options.churn * 60)
    return plan


def main(arguments: Sequence[str]) -> int:
    """Run the suite; the exit status."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    plan = _plan(options)
    wanted = [name for name in peers.NAMES if name == "llmproxy" or name in (options.peers or peers.NAMES)]
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        progress.print(line)

    nginx = peers.nginx_path() if "nginx" in wanted else None
    if nginx is None and "nginx" in wanted:
        note("nginx is not installed (Debian, Ubuntu: apt install nginx-light): measuring without it")
    tools = peers.Tools(nginx, node.find(note) if "node" in wanted else None, options.reactor)
    report = Report(plan, made_with(tools))
    work = Path(tempfile.mkdtemp(prefix="llmproxy-bench-"))
    try:
        with ExitStack() as stack:
            # Called in reverse: the proxies end, then what looks into them does.
            profiler = Profiler(ROOT / "build" / "profile") if options.profile else None
            if profiler is not None:
                stack.callback(profiler.close)
            stage = Stage(plan, work, tools, wanted, progress.print, loops.raise_open_files())
            stage.notes = notes
            stage.on_start = None if profiler is None else profiler.watch
            stack.callback(stage.close)
            for scenario in SCENARIOS:
                if options.only is None or scenario.name in options.only:
                    progress.print(f"{scenario.name}: {scenario.about}")
                    began = time.monotonic()
                    report.add(scenario, scenario.run(stage), time.monotonic() - began)
    except RuntimeError as cause:
        progress.print(f"bench: {cause}")
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report.show(console, notes)
    if profiler is not None:
        profiler.tell(progress.print)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report.document(notes), indent=1) + "\n")
    console.print(f"written: {options.output}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
