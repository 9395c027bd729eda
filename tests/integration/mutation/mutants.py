"""All the mutants of a module."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from typing import Any

from attrs import frozen
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

from tests.integration.mutation.operators import OPERATORS

__all__ = ["Mutant", "mutants"]


@frozen
class Mutant:
    """A module with one fault in it.

    :ivar kind: of the fault.
    :ivar line: of the fault itself.
    :ivar lines: the first and the last of the statement that it stands in: a test that comes by that need
        not come by the line of the fault itself, which an ``or`` before it may have left out.
    :ivar before: the line without it, and ``after`` with it.
    """

    kind: str
    line: int
    lines: tuple[int, int]
    before: str
    after: str
    source: str

    @property
    def id(self) -> str:
        """The same for the same fault in the same module."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant that can be compiled and is another programme."""
    seen = {ast.dump(ast.parse(source))}
    tree = get_ast(source)
    spared, statements = _spared(source), _statements(source)
    for kind in OPERATORS:
        operator = kind.make()
        occurrence = -1
        for node in ast_nodes(tree):
            for start, end in operator.mutation_positions(node):
                occurrence += 1
                if not _meant(node) or any(first <= start[0] <= last for first, last in spared):
                    continue
                code = mutate_code(source, operator, occurrence)
                try:
                    shape = ast.dump(ast.parse(code))
                except SyntaxError:
                    continue
                if shape not in seen:
                    seen.add(shape)
                    yield _mutant(kind.name, source, code, _around(start[0], end[0], statements))


def _statements(source: str) -> list[tuple[int, int]]:
    """Their first and last lines; of one that has others within it, those before these."""
    return [
        (node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt)
        for body in [getattr(node, "body", None)]
    ]


def _around(first: int, last: int, statements: list[tuple[int, int]]) -> tuple[int, int]:
    """The lines of the statements that these lines are of."""
    of = [each for each in statements if each[0] <= last and first <= each[1]]
    return min([first, *(start for start, _ in of)]), max([last, *(end for _, end in of)])


def _mutant(kind: str, source: str, code: str, lines: tuple[int, int]) -> Mutant:
    old, new = source.splitlines(), code.splitlines()
    at = next((n for n, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), lines[0] - 1)
    return Mutant(kind, at + 1, (min(lines[0], at + 1), lines[1]), old[at].strip(), new[at].strip(), code)


def _spared(source: str) -> list[tuple[int, int]]:
    """Lines of statements that are no behaviour: what is exported, what is for the type checker (assertions
    among it: what is asserted cannot be otherwise; and protocols), slots, and what is logged."""
    return [
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assert)
        or (isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING")
        or (isinstance(node, ast.ClassDef) and any(_name(base) == "Protocol" for base in node.bases))
        or (isinstance(node, ast.Assign) and _name(node.targets[0]) in ("__all__", "__slots__"))
        or (isinstance(node, ast.Expr) and ast.unparse(node).startswith("self._log."))
    ]


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _meant(node: Any) -> bool:
    """It is no part of an annotation, and no decorator but of what we have written ourselves."""
    if node.type == "decorator":
        # A value that can be changed, or a result that is not kept, is no other behaviour.
        return not node.get_code().strip().startswith(("@define", "@frozen", "@lru_cache"))
    if node.type == "operator" and node.parent.type in ("parameters", "param"):
        # The ``*`` before keywords.
        return False
    inner, outer = node, node.parent
    while outer is not None:
        if outer.type in ("annassign", "tfpdef", "param") and _annotates(inner, outer):
            return False
        if outer.type == "funcdef" and inner is outer.annotation:
            return False
        if outer.type == "decorator" and outer.get_code().strip().startswith(("@define", "@lru_cache")):
            return False
        inner, outer = outer, outer.parent
    return True


def _annotates(inner: Any, outer: Any) -> bool:
    if outer.type == "param":
        return inner.type == "tfpdef" or inner is outer.annotation
    before = inner.get_previous_sibling()
    return before is not None and before.type == "operator" and before.value == ":"
