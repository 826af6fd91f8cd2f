"""Losses of MONAI and kornia, adopted as they are: value and gradient against autograd, at two shapes, and in JAX."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import lossforge as lf
from adoption import agree, binary, check, classes, drawn, one_hot, real, unit

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    monai = pytest.importorskip("monai.losses")
    kornia = pytest.importorskip("kornia.losses")

from test_adopt_torch import original  # noqa: E402

Shapes = tuple[tuple[int, ...], ...]


def hot(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One class for each place; the classes lie in the second dimension."""
    return np.moveaxis(one_hot(rng, (shape[0], *shape[2:], shape[1])), -1, 1).copy()


@dataclass(frozen=True)
class Row:
    loss: Callable[..., Any]
    kinds: tuple[Any, ...]
    first: Shapes
    second: Shapes


def pair(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[Shapes, Shapes]:
    return (first, first), (second, second)


SEGMENTS = pair((2, 3, 6, 5), (3, 3, 4, 7))
IMAGES = pair((2, 1, 9, 8), (3, 1, 7, 10))
VOLUMES = pair((1, 1, 5, 6, 7), (2, 1, 6, 5, 4))
LABELS = (((2, 3, 6, 5), (2, 6, 5)), ((3, 3, 4, 7), (3, 4, 7)))
FIELD = (((2, 3, 6, 7, 8),), ((1, 3, 7, 6, 5),))

ROWS = {
    "monai dice sigmoid": Row(monai.DiceLoss(sigmoid=True), (real, hot), *SEGMENTS),
    "monai dice softmax": Row(monai.DiceLoss(softmax=True, include_background=False), (real, hot), *SEGMENTS),
    "monai dice batch": Row(monai.DiceLoss(softmax=True, batch=True, squared_pred=True), (real, hot), *SEGMENTS),
    "monai dice entries": Row(monai.DiceLoss(sigmoid=True, reduction="none"), (real, hot), *SEGMENTS),
    "monai dice weights": Row(monai.DiceLoss(softmax=True, weight=[1.0, 2.0, 3.0]), (real, hot), *SEGMENTS),
    "monai generalized dice": Row(monai.GeneralizedDiceLoss(softmax=True), (real, hot), *SEGMENTS),
    "monai dice and entropy": Row(monai.DiceCELoss(softmax=True, lambda_ce=0.5), (real, hot), *SEGMENTS),
    "monai dice and focal": Row(monai.DiceFocalLoss(sigmoid=True, gamma=3.0), (real, hot), *SEGMENTS),
    "monai tversky": Row(monai.TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7), (real, hot), *SEGMENTS),
    "monai focal": Row(monai.FocalLoss(gamma=1.5, alpha=0.25), (real, hot), *SEGMENTS),
    "monai ssim": Row(monai.SSIMLoss(2, win_size=5), (unit, unit), *IMAGES),
    "monai correlation": Row(monai.LocalNormalizedCrossCorrelationLoss(3), (unit, unit), *VOLUMES),
    "monai bending": Row(monai.BendingEnergyLoss(), (real,), *FIELD),
    "monai diffusion": Row(monai.DiffusionLoss(), (real,), *FIELD),
    "monai soft skeletons": Row(monai.SoftclDiceLoss(iter_=1), (unit, hot), *pair((2, 2, 6, 7), (1, 2, 7, 5))),
    "monai spectrum": Row(monai.JukeboxLoss(2), (unit, unit), *IMAGES),
    "kornia dice": Row(kornia.DiceLoss(average="macro"), (real, classes(3)), *LABELS),
    "kornia focal": Row(kornia.FocalLoss(0.5, 2.0, "mean"), (real, classes(3)), *LABELS),
    "kornia binary focal": Row(kornia.BinaryFocalLossWithLogits(0.5, 2.0, "mean"), (real, binary), *IMAGES),
    "kornia ssim": Row(kornia.SSIMLoss(5), (unit, unit), *IMAGES),
    "kornia ssim, valid": Row(kornia.SSIM3DLoss(3, padding="valid"), (unit, unit), *VOLUMES),
    "kornia variation": Row(kornia.TotalVariation(), (unit,), ((2, 3, 6, 5),), ((1, 3, 4, 7),)),
    "kornia depth": Row(
        kornia.InverseDepthSmoothnessLoss(), (unit, unit), ((2, 1, 6, 5), (2, 3, 6, 5)), ((1, 1, 4, 7), (1, 3, 4, 7))
    ),
    "kornia charbonnier": Row(kornia.CharbonnierLoss("mean"), (real, real), *IMAGES),
    "kornia welsch": Row(kornia.WelschLoss("sum"), (real, real), *IMAGES),
}


IN_JAX = ("monai dice batch", "monai ssim", "monai soft skeletons", "monai spectrum", "kornia focal")
"""One of each kind: sums, windows, maxima, Fourier transforms, positions."""


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # by MONAI, of its own indexing
def test_collections(name):
    row = ROWS[name]
    examples = [torch.from_numpy(a) for a in drawn(name, row.kinds, row.first)]
    loss = lf.adopt(row.loss, *examples)
    run = original(row.loss)
    for shapes in (row.first, row.second):
        check(loss, run, drawn(f"{name} {shapes}", row.kinds, shapes))
    if name in IN_JAX:
        jax = pytest.importorskip("jax")
        arrays = drawn(f"{name} in JAX", row.kinds, row.second)
        value, gradient = run(arrays, 0)
        mine, slope = jax.value_and_grad(loss)(*(jax.numpy.asarray(a) for a in arrays))
        agree("value in JAX", mine, value)
        agree("gradient in JAX", slope, gradient)


def test_an_array_in_the_hands_of_numpy_is_refused_by_name():
    examples = [torch.from_numpy(a) for a in drawn("hausdorff", (real, binary), IMAGES[0])]
    with pytest.raises(lf.errors.AdoptionError, match="_morphology.py.*an array is handed to NumPy"):
        lf.adopt(monai.HausdorffDTLoss(sigmoid=True), *examples)


def test_a_parameter_that_may_only_grow():
    def scaled_error(pred, true, *, data_range=1.0):
        if pred.max() > data_range:
            raise ValueError("beyond the range")
        return ((pred - true) ** 2).mean() / data_range

    pred, true = (torch.from_numpy(a) for a in drawn("range", (unit, unit), IMAGES[0]))
    loss = lf.adopt(scaled_error, pred, true)
    agree("value", loss(pred, true, data_range=4.0), scaled_error(pred, true, data_range=4.0))
