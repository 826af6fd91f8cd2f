"""Running the workloads, in turns, and what comes of it."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lossforge.bench.contenders import CONTENDERS
from lossforge.bench.workloads import WORKLOADS, Workload, is_own, workload
from lossforge.errors import LossforgeError

PACKAGES = ("lossforge", "numpy", "numba", "torch", "jax", "tensorflow", "tensorflow-cpu", "keras", "monai")


@dataclass(frozen=True)
class Result:
    """One contender on one workload. Times in seconds, memory in bytes."""

    workload: str
    contender: str
    median: float
    stream: float
    """The median time of a pass that moves the same bytes, in the same run."""
    memory: int | None
    """Peak beyond the inputs."""
    cold: float | None
    """The first call of a new process with nothing cached, imports aside."""
    warm: float | None
    """The first call of a new process with what the last one left on disk."""
    value: float

    @property
    def multiple(self) -> float:
        """The median as a multiple of the stream's."""
        return self.median / self.stream


def contenders(work: Workload) -> list[str]:
    """Who of those named is installed, lossforge first."""
    names = ["lossforge numpy"] if work.through_numpy else []
    names += ["lossforge torch", *work.peers]
    return [n for n in names if importlib.util.find_spec(CONTENDERS[n][0]) is not None]


def machine() -> dict[str, Any]:
    """The machine and the versions that a result was measured with."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": processor, "cores": cores, "system": platform.platform(), "python": platform.python_version(),
            "versions": found}  # fmt: skip


def bench(
    names: Iterable[str] | None = None,
    *,
    rounds: int = 15,
    only: Sequence[str] | None = None,
    first_calls: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Measure workloads.

    Args:
        names: which; all by default.
        rounds: how often each contender runs.
        only: contenders to restrict the run to.
        first_calls: whether to measure first calls too, in processes of their own.
        tell: is told what is being done.

    Raises:
        LossforgeError: a workload of that name does not exist, or a contender ended with an error.
    """
    known = {w.name for w in WORKLOADS}
    chosen = [w.name for w in WORKLOADS] if names is None else list(names)
    if unknown := [n for n in chosen if n not in known and not is_own(n)]:
        raise LossforgeError(f"no workload {unknown[0]!r}; there are {', '.join(w.name for w in WORKLOADS)}")
    results: list[Result] = []
    for name in chosen:
        work = workload(name)
        who = [c for c in contenders(work) if only is None or c in only]
        results += _measure(work, who, rounds, first_calls, tell)
    return results


def _measure(
    work: Workload, who: Sequence[str], rounds: int, first_calls: bool, tell: Callable[[str], None]
) -> list[Result]:
    firsts = {}
    for c in who if first_calls else ():
        tell(f"{work.title}: first call of {c}")
        firsts[c] = _first_calls(work.name, c)
    tell(f"{work.title}: starting {len(who) + 1} processes")
    workers = {c: _Worker(work.name, c) for c in ("stream", *who)}
    times: dict[str, list[float]] = {c: [] for c in workers}
    try:
        for w in workers.values():
            w.ready()
        for i in range(rounds):
            tell(f"{work.title}: round {i + 1} of {rounds}")
            for c, w in workers.items():
                times[c].append(w.time())
    finally:
        for w in workers.values():
            w.stop()
    scale = _bytes_beyond_stream(work)
    stream = statistics.median(times["stream"]) * scale
    return [
        Result(
            workload=work.name,
            contender=c,
            median=statistics.median(times[c]),
            stream=stream,
            memory=workers[c].memory,
            cold=firsts[c][0] if c in firsts else None,
            warm=firsts[c][1] if c in firsts else None,
            value=workers[c].value,
        )
        for c in who
    ]


def _bytes_beyond_stream(work: Workload) -> float:
    """The stream reads two arrays like the prediction at most; a workload with more moves more bytes."""
    import numpy as np

    arrays = list(work.make(np.random.default_rng(0), True).values())
    prediction = arrays[work.wrt]
    floats = [a for a in arrays if a.dtype.kind == "f"]
    like = [a for a in floats if a.shape == prediction.shape]
    return (sum(a.size for a in floats) + prediction.size) / ((min(len(like), 2) + 1) * prediction.size)


def _first_calls(name: str, contender: str) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        env = {"LOSSFORGE_CACHE_DIR": f"{folder}/lossforge", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
        cold, warm = (_run_once(name, contender, env) for _ in range(2))
    return cold, warm


def _run_once(name: str, contender: str, env: dict[str, str]) -> float:
    done = subprocess.run(
        _command(name, contender, "first"), env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LossforgeError(f"{contender} failed on {name}:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["first"])


def _command(name: str, contender: str, mode: str) -> list[str]:
    return [sys.executable, "-m", "lossforge.bench.worker", name, contender, mode]


class _Worker:
    """A contender's process."""

    def __init__(self, name: str, contender: str) -> None:
        self.contender = contender
        self._process = subprocess.Popen(
            _command(name, contender, "measure"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.memory: int | None = None
        self.value = float("nan")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            raise LossforgeError(f"{self.contender} failed:\n{self._process.stderr.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ready(self) -> None:
        """Wait until the inputs are made and the first calls are done."""
        answer = self._answer()
        self.memory, self.value = answer["memory"], answer["value"]

    def time(self) -> float:
        """One measurement, in seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer()["time"])

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def as_json(results: Sequence[Result]) -> str:
    """Results with the machine, as JSON."""
    rows = [{**asdict(r), "multiple": r.multiple} for r in results]
    return json.dumps({"machine": machine(), "results": rows}, indent=2)
