"""JAX's spelling of the operations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from lossforge.codegen.emitter import Backend
from lossforge.ir import Kind

_CALLS = {
    "abs": "jnp.abs({0})",
    "maximum": "jnp.maximum({0}, {1})",
    "minimum": "jnp.minimum({0}, {1})",
    "clip": "jnp.clip({0}, {1}, {2})",
    "where": "jnp.where({0}, {1}, {2})",
    "sign": "jnp.sign({0})",
    "floor": "jnp.floor({0})",
    "ceil": "jnp.ceil({0})",
    "round": "jnp.round({0})",
    "exp": "jnp.exp({0})",
    "expm1": "jnp.expm1({0})",
    "log": "jnp.log({0})",
    "log1p": "jnp.log1p({0})",
    "sqrt": "jnp.sqrt({0})",
    "logaddexp": "jnp.logaddexp({0}, {1})",
    "sin": "jnp.sin({0})",
    "cos": "jnp.cos({0})",
    "tan": "jnp.tan({0})",
    "asin": "jnp.arcsin({0})",
    "acos": "jnp.arccos({0})",
    "atan": "jnp.arctan({0})",
    "atan2": "jnp.arctan2({0}, {1})",
    "sinh": "jnp.sinh({0})",
    "cosh": "jnp.cosh({0})",
    "tanh": "jnp.tanh({0})",
    "asinh": "jnp.arcsinh({0})",
    "acosh": "jnp.arccosh({0})",
    "atanh": "jnp.arctanh({0})",
    "xlogy": "jax.scipy.special.xlogy({0}, {1})",
    "sigmoid": "jax.nn.sigmoid({0})",
    "log_sigmoid": "jax.nn.log_sigmoid({0})",
    "softplus": "jax.nn.softplus({0})",
    "erf": "jax.scipy.special.erf({0})",
    "erfc": "jax.scipy.special.erfc({0})",
    "lgamma": "jax.scipy.special.gammaln({0})",
    "digamma": "jax.scipy.special.digamma({0})",
    "polygamma": "jax.scipy.special.polygamma(int({0}), {1})",
}

# take_along_axis counts negative indices from the end; here they are outside, as those beyond the end are.
_TAKE = '''def take_along(x, index, axis):
    """Entries of x at an index along an axis, NaN where the index is outside; other axes broadcast."""
    index = jnp.where(index < 0, x.shape[axis], index)
    return jnp.take_along_axis(x, index, axis, mode="fill")
'''


_STRIDED = '''def strided(x, axis, start, step, count):
    """Entry i along an axis is that of x at start + step * i, and 0 outside of x."""
    after = start + step * (count - 1) + 1 - x.shape[axis]  # a negative number of zeros takes entries away
    ends = [(-start, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ends)
    return x if step == 1 else x[(slice(None),) * axis + (slice(None, None, step),)]
'''

_STRETCHED = '''def stretched(x, axis, step):
    """Every entry followed by step - 1 zeros along an axis."""
    between = [(0, step - 1, step - 1) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), between)
'''


class _JAX(Backend):
    linalg = "jnp.linalg"

    def scalar(self, text: str, like: str) -> str:
        return f"jnp.asarray({text}, {like}.dtype)"

    def cast(self, text: str, like: str) -> str:
        return f"{text}.astype({like}.dtype)"

    def to_index(self, text: str) -> str:
        return f"{text}.astype(int)"

    def count(self, array: str) -> str:
        return f"{array}.size"

    def product(self, shape: str) -> str:
        return f"math.prod({shape})"

    def size_as_float(self, text: str, like: str) -> str:
        # A plain int is refused beyond 2**31; float() would refuse the symbolic sizes of jax.export.
        return f"(1.0 * {text})"

    def reshape(self, text: str, shape: str) -> str:
        return f"{text}.reshape({shape})"

    def transpose(self, text: str, order: Sequence[int]) -> str:
        return f"{text}.transpose({', '.join(map(str, order))})"

    def broadcast(self, text: str, shape: str) -> str:
        return f"jnp.broadcast_to({text}, {shape})"

    def reduce(self, op: str, text: str, axes: Sequence[int] | None) -> str:
        function = f"jax.nn.{op}" if op == "logsumexp" else f"jnp.{op}"
        if axes is None:
            return f"{function}({text})"
        return f"{function}({text}, axis={tuple(axes) if len(axes) > 1 else axes[0]}, keepdims=True)"

    def softmax(self, op: str, text: str, axis: int) -> str:
        return f"jax.nn.{op}({text}, axis={axis})"

    def iota(self, size: str, shape: str, like: str) -> str:
        return f"jnp.arange({size}).reshape({shape})"

    def take(self, text: str, index: str, axis: int, size: str) -> str:
        return f"take_along({text}, {index}, {axis})"

    def einsum(self, spec: str, x: str, y: str) -> str:
        # An accelerator's default precision for matrix products keeps three digits.
        return f'jnp.einsum("{spec}", {x}, {y}, precision="highest")'

    def pad(self, text: str, axis: int, before: str, after: str, rank: int) -> str:
        return f"jnp.pad({text}, [({before}, {after}) if i == {axis} else (0, 0) for i in range({rank})])"

    def concatenate(self, texts: str, axis: int) -> str:
        return f"jnp.concatenate({texts}, {axis})"

    def cumsum(self, text: str, axis: int) -> str:
        return f"jnp.cumsum({text}, axis={axis})"

    def argsort(self, text: str, axis: int) -> str:
        return f"jnp.argsort({text}, axis={axis}, stable=True)"

    def array(self, values: str, kind: Kind, like: str) -> str:
        dtype = {Kind.FLOAT: f"{like}.dtype", Kind.INDEX: "int", Kind.BOOL: "bool"}[kind]
        return f"jnp.array({values}, {dtype})"


@cache
def jax_backend() -> Backend:
    """The spelling, with the helpers that JAX lacks."""
    imports = ("import math", "", "import jax", "import jax.numpy as jnp")
    helpers = {"take_along": _TAKE, "strided": _STRIDED, "stretched": _STRETCHED}
    return _JAX("jax", imports, _CALLS, helpers)
