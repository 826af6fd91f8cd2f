"""Whose source a file is: a library's, or the user's, wherever it lies."""

from __future__ import annotations

import inspect
import linecache
import os
import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any


@cache
def folder(package: str) -> str:
    """The folder of a package's source, with a separator at its end; that of no file if it is not installed."""
    spec = find_spec(package)
    return os.path.dirname(spec.origin) + os.sep if spec is not None and spec.origin else "<not installed>"


@cache
def is_of(file: str, packages: Sequence[str]) -> bool:
    """Whether a file is of one of these packages, or one of those that they and Python write while they run."""
    return file.startswith((*_WRITTEN, *(folder(p) for p in packages)))


_WRITTEN = ("<frozen", "<eval_with_key", "<__array_function__")


def line(file: str, number: int) -> str:
    """A line of a source, as refusals name it."""
    return f"{file.rsplit('/', 1)[-1]}:{number} ({linecache.getline(file, number).strip()})"


def names_a_line(text: str) -> bool:
    """Whether a refusal names a line of a source."""
    return re.search(r"\S:\d+\b", text) is not None


def first_line(function: Any) -> str:
    """The line at which a function begins, or the call of an object; nothing if it is not written in Python."""
    function = inspect.unwrap(getattr(function, "func", function))
    for found in (
        function,
        getattr(function, "forward", None),
        getattr(function, "call", None),
        type(function).__call__,
    ):
        code = getattr(found, "__code__", None)
        if code is not None:
            return line(code.co_filename, code.co_firstlineno)
    return ""
