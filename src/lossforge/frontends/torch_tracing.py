"""PyTorch while it is traced: what the dispatcher does not see, decisions, and sizes that depend on values.

The tracer runs a function on arrays without values. It loses `.detach()` and `torch.no_grad()`, which are calls on
the way to the dispatcher, and it stops at an `if` on a tensor and at `x[mask]`. Here these get a meaning:

- what carries no gradient is marked as such;
- a check that only raises an error is passed: it is no part of the formula; a guard against there being nothing to
  work with is a choice between what is done then and otherwise (`recorded`);
- a selection by truth values gets a size of its own, by which the reader finds its mask again (`selections`).
"""

from __future__ import annotations

import itertools
import linecache
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from lossforge.errors import AdoptionError
from lossforge.frontends.decisions import raised_on_purpose
from lossforge.frontends.recording import Recording
from lossforge.frontends.ways import Unlike, choice

_LIBRARY: Any = torch.library.Library("lossforge", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("stop_gradient(Tensor x) -> Tensor")
_LIBRARY.impl("stop_gradient", lambda x: x.clone(), "CompositeExplicitAutograd")
_LIBRARY.define("position(Tensor mask, Tensor like, int first, int count, int dim) -> Tensor")
_LIBRARY.impl(
    "position",
    lambda mask, like, first, count, dim: mask.new_empty((count,), dtype=torch.int64),
    "CompositeExplicitAutograd",
)

_OWN = ("/torch/_", "/torch/fx/", "/torch/utils/")
"""Files whose errors are those of the tracer, not of the function."""
_MOST_CALLS = 20_000
_MOST_DECISIONS = 32
_MOST_WAYS = 24
_MOST_GUARDS = 4
_TOO_MANY = "it takes too many decisions from values; use torch.where in place of `if` and `while`"


@dataclass
class Event:
    """A decision on a truth value, or a selection, of which somebody may ask whether it is empty."""

    answer: bool
    """What was decided; of a selection, that it is empty."""
    value: torch.Tensor
    """The truth value, or the mask."""
    count: int | None = None
    """The number of entries that a selection is given; None for decisions."""
    asked: bool = False
    """Whether the function looked at the number of entries, or decided on whether there are any."""
    where: str = field(default_factory=lambda: _user_line())
    """The line of the user's source."""


class Watch(TorchFunctionMode):
    """Marks what carries no gradient, and answers decisions on tensors in turn: as `answers` says, then False."""

    def __init__(self, answers: Sequence[bool]) -> None:
        super().__init__()
        self.answers = list(answers)
        self.events: list[Event] = []
        self.calls = 0
        self.with_gradients = torch.is_grad_enabled()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `torch.overrides`."""
        self.calls += 1
        if self.calls > _MOST_CALLS:
            raise AdoptionError(
                f"it calls PyTorch more than {_MOST_CALLS} times, in a loop whose length is a size; use operations on whole tensors"
            )
        if func in (torch.Tensor.detach, torch.detach, torch.Tensor.detach_, torch.Tensor.data.__get__):  # type: ignore[attr-defined]
            return torch.ops.lossforge.stop_gradient(args[0])
        func = _OTHERWISE.get(func, func)
        result = func(*args, **(kwargs or {}))
        if func in _ASKING and self.events and not _from_library():
            counts = args[0].shape
            for event in self.events:
                event.asked |= event.count is not None and event.count in counts
        if self.with_gradients and not torch.is_grad_enabled() and not getattr(func, "__name__", "_").endswith("_"):
            return tree_map_only(torch.Tensor, torch.ops.lossforge.stop_gradient, result)
        return result

    def _next(self) -> bool:
        if len(self.events) >= _MOST_DECISIONS:
            raise AdoptionError(f"{_user_line()}: {_TOO_MANY}")
        return self.answers[len(self.events)] if len(self.events) < len(self.answers) else False

    def decide(self, condition: torch.Tensor) -> Any:
        """What Python is told of a truth value, instead of ``aten::_local_scalar_dense``."""
        if condition.dtype != torch.bool or getattr(condition, "constant", None) is not None:
            return NotImplemented
        self.events.append(Event(self._next(), condition, asked=_asks_for_any(condition)))
        return self.events[-1].answer

    def select(self, mask: torch.Tensor, count: int) -> int:
        """The number of entries of a selection."""
        empty = self._next()
        self.events.append(Event(empty, mask, 0 if empty else count))
        return 0 if empty else count


_SHAPE: Any = torch.Tensor.shape
_ASKING = frozenset({torch.Tensor.__len__, torch.Tensor.size, torch.Tensor.numel, torch.numel, _SHAPE.__get__})
"""What tells how many entries a tensor has."""


def _from_library() -> bool:
    """Whether it is PyTorch that calls itself, behind the methods of tensors."""
    frame: Any = sys._getframe(2)
    while frame.f_code.co_filename.endswith(("/torch/overrides.py", "/torch/_tensor.py")):
        frame = frame.f_back
    return "/torch/" in frame.f_code.co_filename


def _user_line() -> str:
    """The line of the function that is being recorded."""
    frame: Any = sys._getframe(1)
    while frame is not None and any(own in frame.f_code.co_filename for own in ("/torch/", "/lossforge/", "<")):
        frame = frame.f_back
    if frame is None:
        return ""
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{file.rsplit('/', 1)[-1]}:{line} ({linecache.getline(file, line).strip()})"


def _asks_for_any(condition: torch.Tensor) -> bool:
    """Whether a truth value says how many entries of masks hold: none, some or all."""
    mode = get_proxy_mode()
    slot = None if mode is None else get_proxy_slot(condition, mode.tracer, None)
    pending: list[torch.fx.Node] = [] if slot is None else [slot.proxy.node]
    found = False
    while pending:
        node = pending.pop()
        op = str(node.target).removeprefix("aten.").partition(".")[0]
        inner = node.all_input_nodes
        if op in ("any", "all", "sum") and _truth(inner[0]):
            found = True
        elif op in _PASSING:
            pending += inner
        else:
            return False
    return found


_PASSING = frozenset({
    "eq", "ne", "gt", "lt", "ge", "le", "logical_not", "logical_and", "logical_or", "bitwise_not", "bitwise_and",
    "bitwise_or", "add", "_to_copy", "view",
})  # fmt: skip


def _truth(node: torch.fx.Node) -> bool:
    """Whether an array holds truth values, or zeros and ones made of them."""
    while str(node.target) == "aten._to_copy.default" and node.meta["val"].dtype != torch.bool:
        node = node.all_input_nodes[0]
    return bool(node.meta["val"].dtype == torch.bool)


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
    torch.Tensor.requires_grad_: lambda x, requires_grad=True: x,  # of a constant, which has no share in the gradient
    torch.bincount: _bincount,
    torch.Tensor.bincount: _bincount,
}
"""What the tracer stops at, in other words."""


def recorded(trace: Callable[[Watch], Recording]) -> Recording:
    """The recording in which every decision on values goes the only way that does not end in an error.

    Such a decision is a check of arguments. If both ways end in a value, and it is decided on whether there are entries
    to work with, the result is a choice between both. Of any other decision the loss depends on it, and is refused.
    The trace gives a tuple: the value, and what each event is about.
    """
    return _settled(trace, [], itertools.count())


def _settled(trace: Callable[[Watch], Recording], given: list[bool], ways: Iterator[int]) -> Recording:
    """The recording after these answers."""
    watch, answers = Watch(given), given
    while True:
        if next(ways) >= _MOST_WAYS:
            raise AdoptionError(f"{watch.events[-1].where}: {_TOO_MANY}" if watch.events else _TOO_MANY)
        try:
            recording = trace(watch)
            break
        except Exception as error:
            decisions = [i for i, e in enumerate(watch.events) if e.count is None and i >= len(given)]
            if not decisions or watch.events[decisions[-1]].answer or not raised_on_purpose(error, _OWN):
                raise
            answers = [*(e.answer for e in watch.events[: decisions[-1]]), True]
            watch = Watch(answers)
    guards = [e for e in watch.events if e.count is None and not e.answer]
    if len(guards) > _MOST_GUARDS:
        raise AdoptionError(f"{guards[-1].where}: {_TOO_MANY}")
    value, *about = recording.result
    result = replace(recording, result=value)
    for i, event in reversed([*enumerate(watch.events)][len(given) :]):
        prefix = [*(e.answer for e in watch.events[:i]), True]
        if event.answer or (event.count is not None and not event.asked):
            continue
        try:
            other = _settled(trace, prefix, ways)
        except AdoptionError:
            raise
        except Exception as error:
            if event.count is not None or raised_on_purpose(error, _OWN):
                continue
            raise AdoptionError(f"{event.where}: {_DECIDES}") from None
        try:
            both = choice(result, other, about[i], where=event.count is None, count=event.count)
        except Unlike:
            raise AdoptionError(f"{event.where}: {_DECIDES}") from None
        if both is not result and not event.asked:
            raise AdoptionError(f"{event.where}: {_DECIDES}")
        result = both
    return result


_DECIDES = (
    "it takes a decision from values (`if`, `while`, `assert` or `and` on a tensor); use torch.where instead of `if`"
)


# ------------------------------------------------------------------------------------- selections


def selections(arrays: Sequence[np.ndarray], watch: Watch) -> dict[Any, Any]:
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
            prime = _PRIMES[(seed + 101 * len(counts)) % len(_PRIMES)]
            counts[key] = known if known is not None else watch.select(mask, prime)
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
        masks = [(d, i) for d, i in enumerate(indices) if i is not None]
        if len(masks) == 1 and masks[0][1].dtype == torch.bool and values.numel() == 1:
            first, mask = masks[0]
            mask = mask.reshape(*mask.shape, *[1] * (x.ndim - first - mask.ndim))
            value = values.reshape(()).to(x.dtype)
            return torch.where(mask, x + value if accumulate else value, x)
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
                placed = str(n.target) == "lossforge.position.default"
                done[n] = args[0].nonzero()[:, args[4]] if placed else n.target(*args, **kwargs)
        return done[n]

    try:
        with _disable_current_modes():
            return int(evaluate(node).sum())
    except LookupError:
        return None
