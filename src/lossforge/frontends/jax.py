"""JAX: functions, as the jaxpr that `jax.make_jaxpr` gives."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from lossforge import ir
from lossforge.errors import AdoptionError
from lossforge.frontends.positional import Importer, Refused, Rule, Tensor, rule_for
from lossforge.frontends.recording import Recording, Ref, Step, Varying, rounded
from lossforge.ir import Kind

_INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr",
            "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr", "remat": "jaxpr", "checkpoint": "jaxpr"}  # fmt: skip


class JaxFrontEnd:
    """See `lossforge.frontends.recording.FrontEnd`."""

    name = "jax"

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
        """What an exception of the tracer means for the user."""
        text = (str(error).strip().splitlines() or [""])[0]
        if any(k.__name__ in ("ConcretizationTypeError", "TracerArrayConversionError") for k in type(error).__mro__):
            return (
                f"it takes a decision or a Python number from values ({text[:200]}); use jnp.where instead of `if`, and "
                f"jax.numpy instead of numpy"
            )
        return f"JAX cannot run it at other sizes or trace it ({type(error).__name__}: {text[:300]})"

    def record(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Recording:
        """Call the function once under `make_jaxpr`."""
        closed = jax.make_jaxpr(lambda *a: self.function(*a, **parameters))(*map(_narrow, arrays))
        if len(closed.jaxpr.outvars) != 1:
            raise AdoptionError("the loss returned several values; expected one array")
        return _Reader(closed, arrays).recording

    def run(
        self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any], wrt: Sequence[int]
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """The value, and the gradient of its sum by `jax.grad`."""
        given = [jax.numpy.asarray(_narrow(a)) for a in arrays]

        @jax.jit
        def both(*a: Any) -> Any:
            slopes = jax.grad(lambda *b: self.function(*b, **parameters).sum(), argnums=tuple(wrt))(*a)
            return self.function(*a, **parameters), slopes

        value, slopes = both(*given)
        return np.asarray(value), [np.asarray(s) for s in slopes]


def front_end(function: Callable[..., Any]) -> JaxFrontEnd:
    """The front end for one function."""
    return JaxFrontEnd(function)


def _narrow(a: np.ndarray) -> np.ndarray:
    return a.astype(np.int32) if a.dtype == np.int64 else a


class _Reader:
    """A jaxpr as a straight list of steps, calls inlined."""

    def __init__(self, closed: Any, arrays: Sequence[np.ndarray]) -> None:
        self.count = itertools.count()
        self.steps: list[Step] = []
        refs = [Ref(next(self.count)) for _ in closed.jaxpr.invars]
        (result,) = self.run(closed.jaxpr, closed.consts, refs)
        self.recording = Recording(tuple((tuple(a.shape),) for a in arrays), tuple(self.steps), result)

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        known: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
        known.update(zip(jaxpr.constvars, map(_constant, consts), strict=True))

        def read(v: Any) -> Any:
            return _constant(v.val) if isinstance(v, core.Literal) else known[v]

        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            ins = [read(v) for v in eqn.invars]
            if name in _INLINED:
                inner = eqn.params[_INLINED[name]]
                body, constants = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, ())
                outs = self.run(body, constants, ins)
            else:
                numbers = tuple(next(self.count) for _ in eqn.outvars)
                shapes = tuple((tuple(v.aval.shape),) for v in eqn.outvars)
                dtypes = tuple(str(v.aval.dtype) for v in eqn.outvars)
                attrs = {
                    k: _attribute(p) for k, p in eqn.params.items() if k not in ("sharding", "out_sharding", "mesh")
                }
                attrs["rank"] = tuple(len(v.aval.shape) for v in eqn.invars)
                self.steps.append(Step(name, tuple(ins), attrs, numbers, shapes, _where(eqn), dtypes))
                outs = [Ref(n) for n in numbers]
            known.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]


def _attribute(value: Any) -> Any:
    if isinstance(value, int | float | str | bool | None):
        return value
    if isinstance(value, list | tuple):
        names = getattr(value, "_fields", None)
        return {n: _attribute(v) for n, v in zip(names, value, strict=True)} if names else tuple(map(_attribute, value))
    fields = getattr(value, "__dataclass_fields__", None)
    if fields:
        return {n: _attribute(getattr(value, n)) for n in fields}
    return str(value) if not callable(value) else getattr(value, "__name__", "function")


def _constant(value: Any) -> Any:
    array = np.asarray(value)
    if array.ndim:
        return array
    return rounded(array.item()) if array.dtype.kind == "f" else array.item()


def _where(eqn: Any) -> str:
    from jax._src import source_info_util

    try:
        frame = source_info_util.user_frame(eqn.source_info.traceback)
    except (AttributeError, TypeError):
        return ""
    return f"{frame.file_name.rsplit('/', 1)[-1]}:{frame.start_line}" if frame else ""


# ------------------------------------------------------------------------------------- what the operations mean


def _kind(dtype: str) -> Kind:
    return Kind.BOOL if dtype == "bool" else Kind.FLOAT if "float" in dtype else Kind.INDEX


def _arithmetic(op: str) -> Rule:
    return lambda imp, step, *args: imp.cast(imp.elementwise(op, *args), _kind(step.dtypes[0]))


def _reduce(op: str) -> Rule:
    def rule(imp: Importer, step: Step, x: Any) -> Tensor:
        if not step.attrs["axes"]:
            return imp.tensor(x)
        return imp.cast(imp.reduce(op, x, step.attrs["axes"]), _kind(step.dtypes[0]))

    return rule


def _broadcast(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
    t, shape = imp.tensor(x), step.shapes[0]
    places = list(step.attrs["broadcast_dimensions"])
    dims = tuple(t.dims[places.index(i)] if i in places else () for i in range(len(shape[0])))
    return imp.expand(Tensor(t.node, dims), shape)


def _dot(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    (cx, cy), (bx, by) = step.attrs["dimension_numbers"]
    rx, ry = step.attrs["rank"]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    left = [next(letters) for _ in range(rx)]
    right = [next(letters) for _ in range(ry)]
    for i, j in (*zip(cx, cy, strict=True), *zip(bx, by, strict=True)):
        right[j] = left[i]
    out = [left[i] for i in bx] + [c for i, c in enumerate(left) if i not in (*cx, *bx)]
    out += [c for j, c in enumerate(right) if j not in (*cy, *by)]
    return imp.einsum(f"{''.join(left)},{''.join(right)}->{''.join(out)}", x, y)


def _iota(imp: Importer, step: Step) -> Tensor:
    d = step.attrs["dimension"]
    counter = imp.arange([s[d] for s in step.shapes[0]])
    dims = tuple(counter.dims[0] if i == d else () for i in range(len(step.shapes[0][0])))
    return imp.cast(imp.expand(Tensor(counter.node, dims), step.shapes[0]), _kind(step.dtypes[0]))


def _select(imp: Importer, step: Step, which: Any, *cases: Any) -> Tensor:
    if len(cases) != 2:
        raise Refused("a choice between more than two cases")
    return imp.cast(imp.elementwise("where", which, cases[1], cases[0]), _kind(step.dtypes[0]))


def _slice(imp: Importer, step: Step, x: Any) -> Tensor:
    t = imp.tensor(x)
    strides = step.attrs["strides"] or (1,) * t.rank
    for d in range(t.rank):
        ends = [_each(imp, step.attrs[k][d]) for k in ("start_indices", "limit_indices")]
        t = imp.slice(t, d, ends[0], ends[1], imp.integer(strides[d]))
    return t


def _each(imp: Importer, value: Any) -> list[int]:
    return list(value.values) if isinstance(value, Varying) else [value] * imp.count


def _gather(imp: Importer, step: Step, x: Any, indices: Any) -> Tensor:
    """Indexing of one dimension by an array, alone or beside batch dimensions (`take_along_axis`)."""
    t, at = imp.tensor(x), imp.tensor(indices)
    numbers = step.attrs["dimension_numbers"]
    sizes = step.attrs["slice_sizes"]
    if len(numbers["start_index_map"]) != 1 or imp.extents(at.dims[-1])[0] != 1:
        raise Refused("an index into several dimensions at once; use take_along_axis")
    (d,) = numbers["start_index_map"]
    if not isinstance(sizes[d], int) or sizes[d] != 1:
        raise Refused("an index that takes more than one entry")
    index = imp.squeeze(at, [at.rank - 1])
    index = _in_range(index)
    batch, places = numbers["operand_batching_dims"], numbers["start_indices_batching_dims"]
    offset = [i for i in range(t.rank) if i not in (*numbers["collapsed_slice_dims"], *batch)]
    t = imp.single(t, d)
    if d not in numbers["collapsed_slice_dims"]:
        raise Refused("an index that keeps its dimension")
    # Dimensions of the result: those of the index, with the operand's others put in at offset_dims.
    rank = len(step.shapes[0][0])
    from_index = [i for i in range(rank) if i not in numbers["offset_dims"]]
    dims: list[tuple[str, ...]] = [()] * rank
    for where, source in zip(numbers["offset_dims"], offset, strict=True):
        dims[where] = t.dims[source]
    for operand, place in zip(batch, places, strict=True):
        dims[from_index[place]] = t.dims[operand]
    spread: list[tuple[str, ...]] = [()] * rank
    for i, where in enumerate(from_index):
        spread[where] = index.dims[i]
    return imp.gather((Tensor(t.node, tuple(dims)), t.dims[d]), Tensor(index.node, tuple(spread)), d)


def _in_range(index: Tensor) -> Tensor:
    """An index without the wrapping of negative positions that JAX puts before each gather: classes are 0, 1, 2 …."""
    node = index.node
    while node.op == "cast" and node.kind is Kind.INDEX:
        node = node.args[0]
    if node.op == "where" and node.args[0].op == "lt":
        number, bound = node.args[0].args
        if (
            bound.op in ("constant", "cast")
            and node.args[2] is number
            and not (bound.op == "constant" and bound.attrs[0])
        ):
            return Tensor(number, index.dims)
    return Tensor(node, index.dims)


def _cumsum(imp: Importer, step: Step, x: Any) -> Tensor:
    return imp.along("cumsum", x, step.attrs["axis"], bool(step.attrs["reverse"]))


def _sort(imp: Importer, step: Step, *operands: Any) -> Any:
    d = step.attrs["dimension"]
    values, order = imp.sort(operands[0], d)
    rest = []
    for other in operands[1:]:
        t = imp.single(imp.tensor(other), d)
        if t.node.op == "iota":
            rest.append(order)
            continue
        rest.append(imp.gather((Tensor(t.node, (*t.dims[:d], (), *t.dims[d + 1 :])), t.dims[d]), order, d))
    return (values, *rest) if rest else values


def _top_k(imp: Importer, step: Step, x: Any) -> tuple[Tensor, Tensor]:
    t = imp.tensor(x)
    values, order = imp.sort(t, t.rank - 1, descending=True)
    stop = [s[-1] for s in step.shapes[0]]
    return tuple(imp.slice(v, t.rank - 1, [0] * imp.count, stop) for v in (values, order))  # type: ignore[return-value]


def _clamp(imp: Importer, step: Step, low: Any, x: Any, high: Any) -> Tensor:
    raised = imp.elementwise("where", imp.elementwise("lt", x, low), low, x)
    return imp.elementwise("where", imp.elementwise("gt", raised, high), high, raised)


def _concatenate(imp: Importer, step: Step, *parts: Any) -> Tensor:
    return imp.concat(list(parts), step.attrs["dimension"])


def _stack(imp: Importer, step: Step, *parts: Any) -> Tensor:
    tensors = [imp.tensor(p) for p in parts]
    d = step.attrs.get("axis", step.attrs.get("dimension", 0))
    d = d + tensors[0].rank + 1 if d < 0 else d
    return imp.concat([imp.unsqueeze(t, d) for t in tensors], d)


def _split(imp: Importer, step: Step, x: Any) -> tuple[Tensor, ...]:
    d, at, pieces = step.attrs["axis"], [0] * imp.count, []
    for shapes in step.shapes:
        ends = [a + s[d] for a, s in zip(at, shapes, strict=True)]
        pieces.append(imp.slice(x, d, at, ends))
        at = ends
    return tuple(pieces)


def _rev(imp: Importer, step: Step, x: Any) -> Tensor:
    t = imp.tensor(x)
    for d in step.attrs["dimensions"]:
        t = imp.along("flip", t, d)
    return t


def _power(imp: Importer, step: Step, x: Any) -> Tensor:
    return imp.elementwise("pow", x, imp.cast(step.attrs["y"], Kind.FLOAT))


def _sum_of(op: str) -> Rule:
    return lambda imp, step, x: imp.reduce(op, x, step.attrs["axes"])


def _logical(op: str) -> Rule:
    def rule(imp: Importer, step: Step, *args: Any) -> Tensor:
        if step.dtypes[0] != "bool":
            raise Refused("bits of integers")
        return imp.elementwise(op, *args)

    return rule


def _formula(function: Callable[..., Any]) -> Rule:
    return lambda imp, step, *args: imp.map(function, *args)


def _f(op: str, *args: Any) -> Any:
    return ir.elementwise(op, *args)


def _same(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
    return imp.tensor(x)


_PLAIN = {
    "neg": "neg", "exp": "exp", "log": "log", "log1p": "log1p", "expm1": "expm1", "sqrt": "sqrt", "sin": "sin",
    "cos": "cos", "tan": "tan", "asin": "asin", "acos": "acos", "atan": "atan", "atan2": "atan2", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "erf": "erf", "erfc": "erfc",
    "lgamma": "lgamma", "digamma": "digamma", "logistic": "sigmoid", "floor": "floor", "ceil": "ceil", "sign": "sign",
    "round": "round", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "eq": "eq", "ne": "ne", "stop_gradient": "stop_gradient",
}  # fmt: skip


def _refused(reason: str) -> Rule:
    def rule(imp: Importer, step: Step, *args: Any) -> Tensor:
        raise Refused(reason)

    return rule


_LOOP = _refused("a branch or loop that depends on values; use jnp.where")
_RANDOM = _refused("random numbers; a loss gives one value for its inputs. Make the random array an argument")

RULES: Mapping[str, Rule] = {
    "while": _LOOP, "cond": _LOOP, "scan": _LOOP, "random_bits": _RANDOM, "random_wrap": _RANDOM, "threefry2x32": _RANDOM,
    **{k: rule_for(v) for k, v in _PLAIN.items()},
    "add": _arithmetic("add"), "add_any": _arithmetic("add"), "sub": _arithmetic("sub"), "mul": _arithmetic("mul"),
    "div": _arithmetic("div"), "max": _arithmetic("maximum"), "min": _arithmetic("minimum"), "abs": _arithmetic("abs"),
    "pow": _arithmetic("pow"), "integer_pow": _power, "square": _formula(lambda x: x * x),
    "rsqrt": _formula(lambda x: 1.0 / _f("sqrt", x)), "is_finite": _formula(lambda x: _f("lt", _f("abs", x), float("inf"))),
    "and": _logical("and"), "or": _logical("or"), "not": _logical("not"),
    "reduce_sum": _reduce("sum"), "reduce_max": _reduce("max"), "reduce_min": _reduce("min"), "reduce_prod": _reduce("prod"),
    "reduce_and": _reduce("all"), "reduce_or": _reduce("any"),
    "argmax": _sum_of("argmax"), "argmin": _sum_of("argmin"),
    "broadcast_in_dim": _broadcast, "reshape": lambda imp, step, x, *r: imp.reshape(x, step.shapes[0]),
    "squeeze": lambda imp, step, x: imp.squeeze(x, step.attrs["dimensions"]),
    "expand_dims": lambda imp, step, x: imp.reshape(x, step.shapes[0]),
    "transpose": lambda imp, step, x: imp.permute(x, step.attrs["permutation"]),
    "convert_element_type": lambda imp, step, x: imp.cast(x, _kind(step.dtypes[0])),
    "dot_general": _dot, "iota": _iota, "select_n": _select, "slice": _slice, "gather": _gather, "cumsum": _cumsum,
    "sort": _sort, "top_k": _top_k, "clamp": _clamp, "concatenate": _concatenate, "stack": _stack, "split": _split, "rev": _rev,
    "copy": _same, "copy_p": _same, "reduce_precision": _same,
}  # fmt: skip
