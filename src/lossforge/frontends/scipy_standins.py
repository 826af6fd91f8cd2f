"""Functions of SciPy that are no ufuncs, in terms of NumPy's: densities, distances, filters.

Densities are the formulas of SciPy's documentation, for location 0 and scale 1; others follow by x → (x − loc) / scale.
Filters pad, and correlate what they have padded.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lossforge.frontends import numpy_composites as composites
from lossforge.frontends.numpy_recorder import Recorder, Selection, active, plain, refuse

_U = composites.UFUNCS
_lgamma = functools.partial(composites.special, "gammaln")
_HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def _log_choose(n: Any, k: Any) -> Any:
    return _lgamma(n + 1) - _lgamma(k + 1) - _lgamma(n - k + 1)


# ------------------------------------------------------------------------------------- densities

_REAL, _POSITIVE, _UNIT = (-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0)

_DENSITIES: Mapping[str, tuple[tuple[float, float], Callable[..., Any]]] = {
    "norm": (_REAL, lambda x: -0.5 * x * x - _HALF_LOG_TAU),
    "laplace": (_REAL, lambda x: -np.abs(x) - math.log(2)),
    "logistic": (_REAL, lambda x: -x - 2 * np.logaddexp(0.0, -x)),
    "cauchy": (_REAL, lambda x: -math.log(math.pi) - np.log1p(x * x)),
    "t": (_REAL, lambda x, v: (
        _lgamma((v + 1) / 2) - _lgamma(v / 2) - 0.5 * np.log(v * math.pi) - (v + 1) / 2 * np.log1p(x * x / v))),
    "gumbel_r": (_REAL, lambda x: -x - np.exp(-x)),
    "gumbel_l": (_REAL, lambda x: x - np.exp(x)),
    "expon": (_POSITIVE, lambda x: -x),
    "halfnorm": (_POSITIVE, lambda x: 0.5 * math.log(2 / math.pi) - 0.5 * x * x),
    "rayleigh": (_POSITIVE, lambda x: np.log(x) - 0.5 * x * x),
    "gamma": (_POSITIVE, lambda x, a: _U["xlogy"](a - 1, x) - x - _lgamma(a)),
    "invgamma": (_POSITIVE, lambda x, a: -(a + 1) * np.log(x) - _lgamma(a) - 1 / x),
    "chi2": (_POSITIVE, lambda x, k: _U["xlogy"](k / 2 - 1, x) - x / 2 - k / 2 * math.log(2) - _lgamma(k / 2)),
    "lognorm": (_POSITIVE, lambda x, s: -np.log(s * x) - _HALF_LOG_TAU - np.log(x) ** 2 / (2 * s * s)),
    "weibull_min": (_POSITIVE, lambda x, c: np.log(c) + _U["xlogy"](c - 1, x) - x**c),
    "pareto": ((1.0, math.inf), lambda x, b: np.log(b) - (b + 1) * np.log(x)),
    "beta": (_UNIT, lambda x, a, b: _U["xlogy"](a - 1, x) + _U["xlog1py"](b - 1, -x) - _U["betaln"](a, b)),
    "poisson": (_POSITIVE, lambda k, mu: _U["xlogy"](k, mu) - mu - _lgamma(k + 1)),
    "bernoulli": (_UNIT, lambda k, p: _U["xlogy"](k, p) + _U["xlog1py"](1 - k, -p)),
    "binom": (_POSITIVE, lambda k, n, p: _log_choose(n, k) + _U["xlogy"](k, p) + _U["xlog1py"](n - k, -p)),
    "nbinom": (_POSITIVE, lambda k, n, p: (
        _lgamma(k + n) - _lgamma(k + 1) - _lgamma(n) + n * np.log(p) + _U["xlog1py"](k, -p))),
    "geom": ((1.0, math.inf), lambda k, p: np.log(p) + _U["xlog1py"](k - 1, -p)),
}  # fmt: skip
"""Where each has probability, and the logarithm of its density or mass."""

_CUMULATIVE: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "norm": {"cdf": _U["ndtr"], "sf": lambda x: _U["ndtr"](-x), "logcdf": _U["log_ndtr"],
             "logsf": lambda x: _U["log_ndtr"](-x)},
    "logistic": {"cdf": lambda x: 1 / (1 + np.exp(-x)), "sf": lambda x: 1 / (1 + np.exp(x)),
                 "logcdf": lambda x: -np.logaddexp(0.0, -x), "logsf": lambda x: -np.logaddexp(0.0, x)},
    "expon": {"sf": lambda x: np.exp(-x), "logsf": lambda x: -x},
}  # fmt: skip


class Distribution:
    """A distribution of ``scipy.stats``."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.name = original.name
        self.shapes = [s.strip() for s in (original.shapes or "").split(",") if s.strip()]
        self.discrete = hasattr(original, "pmf")

    def __call__(self, *given: Any, **named: Any) -> _Frozen:
        """With parameters."""
        return _Frozen(self, given, named)

    def __getattr__(self, name: str) -> Any:
        log_density = "logpmf" if self.discrete else "logpdf"
        if name == log_density:
            return self._log_density
        if name == log_density.removeprefix("log"):
            return lambda *given, **named: np.exp(self._log_density(*given, **named))
        if name in _CUMULATIVE.get(self.name, {}):
            return functools.partial(self._cumulative, name)
        if name in ("ppf", "isf") and not self.discrete:
            return functools.partial(self._quantile, name)
        return functools.partial(self._unknown, name)

    def _standard(self, given: Sequence[Any], named: Mapping[str, Any]) -> tuple[Any, list[Any], Any]:
        """The value at location 0 and scale 1, the shape parameters, and the scale."""
        order = ["value", *self.shapes, "loc", *([] if self.discrete else ["scale"])]
        bound = {"loc": 0, "scale": 1, **dict(zip(order, given, strict=False)), **named}
        value = bound[next(k for k in ("value", "x", "k") if k in bound)]
        return (value - bound["loc"]) / bound["scale"], [bound[s] for s in self.shapes], bound["scale"]

    def _log_density(self, *given: Any, **named: Any) -> Any:
        (low, high), formula = _DENSITIES[self.name]
        x, shapes, scale = self._standard(given, named)
        result = formula(x, *shapes) - np.log(scale)
        for bound, outside in ((low, np.less), (high, np.greater)):
            result = np.where(outside(x, bound), -math.inf, result) if math.isfinite(bound) else result
        return result

    def _cumulative(self, name: str, *given: Any, **named: Any) -> Any:
        x, shapes, _ = self._standard(given, named)
        return _CUMULATIVE[self.name][name](x, *shapes)

    def _quantile(self, name: str, *given: Any, **named: Any) -> Any:
        """At probabilities that no argument has a part in, for any location and scale."""
        order = ["q", *self.shapes, "loc", "scale"]
        bound = {"loc": 0, "scale": 1, **dict(zip(order, given, strict=False)), **named}
        fixed = [bound["q"], *(bound[s] for s in self.shapes)]
        if any(type(v) is Recorder and not v.constant for v in fixed):
            refuse(f"scipy.stats.{self.name}.{name} at probabilities that depend on the arguments")
        return bound["loc"] + bound["scale"] * getattr(self.original, name)(*map(plain, fixed))

    def _unknown(self, name: str, *given: Any, **named: Any) -> Any:
        if any(type(v) is Recorder for v in (*given, *named.values())):
            refuse(f"scipy.stats.{self.name}.{name}: lossforge does not know this operation")
        return getattr(self.original, name)(*given, **named)


class _Frozen:
    """A distribution with its parameters."""

    def __init__(self, of: Distribution, given: Sequence[Any], named: Mapping[str, Any]) -> None:
        self.of, self.given, self.named = of, given, named

    def __getattr__(self, name: str) -> Any:
        return lambda *at: getattr(self.of, name)(*at, *self.given, **self.named)


class _MultivariateNormal:
    """The normal distribution of vectors."""

    def __call__(self, mean: Any = None, cov: Any = 1, **options: Any) -> Any:
        """With parameters."""
        frozen = {n: functools.partial(getattr(self, n), mean=mean, cov=cov) for n in ("logpdf", "pdf", "entropy")}
        return types.SimpleNamespace(mean=mean, cov=cov, **frozen)

    def logpdf(self, x: Any, mean: Any = None, cov: Any = 1, **options: Any) -> Any:
        """The logarithm of its density."""
        cov = np.diag(cov) if np.ndim(cov) == 1 else cov
        if np.ndim(cov) == 0:
            size = np.shape(x if mean is None or np.ndim(mean) == 0 else mean)
            cov = cov * active().eye(size[-1] if size else 1)
        d = x if mean is None else x - mean
        d = d[..., None] if np.ndim(d) == 0 or (np.shape(cov)[0] == 1 and np.shape(d)[-1] != 1) else d
        squares = np.sum(d * (d @ np.linalg.inv(cov)), axis=-1)
        return -0.5 * (squares + np.linalg.slogdet(cov)[1]) - np.shape(cov)[0] * _HALF_LOG_TAU

    def pdf(self, *given: Any, **named: Any) -> Any:
        """Its density."""
        return np.exp(self.logpdf(*given, **named))

    def entropy(self, mean: Any = None, cov: Any = 1) -> Any:
        """Its entropy."""
        return 0.5 * np.linalg.slogdet(cov)[1] + np.shape(cov)[0] * (0.5 + _HALF_LOG_TAU)


def distribution(value: Any) -> Distribution | _MultivariateNormal | None:
    """The stand-in for a distribution of ``scipy.stats``, if it is known."""
    known = type(value).__module__.startswith("scipy.stats") and not inspect.isclass(value)
    if known and type(value).__name__ == "multivariate_normal_gen":
        return _MultivariateNormal()
    return Distribution(value) if known and getattr(value, "name", None) in _DENSITIES else None


def _entropy(pk: Any, qk: Any = None, base: Any = None, axis: int = 0) -> Any:
    p = pk / np.sum(pk, axis=axis, keepdims=True)
    if qk is None:
        total = np.sum(_U["entr"](p), axis=axis)
    else:
        total = np.sum(_U["rel_entr"](p, qk / np.sum(qk, axis=axis, keepdims=True)), axis=axis)
    return total if base is None else total / math.log(base)


def _zscore(a: Any, axis: int = 0, ddof: int = 0) -> Any:
    return (a - np.mean(a, axis=axis, keepdims=True)) / np.std(a, axis=axis, ddof=ddof, keepdims=True)


def _wasserstein(u: Any, v: Any) -> Any:
    if np.shape(u) != np.shape(v):
        refuse("scipy.stats.wasserstein_distance of samples of several sizes")
    return np.mean(np.abs(np.sort(u) - np.sort(v)))


# ------------------------------------------------------------------------------------- distances


def _cosine(u: Any, v: Any) -> Any:
    return 1 - np.sum(u * v, axis=-1) / np.sqrt(np.sum(u * u, axis=-1) * np.sum(v * v, axis=-1))


def _correlation(u: Any, v: Any) -> Any:
    return _cosine(u - np.mean(u, axis=-1, keepdims=True), v - np.mean(v, axis=-1, keepdims=True))


class _Correlated(NamedTuple):
    """What ``scipy.stats.pearsonr`` gives, without the probability of it."""

    statistic: Any
    pvalue: None = None


def _pearson(x: Any, y: Any, **options: Any) -> _Correlated:
    if options:
        refuse(f"scipy.stats.pearsonr with {sorted(options)[0]}")
    return _Correlated(1 - _correlation(x, y))


def _mahalanobis(u: Any, v: Any, VI: Any) -> Any:
    return np.sqrt(np.dot(np.dot(u - v, VI), u - v))


def _minkowski(u: Any, v: Any, p: float = 2) -> Any:
    return np.sum(np.abs(u - v) ** p, axis=-1) ** (1 / p)


def _canberra(u: Any, v: Any) -> Any:
    total = np.abs(u) + np.abs(v)
    return np.sum(np.where(total == 0, 0.0, np.abs(u - v) / np.where(total == 0, 1.0, total)), axis=-1)


def _jensenshannon(p: Any, q: Any, base: Any = None) -> Any:
    p, q = p / np.sum(p), q / np.sum(q)
    m = (p + q) / 2
    total = (np.sum(_U["rel_entr"](p, m)) + np.sum(_U["rel_entr"](q, m))) / 2
    return np.sqrt(total if base is None else total / math.log(base))


_DISTANCES: Mapping[str, Callable[..., Any]] = {
    "euclidean": lambda u, v: np.sqrt(np.sum((u - v) ** 2, axis=-1)), "sqeuclidean": lambda u, v: np.sum((u - v) ** 2, axis=-1),
    "cityblock": lambda u, v: np.sum(np.abs(u - v), axis=-1), "chebyshev": lambda u, v: np.max(np.abs(u - v), axis=-1),
    "minkowski": _minkowski, "cosine": _cosine, "correlation": _correlation, "canberra": _canberra,
    "mahalanobis": _mahalanobis, "braycurtis": lambda u, v: np.sum(np.abs(u - v), axis=-1) / np.sum(np.abs(u + v), axis=-1),
}  # fmt: skip
"""Between vectors along the last axis."""


def _cdist(a: Any, b: Any, metric: str = "euclidean", **options: Any) -> Any:
    if metric not in _DISTANCES:
        refuse(f"scipy.spatial.distance.cdist with metric={metric!r}")
    return _DISTANCES[metric](a[:, None, :], b[None, :, :], **options)


def _pdist(x: Any, metric: str = "euclidean", **options: Any) -> Any:
    distances = _cdist(x, x, metric, **options)
    return distances[composites.FUNCTIONS["triu_indices_from"](distances, 1)]


def _squareform(X: Any, *options: Any, **named: Any) -> Any:
    """The matrix of the distances that `_pdist` selected."""
    mask = X.mask if isinstance(X, Selection) else None
    if mask is None or np.ndim(mask) != 2 or not np.array_equal(mask.array, np.triu(np.ones(mask.shape, bool), 1)):
        refuse("scipy.spatial.distance.squareform of anything but distances of pdist")
    above = X.filled(0.0)
    return above + np.swapaxes(above, 0, 1)


# ------------------------------------------------------------------------------------- matrices


def _triangular(a: Any, lower: bool) -> Any:
    return np.tril(a) if lower else np.triu(a)


def _cholesky(a: Any, lower: bool = False, **options: Any) -> Any:
    factor = np.linalg.cholesky(a)
    return factor if lower else np.swapaxes(factor, 0, 1)


def _solve_triangular(
    a: Any, b: Any, trans: Any = 0, lower: bool = False, unit_diagonal: bool = False, **options: Any
) -> Any:
    if unit_diagonal:
        refuse("scipy.linalg.solve_triangular with unit_diagonal")
    t = _triangular(a, lower)
    return composites.solve(t if trans in (0, "N") else np.swapaxes(t, 0, 1), b)


def _cho_solve(c_and_lower: Any, b: Any, **options: Any) -> Any:
    c, lower = c_and_lower
    factor = _triangular(c, lower) if lower else np.swapaxes(_triangular(c, lower), 0, 1)
    return composites.solve(np.swapaxes(factor, 0, 1), composites.solve(factor, b))


# ------------------------------------------------------------------------------------- filters

_MODES = {
    "reflect": "symmetric",
    "mirror": "reflect",
    "nearest": "replicate",
    "constant": "constant",
    "wrap": "circular",
}
"""What ``scipy.ndimage`` calls ways of padding."""


def _correlated(a: Any, kernel: Any, mode: str, value: float, even: int = 0) -> Any:
    """The correlation of the size of `a`; kernels of even size lie `even` further."""
    widths = [(n // 2 - even * (n % 2 == 0), (n - 1) // 2 + even * (n % 2 == 0)) for n in np.shape(kernel)]
    return composites.correlation(a, kernel, widths, _MODES[mode], value)


def _filter(flips: bool) -> Callable[..., Any]:
    def function(
        input: Any, weights: Any, output: Any = None, mode: str = "reflect", cval: float = 0.0, origin: Any = 0
    ) -> Any:
        if np.any(origin) or output is not None:
            refuse("a filter of scipy.ndimage with output or origin")
        kernel = np.flip(np.asarray(plain(weights), dtype=float)) if flips else np.asarray(plain(weights), dtype=float)
        return _correlated(input, kernel, mode, cval, even=int(flips))

    return function


def _line(weights: Any, axis: int, rank: int) -> Any:
    return np.reshape(np.asarray(plain(weights), dtype=float), [-1 if d == axis % rank else 1 for d in range(rank)])


def _filter_1d(flips: bool) -> Callable[..., Any]:
    def function(input: Any, weights: Any, axis: int = -1, *rest: Any, **options: Any) -> Any:
        return _filter(flips)(input, _line(weights, axis, np.ndim(input)), *rest, **options)

    return function


_correlate1d = _filter_1d(False)


def _gaussian(sigma: float, truncate: float = 4.0, radius: int | None = None) -> np.ndarray:
    reach = int(truncate * sigma + 0.5) if radius is None else radius
    weights = np.exp(-0.5 / (sigma * sigma) * np.arange(-reach, reach + 1) ** 2)
    return weights / weights.sum()


def _gaussian_filter1d(
    input: Any, sigma: float, axis: int = -1, order: int = 0, output: Any = None, mode: str = "reflect",
    cval: float = 0.0, truncate: float = 4.0, *, radius: int | None = None,
) -> Any:  # fmt: skip
    if order:
        refuse("scipy.ndimage.gaussian_filter with order, for derivatives")
    return _correlate1d(input, _gaussian(sigma, truncate, radius), axis, output, mode, cval)


def _each_axis(filter_1d: Callable[..., Any]) -> Callable[..., Any]:
    """A filter along each axis in turn, with one size for all or one for each."""

    def function(input: Any, size: Any = 3, *rest: Any, **options: Any) -> Any:
        axes = options.pop("axes", None) or range(np.ndim(input))
        for axis, n in zip(axes, np.broadcast_to(size, len(axes)).tolist(), strict=True):
            input = filter_1d(input, n, axis, *rest, **options)
        return input

    return function


def _gaussian_filter(input: Any, sigma: Any, *rest: Any, **options: Any) -> Any:
    return _each_axis(_gaussian_filter1d)(input, sigma, *rest, **options)


def _uniform_filter1d(input: Any, size: int, axis: int = -1, *rest: Any, **options: Any) -> Any:
    return _correlate1d(input, np.full(size, 1 / size), axis, *rest, **options)


def _edges(across: Sequence[float]) -> Callable[..., Any]:
    """Differences along an axis, smoothed along the others."""

    def function(input: Any, axis: int = -1, output: Any = None, mode: str = "reflect", cval: float = 0.0) -> Any:
        result = _correlate1d(input, [-1, 0, 1], axis, output, mode, cval)
        for other in range(np.ndim(input)):
            if other != axis % np.ndim(input):
                result = _correlate1d(result, across, other, None, mode, cval)
        return result

    return function


def _laplace(input: Any, output: Any = None, mode: str = "reflect", cval: float = 0.0) -> Any:
    return sum(_correlate1d(input, [1, -2, 1], d, output, mode, cval) for d in range(np.ndim(input)))


def _convolved(flips: bool) -> Callable[..., Any]:
    """A convolution of ``scipy.signal``."""
    modes = {"fill": "constant", "symm": "symmetric", "wrap": "circular"}

    def function(
        in1: Any, in2: Any, mode: str = "full", boundary: Any = "fill", fillvalue: float = 0, **rest: Any
    ) -> Any:
        shape = np.shape(in2)
        if any(n < k for n, k in zip(np.shape(in1), shape, strict=True)):
            refuse("a convolution with a kernel larger than the array")
        widths = {"valid": [(0, 0)] * len(shape), "full": [(k - 1, k - 1) for k in shape],
                  "same": [(k // 2, (k - 1) // 2) for k in shape]}[mode]  # fmt: skip
        return composites.correlation(
            in1, np.flip(in2) if flips else in2, widths, modes.get(boundary, "constant"), fillvalue
        )

    return function


FUNCTIONS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("scipy.special", "logsumexp"): composites.logsumexp, ("scipy.special", "softmax"): composites.softmax,
    ("scipy.special", "log_softmax"): composites.log_softmax, ("scipy.special", "softplus"): _U["softplus"],
    ("scipy.special", "factorial"): lambda n, exact=False: composites.gamma(n + 1),
    ("scipy.special", "comb"): lambda N, k, **o: np.where(k > N, 0.0, np.exp(_log_choose(N, np.minimum(k, N)))),
    ("scipy.linalg", "solve_triangular"): _solve_triangular, ("scipy.linalg", "cholesky"): _cholesky,
    ("scipy.linalg", "cho_factor"): lambda a, lower=False, **o: (_cholesky(a, lower), lower), ("scipy.linalg", "cho_solve"): _cho_solve,
    **{("scipy.linalg", name): composites.FUNCTIONS[name] for name in ("inv", "det", "norm")},
    ("scipy.linalg", "solve"): lambda a, b, **o: composites.solve(a, b), ("scipy.spatial.distance", "squareform"): _squareform,
    ("scipy.stats", "entropy"): _entropy, ("scipy.stats", "zscore"): _zscore,
    ("scipy.stats", "wasserstein_distance"): _wasserstein, ("scipy.stats", "pearsonr"): _pearson,
    **{("scipy.spatial.distance", name): function for name, function in _DISTANCES.items()},
    ("scipy.spatial.distance", "jensenshannon"): _jensenshannon,
    ("scipy.spatial.distance", "cdist"): _cdist, ("scipy.spatial.distance", "pdist"): _pdist,
    ("scipy.ndimage", "correlate"): _filter(False), ("scipy.ndimage", "convolve"): _filter(True),
    ("scipy.ndimage", "correlate1d"): _correlate1d, ("scipy.ndimage", "convolve1d"): _filter_1d(True),
    ("scipy.ndimage", "gaussian_filter1d"): _gaussian_filter1d, ("scipy.ndimage", "gaussian_filter"): _gaussian_filter,
    ("scipy.ndimage", "uniform_filter1d"): _uniform_filter1d, ("scipy.ndimage", "uniform_filter"): _each_axis(_uniform_filter1d),
    ("scipy.ndimage", "sobel"): _edges([1, 2, 1]), ("scipy.ndimage", "prewitt"): _edges([1, 1, 1]),
    ("scipy.ndimage", "laplace"): _laplace,
    **{("scipy.signal", name): _convolved(True) for name in ("convolve2d", "convolve", "fftconvolve", "oaconvolve")},
    **{("scipy.signal", name): _convolved(False) for name in ("correlate2d", "correlate")},
    ("scipy.optimize", "rosen"): lambda x: np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2, axis=0),
}  # fmt: skip
"""By module (or what its name begins with) and name."""
