"""Exact simplification: identities of real arithmetic that make a derived gradient as short as one written by hand.

No rule trades accuracy for brevity: terms are regrouped only where some of them cancel or merge. Rules may turn an
undefined value (0·∞, 0/0) into its limit, never a defined one into something else, and a NaN among the inputs is not
lost where the result depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

from lossforge.ir import (
    COMPARISONS,
    INDEX_REDUCTIONS,
    Kind,
    Node,
    constant,
    elementwise,
    intern,
    original,
    rebuild,
    reduction,
    rename,
    take,
    topological,
    total,
    transform,
    where,
)
from lossforge.primitives import is_elementwise
from lossforge.rewrite import Rewrite, Rewriter, Rule, rule, rules

IDENTITIES = rules("""
    -(-x) -> x
    -(x - y) -> y - x
    -((x - y) / z) -> (y - x) / z
    -x + y -> y - x
    -(k1 * x) -> (-k1) * x
    -(x * (y - z)) -> x * (z - y)
    x + 0 -> x
    x - 0 -> x
    0 - x -> -x
    x - x -> 0
    x + -y -> x - y
    -x - y -> -(x + y)
    x - -y -> x + y
    x * 1 -> x
    x * -1 -> -x
    x * 0 -> 0
    (-x) * (-y) -> x * y
    (-x) * y -> -(x * y)
    0 / x -> 0
    x / 1 -> x
    x / -1 -> -x
    (-x) / (-y) -> x / y
    (-x) / y -> -(x / y)
    x / (-y) -> -(x / y)
    x * (1 / y) -> x / y
    x / (1 / y) -> x * y
    exp(x) / exp(x) -> 1
    pow(x, 0) -> 1
    pow(x, 1) -> x
    pow(x, 2) -> x * x
    pow(x, 3) -> x * x * x
    pow(x, 4) -> (x * x) * (x * x)
    pow(x, -1) -> 1 / x
    pow(x, -2) -> 1 / (x * x)
    pow(x, 0.5) -> sqrt(x)
    pow(x, -0.5) -> 1 / sqrt(x)
    pow(1, x) -> 1
    abs(-x) -> abs(x)
    abs(abs(x)) -> abs(x)
    abs(x) * abs(x) -> x * x
    abs(x) * sign(x) -> x
    abs(x * x) -> x * x
    sqrt(x * x) -> abs(x)
    sign(x - y) * abs(y - x) -> x - y
    exp(log(x)) -> x                        # x > 0, where the logarithm is defined
    log(exp(x)) -> x
    exp(log_sigmoid(x)) -> sigmoid(x)
    exp(-softplus(x)) -> sigmoid(-x)
    1 - 2 * sigmoid(x) -> -tanh(0.5 * x)
    1 + -2 * sigmoid(x) -> -tanh(0.5 * x)
    2 * sigmoid(x) - 1 -> tanh(0.5 * x)
    sinh(x) / cosh(x) -> tanh(x)
    tanh(-x) -> -tanh(x)
    tanh(abs(x)) * sign(x) -> tanh(x)
    cos(-x) -> cos(x)
    cosh(-x) -> cosh(x)
    exp(0) -> 1
    log(1) -> 0
    minimum(x, x) -> x
    maximum(x, x) -> x
    not(not(c)) -> c
    where(c, x, x) -> x
    where(not(c), x, y) -> where(c, y, x)
    where(c, 1, 0) * x -> where(c, x, 0)
    where(c, 0, 1) * x -> where(c, 0, x)
    where(c, x, 0) * y -> where(c, x * y, 0)
    where(c, 0, x) * y -> where(c, 0, x * y)
    where(c, x, 0) / y -> where(c, x / y, 0)
    where(c, 0, x) / y -> where(c, 0, x / y)
    -where(c, x, 0) -> where(c, -x, 0)
    -where(c, 0, x) -> where(c, 0, -x)
    where(c, -1, 0) + x -> x - where(c, 1, 0)
    where(c, x, y) + where(c, a, b) -> where(c, x + a, y + b)
    where(c, x, y) - where(c, a, b) -> where(c, x - a, y - b)
    where(a < b, a, b) -> minimum(a, b)
    where(a <= b, a, b) -> minimum(a, b)
    where(a > b, a, b) -> maximum(a, b)
    where(a >= b, a, b) -> maximum(a, b)
    where(a < b, b, a) -> maximum(a, b)
    where(a > b, b, a) -> minimum(a, b)
    where(a < b, a - b, 0) -> minimum(a - b, 0)
    where(a > b, a - b, 0) -> maximum(a - b, 0)
    where(a < b, b - a, 0) -> maximum(b - a, 0)
    where(a > b, b - a, 0) -> minimum(b - a, 0)
    minimum(x - y, 0) + y -> minimum(x, y)
    maximum(x - y, 0) + y -> maximum(x, y)
""")
"""Right for all real arguments for which the left-hand side is defined."""


def nonnegative(node: Node, assumed: frozenset[Node] = frozenset()) -> bool:
    """Whether `node` is known to be ≥ 0 wherever it is defined."""

    def known(n: Node) -> bool:
        return nonnegative(n, assumed)

    if node in assumed:
        return True
    if node.op == "constant":
        return float(node.attrs[0]) >= 0
    if node.op in ("exp", "abs", "sqrt", "sigmoid", "softplus", "size", "iota", "cosh", "erfc", "acosh"):
        return True
    if node.kind is Kind.BOOL or node.op in ("argsort", *INDEX_REDUCTIONS):
        return True
    if node.op == "mul":
        return node.args[0] is node.args[1] or all(map(known, node.args))
    if node.op in ("add", "div", "minimum"):
        return all(map(known, node.args))
    if node.op == "maximum":
        return any(map(known, node.args))
    if node.op == "where":
        return all(map(known, node.args[1:]))
    if node.op in ("sum", "prod", "max", "min", "take", "rename", "stop_gradient", "cast", "floor", "round"):
        return known(node.args[0])
    return False


def nonpositive(node: Node, assumed: frozenset[Node] = frozenset()) -> bool:
    """Whether `node` is known to be ≤ 0 wherever it is defined, given that `assumed` are ≥ 0."""

    def known(n: Node) -> bool:
        return nonpositive(n, assumed)

    def other(n: Node) -> bool:
        return nonnegative(n, assumed)

    if node.op == "constant":
        return float(node.attrs[0]) <= 0
    if node.op == "log_sigmoid":
        return True
    if node.op == "neg":
        return other(node.args[0])
    if node.op == "sub":
        x, y = node.args
        return _is_maximum(y, x) or (known(x) and other(y))
    if node.op in ("mul", "div"):
        x, y = node.args
        return (known(x) and other(y)) or (other(x) and known(y))
    if node.op in ("add", "maximum"):
        return all(map(known, node.args))
    if node.op == "minimum":
        return any(map(known, node.args))
    if node.op == "where":
        return all(map(known, node.args[1:]))
    if node.op in ("sum", "max", "min", "take", "rename", "stop_gradient"):
        return known(node.args[0])
    return False


def _is_maximum(node: Node, x: Node) -> bool:
    """Whether `node` is the maximum of x over some axes, be it with a number in place of −∞."""
    if node.op == "where" and node.args[0].op == "eq" and node.args[0].args == (node.args[2], constant(-math.inf)):
        node = node.args[2]
    return node.op == "max" and node.args[0] is x


def _is_negative(bound: Mapping[str, Node]) -> bool:
    return bound["k"].attrs[0] < 0


SIGNS = (
    rule("k * x + y -> y - (-k) * x", _is_negative),
    rule("x - k * y -> x + (-k) * y", _is_negative),
)
"""Negative coefficients of a sum."""


def _is_product(bound: Mapping[str, Node]) -> bool:
    return bound["k"].attrs[0] in (2, 3, 4)


POWERS = (
    rule("exp(k * log(x)) -> pow(x, k)", _is_product),
    rule("exp(k * log_sigmoid(x)) -> pow(sigmoid(x), k)", _is_product),
)
"""Powers that are written by way of logarithms, and are products."""


def _under_assumptions(assumed: frozenset[Node]) -> tuple[Rule, ...]:
    """Identities that hold where a bound is not negative."""

    def bound_is_nonnegative(b: Mapping[str, Node]) -> bool:
        return nonnegative(b["d"], assumed)

    return (
        rule("sign(x) * minimum(abs(x), d) -> minimum(maximum(x, -d), d)", bound_is_nonnegative),
        rule("where(abs(x) <= d, x, d * sign(x)) -> minimum(maximum(x, -d), d)", bound_is_nonnegative),
        rule("where(abs(x) < d, x, d * sign(x)) -> minimum(maximum(x, -d), d)", bound_is_nonnegative),
        rule("where(abs(x) > d, d * sign(x), x) -> minimum(maximum(x, -d), d)", bound_is_nonnegative),
        rule("where(abs(x) >= d, d * sign(x), x) -> minimum(maximum(x, -d), d)", bound_is_nonnegative),
        rule("abs(d) -> d", bound_is_nonnegative),
        rule("maximum(d, 0) -> d", bound_is_nonnegative),
    )


# ------------------------------------------------------------------------------------- numbers


def _fold(node: Node) -> Node | None:
    """An operation on numbers alone is a number."""
    if not node.args or any(a.op != "constant" for a in node.args) or node.kind is not Kind.FLOAT:
        return None
    values = [float(a.attrs[0]) for a in node.args]
    functions: Mapping[str, Callable[..., float]] = {
        "neg": lambda x: -x,
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "div": lambda x, y: x / y,
        "pow": lambda x, y: math.pow(x, y),
        "abs": abs,
        "sqrt": math.sqrt,
        "exp": math.exp,
        "log": math.log,
        "cast": float,
        "minimum": min,
        "maximum": max,
        "stop_gradient": float,
    }
    try:
        result = functions[node.op](*values)
    except (KeyError, ValueError, ZeroDivisionError, OverflowError):
        return None  # left to run time, where it gives the framework's own inf or NaN
    return constant(result) if math.isfinite(result) else None


def _fold_condition(node: Node) -> Node | None:
    x, y = node.args
    if x.op == "iota" and x is y:
        return constant(node.op in ("eq", "le", "ge"))
    if x.op == y.op == "constant":
        a, b = x.attrs[0], y.attrs[0]
        return constant({"lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b, "eq": a == b, "ne": a != b}[node.op])
    return None


def _fold_where(node: Node) -> Node | None:
    condition, x, y = node.args
    if condition.op == "constant":
        return x if condition.attrs[0] else y
    return None


# ------------------------------------------------------------------------------------- sums and products of many


def _terms(node: Node, sign: Fraction, into: list[tuple[Node, Fraction]]) -> None:
    """The terms of a sum as (what, coefficient), in the order in which they are written."""
    if node.op == "add":
        for arg in node.args:
            _terms(arg, sign, into)
    elif node.op == "sub":
        _terms(node.args[0], sign, into)
        _terms(node.args[1], -sign, into)
    elif node.op == "neg":
        _terms(node.args[0], -sign, into)
    elif node.op == "constant":
        into.append((constant(1.0), sign * Fraction(node.attrs[0])))
    elif node.op == "mul" and any(a.op == "constant" for a in node.args):
        number, other = node.args if node.args[0].op == "constant" else node.args[::-1]
        coefficient = sign * Fraction(number.attrs[0])
        if other.op in ("add", "sub"):  # k·(x + y) stays together
            into.append((other, coefficient))
        else:
            _terms(other, coefficient, into)
    elif node.op == "div" and node.args[1].op == "constant" and node.args[1].attrs[0] != 0:
        factor = 1 / Fraction(node.args[1].attrs[0])
        if _exact(sign * factor) and node.args[0].op not in ("add", "sub"):
            _terms(node.args[0], sign * factor, into)
        else:
            into.append((node, sign))
    else:
        into.append((node, sign))


def _exact(number: Fraction) -> bool:
    return Fraction(float(number)) == number


def _merge_terms(node: Node) -> Node | None:
    """Like terms are merged; a sum in which nothing merges is left as it was written."""
    found: list[tuple[Node, Fraction]] = []
    try:
        _terms(node, Fraction(1), found)
    except (OverflowError, ValueError):  # an infinite constant
        return None
    merged: dict[Node, Fraction] = {}
    for what, coefficient in found:
        merged[what] = merged.get(what, Fraction(0)) + coefficient
    if len(merged) == len(found) and all(merged.values()):
        return None
    kept = [(w, c) for w, c in merged.items() if c]
    if not all(_exact(c) for _, c in kept):
        return None
    return _written(sorted(kept, key=lambda t: t[1] < 0))  # begin with a positive term where there is one


def _factors(node: Node, power: int, numbers: list[Fraction], into: list[tuple[Node, int]]) -> None:
    """The factors of a product or quotient as (what, ±1); numbers go into `numbers`."""
    if node.op == "mul":
        for arg in node.args:
            _factors(arg, power, numbers, into)
    elif node.op == "div":
        _factors(node.args[0], power, numbers, into)
        _factors(node.args[1], -power, numbers, into)
    elif node.op == "neg":
        numbers.append(Fraction(-1))
        _factors(node.args[0], power, numbers, into)
    elif node.op == "constant" and node.attrs[0] != 0 and math.isfinite(node.attrs[0]):
        numbers.append(Fraction(node.attrs[0]) ** power)
    else:
        into.append((node, power))


def _merge_factors(node: Node) -> Node | None:
    """The numbers of a product become one; sizes and exponentials, which are never 0, cancel."""
    numbers: list[Fraction] = []
    found: list[tuple[Node, int]] = []
    _factors(node, 1, numbers, found)
    cancelled = False
    for what, power in list(found):
        if what.op in ("size", "exp") and (what, power) in found and (what, -power) in found:
            found.remove((what, power))
            found.remove((what, -power))
            cancelled = True
    product = math.prod(numbers, start=Fraction(1))
    written = sum(1 for n in numbers if n not in (1, -1))
    if not cancelled and written <= 1 and not (product == 1 and written):
        return None
    if not _exact(product):
        return None
    over = [w for w, p in found if p > 0]
    under = [w for w, p in found if p < 0]
    size = abs(product)
    result: Node | None = None
    for what in over:
        result = what if result is None else result * what
    if size != 1 or result is None:
        result = constant(float(size)) if result is None else float(size) * result
    if under:
        divisor = under[0]
        for what in under[1:]:
            divisor = divisor * what
        result = result / divisor
    return result if product > 0 else -result


def _merge_conditions(node: Node) -> Node | None:
    """where(c, x, 0) + … + where(c, y, 0) -> where(c, x + y, 0) + …, wherever the two stand in a sum."""
    found: list[tuple[Node, Fraction]] = []
    try:
        _terms(node, Fraction(1), found)
    except (OverflowError, ValueError):
        return None
    for i, (what, coefficient) in enumerate(found):
        for j in range(i):
            other, factor = found[j]
            merged = _under_one_condition(other, float(factor), what, float(coefficient))
            if merged is not None and _exact(factor) and _exact(coefficient):
                rest = [t for k, t in enumerate(found) if k not in (i, j)]
                return _written([*rest[:j], (merged, Fraction(1)), *rest[j:]])
    return None


def _under_one_condition(x: Node, k: float, y: Node, m: float) -> Node | None:
    """k·x + m·y, where both are zero under the same condition, or are the two shares of a tie."""
    if x.op == y.op == "where" and x.args[0] is y.args[0]:
        for zero in (1, 2):
            if all(n.args[zero].op == "constant" and n.args[zero].attrs[0] == 0 for n in (x, y)):
                total_ = _scaled(x.args[3 - zero], k) + _scaled(y.args[3 - zero], m)
                return where(x.args[0], *((0.0, total_) if zero == 1 else (total_, 0.0)))
    left, right = _tie_share(x), _tie_share(y)
    if left is None or right is None or {left[0].op, right[0].op} - {"lt", "gt"} or left[0].op != right[0].op:
        return None
    if left[0].args != right[0].args[::-1]:
        return None
    a, b = _scaled(left[1], k), _scaled(right[1], m)
    return a if a is b else where(left[0], a, where(right[0], b, 0.5 * (a + b)))


def _scaled(x: Node, k: float) -> Node:
    return x if k == 1 else -x if k == -1 else k * x


def _tie_share(node: Node) -> tuple[Node, Node] | None:
    """The condition a < b (or a > b) and x, for x · where(a < b, 1, where(a == b, ½, 0))."""
    if node.op == "where":
        condition, one, tie = node.args
        if condition.op not in ("lt", "gt") or tie.op != "where" or one.op != "constant" or one.attrs[0] != 1:
            return None
        equal, half, zero = tie.args
        same = equal.op == "eq" and set(equal.args) == set(condition.args)
        numbers = half.op == zero.op == "constant" and (half.attrs[0], zero.attrs[0]) == (0.5, 0.0)
        return (condition, constant(1.0)) if same and numbers else None
    if node.op in ("mul", "div", "neg"):
        for i, arg in enumerate(node.args[: 1 if node.op == "div" else None]):
            found = _tie_share(arg)
            if found is not None:
                rest = rebuild(node, [found[1] if j == i else a for j, a in enumerate(node.args)])
                return found[0], rest
    return None


def _written(terms: Sequence[tuple[Node, Fraction]]) -> Node:
    """The sum of some terms, each with an exact coefficient."""
    result: Node | None = None
    for what, coefficient in terms:
        is_number = what.op == "constant"
        size = abs(coefficient)
        term = constant(float(size)) if is_number else what if size == 1 else float(size) * what
        if result is None:
            result = term if coefficient > 0 else -term
        else:
            result = result + term if coefficient > 0 else result - term
    return result if result is not None else constant(0.0)


def _factor_out(node: Node) -> Node | None:
    """a·x ± a·y -> a·(x ± y), x/a ± y/a -> (x ± y)/a."""
    x, y = node.args
    if x.op == y.op == "div" and x.args[1] is y.args[1]:
        return elementwise(node.op, x.args[0], y.args[0]) / x.args[1]
    if x.op == y.op == "mul":
        for i in (0, 1):
            for j in (0, 1):
                if x.args[i] is y.args[j] and x.args[i].op != "constant":
                    return x.args[i] * elementwise(node.op, x.args[1 - i], y.args[1 - j])
    return None


# ------------------------------------------------------------------------------------- conditions


def _inside_branch(node: Node) -> Node | None:
    """In the branch where a comparison holds, what it decides is decided.

    Only in that one: where a comparison fails, an operand may be NaN.
    """
    condition, x, y = node.args
    known: dict[Node, Node] = {condition: constant(True)}
    if condition.op in ("lt", "le", "gt", "ge"):
        a, b = condition.args if condition.op in ("lt", "le") else condition.args[::-1]
        if a.kind is Kind.FLOAT:
            for p, q in ((a, b), (b, a)):
                known[elementwise("minimum", p, q)] = a
                known[elementwise("maximum", p, q)] = b

    def visit(branch: Node, facts: Mapping[Node, Node]) -> Node:
        new: dict[Node, Node] = {}
        # Entries of other positions must not learn of this one: stop at anything that moves along axes.
        for n in topological([branch], stop=lambda n: not is_elementwise(n)):
            args = [new[a] for a in n.args] if is_elementwise(n) else n.args
            if n in facts:
                new[n] = facts[n]
            elif n.op == "where" and args[0].op == "constant":
                new[n] = args[1] if args[0].attrs[0] else args[2]
            else:
                new[n] = rebuild(n, args)
        return new[branch]

    new_x, new_y = visit(x, known), visit(y, {condition: constant(False)})
    return None if new_x is x and new_y is y else where(condition, new_x, new_y)


# ------------------------------------------------------------------------------------- reductions and structure


def _constants_out_of_sum(node: Node) -> Node | None:
    """Factors that do not vary along the summed axes leave the sum."""
    (x,) = node.args
    axes = frozenset(node.attrs[0])
    if x.op == "neg":
        return -reduction("sum", x.args[0], axes)
    if x.op == "div" and not (x.args[1].axes & axes) and x.args[0].axes >= axes:
        return reduction("sum", x.args[0], axes) / x.args[1]
    if x.op == "mul":
        for factor, other in (x.args, x.args[::-1]):
            if not (factor.axes & axes) and other.axes >= axes:
                return factor * reduction("sum", other, axes)
    return None


def _nested_sum(node: Node) -> Node | None:
    (x,) = node.args
    if x.op == node.op:
        return reduction(node.op, x.args[0], frozenset(node.attrs[0]) | frozenset(x.attrs[0]))
    return None


def _select_by_position(node: Node) -> Node | None:
    """The sum over a of where(a == i, x, 0) is x taken at i."""
    (x,) = node.args
    if x.op != "where" or not (x.args[2].op == "constant" and x.args[2].attrs[0] == 0):
        return None
    condition, chosen, _ = x.args
    axes = frozenset(node.attrs[0])
    if condition.op != "eq":
        return None
    for position, index in (condition.args, condition.args[::-1]):
        if position.op == "iota" and position.attrs[0] in axes and position.attrs[0] not in index.axes:
            if len(position.attrs) > 1:  # of a length of its own, which the index may exceed
                continue
            axis = position.attrs[0]
            picked = take(chosen, index, axis) if axis in chosen.axes else chosen
            rest = axes - {axis}
            return total(picked, rest) if rest else picked
    return None


def _sum_with_selected(node: Node) -> Node | None:
    """Σ (x ± where(a == i, y, 0)) over a is |a|·x ± y, where x does not vary along a."""
    (x,) = node.args
    if x.op not in ("add", "sub"):
        return None
    axes = frozenset(node.attrs[0])
    for other, chosen in (x.args, x.args[::-1]):
        if chosen.axes >= axes and not other.axes & axes:
            picked = _select_by_position(reduction("sum", chosen, axes))
            if picked is not None:
                parts = [picked if a is chosen else total(a, axes) for a in x.args]
                return elementwise(x.op, *parts)
    return None


def _take_along_copy(node: Node) -> Node | None:
    """A take at the position along another axis is a substitution; it moves towards the leaves."""
    x, index = node.args
    axis = node.attrs[0]
    if index.op != "iota" or len(index.attrs) > 1:  # with a length of its own it is no copy
        return None
    other = index.attrs[0]
    if x.op == "iota":
        return index
    if is_elementwise(x):
        return rebuild(x, [take(a, index, axis) if axis in a.axes else a for a in x.args])
    if x.op == "rename" and x.attrs[1] == axis:
        old = x.attrs[0]
        if other == old:
            return x.args[0]
        return take(x.args[0], index, old)
    if x.op == "rename" and x.attrs[0] != other and axis in x.args[0].axes and x.attrs[1] != other:
        return rename(take(x.args[0], index, axis), *x.attrs)
    if x.op in ("sum", "max", "min", "logsumexp", "prod") and other not in x.attrs[0]:
        return reduction(x.op, take(x.args[0], index, axis), x.attrs[0])
    if other not in x.axes and original(axis) == original(other):  # of one size, where another axis may be longer
        return rename(x, axis, other)
    return None


def _rename(node: Node) -> Node | None:
    (x,) = node.args
    old, new = node.attrs
    if x.op == "rename" and x.attrs[1] == old:
        return x.args[0] if x.attrs[0] == new else rename(x.args[0], x.attrs[0], new)
    return None


def _sign_out_of_window(node: Node) -> Node | None:
    """What is cut out or padded with zeros may change its sign afterwards: differences of neighbours meet in one array."""
    (x,) = node.args
    return -intern("window", x.args, node.attrs, node.axes, node.kind) if x.op == "neg" else None


_FUNCTIONS: Mapping[str, Sequence[Rewrite]] = {
    **{op: (_fold_condition,) for op in COMPARISONS},
    **{op: (_fold,) for op in ("abs", "sqrt", "exp", "log", "pow", "cast", "minimum", "maximum", "stop_gradient")},
    "neg": (_fold, _merge_terms),
    "add": (_fold, _merge_terms, _merge_conditions, _factor_out),
    "sub": (_fold, _merge_terms, _merge_conditions, _factor_out),
    "mul": (_fold, _merge_factors),
    "div": (_fold, _merge_factors),
    "where": (_fold_where, _inside_branch),
    "sum": (_constants_out_of_sum, _nested_sum, _select_by_position, _sum_with_selected),
    "max": (_nested_sum,),
    "min": (_nested_sum,),
    "prod": (_nested_sum,),
    "logsumexp": (_nested_sum,),
    "take": (_take_along_copy,),
    "rename": (_rename,),
    "window": (_sign_out_of_window,),
}


def simplify(roots: Sequence[Node], assume_nonnegative: Iterable[Node] = ()) -> list[Node]:
    """The graphs of `roots`, simplified by exact identities.

    `assume_nonnegative` names inputs (parameters) that are known to be ≥ 0 in this call.
    """
    assumed = frozenset(assume_nonnegative)
    rewriter = Rewriter((*IDENTITIES, *SIGNS, *POWERS, *_under_assumptions(assumed)), _FUNCTIONS)
    current = list(roots)
    for _ in range(20):  # one pass settles all but rules that see deeper than one node
        new = rewriter(current)
        if all(a is b for a, b in zip(new, current, strict=True)):
            return new
        current = new
    return current


def exponents(roots: Sequence[Node]) -> frozenset[Node]:
    """Inputs without axes that exponents are made of: of powers, and of exp(y log x), however it is written."""
    found = []
    for node in topological(roots):
        if node.op == "pow":
            found.append(node.args[1])
        elif node.op == "exp" and node.args[0].op == "mul":
            x, y = node.args[0].args
            found += [a for a, b in ((x, y), (y, x)) if b.op in ("log", "log_sigmoid")]
    return frozenset(n for n in topological([e for e in found if not e.axes]) if n.op == "input")


def as_softmax(node: Node) -> Node | None:
    """exp(x − logsumexp(x)), and its logarithm, under the names that people and array libraries have for them."""
    difference = node.args[0] if node.op == "exp" else node
    if difference.op == "log_softmax":
        x, axes = difference.args[0], difference.attrs[0]
    elif (
        difference.op == "sub"
        and difference.args[1].op == "logsumexp"
        and difference.args[1].args[0] is difference.args[0]
    ):
        x, axes = difference.args[0], difference.args[1].attrs[0]
    else:
        return None
    return intern("softmax" if node.op == "exp" else "log_softmax", (x,), (axes,), node.axes, Kind.FLOAT)


def erase_gradient_marks(roots: Sequence[Node]) -> list[Node]:
    """The graphs without `stop_gradient` and `surrogate`, which mean nothing once all derivatives are taken."""
    return transform(
        roots,
        lambda n, args: args[0] if n.op in ("stop_gradient", "surrogate") else rebuild(n, args),
    )
