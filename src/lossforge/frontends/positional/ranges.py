"""Positions along axes: ranges, and the turns of loops."""

from __future__ import annotations

from collections.abc import Sequence

from lossforge import ir
from lossforge.frontends.positional.axes import Axes
from lossforge.frontends.positional.axis_table import DERIVED, RANGE, unprimed
from lossforge.frontends.positional.nodes import relabel, renamed
from lossforge.frontends.positional.values import Tensor
from lossforge.ir import Axis, Kind, Node


class Ranges(Axes):
    """Positions along axes."""

    def arange(self, sizes: Sequence[int]) -> Tensor:
        """0, 1, 2 … n − 1."""
        if set(sizes) == {1}:
            return Tensor(ir.constant(0, Kind.INDEX), ((),))
        name = self.number("range")
        if len(set(sizes)) > 1 and self.table.root(DERIVED + name) == DERIVED + name:
            found = self.having(sizes)
            if found:
                return Tensor(ir.iota(found[0]), ((found[0],),))
        axis = self.derived(name, sizes, self.symbol(sizes))
        length = None
        if self.origin[axis].startswith(DERIVED):
            if len(set(sizes)) == 1:
                length = sizes[0]
            elif self.origin[axis].startswith(RANGE):
                self.ranges.add(axis)
        return Tensor(ir.iota(axis, length), ((axis,),))

    def positions(self, sizes: Sequence[int], dim: int, rank: int) -> Tensor:
        """0, 1, 2 … n − 1 along one of several dimensions."""
        counter = self.arange(sizes)
        return Tensor(counter.node, tuple(counter.dims[0] if d == dim else () for d in range(rank)))

    def counter(self, axis: Axis) -> Node:
        """The positions along an axis, which tell its size if nothing else does."""
        sizes = self.sizes_of(axis)
        made = self.origin[unprimed(axis)].startswith(DERIVED) and len(set(sizes)) == 1
        return ir.iota(axis, sizes[0] if made else None)

    def turn(self, counts: Sequence[int]) -> Tensor:
        """The number of a loop's turn: the position along an axis of turns, which lies in no dimension."""
        counter = self.arange(counts)
        if not counter.dims[0]:
            return Tensor(counter.node, ())
        (axis,) = counter.dims[0]
        copy = f"{axis}~{self.number('turns')}"
        self.sizes[copy], self.size_nodes[copy] = self.sizes_of(axis), self.size(axis)
        self.origin[copy], self.copies[copy] = self.origin[unprimed(axis)], axis
        return Tensor(relabel(counter.node, {axis: copy}), ())

    def unturned(self, x: Tensor, copy: Axis) -> Tensor:
        """`x` with an axis of turns as its first dimension."""
        axis = self.copies[copy]
        name = self.unused(axis, {a for d in x.dims for a in d} | x.node.axes)
        node = renamed(x.node, copy, name, {}) if name == axis else None
        return Tensor(relabel(x.node, {copy: name}) if node is None else node, ((name,), *x.dims))
