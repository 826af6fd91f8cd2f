"""Losses as objectives of SciPy's optimisers."""

import numpy as np
import pytest

import lossforge as lf
from lossforge.errors import ParameterError, ShapeError, UnsupportedError

optimize = pytest.importorskip("scipy.optimize")


@lf.loss
def huber(pred, true, *, delta=1.0):
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


@lf.loss("batch class, batch -> batch")
def cross_entropy(logits, target):
    return -lf.take(lf.log_softmax(logits, "class"), target, "class")


def test_value_and_gradient_are_a_number_and_a_vector(rng) -> None:
    true = rng.normal(size=(4, 3))
    fun = huber.scipy(true, delta=0.5, reduction="sum")
    x = rng.normal(size=12)
    value, gradient = fun(x)
    assert isinstance(value, float)
    assert gradient.dtype == np.float64
    want = huber.value_and_grad(x.reshape(4, 3), true, delta=0.5, reduction="sum")
    assert value == want[0]
    np.testing.assert_array_equal(gradient, want[1].ravel())
    # Central differences in float64 have an error of about 1e-10 here.
    assert optimize.check_grad(lambda v: fun(v)[0], lambda v: fun(v)[1], x) < 1e-6


def test_a_robust_line_through_outliers(rng) -> None:
    design = np.column_stack([np.linspace(-1, 1, 60), np.ones(60)])
    true = design @ [2.0, -1.0] + 0.01 * rng.normal(size=60)
    true[::10] += 50
    found = optimize.minimize(huber.scipy(true, design=design, delta=0.1), np.zeros(2), jac=True, method="L-BFGS-B")
    np.testing.assert_allclose(found.x, [2.0, -1.0], atol=0.05)


def test_newton_with_hessian_products(rng) -> None:
    design, target = rng.normal(size=(80, 4)), rng.integers(0, 3, 80)
    fun = cross_entropy.scipy(target, design=design)
    found = optimize.minimize(fun, np.zeros(12), jac=True, hessp=fun.hessp, method="trust-krylov")
    assert np.abs(fun(found.x)[1]).max() < 1e-4
    x, p, h = rng.normal(size=12), rng.normal(size=12), 1e-6
    numerical = (fun(x + h * p)[1] - fun(x - h * p)[1]) / (2 * h)
    np.testing.assert_allclose(fun.hessp(x, p), numerical, rtol=1e-6, atol=1e-8)


def test_weights_and_a_model_of_ones_own(rng) -> None:
    true, weight = rng.normal(size=10), rng.random(10)
    fun = huber.scipy(true, weight=weight, model=np.sinh, vjp=lambda x, g: g * np.cosh(x))
    x = rng.normal(size=10)
    assert fun(x)[0] == huber(np.sinh(x), true, weight=weight)
    assert optimize.check_grad(lambda v: fun(v)[0], lambda v: fun(v)[1], x) < 1e-6
    with pytest.raises(UnsupportedError, match="second derivative"):
        fun.hessp(x, x)


@pytest.mark.parametrize("kind", ["sparse", "operator", "list"])
def test_designs_of_other_kinds(kind: str, rng) -> None:
    sparse, linalg = pytest.importorskip("scipy.sparse"), pytest.importorskip("scipy.sparse.linalg")
    design, true = rng.normal(size=(9, 4)) * (rng.random((9, 4)) > 0.5), rng.normal(size=9)
    kinds = {"sparse": sparse.csr_matrix, "operator": linalg.aslinearoperator, "list": np.ndarray.tolist}
    ours, dense = (huber.scipy(true, design=d) for d in (kinds[kind](design), design))
    x, p = rng.normal(size=(2, 4))
    for got, want in (*zip(ours(x), dense(x), strict=True),) + ((ours.hessp(x, p), dense.hessp(x, p)),):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


def test_arguments_by_name_and_any_of_them_optimised(rng) -> None:
    pred, true = rng.normal(size=(2, 6))
    np.testing.assert_array_equal(huber.scipy(true=true)(pred)[1], huber.grad(pred, true))
    np.testing.assert_array_equal(huber.scipy(pred, wrt="true")(true)[1], huber.grad(pred, true, wrt="true"))


TRUE = np.zeros((4, 3))
ERRORS = {
    "a vector of the wrong length": (lambda: huber.scipy(TRUE)(np.zeros(11)), ShapeError, r"11 entries.*\(4, 3\)"),
    "coefficients that do not fit": (
        lambda: cross_entropy.scipy([0, 1], design=np.ones((2, 5)))(np.zeros(7)), ShapeError, "7 entries.*5 columns",
    ),
    "a design that is no matrix": (lambda: huber.scipy(np.zeros(4), design=np.ones(4)), ShapeError, "1 dimension"),
    "an open shape": (lambda: free.scipy(), ShapeError, "'row', 'column'.*give shape="),
    "a missing argument": (lambda: huber.scipy(), ParameterError, "0 arrays given, but it takes 1.*true"),
    "the prediction given": (lambda: huber.scipy(TRUE, pred=TRUE), ParameterError, "'pred' is what is optimised"),
    "an unknown parameter": (lambda: huber.scipy(TRUE, gamma=1.0), ParameterError, "'gamma'"),
    "an unknown argument": (lambda: huber.scipy(TRUE, wrt="y"), ParameterError, "wrt='y'"),
    "no reduction": (lambda: huber.scipy(TRUE, reduction="none"), ParameterError, "one number"),
    "a model without its vjp": (lambda: huber.scipy(TRUE, model=np.sinh), ParameterError, "model= and vjp="),
}  # fmt: skip


@lf.loss("row column ->")
def free(pred):
    return lf.mean(pred**2, ("row", "column"))


def test_a_shape_of_ones_own() -> None:
    value, gradient = free.scipy(shape=(2, 3))(np.ones(6))
    assert value == 1.0
    np.testing.assert_allclose(gradient, np.full(6, 1 / 3), rtol=1e-15)


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name: str) -> None:
    call, error, text = ERRORS[name]
    with pytest.raises(error, match=text):
        call()
