"""``${NAME}`` in texts of llmproxy.yaml and of compose files.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["compose_text", "strict_text"]

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_STRICT = re.compile(rf"\$(?:(\$)|\{{({_NAME})(?:(:-)([^}}]*))?\}})")
_COMPOSE = re.compile(rf"\$(?:(\$)|({_NAME})|\{{({_NAME})(?:(:?[-?+])([^}}]*))?\}})")


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

    Forms: ``$NAME``, ``${NAME}``, ``${NAME:-d}``, ``${NAME-d}``, ``${NAME:?m}``, ``${NAME:+v}``
    (https://docs.docker.com/reference/compose-file/interpolation/).
    """

    def fill(match: re.Match[str]) -> str:
        dollar, bare, braced, operator, operand = match.groups()
        if dollar:
            return "$"
        value = environ.get(bare or braced)
        given = bool(value) if (operator or "").startswith(":") else value is not None
        if operator and operator.endswith("-"):
            return str(value) if given else operand
        if operator and operator.endswith("+"):
            return operand if given else ""
        return value or ""

    return _COMPOSE.sub(fill, text)
