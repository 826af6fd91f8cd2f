"""The thread pool: every range is done exactly once, whoever does it and whatever goes wrong."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossforge.errors import ParameterError
from lossforge.runtime import threads
from lossforge.runtime.cores import available_cores, cgroup_cores, keep_off, this_core
from lossforge.runtime.threads import CROSSOVER, get_num_threads, run_chunks, set_num_threads

PARALLEL = 100 * CROSSOVER  # a cost that is worth any number of threads
PATIENCE = 60.0  # seconds until a wait that should not last is called a dead lock


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threads, "_limit", 4)
    yield


def run_python(code: str, *arguments: str) -> str:
    """What the program prints, once it has ended by itself and well."""
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    return result.stdout


@given(total=st.integers(0, 5000), chunk=st.integers(1, 700), n=st.integers(1, 9), cost=st.integers(0, PARALLEL))
def test_ranges_begin_at_chunks_and_cover_everything_once(total: int, chunk: int, n: int, cost: int) -> None:
    set_num_threads(n)
    ranges: list[tuple[int, int]] = []
    run_chunks(lambda begin, end: ranges.append((begin, end)), total, chunk, cost=cost)
    assert all(begin % chunk == 0 and begin < end for begin, end in ranges)
    assert np.concatenate([np.arange(*r) for r in sorted(ranges)] or [[]]).tolist() == list(range(total))


def test_below_the_crossover_the_caller_works_alone() -> None:
    calls: list[tuple[int, int, int]] = []

    def task(begin: int, end: int) -> None:
        calls.append((threading.get_ident(), begin, end))

    run_chunks(task, 1000, 10, cost=CROSSOVER - 1)
    set_num_threads(1)
    run_chunks(task, 1000, 10, cost=PARALLEL)
    assert calls == [(threading.get_ident(), 0, 1000)] * 2


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(4, timeout=PATIENCE)  # broken unless four threads are in the task at once
    first = threading.local()

    def task(begin: int, end: int) -> None:
        if not hasattr(first, "done"):
            first.done = True
            together.wait()

    run_chunks(task, 1000, 10, cost=PARALLEL)


def test_sums_per_chunk_do_not_depend_on_the_number_of_threads(rng: np.random.Generator) -> None:
    chunk, values = 1000, rng.standard_normal(123_457).astype(np.float32)

    def total(n: int) -> bytes:
        set_num_threads(n)
        partial = np.zeros(-(-values.size // chunk))

        def task(begin: int, end: int) -> None:
            for start in range(begin, end, chunk):
                partial[start // chunk] = values[start : min(start + chunk, end)].sum(dtype=np.float32)

        run_chunks(task, values.size, chunk, cost=PARALLEL)
        return partial.sum().tobytes()

    assert len({total(n) for n in (1, 2, 3, 4, 7)}) == 1


@pytest.mark.parametrize("raiser", ["caller", "helper"])
def test_an_exception_reaches_the_caller_and_cancels_the_rest(raiser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "RANGES_PER_THREAD", 100)
    set_num_threads(2)
    caller = threading.get_ident()
    raised = threading.Event()
    begun: list[int] = []

    def task(begin: int, end: int) -> None:
        begun.append(begin)
        if (threading.get_ident() == caller) == (raiser == "caller"):
            raised.set()
            raise ArithmeticError("on purpose")
        assert raised.wait(PATIENCE)
        time.sleep(0.01)  # all 200 ranges would take two seconds

    with pytest.raises(ArithmeticError, match="on purpose"):
        run_chunks(task, 200, 1, cost=PARALLEL)
    assert len(begun) < 200

    done: list[int] = []
    run_chunks(lambda begin, end: done.append(end - begin), 200, 1, cost=PARALLEL)
    assert sum(done) == 200


def test_an_exception_of_a_helper_keeps_nothing_alive() -> None:
    """Not even until the garbage collector runs: arrays that linger are buffers that cannot be used again."""
    caller = threading.get_ident()
    tried = threading.Event()

    class Array:
        pass

    def fail() -> weakref.ref[Array]:
        array = Array()

        def task(begin: int, end: int) -> None:
            if threading.get_ident() == caller:
                assert tried.wait(PATIENCE)
            else:
                tried.set()
                raise ArithmeticError(array)

        try:
            run_chunks(task, 8, 1, cost=PARALLEL)
        except ArithmeticError:
            return weakref.ref(array)
        raise AssertionError("the helper's exception was lost")

    gc.disable()
    try:
        assert fail()() is None
    finally:
        gc.enable()


def test_a_nested_call_runs_serially_in_its_thread() -> None:
    inner: list[tuple[bool, int, int]] = []

    def outer(begin: int, end: int) -> None:
        thread = threading.get_ident()
        run_chunks(lambda b, e: inner.append((threading.get_ident() == thread, b, e)), 100, 1, cost=PARALLEL)

    run_chunks(outer, 8, 1, cost=PARALLEL)
    assert inner
    assert set(inner) == {(True, 0, 100)}


def test_sixteen_callers_at_once(rng: np.random.Generator) -> None:
    sources = rng.standard_normal((16, 4000))
    results = np.zeros_like(sources)
    start = threading.Barrier(16, timeout=PATIENCE)

    def caller(row: int) -> None:
        def task(begin: int, end: int) -> None:
            results[row, begin:end] += np.sin(sources[row, begin:end])

        start.wait()
        for _ in range(20):
            run_chunks(task, 4000, 100, cost=PARALLEL)

    callers = [threading.Thread(target=caller, args=(row,)) for row in range(16)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in callers)
    np.testing.assert_allclose(results, 20 * np.sin(sources), rtol=1e-13)  # 20 additions of half an ulp


def test_a_caller_needs_no_helper_and_leaves_nothing_behind() -> None:
    """With every pool thread busy, a call finishes, and its task is let go although it waits in a queue."""
    release = threading.Event()
    occupied = threading.Semaphore(0)

    def occupy(begin: int, end: int) -> None:
        occupied.release()
        assert release.wait(PATIENCE)

    blocker = threading.Thread(target=lambda: run_chunks(occupy, 4, 1, cost=PARALLEL))
    blocker.start()
    for _ in range(4):  # three helpers and the blocker itself
        assert occupied.acquire(timeout=PATIENCE)
    try:
        done: list[int] = []

        def task(begin: int, end: int) -> None:
            done.append(end - begin)

        run_chunks(task, 1000, 10, cost=PARALLEL)
        assert sum(done) == 1000
        alive = weakref.ref(task)
        del task
        assert alive() is None
    finally:
        release.set()
        blocker.join(PATIENCE)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no such signals on this platform")
def test_an_interrupt_waits_for_the_helpers() -> None:
    """Ctrl-C while helpers write into the caller's arrays: they finish before the exception is seen."""
    caller = threading.get_ident()
    entered, finished = threading.Event(), threading.Event()

    def task(begin: int, end: int) -> None:
        if threading.get_ident() == caller:
            assert entered.wait(PATIENCE)
        elif not entered.is_set():
            entered.set()
            time.sleep(0.05)
            signal.pthread_kill(caller, signal.SIGINT)
            time.sleep(0.2)
            finished.set()

    set_num_threads(2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_chunks(task, 2, 1, cost=PARALLEL)
    finally:
        signal.signal(signal.SIGINT, before)
    assert finished.is_set()

    together, first = threading.Barrier(2, timeout=PATIENCE), threading.local()

    def meet(begin: int, end: int) -> None:  # two threads are at work again
        if not hasattr(first, "done"):
            first.done = True
            together.wait()

    run_chunks(meet, 1000, 10, cost=PARALLEL)


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", True, None])
def test_set_num_threads_refuses(n: object) -> None:
    with pytest.raises(ParameterError, match="set_num_threads"):
        set_num_threads(n)
    assert get_num_threads() == 4


def test_set_num_threads_is_what_get_num_threads_says(monkeypatch: pytest.MonkeyPatch) -> None:
    set_num_threads(3)
    assert get_num_threads() == 3
    monkeypatch.setattr(threads, "_limit", None)
    assert get_num_threads() == available_cores() >= 1


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000\n"}, np.inf),
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "200000 100000\n"}, 0.5),
        ("0::/of/the/host", {"cpu.max": "300000 100000\n"}, 3),
        ("3:cpu,cpuacct:/j", {"cpu/j/cpu.cfs_quota_us": "-1\n", "cpu/j/cpu.cfs_period_us": "100000"}, np.inf),
        ("3:cpu,cpuacct:/j", {"cpu/j/cpu.cfs_quota_us": "250000", "cpu/j/cpu.cfs_period_us": "100000"}, 2.5),
        ("4:memory:/j", {"j/cpu.max": "100000 100000"}, np.inf),
        ("0::/", {"cpu.max": "nonsense"}, np.inf),
        ("0::/", {}, np.inf),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, membership: str, files: dict[str, str], cores: float) -> None:
    mount = tmp_path / "mount"
    for name, text in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(text)
    (tmp_path / "memberships").write_text(membership + "\n")
    assert cgroup_cores(tmp_path / "memberships", mount) == cores


def test_no_control_groups(tmp_path: Path) -> None:
    assert cgroup_cores(tmp_path / "absent", tmp_path) == np.inf


@pytest.mark.skipif(this_core() is None, reason="the system does not say which core a thread runs on")
def test_the_pool_leaves_the_callers_core_to_the_caller() -> None:
    cores = os.sched_getaffinity(0)
    allowed: set[frozenset[int]] = set()
    n = max(2, len(cores))
    meeting = threading.Barrier(n)  # so that every thread takes part

    def look(begin: int, end: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            allowed.add(frozenset(os.sched_getaffinity(0)))
        meeting.wait(PATIENCE)

    set_num_threads(n)
    try:
        for core in sorted(cores)[:2]:
            os.sched_setaffinity(0, {core})  # go there ...
            os.sched_setaffinity(0, cores)  # ... and stay, for an instant at least
            run_chunks(look, 2 * n, 1, cost=PARALLEL)
        assert os.sched_getaffinity(0) == cores
    finally:
        os.sched_setaffinity(0, cores)
    assert allowed
    for found in allowed:
        assert len(found) == max(1, len(cores) - 1)
        assert found <= cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not place threads")
def test_where_a_thread_runs_is_no_more_than_a_wish() -> None:
    gone = threading.Thread(target=int)
    gone.start()
    gone.join()
    assert gone.native_id is not None
    keep_off(min(os.sched_getaffinity(0)), [gone.native_id])


# A fork in this process would inherit pytest's threads, so these are programs of their own.
FORK = """
import os, threading
from lossforge.runtime.threads import run_chunks, set_num_threads

def sum_of_squares():
    parts, names = [], set()
    meet = threading.Barrier(2, timeout=30)
    def task(begin, end):
        if threading.current_thread().name not in names:
            names.add(threading.current_thread().name)
            meet.wait()
        parts.append(sum(i * i for i in range(begin, end)))
    run_chunks(task, 1000, 1, cost=10**9)
    return sum(parts), len(names)

set_num_threads(2)
expected = (sum(i * i for i in range(1000)), 2)
assert sum_of_squares() == expected
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0 if sum_of_squares() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
assert sum_of_squares() == expected
"""

FORK_WHILE_WORKING = """
import os, threading
from lossforge.runtime.threads import run_chunks, set_num_threads

set_num_threads(2)
stop = threading.Event()

def work():
    while not stop.is_set():
        run_chunks(lambda begin, end: None, 100, 1, cost=10**9)

callers = [threading.Thread(target=work) for _ in range(3)]
for caller in callers:
    caller.start()
for _ in range(30):
    child = os.fork()
    if child == 0:
        done = []
        run_chunks(lambda begin, end: done.append(end - begin), 100, 1, cost=10**9)
        os._exit(0 if sum(done) == 100 else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
"""

DATA_LOADER = """
import numpy as np, torch
import lossforge as lf
from lossforge.runtime.threads import run_chunks, set_num_threads

set_num_threads(2)

@lf.loss
def squared_error(pred, true):
    return (pred - true) ** 2

def value(index):  # large enough for several threads, which PyTorch's are in the parent
    return squared_error(torch.full((1 << 18,), 2.0), torch.full((1 << 18,), float(index)))

def square(array):
    result = np.empty_like(array)
    def task(begin, end):
        result[begin:end] = array[begin:end] ** 2
    run_chunks(task, array.size, 10, cost=10**9)
    return result

class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return torch.from_numpy(square(np.arange(100.0) + index)) + value(index)

square(np.arange(100.0))  # the parent has a pool before it forks
value(1)
torch.ones(1 << 20).neg()
loader = torch.utils.data.DataLoader(Squares(), batch_size=2, num_workers=2, multiprocessing_context="fork")
rows = torch.cat(list(loader)).numpy()
assert (rows == (np.arange(100.0) + np.arange(4)[:, None]) ** 2 + (2 - np.arange(4)[:, None]) ** 2).all()
"""

EXIT = """
import threading, time
from lossforge.runtime.threads import run_chunks, set_num_threads

set_num_threads(3)
entered = threading.Barrier(4)
def task(begin, end):
    entered.wait()
    time.sleep(1000)
caller = threading.Thread(target=lambda: run_chunks(task, 3, 1, cost=10**9), daemon=True)
caller.start()
entered.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.parametrize("program", [FORK, FORK_WHILE_WORKING], ids=["idle", "while threads work"])
def test_a_forked_child_has_a_pool_of_its_own(program: str) -> None:
    run_python(program)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_data_loader_worker_lives() -> None:
    pytest.importorskip("torch")
    run_python(DATA_LOADER)


def test_busy_threads_do_not_hold_up_the_exit() -> None:
    run_python(EXIT)
