"""Which backend serves a model's name.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from llmproxy.config.model import BackendSpec

__all__ = ["Named", "index_names"]


class Named(Protocol):
    """What is asked of a backend here."""

    @property
    def spec(self) -> BackendSpec:
        """Its settings."""

    @property
    def models(self) -> tuple[str, ...]:
        """The names that it serves."""


B = TypeVar("B", bound=Named)


def index_names(backends: Iterable[B]) -> dict[str, B]:
    """Every name with the backend that serves it.

    A name of its own goes before an alias.  Where names were read from the backends themselves, several may
    have the same one: the first of them serves it; of several with the same alias it is the last.
    """
    own: dict[str, B] = {}
    aliases: dict[str, B] = {}
    for backend in backends:
        for name in backend.models:
            own.setdefault(name, backend)
        for name in backend.spec.aliases:
            aliases[name] = backend
    return aliases | own
