"""Every loss of the catalogue: against high precision, the laws of reductions, and other libraries."""

import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lossforge as lf
from lossforge import catalogue
from lossforge.catalogue import LOSSES
from lossforge.interpreter import HighPrecision, evaluate
from lossforge.ir import Kind, Program

pytest.importorskip("mpmath")

# ------------------------------------------------------------------------------------------- legal inputs


@dataclass(frozen=True)
class Shape:
    """What stands for the axes of any number."""

    extra: tuple[int, ...]
    """The other axes of an elementwise loss."""
    space: tuple[int, ...]
    lead: tuple[int, ...]


FLAT = Shape((), (2,), ())
"""One dimension for each axis of the graph, as the reference interpreter takes arrays."""
FULL = Shape((3,), (2, 2), (2,))

Draw = Callable[[np.random.Generator, int, Shape], np.ndarray]


def real(scale: float = 1.0) -> Draw:
    return lambda rng, n, shape: rng.normal(0, scale, (n, *shape.extra))


def positive() -> Draw:
    return lambda rng, n, shape: rng.uniform(0.1, 3, (n, *shape.extra))


def counts() -> Draw:
    return lambda rng, n, shape: rng.poisson(2.0, (n, *shape.extra)).astype(float)


def unit() -> Draw:
    return lambda rng, n, shape: rng.uniform(0, 1, (n, *shape.extra))


def signs() -> Draw:
    return lambda rng, n, shape: rng.choice([-1.0, 1.0], (n, *shape.extra))


def scores(classes: int = 3) -> Draw:
    return lambda rng, n, shape: rng.normal(0, 2, (n, classes, *shape.space))


def probabilities(classes: int = 3) -> Draw:
    return lambda rng, n, shape: rng.uniform(0.02, 0.98, (n, classes, *shape.space))


def masks(classes: int = 3) -> Draw:
    return lambda rng, n, shape: rng.integers(0, 2, (n, classes, *shape.space)).astype(float)


def distributions(classes: int = 3) -> Draw:
    def draw(rng: np.random.Generator, n: int, shape: Shape) -> np.ndarray:
        raw = rng.exponential(1, (n, classes, *shape.space))
        return raw / raw.sum(axis=1, keepdims=True)

    return draw


def classes(number: int = 3) -> Draw:
    return lambda rng, n, shape: rng.integers(0, number, (n, *shape.space))


def of_each_sample(draw: Draw) -> Draw:
    return lambda rng, n, shape: draw(rng, n, Shape((), (), ()))


def vectors(scale: float = 1.0) -> Draw:
    return lambda rng, n, shape: rng.normal(0, scale, (n, 4))


def many_vectors() -> Draw:
    return lambda rng, n, shape: rng.normal(0, 1, (n, *shape.lead, 4))


@dataclass(frozen=True)
class Case:
    """How to call a loss."""

    inputs: tuple[Draw, ...]
    parameters: tuple[Mapping[str, float], ...] = ({},)
    couples: bool = False
    """Whether one entry of the loss depends on several samples."""

    def draw(self, rng: np.random.Generator, n: int, shape: Shape) -> tuple[np.ndarray, ...]:
        return tuple(draw(rng, n, shape) for draw in self.inputs)


ELEMENTWISE = (real(), real())
LABELLED = (real(2.0), signs())
OVERLAP = (probabilities(), masks())
CHOICE = (scores(), classes())
TVERSKY = ({}, {"alpha": 0.5, "beta": 0.25, "smooth": 1.0})

CASES: dict[str, Case] = {
    "squared_error": Case(ELEMENTWISE),
    "weighted_squared_error": Case((*ELEMENTWISE, positive())),
    "absolute_error": Case(ELEMENTWISE),
    "huber": Case(ELEMENTWISE, ({}, {"delta": 0.3})),
    "smooth_l1": Case(ELEMENTWISE, ({}, {"beta": 0.3})),
    "pseudo_huber": Case(ELEMENTWISE, ({}, {"delta": 0.3})),
    "charbonnier": Case(ELEMENTWISE, ({}, {"epsilon": 0.5})),
    "quantile": Case(ELEMENTWISE, ({}, {"q": 0.9})),
    "log_cosh": Case(ELEMENTWISE),
    "gaussian_nll": Case((real(), real(), real())),
    "laplace_nll": Case((real(), real(), real())),
    "poisson_nll": Case((real(), counts())),
    "kl_divergence": Case((scores(), distributions())),
    "binary_cross_entropy": Case((real(3.0), unit())),
    "sigmoid_focal": Case((real(3.0), unit()), ({}, {"alpha": 0.6, "gamma": 0.5})),
    "cross_entropy": Case(CHOICE),
    "smoothed_cross_entropy": Case(CHOICE, ({}, {"smoothing": 0.3})),
    "soft_cross_entropy": Case((scores(), distributions())),
    "logistic": Case(LABELLED),
    "hinge": Case(LABELLED),
    "squared_hinge": Case(LABELLED),
    "multiclass_hinge": Case((of_each_sample(scores(4)), of_each_sample(classes(4)))),
    "dice": Case(OVERLAP, ({}, {"smooth": 1.0})),
    "dice_batch": Case(OVERLAP, ({}, {"smooth": 1.0}), couples=True),
    "dice_global": Case(OVERLAP, ({}, {"smooth": 1.0}), couples=True),
    "sigmoid_dice": Case((scores(), masks()), ({}, {"smooth": 1.0})),
    "softmax_dice": Case(CHOICE, ({}, {"smooth": 1.0})),
    "jaccard": Case(OVERLAP, ({}, {"smooth": 1.0})),
    "tversky": Case(OVERLAP, TVERSKY),
    "tversky_batch": Case(OVERLAP, TVERSKY, couples=True),
    "focal_tversky": Case(OVERLAP, (*TVERSKY, {"gamma": 0.75})),
    "info_nce": Case((vectors(0.5), vectors(0.5)), ({}, {"temperature": 1.0}), couples=True),
    "nt_xent": Case((vectors(), vectors()), ({}, {"temperature": 0.2}), couples=True),
    "cosine": Case((many_vectors(), many_vectors())),
    "triplet_margin": Case((vectors(), vectors(), vectors()), ({}, {"margin": 1.0})),
}

EACH = [pytest.param(name, p, id=f"{name}{dict(p) or ''}") for name, c in CASES.items() for p in c.parameters]


# ------------------------------------------------------------------------------------------- computing


class Oracle:
    """The sum of a loss as it was written, in 50 digits, and its derivatives by central differences.

    At steps of 1e-12 and 1e-15 the differences are right to 20 digits and more: truncation leaves the
    square of the step, cancellation 1e-50 over its first or second power.
    """

    def __init__(self, loss: lf.Loss, args: Sequence[np.ndarray], parameters: Mapping[str, float]) -> None:
        self.number = HighPrecision(50)
        self.definition = loss.definition()
        given = {**dict(zip(loss.arguments, args, strict=True)), **loss.parameters, **parameters}
        self.ports = (*self.definition.arguments, *self.definition.parameters)
        self.exact = {p: self.number.array(flat(given[p.name], p.order), p.node.kind) for p in self.ports}

    def entries(self, name: str = "", change: Any = 0) -> np.ndarray:
        values = {p: v + change if p.name == name else v for p, v in self.exact.items()}
        return evaluate([self.definition.source or self.definition.value], values, self.number)[0].ravel()

    def __call__(self, name: str = "", change: Any = 0) -> Any:
        return self.number.context.fsum(self.entries(name, change).tolist())

    def mean(self) -> float:
        return float(self() / self.count)

    @property
    def count(self) -> int:
        return self.entries().size

    def _steps(self, name: str, step: Any) -> list[np.ndarray]:
        """A step in each entry of an input."""
        shape = self.exact[next(p for p in self.ports if p.name == name)].shape
        result = []
        for entry in np.ndindex(shape):
            result.append(np.full(shape, self.number.context.mpf(0), dtype=object))
            result[-1][entry] = step
        return result

    def gradient(self, name: str) -> np.ndarray:
        h = self.number.context.mpf("1e-15")
        return np.array([float((self(name, s) - self(name, -s)) / (2 * h)) for s in self._steps(name, h)])

    def hessian_diagonal(self, name: str) -> np.ndarray:
        h, middle = self.number.context.mpf("1e-12"), self()
        ends = [self(name, s) + self(name, -s) for s in self._steps(name, h)]
        return np.array([float((e - 2 * middle) / h**2) for e in ends])

    def hvp(self, name: str, vector: np.ndarray) -> np.ndarray:
        h = self.number.context.mpf("1e-12")
        v = self.number.array(flat(vector, self.definition.port(name).order), Kind.FLOAT) * h
        result = []
        for s in self._steps(name, h):
            mixed = self(name, s + v) - self(name, s - v) - self(name, v - s) + self(name, -s - v)
            result.append(float(mixed / (4 * h**2)))
        return np.array(result)


def flat(array: Any, order: Sequence[str]) -> np.ndarray:
    """An array with one dimension for each axis of the graph."""
    array = np.asarray(array)
    star = next((i for i, a in enumerate(order) if a.startswith("*")), None)
    if star is None:
        return array
    after = len(order) - 1 - star
    middle = array.shape[star : array.ndim - after]
    return array.reshape(*array.shape[:star], math.prod(middle), *array.shape[array.ndim - after :])


def interpreted(program: Program, arrays: Sequence[Any]) -> list[np.ndarray]:
    """A program's outputs by the reference interpreter, in their memory order; no kernel is compiled."""
    values = {p: flat(a, p.order) for p, a in zip(program.inputs, arrays, strict=True)}
    lengths = {a: n for p, v in values.items() for a, n in zip(p.order, v.shape, strict=True)}
    result = []
    for port, found in zip(program.outputs, evaluate([o.node for o in program.outputs], values), strict=True):
        have = sorted(port.node.axes)
        ordered = found.transpose([have.index(a) for a in port.order if a in have])
        wide = ordered.reshape([lengths[a] if a in have else 1 for a in port.order])
        result.append(np.broadcast_to(wide, [lengths[a] for a in port.order]))
    shapes = {p.name: np.shape(a) for p, a in zip(program.inputs, arrays, strict=True)}
    return [r if n is None else r.reshape(shapes[n]) for r, n in zip(result, program.like, strict=True)]


def value_and_gradients(loss: lf.Loss, args: Sequence[np.ndarray], **call: Any) -> tuple[np.ndarray, ...]:
    """The loss and the gradient for each prediction, through the plan and the reference interpreter."""
    bound = loss.bind(args, {}, **call)
    (value,) = interpreted(bound.plan.value(), bound.arrays)
    if call.get("reduction") == "none":
        bound = loss.bind(args, {}, **{**call, "reduction": "sum"})
    return value, *interpreted(bound.plan.gradient(loss.predictions), bound.arrays)


def entries(name: str, *args: np.ndarray, **parameters: float) -> np.ndarray:
    """The loss of each entry."""
    bound = LOSSES[name].bind(args, parameters, reduction="none")
    return interpreted(bound.plan.value(), bound.arrays)[0]


def close(found: Any, expected: Any, tolerance: float) -> None:
    """Assert agreement, in units of the largest entry: small ones are differences of large ones."""
    found, expected = np.asarray(found, dtype=float).ravel(), np.asarray(expected, dtype=float).ravel()
    scale = max(np.abs(expected).max(initial=0.0), 1e-300)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


# ------------------------------------------------------------------------------------------- what is there


def test_every_loss_is_tested_and_listed():
    modules = [m for name, m in vars(catalogue).items() if getattr(m, "__package__", "") == "lossforge.catalogue"]
    defined = {n for m in modules for n, v in vars(m).items() if isinstance(v, lf.Loss)}
    assert set(LOSSES) == defined == set(CASES)
    assert set(catalogue.__all__) == {"LOSSES", *LOSSES}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_exported_under_its_name_and_pickles(name):
    loss = LOSSES[name]
    assert loss.name == name
    assert getattr(catalogue, name) is loss
    assert pickle.loads(pickle.dumps(loss)) is loss


@pytest.mark.parametrize("name", LOSSES)
def test_the_docstring_states_formula_shapes_domain_and_source(name):
    doc = LOSSES[name].__doc__
    sections = re.findall(r"^ +(Shapes|Domain|Source): ", doc, re.MULTILINE)
    assert sections == ["Shapes", "Domain", "Source"]
    assert re.search(r"^ {8}\S", doc, re.MULTILINE), "no formula"
    assert re.search(r"Source: .*\(\d{4}\)", doc, re.DOTALL), "no year"
    domain = doc[doc.index("Domain:") : doc.index("Source:")]
    assert [p for p in LOSSES[name].parameters if not re.search(rf"\b{p}\b", domain)] == []


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_explains_itself(name):
    text = str(LOSSES[name].explain())
    assert [part for part in ("LOSS", "BACKWARD", "GRADIENT", "DOMAIN") if part not in text] == []


def test_importing_the_catalogue_imports_no_framework():
    frameworks = ("torch", "tensorflow", "keras", "jax", "numba")
    program = f"import sys, lossforge.catalogue; print([m for m in {frameworks} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


# ------------------------------------------------------------------------------------------- derivatives


# Up to 40 operations and sums of 24 terms, in units of the largest entry: some hundred roundings.
TOLERANCE = {"float64": 1e-13, "float32": 5e-5}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "parameters"), EACH)
def test_value_and_gradient(name, parameters, dtype, rng):
    loss = LOSSES[name]
    args = [a.astype(dtype) if a.dtype.kind == "f" else a for a in CASES[name].draw(rng, 2, FULL)]
    value, gradients = loss.value_and_grad(*args, wrt=loss.predictions, **parameters)
    oracle = Oracle(loss, args, parameters)
    close(value, oracle.mean(), TOLERANCE[dtype])
    for prediction, gradient in zip(loss.predictions, gradients, strict=True):
        assert gradient.dtype == dtype
        assert gradient.shape == args[loss.arguments.index(prediction)].shape
        close(gradient, oracle.gradient(prediction) / oracle.count, TOLERANCE[dtype])


@pytest.mark.parametrize(("name", "parameters"), EACH)
def test_the_other_arguments_and_the_parameters_have_gradients_too(name, parameters, rng):
    loss = LOSSES[name]
    args = CASES[name].draw(rng, 2, FLAT)
    bound = loss.bind(args, parameters, reduction="sum")
    floats = [p.name for p in bound.plan.inputs if p.node.kind is Kind.FLOAT]
    oracle = Oracle(loss, args, parameters)
    for wrt in floats:
        (gradient,) = interpreted(bound.plan.gradient((wrt,)), bound.arrays)
        close(gradient, oracle.gradient(wrt), 1e-11)


@pytest.mark.parametrize(("name", "parameters"), EACH)
def test_second_derivatives(name, parameters, rng):
    loss = LOSSES[name]
    args = CASES[name].draw(rng, 2, FLAT)
    bound = loss.bind(args, parameters, reduction="sum")
    oracle = Oracle(loss, args, parameters)
    for wrt in loss.predictions:
        (diagonal,) = interpreted(bound.plan.hessian_diagonal(wrt), bound.arrays)
        vector = rng.normal(size=diagonal.shape)
        (product,) = interpreted(bound.plan.hvp(wrt), (*bound.arrays, vector))
        reference = oracle.hvp(wrt, vector)
        scale = max(np.abs(reference).max(), 1.0)
        np.testing.assert_allclose(product.ravel(), reference, rtol=0, atol=1e-11 * scale)
        np.testing.assert_allclose(diagonal.ravel(), oracle.hessian_diagonal(wrt), rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("name", ["huber", "dice", "cross_entropy", "cosine"])
def test_any_number_of_free_axes(name, rng):
    """None, one and three spatial (or leading) axes."""
    loss = LOSSES[name]
    for rank in (0, 1, 3):
        free = (2, 3, 2)[:rank]
        args = CASES[name].draw(rng, 2, Shape(free, free, free))
        value, gradient = loss.value_and_grad(*args)
        oracle = Oracle(loss, args, {})
        close(value, oracle.mean(), TOLERANCE["float64"])
        close(gradient, oracle.gradient(loss.predictions[0]) / oracle.count, TOLERANCE["float64"])


# ------------------------------------------------------------------------------------------- extremes


EXTREME = {
    "huber": (0.0,),
    "pseudo_huber": (0.0,),
    "log_cosh": (0.0,),
    "binary_cross_entropy": (0.0, 0.3, 1.0),
    "sigmoid_focal": (0.0, 0.3, 1.0),
    "logistic": (-1.0, 1.0),
    "hinge": (-1.0, 1.0),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", EXTREME)
def test_extreme_predictions(name, dtype):
    loss = LOSSES[name]
    pred = np.array([[-1e4, -90.0, 0.5], [90.0, 1e4, -20.0]], dtype)
    for label in EXTREME[name]:
        true = np.full_like(pred, label)
        value, gradient = loss.value_and_grad(pred, true)
        oracle = Oracle(loss, (pred, true), {})
        close(value, oracle.mean(), TOLERANCE[dtype])
        close(gradient, oracle.gradient(loss.predictions[0]) / oracle.count, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["cross_entropy", "smoothed_cross_entropy", "soft_cross_entropy", "kl_divergence"])
def test_extreme_logits(name, dtype, rng):
    loss = LOSSES[name]
    logits, true = CASES[name].draw(rng, 2, FULL)
    logits = np.sign(np.round(logits)).astype(dtype) * 10_000
    true = true.astype(dtype) if true.dtype.kind == "f" else true
    value, gradient = loss.value_and_grad(logits, true)
    oracle = Oracle(loss, (logits, true), {})
    rounding = 2 * np.finfo(dtype).eps * 1e4  # of logits − logsumexp(logits), which the exponential takes over
    close(value, oracle.mean(), TOLERANCE[dtype])
    close(gradient, oracle.gradient("logits") / oracle.count, rounding)


@pytest.mark.parametrize("name", ["log_cosh", "pseudo_huber"])
def test_small_errors_keep_their_digits(name):
    """The textbook forms cancel there: cosh and the root are 1 plus something that float64 does not see."""
    error = np.array([1e-3, 1e-6, 1e-9])
    each, gradient = value_and_gradients(LOSSES[name], (error, 0 * error), reduction="none")
    np.testing.assert_allclose(gradient, error, rtol=1e-6)
    np.testing.assert_allclose(each, error**2 / 2, rtol=1e-5, atol=3e-25)


def test_nothing_predicted_and_nothing_there():
    """Regions that are empty in both: no loss, and a gradient that is a number."""
    empty = np.zeros((2, 3, 4))
    for name in ("dice", "dice_batch", "dice_global", "jaccard", "tversky", "tversky_batch", "focal_tversky"):
        value, *gradients = value_and_gradients(LOSSES[name], (empty, empty))
        assert value == 0
        assert all(np.isfinite(g).all() for g in gradients)


def test_a_perfect_overlap_has_no_loss_and_a_gradient():
    true = np.array([[[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]])
    for name in ("dice", "jaccard", "tversky", "focal_tversky"):
        value, gradient = value_and_gradients(LOSSES[name], (true, true))
        assert abs(value) < 1e-6
        assert np.isfinite(gradient).all()


def test_a_zero_vector_has_no_direction():
    zero, other = np.zeros((2, 4)), np.ones((2, 4))
    value, gradient = value_and_gradients(LOSSES["cosine"], (zero, other))
    assert (value, np.abs(gradient).max()) == (1.0, 0.0)
    assert all(np.isfinite(g).all() for g in value_and_gradients(LOSSES["nt_xent"], (zero, other)))


def test_one_sample_alone_has_nothing_to_be_told_from(rng):
    for name in ("info_nce", "nt_xent"):
        value, *gradients = value_and_gradients(LOSSES[name], CASES[name].draw(rng, 1, FLAT))
        np.testing.assert_allclose(value, 0, atol=1e-12)
        assert all(np.abs(g).max() < 1e-12 for g in gradients)


# ------------------------------------------------------------------------------------------- reductions


SEEDS = st.integers(0, 2**32 - 1)
SAMPLES = st.integers(1, 4)
REDUCED = [name for name, loss in LOSSES.items() if loss.definition().order]
SEPARATE = [name for name in REDUCED if not CASES[name].couples]
few = settings(max_examples=8)


def drawn(name: str, seed: int, n: int) -> tuple[lf.Loss, tuple[np.ndarray, ...], np.random.Generator]:
    rng = np.random.default_rng(seed)
    return LOSSES[name], CASES[name].draw(rng, n, FLAT), rng


def same(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-11, atol=1e-13 * max(np.abs(e).max(initial=0.0), 1.0))


@pytest.mark.parametrize("name", LOSSES)
@few
@given(seed=SEEDS, n=SAMPLES)
def test_sum_and_mean_are_those_of_the_entries(name, seed, n):
    loss, args, _ = drawn(name, seed, n)
    each, *of_sum = value_and_gradients(loss, args, reduction="none")
    same(value_and_gradients(loss, args, reduction="sum"), [each.sum(), *of_sum])
    same(value_and_gradients(loss, args), [each.mean(), *(g / each.size for g in of_sum)])


@pytest.mark.parametrize("name", REDUCED)
@few
@given(seed=SEEDS, n=SAMPLES)
def test_a_weighted_mean_divides_by_the_weights(name, seed, n):
    loss, args, rng = drawn(name, seed, n)
    each = value_and_gradients(loss, args, reduction="none")[0]
    weight = rng.uniform(0.1, 2, each.shape)
    total, *gradients = value_and_gradients(loss, args, weight=weight, reduction="sum")
    same([total], [(weight * each).sum()])
    same(
        value_and_gradients(loss, args, weight=weight),
        [total / weight.sum(), *(g / weight.sum() for g in gradients)],
    )
    same(value_and_gradients(loss, args, weight=np.ones(each.shape)), value_and_gradients(loss, args))


@pytest.mark.parametrize("name", REDUCED)
@few
@given(seed=SEEDS, n=SAMPLES)
def test_a_mask_is_a_weight_of_0_or_1(name, seed, n):
    loss, args, rng = drawn(name, seed, n)
    each = value_and_gradients(loss, args, reduction="none")[0]
    mask = rng.random(each.shape) < 0.6
    mask.flat[0] = True
    for reduction in ("mean", "sum", "none"):
        masked = value_and_gradients(loss, args, mask=mask, reduction=reduction)
        same(masked, value_and_gradients(loss, args, weight=mask.astype(float), reduction=reduction))
    same([value_and_gradients(loss, args, mask=mask)[0]], [each[mask].mean()])


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_entirely_masked_batch_gives_0_with_zero_gradient(name, reduction, rng):
    loss = LOSSES[name]
    args = CASES[name].draw(rng, 3, FLAT)
    each = value_and_gradients(loss, args, reduction="none")[0]
    value, *gradients = value_and_gradients(loss, args, mask=np.zeros(each.shape, bool), reduction=reduction)
    assert not np.any(value)
    assert not any(np.any(g) for g in gradients)


@pytest.mark.parametrize("name", SEPARATE)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@few
@given(seed=SEEDS, n=st.integers(2, 5), share=st.sampled_from([0.0, 0.6]))
def test_masked_samples_count_nowhere_whatever_they_hold(name, reduction, seed, n, share):
    """Masking samples is leaving them out, also if they hold NaN or infinity, and if none is left."""
    loss, args, rng = drawn(name, seed, n)
    keep = rng.random(n) < share
    bad = np.where(rng.random(n) < 0.5, np.nan, np.inf)
    spoilt = []
    for a in args:
        fill = bad.reshape((-1,) + (1,) * (a.ndim - 1))
        spoilt.append(np.where(keep.reshape(fill.shape), a, fill) if a.dtype.kind == "f" else a)
    value, *gradients = value_and_gradients(loss, spoilt, mask=keep, reduction=reduction)
    assert not any(np.any(g[~keep]) for g in gradients)
    if keep.any():
        expected, *of_kept = value_and_gradients(loss, [a[keep] for a in args], reduction=reduction)
        same([value, *(g[keep] for g in gradients)], [expected, *of_kept])
    else:
        assert value == 0


@pytest.mark.parametrize("name", LOSSES)
@few
@given(seed=SEEDS, n=st.integers(2, 5))
def test_the_order_of_the_samples_does_not_matter(name, seed, n):
    loss, args, rng = drawn(name, seed, n)
    order = rng.permutation(n)
    each, *gradients = value_and_gradients(loss, args, reduction="none")
    moved, *moved_gradients = value_and_gradients(loss, [a[order] for a in args], reduction="none")
    by_sample = loss.definition().order[:1] and loss.definition().order[0] != "class"
    same([moved], [each[order] if by_sample else each])
    same(moved_gradients, [g[order] for g in gradients])


def test_a_masked_target_may_be_out_of_range(rng):
    """The idiom of an index to ignore, as a mask."""
    logits, target = rng.normal(size=(4, 3, 1)), np.array([[0], [-100], [2], [1]])
    value, gradient = value_and_gradients(LOSSES["cross_entropy"], (logits, target), mask=target >= 0)
    kept = target[:, 0] >= 0
    expected, of_kept = value_and_gradients(LOSSES["cross_entropy"], (logits[kept], target[kept]))
    same([value, gradient[kept]], [expected, of_kept])
    assert not gradient[~kept].any()


# ------------------------------------------------------------------------------------------- relations


def test_tversky_generalises_dice_and_jaccard(rng):
    args = CASES["dice"].draw(rng, 3, FLAT)
    s = 0.3
    pairs = (
        ("dice", {"smooth": 2 * s}, "tversky", {"alpha": 0.5, "beta": 0.5, "smooth": s}),
        ("dice_batch", {"smooth": 2 * s}, "tversky_batch", {"alpha": 0.5, "beta": 0.5, "smooth": s}),
        ("jaccard", {"smooth": s}, "tversky", {"alpha": 1.0, "beta": 1.0, "smooth": s}),
    )
    for name, parameters, general, values in pairs:
        bound = [LOSSES[n].bind(args, p, reduction="none") for n, p in ((name, parameters), (general, values))]
        same(*(interpreted(b.plan.value(), b.arrays) for b in bound))


def test_dice_and_jaccard_of_sets():
    """Of true regions: |A ∩ B| over what either covers."""
    a, b = {0, 1, 2, 5}, {1, 2, 3}
    pred, true = (np.array([[[float(i in region) for i in range(8)]]]) for region in (a, b))
    together = len(a & b)
    weighted = together + 0.3 * len(a - b) + 0.7 * len(b - a)
    for name, expected in (
        ("dice", 1 - 2 * together / (len(a) + len(b))),
        ("jaccard", 1 - together / len(a | b)),
        ("tversky", 1 - together / weighted),
    ):
        assert entries(name, pred, true, smooth=1e-12) == pytest.approx(expected)


def test_sigmoid_and_softmax_dice_are_dice_of_probabilities(rng):
    logits, target = CASES["softmax_dice"].draw(rng, 2, FLAT)
    e = np.exp(logits)
    one_hot = (np.arange(3)[:, None] == target[:, None, :]).astype(float)
    softmax = value_and_gradients(LOSSES["dice"], (e / e.sum(axis=1, keepdims=True), one_hot))[0]
    same([value_and_gradients(LOSSES["softmax_dice"], (logits, target))[0]], [softmax])
    sigmoid = value_and_gradients(LOSSES["dice"], (1 / (1 + np.exp(-logits)), one_hot))[0]
    same([value_and_gradients(LOSSES["sigmoid_dice"], (logits, one_hot))[0]], [sigmoid])


def test_focal_loss_as_published(rng):
    logits, true = rng.normal(0, 2, 20), rng.integers(0, 2, 20).astype(float)
    p = 1 / (1 + np.exp(-logits))
    right = np.where(true == 1, p, 1 - p)
    balance = np.where(true == 1, 0.25, 0.75)
    expected = -balance * (1 - right) ** 2 * np.log(right)
    same([entries("sigmoid_focal", logits, true)], [expected])


@pytest.mark.parametrize("q", [0.1, 0.5, 0.8])
def test_the_quantile_minimises_its_loss(q, rng):
    sample = np.sort(rng.normal(size=101))
    losses = [entries("quantile", np.full_like(sample, x), sample, q=q).mean() for x in sample]
    assert sample[np.argmin(losses)] == np.quantile(sample, q)


# ------------------------------------------------------------------------------------------- other libraries


def _torch_losses() -> dict[str, Callable[..., Any]]:
    torch = pytest.importorskip("torch")
    F = torch.nn.functional

    def gaussian(mean, log_variance, true):
        return F.gaussian_nll_loss(mean, true, log_variance.exp(), eps=0)

    def nt_xent(first, second):
        z = F.normalize(torch.cat([first, second]))
        similarity = (z @ z.T / 0.5).masked_fill(torch.eye(len(z), dtype=bool), -torch.inf)
        n = len(first)
        return F.cross_entropy(similarity, torch.arange(2 * n).roll(n))

    return {
        "squared_error": F.mse_loss,
        "weighted_squared_error": lambda p, t, w: (w * F.mse_loss(p, t, reduction="none")).mean(),
        "absolute_error": F.l1_loss,
        "huber": lambda p, t: F.huber_loss(p, t, delta=1.0),
        "smooth_l1": lambda p, t: F.smooth_l1_loss(p, t, beta=1.0),
        "log_cosh": lambda p, t: torch.log(torch.cosh(p - t)).mean(),
        "gaussian_nll": gaussian,
        "poisson_nll": lambda x, n: F.poisson_nll_loss(x, n, log_input=True),
        "kl_divergence": lambda x, t: F.kl_div(x.log_softmax(1), t, reduction="none").sum(1).mean(),
        "binary_cross_entropy": F.binary_cross_entropy_with_logits,
        "cross_entropy": F.cross_entropy,
        "smoothed_cross_entropy": lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1),
        "soft_cross_entropy": F.cross_entropy,
        "logistic": F.soft_margin_loss,
        "multiclass_hinge": lambda x, t: (
            (x + 1 - F.one_hot(t, x.shape[1])).max(1).values - x.gather(1, t[:, None])[:, 0]
        ).mean(),
        "cosine": lambda p, t: (1 - F.cosine_similarity(p, t, dim=-1)).mean(),
        "info_nce": lambda a, b: F.cross_entropy(a @ b.T / 0.1, torch.arange(len(a))),
        "nt_xent": nt_xent,
    }


TORCH = [
    "squared_error", "weighted_squared_error", "absolute_error", "huber", "smooth_l1", "log_cosh",
    "gaussian_nll", "poisson_nll", "kl_divergence", "binary_cross_entropy", "cross_entropy",
    "smoothed_cross_entropy", "soft_cross_entropy", "logistic", "multiclass_hinge", "cosine", "info_nce",
    "nt_xent",
]  # fmt: skip


@pytest.mark.parametrize("name", TORCH)
def test_as_torch_has_it(name, rng):
    torch = pytest.importorskip("torch")
    theirs, loss = _torch_losses()[name], LOSSES[name]
    args = CASES[name].draw(rng, 2, FULL)
    leaves = [name in loss.predictions for name in loss.arguments]
    tensors = [torch.tensor(a, requires_grad=leaf) for a, leaf in zip(args, leaves, strict=True)]
    expected = theirs(*tensors)
    expected.backward()
    value, gradients = loss.value_and_grad(*args, wrt=loss.predictions)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    references = [t.grad.numpy() for t in tensors if t.requires_grad]
    for gradient, reference in zip(gradients, references, strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=1e-9, atol=1e-12)


def test_as_scipy_has_it(rng):
    special = pytest.importorskip("scipy.special")
    pred, true = rng.normal(size=(2, 50))
    found = entries("pseudo_huber", pred, true, delta=0.7)
    np.testing.assert_allclose(found, special.pseudo_huber(0.7, pred - true), rtol=1e-12)
    found = entries("huber", pred, true, delta=0.7)
    np.testing.assert_allclose(found, special.huber(0.7, pred - true), rtol=1e-12)
    logits, p = rng.normal(size=(4, 3)), rng.dirichlet(np.ones(3), 4)
    found = entries("kl_divergence", logits[..., None], p[..., None])[:, 0]
    np.testing.assert_allclose(found, special.rel_entr(p, special.softmax(logits, axis=1)).sum(1), rtol=1e-11)
