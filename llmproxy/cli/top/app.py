"""The screen, its keys, and the threads that ask the proxy meanwhile."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.message import Message
from textual.widgets import Footer, OptionList, Static
from textual.widgets.option_list import Option

from llmproxy.cli.changes import Bell
from llmproxy.cli.client import Api, ApiError
from llmproxy.cli.top.looking import Seen, look
from llmproxy.cli.top.picture import gpu_lines, request_lines, summary
from llmproxy.cli.top.screens import Ask, Read, log_of, why_of
from llmproxy.cli.view import backends_table

__all__ = ["TopApp"]

# Changes often come in bundles.
_SETTLE = 0.05
_STARTED = {"start": "is to start", "stop": "is to stop", "sleep": "is to sleep", "wake": "is to wake"}


class Looked(Message):
    """The proxy was looked at.

    :ivar wrong: why it could not be.
    """

    def __init__(self, seen: Seen | None, wrong: str = "") -> None:
        super().__init__()
        self.seen = seen
        self.wrong = wrong


class Told(Message):
    """Something was done, or could not be."""

    def __init__(self, line: str, style: str) -> None:
        super().__init__()
        self.line = Text(line.partition("\n")[0], style)


class TopApp(App[None]):
    """All of the proxy on one screen.

    :param every: seconds between two looks, if nothing changes.
    :param seen: the first look.
    """

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "select(-1)", "Up", show=False),
        Binding("down,j", "select(1)", "Down", show=False),
        Binding("s", "act('start')", "Start"),
        Binding("x", "stop", "Stop"),
        Binding("z", "act('sleep')", "Sleep"),
        Binding("w", "act('wake')", "Wake"),
        Binding("l", "log", "Log"),
        Binding("enter", "why", "Why", priority=False),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
    ]
    CSS = """
    Screen { layout: vertical; }
    Static { height: auto; padding: 0 1; }
    #summary { height: 1; }
    #gpus { margin-bottom: 1; }
    #requests { height: 1fr; margin-top: 1; overflow: hidden hidden; }
    #remark { height: auto; max-height: 2; }
    OptionList { height: auto; max-height: 45%; border: none; padding: 0; background: transparent;
                 scrollbar-size-vertical: 1; }
    OptionList > .option-list--option { padding: 0 1; }
    """

    def __init__(self, api: Api, every: float, seen: Seen) -> None:
        super().__init__()
        self._api = api
        self._every = every
        self._seen = seen
        self._wrong = ""
        self._told = Text()
        self._bell = Bell(api)
        self._over = False

    def compose(self) -> ComposeResult:
        """From above to below."""
        yield Static(id="summary")
        yield Static(id="gpus")
        yield Static(id="headings")
        yield OptionList(id="backends")
        yield Static(id="requests")
        yield Static(id="remark")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            # The terminal is left as it was found.
            loop.add_signal_handler(number, self.exit, None, 128 + number)
        self.query_one(OptionList).focus()
        self._draw()
        self._in_thread(self._keep_looking)

    def on_resize(self) -> None:
        """There is more or less room."""
        self.call_after_refresh(self._redraw)

    # -- looking ------------------------------------------------------------------------------------

    @staticmethod
    def _in_thread(what: Callable[[], None]) -> None:
        # Not Textual's workers: quitting shall not wait for a proxy that does not answer.
        threading.Thread(target=what, daemon=True).start()

    def on_unmount(self) -> None:
        """Nobody looks any more."""
        self._over = True
        self._bell.close()

    def _keep_looking(self) -> None:
        while True:
            if self._bell.wait(self._every):
                time.sleep(_SETTLE)
            if self._over:
                return
            try:
                self.post_message(Looked(look(self._api)))
            except ApiError as wrong:
                self.post_message(Looked(None, str(wrong)))

    def on_looked(self, message: Looked) -> None:
        """Show it; while the proxy is away what was seen last stays."""
        self._wrong = message.wrong
        if message.seen is not None:
            self._seen = message.seen
        self._redraw()

    def _redraw(self) -> None:
        # At the end the screen and its parts are taken down while news may still be on its way.
        if self.screen_stack:
            with suppress(NoMatches):
                self._draw()

    def _draw(self) -> None:
        first = self.screen_stack[0]
        width = max(self.size.width - 2, 10)
        seen = self._seen
        # Between two looks a backend grows older, too; while the proxy is away none does.
        first.query_one("#summary", Static).update(
            summary(seen, self._api.base, time.strftime("%H:%M:%S"), width)
        )
        gpus = first.query_one("#gpus", Static)
        gpus.display = bool(seen.gpus or seen.leases)
        gpus.update(Text("\n").join(gpu_lines(seen, width)))
        self._draw_backends(width)
        first.query_one("#requests", Static).update(Text("\n").join(request_lines(seen, width)))
        remark = Text(f"{self._wrong} This was seen last.", "red") if self._wrong else self._told
        first.query_one("#remark", Static).update(remark)

    def _draw_backends(self, width: int) -> None:
        first = self.screen_stack[0]
        options = first.query_one(OptionList)
        selected = self._selected()
        headings, *lines = backends_table(self._seen.backends, self._seen.at, width - 1)
        first.query_one("#headings", Static).update(headings)
        names = [str(backend["name"]) for backend in self._seen.backends]
        if names == [option.id for option in options.options]:
            for place, line in enumerate(lines):
                options.replace_option_prompt_at_index(place, line)
            return
        options.clear_options()
        options.add_options(Option(line, id=name) for name, line in zip(names, lines, strict=True))
        if names:
            options.highlighted = names.index(selected) if selected in names else 0

    # -- keys ---------------------------------------------------------------------------------------

    def _selected(self) -> str | None:
        options = self.screen_stack[0].query_one(OptionList)
        if options.highlighted is None or options.highlighted >= options.option_count:
            return None
        return options.get_option_at_index(options.highlighted).id

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The keys of the first screen are its own."""
        return action == "quit" or len(self.screen_stack) == 1 or action not in _OWN

    def action_select(self, step: int) -> None:
        """The next backend, or the one before."""
        options = self.query_one(OptionList)
        if options.option_count:
            options.highlighted = min(max((options.highlighted or 0) + step, 0), options.option_count - 1)

    def action_act(self, verb: str, force: bool = False) -> None:
        """Do something to the selected backend."""
        name = self._selected()
        if name is None:
            return

        def run() -> None:
            try:
                backend = self._api.act(name, verb, wait=False, force=force)
                state, waits = backend["state"], (backend.get("waits") or {}).get("why")
                line = f"{name} {_STARTED[verb]}; it is {state}{f' and waits: {waits}' if waits else ''}."
                self.post_message(Told(line, "green"))
            except ApiError as wrong:
                self.post_message(Told(f"{wrong} {wrong.hint or ''}", "red"))
            self._bell.ring()

        self._in_thread(run)

    def on_told(self, message: Told) -> None:
        """Say it until something else is to be said."""
        self._told = message.line
        self._redraw()

    def action_stop(self) -> None:
        """Stop the selected backend; ask first if it answers requests."""
        backend = self._seen.backend(self._selected())
        if backend is None:
            return
        busy = int(backend.get("in_flight") or 0)
        if not busy:
            self.action_act("stop")
            return
        what = "1 request" if busy == 1 else f"{busy} requests"

        def answered(key: str | None) -> None:
            if key is not None:
                self.action_act("stop", force=key == "f")

        self.push_screen(Ask(f"{backend['name']} answers {what}. Stop it?"), answered)

    def action_log(self) -> None:
        """The output of the selected backend."""
        self._show(log_of)

    def action_why(self) -> None:
        """Why the selected backend is as it is."""
        self._show(why_of)

    def on_option_list_option_selected(self) -> None:
        """Enter, or a click."""
        self.action_why()

    def _show(self, what: Callable[[Api, str], Read]) -> None:
        name = self._selected()
        if name is not None:
            self.push_screen(what(self._api, name))


_OWN = ("select", "act", "stop", "log", "why")
"""Actions of the first screen."""
