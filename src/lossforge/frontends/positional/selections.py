"""Selections by truth values, as in ``x[x > 0]``.

How many entries there are depends on values, so that a selection keeps the axes that it was taken from and its mask; what
reduces it passes over the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lossforge import ir
from lossforge.frontends.positional.axis_table import SELECTED, unprimed
from lossforge.frontends.positional.elementwise import Elementwise
from lossforge.frontends.positional.nodes import relabel
from lossforge.frontends.positional.values import Dim, Refused, Selection, Tensor
from lossforge.frontends.recording import Varying
from lossforge.interpreter import evaluate
from lossforge.ir import Axis, Kind, Node, Port


class Selections(Elementwise):
    """Selections by truth values."""

    def position(self, mask: Any, like: Any, first: int, count: Any, dim: int, guarded: bool = False) -> Tensor:
        """The positions along one dimension of the entries where a mask holds, which covers dimensions of `like` from `first`.

        What is done with a `guarded` selection does not count where it is empty; its number is then taken for 1.
        """
        m, x = self.tensor(mask), self.tensor(like)
        numbers = tuple(count.values) if isinstance(count, Varying) else (int(count),) * self.count
        if not any(numbers):  # known to hold nowhere
            return Tensor(ir.constant(0, Kind.INDEX), ((self.ghost(numbers),),))
        if m.rank == 1 and m.node is ir.constant(True) and self._is_blank(m.dims[0]) and self._is_blank(x.dims[first]):
            return self.positions(self.extents(x.dims[first]), 0, 1)  # everywhere
        atoms: list[Axis] = []
        for i in range(m.rank):
            over = self._lined_up(m, i, x, first + i)
            m, atoms = over[0], [*atoms, *over[1]]
        held = ir.as_kind(m.node, Kind.BOOL)
        within = [a for a in atoms if a.startswith(SELECTED)]
        if held is ir.constant(True) and not within:  # everywhere
            return Tensor(self.place(m.dims[dim]), (tuple(atoms),))
        for outer in within:  # a selection from a selection: where both hold
            held = ir.elementwise("and", self.mask_of(outer), held)
        atoms = [b for a in atoms for b in self.held(a)]
        if (
            m.rank == 2
            and len(atoms) == 2
            and not within
            and not any(n.op == "input" and n.axes for n in ir.topological([held]))
        ):
            found = self._one_each(held, atoms, numbers, dim)
            if found is not None:
                return found
        total = ir.total(ir.as_kind(held, Kind.FLOAT), atoms)
        name = self.selection(held, atoms, numbers, ir.elementwise("maximum", total, 1.0) if guarded else total)
        over_axes = self.selections[name].axes
        start = sum(len(self.held(a)) for i in range(dim) for a in m.dims[i])
        places = over_axes[start : start + sum(len(self.held(a)) for a in m.dims[dim])]
        if any(
            a.startswith(SELECTED) for a in m.dims[dim]
        ):  # places among the selected, whose numbers depend on values
            return Tensor(ir.iota(name), ((name,),), places=places, within=m.dims[dim])
        return Tensor(self.place(places), ((name,),), places=places)

    def rows(self, x: Any, mask: Any, count: Any) -> Tensor:
        """The entries of each row where a mask holds, of which there are as many in one as in another."""
        m, t = self.tensor(mask), self.tensor(x)
        numbers = tuple(count.values) if isinstance(count, Varying) else (int(count),) * self.count
        atoms: Dim = ()
        for i in range(m.rank):
            m, atoms = self._lined_up(m, i, t, i)
        if any(a.startswith((SELECTED, "#")) for a in atoms):
            raise Refused("rows of a selection, or of what is constant along them; use a where")
        held = ir.as_kind(m.node, Kind.BOOL)
        total = ir.total(ir.as_kind(held, Kind.FLOAT), held.axes)
        for axis in sorted(held.axes - set(atoms)):
            total = total / self.size(axis)
        name = self.selection(held, atoms, numbers, total)
        node = relabel(t.node, dict(zip(atoms, self.selections[name].axes, strict=True)))
        return Tensor(node, (*t.dims[:-1], (name,)))

    def selection(self, held: Node, atoms: Sequence[Axis], numbers: tuple[int, ...], total: Node) -> Axis:
        """The axis of the entries of `atoms` where a mask holds, `total` many: that of an equal selection, or a new one."""
        for known, selection in self.selections.items():
            if self.sizes[known] == numbers and len(selection.axes) == len(atoms):
                if relabel(held, dict(zip(atoms, selection.axes, strict=True))) is selection.mask:
                    return known
        name = SELECTED + self.number("selection")
        copies: dict[Axis, Axis] = {}
        for a in atoms:
            again = sum(
                self.copies.get(b, b) == self.copies.get(a, a) for b in copies
            )  # from a selection of the same axis
            copies[a] = f"{self.copies.get(a, a)}~{name[1:]}" + (f"~{again}" if again else "")
        for a, b in copies.items():
            self.sizes[b], self.size_nodes[b] = self.sizes_of(a), self.size(a)
            self.origin[b], self.copies[b] = self.origin[unprimed(a)], self.copies.get(a, a)
        self.selections[name] = Selection(relabel(held, copies), tuple(copies.values()))
        self.sizes[name], self.size_nodes[name], self.origin[name] = numbers, total, name
        return name

    def part(self, mask: Node, axis: Axis, counts: Sequence[int], size: Node) -> Axis:
        """The selection of the entries of one axis where a mask holds, which is the same for all other entries."""
        new = Selection(mask, (axis,))
        for known, found in self.selections.items():
            if found == new and self.sizes[known] == tuple(counts):
                return known
        name = SELECTED + self.number("part")
        self.sizes[name], self.size_nodes[name] = tuple(counts), size
        self.selections[name], self.origin[name] = new, name
        return name

    def is_selected(self, t: Tensor, dim: int) -> bool:
        """Whether a dimension holds a selection, and nothing else."""
        return len(t.dims[dim]) == 1 and t.dims[dim][0].startswith(SELECTED)

    def laid_out(self, t: Tensor, dim: int) -> tuple[Tensor, Node]:
        """All entries that a selection along a dimension was taken from, along one axis, and its mask."""
        (name,) = t.dims[dim]
        held, mask = self.held(name), self.mask_of(name)
        whole = self.single(Tensor(t.node, (*t.dims[:dim], held, *t.dims[dim + 1 :])), dim)
        (axis,) = whole.dims[dim]
        if len(held) > 1:
            mask = ir.elementwise("gt", ir.join(ir.as_kind(mask, Kind.FLOAT), held, axis), 0.5)
        return whole, mask

    def first_entries(self, t: Tensor, dim: int, counts: Sequence[int], size: Node) -> Tensor:
        """The first entries along an axis, whose number may depend on values."""
        (axis,) = t.dims[dim]
        mask = ir.elementwise("lt", self.counter(axis), ir.as_kind(size, Kind.INDEX))
        return Tensor(t.node, (*t.dims[:dim], (self.part(mask, axis, counts, size),), *t.dims[dim + 1 :]))

    def in_front(self, t: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """A selection whose entries lie at the front of their axis, in their order, and that whole axis."""
        (name,) = t.dims[dim]
        whole, mask = self.laid_out(t, dim)
        (axis,) = whole.dims[dim]
        size = self.size(name)
        if mask.op != "lt" or mask.args[0] is not self.counter(axis) or mask.args[1].axes:
            order = ir.argsort(ir.where(mask, ir.constant(0.0), ir.constant(1.0)), axis)
            node = ir.take(whole.node, order, axis) if axis in whole.node.axes else whole.node
            whole = Tensor(node, whole.dims)
        return self.first_entries(whole, dim, self.sizes_of(name), size), whole

    def picked(self, x: Tensor, dim: int, index: Tensor) -> Tensor | None:
        """`x` at the positions of a selection, if it has the very axes that were selected."""
        mine = tuple(b for a in x.dims[dim] for b in self.held(a))
        wanted = tuple(self.copies[a] for a in index.places)
        if not wanted or len(mine) != len(wanted) or index.rank != 1:
            return None
        if index.within != tuple(a for a in x.dims[dim] if a.startswith(SELECTED)):
            return None
        for a, b in zip(mine, wanted, strict=True):
            if a.startswith("#") or self.origin[unprimed(a)] != self.origin[unprimed(b)]:
                return None
        elsewhere = {b for i, d in enumerate(x.dims) for a in d if i != dim for b in self.held(a)}
        if elsewhere & set(index.places) or any(a in elsewhere for a in mine):
            return None
        node = relabel(x.node, dict(zip(mine, index.places, strict=True)))
        return Tensor(node, (*x.dims[:dim], index.dims[0], *x.dims[dim + 1 :]))

    def mask_of(self, axis: Axis) -> Node:
        """Where the entries of a selection are."""
        found = self.selections[unprimed(axis)]
        return relabel(found.mask, dict(zip(found.axes, self.held(axis), strict=True)))

    def place(self, axes: Sequence[Axis]) -> Node:
        """The positions in a dimension that holds some axes."""
        node = self.counter(axes[0]) if axes else ir.constant(0, Kind.INDEX)
        for axis in axes[1:]:
            node = ir.as_kind(node * self.size(axis) + ir.as_kind(self.counter(axis), Kind.FLOAT), Kind.INDEX)
        return node

    def _one_each(self, held: Node, atoms: Sequence[Axis], numbers: Sequence[int], dim: int) -> Tensor | None:
        """The positions along one of two axes where a mask holds that does so once in each row, as on a diagonal."""
        row, column = atoms
        at = [m if row < column else m.T for m in self.known_entries(held) if m.ndim == 2]
        if len(at) < self.count or any(
            (m.sum(axis=1) != 1).any() or n != len(m) for m, n in zip(at, numbers, strict=True)
        ):
            return None
        if dim == 0 or all((m.argmax(axis=1) == np.arange(len(m))).all() for m in at):
            return Tensor(self.counter(row), ((row,),))
        places = ir.total(ir.where(held, ir.as_kind(self.counter(column), Kind.FLOAT), 0.0), (column,))
        return Tensor(ir.as_kind(places, Kind.INDEX), ((row,),))

    def _lined_up(self, m: Tensor, i: int, x: Tensor, j: int) -> tuple[Tensor, Dim]:
        """The axes of the mask's dimension i, which lies along x's dimension j."""
        mine, theirs = m.dims[i], x.dims[j]
        if self._is_blank(mine):
            if any(a.startswith("#") for a in theirs):
                raise Refused("a selection along a dimension that no argument has; use a where")
            mine = theirs
        if len(mine) == len(theirs):
            for a, b in zip(mine, theirs, strict=True):
                if a != b and not b.startswith("#") and self.origin[unprimed(a)] != self.origin[unprimed(b)]:
                    self.same(a, b)
        return Tensor(m.node, (*m.dims[:i], mine, *m.dims[i + 1 :])), mine

    def _is_blank(self, dim: Dim) -> bool:
        """Whether nothing is known of a dimension but its size."""
        return all(a.startswith("#") for a in dim)

    def known_entries(self, node: Node) -> list[np.ndarray]:
        """The entries of a value that depends on no argument, in each recording, its axes in alphabetical order."""
        axes = tuple(dict.fromkeys(a for n in ir.topological([node]) for a in n.axes))
        grid = ir.input_("grid", axes)  # tells the sizes
        sizes = ([self.sizes_of(a)[i] for a in axes] for i in range(self.count))
        return [evaluate([node], {Port(grid, axes): np.empty(shape)})[0] for shape in sizes]

    def whole_axis(self, x: Any, dim: int, ends: Sequence[int] = ()) -> Tensor:
        """`x` with one axis in a dimension: its entries can be told by their positions.

        It may be a selection if only entries before `ends`, one for each recording, are asked for, and all of these are
        selected.
        """
        t = self.single(self.tensor(x), dim)
        if any(a.startswith(SELECTED) for a in t.dims[dim]):
            lead = self.selections[unprimed(t.dims[dim][0])].lead
            if ends and lead and all(e <= n for e, n in zip(ends, lead, strict=True)):
                return Tensor(t.node, (*t.dims[:dim], self.held(t.dims[dim][0]), *t.dims[dim + 1 :]))
            raise Refused(
                "positions in a selection by truth values, which depend on values; multiply by the mask, or use a where"
            )
        return t

    def own_axis(self, x: Any, dim: int) -> Tensor:
        """`x` with one axis of its own along a dimension, also where it is constant along it."""
        t = self.single(self.tensor(x), dim)
        if t.dims[dim] and t.dims[dim][0] in t.node.axes:
            return t
        sizes = self.extents(t.dims[dim])
        if t.dims[dim] and not t.dims[dim][0].startswith("#"):
            position = self.counter(t.dims[dim][0])
        elif len(set(sizes)) == 1:
            name = self.derived(self.number("repeated"), sizes, ir.constant(float(sizes[0])))
            position = ir.iota(name, sizes[0])
        else:
            position = self.arange(sizes).node
        axis = position.attrs[0]
        if axis in t.node.axes:
            raise Refused(
                "a value that is repeated along an axis which it has already; give the two dimensions different sizes in the examples"
            )
        return Tensor(ir.repeat(t.node, position), (*t.dims[:dim], (axis,), *t.dims[dim + 1 :]))
