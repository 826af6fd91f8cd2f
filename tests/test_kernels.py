"""Kernels against the reference interpreter: operation × dtype × layout × shape.

Tolerances: an operation of the table is good to 2 ulp in float32 (4 in float64) beside the rounding of its arguments;
a loss sums up to a few thousand such terms, for which 32 ulp of the largest entry is a bound that one lost term, one
wrong stride or one missed block would exceed by far.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest

import lossforge as lf
from lossforge import ir, kernels, placement
from lossforge.dtypes import EPSILON
from lossforge.interpreter import evaluate
from lossforge.ir import Kind, Port, Program, elementwise, input_, reduction
from lossforge.runtime.threads import get_num_threads, set_num_threads
from lossforge.schedule import Sweep, reads, schedule

BLOCK_EDGES = (0, 1, 2, 7, 255, 256, 257, 4095, 4096, 4097, 65_537)


@lf.loss
def huber(pred, true, *, delta=1.0):
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


@lf.loss
def focal(logits, true, *, gamma=2.0, alpha=0.25):
    hit, miss = lf.log_sigmoid(logits), lf.log_sigmoid(-logits)
    return -alpha * true * lf.exp(gamma * miss) * hit - (1 - alpha) * (1 - true) * lf.exp(gamma * hit) * miss


@lf.loss("batch class *space, batch *space -> batch *space")
def cross_entropy(logits, target):
    return -lf.take(lf.log_softmax(logits, "class"), target, "class")


@lf.loss("batch class -> batch")
def log_sum_exp(pred):
    return lf.logsumexp(pred, "class")


@lf.loss("batch class *space, batch class *space -> batch class")
def dice(pred, true, *, smooth=1e-6):
    overlap = lf.sum(pred * true, "*space")
    total = lf.sum(pred, "*space") + lf.sum(true, "*space")
    return 1 - (2 * overlap + smooth) / (total + smooth)


@lf.loss("batch class *space, batch class *space -> class")
def softmax_dice(logits, true, *, smooth=1e-6):
    pred = lf.softmax(logits, "class")
    axes = ("batch", "*space")
    return 1 - (2 * lf.sum(pred * true, axes) + smooth) / (lf.sum(pred, axes) + lf.sum(true, axes) + smooth)


@lf.loss("batch d, batch d -> batch")
def info_nce(pred, key, *, temperature=0.2):
    similarity = lf.sum(pred * lf.rename(key, "batch", "other"), "d") / temperature
    return lf.logsumexp(similarity, "other") - lf.sum(pred * key, "d") / temperature


@lf.loss("batch class, batch class -> batch")
def margin(pred, true):
    best_other = lf.max(pred - 10 * true, "class")
    return lf.relu(1 + best_other - lf.sum(pred * true, "class")) + lf.min(pred, "class") ** 2


def close(got: np.ndarray, want: np.ndarray, dtype: str, ulps: float = 32) -> None:
    """Assert that two arrays agree to some ulp of the largest entry, and in their NaN and infinities."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.isposinf(got), np.isposinf(want))
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want))
    finite = np.isfinite(want)
    if finite.any():
        scale = max(np.abs(want[finite]).max(), 1e-30)
        assert np.abs(got[finite] - want[finite]).max() <= ulps * EPSILON[dtype] * scale


def check_gradient(loss: lf.Loss, arrays: tuple[np.ndarray, ...], dtype: str, **options: object) -> None:
    """Value and gradient of a call by kernels against the interpreter."""
    call = loss.bind(arrays, {}, **options)  # type: ignore[arg-type]
    program = call.plan.value_and_gradient(loss.predictions)
    real = "float64" if dtype == "float64" else "float32"
    formats = tuple(str(a.dtype) if p.order else None for a, p in zip(call.arrays, program.inputs, strict=True))
    bits = [a.view(np.uint16) if f == "bfloat16" else a for a, f in zip(call.arrays, formats, strict=True)]
    got = list(kernels.run(program, bits, real, (None, dtype), formats))
    if dtype == "bfloat16":
        got[1] = got[1].view(arrays[0].dtype)
    parameters = dict(zip([p.name for p in program.inputs], call.arrays, strict=True))
    exact = {p: np.asarray(parameters[p.name], np.float64) if p.node.kind is Kind.FLOAT else parameters[p.name]
             for p in program.inputs}  # fmt: skip
    flat = {}
    for port, value in exact.items():
        star = next((i for i, a in enumerate(port.order) if a.startswith("*")), None)
        if star is not None:
            after = len(port.order) - star - 1
            shape = value.shape
            value = value.reshape(*shape[:star], -1, *shape[len(shape) - after :])
        flat[port] = value
    want = evaluate([o.node for o in program.outputs], flat)
    close(got[0], want[0], "float64" if dtype == "float64" else "float32")
    order = program.outputs[1].order
    alphabetical = sorted(order)
    reference = want[1].transpose([alphabetical.index(a) for a in order]).reshape(got[1].shape)
    assert str(got[1].dtype) == dtype
    # A gradient in half precision is rounded once more, to half an ulp of its own entry at the most.
    close(got[1], reference, dtype, ulps=32 if dtype in ("float32", "float64") else 1)


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    values = rng.normal(size=shape)
    if dtype == "bfloat16":
        return values.astype(pytest.importorskip("ml_dtypes").bfloat16)
    return values.astype(dtype)


# ------------------------------------------------------------------------------------------- operations

GROUPS: dict[str, tuple[tuple[str, ...], Callable[[np.random.Generator, int], np.ndarray]]] = {
    "real": (
        ("neg", "abs", "sign", "exp", "expm1", "tanh", "sigmoid", "log_sigmoid", "softplus", "sin", "cos", "atan",
         "asinh", "erf", "erfc", "floor", "ceil", "round"),
        lambda rng, n: np.r_[rng.normal(size=n) * 5, 0.0, -0.0, 80.0, -80.0, np.inf, -np.inf, np.nan],
    ),
    "moderate": (("tan", "sinh", "cosh"), lambda rng, n: np.r_[rng.uniform(-1.4, 1.4, n), 0.0, np.nan]),
    "positive": (
        ("log", "log1p", "sqrt", "lgamma", "digamma"),
        lambda rng, n: np.r_[np.exp(rng.normal(size=n)), 1.0, 2.0, 1e-3, 1e6, np.nan],
    ),
    "unit": (("asin", "acos", "atanh", "log", "log1p"), lambda rng, n: np.r_[rng.uniform(0, 1, n), 0.5, np.nan]),
    "from_one": (("acosh",), lambda rng, n: np.r_[1 + np.exp(rng.normal(size=n)), 1.5, np.nan]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("group", GROUPS)
def test_operations_of_one_argument(group: str, dtype: str, rng: np.random.Generator) -> None:
    operations, points = GROUPS[group]
    x = Port(input_("x", ("*shape",)), ("*shape",))
    outputs = tuple(Port(elementwise(op, x.node), ("*shape",)) for op in operations)
    program = Program((x,), outputs, operations, (None,) * len(operations))
    values = points(rng, 300).astype(dtype)
    got = kernels.run(program, [values], dtype, (None,) * len(operations))
    with np.errstate(all="ignore"):
        want = evaluate([o.node for o in outputs], {x: values})
    for op, g, w in zip(operations, got, want, strict=True):
        finite = np.isfinite(w)
        np.testing.assert_array_equal(np.isnan(g), np.isnan(w), err_msg=op)
        np.testing.assert_array_equal(g[np.isinf(w)], w[np.isinf(w)], err_msg=op)
        # lgamma and digamma cross zero, where an ulp of the result says nothing: there, of the largest term.
        floor = 1.0 if op in ("lgamma", "digamma", "log1p", "log") else np.finfo(dtype).tiny
        ulp = EPSILON[dtype] * np.maximum(np.abs(w[finite]), floor)
        # The interpreter's digamma subtracts up to ten terms of size 1 by itself.
        assert (np.abs(g[finite] - w[finite]) <= (20 if op == "digamma" else 6) * ulp).all(), op


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_operations_of_two_arguments(dtype: str, rng: np.random.Generator) -> None:
    operations = ("add", "sub", "mul", "div", "minimum", "maximum", "logaddexp", "xlogy")
    x, y = (Port(input_(n, ("*shape",)), ("*shape",)) for n in "xy")
    outputs = tuple(Port(elementwise(op, x.node, y.node), ("*shape",)) for op in operations)
    condition = elementwise(
        "and", elementwise("lt", x.node, y.node), elementwise("not", elementwise("eq", x.node, 0.0))
    )
    outputs += (Port(elementwise("where", condition, x.node, y.node), ("*shape",)),)
    program = Program((x, y), outputs, (*operations, "where"), (None,) * len(outputs))
    special = np.array([0.0, -0.0, 1.0, -2.0, np.inf, -np.inf, np.nan])
    a, b = (m.ravel() for m in np.meshgrid(special, special))
    values = np.r_[rng.normal(size=200), a].astype(dtype), np.r_[np.exp(rng.normal(size=200)), b].astype(dtype)
    got = kernels.run(program, values, dtype, (None,) * len(outputs))
    with np.errstate(all="ignore"):
        want = evaluate([o.node for o in outputs], dict(zip((x, y), values, strict=True)))
    for op, g, w in zip((*operations, "where"), got, want, strict=True):
        np.testing.assert_array_equal(np.isnan(g), np.isnan(w), err_msg=op)
        finite = np.isfinite(w)
        np.testing.assert_array_equal(g[np.isinf(w)], w[np.isinf(w)], err_msg=op)
        assert (np.abs(g[finite] - w[finite]) <= 4 * EPSILON[dtype] * np.maximum(np.abs(w[finite]), 1e-3)).all(), op


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_powers(dtype: str, rng: np.random.Generator) -> None:
    x = Port(input_("x", ("*shape",)), ("*shape",))
    y = Port(input_("y", ()), ())
    out = Port(elementwise("pow", x.node, y.node), ("*shape",))
    program = Program((x, y), (out,), ("power",), (None,))
    for exponent in (0.0, 1.0, 2.0, -1.0, 0.5, 1.7, 3.0):
        values = np.r_[rng.normal(size=100), np.exp(rng.normal(size=100)), 0.0, 1.0, np.nan].astype(dtype)
        (got,) = kernels.run(program, [values, exponent], dtype, (None,))
        with np.errstate(all="ignore"):
            (want,) = evaluate([out.node], {x: values, y: exponent})
        close(got, want, dtype, ulps=4)


@pytest.mark.parametrize("op", ["sum", "prod", "max", "min", "logsumexp"])
@pytest.mark.parametrize("axes", [("a",), ("b",), ("c",), ("a", "c"), ("b", "c"), ("a", "b", "c")])
def test_reductions(op: str, axes: tuple[str, ...], rng: np.random.Generator) -> None:
    """Each reduction over each set of axes, as an output and inside of something that broadcasts it back."""
    x = Port(input_("x", ("a", "b", "c")), ("a", "b", "c"))
    reduced = reduction(op, x.node, axes)
    kept = tuple(a for a in "abc" if a not in axes)
    outputs = (Port(reduced, kept), Port(x.node * reduced, ("a", "b", "c")))
    program = Program((x,), outputs, ("reduced", "back"), (None, None))
    values = rng.uniform(0.5, 1.5, size=(3, 5, 7))
    got = kernels.run(program, [values], "float64", (None, None))
    want = evaluate([o.node for o in outputs], {x: values})
    for g, w in zip(got, want, strict=True):
        close(g, w, "float64")
    values[1, 2, 3] = np.nan
    got = kernels.run(program, [values], "float64", (None, None))
    want = evaluate([o.node for o in outputs], {x: values})
    np.testing.assert_array_equal(np.isnan(got[0]), np.isnan(want[0]))


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_single_entry_among_numbers(place: int, rng: np.random.Generator) -> None:
    """x[i] · mean(x²): an entry without axes, which no loop over the axes of a result meets."""
    x = Port(input_("x", ("a",)), ("a",))
    entry = ir.take(x.node, ir.constant(place, Kind.INDEX), "a")
    outputs = (Port(entry * reduction("sum", x.node * x.node, ("a",)), ()), Port(x.node * entry, ("a",)))
    values = rng.normal(size=7)
    values[1] = np.nan if place == 6 else values[1]  # the other entries have no part in it
    got = kernels.run(Program((x,), outputs, ("value", "back"), (None, None)), [values], "float64", (None, None))
    for g, w in zip(got, evaluate([o.node for o in outputs], {x: values}), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-14)


# ------------------------------------------------------------------------------------------- shapes and layouts


@pytest.mark.parametrize("n", BLOCK_EDGES[1:])
@pytest.mark.parametrize("loss", [huber, focal], ids=lambda x: x.name)
def test_sizes_around_block_edges(loss: lf.Loss, n: int, rng: np.random.Generator) -> None:
    check_gradient(loss, (draw(rng, (n,), "float32"), draw(rng, (n,), "float32") > 0), "float32")


@pytest.mark.parametrize("classes", [1, 2, 5, 255, 257, 4097])
@pytest.mark.parametrize("rows", [1, 3, 300])
def test_rows_around_block_edges(rows: int, classes: int, rng: np.random.Generator) -> None:
    logits, target = draw(rng, (rows, classes), "float32"), rng.integers(0, classes, rows)
    check_gradient(cross_entropy, (logits, target), "float32")
    space = draw(rng, (2, 3, classes), "float32"), rng.integers(0, 3, (2, classes))
    check_gradient(cross_entropy, space, "float32")


@pytest.mark.parametrize("place", ["first", "last", "some of the last"])
@pytest.mark.parametrize("classes", [2, 4, 8, 9, 32, 33, 300])
def test_an_inner_axis_of_any_length_anywhere_in_memory(classes: int, place: str, rng: np.random.Generator) -> None:
    """Loops written out, transposed blocks, scratch memory for each lane, rows: all are the same loss."""

    def lay(a: np.ndarray) -> np.ndarray:
        if place == "first":
            return np.ascontiguousarray(a)
        wide = np.moveaxis(a, 1, -1)
        if place == "some of the last":
            wide = np.pad(wide, [(0, 0)] * (a.ndim - 1) + [(1, 2)])
            return np.moveaxis(wide[..., 1:-2], -1, 1)
        return np.moveaxis(np.ascontiguousarray(wide), -1, 1)

    logits = lay(draw(rng, (2, classes, 263), "float32"))
    true = lay(rng.uniform(0, 1, (2, classes, 263)).astype(np.float32))
    check_gradient(softmax_dice, (logits, true), "float32")
    check_gradient(softmax_dice, (logits, np.ascontiguousarray(true)), "float32")
    check_gradient(cross_entropy, (logits, rng.integers(0, classes, (2, 263))), "float32")


def test_arguments_may_be_named_as_sizes_are(rng: np.random.Generator) -> None:
    """The stride of `n` along the batch and the size of the batch would both be `n_batch`."""

    @lf.loss("batch d, batch d -> batch")
    def distance(n, chunk):
        return lf.sum(lf.abs(n - chunk), "d")

    check_gradient(distance, (draw(rng, (9, 11), "float32"), draw(rng, (9, 11), "float32")), "float32")


def test_a_row_too_long_to_be_kept_is_computed_again(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "KEPT_BYTES", 1024)
    check_gradient(cross_entropy, (draw(rng, (3, 257), "float32"), rng.integers(0, 257, 3)), "float32")
    check_gradient(softmax_dice, (draw(rng, (2, 12, 300), "float32"), rng.random((2, 12, 300), np.float32)), "float32")


@pytest.mark.parametrize("shape", [(40, 300), (40, 4, 300), (40, 12, 300)])
def test_large_logits_keep_their_digits(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """logits − logsumexp would lose half an ulp of the logits themselves: 1.5e-5 at a scale of 300."""
    logits = (300 * rng.normal(size=shape)).astype(np.float32)
    target = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    program = cross_entropy.plan().value_and_gradient(("logits",))
    real = kernels.run(program, [logits, target], "float32", (None, "float32"))
    exact = kernels.run(program, [logits.astype(np.float64), target], "float64", (None, "float64"))
    close(real[0], exact[0], "float32")
    close(real[1], exact[1], "float32", ulps=4)


@pytest.mark.parametrize("classes", [3, 12, 40])
def test_softmax_of_infinities_is_the_limit(classes: int) -> None:
    logits = np.zeros((5, classes), np.float32)
    logits[0, 1] = np.inf
    logits[1, 1] = -np.inf
    logits[2] = -np.inf
    logits[3, 0], logits[3, 1] = np.nan, np.inf
    logits = np.repeat(logits, 60, axis=0)  # enough rows for each way of looping over them
    with np.errstate(all="ignore"):  # the reference's inf − inf
        check_gradient(log_sum_exp, (logits,), "float32")
        check_gradient(log_sum_exp, (np.asfortranarray(logits),), "float32")
    target = np.zeros(len(logits), int)
    got = cross_entropy(logits, target, reduction="none")
    want = np.repeat(np.float32([np.inf, np.log(classes - 1), np.nan, np.nan, np.log(classes)]), 60)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("beyond", [-1, 7, 2**32 + 3, -(2**32) + 3, 2**62])
def test_a_class_that_does_not_exist_is_nan_and_no_other(beyond: int) -> None:
    """Positions are compared as 32-bit integers, in which 2^32 + 3 would be 3."""
    logits, target = np.zeros((2, 7), np.float32), np.array([3, beyond])
    program = cross_entropy.plan("none").vjp(("logits",))
    (gradient,) = kernels.run(program, [logits, target, np.ones(2, np.float32)], "float32", ("float32",))
    np.testing.assert_allclose(gradient[0], np.float32(1 / 7) - np.eye(7, dtype=np.float32)[3], rtol=1e-5)
    assert np.isnan(gradient[1]).all() or (gradient[1] > 0).all()


@pytest.mark.parametrize("reduction_", ["sum", "none"])
def test_nothing(reduction_: str) -> None:
    empty = np.zeros((0, 3), np.float32)
    loss = huber(empty, empty, reduction=reduction_)
    assert loss.shape == (() if reduction_ == "sum" else (0, 3))
    assert (loss == 0).all()
    assert huber.grad(empty, empty, reduction="sum").shape == (0, 3)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "channels last": lambda a: np.ascontiguousarray(np.moveaxis(a, 1, -1)).swapaxes(1, -1) if a.ndim == 3
    else np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1),
    "sliced": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "inside": lambda a: np.pad(a, [(1, 2)] * a.ndim)[tuple(slice(1, -2) for _ in a.shape)],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", [huber, dice, softmax_dice, cross_entropy], ids=lambda x: x.name)
def test_layouts_without_a_copy(loss: lf.Loss, layout: str, rng: np.random.Generator) -> None:
    logits = rng.uniform(0.1, 1, size=(2, 3, 4, 5)).astype(np.float32)
    true = (
        rng.integers(0, 3, (2, 4, 5)) if loss is cross_entropy else rng.uniform(0, 1, (2, 3, 4, 5)).astype(np.float32)
    )
    place = LAYOUTS[layout]
    arrays = (place(logits), true if loss is cross_entropy else place(true))
    np.testing.assert_array_equal(arrays[0], logits)
    check_gradient(loss, arrays, "float32")
    mixed = (place(logits), true)
    check_gradient(loss, mixed, "float32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("loss", [huber, softmax_dice, info_nce, margin], ids=lambda x: x.name)
def test_dtypes(loss: lf.Loss, dtype: str, rng: np.random.Generator) -> None:
    shape = (4, 6, 5) if loss is softmax_dice else (6, 5)
    pred, true = draw(rng, shape, dtype), draw(rng, shape, dtype)
    if loss is margin:
        true = np.eye(5, dtype=np.float32)[rng.integers(0, 5, 6)].astype(true.dtype)
    check_gradient(loss, (pred, true), dtype)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint16"])
def test_class_indices_of_any_integer_dtype(dtype: str, rng: np.random.Generator) -> None:
    check_gradient(cross_entropy, (draw(rng, (9, 4), "float32"), rng.integers(0, 4, 9).astype(dtype)), "float32")


def test_weights_masks_and_reductions(rng: np.random.Generator) -> None:
    arrays = draw(rng, (33, 7), "float32"), draw(rng, (33, 7), "float32")
    options: list[dict[str, object]] = [
        {"weight": rng.random(33, np.float32)},
        {"weight": rng.random((33, 7), np.float32), "mask": rng.random((33, 7)) > 0.5},
        {"mask": rng.random(33) > 0.5, "reduction": "sum"},
        {"weight": 2.0},
    ]
    for option in options:
        check_gradient(huber, arrays, "float32", **option)


def test_nan_and_infinity_pass_through(rng: np.random.Generator) -> None:
    pred, true = draw(rng, (5000,), "float32"), draw(rng, (5000,), "float32")
    pred[17], pred[4999], pred[256] = np.nan, np.inf, -np.inf
    loss, gradient = huber.value_and_grad(pred, true)
    assert np.isnan(loss)
    assert np.isnan(gradient[17])
    assert gradient[4999] == np.float32(1 / 5000)
    assert gradient[256] == np.float32(-1 / 5000)
    assert np.isfinite(np.delete(gradient, 17)).all()
    logits = np.zeros((3, 4), np.float32)
    logits[1] = [0, np.nan, 0, 0]
    logits[2] = [-np.inf, 0, -np.inf, 0]
    got = cross_entropy(logits, np.array([0, 1, 1]), reduction="none")
    assert np.isnan(got[1])
    np.testing.assert_allclose(got[[0, 2]], np.log([4, 2]), rtol=1e-6)


# ------------------------------------------------------------------------------------------- threads


@pytest.fixture
def threads():
    before = get_num_threads()
    yield set_num_threads
    set_num_threads(before)


def test_the_number_of_threads_changes_nothing(threads, rng: np.random.Generator) -> None:
    arrays = draw(rng, (3_000_001,), "float32"), draw(rng, (3_000_001,), "float32")
    answers = []
    for n in (1, 2, 3, 7):
        threads(n)
        loss, gradient = focal.value_and_grad(arrays[0], arrays[1] > 0)
        answers.append((loss, gradient.copy()))
    for loss, gradient in answers[1:]:
        assert loss == answers[0][0]
        np.testing.assert_array_equal(gradient, answers[0][1])


def test_concurrent_callers_do_not_disturb_each_other(rng: np.random.Generator) -> None:
    inputs = [(draw(rng, (200_000 + i,), "float32"), draw(rng, (200_000 + i,), "float32")) for i in range(8)]
    want = [huber.value_and_grad(*pair) for pair in inputs]
    found: list[tuple] = [()] * len(inputs)

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = huber.value_and_grad(*inputs[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    for got, expected in zip(found, want, strict=True):
        assert got[0] == expected[0]
        np.testing.assert_array_equal(got[1], expected[1])


def test_a_gradient_that_is_kept_never_changes(rng: np.random.Generator) -> None:
    pred, true = draw(rng, (1_000_000,), "float32"), draw(rng, (1_000_000,), "float32")
    first = huber.grad(pred, true)
    kept = first.copy()
    for _ in range(3):
        huber.grad(-pred, true)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("loss, shapes", [
    (huber, ((7, 5), (7, 5))), (softmax_dice, ((2, 3, 4, 5),) * 2), (info_nce, ((6, 4), (6, 4))), (margin, ((9, 4), (9, 4))),
], ids=lambda x: getattr(x, "name", ""))  # fmt: skip
def test_results_go_where_the_caller_wants_them(loss: lf.Loss, shapes: tuple, rng: np.random.Generator) -> None:
    arrays = [rng.standard_normal(s) for s in shapes]
    call = loss.bind(arrays, {})
    program = call.plan.value_and_gradient(loss.arguments)
    want = kernels.run(program, call.arrays, "float64", (None,) * 3)
    room = [np.full(np.shape(w), np.nan) for w in want]
    got = kernels.run(program, call.arrays, "float64", (None,) * 3, None, room)
    for g, r, w in zip(got, room, want, strict=True):
        assert g is r
        np.testing.assert_array_equal(g, w)


def test_a_result_that_is_an_input_goes_where_the_caller_wants_it() -> None:
    x = input_("x", ("a",))
    program = Program((Port(x, ("a",)),), (Port(x, ("a",)), Port(x, ("a",)), Port(elementwise("neg", x), ("a",))))
    values, room = np.arange(5.0), [np.zeros(5), np.zeros(5), np.zeros(5)]
    kernels.run(program, [values], "float64", (None,) * 3, None, room)
    for got, want in zip(room, (values, values, -values), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("order", list(itertools.permutations("abc")), ids="".join)
def test_a_result_that_is_an_input_in_any_order(order: tuple[str, ...], rng: np.random.Generator) -> None:
    """As the gradient of a sum over an axis, which is the upstream gradient for each entry of the axis."""
    x = input_("x", ("a", "c"))
    ports = Port(x, ("c", "a")), Port(elementwise("neg", x), ("a", "c"))
    program = Program((ports[0], Port(input_("y", "abc"), order)), (Port(x, order), ports[1]))
    sizes = {"a": 2, "b": 4, "c": 3}
    values, like = rng.standard_normal((3, 2)), np.zeros([sizes[a] for a in order])
    got, negative = kernels.run(program, [values, like], "float64", (None,) * 2)
    np.testing.assert_array_equal(np.einsum(f"{''.join(order)}->bca", got), np.broadcast_to(values, (4, 3, 2)))
    np.testing.assert_array_equal(negative, -values.T)
    got[:] = 0.0  # the caller's own
    np.testing.assert_array_equal(negative, -values.T)


def test_a_forked_child_computes_the_same() -> None:
    """In an interpreter of its own, since other tests load libraries that must not be forked."""
    import subprocess
    import sys

    program = """
import multiprocessing, numpy as np
from lossforge.catalogue import huber
pred, true = np.linspace(-3, 3, 2_000_000, dtype="float32"), np.zeros(2_000_000, "float32")
before = float(huber(pred, true))
def work(answers): answers.put(float(huber(pred, true)))
context = multiprocessing.get_context("fork")
answers = context.Queue()
children = [context.Process(target=work, args=(answers,)) for _ in range(3)]
for c in children: c.start()
found = [answers.get(timeout=60) for _ in children]
for c in children: c.join(60)
assert found == [before] * 3, (found, before)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)


# ------------------------------------------------------------------------------------------- schedules


def sweeps(loss: lf.Loss) -> tuple[Sweep, ...]:
    return schedule(loss.plan().value_and_gradient(loss.predictions)).sweeps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_of_computed_entries_is_found_again(dtype: str, rng: np.random.Generator) -> None:
    """Its gradient goes to the entries that equal it, computed anew in another loop: not one bit may differ."""

    @lf.loss("batch class, batch -> batch")
    def multiclass_hinge(scores, target):
        margin = scores * 1.1 + 1.0 - 0.3 * scores - lf.one_hot(target, "class")
        return lf.max(margin, "class") - lf.take(scores, target, "class")

    for _ in range(100):
        scores, target = rng.normal(size=(6, 7)).astype(dtype), rng.integers(0, 7, 6)
        check_gradient(multiclass_hinge, (scores, target), dtype)


@lf.loss("batch x d, batch y d -> batch")
def chamfer(pred, true):
    """Each point's distance to the nearest one of the other set, both ways: from few distances, which are stored."""
    distance = lf.sqrt(lf.sum((pred - true) ** 2, "d"))
    return lf.mean(lf.min(distance, "y"), "x") + lf.mean(lf.min(distance, "x"), "y")


@lf.loss("batch d, batch -> batch")
def batch_hard(pred, label):
    """Many sweeps over few entries."""
    distance = lf.sqrt(lf.sum((pred - lf.rename(pred, "batch", "other")) ** 2, "d") + 1e-12)
    same = lf.where(label == lf.rename(label, "batch", "other"), 1.0, 0.0)
    return lf.softplus(lf.max(distance * same, "other") - lf.min(distance + 1e8 * same, "other"))


@pytest.mark.parametrize("size", [5, 40])
def test_the_nearest_of_computed_distances_is_found_again(size: int, rng: np.random.Generator) -> None:
    """As the test above, where some of the loops are over so few entries that NumPy would do them."""
    points = [rng.normal(size=(2, size, 3)).astype("float32") for _ in range(2)]
    check_gradient(chamfer, tuple(points), "float32")
    check_gradient(batch_hard, (points[0][0], rng.integers(0, 2, size)), "float32")


WHOLE = [
    -(2**63),
    -(2**40) - 3,
    -(2**31) - 1,
    -(2**31),
    -100,
    -1,
    0,
    1,
    3,
    4,
    2**24 + 1,
    2**31 - 1,
    2**31,
    2**32 + 1,
    2**40,
    2**63 - 1,
]


@lf.loss("batch, batch -> batch")
def whole_numbers(pred, true):
    """Whole numbers as numbers, and compared."""
    return pred * true + lf.where(true == -100, pred, 0.0) + lf.where(true >= 2**24, 3 * pred, pred**2)


@lf.loss("batch class, batch -> batch")
def ignoring(pred, label):
    return lf.where(label == -100, 0.0, lf.take(pred, label, "class") ** 2)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_whole_numbers_of_any_size(dtype: str, real: str, rng: np.random.Generator) -> None:
    """Read in halves where they have 64 bits, so that a loop over float32 is not cut to half its width by them."""
    info = np.iinfo(dtype)
    some = np.array([v for v in WHOLE if info.min <= v <= info.max], dtype)
    true = np.concatenate([some, rng.choice(some, 300)])
    pred = rng.normal(size=true.size).astype(real)
    value, gradient = whole_numbers.value_and_grad(pred, true, reduction="none")
    exact = true.astype(real).astype("float64")
    bonus = np.where(exact >= 2**24, 3 * pred.astype(float), pred.astype(float) ** 2) + np.where(exact == -100, pred, 0)
    slope = exact + np.where(exact >= 2**24, 3, 2 * pred.astype(float)) + (exact == -100)
    eps = 8 * EPSILON[real]
    np.testing.assert_allclose(value, pred * exact + bonus, rtol=eps, atol=eps * np.abs(bonus).max())
    np.testing.assert_allclose(gradient, slope, rtol=eps, atol=8 * eps)


@pytest.mark.parametrize("size", [3, 8, 40])
def test_a_position_that_does_not_fit_32_bits_is_no_other(size: int) -> None:
    """NaN, as for every position outside: along an axis that is written out (3, 8) and one that is not."""
    pred = np.arange(9.0 * size, dtype="float32").reshape(9, size)
    label = np.array([0, size - 1, 2**32, 2**32 + 1, -(2**32), -1, size, -100, 1])
    plan = ignoring.bind((pred, np.clip(label, 0, size - 1)), {}, reduction="none").plan
    (value,) = kernels.run(plan.value(), [pred, label], "float32", (None,))
    want = [0.0, pred[1, -1] ** 2, *[np.nan] * 5, 0.0, pred[8, 1] ** 2]
    np.testing.assert_allclose(value, want, rtol=2e-7)


def test_the_value_of_a_weighted_mean_waits_for_its_gradient() -> None:
    """Which needs the sum of the weights first: all else is read once."""
    for options in ({"weight": np.ones(5)}, {"mask": np.ones(5, bool)}):
        plan = huber.bind((np.ones(5), np.ones(5)), {}, **options).plan
        first, second = (s for s in schedule(plan.value_and_gradient(("pred",))).steps if isinstance(s, Sweep))
        assert [n.attrs[0] for n in reads(first)] == list(options)
        assert len(second.totals) == len(second.stores) == 1


@lf.loss("row column -> row column")
def asymmetry(pred):
    power = lf.exp(pred)
    turned = lf.rename(lf.rename(lf.rename(power, "column", "aside"), "row", "column"), "aside", "row")
    total = lf.sum(power, "column")
    return (power - 0.5 * turned) ** 2 / total


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("size", [5, 80])
def test_what_is_kept_for_a_lane_serves_its_own_position(order: str, size: int, rng: np.random.Generator) -> None:
    check_gradient(asymmetry, (np.asarray(rng.normal(size=(size, size)).astype("float32"), order=order),), "float32")


def test_an_elementwise_loss_is_one_sweep() -> None:
    (only,) = sweeps(huber)
    assert len(only.totals) == len(only.stores) == 1
    assert not only.inner


def test_a_softmax_loss_is_one_sweep_with_its_row_in_cache() -> None:
    (only,) = sweeps(cross_entropy)
    assert only.inner == ("class",)
    assert [r.op for r in only.reductions] == ["max", "sum"]


def test_softmax_dice_reads_its_inputs_twice() -> None:
    long = [s for s in sweeps(softmax_dice) if "*space" in (*s.outer, *s.inner)]
    assert len(long) == 2
    assert sum(len(s.stores) for s in long) == 1


def test_a_similarity_matrix_goes_to_blas() -> None:
    steps = schedule(info_nce.plan().value_and_gradient(("pred",))).steps
    assert [type(s).__name__ for s in steps].count("Product") == 2


def test_a_total_over_some_of_the_axes_of_another(rng: np.random.Generator) -> None:
    x, w, z = (Port(input_(name, axes), tuple(axes)) for name, axes in (("x", "ab"), ("w", "b"), ("z", "c")))
    outputs = reduction("sum", x.node * w.node, "ab"), z.node * reduction("sum", w.node, "b")
    program = Program((x, w, z), tuple(Port(o, tuple(sorted(o.axes))) for o in outputs), ("loss", "y"), (None, None))
    arrays = [rng.normal(size=shape).astype("float32") for shape in ((4, 3), (3,), (5,))]
    got = kernels.run(program, arrays, "float32", (None, None))
    want = evaluate(list(outputs), dict(zip((x, w, z), (a.astype(float) for a in arrays), strict=True)))
    for g, v in zip(got, want, strict=True):
        close(g, v, "float32")
