"""Losses of real numbers, all elementwise; in their formulas e stands for pred − true."""

import lossforge as lf


@lf.loss
def squared_error(pred, true):
    """The squared error, whose minimiser is the mean.

        e²

    Shapes: pred and true of one shape, any; one loss for each entry.
    Domain: real numbers.
    Source: Gauss, *Theoria motus corporum coelestium* (1809); Hastie, Tibshirani & Friedman, *The Elements of
    Statistical Learning* (2009), section 2.4.
    """
    return (pred - true) ** 2


@lf.loss
def weighted_squared_error(pred, true, w):
    """The squared error of observations of different precision, with a gradient written by hand.

        w e²

    The weight is an argument: with ``reduction="sum"`` this is weighted least squares, and a mean divides
    by the number of entries. (The option `weight=`, which every loss takes, divides a mean by the sum of
    the weights.)

    Shapes: pred, true and w of one shape, any; one loss for each entry.
    Domain: real numbers, w ≥ 0.
    Source: Aitken, *On least squares and linear combination of observations* (1936).
    """
    return w * (true - pred) ** 2


@weighted_squared_error.gradient
def _weighted_squared_error_gradient(pred, true, w):
    return -2 * w * (true - pred)


@lf.loss
def absolute_error(pred, true):
    """The absolute error, whose minimiser is the median; the subgradient at e = 0 is 0.

        |e|

    Shapes: pred and true of one shape, any; one loss for each entry.
    Domain: real numbers.
    Source: Laplace, *Théorie analytique des probabilités* (1812); Hastie, Tibshirani & Friedman, *The
    Elements of Statistical Learning* (2009), section 10.6.
    """
    return lf.abs(pred - true)


@lf.loss
def huber(pred, true, *, delta=1.0):
    """Huber's loss: squared for small errors, linear for outliers, once differentiable.

        e²/2 where |e| ≤ δ, else δ (|e| − δ/2)

    Shapes: pred and true of one shape, any; one loss for each entry.
    Domain: real numbers, delta > 0.
    Source: Huber, *Robust estimation of a location parameter* (1964).
    """
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


@lf.loss
def smooth_l1(pred, true, *, beta=1.0):
    """Huber's loss over its threshold, so that the slope of the linear part is 1 for every `beta`.

        e²/(2β) where |e| ≤ β, else |e| − β/2

    Shapes: pred and true of one shape, any; one loss for each entry.
    Domain: real numbers, beta > 0.
    Source: Girshick, *Fast R-CNN* (2015), equation 3.
    """
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, beta)
    return 0.5 * quadratic**2 / beta + error - quadratic


@lf.loss
def pseudo_huber(pred, true, *, delta=1.0):
    """A smooth relative of Huber's loss: e²/2 near 0, slope δ far out, differentiable everywhere.

        δ² (√(1 + (e/δ)²) − 1), written as e² / (√(1 + (e/δ)²) + 1), which does not cancel

    Shapes: pred and true of one shape, any; one loss for each entry.
    Domain: real numbers, delta > 0.
    Source: Hartley & Zisserman, *Multiple View Geometry in Computer Vision* (2003), appendix 6.8.
    """
    error = pred - true
    return error**2 / (lf.sqrt(1 + (error / delta) ** 2) + 1)


@lf.loss
def charbonnier(pred, true, *, epsilon=1e-3):
    """The absolute error with its kink rounded off.

        √(e² + ε²)

    Shapes: pred and true of one shape, any; one loss for each entry.
    Domain: real numbers, epsilon > 0.
    Source: Charbonnier, Blanc-Féraud, Aubert & Barlaud, *Two deterministic half-quadratic regularization
    algorithms for computed imaging* (1994).
    """
    return lf.sqrt((pred - true) ** 2 + epsilon**2)


@lf.loss
def quantile(pred, true, *, q=0.5):
    """The pinball loss, whose minimiser is the q-quantile; the subgradient at e = 0 is 0.

        q max(−e, 0) + (1 − q) max(e, 0)

    Shapes: pred and true of one shape, any; one loss for each entry.
    Domain: real numbers, 0 < q < 1.
    Source: Koenker & Bassett, *Regression quantiles* (1978).
    """
    return q * lf.relu(true - pred) + (1 - q) * lf.relu(pred - true)


@lf.loss
def log_cosh(pred, true):
    """The logarithm of the hyperbolic cosine: e²/2 near 0, |e| − log 2 far out, smooth everywhere.

        log cosh e, written as |e| + log(1 + (exp(−2|e|) − 1)/2), which neither overflows nor loses small
        errors

    Shapes: pred and true of one shape, any; one loss for each entry.
    Domain: real numbers.
    Source: Green, *Bayesian reconstructions from emission tomography data using a modified EM algorithm*
    (1990).
    """
    error = lf.abs(pred - true)
    return error + lf.log1p(0.5 * lf.expm1(-2 * error))


@log_cosh.gradient
def _log_cosh_gradient(pred, true):
    return lf.tanh(pred - true)  # the derived form cancels near 0


__all__ = [
    "absolute_error",
    "charbonnier",
    "huber",
    "log_cosh",
    "pseudo_huber",
    "quantile",
    "smooth_l1",
    "squared_error",
    "weighted_squared_error",
]
