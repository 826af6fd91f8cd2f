"""Sums of products as matrix products: Σ x · y with all that belongs to one factor gathered in it.

``Σ_k where(c_i, (x_ik / l_i) · y_jk, 0)`` is a product of the matrices ``where(c_i, x_ik / l_i, 0)`` and ``y_jk``. Derived
gradients and simplified formulas seldom have that form; without it, a loss of all pairs of N rows would go through
N · N · d entries in place of two matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from lossforge import ir
from lossforge.ir import Axes, Node, reduction, transform

Sides: TypeAlias = tuple[Node | None, Node | None]
"""What belongs to the first matrix and to the second; None for 1."""


class _Inseparable(Exception):
    """Internal: a factor spans both matrices."""


def factor_sums(roots: Sequence[Node]) -> list[Node]:
    """The graphs with every sum that can be a matrix product written as a sum over the product of two factors."""

    def visit(node: Node, args: tuple[Node, ...]) -> Node:
        made = ir.rebuild(node, args)
        return (_factored(made) if made.op == "sum" else None) or made

    return transform(roots, visit)


def _factored(node: Node) -> Node | None:
    """A sum as that of the product of two factors, each of which lacks axes of the other."""
    summed = frozenset(node.attrs[0])
    (x,) = node.args
    sets = {n.axes for n in _leaves(x)}
    largest = [s for s in sets if not any(s < other for other in sets)]
    if len(largest) != 2 or not all(summed <= s for s in largest):
        return None
    first, second = sorted(largest, key=sorted)
    try:
        left, right = _split(x, first, second)
    except _Inseparable:
        return None
    return None if left is None or right is None else reduction("sum", left * right, node.attrs[0])


def _leaves(node: Node) -> Iterator[Node]:
    """The factors of a product, what they are divided by, and the conditions that it stands under."""
    if node.op in ("mul", "div", "neg"):
        for a in node.args:
            yield from _leaves(a)
    elif branch := ir.kept_branch(node):
        yield node.args[0]
        yield from _leaves(node.args[branch])
    else:
        yield node


def _split(node: Node, first: Axes, second: Axes, guard: Axes | None = None) -> Sides:
    """The two sides of a product. What has the axes of one side stays as it is.

    A condition stands on every side that it fits, and what fits both sides goes to that of `guard`, whose condition it is
    under: what is divided by a count that is zero where the condition never holds must stay under it.
    """
    on_first, on_second = node.axes <= first, node.axes <= second
    if (on_first and guard is not second) or (on_second and guard is not first):
        return (node, None) if on_first and guard is not second else (None, node)
    if node.op == "mul":
        (left, right), (left_2, right_2) = (_split(a, first, second, guard) for a in node.args)
        return _times(left, left_2), _times(right, right_2)
    if node.op == "neg":
        left, right = _split(node.args[0], first, second, guard)
        return (None if left is None else -left), (-right if left is None and right is not None else right)
    if node.op == "div":
        divisor = node.args[1]
        left, right = _split(node.args[0], first, second, guard)
        fits = [divisor.axes <= side for side in (first, second)]
        if fits[0] and guard is not second and (left is not None or guard is first):
            return _over(left, divisor), right
        if fits[1] and guard is not first and (right is not None or guard is second):
            return left, _over(right, divisor)
        if fits[0] or fits[1]:
            return (_over(left, divisor), right) if fits[0] else (left, _over(right, divisor))
    elif branch := ir.kept_branch(node):
        condition = node.args[0]
        fits = [condition.axes <= side for side in (first, second)]
        left, right = _split(node.args[branch], first, second, guard if all(fits) else first if fits[0] else second)
        if (fits[0] and left is not None) or (fits[1] and right is not None):
            left = ir.under(condition, branch, left) if fits[0] and left is not None else left
            right = ir.under(condition, branch, right) if fits[1] and right is not None else right
            return left, right
    if on_first or on_second:
        return (node, None) if on_first else (None, node)
    raise _Inseparable


def _times(x: Node | None, y: Node | None) -> Node | None:
    return y if x is None else x if y is None else x * y


def _over(x: Node | None, divisor: Node) -> Node:
    return (1.0 if x is None else x) / divisor


__all__ = ["factor_sums"]
