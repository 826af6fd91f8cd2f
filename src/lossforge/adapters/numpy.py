"""NumPy: no backward pass of its own, so values and gradients are plain functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lossforge.adapters.base import Adapter
from lossforge.codegen.emitter import assemble, compile_text, emit
from lossforge.codegen.numpy import numpy_backend
from lossforge.dtypes import FLOATS, Computing, computing
from lossforge.ir import Kind, Program


class NumPyAdapter(Adapter):
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
        """The program's outputs; a number for one without dimensions."""
        ready = [np.asarray(a) if p.order else a for a, p in zip(arrays, program.inputs, strict=True)]
        return tuple(r if r.ndim else r[()] for r in evaluate(program, ready))


def evaluate(program: Program, arrays: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """The program's outputs for NumPy arrays (and numbers for parameters), by kernels where they spell it."""
    ports = program.inputs
    real, results, formats = _precisions(
        program, tuple(a.dtype if p.order else None for a, p in zip(arrays, ports, strict=True))
    )
    from lossforge import kernels

    bits = [a.view(np.uint16) if f == "bfloat16" else a for a, f in zip(arrays, formats, strict=True)]
    found = kernels.attempt(program, bits, real, results, formats)
    if found is not None:
        return tuple(f.view(_numpy_dtype(d)) if d == "bfloat16" else f for f, d in zip(found, results, strict=True))
    return by_operations(program, arrays)


def by_operations(program: Program, arrays: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """The program's outputs by NumPy's own operations."""
    ports = program.inputs
    real, results, _ = _precisions(
        program, tuple(a.dtype if p.order else None for a, p in zip(arrays, ports, strict=True))
    )
    dtype = np.dtype("float64" if program.delicate else real)
    by_kind = {Kind.FLOAT: dtype, Kind.INDEX: np.dtype(np.int64), Kind.BOOL: np.dtype(bool)}
    converted = [np.asarray(a, dtype=by_kind[p.node.kind]) for a, p in zip(arrays, ports, strict=True)]
    with np.errstate(all="ignore"):  # inf and NaN are answers here, as in every framework
        text = _compiled(program)(*converted)
    values = text if isinstance(text, tuple) else (text,)
    return tuple(
        np.asarray(v).astype(_numpy_dtype(d or real), copy=False) for v, d in zip(values, results, strict=True)
    )


@lru_cache(maxsize=1024)
def _precisions(
    program: Program, dtypes: tuple[np.dtype[Any] | None, ...]
) -> tuple[Computing, tuple[str | None, ...], tuple[str | None, ...]]:
    """The precision to compute in, the dtype of each output (None: that one), and of each input."""
    formats = tuple(None if d is None else str(d) for d in dtypes)
    by_name = {p.name: f for p, f in zip(program.inputs, formats, strict=True)}
    real = computing(f for f in formats if f in FLOATS)
    like = [by_name.get(n) if n is not None else None for n in program.like]
    return real, tuple(d if d in FLOATS else None for d in like), formats


def _numpy_dtype(dtype: str) -> np.dtype[Any]:
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


@lru_cache(maxsize=1024)
def _compiled(program: Program) -> Callable[..., Any]:
    backend = numpy_backend()
    text = assemble(backend, [emit(program, backend)])
    return compile_text(text, "program", "numpy")
