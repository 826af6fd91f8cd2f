"""Every row of the operation table: its derivative, and its NumPy evaluation, against its own mpmath reference.

mpmath differentiates the reference numerically at 60 digits, so that the comparison with a derived partial (evaluated
at 50) may ask for 25 digits; constants such as 2/√π are rounded to float64 in a row, which leaves 15.
"""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from lossforge.interpreter import Float64, HighPrecision, evaluate
from lossforge.ir import COMPARISONS, LOGICAL, Kind, Node, Port, constant, elementwise, input_
from lossforge.primitives import PRIMITIVES, partial

SMOOTH = sorted(
    name for name, row in PRIMITIVES.items()
    if not row.flat and name not in ("where", "surrogate", "polygamma")
)  # fmt: skip
ROUNDED = {"erf", "erfc"}
POINTS: dict[str, tuple[float, ...]] = {
    "acosh": (1.25, 2.0, 7.5),
    "asin": (-0.75, 0.1, 0.9),
    "acos": (-0.75, 0.1, 0.9),
    "atanh": (-0.75, 0.1, 0.9),
    "log1p": (-0.5, 1e-9, 3.0),
    **dict.fromkeys(("log", "sqrt", "lgamma", "digamma"), (0.25, 1.5, 11.0)),
}
PAIRS: dict[str, tuple[tuple[float, float], ...]] = {
    "pow": ((0.5, 1.7), (2.0, -1.25), (3.0, 2.0)),
    "xlogy": ((0.5, 1.75), (-2.0, 0.25)),
}
ANY = (-2.5, -0.3, 0.7, 4.0)
ANY_PAIR = ((1.5, -2.0), (-0.25, 0.75), (3.0, 2.5))


def arguments(name: str) -> list[tuple[float, ...]]:
    if PRIMITIVES[name].arity == 1:
        return [(x,) for x in POINTS.get(name, ANY)]
    return list(PAIRS.get(name, ANY_PAIR))


@pytest.mark.parametrize("name", SMOOTH)
def test_partials_are_the_derivatives_of_the_reference(name: str) -> None:
    row = PRIMITIVES[name]
    inputs = [Port(input_(f"x{i}"), ()) for i in range(row.arity)]
    node = elementwise(name, *(p.node for p in inputs))
    context = mpmath.mp.clone()
    context.dps = 60
    for point in arguments(name):
        for i in range(row.arity):
            derived = partial(node, i, (True,) * row.arity)
            assert derived is not None
            (got,) = evaluate([derived], dict(zip(inputs, point, strict=True)), HighPrecision(50))
            along = [0] * row.arity
            along[i] = 1
            want = context.diff(lambda *xs: row.reference(context, *xs), point, tuple(along))
            digits = 15 if name in ROUNDED else 25
            assert abs(got[()] - want) <= context.mpf(10) ** -digits * max(1, abs(want)), (name, point, i)


@pytest.mark.parametrize("name", sorted(set(PRIMITIVES) - {"where", "surrogate", "stop_gradient", "cast"} - LOGICAL))
def test_numpy_agrees_with_the_reference(name: str) -> None:
    """float64 within 8 ulp of the reference: libm's own bound is 1 or 2 for most, lgamma's and erfc's a few."""
    if name == "polygamma":
        points: list[tuple[float, ...]] = [(1, 0.5), (2, 3.25), (3, 20.0)]
    else:
        points = arguments(name)
    high = HighPrecision(40)
    for point in points:
        got = Float64().elementwise(name, *(np.asarray(v, np.float64) for v in point))[()]
        want = PRIMITIVES[name].reference(high.context, *(high.context.mpf(v) for v in point))
        if name in COMPARISONS:
            assert bool(got) == bool(want)
        else:
            # lgamma and digamma cross zero between terms of size 1.
            floor = 1.0 if name in ("lgamma", "digamma") else 1e-2
            assert abs(got - float(want)) <= 8 * 2.0**-52 * max(abs(float(want)), floor), (name, point)


@pytest.mark.parametrize("name", sorted(n for n, row in PRIMITIVES.items() if row.kink is not None))
def test_kinks_are_where_one_sided_derivatives_differ(name: str) -> None:
    row = PRIMITIVES[name]
    context = mpmath.mp.clone()
    at = (0.0,) if row.arity == 1 else (1.5, 1.5)
    inputs = [Port(input_(f"x{i}"), ()) for i in range(row.arity)]
    assert row.kink is not None
    (zero,) = evaluate([row.kink(*(p.node for p in inputs))], dict(zip(inputs, at, strict=True)))
    assert zero == 0
    step = context.mpf(10) ** -10

    def slope(sign: int) -> mpmath.mpf:
        moved = (at[0] + sign * step, *at[1:])
        return (row.reference(context, *moved) - row.reference(context, *at)) / (sign * step)

    left, right = slope(-1), slope(1)
    assert abs(left - right) > 0.5
    derived = partial(elementwise(name, *(p.node for p in inputs)), 0, (True,) * row.arity)
    assert derived is not None
    (chosen,) = evaluate([derived], dict(zip(inputs, at, strict=True)))
    assert min(left, right) <= float(chosen) <= max(left, right)
    assert row.subgradient


def test_the_subgradient_of_least_norm_is_used() -> None:
    x, y = input_("x"), input_("y")
    both = (True, True)

    def at(node: Node | None, a: float, b: float) -> float:
        assert node is not None
        return float(evaluate([node], {Port(x, ()): a, Port(y, ()): b})[0])

    for op in ("maximum", "minimum"):
        node = elementwise(op, x, y)
        assert at(partial(node, 0, both), 1.0, 1.0) == at(partial(node, 1, both), 1.0, 1.0) == 0.5
        assert at(partial(node, 0, (True, False)), 1.0, 1.0) == 0.0
    assert at(partial(elementwise("abs", x), 0, (True,)), 0.0, 0.0) == 0.0


def test_domains_hold_inside_and_fail_outside() -> None:
    x = Port(input_("x"), ())
    for name, (inside, outside) in {
        "log": (0.5, -0.5), "log1p": (-0.5, -1.5), "sqrt": (0.5, -1.0), "acosh": (1.5, 0.5), "atanh": (0.5, 1.5),
        "lgamma": (0.5, -0.5),
    }.items():  # fmt: skip
        predicates = PRIMITIVES[name].domain(x.node)
        assert predicates
        assert all(p.kind is Kind.BOOL for p in predicates)
        assert all(bool(v) for v in evaluate(predicates, {x: inside}))
        assert not all(bool(v) for v in evaluate(predicates, {x: outside}))


def test_a_power_by_a_constant_restricts_its_base_only_where_it_must() -> None:
    x = input_("x")
    domain = PRIMITIVES["pow"].domain
    assert domain(x, constant(2.0)) == ()
    assert [p.op for p in domain(x, constant(-2.0))] == ["ne"]
    assert [p.op for p in domain(x, constant(1.5))] == ["ge"]
    assert [p.op for p in domain(x, input_("gamma"))] == ["gt"]
