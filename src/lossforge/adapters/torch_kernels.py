"""PyTorch's CPU tensors in our kernels, without a copy on the way in or out.

What a call decides by the form of its tensors alone (dtypes, shapes, strides) is decided once and kept; a call of
a form seen before hands over addresses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lossforge import kernels
from lossforge.binding import ByAddress, Room
from lossforge.ir import Program
from lossforge.launching import function_of_lines
from lossforge.runtime.buffers import SMALL
from lossforge.runtime.openmp import team_of
from lossforge.runtime.switch import use_kernels
from lossforge.runtime.threads import get_num_threads, working_in

Form: TypeAlias = tuple[Any, ...]
"""What a call's tensors are like: dtype, shape and strides of each, and whether it has a gradient."""

Run: TypeAlias = Callable[..., tuple[Tensor, ...]]
"""A program for tensors of one form, and numbers: as many arguments as it has inputs."""

NAMES = {
    torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64",
    torch.bool: "bool", torch.uint8: "uint8", torch.int8: "int8", torch.int16: "int16", torch.int32: "int32",
    torch.int64: "int64",
}  # fmt: skip
"""The dtypes that kernels read, by our names for them."""
_DTYPES = {name: dtype for dtype, name in NAMES.items()}
_CPU = torch.device("cpu")
_PYTORCH = os.path.dirname(torch.__file__)
_TYPES: frozenset[Any] = frozenset({Tensor, nn.Parameter})

_MAX_READY = 1024
_ready: dict[Form, Run | None] = {}


_has_storage: Callable[[Tensor], bool] = torch._C._has_storage


def is_plain(tensor: Tensor) -> bool:
    """Whether this is a CPU tensor whose memory holds its values."""
    return tensor.is_cpu and holds_values(tensor)


def holds_values(tensor: Tensor) -> bool:
    """Whether a tensor's memory holds its values: it is none of a subclass, a transform or a lazy kind."""
    return (
        type(tensor) in _TYPES
        and _has_storage(tensor)  # not sparse, nor wrapped by `torch.func` or autograd.grad(is_grads_batched=True)
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
    )


def form_of(a: Tensor) -> Form | None:
    """The form of a tensor; None if it is not plain."""
    if type(a) not in _TYPES or not a.is_cpu or not _has_storage(a) or a.is_neg() or a._is_zerotensor():
        return None  # not `is_plain`, written without its calls
    return a.dtype, a.shape, a.stride(), a.requires_grad


def form(arrays: Sequence[Tensor | float]) -> Form | None:
    """The form of a call; None if a tensor is not plain."""
    found: list[Any] = []
    for a in arrays:
        if not isinstance(a, Tensor):
            found.append(None)
        elif (one := form_of(a)) is not None:
            found += one
        else:
            return None
    return tuple(found)


def ready(
    program: Program, arrays: Sequence[Tensor | float], dtype: torch.dtype, described: Form, *, narrow: bool
) -> Run | None:
    """The program for tensors of a form; an output has the dtype of the input that it belongs to if `narrow`.

    None if kernels are off, or do not spell it.
    """
    if not use_kernels():
        return None
    key = (program, dtype, narrow, get_num_threads(), described)
    try:
        return _ready[key]
    except KeyError:
        if len(_ready) >= _MAX_READY:
            _ready.clear()
        found = _ready[key] = _prepare(program, arrays, dtype, narrow=narrow)
        return found


def _prepare(program: Program, arrays: Sequence[Tensor | float], dtype: torch.dtype, *, narrow: bool) -> Run | None:
    dtypes = {p.name: a.dtype for p, a in zip(program.inputs, arrays, strict=True) if isinstance(a, Tensor)}
    if any(d not in NAMES for d in dtypes.values()):
        return None
    results = [NAMES[d] for d in output_dtypes(program, arrays, dtype, narrow=narrow)]
    formats = [NAMES[dtypes[p.name]] if p.order and p.name in dtypes else None for p in program.inputs]
    samples = [_as_array(a) for a in arrays]
    bound = kernels.attempt_bound(program, samples, NAMES[dtype], tuple(results), tuple(formats))
    if bound is None:
        return None
    like = [_DTYPES[r] for r in results]
    if bound.by_address is not None:
        is_tensor = [isinstance(a, Tensor) for a in arrays]
        found = _by_address(bound.by_address, [bool(p.order) for p in program.inputs], is_tensor, like)
    else:
        found = _by_arrays(bound, [bool(p.order) for p in program.inputs], like)
    return _in_team(found) if bound.parallel else found


def output_dtypes(
    program: Program, arrays: Sequence[Tensor | float], dtype: torch.dtype, *, narrow: bool
) -> list[torch.dtype]:
    """The dtype of each output: that of the input that it belongs to if `narrow`, else the one to compute in."""
    dtypes = {p.name: a.dtype for p, a in zip(program.inputs, arrays, strict=True) if isinstance(a, Tensor)}
    owners = (dtypes.get(name) if narrow and name is not None else None for name in program.like)
    return [dtype if own is None or not own.is_floating_point else own for own in owners]


def _in_team(run: Run) -> Run:
    """The threads of a call are PyTorch's own."""

    def in_team(*arrays: Tensor | float) -> tuple[Tensor, ...]:
        with working_in(team_of(_PYTORCH)):
            return run(*arrays)

    return in_team


def _by_arrays(bound: kernels.Ready, is_array: Sequence[bool], dtypes: Sequence[torch.dtype]) -> Run:
    def run(*arrays: Tensor | float) -> tuple[Tensor, ...]:
        inputs = [
            _as_array(a) if array else a.item() if isinstance(a, Tensor) else a
            for array, a in zip(is_array, arrays, strict=True)
        ]
        return tuple(_as_tensor(f, d) for f, d in zip(bound(inputs), dtypes, strict=True))

    return run


def _by_address(
    found: ByAddress, is_array: Sequence[bool], is_tensor: Sequence[bool], dtypes: Sequence[torch.dtype]
) -> Run:
    """A function of tensors as straight lines of text, since a small call is mostly what happens around its kernels."""
    names = [f"a{i}" for i in range(len(is_array))]
    given = [
        f"{n}.data_ptr()" if array else f"{n}.item()" if tensor else n
        for n, array, tensor in zip(names, is_array, is_tensor, strict=True)
    ]
    results = [f"r{i}" for i in range(len(found.rooms))]
    numbers = [f"x{i}" for i, room in enumerate(found.rooms) if room is None]
    namespace: dict[str, Any] = {"run": found.run, "scalar": torch.scalar_tensor, "cpu": _CPU}
    lines: list[str] = []
    for i, (room, dtype) in enumerate(zip(found.rooms, dtypes, strict=True)):
        if room is not None:
            namespace[f"make{i}"] = _maker(room)
            lines.append(f"r{i} = make{i}()")
            given.append(f"r{i}.data_ptr()")
        else:
            namespace[f"dtype{i}"] = dtype
    lines.append(f"{''.join(f'{x}, ' for x in numbers)}{'= ' if numbers else ''}run({', '.join(given)})")
    lines += [f"r{x[1:]} = scalar({x}, dtype=dtype{x[1:]}, device=cpu)" for x in numbers]
    lines.append(f"return {', '.join(results)},")
    return function_of_lines("call", names, lines, namespace)


def _maker(room: Room) -> Callable[[], Tensor]:
    """How to allocate a result: from PyTorch where it is small, else from buffers that are used again."""
    dtype = _DTYPES[room.dtype]
    shape, strides = room.shape, [0] * len(room.shape)
    step = 1
    for d in reversed(room.order if room.order is not None else range(len(shape))):
        strides[d] = step
        step *= max(shape[d], 1)
    if step * dtype.itemsize < SMALL:
        return partial(torch.empty_strided, shape, tuple(strides), dtype=dtype, device=_CPU)
    return lambda: _as_tensor(room.make(), dtype)


def _as_array(value: Tensor | float) -> Any:
    """A tensor's memory as NumPy sees it; bfloat16, which NumPy does not know, by its bits."""
    if not isinstance(value, Tensor):
        return value
    plain = value.detach()
    return plain.view(torch.int16).numpy().view(np.uint16) if plain.dtype is torch.bfloat16 else plain.numpy()


def _as_tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    if dtype is torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
