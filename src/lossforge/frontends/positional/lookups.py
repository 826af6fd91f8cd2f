"""Entries at positions that are values: gathers, index arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lossforge import ir
from lossforge.frontends.positional.axis_table import SELECTED, unprimed
from lossforge.frontends.positional.nodes import relabel, shifted, sorted_axis, tied, unguarded
from lossforge.frontends.positional.slices import Slices
from lossforge.frontends.positional.values import Dim, Refused, Tensor
from lossforge.ir import Axis, Kind, Node


class Lookups(Slices):
    """Entries at an index."""

    def select(self, x: Any, dim: int, index: Any) -> Tensor:
        """See `Slices.select`; the position may be a value."""
        return self.take(x, index, dim) if isinstance(index, Tensor) else super().select(x, dim, index)

    def pick(self, x: Any, dim: int, positions: Sequence[int]) -> Tensor:
        """Entries at constant positions along a dimension."""
        t = self.whole_axis(x, dim)
        index = self.array(np.asarray(positions, dtype=np.int64))
        return self.take(t, index, dim)

    def take(self, x: Any, index: Any, dim: int) -> Tensor:
        """The dimension `dim` of `x` replaced by all dimensions of the index, as `np.take` does."""
        t, at = self.single(self.tensor(x), dim), self.tensor(index)
        full = ((),) * dim + at.dims + ((),) * (t.rank - dim - 1)
        return self.gather(self._widen(t, dim, at.rank), Tensor(at.node, full), dim)

    def index(self, x: Any, indices: Sequence[tuple[int, Tensor]]) -> Tensor:
        """Entries at several index arrays at once, ``x[i, j]``: for each, the dimension and the positions along it."""
        t = self.tensor(x)
        if len(indices) == 1 and not indices[0][1].places:
            return self.take(t, indices[0][1], indices[0][0])
        first = indices[0][0]
        if [d for d, _ in indices] != list(range(first, first + len(indices))):
            raise Refused("index arrays in dimensions that are not neighbours; permute them to be so")
        # Each index in turn; the dimensions of the indices stand before those that are still to be indexed.
        rank = max(i.rank for _, i in indices)
        at = first
        for _, index in indices:
            picked = self.picked(t, at, index) if at == first else None
            if picked is not None:
                t, at = picked, first + rank
                continue
            if index.within and index.within == t.dims[at]:
                t = Tensor(t.node, (*t.dims[:at], self.held(index.within[0]), *t.dims[at + 1 :]))
                index = Tensor(self.counter(index.places[0]), index.dims)
            t = self.single(t, at)
            source = t.dims[at]
            new = ((),) * rank if at == first else ()
            others = Tensor(t.node, (*t.dims[:at], *new, *t.dims[at + 1 :]))
            full = (*((),) * first, *((),) * (rank - index.rank), *index.dims)
            full = (*full, *((),) * (others.rank - len(full)))
            t = self.gather((others, source), Tensor(index.node, full), first)
            at = first + rank
        return t

    def _widen(self, t: Tensor, dim: int, width: int) -> tuple[Tensor, Dim]:
        others = Tensor(t.node, (*t.dims[:dim], *((),) * width, *t.dims[dim + 1 :]))
        return others, t.dims[dim]

    def gather(self, x: tuple[Tensor, Dim], index: Tensor, dim: int) -> Tensor:
        """Entries at an index that lines up with all other dimensions."""
        x, index = self._cut(x, index)
        others, along = x
        if not along or along[0].startswith("#"):  # the same wherever it is looked up
            nodes, dims = self.align([Tensor(others.node, others.dims), index])
            return Tensor(nodes[0], dims)
        (axis,) = along
        index = Tensor(unguarded(index.node), index.dims)
        inner = False
        if axis.startswith(SELECTED):
            whole, _ = self.laid_out(Tensor(others.node, (along, *others.dims)), 0)
            inner = sorted_axis(index.node) == whole.dims[0][0]
            if inner:  # the order of a selection, which is that among all entries
                others, (axis,) = Tensor(whole.node, whole.dims[1:]), whole.dims[0]
            else:
                self._leading(axis, index.node)
                (axis,) = self.held(axis)
            along = (axis,)
        self._usable(index.node)
        ordered = sorted_axis(index.node)  # the order of one array, in which another is taken
        if ordered is not None and self.sizes_of(ordered)[0] == self.sizes_of(axis)[0]:
            if self.origin[unprimed(ordered)] != self.origin[unprimed(axis)]:
                self.same(ordered, axis)
        elsewhere = {a for d in others.dims for a in d}
        before = others.dims[dim] if dim < others.rank else ()
        blank = not before or (before[-1].startswith("#") and self.sizes_of(before[-1]) == self.sizes_of(axis))
        if not inner and index.node.op == "argsort" and index.node.attrs[0] == axis and axis not in elsewhere and blank:
            (source_node, order), dims = self.align(
                [Tensor(others.node, (*others.dims[:dim], before[:-1] + along, *others.dims[dim + 1 :])), index]
            )
            if order.op == "argsort":  # entries in the order of a sort: a permutation, whose inverse is cheap
                return Tensor(ir.take(source_node, order, order.attrs[0]), dims)
        # The source axis must not be mistaken for one of the others: it takes part under a name of its own.
        apart = axis
        if inner or any(unprimed(a) == unprimed(axis) for a in (*elsewhere, *(a for d in index.dims for a in d))):
            apart = unprimed(axis) + "_from"
            self.sizes.setdefault(apart, self.sizes_of(axis))
            self.origin.setdefault(apart, self.origin[unprimed(axis)])
            self.size_nodes.setdefault(apart, self.size(axis))
            apart = self.unused(apart, {*others.node.axes, *index.node.axes})
        source_node = relabel(others.node, {axis: apart}) if apart != axis else others.node
        nodes, dims = self.align([Tensor(source_node, others.dims), index])
        moved, node = nodes
        if apart not in moved.axes:
            return Tensor(moved, dims)
        if node.op == "iota" and self.sizes_of(node.attrs[0]) != self.sizes_of(axis):
            if len(set(self.sizes_of(node.attrs[0]))) > 1:
                raise Refused("a range as index into a dimension of another size; use a slice")
        elif node.op == "iota":  # each entry at its own place
            counted = node.attrs[0]
            if self.origin[unprimed(counted)] != self.origin[unprimed(axis)]:
                self.same(counted, axis)
            return Tensor(tied(moved, apart, counted, {}), dims)
        return Tensor(ir.take(moved, ir.as_kind(node, Kind.INDEX), apart), dims)

    def _cut(self, x: tuple[Tensor, Dim], index: Tensor) -> tuple[tuple[Tensor, Dim], Tensor]:
        """Entries at a range within a dimension are those of a slice, at their places."""
        others, along = x
        counted, first = shifted(index.node)
        if counted.op == "iota" and along:
            n, whole = self.sizes_of(counted.attrs[0]), self.extents(along)
            if n != whole and first >= 0 and all(first + m <= k for m, k in zip(n, whole, strict=True)):
                t = Tensor(others.node, (*others.dims, along))
                t = self.slice(t, others.rank, [first] * self.count, [first + m for m in n])
                return (Tensor(t.node, t.dims[:-1]), t.dims[-1]), Tensor(counted, index.dims)
        return x, index

    def _leading(self, name: Axis, index: Node) -> None:
        """Refuse positions in a selection that are not among the entries which are selected wherever others are."""
        lead = self.selections[unprimed(name)].lead
        free = any(n.op == "input" and n.axes for n in ir.topological([index]))
        if free or not lead or any((i >= n).any() for i, n in zip(self.known_entries(index), lead, strict=True)):
            raise Refused("an index into a selection by truth values; index first and then select, or use a where")

    def _usable(self, index: Node) -> None:
        """Refuse positions that are worked out in floats beyond what these hold exactly."""
        if index.kind is Kind.FLOAT and any(n.op == "iota" for n in ir.topological([index])):
            raise Refused("positions that are worked out from other positions in floats; keep them integers")
