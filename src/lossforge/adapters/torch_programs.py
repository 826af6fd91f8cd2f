"""Running a program on PyTorch's tensors.

By our kernels on the CPU, fused by PyTorch's compiler on a GPU, and as its operations wherever else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lossforge.adapters import torch_inductor, torch_kernels
from lossforge.adapters.torch_eager import Value, operations
from lossforge.ir import Port, Program


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
    described = form(arrays)
    found = None if described is None else ready(program, arrays, dtype, described, narrow=narrow)
    return (operations(program, dtype, narrow=narrow) if found is None else found)(*arrays)


def form(arrays: Sequence[Value]) -> torch_kernels.Form | None:
    """What decides on how a call runs; None where it is not plain tensors on one device, or somebody watches."""
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return None
    return torch_kernels.form(arrays) or torch_inductor.form(arrays)


def ready(
    program: Program, arrays: Sequence[Value], dtype: torch.dtype, described: torch_kernels.Form, *, narrow: bool
) -> torch_kernels.Run | None:
    """The program for tensors of a form, by kernels or by a compiler; None if it runs as operations."""
    if torch_inductor.is_ours(described):
        return torch_inductor.ready(program, dtype, described, narrow=narrow)
    return torch_kernels.ready(program, arrays, dtype, described, narrow=narrow)


def precision(ports: Sequence[Port], arrays: Sequence[Value]) -> torch.dtype:
    """The precision to compute in: float64 if an array is, else float32; scalars decide if there is none."""
    dtypes = [a.dtype for p, a in zip(ports, arrays, strict=True) if p.order and isinstance(a, Tensor)]
    if not dtypes:
        dtypes = [a.dtype for a in arrays if isinstance(a, Tensor)]
    return torch.float64 if torch.float64 in dtypes else torch.float32
