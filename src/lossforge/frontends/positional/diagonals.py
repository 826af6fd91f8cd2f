"""A matrix without its diagonal, by way of rows that are one entry longer.

Windows and splits of the flattened matrix would say the same step by step, but kernels do not spell these; as a selection, the
entries beside the diagonal are a mask under a reduction, which they fuse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lossforge import ir
from lossforge.frontends.positional.values import Dim, Refused, Tensor
from lossforge.frontends.positional.writing import Writing
from lossforge.frontends.recording import Varying
from lossforge.ir import Node


@dataclass
class Skewed(Tensor):
    """A square matrix on the way to all its entries but the diagonal, in dimensions that are not its own.

    This is how they are often taken: ``x.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten()``, which reads the matrix in
    rows that are one entry longer, so that its diagonal is the first column. Nothing else can be done with it on the way.
    """

    square: Dim = ()
    """The axes of the matrix, until its diagonal is cut off ..."""
    flat: Tensor | None = None
    """... and the entries beside it from there on."""


class Diagonals(Writing):
    """Slices and reshapes that cut a diagonal off."""

    def align(self, tensors: Sequence[Tensor]) -> tuple[list[Node], tuple[Dim, ...]]:
        """See `Alignment.align`."""
        if any(isinstance(t, Skewed) for t in tensors):
            raise Refused("a matrix that was read in rows of another length; flatten it first")
        return super().align(tensors)

    def reduce(self, op: str, x: Any, dims: Any = None, keepdims: bool = False) -> Tensor:
        """See `Reductions.reduce`."""
        t = self.tensor(x)
        if isinstance(t, Skewed):
            if t.flat is None or len(self.dims(t, dims)) < t.rank or keepdims:
                raise Refused("a reduction of a matrix that was read in rows of another length; flatten it first")
            t, dims = t.flat, None
        return super().reduce(op, t, dims, keepdims)

    def reshape(self, x: Any, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """See `Shapes.reshape`."""
        skewed = self._skewed(self.tensor(x), shapes)
        return super().reshape(x, shapes) if skewed is None else skewed

    def slice(self, x: Any, dim: int, start: Sequence[int], stop: Sequence[int], step: int = 1) -> Tensor:
        """See `Slices.slice`."""
        skewed = self._corner(x, dim, start, stop) if step == 1 else None
        return super().slice(x, dim, start, stop, step) if skewed is None else skewed

    def _corner(self, x: Any, dim: int, start: Sequence[int], stop: Sequence[int]) -> Skewed | None:
        """A flattened square matrix without its last entry, or the next step of what is made of it."""
        t = self.tensor(x)
        n = self.extents(t.dims[dim])
        whole = all(a == 0 and b == m for a, b, m in zip(start, stop, n, strict=True))
        if isinstance(t, Skewed):
            if whole:
                return t
            if t.rank == 2 and dim == 1 and set(start) == {1} and tuple(stop) == n and t.flat is None:
                return self._beside(t)
            raise Refused("entries of a matrix that was read in rows of another length; use a mask of the diagonal")
        axes = t.dims[dim]
        if t.rank != 1 or len(axes) != 2 or whole or not set(axes) <= t.node.axes:
            return None
        ends = set(start) == {0} and all(b == m - 1 for b, m in zip(stop, n, strict=True))
        if not ends or self.sizes_of(axes[0]) != self.sizes_of(axes[1]):
            return None
        return Skewed(t.node, ((self.ghost(stop),),), square=axes)

    def _beside(self, t: Skewed) -> Skewed:
        """All entries but the diagonal, n to each of n − 1 rows."""
        row, column = t.square
        square = Tensor(t.node, ((row,), (column,)))
        apart = Tensor(ir.elementwise("ne", self.counter(row), self.counter(column)), square.dims)
        counts = Varying([m * (m - 1) for m in self.sizes_of(row)])
        flat = self.index(square, [(d, self.position(apart, square, 0, counts, d)) for d in (0, 1)])
        return Skewed(flat.node, (t.dims[0], (self.ghost(self.sizes_of(row)),)), flat=flat)

    def _skewed(self, t: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor | None:
        """The matrix in longer rows; or what is beside its diagonal in a row, or in rows as before."""
        if isinstance(t, Skewed):
            if t.flat is not None and all(len(s) == 1 for s in shapes):
                return t.flat
            n = [math.isqrt(m + 1) for m in self.extents(t.dims[0])]
            if t.rank == 1 and all(s == (m - 1, m + 1) for s, m in zip(shapes, n, strict=True)):
                dims = (self.ghost([m - 1 for m in n]),), (self.ghost([m + 1 for m in n]),)
                return Skewed(t.node, dims, square=t.square)
            raise Refused("a matrix that was read in rows of another length; use a mask of the diagonal")
        if t.rank != 1 or len(t.dims[0]) != 1 or t.dims[0][0] not in self.selections:
            return None
        if len(self.selections[t.dims[0][0]].axes) != 2 or any(len(s) != 2 or s[1] != s[0] + 1 for s in shapes):
            return None
        rows, columns = (self.ghost(n) for n in zip(*shapes, strict=True))
        return Skewed(t.node, ((rows,), (columns,)), flat=t)
