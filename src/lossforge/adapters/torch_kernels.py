"""PyTorch's CPU tensors in our kernels, without a copy on the way in or out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from lossforge import kernels
from lossforge.ir import Program

_NAMES = {
    torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64",
    torch.bool: "bool", torch.uint8: "uint8", torch.int8: "int8", torch.int16: "int16", torch.int32: "int32",
    torch.int64: "int64",
}  # fmt: skip


def run(
    program: Program, arrays: Sequence[Tensor | float], dtype: torch.dtype, *, narrow: bool
) -> tuple[Tensor, ...] | None:
    """The program's outputs; None if these are not plain CPU tensors, or kernels do not spell the program."""
    ready: list[object] = []
    dtypes: list[torch.dtype | None] = []
    for array, port in zip(arrays, program.inputs, strict=True):
        if not isinstance(array, Tensor):
            ready.append(array)
            dtypes.append(None)
            continue
        if type(array) not in (Tensor, nn.Parameter) or array.device.type != "cpu" or array.dtype not in _NAMES:
            return None
        if torch._C._functorch.is_legacy_batchedtensor(array):  # of autograd.grad(is_grads_batched=True)
            return None
        if array._is_zerotensor() or array.is_neg():  # what it holds is not what its memory says
            return None
        if not port.order:
            ready.append(array.item())
            dtypes.append(array.dtype)
            continue
        plain = array.detach()
        bits = array.dtype is torch.bfloat16
        ready.append(plain.view(torch.int16).numpy().view(np.uint16) if bits else plain.numpy())
        dtypes.append(array.dtype)
    results, formats = _formats(program, tuple(dtypes), narrow)
    found = kernels.attempt(program, ready, _NAMES[dtype], results, formats)
    if found is None:
        return None
    return tuple(
        torch.from_numpy(f.view(np.int16)).view(torch.bfloat16) if d == "bfloat16" else torch.from_numpy(f)
        for f, d in zip(found, results, strict=True)
    )


@lru_cache(maxsize=1024)
def _formats(
    program: Program, dtypes: tuple[torch.dtype | None, ...], narrow: bool
) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """The dtype of each output (None: the computing one), and of each input."""
    by_name = {p.name: d for p, d in zip(program.inputs, dtypes, strict=True)}
    like = [by_name[n] if n is not None else None for n in program.like]
    results = tuple(_NAMES[d] if narrow and d is not None and d.is_floating_point else None for d in like)
    held = ((p.order, d) for p, d in zip(program.inputs, dtypes, strict=True))
    return results, tuple(_NAMES[d] if order and d is not None else None for order, d in held)
