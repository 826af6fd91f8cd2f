"""Programs on a GPU: PyTorch's compiler fuses a program's operations, and the conversions around them, into few kernels.

A loss and its gradient are one program, so that the compiler sees at once what eager passes compute one after the
other: nothing but the gradient is written. The first call of a form compiles, which takes seconds, and so does the
first call at a second size (of the last batch, say); a third size compiles for all others. Where sizes are known, a
total and the gradient are one kernel; where they are not, two (Huber's loss of 2^24 entries on an H100: 78 and 115 µs).
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lossforge.adapters import torch_kernels
from lossforge.adapters.torch_eager import Operations, Value, operations, program_text, without_autocast
from lossforge.adapters.torch_kernels import Form
from lossforge.codegen.emitter import compile_text
from lossforge.ir import Program
from lossforge.runtime.switch import use_kernels

BACKEND: str | Callable[..., Any] = "inductor"
"""What `torch.compile` compiles with."""

_KNOWN_SIZES = 2
"""How many sizes are compiled for themselves."""

_OLDEST = (7, 0)
"""The compute capability that Triton needs."""


def form(arrays: Sequence[Value]) -> Form | None:
    """The form of a call whose tensors are plain and on one GPU that the compiler knows; else None."""
    device: torch.device | None = None
    found: list[Any] = []
    for a in arrays:
        if not isinstance(a, Tensor):
            found.append(None)
            continue
        if not _is_plain(a) or device not in (None, a.device):
            return None
        device = a.device
        found += (a.dtype, a.dim(), a.requires_grad)
    return (device, *found) if device is not None and use_kernels() and _has_compiler(device) else None


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch_kernels.holds_values(tensor)


def is_ours(described: Form) -> bool:
    """Whether a form comes from here: it begins with a device."""
    return isinstance(described[0], torch.device)


@lru_cache(maxsize=64)
def _has_compiler(device: torch.device) -> bool:
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= _OLDEST


@lru_cache(maxsize=1024)
def ready(program: Program, dtype: torch.dtype, described: Form, *, narrow: bool) -> Fused:
    """The program for tensors of a form; it is compiled at its first call."""
    return Fused(program, dtype, narrow=narrow)


class Fused:
    """A program as one function for PyTorch's compiler. What that cannot compile runs as operations, with a warning."""

    def __init__(self, program: Program, dtype: torch.dtype, *, narrow: bool) -> None:
        self.plain = operations(program, dtype, narrow=narrow)
        self.dtype = dtype
        self.sizes: set[tuple[torch.Size, ...]] = set()
        text = _text(program, self.plain)
        self.known, self.any = _compiled(text, dynamic=False), _compiled(text, dynamic=True)
        self.refused = False

    def __call__(self, *arrays: Value) -> tuple[Tensor, ...]:
        """The program's outputs."""
        if self.refused:
            return self.plain(*arrays)
        device = arrays[0].device  # type: ignore[union-attr]  # arguments come first, and are tensors
        # Numbers as tensors: the compiler would take each value for a constant of another program.
        tensors = [a if isinstance(a, Tensor) else torch.full((), a, dtype=self.dtype, device=device) for a in arrays]
        try:
            with without_autocast(device):
                return (self.known if self._is_known(tensors) else self.any)(*tensors)
        except torch._dynamo.exc.TorchDynamoException as error:
            self.refused = True
            reason = " ".join(str(error).split("\n")[:2])
            warnings.warn(
                f"PyTorch's compiler refused a loss, which now runs as single operations: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
            return self.plain(*arrays)

    def _is_known(self, tensors: Sequence[Tensor]) -> bool:
        sizes = tuple([t.shape for t in tensors])
        if sizes not in self.sizes:
            if len(self.sizes) >= _KNOWN_SIZES:
                return False
            self.sizes.add(sizes)
        return True


def _compiled(text: str, *, dynamic: bool) -> Callable[..., tuple[Tensor, ...]]:
    """The function `fused` of a text, compiled for each size anew, or for all of them."""
    function = compile_text(text, "fused", "torch")  # each has its own, since the compiler counts what it makes of one
    _make_importable(function)
    found: Callable[..., tuple[Tensor, ...]] = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=BACKEND)
    return found


def _text(program: Program, steps: Operations) -> str:
    """The program, and a function `fused` around it that converts dtypes as its operations do."""
    names = [f"a{i}" for i in range(len(steps.takes))]
    converted = ", ".join(f"{n}.to({dtype})" for n, dtype in zip(names, steps.takes, strict=True))
    results = [f"r{i}" for i in range(len(steps.like))]
    found = list(results)
    for i in steps.shared:
        found[i] += ".clone()"
    if steps.precision is not None:
        found = [f"{r}.to({steps.precision})" for r in found]
    if steps.narrow:
        for i, owner in enumerate(steps.like):
            if owner is not None:
                found[i] = f"{found[i]}.to(a{owner}.dtype) if a{owner}.is_floating_point() else {found[i]}"
    return (
        f"{program_text(program)}\n\ndef fused({', '.join(names)}):\n"
        f"    {', '.join(results)} = program({converted})\n"
        f"    return {', '.join(found)},\n"
    )


def _make_importable(function: Callable[..., Any]) -> None:
    """Dynamo looks up what a function calls in the function's module."""
    namespace = function.__globals__
    module = ModuleType(namespace["__name__"])
    vars(module).update(namespace)
    sys.modules.setdefault(module.__name__, module)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the entries fill their memory without gaps, in any order."""
    step = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != step:
                return False
            step *= size
    return True


def scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """A gradient that nobody else holds times a number; on a GPU, one kernel that ends at once where the number is 1.

    To ask the GPU whether it is 1 would mean to wait for it, and to multiply regardless two passes over memory.
    """
    if not (_is_plain(gradient) and _is_plain(factor) and _is_dense(gradient)):
        return (gradient * factor).to(gradient.dtype)
    if gradient.device != factor.device or not _has_compiler(gradient.device):
        return gradient.mul_(factor)
    from lossforge.adapters.triton_scale import scale

    scale(gradient, factor)
    return gradient
