"""The reference of llmproxy.yaml as Markdown, made of the schema that the parser's own tables make.

Beside docs/configuration.md, which explains: here stands what is allowed, for every setting.
"""

from __future__ import annotations

import sys
from typing import Any

from attrs import fields

from llmproxy.config import units
from llmproxy.config.fields import FIELDS
from llmproxy.config.model import BackendSpec, Config
from llmproxy.config.schema import schema

__all__ = ["default_of", "paths", "reference"]

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, ""))
_DURATION, _SIZE = units.DURATION_PATTERN, units.SIZE_PATTERN
_NAMES = {
    _DURATION: "a duration: `90s`, `10m`, `1h`",
    _SIZE: "a size: `64MiB`, `14GiB`",
    units.UNIT_SIZE_PATTERN: "a size: `14GiB`",
    units.FRACTION_PATTERN: "a fraction: `0.5`, `50%`",
    r"\S": "a text",
}


def reference() -> str:
    """The page."""
    found = schema()
    lines = [
        "# Every setting",
        "",
        "Made of the tables that the proxy reads its settings by. [Configuration](configuration.md) explains",
        "them, and says where else they may stand; `llmproxy config` shows those in force.",
        "",
        "## Fields of a backend { #fields }",
        "",
        "| field | allowed | default | what |",
        "| --- | --- | --- | --- |",
    ]
    for name, field in FIELDS.items():
        lines.append(f"| `{name}` | {allowed(field.schema)} | {default_of(name)} | {field.doc} |")
    lines += [
        "",
        "## Settings of the proxy { #settings }",
        "",
        "| setting | allowed | default | what |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{path}` | {told} | {_standard(path, size='a size' in told)} | {each.get('description', '')} |"
        for path, each in paths(found).items()
        for told in (allowed(each),)
    ]
    return "\n".join(lines) + "\n"


def paths(node: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Every setting but backends' fields, by its dotted path."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in node.get("properties", {}).items():
        path = f"{prefix}{name}"
        each = _bare(value)
        if path in ("defaults", "backends"):
            found[path] = {
                "description": "fields of a backend" + ("" if path == "defaults" else ", by route")
            }
        elif "properties" in each:
            found.update(paths(each, f"{path}."))
        elif name == "gpus":
            found.update(paths(_bare(each["additionalProperties"]), f"{path}.INDEX."))
        elif path == "hosts":
            found.update(paths(each["additionalProperties"], "hosts.NAME."))
        elif path == "keys":
            found.update(paths(each["items"], "keys[]."))
        else:
            found[path] = each
    return found


def _bare(value: dict[str, Any]) -> dict[str, Any]:
    """Without "or null", which is as if it were not there."""
    either = value.get("anyOf", [])
    if len(either) == 2 and either[1] == {"type": "null"}:
        return dict(either[0])
    return value


def allowed(each: dict[str, Any]) -> str:
    """What a schema allows, for a person."""
    each = _bare(each)
    if "enum" in each:
        return ", ".join(f"`{value}`" for value in each["enum"] if isinstance(value, str))
    if "anyOf" in each:
        words = [allowed(one) for one in each["anyOf"] if one != {"type": "null"}]
        told = [word for word in words if word.startswith(("a duration", "a size", "a fraction"))] or words
        return " or ".join(dict.fromkeys(told))
    kind = each.get("type")
    if kind == "boolean":
        return "`true`, `false`"
    if kind == "array" or (isinstance(kind, list) and "array" in kind):
        items = each.get("items", {})
        return f"a list of {allowed(items)}" if "enum" in items else "a list of texts"
    if kind == "object":
        return "a mapping"
    if kind in ("integer", "number"):
        least, most = each.get("minimum"), each.get("maximum")
        return (
            f"a number from {least:,} to {most:,}" if least is not None and most is not None else "a number"
        )
    return _NAMES.get(each.get("pattern", ""), "a text") if kind == "string" else ""


def default_of(name: str) -> str:
    """A backend field's default, as the reference tells it."""
    value = getattr(fields(BackendSpec), name).default
    if value is None or not isinstance(value, str | int | float | tuple):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _standard(path: str, *, size: bool) -> str:
    """The default of a setting of the proxy, where it is one that can be told in a word."""
    value: Any = Config()
    for name in path.split("."):
        value = getattr(value, name, None)
    if value is None or isinstance(value, dict):
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`" if value and path == "listen" else ""
    if size and isinstance(value, int) and value >= 1024:
        unit, name = next(pair for pair in _UNITS if value % pair[0] == 0)
        return f"`{value // unit}{name}`"
    return _shown(value)


def _shown(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value == "":
        return ""
    return f"`{value:.12g}`" if isinstance(value, float) else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
