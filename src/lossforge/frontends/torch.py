"""PyTorch: functions and modules, as the core ATen operations that `make_fx` records."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lossforge.errors import AdoptionError
from lossforge.frontends.recording import Recording, kept, kept_numbers
from lossforge.frontends.sources import first_line, is_of, line
from lossforge.frontends.torch_builtins import builtins_traced
from lossforge.frontends.torch_constants import Constants
from lossforge.frontends.torch_functions import functions_traced
from lossforge.frontends.torch_graph import decompositions, read, stack_traces
from lossforge.frontends.torch_memory import Memory
from lossforge.frontends.torch_numbers import numbers_traced
from lossforge.frontends.torch_rules import RULES
from lossforge.frontends.torch_tracing import OWN, Watch, line_of_user, raised_in, selections
from lossforge.frontends.torch_ways import Ways


class TorchFrontEnd:
    """See `lossforge.frontends.recording.FrontEnd`."""

    name = "torch"
    patience = 1500

    def __init__(self, function: Callable[..., Any], device: str = "cpu") -> None:
        self.function, self.traced = function, 0
        self.device = device
        """Where it runs: it may hold tensors there."""
        parameters = function.named_parameters() if isinstance(function, torch.nn.Module) else ()
        if trained := next((name for name, p in parameters if p.requires_grad), None):
            raise AdoptionError(
                f"{first_line(function)}: {type(function).__name__} has trainable parameters ({trained}); make them arguments of a "
                f"function, or fix them with .requires_grad_(False)"
            )
        self.rules = RULES
        self.memory = Memory(function)
        self.idle: set[Any] = set()
        """See `Ways`."""
        self.asking: list[dict[str, Any]] = []
        """The names of the modules that ask for numbers of Python which depend on values."""
        self.at = ""
        """The last operation of PyTorch that was recorded, and its line."""

    def _tensor(self, array: np.ndarray, order: Literal["C", "K"] = "C") -> torch.Tensor:
        """A copy of an array that the function may write to."""
        return torch.from_numpy(np.array(array, order=order)).to(self.device)

    def signature(self) -> inspect.Signature:
        """The names of the arguments."""
        return inspect.signature(getattr(self.function, "forward", self.function))

    def attributes(self) -> dict[str, float]:
        """Numbers that a module keeps, which may be parameters of the loss."""
        return kept_numbers(self.function)

    def check(
        self, examples: Sequence[np.ndarray], others: Sequence[np.ndarray], parameters: Mapping[str, Any]
    ) -> None:
        """Refuse what gives another value when it was called before, since it remembers.

        Raises:
            AdoptionError: it does.
        """
        with kept(self.function, parameters) as options, warnings.catch_warnings():
            warnings.simplefilter("ignore")

            def last(*calls: Sequence[np.ndarray]) -> torch.Tensor:
                with self.memory.kept():
                    return [_one(self.function(*map(self._tensor, a), **options)) for a in calls][-1]

            try:
                fresh = last(examples)
                if not self.memory.written:
                    return
                pairs = [(fresh, last(examples, examples)), (fresh, last(others, examples))]
            except Exception:  # it is told of where the function is recorded
                return
        if not all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, equal_nan=True) for a, b in pairs):
            names = ", ".join(map(repr, self.memory.written))
            raise AdoptionError(
                f"its value depends on earlier calls, which it keeps in {names}; make that an argument of a function, and update it "
                f"outside"
            )

    def record(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Recording:
        """The ways that the function takes, each recorded under `make_fx`."""
        return self._recorded(arrays, parameters, Ways.recorded)

    def usual(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Recording:
        """The way that it takes where there is something to work with."""
        return self._recorded(arrays, parameters, Ways.usual)

    def _recorded(
        self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any], which: Callable[[Ways], Recording]
    ) -> Recording:
        tensors = [self._tensor(a) for a in arrays]
        with kept(self.function, parameters) as options, warnings.catch_warnings():
            warnings.simplefilter("ignore")

            drawn: dict[int, int] = {}
            watches: list[Watch] = []

            def trace(watch: Watch) -> Recording:
                watches.append(watch)

                def call(*args: torch.Tensor) -> Any:
                    with (
                        Constants(), watch, functions_traced(), builtins_traced(), numbers_traced(self.asking),
                        self.memory.fresh(),
                    ):  # fmt: skip
                        return _one(self.function(*args, **options))

                table = {**decompositions(), **selections(arrays, watch, drawn)}
                table[torch.ops.aten._local_scalar_dense.default] = watch.decide
                functional = torch.func.functionalize(call, remove="mutations")

                def told(*args: torch.Tensor) -> Any:
                    return functional(*args), *(e.value for e in watch.events)

                with stack_traces():
                    make = make_fx(told, decomposition_table=table, tracing_mode="fake", _allow_non_fake_inputs=True)
                    try:
                        traced = make(*tensors)
                        self.traced += max(len(traced.graph.nodes) // 2 - watch.calls, 0)
                        return read(traced, arrays)
                    except AdoptionError as error:
                        place = raised_in(error)
                        raise AdoptionError(
                            f"{place}: {error}" if place and place not in str(error) else str(error)
                        ) from error
                    finally:
                        self.at = watch.at
                        self.traced += watch.calls

            while True:
                watches.clear()
                try:
                    return which(Ways(trace, self.idle))
                except Exception:
                    asking = watches[-1].asking if watches else None
                    if asking is None or any(asking is m for m in self.asking):
                        raise
                    self.asking.append(asking)  # once more, with numbers as tensors there

    def explain(self, error: Exception) -> str:
        """What an exception of the tracer means for the user."""
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        name, place = type(error).__name__, raised_in(error) or self.at
        place = f"{place}: " if place else ""
        if "DataDependent" in name or "data-dependent" in text or "item" in text:
            return (
                f"{place}it takes a decision or a Python number from values ({text[:200]}); use torch.where instead of `if`, and "
                f"tensors instead of .item() and .numpy()"
            )
        if "in-place" in text:
            return f"{place}an argument is written to in place ({text[:200]}); use the result instead"
        return (
            f"{place}PyTorch cannot run this at other sizes, or trace it ({name}: {text[:300]}); write it with other operations, or "
            f"give its result as an argument"
        )

    def noted(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """What the lines of the source work out, in their order."""
        notes = _Noted()
        with kept(self.function, parameters) as options, warnings.catch_warnings(), self.memory.kept(), notes:
            warnings.simplefilter("ignore")
            self.function(*map(self._tensor, arrays), **options)
        return notes.found

    def run(
        self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any], wrt: Sequence[int]
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """The value, and autograd's gradient of its sum."""
        tensors = [self._tensor(a, order="K") for a in arrays]
        for i in wrt:
            tensors[i].requires_grad_(True)
        exact = any(t.dtype == torch.float64 for t in tensors)
        with (
            kept(self.function, parameters) as options,
            warnings.catch_warnings(),
            _exactly() if exact else nullcontext(),
            self.memory.kept(),
        ):
            warnings.simplefilter("ignore")
            value = _one(self.function(*tensors, **options))
            found = torch.autograd.grad(value.sum(), [tensors[i] for i in wrt], allow_unused=True)
        gradients = [torch.zeros_like(tensors[i]) if g is None else g for i, g in zip(wrt, found, strict=True)]
        return value.detach().cpu().numpy(), [g.detach().cpu().numpy() for g in gradients]

    def undefined(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any], wrt: Sequence[int]) -> str:
        """The operation and the line at which the gradient becomes undefined."""
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                with torch.autograd.detect_anomaly(), self.memory.kept(), kept(self.function, parameters) as options:
                    tensors = [self._tensor(a).requires_grad_(i in wrt) for i, a in enumerate(arrays)]
                    torch.autograd.grad(_one(self.function(*tensors, **options)).sum(), [tensors[i] for i in wrt])
            except RuntimeError as error:
                operation = str(error).partition("'")[2].partition("'")[0]
                forward = re.findall(r'File "([^"]+)", line (\d+)', "".join(str(w.message) for w in told))
                mine = [line(file, int(number)) for file, number in forward if not is_of(file, OWN)]
                return f"{operation}, in {mine[-1]}" if mine else ""
        return ""


class _Noted(TorchFunctionMode):
    """The arrays that each line works out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, np.ndarray]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype.is_floating_point:
            with torch._C.DisableTorchFunction():
                self.found.append((line_of_user(), result.detach().cpu().numpy().copy()))
        return result


class _Exactly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Conversions to float32 keep the digits of float64: what float32 loses is not what another reading is told by."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is torch.ops.aten._to_copy.default and options.get("dtype") is torch.float32:
            options = {**options, "dtype": torch.float64}
        return func(*args, **options)


def _exactly() -> Any:
    return _Exactly()  # type: ignore[no-untyped-call]


def front_end(function: Callable[..., Any], device: str = "cpu") -> TorchFrontEnd:
    """The front end for one function, which runs on a device."""
    return TorchFrontEnd(function, device)


def _one(result: Any) -> Any:
    if isinstance(result, int | float):  # what is left to do where there is nothing to work with
        return torch.full((), float(result))
    if not isinstance(result, torch.Tensor):
        several = isinstance(result, tuple | list | dict)
        advice = "adopt a function that returns one of its parts" if several else "return a tensor"
        raise AdoptionError(f"the loss returned a {type(result).__name__}, not one tensor; {advice}")
    return result
