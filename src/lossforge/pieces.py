"""Programs with large matrix products, run on some rows at a time.

The rows of a contrastive loss's matrix of similarities do not depend on one another, and are needed only until their
share of the value and of the gradient is known. So each thread takes some rows through all steps (`chunking` says
which programs allow that), and what is in memory at a time fits a cache, however many rows there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from lossforge.binding import BUFFERS, Bound, extents, held_dtype
from lossforge.chunking import Cut, cut
from lossforge.codegen.numba import Kernel
from lossforge.ir import Axis, Program
from lossforge.launching import COMBINE
from lossforge.runtime.blas import one_thread
from lossforge.runtime.threads import CROSSOVER, run_chunks
from lossforge.schedule import Product, schedule

PIECE = 1 << 17
"""Entries of a matrix product that a thread works on at a time. Measured with products of 1024 x 256 by 256 x 1024:
half as many take 8 % longer, since BLAS packs the second factor anew for each piece; twice as many gain 2 %."""

SUMMED_PIECE = 4 * PIECE
"""The same, where each piece adds to whole arrays (the gradient of what all rows are compared with), which costs a pass
over them. Measured as above, with both gradients: 11 ms in one piece, 16 ms in pieces of `PIECE`."""

SHORTEST = 32
"""The fewest rows at a time, lest a matrix product becomes a list of vector products."""


@dataclass(frozen=True)
class _Source:
    """Where an input of the part comes from: a place among the program's inputs, and which dimension is cut."""

    place: int
    dimension: int | None

    def of(self, arrays: Sequence[Any], rows: slice) -> Any:
        """The part's input for these rows."""
        array = arrays[self.place]
        return array if self.dimension is None else array[(slice(None),) * self.dimension + (rows,)]


class Pieces:
    """A program for arrays of certain shapes, strides and dtypes, ready to run on some rows at a time."""

    by_address = None
    """Memory by its address is not taken."""

    parallel = True
    """Several threads share a call."""

    @classmethod
    def of(
        cls,
        program: Program,
        arrays: Sequence[np.ndarray | None],
        real: str,
        dtypes: Sequence[str | None],
        formats: Sequence[str | None],
    ) -> Pieces | None:
        """The program in pieces; None if it makes no large matrix, or one whose rows depend on one another."""
        made = schedule(program)
        products = [s.node for s in made.steps if isinstance(s, Product)]
        if not products:
            return None
        shapes = extents(program, arrays)
        if any(len(shape) != 1 for shape in shapes.values()):
            return None
        sizes = {axis: n for axis, (n,) in shapes.items()}
        entries, largest = max(((math.prod(sizes[a] for a in n.axes), n) for n in products), key=lambda pair: pair[0])
        if entries <= 2 * PIECE:
            return None
        for axis in sorted(largest.axes & {a for p in program.inputs for a in p.order}):
            plan = cut(made, axis, sizes[axis])
            if plan is None or not plan.makes(largest):
                continue
            piece = SUMMED_PIECE if any(r.axes for r in plan.accumulated) else PIECE
            rows = max(SHORTEST, piece * sizes[axis] // entries)
            if 2 * rows <= sizes[axis]:
                return cls(plan, arrays, real, [d or real for d in dtypes], formats, sizes, rows)
        return None

    def __init__(
        self,
        plan: Cut,
        arrays: Sequence[np.ndarray | None],
        real: str,
        dtypes: Sequence[str],
        formats: Sequence[str | None],
        sizes: Mapping[Axis, int],
        rows: int,
    ) -> None:
        self.plan, self.rows, self.size = plan, rows, sizes[plan.axis]
        self.sources = [
            _Source(place, port.order.index(plan.axis) if some else None)
            for port, (place, some) in zip(plan.part.inputs, plan.sources, strict=True)
        ]
        self.direct = [
            (tuple(sizes[a] for a in port.order), dtypes[i], (slice(None),) * port.order.index(plan.axis))
            for port, i in zip(plan.part.outputs, plan.direct, strict=False)
        ]
        # Sums without axes are numbers, in float64.
        part_dtypes = [dtypes[i] for i in plan.direct] + [real if r.axes else "float64" for r in plan.accumulated]
        part_formats = [formats[s.place] for s in self.sources]
        self.bounds: dict[int, Bound] = {}
        for n in {min(rows, self.size), self.size % rows} - {0}:
            some = [s.of(arrays, slice(0, n)) for s in self.sources]
            self.bounds[n] = Bound(plan.part, some, real, part_dtypes, part_formats)
        sums = [np.empty([sizes[a] for a in sorted(r.axes)], real) if r.axes else None for r in plan.accumulated]
        others = [i for i in range(len(dtypes)) if i not in plan.direct]
        self.rest = Bound(
            plan.rest, [*arrays, *sums], real, [dtypes[i] for i in others],
            [*formats, *(None if s is None else real for s in sums)],
        )  # fmt: skip
        self.places = [*plan.direct, *others]

    @property
    def kernels(self) -> list[Kernel]:
        """The kernels of a piece, then those that follow all pieces."""
        return [*self.bounds[min(self.rows, self.size)].kernels, *self.rest.kernels]

    def __call__(self, arrays: Sequence[Any], out: Sequence[np.ndarray | None] | None = None) -> tuple[np.ndarray, ...]:
        """Run on arrays of the same shapes, strides and dtypes; into arrays in C order, for outputs that have one."""
        direct = [BUFFERS.take(shape, held_dtype(dtype)) for shape, dtype, _ in self.direct]
        accumulated: dict[int, list[np.ndarray]] = {}
        ufuncs = [COMBINE[node.op] for node in self.plan.accumulated]

        def work(first: int, last: int) -> None:
            """These pieces, one after the other."""
            for i in range(first, last):
                rows = slice(i * self.rows, min((i + 1) * self.rows, self.size))
                places = [whole[*before, rows] for whole, (_, _, before) in zip(direct, self.direct, strict=True)]
                room = [p if p.flags.c_contiguous else None for p in places] + [None] * len(ufuncs)
                found = self.bounds[rows.stop - rows.start]([s.of(arrays, rows) for s in self.sources], room)
                for place, part in zip(places, found, strict=False):
                    if part is not place:
                        place[...] = part
                sums = found[len(direct) :]
                if i == first:
                    accumulated[first] = [s.copy() for s in sums]
                else:
                    for ufunc, total, more in zip(ufuncs, accumulated[first], sums, strict=True):
                        ufunc(total, more, out=total)

        pieces = -(-self.size // self.rows)
        with one_thread():
            run_chunks(work, pieces, 1, cost=pieces * CROSSOVER)
        # In the order of the rows, whichever thread was the first to be done.
        parts = [accumulated[first] for first in sorted(accumulated)]
        sums = [reduce(ufunc, column) for ufunc, column in zip(ufuncs, zip(*parts, strict=True), strict=True)]
        rest = self.rest([*arrays, *(s if s.ndim else s.item() for s in sums)])
        by_place = dict(zip(self.places, [*direct, *rest], strict=True))
        results = tuple(by_place[i] for i in range(len(by_place)))
        if out is None:
            return results
        for room, result in zip(out, results, strict=True):
            if room is not None:
                np.copyto(room, result)
        return tuple(r if room is None else room for room, r in zip(out, results, strict=True))


__all__ = ["Pieces"]
