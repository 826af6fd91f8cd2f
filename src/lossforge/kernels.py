"""Running a program on NumPy arrays by kernels.

What a call decides by the shapes, strides and dtypes of its arrays is decided once (`binding`, or `pieces` where a
product of matrices would be large) and kept for the next call with arrays like these.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lossforge import ir
from lossforge.binding import Bound, Room
from lossforge.errors import UnsupportedError
from lossforge.frontends.signature import dimensions
from lossforge.ir import Axis, Kind, Port, Program
from lossforge.pieces import Pieces
from lossforge.placement import as_one
from lossforge.runtime.switch import use_kernels
from lossforge.runtime.threads import get_num_threads
from lossforge.tables import Ready, WithTables, as_inputs

_MAX_BOUND = 512
_bound: OrderedDict[Any, Ready] = OrderedDict()


_unspelled: weakref.WeakSet[Program] = weakref.WeakSet()
"""Programs with operations that kernels do not spell."""


def attempt(
    program: Program,
    arrays: Sequence[Any],
    real: str,
    dtypes: Sequence[str | None],
    formats: Sequence[str | None] | None = None,
) -> tuple[np.ndarray, ...] | None:
    """As `run`; None where kernels are off, or the program holds an operation that they do not spell."""
    found = attempt_bound(program, arrays, real, dtypes, formats)
    return None if found is None else found(arrays)


def attempt_bound(
    program: Program,
    arrays: Sequence[Any],
    real: str,
    dtypes: Sequence[str | None],
    formats: Sequence[str | None] | None = None,
) -> Ready | None:
    """As `bound`; None where kernels are off, or the program holds an operation that they do not spell."""
    if program in _unspelled or not use_kernels():
        return None
    try:
        return bound(program, arrays, real, dtypes, formats)
    except UnsupportedError:
        _unspelled.add(program)
        return None


def run(
    program: Program,
    arrays: Sequence[Any],
    real: str,
    dtypes: Sequence[str | None],
    formats: Sequence[str | None] | None = None,
    out: Sequence[np.ndarray] | None = None,
) -> tuple[np.ndarray, ...]:
    """The program's outputs.

    Args:
        program: what to compute.
        arrays: a NumPy array for each input with axes, a number for each without.
        real: the computing precision.
        dtypes: the dtype of each output; None for the computing one.
        formats: what the entries of each array are, if that is not its dtype: bfloat16, which NumPy does not know,
            comes and goes as its bits in uint16.
        out: arrays in C order to write the outputs to, where the inputs are in C order too.

    Raises:
        UnsupportedError: the program holds an operation that kernels do not spell.
    """
    return bound(program, arrays, real, dtypes, formats)(arrays, out)


def bound(
    program: Program,
    arrays: Sequence[Any],
    real: str,
    dtypes: Sequence[str | None],
    formats: Sequence[str | None] | None = None,
) -> Ready:
    """The program ready to run on arrays that lie in memory as these do; what they hold is not read.

    Raises:
        UnsupportedError: the program holds an operation that kernels do not spell.
    """
    key = (
        program, real, dtypes, formats, get_num_threads(),
        *[(a.shape, a.strides, a.dtype) for a, p in zip(arrays, program.inputs, strict=True) if p.order],
    )  # fmt: skip
    found = _bound.get(key)
    if found is None:
        only = [a if p.order else None for a, p in zip(arrays, program.inputs, strict=True)]
        found = _bound[key] = bind(program, only, real, dtypes, formats)
        while len(_bound) > _MAX_BOUND:
            _bound.popitem(last=False)
    return found


# ------------------------------------------------------------------------------------- arrays as axes see them


def bind(
    program: Program,
    arrays: Sequence[np.ndarray | None],
    real: str,
    dtypes: Sequence[str | None],
    formats: Sequence[str | None] | None = None,
) -> Ready:
    """Everything about a call that depends on shapes, strides and dtypes alone."""
    if formats is None:
        formats = [None if a is None else str(a.dtype) for a in arrays]
    if program.delicate:
        dtypes, real = [d or real for d in dtypes], "float64"
    program, tables = as_inputs(program, real)
    if not tables:
        return _bind(program, arrays, real, dtypes, formats)
    held = [str(t.dtype) for t in tables]
    return WithTables(_bind(program, [*arrays, *tables], real, dtypes, [*formats, *held]), tuple(tables))


def _bind(
    program: Program,
    arrays: Sequence[np.ndarray | None],
    real: str,
    dtypes: Sequence[str | None],
    formats: Sequence[str | None],
) -> Ready:
    nodes = ir.topological([o.node for o in program.outputs])
    if any(n.op == "slide" and n.attrs[2] is not None for n in nodes):
        raise UnsupportedError("kernels do not spell convolutions: every tap would be an array of its own")
    split = _must_split(program, arrays)
    if split:
        program = _split(program, split)
    return Pieces.of(program, arrays, real, dtypes, formats) or Bound(program, arrays, real, dtypes, formats)


def _must_split(program: Program, arrays: Sequence[np.ndarray | None]) -> dict[Axis, int]:
    """Starred axes whose dimensions cannot be stepped through as one, with their number."""
    result: dict[Axis, int] = {}
    for port, array in zip(program.inputs, arrays, strict=True):
        if array is None:
            continue
        for axis, part in dimensions(port.order, array.ndim).items():
            shape, strides = array.shape[part], array.strides[part]
            if axis.startswith("*") and as_one(shape, strides) is None:
                result[axis] = len(shape)
    return result


def _split(program: Program, ranks: Mapping[Axis, int]) -> Program:
    inputs = [p.node for p in program.inputs]
    outputs = [p.node for p in program.outputs]
    orders = [p.order for p in (*program.inputs, *program.outputs)]
    for axis, rank in ranks.items():
        pieces = tuple(f"{axis.removeprefix('*')}_{i}" for i in range(rank))
        found = ir.split_axis([*inputs, *outputs], axis, pieces)
        inputs, outputs = found[: len(inputs)], found[len(inputs) :]
        orders = [tuple(b for a in o for b in (pieces if a == axis else (a,))) for o in orders]
    ports = [Port(n, o) for n, o in zip([*inputs, *outputs], orders, strict=True)]
    return replace(program, inputs=tuple(ports[: len(inputs)]), outputs=tuple(ports[len(inputs) :]))


def kernel_source(program: Program) -> str:
    """The text of a program's kernels, for float32 arrays in C order.

    Raises:
        UnsupportedError: the program holds an operation that kernels do not spell.
    """
    dtypes = {Kind.FLOAT: "float32", Kind.INDEX: "int64", Kind.BOOL: "bool"}
    arrays = [np.zeros((64,) * len(p.order), dtypes[p.node.kind]) if p.order else None for p in program.inputs]
    bound = bind(program, arrays, "float32", ["float32" if n else None for n in program.like])
    return "\n\n".join(k.source for k in bound.kernels)


def spells(program: Program) -> bool:
    """Whether kernels spell a program."""
    try:
        kernel_source(program)
    except UnsupportedError:
        return False
    return True


__all__ = ["Ready", "Room", "attempt", "attempt_bound", "bind", "bound", "kernel_source", "run", "spells"]
