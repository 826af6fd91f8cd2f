"""Kernels beside operations on whole arrays: slices, padding, sorted orders, running sums, reshapes, inverses, tables.

Against the reference interpreter, value and gradient, as in `tests/test_kernels.py`: 32 ulp of the largest entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lossforge import ir, kernels
from lossforge.compiler import vjp_program
from lossforge.interpreter import evaluate
from lossforge.ir import Kind, Node, Port, Program, elementwise, extent, input_, reduction
from lossforge.schedule import Move, schedule
from test_kernels import close

X = Port(input_("x", "abc"), ("a", "b", "c"))
SHAPES = {"few": (2, 5, 7), "many": (3, 40, 60)}


def sliced(x: Node, axis: str, start: int, trim: int) -> Node:
    """x[start : size - trim] along an axis."""
    return ir.window(x, axis, f"{axis}_{start}_{trim}", extent(start), extent(trim))


def difference(x: Node, axis: str) -> Node:
    new = f"{axis}_less"
    return ir.window(x, axis, new, extent(1), extent()) - ir.window(x, axis, new, extent(), extent(1))


def exp(x: Node) -> Node:
    return elementwise("exp", x)


def softmax(x: Node, axis: str) -> Node:
    return exp(x - reduction("logsumexp", x, (axis,)))


def weighted(x: Node) -> Node:
    weights = np.linspace(0.5, 2.0, 5)
    return x * ir.table(tuple(weights), ("k",), (5,), Kind.FLOAT)


def ordered(x: Node, axis: str) -> Node:
    return ir.take(x, ir.argsort(x, axis), axis)


def shifted(x: Node, axis: str) -> Node:
    return ir.window(x, axis, axis, extent(-1), extent(1))


def padded_twice(x: Node) -> Node:
    """Windows over one array along one axis, with more or fewer zeros, and along another; and the array itself."""
    ahead, behind = ir.window(x, "b", "b", extent(-2), extent(2)), ir.window(x, "b", "b", extent(1), extent(-1))
    return x * ahead - behind * ir.window(x, "c", "c", extent(-1), extent(1))


def gram(x: Node) -> Node:
    """A positive definite matrix for each a."""
    products = reduction("sum", x * ir.rename(x, "b", "row"), ("c",))
    eye = elementwise("eq", ir.iota("b"), ir.iota("row"))
    return products + ir.where(eye, 3.0, 0.0)


def spread_out(x: Node) -> Node:
    """Such matrices whose eigenvalues are apart, lest eigenvectors may turn; their signs, which are open, are squared."""
    eye = elementwise("eq", ir.iota("b"), ir.iota("row"))
    return gram(x) + ir.where(eye, ir.as_kind(ir.iota("b"), Kind.FLOAT) * 4.0, 0.0)


def every_other(x: Node, axis: str) -> Node:
    return ir.slide(x, axis, "coarse", None, ir.Stencil(step=2))


MOVES: dict[str, Callable[[Node], Node]] = {
    "slice": lambda x: sliced(exp(x), "b", 1, 0),
    "slice of the axis that is contiguous": lambda x: sliced(exp(x), "c", 2, 1),
    "slice of a slice": lambda x: ir.window(sliced(x * x, "b", 1, 0), "b_1_0", "inner", extent(1), extent(1)),
    "neighbours": lambda x: elementwise("abs", difference(exp(x), "c")),
    "neighbours along another axis": lambda x: elementwise("abs", difference(exp(x), "b")),
    "classes but the first": lambda x: sliced(softmax(x, "b"), "b", 1, 0),
    "sum of the classes but the first": lambda x: reduction("sum", sliced(softmax(x, "b"), "b", 1, 0), ("b_1_0",)),
    "slices of an input": lambda x: elementwise("maximum", sliced(x, "b", 1, 0), 0.0) * sliced(x, "b", 1, 0),
    "slice of a sum": lambda x: sliced(reduction("sum", exp(x), ("c",)), "b", 1, 1),
    "slice of a comparison": lambda x: ir.where(sliced(elementwise("gt", x, 0.1), "b", 1, 0), sliced(x, "b", 1, 0), 2.0),
    "slice of positions": lambda x: sliced(x * ir.as_kind(ir.iota("b"), Kind.FLOAT), "b", 1, 0),
    "padding": lambda x: ir.window(exp(x), "b", "wide", extent(-1), extent(-2)),
    "padding of a comparison": lambda x: ir.where(
        ir.window(elementwise("gt", x, 0.1), "b", "wide", extent(-1), extent(-2)),
        ir.window(x, "b", "wide", extent(-1), extent(-2)), 2.0,
    ),
    "total variation": lambda x: elementwise("abs", difference(x, "c")) + elementwise("abs", difference(x, "b")),
    "padding of one array in several ways": lambda x: padded_twice(exp(x)),
    "shift": lambda x: x * shifted(exp(x), "c"),
    "every other": lambda x: every_other(exp(x), "c"),
    "reshape": lambda x: ir.join(exp(x), ("b", "c"), "flat") + reduction("sum", x, ("b", "c")),
    "reverse": lambda x: x * ir.flip(exp(x), "b"),
    "running sum": lambda x: ir.cumsum(softmax(x, "b"), "b"),
    "running sum from behind": lambda x: x * ir.cumsum(exp(x), "c", reverse=True),
    "sorted": lambda x: ordered(x * x, "c") * ir.as_kind(ir.iota("c"), Kind.FLOAT),
    "sorted along an outer axis": lambda x: ordered(exp(x), "b") * ir.as_kind(ir.iota("b"), Kind.FLOAT),
    "largest two": lambda x: sliced(ordered(exp(x), "b"), "b", 3, 0),
    "table": lambda x: weighted(softmax(x, "b")),
    "inverse": lambda x: ir.matrix("inverse", gram(x), "row", "b"),
    "determinant": lambda x: ir.matrix("logdet", gram(x), "row", "b") * reduction("sum", x, ("b", "c")),
    "root of a matrix": lambda x: ir.matrix("cholesky", gram(x), "row", "b"),
    "eigenvalues": lambda x: ir.matrix("eigenvalues", spread_out(x), "row", "b"),
    "eigenvectors": lambda x: ir.matrix("eigenvectors", spread_out(x), "row", "b"),
    "one determinant": lambda x: ir.matrix("logdet", reduction("sum", gram(x), ("a",)), "row", "b") * x,
    "two moves, one after the other": lambda x: ir.cumsum(ordered(x, "b"), "b") * x,
}  # fmt: skip


def program_of(move: Callable[[Node], Node]) -> Program:
    moved = move(X.node)
    entries = moved * moved
    for axis in sorted(moved.axes):  # each entry counts differently
        entries = entries * (1.0 + 0.01 * ir.as_kind(ir.iota(axis), Kind.FLOAT))
    loss = reduction("sum", entries, entries.axes)
    return Program((X,), (Port(loss, ()),), ("loss",), (None,))


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", MOVES)
def test_moves(name: str, size: str, order: str, rng: np.random.Generator) -> None:
    program = program_of(MOVES[name])
    backward = vjp_program(program, ("x",))
    both = replace(backward, outputs=(*program.outputs, *backward.outputs), output_names=("loss", "gradient_x"),
                   like=(None, "x"))  # fmt: skip
    shape = dict(zip("abc", SHAPES[size], strict=True))
    array = rng.normal(size=[shape[a] for a in order]).astype("float32").transpose([order.index(a) for a in "abc"])
    got = kernels.run(both, [array, 1.5], "float32", (None, "float32"))
    want = evaluate([o.node for o in both.outputs], {X: array.astype(float), both.inputs[1]: np.array(1.5)})
    close(got[0], want[0], "float32")
    close(got[1], want[1], "float32")


@pytest.mark.parametrize("shape", [(2, 1, 7), (2, 5, 1), (0, 3, 4)])
def test_neighbours_along_a_short_axis(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    steps = [elementwise("abs", difference(X.node, axis)) for axis in "bc"]
    loss = reduction("sum", steps[0], steps[0].axes) + reduction("sum", steps[1], steps[1].axes)
    program = Program((X,), (Port(loss, ()),), ("loss",), (None,))
    backward = vjp_program(program, ("x",))
    array = rng.normal(size=shape).astype("float32")
    (got,) = kernels.run(backward, [array, 1.5], "float32", ("float32",))
    (want,) = evaluate([o.node for o in backward.outputs], {X: array.astype(float), backward.inputs[1]: np.array(1.5)})
    close(got, want, "float32")


def test_padding_of_a_result_on_the_way_is_a_view(rng: np.random.Generator) -> None:
    """NumPy's padding made a total variation and its gradient four times as slow."""
    steps = elementwise("abs", difference(X.node, "c"))
    loss = reduction("sum", steps, steps.axes)
    backward = vjp_program(Program((X,), (Port(loss, ()),), ("loss",), (None,)), ("x",))
    bound = kernels.bind(backward, [rng.normal(size=(3, 40, 60)).astype("float32"), None], "float32", ("float32",))
    padded = [n for n in bound.lies if n.op == "window" and n.args[0].op != "input"]
    assert len(padded) == 2  # of one array, which is stored once
    assert [dict(bound.lies[n].strides)["b"] for n in padded] == [61, 61]


@pytest.mark.parametrize("name", ["slices of an input", "slice of a comparison", "two moves, one after the other"])
def test_moves_of_bits(name: str, rng: np.random.Generator) -> None:
    """bfloat16 is held as bits, by a slice of it as well."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    program = program_of(MOVES[name])
    array = rng.normal(size=SHAPES["few"]).astype(bfloat16)
    (got,) = kernels.run(program, [array.view(np.uint16)], "float32", (None,), ("bfloat16",))
    (want,) = evaluate([o.node for o in program.outputs], {X: array.astype(float)})
    close(got, want, "float32")


def test_a_slice_of_an_input_is_a_view() -> None:
    made = schedule(program_of(MOVES["neighbours"]))
    assert [s.x for s in made.steps if isinstance(s, Move)] == [X.node, X.node]
    assert len(made.sweeps) == 1


def test_a_table_is_given_at_every_call(rng: np.random.Generator) -> None:
    program = program_of(MOVES["table"])
    bound = kernels.bind(program, [rng.normal(size=(2, 5, 7))], "float64", [None])
    for _ in range(2):
        array = rng.normal(size=(2, 5, 7))
        (got,) = bound([array])
        (want,) = evaluate([o.node for o in program.outputs], {X: array})
        close(got, want, "float64")


def test_what_is_moved_lies_as_what_it_is_made_of() -> None:
    """The innermost axis of the inputs stays innermost, whatever the axes are called: total variation took six times as long."""
    z = Port(input_("z", "zya"), ("z", "y", "a"))
    padded = [exp(ir.window(difference(z.node, axis), f"{axis}_less", axis, extent(), extent(-1))) for axis in "za"]
    program = Program((z,), (Port(padded[0] + padded[1], z.order),), ("out",), ("z",))
    bound = kernels.bind(program, [np.zeros((20, 21, 22), "float32")], "float32", ("float32",))
    lies = [dict(lie.strides) for node, lie in bound.lies.items() if node.op == "window" and node.axes == z.node.axes]
    assert lies == [{"z": 462, "y": 22, "a": 1}] * 2
