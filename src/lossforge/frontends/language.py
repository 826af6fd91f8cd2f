"""The public language: what a loss definition is written in.

A definition is a plain Python function. It is called once with `Traced` values, which record what is done to them;
Python's operators, the functions of this module and NumPy's functions of the same names all work on them.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeAlias

from lossforge import ir
from lossforge.errors import AxisError, DefinitionError, TracingError
from lossforge.ir import Axis, Kind, Node

AxisNames: TypeAlias = str | Sequence[str] | None
Value: TypeAlias = "Traced | float | int | bool"


class NeedsIndex(Exception):
    """Internal: an input turned out to hold class indices; tracing starts again with that known."""

    def __init__(self, name: str) -> None:
        self.name = name


class Traced:
    """A value inside of a loss definition: it has named axes, but no numbers yet."""

    __slots__ = ("node",)
    __array_priority__ = 1000

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def axes(self) -> frozenset[Axis]:
        """The names of the value's axes."""
        return self.node.axes

    def __repr__(self) -> str:
        return f"Traced({', '.join(sorted(self.node.axes)) or 'scalar'})"

    # ------------------------------------------------------------------ operators

    def __add__(self, other: Any) -> Traced:
        return _apply("add", self, other)

    def __radd__(self, other: Any) -> Traced:
        return _apply("add", other, self)

    def __sub__(self, other: Any) -> Traced:
        return _apply("sub", self, other)

    def __rsub__(self, other: Any) -> Traced:
        return _apply("sub", other, self)

    def __mul__(self, other: Any) -> Traced:
        return _apply("mul", self, other)

    def __rmul__(self, other: Any) -> Traced:
        return _apply("mul", other, self)

    def __truediv__(self, other: Any) -> Traced:
        return _apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Traced:
        return _apply("div", other, self)

    def __pow__(self, other: Any) -> Traced:
        return _apply("pow", self, other)

    def __rpow__(self, other: Any) -> Traced:
        return _apply("pow", other, self)

    def __mod__(self, other: Any) -> Traced:
        return mod(self, other)

    def __rmod__(self, other: Any) -> Traced:
        return mod(other, self)

    def __floordiv__(self, other: Any) -> Traced:
        return floor(_apply("div", self, other))

    def __rfloordiv__(self, other: Any) -> Traced:
        return floor(_apply("div", other, self))

    def __neg__(self) -> Traced:
        return _apply("neg", self)

    def __pos__(self) -> Traced:
        return self

    def __abs__(self) -> Traced:
        return _apply("abs", self)

    def __lt__(self, other: Any) -> Traced:
        return _apply("lt", self, other)

    def __le__(self, other: Any) -> Traced:
        return _apply("le", self, other)

    def __gt__(self, other: Any) -> Traced:
        return _apply("gt", self, other)

    def __ge__(self, other: Any) -> Traced:
        return _apply("ge", self, other)

    def __eq__(self, other: object) -> Traced:  # type: ignore[override]
        return _apply("eq", self, other)

    def __ne__(self, other: object) -> Traced:  # type: ignore[override]
        return _apply("ne", self, other)

    def __and__(self, other: Any) -> Traced:
        return _apply("and", self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Traced:
        return _apply("or", self, other)

    __ror__ = __or__

    def __invert__(self) -> Traced:
        return _apply("not", self)

    __hash__ = None  # type: ignore[assignment]

    # ------------------------------------------------------------------ reductions as methods

    def sum(self, axis: AxisNames = None) -> Traced:
        """`lossforge.sum` of this value."""
        return sum(self, axis)

    def mean(self, axis: AxisNames = None) -> Traced:
        """`lossforge.mean` of this value."""
        return mean(self, axis)

    def max(self, axis: AxisNames = None) -> Traced:
        """`lossforge.max` of this value."""
        return max(self, axis)

    def min(self, axis: AxisNames = None) -> Traced:
        """`lossforge.min` of this value."""
        return min(self, axis)

    # ------------------------------------------------------------------ NumPy's protocols

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Traced:
        if options.pop("out", None) is not None:
            raise TracingError(
                f"np.{ufunc.__name__}(…, out=…) writes in place; a traced value cannot be written to: "
                f"use the result instead"
            )
        function = _UFUNCS.get(ufunc.__name__)
        if method == "reduce" and ufunc.__name__ in _REDUCING_UFUNCS and not options.get("keepdims"):
            return _REDUCING_UFUNCS[ufunc.__name__](inputs[0], options.get("axis"))
        if method != "__call__" or function is None:
            raise TracingError(
                f"np.{ufunc.__name__}{'' if method == '__call__' else '.' + method} has no derivative rule in "
                f"lossforge; known are: {', '.join(sorted(_UFUNCS))}"
            )
        if options:
            raise TracingError(f"np.{ufunc.__name__}: the options {sorted(options)} do not apply to a traced value")
        return function(*inputs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Traced:
        function = _NUMPY_FUNCTIONS.get(func.__name__)
        if function is None:
            raise TracingError(
                f"np.{func.__name__} does not work on a traced value; known are: {', '.join(sorted(_NUMPY_FUNCTIONS))}"
            )
        if kwargs.get("out") is not None:
            raise TracingError(f"np.{func.__name__}(…, out=…) writes in place: use the result instead")
        if kwargs.pop("keepdims", False):
            raise TracingError(
                f"np.{func.__name__}(…, keepdims=True) is not needed: axes are named, and a reduced value broadcasts back"
            )
        return function(*args, **{k: v for k, v in kwargs.items() if v is not None})

    # ------------------------------------------------------------------ what a traced value is not

    def _no_number(self, where: str) -> NoReturn:
        raise TracingError(
            f"{where}: a loss definition is traced once for all inputs, so its values are not known yet. "
            f"Use lf.where(condition, x, y) for a choice that depends on values"
        )

    def __bool__(self) -> bool:
        self._no_number("a traced value was used in `if`, `and`, `or`, `not` or a chained comparison")

    def __float__(self) -> float:
        self._no_number("float() of a traced value")

    def __int__(self) -> int:
        self._no_number("int() of a traced value")

    def __index__(self) -> int:
        self._no_number("a traced value was used as an index")

    def __complex__(self) -> complex:
        self._no_number("complex() of a traced value")

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._no_number("a traced value was converted to a NumPy array")

    def item(self) -> float:
        """Not available: a traced value has no number."""
        self._no_number(".item() of a traced value")

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TracingError(
            "a traced value was written to in place; build a new one instead: lf.where(condition, new, old)"
        )

    def _in_place(self, other: Any) -> NoReturn:
        raise TracingError("in-place arithmetic on a traced value; write x = x + y instead of x += y")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = _in_place

    def __getitem__(self, key: Any) -> NoReturn:
        raise TracingError(
            "a traced value has named axes and no positions; pick along an axis with lf.take(x, index, 'axis')"
        )

    def __iter__(self) -> NoReturn:
        raise TracingError("a traced value cannot be iterated over; reduce it along an axis, as in lf.sum(x, 'axis')")

    def __len__(self) -> int:
        raise TracingError("the size of an axis is known at run time only: use lf.size('axis')")

    @property
    def shape(self) -> tuple[int, ...]:
        """Not available: sizes are run-time values."""
        raise TracingError("a traced value has no shape, since sizes are run-time values: use lf.size('axis')")


# ------------------------------------------------------------------------------------- helpers


def _node(value: Any) -> Node:
    if isinstance(value, Traced):
        return value.node
    if isinstance(value, bool | int | float):
        return ir.constant(value)
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():  # a NumPy scalar
        return ir.constant(value.item())
    raise TracingError(
        f"a {type(value).__name__} met a traced value; a definition may use its own arguments and plain numbers. "
        f"Make the {type(value).__name__} an argument of the loss"
    )


def _apply(op: str, *operands: Any) -> Traced:
    return Traced(ir.elementwise(op, *map(_node, operands)))


def _axes(x: Node, axis: AxisNames, function: str) -> frozenset[Axis]:
    if axis is None:
        return x.axes
    names = (axis,) if isinstance(axis, str | int) else tuple(axis)
    for name in names:
        if not isinstance(name, str):
            raise AxisError(
                f"{function}: axes are named here, not numbered; got {name!r}, expected one of {_list(x.axes)}"
            )
        if name not in x.axes:
            raise AxisError(f"{function}: unknown axis {name!r}; the operand has {_list(x.axes)}")
    return frozenset(names)


def _list(axes: Iterable[Axis]) -> str:
    return ", ".join(repr(a) for a in sorted(axes)) or "no axes"


def _reduce(op: str, x: Value, axis: AxisNames) -> Traced:
    node = ir.as_kind(_node(x), Kind.FLOAT)
    axes = _axes(node, axis, op)
    return Traced(ir.reduction(op, node, axes) if axes else node)


def _index(value: Value, function: str) -> Node:
    node = _node(value)
    if node.kind is Kind.FLOAT and node.op == "input":
        raise NeedsIndex(str(node.attrs[0]))
    if node.kind is Kind.FLOAT and node.op != "constant":
        raise DefinitionError(f"{function}: the index must be an integer argument, or come from argmax or argmin")
    return ir.as_kind(node, Kind.INDEX)


# ------------------------------------------------------------------------------------- elementwise


def _unary(op: str, text: str) -> Callable[[Value], Traced]:
    def function(x: Value) -> Traced:
        return _apply(op, x)

    function.__name__ = function.__qualname__ = op
    function.__doc__ = text
    return function


abs = _unary("abs", "|x|; the subgradient at 0 is 0.")
sign = _unary("sign", "The sign of x: −1, 0 or 1. Its gradient is zero.")
exp = _unary("exp", "e to the power x.")
expm1 = _unary("expm1", "exp(x) − 1, accurate near 0.")
log = _unary("log", "The natural logarithm of x > 0.")
log1p = _unary("log1p", "log(1 + x), accurate near 0, for x > −1.")
sqrt = _unary("sqrt", "The square root of x ≥ 0; its gradient is infinite at 0.")
sin = _unary("sin", "The sine of x, in radians.")
cos = _unary("cos", "The cosine of x, in radians.")
tan = _unary("tan", "The tangent of x, in radians.")
asin = _unary("asin", "The arcsine of −1 ≤ x ≤ 1.")
acos = _unary("acos", "The arccosine of −1 ≤ x ≤ 1.")
atan = _unary("atan", "The arctangent of x.")
sinh = _unary("sinh", "The hyperbolic sine of x.")
cosh = _unary("cosh", "The hyperbolic cosine of x.")
tanh = _unary("tanh", "The hyperbolic tangent of x.")
asinh = _unary("asinh", "The inverse hyperbolic sine of x.")
acosh = _unary("acosh", "The inverse hyperbolic cosine of x ≥ 1.")
atanh = _unary("atanh", "The inverse hyperbolic tangent of −1 < x < 1.")
sigmoid = _unary("sigmoid", "1 / (1 + exp(−x)), without overflow.")
log_sigmoid = _unary("log_sigmoid", "log(sigmoid(x)), without cancellation.")
softplus = _unary("softplus", "log(1 + exp(x)), without overflow.")
erf = _unary("erf", "The error function.")
erfc = _unary("erfc", "1 − erf(x), accurate for large x.")
lgamma = _unary("lgamma", "log |Γ(x)|, for x > 0.")
digamma = _unary("digamma", "The derivative of lgamma, for x > 0.")
floor = _unary("floor", "The largest integer ≤ x. Its gradient is zero.")
ceil = _unary("ceil", "The smallest integer ≥ x. Its gradient is zero.")
round = _unary("round", "x rounded to the nearest integer, ties to even. Its gradient is zero.")
stop_gradient = _unary("stop_gradient", "x, through which no gradient flows.")


def _binary(op: str, text: str) -> Callable[[Value, Value], Traced]:
    def function(x: Value, y: Value) -> Traced:
        return _apply(op, x, y)

    function.__name__ = function.__qualname__ = op
    function.__doc__ = text
    return function


minimum = _binary("minimum", "The smaller of x and y.")
maximum = _binary("maximum", "The larger of x and y.")
power = _binary("pow", "x to the power y.")
atan2 = _binary("atan2", "The angle of the point (second argument, first argument).")
xlogy = _binary("xlogy", "x log(y), and 0 where x is 0.")
logaddexp = _binary("logaddexp", "log(exp(x) + exp(y)), without overflow.")
logical_and = _binary("and", "Whether both hold.")
logical_or = _binary("or", "Whether one holds.")
logical_not = _unary("not", "Whether it does not hold.")


def square(x: Value) -> Traced:
    """x²."""
    return _apply("mul", x, x)


def reciprocal(x: Value) -> Traced:
    """1 / x."""
    return _apply("div", 1.0, x)


def rsqrt(x: Value) -> Traced:
    """1 / sqrt(x), for x > 0."""
    return _apply("div", 1.0, sqrt(x))


def relu(x: Value) -> Traced:
    """maximum(x, 0); the subgradient at 0 is 0."""
    return maximum(x, 0.0)


def mod(x: Value, y: Value) -> Traced:
    """x − y·floor(x / y): the remainder with the sign of y."""
    return _apply("sub", x, _apply("mul", y, floor(_apply("div", x, y))))


def hypot(x: Value, y: Value) -> Traced:
    """sqrt(x² + y²)."""
    return sqrt(_apply("add", square(x), square(y)))


def where(condition: Value, x: Value, y: Value) -> Traced:
    """`x` where the condition holds, `y` elsewhere; the other branch has no influence, not even by a NaN."""
    return _apply("where", condition, x, y)


def clip(x: Value, low: Value | None = None, high: Value | None = None) -> Traced:
    """`x` limited to [low, high]; the subgradient at a limit is 0."""
    result: Value = x
    if low is not None:
        result = maximum(result, low)
    if high is not None:
        result = minimum(result, high)
    return Traced(_node(result))


def surrogate(hard: Value, soft: Value) -> Traced:
    """The value of `hard` with the gradient of `soft` (a straight-through estimator; Bengio et al. 2013)."""
    return _apply("surrogate", hard, soft)


# ------------------------------------------------------------------------------------- along axes


def sum(x: Value, axis: AxisNames = None) -> Traced:
    """The sum over one axis, several, or all."""
    return _reduce("sum", x, axis)


def mean(x: Value, axis: AxisNames = None) -> Traced:
    """The arithmetic mean over one axis, several, or all."""
    node = ir.as_kind(_node(x), Kind.FLOAT)
    axes = _axes(node, axis, "mean")
    return Traced(ir.reduction("sum", node, axes) / ir.sizes(axes)) if axes else Traced(node)


def max(x: Value, axis: AxisNames = None) -> Traced:
    """The largest entry; entries that tie share the gradient equally."""
    return _reduce("max", x, axis)


def min(x: Value, axis: AxisNames = None) -> Traced:
    """The smallest entry; entries that tie share the gradient equally."""
    return _reduce("min", x, axis)


def prod(x: Value, axis: AxisNames = None) -> Traced:
    """The product."""
    return _reduce("prod", x, axis)


def logsumexp(x: Value, axis: AxisNames = None) -> Traced:
    """log(sum(exp(x))), without overflow."""
    return _reduce("logsumexp", x, axis)


def var(x: Value, axis: AxisNames = None) -> Traced:
    """The variance (divided by the count)."""
    return mean(square(_apply("sub", x, mean(x, axis))), axis)


def norm(x: Value, axis: AxisNames = None) -> Traced:
    """The Euclidean norm, sqrt(sum(x²)); its gradient is undefined at 0."""
    return sqrt(sum(square(x), axis))


def softmax(x: Value, axis: AxisNames) -> Traced:
    """exp(x) / sum(exp(x)) along an axis, without overflow."""
    return exp(log_softmax(x, axis))


def log_softmax(x: Value, axis: AxisNames) -> Traced:
    """x − logsumexp(x) along an axis."""
    return _apply("sub", x, logsumexp(x, axis))


def _along(op: str, x: Value, axis: str) -> Traced:
    node = _node(x)
    (name,) = _axes(node, axis, op)
    if name.startswith("*"):
        raise AxisError(f"{op}: {name!r} stands for any number of axes; a position along it is not defined")
    return Traced(ir.reduction(op, node, (name,)))


def argmax(x: Value, axis: str) -> Traced:
    """The position of the largest entry along an axis (the first, where several tie). Its gradient is zero."""
    return _along("argmax", x, axis)


def argmin(x: Value, axis: str) -> Traced:
    """The position of the smallest entry along an axis (the first, where several tie). Its gradient is zero."""
    return _along("argmin", x, axis)


def take(x: Value, index: Value, axis: str) -> Traced:
    """`x` at position `index` along `axis`; the index is an integer argument, or a number."""
    node = _node(x)
    (name,) = _axes(node, axis, "take")
    if name.startswith("*"):
        raise AxisError(f"take: {name!r} stands for any number of axes; a position along it is not defined")
    return Traced(ir.take(node, _index(index, "take"), name))


def one_hot(index: Value, axis: str) -> Traced:
    """1 where the position along `axis` is `index`, 0 elsewhere; the size is that of `axis` in the other arguments."""
    if not isinstance(axis, str) or axis.startswith("*"):
        raise AxisError(f"one_hot: expected the name of one axis, got {axis!r}")
    return Traced(ir.where(ir.elementwise("eq", ir.iota(axis), _index(index, "one_hot")), 1.0, 0.0))


def rename(x: Value, /, axis: str | None = None, new: str | None = None, **names: str) -> Traced:
    """A second, independent copy of an axis: ``rename(x, "batch", "other")`` or ``rename(x, batch="other")``."""
    node = _node(x)
    if axis is not None and new is not None:
        names = {axis: new, **names}
    if not names:
        raise AxisError("rename: give the axis and its new name, as in lf.rename(x, 'batch', 'other')")
    for old, fresh in names.items():
        _axes(node, old, "rename")
        node = ir.rename(node, old, fresh)
    return Traced(node)


def iota(axis: str) -> Traced:
    """The position along an axis: 0, 1, 2 … Equal along an axis and its renamed copy where both are one entry."""
    if not isinstance(axis, str) or axis.startswith("*"):
        raise AxisError(f"iota: expected the name of one axis, got {axis!r}")
    return Traced(ir.iota(axis))


def size(axis: str) -> Traced:
    """The number of entries along an axis, as a number that is known at run time."""
    return Traced(ir.size(axis))


# ------------------------------------------------------------------------------------- NumPy by name

_UFUNCS: dict[str, Callable[..., Traced]] = {
    **{name: lambda x, y, op=op: _apply(op, x, y) for name, op in {
        "add": "add", "subtract": "sub", "multiply": "mul", "divide": "div", "power": "pow", "float_power": "pow",
        "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "equal": "eq", "not_equal": "ne",
    }.items()},
    "negative": lambda x: _apply("neg", x),
    "positive": lambda x: Traced(_node(x)),
    "absolute": abs, "fabs": abs, "sign": sign, "square": square, "sqrt": sqrt, "reciprocal": reciprocal,
    "exp": exp, "expm1": expm1, "log": log, "log1p": log1p,
    "exp2": lambda x: exp(_apply("mul", x, math.log(2))),
    "log2": lambda x: _apply("div", log(x), math.log(2)),
    "log10": lambda x: _apply("div", log(x), math.log(10)),
    "sin": sin, "cos": cos, "tan": tan, "arcsin": asin, "arccos": acos, "arctan": atan, "arctan2": atan2,
    "sinh": sinh, "cosh": cosh, "tanh": tanh, "arcsinh": asinh, "arccosh": acosh, "arctanh": atanh,
    "hypot": hypot, "maximum": maximum, "minimum": minimum, "fmax": maximum, "fmin": minimum,
    "logaddexp": logaddexp, "floor": floor, "ceil": ceil, "rint": round, "remainder": mod, "floor_divide":
    lambda x, y: floor(_apply("div", x, y)),
    "logical_and": logical_and, "logical_or": logical_or, "logical_not": logical_not,
    "bitwise_and": logical_and, "bitwise_or": logical_or, "invert": logical_not,
    "expit": sigmoid, "log_expit": log_sigmoid, "erf": erf, "erfc": erfc, "gammaln": lgamma, "psi": digamma,
    "digamma": digamma, "xlogy": xlogy,
    "xlog1py": lambda x, y: _apply("mul", x, log1p(y)),
    "logit": lambda x: _apply("sub", log(x), log1p(_apply("neg", x))),
}  # fmt: skip

_REDUCING_UFUNCS = {"add": sum, "multiply": prod, "maximum": max, "minimum": min}


def _std(a: Value, axis: AxisNames = None) -> Traced:
    return sqrt(var(a, axis))


_NUMPY_FUNCTIONS: dict[str, Callable[..., Traced]] = {
    "sum": lambda a, axis=None: sum(a, axis),
    "mean": lambda a, axis=None: mean(a, axis),
    "amax": lambda a, axis=None: max(a, axis),
    "max": lambda a, axis=None: max(a, axis),
    "amin": lambda a, axis=None: min(a, axis),
    "min": lambda a, axis=None: min(a, axis),
    "prod": lambda a, axis=None: prod(a, axis),
    "var": lambda a, axis=None: var(a, axis),
    "std": _std,
    "argmax": lambda a, axis: argmax(a, axis),
    "argmin": lambda a, axis: argmin(a, axis),
    "where": where,
    "clip": lambda a, a_min=None, a_max=None, min=None, max=None: clip(
        a, a_min if min is None else min, a_max if max is None else max
    ),
    "logsumexp": lambda a, axis=None: logsumexp(a, axis),
    "softmax": lambda a, axis=None: softmax(a, axis),
    "round": lambda a, decimals=0: round(a),
    "around": lambda a, decimals=0: round(a),
    "abs": abs,
    "absolute": abs,
    "ones_like": lambda a: Traced(ir.constant(1.0)),
    "zeros_like": lambda a: Traced(ir.constant(0.0)),
    "full_like": lambda a, fill_value: Traced(_node(fill_value)),
    "square": square,
}

PUBLIC: Sequence[str] = tuple(
    name
    for name, value in list(globals().items())
    if not name.startswith("_")
    and builtins.callable(value)
    and getattr(value, "__module__", "") == __name__
    and name not in ("Traced", "NeedsIndex")
)
"""The names that `lossforge` exports as functions of the language."""
