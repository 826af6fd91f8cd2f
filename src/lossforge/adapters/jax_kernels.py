"""JAX's arrays on the CPU in our kernels, without a copy: a program as one call from within XLA's.

XLA fuses a loss into loops that are many times slower than memory is, and each of them begins on pages of memory
that the process has not touched yet. Measured under `jit` on 2 cores of an EPYC 7003, Huber's value and gradient over
2^24 entries: XLA's operations 17 × a streaming pass, our kernels 4 ×, of which the arithmetic is 1 ×.

What is decided here is decided as a function is traced, and as it is compiled for a device: a program that is
exported, split over several devices, or compiled for a GPU is one of XLA's own operations after all.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from lossforge import kernels
from lossforge.adapters import xla_calls
from lossforge.codegen.emitter import assemble, compile_text, emit
from lossforge.codegen.jax import jax_backend
from lossforge.compiler import batched, new_axis
from lossforge.dtypes import FLOATS
from lossforge.errors import LossforgeError
from lossforge.ir import Kind, Program
from lossforge.runtime.pages import advise_huge_pages
from lossforge.runtime.switch import use_kernels

LARGE = 1 << 16
"""Entries of the largest array from which kernels win: they are called at the price of 0.1 ms."""

TARGET = "lossforge"


def evaluate(program: Program, real: str, arrays: Sequence[Any]) -> tuple[Any, ...]:
    """The program's outputs.

    Args:
        program: what to compute.
        real: the precision to compute in.
        arrays: its inputs. Floats may have another precision.
    """
    if _is_for_kernels(program, arrays):
        return tuple(program_p.bind(*arrays, program=program, real=real))  # type: ignore[no-untyped-call]
    return as_operations(*arrays, program=program, real=real)


def as_operations(*arrays: Any, program: Program, real: str) -> tuple[Any, ...]:
    """The program's outputs by operations of JAX."""
    found = compiled(program)(*in_precision(program, real, arrays))
    return tuple(jnp.asarray(f) for f in found)


def in_precision(program: Program, real: str, arrays: Sequence[Any]) -> list[Any]:
    """The inputs with all floats in one precision."""
    return [
        a.astype(real) if p.node.kind is Kind.FLOAT else a for p, a in zip(program.inputs, arrays, strict=True)
    ]  # fmt: skip


@lru_cache(maxsize=1024)
def compiled(program: Program) -> Callable[..., tuple[Any, ...]]:
    """The program as a function of arrays in the computing precision."""
    function = compile_text(_text(program), "program", "jax")
    return function if len(program.outputs) > 1 else lambda *arrays: (function(*arrays),)


def _text(program: Program) -> str:
    backend = jax_backend()
    return assemble(backend, [emit(program, backend)])


def _is_for_kernels(program: Program, arrays: Sequence[Any]) -> bool:
    """Whether kernels are worth a try: large arrays of known shapes, or what single precision spoils, on one CPU."""
    return (
        use_kernels()
        and jax.default_backend() == "cpu"
        and not jax.config.jax_disable_jit  # type: ignore[attr-defined]
        and jax.sharding.get_abstract_mesh().empty
        and all(isinstance(n, int) for a in arrays for n in a.shape)
        and (max((math.prod(a.shape) for a in arrays), default=0) >= LARGE or program.delicate)
        and all(o.node.kind is Kind.FLOAT for o in program.outputs)
        and all(
            str(a.dtype) in FLOATS for p, a in zip(program.inputs, arrays, strict=True) if p.node.kind is Kind.FLOAT
        )
    )


# ------------------------------------------------------------------------------------- one operation of JAX

program_p = Primitive("lossforge")
"""A whole program; JAX differentiates it by the rule of `lossforge.adapters.jax.evaluate`, in which it stands."""
program_p.multiple_results = True
program_p.def_impl(as_operations)  # type: ignore[no-untyped-call]


@program_p.def_abstract_eval
def _results(*arrays: Any, program: Program, real: str) -> list[Any]:
    given = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]  # type: ignore[no-untyped-call]
    found = jax.eval_shape(lambda *arrays: as_operations(*arrays, program=program, real=real), *given)
    return [jax.core.ShapedArray(f.shape, f.dtype) for f in found]


def _batched(arrays: Sequence[Any], dims: Sequence[int | None], *, program: Program, real: str) -> tuple[Any, Any]:
    """`vmap`: the program with one more axis."""
    which = tuple(p.name for p, d in zip(program.inputs, dims, strict=True) if d is not None)
    moved = [a if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(arrays, dims, strict=True)]
    found = evaluate(batched(program, which, new_axis(program)), real, moved)
    return found, (0,) * len(found)


batching.primitive_batchers[program_p] = _batched

_lower_as_operations = mlir.lower_fun(as_operations, multiple_results=True)


def _lower_for_cpu(ctx: Any, *operands: Any, program: Program, real: str) -> Any:
    module = ctx.module_context
    devices = getattr(module.axis_context, "num_devices", None)
    if not module.lowering_parameters.for_export and devices == 1:
        key = _prepare(program, real, ctx.avals_in, ctx.avals_out)
        if key is not None:
            return jax.ffi.ffi_lowering(TARGET)(ctx, *operands, key=key)
    return _lower_as_operations(ctx, *operands, program=program, real=real)


mlir.register_lowering(program_p, _lower_as_operations)
mlir.register_lowering(program_p, _lower_for_cpu, platform="cpu")


# ------------------------------------------------------------------------------------- what XLA calls


@dataclass(frozen=True)
class _Memory:
    """What lies at an address."""

    shape: tuple[int, ...]
    format: str

    def at(self, address: int) -> np.ndarray:
        """The array, in memory that is not ours; bfloat16 as its bits."""
        dtype = np.dtype(np.uint16 if self.format == "bfloat16" else self.format)
        buffer = (ctypes.c_char * (math.prod(self.shape) * dtype.itemsize)).from_address(address)
        return np.ndarray(self.shape, dtype, memoryview(buffer))

    def number(self, address: int) -> float:
        """The number that lies there."""
        number = self.at(address)
        return float(number.view(jnp.bfloat16) if self.format == "bfloat16" else number)


@dataclass(frozen=True)
class _Call:
    """A program for arrays of certain shapes and dtypes."""

    program: Program
    real: str
    arguments: tuple[_Memory, ...]
    results: tuple[_Memory, ...]

    def __call__(self, arguments: Sequence[int], results: Sequence[int]) -> None:
        """Run it on the memory at these addresses."""
        ports = self.program.inputs
        arrays = [
            memory.at(address) if port.order else memory.number(address)
            for port, memory, address in zip(ports, self.arguments, arguments, strict=True)
        ]
        out = [memory.at(address) for memory, address in zip(self.results, results, strict=True)]
        for array in out:
            advise_huge_pages(array)
        kernels.run(self.program, arrays, self.real, *self._dtypes, out)

    def is_spelled(self) -> bool:
        """Compile the kernels, if they spell the program."""
        arrays = [np.empty(m.shape, np.uint16 if m.format == "bfloat16" else m.format) for m in self.arguments]
        return kernels.attempt_bound(self.program, arrays, self.real, *self._dtypes) is not None

    @property
    def _dtypes(self) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
        """The dtype of each output, and of each input with axes."""
        held = zip(self.program.inputs, self.arguments, strict=True)
        return tuple(m.format for m in self.results), tuple(m.format if p.order else None for p, m in held)


_calls: dict[str, _Call] = {}
"""By their keys, which are the same in every process: XLA's own cache keeps compiled programs on disk."""


def _prepare(program: Program, real: str, arguments: Sequence[Any], results: Sequence[Any]) -> str | None:
    """The key of the call; None if kernels do not spell the program."""
    if not _is_registered():
        return None
    call = _Call(program, real, *(tuple(_Memory(a.shape, str(a.dtype)) for a in m) for m in (arguments, results)))
    if not call.is_spelled():
        return None
    described = f"{_text(program)}\n{real} {call.arguments} {call.results}"
    key = hashlib.sha256(described.encode()).hexdigest()
    _calls[key] = call
    return key


def _run(key: str, arguments: Sequence[int], results: Sequence[int]) -> None:
    if key not in _calls:
        raise LossforgeError(
            "this program was compiled in another process, and the kernels that it calls are not known here; call the "
            "loss once under jax.jit, or compile with lf.use_kernels(False) what other processes load"
        )
    _calls[key](arguments, results)


@cache
def _is_registered() -> bool:
    """Whether XLA can call us: its interface may be another one some day."""
    try:
        xla_calls.register(TARGET, _run)
    except Exception:
        return False
    return True
