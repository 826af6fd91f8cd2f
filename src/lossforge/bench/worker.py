"""The process of one contender: ``python -m lossforge.bench.worker WORKLOAD CONTENDER MODE``.

In the mode ``measure`` it answers each line on its standard input by one measurement; in the mode ``first`` it times
its first call and ends. Answers are lines of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lossforge.bench.contenders import CONTENDERS
from lossforge.bench.workloads import workload

SEED = 20_240_901


def _answer(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def _memory(field: str) -> int | None:
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


def main(name: str, contender: str, mode: str) -> None:
    """Run one contender; see the module's text."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    work = workload(name)
    module, build = CONTENDERS[contender]
    importlib.import_module(module)
    if contender.startswith("lossforge"):
        importlib.import_module("numba")
    if mode == "first":
        step = build(work, work.make(np.random.default_rng(SEED), True))
        start = time.perf_counter()
        step()
        _answer(first=time.perf_counter() - start)
        return
    # A call on small inputs first, so that what a library loads or compiles once is not counted as the loss's memory.
    warm = build(work, work.make(np.random.default_rng(SEED), True))
    warm()
    arrays = work.make(np.random.default_rng(SEED), False)
    step = build(work, arrays)
    before = _memory("VmRSS")
    value = step()
    counted = _reset_peak()
    step()
    peak = _memory("VmHWM")
    beyond = peak - before if counted and peak is not None and before is not None else None
    _answer(ready=True, value=value, memory=beyond)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(work.repeat):
            step()
        _answer(time=(time.perf_counter() - start) / work.repeat)


if __name__ == "__main__":
    main(*sys.argv[1:])
