"""Where the command writes: a terminal, with its width and colours, or a pipe with neither."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

__all__ = ["console", "ending_well", "has_terminal", "print_lines", "width_of"]

# Wide enough that nothing is broken or cut off when the output goes to a file or a pipe.
_PIPE_WIDTH = 100_000


def console(*, err: bool = False) -> Console:
    """Standard output or error: coloured (but for NO_COLOR) and as wide as the terminal; plain on a pipe."""
    found = Console(highlight=False, stderr=err)
    return found if found.is_terminal else Console(highlight=False, stderr=err, width=_PIPE_WIDTH)


def width_of(out: Console) -> int | None:
    """How wide a table may be; None: as wide as it is."""
    return out.width if out.is_terminal else None


def has_terminal() -> bool:
    """Whether somebody sees what is shown, and can press keys."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def print_lines(out: Console, lines: Iterable[Text | str]) -> None:
    """Print lines; one that does not fit is broken between words."""
    for line in lines:
        out.print(Text(line) if isinstance(line, str) else line)


@contextmanager
def ending_well() -> Iterator[None]:
    """Let TERM and HUP end what is within as an exception does, so that the terminal is left as it was."""

    def end(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
