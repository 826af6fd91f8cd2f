"""What NumPy's operations mean: those that `numpy_composites` does not put down to others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lossforge.frontends import spectral, windows
from lossforge.frontends.approximations import NAMED
from lossforge.frontends.numpy_composites import SINGULAR
from lossforge.frontends.positional import Importer, Refused, Rule, Tensor, rule_for, slice_ends
from lossforge.frontends.recording import Ref, Step, Varying
from lossforge.frontends.rules import arithmetic, kind_of
from lossforge.ir import Kind


def _logical(op: str) -> Rule:
    def rule(imp: Importer, step: Step, *args: Any) -> Tensor:
        if step.dtypes[0] != "bool":
            raise Refused("bits of integers; use arithmetic, or comparisons")
        return imp.elementwise(op, *(imp.cast(a, Kind.BOOL) for a in args))

    return rule


def _formula(function: Callable[..., Any]) -> Rule:
    return lambda imp, step, *args: imp.map(function, *args)


def _given(imp: Importer, step: Step, name: str, default: Any = None) -> Any:
    value = step.attrs.get(name, default)
    return imp.values[value.index] if isinstance(value, Ref) else value


def _unknown_options(step: Step, known: str) -> None:
    for name, value in step.attrs.items():
        if name not in known.split() and value is not None:
            raise Refused(f"the option {name!r}; leave it out, and write what it does with further operations")


def _reduce(op: str) -> Rule:
    def rule(imp: Importer, step: Step) -> Tensor:
        _unknown_options(step, "a axis keepdims dtype")
        result = imp.reduce(op, _given(imp, step, "a"), step.attrs.get("axis"), bool(step.attrs.get("keepdims", False)))
        return imp.cast(result, kind_of(step.dtypes[0]))

    return rule


def _var(root: bool) -> Rule:
    def rule(imp: Importer, step: Step) -> Tensor:
        _unknown_options(step, "a axis keepdims dtype ddof correction")
        correction = step.attrs.get("ddof", 0) or step.attrs.get("correction", 0)
        keep = bool(step.attrs.get("keepdims", False))
        found = imp.var(_given(imp, step, "a"), step.attrs.get("axis"), correction, keep)
        return imp.elementwise("sqrt", found) if root else found

    return rule


def _logsumexp(imp: Importer, step: Step, x: Any) -> Tensor:
    return imp.reduce("logsumexp", x, step.attrs["axis"], bool(step.attrs["keepdims"]))


def _shape(imp: Importer, step: Step) -> Tensor:
    x = _given(imp, step, "a", step.attrs.get("x"))
    return imp.reshape(x, step.shapes[0])


def _squeeze(imp: Importer, step: Step) -> Tensor:
    t = imp.tensor(_given(imp, step, "a"))
    axis = step.attrs.get("axis")
    return imp.squeeze(t, None if axis is None else imp.dims(t, axis))


def _expand_dims(imp: Importer, step: Step) -> Tensor:
    t = imp.tensor(_given(imp, step, "a"))
    axis = step.attrs["axis"]
    rank = len(step.shapes[0][0])
    for d in sorted(a + rank if a < 0 else a for a in (axis if isinstance(axis, tuple) else (axis,))):
        t = imp.unsqueeze(t, d)
    return t


def _broadcast(imp: Importer, step: Step) -> Tensor:
    return imp.expand(_given(imp, step, "array"), step.shapes[0])


def _transpose(imp: Importer, step: Step) -> Tensor:
    t = imp.tensor(_given(imp, step, "a"))
    axes = step.attrs.get("axes")
    return imp.permute(t, range(t.rank)[::-1] if axes is None else axes)


def _getitem(imp: Importer, step: Step, x: Any, *keys: Any) -> Tensor:
    t = imp.tensor(x)
    dots = [i for i, k in enumerate(keys) if isinstance(k, str) and k == "..."]
    used = sum(1 for k in keys if k is not None) - len(dots)
    full = (("slice", None, None, None),) * (t.rank - used)
    at = dots[0] if dots else len(keys)
    d = 0
    arrays: list[tuple[int, Tensor]] = []
    for key in (*keys[:at], *full, *keys[at + len(dots) :]):
        if key is None:
            t = imp.unsqueeze(t, d)
            d += 1
        elif isinstance(key, tuple):
            t = _slice(imp, t, d, key)
            d += 1
        elif isinstance(key, int | Varying) and not isinstance(key, bool) and not _is_array(key):
            t = imp.select(t, d, key)
        else:
            arrays.append((d, imp.tensor(key)))
            d += 1
    return imp.index(t, arrays) if arrays else t


def _is_array(key: Any) -> bool:
    return isinstance(key, Varying) and not isinstance(key.values[0], int)


def _slice(imp: Importer, t: Tensor, d: int, key: tuple[Any, ...]) -> Tensor:
    _, start, stop, step = key
    by = 1 if step is None else imp.integer(step)
    n = imp.extents(t.dims[d])
    if by == -1 and start is None and stop is None:
        return imp.along("flip", t, d)
    if by < 0:
        raise Refused("a slice with a negative step and ends; use np.flip, then a slice")
    return imp.slice(t, d, slice_ends(start, 0, n), slice_ends(stop, None, n), by)


def _where(imp: Importer, step: Step, c: Any, x: Any, y: Any) -> Tensor:
    return imp.cast(imp.elementwise("where", imp.cast(c, Kind.BOOL), x, y), kind_of(step.dtypes[0]))


def _clip(imp: Importer, step: Step, *args: Any) -> Tensor:
    if args:
        x, low, high = args
    else:
        x, low, high, low_, high_ = (_given(imp, step, k) for k in ("a", "a_min", "a_max", "min", "max"))
        low, high = low if low is not None else low_, high if high is not None else high_
    t = imp.tensor(x)
    if low is not None:
        t = imp.elementwise("maximum", t, low)
    t = t if high is None else imp.elementwise("minimum", t, high)
    return imp.cast(t, kind_of(step.dtypes[0]))


def _scan(imp: Importer, step: Step, x: Any) -> Tensor:
    t = imp.tensor(x)
    return imp.cast(imp.scan(step.attrs["op"], t, imp.dim(t, step.attrs["axis"])), kind_of(step.dtypes[0]))


def _flip(imp: Importer, step: Step) -> Tensor:
    t = imp.tensor(_given(imp, step, "m"))
    for d in imp.dims(t, step.attrs.get("axis")):
        t = imp.along("flip", t, d)
    return t


def _sort(imp: Importer, step: Step) -> Tensor:
    t = imp.tensor(_given(imp, step, "a"))
    axis = step.attrs.get("axis", -1)
    if axis is None:
        t, axis = imp.reshape(t, [(math_product(s),) for s in zip(*map(imp.extents, t.dims), strict=True)]), 0
    return imp.sort(t, imp.dim(t, axis))[step.op == "np.argsort"]


def math_product(numbers: Sequence[int]) -> int:
    """The product of whole numbers."""
    result = 1
    for n in numbers:
        result *= n
    return result


def _take(imp: Importer, step: Step) -> Tensor:
    t = imp.tensor(_given(imp, step, "a"))
    axis = step.attrs.get("axis")
    if axis is None:
        if t.rank > 1:
            raise Refused("np.take without an axis of an array of several dimensions; give axis=")
        axis = 0
    index = _given(imp, step, "indices")
    if isinstance(index, int | Varying) and not _is_array(index):
        return imp.select(t, imp.dim(t, axis), index)
    if isinstance(index, tuple):
        return imp.pick(t, imp.dim(t, axis), index)
    return imp.take(t, index, imp.dim(t, axis))


def _along_axis(imp: Importer, step: Step) -> Tensor:
    t, at = imp.tensor(_given(imp, step, "arr")), imp.tensor(_given(imp, step, "indices"))
    axis = step.attrs.get("axis", -1)
    if axis is None:
        raise Refused("np.take_along_axis without an axis; give axis=")
    d = imp.dim(t, axis)
    t = imp.single(t, d)
    return imp.gather((Tensor(t.node, (*t.dims[:d], (), *t.dims[d + 1 :])), t.dims[d]), at, d)


def _concatenate(imp: Importer, step: Step, *parts: Any) -> Tensor:
    return imp.cast(imp.concat(list(parts), step.attrs["axis"]), kind_of(step.dtypes[0]))


def _arange(imp: Importer, step: Step, start: Any, by: Any) -> Tensor:
    counter = imp.arange([s[0] for s in step.shapes[0]])
    kind = kind_of(step.dtypes[0])
    result = imp.cast(counter, kind)
    if by != 1:
        result = imp.elementwise("mul", result, by)
    return imp.cast(result if start == 0 else imp.elementwise("add", result, start), kind)


def _put(imp: Importer, step: Step, x: Any, value: Any, *places: Any) -> Tensor:
    """One entry, or row, replaced."""
    t = imp.tensor(x)
    here: Tensor | None = None
    for d, place in enumerate(places):
        counter = imp.arange([s[d] for s in step.shapes[0]])
        position = Tensor(counter.node, tuple(counter.dims[0] if i == d else () for i in range(t.rank)))
        equal = imp.elementwise("eq", position, place)
        here = equal if here is None else imp.elementwise("and", here, equal)
    return imp.cast(imp.elementwise("where", here, value, t), kind_of(step.dtypes[0]))


def _eye(imp: Importer, step: Step) -> Tensor:
    rows, columns = (imp.arange([s[d] for s in step.shapes[0]]) for d in (0, 1))
    same = imp.elementwise("eq", imp.unsqueeze(rows, 1), imp.unsqueeze(columns, 0))
    return imp.cast(same, kind_of(step.dtypes[0]))


def _one_hot(imp: Importer, step: Step, index: Any) -> Tensor:
    depth = step.attrs["depth"]
    counter = imp.arange(list(depth.values) if isinstance(depth, Varying) else [depth] * imp.count)
    t = imp.tensor(index)
    return imp.cast(imp.elementwise("eq", counter, imp.unsqueeze(t, t.rank)), kind_of(step.dtypes[0]))


def _correlation(imp: Importer, step: Step, x: Any, kernel: Any) -> Tensor:
    """The correlation of a padded array and a kernel of as many dimensions."""
    t = windows.pad(imp, x, step.attrs["widths"], step.attrs["mode"], step.attrs["value"])
    one, rank = (1,) * t.rank, t.rank
    image, taps = (imp.unsqueeze(imp.unsqueeze(v, 0), 0) for v in (t, kernel))
    found = windows.convolve(imp, image, taps, stride=one, padding=((0, 0),) * rank, dilation=one)
    return Tensor(found.node, found.dims[2:])


def _root(imp: Importer, step: Step, x: Any, exponent: Any = 0.5) -> Tensor:
    """A power below 1, with slope 0 where it is 0, as a norm has it; there is none for what the operand is made of."""
    if not (isinstance(exponent, int | float) and 0 < exponent < 1):
        return RULES["power"](imp, step, x, exponent)
    zero = imp.elementwise("eq", x, 0.0)
    inner = imp.elementwise("where", zero, 1.0, x)
    found = imp.elementwise("sqrt", inner) if exponent == 0.5 else imp.elementwise("pow", inner, exponent)
    return imp.elementwise("where", zero, 0.0, found)


def _matrix(op: str) -> Rule:
    return lambda imp, step, x: imp.matrix(op, x)


_PLAIN = {
    "exp": "exp", "log": "log", "log1p": "log1p", "expm1": "expm1", "sqrt": "sqrt", "sin": "sin", "cos": "cos", "tan": "tan",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arctan2": "atan2", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh",
    "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "floor": "floor", "ceil": "ceil", "rint": "round",
    "logaddexp": "logaddexp", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "equal": "eq",
    "not_equal": "ne", "divide": "div", "true_divide": "div", "expit": "sigmoid", "log_expit": "log_sigmoid",
    "gammaln": "lgamma", "loggamma": "lgamma", "psi": "digamma", "digamma": "digamma", "erf": "erf", "erfc": "erfc",
}  # fmt: skip


def _fourier(imp: Importer, step: Step) -> Any:
    """A transform of ``np.fft``, by its name."""
    name = step.op.removeprefix("np.")
    if any(step.attrs.get(k) is not None for k in ("n", "s")) and not name.startswith("ir"):
        raise Refused("a Fourier transform of another length than its operand's; pad or cut it before")
    value = spectral.complex_of(imp, _given(imp, step, "a"))
    rank = value.real.rank
    axes = step.attrs.get("axes", (-2, -1) if name.endswith("2") else None)
    if "axis" in step.attrs or not name.endswith(("2", "n")):
        axes = (step.attrs.get("axis", -1),)
    dims = [d % rank for d in (range(rank) if axes is None else axes)]
    inverse = name.lstrip("r").startswith("i")
    scales = {
        None: 1.0 if inverse else 0.0,
        "backward": 1.0 if inverse else 0.0,
        "ortho": 0.5,
        "forward": 0.0 if inverse else 1.0,
    }
    scale = scales[step.attrs.get("norm")]
    if name.startswith("ir"):
        return spectral.real_inverse(imp, value, dims, [s[dims[-1]] for s in step.shapes[0]], scale=scale)
    return spectral.fourier(imp, value, dims, inverse=inverse, half=name.startswith("r"), scale=scale)


_REAL: Mapping[str, Rule] = {
    **{k: rule_for(v) for k, v in _PLAIN.items()},
    **{k: arithmetic(v) for k, v in {
        "add": "add", "subtract": "sub", "multiply": "mul", "negative": "neg", "absolute": "abs", "fabs": "abs", "sign": "sign",
        "maximum": "maximum", "minimum": "minimum", "fmax": "maximum", "fmin": "minimum", "power": "pow",
        "float_power": "pow"}.items()},
    **{k: _logical(v) for k, v in {
        "logical_and": "and", "logical_or": "or", "logical_not": "not", "bitwise_and": "and", "bitwise_or": "or",
        "bitwise_xor": "ne", "invert": "not"}.items()},
    **{k: _formula(v) for k, v in NAMED.items()},
    "inverse": _matrix("inverse"), "logdet": _matrix("logdet"), "detsign": _matrix("detsign"), "det": lambda imp, step, x: imp.determinant(x),
    "cholesky": _matrix("cholesky"), "eigenvalues": _matrix("eigenvalues"), "eigenvectors": _matrix("eigenvectors"),
    **{k: (lambda imp, step, x, i=i: imp.singular(x)[i]) for i, k in enumerate(SINGULAR)},
    "square": _formula(lambda x: x * x), "reciprocal": _formula(lambda x: 1.0 / x),
    "positive": lambda imp, step, x: imp.tensor(x), "clip": _clip, "getitem": _getitem,
    "astype": lambda imp, step, x: imp.cast(x, kind_of(step.dtypes[0])), "constant": lambda imp, step, x: imp.tensor(x),
    "arange": _arange, "put": _put, "eye": _eye, "one_hot": _one_hot, "full": lambda imp, step, x: imp.cast(
        imp.full(x, step.shapes[0]), kind_of(step.dtypes[0])),
    "logsumexp": _logsumexp, "scan": _scan, "where": _where, "concatenate": _concatenate,
    "correlation": _correlation,
    "einsum": lambda imp, step, spec, *operands: imp.einsum(spec, *operands),
    "roll": lambda imp, step, x: imp.roll(x, step.attrs["axis"], imp.integer(step.attrs["shift"])),
    **{f"np.{k}": _reduce(k) for k in ("sum", "mean", "max", "min", "prod", "any", "all", "argmax", "argmin")},
    "np.var": _var(False), "np.std": _var(True), "np.clip": _clip, "np.reshape": _shape, "np.ravel": _shape,
    "np.squeeze": _squeeze, "np.expand_dims": _expand_dims, "np.transpose": _transpose, "np.broadcast_to": _broadcast,
    "np.flip": _flip, "np.sort": _sort, "np.argsort": _sort, "np.take": _take, "np.take_along_axis": _along_axis,
}  # fmt: skip

_MEANINGS: Mapping[str, Rule] = {
    **{numpy: spectral.ARITHMETIC[op] for numpy, op in {
        "add": "add", "subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div", "negative": "neg",
        "square": "square", "absolute": "abs", "exp": "exp", "real": "real", "imag": "imag", "conjugate": "conj",
        "angle": "angle"}.items()},
    **{f"np.{k}": _fourier for k in "fft ifft rfft irfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn".split()},
}  # fmt: skip
_LINEAR = frozenset(
    "getitem concatenate full np.sum np.mean np.reshape np.ravel np.squeeze np.expand_dims np.transpose np.broadcast_to "
    "np.flip positive roll".split()
)
RULES: Mapping[str, Rule] = {
    **spectral.with_complex(_REAL, _MEANINGS, _LINEAR, "float32"),
    **{op: rule for op, rule in _MEANINGS.items() if op not in _REAL},
}
AT_ZERO: Mapping[str, Rule] = {"sqrt": _root, "power": _root, "float_power": _root}
"""Roots of distances between equal points, whose slope is infinite but for the chain rule."""
