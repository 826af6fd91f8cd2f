"""Compiled kernels as functions: what they compute, accept, refuse, and say."""

import ctypes
import gc
import linecache
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lossforge.runtime.cache import FASTMATH, compile_kernel
from lossforge.runtime.object_code import compile_to_object_code

SCALE = """
def scale(source, target, factor, shift, begin, end):
    for i in range(begin, end):
        for j in range(source.shape[1]):
            target[i, j] = source[i, j] * factor + shift
"""
SIGNATURE = ("float64[:, :]", "float64[:, ::1]", "float64", "int64", "int64", "int64")


def test_layouts_scalars_and_ranges() -> None:
    kernel = compile_kernel(SCALE, "scale", SIGNATURE)
    base = np.arange(48.0).reshape(6, 8)
    for source in (base, base[::2, 1::3], base.T, base[::-1, ::-1], base[:0], base[:, :0], base[:1]):
        target = np.full(source.shape, -1.0)
        assert kernel(source, target, np.float32(0.5), np.int32(3), 0, len(source)) is None
        np.testing.assert_array_equal(target, source * 0.5 + 3)
    target = np.zeros((6, 8))
    kernel(base, target, 1.0, 0, 2, 4)
    assert target.any(axis=1).tolist() == [False, False, True, True, False, False]


DTYPES = ["float32", "float64", "int8", "uint16", "int32", "int64", "uint64", "bool"]


@pytest.mark.parametrize(("dtype", "ndim"), [(dtype, 2) for dtype in DTYPES] + [("float32", 1), ("float32", 3)])
def test_dtypes_and_axes(dtype: str, ndim: int, rng: np.random.Generator) -> None:
    lines, indices = ["def copy(a, b):"], ", ".join("ijk"[:ndim])
    for axis, index in enumerate("ijk"[:ndim]):
        lines.append(f"{'    ' * (axis + 1)}for {index} in range(a.shape[{axis}]):")
    source = "\n".join([*lines, f"{'    ' * (ndim + 1)}b[{indices}] = a[{indices}]", ""])
    signature = [f"{dtype}[{', '.join(':' * ndim)}]", f"{dtype}[{', '.join([':'] * (ndim - 1) + ['::1'])}]"]
    kernel = compile_kernel(source, "copy", signature)
    array = rng.integers(0, 100, (3, 4, 5)[:ndim]).astype(dtype)
    for view in (array, array[::-1], array[1:]):
        copy = np.zeros(view.shape, dtype)
        kernel(view, copy)
        np.testing.assert_array_equal(copy, view)


def test_a_flat_array_may_come_as_its_address() -> None:
    source = (
        "from lossforge.codegen.instructions import load, store\n"
        "def double(a, b, n):\n    for i in range(n):\n        store(b, i, 2.0 * load(a, i))\n"
    )
    kernel = compile_kernel(source, "double", ["float64[::1]", "float64[:]", "int64"])
    array, found = np.arange(5.0), np.zeros(5)
    kernel(array.ctypes.data, found.ctypes.data, 5)
    np.testing.assert_array_equal(found, 2 * array)
    kernel(array.ctypes.data + 8, found, 4)
    np.testing.assert_array_equal(found, [2, 4, 6, 8, 8])
    for wrong in (-(2**70), 2**70):
        with pytest.raises(OverflowError):
            kernel(wrong, found, 0)


def test_both_64_bit_integers_of_numpy_are_int64() -> None:
    kernel = compile_kernel("def one(a):\n    a[0] = 1\n", "one", ["int64[::1]"])
    for code in "lq":
        array = np.zeros(3, code)
        if array.itemsize == 8:
            kernel(array)
            assert array[0] == 1


def test_a_memory_map_is_an_array(tmp_path: Path) -> None:
    kernel = compile_kernel(SCALE, "scale", SIGNATURE)
    target = np.memmap(tmp_path / "target", np.float64, "w+", shape=(2, 2))
    kernel(np.ones((2, 2)), target, 2.0, 1, 0, 2)
    assert (target == 3).all()


READ_ONLY = np.zeros((3, 4))
READ_ONLY.flags.writeable = False
MISALIGNED = np.frombuffer(bytearray(8 * 12 + 1), np.float64, offset=1).reshape(3, 4)


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    [
        (0, [[0.0] * 4] * 3, "argument source must be a NumPy array with 2 axes, dtype float64, aligned"),
        (0, None, "argument source"),
        (0, 3.0, "argument source"),
        (0, np.zeros(12), "argument source"),
        (0, np.zeros((3, 4, 1)), "argument source"),
        (0, np.zeros((3, 4), np.float32), "argument source"),
        (0, np.zeros((3, 4), np.int64), "argument source"),
        (0, np.zeros((3, 4), ">f8" if sys.byteorder == "little" else "<f8"), "argument source"),
        (0, MISALIGNED, "argument source"),
        (1, np.zeros((4, 3)).T, "argument target .* C-contiguous"),
        (1, np.zeros((3, 8))[:, ::2], "argument target .* C-contiguous"),
        (2, "2.0", "real number"),
        (2, None, "real number"),
        (3, 1.5, "integer"),
        (3, np.zeros(2), "integer|scalar"),
    ],
    ids=["list", "None", "float", "1-D", "3-D", "float32", "int64", "swapped", "misaligned", "transposed"]
    + ["sliced", "string", "None for a float", "float for an int", "array for an int"],
)
def test_a_wrong_argument_is_refused(position: int, wrong: object, message: str) -> None:
    kernel = compile_kernel(SCALE, "scale", SIGNATURE)
    target = np.zeros((3, 4))
    arguments: list[object] = [np.ones((3, 4)), target, 2.0, 1, 0, 3]
    arguments[position] = wrong
    with pytest.raises(TypeError, match=message):
        kernel(*arguments)
    assert not target.any()


def test_an_integer_beyond_64_bits_is_refused() -> None:
    kernel = compile_kernel(SCALE, "scale", SIGNATURE)
    with pytest.raises(OverflowError):
        kernel(np.ones((3, 4)), np.zeros((3, 4)), 2.0, 1 << 64, 0, 3)


@pytest.mark.parametrize("count", [0, 5, 7])
def test_a_wrong_number_of_arguments_is_refused(count: int) -> None:
    kernel = compile_kernel(SCALE, "scale", SIGNATURE)
    with pytest.raises(TypeError, match=r"scale\(\) takes 6 arguments: source, target, factor, shift, begin"):
        kernel(*[1.0] * count)


def test_read_only_arrays_can_be_read() -> None:
    target = np.ones((3, 4))
    compile_kernel(SCALE, "scale", SIGNATURE)(READ_ONLY, target, 2.0, 0, 0, 3)
    assert not target.any()


def test_calls_leak_no_references() -> None:
    kernel = compile_kernel(SCALE, "scale", SIGNATURE)
    arguments = (np.ones((3, 4)), np.zeros((3, 4)), 2.5, 12345, 0, 3)
    gc.collect()
    before = [sys.getrefcount(item) for item in (*arguments[:4], None)]
    for _ in range(1000):
        kernel(*arguments)
        with pytest.raises(TypeError):
            kernel(3)
    gc.collect()
    after = [sys.getrefcount(item) for item in (*arguments[:4], None)]
    assert all(abs(a - b) < 500 for a, b in zip(after, before, strict=True)), (before, after)


def test_other_threads_run_meanwhile() -> None:
    # Which of the two elements are one is not known to the compiler, so it reads and writes in each step.
    source = """
def wait(flags, signal, steps, limit):
    for step in range(1, limit):
        flags[steps] = step
        if flags[signal] != 0:
            break
"""
    kernel = compile_kernel(source, "wait", ["int64[::1]", "int64", "int64", "int64"])
    limit = 500_000_000  # half a second or more
    flags = np.zeros(2, np.int64)
    worker = threading.Thread(target=kernel, args=(flags, 0, 1, limit))
    worker.start()
    while flags[1] == 0:  # not begun
        time.sleep(0)
    flags[0] = 1
    worker.join()
    assert flags[1] < limit - 1


def test_an_exception_in_a_kernel() -> None:
    kernel = compile_kernel("def walk(step):\n    for i in range(0, 10, step):\n        i\n", "walk", ["int64"])
    kernel(1)
    with pytest.raises(RuntimeError, match=r"kernel walk\(\) failed"):
        kernel(0)


def test_errors_of_compilation_show_the_source() -> None:
    source = "def wrong(a):\n    a[0] = a.no_such_attribute  # a remark\n"
    with pytest.raises(Exception, match="no_such_attribute") as caught:
        compile_kernel(source, "wrong", ["float64[::1]"])
    assert "a remark" in str(caught.value)
    filename = re.search(r"<lossforge wrong \w+>", str(caught.value))
    assert filename
    assert linecache.getline(filename[0], 2) == "    a[0] = a.no_such_attribute  # a remark\n"


def test_kernels_do_not_allocate() -> None:
    source = "import numpy as np\ndef allocate(a):\n    a[0] = np.zeros(3)[1]\n"
    with pytest.raises(Exception, match=r"a\[0\] = np\.zeros\(3\)\[1\]"):
        compile_kernel(source, "allocate", ["float64[::1]"])


def test_scalars_are_int64_or_float64() -> None:
    with pytest.raises(TypeError, match="scalar 'x' is float32"):
        compile_kernel("def f(x):\n    pass\n", "f", ["float32"])


def test_nan_and_infinity_survive_the_default_fast_math() -> None:
    head = "import numpy as np\nfrom lossforge.codegen.instructions import absolute\n"
    source = head + "def test(x, a):\n    a[0] = x != x\n    a[1] = absolute(x) == np.inf\n    a[2] = x - x\n"
    kernel = compile_kernel(source, "test", ["float64", "float64[::1]"])
    for value in (1.0, np.nan, np.inf, -np.inf):
        result = np.zeros(3)
        kernel(value, result)
        np.testing.assert_array_equal(result, [np.isnan(value), np.isinf(value), 0 * value])


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 3), np.float32), np.zeros((4, 5, 6)).T[1:], np.zeros(3, ">i4"), np.zeros((), bool)],
    ids=["C", "strided", "swapped", "scalar"],
)
def test_numpys_structs_are_as_the_entry_reads_them(array: np.ndarray) -> None:
    from lossforge.runtime import object_code as oc

    def read(kind: type, address: int) -> int:
        return kind.from_address(address).value or 0

    start = id(array)
    descr = read(ctypes.c_void_p, start + oc.DESCR)
    assert read(ctypes.c_void_p, start + oc.TYPE) == id(np.ndarray)
    assert read(ctypes.c_void_p, start + oc.DATA) == array.__array_interface__["data"][0]
    assert read(ctypes.c_int, start + oc.NDIM) == array.ndim
    for axis in range(array.ndim):
        assert read(ctypes.c_ssize_t, read(ctypes.c_void_p, start + oc.SHAPE) + 8 * axis) == array.shape[axis]
        stride = read(ctypes.c_ssize_t, read(ctypes.c_void_p, start + oc.STRIDES) + 8 * axis)
        assert stride == array.strides[axis]
    assert read(ctypes.c_int, start + oc.FLAGS) == array.flags.num
    assert descr == id(array.dtype)
    assert read(ctypes.c_int, descr + oc.DESCR_TYPE_NUMBER) == array.dtype.num
    assert chr(read(ctypes.c_byte, descr + oc.DESCR_BYTEORDER)) == array.dtype.byteorder


POWERS = """
from lossforge.codegen.instructions import load, store
from lossforge.codegen.vector_math import exp

def powers(a, b, n):
    for i in range(n):
        store(b, i, exp(load(a, i)))
"""
OF_POWERS = ("float32[::1]", "float32[::1]", "int64")


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 640, 4099])
def test_loops_over_several_vectors_at_a_time(length: int, rng: np.random.Generator) -> None:
    array = rng.normal(size=length).astype(np.float32)
    found = []
    for interleave in (0, 2, 4):
        result = np.full(length + 1, -1, np.float32)
        compile_kernel(POWERS, "powers", OF_POWERS, interleave=interleave)(array, result, length)
        found.append(result)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    assert found[0][-1] == -1
    np.testing.assert_allclose(found[0][:-1], np.exp(array), rtol=3e-7)


def test_what_is_said_of_loops_reaches_the_compiler() -> None:
    sizes = [
        len(compile_to_object_code(POWERS, "powers", OF_POWERS, fastmath=FASTMATH, interleave=n, filename="<t>").image)
        for n in (2, 4)
    ]
    assert sizes[0] < sizes[1]
