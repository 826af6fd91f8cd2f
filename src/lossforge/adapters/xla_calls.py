"""Functions of Python that XLA's programs call on the CPU, with the addresses of what they read and write.

XLA calls foreign functions through a C interface whose structures are versioned and laid out in the header
``xla/ffi/api/c_api.h`` (it ships with jaxlib, under ``jaxlib/include``). They are read here with ctypes, so that no
compiler is needed where lossforge runs. A call takes the GIL, and 10 to 20 µs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any

import jax
from llvmlite import ir

from lossforge.runtime.gate import gate

Run = Callable[[str, Sequence[int], Sequence[int]], None]
"""The attribute ``key`` of the call, the addresses of its arguments, and those of its results."""

VERSION = 0, 3
"""Of the interface as it is written down here. XLA supports a version for at least a year after the next."""

_METADATA = 1  # XLA_FFI_Extension_Metadata: asks which version a handler was written for
_EXECUTE = 3  # XLA_FFI_ExecutionStage_EXECUTE
_ABORTED, _INTERNAL = 10, 13  # XLA_FFI_Error_Code_…


class _Buffer(Structure):
    _fields_ = (
        ("struct_size", c_size_t), ("extension", c_void_p), ("dtype", c_int), ("data", c_void_p), ("rank", c_int64),
        ("dims", POINTER(c_int64)),
    )  # fmt: skip


class _Buffers(Structure):
    """XLA_FFI_Args and XLA_FFI_Rets."""

    _fields_ = (
        ("struct_size", c_size_t), ("extension", c_void_p), ("size", c_int64), ("types", c_void_p),
        ("buffers", POINTER(POINTER(_Buffer))),
    )  # fmt: skip


class _ByteSpan(Structure):
    _fields_ = (("start", c_void_p), ("length", c_size_t))


class _Attributes(Structure):
    _fields_ = (
        ("struct_size", c_size_t), ("extension", c_void_p), ("size", c_int64), ("types", c_void_p),
        ("names", c_void_p), ("values", POINTER(POINTER(_ByteSpan))),
    )  # fmt: skip


class _Version(Structure):
    _fields_ = (("struct_size", c_size_t), ("extension", c_void_p), ("major", c_int), ("minor", c_int))


class _ErrorCreation(Structure):
    _fields_ = (("struct_size", c_size_t), ("extension", c_void_p), ("message", c_char_p), ("code", c_int))


_CreateError = ctypes.CFUNCTYPE(c_void_p, POINTER(_ErrorCreation))


class _Api(Structure):
    """The beginning of XLA_FFI_Api."""

    _fields_ = (
        ("struct_size", c_size_t), ("extension", c_void_p), ("version", _Version), ("internal", c_void_p),
        ("create_error", _CreateError),
    )  # fmt: skip


class _Metadata(Structure):
    _fields_ = (("struct_size", c_size_t), ("version", _Version), ("traits", c_uint32))


class _Extension(Structure):
    """XLA_FFI_Extension_Base, and the field that a request for metadata adds."""

    _fields_ = (
        ("struct_size", c_size_t), ("type", c_int), ("next", c_void_p), ("metadata", POINTER(_Metadata)),
    )  # fmt: skip


class _CallFrame(Structure):
    _fields_ = (
        ("struct_size", c_size_t), ("extension", POINTER(_Extension)), ("api", POINTER(_Api)), ("context", c_void_p),
        ("stage", c_int), ("arguments", _Buffers), ("results", _Buffers), ("attributes", _Attributes),
    )  # fmt: skip


_Handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_CallFrame))
_handlers: list[Any] = []  # which XLA keeps pointers to


def register(name: str, run: Run) -> None:
    """Make `run` the target `name` of custom calls on the CPU.

    The calls carry one attribute, the string ``key``. An exception in `run` is an error of the program that called.

    Raises:
        Exception: this version of XLA does not support this version of the interface.
    """

    def handle(pointer: Any) -> int | None:
        frame = pointer.contents
        if frame.extension and frame.extension.contents.type == _METADATA:
            version = frame.extension.contents.metadata.contents.version
            version.major, version.minor = VERSION
            return None
        if frame.stage != _EXECUTE:
            return None
        try:
            span = frame.attributes.values[0].contents
            run(
                ctypes.string_at(span.start, span.length).decode(),
                _addresses(frame.arguments),
                _addresses(frame.results),
            )
        except BaseException as error:  # there is nobody above who could catch it
            return _error(frame.api.contents, f"{type(error).__name__}: {error}")
        return None

    handler = _Handler(handle)
    _handlers.append(handler)
    address = ctypes.cast(handler, c_void_p).value
    assert address is not None
    capsule = jax.ffi.pycapsule(c_void_p(gate(address, _refusal(), "refuse")))  # type: ignore[no-untyped-call]
    jax.ffi.register_ffi_target(name, capsule, platform="cpu")


def _refusal() -> ir.Module:
    """A handler in machine code: the error that a call gets when Python has gone, or is about to."""
    module = ir.Module("xla_calls")
    pointer, i32, i64 = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
    text = bytearray(b"lossforge: a kernel is called while Python exits\0")
    message = ir.GlobalVariable(module, ir.ArrayType(ir.IntType(8), len(text)), "message")
    message.initializer, message.global_constant = ir.Constant(message.value_type, text), True
    creation = ir.GlobalVariable(module, ir.LiteralStructType([i64, pointer, pointer, i32]), "creation")
    creation.initializer = ir.Constant(
        creation.value_type,
        [i64(ctypes.sizeof(_ErrorCreation)), pointer(None), message.bitcast(pointer), i32(_ABORTED)],
    )
    function = ir.Function(module, ir.FunctionType(pointer, [pointer]), "refuse")
    builder = ir.IRBuilder(function.append_basic_block())

    def field(base: ir.Value, offset: int) -> ir.Value:
        at = builder.gep(base, [i64(offset)])
        return builder.load(builder.bitcast(at, pointer.as_pointer()))

    create = field(field(function.args[0], _CallFrame.api.offset), _Api.create_error.offset)
    kind = ir.FunctionType(pointer, [pointer]).as_pointer()
    builder.ret(builder.call(builder.bitcast(create, kind), [builder.bitcast(creation, pointer)]))
    return module


def _addresses(buffers: Any) -> list[int]:
    found = buffers.buffers
    return [found[i].contents.data or 0 for i in range(buffers.size)]


def _error(api: Any, message: str) -> int:
    """An error of XLA's, which the caller destroys."""
    creation = _ErrorCreation(ctypes.sizeof(_ErrorCreation), None, message.encode(), _INTERNAL)
    created: int = api.create_error(ctypes.byref(creation))
    return created
