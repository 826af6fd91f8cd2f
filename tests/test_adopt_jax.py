"""Losses written for JAX, optax's among them, adopted: against `jax.grad`, at two shapes, answered by NumPy."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import lossforge as lf
from adoption import binary, check, classes, drawn, log_simplex, one_hot, real, signs, simplex, unit

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
jnp, OPTAX = jax.numpy, optax.losses


def original(fn: Callable[..., Any]) -> Callable[[Sequence[np.ndarray], int], tuple[np.ndarray, np.ndarray]]:
    def run(arrays: Sequence[np.ndarray], at: int) -> tuple[np.ndarray, np.ndarray]:
        given = [jnp.asarray(a.astype(np.int32) if a.dtype.kind == "i" else a) for a in arrays]
        slope = jax.jit(jax.grad(lambda *a: fn(*a).sum(), argnums=at))(*given)
        return np.asarray(jax.jit(fn)(*given)), np.asarray(slope)

    return run


def pinball(pred, true, q=0.3):
    return jnp.mean(jnp.maximum(q * (true - pred), (q - 1) * (true - pred)))


def total_variation(x):
    return jnp.abs(jnp.diff(x, axis=0)).mean()


def contrastive(x, y):
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(x @ y.T)))


def nll(logits, labels):
    return -jax.nn.log_softmax(logits)[jnp.arange(logits.shape[0]), labels].mean()


def without_diagonal(x):
    at = jnp.arange(x.shape[0])
    return jax.nn.logsumexp((x @ x.T).at[at, at].set(-1e9), axis=1).mean()


def sinkhorn(x, y, eps=0.5):
    cost = jnp.sum((x[:, None] - y[None]) ** 2, axis=-1)
    n, m = cost.shape

    def body(_, potentials):
        f, g = potentials
        f = -eps * jax.nn.logsumexp((g[None] - cost) / eps - jnp.log(m), axis=1)
        return f, -eps * jax.nn.logsumexp((f[:, None] - cost) / eps - jnp.log(n), axis=0)

    f, g = jax.lax.fori_loop(0, 3, body, (jnp.zeros(n), jnp.zeros(m)))
    return f.mean() + g.mean()


def pairwise(x, y):
    def kernel(a, b):
        return jnp.exp(-jnp.sum((a - b) ** 2))

    return jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(y))(x).mean()


def chosen_by_value(pred, true):
    error = jnp.mean((pred - true) ** 2)
    return jax.lax.cond(error > 1, lambda e: 2 * jnp.sqrt(e) - 1, lambda e: e, error)


@jax.custom_jvp
def rounded(x):
    return jnp.round(x)


@rounded.defjvp
def _(primals, tangents):
    return rounded(*primals), tangents[0]


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))


@jax.custom_vjp
def clipped_gradient(x):
    return x


clipped_gradient.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


def residual(u):
    return jnp.mean(((u[1:, 1:-1] - u[:-1, 1:-1]) - (u[:-1, 2:] - 2 * u[:-1, 1:-1] + u[:-1, :-2])) ** 2)


def discounted(pred, true):
    return jax.lax.scan(lambda carry, x: (0.9 * carry + jnp.mean((x[0] - x[1]) ** 2), None), 0.0, (pred, true))[0]


def saturated(pred, true):
    return jax.lax.scan(lambda carry, x: (jnp.tanh(carry + x[0] - x[1]), None), jnp.zeros(4), (pred, true))[0].sum()


def advantages(values, rewards, done):
    """Generalised advantage estimation (Schulman and others, 2016)."""

    def step(carry, x):
        value, following, reward, ends = x
        carry = reward + 0.99 * following * (1 - ends) - value + 0.99 * 0.95 * (1 - ends) * carry
        return carry, carry

    found = jax.lax.scan(step, jnp.zeros(()), (values[:-1], values[1:], rewards, done), reverse=True)[1]
    return jnp.mean(found**2)


def smoothed_rows(pred, decay=0.7):
    def smooth(row):
        return jax.lax.scan(lambda c, x: (decay * c + x, decay * c + x), 0.0, row, reverse=True)[1]

    return jnp.mean(jax.vmap(smooth)(pred) ** 2)


def running(pred):
    """Mean and variance, of which one follows from the other, and a drawdown."""

    def step(carry, x):
        mean, variance, top, count = carry
        variance = 0.9 * variance + 0.1 * (x - mean) ** 2
        top = jnp.maximum(top, x)
        return (0.9 * mean + 0.1 * x, variance, top, count + 1), (top - x) + jnp.log(variance) / (1.0 + count)

    return jnp.mean(jax.lax.scan(step, (0.0, 1.0, -jnp.inf, 0), pred)[1])


def jumps(pred):
    return jax.lax.fori_loop(1, pred.shape[0], lambda i, total: total + jnp.sum((pred[i] - pred[i - 1]) ** 2), 0.0)


def recurrence(factors, terms):
    def after(a, b):
        return a[0] * b[0], b[0] * a[1] + b[1]

    return jnp.mean(jax.lax.associative_scan(after, (factors, terms), axis=1)[1] ** 2)


def von_mises(angles, true, concentration):
    normaliser = jnp.log(jax.scipy.special.i0e(concentration)) + concentration
    return jnp.mean(normaliser - concentration * jnp.cos(angles - true))


def hardest(pred, true, share=0.7):
    errors = jnp.abs(pred - true).reshape(-1)
    return jnp.mean(jax.lax.top_k(errors, int(share * errors.size))[0])


def symmetric(rng, shape):
    """Positive definite matrices, in the last two dimensions."""
    x = rng.normal(size=shape)
    return (x @ np.swapaxes(x, -1, -2) / shape[-1] + np.eye(shape[-1])).astype(np.float32)


def process(x, y):
    """The likelihood of a Gaussian process."""
    factor = jnp.linalg.cholesky(jnp.exp(-0.5 * (x[:, None] - x[None]) ** 2) + 0.1 * jnp.eye(len(x)))
    return 0.5 * y @ jax.scipy.linalg.cho_solve((factor, True), y) + jnp.sum(jnp.log(jnp.diag(factor)))


def far_from(x, mean, covariance):
    less = x - mean
    distances = jax.vmap(lambda v: v @ jnp.linalg.solve(covariance, v))(less)
    again = jnp.einsum("bi,ij,bj->b", less, jnp.linalg.inv(covariance), less)
    return jnp.mean(distances + again) + jnp.linalg.slogdet(covariance)[1] + jnp.linalg.det(covariance)


def normal_density(x, mean, covariance):
    return -jnp.mean(jax.scipy.stats.multivariate_normal.logpdf(x, mean, covariance))


def pooled(pred, true):
    def pool(x):
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (2, 2), (1, 1), "VALID")

    return jnp.mean((pool(pred) - pool(true)) ** 2)


helpers = types.ModuleType("helpers")
vars(helpers)["mse"] = lambda pred, true: jnp.mean((pred - true) ** 2)


class OfHelpers:
    def __call__(self, pred, true):
        return self.loss(pred, true)

    def loss(self, pred, true):
        return helpers.mse(pred, true)


def imports_when_called(pred, true):
    import optax

    return optax.losses.l2_loss(pred, true).mean()


NC, N = [(6, 4), (9, 5)], [(6,), (9,)]

CASES = {
    "l2": (OPTAX.l2_loss, [real, real], [NC, NC]),
    "huber": (OPTAX.huber_loss, [real, real], [NC, NC]),
    "log cosh": (OPTAX.log_cosh, [real, real], [NC, NC]),
    "cosine": (OPTAX.cosine_distance, [real, real], [NC, NC]),
    "softmax": (OPTAX.softmax_cross_entropy, [real, simplex], [NC, NC]),
    "softmax integer": (OPTAX.softmax_cross_entropy_with_integer_labels, [real, classes(4)], [NC, N]),
    "sigmoid": (OPTAX.sigmoid_binary_cross_entropy, [real, binary], [NC, NC]),
    "hinge": (OPTAX.hinge_loss, [real, signs], [NC, NC]),
    "perceptron": (OPTAX.perceptron_loss, [real, signs], [NC, NC]),
    "kl": (OPTAX.kl_divergence, [log_simplex, simplex], [NC, NC]),
    "kl log": (OPTAX.kl_divergence_with_log_targets, [log_simplex, log_simplex], [NC, NC]),
    "poly": (OPTAX.poly_loss_cross_entropy, [real, one_hot], [NC, NC]),
    "multiclass hinge": (OPTAX.multiclass_hinge_loss, [real, classes(4)], [NC, N]),
    "multiclass perceptron": (OPTAX.multiclass_perceptron_loss, [real, classes(4)], [NC, N]),
    "ranking": (OPTAX.ranking_softmax_loss, [real, unit], [NC, NC]),
    "mse": (lambda p, t: jnp.mean((p - t) ** 2), [real, real], [NC, NC]),
    "pinball": (pinball, [real, real], [NC, NC]),
    "total variation": (total_variation, [real], [NC]),
    "contrastive": (contrastive, [real, real], [NC, NC]),
    "nll": (nll, [real, classes(4)], [NC, N]),
    "without diagonal": (without_diagonal, [real], [NC]),
    "sinkhorn": (sinkhorn, [real, real], [NC, [(4, 4), (7, 5)]]),
    "pairwise by vmap": (pairwise, [real, real], [NC, [(4, 4), (7, 5)]]),
    "chosen by value": (chosen_by_value, [real, real], [NC, NC]),
    "rounded straight through": (lambda p, t: ((rounded(3 * p) - t) ** 2).mean(), [real, real], [NC, NC]),
    "nuclear norm": (lambda p: jnp.linalg.norm(p, "nuc"), [real], [NC]),
    "entropy of eigenvalues": (
        lambda p: jnp.log(jnp.linalg.eigvalsh(p.T @ p + jnp.eye(p.shape[1]))).sum(),
        [real],
        [NC],
    ),
    "reversed gradient": (lambda p, t: ((reversed_gradient(p) - t) ** 2).mean(), [real, real], [NC, NC]),
    "discounted": (discounted, [real, real], [NC, NC]),
    "advantages": (advantages, [real, real, binary], [[(7,), (10,)], N, N]),
    "smoothed rows": (smoothed_rows, [real], [NC]),
    "running": (running, [real], [N]),
    "jumps": (jumps, [real], [NC]),
    "recurrence": (recurrence, [unit, real], [NC, NC]),
    "cumulative extremes": (lambda p: jnp.mean(jax.lax.associative_scan(jnp.maximum, p)), [real], [N]),
    "spread weights": (lambda p: jnp.mean(jnp.linspace(0.5, 2.0, p.shape[1]) * p**2), [real], [NC]),
    "inverse error function": (lambda p: jnp.mean(jax.scipy.special.erfinv(p)), [unit], [NC]),
    "von Mises": (von_mises, [real, real, unit], [NC, NC, NC]),
    "largest of segments": (
        lambda p, y: jnp.sum(jax.ops.segment_max(p, y, num_segments=3) ** 2),
        [real, classes(3)],
        [N, N],
    ),
    "hardest share": (hardest, [real, real], [NC, NC]),
    "hardest tenth": (lambda p: jnp.mean(jax.lax.top_k(p**2, max(1, p.shape[0] // 10))[0]), [real], [[(8,), (64,)]]),
    "process": (process, [real, real], [N, N]),
    "Mahalanobis": (far_from, [real, real, symmetric], [NC, [(4,), (5,)], [(4, 4), (5, 5)]]),
    "full normal density": (normal_density, [real, real, symmetric], [NC, [(4,), (5,)], [(4, 4), (5, 5)]]),
    "pooled": (pooled, [real, real], [NC, NC]),
    "hazard": (lambda h, t: -jnp.mean(t * jnp.log(jnp.cumprod(h, axis=1))), [unit, binary], [NC, NC]),
    "segments": (lambda p, y: jnp.sum(jax.ops.segment_sum(p, y, num_segments=3) ** 2), [real, classes(3)], [N, N]),
    "written over": (lambda p, y: jnp.sum(p.at[y].set(0.0) ** 2), [real, classes(3)], [N, [(4,), (5,)]]),
    "sorted": (lambda p, t: jnp.mean((jnp.sort(p, axis=0) - jnp.sort(t, axis=0)) ** 2), [real, real], [NC, NC]),
    "spectrum": (
        lambda p, t: jnp.mean((jnp.abs(jnp.fft.rfft(p)) - jnp.abs(jnp.fft.rfft(t))) ** 2),
        [real, real],
        [NC, NC],
    ),
    "focal": (OPTAX.sigmoid_focal_loss, [real, binary], [NC, NC]),
    "median": (lambda p, t: jnp.median(jnp.abs(p - t)), [real, real], [N, N]),
    "mapped": (lambda p, t: jax.lax.map(lambda x: jnp.sum((x[0] - x[1]) ** 2), (p, t)).mean(), [real, real], [NC, NC]),
    "residual": (residual, [real], [[(6, 8), (9, 7)]]),
    "edge padded": (lambda p: jnp.mean(jnp.diff(jnp.pad(p, 1, mode="edge")) ** 2), [real], [N]),
    "tiled": (lambda p, t: jnp.mean((p - jnp.tile(t, (p.shape[0], 1))) ** 2), [real, real], [NC, [(4,), (5,)]]),
    "taken apart": (
        lambda p: jnp.mean(jnp.prod(jnp.stack(jnp.unstack(p, axis=1)), axis=0)),
        [real],
        [[(6, 3), (9, 3)]],
    ),
    "subtracted": (lambda p, y: jnp.sum(jnp.zeros(3).at[y].subtract(p) ** 2), [real, classes(3)], [N, N]),
    "nt-xent": (OPTAX.ntxent, [real, classes(3)], [NC, N]),
    "triplet": (OPTAX.triplet_margin_loss, [real, real, real], [NC, NC, NC]),
}


@pytest.mark.parametrize("name", CASES)
def test_published_loss(name: str) -> None:
    fn, kinds, shapes = CASES[name]
    first, second = ([s[i] for s in shapes] for i in (0, 1))
    loss = lf.adopt(fn, *map(jnp.asarray, drawn(name, kinds, first)))
    for where in (first, second):
        check(loss, original(fn), drawn(name + " again", kinds, where), also="torch" if where is second else "")


def by_hand(logits, true):
    return jnp.mean(jnp.maximum(logits, 0) - logits * true + jnp.log1p(jnp.exp(-jnp.abs(logits))))


@pytest.mark.parametrize(
    "fn", [OPTAX.sigmoid_binary_cross_entropy, lambda x, y: jnp.logaddexp(x, y).sum(), by_hand],
    ids=["softplus", "logaddexp", "a softplus by hand"],
)  # fmt: skip
def test_parts_with_kinks_of_what_has_none(fn) -> None:
    """log(1 + eˣ) = max(x, 0) + log(1 + e^−|x|) has the slope ½ at 0, where logits are before training."""
    true = np.zeros((3, 4), np.float32)
    loss = lf.adopt(fn, *map(jnp.asarray, drawn("logits", [real, binary], [(3, 4), (3, 4)])))
    entries = 12 if loss.reduction == "mean" and fn is by_hand else 1
    np.testing.assert_allclose(loss.grad(np.zeros((3, 4), np.float32), true), 0.5 / entries, rtol=1e-6)


def until_large(pred):
    return jax.lax.while_loop(lambda x: jnp.sum(x) < 9.0, lambda x: x + jnp.abs(x) + 0.1, pred).sum()


REFUSED = {
    "a branch of Python": (lambda p: p.sum() if p.sum() > 0 else -p.sum(), "decision"),
    "a loop on values": (until_large, "while.*number of rounds depends on values"),
    "random numbers": (lambda p: (p * jax.random.uniform(jax.random.key(0), p.shape)).sum(), "random numbers"),
    "a rule that clips": (lambda p: clipped_gradient(p).sum(), "not linear in the gradient"),
    "a decomposition": (lambda p: jnp.linalg.qr(p)[0].sum(), "qr"),
}


def halved(signal):
    total = 0.0
    while len(signal) > 1:
        signal = jnp.abs(signal[1::2] - signal[: len(signal) // 2 * 2 : 2])
        total += signal.mean()
    return total


def of_labels_or_indicators(scores, true):
    """As losses for segmentation have it: of one class, labels have the shape of indicators."""
    if true.shape != scores.shape:
        true = jax.nn.one_hot(true[:, 0].astype(int), scores.shape[1])
    return jnp.mean((jax.nn.sigmoid(scores) - true) ** 2)


ANEW: dict[str, tuple[Callable[..., Any], Sequence[int], Sequence[Sequence[int]]]] = {
    "other ranks": (lambda p: jnp.mean(p**2), (6, 4), [(2, 3, 4), (7,), (5, 2, 3)]),
    "three channels": (lambda p: jnp.mean(p * (jnp.arange(3.0) if p.shape[1] == 3 else 1.0)), (6, 3), [(6, 4), (5, 3)]),
    "rounds that follow from each other": (lambda p: saturated(p, 2 * p), (6, 4), [(3, 4), (5, 4)]),
    "as many rounds as the size tells": (halved, (8,), [(5,), (4,)]),
}


@pytest.mark.parametrize("name", ANEW)
def test_what_a_loss_was_not_read_for_is_read_anew(name: str) -> None:
    fn, example, others = ANEW[name]
    loss = lf.adopt(fn, jnp.asarray(drawn(name, [real], [example])[0]))
    for shape in (example, *others, others[0]):
        check(loss, original(fn), drawn(name + " again", [real], [shape]))


def test_size_1_is_tried_at_the_first_call() -> None:
    kinds = [real, classes(2)]
    loss = lf.adopt(of_labels_or_indicators, *map(jnp.asarray, drawn("labels", kinds, [(6, 4), (6, 1)])))
    for shape in ((6, 1), (9, 1), (1, 4), (1, 1), (5, 3)):
        check(loss, original(of_labels_or_indicators), drawn("labels again", kinds, [shape, (shape[0], 1)]))


def test_reading_anew_takes_values_and_arrays_that_go_together() -> None:
    loss = lf.adopt(lambda pred, true: jnp.mean((pred - true) ** 2), jnp.ones((4, 3)), jnp.zeros((4, 3)))
    inputs = jnp.ones((2, 3, 4)), jnp.zeros((2, 3, 4))
    with pytest.raises(lf.errors.ShapeError, match="3 dimensions.*once, outside of the function that is traced"):
        jax.jit(loss)(*inputs)
    assert float(loss(*inputs)) == float(jax.jit(loss)(*inputs)) == 1.0
    with pytest.raises(lf.errors.ShapeError, match="1 dimension"):  # and no 4 × 4 differences
        loss(jnp.ones(4), jnp.ones((4, 1)))


def test_a_number_of_entries_is_counted_in_full_precision() -> None:
    def hardest(pred, true, percent=30):
        errors = ((pred - true) ** 2).ravel()
        return jnp.mean(jax.lax.top_k(errors, int(errors.size * percent / 100))[0])

    loss = lf.adopt(hardest, *map(jnp.asarray, drawn("counted", [real, real], [(4, 7), (4, 7)])))
    for shape in ((5, 8), (10, 10)):  # 0.3 · 40 is less than 12 in float32
        arrays = list(map(jnp.asarray, drawn("counted again", [real, real], [shape, shape])))
        for percent in (30, 70):
            np.testing.assert_allclose(loss(*arrays, percent=percent), hardest(*arrays, percent=percent), rtol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_adopted_is_refused_by_name(name: str) -> None:
    fn, said = REFUSED[name]
    with pytest.raises(lf.errors.AdoptionError, match=said):
        lf.adopt(fn, jnp.asarray(drawn(name, [real], [(6, 4)])[0]))


@pytest.mark.parametrize(
    "fn",
    [lambda p, t: helpers.mse(p, t), functools.partial(helpers.mse), jax.jit(helpers.mse), OfHelpers(), OfHelpers().loss,
     imports_when_called],
    ids=["of a module", "partial", "compiled", "an object", "a method", "imported when called"],
)  # fmt: skip
def test_examples_of_numpy_leave_the_library_to_what_is_called(fn) -> None:
    assert lf.adopt(fn, np.zeros(5), np.ones(5)).library == "jax"
