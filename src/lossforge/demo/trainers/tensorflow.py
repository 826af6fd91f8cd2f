"""TensorFlow: `tf.GradientTape` in a `tf.function`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from lossforge.demo.story import Layers
from lossforge.loss import Loss


class Trainer:
    """See `lossforge.demo.trainers.Trainer`."""

    def __init__(self, layers: Layers, loss: Loss, rate: float) -> None:
        self.layers = [(tf.Variable(weight), tf.Variable(bias)) for weight, bias in layers]
        self.loss = loss
        self.optimiser = tf.keras.optimizers.Adam(rate, epsilon=1e-8)
        self.optimiser.build([v for layer in self.layers for v in layer])
        self._step = tf.function(self._update)

    def _forward(self, features: tf.Tensor) -> tf.Tensor:
        (weight, bias), *rest = self.layers
        outputs = features @ weight + bias
        for weight, bias in rest:
            outputs = tf.tanh(outputs) @ weight + bias
        return outputs[:, 0]

    def _update(self, features: tf.Tensor, *arguments: tf.Tensor) -> None:
        variables = [v for layer in self.layers for v in layer]
        with tf.GradientTape() as tape:
            loss = self.loss(self._forward(features), *arguments)
        self.optimiser.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    def step(self, features: np.ndarray, arguments: Sequence[np.ndarray]) -> None:
        """One step of the optimiser."""
        self._step(*map(tf.constant, (features, *arguments)))

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The network's outputs."""
        return np.asarray(self._forward(tf.constant(features)))

    @staticmethod
    def gradient(loss: Loss, prediction: np.ndarray, arguments: Sequence[np.ndarray]) -> np.ndarray:
        """The gradient that backpropagation starts with."""
        tensor = tf.constant(prediction)
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            value = loss(tensor, *map(tf.constant, arguments))
        return np.asarray(tape.gradient(value, tensor))
