"""Along a dimension: sorted, flipped, cumulated."""

from __future__ import annotations

import math
from typing import Any

from lossforge import ir
from lossforge.frontends.positional.axis_table import unprimed
from lossforge.frontends.positional.reductions import Reductions
from lossforge.frontends.positional.values import Tensor
from lossforge.ir import Kind


class Orders(Reductions):
    """Entries in the order of a dimension."""

    def sort(self, x: Any, dim: int, descending: bool = False) -> tuple[Tensor, Tensor]:
        """The entries along a dimension in order, and where they were."""
        t = self.tensor(x)
        if self.is_selected(t, dim):
            return self._sort_selected(t, dim, descending)
        t = self.whole_axis(t, dim)
        if not t.dims[dim] or t.dims[dim][0] not in t.node.axes:  # all are equal
            return t, self.positions(self.extents(t.dims[dim]), dim, t.rank)
        (axis,) = t.dims[dim]
        node = ir.as_kind(t.node, Kind.FLOAT)
        order = ir.argsort(-node if descending else node, axis)
        return Tensor(ir.take(t.node, order, axis), t.dims), Tensor(order, t.dims)

    def _sort_selected(self, t: Tensor, dim: int, descending: bool) -> tuple[Tensor, Tensor]:
        """The selected entries in order, in front of all others, and where they were among all of them."""
        (name,) = t.dims[dim]
        whole, mask = self.laid_out(t, dim)
        (axis,) = whole.dims[dim]
        node = ir.as_kind(whole.node, Kind.FLOAT)
        order = ir.argsort(ir.where(mask, -node if descending else node, ir.constant(math.inf)), axis)
        values = ir.take(whole.node, order, axis) if axis in whole.node.axes else whole.node
        made = [
            self.first_entries(Tensor(n, whole.dims), dim, self.sizes_of(name), self.size(name))
            for n in (values, order)
        ]
        return made[0], made[1]

    def along(self, op: str, x: Any, dim: int, *attrs: Any) -> Tensor:
        """`flip` or `cumsum`."""
        t = self.tensor(x)
        if self.is_selected(t, dim):
            found, whole = self.in_front(t, dim)
            (axis,) = whole.dims[dim]
            if op == "cumsum" and not any(attrs):
                (name,) = found.dims[dim]
                total = ir.cumsum(ir.where(self.mask_of(name), ir.as_kind(whole.node, Kind.FLOAT), 0.0), axis)
                return Tensor(total, found.dims)
        t = self.whole_axis(t, dim)
        if not t.dims[dim]:
            return t
        if op == "flip" and t.dims[dim][0] not in t.node.axes:
            return t
        t = self.own_axis(t, dim)
        (axis,) = t.dims[dim]
        return Tensor(ir.cumsum(t.node, axis, *attrs) if op == "cumsum" else ir.along(op, t.node, axis, *attrs), t.dims)

    def scan(self, op: str, x: Any, dim: int, reverse: bool = False, exclusive: bool = False) -> Tensor:
        """Along a dimension, the reduction `op` of each entry and those before it (behind it, if `reverse`).

        The entry itself is left out if `exclusive`.
        """
        if op == "sum":
            total = self.along("cumsum", x, dim, reverse)
            return self.elementwise("sub", total, x) if exclusive else total
        t = self.own_axis(self.whole_axis(x, dim), dim)
        (axis,) = t.dims[dim]
        other = self.unused(unprimed(axis), {a for d in t.dims for a in d} | t.node.axes)
        node = ir.as_kind(t.node, Kind.FLOAT)
        relation = ("g" if reverse else "l") + ("t" if exclusive else "e")
        taken = ir.elementwise(relation, self.counter(other), self.counter(axis))
        neutral = {"prod": 1.0, "max": -math.inf, "min": math.inf, "logsumexp": -math.inf}[op]
        return Tensor(ir.reduction(op, ir.where(taken, ir.rename(node, axis, other), neutral), (other,)), t.dims)
