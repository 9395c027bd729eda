"""What is shown and what is written."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from attrs import asdict, define, field
from rich.table import Table

import llmproxy
from bench import loops
from bench.figures import Outcome, Round, medians, outcome, ratios, spreads
from bench.peers import NAMES, Tools
from bench.processes import ROOT
from bench.stage import QUICK, Plan, Scenario

__all__ = ["Report", "made_with"]

QUICK_REMARK = " of a quick run, which mean nothing"


def _version(command: Sequence[str]) -> str:
    asked = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return (asked.stdout + asked.stderr).strip().rpartition("/")[2].lstrip("v")


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return None
    return asked.stdout.strip() or None


def made_with(tools: Tools) -> dict[str, Any]:
    """What the figures were made with."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "twisted": version("Twisted"),
        "httptools": version("httptools"),
        "treq": version("treq"),
        "llmproxy": llmproxy.__version__,
        "commit": _commit(),
        "nginx": None if tools.nginx is None else _version([tools.nginx, "-v"]),
        "node": None if tools.node is None else _version([tools.node, "--version"]),
        "load": loops.name(),
        "load_average_before": round(os.getloadavg()[0], 2),
    }


@define
class Report:
    """All that was measured.

    :ivar rounds: of each scenario, its rounds.
    :ivar seconds: of each scenario, how long it took.
    """

    plan: Plan
    made_with: Mapping[str, Any]
    scenarios: list[Scenario] = field(factory=list)
    rounds: dict[str, list[Round]] = field(factory=dict)
    seconds: dict[str, float] = field(factory=dict)

    def add(self, scenario: Scenario, rounds: list[Round], seconds: float) -> None:
        """What one scenario has found."""
        self.scenarios.append(scenario)
        self.rounds[scenario.name] = rounds
        self.seconds[scenario.name] = round(seconds, 1)

    @property
    def figures(self) -> Round:
        """Of each peer, the median of each figure."""
        found: Round = {}
        for rounds in self.rounds.values():
            for peer, values in medians(rounds).items():
                found.setdefault(peer, {}).update(values)
        return found

    @property
    def outcomes(self) -> list[Outcome]:
        """Of each goal that can be told."""
        figures = self.figures
        goals = [goal for scenario in self.scenarios for goal in scenario.goals]
        return [found for goal in goals if (found := outcome(goal, figures)) is not None]

    def tables(self) -> list[Table]:
        """The figures and the goals."""
        return [self._figures(), self._goals()] if self.outcomes else [self._figures()]

    def _figures(self) -> Table:
        figures = self.figures
        shown = [name for name in NAMES if name in figures]
        table = Table(title=f"llmproxy beside its peers: medians{QUICK_REMARK if self.plan == QUICK else ''}")
        table.add_column("figure")
        table.add_column("unit")
        for name in shown:
            table.add_column(name, justify="right")
        for title in ("lowest..highest", "/ nginx", "/ node"):
            table.add_column(title, justify="right")
        to_nginx, to_node = ratios(figures, "nginx"), ratios(figures, "node")
        for scenario in self.scenarios:
            ranges = spreads(self.rounds[scenario.name]).get("llmproxy", {})
            several = len(self.rounds[scenario.name]) > 1
            for figure in scenario.figures:
                cells = [figures[name].get(figure.key) for name in shown]
                if all(cell is None for cell in cells):
                    continue
                low, high = ranges.get(figure.key, (0.0, 0.0))
                spread = f"{low:.{figure.digits}f}..{high:.{figure.digits}f}"
                table.add_row(
                    figure.title,
                    figure.unit,
                    *("-" if cell is None else f"{cell:.{figure.digits}f}" for cell in cells),
                    spread if several and high > low else "",
                    f"{to_nginx[figure.key]:.2f}" if figure.key in to_nginx else "",
                    f"{to_node[figure.key]:.2f}" if figure.key in to_node else "",
                )
            table.add_section()
        return table

    def _goals(self) -> Table:
        known = {figure.key: figure for scenario in self.scenarios for figure in scenario.figures}
        table = Table(title="goals for llmproxy")
        for title in ("figure", "measured", "at most", "that is", "ratio", ""):
            table.add_column(title, justify="left" if title in ("figure", "that is", "") else "right")
        for found in self.outcomes:
            figure, goal = known[found.goal.key], found.goal
            table.add_row(
                figure.title.strip(),
                f"{found.value:.{figure.digits}f} {figure.unit}",
                f"{found.limit:.{figure.digits}f} {figure.unit}",
                "" if goal.peer is None else f"{goal.limit:g} x {goal.peer}",
                "" if found.ratio is None else f"{found.ratio:.2f}",
                {True: "met", False: "missed", None: "open"}[found.met],
            )
        return table

    def document(self, notes: Sequence[str]) -> dict[str, Any]:
        """The same for programs."""
        return {
            "made_with": dict(self.made_with),
            "notes": list(notes),
            "plan": asdict(self.plan),
            "seconds": self.seconds,
            "figures": self.figures,
            "ratios_to_nginx": ratios(self.figures, "nginx"),
            "ratios_to_node": ratios(self.figures, "node"),
            "goals": [
                {
                    "figure": found.goal.key,
                    "value": found.value,
                    "limit": found.limit,
                    "times": found.goal.limit if found.goal.peer else None,
                    "peer": found.goal.peer,
                    "ratio": found.ratio,
                    "met": found.met,
                }
                for found in self.outcomes
            ],
            "rounds": self.rounds,
        }
