"""What every framework's adapter provides, and how the right one is found.

To add a framework: write a module with a class that implements `Adapter`, and add one line to `_KNOWN`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

from lossforge.errors import FrameworkError

if TYPE_CHECKING:
    from lossforge.compiler import Plan
    from lossforge.ir import Program


class Adapter(Protocol):
    """One framework's arrays, and the loss in its backward pass."""

    name: str

    def is_array(self, value: Any) -> bool:
        """Whether `value` is one of the framework's arrays."""

    def dtype(self, array: Any) -> str:
        """The dtype's plain name, such as "float32"."""

    def shape(self, array: Any) -> tuple[int | None, ...]:
        """The shape; None for a size that is not known yet."""

    def squeeze(self, array: Any, dimensions: Sequence[int]) -> Any:
        """The array without some dimensions of size 1."""

    def out_of_range(self, index: Any, size: int, mask: Any | None) -> tuple[int, int] | None:
        """The smallest and the largest entry of `index` if one lies outside of 0 … size − 1 (where `mask` holds).

        None if all are inside, or if the values are not known (under tracing); a traced program then yields NaN for
        such an entry.
        """

    def form(self, array: Any) -> tuple[Hashable, ...]:
        """What of an array decides how a call with it is bound and run; calls of one form are remembered."""
        return array.dtype, array.shape

    def call(self, plan: Plan, arrays: Sequence[Any]) -> Any:
        """The loss, differentiable by the framework's own backward pass."""

    def ready(self, plan: Plan, arrays: Sequence[Any]) -> Callable[[Sequence[Any]], Any] | None:
        """`call` for arrays of the same forms as these, decided as far as can be; None where that has to wait."""
        return partial(self.call, plan)

    def run(self, program: Program, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The program's outputs, without a backward pass. Gradients have the dtype of what they belong to."""


_KNOWN: tuple[tuple[str, str, str], ...] = (
    # root module of the array's type, adapter module, adapter class
    ("numpy", "lossforge.adapters.numpy", "NumPyAdapter"),
    ("torch", "lossforge.adapters.torch", "TorchAdapter"),
    ("tensorflow", "lossforge.adapters.tensorflow", "TensorFlowAdapter"),
    ("jax", "lossforge.adapters.jax", "JaxAdapter"),
)


@cache
def adapter(name: str) -> Adapter:
    """The adapter of the framework called `name`."""
    for root, module, cls in _KNOWN:
        if root == name:
            found: Adapter = getattr(importlib.import_module(module), cls)()
            return found
    raise FrameworkError(f"no framework {name!r}; known are {', '.join(k[0] for k in _KNOWN)}")


@cache
def _root(kind: Any) -> str | None:
    """The framework that a type of array belongs to, without importing any."""
    for base in kind.__mro__:
        root = base.__module__.partition(".")[0]
        if root == "jaxlib":
            root = "jax"
        if any(root == known for known, _, _ in _KNOWN) and root in sys.modules and adapter_type(root, kind):
            return root
    return None


def adapter_type(root: str, kind: type) -> bool:
    """Whether `kind` is an array type of the framework (and not another class defined there)."""
    if root == "numpy":
        import numpy as np

        return issubclass(kind, np.ndarray | np.generic)
    if root == "torch":
        return issubclass(kind, sys.modules["torch"].Tensor)
    if root == "tensorflow":
        return issubclass(kind, sys.modules["tensorflow"].__internal__.types.Tensor)  # Keras' variables too
    jax = sys.modules["jax"]
    return issubclass(kind, jax.Array | jax.core.Tracer)


@cache
def form_of(kind: Any) -> Callable[[Any], tuple[Hashable, ...]] | None:
    """`Adapter.form` for a type of a framework's plain arrays, whose calls are remembered; None for other types."""
    if (kind.__module__, kind.__name__) not in _REMEMBERED:
        return None
    root = _root(kind)
    return None if root is None else adapter(root).form


_REMEMBERED = frozenset({("numpy", "ndarray"), ("torch", "Tensor"), ("torch.nn.parameter", "Parameter")})


def framework_of(loss: str, values: Iterable[tuple[str, Any]]) -> Adapter:
    """The one framework that all arrays of a call belong to; Python numbers and lists belong to none.

    Raises:
        FrameworkError: arrays of several frameworks, or something that is not an array.
    """
    found: dict[str, str] = {}
    for name, value in values:
        if value is None or isinstance(value, bool | int | float | list | tuple):
            continue
        kind: Any = type(value)
        root = _root(kind)
        if root is None:
            raise FrameworkError(
                f"{loss}: argument {name!r} is a {type(value).__module__}.{type(value).__qualname__}; expected an array "
                f"of NumPy, PyTorch, TensorFlow or JAX"
            )
        found.setdefault(root, name)
    if len(found) > 1:
        (first, a), (second, b) = list(found.items())[:2]
        raise FrameworkError(
            f"{loss}: argument {a!r} is of {first}, but {b!r} is of {second}; convert one of them, so that all arrays "
            f"of a call belong to one framework"
        )
    return adapter(next(iter(found), "numpy"))
