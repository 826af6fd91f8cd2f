"""Functions with a backward pass of their own: `torch.autograd.Function`.

Most of them are the derivative of their forward pass, written for speed or less memory; lossforge derives by itself. Others
are not (straight-through estimators, reversed gradients), and are part of the loss. Which it is, is tried on numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._pytree import tree_map_only

from lossforge.errors import AdoptionError
from lossforge.frontends.torch_tracing import untraced

_NEAR = 1e-4


@contextmanager
def functions_traced() -> Iterator[None]:
    """While a function is traced, a forward pass is called like any other function, and the backward pass is heeded."""
    transformed = torch._C._are_functorch_transforms_active

    def apply(cls: Any, *args: Any) -> Any:
        return _called(cls, args) if _tracing() else super(_Base, cls).apply(*args)

    # `Function.apply`, of which functions may have been made, asks the one and calls the other.
    torch._C._are_functorch_transforms_active = lambda: not _tracing() and transformed()
    _Base.apply = classmethod(apply)
    try:
        yield
    finally:
        torch._C._are_functorch_transforms_active = transformed
        del _Base.apply


_Base: Any = torch.autograd.Function.__mro__[1]


def _tracing() -> bool:
    return get_proxy_mode() is not None


class _Context:
    """What the passes hand on to each other."""

    def __init__(self, args: Sequence[Any]) -> None:
        self.needs_input_grad = tuple(map(_is_float, args))
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """See `torch.autograd.function.FunctionCtx`."""
        self.saved_tensors = tensors

    save_for_forward = save_for_backward

    def mark_dirty(self, *tensors: Any) -> None:
        """A result is an argument that was written to, and both are what it is now."""

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """The backward pass gives nothing for them, which is tried on numbers."""

    def set_materialize_grads(self, value: bool) -> None:
        """Gradients that come in are arrays here."""


def _called(cls: Any, args: Sequence[Any]) -> Any:
    """The results of the forward pass, with the gradient of the backward pass."""
    is_derivative, moving = _tried(cls, args)
    held = [torch.ops.lossforge.stop_gradient(a) if _is_float(a) else a for a in args]
    if is_derivative:
        return _forward(cls, [a if i in moving else held[i] for i, a in enumerate(args)])[0]
    results, context = _forward(cls, held)
    several = results if isinstance(results, tuple) else (results,)
    floats = [r for r in several if _is_float(r)]

    def back(*seeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left = iter(seeds)
        own = copy.copy(context)  # that may be written to
        own.__dict__.update(tree_map_only(torch.Tensor, torch.clone, context.__dict__))
        found = cls.backward(own, *(next(left) if _is_float(r) else None for r in several))
        found = found if isinstance(found, tuple) else (found,)
        return tuple(torch.zeros_like(args[i]) if found[i] is None else found[i] for i in moving)

    try:  # linear in the seeds: its transpose takes a change of the arguments to that of the results
        pulled: Any = torch.func.vjp(back, *map(torch.zeros_like, floats))
        transpose = pulled[1]
        slopes = iter(transpose(tuple(args[i] for i in moving)))
    except RuntimeError as error:
        raise AdoptionError(
            f"{cls.__name__}.backward is not the derivative of its forward pass, and could not be read ({error}); write into new "
            f"arrays there, not in place"
        ) from None
    new = []
    for r in several:
        slope = next(slopes) if _is_float(r) else None
        new.append(r if slope is None else torch.ops.lossforge.stop_gradient(r - slope) + slope)
    return tuple(new) if isinstance(results, tuple) else new[0]


def _forward(cls: Any, args: Sequence[Any]) -> tuple[Any, _Context]:
    context = _Context(args)
    if cls.setup_context is torch.autograd.Function.setup_context:
        return cls.forward(context, *args), context
    results = cls.forward(*args)
    cls.setup_context(context, tuple(args), results)
    return results, context


def _tried(cls: Any, args: Sequence[Any]) -> tuple[bool, list[int]]:
    """Whether the backward pass is the derivative of the forward pass, as far as can be seen, and for which arguments it is one.

    Raises:
        AdoptionError: it is that of nothing.
    """
    moving = [i for i, a in enumerate(args) if _is_float(a)]
    with untraced(), torch.enable_grad():
        drawing = torch.Generator().manual_seed(3)
        values = [_drawn(a, drawing) if isinstance(a, torch.Tensor) else a for a in args]
        try:
            ruled, scaled = (_slopes(cls.apply, values, scale) for scale in (1.0, 3.0))
            derived = _slopes(torch.func.functionalize(lambda *v: _forward(cls, v)[0]), values)
        except Exception:  # such numbers are none for it; the loss is compared with the original in the end
            return True, moving
    told = [(i, *of) for i, *of in zip(moving, ruled, scaled, derived, strict=True) if of[0] is not None]
    if not all(_is_near(3 * once, thrice) for _, once, thrice, _ in told):
        raise AdoptionError(
            f"{cls.__name__}.backward is the derivative of nothing, since it is not linear in the gradient that comes in (it "
            f"ignores, clips or normalises it); multiply by that gradient, or do such things to the gradients in training"
        )
    agree = all(_is_near(once, torch.zeros_like(once) if own is None else own) for _, once, _, own in told)
    return agree, [i for i, *_ in told]


def _slopes(function: Any, values: Sequence[Any], scale: float = 1.0) -> list[Any]:
    """The gradients of a sum of the results, with weights that are all of this scale; None where there is none."""
    at = [v.clone().requires_grad_(True) if _is_float(v) else v for v in values]
    results = function(*at)
    results = [r for r in (results if isinstance(results, tuple) else (results,)) if _is_float(r)]
    seeds = [scale * torch.linspace(0.5, 2.0, r.numel(), dtype=r.dtype).reshape(r.shape) for r in results]
    total: Any = sum((r * s).sum() for r, s in zip(results, seeds, strict=True))
    moving = [v for v in at if _is_float(v)]
    return list(torch.autograd.grad(total, moving, allow_unused=True)) if total.requires_grad else [None] * len(moving)


def _drawn(like: torch.Tensor, drawing: torch.Generator) -> torch.Tensor:
    """Numbers of several sizes, labels of two classes, or truth values."""
    shape = tuple(like.shape)
    if like.dtype.is_floating_point:
        return torch.rand(shape, generator=drawing, dtype=like.dtype) * 1.8 + 0.05
    return torch.randint(0, 2, shape, generator=drawing).to(like.dtype)


def _is_float(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype.is_floating_point


def _is_near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether they agree as far as float32 does, where both are finite."""
    known = a.isfinite() & b.isfinite()
    a, b = a[known], b[known]
    return a.numel() == 0 or float((a - b).abs().max()) <= _NEAR * max(float(a.abs().max()), 1e-6)
