"""JAX: a loss under `jit`, `grad`, `vmap`, `jvp` and every nesting of them.

JAX sees one function, `evaluate`, with one rule, that of forward mode: the tangents of a program are a linear
map of the tangents of its inputs (`lossforge.linearize`), and JAX gets reverse mode by transposing it. What
the map holds fixed is computed by `evaluate` too, so that all derivatives come from derived programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from lossforge.adapters import jax_kernels
from lossforge.adapters.base import Adapter
from lossforge.adapters.jax_kernels import compiled, in_precision
from lossforge.compiler import REDUCTIONS, Plan, Reduction
from lossforge.dtypes import FLOATS, computing
from lossforge.errors import ParameterError
from lossforge.ir import Kind, Port, Program
from lossforge.linearize import linearize
from lossforge.runtime.switch import use_kernels

if TYPE_CHECKING:
    from lossforge.loss import Loss


class JaxAdapter(Adapter):
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


Parts: TypeAlias = "tuple[Plan | Program, ...]"


@lru_cache(maxsize=1024)
def _program(parts: Parts) -> Program:
    """Programs of the same inputs as one."""
    programs = [p.value() if isinstance(p, Plan) else p for p in parts]
    if len(programs) == 1:
        return programs[0]
    outputs = tuple(o for p in programs for o in p.outputs)
    return Program(programs[0].inputs, outputs, tuple(f"output_{i}" for i in range(len(outputs))))


def _by_part(parts: Parts, outputs: Sequence[Any]) -> list[Sequence[Any]]:
    """The outputs of each of the programs that `_program` joined."""
    left = iter(outputs)
    return [list(islice(left, len(_program((p,)).outputs))) for p in parts]


def _jitted(what: Plan | Program) -> Callable[..., tuple[Any, ...]]:
    return _function(what, use_kernels())


@lru_cache(maxsize=1024)
def _function(what: Plan | Program, kernels: bool) -> Callable[..., tuple[Any, ...]]:
    """The program as a compiled function of arrays of any dtype, in which no parameter's value is baked."""
    program = _program((what,))

    def function(*arrays: Any) -> tuple[Any, ...]:
        given = [jnp.asarray(a) for a in arrays]
        dtypes = {p.name: str(a.dtype) for p, a in zip(program.inputs, given, strict=True)}
        dtype = _precision(program.inputs, given)
        # JAX's own rule for these conversions returns each gradient in the dtype of what it belongs to.
        kinds: dict[Kind, Any] = {Kind.FLOAT: dtype, Kind.INDEX: int, Kind.BOOL: bool}
        ready = (
            a if p.node.kind is Kind.FLOAT and str(a.dtype) in FLOATS else a.astype(kinds[p.node.kind])
            for p, a in zip(program.inputs, given, strict=True)
        )
        results = evaluate((what,), dtype, *ready)
        wanted = (dtypes[like] if like is not None else dtype for like in program.like)
        return tuple(r.astype(w if w in FLOATS else dtype) for r, w in zip(results, wanted, strict=True))

    function.__name__ = what.definition.name if isinstance(what, Plan) else "program"
    return jax.jit(function)


def _precision(ports: Sequence[Port], arrays: Sequence[Any]) -> str:
    """float64 if an array is, else float32; scalars decide only where nothing else can, Python's last."""
    floats = [(str(a.dtype), p, a) for p, a in zip(ports, arrays, strict=True) if str(a.dtype) in FLOATS]
    decide = [d for d, p, _ in floats if p.order] or [d for d, _, a in floats if not a.weak_type]
    return computing(decide or [d for d, _, _ in floats])


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def evaluate(parts: Parts, real: str, *arrays: Any) -> tuple[Any, ...]:
    """The outputs of programs of the same inputs, or of a plan's value, computed together in the precision `real`."""
    return jax_kernels.evaluate(_program(parts), real, arrays)


@partial(evaluate.defjvp, symbolic_zeros=True)
def _tangents(
    parts: Parts, real: str, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The outputs, and their tangents, which are linear in those of the inputs."""
    inputs = _program(parts).inputs
    moving = {
        p.name: t.astype(real)
        for p, t in zip(inputs, tangents, strict=True)
        if p.node.kind is Kind.FLOAT and not isinstance(t, SymbolicZero)
    }
    maps = [linearize(part, tuple(moving)) for part in parts]
    # What the maps hold fixed is computed with the outputs: value and gradient of a loss in one program.
    wanted = tuple(dict.fromkeys((*parts, *(m.residuals for m in maps if m.residuals.outputs))))
    found = dict(zip(wanted, _by_part(wanted, evaluate(wanted, real, *primals)), strict=True))
    outputs, changes = [], []
    for part, split in zip(parts, maps, strict=True):
        given = in_precision(_program((part,)), real, primals)
        changed = iter(compiled(split.linear)(*given, *found.get(split.residuals, ()), *moving.values()))
        for port, output in zip(_program((part,)).outputs, found[part], strict=True):
            outputs.append(output)
            floats = port.node.kind is Kind.FLOAT
            changes.append(next(changed) if floats else np.zeros(output.shape, jax.dtypes.float0))
    return tuple(outputs), tuple(changes)


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


def jax_function(loss: Loss, *, reduction: Reduction | None = None, **parameters: Any) -> JaxLoss:
    """`loss` as a function ``f(*arrays, weight=None, mask=None)`` with everything else bound.

    Args:
        loss: the loss.
        reduction: "mean", "sum", or "none" for the loss of each entry.
        parameters: parameters of the loss; those left out keep their defaults.

    Raises:
        ParameterError: an unknown parameter, one without a value, or an unknown reduction.
    """
    reduction = loss.reduction if reduction is None else reduction
    if reduction not in REDUCTIONS:
        raise ParameterError(f'{loss.name}: reduction={reduction!r}; expected "mean", "sum" or "none"')
    return JaxLoss(loss, reduction, tuple(loss.parameter_values(parameters).items()))
