"""exp, log and what is made of them.

Arguments are reduced with a constant in two parts (W. Cody and W. Waite, Software Manual for the Elementary
Functions, 1980), and a minimax polynomial does the rest (J.-M. Muller, Elementary Functions, 3rd ed.,
chapters 3 and 11). A result whose leading term is known is written as that term plus a correction, so that
the last rounding is nearly the only one.
"""

from __future__ import annotations

import math

from lossforge.codegen.vector_math.coefficients import POLYNOMIALS
from lossforge.codegen.vector_math.emit import (
    DOUBLE,
    WIDE,
    Value,
    absolute,
    clamp,
    evaluate,
    flip_sign,
    library,
    nearest,
    select,
    sqrt,
    with_sign,
)

LOG2_E = 1 / math.log(2)

#: ln 2 in two parts by fraction bits: the first so short that its product with any exponent is exact.
LN2 = {
    23: (float.fromhex("0x1.62e4p-1"), float.fromhex("0x1.7f7d1cf79abcap-20")),
    52: (float.fromhex("0x1.62e42fefa38p-1"), float.fromhex("0x1.ef35793c7673p-45")),
}

#: Arguments of exp beyond which it has under- or overflowed for good: also when its result is halved, and when it
#: joins a sum of many before it is rounded, as the last factor does where it is fused with the addition.
EXP_RANGE = {"single": (-170.0, 90.0), "wide": (-300.0, 300.0), "double": (-1400.0, 712.0)}


def polynomial(name: str, z: Value) -> Value:
    """The polynomial of that name in the format of z."""
    return evaluate(z, POLYNOMIALS[name][z.form.name])


# ---------------------------------------------------------------------- exp


def rounded(x: Value, offset: int) -> tuple[Value, Value]:
    """n, the nearest integer, and an encoding whose low bits are n + offset.

    Adding 1.5 * 2**fraction leaves no room for digits after the point.
    """
    shift = x.real(1.5 * 2.0**x.form.fraction + offset)
    shifted = x + shift
    return shifted - shift, shifted.bits()


def _power_of_two(encoded: Value) -> Value:
    """2**n for an encoding whose low bits are n + bias."""
    return (encoded << encoded.form.fraction).number()


def _exp_reduced(x: Value, offset: int, tail: Value | None = None) -> tuple[Value, Value]:
    """r of x + tail = n ln 2 + r with |r| <= ln 2 / 2, and an encoding whose low bits are n + offset."""
    ln2_hi, ln2_lo = LN2[x.form.fraction]
    n, encoded = rounded(x * LOG2_E, offset)
    r = (x - n * ln2_hi) - n * ln2_lo
    return r if tail is None else r + tail, encoded


def _exp_core(r: Value) -> Value:
    """e**r for |r| <= ln 2 / 2, to 1.2 ulp."""
    return (polynomial("exp", r) * r + 1.0) * r + 1.0


def exp(x: Value, doublings: int = 0) -> Value:
    """e**x."""
    form = x.form
    x = clamp(x, *EXP_RANGE[form.name])
    if form is WIDE:
        r, encoded = _exp_reduced(x, form.bias + doublings)
        return _exp_core(r) * _power_of_two(encoded)
    # Scaled in two steps, lest 2**n overflows or a denormal result is rounded twice.
    r, encoded = _exp_reduced(x, 2 * form.bias + doublings)
    both = encoded - x.real(1.5 * 2.0**form.fraction).bits()
    half = both >> 1
    return _exp_core(r) * _power_of_two(half) * _power_of_two(both - half)


def exp_negative(x: Value, tail: Value | None = None) -> Value:
    """e**(x + tail) for x <= 0 and a tail of a few units in the last place of x."""
    form = x.form
    lift = 0 if form is WIDE else form.bias // 2  # enough to keep the first product normal
    lowest = max(EXP_RANGE[form.name][0], -(form.bias + lift - 2) * math.log(2))
    r, encoded = _exp_reduced(clamp(x, lowest, None), form.bias + lift, tail)
    scale = _power_of_two(encoded)
    return ((scale * r) * (polynomial("exp", r) * r + 1.0) + scale) * 2.0**-lift


def expm1(x: Value) -> Value:
    """e**x - 1 without cancellation."""
    form = x.form
    # 2**n is halved, because it may overflow where the result does not.
    x_ranged = clamp(x, -(form.fraction + 3) * math.log(2), (form.bias + 1.25) * math.log(2))
    r, encoded = _exp_reduced(x_ranged, form.bias - 1)
    y = (r * r) * polynomial("exp", r) + r
    scale = _power_of_two(encoded)
    half = scale * y + (scale - 0.5)
    return select(absolute(x) < 2.0 ** -(form.fraction + 2), x, half + half)


# ---------------------------------------------------------------------- log


def _log_reduced(x: Value) -> tuple[Value, Value]:
    """f, and k + bias as an integer, of x = 2**k (1 + f), sqrt(1/2) <= 1 + f < sqrt(2); x > 0 is normal."""
    fraction = x.form.fraction
    lowest = x.real(math.sqrt(0.5)).bits()
    shifted = x.bits() + (x.real(1.0).bits() - lowest)
    return ((shifted & ((1 << fraction) - 1)) + lowest).number() - 1.0, shifted >> fraction


def _as_number(k: Value) -> Value:
    """k - bias as a number, for an encoded exponent k: as the fraction of a number with fixed exponent."""
    one = k.real(2.0**k.form.fraction)
    return (k | one.bits()).number() - (2.0**k.form.fraction + k.form.bias)


def _log_assembled(f: Value, k: Value) -> Value:
    """k ln 2 + log(1 + f)."""
    ln2_hi, ln2_lo = LN2[f.form.fraction]
    return k * ln2_hi + ((f * f) * polynomial("log", f) + (k * ln2_lo + f))


def _log_limits(x: Value, y: Value, zero: float) -> Value:
    """y, but what log has to be at and beyond its singularity `zero`, at infinity and at NaN."""
    y = select(x.equals(math.inf), x, y)
    return select(x > zero, y, select(x.equals(zero), -math.inf, math.nan))


def log(x: Value) -> Value:
    """Natural logarithm: -inf at 0, NaN below."""
    form = x.form
    if form is WIDE:  # no float32 is denormal here
        f, k = _log_reduced(x)
        return _log_limits(x, _log_assembled(f, _as_number(k)), 0.0)
    tiny = x < 2.0 ** (1 - form.bias)
    lift = form.fraction + 1
    f, k = _log_reduced(select(tiny, x * 2.0**lift, x))
    return _log_limits(x, _log_assembled(f, _as_number(k) - select(tiny, lift, 0.0)), 0.0)


def log1p(x: Value) -> Value:
    """log(1 + x) without cancellation."""
    form = x.form
    _, k = _log_reduced(1.0 + x)
    # 1 + f = 2**-k (1 + x), where the product and 2**-k - 1 are exact. The factors of 4 keep 2**-k normal.
    scale = (((2 * form.bias + 2) - k) << form.fraction).number()
    f = (0.25 * x) * scale + (0.25 * scale - 1.0)
    y = _log_limits(x, _log_assembled(f, _as_number(k)), -1.0)
    return select(absolute(x) < 2.0 ** -(form.fraction + 2), x, y)


def _plus_log1p(base: Value, e: Value) -> Value:
    """base + log(1 + e) for 0 <= e <= 1, in the order in which the first sum, and its error, is small."""
    return ((e * e) * polynomial("log1p", e) + base) + e


def xlogy(x: Value, y: Value) -> Value:
    """x log(y), and 0 where x is 0, whatever y is but NaN."""
    return select(x.equals(0.0) & y.equals(y), 0.0, x * log(y))


def logaddexp(x: Value, y: Value) -> Value:
    """log(e**x + e**y) without overflow."""
    distance = absolute(select(x.equals(y), 0.0, x - y))  # equal infinities have no difference
    return _plus_log1p(select(x > y, x, y), exp_negative(-distance))


# ---------------------------------------------------------------------- sigmoids: all share exp(-|x|)


def sigmoid(x: Value) -> Value:
    """1 / (1 + e**-x)."""
    e = exp_negative(-absolute(x))
    top = select(x < 0.0, e, 1.0)
    return top - top * (e / (1.0 + e))  # top / (1 + e), less the error of the sum


def softplus(x: Value) -> Value:
    """log(1 + e**x)."""
    return _plus_log1p(select(x > 0.0, x, 0.0), exp_negative(-absolute(x)))


def log_sigmoid(x: Value) -> Value:
    """log(1 / (1 + e**-x))."""
    return -softplus(-x)


# ---------------------------------------------------------------------- hyperbolic


def tanh(x: Value) -> Value:
    """Hyperbolic tangent."""
    a = absolute(x)
    z = a * a
    small = a + a * (z * polynomial("tanh", z))
    e = exp_negative(-2.0 * a)
    return with_sign(select(a < 0.8, small, 1.0 - 2.0 * e / (1.0 + e)), x)


def sinh(x: Value) -> Value:
    """Hyperbolic sine."""
    a = absolute(x)
    z = a * a
    e = exp(a, -1)
    return with_sign(select(a < 1.0, a + a * (z * polynomial("sinh", z)), e - 0.25 / e), x)


def cosh(x: Value) -> Value:
    """Hyperbolic cosine."""
    e = exp(absolute(x), -1)
    return e + 0.25 / e


def asinh(x: Value) -> Value:
    """Inverse hyperbolic sine."""
    a = absolute(x)
    z = a * a
    large = a > 2.0**28  # log(2 a) to the last place, and z may overflow
    y = log1p(select(large, a - 1.0, a + z / (1.0 + sqrt(1.0 + z)))) + select(large, math.log(2), 0.0)
    return with_sign(y, x)


def acosh(x: Value) -> Value:
    """Inverse hyperbolic cosine, not negative: NaN below 1."""
    t = x - 1.0
    large = x > 2.0**28
    y = log1p(select(large, t, t + sqrt(t * (t + 2.0)))) + select(large, math.log(2), 0.0)
    return select(x < 1.0, math.nan, y)


def atanh(x: Value) -> Value:
    """Inverse hyperbolic tangent: NaN outside [-1, 1]."""
    a = absolute(x)
    return with_sign(0.5 * log1p(2.0 * a / (1.0 - a)), x)


# ---------------------------------------------------------------------- power


def power(x: Value, y: Value) -> Value:
    """x**y as IEEE 754 defines it: as exp2(y log2(x)) in double arithmetic if the result will be single.

    NaN for a negative base and an exponent that is no integer; 1 for x == 1 or y == 0, even with NaN.
    """
    if x.form is DOUBLE:  # log2(x) would be needed in twice that precision
        return library("pow", x, y)
    # Of y alone, so the compiler takes it out of the loop where y does not change. The bounds change no
    # result but that of y == 0, and they let -inf and inf stand for log2 of 0 and of inf.
    y_integer = nearest(y).equals(y)
    y_odd = y_integer & ~nearest(0.5 * y).equals(0.5 * y)
    exponent = flip_sign(clamp(absolute(y), 2.0**-32, 2.0**32), y)

    a = absolute(x)
    f, k = _log_reduced(a)
    log2 = f * polynomial("log2", f) + _as_number(k)
    log2 = select(a < math.inf, select(a.equals(0.0), -math.inf, log2), a)
    product = clamp(exponent * log2, *EXP_RANGE["wide"])
    n, encoded = rounded(product, x.form.bias)
    magnitude = polynomial("exp2", product - n) * _power_of_two(encoded)

    signed = (magnitude.bits() | select(y_odd, x.real(-0.0), 0.0).bits() & x.bits()).number()
    undefined = (x > -math.inf) & (x < select(y_integer, -math.inf, 0.0))
    return select(x.equals(1.0) | y.equals(0.0), 1.0, select(undefined, math.nan, signed))
