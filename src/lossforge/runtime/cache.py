"""Compiled kernels, in memory and on disk.

`compile_kernel` answers from memory, else from a file in the user's cache folder, else by compiling. A file
holds the object code of one kernel, and `link` makes it a built-in function. Measured on 2 cores of an EPYC
9004 with a kernel of 4 arrays and 4 scalars, NumPy already imported, median of several:

| how a kernel is kept and called                   | first call in a new process, warm | each call |
|---------------------------------------------------|-----------------------------------|-----------|
| `njit(cache=True)` and its dispatcher             | 520 ms                            | 0.45 µs   |
| object code, called through ctypes                | 40 ms                             | 1.3 µs    |
| object code with a METH_FASTCALL entry (this one) | 40 ms                             | 0.10 µs   |

Most of the first row is importing Numba and filling its registries, which the others never need. Of the last
row, importing llvmlite is 35 ms and linking 1 ms.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from lossforge._version import __version__
from lossforge.runtime import private_files
from lossforge.runtime.link import ObjectCode, link

FASTMATH = frozenset({"contract", "reassoc", "nsz", "arcp"})
"""Reordering and fused multiply-add, but neither "no NaNs" nor "no infinities"."""

MAX_FILES = 1024
"""Kernels that stay on disk, at about 10 to 30 kB each; beyond them the oldest are deleted."""

Kernel = Callable[..., None]

_log = logging.getLogger(__name__)
_kernels: dict[tuple[str, str, tuple[str, ...], frozenset[str], int], Kernel] = {}

# One kernel is compiled at a time, as Numba has it anyway. A fork waits until the lock is free: the child
# would inherit it, and Numba's own, locked by a thread that it does not have.
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def compile_kernel(
    source: str, entry: str, signature: Sequence[str], *, fastmath: frozenset[str] = FASTMATH, interleave: int = 0
) -> Kernel:
    """The function `entry` of the Python module text `source`, compiled to run without the GIL.

    `signature` has one Numba type per argument: `"float32[:, ::1]"` (C-contiguous), `"float64[:]"` (any
    strides), `"int64"`, `"float64"`. The function returns nothing and allocates nothing (scratch is an
    argument). An array that it writes must not overlap any other argument: the compiler relies on it.
    `interleave` is how many vectors an innermost loop works on at a time; 0 leaves that to the compiler.

    The answer takes its arguments by position; in place of a flat array, the address of its first entry will do (its
    length is then 0 to the kernel). It raises `TypeError` where one does not match the signature,
    and `RuntimeError` if the kernel raises. Errors of compilation are Numba's, and show lines of `source`.
    """
    identity = (source, entry, tuple(signature), fastmath, interleave)
    kernel = _kernels.get(identity)
    if kernel is None:
        with _lock:
            kernel = _kernels.get(identity) or _load_or_compile(*identity)
            _kernels[identity] = kernel
    return kernel


def clear(*, disk: bool = False) -> None:
    """Forget the kernels in memory, and with `disk` delete those in the cache folder."""
    with _lock:
        _kernels.clear()
        folder = cache_folder()
        if disk and private_files.is_private(folder):
            for path in folder.glob("*.kernel"):
                path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """`$LOSSFORGE_CACHE_DIR`, else `lossforge` in `$XDG_CACHE_HOME` or the platform's folder for caches."""
    chosen = os.environ.get("LOSSFORGE_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        default = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        default = "~/Library/Caches"
    else:
        default = "~/.cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or default).expanduser().absolute() / "lossforge"


def _load_or_compile(
    source: str, entry: str, signature: tuple[str, ...], fastmath: frozenset[str], interleave: int
) -> Kernel:
    key = _key(source, entry, signature, fastmath, interleave)
    folder = cache_folder()
    path = folder / f"{entry}-{key}.kernel" if private_files.is_private(folder) else None
    if path is not None:
        try:
            return link(_decode(private_files.read(path), key))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RuntimeError) as error:
            _log.debug("%s is compiled again: %s", path, error)

    from lossforge.runtime.object_code import compile_to_object_code

    filename = f"<lossforge {entry} {key[:12]}>"
    code = compile_to_object_code(source, entry, signature, fastmath=fastmath, interleave=interleave, filename=filename)
    kernel = link(code)
    if path is not None:
        try:
            private_files.write(path, _encode(code, key))
            _delete_oldest(folder)
        except OSError as error:
            _log.debug("%s is not kept on disk: %s", path, error)
    return kernel


def _encode(code: ObjectCode, key: str) -> bytes:
    header = {"key": key, "name": code.name, "size": len(code.image)}
    return json.dumps(header).encode() + b"\n" + code.image


def _decode(content: bytes, key: str) -> ObjectCode:
    line, _, image = content.partition(b"\n")
    header = json.loads(line)
    if header["key"] != key or header["size"] != len(image):
        raise ValueError("it holds another kernel")
    return ObjectCode(header["name"], image)


def _delete_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.kernel"), key=lambda path: path.stat().st_mtime)
    for path in files[:-MAX_FILES]:
        path.unlink(missing_ok=True)


# ---- the key: all that the object code depends on ------------------------------------------------------


def _key(source: str, entry: str, signature: tuple[str, ...], fastmath: frozenset[str], interleave: int) -> str:
    modules = {name: _digest_of_module(name) for name in _imports(source)}
    parts = [source, entry, signature, sorted(fastmath), interleave, modules, _environment()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _imports(source: str) -> list[str]:
    """The modules that `source` imports, but for those whose versions are in `_environment`."""
    names = re.findall(r"^(?:from|import)\s+([\w.]+)", source, flags=re.MULTILINE)
    known = {"numpy", "numba", *sys.stdlib_module_names}
    return [name for name in names if name.partition(".")[0] not in known]


@cache
def _environment() -> dict[str, object]:
    import llvmlite
    import llvmlite.binding as llvm

    return {
        "python": [sys.implementation.cache_tag, *sys.version_info[:3], sys.maxsize, object.__basicsize__],
        "numpy": np.__version__,
        "numba": _numba_version(),
        "llvmlite": llvmlite.__version__,
        "lossforge": [__version__, _digest_of_module("lossforge.runtime")],
        "cpu": [
            llvm.get_process_triple(),
            llvm.get_host_cpu_name(),
            llvm.get_host_cpu_features().flatten(),
        ],
        "settings": {name: value for name, value in os.environ.items() if name.startswith("NUMBA_")},
    }


def _numba_version() -> str:
    """What tells one version of Numba from another, without importing it."""
    spec = importlib.util.find_spec("numba")
    if spec is not None and spec.origin is not None:
        try:
            return (Path(spec.origin).parent / "_version.py").read_text()
        except OSError:
            pass  # packed in another way than today
    from importlib import metadata  # 50 ms

    return metadata.version("numba")


@cache
def _digest_of_module(name: str) -> str:
    """SHA-256 of a module's text; of a package, that of all its modules."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"a kernel imports {name!r}, of which there is no source file")
    origin = Path(spec.origin)
    files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(origin.parent)}\n".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()
