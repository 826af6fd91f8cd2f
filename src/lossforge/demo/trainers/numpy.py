"""NumPy: backpropagation and optimiser written out; the loss gives the gradient that it starts with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lossforge.demo.story import Layers
from lossforge.demo.trainers.adam import Adam
from lossforge.loss import Loss


class Trainer:
    """See `lossforge.demo.trainers.Trainer`."""

    def __init__(self, layers: Layers, loss: Loss, rate: float) -> None:
        self.weights = [array for layer in layers for array in layer]
        self.loss = loss
        self.adam = Adam(self.weights, rate)

    def _forward(self, features: np.ndarray) -> list[np.ndarray]:
        """The features, and the outputs of each layer."""
        outputs = [features]
        for weight, bias in zip(self.weights[::2], self.weights[1::2], strict=True):
            inputs = outputs[-1] if len(outputs) == 1 else np.tanh(outputs[-1])
            outputs.append(inputs @ weight + bias)
        return outputs

    def gradients(self, features: np.ndarray, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The loss's gradient with respect to each weight and bias."""
        outputs = self._forward(features)
        adjoint = self.loss.grad(outputs[-1][:, 0], *arguments)[:, None]
        found: list[np.ndarray] = []
        for i in reversed(range(len(outputs) - 1)):
            inputs = np.tanh(outputs[i]) if i else features
            found = [inputs.T @ adjoint, adjoint.sum(axis=0), *found]
            if i:
                adjoint = (adjoint @ self.weights[2 * i].T) * (1 - inputs**2)
        return found

    def step(self, features: np.ndarray, arguments: Sequence[np.ndarray]) -> None:
        """One step of the optimiser."""
        self.weights = self.adam.step(self.weights, self.gradients(features, arguments))

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The network's outputs."""
        return self._forward(features)[-1][:, 0]

    @staticmethod
    def gradient(loss: Loss, prediction: np.ndarray, arguments: Sequence[np.ndarray]) -> np.ndarray:
        """The gradient that backpropagation starts with."""
        return np.asarray(loss.grad(prediction, *arguments))
