"""Nodes with other names for their axes, and what an index is made of."""

from __future__ import annotations

from collections.abc import Mapping

from lossforge import ir
from lossforge.frontends.positional.values import Refused
from lossforge.ir import Axis, Kind, Node
from lossforge.primitives import is_elementwise


def relabel(node: Node, mapping: Mapping[Axis, Axis]) -> Node:
    """`node` with axes renamed, all at once."""
    pending = {old: new for old, new in mapping.items() if old != new and old in node.axes}
    while pending:
        free = [old for old, new in pending.items() if new not in node.axes]
        if free:
            old = free[0]
            new = pending.pop(old)
            node = ir.iota(new, *node.attrs[1:]) if node.op == "iota" else _called(node, old, new)
        else:
            old = next(iter(pending))
            if pending[old] not in pending:
                raise Refused(
                    f"the axis {pending[old]!r} would occur twice; give the two dimensions different sizes in the examples"
                )
            aside = old + "_aside"
            node = ir.rename(node, old, aside)
            pending[aside] = pending.pop(old)
    return node


def _called(node: Node, old: Axis, new: Axis) -> Node:
    """One axis renamed; a second name in a row takes the place of the first."""
    if node.op == "rename" and node.attrs[1] == old:
        (inner,) = node.args
        return inner if node.attrs[0] == new else ir.rename(inner, node.attrs[0], new)
    return ir.rename(node, old, new)


def renamed(node: Node, old: Axis, new: Axis, known: dict[Node, Node | None]) -> Node | None:
    """`node` with a free axis called otherwise, throughout, so that copies of `new` are undone; None if both occur."""
    if old not in node.axes:
        return None if new in node.axes else node
    if new in node.axes:
        return None
    if node not in known:
        known[node] = None
        if node.op == "rename" and node.attrs[1] == old:
            known[node] = node.args[0] if node.attrs[0] == new else relabel(node, {old: new})
        elif node.op == "iota":
            known[node] = ir.iota(new, *node.attrs[1:])
        elif node.op == "rename" and new not in node.attrs:
            inner = renamed(node.args[0], old, new, {})
            known[node] = None if inner is None else ir.rename(inner, *node.attrs)
        elif is_elementwise(node) or node.op in ir.REDUCTIONS or node.op == "cast":
            bound = node.attrs[0] if node.op in ir.REDUCTIONS else ()
            args = [a if old not in a.axes and new not in a.axes else renamed(a, old, new, known) for a in node.args]
            if new not in bound and all(a is not None for a in args):
                known[node] = ir.rebuild(node, args)  # type: ignore[arg-type]
        else:
            known[node] = relabel(node, {old: new})
    return known[node]


def tied(node: Node, axis: Axis, other: Axis, known: dict[Node, Node]) -> Node:
    """`node` where the positions along two axes agree: the diagonal, taken before what it is worked out from."""
    if axis not in node.axes:
        return node
    if other not in node.axes:
        return relabel(node, {axis: other})
    if node not in known:
        if is_elementwise(node) or (node.op in ir.REDUCTIONS | {"cast"}):
            known[node] = ir.rebuild(node, [tied(a, axis, other, known) for a in node.args])
        elif node.op == "rename" and node.attrs[1] == axis:
            known[node] = tied(node.args[0], node.attrs[0], other, {})
        elif node.op == "rename" and node.attrs[1] != other:
            known[node] = ir.rename(tied(node.args[0], axis, other, known), *node.attrs)
        else:
            known[node] = ir.take(node, ir.iota(other), axis)
    return known[node]


def unguarded(index: Node) -> Node:
    """A range without the guard against an ignored class that cross entropy puts before each index."""
    if index.op == "where" and index.args[1].op == "iota" and index.args[0].op == "ne":
        position, ignored = index.args[0].args
        if position is index.args[1] and ignored.op == "constant" and ignored.attrs[0] < 0:
            return position
    return index


def shifted(index: Node) -> tuple[Node, int]:
    """Positions from a constant on, as positions and the constant."""
    if index.op == "cast":
        inner, first = shifted(index.args[0])
        return (inner, first) if inner.op == "iota" else (index, 0)
    constants = [a for a in index.args if a.op == "constant" and float(a.attrs[0]).is_integer()]
    if (
        index.op in ("add", "sub", "mul")
        and len(constants) == 1
        and (index.op != "sub" or index.args[1] is constants[0])
    ):
        by = int(constants[0].attrs[0])
        inner, first = shifted(index.args[1 if index.args[0] is constants[0] else 0])
        if index.op == "mul":
            return (inner, first) if by == 1 else (index, 0)
        return inner, first + by if index.op == "add" else first - by
    return index, 0


def sorted_axis(index: Node) -> Axis | None:
    """The axis whose order an index holds, all of it or a part."""
    while index.op in ("cast", "stop_gradient", "window", "slide", "take", "flip", "rename"):
        index = index.args[0]
    if index.op == "argsort":
        return str(index.attrs[0])
    return str(index.attrs[0][0]) if index.op in ir.INDEX_REDUCTIONS else None


def is_whole(node: Node) -> bool:
    """Whether all entries are known to be whole numbers."""
    if node.kind is not Kind.FLOAT or node.op in ("size", "floor", "ceil", "round", "sign"):
        return True
    if node.op == "constant":
        return float(node.attrs[0]).is_integer()
    if node.op in ("cast", "neg", "abs", "add", "sub", "mul", "maximum", "minimum", "rename"):
        return all(map(is_whole, node.args))
    return node.op == "where" and all(map(is_whole, node.args[1:]))
