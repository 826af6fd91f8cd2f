"""PyTorch while it is traced: what the dispatcher does not see, decisions, and sizes that depend on values.

The tracer runs a function on arrays without values. It loses `.detach()` and `torch.no_grad()`, which are calls on
the way to the dispatcher, and it stops at an `if` on a tensor and at `x[mask]`. Here these get a meaning:

- what carries no gradient is marked as such;
- a check that only raises an error is passed: it is no part of the formula (`decisions`);
- a selection by truth values gets a size of its own, by which the reader finds its mask again (`selections`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from lossforge.errors import AdoptionError
from lossforge.frontends.decisions import Decisions, settle

_LIBRARY: Any = torch.library.Library("lossforge", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("stop_gradient(Tensor x) -> Tensor")
_LIBRARY.impl("stop_gradient", lambda x: x.clone(), "CompositeExplicitAutograd")
_LIBRARY.define("position(Tensor mask, Tensor like, int first, int count, int dim) -> Tensor")
_LIBRARY.impl(
    "position",
    lambda mask, like, first, count, dim: mask.new_empty((count,), dtype=torch.int64),
    "CompositeExplicitAutograd",
)

T = TypeVar("T")

_MOST_CALLS = 20_000


class Watch(TorchFunctionMode):
    """Marks what carries no gradient, and answers decisions on tensors."""

    def __init__(self, decisions: Decisions) -> None:
        super().__init__()
        self.decisions = decisions
        self.calls = 0
        self.with_gradients = torch.is_grad_enabled()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `torch.overrides`."""
        self.calls += 1
        if self.calls > _MOST_CALLS:
            raise AdoptionError(f"it calls PyTorch more than {_MOST_CALLS} times, in a loop whose length is a size")
        if func in (torch.Tensor.detach, torch.detach, torch.Tensor.detach_, torch.Tensor.data.__get__):  # type: ignore[attr-defined]
            return torch.ops.lossforge.stop_gradient(args[0])
        func = _OTHERWISE.get(func, func)
        result = func(*args, **(kwargs or {}))
        if self.with_gradients and not torch.is_grad_enabled() and not getattr(func, "__name__", "_").endswith("_"):
            return tree_map_only(torch.Tensor, torch.ops.lossforge.stop_gradient, result)
        return result

    def decide(self, condition: torch.Tensor) -> Any:
        """What Python is told of a truth value, instead of ``aten::_local_scalar_dense``."""
        if condition.dtype != torch.bool or getattr(condition, "constant", None) is not None:
            return NotImplemented
        return self.decisions.decide()


def _triangle(op: str) -> Callable[..., torch.Tensor]:
    def positions(rows: int, columns: int, offset: int = 0, **_: Any) -> torch.Tensor:
        return getattr(torch.ones(rows, columns, dtype=torch.bool), op)(offset).nonzero().t()

    return positions


def _pdist(x: torch.Tensor, p: float = 2.0) -> torch.Tensor:
    n = len(x)
    return torch.cdist(x, x, p)[torch.ones(n, n, dtype=torch.bool).triu(1)]


def _fill_diagonal(x: torch.Tensor, value: float, wrap: bool = False) -> torch.Tensor:
    x.diagonal().fill_(value)
    return x


def _bincount(x: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0) -> torch.Tensor:
    if not minlength:
        raise AdoptionError(
            "torch.bincount has a size that depends on values; give it minlength=, the number of classes"
        )
    hits = x[:, None] == torch.arange(minlength)
    return hits.sum(0) if weights is None else (hits * weights[:, None]).sum(0)


_OTHERWISE: dict[Any, Callable[..., Any]] = {
    torch.triu_indices: _triangle("triu"),
    torch.tril_indices: _triangle("tril"),
    torch.pdist: _pdist,
    torch.Tensor.fill_diagonal_: _fill_diagonal,
    torch.bincount: _bincount,
    torch.Tensor.bincount: _bincount,
}
"""What the tracer stops at, in other words."""


def recorded(trace: Callable[[Watch], T]) -> T:
    """The trace of a function whose decisions on values are checks of arguments; see `decisions`."""
    refusal = "it takes a decision from values (`if`, `while`, `assert` or `and` on a tensor); use torch.where instead of `if`"
    return settle(lambda decisions: trace(Watch(decisions)), ("/torch/_", "/torch/fx/", "/torch/utils/"), refusal)


# ------------------------------------------------------------------------------------- selections


def selections(arrays: Sequence[np.ndarray]) -> dict[Any, Any]:
    """Decompositions of selections by truth values into positions, whose number is drawn for each mask.

    The number is a prime of four digits, another one for other shapes of the inputs, so that it is told from sizes. Of
    a mask that depends on no input it is the true one.
    """
    aten = torch.ops.aten
    counts: dict[Any, int] = {}
    seed = zlib.crc32(repr([a.shape for a in arrays]).encode())

    def columns(mask: torch.Tensor, like: torch.Tensor, first: int) -> list[torch.Tensor]:
        mode = get_proxy_mode()
        assert mode is not None
        slot = get_proxy_slot(mask, mode.tracer, None)
        key = id(mask) if slot is None else _structure(slot.proxy.node, {})
        if key not in counts:
            known = int(mask.sum()) if slot is None else _count(slot.proxy.node, getattr(mode.tracer, "root", None))
            counts[key] = known if known is not None else _PRIMES[(seed + 101 * len(counts)) % len(_PRIMES)]
        return [torch.ops.lossforge.position(mask, like, first, counts[key], d) for d in range(mask.ndim)]

    def expanded(x: torch.Tensor, indices: Sequence[Any]) -> list[Any] | None:
        if not any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
            return None
        result: list[Any] = []
        for i in indices:
            if i is not None and i.dtype in (torch.bool, torch.uint8):
                result += columns(i.bool(), x, len(result))
            else:
                result.append(i)
        return result

    def index(x: torch.Tensor, indices: Sequence[Any]) -> Any:
        found = expanded(x, indices)
        return NotImplemented if found is None else aten.index.Tensor(x, found)

    def index_put(x: torch.Tensor, indices: Sequence[Any], values: torch.Tensor, accumulate: bool = False) -> Any:
        found = expanded(x, indices)
        return NotImplemented if found is None else aten.index_put.default(x, found, values, accumulate)

    def nonzero(mask: torch.Tensor) -> Any:
        mask = mask if mask.dtype == torch.bool else mask != 0
        return torch.stack(columns(mask, mask, 0), 1)

    def masked_select(x: torch.Tensor, mask: torch.Tensor) -> Any:
        shape = np.broadcast_shapes(tuple(x.shape), tuple(mask.shape))
        x, mask = x.expand(shape), mask.expand(shape)
        return aten.index.Tensor(x, columns(mask, x, 0))

    return {
        aten.index.Tensor: index,
        aten.index_put.default: index_put,
        aten.nonzero.default: nonzero,
        aten.masked_select.default: masked_select,
    }


_PRIMES = [n for n in range(1009, 9973) if all(n % d for d in range(2, 100))]


def _structure(node: torch.fx.Node, known: dict[torch.fx.Node, Any]) -> Any:
    """What a value is worked out from: equal for two masks that are computed alike."""
    if node not in known:
        parts = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: _structure(n, known))
        known[node] = zlib.crc32(repr((node.op, str(node.target), parts)).encode())
    return known[node]


_FILLED = {
    **{f"aten.{op}.default": 1 for op in ("ones_like", "new_ones")},
    **{f"aten.{op}.default": 0 for op in ("zeros_like", "new_zeros")},
    **{f"aten.{op}.default": None for op in ("full_like", "new_full")},
}
"""What takes nothing but the shape of its operand, and the number it is filled with; None for the last argument."""


def _count(node: torch.fx.Node, root: Any) -> int | None:
    """How often a mask that depends on no input holds."""
    done: dict[torch.fx.Node, Any] = {}

    def evaluate(n: Any) -> Any:
        if n.op == "placeholder":
            raise LookupError
        if n not in done:
            if str(n.target) in _FILLED:
                value = _FILLED[str(n.target)]
                done[n] = torch.full(n.meta["val"].shape, n.args[-1] if value is None else value)
            elif n.op == "get_attr":
                done[n] = getattr(root, str(n.target))
            else:
                args, kwargs = torch.fx.node.map_arg((n.args, n.kwargs), evaluate)
                done[n] = n.target(*args, **kwargs)
        return done[n]

    try:
        with _disable_current_modes():
            return int(evaluate(node).sum())
    except LookupError:
        return None
