"""Entries at positions that are known: slices, windows, rolls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from lossforge import ir
from lossforge.frontends.positional.axis_table import unprimed
from lossforge.frontends.positional.nodes import relabel
from lossforge.frontends.positional.orders import Orders
from lossforge.frontends.positional.values import Refused, Tensor
from lossforge.frontends.recording import Varying
from lossforge.ir import Axis, Kind, Node, Stencil

_ROUND_SHARES = tuple(dict.fromkeys(
    k / parts for parts in (2, 10, 4, 3, 5, 8, 6, 20, 7, 9, 16, 32, 100) for k in range(1, parts)
))  # fmt: skip


class Slices(Orders):
    """Slices and windows of dimensions."""

    def select(self, x: Any, dim: int, index: Any) -> Tensor:
        """The entry at one position along a dimension, which disappears."""
        t = self.tensor(x)
        if t.stacked is not None and t.stacked[0] == dim and isinstance(index, int) and abs(index) < len(t.stacked[1]):
            return self.squeeze(t.stacked[1][index], [dim])
        if self.is_selected(t, dim) and isinstance(index, int) and not self._leads(t, dim, [index + 1] * self.count):
            found, t = self.in_front(t, dim)
            last = self.size(found.dims[dim][0]) + float(index)
            node = t.node
            if t.dims[dim][0] in node.axes:
                at = ir.constant(index, Kind.INDEX) if index >= 0 else ir.as_kind(last, Kind.INDEX)
                node = ir.take(node, at, t.dims[dim][0])
            return Tensor(node, (*t.dims[:dim], *t.dims[dim + 1 :]))
        t = self.whole_axis(t, dim, [index + 1] * self.count if isinstance(index, int) and index >= 0 else ())
        dims = (*t.dims[:dim], *t.dims[dim + 1 :])
        if not t.dims[dim]:
            return Tensor(t.node, dims)
        (axis,) = t.dims[dim]
        if axis not in t.node.axes:
            return Tensor(t.node, dims)
        n = self.sizes_of(axis)
        values: Sequence[Any] = index.values if isinstance(index, Varying) else (int(index),) * self.count
        values = [v + n[i] if v < 0 else v for i, v in enumerate(values)] if not isinstance(index, Varying) else values
        if len(set(values)) == 1 and (isinstance(index, Varying) or int(index) >= 0):
            at = ir.constant(int(values[0]), Kind.INDEX)
        elif len({n[i] - v for i, v in enumerate(values)}) == 1:
            at = ir.as_kind(self.size(axis) - float(n[0] - values[0]), Kind.INDEX)
        else:
            raise Refused(
                "an index that depends on sizes or parameters; count it from the front or the end by a constant"
            )
        return Tensor(ir.take(t.node, at, axis), dims)

    def slice(self, x: Any, dim: int, start: Sequence[int], stop: Sequence[int], step: int = 1) -> Tensor:
        """Entries start … stop − 1 along a dimension; both are given for each recording."""
        t = self.tensor(x)
        if self.is_selected(t, dim) and step == 1 and any(stop) and not self._leads(t, dim, stop):
            return self._slice_selected(t, dim, start, stop)
        t = self.whole_axis(t, dim, stop)
        n = self.extents(t.dims[dim])
        lengths = [max(0, -(-(b - a) // step)) for a, b in zip(start, stop, strict=True)]
        if all(a == 0 and b == m for a, b, m in zip(start, stop, n, strict=True)) and step == 1:
            return t
        if set(lengths) == {0}:
            none = ir.constant(0, t.node.kind)
            return Tensor(none, (*t.dims[:dim], (self.ghost(lengths),), *t.dims[dim + 1 :]))
        if set(lengths) == {1} and len({*start}) == 1:
            return self.unsqueeze(self.select(t, dim, int(start[0])), dim)
        if set(lengths) == {1}:
            return self.unsqueeze(self.select(t, dim, Varying(start)), dim)
        if not t.dims[dim]:
            raise Refused("an empty slice; leave it out")
        (axis,) = t.dims[dim]
        if axis.startswith("#") or axis not in t.node.axes:
            return Tensor(t.node, (*t.dims[:dim], (self.ghost(lengths),), *t.dims[dim + 1 :]))
        if step > 1:
            return self.slide(self.slice(t, dim, start, stop), dim, Stencil(step=step))
        trims = [m - b for m, b in zip(n, stop, strict=True)]
        first, last = self.extent(start), self.extent(trims)
        if first is not None and last is not None:
            return self._window(t, dim, first, last, lengths)
        piece = self._share(t, dim, start, lengths)
        if piece is not None:
            return piece
        if len(set(start)) == 1 and len(set(lengths)) == 1:
            return self.slide(t, dim, Stencil(start=start[0], count=lengths[0]))
        if len(set(trims)) == 1 and len(set(lengths)) == 1:
            tail = self.slide(self.along("flip", t, dim), dim, Stencil(start=trims[0], count=lengths[0]))
            return self.along("flip", tail, dim)
        return self._part_of(t, dim, start, stop)

    def _part_of(self, t: Tensor, dim: int, start: Sequence[int], stop: Sequence[int]) -> Tensor:
        """The entries between ends of which one is a share of the size, as a tenth of them: selected by their positions."""
        (axis,) = t.dims[dim]
        first, last = self._portion(axis, start), self._portion(axis, stop)
        if first is None or last is None:
            raise Refused("a slice whose ends are not constant, or that leaves entries out; use a where over positions")
        if (
            first.op == "constant"
        ):  # there is one entry at least, as such a function sees to, or else nothing to compare with
            last = ir.elementwise("maximum", last, first + 1.0)
        at = self.counter(axis)
        held = ir.elementwise("lt", at, last)
        if any(start):
            held = ir.elementwise("and", ir.elementwise("ge", at, first), held)
        numbers = tuple(b - a for a, b in zip(start, stop, strict=True))
        name = self.selection(held, (axis,), numbers, last - first if any(start) else last)
        node = relabel(t.node, {axis: self.selections[name].axes[0]})
        return Tensor(node, (*t.dims[:dim], (name,), *t.dims[dim + 1 :]))

    def _portion(self, axis: Axis, values: Sequence[int]) -> Node | None:
        """A number of entries as a formula: constant, counted from either end, or a share of the size, rounded."""
        sizes = self.sizes_of(axis)
        if len(set(values)) == 1:
            return ir.constant(float(values[0]))
        rest = {n - v for n, v in zip(sizes, values, strict=True)}
        if len(rest) == 1:
            return self.size(axis) - float(rest.pop())
        for node, shares in self._shares():
            counts = [share * n for share, n in zip(shares, sizes, strict=True)]
            if [math.floor(c) for c in counts] == list(values):
                return ir.elementwise("floor", self.size(axis) * node)
            if [n - math.floor(c) for c, n in zip(counts, sizes, strict=True)] == list(values):
                return self.size(axis) - ir.elementwise("floor", self.size(axis) * node)
        return None

    def _shares(self) -> Iterator[tuple[Node, Sequence[float]]]:
        """Shares that a function may take: by a parameter, or else by a number with few digits, the roundest first."""
        for name, given in self.recording.environment.items():
            yield ir.input_(name), given
            yield 1.0 - ir.input_(name), [1 - v for v in given]
            yield ir.input_(name) / 100.0, [v / 100 for v in given]
        for share in (*self.shares, *_ROUND_SHARES):
            yield ir.constant(share), (share,) * self.count

    def _leads(self, t: Tensor, dim: int, ends: Sequence[int]) -> bool:
        """Whether all entries before these ends are selected wherever the others are."""
        lead = self.selections[unprimed(t.dims[dim][0])].lead
        return bool(lead) and all(0 <= e <= n for e, n in zip(ends, lead, strict=True))

    def _slice_selected(self, t: Tensor, dim: int, start: Sequence[int], stop: Sequence[int]) -> Tensor:
        """Entries start … stop − 1 of a selection, whose ends are counted from its own."""
        n = self.extents(t.dims[dim])
        if not any(start) and tuple(stop) == n:
            return t
        found, whole = self.in_front(t, dim)
        size, counts = self.size(found.dims[dim][0]), [b - a for a, b in zip(start, stop, strict=True)]
        behind = {m - b for m, b in zip(n, stop, strict=True)}
        if len(set(start)) > 1:
            raise Refused("a slice of a selection that begins at a varying place; use a where over positions")
        less = float(start[0] + min(behind))
        left = ir.elementwise("minimum", self.symbol(stop), size) - float(start[0]) if len(behind) > 1 else size - less
        return self.first_entries(self.moved(whole, dim, start[0]), dim, counts, left)

    def moved(self, t: Tensor, dim: int, by: int) -> Tensor:
        """Each entry along an axis that many places earlier, or later if it is less than 0; zeros come in."""
        (axis,) = t.dims[dim]
        node = ir.window(t.node, axis, axis, ir.extent(by), ir.extent(-by)) if by and axis in t.node.axes else t.node
        return Tensor(node, t.dims)

    def _share(self, t: Tensor, dim: int, start: Sequence[int], lengths: Sequence[int]) -> Tensor | None:
        """One of a constant number of equal shares of a dimension: a half, a third."""
        n = self.extents(t.dims[dim])
        if len(set(lengths)) == 1 or any(k == 0 or m % k or a % k for k, m, a in zip(lengths, n, start, strict=True)):
            return None
        shares = {(m // k, a // k) for k, m, a in zip(lengths, n, start, strict=True)}
        if len(shares) > 1:
            return None
        ((count, place),) = shares
        if self.examples.get(self.table.root(self.origin.get(t.dims[dim][0], ""))) == count:
            return None  # of one entry each: these are columns that each mean something, as the corners of a box
        found = self.split(t, t.dims[dim], [count] * self.count)
        if found is None:
            return None
        pieces, (outer, inner) = found
        apart = Tensor(pieces.node, (*t.dims[:dim], (outer,), (inner,), *t.dims[dim + 1 :]))
        return self.select(apart, dim, place)

    def _window(self, t: Tensor, dim: int, first: ir.Extent, last: ir.Extent, lengths: Sequence[int]) -> Tensor:
        (axis,) = t.dims[dim]
        terms: dict[Axis, int] = {}
        for a, n in (*first, *last):
            terms[a] = terms.get(a, 0) + n
        stem = "".join(f"_{'less' if n > 0 else 'more'}{abs(n)}{a}" for a, n in sorted(terms.items()) if n)
        size = self.size(axis)
        for a, n in sorted(terms.items()):
            if n:
                part = float(abs(n)) if not a else self.size(a) if abs(n) == 1 else float(abs(n)) * self.size(a)
                size = size - part if n > 0 else size + part
        new = self.made_of(axis, stem, lengths, size, {a for d in t.dims for a in d}) if stem else axis
        node = ir.window(t.node, axis, new, first, last)
        return Tensor(node, (*t.dims[:dim], (new,), *t.dims[dim + 1 :]))

    def slide(self, x: Any, dim: int, stencil: Stencil, tap: Axis | None = None) -> Tensor:
        """Windows along a dimension; if the stencil has several taps, `tap` or a new axis is a new last dimension."""
        t = self.own_axis(x, dim)
        (axis,) = t.dims[dim]
        if stencil.taps > 1 and tap is None:
            count = ir.constant(float(stencil.taps))
            tap = self.unused(self.derived(f"taps{stencil.taps}", (stencil.taps,) * self.count, count), t.node.axes)
        new = self._slid_axis(t, axis, stencil)
        node = ir.slide(t.node, axis, new, tap, stencil)
        dims = (*t.dims[:dim], (new,), *t.dims[dim + 1 :])
        return Tensor(node, dims if tap is None or any(tap in d for d in dims) else (*dims, (tap,)))

    def _slid_axis(self, t: Tensor, axis: Axis, stencil: Stencil) -> Axis:
        """The axis of the windows: that of their operand, if there are as many."""
        counts = tuple(stencil.windows(n) for n in self.sizes_of(axis))
        if any(n < 1 for n in counts):
            raise Refused(
                f"no window fits into a dimension of size {min(self.sizes_of(axis))}; give larger examples, or pad before"
            )
        taken = {a for d in t.dims for a in d} | t.node.axes
        if stencil.count is not None:
            first = self.derived(f"first{stencil.count}", counts, ir.constant(float(stencil.count)))
            return self.unused(first, taken)
        if stencil.step == stencil.cut == 1:
            return axis
        size, less = self.size(axis), stencil.cut - 1
        if stencil.step == 1:
            stem = f"_{'less' if less > 0 else 'more'}{abs(less)}"
            return self.made_of(axis, stem, counts, size - float(less), taken)
        many = (size - float(stencil.cut) if stencil.cut else size) / float(stencil.step)
        stem = f"_by{stencil.step}_{'less' if stencil.cut >= 0 else 'more'}{abs(stencil.cut)}"
        return self.made_of(axis, stem, counts, ir.elementwise("floor", many) + 1.0, taken)

    def roll(self, x: Any, dim: int, shift: Any) -> Tensor:
        """Entries moved along a dimension; what falls off comes in at the other end."""
        t = self.whole_axis(x, dim)
        n = self.extents(t.dims[dim])
        if isinstance(shift, Varying):
            return self._roll_by(t, dim, [s % m for s, m in zip(shift.values, n, strict=True)])
        shift = int(shift)
        move = shift if abs(shift) < min(n) else None
        if move is None or not move:
            if shift == 0:
                return t
            raise Refused("a roll by more than the size of its dimension; take the rest by the size")
        (axis,) = t.dims[dim]
        if axis not in t.node.axes:
            return t
        rest, size, at = abs(move), self.size(axis), self.counter(axis)
        moved = ir.window(t.node, axis, axis, ir.extent(-move), ir.extent(move))
        for i in range(rest):  # the entries that fell off, each put where it comes in
            first, last = ir.constant(i, Kind.INDEX), ir.as_kind(size - float(rest - i), Kind.INDEX)
            place, source = (first, last) if move > 0 else (last, first)
            moved = ir.where(ir.elementwise("eq", at, place), ir.take(t.node, source, axis), moved)
        return Tensor(moved, t.dims)

    def _roll_by(self, t: Tensor, dim: int, shifts: Sequence[int]) -> Tensor:
        """A roll by a number that depends on sizes, as the half of a dimension does that a spectrum is centred by."""
        if not t.dims[dim] or t.dims[dim][0] not in t.node.axes:
            return t
        (axis,) = t.dims[dim]
        size, n = self.size(axis), self.sizes_of(axis)
        for extra in (0, 1):
            if all(s == (m + extra) // 2 for s, m in zip(shifts, n, strict=True)):
                shift = ir.elementwise("floor", (size + float(extra)) / 2.0)
                break
        else:
            shift = self.symbol(shifts)
        at = ir.as_kind(self.counter(axis), Kind.FLOAT) - shift
        index = ir.where(ir.elementwise("lt", at, 0.0), at + size, at)
        return Tensor(ir.take(t.node, ir.as_kind(index, Kind.INDEX), axis), t.dims)


def slice_ends(value: Any, default: int | None, n: Sequence[int]) -> list[int]:
    """The end of a slice in each recording, as Python counts; `default` (None: the size) where it is not given."""
    values = value.values if isinstance(value, Varying) else (value,) * len(n)
    result = []
    for v, size in zip(values, n, strict=True):
        v = (default if default is not None else size) if v is None else v
        result.append(min(max(v + size if v < 0 else v, 0), size))
    return result
