"""NumPy: functions of arrays, recorded through NumPy's own protocols.

A `Recorder` carries an array of drawn numbers, so that NumPy itself works out shapes and dtypes; what is done to it is
written down. SciPy's special functions are ufuncs, and arrive in the same way.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from lossforge import ir
from lossforge.errors import AdoptionError
from lossforge.frontends.positional import Importer, Refused, Rule, Tensor, rule_for
from lossforge.frontends.recording import Recording, Ref, Step, Varying
from lossforge.ir import Kind


class NumPyFrontEnd:
    """See `lossforge.frontends.recording.FrontEnd`."""

    name = "numpy"

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.rules = RULES

    def signature(self) -> inspect.Signature:
        """The names of the arguments."""
        return inspect.signature(self.function)

    def attributes(self) -> dict[str, float]:
        """A function has none."""
        return {}

    def explain(self, error: Exception) -> str:
        """What an exception while recording means for the user."""
        return f"NumPy cannot run it at other sizes ({type(error).__name__}: {str(error)[:300]})"

    def record(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Recording:
        """Call the function once with recorders."""
        tape = _Tape()
        inputs = [Recorder(tape, a, Ref(next(tape.count))) for a in arrays]
        with np.errstate(all="ignore"):
            result = self.function(*inputs, **parameters)
        if isinstance(result, int | float | np.generic):
            raise AdoptionError("the loss returned a number that was not computed by NumPy from its arguments")
        if not isinstance(result, Recorder):
            raise AdoptionError(f"the loss returned a {type(result).__name__}; expected one array or number")
        return Recording(tuple((tuple(a.shape),) for a in arrays), tuple(tape.steps), result.ref)

    def run(
        self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any], wrt: Sequence[int]
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """The value; its gradient by central differences, since NumPy has no differentiation of its own."""
        exact = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
        with np.errstate(all="ignore"):
            value = np.asarray(self.function(*exact, **parameters))
            gradients = [self._differences(exact, parameters, i) for i in wrt]
        return value, gradients

    def _differences(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any], which: int) -> np.ndarray:
        """Differences at two steps; an entry where these disagree lies at a kink, and is left out (NaN)."""
        x = arrays[which]
        result = np.full(x.shape, np.nan)
        entries = list(np.ndindex(x.shape))
        for at in entries[:: max(1, len(entries) // 24)]:
            slopes = []
            for step in (1e-5, 2e-5):
                ends = []
                for sign in (1, -1):
                    moved = x.copy()
                    moved[at] += sign * step
                    changed = [moved if i == which else a for i, a in enumerate(arrays)]
                    ends.append(float(np.sum(self.function(*changed, **parameters))))
                slopes.append((ends[0] - ends[1]) / (2 * step))
            if abs(slopes[0] - slopes[1]) <= 1e-5 * max(abs(slopes[0]), abs(slopes[1]), 1e-5):
                result[at] = slopes[0]
        return result


def front_end(function: Callable[..., Any]) -> NumPyFrontEnd:
    """The front end for one function."""
    return NumPyFrontEnd(function)


class _Tape:
    def __init__(self) -> None:
        self.count = itertools.count()
        self.steps: list[Step] = []

    def note(self, op: str, args: Sequence[Any], attrs: Mapping[str, Any], value: Any) -> Any:
        """Write one step down; its results as recorders."""
        several = isinstance(value, list | tuple)
        arrays = [np.asarray(v) for v in (value if several else (value,))]
        numbers = tuple(next(self.count) for _ in arrays)
        shapes, dtypes = tuple((a.shape,) for a in arrays), tuple(str(a.dtype) for a in arrays)
        self.steps.append(
            Step(op, tuple(map(_ref, args)), {k: _ref(v) for k, v in attrs.items()}, numbers, shapes, _line(), dtypes)
        )
        made = [Recorder(self, a, Ref(n)) for a, n in zip(arrays, numbers, strict=True)]
        return made if several else made[0]


def _line() -> str:
    frame: Any = sys._getframe(2)
    while frame is not None and ("/lossforge/" in frame.f_code.co_filename or "/numpy/" in frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}" if frame else ""


def _ref(value: Any) -> Any:
    if isinstance(value, Recorder):
        return value.ref
    if isinstance(value, list | tuple):
        return tuple(map(_ref, value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, slice):
        return ("slice", _ref(value.start), _ref(value.stop), _ref(value.step))
    return (
        "..."
        if value is Ellipsis
        else value.__name__
        if isinstance(value, type)
        else str(value)
        if isinstance(value, np.dtype)
        else value
    )


def _value(value: Any) -> Any:
    if isinstance(value, Recorder):
        return value.array
    if isinstance(value, list | tuple):
        return type(value)(map(_value, value))
    return value


def _refuse(what: str) -> NoReturn:
    raise AdoptionError(f"{_line()}: {what}")


class Recorder(NDArrayOperatorsMixin):
    """An array that writes down what is done to it."""

    def __init__(self, tape: _Tape, array: np.ndarray, ref: Ref) -> None:
        self.tape, self.array, self.ref = tape, array, ref

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if options.get("out") is not None:
            _refuse(
                f"np.{ufunc.__name__}(…, out=…), or an operator such as +=, writes into an array; use the result instead"
            )
        value = getattr(ufunc, method)(*map(_value, inputs), **{k: _value(v) for k, v in options.items()})
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        return self.tape.note(name, inputs, options, value)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        name = func.__name__
        if name in ("shape", "ndim", "size"):
            return func(*map(_value, args))
        bound = inspect.signature(func).bind(*args, **kwargs)
        given = {k: v for k, v in bound.arguments.items() if v is not np._NoValue}
        if given.get("out") is not None:
            _refuse(f"np.{name}(…, out=…) writes into an array; use the result instead")
        return self.tape.note("np." + name, (), given, func(*_value(args), **{k: _value(v) for k, v in kwargs.items()}))

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        return self.tape.note("getitem", (self, *keys), {}, self.array[_value(keys)])

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "ndim", "size", "dtype"):
            return getattr(self.array, name)
        if name == "T":
            return np.transpose(self)
        if name in ("sum", "mean", "max", "min", "prod", "std", "var", "reshape", "ravel", "transpose", "squeeze", "clip",
                    "argmax", "argmin", "cumsum", "take", "argsort", "any", "all", "swapaxes", "round", "dot"):  # fmt: skip
            return lambda *args, **kwargs: self._method(name, *args, **kwargs)
        if name in ("flatten",):
            return lambda: np.ravel(self)
        if name in ("copy",):
            return lambda: self
        if name in ("astype",):
            return lambda dtype, **_: self.tape.note("astype", (self,), {}, self.array.astype(dtype))
        if name in ("item", "tolist"):
            _refuse(f".{name}() takes a Python number out of an array; keep arrays")
        raise AttributeError(name)

    def _method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name in ("reshape", "transpose") and len(args) > 1:
            args = (args,)
        return getattr(np, name)(self, *args, **kwargs)

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self.array)))

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse("an array is converted (np.asarray of it, or another library); work on it as it is")

    def __bool__(self) -> bool:
        _refuse("a decision that depends on values (`if`, `and`, `or`); use np.where")

    def __float__(self) -> float:
        _refuse("float() takes a Python number out of an array; keep arrays")

    def __int__(self) -> int:
        _refuse("int() takes a Python number out of an array; keep arrays")

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        _refuse("an array is written to in place; use np.where")

    def _in_place(self, other: Any) -> NoReturn:
        _refuse("an operator such as += writes into an array; write x = x + y")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = _in_place


# ------------------------------------------------------------------------------------- what the operations mean


def _kind(dtype: str) -> Kind:
    return Kind.BOOL if dtype == "bool" else Kind.FLOAT if "float" in dtype else Kind.INDEX


def _arithmetic(op: str) -> Rule:
    return lambda imp, step, *args: imp.cast(imp.elementwise(op, *args), _kind(step.dtypes[0]))


def _formula(function: Callable[..., Any]) -> Rule:
    return lambda imp, step, *args: imp.map(function, *args)


def _f(op: str, *args: Any) -> Any:
    return ir.elementwise(op, *args)


def _given(imp: Importer, step: Step, name: str, default: Any = None) -> Any:
    value = step.attrs.get(name, default)
    return imp.values[value.index] if isinstance(value, Ref) else value


def _reduce(op: str) -> Rule:
    def rule(imp: Importer, step: Step, *args: Any) -> Tensor:
        if args:  # np.add.reduce
            return imp.reduce(op, args[0], step.attrs.get("axis", 0), bool(step.attrs.get("keepdims")))
        unknown = set(step.attrs) - {"a", "axis", "keepdims", "dtype", "ddof"}
        if unknown:
            raise Refused(f"the option {sorted(unknown)[0]!r}")
        result = imp.reduce(op, _given(imp, step, "a"), step.attrs.get("axis"), bool(step.attrs.get("keepdims", False)))
        return imp.cast(result, _kind(step.dtypes[0]))

    return rule


def _var(root: bool) -> Rule:
    def rule(imp: Importer, step: Step) -> Tensor:
        found = imp.var(
            _given(imp, step, "a"),
            step.attrs.get("axis"),
            step.attrs.get("ddof", 0),
            bool(step.attrs.get("keepdims", False)),
        )
        return imp.elementwise("sqrt", found) if root else found

    return rule


def _shape(imp: Importer, step: Step) -> Tensor:
    return imp.reshape(_given(imp, step, "a"), step.shapes[0])


def _getitem(imp: Importer, step: Step, x: Any, *keys: Any) -> Tensor:
    t = imp.tensor(x)
    used = sum(1 for k in keys if k is not None and not (isinstance(k, str) and k == "..."))
    if not any(isinstance(k, str) and k == "..." for k in keys):
        keys = (*keys, "...")
    d, arrays = 0, 0
    for key in keys:
        if key is None:
            t = imp.unsqueeze(t, d)
            d += 1
        elif isinstance(key, str):
            d += t.rank - d - (used - sum(1 for k in keys[: keys.index("...")] if k is not None))
        elif isinstance(key, tuple) and key and key[0] == "slice":
            step_ = 1 if key[3] is None else imp.integer(key[3])
            n = imp.extents(t.dims[d])
            if step_ == -1 and key[1] is None and key[2] is None:
                t = imp.along("flip", t, d)
            else:
                t = imp.slice(t, d, _bounds(key[1], 0, n), _bounds(key[2], None, n), step_)
            d += 1
        elif isinstance(key, int | Varying) and not isinstance(key, bool):
            t = imp.select(t, d, key)
        else:
            index = imp.tensor(key)
            arrays += 1
            if index.node.kind is Kind.BOOL or arrays > 1:
                raise Refused(
                    "a selection by truth values, or by several arrays at once; use np.where or np.take_along_axis"
                )
            t = imp.take(t, index, d)
            d += index.rank
    return t


def _bounds(value: Any, default: int | None, n: Sequence[int]) -> list[int]:
    values = value.values if isinstance(value, Varying) else (value,) * len(n)
    result = []
    for v, size in zip(values, n, strict=True):
        v = (default if default is not None else size) if v is None else v
        result.append(min(max(v + size if v < 0 else v, 0), size))
    return result


def _where(imp: Importer, step: Step) -> Tensor:
    c, x, y = (_given(imp, step, k) for k in ("condition", "x", "y"))
    return imp.cast(imp.elementwise("where", c, x, y), _kind(step.dtypes[0]))


def _clip(imp: Importer, step: Step, *args: Any) -> Tensor:
    names = ("a", "a_min", "a_max", "min", "max")
    x, low, high, low_, high_ = (_given(imp, step, k) for k in names)
    low, high = low if low is not None else low_, high if high is not None else high_
    t = imp.tensor(x)
    if low is not None:
        t = imp.elementwise("maximum", t, low)
    return t if high is None else imp.elementwise("minimum", t, high)


def _expand(imp: Importer, step: Step) -> Tensor:
    return imp.reshape(_given(imp, step, "a"), step.shapes[0])


def _transpose(imp: Importer, step: Step) -> Tensor:
    t = imp.tensor(_given(imp, step, "a"))
    return imp.permute(t, step.attrs.get("axes") or range(t.rank)[::-1])


def _concatenate(imp: Importer, step: Step, *args: Any) -> Tensor:
    raise Refused("use arithmetic on slices instead")


def _matmul(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    return _product(imp, imp.tensor(x), imp.tensor(y))


def _product(imp: Importer, a: Tensor, b: Tensor) -> Tensor:
    if a.rank > 2 or b.rank > 2:
        raise Refused("a matrix product of stacks; use np.einsum")
    left, right = "ik"[2 - a.rank :], "kj"[: b.rank]
    return imp.einsum(f"{left},{right}->{'i' * (a.rank == 2)}{'j' * (b.rank == 2)}", a, b)


def _einsum(imp: Importer, step: Step) -> Tensor:
    spec, *operands = step.attrs["operands"]
    return imp.einsum(spec, *(imp.values[o.index] if isinstance(o, Ref) else o for o in operands))


def _cumsum(imp: Importer, step: Step) -> Tensor:
    axis = step.attrs.get("axis")
    t = imp.tensor(_given(imp, step, "a"))
    return imp.along("cumsum", t, imp.dim(t, axis if axis is not None else 0))


def _diff(imp: Importer, step: Step) -> Tensor:
    t = imp.tensor(_given(imp, step, "a"))
    d = imp.dim(t, step.attrs.get("axis", -1))
    if step.attrs.get("n", 1) != 1:
        raise Refused("np.diff with n")
    n = imp.extents(t.dims[d])
    return imp.elementwise(
        "sub", imp.slice(t, d, [1] * imp.count, n), imp.slice(t, d, [0] * imp.count, [m - 1 for m in n])
    )


def _sort(imp: Importer, step: Step) -> Tensor:
    t = imp.tensor(_given(imp, step, "a"))
    return imp.sort(t, imp.dim(t, step.attrs.get("axis", -1)))[step.op == "np.argsort"]


def _norm(imp: Importer, step: Step) -> Tensor:
    order = step.attrs.get("ord")
    if order not in (None, 2) or (order == 2 and step.attrs.get("axis") is None):
        raise Refused(f"np.linalg.norm with ord={order!r}")
    x = _given(imp, step, "x")
    return imp.elementwise(
        "sqrt",
        imp.reduce("sum", imp.elementwise("mul", x, x), step.attrs.get("axis"), bool(step.attrs.get("keepdims"))),
    )


def _along_axis(imp: Importer, step: Step) -> Tensor:
    t, at = imp.tensor(_given(imp, step, "arr")), imp.tensor(_given(imp, step, "indices"))
    d = imp.dim(t, step.attrs["axis"])
    t = imp.single(t, d)
    return imp.gather((Tensor(t.node, (*t.dims[:d], (), *t.dims[d + 1 :])), t.dims[d]), at, d)


_PLAIN = {
    "exp": "exp", "log": "log", "log1p": "log1p", "expm1": "expm1", "sqrt": "sqrt", "sin": "sin", "cos": "cos", "tan": "tan",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arctan2": "atan2", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh",
    "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "floor": "floor", "ceil": "ceil", "rint": "round",
    "logaddexp": "logaddexp", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "equal": "eq",
    "not_equal": "ne", "logical_and": "and", "logical_or": "or", "logical_not": "not", "divide": "div", "true_divide": "div",
    "expit": "sigmoid", "log_expit": "log_sigmoid", "xlogy": "xlogy", "gammaln": "lgamma", "psi": "digamma", "erf": "erf",
    "erfc": "erfc",
}  # fmt: skip

RULES: Mapping[str, Rule] = {
    **{k: rule_for(v) for k, v in _PLAIN.items()},
    **{k: _arithmetic(v) for k, v in {
        "add": "add", "subtract": "sub", "multiply": "mul", "negative": "neg", "absolute": "abs", "fabs": "abs", "sign": "sign",
        "maximum": "maximum", "minimum": "minimum", "power": "pow", "float_power": "pow"}.items()},
    "square": _formula(lambda x: x * x), "reciprocal": _formula(lambda x: 1.0 / x),
    "log2": _formula(lambda x: _f("log", x) / np.log(2.0).item()), "log10": _formula(lambda x: _f("log", x) / np.log(10.0).item()),
    "exp2": _formula(lambda x: _f("exp", x * np.log(2.0).item())), "isnan": _formula(lambda x: _f("ne", x, x)),
    "positive": lambda imp, step, x: imp.tensor(x), "hypot": _formula(lambda x, y: _f("sqrt", x * x + y * y)),
    "clip": lambda imp, step, x, low, high: imp.elementwise("minimum", imp.elementwise("maximum", x, low), high),
    "logit": _formula(lambda x: _f("log", x) - _f("log1p", -x)), "matmul": _matmul, "getitem": _getitem,
    "astype": lambda imp, step, x: imp.cast(x, _kind(step.dtypes[0])),
    "add.reduce": _reduce("sum"), "maximum.reduce": _reduce("max"), "minimum.reduce": _reduce("min"),
    **{f"np.{k}": _reduce(v) for k, v in {
        "sum": "sum", "mean": "mean", "max": "max", "amax": "max", "min": "min", "amin": "min", "prod": "prod", "any": "any",
        "all": "all", "argmax": "argmax", "argmin": "argmin", "average": "mean"}.items()},
    "np.var": _var(False), "np.std": _var(True), "np.where": _where, "np.clip": _clip, "np.reshape": _shape, "np.ravel": _shape,
    "np.squeeze": _expand, "np.expand_dims": _expand, "np.transpose": _transpose, "np.einsum": _einsum, "np.cumsum": _cumsum,
    "np.diff": _diff, "np.sort": _sort, "np.argsort": _sort, "np.norm": _norm, "np.take_along_axis": _along_axis,
    "np.dot": lambda imp, step: _product(imp, imp.tensor(_given(imp, step, "a")), imp.tensor(_given(imp, step, "b"))),
    "np.ones_like": lambda imp, step: imp.full(1.0, step.shapes[0]), "np.zeros_like": lambda imp, step: imp.full(0.0, step.shapes[0]),
    "np.swapaxes": lambda imp, step: _swap(imp, step),
}  # fmt: skip


def _swap(imp: Importer, step: Step) -> Tensor:
    t = imp.tensor(_given(imp, step, "a"))
    order = list(range(t.rank))
    i, j = imp.dim(t, step.attrs["axis1"]), imp.dim(t, step.attrs["axis2"])
    order[i], order[j] = j, i
    return imp.permute(t, order)
