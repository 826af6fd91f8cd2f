"""Losses written for JAX, optax's among them, adopted: against `jax.grad`, at two shapes, answered by NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import lossforge as lf
from adoption import binary, check, classes, drawn, log_simplex, one_hot, real, signs, simplex, unit

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
jnp, OPTAX = jax.numpy, optax.losses


def original(fn: Callable[..., Any]) -> Callable[[Sequence[np.ndarray], int], tuple[np.ndarray, np.ndarray]]:
    def run(arrays: Sequence[np.ndarray], at: int) -> tuple[np.ndarray, np.ndarray]:
        given = [jnp.asarray(a.astype(np.int32) if a.dtype.kind == "i" else a) for a in arrays]
        slope = jax.jit(jax.grad(lambda *a: fn(*a).sum(), argnums=at))(*given)
        return np.asarray(jax.jit(fn)(*given)), np.asarray(slope)

    return run


def pinball(pred, true, q=0.3):
    return jnp.mean(jnp.maximum(q * (true - pred), (q - 1) * (true - pred)))


def total_variation(x):
    return jnp.abs(jnp.diff(x, axis=0)).mean()


def contrastive(x, y):
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(x @ y.T)))


NC, N = [(6, 4), (9, 5)], [(6,), (9,)]

CASES = {
    "l2": (OPTAX.l2_loss, [real, real], [NC, NC]),
    "huber": (OPTAX.huber_loss, [real, real], [NC, NC]),
    "log cosh": (OPTAX.log_cosh, [real, real], [NC, NC]),
    "cosine": (OPTAX.cosine_distance, [real, real], [NC, NC]),
    "softmax": (OPTAX.softmax_cross_entropy, [real, simplex], [NC, NC]),
    "softmax integer": (OPTAX.softmax_cross_entropy_with_integer_labels, [real, classes(4)], [NC, N]),
    "sigmoid": (OPTAX.sigmoid_binary_cross_entropy, [real, binary], [NC, NC]),
    "hinge": (OPTAX.hinge_loss, [real, signs], [NC, NC]),
    "perceptron": (OPTAX.perceptron_loss, [real, signs], [NC, NC]),
    "kl": (OPTAX.kl_divergence, [log_simplex, simplex], [NC, NC]),
    "kl log": (OPTAX.kl_divergence_with_log_targets, [log_simplex, log_simplex], [NC, NC]),
    "poly": (OPTAX.poly_loss_cross_entropy, [real, one_hot], [NC, NC]),
    "multiclass hinge": (OPTAX.multiclass_hinge_loss, [real, classes(4)], [NC, N]),
    "multiclass perceptron": (OPTAX.multiclass_perceptron_loss, [real, classes(4)], [NC, N]),
    "ranking": (OPTAX.ranking_softmax_loss, [real, unit], [NC, NC]),
    "mse": (lambda p, t: jnp.mean((p - t) ** 2), [real, real], [NC, NC]),
    "pinball": (pinball, [real, real], [NC, NC]),
    "total variation": (total_variation, [real], [NC]),
}


@pytest.mark.parametrize("name", CASES)
def test_published_loss(name: str) -> None:
    fn, kinds, shapes = CASES[name]
    first, second = ([s[i] for s in shapes] for i in (0, 1))
    loss = lf.adopt(fn, *map(jnp.asarray, drawn(name, kinds, first)))
    for where in (first, second):
        check(loss, original(fn), drawn(name + " again", kinds, where))


def test_a_branch_on_values_is_refused_by_name() -> None:
    def loss(pred):
        return pred.sum() if pred.sum() > 0 else -pred.sum()

    with pytest.raises(lf.errors.AdoptionError, match="depends|decision"):
        lf.adopt(loss, jnp.ones((6, 4)))
