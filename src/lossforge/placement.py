"""How the arrays of a call lie in memory, and which loops over them follow from that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossforge import ir
from lossforge.codegen.numba import LANES, Layout
from lossforge.ir import Axis, Kind, Node
from lossforge.schedule import Sweep

SHORT = 32
"""The longest inner axis for which blocks are transposed rather than run along."""

UNROLLED = 8
"""The most positions of the inner axes for which loops over them are written out."""

LONGEST_TEXT = 600
"""The most values that are written out, lest compiling takes seconds."""

BLOCK_BYTES = 1 << 16
"""Of one array in a block of lanes, so that all that a block works on stays in cache."""

KEPT_BYTES = 1 << 19
"""Of the values that are kept from one inner loop to the next; longer rows are computed again."""


@dataclass(frozen=True)
class Lie:
    """How an array lies in memory: entries to step along each axis."""

    strides: tuple[tuple[Axis, int], ...]
    dtype: str

    def stride(self, axis: Axis) -> int:
        """Entries from one position along `axis` to the next."""
        return dict(self.strides).get(axis, 0)


def dense(axes: Sequence[Axis], shape: Sequence[int], dtype: np.dtype[Any]) -> Lie:
    """An array of our own, in C order."""
    return Lie(tuple((a, math.prod(shape[i + 1 :])) for i, a in enumerate(axes)), str(dtype))


def as_one(shape: Sequence[int], strides: Sequence[int]) -> int | None:
    """The stride with which some dimensions are stepped through as one; None if they cannot be."""
    kept = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    for (_, outer), (n, inner) in zip(kept, kept[1:], strict=False):
        if outer != n * inner:
            return None
    return kept[-1][1] if kept else 0


def merge_axes(sweep: Sweep, lies: dict[Node, Lie], sizes: dict[Axis, int]) -> set[Axis]:
    """Outer axes that all arrays step through as one are one axis; returns those that vanish."""
    fixed = {n.attrs[0] for n in ir.topological(sweep.results) if n.op in ("iota", "take")}
    fixed |= {a for n in ir.topological(sweep.results) if n.op == "rename" for a in n.attrs}
    fixed |= {a for n in sweep.results for a in (n.axes if n in sweep.totals else ())}
    dropped: set[Axis] = set()
    again = True
    while again:
        again = False
        free = [a for a in sweep.outer if a not in fixed and a not in dropped]
        for a in free:
            for b in free:
                if a != b and _steps_as_one(a, b, lies, sizes[b]):
                    sizes[b] *= sizes[a]
                    sizes[a] = 1
                    dropped.add(a)
                    again = True
                    break
            if again:
                break
    return dropped


def _steps_as_one(a: Axis, b: Axis, lies: Mapping[Node, Lie], size: int) -> bool:
    for node, lie in lies.items():
        if (a in node.axes) != (b in node.axes):
            return False
        if a in node.axes and lie.stride(a) != size * lie.stride(b):
            return False
    return True


def _lane(sweep: Sweep, lies: Mapping[Node, Lie], sizes: Mapping[Axis, int], dropped: set[Axis]) -> Axis | None:
    """The axis along which most of what is moved is contiguous."""
    votes: dict[Axis, float] = {}
    for node, lie in lies.items():
        weight = math.prod(sizes[a] for a in node.axes)
        for axis in node.axes - dropped:
            if lie.stride(axis) == 1 and sizes[axis] > 1:
                votes[axis] = votes.get(axis, 0.0) + weight
    kept = {a for n in sweep.totals for a in n.axes}  # a total has one slot for a whole piece of the lane
    candidates = [a for a in (*sweep.outer, *sweep.inner) if a not in dropped and (a not in kept or a in sweep.inner)]
    if sweep.inner and not votes:
        return sweep.inner[-1]
    return max(candidates, key=lambda a: (votes.get(a, 0.0), sizes[a]), default=None)


def choose_layout(
    sweep: Sweep,
    lies: Mapping[Node, Lie],
    sizes: Mapping[Axis, int],
    dropped: set[Axis],
    itemsize: int,
    nonnegative: frozenset[Node],
) -> Layout:
    """The lane of a sweep, and how loops over its inner axes are written.

    Args:
        sweep: what is computed.
        lies: how every array that it reads or writes lies in memory.
        sizes: of the axes, after merging.
        dropped: axes that were merged into others.
        itemsize: bytes of a number in the computing precision.
        nonnegative: numbers that are known to be ≥ 0.
    """
    lane = _lane(sweep, lies, sizes, dropped)
    kept = {a for n in sweep.totals for a in n.axes}
    outer = [a for a in sweep.outer if a not in dropped and a not in kept]
    inner = math.prod(sizes[a] for a in sweep.inner)
    width, transposed = 0, frozenset[Node]()
    unrolled: tuple[tuple[Axis, int], ...] = ()
    longest = max(outer, key=lambda a: sizes[a], default=None)
    written = inner * len(ir.topological(sweep.results))
    if sweep.inner and 0 < inner <= UNROLLED and written <= LONGEST_TEXT and longest and sizes[longest] >= inner:
        if lane not in outer:
            lane = longest
        unrolled = tuple((a, sizes[a]) for a in sweep.inner)
        if len(sweep.inner) == 1:
            width, transposed = inner, _turned(sweep.inner[0], lane, lies, sizes, dropped)
    elif len(sweep.inner) == 1 and lane == sweep.inner[0] and 1 < inner <= SHORT:
        # Run along an outer axis after all if the contiguous one is inner and short (channels last, say).
        fits = {a: _turned(lane, a, lies, sizes, dropped) for a in outer if sizes[a] >= LANES}
        best = max((a for a in fits if fits[a]), key=lambda a: sizes[a], default=None)
        if best is not None:
            lane, width, transposed = best, inner, fits[best]
    lanes = LANES
    while lanes > 32 and lanes * inner * itemsize > BLOCK_BYTES:
        lanes //= 2
    room = inner * itemsize * (lanes if lane in outer else 1)
    unit = frozenset(n for n, lie in lies.items() if lane is not None and lane in n.axes and lie.stride(lane) == 1)
    return Layout(
        lane, unit, tuple((n, lie.dtype) for n, lie in lies.items()), frozenset(dropped), width, transposed,
        unrolled, lanes, keep=room <= KEPT_BYTES, narrow=lane is None or sizes[lane] < 1 << 31,
        nonnegative=nonnegative,
    )  # fmt: skip


def _turned(
    inner: Axis, lane: Axis | None, lies: Mapping[Node, Lie], sizes: Mapping[Axis, int], dropped: set[Axis]
) -> frozenset[Node]:
    """Arrays of floats in which a short inner axis is innermost, and the lane just around it."""
    return frozenset(
        n
        for n, lie in lies.items()
        if n.kind is Kind.FLOAT and lane in n.axes - dropped and inner in n.axes
        if lie.stride(inner) == 1 and lie.stride(lane or "") == sizes[inner]
    )


__all__ = ["Lie", "as_one", "choose_layout", "dense", "merge_axes"]
