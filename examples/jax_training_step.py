"""A JAX training step under `jit`, with a focal loss written once.

    pip install "lossforge[jax,demo]"
    python examples/jax_training_step.py

The breast-cancer data ships with scikit-learn: thirty measurements of the cells of a sample, and whether it was
malignant. A focal loss spends its gradient on the samples that are not yet told apart.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer

import lossforge as lf


@lf.loss
def focal(logits, malignant, *, gamma=2.0, alpha=0.5):
    """The sigmoid focal loss of Lin et al., Focal loss for dense object detection (2017), from logits."""
    hit, miss = lf.log_sigmoid(logits), lf.log_sigmoid(-logits)
    found = alpha * malignant * lf.exp(gamma * miss) * hit
    spared = (1 - alpha) * (1 - malignant) * lf.exp(gamma * hit) * miss
    return -found - spared


def samples(seed: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Measurements and labels for training, and the same for the test."""
    rng = np.random.default_rng(seed)
    measured, benign = load_breast_cancer(return_X_y=True)
    order = rng.permutation(len(benign))
    inputs = ((measured - measured.mean(axis=0)) / measured.std(axis=0))[order].astype(np.float32)
    malignant = (1 - benign)[order].astype(np.float32)
    return (
        jnp.asarray(inputs[:400]),
        jnp.asarray(malignant[:400]),
        jnp.asarray(inputs[400:]),
        jnp.asarray(malignant[400:]),
    )


def network(weights: list[tuple[jax.Array, jax.Array]], inputs: jax.Array) -> jax.Array:
    """A logit for each sample."""
    (w1, b1), (w2, b2) = weights
    return (jnp.tanh(inputs @ w1 + b1) @ w2 + b2)[:, 0]


@partial(jax.jit, static_argnames="rate")
def training_step(
    weights: list[tuple[jax.Array, jax.Array]], inputs: jax.Array, malignant: jax.Array, *, rate: float
) -> tuple[list[tuple[jax.Array, jax.Array]], jax.Array]:
    """One step of gradient descent: the new weights, and the loss before it."""
    loss, gradient = jax.value_and_grad(lambda w: focal(network(w, inputs), malignant))(weights)
    return jax.tree.map(lambda w, g: w - rate * g, weights, gradient), loss


def main(steps: int = 300, seed: int = 0) -> dict[str, float]:
    """Train, and report the loss and how many malignant test samples are found."""
    inputs, malignant, test_inputs, test_malignant = samples(seed)
    keys = jax.random.split(jax.random.key(seed), 2)
    weights = [
        (jax.random.normal(keys[0], (30, 16)) / 30**0.5, jnp.zeros(16)),
        (jax.random.normal(keys[1], (16, 1)) / 4, jnp.zeros(1)),
    ]

    def recall() -> float:
        found = network(weights, test_inputs) > 0
        return float(jnp.sum(found * test_malignant) / jnp.sum(test_malignant))

    results = {"recall before": recall()}
    for step in range(steps):
        weights, loss = training_step(weights, inputs, malignant, rate=2.0)
        if step == 0:
            results["loss before"] = float(loss)
    results |= {"loss after": float(loss), "recall after": recall()}
    for name in sorted(results):
        print(f"{name:15} {results[name]:8.4f}")
    return results


if __name__ == "__main__":
    main()
