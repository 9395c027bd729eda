"""How the command shows the tasks of a backend that runs as several.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text

from llmproxy.cli.columns import Column, table

__all__ = ["SHORT_ID", "pending_lines", "pending_words", "replicas_words", "tasks_table"]

SHORT_ID = 12
"""Characters of a task's id that are shown, as Docker shows them; they tell tasks apart."""

_COLOURS = {"ready": "green", "starting": "yellow", "resting": "dim", "leaving": "yellow"}


def replicas_words(replicas: Mapping[str, Any]) -> str:
    """How many there are, and may be."""
    least, most, each = replicas["min"], replicas["max"], replicas["target_in_flight"]
    bounds = f"{least}" if least == most else f"{least} to {most}"
    load = "each request" if each == 1 else f"each {each} requests"
    return f"{replicas['ready']} of {replicas['wanted']} ready; {bounds} allowed, one for {load}"


def pending_words(replicas: Mapping[str, Any] | None) -> str:
    """Why not all that are wanted run; empty where nothing is said of that."""
    if not replicas or not replicas.get("pending"):
        return ""
    staying = [task for task in replicas["tasks"] if task["state"] != "leaving"]
    missing = max(1, replicas["wanted"] - len(staying))
    return f"{missing} task{' waits' if missing == 1 else 's wait'}: {replicas['pending']}"


def pending_lines(backends: Iterable[Mapping[str, Any]]) -> list[str]:
    """What tasks of each backend wait for."""
    told = ((backend["name"], pending_words(backend.get("replicas"))) for backend in backends)
    return [f"{name}: {words}" for name, words in told if words]


def tasks_table(replicas: Mapping[str, Any] | None, width: int | None, indent: int = 2) -> list[Text]:
    """A line for each task, below a line of headings; nothing where there is none.

    :param width: how wide it may be, ``indent`` and all; None: as wide as it is.
    """
    tasks = (replicas or {}).get("tasks") or ()
    if not tasks:
        return []
    columns = [
        Column("TASK", [Text(str(task["id"])[:SHORT_ID]) for task in tasks], shorten=(8, 5)),
        Column("NODE", [Text(str(task["node"] or "-")) for task in tasks], shorten=(5, 8)),
        Column("STATE", [Text(task["state"], _COLOURS.get(task["state"], "")) for task in tasks]),
        Column(
            "IN FLIGHT",
            [Text(str(task["in_flight"]), "" if task["in_flight"] else "dim") for task in tasks],
            right=True,
            brief=(2, "BUSY"),
            drop=9,
        ),
        Column("ADDRESS", [Text(str(task["address"] or "")) for task in tasks], drop=0),
    ]
    rows = table(columns, None if width is None else max(1, width - indent))
    return [Text(" " * indent).append_text(row) for row in rows]
