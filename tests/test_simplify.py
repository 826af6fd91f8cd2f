"""Every rewrite rule is an identity: both sides agree, in 50 digits, wherever the left one is defined."""

import itertools
import zlib

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings

from conftest import SEED
from lossforge.interpreter import HighPrecision, evaluate
from lossforge.ir import (
    Kind,
    Node,
    Port,
    as_kind,
    constant,
    elementwise,
    input_,
    intern,
    iota,
    reduction,
    size,
    take,
    topological,
    where,
)
from lossforge.rewrite import Rule, parse
from lossforge.simplify import IDENTITIES, POWERS, SIGNS, _under_assumptions, nonnegative, nonpositive, simplify
from lossforge.stabilize import TABLE, stabilize

SAMPLE, ENTRY = "sample", "entry"
EDGES = [0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 1e-9, -1e-9, 40.0, -40.0, 700.0]
NUMBERS = [-2.0, -0.5, 0.0, 0.25, 1.0, 2.0, 3.0, 4.0]  # for holes that take constants
TOLERANCE = mpmath.mpf(10) ** -35  # 50 digits, of which cosh(700) · 1e-9 and the like may cancel a dozen

BOUND = input_("d")
TABLES = (IDENTITIES, SIGNS, POWERS, _under_assumptions(frozenset({BOUND})), TABLE)
EVERY_RULE = tuple({rule.text: rule for table in TABLES for rule in table}.values())


def holes(rule: Rule) -> list[str]:
    """The names of a rule's holes."""

    def walk(pattern):
        if pattern.op == "?":
            yield pattern.name
        for arg in pattern.args:
            yield from walk(arg)

    return sorted(set(walk(rule.left)))


def has_reduction(rule: Rule) -> bool:
    return any(f"{op}(" in rule.text for op in ("sum", "max", "logsumexp"))


def build(rule: Rule, numbers: dict[str, float]) -> tuple[Node, Node, dict[str, Port]]:
    """Both sides of a rule, over inputs for its holes."""
    order = (SAMPLE, ENTRY) if has_reduction(rule) else (SAMPLE,)
    ports: dict[str, Port] = {}
    bound = {"axes": intern("axes", (), ((ENTRY,),), frozenset(), Kind.FLOAT)}
    for name in holes(rule):
        if name in numbers:
            bound[name] = constant(numbers[name])
        elif name == "d" and rule.when is not None:
            ports[name] = Port(BOUND, ())
            bound[name] = BOUND
        else:
            ports[name] = Port(input_(name, order, Kind.BOOL if name == "c" else Kind.FLOAT), order)
            bound[name] = ports[name].node
    return rule.left.build(bound), rule.right.build(bound), ports


def number_choices(rule: Rule) -> list[dict[str, float]]:
    """Constants for the holes that take constants, such as the rule's condition allows."""
    names = [n for n in holes(rule) if n.startswith("k")]
    choices = [dict(zip(names, values, strict=True)) for values in itertools.product(NUMBERS, repeat=len(names))]
    return [c for c in choices if not c or rule.when is None or rule.when({n: constant(v) for n, v in c.items()})]


def draw(rng: np.random.Generator, ports: dict[str, Port], count: int) -> dict[str, np.ndarray]:
    """Values for the inputs: edges, ties between inputs, and numbers of all sizes."""
    values: dict[str, np.ndarray] = {}
    for name, port in ports.items():
        shape = [count if a == SAMPLE else 3 for a in port.order]
        if port.node.kind is Kind.BOOL:
            values[name] = rng.random(shape) < 0.5
        elif not port.order:
            values[name] = np.array(rng.choice([0.0, 0.5, 2.0]))
        else:
            anything = rng.normal(size=shape) * 10.0 ** rng.integers(-3, 2, shape)
            values[name] = np.where(rng.random(shape) < 0.6, rng.choice(EDGES, shape), anything)
    return values


def each(predicate, values) -> np.ndarray:
    """The truth values of a predicate at each entry."""
    return np.asarray(np.frompyfunc(predicate, 1, 1)(values), dtype=bool)


def both(left: Node, right: Node, ports: dict[str, Port], values: dict[str, np.ndarray]):
    """The values of both sides, and where the left side and all beneath it are defined."""
    given_values = {ports[n]: v for n, v in values.items()}
    inner = topological([left])
    *below, r = evaluate([*inner, right], given_values, HighPrecision(50))
    shape = np.shape(below[-1])
    defined = np.ones(shape, dtype=bool)
    for node, value in zip(inner, below, strict=True):
        if node.kind is Kind.FLOAT:
            finite = each(mpmath.isfinite, value)
            if ENTRY in node.axes and ENTRY not in left.axes:
                finite = finite.all(axis=0)  # axes come in alphabetical order
            elif ENTRY in left.axes and ENTRY not in node.axes and SAMPLE in node.axes:
                finite = finite[None, :]
            defined = defined & np.broadcast_to(finite, shape)
    return below[-1], np.broadcast_to(r, shape), defined


def agree(x, y) -> bool:
    return abs(x - y) <= TOLERANCE * (1 + abs(x) + abs(y))


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda r: r.text)
def test_both_sides_agree(rule):
    rng = np.random.default_rng([SEED, zlib.crc32(rule.text.encode())])
    checked = 0
    for numbers in number_choices(rule):
        left, right, ports = build(rule, numbers)
        values = draw(rng, ports, 40)
        x, y, defined = both(left, right, ports, values)
        if rule.left.op in ("not",):
            assert (x == y).all()
            checked += x.size
            continue
        for index in np.ndindex(x.shape):
            if defined[index]:
                at = {n: v[index[-1]] if v.ndim else v for n, v in values.items()}
                assert agree(x[index], y[index]), f"{rule.text} at {at} with {numbers}: {x[index]} != {y[index]}"
                checked += 1
    assert checked >= (5 if SAMPLE in left.axes else 1), "the rule's left side is hardly ever defined"


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda r: r.text)
def test_the_rule_fits_its_own_left_side(rule):
    applicable = False
    for numbers in number_choices(rule):
        left, _, _ = build(rule, numbers)
        applicable = applicable or rule(left) is not None
    assert applicable


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda r: r.text)
def test_nan_is_not_lost(rule):
    """A NaN that the left side shows is shown by the right side, if that depends on the input at all.

    The branch that a condition does not choose has no influence, by the language's own rule: such results
    are left out.
    """
    if rule.right.op == "where":
        return
    rng = np.random.default_rng(SEED)
    for numbers in number_choices(rule):
        left, right, ports = build(rule, numbers)
        used = {n.attrs[0] for n in topological([right]) if n.op == "input"}
        for name, port in ports.items():
            if name not in used or port.node.kind is Kind.BOOL:
                continue
            values = draw(rng, ports, 20)
            values[name] = np.full_like(values[name], np.nan)
            x, y, _ = both(left, right, ports, values)
            lost = [mpmath.isnan(a) and not mpmath.isnan(b) for a, b in zip(x.ravel(), y.ravel(), strict=True)]
            assert not any(lost), f"{rule.text}: a NaN in {name} is lost"


# --------------------------------------------------------------------------------- rules that are functions

AXES = {"x": (SAMPLE,), "y": (SAMPLE,), "z": (SAMPLE,), "p": (), "q": (), "d": ()}


def node_of(text: str) -> Node:
    """The node that an expression denotes: `c` is a condition, `p`, `q` and `d` are parameters.

    `at` is the position along the one axis, `n` its size, and `i` an index.
    """
    bound = {name: input_(name, axes) for name, axes in AXES.items()}
    bound |= {"at": iota(SAMPLE), "n": size(SAMPLE), "i": input_("i", (), Kind.INDEX)}
    bound["c"] = input_("c", (SAMPLE,), Kind.BOOL)
    bound["axes"] = intern("axes", (), ((SAMPLE,),), frozenset(), Kind.FLOAT)
    return parse(text).build(bound)


SIMPLIFIED = [
    ("2 * 3", "6"),
    ("x + x", "2 * x"),
    ("x + y - x", "y"),
    ("x / 2 + x / 2", "x"),
    ("x - (y + x)", "-y"),
    ("2 * (x * 3)", "6 * x"),
    ("0.5 * (2 * x)", "x"),
    ("x * (1 / 2 * 2)", "x"),
    ("x * y + x * z", "x * (y + z)"),
    ("x / y - z / y", "(x - z) / y"),
    ("exp(x) * y / exp(x)", "y"),
    ("-2 * x + y", "y - 2 * x"),
    ("-(x * (y - z))", "x * (z - y)"),
    ("where(c, x, 0) + y + where(c, z, 0)", "where(c, x + z, 0) + y"),
    ("where(c, 0, x) + (y - where(c, 0, z))", "where(c, 0, x - z) + y"),
    ("where(x < y, minimum(x, y), z)", "where(x < y, x, z)"),
    ("where(c, where(c, x, y), z)", "where(c, x, z)"),
    ("sum(p * x)", "p * sum(x)"),
    ("sum(-x)", "-sum(x)"),
    (  # the shares of a tie, from the chain rule through maximum(x, y), when both came from one variable
        "where(x > y, 1, where(x == y, 0.5, 0)) * p + where(y > x, 1, where(x == y, 0.5, 0)) * q",
        "where(x > y, p, where(y > x, q, 0.5 * (p + q)))",
    ),
    ("sum(p + where(at == i, q, 0))", "p * n + q"),
    ("sum(where(at == i, q, 0) - p)", "q - p * n"),
    ("1 - 2 * sigmoid(-2 * x)", "tanh(x)"),
    ("sign(x) * (1 - 2 * sigmoid(-2 * abs(x)))", "tanh(x)"),
]


@pytest.mark.parametrize(("text", "expected"), SIMPLIFIED, ids=[text for text, _ in SIMPLIFIED])
def test_what_expressions_become(text, expected):
    (result,) = simplify([node_of(text)])
    assert result is node_of(expected), repr(result)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sign(x) * minimum(abs(x), d)", "minimum(maximum(x, -d), d)"),
        ("where(abs(x) <= d, x, d * sign(x))", "minimum(maximum(x, -d), d)"),
        ("abs(d)", "d"),
    ],
)
def test_bounds_are_only_used_where_they_are_known(text, expected):
    assert simplify([node_of(text)], [input_("d")])[0] is node_of(expected)
    assert simplify([node_of(text)])[0] is node_of(text)


expressions = st.recursive(
    st.sampled_from(["x", "y", "z", "p", "0", "1", "2", "0.5", "3"]),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner),
        st.builds("(-{})".format, inner),
        st.builds("{}({})".format, st.sampled_from(["abs", "exp", "sigmoid", "sqrt", "tanh", "sign"]), inner),
        st.builds("{}({}, {})".format, st.sampled_from(["minimum", "maximum"]), inner, inner),
        st.builds("where({} < {}, {}, {})".format, inner, inner, inner, inner),
        st.builds("where(c, {}, {})".format, inner, inner),
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(expressions, st.integers(0, 2**32 - 1))
def test_simplified_and_stabilized_expressions_keep_their_value(text, seed):
    node = node_of(text)
    if node.kind is not Kind.FLOAT:
        return
    rng = np.random.default_rng(seed)
    ports = {n: Port(input_(n, axes), axes) for n, axes in AXES.items()}
    ports["c"] = Port(input_("c", (SAMPLE,), Kind.BOOL), (SAMPLE,))
    values = {}
    for name, port in ports.items():
        shape = (8,) if port.order else ()
        values[name] = rng.random(shape) < 0.5 if name == "c" else rng.choice([0.0, 1.0, -1.0, 0.3, -2.5, 4.0], shape)
    for new in (simplify([node])[0], stabilize(node)[0]):
        numbers = [n.attrs[0] for n in topological([new]) if n.op == "constant"]
        assume(all(float(v * 2**20).is_integer() for v in numbers))  # exp(1) was folded, and rounded
        x, y, defined = both(node, new, ports, values)
        small = each(lambda v: mpmath.isfinite(v) and abs(v) < 1e12, x)
        for index in np.argwhere(defined & small):
            a, b = x[tuple(index)], y[tuple(index)]
            assert agree(a, b), f"{text} became {new!r}: {a} != {b}"


# ------------------------------------------------------------------------------------------- signs

X, Y, G = input_("x", ("a", "b")), input_("y", ("a",)), input_("gamma")
HIGHEST = reduction("max", X, ("b",))
LOG_SIGMOID = elementwise("log_sigmoid", X)
KNOWN_NONPOSITIVE = {
    "log_sigmoid": LOG_SIGMOID,
    "a power of it": G * LOG_SIGMOID,
    "the other way round": LOG_SIGMOID / elementwise("exp", Y),
    "minus a magnitude": -elementwise("abs", X),
    "below the maximum": X - HIGHEST,
    "below the maximum, guarded": X - where(elementwise("eq", HIGHEST, -np.inf), 0.0, HIGHEST),
    "a sum": reduction("sum", LOG_SIGMOID - elementwise("softplus", Y), ("b",)),
    "a minimum": elementwise("minimum", X, -1.0),
}
NOT_KNOWN = {
    "a number": X,
    "below another maximum": X - reduction("max", X * 2.0, ("b",)),
    "a guard of something else": X - where(elementwise("eq", HIGHEST, np.inf), 0.0, HIGHEST),
    "a product of two": LOG_SIGMOID * LOG_SIGMOID,
    "a maximum": elementwise("maximum", LOG_SIGMOID, X),
    "an unknown factor": Y * LOG_SIGMOID,
    "whole numbers": as_kind(input_("labels", ("a",), Kind.INDEX), Kind.FLOAT),
    "a whole part": elementwise("floor", X),
}


@pytest.mark.parametrize("name", KNOWN_NONPOSITIVE)
def test_what_is_known_to_be_nonpositive_is(name, rng):
    node = KNOWN_NONPOSITIVE[name]
    assert nonpositive(node, frozenset({G}))
    assert not nonnegative(node, frozenset({G}))
    values = {Port(X, ("a", "b")): 5 * rng.normal(size=(50, 7)), Port(Y, ("a",)): rng.normal(size=50), Port(G, ()): 1.5}
    values[Port(X, ("a", "b"))][3] = -np.inf
    with np.errstate(all="ignore"):
        (found,) = evaluate([node], values)
    assert (found[~np.isnan(found)] <= 0).all()


def test_a_whole_number_may_be_negative():
    label = input_("label", ("a",), Kind.INDEX)
    distance = as_kind(label - 3, Kind.FLOAT)
    assert not nonnegative(distance)
    assert not nonnegative(as_kind(label, Kind.FLOAT))
    assert nonnegative(as_kind(elementwise("ge", label, 3), Kind.FLOAT))
    assert simplify([elementwise("abs", distance)])[0].op != "cast"


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_a_sign_that_is_not_known_is_not_claimed(name):
    assert not nonpositive(NOT_KNOWN[name], frozenset({G}))
    assert not nonnegative(NOT_KNOWN[name], frozenset({G})) or name == "a product of two"


def test_a_take_at_the_positions_along_a_shorter_axis_is_no_renaming(rng):
    """Of a matrix with more columns than rows, the entries at (i, i), and its first columns."""
    x = input_("x", ("row", "column"))
    array = rng.standard_normal((3, 5))
    for node in (take(x, iota("row"), "column"), take(reduction("sum", x, ("row",)), iota("row"), "column")):
        (simplified,) = simplify([node])
        for graph in (node, simplified):
            (found,) = evaluate([graph], {Port(x, ("row", "column")): array})
            assert np.array_equal(found, array.diagonal() if node.args[0] is x else array.sum(0)[:3])
