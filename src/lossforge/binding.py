"""A program bound to arrays of certain shapes, strides and dtypes: layouts, kernels, totals.

`Bound` looks at how its arrays lie in memory, picks the lane of each sweep (the axis that is contiguous), has the
kernels emitted and compiled, and runs step after step. Nothing is copied to get in: a kernel takes any strides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lossforge import ir
from lossforge.codegen.emitter import assemble, compile_text, emit
from lossforge.codegen.numba import CALLS, ArrayArgument, Kernel, Layout, Total, emit_kernel
from lossforge.codegen.numpy import numpy_backend
from lossforge.frontends.signature import dimensions
from lossforge.interpreter import Float64, count_entries, derive_lengths, of_whole
from lossforge.ir import Axis, Kind, Node, Port, Program
from lossforge.launching import Held, Launch, Parts, Values, call_elementwise, numbers, straight
from lossforge.placement import UNROLLED, Lie, as_one, choose_layout, dense, merge_axes
from lossforge.primitives import PRIMITIVES
from lossforge.runtime.blas import matmul
from lossforge.runtime.buffers import GradientBuffers
from lossforge.runtime.cache import FASTMATH, compile_kernel
from lossforge.runtime.threads import CROSSOVER, get_num_threads
from lossforge.schedule import (
    Move,
    Product,
    Scalars,
    Schedule,
    Step,
    Sweep,
    between,
    is_slice,
    operands,
    reads,
    schedule,
)

CHUNK = 1 << 16
"""Entries that a task should have at least, so that handing it out costs nothing beside."""

FEW = 4096
"""Entries for which NumPy's operations cost less than compiling a kernel, and hardly more at each call."""

LONG = 512
"""Entries of a loop that are worth several vectors at a time: what is left over at its end goes one by one."""

MANY = 4
"""Sweeps that take seconds to compile together, which a loss of few entries seldom makes up for."""

EXACT = frozenset({"nsz"})
"""Flags for kernels in which a value computed twice must be the same bits twice."""

BUFFERS = GradientBuffers()


def extents(program: Program, arrays: Sequence[np.ndarray | None]) -> dict[Axis, tuple[int, ...]]:
    """The dimensions that each axis stands for, several if it is starred; copies of axes are as long as these."""
    found: dict[Axis, tuple[int, ...]] = {}
    for port, array in zip(program.inputs, arrays, strict=True):
        if array is not None:
            for axis, part in dimensions(port.order, array.ndim).items():
                found[axis] = array.shape[part]
    nodes = ir.topological([o.node for o in program.outputs])
    for n in nodes:
        if n.op == "rename" and n.attrs[0] in found:
            found[n.attrs[1]] = found[n.attrs[0]]
    for a in {a for n in nodes for a in n.axes} - found.keys():
        if ir.original(a) in found:  # a copy whose renaming was simplified away
            found[a] = found[ir.original(a)]
    lengths = {a: math.prod(shape) for a, shape in found.items()}
    derive_lengths(nodes, lengths)
    return found | {a: (n,) for a, n in lengths.items() if a not in found}


@dataclass(frozen=True)
class Room:
    """Memory that an output asks for: a shape, its dimensions from the slowest to the fastest (None: in C order)."""

    shape: tuple[int, ...]
    order: tuple[int, ...] | None
    dtype: str

    def make(self) -> np.ndarray:
        """An array that nobody else holds."""
        return BUFFERS.take(self.shape, held_dtype(self.dtype), order=self.order)


@dataclass(frozen=True)
class _Frame:
    """Zeros before and after the entries of an array, along an axis."""

    axis: Axis
    before: int
    after: int


@dataclass(frozen=True)
class ByAddress:
    """A program that runs on memory by its addresses, of inputs and outputs that lie as bound."""

    rooms: tuple[Room | None, ...]
    """What the caller provides for each output: memory, or None for a number."""
    run: Callable[..., tuple[float, ...]]
    """Takes the address of the first entry of each input, or a number if it has no axes, and the address of each room;
    returns the outputs that are numbers."""


class Bound:
    """A program for arrays of certain shapes, strides and dtypes, ready to run."""

    def __init__(
        self,
        program: Program,
        arrays: Sequence[np.ndarray | None],
        real: str,
        dtypes: Sequence[str | None],
        formats: Sequence[str | None],
    ) -> None:
        self.program = program
        self.real = np.dtype(real)
        self.dtypes = [d or real for d in dtypes]
        self.shapes = extents(program, arrays)
        self.sizes = {a: math.prod(shape) for a, shape in self.shapes.items()}
        lies: dict[Node, Lie] = {}
        for port, array, held in zip(program.inputs, arrays, formats, strict=True):
            if array is None or held is None:
                continue
            strides: list[tuple[Axis, int]] = []
            for axis, part in dimensions(port.order, array.ndim).items():
                one = as_one(array.shape[part], array.strides[part])
                if one is None or one % array.itemsize:
                    raise AssertionError(f"{port.name}: strides {array.strides} do not fit {array.dtype}")
                strides.append((axis, one // array.itemsize))
            lies[port.node] = Lie(tuple(strides), held)
        self.schedule = self._choose()
        self.inputs = [p.node for p in program.inputs]
        self.templates = {p.node: a for p, a in zip(program.inputs, arrays, strict=True) if a is not None}
        self.lies = lies
        self.constants = self._fold_constants()
        self.fastmath = EXACT if _seeks_ties(self.schedule.outputs) else FASTMATH
        self.parallel = any(isinstance(s, Product) for s in self.schedule.steps)
        """Whether a call may use several threads."""
        self.kernels: list[Kernel] = []
        self.steps: list[Callable[[Values], None]] = []
        self.pending: dict[Node, int] = {}
        self._rooms: dict[int, Room] = {}
        self.direct: dict[Node, int] = {}  # what kernels write as the caller wants it, and which output it is
        self.beside_kernels = False  # whether NumPy reads an input, for which an address will not do
        for place, output in enumerate(self.schedule.outputs):
            self.pending.setdefault(output, place)
        self.made = {p.node for p in program.inputs} | {n for s in self.schedule.steps for n in _results(s)}
        self.frames = self._frames()
        for step in self.schedule.steps:
            if isinstance(step, Sweep):
                self.steps.append(self._few(step) if self._is_few(step) else self._sweep(step))
            elif isinstance(step, Product):
                self.steps.append(self._product(step))
            elif isinstance(step, Move):
                self.steps.append(self._move(step))
            else:
                self.steps.append(numbers(step.nodes, self.constants))
        self.templates = {}  # the arrays themselves are not kept
        self.finishes = [
            self._finish(node, port, dtype)
            for node, port, dtype in zip(self.schedule.outputs, self.program.outputs, self.dtypes, strict=True)
        ]

    @cached_property
    def by_address(self) -> ByAddress | None:
        """How to run on memory by its addresses; None where a step asks for more."""
        outputs = list(zip(self.schedule.outputs, self.program.outputs, strict=True))
        rooms: list[Room | None] = []
        for place, (node, port) in enumerate(outputs):
            if port.order and self.direct.get(node) != place:
                return None
            rooms.append(self._rooms[place] if port.order else None)
        if self.beside_kernels or any(isinstance(s, Product | Move) for s in self.schedule.steps):
            return None
        stores = [n for n, p in outputs if p.order]
        results = [n for n, p in outputs if not p.order]
        return ByAddress(tuple(rooms), self._straight(stores, results) or self._in_turn(stores, results))

    def _straight(self, stores: Sequence[Node], results: Sequence[Node]) -> Callable[..., tuple[float, ...]] | None:
        parts: list[Launch | Sequence[Node]] = []
        for made, step in zip(self.steps, self.schedule.steps, strict=True):
            if isinstance(made, Launch):
                parts.append(made)
            elif isinstance(step, Scalars):
                parts.append(step.nodes)
            else:
                return None
        return straight(parts, self.inputs, stores, results, self.constants)

    def _in_turn(self, stores: Sequence[Node], results: Sequence[Node]) -> Callable[..., tuple[float, ...]]:
        count = len(self.inputs)

        def run(*given: float) -> tuple[float, ...]:
            values: Values = dict(zip(self.inputs, given[:count], strict=True))
            values |= {node: (address, None) for node, address in zip(stores, given[count:], strict=True)}
            for step in self.steps:
                step(values)
            return tuple([self.constants[n] if n in self.constants else values[n] for n in results])

        return run

    def __call__(self, arrays: Sequence[Any], out: Sequence[np.ndarray | None] | None = None) -> tuple[np.ndarray, ...]:
        """Run on arrays of the same shapes, strides and dtypes; into arrays in C order, for outputs that have one."""
        values: Values = dict(zip(self.inputs, arrays, strict=True))
        if out is not None:
            for node, place in self.direct.items():
                if out[place] is not None and self._rooms[place].order is None:
                    values[node] = out[place], None
        for step in self.steps:
            step(values)
        results = [finish(values) for finish in self.finishes]
        if len(results) > 2:
            for i, r in enumerate(results):  # the caller may write to one of them
                if any(r is other for other in results[:i]):
                    results[i] = r.copy()
        for i, room in enumerate(out or ()):
            if room is not None and room is not results[i]:
                np.copyto(room, results[i])
                results[i] = room
        return tuple(results)

    def _choose(self) -> Schedule:
        best = schedule(self.program)
        if best.inner and best.sweeps:
            rows = (
                min(math.prod(self.sizes[a] for a in s.outer) for s in best.sweeps if s.inner)
                if any(s.inner for s in best.sweeps)
                else 1
            )
            row = math.prod(self.sizes[a] for a in best.inner)
            if rows < 2 * get_num_threads() and row > 4 * CHUNK:
                return schedule(self.program, fused=False)
        return best

    # ------------------------------------------------------------------ results

    def _finish(self, node: Node, port: Port, held: str) -> Callable[[Values], np.ndarray]:
        """How an output is made of the value of its node."""
        shape = tuple(n for a in port.order for n in self.shapes[a])
        if node in self.constants:
            number = self.constants[node]
            return lambda values: np.full(shape, _as(number, held))
        if not node.axes:
            if shape:
                return lambda values: np.full(shape, _as(values[node], held))
            return lambda values: _as(values[node], held)
        kept = [a for a in port.order if a in node.axes]
        partly = [self.sizes[a] if a in node.axes else 1 for a in port.order]
        wholly = [self.sizes[a] for a in port.order]

        def finish(values: Values) -> np.ndarray:
            if node.op == "input":
                array = self._operand(node, values, kept).reshape(partly)
                return _as(np.broadcast_to(array, wholly).copy(), held).reshape(shape)
            array, axes = values[node]
            if axes is None:
                return array
            array = self._numbers_of(node, array).transpose([axes.index(a) for a in kept])
            return _as(np.broadcast_to(array.reshape(partly), wholly), held).reshape(shape)

        return finish

    # ------------------------------------------------------------------ numbers

    def _fold_constants(self) -> dict[Node, float]:
        """Numbers that depend on sizes alone."""
        found: dict[Node, float] = {}
        for n in ir.topological(self.schedule.outputs):
            if n.op == "constant" and n.kind is Kind.FLOAT:
                found[n] = n.attrs[0]
            elif n.op == "size":
                found[n] = float(self.sizes[n.attrs[0]])
            elif not n.axes and n.kind is Kind.FLOAT and n.op in PRIMITIVES and all(a in found for a in n.args):
                found[n] = float(call_elementwise(n.op, *(found[a] for a in n.args)))
        return found

    # ------------------------------------------------------------------ matrix products

    def _product(self, step: Product) -> Callable[[Values], None]:
        summed = step.axes
        x_axes, y_axes = sorted(step.x.axes), sorted(step.y.axes)
        both = [a for a in x_axes if a in step.y.axes and a not in summed]
        left = [a for a in x_axes if a not in step.y.axes]
        right = [a for a in y_axes if a not in step.x.axes]
        k = math.prod(self.sizes[a] for a in summed)
        m, n = (math.prod(self.sizes[a] for a in axes) for axes in (left, right))
        batch = [self.sizes[a] for a in both]
        result = (*both, *left, *right)
        shape = [self.sizes[a] for a in result]
        self.lies[step.node] = dense(result, shape, self.real)

        def run_step(values: Values) -> None:
            x = self._operand(step.x, values, (*both, *left, *summed)).reshape(*batch, m, k)
            y = self._operand(step.y, values, (*both, *summed, *right)).reshape(*batch, k, n)
            values[step.node] = (matmul(x, y).reshape(shape), result)

        return run_step

    def _operand(self, node: Node, values: Values, order: Sequence[Axis], real: DTypeLike | None = None) -> np.ndarray:
        """An array in a precision (the computing one unless given) with its axes in an order."""
        if not node.axes:
            return np.asarray(values[node], real or self.real)
        renamed: dict[Axis, Axis] = {}
        while node.op == "rename" and node not in values:
            old, new = node.attrs
            renamed[old] = renamed.pop(new, new)
            node = node.args[0]
        value = values[node]
        if node.op == "input":
            axes = next(p.order for p in self.program.inputs if p.node is node)
            array = np.asarray(value).reshape([self.sizes[a] for a in axes])
        else:
            array, axes = value
            axes = (
                axes
                if axes is not None
                else next(
                    p.order for p, n in zip(self.program.outputs, self.schedule.outputs, strict=True) if n is node
                )
            )
        array = self._numbers_of(node, array)
        here = [renamed.get(a, a) for a in axes]
        return array.astype(real or self.real, copy=False).transpose([here.index(a) for a in order])

    def _numbers_of(self, node: Node, array: np.ndarray) -> np.ndarray:
        """The entries of a node's array as numbers: those of bfloat16, and of a view of them, are held as bits."""
        if node not in self.lies or self.lies[node].dtype != "bfloat16":
            return array
        return (array.astype(np.uint32) << 16).view(np.float32)  # what a float32 begins with

    # ------------------------------------------------------------------ moves

    def _move(self, step: Move) -> Callable[[Values], None]:
        """An operation on a whole array by NumPy; a slice is a view."""
        node = step.node
        if is_slice(node) and (view := self._view(node)):
            return view
        if node.op == "window" and step.x in self.frames and self.frames[step.x].axis == node.attrs[0]:
            return self._within_frame(node)
        axes = self._by_stride(step.x.axes, [self.lies[step.x]] if step.x in self.lies else self.lies.values())
        for a in sorted(node.axes - step.x.axes):  # a window lies where its operand does
            axes.insert(axes.index(node.attrs[0]) if node.op == "window" else len(axes), a)
        place = {a: i for i, a in enumerate(axes)}
        kept, order = [a for a in axes if a in step.x.axes], [a for a in axes if a in node.axes]
        spread = [self.sizes[a] if a in step.x.axes else 1 for a in axes]
        shape = [self.sizes[a] for a in order]
        dtype = {Kind.FLOAT: self.real, Kind.INDEX: np.dtype(np.int64), Kind.BOOL: np.dtype(bool)}
        held = np.dtype(np.float64) if node.op in ir.MATRIX else dtype[step.x.kind]
        number = Float64()
        self.lies[node] = dense(order, shape, dtype[node.kind])

        def run_step(values: Values) -> None:
            given = self._operand(step.x, values, kept, held).reshape(spread)
            with np.errstate(all="ignore"):
                moved = of_whole(node, given, number, place, self.sizes).reshape(shape)
            values[node] = (np.ascontiguousarray(moved, dtype[node.kind]), tuple(order)) if order else moved.item()

        return run_step

    def _view(self, node: Node) -> Callable[[Values], None] | None:
        """A slice of an array in memory, whose entries stay where they are; None if that has no such axis alone."""
        x = node.args[0]
        old, new, start, _ = node.attrs
        lie = self.lies.get(x)
        if x.op == "rename" or lie is None or len(self.shapes[old]) != 1:
            return None
        order = next((p.order for p in self.program.inputs if p.node is x), None)
        first = count_entries(start, self.sizes)
        part = slice(first, first + self.sizes[new])
        self.lies[node] = Lie(tuple((new if a == old else a, n) for a, n in lie.strides), lie.dtype)

        def run_step(values: Values) -> None:
            value = values[x]
            array, axes = (value, order) if order is not None else value
            dimension = dimensions(axes, array.ndim)[old].start
            view = array[(slice(None),) * dimension + (part,)]
            values[node] = view, tuple(new if a == old else a for a in axes)

        return run_step

    def _within_frame(self, node: Node) -> Callable[[Values], None]:
        """A window over an array that has zeros around it."""
        x = node.args[0]
        old, new, start, _ = node.attrs
        first, count = count_entries(start, self.sizes), self.sizes[new]
        lie = self.lies[x]
        self.lies[node] = Lie(tuple((new if a == old else a, n) for a, n in lie.strides), lie.dtype)

        def run_step(values: Values) -> None:
            inner, axes = values[x]
            place = axes.index(old)
            shape = [count if i == place else n for i, n in enumerate(inner.shape)]
            memory = inner.base
            offset = inner.ctypes.data - memory.ctypes.data + first * inner.strides[place]
            moved = np.ndarray(shape, inner.dtype, memory, offset, inner.strides)
            values[node] = moved, tuple(new if a == old else a for a in axes)

        return run_step

    # ------------------------------------------------------------------ sweeps over few entries

    def _is_few(self, sweep: Sweep) -> bool:
        """Whether a sweep is over so few entries that a kernel would not pay: beside others, or one of many to compile."""
        entries = math.prod(self.sizes[a] for a in (*sweep.outer, *sweep.inner))
        read = reads(sweep)
        positions = {n.attrs[0] for n in between(sweep) if n.op == "iota"}
        alone = positions - self._axes_at_hand(sweep)  # a file of NumPy's would not know how many there are
        beside = all(n.op in ir.REDUCTIONS | ir.WHOLE for n in read)
        few = entries <= FEW and not alone and (beside or len(self.schedule.sweeps) > MANY)
        return few and self.fastmath is not EXACT  # NumPy's bits are others

    def _axes_at_hand(self, sweep: Sweep) -> set[Axis]:
        """Those of the arrays that a sweep works with: inputs, and what steps have made of them."""
        found: set[Axis] = set()
        stack = list(sweep.results)
        while stack:
            n = stack.pop()
            if n not in sweep.results and n in self.made:
                found |= n.axes
            elif n.axes or n in sweep.results:
                stack.extend(n.args)
        return found

    def _few(self, sweep: Sweep) -> Callable[[Values], None]:
        """The sweep as NumPy's operations, in float64."""
        given: dict[Node, Node] = {}
        stack = list(sweep.results)
        while stack:
            n = stack.pop()
            if n in self.constants:
                given[n] = ir.constant(self.constants[n])
            elif n.op == "constant":
                continue
            elif n not in sweep.results and (not n.axes or n in self.lies):
                given.setdefault(n, ir.input_(f"x{len(given)}", n.axes))
            else:
                stack.extend(n.args)
        results = [Port(n, tuple(sorted(n.axes))) for n in sweep.results]
        nodes = ir.substitute([r.node for r in results], given)
        leaves = [n for n in given if n not in self.constants]
        self.beside_kernels |= any(n.axes and n.op in ("input", "rename") for n in leaves)
        inputs = tuple(Port(given[n], tuple(sorted(n.axes))) for n in leaves)
        outputs = tuple(Port(n, r.order) for n, r in zip(nodes, results, strict=True))
        backend = numpy_backend()
        text = assemble(backend, [emit(Program(inputs, outputs, tuple(f"y{i}" for i in range(len(outputs)))), backend)])
        function = compile_text(text, "program", "numpy")
        for r in results:
            if r.order:
                self.lies[r.node] = dense(r.order, [self.sizes[a] for a in r.order], self.real)

        def run_step(values: Values) -> None:
            with np.errstate(all="ignore"):
                found = function(
                    *(self._operand(n, values, p.order, np.float64) for n, p in zip(leaves, inputs, strict=True))
                )
            for r, value in zip(results, found if isinstance(found, tuple) else (found,), strict=True):
                values[r.node] = (np.array(value, self.real, order="C"), r.order) if r.order else float(value)

        return run_step

    # ------------------------------------------------------------------ sweeps

    def _sweep(self, sweep: Sweep) -> Launch:
        read = reads(sweep)
        lies = {n: self._lie_of(n) for n in read}
        allocate: dict[Node, Callable[[], tuple[np.ndarray, Any]]] = {}
        over = self._over(sweep)
        for n in sweep.stores:
            if n in over:
                lies[n] = self.lies[n] = lies[over[n]]
            else:
                allocate[n], lies[n] = self._allocation(n, lies)
        sizes = dict(self.sizes)
        dropped = merge_axes(sweep, lies, sizes)
        layout = choose_layout(sweep, lies, sizes, dropped, self.real.itemsize, self.program.nonnegative)
        layout = replace(layout, over=tuple(over.items()), exact=self.fastmath is EXACT)
        names = {p.node: p.name for p in self.program.inputs if p.node in lies}
        names.update(
            {o: n for o, n in zip(self.schedule.outputs, self.program.output_names, strict=False) if o in lies}
        )
        kernel = emit_kernel(sweep, layout, str(self.real), names, f"sweep_{len(self.kernels) + 1}")
        self.kernels.append(kernel)
        compiled = compile_kernel(
            kernel.source, kernel.entry, kernel.signature, fastmath=self.fastmath,
            interleave=_interleave(sweep, layout, sizes),
        )  # fmt: skip
        return self._launch(sweep, kernel, compiled, lies, sizes, allocate, over)

    def _over(self, sweep: Sweep) -> dict[Node, Node]:
        """A result that may be written over a matrix product that nobody reads afterwards, and that product.

        Each entry is then written where it was read last, in the innermost of the loops that need it. So a row of
        similarities becomes a row of their softmax in the same cache lines.
        """
        if len(sweep.stores) != 1 or math.prod(self.sizes[a] for a in sweep.inner) <= UNROLLED:
            return {}
        (result,) = sweep.stores
        steps = self.schedule.steps
        later = steps[steps.index(sweep) + 1 :]
        needed = {n for s in later for n in _operands(s)} | set(self.schedule.outputs)
        if result in self.schedule.outputs or any(n.op in ("take", "rename") for n in between(sweep)):
            return {}
        products = [s.node for s in steps if isinstance(s, Product) and s.node in reads(sweep)]
        dead = [n for n in products if n not in needed and n.axes == result.axes]
        return {result: dead[0]} if dead else {}

    def _lie_of(self, node: Node) -> Lie:
        if node in self.lies:
            return self.lies[node]
        raise AssertionError(f"{node.op} was not computed before it is read")

    def _allocation(self, node: Node, lies: Mapping[Node, Lie]) -> tuple[Callable[[], tuple[np.ndarray, Any]], Lie]:
        """How to make room for a result, and how it will lie in memory."""
        i = self.pending.get(node)
        port = None if i is None else self.program.outputs[i]
        if port is not None and frozenset(port.order) == node.axes:
            held = self.dtypes[i or 0]
            like = next(
                (p.node for p in self.program.inputs if p.order == port.order and p.node in self.templates), None
            )
            shape = tuple(n for a in port.order for n in self.shapes[a])
            order: tuple[int, ...] | None = None
            if like is not None and not self.templates[like].flags.c_contiguous:
                strides = self.templates[like].strides
                order = tuple(sorted(range(len(shape)), key=lambda d: -abs(strides[d])))
            axes_shape, step, by_dim = shape, 1, [0] * len(shape)
            for d in reversed(order if order is not None else range(len(shape))):
                by_dim[d] = step
                step *= axes_shape[d]
            steps: list[tuple[Axis, int]] = []
            for axis, part in dimensions(port.order, len(shape)).items():
                one = as_one(shape[part], by_dim[part])
                if one is None:  # the dimensions of a starred axis are interleaved with others
                    return self._temporary(node, lies)
                steps.append((axis, one))
            lie = Lie(tuple(steps), held)
            self.lies[node] = lie
            room = Room(shape, order, held)
            self.direct[node] = i or 0
            self._rooms[i or 0] = room
            return (lambda: (room.make(), None)), lie
        return self._temporary(node, lies)

    def _temporary(self, node: Node, lies: Mapping[Node, Lie]) -> tuple[Callable[[], tuple[np.ndarray, Any]], Lie]:
        axes = tuple(self._by_stride(node.axes, lies.values()))
        shape = tuple(self.sizes[a] for a in axes)
        frame = self.frames.get(node)
        if frame is None:
            lie = self.lies[node] = dense(axes, shape, self.real)
            return (lambda: (BUFFERS.take(shape, self.real), axes)), lie
        place = axes.index(frame.axis)
        wide = tuple(n + frame.before + frame.after if i == place else n for i, n in enumerate(shape))
        lie = self.lies[node] = dense(axes, wide, self.real)

        def make() -> tuple[np.ndarray, tuple[Axis, ...]]:
            array = np.moveaxis(BUFFERS.take(wide, self.real), place, 0)
            end = len(array) - frame.after
            array[: frame.before] = 0
            array[end:] = 0
            return np.moveaxis(array[frame.before : end], 0, place), axes

        return make, lie

    def _frames(self) -> dict[Node, _Frame]:
        """Results on the way that are padded afterwards: with zeros around them, padding them is a view."""
        sweeps = [s for s in self.schedule.sweeps if not self._is_few(s)]
        stored = {n for s in sweeps for n in s.stores} - {n for s in sweeps for n in self._over(s)}
        found: dict[Node, _Frame] = {}
        for step in self.schedule.steps:
            if not isinstance(step, Move) or step.node.op != "window" or is_slice(step.node):
                continue
            axis, _, start, trim = step.node.attrs
            if step.x not in stored or step.x in self.schedule.outputs:
                continue
            known = found.setdefault(step.x, _Frame(axis, 0, 0))
            if known.axis == axis:
                before, after = (max(0, -count_entries(part, self.sizes)) for part in (start, trim))
                found[step.x] = _Frame(axis, max(known.before, before), max(known.after, after))
        return found

    def _by_stride(self, axes: Iterable[Axis], lies: Iterable[Lie]) -> list[Axis]:
        """Axes from the slowest to the fastest in memory, as most of them are in one of some arrays."""
        found = sorted(axes)
        known = [dict(lie.strides) for lie in lies]
        like = max(known, key=lambda strides: len(strides.keys() & set(found)), default={})
        return sorted(found, key=lambda a: -abs(like.get(a, math.inf)))

    def _launch(
        self,
        sweep: Sweep,
        kernel: Kernel,
        compiled: Callable[..., None],
        lies: Mapping[Node, Lie],
        sizes: Mapping[Axis, int],
        allocate: Mapping[Node, Callable[[], tuple[np.ndarray, Any]]],
        over: Mapping[Node, Node],
    ) -> Launch:
        rows = math.prod(sizes[a] for a in kernel.rows)
        lanes = sizes[kernel.lane] if kernel.lane is not None else 1
        inner = math.prod(sizes[a] for a in kernel.inner) if kernel.inner else 1
        piece = max(256, CHUNK // max(inner, 1) // 256 * 256) if kernel.lane is not None else 1
        pieces = -(-lanes // piece) if lanes else 0
        tasks = rows * pieces
        per_task = max(1, min(lanes, piece) * inner)
        chunk = max(1, CHUNK // per_task)
        chunks = -(-tasks // chunk)
        cost = int(rows * lanes * inner * (0.25 + 0.05 * len(ir.topological(sweep.results))))
        self.parallel |= cost >= CROSSOVER

        def held(array: ArrayArgument) -> Held:
            return Held(array.node, tuple(lies[array.node].stride(x) for x in array.axes), array.dtype)

        return Launch(
            compiled,
            tasks,
            (chunk, piece, pieces, *(sizes[a] for a in kernel.sizes)),
            cost,
            reads=tuple(map(held, kernel.arrays)),
            stores=tuple(map(held, kernel.stores)),
            scalars=tuple(self.constants.get(n, n) for n in kernel.scalars),
            totals=tuple(self._parts(t, kernel, sizes, tasks if t.per_task else chunks, pieces) for t in kernel.totals),
            own=tuple(n for n in (kernel.scratch, kernel.tile, kernel.kept * inner) if n),
            real=self.real,
            direct=frozenset(self.direct),
            allocate=allocate,
            over=over,
        )

    def _parts(self, total: Total, kernel: Kernel, sizes: Mapping[Axis, int], slots: int, pieces: int) -> Parts:
        node = total.node
        if kernel.lane is not None and kernel.lane in node.axes:
            raise AssertionError("a total cannot keep the lane")
        axes = (*(a for a in kernel.rows if a in node.axes), *total.inner)
        if axes:
            self.lies[node] = dense(axes, [sizes[a] for a in axes], self.real)
        grid: tuple[int, ...] = (slots,)
        gone: tuple[int, ...] = (0,)
        if total.per_task:
            grid = (*(sizes[a] for a in kernel.rows), pieces)
            gone = (*(i for i, a in enumerate(kernel.rows) if a not in node.axes), len(kernel.rows))
        return Parts(node, slots, tuple(sizes[a] for a in total.inner), grid, gone, axes, self.real)


def _interleave(sweep: Sweep, layout: Layout, sizes: Mapping[Axis, int]) -> int:
    """How many vectors the innermost loop works on at a time; 0 where the compiler knows best.

    An exponential is a chain of twenty instructions, each of which waits for the one before. The compiler counts
    registers, finds too few of them for two chains, and lets the processor wait. Constants that several vectors share
    are loaded once. Measured, focal loss: 12.8, 10.7 and 9.1 ns for 8 entries with one, two and four vectors.
    """
    calls, lane = sum(n.op in CALLS for n in between(sweep)), layout.lane
    if not calls or lane is None or sizes[lane] < LONG:
        return 0
    if layout.unrolled:
        return 0  # chains side by side already, and long to compile
    if any(lane in n.axes and n not in layout.unit for n in (*reads(sweep), *sweep.stores)):
        return 0  # entries are gathered, which takes longer than the arithmetic
    return 4 if calls <= 4 else 2


def _results(step: Step) -> tuple[Node, ...]:
    """What a step makes."""
    if isinstance(step, Sweep):
        return tuple(step.results)
    return (step.node,) if isinstance(step, Product | Move) else tuple(step.nodes)


def _operands(step: Step) -> tuple[Node, ...]:
    """The arrays that a step reads."""
    if isinstance(step, Product | Move):
        return operands(step.node)
    return reads(step) if isinstance(step, Sweep) else ()


def _seeks_ties(outputs: Sequence[Node]) -> bool:
    """Whether computed entries are compared with one that was picked among them, which is computed in another loop."""
    return any(
        n.op in ir.COMPARISONS and all(a.op != "constant" for a in n.args) and any(_is_picked(a) for a in n.args)
        for n in ir.topological(outputs)
    )


def _is_picked(node: Node) -> bool:
    """Whether a value is one of several computed ones: an extreme, or one at a place in their order."""
    while node.op in ir.STRUCTURAL and node.op != "take":
        node = node.args[0]
    return node.op in ("max", "min", "take") and node.args[0].op != "input"


def _as(value: Any, held: str) -> np.ndarray:
    """A new array of a dtype; bfloat16 by its bits."""
    if held != "bfloat16":
        return np.array(value, held)
    bits = np.array(value, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(value), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def held_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(np.uint16 if name == "bfloat16" else name)


__all__ = ["Bound", "Room"]
