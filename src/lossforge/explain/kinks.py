"""Where a loss has no derivative, what is used there instead, and what lets no gradient through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lossforge.explain.tidy import tidy
from lossforge.gradient import Contribution
from lossforge.ir import INDEX_REDUCTIONS, Kind, Node, depends_on, elementwise, topological
from lossforge.primitives import PRIMITIVES


@dataclass(frozen=True)
class Kink:
    """A part of the loss without a derivative somewhere."""

    node: Node
    at: tuple[Node, ...]
    """Comparisons that hold there; none for a part that is flat everywhere."""
    used: str
    """What is used there, in words."""


def carrying(record: Sequence[Contribution], predictions: Sequence[Node]) -> set[Node]:
    """The nodes through which a gradient flows to one of the predictions, these included."""
    found = set(predictions)
    for c in reversed(record):  # the record runs from the loss to the inputs
        if c.argument in found:
            found.add(c.node)
    return found


def kinks(value: Node, record: Sequence[Contribution], predictions: Sequence[Node]) -> tuple[Kink, ...]:
    """The kinks and the flat parts of `value`, from the inputs to the loss.

    Args:
        value: the unreduced loss.
        record: the chain rule as it was applied to it.
        predictions: what it was differentiated with respect to.
    """
    flowing = carrying(record, predictions)
    depending = depends_on([value], predictions)
    order = topological([value])
    users: dict[Node, list[Node]] = {}
    for n in order:
        for a in dict.fromkeys(n.args):
            users.setdefault(a, []).append(n)
    inner = {c for n in order if (c := _inner_of_clip(n, users)) is not None}
    ends = _dead_ends(order, flowing, depending)
    found: list[Kink] = []
    for n in order:
        if n in flowing and n not in inner:
            found += _kinks_of(n, flowing, depending, inner)
        elif n in ends:
            found += _flat(n, users.get(n, []), flowing)
    return tuple(found)


def _dead_ends(order: Sequence[Node], flowing: set[Node], depending: set[Node]) -> set[Node]:
    """The operations that stop a gradient on its way to a prediction."""
    reached = {order[-1]}
    found: set[Node] = set()
    for n in reversed(order):
        if n not in reached or n not in depending:
            continue
        if n not in flowing and _is_flat(n, depending):
            found.add(n)
        else:
            reached.update(n.args)
    return found


def _is_flat(node: Node, depending: set[Node]) -> bool:
    row = PRIMITIVES.get(node.op)
    if row is None:
        return node.op in INDEX_REDUCTIONS
    return all(row.partials[i] is None for i, a in enumerate(node.args) if a in depending)


def _inner_of_clip(node: Node, users: Mapping[Node, Sequence[Node]]) -> Node | None:
    """The maximum inside of minimum(maximum(x, low), high), or the other way round."""
    other = {"minimum": "maximum", "maximum": "minimum"}.get(node.op)
    for a in node.args:
        if other and a.op == other and users[a] == [node]:
            return a
    return None


def _kinks_of(node: Node, flowing: set[Node], depending: set[Node], inner: set[Node]) -> list[Kink]:
    if node.op in ("maximum", "minimum"):
        nested = next((a for a in node.args if a in inner), None)
        at = [_equal(*node.args)]
        if nested is not None:
            x, low = nested.args if nested.args[0] in flowing else nested.args[::-1]
            (high,) = (a for a in node.args if a is not nested)
            at = [_equal(x, low), _equal(x, high)]
        both = nested is None and sum(a in flowing for a in node.args) > 1
        return [Kink(node, tuple(at), "½ for each of the two" if both else "0")]
    if node.op in ("max", "min"):
        return [Kink(node, (), "where entries tie, they share the gradient equally")]
    if node.op == "take" and node.args[1] in depending:
        return [Kink(node, (), "where entries tie, the first of them comes first")]
    if node.op == "where":
        condition = node.args[0]
        if condition not in depending:
            return []
        return [Kink(node, tuple(_border(condition)), "each branch keeps its own derivative")]
    if node.op == "surrogate":
        return [Kink(node, (), "the value of the first, the gradient of the second")]
    row = PRIMITIVES.get(node.op)
    if row is None or row.kink is None:
        return []
    return [Kink(node, (_equal(row.kink(*node.args), 0.0),), row.subgradient)]


def _equal(x: Node, y: Node | float) -> Node:
    return tidy([elementwise("eq", x, y)])[0]


def _border(condition: Node) -> list[Node]:
    """Where a condition changes."""
    comparisons = [n for n in topological([condition]) if n.op in ("lt", "le", "gt", "ge")]
    return list(dict.fromkeys(_equal(*n.args) for n in comparisons))


def _flat(node: Node, users: Sequence[Node], flowing: set[Node]) -> list[Kink]:
    if node.kind is Kind.BOOL and all(u.op == "where" and u.args[0] is node for u in users):
        return []  # the `where` is listed itself
    if users and all(u.op == "surrogate" and u.args[0] is node for u in users):
        return []  # and so is the surrogate
    if node.op == "stop_gradient":
        return [Kink(node, (), "no gradient flows through it")]
    return [Kink(node, (), "flat: its gradient is 0, and none flows through it")]
