"""PyTorch's threads at work for kernels: every range is done exactly once, and nobody waits in vain."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import lossforge as lf
from lossforge.runtime import openmp, threads
from lossforge.runtime.openmp import Team
from lossforge.runtime.threads import CROSSOVER, run_chunks, set_num_threads, working_in

torch = pytest.importorskip("torch")

PARALLEL = 100 * CROSSOVER
PATIENCE = 60.0


@pytest.fixture
def team() -> Iterator[Team]:
    found = openmp.team_of(os.path.dirname(torch.__file__))
    if found is None:
        pytest.skip("PyTorch's threads are not OpenMP's here, or that lacks GNU's interface")
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield found
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_limit", 3)


@pytest.mark.parametrize("wanted", [1, 2, 4, 9])
def test_as_many_threads_as_are_wanted_work(team: Team, wanted: int) -> None:
    expected = min(wanted, team.size)
    together = threading.Barrier(expected, timeout=PATIENCE)
    seen: list[int] = []

    def work() -> None:
        seen.append(threading.get_native_id())
        together.wait()  # broken unless they are here at once

    team.run(work, wanted)
    assert len(seen) == len(set(seen)) == expected and not together.broken


def test_the_team_is_that_of_the_package(team: Team) -> None:
    """Other packages bring an OpenMP library of their own, and whichever was loaded first is found first."""
    pytest.importorskip("sklearn")
    program = (
        "import os, sklearn.cluster, torch\n"
        "from lossforge.runtime.openmp import team_of\n"
        "team = team_of(os.path.dirname(torch.__file__))\n"
        "for n in (3, 5):\n    torch.set_num_threads(n)\n    print(team.size)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.split() == ["3", "5"]


def test_ranges_are_done_once_and_by_the_team(team: Team) -> None:
    ranges: list[tuple[int, int]] = []
    first, seen = threading.local(), set()
    together = threading.Barrier(3, timeout=PATIENCE)

    def task(begin: int, end: int) -> None:
        ranges.append((begin, end))
        seen.add(threading.current_thread().name)
        run_chunks(lambda a, b: None, 100, 1, cost=PARALLEL)  # a task within a task stays in its thread
        if not hasattr(first, "done"):
            first.done = True
            together.wait()

    with working_in(team):
        run_chunks(task, 1000, 7, cost=PARALLEL)
    assert np.concatenate([np.arange(*r) for r in sorted(ranges)]).tolist() == list(range(1000))
    assert not any(name.startswith("lossforge") for name in seen)
    names: set[str] = set()
    run_chunks(lambda a, b: names.add(threading.current_thread().name), 1000, 7, cost=PARALLEL)
    assert names  # the caller's own pool serves it again


@pytest.mark.parametrize("kind", [ArithmeticError, KeyboardInterrupt])
def test_an_exception_reaches_the_caller(team: Team, kind: type[BaseException]) -> None:
    def task(begin: int, end: int) -> None:
        raise kind("on purpose")

    with working_in(team):
        with pytest.raises(kind, match="on purpose"):
            run_chunks(task, 200, 1, cost=PARALLEL)
        done: list[int] = []
        run_chunks(lambda begin, end: done.append(end - begin), 200, 1, cost=PARALLEL)
    assert sum(done) == 200


def test_callers_on_many_threads(team: Team) -> None:
    totals: list[int] = []

    def call() -> None:
        done: list[int] = []
        with working_in(team):
            for _ in range(20):
                run_chunks(lambda begin, end: done.append(end - begin), 50, 1, cost=PARALLEL)
        totals.append(sum(done))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE)
    assert totals == [1000] * 4


def test_without_threads_of_its_own_the_pool_serves(team: Team) -> None:
    torch.set_num_threads(1)
    first, names = threading.local(), set()
    together = threading.Barrier(3, timeout=PATIENCE)

    def task(begin: int, end: int) -> None:
        if not hasattr(first, "done"):
            first.done = True
            names.add(threading.current_thread().name)
            together.wait()

    with working_in(team):
        run_chunks(task, 1000, 7, cost=PARALLEL)
    assert sum(name.startswith("lossforge") for name in names) == 2


def test_a_loss_of_tensors_is_the_same_bits_by_either(team: Team, rng: np.random.Generator) -> None:
    @lf.loss("batch class, batch -> batch")
    def cross_entropy(logits, target):
        return -lf.take(lf.log_softmax(logits, "class"), target, "class")

    logits, target = rng.standard_normal((3000, 200), dtype=np.float32), rng.integers(0, 200, 3000)
    by_pool = cross_entropy.value_and_grad(logits, target)
    tensor = torch.from_numpy(logits).requires_grad_()
    value = cross_entropy(tensor, torch.from_numpy(target))
    value.backward()
    assert value.item() == np.float32(by_pool[0])
    np.testing.assert_array_equal(tensor.grad.numpy(), by_pool[1])
    set_num_threads(1)
    tensor.grad = None
    cross_entropy(tensor, torch.from_numpy(target)).backward()
    np.testing.assert_array_equal(tensor.grad.numpy(), by_pool[1])
