"""A program as PyTorch's own operations, one after another: on any device, and under any of its transforms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lossforge.codegen.emitter import assemble, compile_text, emit
from lossforge.codegen.torch import torch_backend
from lossforge.ir import Kind, Node, Program
from lossforge.simplify import erase_gradient_marks

Value: TypeAlias = Tensor | float
"""What a program takes: a tensor, or a Python number where the input has no axes."""


def program_text(program: Program) -> str:
    """The program as a function of PyTorch's own operations."""
    backend = torch_backend()
    return assemble(backend, [emit(program, backend)])


@dataclass(frozen=True, eq=False)
class Operations:
    """A program's operations, with the conversions of dtypes before and after them."""

    function: Callable[..., Any]
    takes: tuple[torch.dtype, ...]
    """The dtype that each input is converted to."""
    like: tuple[int | None, ...]
    """The position of the input that lends each output its dtype."""
    shared: tuple[int, ...]
    """The outputs that might share memory with an input, or with an output before them."""
    narrow: bool
    """Whether an output takes the dtype of the input that it belongs to; otherwise it keeps the precision."""
    precision: torch.dtype | None
    """That of the outputs, where more is computed in."""

    def __call__(self, *arrays: Value) -> tuple[Tensor, ...]:
        """The outputs; none shares memory with an input or another."""
        device = arrays[0].device  # type: ignore[union-attr]  # arguments come first, and are tensors
        ready = [_as(a, dtype, device) for a, dtype in zip(arrays, self.takes, strict=True)]
        with without_autocast(device):
            found = self.function(*ready)
        results = list(found) if isinstance(found, tuple) else [found]
        for i in self.shared:
            results[i] = results[i].clone()
        if self.precision is not None:
            results = [r.to(self.precision) for r in results]
        if self.narrow:
            owners = (None if i is None else arrays[i] for i in self.like)
            results = [_narrowed(r, owner) for r, owner in zip(results, owners, strict=True)]
        return tuple(results)


@lru_cache(maxsize=1024)
def operations(program: Program, dtype: torch.dtype, *, narrow: bool) -> Operations:
    """The program's operations in a precision; see `Operations`."""
    names = [p.name for p in program.inputs]
    takes = {Kind.FLOAT: torch.float64 if program.delicate else dtype, Kind.INDEX: torch.int64, Kind.BOOL: torch.bool}
    stored = [_stored(n) for n in erase_gradient_marks([o.node for o in program.outputs])]
    return Operations(
        _function(program),
        tuple(takes[p.node.kind] for p in program.inputs),
        tuple(None if n is None else names.index(n) for n in program.like),
        tuple(i for i, n in enumerate(stored) if n.op == "input" or n in stored[:i]),
        narrow,
        dtype if program.delicate else None,
    )


@lru_cache(maxsize=1024)
def _function(program: Program) -> Callable[..., Any]:
    return compile_text(program_text(program), "program", "torch")


def _stored(node: Node) -> Node:
    """The node whose memory this one may be a view of."""
    while node.op in ("rename", "window", "slide", "join", "split", "flip"):
        (node,) = node.args
    return node


def _as(value: Value, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=dtype, device=device)  # on a GPU a fill, which does not wait
    return value if value.dtype is dtype else value.to(dtype)


def _narrowed(gradient: Tensor, owner: Value | None) -> Tensor:
    """The gradient in the dtype, and on the device, of what it belongs to."""
    if not isinstance(owner, Tensor) or not owner.is_floating_point():
        return gradient
    if gradient.dtype is owner.dtype and gradient.device == owner.device:
        return gradient
    return gradient.to(owner.device, owner.dtype)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """While this holds, operations on the device keep the dtypes that they are given."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
