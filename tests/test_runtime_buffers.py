"""Gradient buffers: used again as soon as nobody holds them, and never before."""

import ctypes
import gc
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from lossforge.runtime import buffers
from lossforge.runtime.buffers import SMALL, GradientBuffers

LARGE = (SMALL // 4 + 3,)  # float32: just above the bound


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_a_buffer_that_nobody_holds_is_used_again() -> None:
    pool = GradientBuffers()
    addresses = set()
    for _ in range(5):
        array = pool.take(LARGE, np.float32)
        addresses.add(address(array))
        del array
    assert len(addresses) == 1
    assert pool.nbytes == LARGE[0] * 4


def torch_tensor(array: np.ndarray) -> object:
    return pytest.importorskip("torch").from_numpy(array)


def torch_detached_row(array: np.ndarray) -> object:
    return pytest.importorskip("torch").from_numpy(array).detach()[3:5]


def torch_dlpack(array: np.ndarray) -> object:
    return pytest.importorskip("torch").from_dlpack(array)


def jax_array(array: np.ndarray) -> object:
    return pytest.importorskip("jax").numpy.from_dlpack(array)


def jax_asarray(array: np.ndarray) -> object:
    return pytest.importorskip("jax").numpy.asarray(array)


HOLDERS: list[Callable[[np.ndarray], object]] = [
    lambda array: array,
    lambda array: array[7:9],
    lambda array: array[::-1].reshape(-1, 1).T[:, 4:5],
    lambda array: array.view(np.int32)[:1],
    lambda array: array.base,
    lambda array: np.asarray(memoryview(array))[2:],
    lambda array: np.lib.stride_tricks.as_strided(array, (2,), (8,)),
    lambda array: memoryview(array),
    lambda array: memoryview(array)[3:4],
    lambda array: array.__dlpack__(),
    lambda array: np.from_dlpack(array),
    lambda array: array.ctypes.data_as(ctypes.c_void_p),
    lambda array: array.data,
    lambda array: array.flat,
    lambda array: np.nditer(array),
    lambda array: {"nested": [(array[1:],)]},
    lambda array: lambda: array,
    torch_tensor,
    torch_detached_row,
    torch_dlpack,
    jax_array,
    jax_asarray,
]


@pytest.mark.parametrize("hold", HOLDERS, ids=itertools.count())
def test_a_caller_who_keeps_a_gradient_never_sees_it_change(hold: Callable[[np.ndarray], object]) -> None:
    pool = GradientBuffers()
    first = pool.take(LARGE, np.float32)
    first[:] = 1
    where = address(first)
    held = hold(first)
    del first
    second = pool.take(LARGE, np.float32)
    assert address(second) != where
    second[:] = 2

    del held
    gc.collect()
    third = pool.take(LARGE, np.float32)
    assert address(third) == where  # let go, and therefore used again
    assert (second == 2).all()


def test_the_values_that_torch_and_jax_hold_stay() -> None:
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    pool = GradientBuffers()
    kept = []
    for number in range(6):
        gradient = pool.take(LARGE, np.float32)
        gradient[:] = number
        kept.append((torch.from_numpy(gradient), jax.numpy.asarray(gradient))[number % 2])
        del gradient
    assert [float(array.min()) for array in kept] == list(range(6))
    assert [float(array.max()) for array in kept] == list(range(6))


@pytest.mark.parametrize("shape", [(SMALL,), (3, SMALL // 2), (1, SMALL, 1), (64, 1 << 15)], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_what_is_taken(shape: tuple[int, ...], dtype: type) -> None:
    pool = GradientBuffers()
    for _ in range(2):
        array = pool.take(shape, dtype)
        assert (array.shape, array.dtype) == (shape, dtype)
        assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
        assert address(array) % 64 == 0
        array[...] = 1
        del array


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (64, 10)], ids=str)
def test_small_arrays_are_left_to_numpy(shape: tuple[int, ...]) -> None:
    pool = GradientBuffers()
    array = pool.take(shape, np.float32)
    assert array.shape == shape
    assert array.base is None
    assert pool.nbytes == 0


@pytest.mark.parametrize("sizes", [(2, 3, 4), (64, 128, 65)], ids=["small", "large"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_axes_in_any_order(sizes: Sequence[int], order: tuple[int, ...]) -> None:
    pool = GradientBuffers()
    array = pool.take(sizes, np.float32, order=order)
    assert array.shape == tuple(sizes)
    assert array.transpose(order).flags.c_contiguous
    alike = pool.take_like(array, np.float64)
    assert (alike.shape, alike.dtype) == (array.shape, np.float64)
    assert alike.transpose(order).flags.c_contiguous
    # A slice of an array is not dense, but what is taken like it is.
    assert pool.take_like(array[:, 1:]).transpose(order).flags.c_contiguous


def test_a_slightly_smaller_array_fits_and_a_much_smaller_one_does_not() -> None:
    pool = GradientBuffers()
    where = address(pool.take((4 * SMALL,), np.uint8))
    assert address(pool.take((3 * SMALL,), np.uint8)) == where
    assert address(pool.take((2 * SMALL,), np.uint8)) != where


def test_the_smallest_that_fits_is_taken() -> None:
    pool = GradientBuffers()
    large, small = pool.take((5 * SMALL,), np.uint8), pool.take((4 * SMALL,), np.uint8)
    where = address(small)
    del large, small
    assert address(pool.take((4 * SMALL - 1,), np.uint8)) == where


def test_bounds_of_bytes_and_of_count() -> None:
    pool = GradientBuffers(max_bytes=4 * SMALL, max_count=3)
    held = [pool.take((SMALL,), np.uint8) for _ in range(10)]
    assert pool.nbytes == 3 * SMALL
    assert len({address(array) for array in held}) == 10
    latest = {address(array) for array in held[-3:]}
    del held
    assert address(pool.take((SMALL,), np.uint8)) in latest

    pool.take((2 * SMALL,), np.uint8)
    assert pool.nbytes <= 4 * SMALL
    big = pool.take((4 * SMALL + 1,), np.uint8)  # more than all that may be kept
    assert big.size == 4 * SMALL + 1
    assert 0 < pool.nbytes <= 4 * SMALL


def test_release_forgets_but_does_not_take_away() -> None:
    pool = GradientBuffers()
    array = pool.take(LARGE, np.float32)
    array[:] = 3
    pool.release()
    assert pool.nbytes == 0
    other = pool.take(LARGE, np.float32)
    other[:] = 4
    assert (array == 3).all()


def test_without_exact_reference_counts_nothing_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_COUNTS_ARE_EXACT", False)
    pool = GradientBuffers()
    assert pool.take(LARGE, np.float32).base is None
    assert pool.nbytes == 0


def test_threads_never_share_a_buffer() -> None:
    pool = GradientBuffers(max_count=4)
    failures: list[int] = []
    start = threading.Barrier(8, timeout=60)

    def worker(number: int) -> None:
        start.wait()
        for _ in range(40):
            array = pool.take(LARGE, np.float32)
            array[:] = number
            kept = array[::1000]
            del array
            if not (kept == number).all():
                failures.append(number)

    workers = [threading.Thread(target=worker, args=(number,)) for number in range(8)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert not failures


FORK = """
import os, threading
import numpy as np
from lossforge.runtime.buffers import GradientBuffers

gradient_buffers = GradientBuffers()
stop = threading.Event()
def take():
    while not stop.is_set():
        gradient_buffers.take((1 << 20,), np.float32)
workers = [threading.Thread(target=take) for _ in range(3)]
for worker in workers:
    worker.start()
held = gradient_buffers.take((1 << 20,), np.float32)
held[:] = 1
for _ in range(20):
    child = os.fork()
    if child == 0:
        def overwrite():
            other = gradient_buffers.take((1 << 20,), np.float32)
            other[:] = 2
        overwrite()
        thread = threading.Thread(target=overwrite)
        thread.start()
        thread.join(60)
        os._exit(0 if (held == 1).all() and not thread.is_alive() else 1)
    assert os.waitpid(child, 0)[1] == 0
assert (held == 1).all()
stop.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_after_a_fork() -> None:
    result = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
