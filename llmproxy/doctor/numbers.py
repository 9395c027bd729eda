"""Versions and sizes, as people write and read them.  Pure."""

from __future__ import annotations

import re

__all__ = ["GIB", "MIB", "size", "size_of", "version_of"]

MIB = 2**20
GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": MIB, "G": GIB, "T": 2**40}


def version_of(text: str | None) -> tuple[int, ...]:
    """The numbers that a version begins with; none when it has none.

    >>> version_of("v2.29.7-desktop.1"), version_of("20.10.24+dfsg1"), version_of("dev")
    ((2, 29, 7), (20, 10, 24), ())
    """
    match = re.match(r"v?([0-9]{1,9}(?:\.[0-9]{1,9})*)", text or "")
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def size(amount: float) -> str:
    """Bytes for a person.

    >>> size(3 * 2**30), size(5 * 2**20)
    ('3.0 GiB', '5 MiB')
    """
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{max(amount, 0) / MIB:.0f} MiB"


def size_of(text: str) -> int | None:
    """Bytes as .wslconfig writes them; None when that is no size.

    >>> size_of("8GB"), size_of("512MB"), size_of("lots")
    (8589934592, 536870912, None)
    """
    match = re.fullmatch(r"([0-9]{1,18})\s*([KMGT]?)B?", text.strip().upper())
    return int(match[1]) * _UNITS[match[2]] if match else None
