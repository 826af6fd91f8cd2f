"""A sweep's kernel with all that it is called with; and a small program as one function of Python text.

`Launch` finds what its kernel reads among the values of a program's nodes, makes room for what it stores, and adds up its
totals. A small call would spend more time on that than in its kernels. `straight` therefore writes the launches of a
program, and the numbers between them, as straight lines of text, in which everything but addresses and numbers is
constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lossforge import ir
from lossforge.interpreter import Float64
from lossforge.ir import Axis, Node
from lossforge.runtime.threads import CROSSOVER, run_chunks

COMBINE: Mapping[str, np.ufunc] = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}
"""How results of a reduction over parts of an axis become the result over the whole."""

_IDENTITY = {"sum": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf}

Values = dict[Node, Any]
"""A number, an address or an array of the caller, or an array with its axes, for each node that has been computed."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a total, which a kernel leaves one by one, and how they are added up."""

    node: Node
    slots: int
    inner: tuple[int, ...]
    """The sizes of the inner axes that the total keeps."""
    grid: tuple[int, ...]
    """The sizes of the outer axes and the number of pieces of a lane, if each task has a slot of its own; else all slots."""
    gone: tuple[int, ...]
    """The dimensions of the grid that are added up."""
    axes: tuple[Axis, ...]
    real: np.dtype[Any]

    def make(self) -> np.ndarray:
        """Room for the parts."""
        count = self.slots * math.prod(self.inner)
        return np.full(count, _IDENTITY[self.node.op]) if self.inner else np.empty(count)

    def combine(self, parts: np.ndarray) -> Any:
        """The total: a number, or an array with its axes."""
        op, identity = COMBINE[self.node.op], _IDENTITY[self.node.op]
        if not self.axes:
            return parts.item(0) if parts.size == 1 else float(op.reduce(parts, initial=identity))
        shaped = parts.reshape(*self.grid, *self.inner)
        return op.reduce(shaped, axis=self.gone, initial=identity).astype(self.real), self.axes


@dataclass(frozen=True)
class Held:
    """An array of a kernel: its strides along the kernel's axes, and what its entries are."""

    node: Node
    strides: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Launch:
    """A kernel and its arguments."""

    compiled: Callable[..., None]
    tasks: int
    head: tuple[int, ...]
    """A task's share, and the sizes of axes: the kernel's first arguments, after the range of tasks."""
    cost: int
    """An estimate in nanoseconds of a serial run."""
    reads: tuple[Held, ...]
    stores: tuple[Held, ...]
    scalars: tuple[Node | float, ...]
    totals: tuple[Parts, ...]
    own: tuple[int, ...]
    """Sizes of scratch memory that each thread has for itself."""
    real: np.dtype[Any]
    direct: frozenset[Node]
    """Stores that the caller may provide memory for."""
    allocate: Mapping[Node, Callable[[], tuple[np.ndarray, Any]]]
    over: Mapping[Node, Node]
    """Results that are written over an array that nobody reads afterwards, and that array."""

    def __call__(self, values: Values) -> None:
        """Run on the values of nodes, and add what comes of it to them."""
        packed: list[Any] = []
        for held in self.reads:
            value = values[held.node]
            packed.append(_flat(value[0] if type(value) is tuple else value, held.dtype))
            packed += held.strides
        for held in self.stores:
            given = values.get(held.node) if held.node in self.direct else None
            made = values[held.node] = self.allocate[held.node]() if given is None else given
            packed.append(_flat(made[0], held.dtype))
            packed += held.strides
        packed += [float(values[n]) if isinstance(n, Node) else n for n in self.scalars]
        parts = [total.make() for total in self.totals]
        packed += parts
        if self.tasks and self.cost < CROSSOVER:
            self._run(0, self.tasks, packed)
        elif self.tasks:  # each thread has scratch memory of its own
            run_chunks(lambda a, b: self._run(a, b, packed), self.tasks, self.head[0], cost=self.cost)
        for node, old in self.over.items():
            values[node] = values.pop(old)
        for total, part in zip(self.totals, parts, strict=True):
            values[total.node] = total.combine(part)

    def _run(self, begin: int, end: int, packed: Sequence[Any]) -> None:
        self.compiled(begin, end, *self.head, *packed, *[np.empty(n, self.real) for n in self.own])

    def lines(self, text: Text) -> bool:
        """Write the launch as text; False if it is none of a small call by addresses."""
        if self.over or self.cost >= CROSSOVER or any(t.axes for t in self.totals):
            return False
        if not all(h.node in text.names for h in (*self.reads, *self.stores)):  # an array on the way
            return False
        arrays = [str(a) for h in (*self.reads, *self.stores) for a in (text.names[h.node], *h.strides)]
        scalars = [f"float({text.names[n]})" if isinstance(n, Node) else text.number(n) for n in self.scalars]
        own = [f"empty({n}, {text.keep(self.real)})" for n in self.own]
        parts = [f"p{len(text.lines)}_{i}" for i in range(len(self.totals))]
        for name, total in zip(parts, self.totals, strict=True):
            text.lines.append(f"{name} = empty({total.slots})")
        if self.tasks:
            head = map(str, (0, self.tasks, *self.head))
            text.lines.append(f"{text.keep(self.compiled)}({', '.join((*head, *arrays, *scalars, *parts, *own))})")
        for name, total in zip(parts, self.totals, strict=True):
            text.let(total.node, f"{name}.item(0)" if total.slots == 1 else f"{text.keep(total.combine)}({name})")
        return True


# ------------------------------------------------------------------------------------- text


@dataclass(eq=False)
class Text:
    """Lines of Python under way, and what nodes are called in them."""

    names: dict[Node, str]
    constants: Mapping[Node, float]
    lines: list[str] = field(default_factory=list)
    namespace: dict[str, Any] = field(
        default_factory=lambda: {
            "div": _divide, "call": call_elementwise, "inf": math.inf, "nan": math.nan, "empty": np.empty,
        }
    )  # fmt: skip

    def keep(self, value: Any) -> str:
        """A name for a value."""
        name = f"k{len(self.namespace)}"
        self.namespace[name] = value
        return name

    def number(self, value: float) -> str:
        """A number that is known."""
        return repr(float(value))

    def let(self, node: Node, text: str) -> str:
        """A line that computes a node, and its name from there on."""
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        self.names[node] = name
        return name

    def scalar(self, node: Node, leaf: Callable[[Node], str | None]) -> str | None:
        """The name or the text of a number; None if it needs a leaf that is not known."""
        if node in self.names:
            return self.names[node]
        if node in self.constants:
            return self.number(self.constants[node])
        if node.op == "constant":  # a whole number or a truth value
            return self.number(node.attrs[0])
        if node.op == "input" or node.op in ir.REDUCTIONS | ir.WHOLE:
            found = leaf(node)
            return None if found is None else self.let(node, found)
        args = [self.scalar(a, leaf) for a in node.args]
        if None in args:
            return None
        pattern = _QUICK.get(node.op)
        return self.let(node, pattern.format(*args) if pattern else f"call({node.op!r}, {', '.join(map(str, args))})")

    def function(self, name: str, arguments: Sequence[str], returns: str) -> Callable[..., Any]:
        """The lines as a function."""
        return function_of_lines(name, arguments, [*self.lines, f"return {returns}"], self.namespace)


def function_of_lines(
    name: str, arguments: Sequence[str], lines: Sequence[str], namespace: dict[str, Any]
) -> Callable[..., Any]:
    """The function whose body are some lines of our own, which name values of a namespace."""
    exec(f"def {name}({', '.join(arguments)}):\n" + "".join(f"    {line}\n" for line in lines), namespace)
    found: Callable[..., Any] = namespace[name]
    return found


def numbers(nodes: Sequence[Node], constants: Mapping[Node, float]) -> Callable[[Values], None]:
    """Numbers as one function of the values of nodes: a call per operation would cost more than a small kernel."""
    text = Text({}, constants)
    for node in nodes:
        if node not in constants:
            name = text.scalar(node, lambda leaf: f"values[{text.keep(leaf)}]")
            text.lines.append(f"values[{text.keep(node)}] = {name}")
    return text.function("step", ["values"], "None")


def straight(
    steps: Sequence[Launch | Sequence[Node]],
    inputs: Sequence[Node],
    stores: Sequence[Node],
    results: Sequence[Node],
    constants: Mapping[Node, float],
) -> Callable[..., tuple[float, ...]] | None:
    """A small program as one function: addresses and numbers of inputs, addresses of stores → results that are numbers.

    Args:
        steps: launches, and the nodes of numbers between them.
        inputs: an address or a number for each.
        stores: an address for each.
        results: nodes of numbers.
        constants: numbers that are known.

    Returns:
        None if a step is anything else than a serial kernel on the caller's memory, or numbers.
    """
    arguments = [f"a{i}" for i in range(len(inputs) + len(stores))]
    text = Text(dict(zip((*inputs, *stores), arguments, strict=True)), constants)
    for step in steps:
        if isinstance(step, Launch):
            if not step.lines(text):
                return None
        elif any(text.scalar(n, lambda leaf: None) is None for n in step):
            return None
    found = [text.scalar(n, lambda leaf: None) for n in results]
    if None in found:
        return None
    return text.function("run", arguments, f"({', '.join(map(str, found))}{',' if found else ''})")


_QUICK: Mapping[str, str] = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "neg": "(-{0})",
    "div": "div({0}, {1})",
}


def _divide(x: float, y: float) -> float:
    return x / y if y else float(call_elementwise("div", x, y))


def call_elementwise(op: str, *args: float) -> Any:
    """An operation on numbers, as the interpreter has it."""
    return Float64().elementwise(op, *(np.asarray(a, np.float64) for a in args))[()]


def _flat(array: Any, dtype: str) -> np.ndarray | int:
    """A flat view that begins where the array does; its length does not matter to a kernel. An address stays one."""
    if type(array) is int:
        return array
    if dtype == "float16":
        array = array.view(np.uint16)
    elif dtype == "bool":
        array = array.view(np.uint8)
    if array.flags.c_contiguous:
        found: np.ndarray = array.reshape(-1)
        return found
    return array[(slice(0, 1),) * array.ndim].reshape(-1)
