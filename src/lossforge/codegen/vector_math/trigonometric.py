"""sin, cos, tan and their inverses (J.-M. Muller, Elementary Functions, 3rd ed., chapters 11 and 12)."""

from __future__ import annotations

import math

from lossforge.codegen.vector_math.emit import (
    DOUBLE,
    Value,
    absolute,
    flip_sign,
    library,
    nearest,
    select,
    sign_bit,
    sqrt,
    with_sign,
)
from lossforge.codegen.vector_math.exponential import polynomial

#: 2/pi cut into pieces of 29 bits: 24 + 29 = 53, so that their products with a float32 are exact in float64.
#: Seven pieces reach 2**-203. A float32 is below 2**128 and at least 2**-34 pi/2 away from all multiples of
#: pi/2 but 0, so the remainder keeps the 2**-32 relative to itself that a single result needs.
TWO_OVER_PI = tuple(
    map(
        float.fromhex,
        (
            "0x1.45f306dp-1",
            "0x1.9391054p-30",
            "0x1.4fe13abp-59",
            "0x1.d1f534dp-88",
            "0x1.b81b6c5p-117",
            "0x1.5993c4p-148",
            "0x1.c820ff3p-175",
        ),
    )
)
#: pi minus its nearest float64.
PI_LO = 1.2246467991473532e-16


def _quarter_turns(x: Value) -> tuple[Value, Value]:
    """An integer q modulo 4, and r with |r| <= 1/2, of x = (q + r) pi/2 for a float32 x >= 0 of any size.

    Each product with a piece is exact, and so is its remainder modulo 4: whole turns drop out before they can
    drown the fraction (M. Payne and R. Hanek, SIGNUM Newsletter 18, 1983, do it with the bits of integers).
    """
    q = x.real(0.0)
    r = x.real(0.0)
    for piece in TWO_OVER_PI:
        product = x * piece
        r = r + (product - 4.0 * nearest(0.25 * product))
        whole = nearest(r)
        q = q + whole
        r = r - whole
    return (q + 1.5 * 2.0**x.form.fraction).bits(), r


def sin_cos(x: Value) -> tuple[Value, Value]:
    """sin and cos of |x| <= pi/4."""
    z = x * x
    sine = x + x * (z * polynomial("sin", z))
    cosine = 1.0 - (0.5 * z - z * z * polynomial("cos", z))
    return sine, cosine


def _circular(x: Value) -> tuple[Value, Value, Value]:
    """sin r, cos r and q of x = q pi/2 + r, where |r| <= pi/4."""
    q, r = _quarter_turns(x)
    return *sin_cos(r * (math.pi / 2)), q


def sin(x: Value) -> Value:
    """Sine, of arguments of any size."""
    if x.form is DOUBLE:
        return library("sin", x)
    sine, cosine, q = _circular(absolute(x))
    y = select(q.bit(0), cosine, sine)
    return flip_sign(select(q.bit(1), -y, y), x)


def cos(x: Value) -> Value:
    """Cosine, of arguments of any size."""
    if x.form is DOUBLE:
        return library("cos", x)
    sine, cosine, q = _circular(absolute(x))
    y = select(q.bit(0), sine, cosine)
    return select((q + 1).bit(1), -y, y)


def tan(x: Value) -> Value:
    """Tangent, of arguments of any size."""
    if x.form is DOUBLE:
        return library("tan", x)
    sine, cosine, q = _circular(absolute(x))
    odd = q.bit(0)
    return flip_sign(select(odd, -cosine, sine) / select(odd, sine, cosine), x)


def _angle(y: Value, x: Value) -> Value:
    """atan(y / x) in [0, pi/2] for y >= 0 and x >= 0, not both 0 or infinite.

    Around 0, pi/4 and pi/2 the remaining angle is at most pi/8; one division serves all three.
    """
    steep = y > x * (1 + math.sqrt(2))
    flat = y < x * (math.sqrt(2) - 1)
    over = select(steep, -x, select(flat, y, y - x))
    under = select(steep, y, select(flat, x, y + x))
    t = over / under
    z = t * t
    corner = select(steep, math.pi / 2, select(flat, 0.0, math.pi / 4))
    corner_lo = select(steep, PI_LO / 2, select(flat, 0.0, PI_LO / 4))
    return corner + (t + (corner_lo + t * (z * polynomial("atan", z))))


def atan(x: Value) -> Value:
    """Inverse tangent."""
    return with_sign(_angle(absolute(x), x.real(1.0)), x)


def asin(x: Value) -> Value:
    """Inverse sine: NaN outside [-1, 1]."""
    a = absolute(x)
    return with_sign(_angle(a, sqrt((1.0 - a) * (1.0 + a))), x)


def acos(x: Value) -> Value:
    """Inverse cosine: NaN outside [-1, 1]."""
    a = absolute(x)
    angle = _angle(sqrt((1.0 - a) * (1.0 + a)), a)
    return select(x < 0.0, math.pi - (angle - PI_LO), angle)


def atan2(y: Value, x: Value) -> Value:
    """The angle of the point (x, y), in [-pi, pi], with the conventions of C for zeros and infinities."""
    if x.form is DOUBLE:
        return library("atan2", y, x)
    v, u = absolute(y), absolute(x)
    diagonal = v.equals(math.inf) & u.equals(math.inf)
    angle = _angle(select(diagonal, 1.0, v), select(diagonal | (v.equals(0.0) & u.equals(0.0)), 1.0, u))
    behind = sign_bit(x).bit(x.form.integer.width - 1)
    return with_sign(select(behind, math.pi - (angle - PI_LO), angle), y)
