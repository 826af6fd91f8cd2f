"""What stands in a recording: values, numbers, constant arrays, options."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from lossforge import ir
from lossforge.frontends.positional.alignment import Alignment
from lossforge.frontends.positional.patterns import even, halves
from lossforge.frontends.positional.values import Refused, Tensor, Unknown
from lossforge.frontends.recording import Ref, Varying
from lossforge.ir import Axis, Kind, Node

LARGEST_TABLE = 4096
"""Entries of a constant array in the graph."""
LARGEST_READ = 2**16
"""Of one that may leave nothing but its factors there, as kernels of convolutions do."""
LARGEST_LISTED = 16


class Literals(Alignment):
    """Arguments of recorded steps."""

    def tensor(self, value: Any) -> Tensor:
        """A value of the recording, a number or a constant array, as a positional value."""
        if isinstance(value, Tensor):
            return value
        if isinstance(value, Ref):
            found = self.values[value.index]
            return self.tensor(found)
        if isinstance(value, Unknown):
            raise Refused(value.reason)
        if isinstance(value, Varying):
            if isinstance(value.values[0], np.ndarray):
                return self._pattern(value.values)
            return Tensor(self.symbol(value.values), ())
        if isinstance(value, np.ndarray):
            return self.array(value)
        if isinstance(value, bool | int | float | np.generic):
            number = value.item() if isinstance(value, np.generic) else value
            kind = Kind.BOOL if isinstance(number, bool) else Kind.INDEX if isinstance(number, int) else Kind.FLOAT
            return Tensor(ir.constant(number, kind), ())
        raise Refused(f"a {type(value).__name__} where an array was expected; give an array or a number")

    def integer(self, value: Any) -> int:
        """A whole number that is part of the formula: a dimension, an option."""
        if isinstance(value, Varying):
            raise Refused("a dimension or option depends on sizes or parameters; give it as a number")
        return int(value)

    def dim(self, x: Tensor, dim: Any) -> int:
        """A dimension counted from the front."""
        d = self.integer(dim)
        return d + x.rank if d < 0 else d

    def dims(self, x: Tensor, dims: Any) -> list[int]:
        """Dimensions counted from the front; all for None or none."""
        if dims is None:
            return list(range(x.rank))
        if isinstance(dims, int | Varying | np.integer):
            dims = [dims]
        return [self.dim(x, d) for d in dims] or list(range(x.rank))

    def array(self, value: np.ndarray) -> Tensor:
        """A constant array: a number where all entries are equal, a range, or a table."""
        kind = {"f": Kind.FLOAT, "i": Kind.INDEX, "u": Kind.INDEX, "b": Kind.BOOL}.get(value.dtype.kind)
        if kind is None:
            raise Refused(f"a constant array of dtype {value.dtype}; use floats, integers or truth values")
        flat = value.astype(np.float64) if kind is Kind.FLOAT else value
        if value.size and (flat == flat.flat[0]).all():
            item = flat.flat[0].item()
            dims = tuple(() if n == 1 else (self.ghost((n,) * self.count),) for n in value.shape)
            return Tensor(ir.constant(item, kind), dims)
        if value.ndim == 1 and kind is Kind.INDEX and np.array_equal(value, np.arange(len(value))):
            return self.arange((len(value),) * self.count)
        if value.size > LARGEST_READ:
            raise Refused(too_large(value.size))
        name = self.number("table")
        order: list[Axis] = []
        dims_: list[tuple[Axis, ...]] = []
        for d, n in enumerate(value.shape):
            if n == 1:
                dims_.append(())
                continue
            axis = self.unused(self.derived(f"{name}_{d}", (n,) * self.count, ir.constant(float(n))), order)
            self.fixed[axis] = n
            order.append(axis)
            dims_.append((axis,))
        values = [_plain(v, kind) for v in value.reshape(-1).tolist()]
        return Tensor(ir.table(values, order, [n for n in value.shape if n != 1], kind), tuple(dims_))

    def _pattern(self, arrays: Sequence[np.ndarray]) -> Tensor:
        """A constant array whose shape follows the sizes: filled, counting, an identity, a triangle."""
        shapes = [a.shape for a in arrays]
        kind = {"f": Kind.FLOAT, "i": Kind.INDEX, "b": Kind.BOOL}.get(arrays[0].dtype.kind, Kind.FLOAT)
        sizes = list(zip(*shapes, strict=True))
        if (grown := even(arrays)) is not None:
            first, steps = grown
            filled = Tensor(self.symbol(first), tuple(() if set(n) == {1} else (self.ghost(n),) for n in sizes))
            counted = [self.positions(sizes[d], d, len(sizes)) for d, step in enumerate(steps) if step]
            (base, *nodes), dims = self.align([filled, *counted])
            terms = [
                n if s == 1 else ir.as_kind(n, Kind.FLOAT) * s for n, s in zip(nodes, filter(None, steps), strict=True)
            ]
            terms = [base, *terms] if any(first) or not terms else terms
            node = (
                terms[0]
                if len(terms) == 1
                else functools.reduce(operator.add, (ir.as_kind(t, Kind.FLOAT) for t in terms))
            )
            return Tensor(ir.as_kind(node, kind), dims)
        if (parted := halves(arrays)) is not None:
            relation, inside, outside = parted
            pair, dims = self.align([self.positions(sizes[d], d, 2) for d in (0, 1)])
            node = ir.elementwise(relation, *pair)
            if (inside, outside) != (1, 0):
                node = ir.where(node, ir.constant(float(inside)), ir.constant(float(outside)))
            return Tensor(ir.as_kind(node, kind), dims)
        longer = [d for d, n in enumerate(shapes[0]) if n != 1]
        if len(set(shapes)) == 1 and len(longer) == 1 and arrays[0].size <= LARGEST_LISTED:
            entries = [self.symbol([a.flat[i].item() for a in arrays]) for i in range(arrays[0].size)]
            listed = self._listed([ir.as_kind(e, kind) for e in entries])
            return Tensor(listed.node, tuple(listed.dims[0] if d in longer else () for d in range(len(shapes[0]))))
        raise Refused(
            "a constant array that depends on sizes or parameters; make it an argument, or compute it with the library's own operations"
        )

    def _listed(self, entries: Sequence[Node]) -> Tensor:
        """A few numbers in a row, each a formula."""
        n = len(entries)
        axis = self.derived(self.number("table"), (n,) * self.count, ir.constant(float(n)))
        self.fixed[axis] = n
        node = entries[0]
        for i, entry in enumerate(entries[1:], 1):
            node = ir.where(ir.elementwise("eq", ir.iota(axis, n), ir.constant(i, Kind.INDEX)), entry, node)
        return Tensor(node, ((axis,),))


def _plain(value: Any, kind: Kind) -> float | int | bool:
    return {Kind.FLOAT: float, Kind.INDEX: int, Kind.BOOL: bool}[kind](value)


def too_large(size: int) -> str:
    """Why a constant array is refused."""
    return f"a constant array of {size} entries; make it an argument of the loss"
