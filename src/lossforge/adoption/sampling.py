"""Arrays like an example: of its range, and of its special form if it has one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lossforge.ir import Axis
from lossforge.points import STYLES, Style, distribution, one_hot


class Sampler:
    """Arrays like an example: of its range, and of its special form if it has one."""

    def __init__(self, example: np.ndarray) -> None:
        self.given, self.dtype = example, example.dtype
        flat = np.unique(example)
        finite = flat[np.isfinite(flat)] if example.dtype.kind == "f" else flat
        self.values = finite if finite.size <= 3 else None
        self.low, self.high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        self.simplex = next(
            (
                d - example.ndim
                for d in reversed(range(example.ndim))
                if example.dtype.kind == "f"
                and example.shape[d] > 1
                and self.low >= 0
                and np.allclose(example.sum(axis=d), 1.0, atol=1e-4)
            ),
            None,
        )
        self.positive_definite = _positive_definite(example)
        self.one_hot = self.simplex is not None and set(np.unique(example)) <= {0.0, 1.0}

    def legal(self, order: Sequence[Axis]) -> tuple[str, Style] | None:
        """What the values have in common, in words and as a style, if they are of a special form."""
        if self.simplex is not None:
            at = len(order) + self.simplex
            return f"sums to 1 along {order[at]!r}", one_hot(at + 1) if self.one_hot else distribution(at + 1)
        for what, values in (("0 or 1", {0.0, 1.0}), ("1 or -1", {1.0, -1.0})):
            if self.values is not None and {*self.values.tolist()} == values:
                return f"is {what}", STYLES[what]
        return None

    def example(self, shape: Sequence[int]) -> np.ndarray:
        """An array for recording, where values do not count."""
        return self.draw(np.random.default_rng(0), shape, None)

    def repeated(self, shape: Sequence[int]) -> np.ndarray:
        """The example once and again: its rows have what no drawn ones have, such as the order of a box's corners."""
        result = self.given
        for d, (n, m) in enumerate(zip(shape, result.shape, strict=True)):
            result = result.take(np.arange(n) % m, axis=d)
        return result

    def draw(self, rng: np.random.Generator, shape: Sequence[int], below: int | None) -> np.ndarray:
        """An array of a shape; positions lie below `below`."""
        shape = tuple(shape)
        if self.dtype.kind == "b":
            return rng.random(shape) < 0.5
        if below is not None:
            return rng.integers(0, below, shape).astype(self.dtype)
        if self.one_hot and self.simplex is not None and -self.simplex <= len(shape):
            at = rng.integers(
                0, shape[self.simplex], tuple(n for i, n in enumerate(shape) if i != len(shape) + self.simplex)
            )
            return np.moveaxis(np.eye(shape[self.simplex])[at], -1, self.simplex).astype(self.dtype)
        if self.values is not None and self.values.size > 1:
            return rng.choice(self.values, shape).astype(self.dtype)
        if self.dtype.kind == "i":
            return rng.integers(int(self.low), int(self.high) + 1, shape).astype(self.dtype)
        if self.simplex is not None:
            x = rng.gamma(2.0, size=shape) + 0.05
            return (x / x.sum(axis=self.simplex, keepdims=True)).astype(self.dtype)
        if self.positive_definite and shape[-1] == shape[-2]:
            roots = rng.standard_normal(shape)
            scale = self.high / shape[-1]
            return (scale * (roots @ roots.swapaxes(-1, -2) / 4 + np.eye(shape[-1]))).astype(self.dtype)
        if self.low >= 0:
            high = self.high if self.high > self.low else self.low + 1.0
            return rng.uniform(self.low + 0.02 * (high - self.low), high - 0.02 * (high - self.low), shape).astype(
                self.dtype
            )
        middle, width = (self.low + self.high) / 2, max((self.high - self.low) / 4, 1e-3)
        within = -1.0 <= self.low and self.high <= 1.0
        x = middle + width * rng.standard_normal(shape)
        return (np.clip(x, self.low, self.high) if within else x).astype(self.dtype)


def _positive_definite(example: np.ndarray) -> bool:
    """Whether it holds covariances, or other matrices that have a Cholesky factor."""
    if example.dtype.kind != "f" or example.ndim < 2 or not example.shape[-1] == example.shape[-2] > 1:
        return False
    if not np.isfinite(example).all() or not np.allclose(example, example.swapaxes(-1, -2), atol=1e-6):
        return False
    return bool((np.linalg.eigvalsh(example) > 0).all())


def beside(array: np.ndarray, sampler: Sampler) -> np.ndarray:
    """Entries a little off, within what is legal."""
    rng = np.random.default_rng(7)
    if sampler.low >= 0 and sampler.high <= 1:
        return (array + 0.02 * rng.random(array.shape) * (0.5 - array)).astype(array.dtype)
    step = 0.01 * (np.abs(array) + 0.1 * (sampler.high - sampler.low) + 0.01)
    moved = array + step * (rng.random(array.shape) - 0.5)
    return (np.abs(moved) if sampler.low >= 0 else moved).astype(array.dtype)


def other_values(value: float, place: int = 0) -> tuple[float, float, float]:
    """Three other values that a parameter might have: for fractions still fractions, for whole numbers whole.

    No two parameters change alike: the steps depend on a parameter's `place` among them.
    """
    if isinstance(value, int):
        return value + 1, value + 2 + place, value + 3 + place
    if value == 0:
        return 0.125, 0.25 + place / 64, 0.375
    return value * 0.875, value * max(0.75 - place / 64, 0.125), value * 0.625


def entries(shapes: Sequence[tuple[int, ...]]) -> int:
    """Those of the largest array."""
    return max((math.prod(shape) for shape in shapes), default=0)
