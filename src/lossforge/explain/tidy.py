"""Sums and products set out as on paper: like terms merged, common factors in front, one fraction, few signs.

Every step is an identity of real arithmetic. They are for reading only: what is computed has been through
`lossforge.simplify`, which also minds the digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from lossforge.ir import Kind, Node, constant, elementwise, rebuild, reduction, rename, topological, transform

MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
"""Each comparison with its sides exchanged."""


@dataclass
class Product:
    """A coefficient and factors, each with its power; √x is x to the power ½."""

    coefficient: Fraction = Fraction(1)
    powers: dict[Node, Fraction] = field(default_factory=dict)

    def multiply(self, node: Node, power: Fraction = Fraction(1)) -> Product:
        """Multiply by a power of a node, whose own factors are taken apart."""
        whole = power.denominator == 1
        if node.op == "mul" and whole:
            self.multiply(node.args[0], power).multiply(node.args[1], power)
        elif node.op == "div" and whole:
            self.multiply(node.args[0], power).multiply(node.args[1], -power)
        elif node.op == "neg" and whole:
            self.coefficient *= -1 if power % 2 else 1
            self.multiply(node.args[0], power)
        elif node.op == "constant" and whole and math.isfinite(node.attrs[0]) and (node.attrs[0] != 0 or power > 0):
            self.coefficient *= Fraction(node.attrs[0]) ** int(power)
        elif node.op == "pow" and whole and node.args[1].op == "constant" and float(node.args[1].attrs[0]).is_integer():
            self.multiply(node.args[0], power * int(node.args[1].attrs[0]))
        elif node.op == "sqrt":
            self.multiply(node.args[0], power / 2)
        else:
            self.powers[node] = self.powers.get(node, Fraction(0)) + power
        return self

    def node(self) -> Node:
        """The product, written as one fraction."""
        if self.coefficient == 0:
            return constant(0.0)
        powers = {n: p for n, p in self.powers.items() if p}
        coefficient, powers = _with_fewer_signs(self.coefficient, powers)
        if (spread := _spread(coefficient, powers)) is not None:
            return spread
        above = sorted((n for n, p in powers.items() if p > 0), key=_place)
        below = sorted((n for n, p in powers.items() if p < 0), key=_place)
        over, under = abs(coefficient), Fraction(1)
        short = over.numerator == 1 and 1 < over.denominator < 1000
        no_decimal = float(over) != over and over.denominator < 1000  # 1/3
        if (below and short) or no_decimal:
            over, under = Fraction(over.numerator), Fraction(over.denominator)
        if not powers and under == 1:
            return constant(float(coefficient))
        result = _power_product(over, above, powers)
        if below or under != 1:
            result = result / _power_product(under, below, powers)
        return -result if coefficient < 0 else result


def _with_fewer_signs(coefficient: Fraction, powers: dict[Node, Fraction]) -> tuple[Fraction, dict[Node, Fraction]]:
    """−(x − y) is y − x, unless a number in front would go behind; −where(c, x, y) is where(c, −x, −y)."""
    for n, p in powers.items():
        if coefficient >= 0 or p.denominator != 1 or p % 2 == 0:
            continue
        other = None
        if n.op == "sub" and n.args[0].op != "constant":
            other = elementwise("sub", n.args[1], n.args[0])
        elif n.op == "where" and len(powers) == 1:
            other = elementwise("where", n.args[0], *(_negative(a) for a in n.args[1:]))
        if other is not None:
            return -coefficient, {other if m is n else m: q for m, q in powers.items()}
    return coefficient, powers


def _spread(coefficient: Fraction, powers: Mapping[Node, Fraction]) -> Node | None:
    """½·(1 − 2·x) is ½ − x."""
    if len(powers) != 1 or abs(coefficient) == 1:
        return None
    ((inner, power),) = powers.items()
    if power != 1 or inner.op not in ("add", "sub"):
        return None
    terms = _terms(inner)
    if not any(t.powers and abs(t.coefficient * coefficient) == 1 for t in terms):
        return None
    return _added([Product(t.coefficient * coefficient, t.powers) for t in terms])


def _negative(node: Node) -> Node:
    return _sum(-node) if node.op in ("add", "sub") else Product(Fraction(-1)).multiply(node).node()


def _place(node: Node) -> int:
    """Parameters first, sums last."""
    return 0 if not node.axes else 2 if node.op in ("add", "sub") else 1


def _power_product(coefficient: Fraction, nodes: Sequence[Node], powers: Mapping[Node, Fraction]) -> Node:
    result = None if coefficient == 1 and nodes else constant(float(coefficient))
    for n in nodes:
        whole, half = divmod(abs(powers[n]), 1)
        factors = [n if whole == 1 else elementwise("pow", n, float(whole))] if whole else []
        factors += [elementwise("sqrt", n)] if half else []
        for factor in factors:
            result = factor if result is None else result * factor
    assert result is not None
    return result


def _terms(node: Node, sign: int = 1) -> list[Product]:
    """The terms of a sum."""
    if node.op in ("add", "sub"):
        return _terms(node.args[0], sign) + _terms(node.args[1], sign if node.op == "add" else -sign)
    if node.op == "neg":
        return _terms(node.args[0], -sign)
    term = Product(Fraction(sign)).multiply(node)
    if len(term.powers) == 1 and node.op != "constant":
        ((inner, power),) = term.powers.items()
        if power == 1 and inner.op in ("add", "sub") and abs(term.coefficient) == 1:
            return _terms(inner, int(term.coefficient))
    return [term]


def _sum(node: Node) -> Node:
    merged: dict[frozenset[tuple[Node, Fraction]], Product] = {}
    for term in _terms(node):
        key = frozenset((n, p) for n, p in term.powers.items() if p)
        if key in merged:
            merged[key].coefficient += term.coefficient
        else:
            merged[key] = term
    terms = [t for t in merged.values() if t.coefficient]
    if len(terms) < 2:
        return terms[0].node() if terms else constant(0.0)
    if all(t.coefficient < 0 for t in terms):
        terms = [Product(*_with_fewer_signs(t.coefficient, t.powers)) for t in terms]
    common = _common_factor(terms)
    terms.sort(key=lambda t: t.coefficient < 0)
    result = _added(terms)
    if not common.powers and common.coefficient == 1:
        return result
    return common.multiply(_sum(result)).node()


def _under_condition(node: Node) -> Node:
    """y + where(c, x − y, 0) is where(c, x, y)."""
    if node.op == "add":
        for other, choice in (node.args, node.args[::-1]):
            if choice.op == "where":
                moved = elementwise("where", choice.args[0], *(_sum(a + other) for a in choice.args[1:]))
                if _written_length(moved) < _written_length(node):
                    return moved
    return node


def _rectified(node: Node) -> Node:
    """x − min(x, y) is max(x − y, 0), and x − max(x, y) is min(x − y, 0)."""
    other = {"minimum": "maximum", "maximum": "minimum"}
    if node.op != "sub" or node.args[1].op not in other or node.args[0] not in node.args[1].args:
        return node
    x, pair = node.args
    y = pair.args[1] if pair.args[0] is x else pair.args[0]
    return elementwise(other[pair.op], _sum(x - y), 0.0)


def _common_factor(terms: Sequence[Product]) -> Product:
    """Divide the terms by what they share, and return that."""
    common = Product()
    for n in list(terms[0].powers):
        powers = [t.powers.get(n, Fraction(0)) for t in terms]
        shared = min(powers) if min(powers) > 0 else max(powers) if max(powers) < 0 else Fraction(0)
        if shared:
            common.powers[n] = shared
            for t in terms:
                t.powers[n] -= shared
                if not t.powers[n]:
                    del t.powers[n]
    sizes = {abs(t.coefficient) for t in terms}
    if len(sizes) == 1 and sizes != {1}:
        (common.coefficient,) = sizes
        for t in terms:
            t.coefficient /= common.coefficient
    if all(t.coefficient < 0 for t in terms):
        common.coefficient = -common.coefficient
        for t in terms:
            t.coefficient = -t.coefficient
    return common


def _reduced(node: Node) -> Node:
    """Factors that do not vary along the axes of a sum stand in front of it."""
    axes = frozenset(node.attrs[0])
    product = Product().multiply(node.args[0])
    outside = Product(product.coefficient)
    for n in list(product.powers):
        if not n.axes & axes:
            outside.powers[n] = product.powers.pop(n)
    product.coefficient = Fraction(1)
    inner = product.node()
    if not inner.axes >= axes or not (outside.powers or outside.coefficient != 1):
        return node
    return outside.multiply(reduction("sum", inner, axes)).node()


def _renamed(node: Node) -> Node:
    """Factors that have neither name of a renamed axis stand in front of it."""
    product = Product().multiply(node.args[0])
    outside = Product(product.coefficient)
    product.coefficient = Fraction(1)
    for n in list(product.powers):
        if not n.axes & set(node.attrs):
            outside.powers[n] = product.powers.pop(n)
    inner = product.node()
    return outside.multiply(rename(inner, *node.attrs)).node() if node.attrs[0] in inner.axes else node


def _compared(node: Node) -> Node:
    """x − y > 0 is x > y; 1 − x > 0 is x < 1; a number stands on the right."""
    x, y = node.args
    if Kind.FLOAT not in (x.kind, y.kind):
        return elementwise(MIRRORED[node.op], y, x) if x.op == "constant" != y.op else node
    op, difference = node.op, _sum(x - y)
    if difference.op == "constant":
        sign = difference.attrs[0]
        return constant(
            {"lt": sign < 0, "le": sign <= 0, "gt": sign > 0, "ge": sign >= 0}.get(op, (op == "eq") is (sign == 0))
        )
    if _length(difference) > _length(x) + _length(y):
        return elementwise(MIRRORED[node.op], y, x) if x.op == "constant" != y.op else node
    if difference.op == "sqrt":
        difference = difference.args[0]
    if difference.op == "neg":
        difference, op = difference.args[0], MIRRORED[op]
    product = Product().multiply(difference)
    if abs(product.coefficient) != 1 and not any(n.op == "constant" for n in product.powers):
        if product.coefficient < 0:
            op = MIRRORED[op]
        product.coefficient = Fraction(1)
        difference = product.node()
    return _sides(op, difference)


def _same(x: Node, y: Node) -> bool:
    """Whether two branches are one; 0 and −0 are."""
    return x is y or (x.op == y.op == "constant" and x.attrs[0] == y.attrs[0])


def _sides(op: str, difference: Node) -> Node:
    if difference.op not in ("add", "sub"):
        return elementwise(op, difference, 0.0)
    terms = _terms(difference)
    left = [t for t in terms if t.powers and t.coefficient > 0]
    right = [t for t in terms if t.powers and t.coefficient < 0]
    number = -sum((t.coefficient for t in terms if not t.powers), Fraction(0))
    if not left:
        left, right, op = [Product(-t.coefficient, t.powers) for t in right], [], MIRRORED[op]
        number = -number
    else:
        right = [Product(-t.coefficient, t.powers) for t in right]
    if number < 0 and right:  # no sign where it can stand on the other side
        left, number = [*left, Product(-number)], Fraction(0)
    elif number or not right:
        right = [*right, Product(number)]
    return elementwise(op, _added(left), _added(right))


def _added(terms: Sequence[Product]) -> Node:
    result = terms[0].node()
    for term in terms[1:]:
        positive = Product(abs(term.coefficient), term.powers).node()
        result = result - positive if term.coefficient < 0 else result + positive
    return result


def _written_length(node: Node) -> int:
    """The number of operations, each part counted as often as it is written."""
    length: dict[Node, int] = {}
    for n in topological([node]):
        length[n] = 1 + sum(length[a] for a in n.args)
    return length[node]


def _length(node: Node) -> int:
    return sum(1 for n in topological([node]) if n.op != "constant" or n.attrs[0] != 0)


def tidy(roots: Sequence[Node]) -> list[Node]:
    """The graphs, as they would be written."""

    def visit(node: Node, args: tuple[Node, ...]) -> Node:
        new = rebuild(node, args)
        if new.op in ("add", "sub") or (new.op == "neg" and new.args[0].op in ("add", "sub")):
            return _rectified(_under_condition(_sum(new)))
        if new.op in ("mul", "div", "neg") or (new.op == "pow" and new.args[1].op == "constant"):
            return Product().multiply(new).node()
        if new.op == "sum":
            return _reduced(new)
        if new.op == "rename":
            return _renamed(new)
        if new.op in MIRRORED:
            return _compared(new)
        if new.op == "where" and new.args[0].op == "constant":
            return new.args[1] if new.args[0].attrs[0] else new.args[2]
        if new.op == "where" and _same(*new.args[1:]):
            return new.args[1]
        if new.op == "where" and new.args[0].op == "not":
            return elementwise("where", new.args[0].args[0], new.args[2], new.args[1])
        return new

    return transform(roots, visit)
