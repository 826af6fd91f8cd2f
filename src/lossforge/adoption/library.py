"""Which library a function was written for."""

from __future__ import annotations

import dis
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Sequence
from typing import Any

from lossforge.adapters.base import _root
from lossforge.errors import AdoptionError
from lossforge.frontends.recording import FrontEnd
from lossforge.loss import Loss


def front_end(library: str, fn: Any, device: str | None = None) -> FrontEnd:
    """How functions of a library are recorded, for one of them that may hold arrays on a device."""
    make = importlib.import_module(f"lossforge.frontends.{library}").front_end
    made: FrontEnd = make(fn) if device is None else make(fn, device)
    return made


def device_of(library: str, examples: Sequence[Any]) -> str | None:
    """The device that PyTorch's examples are on, if it is not the CPU: there the function runs."""
    devices = [str(getattr(x, "device", "cpu")) for x in examples if library == "torch"]
    return next((d for d in devices if d != "cpu"), None)


def library_of(fn: Any, examples: Sequence[Any]) -> str:
    """The library that a function was written for.

    Raises:
        AdoptionError: it is not a function, or of no one library.
    """
    if isinstance(fn, Loss):
        raise AdoptionError(f"{fn.name} is a lossforge loss already")
    if not callable(fn):
        raise AdoptionError(f"a {type(fn).__name__} is not a loss; expected a function or a module")
    if inspect.isclass(fn):
        raise AdoptionError(f"{fn.__name__} is a class; give an instance, as in lf.adopt({fn.__name__}(), …)")
    if not examples:
        raise AdoptionError("lf.adopt needs one example array for each array argument, as in lf.adopt(fn, pred, true)")
    bases = [b.__module__.partition(".")[0] for b in type(fn).__mro__]
    if "torch" in bases:
        return "torch"
    if {"keras", "tf_keras", "tensorflow"} & {*bases}:
        return "tensorflow"
    kinds: list[Any] = [type(x) for x in examples]
    found = {_root(k) for k in kinds} - {None, "numpy"}
    if len(found) == 1:
        return str(found.pop())
    if len(found) > 1:
        raise AdoptionError(f"the examples are arrays of several libraries: {', '.join(sorted(map(str, found)))}")
    used = _libraries_of(fn)
    return used[0] if used else "numpy"


def _libraries_of(fn: Any) -> list[str]:
    """The libraries that a function's text names, or that of functions which it calls, in their order."""
    found: list[str] = []
    waiting, seen = [fn], set()
    while waiting:
        value = waiting.pop(0)
        while isinstance(value, functools.partial):
            value = value.func
        roots = _roots_of(value)
        found += roots
        if not {*roots} & {*_LIBRARIES, *_NEUTRAL}:
            function, owner = python_function(value)
            if function is not None and function.__code__ not in seen:
                seen.add(function.__code__)
                used, imported = used_by(function, owner)
                found += imported
                waiting += used
    return [r for r in dict.fromkeys(found) if r in _LIBRARIES]


_LIBRARIES = ("torch", "tensorflow", "jax")


_NEUTRAL = ("numpy", "scipy", "sklearn", "pandas", *sys.stdlib_module_names)
"""Whose functions work on arrays of NumPy, whatever else they know of."""


_ALIASES = {
    "keras": "tensorflow", "tf_keras": "tensorflow", "optax": "jax", "jaxlib": "jax", "monai": "torch", "kornia": "torch",
    "torchvision": "torch",
}  # fmt: skip


def _package(module: object) -> str:
    name = str(module).partition(".")[0]
    return _ALIASES.get(name, name)


def _roots_of(value: Any) -> list[str]:
    """The packages of a value and of its type."""
    if inspect.ismodule(value):
        return [_package(value.__name__)]
    kinds = [] if inspect.isroutine(value) or inspect.isclass(value) else [type(value)]
    return [_package(getattr(v, "__module__", None)) for v in (value, *kinds)]


def python_function(value: Any) -> tuple[types.FunctionType | None, Any]:
    """The function behind a wrapped one, a method, or an object that is called; and the object that it belongs to."""
    value = inspect.unwrap(value) if callable(value) else value
    owner = getattr(value, "__self__", None if inspect.isroutine(value) else value)
    function = value if inspect.isroutine(value) else getattr(type(value), "__call__", value)  # noqa: B004
    function = getattr(function, "__func__", function)
    return (function, owner) if inspect.isfunction(function) else (None, owner)


def used_by(function: types.FunctionType, owner: Any) -> tuple[list[Any], list[str]]:
    """What a function's text names (also of modules and of the object that it belongs to); packages that it imports."""
    names, imported = _names(function.__code__)
    used = [function.__globals__[n] for n in names if n in function.__globals__]
    used += [sys.modules[n] for n in imported if n in sys.modules]
    used += [c.cell_contents for c in function.__closure__ or () if _is_filled(c)]
    homes = [m for m in used if inspect.ismodule(m) and not {*_roots_of(m)} & {*_LIBRARIES, *_NEUTRAL}]
    named = [getattr(home, n) for home in (*homes, type(owner)) for n in names if n in vars(home)]
    return [*used, *filter(callable, named)], [_package(n) for n in imported]


def _names(code: types.CodeType) -> tuple[list[str], list[str]]:
    """The names in a function's text, functions within it included; and the modules that it imports."""
    names = list(code.co_names)
    imported = [i.argval for i in dis.get_instructions(code) if i.opname == "IMPORT_NAME"]
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more = _names(inner)
            names, imported = names + more[0], imported + more[1]
    return names, imported


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
