"""Programs in pieces along one axis, so that no matrix of similarities is ever there as a whole.

A contrastive loss of N rows compares each row with every other: an N × N matrix, which a row of the result needs one
row of. Such a program is cut along the axis of these rows: the *part* is computed for some rows at a time, with the
matrix products and softmaxes in between; what sums over the rows is accumulated; and the *rest*, which needs the
complete sums, follows at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lossforge import ir
from lossforge.ir import REDUCTIONS, Axis, Node, Port, Program
from lossforge.schedule import Schedule


@dataclass(frozen=True)
class Cut:
    """A program in pieces along `axis`."""

    axis: Axis
    part: Program
    """For some rows: first outputs of the whole program that have the axis, then what is accumulated over it."""
    sources: tuple[tuple[int, bool], ...]
    """For each input of the part: which input of the whole it is, and whether only some rows of it."""
    direct: tuple[int, ...]
    """Which outputs of the whole the first outputs of the part are."""
    accumulated: tuple[Node, ...]
    """The reductions that the other outputs of the part are pieces of."""
    rest: Program
    """All other outputs, from the inputs of the whole and what was accumulated."""

    def makes(self, product: Node) -> bool:
        """Whether a matrix product is left to the part."""
        return all(n is not product for n in ir.topological([o.node for o in self.rest.outputs]))


class _Uncuttable(Exception):
    """Internal: something needs the rows all at once."""


def cut(made: Schedule, axis: Axis, size: int) -> Cut | None:
    """The scheduled program in pieces along an axis of this size; None if one row depends on the others."""
    try:
        return _cut(made, axis, size)
    except _Uncuttable:
        return None


def _cut(made: Schedule, axis: Axis, size: int) -> Cut:
    program = made.program
    accumulated = _topmost_reductions(made.outputs, axis)
    whole = {n for r in accumulated for n in ir.topological(r.args) if n.op in REDUCTIONS and axis in n.attrs[0]}
    if whole:
        raise _Uncuttable
    direct = tuple(
        i
        for i, (node, port) in enumerate(zip(made.outputs, program.outputs, strict=True))
        if axis in port.order and axis in node.axes and not _topmost_reductions([node], axis)
    )
    rows = _Rows(program, axis, size)
    nodes = rows.of([*(made.outputs[i] for i in direct), *accumulated])
    ports = [Port(n, program.outputs[i].order) for n, i in zip(nodes, direct, strict=False)]
    ports += [Port(n, tuple(sorted(n.axes))) for n in nodes[len(direct) :]]
    part = Program(
        tuple(rows.ports), tuple(ports), tuple(f"part_{i}" for i in range(len(ports))), (None,) * len(ports),
        program.nonnegative,
    )  # fmt: skip

    sums = {r: ir.input_(f"accumulated_{i}", r.axes) for i, r in enumerate(accumulated)}
    others = [i for i in range(len(made.outputs)) if i not in direct]
    found = ir.substitute([made.outputs[i] for i in others], sums)
    rest = Program(
        (*program.inputs, *(Port(n, tuple(sorted(n.axes))) for n in sums.values())),
        tuple(Port(n, program.outputs[i].order) for n, i in zip(found, others, strict=True)),
        tuple(program.output_names[i] for i in others), (None,) * len(others), program.nonnegative,
    )  # fmt: skip
    return Cut(axis, part, tuple(rows.sources), direct, tuple(accumulated), rest)


def _topmost_reductions(roots: Iterable[Node], axis: Axis) -> list[Node]:
    """The reductions over an axis that are reached first."""
    found: dict[Node, None] = {}
    seen: set[Node] = set()
    stack = list(roots)
    while stack:
        n = stack.pop()
        if n in seen:
            continue
        seen.add(n)
        if n.op in REDUCTIONS and axis in n.attrs[0]:
            found[n] = None
        else:
            stack.extend(n.args)
    return list(found)


class _Rows:
    """Formulas for some of the rows, over inputs of which some are whole."""

    def __init__(self, program: Program, axis: Axis, size: int) -> None:
        self.program, self.axis, self.size = program, axis, size
        self.ports: list[Port] = []
        self.sources: list[tuple[int, bool]] = []
        self.inputs: dict[tuple[Node, Axis], Node] = {}
        self.known: dict[tuple[Node, Axis], Node] = {}

    def of(self, nodes: Iterable[Node]) -> list[Node]:
        """These formulas, for some rows."""
        return [self._node(n, self.axis) for n in nodes]

    def _node(self, node: Node, name: Axis) -> Node:
        """A formula with another name for the axis; only under its own name is it of some rows."""
        key = (node, name)
        if key not in self.known:
            self.known[key] = self._made(node, name)
        return self.known[key]

    def _made(self, node: Node, name: Axis) -> Node:
        axis = self.axis
        if node.op == "input":
            return self._input(node, name) if node.axes else self._input(node, axis)
        if node.op == "size" and node.attrs[0] == axis:
            return ir.constant(float(self.size))
        if node.op == "rename":
            old, new = node.attrs
            if old == axis:
                return self._node(node.args[0], new)
            if new == axis or name in (old, new):
                raise _Uncuttable
        elif axis in node.attrs or name != axis and {axis, name} & _attribute_axes(node):
            raise _Uncuttable  # counts, looks up, cuts or sorts along the axis
        return ir.rebuild(node, [self._node(a, name) for a in node.args])

    def _input(self, node: Node, name: Axis) -> Node:
        key = (node, name if self.axis in node.axes else self.axis)
        if key not in self.inputs:
            place = next(i for i, p in enumerate(self.program.inputs) if p.node is node)
            order = tuple(name if a == self.axis else a for a in self.program.inputs[place].order)
            if len(set(order)) < len(order):
                raise _Uncuttable
            whole = name != self.axis
            text = f"{node.attrs[0]}_{name}" if whole else str(node.attrs[0])
            made = ir.input_(text, frozenset(order), node.kind)
            self.inputs[key] = made
            self.ports.append(Port(made, order))
            self.sources.append((place, self.axis in node.axes and not whole))
        return self.inputs[key]


def _attribute_axes(node: Node) -> frozenset[Axis]:
    """The axes that an operation names, such as those that it sums over."""
    return frozenset(a for v in node.attrs if isinstance(v, tuple) for a in v if isinstance(a, str))


__all__ = ["Cut", "cut"]
