"""NumPy: no backward pass of its own, so values and gradients are plain functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lossforge.codegen.emitter import assemble, compile_text, emit
from lossforge.codegen.numpy import numpy_backend
from lossforge.dtypes import FLOATS, computing
from lossforge.ir import Kind, Program


class NumPyAdapter:
    """See `lossforge.adapters.base.Adapter`."""

    name = "numpy"

    def is_array(self, value: Any) -> bool:
        """Whether `value` is a NumPy array or scalar."""
        return isinstance(value, np.ndarray | np.generic)

    def dtype(self, array: Any) -> str:
        """The dtype's plain name."""
        return str(np.asarray(array).dtype)

    def shape(self, array: Any) -> tuple[int, ...]:
        """The shape."""
        return np.shape(array)

    def squeeze(self, array: Any, dimensions: Sequence[int]) -> Any:
        """The array without some dimensions of size 1."""
        return np.squeeze(array, axis=tuple(dimensions))

    def out_of_range(self, index: Any, size: int, mask: Any | None) -> tuple[int, int] | None:
        """The extremes of `index` if one lies outside of 0 … size − 1."""
        counted = np.asarray(index) if mask is None else np.asarray(index)[np.asarray(mask, dtype=bool)]
        if counted.size == 0:
            return None
        low, high = int(counted.min()), int(counted.max())
        return (low, high) if low < 0 or high >= size else None

    def call(self, plan: Any, arrays: Sequence[Any]) -> Any:
        """The loss."""
        return self.run(plan.value(), arrays)[0]

    def run(self, program: Program, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The program's outputs."""
        dtypes = [str(np.asarray(a).dtype) for a in arrays]
        ports = program.inputs
        dtype = np.dtype(computing(d for d, p in zip(dtypes, ports, strict=True) if p.order and d in FLOATS))
        ready = [
            np.asarray(a, dtype={Kind.FLOAT: dtype, Kind.INDEX: np.dtype(np.int64), Kind.BOOL: np.dtype(bool)}[p.node.kind])
            for a, p in zip(arrays, ports, strict=True)
        ]
        with np.errstate(all="ignore"):  # inf and NaN are answers here, as in every framework
            found = _compiled(program)(*ready)
        results = found if isinstance(found, tuple) else (found,)
        by_name = {p.name: d for p, d in zip(ports, dtypes, strict=True)}
        wanted = (by_name[n] if n is not None and by_name[n] in FLOATS else dtype for n in program.like)
        return tuple(_as_result(r, w) for r, w in zip(results, wanted, strict=True))


def _as_result(value: Any, dtype: Any) -> Any:
    array = np.asarray(value)
    return array.astype(_numpy_dtype(dtype), copy=False)[()]


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


@lru_cache(maxsize=1024)
def _compiled(program: Program) -> Callable[..., Any]:
    backend = numpy_backend()
    text = assemble(backend, [emit(program, backend)])
    return compile_text(text, "program", "numpy")
