"""The operation table: one row holds all that is known of an elementwise operation.

A row gives the name, the partial derivatives, where the operation is defined, where it has a kink, how it is
written, and a high-precision reference. Every other part of lossforge reads this table; a backend adds only the
operation's spelling in its own language.

Partial derivatives take the operation's own result ``z`` first, then its arguments; ``None`` says that the
derivative is zero wherever it exists. At a kink the subgradient of least norm is used: 0 for ``abs`` at 0, 0 for
``maximum(x, c)`` at ``x == c``, an equal share for each of two tied arguments that both carry a gradient (Boyd &
Vandenberghe, *Subgradients*, 2008, for the notion).

Reductions and the structural operations (`take`, `rename` …) have few rules of their own; they are in `gradient`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from lossforge.ir import Node, Operand, constant, elementwise, where

Partial: TypeAlias = Callable[..., Operand]
Reference: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Primitive:
    """What is known of one elementwise operation."""

    name: str
    partials: tuple[Partial | None, ...]
    """∂z/∂argument for each argument, as functions of (z, *arguments)."""
    reference: Reference
    """The operation on numbers of the module `mpmath`, which is the first argument."""
    domain: Callable[..., tuple[Node, ...]] = lambda *args: ()
    """Truth values that must hold for the result, and its derivative, to be finite."""
    kink: Callable[..., Node] | None = None
    """An expression of the arguments that is zero where the derivative does not exist."""
    subgradient: str = ""
    """What is used at the kink, in words."""
    tied: tuple[Partial, ...] = ()
    """Replaces `partials` where more than one argument carries a gradient."""
    latex: str = ""
    """LaTeX with the arguments as {0}, {1} …; empty for an operator that the printer knows."""

    @property
    def arity(self) -> int:
        """The number of arguments."""
        return len(self.partials)

    @property
    def flat(self) -> bool:
        """Whether the derivative is zero almost everywhere."""
        return all(p is None for p in self.partials)


def _f(name: str, *args: Operand) -> Node:
    return elementwise(name, *args)


def _above(bound: float) -> Callable[..., tuple[Node, ...]]:
    return lambda x: (_f("gt", x, bound),)


def _between(low: float, high: float) -> Callable[..., tuple[Node, ...]]:
    return lambda x: (_f("gt", x, low), _f("lt", x, high))


def _power_domain(x: Node, y: Node) -> tuple[Node, ...]:
    if y.op == "constant":
        exponent = y.attrs[0]
        if float(exponent).is_integer():
            return () if exponent >= 0 else (_f("ne", x, 0.0),)
        return (_f("ge" if exponent >= 1 else "gt", x, 0.0),)
    return (_f("gt", x, 0.0),)


def _power_by_base(z: Node, x: Node, y: Node) -> Operand:
    # y·x^(y−1) is 0·∞ at x = 0, y = 0, where the power is constant in x.
    slope = y * _f("pow", x, y - 1.0)
    return slope if y.op == "constant" and y.attrs[0] != 0 else where(_f("eq", y, 0.0), 0.0, slope)


def _power_by_exponent(z: Node, x: Node, y: Node) -> Operand:
    return where(_f("eq", x, 0.0), 0.0, z * _f("log", x))


def _round_half_even(m: Any, x: Any) -> Any:
    return m.nint(x)


def _sign(m: Any, x: Any) -> Any:
    return x if m.isnan(x) else m.sign(x)


def _xlogy(m: Any, x: Any, y: Any) -> Any:
    return m.mpf(0) if x == 0 and not m.isnan(y) else x * m.log(y)


def _extreme(pick: Callable[[Any, Any], Any]) -> Reference:
    return lambda m, x, y: m.nan if m.isnan(x) or m.isnan(y) else pick(x, y)


def _logaddexp(m: Any, x: Any, y: Any) -> Any:
    if m.isfinite(x - y):
        return max(x, y) + m.log1p(m.exp(-abs(x - y)))
    return _extreme(max)(m, x, y)  # infinite, or NaN


def _pow(m: Any, x: Any, y: Any) -> Any:
    if x < 0 and y != m.floor(y):
        return m.nan
    return m.inf if x == 0 and y < 0 else m.power(x, y)


def _log(m: Any, x: Any) -> Any:
    return m.nan if x < 0 else (-m.inf if x == 0 else m.log(x))


def _at_pole(m: Any, x: Any) -> bool:
    return bool(x <= 0 and x == m.floor(x))


_SHARE = "an equal share for each tied argument that carries a gradient; 0 where only one does"

_ROWS = (
    # ------------------------------------------------------------------ arithmetic
    Primitive("neg", (lambda z, x: -1.0,), lambda m, x: -x),
    Primitive("add", (lambda z, x, y: 1.0, lambda z, x, y: 1.0), lambda m, x, y: x + y),
    Primitive("sub", (lambda z, x, y: 1.0, lambda z, x, y: -1.0), lambda m, x, y: x - y),
    Primitive("mul", (lambda z, x, y: y, lambda z, x, y: x), lambda m, x, y: x * y),
    Primitive(
        "div",
        (lambda z, x, y: 1.0 / y, lambda z, x, y: -z / y),
        lambda m, x, y: x / y if y != 0 else (m.nan if x == 0 or m.isnan(x) else m.sign(x) * m.inf),
        domain=lambda x, y: () if y.op in ("constant", "size") else (_f("ne", y, 0.0),),
    ),
    Primitive("pow", (_power_by_base, _power_by_exponent), _pow, domain=_power_domain),
    # ------------------------------------------------------------------ pieces
    Primitive(
        "abs",
        (lambda z, x: _f("sign", x),),
        lambda m, x: abs(x),
        kink=lambda x: x,
        subgradient="0",
        latex=r"\left|{0}\right|",
    ),
    Primitive(
        "maximum",
        (lambda z, x, y: where(_f("gt", x, y), 1.0, 0.0), lambda z, x, y: where(_f("gt", y, x), 1.0, 0.0)),
        _extreme(max),
        kink=lambda x, y: x - y,
        subgradient=_SHARE,
        tied=(
            lambda z, x, y: where(_f("gt", x, y), 1.0, where(_f("eq", x, y), 0.5, 0.0)),
            lambda z, x, y: where(_f("gt", y, x), 1.0, where(_f("eq", x, y), 0.5, 0.0)),
        ),
        latex=r"\max\left({0}, {1}\right)",
    ),
    Primitive(
        "minimum",
        (lambda z, x, y: where(_f("lt", x, y), 1.0, 0.0), lambda z, x, y: where(_f("lt", y, x), 1.0, 0.0)),
        _extreme(min),
        kink=lambda x, y: x - y,
        subgradient=_SHARE,
        tied=(
            lambda z, x, y: where(_f("lt", x, y), 1.0, where(_f("eq", x, y), 0.5, 0.0)),
            lambda z, x, y: where(_f("lt", y, x), 1.0, where(_f("eq", x, y), 0.5, 0.0)),
        ),
        latex=r"\min\left({0}, {1}\right)",
    ),
    Primitive(
        "where",
        (None, lambda z, c, x, y: where(c, 1.0, 0.0), lambda z, c, x, y: where(c, 0.0, 1.0)),
        lambda m, c, x, y: x if c else y,
        latex=r"\begin{{cases}} {1} & {0} \\ {2} & \text{{otherwise}} \end{{cases}}",
    ),
    # ------------------------------------------------------------------ flat: steps
    Primitive("sign", (None,), _sign, latex=r"\operatorname{{sign}}\left({0}\right)"),
    Primitive("floor", (None,), lambda m, x: m.floor(x), latex=r"\left\lfloor {0} \right\rfloor"),
    Primitive("ceil", (None,), lambda m, x: m.ceil(x), latex=r"\left\lceil {0} \right\rceil"),
    Primitive("round", (None,), _round_half_even, latex=r"\operatorname{{round}}\left({0}\right)"),
    Primitive("lt", (None, None), lambda m, x, y: x < y),
    Primitive("le", (None, None), lambda m, x, y: x <= y),
    Primitive("gt", (None, None), lambda m, x, y: x > y),
    Primitive("ge", (None, None), lambda m, x, y: x >= y),
    Primitive("eq", (None, None), lambda m, x, y: x == y),
    Primitive("ne", (None, None), lambda m, x, y: x != y),
    Primitive("and", (None, None), lambda m, x, y: bool(x) and bool(y)),
    Primitive("or", (None, None), lambda m, x, y: bool(x) or bool(y)),
    Primitive("not", (None,), lambda m, x: not x),
    Primitive("cast", (None,), lambda m, x: m.mpf(int(x)), latex="{0}"),
    # ------------------------------------------------------------------ exponentials and logarithms
    Primitive("exp", (lambda z, x: z,), lambda m, x: m.exp(x), latex=r"e^{{{0}}}"),
    Primitive("expm1", (lambda z, x: _f("exp", x),), lambda m, x: m.expm1(x), latex=r"\left(e^{{{0}}} - 1\right)"),
    Primitive("log", (lambda z, x: 1.0 / x,), _log, domain=_above(0.0), latex=r"\log\left({0}\right)"),
    Primitive(
        "log1p",
        (lambda z, x: 1.0 / (1.0 + x),),
        lambda m, x: _log(m, x + 1) if abs(x) > 0.5 else m.log1p(x),
        domain=_above(-1.0),
        latex=r"\log\left(1 + {0}\right)",
    ),
    Primitive(
        "sqrt",
        (lambda z, x: 0.5 / z,),
        lambda m, x: m.nan if x < 0 else m.sqrt(x),
        domain=_above(0.0),
        latex=r"\sqrt{{{0}}}",
    ),
    Primitive(
        "xlogy",
        (lambda z, x, y: _f("log", y), lambda z, x, y: x / y),
        _xlogy,
        domain=lambda x, y: (_f("gt", y, 0.0),),
        latex=r"{0} \log\left({1}\right)",
    ),
    Primitive(
        "logaddexp",
        (lambda z, x, y: _f("sigmoid", x - y), lambda z, x, y: _f("sigmoid", y - x)),
        _logaddexp,
        latex=r"\log\left(e^{{{0}}} + e^{{{1}}}\right)",
    ),
    # ------------------------------------------------------------------ sigmoids
    Primitive(
        "sigmoid",
        (lambda z, x: z * _f("sigmoid", -x),),
        lambda m, x: 1 / (1 + m.exp(-x)),
        latex=r"\sigma\left({0}\right)",
    ),
    Primitive(
        "log_sigmoid",
        (lambda z, x: _f("sigmoid", -x),),
        lambda m, x: -m.log1p(m.exp(-x)) if x > 0 else x - m.log1p(m.exp(x)),
        latex=r"\log \sigma\left({0}\right)",
    ),
    Primitive(
        "softplus",
        (lambda z, x: _f("sigmoid", x),),
        lambda m, x: m.log1p(m.exp(x)) if x < 0 else x + m.log1p(m.exp(-x)),
        latex=r"\operatorname{{softplus}}\left({0}\right)",
    ),
    # ------------------------------------------------------------------ circular and hyperbolic
    Primitive("sin", (lambda z, x: _f("cos", x),), lambda m, x: m.sin(x), latex=r"\sin\left({0}\right)"),
    Primitive("cos", (lambda z, x: -_f("sin", x),), lambda m, x: m.cos(x), latex=r"\cos\left({0}\right)"),
    Primitive("tan", (lambda z, x: 1.0 + z * z,), lambda m, x: m.tan(x), latex=r"\tan\left({0}\right)"),
    Primitive(
        "asin",
        (lambda z, x: 1.0 / _f("sqrt", (1.0 - x) * (1.0 + x)),),
        lambda m, x: m.nan if abs(x) > 1 else m.asin(x),
        domain=_between(-1.0, 1.0),
        latex=r"\arcsin\left({0}\right)",
    ),
    Primitive(
        "acos",
        (lambda z, x: -1.0 / _f("sqrt", (1.0 - x) * (1.0 + x)),),
        lambda m, x: m.nan if abs(x) > 1 else m.acos(x),
        domain=_between(-1.0, 1.0),
        latex=r"\arccos\left({0}\right)",
    ),
    Primitive("atan", (lambda z, x: 1.0 / (1.0 + x * x),), lambda m, x: m.atan(x), latex=r"\arctan\left({0}\right)"),
    Primitive(
        "atan2",
        (lambda z, y, x: x / (x * x + y * y), lambda z, y, x: -y / (x * x + y * y)),
        lambda m, y, x: m.atan2(y, x),
        domain=lambda y, x: (_f("gt", x * x + y * y, 0.0),),
        latex=r"\operatorname{{atan2}}\left({0}, {1}\right)",
    ),
    Primitive("sinh", (lambda z, x: _f("cosh", x),), lambda m, x: m.sinh(x), latex=r"\sinh\left({0}\right)"),
    Primitive("cosh", (lambda z, x: _f("sinh", x),), lambda m, x: m.cosh(x), latex=r"\cosh\left({0}\right)"),
    Primitive("tanh", (lambda z, x: 1.0 - z * z,), lambda m, x: m.tanh(x), latex=r"\tanh\left({0}\right)"),
    Primitive(
        "asinh",
        (lambda z, x: 1.0 / _f("sqrt", x * x + 1.0),),
        lambda m, x: m.asinh(x),
        latex=r"\operatorname{{arsinh}}\left({0}\right)",
    ),
    Primitive(
        "acosh",
        (lambda z, x: 1.0 / _f("sqrt", (x - 1.0) * (x + 1.0)),),
        lambda m, x: m.nan if x < 1 else m.acosh(x),
        domain=_above(1.0),
        latex=r"\operatorname{{arcosh}}\left({0}\right)",
    ),
    Primitive(
        "atanh",
        (lambda z, x: 1.0 / ((1.0 - x) * (1.0 + x)),),
        lambda m, x: m.nan if abs(x) > 1 else m.atanh(x),
        domain=_between(-1.0, 1.0),
        latex=r"\operatorname{{artanh}}\left({0}\right)",
    ),
    # ------------------------------------------------------------------ special functions
    Primitive(
        "erf",
        (lambda z, x: 2.0 / math.sqrt(math.pi) * _f("exp", -(x * x)),),
        lambda m, x: m.erf(x),
        latex=r"\operatorname{{erf}}\left({0}\right)",
    ),
    Primitive(
        "erfc",
        (lambda z, x: -2.0 / math.sqrt(math.pi) * _f("exp", -(x * x)),),
        lambda m, x: m.erfc(x),
        latex=r"\operatorname{{erfc}}\left({0}\right)",
    ),
    Primitive(
        "lgamma",
        (lambda z, x: _f("digamma", x),),
        lambda m, x: m.inf if _at_pole(m, x) else m.log(abs(m.gamma(x))),
        domain=_above(0.0),
        latex=r"\log\Gamma\left({0}\right)",
    ),
    Primitive(
        "digamma",
        (lambda z, x: _f("polygamma", 1.0, x),),
        lambda m, x: m.nan if _at_pole(m, x) else m.digamma(x),
        domain=_above(0.0),
        latex=r"\psi\left({0}\right)",
    ),
    Primitive(
        "polygamma",
        (None, lambda z, n, x: _f("polygamma", n + 1.0 if n.op != "constant" else n.attrs[0] + 1.0, x)),
        lambda m, n, x: m.nan if _at_pole(m, x) else m.polygamma(int(n), x),
        domain=lambda n, x: (_f("gt", x, 0.0),),
        latex=r"\psi^{{({0})}}\left({1}\right)",
    ),
    # ------------------------------------------------------------------ control of the gradient
    Primitive("stop_gradient", (None,), lambda m, x: x, latex=r"\operatorname{{sg}}\left({0}\right)"),
    Primitive(
        "surrogate",
        (None, lambda z, hard, soft: 1.0),
        lambda m, hard, soft: hard,
        latex=r"\operatorname{{hard}}\left({0}\right)",
    ),
)

PRIMITIVES: Mapping[str, Primitive] = {row.name: row for row in _ROWS}
"""The table, by name."""


def is_elementwise(node: Node) -> bool:
    """Whether the node is an operation of the table (rather than a leaf, a reduction or a structural one)."""
    return node.op in PRIMITIVES


def partial(node: Node, position: int, active: tuple[bool, ...]) -> Node | None:
    """∂node/∂argument at `position`, where `active` says which arguments carry a gradient; None for zero."""
    row = PRIMITIVES[node.op]
    rules = row.tied if row.tied and sum(active) > 1 else row.partials
    rule = rules[position]
    if rule is None:
        return None
    result = rule(node, *node.args)
    return result if isinstance(result, Node) else constant(result)
