"""What the user's function sees in place of NumPy and SciPy, for what NumPy's protocols do not show.

Constructors (``np.eye``, ``np.array`` …), functions of SciPy that are written in Python, and Python's own ``sum``,
``max`` and ``min`` get stand-ins. A copy of the function runs, whose names stand for them; nothing outside of it changes.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from lossforge.frontends import numpy_composites as composites
from lossforge.frontends import scipy_standins
from lossforge.frontends.numpy_recorder import Recorder, Selection, Tape, activate, active, plain, refuse


def _holds_recorder(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_recorder, value))
    return type(value) is Recorder or isinstance(value, Selection)


# ------------------------------------------------------------------------------------- constructors


def _constant(array: Any) -> Any:
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
    return _constant(np.array(value, dtype, *rest, **options))


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
        return _constant(made)
    start = args[0] if len(args) > 1 else 0
    by = args[2] if len(args) > 2 else options.get("step", 1)
    result = active().note("arange", (start, by), {}, made)
    result.counting = start == 0 and by == 1
    return result


def _linspace(start: Any, stop: Any, num: int = 50, *args: Any, **options: Any) -> Any:
    if args or options or np.ndim(start) or np.ndim(stop) or num < 2:
        return _constant(np.linspace(plain(start), plain(stop), num, *args, **options))
    return start + _arange(num) * ((stop - start) / (num - 1))


def _eye(n: Any, M: Any = None, k: int = 0, dtype: Any = float, **options: Any) -> Any:
    if k or M not in (None, n):
        return _constant(np.eye(int(n), M, k, dtype))
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


_REDUCTIONS = "sum mean max min prod average median std var any all amax amin argmax argmin sort cumsum".split()

_NUMPY: Mapping[str, Callable[..., Any]] = {
    "array": _array, "asarray": _as_array, "asanyarray": _as_array, "ascontiguousarray": _as_array,
    "asarray_chkfinite": _as_array,
    "zeros": _number(0), "ones": _number(1), "empty": _number(0), "full": _full, "arange": _arange,
    "linspace": _linspace, "eye": _eye, "identity": _eye, "triu_indices": _triangle("triu_indices_from"),
    "tril_indices": _triangle("tril_indices_from"), "tri": _tri, "meshgrid": _meshgrid,
    **{name: _of_list(name) for name in _REDUCTIONS},
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
        return np.reshape(found, ()) if cls.original is float else found

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls.original)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, cls.original)


_CONVERSIONS: Mapping[Any, _Conversion] = {
    kind: _Conversion(kind.__name__, (), {"original": kind, "dtype": np.dtype(kind)})
    for kind in (float, np.float64, np.float32)
}


def _import(name: str, *rest: Any, **options: Any) -> Any:
    """Of a module, in the midst of the function."""
    module = builtins.__import__(name, *rest, **options)
    return _stand_in(module, module.__name__, name) or module


_PYTHON: Mapping[str, Callable[..., Any]] = {
    "__import__": _import, "float": _CONVERSIONS[float],
    "sum": _sum, "max": _extremum(max, np.maximum, np.max), "min": _extremum(min, np.minimum, np.min),
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
        found = _stand_in(value, self.module.__name__, name)
        return value if found is None else found


def _stand_in(value: Any, module: str, name: str) -> Any:
    if inspect.ismodule(value):
        return _Module(value) if value is np or value.__name__.partition(".")[0] in ("scipy", "math") else None
    if module == "numpy" and isinstance(value, type):  # a dtype, or a conversion
        return _CONVERSIONS.get(value)
    if module == "math":
        return _unless_plain(value, _MATH[name]) if name in _MATH else None
    stand_in = _NUMPY.get(name) if module == "numpy" else None
    if module.startswith("scipy"):
        for (where, of_scipy), function in scipy_standins.FUNCTIONS.items():
            if name == of_scipy and module.startswith(where):
                return _unless_plain(value, function)
        return scipy_standins.distribution(value)
    return stand_in


def _unless_plain(original: Callable[..., Any], stand_in: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, **options: Any) -> Any:
        taken = any(map(_holds_recorder, (*args, *options.values())))
        return (stand_in if taken else original)(*args, **options)

    return function


@contextmanager
def recording(tape: Tape, function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """The function as it should be called to be recorded."""
    activate(tape)
    try:
        yield _Copies().of(function)
    finally:
        activate(None)


class _Copies:
    """Copies of functions whose names stand for the stand-ins."""

    def __init__(self) -> None:
        self.made: dict[int, Any] = {}
        self.names: dict[int, dict[str, Any]] = {}

    def of(self, function: Any) -> Any:
        """The copy of a function, a partial function, or an object that is called."""
        if isinstance(function, functools.partial):
            return functools.partial(self.of(function.func), *function.args, **function.keywords)
        if inspect.ismethod(function):
            return functools.partial(self.of(function.__func__), function.__self__)
        if inspect.isfunction(function):
            return self._copy(function)
        call = getattr(type(function), "__call__", None)  # noqa: B004
        return functools.partial(self._copy(call), function) if inspect.isfunction(call) else function

    def _seen(self, value: Any, name: str, home: dict[str, Any]) -> Any:
        if type(value) is np.ndarray:
            return _constant(value)
        if inspect.isfunction(value) and value.__globals__ is home:
            return self._copy(value)
        module = str(getattr(value, "__module__", None) or "")
        known = getattr(value, "__name__", name)
        found = _stand_in(value, "numpy" if getattr(np, str(known), None) is value else module, str(known))
        return value if found is None else found

    def _copy(self, function: types.FunctionType) -> Any:
        if id(function) in self.made:
            return self.made[id(function)]
        home = function.__globals__
        names = self.names.setdefault(id(home), {**home, "__builtins__": {**vars(builtins), **_PYTHON}})
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        made = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, cells or None)
        made.__kwdefaults__ = function.__kwdefaults__
        self.made[id(function)] = made
        for name in _names_of(function.__code__):
            if name in home:
                names[name] = self._seen(home[name], name, home)
        for cell, original in zip(cells, function.__closure__ or (), strict=True):
            try:
                cell.cell_contents = self._seen(original.cell_contents, "", home)
            except ValueError:  # not filled yet
                continue
        return made


def _names_of(code: types.CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return {*code.co_names, *(n for c in inner for n in _names_of(c))}
