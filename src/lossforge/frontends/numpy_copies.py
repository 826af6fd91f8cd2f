"""Copies of the user's functions, classes and objects, whose names stand for the stand-ins of `numpy_standins`.

What a copy looks up, be it a name, an attribute or an entry of a container, is copied when it is looked up, in whatever
module it was defined. So helpers, methods and objects of a library see the stand-ins as the loss itself does, and nothing
outside of the copies changes.
"""

from __future__ import annotations

import abc
import builtins
import enum
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from lossforge.frontends.numpy_branches import HELPERS, branched
from lossforge.frontends.numpy_recorder import Tape, activate
from lossforge.frontends.numpy_standins import PYTHON, constant, stand_in


@contextmanager
def recording(tape: Tape, function: Callable[..., Any], everywhere: bool) -> Iterator[Callable[..., Any]]:
    """The function as it should be called to be recorded; its branches are choices within loops, or everywhere."""
    activate(tape)
    try:
        yield _Copies(everywhere).of(function)
    finally:
        activate(None)


_LEFT = frozenset(
    {"numpy", "scipy", "math", "lossforge", "pandas", "torch", "tensorflow", "keras", "jax", "jaxlib", "matplotlib"}
    | sys.stdlib_module_names - {"__main__"}
)
"""Packages whose functions run as they are, unless they have a stand-in."""
_MOST = 64
"""Containers of more entries are left as they are."""
_NEVER: tuple[type, ...] = (enum.Enum, BaseException, tuple, np.ndarray, np.generic)
"""Classes whose instances are compared by identity, caught, or laid out in their own way."""
_OF_A_CLASS = {"__dict__", "__weakref__", "__slots__", "__abstractmethods__", "_abc_impl", "__init_subclass__"}
"""Entries that Python makes for each class, or that act when one is made."""
_PLAIN = (types.NoneType, bool, int, float, complex, str, bytes)


def _is_copied(module: Any) -> bool:
    return str(module or "").partition(".")[0] not in _LEFT


class _Names(dict[str, Any]):
    """The names of a module, as its copies see them."""

    def __init__(self, copies: _Copies, home: dict[str, Any]) -> None:
        super().__init__(__builtins__={**vars(builtins), **PYTHON, **HELPERS, "__import__": copies.imported})
        self.copies, self.home = copies, home

    def __missing__(self, name: str) -> Any:
        self[name] = value = self.copies.seen(self.home[name], name)
        return value


class _Module:
    """A module of the user's, as its copies see it."""

    def __init__(self, copies: _Copies, module: types.ModuleType) -> None:
        self.__dict__.update(copies=copies, module=module)

    def __getattr__(self, name: str) -> Any:
        return self.copies.seen(getattr(self.module, name), name)


class _CopiedClass(type):
    """A copied class, which takes instances of the original for its own."""

    original: type

    def __instancecheck__(cls, value: Any) -> bool:
        return type.__instancecheck__(cls, value) or isinstance(value, cls.original)

    def __subclasscheck__(cls, other: type) -> bool:
        return type.__subclasscheck__(cls, other) or issubclass(other, cls.original)


class _CopiedAbstractClass(_CopiedClass, abc.ABCMeta):
    """The same of an abstract one."""


@classmethod  # type: ignore[misc]
def _pass(cls: type, **options: Any) -> None:
    """In place of what a class does with each that derives from it: its copies are none to anyone who counts them."""


class _Copies:
    """The copies that were made for one recording."""

    def __init__(self, everywhere: bool) -> None:
        self.everywhere = everywhere
        self.made: dict[int, tuple[Any, Any]] = {}
        """By the identity of the original, which is kept alive: the original, and its copy."""
        self.names: dict[int, _Names] = {}

    def of(self, function: Any) -> Any:
        """The copy of what the user handed over: a function, a partial function, a method, or an object that is called."""
        return self._function(function) if inspect.isfunction(function) else self.seen(function)

    def seen(self, value: Any, name: str = "") -> Any:
        """What a copy sees in place of a value that it found under a name."""
        kind = type(value)
        if kind in _PLAIN or isinstance(kind, _CopiedClass) or isinstance(value, _CopiedClass | _Module):
            return value
        if id(value) in self.made:
            return self.made[id(value)][1]
        if kind is np.ndarray:
            return constant(value)
        if kind in (dict, list, tuple):
            return self._container(value)
        if inspect.ismethod(value):
            return types.MethodType(self.seen(value.__func__), self.seen(value.__self__))
        if kind is functools.partial:
            return functools.partial(self.seen(value.func), *map(self.seen, value.args), **self.seen(value.keywords))
        module = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
        known = str(getattr(value, "__name__", name))
        found = stand_in(value, "numpy" if vars(np).get(known) is value else str(module or ""), known)
        if found is not None:
            return found
        if inspect.isfunction(value):
            return self._function(value) if _is_copied(value.__globals__.get("__name__")) else value
        if inspect.ismodule(value):
            return _Module(self, value) if _is_copied(module) else value
        if inspect.isclass(value):
            return self._class(value)
        return self._instance(value)

    def imported(self, name: str, *rest: Any, **options: Any) -> Any:
        """Of a module, in the midst of a function."""
        return self.seen(builtins.__import__(name, *rest, **options), name)

    def _function(self, function: types.FunctionType) -> Any:
        home = function.__globals__
        if id(function) in self.made or isinstance(home, _Names):
            return self.made.get(id(function), (function, function))[1]
        names = self.names.setdefault(id(home), _Names(self, home))
        code = branched(function.__code__, self.everywhere)
        outside = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        cells = tuple(types.CellType() for _ in code.co_freevars)
        made = types.FunctionType(code, names, function.__name__, None, cells or None)
        self.made[id(function)] = function, made
        made.__dict__.update(function.__dict__)
        made.__defaults__ = self.seen(function.__defaults__)
        made.__kwdefaults__ = self.seen(function.__kwdefaults__)
        for name in _names_of_classes(function.__code__):
            if name in home and name not in names:
                names[name] = self.seen(home[name], name)
        for cell, name in zip(cells, code.co_freevars, strict=True):
            try:
                cell.cell_contents = self.seen(outside[name].cell_contents)
            except ValueError:  # not filled yet
                continue
        return made

    def _container(self, value: Any) -> Any:
        if len(value) > _MOST:
            return value
        if type(value) is dict:
            entries = {k: self.seen(v) for k, v in value.items()}
            return value if all(entries[k] is v for k, v in value.items()) else entries
        given = [self.seen(v) for v in value]
        return value if all(map(lambda a, b: a is b, given, value)) else type(value)(given)

    def _class(self, value: type) -> type:
        kind = _CopiedClass if type(value) is type else _CopiedAbstractClass
        if not issubclass(type(value), type if kind is _CopiedClass else abc.ABCMeta):
            return value
        if not _is_copied(value.__module__) or issubclass(value, _NEVER):
            return value
        bases = tuple(map(self.seen, value.__bases__))
        if not all(
            issubclass(kind, type(base)) for base in bases
        ):  # what metaclasses of libraries make is left as it is
            return value
        entries = {n: e for n, e in vars(value).items() if n not in _OF_A_CLASS and not inspect.ismemberdescriptor(e)}
        functions = {n: e for n, e in entries.items() if inspect.isfunction(e)}
        plain = {n: e for n, e in entries.items() if n not in functions}
        made: Any = kind(value.__name__, bases, {**plain, "original": value, "__init_subclass__": _pass})
        self.made[id(value)] = value, made  # before its methods are copied, which may name it
        for name, entry in entries.items():
            if name in functions:
                setattr(made, name, self._function(entry))
            elif isinstance(entry, staticmethod | classmethod):
                setattr(made, name, type(entry)(self.seen(entry.__func__)))
            elif isinstance(entry, property):
                setattr(made, name, property(*(f and self.seen(f) for f in (entry.fget, entry.fset, entry.fdel))))
        if isinstance(made, _CopiedAbstractClass):
            made.__abstractmethods__ = vars(value).get("__abstractmethods__", frozenset())
        if "__getattribute__" in entries or not any(isinstance(b, _CopiedClass) for b in bases):
            look = made.__getattribute__
            made.__getattribute__ = lambda instance, name: self.seen(look(instance, name))
        return made

    def _instance(self, value: Any) -> Any:
        kind = self._class_of(value)
        base = next(b for b in type(value).__mro__ if b.__module__ == "builtins")
        if kind is None or base not in (object, dict, list):
            return value
        made: Any = base.__new__(kind)
        self.made[id(value)], self.made[id(made)] = (value, made), (made, made)
        for name in (n for b in type(value).__mro__ for n in getattr(b, "__slots__", ()) if hasattr(value, n)):
            object.__setattr__(made, name, getattr(value, name))
        if base is dict:
            dict.update(made, {k: self.seen(v) for k, v in dict.items(value)})
        if base is list:
            list.extend(made, map(self.seen, list.__iter__(value)))
        object.__getattribute__(made, "__dict__").update(getattr(value, "__dict__", {}))
        return made

    def _class_of(self, value: Any) -> type | None:
        found = self.seen(type(value))
        return found if isinstance(found, _CopiedClass) else None


def _names_of_classes(code: types.CodeType) -> set[str]:
    """The names that bodies of classes within a function look up, which Python does not ask of `_Names`."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    own = set[str]() if code.co_flags & inspect.CO_OPTIMIZED else {*code.co_names}
    return own.union(*map(_names_of_classes, inner))
