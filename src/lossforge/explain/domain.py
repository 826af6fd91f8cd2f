"""Where a loss and its gradient are finite: the operation table's conditions, few and plain.

A condition is left out if interval arithmetic proves it, or if the branch of a `where` in which alone it
matters implies it. Conditions on one quantity are joined: 0 < p < 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from lossforge.explain.tidy import MIRRORED, Product, tidy
from lossforge.ir import Node, Port, constant, elementwise, substitute, topological
from lossforge.primitives import PRIMITIVES

NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}
"""Each comparison and its opposite."""


# ----------------------------------------------------------------------------------- intervals


@dataclass(frozen=True)
class Interval:
    """All real numbers between two bounds, each of which belongs to it or not."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def above(self, other: Interval) -> bool:
        """Whether every number of this one is larger than every number of the other."""
        return self.low > other.high or (self.low == other.high and (self.low_open or other.high_open))

    def at_least(self, other: Interval) -> bool:
        """Whether no number of this one is smaller than one of the other."""
        return self.low >= other.high

    def apart(self, other: Interval) -> bool:
        """Whether the two have no number in common."""
        return self.above(other) or other.above(self)


_ANY = Interval()
NOT_NEGATIVE = Interval(0.0)
POSITIVE = Interval(0.0, low_open=True)

_KNOWN_RANGES: Mapping[str, Interval] = {
    "size": Interval(1.0),
    "iota": NOT_NEGATIVE,
    "abs": NOT_NEGATIVE,
    "sqrt": NOT_NEGATIVE,
    "exp": POSITIVE,
    "softplus": POSITIVE,
    "sigmoid": Interval(0.0, 1.0, True, True),
    "log_sigmoid": Interval(high=0.0, high_open=True),
    "expm1": Interval(-1.0, low_open=True),
    "tanh": Interval(-1.0, 1.0, True, True),
    "erf": Interval(-1.0, 1.0, True, True),
    "erfc": Interval(0.0, 2.0, True, True),
    "cosh": Interval(1.0),
    "acosh": NOT_NEGATIVE,
    "sign": Interval(-1.0, 1.0),
    "sin": Interval(-1.0, 1.0),
    "cos": Interval(-1.0, 1.0),
    "cast": Interval(0.0, 1.0),
}


def _add(x: Interval, y: Interval) -> Interval:
    return Interval(x.low + y.low, x.high + y.high, x.low_open or y.low_open, x.high_open or y.high_open)


def _negative(x: Interval) -> Interval:
    return Interval(-x.high, -x.low, x.high_open, x.low_open)


def _multiply(x: Interval, y: Interval) -> Interval:
    corners = []
    for a, a_open in ((x.low, x.low_open), (x.high, x.high_open)):
        for b, b_open in ((y.low, y.low_open), (y.high, y.high_open)):
            value = 0.0 if 0.0 in (a, b) else a * b
            is_open = (a_open or b_open) if value else (a_open or a != 0) and (b_open or b != 0)
            corners.append((value, is_open))
    low, high = min(c[0] for c in corners), max(c[0] for c in corners)
    return Interval(low, high, all(o for v, o in corners if v == low), all(o for v, o in corners if v == high))


def _inverse(x: Interval) -> Interval:
    if x.low > 0 or (x.low == 0 and x.low_open):
        low, high = 1 / x.high, math.inf if x.low == 0 else 1 / x.low
        return Interval(low, high, x.high_open or math.isinf(x.high), x.low_open)
    if x.high < 0 or (x.high == 0 and x.high_open):
        return _negative(_inverse(_negative(x)))
    return _ANY


def _larger(x: Interval, y: Interval) -> Interval:
    low = max((x.low, x.low_open), (y.low, y.low_open))
    high = max((x.high, not x.high_open), (y.high, not y.high_open))
    return Interval(low[0], high[0], low[1], not high[1])


def _hull(x: Interval, y: Interval) -> Interval:
    high = _larger(x, y)
    low = _negative(_larger(_negative(x), _negative(y)))
    return Interval(low.low, high.high, low.low_open, high.high_open)


_ARITHMETIC: Mapping[str, Callable[..., Interval]] = {
    "neg": _negative,
    "add": _add,
    "sub": lambda x, y: _add(x, _negative(y)),
    "div": lambda x, y: _multiply(x, _inverse(y)),
    "maximum": _larger,
    "minimum": lambda x, y: _negative(_larger(_negative(x), _negative(y))),
    "where": lambda c, x, y: _hull(x, y),
    "stop_gradient": lambda x: x,
    "surrogate": lambda hard, soft: hard,
    "max": lambda x: x,
    "min": lambda x: x,
    "rename": lambda x: x,
    "take": lambda x, index: x,
}


def intervals(roots: Iterable[Node], known: Mapping[Node, Interval]) -> dict[Node, Interval]:
    """An interval that holds all values of each node, wherever these are defined."""
    found: dict[Node, Interval] = {}
    for n in topological(roots):
        found[n] = known.get(n) or _interval(n, [found[a] for a in n.args])
    return found


def _interval(node: Node, args: Sequence[Interval]) -> Interval:
    if node.op == "constant":
        value = float(node.attrs[0])
        return Interval(value, value)
    if node.op == "mul" and node.args[0] is node.args[1]:
        square = _multiply(args[0], args[0])
        return replace(square, low=0.0, low_open=False) if square.low < 0 else square
    if node.op == "mul":
        return _multiply(*args)
    if node.op == "pow":
        if args[0].low >= 0:
            return POSITIVE if args[0].above(Interval(0.0, 0.0)) else NOT_NEGATIVE
        even = node.args[1].op == "constant" and node.args[1].attrs[0] % 2 == 0
        return NOT_NEGATIVE if even else _ANY
    if node.op == "sqrt":
        return POSITIVE if args[0].above(Interval(0.0, 0.0)) else NOT_NEGATIVE
    if node.op == "sub" and node.args[1].op == "logsumexp" and node.args[1].args[0] is node.args[0]:
        return Interval(high=0.0)  # a logarithm of a probability
    if node.op in ("sum", "prod") and args[0].low >= 0:
        return POSITIVE if args[0].above(Interval(0.0, 0.0)) else NOT_NEGATIVE
    if node.op == "abs":
        return _larger(args[0], _negative(args[0])) if args[0].apart(Interval(0.0, 0.0)) else NOT_NEGATIVE
    if node.op in _ARITHMETIC:
        return _ARITHMETIC[node.op](*args)
    return _KNOWN_RANGES.get(node.op, _ANY)


def _proved(condition: Node, ranges: Mapping[Node, Interval]) -> bool:
    x, y = (ranges[a] for a in condition.args)
    return {
        "gt": x.above(y),
        "ge": x.at_least(y),
        "lt": y.above(x),
        "le": y.at_least(x),
        "ne": x.apart(y),
    }.get(condition.op, False)


# ----------------------------------------------------------------------------------- branches


def guards(root: Node) -> dict[Node, frozenset[tuple[Node, bool]]]:
    """The conditions, with their truth, under which alone each node has influence on `root`."""
    found: dict[Node, frozenset[tuple[Node, bool]]] = {root: frozenset()}
    for node in reversed(topological([root])):
        here = found[node]
        for i, argument in enumerate(node.args):
            there = here | {(node.args[0], i == 1)} if node.op == "where" and i else here
            found[argument] = found[argument] & there if argument in found else there
    return found


def _implied(condition: Node, known: Iterable[tuple[Node, bool]]) -> bool:
    """Whether a condition follows from one that is known to hold or not to hold."""
    for fact, truth in known:
        op = fact.op if truth else NEGATED.get(fact.op)
        if op is None or fact.op not in NEGATED:
            continue
        (plain,) = tidy([elementwise(op, *fact.args)])
        if plain is condition or _stronger(plain, condition):
            return True
    return False


def _stronger(fact: Node, condition: Node) -> bool:
    """Whether x > 1 (the fact) implies x > 0 (the condition), and the like."""
    (x, bound), (y, limit) = fact.args, condition.args
    if x is not y or not bound.op == limit.op == "constant":
        return False
    ranges = {
        "gt": Interval(bound.attrs[0], math.inf, low_open=True),
        "ge": Interval(bound.attrs[0]),
        "lt": Interval(-math.inf, bound.attrs[0], high_open=True),
        "le": Interval(-math.inf, bound.attrs[0]),
        "eq": Interval(bound.attrs[0], bound.attrs[0]),
    }
    at = Interval(limit.attrs[0], limit.attrs[0])
    return fact.op in ranges and _proved(condition, {x: ranges[fact.op], limit: at})


# ----------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Condition:
    """What must hold, as a comparison of two nodes, and where it matters (None: everywhere)."""

    holds: Node
    where: Node | None = None


def conditions(
    value: Node,
    parameters: Mapping[Node, float] | None = None,
    symbols: Mapping[Node, Node] | None = None,
    carrying: Iterable[Node] | None = None,
) -> tuple[Condition, ...]:
    """The conditions under which `value` and its derivatives are finite.

    Args:
        value: the unreduced loss.
        parameters: values of parameters. Only their signs are used, and exponents; a condition that needs the
            sign of a parameter to be proved gives way to that sign.
        symbols: variables that stand for parts of the value.
        carrying: the nodes through which a gradient flows (None: all); of others only the value
            must be finite.
    """
    values = dict(parameters or {})
    short = dict(symbols or {})
    flows = None if carrying is None else set(carrying)
    signs = {p: POSITIVE if v > 0 else NOT_NEGATIVE for p, v in values.items() if v >= 0}
    free, signed = intervals([value], {}), intervals([value], signs)
    known = {s: free[n] for n, s in short.items() if n in free}
    known_signed = signs | {s: signed[n] for n, s in short.items() if n in signed}
    under = guards(value)
    found: dict[Condition, None] = {}
    for node in topological([value]):
        row = PRIMITIVES.get(node.op)
        for raw in row.domain(*_with_numbers(node, values)) if row else ():
            if flows is not None and node not in flows:
                raw = _for_the_value(node, raw)
            leaves = [n for n in topological([raw]) if n.op == "input"]
            facts = [(substitute([c], short)[0], truth) for c, truth in under[node]]
            for condition in _parts(substitute([raw], short)[0]):
                if _proved(condition, intervals([condition], known)) or _implied(condition, facts):
                    continue
                if set(leaves) - set(values) and _proved(condition, intervals([condition], known_signed)):
                    for p in (n for n in leaves if n in signs):
                        found[Condition(elementwise("gt" if values[p] > 0 else "ge", p, 0.0))] = None
                    continue
                branch = [c if truth else elementwise("not", c) for c, truth in facts]
                where = reduce(lambda x, y: elementwise("and", x, y), branch) if branch else None
                found[Condition(condition, where)] = None
    everywhere = {c.holds for c in found if c.where is None}
    return tuple(c for c in found if not _redundant(c, everywhere))


def _for_the_value(node: Node, raw: Node) -> Node:
    """The condition for the value alone, where only the derivative is infinite at the edge of the domain."""
    at_edge = node.op in ("sqrt", "asin", "acos", "acosh") or (node.op == "xlogy" and node.args[0] is node.args[1])
    return elementwise({"gt": "ge", "lt": "le"}.get(raw.op, raw.op), *raw.args) if at_edge else raw


def _with_numbers(node: Node, values: Mapping[Node, float]) -> tuple[Node, ...]:
    """The arguments; an exponent that is a parameter is its number, since the domain depends on it."""
    if node.op == "pow" and node.args[1] in values:
        return node.args[0], constant(values[node.args[1]])
    return node.args


def _parts(condition: Node) -> list[Node]:
    """A condition in its plainest form; a·b ≠ 0 falls into a ≠ 0 and b ≠ 0."""
    (plain,) = tidy([condition])
    if plain.op != "ne" or plain.args[1].op != "constant" or plain.args[1].attrs[0] != 0:
        return [plain]
    factors = Product().multiply(plain.args[0]).powers
    result = []
    for factor, power in factors.items():
        op = "gt" if power.denominator > 1 else "ne"  # a root that is not 0
        result += tidy([elementwise(op, factor, 0.0)])
    return result


def _redundant(condition: Condition, everywhere: Iterable[Node]) -> bool:
    others = [c for c in everywhere if c is not condition.holds or condition.where is not None]
    return _implied(condition.holds, [(c, True) for c in others])


def joined(found: Sequence[Condition], write: Callable[[Node], str]) -> tuple[str, ...]:
    """The conditions as text, those on one quantity as one chain: 0 < p < 1."""
    symbols = {"lt": "<", "le": "≤"}
    lower: dict[Node, Node] = {}
    upper: dict[Node, Node] = {}
    for c in found:
        if c.where is None and c.holds.args[1].op == "constant":
            if c.holds.op in ("gt", "ge"):
                lower.setdefault(c.holds.args[0], c.holds)
            elif c.holds.op in ("lt", "le"):
                upper.setdefault(c.holds.args[0], c.holds)
    texts: dict[str, None] = {}
    for c in found:
        x = c.holds.args[0]
        if c.holds in (lower.get(x), upper.get(x)) and x in lower and x in upper:
            low, high = lower[x], upper[x]
            below = f"{write(low.args[1])} {symbols[MIRRORED[low.op]]} "
            texts[f"{below}{write(x)} {symbols[high.op]} {write(high.args[1])}"] = None
        else:
            texts[write(c.holds) + (f"  where {write(c.where)}" if c.where is not None else "")] = None
    return tuple(texts)


def indices(value: Node, arguments: Iterable[Port]) -> tuple[tuple[Node, str], ...]:
    """The arguments that hold positions, each with the axis along which they point."""
    nodes = {p.node for p in arguments}
    found: dict[tuple[Node, str], None] = {}
    for node in topological([value]):
        if node.op == "take" and node.args[1] in nodes:
            found[node.args[1], node.attrs[0]] = None
        if node.op == "eq":
            for position, index in (node.args, node.args[::-1]):
                if position.op == "iota" and index in nodes:
                    found[index, position.attrs[0]] = None
    return tuple(found)
