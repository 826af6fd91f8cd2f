"""Where kernels come from: memory, disk or the compiler; and what their files survive."""

import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lossforge.runtime import cache, private_files
from lossforge.runtime.cache import cache_folder, clear, compile_kernel

SCALE = """
def scale(source, target, factor, shift, begin, end):
    for i in range(begin, end):
        for j in range(source.shape[1]):
            target[i, j] = source[i, j] * factor + shift
"""
SIGNATURE = ("float64[:, :]", "float64[:, ::1]", "float64", "int64", "int64", "int64")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and nothing in memory."""
    monkeypatch.setenv("LOSSFORGE_CACHE_DIR", str(tmp_path / "cache"))
    clear()
    return tmp_path / "cache"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were really compiled, as they are."""
    from lossforge.runtime import object_code

    names: list[str] = []
    original = object_code.compile_to_object_code

    def compile_to_object_code(source: str, entry: str, *arguments: object, **options: object) -> object:
        names.append(entry)
        return original(source, entry, *arguments, **options)

    monkeypatch.setattr(object_code, "compile_to_object_code", compile_to_object_code)
    return names


def check(kernel: cache.Kernel) -> None:
    source, target = np.arange(12.0).reshape(3, 4), np.zeros((3, 4))
    kernel(source, target, 2.0, 1, 0, 3)
    assert target.tolist() == (source * 2 + 1).tolist()


def run_python(code: str, *arguments: str) -> str:
    """What the program prints. It finds the cache by the environment, like any other."""
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


# ---- memory and disk -------------------------------------------------------------------------------------


def test_memory_then_disk_then_compilation(folder: Path, compiled: list[str]) -> None:
    first = compile_kernel(SCALE, "scale", SIGNATURE)
    assert compile_kernel(SCALE, "scale", list(SIGNATURE)) is first
    clear()
    second = compile_kernel(SCALE, "scale", SIGNATURE)
    assert second is not first
    assert compiled == ["scale"]
    check(first)
    check(second)
    clear(disk=True)
    assert not list(folder.glob("*.kernel"))
    check(compile_kernel(SCALE, "scale", SIGNATURE))
    assert compiled == ["scale", "scale"]


def test_the_folder_and_its_files_are_the_users_alone(folder: Path) -> None:
    compile_kernel(SCALE, "scale", SIGNATURE)
    assert folder.stat().st_mode & 0o777 == 0o700
    names = sorted(path.name for path in folder.iterdir())
    assert re.fullmatch(r"scale-[0-9a-f]{64}\.kernel secret", " ".join(names))
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())


WARM = f"""
import sys
import numpy as np
from lossforge.runtime.cache import compile_kernel
kernel = compile_kernel({SCALE!r}, "scale", {SIGNATURE!r})
target = np.zeros((3, 4))
kernel(np.arange(12.0).reshape(3, 4), target, 2.0, 1, 0, 3)
assert (target == np.arange(12).reshape(3, 4) * 2 + 1).all()
print("compiled" if "numba" in sys.modules else "loaded")
"""


def test_a_new_process_loads_the_kernel_without_numba(folder: Path) -> None:
    compile_kernel(SCALE, "scale", SIGNATURE)
    assert run_python(WARM) == "loaded\n"


def test_processes_that_compile_at_once_do_no_harm(folder: Path) -> None:
    programs = [
        subprocess.Popen([sys.executable, "-c", WARM], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)
    ]
    for program in programs:
        _, errors = program.communicate()
        assert program.returncode == 0, errors.decode()
    assert len(list(folder.iterdir())) == 2  # the kernel and the secret, and nothing half-written
    assert run_python(WARM) == "loaded\n"


def test_threads_that_compile_at_once_compile_once(folder: Path, compiled: list[str]) -> None:
    kernels: list[cache.Kernel] = []
    start = threading.Barrier(8, timeout=60)

    def work() -> None:
        start.wait()
        kernels.append(compile_kernel(SCALE, "scale", SIGNATURE))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(kernels) == 8
    assert len(set(kernels)) == len(compiled) == 1


def flip(position: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:position] + bytes([content[position] ^ 1]) + content[position + 1 or len(content) :]


@pytest.mark.parametrize(
    "damage",
    [
        flip(0),
        flip(len(private_files._MAGIC)),
        flip(len(private_files._MAGIC) + 31),
        flip(len(private_files._MAGIC) + 40),
        flip(2000),
        flip(-1),
        lambda content: b"",
        lambda content: content[:1],
        lambda content: content[: len(private_files._MAGIC) + 20],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"\x7fELF" + content[4:],
        lambda content: b"not a kernel\n" * 1000,
    ],
    ids=range(14),
)
def test_a_damaged_file_is_compiled_again(
    folder: Path,
    compiled: list[str],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    compile_kernel(SCALE, "scale", SIGNATURE)
    (path,) = folder.glob("*.kernel")
    path.write_bytes(damage(path.read_bytes()))
    clear()
    with caplog.at_level(logging.DEBUG, "lossforge"):
        check(compile_kernel(SCALE, "scale", SIGNATURE))
    assert "compiled again" in caplog.text
    clear()
    check(compile_kernel(SCALE, "scale", SIGNATURE))
    assert compiled == ["scale", "scale"]  # the third came from the repaired file


def test_a_file_under_another_kernels_name_is_not_used(folder: Path, compiled: list[str]) -> None:
    compile_kernel(SCALE, "scale", SIGNATURE)
    (path,) = folder.glob("*.kernel")
    other = SCALE.replace("+ shift", "- shift")
    compile_kernel(other, "scale", SIGNATURE)
    (new,) = set(folder.glob("*.kernel")) - {path}
    path.replace(new)
    clear()
    target = np.zeros((1, 1))
    compile_kernel(other, "scale", SIGNATURE)(np.ones((1, 1)), target, 1.0, 5, 0, 1)
    assert target[0, 0] == -4
    assert len(compiled) == 3


def test_a_file_signed_elsewhere_is_not_used(folder: Path, tmp_path: Path, compiled: list[str]) -> None:
    compile_kernel(SCALE, "scale", SIGNATURE)
    (folder / "secret").unlink()
    clear()
    check(compile_kernel(SCALE, "scale", SIGNATURE))
    assert len(compiled) == 2


posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners and modes on this platform")


@posix
@pytest.mark.parametrize("name", ["secret", "kernel"])
@pytest.mark.parametrize("change", ["readable", "writable", "link", "empty"])
def test_suspicious_files_are_made_anew(
    folder: Path, tmp_path: Path, compiled: list[str], name: str, change: str
) -> None:
    compile_kernel(SCALE, "scale", SIGNATURE)
    (path,) = folder.glob(f"*{name}")
    if change == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif change == "empty":
        path.write_bytes(b"")
    else:
        path.chmod(0o644 if change == "readable" else 0o622)
    clear()
    check(compile_kernel(SCALE, "scale", SIGNATURE))
    harmless = (name, change) == ("kernel", "readable")
    assert len(compiled) == (1 if harmless else 2)
    if (name, change) != ("secret", "link"):  # which is left alone: nothing is kept on disk then
        clear()
        check(compile_kernel(SCALE, "scale", SIGNATURE))
        assert len(compiled) == (1 if harmless else 2)


@posix
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
def test_a_folder_that_others_can_write_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.warns(RuntimeWarning, match=r"others have access.*chmod 700.*LOSSFORGE_CACHE_DIR"):
        check(compile_kernel(SCALE, "scale", SIGNATURE))
    assert not list(folder.iterdir())
    clear()
    check(compile_kernel(SCALE, "scale", SIGNATURE))  # warnings are errors here: it is said once


@posix
def test_a_folder_of_somebody_else_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.warns(RuntimeWarning, match="this process runs as user 12345"):
        check(compile_kernel(SCALE, "scale", SIGNATURE))
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOSSFORGE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    clear()
    with pytest.warns(RuntimeWarning, match="cannot be made"):
        check(compile_kernel(SCALE, "scale", SIGNATURE))


def test_a_folder_that_vanishes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert private_files.is_private(folder)
    folder.rmdir()
    with caplog.at_level(logging.DEBUG, "lossforge"):
        check(compile_kernel(SCALE, "scale", SIGNATURE))
    assert "not kept on disk" in caplog.text


def test_the_oldest_files_are_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_FILES", 2)
    for number in range(4):
        compile_kernel(f"def f{number}(x):\n    pass\n", f"f{number}", ["float64"])
        for path in folder.glob(f"f{number}-*"):
            os.utime(path, (number, number))
    assert {path.name[:2] for path in folder.glob("*.kernel")} == {"f2", "f3"}


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"LOSSFORGE_CACHE_DIR": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ("linux", {"LOSSFORGE_CACHE_DIR": "~/b"}, "/home/me/b"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/lossforge"),
        ("linux", {"XDG_CACHE_HOME": ""}, "/home/me/.cache/lossforge"),
        ("linux", {}, "/home/me/.cache/lossforge"),
        ("darwin", {}, "/home/me/Library/Caches/lossforge"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/lossforge"),
        ("win32", {}, "/home/me/AppData/Local/lossforge"),
    ],
)
def test_where_the_folder_is(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    for name in ("LOSSFORGE_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == Path(expected)


# ---- the key ---------------------------------------------------------------------------------------------


def test_the_key_covers_everything_that_the_caller_gives() -> None:
    variants = [
        (SCALE, "scale", SIGNATURE, cache.FASTMATH, 0),
        (SCALE + "\n", "scale", SIGNATURE, cache.FASTMATH, 0),
        (SCALE, "other", SIGNATURE, cache.FASTMATH, 0),
        (SCALE, "scale", SIGNATURE[:-1], cache.FASTMATH, 0),
        (SCALE, "scale", ("float64[:, ::1]", *SIGNATURE[1:]), cache.FASTMATH, 0),
        (SCALE, "scale", SIGNATURE, frozenset(), 0),
        (SCALE, "scale", SIGNATURE, cache.FASTMATH, 4),
    ]
    assert len({cache._key(*variant) for variant in variants}) == len(variants)


@pytest.mark.parametrize("part", ["python", "numpy", "numba", "llvmlite", "lossforge", "cpu", "settings"])
def test_another_version_is_another_key(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    environment, key = cache._environment(), cache._key(SCALE, "scale", SIGNATURE, cache.FASTMATH, 0)
    assert environment[part] or part == "settings"
    monkeypatch.setattr(cache, "_environment", lambda: {**environment, part: "another"})
    assert cache._key(SCALE, "scale", SIGNATURE, cache.FASTMATH, 0) != key


def test_another_version_compiles_anew_and_keeps_both(
    folder: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_kernel(SCALE, "scale", SIGNATURE)
    environment = cache._environment()
    monkeypatch.setattr(cache, "_environment", lambda: {**environment, "numba": "0.0"})
    clear()
    check(compile_kernel(SCALE, "scale", SIGNATURE))
    assert len(compiled) == len(list(folder.glob("*.kernel"))) == 2


def test_numbas_settings_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache._environment()
    monkeypatch.setenv("NUMBA_OPT", "1")
    cache._environment.cache_clear()
    try:
        assert cache._environment() != before
    finally:
        cache._environment.cache_clear()


@pytest.mark.parametrize("layout", ["module", "package"])
def test_the_key_covers_the_text_of_imported_modules(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """In new processes, since a module that changes while it is imported is nobody's concern."""
    helpers = tmp_path / "lossforge_test_helpers"
    if layout == "module":
        file = helpers.with_suffix(".py")
    else:
        (helpers / "inner").mkdir(parents=True)
        (helpers / "__init__.py").write_text("from .inner.deep import step\n")
        (helpers / "inner" / "__init__.py").write_text("")
        file = helpers / "inner" / "deep.py"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    program = f"""
import sys
import numpy as np
from lossforge.runtime.cache import compile_kernel
source = '''
from {helpers.name} import step

def apply(a):
    a[0] = a[0] + step
'''
a = np.zeros(1)
compile_kernel(source, "apply", ["float64[::1]"])(a)
print(a[0], "numba" in sys.modules)
"""
    for step, outcome in [(1, "1.0 True"), (1, "1.0 False"), (25, "25.0 True"), (25, "25.0 False")]:
        file.write_text(f"step = {step}\n")
        assert run_python(program) == outcome + "\n"


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ModuleNotFoundError, match="lossforge_no_such_module"):
        compile_kernel("import lossforge_no_such_module\ndef f():\n    pass\n", "f", [])


# ---- fork ------------------------------------------------------------------------------------------------

FORK = """
import os, threading
import numpy as np
from lossforge.runtime.cache import compile_kernel

def use(number):
    source = f"def add(a):\\n    a[0] += {number}\\n"
    a = np.zeros(1)
    compile_kernel(source, "add", ["float64[::1]"])(a)
    return a[0] == number

def use_in_a_thread(number):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(use(number)))
    thread.start()
    thread.join(60)
    return answers == [True]

assert use(1)
compiler = threading.Thread(target=lambda: [use(number) for number in range(2, 8)])
compiler.start()
for number in range(3):
    child = os.fork()  # while another thread compiles
    if child == 0:
        os._exit(0 if use(1) and use(100 + number) and use_in_a_thread(200) else 1)
    assert os.waitpid(child, 0)[1] == 0
compiler.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_uses_and_compiles_kernels(folder: Path) -> None:
    run_python(FORK)
