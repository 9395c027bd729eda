"""``${NAME}`` in texts of llmproxy.yaml and of compose files.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["compose_text", "strict_text"]

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_STRICT = re.compile(rf"\$(?:(\$)|\{{({_NAME})(?:(:-)([^}}]*))?\}})")
_COMPOSE = re.compile(rf"\$(?:(\$)|({_NAME})|\{{({_NAME})(?:(:?[-?+])|(?=\}})))")


def strict_text(text: str, environ: Mapping[str, str], keep: frozenset[str] = frozenset()) -> str:
    """``text`` with ``${NAME}`` and ``${NAME:-default}`` filled in, and ``$$`` as ``$``.

    :param keep: names that are left as they are.
    :raises KeyError: a name without default is not set; its argument is the name.
    """

    def fill(match: re.Match[str]) -> str:
        dollar, name, has_default, default = match.groups()
        if dollar:
            return "$"
        if name in keep:
            return match[0]
        value = environ.get(name)
        if has_default:
            return value or default
        if value is None:
            raise KeyError(name)
        return value

    return _STRICT.sub(fill, text)


def compose_text(text: str, environ: Mapping[str, str]) -> str:
    """``text`` as Compose fills it in; what is not set is empty, since it is only read here.

    Forms: ``$NAME``, ``${NAME}``, ``${NAME:-d}``, ``${NAME-d}``, ``${NAME:?m}``, ``${NAME:+v}``; the operand
    may hold further ones (https://docs.docker.com/reference/compose-file/interpolation/).
    """
    told: list[str] = []
    at = 0
    while (match := _COMPOSE.search(text, at)) is not None:
        told.append(text[at : match.start()])
        at = match.end()
        dollar, bare, braced, operator = match.groups()
        if dollar:
            told.append("$")
        elif bare:
            told.append(environ.get(bare, ""))
        else:
            end = _closing(text, at)
            if end is None:  # Compose refuses it; here it is a text like any other
                told.append(match[0])
                continue
            operand, at = text[at:end], end + 1
            told.append(_braced(environ.get(braced), operator or "", operand, environ))
    told.append(text[at:])
    return "".join(told)


def _braced(value: str | None, operator: str, operand: str, environ: Mapping[str, str]) -> str:
    given = bool(value) if operator.startswith(":") else value is not None
    if operator.endswith("-") and not given:
        return compose_text(operand, environ)
    if operator.endswith("+"):
        return compose_text(operand, environ) if given else ""
    return value or ""


def _closing(text: str, at: int) -> int | None:
    """Where the brace that is open at ``at`` is closed."""
    depth = 1
    for index in range(at, len(text)):
        if text[index] == "}":
            depth -= 1
            if not depth:
                return index
        elif text.startswith("${", index):
            depth += 1
    return None
