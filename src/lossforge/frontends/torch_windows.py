"""What PyTorch's operations on windows mean: convolutions, pooling, padding, patches, interpolation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lossforge.frontends import windows
from lossforge.frontends.positional import Importer, Refused, Rule, Tensor, Unknown
from lossforge.frontends.recording import Step, Varying


def _each(value: Any, count: int) -> list[int]:
    """An option for each dimension: one for all, or a list."""
    if isinstance(value, Varying):
        raise Refused("a size or stride of windows that depends on sizes; give it as a number")
    values = [value] if isinstance(value, int) else list(value)
    if any(isinstance(v, Varying) for v in values):
        raise Refused("a size or stride of windows that depends on sizes; give it as a number")
    return values * count if len(values) == 1 else values


def _convolution(
    imp: Importer, step: Step, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: Any,
) -> Tensor:  # fmt: skip
    if transposed:
        raise Refused("a transposed convolution; write it as an interpolation followed by a convolution")
    count = imp.tensor(weight).rank - 2
    pads = [(p, p) for p in _each(padding, count)]
    return windows.convolve(
        imp, x, weight, bias, stride=_each(stride, count), padding=pads, dilation=_each(dilation, count), groups=groups
    )


def _average_pool(count: int) -> Rule:
    def rule(
        imp: Importer, step: Step, x: Any, size: Any, stride: Any = (), padding: Any = 0, ceil: bool = False,
        count_padding: bool = True, divisor: Any = None,
    ) -> Tensor:  # fmt: skip
        sizes = _each(size, count)
        pads = [(p, p) for p in _each(padding, count)]
        strides = _each(stride, count) if stride else sizes
        x = x.most if isinstance(x, Padded) else x
        return windows.average_pool(
            imp, x, sizes, strides, pads, ceil=ceil, count_padding=count_padding, divisor=divisor
        )

    return rule


def _maximum_pool(count: int) -> Rule:
    def rule(
        imp: Importer, step: Step, x: Any, size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
        ceil: bool = False,
    ) -> tuple[Tensor, None]:  # fmt: skip
        sizes = _each(size, count)
        pads = [(p, p) for p in _each(padding, count)]
        strides = _each(stride, count) if stride else sizes
        return windows.maximum_pool(imp, x, sizes, strides, pads, dilation=_each(dilation, count), ceil=ceil), None

    return rule


@dataclass(frozen=True)
class Padded(Unknown):
    """An array with zeros behind it whose number depends on its size, such as 0 or 1 to make it even.

    Windows of even pooling drop what is too much, so that there it may be the largest number always.
    """

    most: Tensor


_VARYING_WIDTH = "padding whose width depends on sizes; pad by a constant number of entries"


def _adaptive_average(count: int) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, size: Any) -> Tensor:
        t = imp.tensor(x)
        for j in range(count):  # the size may follow that of another array
            dim = t.rank - count + j
            if {s[dim] for s in step.shapes[0]} == {1}:
                t = imp.reduce("mean", t, [dim], keepdims=True)
            elif imp.extents(t.dims[dim]) != (counts := tuple(s[dim] for s in step.shapes[0])):
                t = windows.adaptive_average(imp, t, dim, counts)
        return t

    return rule


def _adaptive_maximum(count: int) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, size: Any) -> tuple[Tensor, None]:
        t = imp.tensor(x)
        for dim in reversed(range(t.rank - count, t.rank)):
            if imp.extents(t.dims[dim]) != (counts := tuple(s[dim] for s in step.shapes[0])):
                t = windows.adaptive_maximum(imp, t, dim, counts)
        return t, None

    return rule


def _constant_pad(imp: Importer, step: Step, x: Any, pads: Any, value: Any = 0.0) -> Tensor | Padded:
    if any(isinstance(p, Varying) for p in pads) and value == 0:
        widest = [max(p.values) if isinstance(p, Varying) else p for p in pads]
        return Padded(_VARYING_WIDTH, windows.pad(imp, x, _widths(imp, x, widest)))
    return windows.pad(imp, x, _widths(imp, x, pads), value=value)


def _edge_pad(mode: str) -> Rule:
    return lambda imp, step, x, pads: windows.pad(imp, x, _widths(imp, x, pads), mode)


def _widths(imp: Importer, x: Any, pads: Any) -> list[tuple[int, int]]:
    """Widths for each dimension; PyTorch begins with the last."""
    if any(isinstance(p, Varying) for p in pads):
        raise Refused(_VARYING_WIDTH)
    pairs = list(zip(pads[::2], pads[1::2], strict=True))[::-1]
    return [(0, 0)] * (imp.tensor(x).rank - len(pairs)) + pairs


def _unfold(imp: Importer, step: Step, x: Any, dim: Any, size: Any, stride: Any) -> Tensor:
    t = imp.tensor(x)
    return windows.patches(imp, t, [imp.dim(t, dim)], [windows.stencil_of(_each(size, 1)[0], _each(stride, 1)[0])])


def _im2col(imp: Importer, step: Step, x: Any, size: Any, dilation: Any, padding: Any, stride: Any) -> Tensor:
    options = zip(_each(size, 2), _each(stride, 2), _each(dilation, 2), _each(padding, 2), strict=True)
    stencils = [windows.stencil_of(k, s, d, (p, p)) for k, s, d, p in options]
    t = imp.tensor(x)
    t = windows.patches(imp, t, [t.rank - 2, t.rank - 1], stencils)
    *lead, channels, height, width, rows, columns = t.dims
    return Tensor(t.node, (*lead, channels + rows + columns, height + width))


def _interpolate(linear: bool, exact: bool = False) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, size: Any, *rest: Any) -> Tensor:
        t, aligned = imp.tensor(x), bool(linear and rest[0])
        shapes = step.shapes[0]
        for dim in range(2, t.rank):
            old, new = imp.extents(t.dims[dim]), [s[dim] for s in shapes]
            up = {n / m for n, m in zip(new, old, strict=True)}
            (scale,) = _scales(rest, t.rank - 2)[dim - 2 : dim - 1] or (None,)
            if up == {1.0}:
                continue
            if not aligned and len(up) == 1 and min(up).is_integer():
                t = windows.enlarge(imp, t, dim, int(min(up)), linear=linear)
            elif not aligned and (whole := _whole_factor(old, new, scale)):
                t = windows.thin(imp, t, dim, whole, linear=linear, centre=exact)
            else:
                t = windows.interpolate(imp, t, dim, new, linear=linear, centre=exact, aligned=aligned, scale=scale)
        return t

    return rule


def _whole_factor(old: Sequence[int], new: Sequence[int], scale: float | None) -> int | None:
    """How many entries become one, if as many everywhere; where a scale was given, a rest may be left over."""
    factors = {n // m for n, m in zip(old, new, strict=True)}
    exact = all(n % m == 0 for n, m in zip(old, new, strict=True))
    (factor,) = factors if len(factors) == 1 else (0,)
    return factor if factor and (exact if scale is None else scale == 1 / factor) else None


def _scales(rest: Sequence[Any], count: int) -> list[float]:
    given = [s for r in rest for s in (r if isinstance(r, list | tuple) else (r,))]
    found = [s for s in given if isinstance(s, float)]
    return found if len(found) == count else []


WINDOWS: Mapping[str, Rule] = {
    "convolution.default": _convolution,
    **{f"avg_pool{n}d.default": _average_pool(n) for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices.default": _maximum_pool(n) for n in (2, 3)},
    **{f"{op}_avg_pool{n}d.default": _adaptive_average(n) for op in ("adaptive", "_adaptive") for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d.default": _adaptive_maximum(n) for n in (2, 3)},
    "constant_pad_nd.default": _constant_pad,
    **{f"{name}_pad{n}d.default": _edge_pad(mode) for name, mode in (("reflection", "reflect"), ("replication", "replicate"))
       for n in (1, 2, 3)},
    "unfold.default": _unfold, "unfold_copy.default": _unfold, "im2col.default": _im2col,
    **{f"upsample_{mode}{n}d.{form}": _interpolate(linear) for mode, n, linear in (
        ("nearest", 1, False), ("nearest", 2, False), ("nearest", 3, False), ("linear", 1, True), ("bilinear", 2, True),
        ("trilinear", 3, True)) for form in ("default", "vec")},
    **{f"_upsample_nearest_exact{n}d.{form}": _interpolate(False, exact=True) for n in (1, 2, 3) for form in ("default", "vec")},
}  # fmt: skip
"""Their rules."""
