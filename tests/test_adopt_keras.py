"""Losses written for TensorFlow and Keras, adopted: against `tf.GradientTape`, at two shapes, answered by NumPy and PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
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


def likelihood(y_true, y_pred):
    """Each row's entry at its class, by coordinates."""
    at = tf.stack([tf.range(tf.shape(y_true)[0]), y_true], axis=1)
    return -tf.reduce_mean(tf.math.log(tf.gather_nd(y_pred, at)))


def cox(event, pred):
    """The partial likelihood of Cox, of rows in the order of decreasing times."""
    return -tf.reduce_sum((pred - tf.math.cumulative_logsumexp(pred)) * event) / tf.reduce_sum(event)


def cox_unsorted(time, event, pred):
    order = tf.argsort(time, direction="DESCENDING")
    return cox(tf.gather(event, order), tf.gather(pred, order))


def barlow(y_true, y_pred):
    def normalised(z):
        return (z - tf.reduce_mean(z, 0)) / tf.math.reduce_std(z, 0)

    count = tf.cast(tf.shape(y_true)[0], tf.float32)
    c = tf.matmul(normalised(y_true), normalised(y_pred), transpose_a=True) / count
    on = tf.linalg.diag_part(c)
    return tf.reduce_sum(tf.square(1.0 - on)) + 0.005 * tf.reduce_sum(tf.square(c - tf.linalg.diag(on)))


def nt_xent(y_true, y_pred, temperature=0.5):
    """Two views of a batch: 2 n columns, of which the diagonal of each half is the positive or left out."""
    a, b = tf.math.l2_normalize(y_true, 1), tf.math.l2_normalize(y_pred, 1)
    n = tf.shape(a)[0]
    labels, own = tf.one_hot(tf.range(n), 2 * n), 1e9 * tf.one_hot(tf.range(n), n)
    logits = tf.concat([tf.matmul(a, b, transpose_b=True), tf.matmul(a, a, transpose_b=True) - own], 1) / temperature
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits))


def rounds(y_true, y_pred):
    """A loop of constant length, and a branch on values."""
    error = tf.while_loop(lambda i, e: i < 3, lambda i, e: (i + 1, tf.tanh(e)), (0, y_true - y_pred))[1]
    mean = tf.reduce_mean(error)
    return tf.cond(mean > 0, lambda: mean, lambda: tf.reduce_mean(tf.square(error)))


def blurred(y_true, y_pred):
    kernel = tf.ones([3, 3, 3, 1]) / 9.0
    images = [tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "VALID") for x in (y_true, y_pred)]
    return tf.reduce_mean(tf.square(images[0] - images[1]))


def spectral(y_true, y_pred):
    return tf.reduce_mean(tf.abs(tf.abs(tf.signal.rfft(y_true)) - tf.abs(tf.signal.rfft(y_pred))))


def segments(y_true, y_pred):
    return tf.reduce_mean(tf.square(tf.math.unsorted_segment_sum(y_pred, y_true, 3)))


def halves(y_true, y_pred):
    """Mean and logarithm of the variance, side by side."""
    mean, log_variance = tf.split(y_pred, 2, axis=-1)
    return tf.reduce_mean(tf.exp(-log_variance) * tf.square(y_true - mean) + log_variance)


def selected(y_true, y_pred):
    """The same mask twice, over all dimensions."""
    kept = [tf.boolean_mask(x, y_true > 0) for x in (y_true, y_pred)]
    return tf.reduce_mean(tf.abs(kept[0] - kept[1]))


def selected_rows(y_true, y_pred):
    rows = tf.where(y_true > 0)
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(tf.gather_nd(y_true, rows), tf.gather_nd(y_pred, rows))
    )


def weights_in_labels(y_true, y_pred):
    """The last column of the labels weighs."""
    return tf.reduce_mean(K.categorical_crossentropy(y_true[..., :-1], y_pred) * y_true[..., -1])


def selected_pixels(y_true, y_pred):
    """As models of segmentation leave out pixels; height and width are only told apart by the labels' shape."""
    labels, logits = tf.reshape(y_true, [-1]), tf.reshape(y_pred, [-1, y_pred.shape[-1]])
    known = tf.not_equal(labels, 2)
    labels, logits = tf.boolean_mask(labels, known), tf.boolean_mask(logits, known)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def positives(y_true, y_pred):
    """As detectors count boxes: of no positive entry at all the loss is 0."""
    rows = tf.where(tf.equal(y_true, 1.0))
    count = tf.cast(tf.maximum(1, tf.shape(rows)[0]), tf.float32)
    return tf.reduce_sum(tf.abs(1.0 - tf.gather_nd(y_pred, rows))) / count


WEIGHTS = tf.Variable([1.0, 0.5, 2.0, 3.0], trainable=False)


def weighted_by_class(y_true, y_pred):
    picked = tf.gather(WEIGHTS, y_true)
    return tf.reduce_mean(picked * tf.nn.sparse_softmax_cross_entropy_with_logits(y_true, y_pred))


def int32_classes(count):
    return lambda rng, shape: rng.integers(0, count, shape).astype(np.int32)


def original(fn: Callable[..., Any]) -> Callable[[Sequence[np.ndarray], int], tuple[np.ndarray, np.ndarray]]:
    def run(arrays: Sequence[np.ndarray], at: int) -> tuple[np.ndarray, np.ndarray]:
        given = [tf.constant(a) for a in arrays]
        with tf.GradientTape() as tape:
            tape.watch(given[at])
            value = fn(*given)
        return value.numpy(), tf.convert_to_tensor(tape.gradient(value, given[at])).numpy()

    return run


NC, N = [(6, 4), (9, 5)], [(6,), (9,)]
NHW, IMAGES = [(3, 8, 8), (2, 6, 10)], [(2, 8, 8, 3), (3, 6, 7, 3)]
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
    "circle": (K.Circle(gamma=8.0), [classes(3), real], [[(8,), (11,)], [(8, 4), (11, 5)]]),
    "image labels": (K.SparseCategoricalCrossentropy(ignore_class=1), [classes(2), simplex], [NHW, NHWC]),
    "labels with a column of weights": (weights_in_labels, [unit, simplex], [[(6, 5), (9, 7)], [(6, 4), (9, 6)]]),
    "selected pixels": (
        selected_pixels,
        [int32_classes(3), real],
        [[(3, 5, 5), (2, 4, 6)], [(3, 5, 5, 4), (2, 4, 6, 3)]],
    ),
    "half of the rows": (
        lambda y, p: tf.reduce_mean(tf.math.top_k(tf.reduce_mean((y - p) ** 2, 1), tf.shape(y)[0] // 2)[0]),
        [real, real],
        [NC, NC],
    ),
    "nuclear norm": (lambda y, p: tf.reduce_sum(tf.linalg.svd(y - p, compute_uv=False)), [real, real], [NC, NC]),
    "turned to its axes": (
        lambda y, p: tf.reduce_mean(tf.abs(p @ tf.linalg.eigh(tf.transpose(y) @ y)[1])),
        [real, real],
        [NC, NC],
    ),
    "volume": (lambda y, p: tf.linalg.logdet(tf.transpose(p) @ p + tf.eye(tf.shape(p)[1])), [real, real], [NC, NC]),
    "regressed": (
        lambda y, p: tf.reduce_mean(
            (y - p @ tf.linalg.solve(tf.transpose(p) @ p + tf.eye(tf.shape(p)[1]), tf.transpose(p) @ y)) ** 2
        ),
        [real, real],
        [NC, NC],
    ),
    "selected, at least one": (positives, [binary, real], [NC, NC]),
    "gather_nd": (likelihood, [int32_classes(4), simplex], [N, NC]),
    "cox": (cox, [binary, real], [N, N]),
    "cox, unsorted": (cox_unsorted, [positive, binary, real], [N, N, N]),
    "barlow": (barlow, [real, real], [NC, NC]),
    "nt-xent": (nt_xent, [real, real], [NC, NC]),
    "loop and branch": (rounds, [real, real], [NC, NC]),
    "loop and branch by autograph": (tf.function(rounds), [real, real], [NC, NC]),
    "blurred": (blurred, [real, real], [IMAGES, IMAGES]),
    "spectral": (spectral, [real, real], [NC, NC]),
    "scans": (
        lambda y, p: (
            tf.reduce_sum(y * tf.math.cumprod(1 - p, axis=1, exclusive=True))
            + tf.reduce_sum(
                y * tf.math.cumulative_logsumexp(p, axis=1, reverse=True) * tf.cumsum(tf.ones_like(p), axis=1)
            )
        ),
        [unit, unit],
        [NC, NC],
    ),
    "segments": (segments, [int32_classes(3), real], [N, NC]),
    "halves": (halves, [real, real], [[(6, 2), (9, 3)], [(6, 4), (9, 6)]]),
    "weights of a variable": (weighted_by_class, [int32_classes(4), real], [N, [(6, 4), (9, 4)]]),
    "norm of a band": (
        lambda y_true, y_pred: tf.norm(tf.linalg.band_part(tf.matmul(y_true, y_pred, transpose_a=True), 0, -1)),
        [real, real],
        [NC, NC],
    ),
    "selected": (selected, [real, real], [NC, NC]),
    "selected rows": (selected_rows, [int32_classes(4), real], [N, NC]),
    "labels that do not sum to one": (  # whose gradient in TensorFlow is not the derivative
        lambda y_true, y_pred: tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(2.0 * y_true, y_pred)),
        [simplex, real],
        [NC, NC],
    ),
    "root of the count": (
        lambda y_true, y_pred: tf.norm(y_true - y_pred) / tf.sqrt(tf.cast(tf.size(y_true), tf.float32)),
        [real, real],
        [NC, NC],
    ),
}


def dice_of_class(true, pred):
    return 1 - (2 * tf.reduce_sum(true * pred) + 1) / (tf.reduce_sum(true) + tf.reduce_sum(pred) + 1)


def dice_by_class(y_true, y_pred):
    total = 0
    for c in range(y_pred.shape[-1]):
        total += dice_of_class(y_true[..., c], y_pred[..., c])
    return total / y_pred.shape[-1]


def dice_without_background(y_true, y_pred):
    return tf.reduce_mean(tf.stack([dice_of_class(y_true[..., c], y_pred[..., c]) for c in range(1, y_pred.shape[-1])]))


def nested_loops(y_true, y_pred):
    total = 0.0
    for b in range(y_pred.shape[0]):
        for c in range(y_pred.shape[1]):
            total += tf.square(y_true[b, c] - y_pred[b, c]) * (c + 1)
    return total


@tf.function
def loop_over_rows(y_true, y_pred):
    total = 0.0
    for i in tf.range(tf.shape(y_pred)[0]):
        total += tf.reduce_mean(tf.square(y_true[i] - y_pred[i]))
    return total / tf.cast(tf.shape(y_pred)[0], tf.float32)


def nearest_other(y_pred):
    def of_row(row):
        apart = tf.reduce_sum(tf.square(row[None, :] - y_pred), -1)
        return tf.reduce_min(tf.where(apart > 0, apart, 1e6))

    return tf.reduce_mean(tf.map_fn(of_row, y_pred))


CASES["half of the rows"] = (
    lambda y_true, y_pred: tf.reduce_mean(
        tf.math.top_k(tf.reduce_mean(y_true - y_pred, 1), tf.shape(y_true)[0] // 2)[0]
    ),
    [real, real],
    [NC, NC],
)

LOOPS: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "map_fn": (
        lambda y_true, y_pred: tf.reduce_mean(
            tf.map_fn(lambda ab: tf.reduce_max(tf.abs(ab[0] - ab[1])), (y_true, y_pred), fn_output_signature=tf.float32)
        ),
        [real, real],
        [NC, NC],
    ),
    "map_fn, against all rows": (nearest_other, [real], [NC]),
    "map_fn, rows of several lengths": (
        lambda mask, y_pred: tf.reduce_mean(
            tf.map_fn(lambda ab: tf.reduce_mean(tf.boolean_mask(ab[1], ab[0])), (mask, y_pred), tf.float32)
        ),
        [lambda rng, shape: (rng.random(shape) < 0.5) | (np.arange(shape[1]) == 0), real],
        [NC, NC],
    ),
    "loop over rows": (loop_over_rows, [real, real], [NC, NC]),
    "keras.ops.fori_loop": (
        lambda y_true, y_pred: keras.ops.fori_loop(
            0, keras.ops.shape(y_pred)[0], lambda i, s: s + keras.ops.max(keras.ops.abs(y_true[i] - y_pred[i])), 0.0
        ),
        [real, real],
        [NC, NC],
    ),
    "written out by class": (dice_by_class, [one_hot, simplex], [NHWC, NHWC]),
    "written out without the first": (dice_without_background, [one_hot, simplex], [NHWC, NHWC]),
    "written out, nested": (nested_loops, [real, real], [NC, NC]),
    "written out, unstacked": (
        lambda y_true, y_pred: sum(
            tf.reduce_max(a - b) for a, b in zip(tf.unstack(y_true), tf.unstack(y_pred), strict=False)
        ),
        [real, real],
        [NC, NC],
    ),
}
CASES |= LOOPS


@pytest.fixture(autouse=True)
def _without_kernels() -> Iterator[None]:
    """Kernels are compared with these operations elsewhere; here they would be compiled for each loss."""
    before = lf.use_kernels(False)
    yield
    lf.use_kernels(before)


@pytest.mark.parametrize("name", CASES)
def test_published_loss(name: str) -> None:
    fn, kinds, shapes = CASES[name]
    first, second = ([s[i] for s in shapes] for i in (0, 1))
    loss = lf.adopt(fn, *map(tf.constant, drawn(name, kinds, first)), wrt=-1)
    for where in (first, second):
        check(loss, original(fn), drawn(name + " again", kinds, where), also="torch" if where is second else "")


def test_delta_is_a_parameter() -> None:
    rng = np.random.default_rng(1)
    x, y = real(rng, (6, 4)), real(rng, (6, 4))
    loss = lf.adopt(huber_loss, x, y)
    assert loss.predictions == ("y_pred",) and loss.parameters["delta"] == 1.0
    np.testing.assert_allclose(loss(x, y, delta=0.25), huber_loss(x, y, 0.25), rtol=1e-5)


def decides(y_true, y_pred):
    return tf.reduce_mean(y_pred) if tf.reduce_mean(y_true) > 0 else tf.reduce_mean(-y_pred)


def leaves(y_true, y_pred):
    return tf.reduce_mean(y_pred) * float(np.mean(y_true))


def prints(y_true, y_pred):
    tf.print(y_pred)
    return tf.reduce_mean(y_true - y_pred)


STEP = tf.Variable(0.0, trainable=False)


def counts(y_true, y_pred):
    STEP.assign_add(1.0)
    return tf.reduce_mean(y_true - y_pred)


SCALE = tf.Variable(1.0)

REFUSED = {
    "decision": (decides, "decision from values"),
    "array of NumPy": (leaves, "NumPy array from values"),
    "print": (prints, "PrintV2.*side effect"),
    "assignment": (counts, "AssignAddVariableOp.*side effect"),
    "variable": (lambda y_true, y_pred: tf.reduce_mean(SCALE * y_pred - y_true), "trainable"),
    "random": (lambda y_true, y_pred: tf.reduce_mean(y_true - tf.nn.dropout(y_pred, 0.5)), "RandomUniform.*random"),
    "python": (
        lambda y_true, y_pred: tf.py_function(lambda a, b: tf.reduce_mean(a - b), [y_true, y_pred], tf.float32),
        "EagerPyFunc.*Python code",
    ),
    "loop": (
        lambda y_true, y_pred: tf.while_loop(lambda s: tf.reduce_sum(s) < 9.0, lambda s: (s * 2.0,), (y_pred**2,))[0],
        "While.*number of turns",
    ),
    "more vectors than singular values": (
        lambda y_true, y_pred: tf.reduce_sum(tf.linalg.svd(tf.concat([y_true, y_pred], 0), full_matrices=True)[1]),
        "Svd",
    ),
    "no gradient": (lambda y_true, y_pred: tf.reduce_mean(y_true), "does not depend on 'y_pred'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_adopted_is_refused_by_name(name: str) -> None:
    function, reason = REFUSED[name]
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0.1, 1.0, (2, 4, 4)).astype(np.float32)
    with pytest.raises(lf.errors.AdoptionError, match=f"(?s){reason}"):
        lf.adopt(function, tf.constant(x), tf.constant(y))


def test_the_library_is_known_by_what_a_function_calls() -> None:
    rng = np.random.default_rng(1)
    x, y = real(rng, (6, 4)), real(rng, (6, 4))
    for function in (functools.partial(huber_loss, delta=0.5), lambda y_true, y_pred: 2.0 * pinball(y_true, y_pred)):
        np.testing.assert_allclose(lf.adopt(function, x, y)(x, y), function(x, y), rtol=1e-5)


def test_of_an_empty_selection_there_is_what_the_original_has() -> None:
    rng = np.random.default_rng(1)
    loss = lf.adopt(positives, binary(rng, (6, 4)), real(rng, (6, 4)))
    none, pred = np.zeros((3, 2), np.float32), real(rng, (3, 2))
    value, gradient = loss.value_and_grad(none, pred)
    assert value == 0 and not gradient.any()


def test_a_silent_broadcast_is_reported() -> None:
    rng = np.random.default_rng(1)
    x, y = real(rng, (6,)), real(rng, (6, 1))
    with pytest.warns(lf.errors.BroadcastWarning, match="6×6"):
        lf.adopt(lambda y_true, y_pred: tf.reduce_mean(tf.square(y_true - y_pred)), x, y)


def test_examples_on_a_kink_decide_nothing() -> None:
    ones = np.ones((6, 4), np.float32)
    loss = lf.adopt(K.Hinge(), ones, ones)  # max(1 - 1 · 1, 0), where each library has its own subgradient
    np.testing.assert_allclose(loss(ones, 0.5 * ones), 0.5)
