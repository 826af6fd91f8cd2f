"""A Triton kernel: entries times a number in place, and nothing at all where the number is 1. Imports Triton."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

_BLOCK = 4096
_BLOCKS_PER_PROCESSOR = 4


@triton.jit
def _scale(values, factor, count, block: tl.constexpr):  # type: ignore[no-untyped-def]
    by = tl.load(factor)
    if by != 1:
        for part in range(tl.program_id(0), tl.cdiv(count, block), tl.num_programs(0)):
            at = tl.cast(part, tl.int64) * block + tl.arange(0, block)
            inside = at < count
            x = tl.load(values + at, mask=inside)
            tl.store(values + at, (x * by).to(x.dtype), mask=inside)


def scale(values: Tensor, factor: Tensor) -> None:
    """Multiply entries by a number on the same GPU, without waiting for it.

    Args:
        values: entries that fill their memory without gaps, in any order.
        factor: one number.
    """
    count, device = values.numel(), values.get_device()
    if count:
        programs = min(-(-count // _BLOCK), _BLOCKS_PER_PROCESSOR * _processors(device))
        with nullcontext() if torch.cuda.current_device() == device else torch.cuda.device(device):
            _scale[(programs,)](values, factor, count, block=_BLOCK)


@lru_cache(maxsize=64)
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
