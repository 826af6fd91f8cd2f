"""Kernel source text to relocatable object code, by Numba.

The object code holds one symbol, `ENTRY`: a C function with CPython's METH_FASTCALL convention that checks
and unpacks its arguments, releases the GIL and runs the kernel. Once linked (see `link`) it is a built-in
function of the interpreter, so that a kernel from the disk cache needs neither Numba nor a dispatcher. The
alternatives that were measured are in the docstring of `cache`.

This module imports Numba, and is itself imported only when a kernel has to be compiled.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba.core import compiler, types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.sigutils import normalize_signature
from numba.np.arrayobj import populate_array
from numba.np.numpy_support import as_dtype

from lossforge.runtime.link import ENTRY, OBJECTS, ObjectCode
from lossforge.runtime.numba_target import KernelCompiler, interleaving, kernel_target, within_target

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_DOUBLE = ir.DoubleType()
_POINTER = _I8.as_pointer()

# The public structs of NumPy's C interface, PyArrayObject_fields and PyArray_Descr, as byte offsets. Both
# begin with a PyObject header, and their order has been the same since NumPy 1.7.
# `tests/test_runtime_cache.py` compares every field that is read here with what NumPy itself says.
HEADER = object.__basicsize__
TYPE = HEADER - 8
DATA, NDIM, SHAPE, STRIDES, DESCR, FLAGS = (HEADER + offset for offset in (0, 8, 16, 24, 40, 48))
DESCR_BYTEORDER, DESCR_TYPE_NUMBER = HEADER + 10, HEADER + 12

_SWAPPED = ord(">" if sys.byteorder == "little" else "<")
_C_CONTIGUOUS, _ALIGNED = 0x0001, 0x0100  # NPY_ARRAY_* of numpy/ndarraytypes.h


def compile_to_object_code(
    source: str, entry: str, signature: Sequence[str], *, fastmath: Iterable[str], interleave: int, filename: str
) -> ObjectCode:
    """Compile the function `entry` of the module text `source`.

    `interleave` is how many vectors an innermost loop works on at a time, 0 as the compiler thinks best.
    `filename` is the name under which tracebacks and Numba's error messages show the text.
    """
    function = _load_source(source, entry, filename)
    arguments, _ = normalize_signature(f"void({', '.join(signature)})")
    flags = compiler.Flags()
    kernel_target.options.parse_as_flags(
        flags,
        {
            "nopython": True,
            "boundscheck": False,
            "error_model": "numpy",
            "fastmath": set(fastmath),
            # Kernels do not allocate (scratch is an argument), so that their code needs no reference counting
            # and none of Numba's run-time library.
            "_nrt": False,
            "no_cpython_wrapper": True,
            "no_cfunc_wrapper": True,
        },
    )
    flags.no_compile = True  # the entry is added to the module before it is optimised
    flags.noalias = True
    with global_compiler_lock, within_target(), interleaving(interleave):
        result = compiler.compile_extra(
            kernel_target.typing_context, kernel_target.target_context, function, arguments, types.none, flags, {},
            pipeline_class=KernelCompiler,
        )  # fmt: skip
        names = function.__code__.co_varnames[: len(arguments)]
        _EntryBuilder(result, entry, names, arguments).build()
        # Only the entry is called from outside: the kernel itself is inlined there or stays local.
        result.library.get_function(result.fndesc.llvm_func_name).linkage = "internal"
        result.library.finalize()
        return ObjectCode(entry, result.library.serialize_using_object_code()[2][0])


def _load_source(source: str, entry: str, filename: str) -> Callable[..., None]:
    # A modification time of None makes linecache keep the text although there is no such file.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, object] = {"__name__": "lossforge_kernel", "__file__": filename}
    exec(compile(source, filename, "exec"), namespace)
    function = namespace[entry]
    assert callable(function)
    return function


@dataclass
class _EntryBuilder:
    """Writes `PyObject *ENTRY(PyObject *self, PyObject *const *args, Py_ssize_t nargs)`.

    `self` is `link.OBJECTS`.
    """

    result: compiler.CompileResult
    name: str
    argument_names: Sequence[str]
    arguments: Sequence[types.Type]

    def build(self) -> None:
        self.module = self.result.library.create_ir_module("lossforge_entry")
        entry = self._declare(ENTRY, _POINTER, _POINTER, _POINTER.as_pointer(), _I64)
        self.builder = ir.IRBuilder(entry.append_basic_block())
        self.objects, packed, count = entry.args
        self._require(
            self.builder.icmp_signed("==", count, _I64(len(self.arguments))),
            f"kernel {self.name}() takes {len(self.arguments)} arguments: {', '.join(self.argument_names)}",
        )
        values = []
        for position, (name, kind) in enumerate(zip(self.argument_names, self.arguments, strict=True)):
            item = self.builder.load(self.builder.gep(packed, [_I64(position)]))
            unpack: Callable[..., ir.Value] = (
                self._unpack_array if isinstance(kind, types.Array) else self._unpack_scalar
            )
            values.append(unpack(item, name, kind))
        self._require(self._run_without_gil(values), f"kernel {self.name}() failed", RuntimeError)
        none = self._object(None)
        self._call("Py_IncRef", ir.VoidType(), none)
        self.builder.ret(none)
        self.result.library.add_ir_module(self.module)

    def _run_without_gil(self, values: Sequence[ir.Value]) -> ir.Value:
        """Run the kernel; the answer is true if it raised nothing."""
        context = self.result.target_context
        kernel = context.declare_function(self.module, self.result.fndesc)
        thread = self._call("PyEval_SaveThread", _POINTER)
        status, _ = context.call_conv.call_function(self.builder, kernel, types.none, self.arguments, values)
        self._call("PyEval_RestoreThread", ir.VoidType(), thread)
        return status.is_ok

    def _unpack_scalar(self, item: ir.Value, name: str, kind: types.Type) -> ir.Value:
        if kind == types.float64:
            value = self._call("PyFloat_AsDouble", _DOUBLE, item)
        elif kind == types.int64:
            value = self._call("PyLong_AsLongLong", _I64, item)
        else:
            raise TypeError(f"scalar {name!r} is {kind}: a kernel takes scalars as int64 or float64")
        self._return_if_raised()
        return value

    def _return_if_raised(self) -> None:
        error = self._call("PyErr_Occurred", _POINTER)
        with self.builder.if_then(self.builder.icmp_unsigned("!=", error, _POINTER(None)), likely=False):
            self.builder.ret(_POINTER(None))

    def _unpack_array(self, item: ir.Value, name: str, kind: types.Array) -> ir.Value:
        """The array as the kernel takes it. A flat one may come as the address of its first entry."""
        if kind.ndim != 1:
            return self._array_of(kind, *self._read_array(item, name, kind))
        is_address = self.builder.icmp_unsigned("==", self._field(item, TYPE, _POINTER), self._object(int))
        with self.builder.if_else(is_address) as (given, otherwise):
            with given:
                number = self._call("PyLong_AsVoidPtr", _POINTER, item)
                self._return_if_raised()
                length, step = _I64(0), _I64(np.dtype(as_dtype(kind.dtype)).itemsize)
                from_address = self.builder.block
            with otherwise:
                data, (size,), (stride,) = self._read_array(item, name, kind)
                from_array = self.builder.block
        merged = []
        for by_address, by_array in ((number, data), (length, size), (step, stride)):
            phi = self.builder.phi(by_array.type)
            phi.add_incoming(by_address, from_address)
            phi.add_incoming(by_array, from_array)
            merged.append(phi)
        return self._array_of(kind, merged[0], merged[1:2], merged[2:])

    def _read_array(
        self, item: ir.Value, name: str, kind: types.Array
    ) -> tuple[ir.Value, list[ir.Value], list[ir.Value]]:
        """Check a NumPy array and read its data, shape and strides. Failure of what is checked would corrupt memory."""
        builder = self.builder
        order = "C-contiguous, " if kind.layout == "C" else ""
        message = (
            f"kernel {self.name}(): argument {name} must be a NumPy array with {kind.ndim} axes, "
            f"dtype {kind.dtype}, {order}aligned and in native byte order"
        )
        ndarray = self._object(np.ndarray)
        is_array = self._call("PyType_IsSubtype", _I32, self._field(item, TYPE, _POINTER), ndarray)
        self._require(builder.icmp_signed("!=", is_array, _I32(0)), message)
        descr = self._field(item, DESCR, _POINTER)
        number = self._field(descr, DESCR_TYPE_NUMBER, _I32)
        numbers = _type_numbers(as_dtype(kind.dtype))
        needed = _I32(_ALIGNED | (_C_CONTIGUOUS if kind.layout == "C" else 0))
        flags = builder.and_(self._field(item, FLAGS, _I32), needed)
        checks = [
            builder.icmp_signed("==", self._field(item, NDIM, _I32), _I32(kind.ndim)),
            _reduce(builder.or_, [builder.icmp_signed("==", number, _I32(n)) for n in numbers]),
            builder.icmp_signed("==", flags, needed),
            builder.icmp_signed("!=", self._field(descr, DESCR_BYTEORDER, _I8), _I8(_SWAPPED)),
        ]
        self._require(_reduce(builder.and_, checks), message)

        shape, strides = (
            [builder.load(builder.gep(first, [_I64(axis)])) for axis in range(kind.ndim)]
            for first in (self._field(item, offset, _I64.as_pointer()) for offset in (SHAPE, STRIDES))
        )
        return self._field(item, DATA, _POINTER), shape, strides

    def _array_of(
        self, kind: types.Array, data: ir.Value, shape: Sequence[ir.Value], strides: Sequence[ir.Value]
    ) -> ir.Value:
        context = self.result.target_context
        array = context.make_array(kind)(context, self.builder)
        populate_array(
            array,
            data=self.builder.bitcast(data, array.data.type),
            shape=list(shape),
            strides=list(strides),
            itemsize=context.get_abi_sizeof(context.get_data_type(kind.dtype)),
            meminfo=None,
        )
        return array._getvalue()

    def _require(self, condition: ir.Value, message: str, error: type = TypeError) -> None:
        """Return NULL with a Python exception unless `condition` holds."""
        with self.builder.if_then(self.builder.not_(condition), likely=False):
            characters = bytearray(message.encode() + b"\0")
            text = ir.Constant(ir.ArrayType(_I8, len(characters)), characters)
            constant = ir.GlobalVariable(self.module, text.type, self.module.get_unique_name("message"))
            constant.initializer, constant.linkage, constant.global_constant = text, "internal", True
            pointer = self.builder.bitcast(constant, _POINTER)
            self._call("PyErr_SetString", ir.VoidType(), self._object(error), pointer)
            self.builder.ret(_POINTER(None))

    def _field(self, base: ir.Value, offset: int, kind: ir.Type) -> ir.Value:
        address = self.builder.gep(base, [_I64(offset)])
        return self.builder.load(self.builder.bitcast(address, kind.as_pointer()))

    def _call(self, name: str, returns: ir.Type, *arguments: ir.Value) -> ir.Value:
        return self.builder.call(self._declare(name, returns, *(a.type for a in arguments)), arguments)

    def _declare(self, name: str, returns: ir.Type, *arguments: ir.Type) -> ir.Function:
        known = self.module.globals.get(name)
        return known or ir.Function(self.module, ir.FunctionType(returns, arguments), name)

    def _object(self, item: object) -> ir.Value:
        return self._call("PyTuple_GetItem", _POINTER, self.objects, _I64(OBJECTS.index(item)))


def _reduce(combine: Callable[[ir.Value, ir.Value], ir.Value], values: Sequence[ir.Value]) -> ir.Value:
    total = values[0]
    for value in values[1:]:
        total = combine(total, value)
    return total


def _type_numbers(dtype: np.dtype) -> list[int]:
    """NumPy's numbers for `dtype`: `long` and `long long` are two types even where both have 64 bits."""
    return [np.dtype(code).num for code in np.typecodes["All"] if np.dtype(code) == dtype] or [dtype.num]
