"""Numbers at which a function may take another way, as its text tells."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

from lossforge.adoption.library import python_function, used_by

_MOST = 8


def thresholds(fn: Any) -> list[float]:
    """The numbers that a function compares something with, or functions of its package which it calls."""
    found: dict[float, None] = {}
    waiting, seen = [fn], set[types.CodeType]()
    home = _package(fn)
    while waiting:
        value = waiting.pop(0)
        while isinstance(value, functools.partial):
            value = value.func
        for function, owner in _functions(value):
            if function.__code__ not in seen:
                seen.add(function.__code__)
                found |= dict.fromkeys(_compared_with(function.__code__))
                waiting += [v for v in used_by(function, owner)[0] if inspect.isroutine(v) and _package(v) == home]
    return list(found)[:_MOST]


def _package(value: Any) -> str:
    while isinstance(value, functools.partial):
        value = value.func
    module = getattr(value, "__module__", None) or type(value).__module__
    return str(module).partition(".")[0]


def _functions(value: Any) -> Iterator[tuple[types.FunctionType, Any]]:
    """The functions that run where a value is called: a module's are `forward` or `call`, behind what its library does."""
    function, owner = python_function(value)
    if function is not None:
        yield function, owner
    for name in ("forward", "call"):
        method = getattr(type(value), name, None)
        if inspect.isfunction(method):
            yield method, value


def _compared_with(code: types.CodeType) -> Iterator[float]:
    steps = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "EXTENDED_ARG")]
    for k, step in enumerate(steps):
        if step.opname == "COMPARE_OP":
            yield from (
                float(i.argval)
                for i in steps[max(k - 2, 0) : k]
                if i.opname == "LOAD_CONST" and isinstance(i.argval, int | float) and not isinstance(i.argval, bool)
            )
        elif step.opname.startswith("POP_JUMP") and k and steps[k - 1].opname.startswith(("LOAD", "TO_BOOL")):
            yield 0.0  # a number as a truth value
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _compared_with(inner)
