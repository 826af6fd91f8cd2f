"""Example arrays by a word of text, as ``64x10:logits`` on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lossforge.errors import LossforgeError

Draw = Callable[[np.random.Generator, tuple[int, ...], int | None], np.ndarray]


class InputError(LossforgeError, ValueError):
    """A description of an example array cannot be read."""


def _simplex(rng: np.random.Generator, shape: tuple[int, ...], axis: int | None) -> np.ndarray:
    x = rng.gamma(2.0, size=shape) + 0.05
    return x / x.sum(axis=-1 if axis is None else axis, keepdims=True)


def _unit_norm(rng: np.random.Generator, shape: tuple[int, ...], axis: int | None) -> np.ndarray:
    x = rng.standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1 if axis is None else axis, keepdims=True)


def _one_hot(rng: np.random.Generator, shape: tuple[int, ...], axis: int | None) -> np.ndarray:
    at = -1 if axis is None else axis
    rest = np.delete(shape, at).astype(int).tolist()
    return np.moveaxis(np.eye(shape[at])[rng.integers(0, shape[at], rest)], -1, at)


def _classes(rng: np.random.Generator, shape: tuple[int, ...], count: int | None) -> np.ndarray:
    if count is None or count < 1:
        raise InputError("classes needs their number, as in 64:classes=10")
    return rng.integers(0, count, shape)


_KINDS: Mapping[str, tuple[Draw, str]] = {
    "floats": (lambda rng, shape, n: rng.standard_normal(shape), "normal numbers (what no kind means)"),
    "logits": (lambda rng, shape, n: 2 * rng.standard_normal(shape), "normal numbers, twice as wide"),
    "probs": (lambda rng, shape, n: rng.uniform(0.02, 0.98, shape), "numbers between 0 and 1"),
    "simplex": (_simplex, "probabilities that add up to 1 along the last axis (or simplex=AXIS)"),
    "unit": (_unit_norm, "vectors of length 1 along the last axis (or unit=AXIS)"),
    "positive": (lambda rng, shape, n: rng.uniform(0.1, 3.0, shape), "numbers above 0"),
    "weights": (lambda rng, shape, n: rng.uniform(0.1, 1.0, shape), "numbers above 0, at most 1"),
    "signs": (lambda rng, shape, n: np.where(rng.random(shape) < 0.5, -1.0, 1.0), "-1 or 1, as floats"),
    "binary": (lambda rng, shape, n: (rng.random(shape) < 0.5) * 1.0, "0 or 1, as floats"),
    "onehot": (_one_hot, "one 1 along the last axis (or onehot=AXIS), else 0"),
    "classes": (_classes, "whole numbers below K, as classes=K"),
    "labels": (lambda rng, shape, n: rng.integers(0, n or 2, shape), "whole numbers 0 and 1 (or below K, as labels=K)"),
    "bool": (lambda rng, shape, n: rng.random(shape) < 0.5, "truth values"),
}
_DTYPES = ("float16", "bfloat16", "float32", "float64", "int32", "int64", "bool")


@dataclass(frozen=True)
class Input:
    """One example array: its shape, its kind with a number, its dtype."""

    shape: tuple[int, ...]
    kind: str = "floats"
    number: int | None = None
    dtype: str | None = None

    @staticmethod
    def parse(text: str) -> Input:
        """Read ``SHAPE[:KIND[=NUMBER]][:DTYPE]``, as in ``64x10:logits`` or ``64:classes=10:int32``.

        Raises:
            InputError: it cannot be read.
        """
        size, *words = text.split(":")
        try:
            shape = () if size == "scalar" else tuple(int(n) for n in size.lower().split("x"))
        except ValueError:
            raise InputError(f"{text!r}: the shape {size!r} is not of the form 64x10 (or `scalar`)") from None
        if any(n < 1 for n in shape):
            raise InputError(f"{text!r}: sizes are at least 1")
        dtype = words.pop() if words and words[-1] in _DTYPES and words[-1] != "bool" else None
        if len(words) > 1:
            raise InputError(f"{text!r} is not of the form SHAPE:KIND:DTYPE; dtypes are {', '.join(_DTYPES[:-1])}")
        kind, equals, number = words[0].partition("=") if words else ("floats", "", "")
        if kind not in _KINDS:
            raise InputError(f"{text!r}: no kind {kind!r}; there are {', '.join(_KINDS)}")
        if equals and not number.lstrip("-").isdigit():
            raise InputError(f"{text!r}: {number!r} is not a whole number")
        return Input(shape, kind, int(number) if equals else None, dtype)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """An array of this description, in float32 or int64 if no dtype was given; bfloat16 is drawn as float32."""
        try:
            values = np.asarray(_KINDS[self.kind][0](rng, self.shape, self.number))
        except (IndexError, ValueError) as error:
            raise InputError(f"{self.kind} of shape {self.shape}: {error}") from None
        wanted = self.dtype or {"f": "float32", "b": "bool"}.get(values.dtype.kind, "int64")
        return values.astype("float32" if wanted == "bfloat16" else wanted)


def drawn(texts: Sequence[str], seed: int = 0) -> list[np.ndarray]:
    """An array for each description."""
    rng = np.random.default_rng(seed)
    return [Input.parse(text).draw(rng) for text in texts]


def kinds() -> str:
    """A list of the kinds for people."""
    width = max(map(len, _KINDS))
    return "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in _KINDS.items())
