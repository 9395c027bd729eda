"""What a vLLM server will download: read from its command line.  Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from llmproxy.engines.flags import read_command, read_flags

__all__ = ["Nothing", "Order", "Wanted", "read_order"]

_REPOSITORY = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?(:[\w.-]+)?")
"""What the hub calls a model: ``organisation/name``; behind a colon the quantisation of GGUF files."""


class Nothing(Exception):
    """There is nothing to be had from the hub; the message says why."""


@frozen
class Wanted:
    """One repository of the hub.

    :ivar part: of GGUF files those whose names hold this.
    """

    repository: str
    revision: str | None = None
    part: str | None = None

    def view(self) -> dict[str, Any]:
        """As :mod:`llmproxy.seeding.fetch` reads it."""
        return {"repository": self.repository, "revision": self.revision, "part": self.part}


@frozen
class Order:
    """All that one server downloads.

    :ivar cache: the folder that it is told to put it into; None: the hub's own.
    """

    wanted: tuple[Wanted, ...]
    cache: str | None = None


def read_order(args: Sequence[str], environment: Mapping[str, str]) -> Order:
    """Read the command line of a vLLM server.

    :raises Nothing: it names no model of the hub.
    """
    flags = read_flags(args, environment)
    if flags.config is not None and flags.model is None:
        raise Nothing(f"its model stands in {flags.config}, which is not read here")
    if flags.model is None:
        raise Nothing("its command line names no model")
    words, _ = read_command(args, environment)
    wanted = [
        (flags.model, _value(words, "revision")),
        (_value(words, "tokenizer"), _value(words, "tokenizer-revision")),
        (_speculative(words), None),
        *((path, None) for path in _loras(words)),
    ]
    found = tuple(
        dict.fromkeys(_wanted(name, revision) for name, revision in wanted if name and _is_repository(name))
    )
    if not found:
        raise Nothing(f"{flags.model} is a path, and nothing that is downloaded")
    return Order(found, _value(words, "download-dir"))


def _wanted(name: str, revision: str | None) -> Wanted:
    repository, _, part = name.partition(":")
    return Wanted(repository, revision, part or None)


def _is_repository(name: str) -> bool:
    return _REPOSITORY.fullmatch(name) is not None


def _value(words: Sequence[str], flag: str) -> str | None:
    """The value of a flag that takes one, in either form, hyphens or underscores."""
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.startswith("--") and name[2:].replace("_", "-") == flag:
            return value if equals else next(iter(words[index + 1 : index + 2]), None)
    return None


def _loras(words: Sequence[str]) -> list[str]:
    """Of ``--lora-modules name=path ...`` the paths; each may be JSON as well."""
    found = []
    inside = False
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            inside = name[2:].replace("_", "-") == "lora-modules"
            word = value if equals else ""
        if inside and word:
            path = _member(word, "path") if word.startswith("{") else word.partition("=")[2]
            if path:
                found.append(path)
    return found


def _speculative(words: Sequence[str]) -> str | None:
    """The draft model of ``--speculative-config '{"model": ...}'``."""
    return _member(_value(words, "speculative-config") or "", "model")


def _member(text: str, name: str) -> str | None:
    try:
        value = json.loads(text).get(name)
    except (ValueError, AttributeError):
        return None
    return value if isinstance(value, str) else None
