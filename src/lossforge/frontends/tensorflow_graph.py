"""The graph of a concrete function, written out as a straight program.

Calls are inlined. What follows from sizes alone is worked out, so that it arrives as numbers: a branch on such a number
is the branch that is taken, a loop over it is its turns one after the other. A branch on values is both branches and a
choice between their results, which has the value and the gradient of the branch taken.
"""

from __future__ import annotations

import importlib.util
import linecache
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.eager.execute import quick_execute

from lossforge.errors import AdoptionError
from lossforge.frontends.recording import Recording, Ref, Step, as_written, compact, rounded
from lossforge.frontends.rolling import TOTALS

_LONGEST_LOOP = 1000
_PRIMES = [n for n in range(1009, 9973) if all(n % d for d in range(2, 100))]

_NUMBERS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Reshape", "BroadcastTo", "ExpandDims", "Transpose", "Tile", "TopKV2", "OneHot", "ReverseV2"), (1,)),
    **dict.fromkeys(("Sum", "Mean", "Max", "Min", "Prod", "Any", "All", "EuclideanNorm", "ArgMax", "ArgMin"), (1,)),
    **dict.fromkeys(("Cumsum", "Cumprod", "CumulativeLogsumexp", "Pad", "PadV2", "MirrorPad"), (1,)),
    **dict.fromkeys(("Slice", "SplitV", "Roll", "MatrixBandPart"), (1, 2)), "StridedSlice": (1, 2, 3),
    "GatherV2": (2,), "ConcatV2": (-1,), "Split": (0,), "Fill": (0,), "Range": (0, 1, 2), "LinSpace": (0, 1, 2),
    "MatrixDiagV3": (1, 2, 3, 4), "MatrixDiagPartV3": (1, 2), "MatrixSetDiagV3": (2,), "ScatterNd": (2,),
    "UnsortedSegmentSum": (2,), "UnsortedSegmentMax": (2,), "UnsortedSegmentMin": (2,), "ResizeBilinear": (1,), "ResizeNearestNeighbor": (1,),
}  # fmt: skip
"""Operands that say what is done (axes, shapes, counts), in contrast to those that it is done with."""

_ARRAYS_OF_SIZES = frozenset({"Range", "Fill", "LinSpace", "Tile", "BroadcastTo"})
"""Their results grow with the sizes of arrays, and are read as formulas where they meet values."""

_PLAIN: Mapping[str, Any] = {
    "AddV2": np.add, "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Less": np.less, "LessEqual": np.less_equal,
    "Greater": np.greater, "GreaterEqual": np.greater_equal, "Equal": np.equal, "NotEqual": np.not_equal, "LogicalAnd": np.logical_and,
    "LogicalOr": np.logical_or, "LogicalNot": np.logical_not, "Minimum": np.minimum, "Maximum": np.maximum, "Neg": np.negative,
}  # fmt: skip
"""Arithmetic of sizes, which NumPy does as TensorFlow does, without its overhead for each operation."""

_BARRED: Mapping[str, str] = {
    **dict.fromkeys(
        ("PyFunc", "PyFuncStateless", "EagerPyFunc"),
        "Python code in the middle of the graph, which nothing sees into; use TensorFlow's operations",
    ),
    "PrintV2": "tf.print, a side effect; take it out of the loss",
    "Print": "tf.print, a side effect; take it out of the loss",
    "AssignVariableOp": "writing into a tf.Variable, a side effect; a loss is a function of its arguments",
    "AssignAddVariableOp": "writing into a tf.Variable, a side effect; a loss is a function of its arguments",
    "AssignSubVariableOp": "writing into a tf.Variable, a side effect; a loss is a function of its arguments",
}


@dataclass(frozen=True)
class _Value:
    """What is known of a tensor: its number, if sizes decide it; and which step makes it."""

    number: Any = None
    ref: Ref | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class _TensorList:
    """A list of tensors: how loops collect their results."""

    items: tuple[_Value | None, ...]
    source: _Value | None = None
    """The tensor whose entries along its first dimension they are."""
    written: tuple[_Value, _Value] | None = None
    """While one turn stands for all: the place that it writes to, and what."""


class _Kept:
    """A list of what the gradient of a loop needs, which the loss does not read."""


class _Chained(Exception):
    """Internal: the turns of a loop depend on each other."""


class _Variable:
    """The handle of a variable that is read as a constant."""

    def __init__(self, variable: Any) -> None:
        self.number = variable.numpy()


def read(concrete: Any, arrays: Sequence[np.ndarray]) -> Recording:
    """The recording of a concrete function that was traced for these arrays.

    Raises:
        AdoptionError: an operation has an effect, or a size or a number of turns that depends on values.
    """
    if not concrete.outputs:
        raise AdoptionError("the loss returned nothing; expected one tensor")
    if len(concrete.outputs) > 1:
        raise AdoptionError("the loss returned several values; expected one tensor")
    reader = _Reader(arrays)
    given: list[Any] = [_Value(ref=Ref(i), shape=tuple(a.shape)) for i, a in enumerate(arrays)]
    given += [_captured(t, concrete.graph.variables) for t in concrete.captured_inputs]
    (result,) = reader.run(concrete.graph, given)
    outcome = reader.argument(result)
    return compact(Recording(tuple((tuple(a.shape),) for a in arrays), tuple(reader.steps), outcome))


def _captured(tensor: Any, variables: Sequence[Any]) -> Any:
    """A tensor or variable from around the function, which stays what it is."""
    if tensor.dtype != tf.resource:
        return _constant(tensor.numpy())
    variable = next((v for v in variables if v.handle is tensor), None)
    if variable is None:
        raise AdoptionError("the loss uses a table or another resource; make what it holds an argument")
    if variable.trainable:
        raise AdoptionError(
            f"the loss uses the tf.Variable {variable.name!r}, which is trainable; make it an argument, or a tf.constant if it "
            "is one"
        )
    return _Variable(variable)


def _constant(array: Any) -> _Value:
    array = np.asarray(array)
    return _Value(array, None, tuple(array.shape))


class _Reader:
    """Walks through graphs and collects steps."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.steps: list[Step] = []
        self.makers: dict[int, Step] = {}
        """The step that makes each value."""
        self.count = len(arrays)
        self.counts: dict[Any, int] = {}
        """How many entries each mask selects."""
        self.selections: dict[int, list[dict[str, Any]]] = {}
        """The attributes of the steps that select so many entries."""
        self.seed = zlib.crc32(repr([a.shape for a in arrays]).encode())

    # ------------------------------------------------------------------ graphs

    def run(self, graph: Any, inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a graph for these inputs."""
        values: dict[str, Any] = {t.name: v for t, v in zip(graph.inputs, inputs, strict=True)}
        done: set[str] = set()
        for op in graph.get_operations():
            for made in _with_sources(op, done):
                if made.type in _BARRED:
                    raise AdoptionError(_message(made, _BARRED[made.type]))
                if made.type == "Placeholder" or not made.outputs:
                    continue
                results = self.operation(graph, made, [values[t.name] for t in made.inputs])
                # A graph that was differentiated before has further outputs, for its gradient.
                values.update({t.name: v for t, v in zip(made.outputs, results, strict=False)})
        return [values[t.name] for t in graph.outputs]

    def operation(self, graph: Any, op: Any, given: Sequence[Any]) -> Sequence[Any]:
        """The results of one operation."""
        if op.type in ("PartitionedCall", "StatefulPartitionedCall"):
            return self.run(_function(graph, op, "f"), given)
        if op.type in ("If", "StatelessIf"):
            return self._choose(
                op, given[0], [_function(graph, op, f) for f in ("else_branch", "then_branch")], given[1:]
            )
        if op.type in ("Case", "StatelessCase"):
            return self._choose(op, given[0], _functions(graph, op, "branches"), given[1:])
        if op.type in ("While", "StatelessWhile"):
            return self._loop(op, _function(graph, op, "cond"), _function(graph, op, "body"), given)
        if op.type == "ReadVariableOp":
            return [_constant(given[0].number)]
        if op.type == "ResourceGather":
            args = (_literal(given[0].number), self.argument(given[1]), 0)
            attrs, shapes = {"batch_dims": op.get_attr("batch_dims")}, [tuple(op.outputs[0].shape)]
            return self.append(op, args, attrs, shapes, [op.outputs[0].dtype.name], name="GatherV2")
        if op.type.startswith("TensorList"):
            return self._list(op, given)
        if op.type == "Where" and given[0].number is None:
            return self._where(op, given[0])
        if op.type in ("Shape", "Size", "Rank"):
            of = given[0].shape
            found = {"Shape": of, "Size": int(np.prod(of)), "Rank": len(of)}[op.type]
            return [_constant(np.asarray(found, op.outputs[0].dtype.as_numpy_dtype))]
        if op.type == "ShapeN":
            return [_constant(np.asarray(v.shape, op.outputs[0].dtype.as_numpy_dtype)) for v in given]
        if op.type == "Const":
            return [_constant(tf.make_ndarray(op.get_attr("value")))]
        if op.type in ("PlaceholderWithDefault", "Identity", "IdentityN"):
            return given
        if not all(isinstance(v, _Value) for v in given):
            raise AdoptionError(_message(op, "an operation on a list or a resource; use tf.stack and tensors"))
        numbers = None
        plain = all(t.dtype not in (tf.variant, tf.resource) for t in op.outputs) and "Random" not in op.type
        if plain and all(v.number is not None for v in given) and not op.op_def.is_stateful:
            numbers = _run(op, [v.number for v in given])
            if op.type == "Maximum" and not numbers[0].shape:
                self._guard(*(v.number for v in given))
            if op.type not in _ARRAYS_OF_SIZES and all(v.ref is None for v in given):
                return [_constant(n) for n in numbers]
        return self._step(op, given, numbers)

    def _step(self, op: Any, given: Sequence[_Value], numbers: Sequence[Any] | None) -> list[_Value]:
        shapes = [tuple(n.shape) for n in numbers] if numbers is not None else _shapes(op, given)
        plain = {p % len(given) for p in _NUMBERS.get(op.type, ()) if p < len(given)}
        args = tuple(self.argument(v, i in plain) for i, v in enumerate(given))
        attrs = {
            k: _attribute(op, k) for k in op.node_def.attr if not k.startswith("_") and k not in ("value", "shape")
        }
        return self.append(op, args, attrs, shapes, [t.dtype.name for t in op.outputs], numbers)

    def append(
        self,
        op: Any,
        args: tuple[Any, ...],
        attrs: Mapping[str, Any],
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[str],
        numbers: Sequence[Any] | None = None,
        name: str | None = None,
    ) -> list[_Value]:
        """A step, and its results."""
        outputs = tuple(range(self.count, self.count + len(shapes)))
        self.count += len(outputs)
        made = tuple((s,) for s in shapes)
        step = Step(name or op.type, args, attrs, outputs, made, where(op), tuple(dtypes))
        self.steps.append(step)
        self.makers.update(dict.fromkeys(outputs, step))
        return [_Value(numbers[i] if numbers is not None else None, Ref(k), shapes[i]) for i, k in enumerate(outputs)]

    def argument(self, value: _Value, plain: bool = False) -> Any:
        """A value as the operand of a step; a plain one is a number where that is known."""
        if value.number is not None and (plain or value.ref is None):
            return _literal(value.number)
        return value.ref

    # ------------------------------------------------------------------ selections

    def _where(self, op: Any, mask: _Value) -> list[_Value]:
        """The positions where a mask holds, of which there are as many as a prime that no size has."""
        key = self._structure(mask.ref)
        if key not in self.counts:
            self.counts[key] = _PRIMES[(self.seed + 101 * len(self.counts)) % len(_PRIMES)]
        count = self.counts[key]
        attrs: dict[str, Any] = {}
        self.selections.setdefault(count, []).append(attrs)
        return self.append(op, (self.argument(mask), count), attrs, [(count, len(mask.shape))], ["int64"])

    def _guard(self, *numbers: Any) -> None:
        """What max(1, the number of selected entries) says: an empty selection counts as one entry."""
        low, high = sorted(map(float, numbers))
        if low == 1:
            for attrs in self.selections.get(int(high), ()):
                attrs["guarded"] = True

    def _structure(self, value: Any) -> Any:
        """What a value is worked out from: equal for two masks that are computed alike."""
        if isinstance(value, Ref):
            made = self.makers.get(value.index)
            if made is None:
                return value
            args = tuple(self._structure(a) for a in made.args)
            return made.op, made.outputs.index(value.index), args, repr(sorted(made.attrs.items()))
        return value.tobytes() if isinstance(value, np.ndarray) else value

    # ------------------------------------------------------------------ control flow

    def _choose(self, op: Any, which: _Value, branches: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        """One of several branches; the first is for 0 or False."""
        last = len(branches) - 1
        if which.number is not None:
            chosen = int(which.number)
            return self.run(branches[chosen if 0 <= chosen <= last else last], given)
        results = [self.run(b, given) for b in branches]
        merged: list[Any] = []
        for t, options in zip(op.outputs, zip(*results, strict=False), strict=False):
            if any(not isinstance(v, _Value) or v.shape != options[0].shape for v in options):
                raise AdoptionError(
                    _message(op, "branches that depend on values and give results of different shapes; use tf.where")
                )
            found = options[-1]
            for k in range(last - 1, -1, -1):
                args: list[Any] = [self.argument(which), self.argument(found), self.argument(options[k])]
                if len(branches) > 2 or which.shape:
                    is_k = self.append(op, (args[0], k), {}, [which.shape], ["bool"], name="Equal")[0]
                    args = [self.argument(is_k), self.argument(options[k]), self.argument(found)]
                found = self.append(op, tuple(args), {}, [found.shape], [t.dtype.name], name="SelectV2")[0]
            merged.append(found)
        return merged

    def _loop(self, op: Any, condition: Any, body: Any, given: Sequence[Any]) -> list[Any]:
        """The turns of a loop: all at once where none depends on another, else one after the other."""
        before = len(self.steps), self.count, dict(self.counts)
        try:
            return self._turns(op, condition, body, given)
        except (_Chained, AdoptionError):
            del self.steps[before[0] :]
            self.count, self.counts = before[1], before[2]
        values = list(given)
        for _ in range(_LONGEST_LOOP):
            (again,) = self.run(condition, values)
            if again.number is None:
                raise AdoptionError(
                    _message(op, "a loop whose number of turns depends on values; use a mask and a constant number")
                )
            if not again.number:
                return values
            values = self.run(body, values)
        raise AdoptionError(_message(op, f"a loop of more than {_LONGEST_LOOP} turns; use operations on whole arrays"))

    def _turns(self, op: Any, condition: Any, body: Any, given: Sequence[Any]) -> list[Any]:
        """One turn for all of them.

        Raises:
            _Chained: a turn depends on the one before, other than by counting, by a total or by a list that it writes to.
        """
        counting = _counters(body, given)
        total = self._count(condition, given, counting)
        (turn,) = self.append(op, (), {"turns": total}, [()], ["int64"], name="loop.turn")
        values, kinds = list(given), {}
        for k, (t, value) in enumerate(zip(body.inputs, given, strict=True)):
            if k in counting:
                first, growth = int(value.number), counting[k]
                attrs = {"first": first, "growth": growth}
                counted = (first, growth) == (0, 1)
                values[k] = (
                    turn if counted else self.append(op, (turn.ref,), attrs, [()], ["int64"], name="loop.place")[0]
                )
            elif _origin(body.outputs[k]) is t:
                continue
            elif isinstance(value, _Kept):
                kinds[k] = "kept"
            elif isinstance(value, _TensorList):
                kinds[k] = "list"
                values[k] = _TensorList(value.items)
            elif isinstance(value, _Value):
                kinds[k] = "total"
                values[k] = _Value(None, Ref(self.count), value.shape)
                self.count += 1
            else:
                raise _Chained
        at = len(self.steps)
        results = self.run(body, values)
        made = self.steps[at:]
        for k, kind in kinds.items():
            if kind == "list":
                results[k] = self._written(op, results[k], total, turn)
            elif kind == "total":
                results[k] = self._total(op, made, given[k], values[k], results[k], turn)
        return [
            _constant(given[k].number + total * counting[k])
            if k in counting
            else results[k]
            if k in kinds
            else given[k]
            for k in range(len(given))
        ]

    def _count(self, condition: Any, given: Sequence[Any], counting: Mapping[int, int]) -> int:
        """How many turns a loop has that counts."""
        for done in range(_LONGEST_LOOP if counting else 0):
            values = [_constant(v.number + done * counting[k]) if k in counting else v for k, v in enumerate(given)]
            (again,) = self.run(condition, values)
            if again.number is None:
                raise _Chained
            if not again.number and done > 1:
                return done
            if not again.number:
                break
        raise _Chained

    def _written(self, op: Any, result: Any, total: int, turn: _Value) -> _TensorList:
        """The list that has been written to in every turn."""
        if not isinstance(result, _TensorList) or result.written is None or len(result.items) != total:
            raise _Chained
        place, value = result.written
        if place != turn or any(i is not None for i in result.items):
            raise _Chained
        shape = (total, *value.shape)
        (whole,) = self.append(op, (self.argument(value), turn.ref), {"dim": 0}, [shape], [""], name="loop.gathered")
        return _TensorList((None,) * total, whole)

    def _total(self, op: Any, made: Sequence[Step], start: _Value, held: _Value, result: Any, turn: _Value) -> _Value:
        """What has been added up in all turns."""
        last = self.makers.get(result.ref.index) if isinstance(result, _Value) and result.ref is not None else None
        users = [s for s in made for a in s.args if isinstance(a, Ref) and a == held.ref]
        if last is None or users != [last] or last.op not in TOTALS or result.shape != start.shape:
            raise _Chained
        (each,) = [a for a in last.args if not isinstance(a, Ref) or a != held.ref]
        if last in self.steps:
            self.steps.remove(last)
        attrs = {"op": TOTALS[last.op]}
        args = (self.argument(start), each, turn.ref)
        return self.append(op, args, attrs, [start.shape], list(last.dtypes), name="loop.total")[0]

    def _list(self, op: Any, given: Sequence[Any]) -> list[Any]:
        if op.type in ("EmptyTensorList", "TensorListPushBack"):
            return [_Kept()]
        first: Any = given[0]
        place = given[1].number if len(given) > 1 and isinstance(given[1], _Value) else None
        match op.type:
            case "TensorListReserve":
                if place is not None and place >= 0:
                    return [_TensorList((None,) * int(place))]
            case "TensorListFromTensor":
                return [_TensorList((None,) * first.shape[0], first)]
            case "TensorListGetItem" if first.source is not None:
                args = (self.argument(first.source), self.argument(given[1]))
                dtype = op.outputs[0].dtype.name
                return self.append(op, args, {"dim": 0}, [first.source.shape[1:]], [dtype], name="loop.entry")
            case "TensorListGetItem":
                if place is not None and isinstance(item := first.items[int(place)], _Value):
                    return [item]
            case "TensorListSetItem" if first.source is None:
                if place is None:
                    return [_TensorList(first.items, None, (given[1], given[2]))]
                at = int(place)
                return [_TensorList((*first.items[:at], given[2], *first.items[at + 1 :]))]
            case "TensorListStack":
                if first.source is not None:
                    return [first.source]
                if first.items and all(isinstance(i, _Value) for i in first.items):
                    shape = (len(first.items), *first.items[0].shape)
                    args = tuple(self.argument(i) for i in first.items)
                    return self.append(op, args, {"axis": 0}, [shape], [op.outputs[0].dtype.name], name="Pack")
            case "TensorListElementShape" if first.source is not None:
                return [_constant(np.array(first.source.shape[1:], op.outputs[0].dtype.as_numpy_dtype))]
            case "TensorListLength":
                return [_constant(np.int32(len(first.items)))]
        raise AdoptionError(
            _message(op, "a list of tensors that lossforge cannot follow; use operations on whole arrays")
        )


# ------------------------------------------------------------------------------------- operations of TensorFlow


def _function(graph: Any, op: Any, attribute: str) -> Any:
    return _graph_of(graph, op, op.get_attr(attribute).name)


def _functions(graph: Any, op: Any, attribute: str) -> list[Any]:
    return [_graph_of(graph, op, f.name) for f in op.get_attr(attribute)]


def _graph_of(graph: Any, op: Any, name: str) -> Any:
    found = getattr(graph._get_function(name), "graph", None)
    if found is None:
        raise AdoptionError(_message(op, f"the function {name!r}, whose graph TensorFlow does not give away"))
    return found


def _with_sources(op: Any, done: set[str]) -> list[Any]:
    """An operation, after those that it takes its operands from: a loop that was differentiated takes later ones."""
    if op.name in done:
        return []
    done.add(op.name)
    return [*(o for t in op.inputs for o in _with_sources(t.op, done)), op]


def _origin(tensor: Any) -> Any:
    """The tensor that is handed on."""
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def _counters(body: Any, given: Sequence[Any]) -> dict[int, int]:
    """The variables of a loop to which each turn adds the same whole number, and that number."""
    stays = {
        t.name: value.number
        for t, out, value in zip(body.inputs, body.outputs, given, strict=True)
        if _origin(out) is t and isinstance(value, _Value)
    }
    found = {}
    for k, (t, out, value) in enumerate(zip(body.inputs, body.outputs, given, strict=True)):
        made = _origin(out).op
        if made.type not in ("AddV2", "Add") or not isinstance(value, _Value) or value.number is None or value.shape:
            continue
        others = [x for x in map(_origin, made.inputs) if x is not t]
        if not t.dtype.is_integer or len(others) != 1:
            continue
        (growth,) = others
        known = tf.make_ndarray(growth.op.get_attr("value")) if growth.op.type == "Const" else stays.get(growth.name)
        if known is not None:
            found[k] = int(known)
    return found


def _run(op: Any, numbers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The results for known operands."""
    if op.type in _PLAIN:
        return [np.asarray(_PLAIN[op.type](*numbers), op.outputs[0].dtype.as_numpy_dtype)]
    options: list[Any] = []
    for key in op.node_def.attr:
        if not key.startswith("_"):
            options += [key, _option(op.get_attr(key))]
    with tf.init_scope(), tf.device("CPU"):
        tensors = [tf.constant(n, t.dtype) for n, t in zip(numbers, op.inputs, strict=True)]
        try:
            found = quick_execute(op.type, len(op.outputs), tensors, tuple(options), context.context())
        except Exception as error:
            raise AdoptionError(_message(op, (str(error).strip().splitlines() or [""])[0])) from error
    return [r.numpy() for r in found]


def _option(value: Any) -> Any:
    if isinstance(value, tf.DType):
        return value.as_datatype_enum
    return [_option(v) for v in value] if isinstance(value, list) else value


def _shapes(op: Any, given: Sequence[_Value]) -> list[tuple[int, ...]]:
    """The shapes of the results, by TensorFlow's own inference where the graph does not know them."""
    shapes = [t.shape for t in op.outputs]
    if not all(s.is_fully_defined() for s in shapes):
        with tf.Graph().as_default() as scratch:
            tensors = [
                tf.constant(v.number, t.dtype) if v.number is not None else tf.compat.v1.placeholder(t.dtype, v.shape)
                for v, t in zip(given, op.inputs, strict=True)
            ]
            attrs = {k: v for k, v in op.node_def.attr.items() if not k.startswith("_")}
            again = scratch.create_op(op.type, tensors, [t.dtype for t in op.outputs], attrs=attrs)
        shapes = [t.shape for t in again.outputs]
    if not all(s.is_fully_defined() for s in shapes):
        raise AdoptionError(_message(op, "the size of its result depends on values; use tf.where"))
    return [tuple(s) for s in shapes]


def _literal(number: Any) -> Any:
    """A number as it was written: float32 holds 0.1 with nine digits."""
    array = np.asarray(number)
    if array.ndim:
        return as_written(array)
    return rounded(array.item()) if array.dtype.kind == "f" else array.item()


def _attribute(op: Any, key: str) -> Any:
    try:
        value = op.get_attr(key)
    except ValueError:
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    return value if isinstance(value, int | float | bool | None) else str(value)


def _plain(value: Any) -> Any:
    return (
        value.decode(errors="replace")
        if isinstance(value, bytes)
        else value
        if isinstance(value, int | float)
        else str(value)
    )


# ------------------------------------------------------------------------------------- places in the source

_LIBRARIES = tuple(
    os.path.dirname(os.path.abspath(spec.origin)) + os.sep
    for spec in map(importlib.util.find_spec, ("keras", "tensorflow", "numpy"))
    if spec is not None and spec.origin is not None
)
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def where(op: Any) -> str:
    """The line of the user's source that made an operation; without one, the library's own."""
    return line_of([(f.filename, f.lineno) for f in op.traceback or ()])


def line_of(frames: Sequence[tuple[str, int]]) -> str:
    """The innermost line of the user's source among frames, outermost first."""
    inner: list[tuple[str, int]] = []
    for name, number in reversed(frames):
        if name.startswith(_OURS):
            break
        inner.append((name, number))
    theirs = [f for f in inner if not f[0].startswith(_LIBRARIES)]
    for name, number in [*theirs, *(f for f in inner if f[0].startswith(_LIBRARIES[:1]))][:1]:
        return f"{os.path.basename(name)}:{number} ({linecache.getline(name, number).strip()})"
    return ""


def _message(op: Any, reason: str) -> str:
    place = where(op)
    return f"{op.type}{f', in {place}' if place else ''}: {reason}"
