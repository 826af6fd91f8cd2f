"""Numbers at which a function may take another way, as its text tells."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Collection, Iterator
from typing import Any

from lossforge.adoption.library import python_function, used_by

_MOST = 8
_NO_NUMBER = frozenset({"CALL", "LOAD_ATTR", "LOAD_METHOD", "BINARY_SUBSCR"})
"""Operations of the bytecode whose result is no parameter, if it is not called like one: what is asked of an array."""


def thresholds(fn: Any, names: Collection[str]) -> dict[str, list[float]]:
    """The numbers that a function, or one of its package which it calls, compares something with that may be of these names.

    What is neither a variable nor an attribute of one of these names is not: the length of an array, say.
    """
    found: dict[str, dict[float, None]] = {name: {} for name in names}
    for code in _codes(fn):
        for compared, number, _ in _comparisons(code):
            named = str(compared.argval) in found
            for name in (str(compared.argval),) if named else () if compared.opname in _NO_NUMBER else names:
                found[name][number] = None
    return {name: list(numbers)[:_MOST] for name, numbers in found.items()}


def turning_sizes(fn: Any) -> list[int]:
    """Sizes on either side of the whole numbers that a function, or one of its package, compares something with."""
    found: dict[int, None] = {}
    for code in _codes(fn):
        for _, number, sign in _comparisons(code):
            if number.is_integer() and number > 1:
                n = int(number)
                found |= dict.fromkeys(
                    (n,) if sign in ("==", "!=") else (n, n + 1) if sign in (">", "<=") else (n, n - 1)
                )
    return [n for n in found if n > 1][:_MOST]


def fractions(fn: Any) -> list[float]:
    """The numbers between 0 and 1 that a function holds, or one of its package which it calls."""
    consts = (c for code in _codes(fn) for c in code.co_consts)
    return list(dict.fromkeys(c for c in consts if isinstance(c, float) and 0 < c < 1))


def _codes(fn: Any) -> Iterator[types.CodeType]:
    """The code of a function, and of those of its package which it calls."""
    waiting, seen = [fn], set[types.CodeType]()
    home = _package(fn)
    while waiting:
        value = waiting.pop(0)
        while isinstance(value, functools.partial):
            value = value.func
        for function, owner in _functions(value):
            if function.__code__ not in seen:
                seen.add(function.__code__)
                yield from _with_inner(function.__code__)
                waiting += [v for v in used_by(function, owner)[0] if inspect.isroutine(v) and _package(v) == home]


def _with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _with_inner(inner)


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


def _comparisons(code: types.CodeType) -> Iterator[tuple[dis.Instruction, float, str]]:
    """What a function compares with numbers, and how, or takes for truth values, by the operation that gives it."""
    steps = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "EXTENDED_ARG", "TO_BOOL")]
    for k, step in enumerate(steps):
        if step.opname == "COMPARE_OP" and k > 1:
            for number, other in (steps[k - 2 : k], steps[k - 2 : k][::-1]):
                if number.opname == "LOAD_CONST" and type(number.argval) in (int, float):
                    yield other, float(number.argval), step.argrepr.removeprefix("bool(").removesuffix(")")
        elif step.opname.startswith("POP_JUMP") and k and steps[k - 1].opname.startswith("LOAD"):
            yield steps[k - 1], 0.0, "!="  # a number as a truth value
