"""Running a program on PyTorch's tensors: by kernels on the CPU, else as PyTorch's own operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lossforge.adapters import torch_kernels
from lossforge.codegen.emitter import assemble, compile_text, emit
from lossforge.codegen.torch import torch_backend
from lossforge.ir import Kind, Node, Port, Program
from lossforge.simplify import erase_gradient_marks

Value: TypeAlias = Tensor | float
"""What a program takes: a tensor, or a Python number where the input has no axes."""


@dataclass(frozen=True)
class _Compiled:
    function: Callable[..., Any]
    kinds: tuple[Kind, ...]
    like: tuple[int | None, ...]
    """The position of the input that lends each output its dtype."""
    shared: tuple[int, ...]
    """The outputs that might share memory with an input, or with an output before them."""


def program_text(program: Program) -> str:
    """The program as a function of PyTorch's own operations."""
    backend = torch_backend()
    return assemble(backend, [emit(program, backend)])


@lru_cache(maxsize=1024)
def _compiled(program: Program) -> _Compiled:
    function = compile_text(program_text(program), "program", "torch")
    names = [p.name for p in program.inputs]
    stored = [_stored(n) for n in erase_gradient_marks([o.node for o in program.outputs])]
    return _Compiled(
        function,
        tuple(p.node.kind for p in program.inputs),
        tuple(None if n is None else names.index(n) for n in program.like),
        tuple(i for i, n in enumerate(stored) if n.op == "input" or n in stored[:i]),
    )


def _stored(node: Node) -> Node:
    """The node whose memory this one may be a view of."""
    while node.op in ("rename", "window", "slide", "join", "split", "flip"):
        (node,) = node.args
    return node


def evaluate(
    program: Program, arrays: Sequence[Value], dtype: torch.dtype, *, narrow: bool = True
) -> tuple[Tensor, ...]:
    """The outputs of a program; none shares memory with an input or another. Every program runs here.

    Args:
        program: what to compute.
        arrays: a value for each input.
        dtype: the precision to compute in.
        narrow: whether an output takes the dtype of the input that it belongs to; otherwise it keeps `dtype`.
    """
    if not (torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active()):
        by_kernels = torch_kernels.run(program, arrays, dtype, narrow=narrow)
        if by_kernels is not None:
            return by_kernels
    compiled = _compiled(program)
    device = arrays[0].device  # type: ignore[union-attr]  # arguments come first, and are tensors
    wanted = {Kind.FLOAT: dtype, Kind.INDEX: torch.int64, Kind.BOOL: torch.bool}
    ready = [_as(a, wanted[kind], device) for a, kind in zip(arrays, compiled.kinds, strict=True)]
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            found = compiled.function(*ready)
    else:
        found = compiled.function(*ready)
    results = list(found) if isinstance(found, tuple) else [found]
    for i in compiled.shared:
        results[i] = results[i].clone()
    if narrow:
        owners = (None if i is None else arrays[i] for i in compiled.like)
        results = [narrowed(r, owner) for r, owner in zip(results, owners, strict=True)]
    return tuple(results)


def _as(value: Value, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=dtype, device=device)  # on a GPU a fill, which does not wait
    return value if value.dtype is dtype else value.to(dtype)


def narrowed(gradient: Tensor, owner: Value | None) -> Tensor:
    """The gradient in the dtype, and on the device, of what it belongs to."""
    if not isinstance(owner, Tensor) or not owner.is_floating_point():
        return gradient
    if gradient.dtype is owner.dtype and gradient.device == owner.device:
        return gradient
    return gradient.to(owner.device, owner.dtype)


def precision(ports: Sequence[Port], arrays: Sequence[Value]) -> torch.dtype:
    """The precision to compute in: float64 if an array is, else float32; scalars decide if there is none."""
    dtypes = [a.dtype for p, a in zip(ports, arrays, strict=True) if p.order and isinstance(a, Tensor)]
    if not dtypes:
        dtypes = [a.dtype for a in arrays if isinstance(a, Tensor)]
    return torch.float64 if torch.float64 in dtypes else torch.float32
