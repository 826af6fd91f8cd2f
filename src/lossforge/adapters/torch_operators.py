"""Programs as PyTorch operators, which a compiler leaves whole: under `torch.compile` the CPU runs our kernels.

Three operators, each with what a compiler asks for: a schema without aliases or changes in place, an implementation
for the CPU, and one for fake tensors. None has a backward pass of its own: `lossforge.adapters.torch` records
derivatives, and an operator's result that reaches autograd in another way refuses to be differentiated.

`reduced` computes a loss with its gradient, like an eager call. The gradient waits outside of the graph, under a
*token*, and `reduced_backward` gives it away once; a gradient that has gone, or was asked for with a token that nobody
knows, is computed anew. So no pass over memory is spent on a product with an upstream gradient of 1, and what each
operator returns depends on its arguments alone.
"""

from __future__ import annotations

import hashlib
import math
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossforge import kernels
from lossforge.adapters import torch_kernels
from lossforge.adapters.torch_eager import Value, program_text
from lossforge.adapters.torch_programs import evaluate
from lossforge.binding import extents
from lossforge.compiler import Plan
from lossforge.ir import Axis, Program
from lossforge.runtime.switch import use_kernels

_LIBRARY: Any = torch.library.Library("lossforge", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema in (
    "evaluate(str key, Tensor[] tensors, float[] numbers) -> Tensor[]",
    "reduced(str key, Tensor[] tensors, float[] numbers) -> (Tensor, Tensor)",
    "reduced_backward(str key, Tensor[] tensors, float[] numbers, Tensor cotangent, Tensor token) -> Tensor[]",
):
    _LIBRARY.define(_schema, tags=torch.Tag.pt2_compliant_tag)


# ------------------------------------------------------------------------------------- while a compiler traces


class _State(threading.local):
    compiling = False


_state = _State()

SMALL = 1 << 17
"""Entries below which a compiler's own code wins: the two operators of a loss and its gradient cost 0.2 ms to call.
Measured for Huber's loss and its gradient, 2 cores: 0.43 against 0.24 ms at 640 entries, 42 against 270 ms at 2^24."""


@contextmanager
def compiling() -> Iterator[None]:
    """While this holds, calls are traced by a compiler."""
    _state.compiling = True
    try:
        yield
    finally:
        _state.compiling = False


def wanted(arrays: Sequence[Value]) -> bool:
    """Whether a call is to be left whole by the compiler that traces it: one of CPU tensors that are not small."""
    tensors = [a for a in arrays if isinstance(a, Tensor)]
    return (
        _state.compiling
        and use_kernels()
        and all(t.device.type == "cpu" and t.dtype in torch_kernels.NAMES for t in tensors)
        and max(math.prod(_hint(n) for n in t.shape) for t in tensors) >= SMALL
    )


def _hint(size: int | torch.SymInt) -> int:
    """A size, or what it is in the example that is traced."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return SMALL if hint is None else int(hint)


@lru_cache(maxsize=1024)
def spelled(program: Program) -> bool:
    """Whether kernels spell a program."""
    return kernels.spells(program)


# ------------------------------------------------------------------------------------- what a key stands for


@dataclass(frozen=True)
class _Entry:
    """Programs behind a key, and what is known of their inputs when they are traced."""

    program: Program
    dtype: torch.dtype
    is_tensor: tuple[bool, ...]
    plan: Plan | None = None
    wrt: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """A digest of the content, so that a graph that a compiler keeps on disk means the same in every process."""
        ports = [p.order for p in (*self.program.inputs, *self.program.outputs)]
        parts = (program_text(self.program), ports, self.program.like, str(self.dtype), self.is_tensor, self.wrt)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def arrays(self, tensors: Sequence[Tensor], numbers: Sequence[float]) -> list[Value]:
        """The inputs of the program in order."""
        left, right = iter(tensors), iter(numbers)
        return [next(left) if t else next(right) for t in self.is_tensor]

    def outputs(self, program: Program, arrays: Sequence[Value]) -> list[Tensor]:
        """Uninitialised (or fake) tensors as the outputs of a program: shapes, dtypes and order in memory."""
        shapes = _shapes(program, arrays)
        dtypes = torch_kernels.output_dtypes(program, arrays, self.dtype, narrow=True)
        found = []
        for port, dtype in zip(program.outputs, dtypes, strict=True):
            shape = [n for axis in port.order for n in shapes[axis]]
            twins = (a for p, a in zip(program.inputs, arrays, strict=True) if p.order == port.order and port.order)
            twin = next((a for a in twins if isinstance(a, Tensor) and not a.is_contiguous()), None)
            steps = range(len(shape), 0, -1) if twin is None else twin.stride()
            strides: list[Any] = [1] * len(shape)
            step: Any = 1
            for d in sorted(range(len(shape)), key=lambda d: (steps[d], -d)):
                strides[d] = step
                step = step * shape[d]
            found.append(torch.empty_strided(shape, strides, dtype=dtype, device="cpu"))
        return found


_entries: dict[str, _Entry] = {}


def _register(entry: _Entry) -> str:
    _entries.setdefault(entry.key, entry)
    return entry.key


def _entry(key: str) -> _Entry:
    try:
        return _entries[key]
    except KeyError:
        raise RuntimeError(
            f"lossforge: no program {key!r} in this process; a compiled graph runs where its loss was traced"
        ) from None


def _shapes(program: Program, arrays: Sequence[Value]) -> Mapping[Axis, Sequence[Any]]:
    """The sizes of each axis: one, or those of the dimensions that a starred axis stands for."""
    tensors: list[Any] = [a if isinstance(a, Tensor) else None for a in arrays]
    return extents(program, tensors)


def _split(arrays: Sequence[Value]) -> tuple[list[Tensor], list[float]]:
    return [a for a in arrays if isinstance(a, Tensor)], [float(a) for a in arrays if not isinstance(a, Tensor)]


def _run(entry: _Entry, program: Program, arrays: Sequence[Value]) -> list[Tensor]:
    """The outputs of a program, in memory as the compiler expects them."""
    found = list(evaluate(program, arrays, entry.dtype))
    if all(f.is_contiguous() for f in found) and all(not isinstance(a, Tensor) or a.is_contiguous() for a in arrays):
        return found
    expected = entry.outputs(program, arrays)
    return [
        f if f.stride() == e.stride() else e.copy_(f)  # a dimension of size 1 may have any stride
        for f, e in zip(found, expected, strict=True)
    ]


# ------------------------------------------------------------------------------------- evaluate


def evaluated(program: Program, arrays: Sequence[Value], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The outputs of a program, as one operator."""
    entry = _Entry(program, dtype, tuple(isinstance(a, Tensor) for a in arrays))
    found: list[Tensor] = torch.ops.lossforge.evaluate(_register(entry), *_split(arrays))
    return tuple(found)


@torch.library.impl(_LIBRARY, "evaluate", "CPU")
def _evaluate(key: str, tensors: Sequence[Tensor], numbers: Sequence[float]) -> list[Tensor]:
    entry = _entry(key)
    return _run(entry, entry.program, entry.arrays(tensors, numbers))


@torch.library.register_fake("lossforge::evaluate", lib=_LIBRARY)
def _evaluate_fake(key: str, tensors: Sequence[Tensor], numbers: Sequence[float]) -> list[Tensor]:
    entry = _entry(key)
    return entry.outputs(entry.program, entry.arrays(tensors, numbers))


# ------------------------------------------------------------------------------------- a loss and its gradient


class _Pending(np.ndarray):
    """The memory of a token, which holds the gradients that wait for the backward pass."""

    gradients: list[Tensor] | None


_pending: weakref.WeakValueDictionary[int, _Pending] = weakref.WeakValueDictionary()
"""By the address of the token, which is nobody else's for as long as the token lives."""


def reduced(plan: Plan, wrt: tuple[str, ...], arrays: Sequence[Value], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A reduced loss, and the token under which its gradient waits."""
    found: tuple[Tensor, Tensor] = torch.ops.lossforge.reduced(_reduced_key(plan, wrt, arrays, dtype), *_split(arrays))
    return found


def reduced_backward(
    plan: Plan, wrt: tuple[str, ...], arrays: Sequence[Value], dtype: torch.dtype, cotangent: Tensor, token: Tensor
) -> tuple[Tensor, ...]:
    """The gradient for each of `wrt`, times the upstream one."""
    key = _reduced_key(plan, wrt, arrays, dtype)
    found: list[Tensor] = torch.ops.lossforge.reduced_backward(key, *_split(arrays), cotangent, token)
    return tuple(found)


def _reduced_key(plan: Plan, wrt: tuple[str, ...], arrays: Sequence[Value], dtype: torch.dtype) -> str:
    is_tensor = tuple(isinstance(a, Tensor) for a in arrays)
    return _register(_Entry(plan.value_and_gradient(wrt), dtype, is_tensor, plan, wrt))


def _vjp(entry: _Entry) -> Program:
    assert entry.plan is not None
    return entry.plan.vjp(entry.wrt)


@torch.library.impl(_LIBRARY, "reduced", "CPU")
def _reduced(key: str, tensors: Sequence[Tensor], numbers: Sequence[float]) -> tuple[Tensor, Tensor]:
    entry = _entry(key)
    loss, *gradients = _run(entry, entry.program, entry.arrays(tensors, numbers))
    memory = np.zeros(1, np.uint8).view(_Pending)
    memory.gradients = gradients
    token = torch.from_numpy(memory)
    _pending[token.data_ptr()] = memory
    return loss, token


@torch.library.register_fake("lossforge::reduced", lib=_LIBRARY)
def _reduced_fake(key: str, tensors: Sequence[Tensor], numbers: Sequence[float]) -> tuple[Tensor, Tensor]:
    entry = _entry(key)
    value = replace(entry.program, outputs=entry.program.outputs[:1], like=entry.program.like[:1])
    (loss,) = entry.outputs(value, entry.arrays(tensors, numbers))
    return loss, torch.empty(1, dtype=torch.uint8, device="cpu")


@torch.library.impl(_LIBRARY, "reduced_backward", "CPU")
def _reduced_backward(
    key: str, tensors: Sequence[Tensor], numbers: Sequence[float], cotangent: Tensor, token: Tensor
) -> list[Tensor]:
    entry = _entry(key)
    memory = _pending.pop(token.data_ptr(), None)
    found = None if memory is None else vars(memory).pop("gradients", None)
    if found is None:
        return _run(entry, _vjp(entry), [*entry.arrays(tensors, numbers), cotangent])
    return found if cotangent.item() == 1 else [g.mul_(cotangent) for g in found]


@torch.library.register_fake("lossforge::reduced_backward", lib=_LIBRARY)
def _reduced_backward_fake(
    key: str, tensors: Sequence[Tensor], numbers: Sequence[float], cotangent: Tensor, token: Tensor
) -> list[Tensor]:
    entry = _entry(key)
    return entry.outputs(_vjp(entry), [*entry.arrays(tensors, numbers), cotangent])


# ------------------------------------------------------------------------------------- no backward pass


def _refuse(ctx: Any, *_: Any) -> Any:
    raise RuntimeError(
        f"lossforge::{ctx.operator} has no backward pass of its own; differentiate the loss that it was traced for"
    )


def _register_refusal(operator: str) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.operator = operator

    torch.library.register_autograd(f"lossforge::{operator}", _refuse, setup_context=setup_context, lib=_LIBRARY)


for _operator in ("evaluate", "reduced", "reduced_backward"):
    _register_refusal(_operator)
