"""Operations at each entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lossforge import ir
from lossforge.frontends.positional.literals import Literals
from lossforge.frontends.positional.nodes import is_whole
from lossforge.frontends.positional.values import Rule, Tensor
from lossforge.ir import Kind, Node


class Elementwise(Literals):
    """Operations at each entry, with broadcasting."""

    def elementwise(self, op: str, *operands: Any) -> Tensor:
        """An operation of the table at each entry, with broadcasting."""
        nodes, dims = self.align([self.tensor(x) for x in operands])
        if op == "where" and all(n.kind is Kind.BOOL for n in nodes[1:]):
            return Tensor(_chosen(*nodes), dims)
        return Tensor(ir.elementwise(op, *nodes), dims)

    def map(self, function: Callable[..., Node], *operands: Any) -> Tensor:
        """A formula at each entry, with broadcasting."""
        nodes, dims = self.align([self.tensor(x) for x in operands])
        node = function(*(ir.as_kind(n, Kind.FLOAT) for n in nodes))
        return Tensor(node, dims)

    def cast(self, x: Any, kind: Kind) -> Tensor:
        """`x` as floats, integers or truth values."""
        t = self.tensor(x)
        node = t.node
        if kind is Kind.INDEX and node.op == "cast" and node.args[0].kind in (Kind.INDEX, Kind.BOOL):
            node = node.args[0]
        if kind is Kind.INDEX and node.op != "input" and not is_whole(node):  # towards zero, as every library does
            node = ir.elementwise("sign", node) * ir.elementwise("floor", ir.elementwise("abs", node))
        return Tensor(ir.as_kind(node, kind), t.dims)


def _chosen(condition: Node, x: Node, y: Node) -> Node:
    """A choice between truth values."""
    if x.op == "constant":
        return ir.elementwise("or", condition, y) if x.attrs[0] else ir.elementwise("and", _not(condition), y)
    if y.op == "constant":
        return ir.elementwise("or", _not(condition), x) if y.attrs[0] else ir.elementwise("and", condition, x)
    first, second = ir.elementwise("and", condition, x), ir.elementwise("and", _not(condition), y)
    return ir.elementwise("or", first, second)


def _not(condition: Node) -> Node:
    return ir.elementwise("not", condition)


def rule_for(op: str) -> Rule:
    """The rule of a library's operation that is one of the table."""
    return lambda imp, step, *args: imp.elementwise(op, *args)
