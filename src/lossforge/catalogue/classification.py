"""Losses of classifiers. Those of probabilities take logits, from which they are stable at any size."""

import lossforge as lf


@lf.loss
def binary_cross_entropy(logits, true):
    """The cross-entropy of yes-or-no predictions: one class, or several that do not exclude each other.

        t softplus(−x) + (1 − t) softplus(x), that is −t log σ(x) − (1 − t) log(1 − σ(x)), x = logits

    Shapes: logits and true of one shape, any; one loss for each entry.
    Domain: logits real, 0 ≤ true ≤ 1.
    Source: Cox, *The regression analysis of binary sequences* (1958); Bishop, *Pattern Recognition and
    Machine Learning* (2006), section 4.3.2.
    """
    return true * lf.softplus(-logits) + (1 - true) * lf.softplus(logits)


@lf.loss
def sigmoid_focal(logits, true, *, alpha=0.25, gamma=2.0):
    """Binary cross-entropy that counts well-classified entries less, for rare classes.

        −α (1 − p)^γ log p where true is 1, −(1 − α) p^γ log(1 − p) where it is 0, p = σ(logits)

    The powers are taken as exp(γ log σ(∓x)), so that neither they nor their derivatives leave the float
    range.

    Shapes: logits and true of one shape, any; one loss for each entry.
    Domain: logits real, 0 ≤ true ≤ 1, 0 ≤ alpha ≤ 1, gamma ≥ 0.
    Source: Lin, Goyal, Girshick, He & Dollár, *Focal loss for dense object detection* (2017).
    """
    positive = alpha * lf.exp(gamma * lf.log_sigmoid(-logits)) * lf.softplus(-logits)
    negative = (1 - alpha) * lf.exp(gamma * lf.log_sigmoid(logits)) * lf.softplus(logits)
    return true * positive + (1 - true) * negative


@lf.loss("batch class *space, batch *space -> batch *space")
def cross_entropy(logits, target):
    """The cross-entropy of a choice among classes that exclude each other.

        −log softmax(logits)[target]

    Shapes: logits (batch, class, *space), target (batch, *space) integers; one loss for each (batch, *space).
    Domain: logits real, 0 ≤ target < number of classes. Leave entries out with mask=.
    Source: Bridle, *Probabilistic interpretation of feedforward classification network outputs* (1990);
    Goodfellow, Bengio & Courville, *Deep Learning* (2016), section 6.2.2.3.
    """
    return -lf.take(lf.log_softmax(logits, "class"), target, "class")


@lf.loss("batch class *space, batch *space -> batch *space")
def smoothed_cross_entropy(logits, target, *, smoothing=0.1):
    """Cross-entropy against a target that gives a part `smoothing` to all classes alike.

        −(1 − ε) log p[target] − ε mean_class(log p), p = softmax(logits), ε = smoothing

    Shapes: logits (batch, class, *space), target (batch, *space) integers; one loss for each (batch, *space).
    Domain: logits real, 0 ≤ target < number of classes, 0 ≤ smoothing ≤ 1.
    Source: Szegedy, Vanhoucke, Ioffe, Shlens & Wojna, *Rethinking the inception architecture for computer
    vision* (2016), section 7.
    """
    log_probability = lf.log_softmax(logits, "class")
    chosen = lf.take(log_probability, target, "class")
    return -(1 - smoothing) * chosen - smoothing * lf.mean(log_probability, "class")


@lf.loss("batch class *space, batch class *space -> batch *space")
def soft_cross_entropy(logits, true):
    """Cross-entropy against a distribution over the classes, such as a mixture or a teacher's prediction.

        −Σ_class true · log softmax(logits)

    Shapes: logits and true (batch, class, *space); one loss for each (batch, *space).
    Domain: logits real; true ≥ 0, with sum 1 along class for a distribution.
    Source: Hinton, Vinyals & Dean, *Distilling the knowledge in a neural network* (2015).
    """
    return -lf.sum(true * lf.log_softmax(logits, "class"), "class")


@lf.loss
def logistic(scores, true):
    """The logistic loss of labels ±1: binary cross-entropy in the notation of margins.

        log(1 + exp(−true · scores))

    Shapes: scores and true of one shape, any; one loss for each entry.
    Domain: scores real, true −1 or 1.
    Source: Hastie, Tibshirani & Friedman, *The Elements of Statistical Learning* (2009), section 10.6.
    """
    return lf.softplus(-true * scores)


@lf.loss
def hinge(scores, true):
    """The loss of a support vector machine; the subgradient at a margin of 1 is 0.

        max(1 − true · scores, 0)

    Shapes: scores and true of one shape, any; one loss for each entry.
    Domain: scores real, true −1 or 1.
    Source: Cortes & Vapnik, *Support-vector networks* (1995).
    """
    return lf.relu(1 - true * scores)


@lf.loss
def squared_hinge(scores, true):
    """The hinge loss squared, which is differentiable everywhere.

        max(1 − true · scores, 0)²

    Shapes: scores and true of one shape, any; one loss for each entry.
    Domain: scores real, true −1 or 1.
    Source: Lee & Mangasarian, *SSVM: a smooth support vector machine for classification* (2001).
    """
    return lf.relu(1 - true * scores) ** 2


@lf.loss("batch class, batch -> batch")
def multiclass_hinge(scores, target):
    """The hinge loss of a choice: by how much the best wrong class comes within 1 of the right one.

        max(0, 1 + max_{class ≠ target} scores − scores[target])

    Shapes: scores (batch, class), target (batch,) integers; one loss for each sample.
    Domain: scores real, 0 ≤ target < number of classes.
    Source: Crammer & Singer, *On the algorithmic implementation of multiclass kernel-based vector machines*
    (2001).
    """
    right = lf.iota("class") == target
    return lf.max(lf.where(right, scores, scores + 1), "class") - lf.take(scores, target, "class")


__all__ = [
    "binary_cross_entropy",
    "cross_entropy",
    "hinge",
    "logistic",
    "multiclass_hinge",
    "sigmoid_focal",
    "smoothed_cross_entropy",
    "soft_cross_entropy",
    "squared_hinge",
]
