"""Losses of overlap between a predicted region and a true one, which no imbalance of the classes upsets.

`pred` holds probabilities; `smooth` keeps regions that are empty in both from dividing 0 by 0.
"""

import lossforge as lf


def _dice(overlap, total, smooth):
    return 1 - (2 * overlap + smooth) / (total + smooth)


@lf.loss("batch class *space, batch class *space -> batch class")
def dice(pred, true, *, smooth=1e-6):
    """The Dice loss of each class in each sample.

        1 − (2 Σ p t + s) / (Σ p + Σ t + s), sums over *space

    Shapes: pred and true (batch, class, *space), any number of spatial axes; one loss for each (batch,
    class).
    Domain: 0 ≤ pred ≤ 1, 0 ≤ true ≤ 1, smooth > 0.
    Source: Milletari, Navab & Ahmadi, *V-Net: fully convolutional neural networks for volumetric medical
    image segmentation* (2016); Dice, *Measures of the amount of ecologic association between species*
    (1945).
    """
    overlap = lf.sum(pred * true, "*space")
    total = lf.sum(pred, "*space") + lf.sum(true, "*space")
    return _dice(overlap, total, smooth)


@lf.loss("batch class *space, batch class *space -> class")
def dice_batch(pred, true, *, smooth=1e-6):
    """The Dice loss of each class over the whole batch, for classes that many samples lack.

        1 − (2 Σ p t + s) / (Σ p + Σ t + s), sums over batch and *space

    Without spatial axes it is one minus the soft F1 score of each class.

    Shapes: pred and true (batch, class, *space), any number of spatial axes; one loss for each class.
    Domain: 0 ≤ pred ≤ 1, 0 ≤ true ≤ 1, smooth > 0.
    Source: Kodym, Španěl & Herout, *Segmentation of head and neck organs at risk using CNN with batch Dice
    loss* (2018).
    """
    axes = ("batch", "*space")
    overlap = lf.sum(pred * true, axes)
    total = lf.sum(pred, axes) + lf.sum(true, axes)
    return _dice(overlap, total, smooth)


@lf.loss("*shape, *shape ->")
def dice_global(pred, true, *, smooth=1e-6):
    """One Dice loss for everything, whatever the axes mean.

        1 − (2 Σ p t + s) / (Σ p + Σ t + s), sums over all entries

    Shapes: pred and true of one shape, any; a single loss.
    Domain: 0 ≤ pred ≤ 1, 0 ≤ true ≤ 1, smooth > 0.
    Source: Milletari, Navab & Ahmadi, *V-Net: fully convolutional neural networks for volumetric medical
    image segmentation* (2016).
    """
    overlap = lf.sum(pred * true)
    total = lf.sum(pred) + lf.sum(true)
    return _dice(overlap, total, smooth)


@lf.loss("batch class *space, batch class *space -> batch class")
def sigmoid_dice(logits, true, *, smooth=1e-6):
    """The Dice loss of classes that may overlap, from logits.

        dice(σ(logits), true)

    Shapes: logits and true (batch, class, *space), any number of spatial axes; one loss for each (batch,
    class).
    Domain: logits real, 0 ≤ true ≤ 1, smooth > 0.
    Source: Milletari, Navab & Ahmadi, *V-Net: fully convolutional neural networks for volumetric medical
    image segmentation* (2016).
    """
    pred = lf.sigmoid(logits)
    overlap = lf.sum(pred * true, "*space")
    total = lf.sum(pred, "*space") + lf.sum(true, "*space")
    return _dice(overlap, total, smooth)


@lf.loss("batch class *space, batch *space -> batch class")
def softmax_dice(logits, target, *, smooth=1e-6):
    """The Dice loss of classes that exclude each other, from logits and class indices.

        dice(softmax(logits), one_hot(target))

    Shapes: logits (batch, class, *space), target (batch, *space) integers; one loss for each (batch, class).
    Domain: logits real, 0 ≤ target < number of classes, smooth > 0.
    Source: Milletari, Navab & Ahmadi, *V-Net: fully convolutional neural networks for volumetric medical
    image segmentation* (2016).
    """
    pred = lf.softmax(logits, "class")
    true = lf.one_hot(target, "class")
    overlap = lf.sum(pred * true, "*space")
    total = lf.sum(pred, "*space") + lf.sum(true, "*space")
    return _dice(overlap, total, smooth)


@lf.loss("batch class *space, batch class *space -> batch class")
def jaccard(pred, true, *, smooth=1e-6):
    """One minus the soft intersection over union of each class in each sample.

        1 − (Σ p t + s) / (Σ p + Σ t − Σ p t + s), sums over *space

    Shapes: pred and true (batch, class, *space), any number of spatial axes; one loss for each (batch,
    class).
    Domain: 0 ≤ pred ≤ 1, 0 ≤ true ≤ 1, smooth > 0.
    Source: Rahman & Wang, *Optimizing intersection-over-union in deep neural networks for image segmentation*
    (2016).
    """
    overlap = lf.sum(pred * true, "*space")
    union = lf.sum(pred + true, "*space") - overlap
    return 1 - (overlap + smooth) / (union + smooth)


def _tversky(pred, true, axes, alpha, beta, smooth):
    overlap = lf.sum(pred * true, axes)
    errors = alpha * lf.sum(pred * (1 - true), axes) + beta * lf.sum((1 - pred) * true, axes)
    return errors / (overlap + errors + smooth)  # 1 − (overlap + s) / (overlap + errors + s), not cancelling


@lf.loss("batch class *space, batch class *space -> batch class")
def tversky(pred, true, *, alpha=0.3, beta=0.7, smooth=1e-6):
    """A Dice loss with a price for false positives (alpha) and one for false negatives (beta).

        1 − (Σ p t + s) / (Σ p t + α Σ p (1 − t) + β Σ (1 − p) t + s), sums over *space

    With alpha = beta = 1/2 it is the Dice loss, with alpha = beta = 1 that of Jaccard.

    Shapes: pred and true (batch, class, *space), any number of spatial axes; one loss for each (batch,
    class).
    Domain: 0 ≤ pred ≤ 1, 0 ≤ true ≤ 1, alpha ≥ 0, beta ≥ 0, smooth > 0.
    Source: Salehi, Erdogmus & Gholipour, *Tversky loss function for image segmentation using 3D fully
    convolutional deep networks* (2017); Tversky, *Features of similarity* (1977).
    """
    return _tversky(pred, true, ("*space",), alpha, beta, smooth)


@lf.loss("batch class *space, batch class *space -> class")
def tversky_batch(pred, true, *, alpha=0.3, beta=0.7, smooth=1e-6):
    """The Tversky loss of each class over the batch as a whole.

        1 − (Σ p t + s) / (Σ p t + α Σ p (1 − t) + β Σ (1 − p) t + s), sums over batch and *space

    Shapes: pred and true (batch, class, *space), any number of spatial axes; one loss for each class.
    Domain: 0 ≤ pred ≤ 1, 0 ≤ true ≤ 1, alpha ≥ 0, beta ≥ 0, smooth > 0.
    Source: Salehi, Erdogmus & Gholipour, *Tversky loss function for image segmentation using 3D fully
    convolutional deep networks* (2017).
    """
    return _tversky(pred, true, ("batch", "*space"), alpha, beta, smooth)


@lf.loss("batch class *space, batch class *space -> batch class")
def focal_tversky(pred, true, *, alpha=0.3, beta=0.7, gamma=4 / 3, smooth=1e-6):
    """The Tversky loss raised to a power, which moves the weight between well and badly segmented regions.

        tversky^(1/γ); the gradient at a perfect overlap, which is infinite for γ > 1, is taken as 0

    Shapes: pred and true (batch, class, *space), any number of spatial axes; one loss for each (batch,
    class).
    Domain: 0 ≤ pred ≤ 1, 0 ≤ true ≤ 1, alpha ≥ 0, beta ≥ 0, gamma > 0, smooth > 0.
    Source: Abraham & Khan, *A novel focal Tversky loss function with improved attention U-Net for lesion
    segmentation* (2019).
    """
    loss = _tversky(pred, true, ("*space",), alpha, beta, smooth)
    return lf.where(loss > 0, lf.power(loss, 1 / gamma), 0.0)


__all__ = [
    "dice",
    "dice_batch",
    "dice_global",
    "focal_tversky",
    "jaccard",
    "sigmoid_dice",
    "softmax_dice",
    "tversky",
    "tversky_batch",
]
