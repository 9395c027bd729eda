"""What is mutated, and which unit tests have to find it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import frozen

__all__ = ["AREAS", "LEAST", "ROOT", "Module", "with_helpers"]

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
        """Another one when a test has been changed, or what it takes of other files of the tests."""
        digest = hashlib.sha256()
        for path in with_helpers(self.test_files):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def with_helpers(files: Iterable[str]) -> list[Path]:
    """These test files, and those that they import, and so on."""
    found: set[Path] = set()
    waiting = [ROOT / file for file in files]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(path)
    return sorted(found)


def _imported(path: Path) -> Iterator[Path]:
    """The files of the tests that a file imports; it does so by their whole names."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
        for name in names:
            if name.split(".")[0] == "tests":
                place = ROOT.joinpath(*name.split("."))
                yield from (
                    each for each in (place.with_suffix(".py"), place / "__init__.py") if each.exists()
                )


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
        *_modules("relay", ("upstream",), "upstream", "upstream_asked", "known", "front"),
        *_modules("web", ("reader",), "reader", "channel", "smuggling", "known", "front"),
    ),
}
"""By the name that ``--only`` takes."""
