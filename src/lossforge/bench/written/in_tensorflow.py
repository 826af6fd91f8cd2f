"""The losses written out in TensorFlow."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def huber(pred: Any, true: Any, delta: float = 1.0) -> Any:
    """Huber's loss, mean."""
    error = tf.abs(pred - true)
    quadratic = tf.minimum(error, delta)
    return tf.reduce_mean(0.5 * tf.square(quadratic) + delta * (error - quadratic))


def focal(logits: Any, true: Any, gamma: float = 2.0, alpha: float = 0.25) -> Any:
    """Sigmoid focal loss, mean."""
    hit, miss = tf.math.log_sigmoid(logits), tf.math.log_sigmoid(-logits)
    positive = alpha * true * tf.exp(gamma * miss) * hit
    return tf.reduce_mean(-positive - (1 - alpha) * (1 - true) * tf.exp(gamma * hit) * miss)


def cross_entropy(logits: Any, target: Any) -> Any:
    """Softmax cross-entropy, mean."""
    return -tf.reduce_mean(tf.gather(tf.nn.log_softmax(logits), target, axis=1, batch_dims=1))


def dice(logits: Any, true: Any, smooth: float = 1e-5) -> Any:
    """Softmax Dice loss over (batch, class, *space), mean."""
    pred = tf.nn.softmax(logits, 1)
    axes = list(range(2, len(pred.shape)))
    overlap = tf.reduce_sum(pred * true, axes)
    return tf.reduce_mean(1 - (2 * overlap + smooth) / (tf.reduce_sum(pred, axes) + tf.reduce_sum(true, axes) + smooth))


def info_nce(anchor: Any, positive: Any, temperature: float = 0.1) -> Any:
    """InfoNCE over all pairs of a batch, mean."""
    similarity = tf.matmul(anchor, positive, transpose_b=True) / temperature
    return tf.reduce_mean(tf.reduce_logsumexp(similarity, 1) - tf.linalg.diag_part(similarity))
