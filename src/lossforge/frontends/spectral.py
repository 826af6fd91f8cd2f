"""Fourier transforms of positional values, and the complex numbers between them, for all front ends.

A complex value is a pair of real ones, so that the graph needs no kind for it. A discrete Fourier transform is a product
with a matrix of cosines and one of sines, which are formulas of positions and of the size: exact for every size, its
derivatives are those of a product, and every backend spells it. That costs n² operations in place of n log n, by a
matrix product, once for each transformed dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lossforge import ir
from lossforge.frontends.positional import Importer, Refused, Rule, Tensor
from lossforge.frontends.recording import Step
from lossforge.ir import Coarse, Kind, Node


@dataclass
class Complex:
    """A positional value of complex numbers; both parts have its dimensions, or broadcast to them."""

    real: Tensor
    imag: Tensor


def complex_of(imp: Importer, value: Any) -> Complex:
    """A real value or number as a complex one."""
    if isinstance(value, Complex):
        return value
    if isinstance(value, complex):
        return Complex(imp.tensor(value.real), imp.tensor(value.imag))
    return Complex(imp.cast(value, Kind.FLOAT), imp.tensor(0.0))


# ------------------------------------------------------------------------------------- arithmetic


def add(imp: Importer, x: Any, y: Any) -> Complex:
    """x + y."""
    a, b = complex_of(imp, x), complex_of(imp, y)
    return Complex(imp.elementwise("add", a.real, b.real), _sum(imp, a.imag, b.imag))


def negative(imp: Importer, x: Any) -> Complex:
    """−x."""
    a = complex_of(imp, x)
    return Complex(imp.elementwise("neg", a.real), _product(imp, a.imag, imp.tensor(-1.0)))


def multiply(imp: Importer, x: Any, y: Any) -> Complex:
    """The product x y."""
    a, b = complex_of(imp, x), complex_of(imp, y)
    real = imp.elementwise("mul", a.real, b.real)
    if not _is_zero(a.imag) and not _is_zero(b.imag):
        real = imp.elementwise("sub", real, imp.elementwise("mul", a.imag, b.imag))
    return Complex(real, _sum(imp, _product(imp, a.real, b.imag), _product(imp, a.imag, b.real)))


def divide(imp: Importer, x: Any, y: Any) -> Complex:
    """x / y."""
    a, b = complex_of(imp, x), complex_of(imp, y)
    if _is_zero(b.imag):
        return Complex(
            imp.elementwise("div", a.real, b.real),
            a.imag if _is_zero(a.imag) else imp.elementwise("div", a.imag, b.real),
        )
    over = multiply(imp, a, conjugate(imp, b))
    square = imp.map(lambda r, i: r * r + i * i, b.real, b.imag)
    return Complex(imp.elementwise("div", over.real, square), imp.elementwise("div", over.imag, square))


def conjugate(imp: Importer, x: Any) -> Complex:
    """The complex conjugate."""
    a = complex_of(imp, x)
    return Complex(a.real, _product(imp, a.imag, imp.tensor(-1.0)))


def magnitude(imp: Importer, x: Complex) -> Tensor:
    """|x|, of gradient 0 at the origin, as in every library."""

    def length(r: Node, i: Node) -> Node:
        square = r * r + i * i
        zero = ir.elementwise("eq", square, 0.0)
        return ir.where(zero, 0.0, ir.elementwise("sqrt", ir.where(zero, 1.0, square)))

    return imp.elementwise("abs", x.real) if _is_zero(x.imag) else imp.map(length, x.real, x.imag)


def phase(imp: Importer, x: Complex) -> Tensor:
    """The angle of x, between −π and π."""
    return imp.elementwise("atan2", x.imag, x.real)


def exponential(imp: Importer, x: Complex) -> Complex:
    """e to the power x."""
    size = imp.elementwise("exp", x.real)
    both = (imp.elementwise("mul", size, imp.elementwise(op, x.imag)) for op in ("cos", "sin"))
    return Complex(*both)


def each(function: Callable[[Tensor], Any], x: Complex) -> Complex:
    """An operation that is linear over the reals, on both parts."""
    return Complex(function(x.real), function(x.imag))


def on_parts(imp: Importer, step: Step, rule: Rule, args: Sequence[Any], dtype: str) -> Any:
    """A rule that is linear over the reals, on both parts of its operands; `dtype` is the real type of its results."""
    real, even = replace(step, dtypes=(dtype,) * len(step.dtypes)), [_even(imp, a) for a in args]
    found = [rule(imp, real, *(_part(a, name) for a in even)) for name in ("real", "imag")]
    if isinstance(found[0], tuple):
        return tuple(Complex(r, i) for r, i in zip(*found, strict=True))
    return Complex(*found)


def with_complex(
    rules: Mapping[str, Rule], meanings: Mapping[str, Rule], linear: Collection[str], dtype: str
) -> dict[str, Rule]:
    """`rules` that take complex operands too: by `meanings`, or part by part where they are linear over the reals.

    `dtype` is what the library calls real numbers.
    """

    def either(op: str, rule: Rule) -> Rule:
        def chosen(imp: Importer, step: Step, *args: Any) -> Any:
            flat = [b for a in args for b in (a if isinstance(a, list | tuple) else (a,))]
            if not any(isinstance(a, Complex | complex) for a in flat):
                return rule(imp, step, *args)
            if op in meanings:
                return meanings[op](imp, step, *args)
            if op in linear:
                return on_parts(imp, step, rule, args, dtype)
            raise Refused("complex numbers in this operation; use it on the real and imaginary parts")

        return chosen

    return {op: either(op, rule) for op, rule in rules.items()}


ARITHMETIC: Mapping[str, Rule] = {
    "add": lambda imp, step, x, y: add(imp, x, y),
    "sub": lambda imp, step, x, y: add(imp, x, negative(imp, y)),
    "mul": lambda imp, step, x, y: multiply(imp, x, y),
    "div": lambda imp, step, x, y: divide(imp, x, y),
    "neg": lambda imp, step, x: negative(imp, x),
    "square": lambda imp, step, x: multiply(imp, x, x),
    "abs": lambda imp, step, x: magnitude(imp, complex_of(imp, x)),
    "angle": lambda imp, step, x: phase(imp, complex_of(imp, x)),
    "exp": lambda imp, step, x: exponential(imp, complex_of(imp, x)),
    "real": lambda imp, step, x: parts(imp, complex_of(imp, x))[0],
    "imag": lambda imp, step, x: parts(imp, complex_of(imp, x))[1],
    "conj": lambda imp, step, x: conjugate(imp, x),
}
"""The meaning of arithmetic on complex operands."""


def _part(value: Any, name: str) -> Any:
    if isinstance(value, Complex):
        return getattr(value, name)
    return tuple(_part(v, name) for v in value) if isinstance(value, list | tuple) else value


def _even(imp: Importer, value: Any) -> Any:
    """Complex operands with both parts of one shape."""
    if isinstance(value, Complex):
        return Complex(*parts(imp, value))
    return tuple(_even(imp, v) for v in value) if isinstance(value, list | tuple) else value


def as_real(imp: Importer, x: Complex) -> Tensor:
    """A new last dimension of real and imaginary part."""
    real, imag = parts(imp, x)
    return imp.concat([imp.unsqueeze(real, real.rank), imp.unsqueeze(imag, imag.rank)], real.rank)


def as_complex(imp: Importer, x: Any) -> Complex:
    """The last dimension, of size 2, as real and imaginary part."""
    t = imp.tensor(x)
    return Complex(imp.select(t, t.rank - 1, 0), imp.select(t, t.rank - 1, 1))


def parts(imp: Importer, x: Complex) -> tuple[Tensor, Tensor]:
    """Real and imaginary part, both with all dimensions."""
    nodes, dims = imp.align([x.real, x.imag])
    return Tensor(nodes[0], dims), Tensor(nodes[1], dims)


def _is_zero(x: Tensor) -> bool:
    return x.node.op == "constant" and x.node.attrs[0] == 0


def _product(imp: Importer, x: Tensor, y: Tensor) -> Tensor:
    return x if _is_zero(x) else y if _is_zero(y) else imp.elementwise("mul", x, y)


def _sum(imp: Importer, x: Tensor, y: Tensor) -> Tensor:
    return y if _is_zero(x) else x if _is_zero(y) else imp.elementwise("add", x, y)


# ------------------------------------------------------------------------------------- transforms


def fourier(
    imp: Importer, x: Any, dims: Sequence[int], *, inverse: bool = False, half: bool = False, scale: float = 0.0
) -> Complex:
    """The discrete Fourier transform along some dimensions.

    Args:
        imp: the import.
        x: a real or complex value.
        dims: along these.
        inverse: with the other sign.
        half: keep the frequencies 0 … n // 2 of the last of `dims`, which determine the others of a real value.
        scale: divide by this power of the number of entries: 0, 0.5 or 1.
    """
    value = complex_of(imp, x)
    for place, dim in reversed(list(enumerate(dims))):
        value = _along(imp, value, dim, inverse, half and place == len(dims) - 1, scale)
    return value


def _along(imp: Importer, x: Complex, dim: int, inverse: bool, half: bool, scale: float) -> Complex:
    real, imag = parts(imp, x)
    real = imp.own_axis(real, dim)
    (axis,) = real.dims[dim]
    sizes, size = imp.sizes_of(axis), imp.size(axis)
    taken = {a for d in real.dims for a in d} | real.node.axes | imag.node.axes
    source = imp.sources.get(axis.rstrip("'"))
    if half:
        counts = tuple(n // 2 + 1 for n in sizes)
        new = imp.made_of(axis, "_frequency_half", counts, ir.elementwise("floor", size / 2.0) + 1.0, taken)
        length = Coarse(axis, 0, 2)
    else:
        back = source[0] if source and source[1] == "_frequency" and source[0] not in taken else None
        new = back or imp.made_of(axis, "_frequency", sizes, size, taken)
        length = Coarse(axis, 1, 1)
    cosine, sine = _waves(
        ir.iota(axis), ir.iota(new, None if not half and imp.sources.get(new) is None else length), size
    )
    sign = 1.0 if inverse else -1.0

    def transformed(a: Node, b: Node, factor: float) -> Node:
        """Σ a cos θ + factor · Σ b sin θ."""
        terms = []
        if not (a.op == "constant" and a.attrs[0] == 0):
            terms.append(ir.reduction("sum", a * cosine, {axis}))
        if not (b.op == "constant" and b.attrs[0] == 0):
            terms.append(factor * ir.reduction("sum", b * sine, {axis}))
        return sum(terms[1:], terms[0]) if terms else ir.constant(0.0)

    by = ir.elementwise("pow", size, scale) if scale not in (0, 1) else size
    dims = (*real.dims[:dim], (new,), *real.dims[dim + 1 :])
    made = (transformed(real.node, imag.node, -sign), transformed(imag.node, real.node, sign))
    return Complex(*(Tensor(n / by if scale and n.op != "constant" else n, dims) for n in made))


def _waves(position: Node, frequency: Node, size: Node) -> tuple[Node, Node]:
    """cos and sin of 2π · position · frequency / size, with whole turns taken off before they cost digits."""
    product = ir.as_kind(position, Kind.FLOAT) * ir.as_kind(frequency, Kind.FLOAT)
    turns = product - size * ir.elementwise("floor", product / size)
    angle = turns * (2.0 * math.pi / size)
    return ir.elementwise("cos", angle), ir.elementwise("sin", angle)


def real_inverse(imp: Importer, x: Any, dims: Sequence[int], counts: Sequence[int], *, scale: float = 0.0) -> Tensor:
    """The real value of `counts` entries (one for each recording) whose half of frequencies, along the last of `dims`, is x."""
    value = fourier(imp, x, dims[:-1], inverse=True, scale=scale)
    real, imag = parts(imp, value)
    dim = dims[-1]
    real = imp.own_axis(real, dim)
    (axis,) = real.dims[dim]
    taken = {a for d in real.dims for a in d} | real.node.axes | imag.node.axes
    source = imp.sources.get(axis.rstrip("'"))
    if source and source[1] == "_frequency_half" and tuple(imp.sizes_of(source[0])) == tuple(counts):
        new, length = imp.unused(source[0], taken), None
    elif len(set(counts)) == 1:
        new = imp.unused(imp.derived(f"time{counts[0]}", counts, ir.constant(float(counts[0]))), taken)
        length = counts[0]
    else:
        raise Refused(
            "an inverse Fourier transform to a size that is not that of the transformed array; give it the same size"
        )
    size = imp.size(new)
    frequency = ir.as_kind(ir.iota(axis), Kind.FLOAT)
    twice = ir.elementwise("and", ir.elementwise("gt", frequency, 0.0), ir.elementwise("lt", frequency * 2.0, size))
    cosine, sine = _waves(ir.iota(axis), ir.iota(new, length), size)
    weight = ir.where(twice, 2.0, 1.0)
    node = ir.reduction("sum", real.node * (weight * cosine), {axis})
    if axis in imag.node.axes:
        node = node - ir.reduction("sum", imag.node * (weight * sine), {axis})
    by = ir.elementwise("pow", size, scale) if scale not in (0, 1) else size
    return Tensor(node / by if scale else node, (*real.dims[:dim], (new,), *real.dims[dim + 1 :]))
