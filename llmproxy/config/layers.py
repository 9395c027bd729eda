"""One source of settings, before they are put together.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import define, field, frozen

from llmproxy.config.model import Key
from llmproxy.errors import ConfigError

__all__ = ["RESERVED", "Layer", "Setting", "route_name"]

RESERVED = frozenset(("v1", "api", "ui", "metrics", "healthz", "readyz", "docs", "favicon.ico"))
"""First path segments of the proxy's own."""

_ROUTE = re.compile(r"[a-z0-9][a-z0-9._-]*")


@frozen
class Setting:
    """A value, and where it was written."""

    value: Any
    source: str


@define
class Layer:
    """What one source says; anything that it does not mention is left to those below it.

    :ivar top: settings of the proxy as a whole, by dotted name (``limits.max_body``).
    :ivar defaults: backend fields for every backend.
    :ivar backends: backend fields by route.
    :ivar key_sources: where each key stands, by its name.
    """

    top: dict[str, Setting] = field(factory=dict)
    defaults: dict[str, Setting] = field(factory=dict)
    backends: dict[str, dict[str, Setting]] = field(factory=dict)
    keys: list[Key] = field(factory=list)
    key_sources: dict[str, str] = field(factory=dict)

    def put(self, route: str, fields: Mapping[str, Setting]) -> None:
        """Say something of one route."""
        self.backends.setdefault(route, {}).update(fields)


def route_name(place: str, written: object) -> str:
    """A route's name as it is used: lower case.

    :raises llmproxy.errors.ConfigError: it cannot be a route.
    """
    name = str(written).lower()
    if not isinstance(written, str) or not _ROUTE.fullmatch(name):
        raise ConfigError(f"{place}: {written!r} is no route name; use letters, digits, '.', '_' and '-'")
    if name in RESERVED:
        raise ConfigError(
            f"{place}: {name!r} cannot be a route; llmproxy has the paths {', '.join(sorted(RESERVED))}"
        )
    return name
