"""What the operations of TensorFlow mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lossforge import ir
from lossforge.frontends import approximations, spectral, windows
from lossforge.frontends.places import Stacked, coordinates, scattered
from lossforge.frontends.positional import Importer, Refused, Rule, Tensor, Unknown, rule_for
from lossforge.frontends.recording import Step, Varying, rounded
from lossforge.frontends.rules import arithmetic, cut, kind_of
from lossforge.ir import Kind


def _adjoint(imp: Importer, step: Step, x: Any) -> Tensor:
    return imp.transpose(x) if step.attrs.get("adjoint") else imp.tensor(x)


def _triangular_solve(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    return imp.solve(_adjoint(imp, step, imp.triangle(x, bool(step.attrs["lower"]))), y)


def _singular(imp: Importer, step: Step, x: Any) -> tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Unknown, Unknown]:
    if not step.attrs["compute_uv"]:
        return imp.singular(x)[1], _VECTORS, _VECTORS
    left, values, right = imp.singular(x, step.attrs["full_matrices"])
    return values, left, imp.transpose(right)


_VECTORS = Unknown("vectors of a decomposition that was asked for values alone; ask for them")


def _formula(function: Callable[..., Any]) -> Rule:
    return lambda imp, step, *args: imp.cast(imp.map(function, *args), kind_of(step.dtypes[0]))


def _f(op: str, *args: Any) -> Any:
    return ir.elementwise(op, *args)


def _axes(value: Any) -> list[int]:
    if isinstance(value, Tensor | Varying):
        raise Refused("axes that depend on sizes or values; give them as numbers")
    return [int(v) for v in np.atleast_1d(value)]


def _reduce(op: str) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, axes: Any) -> Tensor:
        if not len(_axes(axes)):
            return imp.tensor(x)
        return imp.cast(imp.reduce(op, x, _axes(axes), bool(step.attrs.get("keep_dims"))), kind_of(step.dtypes[0]))

    return rule


def _arg(op: str) -> Rule:
    return lambda imp, step, x, axis: imp.reduce(op, x, _axes(axis))


def _shape(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
    return imp.reshape(x, step.shapes[0])


def _expand(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
    return imp.expand(x, step.shapes[0])


def _full(value: Any) -> Rule:
    return lambda imp, step, *args: imp.full(imp.cast(value, kind_of(step.dtypes[0])), step.shapes[0])


def _where(imp: Importer, step: Step, mask: Any, count: Any) -> Tensor:
    """The positions where a mask holds, a column for each of its dimensions."""
    guarded = "guarded" in step.attrs
    parts = tuple(imp.position(mask, mask, 0, count, d, guarded) for d in range(imp.tensor(mask).rank))
    columns = imp.concat([imp.unsqueeze(p, 1) for p in parts], 1)
    return Stacked(columns.node, columns.dims, parts)


def _squeeze(imp: Importer, step: Step, x: Any) -> Tensor:
    t = imp.tensor(x)
    if isinstance(t, Stacked) and len(t.parts) == 1:
        return t.parts[0]
    wanted = step.attrs.get("squeeze_dims") or ()
    return imp.squeeze(t, [imp.dim(t, d) for d in wanted] or None)


def _expand_dims(imp: Importer, step: Step, x: Any, axis: Any) -> Tensor:
    t = imp.tensor(x)
    (d,) = _axes(axis)
    return imp.unsqueeze(t, d + t.rank + 1 if d < 0 else d)


def _transpose(imp: Importer, step: Step, x: Any, order: Any) -> Tensor:
    return imp.permute(x, _axes(order))


def _matmul(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    flags = step.attrs
    left = "ki" if flags.get("transpose_a") or flags.get("adj_x") else "ik"
    right = "jk" if flags.get("transpose_b") or flags.get("adj_y") else "kj"
    stack = "abcdef"[: imp.tensor(x).rank - 2]
    return imp.einsum(f"{stack}{left},{stack}{right}->{stack}ij", x, y)


def _softmax(log: bool) -> Rule:
    return lambda imp, step, x: imp.softmax(x, imp.tensor(x).rank - 1, log)


def _cross_entropy(imp: Importer, step: Step, logits: Any, labels: Any) -> tuple[Tensor, None]:
    t = imp.tensor(logits)
    product = imp.elementwise("mul", labels, imp.softmax(t, t.rank - 1, log=True))
    return imp.elementwise("neg", imp.reduce("sum", product, [t.rank - 1])), None


def _sparse_cross_entropy(imp: Importer, step: Step, logits: Any, labels: Any) -> tuple[Tensor, None]:
    logp = imp.single(imp.softmax(logits, 1, log=True), 1)
    picked = imp.gather((Tensor(logp.node, (logp.dims[0],)), logp.dims[1]), imp.tensor(labels), 1)
    return imp.elementwise("neg", picked), None


def _gather(imp: Importer, step: Step, x: Any, index: Any, axis: Any = 0) -> Tensor:
    t, at = imp.tensor(x), imp.tensor(index)
    d, shared = imp.dim(t, _axes(axis)[0]), int(step.attrs.get("batch_dims") or 0)
    if not shared:
        return imp.take(t, at, d)
    t, own = imp.single(t, d), at.rank - shared
    others = Tensor(t.node, (*t.dims[:d], *((),) * own, *t.dims[d + 1 :]))
    rest = t.rank - d - 1
    full = (*at.dims[:shared], *((),) * (d - shared), *at.dims[shared:], *((),) * rest)
    return imp.gather((others, t.dims[d]), Tensor(at.node, full), d)


def _gather_nd(imp: Importer, step: Step, x: Any, index: Any) -> Tensor:
    return imp.index(x, list(enumerate(coordinates(imp, index))))


def _scatter_nd(imp: Importer, step: Step, index: Any, updates: Any, shape: Any) -> Tensor:
    found = scattered(imp, coordinates(imp, index), imp.tensor(updates), step.shapes[0])
    return imp.cast(found, kind_of(step.dtypes[0]))


def _scatter_update(imp: Importer, step: Step, x: Any, index: Any, updates: Any) -> Tensor:
    places, new = coordinates(imp, index), imp.tensor(updates)
    written = scattered(imp, places, new, step.shapes[0])
    ones = Tensor(ir.constant(1.0), new.dims)
    touched = imp.elementwise("gt", scattered(imp, places, ones, step.shapes[0]), 0.0)
    return imp.cast(imp.elementwise("where", touched, written, x), kind_of(step.dtypes[0]))


def _segment_sum(imp: Importer, step: Step, x: Any, segments: Any, count: Any) -> Tensor:
    found = scattered(imp, [imp.tensor(segments)], imp.tensor(x), step.shapes[0])
    return imp.cast(found, kind_of(step.dtypes[0]))


def _one_hot(imp: Importer, step: Step, index: Any, depth: Any, on: Any, off: Any) -> Tensor:
    t = imp.tensor(index)
    d = int(step.attrs.get("axis", -1))
    d = t.rank if d < 0 else d
    counter = imp.arange([s[d] for s in step.shapes[0]])
    position = Tensor(counter.node, ((),) * d + counter.dims + ((),) * (t.rank - d))
    chosen = imp.elementwise("eq", imp.unsqueeze(t, d), position)
    return imp.cast(imp.elementwise("where", chosen, on, off), kind_of(step.dtypes[0]))


def _strided_slice(imp: Importer, step: Step, x: Any, begin: Any, end: Any, strides: Any) -> Tensor:
    t = imp.tensor(x)
    masks = {k: step.attrs.get(f"{k}_mask") or 0 for k in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    firsts, lasts = _places(imp, begin), _places(imp, end)
    steps = _axes(strides)
    d, count = 0, len(steps)
    for i in range(count):
        bit = 1 << i
        if masks["ellipsis"] & bit:
            later = sum(1 for j in range(i + 1, count) if not masks["new_axis"] >> j & 1)
            d = t.rank - later
        elif masks["new_axis"] & bit:
            t = imp.unsqueeze(t, d)
            d += 1
        elif masks["shrink_axis"] & bit:
            t = imp.select(t, d, _position(firsts[i], imp.extents(t.dims[d])))
        else:
            n = imp.extents(t.dims[d])
            if steps[i] < 0:
                if steps[i] == -1 and masks["begin"] & bit and masks["end"] & bit:
                    t = imp.along("flip", t, d)
                    d += 1
                    continue
                raise Refused("a slice with a negative step and ends; use tf.reverse, then a slice")
            start, stop = None if masks["begin"] & bit else firsts[i], None if masks["end"] & bit else lasts[i]
            if isinstance(start, Tensor):  # one entry, as x[i : i + 1] has
                if any(s[len(s) - t.rank + d] != 1 for s in step.shapes[0]):
                    raise Refused("a slice whose place depends on values; use tf.gather")
                t = imp.unsqueeze(imp.select(t, d, start), d)
            elif isinstance(stop, Tensor):
                raise Refused("a slice whose place depends on values; use tf.gather")
            else:
                first = [0] * imp.count if start is None else [_end(v, m) for v, m in zip(start, n, strict=True)]
                last = list(n) if stop is None else [_end(v, m) for v, m in zip(stop, n, strict=True)]
                t = imp.slice(t, d, first, last, steps[i])
            d += 1
    return t


def _places(imp: Importer, value: Any) -> list[Any]:
    """For each dimension that is cut, a number in each recording, or a position that is worked out."""
    if isinstance(value, Tensor):
        parts = coordinates(imp, Tensor(value.node, value.dims) if not isinstance(value, Stacked) else value)
        return [(int(p.node.attrs[0]),) * imp.count if p.node.op == "constant" else p for p in parts]
    rows = value.values if isinstance(value, Varying) else (value,) * imp.count
    return [tuple(int(v) for v in column) for column in zip(*map(np.atleast_1d, rows), strict=True)]


def _position(values: Any, n: Sequence[int]) -> Any:
    if isinstance(values, Tensor):
        return values
    if len(set(values)) == 1:
        return values[0]
    return Varying([v + m if v < 0 else v for v, m in zip(values, n, strict=True)])


def _slice(imp: Importer, step: Step, x: Any, begin: Any, size: Any) -> Tensor:
    t = imp.tensor(x)
    if isinstance(begin, Tensor):
        raise Refused("a slice whose place depends on values; use tf.gather")
    firsts = [np.atleast_1d(v) for v in (begin.values if isinstance(begin, Varying) else (begin,) * imp.count)]
    for d in range(t.rank):
        first = [int(f[d]) for f in firsts]
        t = imp.slice(t, d, first, [f + s[d] for f, s in zip(first, step.shapes[0], strict=True)])
    return t


def _end(value: int, size: int) -> int:
    return min(max(value + size if value < 0 else value, 0), size)


def _concat(imp: Importer, step: Step, *args: Any) -> Tensor:
    *parts, axis = args
    tensors = [imp.tensor(p) for p in parts]
    d, last = imp.dim(tensors[0], _axes(axis)[0]), tensors[0].rank - 1
    joined = imp.concat(tensors, d)
    if d == last and all(set(imp.extents(t.dims[d])) == {1} for t in tensors):
        parts = [imp.select(t, d, 0) for t in tensors]
        return Stacked(joined.node, joined.dims, tuple(parts))
    return joined


def _pack(imp: Importer, step: Step, *parts: Any) -> Tensor:
    tensors = [imp.tensor(p) for p in parts]
    d = step.attrs.get("axis") or 0
    d = d + tensors[0].rank + 1 if d < 0 else d
    joined = imp.concat([imp.unsqueeze(t, d) for t in tensors], d)
    return Stacked(joined.node, joined.dims, parts=tuple(tensors)) if d == tensors[0].rank else joined


def _unpack(imp: Importer, step: Step, x: Any) -> tuple[Tensor, ...]:
    t = imp.tensor(x)
    return tuple(imp.select(t, imp.dim(t, step.attrs.get("axis") or 0), i) for i in range(len(step.outputs)))


def _split(imp: Importer, step: Step, axis: Any, x: Any) -> tuple[Tensor, ...]:
    t = imp.tensor(x)
    return cut(imp, step, t, imp.dim(t, _axes(axis)[0]))


def _top_k(imp: Importer, step: Step, x: Any, k: Any) -> tuple[Tensor, ...]:
    t = imp.tensor(x)
    found = imp.sort(t, t.rank - 1, descending=True)
    stop = [s[-1] for s in step.shapes[0]]
    return tuple(imp.slice(v, t.rank - 1, [0] * imp.count, stop) for v in found)


def _positions(imp: Importer, t: Tensor, d: int) -> Tensor:
    """0, 1, 2 … along a dimension of `t`, and of its rank."""
    return imp.positions(imp.extents(t.dims[d]), d, t.rank)


def _scan(op: str) -> Rule:
    """A reduction of all entries up to each one."""

    def rule(imp: Importer, step: Step, x: Any, axis: Any) -> Tensor:
        t = imp.tensor(x)
        reverse, exclusive = (bool(step.attrs.get(k)) for k in ("reverse", "exclusive"))
        return imp.cast(imp.scan(op, t, imp.dim(t, _axes(axis)[0]), reverse, exclusive), kind_of(step.dtypes[0]))

    return rule


def _band(imp: Importer, step: Step, x: Any, lower: Any, upper: Any) -> Tensor:
    t = imp.tensor(x)
    below = imp.elementwise("sub", _positions(imp, t, t.rank - 2), _positions(imp, t, t.rank - 1))
    for width, side in ((lower, below), (upper, imp.elementwise("neg", below))):
        if imp.integer(width) >= 0:
            t = imp.elementwise("where", imp.elementwise("le", side, imp.integer(width)), t, 0)
    return imp.cast(t, kind_of(step.dtypes[0]))


def _on_diagonal(imp: Importer, t: Tensor, inside: Any, outside: Any) -> Tensor:
    """One value where the last two positions of `t` are equal, another elsewhere."""
    same = imp.elementwise("eq", _positions(imp, t, t.rank - 2), _positions(imp, t, t.rank - 1))
    return imp.elementwise("where", same, inside, outside)


def _main_diagonal(k: Any) -> None:
    if np.any(np.atleast_1d(k) != 0):
        raise Refused("a diagonal beside the main one; cut the matrix with slices before")


def _diag(imp: Importer, step: Step, x: Any, k: Any = 0, *rest: Any) -> Tensor:
    _main_diagonal(k)
    t = imp.single(imp.tensor(x), imp.tensor(x).rank - 1)
    square = Tensor(t.node, (*t.dims, t.dims[-1]))
    found = _on_diagonal(imp, square, imp.unsqueeze(t, t.rank), 0)
    return imp.cast(found, kind_of(step.dtypes[0]))


def _set_diag(imp: Importer, step: Step, x: Any, diagonal: Any, k: Any = 0) -> Tensor:
    _main_diagonal(k)
    t, entries = imp.tensor(x), imp.tensor(diagonal)
    rows = imp.extents(entries.dims[-1]) == imp.extents(t.dims[-2])
    spread = imp.unsqueeze(entries, entries.rank if rows else entries.rank - 1)
    return imp.cast(_on_diagonal(imp, t, spread, t), kind_of(step.dtypes[0]))


def _diag_part(imp: Importer, step: Step, x: Any, k: Any = 0, *rest: Any) -> Tensor:
    _main_diagonal(k)
    t = imp.tensor(x)
    if imp.extents(t.dims[-2]) != imp.extents(t.dims[-1]):
        raise Refused("the diagonal of a matrix that is not square; cut it to a square before")
    t = imp.single(t, t.rank - 1)
    others = Tensor(t.node, t.dims[:-1])
    return imp.gather((others, t.dims[-1]), _positions(imp, others, others.rank - 1), t.rank - 1)


def _pad(mode: str) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, paddings: Any, value: Any = 0) -> Tensor:
        if isinstance(paddings, Tensor | Varying) or isinstance(value, Tensor | Varying):
            raise Refused("a padding that depends on sizes or values; use tf.concat with tf.zeros")
        chosen = {"REFLECT": "reflect", "SYMMETRIC": "symmetric"}.get(str(step.attrs.get("mode")), mode)
        return windows.pad(imp, x, [(int(a), int(b)) for a, b in np.asarray(paddings)], chosen, float(value))

    return rule


def _reverse(imp: Importer, step: Step, x: Any, axes: Any) -> Tensor:
    t = imp.tensor(x)
    for axis in _axes(axes):
        t = imp.along("flip", t, imp.dim(t, axis))
    return t


def _tile(imp: Importer, step: Step, x: Any, multiples: Any) -> Tensor:
    t = imp.tensor(x)
    dims = []
    for dim, wanted in zip(t.dims, zip(*step.shapes[0], strict=True), strict=True):
        have = imp.extents(dim)
        times = [w // h for w, h in zip(wanted, have, strict=True)]
        dims.append(dim if set(times) == {1} else (imp.ghost(times), *dim))
    return Tensor(t.node, tuple(dims))


def _roll(imp: Importer, step: Step, x: Any, shift: Any, axis: Any) -> Tensor:
    t = imp.tensor(x)
    for s, d in zip(_axes(shift), _axes(axis), strict=True):
        t = imp.roll(t, imp.dim(t, d), s)
    return t


def _range(imp: Importer, step: Step, start: Any, limit: Any, delta: Any) -> Tensor:
    counter = imp.arange([s[0] for s in step.shapes[0]])
    if not (isinstance(delta, int | float) and delta == 1):
        counter = imp.elementwise("mul", counter, delta)
    if not (isinstance(start, int | float) and start == 0):
        counter = imp.elementwise("add", counter, start)
    return imp.cast(counter, kind_of(step.dtypes[0]))


def _linspace(imp: Importer, step: Step, start: Any, stop: Any, count: Any) -> Tensor:
    counter = imp.arange([s[0] for s in step.shapes[0]])
    if set(step.shapes[0]) == {(1,)}:
        return imp.elementwise("add", counter, start)
    gaps = imp.elementwise("sub", imp.symbol([s[0] for s in step.shapes[0]]), 1.0)
    share = imp.elementwise("div", counter, gaps)
    return imp.elementwise("add", imp.elementwise("mul", share, imp.elementwise("sub", stop, start)), start)


def _select(imp: Importer, step: Step, condition: Any, x: Any, y: Any) -> Tensor:
    chosen = imp.tensor(condition)
    if step.op == "Select" and chosen.rank == 1:  # the old operation chooses whole rows
        chosen = Tensor(chosen.node, chosen.dims + ((),) * (imp.tensor(x).rank - 1))
    return imp.cast(imp.elementwise("where", chosen, x, y), kind_of(step.dtypes[0]))


def _einsum(imp: Importer, step: Step, *operands: Any) -> Tensor:
    spec = str(step.attrs["equation"]).replace(" ", "")
    if "..." in spec:
        left, _, right = spec.partition("->")
        free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in spec]
        parts, most = [], 0
        for part, operand in zip(left.split(","), operands, strict=True):
            count = imp.tensor(operand).rank - len(part.replace("...", "")) if "..." in part else 0
            most = max(most, count)
            parts.append((part, count))
        names = "".join(free[:most])
        left = ",".join(p.replace("...", names[most - n :]) for p, n in parts)
        spec = f"{left}->{right.replace('...', names)}"
    return imp.einsum(spec, *operands)


def _euclidean(imp: Importer, step: Step, x: Any, axes: Any) -> Tensor:
    squares = imp.map(lambda a: a * a, x)
    return imp.elementwise("sqrt", imp.reduce("sum", squares, _axes(axes), bool(step.attrs.get("keep_dims"))))


def _l2_loss(imp: Importer, step: Step, x: Any) -> Tensor:
    return imp.elementwise("mul", imp.reduce("sum", imp.map(lambda a: a * a, x)), 0.5)


def _leaky(imp: Importer, step: Step, x: Any) -> Tensor:
    slope = rounded(step.attrs["alpha"])
    return imp.map(lambda a: ir.where(_f("gt", a, 0.0), a, slope * a), x)


def _selu(x: Any) -> Any:
    """Klambauer et al., Self-Normalizing Neural Networks, 2017."""
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    return scale * ir.where(_f("gt", x, 0.0), x, alpha * _f("expm1", _f("minimum", x, 0.0)))


def _remainder(round_: str) -> Callable[..., Any]:
    """What a division leaves over: with "floor" of the sign of the divisor, else of the dividend."""
    if round_ == "floor":
        return lambda x, y: x - y * _f("floor", x / y)
    return lambda x, y: x - y * _f("sign", x / y) * _f("floor", _f("abs", x / y))


@dataclass
class Bits:
    """The bits of floating-point numbers as whole numbers, which are negative where the number is."""

    of: Tensor


def _bitcast(imp: Importer, step: Step, x: Any) -> Bits:
    t = imp.tensor(x)
    if t.node.kind is not Kind.FLOAT or "int" not in step.dtypes[0] or step.dtypes[0].startswith("u"):
        raise Refused("a reinterpretation of bits; use arithmetic")
    return Bits(t)


def _bitwise(op: str) -> Rule:
    """Of truth values; and the sign bit, which a mask cuts out of the bits of a number."""

    def rule(imp: Importer, step: Step, x: Any, y: Any) -> Any:
        if isinstance(x, Bits) and op == "and" and y == -(2**31):
            return x
        if step.dtypes[0] != "bool":
            raise Refused("an operation on bits; use arithmetic, or comparisons")
        return imp.elementwise(op, x, y)

    return rule


def _less(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    if isinstance(x, Bits) and y == 0:
        return imp.elementwise("lt", x.of, 0.0)
    return imp.elementwise("lt", x, y)


def _isnan(imp: Importer, step: Step, x: Any) -> Tensor:
    return imp.map(lambda a: _f("ne", a, a), x)


def _isfinite(imp: Importer, step: Step, x: Any) -> Tensor:
    return imp.map(lambda a: _f("lt", _f("abs", a), float("inf")), x)


def _isinf(imp: Importer, step: Step, x: Any) -> Tensor:
    return imp.map(lambda a: _f("eq", _f("abs", a), float("inf")), x)


def _cross(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    a, b = imp.tensor(x), imp.tensor(y)
    p, q = ([imp.select(t, t.rank - 1, i) for i in range(3)] for t in (a, b))
    parts = [
        imp.elementwise("sub", imp.elementwise("mul", p[i], q[j]), imp.elementwise("mul", p[j], q[i]))
        for i, j in ((1, 2), (2, 0), (0, 1))
    ]
    return imp.concat([imp.unsqueeze(t, a.rank - 1) for t in parts], a.rank - 1)


def _refused(reason: str) -> Rule:
    def rule(imp: Importer, step: Step, *args: Any) -> Tensor:
        raise Refused(reason)

    return rule


def _div_no_nan(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    if not isinstance(y, Tensor):  # a count of entries
        return imp.elementwise("div", x, y)
    return imp.map(lambda a, b: ir.where(_f("eq", b, 0.0), 0.0, a / ir.where(_f("eq", b, 0.0), 1.0, b)), x, y)


def _clip(imp: Importer, step: Step, x: Any, low: Any, high: Any) -> Tensor:
    return imp.elementwise("minimum", imp.elementwise("maximum", x, low), high)


def _same(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
    return imp.tensor(x)


# ------------------------------------------------------------------------------------- windows


def _channels_first(step: Step, x: Tensor) -> list[int]:
    """The order of dimensions that puts channels behind the batch."""
    if str(step.attrs.get("data_format", "NHWC")).startswith("NC"):
        return list(range(x.rank))
    return [0, x.rank - 1, *range(1, x.rank - 1)]


def _as_before(order: Sequence[int]) -> list[int]:
    return [list(order).index(d) for d in range(len(order))]


def _space(values: Any, order: Sequence[int]) -> list[int]:
    """An option that has a number for each dimension, for those of space."""
    return [int(values[d]) for d in order[2:]]


def _borders(
    imp: Importer, step: Step, t: Tensor, taps: Sequence[int], strides: Sequence[int], spread: Sequence[int]
) -> list[tuple[int, int]]:
    """The padding that an option stands for; space begins at dimension 2."""
    kind = step.attrs.get("padding")
    if kind == "VALID":
        return [(0, 0)] * len(taps)
    if kind != "SAME":
        raise Refused(f"padding {kind!r}; pad before the operation, with tf.pad")
    result = []
    for dim, k, s, d in zip(t.dims[2:], taps, strides, spread, strict=True):
        missing = {max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n in imp.extents(dim)}
        if len(missing) > 1:
            raise Refused("padding 'SAME' with strides, whose width depends on the sizes; pad with tf.pad")
        (total,) = missing
        result.append((total // 2, total - total // 2))
    return result


def _convolution(depthwise: bool) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, kernel: Any) -> Tensor:
        t, w = imp.tensor(x), imp.tensor(kernel)
        order = _channels_first(step, t)
        t = imp.permute(t, order)
        taps = [imp.extents(d)[0] for d in w.dims[:-2]]
        strides, spread = (_space(step.attrs[k], order) for k in ("strides", "dilations"))
        groups: Any = 1
        w = imp.permute(w, [w.rank - 1, w.rank - 2, *range(w.rank - 2)])
        if depthwise:  # the outputs of each channel stand next to each other
            groups = Varying(imp.extents(t.dims[1]))
            w = Tensor(w.node, (w.dims[1] + w.dims[0], (), *w.dims[2:]))
        elif imp.extents(w.dims[1]) != imp.extents(t.dims[1]):
            raise Refused("a convolution in groups; split the channels, or use tf.nn.depthwise_conv2d")
        padding = _borders(imp, step, t, taps, strides, spread)
        found = windows.convolve(imp, t, w, stride=strides, padding=padding, dilation=spread, groups=groups)
        return imp.permute(found, _as_before(order))

    return rule


def _pool(largest: bool) -> Rule:
    def rule(imp: Importer, step: Step, x: Any) -> Tensor:
        t = imp.tensor(x)
        order = _channels_first(step, t)
        t, sizes = imp.permute(t, order), step.attrs["ksize"]
        if int(sizes[order[0]]) != 1 or int(sizes[order[1]]) != 1:
            raise Refused("pooling over the batch or channels; use tf.reduce_max or tf.reduce_mean")
        taps, strides = _space(sizes, order), _space(step.attrs["strides"], order)
        padding = _borders(imp, step, t, taps, strides, [1] * len(taps))
        if largest:
            found = windows.maximum_pool(imp, t, taps, strides, padding)
        else:
            found = windows.average_pool(imp, t, taps, strides, padding, count_padding=False)
        return imp.permute(found, _as_before(order))

    return rule


def _patches(imp: Importer, step: Step, x: Any) -> Tensor:
    t = imp.tensor(x)
    taps, strides, spread = ([int(v) for v in step.attrs[k][1:3]] for k in ("ksizes", "strides", "rates"))
    padding = _borders(imp, step, imp.permute(t, [0, 3, 1, 2]), taps, strides, spread)
    stencils = [windows.stencil_of(*options) for options in zip(taps, strides, spread, padding, strict=True)]
    found = windows.patches(imp, t, [1, 2], stencils)
    batch, rows, columns, channels, down, across = found.dims
    return Tensor(found.node, (batch, rows, columns, down + across + channels))


def _resize(linear: bool) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, size: Any) -> Tensor:
        t, centred = imp.tensor(x), bool(step.attrs.get("half_pixel_centers"))
        for d in (1, 2):
            have, want = imp.extents(t.dims[d]), [s[d] for s in step.shapes[0]]
            up = {w / h for w, h in zip(want, have, strict=True)}
            factor = max(up) if max(up) >= 1 else 1 / max(up)
            if len(up) > 1 or factor != int(factor):
                raise Refused("resizing by a factor that is not a whole number, or depends on the sizes")
            if factor == 1:
                continue
            if step.attrs.get("align_corners") or (linear and not centred):
                raise Refused("resizing without half_pixel_centers; use tf.image.resize")
            if max(up) > 1:
                t = windows.enlarge(imp, t, d, int(factor), linear=linear)
            elif linear or not centred:
                t = windows.thin(imp, t, d, int(factor), linear=linear)
            else:  # the entry at the centre
                t = imp.slide(t, d, ir.Stencil(1, int(factor), 1, int(factor) // 2, int(factor)))
        return t

    return rule


# ------------------------------------------------------------------------------------- complex numbers


def _to_length(imp: Importer, x: Any, dims: Sequence[int], lengths: Any) -> spectral.Complex:
    """Cut, or filled up with zeros, to the lengths that are transformed."""
    value = spectral.complex_of(imp, x)
    if isinstance(lengths, Tensor):
        raise Refused("a length that depends on values; give it as a number, or by sizes")
    wanted = [np.atleast_1d(v) for v in (lengths.values if isinstance(lengths, Varying) else (lengths,) * imp.count)]
    for k, d in enumerate(dims):
        n = imp.extents(spectral.parts(imp, value)[0].dims[d])
        more = {int(w[k]) - m for w, m in zip(wanted, n, strict=True)}
        if more == {0}:
            continue
        if max(more) <= 0:
            stops = [int(w[k]) for w in wanted]
            value = spectral.each(partial(_first, imp, d, stops), value)
        elif len(more) == 1:
            value = spectral.each(partial(_lengthened, imp, d, more.pop()), value)
        else:
            raise Refused("a transform whose length is not that of its operand; pad or cut it before")
    return value


def _first(imp: Importer, d: int, stops: Sequence[int], x: Tensor) -> Tensor:
    return imp.slice(x, d, [0] * imp.count, stops) if x.rank else x


def _lengthened(imp: Importer, d: int, more: int, x: Tensor) -> Tensor:
    return windows.pad(imp, x, [(0, more if i == d else 0) for i in range(x.rank)]) if x.rank else x


def _fourier(count: int, inverse: bool = False, half: bool = False) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, length: Any = None) -> Any:
        value = spectral.complex_of(imp, x)
        rank = len(step.shapes[0][0])
        dims = list(range(rank - count, rank))
        if half and not inverse:
            value = _to_length(imp, value, dims, length)
        if half and inverse:
            return spectral.real_inverse(imp, value, dims, [s[-1] for s in step.shapes[0]], scale=1.0)
        return spectral.fourier(imp, value, dims, inverse=inverse, half=half, scale=1.0 if inverse else 0.0)

    return rule


_COMPLEX: Mapping[str, Rule] = {
    **dict.fromkeys(("Add", "AddV2"), lambda imp, step, x, y: spectral.add(imp, x, y)),
    "Sub": lambda imp, step, x, y: spectral.add(imp, x, spectral.negative(imp, y)),
    "Mul": lambda imp, step, x, y: spectral.multiply(imp, x, y),
    "RealDiv": lambda imp, step, x, y: spectral.divide(imp, x, y),
    "Neg": lambda imp, step, x: spectral.negative(imp, x),
    "Square": lambda imp, step, x: spectral.multiply(imp, x, x),
    "Exp": lambda imp, step, x: spectral.exponential(imp, x),
    "Cast": lambda imp, step, x: x if "complex" in step.dtypes[0] else imp.cast(x.real, kind_of(step.dtypes[0])),
}
_LINEAR = frozenset({
    "Reshape", "Transpose", "ExpandDims", "Squeeze", "ConcatV2", "Pack", "Unpack", "Split", "SplitV", "StridedSlice", "Slice",
    "Pad", "PadV2", "ReverseV2", "Roll", "Sum", "Mean", "Tile", "BroadcastTo", "Identity", "StopGradient", "GatherV2",
})  # fmt: skip
"""Operations that are linear over the reals."""


def _cast(imp: Importer, step: Step, x: Any) -> Any:
    if "complex" in step.dtypes[0]:
        return spectral.complex_of(imp, x)
    if isinstance(x, Stacked):  # the parts go with it
        parts = tuple(imp.cast(p, kind_of(step.dtypes[0])) for p in x.parts)
        whole = imp.cast(x, kind_of(step.dtypes[0]))
        return Stacked(whole.node, whole.dims, parts)
    return imp.cast(x, kind_of(step.dtypes[0]))


# ------------------------------------------------------------------------------------- the table


_PLAIN = {
    "Exp": "exp", "Log": "log", "Log1p": "log1p", "Expm1": "expm1", "Sqrt": "sqrt", "Sin": "sin", "Cos": "cos", "Tan": "tan",
    "Asin": "asin", "Acos": "acos", "Atan": "atan", "Atan2": "atan2", "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh",
    "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh", "Erf": "erf", "Erfc": "erfc", "Lgamma": "lgamma",
    "Digamma": "digamma", "Sigmoid": "sigmoid", "Softplus": "softplus", "Floor": "floor", "Ceil": "ceil", "Rint": "round",
    "Round": "round", "LessEqual": "le", "Greater": "gt", "GreaterEqual": "ge", "Equal": "eq", "NotEqual": "ne",
    "LogicalAnd": "and", "LogicalOr": "or", "LogicalNot": "not", "StopGradient": "stop_gradient", "Xlogy": "xlogy",
}  # fmt: skip

_REAL: Mapping[str, Rule] = {
    **{k: rule_for(v) for k, v in _PLAIN.items()},
    **{k: arithmetic(v) for k, v in {
        "AddV2": "add", "Add": "add", "Sub": "sub", "Mul": "mul", "RealDiv": "div", "Maximum": "maximum", "Minimum": "minimum",
        "Neg": "neg", "Abs": "abs", "Sign": "sign", "Pow": "pow"}.items()}, "SelectV2": _select, "Select": _select,
    **{op: _formula(approximations.NAMED[name]) for op, name in {
        "Erfinv": "erfinv", "Ndtri": "ndtri", "BesselI0": "i0", "BesselI1": "i1", "BesselI0e": "i0e", "BesselI1e": "i1e"}.items()},
    "SelfAdjointEigV2": lambda imp, step, x: imp.eigen(x) if step.attrs["compute_v"] else (imp.eigen(x)[0], _VECTORS), "Svd": _singular,
    "MatrixInverse": lambda imp, step, x: imp.matrix("inverse", _adjoint(imp, step, x)),
    "Cholesky": lambda imp, step, x: imp.matrix("cholesky", x), "MatrixDeterminant": lambda imp, step, x: imp.determinant(x),
    "LogMatrixDeterminant": lambda imp, step, x: (imp.matrix("detsign", x), imp.matrix("logdet", x)),
    "MatrixSolve": lambda imp, step, x, y: imp.solve(_adjoint(imp, step, x), y), "MatrixTriangularSolve": _triangular_solve,
    "Square": _formula(lambda x: x * x), "SquaredDifference": _formula(lambda x, y: (x - y) * (x - y)),
    "Rsqrt": _formula(lambda x: 1.0 / _f("sqrt", x)), "Reciprocal": _formula(lambda x: 1.0 / x), "Inv": _formula(lambda x: 1.0 / x),
    "Relu": _formula(lambda x: _f("maximum", x, 0.0)), "DivNoNan": _div_no_nan, "ClipByValue": _clip,
    "MulNoNan": _formula(lambda x, y: ir.where(_f("eq", y, 0.0), 0.0, x * y)), "Xdivy": _formula(lambda x, y: ir.where(_f("eq", x, 0.0), 0.0, x / y)),
    "Xlog1py": _formula(lambda x, y: ir.where(_f("eq", x, 0.0), 0.0, x * _f("log1p", y))),
    "IsNan": _isnan, "IsFinite": _isfinite, "IsInf": _isinf, "Less": _less, "Bitcast": _bitcast, "BitwiseAnd": _bitwise("and"), "BitwiseOr": _bitwise("or"),
    "FloorMod": _formula(_remainder("floor")), "Mod": _formula(_remainder("zero")), "TruncateMod": _formula(_remainder("zero")),
    "FloorDiv": _formula(lambda x, y: _f("floor", x / y)), "Div": arithmetic("div"),
    "Elu": _formula(lambda x: ir.where(_f("gt", x, 0.0), x, _f("expm1", _f("minimum", x, 0.0)))), "Selu": _formula(_selu),
    "Relu6": _formula(lambda x: _f("minimum", _f("maximum", x, 0.0), 6.0)), "LeakyRelu": _leaky,
    "Softsign": _formula(lambda x: x / (1.0 + _f("abs", x))), "Polygamma": rule_for("polygamma"),
    "EuclideanNorm": _euclidean, "L2Loss": _l2_loss, "Cross": _cross, "BiasAdd": arithmetic("add"),
    "AddN": lambda imp, step, *xs: _sum(imp, xs),
    "Sum": _reduce("sum"), "Mean": _reduce("mean"), "Max": _reduce("max"), "Min": _reduce("min"), "Prod": _reduce("prod"),
    "Any": _reduce("any"), "All": _reduce("all"), "ArgMax": _arg("argmax"), "ArgMin": _arg("argmin"),
    "Reshape": _shape, "BroadcastTo": _expand, "Squeeze": _squeeze, "Where": _where, "ExpandDims": _expand_dims, "Transpose": _transpose,
    "MatMul": _matmul, "BatchMatMulV2": _matmul, "BatchMatMul": _matmul, "BatchMatMulV3": _matmul, "Einsum": _einsum,
    "Softmax": _softmax(False), "LogSoftmax": _softmax(True), "SoftmaxCrossEntropyWithLogits": _cross_entropy,
    "SparseSoftmaxCrossEntropyWithLogits": _sparse_cross_entropy,
    "Cast": _cast,
    "GatherV2": _gather, "OneHot": _one_hot, "StridedSlice": _strided_slice, "ConcatV2": _concat, "Pack": _pack, "Unpack": _unpack,
    "Split": _split, "SplitV": lambda imp, step, x, sizes, axis: _split(imp, step, axis, x), "TopKV2": _top_k, "Cumsum": _scan("sum"),
    "Cumprod": _scan("prod"), "CumulativeLogsumexp": _scan("logsumexp"), "MatrixBandPart": _band,
    "MatrixDiagV3": _diag, "MatrixSetDiagV3": _set_diag, "MatrixDiagPartV3": _diag_part, "Pad": _pad("constant"), "PadV2": _pad("constant"),
    "MirrorPad": _pad("reflect"), "ReverseV2": _reverse, "Tile": _tile, "Roll": _roll, "LinSpace": _linspace, "GatherNd": _gather_nd,
    "ScatterNd": _scatter_nd, "TensorScatterUpdate": _scatter_update, "UnsortedSegmentSum": _segment_sum, "Fill": lambda imp, step, dims, v: imp.full(v, step.shapes[0]),
    "OnesLike": _full(1), "ZerosLike": _full(0), "Identity": _same, "PlaceholderWithDefault": _same, "CheckNumerics": _same, "PreventGradient": _same, "EnsureShape": _same, "CheckNumericsV2": _same,
    "Conv2D": _convolution(False), "Conv3D": _convolution(False), "DepthwiseConv2dNative": _convolution(True), "ExtractImagePatches": _patches,
    **{f"{kind}Pool{space}": _pool(kind == "Max") for kind in ("Max", "Avg") for space in ("", "3D")},
    "ResizeBilinear": _resize(True), "ResizeNearestNeighbor": _resize(False),
    "Slice": _slice, "Range": _range, "IdentityN": lambda imp, step, *xs: tuple(imp.tensor(x) for x in xs),
    **dict.fromkeys(
        ("RandomUniform", "RandomStandardNormal", "RandomUniformInt", "RandomShuffle", "TruncatedNormal", "Multinomial",
         "StatelessRandomUniformV2", "StatelessRandomNormalV2", "StatelessRandomUniformIntV2", "StatelessTruncatedNormalV2"),
        _refused("random numbers; a loss gives one value for its inputs. Make the random array an argument")),
}  # fmt: skip


def _sum(imp: Importer, terms: Sequence[Any]) -> Tensor:
    result = imp.tensor(terms[0])
    for t in terms[1:]:
        result = imp.elementwise("add", result, t)
    return result


RULES: Mapping[str, Rule] = {
    **spectral.with_complex(_REAL, _COMPLEX, _LINEAR, "float32"),
    **{f"{name}FFT{n if n > 1 else ''}{'D' if n > 1 else ''}": _fourier(n, "I" in name, "R" in name)
       for name in ("", "I", "R", "IR") for n in (1, 2, 3)},
    "Complex": lambda imp, step, x, y: spectral.Complex(imp.tensor(x), imp.tensor(y)),
    "ComplexAbs": lambda imp, step, x: spectral.magnitude(imp, spectral.complex_of(imp, x)),
    "Angle": lambda imp, step, x: spectral.phase(imp, spectral.complex_of(imp, x)),
    "Real": lambda imp, step, x: spectral.parts(imp, spectral.complex_of(imp, x))[0],
    "Imag": lambda imp, step, x: spectral.parts(imp, spectral.complex_of(imp, x))[1],
    "Conj": lambda imp, step, x: spectral.conjugate(imp, x),
}  # fmt: skip
"""What each operation means."""


def _literal_cross_entropy(imp: Importer, step: Step, logits: Any, labels: Any) -> tuple[Tensor, None]:
    """Cross entropy with the gradient that TensorFlow gives it, softmax − labels, also where labels do not sum to one."""
    t = imp.tensor(logits)
    total = imp.reduce("logsumexp", t, [t.rank - 1], keepdims=True)
    held = imp.elementwise("stop_gradient", total)
    entries = imp.elementwise("mul", labels, imp.elementwise("sub", held, t))
    slope = imp.squeeze(imp.elementwise("sub", total, held), [t.rank - 1])
    return imp.elementwise("add", imp.reduce("sum", entries, [t.rank - 1]), slope), None


LITERAL: Mapping[str, Rule] = {"SoftmaxCrossEntropyWithLogits": _literal_cross_entropy}
"""Operations whose gradient in TensorFlow is the derivative for some operands only, with that gradient."""
