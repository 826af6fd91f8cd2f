"""Values one after the other along a dimension."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lossforge import ir
from lossforge.frontends.positional.axis_table import DERIVED, SELECTED, unprimed
from lossforge.frontends.positional.lookups import Lookups
from lossforge.frontends.positional.nodes import relabel
from lossforge.frontends.positional.values import Dim, Refused, Selection, Tensor
from lossforge.ir import Axis, Kind


class Concatenation(Lookups):
    """Concatenations."""

    def concat(self, tensors: Sequence[Any], dim: int) -> Tensor:
        """Values one after the other along a dimension."""
        parts = [self.single(self.tensor(x), dim) for x in tensors]
        parts = [p for p in parts if any(self.extents(p.dims[dim]))] or parts[:1]
        if len(parts) == 1:
            return parts[0]
        parts = [self._gated(p) for p in parts]
        for d in range(parts[0].rank):
            if any(a.startswith(SELECTED) for p in parts for a in p.dims[d]) and self._bound(parts, d, dim):
                return self._concat_selected(parts, dim, d)
        lengths = [self.extents(p.dims[dim]) for p in parts]
        whole = [sum(n[i] for n in lengths) for i in range(self.count)]
        ends = [ir.constant(0.0)]
        for p in parts:
            length = self.length(p.dims[dim])
            ends.append(length if len(ends) == 1 else ends[-1] + length)
        new = self.derived(self.number("joined"), whole, ends[-1])
        new = self.unused(new, {a for p in parts for d in p.dims for a in d})
        at = self.counter(new)
        line = tuple((new,) if i == dim else () for i in range(parts[0].rank))
        kind = parts[0].node.kind if len({p.node.kind for p in parts}) == 1 else Kind.FLOAT
        counts = [self._entries(p.dims[dim]) for p in parts]
        result = self.placed(parts[0], dim, new, [], counts[1:])
        for k, part in enumerate(parts[1:], 1):  # each piece from its start on, the next ones over it
            placed = self.placed(part, dim, new, counts[:k], counts[k + 1 :])
            here = Tensor(ir.elementwise("ge", at, ir.as_kind(ends[k], Kind.INDEX)), line)
            nodes, dims = self.align([placed, result, here])
            result = Tensor(ir.where(nodes[2], ir.as_kind(nodes[0], kind), ir.as_kind(nodes[1], kind)), dims)
        if all(set(n) == {1} for n in lengths):
            return Tensor(result.node, result.dims, stacked=(dim, tuple(parts)))
        return result

    def _gated(self, t: Tensor) -> Tensor:
        """`t` with zeros beside the entries of its selections, so that gradients there are zeros, whatever follows."""
        node = t.node
        for axis in (a for d in t.dims for a in d if a.startswith(SELECTED)):
            if node.kind is Kind.FLOAT and node.axes & set(self.held(axis)):
                node = ir.where(self.mask_of(axis), node, 0.0)
        return replace(t, node=node)

    def _bound(self, parts: Sequence[Tensor], d: int, dim: int) -> bool:
        """Whether the selections along dimension d are not the same one for all entries along the other dimension."""
        if d == dim:
            return True
        selected = [p for p in parts if any(not a.startswith("#") for a in p.dims[d])]
        return len({p.dims[d] for p in selected}) > 1 or any(
            self.mask_of(a).axes & set(p.dims[dim]) for p in selected for a in p.dims[d]
        )

    def _concat_selected(self, parts: Sequence[Tensor], dim: int, d: int) -> Tensor:
        """Values one after the other, of which some are selections along dimension d: all entries, and a mask of them."""
        whole, masks, counts = [], [], []
        for p in parts:
            mask = ir.constant(1.0)
            counts.append((self.extents(p.dims[d]), self.length(p.dims[d])))
            if any(a.startswith(SELECTED) for a in p.dims[d]):
                (name,) = p.dims[d]
                mask = ir.as_kind(self.mask_of(name), Kind.FLOAT)
                p = Tensor(p.node, (*p.dims[:d], self.held(name), *p.dims[d + 1 :]))
                if len(p.dims[d]) > 1:
                    p = self.single(p, d)
                    mask = ir.join(mask, self.held(name), p.dims[d][0])
            whole.append(p)
            masks.append(Tensor(mask, p.dims))
        leads = [
            self.selections[unprimed(p.dims[d][0])].lead if p is not w else counts[0][0]
            for p, w in zip(parts, whole, strict=True)
        ]
        lead = leads[0] if d == dim or len(set(leads)) == 1 else ()
        (node, mask), dims = self.align([self.concat(whole, dim), self.concat(masks, dim)])
        (axis,) = dims[d]
        held = ir.elementwise("gt", mask, 0.5)
        for known, found in self.selections.items():
            if len(found.axes) == 1 and found.lead == lead and relabel(held, {axis: found.axes[0]}) is found.mask:
                return Tensor(relabel(node, {axis: found.axes[0]}), (*dims[:d], (known,), *dims[d + 1 :]))
        name = SELECTED + self.number("joined")
        self.selections[name] = Selection(held, (axis,), lead)
        self.origin[name] = name
        among = counts if d == dim else counts[:1]
        self.sizes[name] = tuple(map(sum, zip(*(n for n, _ in among), strict=True)))
        self.size_nodes[name] = functools.reduce(operator.add, (n for _, n in among))
        return Tensor(node, (*dims[:d], (name,), *dims[d + 1 :]))

    def _entries(self, dim: Dim) -> ir.Extent | None:
        """The number of entries along a dimension, as windows count them."""
        sizes = self.extents(dim)
        if len(dim) == 1 and len(set(sizes)) > 1 and not dim[0].startswith("#"):
            axis = unprimed(self.copies.get(unprimed(dim[0]), dim[0]))
            if not self.origin[axis].startswith(DERIVED):
                return ir.extent(0, {axis: 1})
            base, stem = self.sources.get(axis, (axis, ""))
            less = {n - m for n, m in zip(self.sizes_of(base), sizes, strict=True)}
            if stem and len(less) == 1 and not self.origin[base].startswith(DERIVED):
                return ir.extent(-min(less), {base: 1})
        return self.extent(sizes)

    def placed(
        self, t: Tensor, dim: int, new: Axis, before: Sequence[ir.Extent | None], after: Sequence[ir.Extent | None]
    ) -> Tensor:
        """`t` within a longer dimension, with zeros for the extents before and after it."""
        dims = (*t.dims[:dim], (new,), *t.dims[dim + 1 :])
        if not t.dims[dim] or t.dims[dim][0] not in t.node.axes:
            return Tensor(t.node, dims)  # the same everywhere along it
        (axis,) = t.dims[dim]
        ends = []
        for side in (before, after):
            terms: dict[Axis, int] = {}
            for extent in side:
                if extent is None:
                    raise Refused(
                        "a concatenation of pieces whose sizes vary in a way that was not recognised; use a where over positions, or sum the pieces apart"
                    )
                for a, n in extent:
                    terms[a] = terms.get(a, 0) - n
            ends.append(ir.extent(terms.pop("", 0), terms))
        return Tensor(ir.window(t.node, axis, new, ends[0], ends[1]), dims)
