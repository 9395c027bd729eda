"""Values as a configuration file has them: YAML's own, or texts that came of ``${NAME}``.  Pure.

Readers raise :exc:`ValueError` with what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from llmproxy.config.fields import whole

__all__ = ["Filled", "Readers", "boolean", "count", "fail", "many", "plain", "text", "texts"]

Readers = Mapping[str, Callable[[Any], Any]]
"""By name, what makes a setting of a value."""


def fail(allowed: str) -> Any:
    """Say what is allowed."""
    raise ValueError(allowed)


class Filled(str):
    """A text that came of ``${NAME}``.  The environment holds only texts, and so ``port: ${PORT}`` gives one
    where ``port: "80"`` would be a mistake: it is read as a label would be."""


def plain(value: Any) -> Any:
    """The number or truth that a filled-in text writes."""
    if not isinstance(value, Filled):
        return value
    word = value.strip().lower()
    if re.fullmatch(r"[+-]?[0-9]{1,18}", word):
        return int(word)
    return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(word, value)


def boolean(value: Any) -> bool:
    """A truth."""
    value = plain(value)
    return value if isinstance(value, bool) else bool(fail("true or false"))


def text(value: Any) -> str:
    """A text that is not empty."""
    return str(value) if isinstance(value, str) and value.strip() else str(fail("a text that is not empty"))


def texts(value: Any) -> tuple[str, ...]:
    """A list of such."""
    if isinstance(value, list) and value and all(isinstance(word, str) and word for word in value):
        return tuple(map(str, value))
    return tuple(fail("a list of texts that is not empty"))


def count(value: Any) -> int:
    """A whole number from 1."""
    value = whole(plain(value))
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000_000:
        fail("a whole number from 1")
    return int(value)


def many(value: Any) -> int:
    """A whole number from 0."""
    value = whole(plain(value))
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10_000_000:
        fail("a whole number from 0")
    return int(value)
