"""TensorFlow and Keras: functions and losses, as the graph of a concrete function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from lossforge import ir
from lossforge.errors import AdoptionError
from lossforge.frontends.positional import Importer, Refused, Rule, Tensor, rule_for
from lossforge.frontends.recording import Recording, Ref, Step, Varying, rounded
from lossforge.ir import Kind


class TensorFlowFrontEnd:
    """See `lossforge.frontends.recording.FrontEnd`."""

    name = "tensorflow"

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.rules = RULES
        self.object = None if inspect.isroutine(function) else function

    def signature(self) -> inspect.Signature:
        """The names of the arguments."""
        if self.object is not None and hasattr(self.object, "call"):
            return inspect.signature(self.object.call)
        return inspect.signature(self.function)

    def attributes(self) -> dict[str, float]:
        """Numbers that a Keras loss passes on to its function, or keeps."""
        if self.object is None:
            return {}
        kept = dict(getattr(self.object, "_fn_kwargs", {}))
        if not kept:
            kept = {k: v for k, v in vars(self.object).items() if not k.startswith("_")}
        return {k: v for k, v in kept.items() if isinstance(v, int | float) and not isinstance(v, bool)}

    @contextmanager
    def _with(self, parameters: Mapping[str, Any]) -> Any:
        """The loss's own numbers set, and the rest as keyword arguments."""
        mine = {k: v for k, v in parameters.items() if k in self.attributes()}
        store = getattr(self.object, "_fn_kwargs", None) or vars(self.object) if self.object is not None else {}
        before = {k: store[k] for k in mine}
        store.update(mine)
        try:
            yield {k: v for k, v in parameters.items() if k not in mine}
        finally:
            store.update(before)

    def explain(self, error: Exception) -> str:
        """What an exception of the tracer means for the user."""
        text = (str(error).strip().splitlines() or [""])[0]
        if "symbolic" in text or "NumPy" in text or "tf.Tensor" in text and "bool" in text:
            return f"it takes a decision or a Python number from values ({text[:200]}); use tf.where, and tensors throughout"
        return f"TensorFlow cannot run it at other sizes or trace it ({type(error).__name__}: {text[:300]})"

    def record(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Recording:
        """The graph of the function, for these shapes."""
        with self._with(parameters) as options:
            made = tf.function(lambda *a: self.function(*a, **options), autograph=False)
            concrete = made.get_concrete_function(*(tf.TensorSpec(a.shape, a.dtype) for a in arrays))
        return _read(concrete, arrays)

    def run(
        self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any], wrt: Sequence[int]
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """The value, and the gradient of its sum by a tape."""
        given = [tf.constant(a) for a in arrays]
        watched = [given[i] for i in wrt]
        with self._with(parameters) as options, tf.GradientTape() as tape:
            for w in watched:
                tape.watch(w)
            value = self.function(*given, **options)
        slopes = tape.gradient(value, watched, unconnected_gradients="zero")
        return value.numpy(), [tf.convert_to_tensor(s).numpy() for s in slopes]


def front_end(function: Callable[..., Any]) -> TensorFlowFrontEnd:
    """The front end for one function."""
    return TensorFlowFrontEnd(function)


_FOLDED: Mapping[str, Callable[..., Any]] = {
    "Mul": np.multiply, "RealDiv": np.divide, "Sub": np.subtract, "AddV2": np.add, "Maximum": np.maximum,
    "Minimum": np.minimum, "FloorDiv": np.floor_divide, "Neg": np.negative, "Identity": lambda x: x, "Log": np.log,
    "Sqrt": np.sqrt, "Range": np.arange, "Squeeze": np.squeeze, "Square": np.square, "Exp": np.exp, "Pow": np.power,
}  # fmt: skip
"""What is worked out from constants alone, so that sizes arrive as numbers."""


def _read(concrete: Any, arrays: Sequence[np.ndarray]) -> Recording:
    numbers: dict[str, Any] = {t.name: Ref(i) for i, t in enumerate(concrete.inputs[: len(arrays)])}
    steps: list[Step] = []
    count = len(arrays)
    if len(concrete.inputs) > len(arrays):
        raise AdoptionError("the loss uses a tf.Variable; make it an argument")
    if len(concrete.outputs) != 1:
        raise AdoptionError("the loss returned several values; expected one tensor")

    def constant(value: Any) -> Any:
        array = np.asarray(value)
        if array.ndim:
            return array
        return rounded(array.item()) if array.dtype.kind == "f" else array.item()

    for op in concrete.graph.get_operations():
        if op.type in ("Placeholder", "NoOp", "Assert") or not op.outputs:
            continue
        static = [tf.get_static_value(t) for t in op.outputs]
        if all(s is not None for s in static):
            numbers.update({t.name: constant(s) for t, s in zip(op.outputs, static, strict=True)})
            continue
        args = tuple(numbers[t.name] for t in op.inputs)
        plain = all(isinstance(a, np.ndarray | int | float) for a in args)
        if plain and op.type in (*_FOLDED, "Cast", "Prod", "Sum"):
            if op.type == "Cast":
                found = np.asarray(args[0]).astype(op.outputs[0].dtype.as_numpy_dtype)
            elif op.type in ("Prod", "Sum"):
                axes = tuple(np.atleast_1d(args[1]))
                found = getattr(np, op.type.lower())(args[0], axis=axes if np.ndim(args[0]) else None)
            else:
                found = np.asarray(_FOLDED[op.type](*args)).astype(op.outputs[0].dtype.as_numpy_dtype)
            numbers[op.outputs[0].name] = constant(found)
            continue
        if any(t.shape.rank is None or None in t.shape for t in op.outputs):
            raise AdoptionError(f"{op.type}, {_where(op)}: the size of its result depends on values; use tf.where")
        outputs = tuple(range(count, count + len(op.outputs)))
        count += len(op.outputs)
        numbers.update({t.name: Ref(i) for t, i in zip(op.outputs, outputs, strict=True)})
        attrs = {
            k: _attribute(op, k) for k in op.node_def.attr if not k.startswith("_") and k not in ("value", "shape")
        }
        shapes = tuple((tuple(t.shape),) for t in op.outputs)
        steps.append(Step(op.type, args, attrs, outputs, shapes, _where(op), tuple(t.dtype.name for t in op.outputs)))
    return Recording(tuple((tuple(a.shape),) for a in arrays), tuple(steps), numbers[concrete.outputs[0].name])


def _attribute(op: Any, key: str) -> Any:
    try:
        value = op.get_attr(key)
    except ValueError:
        return None
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list | tuple):
        return tuple(v.decode() if isinstance(v, bytes) else v if isinstance(v, int | float) else str(v) for v in value)
    return value if isinstance(value, int | float | bool | None) else str(value)


def _where(op: Any) -> str:
    for frame in reversed(list(op.traceback or ())):
        if not any(p in frame.filename for p in ("/tensorflow/", "/keras/", "/lossforge/")):
            return f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} ({frame.line})"
    return ""


# ------------------------------------------------------------------------------------- what the operations mean


def _kind(dtype: str) -> Kind:
    return Kind.BOOL if dtype == "bool" else Kind.FLOAT if "float" in dtype else Kind.INDEX


def _arithmetic(op: str) -> Rule:
    return lambda imp, step, *args: imp.cast(imp.elementwise(op, *args), _kind(step.dtypes[0]))


def _formula(function: Callable[..., Any]) -> Rule:
    return lambda imp, step, *args: imp.map(function, *args)


def _f(op: str, *args: Any) -> Any:
    return ir.elementwise(op, *args)


def _axes(value: Any) -> list[int]:
    if isinstance(value, Tensor | Varying):
        raise Refused("axes that depend on sizes")
    return [int(v) for v in np.atleast_1d(value)]


def _reduce(op: str) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, axes: Any) -> Tensor:
        if not len(_axes(axes)):
            return imp.tensor(x)
        return imp.cast(imp.reduce(op, x, _axes(axes), bool(step.attrs.get("keep_dims"))), _kind(step.dtypes[0]))

    return rule


def _arg(op: str) -> Rule:
    return lambda imp, step, x, axis: imp.reduce(op, x, _axes(axis))


def _shape(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
    return imp.reshape(x, step.shapes[0])


def _expand(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
    return imp.expand(x, step.shapes[0])


def _full(value: Any) -> Rule:
    return lambda imp, step, *args: imp.full(imp.cast(value, _kind(step.dtypes[0])), step.shapes[0])


def _squeeze(imp: Importer, step: Step, x: Any) -> Tensor:
    t = imp.tensor(x)
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
    logp = imp.softmax(logits, 1, log=True)
    picked = imp.gather((Tensor(logp.node, (logp.dims[0],)), imp.single(logp, 1).dims[1]), imp.tensor(labels), 1)
    return imp.elementwise("neg", picked), None


def _gather(imp: Importer, step: Step, x: Any, index: Any, axis: Any = 0) -> Tensor:
    if step.attrs.get("batch_dims"):
        raise Refused("tf.gather with batch_dims; use one_hot and a sum")
    t = imp.tensor(x)
    return imp.take(t, index, imp.dim(t, _axes(axis)[0]))


def _one_hot(imp: Importer, step: Step, index: Any, depth: Any, on: Any, off: Any) -> Tensor:
    t = imp.tensor(index)
    if step.attrs.get("axis", -1) not in (-1, t.rank):
        raise Refused("tf.one_hot with an axis that is not the last")
    counter = imp.arange([s[-1] for s in step.shapes[0]])
    return imp.elementwise("where", imp.elementwise("eq", imp.unsqueeze(t, t.rank), counter), on, off)


def _strided_slice(imp: Importer, step: Step, x: Any, begin: Any, end: Any, strides: Any) -> Tensor:
    t = imp.tensor(x)
    masks = {k: step.attrs.get(f"{k}_mask") or 0 for k in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    firsts, lasts = (
        [np.atleast_1d(v) for v in (e.values if isinstance(e, Varying) else (e,) * imp.count)] for e in (begin, end)
    )
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
            values = [int(f[i]) for f in firsts]
            t = imp.select(t, d, values[0] if len(set(values)) == 1 else Varying(values))
        else:
            n = imp.extents(t.dims[d])
            if steps[i] < 0:
                if steps[i] == -1 and masks["begin"] & bit and masks["end"] & bit:
                    t = imp.along("flip", t, d)
                    d += 1
                    continue
                raise Refused("a slice with a negative step")
            first = [0 if masks["begin"] & bit else _end(int(f[i]), m) for f, m in zip(firsts, n, strict=True)]
            last = [m if masks["end"] & bit else _end(int(e[i]), m) for e, m in zip(lasts, n, strict=True)]
            t = imp.slice(t, d, first, last, steps[i])
            d += 1
    return t


def _slice(imp: Importer, step: Step, x: Any, begin: Any, size: Any) -> Tensor:
    t = imp.tensor(x)
    firsts = [np.atleast_1d(v) for v in (begin.values if isinstance(begin, Varying) else (begin,) * imp.count)]
    for d in range(t.rank):
        first = [int(f[d]) for f in firsts]
        t = imp.slice(t, d, first, [f + s[d] for f, s in zip(first, step.shapes[0], strict=True)])
    return t


def _branch(imp: Importer, step: Step, *args: Any) -> Tensor:
    raise Refused("a branch or loop that depends on values; use tf.where")


def _random(imp: Importer, step: Step, *args: Any) -> Tensor:
    raise Refused("random numbers; a loss gives one value for its inputs. Make the random array an argument")


def _end(value: int, size: int) -> int:
    return min(max(value + size if value < 0 else value, 0), size)


def _concat(imp: Importer, step: Step, *args: Any) -> Tensor:
    *parts, axis = args
    t = imp.tensor(parts[0])
    return imp.concat(parts, imp.dim(t, _axes(axis)[0]))


def _pack(imp: Importer, step: Step, *parts: Any) -> Tensor:
    tensors = [imp.tensor(p) for p in parts]
    d = step.attrs.get("axis") or 0
    d = d + tensors[0].rank + 1 if d < 0 else d
    return imp.concat([imp.unsqueeze(t, d) for t in tensors], d)


def _unpack(imp: Importer, step: Step, x: Any) -> tuple[Tensor, ...]:
    t = imp.tensor(x)
    return tuple(imp.select(t, imp.dim(t, step.attrs.get("axis") or 0), i) for i in range(len(step.outputs)))


def _split(imp: Importer, step: Step, axis: Any, x: Any) -> tuple[Tensor, ...]:
    t = imp.tensor(x)
    d, at, pieces = imp.dim(t, _axes(axis)[0]), [0] * imp.count, []
    for shapes in step.shapes:
        ends = [a + s[d] for a, s in zip(at, shapes, strict=True)]
        pieces.append(imp.slice(t, d, at, ends))
        at = ends
    return tuple(pieces)


def _top_k(imp: Importer, step: Step, x: Any, k: Any) -> tuple[Tensor, ...]:
    t = imp.tensor(x)
    found = imp.sort(t, t.rank - 1, descending=True)
    stop = [s[-1] for s in step.shapes[0]]
    return tuple(imp.slice(v, t.rank - 1, [0] * imp.count, stop) for v in found)


def _cumsum(imp: Importer, step: Step, x: Any, axis: Any) -> Tensor:
    if step.attrs.get("exclusive"):
        raise Refused("an exclusive cumulative sum")
    t = imp.tensor(x)
    return imp.along("cumsum", t, imp.dim(t, _axes(axis)[0]), bool(step.attrs.get("reverse")))


def _div_no_nan(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    return imp.map(lambda a, b: ir.where(_f("eq", b, 0.0), 0.0, a / ir.where(_f("eq", b, 0.0), 1.0, b)), x, y)


def _clip(imp: Importer, step: Step, x: Any, low: Any, high: Any) -> Tensor:
    return imp.elementwise("minimum", imp.elementwise("maximum", x, low), high)


def _same(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
    return imp.tensor(x)


_PLAIN = {
    "Exp": "exp", "Log": "log", "Log1p": "log1p", "Expm1": "expm1", "Sqrt": "sqrt", "Sin": "sin", "Cos": "cos", "Tan": "tan",
    "Asin": "asin", "Acos": "acos", "Atan": "atan", "Atan2": "atan2", "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh",
    "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh", "Erf": "erf", "Erfc": "erfc", "Lgamma": "lgamma",
    "Digamma": "digamma", "Sigmoid": "sigmoid", "Softplus": "softplus", "Floor": "floor", "Ceil": "ceil", "Rint": "round",
    "Round": "round", "Less": "lt", "LessEqual": "le", "Greater": "gt", "GreaterEqual": "ge", "Equal": "eq", "NotEqual": "ne",
    "LogicalAnd": "and", "LogicalOr": "or", "LogicalNot": "not", "StopGradient": "stop_gradient", "Xlogy": "xlogy",
}  # fmt: skip

RULES: Mapping[str, Rule] = {
    **{k: rule_for(v) for k, v in _PLAIN.items()},
    **{k: _arithmetic(v) for k, v in {
        "AddV2": "add", "Add": "add", "Sub": "sub", "Mul": "mul", "RealDiv": "div", "Maximum": "maximum", "Minimum": "minimum",
        "Neg": "neg", "Abs": "abs", "Sign": "sign", "Pow": "pow", "SelectV2": "where", "Select": "where"}.items()},
    "Square": _formula(lambda x: x * x), "SquaredDifference": _formula(lambda x, y: (x - y) * (x - y)),
    "Rsqrt": _formula(lambda x: 1.0 / _f("sqrt", x)), "Reciprocal": _formula(lambda x: 1.0 / x), "Inv": _formula(lambda x: 1.0 / x),
    "Relu": _formula(lambda x: _f("maximum", x, 0.0)), "DivNoNan": _div_no_nan, "ClipByValue": _clip,
    "MulNoNan": _formula(lambda x, y: ir.where(_f("eq", y, 0.0), 0.0, x * y)), "Xdivy": _formula(lambda x, y: ir.where(_f("eq", x, 0.0), 0.0, x / y)),
    "IsNan": _formula(lambda x: _f("ne", x, x)), "AddN": lambda imp, step, *xs: _sum(imp, xs),
    "Sum": _reduce("sum"), "Mean": _reduce("mean"), "Max": _reduce("max"), "Min": _reduce("min"), "Prod": _reduce("prod"),
    "Any": _reduce("any"), "All": _reduce("all"), "ArgMax": _arg("argmax"), "ArgMin": _arg("argmin"),
    "Reshape": _shape, "BroadcastTo": _expand, "Squeeze": _squeeze, "ExpandDims": _expand_dims, "Transpose": _transpose,
    "MatMul": _matmul, "BatchMatMulV2": _matmul, "BatchMatMul": _matmul, "Einsum": lambda imp, step, *xs: imp.einsum(step.attrs["equation"], *xs),
    "Softmax": _softmax(False), "LogSoftmax": _softmax(True), "SoftmaxCrossEntropyWithLogits": _cross_entropy,
    "SparseSoftmaxCrossEntropyWithLogits": _sparse_cross_entropy,
    "Cast": lambda imp, step, x: imp.cast(x, _kind(step.dtypes[0])),
    "GatherV2": _gather, "OneHot": _one_hot, "StridedSlice": _strided_slice, "ConcatV2": _concat, "Pack": _pack, "Unpack": _unpack,
    "Split": _split, "TopKV2": _top_k, "Cumsum": _cumsum, "Fill": lambda imp, step, dims, v: imp.full(v, step.shapes[0]),
    "OnesLike": _full(1), "ZerosLike": _full(0), "Identity": _same, "PreventGradient": _same, "EnsureShape": _same, "CheckNumericsV2": _same,
    "Slice": _slice, **{op: _branch for op in ("If", "StatelessIf", "While", "StatelessWhile", "Case", "StatelessCase")},
    **{op: _random for op in ("RandomUniform", "RandomStandardNormal", "StatelessRandomUniformV2", "StatelessRandomNormalV2")},
    "Range": lambda imp, step, *a: imp.arange([s[0] for s in step.shapes[0]]),
}  # fmt: skip


def _sum(imp: Importer, terms: Sequence[Any]) -> Tensor:
    result = imp.tensor(terms[0])
    for t in terms[1:]:
        result = imp.elementwise("add", result, t)
    return result
