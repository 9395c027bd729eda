"""Reads a foreign YAML file together with the lines that its settings stand on.  Pure."""

from __future__ import annotations

from typing import Any

import yaml

from llmproxy.errors import ConfigError

__all__ = ["listed", "read_with_lines"]


def read_with_lines(text: str, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """What the file says, and the line of each setting by its dotted path.

    :param name: what errors call it.
    :raises llmproxy.errors.ConfigError: it is no YAML, or no mapping.
    """
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.YAMLError as cause:
        mark = getattr(cause, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise ConfigError(f"{name}: {where}{getattr(cause, 'problem', None) or 'no valid YAML'}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{name}: it is not valid YAML") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{name}: it must be a mapping of settings")
    lines: dict[str, int] = {}
    assert node is not None, "a mapping is a node"
    try:
        _walk(node, "", lines, set())
    except _Endless as cause:
        raise ConfigError(
            f"{name}: line {cause.args[0]}: an alias stands in what it is an alias of"
        ) from None
    return document, lines


class _Endless(Exception):
    """With the line."""


def listed(value: Any) -> list[Any]:
    """``value`` where it is a list; what is none is as if it were not there."""
    return value if isinstance(value, list) else []


def _walk(node: yaml.Node, path: str, lines: dict[str, int], above: set[int]) -> None:
    if id(node) in above:
        raise _Endless(node.start_mark.line + 1)
    above = {*above, id(node)}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            written = getattr(key, "value", None)
            if isinstance(written, str):
                place = f"{path}.{written}" if path else written
                lines.setdefault(place, key.start_mark.line + 1)
                _walk(value, place, lines, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines.setdefault(f"{path}[{index}]", value.start_mark.line + 1)
            _walk(value, f"{path}[{index}]", lines, above)
