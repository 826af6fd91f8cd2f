"""The error function and the gamma family.

Sources: M. Shepherd and J. Laframboise, Math. Comp. 36 (1981), for erfc; M. Abramowitz and I. Stegun,
Handbook of Mathematical Functions, sections 6.1, 6.3 and 6.4, for the gamma family's recurrences,
reflections and asymptotic series.
"""

from __future__ import annotations

import math

from lossforge.codegen.vector_math.emit import (
    DOUBLE,
    SINGLE,
    Value,
    absolute,
    clamp,
    evaluate,
    library,
    nearest,
    select,
    with_sign,
)
from lossforge.codegen.vector_math.exponential import exp_negative, log, polynomial, rounded
from lossforge.codegen.vector_math.trigonometric import sin_cos

# ---------------------------------------------------------------------- error function


def _erfc_positive(a: Value) -> Value:
    """erfc(a) for a >= 0."""
    a = clamp(a, None, 28.0)  # where erfc is 0 in double
    head = (a.bits() & -(1 << 27)).number()  # so few bits that its square is exact
    gauss = exp_negative(-(head * head), (head - a) * (head + a))
    return gauss * polynomial("erfc", (a - 4.0) / (a + 4.0)) / (1.0 + a)


def erf(x: Value) -> Value:
    """The error function."""
    a = absolute(x)
    small = a + a * polynomial("erf", a * a)
    if x.form is SINGLE:
        tail = exp_negative(polynomial("erf_tail", clamp(a, None, 4.0)))
    else:
        tail = _erfc_positive(a)
    return with_sign(select(a < 1.0, small, 1.0 - tail), x)


def erfc(x: Value) -> Value:
    """1 - erf(x) without cancellation."""
    y = _erfc_positive(absolute(x))
    return select(x < 0.0, 2.0 - y, y)


# ---------------------------------------------------------------------- gamma family

#: B_2k for k = 1 ... 7.
BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)
#: Where the asymptotic series with those terms is exact to double precision.
ASYMPTOTIC = 10.0

#: The positive zero of digamma, in two parts.
DIGAMMA_ROOT = (float.fromhex("0x1.762d86356be3fp+0"), float.fromhex("0x1.b86a722197829p-54"))


def _sin_cos_pi(a: Value) -> tuple[Value, Value]:
    """sin(pi a) and cos(pi a) for a >= 0, up to a common sign."""
    r = a - nearest(a)
    h = absolute(r)
    swap = h > 0.25
    sine, cosine = sin_cos(select(swap, 0.5 - h, h) * math.pi)
    return with_sign(select(swap, cosine, sine), r), select(swap, sine, cosine)


def digamma(x: Value) -> Value:
    """The logarithmic derivative of the gamma function: NaN at the negative integers, -inf at +0."""
    # Below 0 by reflection.
    a = select(x < 0.0, 1.0 - x, x)
    # Up to 3, from the interval [1, 2] where the zero is a factor and one step of the recurrence.
    low, high, near = a < 1.0, a > 2.0, a < 3.0
    base = select(low, a + 1.0, select(high, a - 1.0, a))
    root_hi, root_lo = DIGAMMA_ROOT
    centre = ((base - root_hi) - root_lo) * polynomial("digamma", clamp(base - 1.5, None, 0.5))
    # Beyond 3, from the asymptotic series; seven steps of the recurrence are the logarithmic derivative of
    # a (a + 1) ... (a + 6).
    far = a >= ASYMPTOTIC
    w = select(far, a, a + 7.0)
    product, slope = a, a.real(1.0)
    for i in range(1, 7):
        slope = slope * (a + float(i)) + product
        product = product * (a + float(i))
    z = 1.0 / (w * w)
    series = z * evaluate(z, [b / (2 * k) for k, b in enumerate(BERNOULLI, 1)])
    tail = log(w) - (0.5 / w + series)
    over = select(near, select(low, -1.0, select(high, 1.0, 0.0)), select(far, 0.0, -slope))
    under = select(near, select(high, a - 1.0, a), select(far, 1.0, product))
    y = select(near, centre, tail) + over / under
    sine, cosine = _sin_cos_pi(absolute(x))
    reflected = select(sine.equals(0.0), math.nan, y + math.pi * cosine / sine)
    return select(x < 0.0, reflected, y)


def lgamma(x: Value) -> Value:
    """log |gamma(x)|, with +inf at the poles."""
    if x.form is DOUBLE:  # near its zeros below 0, and between 2.5 and 10, what follows loses some digits
        return library("lgamma", x)
    a = absolute(x)
    # gamma(a) = e**body / divisor. Up to 2.5, from the interval [1.5, 2.5] where the zero is a factor.
    near = a < 2.5
    d = select(a < 0.5, a, select(a < 1.5, a - 1.0, a - 2.0))
    rising = a * (a + 1.0)
    divisor = select(a < 0.5, rising, select(a < 1.5, a, 1.0))
    # Beyond, from Stirling's series after eight steps of the recurrence.
    far = a >= ASYMPTOTIC
    for i in range(2, 8):
        rising = rising * (a + float(i))
    w = select(far, a, a + 8.0)
    z = 1.0 / (w * w)
    series = evaluate(z, [b / (2 * k * (2 * k - 1)) for k, b in enumerate(BERNOULLI, 1)]) / w
    stirling = (w - 0.5) * (log(w) - 1.0) + (0.5 * math.log(2 * math.pi) - 0.5 + series)
    body = select(near, d * polynomial("lgamma", d), stirling)
    divisor = select(near, divisor, select(far, 1.0, rising))
    # Below 0, gamma(x) gamma(-x) = -pi / (x sin(pi x)).
    sine, _ = _sin_cos_pi(a)
    negative = x < 0.0
    divisor = select(negative, a * absolute(sine) / (math.pi * divisor), divisor)
    y = select(negative, -body, body) - log(divisor)
    return select(a.equals(math.inf), math.inf, y)


#: Orders of polygamma for which its series is exact enough.
HIGHEST_ORDER = 15


def polygamma(n: Value, x: Value) -> Value:
    """The n-th derivative of digamma at x > 0, for an integer n from 1 to 15; NaN elsewhere."""
    valid = nearest(n).equals(n) & (n >= 1.0) & (n <= HIGHEST_ORDER) & (x > 0.0)
    _, order = rounded(clamp(n, 0.0, HIGHEST_ORDER), 0)

    def to_the_n(r: Value) -> Value:
        result = r.real(1.0)
        for place in range(HIGHEST_ORDER.bit_length()):
            result = select(order.bit(place), result * r, result)
            r = r * r
        return result

    # (-1)**(n + 1) polygamma(n, x) / (n - 1)! is n times the sum of (x + i)**-(n + 1), over 16 steps of the
    # recurrence, plus w**-n (1 + n / 2w + sum of B_2k (n + 2k - 1)! / ((n - 1)! (2k)! w**2k)) at w = x + 16.
    steps = 16
    total = x.real(0.0)
    for i in range(steps):
        r = 1.0 / (x + float(i))
        total = total + to_the_n(r) * r
    far = x >= float(steps)
    r = 1.0 / select(far, x, x + float(steps))
    series = 1.0 + 0.5 * n * r
    term = x.real(1.0)
    for k, b in enumerate(BERNOULLI):
        term = term * (n + 2.0 * k) * (n + (2.0 * k + 1.0)) * (r * r) * (1 / ((2 * k + 1) * (2 * k + 2)))
        series = series + b * term
    size = n * select(far, 0.0, total) + to_the_n(r) * series
    for i in range(2, HIGHEST_ORDER):
        size = size * select(n > float(i), float(i), 1.0)
    return select(valid, select(order.bit(0), size, -size), math.nan)
