"""Losses written for TensorFlow and Keras, adopted: against `tf.GradientTape`, at two shapes, answered by NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import lossforge as lf
from adoption import binary, check, classes, drawn, one_hot, positive, real, signs, simplex, unit

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
K = keras.losses


def huber_loss(y_true, y_pred, delta=1.0):
    error = y_true - y_pred
    abs_error = tf.abs(error)
    quadratic_part = tf.minimum(abs_error, delta)
    linear_part = abs_error - quadratic_part
    loss = 0.5 * tf.square(quadratic_part) + delta * linear_part
    return tf.reduce_mean(loss)


def pinball(y_true, y_pred, q=0.3):
    error = y_true - y_pred
    return tf.reduce_mean(tf.maximum(q * error, (q - 1) * error))


def total_variation(pred):
    return tf.reduce_mean(tf.abs(pred[:, 1:] - pred[:, :-1]))


def original(fn: Callable[..., Any]) -> Callable[[Sequence[np.ndarray], int], tuple[np.ndarray, np.ndarray]]:
    def run(arrays: Sequence[np.ndarray], at: int) -> tuple[np.ndarray, np.ndarray]:
        given = [tf.constant(a) for a in arrays]
        with tf.GradientTape() as tape:
            tape.watch(given[at])
            value = fn(*given)
        return value.numpy(), tf.convert_to_tensor(tape.gradient(value, given[at])).numpy()

    return run


NC, N = [(6, 4), (9, 5)], [(6,), (9,)]
NHWC = [(3, 8, 8, 2), (2, 6, 10, 3)]
"""Height and width of one size: no reason for a BroadcastWarning, which would be an error here."""

CASES = {
    "the article's huber": (huber_loss, [real, real], [NC, NC]),
    "huber": (K.Huber(delta=0.7), [real, real], [NC, NC]),
    "mse": (K.MeanSquaredError(), [real, real], [NC, NC]),
    "mse function": (K.mean_squared_error, [real, real], [NC, NC]),
    "mae": (K.MeanAbsoluteError(), [real, real], [NC, NC]),
    "mape": (K.MeanAbsolutePercentageError(), [positive, positive], [NC, NC]),
    "msle": (K.MeanSquaredLogarithmicError(), [positive, positive], [NC, NC]),
    "log cosh": (K.LogCosh(), [real, real], [NC, NC]),
    "cosine": (K.CosineSimilarity(), [real, real], [NC, NC]),
    "hinge of signs": (K.Hinge(), [signs, real], [NC, NC]),
    "squared hinge of classes": (K.SquaredHinge(), [binary, real], [NC, NC]),
    "categorical hinge": (K.CategoricalHinge(), [one_hot, real], [NC, NC]),
    "kl": (K.KLDivergence(), [simplex, simplex], [NC, NC]),
    "poisson": (K.Poisson(), [positive, positive], [NC, NC]),
    "sparse": (K.SparseCategoricalCrossentropy(from_logits=True), [classes(4), real], [N, NC]),
    "categorical": (K.CategoricalCrossentropy(), [one_hot, simplex], [NC, NC]),
    "binary": (K.BinaryCrossentropy(label_smoothing=0.1), [binary, unit], [NC, NC]),
    "binary logits": (K.BinaryCrossentropy(from_logits=True), [binary, real], [NC, NC]),
    "binary focal": (K.BinaryFocalCrossentropy(gamma=1.5), [binary, unit], [NC, NC]),
    "categorical focal": (K.CategoricalFocalCrossentropy(), [one_hot, simplex], [NC, NC]),
    "dice": (K.Dice(), [binary, unit], [NC, NC]),
    "dice of each channel": (K.Dice(axis=(1, 2)), [binary, unit], [NHWC, NHWC]),
    "tversky": (K.Tversky(alpha=0.3, beta=0.7), [binary, unit], [NC, NC]),
    "pinball": (pinball, [real, real], [NC, NC]),
    "total variation": (total_variation, [real], [NC]),
}


@pytest.mark.parametrize("name", CASES)
def test_published_loss(name: str) -> None:
    fn, kinds, shapes = CASES[name]
    first, second = ([s[i] for s in shapes] for i in (0, 1))
    loss = lf.adopt(fn, *map(tf.constant, drawn(name, kinds, first)), wrt=-1)
    for where in (first, second):
        check(loss, original(fn), drawn(name + " again", kinds, where))


def test_delta_is_a_parameter() -> None:
    rng = np.random.default_rng(1)
    x, y = real(rng, (6, 4)), real(rng, (6, 4))
    loss = lf.adopt(huber_loss, x, y)
    assert loss.predictions == ("y_pred",) and loss.parameters["delta"] == 1.0
    np.testing.assert_allclose(loss(x, y, delta=0.25), huber_loss(x, y, 0.25), rtol=1e-5)


def test_examples_on_a_kink_decide_nothing() -> None:
    ones = np.ones((6, 4), np.float32)
    loss = lf.adopt(K.Hinge(), ones, ones)  # max(1 - 1 · 1, 0), where each library has its own subgradient
    np.testing.assert_allclose(loss(ones, 0.5 * ones), 0.5)
