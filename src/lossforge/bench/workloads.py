"""What is measured: losses, shapes, and who else computes the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lossforge.bench.targets import Target, faster, frugal, level, prompt, rounded, stream, within

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """One loss at one shape: value and gradient with respect to the first array."""

    name: str
    title: str
    formula: str
    """The name of the loss, and of its function in `written`."""
    make: Callable[[np.random.Generator, bool], Arrays]
    """The inputs; a small variant of the same form if the flag is set."""
    contenders: tuple[str, ...]
    must: tuple[Target, ...] = ()
    """What this project asks of itself here."""
    half: bool = False
    """Whether the floats are in bfloat16."""
    repeat: int = 1
    """Calls per measurement, for calls too short to time one by one."""
    on_gpu: tuple[str, ...] = ()
    """Who takes part on a GPU."""
    wrt: int = 0
    """Which of the arrays is the prediction."""
    adopted: Any = None
    """The `Loss`, where it is one of the user's."""
    original: Any = None
    """The function of another library that it was adopted from."""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def loss(self) -> Any:
        """The `Loss`."""
        return _LOSSES[self.formula]() if self.adopted is None else self.adopted


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


_LOSSES: Mapping[str, Callable[[], Any]] = {
    "huber": _huber, "weighted": _weighted, "focal": _focal, "cross_entropy": _cross_entropy, "dice": _dice,
    "info_nce": _info_nce,
}  # fmt: skip

_OURS = ("lossforge numpy", "lossforge torch", "lossforge torch compile", "lossforge jax", "lossforge tensorflow")
_WRITTEN = ("torch eager", "torch compile", "jax jit", "tensorflow xla")
_KERAS = (*_WRITTEN, "keras")
_ALL = ("torch eager", "torch F", "torch compile", "jax jit", "tensorflow xla", "keras")
_GPU = ("lossforge torch", "lossforge torch compile", "torch eager", "torch compile")


def _always(rows: int = 0) -> tuple[Target, ...]:
    """What is asked everywhere."""
    return (frugal("lossforge numpy", rows), frugal("lossforge torch", rows), *prompt("lossforge numpy"))


WORKLOADS: tuple[Workload, ...] = (
    Workload(
        "huber", "Huber, mean, 2^24", "huber", _pair, (*_OURS, *_ALL), on_gpu=(*_GPU, "torch F"),
        must=(
            stream("lossforge numpy", 1.15), stream("lossforge torch", 1.3),
            faster("lossforge torch", 3, ("torch eager", "torch F", "torch compile", "keras")),
            faster("lossforge torch", 2, ("jax jit", "tensorflow xla")), *_always(),
        ),
    ),
    Workload(
        "weighted", "weighted squared error, 2^24", "weighted", _triple, (*_OURS, "numpy by hand"),
        must=(stream("lossforge numpy", 1.15), faster("lossforge numpy", 4, ("numpy by hand",)), *_always()),
    ),
    Workload(
        "focal", "sigmoid focal, 2^24", "focal", _labels, (*_OURS, *_KERAS), on_gpu=_GPU,
        must=(
            stream("lossforge numpy", 2.5), stream("lossforge torch", 2.5),
            faster("lossforge torch", 3, ("torch compile",)), *_always(),
        ),
    ),
    Workload(
        "cross-entropy", "softmax cross-entropy, 2048 × 32000", "cross_entropy", _classes, (*_OURS, *_ALL),
        on_gpu=(*_GPU, "torch F", "liger", "liger in place"),
        must=(
            stream("lossforge numpy", 2.2), stream("lossforge torch", 2.2), faster("lossforge torch", 2.5, _ALL),
            *_always(2048),
        ),
    ),
    Workload(
        "dice", "softmax Dice, channels first, 2 × 4 × 96³", "dice", _volumes, (*_OURS, *_KERAS, "monai"), on_gpu=_GPU,
        must=(faster("lossforge torch", 3, (*_KERAS, "monai")), *_always(2 * 4)),
    ),
    Workload(
        "dice-last", "softmax Dice, channels last, 2 × 4 × 96³", "dice", _volumes_last, (*_OURS, *_KERAS, "monai"),
        must=(
            faster("lossforge torch", 3, (*_KERAS, "monai")), level("lossforge torch", 1.3, "dice"),
            level("lossforge numpy", 1.3, "dice"), *_always(2 * 4),
        ),
    ),
    Workload(
        "info-nce", "InfoNCE, 1024 × 256", "info_nce", _embeddings, (*_OURS, *_WRITTEN), repeat=3,
        must=(faster("lossforge torch", 1.5, _WRITTEN), *_always(1024)),
    ),
    Workload(
        "small", "Huber, 64 × 10", "huber", _small, (*_OURS, *_ALL), repeat=500,
        must=(within("lossforge torch", 1.2, "torch F"), within("lossforge torch", 0.5, "torch eager")),
    ),
    Workload(
        "focal-half", "sigmoid focal, bfloat16, 2^24", "focal", _labels, (*_OURS, *_KERAS), half=True,
        must=(faster("lossforge torch", 3, _KERAS), rounded("lossforge torch"), *_always()),
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
