"""What a run has written, as the rows of two tables.

``python -m bench.tables build/bench.json`` prints them as docs/benchmarks.md has them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import Figure, spreads
from bench.peers import NAMES
from bench.scenarios import SCENARIOS

__all__ = ["FIRST_COLUMNS", "GOAL_COLUMNS", "columns", "figure_rows", "goal_rows", "markdown"]

FIRST_COLUMNS = ("figure", "unit")
LAST_COLUMNS = ("lowest..highest", "/ nginx", "/ node")
GOAL_COLUMNS = ("goal", "measured", "at most", "that is", "ratio", "")

_OUTCOMES = {True: "met", False: "missed", None: "open"}

Document = Mapping[str, Any]
Row = list[str]


def columns(document: Document) -> Row:
    """The head of the first table: a column for each peer that was measured."""
    return [*FIRST_COLUMNS, *(name for name in NAMES if name in document["figures"]), *LAST_COLUMNS]


def _number(value: float | None, figure: Figure) -> str:
    return "-" if value is None else f"{value:.{figure.digits}f}"


def figure_rows(document: Document) -> Iterator[tuple[str, list[Row]]]:
    """Of each scenario, its figures; the range is that of llmproxy over the rounds."""
    figures = document["figures"]
    shown = [name for name in NAMES if name in figures]
    for scenario in SCENARIOS:
        ranges = spreads(document["rounds"].get(scenario.name, [])).get("llmproxy", {})
        rows = []
        for figure in scenario.figures:
            cells = [figures[name].get(figure.key) for name in shown]
            if all(cell is None for cell in cells):
                continue
            low, high = ranges.get(figure.key, (0.0, 0.0))
            to = [document[f"ratios_to_{name}"].get(figure.key) for name in ("nginx", "node")]
            rows.append(
                [
                    figure.title,
                    figure.unit,
                    *(_number(cell, figure) for cell in cells),
                    f"{_number(low, figure)}..{_number(high, figure)}" if high > low else "",
                    *("" if ratio is None else f"{ratio:.2f}" for ratio in to),
                ]
            )
        if rows:
            yield scenario.name, rows


def goal_rows(document: Document) -> list[Row]:
    """The goals beside what was measured."""
    known = {figure.key: figure for scenario in SCENARIOS for figure in scenario.figures}
    rows = []
    for goal in document["goals"]:
        figure = known[goal["figure"]]
        rows.append(
            [
                figure.title,
                f"{_number(goal['value'], figure)} {figure.unit}".strip(),
                f"{_number(goal['limit'], figure)} {figure.unit}".strip(),
                "" if goal["peer"] is None else f"{goal['times']:g} x {goal['peer']}",
                "" if goal["ratio"] is None else f"{goal['ratio']:.2f}",
                _OUTCOMES[goal["met"]],
            ]
        )
    return rows


def _lines(head: Sequence[str], rows: Sequence[Row], left: Sequence[str]) -> Iterator[str]:
    rules = ["---" if name in left else "---:" for name in head]
    for cells in (head, rules, *rows):
        yield "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def markdown(document: Document) -> Iterator[str]:
    """The lines of both tables."""
    rows = [row for _, several in figure_rows(document) for row in several]
    yield from _lines(columns(document), rows, FIRST_COLUMNS)
    yield ""
    yield from _lines(GOAL_COLUMNS, goal_rows(document), ("goal", "that is", ""))


if __name__ == "__main__":
    for line in markdown(json.loads(Path(sys.argv[1]).read_text())):
        print(line)
