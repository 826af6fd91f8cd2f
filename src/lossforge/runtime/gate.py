"""A door between foreign threads and Python, which shuts before the interpreter exits.

A thread that is not Python's own dies where it takes the GIL of an interpreter that is exiting, and whoever waits for
it hangs. The door is machine code that needs no GIL: it counts who is inside, and turns away who comes too late.
"""

from __future__ import annotations

import atexit
import ctypes
import time
from typing import Any

from llvmlite import ir

from lossforge.runtime.link import link_module

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_POINTER = _I8.as_pointer()
_FUNCTION = ir.FunctionType(_POINTER, [_POINTER])


def gate(inside: int, turned_away: ir.Module, refuse: str) -> int:
    """The address of a C function ``void *(void *)`` that calls the one at the address `inside` while the door is open.

    Args:
        inside: a function that takes the GIL.
        turned_away: a module of LLVM with a function of the same type that does not.
        refuse: that function's name, which answers when the door is shut.
    """
    module = turned_away
    count = _variable(module, "count", _I64)
    shut = _variable(module, "shut", _I32)
    function = ir.Function(module, _FUNCTION, "gate")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.atomic_rmw("add", count, _I64(1), "seq_cst")
    is_shut = builder.icmp_signed("!=", builder.load_atomic(shut, "seq_cst", 4), _I32(0))
    with builder.if_else(is_shut, likely=False) as (late, in_time):
        with late:
            refusal = builder.call(module.get_global(refuse), function.args)
            late_block = builder.block
        with in_time:
            target = builder.inttoptr(_I64(inside), _FUNCTION.as_pointer())
            result = builder.call(target, function.args)
            in_time_block = builder.block
    answer = builder.phi(_POINTER)
    answer.add_incoming(refusal, late_block)
    answer.add_incoming(result, in_time_block)
    builder.atomic_rmw("sub", count, _I64(1), "seq_cst")
    builder.ret(answer)
    addresses = link_module(str(module), ("gate", "count", "shut"))
    counter = ctypes.c_int64.from_address(addresses["count"])
    door = ctypes.c_int32.from_address(addresses["shut"])

    def leave() -> None:
        door.value = 1
        while True:
            time.sleep(0.001)  # without the GIL, which those who are inside need
            if not counter.value:
                return

    atexit.register(leave)
    return addresses["gate"]


def _variable(module: ir.Module, name: str, kind: Any) -> ir.GlobalVariable:
    variable = ir.GlobalVariable(module, kind, name)
    variable.initializer = kind(0)
    return variable
