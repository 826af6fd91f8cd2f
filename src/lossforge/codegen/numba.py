"""From a sweep to the text of a kernel: plain loops for Numba, over flat arrays with strides.

A kernel works on a range of *tasks*. A task is one position of the sweep's rows (its outer axes but the lane), and a
piece of the lane, which is the axis that is contiguous in memory and that the innermost loop runs along. The lane is

- an outer axis, where the inner axes are so short (the channels of an image) that loops over them are written out:
  all that belongs to one position is then in registers, whichever axis comes first in memory;
- an outer axis otherwise (a softmax over a leading axis): inner reductions keep a value for each lane of a short block,
  in scratch memory that stays in cache; or
- an inner axis (a softmax over a trailing axis): they are then plain sums along a row.

A value is computed in the outermost loop that knows its position, and a costly one (an exponential) that several loops
over the inner axes need is kept in scratch memory from the first to the last.

Sums run over at most `BLOCK` entries in the computing precision, in as many vector lanes as the processor has, and
are then added to float64 totals. Totals are kept for each task or chunk of tasks, never for each thread, so that the
answer is the same for any number of threads.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lossforge import ir
from lossforge.codegen.blocks import Block, Scope
from lossforge.codegen.emitter import _INFIX, _tight
from lossforge.errors import UnsupportedError
from lossforge.frontends.signature import python_name
from lossforge.ir import REDUCTIONS, Axes, Axis, Kind, Node
from lossforge.schedule import Sweep, reads
from lossforge.simplify import nonpositive

BLOCK = 4096
"""Entries that are summed in the computing precision before they are added to a float64 total."""

LANES = 256
"""Lanes of a block, at most, when inner reductions keep a value for each of them."""

_LONGEST = 76
_ATOM = 100
CALLS = frozenset({
    "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "log_sigmoid", "softplus", "erf", "erfc", "sin", "cos", "tan",
    "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "pow", "lgamma", "digamma",
    "atan2", "logaddexp", "polygamma", "xlogy",
})  # fmt: skip
"""What is a function of `codegen.vector_math`, of many instructions."""
_INSTRUCTIONS = {
    "abs": "absolute", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "round": "rint", "minimum": "minimum", "maximum": "maximum",
}  # fmt: skip
"""What is one instruction, by its name in `codegen.instructions`."""
_RESERVED = frozenset({
    "np", "real", "begin", "end", "chunk", "piece", "pieces", "first", "task", "row", "lane", "lane_begin", "lane_end",
    "block", "length", "j", "k", "scratch", "tile", "kept", "range", "load", "store", "select",
    "accumulate", "plus", "narrow", "load_narrow", "load_whole", "exp_nonpositive", *_INSTRUCTIONS.values(), *CALLS,
})  # fmt: skip
_COSTLY = CALLS | {"div", "sqrt"}
"""What is not computed again for each position of an axis that it does not depend on."""
_IDENTITY = {"sum": "0.0", "prod": "1.0", "max": "-np.inf", "min": "np.inf"}

_NAMES = {
    "0.0": "zero", "1.0": "one", "2.0": "two", "0.5": "half", "-1.0": "minus_one", "np.nan": "nan", "np.inf": "infinity",
    "-np.inf": "minus_infinity",
}  # fmt: skip
"""What numbers are called in a kernel."""


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
    kept: int
    """Entries of memory for each position of the inner axes, for values that several loops need."""
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
    """The size of the inner axis, where it is part of the text because some arrays have it innermost in memory and it
    is too short to run along."""
    transposed: frozenset[Node] = frozenset()
    """These arrays. Unless loops over the inner axes are written out, blocks of them are transposed on the way in and
    out."""
    unrolled: tuple[tuple[Axis, int], ...] = ()
    """The inner axes and their sizes, if loops over them are written out."""
    lanes: int = LANES
    """Lanes of a block."""
    keep: bool = True
    """Whether there is room to keep values of all positions of the inner axes."""
    narrow: bool = True
    """Whether positions along the lane fit in 32 bits."""
    nonnegative: frozenset[Node] = frozenset()
    """Numbers that are known to be ≥ 0."""
    over: tuple[tuple[Node, Node], ...] = ()
    """Results that are written over an array that is read, entry by entry, and over which."""
    exact: bool = False
    """Whether the kernel is compiled without leave to reorder sums, lest two loops compute one value differently."""


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
        self.blocked = self.lane_is_outer and bool(self.inner) and not layout.unrolled
        self.dtypes = dict(layout.dtypes)
        self.functions: dict[str, None] = {}
        self.instructions: dict[str, None] = {"load": None, "minimum": None, "store": None}
        self.numbers: dict[str, str] = {}
        """Numbers in the computing precision, by their text, and what they are called."""
        self.taken: set[str] = set(_RESERVED)
        self.names: dict[Node, str] = {}
        self.sizes: dict[Axis, str] = {}
        self.temps: dict[Node, str] = {}
        self.slots: dict[Node, int] = {}
        self.tiles: dict[Node, int] = {}
        self.kept: dict[Node, int] = {}
        self.stored: set[Node] = set()
        self.scalars: dict[Node, str] = {}
        self.counter = 0
        self.uses: Counter[Node] = Counter()
        self.pending: set[Node] = set()
        self.here: Block | None = None
        self.row_offsets: dict[str, str] = {}

    def _inner_order(self) -> tuple[Axis, ...]:
        """Inner axes from the outermost loop to the innermost."""
        return tuple(sorted(self.sweep.inner, key=lambda a: (a == self.lane, a)))

    # ------------------------------------------------------------------ the whole

    def run(self, entry: str) -> Kernel:
        over = dict(self.layout.over)
        arrays = [self._array(n) for n in reads(self.sweep)]
        stores = [self._array(n, store=True) for n in self.sweep.stores if n not in over]
        for a in (*arrays, *stores):
            if a.node not in self.names:
                self.names[a.node] = a.name
        self.array_of = {a.node: a for a in arrays}
        self.store_names = {a.node: a for a in stores} | {n: self.array_of[old] for n, old in over.items()}
        axes = dict.fromkeys([*self.rows, *([self.lane] if self.lane_is_outer and self.lane else []), *self.inner])
        axes.update(dict.fromkeys(x for x in self._sizes_used() if x not in axes))
        for axis in axes:
            self.sizes[axis] = self._fresh(f"n_{python_name(axis)}")
        self.totals = [self._total(n) for n in self.sweep.totals]
        self._collect_scalars()
        body = self._body()
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
        for name, used in (("scratch", self.slots), ("tile", self.tiles), ("kept", self.kept)):
            if used:
                arguments.append(name)
                signature.append(f"{self.real}[::1]")
        head = ["import numpy as np", ""]
        head.append(f"from lossforge.codegen.instructions import {', '.join(sorted(self.instructions))}")
        if self.functions:
            head.append(f"from lossforge.codegen.vector_math import {', '.join(sorted(self.functions))}")
        head += ["", f"real = np.{self.real}", "", ""]
        text = "\n".join(head) + f"\ndef {entry}({', '.join(arguments)}):\n" + "\n".join(body.lines()) + "\n"
        lanes = self.layout.lanes
        return Kernel(
            text, entry, self.rows, self.lane if self.lane_is_outer else None, self.inner, tuple(self.sizes),
            tuple(arrays), tuple(stores), tuple(self.scalars), tuple(self.totals),
            len(self.slots) * lanes, len(self.tiles) * self.layout.width * lanes,
            len(self.kept) * (lanes if self.blocked else 1), tuple(signature),
        )  # fmt: skip

    def _array(self, node: Node, *, store: bool = False) -> ArrayArgument:
        fallback = "out" if store else "part"
        name = self._fresh(
            self.given.get(node) or (python_name(str(node.attrs[0])) if node.op == "input" else fallback)
        )
        order = [a for a in (*self.rows, *self.inner, *self.outer) if a in node.axes]
        extra = sorted(node.axes - set(order) - self.layout.dropped)
        known = {self.lane, *self.inner} if node in self.layout.transposed else set()
        axes = tuple(
            a
            for a in dict.fromkeys([*order, *extra])
            if a not in self.layout.dropped and not (a == self.lane and node in self.layout.unit)
            if not (a in known and self.layout.unrolled)
        )
        self.taken |= {f"{name}_{python_name(a)}" for a in axes}  # the strides
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
            if n.op in ir.WHOLE or (n.op in REDUCTIONS and n not in inside):
                continue
            stack.extend(n.args)

    def _fresh(self, name: str) -> str:
        candidate, i = name, 2
        while candidate in self.taken:
            candidate, i = f"{name}_{i}", i + 1
        self.taken.add(candidate)
        return candidate

    # ------------------------------------------------------------------ loops

    def _body(self) -> Block:
        top = Scope(Block())
        for node, scalar in self.scalars.items():
            top.add(f"{scalar} = {scalar} != 0.0" if node.kind is Kind.BOOL else f"{scalar} = real({scalar})")
        chunk = top.open("for first in range(begin, end, chunk):")
        for t in self.totals:
            if not t.per_task and not t.inner:
                chunk.add(f"{self._sum64(t)} = {_IDENTITY[t.node.op]}")
        self.task = task = chunk.open(
            "for task in range(first, minimum(first + chunk, end)):", self._positions_of_rows()
        )
        for t in self.totals:
            if t.per_task and not t.inner:
                task.add(f"{self._sum64(t)} = {_IDENTITY[t.node.op]}")
        self._rows(task)
        if self.lane_is_outer:
            self._lanes(task)
        else:
            self._row(task)
        for t in self.totals:
            if t.per_task and not t.inner:
                task.add(f"store({t.name}, task, {self._sum64(t)})")
        for t in self.totals:
            if not t.per_task and not t.inner:
                chunk.add(f"store({t.name}, first // chunk, {self._sum64(t)})")
        top.block.items[:0] = [f"{name} = real({text})" for text, name in self.numbers.items()]
        return top.block

    def _sum64(self, total: Total) -> str:
        return total.name.removesuffix("_parts")

    def _positions_of_rows(self) -> dict[Axis, str]:
        return {a: self._fresh(f"i_{python_name(a)}") for a in self.rows}

    def _rows(self, scope: Scope) -> None:
        """The position along each row axis, from the number of the task."""
        if not self.rows:
            return
        rest = "task // pieces" if self.lane_is_outer else "task"
        if len(self.rows) == 1:
            scope.add(f"{scope.env[self.rows[0]]} = {rest}")
            return
        scope.add(f"row = {rest}")
        for i, axis in enumerate(reversed(self.rows)):
            if i == len(self.rows) - 1:
                scope.add(f"{scope.env[axis]} = row")
            else:
                scope.add(f"{scope.env[axis]} = row % {self.sizes[axis]}")
                scope.add(f"row = row // {self.sizes[axis]}")

    def _lanes(self, task: Scope) -> None:
        """The lane is an outer axis: blocks of lanes, and inner loops within them."""
        assert self.lane is not None
        count = math.prod(n for _, n in self.layout.unrolled)
        length = self.layout.lanes if self.blocked else BLOCK // count
        task.add("lane_begin = (task % pieces) * piece")
        task.add(f"lane_end = minimum(lane_begin + piece, {self.sizes[self.lane]})")
        block = task.open(f"for block in range(lane_begin, lane_end, {length}):")
        block.add(f"length = minimum({length}, lane_end - block)")
        if self.blocked:
            self._blocks_of_lanes(block)
        else:
            self._written_out(block)

    def _for_lanes(self, scope: Scope) -> Scope:
        assert self.lane is not None
        loop = scope.open("for j in range(length):", {self.lane: "lane"})
        loop.add("lane = block + j")
        return loop

    def _total_of(self, node: Node) -> Total:
        return next(t for t in self.totals if t.node is node)

    def _domain(self, result: Node) -> frozenset[Axis]:
        return result.args[0].axes if result in self.sweep.totals else result.axes

    def _axes_of_results(self, results: Iterable[Node]) -> Axes:
        return frozenset(a for n in results for a in self._domain(n))

    def _roots(self, results: Iterable[Node]) -> list[Node]:
        return [n.args[0] if n in self.sweep.totals else n for n in results]

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

    def _inner_loops(self, scope: Scope, used: Axes, *, skip_lane: bool = False) -> Scope:
        for axis in self.inner:
            if axis not in used or (skip_lane and axis == self.lane):
                continue
            index = f"i_{python_name(axis)}"
            count = str(self.layout.width) if self.layout.width else self.sizes[axis]
            scope = scope.open(f"for {index} in range({count}):", {axis: index})
        return scope

    # ---------------------------------------------------------------- lane outside, inner axes written out

    def _at_each(self, axes: Iterable[Axis]) -> Iterator[dict[Axis, str]]:
        """Every position along those of some axes that are written out."""
        wanted = frozenset(axes)
        spans = [[(a, str(i)) for i in range(n)] for a, n in self.layout.unrolled if a in wanted]
        return (dict(p) for p in itertools.product(*spans))

    def _written_out(self, block: Scope) -> None:
        """One loop over lanes, which computes all that there is."""
        accumulated: list[tuple[Node, dict[Axis, str], str]] = []
        for t in self.totals:
            for env in self._at_each(t.inner):
                name = self._fresh("_".join([self._sum64(t), "block", *env.values()]))
                accumulated.append((t.node, env, name))
                block.add(f"{name} = {self._number(_IDENTITY[t.node.op])}")
        loop = self._for_lanes(block)
        self._share([*self._roots(self.sweep.results), *(n.args[0] for n in self.sweep.reductions)])
        for n in self.sweep.results:
            for env in self._at_each(self._domain(n)):
                place = loop.at(env)
                if n in self.store_names:
                    self._store(place, n)
                    continue
                target = next(name for m, at, name in accumulated if m is n and all(env[a] == i for a, i in at.items()))
                place.add(self._total_with(n.op, target, self._value(place, n.args[0])))
        for n, env, name in accumulated:
            self._flush(block.at(env), n, name)

    def _reduced(self, scope: Scope, node: Node) -> str:
        """An inner reduction as one expression."""
        (x,) = node.args
        terms = [self._expression(scope.at(env), x) for env in self._at_each(x.axes)]
        if node.op in ("sum", "prod"):
            symbol, level = ("+", 10) if node.op == "sum" else ("*", 20)
            return f" {symbol} ".join(t if n >= level else f"({t})" for t, n in terms)
        texts = [t for t, _ in terms]
        while len(texts) > 1:  # by halves, for the sake of short chains
            pairs = [texts[i : i + 2] for i in range(0, len(texts), 2)]
            texts = [self._combined(node.op, *p) if len(p) == 2 else p[0] for p in pairs]
        return texts[0]

    # ---------------------------------------------------------------- lane outside, loops over inner axes

    def _blocks_of_lanes(self, block: Scope) -> None:
        """Inner loops around loops over lanes, with what belongs to each lane in scratch memory."""
        self._transpose_in(block)
        levels = self._levels()
        outer_only = [n for n in self.sweep.results if not self._domain(n) & set(self.inner)]
        with_inner = [n for n in self.sweep.results if n not in outer_only]
        self._choose_kept([*([n.args[0] for n in group] for group in levels), self._roots(with_inner)])
        for group in levels:
            self._stage(block, [n.args[0] for n in group])
            self._lane_reductions(block, group)
        if outer_only:
            self._lane_loop(block, outer_only)
        if with_inner:
            self._stage(block, self._roots(with_inner))
            self._lane_loop(self._inner_loops(block, self._axes_of_results(with_inner)), with_inner)
        self._transpose_out(block)

    def _transpose_in(self, block: Scope) -> None:
        """Blocks of arrays whose short inner axis is innermost in memory, turned so that lanes are contiguous."""
        for node, argument in self.array_of.items():
            if node in self.layout.transposed:
                inner = self._tile_loops(block, node)
                inner.add(f"store(tile, {self._tile_offset(inner, node)}, {self._from_memory(inner, argument)})")

    def _transpose_out(self, block: Scope) -> None:
        for node, argument in self.store_names.items():
            if node in self.layout.transposed:
                inner = self._tile_loops(block, node)
                self._to_memory(inner, argument, f"load(tile, {self._tile_offset(inner, node)})")

    def _tile_loops(self, block: Scope, node: Node) -> Scope:
        self.tiles.setdefault(node, len(self.tiles))
        (axis,) = self.inner
        return self._for_lanes(block).open(f"for k in range({self.layout.width}):", {axis: "k"})

    def _tile_offset(self, scope: Scope, node: Node) -> str:
        (axis,) = self.inner
        start, lanes = self.tiles[node] * self.layout.width, self.layout.lanes
        return f"({start} + {scope.env[axis]}) * {lanes} + j" if start else f"{scope.env[axis]} * {lanes} + j"

    def _slot(self, node: Node) -> int:
        return self.slots.setdefault(node, len(self.slots))

    def _scratch(self, slot: int) -> str:
        return f"{slot * self.layout.lanes} + j" if slot else "j"

    def _lane_reductions(self, block: Scope, group: Sequence[Node]) -> None:
        start = block.open("for j in range(length):")
        for n in group:
            _require_known(n)
            start.add(f"store(scratch, {self._scratch(self._slot(n))}, {self._number(_IDENTITY[n.op])})")
        loop = self._for_lanes(self._inner_loops(block, _axes_of_operands(group)))
        self._share([n.args[0] for n in group])
        for n in group:
            value = self._value(loop, n.args[0])
            at = self._scratch(self._slot(n))
            loop.add(f"store(scratch, {at}, {self._combined(n.op, f'load(scratch, {at})', value)})")
        self._finish_loop()

    def _lane_loop(self, scope: Scope, results: Sequence[Node]) -> None:
        totals = [n for n in results if n in self.sweep.totals]
        for n in totals:
            scope.add(f"{self._sum32(n)} = {self._number(_IDENTITY[n.op])}")
        loop = self._for_lanes(scope)
        self._share(self._roots(results))
        for n in results:
            if n in self.store_names:
                self._store(loop, n)
            else:
                loop.add(self._total_with(n.op, self._sum32(n), self._value(loop, n.args[0])))
        for n in totals:
            self._flush(scope, n, self._sum32(n))
        self._finish_loop()

    def _stage(self, block: Scope, roots: Sequence[Node]) -> None:
        """Costly values that are the same along the inner axes, computed once for each lane."""
        found: dict[Node, None] = {}

        def visit(node: Node) -> None:
            if self._is_at_hand(node) or node.op == "rename":  # what lies beneath is needed at other positions
                return
            if self._varies_by_lane(node) and not node.axes & set(self.inner):
                if self._is_costly(node):
                    found[node] = None
                return
            for a in node.args:
                visit(a)

        for root in roots:
            visit(root)
        if not found:
            return
        loop = self._for_lanes(block)
        self._share(list(found))
        values = [self._value(loop, n) for n in found]
        for n, value in zip(found, values, strict=True):
            loop.add(f"store(scratch, {self._scratch(self._slot(n))}, {value})")

    def _is_at_hand(self, node: Node) -> bool:
        """Whether a value is read from somewhere rather than computed."""
        return (
            node in self.slots or node in self.stored or node in self.scalars or node in self.array_of
            or node in self.temps or node.op in ("constant", "iota")
        )  # fmt: skip

    def _computed(self, node: Node) -> Iterator[Node]:
        """What is computed for a value, itself included, down to what is at hand, which is included too."""
        seen: set[Node] = set()
        stack = [node]
        while stack:
            n = stack.pop()
            if n not in seen:
                seen.add(n)
                yield n
                if not self._is_at_hand(n):
                    stack.extend(n.args)

    def _is_costly(self, node: Node) -> bool:
        return any(n.op in _COSTLY and not self._is_at_hand(n) for n in self._computed(node))

    def _varies_by_lane(self, node: Node) -> bool:
        """Whether a value needs a position of the lane, be it to find what is in scratch memory."""
        return self.lane in node.axes or any(n in self.slots for n in self._computed(node))

    def _sum32(self, node: Node) -> str:
        return f"{self.names[node]}_block"

    def _flush(self, scope: Scope, node: Node, block_sum: str) -> None:
        """Add a block's sum to its float64 total."""
        total = self._total_of(node)
        if not total.inner:
            scope.add(self._combine(node.op, self._sum64(total), f"np.float64({block_sum})"))
            return
        self._add_to(scope, node, block_sum)

    def _add_to(self, scope: Scope, node: Node, value: str) -> None:
        """Combine a value with one of the totals in memory."""
        total = self._total_of(node)
        place = self._slot_of(scope, total)
        if node.op == "sum":
            self.instructions["accumulate"] = None
            scope.add(f"accumulate({total.name}, {place}, {value})")
        else:
            new = self._combined(node.op, f"load({total.name}, {place})", f"np.float64({value})")
            scope.add(f"store({total.name}, {place}, {new})")

    def _slot_of(self, scope: Scope, total: Total) -> str:
        place = "task" if total.per_task else "(first // chunk)"
        for axis in total.inner:
            place = f"({place} * {self.sizes[axis]} + {scope.env[axis]})"
        return place.removeprefix("(").removesuffix(")") if place.startswith("((") else place

    # ---------------------------------------------------------------- lane inside

    def _row(self, task: Scope) -> None:
        """The lane is an inner axis, or there is none: reductions along the row."""
        levels = self._levels()
        outer_only = [n for n in self.sweep.results if not self._domain(n) & set(self.inner)]
        with_inner = [n for n in self.sweep.results if n not in outer_only]
        self._choose_kept([*([n.args[0] for n in group] for group in levels), self._roots(with_inner)])
        for group in levels:
            self._row_reductions(task, group)
        self._share(self._roots(outer_only))
        for n in outer_only:
            if n in self.store_names:
                self._store(task, n)
            else:
                value = self._value(task, n.args[0])
                task.add(self._combine(n.op, self._sum64(self._total_of(n)), f"np.float64({value})"))
        if with_inner:
            self._row_loop(task, with_inner)

    def _row_reductions(self, task: Scope, group: Sequence[Node]) -> None:
        names = {n: self._fresh(self.given.get(n) or {"max": "top", "min": "bottom"}.get(n.op, n.op)) for n in group}
        for n, name in names.items():
            _require_known(n)
            task.add(f"{name}_64 = np.float64({_IDENTITY[n.op]})")
        blocks = {n: f"{name}_block" for n, name in names.items()}
        loop, flush = self._blocks(task, _axes_of_operands(group), [(blocks[n], n.op) for n in group])
        self._share([n.args[0] for n in group])
        for n in group:
            loop.add(self._combine(n.op, blocks[n], self._value(loop, n.args[0])))
        for n, name in names.items():
            flush.add(self._combine(n.op, f"{name}_64", f"np.float64({blocks[n]})"))
        for name in names.values():
            task.add(f"{name} = real({name}_64)")
        self.temps.update(names)
        self._finish_loop()

    def _blocks(self, task: Scope, used: Axes, sums: Sequence[tuple[str, str]]) -> tuple[Scope, Scope]:
        """Loops over the inner axes, the innermost in blocks. Returns the body and the scope after each block.

        Statements for the second scope must be added after all of the first's.
        """
        scope = self._inner_loops(task, used, skip_lane=True)
        along = self.inner[-1]
        if along not in used or (self.lane is not None and along != self.lane):
            for name, op in sums:
                scope.add(f"{name} = {self._number(_IDENTITY[op])}")
            if along in used and along not in scope.env:
                raise AssertionError("an inner axis without a loop")
            return scope, scope
        flush = scope.open(f"for block in range(0, {self.sizes[along]}, {BLOCK}):")
        for name, op in sums:
            flush.add(f"{name} = {self._number(_IDENTITY[op])}")
        index = f"i_{python_name(along)}"
        body = flush.open(
            f"for {index} in range(block, minimum(block + {BLOCK}, {self.sizes[along]})):", {along: index}
        )
        return body, flush

    def _row_loop(self, task: Scope, results: Sequence[Node]) -> None:
        totals = [n for n in results if n in self.sweep.totals]
        along = [n for n in totals if self.lane is None or self.lane not in self._total_of(n).inner]
        loop, flush = self._blocks(task, self._axes_of_results(results), [(self._sum32(n), n.op) for n in along])
        self._share(self._roots(results))
        for n in results:
            if n in self.store_names:
                self._store(loop, n)
            elif n in along:
                loop.add(self._total_with(n.op, self._sum32(n), self._value(loop, n.args[0])))
            else:  # one total for each lane
                self._add_to(loop, n, self._value(loop, n.args[0]))
        for n in along:
            self._flush(flush, n, self._sum32(n))
        self._finish_loop()

    # ---------------------------------------------------------------- values that several loops need

    def _choose_kept(self, loops: Sequence[Sequence[Node]]) -> None:
        """Choose the costly values that an earlier loop leaves for a later one."""
        if not self.layout.keep:
            return
        inside = set(self.inner)
        before: set[Node] = set()
        for roots in loops:
            new: set[Node] = set()
            stack = list(roots)
            while stack:
                n = stack.pop()
                if n in before:
                    self.kept.setdefault(n, len(self.kept))
                elif n not in self.sweep.reductions and not self._is_at_hand(n):
                    in_reach = n.axes & inside == inside and (not self.blocked or self.lane in n.axes)
                    if n.op in CALLS and in_reach and n not in new:
                        new.add(n)
                    stack.extend(n.args)
            before |= new

    def _kept_offset(self, scope: Scope, node: Node) -> str:
        place = str(self.kept[node])
        for axis in self.inner:
            size = str(self.layout.width) if self.layout.width else self.sizes[axis]
            place = scope.env[axis] if place == "0" else f"({place} * {size} + {_tight(scope.env[axis])})"
        if self.blocked:
            return f"{place} * {self.layout.lanes} + j"
        return place.removeprefix("(").removesuffix(")") if place.startswith("(") else place

    def _finish_loop(self) -> None:
        """What the loop has kept may be read from now on."""
        self.stored |= self.pending

    # ------------------------------------------------------------------ expressions

    def _store(self, scope: Scope, node: Node) -> None:
        argument = self.store_names[node]
        value = self._value(scope, node)
        if node in self.layout.transposed and self.blocked:
            self.tiles.setdefault(node, len(self.tiles))
            scope.add(f"store(tile, {self._tile_offset(scope, node)}, {value})")
        else:
            self._to_memory(scope, argument, value)

    def _to_memory(self, scope: Scope, argument: ArrayArgument, value: str) -> None:
        if argument.dtype in ("float16", "bfloat16"):
            self.instructions[f"to_{argument.dtype}"] = None
            value = f"to_{argument.dtype}({value})"
        scope.add(f"store({argument.name}, {self._offset(scope, argument)}, {value})")

    def _offset(self, scope: Scope, argument: ArrayArgument) -> str:
        strides = {a: f"{argument.name}_{python_name(a)}" for a in argument.axes}
        rows = [a for a in argument.axes if self.task.env.get(a) == scope.env[a]]
        parts = (
            [self._row_of(argument, scope, " + ".join(f"{scope.env[a]} * {strides[a]}" for a in rows))] if rows else []
        )
        parts += [_times(scope.env[a], strides[a]) for a in argument.axes if a not in rows and scope.env[a] != "0"]
        if argument.node in self.layout.transposed and self.layout.unrolled:
            ((axis, width),) = self.layout.unrolled
            assert self.lane is not None
            parts += [f"{_tight(scope.env[self.lane])} * {width}", scope.env[axis]]
        elif self.lane is not None and self.lane in argument.node.axes and self.lane not in argument.axes:
            parts.append(scope.env[self.lane])
        return " + ".join(parts) or "0"

    def _row_of(self, argument: ArrayArgument, scope: Scope, offset: str) -> str:
        """Where the current row begins, under a name."""
        if offset not in self.row_offsets:
            self.row_offsets[offset] = self._fresh(f"{argument.name}_row")
            self.task.block.add(f"{self.row_offsets[offset]} = {offset}", before=self.here or scope.block)
        return self.row_offsets[offset]

    def _share(self, roots: Sequence[Node]) -> None:
        """Count uses, so that what a body needs more than once gets a name."""
        self.uses = Counter(roots)
        self.pending = set()
        for n in ir.topological(roots):
            self.uses.update(n.args)

    def _value(self, scope: Scope, node: Node) -> str:
        """The text of a value at the scope's position."""
        outermost, self.here = self.here is None, self.here or scope.block
        text, _ = self._expression(scope, node)
        if outermost:
            self.here = None
        return text

    def _emit(self, scope: Scope, text: str) -> None:
        """A statement on the way to a value: in front of the loop in which the value is needed."""
        scope.block.add(text, before=self.here)

    def _expression(self, scope: Scope, node: Node) -> tuple[str, int]:
        axes = sorted(node.axes - self.layout.dropped)
        key = (node, tuple(scope.env.get(a, "") for a in axes))
        known = scope.block.find(key)
        if known is not None:
            return known, _ATOM
        if node in self.scalars or node in self.temps or node.op in ("constant", "iota"):
            return self._spell(scope, node)
        home = scope if self.blocked and self._varies_by_lane(node) else scope.home(axes)
        text, level = self._spell(home, node)
        shared = self.uses[node] > 1 or len(text) > _LONGEST or node.op == "input" or node in self.sweep.reductions
        if shared or home is not scope or node in self.kept:
            name = self._local(node)
            self._emit(home, f"{name} = {text}")
            home.block.known[key] = name
            if node in self.kept and node not in self.stored and self._is_own(home, node):
                self._emit(home, f"store(kept, {self._kept_offset(home, node)}, {name})")
                self.pending.add(node)
            return name, _ATOM
        return text, level

    def _local(self, node: Node) -> str:
        wanted = self.given.get(node)
        if node.op == "input":
            wanted = "v_" + python_name(str(node.attrs[0]))
        if wanted:
            return self._fresh(wanted)
        self.counter += 1
        return self._fresh(f"t{self.counter}")

    def _spell(self, scope: Scope, node: Node) -> tuple[str, int]:
        if node in self.scalars:
            return self.scalars[node], _ATOM
        if node in self.temps:
            return self.temps[node], _ATOM
        own = self._is_own(scope, node)
        if node in self.sweep.reductions and not own:
            raise UnsupportedError("kernels do not spell a reduction at another position than that which they work on")
        if node in self.slots and node not in self.array_of and own:
            return f"load(scratch, {self._scratch(self.slots[node])})", _ATOM
        if node in self.stored and own:
            return f"load(kept, {self._kept_offset(scope, node)})", _ATOM
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
            return self._expression(scope.at({old: scope.env[new]}), node.args[0])
        if node in self.sweep.reductions and self.layout.unrolled:
            _require_known(node)
            return self._reduced(scope, node), 10
        if node.op in REDUCTIONS | ir.INDEX_REDUCTIONS:
            raise UnsupportedError(f"kernels do not spell {node.op} here")
        return self._elementwise(scope, node)

    def _is_own(self, scope: Scope, node: Node) -> bool:
        """Whether a value is needed at the outer position that the loops work on, for which alone they keep values."""
        own = {**self.task.env, **({self.lane: "lane"} if self.lane is not None and self.lane_is_outer else {})}
        return all(scope.env.get(a) == own[a] for a in node.axes if a in own)

    def _load(self, scope: Scope, node: Node) -> str:
        if node in self.layout.transposed and self.blocked:
            return f"load(tile, {self._tile_offset(scope, node)})"
        return self._from_memory(scope, self.array_of[node])

    def _from_memory(self, scope: Scope, argument: ArrayArgument) -> str:
        node = argument.node
        text = f"load({argument.name}, {self._offset(scope, argument)})"
        if node.kind is Kind.BOOL:
            return f"({text} != 0)"
        if node.kind is Kind.INDEX:
            return f"np.int64({text})" if argument.dtype != "int64" else text
        if argument.dtype in ("float16", "bfloat16"):
            self.instructions[f"from_{argument.dtype}"] = None
            text = f"from_{argument.dtype}({text})"
            return text if self.real == "float32" else f"real({text})"
        if argument.dtype in ("int64", "uint64"):
            return self._whole(argument, scope)
        return text if argument.dtype == self.real else f"real({text})"

    def _whole(self, argument: ArrayArgument, scope: Scope) -> str:
        """A whole number of 64 bits as a real one."""
        self.instructions["load_whole"] = None
        return f"load_whole({argument.name}, {self._offset(scope, argument)}, {self._number('0.0')})"

    def _constant(self, node: Node) -> str:
        value = node.attrs[0]
        if node.kind is not Kind.FLOAT:
            return repr(value)
        if value != value:
            return self._number("np.nan")
        if value in (float("inf"), float("-inf")):
            return self._number(f"{'-' if value < 0 else ''}np.inf")
        return self._number(repr(float(value)))

    def _number(self, text: str) -> str:
        """The name of a number in the computing precision; each is converted once, and costs the compiler once."""
        if text not in self.numbers:
            self.numbers[text] = self._fresh(_NAMES.get(text, "number"))
        return self.numbers[text]

    def _take(self, scope: Scope, node: Node) -> str:
        """The operand at another position along an axis; NaN outside of it."""
        x, index = node.args
        axis = node.attrs[0]
        if width := dict(self.layout.unrolled).get(axis):
            return self._choice(scope, x, self._narrow(scope, index), axis, width)
        if self.blocked and axis == self.lane:  # what blocks keep for each lane is there for the present one alone
            raise UnsupportedError("kernels do not spell a lookup along an axis whose entries they work on in blocks")
        name = self._fresh("at")
        self._emit(scope, f"{name} = {self._value(scope, index)}")
        inside = self._fresh("inside")
        size = self.sizes[axis]
        self._emit(scope, f"{inside} = ({name} >= 0) & ({name} < {size})")
        self.instructions["select"] = None
        safe = self._fresh("position")
        self._emit(scope, f"{safe} = select({inside}, {name}, np.int64(0))")
        value = self._value(scope.at({axis: safe}), x)
        return f"select({inside}, {value}, {self._number('np.nan')})"

    def _choice(self, scope: Scope, x: Node, at: str, axis: Axis, width: int) -> str:
        """The operand at a position along an axis that is written out, all of whose entries are in registers."""
        self.instructions["select"] = None
        text = self._number("np.nan")
        for i in reversed(range(width)):
            text = f"select({at} == {i}, {self._value(scope.at({axis: str(i)}), x)}, {text})"
        return text

    def _narrow(self, scope: Scope, index: Node) -> str:
        """The name of an index as a 32-bit integer."""
        narrow = ir.intern("narrow", (index,), (), index.axes, Kind.INDEX)
        self.uses[narrow] = 2
        return self._value(scope, narrow)

    def _narrowed(self, scope: Scope, index: Node) -> str:
        """The text of an index as a 32-bit integer."""
        if self._is_whole(index):
            self.instructions["load_narrow"] = None
            argument = self.array_of[index]
            return f"load_narrow({argument.name}, {self._offset(scope, argument)})"
        if index.op == "constant" and abs(index.attrs[0]) < 2**31:
            return f"np.int32({int(index.attrs[0])})"
        if index.op == "where":
            self.instructions["select"] = None
            condition, *sides = index.args
            texts = [self._narrowed(scope, n) if n.op == "constant" else self._narrow(scope, n) for n in sides]
            return f"select({self._expression(scope, condition)[0]}, {', '.join(texts)})"
        self.instructions["narrow"] = None
        return f"narrow({self._expression(scope, index)[0]})"

    def _elementwise(self, scope: Scope, node: Node) -> tuple[str, int]:
        op = node.op
        if op == "narrow":
            return self._narrowed(scope, node.args[0]), _ATOM
        compared = self._compared_whole(scope, node) if op in ir.COMPARISONS else None
        if compared is None and op in ("eq", "ne"):
            compared = self._compared_positions(scope, node)
        if compared is not None:
            return f"{compared[0]} {_INFIX[op][0]} {compared[1]}", _INFIX[op][1]
        if op == "cast" and node.kind is Kind.FLOAT and self._is_whole(node.args[0]):
            held = self.array_of[node.args[0]]
            if held.dtype in ("int64", "uint64"):
                return self._whole(held, scope), _ATOM
        parts = [self._expression(scope, a) for a in node.args]
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
        if op in _INSTRUCTIONS:
            self.instructions[_INSTRUCTIONS[op]] = None
            return f"{_INSTRUCTIONS[op]}({', '.join(texts)})", _ATOM
        if op == "cast":
            if node.args[0].kind is Kind.BOOL:
                self.instructions["select"] = None
                return f"select({texts[0]}, {self._number('1.0')}, {self._number('0.0')})", _ATOM
            return f"real({texts[0]})" if node.kind is Kind.FLOAT else f"np.int64({texts[0]})", _ATOM
        if op == "where":
            self.instructions["select"] = None
            return f"select({texts[0]}, {texts[1]}, {texts[2]})", _ATOM
        if op == "sign":
            self.instructions["select"] = None
            x = self._named(scope, node.args[0])
            one, minus_one = self._number("1.0"), self._number("-1.0")
            return f"select({x} > 0, {one}, select({x} < 0, {minus_one}, {x}))", _ATOM
        if op in CALLS:
            name = "exp_nonpositive" if op == "exp" and nonpositive(node.args[0], self.layout.nonnegative) else op
            self.functions[name] = None
            return f"{name}({', '.join(texts)})", _ATOM
        raise UnsupportedError(f"kernels do not spell {op}")

    def _compared_whole(self, scope: Scope, node: Node) -> tuple[str, str] | None:
        """Whole numbers of an array and a number that is known, a position along an axis written out among them."""
        if not any(self._is_whole(a) for a in node.args):
            return None
        texts = []
        for arg in node.args:
            if self._is_whole(arg):
                texts.append(self._narrow(scope, arg))
            elif arg.op == "constant" and abs(arg.attrs[0]) < 2**31 - 1 and float(arg.attrs[0]).is_integer():
                texts.append(repr(int(arg.attrs[0])))
            elif arg.op == "iota" and arg.attrs[0] in dict(self.layout.unrolled):
                texts.append(scope.env[arg.attrs[0]])
            else:
                return None
        return texts[0], texts[1]

    def _is_whole(self, node: Node) -> bool:
        """Whether a value is a whole number that is read from an array along the lane."""
        return (
            node.kind is Kind.INDEX and node in self.array_of and self.lane in node.axes
            and node not in self.layout.transposed
        )  # fmt: skip

    def _compared_positions(self, scope: Scope, node: Node) -> tuple[str, str] | None:
        """The position along the lane and one that is the same for all of it, as 32-bit integers."""
        position, index = node.args if node.args[0].op == "iota" else node.args[::-1]
        along = position.op == "iota" and position.attrs[0] == self.lane and self.layout.narrow
        if not along or index.kind is not Kind.INDEX or index.op == "constant" or self.lane in index.axes:
            return None
        return f"np.int32({self._value(scope, position)})", self._narrow(scope, index)

    def _named(self, scope: Scope, node: Node) -> str:
        """The value under a name, so that it can be used twice."""
        text, _ = self._expression(scope, node)
        if text.isidentifier() or node.op == "constant":
            return text
        name = self._local(node)
        self._emit(scope, f"{name} = {text}")
        axes = sorted(node.axes - self.layout.dropped)
        scope.block.known[node, tuple(scope.env.get(a, "") for a in axes)] = name
        return name

    def _combined(self, op: str, x: str, y: str) -> str:
        if op in ("sum", "prod"):
            return f"{x} {'+' if op == 'sum' else '*'} {y}"
        function = {"max": "maximum", "min": "minimum"}[op]
        self.instructions[function] = None
        return f"{function}({x}, {y})"

    def _total_with(self, op: str, target: str, value: str) -> str:
        """One more term of a total, which is computed in one loop only: its terms may be added in any order."""
        if op != "sum" or not self.layout.exact:
            return self._combine(op, target, value)
        self.instructions["plus"] = None
        return f"{target} = plus({target}, {value})"

    def _combine(self, op: str, target: str, value: str) -> str:
        if op == "sum":
            return f"{target} += {value}"
        if op == "prod":
            return f"{target} *= {value}"
        return f"{target} = {self._combined(op, target, value)}"


def _require_known(reduction: Node) -> None:
    if reduction.op not in ("sum", "prod", "max", "min"):
        raise UnsupportedError(f"kernels do not spell {reduction.op}")


_STORAGE = {
    "float16": "uint16", "bfloat16": "uint16", "float32": "float32", "float64": "float64", "bool": "uint8",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip
"""How an array of a dtype is passed."""


def _axes_of_operands(reductions: Iterable[Node]) -> Axes:
    return frozenset(a for n in reductions for a in n.args[0].axes)


def _times(position: str, stride: str) -> str:
    return stride if position == "1" else f"{_tight(position)} * {stride}"
