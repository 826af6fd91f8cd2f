"""Weighted squared error: a gradient written by hand, and mistakes that do not weigh the same."""

from __future__ import annotations

import numpy as np

import lossforge as lf
from lossforge.catalogue import squared_error
from lossforge.demo.story import Contender, Metric, Story, Training, profile, standardised

WEIGHT = 5.0
"""How many false alarms a missed tumour is worth."""


@lf.loss
def weighted_squared_error(pred, true, w):
    """Squared errors, some of which count for more."""
    return w * (true - pred) ** 2


@weighted_squared_error.gradient
def by_hand(pred, true, w):
    """The derivative with respect to `pred`."""
    return -2 * w * (true - pred)


def refused() -> str:
    """What becomes of a gradient whose factor 2 was forgotten."""
    try:

        @weighted_squared_error.gradient
        def forgotten(pred, true, w):
            return -w * (true - pred)

    except lf.errors.GradientMismatchError as error:
        return str(error)
    raise AssertionError("a wrong gradient was registered")


def story(seed: int = 0) -> Story:
    """Breast cancer, Wisconsin (Street, Wolberg & Mangasarian 1993; ships with scikit-learn)."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    order = np.random.default_rng(seed).permutation(len(data.target))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    malignant = data.target == 0
    features, test_features = standardised(data.data[train], data.data[test])
    true = np.where(malignant[train], 1, -1).astype(np.float32)
    weight = np.where(malignant[train], WEIGHT, 1).astype(np.float32)
    ill = malignant[test]
    x = np.linspace(-2, 2, 161)
    return Story(
        key="weighted",
        title="Weighted squared error: a gradient written by hand",
        about=(
            f"{data.data.shape[1]} measurements of cell nuclei from {len(train)} breast tumours, of which "
            f"{int(malignant[train].sum())} are malignant (+1, the others −1). To miss one of these is as "
            f"bad as {WEIGHT:.0f} false alarms, so they weigh {WEIGHT:.0f} times as much. {len(test)} other "
            f"tumours are the test. Model: linear."
        ),
        ours=Contender("weighted", weighted_squared_error, (true, weight)),
        baseline=Contender("squared error", squared_error, (true,)),
        features=features,
        test_features=test_features,
        training=Training((features.shape[1], 1), steps=400, batch=128, rate=0.005, seed=seed),
        metrics=(
            Metric(f"missed of {int(ill.sum())} malignant", lambda p: float(np.sum((p <= 0) & ill))),
            Metric(f"false alarms of {int((~ill).sum())}", lambda p: float(np.sum((p > 0) & ~ill))),
        ),
        curves=(
            profile("malignant (+1), weight 5", weighted_squared_error, x, 1.0, WEIGHT),
            profile("benign (−1), weight 1", weighted_squared_error, x, -1.0, 1.0),
            profile("malignant, unweighted", squared_error, x, 1.0, baseline=True),
        ),
        axis="prediction",
        written_by_hand=by_hand,
        refused=refused,
    )
