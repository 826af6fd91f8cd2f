"""What a mask or a condition leaves out stays out of the gradient, however many paths lead through it."""

import numpy as np
import pytest

import lossforge as lf


@lf.loss
def huber(pred, true, *, delta=1.0):
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


@lf.loss
def where_valid(pred, true, valid, *, delta=1.0):
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, delta)
    return lf.where(valid, 0.5 * quadratic**2 + delta * (error - quadratic), 0.0)


@lf.loss
def two_conditions(pred, true, valid):
    inner = lf.where(pred > 1, lf.log(pred) * true, -(pred**2) * true)
    return lf.where(valid, lf.sqrt(pred) - inner, 0.0) + lf.where(valid, lf.exp(inner), 0.0)


NAN, INF = np.nan, np.inf
PRED, TRUE = np.array([[NAN, 1.0], [2.0, 5.0]]), np.array([[0.0, NAN], [1.0, 2.0]])
VALID = np.array([[False, False], [True, True]])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("weight", [None, np.array([NAN, 2.0])], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mask(reduction: str, weight: np.ndarray | None, bad: float) -> None:
    pred = np.where(VALID, PRED, bad)
    scale = 0.5 if reduction == "mean" else 1 if weight is None else 2
    options = {"mask": VALID, "weight": weight, "reduction": reduction}
    np.testing.assert_array_equal(huber.grad(pred, TRUE, **options), scale * VALID)
    np.testing.assert_array_equal(huber.grad(pred, TRUE, wrt="true", **options), -scale * VALID)
    np.testing.assert_array_equal(huber.hessian_diagonal(pred, TRUE, **options), 0 * scale * VALID)


@pytest.mark.parametrize("loss", [where_valid, two_conditions], ids=lambda loss: loss.name)
def test_condition(loss: lf.Loss) -> None:
    clean = [np.where(VALID, a, 0.5) for a in (PRED, TRUE)]
    for derivative in (loss.grad, loss.hessian_diagonal):
        np.testing.assert_array_equal(derivative(PRED, TRUE, VALID), derivative(*clean, VALID))
