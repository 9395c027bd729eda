"""Tables that fit a terminal: what matters least is shortened or left out, and names never are.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.text import Text

__all__ = ["Column", "Fitted", "fit", "table"]


class Column(NamedTuple):
    """One column.

    What is given up comes in the order of the numbers, the lowest first, until the table fits; a column
    without such a number stays as it is.

    :ivar title: its heading.
    :ivar cells: one for each row.
    :ivar right: numbers stand to the right.
    :ivar drop: when it is left out.
    :ivar shorten: when it is shortened, and to how many cells at least.
    :ivar brief: when it has another, shorter heading, and that heading.
    """

    title: str
    cells: Sequence[Text]
    right: bool = False
    drop: int | None = None
    shorten: tuple[int, int] | None = None
    brief: tuple[int, str] | None = None


class Fitted(NamedTuple):
    """A column as it is shown."""

    title: str
    cells: Sequence[Text]
    width: int
    right: bool


def table(columns: Iterable[Column], width: int | None, *, wide: int = 3) -> list[Text]:
    """The lines of a table.

    :param width: how wide it may be; None: as wide as it is.
    :param wide: cells between two columns where there is room for that; else there are two.
    """
    given = list(columns)
    gap = wide if width is None or _total(_whole(given), wide) <= width else min(wide, 2)
    shown = fit(given, width, gap)
    lines = [_line([Text(column.title, style="bold") for column in shown], shown, gap)]
    rows = len(given[0].cells) if given else 0
    return lines + [_line([column.cells[row] for column in shown], shown, gap) for row in range(rows)]


def fit(columns: Sequence[Column], width: int | None, gap: int) -> list[Fitted]:
    """The columns that there is room for."""
    shown: dict[int, Fitted] = dict(enumerate(_whole(columns)))
    if width is None:
        return list(shown.values())
    for _, number, what in sorted(_steps(columns)):
        over = _total(shown.values(), gap) - width
        if over <= 0:
            break
        if number not in shown:
            continue
        column, one = columns[number], shown[number]
        if what == "drop" and len(shown) > 1:
            del shown[number]
        elif what == "brief" and column.brief:
            shown[number] = _measured(column, column.brief[1])
        elif what == "shorten" and column.shorten:
            shown[number] = one._replace(width=max(one.width - over, min(column.shorten[1], one.width)))
    # What was shortened gets what a column that was left out later has left over.
    for number, one in shown.items():
        whole = _measured(columns[number], columns[number].title)
        if one.title != whole.title and _total(shown.values(), gap) - one.width + whole.width <= width:
            shown[number] = whole
    for number, one in shown.items():
        spare = width - _total(shown.values(), gap)
        natural = _measured(columns[number], one.title).width
        if spare > 0 and one.width < natural:
            shown[number] = one._replace(width=min(natural, one.width + spare))
    return list(shown.values())


def _whole(columns: Sequence[Column]) -> list[Fitted]:
    return [_measured(column, column.title) for column in columns]


def _measured(column: Column, title: str) -> Fitted:
    widest = max((cell.cell_len for cell in column.cells), default=0)
    return Fitted(title, column.cells, max(widest, len(title)), column.right)


def _steps(columns: Sequence[Column]) -> Iterable[tuple[int, int, str]]:
    for number, column in enumerate(columns):
        if column.drop is not None:
            # A column with nothing in it goes before all others.
            empty = not any(cell.plain for cell in column.cells)
            yield (-1 if empty else column.drop), number, "drop"
        if column.shorten is not None:
            yield column.shorten[0], number, "shorten"
        if column.brief is not None:
            yield column.brief[0], number, "brief"


def _total(shown: Iterable[Fitted], gap: int) -> int:
    widths = [one.width for one in shown]
    return sum(widths) + gap * (len(widths) - 1)


def _line(cells: Sequence[Text], shown: Sequence[Fitted], gap: int) -> Text:
    line = Text()
    for cell, column in zip(cells, shown, strict=True):
        if line.plain:
            line.append(" " * gap)
        short = shorten(cell, column.width)
        space = " " * (column.width - short.cell_len)
        line.append_text(Text(space) + short if column.right else short + Text(space))
    line.rstrip()
    return line


def shorten(cell: Text, width: int) -> Text:
    """At most so many cells of it; three dots at the end stand for what is missing."""
    if cell.cell_len <= width:
        return cell
    dots = "..."[:width]
    short = cell.copy()
    short.truncate(width - len(dots))
    return short.append(dots)
