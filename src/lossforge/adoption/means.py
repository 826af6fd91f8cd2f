"""The entries that a loss is the mean of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from lossforge import ir
from lossforge.ir import Axis, Node


def mean(node: Node, order: Sequence[Axis]) -> Node:
    """The mean over axes."""
    return ir.total(node, order) / ir.sizes(order) if order else node


def before_mean(node: Node, size: Callable[[Axis], Node]) -> tuple[Node, frozenset[Axis]] | None:
    """(x, axes) where `node` is the mean of x over the axes."""
    if node.op == "div" and node.args[0].op == "sum":
        over = node.args[0]
        if Counter(_factors(node.args[1])) == Counter(size(a) for a in over.attrs[0]):
            return over.args[0], frozenset(over.attrs[0])
    if node.op == "neg":
        found = before_mean(node.args[0], size)
        return None if found is None else (-found[0], found[1])
    if node.op in ("add", "sub", "mul", "div"):
        for i, other in ((0, node.args[1]), (1, node.args[0])):
            if node.op == "div" and i == 1:
                continue
            free = all(
                n.op in ("constant", "size") or (n.op == "input" and not n.axes) or n.args
                for n in ir.topological([other])
            )
            arrays = any(n.op == "input" and n.axes for n in ir.topological([other]))
            if other.axes or arrays or not free:
                continue
            found = before_mean(node.args[i], size)
            if found is not None:
                x = found[0]
                return ir.elementwise(node.op, *((x, other) if i == 0 else (other, x))), found[1]
    return None


def _factors(node: Node) -> list[Node]:
    return [*_factors(node.args[0]), *_factors(node.args[1])] if node.op == "mul" else [node]
