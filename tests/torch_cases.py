"""What the tests of PyTorch share: losses, the same written out for PyTorch, and arguments for both."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

import lossforge as lf

torch = pytest.importorskip("torch")
F = torch.nn.functional

FLOAT = {"float32": torch.float32, "float64": torch.float64}
CLOSE = {"float32": {"rtol": 1e-5, "atol": 1e-6}, "float64": {"rtol": 1e-9, "atol": 1e-12}}
"""What two sides that are computed in different orders may differ by: some hundred roundings."""


def assert_close(found, expected, dtype="float64", what=""):
    torch.testing.assert_close(found, expected, **CLOSE[dtype], msg=lambda m: f"{what}: {m}")


def boundary(probs, distances):
    """A loss whose assertions look at values; it stands here since pytest rewrites those of test modules."""

    def sums_to_one(x):
        return torch.allclose(x.sum(1), torch.ones_like(x[:, 0]))

    def is_one_hot(x):
        return sums_to_one(x) and set(torch.unique(x).tolist()) <= {0.0, 1.0}

    assert sums_to_one(probs)
    assert not is_one_hot(distances)
    return (probs[:, 1:] * distances[:, 1:]).mean()


@lf.loss
def huber(pred, true, *, delta=1.0):
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


@lf.loss
def quantile(pred, true, *, level=0.3):
    error = true - pred
    return lf.maximum(level * error, (level - 1) * error)


@lf.loss("batch class *space, batch *space -> batch *space")
def cross_entropy(logits, target):
    return -lf.take(lf.log_softmax(logits, "class"), target, "class")


@lf.loss("batch class *space, batch class *space -> batch class")
def dice(pred, true, *, smooth=1e-6):
    overlap = lf.sum(pred * true, "*space")
    total = lf.sum(pred, "*space") + lf.sum(true, "*space")
    return 1 - (2 * overlap + smooth) / (total + smooth)


@lf.loss("batch d, batch d -> batch", wrt=("a", "b"))
def infonce(a, b, *, temperature=0.1):
    similarity = lf.sum(a * lf.rename(b, "batch", "other"), "d") / temperature
    return lf.logsumexp(similarity, "other") - lf.sum(a * b, "d") / temperature


@lf.loss(wrt=("mean", "log_variance"))
def gaussian(mean, log_variance, true):
    return 0.5 * (log_variance + (true - mean) ** 2 * lf.exp(-log_variance))


@lf.loss
def poisson(pred, count):
    return pred - lf.xlogy(count, pred) + lf.lgamma(count + 1)


def written_huber(pred, true, delta=1.0):
    error = (pred - true).abs()
    quadratic = error.minimum(torch.as_tensor(delta, dtype=error.dtype))
    return 0.5 * quadratic**2 + delta * (error - quadratic)


def written_quantile(pred, true, level=0.3):
    error = true - pred
    return torch.maximum(level * error, (level - 1) * error)


def written_dice(pred, true, smooth=1e-6):
    overlap, total = (pred * true).flatten(2).sum(2), (pred.flatten(2) + true.flatten(2)).sum(2)
    return 1 - (2 * overlap + smooth) / (total + smooth)


def written_infonce(a, b, temperature=0.1):
    return F.cross_entropy(a @ b.T / temperature, torch.arange(len(a)), reduction="none")


def written_gaussian(mean, log_variance, true):
    return F.gaussian_nll_loss(mean, true, log_variance.exp(), reduction="none", eps=0)


def written_poisson(pred, count):
    return pred - torch.special.xlogy(count, pred) + torch.lgamma(count + 1)


def normal(*shape):
    return lambda rng, dtype=torch.float64: torch.tensor(rng.normal(size=shape), dtype=dtype)


def positive(*shape):
    return lambda rng, dtype=torch.float64: torch.tensor(rng.uniform(0.2, 2, size=shape), dtype=dtype)


def classes(*shape, below):
    return lambda rng, dtype=None: torch.tensor(rng.integers(0, below, size=shape))


def parameter(value):
    return lambda rng, dtype: torch.tensor(value, dtype=dtype)


@dataclass(frozen=True)
class Case:
    """A loss, the same written out for PyTorch (one value for each entry), and what both are called with."""

    loss: lf.Loss
    written: Callable
    arguments: tuple[Callable, ...]
    shape: tuple[int, ...]
    parameters: dict[str, Callable]

    def draw(self, rng, dtype):
        arguments = [a(rng, dtype) for a in self.arguments]
        parameters = {k: p(rng, dtype) for k, p in self.parameters.items()}
        floats = [t for t in (*arguments, *parameters.values()) if t.is_floating_point()]
        return arguments, parameters, [t.requires_grad_() for t in floats]

    def function(self, rng, **options):
        """The loss as a function of its floats alone, and floats for it."""
        arguments, parameters, leaves = self.draw(rng, torch.float64)

        def function(*floats):
            given = iter(floats)
            arrays = [next(given) if a.is_floating_point() else a for a in arguments]
            return self.loss(*arrays, **dict(zip(parameters, given, strict=True)), **options)

        return function, leaves


CASES = {
    "huber": Case(huber, written_huber, (normal(4, 3), normal(4, 3)), (4, 3), {}),
    "huber_learned": Case(
        huber, written_huber, (normal(4, 3), normal(4, 3)), (4, 3), {"delta": parameter(0.6)}
    ),
    "quantile": Case(quantile, written_quantile, (normal(5), normal(5)), (5,), {"level": parameter(0.2)}),
    "cross_entropy": Case(
        cross_entropy, lambda x, t: F.cross_entropy(x, t, reduction="none"),
        (normal(3, 4), classes(3, below=4)), (3,), {},
    ),
    "cross_entropy_2d": Case(
        cross_entropy, lambda x, t: F.cross_entropy(x, t, reduction="none"),
        (normal(2, 4, 3, 2), classes(2, 3, 2, below=4)), (2, 3, 2), {},
    ),
    "dice": Case(
        dice, written_dice, (positive(2, 3, 4, 2), positive(2, 3, 4, 2)), (2, 3), {"smooth": parameter(0.4)}
    ),
    "infonce": Case(
        infonce, written_infonce, (normal(4, 3), normal(4, 3)), (4,), {"temperature": parameter(0.7)}
    ),
    "gaussian": Case(gaussian, written_gaussian, (normal(6), normal(6), normal(6)), (6,), {}),
    "poisson": Case(poisson, written_poisson, (positive(5), positive(5)), (5,), {}),
}  # fmt: skip

ALL = [pytest.param(c, id=n) for n, c in CASES.items()]


def total(entries, reduction, weight=None, mask=None):
    """The reduction, as the contract has it, by PyTorch's own operations."""
    count = torch.ones_like(entries)
    for factor in (weight, None if mask is None else mask.to(entries.dtype)):
        if factor is not None:
            factor = factor.reshape(factor.shape + (1,) * (entries.ndim - factor.ndim))
            entries, count = entries * factor, count * factor
    if reduction == "none":
        return entries
    return entries.sum() / (count.sum() if reduction == "mean" else 1)


def of_both(loss, x):
    """The gradient where one tensor is given for both arguments."""
    return torch.autograd.grad(loss(x, 2 * x) - loss(x, x), x)[0]
