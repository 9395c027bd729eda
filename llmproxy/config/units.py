"""Durations and sizes as people write them: pure; readers raise :exc:`ValueError` saying what is allowed.

The patterns are public because the JSON schema states the same rules with them.
"""

from __future__ import annotations

import re

__all__ = [
    "DURATION_ALLOWED",
    "DURATION_PATTERN",
    "FRACTION_ALLOWED",
    "FRACTION_PATTERN",
    "LARGEST",
    "LEAST_BARE_BYTES",
    "LONGEST",
    "SIZE_ALLOWED",
    "SIZE_PATTERN",
    "UNIT_SIZE_PATTERN",
    "duration",
    "format_duration",
    "format_size",
    "fraction_or_size",
    "size",
]

LONGEST = 1_000_000_000
"""Seconds: some 31 years.  Anything longer is a slip of the finger, and timers want a finite number."""

LARGEST = 2**60
"""Bytes (1 EiB)."""

LEAST_BARE_BYTES = 1_000_000
"""A bare number above 1 and below this, as in ``gpu_memory: 14``, means GiB to its writer and bytes to us:
it is refused, because either guess would be wrong for somebody."""

DURATION_PATTERN = r"^\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(ms|s|m|h|d)?\s*$"
UNIT_SIZE_PATTERN = r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([KkMmGgTt][Ii]?[Bb]|[Bb])\s*$"
SIZE_PATTERN = UNIT_SIZE_PATTERN + r"|^\s*([0-9]+)\s*$"
FRACTION_PATTERN = r"^\s*(0|1|0?\.[0-9]+|0\.|1\.0*)\s*$|^\s*([1-9][0-9]{6,})\s*$"

DURATION_ALLOWED = "seconds, or a number with ms, s, m, h or d, as in 90s"
SIZE_ALLOWED = "bytes, or a number with KiB, MiB, GiB, TiB, kB, MB, GB or TB, as in 14GiB"
FRACTION_ALLOWED = "a fraction of a GPU from 0 to 1, or a size such as 14GiB"

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def duration(value: object) -> float:
    """Seconds from a number, or from text such as ``90``, ``90s``, ``10m``, ``1h`` or ``500ms``.

    :raises ValueError: it is none of these, negative, or longer than :data:`LONGEST`.
    """
    seconds: float
    if isinstance(value, str):
        match = re.search(DURATION_PATTERN, value)
        if match is None:
            raise ValueError(DURATION_ALLOWED)
        number, unit = float(match[1]), match[2]
        # Dividing keeps 300ms exactly 0.3, where multiplying by 0.001 would not.
        seconds = number / 1000 if unit == "ms" else number * _SECONDS[unit or "s"]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value <= LONGEST:  # also refuses NaN, and integers too large for a float
            raise ValueError(DURATION_ALLOWED)
        seconds = float(value)
    else:
        raise ValueError(DURATION_ALLOWED)
    if seconds > LONGEST:
        raise ValueError(DURATION_ALLOWED)
    return seconds


def size(value: object) -> int:
    """Bytes from a whole number, or from text such as ``14GiB`` (1024s) or ``64MB`` (1000s).

    :raises ValueError: it is none of these, negative, or larger than 1 EiB.
    """
    if isinstance(value, str):
        match = re.search(SIZE_PATTERN, value)
        if match is None or len(value) > 64:
            raise ValueError(SIZE_ALLOWED)
        bytes_ = int(match[3]) if match[3] else int(float(match[1]) * _factor(match[2].lower()))
    elif isinstance(value, bool):
        raise ValueError(SIZE_ALLOWED)
    elif isinstance(value, int):
        bytes_ = value
    elif isinstance(value, float) and value.is_integer():
        bytes_ = int(value)
    else:
        raise ValueError(SIZE_ALLOWED)
    if not 0 <= bytes_ <= LARGEST:
        raise ValueError(SIZE_ALLOWED)
    return bytes_


def _factor(unit: str) -> int:
    if unit == "b":
        return 1
    base = 1024 if unit.endswith("ib") else 1000
    return int(base ** _POWERS[unit[0]])


def fraction_or_size(value: object) -> float | int:
    """GPU memory: a ``float`` from above 0 to 1 is a fraction, an ``int`` is bytes; 0 is zero bytes.

    :raises ValueError: it is neither; a bare number between 1 and a million is neither.
    """
    number: float | int
    if isinstance(value, str):
        match = re.search(FRACTION_PATTERN, value)
        if match is None:
            if value.strip().isdigit():
                raise ValueError(FRACTION_ALLOWED)
            return size_with_unit(value)
        if match[2]:
            return size(value)
        number = float(match[1])
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = value
    else:
        raise ValueError(FRACTION_ALLOWED)
    if number == 0:
        return 0
    if 0 < number <= 1:
        return float(number)
    if number < LEAST_BARE_BYTES:
        raise ValueError(FRACTION_ALLOWED)
    try:
        return size(number)
    except ValueError:
        raise ValueError(FRACTION_ALLOWED) from None


def size_with_unit(value: str) -> int:
    """As :func:`size`, in the words of a field that also takes fractions."""
    try:
        return size(value)
    except ValueError:
        raise ValueError(FRACTION_ALLOWED) from None


def format_duration(seconds: float) -> str:
    """The shortest way to write ``seconds`` that :func:`duration` reads back as the same number."""
    for unit in ("d", "h", "m"):
        count = seconds / _SECONDS[unit]
        if count >= 1 and count.is_integer():
            return f"{int(count)}{unit}"
    return f"{int(seconds)}s" if float(seconds).is_integer() else f"{seconds!r}s"


def format_size(bytes_: int) -> str:
    """The shortest way to write ``bytes_`` that :func:`size` reads back as the same number."""
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)):
        count, rest = divmod(bytes_, 1024**power)
        if count and not rest:
            return f"{count}{unit}"
    return str(bytes_)
