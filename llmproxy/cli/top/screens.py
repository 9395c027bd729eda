"""The screens above the first one: a question, and text to read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, RichLog, Static

from llmproxy.cli.client import Api, ApiError

__all__ = ["Ask", "Read", "log_of", "why_of"]

# More is not read on a terminal; the command logs shows all.
_KEPT_LINES = 5000
_LINES_AT_FIRST = 500


class Ask(ModalScreen[str | None]):
    """Asks before something is stopped that answers requests; its result is the key, or None for no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer('y')", "Yes"),
        Binding("f", "answer('f')", "Break them off"),
        Binding("n,escape", "answer('')", "No"),
    ]
    CSS = """
    Ask { align: center middle; }
    Ask > Vertical {
        width: 64; max-width: 95%; height: auto; padding: 1 2;
        border: round $warning; background: $surface;
    }
    """

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """Show the question."""
        with Vertical():
            yield Static(Text(self._question))
            yield Static(Text("\ny: stop it when they are answered\nf: break them off\nn: let it run"))

    def action_answer(self, key: str) -> None:
        """It is answered."""
        self.dismiss(key or None)


class Read(Screen[None]):
    """Lines to read, as they come; the newest are seen unless somebody has scrolled up.

    :param read: gives the lines, in a thread; it is handed what it is to tell how it can be ended.
    :param goes_on: lines may come as long as it is read, so that their end is worth telling.
    """

    class Came(Message):
        """Some lines have come."""

        def __init__(self, lines: list[str]) -> None:
            super().__init__()
            self.lines = lines

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,escape", "close", "Back"),
        Binding("up,k", "scroll('up')", "Up", show=False),
        Binding("down,j", "scroll('down')", "Down", show=False),
    ]
    CSS = """
    Read > #title { height: 1; text-style: bold; padding: 0 1; }
    Read > RichLog { padding: 0 1; scrollbar-size-horizontal: 0; }
    """

    def __init__(
        self,
        title: str,
        read: Callable[[Callable[[Callable[[], None]], None]], Iterable[str]],
        *,
        goes_on: bool = False,
    ) -> None:
        super().__init__()
        self._title = title
        self._read = read
        self._goes_on = goes_on
        self._end: Callable[[], None] | None = None
        self._left = False

    def compose(self) -> ComposeResult:
        """A title, the lines, and the keys."""
        yield Static(Text(self._title), id="title")
        yield RichLog(max_lines=_KEPT_LINES, wrap=True, min_width=20)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to read."""
        self.query_one(RichLog).focus()
        threading.Thread(target=self._follow, daemon=True).start()

    def on_unmount(self) -> None:
        """Nobody reads any more: the connection is closed, however silent it is."""
        self._left = True
        if self._end is not None:
            self._end()

    def _follow(self) -> None:
        try:
            for line in self._read(self._can_end):
                self.post_message(self.Came([line]))
        except ApiError as wrong:
            if not self._left:
                self.post_message(self.Came([f"-- {wrong}"]))
        else:
            if self._goes_on:
                self.post_message(self.Came(["-- the end"]))

    def _can_end(self, end: Callable[[], None]) -> None:
        self._end = end
        if self._left:
            end()

    def on_read_came(self, message: Came) -> None:
        """Show them."""
        shown = self.query_one(RichLog)
        at_end = shown.scroll_offset.y >= shown.max_scroll_y
        for line in message.lines:
            # What engines write may be coloured.
            shown.write(Text.from_ansi(line), scroll_end=at_end)

    def action_close(self) -> None:
        """Back to the first screen."""
        self.dismiss(None)

    def action_scroll(self, where: str) -> None:
        """One line up or down."""
        shown = self.query_one(RichLog)
        if where == "up":
            shown.scroll_up(animate=False)
        else:
            shown.scroll_down(animate=False)


def log_of(api: Api, name: str) -> Read:
    """A backend's output, as it comes."""

    def read(can_end: Callable[[Callable[[], None]], None]) -> Iterable[str]:
        return api.logs(name, _LINES_AT_FIRST, follow=True, can_end=can_end)

    return Read(f"The output of {name}", read, goes_on=True)


def why_of(api: Api, name: str) -> Read:
    """Why a backend is as it is."""
    return Read(f"Why {name} is as it is", lambda can_end: api.why(name).get("why") or ())
