"""What the tables of adopted losses have in common."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import lossforge as lf

TOLERANCE = 1e-4
"""Of the largest entry, in float32: what a sum of some hundred rounded terms may lose, with some to spare."""

Array = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def real(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.05, 0.95, shape).astype(np.float32)


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.3, 3.0, shape).astype(np.float32)


def binary(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.random(shape) < 0.5).astype(np.float32)


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.where(rng.random(shape) < 0.5, -1.0, 1.0).astype(np.float32)


def simplex(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.gamma(2.0, size=shape) + 0.1
    return (x / x.sum(axis=-1, keepdims=True)).astype(np.float32)


def one_hot(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.eye(shape[-1], dtype=np.float32)[rng.integers(0, shape[-1], shape[:-1])]


def log_simplex(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.log(simplex(rng, shape))


def covariances(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    root = rng.standard_normal(shape)
    return (root @ root.swapaxes(-1, -2) / shape[-1] + np.eye(shape[-1])).astype(np.float32)


def classes(count: int) -> Array:
    return lambda rng, shape: rng.integers(0, count, shape)


def drawn(name: str, kinds: Sequence[Array], shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Inputs for one case; the seed is the case's name, so that a failure can be repeated."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return [kind(rng, shape) for kind, shape in zip(kinds, shapes, strict=True)]


def agree(what: str, mine: Any, theirs: Any) -> None:
    """Assert that two arrays agree, relative to the largest entry."""
    mine, theirs = np.asarray(mine, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    assert mine.shape == theirs.shape, f"{what}: shape {mine.shape}, expected {theirs.shape}"
    assert np.isfinite(theirs).all(), f"{what}: the original is not finite"
    gap = np.max(np.abs(mine - theirs), initial=0.0)
    assert gap <= TOLERANCE * np.max(np.abs(theirs), initial=1e-30), f"{what}: {mine}\nexpected {theirs}"


def _as_arrays_of(library: str) -> Callable[[np.ndarray], Any]:
    module = pytest.importorskip({"jax": "jax.numpy"}.get(library, library))
    makers = {
        "torch": lambda a: module.from_numpy(np.array(a)), "tensorflow": lambda a: module.constant(a),
        "jax": lambda a: module.asarray(a),
    }  # fmt: skip
    return makers[library]


def check(
    loss: lf.Loss,
    original: Callable[[Sequence[np.ndarray], int], tuple[np.ndarray, np.ndarray]],
    arrays: Sequence[np.ndarray],
    also: str = "",
) -> None:
    """The adopted loss on NumPy arrays, and on those of another library, against value and gradient of the original."""
    at = loss.arguments.index(loss.predictions[0])
    value, gradient = original(arrays, at)
    for library in ("NumPy", also) if also else ("NumPy",):
        convert = _as_arrays_of(library) if library == also else np.asarray
        mine, slope = loss.value_and_grad(*map(convert, arrays))
        agree(f"value in {library}", mine, value)
        agree(f"gradient in {library}", slope, gradient)
