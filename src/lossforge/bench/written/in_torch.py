"""The losses written out in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid


def huber(pred: Tensor, true: Tensor, delta: float = 1.0) -> Tensor:
    """Huber's loss, mean."""
    error = (pred - true).abs()
    quadratic = error.clamp(max=delta)
    return (0.5 * quadratic**2 + delta * (error - quadratic)).mean()


def focal(logits: Tensor, true: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Sigmoid focal loss, mean."""
    hit, miss = logsigmoid(logits), logsigmoid(-logits)
    positive = alpha * true * torch.exp(gamma * miss) * hit
    return (-positive - (1 - alpha) * (1 - true) * torch.exp(gamma * hit) * miss).mean()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Softmax cross-entropy, mean."""
    return -log_softmax(logits, 1).gather(1, target[:, None]).mean()


def dice(logits: Tensor, true: Tensor, smooth: float = 1e-5) -> Tensor:
    """Softmax Dice loss over (batch, class, *space), mean."""
    pred = logits.softmax(1)
    axes = tuple(range(2, pred.ndim))
    overlap = (pred * true).sum(axes)
    return (1 - (2 * overlap + smooth) / (pred.sum(axes) + true.sum(axes) + smooth)).mean()


def info_nce(anchor: Tensor, positive: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE over all pairs of a batch, mean."""
    similarity = anchor @ positive.T / temperature
    return (similarity.logsumexp(1) - similarity.diagonal()).mean()
