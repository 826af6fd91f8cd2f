"""NumPy's spelling of the operations."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import ClassVar

from lossforge import special
from lossforge.codegen.emitter import Backend
from lossforge.ir import Kind

_CALLS = {
    "abs": "np.abs({0})",
    "maximum": "np.maximum({0}, {1})",
    "minimum": "np.minimum({0}, {1})",
    "clip": "np.clip({0}, {1}, {2})",
    "where": "np.where({0}, {1}, {2})",
    "sign": "np.sign({0})",
    "floor": "np.floor({0})",
    "ceil": "np.ceil({0})",
    "round": "np.round({0})",
    "exp": "np.exp({0})",
    "expm1": "np.expm1({0})",
    "log": "np.log({0})",
    "log1p": "np.log1p({0})",
    "sqrt": "np.sqrt({0})",
    "logaddexp": "np.logaddexp({0}, {1})",
    "sin": "np.sin({0})",
    "cos": "np.cos({0})",
    "tan": "np.tan({0})",
    "asin": "np.arcsin({0})",
    "acos": "np.arccos({0})",
    "atan": "np.arctan({0})",
    "atan2": "np.arctan2({0}, {1})",
    "sinh": "np.sinh({0})",
    "cosh": "np.cosh({0})",
    "tanh": "np.tanh({0})",
    "asinh": "np.arcsinh({0})",
    "acosh": "np.arccosh({0})",
    "atanh": "np.arctanh({0})",
    "xlogy": "xlogy({0}, {1})",
    "sigmoid": "sigmoid({0})",
    "log_sigmoid": "log_sigmoid({0})",
    "softplus": "softplus({0})",
    "erf": "erf({0})",
    "erfc": "erfc({0})",
    "lgamma": "lgamma({0})",
    "digamma": "digamma({0})",
    "polygamma": "polygamma({0}, {1})",
}

_TAKE = '''def take_along(x, index, axis):
    """Entries of x at an index along an axis, NaN where the index is outside; other axes broadcast."""
    inside = (index >= 0) & (index < x.shape[axis])
    shape = list(np.broadcast_shapes(x.shape[:axis], index.shape[:axis]))
    shape += [0, *np.broadcast_shapes(x.shape[axis + 1 :], index.shape[axis + 1 :])]
    wide = np.broadcast_to(x, [x.shape[axis] if i == axis else n for i, n in enumerate(shape)])
    at = np.broadcast_to(np.where(inside, index, 0), [index.shape[axis] if i == axis else n for i, n in enumerate(shape)])
    taken = np.take_along_axis(wide, at, axis)
    return taken if inside.all() else np.where(inside, taken, np.array(np.nan, taken.dtype))
'''


_STRIDED = '''def strided(x, axis, start, step, count):
    """Entry i along an axis is that of x at start + step * i, and 0 outside of x."""
    span = max(step * (count - 1) + 1, 0)
    before, after = max(-start, 0), max(start + span - x.shape[axis], 0)
    if before or after:
        x = np.pad(x, [(before, after) if i == axis else (0, 0) for i in range(x.ndim)])
    first = start + before
    return x[(slice(None),) * axis + (slice(first, first + span, step),)]
'''

_STRETCHED = '''def stretched(x, axis, step):
    """Every entry followed by step - 1 zeros along an axis."""
    wide = np.zeros((*x.shape[:axis], step * x.shape[axis], *x.shape[axis + 1 :]), x.dtype)
    wide[(slice(None),) * axis + (slice(None, None, step),)] = x
    return wide
'''


class _NumPy(Backend):
    linalg = "np.linalg"

    def scalar(self, text: str, like: str) -> str:
        return f"{like}.dtype.type({text})"

    def cast(self, text: str, like: str) -> str:
        return f"{text}.astype({like}.dtype)"

    def to_index(self, text: str) -> str:
        return f"{text}.astype(np.int64)"

    def count(self, array: str) -> str:
        return f"{array}.size"

    def product(self, shape: str) -> str:
        return f"math.prod({shape})"

    def reshape(self, text: str, shape: str) -> str:
        return f"{text}.reshape({shape})"

    def transpose(self, text: str, order: Sequence[int]) -> str:
        return f"{text}.transpose({', '.join(map(str, order))})"

    def broadcast(self, text: str, shape: str) -> str:
        return f"np.broadcast_to({text}, {shape}).copy()"

    def reduce(self, op: str, text: str, axes: Sequence[int] | None) -> str:
        if op == "logsumexp":
            return f"logsumexp({text}, None).reshape(())" if axes is None else f"logsumexp({text}, {tuple(axes)})"
        if op in ("argmax", "argmin") and axes is not None:
            return f"np.{op}({text}, axis={axes[0]}, keepdims=True)"
        where = "" if axes is None else f", axis={tuple(axes) if len(axes) > 1 else axes[0]}, keepdims=True"
        return f"np.{op}({text}{where})"

    def softmax(self, op: str, text: str, axis: int) -> str:
        return f"{op}({text}, {axis})"

    def iota(self, size: str, shape: str, like: str) -> str:
        return f"np.arange({size}).reshape({shape})"

    def take(self, text: str, index: str, axis: int, size: str) -> str:
        return f"take_along({text}, {index}, {axis})"

    def einsum(self, spec: str, x: str, y: str) -> str:
        return f'np.einsum("{spec}", {x}, {y}, optimize=True)'

    def pad(self, text: str, axis: int, before: str, after: str, rank: int) -> str:
        return f"np.pad({text}, [({before}, {after}) if i == {axis} else (0, 0) for i in range({rank})])"

    def concatenate(self, texts: str, axis: int) -> str:
        return f"np.concatenate({texts}, {axis})"

    def cumsum(self, text: str, axis: int) -> str:
        return f"np.cumsum({text}, axis={axis})"

    def argsort(self, text: str, axis: int) -> str:
        return f'np.argsort({text}, axis={axis}, kind="stable")'

    def array(self, values: str, kind: Kind, like: str) -> str:
        dtype = {Kind.FLOAT: f"{like}.dtype", Kind.INDEX: "np.int64", Kind.BOOL: "bool"}[kind]
        return f"np.array({values}, {dtype})"


class _Helpers(Mapping[str, str]):
    """The helpers by name: functions of `special`, whose text is looked up only when it is asked for, and others."""

    _special = (
        "sigmoid", "log_sigmoid", "softplus", "xlogy", "logsumexp", "softmax", "log_softmax",
        "erf", "erfc", "lgamma", "digamma", "polygamma",
    )  # fmt: skip
    _others: ClassVar[Mapping[str, str]] = {"take_along": _TAKE, "strided": _STRIDED, "stretched": _STRETCHED}

    def __getitem__(self, name: str) -> str:
        return inspect.getsource(getattr(special, name)) if name in self._special else self._others[name]

    def __iter__(self) -> Iterator[str]:
        yield from (*self._special, *self._others)

    def __len__(self) -> int:
        return len(self._special) + len(self._others)


@cache
def numpy_backend() -> Backend:
    """The spelling, with the helpers that NumPy lacks."""
    return _NumPy("numpy", ("import math", "", "import numpy as np"), _CALLS, _Helpers())
