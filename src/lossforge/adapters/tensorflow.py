"""TensorFlow: a loss under `tf.GradientTape`, `tf.function` and XLA.

Programs run in one place, `evaluate`: by kernels where TensorFlow executes at once, else as its own
operations. Nothing records its inside: `differentiable` records a program's outputs as one operation whose
backward pass is the derived program, recorded in the same way, so that derivatives of every order come from
derived programs. TensorFlow builds forward mode and Jacobians upon the
backward pass, which is linear in the upstream gradient and differentiable with respect to it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import tensorflow as tf

# What `tf.custom_gradient` is made of. It cannot be used itself: in a graph, forward accumulators pass it by
# and differentiate what it calls.
from tensorflow.python.eager.record import record_operation, stop_recording
from tensorflow.python.ops.gradients_util import PossibleTapeGradientTypes

from lossforge.adapters import tensorflow_kernels
from lossforge.adapters.base import Adapter
from lossforge.codegen.emitter import assemble, compile_text, emit
from lossforge.codegen.tensorflow import tensorflow_backend
from lossforge.compiler import Plan, program_vjp
from lossforge.dtypes import FLOATS, computing
from lossforge.errors import ShapeError
from lossforge.frontends.signature import dimensions
from lossforge.ir import Axis, Kind, Port, Program


class TensorFlowAdapter(Adapter):
    """See `lossforge.adapters.base.Adapter`."""

    name = "tensorflow"

    def is_array(self, value: Any) -> bool:
        """Whether `value` is a tensor or a variable, of TensorFlow or of Keras."""
        return isinstance(value, tf.__internal__.types.Tensor)

    def dtype(self, array: Any) -> str:
        """The dtype's plain name."""
        return str(tf.as_dtype(array.dtype).name)

    def shape(self, array: Any) -> tuple[int | None, ...]:
        """The shape; None for a size that is known only when the graph runs.

        Raises:
            ShapeError: not even the number of dimensions is known.
        """
        shape = tf.TensorShape(array.shape)
        if shape.rank is None:
            raise ShapeError(
                "a tensor's number of dimensions is not known while the graph is traced, so that its axes "
                "cannot be named; state it, as in tf.ensure_shape(x, [None, 10])"
            )
        return tuple(shape)

    def squeeze(self, array: Any, dimensions: Sequence[int]) -> Any:
        """The array without some dimensions of size 1."""
        return tf.squeeze(array, list(dimensions))

    def out_of_range(self, index: Any, size: int, mask: Any | None) -> tuple[int, int] | None:
        """The extremes of `index` if one lies outside of 0 … size − 1; None in a graph."""
        if not tf.executing_eagerly() or tf.size(index) == 0:
            return None
        counted = tf.cast(index, tf.int64)
        if mask is not None:
            counted = tf.where(tf.cast(mask, tf.bool), counted, tf.zeros_like(counted))
        low, high = int(tf.reduce_min(counted)), int(tf.reduce_max(counted))
        return (low, high) if low < 0 or high >= size else None

    def call(self, plan: Plan, arrays: Sequence[Any]) -> Any:
        """The loss."""
        tensors = _tensors(plan.inputs, arrays)
        if plan.reduction == "none":
            results = differentiable(plan.value(), tensors, plan.vjp)
        else:
            results = _reduced(plan, tensors)
        return _if_sizes_agree(plan.inputs, tensors, results)[0]

    def run(self, program: Program, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The program's outputs; tapes may differentiate them as well."""
        tensors = _tensors(program.inputs, arrays)
        return _if_sizes_agree(program.inputs, tensors, differentiable(program, tensors))


# ------------------------------------------------------------------------------------- running


def evaluate(program: Program, tensors: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
    """The program's outputs in the precision to compute in; no tape records how they came about."""
    real = _computing(program.inputs, tensors)
    by_kernels = tensorflow_kernels.attempt(program, tensors, real.name)
    if by_kernels is not None:
        return by_kernels
    dtypes = {Kind.FLOAT: tf.float64 if program.delicate else real, Kind.INDEX: tf.int64, Kind.BOOL: tf.bool}
    with stop_recording():
        found = _compiled(program)(
            *(tf.cast(t, dtypes[p.node.kind]) for t, p in zip(tensors, program.inputs, strict=True))
        )
        results = found if isinstance(found, tuple) else (found,)
        return tuple(tf.cast(r, real) for r in results) if program.delicate else results


@lru_cache(maxsize=1024)
def _compiled(program: Program) -> Callable[..., Any]:
    backend = tensorflow_backend()
    return compile_text(assemble(backend, [emit(program, backend)]), "program", "tensorflow")


def _computing(ports: Sequence[Port], tensors: Sequence[Any]) -> tf.DType:
    names = (tf.as_dtype(t.dtype).name for t, p in zip(tensors, ports, strict=True) if p.order)
    return tf.as_dtype(computing(n for n in names if n in FLOATS))


def _tensors(ports: Sequence[Port], arrays: Sequence[Any]) -> tuple[tf.Tensor, ...]:
    """Variables as the tensors that they hold, numbers in the precision to compute in.

    A tape follows a variable through the read of its value; a number that TensorFlow converts becomes
    float32 first.
    """
    real = _computing(ports, arrays)
    numbers = {Kind.FLOAT: real, Kind.INDEX: tf.int64, Kind.BOOL: tf.bool}
    return tuple(
        tf.convert_to_tensor(a, numbers[p.node.kind] if isinstance(a, bool | int | float) else None)
        for a, p in zip(arrays, ports, strict=True)
    )


def _like(program: Program, tensors: Sequence[tf.Tensor], results: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
    """Gradients in the dtype, and with the known sizes, of what they belong to."""
    by_name = {p.name: t for p, t in zip(program.inputs, tensors, strict=True)}
    outputs = []
    for result, name in zip(results, program.like, strict=True):
        if name is not None:
            like = by_name[name]
            result = tf.cast(result, like.dtype) if like.dtype.is_floating else result
            result.set_shape(like.shape)
        outputs.append(result)
    return tuple(outputs)


# ------------------------------------------------------------------------------------- differentiating


def differentiable(
    program: Program,
    tensors: Sequence[tf.Tensor],
    vjp: Callable[[tuple[str, ...]], Program] | None = None,
    values: Callable[[], Sequence[tf.Tensor]] | None = None,
) -> tuple[tf.Tensor, ...]:
    """The program's outputs, as one operation to whatever records them.

    Args:
        program: what to compute.
        tensors: its inputs.
        vjp: makes the program of the backward pass with respect to some inputs, if not the derived one.
        values: computes the outputs, where there is a shorter way than to run the program.
    """
    here = _here(tensors)

    def outputs() -> tuple[tf.Tensor, ...]:
        return _like(program, here, values() if values is not None else evaluate(program, here))

    wrt, followed = _followed(program.inputs, here)
    if not wrt:
        return outputs()
    backward = vjp(wrt) if vjp is not None else program_vjp(program, wrt)

    def pullback(*cotangents: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return differentiable(backward, (*here, *cotangents))

    return _record(outputs, pullback, followed)


def _reduced(plan: Plan, tensors: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
    """A mean or a sum: its gradient is computed with the value, and scaled in the backward pass."""
    here = _here(tensors)
    wrt, followed = _followed(plan.inputs, here)
    if not wrt:
        return evaluate(plan.value(), here)
    gradients: list[tf.Tensor] = []

    def outputs() -> tuple[tf.Tensor, ...]:
        loss, *gradients[:] = evaluate(plan.value_and_gradient(wrt), here)
        return (loss,)

    def pullback(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
        inputs = (*here, upstream)
        return differentiable(plan.vjp(wrt), inputs, values=lambda: [_scaled(g, upstream) for g in gradients])

    return _record(outputs, pullback, followed)


def _scaled(gradient: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Their product, without a pass over memory where the upstream gradient is 1."""
    if tf.executing_eagerly() and float(upstream) == 1.0:
        return gradient
    return upstream * gradient


def _record(
    outputs: Callable[[], Sequence[tf.Tensor]],
    pullback: Callable[..., Sequence[tf.Tensor]],
    inputs: Sequence[tf.Tensor],
) -> tuple[tf.Tensor, ...]:
    """`outputs()` as one operation on `inputs`, with `pullback` as its backward pass."""

    def backward(*cotangents: Any) -> list[tf.Tensor]:
        return list(pullback(*map(tf.convert_to_tensor, cotangents)))  # they may be tf.IndexedSlices

    with stop_recording():
        results = outputs()
        n = len(results)
        if tf.executing_eagerly():
            results = [tf.identity(r) for r in results]  # what is recorded must not be an input itself
        else:  # a tape outside of the graph finds the backward pass by the name of an operation
            name = f"lossforge-{uuid.uuid4()}"
            tf.RegisterGradient(name)(lambda op, *cotangents: [None] * n + backward(*cotangents[:n]))
            with tf.compat.v1.get_default_graph().gradient_override_map({"IdentityN": name}):
                results = tf.identity_n([*results, *inputs])[:n]
    record_operation("lossforge", results, list(inputs), backward)
    return tuple(results)


def _here(tensors: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
    """The tensors in the graph that is traced now; a backward pass may have another one than the loss."""
    return tuple(tensors) if tf.executing_eagerly() else tuple(map(tf.identity, tensors))


def _followed(ports: Sequence[Port], tensors: Sequence[tf.Tensor]) -> tuple[tuple[str, ...], list[tf.Tensor]]:
    """The inputs that a tape or an accumulator follows: their names, and themselves.

    In a graph it is decided later, from outside; there it is all that can have a gradient, and TensorFlow
    drops the computations that turn out not to be needed.
    """
    floats = [
        (port.name, tensor)
        for port, tensor in zip(ports, tensors, strict=True)
        if port.node.kind is Kind.FLOAT and tensor.dtype.name in FLOATS
    ]
    if tf.executing_eagerly():
        floats = [(name, tensor) for name, tensor in floats if PossibleTapeGradientTypes([tensor])]
    return tuple(name for name, _ in floats), [tensor for _, tensor in floats]


# ------------------------------------------------------------------------------------- sizes in a graph


def _if_sizes_agree(
    ports: Sequence[Port], tensors: Sequence[tf.Tensor], results: tuple[tf.Tensor, ...]
) -> tuple[tf.Tensor, ...]:
    """The results, after comparing as the graph runs the sizes that were unknown as it was traced.

    TensorFlow would broadcast (N, 1) against (N, M) without a word. An assertion raises an error that names
    the arguments; XLA drops assertions, so that the results are NaN as well.
    """
    checks = []
    seen: dict[Axis, tuple[str, tf.Tensor, slice]] = {}
    for port, tensor in zip(ports, tensors, strict=True):
        for axis, here in dimensions(port.order, tensor.shape.rank).items():
            name, first, there = seen.setdefault(axis, (port.name, tensor, here))
            if tensor.shape[here].is_fully_defined() and first.shape[there].is_fully_defined():
                continue
            if first is not tensor:
                same = tf.reduce_all(tf.shape(tensor)[here] == tf.shape(first)[there])
                message = f"axis {axis} has one size in {port.name} and another in {name}; their shapes:"
                tf.debugging.Assert(same, [message, tf.shape(tensor), tf.shape(first)])
                checks.append(same)
    if not checks:
        return results
    agree = tf.reduce_all(checks)
    return tuple(tf.where(agree, r, tf.constant(float("nan"), r.dtype)) for r in results)
