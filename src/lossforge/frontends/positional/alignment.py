"""Broadcasting: which axes of several values are one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from lossforge import ir
from lossforge.frontends.positional.axis_table import DERIVED, SELECTED, unprimed
from lossforge.frontends.positional.nodes import relabel
from lossforge.frontends.positional.ranges import Ranges
from lossforge.frontends.positional.values import Dim, Refused, Tensor
from lossforge.ir import Axis, Node


class Alignment(Ranges):
    """Values whose dimensions are lined up."""

    def align(self, tensors: Sequence[Tensor]) -> tuple[list[Node], tuple[Dim, ...]]:
        """The nodes of some values with their axes lined up as broadcasting from the right does."""
        rank = max(t.rank for t in tensors)
        padded = [((),) * (rank - t.rank) + t.dims for t in tensors]
        padded, tensors = self._even(padded, tensors)
        self._note_outer(padded, [t.rank for t in tensors])
        result: list[Dim] = []
        used: set[Axis] = set()
        maps: list[dict[Axis, Axis]] = [{} for _ in tensors]
        for j in range(rank):
            present = [(k, dims[j]) for k, dims in enumerate(padded) if dims[j]]
            if not present:
                result.append(())
                continue
            target: list[Axis] = []
            for position in range(len(present[0][1])):
                candidates = [dim[position] for _, dim in present]
                real = [c for c in candidates if not c.startswith("#")]
                if not real:
                    target.append(candidates[0])
                    continue
                for c in real[1:]:
                    self.same(real[0], c)
                label = next((c for c in real if c not in used), None) or self.unused(unprimed(real[0]), used)
                used.add(label)
                target.append(label)
                for k, dim in present:
                    if not dim[position].startswith("#"):
                        maps[k].update(zip(self.held(dim[position]), self.held(label), strict=True))
            result.append(tuple(target))
        nodes = [relabel(t.node, m) for t, m in zip(tensors, maps, strict=True)]
        return nodes, tuple(result)

    def _note_outer(self, padded: Sequence[tuple[Dim, ...]], ranks: Sequence[int]) -> None:
        """Remember axes that are set against each other only because one value has fewer dimensions."""
        for low, high in itertools.permutations(range(len(padded)), 2):
            if not 0 < ranks[low] < ranks[high]:
                continue
            columns = list(zip(padded[low], padded[high], strict=True))
            alone = [
                {unprimed(a) for x, y in columns if x and not y for a in x},
                {unprimed(a) for x, y in columns if y and not x for a in y},
            ]
            self.outer |= {frozenset(pair) for pair in itertools.product(*alone)}

    def same(self, a: Axis, b: Axis) -> None:
        """Two axes that lie in the same dimension are one."""
        if unprimed(a) == unprimed(b):
            return
        if a.startswith(SELECTED) or b.startswith(SELECTED):
            raise Refused(
                "a selection by truth values meets an array that is not selected by the same mask; "
                "use a where, or multiply by the mask"
            )
        x, y = self.sizes_of(a), self.sizes_of(b)
        if x[0] != y[0]:
            if x[0] == 1 and not self.origin[unprimed(a)].startswith(DERIVED):
                self.table.unit(self.origin[unprimed(a)])
            if y[0] == 1 and not self.origin[unprimed(b)].startswith(DERIVED):
                self.table.unit(self.origin[unprimed(b)])
            raise Refused(f"dimensions of size {x[0]} and {y[0]} meet; reshape or cut one of them")
        first, second = self.sources.get(unprimed(a)), self.sources.get(unprimed(b))
        if first and second and first[1] == second[1] and self.sizes_of(first[0]) == self.sizes_of(second[0]):
            self.same(first[0], second[0])
        self.table.merge(self.origin[unprimed(a)], self.origin[unprimed(b)])

    def _even(
        self, padded: list[tuple[Dim, ...]], tensors: Sequence[Tensor]
    ) -> tuple[list[tuple[Dim, ...]], list[Tensor]]:
        """Dimensions that hold several axes in one value and one in another: joined, or the one seen as constant."""
        padded, tensors = [tuple(p) for p in padded], list(tensors)
        for j in range(len(padded[0])):
            dims = {p[j] for p in padded if p[j]}
            widths = {len(d) for d in dims}
            if len(widths) <= 1:
                continue
            several = next(d for d in dims if len(d) == max(widths))
            for k, p in enumerate(padded):
                dim = p[j]
                if not dim or len(dim) == len(several):
                    continue
                if all(a.startswith("#") for a in dim):
                    pieces = tuple(self.ghost(self.sizes_of(a)) for a in several)
                    padded[k] = (*p[:j], pieces, *p[j + 1 :])
            left = {len(p[j]) for p in padded if p[j]}
            if len(left) > 1:
                for k, p in enumerate(padded):
                    if len(p[j]) > 1:
                        shift = len(p) - tensors[k].rank
                        tensors[k] = self.single(tensors[k], j - shift)
                        padded[k] = ((),) * shift + tensors[k].dims
        return padded, tensors

    def single(self, x: Tensor, dim: int) -> Tensor:
        """`x` with all axes of a dimension joined into one."""
        axes = x.dims[dim]
        if len(axes) <= 1:
            return x
        if any(a.startswith(SELECTED) for a in axes):
            raise Refused(
                "a selection by truth values, flattened with another dimension; reduce one of them before, or multiply by the mask"
            )
        if all(a.startswith("#") for a in axes):
            dims = (*x.dims[:dim], (self.ghost(self.extents(axes)),), *x.dims[dim + 1 :])
            return Tensor(x.node, dims)
        if any(a.startswith("#") for a in axes):
            x = self.solid(x, dim)
            axes = x.dims[dim]
        name = "_by_".join(self.origin[unprimed(a)] for a in axes)
        new = self.derived(name, self.extents(axes), self.length(axes))
        new = self.unused(new, {a for d in x.dims for a in d})
        present = x.node.axes & set(axes)
        node = ir.join(x.node, axes, new) if present else x.node
        return Tensor(node, (*x.dims[:dim], (new,), *x.dims[dim + 1 :]))

    def solid(self, x: Tensor, dim: int) -> Tensor:
        """`x` with axes of the graph for those of a dimension along which it is constant."""
        node, axes = x.node, list(x.dims[dim])
        for i, axis in enumerate(axes):
            if not axis.startswith("#"):
                continue
            counter = self.arange(self.sizes_of(axis))
            name = self.unused(counter.dims[0][0], {a for d in x.dims for a in d} | set(axes) | node.axes)
            at = relabel(counter.node, {counter.dims[0][0]: name})
            node, axes[i] = ir.repeat(node, at), name
        return Tensor(node, (*x.dims[:dim], tuple(axes), *x.dims[dim + 1 :]))
