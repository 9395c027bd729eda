"""What is to be said of a configuration that was converted.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from attrs import define, field, frozen

__all__ = ["Kind", "Remark", "Remarks"]

Kind = Literal["left out", "changed", "check"]
"""``left out``: it has no counterpart; ``changed``: it has one that is not quite the same; ``check``: it was
converted, and somebody should look at it."""


@frozen
class Remark:
    """One thing that is not as it was.

    :ivar where: the setting, as a dotted path into the file.
    :ivar line: of the file; None when it is not known.
    :ivar why: and what to do instead, if anything.
    """

    where: str
    kind: Kind
    why: str
    line: int | None = None

    def __str__(self) -> str:
        place = self.where if self.line is None else f"line {self.line}, {self.where}"
        return f"{self.kind}: {place}: {self.why}"


@define
class Remarks:
    """Gathers them, with the lines that they belong to.

    :ivar lines: of each setting, by its path.
    """

    lines: Mapping[str, int] = field(factory=dict)
    _all: list[Remark] = field(factory=list)

    def add(self, where: str, kind: Kind, why: str) -> None:
        """Say something of a setting; a line that is not known is that of what it stands in."""
        place = where
        while place and place not in self.lines:
            place = place.rpartition(".")[0]
        self._all.append(Remark(where, kind, why, self.lines.get(place)))

    def __iter__(self) -> Iterator[Remark]:
        return iter(sorted(self._all, key=lambda remark: (remark.line or 0, remark.where)))
