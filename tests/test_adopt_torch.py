"""Losses written for PyTorch, adopted: value and gradient against autograd, at two shapes, and in other frameworks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

import lossforge as lf
from adoption import (
    agree,
    binary,
    check,
    classes,
    covariances,
    drawn,
    log_simplex,
    positive,
    real,
    signs,
    simplex,
    unit,
)  # fmt: skip
from lossforge.ir import topological

torch = pytest.importorskip("torch")
from torch_cases import boundary  # noqa: E402

F, nn = torch.nn.functional, torch.nn


def original(fn: Callable[..., Any]) -> Callable[[Sequence[np.ndarray], int], tuple[np.ndarray, np.ndarray]]:
    def run(arrays: Sequence[np.ndarray], at: int) -> tuple[np.ndarray, np.ndarray]:
        tensors = [torch.from_numpy(np.array(a)) for a in arrays]
        tensors[at].requires_grad_(True)
        value = fn(*tensors)
        (gradient,) = torch.autograd.grad(value.sum(), tensors[at])
        return value.detach().numpy(), gradient.numpy()

    return run


class DiceLoss(nn.Module):
    def __init__(self, smooth=1e-6):
        super().__init__()
        self.smooth = smooth

    def forward(self, y_pred, y_true):
        intersection = torch.sum(y_pred * y_true)
        union = torch.sum(y_pred) + torch.sum(y_true)
        loss = 1 - ((2.0 * intersection + self.smooth) / (union + self.smooth))
        return loss


class FocalLoss(nn.Module):
    def __init__(self, alpha=0.25, gamma=2.0, reduction="mean"):
        super().__init__()
        self.alpha, self.gamma, self.reduction = alpha, gamma, reduction

    def forward(self, inputs, targets):
        ce = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
        p_t = torch.exp(-ce)
        a_t = self.alpha * targets + (1 - self.alpha) * (1 - targets)
        loss = a_t * (1 - p_t) ** self.gamma * ce
        return loss.mean() if self.reduction == "mean" else loss.sum()


class TverskyLoss(nn.Module):
    def __init__(self, alpha=0.3, beta=0.7, smooth=1.0):
        super().__init__()
        self.alpha, self.beta, self.smooth = alpha, beta, smooth

    def forward(self, pred, true):
        p, t = torch.sigmoid(pred).view(-1), true.view(-1)
        tp, fp, fn = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
        return 1 - (tp + self.smooth) / (tp + self.alpha * fp + self.beta * fn + self.smooth)


class DiceCE(nn.Module):
    def forward(self, logits, target):
        probs = logits.softmax(1)
        onehot = F.one_hot(target, logits.shape[1]).permute(0, 3, 1, 2).float()
        dims = (0, 2, 3)
        inter = (probs * onehot).sum(dims)
        dice = (2 * inter + 1e-5) / (probs.sum(dims) + onehot.sum(dims) + 1e-5)
        return F.cross_entropy(logits, target) + 1 - dice.mean()


def total_variation(x):
    return (x[:, :, 1:] - x[:, :, :-1]).abs().mean() + (x[..., 1:] - x[..., :-1]).abs().mean()


def lovasz_hinge_flat(logits, labels):
    logits, labels = logits.view(-1), labels.view(-1)
    signs_ = 2.0 * labels - 1.0
    errors = 1.0 - logits * signs_
    errors_sorted, perm = torch.sort(errors, dim=0, descending=True)
    gt_sorted = labels[perm]
    gts = gt_sorted.sum()
    intersection = gts - gt_sorted.cumsum(0)
    union = gts + (1 - gt_sorted).cumsum(0)
    jaccard = 1.0 - intersection / union
    jaccard = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    return torch.dot(F.relu(errors_sorted), jaccard)


def supcon(features, labels):
    f = F.normalize(features, dim=1)
    sim = f @ f.T / 0.1
    sim = sim - sim.max(dim=1, keepdim=True)[0].detach()
    same = (labels[:, None] == labels[None, :]).float()
    off = 1 - torch.eye(len(labels))
    log_prob = sim - torch.log((torch.exp(sim) * off).sum(1, keepdim=True))
    positives = same * off
    return -((positives * log_prob).sum(1) / positives.sum(1).clamp(min=1)).mean()


def triplet_pairwise(anchor, positive_, negative):
    return F.triplet_margin_loss(anchor, positive_, negative, margin=0.7)


def center_loss(x, centers, labels):
    return (x - centers[labels]).pow(2).sum(1).mean()


def ohem(pred, true):
    loss = F.binary_cross_entropy_with_logits(pred, true, reduction="none").view(-1)
    return loss.topk(3)[0].mean()


def rmse(pred, true):
    return torch.sqrt(F.mse_loss(pred, true) + 1e-8)


def quantile(pred, true, q=0.3):
    e = true - pred
    return torch.max(q * e, (q - 1) * e).mean()


def wing(pred, true, w=1.0, eps=0.5):
    x = (pred - true).abs()
    c = w * (1.0 - np.log(1.0 + w / eps))
    return torch.where(x < w, w * torch.log(1 + x / eps), x - c).mean()


def mmd(x, y):
    def kernel(a, b):
        return torch.exp(-((a[:, None] - b[None]) ** 2).sum(-1))

    return kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()


def giou(pred, target):
    x1, y1, x2, y2 = pred.unbind(-1)
    a1, b1, a2, b2 = target.unbind(-1)
    inter = (torch.min(x2, a2) - torch.max(x1, a1)).clamp(min=0) * (torch.min(y2, b2) - torch.max(y1, b1)).clamp(min=0)
    union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inter
    hull = (torch.max(x2, a2) - torch.min(x1, a1)) * (torch.max(y2, b2) - torch.min(y1, b1))
    return (1 - inter / union + (hull - union) / hull).mean()


def boxes(rng, shape):
    low = rng.uniform(0, 1, (*shape[:-1], 2))
    return np.concatenate([low, low + rng.uniform(0.5, 2, (*shape[:-1], 2))], -1).astype(np.float32)


def clip(image, text):
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    logits = 10.0 * image @ text.t()
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2


def nt_xent(first, second, temperature=0.5):
    n = first.shape[0]
    z = F.normalize(torch.cat([first, second]), dim=1)
    similarity = z @ z.T / temperature
    similarity = similarity.masked_fill(torch.eye(2 * n, dtype=torch.bool), -9e15)
    return F.cross_entropy(similarity, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))


def simclr(first, second):
    z, n = torch.cat([first, second]), first.shape[0]
    similarity = torch.exp(z @ z.t())
    off = (torch.ones_like(similarity) - torch.eye(2 * n)).bool()
    negatives = similarity.masked_select(off).view(2 * n, -1)
    positives = torch.exp((first * second).sum(-1))
    return -torch.log(torch.cat([positives, positives]) / negatives.sum(-1)).mean()


def wing_by_parts(pred, true, omega=0.7, epsilon=0.4):
    error = (true - pred).abs()
    near, far = error[error < omega], error[error >= omega]
    offset = omega - omega * np.log(1 + omega / epsilon)
    total = (omega * torch.log(1 + near / epsilon)).sum() + (far - offset).sum()
    return total / (len(near) + len(far))


def by_parts(pred, true):
    loss, chosen = torch.zeros_like(pred), true > 0
    loss[chosen] = pred[chosen] ** 2
    loss[~chosen] = pred[~chosen].abs()
    return loss.mean()


def masked_silog(pred, true):
    valid = true > 1.0
    d = pred[valid].log() - true[valid].log()
    return torch.sqrt((d**2).mean() - 0.85 * d.mean() ** 2)


def auc(scores, labels):
    gap = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return (1 - gap).clamp(min=0).pow(2).mean()


def checked(pred, variance):
    if torch.any(variance < 0):
        raise ValueError("a negative variance")
    assert (variance > 0).all()
    return (0.5 * (torch.log(variance) + pred**2 / variance)).mean()


def cox(risk, time, event):
    order = torch.argsort(time, descending=True)
    risk, event = risk[order], event[order]
    return -((risk - torch.logcumsumexp(risk, 0)) * event).sum() / event.sum()


def ranknet(scores, relevance):
    i, j = torch.triu_indices(scores.shape[1], scores.shape[1], 1)
    wanted = (torch.sign(relevance[:, i] - relevance[:, j]) + 1) / 2
    return F.binary_cross_entropy_with_logits(scores[:, i] - scores[:, j], wanted)


def berhu(pred, true):
    error = (pred - true).abs()
    c = 0.2 * error.max().detach()
    return torch.where(error <= c, error, (error**2 + c**2) / (2 * c)).mean()


def without_gradient(pred, true):
    with torch.no_grad():
        weight = (pred - true).abs()
    return (weight * (pred - true) ** 2).mean() + (pred.data * pred).mean()


def coral(source, target):
    d = source.size(1)
    source, target = source - source.mean(0), target - target.mean(0)
    gap = source.T @ source / (len(source) - 1) - target.T @ target / (len(target) - 1)
    return gap.pow(2).sum() / (4 * d * d)


def class_sums(pred, labels):
    total = torch.zeros(4, pred.shape[1]).index_add(0, labels, pred)
    return (total / torch.bincount(labels, minlength=4).clamp(min=1)[:, None]).pow(2).mean()


def pairs(labels):
    same = (labels[:, None] == labels[None]).byte()
    other = same ^ 1
    same.fill_diagonal_(0)
    return torch.where(same), torch.where(other)


def contrastive_pairs(embeddings, labels):
    """Positive losses are averaged, for positive and for negative pairs; nothing where there are none."""
    distance = torch.cdist(embeddings, embeddings)
    result = embeddings.sum() * 0
    for index, loss in zip(pairs(labels), (lambda d: F.relu(d - 0.5), lambda d: F.relu(1.5 - d)), strict=True):
        if len(index[0]) > 0:
            losses = loss(distance[index])
            above = losses[losses > 0]
            if len(above) >= 1:
                result = result + above.mean()
    return result


def tuplet(embeddings, labels):
    """Each positive pair against the negatives of its anchor, and a zero; acos has no derivative at the pairs left out."""
    (a, p), (b, n) = pairs(labels)
    x = F.normalize(embeddings)
    cosine = x @ x.T
    positive, negative = torch.cos(torch.acos(cosine[a, p]) - 0.1)[:, None], cosine[b, n]
    scores = (4 * (negative - positive)).masked_fill(b[None] != a[:, None], -1e4)
    return torch.logsumexp(torch.cat([scores, torch.zeros(len(scores), 1)], 1), 1).mean()


def average_precision(embeddings, labels):
    """A guard by a decision on a count."""
    same = labels[:, None] == labels[None]
    same.fill_diagonal_(False)
    found = same.any(1)
    if torch.sum(found) == 0:
        return embeddings.sum() * 0
    near = torch.exp(-torch.cdist(embeddings, embeddings))
    return 1 - ((near * same).sum(1)[found] / same.sum(1)[found]).mean()


def ways_of_other_shapes(embeddings, labels):
    """What the ways have in common ends before what is selected from."""
    positive, negative = embeddings[labels == 1, 0], embeddings[labels == 2, 0]
    if len(positive) > 0 and len(negative) > 0:
        return F.relu(1 - positive[:, None] + negative[None]).mean()
    return positive.mean() if len(positive) > 0 else (embeddings**2).mean()


def all_or_some(embeddings, labels):
    rare = labels > 1
    if torch.all(rare):
        return embeddings.abs().mean()
    return embeddings[rare].sum() / max(int(labels.shape[0]), 1)


def guards_of_guards(embeddings, labels):
    loss = embeddings.sum() * 0
    if (labels == 1).any():
        loss = loss + embeddings[labels == 1].mean()
    if (labels == 2).any():
        loss = loss * 2 + embeddings[labels == 2].pow(2).mean()
    return loss


def lovasz_of_present(probs, labels):
    """Classes that do not occur are left out of the mean."""
    losses = []
    for c in range(probs.shape[1]):
        here = (labels == c).float()
        if here.sum() == 0:
            continue
        errors, order = torch.sort((here - probs[:, c]).abs(), 0, descending=True)
        there = here[order.data]
        union = there.sum() + (1 - there).cumsum(0)
        overlap = 1 - (there.sum() - there.cumsum(0)) / union
        losses.append(torch.dot(errors, torch.cat([overlap[:1], overlap[1:] - overlap[:-1]])))
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total if len(losses) == 1 else total / len(losses)


def lovasz_image_by_image(logits, labels):
    losses = []
    for x, y in zip(logits, labels, strict=True):
        errors, order = torch.sort((1 - x * (2.0 * y - 1)).view(-1), 0, descending=True)
        there = y.view(-1)[order.data].float()
        jaccard = 1 - (there.sum() - there.cumsum(0)) / (there.sum() + (1 - there).cumsum(0))
        jaccard[1:] = jaccard[1:] - jaccard[:-1]
        losses.append(torch.dot(F.relu(errors), jaccard))
    return sum(losses) / len(losses)


def lovasz_of_known(logits, labels, unknown=2):
    known = labels != unknown
    x, y = logits[known], labels[known].float()
    if len(y) == 0:
        return logits.sum() * 0
    errors, order = torch.sort(1 - x * (2.0 * y - 1), descending=True)
    there = y[order]
    jaccard = 1 - (there.sum() - there.cumsum(0)) / (there.sum() + (1 - there).cumsum(0))
    if len(there) > 1:
        jaccard[1:] = jaccard[1:] - jaccard[:-1]
    return torch.dot(F.relu(errors), jaccard)


def depth_image_by_image(pred, true):
    losses = []
    for p, t in zip(pred, true, strict=True):
        known = t > 0
        if known.any():
            losses.append((p[known] - t[known]).abs().mean())
    return torch.stack(losses).mean()


def prototypes(features, labels):
    total, count = 0.0, 0
    for c in range(4):
        if (labels == c).sum() > 0:
            mine = features[labels == c]
            total = total + (mine - mine.mean(0)).pow(2).mean()
            count += 1
    return total / max(count, 1)


def harmonised(pred, true, bins=3):
    """Weights by the number of entries in each bin, which are Python's numbers."""
    gap = (pred.sigmoid().detach() - true).abs()
    weights, used = torch.zeros_like(pred), 0
    for k in range(bins):
        inside = (gap >= k / bins) & (gap < (k + 1) / bins)
        count = inside.sum().item()
        if count > 0:
            weights[inside] = pred.numel() / count
            used += 1
    if used > 0:
        weights = weights / used
    return F.binary_cross_entropy_with_logits(pred, true, weights)


def hard_or_hardest(pred, true, least=4):
    losses = F.mse_loss(pred, true, reduction="none").flatten()
    hard = losses[losses > 1.0]
    if hard.numel() < least:
        hard = losses.topk(least)[0]
    return hard.mean()


def hardest(pred, labels, share=0.3):
    losses = F.cross_entropy(pred, labels, reduction="none").sort(descending=True)[0]
    keep = int(share * len(losses))
    return losses[:keep].sum() / keep


def two_or_more(embeddings, labels):
    positive = embeddings[labels == 1]
    if len(positive) > 1:
        return positive.var(0).mean()
    return embeddings.pow(2).mean()


def heavier_if_few(embeddings, labels):
    """A weight by the number of pairs, and a selection from what was selected."""
    near = embeddings @ embeddings.T
    first, second = torch.where((labels[:, None] == labels[None]) & ~torch.eye(len(labels), dtype=torch.bool))
    weight = 2.0 if len(first) < 3 else 1.0
    pairs = torch.zeros_like(near)
    pairs[first, second] = weight
    return weight * (near[pairs.bool()] ** 2).sum()


def beyond_the_extremes(embeddings, labels):
    """Python's `max` and `min` of what was selected, turn by turn; turns without any are left out."""
    near, losses = embeddings @ embeddings.T, []
    for i in range(len(labels)):
        same, others = near[i][labels == labels[i]], near[i][labels != labels[i]]
        if len(others) < 1:
            continue
        hard = others[others + 0.1 > min(same)]
        if len(hard) < 1:
            continue
        losses.append(torch.log(1 + hard.exp().sum()) + max(same))
    return sum(losses) / len(labels) if losses else embeddings.sum() * 0


def censuses_apart(pred, true):
    """The frame of the picture is left out by a mask that is padded."""
    height, width = pred.shape[2:]
    inside = F.pad(torch.ones(len(pred), 1, height - 2, width - 2), [1] * 4)
    return ((F.avg_pool2d(pred - true, 3, 1, 1) ** 2) * inside).mean()


def positive_first(z, w):
    """SimCLR as it is mostly written: the positive of each row before its negatives, which is the class of label 0."""
    x = F.normalize(torch.cat([z, w]), dim=1)
    n = len(x)
    similarity = x @ x.T
    ids = torch.cat([torch.arange(len(z)), torch.arange(len(z))])
    same = (ids[:, None] == ids[None]).float()
    eye = torch.eye(n, dtype=torch.bool)
    same, similarity = same[~eye].view(n, -1), similarity[~eye].view(n, -1)
    positive, negative = similarity[same.bool()].view(n, -1), similarity[~same.bool()].view(n, -1)
    return F.cross_entropy(torch.cat([positive, negative], 1) / 0.2, torch.zeros(n, dtype=torch.long))


def decoupled(z, w):
    """Negatives from two matrices without their diagonals; the diagonal itself by its mask."""
    eye = torch.eye(len(z), dtype=torch.bool)
    inside, across = z @ z.T, z @ w.T
    negative = torch.cat([inside[~eye].view(len(z), -1), across[~eye].view(len(z), -1)], 1)
    return (torch.logsumexp(negative, 1) - across[eye]).mean()


def halves(x):
    first, second = x.chunk(2)
    return (first * second.sigmoid()).mean() + (x.view(-1, 2, x.shape[1])[:, 0] ** 2).sum() + F.glu(x, 0).mean()


def entry_by_entry(pred, labels):
    """A position that is a value, as Python has it one at a time."""
    log = F.log_softmax(pred, 1)
    return -sum(log[i, labels[i]] + 0.1 * pred[i][labels[i]].square() for i in range(len(pred))) / len(pred)


def pyramid(pred, true):
    """Every other entry is kept, and enlarged, as in a Laplacian pyramid."""
    half, wide = pred - true, torch.zeros_like(pred)
    wide[:, ::2] = half[:, ::2] * 2
    return (half - wide).abs().mean()


def without_itself(x):
    """The diagonal of a matrix by a stride."""
    near = x @ x.T
    near.view(-1)[:: len(x) + 1].fill_(-1)
    return torch.log((x - x[near.argmax(1)]).pow(2).sum(1).sqrt() + 1e-3).mean()


def least_squares(pred, true):
    """Systems that can be solved, by their positions."""
    scale, offset, size = pred.square().sum(1), pred.sum(1), pred.shape[1]
    det = scale * size - offset**2
    solved = torch.zeros_like(det)
    valid = det.nonzero()
    solved[valid] = (size * (pred * true).sum(1)[valid] - offset[valid] * true.sum(1)[valid]) / det[valid]
    return (solved[:, None] * pred - true).pow(2).mean()


def within(pred, true):
    """Targets that are brought into bounds in place."""
    target = true.clamp_(0.0, 2.0 - 0.01)
    return (pred - target).abs().mean()


def masked_patches(pred, images, mask, side=4):
    """What a masked autoencoder makes of patches that it did not see."""
    n, c, count = len(images), images.shape[1], images.shape[2] // side
    patches = images.reshape(n, c, count, side, count, side).permute(0, 2, 4, 3, 5, 1).reshape(n, count * count, -1)
    return ((pred - patches).pow(2).mean(-1) * mask).sum() / mask.sum()


def low_rank(p):
    left, values, right = torch.linalg.svd(p, full_matrices=False)
    return ((left[:, :2] * values[:2] @ right[:2] - p) ** 2).mean()


def by_eigenvectors(p, t):
    less = p - p.mean(0)
    values, vectors = torch.linalg.eigh(less.T @ less / (len(p) - 1) + 1e-2 * torch.eye(p.shape[1]))
    return (less @ vectors / values.sqrt() @ vectors.T - t).abs().mean()


def whitened(z, w):
    c = nn.BatchNorm1d(z.shape[1], affine=False)(z).T @ nn.BatchNorm1d(z.shape[1], affine=False)(w) / len(z)
    return (torch.diagonal(c) - 1).pow(2).sum() + c.triu(1).pow(2).sum()


NC, N = [(6, 4), (9, 5)], [(6,), (9,)]


def box_distance(pred, true):
    (px, py, pw, ph), (tx, ty, tw, th) = pred.chunk(4, -1), torch.split(true, 1, -1)
    width = F.relu(torch.minimum(tx + tw / 2, px + pw / 2) - torch.maximum(tx - tw / 2, px - pw / 2))
    height = F.relu(torch.minimum(ty + th / 2, py + ph / 2) - torch.maximum(ty - th / 2, py - ph / 2))
    return (1 - width * height / (tw * th + pw * ph) + (tx - px) ** 2 + (ty - py) ** 2).mean()


def lovasz_of_floats(pred, true):  # `.float()` loses digits whatever the precision of the arguments
    signs = 2.0 * true.float() - 1.0
    errors, order = torch.sort(1.0 - pred.float() * signs, descending=True)
    sorted_ = true[order].float()
    total = sorted_.sum()
    jaccard = 1.0 - (total - sorted_.cumsum(0)) / (total + (1.0 - sorted_).cumsum(0))
    steps = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    return torch.dot(F.relu(errors), steps)


IMG, MAP = [(2, 3, 4, 5), (3, 2, 6, 4)], [(2, 4, 5), (3, 6, 4)]


def checked_boxes(pred, true):
    """Drawn boxes have their corners in any order, of which it takes one."""
    for box in (pred, true):
        if box.shape[-1] != 4 or (box[:, 2:] < box[:, :2]).sum() > 0:
            raise ValueError("the first corner is the upper left one")
    return giou(pred, true)


def lovasz_by_index(pred, true):
    errors, order = (1 - pred * (2 * true - 1)).sort(dim=1, descending=True)
    b, n = pred.shape
    rows = torch.arange(b).reshape(-1, 1).repeat(1, n).reshape(-1)
    true = true[rows, order.view(-1)].view(b, n)
    count = true.sum(1, keepdim=True)
    jaccard = 1 - (count - true.cumsum(1)) / (count + (1 - true).cumsum(1))
    jaccard[..., 1:] = jaccard[..., 1:] - jaccard[..., :-1]
    return (errors.relu() * jaccard).sum(1).mean()


def without_infinite_weights(pred, true):
    weights = torch.ones_like(true.sum((2, 3)))
    weights[torch.isinf(weights)] = 0.0
    return (((pred - true) ** 2).sum((2, 3)) * weights).mean()


def slopes_by_sizes(pred, true):
    sizes = torch.tensor(pred.shape)[2:].reshape(1, -1)
    difference = (pred - true).mean((2, 3))
    return ((difference[:, :1] * pred.shape[2] / sizes) ** 2).mean()


def range_of_everything(pred, true):
    everything = torch.ones(pred.shape[-1], dtype=torch.bool)
    low, _ = pred[..., everything].min(dim=-1)
    return ((pred - low[..., None]) * true).mean()


def blurred_channels(pred, true):
    ramp = torch.arange(1.0, 6.0)
    kernels = torch.stack([torch.outer(ramp, ramp), torch.ones(5, 5)])[:, None]
    kernels = (kernels / kernels.sum((2, 3), keepdim=True)).repeat(pred.shape[1], 1, 1, 1)
    return F.mse_loss(*(F.conv2d(x, kernels, groups=x.shape[1], padding=2) for x in (pred, true)))


def off_diagonal(x):
    n = len(x)
    return x.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten()


def barlow_twins(first, second, weight=0.005):
    a, b = ((z - z.mean(0)) / z.std(0) for z in (first, second))
    c = a.T @ b / len(a)
    return (torch.diagonal(c) - 1).pow(2).sum() + weight * off_diagonal(c).pow_(2).sum()


def dice_by_class(pred, true):
    """A loop that is written out by tracing, whose first turn begins with numbers of Python."""
    total = 0
    for c in range(pred.shape[1]):
        total = total + 1 - 2 * (pred[:, c] * true[:, c]).sum() / (pred[:, c].sum() + true[:, c].sum())
    return total / pred.shape[1]


def row_by_row(pred, true):
    return torch.stack([F.mse_loss(a, b).sqrt() for a, b in zip(pred, true, strict=False)]).mean()


MATRICES = [(n, c, c) for n, c in NC]


def definite(x):
    """Positive definite matrices."""
    return x @ x.mT + 2 * torch.eye(x.shape[-1])


class ReversedGradient(torch.autograd.Function):
    """A backward pass that is not the derivative, and a way of calling it that was kept."""

    @staticmethod
    def forward(ctx, x, rate):
        ctx.rate = rate
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.rate * gradient, None


class StraightThrough(torch.autograd.Function):
    """Signs, whose gradient is passed on where it is not far off."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        near = x.abs_() < 1
        gradient = gradient.clone()
        gradient[~near] = 0
        return gradient


class FocalTerms(torch.autograd.Function):
    """A derivative written by hand, of a forward pass that works in place."""

    @staticmethod
    def forward(ctx, logits, labels):
        probs = torch.sigmoid(logits)
        terms = (labels - probs).abs_().pow_(2).mul_(F.softplus(logits).sub_(labels * logits))
        ctx.kept = probs, labels, logits
        return terms

    @staticmethod
    def backward(ctx, gradient):
        probs, labels, logits = ctx.kept
        error = probs - labels
        entropy = F.softplus(logits) - labels * logits
        slope = 2 * error * probs * (1 - probs) * entropy + error**2 * error
        return slope.mul_(gradient), None


class Products(torch.autograd.Function):
    """Two results, and a context that is set up apart."""

    @staticmethod
    def forward(x, y):
        return x * x * y, x + y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, first, second):
        x, y = ctx.saved_tensors
        return 2 * x * y * first + second, x * x * first + second


class Clipped(torch.autograd.Function):
    """The derivative of nothing."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(-1e-3, 1e-3)


reversed_gradient = ReversedGradient.apply


def smoothed_in_place(logits, labels):
    """What is written under `no_grad` has no share in the gradient; a count of entries that are not zero."""
    with torch.no_grad():
        share = 0.2 * logits.softmax(1).gather(1, labels[:, None])
        targets = torch.ones_like(logits)
        targets *= share / (logits.shape[1] - 1)
        targets.scatter_(1, labels[:, None], 1 - share)
    loss = -(targets * logits.log_softmax(1)).sum(1)
    return loss.sum() / max(loss.nonzero().size(0), 1)


def arcface(logits, labels, scale=8.0, margin=0.5):
    """In place under `no_grad`: the slope is that of what was there before. Rows that are labelled -1 keep their angles."""
    cosines = logits * 0.9
    rows = torch.where(labels != -1)[0]
    angles = cosines[rows, labels[rows]]
    with torch.no_grad():
        angles.arccos_()
        cosines.arccos_()
        cosines[rows, labels[rows]] = angles + margin
        cosines.cos_()
    return F.cross_entropy(cosines * scale, labels.clamp(min=0))


def checked_in_words(pred, true):
    """What an error says is worked out from values, and stands in lines of its own."""
    error = (pred - true).abs()
    if not (error.min().item() >= 0 and error.max() < 1e6):
        raise ValueError(
            f"the errors of {len(error)} predictions should be no larger than a million, and not below zero, "
            f"but are from {float(error.min()):.3f} to {float(error.max()):.3f}"
        )
    return error.pow(2).mean()


def centres(heat, mask, target):
    """Nothing to find is a zero of another shape; a mean over what was found divides by a Python number."""
    if mask.sum() == 0:
        return heat.new_zeros(1)
    found = mask.bool()
    return (heat[found] - target[found]).abs().sum() / torch.clamp(mask.sum(), min=1e-4)


def pairwise_to_the_last(x):
    """Labels are the first classes: the matrix has more columns than rows."""
    apart = x[:, 0].unsqueeze(-1) - x[:, 1].unsqueeze(-1).transpose(0, 2)
    return F.cross_entropy(-apart.norm(dim=-1), torch.arange(len(x)))


def of_categories(scores, labels, mask):
    """A weighted mean over the categories that are marked; of none, Python divides by zero."""
    losses, weights = [], []
    for i in range(2):
        if mask[:, i].sum() < 0.5:
            losses.append(torch.tensor(0.0))
            weights.append(0.0)
            continue
        loss = F.binary_cross_entropy_with_logits(scores[:, i], labels[:, i], reduction="none")
        losses.append((loss * mask[:, i]).sum() / mask[:, i].sum())
        weights.append(i + 1.0)
    return sum(loss * (weight / sum(weights)) for loss, weight in zip(losses, weights, strict=True))


def images_and_their_overlaps(pred, true):
    """A sum over few entries between two over many."""
    overlaps = (pred * true).mean((2, 3))
    of_classes = torch.stack([1 - overlaps[:, 0], overlaps[:, 1].sqrt()], -1).mean()
    return torch.stack([pred[:, 0], pred[:, 1] ** 2], 1).mean() + of_classes


def hard_negatives(pred, mask):
    """As many hard negatives as there are positives, and half as many more."""
    positives = int(mask.sum())
    negatives = min(int((1 - mask).sum()), int(positives * 1.5))
    losses = F.binary_cross_entropy_with_logits(pred, mask, reduction="none")
    hardest, _ = torch.topk((losses * (1 - mask)).view(-1), negatives)
    first = (losses * (1 - mask)).view(-1).sort(descending=True)[0][: negatives // 2]
    return ((losses * mask).sum() + hardest.sum() + first.sum()) / (float(positives) + negatives + 1e-6)


def every_third(similarities):
    """Rows by a mask that is filled in without regard to values, but like an array of them."""
    chosen = torch.zeros_like(similarities[:, 0])
    chosen[torch.arange(2) * 3] = 1
    return similarities.logsumexp(1).masked_select(chosen.to(torch.bool)).mean()


def unlabelled(logits, labels, ignored=1):
    """One-hot labels that are emptied, for all classes, at the positions of what is ignored."""
    hot = torch.zeros_like(logits).scatter_(1, labels[:, None], 1)
    rows, *columns = (labels == ignored).nonzero().chunk(2, dim=1)
    hot[rows, torch.arange(logits.shape[1]), *columns] = 0
    return -(logits.log_softmax(1) * hot).sum(1).mean()


def boxes_of_some(boxes, true, some):
    """A mask that is repeated along coordinates selects rows."""
    repeated = some.bool()[:, :, None].repeat([1, 1, boxes.shape[2]])
    gaps = (boxes.masked_select(repeated) - true[repeated]).reshape(-1, boxes.shape[2])
    return (gaps.abs().sum(1) * true.sum(-1).masked_select(some.bool())).sum()


def far_apart(first, second):
    """Arrays that are given a size; hooks that only look on."""
    first.retain_grad()
    first.register_hook(lambda gradient: None)
    ones = first.new().resize_as_(first).fill_(1)
    return F.margin_ranking_loss(first, second, ones, margin=0.3)


def warped(field, places, true, mode="zeros", corners=False):
    return (F.grid_sample(field, places, padding_mode=mode, align_corners=corners) - true).pow(2).mean()


def of_probabilities(probs, true):
    """A check of what the arrays hold."""
    assert torch.allclose(probs.sum(1), torch.ones(len(probs)))
    return -(true * (probs + 1e-10).log()).sum() / true.sum()


def hardest_in_rows(embeddings, labels):
    """As many positives in each row as in another, picked by a mask and laid out in rows."""
    n = len(embeddings)
    distances = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels[None]
    positive = distances[same].contiguous().view(n, -1)
    negative = distances[~same].view(n, -1)
    return F.relu(positive.max(1)[0] - negative.min(1)[0] + 0.3).mean() + positive.mean() - negative.mean()


def others_than_the_label(scores, labels):
    mask = torch.ones_like(scores).scatter_(1, labels[:, None], 0).bool()
    wrong = torch.masked_select(scores, mask).reshape(len(scores), scores.shape[1] - 1)
    return F.relu(1 + wrong.max(1)[0] - scores.gather(1, labels[:, None])[:, 0]).mean()


def twos(rng, shape):
    return np.arange(shape[0]) % (shape[0] // 2)


class DualFocal(nn.Module):
    """A small number beside one that it hardly changes, which another parameter must not be taken for."""

    def __init__(self):
        super().__init__()
        self.ignored, self.eps = 255, 1e-5

    def forward(self, logits, labels):
        gaps = (logits.softmax(1) - F.one_hot(labels, logits.shape[1])).pow(2)
        loss = -torch.log(self.eps + 1.0 - gaps).sum(1)
        return loss[labels != self.ignored].mean()


class EachClass(nn.Module):
    """One class against the others, without the entries of a label that is none."""

    def __init__(self):
        super().__init__()
        self.ignored = 255

    def forward(self, logits, labels):
        kept, loss = labels != self.ignored, 0
        for c in range(logits.shape[1]):
            loss += F.binary_cross_entropy_with_logits(logits[:, c][kept], (labels == c).float()[kept])
        return loss


def of_normal_entries(pred, mask):
    """Nothing stands for the mean, where it has no entries: an error of the loss, not another value."""
    normal = mask == 0
    if normal.sum() > 0:
        loss = -torch.log(pred[normal]).mean()
    return loss


def balanced(gates, k=2):
    """Of a mixture of experts: how often each is chosen, times how probable it is."""
    experts = gates.shape[1]
    chosen = gates.topk(k, dim=1)[1]
    share = torch.histc(chosen.float(), bins=experts, min=0, max=experts - 1) / len(gates)
    return experts * (share * gates.softmax(1).mean(0)).sum()


def of_all(points):
    """A mask that holds everywhere, also of what is written."""
    known = torch.ones(len(points)).bool()
    loss = torch.zeros(len(points))
    if known.any():
        loss[known] = points[known].square().sum(1)
    return loss.mean()


def harder_by_rank(scores, grades):
    """Each score against the next higher one, and the grades by the bounds between which they lie."""
    order = scores.sort(dim=1).values
    above = torch.searchsorted(order.detach(), scores.detach(), right=True).clamp(max=scores.shape[1] - 1)
    levels = torch.bucketize(grades, torch.tensor([-0.5, 0.0, 0.5]))
    return (levels * F.softplus(scores - order.gather(1, above))).mean()


def violated_triplets(x, labels):
    """Of all pairs alike and a third: those from a selection that are selected again, along the axis of the selection."""
    apart = (x[:, None] - x[None]).square().sum(-1)
    alike = (labels[:, None] == labels[None]) & ~torch.eye(len(labels)).bool()
    anchors, positives = alike.nonzero(as_tuple=True)
    margins = apart[anchors, positives][:, None] - apart[anchors] + 1.0
    margins = margins * (labels[anchors][:, None] != labels[None])
    return margins[margins > 0].mean()


def some_ignored(rng, shape):
    return np.where(rng.random(shape) < 0.3, 255, rng.integers(0, 4, shape))


FIELDS = [[(2, 3, 6, 8), (1, 2, 5, 7)], [(2, 4, 5, 2), (1, 6, 3, 2)], [(2, 3, 4, 5), (1, 2, 6, 3)]]
MAPS = [(2, 4, 6), (3, 5, 4)]


CASES = {
    "a gradient that is reversed": (lambda p, t: F.mse_loss(reversed_gradient(p, 0.3).sigmoid(), t), [real, unit], [NC, NC]),
    "signs with a gradient": (lambda p, t: F.mse_loss(StraightThrough.apply(2 * p), t), [real, unit], [NC, NC]),
    "a backward pass by hand": (lambda p, t: FocalTerms.apply(p, t).mean(), [real, binary], [NC, NC]),
    "two results with a backward pass": (
        lambda p, t: sum((r * t).mean() for r in Products.apply(p, t)), [real, unit], [NC, NC]),
    "written without gradients": (smoothed_in_place, [real, classes(4)], [NC, N]),
    "written in place without gradients": (
        arcface, [lambda rng, s: rng.uniform(-0.9, 0.9, s).astype(np.float32), lambda rng, s: rng.integers(-1, 4, s)], [NC, N]),
    "a check whose message asks for values": (checked_in_words, [real, real], [NC, NC]),
    "rows by a mask that is filled in": (every_third, [real], [NC]),
    "assertions about values": (boundary, [simplex, real], [NC, NC]),
    "nothing to find": (centres, [unit, binary, unit], [NC, NC, NC]),
    "more columns than rows": (pairwise_to_the_last, [real], [[(3, 2, 8), (5, 2, 7)]]),
    "images and their overlaps": (images_and_their_overlaps, [unit, binary], [[(2, 2, 8, 9), (3, 2, 7, 5)]] * 2),
    "hard negatives": (hard_negatives, [real, binary], [NC, NC]),
    "divided by a number of Python": (lambda p: p / float(p.abs().sum()), [real], [NC]),
    "categories that are marked": (of_categories, [real, binary, binary], [[(6, 2), (9, 2)]] * 3),
    "emptied at positions": (unlabelled, [real, classes(4)], [[(2, 4, 6), (3, 5, 7)], [(2, 6), (3, 7)]]),
    "boxes under a repeated mask": (boxes_of_some, [real, real, binary], [MAPS, MAPS, [(2, 4), (3, 5)]]),
    "a check that sums are near to one": (of_probabilities, [simplex, unit], [NC, NC]),
    "rows of a selection": (hardest_in_rows, [real, twos], [[(8, 3), (10, 4)], [(8,), (10,)]]),
    "rows without one entry": (others_than_the_label, [real, classes(4)], [NC, N]),
    "a target that is filled in": (far_apart, [real, real], [N, N]),
    "entries between pixels": (warped, [real, real, real], FIELDS),
    "entries beyond the border": (partial(warped, mode="border", corners=True), [real, real, real], FIELDS),
    "entries reflected": (partial(warped, mode="reflection"), [real, real, real], FIELDS),
    "one class against the others": (EachClass(), [real, some_ignored], [NC, N]),
    "experts in balance": (balanced, [real], [NC]),
    "a mask that holds everywhere": (of_all, [real], [NC]),
    "the next higher score": (harder_by_rank, [real, real], [NC, NC]),
    "violated triplets": (violated_triplets, [real, twos], [[(8, 3), (10, 4)], [(8,), (10,)]]),
    "a mean that is bound where it exists": (of_normal_entries, [unit, binary], [NC, NC]),
    "a small number": (DualFocal(), [real, classes(4)], [NC, N]),
    "a window shorter than its transform": (
        lambda p, t: (torch.stft(p, 16, 4, 12, torch.hann_window(12), return_complex=True).abs() - t[:, None, None]).pow(2).mean(),
        [real, real], [[(2, 40), (3, 33)], [(2,), (3,)]]),
    "dice by class": (dice_by_class, [unit, unit], [[(3, 4, 5), (2, 5, 3)]] * 2),
    "barlow twins": (barlow_twins, [real, real], [NC, NC]),
    "row by row": (row_by_row, [real, real], [NC, NC]),
    "mse": (F.mse_loss, [real, real], [NC, NC]),
    "mse sum": (nn.MSELoss(reduction="sum"), [real, real], [NC, NC]),
    "mse none": (nn.MSELoss(reduction="none"), [real, real], [NC, NC]),
    "l1": (nn.L1Loss(), [real, real], [NC, NC]),
    "huber": (nn.HuberLoss(delta=0.7), [real, real], [NC, NC]),
    "smooth l1": (nn.SmoothL1Loss(beta=0.5), [real, real], [NC, NC]),
    "bce": (nn.BCELoss(), [unit, binary], [NC, NC]),
    "bce logits": (nn.BCEWithLogitsLoss(), [real, unit], [NC, NC]),
    "bce pos_weight": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0, 0.5])), [real, binary], [[(6, 4), (9, 4)]] * 2),
    "cross entropy": (nn.CrossEntropyLoss(), [real, classes(4)], [NC, N]),
    "cross entropy smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), [real, classes(4)], [NC, N]),
    "cross entropy weight": (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 3.0])), [real, classes(4)], [[(6, 4), (9, 4)], N]),
    "cross entropy 2d": (F.cross_entropy, [real, classes(2)], [IMG, MAP]),
    "cross entropy soft": (F.cross_entropy, [real, simplex], [NC, NC]),
    "nll": (nn.NLLLoss(), [log_simplex, classes(4)], [NC, N]),
    "kl div": (nn.KLDivLoss(reduction="batchmean"), [log_simplex, simplex], [NC, NC]),
    "kl log target": (nn.KLDivLoss(reduction="sum", log_target=True), [log_simplex, log_simplex], [NC, NC]),
    "poisson nll": (nn.PoissonNLLLoss(), [real, positive], [NC, NC]),
    "poisson nll full": (nn.PoissonNLLLoss(log_input=False, full=True), [positive, positive], [NC, NC]),
    "hinge embedding": (nn.HingeEmbeddingLoss(margin=0.8), [real, signs], [NC, NC]),
    "margin ranking": (nn.MarginRankingLoss(margin=0.2), [real, real, signs], [N, N, N]),
    "soft margin": (nn.SoftMarginLoss(), [real, signs], [NC, NC]),
    "cosine embedding": (nn.CosineEmbeddingLoss(margin=0.1), [real, real, signs], [NC, NC, N]),
    "triplet": (triplet_pairwise, [real, real, real], [NC, NC, NC]),
    "triplet distance": (
        nn.TripletMarginWithDistanceLoss(margin=0.4), [real, real, real], [NC, NC, NC]),
    "multi margin": (nn.MultiMarginLoss(margin=0.6), [real, classes(4)], [NC, N]),
    "multilabel soft margin": (nn.MultiLabelSoftMarginLoss(), [real, binary], [NC, NC]),
    "dice": (DiceLoss(), [unit, binary], [NC, NC]),
    "focal": (FocalLoss(), [real, binary], [NC, NC]),
    "tversky": (TverskyLoss(), [real, binary], [IMG, IMG]),
    "dice and cross entropy": (DiceCE(), [real, classes(2)], [IMG, MAP]),
    "total variation": (total_variation, [real], [IMG]),
    "lovasz hinge": (lovasz_hinge_flat, [real, binary], [MAP, MAP]),
    "supervised contrastive": (supcon, [real, classes(3)], [NC, N]),
    "center": (center_loss, [real, real, classes(3)], [NC, [(3, 4), (7, 5)], N]),
    "ohem": (ohem, [real, binary], [NC, NC]),
    "rmse": (rmse, [real, real], [NC, NC]),
    "quantile": (quantile, [real, real], [NC, NC]),
    "wing": (wing, [real, real], [NC, NC]),
    "mmd": (mmd, [real, real], [NC, [(5, 4), (7, 5)]]),
    "giou of checked boxes": (checked_boxes, [boxes, boxes], [[(6, 4), (9, 4)]] * 2),
    "lovasz by index": (lovasz_by_index, [real, binary], [NC, NC]),
    "weights by a mask that never holds": (without_infinite_weights, [unit, unit], [IMG, IMG]),
    "an array of sizes": (slopes_by_sizes, [unit, unit], [IMG, IMG]),
    "a mask that always holds": (range_of_everything, [real, real], [NC, NC]),
    "a filter for each channel": (blurred_channels, [unit, unit], [IMG, IMG]),
    "nearest exact": (lambda p, t: F.mse_loss(p, F.interpolate(t, scale_factor=2, mode="nearest-exact")), [unit, unit],
                      [[(2, 3, 6, 8), (3, 3, 10, 4)], [(2, 3, 3, 4), (3, 3, 5, 2)]]),
    "giou": (giou, [boxes, boxes], [[(6, 4), (9, 4)]] * 2),
    "gaussian nll, full": (
        lambda p, t, s: -torch.distributions.MultivariateNormal(p, definite(s), validate_args=False).log_prob(t).mean(),
        [real, real, real], [NC, NC, MATRICES],
    ),
    "mahalanobis": (
        lambda p, t, s: torch.einsum("bi,bij,bj->b", p - t, torch.linalg.inv(definite(s)), p - t).mean(),
        [real, real, real], [NC, NC, MATRICES],
    ),
    "solved": (
        lambda p, t: torch.linalg.solve(definite(p), t).square().mean(), [real, real], [[(5, 5), (7, 7)]] * 2,
    ),
    "solved by a factor": (
        lambda p, t: torch.cholesky_solve(t, torch.linalg.cholesky(definite(p), upper=True), upper=True).square().mean(),
        [real, real], [[(5, 5), (7, 7)]] * 2,
    ),
    "nuclear norm": (lambda p: torch.linalg.norm(p, "nuc") / p.shape[0], [real], [[(8, 5), (4, 7)]]),
    "largest singular value": (lambda p: torch.svd(p)[1][0] ** 2, [real], [[(4, 7), (6, 5)]]),
    "of low rank": (low_rank, [real], [[(8, 5), (7, 4)]]),
    "whitened": (by_eigenvectors, [real, real], [[(12, 4), (15, 5)]] * 2),
    "entropy of eigenvalues": (
        lambda p: torch.linalg.eigvalsh(p.T @ p / len(p) + 0.1 * torch.eye(p.shape[1])).log().sum(), [real], [[(8, 5), (7, 4)]],
    ),
    "log of a determinant": (lambda p: torch.logdet(definite(p)) + torch.det(p), [real], [[(5, 5), (7, 7)]]),
    "erfinv": (lambda p: torch.erfinv(0.9 * torch.tanh(p)).square().mean(), [real], [NC]),
    "classes by rank": (
        lambda p, t: F.cross_entropy(p @ p.T, torch.unique(t, return_inverse=True)[1]), [real, classes(4)], [NC, N],
    ),
    "log cosh": (lambda p, t: torch.log(torch.cosh(p - t)).mean(), [real, real], [NC, NC]),
    "cosine": (lambda p, t: 1 - F.cosine_similarity(p, t, dim=-1).mean(), [real, real], [NC, NC]),
    "pairwise hinge": (
        lambda s, y: F.relu(1 - (s[:, None] - s[None, :]) * torch.sign(y[:, None] - y[None, :])).mean(), [real, real], [N, N]),
    "gaussian nll": (nn.GaussianNLLLoss(full=True), [real, real, positive], [NC, NC, NC]),
    "a check of arguments": (checked, [real, positive], [NC, NC]),
    "clip": (clip, [real, real], [NC, NC]),
    "nt-xent": (nt_xent, [real, real], [NC, NC]),
    "simclr": (simclr, [real, real], [NC, NC]),
    "masked mse": (lambda p, t, m: F.mse_loss(p[m > 0.5], t[m > 0.5]), [real, real, unit], [NC, NC, NC]),
    "masked rows": (lambda p, t: F.cross_entropy(p[t != 2], t[t != 2]), [real, classes(4)], [NC, N]),
    "masked silog": (masked_silog, [positive, positive], [IMG, IMG]),
    "wing by parts": (wing_by_parts, [real, real], [NC, NC]),
    "written by parts": (by_parts, [real, real], [NC, NC]),
    "auc": (auc, [real, lambda rng, shape: (np.arange(*shape) % 3 == 0).astype(np.float32)], [N, N]),
    "cox": (cox, [real, positive, lambda rng, shape: (np.arange(*shape) % 2).astype(np.float32)], [N, N, N]),
    "ranknet": (ranknet, [real, real], [NC, NC]),
    "berhu": (berhu, [real, real], [NC, NC]),
    "without gradient": (without_gradient, [real, real], [NC, NC]),
    "coral": (coral, [real, real], [NC, [(5, 4), (7, 5)]]),
    "halves": (halves, [real], [[(6, 4), (10, 5)]]),
    "gelu and hypot": (lambda p, t: torch.hypot(F.gelu(p), F.gelu(t, approximate="tanh")).mean(), [real, real], [NC, NC]),
    "contrastive pairs": (contrastive_pairs, [real, classes(3)], [NC, N]),
    "tuplet": (tuplet, [real, classes(3)], [NC, N]),
    "guarded precision": (average_precision, [real, classes(3)], [NC, N]),
    "distance of boxes": (box_distance, [positive, positive], [((6, 4), (9, 4))] * 2),
    "lovasz, in float32": (lovasz_of_floats, [real, binary], [N, N]),
    "simclr, positive first": (positive_first, [real, real], [NC, NC]),
    "lovasz of the classes present": (lovasz_of_present, [simplex, classes(3)], [NC, N]),
    "depth, image by image": (depth_image_by_image, [real, real], [MAP, MAP]),
    "prototypes": (prototypes, [real, classes(3)], [NC, N]),
    "harmonised gradients": (harmonised, [real, binary], [NC, NC]),
    "hard entries, or the hardest": (hard_or_hardest, [real, real], [NC, NC]),
    "the hardest entries": (hardest, [real, classes(4)], [[(9, 4), (20, 5)], [(9,), (20,)]]),
    "the smallest of some": (
        lambda p, t: torch.sort((p - t).abs()[p > t])[0][:2].sum() + (p - t)[p > t].cumsum(0).mean(), [real, real], [NC, NC]),
    "lovasz of known labels": (lovasz_of_known, [real, classes(3)], [MAP, MAP]),
    "lovasz, image by image": (lovasz_image_by_image, [real, classes(2)], [MAP, MAP]),
    "decisions": (lambda p, t: (p - t).pow(2).mean() if p.sum() > 0 else (p - t).abs().mean(), [real, real], [NC, NC]),
    "a number of the values": (lambda p, t: ((p - t) / max(t.abs().max().item(), 0.1)).pow(2).mean(), [real, real], [NC, NC]),
    "decoupled": (decoupled, [real, real], [NC, NC]),
    "distance to a label": (
        lambda p, t: ((torch.arange(p.shape[1]) - t[:, None]).abs() * p).mean(), [real, classes(4)], [NC, N]),
    "to the size of the target": (
        lambda p, t: F.mse_loss(F.interpolate(p, t.shape[2:], mode="bilinear", align_corners=True), t), [real, real],
        [[(2, 3, 4, 5), (3, 3, 6, 4)], [(2, 3, 9, 7), (3, 3, 8, 11)]]),
    "an even size by padding": (
        lambda p, t: F.l1_loss(*(F.avg_pool2d(F.pad(x, (0, x.shape[3] % 2)), (1, 2)) for x in (p, t))), [real, real],
        [[(2, 3, 4, 5), (3, 3, 6, 4)]] * 2),
    "a frame that is left out": (censuses_apart, [real, real], [IMG, IMG]),
    "entry by entry": (entry_by_entry, [real, classes(4)], [NC, N]),
    "every other entry": (pyramid, [real, real], [NC, NC]),
    "a diagonal by its stride": (without_itself, [real], [[(7, 4), (9, 5)]]),
    "systems by their positions": (least_squares, [real, real], [NC, NC]),
    "normals": (
        lambda p, t: 1 - F.cosine_similarity(torch.cross(p[:, 0], p[:, 1], dim=1), torch.linalg.cross(t, p[:, 1]), dim=1).mean(),
        [real, real], [[(6, 2, 3), (9, 2, 3)], [(6, 3), (9, 3)]]),
    "pooled to the other's size": (
        lambda p, t: ((F.adaptive_avg_pool2d(p, t.shape[2:]) - t).pow(2) * F.adaptive_max_pool2d(p, t.shape[2:])).mean(), [real, real],
        [[(2, 3, 8, 8), (3, 2, 6, 9)], [(2, 3, 4, 4), (3, 2, 3, 5)]]),
    "patches of a square image": (
        masked_patches, [real, unit, binary],
        [[(2, 16, 48), (3, 9, 48)], [(2, 3, 16, 16), (3, 3, 12, 12)], [(2, 16), (3, 9)]]),
    "the hardest voxels": (
        lambda p, t: F.cross_entropy(p, t, reduction="none").flatten().topk(int(t.numel() * 0.2))[0].mean(), [real, classes(3)],
        [[(2, 3, 6, 5, 4), (3, 3, 4, 5, 7)], [(2, 6, 5, 4), (3, 4, 5, 7)]]),
    "targets within bounds": (within, [real, real], [NC, NC]),
    "batches as they are normalised": (whitened, [real, real], [NC, NC]),
    "classes of another's scores": (
        lambda p, t: (F.cross_entropy(p, t.softmax(1).max(1)[1], reduction="none") * t[:, 0].gt(0)).mean(), [real, real], [NC, NC]),
    "a bound by a number, and one by another": (
        lambda p, t: torch.clamp(p - t, -0.5, t.abs().max()).pow(2).mean(), [real, real], [NC, NC]),
    "correlations": (
        lambda p, t: 1 - torch.corrcoef(torch.stack([p, t]))[0, 1] + torch.cov(torch.stack([p, t]), correction=0).trace(), [real, real], [N, N]),
    "a covariance for each": (
        lambda p, t: torch.cholesky_solve(p[..., None], torch.linalg.cholesky(t)).square().mean(), [real, covariances],
        [[(6, 3), (4, 5)], [(6, 3, 3), (4, 5, 5)]]),
    "distances under a mask": (lambda p, t, m: ((p - t) * m[:, None]).norm(dim=1).mean(), [real, real, binary], [NC, NC, N]),
    "a term that is ready": (lambda p, t, c: F.l1_loss(p, t) + c, [real, real, positive], [NC, NC, [(), ()]]),
    "class sums": (class_sums, [real, classes(4)], [NC, N]),
    "median": (lambda p, t: (p - t).abs().median(), [real, real], [N, N]),
    "scans": (lambda p, t: ((p.cummax(1).values - t.cummin(1).values) * torch.ones_like(p).cumsum(1)
                            * torch.sigmoid(p).cumprod(1)).mean(), [real, real], [NC, NC]),
    "generalised dice": (
        lambda p, t: 1 - 2 * ((p * t).sum((0, 2, 3)) / t.sum((0, 2, 3)).clamp(min=1e-6) ** 2).sum()
        / ((p + t).sum((0, 2, 3)) / t.sum((0, 2, 3)).clamp(min=1e-6) ** 2).sum(), [unit, unit], [IMG, IMG]),
}  # fmt: skip


OF_MANY_DIMENSIONS = {"simclr, positive first"}
"""Ten, of which TensorFlow takes eight: JAX answers in its place."""


@pytest.mark.parametrize("name", CASES)
def test_published_loss(name: str) -> None:
    second_library = "jax" if name in OF_MANY_DIMENSIONS else "tensorflow"
    fn, kinds, shapes = CASES[name]
    first, second = ([s[i] for s in shapes] for i in (0, 1))
    loss = lf.adopt(fn, *(torch.from_numpy(np.asarray(a)) for a in drawn(name, kinds, first)))
    for where in (first, second):
        arrays = drawn(name + " again", kinds, where)
        check(loss, original(fn), arrays, also=second_library if where is second else "")
        tensors = [torch.from_numpy(a) for a in arrays]
        at = loss.arguments.index(loss.predictions[0])
        value, gradient = original(fn)(arrays, at)
        tensors[at].requires_grad_(True)
        mine = loss(*tensors)
        mine.sum().backward()
        agree("value in PyTorch", mine.detach(), value)
        agree("gradient in PyTorch", tensors[at].grad, gradient)


def spreads_of_several(p):
    """A loop whose turns ask for more than one entry."""
    total = 0.0
    for k in range(3):
        some = p[:, 0][p[:, 1] > k - 1.0]
        if len(some) > 1:
            total = total + some.var()
    return total


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda p: p.sum() if sum(i for i in range(9) if p[i % 6, 0] > i) > 3 else -p.sum(), r"test_adopt_torch.py:\d+ .*decisions? from values"),
        (lambda p: p * p if p.sum() > 0 else p.sum(), "decision from values"),
        (lambda p: torch.zeros(int(p.abs().sum())).sum() * p.sum(), r"test_adopt_torch.py:\d+ .*zeros"),
        (lambda p: p[p > 0], "selection|truth values"),
        (lambda p: (torch.roll(p[p > 0], 1, 0) * p[p > 0]).sum(), "truth values"),
        (lambda p: sum(x.exp() for x in p[:, 0][p[:, 1] > 0]), r"test_adopt_torch.py:\d+ .*one by one"),
        (lambda p: F.dropout(p, 0.5).sum(), "random"),
        (lambda p: torch.where(p > 0, (p * (p > 0)).sqrt(), 0.0).sum(), r"SqrtBackward0, in .*nan at \d+ of 24 entries"),
        (lambda p: p.mul_(2).sum(), "in place"),
        (lambda p: torch.linalg.qr(p)[0].sum(), r"qr.*test_adopt_torch.py:\d+ .*qr"),
        (lambda p: torch.bincount(p[:, 0].long().abs()).sum() * p.sum(), r"test_adopt_torch.py:\d+ .*minlength"),
        (lambda p: F.ctc_loss(p[:, None].log_softmax(2), torch.ones(1, 2, dtype=torch.long), torch.tensor([6]), torch.tensor([2])), r"test_adopt_torch.py:\d+ .*ctc_loss"),
        (lambda p: {"loss": p.sum()}, "dict"),
        (lambda p: Clipped.apply(p).sum(), "Clipped.backward is the derivative of nothing"),
        (lambda p: p.sum() * torch.tensor(p.detach().numpy().mean()), r"test_adopt_torch.py:\d+ .*handed to NumPy"),
        (lambda p: p.register_hook(lambda g: g / 2) or p.sum(), "register_hook"),
        (lambda p: (p.sum(), p.mean()), "tuple, .*one of its parts"),
        (spreads_of_several, r"test_adopt_torch.py:\d+ .*more than one entry"),
    ],
)  # fmt: skip
def test_refusals_name_the_operation_and_the_line(fn: Callable[..., Any], said: str) -> None:
    with pytest.raises(lf.errors.AdoptionError, match=said) as refusal:
        lf.adopt(fn, torch.from_numpy(real(np.random.default_rng(0), (6, 4))))
    assert re.search(r"test_adopt_torch.py:\d+ ", str(refusal.value))


def test_a_refusal_after_too_many_steps_names_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from lossforge.adoption import reading

    monkeypatch.setattr(reading, "_MOST_STEPS", 3)
    with pytest.raises(lf.errors.AdoptionError, match=r"test_adopt_torch.py:\d+ .*too many steps"):
        lf.adopt(lambda p: p.exp().sum(), torch.from_numpy(real(np.random.default_rng(0), (6, 4))))


def lost_digits(pred):
    steps = 1e-6 * torch.sigmoid(pred)
    near = torch.sigmoid(pred + steps) - torch.sigmoid(pred)
    return torch.log(near.clamp(min=1e-12)).mean()


def test_a_refusal_names_the_line_at_which_the_original_loses_digits() -> None:
    with pytest.raises(lf.errors.AdoptionError, match=r"loses digits in float32 at this line: .*\(near = "):
        lf.adopt(lost_digits, torch.from_numpy(real(np.random.default_rng(0), (6, 4))))


def test_a_refusal_names_the_line_from_which_on_it_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if one operation were read wrongly."""
    from lossforge.frontends import torch as front_end

    def wrong(imp, step, x, y):
        return imp.map(lambda a, b: a * a + b * b, x, y)

    monkeypatch.setattr(front_end, "RULES", {**front_end.RULES, "hypot.default": wrong})

    def fn(pred):
        error = torch.sigmoid(pred) * 2
        length = torch.hypot(error, pred)
        return (length + error).mean()

    with pytest.raises(lf.errors.AdoptionError, match=r"differ from this line on: .*\(length = "):
        lf.adopt(fn, torch.from_numpy(real(np.random.default_rng(0), (6, 4))))


def largest_if_any(x, labels):
    try:
        return x[labels == 1].max()
    except RuntimeError:
        return x.sum() * 0


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [1, 2, 3, 4], [1, 1, 2, 3], [2, 2, 2, 2], [0, 0, 0, 0]])
@pytest.mark.parametrize(
    "fn",
    [
        contrastive_pairs,
        average_precision,
        ways_of_other_shapes,
        all_or_some,
        guards_of_guards,
        prototypes,
        two_or_more,
        heavier_if_few,
        beyond_the_extremes,
        largest_if_any,
    ],
)
def test_guards_against_nothing(fn: Callable[..., Any], labels: list[int], rng: np.random.Generator) -> None:
    """What is done where there is no pair is done here too, with its gradient."""
    arrays = [real(rng, (4, 3)), np.array(labels)]
    loss = lf.adopt(fn, torch.from_numpy(real(rng, (6, 3))), torch.tensor([0, 0, 1, 1, 2, 2]))
    check(loss, original(fn), arrays)


def halved(pred, true):
    assert min(pred.shape[2:]) > 100
    total = (pred - true).pow(2).mean()
    pred, true = (F.avg_pool2d(x, 2, padding=[n % 2 for n in x.shape[2:]]) for x in (pred, true))
    return total + (pred - true).abs().mean()


def halved_where_near(pred, true):
    """Nothing for images that are unlike, as drawn ones are."""
    assert min(pred.shape[2:]) > 100
    pred, true = (F.avg_pool2d(x, 2, padding=[n % 2 for n in x.shape[2:]]) for x in (pred, true))
    return F.relu(0.02 - (pred - true).pow(2).mean())


def halved_signal(pred, true):
    assert pred.shape[2] > 100
    return F.avg_pool1d(pred - true, 2, padding=pred.shape[2] % 2).pow(2).mean()


@pytest.mark.parametrize(
    "fn, space, others",
    [
        (halved, (112, 104), [(113, 107), (112, 106)]),
        (halved_where_near, (112, 104), [(113, 107), (112, 106)]),
        (halved, (304, 288), [(305, 290)]),
        (halved_signal, (128,), [(129,), (130,)]),
    ],
)
def test_large_arrays_that_are_halved_otherwise(
    fn: Any, space: tuple[int, ...], others: list[tuple[int, ...]], rng: np.random.Generator
) -> None:
    """A loss for large arrays alone, which fills up odd sizes: those that it is read at are all even."""

    def near(space: tuple[int, ...]) -> list[np.ndarray]:
        pred = unit(rng, (1, 1, *space))
        return [pred, pred + np.float32(0.05) * real(rng, pred.shape)]

    loss = lf.adopt(fn, *map(torch.from_numpy, near(space)))
    for other in (space, *others):
        check(loss, original(fn), near(other))


def gray(pred, true):
    if pred.shape[1] == 3:
        weights = torch.tensor([0.3, 0.6, 0.1]).view(1, 3, 1, 1)
        pred, true = ((x * weights).sum(1) for x in (pred, true))
    return (pred - true).abs().mean()


def of_many(pred, true):
    return (pred - true).pow(2).mean() if len(pred) > 100 else (pred - true).abs().mean()


def of_large(pred, true):
    rows, columns = pred.shape[-2:]
    return (pred - true)[..., : rows // 2, :].abs().mean() if columns >= 64 else (pred - true).abs().mean()


@pytest.mark.parametrize(
    "fn, shape, others",
    [
        (gray, (2, 1, 8, 9), [(2, 3, 8, 9), (2, 4, 8, 9), (5, 1, 7, 8)]),
        (of_many, (16, 3), [(120, 3), (101, 3), (100, 5)]),
        (of_large, (2, 6, 9), [(2, 6, 64), (2, 6, 63), (2, 70, 66)]),
    ],
)
def test_sizes_that_the_text_compares_with(fn: Any, shape: Any, others: list[Any], rng: np.random.Generator) -> None:
    """Another way for images in colour, for many rows, for large images; the examples have none of these sizes."""
    loss = lf.adopt(fn, *(torch.from_numpy(unit(rng, shape)) for _ in range(2)))
    for other in (shape, *others):
        check(loss, original(fn), [unit(rng, other) for _ in range(2)])


def test_a_deviation_of_nothing_has_no_slope(rng: np.random.Generator) -> None:
    """PyTorch's gradient of a standard deviation is 0 where that is 0, and NaN of the square root of a variance."""

    def fn(p):
        return p.std(0).sum()

    loss = lf.adopt(fn, torch.from_numpy(real(rng, (6, 3))))
    check(loss, original(fn), [np.repeat(real(rng, (1, 3)), 4, 0)])
    check(loss, original(fn), [real(rng, (4, 3))])


def test_the_source_of_a_user_may_lie_in_a_folder_of_any_name() -> None:
    """A project's folder may be called as PyTorch's or this package's are."""
    from lossforge.frontends import sources

    own = ("torch", "lossforge")
    assert not any(sources.is_of(f"/home/me/{name}/losses.py", own) for name in own)
    assert all(sources.is_of(file, own) for file in (torch.__file__, lf.__file__))


def padded_list_net(scores, relevance, eps=1e-10, padding=-1):
    padded = relevance == padding
    target = relevance.masked_fill(padded, -torch.inf).softmax(1)
    return -(target * (scores.masked_fill(padded, -torch.inf).softmax(1) + eps).log()).sum(1).mean()


def test_a_number_is_of_the_parameter_that_it_follows(rng: np.random.Generator) -> None:
    """A tiny parameter changes by less than what rounding leaves of its formulas, of which any number might then be one."""
    arrays = [real(rng, (6, 4)), rng.integers(0, 4, (6, 4)).astype(np.float32)]
    loss = lf.adopt(padded_list_net, *map(torch.from_numpy, arrays))
    check(loss, original(padded_list_net), arrays)
    agree(
        "value",
        loss(*arrays, eps=1e-3, padding=2),
        padded_list_net(*map(torch.from_numpy, arrays), eps=1e-3, padding=2).numpy(),
    )


class Centred(nn.Module):
    """A centre that follows the targets, which are compared with it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(1, 4))
        self.calls = 0

    def forward(self, pred, true):
        loss = (pred - true + self.centre).pow(2).mean()
        self.centre = self.centre * 0.9 + true.detach().mean(0, keepdim=True) * 0.1
        return loss


class Watched(nn.Module):
    """A loss that notes its average, which it makes no use of."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(()))

    def forward(self, pred, true):
        losses = (pred - true).pow(2)
        with torch.no_grad():
            self.average.mul_(0.9).add_(0.1 * losses.mean())
        return losses.mean()


def test_what_a_module_notes_for_later_is_no_part_of_its_loss(rng: np.random.Generator) -> None:
    arrays = [real(rng, (6, 4)), real(rng, (6, 4))]
    module = Watched()
    loss = lf.adopt(module, *map(torch.from_numpy, arrays))
    assert module.average == 0  # as it was given
    check(loss, original(Watched()), arrays)


class Scaled(nn.Module):
    """The scale of the first batch is that of all others."""

    scale: Any = None

    def forward(self, pred, true):
        if self.scale is None:
            self.scale = true.abs().max()
        return (pred - true).abs().mean() / self.scale


@pytest.mark.parametrize(("make", "memory"), [(Centred, "centre"), (Scaled, "scale")])
def test_a_module_whose_loss_depends_on_earlier_calls_is_refused(
    make: Callable[[], Any], memory: str, rng: np.random.Generator
) -> None:
    module = make()
    with pytest.raises(lf.errors.AdoptionError, match=f"{memory}.*argument"):
        lf.adopt(module, torch.from_numpy(real(rng, (6, 4))), torch.from_numpy(real(rng, (6, 4))))
    assert not np.asarray(getattr(module, memory)).any()  # as it was given


def test_an_axis_that_one_other_size_fits_by_chance_is_not_taken_for_free() -> None:
    def half(pred):  # 4 of 8 entries, and 3 of 7, are also all but 4
        return pred.topk(int(0.5 * len(pred)))[0].mean()

    rng = np.random.default_rng(1)
    x = real(rng, (6,))
    try:
        value = lf.adopt(half, torch.from_numpy(real(rng, (8,))))(x)
    except lf.LossforgeError:
        return
    agree("value", value, half(torch.from_numpy(x)))


@pytest.mark.parametrize("positions", [[0, 1], [0, 2], [1]])
def test_some_columns_by_constant_positions(positions: list[int], rng: np.random.Generator) -> None:
    """0, 1 … that end before the axis does are positions like others, not the axis itself."""

    def some_columns(pred: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        return ((pred[:, positions] - true[:, positions]) ** 2).mean()

    def arrays(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for _ in range(2))  # type: ignore[return-value]

    loss = lf.adopt(some_columns, *arrays(6, 4))
    for shape in ((6, 4), (9, 7)):
        pred, true = arrays(*shape)
        value, gradient = loss.value_and_grad(pred.numpy(), true.numpy())
        original = some_columns(pred.requires_grad_(), true)
        original.backward()
        np.testing.assert_allclose(value, original.detach().numpy(), rtol=1e-5)
        np.testing.assert_allclose(gradient, pred.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_constants_are_what_was_written() -> None:
    """float32 holds 0.587 with an error of 2e-8, which a call in float64 would show."""

    def luminance_error(pred: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=pred.dtype)
        return (((pred - true) @ weights) ** 2).mean()

    rng = np.random.default_rng(0)
    arrays = [torch.from_numpy(rng.random((8, 3))) for _ in range(2)]
    loss = lf.adopt(luminance_error, *(a.float() for a in arrays))
    np.testing.assert_allclose(loss(*arrays), luminance_error(*arrays), rtol=1e-12)


def test_steps_that_one_size_brings_about() -> None:
    """A loss that takes another way for three channels is read as it is for the channels of the examples."""

    def grey_error(pred: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        if pred.shape[1] == 3:
            weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
            pred, true = (pred * weights).sum(1, keepdim=True), (true * weights).sum(1, keepdim=True)
        return F.mse_loss(pred, true)

    rng = np.random.default_rng(0)
    for channels in (3, 4):
        shapes = (2, channels, 5, 6), (4, channels, 7, 3)
        loss = lf.adopt(grey_error, *(torch.from_numpy(unit(rng, shapes[0])) for _ in range(2)))
        for shape in shapes:
            check(loss, original(grey_error), [unit(rng, shape) for _ in range(2)])


def test_a_softmax_is_read_as_itself() -> None:
    """Not as exp(x − max) / Σ, whose maximum would have a derivative of its own."""

    def dice(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        pred = torch.softmax(logits, 1)
        return (1 - 2 * (pred * true).sum((0, 2)) / (pred + true).sum((0, 2))).mean()

    adopted = lf.adopt(dice, torch.randn(2, 3, 8), torch.rand(2, 3, 8), layout="batch class space")
    assert "softmax(logits, class)" in adopted.explain().gradient
    assert "max[" not in adopted.explain().gradient


@pytest.mark.parametrize("weight", [None, 3.0])
def test_cross_entropy_with_logits_is_one_softplus(weight: float | None) -> None:
    """PyTorch shifts it by hand, max(−x, 0) + log(exp(−max) + exp(−x − max)): twice the work, and a kink at 0."""
    positive = None if weight is None else torch.tensor(weight)
    loss = lf.adopt(
        lambda pred, true: F.binary_cross_entropy_with_logits(pred, true, pos_weight=positive),
        torch.randn(8), torch.rand(8),
    )  # fmt: skip
    assert {n.op for n in topological([loss.definition().value])}.isdisjoint({"logaddexp", "log", "exp", "maximum"})
    np.testing.assert_allclose(loss.grad(np.zeros(4), np.ones(4)), -(weight or 1) / 8, rtol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_loss_that_holds_tensors_on_a_gpu():
    generator = torch.Generator().manual_seed(3)
    weight = torch.rand(5, generator=generator).cuda()
    logits, target = (
        torch.randn(64, 5, generator=generator).cuda(),
        torch.randint(0, 5, (64,), generator=generator).cuda(),
    )
    loss = lf.adopt(torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1), logits, target)
    leaf = logits.clone().requires_grad_()
    loss(leaf, target).backward()
    exact = logits.double().requires_grad_()
    torch.nn.functional.cross_entropy(exact, target, weight.double(), label_smoothing=0.1).backward()
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=1e-8)


def test_pooling_by_a_size_that_is_tried_is_told_apart():
    """Sizes at which the reading parts from the function are tried on the way; padded arrays are longer than their axes there."""

    def flow(a, b):
        if a.size(2) > b.size(2):
            a = torch.nn.functional.adaptive_avg_pool2d(a, (b.size(2), b.size(3)))
        a, b = a.unsqueeze(1).flatten(3), b.unsqueeze(2).flatten(3)
        return (a * b).mean(-1).pow(2).mean()

    generator = torch.Generator().manual_seed(5)
    a, b = (torch.randn(shape, generator=generator) for shape in ((3, 4, 8, 6), (3, 5, 4, 3)))
    torch.testing.assert_close(lf.adopt(flow, a, b)(a, b), flow(a, b))


def test_a_number_that_shapes_the_graph_may_change_from_call_to_call():
    def iterated(pred, target, steps=2):
        for _ in range(int(steps)):
            pred = torch.tanh(pred)
        return ((pred - target) ** 2).mean()

    generator = torch.Generator().manual_seed(7)
    pred, target = (torch.randn(4, 3, generator=generator).requires_grad_(i == 0) for i in range(2))
    loss = lf.adopt(iterated, pred.detach(), target)
    for steps in (2, 2, 5, 5, 2.0, 5, 3):  # calls of a known form among them
        torch.testing.assert_close(loss(pred, target, steps=steps), iterated(pred, target, steps=steps))


def test_an_axis_that_is_too_short_for_its_parts_is_refused():
    def steps(signal):
        return (signal[:, 1:] - signal[:, :-1]).abs().sum()

    loss = lf.adopt(steps, torch.ones(4, 5))
    assert loss(torch.ones(4, 1, requires_grad=True)).item() == 0
    with pytest.raises(
        lf.errors.ShapeError, match=r"'.*' has size 0, but this loss takes parts of it that leave out 1 entries"
    ):
        loss(torch.ones(4, 0, requires_grad=True))


def sum_by_length(pred, target, mask, other):
    chosen = pred[mask]
    return (chosen - target[mask]).pow(2).sum() / max(len(chosen), 1)


def sum_by_length_and_a_little(pred, target, mask, other):
    chosen = pred[mask]
    return (chosen - target[mask]).pow(2).sum() / (chosen.numel() + 1e-6)


def mean_of_both(pred, target, mask, other):
    both = torch.cat([(pred[m] - target[m]).abs() for m in (mask, other)])
    if both.numel() == 0:
        return pred.sum() * 0
    return both.mean()


@pytest.mark.parametrize("fn", [sum_by_length, sum_by_length_and_a_little, mean_of_both], ids=lambda f: f.__name__)
def test_selections_without_entries(fn):
    """Each by itself and all together: sums of nothing are zero, though examples never show them."""
    generator = torch.Generator().manual_seed(11)
    pred, target = (torch.randn(6, 5, generator=generator) for _ in range(2))
    some, more = (torch.rand(6, 5, generator=generator) > 0.4 for _ in range(2))
    loss, none = lf.adopt(fn, pred, target, some, more), torch.zeros(6, 5, dtype=torch.bool)
    for mask in (some, none, ~none):
        for other in (more, none):
            mine, theirs = (pred.clone().requires_grad_() for _ in range(2))
            found, expected = loss(mine, target, mask, other), fn(theirs, target, mask, other)
            torch.testing.assert_close(found, expected)
            found.backward(), expected.backward()
            torch.testing.assert_close(mine.grad, theirs.grad)
