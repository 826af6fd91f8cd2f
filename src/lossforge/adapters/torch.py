"""PyTorch: losses of tensors in autograd, in `torch.func`, under `torch.compile`, and as modules.

Every derivative is a program of ours, so that each of PyTorch's transformations has one answer: a backward
pass evaluates the vector-Jacobian program, and its own backward pass the vector-Jacobian program of that, to
any order; forward mode has the Jacobian-vector program, and `vmap` the program with one more named axis.

A reduced loss in plain eager mode takes a shorter way. Its gradient is linear in the one upstream number, so
it is computed with the value in one program, and backward only scales it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
from torch.autograd import forward_ad

from lossforge.adapters import torch_inductor, torch_kernels, torch_operators
from lossforge.adapters.base import Adapter
from lossforge.adapters.torch_eager import Value
from lossforge.adapters.torch_programs import evaluate, form, precision, ready
from lossforge.compiler import REDUCTIONS, Plan, Reduction, batched, new_axis, program_jvp, program_vjp
from lossforge.errors import ParameterError
from lossforge.ir import Kind, Port, Program
from lossforge.runtime.switch import use_kernels
from lossforge.runtime.threads import get_num_threads

if TYPE_CHECKING:
    from lossforge.loss import Loss

_Method = TypeVar("_Method", bound=Callable[..., Any])


# ------------------------------------------------------------------------------------ derivatives of programs


@dataclass(frozen=True, eq=False)
class Graph:
    """A program that knows its own derivatives."""

    program: Program
    dtype: torch.dtype
    plan: Plan | None = None
    """The plan whose value the program is: its derivatives may be written by hand."""
    whole: bool = False
    """Whether a compiler that traces the program gets one operator rather than its operations."""

    def __call__(self, arrays: Sequence[Value]) -> tuple[Tensor, ...]:
        """The outputs, without a record of how they came about."""
        if self.whole and torch_operators.spelled(self.program):
            return torch_operators.evaluated(self.program, arrays, self.dtype)
        return evaluate(self.program, arrays, self.dtype)

    def vjp(self, wrt: tuple[str, ...]) -> Graph:
        """inputs, a cotangent for each output → a cotangent for each of `wrt`."""
        return Graph(self.plan.vjp(wrt) if self.plan else program_vjp(self.program, wrt), self.dtype, None, self.whole)

    def jvp(self, wrt: tuple[str, ...]) -> Graph:
        """inputs, a tangent for each of `wrt` → a tangent for each output."""
        return Graph(self.plan.jvp(wrt) if self.plan else program_jvp(self.program, wrt), self.dtype, None, self.whole)

    def batched(self, which: tuple[str, ...]) -> Graph:
        """The program with one more, leading axis on the inputs `which` and on all outputs."""
        return Graph(batched(self.program, which, new_axis(self.program)), self.dtype, None, self.whole)


def _unseen_by_dynamo(method: _Method) -> _Method:
    """A method that autograd calls is left alone, where a function under `torch.compile` calls autograd."""
    skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
    set_code_exec_strategy(method.__code__, skip)  # `torch.compiler.disable` would load all of Dynamo
    return method


class Evaluation(torch.autograd.Function):
    """A graph in autograd and `torch.func`, differentiable to any order in both modes."""

    @staticmethod
    def forward(graph: Graph, *arrays: Value) -> tuple[Tensor, ...]:
        """The program's outputs."""
        return graph(arrays)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the inputs."""
        ctx.graph, *arrays = inputs
        _save(ctx, arrays)

    @staticmethod
    @_unseen_by_dynamo
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """The vector-Jacobian program."""
        graph, needed = ctx.graph, ctx.needs_input_grad[1:]
        found = iter(apply(graph.vjp(_chosen(graph.program.inputs, needed)), (*_saved(ctx), *cotangents)))
        return (None, *(next(found) if n else None for n in needed))

    @staticmethod
    @_unseen_by_dynamo
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        """The Jacobian-vector program."""
        graph, ports = ctx.graph, ctx.graph.program.inputs
        moving = {
            p.name: t for p, t in zip(ports, tangents, strict=True) if t is not None and p.node.kind is Kind.FLOAT
        }
        return apply(graph.jvp(tuple(moving)), (*_saved(ctx), *moving.values()))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], graph: Graph, *arrays: Value) -> tuple[Any, Any]:
        """The program with one more axis."""
        dims = in_dims[1:]
        which = _chosen(graph.program.inputs, [d is not None for d in dims])
        moved = [_leading(a, d) for a, d in zip(arrays, dims, strict=True)]
        outputs = apply(graph.batched(which), moved)
        return outputs, (0,) * len(outputs)


def _leading(value: Value, dim: int | None) -> Value:
    return value.movedim(dim, 0) if isinstance(value, Tensor) and dim is not None else value


@dataclass(frozen=True, eq=False)
class _Step:
    """How a reduced loss is taken, with its gradient, for tensors of one form."""

    plan: Plan
    dtype: torch.dtype
    wrt: tuple[str, ...]
    run: torch_kernels.Run
    """inputs → loss and, unless that is left to the backward pass, a gradient for each of `wrt`."""
    places: tuple[int | None, ...]
    """For each input its place in `wrt`."""
    tensors: tuple[int, ...]
    """The places of the inputs that are tensors."""
    numbers: tuple[int, ...]
    """The places of the others."""
    leading: int | None
    """How many tensors there are, if they come first."""

    def inputs(self, ctx: Any, tensors: Sequence[Tensor]) -> list[Value]:
        """The inputs that were kept."""
        found: dict[int, Value] = dict(zip(self.tensors, tensors, strict=True))
        found |= zip(self.numbers, ctx.numbers, strict=True)
        return [found[i] for i in range(len(found))]


def _step(plan: Plan, arrays: Sequence[Value], needed: Sequence[bool]) -> _Step:
    dtype, wrt = precision(plan.inputs, arrays), _chosen(plan.inputs, needed)
    program = plan.value() if _is_late(arrays, needed) else plan.value_and_gradient(wrt)
    described = form(arrays)
    run = None if described is None else ready(program, arrays, dtype, described, narrow=True)
    places = tuple(wrt.index(p.name) if n else None for p, n in zip(plan.inputs, needed, strict=True))
    tensors = tuple(i for i, a in enumerate(arrays) if isinstance(a, Tensor))
    numbers = tuple(i for i, a in enumerate(arrays) if not isinstance(a, Tensor))
    leading = len(tensors) if tensors == tuple(range(len(tensors))) else None
    run = run or (lambda *values: evaluate(program, values, dtype))
    return _Step(plan, dtype, wrt, run, places, tensors, numbers, leading)


def _is_late(arrays: Sequence[Value], needed: Sequence[bool]) -> bool:
    """Whether the gradient is left to the backward pass, which knows the factor that it is multiplied by.

    float16 would lose small gradients that a large factor (of a GradScaler) saves. The exponents of bfloat16 are those
    of float32.
    """
    owners = (a for a, n in zip(arrays, needed, strict=True) if n)
    return any(isinstance(a, Tensor) and a.dtype is torch.float16 for a in owners)


_MAX_STEPS = 1024
_steps: dict[Any, _Step | None] = {}


def _eager_step(plan: Plan, arrays: Sequence[Value]) -> _Step | None:
    """`_step` where this is plain eager mode, kept where tensors are plain too; None elsewhere, and without a gradient."""
    described = form(arrays) if forward_ad._current_level < 0 else None
    if described is None:
        needed = _needed(arrays)
        return _step(plan, arrays, needed) if True in needed and not _is_transformed(arrays) else None
    # A step holds its plan, so that another plan cannot have its identity.
    key = (id(plan), use_kernels(), get_num_threads(), described)
    try:
        return _steps[key]
    except KeyError:
        if len(_steps) >= _MAX_STEPS:
            _steps.clear()
        needed = _needed(arrays)
        found = _steps[key] = _step(plan, arrays, needed) if True in needed else None
        return found


def _needed(arrays: Sequence[Value]) -> tuple[bool, ...]:
    """Which inputs have a gradient."""
    return tuple([isinstance(a, Tensor) and a.requires_grad for a in arrays])


class ReducedLoss(torch.autograd.Function):
    """A reduced loss in plain eager mode: the gradient comes with the value, and backward scales it."""

    @staticmethod
    def forward(ctx: Any, step: _Step, *arrays: Value) -> Tensor:
        """The loss."""
        loss, *ctx.gradients = step.run(*arrays)
        ctx.step, count = step, step.leading
        if count is not None:  # the quick way to say the same
            ctx.save_for_backward(*arrays[:count])
            ctx.numbers = arrays[count:]
        else:
            ctx.save_for_backward(*[arrays[i] for i in step.tensors])
            ctx.numbers = [arrays[i] for i in step.numbers]
        return loss

    @staticmethod
    @_unseen_by_dynamo
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient times the upstream one."""
        step, tensors = ctx.step, ctx.saved_tensors  # an error if one was changed in place
        # Given away once, as it may become somebody's `.grad`; a second pass computes it anew.
        found = None if torch.is_grad_enabled() else vars(ctx).pop("gradients", None)
        if not found:
            found = apply(Graph(step.plan.vjp(step.wrt), step.dtype), (*step.inputs(ctx, tensors), cotangent))
        elif torch._C._len_torch_dispatch_stack():
            found = [(g * cotangent).to(g.dtype) for g in found]
        elif torch_kernels.is_plain(cotangent):
            found = found if cotangent.item() == 1 else [g.mul_(cotangent) for g in found]
        else:
            found = [torch_inductor.scaled(g, cotangent) for g in found]
        return (None, *[None if place is None else found[place] for place in step.places])


class WholeLoss(torch.autograd.Function):
    """A reduced loss that a compiler leaves whole: its gradient waits for the backward pass outside of the graph."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, dtype: torch.dtype, *arrays: Value) -> Tensor:
        """The loss."""
        ctx.plan, ctx.dtype, ctx.wrt = plan, dtype, _chosen(plan.inputs, ctx.needs_input_grad[2:])
        loss, ctx.token = torch_operators.reduced(plan, ctx.wrt, arrays, dtype)
        _keep(ctx, arrays)
        return loss

    @staticmethod
    @_unseen_by_dynamo
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient times the upstream one."""
        plan, dtype, wrt, arrays = ctx.plan, ctx.dtype, ctx.wrt, _saved(ctx)
        if torch.is_grad_enabled():
            found = apply(Graph(plan.vjp(wrt), dtype, whole=True), (*arrays, cotangent))
        else:
            found = torch_operators.reduced_backward(plan, wrt, arrays, dtype, cotangent, ctx.token)
        gradients = dict(zip(wrt, found, strict=True))
        return (None, None, *[gradients.get(p.name) for p in plan.inputs])


_apply_reduced_loss: Callable[..., Tensor] = super(torch.autograd.Function, ReducedLoss).apply
"""`ReducedLoss.apply` without what it does for `torch.func`, which takes 4 µs and is not at work here."""


def _chosen(ports: Sequence[Port], chosen: Sequence[bool]) -> tuple[str, ...]:
    return tuple(p.name for p, c in zip(ports, chosen, strict=True) if c)


def _keep(ctx: Any, arrays: Sequence[Value]) -> tuple[Tensor, ...]:
    """Keep a function's inputs for its backward pass; tensors so that a change in place is noticed."""
    tensors = tuple(a for a in arrays if isinstance(a, Tensor))
    ctx.numbers = [None if isinstance(a, Tensor) else a for a in arrays]
    ctx.save_for_backward(*tensors)
    return tensors


def _save(ctx: Any, arrays: Sequence[Value]) -> None:
    """Keep a function's inputs for its backward pass and for forward mode."""
    ctx.save_for_forward(*_keep(ctx, arrays))


def _saved(ctx: Any) -> list[Value]:
    return _merged(ctx.numbers, ctx.saved_tensors)


def _merged(numbers: Sequence[float | None], tensors: Sequence[Tensor]) -> list[Value]:
    rest = iter(tensors)
    return [next(rest) if a is None else a for a in numbers]


def apply(graph: Graph, arrays: Sequence[Value]) -> tuple[Tensor, ...]:
    """The graph's outputs, recorded where somebody may differentiate them."""
    if _requires_grad(arrays) or _is_transformed(arrays):
        results: tuple[Tensor, ...] = Evaluation.apply(graph, *arrays)  # type: ignore[no-untyped-call]
        return results
    return graph(arrays)


def _is_eager() -> bool:
    """Whether calls of plain tensors are taken as they come: recorded, and watched by nobody."""
    return (
        torch.is_grad_enabled()
        and forward_ad._current_level < 0
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
    )


def _requires_grad(arrays: Sequence[Value]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arrays)


def _is_transformed(arrays: Sequence[Value]) -> bool:
    """Whether this is not plain eager execution but `torch.func`, forward mode, tracing, or a subclass's."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    for a in arrays:
        if type(a) not in _PLAIN_TYPES and isinstance(a, Tensor):
            return True
    return False


_PLAIN_TYPES = frozenset({Tensor, nn.Parameter})


def _is_known(tensor: Tensor) -> bool:
    """Whether a tensor's values can be read, and without waiting for a GPU."""
    return (
        tensor.device.type == "cpu"
        and type(tensor) in (Tensor, nn.Parameter)
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)  # of autograd.grad(is_grads_batched=True)
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None  # of make_fx
    )


# ------------------------------------------------------------------------------------- the adapter


class TorchAdapter(Adapter):
    """See `lossforge.adapters.base.Adapter`."""

    name = "torch"

    def is_array(self, value: Any) -> bool:
        """Whether `value` is a tensor."""
        return isinstance(value, Tensor)

    def dtype(self, array: Any) -> str:
        """The dtype's plain name."""
        return str(array.dtype).removeprefix("torch.")

    def shape(self, array: Any) -> tuple[int, ...]:
        """The shape."""
        return tuple(array.shape)

    def squeeze(self, array: Any, dimensions: Sequence[int]) -> Any:
        """The tensor without some dimensions of size 1."""
        return array.squeeze(tuple(dimensions))

    def out_of_range(self, index: Any, size: int, mask: Any | None) -> tuple[int, int] | None:
        """The extremes of `index` if one lies outside of 0 … size − 1; None where values cannot be read."""
        if not _is_known(index) or (mask is not None and not _is_known(mask)):
            return None
        counted = index.detach() if mask is None else index.detach()[mask.bool()]
        if counted.numel() == 0:
            return None
        low, high = (int(v) for v in torch.aminmax(counted.to(torch.int64)))
        return (low, high) if low < 0 or high >= size else None

    def form(self, array: Any) -> tuple[Hashable, ...]:
        """Of a plain CPU tensor all that a kernel depends on."""
        return torch_kernels.form_of(array) or (array.dtype, array.shape)

    def call(self, plan: Plan, arrays: Sequence[Value]) -> Tensor:
        """The loss, in autograd."""
        if plan.reduction != "none" and torch.is_grad_enabled():
            step = _eager_step(plan, arrays)
            if step is not None:
                loss: Tensor = _apply_reduced_loss(step, *arrays)
                return loss
            needed = _needed(arrays)
            if True in needed and torch_operators.wanted(arrays) and self._as_one(plan, arrays, needed):
                found: Tensor = WholeLoss.apply(plan, precision(plan.inputs, arrays), *arrays)  # type: ignore[no-untyped-call]
                return found
        whole = torch_operators.wanted(arrays)
        return apply(Graph(plan.value(), precision(plan.inputs, arrays), plan, whole), arrays)[0]

    def ready(self, plan: Plan, arrays: Sequence[Value]) -> Callable[[Sequence[Value]], Tensor] | None:
        """Plain eager calls go straight to their step."""
        if plan.reduction == "none" or torch_kernels.form(arrays) is None or True not in _needed(arrays):
            return partial(self.call, plan)
        kernels, threads = use_kernels(), get_num_threads()
        step = _eager_step(plan, arrays) if _is_eager() else None
        if step is None:
            return None

        def run(arrays: Sequence[Value]) -> Tensor:
            if _is_eager() and use_kernels() is kernels and get_num_threads() == threads:
                return _apply_reduced_loss(step, *arrays)
            return self.call(plan, arrays)

        return run

    @staticmethod
    def _as_one(plan: Plan, arrays: Sequence[Value], needed: Sequence[bool]) -> bool:
        """Whether a compiler can be given the loss with its gradient: no transform, and nothing that is computed late."""
        return (
            not torch._C._are_functorch_transforms_active()
            and forward_ad._current_level < 0
            and not _is_late(arrays, needed)
            and torch_operators.spelled(plan.value_and_gradient(_chosen(plan.inputs, needed)))
        )

    def run(self, program: Program, arrays: Sequence[Value]) -> tuple[Tensor, ...]:
        """The program's outputs: constants for autograd, but a function of their inputs for `torch.func`."""
        dtype = precision(program.inputs, arrays)
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return apply(Graph(program, dtype, whole=torch_operators.wanted(arrays)), arrays)
        with torch.no_grad():
            return Graph(program, dtype, whole=torch_operators.wanted(arrays))(arrays)


# ------------------------------------------------------------------------------------- the module


class LossModule(nn.Module):
    """A loss as a module: parameters are set once, and may be learned.

    Args:
        loss: the loss.
        reduction: "mean", "sum" or "none".
        learn: parameters to learn; each starts at its given value or default.
        parameters: values for the loss's parameters. An `nn.Parameter` (with no dimensions) is learned,
            another tensor is kept as a buffer, a number stays a number.

    Raises:
        ParameterError: a parameter is unknown, missing, or not a scalar.
    """

    def __init__(
        self, loss: Loss, *, reduction: Reduction | None = None, learn: Sequence[str] = (), **parameters: Any
    ) -> None:
        super().__init__()
        reduction = loss.reduction if reduction is None else reduction
        if reduction not in REDUCTIONS:
            raise ParameterError(f'{loss.name}: reduction={reduction!r}; expected "mean", "sum" or "none"')
        values = loss.parameter_values(parameters)
        for name in (learn,) if isinstance(learn, str) else learn:
            if name not in values:
                known = ", ".join(values) or "none"
                raise ParameterError(f"{loss.name}: learn={name!r} is no parameter; it has {known}")
            if not isinstance(values[name], nn.Parameter):
                values[name] = nn.Parameter(torch.as_tensor(values[name], dtype=torch.get_default_dtype()))
        self.loss = loss
        self.reduction = reduction
        self.numbers: dict[str, Any] = {}
        self.tensors: list[str] = []
        for name, value in values.items():
            self._keep(name, value)

    def _keep(self, name: str, value: Any) -> None:
        if not isinstance(value, Tensor):
            self.numbers[name] = value
            return
        if hasattr(self, name):
            raise ParameterError(f"{self.loss.name}: modules have an attribute {name!r} already; rename it")
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        else:
            self.register_buffer(name, value)
        self.tensors.append(name)

    def forward(self, *arrays: Any, weight: Any = None, mask: Any = None, **named: Any) -> Tensor:
        """The loss; see `lossforge.Loss.__call__`."""
        values = {**self.numbers, **{n: getattr(self, n) for n in self.tensors}, **named}
        result: Tensor = self.loss(*arrays, weight=weight, mask=mask, reduction=self.reduction, **values)
        return result

    def extra_repr(self) -> str:
        """The loss, its parameters and the reduction."""
        learned = (f"{n}={getattr(self, n).item():g} ({_role(self, n)})" for n in self.tensors)
        numbers = (f"{n}={v!r}" for n, v in self.numbers.items())
        return ", ".join([self.loss.name, *numbers, *learned, f"reduction={self.reduction!r}"])


def _role(module: nn.Module, name: str) -> str:
    return "learned" if isinstance(getattr(module, name), nn.Parameter) else "buffer"
