"""A small pool of threads for kernels that release the GIL.

`run_chunks` cuts a range at multiples of a chunk, whatever the number of threads, so that sums kept per chunk
are the same bits for any number. The calling thread works too and never needs anybody else to finish, so that
callers who find every pool thread busy are merely slower. No lock is held while a kernel runs.

Measured on 2 virtual cores (EPYC 9004, Linux under KVM): a sleeping thread is awake 30 µs after the signal,
which itself takes 10 to 35 µs, in C as in Python. Two threads therefore win from about 0.2 ms of serial work.
What the caller spends on an empty task is 5 to 7 µs (0.7 µs if serial); with `concurrent.futures` it is 30 to
80 µs.

A thread that has slept for a while may be woken on the very core of whoever wakes it, and stays there for a whole job
of 10 ms while another core is idle: in half of the calls that came 0.25 s after one another, Huber of 2^24 entries took 11
instead of 8 ms. So the pool's threads are kept off the core of a caller who needs every core.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

from lossforge.errors import ParameterError
from lossforge.runtime.cores import available_cores, keep_off, this_core
from lossforge.runtime.openmp import Team

Task = Callable[[int, int], None]

CROSSOVER = 200_000
"""Nanoseconds of serial work that pay for waking one thread."""

RANGES_PER_THREAD = 2
"""More ranges than threads, so that a thread which wakes late or shares its core finds less to do. But each
range is a visit to the GIL, and threads that meet there sleep: with 4, a job of 5 ms took 2.5 % longer than
with 2."""

_limit: int | None = None


def set_num_threads(n: int) -> None:
    """Let `run_chunks` use `n` threads, the calling one included. Raises `ParameterError` unless `n` >= 1."""
    global _limit
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ParameterError(f"set_num_threads({n!r}): the number of threads is an integer from 1 up")
    _limit = n


def get_num_threads() -> int:
    """How many threads `run_chunks` may use, the calling one included. Default: `available_cores()`."""
    return _limit or available_cores()


def run_chunks(task: Task, total: int, chunk: int, *, cost: int) -> None:
    """Call `task(begin, end)` for ranges that together are [0, total).

    Each range begins at a multiple of `chunk` and may span many chunks; which ranges there are depends on the
    number of threads. A task whose result should not depend on it keeps its sums per chunk.

    `cost` is an estimate in nanoseconds of a serial run; it decides how many threads are worth waking. Below
    `CROSSOVER`, or if the caller is itself such a task, there is one call, in the calling thread. An
    exception in a task cancels the ranges that have not begun, and is raised here when those that have are at
    an end.
    """
    if total <= 0:
        return
    chunks = -(-total // chunk)
    helpers = min(get_num_threads() - 1, cost // CROSSOVER, chunks - 1)
    if helpers <= 0 or _thread.in_task:
        task(0, total)
        return
    step = max(1, chunks // ((helpers + 1) * RANGES_PER_THREAD)) * chunk
    job = _Job(task, [(begin, min(begin + step, total)) for begin in range(0, total, step)])
    try:
        if _thread.team is not None and _thread.team.size > 1:
            _thread.team.run(partial(_help, job), helpers + 1)
        else:
            _share(job, helpers)
    finally:
        _thread.in_task = False  # also where a signal has interrupted the wait, or this thread would stay alone
    error, job.error = job.error, None
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame, and would keep the task's arrays alive


def _share(job: _Job, helpers: int) -> None:
    """Work on a job with some of the pool's threads."""
    try:
        _pool.submit(job, helpers)
        _thread.in_task = True
        job.work()
    finally:
        job.wait_for_helpers()


@contextmanager
def working_in(team: Team | None) -> Iterator[None]:
    """Let `run_chunks` use a team of threads in place of its pool, when this thread calls it."""
    before, _thread.team = _thread.team, team
    try:
        yield
    finally:
        _thread.team = before


class _ThreadState(threading.local):
    in_task = False
    team: Team | None = None


class _Job:
    """The ranges of one call, and who is at work on them."""

    __slots__ = ("active", "closed", "error", "idle", "lock", "ranges", "task")

    def __init__(self, task: Task, ranges: list[tuple[int, int]]) -> None:
        self.task: Task | None = task
        self.ranges = ranges[::-1]  # list.pop() is atomic, and takes the last
        self.error: BaseException | None = None
        self.active = 0  # helpers inside work()
        self.closed = False  # the caller has no ranges left; helpers that come now are too late
        self.lock = threading.Lock()  # guards `active`, `closed`; held for an instant
        self.idle = threading.Lock()  # released when the last helper leaves a closed job
        self.idle.acquire()

    def work(self) -> None:
        while self.ranges:
            try:
                begin, end = self.ranges.pop()
            except IndexError:  # taken since
                return
            assert self.task is not None  # it goes when the job is closed and no range is left
            self.task(begin, end)

    def help(self) -> None:
        """What a pool thread does with the job. Raises nothing."""
        with self.lock:
            if self.closed:
                return
            self.active += 1
        try:
            self.work()
        except BaseException as error:
            self.error = error
            self.ranges.clear()
        with self.lock:
            self.active -= 1
            if self.closed and not self.active:
                self.idle.release()

    def wait_for_helpers(self) -> None:
        """Return when no other thread is inside the task, whatever happens: it writes to our arrays."""
        interrupt: BaseException | None = None
        while not self.closed or self.active:
            try:
                self.ranges.clear()  # empty already, unless the caller's own work raised
                with self.lock:
                    self.closed = True
                while self.active:
                    self.idle.acquire()
            except BaseException as error:  # of a signal handler, such as KeyboardInterrupt
                interrupt = error
        self.task = None  # a queue may still hold this job, and the task holds arrays
        if interrupt is not None:
            raise interrupt


class _Pool:
    """Daemon threads that wait for jobs. They start when first needed, and stay."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.threads: list[int] = []  # by their native numbers
        self.avoided: int | None = None  # the core that they are kept off
        self.lock = threading.Lock()

    def submit(self, job: _Job, helpers: int) -> None:
        """Ask `helpers` threads to help. It does not matter when they come, or whether."""
        if len(self.threads) < helpers:
            self._grow(helpers)
        if helpers + 1 >= available_cores():
            self._leave_core_to_caller()
        for _ in range(min(helpers, len(self.threads))):
            self.jobs.put(job)

    def _leave_core_to_caller(self) -> None:
        core = this_core()
        if core is not None and core != self.avoided:
            keep_off(core, self.threads)
            self.avoided = core

    def _grow(self, size: int) -> None:
        with self.lock:
            while len(self.threads) < size:
                name = f"lossforge-{len(self.threads) + 1}"
                thread = threading.Thread(target=_help_forever, args=(self.jobs,), name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads to be had, or the interpreter exits
                    return
                assert thread.native_id is not None  # it has started
                self.threads.append(thread.native_id)
                self.avoided = None


def _help(job: _Job) -> None:
    """What a thread of a team does with a job; it is told apart by nothing from the thread that waits for the team."""
    _thread.in_task = True
    job.help()


def _help_forever(jobs: SimpleQueue[_Job]) -> None:
    _thread.in_task = True
    while True:
        jobs.get().help()


def _start_anew() -> None:
    """In a forked child, which has none of its parent's other threads."""
    global _pool, _thread
    _pool, _thread = _Pool(), _ThreadState()


_pool, _thread = _Pool(), _ThreadState()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
