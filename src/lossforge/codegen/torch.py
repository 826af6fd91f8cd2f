"""PyTorch's spelling of the operations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from lossforge.codegen.emitter import Backend
from lossforge.ir import Kind

_CALLS = {
    "abs": "torch.abs({0})",
    "maximum": "torch.maximum({0}, {1})",
    "minimum": "torch.minimum({0}, {1})",
    "clip": "torch.clamp({0}, {1}, {2})",
    "where": "torch.where({0}, {1}, {2})",
    "sign": "sign({0})",
    "floor": "torch.floor({0})",
    "ceil": "torch.ceil({0})",
    "round": "torch.round({0})",
    "exp": "torch.exp({0})",
    "expm1": "torch.expm1({0})",
    "log": "torch.log({0})",
    "log1p": "torch.log1p({0})",
    "sqrt": "torch.sqrt({0})",
    "logaddexp": "torch.logaddexp({0}, {1})",
    "sin": "torch.sin({0})",
    "cos": "torch.cos({0})",
    "tan": "torch.tan({0})",
    "asin": "torch.asin({0})",
    "acos": "torch.acos({0})",
    "atan": "torch.atan({0})",
    "atan2": "torch.atan2({0}, {1})",
    "sinh": "torch.sinh({0})",
    "cosh": "torch.cosh({0})",
    "tanh": "torch.tanh({0})",
    "asinh": "torch.asinh({0})",
    "acosh": "torch.acosh({0})",
    "atanh": "torch.atanh({0})",
    "xlogy": "torch.xlogy({0}, {1})",
    "sigmoid": "torch.sigmoid({0})",
    "log_sigmoid": "torch.nn.functional.logsigmoid({0})",
    # torch's own softplus is the identity above 20, which float64 can tell from the truth.
    "softplus": "-torch.nn.functional.logsigmoid(-({0}))",
    "erf": "torch.erf({0})",
    "erfc": "torch.erfc({0})",
    "lgamma": "torch.lgamma({0})",
    "digamma": "torch.digamma({0})",
    "polygamma": "torch.polygamma(int({0}), {1})",
}

_HELPERS = {
    "sign": '''def sign(x):
    """−1, 0 or 1, and NaN for NaN, which torch.sign takes for 0."""
    return torch.where(torch.isnan(x), x, torch.sign(x))
''',
    "take_along": '''def take_along(x, index, axis):
    """Entries of x at an index along an axis, NaN where the index is outside; other axes broadcast."""
    inside = (index >= 0) & (index < x.shape[axis])
    sizes = [n if m == 1 else m for m, n in zip(x.shape, index.shape)]
    x = x.expand(sizes[:axis] + [x.shape[axis]] + sizes[axis + 1 :])
    inside = inside.expand(sizes[:axis] + [index.shape[axis]] + sizes[axis + 1 :])
    taken = torch.gather(x, axis, torch.where(inside, index, 0))
    return torch.where(inside, taken, float("nan")) if taken.is_floating_point() else taken
''',
}


_HELPERS["strided"] = '''def strided(x, axis, start, step, count):
    """Entry i along an axis is that of x at start + step * i, and 0 outside of x."""
    after = start + max(step * (count - 1) + 1, 0) - x.shape[axis]
    if start or after:  # a negative number of zeros takes entries away
        x = torch.nn.functional.pad(x, (0, 0) * (x.dim() - 1 - axis) + (-start, after))
    return x if step == 1 else x[(slice(None),) * axis + (slice(None, None, step),)]
'''
_HELPERS["stretched"] = '''def stretched(x, axis, step):
    """Every entry followed by step - 1 zeros along an axis."""
    wide = torch.nn.functional.pad(x.unsqueeze(axis + 1), (0, 0) * (x.dim() - 1 - axis) + (0, step - 1))
    return wide.flatten(axis, axis + 1)
'''


class _Torch(Backend):
    linalg = "torch.linalg"

    def scalar(self, text: str, like: str) -> str:
        return f"{like}.new_full((), {text})"

    def parameter(self, name: str, like: str) -> str:
        return f"torch.as_tensor({name}, dtype={like}.dtype, device={like}.device)"

    def truth(self, text: str, like: str) -> str:
        return f"{like}.new_full((), {text}, dtype=torch.bool)"

    def cast(self, text: str, like: str) -> str:
        return f"{text}.to({like}.dtype)"

    def to_index(self, text: str) -> str:
        return f"{text}.to(torch.int64)"

    def count(self, array: str) -> str:
        return f"{array}.numel()"

    def product(self, shape: str) -> str:
        return f"math.prod({shape})"

    def reshape(self, text: str, shape: str) -> str:
        return f"{text}.reshape({shape})"

    def transpose(self, text: str, order: Sequence[int]) -> str:
        return f"{text}.permute({', '.join(map(str, order))})"

    def broadcast(self, text: str, shape: str) -> str:
        return f"{text}.expand({shape}).contiguous()"

    def swap(self, text: str, i: int, j: int, rank: int) -> str:
        return f"{text}.transpose({i}, {j})"

    def reduce(self, op: str, text: str, axes: Sequence[int] | None) -> str:
        name = {"max": "amax", "min": "amin"}.get(op, op)
        if axes is None:
            if op == "logsumexp":
                return f"torch.logsumexp({text}.reshape(-1), 0)"
            return f"torch.{name}({text})"
        if op == "prod":  # along one dimension at a time
            for axis in axes:
                text = f"torch.prod({text}, dim={axis}, keepdim=True)"
            return text
        return f"torch.{name}({text}, dim={tuple(axes) if len(axes) > 1 else axes[0]}, keepdim=True)"

    def softmax(self, op: str, text: str, axis: int) -> str:
        return f"torch.{op}({text}, dim={axis})"

    def iota(self, size: str, shape: str, like: str) -> str:
        return f"torch.arange({size}, device={like}.device).reshape({shape})"

    def take(self, text: str, index: str, axis: int, size: str) -> str:
        return f"take_along({text}, {index}, {axis})"

    def einsum(self, spec: str, x: str, y: str) -> str:
        return f'torch.einsum("{spec}", {x}, {y})'

    def pad(self, text: str, axis: int, before: str, after: str, rank: int) -> str:
        zeros = "0, " * (2 * (rank - 1 - axis))
        return f"torch.nn.functional.pad({text}, ({zeros}{before}, {after}))"

    def flip(self, text: str, axis: int) -> str:
        return f"{text}.flip({axis})"

    def concatenate(self, texts: str, axis: int) -> str:
        return f"torch.cat({texts}, {axis})"

    def cumsum(self, text: str, axis: int) -> str:
        return f"torch.cumsum({text}, {axis})"

    def argsort(self, text: str, axis: int) -> str:
        return f"torch.argsort({text}, dim={axis}, stable=True)"

    def array(self, values: str, kind: Kind, like: str) -> str:
        dtype = {Kind.FLOAT: f"{like}.dtype", Kind.INDEX: "torch.int64", Kind.BOOL: "torch.bool"}[kind]
        return f"torch.tensor({values}, dtype={dtype}, device={like}.device)"


@cache
def torch_backend() -> Backend:
    """The spelling, with the helpers that PyTorch lacks."""
    return _Torch("torch", ("import math", "", "import torch"), _CALLS, _HELPERS)
