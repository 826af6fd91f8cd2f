"""Losses from a user's file: ``FILE.py:NAME``. The file is imported as Python imports a script; nothing else is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lossforge.errors import LossforgeError


class FileError(LossforgeError, ValueError):
    """A file, or a name in it, cannot be had."""


def load_module(path: Path) -> ModuleType:
    """Import the file at `path`, with its folder searched for what it imports itself.

    Raises:
        FileError: there is no such file, or it is not Python.
    """
    if not path.is_file():
        raise FileError(f"no file {str(path)!r}")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileError(f"{str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.resolve().parent))
        if before is not None:
            sys.modules[name] = before
    return module


def load_object(target: str) -> Any:
    """What ``FILE.py:NAME`` names; NAME may have dots.

    Raises:
        FileError: there is no such file, or it has no such name.
    """
    file, colon, name = target.rpartition(":")
    if not colon:
        raise FileError(f"{target!r} is not of the form FILE.py:NAME")
    found: Any = load_module(Path(file))
    for part in name.split("."):
        if not hasattr(found, part):
            names = sorted(n for n in vars(found) if not n.startswith("_")) if hasattr(found, "__dict__") else []
            raise FileError(f"{file} has no {name!r}; it has {', '.join(names) or 'nothing'}")
        found = getattr(found, part)
    return found
