"""What the user's function sees in place of NumPy and SciPy, for what NumPy's protocols do not show.

Constructors (``np.eye``, ``np.array`` …), functions of SciPy that are written in Python, and Python's own ``sum``,
``max`` and ``min`` get stand-ins. Copies of the functions run, whose names stand for them; see `numpy_copies`.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lossforge.frontends import numpy_composites as composites
from lossforge.frontends import scipy_standins
from lossforge.frontends.numpy_recorder import Recorder, Selection, active, plain, refuse


def _holds_recorder(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_recorder, value))
    return type(value) is Recorder or isinstance(value, Selection)


# ------------------------------------------------------------------------------------- constructors


def constant(array: Any) -> Any:
    """An array that was made without the arguments, as a recorder."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        return array
    return active().note("constant", (array,), {}, array)


def _array(value: Any, dtype: Any = None, *rest: Any, copies: bool = True, **options: Any) -> Any:
    if isinstance(value, Selection):
        return value
    if type(value) is Recorder:
        wanted = None if dtype is None else np.dtype(dtype)
        if wanted is not None and wanted.kind != value.dtype.kind:
            return value.astype(wanted)
        return value.fresh() if copies else value
    if _holds_recorder(value):
        return composites.stack([_array(v) for v in value])
    return constant(np.array(value, dtype, *rest, **options))


def _as_array(value: Any, dtype: Any = None, *rest: Any, **options: Any) -> Any:
    return _array(value, dtype, copies=False)


def _number(value: float) -> Callable[..., Any]:
    return lambda shape, dtype=float, *rest, **options: active().filled(_whole(shape), value, dtype)


def _full(shape: Any, fill_value: Any, dtype: Any = None, *rest: Any, **options: Any) -> Any:
    return active().filled(_whole(shape), fill_value, dtype)


def _whole(shape: Any) -> Any:
    return tuple(map(int, shape)) if isinstance(shape, list | tuple) else int(shape)


def _arange(*args: Any, **options: Any) -> Any:
    made = np.arange(*plain(args), **{k: plain(v) for k, v in options.items()})
    numbers = [a for a in args if isinstance(a, int | float | np.number)]
    if not made.size or len(numbers) < len(args) or set(options) - {"dtype", "step"}:
        return constant(made)
    start = args[0] if len(args) > 1 else 0
    by = args[2] if len(args) > 2 else options.get("step", 1)
    result = active().note("arange", (start, by), {}, made)
    result.counting = start == 0 and by == 1
    return result


def _linspace(start: Any, stop: Any, num: int = 50, *args: Any, **options: Any) -> Any:
    if args or options or np.ndim(start) or np.ndim(stop) or num < 2:
        return constant(np.linspace(plain(start), plain(stop), num, *args, **options))
    return start + _arange(num) * ((stop - start) / (num - 1))


def _eye(n: Any, M: Any = None, k: int = 0, dtype: Any = float, **options: Any) -> Any:
    if k or M not in (None, n):
        return constant(np.eye(int(n), M, k, dtype))
    return active().eye(int(n), dtype)


def _triangle(name: str) -> Callable[..., Any]:
    return lambda n, k=0, m=None: composites.FUNCTIONS[name](active().filled((n, n if m is None else m), 1.0), k)


def _tri(n: int, m: int | None = None, k: int = 0, dtype: Any = float) -> Any:
    return np.tril(active().filled((n, n if m is None else m), 1.0), k).astype(dtype)


def _meshgrid(*arrays: Any, indexing: str = "xy", **options: Any) -> Any:
    rank = len(arrays)
    order = [1, 0, *range(2, rank)] if indexing == "xy" and rank > 1 else list(range(rank))
    shape = [np.size(arrays[order.index(d)]) for d in range(rank)]
    return [
        np.broadcast_to(np.reshape(a, tuple(-1 if d == order[i] else 1 for d in range(rank))), shape)
        for i, a in enumerate(arrays)
    ]


def _of_list(name: str) -> Callable[..., Any]:
    """A reduction of a list of results."""

    def reduce(a: Any, *args: Any, **options: Any) -> Any:
        gathered = isinstance(a, list | tuple) and _holds_recorder(a)
        return getattr(np, name)(_array(a) if gathered else a, *args, **options)

    return reduce


class _Joined:
    """``np.r_`` and ``np.c_``: arrays between brackets, one after the other or side by side."""

    def __init__(self, columns: bool) -> None:
        self.columns = columns

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        if not _holds_recorder(keys) or any(isinstance(k, str | slice) for k in keys):
            return constant((np.c_ if self.columns else np.r_)[plain(key)])
        parts = [composites.as_array(k) for k in keys]
        if self.columns:
            return np.concatenate([p[:, None] if np.ndim(p) == 1 else np.atleast_2d(p) for p in parts], axis=-1)
        return np.concatenate([np.atleast_1d(p) for p in parts], axis=0)


class _Vectorized:
    """``np.vectorize``: a function of numbers, called for each entry."""

    def __init__(self, pyfunc: Callable[..., Any], *rest: Any, **options: Any) -> None:
        self.function, self.of_arrays = pyfunc, functools.partial(np.vectorize, pyfunc, *rest, **options)
        self.is_plain = not rest and set(options) <= {"otypes", "cache", "doc"}

    def __call__(self, *arrays: Any, **options: Any) -> Any:
        if not _holds_recorder(arrays) or options or not self.is_plain:
            return self.of_arrays()(*arrays, **options)
        shape = np.broadcast_shapes(*map(np.shape, arrays))
        return self._along([np.broadcast_to(a, shape) if np.shape(a) != shape else a for a in arrays])

    def _along(self, arrays: Sequence[Any]) -> Any:
        if np.ndim(arrays[0]) == 0:
            return self.function(*arrays)
        return _array([self._along(rows) for rows in zip(*arrays, strict=True)])


_REDUCTIONS = "sum mean max min prod average median std var any all amax amin argmax argmin sort cumsum".split()

_NUMPY: Mapping[str, Any] = {
    "array": _array, "asarray": _as_array, "asanyarray": _as_array, "ascontiguousarray": _as_array,
    "asarray_chkfinite": _as_array,
    "zeros": _number(0), "ones": _number(1), "empty": _number(0), "full": _full, "arange": _arange,
    "linspace": _linspace, "eye": _eye, "identity": _eye, "triu_indices": _triangle("triu_indices_from"),
    "tril_indices": _triangle("tril_indices_from"), "tri": _tri, "meshgrid": _meshgrid,
    **{name: _of_list(name) for name in _REDUCTIONS}, "r_": _Joined(columns=False), "c_": _Joined(columns=True), "vectorize": _Vectorized,
}  # fmt: skip


# ------------------------------------------------------------------------------------- Python


def _sum(values: Any, start: Any = 0) -> Any:
    if _holds_recorder(values) and not isinstance(values, list | tuple):
        return np.sum(values, axis=0) + start
    return builtins.sum(values, start)


def _extremum(python: Callable[..., Any], ufunc: Callable[..., Any], along: Callable[..., Any]) -> Callable[..., Any]:
    def function(*values: Any, **options: Any) -> Any:
        if len(values) == 1 and type(values[0]) is Recorder and values[0].ndim == 1:
            return along(values[0])
        scalars = all(np.ndim(v) == 0 for v in values) and any(type(v) is Recorder for v in values)
        if len(values) > 1 and not options and scalars:
            return functools.reduce(ufunc, values)
        return python(*values, **options)

    return function


class _Conversion(type):
    """In place of a type of numbers: a recorder that is converted stays one."""

    original: type
    dtype: np.dtype[Any]
    """What NumPy takes it for where it stands for a dtype."""

    def __call__(cls, *values: Any, **options: Any) -> Any:
        if len(values) != 1 or not _holds_recorder(values[0]):
            return cls.original(*values, **options)
        found = _array(values[0])
        if cls.original is int:
            if (plain(found) % 1 != 0).any():
                refuse("int() takes a Python number out of an array; keep arrays")
            found = found.astype(np.int64)
        elif found.dtype.kind != "f":
            found = found.astype(cls.dtype)
        return np.reshape(found, ()) if cls.original in (float, int) else found

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls.original)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, cls.original)


_CONVERSIONS: Mapping[Any, _Conversion] = {
    kind: _Conversion(kind.__name__, (), {"original": kind, "dtype": np.dtype(kind)})
    for kind in (float, int, np.float64, np.float32)
}


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Selection) else len(value)


class _Type(type):
    """In place of ``type``: a recorder is an array."""

    def __call__(cls, *values: Any, **options: Any) -> Any:
        return np.ndarray if len(values) == 1 and type(values[0]) is Recorder else type(*values, **options)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, type)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, type)


PYTHON: Mapping[str, Callable[..., Any]] = {
    "float": _CONVERSIONS[float], "int": _CONVERSIONS[int], "len": _length, "type": _Type("type", (), {}), "sum": _sum, "max": _extremum(max, np.maximum, np.max), "min": _extremum(min, np.minimum, np.min),
}  # fmt: skip
"""Python's own functions, which would look at the entries one by one, or not see the stand-ins."""

_MATH: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(np, name) for name in "exp log log1p log2 log10 expm1 sqrt sin cos tan tanh sinh cosh floor ceil".split()},
    **{name: getattr(np, name) for name in "fabs hypot copysign isnan isinf isfinite".split()},
    **{name: functools.partial(composites.special, name) for name in ("erf", "erfc")},
    "lgamma": functools.partial(composites.special, "gammaln"), "atan": np.arctan, "atan2": np.arctan2, "acos": np.arccos,
    "asin": np.arcsin, "pow": np.power,
}  # fmt: skip
"""The functions of ``math``, which take numbers."""


# ------------------------------------------------------------------------------------- in place of the originals


class _Module:
    """A module with some of its names replaced."""

    def __init__(self, module: types.ModuleType) -> None:
        self.__dict__["module"] = module

    def __getattr__(self, name: str) -> Any:
        if self.module is np and name == "random":
            refuse("random numbers; a loss gives one value for its inputs. Make the random array an argument")
        value = getattr(self.module, name)
        found = stand_in(value, self.module.__name__, name)
        return value if found is None else found


def stand_in(value: Any, module: str, name: str) -> Any:
    """What stands for a value that a module has under a name; None where it is left as it is."""
    if inspect.ismodule(value):
        return _Module(value) if value is np or value.__name__.partition(".")[0] in ("scipy", "math") else None
    if module == "numpy" and isinstance(value, type) and name not in _NUMPY:  # a dtype, or a conversion
        return _CONVERSIONS.get(value)
    if module == "math":
        return _unless_plain(value, _MATH[name]) if name in _MATH else None
    if module.startswith("scipy"):
        for (where, of_scipy), function in scipy_standins.FUNCTIONS.items():
            if name == of_scipy and module.startswith(where):
                return _unless_plain(value, function)
        return scipy_standins.distribution(value)
    return _NUMPY.get(name) if module == "numpy" else None


def _unless_plain(original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, **options: Any) -> Any:
        taken = any(map(_holds_recorder, (*args, *options.values())))
        return (replacement if taken else original)(*args, **options)

    return function
