"""Functions that the table of primitives lacks, as formulas that are exact as far as float32 is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lossforge import ir


def _f(op: str, *args: Any) -> Any:
    return ir.elementwise(op, *args)


def _polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    """The value at x, the coefficient of the highest power first."""
    result: Any = coefficients[0]
    for c in coefficients[1:]:
        result = result * x + c
    return result


_MIDDLE = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
           0.246640727, 1.50140941)  # fmt: skip
_TAIL = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
         1.00167406, 2.83297682)  # fmt: skip


def erf_inverse(x: Any) -> Any:
    """The inverse of the error function: M. Giles, Approximating the erfinv function (2011), and a step of Newton's."""
    w = -_f("log", (1.0 - x) * (1.0 + x))
    near = _polynomial(_f("minimum", w, 5.0) - 2.5, _MIDDLE)
    far = _polynomial(_f("sqrt", _f("maximum", w, 5.0)) - 3.0, _TAIL)
    y = x * _f("where", _f("lt", w, 5.0), near, far)
    return y - (_f("erf", y) - x) * _f("exp", y * y) * (math.sqrt(math.pi) / 2)


_I0 = (0.0045813, 0.0360768, 0.2659732, 1.2067492, 3.0899424, 3.5156229, 1.0)
_I0_FAR = (
    0.00392377,
    -0.01647633,
    0.02635537,
    -0.02057706,
    0.00916281,
    -0.00157565,
    0.00225319,
    0.01328592,
    0.39894228,
)
_I1 = (0.00032411, 0.00301532, 0.02658733, 0.15084934, 0.51498869, 0.87890594, 0.5)
_I1_FAR = (
    -0.00420059,
    0.01787654,
    -0.02895312,
    0.02282967,
    -0.01031555,
    0.00163801,
    -0.00362018,
    -0.03988024,
    0.39894228,
)
_BOUND = 3.75


def bessel_i0e(x: Any) -> Any:
    """exp(−|x|) I₀(x): M. Abramowitz and I. Stegun, Handbook of Mathematical Functions (1964), 9.8.1 and 9.8.2."""
    return _scaled(x, _I0, _I0_FAR)


def bessel_i1e(x: Any) -> Any:
    """exp(−|x|) I₁(x): 9.8.3 and 9.8.4 of the same."""
    size = _f("abs", x)
    return _f("where", _f("lt", size, _BOUND), x, _f("sign", x)) * _scaled(x, _I1, _I1_FAR)


def _scaled(x: Any, near: Sequence[float], far: Sequence[float]) -> Any:
    size = _f("abs", x)
    low, high = _f("minimum", size, _BOUND), _f("maximum", size, _BOUND)
    here = _f("exp", -low) * _polynomial((low / _BOUND) ** 2, near)
    return _f("where", _f("lt", size, _BOUND), here, _polynomial(_BOUND / high, far) / _f("sqrt", high))


def unscaled(function: Any) -> Any:
    """The function without the factor exp(−|x|)."""
    return lambda x: _f("exp", _f("abs", x)) * function(x)


def normal_quantile(p: Any) -> Any:
    """The inverse of the distribution function of the standard normal distribution."""
    return math.sqrt(2.0) * erf_inverse(2.0 * p - 1.0)


NAMED = {
    "erfinv": erf_inverse,
    "ndtri": normal_quantile,
    "i0e": bessel_i0e,
    "i1e": bessel_i1e,
    "i0": unscaled(bessel_i0e),
    "i1": unscaled(bessel_i1e),
}
"""By their usual names."""
