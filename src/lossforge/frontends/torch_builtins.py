"""Python's `max`, `min` and `sum` of a tensor, which go through its entries one by one, as operations on the whole of it."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lossforge.frontends.torch_numbers import extreme, is_number


@contextmanager
def builtins_traced() -> Iterator[None]:
    """While a function is traced, they make one step of a tensor; of anything else they are what they were."""
    before = {name: getattr(builtins, name) for name in _WHOLE}
    for name, whole in _WHOLE.items():
        setattr(builtins, name, _instead(before[name], whole))
    try:
        yield
    finally:
        for name, original in before.items():
            setattr(builtins, name, original)


def _instead(original: Callable[..., Any], whole: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, **options: Any) -> Any:
        if len(args) == 1 and not options and isinstance(args[0], torch.Tensor) and args[0].ndim and len(args[0]):
            found = whole(args[0])
            if found is not None:
                return found
        if original.__name__ in _EXTREMES and len(args) > 1 and not options and any(map(is_number, args)):
            return extreme(_EXTREMES[original.__name__], args)
        return original(*args, **options)

    return function


_WHOLE: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "max": lambda x: x.max(0)[0] if x.ndim == 1 else None,
    "min": lambda x: x.min(0)[0] if x.ndim == 1 else None,
    "sum": lambda x: x.sum(0) if x.dtype != torch.bool else None,
}
_EXTREMES: dict[str, Callable[..., torch.Tensor]] = {"max": torch.maximum, "min": torch.minimum}
