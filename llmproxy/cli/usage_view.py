"""How usage is shown.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from llmproxy.cli.columns import Column, table
from llmproxy.words import duration

__all__ = ["usage_table"]

# In the order in which they are given up; one that has a name of three letters when there is little room.
_COUNTS = (
    ("requests", "REQUESTS", "REQ"),
    ("prompt_tokens", "PROMPT TOKENS", "PROMPT"),
    ("completion_tokens", "COMPLETION TOKENS", "COMPLETION"),
    ("estimated_tokens", "ESTIMATED", "EST."),
)
_TIMES = (("held_seconds", "HELD"), ("gpu_seconds", "GPU TIME"))


def usage_table(by: Sequence[str], rows: Sequence[Mapping[str, Any]], width: int | None) -> list[Text]:
    """A line for each row, and one for all of them together where there are several."""
    shown = list(rows)
    if len(shown) > 1:
        shown.append(_total(by, rows))
    style = (
        ["", *[""] * (len(rows) - 1), "bold"][: len(shown)] if len(shown) > len(rows) else [""] * len(rows)
    )

    def cells(what: Sequence[str]) -> list[Text]:
        return [Text(cell, style=style[row]) for row, cell in enumerate(what)]

    columns = [Column(name.upper(), cells([str(row.get(name) or "-") for row in shown])) for name in by]
    for place, (name, title, brief) in enumerate(_COUNTS):
        if name == "estimated_tokens" and not any(row.get(name) for row in rows):
            continue
        counts = cells([f"{row.get(name) or 0:,}" for row in shown])
        columns.append(Column(title, counts, right=True, brief=(2, brief), drop=20 - place))
    for place, (name, title) in enumerate(_TIMES):
        if any(row.get(name) is not None for row in rows):
            times = cells(["" if row.get(name) is None else duration(row[name]) for row in shown])
            columns.append(Column(title, times, right=True, drop=10 + place))
    return table(columns, width)


def _total(by: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = dict.fromkeys(by, "")
    total[by[0]] = "all"
    for name in (*(count[0] for count in _COUNTS), *(time[0] for time in _TIMES)):
        known = [row[name] for row in rows if row.get(name) is not None]
        total[name] = sum(known) if known else None
    return total
