"""A user's file. It is imported as Python imports a script; nothing else is."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lossforge.errors import LossforgeError


class FileError(LossforgeError, ValueError):
    """A file, or a name in it, cannot be had."""


def load_module(path: Path) -> ModuleType:
    """Import the file at `path`, with its folder searched for what it imports itself.

    Raises:
        FileError: there is no such file, it is not Python, or it fails; then with the line.
    """
    if not path.is_file():
        raise FileError(f"no file {str(path)!r}")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    loader = None if spec is None else spec.loader
    if spec is None or loader is None:
        raise FileError(f"{str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        called(lambda: loader.exec_module(module), str(path))
    finally:
        sys.path.remove(str(path.resolve().parent))
        if before is not None:
            sys.modules[name] = before
    return module


def called(function: Callable[[], Any], file: str) -> Any:
    """The result of a function of the user's.

    Raises:
        FileError: it fails in `file`; with the line.
    """
    try:
        return function()
    except LossforgeError:
        raise  # says itself which loss is meant
    except Exception as error:
        lines = [entry.lineno for entry in traceback.extract_tb(error.__traceback__) if entry.filename == file]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = file if line is None else f"{file}:{line}"
        raise FileError(f"{where}: {type(error).__name__}: {error}") from error
