"""Memory for gradients that is used again when nobody holds the last gradient any more.

A fresh array costs page faults at its first touch, which are more than the arithmetic of a loss. Measured for
64 MB on an EPYC 9004, Linux with transparent huge pages on request (`madvise`):

| memory                                                  | first touch and free |
|---------------------------------------------------------|----------------------|
| `mmap` with pages of 4 KiB                              | 34 to 42 ms          |
| `np.empty`, which asks for huge pages by itself         | 7.5 ms               |
| `mmap` with `MADV_HUGEPAGE`, aligned to 2 MiB           | 6.4 ms               |
| a buffer of this module, used again                     | 0                    |

So huge pages gain a factor of 5, but NumPy has that already, and the buffers are plain NumPy arrays.

**Nobody sees a gradient change.** Every array that views a NumPy array, and every tensor, memoryview or
DLPack capsule made of such a view, holds a reference to the array that owns the memory. A buffer is therefore
handed out only while its owner's reference count is what it was before anybody else had it.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
"""Bytes: a cache line, an AVX-512 register, and what JAX asks for to take an array without a copy."""

SMALL = 1 << 20
"""Bytes below which `np.empty` is used: malloc has them at hand, and bookkeeping would cost such calls 3
µs."""

DEFAULT_BYTES, DEFAULT_COUNT = 1 << 30, 16
"""What `GradientBuffers` keeps at most, in bytes and in buffers."""

# Guards the lists of all instances, for a microsecond. A fork waits for it, so that a child finds it free.
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class GradientBuffers:
    """Buffers that are kept between calls: at most `max_bytes` in total and `max_count`, the latest used.

    Safe for any number of threads, and after a fork.
    """

    def __init__(self, *, max_bytes: int = DEFAULT_BYTES, max_count: int = DEFAULT_COUNT) -> None:
        self.max_bytes = max_bytes
        self.max_count = max_count
        self._buffers: list[_Buffer] = []  # the latest used last

    def take(self, shape: Sequence[int], dtype: npt.DTypeLike, *, order: Sequence[int] | None = None) -> np.ndarray:
        """An uninitialised array that nobody else holds.

        `order` names the axes from the slowest to the fastest in memory (default: C order). From `SMALL`
        bytes up the memory is aligned to `ALIGNMENT`, and comes back here when the last view of the array is
        gone.
        """
        dtype = np.dtype(dtype)
        if order is None:
            return self._allocate(tuple(shape), dtype)
        position = {axis: place for place, axis in enumerate(order)}
        array = self._allocate(tuple(shape[axis] for axis in order), dtype)
        return array.transpose([position[axis] for axis in range(len(shape))])

    def take_like(self, array: np.ndarray, dtype: npt.DTypeLike | None = None) -> np.ndarray:
        """As `take`, with the shape of `array` and its axes in the same order in memory."""
        order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
        return self.take(array.shape, array.dtype if dtype is None else dtype, order=order)

    def release(self) -> None:
        """Forget all buffers. Memory that is in use stays until its last view is gone."""
        with _lock:
            self._buffers.clear()

    @property
    def nbytes(self) -> int:
        """What is kept or known to be in use."""
        with _lock:
            return sum(buffer.size for buffer in self._buffers)

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        if not SMALL <= size <= self.max_bytes or not _COUNTS_ARE_EXACT:
            return np.empty(shape, dtype)
        with _lock:
            # Out of sight, lest a finaliser that runs meanwhile in this thread takes one as well.
            buffers, self._buffers = self._buffers, []
            # At most a quarter of a buffer may go unused; among those that fit, the smallest.
            fitting = [b for b in buffers if size <= b.size <= size + size // 3 and b.is_idle()]
            buffer = min(fitting, key=lambda b: b.size) if fitting else _Buffer(size)
            array = np.ndarray(shape, dtype, buffer.owner, buffer.offset)
            self._buffers = self._within_bounds([*(b for b in buffers if b is not buffer), buffer])
        return array

    def _within_bounds(self, buffers: list[_Buffer]) -> list[_Buffer]:
        """Without those longest unused. One that is in use is then freed by its holder instead."""
        excess = sum(buffer.size for buffer in buffers) - self.max_bytes
        while buffers and (excess > 0 or len(buffers) > self.max_count):
            excess -= buffers.pop(0).size
        return buffers


class _Buffer:
    """Memory, owned by an array that nobody outside sees but through its views."""

    __slots__ = ("idle_count", "offset", "owner", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.owner = np.empty(size + ALIGNMENT, np.uint8)
        self.offset = -self.owner.ctypes.data % ALIGNMENT
        self.idle_count = self._count()

    def is_idle(self) -> bool:
        return self._count() == self.idle_count

    def _count(self) -> int:
        return sys.getrefcount(self.owner)


# Without the GIL a reference count is split between threads and cannot be read at one instant.
_COUNTS_ARE_EXACT = not hasattr(sys, "_is_gil_enabled") or sys._is_gil_enabled()
