"""A small trainer for each framework: the same network and optimiser, the framework's own backward pass."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lossforge.demo.packages import require
from lossforge.demo.story import Layers
from lossforge.errors import FrameworkError
from lossforge.loss import Loss

_PACKAGES = {"numpy": "numpy", "torch": "torch", "tensorflow": "tensorflow", "jax": "jax"}
FRAMEWORKS = tuple(_PACKAGES)


class Trainer(Protocol):
    """A fully connected network (tanh between its layers) in training, by Adam."""

    def __init__(self, layers: Layers, loss: Loss, rate: float) -> None: ...

    def step(self, features: np.ndarray, arguments: Sequence[np.ndarray]) -> None:
        """One step of the optimiser on a batch.

        Args:
            features: (samples, features), float32.
            arguments: what the loss takes besides the prediction.
        """

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The network's outputs, (samples,)."""

    @staticmethod
    def gradient(loss: Loss, prediction: np.ndarray, arguments: Sequence[np.ndarray]) -> np.ndarray:
        """The gradient that backpropagation starts with, in float64, from this framework's backward pass."""


def trainer(framework: str) -> type[Trainer]:
    """The trainer of a framework.

    Raises:
        FrameworkError: it is not known.
        MissingPackageError: it is not installed.
    """
    if framework not in _PACKAGES:
        raise FrameworkError(f"no framework {framework!r}; the demo trains with {', '.join(FRAMEWORKS)}")
    if framework != "numpy":
        require({_PACKAGES[framework]: _PACKAGES[framework]}, extra=framework)
    module = importlib.import_module(f"lossforge.demo.trainers.{framework}")
    found: type[Trainer] = module.Trainer
    return found
