"""How far starts and stops are: a line for each backend, drawn in place while they go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from llmproxy.cli.terminal import console
from llmproxy.cli.together import Done
from llmproxy.cli.view import state_text
from llmproxy.words import duration

__all__ = ["Progress", "sees_progress", "step_of"]

_BAR = 14
# With less room than this a bar would take the place of the words.
_ROOM_FOR_BAR = 100
_FAULTS = {"backend_start_failed": "failed", "backend_start_timeout": "failed"}


def sees_progress() -> bool:
    """Whether somebody sees what is drawn on standard error; what it says at last goes elsewhere, too."""
    return sys.stderr.isatty() and console(err=True).is_terminal and not console(err=True).is_dumb_terminal


def step_of(view: Mapping[str, Any]) -> str:
    """What a backend does at present, beside its state."""
    waits = view.get("waits")
    if waits:
        return f"waits: {waits['why']}"
    if view["state"] in ("starting", "waking") and view.get("phase"):
        part, reason = view.get("progress"), view.get("reason")
        if reason:
            return f"{view['phase']}: {reason}"
        if view["phase"] == view["state"]:
            return ""
        return f"{view['phase']} {part:.0%}" if part is not None else str(view["phase"])
    if view["state"] == "draining":
        count = view.get("in_flight", 0)
        return f"{count} request{'' if count == 1 else 's'} to finish"
    return ""


class Progress:
    """What is drawn.

    :param names: the backends, in their order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._out = console(err=True)
        self._names = names
        self._began = time.monotonic()
        self._views: Mapping[str, Mapping[str, Any]] = {}
        self._done: dict[str, Done] = {}
        self._took: dict[str, float] = {}
        self._spinner = Spinner("line" if self._out.encoding.lower() != "utf-8" else "dots", style="yellow")
        self._live = Live(
            console=self._out,
            get_renderable=self._draw,
            transient=True,
            refresh_per_second=10,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Progress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, views: Mapping[str, Mapping[str, Any]], done: Mapping[str, Done]) -> None:
        """They are so now."""
        self._views = views
        for name in done:
            self._took.setdefault(name, time.monotonic() - self._began)
        self._done = dict(done)

    def _draw(self) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for _ in range(3):
            table.add_column(no_wrap=True, justify="right")
        # The terminal writes ^C behind it; that must not begin a line of its own.
        table.width = self._out.width - 3
        for name in self._names:
            table.add_row(*self._row(name))
        return Group(table)

    def _row(self, name: str) -> list[RenderableType]:
        view, done = self._views.get(name), self._done.get(name)
        passed = self._took.get(name, time.monotonic() - self._began)
        clock = Text(f"{int(passed) // 60}:{int(passed) % 60:02}", style="dim")
        mark: RenderableType = self._spinner
        if done is not None:
            mark = Text("+" if done.well else "!", style="green" if done.well else "red")
            view = done.backend
        if done is not None and done.error is not None:
            return [
                mark,
                Text(name, style="bold"),
                Text(_FAULTS.get(str(done.error.code), "refused"), style="red"),
                Text(str(done.error).partition("\n")[0]),
                "",
                "",
                clock,
            ]
        if view is None:
            return [mark, Text(name, style="bold"), Text("asked", style="dim"), "", "", "", clock]
        row = [
            mark,
            Text(name, style="bold"),
            state_text({**view, "level": None}),
            Text("" if done else step_of(view)),
        ]
        return [*row, *(("", "") if done else self._rest(view)), clock]

    def _rest(self, view: Mapping[str, Any]) -> tuple[RenderableType, RenderableType]:
        """A bar and how long it will still take, as far as that is known."""
        eta, since = view.get("eta"), view.get("since")
        if eta is None or since is None or view["state"] not in ("starting", "waking"):
            return "", ""
        passed = max(time.time() - float(since), 0.0)
        whole = max(passed + float(eta), 0.1)
        if self._out.width < _ROOM_FOR_BAR:
            return "", Text(f"{duration(float(eta))} left")
        bar = ProgressBar(total=whole, completed=min(passed, whole), width=_BAR, complete_style="yellow")
        return bar, Text(f"{duration(float(eta))} left")
