"""Huber: a regression among faulty readings.

The loss is that of Huber, *Robust Estimation of a Location Parameter* (1964), in the form of the minimum.
"""

from __future__ import annotations

import numpy as np

import lossforge as lf
from lossforge.catalogue import squared_error
from lossforge.demo.story import Contender, Metric, Story, Training, profile, standardised

FAULTY = 0.1
"""The share of training targets with a slipped decimal point."""


@lf.loss
def huber(pred, true, *, delta=1.0):
    """Quadratic for small errors, linear for large ones."""
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


def story(seed: int = 0) -> Story:
    """Diabetes (Efron et al., *Least Angle Regression*, 2004; ships with scikit-learn)."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.target))
    train, test = order[:300], order[300:]
    target = data.target.copy()
    target[rng.choice(train, int(FAULTY * len(train)), replace=False)] *= 10
    # A median and a median deviation are not moved by the faults, so they can set the scale.
    centre = np.median(target[train])
    scale = 1.4826 * np.median(np.abs(target[train] - centre))
    features, test_features = standardised(data.data[train], data.data[test])
    true = ((target[train] - centre) / scale).astype(np.float32)

    def errors(prediction: np.ndarray) -> np.ndarray:
        return np.asarray(np.abs(prediction * scale + centre - data.target[test]))

    x = np.linspace(-3, 3, 241)
    return Story(
        key="huber",
        title="Huber loss: a regression among faulty readings",
        about=(
            f"Ten measurements of {len(train)} diabetes patients; to be predicted is how far the disease "
            f"went in a year (25 to 346 points). In every tenth training target the decimal point has "
            f"slipped, so that 150 reads 1500. The targets of the {len(test)} test patients are right. "
            f"Model: 16 hidden units."
        ),
        ours=Contender("Huber", huber, (true,)),
        baseline=Contender("squared error", squared_error, (true,)),
        features=features,
        test_features=test_features,
        training=Training((features.shape[1], 16, 1), steps=300, batch=64, rate=0.005, seed=seed),
        metrics=(
            Metric("median error of test patients", lambda p: float(np.median(errors(p))), " points"),
            Metric("mean error", lambda p: float(np.mean(errors(p))), " points"),
        ),
        curves=(
            profile("Huber", huber, x, 0.0),
            profile("squared error", squared_error, x, 0.0, baseline=True),
        ),
        axis="prediction − target",
        marks=((-1.0, "−δ"), (1.0, "δ")),
    )
