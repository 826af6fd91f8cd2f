"""What a story of the demo is made of: data, two losses that compete on it, and what tells them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from lossforge.loss import Loss

Layers: TypeAlias = tuple[tuple[np.ndarray, np.ndarray], ...]
"""Weights (inputs, outputs) and biases (outputs,) of each layer of a fully connected network."""


@dataclass(frozen=True)
class Contender:
    """A loss, and what it is called with besides the prediction: an entry for each training sample."""

    name: str
    loss: Loss
    arguments: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Training:
    """How both contenders are trained: the same network from the same start, on the same batches."""

    sizes: tuple[int, ...]
    """The widths of the network: features, hidden layers (tanh between them), 1."""
    steps: int
    batch: int
    """Samples of one step, drawn with replacement."""
    rate: float
    """The step size of Adam."""
    seed: int = 0

    def layers(self) -> Layers:
        """The network at the start: normal weights of variance 1 / inputs, no biases; float32."""
        rng = np.random.default_rng(self.seed)
        return tuple(
            ((rng.normal(size=(n, m)) / np.sqrt(n)).astype(np.float32), np.zeros(m, np.float32))
            for n, m in zip(self.sizes, self.sizes[1:], strict=False)
        )

    def batches(self, samples: int, steps: int) -> np.ndarray:
        """The rows of each step's batch."""
        rng = np.random.default_rng([self.seed, 1])
        return rng.integers(0, samples, (steps, self.batch))


@dataclass(frozen=True)
class Metric:
    """What a person wants to know of a prediction for the test samples."""

    name: str
    of: Callable[[np.ndarray], float]
    unit: str = ""
    digits: int = 0
    """Decimals that are shown."""
    more_is_better: bool = False

    def show(self, value: float) -> str:
        """The number with its unit."""
        return f"{value:.{self.digits}f}{self.unit}"


@dataclass(frozen=True)
class Curve:
    """A loss and its gradient as one entry of the prediction varies."""

    name: str
    prediction: np.ndarray
    value: np.ndarray
    slope: np.ndarray
    baseline: bool = False


@dataclass(frozen=True)
class Picture:
    """A segmentation of the test half of an image, beside what it should be."""

    image: np.ndarray
    """(height, width, 3), from 0 to 1."""
    label: np.ndarray
    """(height, width), true where something is to be found."""
    where: np.ndarray
    """(height, width), true for the pixels of the test, in the order of the prediction."""


@dataclass(frozen=True)
class Story:
    """One of the demo's losses at work."""

    key: str
    """A short name, for files."""
    title: str
    about: str
    """The problem, the data and the model, in a few sentences."""
    ours: Contender
    baseline: Contender
    features: np.ndarray
    """(samples, features), float32, each feature centred and scaled."""
    test_features: np.ndarray
    training: Training
    metrics: tuple[Metric, ...]
    """The first is the one that counts."""
    curves: tuple[Curve, ...]
    axis: str
    """What the curves' predictions are, for the axis of the plot."""
    marks: tuple[tuple[float, str], ...] = ()
    """Where the formula of the gradient changes, and what to call it."""
    written_by_hand: Callable[..., object] | None = None
    """The gradient that was registered with `@loss.gradient`, if one was."""
    refused: Callable[[], str] | None = None
    """Registers a wrong gradient; the error's text."""
    picture: Picture | None = None
    remark: Callable[[np.ndarray, np.ndarray], str] | None = None
    """What else is to be said, given our prediction and the baseline's for the test samples."""


def profile(name: str, loss: Loss, prediction: np.ndarray, *others: float, baseline: bool = False) -> Curve:
    """The curve of an elementwise loss, its other arguments being constant."""
    arguments = [np.full_like(prediction, o) for o in others]
    value = loss(prediction, *arguments, reduction="none")
    return Curve(name, prediction, value, loss.grad(prediction, *arguments, reduction="sum"), baseline)


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each feature centred on the training samples' mean, in units of their standard deviation; float32."""
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    return ((train - mean) / deviation).astype(np.float32), ((test - mean) / deviation).astype(np.float32)
