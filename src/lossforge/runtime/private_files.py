"""Files that nobody but the user can have written, in a folder that is the user's alone.

What is read here may be run as machine code. So the folder must belong to the user and be writable by nobody
else, and each file carries an HMAC-SHA256 of its content, under a secret that only the user can read.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_MAGIC = b"lossforge private file\n"
_MAC_SIZE = 32
_OTHERS_WRITE, _OTHERS_READ_OR_WRITE = 0o022, 0o077


@cache
def is_private(folder: Path) -> bool:
    """Whether the folder is there, or could be made, and is the user's alone. If not, warn once."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        problem = _access_problem(folder.stat(), forbidden=_OTHERS_WRITE)
    except OSError as error:
        problem = f"it cannot be made or read ({error})"
    if problem:
        warnings.warn(
            f"lossforge keeps no compiled kernels on disk, and compiles them anew in each process, because "
            f"of {folder}: {problem}. Make that folder your own (chown, chmod 700), or set "
            f"LOSSFORGE_CACHE_DIR to one that is.",
            RuntimeWarning,
            stacklevel=2,
        )
    return not problem


def read(path: Path) -> bytes:
    """What `write` put there. Raises `OSError`, or `ValueError` if anything about the file is wrong."""
    content = _read_own(path, forbidden=_OTHERS_WRITE)
    start = len(_MAGIC) + _MAC_SIZE
    mac, body = content[len(_MAGIC) : start], content[start:]
    if not content.startswith(_MAGIC) or not hmac.compare_digest(mac, _mac(path.parent, body)):
        raise ValueError("it is damaged, or was written by somebody else")
    return body


def write(path: Path, body: bytes) -> None:
    """Write the file, or replace it. Other processes see the old content or the new, and never a part."""
    content = _MAGIC + _mac(path.parent, body) + body
    with _temporary(path, content) as temporary:
        os.replace(temporary, path)


def _mac(folder: Path, body: bytes) -> bytes:
    return hmac.digest(_secret(folder), body, "sha256")


def _secret(folder: Path) -> bytes:
    """The key for the files of this folder: made at the first use, and anew if others could know it."""
    path = folder / "secret"
    for _ in range(3):
        try:
            secret = _read_own(path, forbidden=_OTHERS_READ_OR_WRITE)
            if len(secret) == _MAC_SIZE:
                return secret
            path.unlink()
        except ValueError:  # somebody else's, or readable by others
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        with _temporary(path, secrets.token_bytes(_MAC_SIZE)) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:  # another process was first
                pass
            except OSError:  # a file system without hard links
                os.replace(temporary, path)
    raise OSError(f"{path} does not stay as it was written")


def _read_own(path: Path, *, forbidden: int) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        problem = _access_problem(os.fstat(file.fileno()), forbidden=forbidden)
        if problem:
            raise ValueError(problem)
        return file.read()


@contextlib.contextmanager
def _temporary(path: Path, content: bytes) -> Iterator[str]:
    """A file with this content beside `path`, which is gone (or moved) afterwards."""
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        yield temporary
    finally:
        Path(temporary).unlink(missing_ok=True)


def _access_problem(status: os.stat_result, *, forbidden: int) -> str:
    """What is wrong with the owner or the mode of a file or folder; "" if nothing is."""
    if not hasattr(os, "geteuid"):  # Windows, where the access list of the user's profile guards it
        return ""
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}"
    if status.st_mode & forbidden:
        return f"others have access to it (mode {stat.S_IMODE(status.st_mode):03o})"
    return ""
