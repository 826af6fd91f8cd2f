"""TensorFlow's spelling of the operations.

The text runs eagerly, inside `tf.function` and under XLA: sizes are Python numbers where they are known
when it is traced, and scalar tensors elsewhere. Positions are int64 throughout, which a GPU computes
itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from lossforge.codegen.emitter import Backend
from lossforge.ir import Kind

_CALLS = {
    "abs": "tf.abs({0})",
    "maximum": "tf.maximum({0}, {1})",
    "minimum": "tf.minimum({0}, {1})",
    "where": "tf.where({0}, {1}, {2})",
    "sign": "tf.sign({0})",
    "floor": "tf.floor({0})",
    "ceil": "tf.math.ceil({0})",
    "round": "tf.round({0})",
    "exp": "tf.exp({0})",
    "expm1": "tf.math.expm1({0})",
    "log": "tf.math.log({0})",
    "log1p": "tf.math.log1p({0})",
    "sqrt": "tf.sqrt({0})",
    "xlogy": "xlogy({0}, {1})",
    "logaddexp": "logaddexp({0}, {1})",
    "sigmoid": "tf.sigmoid({0})",
    "log_sigmoid": "tf.math.log_sigmoid({0})",
    "softplus": "tf.math.softplus({0})",
    "sin": "tf.sin({0})",
    "cos": "tf.cos({0})",
    "tan": "tf.tan({0})",
    "asin": "tf.asin({0})",
    "acos": "tf.acos({0})",
    "atan": "tf.atan({0})",
    "atan2": "tf.atan2({0}, {1})",
    "sinh": "tf.sinh({0})",
    "cosh": "tf.cosh({0})",
    "tanh": "tf.tanh({0})",
    "asinh": "tf.asinh({0})",
    "acosh": "tf.acosh({0})",
    "atanh": "tf.atanh({0})",
    "erf": "tf.math.erf({0})",
    "erfc": "tf.math.erfc({0})",
    "lgamma": "tf.math.lgamma({0})",
    "digamma": "tf.math.digamma({0})",
    "polygamma": "polygamma({0}, {1})",
}

_SIZES = '''def sizes(x):
    """The shape as a tuple: a number where it is known already, a scalar tensor elsewhere."""
    if x.shape.is_fully_defined():
        return tuple(x.shape)
    now = tf.shape(x, out_type=tf.int64)
    return tuple(now[i] if n is None else n for i, n in enumerate(x.shape))
'''

_XLOGY = '''def xlogy(x, y):
    """x log(y), and 0 where x is 0; NaN where y is NaN."""
    return tf.where(tf.math.is_nan(y), y, tf.math.xlogy(x, y))
'''

_LOGADDEXP = '''def logaddexp(x, y):
    """log(exp(x) + exp(y)), without overflow."""
    top = tf.maximum(x, y)
    gap = tf.abs(x - y)
    return tf.where(tf.math.is_finite(gap), top + tf.math.log1p(tf.exp(-gap)), top)
'''

_POLYGAMMA = '''def polygamma(n, x):
    """The n-th derivative of digamma."""
    return tf.math.polygamma(tf.convert_to_tensor(n, x.dtype), x)
'''

_EXTREME = '''def extreme(reduce, x, axis=None, keepdims=False):
    """tf.reduce_max or tf.reduce_min; NaN where an entry is NaN, which XLA on a CPU would pass over."""
    lost = tf.reduce_any(tf.math.is_nan(x), axis, keepdims)
    return tf.where(lost, tf.constant(float("nan"), x.dtype), reduce(x, axis, keepdims))
'''

_TAKE = '''def take_along(x, index, axis):
    """Entries of x at an index along an axis, NaN where the index is outside; other axes broadcast."""
    shape = sizes(x)
    inside = (index >= 0) & (index < shape[axis])
    place, stride = tf.zeros([], tf.int64), 1  # in the flat array, so that nothing is repeated or transposed
    for i in reversed(range(len(shape))):
        at = tf.range(shape[i], dtype=tf.int64)
        at = tf.reshape(at, [-1 if i == j else 1 for j in range(len(shape))])
        place += stride * (at if i != axis else tf.where(inside, index, 0))
        stride *= shape[i]
    taken = tf.gather(tf.reshape(x, [-1]), place)
    return tf.where(inside, taken, float("nan")) if taken.dtype.is_floating else taken
'''


_PLACE_OF = '''def place_of(find, x, axis):
    """tf.argmax or tf.argmin along an axis, which is kept; of arrays with any number of them."""
    shape = sizes(x)
    flat = tf.reshape(x, (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))
    return tf.reshape(find(flat, 1), (*shape[:axis], 1, *shape[axis + 1 :]))
'''

_STRIDED = '''def strided(x, axis, start, step, count):
    """Entry i along an axis is that of x at start + step * i, and 0 outside of x."""
    shape = sizes(x)
    x = tf.reshape(x, (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))
    span = tf.cast(tf.maximum(step * (count - 1) + 1, 0), tf.int64)
    before, after = tf.maximum(tf.cast(-start, tf.int64), 0), tf.maximum(start + span - shape[axis], 0)
    x = tf.pad(x, [(0, 0), (before, after), (0, 0)])
    first = start + before
    return tf.reshape(x[:, first : first + span : step], (*shape[:axis], count, *shape[axis + 1 :]))
'''

_STRETCHED = '''def stretched(x, axis, step):
    """Every entry followed by step - 1 zeros along an axis."""
    shape = sizes(x)
    x = tf.reshape(x, (math.prod(shape[: axis + 1]), 1, math.prod(shape[axis + 1 :])))
    wide = tf.pad(x, [(0, 0), (0, step - 1), (0, 0)])
    return tf.reshape(wide, (*shape[:axis], step * shape[axis], *shape[axis + 1 :]))
'''


class _TensorFlow(Backend):
    linalg = "tf.linalg"

    def scalar(self, text: str, like: str) -> str:
        return f"tf.convert_to_tensor({text}, {like}.dtype)"

    def cast(self, text: str, like: str) -> str:
        return f"tf.cast({text}, {like}.dtype)"

    def to_index(self, text: str) -> str:
        return f"tf.cast({text}, tf.int64)"

    def shape(self, array: str) -> str:
        return f"sizes({array})"

    def count(self, array: str) -> str:
        return f"math.prod(sizes({array}))"

    def product(self, shape: str) -> str:
        return f"math.prod({shape})"

    def size_as_float(self, text: str, like: str) -> str:
        return f"tf.cast({text}, {like}.dtype)"

    def reshape(self, text: str, shape: str) -> str:
        return f"tf.reshape({text}, {shape})"

    def transpose(self, text: str, order: Sequence[int]) -> str:
        return f"tf.transpose({text}, {tuple(order)})"

    def broadcast(self, text: str, shape: str) -> str:
        return f"tf.broadcast_to({text}, {shape})"

    def reduce(self, op: str, text: str, axes: Sequence[int] | None) -> str:
        if op in ("argmax", "argmin") and axes is not None:
            return f"place_of(tf.{op}, {text}, {axes[0]})"
        where = "" if axes is None else f", {tuple(axes) if len(axes) > 1 else axes[0]}, keepdims=True"
        if op in ("max", "min"):
            return f"extreme(tf.reduce_{op}, {text}{where})"
        return f"tf.reduce_{op}({text}{where})"

    def softmax(self, op: str, text: str, axis: int) -> str:
        return f"tf.nn.{op}({text}, {axis})"

    def iota(self, size: str, shape: str, like: str) -> str:
        return f"tf.reshape(tf.range({size}, dtype=tf.int64), {shape})"

    def take(self, text: str, index: str, axis: int, size: str) -> str:
        return f"take_along({text}, {index}, {axis})"

    def einsum(self, spec: str, x: str, y: str) -> str:
        return f'tf.einsum("{spec}", {x}, {y})'

    def pad(self, text: str, axis: int, before: str, after: str, rank: int) -> str:
        return f"tf.pad({text}, [({before}, {after}) if i == {axis} else (0, 0) for i in range({rank})])"

    def concatenate(self, texts: str, axis: int) -> str:
        return f"tf.concat({texts}, {axis})"

    def cumsum(self, text: str, axis: int) -> str:
        return f"tf.cumsum({text}, {axis})"

    def argsort(self, text: str, axis: int) -> str:
        return f"tf.cast(tf.argsort({text}, {axis}, stable=True), tf.int64)"

    def array(self, values: str, kind: Kind, like: str) -> str:
        dtype = {Kind.FLOAT: f"{like}.dtype", Kind.INDEX: "tf.int64", Kind.BOOL: "tf.bool"}[kind]
        return f"tf.constant({values}, {dtype})"


@cache
def tensorflow_backend() -> Backend:
    """The spelling, with the helpers that TensorFlow lacks."""
    helpers = {
        "sizes": _SIZES,
        "xlogy": _XLOGY,
        "logaddexp": _LOGADDEXP,
        "polygamma": _POLYGAMMA,
        "extreme": _EXTREME,
        "take_along": _TAKE,
        "place_of": _PLACE_OF,
        "strided": _STRIDED,
        "stretched": _STRETCHED,
    }
    return _TensorFlow("tensorflow", ("import math", "", "import tensorflow as tf"), _CALLS, helpers, most_dimensions=8)
