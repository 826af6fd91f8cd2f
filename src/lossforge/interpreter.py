"""Reference evaluation of a graph, in float64 or in high precision: slow, plain, and what all else is tested against.

Every value is an array with one dimension for each axis of the graph, of size 1 where the value does not vary, so that
NumPy's own broadcasting is broadcasting by axis identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lossforge import special
from lossforge.errors import ShapeError
from lossforge.ir import EIGEN, MATRIX, WHOLE, Coarse, Extent, Kind, Node, Port, original, topological
from lossforge.primitives import PRIMITIVES

_NUMPY: Mapping[str, Callable[..., Any]] = {
    "neg": np.negative,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "abs": np.abs,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "where": np.where,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "logaddexp": np.logaddexp,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "xlogy": special.xlogy,
    "sigmoid": special.sigmoid,
    "log_sigmoid": special.log_sigmoid,
    "softplus": special.softplus,
    "erf": special.erf,
    "erfc": special.erfc,
    "lgamma": special.lgamma,
    "digamma": special.digamma,
    "polygamma": lambda n, x: special.polygamma(np.ravel(n)[0], x),
    "stop_gradient": lambda x: x,
    "surrogate": lambda hard, soft: hard + 0 * soft,
    "cast": lambda x: np.asarray(x, dtype=np.float64),
}


class Float64:
    """Arithmetic in float64 with NumPy."""

    def array(self, values: Any, kind: Kind) -> np.ndarray:
        """`values` as an array of this arithmetic."""
        return np.asarray(values, dtype={Kind.FLOAT: np.float64, Kind.INDEX: np.int64, Kind.BOOL: np.bool_}[kind])

    def elementwise(self, op: str, *args: np.ndarray) -> np.ndarray:
        """One row of the table."""
        with np.errstate(all="ignore"):
            return np.asarray(_NUMPY[op](*args))

    def reduce(self, op: str, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        """A reduction that keeps the axes with size 1."""
        if op == "logsumexp":
            with np.errstate(all="ignore"):
                return special.logsumexp(x, axes)
        along: Any = axes[0] if op in ("argmax", "argmin") else axes
        return np.asarray(getattr(np, op)(x, axis=along, keepdims=True))

    def matrix(self, op: str, x: np.ndarray) -> np.ndarray:
        """An operation on the matrices of the last two dimensions, which stay; NaN where there is no result."""
        try:
            if op == "inverse":
                return np.linalg.inv(x)
            if op == "cholesky":
                return np.linalg.cholesky(x)
            if op == "eigenvalues":
                return np.linalg.eigvalsh(x)[..., None, :]
            if op == "eigenvectors":
                return np.linalg.eigh(x)[1]
            return np.asarray(np.linalg.slogdet(x)[op == "logdet"])[..., None, None]
        except np.linalg.LinAlgError:
            return np.full_like(x, np.nan)[..., : 1 if op == "eigenvalues" else None, :]


class HighPrecision:
    """Arithmetic with mpmath, entry by entry, through the references of the operation table.

    Args:
        digits: decimal digits carried.
    """

    def __init__(self, digits: int = 50) -> None:
        import mpmath

        self.context = mpmath.mp.clone()
        self.context.dps = digits

    def array(self, values: Any, kind: Kind) -> np.ndarray:
        """`values` as an array of this arithmetic; floats are taken exactly."""
        plain = np.asarray(values)
        if kind is not Kind.FLOAT:
            return plain.astype(np.int64 if kind is Kind.INDEX else np.bool_)
        return self._map(self.context.mpf, 1)(plain.astype(object))

    def matrix(self, op: str, x: np.ndarray) -> np.ndarray:
        """An operation on the matrices of the last two dimensions, which stay."""
        m, n = self.context, x.shape[-1]

        def one(entries: np.ndarray) -> np.ndarray:
            given = m.matrix(entries.tolist())
            if op in ("inverse", "cholesky"):
                found = m.inverse(given) if op == "inverse" else m.cholesky(given)
                return np.array([[found[i, j] for j in range(n)] for i in range(n)], dtype=object)
            if op in EIGEN:
                values, vectors = m.eigsy(given)
                if op == "eigenvalues":
                    return np.array([[values[i] for i in range(n)]], dtype=object)
                return np.array([[vectors[i, j] for j in range(n)] for i in range(n)], dtype=object)
            value = m.det(given)
            return np.array([[m.log(abs(value)) if op == "logdet" else m.sign(value)]], dtype=object)

        rows = [one(entries) for entries in x.reshape(-1, n, n)]
        return np.stack(rows).reshape(*x.shape[:-2], *rows[0].shape)

    def _map(self, function: Callable[..., Any], arity: int) -> Callable[..., np.ndarray]:
        ufunc = np.frompyfunc(function, arity, 1)

        def mapped(*args: np.ndarray) -> np.ndarray:
            with np.errstate(all="ignore"):  # a NaN on its way through mpmath raises the processor's flag
                return np.asarray(ufunc(*args), dtype=object)

        return mapped

    def elementwise(self, op: str, *args: np.ndarray) -> np.ndarray:
        """One row of the table."""
        reference = PRIMITIVES[op].reference
        out = self._map(lambda *xs: reference(self.context, *xs), len(args))(*args)
        if op in ("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"):
            return out.astype(np.bool_)
        return out

    def reduce(self, op: str, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        """A reduction that keeps the axes with size 1."""
        m = self.context

        def fold(values: np.ndarray) -> Any:
            items = list(values)
            if op == "sum":
                return m.fsum(items)
            if op == "prod":
                return m.fprod(items)
            if op == "logsumexp":
                top = max(items)
                return top + m.log(m.fsum(m.exp(v - top) for v in items))
            if any(m.isnan(v) for v in items):
                return m.nan
            if op in ("argmax", "argmin"):
                return items.index(max(items) if op == "argmax" else min(items))
            return max(items) if op == "max" else min(items)

        kept = [i for i in range(x.ndim) if i not in axes]
        shape = [1 if i in axes else x.shape[i] for i in range(x.ndim)]
        rows = x.transpose(*kept, *axes).reshape(int(np.prod([x.shape[i] for i in kept], dtype=int)), -1)
        result = np.empty(len(rows), dtype=object)
        result[:] = [fold(row) for row in rows]
        return result.reshape(shape)


def evaluate(
    outputs: Sequence[Node], values: Mapping[Port, Any], arithmetic: Float64 | HighPrecision | None = None
) -> list[np.ndarray]:
    """The values of `outputs`, each with its axes in alphabetical order.

    Args:
        outputs: what to compute.
        values: an array for each input, its dimensions in the port's order.
        arithmetic: `Float64` (the default) or `HighPrecision`.

    Raises:
        ShapeError: two inputs disagree on the size of an axis.
    """
    number = arithmetic or Float64()
    order = topological(outputs)
    axes = sorted({a for n in order for a in n.axes} | {a for p in values for a in p.order})
    place = {a: i for i, a in enumerate(axes)}
    lengths: dict[str, int] = {}
    known: dict[Node, np.ndarray] = {}

    def spread(array: np.ndarray, names: Sequence[str]) -> np.ndarray:
        by_place = sorted(range(len(names)), key=lambda i: place[names[i]])
        shape = [1] * len(axes)
        for i in by_place:
            shape[place[names[i]]] = array.shape[i]
        return array.transpose(by_place).reshape(shape)

    for port, given in values.items():
        array = number.array(given, port.node.kind)
        for axis, length in zip(port.order, array.shape, strict=True):
            if lengths.setdefault(axis, length) != length:
                raise ShapeError(f"{port.name}: axis {axis!r} has size {length}, elsewhere {lengths[axis]}")
        known[port.node] = spread(array, port.order)
    for node in order:  # a renamed axis has the size of the one it copies
        if node.op == "rename" and node.attrs[0] in lengths:
            lengths[node.attrs[1]] = lengths[node.attrs[0]]
    derive_lengths(order, lengths)
    last = {a: node for node in order for a in node.args}
    wanted = {*outputs, *(port.node for port in values)}
    for node in order:
        if node not in known:
            known[node] = _step(node, [known[a] for a in node.args], number, place, lengths, len(axes))
        for a in node.args:
            if last[a] is node and a not in wanted:
                known.pop(a, None)  # memory that the next step can have
    result = []
    for node in outputs:
        gone = tuple(i for i, a in enumerate(axes) if a not in node.axes)
        full = np.broadcast_to(known[node], [lengths[a] if a in node.axes else 1 for a in axes])
        result.append(full.squeeze(axis=gone))
    return result


def count_entries(part: Extent, lengths: Mapping[str, int]) -> int:
    """A number of entries, for these sizes of axes."""
    return sum(n * (lengths[axis] if axis else 1) for axis, n in part)


def derive_lengths(order: Sequence[Node], lengths: dict[str, int]) -> None:
    """Add the sizes of axes that no input has."""
    for _ in order:
        before = len(lengths)
        for node in order:
            try:
                if node.op == "window":
                    old, new, start, trim = node.attrs
                    shorter = count_entries(start, lengths) + count_entries(trim, lengths)
                    if old in lengths:
                        lengths.setdefault(new, lengths[old] - shorter)
                    else:
                        lengths[old] = lengths[new] + shorter
                elif node.op == "join":
                    lengths.setdefault(node.attrs[1], math.prod(lengths[a] for a in node.attrs[0]))
                elif node.op == "slide":
                    old, new, tap, stencil, back = node.attrs
                    coarse, fine = (old, new) if back else (new, old)
                    if tap is not None:
                        lengths.setdefault(tap, stencil.taps)
                    lengths.setdefault(coarse, stencil.windows(lengths[fine]))
                elif node.op == "iota" and len(node.attrs) > 1:
                    axis, length = node.attrs
                    if isinstance(length, Coarse):
                        length = (lengths[length.axis] - length.cut) // length.step + 1
                    lengths.setdefault(axis, length)
                elif node.op == "table":
                    for axis, length in zip(*node.attrs[:2], strict=True):
                        lengths.setdefault(axis, length)
                elif node.op == "rename":
                    lengths.setdefault(node.attrs[1], lengths[node.attrs[0]])
            except KeyError:  # not known yet
                continue
        if len(lengths) == before:  # left are copies whose renaming was simplified away
            left = {a for node in order for a in node.axes} - lengths.keys()
            lengths.update((a, lengths[original(a)]) for a in left if original(a) in lengths)
            if len(lengths) == before:
                return


def of_whole(
    node: Node,
    x: np.ndarray,
    number: Float64 | HighPrecision,
    place: Mapping[str, int],
    lengths: Mapping[str, int],
) -> np.ndarray:
    """An operation of `ir.WHOLE`, of an array with a dimension for each axis, where `place` says."""
    if node.op in MATRIX:
        pair = [place[a] for a in node.attrs[0]]
        turned = [*(i for i in range(x.ndim) if i not in pair), *pair]
        return number.matrix(node.op, x.transpose(turned)).transpose(np.argsort(turned))
    if node.op == "slide":
        return _slide(node, x, place, lengths)
    if node.op in ("join", "split"):
        axes, one = node.attrs if node.op == "join" else node.attrs[::-1]
        many, single = [place[a] for a in axes], place[one]
        if node.op == "join":
            x = np.broadcast_to(x, [lengths[axes[many.index(i)]] if i in many else n for i, n in enumerate(x.shape)])
        places = [*(i for i in range(x.ndim) if i not in many and i != single), single, *many]
        moved = x.transpose(places)
        last = (lengths[one], *(1 for _ in many)) if node.op == "join" else (1, *(lengths[a] for a in axes))
        return moved.reshape(*moved.shape[: -1 - len(many)], *last).transpose(np.argsort(places))
    at = place[node.attrs[0]]
    if node.op == "flip":
        return np.flip(x, at)
    if node.op == "argsort":
        return np.argsort(x, axis=at, kind="stable")
    if node.op == "cumsum":
        return np.flip(np.cumsum(np.flip(x, at), at), at) if node.attrs[1] else np.cumsum(x, at)
    old, new, start, trim = node.attrs
    first, last_ = count_entries(start, lengths), count_entries(trim, lengths)
    inside = x[(slice(None),) * at + (slice(max(first, 0), x.shape[at] - max(last_, 0)),)]
    around = [(max(-first, 0), max(-last_, 0)) if i == at else (0, 0) for i in range(x.ndim)]
    result = np.pad(inside, around)
    return result if old == new else np.swapaxes(result, at, place[new])


def _slide(node: Node, x: np.ndarray, place: Mapping[str, int], lengths: Mapping[str, int]) -> np.ndarray:
    old, new, tap, stencil, back = node.attrs
    at, here = place[old], np.arange(lengths[new])
    slices = []
    for t in range(stencil.taps):
        shift = stencil.dilation * t + stencil.start
        source = (here - shift) // stencil.step if back else stencil.step * here + shift
        inside = (source >= 0) & (source < x.shape[at])
        if back:
            inside &= (here - shift) % stencil.step == 0
        one = x if tap is None or x.shape[place[tap]] == 1 else x.take([t], axis=place[tap])
        picked = one.take(np.where(inside, source, 0), axis=at) if x.shape[at] else np.zeros_like(one, shape=0)
        mask = inside.reshape([-1 if i == at else 1 for i in range(x.ndim)])
        moved = np.where(mask, picked, np.zeros_like(picked))
        slices.append(moved if old == new else np.swapaxes(moved, at, place[new]))
    return slices[0] if tap is None else np.concatenate(slices, axis=place[tap])


def _step(
    node: Node,
    args: Sequence[np.ndarray],
    number: Float64 | HighPrecision,
    place: Mapping[str, int],
    lengths: Mapping[str, int],
    rank: int,
) -> np.ndarray:
    if node.op == "constant":
        return number.array(node.attrs[0], node.kind).reshape([1] * rank)
    if node.op == "size":
        return number.array(lengths[node.attrs[0]], Kind.FLOAT).reshape([1] * rank)
    if node.op == "iota":
        shape = [1] * rank
        shape[place[node.attrs[0]]] = lengths[node.attrs[0]]
        return np.arange(lengths[node.attrs[0]]).reshape(shape)
    if node.op == "take":
        x, index = args
        at = place[node.attrs[0]]
        length = x.shape[at]
        inside = (index >= 0) & (index < length)
        shape = [max(a, b) if i != at else b for i, (a, b) in enumerate(zip(x.shape, index.shape, strict=True))]
        wide = np.broadcast_to(x, [x.shape[i] if i == at else n for i, n in enumerate(shape)])
        picked = np.take_along_axis(wide, np.broadcast_to(np.where(inside, index, 0), shape), axis=at)
        return np.where(inside, picked, number.array(np.nan, Kind.FLOAT)) if node.kind is Kind.FLOAT else picked
    if node.op == "rename":
        return np.swapaxes(args[0], place[node.attrs[0]], place[node.attrs[1]])
    if node.op in WHOLE:
        return of_whole(node, args[0], number, place, lengths)
    if node.op == "table":
        order, shape, values = node.attrs
        array = number.array(np.array(values).reshape(shape), node.kind)
        by_place = sorted(range(len(order)), key=lambda i: place[order[i]])
        full = [1] * rank
        for i in by_place:
            full[place[order[i]]] = shape[i]
        return array.transpose(by_place).reshape(full)
    if node.op in PRIMITIVES:
        if node.op == "cast" and node.kind is Kind.INDEX:
            return np.asarray(args[0], dtype=np.int64)
        return number.elementwise(node.op, *args)
    at_axes = tuple(place[a] for a in node.attrs[0])
    if node.op in ("argmax", "argmin"):
        if len(at_axes) != 1:
            raise ShapeError(f"{node.op} works along one axis, not {len(at_axes)}")
        reduced = number.reduce(node.op, args[0], at_axes)
        return reduced.astype(np.int64)
    return number.reduce(node.op, args[0], at_axes)
