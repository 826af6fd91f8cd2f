"""From a sweep to the text of a kernel: plain loops for Numba, over flat arrays with strides.

A kernel works on a range of *tasks*. A task is one position of the sweep's rows (its outer axes but the lane), and a
piece of the lane, which is the axis that is contiguous in memory and that the innermost loop runs along. The lane is

- an outer axis (elementwise losses; a softmax over channels that come first): inner reductions then keep a value for
  each lane of a short block, in scratch memory that stays in the first-level cache; or
- an inner axis (a softmax over channels that come last): they are then plain sums along a row.

Sums run over at most `BLOCK` entries in the computing precision, in as many vector lanes as the processor has, and
are then added to float64 totals. Totals are kept for each task or chunk of tasks, never for each thread, so that the
answer is the same for any number of threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lossforge import ir
from lossforge.codegen.emitter import _INFIX
from lossforge.errors import UnsupportedError
from lossforge.frontends.signature import python_name
from lossforge.ir import REDUCTIONS, Axes, Axis, Kind, Node
from lossforge.schedule import Sweep, reads

BLOCK = 4096
"""Entries that are summed in the computing precision before they are added to a float64 total."""

LANES = 256
"""Lanes of a block when inner reductions keep a value for each of them."""

_LONGEST = 76
_ATOM = 100
_CALLS = frozenset({
    "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "log_sigmoid", "softplus", "erf", "erfc", "sin", "cos", "tan",
    "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "pow", "lgamma", "digamma",
    "atan2", "logaddexp", "polygamma", "xlogy",
})  # fmt: skip
_RESERVED = frozenset({
    "np", "math", "real", "load", "store", "select", "largest", "begin", "end", "chunk", "piece", "pieces", "first",
    "task", "row", "lane_begin", "lane_end", "block", "length", "j", "k", "scratch", "tile", "abs", "min", "max", "range",
    "sum", *_CALLS,
})  # fmt: skip
_IDENTITY = {"sum": "0.0", "prod": "1.0", "max": "-np.inf", "min": "np.inf"}


@dataclass(frozen=True)
class ArrayArgument:
    """An array that a kernel reads or writes: flat, with one stride for each axis."""

    node: Node
    name: str
    dtype: str
    """The dtype of the entries, such as "bfloat16"."""
    axes: tuple[Axis, ...]
    """Axes with a stride argument, in order; the lane is missing where its stride is 1."""


@dataclass(frozen=True)
class Total:
    """Where a kernel leaves the parts of a total: float64, [slot, inner axes …]."""

    node: Node
    name: str
    per_task: bool
    """One slot for each task; else one for each chunk of tasks."""
    inner: tuple[Axis, ...]


@dataclass(frozen=True)
class Kernel:
    """The text of a kernel and the meaning of its arguments, in order."""

    source: str
    entry: str
    rows: tuple[Axis, ...]
    lane: Axis | None
    inner: tuple[Axis, ...]
    sizes: tuple[Axis, ...]
    """Axes whose sizes are arguments."""
    arrays: tuple[ArrayArgument, ...]
    stores: tuple[ArrayArgument, ...]
    scalars: tuple[Node, ...]
    totals: tuple[Total, ...]
    scratch: int
    """Entries of scratch memory (of the computing dtype)."""
    tile: int
    """Entries of memory for transposed blocks (of the computing dtype)."""
    signature: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How the arrays of a sweep lie in memory: the lane, and which arrays are contiguous along it."""

    lane: Axis | None
    unit: frozenset[Node]
    """Arrays (read or stored) whose stride along the lane is 1."""
    dtypes: tuple[tuple[Node, str], ...]
    dropped: frozenset[Axis] = frozenset()
    """Outer axes that were merged into another one, because all arrays step through both as through one."""
    width: int = 0
    """The size of the inner axis, where it is part of the text: some arrays have it innermost in memory, and it is
    too short to run along. Blocks of these arrays are transposed on the way in and out."""
    transposed: frozenset[Node] = frozenset()


def emit_kernel(sweep: Sweep, layout: Layout, real: str, names: Mapping[Node, str], entry: str = "kernel") -> Kernel:
    """The kernel of a sweep.

    Args:
        sweep: what to compute.
        layout: how the arrays lie in memory.
        real: the computing precision, "float32" or "float64".
        names: names for inputs, results and intermediate values.
        entry: the function's name.

    Raises:
        UnsupportedError: the sweep holds an operation that kernels do not spell.
    """
    return _KernelEmitter(sweep, layout, real, names).run(entry)


class _Scope:
    """One loop body: statements, the position along each axis, and what is already computed there."""

    def __init__(self, parent: _Scope | None, indent: int, env: Mapping[Axis, str]) -> None:
        self.parent = parent
        self.indent = indent
        self.env: dict[Axis, str] = dict(parent.env) if parent else {}
        self.env.update(env)
        self.known: dict[tuple[Node, tuple[str, ...]], str] = {}

    def find(self, key: tuple[Node, tuple[str, ...]]) -> str | None:
        scope: _Scope | None = self
        while scope is not None:
            if key in scope.known:
                return scope.known[key]
            scope = scope.parent
        return None


class _KernelEmitter:
    def __init__(self, sweep: Sweep, layout: Layout, real: str, names: Mapping[Node, str]) -> None:
        self.sweep = sweep
        self.layout = layout
        self.real = real
        self.given = names
        self.lane = layout.lane
        self.outer = tuple(a for a in sweep.outer if a not in layout.dropped)
        self.rows = tuple(a for a in self.outer if a != self.lane)
        self.inner = self._inner_order()
        self.lane_is_outer = self.lane is not None and self.lane in self.outer
        self.dtypes = dict(layout.dtypes)
        self.lines: list[str] = []
        self.functions: dict[str, None] = {}
        self.memory: dict[str, None] = {"load": None, "store": None}
        self.taken: set[str] = set(_RESERVED)
        self.names: dict[Node, str] = {}
        self.sizes: dict[Axis, str] = {}
        self.temps: dict[Node, str] = {}
        self.slots: dict[Node, int] = {}
        self.scalars: dict[Node, str] = {}
        self.counter = 0
        self.tiles: dict[Node, int] = {}
        self.uses: Counter[Node] = Counter()

    def _inner_order(self) -> tuple[Axis, ...]:
        """Inner axes from the outermost loop to the innermost."""
        return tuple(sorted(self.sweep.inner, key=lambda a: (a == self.lane, a)))

    # ------------------------------------------------------------------ the whole

    def run(self, entry: str) -> Kernel:
        arrays = [self._array(n) for n in reads(self.sweep)]
        stores = [self._array(n, store=True) for n in self.sweep.stores]
        for a in (*arrays, *stores):
            if a.node not in self.names:
                self.names[a.node] = a.name
        self.store_names = {a.node: a for a in stores}
        self.array_of = {a.node: a for a in arrays}
        axes = dict.fromkeys([*self.rows, *([self.lane] if self.lane_is_outer and self.lane else []), *self.inner])
        axes.update(dict.fromkeys(x for x in self._sizes_used() if x not in axes))
        for axis in axes:
            self.sizes[axis] = self._fresh(f"n_{python_name(axis)}")
        self.totals = [self._total(n) for n in self.sweep.totals]
        self._collect_scalars()
        self._body()
        arguments = ["begin", "end", "chunk", "piece", "pieces", *self.sizes.values()]
        signature = ["int64"] * len(arguments)
        for a in (*arrays, *stores):
            arguments += [a.name, *(f"{a.name}_{python_name(x)}" for x in a.axes)]
            signature += [f"{_STORAGE[a.dtype]}[::1]", *["int64"] * len(a.axes)]
        arguments += list(self.scalars.values())
        signature += ["float64"] * len(self.scalars)
        for t in self.totals:
            arguments.append(t.name)
            signature.append("float64[::1]")
        if self.slots:
            arguments.append("scratch")
            signature.append(f"{self.real}[::1]")
        if self.tiles:
            arguments.append("tile")
            signature.append(f"{self.real}[::1]")
        head = ["import math", "", "import numpy as np", ""]
        head.append(f"from lossforge.codegen.memory import {', '.join(sorted(self.memory))}")
        if self.functions:
            head.append(f"from lossforge.codegen.vector_math import {', '.join(sorted(self.functions))}")
        head += ["", f"real = np.{self.real}", "", ""]
        text = "\n".join(head) + f"\ndef {entry}({', '.join(arguments)}):\n" + "\n".join(self.lines) + "\n"
        return Kernel(
            text, entry, self.rows, self.lane if self.lane_is_outer else None, self.inner, tuple(self.sizes),
            tuple(arrays), tuple(stores), tuple(self.scalars), tuple(self.totals),
            len(self.slots) * LANES, len(self.tiles) * self.layout.width * LANES, tuple(signature),
        )  # fmt: skip

    def _array(self, node: Node, *, store: bool = False) -> ArrayArgument:
        fallback = "out" if store else "part"
        name = self._fresh(
            self.given.get(node) or (python_name(str(node.attrs[0])) if node.op == "input" else fallback)
        )
        order = [a for a in (*self.rows, *self.inner, *self.outer) if a in node.axes]
        extra = sorted(node.axes - set(order) - self.layout.dropped)
        axes = tuple(
            a
            for a in dict.fromkeys([*order, *extra])
            if a not in self.layout.dropped and not (a == self.lane and node in self.layout.unit)
        )
        return ArrayArgument(node, name, self.dtypes[node], axes)

    def _total(self, node: Node) -> Total:
        kept = node.axes - self.layout.dropped
        name = self._fresh(self.given.get(node) or "total")
        self.names.setdefault(node, name)
        return Total(node, f"{name}_parts", bool(kept & set(self.rows)), tuple(a for a in self.inner if a in kept))

    def _sizes_used(self) -> list[Axis]:
        found: dict[Axis, None] = {}
        for n in ir.topological(self.sweep.results):
            if n.op == "take":
                found[n.attrs[0]] = None
        return list(found)

    def _collect_scalars(self) -> None:
        """Numbers that come from outside: parameters, and totals without axes."""
        reached: dict[Node, None] = {}
        inside = set(self.sweep.reductions)
        stack = [a for t in self.sweep.totals for a in t.args] + list(self.sweep.stores)
        while stack:
            n = stack.pop()
            if n in reached:
                continue
            reached[n] = None
            if not n.axes and n.op != "constant" and n not in inside:
                name = self.given.get(n) or (python_name(str(n.attrs[0])) if n.op == "input" else "s")
                self.scalars[n] = self._fresh(name)
                continue
            if n.op in REDUCTIONS and n not in inside:
                continue
            stack.extend(n.args)

    def _fresh(self, name: str) -> str:
        candidate, i = name, 2
        while candidate in self.taken:
            candidate, i = f"{name}_{i}", i + 1
        self.taken.add(candidate)
        return candidate

    def _line(self, scope: _Scope, text: str) -> None:
        self.lines.append("    " * scope.indent + text)

    # ------------------------------------------------------------------ loops

    def _body(self) -> None:
        top = _Scope(None, 1, {})
        for scalar in self.scalars.values():
            self._line(top, f"{scalar} = real({scalar})")
        self._line(top, "for first in range(begin, end, chunk):")
        chunk = _Scope(top, 2, {})
        for t in self.totals:
            if not t.per_task and not t.inner:
                self._line(chunk, f"{self._sum64(t)} = {_IDENTITY[t.node.op]}")
        self._line(chunk, "for task in range(first, min(first + chunk, end)):")
        task = _Scope(chunk, 3, {})
        for t in self.totals:
            if t.per_task and not t.inner:
                self._line(task, f"{self._sum64(t)} = {_IDENTITY[t.node.op]}")
        self._rows(task)
        if self.lane_is_outer:
            self._lanes(task)
        else:
            self._row(task)
        for t in self.totals:
            if t.per_task and not t.inner:
                self._line(task, f"store({t.name}, task, {self._sum64(t)})")
        for t in self.totals:
            if not t.per_task and not t.inner:
                self._line(chunk, f"store({t.name}, first // chunk, {self._sum64(t)})")

    def _sum64(self, total: Total) -> str:
        return total.name.removesuffix("_parts")

    def _rows(self, scope: _Scope) -> None:
        """The position along each row axis, from the number of the task."""
        if not self.rows:
            return
        rest = "task // pieces" if self.lane_is_outer else "task"
        if len(self.rows) == 1:
            (only,) = self.rows
            scope.env[only] = self._fresh(f"i_{python_name(only)}")
            self._line(scope, f"{scope.env[only]} = {rest}")
            return
        self._line(scope, f"row = {rest}")
        for i, axis in enumerate(reversed(self.rows)):
            scope.env[axis] = self._fresh(f"i_{python_name(axis)}")
            if i == len(self.rows) - 1:
                self._line(scope, f"{scope.env[axis]} = row")
            else:
                self._line(scope, f"{scope.env[axis]} = row % {self.sizes[axis]}")
                self._line(scope, f"row = row // {self.sizes[axis]}")

    def _lanes(self, task: _Scope) -> None:
        """The lane is an outer axis: blocks of lanes, and inner loops around them."""
        assert self.lane is not None
        length = BLOCK if not self.inner else LANES
        self._line(task, "lane_begin = (task % pieces) * piece")
        self._line(task, f"lane_end = min(lane_begin + piece, {self.sizes[self.lane]})")
        self._line(task, f"for block in range(lane_begin, lane_end, {length}):")
        block = _Scope(task, task.indent + 1, {})
        self._line(block, f"length = min({length}, lane_end - block)")
        self._transpose_in(block)
        for group in self._levels():
            self._lane_reductions(block, group)
        outer_only = [n for n in self.sweep.results if not self._domain(n) & set(self.inner)]
        with_inner = [n for n in self.sweep.results if n not in outer_only]
        if outer_only:
            self._lane_loop(block, outer_only)
        if with_inner:
            scope = self._inner_loops(block, self._axes_of_results(with_inner))
            self._lane_loop(scope, with_inner)
        self._transpose_out(block)

    def _transpose_in(self, block: _Scope) -> None:
        """Blocks of arrays whose short inner axis is innermost in memory, turned so that lanes are contiguous."""
        for node, argument in self.array_of.items():
            if node in self.layout.transposed:
                inner = self._tile_loops(block, node)
                self._line(
                    inner, f"store(tile, {self._tile_offset(inner, node)}, {self._from_memory(inner, argument)})"
                )

    def _transpose_out(self, block: _Scope) -> None:
        for node, argument in self.store_names.items():
            if node in self.layout.transposed:
                inner = self._tile_loops(block, node)
                self._to_memory(inner, argument, f"load(tile, {self._tile_offset(inner, node)})")

    def _tile_loops(self, block: _Scope, node: Node) -> _Scope:
        self.tiles.setdefault(node, len(self.tiles))
        (axis,) = self.inner
        lanes = self._for_lanes(block)
        self._line(lanes, f"for k in range({self.layout.width}):")
        return _Scope(lanes, lanes.indent + 1, {axis: "k"})

    def _tile_offset(self, scope: _Scope, node: Node) -> str:
        (axis,) = self.inner
        start = self.tiles[node] * self.layout.width
        return f"({start} + {scope.env[axis]}) * {LANES} + j" if start else f"{scope.env[axis]} * {LANES} + j"

    def _row(self, task: _Scope) -> None:
        """The lane is an inner axis, or there is none: reductions along the row."""
        for group in self._levels():
            self._row_reductions(task, group)
        outer_only = [n for n in self.sweep.results if not self._domain(n) & set(self.inner)]
        with_inner = [n for n in self.sweep.results if n not in outer_only]
        for n in outer_only:
            if n in self.store_names:
                self._store(task, n)
            else:
                t = self._total_of(n)
                value = self._value(task, n.args[0])
                self._line(task, self._combine(n.op, self._sum64(t), f"np.float64({value})"))
        if with_inner:
            self._row_loop(task, with_inner)

    def _total_of(self, node: Node) -> Total:
        return next(t for t in self.totals if t.node is node)

    def _axes_of_results(self, results: Iterable[Node]) -> Axes:
        return frozenset(a for n in results for a in self._domain(n))

    def _domain(self, result: Node) -> frozenset[Axis]:
        return result.args[0].axes if result in self.sweep.totals else result.axes

    def _levels(self) -> list[list[Node]]:
        """Inner reductions in groups that do not need one another."""
        level: dict[Node, int] = {}
        for n in self.sweep.reductions:
            beneath = ir.topological(n.args)
            level[n] = 1 + max((level[m] for m in beneath if m in level), default=0)
        groups: dict[tuple[int, frozenset[Axis]], list[Node]] = {}
        for n in self.sweep.reductions:
            groups.setdefault((level[n], n.args[0].axes & set(self.inner)), []).append(n)
        return [groups[k] for k in sorted(groups, key=lambda k: (k[0], sorted(k[1])))]

    def _inner_loops(self, scope: _Scope, used: Axes, *, skip_lane: bool = False) -> _Scope:
        for axis in self.inner:
            if axis not in used or (skip_lane and axis == self.lane):
                continue
            index = f"i_{python_name(axis)}"
            count = str(self.layout.width) if self.layout.width else self.sizes[axis]
            self._line(scope, f"for {index} in range({count}):")
            scope = _Scope(scope, scope.indent + 1, {axis: index})
        return scope

    # ---------------------------------------------------------------- lane outside

    def _slot(self, node: Node, part: str = "") -> int:
        key = node if not part else ir.intern("slot", (node,), (part,), frozenset(), Kind.FLOAT)
        return self.slots.setdefault(key, len(self.slots))

    def _scratch(self, slot: int, lane: str = "j") -> str:
        return f"{slot * LANES} + {lane}" if slot else lane

    def _for_lanes(self, scope: _Scope) -> _Scope:
        assert self.lane is not None
        self._line(scope, "for j in range(length):")
        return _Scope(scope, scope.indent + 1, {self.lane: "block + j"})

    def _lane_reductions(self, block: _Scope, group: Sequence[Node]) -> None:
        start = self._for_lanes(block)
        for n in group:
            if n.op not in ("sum", "prod", "max", "min", "logsumexp"):
                raise UnsupportedError(f"kernels do not spell {n.op}")
            first = "max" if n.op == "logsumexp" else n.op
            self._line(start, f"store(scratch, {self._scratch(self._slot(n))}, real({_IDENTITY[first]}))")
            if n.op == "logsumexp":
                self._line(start, f"store(scratch, {self._scratch(self._slot(n, 'sum'))}, real(0.0))")
        loop = self._for_lanes(self._inner_loops(block, _axes_of_operands(group)))
        for n in group:
            value = self._value(loop, n.args[0])
            at = self._scratch(self._slot(n))
            op = "max" if n.op == "logsumexp" else n.op
            self._line(loop, f"store(scratch, {at}, {self._combined(op, f'load(scratch, {at})', value)})")
        exponentials = [n for n in group if n.op == "logsumexp"]
        if exponentials:
            self.functions.update(exp=None, log=None)
            self.memory["select"] = None
            loop = self._for_lanes(block)
            for n in exponentials:  # an infinite maximum must not make inf − inf
                at = self._scratch(self._slot(n))
                top = self._fresh("top")
                self._line(loop, f"{top} = load(scratch, {at})")
                self._line(loop, f"store(scratch, {at}, select(abs({top}) < real(np.inf), {top}, real(0.0)))")
            loop = self._for_lanes(self._inner_loops(block, _axes_of_operands(exponentials)))
            for n in exponentials:
                at, to = self._scratch(self._slot(n)), self._scratch(self._slot(n, "sum"))
                value = self._value(loop, n.args[0])
                self._line(loop, f"store(scratch, {to}, load(scratch, {to}) + exp({value} - load(scratch, {at})))")
            loop = self._for_lanes(block)
            for n in exponentials:
                at, to = self._scratch(self._slot(n)), self._scratch(self._slot(n, "sum"))
                self._line(loop, f"store(scratch, {at}, load(scratch, {at}) + log(load(scratch, {to})))")

    def _lane_loop(self, scope: _Scope, results: Sequence[Node]) -> None:
        totals = [n for n in results if n in self.sweep.totals]
        for n in totals:
            self._line(scope, f"{self._sum32(n)} = real({_IDENTITY[n.op]})")
        loop = self._for_lanes(scope)
        self._share(loop, [n.args[0] if n in self.sweep.totals else n for n in results])
        for n in results:
            if n in self.store_names:
                self._store(loop, n)
            else:
                self._line(loop, self._combine(n.op, self._sum32(n), self._value(loop, n.args[0])))
        for n in totals:
            self._flush(scope, n)

    def _sum32(self, node: Node) -> str:
        return f"{self.names[node]}_block"

    def _flush(self, scope: _Scope, node: Node) -> None:
        """Add a block's sum to its float64 total."""
        total = self._total_of(node)
        block = f"np.float64({self._sum32(node)})"
        if not total.inner:
            self._line(scope, self._combine(node.op, self._sum64(total), block))
            return
        place = self._slot_of(scope, total)
        new = self._combined(node.op, f"load({total.name}, {place})", block)
        self._line(scope, f"store({total.name}, {place}, {new})")

    def _slot_of(self, scope: _Scope, total: Total) -> str:
        place = "task" if total.per_task else "(first // chunk)"
        for axis in total.inner:
            place = f"({place} * {self.sizes[axis]} + {scope.env[axis]})"
        return place.removeprefix("(").removesuffix(")") if place.startswith("((") else place

    # ---------------------------------------------------------------- lane inside

    def _row_reductions(self, task: _Scope, group: Sequence[Node]) -> None:
        exponentials = [n for n in group if n.op == "logsumexp"]
        plain = [n for n in group if n.op != "logsumexp"]
        for n in group:
            if n.op not in ("sum", "prod", "max", "min", "logsumexp"):
                raise UnsupportedError(f"kernels do not spell {n.op}")
            self.temps[n] = self._fresh(self.given.get(n) or n.op)
        for n in plain:
            self._line(task, f"{self.temps[n]}_64 = np.float64({_IDENTITY[n.op]})")
        tops = {n: self._fresh("top") for n in exponentials}
        for n in exponentials:
            self._line(task, f"{tops[n]} = real(-np.inf)")
        loop, flush = self._blocks(task, _axes_of_operands(group), [(f"{self.temps[n]}_block", n.op) for n in plain])
        self._share(loop, [n.args[0] for n in group])
        for n in plain:
            self._line(loop, self._combine(n.op, f"{self.temps[n]}_block", self._value(loop, n.args[0])))
        for n in exponentials:
            self.memory["largest"] = None
            self._line(loop, f"{tops[n]} = largest({self._value(loop, n.args[0])}, {tops[n]})")
        for n in plain:
            self._line(flush, self._combine(n.op, f"{self.temps[n]}_64", f"np.float64({self.temps[n]}_block)"))
        for n in plain:
            self._line(task, f"{self.temps[n]} = real({self.temps[n]}_64)")
        if exponentials:
            self.functions.update(exp=None, log=None)
            for n in exponentials:
                self._line(task, f"if not abs({tops[n]}) < np.inf:")
                self._line(_Scope(task, task.indent + 1, {}), f"{tops[n]} = real(0.0)")
                self._line(task, f"{self.temps[n]}_64 = 0.0")
            loop, flush = self._blocks(
                task, _axes_of_operands(exponentials), [(f"{self.temps[n]}_block", "sum") for n in exponentials]
            )
            for n in exponentials:
                self._line(loop, f"{self.temps[n]}_block += exp({self._value(loop, n.args[0])} - {tops[n]})")
                self._line(flush, f"{self.temps[n]}_64 += np.float64({self.temps[n]}_block)")
            for n in exponentials:
                self._line(task, f"{self.temps[n]} = {tops[n]} + log(real({self.temps[n]}_64))")

    def _blocks(self, task: _Scope, used: Axes, sums: Sequence[tuple[str, str]]) -> tuple[_Scope, _Scope]:
        """Loops over the inner axes, the innermost in blocks. Returns the body and the scope after each block.

        Statements for the second scope must be added after all of the first's.
        """
        scope = self._inner_loops(task, used, skip_lane=True)
        along = self.inner[-1]
        if along not in used or (self.lane is not None and along != self.lane):
            for name, op in sums:
                self._line(scope, f"{name} = real({_IDENTITY[op]})")
            if along in used and along not in scope.env:
                raise AssertionError("an inner axis without a loop")
            return _Scope(scope, scope.indent, {}), scope
        self._line(scope, f"for block in range(0, {self.sizes[along]}, {BLOCK}):")
        flush = _Scope(scope, scope.indent + 1, {})
        for name, op in sums:
            self._line(flush, f"{name} = real({_IDENTITY[op]})")
        index = f"i_{python_name(along)}"
        self._line(flush, f"for {index} in range(block, min(block + {BLOCK}, {self.sizes[along]})):")
        return _Scope(flush, flush.indent + 1, {along: index}), flush

    def _row_loop(self, task: _Scope, results: Sequence[Node]) -> None:
        totals = [n for n in results if n in self.sweep.totals]
        along = [n for n in totals if self.lane is None or self.lane not in self._total_of(n).inner]
        loop, flush = self._blocks(task, self._axes_of_results(results), [(self._sum32(n), n.op) for n in along])
        self._share(loop, [n.args[0] if n in self.sweep.totals else n for n in results])
        for n in results:
            if n in self.store_names:
                self._store(loop, n)
            elif n in along:
                self._line(loop, self._combine(n.op, self._sum32(n), self._value(loop, n.args[0])))
            else:  # one total for each lane
                total = self._total_of(n)
                place = self._slot_of(loop, total)
                value = f"np.float64({self._value(loop, n.args[0])})"
                self._line(
                    loop, f"store({total.name}, {place}, {self._combined(n.op, f'load({total.name}, {place})', value)})"
                )
        for n in along:
            self._flush(flush, n)

    # ------------------------------------------------------------------ expressions

    def _store(self, scope: _Scope, node: Node) -> None:
        argument = self.store_names[node]
        value = self._value(scope, node)
        if node in self.layout.transposed:
            self.tiles.setdefault(node, len(self.tiles))
            self._line(scope, f"store(tile, {self._tile_offset(scope, node)}, {value})")
        else:
            self._to_memory(scope, argument, value)

    def _to_memory(self, scope: _Scope, argument: ArrayArgument, value: str) -> None:
        if argument.dtype in ("float16", "bfloat16"):
            self.memory[f"to_{argument.dtype}"] = None
            value = f"to_{argument.dtype}({value})"
        self._line(scope, f"store({argument.name}, {self._offset(scope, argument)}, {value})")

    def _offset(self, scope: _Scope, argument: ArrayArgument) -> str:
        parts = [f"{_tight(scope.env[a])} * {argument.name}_{python_name(a)}" for a in argument.axes]
        if self.lane is not None and self.lane in argument.node.axes and self.lane not in argument.axes:
            parts.append(scope.env[self.lane])
        return " + ".join(parts) or "0"

    def _share(self, scope: _Scope, roots: Sequence[Node]) -> None:
        """Count uses, so that what a body needs more than once gets a name."""
        self.uses = Counter(roots)
        for n in ir.topological(roots):
            self.uses.update(n.args)

    def _value(self, scope: _Scope, node: Node) -> str:
        """The text of a value at the scope's position."""
        text, _ = self._expression(scope, node)
        return text

    def _expression(self, scope: _Scope, node: Node) -> tuple[str, int]:
        axes = node.axes - self.layout.dropped
        key = (node, tuple(scope.env.get(a, "") for a in sorted(axes)))
        known = scope.find(key)
        if known is not None:
            return known, _ATOM
        text, level = self._spell(scope, node)
        simple = node.op in ("constant", "iota") or node in self.scalars
        if not simple and (self.uses_of(node) > 1 or len(text) > _LONGEST or node.op == "input"):
            name = self._local(node)
            self._line(scope, f"{name} = {text}")
            scope.known[key] = name
            return name, _ATOM
        return text, level

    def uses_of(self, node: Node) -> int:
        """How often the current body uses a value."""
        return self.uses[node]

    def _local(self, node: Node) -> str:
        wanted = self.given.get(node)
        if node.op == "input":
            wanted = "v_" + python_name(str(node.attrs[0]))
        if wanted:
            return self._fresh(wanted)
        self.counter += 1
        return self._fresh(f"t{self.counter}")

    def _spell(self, scope: _Scope, node: Node) -> tuple[str, int]:
        if node in self.scalars:
            return self.scalars[node], _ATOM
        if node in self.temps:
            return self.temps[node], _ATOM
        if node in self.slots and node not in self.array_of:
            return f"load(scratch, {self._scratch(self.slots[node])})", _ATOM
        if node in self.array_of:
            return self._load(scope, node), _ATOM
        if node.op == "constant":
            return self._constant(node), _ATOM
        if node.op == "iota":
            return _tight(scope.env[node.attrs[0]]), _ATOM
        if node.op == "take":
            return self._take(scope, node), _ATOM
        if node.op == "rename":
            old, new = node.attrs
            return self._expression(_Scope(scope, scope.indent, {old: scope.env[new]}), node.args[0])
        if node.op in REDUCTIONS | ir.INDEX_REDUCTIONS:
            raise UnsupportedError(f"kernels do not spell {node.op} here")
        return self._elementwise(scope, node)

    def _load(self, scope: _Scope, node: Node) -> str:
        if node in self.layout.transposed:
            return f"load(tile, {self._tile_offset(scope, node)})"
        return self._from_memory(scope, self.array_of[node])

    def _from_memory(self, scope: _Scope, argument: ArrayArgument) -> str:
        node = argument.node
        text = f"load({argument.name}, {self._offset(scope, argument)})"
        if node.kind is Kind.BOOL:
            return f"({text} != 0)"
        if node.kind is Kind.INDEX:
            return f"np.int64({text})" if argument.dtype != "int64" else text
        if argument.dtype in ("float16", "bfloat16"):
            self.memory[f"from_{argument.dtype}"] = None
            text = f"from_{argument.dtype}({text})"
            return text if self.real == "float32" else f"real({text})"
        return text if argument.dtype == self.real else f"real({text})"

    def _constant(self, node: Node) -> str:
        value = node.attrs[0]
        if node.kind is not Kind.FLOAT:
            return repr(value)
        if value != value:
            return "real(np.nan)"
        if value in (float("inf"), float("-inf")):
            return f"real({'-' if value < 0 else ''}np.inf)"
        return f"real({value!r})"

    def _take(self, scope: _Scope, node: Node) -> str:
        """The operand at another position along an axis; NaN outside of it."""
        x, index = node.args
        axis = node.attrs[0]
        at = self._value(scope, index)
        name = self._fresh("at")
        self._line(scope, f"{name} = {at}")
        inside = self._fresh("inside")
        size = self.sizes[axis]
        self._line(scope, f"{inside} = ({name} >= 0) & ({name} < {size})")
        self.memory["select"] = None
        safe = self._fresh("position")
        self._line(scope, f"{safe} = select({inside}, {name}, np.int64(0))")
        there = _Scope(scope, scope.indent, {axis: safe})
        value = self._value(there, x)
        return f"select({inside}, {value}, real(np.nan))"

    def _elementwise(self, scope: _Scope, node: Node) -> tuple[str, int]:
        parts = [self._expression(scope, a) for a in node.args]
        op = node.op
        texts = [p[0] for p in parts]
        if op in ir.LOGICAL:
            wrapped = [f"({t})" if p < _ATOM else t for t, p in parts]
            return {"and": " & ", "or": " | "}[op].join(wrapped) if op != "not" else f"not {wrapped[0]}", 8
        if op in _INFIX and op != "pow":
            symbol, level = _INFIX[op]
            left = texts[0] if parts[0][1] >= level + (level == 5) else f"({texts[0]})"
            right = texts[1] if parts[1][1] >= level + 1 else f"({texts[1]})"
            return f"{left} {symbol} {right}", level
        if op == "neg":
            return f"-{texts[0] if parts[0][1] >= 30 else f'({texts[0]})'}", 25
        if op == "abs":
            return f"abs({texts[0]})", _ATOM
        if op == "sqrt":
            return f"real(math.sqrt({texts[0]}))", _ATOM
        if op in ("floor", "ceil", "round"):
            return f"real(np.{'rint' if op == 'round' else op}({texts[0]}))", _ATOM
        if op == "cast":
            if node.args[0].kind is Kind.BOOL:
                self.memory["select"] = None
                return f"select({texts[0]}, real(1.0), real(0.0))", _ATOM
            return f"real({texts[0]})" if node.kind is Kind.FLOAT else f"np.int64({texts[0]})", _ATOM
        if op == "where":
            self.memory["select"] = None
            return f"select({texts[0]}, {texts[1]}, {texts[2]})", _ATOM
        if op in ("minimum", "maximum", "sign"):
            return self._composed(scope, node, op), _ATOM
        if op in _CALLS:
            self.functions[op] = None
            return f"{op}({', '.join(texts)})", _ATOM
        raise UnsupportedError(f"kernels do not spell {op}")

    def _named(self, scope: _Scope, node: Node) -> str:
        """The value under a name, so that it can be used twice."""
        text, _ = self._expression(scope, node)
        if text.isidentifier():
            return text
        if node.op == "constant":
            return text
        name = self._local(node)
        self._line(scope, f"{name} = {text}")
        axes = node.axes - self.layout.dropped
        scope.known[node, tuple(scope.env.get(a, "") for a in sorted(axes))] = name
        return name

    def _composed(self, scope: _Scope, node: Node, op: str) -> str:
        self.memory["select"] = None
        x = self._named(scope, node.args[0])
        if op == "sign":
            return f"select({x} > 0, real(1.0), select({x} < 0, real(-1.0), {x}))"
        y = self._named(scope, node.args[1])
        return self._combined("min" if op == "minimum" else "max", x, y)

    def _combined(self, op: str, x: str, y: str) -> str:
        if op in ("sum", "prod"):
            return f"{x} {'+' if op == 'sum' else '*'} {y}"
        self.memory["select"] = None
        # NaN in gives NaN out: a comparison with NaN fails, and `x` is then chosen for being NaN itself.
        return f"select(({x} {'>' if op == 'max' else '<'} {y}) | ({x} != {x}), {x}, {y})"

    def _combine(self, op: str, target: str, value: str) -> str:
        if op == "sum":
            return f"{target} += {value}"
        if op == "prod":
            return f"{target} *= {value}"
        return f"{target} = {self._combined(op, target, value)}"


_STORAGE = {
    "float16": "uint16", "bfloat16": "uint16", "float32": "float32", "float64": "float64", "bool": "uint8",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip
"""How an array of a dtype is passed."""


def _axes_of_operands(reductions: Iterable[Node]) -> Axes:
    return frozenset(a for n in reductions for a in n.args[0].axes)


def _tight(text: str) -> str:
    return text if text.isidentifier() else f"({text})"
