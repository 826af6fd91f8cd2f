"""The graph: an expression over named axes.

A `Node` is one operation. It is frozen and interned, so that equal expressions are one object and identity is
equality. It knows the *set* of its axes, never their order or their sizes: order is a property of the arrays at the
border (`Port`), sizes are known at run time only.

An axis is a name. A name that begins with a star (``*space``) stands for any number of axes that are always used
together; it is one axis of the graph, and its size is the product of theirs.

Constructors check, but never simplify.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, reduce
from typing import Any, TypeAlias

from lossforge.errors import AxisError

Axis: TypeAlias = str
Axes: TypeAlias = frozenset[str]


class Kind(Enum):
    """What a value is, apart from its precision, which a call decides."""

    FLOAT = "float"
    INDEX = "index"
    BOOL = "bool"


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Node:
    """One operation of a graph. Build it with the functions of this module, which intern it."""

    op: str
    args: tuple[Node, ...]
    attrs: tuple[Any, ...]
    axes: Axes
    kind: Kind

    def __add__(self, other: Operand) -> Node:
        return elementwise("add", self, other)

    def __radd__(self, other: Operand) -> Node:
        return elementwise("add", other, self)

    def __sub__(self, other: Operand) -> Node:
        return elementwise("sub", self, other)

    def __rsub__(self, other: Operand) -> Node:
        return elementwise("sub", other, self)

    def __mul__(self, other: Operand) -> Node:
        return elementwise("mul", self, other)

    def __rmul__(self, other: Operand) -> Node:
        return elementwise("mul", other, self)

    def __truediv__(self, other: Operand) -> Node:
        return elementwise("div", self, other)

    def __rtruediv__(self, other: Operand) -> Node:
        return elementwise("div", other, self)

    def __pow__(self, other: Operand) -> Node:
        return elementwise("pow", self, other)

    def __neg__(self) -> Node:
        return elementwise("neg", self)

    def __repr__(self) -> str:
        parts = [repr(a) for a in self.args] + [str(a) for a in self.attrs]
        return f"{self.op}({', '.join(parts)})"


Operand: TypeAlias = Node | float | int | bool

_INTERNED: weakref.WeakValueDictionary[tuple[Any, ...], Node] = weakref.WeakValueDictionary()
_INTERN_LOCK = threading.Lock()


def intern(op: str, args: tuple[Node, ...], attrs: tuple[Any, ...], axes: Axes, kind: Kind) -> Node:
    """The one node with this content."""
    # repr tells 0.0 from -0.0 and 1 from True, which == does not.
    key = (op, tuple(map(id, args)), attrs, repr(attrs) if op == "constant" else None, axes, kind)
    with _INTERN_LOCK:
        node = _INTERNED.get(key)
        if node is None:
            node = Node(op, args, attrs, axes, kind)
            _INTERNED[key] = node
        return node


# --------------------------------------------------------------------------------------------- leaves


def input_(name: str, axes: Iterable[Axis] = (), kind: Kind = Kind.FLOAT) -> Node:
    """A value that the caller supplies: an array, a weight, or a parameter (which has no axes)."""
    return intern("input", (), (name,), frozenset(axes), kind)


def constant(value: float | int | bool, kind: Kind | None = None) -> Node:
    """A number that is part of the definition."""
    if kind is None:
        kind = Kind.BOOL if isinstance(value, bool) else Kind.FLOAT
    exact = {Kind.FLOAT: float, Kind.INDEX: int, Kind.BOOL: bool}[kind](value)
    return intern("constant", (), (exact,), frozenset(), kind)


def size(axis: Axis) -> Node:
    """The number of entries along `axis`, as a float."""
    return intern("size", (), (axis,), frozenset(), Kind.FLOAT)


def sizes(axes: Iterable[Axis]) -> Node:
    """The product of the sizes of `axes`; 1 for none."""
    factors = [size(a) for a in sorted(axes)]
    return reduce(lambda x, y: x * y, factors) if factors else constant(1.0)


@dataclass(frozen=True)
class Coarse:
    """A length that follows another axis's: (n − cut) // step + 1, for the size n of `axis`."""

    axis: Axis
    cut: int
    step: int


def original(axis: Axis) -> Axis:
    """The axis that `axis` is a copy of, by its name: copies have primes, those for a selection what follows a tilde."""
    return axis.partition("~")[0].rstrip("'")


def iota(axis: Axis, length: int | Coarse | None = None) -> Node:
    """The position along `axis`: 0, 1, 2 … A length fixes the axis's size, where no input has the axis."""
    return intern("iota", (), (axis,) if length is None else (axis, length), frozenset({axis}), Kind.INDEX)


# --------------------------------------------------------------------------------------------- elementwise

COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
LOGICAL = frozenset({"and", "or", "not"})


def as_node(value: Operand) -> Node:
    """A node, or the constant node of a number."""
    return value if isinstance(value, Node) else constant(value)


def as_kind(node: Node, kind: Kind) -> Node:
    """`node` converted to `kind`: truth values count as 0 and 1, a number is true where it is not 0."""
    if node.kind is kind:
        return node
    if node.op == "constant" and (kind is not Kind.INDEX or float(node.attrs[0]).is_integer()):
        return constant(node.attrs[0], kind)
    if kind is Kind.BOOL:
        return intern("ne", (node, constant(0, node.kind)), (), node.axes, Kind.BOOL)
    return intern("cast", (node,), (kind.value,), node.axes, kind)


def _union(nodes: Sequence[Node]) -> Axes:
    return frozenset().union(*(n.axes for n in nodes))


def elementwise(op: str, *operands: Operand) -> Node:
    """An operation at each entry; operands broadcast by the identity of their axes."""
    nodes = [as_node(x) for x in operands]
    kind = Kind.FLOAT
    if op in LOGICAL:
        kind = Kind.BOOL
        nodes = [as_kind(n, Kind.BOOL) for n in nodes]
    elif op in COMPARISONS:
        kind = Kind.BOOL
        common = Kind.FLOAT
        if all(n.kind is Kind.INDEX or (n.op == "constant" and float(n.attrs[0]).is_integer()) for n in nodes):
            common = Kind.INDEX
        nodes = [as_kind(n, common) for n in nodes]
    elif op == "where":
        condition, *branches = nodes
        same = branches[0].kind is branches[1].kind
        kind = branches[0].kind if same else Kind.FLOAT
        nodes = [as_kind(condition, Kind.BOOL), *(as_kind(n, kind) for n in branches)]
    elif op == "stop_gradient":
        kind = nodes[0].kind
    else:
        nodes = [as_kind(n, Kind.FLOAT) for n in nodes]
    return intern(op, tuple(nodes), (), _union(nodes), kind)


def where(condition: Operand, x: Operand, y: Operand) -> Node:
    """`x` where the condition holds, `y` elsewhere. The branch that is not chosen has no influence, not even NaN."""
    return elementwise("where", condition, x, y)


# --------------------------------------------------------------------------------------------- structure

REDUCTIONS = frozenset({"sum", "max", "min", "logsumexp", "prod"})
INDEX_REDUCTIONS = frozenset({"argmax", "argmin"})


def reduction(op: str, x: Node, axes: Iterable[Axis]) -> Node:
    """Reduce `x` over `axes`, all of which it must have.

    Raises:
        AxisError: `x` lacks one of the axes.
    """
    gone = frozenset(axes)
    if missing := gone - x.axes:
        raise AxisError(f"{op}: no axis {_names(missing)} to reduce over; the operand has {_names(x.axes)}")
    kind = Kind.INDEX if op in INDEX_REDUCTIONS else Kind.FLOAT
    if op in REDUCTIONS or x.kind is Kind.BOOL:
        x = as_kind(x, Kind.FLOAT)
    return intern(op, (x,), (tuple(sorted(gone)),), x.axes - gone, kind)


def total(x: Node, axes: Iterable[Axis]) -> Node:
    """The sum of `x` over `axes`, where an axis that `x` lacks (it is constant along it) counts by its size."""
    wanted = frozenset(axes)
    present = wanted & x.axes
    result = reduction("sum", x, present) if present else x
    absent = wanted - x.axes
    return result * sizes(absent) if absent else result


def take(x: Node, index: Node, axis: Axis) -> Node:
    """`x` at position `index` along `axis`; the result has the other axes of `x` and those of the index."""
    if axis not in x.axes:
        raise AxisError(f"take: no axis {axis!r} to take along; the operand has {_names(x.axes)}")
    return intern("take", (x, as_kind(index, Kind.INDEX)), (axis,), (x.axes - {axis}) | index.axes, x.kind)


def rename(x: Node, old: Axis, new: Axis) -> Node:
    """`x` with the axis `old` called `new`: a second, independent copy of the axis, of the same size."""
    if old not in x.axes:
        raise AxisError(f"rename: no axis {old!r}; the operand has {_names(x.axes)}")
    if new in x.axes:
        raise AxisError(f"rename: the operand already has an axis {new!r}")
    return intern("rename", (x,), (old, new), (x.axes - {old}) | {new}, x.kind)


Extent: TypeAlias = tuple[tuple[Axis, int], ...]
"""A number of entries: a sum of sizes of axes, each times a whole number; the axis "" stands for 1."""


def extent(count: int = 0, sizes: Mapping[Axis, int] | None = None) -> Extent:
    """`count` entries, and some multiples of the sizes of axes."""
    terms = {**(sizes or {}), "": count}
    return tuple(sorted((axis, n) for axis, n in terms.items() if n))


def window(x: Node, old: Axis, new: Axis, start: Extent, trim: Extent) -> Node:
    """Entry i along `new` is that of `x` at start + i along `old`, and 0 where `old` ends before.

    The new axis is shorter than the old one by start + trim; where these are negative it is longer, filled with 0.
    So this one operation cuts, pads and shifts, and its adjoint is the window with both numbers negated.
    """
    if old not in x.axes:
        raise AxisError(f"window: no axis {old!r}; the operand has {_names(x.axes)}")
    if new in x.axes and new != old:
        raise AxisError(f"window: the operand already has an axis {new!r}")
    for part in (start, trim):
        if any(n > 0 for _, n in part) and any(n < 0 for _, n in part):
            raise AxisError(f"window: the sign of {part} depends on sizes")
    return intern("window", (x,), (old, new, start, trim), (x.axes - {old}) | {new}, x.kind)


@dataclass(frozen=True)
class Stencil:
    """Where sliding windows read: tap t of window i reads at step · i + dilation · t + start.

    There are (n − cut) // step + 1 windows over an axis of size n, or `count`.
    """

    taps: int = 1
    step: int = 1
    dilation: int = 1
    start: int = 0
    cut: int = 1
    count: int | None = None

    def windows(self, n: int) -> int:
        """The number of windows over an axis of size `n`."""
        return max((n - self.cut) // self.step + 1, 0) if self.count is None else self.count


def slide(x: Node, old: Axis, new: Axis, tap: Axis | None, stencil: Stencil, back: bool = False) -> Node:
    """Sliding windows: entry (i, t) along `new` and `tap` is that of `x` where tap t of window i reads, 0 outside.

    Where `x` has the axis `tap` already, tap t reads from entry t of it. The sum over `tap` of a product with weights
    is a convolution. `back` turns positions round: entry (p, t) is that of the window i which reads p with its tap t,
    and 0 where there is none. Summed over `tap`, each is the adjoint of the other.
    """
    if old not in x.axes:
        raise AxisError(f"slide: no axis {old!r}; the operand has {_names(x.axes)}")
    if new in x.axes and new != old:
        raise AxisError(f"slide: the operand already has an axis {new!r}")
    if tap is None and stencil.taps != 1:
        raise AxisError(f"slide: {stencil.taps} taps need an axis")
    taps = frozenset() if tap is None else frozenset({tap})
    return intern("slide", (x,), (old, new, tap, stencil, back), (x.axes - {old}) | {new} | taps, x.kind)


def join(x: Node, axes: Sequence[Axis], new: Axis) -> Node:
    """`x` with several axes made one, the last of them running fastest. `x` may lack some of them."""
    if not x.axes & set(axes):
        raise AxisError(f"join: the operand has none of {_names(axes)}")
    return intern("join", (x,), (tuple(axes), new), (x.axes - set(axes)) | {new}, x.kind)


def split(x: Node, axis: Axis, pieces: Sequence[Axis]) -> Node:
    """`x` with one axis made several, the last of them running fastest: the inverse of `join`."""
    if axis not in x.axes:
        raise AxisError(f"split: no axis {axis!r}; the operand has {_names(x.axes)}")
    return intern("split", (x,), (axis, tuple(pieces)), (x.axes - {axis}) | set(pieces), x.kind)


def along(op: str, x: Node, axis: Axis, *attrs: Any) -> Node:
    """An operation along one axis that keeps it: `flip`, `cumsum` or `argsort`."""
    if axis not in x.axes:
        raise AxisError(f"{op}: no axis {axis!r}; the operand has {_names(x.axes)}")
    if op == "cumsum":
        x = as_kind(x, Kind.FLOAT)
    return intern(op, (x,), (axis, *attrs), x.axes, Kind.INDEX if op == "argsort" else x.kind)


def flip(x: Node, axis: Axis) -> Node:
    """`x` in reverse along `axis`."""
    return along("flip", x, axis)


def cumsum(x: Node, axis: Axis, reverse: bool = False) -> Node:
    """The sums of all entries up to each one along `axis`; of all from each one on, if reversed."""
    return along("cumsum", x, axis, reverse)


def argsort(x: Node, axis: Axis) -> Node:
    """The positions along `axis` in the order of increasing entries; ties stay in order. A permutation along `axis`."""
    return along("argsort", x, axis)


def table(values: Sequence[float | int | bool], order: Sequence[Axis], shape: Sequence[int], kind: Kind) -> Node:
    """An array of numbers that are part of the definition, row by row; it fixes the sizes of its axes."""
    return intern("table", (), (tuple(order), tuple(shape), tuple(values)), frozenset(order), kind)


MATRIX = frozenset({"inverse", "logdet", "detsign", "cholesky", "eigenvalues", "eigenvectors"})
"""Operations on matrices that lie along two axes."""

EIGEN = frozenset({"eigenvalues", "eigenvectors"})
"""Those on symmetric matrices."""


def matrix(op: str, x: Node, row: Axis, column: Axis) -> Node:
    """The inverse of each matrix along two axes, log |det|, the sign of det, or what is read from its lower half.

    That is L with L Lᵀ = x, or the eigenvalues of a symmetric matrix, in increasing order, and its eigenvectors, which
    are columns: both lie along `column`.
    """
    for axis in (row, column):
        x = spread(x, axis)
    axes = x.axes - {"logdet": {row, column}, "detsign": {row, column}, "eigenvalues": {row}}.get(op, set())
    return intern(op, (as_kind(x, Kind.FLOAT),), ((row, column),), axes, Kind.FLOAT)


STRUCTURAL = frozenset({"take", "rename", "window", "slide", "join", "split", "flip", "cumsum", "argsort"})
"""Operations that move entries along axes."""

WHOLE = (STRUCTURAL | MATRIX) - {"take", "rename"}
"""What no loop over entries can do: these operations need their operand as an array."""


def repeat(x: Node, position: Node) -> Node:
    """`x` along one more axis, whose positions are given: the same at each of them."""
    return where(elementwise("ge", position, constant(0, Kind.INDEX)), x, constant(0, x.kind))


def spread(x: Node, axis: Axis) -> Node:
    """`x`, repeated along `axis` where it lacks that."""
    return x if axis in x.axes else repeat(x, iota(axis))


def _rebuild_structural(node: Node, x: Node) -> Node:
    """`window`, `join` … over another operand, which may be constant along axes that the old one had."""
    if node.op == "window":
        old, new, start, trim = node.attrs
        if old in x.axes:
            return window(x, old, new, start, trim)
        if all(n > 0 for _, n in (*start, *trim)):
            return x
        return window(spread(x, old), old, new, start, trim)
    if node.op == "slide":
        return slide(spread(x, node.attrs[0]), *node.attrs)
    if node.op == "join":
        return join(x, *node.attrs) if x.axes & set(node.attrs[0]) else x
    axis = node.attrs[0]
    if axis in x.axes:
        return split(x, *node.attrs) if node.op == "split" else along(node.op, x, *node.attrs)
    if node.op in ("split", "flip"):
        return x
    if node.op == "argsort":
        return iota(axis)
    at = as_kind(iota(axis), Kind.FLOAT)
    return x * (size(axis) - at if node.attrs[1] else at + 1.0)


def rebuild(node: Node, args: Sequence[Node]) -> Node:
    """`node` over other arguments; axes and kinds are worked out again."""
    if len(args) == len(node.args) and all(a is b for a, b in zip(args, node.args, strict=True)):
        return node
    if node.op in REDUCTIONS | INDEX_REDUCTIONS:
        (x,) = args
        present = frozenset(node.attrs[0]) & x.axes
        if len(present) == len(node.attrs[0]):
            return reduction(node.op, x, present)
        if node.op == "sum":
            return total(x, node.attrs[0])
        if node.op in ("max", "min"):  # of equal entries
            return reduction(node.op, x, present) if present else as_kind(x, Kind.FLOAT)
        raise AxisError(f"{node.op}: the new operand lacks {_names(frozenset(node.attrs[0]) - x.axes)}")
    if node.op == "take":
        return take(args[0], args[1], node.attrs[0]) if node.attrs[0] in args[0].axes else args[0]
    if node.op == "rename":
        return rename(args[0], *node.attrs) if node.attrs[0] in args[0].axes else args[0]
    if node.op == "cast":
        return as_kind(args[0], node.kind)
    if node.op in STRUCTURAL:
        return _rebuild_structural(node, args[0])
    if node.op in MATRIX:
        return matrix(node.op, args[0], *node.attrs[0])
    if not args:
        return node
    return elementwise(node.op, *args)


def _names(axes: Iterable[Axis]) -> str:
    return ", ".join(repr(a) for a in sorted(axes)) or "none"


# --------------------------------------------------------------------------------------------- walking


def topological(roots: Iterable[Node], stop: Callable[[Node], bool] = lambda node: False) -> list[Node]:
    """All nodes beneath `roots`, each after its arguments, in a fixed order; none beneath those where it is to stop."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, Iterator[Node]]] = []
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        stack.append((root, iter(() if stop(root) else root.args)))
        while stack:
            node, pending = stack[-1]
            for child in pending:
                if child not in seen:
                    seen.add(child)
                    stack.append((child, iter(() if stop(child) else child.args)))
                    break
            else:
                order.append(node)
                stack.pop()
    return order


def kept_branch(node: Node) -> int:
    """Which branch of a `where` is kept (1 or 2), if the other is 0; 0 if both may count, or it is no `where`."""
    if node.op != "where":
        return 0
    zero = [n.op == "constant" and n.attrs[0] == 0.0 for n in node.args]
    return 1 if zero[2] else 2 if zero[1] else 0


def under(condition: Node, branch: int, node: Node) -> Node:
    """The node as that branch of a `where` whose other is 0."""
    return where(condition, node, 0.0) if branch == 1 else where(condition, 0.0, node)


def transform(roots: Sequence[Node], visit: Callable[[Node, tuple[Node, ...]], Node]) -> list[Node]:
    """Rebuild the graph bottom-up: `visit` gets each node with its new arguments and gives the new node."""
    new: dict[Node, Node] = {}
    for node in topological(roots):
        new[node] = visit(node, tuple(new[a] for a in node.args))
    return [new[r] for r in roots]


def substitute(roots: Sequence[Node], replacement: Mapping[Node, Node]) -> list[Node]:
    """The graphs with some nodes replaced, and all above them rebuilt."""
    return transform(roots, lambda node, args: replacement[node] if node in replacement else rebuild(node, args))


def split_axis(roots: Sequence[Node], axis: Axis, pieces: Sequence[Axis]) -> list[Node]:
    """The graphs with a starred axis replaced by the axes that it stands for."""

    def visit(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op == "input" and axis in node.axes:
            return input_(node.attrs[0], (node.axes - {axis}) | set(pieces), node.kind)
        if node.op == "size" and node.attrs[0] == axis:
            return sizes(pieces)
        if node.op in REDUCTIONS and axis in node.attrs[0]:
            wanted = (frozenset(node.attrs[0]) - {axis}) | set(pieces)
            return reduction(node.op, args[0], wanted) if wanted else args[0]
        if node.op == "rename" and node.attrs[0] == axis:
            raise AxisError(f"rename: the starred axis {axis!r} cannot be split once it was renamed")
        return rebuild(node, args)

    return transform(roots, visit)


def depends_on(roots: Iterable[Node], leaves: Iterable[Node]) -> set[Node]:
    """The nodes beneath `roots` (themselves included) that lead to one of `leaves`."""
    active = set(leaves)
    for node in topological(roots):
        if any(a in active for a in node.args):
            active.add(node)
    return active


# --------------------------------------------------------------------------------------------- programs


@dataclass(frozen=True)
class Port:
    """A node at the border of a program, with the order of its axes in memory."""

    node: Node
    order: tuple[Axis, ...]

    def __post_init__(self) -> None:
        if frozenset(self.order) != self.node.axes and not self.node.axes <= frozenset(self.order):
            raise AxisError(f"the order {self.order} does not hold the axes {_names(self.node.axes)}")

    @property
    def name(self) -> str:
        """The input's name (inputs only)."""
        return str(self.node.attrs[0])


@dataclass(frozen=True, eq=False)
class Program:
    """Arrays in, arrays out: what a backend compiles. Compared by identity; `compiler` makes each one once.

    An output may lack axes of its order; it is then constant along them, and a backend writes it out in full.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    output_names: tuple[str, ...] = ()
    like: tuple[str | None, ...] = ()
    """The input whose dtype each output takes (a gradient has that of what it belongs to); None: the computing one."""
    nonnegative: frozenset[Node] = frozenset()
    """Inputs without axes that are known to be ≥ 0."""

    @cached_property
    def delicate(self) -> bool:
        """Whether it takes eigenvalues, and is computed in double precision where that can be had.

        They are often those of squares (singular values are), in which single precision keeps half of its digits.
        """
        return any(n.op in EIGEN for n in topological([o.node for o in self.outputs]))

    def input(self, name: str) -> Port:
        """The input called `name`."""
        return next(p for p in self.inputs if p.name == name)
