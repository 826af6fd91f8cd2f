"""Numbers that a PyTorch function asks of tensors which depend on no input: known while it is traced, as in eager mode.

The tracer runs a function on arrays without values. A list of dimensions made by ``torch.arange(2, ndim).tolist()``, or
a check of class weights, needs values that no input has a share in. So whatever is worked out from constants alone is
worked out a second time beside the trace, for real, and read there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

_READ = frozenset(
    getattr(torch.Tensor, name)
    for name in ("tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")
)
"""What gives Python something else than a tensor."""

_LIKE = frozenset({"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_tensor"})
"""What reads the shape and dtype of its operand alone."""

_RANDOM = ("rand", "bernoulli", "dropout", "normal", "uniform", "multinomial", "poisson", "exponential", "empty")


class Constants(TorchFunctionMode):
    """Keeps the values of tensors that depend on no input."""

    def __init__(self) -> None:
        super().__init__()
        self.values: Any = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `torch.overrides`."""
        kwargs = kwargs or {}
        if func in _READ and (value := self._value(args[0])) is not None:
            with _for_real():
                return func(value, *args[1:], **kwargs)
        result = func(*args, **kwargs)
        self._follow(func, args, kwargs, result)
        return result

    def _value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        if isinstance(tensor, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            found: torch.Tensor | None = self.values.get(tensor)
            return found
        return tensor

    def _follow(self, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        """Work the result out a second time, if all that it depends on is known."""
        name = getattr(func, "__name__", "")
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
        if not writes and (not made or all(self._value(t) is not None for t in made)):
            return
        given = [t for t in tree_leaves((args, dict(kwargs))) if isinstance(t, torch.Tensor)]
        random = any(word in name for word in _RANDOM) or "generator" in kwargs
        known = not random and all(self._value(t) is not None for t in given)
        if name in _LIKE and not random:
            with _for_real():
                like = torch.empty(tuple(args[0].shape), dtype=args[0].dtype, device=args[0].device)
            args, known = (like, *args[1:]), all(self._value(t) is not None for t in given[1:])
        if not known:
            if writes and given:
                self._forget(given[0])
            return
        if writes and self._value(given[0]) is given[0]:
            return  # it was written to for real
        with _for_real():
            values = func(
                *tree_map_only(torch.Tensor, self._value, args), **tree_map_only(torch.Tensor, self._value, kwargs)
            )
        for t, v in zip(made, (v for v in tree_leaves(values) if isinstance(v, torch.Tensor)), strict=True):
            self.values[t] = v

    def _forget(self, tensor: torch.Tensor) -> None:
        """The value of a tensor that something unknown was written into, and of all that share its memory."""
        value = self.values.get(tensor)
        if value is not None:
            memory = value.untyped_storage().data_ptr()
            for t in [t for t, v in self.values.items() if v.untyped_storage().data_ptr() == memory]:
                del self.values[t]


@contextmanager
def _for_real() -> Iterator[None]:
    with _disable_current_modes(), temporarily_clear_interpreter_stack(), torch.no_grad():
        yield
