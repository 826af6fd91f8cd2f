"""Pattern tables and their driver.

A rule is data: one line ``pattern -> replacement`` in Python's own expression syntax. A name of one letter stands for
any node, a name that begins with ``k`` for a constant; everything else is an operation of the table. Operations that
commute are tried both ways. What a line cannot say (reductions, sums of many terms) is a function from a node to its
replacement, or None.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lossforge.ir import Node, constant, elementwise, intern, rebuild, reduction, topological, transform

COMMUTATIVE = frozenset({"add", "mul", "eq", "ne", "and", "or", "minimum", "maximum", "logaddexp"})

_INFIX = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.Pow: "pow",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.Eq: "eq",
    ast.NotEq: "ne",
}
_REDUCTIONS = frozenset({"sum", "max", "logsumexp"})

Bindings: TypeAlias = dict[str, Node]
Condition: TypeAlias = Callable[[Mapping[str, Node]], bool]


@dataclass(frozen=True)
class Pattern:
    """A tree of operations with holes. `op` is "?" for a hole, "#" for a number."""

    op: str
    args: tuple[Pattern, ...] = ()
    name: str = ""
    value: float = 0.0

    def match(self, node: Node, bound: Bindings) -> Bindings | None:
        """The holes' contents if `node` has this form (and agrees with what is bound already)."""
        if self.op == "?":
            if self.name.startswith("k") and node.op != "constant":
                return None
            if self.name in bound:
                return bound if bound[self.name] is node else None
            return {**bound, self.name: node}
        if self.op == "#":
            return bound if node.op == "constant" and node.attrs[0] == self.value else None
        if node.op != self.op:
            return None
        if self.op in _REDUCTIONS:  # one set of axes for all reductions of a rule
            axes = intern("axes", (), node.attrs, frozenset(), node.kind)
            if bound.setdefault("axes", axes) is not axes:
                return None
        orders: tuple[Sequence[Node], ...] = (node.args,)
        if node.op in COMMUTATIVE:
            orders = (node.args, node.args[::-1])
        for order in orders:
            result: Bindings | None = dict(bound)
            for pattern, arg in zip(self.args, order, strict=True):
                result = None if result is None else pattern.match(arg, result)
            if result is not None:
                return result
        return None

    def build(self, bound: Mapping[str, Node]) -> Node:
        """The node with the holes filled."""
        if self.op == "?":
            return bound[self.name]
        if self.op == "#":
            return constant(self.value)
        args = [a.build(bound) for a in self.args]
        if self.op in _REDUCTIONS:
            return reduction(self.op, args[0], bound["axes"].attrs[0])
        return elementwise(self.op, *args)


def parse(text: str) -> Pattern:
    """The pattern that an expression denotes."""
    return _convert(ast.parse(text.strip(), mode="eval").body)


def _convert(tree: ast.expr) -> Pattern:
    match tree:
        case ast.Constant(value=(int() | float()) as value):
            return Pattern("#", value=float(value))
        case ast.Name(id=name):
            return Pattern("?", name=name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=(int() | float()) as value)):
            return Pattern("#", value=-float(value))
        case ast.UnaryOp(op=(ast.USub() | ast.Not()) as op, operand=operand):
            return Pattern("neg" if isinstance(op, ast.USub) else "not", (_convert(operand),))
        case ast.BinOp(left=left, op=op, right=right):
            return Pattern(_INFIX[type(op)], (_convert(left), _convert(right)))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return Pattern(_INFIX[type(op)], (_convert(left), _convert(right)))
        case ast.Call(func=ast.Name(id=name), args=args):
            return Pattern(name, tuple(map(_convert, args)))
    raise ValueError(f"not a pattern: {ast.unparse(tree)}")


@dataclass(frozen=True)
class Rule:
    """One identity, read from left to right."""

    text: str
    left: Pattern
    right: Pattern
    when: Condition | None = None

    def __call__(self, node: Node) -> Node | None:
        """The replacement of `node`; None where the rule does not fit."""
        bound = self.left.match(node, {})
        if bound is None or (self.when is not None and not self.when(bound)):
            return None
        return self.right.build(bound)


def rule(text: str, when: Condition | None = None) -> Rule:
    """A rule from its line of text."""
    left, right = text.split("->")
    return Rule(text.strip(), parse(left), parse(right), when)


def rules(table: str) -> tuple[Rule, ...]:
    """The rules of a table, one a line; ``#`` begins a comment."""
    lines = (line.split("#")[0].strip() for line in table.splitlines())
    return tuple(rule(line) for line in lines if line)


Rewrite: TypeAlias = Callable[[Node], Node | None]


class Rewriter:
    """Applies rules bottom-up until none fits.

    `applied` collects the rules that were used, in order, with the node before and after.
    """

    def __init__(self, table: Iterable[Rule], functions: Mapping[str, Sequence[Rewrite]] | None = None) -> None:
        self._by_op: dict[str, list[Rewrite]] = {}
        for r in table:
            self._by_op.setdefault(r.left.op, []).append(r)
        for op, extra in (functions or {}).items():
            self._by_op.setdefault(op, []).extend(extra)
        self._done: dict[Node, Node] = {}
        self.applied: list[tuple[Rewrite, Node, Node]] = []

    def __call__(self, roots: Sequence[Node]) -> list[Node]:
        """The graphs of `roots`, rewritten."""
        return transform(roots, lambda node, args: self.settle(rebuild(node, args)))

    def settle(self, node: Node) -> Node:
        """`node`, whose arguments are settled, rewritten until no rule fits."""
        if node in self._done:
            return self._done[node]
        result = node
        for rewrite in self._by_op.get(node.op, ()):
            new = rewrite(node)
            if new is not None and new is not node:
                self.applied.append((rewrite, node, new))
                result = self._settled_within(new, node)
                break
        self._done[node] = self._done[result] = result
        return result

    def _settled_within(self, new: Node, replaced: Node) -> Node:
        """`new`, whose new inner nodes settle first; what stands beneath settled ones is settled."""
        found: dict[Node, Node] = {}
        for n in topological([new], stop=lambda n: n is replaced or n in self._done):
            known = n if n is replaced else self._done.get(n)
            found[n] = self.settle(rebuild(n, [found[a] for a in n.args])) if known is None else known
        return found[new]
