"""Idioms: rewrites from a graph's operations to those used on paper: `clip`, `softmax`, `mean`, brackets."""

from __future__ import annotations

from collections.abc import Sequence

from lossforge import ir
from lossforge.ir import Kind, Node, as_kind, constant, intern
from lossforge.rewrite import Rewriter, rules
from lossforge.simplify import as_softmax

_IDIOMS = rules("""
    x * x * x -> pow(x, 3)
    x * x -> pow(x, 2)
    pow(x, k) * pow(x, k) -> pow(x, k + k)
    pow(x, k) * x -> pow(x, k + 1)
    0 - x -> -x
    -x + y -> y - x
    x + -y -> x - y
    log1p(-x) -> log(1 - x)
    log1p(x) -> log(1 + x)
    expm1(x) -> exp(x) - 1
""")


def _sum_of_numbers(node: Node) -> Node | None:
    x, y = node.args
    return constant(x.attrs[0] + y.attrs[0]) if x.op == y.op == "constant" else None


def _number_first(node: Node) -> Node | None:
    x, y = node.args
    return y * x if y.op == "constant" != x.op else None


def _negative_term(node: Node) -> Node | None:
    """x + (−2)·y -> x − 2·y, and (−2)·y + x -> x − 2·y."""
    for x, y in (node.args, node.args[::-1]):
        if y.op == "mul" and y.args[0].op == "constant" and y.args[0].attrs[0] < 0:
            number = -y.args[0].attrs[0]
            return x - (y.args[1] if number == 1 else number * y.args[1])
    return None


def _clip(node: Node) -> Node | None:
    """minimum(maximum(x, low), high), where the limited one is what varies most.

    The other way round the two agree only for low ≤ high, which is known of numbers alone.
    """
    inner_op = "maximum" if node.op == "minimum" else "minimum"
    for inner, outer_bound in (node.args, node.args[::-1]):
        if inner.op != inner_op or outer_bound.op == inner_op:
            continue
        rank = [(len(a.axes), a.op != "constant", -i) for i, a in enumerate(inner.args)]
        x, bound = inner.args if rank[0] >= rank[1] else inner.args[::-1]
        low, high = (bound, outer_bound) if node.op == "minimum" else (outer_bound, bound)
        in_order = low.op == high.op == "constant" and low.attrs[0] <= high.attrs[0]
        if len(outer_bound.axes) <= len(x.axes) and (node.op == "minimum" or in_order):
            return ir.elementwise("clip", x, low, high)
    return None


def _mean(node: Node) -> Node | None:
    """A sum over the sizes of the same axes."""
    x, divisor = node.args
    if x.op != "sum" or sorted(_size_factors(divisor)) != sorted(x.attrs[0]):
        return None
    return intern("mean", x.args, x.attrs, x.axes, Kind.FLOAT)


def _size_factors(node: Node) -> list[str]:
    if node.op == "mul":
        return _size_factors(node.args[0]) + _size_factors(node.args[1])
    return [node.attrs[0]] if node.op == "size" else ["no size"]


def _bracket(node: Node) -> Node | None:
    """where(c, k, 0) -> k·[c], Iverson's bracket, for numbers and parameters k."""
    condition, x, y = node.args
    if x.op == "constant" and x.attrs[0] == 0 and condition.op in NEGATED:
        condition, x, y = ir.elementwise(NEGATED[condition.op], *condition.args), y, x
    if x.axes or y.op != "constant" or y.attrs[0] != 0:
        return None
    bracket = as_kind(condition, Kind.FLOAT)
    if x.op == "neg":
        return -(x.args[0] * bracket)
    if x.op != "constant":
        return x * bracket
    number = x.attrs[0]
    return bracket if number == 1 else -bracket if number == -1 else number * bracket


NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}
"""Each comparison and its opposite."""


def idiomatic(roots: Sequence[Node]) -> list[Node]:
    """The graphs in operations that are used on paper; only a `Notation` reads these."""
    functions = {
        "minimum": (_clip,),
        "maximum": (_clip,),
        "exp": (as_softmax,),
        "sub": (as_softmax,),
        "div": (_mean,),
        "where": (_bracket,),
        "add": (_sum_of_numbers, _negative_term),
        "mul": (_number_first,),
    }
    return Rewriter(_IDIOMS, functions)(roots)
