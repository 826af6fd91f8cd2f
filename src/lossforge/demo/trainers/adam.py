"""Adam (Kingma & Ba, *Adam: A Method for Stochastic Optimization*, 2015, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Adam:
    """The optimiser, for arrays of a framework that has none of its own.

    Args:
        weights: what is optimised.
        rate: the step size.
    """

    def __init__(self, weights: Sequence[Any], rate: float) -> None:
        self.rate = rate
        self.steps = 0
        self.first = [0.0 * w for w in weights]
        self.second = [0.0 * w for w in weights]

    def step(self, weights: Sequence[Any], gradients: Sequence[Any]) -> list[Any]:
        """The weights after one step."""
        self.steps += 1
        self.first = [0.9 * m + 0.1 * g for m, g in zip(self.first, gradients, strict=True)]
        self.second = [0.999 * v + 0.001 * g * g for v, g in zip(self.second, gradients, strict=True)]
        # The corrections for the moments' start at zero.
        first, second = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        return [
            w - self.rate * (m / first) / ((v / second) ** 0.5 + 1e-8)
            for w, m, v in zip(weights, self.first, self.second, strict=True)
        ]
