"""The kinds of faults: those of Cosmic Ray that a person might make, and four of our own beside them.

Cosmic Ray replaces each operator by each other one (``==`` by ``<``, ``is``, ...).  Of those one remains for
each: its opposite, and for an order its other bound.  The rest are found as soon as that one is, or change
nothing (``is`` for ``==`` between small numbers), and would make the numbers look better than the tests are.
Its ``AddNot`` negates the first part of ``a or b``, and no ``elif``; :class:`NegateCondition` the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import parso
from attrs import frozen
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider

__all__ = ["OPERATORS", "MembershipOperator", "NegateCondition", "RemoveStatement", "ReturnNone"]

_COSMIC = (
    *(
        f"ReplaceBinaryOperator_{pair}"
        for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul")
    ),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Mod_Mul", "Pow_Mul", "BitOr_BitAnd", "BitAnd_BitOr")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt")),
    *(f"ReplaceUnaryOperator_{pair}" for pair in ("USub_UAdd", "Delete_Not")),
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ExceptionReplacer",
    "NumberReplacer",
    "RemoveDecorator",
    "ZeroIterationForLoop",
)

Position = tuple[tuple[int, int], tuple[int, int]]


class _Own(Operator):  # type: ignore[misc]  # it is not annotated
    """One fault for each node of a kind."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        if self.applies(node):
            yield node.start_pos, node.end_pos

    def applies(self, node: Any) -> bool:
        raise NotImplementedError

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


def _first(node: Any, *keywords: str) -> bool:
    """It stands right behind one of these words."""
    before = node.get_previous_sibling()
    return before is not None and before.type == "keyword" and before.value in keywords


def _replaced(node: Any, code: str) -> Any:
    """What stands there instead, behind the same white space."""
    return parso.parse(node.get_first_leaf().prefix + code)


class NegateCondition(_Own):
    """``if x`` becomes ``if not (x)``, as in ``elif``, ``while``, ``x if y else z`` and comprehensions.

    Comparisons and what is negated already are the affair of other operators."""

    def applies(self, node: Any) -> bool:
        return (
            _first(node, "if", "elif", "while")
            and node.type not in ("comparison", "not_test")
            and node.parent.type in ("if_stmt", "while_stmt", "test", "comp_if", "ternary")
        )

    def mutate(self, node: Any, index: int) -> Any:
        return _replaced(node, f"not ({node.get_code(include_prefix=False)})")


class MembershipOperator(_Own):
    """``in`` becomes ``not in``, and the other way round."""

    def applies(self, node: Any) -> bool:
        parent = node.parent
        if parent is None or parent.type != "comparison":
            return False
        return bool(node.get_code(include_prefix=False) in ("in", "not in"))

    def mutate(self, node: Any, index: int) -> Any:
        return _replaced(node, "not in" if node.get_code(include_prefix=False) == "in" else "in")


class ReturnNone(_Own):
    """``return x`` and ``yield x`` come to nothing."""

    def applies(self, node: Any) -> bool:
        return _first(node, "return") and node.get_code(include_prefix=False) != "None"

    def mutate(self, node: Any, index: int) -> Any:
        return _replaced(node, "None")


class RemoveStatement(_Own):
    """A call, a ``raise``, a ``del`` or what is put into an attribute, an item or a sum is left out.

    Names that are bound are left alone: that they are missing, every test finds."""

    def applies(self, node: Any) -> bool:
        if node.parent is None or node.parent.type != "simple_stmt":
            return False
        if node.type in ("raise_stmt", "del_stmt"):
            return True
        if node.type in ("atom_expr", "power"):
            return bool(node.children[-1].type == "trailer")
        if node.type != "expr_stmt":
            return False
        target, assignment = node.children[:2]
        augmented = assignment.type == "operator" and assignment.value != "="
        return bool(target.type != "name" or augmented)

    def mutate(self, node: Any, index: int) -> Any:
        return _replaced(node, "pass")


@frozen
class Kind:
    """A kind of fault, and how one of that kind is made."""

    name: str
    make: Callable[[], Any]


_provider = OperatorProvider()

OPERATORS: tuple[Kind, ...] = (
    *(Kind(name, _provider[name]) for name in _COSMIC),
    *(
        Kind(each.__name__, each)
        for each in (NegateCondition, MembershipOperator, ReturnNone, RemoveStatement)
    ),
)
