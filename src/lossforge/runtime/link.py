"""Object code to a built-in function: linked into the process by LLVM, wrapped by CPython.

Needs llvmlite, which is imported with the first kernel, and not Numba. Linking takes about a millisecond.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import llvmlite.binding as llvm

ENTRY = "lossforge_entry"
OBJECTS = (np.ndarray, int, None, TypeError, RuntimeError)  # what an entry needs of the interpreter; its `self`
_METH_FASTCALL = 0x0080


@dataclass(frozen=True)
class ObjectCode:
    """A compiled kernel: its name and the object file."""

    name: str
    image: bytes


class _MethodDef(ctypes.Structure):
    """PyMethodDef of CPython's C interface."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_library_numbers = itertools.count()
_method_definitions: list[_MethodDef] = []  # which the built-in functions point into


def link(code: ObjectCode) -> Callable[..., None]:
    """The kernel as a built-in function. Raises `RuntimeError` if it needs a symbol that nobody has.

    The code stays mapped until the process ends: a thread may be inside it at any time.
    """
    import llvmlite.binding as llvm

    builder = llvm.JITLibraryBuilder().add_object_img(code.image).add_current_process().export_symbol(ENTRY)
    tracker = builder.link(_jit(), f"kernel{next(_library_numbers)}")
    address = tracker[ENTRY]
    tracker.detach()
    definition = _MethodDef(code.name.encode(), address, _METH_FASTCALL, None)
    _method_definitions.append(definition)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.POINTER(_MethodDef), ctypes.py_object, ctypes.py_object]
    kernel: Callable[..., None] = make(ctypes.byref(definition), OBJECTS, None)
    return kernel


def link_module(text: str, symbols: Sequence[str]) -> dict[str, int]:
    """The addresses of some symbols of a module in LLVM's language, which stays mapped until the process ends."""
    import llvmlite.binding as llvm

    builder = llvm.JITLibraryBuilder().add_ir(text).add_current_process()
    for name in symbols:
        builder.export_symbol(name)
    tracker = builder.link(_jit(), f"module{next(_library_numbers)}")
    addresses = {name: tracker[name] for name in symbols}
    tracker.detach()
    return addresses


@cache
def _jit() -> llvm.LLJIT:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    # JITLink places sections within reach of each other, which relocations on ARM need. On x86-64 the code
    # model is "large" and needs no such care, and the older linker also knows Windows' object files.
    use_jit_link = platform.machine() not in ("x86_64", "AMD64")
    return llvm.create_lljit_compiler(machine, use_jit_link=use_jit_link, suppress_errors=True)
