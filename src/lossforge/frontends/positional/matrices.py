"""Inverses, determinants, triangular factors, eigenvalues and singular values of the matrices in the last two dimensions."""

from __future__ import annotations

from typing import Any

from lossforge import ir
from lossforge.frontends.positional.axis_table import unprimed
from lossforge.frontends.positional.diagonals import Diagonals
from lossforge.frontends.positional.values import Refused, Tensor

_NOTHING = 1e-13
"""Of the largest square of a singular value, what is the rounding of a sum in double precision."""


class Matrices(Diagonals):
    """Linear algebra."""

    def matrix(self, op: str, x: Any) -> Tensor:
        """An operation of `ir.MATRIX`."""
        t = self.tensor(x)
        if t.rank < 2 or self.extents(t.dims[-1]) != self.extents(t.dims[-2]):
            raise Refused("a matrix that is not square; multiply it with its transpose before")
        for d in (t.rank - 2, t.rank - 1):
            if not t.dims[d]:
                raise Refused("a matrix of one entry; divide, or take its logarithm")
            t = self.own_axis(t, d)
        (row,), (column,) = t.dims[-2:]
        if self.origin[unprimed(row)] != self.origin[unprimed(column)]:
            self.same(row, column)
        node = ir.matrix(op, t.node, row, column)
        kept = {"logdet": (), "detsign": (), "eigenvalues": t.dims[-1:]}.get(op, t.dims[-2:])
        return Tensor(node, (*t.dims[:-2], *kept))

    def matmul(self, x: Any, y: Any) -> Tensor:
        """The products of matrices, row by row and column by column."""
        a, b = self.tensor(x), self.tensor(y)
        left = Tensor(a.node, (*a.dims, ()))
        right = Tensor(b.node, (*b.dims[:-2], (), *b.dims[-2:]))
        product = self.elementwise("mul", left, right)
        return self.reduce("sum", product, [product.rank - 2])

    def solve(self, x: Any, y: Any, left: bool = True) -> Tensor:
        """The solution z of x z = y, or of z x = y; of vectors, where `y` has one dimension fewer than `x`."""
        inverse, b = self.matrix("inverse", x), self.tensor(y)
        if b.rank == inverse.rank - 1:
            return self.squeeze(self.matmul(inverse, self.unsqueeze(b, b.rank)), [b.rank])
        return self.matmul(inverse, b) if left else self.matmul(b, inverse)

    def triangle(self, x: Any, lower: bool, unit: bool = False) -> Tensor:
        """The lower or upper half of matrices, the rest taken for 0, and the diagonal for 1 if `unit`."""
        t = self.tensor(x)
        row, column = (self.positions(self.extents(t.dims[d]), d, t.rank) for d in (t.rank - 2, t.rank - 1))
        half = self.elementwise("where", self.elementwise("ge" if lower else "le", row, column), t, 0.0)
        return self.elementwise("where", self.elementwise("eq", row, column), 1.0, half) if unit else half

    def eigen(self, x: Any) -> tuple[Tensor, Tensor]:
        """The eigenvalues of symmetric matrices, in increasing order, and their eigenvectors."""
        return self.matrix("eigenvalues", x), self.matrix("eigenvectors", x)

    def singular(self, x: Any, full: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """U, s and Vᵀ with x = U diag(s) Vᵀ, s in decreasing order.

        By the eigenvalues of the smaller one of x xᵀ and xᵀ x. Those that are next to nothing are taken for zero, and have
        no slope: nobody knows the direction of their vectors.
        """
        t = self.tensor(x)
        rows, columns = (self.extents(t.dims[d]) for d in (t.rank - 2, t.rank - 1))
        if full and rows != columns:
            raise Refused("a singular value decomposition with more vectors than values; ask for as many")
        wide = rows < columns
        turned = self.transpose(t)
        squares, vectors = self.eigen(self.matmul(t, turned) if wide else self.matmul(turned, t))
        squares, vectors = (self.along("flip", v, v.rank - 1) for v in (squares, vectors))
        least = self.elementwise("mul", self.reduce("max", squares, [squares.rank - 1], keepdims=True), _NOTHING)
        some = self.elementwise("gt", squares, least)
        values = self.elementwise(
            "where", some, self.elementwise("sqrt", self.elementwise("where", some, squares, 1.0)), 0.0
        )
        scales = self.unsqueeze(self.elementwise("where", some, values, 1.0), values.rank - 1)
        if wide:
            right = self.elementwise("div", self.matmul(turned, vectors), scales)
            return vectors, values, self.transpose(right)
        left = self.elementwise("div", self.matmul(t, vectors), scales)
        return left, values, self.transpose(vectors)

    def transpose(self, x: Any) -> Tensor:
        """With the last two dimensions exchanged."""
        t = self.tensor(x)
        return self.permute(t, [*range(t.rank - 2), t.rank - 1, t.rank - 2])

    def determinant(self, x: Any) -> Tensor:
        """The determinants of matrices."""
        size = self.elementwise("exp", self.matrix("logdet", x))
        return self.elementwise("mul", self.matrix("detsign", x), size)
