"""Matrix products by NumPy's BLAS, in the threads that kernels run in.

A BLAS with threads of its own leaves them spinning for milliseconds after a product, on the cores that the next sweep
is to run on: an InfoNCE of 1024 rows took 16 ms through NumPy and 26 ms through PyTorch, of which its two products
were 8. So our threads take some rows each, of a BLAS that is told to use one thread meanwhile: 10 ms in both. That
holds for the whole process: products that other threads ask for in that moment are computed in one thread, too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from lossforge.runtime.threads import run_chunks

LINES = 64
"""The fewest rows, or columns, of a product that are worth a call of BLAS."""

FLOPS_PER_NANOSECOND = 64
"""Of one core, roughly: to tell whether a product pays for waking threads."""


def matmul(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The product of matrices: (…, m, k) times (…, k, n)."""
    m, k, n = *x.shape[-2:], y.shape[-1]
    if max(m, n) < 2 * LINES < k:  # only BLAS itself cuts along the axis that is summed over
        return np.matmul(x, y)
    out = np.empty((*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), m, n), np.result_type(x, y))

    def rows(begin: int, end: int) -> None:
        np.matmul(x[..., begin:end, :], y, out=out[..., begin:end, :])

    def columns(begin: int, end: int) -> None:
        np.matmul(x, y[..., begin:end], out=out[..., begin:end])

    task, lines = (rows, m) if m >= n or m >= 2 * LINES else (columns, n)
    with one_thread():
        run_chunks(task, lines, LINES, cost=2 * out.size * k // FLOPS_PER_NANOSECOND)
    return out


class _Limit:
    """Who wants BLAS to use one thread, and how many it used before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.before: list[int] = []
        self.libraries: list[Any] | None = None

    def enter(self) -> None:
        with self.lock:
            if self.libraries is None:  # NumPy's is loaded; others may come and do not matter
                self.libraries = ThreadpoolController().select(user_api="blas").lib_controllers
            self.holders += 1
            if self.holders == 1:
                self.before = [library.get_num_threads() for library in self.libraries]
                self._set([1] * len(self.before))

    def leave(self) -> None:
        with self.lock:
            self.holders -= 1
            if not self.holders:
                self._set(self.before)

    def lift(self) -> None:
        """In a forked child, where nobody is left to leave."""
        if self.holders:
            self._set(self.before)
        self.lock, self.holders = threading.Lock(), 0

    def _set(self, numbers: list[int]) -> None:
        for library, n in zip(self.libraries or (), numbers, strict=True):
            library.set_num_threads(n)


_limit = _Limit()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_limit.lift)


@contextmanager
def one_thread() -> Iterator[None]:
    """While any thread is inside, a matrix product runs in the thread that asks for it."""
    _limit.enter()
    try:
        yield
    finally:
        _limit.leave()


__all__ = ["matmul", "one_thread"]
