"""What the ATen operations of PyTorch mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lossforge import ir
from lossforge.frontends import spectral, windows
from lossforge.frontends.approximations import bessel_i0e, bessel_i1e, erf_inverse
from lossforge.frontends.positional import Importer, Refused, Rule, Tensor, Unknown, rule_for, slice_ends
from lossforge.frontends.recording import Step, Varying
from lossforge.frontends.rules import arithmetic, cut, kind_of
from lossforge.frontends.spectral import Complex
from lossforge.frontends.torch_matrices import MATRICES
from lossforge.frontends.torch_windows import WINDOWS
from lossforge.ir import Kind


def _cast(imp: Importer, step: Step, x: Any, *rest: Any) -> Any:
    if "complex" in step.dtypes[0]:
        return spectral.complex_of(imp, x)
    return imp.cast(x, kind_of(step.dtypes[0]))


def _scaled(op: str) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
        alpha = step.attrs.get("alpha", 1)
        result = imp.elementwise(op, x, y if alpha == 1 else imp.elementwise("mul", y, alpha))
        return imp.cast(result, kind_of(step.dtypes[0]))

    return rule


def _formula(function: Callable[..., Any]) -> Rule:
    return lambda imp, step, *args: imp.map(function, *args)


def _reduce(op: str) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, dims: Any = None, keepdim: bool = False) -> Tensor:
        return imp.cast(imp.reduce(op, x, dims, keepdim), kind_of(step.dtypes[0]))

    return rule


def _div(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    result = imp.elementwise("div", x, y)
    mode = step.attrs.get("rounding_mode")
    if mode == "floor":
        result = imp.elementwise("floor", result)
    elif mode == "trunc":
        result = imp.map(_towards_zero, result)
    return imp.cast(result, kind_of(step.dtypes[0]))


def _logical(op: str) -> Rule:
    def rule(imp: Importer, step: Step, *args: Any) -> Tensor:
        if (
            step.op == "bitwise_and.Scalar" and args[1] == 1 and kind_of(step.dtypes[0]) is Kind.INDEX
        ):  # whether it is odd
            return imp.cast(imp.map(lambda x: x - 2.0 * _floor(x / 2.0), imp.cast(args[0], Kind.FLOAT)), Kind.INDEX)
        flags = [_flag(imp.tensor(a)) if step.op.startswith("bitwise") else imp.tensor(a) for a in args]
        return imp.cast(imp.elementwise(op, *flags), kind_of(step.dtypes[0]))

    return rule


def _flag(t: Tensor) -> Tensor:
    """Integers of one bit as truth values."""
    node = t.node
    if node.kind is Kind.BOOL:
        return t
    if node.op == "cast" and node.args[0].kind is Kind.BOOL:
        return Tensor(node.args[0], t.dims)
    if node.op == "constant" and node.attrs[0] in (0, 1):
        return Tensor(ir.constant(bool(node.attrs[0])), t.dims)
    raise Refused("bits of integers; use arithmetic, or comparisons")


def _clamp(imp: Importer, step: Step, x: Any, low: Any = None, high: Any = None) -> Tensor:
    low, high = low if low is not None else step.attrs.get("min"), high if high is not None else step.attrs.get("max")
    result = imp.tensor(x)

    # At a bound PyTorch lets the gradient of the operand through; `maximum` does not.
    if low is not None:
        result = imp.elementwise("where", imp.elementwise("lt", result, low), low, result)
    if high is not None:
        result = imp.elementwise("where", imp.elementwise("gt", result, high), high, result)
    return imp.cast(result, kind_of(step.dtypes[0]))


def _relu(imp: Importer, step: Step, x: Any) -> Tensor:
    return imp.elementwise("maximum", x, 0.0)


def _extreme(op: str) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        values = imp.cast(imp.reduce(op, x, dim, keepdim), kind_of(step.dtypes[0]))
        if len(step.outputs) == 1:
            return values
        try:
            return values, imp.reduce("arg" + op, x, dim, keepdim)
        except Refused as reason:  # few ask for it
            return values, Unknown(str(reason))

    return rule


def _arg(op: str) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, dim: Any = None, keepdim: bool = False) -> Tensor:
        return imp.reduce(op, x, dim, keepdim)

    return rule


def _var(imp: Importer, step: Step, x: Any, dims: Any = None, given: Any = 1, *rest: Any) -> Tensor:
    correction = step.attrs.get("correction", given)
    return imp.var(x, dims, 1 if correction is None else imp.integer(correction), step.attrs.get("keepdim", False))


def _norm(
    imp: Importer, step: Step, x: Any, order: Any = 2, dims: Any = None, keepdim: bool = False, **_: Any
) -> Tensor:
    return norm(imp, x, order, dims, keepdim)


def norm(imp: Importer, x: Any, order: float, dims: Any, keepdim: bool) -> Tensor:
    """A vector norm."""
    size = imp.elementwise("abs", x)
    if order == 1:
        return imp.reduce("sum", size, dims, keepdim)
    if order in (float("inf"), float("-inf")):
        return imp.reduce("max" if order > 0 else "min", size, dims, keepdim)
    if order == 0:
        return imp.reduce("sum", imp.cast(imp.elementwise("ne", x, 0.0), Kind.FLOAT), dims, keepdim)
    powers = imp.elementwise("mul", x, x) if order == 2 else imp.elementwise("pow", size, order)
    total = imp.reduce("sum", powers, dims, keepdim)
    if order == 2:  # at the origin every library gives the subgradient 0
        zero = imp.elementwise("eq", total, 0.0)
        return imp.elementwise("where", zero, 0.0, imp.elementwise("sqrt", imp.elementwise("where", zero, 1.0, total)))
    return imp.elementwise("pow", total, imp.elementwise("div", 1.0, order))


def _softmax(log: bool) -> Rule:
    return lambda imp, step, x, dim, *rest: imp.softmax(x, imp.dim(imp.tensor(x), dim), log)


def _shape(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
    return imp.reshape(x, step.shapes[0])


def _expand(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
    return imp.expand(x, step.shapes[0])


def _broadcast(imp: Importer, step: Step, x: Any, shape: Any, at: Sequence[int]) -> Tensor:
    """The dimensions of an operand among those of the result."""
    t = imp.tensor(x)
    dims = [t.dims[at.index(d)] if d in at else () for d in range(len(shape))]
    return imp.expand(Tensor(t.node, tuple(dims)), step.shapes[0])


def _squeeze(imp: Importer, step: Step, x: Any, dims: Any = None) -> Tensor:
    t = imp.tensor(x)
    return imp.squeeze(t, None if dims is None else imp.dims(t, dims))


def _unsqueeze(imp: Importer, step: Step, x: Any, dim: Any) -> Tensor:
    d = imp.integer(dim)
    t = imp.tensor(x)
    return imp.unsqueeze(t, d + t.rank + 1 if d < 0 else d)


def _transpose(imp: Importer, step: Step, x: Any, a: Any = 0, b: Any = 1) -> Tensor:
    t = imp.tensor(x)
    order = list(range(t.rank))
    if t.rank < 2:
        return t
    i, j = imp.dim(t, a), imp.dim(t, b)
    order[i], order[j] = j, i
    return imp.permute(t, order)


def _full(imp: Importer, step: Step, *args: Any) -> Tensor:
    values = {
        "empty": 0,
        "empty_permuted": 0,
        "empty_like": 0,
        "zeros": 0,
        "ones": 1,
        "zeros_like": 0,
        "ones_like": 1,
        "new_zeros": 0,
        "new_ones": 1,
    }
    base = step.op.split(".")[0]
    value = values[base] if base in values else args[-1]
    return imp.full(imp.cast(value, kind_of(step.dtypes[0])), step.shapes[0])


def _arange(imp: Importer, step: Step, *args: Any) -> Tensor:
    start, stride = (args[0], args[2] if len(args) > 2 else 1) if len(args) > 1 else (0, 1)
    count = imp.arange([s[0] for s in step.shapes[0]])
    if stride != 1:
        count = imp.elementwise("mul", count, stride)
    if start != 0:
        count = imp.elementwise("add", count, start)
    return imp.cast(count, kind_of(step.dtypes[0]))


def _gather(imp: Importer, step: Step, x: Any, dim: Any, index: Any, **_: Any) -> Tensor:
    t, at = imp.tensor(x), imp.tensor(index)
    d = imp.dim(t, dim)
    t = imp.single(t, d)
    for i in range(t.rank):
        if i != d and imp.extents(t.dims[i]) != imp.extents(at.dims[i]):
            raise Refused("an index that is shorter than its operand; cut the operand to the index's size")
    others = Tensor(t.node, (*t.dims[:d], (), *t.dims[d + 1 :]))
    return imp.gather((others, t.dims[d]), at, d)


def _index(imp: Importer, step: Step, x: Any, indices: Sequence[Any]) -> Tensor:
    t = imp.tensor(x)
    used = [(d, imp.tensor(i)) for d, i in enumerate(indices) if i is not None]
    columns = _columns([i for _, i in used])
    found = imp.index(t, [(d, _unlined(i, columns)) for d, i in used])
    first = used[0][0]
    return (
        replace(found, dims=(*found.dims[: first + 1], *((),) * columns, *found.dims[first + 1 :]))
        if columns
        else found
    )


def _without_ranges(imp: Importer, t: Tensor, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Index arrays without those that hold each position of their dimension, along a dimension of the result of their own."""
    found = list(indices)
    for d, index in enumerate(indices):
        used = [i for i in found if i is not None]
        if index is None or index.node.op != "iota" or len(used) == 1:
            continue
        (at,) = [i - index.rank for i, dim in enumerate(index.dims) if dim] or [0]  # counted from the last one
        others = [i for i in used if i is not index]
        whole = at and imp.extents(index.dims[at]) == imp.extents(t.dims[d])
        if whole and all(i.rank < -at or i.dims[at] == () for i in others):
            found = [
                i
                if i is None or i.rank < -at
                else replace(i, dims=tuple(e for k, e in enumerate(i.dims) if k != i.rank + at))
                for i in found
            ]
            found[d] = None
    return found


def _columns(indices: Sequence[Tensor]) -> int:
    """The number of last dimensions of size 1 that index arrays have behind their first."""
    count = 0
    while all(i.rank > count + 1 and i.dims[-1 - count] == () for i in indices):
        count += 1
    return count


def _unlined(index: Tensor, columns: int) -> Tensor:
    """An index array without its last dimensions."""
    return replace(index, dims=index.dims[: index.rank - columns])


def _index_put(
    imp: Importer, step: Step, x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False
) -> Tensor:
    found = [None if i is None else imp.tensor(i) for i in indices]
    if not imp.tensor(values).node.axes:
        found = _without_ranges(imp, imp.tensor(x), found)
    columns = _columns([i for i in found if i is not None])
    if columns:
        v = imp.tensor(values)
        behind = sum(i is None for i in found) + imp.tensor(x).rank - len(found)
        lined = range(max(v.rank - behind - columns, 0), max(v.rank - behind, 0))
        values = Tensor(v.node, tuple(e for i, e in enumerate(v.dims) if i not in lined))
        found = [None if i is None else _unlined(i, columns) for i in found]
    used = [(d, i) for d, i in enumerate(found) if i is not None]
    if accumulate and len(used) == 1 and not used[0][1].places and used[0][1].node.op != "iota":
        d, index = used[0]  # several values may go to one place
        v = imp.tensor(values)
        spread = Tensor(index.node, tuple(index.dims[0] if i == d else e for i, e in enumerate(v.dims)))
        return _scatter_add(imp, step, x, d, spread, v)
    return imp.write(imp.tensor(x), found, imp.tensor(values), accumulate)


def _scatter(imp: Importer, step: Step, x: Any, dim: Any, index: Any, value: Any, *rest: Any) -> Tensor:
    """Writing along a dimension: one-hot and multi-hot encodings."""
    t, at, v = imp.tensor(x), imp.tensor(index), imp.tensor(value)
    d = imp.dim(t, dim)
    several = set(imp.extents(at.dims[d])) != {1}
    if several and v.node.axes:
        raise Refused(
            "a scatter of several entries along its dimension, of which one may overwrite another; use scatter_add or one_hot"
        )
    chosen, _ = _hits(imp, t, d, at)
    chosen = imp.reduce("any", chosen, [t.rank])
    kept = v if v.rank == 0 or several else Tensor(v.node, tuple(() if i == d else e for i, e in enumerate(v.dims)))
    if several:
        kept = Tensor(v.node, ())
    return imp.cast(imp.elementwise("where", chosen, kept, t), kind_of(step.dtypes[0]))


def _hits(imp: Importer, t: Tensor, d: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """Where an index points to, over the dimensions of `t` and, at the end, that of the index; and the index so."""
    if any(i != d and imp.extents(index.dims[i]) != imp.extents(t.dims[i]) for i in range(t.rank)):
        raise Refused("an index that is shorter than its operand; cut the operand to the index's size")
    position = imp.positions(imp.extents(t.dims[d]), d, t.rank + 1)
    at = Tensor(index.node, (*(() if i == d else e for i, e in enumerate(index.dims)), index.dims[d]))
    return imp.elementwise("eq", position, at), at


def _scatter_add(imp: Importer, step: Step, x: Any, dim: Any, index: Any, source: Any) -> Tensor:
    t, at, v = imp.tensor(x), imp.tensor(index), imp.tensor(source)
    d = imp.dim(t, dim)
    if any(imp.extents(a) != imp.extents(b) for a, b in zip(at.dims, v.dims, strict=True)):
        raise Refused("an index that is shorter than its operand; cut the operand to the index's size")
    chosen, _ = _hits(imp, t, d, at)
    moved = Tensor(v.node, (*(() if i == d else e for i, e in enumerate(v.dims)), v.dims[d]))
    total = imp.reduce("sum", imp.elementwise("where", chosen, moved, 0.0), [t.rank])
    return imp.cast(imp.elementwise("add", t, total), kind_of(step.dtypes[0]))


def _index_add(imp: Importer, step: Step, x: Any, dim: Any, index: Any, source: Any) -> Tensor:
    t, at, v = imp.tensor(x), imp.tensor(index), imp.tensor(source)
    d = imp.dim(t, dim)
    spread = Tensor(at.node, tuple(at.dims[0] if i == d else e for i, e in enumerate(v.dims)))
    alpha = step.attrs.get("alpha", 1)
    return _scatter_add(imp, step, t, d, spread, v if alpha == 1 else imp.elementwise("mul", v, alpha))


def _repeat(imp: Importer, step: Step, x: Any, times: Sequence[Any]) -> Tensor:
    t = imp.tensor(x)
    dims = ((),) * (len(times) - t.rank) + t.dims
    result = []
    for d, dim in enumerate(dims):
        counts = [s[d] // n for s, n in zip(step.shapes[0], imp.extents(dim), strict=True)]
        result.append(dim if set(counts) == {1} else (imp.ghost(counts), *dim))
    return Tensor(t.node, tuple(result))


def _slice_scatter(
    imp: Importer, step: Step, x: Any, source: Any, dim: Any = 0, start: Any = None, stop: Any = None, stride: Any = 1
) -> Tensor:
    t, v = imp.tensor(x), imp.tensor(source)
    d = imp.dim(t, dim)
    n = imp.extents(t.dims[d])
    first, last = slice_ends(start, 0, n), slice_ends(stop, None, n)
    if stride != 1:
        strides = stride.values if isinstance(stride, Varying) else (int(stride),) * len(n)
        return imp.cast(imp.overwrite_every(t, d, first, last, strides, v), kind_of(step.dtypes[0]))
    return imp.cast(imp.overwrite(t, d, first, last, v), kind_of(step.dtypes[0]))


def _select_scatter(imp: Importer, step: Step, x: Any, source: Any, dim: Any, index: Any) -> Tensor:
    t, v = imp.tensor(x), imp.tensor(source)
    d = imp.dim(t, dim)
    n = imp.extents(t.dims[d])
    given = index.values if isinstance(index, Varying) else (index,) * len(n)
    at = [i + m if i < 0 else i for i, m in zip(given, n, strict=True)]
    return imp.cast(imp.overwrite(t, d, at, [i + 1 for i in at], imp.unsqueeze(v, d)), kind_of(step.dtypes[0]))


def _diagonal_scatter(
    imp: Importer, step: Step, x: Any, source: Any, offset: Any = 0, a: Any = 0, b: Any = 1
) -> Tensor:
    t, v = imp.tensor(x), imp.tensor(source)
    i, j = imp.dim(t, a), imp.dim(t, b)
    if offset != 0 or imp.extents(t.dims[i]) != imp.extents(t.dims[j]):
        raise Refused("writing a diagonal beside the main one; use torch.where with a mask of positions")
    dims = list(v.dims[:-1])
    for d in sorted((i, j)):
        dims.insert(d, v.dims[-1] if d == i else ())
    row, column = (imp.positions(imp.extents(t.dims[d]), d, t.rank) for d in (i, j))
    result = imp.elementwise("where", imp.elementwise("eq", row, column), Tensor(v.node, tuple(dims)), t)
    return imp.cast(result, kind_of(step.dtypes[0]))


def _scan(op: str) -> Rule:
    """A reduction of all entries up to each one."""

    def rule(imp: Importer, step: Step, x: Any, dim: Any, **_: Any) -> Any:
        t = imp.tensor(x)
        value = imp.scan(op, t, imp.dim(t, dim)) if t.rank else t
        return (value, None) if len(step.outputs) > 1 else value

    return rule


def _logcumsumexp(imp: Importer, step: Step, x: Any, dim: Any) -> Tensor:
    t = imp.tensor(x)
    if not t.rank:
        return t
    d = imp.dim(t, dim)
    top = imp.elementwise("stop_gradient", imp.reduce("max", t, [d], keepdims=True))
    total = imp.along("cumsum", imp.elementwise("exp", imp.elementwise("sub", t, top)), d)
    return imp.elementwise("add", imp.elementwise("log", total), top)


def _median(imp: Importer, step: Step, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    t = imp.tensor(x)
    if dim is None:
        t, d = Tensor(t.node, (tuple(a for e in t.dims for a in e),)), 0
    else:
        d = imp.dim(t, dim)
    values, order = imp.sort(t, d)
    half = imp.map(lambda n: _floor((n - 1.0) / 2.0), Tensor(imp.length(values.dims[d]), ()))
    here = imp.elementwise("eq", imp.positions(imp.extents(values.dims[d]), d, t.rank), half)
    first, second = (imp.reduce("sum", imp.elementwise("where", here, y, 0.0), [d], keepdim) for y in (values, order))
    return (first, imp.cast(second, Kind.INDEX)) if len(step.outputs) > 1 else first


def _slice(
    imp: Importer, step: Step, x: Any, dim: Any = 0, start: Any = None, stop: Any = None, stride: Any = 1
) -> Tensor | Unknown:
    t = imp.tensor(x)
    d = imp.dim(t, dim)
    n = imp.extents(t.dims[d])
    if isinstance(start, Tensor) and all(s[d] == 1 for s in step.shapes[0]):  # one entry for each turn of a loop
        return imp.unsqueeze(imp.select(t, d, start), d)
    first, last = slice_ends(start, 0, n), slice_ends(stop, None, n)
    if isinstance(stride, Varying):
        return Unknown("every n-th entry, where n depends on sizes; use torch.where with a mask of positions")
    return imp.slice(t, d, first, last, imp.integer(stride))


def _split(imp: Importer, step: Step, x: Any, size: Any, dim: Any = 0) -> tuple[Tensor, ...]:
    t = imp.tensor(x)
    return cut(imp, step, t, imp.dim(t, dim))


def _unbind(imp: Importer, step: Step, x: Any, dim: Any = 0) -> tuple[Tensor, ...]:
    t = imp.tensor(x)
    return tuple(imp.select(t, imp.dim(t, dim), i) for i in range(len(step.outputs)))


def _cat(imp: Importer, step: Step, tensors: Sequence[Any], dim: Any = 0) -> Tensor:
    parts = [imp.tensor(t) for t in tensors]
    return imp.concat(parts, imp.dim(parts[0], dim))


def _stack(imp: Importer, step: Step, tensors: Sequence[Any], dim: Any = 0) -> Tensor:
    parts = [imp.tensor(t) for t in tensors]
    d = imp.integer(dim)
    d = d + parts[0].rank + 1 if d < 0 else d
    return imp.concat([imp.unsqueeze(p, d) for p in parts], d)


def _sort(imp: Importer, step: Step, x: Any, *args: Any) -> tuple[Tensor, Tensor]:
    stable = step.op == "sort.stable"
    rest = args[1:] if stable and args and isinstance(args[0], bool | None) else args
    dim = step.attrs.get("dim", rest[0] if rest else -1)
    descending = step.attrs.get("descending", rest[1] if len(rest) > 1 else False)
    t = imp.tensor(x)
    return imp.sort(t, imp.dim(t, dim), descending)


def _argsort(imp: Importer, step: Step, x: Any, *args: Any) -> Tensor:
    return _sort(imp, step, x, *args)[1]


def _topk(
    imp: Importer, step: Step, x: Any, k: Any, dim: Any = -1, largest: bool = True, *rest: Any
) -> tuple[Tensor, Tensor]:
    t = imp.tensor(x)
    d = imp.dim(t, dim)
    values, order = imp.sort(t, d, largest)
    first = [0] * imp.count
    stop = [s[d] for s in step.shapes[0]]
    return imp.slice(values, d, first, stop), imp.slice(order, d, first, stop)


def _cumsum(imp: Importer, step: Step, x: Any, dim: Any, **_: Any) -> Tensor:
    t = imp.tensor(x)
    return imp.along("cumsum", t, imp.dim(t, dim)) if t.rank else t


def _flip(imp: Importer, step: Step, x: Any, dims: Any) -> Tensor:
    t = imp.tensor(x)
    for d in imp.dims(t, dims):
        t = imp.along("flip", t, d)
    return t


def _mm(spec: str) -> Rule:
    return lambda imp, step, *args: imp.einsum(spec, *args)


def _diagonal(imp: Importer, step: Step, x: Any, offset: Any = 0, a: Any = 0, b: Any = 1) -> Tensor:
    t = imp.tensor(x)
    i, j = sorted((imp.dim(t, a), imp.dim(t, b)))
    # Row k of the diagonal is that of the main one, moved by the offset.
    if (offset if isinstance(offset, Varying) else int(offset)) != 0:
        given = offset.values if isinstance(offset, Varying) else (int(offset),) * imp.count
        move = [k if a < b or a == i else -k for k in given]
        down = [max(0, -k) for k in move]
        right = [max(0, k) for k in move]
        length = [s[-1] for s in step.shapes[0]]
        t = imp.slice(t, i, down, [p + q for p, q in zip(down, length, strict=True)])
        t = imp.slice(t, j, right, [p + q for p, q in zip(right, length, strict=True)])
    elif imp.extents(t.dims[i]) != imp.extents(t.dims[j]):
        raise Refused("a diagonal of a matrix that is not square; cut it to a square before")
    index = imp.positions(imp.extents(t.dims[i]), i, t.rank - 1)
    t = imp.single(t, j)
    others = Tensor(t.node, (*t.dims[:j], *t.dims[j + 1 :]))
    picked = imp.gather((others, t.dims[j]), index, i)
    return imp.permute(picked, [*(k for k in range(t.rank - 1) if k != i), i])


def _unique(imp: Importer, step: Step, x: Any, *rest: Any) -> tuple[Any, ...]:
    """Of each entry, which of the distinct values in order it is: the number of distinct values below it."""
    t = imp.tensor(x)
    if t.rank != 1:
        return (
            Unknown(
                "the distinct values of an array, whose number depends on values; use one_hot with the number of classes"
            ),
        ) * 3
    here, there = imp.unsqueeze(t, 1), imp.unsqueeze(t, 0)
    alike = imp.reduce("sum", imp.cast(imp.elementwise("eq", here, there), Kind.FLOAT), [1])
    share = imp.unsqueeze(imp.elementwise("div", 1.0, alike), 0)
    below = imp.reduce("sum", imp.elementwise("where", imp.elementwise("lt", there, here), share, 0.0), [1])
    place = imp.cast(imp.elementwise("round", below), Kind.INDEX)
    unknown = Unknown(
        "the distinct values of an array, whose number depends on values; use one_hot with the number of classes"
    )
    return unknown, place, unknown


def _pow(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    return imp.cast(imp.elementwise("pow", x, y), kind_of(step.dtypes[0]))


def _huge(value: float) -> Rule:
    return lambda imp, step, x: imp.elementwise("eq", imp.elementwise("abs", x), value)


def _gelu(imp: Importer, step: Step, x: Any) -> Tensor:
    if step.attrs.get("approximate", "none") == "tanh":
        return imp.map(
            lambda x: x / 2.0 * (1.0 + ir.elementwise("tanh", math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))), x
        )
    return imp.map(lambda x: x / 2.0 * (1.0 + ir.elementwise("erf", x / math.sqrt(2))), x)


def _towards_zero(x: Any) -> Any:
    return ir.elementwise("sign", x) * _floor(ir.elementwise("abs", x))


def _isnan(imp: Importer, step: Step, x: Any) -> Tensor:
    return imp.elementwise("ne", imp.cast(x, Kind.FLOAT), imp.cast(x, Kind.FLOAT))


def _leaky(imp: Importer, step: Step, x: Any, slope: Any = 0.01) -> Tensor:
    return imp.elementwise("where", imp.elementwise("gt", x, 0.0), x, imp.elementwise("mul", x, slope))


def _where_scalars(imp: Importer, step: Step, condition: Any, x: Any, y: Any) -> Tensor:
    return imp.cast(imp.elementwise("where", condition, x, y), kind_of(step.dtypes[0]))


def _cdist(imp: Importer, step: Step, x: Any, y: Any, p: Any = 2.0, *rest: Any) -> Tensor:
    a, b = imp.tensor(x), imp.tensor(y)
    difference = imp.elementwise("sub", imp.unsqueeze(a, a.rank - 1), imp.unsqueeze(b, b.rank - 2))
    return norm(imp, difference, p, [-1], False)


def _cross(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    a, b = imp.tensor(x), imp.tensor(y)
    d = imp.dim(a, step.attrs.get("dim", -1))
    (u, v) = ([imp.select(t, d, k) for k in range(3)] for t in (a, b))
    products = {(i, j): imp.elementwise("mul", u[i], v[j]) for i in range(3) for j in range(3) if i != j}
    turns = ((1, 2), (2, 0), (0, 1))
    return imp.concat([imp.unsqueeze(imp.elementwise("sub", products[i, j], products[j, i]), d) for i, j in turns], d)


def _softplus(imp: Importer, step: Step, x: Any, beta: Any = 1, threshold: Any = 20) -> Tensor:
    if beta == 1:
        return imp.elementwise("softplus", x)
    return imp.elementwise("div", imp.elementwise("softplus", imp.elementwise("mul", x, beta)), beta)


def _log_sigmoid(imp: Importer, step: Step, x: Any) -> Any:
    return imp.elementwise("log_sigmoid", x), None


def _same(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
    return imp.tensor(x)


_NORMS = {0: 0.0, 1: 0.5, 2: 1.0}
"""PyTorch's numbers of norms: none, by the root of the count, by the count."""


def _fourier(imp: Importer, step: Step, x: Any, dims: Any, norm: int, flag: bool) -> Complex:
    onesided, forward = (flag, True) if step.op.startswith("_fft_r2c") else (False, flag)
    value = spectral.complex_of(imp, x)
    at = [imp.dim(value.real, d) for d in dims]
    return spectral.fourier(imp, value, at, inverse=not forward, half=onesided, scale=_NORMS[norm])


def _real_inverse(imp: Importer, step: Step, x: Complex, dims: Any, norm: int, last: Any) -> Tensor:
    at = [imp.dim(x.real, d) for d in dims]
    return spectral.real_inverse(imp, x, at, [s[at[-1]] for s in step.shapes[0]], scale=_NORMS[norm])


def _as_strided(imp: Importer, step: Step, x: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """Overlapping frames of the last dimension, as the short-time Fourier transform takes them."""
    t = imp.tensor(x)
    hop, one = strides[-2:]
    if len(shape) != t.rank + 1 or one != 1 or isinstance(hop, Varying) or isinstance(shape[-1], Varying) or any(rest):
        raise Refused("as_strided; use unfold, slices or reshape")
    return windows.patches(imp, t, [t.rank - 1], [windows.stencil_of(shape[-1], hop)])


def _complex_power(imp: Importer, step: Step, x: Complex, y: Any) -> Complex:
    if y != 2:
        raise Refused("a power of complex numbers; use abs first")
    return spectral.multiply(imp, x, x)


_COMPLEX: Mapping[str, Rule] = {
    "add": lambda imp, step, x, y: spectral.add(imp, x, y),
    "sub": lambda imp, step, x, y: spectral.add(imp, x, spectral.negative(imp, y)),
    "mul": lambda imp, step, x, y: spectral.multiply(imp, x, y),
    "div": lambda imp, step, x, y: spectral.divide(imp, x, y),
    "neg": lambda imp, step, x: spectral.negative(imp, x),
    "pow": _complex_power,
    "abs": lambda imp, step, x: spectral.magnitude(imp, x),
    "angle": lambda imp, step, x: spectral.phase(imp, x),
    "exp": lambda imp, step, x: spectral.exponential(imp, x),
    "_to_copy": lambda imp, step, x, *rest: (
        x if "complex" in step.dtypes[0] else imp.cast(x.real, kind_of(step.dtypes[0]))
    ),
}


_EACH_PART = frozenset({
    "view", "reshape", "_unsafe_view", "expand", "permute", "squeeze", "unsqueeze", "t", "transpose", "clone", "alias",
    "contiguous", "select", "slice", "split", "split_with_sizes", "unbind", "cat", "stack", "flip", "roll", "sum", "mean",
    "index_select", "constant_pad_nd", "detach", "lift_fresh_copy", "unfold",
})  # fmt: skip
"""Operations that are linear over the reals."""


_PLAIN = {
    "abs": "abs", "neg": "neg", "exp": "exp", "expm1": "expm1", "log": "log", "log1p": "log1p", "sqrt": "sqrt",
    "sin": "sin", "cos": "cos", "tan": "tan", "asin": "asin", "acos": "acos", "atan": "atan", "atan2": "atan2",
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "erf": "erf",
    "erfc": "erfc", "lgamma": "lgamma", "digamma": "digamma", "sigmoid": "sigmoid", "floor": "floor", "ceil": "ceil",
    "round": "round", "sign": "sign", "logaddexp": "logaddexp", "xlogy": "xlogy",
}  # fmt: skip


def _number(imp: Importer, step: Step, *args: Any) -> Tensor:
    raise Refused("a Python number taken from values (.item(), float(), int()); keep it a tensor")


def _random(imp: Importer, step: Step, *args: Any) -> Tensor:
    raise Refused("random numbers; a loss gives one value for its inputs. Make the random tensor an argument")


_REAL: Mapping[str, Rule] = {
    **WINDOWS, **MATRICES,
    **{f"{op}.default": _random for op in ("rand", "randn", "rand_like", "randn_like", "native_dropout", "bernoulli", "randperm")},
    "_local_scalar_dense.default": _number, "bernoulli.p": _random, "normal_functional.default": _random,
    **{f"{k}.default": rule_for(v) for k, v in _PLAIN.items()},
    **{f"{op}.{form}": rule_for(op) for op in ("lt", "le", "gt", "ge", "eq", "ne") for form in ("Tensor", "Scalar")},
    **{f"{k}.{form}": _logical(v) for k, v in {
        "logical_and": "and", "logical_or": "or", "logical_not": "not", "logical_xor": "ne", "bitwise_and": "and",
        "bitwise_or": "or", "bitwise_not": "not", "bitwise_xor": "ne"}.items() for form in ("default", "Tensor", "Scalar")},
    **{f"{k}.{form}": v for k, v in {"add": _scaled("add"), "sub": _scaled("sub"), "mul": arithmetic("mul"), "div": _div}.items()
       for form in ("Tensor", "Scalar", "Tensor_mode", "Scalar_mode")},
    **{f"pow.{form}": _pow for form in ("Tensor_Tensor", "Tensor_Scalar", "Scalar")},
    **{f"{op}.default": rule for op, rule in {  # type: ignore[misc]
        "maximum": arithmetic("maximum"), "minimum": arithmetic("minimum"), "relu": _relu, "leaky_relu": _leaky,
        "reciprocal": _formula(lambda x: 1.0 / x), "rsqrt": _formula(lambda x: 1.0 / _sqrt(x)),
        "square": _formula(lambda x: x * x), "clamp": _clamp, "sgn": rule_for("sign"),
        "isnan": _isnan, "isinf": _huge(float("inf")), "softplus": _softplus, "log_sigmoid_forward": _log_sigmoid,
        "polygamma": _formula(lambda n, x: _polygamma(n, x)),
        "amax": _reduce("max"), "amin": _reduce("min"), "prod": _reduce("prod"), "logsumexp": _reduce("logsumexp"),
        "sum": _reduce("sum"), "mean": _reduce("mean"), "any": _reduce("any"), "all": _reduce("all"),
        "max": _extreme("max"), "min": _extreme("min"), "argmax": _arg("argmax"), "argmin": _arg("argmin"),
        "hypot": _formula(lambda x, y: _sqrt(x * x + y * y)), "gelu": _gelu, "_unique2": _unique, "trunc": _formula(_towards_zero),
        "linalg_vector_norm": _norm, "_softmax": _softmax(False), "_log_softmax": _softmax(True),
        "view": _shape, "reshape": _shape, "_unsafe_view": _shape, "expand": _expand, "permute": lambda imp, step, x, d: imp.permute(x, d),
        "squeeze": _squeeze, "unsqueeze": _unsqueeze, "t": _transpose, "clone": _same, "alias": _same, "detach": _same,
        "contiguous": _same, "lift_fresh_copy": _same, "lift_fresh": _same, "_to_copy": _cast, "scalar_tensor": _cast,
        "full": _full, "full_like": _full, "zeros": _full, "ones": _full, "zeros_like": _full, "ones_like": _full,
        "new_full": _full, "new_zeros": _full, "new_ones": _full, "arange": _arange,
        "gather": _gather, "cat": _cat, "stack": _stack, "sort": _sort, "argsort": _argsort, "topk": _topk, "cumsum": _cumsum,
        "flip": _flip, "mm": _mm("ik,kj->ij"), "bmm": _mm("bik,bkj->bij"), "mv": _mm("ik,k->i"), "dot": _mm("i,i->"),
        "diagonal": _diagonal, "diagonal_copy": _diagonal, "_cdist_forward": _cdist, "_to_dense": _same,
    }.items()},
    "clamp_min.Tensor": _clamp, "clamp_max.Tensor": lambda imp, step, x, high: _clamp(imp, step, x, None, high),
    "clamp_min_.Tensor": _clamp, "clamp_min_.default": _clamp, "empty_permuted.default": _full, "empty.memory_format": _full,
    "empty_like.default": _full,
    "copy.default": lambda imp, step, x, source: imp.expand(imp.cast(source, kind_of(step.dtypes[0])), step.shapes[0]),
    "detach.default": rule_for("stop_gradient"), "stop_gradient.default": rule_for("stop_gradient"),
    "rows_of.default": lambda imp, step, x, mask, count: imp.rows(x, mask, count),
    "position.default": lambda imp, step, *args: imp.position(*args, guarded="guarded" in step.attrs),
    "prims.broadcast_in_dim.default": _broadcast, "squeeze.dim": _squeeze, "squeeze.dims": _squeeze, "transpose.int": _transpose, "transpose.default": _transpose, "arange.start_step": _arange,
    "arange.start": _arange, "clamp.Tensor": _clamp, "clamp_min.default": _clamp,
    "clamp_max.default": lambda imp, step, x, high: _clamp(imp, step, x, None, high),
    "sum.dim_IntList": _reduce("sum"), "mean.dim": _reduce("mean"), "any.dim": _reduce("any"), "all.dim": _reduce("all"),
    "any.dims": _reduce("any"), "all.dims": _reduce("all"), "prod.dim_int": _reduce("prod"),
    "max.dim": _extreme("max"), "min.dim": _extreme("min"), "var.correction": _var, "var.dim": _var, "prims.var.default": _var, "prims.sum.default": _reduce("sum"),
    "prims.div.default": _div, "prims.convert_element_type.default": _cast,
    **{f"prims.{op}.default": arithmetic(op) for op in ("add", "sub", "mul")}, "prims.rsqrt.default": _formula(lambda x: 1.0 / _sqrt(x)),
    "where.self": _where_scalars, "where.ScalarSelf": _where_scalars, "where.ScalarOther": _where_scalars, "where.Scalar": _where_scalars,
    "masked_fill.Scalar": lambda imp, step, x, m, v: imp.cast(imp.elementwise("where", m, v, x), kind_of(step.dtypes[0])),
    "masked_fill.Tensor": lambda imp, step, x, m, v: imp.cast(imp.elementwise("where", m, v, x), kind_of(step.dtypes[0])),
    "index.Tensor": _index, "index_put.default": _index_put, "repeat.default": _repeat,
    "slice_scatter.default": _slice_scatter, "select_scatter.default": _select_scatter,
    "diagonal_scatter.default": _diagonal_scatter, "log2.default": _formula(lambda x: _log(x) / math.log(2)),
    "log10.default": _formula(lambda x: _log(x) / math.log(10)), "logcumsumexp.default": _logcumsumexp,
    "cumprod.default": _scan("prod"), "cummax.default": _scan("max"), "cummin.default": _scan("min"), "scatter_add.default": _scatter_add, "index_add.default": _index_add,
    "linalg_cross.default": _cross, "median.default": _median, "median.dim": _median,
    "index_select.default": lambda imp, step, x, d, i: imp.take(x, i, imp.dim(imp.tensor(x), d)),
    "scatter.value": _scatter, "scatter.src": _scatter, "select.int": lambda imp, step, x, d, i: imp.select(x, imp.dim(imp.tensor(x), d), i),
    "select_copy.int": lambda imp, step, x, d, i: imp.select(x, imp.dim(imp.tensor(x), d), i),
    "slice.Tensor": _slice, "split.Tensor": _split, "split_with_sizes.default": _split, "split_with_sizes_copy.default": _split,
    "unbind.int": _unbind, "sort.stable": _sort, "argsort.stable": _argsort,
    "erfinv.default": _formula(erf_inverse), "special_i0e.default": _formula(bessel_i0e),
    "special_i1e.default": _formula(bessel_i1e),
    "roll.default": lambda imp, step, x, shifts, dims: _roll(imp, x, shifts, dims),
    **dict.fromkeys(("fmod.Tensor", "fmod.Scalar"), _formula(lambda x, y: x - y * _towards_zero(x / y))),
    "remainder.Tensor": _formula(lambda x, y: x - y * _floor(x / y)), "remainder.Scalar": _formula(lambda x, y: x - y * _floor(x / y)),
}  # fmt: skip


_BASES = {op: op.partition(".")[0] for op in _REAL}
"""The operations by name, without their overloads."""


RULES: Mapping[str, Rule] = {
    **spectral.with_complex(
        _REAL,
        {op: _COMPLEX[base] for op, base in _BASES.items() if base in _COMPLEX},
        {op for op, base in _BASES.items() if base in _EACH_PART},
        "torch.float32",
    ),
    **{f"{op}.default": _fourier for op in ("_fft_r2c", "_fft_c2c")},
    "_fft_c2r.default": _real_inverse,
    "angle.default": lambda imp, step, x: spectral.phase(imp, spectral.complex_of(imp, x)),
    "view_as_real.default": lambda imp, step, x: spectral.as_real(imp, x),
    "view_as_complex.default": lambda imp, step, x: spectral.as_complex(imp, x),
    "real.default": lambda imp, step, x: x.real if isinstance(x, Complex) else x,
    "imag.default": lambda imp, step, x: spectral.parts(imp, x)[1],
    "_conj.default": lambda imp, step, x: spectral.conjugate(imp, x),
    "as_strided.default": _as_strided,
}


def _roll(imp: Importer, x: Any, shifts: Any, dims: Any) -> Tensor:
    t = imp.tensor(x)
    for s, d in zip(shifts, dims, strict=True):
        t = imp.roll(t, imp.dim(t, d), s)
    return t


def _sqrt(x: Any) -> Any:
    return ir.elementwise("sqrt", x)


def _log(x: Any) -> Any:
    return ir.elementwise("log", x)


def _floor(x: Any) -> Any:
    return ir.elementwise("floor", x)


def _polygamma(n: Any, x: Any) -> Any:
    return ir.elementwise("polygamma", n, x)
