"""JAX: a loss under `jit`, `grad`, `vmap`, `jvp` and every nesting of them.

JAX sees one function, `evaluate`, with one rule, that of forward mode: the tangents of a program are a linear
map of the tangents of its inputs (`lossforge.linearize`), and JAX gets reverse mode by transposing it. What
the map holds fixed is computed by `evaluate` too, so that all derivatives come from derived programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from lossforge.codegen.emitter import assemble, compile_text, emit
from lossforge.codegen.jax import jax_backend
from lossforge.compiler import REDUCTIONS, Plan, Reduction
from lossforge.dtypes import FLOATS, computing
from lossforge.errors import ParameterError
from lossforge.ir import Kind, Port, Program
from lossforge.linearize import linearize

if TYPE_CHECKING:
    from lossforge.loss import Loss


class JaxAdapter:
    """See `lossforge.adapters.base.Adapter`."""

    name = "jax"

    def is_array(self, value: Any) -> bool:
        """Whether `value` is a JAX array, traced ones included."""
        return isinstance(value, jax.Array)

    def dtype(self, array: Any) -> str:
        """The dtype's plain name."""
        return str(array.dtype)

    def shape(self, array: Any) -> tuple[int | None, ...]:
        """The shape; a symbolic size (`jax.export`) is not known yet."""
        return tuple(n if isinstance(n, int) else None for n in array.shape)

    def squeeze(self, array: Any, dimensions: Sequence[int]) -> Any:
        """The array without some dimensions of size 1."""
        return jnp.squeeze(array, axis=tuple(dimensions))

    def out_of_range(self, index: Any, size: int, mask: Any | None) -> tuple[int, int] | None:
        """The extremes of `index` if one lies outside of 0 … size − 1; None under tracing."""
        if isinstance(index, jax.core.Tracer) or isinstance(mask, jax.core.Tracer) or index.size == 0:
            return None
        with jax.ensure_compile_time_eval():  # a concrete target inside of a traced function
            low, high = map(int, _extremes(index, True if mask is None else mask))
        return (low, high) if low < 0 or high >= size else None

    def call(self, plan: Plan, arrays: Sequence[Any]) -> Any:
        """The loss."""
        return _jitted(plan)(*arrays)[0]

    def run(self, program: Program, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The program's outputs."""
        return _jitted(program)(*arrays)


@jax.jit
def _extremes(index: Any, mask: Any) -> tuple[Any, Any]:
    """The smallest and the largest entry where the mask holds; the others count as 0, which is inside."""
    counted = jnp.where(jnp.asarray(mask, bool), index, 0)
    return counted.min(), counted.max()


# ------------------------------------------------------------------------------------- programs


def _program(what: Plan | Program) -> Program:
    return what.value() if isinstance(what, Plan) else what


@lru_cache(maxsize=1024)
def _jitted(what: Plan | Program) -> Callable[..., tuple[Any, ...]]:
    """The program as a compiled function of arrays of any dtype, in which no parameter's value is baked."""
    program = _program(what)

    def function(*arrays: Any) -> tuple[Any, ...]:
        given = [jnp.asarray(a) for a in arrays]
        dtypes = {p.name: str(a.dtype) for p, a in zip(program.inputs, given, strict=True)}
        dtype = _precision(program.inputs, given)
        # JAX's own rule for these conversions returns each gradient in the dtype of what it belongs to.
        kinds: dict[Kind, Any] = {Kind.FLOAT: dtype, Kind.INDEX: int, Kind.BOOL: bool}
        ready = (a.astype(kinds[p.node.kind]) for p, a in zip(program.inputs, given, strict=True))
        results = evaluate(what, *ready)
        wanted = (dtypes[like] if like is not None else dtype for like in program.like)
        return tuple(r.astype(w if w in FLOATS else dtype) for r, w in zip(results, wanted, strict=True))

    function.__name__ = what.definition.name if isinstance(what, Plan) else "program"
    return jax.jit(function)


def _precision(ports: Sequence[Port], arrays: Sequence[Any]) -> str:
    """float64 if an array is, else float32; scalars decide only where nothing else can, Python's last."""
    floats = [(str(a.dtype), p, a) for p, a in zip(ports, arrays, strict=True) if str(a.dtype) in FLOATS]
    decide = [d for d, p, _ in floats if p.order] or [d for d, _, a in floats if not a.weak_type]
    return computing(decide or [d for d, _, _ in floats])


@lru_cache(maxsize=1024)
def _compiled(program: Program) -> Callable[..., tuple[Any, ...]]:
    backend = jax_backend()
    function = compile_text(assemble(backend, [emit(program, backend)]), "program", "jax")
    return function if len(program.outputs) > 1 else lambda *arrays: (function(*arrays),)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def evaluate(what: Plan | Program, *arrays: Any) -> tuple[Any, ...]:
    """The outputs of a program, or of a plan's value; floats are all in the precision to compute in."""
    return _compiled(_program(what))(*arrays)


@partial(evaluate.defjvp, symbolic_zeros=True)
def _tangents(
    what: Plan | Program, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The outputs, and their tangents, which are linear in those of the inputs."""
    program = _program(what)
    moving = {
        p.name: t
        for p, t in zip(program.inputs, tangents, strict=True)
        if p.node.kind is Kind.FLOAT and not isinstance(t, SymbolicZero)
    }
    outputs = evaluate(what, *primals)
    split = linearize(what, tuple(moving))
    # XLA computes once what the outputs and the residuals have in common.
    residuals = evaluate(split.residuals, *primals) if split.residuals.outputs else ()
    found: Iterator[Any] = iter(_compiled(split.linear)(*primals, *residuals, *moving.values()))
    return outputs, tuple(
        next(found) if p.node.kind is Kind.FLOAT else np.zeros(o.shape, jax.dtypes.float0)
        for o, p in zip(outputs, program.outputs, strict=True)
    )


# ------------------------------------------------------------------------------------- a loss as a function


@dataclass(frozen=True)
class JaxLoss:
    """A loss of JAX arrays with parameters and reduction bound; equal ones are equal as static arguments."""

    loss: Loss
    reduction: Reduction
    parameters: tuple[tuple[str, Any], ...]

    def __call__(self, *arrays: Any, weight: Any = None, mask: Any = None) -> Any:
        """The loss of the definition's arguments; see `Loss.__call__`."""
        return self.loss(*arrays, weight=weight, mask=mask, reduction=self.reduction, **dict(self.parameters))

    @property
    def __name__(self) -> str:
        return self.loss.name

    def __repr__(self) -> str:
        bound = "".join(f", {k}={v!r}" for k, v in (*self.parameters, ("reduction", self.reduction)))
        return f"<JAX function {self.loss.name}({', '.join(self.loss.arguments)}{bound})>"


def jax_function(loss: Loss, *, reduction: Reduction = "mean", **parameters: Any) -> JaxLoss:
    """`loss` as a function ``f(*arrays, weight=None, mask=None)`` with everything else bound.

    Args:
        loss: the loss.
        reduction: "mean", "sum", or "none" for the loss of each entry.
        parameters: parameters of the loss; those left out keep their defaults.

    Raises:
        ParameterError: an unknown parameter, one without a value, or an unknown reduction.
    """
    if reduction not in REDUCTIONS:
        raise ParameterError(f'{loss.name}: reduction={reduction!r}; expected "mean", "sum" or "none"')
    return JaxLoss(loss, reduction, tuple(loss._parameters(parameters).items()))
