"""The gradient that a framework runs, against differences of the loss in high-precision arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lossforge.interpreter import HighPrecision, evaluate
from lossforge.loss import Loss

DIGITS = 60
STEP = "1e-20"
"""A central difference with this step is exact to about 40 digits, where the loss is smooth over it."""


@dataclass(frozen=True)
class Checked:
    """The outcome."""

    entries: int
    error: float
    """The largest difference, relative to the gradient's largest entry."""


def check(
    loss: Loss,
    gradient: Callable[[Loss, np.ndarray, Sequence[np.ndarray]], np.ndarray],
    prediction: np.ndarray,
    arguments: Sequence[np.ndarray],
) -> Checked:
    """Compare each entry of a gradient with a difference of the mean loss, which no derivation has touched.

    Args:
        loss: with default parameters.
        gradient: what gives the gradient, in float64; called as (loss, prediction, arguments).
        prediction: (samples,), float64.
        arguments: the loss's other arguments, (samples,), float64.
    """
    plan = loss.plan()
    arithmetic = HighPrecision(DIGITS)
    step = arithmetic.context.mpf(STEP)
    parameters = [loss.parameters[p.name] for p in plan.definition.parameters]

    def exactly(values: np.ndarray) -> np.ndarray:
        given = [values, *arguments, *parameters]
        (found,) = evaluate([plan.output.node], dict(zip(plan.inputs, given, strict=True)), arithmetic)
        return found

    found = gradient(loss, prediction, arguments)
    expected = np.empty(len(prediction))
    for i in range(len(prediction)):
        moved = prediction.astype(object)
        moved[i] = arithmetic.context.mpf(prediction[i])
        above, below = moved.copy(), moved.copy()
        above[i] += step
        below[i] -= step
        expected[i] = float((exactly(above) - exactly(below)) / (2 * step))
    return Checked(len(expected), float(np.abs(found - expected).max() / np.abs(expected).max()))
