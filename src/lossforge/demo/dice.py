"""Dice: a segmentation in which one pixel in ten counts.

The loss is that of Milletari, Navab & Ahmadi, *V-Net* (2016), with the sums of Sørensen and Dice.
"""

from __future__ import annotations

import numpy as np

import lossforge as lf
from lossforge.catalogue import binary_cross_entropy
from lossforge.demo.retina import retina
from lossforge.demo.story import Contender, Curve, Metric, Picture, Story, Training, standardised
from lossforge.loss import Loss


@lf.loss("*pixels, *pixels ->")
def dice(logits, true, *, smooth=1e-6):
    """One minus the overlap of prediction and truth: 2·|A ∩ B| / (|A| + |B|)."""
    pred = lf.sigmoid(logits)
    overlap = lf.sum(pred * true, "*pixels")
    total = lf.sum(pred, "*pixels") + lf.sum(true, "*pixels")
    return 1 - (2 * overlap + smooth) / (total + smooth)


def coefficient(found: np.ndarray, true: np.ndarray) -> float:
    """The overlap of two sets of pixels: 2·|A ∩ B| / (|A| + |B|)."""
    return float(2 * np.sum(found & true) / (np.sum(found) + np.sum(true)))


def story(seed: int = 0) -> Story:
    """A retina's vessels, learned on the upper half and tested on the lower."""
    from skimage.filters import gaussian

    image, vessels, eye = retina()
    upper = np.arange(len(image))[:, None] < len(image) // 2
    train, test = eye & upper, eye & ~upper
    colours = np.concatenate([image, gaussian(image, 3, channel_axis=-1)], axis=-1)
    features, test_features = standardised(colours[train], colours[test])
    true, truth = vessels[train].astype(np.float32), vessels[test]
    half = slice(len(image) // 2, None)

    def remark(ours: np.ndarray, baseline: np.ndarray) -> str:
        best = max(coefficient(baseline > t, truth) for t in np.linspace(-3, 1, 41))
        return (
            f"With the best threshold in hindsight, cross-entropy comes to {best:.3f}; Dice needs none but "
            f"the usual 0.5."
        )

    return Story(
        key="dice",
        title="Dice loss: the vessels of a retina",
        about=(
            f"A photograph of a retina, in which {100 * np.mean(vessels[eye]):.0f} % of the pixels are "
            f"vessel (labelled by a ridge filter). {len(features):,} pixels of the upper half are for "
            f"training, {len(truth):,} of the lower half for the test. Model: logistic, from a pixel's "
            f"colour and that of its surroundings."
        ),
        ours=Contender("Dice", dice, (true,)),
        baseline=Contender("cross-entropy", binary_cross_entropy, (true,)),
        features=features,
        test_features=test_features,
        training=Training((features.shape[1], 1), steps=800, batch=8192, rate=0.2, seed=seed),
        metrics=(
            Metric("Dice coefficient", lambda p: coefficient(p > 0, truth), digits=3, more_is_better=True),
            Metric(
                "vessel pixels found",
                lambda p: 100 * float(np.mean(p[truth] > 0)),
                " %",
                0,
                more_is_better=True,
            ),
        ),
        curves=_curves(np.linspace(-6, 6, 121)),
        axis="logit of one pixel",
        picture=Picture(image[half], vessels[half], test[half]),
        remark=remark,
    )


def _curves(logits: np.ndarray, pixels: int = 100, found: float = 0.5) -> tuple[Curve, ...]:
    """One pixel among `pixels`, a tenth of which are vessel; the others are predicted with some doubt."""
    result = []
    for name, loss, baseline in (
        ("Dice", dice, False),
        ("cross-entropy, either", binary_cross_entropy, True),
    ):
        for is_vessel in (True, False):
            true = np.arange(pixels) < pixels // 10
            others = np.where(true, found, -2.0)
            at = 0 if is_vessel else -1
            value, slope = np.array([_at(loss, others, true.astype(float), at, x) for x in logits]).T
            result.append(
                Curve(
                    name if baseline else f"{name}, {'vessel' if is_vessel else 'background'} pixel",
                    logits,
                    value,
                    slope,
                    baseline,
                )
            )
    return tuple(result)


def _at(loss: Loss, logits: np.ndarray, true: np.ndarray, position: int, logit: float) -> tuple[float, float]:
    moved = logits.copy()
    moved[position] = logit
    value, gradient = loss.value_and_grad(moved, true)
    return float(value), float(gradient[position])
