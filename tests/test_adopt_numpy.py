"""Losses written for NumPy and SciPy, adopted: against central differences, with gradients by hand."""

from __future__ import annotations

import numpy as np
import pytest

import lossforge as lf
from adoption import agree, binary, drawn, positive, real, simplex, unit


def custom_loss(y_true, y_pred, w):  # w is a weight vector
    loss = np.sum(w * (y_true - y_pred) ** 2)  # Weighted squared error
    return loss


def custom_loss_gradient(y_true, y_pred, w):
    grad = -2 * w * (y_true - y_pred)
    return grad


def softmax_cross_entropy(pred, true):
    shifted = pred - pred.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -(true * log_p).sum(axis=-1).mean()


NC = [(6, 4), (9, 5)]

CASES = {
    "mse": (lambda p, t: np.mean((p - t) ** 2), [real, real], [NC, NC]),
    "mae": (lambda p, t: np.abs(p - t).mean(), [real, real], [NC, NC]),
    "log loss": (lambda p, t: -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p)), [unit, binary], [NC, NC]),
    "softmax": (softmax_cross_entropy, [real, simplex], [NC, NC]),
    "pinball": (lambda p, t: np.where(t > p, 0.3 * (t - p), 0.7 * (p - t)).mean(), [real, real], [NC, NC]),
    "log cosh": (lambda p, t: np.sum(np.log(np.cosh(p - t))), [real, real], [NC, NC]),
    "poisson": (lambda p, t: np.mean(p - t * np.log(p)), [positive, positive], [NC, NC]),
    "rmse": (lambda p, t: np.sqrt(np.mean(np.square(p - t))), [real, real], [NC, NC]),
    "total variation": (lambda x: np.abs(np.diff(x, axis=0)).mean(), [real], [NC]),
    "r squared": (lambda p, t: np.sum((t - p) ** 2) / np.sum((t - t.mean()) ** 2), [real, real], [NC, NC]),
}


@pytest.mark.parametrize("name", CASES)
def test_published_loss(name: str) -> None:
    fn, kinds, shapes = CASES[name]
    first, second = ([s[i] for s in shapes] for i in (0, 1))
    loss = lf.adopt(fn, *drawn(name, kinds, first))
    for where in (first, second):
        arrays = [a.astype(np.float64) for a in drawn(name + " again", kinds, where)]
        value, gradient = loss.value_and_grad(*arrays)
        agree("value", value, fn(*arrays))
        direction = np.random.default_rng(5).standard_normal(gradient.shape)
        step = 1e-6
        ends = [fn(arrays[0] + s * step * direction, *arrays[1:]) for s in (1, -1)]
        agree("gradient along a direction", np.sum(gradient * direction), (ends[0] - ends[1]) / (2 * step))


def test_the_gradient_written_beside_the_loss() -> None:
    rng = np.random.default_rng(2)
    y, x, w = real(rng, (8,)), real(rng, (8,)), unit(rng, (8,))
    loss = lf.adopt(custom_loss, y, x, w, gradient=custom_loss_gradient)
    agree("gradient", loss.grad(y, x, w), custom_loss_gradient(y, x, w))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda y_true, y_pred, w: 2 * w * (y_true - y_pred), "sign"),
        (lambda y_true, y_pred, w: -w * (y_true - y_pred), "factor 2"),
        (lambda y_true, y_pred, w: -2 * (y_true - y_pred), "`w`"),
    ],
)
def test_a_wrong_gradient_is_refused_with_the_reason(wrong, said) -> None:
    rng = np.random.default_rng(3)
    with pytest.raises(lf.errors.GradientMismatchError, match=said):
        lf.adopt(custom_loss, real(rng, (8,)), real(rng, (8,)), unit(rng, (8,)), gradient=wrong)


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda p: p.sum() if p.sum() > 0 else -p.sum(), "decision"),
        (lambda p: float(p.sum()), "Python number"),
        (lambda p: np.linalg.svd(p)[1].sum(), "svd"),
        (lambda p: np.sum(np.sort(p[p > 0])), "truth values"),
    ],
)
def test_refusals_name_the_operation(fn, said) -> None:
    with pytest.raises(lf.errors.AdoptionError, match=said):
        lf.adopt(fn, np.random.default_rng(0).standard_normal((6, 4)))
