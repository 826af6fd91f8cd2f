"""Which computations share a sweep over memory.

A program becomes a list of steps: sweeps, matrix products, and numbers worked out between them. A sweep is a nest of
loops over some *outer* axes; within one position of these, while its data is in cache, it may loop over the *inner*
axes several times. It

- evaluates *inner* reductions: those over exactly the inner axes (a softmax's normaliser), whose result is at once
  available for the same position;
- accumulates *totals*: all other reductions, whose result is available to later steps only;
- writes *stores*: gradients, and operands of matrix products and moves.

What needs whole arrays (a cumulative sum, a sorted order, padding, making several axes one, an inverse) is a step
between sweeps.
A slice moves nothing: it is taken of the inputs, as a view, so that a sweep over some classes or over neighbours in an
image is one like any other.

Elementwise values are never stored: each loop computes what it needs from the inputs and from reduced values. The
inner axes are chosen so that the fewest entries are moved. Sizes are not known here; where rows turn out to be too
few to occupy all threads, `compiler` falls back on the schedule without inner axes, in which each reduction is a
sweep of its own that can be cut anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from lossforge import ir
from lossforge.contractions import factor_sums
from lossforge.errors import UnsupportedError
from lossforge.ir import REDUCTIONS, Axes, Axis, Kind, Node, Program, elementwise, reduction, transform
from lossforge.simplify import erase_gradient_marks, simplify


@dataclass(frozen=True)
class Sweep:
    """One pass over the arrays it reads."""

    outer: tuple[Axis, ...]
    inner: tuple[Axis, ...]
    reductions: tuple[Node, ...]
    """Inner reductions, each after those it depends on."""
    totals: tuple[Node, ...]
    stores: tuple[Node, ...]

    @property
    def results(self) -> tuple[Node, ...]:
        """What later steps and the caller get from it."""
        return (*self.totals, *self.stores)


@dataclass(frozen=True)
class Product:
    """A contraction that goes to BLAS: the sum of x · y over some axes."""

    node: Node
    x: Node
    y: Node
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Move:
    """An operation of `ir.WHOLE`, done on a whole array."""

    node: Node

    @property
    def x(self) -> Node:
        """Its operand."""
        return self.node.args[0]


@dataclass(frozen=True)
class Scalars:
    """Numbers without axes, from totals and parameters."""

    nodes: tuple[Node, ...]


Step: TypeAlias = Sweep | Product | Move | Scalars


@dataclass(frozen=True)
class Schedule:
    """Steps in order, and the node that each output of the program is."""

    program: Program
    outputs: tuple[Node, ...]
    steps: tuple[Step, ...]
    inner: Axes

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        """The sweeps among the steps."""
        return tuple(s for s in self.steps if isinstance(s, Sweep))


def reads(sweep: Sweep) -> tuple[Node, ...]:
    """The arrays that a sweep reads: inputs with axes, and results of earlier steps."""
    return tuple(n for n in between(sweep) if n.axes and n not in sweep.reductions and _is_boundary(n, sweep))


def between(sweep: Sweep) -> tuple[Node, ...]:
    """What a sweep computes, from its results (but for totals) down to what it reads, which is included."""
    found: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node in found or node.op in ("constant", "size"):
            return
        found[node] = None
        if node in sweep.reductions or not _is_boundary(node, sweep):
            for a in node.args:
                visit(a)

    for target in sweep.results:
        for a in target.args if target in sweep.totals else (target,):
            visit(a)
    return tuple(found)


def _is_boundary(node: Node, sweep: Sweep) -> bool:
    return node.op == "input" or node.op in ir.WHOLE or (node.op in REDUCTIONS and node not in sweep.reductions)


# ------------------------------------------------------------------------------------- preparing the graph


def _prepare(program: Program) -> tuple[Node, ...]:
    """The outputs with marks erased, log-sum-exps as reductions that a sweep can run, and matrix products apart."""
    simple = simplify(erase_gradient_marks([o.node for o in program.outputs]))
    return tuple(factor_sums(transform(_slice_inputs(decompose(transform(simple, _single_entry))), _moved_as_numbers)))


def _moved_as_numbers(node: Node, args: tuple[Node, ...]) -> Node:
    """A move of truth values or indices that a sweep has to store first, which it does as numbers."""
    made = ir.rebuild(node, args)
    if made.op in ir.WHOLE and (x := made.args[0]).kind is not Kind.FLOAT and x.op not in {"input", *ir.WHOLE}:
        return ir.as_kind(ir.rebuild(made, (ir.as_kind(x, Kind.FLOAT),)), made.kind)
    return made


def _slice_inputs(roots: Sequence[Node]) -> list[Node]:
    """Slices of what is computed at each entry as the same of slices, down to the inputs, of which they are views."""

    def visit(node: Node, args: tuple[Node, ...]) -> Node:
        made = ir.rebuild(node, args)
        if not is_slice(made):
            return made
        (x,), (old, new, start, _) = made.args, made.attrs
        offset = dict(start).get("", 0)
        if x.op == "iota" and len(x.attrs) == 1 and len(start) == (offset != 0):
            return ir.as_kind(ir.iota(new) + offset, Kind.INDEX) if offset else ir.iota(new)
        if not x.args or x.op in REDUCTIONS | ir.INDEX_REDUCTIONS | ir.STRUCTURAL | ir.WHOLE:
            return made
        sliced = [visit(made, (a,)) if old in a.axes else a for a in x.args]
        return ir.rebuild(x, sliced)

    return transform(roots, visit)


def is_slice(node: Node) -> bool:
    """Whether a node is a window that lies within its operand, wherever its size lies."""
    return node.op == "window" and all(n > 0 for part in node.attrs[2:] for _, n in part)


def _single_entry(node: Node, args: tuple[Node, ...]) -> Node:
    """One entry of an array, as a sum that passes over all others: a number is worked out by a loop, or of numbers."""
    if node.op != "take" or node.axes:
        return ir.rebuild(node, args)
    (x, index), axis = args, node.attrs[0]
    here = elementwise("eq", ir.iota(axis), index)
    return reduction("sum", ir.where(here, ir.as_kind(x, Kind.FLOAT), 0.0), (axis,))


def decompose(roots: Sequence[Node]) -> list[Node]:
    """Log-sum-exp as top + log(sum(exp(x − top))), and what is made of it by way of these parts.

    x − logsumexp(x) as (x − top) − log(sum …) keeps the digits that a large logsumexp would cost, and its exponential,
    softmax, is exp(x − top) / sum, which the sum has computed already.
    """
    parts: dict[Node, tuple[Node, Node, Node]] = {}

    def visit(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op == "logsumexp":
            (x,) = args
            highest = reduction("max", x, node.attrs[0])
            # All entries −∞: e⁰ must not appear. One of them ∞: so is the sum; ∞ − ∞ must not hide it.
            top = ir.where(elementwise("eq", highest, -math.inf), 0.0, highest)
            powers = elementwise("exp", x - top)
            total = ir.where(elementwise("eq", highest, math.inf), math.inf, reduction("sum", powers, node.attrs[0]))
            parts[node] = top, powers, total
            return top + elementwise("log", total)
        if node.op == "sub" and node.args[1] in parts:
            top, _, total = parts[node.args[1]]
            return (args[0] - top) - elementwise("log", total)
        if node.op == "sub" and node.args[0] in parts:
            top, _, total = parts[node.args[0]]
            return elementwise("log", total) - (args[1] - top)
        if node.op == "exp" and node.args[0].op == "sub":
            x, sum_ = node.args[0].args
            if sum_ in parts and sum_.args[0] is x:
                _, powers, total = parts[sum_]
                return powers * (1.0 / total)
        return ir.rebuild(node, args)

    return transform(roots, visit)


def base(operand: Node) -> Node:
    """What a product reads as this operand, be it under other names of its axes."""
    while operand.op == "rename":
        operand = operand.args[0]
    return operand


def operands(node: Node) -> tuple[Node, ...]:
    """The arrays that a matrix product, or a move, is of."""
    return tuple(base(a) for a in (node.args if node.op in ir.WHOLE else node.args[0].args))


def _contraction(node: Node, uses: dict[Node, int]) -> bool:
    """Whether a sum is a matrix product: of two factors, each of which lacks axes of the other."""
    if node.op != "sum" or node.args[0].op != "mul" or uses[node.args[0]] != 1:
        return False
    product = node.args[0]
    summed = frozenset(node.attrs[0])
    x, y = product.args
    return x.axes < product.axes and y.axes < product.axes and summed <= x.axes and summed <= y.axes


# ------------------------------------------------------------------------------------- choosing


@lru_cache(maxsize=1024)
def schedule(program: Program, *, fused: bool = True) -> Schedule:
    """The schedule that moves the fewest entries; without inner axes if not `fused`.

    Raises:
        UnsupportedError: the program holds an operation that has no place in a sweep.
    """
    outputs = _prepare(program)
    if unknown := {n.op for n in ir.topological(outputs)} & ir.INDEX_REDUCTIONS:
        raise UnsupportedError(f"kernels do not spell {', '.join(sorted(unknown))}")
    candidates: dict[Axes, None] = {frozenset(): None}
    if fused:
        nodes = ir.topological(outputs)
        whole = frozenset(a for n in nodes for a in n.axes)
        for n in nodes:
            if n.op in REDUCTIONS and frozenset(n.attrs[0]) < whole:
                candidates[frozenset(n.attrs[0])] = None
    found = [_Scheduler(program, outputs, inner).run() for inner in candidates]
    return min(found, key=_traffic)


def _traffic(candidate: Schedule) -> tuple[float, int]:
    """How much is moved, each array counting by its rank; starred axes count for more, since they are long."""

    def weight(axes: Iterable[Axis]) -> float:
        result = 1.0
        for a in axes:
            result *= 1000.0 if a.startswith("*") else 100.0
        return result

    moved = 0.0
    for sweep in candidate.sweeps:
        moved += sum(weight(n.axes) for n in (*reads(sweep), *sweep.stores))
    for step in candidate.steps:
        if isinstance(step, Move) and not is_slice(step.node):
            moved += 2 * weight(step.node.axes)
    return moved, len(candidate.steps)


class _Scheduler:
    """Builds the schedule for one choice of the inner axes."""

    def __init__(self, program: Program, outputs: tuple[Node, ...], inner: Axes) -> None:
        self.program = program
        self.inner = inner
        self.outputs = list(outputs)
        self._survey()

    def _survey(self) -> None:
        self.nodes = ir.topological(self.outputs)
        self.uses: dict[Node, int] = dict.fromkeys(self.nodes, 0)
        for n in self.nodes:
            for a in n.args:
                self.uses[a] += 1
        self.reductions = [n for n in self.nodes if n.op in REDUCTIONS | ir.INDEX_REDUCTIONS]
        self.contractions = {n for n in self.reductions if _contraction(n, self.uses)}
        self.apart = self.contractions | {n for n in self.nodes if n.op in ir.WHOLE}
        self.moved: set[Node] = set()
        # A reduced value that is looked up at another position must have been stored.
        for n in self.nodes:
            if n.op == "rename" or n.op == "take":
                self.moved |= set(self._reductions_beneath(n.args[0], n.attrs[0]))

    def _reductions_beneath(self, node: Node, axis: Axis) -> list[Node]:
        found, stack, seen = [], [node], set()
        while stack:
            n = stack.pop()
            if n in seen:
                continue
            seen.add(n)
            if n.op in REDUCTIONS | ir.INDEX_REDUCTIONS:
                if axis in n.axes:
                    found.append(n)
            elif n.op not in ir.WHOLE:
                stack.extend(n.args)
        return found

    def _is_inner(self, node: Node) -> bool:
        """Whether a reduction runs within one position of the outer axes."""
        if node in self.contractions or node in self.moved or not self.inner or not node.axes:
            return False
        summed = frozenset(node.attrs[0])
        return summed == self.inner & node.args[0].axes and bool(summed)

    def run(self) -> Schedule:
        # available[n]: the number of the first round in which n can be used.
        available: dict[Node, int] = {}
        produced: dict[int, list[Node]] = {}
        for n in self.nodes:
            ready = max((available[a] for a in n.args), default=0)
            if n in self.apart or (n.op in REDUCTIONS | ir.INDEX_REDUCTIONS and not self._is_inner(n)):
                for operand in operands(n) if n in self.apart else ():
                    if not self._is_view(operand):
                        produced.setdefault(available[operand], []).append(operand)
                        ready = max(ready, available[operand] + 1)
                produced.setdefault(ready, []).append(n)
                ready += 1
            available[n] = ready
        for o in self.outputs:
            if o.axes and o.op != "input" and o not in self.apart:
                produced.setdefault(available[o], []).append(o)
        self._postpone(produced, available)
        steps: list[Step] = []
        last = max([*produced, *(available[o] for o in self.outputs)], default=0)
        known_scalars: set[Node] = set()
        for round_ in range(last + 1):
            numbers = self._scalars(produced.get(round_, ()), available, round_, known_scalars)
            if numbers:
                steps.append(Scalars(numbers))
            wanted = list(dict.fromkeys(produced.get(round_, ())))
            steps += self._sweeps([n for n in wanted if n not in self.apart])
            for n in wanted:
                if n in self.contractions:
                    x, y = n.args[0].args
                    steps.append(Product(n, x, y, tuple(n.attrs[0])))
                elif n in self.apart:
                    steps.append(Move(n))
        final = tuple(
            o
            for o in self.outputs
            if not o.axes and o not in known_scalars and o.op not in {"input", "constant", *REDUCTIONS, *ir.WHOLE}
        )
        if final:
            steps.append(Scalars(tuple(dict.fromkeys(final))))
        return Schedule(self.program, tuple(self.outputs), tuple(steps), self.inner)

    def _postpone(self, produced: dict[int, list[Node]], available: dict[Node, int]) -> None:
        """Totals that nobody needs yet are left to a later sweep, which reads their arrays anyway.

        The gradient of a weighted mean needs the sum of the weights, and its value does not come before: value and
        gradient are then one sweep, and only the weights are read twice.
        """
        for round_ in sorted(produced):
            here = [n for n in produced[round_] if n not in self.apart]
            later = {n: q for n in here if self._is_total(n) and (q := self._later(n, round_, produced)) is not None}
            staying = [n for n in here if n not in later]
            for total, q in later.items():
                if not self._arrays([total]) <= self._arrays(self._alike(total, staying)):
                    produced[round_].remove(total)
                    produced[q].append(total)
                    available[total] = q + 1

    def _later(self, total: Node, round_: int, produced: Mapping[int, Sequence[Node]]) -> int | None:
        """The next round with a sweep that reads a total's arrays, and that comes before the total is needed."""
        for q in sorted(q for q in produced if q > round_):
            if any(total in self._read([n]) for n in produced[q]):
                return None
            if self._arrays([total]) <= self._arrays(self._alike(total, produced[q])):
                return q
        return None

    def _alike(self, total: Node, results: Sequence[Node]) -> list[Node]:
        """Those of some results that a sweep for a total would give as well."""
        return [n for n in results if n not in self.apart and self._domain(n) == self._domain(total)]

    def _arrays(self, results: Sequence[Node]) -> frozenset[Node]:
        """The arrays that a sweep for some results reads."""
        return frozenset(n for n in self._read(results) if n.axes)

    def _read(self, results: Sequence[Node]) -> set[Node]:
        """Inputs, and results of earlier steps, beneath some results."""
        found: set[Node] = set()
        seen: set[Node] = set()
        stack = [a for n in results for a in (n.args if n in self.apart or self._is_total(n) else (n,))]
        while stack:
            n = stack.pop()
            if n not in seen:
                seen.add(n)
                if n.op == "input" or n in self.apart or self._is_total(n):
                    found.add(n)
                else:
                    stack.extend(n.args)
        return found

    def _domain(self, result: Node) -> Axes:
        """The outer axes of a sweep for a result."""
        domain = result.args[0].axes if self._is_total(result) else result.axes
        return frozenset(a for r in self._needed([result]) for a in r.args[0].axes).union(domain) - self.inner

    def _is_view(self, node: Node) -> bool:
        """Whether a product or a move finds the operand in memory."""
        return node in self.apart or self._is_total(node) or node.op == "input"

    def _scalars(
        self, wanted: Iterable[Node], available: dict[Node, int], round_: int, known: set[Node]
    ) -> tuple[Node, ...]:
        """Numbers that this round's loops use and that are not inputs, constants or totals themselves."""
        found: dict[Node, None] = {}
        seen: set[Node] = set()

        def visit(node: Node) -> None:
            if node in seen:
                return
            seen.add(node)
            if not node.axes and node.op not in {"input", "constant", *REDUCTIONS, *ir.WHOLE}:
                if node not in known:
                    found[node] = None
                return
            if node.op in REDUCTIONS and available[node] <= round_ and not self._is_inner(node):
                return
            if node.op in ir.WHOLE:
                return
            for a in node.args:
                visit(a)

        for n in wanted:
            for a in n.args if n in self.apart or (n.op in REDUCTIONS and not self._is_inner(n)) else (n,):
                visit(a)
        known.update(found)
        return tuple(found)

    def _sweeps(self, results: Sequence[Node]) -> list[Step]:
        """Results of one round, grouped into sweeps over the same outer axes."""
        groups: dict[Axes, list[Node]] = {}
        for n in results:
            groups.setdefault(self._domain(n), []).append(n)
        merged: list[Step] = []
        for outer in sorted(groups, key=lambda axes: (-len(axes), sorted(axes))):
            for members in self._in_step(groups[outer]):
                reductions = self._needed(members)
                merged.append(
                    Sweep(
                        tuple(sorted(outer)),
                        tuple(sorted(self._along(members) | self._along(reductions))),
                        tuple(reductions),
                        tuple(n for n in members if self._is_total(n)),
                        tuple(n for n in members if not self._is_total(n)),
                    )
                )
        return merged

    def _along(self, results: Iterable[Node]) -> Axes:
        """The inner axes that results are worked out along."""
        return self.inner.intersection(
            frozenset(a for n in results for a in (n.args[0] if n.op in REDUCTIONS else n).axes)
        )

    def _in_step(self, results: Sequence[Node]) -> list[list[Node]]:
        """Results by the inner axes of a loop for all: a total over some of them would be added up once for each of the rest."""
        every = self._along([*results, *self._needed(results)])
        groups: dict[Axes, list[Node]] = {}
        for n in results:
            own = self._along([n]) if self._is_total(n) else every
            groups.setdefault(own or every, []).append(n)
        return list(groups.values())

    def _is_total(self, node: Node) -> bool:
        return node.op in REDUCTIONS | ir.INDEX_REDUCTIONS and not self._is_inner(node)

    def _needed(self, results: Sequence[Node]) -> list[Node]:
        """The inner reductions beneath some results, in order."""
        found: set[Node] = set()
        stack = [a for n in results for a in (n.args if self._is_total(n) else (n,))]
        seen: set[Node] = set()
        while stack:
            n = stack.pop()
            if n in seen or self._is_total(n) or n.op in ir.WHOLE:
                continue
            seen.add(n)
            if n.op in REDUCTIONS:
                found.add(n)
            stack.extend(n.args)
        return [n for n in self.nodes if n in found]
