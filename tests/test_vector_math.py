"""The kernels' own mathematics, against mpmath.

Run as a script, this file sends every float32 there is through the functions that are named, or through all,
and prints the largest error of each. It takes about half a minute for one.
"""

import functools
import math
import os
import re
import subprocess
import sys

import numba
import numpy as np
import pytest
from mpmath import mp, mpf

from lossforge.codegen.vector_math import FUNCTIONS, VARIANTS
from lossforge.codegen.vector_math.coefficients import POLYNOMIALS
from lossforge.codegen.vector_math.exponential import LN2
from lossforge.codegen.vector_math.minimax import FITS, derive
from lossforge.codegen.vector_math.trigonometric import TWO_OVER_PI

#: What kernels are compiled with: everything that leaves NaN and infinity alone.
KERNEL_FLAGS = frozenset({"contract", "reassoc", "nsz", "arcp"})
BINARY = ("pow", "atan2", "xlogy", "logaddexp", "polygamma")
UNARY = tuple(name for name in FUNCTIONS if name not in BINARY)
#: float64 versions that are not the C library's, and their bounds in ulp.
DOUBLE_BOUND = {name: 4.0 for name in UNARY if name not in ("sin", "cos", "tan", "lgamma")} | {"digamma": 6.0}


@functools.cache
def loop(name, flags):
    """A loop over the function, compiled for float32 and float64 when called with them."""
    function = (FUNCTIONS | VARIANTS)[name]

    def unary(out, x):
        for i in range(x.size):
            out[i] = function(x[i])

    def binary(out, x, y):
        for i in range(x.size):
            out[i] = function(x[i], y[i])

    return numba.njit(binary if name in BINARY else unary, fastmath=set(flags), error_model="numpy")


def apply(name, *arguments, flags=KERNEL_FLAGS):
    out = np.empty_like(arguments[0])
    loop(name, flags)(out, *arguments)
    return out


# -------------------------------------------------------------------------------- references


def exact(name, *arguments):
    """The function of exactly these numbers."""
    x = mpf(float(arguments[0]))
    if name == "sigmoid":
        return 1 / (1 + mp.exp(-x))
    if name == "softplus":
        return max(x, 0) + mp.log1p(mp.exp(-abs(x)))
    if name == "log_sigmoid":
        return min(x, 0) - mp.log1p(mp.exp(-abs(x)))
    if name == "erfc":  # mpmath's fails where the result has more digits in its exponent than a double
        return mpf(0) if x > 1e3 else mpf(2) if x < -1e3 else mp.erfc(x)
    if name == "lgamma":
        return mp.re(mp.loggamma(x))
    if len(arguments) == 1:
        return getattr(mp, name)(x)
    y = mpf(float(arguments[1]))
    if name == "xlogy":
        return x * mp.log(y)
    if name == "logaddexp":
        return max(x, y) + mp.log1p(mp.exp(-abs(x - y)))
    return {"pow": mp.power, "atan2": mp.atan2, "polygamma": lambda n, z: mp.polygamma(int(n), z)}[name](x, y)


def ulps(got, reference, dtype):
    """The distance of a result from its reference, in units of the reference's last place."""
    if math.isnan(got):
        return math.inf
    info = np.finfo(dtype)
    beyond = mpf(2) ** int(info.maxexp)  # infinity counts as the number after the largest one
    got, reference = (min(max(mpf(v), -beyond), beyond) for v in (got, reference))
    exponent = int(mp.frexp(reference)[1]) - 1 if reference else int(info.minexp)
    exponent = min(max(exponent, int(info.minexp)), int(info.maxexp) - 1)
    return float(abs(got - reference) / mpf(2) ** (exponent - int(info.nmant)))


def worst(name, *arguments):
    """The largest error over the arguments, and where it is."""
    dtype = arguments[0].dtype.type
    result = apply(name, *arguments)
    with mp.workdps(45):
        errors = [ulps(float(result[i]), exact(name, *(a[i] for a in arguments)), dtype) for i in range(result.size)]
    place = int(np.argmax(errors))
    return errors[place], tuple(a[place] for a in arguments)


# -------------------------------------------------------------------------------- arguments


#: Open intervals.
DOMAIN = {
    "log": (0, math.inf),
    "log1p": (-1, math.inf),
    "acosh": (1, math.inf),
    "asin": (-1, 1),
    "acos": (-1, 1),
    "atanh": (-1, 1),
}
#: Where, on either side of 0, formulas change, results under- or overflow, or zeros lie.
THRESHOLDS = {
    "exp": (88.722839, 88.37626, 87.336544, 103.97208, 0.34657359, 0.35, 709.78271, 708.39642, 745.13322),
    "expm1": (88.722839, 0.34657359, 1.0397208, 17.3, 37.4, 709.78271),
    "log": (1.0, 0.70710678, 1.4142135),
    "log1p": (0.41421356, 0.29289322, 1e8, 1e16),
    "sigmoid": (88.0, 103.9, 17.0, 37.0),
    "softplus": (88.0, 103.9, 17.0, 37.0),
    "log_sigmoid": (88.0, 103.9, 17.0, 37.0),
    "tanh": (0.8, 9.01, 19.06),
    "sinh": (1.0, 89.415985, 710.47586),
    "cosh": (89.415985, 710.47586),
    "asinh": (2.0**28, 1.0),
    "acosh": (2.0**28, 1.0),
    "atanh": (0.5, 1.0),
    "sin": (math.pi / 4, math.pi / 2, math.pi, 1e5 * math.pi, 16367173 * 2.0**72),
    "cos": (math.pi / 4, math.pi / 2, math.pi, 1e5 * math.pi, 16367173 * 2.0**72),
    "tan": (math.pi / 4, math.pi / 2, math.pi, 1e5 * math.pi, 16367173 * 2.0**72),
    "asin": (0.5, 0.38268343, 0.92387953, 1.0),
    "acos": (0.5, 0.38268343, 0.92387953, 1.0),
    "atan": (0.41421356, 2.4142135),
    "erf": (1.0, 3.9192059, 4.0, 5.9),
    "erfc": (1.0, 9.1945, 10.0544, 26.5, 27.22),
    "lgamma": (0.5, 1.0, 1.5, 2.0, 2.5, 10.0, 4.08e36, 2.4570247, 2.7476827, 3.1435809, 3.9552943, 4.0393613),
    "digamma": (1.4616321, 1.0, 2.0, 3.0, 10.0, 0.50408301, 1.5734985, 2.6107208, 3.6352934),
}


def arguments_for(name, dtype, rng):
    """Ends of binades and thresholds with their neighbours, random numbers in every binade, both signs."""
    info = np.finfo(dtype)
    exponents = np.arange(int(info.minexp) - info.nmant, int(info.maxexp))
    if dtype is np.float64:  # its binades are many, and mostly alike
        exponents = np.unique(np.concatenate([exponents[::40], np.arange(-60, 60)]))
    corners = np.concatenate([np.ldexp(1.0, exponents), np.abs(THRESHOLDS.get(name, ()))]).astype(dtype)
    neighbours = np.nextafter(corners, dtype(0)), np.nextafter(corners, dtype(np.inf))
    inside = np.ldexp(rng.uniform(1, 2, exponents.size), exponents)
    ordinary = rng.uniform(0, 1, 200) * np.repeat([2.0, 10.0, 50.0, 110.0], 50)
    x = np.concatenate([corners, *neighbours, inside.astype(dtype), ordinary.astype(dtype)])
    low, high = DOMAIN.get(name, (-math.inf, math.inf))
    x = np.unique(np.concatenate([x, -x]))
    x = x[(x > low) & (x < high) & (x != 0) & np.isfinite(x)]
    if name in ("lgamma", "digamma"):  # poles have a test of their own
        x = x[(x > 0) | (x != np.rint(x))]
    return x


# -------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("name", UNARY)
def test_float32_is_within_2_ulp(name, rng):
    error, place = worst(name, arguments_for(name, np.float32, rng))
    assert error <= 2, (error, place)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_of_nonpositive_numbers_is_exp(dtype, rng):
    x = np.append(-np.abs(arguments_for("exp", dtype, rng)), dtype(-math.inf))
    with mp.workdps(45):
        exact = [mp.exp(mpf(float(v))) for v in x]
    got = apply("exp_nonpositive", x)
    assert max(ulps(float(g), e, dtype) for g, e in zip(got, exact, strict=True)) <= 2
    assert apply("exp_nonpositive", np.array([math.nan, 0.0, -0.0], dtype)).tolist()[1:] == [1.0, 1.0]
    assert math.isnan(apply("exp_nonpositive", np.array([math.nan], dtype))[0])


@pytest.mark.parametrize("name", ["exp", "exp_nonpositive"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sum_of_vanished_powers_is_zero(name, dtype):
    """A product that is fused into the sum is not rounded on its own."""
    function = (FUNCTIONS | VARIANTS)[name]

    def total(x):
        result = x[0] - x[0]
        for i in range(1, x.size):
            result += function(x[i])
        return result

    compiled = numba.njit(total, fastmath=set(KERNEL_FLAGS), error_model="numpy")
    for lowest in (-math.inf, -3000.0):
        assert compiled(np.append(dtype(0), np.full(100_000, lowest, dtype))) == 0


@pytest.mark.parametrize("name", DOUBLE_BOUND)
def test_float64_is_within_its_bound(name, rng):
    x = arguments_for(name, np.float64, rng)
    if name == "digamma":  # below 0, near its zeros, the bound is absolute
        x = x[x > 0]
    error, place = worst(name, x)
    assert error <= DOUBLE_BOUND[name], (error, place)


def powers(rng, count):
    """Bases and exponents whose power spreads over the range of float32 and a little beyond."""
    x = np.exp2(rng.uniform(-149, 128, count))
    x[::3] = 1 + rng.uniform(-0.3, 0.45, x[::3].size)
    y = rng.uniform(-151, 129, count) / np.log2(x)
    whole = rng.integers(-9, 10, count // 4)
    x[: whole.size] *= rng.choice([-1, 1], whole.size)
    y[: whole.size] = whole
    return x.astype(np.float32), y.astype(np.float32)


def pairs(name, rng, count=800):
    if name == "pow":
        return powers(rng, count)
    x, y = (np.exp2(rng.uniform(-149, 128, count)).astype(np.float32) for _ in range(2))
    x[::2], y[::2] = rng.uniform(0.1, 20, (2, x[::2].size))
    signs = rng.choice(np.float32([-1, 1]), (2, count))
    if name == "polygamma":
        return rng.integers(1, 16, count).astype(np.float32), y
    if name == "logaddexp":  # of equal signs, so that nothing cancels
        return np.abs(x), np.abs(y)
    return x * signs[0], y * signs[1] if name == "atan2" else y


@pytest.mark.parametrize("name", BINARY)
def test_float32_of_two_arguments_is_within_2_ulp(name, rng):
    error, place = worst(name, *pairs(name, rng))
    assert error <= 2, (error, place)


def test_logaddexp_where_its_terms_cancel(rng):
    x = rng.uniform(-3, -0.01, 500).astype(np.float32)
    y = np.log(-np.expm1(x.astype(np.float64))).astype(np.float32)  # e**x + e**y is nearly 1
    got = apply("logaddexp", x, y)
    for i in range(x.size):
        with mp.workdps(45):
            reference = exact("logaddexp", x[i], y[i])
            allowed = abs(reference) * 2**-23 + max(abs(x[i]), abs(y[i])) * mpf(2) ** -50
            assert abs(mpf(float(got[i])) - reference) <= allowed, (x[i], y[i])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_float64_polygamma_is_within_8_ulp(order, rng):
    x = rng.uniform(0.01, 40, 60)
    error, place = worst("polygamma", np.full(x.size, float(order)), x)
    assert error <= 8, (error, place)


# -------------------------------------------------------------------------------- special values

INF, NAN = math.inf, math.nan
PI = math.pi

SPECIAL = {
    "exp": [(0.0, 1), (-0.0, 1), (INF, INF), (-INF, 0.0), (1e4, INF), (-1e4, 0.0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1), (1e4, INF), (-1e4, -1)],
    "log": [(0.0, -INF), (-0.0, -INF), (1.0, 0.0), (INF, INF), (-INF, NAN), (-1.0, NAN), (-1e-45, NAN)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (-1.5, NAN), (-INF, NAN), (INF, INF)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (INF, 1), (-INF, 0.0)],
    "softplus": [(INF, INF), (-INF, 0.0)],
    "log_sigmoid": [(INF, -0.0), (-INF, -INF)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1)],
    "sinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (-1e4, -INF)],
    "cosh": [(0.0, 1), (-0.0, 1), (INF, INF), (-INF, INF)],
    "asinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF)],
    "acosh": [(1.0, 0.0), (0.5, NAN), (-1.0, NAN), (-2.0, NAN), (-1e30, NAN), (-INF, NAN), (INF, INF)],
    "atanh": [(0.0, 0.0), (-0.0, -0.0), (1.0, INF), (-1.0, -INF), (1.5, NAN), (-1e30, NAN), (INF, NAN)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "cos": [(0.0, 1), (-0.0, 1), (INF, NAN), (-INF, NAN)],
    "tan": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "asin": [(0.0, 0.0), (-0.0, -0.0), (1.0, PI / 2), (-1.0, -PI / 2), (1.5, NAN), (-INF, NAN)],
    "acos": [(1.0, 0.0), (0.0, PI / 2), (-0.0, PI / 2), (-1.0, PI), (1.5, NAN), (INF, NAN)],
    "atan": [(0.0, 0.0), (-0.0, -0.0), (INF, PI / 2), (-INF, -PI / 2)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1)],
    "erfc": [(0.0, 1), (INF, 0.0), (-INF, 2), (1e30, 0.0)],
    "lgamma": [(0.0, INF), (-0.0, INF), (-1.0, INF), (-7.0, INF), (1.0, 0.0), (2.0, 0.0), (-INF, INF)],
    "digamma": [(0.0, -INF), (-0.0, INF), (-1.0, NAN), (-7.0, NAN), (INF, INF), (-INF, NAN)],
    "xlogy": [
        (0.0, 0.0, 0.0), (0.0, INF, 0.0), (0.0, -1.0, 0.0), (1.0, 0.0, -INF),
        (0.0, NAN, NAN), (NAN, 1.0, NAN),
    ],
    "logaddexp": [
        (INF, -INF, INF), (INF, INF, INF), (-INF, -INF, -INF), (-INF, 2.0, 2.0), (2.0, -INF, 2.0),
        (NAN, 1.0, NAN), (INF, NAN, NAN),
    ],
    "polygamma": [
        (1.0, 0.0, NAN), (1.0, -2.5, NAN), (0.5, 1.0, NAN), (16.0, 1.0, NAN), (0.0, 1.0, NAN),
        (NAN, 1.0, NAN), (1.0, NAN, NAN), (1.0, INF, 0.0), (2.0, INF, -0.0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(name, dtype):
    rows = np.array(SPECIAL[name], dtype)
    got = apply(name, *(np.ascontiguousarray(column) for column in rows.T[:-1]))
    expected = rows[:, -1]
    np.testing.assert_array_max_ulp(got, expected, maxulp=2 if name in ("asin", "acos", "atan") else 0)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    zero = expected == 0
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(expected[zero]))


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_in_gives_nan_out(name, dtype):
    assert np.isnan(apply(name, np.array([NAN, -NAN] * 20, dtype))).all()


@pytest.mark.parametrize("name", ["pow", "atan2"])
def test_special_values_of_two_arguments_are_those_of_the_c_library(name):
    large = [2**22 + 0.5, 2**23 + 1, 2**24, 2**24 + 2, 1e38, INF]
    positive = np.array([0, 1, 2, 3, 0.5, 1e-45, 1.0000001, 0.99999994, *large], np.float32)
    values = np.concatenate([positive, -positive, np.float32([NAN])])
    x, y = (np.ascontiguousarray(a.ravel()) for a in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        expected = {"pow": np.power, "atan2": np.arctan2}[name](x.astype(np.float64), y.astype(np.float64))
        expected = expected.astype(np.float32)
    got = apply(name, x, y)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    kept = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got[kept]), np.signbit(expected[kept]))
    np.testing.assert_array_max_ulp(got[kept], expected[kept], maxulp=1)


# -------------------------------------------------------------------------------- code


@pytest.mark.parametrize("name", FUNCTIONS)
def test_loops_over_float32_are_vectorised(name):
    arguments = (np.ones(64, np.float32),) * (2 if name in BINARY else 1)
    apply(name, *arguments)
    kernel = loop(name, KERNEL_FLAGS)
    code = next(kernel.inspect_llvm(s) for s in kernel.signatures if s[0].dtype == numba.types.float32)
    assert re.search(r"= fmul contract <\d+ x (float|double)> ", code)
    assert not re.search(r"call .*@(sin|cos|tan|atan2|pow|lgamma|exp|log)f?\(", code)


@pytest.mark.parametrize("name", ["exp", "log1p", "tanh", "sin", "pow"])
def test_the_kernels_flags_do_not_reach_inside(name, rng):
    x = arguments_for(name, np.float32, rng)
    arguments = (x, x[::-1].copy()) if name in BINARY else (x,)
    plain, fast = (apply(name, *arguments, flags=f).view(np.uint32) for f in (frozenset(), KERNEL_FLAGS))
    np.testing.assert_array_equal(plain, fast)


def test_the_format_of_the_result_is_that_of_the_arguments():
    power = FUNCTIONS["pow"]
    function = numba.njit(lambda x, y: power(x, y))
    single, double = np.float32(3), np.float64(3)
    for x, y in ((single, 2), (single, double), (2, 2)):
        assert function(x, y) == pytest.approx(float(x) ** float(y))
    assert [str(s.return_type) for s in function.nopython_signatures] == ["float32", "float64", "float64"]


def test_an_unknown_name_is_an_attribute_error():
    import lossforge.codegen.vector_math as vector_math

    assert vector_math.exp is FUNCTIONS["exp"]
    with pytest.raises(AttributeError, match="'exp3'.*expm1"):
        _ = vector_math.exp3


def test_without_fused_multiply_add():
    """The most basic processor of this architecture; on x86-64 it has no fused multiply-add."""
    names = ("exp", "expm1", "log1p", "sigmoid", "softplus", "tanh", "erf")
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, __file__, "--sample", *names]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    errors = dict(line.split()[:2] for line in found.stdout.splitlines())
    assert set(errors) == set(names)
    assert max(float(e) for e in errors.values()) <= 2, found.stdout


# -------------------------------------------------------------------------------- constants


@pytest.mark.parametrize(("name", "form"), [("exp", "single"), ("sin", "wide")])
def test_coefficients_are_what_the_derivation_gives(name, form):
    with mp.workdps(60):
        coefficients, _ = derive(FITS[name], form)
    assert tuple(map(float, coefficients)) == POLYNOMIALS[name][form]


def test_every_fit_has_its_coefficients():
    found = {name: {form: len(c) - 1 for form, c in rows.items()} for name, rows in POLYNOMIALS.items()}
    assert found == {name: fit.degrees for name, fit in FITS.items()}


@pytest.mark.parametrize(("fraction", "exponent_bits"), [(23, 8), (52, 11)])
def test_ln2_is_in_two_parts(fraction, exponent_bits):
    high, low = LN2[fraction]
    assert (high * 2.0 ** (fraction + 1 - exponent_bits)).is_integer()
    with mp.workdps(60):
        assert abs(mpf(high) + mpf(low) - mp.ln(2)) < mpf(2) ** -(2 * fraction - exponent_bits)


def test_two_over_pi_is_in_pieces_of_29_bits():
    with mp.workdps(100):
        assert abs(sum(map(mpf, TWO_OVER_PI)) - 2 / mp.pi) < mpf(2) ** -203
    for place, piece in enumerate(TWO_OVER_PI, 1):
        assert (piece * 2.0 ** (29 * place)).is_integer()
        assert piece < 2.0 ** (-29 * (place - 1))


# -------------------------------------------------------------------------------- all of float32


PER_ULP = 2.0 ** (23.0 - np.arange(-126, 128))  # by exponent, from that of denormals


@numba.njit(error_model="numpy")
def error_of(got, reference, encoded, out):
    """Errors in ulp of float32; `encoded` are the bits of the reference."""
    for i in range(out.size):
        exponent = min(max((encoded[i] >> 52) & 0x7FF, 1023 - 126), 1023 + 127)
        distance = min(max(np.float64(got[i]), -(2.0**128)), 2.0**128)
        distance -= min(max(reference[i], -(2.0**128)), 2.0**128)
        both_nan = np.isnan(got[i]) and np.isnan(reference[i])
        out[i] = 0.0 if both_nan else abs(distance) * PER_ULP[exponent - (1023 - 126)]


def sweep(name):
    """The largest error in ulp over all float32, against the float64 version, and where it is."""
    largest, place = 0.0, 0.0
    size = 2**16  # in cache
    reference, error = np.empty((2, size))
    got = np.empty(size, np.float32)
    for start in range(0, 2**32, size):
        x = np.arange(start, start + size, dtype=np.uint32).view(np.float32)
        with np.errstate(invalid="ignore"):  # signalling NaN
            x_double = x.astype(np.float64)
        loop(name, KERNEL_FLAGS)(got, x)
        loop(name, KERNEL_FLAGS)(reference, x_double)
        error_of(got, reference, reference.view(np.int64), error)
        if not error.max() <= largest:  # or NaN
            largest, place = float(error.max()), float(x[error.argmax()])
    return largest, place


def sample(name):
    """The largest error over the arguments that the tests try."""
    return worst(name, arguments_for(name, np.float32, np.random.default_rng(0)))


if __name__ == "__main__":
    sampled = sys.argv[1:2] == ["--sample"]
    for chosen in sys.argv[1 + sampled :] or UNARY:
        largest, place = (sample if sampled else sweep)(chosen)
        print(f"{chosen:12} {largest:.3f} ulp at {place}", flush=True)
