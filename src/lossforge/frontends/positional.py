"""From positional arrays to named axes: what all front ends share.

A positional value is a node and, for each of its dimensions, the axes that lie in it: none (the dimension has size 1),
one, or several (a flattened dimension, the last running fastest). Every dimension of an input begins with an axis of
its own. Where an operation lines two different axes up, they are *one* axis: they are merged in the `AxisTable`, and
the import begins again, which costs milliseconds. Where a value would get one axis in two dimensions (x[:, None] -
x[None, :]), the second becomes a copy (`ir.rename`), written with a prime.

Reshapes, permutations and broadcasts therefore leave no trace in the graph.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeAlias

import numpy as np

from lossforge import ir
from lossforge.errors import AdoptionError, LossforgeError
from lossforge.frontends.recording import Recording, Ref, Step, Varying, fit, needed
from lossforge.interpreter import evaluate
from lossforge.ir import Axis, Coarse, Kind, Node, Port, Stencil
from lossforge.primitives import is_elementwise

Dim: TypeAlias = tuple[Axis, ...]
Rule: TypeAlias = Callable[..., Any]

LARGEST_TABLE = 4096
"""Entries of a constant array in the graph."""
LARGEST_READ = 2**16
"""Of one that may leave nothing but its factors there, as kernels of convolutions do."""
LARGEST_LISTED = 16


class Restart(Exception):
    """Internal: the axis table has learnt something; the import begins again."""


class Refused(Exception):
    """Internal: an operation cannot be imported; `Importer.run` adds which one and where."""


@dataclass(frozen=True)
class Unknown:
    """A result that cannot be had; to use it is refused."""

    reason: str


@dataclass
class Tensor:
    """A positional value."""

    node: Node
    dims: tuple[Dim, ...]
    stacked: tuple[int, tuple[Tensor, ...]] | None = field(default=None, kw_only=True)
    """The values that were stacked along a dimension, if this is the result."""
    places: Dim = field(default=(), kw_only=True)
    """The axes whose positions the entries of a selection's index are."""
    within: Dim = field(default=(), kw_only=True)
    """The selection in which these are counted, if it is not the axes themselves."""

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.dims)


@dataclass
class Skewed(Tensor):
    """A square matrix on the way to all its entries but the diagonal, in dimensions that are not its own.

    This is how they are often taken: ``x.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten()``, which reads the matrix in
    rows that are one entry longer, so that its diagonal is the first column. Nothing else can be done with it on the way.
    """

    square: Dim = ()
    """The axes of the matrix, until its diagonal is cut off ..."""
    flat: Tensor | None = None
    """... and the entries beside it from there on."""


@dataclass(frozen=True)
class Selection:
    """The entries of some axes where a mask holds; they lie in one dimension, whose axis is written with an at sign."""

    mask: Node
    axes: Dim
    """Copies of the selected axes, for this selection alone."""
    lead: tuple[int, ...] = ()
    """How many entries at its beginning are selected wherever the others are, in each recording."""


@dataclass
class AxisTable:
    """What is known of axes, from one attempt to the next."""

    parents: dict[Axis, Axis] = field(default_factory=dict)
    units: set[Axis] = field(default_factory=set)
    """Dimensions of inputs that are of size 1 and stay so."""
    names: dict[Axis, Axis] = field(default_factory=dict)
    """Readable names."""

    def root(self, axis: Axis) -> Axis:
        """The axis that `axis` was merged into."""
        while axis in self.parents:
            axis = self.parents[axis]
        return axis

    def merge(self, a: Axis, b: Axis) -> NoReturn:
        """`a` and `b` are one axis."""
        first, second = self.root(a), self.root(b)
        if any(first.startswith(stem) and not second.startswith(stem) for stem in (_DERIVED, _RANGE)):
            first, second = second, first
        self.parents[second] = first
        raise Restart

    def unit(self, axis: Axis) -> NoReturn:
        """`axis` has size 1 in every call."""
        self.units.add(self.root(axis))
        raise Restart


_DERIVED = "derived_"
_RANGE = _DERIVED + "range"
_SELECTED = "@"


def _base(axis: Axis) -> Axis:
    return axis.rstrip("'")


class Importer:
    """One attempt to read a recording as a graph."""

    def __init__(
        self,
        recording: Recording,
        names: Sequence[str],
        kinds: Sequence[Kind],
        rules: Mapping[str, Rule],
        table: AxisTable,
        examples: Mapping[Axis, int],
    ) -> None:
        self.recording = recording
        self.rules = rules
        self.table = table
        self.examples = examples
        """The sizes of axes in the user's own examples."""
        self.count = len(recording.inputs[0]) if recording.inputs else 1
        self.sizes: dict[Axis, tuple[int, ...]] = {}
        self.size_nodes: dict[Axis, Node] = {}
        self.origin: dict[Axis, Axis] = {}
        self.fixed: dict[Axis, int] = {}
        self.sources: dict[Axis, tuple[Axis, str]] = {}
        self.ports: list[Port] = []
        self.values: dict[int, Any] = {}
        self.fresh: dict[str, int] = {}
        self.outer: set[frozenset[Axis]] = set()
        self.ranges: set[Axis] = set()
        """Axes of ranges that may still turn out to be one that an operation makes."""
        self.selections: dict[Axis, Selection] = {}
        self.copies: dict[Axis, Axis] = {}
        """The axes that those of selections are copies of."""
        self.where = ""
        for i, (name, kind, shapes) in enumerate(zip(names, kinds, recording.inputs, strict=True)):
            self.values[i] = self._input(name, kind, shapes)

    def _input(self, name: str, kind: Kind, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        order: list[Axis] = []
        for d in range(len(shapes[0])):
            label = self.label(f"{name}_{d}", [s[d] for s in shapes])
            order.append(self._unused(label, order))
        node = ir.input_(name, order, kind)
        self.ports.append(Port(node, tuple(order)))
        dims: list[Dim] = []
        for axis in order:
            if self.origin[_base(axis)] in self.table.units:
                node = ir.take(node, ir.constant(0, Kind.INDEX), axis)
                self.fixed[axis] = 1
                dims.append(())
            else:
                dims.append((axis,))
        return Tensor(node, tuple(dims))

    def _unused(self, label: Axis, taken: Collection[Axis]) -> Axis:
        while label in taken:
            label += "'"
        return label

    # ------------------------------------------------------------------ axes

    def label(self, axis: Axis, sizes: Sequence[int], expression: Node | None = None) -> Axis:
        """The name of an axis after merging and naming; its sizes in each recording, and as a formula."""
        root = self.table.root(axis)
        name = self.table.names.get(root, root)
        self.origin[name] = root
        known = self.sizes.get(name)
        if known is None:
            self.sizes[name] = tuple(sizes)
            self.size_nodes[name] = expression if expression is not None else ir.size(name)
        elif known[0] != tuple(sizes)[0] and 1 in (known[0], tuple(sizes)[0]):
            # One example of size 1 was merged with a longer one: it was a broadcast.
            self.sizes[name] = max(known, tuple(sizes))
        return name

    def derived(self, name: str, sizes: Sequence[int], expression: Node) -> Axis:
        """An axis that is made by an operation."""
        if len(set(sizes)) == 1:
            expression = ir.constant(float(sizes[0]))
        return self.label(_DERIVED + name, sizes, expression)

    def made_of(self, axis: Axis, stem: str, sizes: Sequence[int], size: Node, taken: Collection[Axis]) -> Axis:
        """The axis that an operation makes of another: made alike, two are one where those that they are made of are."""
        new = self.label(_DERIVED + self.origin[_base(axis)] + stem, sizes, size)
        ancestors, each = {_base(axis)}, _base(axis)
        while each in self.sources:
            each = self.sources[each][0]
            ancestors.add(each)
        if new not in ancestors:  # as it is where what was padded has been cut back
            self.sources[new] = _base(axis), stem
        return self._unused(new, taken)

    def number(self, stem: str) -> str:
        """`stem` with a running number: the same at every attempt, as long as the steps are."""
        self.fresh[stem] = self.fresh.get(stem, -1) + 1
        return f"{stem}{self.fresh[stem]}"

    def sizes_of(self, axis: Axis) -> tuple[int, ...]:
        """The size of an axis in each recording."""
        if axis.startswith("#"):
            return tuple(int(n) for n in axis[1:].split("x"))
        return self.sizes[_base(axis)]

    def held(self, axis: Axis) -> Dim:
        """The axes of the graph that lie behind an axis: itself, or those of a selection."""
        if not axis.startswith(_SELECTED):
            return (axis,)
        primes = axis[len(_base(axis)) :]
        return tuple(a + primes for a in self.selections[_base(axis)].axes)

    def extents(self, dim: Dim) -> tuple[int, ...]:
        """The size of a dimension in each recording."""
        return tuple(math.prod(self.sizes_of(a)[i] for a in dim) for i in range(self.count))

    def size(self, axis: Axis) -> Node:
        """The size of an axis as a node."""
        return self.symbol(self.sizes_of(axis)) if axis.startswith("#") else self.size_nodes[_base(axis)]

    def length(self, dim: Dim) -> Node:
        """The size of a dimension as a node."""
        result = ir.constant(1.0)
        for axis in dim:
            result = self.size(axis) if result.op == "constant" and result.attrs[0] == 1 else result * self.size(axis)
        return result

    def symbol(self, values: Sequence[float]) -> Node:
        """The formula behind a number that was seen in each recording."""
        counts = [a for a in self.selections if len(set(self.sizes[a])) > 1]
        for k in range(2, len(counts) + 1 if len(counts) <= 10 else 0):
            for chosen in itertools.combinations(counts, k):
                if all(sum(self.sizes[a][i] for a in chosen) == v for i, v in enumerate(values)):
                    return functools.reduce(operator.add, (self.size_nodes[a] for a in chosen))
        sizes = {
            a: (self.size_nodes[a], s)
            for a, s in self.sizes.items()
            if a not in self.copies and not (self.size_nodes[a].op == "size" and a.startswith(_DERIVED))
        }
        try:
            return fit(values, sizes, self.recording.environment)
        except AdoptionError as error:
            raise Refused(str(error)) from None

    def axis_of(self, sizes: Sequence[int], taken: Sequence[Axis] = ()) -> Axis | None:
        """The axis that has these sizes in the recordings, if there is only one."""
        found = self._having(sizes)
        return self._unused(found[0], taken) if len(found) == 1 else None

    def _having(self, sizes: Sequence[int]) -> list[Axis]:
        """The axes that have these sizes in the recordings."""
        return [
            a
            for a, s in self.sizes.items()
            if tuple(s) == tuple(sizes)
            and self.origin[a] not in self.table.units
            and a not in self.copies
            and not a.startswith(_SELECTED)
            and a not in self.ranges
        ]

    # ------------------------------------------------------------------ literals

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
            return self._array(value)
        if isinstance(value, bool | int | float | np.generic):
            number = value.item() if isinstance(value, np.generic) else value
            kind = Kind.BOOL if isinstance(number, bool) else Kind.INDEX if isinstance(number, int) else Kind.FLOAT
            return Tensor(ir.constant(number, kind), ())
        raise Refused(f"a {type(value).__name__} where an array was expected")

    def integer(self, value: Any) -> int:
        """A whole number that is part of the formula: a dimension, an option."""
        if isinstance(value, Varying):
            raise Refused("a dimension or option depends on sizes or parameters")
        return int(value)

    def _array(self, value: np.ndarray) -> Tensor:
        kind = {"f": Kind.FLOAT, "i": Kind.INDEX, "u": Kind.INDEX, "b": Kind.BOOL}.get(value.dtype.kind)
        if kind is None:
            raise Refused(f"a constant array of dtype {value.dtype}")
        flat = value.astype(np.float64) if kind is Kind.FLOAT else value
        if value.size and (flat == flat.flat[0]).all():
            item = flat.flat[0].item()
            dims = tuple(() if n == 1 else (self.ghost((n,) * self.count),) for n in value.shape)
            return Tensor(ir.constant(item, kind), dims)
        if value.ndim == 1 and kind is Kind.INDEX and np.array_equal(value, np.arange(len(value))):
            return self.arange((len(value),) * self.count)
        if value.size > LARGEST_READ:
            raise Refused(_too_large(value.size))
        name = self.number("table")
        order: list[Axis] = []
        dims_: list[tuple[Axis, ...]] = []
        for d, n in enumerate(value.shape):
            if n == 1:
                dims_.append(())
                continue
            axis = self._unused(self.derived(f"{name}_{d}", (n,) * self.count, ir.constant(float(n))), order)
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
            dims = tuple(() if set(n) == {1} else (self.ghost(n),) for n in zip(*shapes, strict=True))
            return Tensor(ir.constant(arrays[0].flat[0].item(), kind), dims)
        if all(a.ndim == 1 and np.array_equal(a, np.arange(len(a))) for a in arrays):
            found = self.arange([s[0] for s in shapes])
            return Tensor(ir.as_kind(found.node, kind), found.dims)
        if all(a.ndim == 2 and np.array_equal(a, np.eye(*a.shape)) for a in arrays):
            row, column = (self.arange([s[d] for s in shapes]) for d in (0, 1))
            same = self.elementwise("eq", self.unsqueeze(row, 1), self.unsqueeze(column, 0))
            return Tensor(ir.as_kind(same.node, kind), same.dims)
        longer = [d for d, n in enumerate(shapes[0]) if n != 1]
        if len(set(shapes)) == 1 and len(longer) == 1 and arrays[0].size <= LARGEST_LISTED:
            entries = [self.symbol([a.flat[i].item() for a in arrays]) for i in range(arrays[0].size)]
            listed = self._listed([ir.as_kind(e, kind) for e in entries])
            return Tensor(listed.node, tuple(listed.dims[0] if d in longer else () for d in range(len(shapes[0]))))
        raise Refused("a constant array that depends on sizes or parameters")

    def _listed(self, entries: Sequence[Node]) -> Tensor:
        """A few numbers in a row, each a formula."""
        n = len(entries)
        axis = self.derived(self.number("table"), (n,) * self.count, ir.constant(float(n)))
        self.fixed[axis] = n
        node = entries[0]
        for i, entry in enumerate(entries[1:], 1):
            node = ir.where(ir.elementwise("eq", ir.iota(axis, n), ir.constant(i, Kind.INDEX)), entry, node)
        return Tensor(node, ((axis,),))

    def ghost(self, sizes: Sequence[int]) -> Axis:
        """A dimension along which a value is constant by construction; it takes the axis of what it meets."""
        return "#" + "x".join(str(n) for n in sizes)

    def arange(self, sizes: Sequence[int]) -> Tensor:
        """0, 1, 2 … n − 1."""
        if set(sizes) == {1}:
            return Tensor(ir.constant(0, Kind.INDEX), ((),))
        name = self.number("range")
        if len(set(sizes)) > 1 and self.table.root(_DERIVED + name) == _DERIVED + name:
            found = self._having(sizes)
            if found:
                return Tensor(ir.iota(found[0]), ((found[0],),))
        axis = self.derived(name, sizes, self.symbol(sizes))
        length = None
        if self.origin[axis].startswith(_DERIVED):
            if len(set(sizes)) == 1:
                length = sizes[0]
            elif self.origin[axis].startswith(_RANGE):
                self.ranges.add(axis)
        return Tensor(ir.iota(axis, length), ((axis,),))

    def counter(self, axis: Axis) -> Node:
        """The positions along an axis, which tell its size if nothing else does."""
        sizes = self.sizes_of(axis)
        made = self.origin[_base(axis)].startswith(_DERIVED) and len(set(sizes)) == 1
        return ir.iota(axis, sizes[0] if made else None)

    def turn(self, counts: Sequence[int]) -> Tensor:
        """The number of a loop's turn: the position along an axis of turns, which lies in no dimension."""
        counter = self.arange(counts)
        if not counter.dims[0]:
            return Tensor(counter.node, ())
        (axis,) = counter.dims[0]
        copy = f"{axis}~{self.number('turns')}"
        self.sizes[copy], self.size_nodes[copy] = self.sizes_of(axis), self.size(axis)
        self.origin[copy], self.copies[copy] = self.origin[_base(axis)], axis
        return Tensor(relabel(counter.node, {axis: copy}), ())

    def unturned(self, x: Tensor, copy: Axis) -> Tensor:
        """`x` with an axis of turns as its first dimension."""
        axis = self.copies[copy]
        name = self._unused(axis, {a for d in x.dims for a in d} | x.node.axes)
        node = _renamed(x.node, copy, name, {}) if name == axis else None
        return Tensor(relabel(x.node, {copy: name}) if node is None else node, ((name,), *x.dims))

    # ------------------------------------------------------------------ elementwise

    def align(self, tensors: Sequence[Tensor]) -> tuple[list[Node], tuple[Dim, ...]]:
        """The nodes of some values with their axes lined up as broadcasting from the right does."""
        if any(isinstance(t, Skewed) for t in tensors):
            raise Refused("a matrix that was read in rows of another length; flatten it first")
        rank = max(t.rank for t in tensors)
        padded = [((),) * (rank - t.rank) + t.dims for t in tensors]
        padded, tensors = self._even(padded, tensors)
        self._note_outer(padded, [t.rank for t in tensors])
        result: list[Dim] = []
        used: set[Axis] = set()
        maps: list[dict[Axis, Axis]] = [{} for _ in tensors]
        for j in range(rank):
            present = [(k, dims[j]) for k, dims in enumerate(padded) if dims[j]]
            if not present:
                result.append(())
                continue
            target: list[Axis] = []
            for position in range(len(present[0][1])):
                candidates = [dim[position] for _, dim in present]
                real = [c for c in candidates if not c.startswith("#")]
                if not real:
                    target.append(candidates[0])
                    continue
                for c in real[1:]:
                    self._same(real[0], c)
                label = next((c for c in real if c not in used), None) or self._unused(_base(real[0]), used)
                used.add(label)
                target.append(label)
                for k, dim in present:
                    if not dim[position].startswith("#"):
                        maps[k].update(zip(self.held(dim[position]), self.held(label), strict=True))
            result.append(tuple(target))
        nodes = [relabel(t.node, m) for t, m in zip(tensors, maps, strict=True)]
        return nodes, tuple(result)

    def _note_outer(self, padded: Sequence[tuple[Dim, ...]], ranks: Sequence[int]) -> None:
        """Remember axes that are set against each other only because one value has fewer dimensions."""
        for low, high in itertools.permutations(range(len(padded)), 2):
            if not 0 < ranks[low] < ranks[high]:
                continue
            columns = list(zip(padded[low], padded[high], strict=True))
            alone = [
                {_base(a) for x, y in columns if x and not y for a in x},
                {_base(a) for x, y in columns if y and not x for a in y},
            ]
            self.outer |= {frozenset(pair) for pair in itertools.product(*alone)}

    def _same(self, a: Axis, b: Axis) -> None:
        """Two axes that lie in the same dimension are one."""
        if _base(a) == _base(b):
            return
        if a.startswith(_SELECTED) or b.startswith(_SELECTED):
            raise Refused(
                "a selection by truth values meets an array that is not selected by the same mask; "
                "use torch.where or its like, or multiply by the mask"
            )
        x, y = self.sizes_of(a), self.sizes_of(b)
        if x[0] != y[0]:
            if x[0] == 1 and not self.origin[_base(a)].startswith(_DERIVED):
                self.table.unit(self.origin[_base(a)])
            if y[0] == 1 and not self.origin[_base(b)].startswith(_DERIVED):
                self.table.unit(self.origin[_base(b)])
            raise Refused(f"dimensions of size {x[0]} and {y[0]} meet")
        first, second = self.sources.get(_base(a)), self.sources.get(_base(b))
        if first and second and first[1] == second[1] and self.sizes_of(first[0]) == self.sizes_of(second[0]):
            self._same(first[0], second[0])
        self.table.merge(self.origin[_base(a)], self.origin[_base(b)])

    def _even(
        self, padded: list[tuple[Dim, ...]], tensors: Sequence[Tensor]
    ) -> tuple[list[tuple[Dim, ...]], list[Tensor]]:
        """Dimensions that hold several axes in one value and one in another: joined, or the one seen as constant."""
        padded, tensors = [tuple(p) for p in padded], list(tensors)
        for j in range(len(padded[0])):
            dims = {p[j] for p in padded if p[j]}
            widths = {len(d) for d in dims}
            if len(widths) <= 1:
                continue
            several = next(d for d in dims if len(d) == max(widths))
            for k, p in enumerate(padded):
                dim = p[j]
                if not dim or len(dim) == len(several):
                    continue
                if all(a.startswith("#") for a in dim):
                    pieces = tuple(self.ghost(self.sizes_of(a)) for a in several)
                    padded[k] = (*p[:j], pieces, *p[j + 1 :])
            left = {len(p[j]) for p in padded if p[j]}
            if len(left) > 1:
                for k, p in enumerate(padded):
                    if len(p[j]) > 1:
                        shift = len(p) - tensors[k].rank
                        tensors[k] = self.single(tensors[k], j - shift)
                        padded[k] = ((),) * shift + tensors[k].dims
        return padded, tensors

    def single(self, x: Tensor, dim: int) -> Tensor:
        """`x` with all axes of a dimension joined into one."""
        axes = x.dims[dim]
        if len(axes) <= 1:
            return x
        if any(a.startswith(_SELECTED) for a in axes):
            raise Refused("a selection by truth values, flattened with another dimension")
        if all(a.startswith("#") for a in axes):
            dims = (*x.dims[:dim], (self.ghost(self.extents(axes)),), *x.dims[dim + 1 :])
            return Tensor(x.node, dims)
        if any(a.startswith("#") for a in axes):
            x = self._solid(x, dim)
            axes = x.dims[dim]
        name = "_by_".join(self.origin[_base(a)] for a in axes)
        new = self.derived(name, self.extents(axes), self.length(axes))
        new = self._unused(new, {a for d in x.dims for a in d})
        present = x.node.axes & set(axes)
        node = ir.join(x.node, axes, new) if present else x.node
        return Tensor(node, (*x.dims[:dim], (new,), *x.dims[dim + 1 :]))

    def _solid(self, x: Tensor, dim: int) -> Tensor:
        """`x` with axes of the graph for those of a dimension along which it is constant."""
        node, axes = x.node, list(x.dims[dim])
        for i, axis in enumerate(axes):
            if not axis.startswith("#"):
                continue
            counter = self.arange(self.sizes_of(axis))
            name = self._unused(counter.dims[0][0], {a for d in x.dims for a in d} | set(axes) | node.axes)
            at = relabel(counter.node, {counter.dims[0][0]: name})
            everywhere = ir.elementwise("ge", at, ir.constant(0, Kind.INDEX))
            node, axes[i] = ir.where(everywhere, node, ir.constant(0, node.kind)), name
        return Tensor(node, (*x.dims[:dim], tuple(axes), *x.dims[dim + 1 :]))

    def elementwise(self, op: str, *operands: Any) -> Tensor:
        """An operation of the table at each entry, with broadcasting."""
        nodes, dims = self.align([self.tensor(x) for x in operands])
        if op == "where" and all(n.kind is Kind.BOOL for n in nodes[1:]):
            return Tensor(_chosen(*nodes), dims)
        return Tensor(ir.elementwise(op, *nodes), dims)

    def map(self, function: Callable[..., Node], *operands: Any) -> Tensor:
        """A formula at each entry, with broadcasting."""
        nodes, dims = self.align([self.tensor(x) for x in operands])
        node = function(*(ir.as_kind(n, Kind.FLOAT) for n in nodes))
        return Tensor(node, dims)

    def cast(self, x: Any, kind: Kind) -> Tensor:
        """`x` as floats, integers or truth values."""
        t = self.tensor(x)
        node = t.node
        if kind is Kind.INDEX and node.op == "cast" and node.args[0].kind in (Kind.INDEX, Kind.BOOL):
            node = node.args[0]
        if kind is Kind.INDEX and node.kind is Kind.FLOAT and node.op not in ("input", "constant"):
            whole = node.op == "cast" or (
                node.op == "where" and all(a.op in ("cast", "constant") for a in node.args[1:])
            )
            if not whole:  # towards zero, as every library does
                node = ir.elementwise("sign", node) * ir.elementwise("floor", ir.elementwise("abs", node))
        return Tensor(ir.as_kind(node, kind), t.dims)

    # ------------------------------------------------------------------ shapes

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

    def permute(self, x: Any, order: Sequence[Any]) -> Tensor:
        """Dimensions in another order."""
        t = self.tensor(x)
        at = [self.dim(t, d) for d in order]
        parts = None
        if t.stacked is not None:
            place, pieces = t.stacked
            parts = at.index(place), tuple(self.permute(p, at) for p in pieces)
        return Tensor(t.node, tuple(t.dims[d] for d in at), stacked=parts)

    def unsqueeze(self, x: Any, dim: int) -> Tensor:
        """A new dimension of size 1 before `dim`."""
        t = self.tensor(x)
        return Tensor(t.node, (*t.dims[:dim], (), *t.dims[dim:]), places=t.places, within=t.within)

    def squeeze(self, x: Any, dims: Sequence[int] | None = None) -> Tensor:
        """Without some dimensions of size 1."""
        t = self.tensor(x)
        gone = [d for d in (range(t.rank) if dims is None else dims) if self.extents(t.dims[d])[0] == 1]
        for d in sorted(gone, reverse=True):
            if t.dims[d] and t.dims[d][0] in t.node.axes and self.origin[_base(t.dims[d][0])].startswith(_DERIVED):
                first = ir.take(t.node, ir.constant(0, Kind.INDEX), t.dims[d][0])
                t = Tensor(first, (*t.dims[:d], (), *t.dims[d + 1 :]))
            elif t.dims[d] and not t.dims[d][0].startswith("#"):
                self.table.unit(self.origin[_base(t.dims[d][0])])
        return Tensor(
            t.node, tuple(dim for i, dim in enumerate(t.dims) if i not in gone), places=t.places, within=t.within
        )

    def reshape(self, x: Any, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """The same entries, row by row, in another shape (one for each recording)."""
        if (skewed := self._skewed(self.tensor(x), shapes)) is not None:
            return skewed
        if all(0 in shape for shape in shapes):
            return self.full(Tensor(ir.constant(0, self.tensor(x).node.kind), ()), shapes)
        t = self._rows(self.tensor(x), shapes)
        atoms = [a for d in t.dims for a in d]
        wanted = list(zip(*shapes, strict=True))
        result: list[Dim] = []
        at = 0
        for extent in wanted:
            group: list[Axis] = []
            size = 1
            while size < extent[0]:
                if at >= len(atoms):
                    raise Refused("a reshape that does not follow the dimensions of its operand")
                group.append(atoms[at])
                size *= self.sizes_of(atoms[at])[0]
                at += 1
            if size != extent[0]:
                pieces = self._split(t, group, extent)
                if pieces is None:
                    raise Refused(f"a reshape that cuts a dimension of size {size} into pieces of {extent[0]}")
                t, parts = pieces
                atoms[at - 1 : at] = list(parts)
                group[-1:] = [parts[0]]
                if self.extents(tuple(group)) != tuple(extent):
                    raise Refused(f"a reshape that cuts a dimension of size {size} into pieces of {extent[0]}")
            elif extent[0] == 1 and at < len(atoms) and self.sizes_of(atoms[at])[0] == 1:
                group.append(atoms[at])
                at += 1
            result.append(tuple(group))
        for a in atoms[at:]:
            if self.sizes_of(a)[0] != 1:
                raise Refused("a reshape that does not follow the dimensions of its operand")
            self.table.unit(self.origin[_base(a)])
        return Tensor(t.node, tuple(result))

    def _rows(self, t: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """A selection from a matrix as rows of entries, if each row has equally many: all but the diagonal, say."""
        if len(t.dims) != 1 or len(t.dims[0]) != 1 or not t.dims[0][0].startswith(_SELECTED) or len(shapes[0]) != 2:
            return t
        found = self.selections[_base(t.dims[0][0])]
        if len(found.axes) != 2 or any(n.op == "input" and n.axes for n in ir.topological([found.mask])):
            return t
        row, column = found.axes
        if tuple(s[0] for s in shapes) != self.sizes_of(row):
            return t
        for held, shape in zip(self._known(found.mask), shapes, strict=True):
            if not (held.sum(axis=sorted(found.axes).index(column)) == shape[1]).all():
                return t
        whole = self.copies[row]
        whole = row if whole in t.node.axes else whole
        node, mask = (relabel(n, {row: whole}) for n in (t.node, found.mask))
        if {s[1] for s in shapes} == {1}:  # the one entry of each row
            return Tensor(ir.total(ir.where(mask, node, ir.constant(0, node.kind)), (column,)), ((whole,), ()))
        new = Selection(mask, (column,))
        name = next((known for known, other in self.selections.items() if other == new), None)
        if name is None:
            name = _SELECTED + self.number("rows")
            self.size_nodes[name] = self.symbol([s[1] for s in shapes])
            self.sizes[name] = tuple(s[1] for s in shapes)
            self.selections[name], self.origin[name] = new, name
        return Tensor(node, ((whole,), (name,)))

    def _known(self, node: Node) -> list[np.ndarray]:
        """The entries of a value that depends on no argument, in each recording, its axes in alphabetical order."""
        axes = tuple(dict.fromkeys(a for n in ir.topological([node]) for a in n.axes))
        grid = ir.input_("grid", axes)  # tells the sizes
        sizes = ([self.sizes_of(a)[i] for a in axes] for i in range(self.count))
        return [evaluate([node], {Port(grid, axes): np.empty(shape)})[0] for shape in sizes]

    def _split(
        self, t: Tensor, group: Sequence[Axis], extent: Sequence[int]
    ) -> tuple[Tensor, tuple[Axis, Axis]] | None:
        """The last axis of a group cut in two, so that the group and the first piece have the wanted size."""
        axis = group[-1]
        before = self.extents(tuple(group[:-1]))
        whole = self.sizes_of(axis)
        outer = [e // b for e, b in zip(extent, before, strict=True)]
        if any(o == 0 or w % o for o, w in zip(outer, whole, strict=True)):
            return None
        inner = [w // o for w, o in zip(whole, outer, strict=True)]
        if axis.startswith("#"):
            return t, (self.ghost(outer), self.ghost(inner))
        if self.sizes_of(axis) and axis not in t.node.axes:
            return None
        root = self.origin[_base(axis)]
        pieces = []
        taken = {a for d in t.dims for a in d}
        told: list[tuple[Axis, int | Coarse]] = []
        for place, sizes in (("outer", outer), ("inner", inner)):
            length: int | Coarse | None = None
            same = self.axis_of(sizes) if len(set(sizes)) > 1 else None
            if same is None and len(set(sizes)) > 1:
                part = self._part(sizes, taken)
                if part is None:
                    return None
                same, length = part
            elif same is None:
                same = self.derived(f"{root}_{place}{sizes[0]}", sizes, ir.constant(float(sizes[0])))
                length = sizes[0]
            piece = self._unused(same, taken)
            taken.add(piece)
            pieces.append(piece)
            if length is not None:
                told.append((piece, length))
        node = ir.split(t.node, axis, pieces)
        for piece, length in told:  # gives the piece its size
            everywhere = ir.elementwise("ge", ir.iota(piece, length), ir.constant(0, Kind.INDEX))
            node = ir.where(everywhere, node, ir.constant(0, node.kind))
        dims = tuple(tuple(b for a in d for b in (pieces if a == axis else (a,))) for d in t.dims)
        return Tensor(node, dims), (pieces[0], pieces[1])

    def _part(self, sizes: Sequence[int], taken: Collection[Axis]) -> tuple[Axis, Coarse] | None:
        """A new axis whose size is that of an argument's, a whole fraction of it, or one more or less."""
        for axis, n in self.sizes.items():
            if self.origin[axis].startswith((_DERIVED, _SELECTED)) or axis in self.copies or len(set(n)) == 1:
                continue
            for step, cut in ((1, 2), (1, 0), (2, 2), (3, 3), (4, 4)):
                if all((m - cut) % step == 0 and (m - cut) // step + 1 == k for m, k in zip(n, sizes, strict=True)):
                    size = self.size(axis) / float(step) if step > 1 else self.size(axis) + float(1 - cut)
                    return self.made_of(axis, f"_part{step}_{cut}", sizes, size, taken), Coarse(axis, cut, step)
        return None

    def _share(self, t: Tensor, dim: int, start: Sequence[int], lengths: Sequence[int]) -> Tensor | None:
        """One of a constant number of equal shares of a dimension: a half, a third."""
        n = self.extents(t.dims[dim])
        if len(set(lengths)) == 1 or any(k == 0 or m % k or a % k for k, m, a in zip(lengths, n, start, strict=True)):
            return None
        shares = {(m // k, a // k) for k, m, a in zip(lengths, n, start, strict=True)}
        if len(shares) > 1:
            return None
        ((count, place),) = shares
        if self.examples.get(self.table.root(self.origin.get(t.dims[dim][0], ""))) == count:
            return None  # of one entry each: these are columns that each mean something, as the corners of a box
        found = self._split(t, t.dims[dim], [count] * self.count)
        if found is None:
            return None
        pieces, (outer, inner) = found
        apart = Tensor(pieces.node, (*t.dims[:dim], (outer,), (inner,), *t.dims[dim + 1 :]))
        return self.select(apart, dim, place)

    def expand(self, x: Any, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """`x` broadcast to a shape (one for each recording), from the right."""
        t = self.tensor(x)
        wanted = list(zip(*shapes, strict=True))
        dims = ((),) * (len(wanted) - t.rank) + t.dims
        result: list[Dim] = []
        for dim, extent in zip(dims, wanted, strict=True):
            have = self.extents(dim)
            if have[0] == 1 and extent[0] != 1:
                if dim:
                    self.table.unit(self.origin[_base(dim[0])])
                result.append((self.ghost(extent),))
            else:
                result.append(dim)
        return Tensor(t.node, tuple(result))

    def full(self, value: Any, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """One number in every entry."""
        return self.expand(value, shapes)

    # ------------------------------------------------------------------ reductions

    def reduce(self, op: str, x: Any, dims: Any = None, keepdims: bool = False) -> Tensor:
        """A reduction over dimensions."""
        t = self.tensor(x)
        if isinstance(t, Skewed):
            if t.flat is None or len(self.dims(t, dims)) < t.rank or keepdims:
                raise Refused("a reduction of a matrix that was read in rows of another length")
            t, dims = t.flat, None
        gone = self.dims(t, dims)
        if op in ("argmax", "argmin") and sum(len(t.dims[d]) for d in gone) > 1:
            if len(gone) > 1:
                raise Refused(f"{op} over several dimensions")
            t = self.single(t, gone[0])
        t = self._selected(op, t, gone)
        atoms = tuple(a for d in gone for a in t.dims[d])
        present = [b for a in atoms for b in self.held(a) if b in t.node.axes]
        absent = tuple(a for a in atoms if not t.node.axes & set(self.held(a)))
        node = t.node
        if op == "mean":
            node = ir.as_kind(node, Kind.FLOAT)
            counted = tuple(a for a in atoms if a not in absent)
            node = ir.total(node, present) / self.length(counted) if present else node
        elif op == "any" or op == "all":
            node = ir.as_kind(ir.as_kind(node, Kind.BOOL), Kind.FLOAT)
            node = ir.reduction("max" if op == "any" else "min", node, present) if present else node
            node = ir.as_kind(node, Kind.BOOL)
        else:
            kind = node.kind
            node = ir.reduction(op, node, present) if present else ir.as_kind(node, Kind.FLOAT)
            if op in ("max", "min") and kind is Kind.INDEX:
                node = ir.as_kind(node, Kind.INDEX)
            if absent and op == "sum":
                node = node * self.length(absent)
            elif absent and op == "logsumexp":
                node = node + ir.elementwise("log", self.length(absent))
            elif absent and op == "prod":
                node = ir.elementwise("pow", node, self.length(absent))
            elif absent and op in ("argmax", "argmin"):
                node = ir.constant(0, Kind.INDEX)
        kept = [() if i in gone else d for i, d in enumerate(t.dims) if keepdims or i not in gone]
        return Tensor(self._released(node, present), tuple(kept))

    def _selected(self, op: str, t: Tensor, gone: Sequence[int]) -> Tensor:
        """`t` with the entries that are not selected replaced by what a reduction passes over."""
        axes = [a for d in gone for a in t.dims[d] if a.startswith(_SELECTED)]
        if not axes:
            return t
        neutral = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf, "logsumexp": -math.inf}
        node = t.node
        if op in ("any", "all"):
            node, empty = ir.as_kind(node, Kind.BOOL), ir.constant(op == "all")
        elif op in neutral:
            node, empty = ir.as_kind(node, Kind.FLOAT), ir.constant(neutral[op])
        else:
            raise Refused(f"{op} of a selection by truth values, in which positions depend on values")
        for axis in axes:
            if op in ("sum", "mean") and not node.axes & set(self.held(axis)):
                continue  # constant: the count will do
            node = ir.where(self._mask(axis), node, empty)
        return Tensor(node, t.dims)

    def _mask(self, axis: Axis) -> Node:
        """Where the entries of a selection are."""
        found = self.selections[_base(axis)]
        return relabel(found.mask, dict(zip(found.axes, self.held(axis), strict=True)))

    def _released(self, node: Node, bound: Sequence[Axis]) -> Node:
        """A reduction over copies of axes as one over the axes, where nothing else goes by their names."""
        copies = {a: self.copies[_base(a)] for a in bound if _base(a) in self.copies}
        if not copies or node.op not in ir.REDUCTIONS | {"div"}:
            return node
        body = node if node.op != "div" else node.args[0]
        if body.op not in ir.REDUCTIONS:
            return node
        inner: Node | None = body.args[0]
        axes = list(body.attrs[0])
        for copy, axis in copies.items():
            if inner is not None and copy in axes and axis not in axes:
                inner = _renamed(inner, copy, axis, {})
                axes[axes.index(copy)] = axis
        if inner is None or not set(axes) <= inner.axes:
            return node
        reduced = ir.reduction(body.op, inner, axes)
        return reduced if node.op != "div" else reduced / node.args[1]

    def var(self, x: Any, dims: Any = None, correction: float = 1, keepdims: bool = False) -> Tensor:
        """The variance; `correction` is taken from the count."""
        t = self.tensor(x)
        gone = self.dims(t, dims)
        centred = self.elementwise("sub", t, self.reduce("mean", t, gone, keepdims=True))
        total = self.reduce("sum", self.elementwise("mul", centred, centred), gone, keepdims)
        count = self.length(tuple(a for d in gone for a in t.dims[d]))
        return Tensor(total.node / (count - float(correction) if correction else count), total.dims)

    def softmax(self, x: Any, dim: int, log: bool = False) -> Tensor:
        """Softmax along a dimension, or its logarithm."""
        t = self.tensor(x)
        shifted = self.elementwise("sub", t, self.reduce("logsumexp", t, [dim], keepdims=True))
        return shifted if log else self.elementwise("exp", shifted)

    def einsum(self, spec: str, *operands: Any) -> Tensor:
        """A sum of products, in NumPy's notation without dots."""
        left, _, right = spec.replace(" ", "").partition("->")
        parts = left.split(",")
        letters = list(dict.fromkeys([*right, *left.replace(",", "")]))
        product: Tensor | None = None
        for part, operand in zip(parts, operands, strict=True):
            t = self.tensor(operand)
            if len(set(part)) < len(part):
                raise Refused(f"einsum {spec!r} with a letter twice in one operand")
            dims = tuple(t.dims[part.index(c)] if c in part else () for c in letters)
            spread = Tensor(t.node, dims)
            product = spread if product is None else self.elementwise("mul", product, spread)
        assert product is not None
        gone = [i for i, c in enumerate(letters) if c not in right]
        return self.reduce("sum", product, gone) if gone else product

    # ------------------------------------------------------------------ moving entries

    def select(self, x: Any, dim: int, index: Any) -> Tensor:
        """The entry at one position along a dimension, which disappears."""
        t = self.tensor(x)
        if isinstance(index, Tensor):
            return self.take(t, index, dim)
        if t.stacked is not None and t.stacked[0] == dim and isinstance(index, int) and abs(index) < len(t.stacked[1]):
            return self.squeeze(t.stacked[1][index], [dim])
        t = self._whole_axis(t, dim, [index + 1] * self.count if isinstance(index, int) and index >= 0 else ())
        dims = (*t.dims[:dim], *t.dims[dim + 1 :])
        if not t.dims[dim]:
            return Tensor(t.node, dims)
        (axis,) = t.dims[dim]
        if axis not in t.node.axes:
            return Tensor(t.node, dims)
        n = self.sizes_of(axis)
        values: Sequence[Any] = index.values if isinstance(index, Varying) else (int(index),) * self.count
        values = [v + n[i] if v < 0 else v for i, v in enumerate(values)] if not isinstance(index, Varying) else values
        if len(set(values)) == 1 and (isinstance(index, Varying) or int(index) >= 0):
            at = ir.constant(int(values[0]), Kind.INDEX)
        elif len({n[i] - v for i, v in enumerate(values)}) == 1:
            at = ir.as_kind(self.size(axis) - float(n[0] - values[0]), Kind.INDEX)
        else:
            raise Refused("an index that depends on sizes or parameters")
        return Tensor(ir.take(t.node, at, axis), dims)

    def slice(self, x: Any, dim: int, start: Sequence[int], stop: Sequence[int], step: int = 1) -> Tensor:
        """Entries start … stop − 1 along a dimension; both are given for each recording."""
        if (skewed := self._corner(x, dim, start, stop)) is not None and step == 1:
            return skewed
        t = self._whole_axis(x, dim, stop)
        n = self.extents(t.dims[dim])
        lengths = [max(0, -(-(b - a) // step)) for a, b in zip(start, stop, strict=True)]
        if all(a == 0 and b == m for a, b, m in zip(start, stop, n, strict=True)) and step == 1:
            return t
        if set(lengths) == {0}:
            none = ir.constant(0, t.node.kind)
            return Tensor(none, (*t.dims[:dim], (self.ghost(lengths),), *t.dims[dim + 1 :]))
        if set(lengths) == {1} and len({*start}) == 1:
            return self.unsqueeze(self.select(t, dim, int(start[0])), dim)
        if set(lengths) == {1}:
            return self.unsqueeze(self.select(t, dim, Varying(start)), dim)
        if not t.dims[dim]:
            raise Refused("an empty slice")
        (axis,) = t.dims[dim]
        if axis.startswith("#") or axis not in t.node.axes:
            return Tensor(t.node, (*t.dims[:dim], (self.ghost(lengths),), *t.dims[dim + 1 :]))
        if step > 1:
            return self.slide(self.slice(t, dim, start, stop), dim, Stencil(step=step))
        trims = [m - b for m, b in zip(n, stop, strict=True)]
        first, last = self.extent(start), self.extent(trims)
        if first is not None and last is not None:
            return self._window(t, dim, first, last, lengths)
        share = self._share(t, dim, start, lengths)
        if share is not None:
            return share
        if len(set(start)) == 1 and len(set(lengths)) == 1:
            return self.slide(t, dim, Stencil(start=start[0], count=lengths[0]))
        if len(set(trims)) == 1 and len(set(lengths)) == 1:
            tail = self.slide(self.along("flip", t, dim), dim, Stencil(start=trims[0], count=lengths[0]))
            return self.along("flip", tail, dim)
        raise Refused("a slice whose ends are not constant, or that leaves entries out")

    def _corner(self, x: Any, dim: int, start: Sequence[int], stop: Sequence[int]) -> Skewed | None:
        """A flattened square matrix without its last entry, or the next step of what is made of it."""
        t = self.tensor(x)
        n = self.extents(t.dims[dim])
        whole = all(a == 0 and b == m for a, b, m in zip(start, stop, n, strict=True))
        if isinstance(t, Skewed):
            if whole:
                return t
            if t.rank == 2 and dim == 1 and set(start) == {1} and tuple(stop) == n and t.flat is None:
                return self._beside(t)
            raise Refused("entries of a matrix that was read in rows of another length")
        axes = t.dims[dim]
        if t.rank != 1 or len(axes) != 2 or whole or not set(axes) <= t.node.axes:
            return None
        ends = set(start) == {0} and all(b == m - 1 for b, m in zip(stop, n, strict=True))
        if not ends or self.sizes_of(axes[0]) != self.sizes_of(axes[1]):
            return None
        return Skewed(t.node, ((self.ghost(stop),),), square=axes)

    def _beside(self, t: Skewed) -> Skewed:
        """All entries but the diagonal, n to each of n − 1 rows."""
        row, column = t.square
        square = Tensor(t.node, ((row,), (column,)))
        apart = Tensor(ir.elementwise("ne", self.counter(row), self.counter(column)), square.dims)
        counts = Varying([m * (m - 1) for m in self.sizes_of(row)])
        flat = self.index(square, [(d, self.position(apart, square, 0, counts, d)) for d in (0, 1)])
        return Skewed(flat.node, (t.dims[0], (self.ghost(self.sizes_of(row)),)), flat=flat)

    def _skewed(self, t: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor | None:
        """The matrix in longer rows; or what is beside its diagonal in a row, or in rows as before."""
        if isinstance(t, Skewed):
            if t.flat is not None and all(len(s) == 1 for s in shapes):
                return t.flat
            n = [math.isqrt(m + 1) for m in self.extents(t.dims[0])]
            if t.rank == 1 and all(s == (m - 1, m + 1) for s, m in zip(shapes, n, strict=True)):
                dims = (self.ghost([m - 1 for m in n]),), (self.ghost([m + 1 for m in n]),)
                return Skewed(t.node, dims, square=t.square)
            raise Refused("a matrix that was read in rows of another length")
        if t.rank != 1 or len(t.dims[0]) != 1 or t.dims[0][0] not in self.selections:
            return None
        if len(self.selections[t.dims[0][0]].axes) != 2 or any(len(s) != 2 or s[1] != s[0] + 1 for s in shapes):
            return None
        rows, columns = (self.ghost(n) for n in zip(*shapes, strict=True))
        return Skewed(t.node, ((rows,), (columns,)), flat=t)

    def slide(self, x: Any, dim: int, stencil: Stencil, tap: Axis | None = None) -> Tensor:
        """Windows along a dimension; if the stencil has several taps, `tap` or a new axis is a new last dimension."""
        t = self.own_axis(x, dim)
        (axis,) = t.dims[dim]
        if stencil.taps > 1 and tap is None:
            count = ir.constant(float(stencil.taps))
            tap = self._unused(self.derived(f"taps{stencil.taps}", (stencil.taps,) * self.count, count), t.node.axes)
        new = self._slid_axis(t, axis, stencil)
        node = ir.slide(t.node, axis, new, tap, stencil)
        dims = (*t.dims[:dim], (new,), *t.dims[dim + 1 :])
        return Tensor(node, dims if tap is None or any(tap in d for d in dims) else (*dims, (tap,)))

    def _slid_axis(self, t: Tensor, axis: Axis, stencil: Stencil) -> Axis:
        """The axis of the windows: that of their operand, if there are as many."""
        counts = tuple(stencil.windows(n) for n in self.sizes_of(axis))
        if any(n < 1 for n in counts):
            raise Refused(f"no window fits into a dimension of size {min(self.sizes_of(axis))}")
        taken = {a for d in t.dims for a in d} | t.node.axes
        if stencil.count is not None:
            first = self.derived(f"first{stencil.count}", counts, ir.constant(float(stencil.count)))
            return self._unused(first, taken)
        if stencil.step == stencil.cut == 1:
            return axis
        size, less = self.size(axis), stencil.cut - 1
        if stencil.step == 1:
            stem = f"_{'less' if less > 0 else 'more'}{abs(less)}"
            return self.made_of(axis, stem, counts, size - float(less), taken)
        many = (size - float(stencil.cut) if stencil.cut else size) / float(stencil.step)
        stem = f"_by{stencil.step}_{'less' if stencil.cut >= 0 else 'more'}{abs(stencil.cut)}"
        return self.made_of(axis, stem, counts, ir.elementwise("floor", many) + 1.0, taken)

    def own_axis(self, x: Any, dim: int) -> Tensor:
        """`x` with one axis of its own along a dimension, also where it is constant along it."""
        t = self.single(self.tensor(x), dim)
        if t.dims[dim] and t.dims[dim][0] in t.node.axes:
            return t
        sizes = self.extents(t.dims[dim])
        if t.dims[dim] and not t.dims[dim][0].startswith("#"):
            position = self.counter(t.dims[dim][0])
        elif len(set(sizes)) == 1:
            name = self.derived(self.number("repeated"), sizes, ir.constant(float(sizes[0])))
            position = ir.iota(name, sizes[0])
        else:
            position = self.arange(sizes).node
        axis = position.attrs[0]
        if axis in t.node.axes:
            raise Refused("a value that is repeated along an axis which it has already")
        everywhere = ir.elementwise("ge", position, ir.constant(0, Kind.INDEX))
        node = ir.where(everywhere, t.node, ir.constant(0, t.node.kind))
        return Tensor(node, (*t.dims[:dim], (axis,), *t.dims[dim + 1 :]))

    def extent(self, values: Sequence[int]) -> ir.Extent | None:
        """A number of entries: constant, or the size of an axis plus a constant."""
        if len(set(values)) == 1:
            return ir.extent(values[0])
        for axis, sizes in self.sizes.items():
            if self.origin[axis].startswith((_DERIVED, _SELECTED)) or axis in self.copies:
                continue
            if tuple(sizes) == tuple(values):
                return ir.extent(0, {axis: 1})
        return None

    def _window(self, t: Tensor, dim: int, first: ir.Extent, last: ir.Extent, lengths: Sequence[int]) -> Tensor:
        (axis,) = t.dims[dim]
        terms: dict[Axis, int] = {}
        for a, n in (*first, *last):
            terms[a] = terms.get(a, 0) + n
        stem = "".join(f"_{'less' if n > 0 else 'more'}{abs(n)}{a}" for a, n in sorted(terms.items()) if n)
        size = self.size(axis)
        for a, n in sorted(terms.items()):
            if n:
                size = size - float(n) * (self.size(a) if a else ir.constant(1.0))
        new = self.made_of(axis, stem, lengths, size, {a for d in t.dims for a in d}) if stem else axis
        node = ir.window(t.node, axis, new, first, last)
        return Tensor(node, (*t.dims[:dim], (new,), *t.dims[dim + 1 :]))

    def pick(self, x: Any, dim: int, positions: Sequence[int]) -> Tensor:
        """Entries at constant positions along a dimension."""
        t = self._whole_axis(x, dim)
        index = self._array(np.asarray(positions, dtype=np.int64))
        return self.take(t, index, dim)

    def take(self, x: Any, index: Any, dim: int) -> Tensor:
        """The dimension `dim` of `x` replaced by all dimensions of the index, as `np.take` does."""
        t, at = self.single(self.tensor(x), dim), self.tensor(index)
        counted, first = _shifted(at.node)
        if counted.op == "iota" and t.dims[dim]:
            n, whole = self.sizes_of(counted.attrs[0]), self.extents(t.dims[dim])
            if n != whole and first >= 0 and all(first + m <= k for m, k in zip(n, whole, strict=True)):
                t = self.slice(t, dim, [first] * self.count, [first + m for m in n])
                at = Tensor(counted, at.dims)
        full = ((),) * dim + at.dims + ((),) * (t.rank - dim - 1)
        return self.gather(self._widen(t, dim, at.rank), Tensor(at.node, full), dim)

    def index(self, x: Any, indices: Sequence[tuple[int, Tensor]]) -> Tensor:
        """Entries at several index arrays at once, ``x[i, j]``: for each, the dimension and the positions along it."""
        t = self.tensor(x)
        if len(indices) == 1 and not indices[0][1].places:
            return self.take(t, indices[0][1], indices[0][0])
        first = indices[0][0]
        if [d for d, _ in indices] != list(range(first, first + len(indices))):
            raise Refused("index arrays in dimensions that are not neighbours")
        # Each index in turn; the dimensions of the indices stand before those that are still to be indexed.
        rank = max(i.rank for _, i in indices)
        at = first
        for _, index in indices:
            picked = self.picked(t, at, index) if at == first else None
            if picked is not None:
                t, at = picked, first + rank
                continue
            if index.within and index.within == t.dims[at]:
                t = Tensor(t.node, (*t.dims[:at], self.held(index.within[0]), *t.dims[at + 1 :]))
                index = Tensor(self.counter(index.places[0]), index.dims)
            t = self.single(t, at)
            source = t.dims[at]
            new = ((),) * rank if at == first else ()
            others = Tensor(t.node, (*t.dims[:at], *new, *t.dims[at + 1 :]))
            full = (*((),) * first, *((),) * (rank - index.rank), *index.dims)
            full = (*full, *((),) * (others.rank - len(full)))
            t = self.gather((others, source), Tensor(index.node, full), first)
            at = first + rank
        return t

    def _widen(self, t: Tensor, dim: int, width: int) -> tuple[Tensor, Dim]:
        others = Tensor(t.node, (*t.dims[:dim], *((),) * width, *t.dims[dim + 1 :]))
        return others, t.dims[dim]

    def gather(self, x: tuple[Tensor, Dim], index: Tensor, dim: int) -> Tensor:
        """Entries at an index that lines up with all other dimensions."""
        t, source = x
        others, along = t, source
        if not along or along[0].startswith("#"):  # the same wherever it is looked up
            nodes, dims = self.align([Tensor(others.node, others.dims), index])
            return Tensor(nodes[0], dims)
        (axis,) = along
        index = Tensor(_counting(index.node), index.dims)
        if axis.startswith(_SELECTED):
            lead = self.selections[_base(axis)].lead
            free = any(n.op == "input" and n.axes for n in ir.topological([index.node]))
            if free or not lead or any((i >= n).any() for i, n in zip(self._known(index.node), lead, strict=True)):
                raise Refused("an index into a selection by truth values")
            (axis,) = along = self.held(axis)
        self._usable(index.node)
        ordered = _sorted_axis(index.node)  # the order of one array, in which another is taken
        if ordered is not None and self.sizes_of(ordered)[0] == self.sizes_of(axis)[0]:
            if self.origin[_base(ordered)] != self.origin[_base(axis)]:
                self._same(ordered, axis)
        elsewhere = {a for d in others.dims for a in d}
        before = others.dims[dim] if dim < others.rank else ()
        blank = not before or (before[-1].startswith("#") and self.sizes_of(before[-1]) == self.sizes_of(axis))
        if index.node.op == "argsort" and index.node.attrs[0] == axis and axis not in elsewhere and blank:
            (source_node, order), dims = self.align(
                [Tensor(others.node, (*others.dims[:dim], before[:-1] + along, *others.dims[dim + 1 :])), index]
            )
            if order.op == "argsort":  # entries in the order of a sort: a permutation, whose inverse is cheap
                return Tensor(ir.take(source_node, order, order.attrs[0]), dims)
        # The source axis must not be mistaken for one of the others: it takes part under a name of its own.
        apart = axis
        if axis in elsewhere or any(axis == a for d in index.dims for a in d):
            apart = _base(axis) + "_from"
            self.sizes.setdefault(apart, self.sizes_of(axis))
            self.origin.setdefault(apart, self.origin[_base(axis)])
            self.size_nodes.setdefault(apart, self.size(axis))
            apart = self._unused(apart, {*others.node.axes, *index.node.axes})
        source_node = relabel(others.node, {axis: apart}) if apart != axis else others.node
        nodes, dims = self.align([Tensor(source_node, others.dims), index])
        moved, node = nodes
        if apart not in moved.axes:
            return Tensor(moved, dims)
        if node.op == "iota" and self.sizes_of(node.attrs[0]) != self.sizes_of(axis):
            if len(set(self.sizes_of(node.attrs[0]))) > 1:
                raise Refused("a range as index into a dimension of another size")
        elif node.op == "iota":  # each entry at its own place
            counted = node.attrs[0]
            if self.origin[_base(counted)] != self.origin[_base(axis)]:
                self._same(counted, axis)
            return Tensor(_tied(moved, apart, counted, {}), dims)
        return Tensor(ir.take(moved, ir.as_kind(node, Kind.INDEX), apart), dims)

    def _usable(self, index: Node) -> None:
        """Refuse positions that are worked out in floats beyond what these hold exactly."""
        if index.kind is Kind.FLOAT and any(n.op == "iota" for n in ir.topological([index])):
            raise Refused("positions that are worked out from other positions")

    def _whole_axis(self, x: Any, dim: int, ends: Sequence[int] = ()) -> Tensor:
        """`x` with one axis in a dimension: its entries can be told by their positions.

        It may be a selection if only entries before `ends`, one for each recording, are asked for, and all of these are
        selected.
        """
        t = self.single(self.tensor(x), dim)
        if any(a.startswith(_SELECTED) for a in t.dims[dim]):
            lead = self.selections[_base(t.dims[dim][0])].lead
            if ends and lead and all(e <= n for e, n in zip(ends, lead, strict=True)):
                return Tensor(t.node, (*t.dims[:dim], self.held(t.dims[dim][0]), *t.dims[dim + 1 :]))
            raise Refused(
                "positions in a selection by truth values, which depend on values; multiply by the mask, or use torch.where "
                "or its like"
            )
        return t

    def sort(self, x: Any, dim: int, descending: bool = False) -> tuple[Tensor, Tensor]:
        """The entries along a dimension in order, and where they were."""
        t = self._whole_axis(x, dim)
        if not t.dims[dim] or t.dims[dim][0] not in t.node.axes:
            raise Refused("a sort along a dimension without entries of its own")
        (axis,) = t.dims[dim]
        node = ir.as_kind(t.node, Kind.FLOAT)
        order = ir.argsort(-node if descending else node, axis)
        return Tensor(ir.take(t.node, order, axis), t.dims), Tensor(order, t.dims)

    def along(self, op: str, x: Any, dim: int, *attrs: Any) -> Tensor:
        """`flip` or `cumsum`."""
        t = self._whole_axis(x, dim)
        if not t.dims[dim]:
            return t
        (axis,) = t.dims[dim]
        if axis not in t.node.axes:
            if op == "flip":
                return t
            raise Refused("a cumulative sum of a constant")
        if op == "cumsum":
            return Tensor(ir.cumsum(t.node, axis, *attrs), t.dims)
        return Tensor(ir.along(op, t.node, axis, *attrs), t.dims)

    def scan(self, op: str, x: Any, dim: int, reverse: bool = False) -> Tensor:
        """Along a dimension, the reduction `op` of each entry and those before it (behind it, if `reverse`)."""
        if op == "sum":
            return self.along("cumsum", x, dim, reverse)
        t = self.single(self.tensor(x), dim)
        if not t.dims[dim]:
            return t
        (axis,) = t.dims[dim]
        if axis not in t.node.axes:
            raise Refused("a cumulative reduction of a constant")
        other = self._unused(_base(axis), {a for d in t.dims for a in d} | t.node.axes)
        node = ir.as_kind(t.node, Kind.FLOAT)
        taken = ir.elementwise("ge" if reverse else "le", self.counter(other), self.counter(axis))
        neutral = {"prod": 1.0, "max": -math.inf, "min": math.inf, "logsumexp": -math.inf}[op]
        return Tensor(ir.reduction(op, ir.where(taken, ir.rename(node, axis, other), neutral), (other,)), t.dims)

    def concat(self, tensors: Sequence[Any], dim: int) -> Tensor:
        """Values one after the other along a dimension."""
        parts = [self.single(self.tensor(x), dim) for x in tensors]
        parts = [p for p in parts if any(self.extents(p.dims[dim]))] or parts[:1]
        if len(parts) == 1:
            return parts[0]
        parts = [self._gated(p) for p in parts]
        for d in range(parts[0].rank):
            if any(a.startswith(_SELECTED) for p in parts for a in p.dims[d]) and self._bound(parts, d, dim):
                return self._concat_selected(parts, dim, d)
        lengths = [self.extents(p.dims[dim]) for p in parts]
        whole = [sum(n[i] for n in lengths) for i in range(self.count)]
        ends = [ir.constant(0.0)]
        for p in parts:
            length = self.length(p.dims[dim])
            ends.append(length if len(ends) == 1 else ends[-1] + length)
        new = self.derived(self.number("joined"), whole, ends[-1])
        new = self._unused(new, {a for p in parts for d in p.dims for a in d})
        at = self.counter(new)
        line = tuple((new,) if i == dim else () for i in range(parts[0].rank))
        kind = parts[0].node.kind if len({p.node.kind for p in parts}) == 1 else Kind.FLOAT
        counts = [self._entries(p.dims[dim]) for p in parts]
        result = self._placed(parts[0], dim, new, [], counts[1:])
        for k, part in enumerate(parts[1:], 1):  # each piece from its start on, the next ones over it
            placed = self._placed(part, dim, new, counts[:k], counts[k + 1 :])
            here = Tensor(ir.elementwise("ge", at, ir.as_kind(ends[k], Kind.INDEX)), line)
            nodes, dims = self.align([placed, result, here])
            result = Tensor(ir.where(nodes[2], ir.as_kind(nodes[0], kind), ir.as_kind(nodes[1], kind)), dims)
        if all(set(n) == {1} for n in lengths):
            return Tensor(result.node, result.dims, stacked=(dim, tuple(parts)))
        return result

    def _gated(self, t: Tensor) -> Tensor:
        """`t` with zeros beside the entries of its selections, so that gradients there are zeros, whatever follows."""
        node = t.node
        for axis in (a for d in t.dims for a in d if a.startswith(_SELECTED)):
            if node.kind is Kind.FLOAT and node.axes & set(self.held(axis)):
                node = ir.where(self._mask(axis), node, 0.0)
        return replace(t, node=node)

    def _bound(self, parts: Sequence[Tensor], d: int, dim: int) -> bool:
        """Whether the selections along dimension d are not the same one for all entries along the other dimension."""
        if d == dim:
            return True
        selected = [p for p in parts if any(not a.startswith("#") for a in p.dims[d])]
        return len({p.dims[d] for p in selected}) > 1 or any(
            self._mask(a).axes & set(p.dims[dim]) for p in selected for a in p.dims[d]
        )

    def _concat_selected(self, parts: Sequence[Tensor], dim: int, d: int) -> Tensor:
        """Values one after the other, of which some are selections along dimension d: all entries, and a mask of them."""
        whole, masks, counts = [], [], []
        for p in parts:
            mask = ir.constant(1.0)
            counts.append((self.extents(p.dims[d]), self.length(p.dims[d])))
            if any(a.startswith(_SELECTED) for a in p.dims[d]):
                (name,) = p.dims[d]
                mask = ir.as_kind(self._mask(name), Kind.FLOAT)
                p = Tensor(p.node, (*p.dims[:d], self.held(name), *p.dims[d + 1 :]))
                if len(p.dims[d]) > 1:
                    p = self.single(p, d)
                    mask = ir.join(mask, self.held(name), p.dims[d][0])
            whole.append(p)
            masks.append(Tensor(mask, p.dims))
        leads = [
            self.selections[_base(p.dims[d][0])].lead if p is not w else counts[0][0]
            for p, w in zip(parts, whole, strict=True)
        ]
        lead = leads[0] if d == dim or len(set(leads)) == 1 else ()
        (node, mask), dims = self.align([self.concat(whole, dim), self.concat(masks, dim)])
        (axis,) = dims[d]
        held = ir.elementwise("gt", mask, 0.5)
        for known, found in self.selections.items():
            if len(found.axes) == 1 and found.lead == lead and relabel(held, {axis: found.axes[0]}) is found.mask:
                return Tensor(relabel(node, {axis: found.axes[0]}), (*dims[:d], (known,), *dims[d + 1 :]))
        name = _SELECTED + self.number("joined")
        self.selections[name] = Selection(held, (axis,), lead)
        self.origin[name] = name
        among = counts if d == dim else counts[:1]
        self.sizes[name] = tuple(map(sum, zip(*(n for n, _ in among), strict=True)))
        self.size_nodes[name] = functools.reduce(operator.add, (n for _, n in among))
        return Tensor(node, (*dims[:d], (name,), *dims[d + 1 :]))

    def _entries(self, dim: Dim) -> ir.Extent | None:
        """The number of entries along a dimension, as windows count them."""
        sizes = self.extents(dim)
        if len(dim) == 1 and len(set(sizes)) > 1 and not dim[0].startswith("#"):
            axis = _base(self.copies.get(_base(dim[0]), dim[0]))
            if not self.origin[axis].startswith(_DERIVED):
                return ir.extent(0, {axis: 1})
            base, stem = self.sources.get(axis, (axis, ""))
            less = {n - m for n, m in zip(self.sizes_of(base), sizes, strict=True)}
            if stem and len(less) == 1 and not self.origin[base].startswith(_DERIVED):
                return ir.extent(-min(less), {base: 1})
        return self.extent(sizes)

    def _placed(
        self, t: Tensor, dim: int, new: Axis, before: Sequence[ir.Extent | None], after: Sequence[ir.Extent | None]
    ) -> Tensor:
        dims = (*t.dims[:dim], (new,), *t.dims[dim + 1 :])
        if not t.dims[dim] or t.dims[dim][0] not in t.node.axes:
            return Tensor(t.node, dims)  # the same everywhere along it
        (axis,) = t.dims[dim]
        ends = []
        for side in (before, after):
            terms: dict[Axis, int] = {}
            for extent in side:
                if extent is None:
                    raise Refused("a concatenation of pieces whose sizes vary in a way that was not recognised")
                for a, n in extent:
                    terms[a] = terms.get(a, 0) - n
            ends.append(ir.extent(terms.pop("", 0), terms))
        return Tensor(ir.window(t.node, axis, new, ends[0], ends[1]), dims)

    def roll(self, x: Any, dim: int, shift: Any) -> Tensor:
        """Entries moved along a dimension; what falls off comes in at the other end."""
        t = self._whole_axis(x, dim)
        n = self.extents(t.dims[dim])
        if isinstance(shift, Varying):
            return self._roll_by(t, dim, [s % m for s, m in zip(shift.values, n, strict=True)])
        shift = int(shift)
        move = shift if abs(shift) < min(n) else None
        if move is None or not move:
            if shift == 0:
                return t
            raise Refused("a roll by more than the size of its dimension")
        (axis,) = t.dims[dim]
        if axis not in t.node.axes:
            return t
        rest, size, at = abs(move), self.size(axis), self.counter(axis)
        moved = ir.window(t.node, axis, axis, ir.extent(-move), ir.extent(move))
        for i in range(rest):  # the entries that fell off, each put where it comes in
            first, last = ir.constant(i, Kind.INDEX), ir.as_kind(size - float(rest - i), Kind.INDEX)
            place, source = (first, last) if move > 0 else (last, first)
            moved = ir.where(ir.elementwise("eq", at, place), ir.take(t.node, source, axis), moved)
        return Tensor(moved, t.dims)

    def _roll_by(self, t: Tensor, dim: int, shifts: Sequence[int]) -> Tensor:
        """A roll by a number that depends on sizes, as the half of a dimension does that a spectrum is centred by."""
        if not t.dims[dim] or t.dims[dim][0] not in t.node.axes:
            return t
        (axis,) = t.dims[dim]
        size, n = self.size(axis), self.sizes_of(axis)
        for extra in (0, 1):
            if all(s == (m + extra) // 2 for s, m in zip(shifts, n, strict=True)):
                shift = ir.elementwise("floor", (size + float(extra)) / 2.0)
                break
        else:
            shift = self.symbol(shifts)
        at = ir.as_kind(self.counter(axis), Kind.FLOAT) - shift
        index = ir.where(ir.elementwise("lt", at, 0.0), at + size, at)
        return Tensor(ir.take(t.node, ir.as_kind(index, Kind.INDEX), axis), t.dims)

    # ------------------------------------------------------------------ writing entries

    def without(self, x: Tensor, dim: int) -> tuple[Tensor, Dim]:
        """`x` without a dimension, and the axes of that, as `gather` wants them."""
        t = self._whole_axis(x, dim)
        return Tensor(t.node, (*t.dims[:dim], *t.dims[dim + 1 :])), t.dims[dim]

    def overwrite(self, x: Tensor, dim: int, start: Sequence[int], stop: Sequence[int], value: Tensor) -> Tensor:
        """`x` with entries start … stop − 1 along a dimension replaced."""
        t = self._whole_axis(x, dim)
        n = self.extents(t.dims[dim])
        value = self._whole_axis(
            self.expand(value, [self._shape(t, dim, stop, start, i) for i in range(self.count)]), dim
        )
        if tuple(start) == (0,) * self.count and tuple(stop) == tuple(n):
            return value
        if not t.dims[dim]:
            raise Refused("writing into a dimension of size 1")
        if t.dims[dim][0].startswith("#") or t.dims[dim][0] not in t.node.axes:
            t = self._solid(t, dim)
        (axis,) = t.dims[dim]
        after = [m - b for m, b in zip(n, stop, strict=True)]
        taken = {a for d in value.dims for a in d}
        new = axis if axis not in taken else self._unused(axis, taken)
        placed = self._placed(value, dim, new, [self.extent(start)], [self.extent(after)])
        at = self.counter(new)
        first, last = (ir.as_kind(self.symbol(v), Kind.INDEX) for v in (start, stop))
        here = ir.elementwise("and", ir.elementwise("ge", at, first), ir.elementwise("lt", at, last))
        inside = Tensor(here, tuple((new,) if i == dim else () for i in range(t.rank)))
        return self.elementwise("where", inside, placed, t)

    def _shape(self, t: Tensor, dim: int, stop: Sequence[int], start: Sequence[int], i: int) -> tuple[int, ...]:
        return tuple(stop[i] - start[i] if d == dim else self.extents(e)[i] for d, e in enumerate(t.dims))

    def write(self, x: Tensor, indices: Sequence[Tensor | None], value: Tensor, add: bool = False) -> Tensor:
        """`x` with the entries at an index for each of its first dimensions replaced, or added to.

        One of them must be the positions along its dimension, of all its entries or of those of a selection, so that no
        entry is written twice: the others are then conditions on entries.
        """
        t, condition = x, None
        moves: dict[Axis, Axis] = {}
        given = [(d, i) for d, i in enumerate(indices) if i is not None]
        if any(self.extents(dim) == (0,) * self.count for _, i in given for dim in i.dims):
            return x
        if len(given) > 1:
            self.align([i for _, i in given])
        rank = max(i.rank for _, i in given)
        if [d for d, _ in given] != list(range(given[0][0], given[0][0] + len(given))) or rank != 1:
            raise Refused("writing at an index of several dimensions")
        first = given[0][0]
        (written,) = next(i.dims for _, i in given if i.rank == 1)
        if len(written) != 1 or any(i.rank and i.dims[0] != written for _, i in given):
            raise Refused("writing at indices of several sizes")
        rest: list[tuple[int, Tensor]] = []
        for d, index in given:
            places = index.places or ((index.node.attrs[0],) if index.node.op == "iota" and not moves else ())
            atoms = t.dims[d]
            if any(a.startswith("#") for a in atoms) or not set(atoms) <= t.node.axes:
                t = self._solid(Tensor(t.node, t.dims), d) if atoms and all(a.startswith("#") for a in atoms) else t
                atoms = t.dims[d]
            if places and len(places) == len(atoms) and not set(places) & set(moves):
                for a, b in zip(atoms, places, strict=True):
                    if self.sizes_of(a) != self.sizes_of(b):
                        raise Refused("writing at positions along a dimension of another size")
                    if self.origin[_base(a)] != self.origin[_base(self.copies.get(b, b))]:
                        self._same(a, self.copies.get(b, b))
                moves.update(zip(places, atoms, strict=True))
            else:
                rest.append((d, index))
        if not moves or not set(self.held(written[0])) <= set(moves):
            if not value.node.axes and not add:
                return self._written_alike(x, given, value)
            raise Refused(
                "writing at positions that are worked out, of which two may be the same; use torch.where or one_hot"
            )
        blank: list[Dim] = [()] * t.rank

        def placed(node: Node, dims: Sequence[Dim]) -> Tensor:
            """Something along the index, over the dimensions of `x`."""
            found = relabel(node, moves)
            return Tensor(found, tuple(dims))

        along = list(blank)
        for d, _ in given:
            if set(t.dims[d]) & set(moves.values()):
                along[d] = t.dims[d]
        if written[0].startswith(_SELECTED):
            condition = placed(self._mask(written[0]), along)
        for d, index in rest:
            (axis,) = self._whole_axis(t, d).dims[d]
            at = Tensor(self.counter(axis), tuple((axis,) if i == d else () for i in range(t.rank)))
            hit = self.elementwise("eq", at, placed(index.node, along if index.rank else blank))
            condition = hit if condition is None else self.elementwise("and", condition, hit)
        behind = t.rank - first - len(given)
        dims = list(blank)
        lead = value.rank - behind
        for i in range(max(lead, 0), value.rank):
            dims[t.rank - value.rank + i] = value.dims[i]
        if lead > 1:
            raise Refused("writing an array of more dimensions than its index")
        if lead == 1 and value.dims[0] and not value.dims[0][0].startswith("#"):
            if value.dims[0] != written:
                self.align([Tensor(value.node, (value.dims[0],)), Tensor(given[0][1].node, (written,))])
            dims = [e if along[i] == () else along[i] for i, e in enumerate(dims)]
        new = placed(value.node, dims)
        if add:
            new = self.elementwise("add", t, new)
        return new if condition is None else self.elementwise("where", condition, new, t)

    def _written_alike(self, x: Tensor, indices: Sequence[tuple[int, Tensor]], value: Tensor) -> Tensor:
        """`x` with one number written at positions, of which several may be the same."""
        hit: Tensor | None = None
        for d, index in indices:
            at = self.arange(self.extents(x.dims[d]))
            along = Tensor(at.node, tuple(at.dims[0] if i == d else () for i in range(x.rank + 1)))
            place = Tensor(index.node, (*((),) * x.rank, *(index.dims or ((),))))
            same = self.elementwise("eq", along, place)
            hit = same if hit is None else self.elementwise("and", hit, same)
        assert hit is not None
        return self.elementwise("where", self.reduce("any", hit, [x.rank]), Tensor(value.node, ()), x)

    # ------------------------------------------------------------------ selections

    def position(self, mask: Any, like: Any, first: int, count: Any, dim: int, guarded: bool = False) -> Tensor:
        """The positions along one dimension of the entries where a mask holds, which covers dimensions of `like` from `first`.

        What is done with a `guarded` selection does not count where it is empty; its number is then taken for 1.
        """
        m, x = self.tensor(mask), self.tensor(like)
        numbers = tuple(count.values) if isinstance(count, Varying) else (int(count),) * self.count
        if not any(numbers):  # known to hold nowhere
            return Tensor(ir.constant(0, Kind.INDEX), ((self.ghost(numbers),),))
        atoms: list[Axis] = []
        for i in range(m.rank):
            over = self._lined_up(m, i, x, first + i)
            m, atoms = over[0], [*atoms, *over[1]]
        held = ir.as_kind(m.node, Kind.BOOL)
        within = [a for a in atoms if a.startswith(_SELECTED)]
        if held is ir.constant(True) and not within:  # everywhere
            return Tensor(self._counted(m.dims[dim]), (tuple(atoms),))
        for outer in within:  # a selection from a selection: where both hold
            held = ir.elementwise("and", self._mask(outer), held)
        atoms = [b for a in atoms for b in self.held(a)]
        if (
            m.rank == 2
            and len(atoms) == 2
            and not within
            and not any(n.op == "input" and n.axes for n in ir.topological([held]))
        ):
            found = self._one_each(held, atoms, numbers, dim)
            if found is not None:
                return found
        name = None
        for known, selection in self.selections.items():
            if self.sizes[known] == numbers and len(selection.axes) == len(atoms):
                if relabel(held, dict(zip(atoms, selection.axes, strict=True))) is selection.mask:
                    name = known
        if name is None:
            name = _SELECTED + self.number("selection")
            copies = {a: f"{self.copies.get(a, a)}~{name[1:]}" for a in atoms}
            for a, b in copies.items():
                self.sizes[b], self.size_nodes[b] = self.sizes_of(a), self.size(a)
                self.origin[b], self.copies[b] = self.origin[_base(a)], self.copies.get(a, a)
            total = ir.total(ir.as_kind(held, Kind.FLOAT), atoms)
            total = ir.elementwise("maximum", total, 1.0) if guarded else total
            self.selections[name] = Selection(relabel(held, copies), tuple(copies.values()))
            self.sizes[name], self.size_nodes[name], self.origin[name] = numbers, total, name
        over_axes = self.selections[name].axes
        start = sum(len(self.held(a)) for i in range(dim) for a in m.dims[i])
        places = over_axes[start : start + sum(len(self.held(a)) for a in m.dims[dim])]
        if any(
            a.startswith(_SELECTED) for a in m.dims[dim]
        ):  # places among the selected, whose numbers depend on values
            return Tensor(ir.iota(name), ((name,),), places=places, within=m.dims[dim])
        return Tensor(self._counted(places), ((name,),), places=places)

    def _counted(self, axes: Sequence[Axis]) -> Node:
        """The positions in a dimension that holds some axes."""
        node = self.counter(axes[0]) if axes else ir.constant(0, Kind.INDEX)
        for axis in axes[1:]:
            node = ir.as_kind(node * self.size(axis) + ir.as_kind(self.counter(axis), Kind.FLOAT), Kind.INDEX)
        return node

    def _one_each(self, held: Node, atoms: Sequence[Axis], numbers: Sequence[int], dim: int) -> Tensor | None:
        """The positions along one of two axes where a mask holds that does so once in each row, as on a diagonal."""
        row, column = atoms
        at = [m if row < column else m.T for m in self._known(held) if m.ndim == 2]
        if len(at) < self.count or any(
            (m.sum(axis=1) != 1).any() or n != len(m) for m, n in zip(at, numbers, strict=True)
        ):
            return None
        if dim == 0 or all((m.argmax(axis=1) == np.arange(len(m))).all() for m in at):
            return Tensor(self.counter(row), ((row,),))
        places = ir.total(ir.where(held, ir.as_kind(self.counter(column), Kind.FLOAT), 0.0), (column,))
        return Tensor(ir.as_kind(places, Kind.INDEX), ((row,),))

    def _lined_up(self, m: Tensor, i: int, x: Tensor, j: int) -> tuple[Tensor, Dim]:
        """The axes of the mask's dimension i, which lies along x's dimension j."""
        mine, theirs = m.dims[i], x.dims[j]
        if all(a.startswith("#") for a in mine):
            if any(a.startswith("#") for a in theirs):
                raise Refused("a selection along a dimension that no argument has")
            mine = theirs
        if len(mine) == len(theirs):
            for a, b in zip(mine, theirs, strict=True):
                if a != b and not b.startswith("#") and self.origin[_base(a)] != self.origin[_base(b)]:
                    self._same(a, b)
        return Tensor(m.node, (*m.dims[:i], mine, *m.dims[i + 1 :])), mine

    def picked(self, x: Tensor, dim: int, index: Tensor) -> Tensor | None:
        """`x` at the positions of a selection, if it has the very axes that were selected."""
        mine = tuple(b for a in x.dims[dim] for b in self.held(a))
        wanted = tuple(self.copies[a] for a in index.places)
        if not wanted or len(mine) != len(wanted) or index.rank != 1:
            return None
        if index.within != tuple(a for a in x.dims[dim] if a.startswith(_SELECTED)):
            return None
        for a, b in zip(mine, wanted, strict=True):
            if a.startswith("#") or self.origin[_base(a)] != self.origin[_base(b)]:
                return None
        elsewhere = {b for i, d in enumerate(x.dims) for a in d if i != dim for b in self.held(a)}
        if elsewhere & set(index.places) or any(a in elsewhere for a in mine):
            return None
        node = relabel(x.node, dict(zip(mine, index.places, strict=True)))
        return Tensor(node, (*x.dims[:dim], index.dims[0], *x.dims[dim + 1 :]))

    # ------------------------------------------------------------------ running

    def run(self, arguments: str = "") -> Tensor:
        """Import every step.

        Raises:
            Restart: the table has learnt something.
            AdoptionError: a step cannot be imported.
        """
        for step in needed(self.recording):
            self.where = step.where
            rule = self.rules.get(step.op)
            if rule is None:
                raise AdoptionError(_refusal(step, "lossforge does not know this operation"))
            try:
                result = rule(self, step, *[self._argument(a) for a in step.args])
                results = result if isinstance(result, tuple) else (result,)
                for index, value, shapes in zip(step.outputs, results, step.shapes, strict=False):
                    self._check(value, shapes)
                    self.values[index] = value
            except Refused as reason:
                raise AdoptionError(_refusal(step, str(reason))) from None
            except AdoptionError:
                raise
            except LossforgeError as error:
                raise AdoptionError(_refusal(step, str(error))) from error
            except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
                unknown = f"it is used in a way that is not known ({type(error).__name__}: {error})"
                raise AdoptionError(_refusal(step, unknown)) from error
        result = self.tensor(self.recording.result)
        for n in ir.topological([result.node]):
            if n.op == "table" and (size := len(n.attrs[2])) > LARGEST_TABLE:
                raise Refused(_too_large(size))
        counted = {n.attrs[0] for n in ir.topological([result.node]) if n.op == "iota"}
        if any(_base(self.copies.get(a, a)) in self.ranges for a in counted):
            raise Refused("a range whose end is not the size of an axis")
        if any(n.op == "iota" and n.attrs[0].startswith(_SELECTED) for n in ir.topological([result.node])):
            raise Refused("positions in a selection by truth values, which depend on values")
        return result

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.values[value.index]
        if isinstance(value, list | tuple):
            return type(value)(self._argument(v) for v in value)
        return value

    def _check(self, value: Any, shapes: Sequence[tuple[int, ...]]) -> None:
        """The shape by the axes is the shape that was recorded, in every recording."""
        if not isinstance(value, Tensor):
            return
        for i, shape in enumerate(shapes):
            found = tuple(self.extents(d)[i] for d in value.dims)
            if found != tuple(shape):
                raise Refused(f"the result has shape {tuple(shape)}, by its axes {found}")


def _plain(value: Any, kind: Kind) -> float | int | bool:
    return {Kind.FLOAT: float, Kind.INDEX: int, Kind.BOOL: bool}[kind](value)


def _counting(index: Node) -> Node:
    """A range without the guard against an ignored class that cross entropy puts before each index."""
    if index.op == "where" and index.args[1].op == "iota" and index.args[0].op == "ne":
        position, ignored = index.args[0].args
        if position is index.args[1] and ignored.op == "constant" and ignored.attrs[0] < 0:
            return position
    return index


def _shifted(index: Node) -> tuple[Node, int]:
    """Positions from a constant on, as positions and the constant."""
    inner = index.args[0] if index.op == "cast" else index
    if inner.op == "add" and inner.args[1].op == "constant" and float(inner.args[1].attrs[0]).is_integer():
        first = inner.args[0]
        return first.args[0] if first.op == "cast" else first, int(inner.args[1].attrs[0])
    return index, 0


def _sorted_axis(index: Node) -> Axis | None:
    """The axis whose order an index holds, all of it or a part."""
    while index.op in ("cast", "window", "slide", "take", "flip", "rename"):
        index = index.args[0]
    if index.op == "argsort":
        return str(index.attrs[0])
    return str(index.attrs[0][0]) if index.op in ir.INDEX_REDUCTIONS else None


def _chosen(condition: Node, x: Node, y: Node) -> Node:
    """A choice between truth values."""
    if x.op == "constant":
        return ir.elementwise("or", condition, y) if x.attrs[0] else ir.elementwise("and", _not(condition), y)
    if y.op == "constant":
        return ir.elementwise("or", _not(condition), x) if y.attrs[0] else ir.elementwise("and", condition, x)
    first, second = ir.elementwise("and", condition, x), ir.elementwise("and", _not(condition), y)
    return ir.elementwise("or", first, second)


def _not(condition: Node) -> Node:
    return ir.elementwise("not", condition)


def _renamed(node: Node, old: Axis, new: Axis, known: dict[Node, Node | None]) -> Node | None:
    """`node` with a free axis called otherwise, throughout, so that copies of `new` are undone; None if both occur."""
    if old not in node.axes:
        return None if new in node.axes else node
    if new in node.axes:
        return None
    if node not in known:
        known[node] = None
        if node.op == "rename" and node.attrs[1] == old:
            known[node] = node.args[0] if node.attrs[0] == new else relabel(node, {old: new})
        elif node.op == "iota":
            known[node] = ir.iota(new, *node.attrs[1:])
        elif node.op == "rename" and new not in node.attrs:
            inner = _renamed(node.args[0], old, new, {})
            known[node] = None if inner is None else ir.rename(inner, *node.attrs)
        elif is_elementwise(node) or node.op in ir.REDUCTIONS or node.op == "cast":
            bound = node.attrs[0] if node.op in ir.REDUCTIONS else ()
            args = [a if old not in a.axes and new not in a.axes else _renamed(a, old, new, known) for a in node.args]
            if new not in bound and all(a is not None for a in args):
                known[node] = ir.rebuild(node, args)  # type: ignore[arg-type]
        else:
            known[node] = relabel(node, {old: new})
    return known[node]


def _tied(node: Node, axis: Axis, other: Axis, known: dict[Node, Node]) -> Node:
    """`node` where the positions along two axes agree: the diagonal, taken before what it is worked out from."""
    if axis not in node.axes:
        return node
    if other not in node.axes:
        return relabel(node, {axis: other})
    if node not in known:
        if is_elementwise(node) or (node.op in ir.REDUCTIONS | {"cast"}):
            known[node] = ir.rebuild(node, [_tied(a, axis, other, known) for a in node.args])
        elif node.op == "rename" and node.attrs[1] == axis:
            known[node] = _tied(node.args[0], node.attrs[0], other, {})
        elif node.op == "rename" and node.attrs[1] != other:
            known[node] = ir.rename(_tied(node.args[0], axis, other, known), *node.attrs)
        else:
            known[node] = ir.take(node, ir.iota(other), axis)
    return known[node]


def relabel(node: Node, mapping: Mapping[Axis, Axis]) -> Node:
    """`node` with axes renamed, all at once."""
    pending = {old: new for old, new in mapping.items() if old != new and old in node.axes}
    while pending:
        free = [old for old, new in pending.items() if new not in node.axes]
        if free:
            old = free[0]
            new = pending.pop(old)
            node = ir.iota(new, *node.attrs[1:]) if node.op == "iota" else _called(node, old, new)
        else:
            old = next(iter(pending))
            if pending[old] not in pending:
                raise Refused(f"the axis {pending[old]!r} would occur twice")
            aside = old + "_aside"
            node = ir.rename(node, old, aside)
            pending[aside] = pending.pop(old)
    return node


def _called(node: Node, old: Axis, new: Axis) -> Node:
    """One axis renamed; a second name in a row takes the place of the first."""
    if node.op == "rename" and node.attrs[1] == old:
        (inner,) = node.args
        return inner if node.attrs[0] == new else ir.rename(inner, node.attrs[0], new)
    return ir.rename(node, old, new)


def _too_large(size: int) -> str:
    return f"a constant array of {size} entries; make it an argument of the loss"


def _refusal(step: Step, reason: str) -> str:
    place = f", in {step.where}" if step.where else ""
    return f"{step.op}{place}: {reason}"


def slice_ends(value: Any, default: int | None, n: Sequence[int]) -> list[int]:
    """The end of a slice in each recording, as Python counts; `default` (None: the size) where it is not given."""
    values = value.values if isinstance(value, Varying) else (value,) * len(n)
    result = []
    for v, size in zip(values, n, strict=True):
        v = (default if default is not None else size) if v is None else v
        result.append(min(max(v + size if v < 0 else v, 0), size))
    return result


def rule_for(op: str) -> Rule:
    """The rule of a library's operation that is one of the table."""
    return lambda imp, step, *args: imp.elementwise(op, *args)
