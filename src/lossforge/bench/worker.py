"""The process of one contender: ``python -m lossforge.bench.worker WORKLOAD CONTENDER MODE DEVICE``.

In the mode ``first`` it times its first call, makes one on the large arrays, so that what it keeps on disk is there for
the next process, and ends. In the mode ``measure`` it times its first call too, then checks its gradient, measures its
memory, and answers each line on its standard input by one measurement of time. Answers are lines of JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lossforge.bench.contenders import CONTENDERS, STREAM, Step
from lossforge.bench.workloads import Arrays, Workload, workload

SEED = 20_240_901
_REPEAT_ON_GPU = 20
"""Steps between two waits: one is prepared while another runs."""


def main(name: str, contender: str, mode: str, device: str) -> None:
    """Run one contender; see the module's text."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.simplefilter("ignore")
    work, who = workload(name), CONTENDERS[contender]
    importlib.import_module(who.requires)
    for module in who.imports:
        importlib.import_module(module)
    few = work.make(np.random.default_rng(SEED), True)
    wait = _wait(device)
    step = who.step(work, few, device)
    start = time.perf_counter()
    value, gradient = step()
    wait()
    first = time.perf_counter() - start
    if mode == "first":
        who.step(work, work.make(np.random.default_rng(SEED), False), device)()
        _answer(first=first)
        return
    judged = gradient is not None and who is not STREAM
    error, ulps = _errors(work, few, who.array(gradient)) if judged else (None, None)
    number = None if who is STREAM else float(np.sum(who.array(value)))
    del step, value, gradient, few
    arrays = work.make(np.random.default_rng(SEED), False)
    step = who.step(work, arrays, device)
    memory = _memory_of(step, device, _size_of_gradient(work, arrays))
    _answer(first=first, error=error, ulps=ulps, memory=memory, value=number)
    for _ in sys.stdin:
        step()  # whoever ran meanwhile has left the caches and the threads to others
        wait()
        if device == "cpu":
            start = time.perf_counter()
            for _ in range(work.repeat):
                step()
            _answer(time=(time.perf_counter() - start) / work.repeat)
        else:
            busy, call = _on_gpu(step, max(work.repeat, _REPEAT_ON_GPU))
            _answer(time=busy, call=call)


def _on_gpu(step: Step, repeat: int) -> tuple[float, float]:
    """What a step keeps the GPU busy for, and the time from step to step where nobody waits in between, in seconds."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    start = time.perf_counter()
    for _ in range(repeat):
        step()
    torch.cuda.synchronize()
    call = (time.perf_counter() - start) / repeat
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(repeat):
            step()
        torch.cuda.synchronize()
    microseconds = sum(event.self_device_time_total for event in seen.key_averages())
    return microseconds * 1e-6 / repeat, call


def _wait(device: str) -> Callable[[], None]:
    """What waits for the device."""
    if device == "cpu":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def _answer(**values: Any) -> None:
    print(json.dumps(values), flush=True)


# ------------------------------------------------------------------------------------- the gradient


def _errors(work: Workload, arrays: Arrays, gradient: np.ndarray) -> tuple[float, float]:
    """The gradient's largest error, relative to its largest entry, and in units of the last place of each entry."""
    import lossforge as lf

    inputs = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays.values()]
    if work.half:
        inputs = [_bfloat16(a) for a in inputs]
    lf.use_kernels(False)
    loss = work.loss()
    exact = loss.value_and_grad(*inputs, wrt=loss.arguments[work.wrt], **work.parameters)[1]
    lf.use_kernels(True)
    wrong = np.abs(gradient.reshape(exact.shape) - exact)
    digits = 8 if work.half else 24
    ulp = np.exp2(np.floor(np.log2(np.maximum(np.abs(exact), np.finfo(np.float32).tiny))) + 1 - digits)
    return float(wrong.max() / np.abs(exact).max()), float((wrong / ulp).max())


def _bfloat16(array: np.ndarray) -> np.ndarray:
    """Values rounded to bfloat16."""
    bits = array.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


# ------------------------------------------------------------------------------------- memory


def _size_of_gradient(work: Workload, arrays: Arrays) -> int:
    prediction = list(arrays.values())[work.wrt]
    return prediction.nbytes // 2 if work.half else prediction.nbytes


def _memory_of(step: Any, device: str, gradient: int) -> int | None:
    """The peak of a step beyond what was there before the first, and beyond the gradient; None if it cannot be told."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        step()
        return int(torch.cuda.max_memory_allocated()) - allocated - gradient
    gc.collect()
    before = _own()
    step()
    if not _reset_peak():
        return None
    step()
    peak, files = _status("VmHWM"), _status("RssFile")
    return None if peak is None or files is None or before is None else peak - files - before - gradient


def _own() -> int | None:
    """What the process holds, but for the pages of files: those of a library appear when its code first runs."""
    everything, files = _status("VmRSS"), _status("RssFile")
    return None if everything is None or files is None else everything - files


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is no such file."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(*sys.argv[1:])
