"""Formulas: what is printed is what a person would write, and means what the graph computes."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings

import lossforge as lf
from formula_reader import value_of
from lossforge.explain.formula import formula
from lossforge.explain.idioms import idiomatic
from lossforge.explain.notation import LaTeX, Notation, latex_name, unicode_name
from lossforge.explain.tidy import tidy
from lossforge.frontends.language import Traced
from lossforge.interpreter import Float64, HighPrecision, evaluate
from lossforge.ir import (
    Kind,
    Node,
    Port,
    argsort,
    constant,
    cumsum,
    extent,
    flip,
    input_,
    iota,
    join,
    reduction,
    size,
    take,
    topological,
    where,
    window,
)

A, B = "batch", "class"
X, Y = input_("x", (A,)), input_("y", (A,))
Z, DELTA = input_("logits", (A, B)), input_("delta")
TARGET = input_("target", (A,), Kind.INDEX)


def traced(function, *nodes: Node) -> Node:
    return function(*map(Traced, nodes)).node


# fmt: off
TABLE = [
    # definition, arguments, text, LaTeX
    (lambda x, y: x - (y - x), (X, Y), "x − (y − x)", r"x - \left(y - x\right)"),
    (lambda x, y: -(x + y), (X, Y), "−(x + y)", r"-\left(x + y\right)"),
    (lambda x, y: x + -y, (X, Y), "x − y", "x - y"),
    (lambda x, y: x * -2.0 + y, (X, Y), "y − 2·x", r"y - 2 \, x"),
    (lambda x, y: -x * y, (X, Y), "−x·y", r"-x \, y"),
    (lambda x, y: x / (y * x), (X, Y), "x / (y·x)", r"\frac{x}{y \, x}"),
    (lambda x, y: x / y / x, (X, Y), "x / y / x", r"\frac{\frac{x}{y}}{x}"),
    (lambda x, y: x * (y / x), (X, Y), "x·(y / x)", r"x \, \frac{y}{x}"),
    (lambda x: x * x, (X,), "x²", "x^{2}"),
    (lambda x: x * x * x, (X,), "x³", "x^{3}"),
    (lambda x: (x + 1) ** 2, (X,), "(x + 1)²", r"\left(x + 1\right)^{2}"),
    (lambda x: x**-2, (X,), "x⁻²", "x^{-2}"),
    (lambda x, g: x ** (g - 1), (X, input_("gamma")), "x^(γ − 1)", r"x^{\gamma - 1}"),
    (lambda x: 2**x, (X,), "2^x", "2^{x}"),
    (lambda x: (-x) ** 2, (X,), "(−x)²", r"\left(-x\right)^{2}"),
    (lambda x: lf.sqrt(x) * lf.sqrt(x + 1), (X,), "√x·√(x + 1)", r"\sqrt{x} \, \sqrt{x + 1}"),
    (lambda x: lf.sqrt(x) ** 3, (X,), "(√x)³", r"\sqrt{x}^{3}"),
    (lambda x, y: lf.abs(x - y), (X, Y), "|x − y|", r"\left|x - y\right|"),
    (lambda x, y: lf.abs(x - lf.abs(y)), (X, Y), "abs(x − |y|)", r"\left|x - \left|y\right|\right|"),
    (lambda x: 0.5 * x, (X,), "½·x", r"\tfrac{1}{2} \, x"),
    (lambda x: x + 1e-6, (X,), "x + 1e-6", r"x + 10^{-6}"),
    (lambda x: x - np.log(2), (X,), "x − log 2", r"x - \log 2"),
    (lambda x: x * 0.3, (X,), "0.3·x", r"0.3 \, x"),
    (lambda x: lf.log1p(-x), (X,), "log(1 − x)", r"\log\left(1 - x\right)"),
    (lambda x: lf.expm1(x) * 2, (X,), "2·(exp(x) − 1)", r"2 \, \left(e^{x} - 1\right)"),
    (lambda x: lf.exp(x) ** 2, (X,), "exp(x)²", r"\left(e^{x}\right)^{2}"),
    (lambda x: lf.sigmoid(-x), (X,), "σ(−x)", r"\sigma\left(-x\right)"),
    (lambda x, s: s * lf.sigmoid(x), (X, input_("sigma")), "σ·sigmoid(x)", r"\sigma \, \sigma\left(x\right)"),
    (lambda x, d: lf.clip(x, -d, d), (X, DELTA), "clip(x, −δ, δ)",
     r"\operatorname{clip}\left(x, -\delta, \delta\right)"),
    (lambda x: lf.maximum(lf.minimum(2, x), 0), (X,), "clip(x, 0, 2)", None),
    (lambda x, d: lf.maximum(lf.minimum(x, d), -d), (X, DELTA), "max(min(x, δ), −δ)", None),
    (lambda x, y: lf.maximum(x, y), (X, Y), "max(x, y)", r"\max\left(x, y\right)"),
    (lambda x, y: lf.where(x < y, x, 0.0), (X, Y), "where(x < y, x, 0)",
     r"\begin{cases} x & x < y \\ 0 & \text{otherwise} \end{cases}"),
    (lambda x, y: lf.where(x < y, 1.0, 0.0), (X, Y), "[x < y]", r"\left[x < y\right]"),
    (lambda x, y: lf.where(x < y, 0.0, -3.0), (X, Y), "−3·[x ≥ y]", r"-3 \, \left[x \ge y\right]"),
    (lambda x, d: lf.where(x > 0, 1 - d, 0.0), (X, DELTA), "(1 − δ)·[x > 0]", None),
    (lambda x, y: (x < y) | ((x > 1) & ~(y > 2)), (X, Y), "x < y or x > 1 and not (y > 2)",
     r"x < y \lor x > 1 \land \lnot \left(y > 2\right)"),
    (lambda x: lf.sum(x), (X,), "sum(x)", r"\sum x"),
    (lambda z: lf.sum(z * 2, "class"), (Z,), "sum[class](2·logits)", None),
    (lambda z: lf.sum(z, "class"), (Z,), "sum[class](logits)", r"\sum_{\mathrm{class}} \mathrm{logits}"),
    (lambda z: lf.mean(z), (Z,), "mean(logits)", None),
    (lambda z: lf.mean(z, "batch"), (Z,), "mean[batch](logits)", None),
    (lambda z: lf.max(z, "class"), (Z,), "max[class](logits)",
     r"\max_{\mathrm{class}} \left(\mathrm{logits}\right)"),
    (lambda z: lf.softmax(z, "class"), (Z,), "softmax(logits, class)",
     r"\operatorname{softmax}_{\mathrm{class}} \left(\mathrm{logits}\right)"),
    (lambda z: lf.log_softmax(z, "class"), (Z,), "log_softmax(logits, class)", None),
    (lambda z, t: lf.take(z, t, "class"), (Z, TARGET), "logits[class = target]",
     r"\mathrm{logits}\big|_{\mathrm{class} = \mathrm{target}}"),
    (lambda t: lf.one_hot(t, "class"), (TARGET,), "[class = target]",
     r"\left[\mathrm{class} = \mathrm{target}\right]"),
    (lambda z: lf.rename(z, "batch", "other"), (Z,), "logits[batch→other]", None),
    (lambda z: Traced(flip(z.node, "class")), (Z,), "flip(logits, class)", None),
    (lambda z: Traced(cumsum(z.node, "class", True)), (Z,), "cumsum_backwards(logits, class)",
     r"\operatorname{cumsum\_backwards}_{\mathrm{class}} \left(\mathrm{logits}\right)"),
    (lambda z: Traced(take(z.node, argsort(z.node, "class"), "class")), (Z,),
     "logits[class = argsort(logits, class)]", None),
    (lambda z: Traced(window(z.node, "class", "step", extent(2), extent(0, {"batch": 1}))), (Z,),
     "logits[class = step + 2]", r"\mathrm{logits}\big|_{\mathrm{class} = \mathrm{step} + 2}"),
    (lambda z: Traced(join(z.node, ("batch", "class"), "all")), (Z,), "logits[batch, class→all]", None),
    (lambda x: x / lf.size("batch"), (X,), "x / |batch|", r"\frac{x}{\left|\mathrm{batch}\right|}"),
]
# fmt: on


@pytest.mark.parametrize(("function", "nodes", "text", "latex"), TABLE, ids=[row[2] for row in TABLE])
def test_what_is_written(function, nodes, text, latex):
    node = traced(function, *nodes)
    names = [str(n.attrs[0]) for n in nodes]
    assert formula(node, taken=names).text == text
    if latex is not None:
        assert formula(node, taken=names).latex == latex


# fmt: off
NEAT = [
    (lambda x, y: -(x - y), (X, Y), "y − x"),
    (lambda x, y: -(1 - x) * y, (X, Y), "y·(x − 1)"),
    (lambda x, y: -x - y, (X, Y), "−(x + y)"),
    (lambda x, y: x / y / y, (X, Y), "x / y²"),
    (lambda x, y: 0.5 / x * y, (X, Y), "y / (2·x)"),
    (lambda x, y: x / y - 2 / y * x * x, (X, Y), "x·(1 − 2·x) / y"),
    (lambda x, y: x + x + y, (X, Y), "2·x + y"),
    (lambda x, y: y * (x - 1) - y * x, (X, Y), "−y"),
    (lambda x: lf.sqrt(x) * lf.sqrt(x) * lf.sqrt(x), (X,), "x·√x"),
    (lambda x, y: lf.sqrt(x) / (x * lf.sqrt(y)), (X, Y), "1 / (√x·√y)"),
    (lambda x: 0.5 * (1 - 2 * x), (X,), "½ − x"),
    (lambda x, y: lf.where(1 - x > 0, 1.0, y), (X, Y), "where(x < 1, 1, y)"),
    (lambda x, y: lf.where(x - y > 0, 1.0, y), (X, Y), "where(x > y, 1, y)"),
    (lambda x, y: lf.where(2 * x > 0, 1.0, y), (X, Y), "where(x > 0, 1, y)"),
    (lambda x, y: lf.where(-2 * x > 0, 1.0, y), (X, Y), "where(x < 0, 1, y)"),
    (lambda x, y: lf.where(-2 * x <= 6, 1.0, y), (X, Y), "where(−2·x ≤ 6, 1, y)"),
    (lambda x: lf.where(lf.sqrt(x + 1) > 0, 1.0, x), (X,), "where(x > −1, 1, x)"),
    (lambda x, d: lf.where(d * x > (d - 1) * x, 1.0, x), (X, DELTA), "where(x > 0, 1, x)"),
    (lambda x, y: x - lf.minimum(x, y), (X, Y), "max(x − y, 0)"),
    (lambda x, y: y + lf.where(x < y, x - y, 0.0), (X, Y), "where(x < y, x, y)"),
    (lambda z, d: lf.sum(z * d / 2, "class"), (Z, DELTA), "½·δ·sum[class](logits)"),
]
# fmt: on


@pytest.mark.parametrize(("function", "nodes", "text"), NEAT, ids=[row[2] for row in NEAT])
def test_what_is_written_neatly(function, nodes, text):
    assert formula(traced(function, *nodes), taken=("x", "y"), neat=True).text == text


@pytest.mark.parametrize(
    ("name", "text", "latex"),
    [
        ("delta", "δ", r"\delta"),
        ("eps", "ε", r"\varepsilon"),
        ("lambda_", "λ", r"\lambda"),
        ("alpha_t", "α_t", r"\alpha_{t}"),
        ("sigma2", "σ₂", r"\sigma_{2}"),
        ("p_t", "p_t", "p_{t}"),
        ("log_var", "log_var", r"\mathrm{log\_var}"),
        ("pred", "pred", r"\mathrm{pred}"),
        ("pred′", "pred′", r"\mathrm{pred}'"),
        ("v₁₂", "v₁₂", "v_{12}"),
    ],
)
def test_names(name, text, latex):
    assert (unicode_name(name), latex_name(name)) == (text, latex)


def test_two_names_never_look_the_same():
    node = input_("eps") + input_("epsilon")
    assert formula(node, taken=("eps", "epsilon")).text == "eps + epsilon"


# ------------------------------------------------------------------------------------ naming of parts


def test_long_formulas_are_given_in_the_users_names():
    error = X - Y
    near = error * error
    names = {error: "error", near: "near"}
    assert formula(near / (1.0 + near), names).where == ()
    found = formula(near / (1.0 + near), names, width=16)
    assert (found.text, found.where) == ("near / (1 + near)", (("near", "(x − y)²"),))


def test_shared_parts_without_names_get_names():
    part = (X - Y) * (X + Y) + 1.0
    node = part / (2.0 + part) * (3.0 + part)
    found = formula(node, width=20)
    assert (found.text, found.where) == ("t₁ / (2 + t₁)·(3 + t₁)", (("t₁", "(x − y)·(x + y) + 1"),))


def test_sharing_does_not_blow_up():
    node = X
    for _ in range(200):
        node = node * Y + node  # written out: 2²⁰⁰ terms
    found = formula(node)
    assert len(str(found)) < 20_000
    assert len(found.latex) < 20_000


def test_the_same_part_has_one_name_in_two_formulas():
    part = (X - Y) * (X + Y) + 1.0
    aliases: dict[Node, str] = {}
    first = formula(part / (2.0 + part), width=20, aliases=aliases)
    second = formula(3.0 - part * Y * Y * Y * Y, width=20, aliases=aliases)
    assert [name for name, _ in first.where] == [name for name, _ in second.where] == ["t₁"]


# ------------------------------------------------------------------------------------ truth


def node_of(text: str) -> Node:
    names = {"x": X, "y": Y, "d": DELTA, "c": input_("c", (A,), Kind.BOOL)}
    known = {k: Traced(v) for k, v in names.items()}
    functions = {n: getattr(lf, n) for n in ("abs", "exp", "sigmoid", "sqrt", "minimum", "maximum", "where")}
    result = eval(text, {"__builtins__": {}}, {**known, **functions})
    return result.node if isinstance(result, Traced) else constant(float(result))


expressions = st.recursive(
    st.sampled_from(["x", "y", "d", "1", "2", "0.5", "0.25", "3"]),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner),
        st.builds("(-{})".format, inner),
        st.builds("(1*x - {})**{}".format, inner, st.sampled_from(["2", "3", "-1", "0.5"])),
        st.builds("{}(1*x + {})".format, st.sampled_from(["abs", "exp", "sigmoid", "sqrt"]), inner),
        st.builds("{}(1*y, {})".format, st.sampled_from(["minimum", "maximum"]), inner),
        st.builds("where(y < {}, {}, {})".format, inner, inner, inner),
        st.builds("where(x > {}, {}, 0.0)".format, inner, st.sampled_from(["1.0", "-1.0", "2.0"])),
    ),
    max_leaves=14,
)


def draw(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.choice([-2.5, -1.0, -0.3, 0.7, 1.3, 4.0], (2, 6))
    return {"x": values[0], "y": values[1], "delta": np.array(0.6), "c": rng.random(6) < 0.5}


def exact(node: Node, values: dict[str, np.ndarray], arithmetic) -> np.ndarray:
    ports = {Port(n, tuple(sorted(n.axes))): values[n.attrs[0]] for n in topological([node]) if n.op == "input"}
    (result,) = evaluate([node], ports, arithmetic)
    return result


@settings(max_examples=300)
@given(expressions, st.integers(0, 2**32 - 1), st.sampled_from([10, 40, 400]))
def test_what_is_printed_means_what_is_computed(text, seed, width):
    """Read the text back and work it out; float64, so the comparison allows what cancellation may cost."""
    node, values = node_of(text), draw(seed)
    numbers = [float(n.attrs[0]) for n in topological([node]) if n.op == "constant"]
    assume(all(float(f"{v:.6g}") == v for v in numbers))  # six digits are printed
    every = exact(node, values, Float64())
    sizes = [exact(n, values, Float64()) for n in topological([node]) if n.kind is Kind.FLOAT]
    assume(all(np.isfinite(v).all() for v in sizes))
    largest = max(float(np.max(np.abs(v))) for v in sizes)
    assume(largest < 1e6)
    found = formula(node, width=width)
    known = {"x": values["x"], "y": values["y"], "δ": values["delta"]}
    for name, part in reversed(found.where):
        known[name] = value_of(part, known, {"batch": 6})
    printed = value_of(found.text, known, {"batch": 6})
    np.testing.assert_allclose(np.broadcast_to(printed, every.shape), every, rtol=1e-9, atol=1e-9 * largest)


@settings(max_examples=300)
@given(expressions, st.integers(0, 2**32 - 1))
def test_tidying_is_exact(text, seed):
    node, values = node_of(text), draw(seed)
    digits = HighPrecision(50)
    finite = digits.context.isfinite
    before = [exact(n, values, digits) for n in topological([node]) if n.kind is Kind.FLOAT]
    assume(all(finite(v) for array in before for v in array.ravel()))
    largest = max(abs(v) for array in before for v in array.ravel())
    before, after = exact(node, values, digits), exact(tidy([node])[0], values, digits)
    for x, y in zip(before.ravel(), np.broadcast_to(after, before.shape).ravel(), strict=True):
        # All is exact but a product of numbers, which is rounded to a float.
        assert abs(x - y) <= 1e-14 * largest, f"{text}: {formula(node)} became {formula(node, neat=True)}"


@pytest.mark.parametrize("row", TABLE, ids=[row[2] for row in TABLE])
def test_latex_is_well_formed(row):
    (node,) = idiomatic([traced(row[0], *row[1])])
    text = LaTeX()(node)
    assert text.count("{") == text.count("}")
    assert text.count(r"\left") == text.count(r"\right") + text.count(r"\left\right")
    assert text.isascii()


def test_sizes_and_positions():
    assert Notation()(size("*shape")) == "count"
    assert Notation()(size("*space") * size("batch")) == "|space|·|batch|"
    assert Notation()(iota("class")) == "class"


def test_an_extreme_of_what_does_not_vary():
    x, kept = input_("x"), input_("kept", ("i",), Kind.BOOL)
    assert tidy([reduction("max", where(kept, x, x), ("i",))]) == [x]
