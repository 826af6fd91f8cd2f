"""What is measured: losses, shapes, and who else computes the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """One loss at one shape: value and gradient with respect to the first array."""

    name: str
    title: str
    make: Callable[[np.random.Generator, bool], Arrays]
    """The inputs; a small variant of the same form if the flag is set."""
    loss: Callable[[], Any]
    """The `Loss`."""
    peers: tuple[str, ...]
    half: bool = False
    """Whether the prediction is in bfloat16 (for contenders that know it)."""
    repeat: int = 1
    """Calls per measurement, for calls too short to time one by one."""
    through_numpy: bool = True
    wrt: int = 0
    """Which of the arrays is the prediction."""
    original: Any = None
    """The function of another library that the loss was adopted from."""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _pair(rng: np.random.Generator, small: bool) -> Arrays:
    n = 1 << (12 if small else 24)
    return {"pred": _normal(rng, n), "true": _normal(rng, n)}


def _triple(rng: np.random.Generator, small: bool) -> Arrays:
    return {**_pair(rng, small), "weight": rng.random((1 << (12 if small else 24)), np.float32)}


def _labels(rng: np.random.Generator, small: bool) -> Arrays:
    n = 1 << (12 if small else 24)
    return {"logits": 2 * _normal(rng, n), "true": (rng.random(n) < 0.1).astype(np.float32)}


def _classes(rng: np.random.Generator, small: bool) -> Arrays:
    rows, classes = (16, 100) if small else (2048, 32000)
    return {"logits": _normal(rng, rows, classes), "target": rng.integers(0, classes, rows)}


def _volumes(rng: np.random.Generator, small: bool) -> Arrays:
    side = 8 if small else 96
    hot = np.eye(4, dtype=np.float32)[rng.integers(0, 4, (2, side, side, side))]
    return {"logits": _normal(rng, 2, 4, side, side, side), "true": np.ascontiguousarray(np.moveaxis(hot, -1, 1))}


def _volumes_last(rng: np.random.Generator, small: bool) -> Arrays:
    def last(a: np.ndarray) -> np.ndarray:
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)

    return {name: last(a) for name, a in _volumes(rng, small).items()}


def _embeddings(rng: np.random.Generator, small: bool) -> Arrays:
    def unit(a: np.ndarray) -> np.ndarray:
        return a / np.linalg.norm(a, axis=-1, keepdims=True)

    shape = (16, 8) if small else (1024, 256)
    return {"anchor": unit(_normal(rng, *shape)), "positive": unit(_normal(rng, *shape))}


def _small(rng: np.random.Generator, small: bool) -> Arrays:
    return {"pred": _normal(rng, 64, 10), "true": _normal(rng, 64, 10)}


def _huber() -> Any:
    import lossforge as lf

    @lf.loss
    def huber(pred, true, *, delta=1.0):  # type: ignore[no-untyped-def]
        error = lf.abs(pred - true)
        quadratic = lf.minimum(error, delta)
        return 0.5 * quadratic**2 + delta * (error - quadratic)

    return huber


def _weighted() -> Any:
    import lossforge as lf

    @lf.loss
    def weighted_squared_error(pred, true, w):  # type: ignore[no-untyped-def]
        return lf.sum(w * (true - pred) ** 2)

    return weighted_squared_error


def _focal() -> Any:
    import lossforge as lf

    @lf.loss
    def focal(logits, true, *, gamma=2.0, alpha=0.25):  # type: ignore[no-untyped-def]
        hit, miss = lf.log_sigmoid(logits), lf.log_sigmoid(-logits)
        positive = alpha * true * lf.exp(gamma * miss) * hit
        return -positive - (1 - alpha) * (1 - true) * lf.exp(gamma * hit) * miss

    return focal


def _cross_entropy() -> Any:
    import lossforge as lf

    @lf.loss("batch class, batch -> batch")
    def cross_entropy(logits, target):  # type: ignore[no-untyped-def]
        return -lf.take(lf.log_softmax(logits, "class"), target, "class")

    return cross_entropy


def _dice() -> Any:
    import lossforge as lf

    @lf.loss("batch class *space, batch class *space -> batch class")
    def softmax_dice(logits, true, *, smooth=1e-5):  # type: ignore[no-untyped-def]
        pred = lf.softmax(logits, "class")
        overlap = lf.sum(pred * true, "*space")
        return 1 - (2 * overlap + smooth) / (lf.sum(pred, "*space") + lf.sum(true, "*space") + smooth)

    return softmax_dice


def _info_nce() -> Any:
    import lossforge as lf

    @lf.loss("batch d, batch d -> batch")
    def info_nce(anchor, positive, *, temperature=0.1):  # type: ignore[no-untyped-def]
        similarity = lf.sum(anchor * lf.rename(positive, "batch", "other"), "d") / temperature
        return lf.logsumexp(similarity, "other") - lf.sum(anchor * positive, "d") / temperature

    return info_nce


_ELEMENTWISE = ("torch eager", "torch F", "torch compile", "jax jit", "tensorflow xla", "keras")
_WRITTEN = ("torch eager", "torch compile", "jax jit", "tensorflow xla", "keras")

WORKLOADS: tuple[Workload, ...] = (
    Workload("huber", "Huber, mean, 2^24", _pair, _huber, _ELEMENTWISE),
    Workload("weighted", "weighted squared error, 2^24", _triple, _weighted, ("numpy by hand",)),
    Workload("focal", "sigmoid focal, 2^24", _labels, _focal, _WRITTEN),
    Workload(
        "cross-entropy", "softmax cross-entropy, 2048 × 32000", _classes, _cross_entropy,
        ("torch F", "torch compile", "jax jit", "keras"),
    ),
    Workload("dice", "softmax Dice, channels first, 2 × 4 × 96³", _volumes, _dice, ("monai", "torch compile")),
    Workload("dice-last", "softmax Dice, channels last, 2 × 4 × 96³", _volumes_last, _dice, ("monai", "torch compile")),
    Workload("info-nce", "InfoNCE, 1024 × 256", _embeddings, _info_nce, ("torch eager", "torch compile"), repeat=5),
    Workload("small", "Huber, 64 × 10", _small, _huber, _ELEMENTWISE, repeat=200),
    Workload(
        "focal-half", "sigmoid focal, bfloat16, 2^24", _labels, _focal, ("torch eager", "torch compile", "jax jit"),
        half=True, through_numpy=False,
    ),
)  # fmt: skip
"""The table of `lossforge bench`."""


def workload(name: str) -> Workload:
    """The workload of that name."""
    if is_own(name):
        from lossforge.bench.own import own_workload

        return own_workload(name)
    return next(w for w in WORKLOADS if w.name == name)


def is_own(name: str) -> bool:
    """Whether a name tells of a loss of the user's; see `lossforge.bench.own`."""
    return name.startswith("[")
