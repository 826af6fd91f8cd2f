"""Losses from a user's file: ``FILE.py:NAME``. The file is imported as Python imports a script; nothing else is."""

from __future__ import annotations

import importlib.util
import sys
import traceback
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
    if spec is None or spec.loader is None:
        raise FileError(f"{str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except LossforgeError:
        raise  # says itself which loss is meant
    except Exception as error:
        lines = [entry.lineno for entry in traceback.extract_tb(error.__traceback__) if entry.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = str(path) if line is None else f"{path}:{line}"
        raise FileError(f"{where}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
        if before is not None:
            sys.modules[name] = before
    return module


def load_object(target: str, kind: type = object) -> Any:
    """What ``FILE.py:NAME`` names; NAME may have dots.

    Args:
        target: the file and the name.
        kind: what is looked for; others are refused, and those of the file are named.

    Raises:
        FileError: there is no such file, or it has no such name, or this is something else.
    """
    file, colon, name = target.rpartition(":")
    if not colon:
        raise FileError(f"{target!r} is not of the form FILE.py:NAME")
    module = load_module(Path(file))
    public = sorted(n for n, v in vars(module).items() if not n.startswith("_") and isinstance(v, kind))
    has = f"the file has {', '.join(public) or 'none'}"
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise FileError(f"{file} has no {name!r}; {has}")
        found = getattr(found, part)
    if not isinstance(found, kind):
        raise FileError(f"{target} is a {type(found).__name__}, not a {kind.__name__}; {has}")
    return found
