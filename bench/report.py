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
from rich.console import Console
from rich.table import Table

import llmproxy
from bench import loops, tables
from bench.figures import Outcome, Round, medians, outcome, ratios
from bench.peers import Tools
from bench.processes import ROOT
from bench.stage import QUICK, Plan, Scenario

__all__ = ["Report", "made_with"]


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
        "reactor": tools.reactor,
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
        told = [outcome(goal, figures, self.ratios(goal.peer)) for goal in goals]
        return [found for found in told if found is not None]

    def ratios(self, peer: str | None) -> dict[str, float]:
        """Each figure of llmproxy over that peer's."""
        found: dict[str, float] = {}
        for rounds in self.rounds.values() if peer is not None else ():
            found |= ratios(rounds, str(peer))
        return found

    def show(self, console: Console, notes: Sequence[str]) -> None:
        """Both tables, the notes, and what all was made with."""
        document = self.document(notes)
        remark = " of a quick run, which mean nothing" if self.plan == QUICK else ""
        figures = Table(title=f"llmproxy beside its peers: medians{remark}")
        for name in tables.columns(document):
            figures.add_column(name, justify="left" if name in tables.FIRST_COLUMNS else "right")
        for _, rows in tables.figure_rows(document):
            for row in rows:
                figures.add_row(*row)
            figures.add_section()
        console.print(figures)
        goals = Table(title="goals for llmproxy")
        for name in tables.GOAL_COLUMNS:
            goals.add_column(name, justify="right" if name in ("measured", "at most", "ratio") else "left")
        for row in tables.goal_rows(document):
            goals.add_row(*row)
        if goals.row_count:
            console.print(goals)
        told = ", ".join(f"{name} {value}" for name, value in self.made_with.items() if value is not None)
        for line in (*notes, told):
            console.print(line, highlight=False, markup=False)

    def document(self, notes: Sequence[str]) -> dict[str, Any]:
        """The same for programs."""
        return {
            "made_with": dict(self.made_with),
            "notes": list(notes),
            "plan": asdict(self.plan),
            "seconds": self.seconds,
            "figures": self.figures,
            "ratios_to_nginx": self.ratios("nginx"),
            "ratios_to_node": self.ratios("node"),
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
