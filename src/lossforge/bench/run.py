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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lossforge.bench.contenders import CONTENDERS, STREAM, streamed
from lossforge.bench.results import Result
from lossforge.bench.workloads import WORKLOADS, Workload, is_own, workload
from lossforge.errors import LossforgeError

PACKAGES = (
    "lossforge", "numpy", "numba", "torch", "jax", "tensorflow", "tensorflow-cpu", "keras", "monai", "liger-kernel",
)  # fmt: skip

Tell = Callable[[str], None]


def bench(
    names: Iterable[str] | None = None,
    *,
    rounds: int = 11,
    only: Sequence[str] | None = None,
    first_calls: bool = True,
    device: str = "cpu",
    tell: Tell = lambda text: None,
) -> list[Result]:
    """Measure workloads. A contender that is not installed, or fails, is a result that says so.

    Args:
        names: which; all that the device has by default.
        rounds: how often each contender runs.
        only: contenders to restrict the run to.
        first_calls: whether to start every contender twice, for its first call with nothing on disk.
        device: "cpu" or "cuda".
        tell: is told what is being done.

    Raises:
        LossforgeError: there is no such workload, contender or device; the streaming pass failed.
    """
    here = {w.name: w.contenders if device == "cpu" else w.on_gpu for w in WORKLOADS}
    chosen = [n for n, who in here.items() if who] if names is None else list(names)
    here |= {n: workload(n).contenders for n in chosen if is_own(n)}
    if unknown := [n for n in chosen if not here.get(n)]:
        raise LossforgeError(f"no workload {unknown[0]!r}; there are {', '.join(n for n, who in here.items() if who)}")
    if unknown := [n for n in only or () if n not in CONTENDERS]:
        raise LossforgeError(f"no contender {unknown[0]!r}; there are {', '.join(CONTENDERS)}")
    if device != "cpu":
        _require_cuda()
    results: list[Result] = []
    for name in chosen:
        who = [c for c in here[name] if only is None or c in only]
        results += _measure(workload(name), who, rounds, first_calls, device, tell)
    return results


def _require_cuda() -> None:
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return
    raise LossforgeError("PyTorch finds no GPU here; leave --device cuda away to measure the CPU")


def _measure(
    work: Workload, who: Sequence[str], rounds: int, first_calls: bool, device: str, tell: Tell
) -> list[Result]:
    found = {c: Result(work.name, c) for c in who}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers: dict[str, _Worker] = {}
        for c in (STREAM.name, *who):
            needs = CONTENDERS[c].requires
            if importlib.util.find_spec(needs) is None:
                found[c] = replace(found[c], problem=f"{needs} is not installed")
                continue
            tell(f"{work.title}: {c} starts")
            try:
                environment = _environment(folder / c.replace(" ", "-"))
                cold = _first_call(work.name, c, device, environment) if first_calls and CONTENDERS[c].keeps else None
                worker = stack.enter_context(_Worker(work.name, c, device, environment))
                ready = worker.answer()
            except _Failure as failure:
                if c == STREAM.name:
                    raise LossforgeError(f"the streaming pass failed: {failure}") from failure
                found[c] = replace(found[c], problem=str(failure))
                continue
            workers[c] = worker
            if c != STREAM.name:
                first = ready["first"] if first_calls else None
                found[c] = replace(
                    found[c], memory=ready["memory"], value=ready["value"], error=ready["error"], ulps=ready["ulps"],
                    cold=cold if CONTENDERS[c].keeps else first, warm=first,
                )  # fmt: skip
        times = _in_turns(work, workers, rounds, found, tell)
    stream = statistics.median(t for t, _ in times.pop(STREAM.name)) * _bytes_beyond_stream(work)
    for c, measured in times.items():
        t, calls = [t for t, _ in measured], [call for _, call in measured if call is not None]
        median = statistics.median(t)
        spread = float((sorted(t)[(3 * len(t)) // 4] - sorted(t)[len(t) // 4]) / median)
        found[c] = replace(
            found[c],
            median=median,
            rounds=tuple(t),
            stream=stream,
            spread=spread,
            call=statistics.median(calls) if calls else None,
        )
    return list(found.values())


def _bytes_beyond_stream(work: Workload) -> float:
    """What the floating inputs and the gradient are, as a multiple of what the stream moves."""
    import numpy as np

    arrays = work.make(np.random.default_rng(0), True)
    moved = sum(a.size for a in arrays.values() if a.dtype.kind == "f")
    gradient = list(arrays.values())[work.wrt].size
    return (moved + gradient) / (sum(a.size for a in streamed(work, arrays)) + gradient)


def _in_turns(
    work: Workload, workers: Mapping[str, _Worker], rounds: int, found: dict[str, Result], tell: Tell
) -> dict[str, list[tuple[float, float | None]]]:
    """The times of each contender that gets through all rounds; what happened to the others goes into `found`."""
    times: dict[str, list[tuple[float, float | None]]] = {c: [] for c in workers}
    for i in range(rounds):
        tell(f"{work.title}: round {i + 1} of {rounds}")
        for c in list(times):
            try:
                times[c].append(workers[c].time())
            except _Failure as failure:
                if c == STREAM.name:
                    raise LossforgeError(f"the streaming pass failed: {failure}") from failure
                del times[c]
                found[c] = Result(work.name, c, str(failure))
    return times


# ------------------------------------------------------------------------------------- processes


class _Failure(Exception):
    """A contender's process ended with an error."""


def _environment(folder: Path) -> dict[str, str]:
    """Caches of its own for a contender, empty at first."""
    return {
        **{k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"},
        "LOSSFORGE_CACHE_DIR": str(folder / "lossforge"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }


def _command(name: str, contender: str, mode: str, device: str) -> list[str]:
    return [sys.executable, "-m", "lossforge.bench.worker", name, contender, mode, device]


def _first_call(name: str, contender: str, device: str, environment: Mapping[str, str]) -> float:
    done = subprocess.run(
        _command(name, contender, "first", device), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise _Failure(_last_line(done.stderr))
    return float(json.loads(done.stdout.splitlines()[-1])["first"])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it ended without a word"


class _Worker:
    """A contender's process."""

    def __init__(self, name: str, contender: str, device: str, environment: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill up
        self._process = subprocess.Popen(
            _command(name, contender, "measure", device), env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def answer(self) -> dict[str, Any]:
        """The next line of JSON; other lines are somebody's remarks."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        self._process.wait()
        self._errors.seek(0)
        raise _Failure(_last_line(self._errors.read()))

    def time(self) -> tuple[float, float | None]:
        """One measurement, in seconds; on a GPU also the time from call to call."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` says why
        found = self.answer()
        return found["time"], found.get("call")


# ------------------------------------------------------------------------------------- the record


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine and the versions that a result was measured with."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": _gpu() if device == "cuda" else _processor(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": found,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _gpu() -> str:
    import torch

    return str(torch.cuda.get_device_name())


def as_json(results: Sequence[Result], known: Mapping[str, Any]) -> str:
    """Results with the machine, as JSON."""
    rows = [{**asdict(r), "multiple": r.multiple} for r in results]
    return json.dumps({"machine": known, "results": rows, "targets": judged(results)}, indent=2)


def judged(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every target of the workloads that ran, what was measured, and whether it is met (None: open). A GPU has none."""
    if any(r.call is not None for r in results):
        return []
    by_name = {(r.workload, r.contender): r for r in results}
    found = []
    for name in dict.fromkeys(r.workload for r in results):
        for target in workload(name).must:
            said, met = target.judge(name, by_name)
            found.append({"workload": name, "must": target.text, "measured": said, "met": met})
    return found
