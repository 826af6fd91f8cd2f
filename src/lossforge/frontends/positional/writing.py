"""Assignments to entries, as in ``x[i, j] = v``."""

from __future__ import annotations

from collections.abc import Sequence

from lossforge import ir
from lossforge.frontends.positional.axis_table import SELECTED, unprimed
from lossforge.frontends.positional.concatenation import Concatenation
from lossforge.frontends.positional.nodes import relabel
from lossforge.frontends.positional.values import Dim, Refused, Tensor
from lossforge.ir import Axis, Kind, Node, Stencil


class Writing(Concatenation):
    """Values of which some entries are replaced."""

    def overwrite(self, x: Tensor, dim: int, start: Sequence[int], stop: Sequence[int], value: Tensor) -> Tensor:
        """`x` with entries start … stop − 1 along a dimension replaced."""
        if self.is_selected(x, dim):
            return self._overwrite_selected(x, dim, start, stop, value)
        t = self.whole_axis(x, dim)
        n = self.extents(t.dims[dim])
        value = self.whole_axis(
            self.expand(value, [self._shape(t, dim, stop, start, i) for i in range(self.count)]), dim
        )
        if tuple(start) == (0,) * self.count and tuple(stop) == tuple(n):
            return value
        if not t.dims[dim]:
            raise Refused("writing into a dimension of size 1; use the new value in its place")
        if t.dims[dim][0].startswith("#") or t.dims[dim][0] not in t.node.axes:
            t = self.solid(t, dim)
        (axis,) = t.dims[dim]
        after = [m - b for m, b in zip(n, stop, strict=True)]
        taken = {a for d in value.dims for a in d}
        new = axis if axis not in taken else self.unused(axis, taken)
        placed = self.placed(value, dim, new, [self.extent(start)], [self.extent(after)])
        at = self.counter(new)
        first, last = (ir.as_kind(self.symbol(v), Kind.INDEX) for v in (start, stop))
        here = ir.elementwise("and", ir.elementwise("ge", at, first), ir.elementwise("lt", at, last))
        inside = Tensor(here, tuple((new,) if i == dim else () for i in range(t.rank)))
        return self.elementwise("where", inside, placed, t)

    def overwrite_every(
        self, x: Tensor, dim: int, start: Sequence[int], stop: Sequence[int], stride: Sequence[int], value: Tensor
    ) -> Tensor:
        """`x` with every n-th of the entries start … stop − 1 along a dimension replaced."""
        counts = [-(-(b - a) // n) for a, b, n in zip(start, stop, stride, strict=True)]
        shapes = [(*(self.extents(e)[i] for e in x.dims),) for i in range(self.count)]
        value = self.expand(value, [(*s[:dim], n, *s[dim + 1 :]) for s, n in zip(shapes, counts, strict=True)])
        if any(a.startswith(SELECTED) for a in x.dims[dim]):
            raise Refused("writing into every n-th entry of a selection; use a where over positions")
        t = self.solid(x, dim)
        if value.dims[dim] and not value.dims[dim][0].startswith("#"):
            if len({*start}) > 1 or len({*stride}) > 1:
                raise Refused(
                    "writing an array into every n-th entry, where n is no constant; use a where over positions"
                )
            t, value = self.whole_axis(t, dim), self.whole_axis(value, dim)
            (axis,), (short,) = t.dims[dim], value.dims[dim]
            node = ir.slide(value.node, short, axis, None, Stencil(step=stride[0], start=start[0]), back=True)
            value = Tensor(node, (*value.dims[:dim], (axis,), *value.dims[dim + 1 :]))
        at = ir.as_kind(self.place(t.dims[dim]), Kind.FLOAT)
        first, last, by = self.symbol(start), self.symbol(stop), self.symbol(stride)
        turns = (at - first) / by
        within = ir.elementwise("and", ir.elementwise("ge", at, first), ir.elementwise("lt", at, last))
        here = ir.elementwise("and", within, ir.elementwise("eq", turns, ir.elementwise("floor", turns)))
        inside = Tensor(here, tuple(t.dims[dim] if i == dim else () for i in range(t.rank)))
        return self.elementwise("where", inside, value, t)

    def _overwrite_selected(
        self, x: Tensor, dim: int, start: Sequence[int], stop: Sequence[int], value: Tensor
    ) -> Tensor:
        """The same in a selection, whose ends are counted from its own."""
        n = self.extents(x.dims[dim])
        behind = {m - b for m, b in zip(n, stop, strict=True)}
        if len(set(start)) > 1 or len(behind) > 1:
            raise Refused("writing into a part of a selection that varies; use a where over positions")
        found, whole = self.in_front(x, dim)
        (name,), (axis,) = found.dims[dim], whole.dims[dim]
        if value.dims[dim] and not value.dims[dim][0].startswith("#"):
            if not self.is_selected(value, dim) or self.held(value.dims[dim][0]) != (axis,):
                raise Refused("writing an array into a selection of other entries; use a where with a mask")
            value = self.moved(Tensor(value.node, (*value.dims[:dim], (axis,), *value.dims[dim + 1 :])), dim, -start[0])
        less = min(behind)
        at, end = self.counter(axis), self.size(name) - float(less) if less else self.size(name)
        here = ir.elementwise(
            "and", ir.elementwise("ge", at, start[0]), ir.elementwise("lt", at, ir.as_kind(end, Kind.INDEX))
        )
        inside = Tensor(here, tuple((axis,) if i == dim else () for i in range(x.rank)))
        written = self.elementwise("where", inside, value, whole)
        return Tensor(written.node, (*written.dims[:dim], (name,), *written.dims[dim + 1 :]))

    def _shape(self, t: Tensor, dim: int, stop: Sequence[int], start: Sequence[int], i: int) -> tuple[int, ...]:
        return tuple(stop[i] - start[i] if d == dim else self.extents(e)[i] for d, e in enumerate(t.dims))

    def write(self, x: Tensor, indices: Sequence[Tensor | None], value: Tensor, add: bool = False) -> Tensor:
        """`x` with the entries at an index for each of its first dimensions replaced, or added to.

        One of them must be the positions along its dimension, of all its entries or of those of a selection, so that no
        entry is written twice: the others are then conditions on entries.
        """
        t, condition = x, None
        moves: dict[Axis, Axis] = {}
        given = [(d, i) for d, i in enumerate(indices) if i is not None]
        if any(self.extents(dim) == (0,) * self.count for _, i in given for dim in i.dims):
            return x
        if len(given) > 1:
            self.align([i for _, i in given])
        rank = max(i.rank for _, i in given)
        if rank != 1:
            raise Refused("writing at an index of several dimensions; use a where with a mask of positions, or one_hot")
        if not value.node.axes:
            value = Tensor(value.node, ())
        elif [d for d, _ in given] != list(range(given[0][0], given[0][0] + len(given))):
            raise Refused("writing an array at indices of dimensions that are not neighbours; permute them to be so")
        first = given[0][0]
        (written,) = next(i.dims for _, i in given if i.rank == 1)
        if len(written) != 1 or any(i.rank and i.dims[0] != written for _, i in given):
            raise Refused("writing at indices of several sizes; use a where with a mask of positions")
        rest: list[tuple[int, Tensor]] = []
        for d, index in given:
            places = index.places or ((index.node.attrs[0],) if index.node.op == "iota" and not moves else ())
            atoms = t.dims[d]
            if any(a.startswith("#") for a in atoms) or not set(atoms) <= t.node.axes:
                t = self.solid(Tensor(t.node, t.dims), d) if atoms and all(a.startswith("#") for a in atoms) else t
                atoms = t.dims[d]
            if places and len(places) == len(atoms) and not set(places) & set(moves):
                for a, b in zip(atoms, places, strict=True):
                    if self.sizes_of(a) != self.sizes_of(b):
                        raise Refused(
                            "writing at positions along a dimension of another size; cut it with a slice before"
                        )
                    if self.origin[unprimed(a)] != self.origin[unprimed(self.copies.get(b, b))]:
                        self.same(a, self.copies.get(b, b))
                moves.update(zip(places, atoms, strict=True))
            else:
                rest.append((d, index))
        if not moves or not set(self.held(written[0])) <= set(moves):
            if not value.node.axes and not add:
                return self._written_alike(x, given, value)
            raise Refused(
                "writing at positions that are worked out, of which two may be the same; use a where or one_hot"
            )
        blank: list[Dim] = [()] * t.rank

        def placed(node: Node, dims: Sequence[Dim]) -> Tensor:
            """Something along the index, over the dimensions of `x`."""
            found = relabel(node, moves)
            return Tensor(found, tuple(dims))

        along = list(blank)
        for d, _ in given:
            if set(t.dims[d]) & set(moves.values()):
                along[d] = t.dims[d]
        if written[0].startswith(SELECTED):
            condition = placed(self.mask_of(written[0]), along)
        for d, index in rest:
            (axis,) = self.whole_axis(t, d).dims[d]
            at = Tensor(self.counter(axis), tuple((axis,) if i == d else () for i in range(t.rank)))
            hit = self.elementwise("eq", at, placed(index.node, along if index.rank else blank))
            condition = hit if condition is None else self.elementwise("and", condition, hit)
        behind = t.rank - first - len(given)
        dims = list(blank)
        lead = value.rank - behind
        for i in range(max(lead, 0), value.rank):
            dims[t.rank - value.rank + i] = value.dims[i]
        if lead > 1:
            raise Refused("writing an array of more dimensions than its index; write row by row, or use a where")
        if lead == 1 and value.dims[0] and not value.dims[0][0].startswith("#"):
            if value.dims[0] != written:
                self.align([Tensor(value.node, (value.dims[0],)), Tensor(given[0][1].node, (written,))])
            dims = [e if along[i] == () else along[i] for i, e in enumerate(dims)]
        new = placed(value.node, dims)
        if add:
            new = self.elementwise("add", t, new)
        return new if condition is None else self.elementwise("where", condition, new, t)

    def _written_alike(self, x: Tensor, indices: Sequence[tuple[int, Tensor]], value: Tensor) -> Tensor:
        """`x` with one number written at positions, of which several may be the same."""
        hit: Tensor | None = None
        for d, index in indices:
            along = self.positions(self.extents(x.dims[d]), d, x.rank + 1)
            place = Tensor(index.node, (*((),) * x.rank, *(index.dims or ((),))))
            same = self.elementwise("eq", along, place)
            hit = same if hit is None else self.elementwise("and", hit, same)
        assert hit is not None
        return self.elementwise("where", self.reduce("any", hit, [x.rank]), Tensor(value.node, ()), x)
