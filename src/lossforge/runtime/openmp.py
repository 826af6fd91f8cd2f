"""The threads of an OpenMP library that this process has already, PyTorch's, for kernels.

OpenMP's threads spin for a while after each operation of PyTorch, in wait for the next, on the cores that threads of our
own would want: a cross-entropy of 4096 x 1000 took 6.3 ms right after an operation of PyTorch's, 2.6 ms otherwise, and 3.7
ms in one thread. By the threads that are spinning anyway it takes 3.6 ms, and they are at hand for PyTorch afterwards.

A team enters through a few lines of machine code that take the GIL for as many threads as are wanted and no more. After
a fork there is no team: GNU's OpenMP waits for ever in a child for threads that only its parent has.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_forked = False


class _Ticket(ctypes.Structure):
    """What each thread of a team gets to see."""

    _fields_ = (("wanted", ctypes.c_int64), ("work", _WORK))


class Team:
    """The team of threads that the library keeps for whoever calls it."""

    def __init__(self, library: Any) -> None:
        self._parallel = library.GOMP_parallel
        self._parallel.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Ticket), ctypes.c_uint, ctypes.c_uint]
        self._parallel.restype = None
        self._size = library.omp_get_max_threads
        self._size.restype = ctypes.c_int
        self._member = _member()

    @property
    def size(self) -> int:
        """How many threads it has, the calling one included."""
        return 1 if _forked else int(self._size())

    def run(self, work: Callable[[], None], wanted: int) -> None:
        """Call `work`, which must not raise, in up to `wanted` threads of the team, and return when all are done.

        Every thread of the team comes, lest the library lets some go; those beyond `wanted` leave at once.
        """
        ticket = _Ticket(wanted, _WORK(lambda _: work()))
        self._parallel(self._member, ctypes.byref(ticket), 0, 0)


@cache
def team_of(package: str) -> Team | None:
    """The team of the OpenMP library of a package, named by its folder; None if there is none with GNU's interface.

    Packages bring libraries of their own (PyTorch, scikit-learn), each with threads of its own. One that lies elsewhere
    is shared by all, as the system's is.
    """
    from threadpoolctl import ThreadpoolController

    files = [c.filepath for c in ThreadpoolController().select(user_api="openmp").lib_controllers]
    for file in sorted(files, key=lambda file: not file.startswith(package + os.sep)):
        library = ctypes.CDLL(file)  # is loaded: this is another handle
        if hasattr(library, "GOMP_parallel"):
            return Team(library)
    return None


def _member() -> int:
    """The address of what each thread of a team runs: a C function ``void (_Ticket *)``."""
    from llvmlite import ir

    from lossforge.runtime.link import link_module

    i8, i32, i64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
    pointer = i8.as_pointer()
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer]), "member")
    builder = ir.IRBuilder(function.append_basic_block())
    (ticket,) = function.args
    still_wanted = builder.atomic_rmw("sub", builder.bitcast(ticket, i64.as_pointer()), i64(1), "seq_cst")
    with builder.if_then(builder.icmp_signed(">", still_wanted, i64(0))):
        work_type = ir.FunctionType(ir.VoidType(), [pointer])
        slot = builder.gep(ticket, [i32(_Ticket.work.offset)])
        work = builder.load(builder.bitcast(slot, work_type.as_pointer().as_pointer()))
        builder.call(work, [ticket])
    builder.ret_void()
    return link_module(str(module), ["member"])["member"]


def _leave() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)


__all__ = ["Team", "team_of"]
