"""llama-swap's ``${macros}``, and how what is left of them is written in ``llmproxy.yaml``.  Pure.

``${env.NAME}`` stays a variable: it is read when llmproxy starts, so that no secret gets into the new file.
Until a text is written, marks that no configuration holds stand for it and for the port.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["PORT", "expanded", "has_variable", "marked", "unknown_macros", "variables", "written"]

PORT = "\ue002"
"""Stands for the port that the server is given."""

# Of the range for private use.
_OPEN, _CLOSE = "\ue000", "\ue001"
_ENV = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")
_VARIABLE = re.compile(f"{_OPEN}([A-Za-z_][A-Za-z0-9_]*){_CLOSE}")
_MACRO = re.compile(r"\$\{([a-zA-Z0-9_-]+)\}")
_DOLLARS = re.compile(r"\$\$+|\$(?=\{)")


def marked(text: str) -> str:
    """The text with marks for ``${env.NAME}``, which llama-swap fills in before it reads the YAML."""
    return _ENV.sub(rf"{_OPEN}\1{_CLOSE}", text)


def expanded(value: Any, macros: Sequence[tuple[str, Any]]) -> Any:
    """``value`` with its macros filled in, the last one first: each may hold those before it.

    A text that is nothing but a macro gets the macro's own type.
    """
    for name, meaning in reversed(macros):
        value = _filled(value, f"${{{name}}}", meaning)
    return value


def _filled(value: Any, slug: str, meaning: Any) -> Any:
    if isinstance(value, str):
        if value == slug:
            return meaning
        if slug not in value:
            return value
        shown = str(meaning).lower() if isinstance(meaning, bool) else str(meaning)
        return value.replace(slug, shown)
    if isinstance(value, list):
        return [_filled(item, slug, meaning) for item in value]
    if isinstance(value, dict):
        return {_filled(key, slug, str(meaning)): _filled(item, slug, meaning) for key, item in value.items()}
    return value


def unknown_macros(value: Any) -> list[str]:
    """Names of those that nothing was known of."""
    if isinstance(value, str):
        return _MACRO.findall(value)
    if isinstance(value, list):
        return [name for item in value for name in unknown_macros(item)]
    if isinstance(value, dict):
        return [name for pair in value.items() for item in pair for name in unknown_macros(item)]
    return []


def has_variable(text: str) -> bool:
    """Whether a part of it is known only when llmproxy starts."""
    return _VARIABLE.search(text) is not None


def variables(value: Any) -> Mapping[str, None]:
    """The environment's names in it, each once."""
    if isinstance(value, str):
        return dict.fromkeys(_VARIABLE.findall(value))
    if isinstance(value, list):
        return {name: None for item in value for name in variables(item)}
    if isinstance(value, dict):
        return {name: None for pair in value.items() for item in pair for name in variables(item)}
    return {}


def written(value: Any) -> Any:
    """``value`` as ``llmproxy.yaml`` has it: a dollar that means itself is doubled where it must be."""
    if isinstance(value, str):
        text = _DOLLARS.sub(lambda match: match[0] * 2, value)
        return _VARIABLE.sub(r"${\1}", text).replace(PORT, "${port}")
    if isinstance(value, list):
        return [written(item) for item in value]
    if isinstance(value, dict):
        return {written(key): written(item) for key, item in value.items()}
    return value
