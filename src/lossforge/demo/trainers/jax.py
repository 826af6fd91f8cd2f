"""JAX: `jax.grad` under `jit`."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lossforge.demo.story import Layers
from lossforge.demo.trainers.adam import Adam
from lossforge.loss import Loss


def _forward(weights: Sequence[jax.Array], features: jax.Array) -> jax.Array:
    outputs = features @ weights[0] + weights[1]
    for weight, bias in zip(weights[2::2], weights[3::2], strict=True):
        outputs = jnp.tanh(outputs) @ weight + bias
    return outputs[:, 0]


class Trainer:
    """See `lossforge.demo.trainers.Trainer`."""

    def __init__(self, layers: Layers, loss: Loss, rate: float) -> None:
        def objective(weights: Sequence[jax.Array], features: jax.Array, arguments: Sequence[jax.Array]) -> jax.Array:
            value: jax.Array = loss(_forward(weights, features), *arguments)
            return value

        self.weights = [jnp.asarray(array) for layer in layers for array in layer]
        self.gradients = jax.jit(jax.grad(objective))
        self.adam = Adam(self.weights, rate)

    def step(self, features: np.ndarray, arguments: Sequence[np.ndarray]) -> None:
        """One step of the optimiser."""
        gradients = self.gradients(self.weights, features, tuple(arguments))
        self.weights = self.adam.step(self.weights, gradients)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The network's outputs."""
        return np.asarray(_forward(self.weights, jnp.asarray(features)))

    @staticmethod
    def gradient(loss: Loss, prediction: np.ndarray, arguments: Sequence[np.ndarray]) -> np.ndarray:
        """The gradient that backpropagation starts with."""
        with jax.enable_x64(True):
            return np.asarray(jax.grad(loss)(jnp.asarray(prediction), *map(jnp.asarray, arguments)))
