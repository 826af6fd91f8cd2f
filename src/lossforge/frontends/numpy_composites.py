"""Functions of NumPy and SciPy in terms of simpler ones.

Each is what its documentation says, written with the NumPy functions that `numpy_operations` knows; it runs on
recorders, so that its steps are written down in its place. What would need values (how many entries are true) or a
decomposition (singular values) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lossforge.frontends.numpy_recorder import Nonzero, Recorder, Selection, active, decided, plain, refuse

_MOST_WINDOWS = 64
"""Entries of a window that slides along an array: each is a slice."""


def _dim(x: Any, axis: int) -> int:
    return axis + np.ndim(x) if axis < 0 else axis


def _listed(value: Any) -> list[int]:
    return [int(value)] if np.ndim(value) == 0 else [int(v) for v in value]


def _unset(value: Any) -> bool:
    return value is None or value is np._NoValue


# ------------------------------------------------------------------------------------- at each entry

UFUNCS: Mapping[str, Callable[..., Any]] = {
    "log2": lambda x: np.log(x) / math.log(2),
    "log10": lambda x: np.log(x) / math.log(10),
    "exp2": lambda x: np.exp(x * math.log(2)),
    "exp10": lambda x: np.exp(x * math.log(10)),
    "cbrt": lambda x: np.sign(x) * np.abs(x) ** (1 / 3),
    "hypot": lambda x, y: np.sqrt(x * x + y * y),
    "isnan": lambda x: x != x,
    "isfinite": lambda x: np.abs(x) < math.inf,
    "isinf": lambda x: np.abs(x) == math.inf,
    "signbit": lambda x: x < 0,
    "copysign": lambda x, y: np.abs(x) * np.where(y < 0, -1.0, 1.0),
    "heaviside": lambda x, at: np.where(x < 0, 0.0, np.where(x > 0, 1.0, at)),
    "remainder": lambda x, y: x - y * np.floor(x / y),
    "fmod": lambda x, y: x - y * np.trunc(x / y),
    "floor_divide": lambda x, y: np.floor(x / y),
    "trunc": lambda x: np.sign(x) * np.floor(np.abs(x)),
    "deg2rad": lambda x: x * (math.pi / 180),
    "radians": lambda x: x * (math.pi / 180),
    "rad2deg": lambda x: x * (180 / math.pi),
    "degrees": lambda x: x * (180 / math.pi),
    "logaddexp2": lambda x, y: np.logaddexp(x * math.log(2), y * math.log(2)) / math.log(2),
    "logical_xor": lambda x, y: np.not_equal(x, y),
    "matmul": lambda a, b: matmul(a, b),
    "matvec": lambda a, b: matmul(a, b[..., None])[..., 0],
    "vecdot": lambda a, b: np.sum(a * b, axis=-1),
    # SciPy's
    "logit": lambda x: np.log(x) - np.log1p(-x),
    "xlogy": lambda x, y: np.where(x == 0, 0.0, x * np.log(y)),
    "xlog1py": lambda x, y: np.where(x == 0, 0.0, x * np.log1p(y)),
    "entr": lambda x: np.where(x > 0, -x * np.log(x), 0.0),
    "rel_entr": lambda x, y: np.where(x > 0, x * np.log(x / y), 0.0),
    "kl_div": lambda x, y: np.where(x > 0, x * np.log(x / y), 0.0) - x + y,
    "huber": lambda d, r: np.where(np.abs(r) <= d, 0.5 * r * r, d * (np.abs(r) - 0.5 * d)),
    "pseudo_huber": lambda d, r: d * d * (np.sqrt(1 + (r / d) ** 2) - 1),
    "betaln": lambda a, b: _lgamma(a) + _lgamma(b) - _lgamma(a + b),
    "beta": lambda a, b: gamma(a) * gamma(b) / gamma(a + b),
    "gamma": lambda x: gamma(x),
    "ndtr": lambda x: 0.5 * special("erfc", -x / math.sqrt(2)),
    "log_ndtr": lambda x: _log_ndtr(x),
    "boxcox": lambda x, k: np.where(k == 0, np.log(x), np.expm1(k * np.log(x)) / np.where(k == 0, 1.0, k)),
    "softplus": lambda x: np.logaddexp(x, 0.0),
    "exprel": lambda x: np.where(x == 0, 1.0, np.expm1(x) / np.where(x == 0, 1.0, x)),
}  # fmt: skip


def special(name: str, x: Any) -> Any:
    """A ufunc of ``scipy.special``."""
    import scipy.special

    return getattr(scipy.special, name)(x)


def _lgamma(x: Any) -> Any:
    return special("gammaln", x)


def gamma(x: Any) -> Any:
    """Γ(x); below 0 by its reflection, Γ(x) Γ(1 − x) = π / sin πx."""
    negative = x < 0
    right = np.exp(_lgamma(np.where(negative, 1 - x, x)))
    return np.where(negative, math.pi / np.where(negative, np.sin(math.pi * x) * right, 1.0), right)


def _log_ndtr(x: Any) -> Any:
    """log Φ(x); far to the left by its asymptotic series (Abramowitz and Stegun 26.2.12)."""
    far = np.minimum(x, -8.0)
    square = far * far
    series = np.log1p((-1 + (3 - 15 / square) / square) / square)
    left = -0.5 * square - np.log(-far) - 0.5 * math.log(2 * math.pi) + series
    return np.where(x < -8.0, left, np.log(0.5 * special("erfc", -np.maximum(x, -8.0) / math.sqrt(2))))


# ------------------------------------------------------------------------------------- ufuncs along an axis


def logsumexp(a: Any, axis: Any = None, b: Any = None, keepdims: bool = False, return_sign: bool = False) -> Any:
    """SciPy's log of a sum of exponentials, with factors `b`."""
    if return_sign:
        refuse("logsumexp with return_sign")
    if b is not None:
        a = a + np.log(b)
    value = np.max(plain(a), axis=axis, keepdims=keepdims)
    return a.tape.note("logsumexp", (a,), {"axis": axis, "keepdims": keepdims}, value)


def softmax(x: Any, axis: Any = None) -> Any:
    """SciPy's softmax."""
    return np.exp(log_softmax(x, axis))


def log_softmax(x: Any, axis: Any = None) -> Any:
    """SciPy's log_softmax."""
    return x - logsumexp(x, axis, keepdims=True)


def _scan(op: str) -> Callable[..., Any]:
    functions = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum, "logsumexp": np.logaddexp}

    def scan(a: Any, axis: int | None = 0, **options: Any) -> Any:
        if any(not _unset(v) for v in options.values()):
            refuse(f"the option {next(iter(options))!r}")
        if axis is None:
            a, axis = np.ravel(a), 0
        value = functions[op].accumulate(plain(a), axis=axis)
        return a.tape.note("scan", (a,), {"op": op, "axis": axis}, value)

    return scan


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, axis=0, dtype=None, **options: function(a, axis=axis, **options)


REDUCTIONS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("add", "reduce"): _reduction(np.sum), ("multiply", "reduce"): _reduction(np.prod),
    ("maximum", "reduce"): _reduction(np.max), ("minimum", "reduce"): _reduction(np.min),
    ("logical_and", "reduce"): _reduction(np.all), ("logical_or", "reduce"): _reduction(np.any),
    ("logaddexp", "reduce"): _reduction(logsumexp), ("add", "at"): lambda *args: _add_at(*args),
    ("add", "accumulate"): _scan("sum"), ("multiply", "accumulate"): _scan("prod"),
    ("maximum", "accumulate"): _scan("max"), ("minimum", "accumulate"): _scan("min"),
    ("logaddexp", "accumulate"): _scan("logsumexp"),
}  # fmt: skip


# ------------------------------------------------------------------------------------- statistics


def _average(a: Any, axis: Any = None, weights: Any = None, returned: bool = False, *, keepdims: Any = False) -> Any:
    keep = False if _unset(keepdims) else bool(keepdims)
    if returned:
        refuse("np.average with returned=True")
    if weights is None:
        return np.mean(a, axis=axis, keepdims=keep)
    if np.ndim(weights) != np.ndim(a):
        at = _dim(a, axis)
        weights = np.reshape(weights, tuple(-1 if i == at else 1 for i in range(np.ndim(a))))
    weights = weights * np.ones_like(a)
    return np.sum(a * weights, axis=axis, keepdims=keep) / np.sum(weights, axis=axis, keepdims=keep)


def _nansum(a: Any, axis: Any = None, **options: Any) -> Any:
    return np.sum(np.where(np.isnan(a), 0.0, a), axis=axis, **options)


def _nanmean(a: Any, axis: Any = None, **options: Any) -> Any:
    return _nansum(a, axis, **options) / np.sum(np.where(np.isnan(a), 0.0, 1.0), axis=axis, **options)


def _nanvar(a: Any, axis: Any = None, ddof: int = 0, **options: Any) -> Any:
    count = np.sum(np.where(np.isnan(a), 0.0, 1.0), axis=axis, **options)
    centred = a - _nanmean(a, axis, keepdims=True)
    return _nansum(centred * centred, axis, **options) / (count - ddof)


def _nan_to_num(x: Any, copy: bool = True, nan: float = 0.0, posinf: Any = None, neginf: Any = None) -> Any:
    largest = float(np.finfo(np.float32).max)
    x = np.where(np.isnan(x), nan, x)
    x = np.where(x == math.inf, largest if posinf is None else posinf, x)
    return np.where(x == -math.inf, -largest if neginf is None else neginf, x)


def _quantile(a: Any, q: Any, axis: Any = None, *rest: Any, keepdims: bool = False, **options: Any) -> Any:
    """Linear interpolation between the sorted entries: weights max(0, 1 − |i − q (n − 1)|) on entry i."""
    if rest or options.get("method", "linear") != "linear" or options.get("weights") is not None:
        refuse("np.quantile with options")
    if np.ndim(q):
        return np.stack([_quantile(a, p, axis, keepdims=keepdims) for p in q])
    shape = np.shape(a)
    if axis is None:
        a, axis = np.ravel(a), 0
    axis = _dim(a, axis)
    ordered, n = np.sort(a, axis=axis), np.shape(a)[axis]
    weight = np.maximum(0.0, 1 - np.abs(active().counting(n) - q * (n - 1)))
    weight = np.reshape(weight, tuple(-1 if i == axis else 1 for i in range(np.ndim(a))))
    result = np.sum(ordered * weight, axis=axis, keepdims=keepdims)
    return np.reshape(result, (1,) * len(shape)) if keepdims and np.ndim(result) != len(shape) else result


def _median(a: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False, keepdims: bool = False) -> Any:
    return _quantile(a, 0.5, axis, keepdims=keepdims)


def _cov(m: Any, y: Any = None, rowvar: bool = True, bias: bool = False, ddof: Any = None, **options: Any) -> Any:
    if options:
        refuse("np.cov with weights")
    rows = [np.atleast_2d(x) if rowvar or np.ndim(x) == 1 else np.transpose(x) for x in (m, y) if x is not None]
    x = np.concatenate(rows, axis=0) if len(rows) > 1 else rows[0]
    n = np.shape(x)[1]
    x = x - np.mean(x, axis=1, keepdims=True)
    result = x @ np.transpose(x) / (n - ((0 if bias else 1) if ddof is None else ddof))
    return np.squeeze(result) if np.shape(result) == (1, 1) else result


def _corrcoef(x: Any, y: Any = None, rowvar: bool = True, **options: Any) -> Any:
    c = _cov(x, y, rowvar)
    spread = np.sqrt(np.diagonal(c))
    return c / spread[:, None] / spread[None, :]


def _masked(function: Callable[..., Any], rest: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction with `where=`."""

    def reduce(a: Any, axis: Any = None, *args: Any, where: Any = True, initial: Any = None, **options: Any) -> Any:
        options = {k: v for k, v in options.items() if v is not np._NoValue and v is not None}
        if not _unset(initial):
            refuse(f"np.{function.__name__} with initial")
        if where is True or where is np._NoValue:
            return _recorded(function, a, axis, *args, **options)
        return rest(a, np.broadcast_to(where, np.shape(a)), axis, **options)

    return reduce


def _recorded(function: Any, a: Any, axis: Any, *args: Any, **options: Any) -> Any:
    if args and args[0] is not None:
        options["dtype"] = args[0]
    value = function(plain(a), axis=axis, **options)
    return a.tape.note(f"np.{function.__name__}", (), {"a": a, "axis": axis, **options}, value)


# ------------------------------------------------------------------------------------- products


def _outer(a: Any, b: Any, out: Any = None) -> Any:
    return np.ravel(a)[:, None] * np.ravel(b)[None, :]


def _inner(a: Any, b: Any) -> Any:
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return a * b
    return np.tensordot(a, b, axes=([np.ndim(a) - 1], [np.ndim(b) - 1]))


def _dot(a: Any, b: Any, out: Any = None) -> Any:
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return a * b
    return np.tensordot(a, b, axes=([np.ndim(a) - 1], [max(np.ndim(b) - 2, 0)]))


def _vdot(a: Any, b: Any) -> Any:
    return np.sum(np.ravel(a) * np.ravel(b))


def _tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    if isinstance(axes, int):
        axes = (range(np.ndim(a) - axes, np.ndim(a)), range(axes))
    left, right = ([_dim(x, i) for i in _listed(over)] for x, over in zip((a, b), axes, strict=True))
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    one = [next(letters) for _ in range(np.ndim(a))]
    two = [next(letters) for _ in range(np.ndim(b))]
    for i, j in zip(left, right, strict=True):
        two[j] = one[i]
    kept = [c for i, c in enumerate(one) if i not in left] + [c for j, c in enumerate(two) if j not in right]
    return np.einsum(f"{''.join(one)},{''.join(two)}->{''.join(kept)}", a, b)


def matmul(a: Any, b: Any) -> Any:
    """A product of matrices, vectors, or stacks of them."""
    m, n = np.ndim(a), np.ndim(b)
    stack = "abcdefgh"[: max(m, n, 2) - 2]
    left = stack[len(stack) - max(m - 2, 0) :] + ("ik" if m > 1 else "k")
    right = stack[len(stack) - max(n - 2, 0) :] + ("kj" if n > 1 else "k")
    return np.einsum(f"{left},{right}->{stack}{'i' * (m > 1)}{'j' * (n > 1)}", a, b)


def _einsum(*operands: Any, **options: Any) -> Any:
    if not isinstance(operands[0], str):
        refuse("np.einsum with lists of axes; give a text such as 'ij,jk->ik'")
    spec, arrays = operands[0].replace(" ", ""), list(operands[1:])
    left, arrow, right = spec.partition("->")
    parts = left.split(",")
    if "." in spec:
        free = [c for c in "ZYXWVUTSRQPONMLKJIHGFEDCBA" if c not in spec]
        width = max(np.ndim(x) - len(p.replace("...", "")) for p, x in zip(parts, arrays, strict=True) if "." in p)
        dots = "".join(free[:width])
        parts = [
            p.replace("...", dots[width - (np.ndim(x) - len(p.replace("...", ""))) :] if "." in p else "")
            for p, x in zip(parts, arrays, strict=True)
        ]
        right = right.replace("...", dots) if arrow else right
    if not arrow:
        joined = "".join(parts)
        right = "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    for k, part in enumerate(parts):
        for letter in sorted({c for c in part if part.count(c) > 1}):  # a diagonal
            i, j = (d for d, c in enumerate(parts[k]) if c == letter)
            arrays[k] = np.diagonal(arrays[k], axis1=i, axis2=j)
            parts[k] = parts[k].replace(letter, "") + letter
    value = np.einsum(f"{','.join(parts)}->{right}", *map(plain, arrays))
    tape = next(x.tape for x in arrays if type(x) is Recorder)
    return tape.note("einsum", (f"{','.join(parts)}->{right}", *arrays), {}, value)


def _kron(a: Any, b: Any) -> Any:
    if np.ndim(a) != np.ndim(b) or np.ndim(a) not in (1, 2):
        refuse("np.kron of arrays of other ranks than 1 and 2")
    shape = [n * m for n, m in zip(np.shape(a), np.shape(b), strict=True)]
    if np.ndim(a) == 1:
        return np.reshape(a[:, None] * b[None, :], shape)
    return np.reshape(a[:, None, :, None] * b[None, :, None, :], shape)


def _cross(a: Any, b: Any, *axes: Any, axis: Any = None, **options: Any) -> Any:
    if axes or options or axis not in (None, -1) or np.shape(a)[-1] != 3 or np.shape(b)[-1] != 3:
        refuse("np.cross of other vectors than three-dimensional ones along the last axis")
    (a0, a1, a2), (b0, b1, b2) = ([x[..., i] for i in range(3)] for x in (a, b))
    return np.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], axis=-1)


def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    if axis is None and (ord is None or (ord == 2 and np.ndim(x) == 1)):
        total = np.sqrt(np.sum(x * x))
        return np.reshape(total, (1,) * np.ndim(x)) if keepdims else total
    axes = tuple(range(np.ndim(x))) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    if len(axes) == 2:
        if ord in (None, "fro"):
            return np.sqrt(np.sum(x * x, axis=axes, keepdims=keepdims))
        if ord in (1, math.inf, -1, -math.inf) and not keepdims:
            rows, columns = (_dim(x, i) for i in axes)
            over, rest = (rows, columns) if abs(ord) == 1 else (columns, rows)
            sums = np.sum(np.abs(x), axis=over)
            return (np.max if ord > 0 else np.min)(sums, axis=rest - (over < rest))
        if ord in ("nuc", 2, -2) and not keepdims:
            values = _matrix("singular")(_moveaxis(x, axes, (-2, -1)))
            return (np.sum if ord == "nuc" else np.max if ord == 2 else np.min)(values, axis=-1)
        refuse(f"np.linalg.norm of matrices with ord={ord!r}")
    if ord in (None, 2):
        return np.sqrt(np.sum(x * x, axis=axes, keepdims=keepdims))
    if ord == 1:
        return np.sum(np.abs(x), axis=axes, keepdims=keepdims)
    if ord in (math.inf, -math.inf):
        return (np.max if ord > 0 else np.min)(np.abs(x), axis=axes, keepdims=keepdims)
    if ord == 0:
        return np.sum((x != 0) * 1.0, axis=axes, keepdims=keepdims)
    if isinstance(ord, str):
        refuse(f"np.linalg.norm with ord={ord!r}")
    return np.sum(np.abs(x) ** ord, axis=axes, keepdims=keepdims) ** (1 / ord)


def _matrix(op: str) -> Callable[[Any], Any]:
    """A function of ``np.linalg`` of matrices, by its name there or that of what it gives."""
    functions: dict[str, Callable[[Any], Any]] = {
        "inverse": np.linalg.inv,
        "cholesky": np.linalg.cholesky,
        "det": np.linalg.det,
        "detsign": lambda x: np.linalg.slogdet(x)[0],
        "logdet": lambda x: np.linalg.slogdet(x)[1],
        "eigenvalues": np.linalg.eigvalsh,
        "eigenvectors": lambda x: np.linalg.eigh(x)[1],
        **{k: lambda x, i=i: np.linalg.svd(x, full_matrices=False)[i] for i, k in enumerate(SINGULAR)},  # type: ignore[misc]
    }
    return lambda a: a.tape.note(op, (a,), {}, np.asarray(functions[op](plain(a))))


SINGULAR = ("left", "singular", "right")
"""The parts of a decomposition into singular values."""

_inv = _matrix("inverse")


def _eigh(a: Any, UPLO: str = "L") -> tuple[Any, Any]:
    a = a if UPLO.upper() == "L" else _swapaxes(a, -1, -2)
    return _matrix("eigenvalues")(a), _matrix("eigenvectors")(a)


def _svd(a: Any, full_matrices: bool = True, compute_uv: bool = True, hermitian: bool = False) -> Any:
    if not compute_uv:
        return _matrix("singular")(a)
    if full_matrices and np.shape(a)[-1] != np.shape(a)[-2]:
        refuse("np.linalg.svd with full_matrices=True")
    return tuple(_matrix(part)(a) for part in SINGULAR)


def _slogdet(a: Any) -> tuple[Any, Any]:
    return _matrix("detsign")(a), _matrix("logdet")(a)


def solve(a: Any, b: Any) -> Any:
    """The solution of a x = b, for one right side or several."""
    inverse = _inv(a) if type(a) is Recorder else np.linalg.inv(a)
    return matmul(inverse, b)


# ------------------------------------------------------------------------------------- shapes


def concatenate(arrays: Any, axis: Any = 0, out: Any = None, **options: Any) -> Any:
    """Arrays one after the other."""
    parts = [as_array(x) for x in arrays]
    if axis is None:
        parts, axis = [np.ravel(p) for p in parts], 0
    tape = next(p.tape for p in parts if type(p) is Recorder)
    return tape.note("concatenate", parts, {"axis": _dim(parts[0], axis)}, np.concatenate(plain(parts), axis=axis))


def as_array(value: Any) -> Any:
    """An array, or a list that may hold some."""
    if isinstance(value, list | tuple) and any(type(as_array(v)) is Recorder for v in value):
        return stack([as_array(v) for v in value])
    return value if type(value) is Recorder else np.asarray(value)


def stack(arrays: Any, axis: int = 0, out: Any = None, **options: Any) -> Any:
    """Arrays along a new axis."""
    parts = list(arrays)
    axis = axis + np.ndim(parts[0]) + 1 if axis < 0 else axis
    return np.concatenate([np.expand_dims(p, axis) for p in parts], axis=axis)


def _column_stack(arrays: Any) -> Any:
    return np.concatenate([x[:, None] if np.ndim(x) == 1 else x for x in arrays], axis=1)


def _hstack(arrays: Any, **options: Any) -> Any:
    parts = [np.atleast_1d(x) for x in arrays]
    return np.concatenate(parts, axis=0 if np.ndim(parts[0]) == 1 else 1)


def _moveaxis(a: Any, source: Any, destination: Any) -> Any:
    sources, targets = ([_dim(a, i) for i in _listed(x)] for x in (source, destination))
    order = [i for i in range(np.ndim(a)) if i not in sources]
    for target, i in sorted(zip(targets, sources, strict=True)):
        order.insert(target, i)
    return np.transpose(a, [int(i) for i in order])


def _swapaxes(a: Any, axis1: int, axis2: int) -> Any:
    order = list(range(np.ndim(a)))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return np.transpose(a, order)


def _split(a: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    axis = _dim(a, axis)
    n = np.shape(a)[axis]
    if isinstance(indices_or_sections, int):
        if n % indices_or_sections:
            raise ValueError("array split does not result in an equal division")
        ends = [n // indices_or_sections * k for k in range(1, indices_or_sections)]
    else:
        ends = [int(i) for i in indices_or_sections]
    before = (slice(None),) * axis
    return [a[(*before, slice(i, j))] for i, j in zip([0, *ends], [*ends, n], strict=True)]


def _repeat(a: Any, repeats: Any, axis: Any = None) -> Any:
    if not isinstance(repeats, int):
        refuse("np.repeat with an array of counts")
    if axis is None:
        a, axis = np.ravel(a), 0
    axis = _dim(a, axis)
    shape = np.shape(a)
    wide = np.broadcast_to(np.expand_dims(a, axis + 1), (*shape[: axis + 1], repeats, *shape[axis + 1 :]))
    return np.reshape(wide, (*shape[:axis], shape[axis] * repeats, *shape[axis + 1 :]))


def _tile(a: Any, reps: Any) -> Any:
    counts = [reps] if isinstance(reps, int) else list(reps)
    rank = max(len(counts), np.ndim(a))
    counts = [1] * (rank - len(counts)) + counts
    a = np.reshape(a, (1,) * (rank - np.ndim(a)) + np.shape(a))
    shape = np.shape(a)
    for d in range(rank):  # copies before entries, in each dimension that has several of both
        if counts[d] > 1 and shape[d] > 1:
            a = np.concatenate([a] * counts[d], axis=d)
    return np.broadcast_to(a, tuple(n * c for n, c in zip(shape, counts, strict=True)))


def _pad(array: Any, pad_width: Any, mode: str = "constant", **options: Any) -> Any:
    if (
        callable(mode)
        or mode not in ("constant", "edge", "reflect", "symmetric", "wrap")
        or set(options) - {"constant_values"}
    ):
        refuse(f"np.pad with mode={mode!r}")
    widths = np.broadcast_to(pad_width, (np.ndim(array), 2)).tolist()
    value = options.get("constant_values", 0)
    if np.ndim(value):
        refuse("np.pad with several constants")
    for d, (before, after) in enumerate(widths):
        if before or after:
            array = np.concatenate(
                [*_edge(array, d, before, mode, value, False), array, *_edge(array, d, after, mode, value, True)],
                axis=d,
            )
    return array


def _edge(x: Any, d: int, width: int, mode: str, value: Any, end: bool) -> list[Any]:
    if not width:
        return []
    lead = (slice(None),) * d
    if mode == "constant":
        shape = np.shape(x)
        return [np.broadcast_to(value + np.zeros_like(x[(*lead, slice(0, 1))]), (*shape[:d], width, *shape[d + 1 :]))]
    if mode == "edge":
        return [x[(*lead, slice(-1, None) if end else slice(0, 1))]] * width
    n, skip = np.shape(x)[d], 1 if mode == "reflect" else 0
    if width > n - skip:
        refuse(f"np.pad with mode={mode!r} wider than the array")
    if mode == "wrap":
        return [x[(*lead, slice(0, width) if end else slice(n - width, n))]]
    part = x[(*lead, slice(n - skip - width, n - skip) if end else slice(skip, skip + width))]
    return [np.flip(part, d)]


def _diff(a: Any, n: int = 1, axis: int = -1, prepend: Any = None, append: Any = None) -> Any:
    axis = _dim(a, axis)
    lead = (slice(None),) * axis

    def end(x: Any) -> list[Any]:
        return (
            []
            if _unset(x)
            else [np.broadcast_to(x, (*np.shape(a)[:axis], 1, *np.shape(a)[axis + 1 :])) if np.ndim(x) == 0 else x]
        )

    if end(prepend) or end(append):
        a = np.concatenate([*end(prepend), a, *end(append)], axis=axis)
    for _ in range(n):
        a = a[(*lead, slice(1, None))] - a[(*lead, slice(None, -1))]
    return a


def _sliding_window_view(x: Any, window_shape: Any, axis: Any = None, **options: Any) -> Any:
    widths = [window_shape] if isinstance(window_shape, int) else list(window_shape)
    axes = range(np.ndim(x)) if axis is None else [axis] if isinstance(axis, int) else axis
    if math.prod(widths) > _MOST_WINDOWS:
        refuse(f"windows of more than {_MOST_WINDOWS} entries")
    for width, at in zip(widths, [_dim(x, a) for a in axes], strict=True):
        lead, last = (slice(None),) * at, np.shape(x)[at] - width
        x = np.stack([x[(*lead, slice(i, last + i + 1))] for i in range(width)], axis=-1)
    return x


def _gradient(f: Any, *varargs: Any, axis: Any = None, edge_order: int = 1) -> Any:
    if edge_order != 1 or any(np.ndim(h) for h in varargs):
        refuse("np.gradient with coordinates or edge_order=2")
    axes = list(range(np.ndim(f))) if axis is None else [axis] if isinstance(axis, int) else list(axis)
    steps = list(varargs) * (len(axes) if len(varargs) == 1 else 1) or [1.0] * len(axes)
    results = []
    for d, h in zip((_dim(f, i) for i in axes), steps, strict=True):
        lead = (slice(None),) * d

        def part(*ends: int | None, lead: Any = lead) -> Any:
            return f[(*lead, slice(*ends))]

        first, last = part(1, 2) - part(0, 1), part(-1, None) - part(-2, -1)
        inner = (part(2, None) - part(None, -2)) / 2
        results.append(np.concatenate([first, inner, last], axis=d) / h)
    return results[0] if len(results) == 1 else tuple(results)


def _diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    i, j = _dim(a, axis1), _dim(a, axis2)
    order = [d for d in range(np.ndim(a)) if d not in (i, j)]
    a = np.transpose(a, [*order, i, j]) if [*order, i, j] != list(range(np.ndim(a))) else a
    n, m = np.shape(a)[-2:]
    if offset or n != m:
        refuse("a diagonal beside the main one, or of a matrix that is not square")
    at = active().counting(n)
    return a[..., at, at]


def _diag(v: Any, k: int = 0) -> Any:
    if np.ndim(v) == 2:
        return _diagonal(v, k)
    if k:
        refuse("np.diag beside the main diagonal")
    return active().eye(np.shape(v)[0]) * v[:, None]


def _lexsort(keys: Any, axis: int = -1) -> Any:
    """The order by the last key; among equals by the one before."""
    rows = list(keys)
    if np.ndim(rows[0]) != 1:
        refuse("np.lexsort of keys of several dimensions")
    order = np.argsort(rows[0], stable=True)
    for key in rows[1:]:
        order = order[np.argsort(key[order], stable=True)]
    return order


def _below(m: Any, k: int) -> Any:
    n, c = np.shape(m)[-2:]
    return active().counting(c)[None, :] - active().counting(n)[:, None] <= k


def _roll(a: Any, shift: Any, axis: Any = None) -> Any:
    if axis is None:
        return np.reshape(_roll(np.ravel(a), shift, 0), np.shape(a))
    for s, d in zip(_listed(shift), _listed(axis), strict=True):
        a = a.tape.note("roll", (a,), {"shift": s, "axis": _dim(a, d)}, np.roll(plain(a), s, d))
    return a


def _select(condlist: Any, choicelist: Any, default: Any = 0) -> Any:
    result = default
    for condition, choice in reversed(list(zip(condlist, choicelist, strict=True))):
        result = np.where(condition, choice, result)
    return result


def _piecewise(x: Any, condlist: Any, funclist: Any, *args: Any, **options: Any) -> Any:
    conditions = list(condlist) if isinstance(condlist, list | tuple) else [condlist]
    values = [f(x, *args, **options) if callable(f) else f for f in funclist]
    default = values.pop() if len(values) == len(conditions) + 1 else 0
    for condition, value in zip(conditions, values, strict=True):  # where several hold, the last counts
        default = np.where(condition, value, default)
    return default


def _trapezoid(y: Any, x: Any = None, dx: float = 1.0, axis: int = -1) -> Any:
    axis = _dim(y, axis)
    lead = (slice(None),) * axis
    width: Any = dx
    if x is not None:
        width = np.diff(x, axis=axis if np.ndim(x) == np.ndim(y) else -1)
        if np.ndim(width) != np.ndim(y):
            width = np.reshape(width, tuple(-1 if d == axis else 1 for d in range(np.ndim(y))))
    return np.sum(width * (y[(*lead, slice(1, None))] + y[(*lead, slice(None, -1))]) / 2, axis=axis)


def correlation(
    a: Any, kernel: Any, widths: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0
) -> Any:
    """The correlation of an array, padded in one of the ways of `windows.pad`, with a kernel of as many dimensions."""
    modes = {
        "constant": "constant",
        "replicate": "edge",
        "reflect": "reflect",
        "symmetric": "symmetric",
        "circular": "wrap",
    }
    options = {"constant_values": value} if mode == "constant" else {}
    padded, taps = np.pad(plain(a), widths, mode=modes[mode], **options), plain(kernel)  # type: ignore[call-overload]
    found = np.tensordot(np.lib.stride_tricks.sliding_window_view(padded, np.shape(taps)), taps, axes=np.ndim(taps))
    given = {"widths": tuple(map(tuple, widths)), "mode": mode, "value": value}
    return next(x.tape for x in (a, kernel) if type(x) is Recorder).note("correlation", (a, kernel), given, found)


def _convolve(a: Any, v: Any, mode: str = "full") -> Any:
    if np.shape(v)[0] > np.shape(a)[0]:
        a, v = v, a
    return _taps(a, v[::-1], mode)


def _correlate(a: Any, v: Any, mode: str = "valid") -> Any:
    if np.shape(v)[0] > np.shape(a)[0]:
        refuse("np.correlate with a kernel longer than the array")
    return _taps(a, v, mode)


def _taps(a: Any, kernel: Any, mode: str) -> Any:
    k = np.shape(kernel)[0]
    widths = {"valid": (0, 0), "full": (k - 1, k - 1), "same": (k // 2, (k - 1) // 2)}[mode]
    return correlation(a, np.asarray(kernel) if type(kernel) is list else kernel, [widths])


def _polyval(p: Any, x: Any) -> Any:
    result = p[0] + 0.0 * x
    for c in p[1:]:
        result = result * x + c
    return result


def _bincount(x: Any, /, weights: Any = None, minlength: int = 0) -> Any:
    if not minlength:
        refuse("np.bincount has a size that depends on values; give it minlength=, the number of classes")
    hits = (x[:, None] == active().counting(minlength)) * 1
    return np.sum(hits, axis=0) if weights is None else np.sum(hits * np.expand_dims(weights, -1), axis=0)


def _searchsorted(a: Any, v: Any, side: str = "left", sorter: Any = None) -> Any:
    if sorter is not None or np.ndim(a) != 1:
        refuse("np.searchsorted with sorter")
    at = np.expand_dims(v, -1)
    return np.sum((a < at if side == "left" else a <= at) * 1, axis=-1)


def _digitize(x: Any, bins: Any, right: bool = False) -> Any:
    if (np.diff(plain(bins)) < 0).any():
        refuse("np.digitize with decreasing bins")
    return _searchsorted(bins, x, "left" if right else "right")


def _interp(x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None, period: Any = None) -> Any:
    """What each segment adds, up to where x lies in it."""
    if not all(v is None for v in (left, right, period)):
        refuse("np.interp with left, right or period")
    xp, fp = (np.asarray(v) if isinstance(v, list | tuple) else v for v in (xp, fp))
    starts, slopes = xp[:-1], np.diff(fp) / np.diff(xp)
    return fp[0] + np.sum(slopes * (np.clip(np.expand_dims(x, -1), starts, xp[1:]) - starts), axis=-1)


def _vander(x: Any, N: int | None = None, increasing: bool = False) -> Any:
    powers = range(np.shape(x)[0] if N is None else N)
    return np.stack([x**k for k in (powers if increasing else reversed(powers))], axis=-1)


def _add_at(a: Any, indices: Any, b: Any = None) -> None:
    if type(a) is not Recorder or np.ndim(indices) != 1:
        refuse("np.add.at of an array that was not made by the function, or at several dimensions")
    hits = (active().counting(np.shape(a)[0])[:, None] == indices) * 1
    a.write(a + np.tensordot(hits, b + np.zeros(np.shape(indices) + np.shape(a)[1:]), axes=1))


def _put_along_axis(arr: Any, indices: Any, values: Any, axis: Any = -1) -> None:
    if type(arr) is not Recorder or axis is None:
        refuse("np.put_along_axis of an array that was not made by the function, or without an axis")
    d = _dim(arr, axis)
    if np.shape(indices)[d] != 1:
        refuse("np.put_along_axis of several entries along the axis; use np.where")
    lined_up = tuple(-1 if i == d else 1 for i in range(np.ndim(arr)))
    arr.write(np.where(np.reshape(active().counting(np.shape(arr)[d]), lined_up) == indices, values, arr))


def _copy_to(dst: Any, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    if type(dst) is not Recorder or (np.ndim(src) and np.shape(src) != np.shape(dst)):
        refuse("writing into an array that was not made by the function, or from one of another shape; use np.where")
    dst.write(np.where(where, src, dst))


def _where(condition: Any, *cases: Any) -> Any:
    if not cases:
        return _nonzero(condition)
    arrays = [condition, *cases]
    tape = next(x.tape for x in arrays if type(x) is Recorder)
    return tape.note("where", arrays, {}, np.where(*map(plain, arrays)))


def _nonzero(a: Any) -> tuple[Nonzero, ...]:
    mask = a if a.dtype.kind == "b" else a != 0
    return tuple(Nonzero(mask) for _ in range(mask.ndim))


def _fill_diagonal(a: Any, val: Any, wrap: bool = False) -> None:
    if np.ndim(a) != 2 or np.shape(a)[0] != np.shape(a)[1]:
        refuse("np.fill_diagonal of an array that is not a square matrix")
    a.write(np.where(active().eye(np.shape(a)[0], bool), val, a))


def _round(a: Any, decimals: int = 0, out: Any = None) -> Any:
    return np.rint(a * 10.0**decimals) / 10.0**decimals if decimals else np.rint(a)


def _like(value: float) -> Callable[..., Any]:
    return lambda a, dtype=None, *rest, shape=None, **options: active().filled(
        np.shape(a) if shape is None else shape, value, a.dtype if dtype is None else dtype
    )


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sum": _masked(np.sum, lambda a, w, axis, **o: np.sum(np.where(w, a, 0), axis=axis, **o)),
    "mean": _masked(np.mean, lambda a, w, axis, **o: np.sum(np.where(w, a, 0.0), axis=axis, **o) / np.sum(w * 1.0, axis=axis, **o)),
    "max": _masked(np.max, lambda a, w, axis, **o: refuse("np.max with where")),
    "amax": _masked(np.max, lambda a, w, axis, **o: refuse("np.max with where")),
    "min": _masked(np.min, lambda a, w, axis, **o: refuse("np.min with where")),
    "amin": _masked(np.min, lambda a, w, axis, **o: refuse("np.min with where")),
    "prod": _masked(np.prod, lambda a, w, axis, **o: np.prod(np.where(w, a, 1), axis=axis, **o)),
    "average": _average, "nansum": _nansum, "nanmean": _nanmean, "nanvar": _nanvar,
    "nanstd": lambda a, axis=None, ddof=0, **o: np.sqrt(_nanvar(a, axis, ddof, **o)),
    "nanmax": lambda a, axis=None, **o: np.max(np.where(np.isnan(a), -math.inf, a), axis=axis, **o),
    "nanmin": lambda a, axis=None, **o: np.min(np.where(np.isnan(a), math.inf, a), axis=axis, **o),
    "nan_to_num": _nan_to_num, "quantile": _quantile, "median": _median,
    "percentile": lambda a, q, axis=None, *rest, **o: _quantile(a, np.asarray(q) / 100 if np.ndim(q) else q / 100, axis, *rest, **o),
    "cov": _cov, "corrcoef": _corrcoef, "ptp": lambda a, axis=None, **o: np.max(a, axis=axis) - np.min(a, axis=axis),
    "count_nonzero": lambda a, axis=None, **o: np.sum((a != 0) * 1, axis=axis),
    "outer": _outer, "inner": _inner, "dot": _dot, "vdot": _vdot, "tensordot": _tensordot, "einsum": _einsum,
    "kron": _kron, "cross": _cross, "norm": _norm, "vector_norm": lambda x, *, axis=None, ord=2, keepdims=False: _norm(
        np.ravel(x) if axis is None else x, ord, axis, keepdims),
    "det": _matrix("det"), "cholesky": _matrix("cholesky"), "slogdet": _slogdet, "inv": _inv,
    "eigh": _eigh, "eigvalsh": lambda a, UPLO="L": _eigh(a, UPLO)[0], "svd": _svd, "svdvals": lambda x: _matrix("singular")(x), "solve": solve,
    "trace": lambda a, offset=0, axis1=0, axis2=1, *rest: np.sum(_diagonal(a, offset, axis1, axis2), axis=-1),
    "concatenate": concatenate, "stack": stack, "hstack": _hstack, "column_stack": _column_stack,
    "vstack": lambda arrays, **o: np.concatenate([np.atleast_2d(x) for x in arrays], axis=0),
    "dstack": lambda arrays: np.concatenate([np.atleast_3d(x) for x in arrays], axis=2),
    "append": lambda arr, values, axis=None: np.concatenate([np.ravel(x) if axis is None else x for x in (arr, values)], axis=axis or 0),
    "split": _split, "hsplit": lambda a, s: _split(a, s, 0 if np.ndim(a) == 1 else 1), "vsplit": _split,
    "dsplit": lambda a, s: _split(a, s, 2), "unstack": lambda a, axis=0: tuple(np.moveaxis(a, axis, 0)[i] for i in range(np.shape(a)[axis])),
    "moveaxis": _moveaxis, "rollaxis": lambda a, axis, start=0: _moveaxis(a, axis, start - (axis < start)), "swapaxes": _swapaxes,
    "matrix_transpose": lambda a: _swapaxes(a, -1, -2),
    "atleast_1d": lambda *a: np.reshape(a[0], (1,)) if np.ndim(a[0]) == 0 else +a[0],
    "atleast_2d": lambda *a: +a[0] if np.ndim(a[0]) >= 2 else np.reshape(a[0], (1, -1)),
    "atleast_3d": lambda *a: +a[0] if np.ndim(a[0]) >= 3 else np.reshape(a[0], (*((1,) * (np.ndim(a[0]) < 2)), *np.shape(a[0]), 1)),
    "broadcast_arrays": lambda *a, **o: [np.broadcast_to(x, np.broadcast_shapes(*map(np.shape, a))) for x in a],
    "repeat": _repeat, "tile": _tile, "pad": _pad, "roll": _roll, "fliplr": lambda m: np.flip(m, 1), "flipud": lambda m: np.flip(m, 0),
    "diff": _diff, "ediff1d": lambda ary, *a, **o: refuse("np.ediff1d with ends") if a or o else _diff(np.ravel(ary)),
    "sliding_window_view": _sliding_window_view, "gradient": _gradient, "diagonal": _diagonal, "diag": _diag, "fill_diagonal": _fill_diagonal,
    "tril": lambda m, k=0: np.where(_below(m, k), m, 0.0), "triu": lambda m, k=0: np.where(_below(m, k - 1), 0.0, m),
    "triu_indices_from": lambda m, k=0: _nonzero(~_below(m, k - 1)), "tril_indices_from": lambda m, k=0: _nonzero(_below(m, k)),
    "select": _select, "piecewise": _piecewise, "where": _where, "nonzero": _nonzero, "trapezoid": _trapezoid, "trapz": _trapezoid,
    "flatnonzero": lambda a: _nonzero(np.ravel(a))[0], "argwhere": lambda a: refuse("np.argwhere, whose size depends on values"),
    "convolve": _convolve, "correlate": _correlate, "polyval": _polyval, "cumsum": lambda a, axis=None, *r, **o: _scan("sum")(a, axis, **o),
    "cumprod": lambda a, axis=None, *r, **o: _scan("prod")(a, axis, **o), "round": _round, "around": _round, "fix": UFUNCS["trunc"],
    "bincount": _bincount, "searchsorted": _searchsorted, "digitize": _digitize, "interp": _interp, "vander": _vander,
    "partition": lambda a, kth, axis=-1, **o: np.sort(a, axis=axis), "argpartition": lambda a, kth, axis=-1, **o: np.argsort(a, axis=axis),
    "angle": lambda z, deg=False: z.tape.note("angle", (z,), {}, np.angle(plain(z))) * (180 / math.pi if deg else 1),
    "isclose": lambda a, b, rtol=1e-5, atol=1e-8, equal_nan=False: np.abs(a - b) <= atol + rtol * np.abs(b),
    "ones_like": _like(1), "zeros_like": _like(0), "empty_like": _like(0),
    "full_like": lambda a, fill_value, dtype=None, *rest, **o: active().filled(
        np.shape(a), fill_value, a.dtype if dtype is None else dtype),
    "sinc": lambda x: np.where(x == 0, 1.0, np.sin(math.pi * x) / np.where(x == 0, 1.0, math.pi * x)),
    "real": lambda val: val.real, "imag": lambda val: val.imag, "copy": lambda a, *r, **o: a.fresh(),
    "array_equal": lambda a, b, **o: decided(np.all(a == b)) if np.shape(a) == np.shape(b) else False,
    "allclose": lambda a, b, rtol=1e-5, atol=1e-8, **o: decided(np.all(np.abs(a - b) <= atol + rtol * np.abs(b))),
    "lexsort": _lexsort, "put_along_axis": _put_along_axis, "copyto": _copy_to, "putmask": lambda a, mask, values: _copy_to(a, values, where=mask),
    "place": lambda arr, mask, vals: _copy_to(arr, vals, where=mask),
}  # fmt: skip


# ------------------------------------------------------------------------------------- selections by truth values


def _over_selection(function: Callable[..., Any], other: float) -> Callable[..., Any]:
    def reduce(a: Selection, axis: Any = None, *rest: Any, **options: Any) -> Any:
        if any(not _unset(v) for v in (*rest, *options.values())):
            refuse("a reduction of a selection by truth values with options")
        if axis is None:
            return function(a.filled(other))
        if axis == 0 or axis == -a.ndim:
            return function(a.filled(other), axis=tuple(range(a.mask.ndim)))
        at = axis if axis < 0 else axis + a.mask.ndim - 1
        return Selection(function(a.whole, axis=at), a.mask)

    return reduce


def _selected_mean(a: Selection, axis: Any = None, *rest: Any, **options: Any) -> Any:
    if axis not in (None, 0):
        return Selection(np.mean(a.whole, axis=axis if axis < 0 else axis + a.mask.ndim - 1), a.mask)
    total = SELECTED["sum"](a, axis, *rest, **options)
    return total / (a.size if axis is None else np.sum(a.mask))


def _selected_average(a: Selection, axis: Any = None, weights: Any = None, **options: Any) -> Any:
    if weights is None:
        return _selected_mean(a, axis, **options)
    return SELECTED["sum"](a * weights, axis) / SELECTED["sum"](weights, axis)


def _selected_var(a: Selection, axis: Any = None, *rest: Any, ddof: int = 0, **options: Any) -> Any:
    if axis not in (None, 0) or (a.ndim > 1 and axis is not None):
        refuse("the variance of a selection by truth values along an axis")
    centred = a - _selected_mean(a)
    return SELECTED["sum"](centred * centred) / (a.size - ddof)


def _selected_norm(x: Selection, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    if ord == 1 and axis is None and x.ndim == 1:
        return SELECTED["sum"](np.abs(x))
    if ord not in (None, 2) or axis is not None or (ord == 2 and x.ndim > 1):
        refuse("np.linalg.norm of a selection by truth values with options")
    return np.sqrt(SELECTED["sum"](x * x))


SELECTED: Mapping[str, Callable[..., Any]] = {
    "sum": _over_selection(np.sum, 0.0), "prod": _over_selection(np.prod, 1.0), "max": _over_selection(np.max, -math.inf),
    "amax": _over_selection(np.max, -math.inf), "min": _over_selection(np.min, math.inf),
    "amin": _over_selection(np.min, math.inf), "mean": _selected_mean, "average": _selected_average, "var": _selected_var,
    "std": lambda a, axis=None, *rest, **options: np.sqrt(_selected_var(a, axis, *rest, **options)),
    "dot": lambda a, b, out=None: SELECTED["sum"](a * b), "vdot": lambda a, b: SELECTED["sum"](a * b),
    "inner": lambda a, b: SELECTED["sum"](a * b), "norm": _selected_norm, "size": lambda a, axis=None: a.size,
    "nansum": lambda a, axis=None: SELECTED["sum"](np.where(np.isnan(a), 0.0, a), axis),
    "any": lambda a, axis=None: np.any(a.filled(False)) if axis is None else refuse("np.any of a selection along an axis"),
    "all": lambda a, axis=None: np.all(a.filled(True)) if axis is None else refuse("np.all of a selection along an axis"),
    "ndim": lambda a: a.ndim, "shape": lambda a: a.shape, "count_nonzero": lambda a, axis=None: SELECTED["sum"]((a != 0) * 1.0, axis),
}  # fmt: skip

SELECTED_ENTRIES = frozenset(
    {"where", "clip", "nan_to_num", "round", "around", "ones_like", "zeros_like", "full_like", "isclose", "sinc"}
)
"""Functions that treat each entry by itself."""


# ------------------------------------------------------------------------------------- assignments to entries


def replaced(x: Recorder, keys: tuple[Any, ...], value: Any) -> Any:
    """`x` with the entries at `keys` replaced, as ``x[keys] = value`` does."""
    if isinstance(keys[0], Nonzero):
        keys = (keys[0].mask,)
    if len(keys) == 1 and type(keys[0]) is Recorder and keys[0].dtype.kind == "b":
        here = Selection(x, keys[0])
        if isinstance(value, Selection):
            if not value.mask.is_like(keys[0]):
                refuse("entries by one mask are set to entries by another; use np.where")
            value = value.whole
        elif np.ndim(value) and np.size(value) > 1 and np.ndim(value) >= here.ndim:
            refuse("entries by truth values are set to an array, whose size would depend on them; use np.where")
        return np.where(here.wide, value, x)
    if isinstance(value, Selection):
        refuse("entries are set to a selection by truth values; use np.where")
    if any(type(k) is Recorder or type(k) is np.ndarray for k in keys):
        return _at_positions(x, keys, value)
    if any(k is None for k in keys):
        refuse("a new axis in an assignment to entries")
    while len(keys) > 1 and isinstance(keys[-1], slice) and keys[-1] == slice(None):
        keys = keys[:-1]
    if all(isinstance(k, int | np.integer) for k in keys) and np.shape(value) == np.shape(x)[len(keys) :]:
        places = [int(k) + n if k < 0 else int(k) for k, n in zip(keys, np.shape(x), strict=False)]
        return x.tape.note("put", (x, value, *places), {}, plain(x).copy())
    used = sum(1 for k in keys if k is not Ellipsis)
    full = (slice(None),) * (np.ndim(x) - used)
    at = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
    return _replaced(x, 0, [*keys[:at], *full, *keys[at + 1 :]], value)


def _at_positions(x: Recorder, keys: tuple[Any, ...], value: Any) -> Any:
    """`x` with entries replaced: one, or a row; one in each row of a matrix; or several, or rows, along the first dimension."""
    arrays = [k if type(k) is Recorder else np.asanyarray(k) for k in keys]
    if any(k.dtype.kind not in "iu" for k in arrays):
        refuse("an assignment at an array of positions beside slices; use np.where")
    if all(k.ndim == 0 for k in arrays):
        here: Any = True
        for d, k in enumerate(arrays):
            n = x.shape[d]
            is_there = active().counting(n) == np.where(k < 0, k + n, k)
            here = np.logical_and(here, np.reshape(is_there, (n, *(1,) * (x.ndim - d - 1))))
        return np.where(here, value, x)
    if x.ndim == len(keys) == 2 and all(k.ndim == 1 for k in arrays):
        for d in (0, 1):
            if is_counting(arrays[d], x.shape[d]):
                here = np.expand_dims(arrays[1 - d], 1 - d) == np.expand_dims(active().counting(x.shape[1 - d]), d)
                return np.where(here, value if np.ndim(value) == 0 else np.expand_dims(value, 1 - d), x)
    if len(keys) > 1 or arrays[0].ndim != 1:
        refuse("an assignment at arrays of positions of which none is np.arange(n); use np.where")
    n = arrays[0].shape[0]
    hits = active().counting(x.shape[0])[:, None] == arrays[0]
    last = np.max(np.where(hits, active().counting(n), -1), axis=1)  # of several at one place, the last stays
    if np.ndim(value):
        value = (value + active().filled((n, *x.shape[1:]), 0.0))[np.maximum(last, 0)]
    return np.where(np.reshape(last >= 0, (-1, *(1,) * (x.ndim - 1))), value, x)


def is_counting(index: Any, n: int) -> bool:
    """Whether an index is 0, 1 … n − 1."""
    known = index.counting if type(index) is Recorder else True
    array = plain(index)
    return bool(known and array.shape == (n,) and np.array_equal(array, np.arange(n)))


def _replaced(x: Any, d: int, keys: Sequence[Any], value: Any) -> Any:
    """The entries along dimension `d`: before, at the key, and after it."""
    while d < len(keys) and keys[d] == slice(None):
        d += 1
    if d == len(keys):
        shape = tuple(n for n, k in zip(np.shape(x), keys, strict=True) if isinstance(k, slice))
        wide = np.broadcast_to(value, shape) if np.ndim(value) else active().filled(shape, 0.0) + value
        return np.reshape(wide, np.shape(x))
    n, key, lead = np.shape(x)[d], keys[d], (slice(None),) * d
    if isinstance(key, slice):
        start, stop, step = key.indices(n)
        if step != 1:
            refuse("an assignment to every n-th entry; use np.where")
    elif isinstance(key, int | np.integer):
        start = int(key) + n if key < 0 else int(key)
        stop = start + 1
    else:
        refuse(f"an assignment at {type(key).__name__}")
    parts = [x[(*lead, slice(0, start))]] if start > 0 else []
    inner = list(keys)
    inner[d] = slice(None) if isinstance(key, slice) else _ONE
    parts.append(_replaced(x[(*lead, slice(start, stop))], d + 1, inner, value))
    if stop < n:
        parts.append(x[(*lead, slice(stop, n))])
    return np.concatenate(parts, axis=d) if len(parts) > 1 else parts[0]


_ONE = "one entry"
"""In place of a key that took one entry, whose dimension the value lacks."""
