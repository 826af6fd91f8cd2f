"""What stands in a recording: values, numbers, constant arrays, options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lossforge import ir
from lossforge.frontends.positional.alignment import Alignment
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
        """A constant array whose shape follows the sizes: filled, counting, or an identity matrix."""
        shapes = [a.shape for a in arrays]
        kind = {"f": Kind.FLOAT, "i": Kind.INDEX, "b": Kind.BOOL}.get(arrays[0].dtype.kind, Kind.FLOAT)
        if all(a.size and (a == arrays[0].flat[0]).all() for a in arrays):
            constant = tuple(() if set(n) == {1} else (self.ghost(n),) for n in zip(*shapes, strict=True))
            return Tensor(ir.constant(arrays[0].flat[0].item(), kind), constant)
        if all(a.ndim == 1 and np.array_equal(a, np.arange(len(a))) for a in arrays):
            found = self.arange([s[0] for s in shapes])
            return Tensor(ir.as_kind(found.node, kind), found.dims)
        if all(a.ndim == 2 and np.array_equal(a, np.eye(*a.shape)) for a in arrays):
            nodes, dims = self.align([self.positions([s[d] for s in shapes], d, 2) for d in (0, 1)])
            return Tensor(ir.as_kind(ir.elementwise("eq", *nodes), kind), dims)
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
