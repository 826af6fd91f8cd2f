"""The lowest layer of an import: axes, their names, and their sizes in each recording and as formulas."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lossforge import ir
from lossforge.errors import AdoptionError
from lossforge.frontends.positional.axis_table import DERIVED, SELECTED, AxisTable, unprimed
from lossforge.frontends.positional.values import Dim, Refused, Rule, Selection, Tensor
from lossforge.frontends.recording import Recording, fit
from lossforge.ir import Axis, Kind, Node, Port


class Axes:
    """The axes of a recording, as far as they are known at one attempt to read it."""

    def __init__(
        self,
        recording: Recording,
        names: Sequence[str],
        kinds: Sequence[Kind],
        rules: Mapping[str, Rule],
        table: AxisTable,
        examples: Mapping[Axis, int],
        shares: Sequence[float] = (),
    ) -> None:
        self.recording = recording
        self.rules = rules
        self.table = table
        self.examples = examples
        """The sizes of axes in the user's own examples."""
        self.shares = shares
        """Parts that numbers of entries may be of sizes."""
        self.count = len(recording.inputs[0]) if recording.inputs else 1
        self.sizes: dict[Axis, tuple[int, ...]] = {}
        self.size_nodes: dict[Axis, Node] = {}
        self.origin: dict[Axis, Axis] = {}
        self.fixed: dict[Axis, int] = {}
        self.sources: dict[Axis, tuple[Axis, str]] = {}
        self.ports: list[Port] = []
        self.values: dict[int, Any] = {}
        self.fresh: dict[str, int] = {}
        self.outer: set[frozenset[Axis]] = set()
        self.ranges: set[Axis] = set()
        """Axes of ranges that may still turn out to be one that an operation makes."""
        self.selections: dict[Axis, Selection] = {}
        self.copies: dict[Axis, Axis] = {}
        """The axes that those of selections are copies of."""
        self.at = 0
        """The number of the step that is being read."""
        for i, (name, kind, shapes) in enumerate(zip(names, kinds, recording.inputs, strict=True)):
            self.values[i] = self._input(name, kind, shapes)

    def _input(self, name: str, kind: Kind, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        order: list[Axis] = []
        for d in range(len(shapes[0])):
            label = self.label(f"{name}_{d}", [s[d] for s in shapes])
            order.append(self.unused(label, order))
        node = ir.input_(name, order, kind)
        self.ports.append(Port(node, tuple(order)))
        dims: list[Dim] = []
        for axis in order:
            if self.origin[unprimed(axis)] in self.table.units:
                node = ir.take(node, ir.constant(0, Kind.INDEX), axis)
                self.fixed[axis] = 1
                dims.append(())
            else:
                dims.append((axis,))
        return Tensor(node, tuple(dims))

    def unused(self, label: Axis, taken: Collection[Axis]) -> Axis:
        """`label`, with as many primes as tell it from those that are taken."""
        while label in taken:
            label += "'"
        return label

    def label(self, axis: Axis, sizes: Sequence[int], expression: Node | None = None) -> Axis:
        """The name of an axis after merging and naming; its sizes in each recording, and as a formula."""
        root = self.table.root(axis)
        name = self.table.names.get(root, root)
        self.origin[name] = root
        known = self.sizes.get(name)
        if known is None:
            self.sizes[name] = tuple(sizes)
            self.size_nodes[name] = expression if expression is not None else ir.size(name)
        elif known[0] != tuple(sizes)[0] and 1 in (known[0], tuple(sizes)[0]):
            # One example of size 1 was merged with a longer one: it was a broadcast.
            self.sizes[name] = max(known, tuple(sizes))
        return name

    def derived(self, name: str, sizes: Sequence[int], expression: Node) -> Axis:
        """An axis that is made by an operation."""
        if len(set(sizes)) == 1:
            expression = ir.constant(float(sizes[0]))
        return self.label(DERIVED + name, sizes, expression)

    def made_of(self, axis: Axis, stem: str, sizes: Sequence[int], size: Node, taken: Collection[Axis]) -> Axis:
        """The axis that an operation makes of another: made alike, two are one where those that they are made of are."""
        new = self.label(DERIVED + self.origin[unprimed(axis)] + stem, sizes, size)
        ancestors, each = {unprimed(axis)}, unprimed(axis)
        while each in self.sources:
            each = self.sources[each][0]
            ancestors.add(each)
        if new not in ancestors:  # as it is where what was padded has been cut back
            self.sources[new] = unprimed(axis), stem
        return self.unused(new, taken)

    def number(self, stem: str) -> str:
        """`stem` with the number of the step, and one within it: the same at every attempt.

        What a step makes may depend on what the table has learnt; that moves no names of other steps.
        """
        key = f"{stem}{self.at}"
        self.fresh[key] = self.fresh.get(key, -1) + 1
        return f"{key}_{self.fresh[key]}" if self.fresh[key] else key

    def sizes_of(self, axis: Axis) -> tuple[int, ...]:
        """The size of an axis in each recording."""
        if axis.startswith("#"):
            return tuple(int(n) for n in axis[1:].split("x"))
        return self.sizes[unprimed(axis)]

    def held(self, axis: Axis) -> Dim:
        """The axes of the graph that lie behind an axis: itself, or those of a selection."""
        if not axis.startswith(SELECTED):
            return (axis,)
        primes = axis[len(unprimed(axis)) :]
        return tuple(a + primes for a in self.selections[unprimed(axis)].axes)

    def extents(self, dim: Dim) -> tuple[int, ...]:
        """The size of a dimension in each recording."""
        return tuple(math.prod(self.sizes_of(a)[i] for a in dim) for i in range(self.count))

    def size(self, axis: Axis) -> Node:
        """The size of an axis as a node."""
        return self.symbol(self.sizes_of(axis)) if axis.startswith("#") else self.size_nodes[unprimed(axis)]

    def length(self, dim: Dim) -> Node:
        """The size of a dimension as a node."""
        result = ir.constant(1.0)
        for axis in dim:
            result = self.size(axis) if result.op == "constant" and result.attrs[0] == 1 else result * self.size(axis)
        return result

    def extent(self, values: Sequence[int]) -> ir.Extent | None:
        """A number of entries: constant, or the size of an axis plus a constant."""
        if len(set(values)) == 1:
            return ir.extent(values[0])
        for axis, sizes in self.sizes.items():
            if self.origin[axis].startswith((DERIVED, SELECTED)) or axis in self.copies:
                continue
            if tuple(sizes) == tuple(values):
                return ir.extent(0, {axis: 1})
        return None

    def symbol(self, values: Sequence[float]) -> Node:
        """The formula behind a number that was seen in each recording."""
        counts = [a for a in self.selections if len(set(self.sizes[a])) > 1]
        for k in range(2, len(counts) + 1 if len(counts) <= 10 else 0):
            for chosen in itertools.combinations(counts, k):
                if all(sum(self.sizes[a][i] for a in chosen) == v for i, v in enumerate(values)):
                    return functools.reduce(operator.add, (self.size_nodes[a] for a in chosen))
        sizes = {
            a: (self.size_nodes[a], s)
            for a, s in self.sizes.items()
            if a not in self.copies and not (self.size_nodes[a].op == "size" and a.startswith(DERIVED))
        }
        try:
            return fit(values, sizes, self.recording.environment)
        except AdoptionError as error:
            raise Refused(str(error)) from None

    def axis_of(self, sizes: Sequence[int]) -> Axis | None:
        """The axis that has these sizes in the recordings, if there is only one."""
        found = self.having(sizes)
        return found[0] if len(found) == 1 else None

    def having(self, sizes: Sequence[int]) -> list[Axis]:
        """The axes that have these sizes in the recordings."""
        return [
            a
            for a, s in self.sizes.items()
            if tuple(s) == tuple(sizes)
            and self.origin[a] not in self.table.units
            and a not in self.copies
            and not a.startswith(SELECTED)
            and a not in self.ranges
        ]

    def ghost(self, sizes: Sequence[int]) -> Axis:
        """A dimension along which a value is constant by construction; it takes the axis of what it meets."""
        return "#" + "x".join(str(n) for n in sizes)
