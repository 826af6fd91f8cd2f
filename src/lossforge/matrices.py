"""Derivatives of inverses, determinants, Cholesky factors and eigenvalues of the matrices along two axes.

They are those of M. Giles, Collected matrix derivative results for forward and reverse mode algorithmic differentiation (2008).
"""

from __future__ import annotations

from lossforge.ir import EIGEN, Axis, Node, elementwise, iota, matrix, rename, spread, total, where


def pull(node: Node, adjoint: Node) -> Node:
    """The adjoint of the operand of a matrix operation."""
    (x,), (row, column) = node.args, node.attrs[0]
    pair = row, column
    if node.op == "logdet":
        return adjoint * _transposed(matrix("inverse", x, *pair), *pair)
    adjoint = spread(spread(adjoint, row), column)
    if node.op in EIGEN:
        vectors = matrix("eigenvectors", x, *pair)
        if node.op == "eigenvalues":
            return _product(vectors * adjoint, _transposed(vectors, *pair), *pair)
        inner = _product(_transposed(vectors, *pair), adjoint, *pair) * _gaps(x, *pair)
        found = _product(_product(vectors, inner, *pair), _transposed(vectors, *pair), *pair)
        return (found + _transposed(found, *pair)) * 0.5
    if node.op == "inverse":
        turned = _transposed(node, *pair)
        return -_product(_product(turned, adjoint, *pair), turned, *pair)
    inverse = matrix("inverse", node, *pair)
    inner = _half(_product(_transposed(node, *pair), adjoint, *pair), *pair)
    found = _product(_product(_transposed(inverse, *pair), inner, *pair), inverse, *pair)
    return (found + _transposed(found, *pair)) * 0.5


def push(node: Node, tangent: Node) -> Node:
    """The tangent of a matrix operation."""
    (x,), (row, column) = node.args, node.attrs[0]
    pair = row, column
    tangent = spread(spread(tangent, row), column)
    if node.op == "logdet":
        return total(_transposed(matrix("inverse", x, *pair), *pair) * tangent, pair)
    if node.op in EIGEN:
        vectors = matrix("eigenvectors", x, *pair)
        symmetric = (tangent + _transposed(tangent, *pair)) * 0.5
        turned = _product(symmetric, vectors, *pair)
        if node.op == "eigenvalues":
            return total(vectors * turned, (row,))
        inner = _product(_transposed(vectors, *pair), turned, *pair)
        return _product(vectors, inner * _gaps(x, *pair), *pair)
    if node.op == "inverse":
        return -_product(_product(node, tangent, *pair), node, *pair)
    inverse = matrix("inverse", node, *pair)
    inner = _product(_product(inverse, tangent, *pair), _transposed(inverse, *pair), *pair)
    return _product(node, _half(inner, *pair), *pair)


def _product(a: Node, b: Node, row: Axis, column: Axis) -> Node:
    """The product of the matrices of `a` and `b`."""
    between = _unused(row, a, b)
    return total(rename(a, column, between) * rename(b, row, between), (between,))


def _transposed(a: Node, row: Axis, column: Axis) -> Node:
    aside = _unused(row, a)
    return rename(rename(rename(a, row, aside), column, row), aside, column)


def _gaps(x: Node, row: Axis, column: Axis) -> Node:
    """1 / (eigenvalue at the column − that at the row); 0 where they are equal, as eigenvectors then may turn freely."""
    values = matrix("eigenvalues", x, row, column)
    gap = values - rename(values, column, row)
    equal = elementwise("eq", gap, 0.0)
    return where(equal, 0.0, 1.0 / where(equal, 1.0, gap))


def _half(a: Node, row: Axis, column: Axis) -> Node:
    """The lower half of the matrices, and half of the diagonal."""
    at, along = iota(row), iota(column)
    lower = where(elementwise("gt", at, along), a, 0.0)
    return where(elementwise("eq", at, along), a * 0.5, lower)


def _unused(axis: Axis, *values: Node) -> Axis:
    taken = frozenset[Axis]().union(*(v.axes for v in values))
    while axis in taken:
        axis += "'"
    return axis
