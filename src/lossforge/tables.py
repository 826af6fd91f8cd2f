"""Arrays of numbers that are part of a definition (weights of classes, say), as further inputs of its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from lossforge import ir
from lossforge.binding import ByAddress
from lossforge.codegen.numba import Kernel
from lossforge.ir import Kind, Node, Port, Program


class Ready(Protocol):
    """A program for arrays of certain shapes, strides and dtypes, ready to run: see `binding.Bound`."""

    @property
    def parallel(self) -> bool:
        """Whether a call may use several threads."""
        ...

    @property
    def by_address(self) -> ByAddress | None:
        """How to run on memory by its addresses; None if arrays are needed."""
        ...

    @property
    def kernels(self) -> list[Kernel]:
        """The kernels, in the order in which they run."""
        ...

    def __call__(self, arrays: Sequence[Any], out: Sequence[np.ndarray | None] | None = None) -> tuple[np.ndarray, ...]:
        """Run on arrays."""
        ...


def as_inputs(program: Program, real: str) -> tuple[Program, list[np.ndarray]]:
    """The program with each table an input, after all others, and these tables."""
    found = [n for n in ir.topological([o.node for o in program.outputs]) if n.op == "table"]
    taken = {p.name for p in program.inputs}
    ports: list[Port] = []
    for node in found:
        name = f"table_{len(ports) + 1}"
        while name in taken:
            name += "_"
        ports.append(Port(ir.input_(name, node.axes, node.kind), node.attrs[0]))
    given = dict(zip(found, (p.node for p in ports), strict=True))
    nodes = ir.substitute([o.node for o in program.outputs], given)
    outputs = tuple(Port(n, o.order) for n, o in zip(nodes, program.outputs, strict=True))
    arrays = [_array(node, real) for node in found]
    return replace(program, inputs=(*program.inputs, *ports), outputs=outputs), arrays


def _array(table: Node, real: str) -> np.ndarray:
    _, shape, values = table.attrs
    dtype = {Kind.FLOAT: real, Kind.INDEX: "int64", Kind.BOOL: "bool"}[table.kind]
    return np.array(values, dtype).reshape(shape)


@dataclass(frozen=True)
class WithTables:
    """A program that is ready to run, given its last inputs."""

    ready: Ready
    tables: tuple[np.ndarray, ...]

    @property
    def parallel(self) -> bool:
        """Whether a call may use several threads."""
        return self.ready.parallel

    @property
    def by_address(self) -> ByAddress | None:
        """How to run on memory by its addresses; None if arrays are needed."""
        found = self.ready.by_address
        if found is None:
            return None
        run, tables, stores = found.run, [t.ctypes.data for t in self.tables], sum(r is not None for r in found.rooms)

        def with_tables(*given: float) -> tuple[float, ...]:
            cut = len(given) - stores
            return run(*given[:cut], *tables, *given[cut:])

        return ByAddress(found.rooms, with_tables)

    @property
    def kernels(self) -> list[Kernel]:
        """The kernels, in the order in which they run."""
        return self.ready.kernels

    def __call__(self, arrays: Sequence[Any], out: Sequence[np.ndarray | None] | None = None) -> tuple[np.ndarray, ...]:
        """Run on arrays of the same shapes, strides and dtypes."""
        return self.ready([*arrays, *self.tables], out)


__all__ = ["Ready", "WithTables", "as_inputs"]
