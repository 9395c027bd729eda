"""Looking again and again: in place on a terminal, one below the other on a pipe."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from llmproxy.cli.changes import Bell
from llmproxy.cli.client import Api, ApiError
from llmproxy.cli.command import say_json
from llmproxy.cli.terminal import console, ending_well, print_lines

__all__ = ["keep_watching"]

# Changes often come in bundles: what a swap of two models is made of shall be drawn once.
_SETTLE = 0.1

_Found = dict[str, Any]


def keep_watching(
    api: Api,
    look: Callable[[], _Found],
    draw: Callable[[_Found, int | None], list[Text]] | None,
    seconds: float,
) -> None:
    """Look whenever something changes, and every so many seconds; return at Ctrl-C.

    :param draw: what a person is shown, in so much width; None: what was found is shown as JSON.
    :raises llmproxy.cli.client.ApiError: the first look fails; later ones are tried again.
    """
    watch = _Watch(api, look, seconds)
    try:
        if draw is None:
            watch.tell()
        elif console().is_terminal:
            watch.in_place(draw)
        else:
            watch.one_by_one(draw)
    except KeyboardInterrupt:
        return  # the way to end it
    finally:
        watch.close()


class _Watch:
    def __init__(self, api: Api, look: Callable[[], _Found], seconds: float) -> None:
        self._api = api
        self._look = look
        self._seconds = seconds
        self._lost: str | None = None
        self._found = look()
        self._bell = Bell(api)

    def close(self) -> None:
        """Nobody looks any more."""
        self._bell.close()

    def tell(self) -> None:
        """A JSON document on a line for each look; none while the proxy is away."""
        while True:
            if self._lost is None:
                say_json(self._found)
            self._again()

    def one_by_one(self, draw: Callable[[_Found, int | None], list[Text]]) -> None:
        """An empty line between two looks."""
        while True:
            print_lines(console(), [*draw(self._found, None), *self._remarks(), Text()])
            self._again()

    def in_place(self, draw: Callable[[_Found, int | None], list[Text]]) -> None:
        """On the terminal's other screen; what was seen last stays on the usual one."""
        out = console()
        signal.signal(signal.SIGWINCH, lambda *_: self._bell.ring())
        lines: list[Text] = []
        try:
            with ending_well(), Live(console=out, screen=True, auto_refresh=False) as live:
                while True:
                    lines = [*draw(self._found, out.width), *self._remarks()]
                    at = time.strftime("%H:%M:%S")
                    head = (
                        f"{at}  {self._api.base}  every {self._seconds:g} s and when it changes; Ctrl-C ends"
                    )
                    live.update(Group(Text(head, "dim", no_wrap=True), Text(), *lines), refresh=True)
                    self._again()
        finally:
            # Below the ^C that the terminal has written.
            print_lines(out, ["", *lines])

    def _again(self) -> None:
        """Wait, and look again; while the proxy is away what was seen last stays."""
        if self._bell.wait(self._seconds):
            time.sleep(_SETTLE)
        try:
            self._found, self._lost = self._look(), None
        except ApiError as wrong:
            self._lost = str(wrong)

    def _remarks(self) -> list[Text]:
        return [] if self._lost is None else [Text(f"{self._lost} This was seen last.", style="red")]
