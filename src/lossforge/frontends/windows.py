"""Sliding windows of positional values: padding, convolution, pooling, patches and resampling, for all front ends.

Everything here is made of one operation of the graph, `ir.slide`, one dimension at a time: a convolution with a
kernel is a sum over taps of windows times weights. A kernel that is an outer product (Gaussian, box, Sobel) is applied
one dimension after the other, found by a singular value decomposition where its numbers are known, so that k × k taps
cost 2 k; any other kernel keeps the taps of its remaining dimensions until those are summed in their turn.

Values are laid out as the libraries of channels-first images do: batch, channels, space. A front end of another layout
permutes around the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from lossforge import ir
from lossforge.frontends.positional import LARGEST_TABLE, Dim, Importer, Refused, Tensor
from lossforge.frontends.positional.nodes import relabel
from lossforge.frontends.recording import Varying
from lossforge.interpreter import evaluate
from lossforge.ir import Axis, Kind, Node, Stencil

Pads = Sequence[tuple[int, int]]

_SEPARABLE = 1e-6
"""Of the largest weight: what a kernel kept in float32 may differ from an outer product."""


def stencil_of(
    taps: int, step: int = 1, dilation: int = 1, pad: tuple[int, int] = (0, 0), ceil: bool = False
) -> Stencil:
    """The windows that libraries mean by these options; with `ceil`, also one that the end cuts off."""
    before, after = pad
    cut = dilation * (taps - 1) + 1 - before - after
    if ceil:  # but none that would begin behind the last entry
        cut = max(cut - (step - 1), 1 - before)
    return Stencil(taps, step, dilation, -before, cut)


# ------------------------------------------------------------------------------------- padding


def pad(imp: Importer, x: Any, widths: Pads, mode: str = "constant", value: float = 0.0) -> Tensor:
    """Entries before and after each dimension (taken away, where negative).

    Modes: ``constant``, ``reflect`` (the edge is not repeated), ``symmetric`` (it is), ``replicate``, ``circular``.
    """
    t = imp.tensor(x)
    for dim, (before, after) in enumerate(widths):
        if before or after:
            t = _pad(imp, t, dim, before, after, mode, value)
    return t


def _pad(imp: Importer, x: Tensor, dim: int, before: int, after: int, mode: str, value: float) -> Tensor:
    if x.dims[dim] and all(a.startswith("#") for a in x.dims[dim]) and len(set(imp.extents(x.dims[dim]))) > 1:
        return _pad_constant(imp, x, dim, before, after, mode, value)
    x = imp.own_axis(x, dim)
    (axis,) = x.dims[dim]
    size = imp.size(axis)
    result = imp.slide(x, dim, stencil_of(1, pad=(before, after)))
    (new,) = result.dims[dim]
    end = ir.as_kind(size + float(before), Kind.INDEX)
    at_start = ir.elementwise("lt", ir.iota(new), ir.constant(before, Kind.INDEX))
    at_end = ir.elementwise("ge", ir.iota(new), end)
    node = result.node
    if mode == "constant":
        if value != 0:
            edge = ir.as_kind(ir.constant(value), node.kind)
            node = ir.where(at_start, edge, node) if before > 0 else node
            node = ir.where(at_end, edge, node) if after > 0 else node
        return Tensor(node, result.dims)
    if min(before, after) < 0:
        raise Refused(f"padding by a negative number of entries with mode {mode!r}; cut with a slice")
    if mode == "replicate":
        first, last = ir.constant(0, Kind.INDEX), ir.as_kind(size - 1.0, Kind.INDEX)
        node = ir.where(at_start, ir.take(x.node, first, axis), node) if before else node
        node = ir.where(at_end, ir.take(x.node, last, axis), node) if after else node
        return Tensor(node, result.dims)
    offsets = {"reflect": 1, "symmetric": 0, "circular": 0}
    if mode not in offsets:
        raise Refused(f"padding with mode {mode!r}; use constant, reflect, symmetric, replicate or circular")
    turned = ir.flip(x.node, axis)
    head, tail = (turned, x.node) if mode == "circular" else (x.node, turned)
    for piece, count, front in ((head, before, True), (tail, after, False)):
        if not count:
            continue
        part = imp.slide(Tensor(piece, x.dims), dim, Stencil(start=offsets[mode], count=count))
        (short,) = part.dims[dim]
        moved = ir.flip(part.node, short) if front else part.node
        start, trim = ((), {"": -after}) if front else ({"": -before}, ())
        ends = [ir.extent(dict(e).get("", 0), {axis: -1}) if e else () for e in (start, trim)]
        node = node + ir.window(moved, short, new, ends[0], ends[1])
    return Tensor(node, result.dims)


def _pad_constant(imp: Importer, x: Tensor, dim: int, before: int, after: int, mode: str, value: float) -> Tensor:
    """`x`, which is the same all along a dimension, padded there: `value` around it, as a frame that is left out."""
    sizes = imp.extents(x.dims[dim])
    longer = [n + before + after for n in sizes]
    if mode != "constant":
        return Tensor(x.node, (*x.dims[:dim], (imp.ghost(longer),), *x.dims[dim + 1 :]))
    counter = imp.arange(longer)
    (axis,) = counter.dims[0]
    if axis in x.node.axes:
        raise Refused("padding along an axis that the value has already; give the two dimensions different sizes")
    behind = ir.elementwise("ge", counter.node, ir.constant(before, Kind.INDEX))
    ahead = ir.elementwise("lt", counter.node, ir.as_kind(imp.symbol(sizes) + float(before), Kind.INDEX))
    edge = ir.as_kind(ir.constant(value), x.node.kind)
    node = ir.where(ir.elementwise("and", behind, ahead), x.node, edge)
    return Tensor(node, (*x.dims[:dim], (axis,), *x.dims[dim + 1 :]))


# ------------------------------------------------------------------------------------- convolution


def convolve(
    imp: Importer,
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: Sequence[int],
    padding: Pads,
    dilation: Sequence[int],
    groups: Any = 1,
) -> Tensor:
    r"""The cross-correlation that neural networks call convolution.

    Args:
        imp: the import.
        x: (batch, channels, \*space).
        weight: (outputs, channels / groups, \*taps); its taps have the same sizes in each call.
        bias: one number for each output.
        stride: of the windows, for each dimension of space.
        padding: zeros before and after each dimension of space.
        dilation: the distance of taps, for each dimension of space.
        groups: into so many are the channels parted.
    """
    t, w = imp.tensor(x), imp.tensor(weight)
    count = w.rank - 2
    taps = [imp.extents(d) for d in w.dims[2:]]
    if any(len(set(k)) > 1 for k in taps):
        raise Refused("a kernel whose size varies with those of other arrays; give it a constant size")
    parts = tuple(groups.values) if isinstance(groups, Varying) else (int(groups),) * imp.count
    each = tuple(o // g for o, g in zip(imp.extents(w.dims[0]), parts, strict=True))
    # From here on the dimensions are batch, group, outputs and channels of each, space, and taps.
    t = _grouped_operand(imp, t, parts)
    if w.dims[0] and w.dims[0][0].startswith("#") and imp.sizes_of(w.dims[0][0]) == parts:  # the same in each group
        w = Tensor(w.node, (w.dims[0][1:], *w.dims[1:]))
        parts = (1,) * imp.count
    kernels = _kernels(imp, w, parts, each, t.node.axes)
    for j in range(count):
        stencil = stencil_of(taps[j][0], stride[j], dilation[j], padding[j])
        at = 4 + count + j
        kernel = kernels[j]
        slid = t
        if stencil != Stencil():
            along = t.dims[at] or (kernel.dims[at] if kernel is not None else ())
            name = along[0] if along and not along[0].startswith("#") else None
            if name is None and stencil.taps > 1:
                name = imp.derived(f"taps{stencil.taps}", taps[j], ir.constant(float(stencil.taps)))
            slid = imp.slide(Tensor(t.node, t.dims), 4 + j, stencil, name)
            if not t.dims[at] and name is not None:
                slid = Tensor(slid.node, (*slid.dims[:at], (name,), *slid.dims[at + 1 : t.rank]))
        t = slid if kernel is None else imp.elementwise("mul", slid, kernel)
        if t.dims[at]:
            t = imp.reduce("sum", t, [at], keepdims=True)
    if t.dims[3]:
        t = imp.reduce("sum", t, [3], keepdims=True)
    made = t.dims[2] or (() if set(each) == {1} else (imp.ghost(each),))  # outputs may be all the same
    result = Tensor(t.node, (t.dims[0], t.dims[1] + made, *t.dims[4 : 4 + count]))
    if bias is None:
        return result
    b = imp.tensor(bias)
    return imp.elementwise("add", result, Tensor(b.node, (*b.dims, *((),) * count)))


def _grouped_operand(imp: Importer, t: Tensor, parts: tuple[int, ...]) -> Tensor:
    """Batch, group, nothing, channels of each group, space, and nothing for each tap."""
    channels = imp.extents(t.dims[1])
    dims: tuple[Dim, ...] = ((), (), t.dims[1])
    if set(parts) != {1}:
        if parts == channels:
            dims = (t.dims[1], (), ())
        else:
            shapes = zip(*(imp.extents(d) for d in t.dims), strict=True)
            t = imp.reshape(t, [(n, g, c // g, *rest) for (n, c, *rest), g in zip(shapes, parts, strict=True)])
            t, dims = Tensor(t.node, (t.dims[0], t.dims[1] + t.dims[2], *t.dims[3:])), (t.dims[1], (), t.dims[2])
    space = t.dims[2:]
    return Tensor(t.node, (t.dims[0], *dims, *space, *((),) * len(space)))


def _kernels(
    imp: Importer, w: Tensor, parts: tuple[int, ...], each: tuple[int, ...], taken: Collection[str]
) -> list[Tensor | None]:
    """The kernel of each pass, of the operand's rank: factors of an outer product, or all of it in the first."""
    count = w.rank - 2
    array = constant_array(imp, w)
    if array is not None:
        lead = (parts[0], each[0]) if array.shape[0] > 1 else (1, 1)
        array = array.reshape(1, *lead, array.shape[1], *(1,) * count, *array.shape[2:])
        pieces = separated(array, count) or [array]
        found: list[Tensor | None] = [_table(imp, p, 4 + count, taken) for p in pieces]
        return found + [None] * (count - len(found))
    space: tuple[Dim, ...] = ((),) * count
    dims: tuple[Dim, ...] = ((), w.dims[0], w.dims[1])
    taps = w.dims[2:]
    if set(parts) != {1}:
        if set(each) == {1}:
            dims = (w.dims[0], (), w.dims[1])
        else:
            shapes = zip(*(imp.extents(d) for d in w.dims), strict=True)
            w = imp.reshape(w, [(g, m, *rest) for (_, *rest), g, m in zip(shapes, parts, each, strict=True)])
            dims, taps = w.dims[:3], w.dims[3:]
    return [Tensor(w.node, ((), *dims, *space, *taps)), *[None] * (count - 1)]


def _table(imp: Importer, array: np.ndarray, first_tap: int, taken: Collection[str]) -> Tensor:
    """A constant array, without the dimensions in which it does not vary; kernels of one size share names of taps."""
    for dim in range(array.ndim):
        if (array == array.take([0], axis=dim)).all():
            array = array.take([0], axis=dim)
    if array.size == 1:
        return Tensor(ir.constant(float(array.item())), ((),) * array.ndim)
    if array.size > LARGEST_TABLE:
        raise Refused(f"a kernel of {array.size} different entries; make it an argument of the loss")
    order: list[str] = []
    dims: list[Dim] = []
    for dim, n in enumerate(array.shape):
        if n == 1:
            dims.append(())
            continue
        name = f"taps{n}" if dim >= first_tap else imp.number("kernel")
        axis = imp.unused(imp.derived(name, (n,) * imp.count, ir.constant(float(n))), {*order, *taken})
        imp.fixed[axis] = n
        order.append(axis)
        dims.append((axis,))
    shape = [n for n in array.shape if n > 1]
    return Tensor(ir.table([float(v) for v in array.reshape(-1)], order, shape, Kind.FLOAT), tuple(dims))


def separated(array: np.ndarray, count: int) -> list[np.ndarray] | None:
    """Factors along each of the last `count` dimensions, if the array is their product at each of its other entries."""
    lead, taps = array.shape[:-count], array.shape[-count:]
    factors: list[np.ndarray] = []
    rest = array.reshape(-1, *taps)
    scale = np.abs(array).max(initial=0.0)
    for j in range(count - 1):
        flat = rest.reshape(len(rest), taps[j], -1)
        u, s, v = np.linalg.svd(flat, full_matrices=False)
        if s.shape[1] > 1 and (s[:, 1] > _SEPARABLE * max(scale, 1e-30)).any():
            return None
        root = np.sqrt(s[:, 0])
        sign = np.where(u[:, :, 0].sum(1) < 0, -1.0, 1.0)
        shape = [1] * count
        shape[j] = taps[j]
        factors.append((u[:, :, 0] * (root * sign)[:, None]).reshape(*lead, *shape))
        rest = (v[:, 0] * (root * sign)[:, None]).reshape(len(rest), *taps[j + 1 :])
        scale = np.abs(rest).max(initial=0.0)
    shape = [1] * count
    shape[-1] = taps[-1]
    factors.append(rest.reshape(*lead, *shape))
    return [np.round(f, 12) if np.ptp(f) else np.full_like(f, f.flat[0]) for f in factors]


def constant_array(imp: Importer, t: Tensor) -> np.ndarray | None:
    """The entries of a value that depends on no input, with size 1 along dimensions in which it does not vary."""
    nodes = ir.topological([t.node])
    if any(
        n.op in ("input", "size") or (n.op == "iota" and (len(n.attrs) < 2 or not isinstance(n.attrs[1], int)))
        for n in nodes
    ):
        return None
    (values,) = evaluate([t.node], {})
    names = sorted(t.node.axes)
    order = [a for d in t.dims for a in d if a in t.node.axes]
    shape = []
    for dim in t.dims:
        present = [a for a in dim if a in t.node.axes]
        if present and len(present) < len(dim):
            return None  # repeated in part
        shape.append(math.prod(imp.sizes_of(a)[0] for a in present))
    return values.transpose([names.index(a) for a in order]).reshape(shape).astype(np.float64)


# ------------------------------------------------------------------------------------- pooling


def average_pool(
    imp: Importer,
    x: Any,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Pads,
    *,
    ceil: bool = False,
    count_padding: bool = True,
    divisor: float | None = None,
) -> Tensor:
    """The mean of windows over the last dimensions."""
    t = imp.tensor(x)
    first = t.rank - len(size)
    counts: list[Node] = []
    for j, k in enumerate(size):
        stencil = stencil_of(k, stride[j], 1, padding[j], ceil)
        if stencil == Stencil():
            continue
        t = imp.own_axis(t, first + j)
        (axis,) = t.dims[first + j]
        slid = imp.slide(t, first + j, stencil)
        t = imp.reduce("sum", slid, [slid.rank - 1]) if k > 1 else slid
        before, after = padding[j]
        (new,) = t.dims[first + j]
        start = ir.as_kind(ir.iota(new), Kind.FLOAT) * float(stride[j]) - float(before)
        whole = start + float(k)
        end = imp.size(axis) + float(after)
        if not count_padding and (before or after or ceil):
            inside = ir.elementwise("minimum", whole, imp.size(axis)) - ir.elementwise("maximum", start, 0.0)
            counts.append(inside)
        elif ceil:
            counts.append(ir.elementwise("minimum", whole, end) - start)
        else:
            counts.append(ir.constant(float(k)))
    if divisor is not None:
        return imp.elementwise("div", t, float(divisor))
    fixed = math.prod(float(c.attrs[0]) for c in counts if c.op == "constant")
    node = t.node / fixed
    for c in counts:
        node = node if c.op == "constant" else node / c
    return Tensor(node, t.dims)


def maximum_pool(
    imp: Importer,
    x: Any,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Pads,
    *,
    dilation: Sequence[int] | None = None,
    ceil: bool = False,
) -> Tensor:
    """The largest entry of windows over the last dimensions; of equal ones the first has the gradient."""
    t = imp.tensor(x)
    first = t.rank - len(size)
    for j, k in reversed(list(enumerate(size))):
        spread = 1 if dilation is None else dilation[j]
        stencil = stencil_of(k, stride[j], spread, padding[j], ceil)
        if stencil == Stencil():
            continue
        t = imp.own_axis(t, first + j)
        (axis,) = t.dims[first + j]
        slid = imp.slide(t, first + j, stencil)
        if k == 1:
            t = slid
            continue
        (new,), (tap,) = slid.dims[first + j], slid.dims[-1]
        node = ir.as_kind(slid.node, Kind.FLOAT)
        if any(padding[j]) or ceil:
            at = (
                ir.as_kind(ir.iota(new), Kind.FLOAT) * float(stencil.step)
                + ir.as_kind(ir.iota(tap), Kind.FLOAT) * float(spread)
                + float(stencil.start)
            )
            inside = ir.elementwise("and", ir.elementwise("ge", at, 0.0), ir.elementwise("lt", at, imp.size(axis)))
            node = ir.where(inside, node, -math.inf)
        node = ir.take(node, ir.reduction("argmax", node, {tap}), tap)
        t = Tensor(node, slid.dims[:-1])
    return t


# ------------------------------------------------------------------------------------- patches and resampling


def patches(imp: Importer, x: Any, dims: Sequence[int], stencils: Sequence[Stencil]) -> Tensor:
    """Windows along some dimensions, with a new last dimension for the taps of each."""
    t = imp.tensor(x)
    for dim, stencil in zip(dims, stencils, strict=True):
        t = imp.slide(t, dim, stencil)
        t = t if stencil.taps > 1 else imp.unsqueeze(t, t.rank)
    return t


def weighted(
    imp: Importer, x: Any, dim: int, counts: Sequence[int], weights: Callable[[Node, Node, Node, Node], Node]
) -> Tensor:
    """`counts` entries (one for each recording) in place of those along a dimension, each a weighted sum of these.

    `weights` is a formula of the new position, the old one, and both sizes, so that this is a product with a matrix.
    """

    def entry(node: Node, axis: Axis, *places: Node) -> Node:
        return ir.reduction("sum", node * weights(*places), {axis})

    return _resampled(imp, x, dim, counts, entry)


def _resampled(imp: Importer, x: Any, dim: int, counts: Sequence[int], entry: Callable[..., Node]) -> Tensor:
    """`counts` entries in place of those along a dimension.

    `entry` is a formula of all entries, their axis, the new position, the old one, and both sizes.
    """
    t = imp.tensor(x)
    if all(a.startswith("#") or a not in t.node.axes for a in t.dims[dim]):  # the same wherever it is taken
        line: Dim = () if set(counts) == {1} else (imp.ghost(counts),)
        return Tensor(t.node, (*t.dims[:dim], line, *t.dims[dim + 1 :]))
    t = imp.own_axis(t, dim)
    (axis,) = t.dims[dim]
    counter = imp.arange(counts)
    places, line = counter.node, counter.dims[0]
    if line:
        new = imp.unused(line[0], {a for d in t.dims for a in d} | t.node.axes)
        places, line = relabel(places, {line[0]: new}), (new,)
    at, old = (ir.as_kind(n, Kind.FLOAT) for n in (places, ir.iota(axis)))
    node = entry(ir.as_kind(t.node, Kind.FLOAT), axis, at, old, imp.size(axis), imp.length(line))
    return Tensor(node, (*t.dims[:dim], line, *t.dims[dim + 1 :]))


def interpolate(
    imp: Importer,
    x: Any,
    dim: int,
    counts: Sequence[int],
    *,
    linear: bool = False,
    centre: bool = False,
    aligned: bool = False,
    scale: float | None = None,
) -> Tensor:
    """`counts` entries in place of those along a dimension, by any factor: the nearest ones, or by linear interpolation.

    With `aligned`, the first and last entries lie at the ends, and not the borders of the first and the last. With
    `centre`, the nearest entry is that to the middle of a new one. `scale` is a factor that was given in place of sizes.
    """

    def step(size: Node, count: Node) -> Node:
        return ir.constant(1.0 / scale) if scale is not None else size / count

    def hats(at: Node, old: Node, size: Node, count: Node) -> Node:
        """Weights that fall linearly to zero at a distance of one entry."""
        if aligned:
            at = at * ((size - 1.0) / ir.elementwise("maximum", count - 1.0, 1.0))
        else:
            at = ir.elementwise("maximum", (at + 0.5) * step(size, count) - 0.5, 0.0)
        at = ir.elementwise("minimum", at, size - 1.0)
        return ir.elementwise("maximum", 1.0 - ir.elementwise("abs", at - old), 0.0)

    def nearest(at: Node, old: Node, size: Node, count: Node) -> Node:
        at = ir.elementwise("floor", (at + 0.5 if centre else at) * step(size, count))
        return ir.as_kind(ir.elementwise("eq", ir.elementwise("minimum", at, size - 1.0), old), Kind.FLOAT)

    return weighted(imp, x, dim, counts, hats if linear else nearest)


def adaptive_average(imp: Importer, x: Any, dim: int, counts: Sequence[int]) -> Tensor:
    """Means over `counts` windows that cover a dimension as evenly as whole entries allow."""

    def window(*places: Node) -> Node:
        first, end, inside = _even_window(*places)
        return ir.as_kind(inside, Kind.FLOAT) / (end - first)

    return weighted(imp, x, dim, counts, window)


def adaptive_maximum(imp: Importer, x: Any, dim: int, counts: Sequence[int]) -> Tensor:
    """The largest entry of each of such windows; of equal ones the first has the gradient."""

    def entry(node: Node, axis: Axis, *places: Node) -> Node:
        node = ir.where(_even_window(*places)[2], node, -math.inf)
        return ir.take(node, ir.reduction("argmax", node, {axis}), axis)

    return _resampled(imp, x, dim, counts, entry)


def _even_window(at: Node, old: Node, size: Node, count: Node) -> tuple[Node, Node, Node]:
    """Where the window of a new position begins and ends, and whether an old one lies within."""
    first = ir.elementwise("floor", at * size / count)
    end = ir.elementwise("ceil", (at + 1.0) * size / count)
    return first, end, ir.elementwise("and", ir.elementwise("ge", old, first), ir.elementwise("lt", old, end))


def enlarge(imp: Importer, x: Any, dim: int, factor: int, *, linear: bool = False) -> Tensor:
    """Each entry in place of `factor`: repeated, or by linear interpolation between centres, constant beyond the last."""
    t = imp.own_axis(x, dim)
    phase = imp.derived(f"phase{factor}", (factor,) * imp.count, ir.constant(float(factor)))
    phase = imp.unused(phase, t.node.axes)
    if linear:
        places = (np.arange(factor) + 0.5) / factor + 0.5  # among entry i − 1, i and i + 1
        weights = np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(3)))
        slid = imp.slide(
            pad(imp, t, [(1, 1) if d == dim else (0, 0) for d in range(t.rank)], "replicate"), dim, stencil_of(3)
        )
        (tap,) = slid.dims[-1]
        table = ir.table([float(w) for w in weights.reshape(-1)], (phase, tap), weights.shape, Kind.FLOAT)
        node = ir.reduction("sum", slid.node * table, {tap})
        t = Tensor(node, slid.dims[:-1])
    else:
        t = Tensor(ir.repeat(t.node, ir.iota(phase, factor)), t.dims)
    return Tensor(t.node, (*t.dims[:dim], (*t.dims[dim], phase), *t.dims[dim + 1 :]))


def thin(imp: Importer, x: Any, dim: int, factor: int, *, linear: bool = False, centre: bool = False) -> Tensor:
    """One entry in place of each `factor`: the first, that at their `centre`, or the value there by linear interpolation."""
    if not linear:
        return imp.slide(x, dim, Stencil(1, factor, 1, factor // 2 if centre else 0, factor))
    if factor % 2:
        return imp.slide(x, dim, Stencil(1, factor, 1, factor // 2, factor))
    slid = imp.slide(x, dim, Stencil(2, factor, 1, factor // 2 - 1, factor))
    return imp.elementwise("mul", imp.reduce("sum", slid, [slid.rank - 1]), 0.5)
