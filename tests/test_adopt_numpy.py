"""Losses written for NumPy and SciPy, adopted: against central differences, with gradients by hand, and in PyTorch."""

from __future__ import annotations

import abc
import functools
import math
import pickle
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy import linalg, ndimage, signal, special, stats
from scipy.spatial import distance

import lossforge as lf
from adoption import agree, binary, classes, drawn, one_hot, positive, real, signs, simplex, unit


def custom_loss(y_true, y_pred, w):  # w is a weight vector
    loss = np.sum(w * (y_true - y_pred) ** 2)  # Weighted squared error
    return loss


def custom_loss_gradient(y_true, y_pred, w):
    grad = -2 * w * (y_true - y_pred)
    return grad


def softmax_cross_entropy(pred, true):
    shifted = pred - pred.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -(true * log_p).sum(axis=-1).mean()


def huber_in_place(pred, true, delta=1.0):
    error = np.abs(pred - true)
    loss = 0.5 * error**2
    large = error > delta
    loss[large] = delta * (error[large] - 0.5 * delta)
    return loss.mean()


def multiclass_svm(scores, y):
    """The loss of Stanford's CS231n, as its notes write it."""
    count = scores.shape[0]
    margins = np.maximum(0, scores - scores[np.arange(count), y].reshape(-1, 1) + 1.0)
    margins[np.arange(count), y] = 0
    return np.sum(margins) / count


def smoothed_cross_entropy(logits, y, smoothing=0.1):
    k = logits.shape[-1]
    target = (1 - smoothing) * np.eye(k)[y] + smoothing / k
    return -np.mean(np.sum(target * special.log_softmax(logits, axis=-1), axis=-1))


def info_nce(anchor, positive_, temperature=0.5):
    anchor = anchor / np.linalg.norm(anchor, axis=1, keepdims=True)
    positive_ = positive_ / np.linalg.norm(positive_, axis=1, keepdims=True)
    s = anchor @ positive_.T / temperature
    return -np.mean(np.diag(s - special.logsumexp(s, axis=1, keepdims=True)))


def nt_xent(first, second, temperature=0.5):
    z = np.concatenate([first, second])
    n = len(first)
    s = np.where(np.eye(2 * n, dtype=bool), -1e9, z @ z.T / temperature)
    partner = np.concatenate([np.arange(n) + n, np.arange(n)])
    return np.mean(special.logsumexp(s, axis=1) - s[np.arange(2 * n), partner])


def lovasz_hinge(logits, y):
    errors = 1 - logits * (2.0 * y - 1)
    order = np.argsort(-errors)
    truth = y[order]
    jaccard = 1 - (truth.sum() - truth.cumsum()) / (truth.sum() + (1 - truth).cumsum())
    jaccard[1:] = jaccard[1:] - jaccard[:-1]
    return np.dot(np.maximum(errors[order], 0), jaccard)


def cox(risk, time, event):
    order = np.argsort(-time)
    risk, event = risk[order], event[order]
    return -np.sum((risk - np.logaddexp.accumulate(risk)) * event) / np.sum(event)


def checked(pred, true):
    if np.any(pred <= 0) or not np.allclose(true, true):
        raise ValueError("rates are positive")
    assert np.isfinite(pred).all()
    return np.mean(pred - true * np.log(pred))


def of_two_shapes(pred):
    total = np.sum(np.abs(pred))
    if total == 0:
        return pred
    return np.sum(pred**2) / total


def ssim(x, y):
    def blurred(image):
        return ndimage.gaussian_filter(image, 1.5, truncate=2)

    mx, my = blurred(x), blurred(y)
    vx, vy, c = blurred(x * x) - mx**2, blurred(y * y) - my**2, blurred(x * y) - mx * my
    return 1 - np.mean((2 * mx * my + 1e-4) * (2 * c + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))


def mixture(pred, true):
    from scipy.special import logsumexp

    return -logsumexp(stats.norm(0.0, 2.0).logpdf(pred) + stats.gamma.logpdf(true, 2.0, scale=0.5))


def written_to(pred, y):
    total = np.zeros(4)
    np.add.at(total, y, pred)
    return np.mean(total**2 / np.bincount(y, weights=pred**2, minlength=4))


def low_rank(p):
    left, values, right = np.linalg.svd(p, full_matrices=False)
    return np.mean((left[:, :2] * values[:2] @ right[:2] - p) ** 2)


def mmd(x, y, gamma=0.5):
    def kernel(a, b):
        return np.exp(-gamma * np.sum((a[:, None] - b[None]) ** 2, axis=-1)).mean()

    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


def dice_of_each_class(pred, true):
    overlap = [2 * np.sum(pred[:, c] * true[:, c]) / np.sum(pred[:, c] + true[:, c]) for c in range(3)]
    return 1 - np.mean(overlap)


def smooth(pred, true):
    def f(x):
        return np.convolve(np.pad(x, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")

    return np.mean((f(pred) - f(true)) ** 2)


NC, N = [(6, 4), (9, 5)], [(6,), (9,)]


def one_row_after_the_other(x, w, y):
    total = 0.0
    for i in range(len(x)):
        scores = x[i] @ w
        total += np.log(np.sum(np.exp(scores))) - scores[y[i]]
    return total / len(x)


def pair_after_pair(scores, grades):
    total, n = 0.0, len(scores)
    for i in range(n):
        for j in range(n):
            total += (grades[i] > grades[j]) * np.log1p(np.exp(scores[j] - scores[i]))
    return total / n**2


def chamfer(x, y):
    distances = np.zeros((len(x), len(y)))
    for i in range(len(x)):
        for j in range(len(y)):
            distances[i, j] = np.linalg.norm(x[i] - y[j])
    return distances.min(axis=1).mean() + distances.min(axis=0).mean()


def cox_by_rows(risk, time, event):
    total = 0.0
    for i in range(len(risk)):
        at_risk = time >= time[i]
        total -= event[i] * (risk[i] - np.log(np.sum(np.exp(risk[at_risk]))))
    return total / event.sum()


def guarded_dice(pred, true):
    if pred.shape != true.shape or np.any(np.isnan(pred)):
        raise ValueError("not comparable")
    total = np.sum(pred) + np.sum(true)
    if total == 0:
        return 0.0
    return float(1 - 2 * np.sum(pred * true) / total)


def adaptive_berhu(pred, true):
    error = np.abs(pred - true)
    largest = error.max()
    delta = 0.2 * largest if largest > 0 else 1.0
    mean = np.mean(error)
    return mean if mean <= delta else (mean**2 + delta**2) / (2 * delta)


def cross_entropy_put(p, y):
    one_hot_ = np.zeros_like(p)
    np.put_along_axis(one_hot_, y[:, None], 1.0, axis=1)
    return -np.mean(np.sum(one_hot_ * np.log(p), axis=1))


def ensemble_score(ensemble, observed):
    """The continuous ranked probability score, from sorted members."""
    ensemble = np.sort(ensemble, axis=-1)
    m = ensemble.shape[-1]
    weight = (2 * np.arange(m) - m + 1) / m**2
    return np.mean(np.mean(np.abs(ensemble - observed[:, None]), -1) - np.sum(weight * ensemble, -1))


def temporal_difference(values, rewards):
    return np.mean((rewards + 0.9 * values[1:] - values[:-1]) ** 2)


elsewhere = types.ModuleType("elsewhere")
exec(
    "import numpy as np\ndef filled(x):\n    return np.full(3, 2.0) * np.asarray(x, dtype=float)[..., None]",
    vars(elsewhere),
)


class Weighing(abc.ABC):
    def __init__(self, weights):
        self.weights = np.asarray(weights)

    @abc.abstractmethod
    def of(self, y): ...


class ByClass(Weighing):
    def of(self, y):
        return self.weights[np.asarray(y)]


class Shifted(ByClass):
    __slots__ = ("shift",)

    def __init__(self, weights, shift):
        super().__init__(weights)
        self.shift = shift

    def of(self, y):
        return super().of(y) + self.shift


class Score:
    def __init__(self):
        self.weighing: Weighing = Shifted([0.5, 1.0, 2.0, 1.5], 0.25)

    def loss(self, p, y):
        chosen = np.asarray(p)[np.arange(len(y)), y]
        return -np.mean(self.weighing.of(y) * np.log(chosen)) + np.mean(elsewhere.filled(chosen))


def of_a_new_object(p, y):
    return np.mean(SCORES["shifted"]([1.0, 2.0, 0.5, 3.0], 0.5).of(y) * (1 - p[np.arange(len(y)), y]))


def parts_that_are_written_to(x):
    y, total = x.copy(), 0.0
    for i in range(len(y)):
        row = y[i]
        row -= row.mean()
        total += np.sum(row[1:] ** 3)
    y[:, 0] *= 2.0
    second = y[:, 1]
    y[:, 1] = 0.5
    y[0][2] = total
    return np.sum(y**2) + np.sum(second)


def discounted_by_rank(scores, gains):
    rank = np.empty(len(scores), dtype=int)
    rank[np.argsort(-scores)] = np.arange(len(scores))
    return np.sum(scores * gains / np.log2(rank + 2))


def hinge_of_labels(scores, y):
    margins = scores.copy()
    for i in range(len(y)):
        margins[i, int(y[i])] *= -1
    return np.sum(np.maximum(0.0, 1.0 + margins)) / len(y)


def divergence_of_positive(x, y):
    known = x > 0
    p, q = x[known], y[known]
    q[q < 0.6] = 0.6
    return np.sum(p * np.log(p / q)) / len(p)


def svm_with_gradient(scores, y):
    """The loss with its gradient, as exercises ask for it."""
    count = np.arange(len(y))
    margins = np.maximum(0, scores - scores[count, y][:, np.newaxis] + 1.0)
    margins[count, y] = 0
    gradient = (margins > 0).astype(float)
    gradient[count, y] -= np.sum(margins > 0, axis=1)
    return np.sum(margins) / len(y), gradient / len(y)


def hinge_or_square(value):
    if value < -1:
        return -4.0 * value
    elif value < 1:
        return (1.0 - value) ** 2
    return 0.0


def by_vectorize(scores, y):
    return np.mean(np.vectorize(hinge_or_square)(scores * y[:, None]))


def guarded_efficiency(pred, true):
    """Guards and checks as libraries of metrics have them, and results that are appended way by way."""
    for array in (pred, true):
        if not np.isfinite(array.sum()) or np.any(np.isnan(array)):
            raise ValueError(f"not finite: {array}" if array.size < 9 else "not finite")
    spread, level = true.std(), true.mean()
    if spread == 0:
        print("no spread")
        return np.nan
    if level == 0:
        return np.nan
    ratio = pred.mean() / level
    if pred.std() == 0:
        return np.nan
    terms = []
    for a, b in zip(pred, true, strict=True):
        if b < -0.5:
            terms.append(max(a, 0.0) - a)
        elif b < 0.5:
            terms.append(a * b)
        else:
            terms.append(a)
    return (pred.std() / spread - 1) ** 2 + (ratio - 1) ** 2 + np.mean(terms)


class Described(abc.ABCMeta):
    """A metaclass, as libraries have them for the texts of their methods."""


class Tailed(metaclass=Described):
    def loss(self, scores, y):
        a, b = np.asarray([np.mean(scores), np.std(scores)])
        return np.sum(np.asarray(y) * a) + b


SCORES = {"shifted": Shifted}


def energy_score(x, y):
    spread = np.sqrt(np.sum((x[:, None] - x[None]) ** 2, axis=-1))
    return (
        np.mean(np.linalg.norm(x - y, axis=-1))
        - 0.5 * np.mean(spread)
        - 0.1 * np.mean(np.abs(x[:, None] - x[None]) ** 0.3)
    )


def gaussian_process(y, x):
    k = np.exp(-0.5 * np.subtract.outer(x, x) ** 2) + 0.5 * np.eye(len(x))
    factor, lower = linalg.cho_factor(k)
    half = linalg.solve_triangular(np.linalg.cholesky(k), y, lower=True)
    return 0.5 * y @ linalg.cho_solve((factor, lower), y) + np.sum(half**2) + np.sum(np.log(np.diag(factor)))


def hampel(pred, true, a=0.5, b=1.0):
    z = np.abs(pred - true)
    result = np.zeros(z.shape)
    inner = z < a
    result[inner] = z[inner] ** 2 / 2
    result[~inner] += a * np.minimum(z[~inner], b) - a**2 / 2
    return result.sum()


def multiclass_svm_by_loops(w, x, y, reg=0.1):
    """As the notes of Stanford's CS231n write it."""
    loss = 0.0
    for i in range(x.shape[0]):
        scores = x[i].dot(w)
        correct = scores[y[i]]
        for j in range(w.shape[1]):
            if j == y[i]:
                continue
            margin = scores[j] - correct + 1
            if margin > 0:
                loss += margin
    return loss / x.shape[0] + reg * np.sum(w * w)


def interval_score(low, high, true, alpha=0.2):
    scores = [
        b - a + 2 / alpha * (a - t) if t < a else b - a + 2 / alpha * (t - b) if not t <= b else b - a
        for a, b, t in zip(low, high, true, strict=True)
    ]
    return np.mean(scores)


def cox_by_events(risk, time, event):
    total, events = 0.0, 0
    for i in range(len(risk)):
        if event[i] == 1 and time[i] > 0.5:
            at_risk = np.exp(risk) * (time >= time[i])
            total = total + risk[i] - np.log(np.sum(at_risk))
            events += 1
    return -total / (events + 1)


def weighted_by_cases(pred, true):
    error = 0.0
    for i in range(len(pred)):
        if 0 < pred[i] <= 1:
            weight, bonus = 0.5, 1.0
            error = error + (pred[i] - true[i]) ** 2
        elif pred[i] > 1 or not true[i] > 0:
            weight = 0.1
            bonus = 2.0 if true[i] < 0.5 else 3.0
        else:
            weight = bonus = 1.0
        error += weight * bonus * np.abs(pred[i] - true[i])
    return error


def flat_kullback_leibler(q, p):
    known = p.flatten() > 0
    return np.sum(p.flatten()[known] * np.log(p.flatten()[known] / q.flatten()[known]))


def trimmed(pred, true):
    errors = np.sort((pred - true) ** 2)
    cut = int(0.15 * len(errors))
    return np.mean(errors[cut : len(errors) - cut])


CASES = {
    "huber in place": (huber_in_place, [real, real], [NC, NC]),
    "huber of SciPy": (lambda p, t, delta=0.7: special.huber(delta, p - t).mean(), [real, real], [NC, NC]),
    "huber by select": (
        lambda p, t: np.select([np.abs(p - t) <= 1], [0.5 * (p - t) ** 2], np.abs(p - t) - 0.5).mean(),
        [real, real],
        [NC, NC],
    ),
    "multiclass svm": (multiclass_svm, [real, classes(4)], [NC, N]),
    "hinge of labels": (hinge_of_labels, [real, classes(4)], [((4, 4), (5, 4)), ((4,), (5,))]),
    "discounts by rank": (discounted_by_rank, [real, real], [N, N]),
    "parts that are written to": (parts_that_are_written_to, [real], [((4, 4), (5, 7))]),
    "quantiles": (
        lambda p, s, y: sum(
            np.mean(((f := stats.norm.ppf(q, loc=p, scale=s) - y) > 0) * f - q * f) for q in (0.1, 0.5, 0.8)
        ),
        [real, positive, real],
        [N, N, N],
    ),
    "of a class with a metaclass": (Tailed().loss, [real, real], [N, N]),
    "many entries": (lambda p, t: np.mean((p - t) ** 2), [real, real], [((9, 8), (11, 7)), ((9, 8), (11, 7))]),
    "np.vectorize": (by_vectorize, [real, signs], [((4, 3), (5, 7)), ((4,), (5,))]),
    "guards and checks": (guarded_efficiency, [real, real], [N, N]),
    "within a selection": (divergence_of_positive, [real, unit], [N, N]),
    "smoothed cross entropy": (smoothed_cross_entropy, [real, classes(4)], [NC, N]),
    "class weights": (
        lambda p, y, w: -np.average(np.log(p[np.arange(len(y)), y]), weights=w[y]),
        [simplex, classes(4), positive],
        [NC, N, [(4,), (5,)]],
    ),
    "masked mean": (lambda p, t: np.mean((p[t > 0] - t[t > 0]) ** 2), [real, real], [NC, NC]),
    "two selections": (
        lambda p, t: ((p - t)[p > t] ** 2).sum() + np.abs((p - t)[p <= t]).mean(),
        [real, real],
        [NC, NC],
    ),
    "relative entropy": (lambda p, q: special.rel_entr(p, q).sum(-1).mean(), [simplex, simplex], [NC, NC]),
    "probit": (lambda s, y: -np.mean(special.log_ndtr((2 * y - 1) * s)), [real, binary], [N, N]),
    "support vectors": (
        lambda w, x, y, c=0.1: 0.5 * np.dot(w, w) + c * np.sum(np.maximum(0, 1 - y * (x @ w))),
        [real, real, signs],
        [[(4,), (5,)], NC, N],
    ),
    "info nce": (info_nce, [real, real], [NC, NC]),
    "nt-xent": (nt_xent, [real, real], [NC, NC]),
    "lovasz hinge": (lovasz_hinge, [real, binary], [N, N]),
    "cox": (cox, [real, positive, binary], [N, N, N]),
    "checked": (checked, [positive, positive], [NC, NC]),
    "ssim": (ssim, [unit, unit], [[(9, 12), (10, 13)]] * 2),
    "edges": (lambda p: np.mean(ndimage.sobel(p, axis=0) ** 2 + ndimage.laplace(p) ** 2), [real], [[(6, 8), (9, 7)]]),
    "sharpened": (
        lambda p: np.mean(
            signal.convolve2d(p, [[0, 1, 0], [1, -4, 1], [0, 1, 0.5]], mode="same", boundary="symm") ** 2
        ),
        [real],
        [[(6, 8), (9, 7)]],
    ),
    "mixture": (mixture, [real, positive], [N, N]),
    "counts": (lambda r, k: -np.mean(stats.poisson.logpmf(k, r)), [positive, classes(5)], [NC, NC]),
    "distances": (
        lambda x, y: distance.cdist(x, y, "cosine").mean() + distance.pdist(x).mean() + distance.euclidean(x[0], y[0]),
        [real, real],
        [NC, [(5, 4), (4, 5)]],
    ),
    "correlated": (
        lambda x, y, m: (
            1 - stats.pearsonr(x, y)[0] + stats.pearsonr(x, y).statistic ** 2 + distance.mahalanobis(x, y, m @ m.T)
        ),
        [real, real, real],
        [N, N, [(shape[0], 2) for shape in N]],
    ),
    "moving windows": (
        lambda p, t: np.mean(np.abs(np.mean(np.lib.stride_tricks.sliding_window_view(p - t, 3, axis=0), axis=-1))),
        [real, real],
        [NC, NC],
    ),
    "written to": (written_to, [positive, classes(4)], [N, N]),
    "interpolated": (lambda p: np.mean(np.interp(p, [0, 0.4, 1], [0, 2, 1.0]) ** 2), [unit], [N]),
    "binned weights": (lambda p, t: np.mean(np.digitize(t, [0.0, 0.5]) * (p - t) ** 2), [real, real], [N, N]),
    "smallest": (lambda p, t: np.mean(np.partition(np.abs(p - t), 3)[:3]), [real, real], [N, N]),
    "phase": (lambda p, t: np.mean(np.abs(np.angle(np.exp(1j * (p - t))))), [real, real], [N, N]),
    "mmd": (mmd, [real, real], [NC, [(4, 4), (7, 5)]]),
    "emd": (lambda p, q: np.mean(np.sum(np.abs(np.cumsum(p - q, axis=1)), axis=1)), [unit, unit], [NC, NC]),
    "dice of each class": (dice_of_each_class, [unit, one_hot], [[(5, 3), (8, 3)], [(5, 3), (8, 3)]]),
    "nuclear norm": (lambda p: np.linalg.norm(p, "nuc") + np.linalg.norm(p, 2), [real], [NC]),
    "of low rank": (low_rank, [real], [NC]),
    "entropy of eigenvalues": (lambda p: np.log(np.linalg.eigvalsh(p.T @ p + np.eye(p.shape[1]))).sum(), [real], [NC]),
    "volume": (lambda p: -np.linalg.slogdet(p.T @ p + np.eye(p.shape[1]))[1], [real], [NC]),
    "trimmed": (trimmed, [real, real], [[(20,), (33,)], [(20,), (33,)]]),
    "median": (lambda p, t: np.mean(np.median(np.abs(p - t), axis=1)), [real, real], [NC, NC]),
    "slopes": (lambda p, t: np.mean((np.gradient(p, axis=0) - np.gradient(t, axis=0)) ** 2), [real, real], [NC, NC]),
    "convolved": (smooth, [real, real], [N, N]),
    "discounted gain": (
        lambda p, t: -np.sum(np.mean(special.expit(p) * (2**t - 1) / np.log2(np.arange(p.shape[1]) + 2), axis=0)),
        [real, unit],
        [NC, NC],
    ),
    "row by row": (one_row_after_the_other, [real, real, classes(4)], [NC, [(4, 4), (5, 5)], N]),
    "pair by pair": (pair_after_pair, [real, classes(4)], [N, N]),
    "chamfer": (chamfer, [real, real], [[(5, 3), (8, 3)], [(6, 3), (9, 3)]]),
    "cox by rows": (cox_by_rows, [real, positive, binary], [N, N, N]),
    "guarded dice": (guarded_dice, [unit, binary], [N, N]),
    "adaptive berhu": (adaptive_berhu, [real, real], [N, N]),
    "one-hot by put": (cross_entropy_put, [simplex, classes(4)], [NC, N]),
    "ensemble": (ensemble_score, [real, real], [NC, N]),
    "temporal difference": (temporal_difference, [real, real], [[(9,), (12,)], [(8,), (11,)]]),
    "math": (lambda p, t: math.sqrt(np.mean((p - t) ** 2)) + math.log1p(p[0] ** 2), [real, real], [N, N]),
    "svm by loops": (
        multiclass_svm_by_loops,
        [real, real, classes(3)],
        [[(5, 3), (4, 4)], [(7, 5), (6, 4)], [(7,), (6,)]],
    ),
    "interval score": (interval_score, [real, positive, real], [N, N, N]),
    "cox by events": (cox_by_events, [real, positive, binary], [N, N, N]),
    "weighted by cases": (weighted_by_cases, [real, real], [[(5,), (4,)]] * 2),
    "method of an object": (Score().loss, [simplex, classes(4)], [[(8, 4), (11, 4)], N]),
    "object made by the loss": (of_a_new_object, [simplex, classes(4)], [[(8, 4), (11, 4)], N]),
    "energy score": (energy_score, [real, real], [NC, [(4,), (5,)]]),
    "gaussian process": (gaussian_process, [real, real], [N, N]),
    "normal vectors": (
        lambda m, x, a: -stats.multivariate_normal.logpdf(x, m, a @ a.T + np.eye(len(m))).mean(),
        [real, real, real],
        [[(4,), (5,)], NC, [(4, 4), (5, 5)]],
    ),
    "hampel": (hampel, [real, real], [NC, NC]),
    "flat divergence": (flat_kullback_leibler, [positive, binary], [NC, NC]),
    "joined": (lambda p, t: np.sum(np.r_[p, 2 * t, 1.0] ** 2) + np.mean(np.c_[p, t, t] ** 3), [real, real], [N, N]),
    "gamma functions": (
        lambda p: np.mean(special.beta(p, 2.0) + special.comb(5, p) + special.factorial(p) + special.gamma(-p)),
        [unit],
        [N],
    ),
    "kernel of all pairs": (
        lambda x: np.mean(1 / (1 + distance.squareform(distance.pdist(x, "sqeuclidean")))),
        [real],
        [NC],
    ),
    "mse": (lambda p, t: np.mean((p - t) ** 2), [real, real], [NC, NC]),
    "mae": (lambda p, t: np.abs(p - t).mean(), [real, real], [NC, NC]),
    "log loss": (lambda p, t: -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p)), [unit, binary], [NC, NC]),
    "softmax": (softmax_cross_entropy, [real, simplex], [NC, NC]),
    "pinball": (lambda p, t: np.where(t > p, 0.3 * (t - p), 0.7 * (p - t)).mean(), [real, real], [NC, NC]),
    "log cosh": (lambda p, t: np.sum(np.log(np.cosh(p - t))), [real, real], [NC, NC]),
    "poisson": (lambda p, t: np.mean(p - t * np.log(p)), [positive, positive], [NC, NC]),
    "rmse": (lambda p, t: np.sqrt(np.mean(np.square(p - t))), [real, real], [NC, NC]),
    "total variation": (lambda x: np.abs(np.diff(x, axis=0)).mean(), [real], [NC]),
    "r squared": (lambda p, t: np.sum((t - p) ** 2) / np.sum((t - t.mean()) ** 2), [real, real], [NC, NC]),
}


@pytest.mark.parametrize("name", CASES)
def test_published_loss(name: str) -> None:
    fn, kinds, shapes = CASES[name]
    first, second = ([s[i] for s in shapes] for i in (0, 1))
    loss = lf.adopt(fn, *drawn(name, kinds, first))
    for where in (first, second):
        arrays = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in drawn(name + " again", kinds, where)]
        value, gradient = loss.value_and_grad(*arrays)
        agree("value", value, fn(*arrays))
        direction = np.random.default_rng(5).standard_normal(gradient.shape)
        step = 1e-6
        ends = [fn(arrays[0] + s * step * direction, *arrays[1:]) for s in (1, -1)]
        agree("gradient along a direction", np.sum(gradient * direction), (ends[0] - ends[1]) / (2 * step))


@pytest.mark.parametrize(
    "name", ["huber in place", "multiclass svm", "nt-xent", "lovasz hinge", "mmd", "median", "convolved"]
)
def test_the_same_in_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    fn, kinds, shapes = CASES[name]
    loss = lf.adopt(fn, *drawn(name, kinds, [s[0] for s in shapes]))
    arrays = drawn(name + " again", kinds, [s[1] for s in shapes])
    value, gradient = loss.value_and_grad(*arrays)
    tensors = [torch.from_numpy(a) for a in arrays]
    tensors[0].requires_grad_()
    result = loss(*tensors)
    result.backward()
    agree("value", result.detach(), value)
    agree("gradient", tensors[0].grad, gradient)


def keeps_its_arguments(p, t):
    p -= t
    return np.mean(p**2)


def overlapping(p):
    q = p.copy()
    turned = q.T
    q[0] = 0.0
    return np.sum(turned**2)


def test_the_gradient_written_beside_the_loss() -> None:
    rng = np.random.default_rng(2)
    y, x, w = real(rng, (8,)), real(rng, (8,)), unit(rng, (8,))
    loss = lf.adopt(custom_loss, y, x, w, gradient=custom_loss_gradient)
    agree("gradient", loss.grad(y, x, w), custom_loss_gradient(y, x, w))


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def nll(logits, y):
    return -np.mean(np.log(softmax(logits)[np.arange(len(y)), y]))


def nll_gradient(logits, y):
    slope = softmax(logits)
    slope[np.arange(len(y)), y] -= 1
    return slope / len(y)


def multiclass_svm_gradient(scores, y):
    """As the notes of Stanford's CS231n write it."""
    count = len(y)
    margins = np.maximum(0, scores - scores[np.arange(count), y][:, None] + 1)
    margins[np.arange(count), y] = 0
    binary = np.zeros_like(margins)
    binary[margins > 0] = 1
    binary[np.arange(count), y] -= np.sum(binary, axis=1)
    return binary / count


def focal(z, y, gamma=2.0):
    p = np.where(y == 1, special.expit(z), 1 - special.expit(z))
    return -np.sum((1 - p) ** gamma * np.log(p))


def focal_gradient(z, y, gamma=2.0):
    p = special.expit(z)
    one, zero = (1 - p) ** gamma * (gamma * p * np.log(p) + p - 1), p**gamma * (p - gamma * (1 - p) * np.log(1 - p))
    return y * one + (1 - y) * zero


def rosenbrock(x):
    return np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def rosenbrock_gradient(x):
    inner, before, after = x[1:-1], x[:-2], x[2:]
    slope = np.zeros_like(x)
    slope[1:-1] = 200 * (inner - before**2) - 400 * (after - inner**2) * inner - 2 * (1 - inner)
    slope[0] = -400 * x[0] * (x[1] - x[0] ** 2) - 2 * (1 - x[0])
    slope[-1] = 200 * (x[-1] - x[-2] ** 2)
    return slope


def weighted_mean(pred, true, w):
    return np.sum(w * (pred - true) ** 2) / np.sum(w)


def negative(gradient):
    @functools.wraps(gradient)
    def function(*args, **options):
        return -gradient(*args, **options)

    return function


PAIRS = {
    "softmax": (nll, nll_gradient, [real, classes(4)], [(8, 4), (8,)]),
    "multiclass svm": (multiclass_svm, multiclass_svm_gradient, [real, classes(4)], [(8, 4), (8,)]),
    "rosenbrock": (rosenbrock, rosenbrock_gradient, [real], [(8,)]),
    "focal": (focal, focal_gradient, [real, binary], [(8,), (8,)]),
    "one-hot": (
        lambda z, t: -np.mean(np.sum(t * np.log(softmax(z)), axis=1)),
        lambda z, t: (softmax(z) - t) / len(t),
        [real, one_hot],
        [(8, 4), (8, 4)],
    ),
    "weighted mean": (
        weighted_mean,
        lambda pred, true, w: 2 * w * (pred - true) / np.sum(w),
        [real, real, positive],
        [(8,), (8,), (8,)],
    ),
}


@pytest.mark.filterwarnings("ignore::lossforge.errors.DomainWarning")  # of labels: it is right where they are labels
@pytest.mark.parametrize("name", PAIRS)
def test_published_gradients(name: str) -> None:
    fn, gradient, kinds, shapes = PAIRS[name]
    arrays = drawn(name, kinds, shapes)
    loss = lf.adopt(fn, *arrays, gradient=gradient)
    agree("gradient", loss.grad(*arrays), gradient(*arrays))
    with pytest.raises(lf.errors.GradientMismatchError, match="sign"):
        lf.adopt(fn, *arrays, gradient=negative(gradient))


def test_a_loss_with_its_gradient() -> None:
    arrays = drawn("a loss with its gradient", [real, classes(4)], [(6, 4), (6,)])
    value, gradient = lf.adopt(svm_with_gradient, *arrays).value_and_grad(*arrays)
    expected = svm_with_gradient(*arrays)
    agree("value", value, expected[0])
    agree("gradient", gradient, expected[1])


def test_weights_are_no_distribution_where_the_examples_are_none() -> None:
    rng = np.random.default_rng(7)
    arrays = real(rng, (8,)), real(rng, (8,)), positive(rng, (8,))
    with pytest.raises(lf.errors.GradientMismatchError):
        lf.adopt(weighted_mean, *arrays, gradient=lambda pred, true, w: 2 * w * (pred - true))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda y_true, y_pred, w: 2 * w * (y_true - y_pred), "sign"),
        (lambda y_true, y_pred, w: -w * (y_true - y_pred), "factor 2"),
        (lambda y_true, y_pred, w: -2 * (y_true - y_pred), "`w`"),
    ],
)
def test_a_wrong_gradient_is_refused_with_the_reason(wrong, said) -> None:
    rng = np.random.default_rng(3)
    with pytest.raises(lf.errors.GradientMismatchError, match=said):
        lf.adopt(custom_loss, real(rng, (8,)), real(rng, (8,)), unit(rng, (8,)), gradient=wrong)


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (of_two_shapes, r"test_adopt_numpy.py:\d+: a decision"),
        (lambda p: p[int(p.sum())].sum(), "Python number"),
        (lambda p: np.linalg.eigvals(p @ p.T).real.sum(), "eigvals"),
        (lambda p: stats.spearmanr(p[0], p[1])[0], r"scipy\.stats\.spearmanr: an array is converted"),
        (lambda p: np.sum(np.sort(p[p > 0])), "truth values"),
        (lambda p: np.mean(p * np.random.default_rng(0).random(p.shape)), "random numbers"),
        (lambda p: keeps_its_arguments(p, p), "an argument is written to in place"),
        (overlapping, "shares its memory with another"),
    ],
)
def test_refusals_name_the_operation(fn, said) -> None:
    with pytest.raises(lf.errors.AdoptionError, match=said):
        lf.adopt(fn, np.random.default_rng(0).standard_normal((6, 4)))


@dataclass(frozen=True)
class Scaled:
    scale: float = 1.0

    def __call__(self, y_true, y_pred):
        return self.scale * np.mean((y_true - y_pred) ** 2)


def barron(x, alpha=1.5, c=1.0):
    """The general robust loss, whose formula is another one where it would divide by zero (Barron, 2019)."""
    if alpha == 2:
        return np.mean(0.5 * (x / c) ** 2)
    if alpha == 0:
        return np.mean(np.log1p(0.5 * (x / c) ** 2))
    b = abs(alpha - 2)
    return np.mean(b / alpha * (((x / c) ** 2 / b + 1) ** (alpha / 2) - 1))


@pytest.mark.parametrize("alpha", [1.5, 1.0, 0.0, 2.0, -2.0])
def test_a_number_that_decides_on_the_steps_does_so_at_the_call(alpha: float) -> None:
    rng = np.random.default_rng(6)
    loss, x = lf.adopt(barron, real(rng, (8,))), real(rng, (11,))
    agree("value", loss(x, alpha=alpha, c=0.7), barron(x, alpha, 0.7))


def test_numbers_that_an_object_keeps_are_parameters() -> None:
    rng = np.random.default_rng(4)
    y, x = real(rng, (8,)), real(rng, (8,))
    loss = lf.adopt(Scaled(2.0), y, x)
    assert loss.predictions == ("y_pred",)
    for each in (loss, pickle.loads(pickle.dumps(loss))):
        agree("value", each(y, x), Scaled(2.0)(y, x))
    agree("value with another scale", loss(y, x, scale=0.5), Scaled(0.5)(y, x))


FOLLOWING_SIZES = {
    "filled": lambda n: [[0.5] * n] * n,
    "the size": lambda n: [[float(n)] * n] * n,
    "from one": lambda n: [[i + 1.0 for i in range(n)]],
    "backwards": lambda n: [[float(n - i) for i in range(n)]],
    "a plane": lambda n: [[2.0 * i - 0.5 * j + n for i in range(n)] for j in range(n)],
    "identity": lambda n: [[float(i == j) for i in range(n)] for j in range(n)],
    "without the diagonal": lambda n: [[i != j for i in range(n)] for j in range(n)],
    "weights of a triangle": lambda n: [[2.0 if i < j else -1.0 for i in range(n)] for j in range(n)],
}


@pytest.mark.parametrize("name", FOLLOWING_SIZES)
def test_constant_arrays_that_follow_sizes(name: str) -> None:
    def weighted(pred):
        return np.sum(np.array(FOLLOWING_SIZES[name](len(pred))) * (pred @ pred.T) ** 2)

    rng = np.random.default_rng(10)
    loss = lf.adopt(weighted, real(rng, (6, 4)))
    other = real(rng, (9, 5))
    agree("value", loss(other), weighted(other))


def test_nothing_outside_of_the_function_changes() -> None:
    before = np.eye, np.array, special.logsumexp
    table = np.array([1.0, 2.0, 3.0, 4.0])
    rng = np.random.default_rng(5)
    lf.adopt(lambda p, y: np.mean(table[y] * special.logsumexp(p, axis=1)), real(rng, (8, 4)), classes(4)(rng, (8,)))
    assert (np.eye, np.array, special.logsumexp) == before
    assert type(table) is np.ndarray


def test_a_formula_that_cannot_be_run_is_not_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(program: object, arrays: object) -> None:
        raise IndexError("tuple index out of range")

    monkeypatch.setattr(sys.modules["lossforge.adoption.adopted"], "by_operations", fails)
    with pytest.raises(lf.errors.AdoptionError, match="IndexError: tuple index out of range.*not adopted"):
        lf.adopt(lambda pred, true: np.mean((pred - true) ** 2), np.zeros(5), np.ones(5))


@pytest.mark.parametrize(
    ("function", "example", "other", "message"),
    [
        (lambda pred: np.mean((pred + pred.T) ** 2), (5, 5), (4, 6), "sizes 4 and 6, but this loss was made for equal ones"),
        (lambda pred: np.mean(pred * np.array([1.0, 2.0, 4.0])), (5, 3), (5, 4), "size 4, but this loss was made for 3 only"),
    ],
)  # fmt: skip
def test_sizes_that_a_loss_was_not_made_for(function, example, other, message) -> None:
    loss = lf.adopt(function, np.random.default_rng(1).normal(size=example))
    with pytest.raises(lf.errors.ShapeError, match=message):
        loss(np.ones(other))
    file: dict[str, Any] = {"__name__": "exported"}
    exec(loss.source("numpy"), file)
    with pytest.raises(ValueError, match="these formulas hold for [36] only"):
        file["loss"](np.ones(other))


def test_a_lambda_is_exported_under_a_name() -> None:
    rng = np.random.default_rng(8)
    loss = lf.adopt(lambda pred, true: np.mean((pred - true) ** 2), real(rng, (8,)), real(rng, (8,)))
    file: dict[str, object] = {"__name__": "exported"}
    exec(loss.source("numpy"), file)
    assert callable(file["loss_value_and_gradient"])


def _shifted_cross_entropy(logits: Any, labels: Any) -> Any:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return -np.mean(np.sum(labels * np.log(powers / powers.sum(axis=1, keepdims=True)), axis=1))


def _shifted_log_softmax(logits: Any, labels: Any) -> Any:
    shifted = logits - np.max(logits, axis=-1, keepdims=True)
    return -np.mean(np.sum(labels * (shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))), axis=-1))


def _shifted_logsumexp(logits: Any, labels: Any) -> Any:
    largest = logits.max(axis=1)
    return np.mean(largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1)) - np.sum(labels * logits, axis=1))


@pytest.mark.parametrize("loss", [_shifted_cross_entropy, _shifted_log_softmax, _shifted_logsumexp])
def test_a_softmax_that_is_shifted_by_hand_is_one(loss: Callable[..., Any], rng: np.random.Generator) -> None:
    labels = np.eye(4)[rng.integers(0, 4, 6)]
    gradient = lf.adopt(loss, rng.standard_normal((6, 4)), labels).explain().gradient
    assert "softmax(logits" in gradient and "max[" not in gradient
