"""PyTorch's spelling of every operation, against the reference."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from lossforge import ir
from lossforge.compiler import program_vjp
from lossforge.interpreter import evaluate as reference
from lossforge.ir import Kind, Port, Program, constant, elementwise, input_
from lossforge.primitives import PRIMITIVES

torch = pytest.importorskip("torch")

from lossforge.adapters.torch import TorchAdapter  # noqa: E402
from torch_cases import FLOAT, assert_close  # noqa: E402

KERNELS = False  # the emitted text is tested here; see test_torch_kernels

BETWEEN = {
    "log": (0.1, 5), "log1p": (-0.9, 5), "sqrt": (0.1, 5), "asin": (-0.95, 0.95), "acos": (-0.95, 0.95),
    "acosh": (1.1, 5), "atanh": (-0.95, 0.95), "lgamma": (0.2, 6), "digamma": (0.2, 6), "polygamma": (0.2, 6),
    "pow": (0.2, 3), "xlogy": (0.1, 4), "div": (0.3, 4), "tan": (-1.2, 1.2),
}  # fmt: skip
"""Where the operations that are not defined everywhere are compared."""


def spelled(name: str, x: ir.Node, y: ir.Node) -> ir.Node:
    """An expression with the operation `name`, as a float, that both inputs have a share in."""
    row = PRIMITIVES[name]
    if name == "polygamma":
        return elementwise(name, 2.0, x) * y
    if name == "cast":
        return ir.as_kind(elementwise("gt", x, y), Kind.FLOAT) * y
    if name == "where":
        return ir.where(elementwise("gt", x, y), x * y, x - y)
    args = [elementwise("gt", a, 0.5) if name in ("and", "or", "not") else a for a in (x, y)[: row.arity]]
    z = elementwise(name, *args)
    return z * (x + y) if z.kind is Kind.FLOAT else ir.where(z, x * y, x - y)


FIRST_ROW = elementwise("eq", ir.iota("b"), constant(1, Kind.INDEX))
STRUCTURE: dict[str, Callable[[ir.Node, ir.Node], ir.Node]] = {
    **{op: lambda x, y, op=op: ir.reduction(op, x * y, {"b"}) * y for op in sorted(ir.REDUCTIONS)},
    **{f"{op}_of_all": lambda x, y, op=op: ir.reduction(op, x * y, {"a", "b"}) * y for op in sorted(ir.REDUCTIONS)},
    "argmax": lambda x, y: ir.take(x, ir.reduction("argmax", x, {"b"}), "b") * y,
    "argmin": lambda x, y: ir.take(x * x, ir.reduction("argmin", x, {"b"}), "b") * y,
    "rename": lambda x, y: ir.reduction("sum", x * ir.rename(x, "a", "c"), {"b"}) * y,
    "matrix_product": lambda x, y: ir.reduction("sum", ir.rename(x, "a", "c") * y, {"c"}) * x,
    "outer_sum": lambda x, y: ir.reduction("logsumexp", ir.rename(y, "a", "c") + x, {"c"}),
    "slide": lambda x, y: ir.reduction("sum", ir.slide(x, "b", "c", "t", ir.Stencil(3, 2, 1, -1, 1)) * y, {"t"}),
    "slide_laid_out": lambda x, y: ir.reduction("max", ir.slide(x, "b", "c", "t", ir.Stencil(2, 2, 1, 0, 2)) * y, {"t"}),
    "size": lambda x, y: elementwise("log", ir.size("b")) * x + elementwise("maximum", y, ir.size("a")),
    "iota": lambda x, y: x * ir.as_kind(ir.iota("b"), Kind.FLOAT) + y * ir.as_kind(FIRST_ROW, Kind.FLOAT),
    "surrogate": lambda x, y: elementwise("surrogate", elementwise("sign", x), x * y),
    "stop_gradient": lambda x, y: elementwise("stop_gradient", x * y) * x,
}  # fmt: skip


def compare_with_reference(x: Port, y: Port, output: Port, arrays: Sequence[np.ndarray], dtype: str) -> None:
    """Value and gradients by the emitted text, against the interpreter in float64 on the same numbers."""
    value = Program((x, y), (output,), ("z",), (None,))
    cotangent = np.cos(np.arange(np.prod(arrays[0].shape))).reshape(arrays[0].shape)
    cotangent = cotangent if frozenset(output.order) == frozenset(x.order) else np.float64(0.7)
    rounded = [torch.tensor(a, dtype=FLOAT[dtype]) for a in (*arrays, cotangent)]
    for program in (value, program_vjp(value, (x.name, y.name))):
        given = rounded[: len(program.inputs)]
        found = TorchAdapter().run(program, given)
        exact = {p: a.double().numpy() for p, a in zip(program.inputs, given, strict=True)}
        for port, result in zip(program.outputs, found, strict=True):
            assert result.dtype is FLOAT[dtype]
            (array,) = reference([port.node], exact)  # its axes are in alphabetical order
            kept = [a for a in port.order if a in port.node.axes]
            array = array.transpose([sorted(kept).index(a) for a in kept])
            lacking = tuple(i for i, a in enumerate(port.order) if a not in kept)
            full = np.broadcast_to(np.expand_dims(array, lacking), result.shape)
            assert_close(result, torch.tensor(full.copy()).to(result.dtype), dtype, f"{port.order}")


@pytest.mark.parametrize("dtype", FLOAT)
@pytest.mark.parametrize("axes", [("a",), ("*shape",)], ids=str)
@pytest.mark.parametrize("name", PRIMITIVES)
def test_operations(name, axes, dtype, rng):
    x, y = input_("x", axes), input_("y", axes)
    low, high = BETWEEN.get(name, (-2.0, 2.0))
    arrays = [rng.uniform(low, high, 40), rng.uniform(low, high, 40)]
    compare_with_reference(Port(x, axes), Port(y, axes), Port(spelled(name, x, y), axes), arrays, dtype)


@pytest.mark.parametrize("dtype", FLOAT)
@pytest.mark.parametrize("name", STRUCTURE)
def test_reductions_and_structure(name, dtype, rng):
    x, y = Port(input_("x", ("b", "a")), ("b", "a")), Port(input_("y", ("a",)), ("a",))
    z = STRUCTURE[name](x.node, y.node)
    order = tuple(a for a in ("b", "a") if a in z.axes)
    z = ir.total(z, z.axes - set(x.order)) if z.axes - set(x.order) else z
    arrays = [rng.normal(size=(4, 3)), rng.normal(size=3)]
    if len(order) == 1:  # one cotangent for each entry, or one number
        z, order = ir.total(z, order), ()
    compare_with_reference(x, y, Port(z, order), arrays, dtype)


NOT_AT_EDGES = {"digamma", "polygamma", "cast", "surrogate", "where"}
EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.5, 25.0, -25.0, 1e-8, 1e8, 1e300, -1e300, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("dtype", FLOAT)
@pytest.mark.parametrize("name", [n for n in PRIMITIVES if n not in NOT_AT_EDGES])
def test_operations_at_the_edges(name, dtype):
    grid = [torch.tensor(a.ravel(), dtype=FLOAT[dtype]) for a in np.meshgrid(EDGES, EDGES)]
    x, y = (Port(input_(n, ("a",)), ("a",)) for n in "xy")
    z = elementwise(name, *(x.node, y.node)[: PRIMITIVES[name].arity])
    z = z if z.kind is Kind.FLOAT else ir.where(z, 1.0, 0.0)
    (found,) = TorchAdapter().run(Program((x, y), (Port(z, ("a",)),), ("z",), (None,)), grid)
    (expected,) = reference([z], {x: grid[0].double().numpy(), y: grid[1].double().numpy()})
    with np.errstate(over="ignore"):
        expected = torch.tensor(expected).to(FLOAT[dtype])
    # One operation: both sides are within a few roundings of the exact result.
    tolerance = {"float32": {"rtol": 2e-6, "atol": 1e-7}, "float64": {"rtol": 1e-13, "atol": 0}}[dtype]
    torch.testing.assert_close(found, expected, **tolerance, equal_nan=True)
