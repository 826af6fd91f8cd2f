"""PyTorch: losses of tensors in autograd, in `torch.func`, under `torch.compile`, and as modules.

Every derivative is a program of ours, so that each of PyTorch's transformations has one answer: a backward
pass evaluates the vector-Jacobian program, and its own backward pass the vector-Jacobian program of that, to
any order; forward mode has the Jacobian-vector program, and `vmap` the program with one more named axis.

A reduced loss in plain eager mode takes a shorter way. Its gradient is linear in the one upstream number, so
it is computed with the value in one program, and backward only scales it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
from torch.autograd import forward_ad

from lossforge.adapters import torch_kernels
from lossforge.codegen.emitter import assemble, compile_text, emit
from lossforge.codegen.torch import torch_backend
from lossforge.compiler import REDUCTIONS, Plan, Reduction, batched, new_axis, program_jvp, program_vjp
from lossforge.errors import ParameterError
from lossforge.ir import Kind, Node, Port, Program
from lossforge.runtime.switch import use_kernels
from lossforge.runtime.threads import get_num_threads
from lossforge.simplify import erase_gradient_marks

if TYPE_CHECKING:
    from lossforge.loss import Loss

Value: TypeAlias = Tensor | float
"""What a program takes: a tensor, or a Python number where the input has no axes."""
_Method = TypeVar("_Method", bound=Callable[..., Any])


# ------------------------------------------------------------------------------------- running a program


@dataclass(frozen=True)
class _Compiled:
    function: Callable[..., Any]
    kinds: tuple[Kind, ...]
    like: tuple[int | None, ...]
    """The position of the input that lends each output its dtype."""
    shared: tuple[int, ...]
    """The outputs that might share memory with an input, or with an output before them."""


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
        tuple(i for i, n in enumerate(stored) if n.op == "input" or n in stored[:i]),
    )


def _stored(node: Node) -> Node:
    """The node whose memory this one may be a view of."""
    while node.op in ("rename", "window", "slide", "join", "split", "flip"):
        (node,) = node.args
    return node


def evaluate(
    program: Program, arrays: Sequence[Value], dtype: torch.dtype, *, narrow: bool = True
) -> tuple[Tensor, ...]:
    """The outputs of a program; none shares memory with an input or another. Every program runs here.

    Args:
        program: what to compute.
        arrays: a value for each input.
        dtype: the precision to compute in.
        narrow: whether an output takes the dtype of the input that it belongs to; otherwise it keeps `dtype`.
    """
    if not (torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active()):
        by_kernels = torch_kernels.run(program, arrays, dtype, narrow=narrow)
        if by_kernels is not None:
            return by_kernels
    compiled = _compiled(program)
    device = arrays[0].device  # type: ignore[union-attr]  # arguments come first, and are tensors
    wanted = {Kind.FLOAT: dtype, Kind.INDEX: torch.int64, Kind.BOOL: torch.bool}
    ready = [_as(a, wanted[kind], device) for a, kind in zip(arrays, compiled.kinds, strict=True)]
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            found = compiled.function(*ready)
    else:
        found = compiled.function(*ready)
    results = list(found) if isinstance(found, tuple) else [found]
    for i in compiled.shared:
        results[i] = results[i].clone()
    if narrow:
        owners = (None if i is None else arrays[i] for i in compiled.like)
        results = [narrowed(r, owner) for r, owner in zip(results, owners, strict=True)]
    return tuple(results)


def _as(value: Value, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=dtype, device=device)  # on a GPU a fill, which does not wait
    return value if value.dtype is dtype else value.to(dtype)


def narrowed(gradient: Tensor, owner: Value | None) -> Tensor:
    """The gradient in the dtype, and on the device, of what it belongs to."""
    if not isinstance(owner, Tensor) or not owner.is_floating_point():
        return gradient
    if gradient.dtype is owner.dtype and gradient.device == owner.device:
        return gradient
    return gradient.to(owner.device, owner.dtype)


def precision(ports: Sequence[Port], arrays: Sequence[Value]) -> torch.dtype:
    """The precision to compute in: float64 if an array is, else float32; scalars decide if there is none."""
    dtypes = [a.dtype for p, a in zip(ports, arrays, strict=True) if p.order and isinstance(a, Tensor)]
    if not dtypes:
        dtypes = [a.dtype for a in arrays if isinstance(a, Tensor)]
    return torch.float64 if torch.float64 in dtypes else torch.float32


# ------------------------------------------------------------------------------------ derivatives of programs


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
        return Graph(batched(self.program, which, new_axis(self.program)), self.dtype)


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
        return evaluate(graph.program, arrays, graph.dtype)

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
    run: Callable[[Sequence[Value]], tuple[Tensor, ...]]
    """inputs → loss and, unless that is left to the backward pass, a gradient for each of `wrt`."""
    places: tuple[int | None, ...]
    """For each input its place in `wrt`."""


def _step(plan: Plan, arrays: Sequence[Value], needed: Sequence[bool]) -> _Step:
    dtype, wrt = precision(plan.inputs, arrays), _chosen(plan.inputs, needed)
    owners = [a for a, n in zip(arrays, needed, strict=True) if n]
    # float16 would lose small gradients that a large upstream factor (of a GradScaler) saves: there the backward
    # pass computes the gradient with that factor. The exponents of bfloat16 are those of float32.
    late = any(isinstance(a, Tensor) and a.dtype is torch.float16 for a in owners)
    program = plan.value() if late else plan.value_and_gradient(wrt)
    described = torch_kernels.form(arrays)
    ready = None if described is None else torch_kernels.ready(program, arrays, dtype, described, narrow=True)
    places = tuple(wrt.index(p.name) if n else None for p, n in zip(plan.inputs, needed, strict=True))
    return _Step(plan, dtype, wrt, ready or (lambda values: evaluate(program, values, dtype)), places)


_MAX_STEPS = 1024
_steps: dict[Any, _Step] = {}


def _known_step(plan: Plan, arrays: Sequence[Value], needed: tuple[bool, ...]) -> _Step:
    """`_step`, kept where tensors are plain and no dispatch mode is active."""
    described = None if torch._C._len_torch_dispatch_stack() else torch_kernels.form(arrays)
    if described is None:
        return _step(plan, arrays, needed)
    # The step holds the plan, so that another plan cannot have its identity.
    key = (id(plan), needed, use_kernels(), get_num_threads(), described)
    try:
        return _steps[key]
    except KeyError:
        if len(_steps) >= _MAX_STEPS:
            _steps.clear()
        found = _steps[key] = _step(plan, arrays, needed)
        return found


class ReducedLoss(torch.autograd.Function):
    """A reduced loss in plain eager mode: the gradient comes with the value, and backward scales it."""

    @staticmethod
    def forward(ctx: Any, step: _Step, *arrays: Value) -> Tensor:
        """The loss."""
        loss, *gradients = step.run(arrays)
        ctx.step = step
        if gradients:
            ctx.gradients = gradients
        ctx.numbers = [None if isinstance(a, Tensor) else a for a in arrays]
        ctx.save_for_backward(*[a for a in arrays if isinstance(a, Tensor)])
        return loss

    @staticmethod
    @_unseen_by_dynamo
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient times the upstream one."""
        step, tensors = ctx.step, ctx.saved_tensors  # an error if one was changed in place
        # Given away once, as it may become somebody's `.grad`; a second pass computes it anew.
        found = None if torch.is_grad_enabled() else vars(ctx).pop("gradients", None)
        if found is None:
            graph, arrays = Graph(step.plan.vjp(step.wrt), step.dtype), _merged(ctx.numbers, tensors)
            found = apply(graph, (*arrays, cotangent))
        elif torch._C._len_torch_dispatch_stack() or not torch_kernels.is_plain(cotangent):
            found = [(g * cotangent).to(g.dtype) for g in found]
        elif cotangent.item() != 1:
            found = [g.mul_(cotangent) for g in found]
        return (None, *[None if place is None else found[place] for place in step.places])


_apply_reduced_loss: Callable[..., Tensor] = super(torch.autograd.Function, ReducedLoss).apply
"""`ReducedLoss.apply` without what it does for `torch.func`, which takes 4 µs and is not at work here."""


def _chosen(ports: Sequence[Port], chosen: Sequence[bool]) -> tuple[str, ...]:
    return tuple(p.name for p, c in zip(ports, chosen, strict=True) if c)


def _save(ctx: Any, arrays: Sequence[Value]) -> None:
    """Keep a function's inputs; tensors so that a change in place is noticed."""
    ctx.numbers = [None if isinstance(a, Tensor) else a for a in arrays]
    tensors = [a for a in arrays if isinstance(a, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


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
    return evaluate(graph.program, arrays, graph.dtype)


def _requires_grad(arrays: Sequence[Value]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arrays)


def _is_transformed(arrays: Sequence[Value]) -> bool:
    """Whether this is not plain eager execution but `torch.func`, forward mode, tracing, or a subclass's."""
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
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None  # of make_fx
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
        """The extremes of `index` if one lies outside of 0 … size − 1; None where values cannot be read."""
        if not _is_known(index) or (mask is not None and not _is_known(mask)):
            return None
        counted = index.detach() if mask is None else index.detach()[mask.bool()]
        if counted.numel() == 0:
            return None
        low, high = (int(v) for v in torch.aminmax(counted.to(torch.int64)))
        return (low, high) if low < 0 or high >= size else None

    def call(self, plan: Plan, arrays: Sequence[Value]) -> Tensor:
        """The loss, in autograd."""
        if plan.reduction != "none" and torch.is_grad_enabled():
            needed = tuple([isinstance(a, Tensor) and a.requires_grad for a in arrays])
            if True in needed and not _is_transformed(arrays):
                step = _known_step(plan, arrays, needed)
                loss: Tensor = _apply_reduced_loss(step, *arrays)
                return loss
        return apply(Graph(plan.value(), precision(plan.inputs, arrays), plan), arrays)[0]

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
        parameters: values for the loss's parameters. An `nn.Parameter` (with no dimensions) is learned,
            another tensor is kept as a buffer, a number stays a number.

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
