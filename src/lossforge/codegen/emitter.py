"""From a program to source text in an array language.

Inside of the text every value has one dimension for each axis of the program, of size 1 where it does not vary, so
that the framework's broadcasting is broadcasting by axis identity; arrays are brought into that form at the entry and
out of it at the return. A program whose arrays all share one starred axis (an elementwise loss) needs none of it, and
its text works for any rank.

A backend only spells: see `Backend`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lossforge import ir
from lossforge.contractions import factor_sums
from lossforge.errors import UnsupportedError
from lossforge.frontends.signature import python_name
from lossforge.ir import Axis, Kind, Node, Port, Program
from lossforge.simplify import as_softmax, erase_gradient_marks

_LONGEST = 72  # characters of an expression before it gets a name of its own

_INFIX: Mapping[str, tuple[str, int]] = {
    "add": ("+", 10),
    "sub": ("-", 10),
    "mul": ("*", 20),
    "div": ("/", 20),
    "pow": ("**", 40),
    "lt": ("<", 5),
    "le": ("<=", 5),
    "gt": (">", 5),
    "ge": (">=", 5),
    "eq": ("==", 5),
    "ne": ("!=", 5),
    "and": ("&", 8),
    "or": ("|", 7),
}
_ATOM = 100


@dataclass(frozen=True)
class Backend:
    """How an array language spells the operations. Subclasses fill in what differs."""

    name: str
    imports: tuple[str, ...]
    calls: Mapping[str, str]
    """Operations that are function calls: the template with the arguments as {0}, {1} …"""
    helpers: Mapping[str, str] = field(default_factory=dict)
    """Source text of functions that a template may use, by name."""
    most_dimensions: int | None = None
    """Of an array, as far as all operations take it."""
    linalg: ClassVar[str] = ""
    """The module of linear algebra, whose functions of matrices all go by the names that NumPy gave them."""

    def scalar(self, text: str, like: str) -> str:
        """A Python number as a scalar of the array `like`'s dtype."""
        raise NotImplementedError

    def parameter(self, name: str, like: str) -> str:
        """A parameter, a Python number or one of the framework's scalars, as a scalar of the array `like`'s dtype."""
        return self.scalar(name, like)

    def truth(self, text: str, like: str) -> str:
        """A Python truth value as the condition of a `where`."""
        return text

    def cast(self, text: str, like: str) -> str:
        """Truth values or integers as floats of the dtype of `like`."""
        raise NotImplementedError

    def to_index(self, text: str) -> str:
        """Numbers as integers."""
        raise NotImplementedError

    def shape(self, array: str) -> str:
        """The shape as a tuple."""
        return f"{array}.shape"

    def count(self, array: str) -> str:
        """The number of entries of an array, as a number."""
        raise NotImplementedError

    def product(self, shape: str) -> str:
        """The product of a tuple of sizes."""
        raise NotImplementedError

    def size_as_float(self, text: str, like: str) -> str:
        """A size as a float."""
        return text

    def reshape(self, text: str, shape: str) -> str:
        """The array in another shape."""
        raise NotImplementedError

    def transpose(self, text: str, order: Sequence[int]) -> str:
        """The array with its dimensions in another order."""
        raise NotImplementedError

    def broadcast(self, text: str, shape: str) -> str:
        """The array repeated to a larger shape."""
        raise NotImplementedError

    def swap(self, text: str, i: int, j: int, rank: int) -> str:
        """The array with two dimensions exchanged."""
        order = list(range(rank))
        order[i], order[j] = j, i
        return self.transpose(text, order)

    def reduce(self, op: str, text: str, axes: Sequence[int] | None) -> str:
        """A reduction that keeps the reduced dimensions with size 1; over everything, to a scalar, for None."""
        raise NotImplementedError

    def softmax(self, op: str, text: str, axis: int) -> str:
        """A softmax along one axis, or its logarithm ("log_softmax")."""
        raise NotImplementedError

    def iota(self, size: str, shape: str, like: str) -> str:
        """0, 1, 2 … in a shape."""
        raise NotImplementedError

    def take(self, text: str, index: str, axis: int, size: str) -> str:
        """Entries at an index along a dimension; the other dimensions broadcast. NaN where the index is outside."""
        raise NotImplementedError

    def einsum(self, spec: str, x: str, y: str) -> str:
        """A contraction of two arrays."""
        raise NotImplementedError

    def cut(self, text: str, axis: int, start: str, stop: str) -> str:
        """The entries start … stop − 1 along a dimension."""
        return f"{text}[{':, ' * axis}{start}:{stop}]"

    def pad(self, text: str, axis: int, before: str, after: str, rank: int) -> str:
        """The array with zeros before and after along a dimension."""
        raise UnsupportedError(f"{self.name} text does not spell pad")

    def concatenate(self, texts: str, axis: int) -> str:
        """A list of arrays, one after the other along a dimension."""
        raise UnsupportedError(f"{self.name} text does not spell concatenate")

    def flip(self, text: str, axis: int) -> str:
        """The array in reverse along a dimension."""
        return f"{text}[{':, ' * axis}::-1]"

    def cumsum(self, text: str, axis: int) -> str:
        """Sums of all entries up to each one along a dimension."""
        raise UnsupportedError(f"{self.name} text does not spell cumsum")

    def argsort(self, text: str, axis: int) -> str:
        """Positions in increasing order of the entries along a dimension; ties stay in order."""
        raise UnsupportedError(f"{self.name} text does not spell argsort")

    def matrix(self, op: str, text: str) -> str:
        """An operation of `ir.MATRIX` on the matrices of the last two dimensions, which stay."""
        if not self.linalg:
            raise UnsupportedError(f"{self.name} text does not spell {op}")
        if op in ("inverse", "cholesky"):
            return f"{self.linalg}.{'inv' if op == 'inverse' else op}({text})"
        if op == "eigenvalues":
            return f"{self.linalg}.eigvalsh({text})[..., None, :]"
        if op == "eigenvectors":
            return f"{self.linalg}.eigh({text})[1]"
        return f"{self.linalg}.slogdet({text})[{int(op == 'logdet')}][..., None, None]"

    def array(self, values: str, kind: Kind, like: str) -> str:
        """An array of a nested list; floats have the dtype of `like`."""
        raise UnsupportedError(f"{self.name} text does not spell an array of constants")


@dataclass(frozen=True)
class Text:
    """An emitted function."""

    source: str
    helpers: tuple[str, ...]


def emit(
    program: Program,
    backend: Backend,
    function: str = "program",
    names: Mapping[Node, str] | None = None,
    docstring: str = "",
    header: Callable[[list[str]], list[str]] | None = None,
) -> Text:
    """The program as the text of one function.

    Args:
        program: what to compute. Float arguments are expected in the precision to compute in.
        backend: the spelling.
        function: the function's name.
        names: the user's own names for intermediate values.
        docstring: put under the signature.
        header: makes the function's first lines from the names of its arguments, for conversions.
    """
    return _Emitter(program, backend, names or {}).run(function, docstring, header)


class _Emitter:
    def __init__(self, program: Program, backend: Backend, names: Mapping[Node, str]) -> None:
        self.backend = backend
        self.program = program
        nodes = _with_softmax(factor_sums(erase_gradient_marks([*(o.node for o in program.outputs), *names])))
        self.outputs, kept = nodes[: len(program.outputs)], nodes[len(program.outputs) :]
        self.wanted = dict(zip(kept, names.values(), strict=True))
        self.nodes = ir.topological(self.outputs)
        self.copies = {n.attrs[1]: n.attrs[0] for n in self.nodes if n.op == "rename"}
        by_name = {a: ir.original(a) for n in self.nodes for a in n.axes if ir.original(a) != a}
        self.same_size: dict[Axis, list[Axis]] = {}
        for pair in (*(n.attrs for n in self.nodes if n.op == "rename"), *by_name.items()):
            for a, b in (pair, pair[::-1]):
                self.same_size.setdefault(a, []).append(b)
        self.copies |= by_name
        self.axes = self._global_order()
        self.place = self._places()
        self.rank = max(self.place.values(), default=-1) + 1
        limit = backend.most_dimensions
        if limit is not None and self.rank > limit:
            raise UnsupportedError(
                f"this loss needs arrays of {self.rank} dimensions, of which {backend.name}'s operations take {limit} at most"
            )
        self.flat = self._is_flat()
        self.uses = Counter(a for n in self.nodes for a in n.args)
        self.uses.update(self.outputs)
        self.filters = self._filters()
        self.lines: list[str] = []
        self.expr: dict[Node, tuple[str, int, bool]] = {}
        self.taken: set[str] = {
            "np",
            "torch",
            "tf",
            "jnp",
            "jax",
            "math",
            "float",
            "int",
            "sum",
            "range",
            *backend.helpers,
        }
        self.inputs: dict[str, str] = {p.name: self._fresh(python_name(p.name)) for p in program.inputs}
        self.like = self._reference()
        self.size_names: dict[Axis, str] = {}

    # ------------------------------------------------------------------ layout

    def _global_order(self) -> list[Axis]:
        order = dict.fromkeys(a for p in self.program.inputs for a in p.order)
        for n in self.nodes:
            order.update(dict.fromkeys(sorted(n.axes)))
        return list(order)

    def _is_flat(self) -> bool:
        ports = (*self.program.inputs, *self.program.outputs)
        bundles = {p.order for p in ports if p.order}
        if any(n.op in ir.STRUCTURAL | ir.MATRIX and n.op not in ("take", "rename") for n in self.nodes):
            return False
        only_one = len(self.axes) <= 1 and all(len(b) == 1 and b[0].startswith("*") for b in bundles)
        return only_one and not self.copies

    def _reference(self) -> str:
        floats = [p for p in self.program.inputs if p.node.kind is Kind.FLOAT]
        arrays = [p for p in floats if p.order] or floats
        return self.inputs[arrays[0].name] if arrays else "None"

    def _places(self) -> dict[Axis, int]:
        """The dimension of each axis. Axes that no array has share one where they never meet in a value."""
        ports = (*self.program.inputs, *self.program.outputs)
        groups: list[frozenset[Axis]] = [frozenset(p.order) for p in ports]
        for n in self.nodes:
            several = n.attrs[:2] if n.op in ("join", "split") else ()
            more = {a for part in several for a in ([part] if isinstance(part, str) else part)}
            together = [a.axes for a in n.args] if n.op in ("take", "join", "split") else []
            groups.append(n.axes.union(more, *together))
        apart: dict[Axis, set[Axis]] = {a: set() for a in self.axes}
        for group in groups:
            for a in group:
                apart[a] |= group
        own = {a for p in ports for a in p.order} | set(self.copies)
        found: dict[Axis, int] = {}
        count = 0
        for axis in self.axes:
            shared = {found[a] for a in apart[axis] if a in found}
            free = [] if axis in own else [i for i in range(count) if i not in shared]
            found[axis] = free[0] if free else count
            count = max(count, found[axis] + 1)
        return found

    def _place(self, axis: Axis) -> int:
        return self.place[axis]

    def _full(self, axes: Collection[Axis]) -> str:
        """A shape of full rank, of size 1 where none of `axes` lies."""
        shape = ["1"] * self.rank
        for a in axes:
            shape[self._place(a)] = self._size_of(a)
        return "(" + ", ".join(shape) + ("," if len(shape) == 1 else "") + ")"

    # ------------------------------------------------------------------ text

    def run(self, function: str, docstring: str, header: Callable[[list[str]], list[str]] | None) -> Text:
        arguments = list(self.inputs.values())
        if header is not None:
            self.lines += header(arguments)
        used = set(self.nodes)
        for port in self.program.inputs:
            if not port.order and port.node in used and port.node.kind is Kind.FLOAT:
                name = self.inputs[port.name]
                self.lines.append(f"{name} = {self.backend.parameter(name, self.like)}")
        self._enter(used)
        self._derived_sizes()
        for node in self.nodes:
            self._define(node)
        results = [self._leave(n, p) for n, p in zip(self.outputs, self.program.outputs, strict=True)]
        body = [f'"""{docstring}"""'] if docstring else []
        body += _used([*self.lines, "return " + ", ".join(results)])
        text = f"def {function}({', '.join(arguments)}):\n" + "".join(
            "    " + line.replace("\n", "\n    ") + "\n" for line in body
        )
        return Text(text, called_helpers(self.backend.helpers, text))

    def _enter(self, used: set[Node]) -> None:
        """Sizes, and inputs brought into full rank."""
        seen: set[Axis] = set()
        needed = self._needed_sizes()
        for port in self.program.inputs:
            name = self.inputs[port.name]
            for axis, part in self._parts(port.order):
                if axis in seen:
                    continue
                seen.add(axis)
                if self.flat:
                    if axis in needed:
                        self._size(axis, self.backend.count(name))
                elif axis.startswith("*"):
                    shape = self._fresh(python_name(axis) + "_shape")
                    self.size_names[axis + " shape"] = shape
                    self.lines.append(f"{shape} = {self.backend.shape(name)}[{part}]")
                    self._size(axis, self.backend.product(shape))
                else:
                    self._size(axis, f"{self.backend.shape(name)}[{part}]")
        for port in self.program.inputs:
            name = self.inputs[port.name]
            if port.node not in used:
                continue
            text = name
            if not self.flat and (port.order or port.node.kind is Kind.INDEX):
                text = self._to_full_rank(name, port.order)
                if text != name:
                    self.lines.append(f"{name} = {text}")
            self.expr[port.node] = (name, _ATOM, False)

    def _derived_sizes(self) -> None:
        """The sizes of axes that no input has: of a piece of another axis, of several in one, of a constant."""
        pending = [
            n
            for n in self.nodes
            if n.op in ("window", "slide", "join", "table") or (n.op == "iota" and len(n.attrs) > 1)
        ]
        while pending:
            later = []
            for node in pending:
                try:
                    for axis, text in self._defined_sizes(node):
                        if axis not in self.size_names:
                            self._size(axis, text)
                except KeyError:
                    later.append(node)
            if len(later) == len(pending):
                return
            pending = later

    def _defined_sizes(self, node: Node) -> list[tuple[Axis, str]]:
        if node.op == "iota":
            axis, length = node.attrs
            if isinstance(length, ir.Coarse):
                return [(axis, self._coarse(length.axis, length.cut, length.step))]
            return [(axis, str(length))]
        if node.op == "slide":
            old, new, tap, stencil, back = node.attrs
            coarse, fine = (old, new) if back else (new, old)
            taps = [] if tap is None else [(tap, str(stencil.taps))]
            if self._root(coarse) in self.size_names:
                return taps
            if stencil.count is not None:
                return [*taps, (coarse, str(stencil.count))]
            return [*taps, (coarse, self._coarse(fine, stencil.cut, stencil.step))]
        if node.op == "table":
            return [(a, str(n)) for a, n in zip(node.attrs[0], node.attrs[1], strict=True)]
        if node.op == "join":
            pieces, new = node.attrs
            return [(new, " * ".join(self._size_of(a) for a in pieces))]
        old, new, start, trim = node.attrs
        back = self._root(old) not in self.size_names
        text = self._size_of(new if back else old)
        for axis, n in (*start, *trim):
            n = -n if back else n
            size = "" if not axis else f" * {self._size_of(axis)}" if abs(n) != 1 else self._size_of(axis)
            text += f" {'-' if n > 0 else '+'} " + (f"{abs(n)}{size}" if not axis or abs(n) != 1 else size)
        return [(old if back else new, text)]

    def _coarse(self, axis: Axis, cut: int, step: int) -> str:
        size = self._size_of(axis)
        if step == 1:
            return f"{size} {'-' if cut > 1 else '+'} {abs(cut - 1)}" if cut != 1 else size
        less = f"({size} {'-' if cut > 0 else '+'} {abs(cut)})" if cut else size
        return f"{less} // {step} + 1"

    def _extent(self, part: ir.Extent) -> str:
        """The absolute value of an extent, all of whose terms have one sign."""
        terms = []
        for axis, n in part:
            number = str(abs(n))
            terms.append(
                number if not axis else self._size_of(axis) if abs(n) == 1 else f"{number} * {self._size_of(axis)}"
            )
        return " + ".join(terms)

    def _needed_sizes(self) -> set[Axis]:
        wanted = {n.attrs[0] for n in self.nodes if n.op in ("size", "iota", "take", "window", "slide", "split")}
        wanted |= {a for n in self.nodes if n.op == "join" for a in n.attrs[0]}
        return wanted | {self.copies.get(a, a) for a in wanted}

    @staticmethod
    def _parts(order: Sequence[Axis]) -> list[tuple[Axis, str]]:
        """Each axis of an array with the subscript of its shape."""
        star = next((i for i, a in enumerate(order) if a.startswith("*")), None)
        result = []
        for i, axis in enumerate(order):
            if star is None or i < star:
                result.append((axis, str(i)))
            elif i == star:
                after = len(order) - 1 - i
                result.append((axis, f"{i}:{-after if after else ''}"))
            else:
                result.append((axis, str(i - len(order))))
        return result

    def _size(self, axis: Axis, text: str) -> None:
        name = self._fresh(python_name(axis) if not self.flat else "count")
        self.size_names[axis] = name
        self.lines.append(f"{name} = {text}")

    def _root(self, axis: Axis) -> Axis:
        """An axis of the same size whose size is known."""
        reached = [axis]
        for known in reached:
            if known in self.size_names:
                return known
            reached += [a for a in self.same_size.get(known, ()) if a not in reached]
        return axis

    def _size_of(self, axis: Axis) -> str:
        return self.size_names[self._root(axis)]

    def _shape(self, axes: Sequence[Axis], *, split: bool) -> str:
        """A tuple of sizes; `split` gives a starred axis all its dimensions."""
        parts = []
        for a in axes:
            source = self._root(a)
            if split and source.startswith("*"):
                parts.append("*" + self.size_names[source + " shape"])
            else:
                parts.append(self.size_names[source])
        return "(" + ", ".join(parts) + ("," if len(parts) == 1 else "") + ")"

    def _to_full_rank(self, name: str, order: Sequence[Axis]) -> str:
        ordered = sorted(order, key=self._place)
        text = name
        if list(order) != ordered:
            if any(a.startswith("*") for a in order):
                text = self.backend.reshape(text, self._shape(order, split=False))
            text = self._transposed(text, [list(order).index(a) for a in ordered])
        if len(ordered) == self.rank and not any(a.startswith("*") for a in order):
            return text
        return self.backend.reshape(text, self._full(order))

    def _leave(self, node: Node, port: Port) -> str:
        text, level, number = self.expr[node]
        if number:
            text = self.backend.scalar(text, self.like)
            level = _ATOM
        if not port.order:
            return text if self.flat or not self.axes else self.backend.reshape(self._paren(text, level), "()")
        if self.flat:
            if node.axes:
                return text
            source = next(p for p in self.program.inputs if p.order == port.order)
            return self.backend.broadcast(self._paren(text, level), self.backend.shape(self.inputs[source.name]))
        text = self._paren(text, level)
        ordered = sorted(port.order, key=self._place)
        if node.axes != frozenset(port.order):
            if not node.axes and number:
                text = self.backend.reshape(text, "(" + "1, " * self.rank + ")")
            text = self.backend.broadcast(text, self._full(port.order))
        if list(port.order) != ordered:
            if len(ordered) < self.rank:
                text = self.backend.reshape(text, self._shape(ordered, split=False))
            text = self._transposed(text, [ordered.index(a) for a in port.order])
        elif len(ordered) == self.rank and not any(a.startswith("*") for a in port.order):
            return text
        return self.backend.reshape(text, self._shape(port.order, split=True))

    def _transposed(self, text: str, order: Sequence[int]) -> str:
        """The array with its dimensions in an order, which may be the one that they have."""
        return text if list(order) == sorted(order) else self.backend.transpose(text, order)

    def _paren(self, text: str, level: int, needed: int = _ATOM) -> str:
        return text if level >= needed else f"({text})"

    def _fresh(self, name: str) -> str:
        candidate, n = name, 2
        while candidate in self.taken:
            candidate, n = f"{name}_{n}", n + 1
        self.taken.add(candidate)
        return candidate

    # ------------------------------------------------------------------ nodes

    def _define(self, node: Node) -> None:
        if node in self.expr:
            return
        if node in self.inside or (node.op == "mul" and self._contracted(node)):
            self.expr[node] = ("", 0, False)  # spelled by the sum above it
            return
        text, level, number = self._spell(node)
        leaf = node.op in ("constant", "input") or text.isidentifier()
        name = self.wanted.get(node)
        if not leaf and (name or self.uses[node] > 1 or len(text) > _LONGEST or node.op in ir.REDUCTIONS):
            variable = self._fresh(python_name(name) if name else self._description(node))
            self.lines.append(f"{variable} = {text}")
            text, level = variable, _ATOM
        self.expr[node] = (text, level, number)

    def _description(self, node: Node) -> str:
        """A name for a value that has none: what it is, if that is short."""
        if node.op in ir.REDUCTIONS and self.expr[node.args[0]][0].isidentifier():
            return f"{node.op}_{self.expr[node.args[0]][0]}"
        return "t"

    def _contracted(self, product: Node) -> bool:
        """Whether a product is only ever summed, and larger than both its factors: a matrix product."""
        users = [n for n in self.nodes if product in n.args]
        return (
            self.uses[product] == len(users) == 1
            and users[0].op == "sum"
            and all(a.axes < product.axes for a in product.args)
            and all(frozenset(users[0].attrs[0]) <= a.axes for a in product.args)
            and product not in self.outputs
        )

    def _filters(self) -> dict[Node, tuple[Node, tuple[Node, ...]]]:
        """For each sum over the taps of sliding windows, the windows and their weights: no window is laid out."""
        found: dict[Node, tuple[Node, tuple[Node, ...]]] = {}
        self.inside: set[Node] = set()
        for node in self.nodes:
            if node.op != "sum":
                continue
            factors, products = [node.args[0]], []
            while unfolded := [f for f in factors if f.op == "mul" and self.uses[f] == 1]:
                factors = [f for f in factors if f is not unfolded[0]] + list(unfolded[0].args)
                products.append(unfolded[0])
            slid = [f for f in factors if f.op == "slide" and f.attrs[2] in node.attrs[0] and self.uses[f] == 1]
            if slid:
                found[node] = slid[0], tuple(f for f in factors if f is not slid[0])
                self.inside |= {slid[0], *products}
        return found

    def _windows(self, node: Node, tap: str) -> str:
        """One tap of sliding windows."""
        old, new, axis, stencil, back = node.attrs
        text, at = self._operand(node.args[0]), self._place(old)
        if axis in node.args[0].axes:
            text = self.backend.cut(text, self._place(axis), tap, f"{tap} + 1")
        if back and stencil.step > 1:
            text = f"stretched({text}, {at}, {stencil.step})"
        sign = -1 if back else 1
        terms = [] if axis is None else [(sign * stencil.dilation, tap)]
        terms = [*terms, (sign * stencil.start, "")] if stencil.start or not terms else terms
        start = ""
        for n, name in terms:
            size = name if name and abs(n) == 1 else f"{abs(n)} * {name}" if name else str(abs(n))
            start += (f" {'-' if n < 0 else '+'} " if start else "-" if n < 0 else "") + size
        text = f"strided({text}, {at}, {start}, {1 if back else stencil.step}, {self._size_of(new)})"
        return text if old == new else self.backend.swap(text, at, self._place(new), self.rank)

    def _filtered(self, node: Node) -> str:
        """The sum of windows times weights, tap by tap."""
        slid, weights = self.filters[node]
        axis, stencil = slid.attrs[2], slid.attrs[3]
        tap = self._fresh("tap")
        text = self._windows(slid, tap)
        for weight in weights:
            factor = self._paren(*self.expr[weight][:2], 21)
            text += " * " + (
                self.backend.cut(factor, self._place(axis), tap, f"{tap} + 1") if axis in weight.axes else factor
            )
        return f"sum({text} for {tap} in range({stencil.taps}))"

    def _spell(self, node: Node) -> tuple[str, int, bool]:
        b = self.backend
        if node.op == "constant":
            value = node.attrs[0]
            text = f'float("{value}")' if value != value or value in (float("inf"), float("-inf")) else repr(value)
            return text, (_ATOM if not text.startswith("-") else 30), True
        if node.op == "size":
            return b.size_as_float(self._size_of(node.attrs[0]), self.like), _ATOM, True
        if node.op == "iota":
            axis = node.attrs[0]
            return b.iota(self._size_of(axis), self._full([axis]), self.like), _ATOM, False
        if node.op == "cast":
            inner, level, number = self.expr[node.args[0]]
            if node.kind is Kind.INDEX and number:  # whole already; `_operand` gives it its type
                return inner, level, True
            if node.kind is Kind.INDEX:
                return b.to_index(self._paren(inner, level)), _ATOM, False
            return (f"float({inner})" if number else b.cast(self._paren(inner, level), self.like)), _ATOM, number
        if node.op == "rename":
            inner, level, _ = self.expr[node.args[0]]
            i, j = (self._place(a) for a in node.attrs)
            return b.swap(self._paren(inner, level), i, j, self.rank), _ATOM, False
        if node.op == "take":
            x, index = (self.expr[a][0] if not self.expr[a][2] else self._operand(a) for a in node.args)
            axis = node.attrs[0]
            if not node.args[1].axes:
                index = b.reshape(index, "(" + "1, " * self.rank + ")")
            return b.take(x, index, self._place(axis), self._size_of(axis)), _ATOM, False
        if node.op in ir.REDUCTIONS | ir.INDEX_REDUCTIONS:
            return self._reduction(node), _ATOM, False
        if node.op in ("softmax", "log_softmax"):
            ((axis,),) = node.attrs
            return b.softmax(node.op, self._operand(node.args[0]), self._place(axis)), _ATOM, False
        if node.op in ir.STRUCTURAL:
            return self._structural(node), _ATOM, False
        if node.op in ir.MATRIX:
            return self._matrix(node), _ATOM, False
        if node.op == "table":
            return self._table(node), _ATOM, False
        return self._elementwise(node)

    def _matrix(self, node: Node) -> str:
        """An operation on matrices, which are moved to the end, and back."""
        at = [self._place(a) for a in node.attrs[0]]
        order = [*(i for i in range(self.rank) if i not in at), *at]
        text = self._transposed(self._operand(node.args[0]), order)
        return self._transposed(self.backend.matrix(node.op, text), [order.index(i) for i in range(self.rank)])

    def _table(self, node: Node) -> str:
        order, shape, values = node.attrs
        text = self.backend.array(f"[{', '.join(map(repr, values))}]", node.kind, self.like)
        ordered = sorted(order, key=self._place)
        text = self.backend.reshape(text, f"({', '.join(map(str, shape))},)")
        if list(order) != ordered:
            text = self._transposed(text, [order.index(a) for a in ordered])
        return self.backend.reshape(text, self._full(order))

    def _structural(self, node: Node) -> str:
        """`window`, `slide`, `join`, `split`, `flip`, `cumsum` and `argsort`."""
        if node.op == "slide":
            tap = node.attrs[2]
            if tap is None:
                return self._windows(node, "0")
            name = self._fresh("tap")
            every = f"[{self._windows(node, name)} for {name} in range({node.attrs[3].taps})]"
            return self.backend.concatenate(every, self._place(tap))
        b, rank = self.backend, self.rank
        text = self._operand(node.args[0])
        if node.op in ("flip", "cumsum", "argsort"):
            at = self._place(node.attrs[0])
            if node.op == "cumsum" and node.attrs[1]:
                return b.flip(b.cumsum(b.flip(text, at), at), at)
            return str(getattr(b, node.op)(text, at))
        if node.op == "window":
            old, new, start, trim = node.attrs
            at, size = self._place(old), self._size_of(old)
            cut = [bool(p) and p[0][1] > 0 for p in (start, trim)]
            if any(cut):
                first = self._extent(start) if cut[0] else "0"
                text = b.cut(text, at, first, f"{size} - {_tight(self._extent(trim))}" if cut[1] else size)
            if (start and not cut[0]) or (trim and not cut[1]):
                ends = ["0" if c or not p else self._extent(p) for p, c in zip((start, trim), cut, strict=True)]
                text = b.pad(text, at, ends[0], ends[1], rank)
            return text if at == self._place(new) else b.swap(text, at, self._place(new), rank)
        # Several axes and one: moved to the end, reshaped, moved back.
        axes, one = node.attrs if node.op == "join" else node.attrs[::-1]
        many, single = [self._place(a) for a in axes], self._place(one)
        rest = [i for i in range(rank) if i not in many and i != single]
        present = {self._place(a): self._size_of(a) for a in node.args[0].axes}
        others = [present.get(i, "1") for i in rest]
        sizes = [self._size_of(a) for a in axes]
        if node.op == "join":
            if missing := [a for a in axes if a not in node.args[0].axes]:
                text = b.broadcast(text, self._full(node.args[0].axes | set(missing)))
            text = self._transposed(text, [*rest, single, *many])
            shape = [*others, self._size_of(one), *("1" for _ in many)]
        else:
            text = self._transposed(text, [*rest, single, *many])
            shape = [*others, "1", *sizes]
        text = b.reshape(text, f"({', '.join(shape)},)")
        places = [*rest, single, *many]
        return self._transposed(text, [places.index(i) for i in range(rank)])

    def _operand(self, node: Node) -> str:
        text, level, number = self.expr[node]
        if not number or node.kind is Kind.BOOL:
            return self._paren(text, level)
        scalar = self.backend.scalar(text, self.like)
        return self.backend.to_index(scalar) if node.kind is Kind.INDEX else scalar

    def _reduction(self, node: Node) -> str:
        (x,) = node.args
        gone, text = frozenset(node.attrs[0]), self.expr[x][0]
        if node in self.filters:
            gone, text = gone - {self.filters[node][0].attrs[2]}, self._filtered(node)
            if not gone:
                return text
        elif x.op == "mul" and not text:
            return self._contraction(node, x)
        axes = None if self.flat else sorted(self._place(a) for a in gone)
        return self.backend.reduce(node.op, text, axes)

    def _contraction(self, node: Node, product: Node) -> str:
        ordered = sorted(product.axes, key=self._place)
        letters = dict(zip(ordered, "abcdefghijklmnopqrstuvwxyz", strict=False))
        operands, specs = [], []
        for factor in product.args:
            axes = sorted(factor.axes, key=self._place)
            operands.append(self.backend.reshape(self._operand(factor), self._shape(axes, split=False)))
            specs.append("".join(letters[a] for a in axes))
        result = sorted(node.axes, key=self._place)
        out = "".join(letters[a] for a in result)
        text = self.backend.einsum(f"{specs[0]},{specs[1]}->{out}", *operands)
        return self.backend.reshape(text, self._full(node.axes))

    def _elementwise(self, node: Node) -> tuple[str, int, bool]:
        parts = [self.expr[a] for a in node.args]
        number = all(p[2] for p in parts)
        if node.op in _INFIX and node.op not in self.backend.calls:
            symbol, level = _INFIX[node.op]
            if self.backend.name == "tensorflow" and not number:  # compares arrays of one dtype only
                parts = [
                    (self._operand(a), _ATOM, False) if p[2] and a.kind is Kind.INDEX and a.op != "constant" else p
                    for a, p in zip(node.args, parts, strict=True)
                ]
            left = self._paren(parts[0][0], parts[0][1], level + (node.op == "pow" or level == 5))
            right = self._paren(parts[1][0], parts[1][1], level + 1)
            return f"{left} {symbol} {right}", level, number
        if node.op == "neg":
            return f"-{self._paren(parts[0][0], parts[0][1], 30)}", 25, number
        if node.op == "not" and number:
            return f"(not {parts[0][0]})", _ATOM, True
        if node.op == "not" and "not" not in self.backend.calls:
            return f"~{self._paren(parts[0][0], parts[0][1])}", 35, number
        if node.op == "minimum" and "clip" in self.backend.calls and (limits := self._limits(node)):
            parts = [self.expr[a] for a in limits]
            return self._function("clip", parts), _ATOM, False
        texts = [p[0] for p in parts]
        if node.op == "polygamma":
            return self.backend.calls["polygamma"].format(texts[0], self._operand(node.args[1])), _ATOM, False
        if node.op == "where":
            return self._where(node, parts), _ATOM, False
        return self._function(node.op, parts), _ATOM, False

    def _function(self, op: str, parts: Sequence[tuple[str, int, bool]]) -> str:
        """A call of one of the backend's functions."""
        texts = [p[0] for p in parts]
        if self.backend.name in ("torch", "tensorflow"):  # their functions want arrays
            texts = [self.backend.scalar(t, self.like) if p[2] else t for t, p in zip(texts, parts, strict=True)]
        elif all(p[2] for p in parts):
            texts[0] = self.backend.scalar(texts[0], self.like)
        return self.backend.calls[op].format(*texts)

    def _limits(self, node: Node) -> tuple[Node, Node, Node] | None:
        """x, low and high, if this is minimum(maximum(x, low), high) and nothing else needs the inner one."""
        for inner, high in (node.args, node.args[::-1]):
            if inner.op == "maximum" and self.uses[inner] == 1 and not self.expr[inner][0].isidentifier():
                x, low = inner.args if len(inner.args[0].axes) >= len(inner.args[1].axes) else inner.args[::-1]
                return x, low, high
        return None

    def _where(self, node: Node, parts: Sequence[tuple[str, int, bool]]) -> str:
        condition, x, y = parts
        if x[2] and y[2]:
            values = [a.attrs[0] if a.op == "constant" else None for a in node.args[1:]]
            if values == [1.0, 0.0] and not condition[2]:
                return self.backend.cast(self._paren(condition[0], condition[1]), self.like)
        texts = [x[0], y[0]]
        if (x[2] and y[2]) or self.backend.name == "tensorflow":  # tf.where takes the dtype of its first branch
            texts = [self._operand(a) if p[2] else p[0] for a, p in zip(node.args[1:], (x, y), strict=True)]
        test = self.backend.truth(condition[0], self.like) if condition[2] else condition[0]
        return self.backend.calls["where"].format(test, *texts)


def _with_softmax(roots: Sequence[Node]) -> list[Node]:
    """Softmaxes along one axis by their names: every library has them, and they keep the digits of large logits."""

    def visit(node: Node, args: tuple[Node, ...]) -> Node:
        made = ir.rebuild(node, args)
        found = as_softmax(made) if made.op in ("exp", "sub") else None
        return made if found is None or len(found.attrs[0]) > 1 or found.attrs[0][0].startswith("*") else found

    return ir.transform(roots, visit)


def _used(lines: Sequence[str]) -> list[str]:
    """The lines without assignments to names that no later line uses."""
    kept: list[str] = []
    names: set[str] = set()
    for line in reversed(lines):
        assigned = re.match(r"(\w+) = ", line)
        if assigned is None or assigned[1] in names:
            kept.append(line)
            names.update(re.findall(r"\w+", line))
    return kept[::-1]


def called_helpers(helpers: Mapping[str, str], text: str) -> tuple[str, ...]:
    """The helpers that a text calls, directly or through others."""
    found: dict[str, None] = {}
    pending = [text]
    while pending:
        calls = set(re.findall(r"(?<![\w.])(\w+)\(", pending.pop()))
        for name in helpers:
            if name in calls and name not in found:
                found[name] = None
                pending.append(helpers[name])
    return tuple(found)


def _tight(text: str) -> str:
    """In parentheses, unless it is a name or a number."""
    return text if text.isidentifier() or text.isdecimal() else f"({text})"


def assemble(backend: Backend, functions: Sequence[Text], title: str = "") -> str:
    """A module's text: imports, the helpers that are used, the functions."""
    helpers = dict.fromkeys(h for f in functions for h in f.helpers)
    pieces = ["\n".join(backend.imports)]
    pieces += [backend.helpers[h].rstrip() for h in helpers]
    pieces += [f.source.rstrip() for f in functions]
    return (title + "\n\n" if title else "") + "\n\n\n".join(pieces) + "\n"


def compile_text(source: str, function: str, label: str) -> Callable[..., Any]:
    """The function of a module text; tracebacks show its lines."""
    import linecache

    filename = f"<lossforge {label} {abs(hash(source)):x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"__name__": filename}
    exec(compile(source, filename, "exec"), namespace)  # our own text, made from a graph
    result: Callable[..., Any] = namespace[function]
    return result
