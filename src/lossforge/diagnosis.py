"""What a wrong gradient is wrong by: the mistakes that people make, told from pairs of values.

The sign, a constant factor, a factor that is one of the inputs or a size (a forgotten weight, the gradient
of the mean in place of the sum). Each is a statement about the ratio of the two values over many points;
nothing is known of the formula itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_SAME = 1e-9
"""Ratios are quotients of float64 values; those of one formula agree to a few units of 1e-16."""


def diagnose(
    by_hand: np.ndarray,
    derived: np.ndarray,
    wrong: np.ndarray,
    floor: np.ndarray,
    factors: Mapping[str, np.ndarray],
    count: str = "",
) -> str | None:
    """The mistake in words; None if it is none of those with a name.

    Args:
        by_hand: values of the gradient in question at many points.
        derived: the right ones.
        wrong: where they differ by more than rounding.
        floor: the size below which a right value counts as 0.
        factors: what may have been forgotten or added: a value at each point, by name.
        count: which of the factors is the number of entries that a mean divides by.
    """
    undefined = wrong & ~np.isfinite(by_hand)
    if undefined[wrong].all():
        return f"it is not finite at {share(undefined)}, where the loss is smooth"
    zero = np.abs(derived) <= floor
    if not by_hand[wrong].any():
        return f"it is 0 at {share(wrong)}, where it should not be"
    if zero[wrong].all():
        return f"it is not 0 at {share(wrong)}, where it should be"
    telling = np.isfinite(by_hand) & ~zero
    ratio = by_hand[telling] / derived[telling]
    if (constant := _constant(ratio)) is not None:
        return _constant_factor(constant)
    for power in (1, -1, 2, -2):
        for name, values in factors.items():
            if (constant := _constant(_times(ratio, values[telling], power))) is not None:
                return _named_factor(name, power, constant, is_count=name == count)
    return None


def _times(ratio: np.ndarray, factor: np.ndarray, power: int) -> np.ndarray:
    usable = np.isfinite(factor) & (factor != 0)
    found: np.ndarray = ratio[usable] * factor[usable] ** float(power)
    return found


def _constant(values: np.ndarray) -> float | None:
    """The one value that all have, if they have one, and if they are enough to tell."""
    if len(values) < 3 or not np.isfinite(values).all() or values[0] == 0:
        return None
    return float(np.median(values)) if np.allclose(values, values[0], rtol=_SAME, atol=0) else None


def _constant_factor(ratio: float) -> str:
    size = abs(ratio)
    if abs(size - 1) < _SAME:
        factor = ""
    elif size < 1:
        factor = f"the factor {1 / size:.10g} is missing"
    else:
        factor = f"there is a factor {size:.10g} too many"
    if ratio < 0:
        return "wrong sign" + (f", and {factor}" if factor else "")
    return factor


def _named_factor(name: str, power: int, constant: float, *, is_count: bool) -> str:
    what = name + ("²" if abs(power) == 2 else "")
    if is_count and power == 1:
        text = f"it is the gradient of the mean, divided by {what}; the gradient of the sum is asked for"
    elif is_count and power == -1:
        text = f"it is multiplied by {what} once too often"
    elif power > 0:
        text = f"the factor {what} is missing"
    else:
        text = f"there is a factor {what} too many"
    return text if abs(constant - 1) < _SAME else f"{text}, and {_constant_factor(constant)}"


def share(where: np.ndarray) -> str:
    """How many of the points."""
    return f"{np.count_nonzero(where)} of {where.size} points"
