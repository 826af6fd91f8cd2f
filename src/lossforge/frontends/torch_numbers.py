"""Python's `int` and `float` of values, as ``min(int(positive.sum() * 3), count)``: kept as tensors while a function is traced.

`int(x)` must give a whole number of Python, so that a tensor cannot answer by itself. In the modules whose functions ask for
one, the names stand for functions that keep what depends on values a tensor of no dimension, without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

ASKED = {torch.Tensor.__int__: int, torch.Tensor.__float__: float}
"""What gives Python a number."""


class _Number(type):
    """A type that is called like `int` or `float`, and is equal to it."""

    kind: type
    dtype: torch.dtype

    def __call__(cls, *args: Any) -> Any:
        if len(args) != 1 or not isinstance(args[0], torch.Tensor):
            return cls.kind(*args)
        try:
            return cls.kind(args[0])
        except Exception:  # it depends on values, whatever the tracer says of that
            value = torch.ops.lossforge.stop_gradient(args[0].reshape(()).to(torch.float32))
            return value.trunc().to(cls.dtype) if cls.kind is int else value

    def __instancecheck__(cls, x: Any) -> bool:
        return isinstance(x, cls.kind)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, cls.kind)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.kind

    def __hash__(cls) -> int:
        return hash(cls.kind)


_INSTEAD: Mapping[str, Any] = {
    kind.__name__: _Number(kind.__name__, (), {"kind": kind, "dtype": dtype})
    for kind, dtype in ((int, torch.int64), (float, torch.float32))
}


@contextmanager
def numbers_traced(modules: Sequence[dict[str, Any]]) -> Iterator[None]:
    """While a function is traced, the names in these modules keep what depends on values."""
    own = [{k: v for k, v in m.items() if k in _INSTEAD} for m in modules]
    for m in modules:
        m.update({k: v for k, v in _INSTEAD.items() if k not in m})
    try:
        yield
    finally:
        for m, before in zip(modules, own, strict=True):
            for name in _INSTEAD.keys() - before.keys():
                m.pop(name, None)


def first_of(x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The first entries of a vector, as many as a value says."""
    return x[torch.arange(len(x)) < count]


def between(x: torch.Tensor, part: slice) -> torch.Tensor:
    """The entries of a vector from one position to another, of which values may be."""
    n, place = len(x), torch.arange(len(x))
    within = torch.ones(n, dtype=torch.bool)
    for bound, holds in ((part.start, torch.ge), (part.stop, torch.lt)):
        if bound is not None:
            at = torch.as_tensor(bound)
            within = within & holds(place, torch.where(at < 0, at + n, at))
    return x[within]


def topk(x: torch.Tensor, k: torch.Tensor, largest: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest entries of a vector, or the smallest, as many as a value says, and their places."""
    values, places = x.sort(descending=largest)
    return first_of(values, k), first_of(places, k)


def is_number(x: Any) -> bool:
    """Whether something is a number that depends on values."""
    return isinstance(x, torch.Tensor) and not x.ndim


def extreme(choose: Callable[..., torch.Tensor], args: Sequence[Any]) -> torch.Tensor:
    """The larger or smaller of numbers, some of which depend on values."""
    found, *rest = (torch.as_tensor(a) for a in args)
    for a in rest:
        found = choose(found, a)
    return found
