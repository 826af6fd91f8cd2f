"""PyTorch: `loss.backward()`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from lossforge.demo.story import Layers
from lossforge.loss import Loss


class Trainer:
    """See `lossforge.demo.trainers.Trainer`."""

    def __init__(self, layers: Layers, loss: Loss, rate: float) -> None:
        modules: list[nn.Module] = []
        for weight, bias in layers:
            linear = nn.Linear(*weight.shape)
            linear.load_state_dict({"weight": torch.tensor(weight.T), "bias": torch.tensor(bias)})
            modules += [linear, nn.Tanh()]
        self.network = nn.Sequential(*modules[:-1])
        self.loss = loss.torch()
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=rate)

    def step(self, features: np.ndarray, arguments: Sequence[np.ndarray]) -> None:
        """One step of the optimiser."""
        prediction = self.network(torch.from_numpy(features))[:, 0]
        loss = self.loss(prediction, *map(torch.from_numpy, arguments))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    @torch.no_grad()
    def predict(self, features: np.ndarray) -> np.ndarray:
        """The network's outputs."""
        return np.asarray(self.network(torch.from_numpy(features))[:, 0])

    @staticmethod
    def gradient(loss: Loss, prediction: np.ndarray, arguments: Sequence[np.ndarray]) -> np.ndarray:
        """The gradient that backpropagation starts with."""
        tensor = torch.tensor(prediction, requires_grad=True)
        loss(tensor, *map(torch.from_numpy, arguments)).backward()
        assert tensor.grad is not None
        return tensor.grad.numpy()
