"""The same entries in other dimensions: permuted, reshaped, broadcast."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from lossforge import ir
from lossforge.frontends.positional.axis_table import DERIVED, SELECTED, unprimed
from lossforge.frontends.positional.nodes import relabel
from lossforge.frontends.positional.selections import Selections
from lossforge.frontends.positional.values import Dim, Refused, Selection, Tensor
from lossforge.ir import Axis, Coarse, Kind


class Shapes(Selections):
    """Other dimensions for the same entries."""

    def permute(self, x: Any, order: Sequence[Any]) -> Tensor:
        """Dimensions in another order."""
        t = self.tensor(x)
        at = [self.dim(t, d) for d in order]
        parts = None
        if t.stacked is not None:
            place, pieces = t.stacked
            parts = at.index(place), tuple(self.permute(p, at) for p in pieces)
        return Tensor(t.node, tuple(t.dims[d] for d in at), stacked=parts)

    def unsqueeze(self, x: Any, dim: int) -> Tensor:
        """A new dimension of size 1 before `dim`."""
        t = self.tensor(x)
        return Tensor(t.node, (*t.dims[:dim], (), *t.dims[dim:]), places=t.places, within=t.within)

    def squeeze(self, x: Any, dims: Sequence[int] | None = None) -> Tensor:
        """Without some dimensions of size 1."""
        t = self.tensor(x)
        gone = [d for d in (range(t.rank) if dims is None else dims) if self.extents(t.dims[d])[0] == 1]
        for d in sorted(gone, reverse=True):
            if t.dims[d] and t.dims[d][0] in t.node.axes and self.origin[unprimed(t.dims[d][0])].startswith(DERIVED):
                first = ir.take(t.node, ir.constant(0, Kind.INDEX), t.dims[d][0])
                t = Tensor(first, (*t.dims[:d], (), *t.dims[d + 1 :]))
            elif t.dims[d] and not t.dims[d][0].startswith("#"):
                self.table.unit(self.origin[unprimed(t.dims[d][0])])
        return Tensor(
            t.node, tuple(dim for i, dim in enumerate(t.dims) if i not in gone), places=t.places, within=t.within
        )

    def expand(self, x: Any, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """`x` broadcast to a shape (one for each recording), from the right."""
        t = self.tensor(x)
        wanted = list(zip(*shapes, strict=True))
        dims = ((),) * (len(wanted) - t.rank) + t.dims
        result: list[Dim] = []
        for dim, extent in zip(dims, wanted, strict=True):
            have = self.extents(dim)
            if have[0] == 1 and extent[0] != 1:
                if dim:
                    self.table.unit(self.origin[unprimed(dim[0])])
                result.append((self.ghost(extent),))
            else:
                result.append(dim)
        return Tensor(t.node, tuple(result))

    def full(self, value: Any, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """One number in every entry."""
        return self.expand(value, shapes)

    def reshape(self, x: Any, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """The same entries, row by row, in another shape (one for each recording)."""
        if all(0 in shape for shape in shapes):
            return self.full(Tensor(ir.constant(0, self.tensor(x).node.kind), ()), shapes)
        t = self._rows(self.tensor(x), shapes)
        atoms = [a for d in t.dims for a in d]
        wanted = list(zip(*shapes, strict=True))
        result: list[Dim] = []
        at = 0
        for extent in wanted:
            group: list[Axis] = []
            size = 1
            while size < extent[0]:
                if at >= len(atoms):
                    raise Refused(
                        "a reshape that does not follow the dimensions of its operand; permute or slice instead"
                    )
                group.append(atoms[at])
                size *= self.sizes_of(atoms[at])[0]
                at += 1
            if size != extent[0]:
                pieces = self.split(t, group, extent)
                if pieces is None:
                    raise Refused(
                        f"a reshape that cuts a dimension of size {size} into pieces of {extent[0]}; slice instead, or give the pieces a constant size"
                    )
                t, parts = pieces
                atoms[at - 1 : at] = list(parts)
                group[-1:] = [parts[0]]
                if self.extents(tuple(group)) != tuple(extent):
                    raise Refused(
                        f"a reshape that cuts a dimension of size {size} into pieces of {extent[0]}; slice instead, or give the pieces a constant size"
                    )
            elif extent[0] == 1 and at < len(atoms) and self.sizes_of(atoms[at])[0] == 1:
                group.append(atoms[at])
                at += 1
            result.append(tuple(group))
        for a in atoms[at:]:
            if self.sizes_of(a)[0] != 1:
                raise Refused("a reshape that does not follow the dimensions of its operand; permute or slice instead")
            self.table.unit(self.origin[unprimed(a)])
        return Tensor(t.node, tuple(result))

    def _rows(self, t: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """A selection from a matrix as rows of entries, if each row has equally many: all but the diagonal, say."""
        if len(t.dims) != 1 or len(t.dims[0]) != 1 or not t.dims[0][0].startswith(SELECTED) or len(shapes[0]) != 2:
            return t
        found = self.selections[unprimed(t.dims[0][0])]
        if len(found.axes) != 2 or any(n.op == "input" and n.axes for n in ir.topological([found.mask])):
            return t
        row, column = found.axes
        if tuple(s[0] for s in shapes) != self.sizes_of(row):
            return t
        for held, shape in zip(self.known_entries(found.mask), shapes, strict=True):
            if not (held.sum(axis=sorted(found.axes).index(column)) == shape[1]).all():
                return t
        whole = self.copies[row]
        whole = row if whole in t.node.axes else whole
        node, mask = (relabel(n, {row: whole}) for n in (t.node, found.mask))
        if {s[1] for s in shapes} == {1}:  # the one entry of each row
            return Tensor(ir.total(ir.where(mask, node, ir.constant(0, node.kind)), (column,)), ((whole,), ()))
        new = Selection(mask, (column,))
        name = next((known for known, other in self.selections.items() if other == new), None)
        if name is None:
            name = SELECTED + self.number("rows")
            self.size_nodes[name] = self.symbol([s[1] for s in shapes])
            self.sizes[name] = tuple(s[1] for s in shapes)
            self.selections[name], self.origin[name] = new, name
        return Tensor(node, ((whole,), (name,)))

    def split(self, t: Tensor, group: Sequence[Axis], extent: Sequence[int]) -> tuple[Tensor, tuple[Axis, Axis]] | None:
        """The last axis of a group cut in two, so that the group and the first piece have the wanted size."""
        axis = group[-1]
        before = self.extents(tuple(group[:-1]))
        whole = self.sizes_of(axis)
        outer = [e // b for e, b in zip(extent, before, strict=True)]
        if any(o == 0 or w % o for o, w in zip(outer, whole, strict=True)):
            return None
        inner = [w // o for w, o in zip(whole, outer, strict=True)]
        if axis.startswith("#"):
            return t, (self.ghost(outer), self.ghost(inner))
        if self.sizes_of(axis) and axis not in t.node.axes:
            return None
        root = self.origin[unprimed(axis)]
        pieces = []
        taken = {a for d in t.dims for a in d}
        told: list[tuple[Axis, int | Coarse]] = []
        for place, sizes in (("outer", outer), ("inner", inner)):
            length: int | Coarse | None = None
            same = self.axis_of(sizes) if len(set(sizes)) > 1 else None
            if same is None and len(set(sizes)) > 1:
                part = self._part(sizes, taken)
                if part is None:
                    return None
                same, length = part
            elif same is None:
                same = self.derived(f"{root}_{place}{sizes[0]}", sizes, ir.constant(float(sizes[0])))
                length = sizes[0]
            piece = self.unused(same, taken)
            taken.add(piece)
            pieces.append(piece)
            if length is not None:
                told.append((piece, length))
        node = ir.split(t.node, axis, pieces)
        for piece, length in told:  # gives the piece its size
            node = ir.repeat(node, ir.iota(piece, length))
        dims = tuple(tuple(b for a in d for b in (pieces if a == axis else (a,))) for d in t.dims)
        return Tensor(node, dims), (pieces[0], pieces[1])

    def _part(self, sizes: Sequence[int], taken: Collection[Axis]) -> tuple[Axis, Coarse] | None:
        """A new axis whose size is that of an argument's, a whole fraction of it, or one more or less."""
        for axis, n in self.sizes.items():
            if self.origin[axis].startswith((DERIVED, SELECTED)) or axis in self.copies or len(set(n)) == 1:
                continue
            for step, cut in ((1, 2), (1, 0), (2, 2), (3, 3), (4, 4)):
                if all((m - cut) % step == 0 and (m - cut) // step + 1 == k for m, k in zip(n, sizes, strict=True)):
                    size = self.size(axis) / float(step) if step > 1 else self.size(axis) + float(1 - cut)
                    return self.made_of(axis, f"_part{step}_{cut}", sizes, size, taken), Coarse(axis, cut, step)
        return None
