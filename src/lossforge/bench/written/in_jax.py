"""The losses written out in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def huber(pred: Array, true: Array, delta: float = 1.0) -> Array:
    """Huber's loss, mean."""
    error = jnp.abs(pred - true)
    quadratic = jnp.minimum(error, delta)
    return jnp.mean(0.5 * quadratic**2 + delta * (error - quadratic))


def focal(logits: Array, true: Array, gamma: float = 2.0, alpha: float = 0.25) -> Array:
    """Sigmoid focal loss, mean."""
    hit, miss = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    positive = alpha * true * jnp.exp(gamma * miss) * hit
    return jnp.mean(-positive - (1 - alpha) * (1 - true) * jnp.exp(gamma * hit) * miss)


def cross_entropy(logits: Array, target: Array) -> Array:
    """Softmax cross-entropy, mean."""
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], 1))


def dice(logits: Array, true: Array, smooth: float = 1e-5) -> Array:
    """Softmax Dice loss over (batch, class, *space), mean."""
    pred = jax.nn.softmax(logits, 1)
    axes = tuple(range(2, pred.ndim))
    overlap = jnp.sum(pred * true, axes)
    return jnp.mean(1 - (2 * overlap + smooth) / (jnp.sum(pred, axes) + jnp.sum(true, axes) + smooth))


def info_nce(anchor: Array, positive: Array, temperature: float = 0.1) -> Array:
    """InfoNCE over all pairs of a batch, mean."""
    similarity = anchor @ positive.T / temperature
    return jnp.mean(jax.nn.logsumexp(similarity, 1) - jnp.diagonal(similarity))
