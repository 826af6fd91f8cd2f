"""TensorFlow: operations, losses and derivatives of every kind, eagerly, in graphs and under XLA."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import lossforge as lf
from lossforge import errors, ir
from lossforge.compiler import vjp_program
from lossforge.dtypes import EPSILON
from lossforge.interpreter import evaluate
from lossforge.ir import Kind, Port, Program
from lossforge.primitives import PRIMITIVES

tf = pytest.importorskip("tensorflow")

from lossforge.adapters import tensorflow as tensorflow_adapter  # noqa: E402
from lossforge.adapters.base import adapter  # noqa: E402

# float64: what is asked of every framework; float32: its resolution of 1e-7 after a few roundings.
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
MODES: dict[str, Callable[..., Any]] = {
    "eager": lambda f: f,
    "graph": tf.function(autograph=False),
    "xla": tf.function(autograph=False, jit_compile=True),
}


def assert_close(found, expected, dtype="float64", label=""):
    """Entries agree, relative to themselves or to the largest one."""
    expected = np.asarray(expected)
    assert tuple(found.shape) == expected.shape, label
    finite = np.abs(expected[np.isfinite(expected)].astype(float))
    tolerance, scale = TOLERANCE[dtype], np.max(finite, initial=1.0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=tolerance, atol=tolerance * scale, err_msg=label)


def run(program, arrays):
    return adapter("tensorflow").run(program, [tf.convert_to_tensor(a) for a in arrays])


def reference(program, arrays):
    """What the interpreter makes of a program, each output in the order of its port."""
    values = dict(zip(program.inputs, arrays, strict=True))
    sizes = {a: n for p, x in values.items() for a, n in zip(p.order, x.shape, strict=True)}
    results = evaluate([p.node for p in program.outputs], values)
    for port, found in zip(program.outputs, results, strict=True):
        order = sorted(port.order)
        own = dict(zip(sorted(port.node.axes), found.shape, strict=True))
        varying = found.reshape([own.get(a, 1) for a in order])
        full = np.broadcast_to(varying, [own.get(a, sizes.get(a)) for a in order])
        yield full.transpose([order.index(a) for a in port.order])


def backward(program, arrays):
    """The program of the backward pass, and its inputs with an upstream gradient that is not uniform."""
    wrt = tuple(p.name for p in program.inputs if p.node.kind is Kind.FLOAT)
    (value,) = reference(program, arrays)
    return vjp_program(program, wrt), [*arrays, np.random.default_rng(3).normal(size=value.shape)]


def check_program(program, arrays, dtype="float64"):
    arrays = [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]
    for found, expected in zip(run(program, arrays), reference(program, arrays), strict=True):
        assert found.dtype.name == dtype or not found.dtype.is_floating
        assert_close(found, expected, dtype)


# ------------------------------------------------------------ operations

_BOOL, _FLOAT = Kind.BOOL, Kind.FLOAT
KINDS = {
    "and": (_BOOL, _BOOL),
    "or": (_BOOL, _BOOL),
    "not": (_BOOL,),
    "where": (_BOOL, _FLOAT, _FLOAT),
    "cast": (_BOOL, _FLOAT),  # times a number, which says in which precision
}
# Where rounding the argument alone would pass the tolerance, were it large.
GROWING = {"exp", "expm1", "sinh", "cosh", "pow"}


def operation(op, suffix=""):
    """The operation along one axis, and points of its domain with zeros, integers and ties among them."""
    row = PRIMITIVES[op]
    rng = np.random.default_rng(7)
    reals = np.concatenate([[0, 1, 2, -1], rng.uniform(-3, 3, 30), rng.uniform(0.01, 1, 15), rng.uniform(1, 9, 15)])
    reals = np.clip(reals, -4, 4) if op in GROWING else reals
    ports, arrays = [], []
    for i, kind in enumerate(KINDS.get(op, (_FLOAT,) * row.arity)):
        ports.append(Port(ir.input_(f"x{i}{suffix}", ("n",), kind), ("n",)))
        shuffled = np.concatenate([reals[:3], rng.permutation(reals[3:])])
        arrays.append(reals if i == 0 else shuffled if kind is _FLOAT else shuffled > 0)
        arrays[-1] = arrays[-1] > 0 if kind is _BOOL else arrays[-1]
    nodes = [p.node for p in ports]
    if op == "polygamma":  # its order is a number
        ports, arrays, nodes = ports[1:], arrays[1:], [ir.constant(2.0), nodes[1]]
    node = ir.as_kind(nodes[0], _FLOAT) * nodes[1] if op == "cast" else ir.elementwise(op, *nodes)
    conditions = evaluate(row.domain(*nodes[: row.arity]), dict(zip(ports, arrays, strict=True)))
    inside = np.flatnonzero(np.logical_and.reduce([np.ones(len(reals), bool), *conditions]))
    assert len(inside) >= 10
    arrays = [a[np.resize(inside, len(reals))] for a in arrays]  # as many for each operation
    return Program(tuple(ports), (Port(node, ("n",)),), ("z",), (None,)), arrays


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("op", PRIMITIVES)
def test_an_operation_and_its_gradient(op, dtype):
    program, arrays = operation(op)
    check_program(program, arrays, dtype)
    if program.outputs[0].node.kind is _FLOAT:
        check_program(*backward(program, arrays), dtype)


def test_every_operation_under_xla():
    """In one program, since XLA takes its time for each."""
    rows = [operation(op, f"_{op}") for op in PRIMITIVES]
    inputs = tuple(p for program, _ in rows for p in program.inputs)
    outputs = tuple(program.outputs[0] for program, _ in rows)
    arrays = [a for _, points in rows for a in points]
    whole = Program(inputs, outputs, tuple(PRIMITIVES), (None,) * len(outputs))
    found = tf.function(lambda *a: run(whole, a), jit_compile=True, autograph=False)(*map(tf.constant, arrays))
    for op, f, expected in zip(PRIMITIVES, found, reference(whole, arrays), strict=True):
        assert_close(f, expected, label=op)


# ------------------------------------------------------------ structure

SIZES = {"a": 2, "b": 4, "c": 3, "*s": 12}
PORTS = (
    Port(ir.input_("x", ("a", "b", "c")), ("b", "a", "c")),
    Port(ir.input_("y", ("a", "c")), ("c", "a")),
    Port(ir.input_("v", ("b",)), ("b",)),
    Port(ir.input_("index", ("a", "c"), Kind.INDEX), ("a", "c")),
)
X, Y, V, INDEX = (p.node for p in PORTS)
ANY = ir.input_("s", ("*s",))
HERE = ir.elementwise("eq", ir.iota("b"), INDEX)
FIRST = ir.constant(0, Kind.INDEX)
EACH = ir.rename(X, "b", "d") * X
GRAM = ir.reduction("sum", EACH, "c") + ir.where(ir.elementwise("eq", ir.iota("b"), ir.iota("d")), 2.0, 0.0)
STRUCTURE = {
    **{f"{op} over one axis": ir.reduction(op, X, "b") for op in sorted(ir.REDUCTIONS | ir.INDEX_REDUCTIONS)},
    **{f"{op} over two axes": ir.reduction(op, X, "ac") for op in sorted(ir.REDUCTIONS)},
    **{f"{op} over all axes": ir.reduction(op, X, "abc") for op in sorted(ir.REDUCTIONS)},
    **{f"{op} over any rank": ir.reduction(op, ANY, ("*s",)) for op in sorted(ir.REDUCTIONS)},
    "prod with zeros": ir.reduction("prod", ir.elementwise("maximum", X, 0.0), "b"),
    "sum over an axis that is not there": ir.total(Y, "ab"),
    "constant along an axis": ir.reduction("sum", X, "b") * ir.size("b"),
    "matrix product": ir.reduction("sum", ir.rename(X, "c", "d") * Y, "a"),
    "outer product, summed": ir.reduction("sum", Y * V, "c"),
    "take": ir.take(X, INDEX, "b"),
    "take from what lacks axes of the index": ir.take(V, INDEX, "b") * Y,
    "take where the index lacks axes": ir.take(ir.rename(X, "c", "d"), ir.take(INDEX, FIRST, "c"), "b"),
    "take at a number": ir.take(X, ir.constant(2, Kind.INDEX), "b"),
    "take the largest": ir.take(X, ir.reduction("argmax", X, "b"), "b"),
    "take at an index under a condition": ir.take(X, ir.where(HERE, FIRST, INDEX), "b"),
    "diagonal": ir.take(ir.rename(X, "c", "d") * Y, ir.iota("d"), "c"),
    "one-hot": ir.where(HERE, X, 0.0),
    "all against all": ir.reduction("logsumexp", X - ir.rename(X, "c", "d"), "d"),
    "positions as numbers": X * ir.as_kind(ir.iota("c"), Kind.FLOAT) / ir.size("b"),
    "function of sizes": ir.elementwise("log", ir.size("a") * ir.size("c")) * V,
    "condition on sizes": ir.where(ir.elementwise("gt", ir.size("b"), 3.0), X, 0.0),
    "inverse": ir.matrix("inverse", GRAM, "b", "d"),
    "log-determinant": ir.matrix("logdet", GRAM, "b", "d") * ir.matrix("detsign", GRAM, "b", "d"),
    "Cholesky": ir.matrix("cholesky", GRAM, "b", "d"),
    "eigenvalues": ir.matrix("eigenvalues", GRAM, "b", "d"),
    "eigenvectors": ir.elementwise("abs", ir.matrix("eigenvectors", GRAM, "b", "d")),  # their signs are open
    "cut": ir.window(X, "b", "d", ir.extent(1), ir.extent(0, {"a": 1})),
    "cut and pad": ir.window(X, "b", "b", ir.extent(2), ir.extent(-2)),
    "pad": ir.window(Y, "c", "d", ir.extent(-1), ir.extent(-2)),
    "join": ir.join(X, ("c", "a"), "d"),
    "split": ir.split(ir.elementwise("exp", ir.join(X, ("c", "a"), "d")), "d", ("c", "a")) * Y,
    "flip": ir.flip(X, "b") * Y,
    "cumsum": ir.cumsum(X, "b") * Y,
    "cumsum from the end": ir.cumsum(X, "a", True) * Y,
    "sort": ir.take(X, ir.argsort(X, "b"), "b"),
    "numbers in an array": X * ir.table([1, 2, 3, 4, 5, 6], ("c", "a"), (3, 2), Kind.FLOAT),
    "a length of its own": ir.reduction("sum", ir.take(X, ir.iota("d", 2), "b") * Y, "c"),
}


def structure(node):
    rng = np.random.default_rng(11)
    if ANY in ir.topological([node]):
        return Program((Port(ANY, ("*s",)),), (Port(node, ()),), ("z",), (None,)), [rng.normal(size=12)]
    order = tuple(sorted(node.axes, reverse=True))
    arrays = [rng.normal(size=[SIZES[a] for a in p.order]) for p in PORTS[:3]]
    arrays.append(rng.integers(0, 4, size=(2, 3)))
    return Program(PORTS, (Port(node, order),), ("z",), (None,)), arrays


@pytest.mark.parametrize("node", STRUCTURE.values(), ids=STRUCTURE)
def test_structure_and_its_gradient(node):
    program, arrays = structure(node)
    check_program(program, arrays)
    if node.kind is not Kind.FLOAT:
        return
    program, arrays = backward(program, arrays)
    check_program(program, arrays)
    unknown = [tf.TensorSpec([None] * a.ndim, a.dtype) for a in arrays]
    found = tf.function(lambda *a: run(program, a), input_signature=unknown, autograph=False)(*arrays)
    for f, expected in zip(found, reference(program, arrays), strict=True):
        assert_close(f, expected, label="sizes unknown to the graph")


def test_structure_under_xla():
    # XLA has no determinants.
    programs = {name: structure(node) for name, node in STRUCTURE.items() if name != "log-determinant"}

    @tf.function(jit_compile=True, autograph=False)
    def compiled(inputs):
        return {name: run(program, inputs[name]) for name, (program, _) in programs.items()}

    found = compiled({name: [tf.constant(a) for a in arrays] for name, (_, arrays) in programs.items()})
    for name, (program, arrays) in programs.items():
        (expected,) = reference(program, arrays)
        # XLA finds eigenvalues by turning matrices until what is off their diagonals is 1e-6 of these.
        assert_close(found[name][0], expected, "float32" if name.startswith("eigen") else "float64", name)


@pytest.mark.parametrize("op", ["max", "min", "logsumexp", "sum"])
def test_nan_in_gives_nan_out_of_a_reduction(op):
    program, (x, *others) = structure(ir.reduction(op, X, "b"))
    x[0, 0, 0] = np.nan
    for mode in MODES.values():
        (found,) = mode(lambda *a: run(program, a))(*map(tf.constant, (x, *others)))
        assert np.isnan(found.numpy()).sum() == 1


# ------------------------------------------------------------ losses


@lf.loss
def huber(pred, true, *, delta=1.0):
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


def huber_written_out(pred, true, delta=1.0):
    error = tf.abs(pred - true)
    quadratic = tf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


@lf.loss
def quantile(pred, true, *, q=0.3):
    return lf.maximum(q * (true - pred), (q - 1) * (true - pred))


def quantile_written_out(pred, true, q=0.3):
    return tf.where(true > pred, q * (true - pred), (q - 1) * (true - pred))


@lf.loss("batch class *space, batch *space -> batch *space")
def cross_entropy(logits, target, *, temperature=1.0):
    return -lf.take(lf.log_softmax(logits / temperature, "class"), target, "class")


def cross_entropy_written_out(logits, target, temperature=1.0):
    last = tf.transpose(logits / temperature, (0, 2, 3, 1))
    return tf.nn.sparse_softmax_cross_entropy_with_logits(target, last)


@lf.loss("batch class *space, batch class *space -> batch class")
def dice(pred, true, *, smooth=1e-6):
    overlap = lf.sum(pred * true, "*space")
    total = lf.sum(pred, "*space") + lf.sum(true, "*space")
    return 1 - (2 * overlap + smooth) / (total + smooth)


def dice_written_out(pred, true, smooth=1e-6):
    overlap = tf.reduce_sum(pred * true, (2, 3))
    total = tf.reduce_sum(pred, (2, 3)) + tf.reduce_sum(true, (2, 3))
    return 1 - (2 * overlap + smooth) / (total + smooth)


@lf.loss("batch d, batch d -> batch", wrt=("a", "b"))
def info_nce(a, b, *, temperature=0.5):
    scores = lf.sum(a * lf.rename(b, "batch", "other"), "d") / temperature
    return lf.logsumexp(scores, "other") - lf.sum(a * b, "d") / temperature


def info_nce_written_out(a, b, temperature=0.5):
    scores = tf.matmul(a, b, transpose_b=True) / temperature
    return tf.reduce_logsumexp(scores, 1) - tf.linalg.diag_part(scores)


@lf.loss("batch, batch, batch -> batch", wrt=("mean", "log_variance"))
def gaussian(mean, log_variance, true):
    return 0.5 * (log_variance + (true - mean) ** 2 * lf.exp(-log_variance))


def gaussian_written_out(mean, log_variance, true):
    return 0.5 * (log_variance + (true - mean) ** 2 * tf.exp(-log_variance))


@dataclass(frozen=True)
class Case:
    """A loss, the same written out for TensorFlow, and the shapes of its arguments."""

    loss: lf.Loss
    written_out: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    parameters: dict[str, float] = field(default_factory=dict)
    classes: int = 0

    def arrays(self, dtype="float64"):
        rng = np.random.default_rng(5)
        arrays = [rng.normal(size=s).astype(dtype) for s in self.shapes]
        if self.classes:
            arrays[-1] = rng.integers(0, self.classes, self.shapes[-1])
        if self.loss is dice:
            arrays = [1 / (1 + np.exp(-a)) for a in arrays]
        return [tf.constant(a) for a in arrays]

    def inputs(self, dtype="float64"):
        """All that a gradient is taken of."""
        floats = [a for a in self.arrays(dtype) if a.dtype.is_floating]
        return floats, [tf.constant(v, dtype) for v in self.parameters.values()]

    def ours(self, **options):
        def value(floats, parameters):
            arrays = [*floats, *self.arrays()[len(floats) :]]
            return self.loss(*arrays, **options, **dict(zip(self.parameters, parameters, strict=True)))

        return value

    def expected(self, reduction="mean", weight=None, mask=None):
        def value(floats, parameters):
            arrays = [*floats, *self.arrays()[len(floats) :]]
            losses = self.written_out(*arrays, *parameters)
            counts = tf.ones_like(losses)
            for factor in (weight, mask):
                if factor is not None:
                    constant = [1] * (losses.shape.rank - factor.shape.rank)
                    counts *= tf.reshape(tf.cast(factor, losses.dtype), [*factor.shape, *constant])
            if reduction == "none":
                return counts * losses
            total = tf.reduce_sum(counts * losses)
            return total if reduction == "sum" else total / tf.reduce_sum(counts)

        return value


CASES = {
    "huber": Case(huber, huber_written_out, ((4, 3), (4, 3)), {"delta": 0.7}),
    "quantile": Case(quantile, quantile_written_out, ((6,), (6,)), {"q": 0.2}),
    "cross_entropy": Case(
        cross_entropy, cross_entropy_written_out, ((2, 5, 3, 2), (2, 3, 2)), {"temperature": 1.5}, classes=5
    ),
    "dice": Case(dice, dice_written_out, ((2, 3, 4, 2), (2, 3, 4, 2)), {"smooth": 0.1}),
    "info_nce": Case(info_nce, info_nce_written_out, ((4, 3), (4, 3)), {"temperature": 0.5}),
    "gaussian": Case(gaussian, gaussian_written_out, ((5,), (5,), (5,))),
}
COMBINATIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "weighted mean": {"weight": "batch"},
    "masked mean": {"mask": "batch"},
    "weighted and masked mean": {"weight": "all", "mask": "batch"},
    "weighted and masked": {"weight": "batch", "mask": "all", "reduction": "none"},
}


def options_for(case, combination, dtype="float64"):
    """The combination, with a weight or mask for each entry of the loss or for each of its first axis."""
    rng = np.random.default_rng(6)
    shape = case.expected("none")(*case.inputs()).shape.as_list()
    made = dict(COMBINATIONS[combination])
    for name in {"weight", "mask"} & set(made):
        values = rng.random(shape if made[name] == "all" else shape[:1])
        made[name] = tf.constant(values > 0.4 if name == "mask" else values.astype(dtype))
    return made


def value_and_gradients(value, upstream=None):
    """The value, and its gradient with respect to everything."""

    def function(floats, parameters):
        with tf.GradientTape() as tape:
            tape.watch([floats, parameters])
            loss = value(floats, parameters)
        return loss, tape.gradient(loss, [*floats, *parameters], output_gradients=upstream)

    return function


def check_loss(case, combination, mode, dtype="float64"):
    options = options_for(case, combination, dtype)
    inputs = case.inputs(dtype)
    shape = case.expected(**options)(*inputs).shape
    upstream = tf.constant(np.random.default_rng(8).normal(size=shape), dtype)
    loss, gradients = MODES[mode](value_and_gradients(case.ours(**options), upstream))(*inputs)
    expected, expected_gradients = value_and_gradients(case.expected(**options), upstream)(*inputs)
    assert_close(loss, expected, dtype)
    assert {g.dtype.name for g in gradients} == {dtype}
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(found, wanted, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("name", CASES)
def test_a_loss_against_tensorflow(name, combination, dtype):
    check_loss(CASES[name], combination, "eager", dtype)


@pytest.mark.parametrize("combination", ["mean", "weighted and masked"])
@pytest.mark.parametrize("name", CASES)
def test_a_loss_in_a_graph(name, combination):
    check_loss(CASES[name], combination, "graph")


@pytest.mark.parametrize(
    ("name", "combination"),
    [("huber", "weighted and masked mean"), ("cross_entropy", "weighted and masked"), ("info_nce", "mean")],
)
def test_a_loss_under_xla(name, combination):
    check_loss(CASES[name], combination, "xla")


# ------------------------------------------------------------ derivatives of every kind

POINT = tf.constant(np.random.default_rng(1).normal(size=(2, 4, 3)))
ALONG = tf.constant(np.random.default_rng(2).normal(size=(2, 4, 3)))
UPSTREAM = tf.constant(np.random.default_rng(3).normal(size=(2, 3)))
CLASSES = tf.constant(np.random.default_rng(4).integers(0, 4, (2, 3)))


def gradient(value, x, upstream=None):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = value(x)
    return tape.gradient(y, x, output_gradients=upstream)


def forward(value, x):
    with tf.autodiff.ForwardAccumulator(x, ALONG) as accumulator:
        y = value(x)
    return accumulator.jvp(y)


def jacobian(value, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = value(x)
    return tape.jacobian(y, x)


def in_function(value, x):
    """The first derivative inside of a tf.function, the second outside of it."""
    return gradient(tf.function(lambda x: gradient(value, x, UPSTREAM), autograph=False), x, ALONG)


def around_function(value, x):
    """Both derivatives outside of a tf.function."""
    compiled = tf.function(value, autograph=False)
    return gradient(lambda x: gradient(compiled, x, UPSTREAM), x, ALONG)


DERIVATIVES = {
    "forward": forward,
    "forward around a function": lambda f, x: forward(tf.function(f, autograph=False), x),
    "jacobian": jacobian,
    "reverse over reverse": lambda f, x: gradient(lambda x: gradient(f, x, UPSTREAM), x, ALONG),
    "second tape around a function": in_function,
    "both tapes around a function": around_function,
    "forward over reverse": lambda f, x: forward(lambda x: gradient(f, x, UPSTREAM), x),
    "reverse over forward": lambda f, x: gradient(lambda x: forward(f, x), x, UPSTREAM),
    "Hessian": lambda f, x: jacobian(lambda x: gradient(f, x, UPSTREAM), x),
    "third": lambda f, x: gradient(lambda x: gradient(lambda x: gradient(f, x, UPSTREAM), x, ALONG), x, ALONG),
    "vectorized_map": lambda f, x: tf.vectorized_map(f, tf.stack([x, x + ALONG])),
}


def losses_of(x):
    return cross_entropy(x, CLASSES, reduction="none", temperature=0.8)


def losses_written_out(x):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(CLASSES, tf.transpose(x / 0.8, (0, 2, 1)))


ON_XLA = [
    ("forward", "xla"),
    ("forward over reverse", "xla"),
    ("Hessian", "xla"),
    ("both tapes around a function", "xla"),
]


@pytest.mark.parametrize(("name", "mode"), [*((n, m) for n in DERIVATIVES for m in ("eager", "graph")), *ON_XLA])
def test_derivatives(name, mode):
    derive = DERIVATIVES[name]
    found = MODES[mode](lambda x: derive(losses_of, x))(POINT)
    assert_close(found, derive(losses_written_out, POINT))


MEANS = [
    ("forward", "eager"),
    ("jacobian", "eager"),
    ("Hessian", "eager"),
    ("third", "eager"),
    ("third", "graph"),
]


@pytest.mark.parametrize(("name", "mode"), MEANS)
def test_derivatives_of_a_mean(name, mode):
    """A mean keeps its gradient for the backward pass, whose own derivative does not use it."""
    weight = tf.constant([0.3, 2.0], tf.float64)

    def derive(mean, x):
        return DERIVATIVES[name](lambda x: mean(x) * UPSTREAM, x)

    def mean(x):
        return cross_entropy(x, CLASSES, weight=weight, temperature=0.8)

    def mean_written_out(x):
        return tf.reduce_sum(losses_written_out(x) * weight[:, None]) / (3 * tf.reduce_sum(weight))

    found = MODES[mode](lambda x: derive(mean, x))(POINT)
    assert_close(found, derive(mean_written_out, POINT))


def test_second_derivative_with_respect_to_a_parameter():
    temperature = tf.Variable(0.8, dtype=tf.float64)

    def mixed(loss):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(POINT)
                value = loss()
            slope = inner.gradient(value, POINT)
        return outer.gradient(slope, temperature, output_gradients=ALONG)

    def written_out():
        last = tf.transpose(POINT / temperature, (0, 2, 1))
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(CLASSES, last))

    found = mixed(lambda: cross_entropy(POINT, CLASSES, temperature=temperature))
    assert_close(found, mixed(written_out))


@lf.loss
def passing(pred, true):
    """Hard where it is evaluated, soft where it is differentiated; the target's part counts for nothing."""
    return lf.surrogate(lf.sign(pred), lf.tanh(pred)) * lf.stop_gradient(pred + true)


@pytest.mark.parametrize("mode", MODES)
def test_marks_of_the_gradient_hold_in_forward_mode_and_in_second_derivatives(mode):
    x = tf.constant([[-0.4, 1.3, 0.2]] * 4, tf.float64)
    along = tf.ones_like(x)

    def derive(x):
        with tf.autodiff.ForwardAccumulator(x, along) as accumulator:
            slope = gradient(lambda x: passing(x, x, reduction="sum"), x)
        return slope, accumulator.jvp(slope)

    slope, curve = MODES[mode](derive)(x)
    tanh = np.tanh(x.numpy())
    assert_close(slope, (1 - tanh**2) * 2 * x.numpy())
    assert_close(curve, -2 * tanh * (1 - tanh**2) * 2 * x.numpy())


# ------------------------------------------------------------ what is computed, and in what


@pytest.fixture
def computed(monkeypatch):
    """The names of the outputs of every program that is run."""
    names = []
    run_program = tensorflow_adapter.evaluate

    def noting(program, tensors):
        names.append(program.output_names)
        return run_program(program, tensors)

    monkeypatch.setattr(tensorflow_adapter, "evaluate", noting)
    return names


def test_only_gradients_that_a_tape_follows_are_computed(computed):
    pred, true = (tf.constant([1.0, 2.0]), tf.constant([0.0, 0.5]))
    huber(pred, true)
    assert computed == [("loss",)]
    computed.clear()
    with tf.GradientTape() as tape:
        tape.watch(pred)
        loss = huber(pred, true)
    tape.gradient(loss, pred)
    assert computed == [("loss", "gradient_pred")]  # the backward pass scales it


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_computes_in_float32(half, mode):
    pred = tf.cast(tf.constant([0.1, 300.0, -2.0, 0.3]), half)
    true = tf.cast(tf.constant([0.2, 0.0, -2.5, 0.3]), half)

    def value(pred, true):
        return huber(pred * 1, true, reduction="sum", delta=300.0)

    loss, (slope, _) = MODES[mode](value_and_gradients(lambda x, _: value(*x)))([pred, true], [])
    error = tf.cast(pred, tf.float32) - tf.cast(true, tf.float32)
    assert loss.dtype == tf.float32
    assert_close(loss, tf.reduce_sum(error**2) / 2, "float32")  # 45000: more than fits into float16's precision
    assert slope.dtype == tf.as_dtype(half)
    assert_close(slope, tf.cast(error, half), "float32")


def test_a_half_gradient_is_scaled_before_it_is_rounded():
    """Loss scaling: the plain gradient underflows in float16, the scaled one does not."""
    pred = tf.constant([1.0] * 8, tf.float16)
    true = tf.constant([1.0 - 2**-10] * 8, tf.float16)
    with tf.GradientTape() as tape:
        tape.watch(pred)
        scaled = huber(pred, true, weight=tf.constant([1.0] * 7 + [2.0**15])) * 2.0**20
    assert float(tape.gradient(scaled, pred)[0]) == pytest.approx(2**-10 / (7 + 2**15) * 2**20, rel=1e-3)


@pytest.mark.parametrize(
    ("pred", "true", "value", "slope"),
    [
        ("float64", "float32", "float64", "float64"),
        ("float32", "float64", "float64", "float32"),
        ("float32", "int32", "float32", "float32"),
        ("float32", "bool", "float32", "float32"),
        ("float16", "float32", "float32", "float16"),
        ("bfloat16", "int64", "float32", "bfloat16"),
    ],
)
def test_dtypes(pred, true, value, slope):
    x, y = tf.cast(tf.constant([0.5, 2.0]), pred), tf.cast(tf.constant([0, 1]), true)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = huber(x, y, delta=0.1)
    assert loss.dtype.name == value
    assert tape.gradient(loss, x).dtype.name == slope


def test_numbers_are_not_rounded_on_the_way():
    pred, true = tf.constant([3.0], tf.float64), tf.constant([0.0], tf.float64)
    assert huber(pred, true, delta=0.1).numpy() == 0.5 * 0.1**2 + 0.1 * (3.0 - 0.1)
    assert huber(pred, true, delta=0.1, weight=0.1, reduction="sum").numpy() == pytest.approx(0.0295, rel=1e-15)


# ------------------------------------------------------------ variables, masks, sparse upstreams


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_variables(mode):
    pred, true = tf.Variable([0.5, -2.0, 3.0]), tf.Variable([0.0, 0.0, 0.0])
    delta, weight = tf.Variable(0.7), tf.Variable([1.0, 2.0, 3.0])
    variables = [pred, true, delta, weight]

    def derive(loss):
        with tf.GradientTape() as tape:  # watches variables by itself
            value = loss()
        return value, tape.gradient(value, variables)

    def written_out():
        return tf.reduce_sum(weight * huber_written_out(pred, true, delta)) / tf.reduce_sum(weight)

    value, gradients = MODES[mode](lambda: derive(lambda: huber(pred, true, delta=delta, weight=weight)))()
    expected, expected_gradients = derive(written_out)
    assert_close(value, expected, "float32")
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(found, wanted, "float32")


def test_a_parameter_held_by_keras():
    keras = pytest.importorskip("keras")
    delta = keras.Variable(0.7)
    with tf.GradientTape() as tape:
        loss = huber(tf.constant([0.5, -2.0, 3.0]), tf.zeros(3), delta=delta)
    assert float(tape.gradient(loss, delta.value)) == pytest.approx((0 + (2 - 0.7) + (3 - 0.7)) / 3)


@pytest.mark.parametrize("mode", MODES)
def test_an_entirely_masked_batch_is_zero_with_zero_gradient(mode):
    pred = tf.constant([[np.nan, 1.0], [np.inf, 2.0]])

    def derive(pred):
        with tf.GradientTape() as tape:
            tape.watch(pred)
            loss = huber(pred, tf.zeros_like(pred), mask=tf.constant([False, False]))
        return loss, tape.gradient(loss, pred)

    loss, slope = MODES[mode](derive)(pred)
    assert loss.numpy() == 0
    assert (slope.numpy() == 0).all()


def test_masked_entries_do_not_leak_into_second_derivatives():
    pred = tf.constant([1.0, np.nan, np.inf])
    true = tf.zeros(3)
    mask = tf.constant([True, False, False])
    curve = gradient(lambda x: gradient(lambda x: huber(x, true, delta=5.0, mask=mask), x), pred)
    assert curve.numpy().tolist() == [1, 0, 0]


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_an_upstream_gradient_for_some_entries(mode):
    """tf.gather hands tf.IndexedSlices back."""

    def value(pred):
        return tf.gather(huber(pred, tf.zeros(4), reduction="none"), [2, 0, 2])

    slope = MODES[mode](lambda x: gradient(value, x))(tf.constant([0.5, 0.25, -0.125, 2.0]))
    assert slope.numpy().tolist() == [0.5, 0, -0.25, 0]


def test_inside_of_a_loop():
    @tf.function
    def summed(pred):
        total = 0.0
        for i in tf.range(3):
            total += huber(pred * tf.cast(i, tf.float32), tf.zeros(2))
        return total

    pred = tf.constant([0.1, -0.2])
    assert_close(gradient(summed, pred), (0 + 1 + 4) * pred / 2, "float32")


# ------------------------------------------------------------ functions of a loss


def test_functions_of_a_loss_agree_with_numpy():
    case = CASES["cross_entropy"]
    arrays = case.arrays()
    plain = [a.numpy() for a in arrays]
    options = {"temperature": 1.3, "reduction": "sum"}
    vector = np.random.default_rng(2).normal(size=plain[0].shape)
    found = [
        *case.loss.value_and_grad(*arrays, **options),
        case.loss.grad(*arrays, wrt="temperature", **options),
        case.loss.hessian_diagonal(*arrays, **options),
        case.loss.hvp(*arrays, vector=tf.constant(vector), **options),
    ]
    expected = [
        *case.loss.value_and_grad(*plain, **options),
        case.loss.grad(*plain, wrt="temperature", **options),
        case.loss.hessian_diagonal(*plain, **options),
        case.loss.hvp(*plain, vector=vector, **options),
    ]
    for f, e in zip(found, expected, strict=True):
        assert_close(f, e)


def test_functions_of_a_loss_are_differentiable():
    x, y = tf.constant([0.5, -2.0], tf.float64), tf.constant([0.1, 0.2], tf.float64)
    penalty = gradient(lambda x: tf.reduce_sum(huber.grad(x, y, delta=1.5) ** 2), x)
    assert_close(penalty, [2 * (0.4 / 2) / 2, 0.0])


# ------------------------------------------------------------ errors and sizes


def test_a_class_outside_of_its_axis():
    logits, target = tf.random.stateless_normal((2, 4, 3), (1, 2)), tf.constant([[0, 1, 4], [0, -1, 2]])
    with pytest.raises(errors.IndexRangeError, match="from -1 to 4"):
        cross_entropy(logits, target)
    inside = tf.constant([[True, True, False], [True, False, True]])
    assert np.isfinite(cross_entropy(logits, target, mask=inside))
    for mode in ("graph", "xla"):  # where the values are not known beforehand
        losses = MODES[mode](lambda x, i: cross_entropy(x, i, reduction="none"))(logits, target)
        assert (np.isnan(losses.numpy()) == ~inside.numpy()).all()


BAD = [
    (lambda x: huber(x, x[:, :1]), errors.ShapeError, "shape \\(3, 1\\), but 'pred' has \\(3, 4\\)"),
    (lambda x: huber(x, np.zeros((3, 4))), errors.FrameworkError, "tensorflow.*numpy"),
    (lambda x: huber(tf.cast(x, tf.int32), x), errors.DtypeError, "floating point"),
    (lambda x: cross_entropy(x, x[:, 0]), errors.DtypeError, "integer"),
    (lambda x: huber(x, x, delta=tf.ones(2)), errors.ParameterError, "delta"),
    (lambda x: huber(x, tf.RaggedTensor.from_row_lengths([1.0], [1])), errors.FrameworkError, "Ragged"),
]


@pytest.mark.parametrize("mode", ["eager", "graph", "autograph"])
@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_calls(call, error, message, mode):
    with pytest.raises(error, match=message):
        {**MODES, "autograph": tf.function}[mode](call)(tf.ones((3, 4)))


def test_autograph_leaves_lossforge_as_it_is():
    """It would rewrite all that a loss calls, slowly, and raise its own errors."""

    @tf.function
    def step(x):
        return huber.value_and_grad(x, x[:1])

    with pytest.raises(errors.ShapeError) as caught:
        step(tf.ones(3))
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert any(f.name == "check_shapes" and f.filename.endswith("signature.py") for f in frames)


def unknown(*shapes):
    return [tf.TensorSpec(s, tf.float32) for s in shapes]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_sizes_that_are_unknown_to_a_graph_are_compared_as_it_runs(jit_compile):
    @tf.function(input_signature=unknown((None, None), (None, None)), jit_compile=jit_compile)
    def loss(pred, true):
        return huber(pred, true), huber.grad(pred, true)

    value, slope = loss(tf.ones((3, 4)), tf.zeros((3, 4)))
    assert value.numpy() == 0.5
    assert_close(slope, np.full((3, 4), 1 / 12), "float32")
    for shape in ((3, 1), (1, 4), (1, 1)):
        if jit_compile:
            value, slope = loss(tf.ones((3, 4)), tf.zeros(shape))
            assert np.isnan(value) and np.isnan(slope).all()
        else:
            with pytest.raises(tf.errors.InvalidArgumentError, match="one size in true and another in pred"):
                loss(tf.ones((3, 4)), tf.zeros(shape))


def test_an_unknown_number_of_dimensions():
    @tf.function(input_signature=unknown(None, None))
    def loss(pred, true):
        return huber(pred, true)

    with pytest.raises(errors.ShapeError, match="ensure_shape"):
        loss(tf.ones(3), tf.ones(3))


# ----------------------------------------------------------------------------- kernels, where TensorFlow executes at once


def taped(loss, pred, true):
    with tf.GradientTape() as tape:
        tape.watch(pred)
        value = loss(pred, true)
    return value, tape.gradient(value, pred)


@pytest.mark.parametrize("shape", [(5,), (3, 7), (1 << 19,)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_kernels_compute_eager_losses(monkeypatch, dtype, shape):
    ran = []
    attempt = tensorflow_adapter.tensorflow_kernels.attempt
    monkeypatch.setattr(tensorflow_adapter.tensorflow_kernels, "attempt", lambda *a: ran.append(attempt(*a)) or ran[-1])
    rng = np.random.default_rng(3)
    pred, true = (tf.cast(tf.constant(rng.standard_normal(shape) * 3), dtype) for _ in range(2))
    value, slope = taped(huber, pred, true)
    assert ran and all(r is not None for r in ran)
    assert slope.dtype == pred.dtype
    monkeypatch.setattr(tensorflow_adapter.tensorflow_kernels, "attempt", lambda *a: None)
    expected, slopes = taped(huber, pred, true)
    # Sums in another order: a few units in the last place of the precision that both are computed in.
    assert_close(value, expected.numpy(), "float64" if dtype == "float64" else "float32")
    found, wanted = (tf.cast(t, tf.float64).numpy() for t in (slope, slopes))
    np.testing.assert_allclose(found, wanted, rtol=2 * EPSILON[dtype])


def test_an_eager_gradient_that_is_kept_never_changes():
    rng = np.random.default_rng(4)
    true = tf.constant(rng.standard_normal(1 << 19), tf.float32)
    kept = [taped(huber, tf.constant(rng.standard_normal(1 << 19), tf.float32), true)[1] for _ in range(4)]
    copies = [k.numpy().copy() for k in kept]
    for _ in range(4):
        taped(huber, true + 1.0, true)
    for k, c in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(k.numpy(), c)
        np.testing.assert_array_equal((k + 0.0).numpy(), c)
