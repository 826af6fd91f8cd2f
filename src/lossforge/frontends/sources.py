"""Whose source a file is: a library's, or the user's, wherever it lies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec


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
