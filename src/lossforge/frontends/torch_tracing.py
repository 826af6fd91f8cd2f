"""PyTorch while it is traced: what the dispatcher does not see, decisions, and sizes that depend on values.

The tracer runs a function on arrays without values. It loses `.detach()` and `torch.no_grad()`, which are calls on
the way to the dispatcher, and it stops at an `if` on a tensor and at `x[mask]`. Here these get a meaning:

- what carries no gradient is marked as such;
- a check that only raises an error is passed: it is no part of the formula; a guard against there being nothing to
  work with is a choice between what is done then and otherwise (`recorded`);
- a selection by truth values gets a size of its own, by which the reader finds its mask again (`selections`).
"""

from __future__ import annotations

import operator
import os
import sys
import traceback
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.fx.traceback import set_stack_trace
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from lossforge.errors import AdoptionError
from lossforge.frontends.decisions import asserted
from lossforge.frontends.sources import folder, is_of, line
from lossforge.frontends.torch_numbers import ASKED, between, is_number, topk

_LIBRARY: Any = torch.library.Library("lossforge", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("stop_gradient(Tensor x) -> Tensor")
_LIBRARY.impl("stop_gradient", lambda x: x.clone(), "CompositeExplicitAutograd")
_LIBRARY.define("position(Tensor mask, Tensor like, int first, int count, int dim) -> Tensor")
_LIBRARY.impl(
    "position",
    lambda mask, like, first, count, dim: mask.new_empty((count,), dtype=torch.int64),
    "CompositeExplicitAutograd",
)
_LIBRARY.define("known(Tensor x) -> Tensor")
_LIBRARY.impl("known", lambda x: x.clone(), "CompositeExplicitAutograd")
_LIBRARY.define("rows(Tensor x, Tensor mask) -> Tensor")
_LIBRARY.impl("rows", lambda x, mask: x.clone(), "CompositeExplicitAutograd")
_LIBRARY.define("rows_of(Tensor x, Tensor mask, int count) -> Tensor")
_LIBRARY.impl("rows_of", lambda x, mask, count: x.new_empty(*x.shape[:-1], count), "CompositeExplicitAutograd")

_MOST_CALLS = 4000
_MOST_DECISIONS = 400
TOO_MANY = "it takes too many decisions from values; use torch.where in place of `if` and `while`"

Answer: TypeAlias = bool | int
"""What is told of a truth value, or how many entries a selection has."""
Site: TypeAlias = tuple[tuple[str, int], ...]
"""A place in the source: the file and the operation of the bytecode, and those where it was called from."""


@dataclass(eq=False)
class Event:
    """A decision on a truth value, or a selection, of which somebody may ask whether it is empty."""

    value: torch.Tensor
    """The truth value, or the mask."""
    key: Any
    """How it is worked out: the same, whatever was decided before."""
    usual: Answer
    """What is told where there is something to work with: the answer, or the number of entries."""
    answer: Answer
    """What was told."""
    asked: bool = False
    """Whether the function looked at the number of entries of the selection."""
    where: str = ""
    """The line of the user's source."""
    site: Site = ()
    asserted: bool = False
    """Whether it is a part of the condition of an `assert`."""

    @property
    def selects(self) -> bool:
        """Whether it is a selection."""
        return not isinstance(self.usual, bool)


class _Unknown:
    """A number that NumPy or Python may have, and do nothing with."""

    def _asked(self, *_: Any) -> Any:
        raise AdoptionError(
            "an array is handed to NumPy or Python (numpy(), tolist(), np.asarray), and its numbers are used; use PyTorch's own "
            "operations"
        )

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __hash__ = _asked
    __int__ = __float__ = __index__ = __neg__ = __abs__ = __invert__ = _asked
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _asked
    __pow__ = __rpow__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __and__ = __or__ = _asked


class Watch(TorchFunctionMode):
    """Marks what carries no gradient, and answers decisions on tensors: as `answers` says for some, else as usual.

    At places in `checks`, which only raise errors, the other answer is usual.
    """

    def __init__(self, answers: Mapping[Any, Answer], checks: Collection[Site] = ()) -> None:
        super().__init__()
        self.answers, self.checks = answers, checks
        self.events: list[Event] = []
        self.calls = 0
        self.at = ""
        """The last operation, and its line."""
        self.asking: dict[str, Any] | None = None
        """The names of the module that asked last for a number of Python."""
        self.known: torch.Tensor | None = None
        """The last array that was asked for its numbers, if it depends on no argument."""
        self.selected: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        """Of selections, by what they are: the array, the mask, and the result."""
        self.within: dict[int, torch.Tensor] = {}
        """What was made under `torch.no_grad()`, by what it is."""
        self.with_gradients = torch.is_grad_enabled()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `torch.overrides`."""
        self.calls += 1
        place = _line(_user_frame())
        self.at = f"{getattr(func, '__name__', func)}, in {place}"
        set_stack_trace([place])  # what is recorded keeps it
        if self.calls > _MOST_CALLS:
            raise AdoptionError(
                f"it calls PyTorch more than {_MOST_CALLS} times, in a loop whose length is a size; use operations on whole tensors"
            )
        if func in ASKED and (frame := _user_frame()) is not None:
            self.asking = frame.f_globals
        if func in (torch.Tensor.detach, torch.detach, torch.Tensor.detach_, torch.Tensor.data.__get__):  # type: ignore[attr-defined]
            return torch.ops.lossforge.stop_gradient(args[0])
        if func in _READING and torch._C._functorch.is_functionaltensor(args[0]):
            torch.ops.lossforge.known(args[0])
            if self.known is None:
                unknown = np.full(args[0].shape, _Unknown(), dtype=object)
                return unknown.tolist() if func is torch.Tensor.tolist else unknown
            with untraced():
                return func(self.known, *args[1:], **(kwargs or {}))
        held = self.with_gradients and not torch.is_grad_enabled()
        writes = _writes(func)
        before: torch.Tensor | None = None
        if held and writes:  # what is written has no share in the gradient, which is that of what was there before
            args = (*args[:1], *tree_map_only(torch.Tensor, _held, tuple(args[1:])))
            if args[0].dtype.is_floating_point and id(args[0]) not in self.within:
                before = args[0].clone()
        asked, func = func, _OTHERWISE.get(func, func)
        if func is torch.Tensor.__iter__ and any(e.selects and e.answer == len(args[0]) for e in self.events):
            raise AdoptionError(
                "it goes through the entries of a selection by truth values one by one; use operations on the whole selection"
            )
        if func in _RESHAPES and (found := self.selected.get(id(args[0]))) is not None:
            rows = _in_rows(*found[:2], torch.Size(_shape(args[1:])), args[0].numel())
            if rows is not None:
                return rows
        if func in _EXTREMES and len(args) == 1 and not kwargs and args[0].numel() == 0:
            raise RuntimeError("the largest of no entries")  # as PyTorch does, but while it traces
        result = func(*args, **(kwargs or {}))
        if before is not None:
            args[0].copy_(torch.ops.lossforge.stop_gradient(args[0] - before) + before)
        if asked in _SELECTIONS and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool:
            self.selected[id(result)] = args[0], args[1], result
        elif func in _COPIES and id(args[0]) in self.selected:
            self.selected[id(result)] = *self.selected[id(args[0])][:2], result
        if func is torch.Tensor.item and isinstance(result, torch.SymInt | torch.SymFloat):
            return torch.ops.lossforge.stop_gradient(args[0].reshape(()))  # a number that is not known yet
        if func in _ASKING and self.events and not _from_library():
            counts = args[0].shape
            for event in self.events:
                event.asked |= event.selects and event.answer == event.usual and event.answer in counts
        if held and not writes:
            result = tree_map_only(torch.Tensor, _held, result)
            self.within |= {id(r): r for r in tree_leaves(result) if isinstance(r, torch.Tensor)}
        return result

    def _told(self, value: torch.Tensor, key: Any, usual: Answer) -> Any:
        """The answer to a question, which is noted."""
        frame = _user_frame()
        where, site = _line(frame), _site(frame)
        if len(self.events) >= _MOST_DECISIONS:
            raise AdoptionError(f"{where}: {TOO_MANY}")
        if site in self.checks and isinstance(usual, bool):
            usual = not usual
        answer = self.answers.get(key, usual)
        self.events.append(Event(value, key, usual, answer, where=where, site=site, asserted=_in_assertion(frame)))
        return answer

    def decide(self, condition: torch.Tensor) -> Any:
        """What Python is told of a truth value, instead of ``aten::_local_scalar_dense``."""
        if condition.dtype != torch.bool or getattr(condition, "constant", None) is not None:
            return NotImplemented
        mode = get_proxy_mode()
        slot = None if mode is None else get_proxy_slot(condition, mode.tracer, None)
        key = id(condition) if mode is None or slot is None else structure(slot.proxy.node, mode.tracer)
        return self._told(condition, key, slot is not None and _among_many(slot.proxy.node) is True)

    def select(self, mask: torch.Tensor, key: Any, count: int) -> int:
        """The number of entries of a selection."""
        return int(self._told(mask, ("selection", key), count))


_SELECTIONS = frozenset({torch.Tensor.__getitem__, torch.masked_select, torch.Tensor.masked_select})
_COPIES = frozenset({torch.Tensor.contiguous, torch.Tensor.clone, torch.clone})
_RESHAPES = frozenset({torch.Tensor.view, torch.Tensor.reshape, torch.reshape})


def _shape(args: Sequence[Any]) -> Sequence[int]:
    """The shape that a reshape is asked for; none if it is asked for a dtype."""
    if args and isinstance(args[0], torch.dtype):
        return ()
    return args[0] if len(args) == 1 and not isinstance(args[0], int) else args


def _in_rows(x: torch.Tensor, mask: torch.Tensor, shape: torch.Size, count: int) -> torch.Tensor | None:
    """What was selected by a mask that holds equally often in each row, row by row."""
    if mask.shape != x.shape or x.ndim < 2 or shape[:-1] != x.shape[:-1] or not count % x.shape[:-1].numel():
        return None
    if shape[-1] == -1:
        return torch.ops.lossforge.rows(x, mask)
    order = torch.argsort(mask.logical_not().long(), dim=-1, stable=True)
    return x.gather(-1, order[..., : shape[-1]])


def _writes(func: Any) -> bool:
    """Whether an operation writes into its first operand."""
    name = getattr(func, "__name__", "_")
    return name in _WRITING or (name.endswith("_") and not name.endswith("__"))


_WRITING = frozenset(
    f"__{op}__" for op in ("setitem", "set", "iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior")
)


def _held(x: torch.Tensor) -> torch.Tensor:
    """A value without its gradient, if it can have one."""
    return torch.ops.lossforge.stop_gradient(x) if x.dtype.is_floating_point or x.dtype.is_complex else x


_READING = frozenset({torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.tolist})
"""What gives numbers to Python or NumPy."""
_EXTREMES = frozenset({
    torch.max, torch.min, torch.amax, torch.amin, torch.Tensor.max, torch.Tensor.min, torch.Tensor.amax, torch.Tensor.amin,
})  # fmt: skip
_SHAPE: Any = torch.Tensor.shape
_ASKING = frozenset({torch.Tensor.__len__, torch.Tensor.size, torch.Tensor.numel, torch.numel, _SHAPE.__get__})
"""What tells how many entries a tensor has."""


def _from_library() -> bool:
    """Whether it is PyTorch that calls itself, behind the methods of tensors."""
    frame: Any = sys._getframe(2)
    methods = tuple(folder("torch") + file for file in ("overrides.py", "_tensor.py"))
    while frame.f_code.co_filename in methods:
        frame = frame.f_back
    return is_of(frame.f_code.co_filename, ("torch",))


def _user_frame() -> Any:
    """The frame of the function that is being recorded."""
    frame: Any = sys._getframe(1)
    while frame is not None and is_of(frame.f_code.co_filename, OWN):
        frame = frame.f_back
    return frame


OWN = ("torch", "lossforge")
"""Packages whose frames are not the user's."""
_TRACER = folder("lossforge") + os.path.join("frontends", "torch.py")


def _site(frame: Any) -> Site:
    found = []
    while frame is not None and frame.f_code.co_filename != _TRACER:
        if not is_of(frame.f_code.co_filename, OWN):
            found.append((frame.f_code.co_filename, frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


def _in_assertion(frame: Any) -> bool:
    """Whether the function is at the condition of an `assert`, there or in what it was called by."""
    while frame is not None and frame.f_code.co_filename != _TRACER:
        if not is_of(frame.f_code.co_filename, OWN) and asserted(frame.f_code, frame.f_lasti):
            return True
        frame = frame.f_back
    return False


def line_of_user() -> str:
    """The line of the function that is being run."""
    return _line(_user_frame())


def _line(frame: Any) -> str:
    """The line of the source in which a frame is."""
    return "" if frame is None else line(frame.f_code.co_filename, frame.f_lineno)


def raised_in(error: BaseException) -> str:
    """The last line of the user's source on the way to an exception."""
    way = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not is_of(f.filename, (*OWN, "numpy")) and f.filename != "<string>"
    ]
    return line(way[-1].filename, way[-1].lineno or 0) if way else ""


_MANY = 1009
"""The number of entries for which a mask holds, where there is something to work with and something is left out."""


def _among_many(node: torch.fx.Node) -> Any:
    """A number or truth value that says how many entries of masks hold, where these are many and not all.

    None if it says anything else.
    """
    op = str(node.target).removeprefix("aten.").removeprefix("lossforge.").partition(".")[0]
    if op in ("any", "all", "sum") and _truth(node.all_input_nodes[0]) and not node.meta["val"].ndim:
        return {"any": True, "all": False, "sum": _MANY}[op]
    if op not in _PASSING or len(node.args) > 2:
        return None
    args = [_among_many(a) if isinstance(a, torch.fx.Node) else a for a in node.args]
    if any(not isinstance(a, bool | int | float) for a in args[: 1 if op == "view" else None]):
        return None
    return _PASSING[op](*args)


_PASSING: dict[str, Callable[..., Any]] = {
    "eq": operator.eq, "ne": operator.ne, "gt": operator.gt, "lt": operator.lt, "ge": operator.ge, "le": operator.le,
    "logical_not": operator.not_, "bitwise_not": operator.not_, "add": operator.add, "mul": operator.mul,
    **dict.fromkeys(("logical_and", "bitwise_and"), lambda a, b: bool(a) and bool(b)),
    **dict.fromkeys(("logical_or", "bitwise_or"), lambda a, b: bool(a) or bool(b)),
    **dict.fromkeys(("_to_copy", "view", "stop_gradient", "clone"), lambda a, *_: a),
}  # fmt: skip
"""Operations on such numbers."""


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


def _std(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """PyTorch's gradient is 0 where it is 0."""
    variance = torch.var(x, *args, **options)
    return torch.where(variance == 0, torch.zeros_like(variance), variance.sqrt())


def _std_mean(x: torch.Tensor, dim: Any = None, *args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    kept = options.get("keepdim", False)
    return _std(x, dim, *args, **options), torch.mean(x, dim, keepdim=kept)


def _requires_grad(x: torch.Tensor, requires_grad: bool = True) -> torch.Tensor:
    """It is asked of a constant, which has no share in the gradient, or by PyTorch of what it differentiates by."""
    level = torch._C._functorch.peek_interpreter_stack()
    differentiates = level is not None and level.key() == torch._C._functorch.TransformType.Grad
    return x.requires_grad_(requires_grad) if differentiates else x


@contextmanager
def untraced() -> Iterator[None]:
    """For arrays with values, amid a recording."""
    with temporarily_clear_interpreter_stack(), _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


def _hook(x: torch.Tensor, hook: Callable[[torch.Tensor], Any]) -> None:
    """What is called with a gradient, and may look at it, but not change it."""
    with untraced():
        gradient = torch.linspace(-3.0, 3.0, x.numel()).reshape(x.shape)
        found = hook(gradient.clone())
    if found is not None and not torch.equal(found, gradient):
        raise AdoptionError(
            "register_hook changes the gradient within the loss; use a torch.autograd.Function whose backward pass does so"
        )


def _resize_as(x: torch.Tensor, like: torch.Tensor, **_: Any) -> torch.Tensor:
    return _resize(x, like.shape)


def _resize(x: torch.Tensor, *shape: Any, **_: Any) -> torch.Tensor:
    """Nothing that is given a size, for values that are filled in."""
    if x.numel():
        raise AdoptionError("torch.Tensor.resize_ keeps entries by their place in memory; use reshape, or a new array")
    return x.new_empty(*shape)


def _stft(
    x: torch.Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: torch.Tensor | None = None,
    *args: Any,
    **options: Any,
) -> torch.Tensor:
    """PyTorch writes a window that is shorter than the transform into zeros, where the tracer does not see it."""
    if win_length is not None and win_length < n_fft:
        before = (n_fft - win_length) // 2
        window = torch.ones(win_length) if window is None else window
        window = torch.nn.functional.pad(window, (before, n_fft - win_length - before))
    return torch.stft(x, n_fft, hop_length, None, window, *args, **options)


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


def _histc(x: torch.Tensor, bins: int = 100, min: float = 0, max: float = 0) -> torch.Tensor:
    if min == max:
        raise AdoptionError("torch.histc counts between the extremes of values; give it min= and max=")
    flat = x.reshape(-1)
    place = ((flat - min) * bins / (max - min)).floor().clamp(max=bins - 1)
    inside = (flat >= min) & (flat <= max)
    return ((place[:, None] == torch.arange(bins)) & inside[:, None]).sum(0).to(x.dtype)


def _searchsorted(
    bounds: torch.Tensor,
    x: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> torch.Tensor:
    """Before which bound a value lies: the number of those that are less, or not more."""
    bounds = bounds if sorter is None else bounds.gather(-1, sorter)
    x = x if isinstance(x, torch.Tensor) else torch.tensor(x)
    bounds, x = bounds if bounds.ndim == 1 else bounds.unsqueeze(-2), x.unsqueeze(-1)
    before = bounds <= x if right or side == "right" else bounds < x
    return before.sum(-1).to(torch.int32 if out_int32 else torch.int64)


def _cov(x: torch.Tensor, *, correction: int = 1, **weights: Any) -> torch.Tensor:
    if weights or x.ndim > 2:
        return torch.cov(x, correction=correction, **weights)
    apart = (x - x.mean(-1, keepdim=True)).reshape(-1, x.shape[-1])
    return (apart @ apart.T / max(x.shape[-1] - correction, 0)).squeeze()


def _corrcoef(x: torch.Tensor) -> torch.Tensor:
    c = _cov(x)
    if not c.ndim:
        return c / c
    deviations = c.diagonal().sqrt()
    return (c / deviations[:, None] / deviations[None, :]).clip(-1, 1)


def _clamp(x: torch.Tensor, min: Any = None, max: Any = None) -> torch.Tensor:
    """Bounds may be a number and a tensor."""
    if isinstance(min, torch.Tensor) or isinstance(max, torch.Tensor):
        min, max = (torch.full((), v) if isinstance(v, int | float) else v for v in (min, max))
    return torch.clamp(x, min, max)


def _truth_value(x: torch.Tensor) -> bool:
    return bool(x if x.dtype == torch.bool else x != 0)


def _getitem(x: torch.Tensor, index: Any) -> torch.Tensor:
    """Entries, of which a position may be a value, as the label in ``x[i, label[i]]``."""
    if (
        isinstance(index, slice)
        and x.ndim == 1
        and (is_number(index.start) or is_number(index.stop))
        and index.step is None
    ):
        return between(x, index)
    parts = index if isinstance(index, tuple) else (index,)
    at = [
        i
        for i, p in enumerate(parts)
        if isinstance(p, torch.Tensor) and not p.ndim and p.dtype not in (torch.bool, torch.uint8)
    ]
    known = all(i in at or p is None or p is Ellipsis or isinstance(p, int | slice) for i, p in enumerate(parts))
    if not at or not known:
        return torch.Tensor.__getitem__(x, index)
    made = torch.Tensor.__getitem__(x, tuple(slice(None) if i in at else p for i, p in enumerate(parts)))
    kept = [i for i, p in enumerate(parts) if not isinstance(p, int) or isinstance(p, bool)]
    through = next((i for i in kept if parts[i] is Ellipsis), len(parts))
    dims = {i: kept.index(i) + (0 if i < through else made.ndim - len(kept)) for i in at}
    for i in at:
        made = made.index_select(dims[i], parts[i].reshape(1))
    return made.squeeze(tuple(dims.values()))


def _topk(x: torch.Tensor, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """Of a vector, they may be as many as a value says."""
    return topk(x, k, largest) if is_number(k) and x.ndim == 1 else torch.topk(x, k, dim, largest, sorted)


def _allclose(
    x: torch.Tensor, y: torch.Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    return bool(torch.isclose(x, y, rtol, atol, equal_nan).all())


def _equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.shape == y.shape and bool((x == y).all())


_OTHERWISE: dict[Any, Callable[..., Any]] = {
    torch.triu_indices: _triangle("triu"),
    torch.tril_indices: _triangle("tril"),
    torch.pdist: _pdist,
    torch.std: _std,
    torch.Tensor.std: _std,
    torch.std_mean: _std_mean,
    torch.Tensor.fill_diagonal_: _fill_diagonal,
    torch.Tensor.retain_grad: lambda x: None,
    torch.Tensor.register_hook: _hook,
    torch.Tensor.resize_: _resize,
    **dict.fromkeys((torch.stft, torch.Tensor.stft), _stft),
    torch.Tensor.resize_as_: _resize_as,
    torch.Tensor.requires_grad_: _requires_grad,
    torch.bincount: _bincount,
    torch.Tensor.bincount: _bincount,
    **dict.fromkeys((torch.histc, torch.Tensor.histc), _histc),
    torch.searchsorted: _searchsorted,
    torch.bucketize: lambda x, bounds, **how: _searchsorted(bounds, x, **how),
    **dict.fromkeys((torch.cov, torch.Tensor.cov), _cov),
    **dict.fromkeys((torch.corrcoef, torch.Tensor.corrcoef), _corrcoef),
    **dict.fromkeys((torch.equal, torch.Tensor.equal), _equal),
    **dict.fromkeys((torch.allclose, torch.Tensor.allclose), _allclose),
    **dict.fromkeys((torch.topk, torch.Tensor.topk), _topk),
    torch.Tensor.__bool__: _truth_value,
    torch.Tensor.__getitem__: _getitem,
    **dict.fromkeys((torch.clamp, torch.clip, torch.Tensor.clamp, torch.Tensor.clip), _clamp),
    **{
        getattr(torch.Tensor, f"arc{name}_"): getattr(torch.Tensor, f"a{name}_")
        for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")
    },
}
"""What the tracer stops at, in other words."""


# ------------------------------------------------------------------------------------- selections


def selections(arrays: Sequence[np.ndarray], watch: Watch, drawn: dict[int, int]) -> dict[Any, Any]:
    """Decompositions of selections by truth values into positions, whose number is drawn for each mask.

    The number is a prime of four digits, another one for other shapes of the inputs, so that it is told from sizes;
    `drawn` keeps it for all traces with these shapes. Of a mask that depends on no input it is the true one.
    """
    aten = torch.ops.aten
    counts: dict[Any, int] = {}
    seed = zlib.crc32(repr([a.shape for a in arrays]).encode())

    def columns(mask: torch.Tensor, like: torch.Tensor, first: int) -> list[torch.Tensor]:
        mode = get_proxy_mode()
        assert mode is not None
        slot = get_proxy_slot(mask, mode.tracer, None)
        key = id(mask) if slot is None else structure(slot.proxy.node, mode.tracer)
        if key not in counts:
            known = int(mask.sum()) if slot is None else _count(slot.proxy.node, getattr(mode.tracer, "root", None))
            if known is None:
                known = watch.select(
                    mask, key, drawn.setdefault(key, _PRIMES[(seed + 101 * len(drawn)) % len(_PRIMES)])
                )
            counts[key] = known
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

    def chosen(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The entries where a mask over all dimensions holds, in rows along the last ones if the mask is the same along these."""
        while mask.ndim > 1 and _repeated(mask):
            mask = mask.select(-1, 0)
        rows = aten.index.Tensor(x, columns(mask, x, 0))
        return rows.reshape(-1) if mask.ndim < x.ndim else rows

    def index(x: torch.Tensor, indices: Sequence[Any]) -> Any:
        if len(indices) == 1 and indices[0].dtype == torch.bool and indices[0].ndim == x.ndim:
            return chosen(x, indices[0])
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
        return chosen(*(t if tuple(t.shape) == shape else t.expand(shape) for t in (x, mask)))

    def known(x: torch.Tensor) -> Any:
        mode = get_proxy_mode()
        slot = None if mode is None else get_proxy_slot(x, mode.tracer, None)
        found = x if slot is None or mode is None else _known(slot.proxy.node, getattr(mode.tracer, "root", None))
        watch.known = found
        return x.clone()

    def rows(x: torch.Tensor, mask: torch.Tensor) -> Any:
        mode = get_proxy_mode()
        slot = None if mode is None else get_proxy_slot(mask, mode.tracer, None)
        key = -1 - (id(mask) if slot is None or mode is None else structure(slot.proxy.node, mode.tracer))
        count = drawn.setdefault(key, _PRIMES[(seed + 101 * len(drawn)) % len(_PRIMES)])
        return torch.ops.lossforge.rows_of(x, mask, count)

    return {
        torch.ops.lossforge.known.default: known,
        torch.ops.lossforge.rows.default: rows,
        aten.index.Tensor: index,
        aten.index_put.default: index_put,
        aten.nonzero.default: nonzero,
        aten.masked_select.default: masked_select,
    }


def _repeated(mask: torch.Tensor) -> bool:
    """Whether a mask was made by repeating another along its last dimension."""
    mode = get_proxy_mode()
    slot = None if mode is None else get_proxy_slot(mask, mode.tracer, None)
    return slot is not None and _once(slot.proxy.node) is not None


def _once(node: torch.fx.Node) -> torch.fx.Node | None:
    """What an array repeats along its last dimension, where it has one entry."""
    source = node
    while str(source.target) in _REPEATS:
        source = source.all_input_nodes[0]
        shape = source.meta["val"].shape
        if len(shape) == node.meta["val"].ndim and shape[-1] == 1:
            return source
    return None


_REPEATS = frozenset(f"aten.{op}.default" for op in ("repeat", "expand", "clone", "lift_fresh_copy"))


def _plain(node: torch.fx.Node) -> torch.fx.Node:
    """A value without what is repeated first and then taken once."""
    last = node.meta["val"].ndim if "val" in node.meta and isinstance(node.meta["val"], torch.Tensor) else 0
    if str(node.target) == "aten.select.int" and node.args[1] in (-1, last):
        source = _once(node.all_input_nodes[0])
        if source is not None and str(source.target) == "aten.unsqueeze.default" and source.args[1] in (-1, last):
            return _plain(source.all_input_nodes[0])
    return node


_PRIMES = [n for n in range(1009, 9973) if all(n % d for d in range(2, 100))]


def structure(node: torch.fx.Node, tracer: Any) -> int:
    """What a value is worked out from, as a number: equal for two that are computed alike."""
    known: dict[torch.fx.Node, int] = tracer.__dict__.setdefault("lossforge_structure", {})
    node = _plain(node)
    if node not in known:
        parts: Any = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: structure(n, tracer))
        if node.op == "get_attr":
            parts = getattr(tracer.root, str(node.target))
            with _disable_current_modes():
                parts = parts.shape, parts.cpu().numpy().tobytes()
        target = "" if node.op == "get_attr" else str(node.target)
        known[node] = zlib.crc32(repr((node.op, target, parts)).encode())
    return known[node]


_FILLED = {
    **{f"aten.{op}.default": 1 for op in ("ones_like", "new_ones")},
    **{f"aten.{op}.default": 0 for op in ("zeros_like", "new_zeros")},
    **{f"aten.{op}.default": None for op in ("full_like", "new_full")},
}
"""What takes nothing but the shape of its operand, and the number it is filled with; None for the last argument."""


def _count(node: torch.fx.Node, root: Any) -> int | None:
    """How often a mask that depends on no input holds."""
    mask = _known(node, root)
    with _disable_current_modes():
        return None if mask is None else int(mask.sum())


def _known(node: torch.fx.Node, root: Any) -> torch.Tensor | None:
    """A value that depends on no input."""
    done: dict[torch.fx.Node, Any] = {}

    def evaluate(n: Any) -> Any:
        if n.op == "placeholder":
            raise LookupError
        if n not in done:
            if str(n.target) in _FILLED:
                value, made = _FILLED[str(n.target)], n.meta["val"]
                done[n] = torch.full(made.shape, n.args[-1] if value is None else value, dtype=made.dtype)
            elif n.op == "get_attr":
                done[n] = getattr(root, str(n.target))
            else:
                args, kwargs = torch.fx.node.map_arg((n.args, n.kwargs), evaluate)
                placed = str(n.target) == "lossforge.position.default"
                done[n] = args[0].nonzero()[:, args[4]] if placed else n.target(*args, **kwargs)
        return done[n]

    try:
        with _disable_current_modes():
            found: torch.Tensor = evaluate(node)
            return found
    except LookupError:
        return None
