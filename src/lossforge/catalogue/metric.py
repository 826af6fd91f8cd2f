"""Losses of embeddings: what belongs together is drawn together."""

import lossforge as lf


def _unit(x, axis):
    """Vectors of length 1 in the same direction; a zero vector stays zero, with zero gradient."""
    length = lf.norm(x, axis)
    return lf.where(length > 0, x / length, 0.0)


@lf.loss("batch feature, batch feature -> batch", wrt=("anchor", "positive"))
def info_nce(anchor, positive, *, temperature=0.1):
    """How well each anchor's own positive is told from those of the other samples in the batch.

        −log softmax_j(anchor_i · positive_j / τ) at j = i

    Similarities are inner products; give embeddings of length 1 for cosines.

    Shapes: anchor and positive (batch, feature); one loss for each anchor. Both have a gradient.
    Domain: real numbers, temperature > 0.
    Source: van den Oord, Li & Vinyals, *Representation learning with contrastive predictive coding* (2018).
    """
    others = lf.rename(positive, "batch", "other")
    similarity = lf.sum(anchor * others, "feature") / temperature
    own = lf.sum(anchor * positive, "feature") / temperature
    return lf.logsumexp(similarity, "other") - own


def _one_way(view, partner, temperature):
    """For each sample's `view`, its partner against all other embeddings of the batch but itself."""
    alike = lf.sum(view * lf.rename(view, "batch", "other"), "feature") / temperature
    across = lf.sum(view * lf.rename(partner, "batch", "other"), "feature") / temperature
    itself = lf.iota("batch") == lf.iota("other")
    apart = lf.logsumexp(lf.where(itself, float("-inf"), alike), "other")
    return lf.logaddexp(apart, lf.logsumexp(across, "other")) - lf.sum(view * partner, "feature") / temperature


@lf.loss("batch feature, batch feature -> batch", wrt=("first", "second"))
def nt_xent(first, second, *, temperature=0.5):
    """The normalised, temperature-scaled cross-entropy of SimCLR, for two views of each sample.

        each of the 2N views against the 2N − 1 others, by the cosine of their embeddings over τ; the two
        views of a sample are averaged

    Shapes: first and second (batch, feature), the embeddings of two views; one loss for each sample. Both
    have a gradient.
    Domain: real numbers, temperature > 0.
    Source: Chen, Kornblith, Norouzi & Hinton, *A simple framework for contrastive learning of visual
    representations* (2020).
    """
    first, second = _unit(first, "feature"), _unit(second, "feature")
    return 0.5 * (_one_way(first, second, temperature) + _one_way(second, first, temperature))


@lf.loss("*batch feature, *batch feature -> *batch")
def cosine(pred, true):
    """The cosine distance: 0 for vectors of one direction, 1 at right angles, 2 for opposite ones.

        1 − p · t / (|p| |t|)

    Shapes: pred and true (*batch, feature), any number of leading axes; one loss for each vector.
    Domain: real vectors; to a zero vector the distance is 1, with zero gradient.
    Source: Salton, Wong & Yang, *A vector space model for automatic indexing* (1975).
    """
    return 1 - lf.sum(_unit(pred, "feature") * _unit(true, "feature"), "feature")


@lf.loss("batch feature, batch feature, batch feature -> batch", wrt=("anchor", "positive", "negative"))
def triplet_margin(anchor, positive, negative, *, margin=0.2):
    """By how much the negative fails to be farther from the anchor than the positive, by a margin.

        max(|a − p|² − |a − n|² + margin, 0)

    Shapes: anchor, positive and negative (batch, feature); one loss for each triplet. All three have a
    gradient.
    Domain: real numbers, margin ≥ 0.
    Source: Schroff, Kalenichenko & Philbin, *FaceNet: a unified embedding for face recognition and
    clustering* (2015).
    """
    near = lf.sum((anchor - positive) ** 2, "feature")
    far = lf.sum((anchor - negative) ** 2, "feature")
    return lf.relu(near - far + margin)


__all__ = ["cosine", "info_nce", "nt_xent", "triplet_margin"]
