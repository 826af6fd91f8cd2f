"""Functions that NumPy lacks, written with NumPy alone; float32 in gives float32 out.

The reference interpreter uses them, and a NumPy file that `Loss.source` writes carries the text of those it needs.
"""

import math

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    """log(sigmoid(x)), without cancellation."""
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + exp(x)), without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def xlogy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x log(y), and 0 where x is 0."""
    return np.where(x == 0, np.where(np.isnan(y), y, 0), x * np.log(np.where(x == 0, 1, y)))


def logsumexp(x: np.ndarray, axis: tuple[int, ...] | None) -> np.ndarray:
    """log(sum(exp(x))) over `axis`, kept as axes of size 1."""
    top = np.max(x, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return top + np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True))


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """exp(x) over its sum along `axis`; exp(x - logsumexp(x)) would lose the digits of a large logsumexp."""
    top = np.max(x, axis=axis, keepdims=True)
    powers = np.exp(x - np.where(np.isfinite(top), top, 0))
    return powers / np.sum(powers, axis=axis, keepdims=True)


def log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """x - logsumexp(x) along `axis`."""
    top = np.max(x, axis=axis, keepdims=True)
    less = x - np.where(np.isfinite(top), top, 0)
    return less - np.log(np.sum(np.exp(less), axis=axis, keepdims=True))


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, entry by entry through `math.erf`."""
    return np.vectorize(math.erf, otypes=[float])(x).astype(np.asarray(x).dtype)


def erfc(x: np.ndarray) -> np.ndarray:
    """1 - erf(x) without cancellation, entry by entry through `math.erfc`."""
    return np.vectorize(math.erfc, otypes=[float])(x).astype(np.asarray(x).dtype)


def lgamma(x: np.ndarray) -> np.ndarray:
    """log |Γ(x)|, entry by entry through `math.lgamma`; +inf at the poles."""

    def one(v: float) -> float:
        if abs(v) > 2.5e305:  # the result is too large for a float64
            return math.inf
        return math.inf if v <= 0 and v == math.floor(v) else math.lgamma(v)

    return np.vectorize(one, otypes=[float])(x).astype(np.asarray(x).dtype)


def digamma(x: np.ndarray) -> np.ndarray:
    """Γ′(x)/Γ(x) for x > 0: upward recurrence, then the asymptotic series (Abramowitz & Stegun 6.3.5, 6.3.18)."""
    z = np.array(x, dtype=np.float64)
    result = np.zeros_like(z)
    for _ in range(10):
        low = z < 10
        result -= np.where(low, 1 / np.where(low, z, 1), 0)
        z = z + low
    s = 1 / (z * z)
    series = s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s * (1 / 132 - s * (691 / 32760))))))
    result = np.where(x > 0, result + np.log(z) - 0.5 / z - series, np.nan)
    return result.astype(np.asarray(x).dtype)


def polygamma(n: float, x: np.ndarray) -> np.ndarray:
    """The n-th derivative of digamma at x > 0, n ≥ 1: recurrence and asymptotic series (A&S 6.4.6, 6.4.11)."""
    n = int(n)
    z = np.array(x, dtype=np.float64)
    result = np.zeros_like(z)
    for _ in range(12 + n):
        low = z < 12 + n
        result += np.where(low, math.factorial(n) / np.where(low, z, 1) ** (n + 1), 0)
        z = z + low
    result += math.factorial(n - 1) / z**n + math.factorial(n) / (2 * z ** (n + 1))
    for k, b in enumerate((1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6), start=1):
        result += b * math.factorial(2 * k + n - 1) / (math.factorial(2 * k) * z ** (2 * k + n))
    result = np.where(x > 0, (-1) ** (n + 1) * result, np.nan)
    return result.astype(np.asarray(x).dtype)
