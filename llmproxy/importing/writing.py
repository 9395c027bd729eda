"""The text of a converted configuration.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import yaml

from llmproxy.importing.remarks import Remark

__all__ = ["config_text"]

_WIDTH = 110


class _Dumper(yaml.SafeDumper):
    """Writes lists of words in a line, and leaves mappings in their order."""


def _list(dumper: _Dumper, value: list[Any]) -> yaml.Node:
    flat = all(not isinstance(item, list | dict) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


_Dumper.add_representer(list, _list)


def config_text(document: dict[str, Any], source: str, remarks: Sequence[Remark]) -> str:
    """``llmproxy.yaml`` with its remarks in front, as comments.

    :param source: what it was made from.
    """
    head = [f"Made from {source} by `llmproxy import`; docs/configuration.md has every field."]
    if remarks:
        head += ["", "What is not as it was there:"]
        head += [f"- {remark}" for remark in remarks]
    lines: list[str] = []
    for paragraph in head:
        indent = "  " if paragraph.startswith("- ") else ""
        # No line of the other file can end a comment: all white space is made spaces.
        words = "".join(c if c.isprintable() else "?" for c in " ".join(paragraph.split()))
        lines += wrap(words, _WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [""]
    comment = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    body = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH)
    return f"{comment}\n{body}"
