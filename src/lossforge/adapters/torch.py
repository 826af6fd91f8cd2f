"""PyTorch: losses of tensors in autograd, in `torch.func`, under `torch.compile`, and as modules.

Every derivative is a program of ours, so that each of PyTorch's transformations has one answer: a backward pass
evaluates the vector-Jacobian program, and its own backward pass the vector-Jacobian program of that, to any order;
forward mode has the Jacobian-vector program, and `vmap` the program with one more named axis.

A reduced loss in plain eager mode takes a shorter way. Its gradient is linear in the one upstream number, so it is
computed with the value in one program, and backward only scales it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lossforge import ir
from lossforge.codegen.emitter import assemble, compile_text, emit
from lossforge.codegen.torch import torch_backend
from lossforge.compiler import REDUCTIONS, Plan, Reduction, batched, program_jvp, program_vjp
from lossforge.errors import ParameterError
from lossforge.ir import Kind, Node, Port, Program
from lossforge.simplify import erase_gradient_marks

if TYPE_CHECKING:
    from lossforge.loss import Loss

Value: TypeAlias = Tensor | float
"""What a program takes: a tensor, or a Python number where the input has no axes."""


# ------------------------------------------------------------------------------------- running a program


@dataclass(frozen=True)
class _Compiled:
    function: Callable[..., Any]
    kinds: tuple[Kind, ...]
    like: tuple[int | None, ...]
    """The position of the input that lends each output its dtype."""
    shared: tuple[bool, ...]
    """Whether an output might share memory with an input, or with an output before it."""


@lru_cache(maxsize=1024)
def _compiled(program: Program) -> _Compiled:
    backend = torch_backend()
    function = compile_text(assemble(backend, [emit(program, backend)]), "program", "torch")
    names = [p.name for p in program.inputs]
    stored = [_stored(n) for n in erase_gradient_marks([o.node for o in program.outputs])]
    return _Compiled(
        function,
        tuple(p.node.kind for p in program.inputs),
        tuple(None if n is None else names.index(n) for n in program.like),
        tuple(n.op == "input" or n in stored[:i] for i, n in enumerate(stored)),
    )


def _stored(node: Node) -> Node:
    """The node whose memory this one is a view of."""
    while node.op == "rename":
        (node,) = node.args
    return node


def evaluate(
    program: Program, arrays: Sequence[Value], dtype: torch.dtype, *, narrow: bool = True
) -> tuple[Tensor, ...]:
    """The outputs of a program, none of which shares memory with an input or another. Every program runs here.

    Args:
        program: what to compute.
        arrays: a value for each input.
        dtype: the precision to compute in.
        narrow: whether an output takes the dtype of the input that it belongs to; otherwise it keeps `dtype`.
    """
    compiled = _compiled(program)
    device = next(a.device for a in arrays if isinstance(a, Tensor))
    wanted = {Kind.FLOAT: dtype, Kind.INDEX: torch.int64, Kind.BOOL: torch.bool}
    ready = [_as(a, wanted[kind], device) for a, kind in zip(arrays, compiled.kinds, strict=True)]
    autocast = torch.is_autocast_enabled(device.type)
    with torch.autocast(device.type, enabled=False) if autocast else nullcontext():
        found = compiled.function(*ready)
    results = found if isinstance(found, tuple) else (found,)
    if any(compiled.shared):
        results = tuple(r.clone() if s else r for r, s in zip(results, compiled.shared, strict=True))
    if not narrow:
        return results
    return tuple(r if i is None else narrowed(r, arrays[i]) for r, i in zip(results, compiled.like, strict=True))


def _as(value: Value, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=dtype, device=device)  # on a GPU a fill, which does not wait
    return value if value.dtype is dtype else value.to(dtype)


def narrowed(gradient: Tensor, owner: Value) -> Tensor:
    """The gradient in the dtype, and on the device, of what it belongs to."""
    if not isinstance(owner, Tensor) or not owner.is_floating_point():
        return gradient
    if gradient.dtype is owner.dtype and gradient.device == owner.device:
        return gradient
    return gradient.to(owner.device, owner.dtype)


def precision(ports: Sequence[Port], arrays: Sequence[Value]) -> torch.dtype:
    """The precision to compute in: float64 if an array is, else float32. Scalars decide only where nothing else can."""
    tensors = [(p, a.dtype) for p, a in zip(ports, arrays, strict=True) if isinstance(a, Tensor)]
    dtypes = [d for p, d in tensors if p.order] or [d for _, d in tensors]
    return torch.float64 if torch.float64 in dtypes else torch.float32


# ------------------------------------------------------------------------------------- derivatives of programs


@dataclass(frozen=True, eq=False)
class Graph:
    """A program that knows its own derivatives."""

    program: Program
    dtype: torch.dtype
    plan: Plan | None = None
    """The plan whose value the program is: its derivatives may be written by hand."""

    def vjp(self, wrt: tuple[str, ...]) -> Graph:
        """inputs, a cotangent for each output → a cotangent for each of `wrt`."""
        return Graph(self.plan.vjp(wrt) if self.plan else program_vjp(self.program, wrt), self.dtype)

    def jvp(self, wrt: tuple[str, ...]) -> Graph:
        """inputs, a tangent for each of `wrt` → a tangent for each output."""
        return Graph(self.plan.jvp(wrt) if self.plan else program_jvp(self.program, wrt), self.dtype)

    def batched(self, which: tuple[str, ...]) -> Graph:
        """The program with one more, leading axis on the inputs `which` and on all outputs."""
        return Graph(batched(self.program, which, _new_axis(self.program)), self.dtype)

    def names(self, chosen: Sequence[bool]) -> tuple[str, ...]:
        """The names of some inputs."""
        return tuple(p.name for p, c in zip(self.program.inputs, chosen, strict=True) if c)


@lru_cache(maxsize=1024)
def _new_axis(program: Program) -> str:
    ports = (*program.inputs, *program.outputs)
    taken = {a for p in ports for a in p.order} | {a for n in ir.topological([p.node for p in ports]) for a in n.axes}
    axis = "vmap"
    while axis in taken:
        axis += "_"
    return axis


class Evaluation(torch.autograd.Function):
    """A graph in autograd and `torch.func`, differentiable to any order in both modes."""

    @staticmethod
    def forward(graph: Graph, *arrays: Value) -> tuple[Tensor, ...]:  # type: ignore[override]
        """The program's outputs."""
        return evaluate(graph.program, arrays, graph.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the inputs."""
        ctx.graph, *arrays = inputs
        _save(ctx, arrays)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """The vector-Jacobian program."""
        needed = ctx.needs_input_grad[1:]
        found = iter(apply(ctx.graph.vjp(ctx.graph.names(needed)), (*_saved(ctx), *cotangents)))
        return (None, *(next(found) if n else None for n in needed))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        """The Jacobian-vector program."""
        graph = ctx.graph
        moving = [
            t is not None and p.node.kind is Kind.FLOAT for t, p in zip(tangents, graph.program.inputs, strict=True)
        ]
        chosen = [t for t, m in zip(tangents, moving, strict=True) if m]
        return apply(graph.jvp(graph.names(moving)), (*_saved(ctx), *chosen))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], graph: Graph, *arrays: Value) -> tuple[Any, Any]:
        """The program with one more axis."""
        _, *dims = in_dims
        moved = [a if d is None else a.movedim(d, 0) for a, d in zip(arrays, dims, strict=True)]  # type: ignore[union-attr]
        outputs = apply(graph.batched(graph.names([d is not None for d in dims])), moved)
        return outputs, (0,) * len(outputs)


class ReducedLoss(torch.autograd.Function):
    """A reduced loss in plain eager mode: the gradient comes with the value, and backward scales it."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, dtype: torch.dtype, *arrays: Value) -> Tensor:  # type: ignore[override]
        """The loss."""
        ctx.plan, ctx.dtype = plan, dtype
        wrt = _needed(ctx)
        # Not narrowed yet: half precision would lose what a large upstream factor (a GradScaler's) is there to save.
        loss, *gradients = evaluate(plan.value_and_gradient(wrt), arrays, dtype, narrow=False)
        ctx.gradients = dict(zip(wrt, gradients, strict=True))
        _save(ctx, arrays)
        return loss

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradient times the upstream one."""
        plan, dtype, arrays, wrt = ctx.plan, ctx.dtype, _saved(ctx), _needed(ctx)
        if torch.is_grad_enabled():
            found = dict(zip(wrt, apply(Graph(plan.vjp(wrt), dtype), (*arrays, cotangent)), strict=True))
        else:
            # Given away once, so that it may become somebody's `.grad`; a second pass over the graph computes anew.
            found = vars(ctx).pop("gradients", None)
            if found is None:
                found = dict(zip(wrt, evaluate(plan.gradient(wrt), arrays, dtype, narrow=False), strict=True))
            if not (_is_known(cotangent) and cotangent.item() == 1):
                found = {n: g * cotangent for n, g in found.items()}
        gradients = (
            narrowed(found[p.name], a) if n else None
            for p, a, n in zip(plan.inputs, arrays, ctx.needs_input_grad[2:], strict=True)
        )
        return (None, None, *gradients)


def _needed(ctx: Any) -> tuple[str, ...]:
    return tuple(p.name for p, n in zip(ctx.plan.inputs, ctx.needs_input_grad[2:], strict=True) if n)


def _save(ctx: Any, arrays: Sequence[Value]) -> None:
    """Keep a function's inputs; tensors so that a change in place is noticed."""
    ctx.numbers = [None if isinstance(a, Tensor) else a for a in arrays]
    tensors = [a for a in arrays if isinstance(a, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _saved(ctx: Any) -> list[Value]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if a is None else a for a in ctx.numbers]


def apply(graph: Graph, arrays: Sequence[Value]) -> tuple[Tensor, ...]:
    """The graph's outputs, recorded where somebody may differentiate them."""
    if _is_recorded(arrays):
        results: tuple[Tensor, ...] = Evaluation.apply(graph, *arrays)
        return results
    return evaluate(graph.program, arrays, graph.dtype)


def _is_recorded(arrays: Sequence[Value]) -> bool:
    if _is_transformed(arrays):
        return True
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arrays)


def _is_transformed(arrays: Sequence[Any]) -> bool:
    """Whether something else than plain eager execution goes on: `torch.func`, forward mode, tracing, a subclass."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or any(isinstance(a, Tensor) and type(a) not in (Tensor, nn.Parameter) for a in arrays)
    )


def _is_known(tensor: Tensor) -> bool:
    """Whether a tensor's values can be read, and without waiting for a GPU."""
    return (
        tensor.device.type == "cpu"
        and type(tensor) in (Tensor, nn.Parameter)
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)  # of autograd.grad(is_grads_batched=True)
    )


# ------------------------------------------------------------------------------------- the adapter


class TorchAdapter:
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
        """The extremes of `index` if one lies outside of 0 … size − 1; None where the values cannot be read."""
        if not _is_known(index) or (mask is not None and not _is_known(mask)):
            return None
        counted = index.detach() if mask is None else index.detach()[mask.bool()]
        if counted.numel() == 0:
            return None
        low, high = (int(v) for v in torch.aminmax(counted.to(torch.int64)))
        return (low, high) if low < 0 or high >= size else None

    def call(self, plan: Plan, arrays: Sequence[Value]) -> Tensor:
        """The loss, in autograd."""
        dtype = precision(plan.inputs, arrays)
        if plan.reduction != "none" and _is_recorded(arrays) and not _is_transformed(arrays):
            loss: Tensor = ReducedLoss.apply(plan, dtype, *arrays)
            return loss
        return apply(Graph(plan.value(), dtype, plan), arrays)[0]

    def run(self, program: Program, arrays: Sequence[Value]) -> tuple[Tensor, ...]:
        """The program's outputs: constants for autograd, but a function of their inputs for `torch.func`."""
        dtype = precision(program.inputs, arrays)
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return apply(Graph(program, dtype), arrays)
        with torch.no_grad():
            return evaluate(program, arrays, dtype)


# ------------------------------------------------------------------------------------- the module


class LossModule(nn.Module):
    """A loss as a module: parameters are set once, and may be learned.

    Args:
        loss: the loss.
        reduction: "mean", "sum" or "none".
        learn: parameters to learn; each starts at its given value or default.
        parameters: values for the loss's parameters. An `nn.Parameter` (with no dimensions) is learned, another tensor
            is kept as a buffer, a number stays a number.

    Raises:
        ParameterError: a parameter is unknown, missing, or not a scalar.
    """

    def __init__(
        self, loss: Loss, *, reduction: Reduction = "mean", learn: Sequence[str] = (), **parameters: Any
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ParameterError(f'{loss.name}: reduction={reduction!r}; expected "mean", "sum" or "none"')
        values = loss._parameters(parameters)
        for name in (learn,) if isinstance(learn, str) else learn:
            if name not in values:
                raise ParameterError(f"{loss.name}: learn={name!r} is no parameter; it has {', '.join(values) or 'none'}")
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
            raise ParameterError(f"{self.loss.name}: a module has an attribute {name!r} already; rename the parameter")
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
