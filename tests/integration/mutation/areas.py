"""What is mutated, and which unit tests have to find it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

__all__ = ["AREAS", "LEAST", "ROOT", "Module"]

ROOT = Path(__file__).resolve().parents[3]

LEAST = 90.0
"""Percent of an area's mutants that have to be found."""


@frozen
class Module:
    """A module of the proxy, and the tests that are meant to hold it: others may reach it, too."""

    name: str
    tests: tuple[str, ...]

    @property
    def path(self) -> Path:
        return ROOT.joinpath(*self.name.split(".")).with_suffix(".py")

    @property
    def test_files(self) -> tuple[str, ...]:
        return tuple(f"tests/unit/test_{name}.py" for name in self.tests)

    def digest_of_tests(self) -> str:
        """Another one when a test has been changed."""
        return hashlib.sha256(b"".join((ROOT / file).read_bytes() for file in self.test_files)).hexdigest()[
            :16
        ]


def _modules(package: str, names: Iterable[str], *tests: str) -> tuple[Module, ...]:
    return tuple(Module(f"llmproxy.{package}.{name}", tests) for name in names)


AREAS: dict[str, tuple[Module, ...]] = {
    "lifecycle": _modules("backend", ("lifecycle", "machine"), "lifecycle", "backend"),
    "placement": (
        *_modules("scheduling", ("placement", "turns"), "placement", "plans", "hosts_placement"),
        *_modules("scheduling", ("victims",), "victims", "placement", "plans"),
    ),
    "admission": (
        *_modules("backend", ("admission",), "admission", "gate", "backend"),
        *_modules("backend", ("gate",), "gate", "backend", "moving_on"),
    ),
    "headers": _modules("http", ("headers",), "headers", "known"),
    "framing": (
        *_modules("relay", ("upstream",), "upstream", "upstream_asked", "known"),
        *_modules("web", ("reader",), "reader", "channel", "smuggling", "known"),
    ),
}
"""By the name that ``--only`` takes."""
