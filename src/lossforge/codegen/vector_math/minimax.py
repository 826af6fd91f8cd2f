"""Derives `coefficients.py`: minimax polynomials by the exchange algorithm of Remez, in high precision.

    python -m lossforge.codegen.vector_math.minimax

Each row of `FITS` gives a function P that a polynomial replaces, where it does so, and the weight that
turns an error of P into an error relative to the result: that of expm1(r) = r + r^2 P(r), say, is r^2 /
expm1(r). The first coefficients carry most of the result. They are rounded to the format one by one, and
the others fitted again around them, where that lowers the error.

Sources: J.-M. Muller, Elementary Functions, 3rd ed., chapter 3 (Remez' algorithm, and polynomials whose
coefficients are machine numbers); M. Shepherd and J. Laframboise, Math. Comp. 36 (1981), for the variable
of erfc.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mpmath import mp, mpf

#: Significant bits of the coefficients in each format ("wide": double arithmetic that feeds a single result).
PRECISION: Mapping[str, int] = {"single": 24, "wide": 53, "double": 53}

Samples: TypeAlias = Sequence[tuple[mpf, mpf, mpf]]  # (z, P(z), weight)


@dataclass(frozen=True)
class Fit:
    """A function to approximate on an interval, and the degree that each format needs."""

    function: Callable[[mpf], mpf]
    weight: Callable[[mpf], mpf]
    interval: Callable[[], tuple[mpf, mpf]]
    degrees: Mapping[str, int]
    meaning: str


def _odd(f: Callable[[mpf], mpf]) -> tuple[Callable[[mpf], mpf], Callable[[mpf], mpf]]:
    """P and weight of f(x) = x + x^3 P(x^2), in the variable z = x^2."""

    def p(z: mpf) -> mpf:
        x = mp.sqrt(z)
        return (f(x) / x - 1) / z

    def weight(z: mpf) -> mpf:
        x = mp.sqrt(z)
        return x**3 / f(x)

    return p, weight


def _erfc_scaled(t: mpf) -> mpf:
    x = 4 * (1 + t) / (1 - t)
    return mp.erfc(x) * mp.exp(x * x) * (1 + x)


FITS: Mapping[str, Fit] = {
    "exp": Fit(
        lambda r: (mp.expm1(r) - r) / r**2,
        lambda r: r**2 / mp.expm1(r),
        lambda: (mpf("-0.3475"), mpf("0.3475")),
        {"single": 4, "wide": 5, "double": 10},
        "exp(r) = 1 + r + r^2 P(r)",
    ),
    "log": Fit(
        lambda f: (mp.log1p(f) - f) / f**2,
        lambda f: f**2 / mp.log1p(f),
        lambda: (mp.sqrt(0.5) - 1, mp.sqrt(2) - 1),
        {"single": 8, "wide": 11, "double": 20},
        "log(1 + f) = f + f^2 P(f)",
    ),
    "log1p": Fit(
        lambda f: (mp.log1p(f) - f) / f**2,
        lambda f: f**2 / mp.log1p(f),
        lambda: (mpf(0), mpf(1)),
        {"single": 8, "double": 20},
        "log(1 + f) = f + f^2 P(f) where 0 <= f <= 1",
    ),
    "log2": Fit(
        lambda f: mp.log(1 + f, 2) / f,
        lambda f: f / mp.log(1 + f, 2),
        lambda: (mp.sqrt(0.5) - 1, mp.sqrt(2) - 1),
        {"wide": 11},
        "log2(1 + f) = f P(f)",
    ),
    "exp2": Fit(
        lambda r: mpf(2) ** r,
        lambda r: mpf(2) ** -r,
        lambda: (mpf("-0.5"), mpf("0.5")),
        {"wide": 6},
        "2**r = P(r)",
    ),
    "tanh": Fit(
        *_odd(mp.tanh),
        lambda: (mpf(0), mpf("0.64")),
        {"single": 5, "double": 13},
        "tanh(x) = x + x^3 P(x^2) where |x| <= 0.8",
    ),
    "sinh": Fit(
        *_odd(mp.sinh),
        lambda: (mpf(0), mpf(1)),
        {"wide": 3, "double": 6},
        "sinh(x) = x + x^3 P(x^2) where |x| <= 1",
    ),
    "sin": Fit(
        *_odd(mp.sin),
        lambda: (mpf(0), (mp.pi / 4) ** 2),
        {"wide": 3, "double": 6},
        "sin(x) = x + x^3 P(x^2) where |x| <= pi/4",
    ),
    "cos": Fit(
        lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2,
        lambda z: z**2 / mp.cos(mp.sqrt(z)),
        lambda: (mpf(0), (mp.pi / 4) ** 2),
        {"wide": 2, "double": 5},
        "cos(x) = 1 - x^2/2 + x^4 P(x^2) where |x| <= pi/4",
    ),
    "atan": Fit(
        *_odd(mp.atan),
        lambda: (mpf(0), (mp.sqrt(2) - 1) ** 2),
        {"wide": 5, "double": 10},
        "atan(x) = x + x^3 P(x^2) where |x| <= tan(pi/8)",
    ),
    "erf": Fit(
        lambda z: mp.erf(mp.sqrt(z)) / mp.sqrt(z) - 1,
        lambda z: mp.sqrt(z) / mp.erf(mp.sqrt(z)),
        lambda: (mpf(0), mpf(1)),
        {"single": 6, "double": 13},
        "erf(x) = x + x P(x^2) where |x| <= 1",
    ),
    "erf_tail": Fit(
        lambda x: mp.log(mp.erfc(x)),
        lambda x: mp.erfc(x) / mp.erf(x),
        lambda: (mpf(1), mpf(4)),
        {"single": 8},
        "erf(x) = 1 - exp(P(x)) where 1 <= x <= 4",
    ),
    "erfc": Fit(
        _erfc_scaled,
        lambda t: 1 / _erfc_scaled(t),
        lambda: (mpf(-1), mpf("0.75")),
        {"wide": 12, "double": 22},
        "erfc(x) = exp(-x^2) P((x - 4) / (x + 4)) / (1 + x) where 0 <= x <= 28",
    ),
    "lgamma": Fit(
        lambda d: mp.loggamma(2 + d) / d,
        lambda d: d / mp.loggamma(2 + d),
        lambda: (mpf("-0.5"), mpf("0.5")),
        {"double": 20},
        "lgamma(2 + d) = d P(d)",
    ),
    "digamma": Fit(
        lambda d: mp.digamma(mpf("1.5") + d) / (mpf("1.5") + d - mp.findroot(mp.digamma, 1.4616)),
        lambda d: (mpf("1.5") + d - mp.findroot(mp.digamma, 1.4616)) / mp.digamma(mpf("1.5") + d),
        lambda: (mpf("-0.5"), mpf("0.5")),
        {"double": 23},
        "digamma(1.5 + d) = (1.5 + d - root) P(d)",
    ),
}


def round_to(value: mpf, bits: int) -> mpf:
    """The nearest number with that many significant bits."""
    with mp.workprec(bits):
        return +value


def remez(values: Samples, powers: Sequence[int]) -> list[mpf]:
    """Coefficients c of the powers of z that minimise the largest |weight * (value - sum)| of the samples."""
    terms = len(powers)
    chosen = [round(i * (len(values) - 1) / terms) for i in range(terms + 1)]
    coefficients: list[mpf] = []
    for _ in range(30):
        matrix = mp.matrix(terms + 1)
        right = mp.matrix(terms + 1, 1)
        for row, sample in enumerate(chosen):
            z, value, weight = values[sample]
            for column, power in enumerate(powers):
                matrix[row, column] = z**power
            matrix[row, terms] = (-1) ** row / weight
            right[row] = value
        solution = mp.lu_solve(matrix, right)
        coefficients = list(solution[:terms])
        terms_of = list(zip(coefficients, powers, strict=True))
        error = [w * (v - sum(c * z**p for c, p in terms_of)) for z, v, w in values]
        chosen = _peaks(error, terms + 1)
        if len(chosen) < terms + 1 or max(map(abs, error)) < abs(solution[terms]) * mpf("1.01"):
            break
    return coefficients


def _peaks(error: Sequence[mpf], count: int) -> list[int]:
    """Where runs of errors of one sign have their largest; for `count` neighbouring runs, if there are."""
    peaks: list[int] = []
    for i, e in enumerate(error):
        if not peaks or (e > 0) != (error[peaks[-1]] > 0):
            peaks.append(i)
        elif abs(e) > abs(error[peaks[-1]]):
            peaks[-1] = i
    while len(peaks) > count:
        peaks.pop(0 if abs(error[peaks[0]]) < abs(error[peaks[-1]]) else -1)
    return peaks


def samples(fit: Fit, count: int) -> Samples:
    """Chebyshev points of the interval, endpoints left out."""
    low, high = fit.interval()
    nodes = [(low + high - (high - low) * mp.cos(mp.pi * (i + 0.5) / count)) / 2 for i in range(count)]
    return [(z, fit.function(z), abs(fit.weight(z))) for z in nodes]


def derive(fit: Fit, form: str) -> tuple[list[mpf], mpf]:
    """Coefficients from degree 0 upwards as numbers of the format, and the largest weighted error left."""
    degree = fit.degrees[form]
    points = samples(fit, 24 * (degree + 2))
    return min((_rounded(points, degree, form, settled) for settled in (0, 2, 4)), key=lambda found: found[1])


def _rounded(points: Samples, degree: int, form: str, settled: int) -> tuple[list[mpf], mpf]:
    """A fit whose first `settled` coefficients were rounded one by one, each before the next fit."""
    done: list[mpf] = []
    while len(done) <= degree:
        fitted = remez(points, range(len(done), degree + 1))
        rounded = [round_to(c, PRECISION[form]) for c in (fitted[:1] if len(done) < settled else fitted)]
        points = [(z, v - sum(c * z**p for p, c in enumerate(rounded, len(done))), w) for z, v, w in points]
        done += rounded
    return done, max(abs(w * v) for _, v, w in points)


def source() -> str:
    """The text of `coefficients.py`."""
    lines = [
        '"""Minimax polynomials, written by `python -m lossforge.codegen.vector_math.minimax`: do not edit.',
        "",
        "By name and format, from degree 0 upwards. Comments: the largest error, relative to the result.",
        '"""',
        "",
        "POLYNOMIALS: dict[str, dict[str, tuple[float, ...]]] = {",
    ]
    with mp.workdps(60):
        for name, fit in FITS.items():
            lines.append(f"    # {fit.meaning}")
            lines.append(f'    "{name}": {{')
            for form in fit.degrees:
                coefficients, error = derive(fit, form)
                lines.append(f'        "{form}": (  # 2**{mp.nstr(mp.log(error, 2), 3)}')
                lines += [f"            {float(c)!r}," for c in coefficients]
                lines.append("        ),")
            lines.append("    },")
    return "\n".join([*lines, "}"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("coefficients.py").write_text(source())
