"""`explain` tells the truth: what it prints, read back and worked out, is the loss and its gradient."""

import math

import numpy as np
import pytest

import lossforge as lf
from formula_reader import value_of
from lossforge.errors import ParameterError
from lossforge.explain.derivation import Derivation, derive
from lossforge.explain.notation import Notation, axis_name
from lossforge.frontends.language import Traced
from lossforge.interpreter import evaluate
from lossforge.ir import Node, Program, cumsum, input_

# ------------------------------------------------------------------------------------ losses


@lf.loss
def huber(pred, true, *, delta=1.0):
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


@lf.loss
def huber_by_cases(pred, true, *, delta=1.0):
    error = pred - true
    small = lf.abs(error) <= delta
    return lf.where(small, 0.5 * error**2, delta * (lf.abs(error) - 0.5 * delta))


@lf.loss
def quantile(pred, true, *, q=0.3):
    error = true - pred
    return lf.maximum(q * error, (q - 1) * error)


@lf.loss
def log_cosh(pred, true):
    error = lf.abs(pred - true)
    return error + lf.softplus(-2 * error) - math.log(2)


@lf.loss(wrt=("mean", "log_var"))
def gaussian(mean, log_var, true):
    return 0.5 * (log_var + (true - mean) ** 2 * lf.exp(-log_var)) + 0.5 * math.log(2 * math.pi)


@lf.loss(wrt=("mean", "var"))
def gaussian_of_variance(mean, var, true, *, eps=1e-6):
    v = lf.maximum(var, eps)
    return 0.5 * (lf.log(v) + (true - mean) ** 2 / v)


@lf.loss
def binary_cross_entropy(logits, true):
    p = 1 / (1 + lf.exp(-logits))
    return -(true * lf.log(p) + (1 - true) * lf.log(1 - p))


@lf.loss
def of_probabilities(pred, true):
    return -(true * lf.log(pred) + (1 - true) * lf.log(1 - pred))


@lf.loss
def focal(logits, true, *, alpha=0.25, gamma=2.0):
    p = lf.sigmoid(logits)
    ce = lf.softplus(logits) - true * logits
    p_t = p * true + (1 - p) * (1 - true)
    alpha_t = alpha * true + (1 - alpha) * (1 - true)
    return alpha_t * (1 - p_t) ** gamma * ce


@lf.loss("batch class *space, batch *space -> batch *space")
def cross_entropy(logits, target):
    return -lf.take(lf.log_softmax(logits, "class"), target, "class")


@lf.loss("batch class *space, batch class *space -> batch class")
def dice(pred, true, *, smooth=1e-6):
    overlap = lf.sum(pred * true, "*space")
    total = lf.sum(pred, "*space") + lf.sum(true, "*space")
    return 1 - (2 * overlap + smooth) / (total + smooth)


@lf.loss("batch *space, batch *space -> ")
def dice_of_batch(pred, true, *, smooth=1e-6):
    overlap = lf.sum(pred * true)
    total = lf.sum(pred) + lf.sum(true)
    return 1 - (2 * overlap + smooth) / (total + smooth)


@lf.loss("batch d, batch d -> batch", wrt=("a", "b"))
def info_nce(a, b, *, tau=0.5):
    others = lf.rename(b, "batch", "other")
    similarity = lf.sum(a * others, "d") / tau
    return lf.logsumexp(similarity, "other") - lf.sum(a * b, "d") / tau


@lf.loss("batch d, batch d -> batch")
def cosine(pred, true):
    dot = lf.sum(pred * true, "d")
    return 1 - dot / (lf.norm(pred, "d") * lf.norm(true, "d"))


@lf.loss
def surrogate_error(logits, true):
    hard = lf.where(logits > 0, 1.0, 0.0)
    return lf.abs(lf.surrogate(hard, lf.sigmoid(logits)) - true)


@lf.loss("batch d, batch d -> batch")
def worst(pred, true):
    return lf.max(lf.square(pred - true), "d") + lf.mean(pred * pred, "d")


LOSSES = [
    huber, huber_by_cases, quantile, log_cosh, gaussian, gaussian_of_variance, binary_cross_entropy,
    of_probabilities, focal, cross_entropy, dice, dice_of_batch, info_nce, cosine, surrogate_error, worst,
]  # fmt: skip
by_name = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)

SIZES = {"batch": 3, "class": 4, "space": 5, "shape": 7, "d": 2, "other": 3}


def draw(loss: lf.Loss, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arguments inside of every domain, some entries of which tie, and the parameters' defaults."""
    values: dict[str, np.ndarray] = {n: np.asarray(v) for n, v in loss.defaults.items()}
    for port in loss.definition().arguments:
        shape = [SIZES[axis_name(a)] for a in port.order]
        if port.name == "target":
            values[port.name] = rng.integers(0, SIZES["class"], shape)
        elif port.name in ("pred", "var") and loss in (of_probabilities, gaussian_of_variance):
            values[port.name] = rng.uniform(0.1, 0.9, shape)
        else:
            values[port.name] = rng.choice([-1.3, -0.4, 0.3, 0.8, 1.3, 2.1], shape)
    return values


class Page:
    """The printed derivation of a loss, worked out at one point."""

    def __init__(self, loss: lf.Loss, values: dict[str, np.ndarray]) -> None:
        definition = loss.definition()
        self.derivation: Derivation = derive(loss.plan(), loss.defaults)
        self.write = Notation(self.derivation.names)
        axes = {a for p in definition.arguments for a in p.order} | ({"other"} if loss is info_nce else set())
        self.sizes = {axis_name(a): SIZES[axis_name(a)] for a in sorted(axes)}
        self.known: dict[str, object] = {}
        for port in (*definition.arguments, *definition.parameters):
            self.known[self.name(port.name)] = self.spread(values[port.name], port.order)

    def name(self, name: str) -> str:
        return self.write(input_(name))

    def spread(self, array: np.ndarray, order: tuple[str, ...]) -> np.ndarray:
        """An array with a dimension for each axis of the loss."""
        names = [axis_name(a) for a in order]
        places = sorted(range(len(names)), key=lambda i: list(self.sizes).index(names[i]))
        shape = [self.sizes[a] if a in names else 1 for a in self.sizes]
        return array.transpose(places).reshape(shape)

    def value(self, node: Node) -> np.ndarray:
        return value_of(self.write(node), self.known, self.sizes)

    def formula(self, found) -> np.ndarray:
        known = dict(self.known)
        known[self.derivation.count] = (
            value_of(self.write(self.derivation.size), {"count": 7}, self.sizes) if self.derivation.count else 1
        )
        for name, text in reversed(found.where):
            known[name] = value_of(text, known, self.sizes)
        return value_of(found.text, known, self.sizes)


def check(page: Page, printed, program: Program, values: dict[str, np.ndarray]) -> None:
    """Compare with the program's only output, by the reference interpreter."""
    inputs = {p: values[p.name] for p in program.inputs}
    (output,) = program.outputs
    (actual,) = evaluate([output.node], inputs)
    full = page.spread(np.asarray(actual, dtype=float), tuple(sorted(output.node.axes)))
    np.testing.assert_allclose(np.broadcast_to(printed, full.shape), full, rtol=1e-11, atol=1e-13)


@by_name
def test_forward_steps_come_to_the_loss(loss, rng):
    values = draw(loss, rng)
    page = Page(loss, values)
    for step in page.derivation.steps:
        page.known[page.name(step.name)] = page.value(step.node)
    program = loss.plan("none").value()
    check(page, page.known[page.derivation.root], program, values)
    check(page, page.formula(page.derivation.loss), program, values)


@by_name
def test_backward_steps_come_to_the_gradient(loss, rng):
    values = draw(loss, rng)
    page = Page(loss, values)
    for step in page.derivation.steps:
        page.known[page.name(step.name)] = page.value(step.node)
    for adjoint in page.derivation.adjoints:
        chain, value = page.value(adjoint.chain), page.value(adjoint.value)
        np.testing.assert_allclose(*np.broadcast_arrays(chain, value), rtol=1e-11, atol=1e-13)
        page.known[f"∂{page.derivation.root}/∂{page.name(adjoint.name)}"] = chain
    for name in loss.predictions:
        printed = page.known[f"∂{page.derivation.root}/∂{page.name(name)}"]
        check(page, printed, loss.plan("sum").gradient((name,)), values)


@by_name
def test_the_gradient_formula_is_the_gradient(loss, rng):
    values = draw(loss, rng)
    page = Page(loss, values)
    for found in (*page.derivation.gradients, *page.derivation.parameters):
        check(page, page.formula(found.formula), loss.plan().gradient((found.name,)), values)


# ------------------------------------------------------------------------------------ what is printed

HUBER = """\
huber(pred, true, *, delta=1.0)
  elementwise: all arguments have one shape, and so has the loss
  differentiated with respect to pred

LOSS      of each entry
  loss      = ½·quadratic² + δ·(error − quadratic)
  quadratic = min(error, δ)
  error     = |pred − true|

FORWARD   each step, and its local derivatives
  v₁        = pred − true         ∂v₁/∂pred = 1
  error     = |v₁|                ∂error/∂v₁ = sign(v₁)
  quadratic = min(error, δ)       ∂quadratic/∂error = [error < δ]
  v₂        = quadratic²          ∂v₂/∂quadratic = 2·quadratic
  v₃        = ½·v₂                ∂v₃/∂v₂ = ½
  v₄        = error − quadratic   ∂v₄/∂error = 1
                                  ∂v₄/∂quadratic = −1
  v₅        = δ·v₄                ∂v₅/∂v₄ = δ
  loss      = v₃ + v₅             ∂loss/∂v₃ = 1
                                  ∂loss/∂v₅ = 1

BACKWARD  the chain rule, from the loss back to pred
  ∂loss/∂v₅        = 1
  ∂loss/∂v₄        = ∂loss/∂v₅·δ                              = δ
  ∂loss/∂v₃        = 1
  ∂loss/∂v₂        = ½·∂loss/∂v₃                              = ½
  ∂loss/∂quadratic = ∂loss/∂v₂·2·quadratic − ∂loss/∂v₄        = quadratic − δ
  ∂loss/∂error     = ∂loss/∂v₄ + ∂loss/∂quadratic·[error < δ] = where(error < δ, quadratic, δ)
  ∂loss/∂v₁        = ∂loss/∂error·sign(v₁)
                   = where(error < δ, quadratic, δ)·sign(v₁)
  ∂loss/∂pred      = ∂loss/∂v₁
                   = where(error < δ, quadratic, δ)·sign(v₁)

GRADIENT  of the mean; for reduction="sum" leave out "/ count"
  ∂loss/∂pred = clip(pred − true, −δ, δ) / count
    assuming δ ≥ 0; otherwise another formula is used
  ∂loss/∂δ = mean(max(|pred − true| − δ, 0))
  where
    count = the number of entries

KINKS     where there is no derivative, and what is used there
  |pred − true|  at pred = true: 0
  min(error, δ)  at error = δ: 0

DOMAIN    value and gradient are finite everywhere"""


def test_the_whole_page_of_huber():
    assert str(huber.explain()) == HUBER


# fmt: off
GRADIENTS = [
    (huber, "∂loss/∂pred = clip(pred − true, −δ, δ) / count"),
    (huber_by_cases, "∂loss/∂pred = clip(pred − true, −δ, δ) / count"),
    (quantile, "∂loss/∂pred = where(pred > true, 1 − q, where(true > pred, −q, ½ − q)) / count"),
    (log_cosh, "∂loss/∂pred = tanh(pred − true) / count"),
    (gaussian, "∂loss/∂mean = exp(−log_var)·(mean − true) / count"),
    (gaussian, "∂loss/∂log_var = ½·(1 − exp(−log_var)·(true − mean)²) / count"),
    (binary_cross_entropy, "∂loss/∂logits = (σ(logits)·(1 − true) − true·σ(−logits)) / count"),
    (of_probabilities, "∂loss/∂pred = ((1 − true) / (1 − pred) − true / pred) / count"),
    (cross_entropy, "∂loss/∂logits = (softmax(logits, class) − [class = target]) / count"),
    (cross_entropy, "count = |batch|·|space|"),
    (dice, "∂loss/∂pred = ((2·overlap + smooth) / (total + smooth) − 2·true) / (total + smooth) / count"),
    (info_nce, "∂loss/∂a = (sum[other](softmax(similarity, other)·others) − b) / τ / count"),
    (cosine, "∂loss/∂pred = (dot·pred / sum[d](pred²) − true) / (√sum[d](true²)·√sum[d](pred²)) / count"),
    (surrogate_error, "∂loss/∂logits = sign([logits > 0] − true)·σ(logits)·σ(−logits) / count"),
]
KINKS = [
    (huber, ["|pred − true| at pred = true: 0", "min(error, δ) at error = δ: 0"]),
    (huber_by_cases, ["|error| at pred = true: 0", "at |error| = δ: each branch keeps its own derivative"]),
    (quantile, ["max(q·error, (q − 1)·error) at true = pred: ½ for each of the two"]),
    (gaussian, []),
    (gaussian_of_variance, ["max(var, ε) at var = ε: 0"]),
    (worst, ["max[d]((pred − true)²) where entries tie, they share the gradient equally"]),
    (surrogate_error, ["surrogate(hard, σ(logits)) the value of the first, the gradient of the second",
                       "at surrogate(hard, σ(logits)) = true: 0"]),
]
DOMAINS = [
    (huber, ()),
    (gaussian_of_variance, ("ε > 0",)),
    (binary_cross_entropy, ()),
    (of_probabilities, ("0 < pred < 1",)),
    (focal, ()),
    (cross_entropy, ("0 ≤ target < |class|",)),
    (dice, ("total + smooth ≠ 0",)),
    (info_nce, ("τ ≠ 0",)),
    (cosine, ("sum[d](pred²) > 0", "sum[d](true²) > 0")),
]
# fmt: on


@pytest.mark.parametrize(("loss", "line"), GRADIENTS, ids=[f"{loss.name}: {line}" for loss, line in GRADIENTS])
def test_gradient_formulas(loss, line):
    section = str(loss.explain()).partition("GRADIENT")[2]
    assert f" {line}\n" in section


@pytest.mark.parametrize(("loss", "expected"), KINKS, ids=[loss.name for loss, _ in KINKS])
def test_kinks(loss, expected):
    kinks = loss.explain().kinks
    assert len(kinks) == len(expected)
    assert all(part in kink for kink, part in zip(kinks, expected, strict=True))


@pytest.mark.parametrize(("loss", "expected"), DOMAINS, ids=[loss.name for loss, _ in DOMAINS])
def test_domain(loss, expected):
    assert loss.explain().domain == expected


def test_conditions_that_a_branch_implies_are_left_out():
    @lf.loss
    def guarded(pred, true):
        return lf.where(pred > 1, lf.log(pred), 0.0) + lf.where(pred <= 0, 0.0, lf.sqrt(pred)) * true

    @lf.loss
    def unguarded(pred, true):
        return lf.where(true > 0, lf.log(pred), pred)

    assert guarded.explain().domain == ()
    assert unguarded.explain().domain == ("pred > 0  where true > 0",)


def test_conditions_that_intervals_prove_are_left_out():
    @lf.loss
    def clipped(pred, true):
        p = lf.clip(pred, 1e-7, 1 - 1e-7)
        positive = lf.log(1 + lf.exp(pred) + pred * pred) / (2 + lf.cos(true))
        return -lf.log(p) - lf.log(1 - p) + positive + (1 - lf.sigmoid(pred)) ** 1.5

    assert clipped.explain().domain == ()


def test_what_lets_no_gradient_through_is_named():
    @lf.loss
    def stepped(pred, true):
        return lf.round(pred) * pred + lf.stop_gradient(pred) * true * pred + lf.where(pred > true, 1, 2) * pred

    assert stepped.explain().kinks == (
        "round(pred) flat: its gradient is 0, and none flows through it",
        "stop_gradient(pred) no gradient flows through it",
        "where(pred > true, 1, 2) flat: its gradient is 0, and none flows through it",
    )


def test_rewrites_are_listed():
    page = str(binary_cross_entropy.explain())
    assert "1 / (1 + exp(-x)) → sigmoid(x)     1 / (1 + exp(−logits)) → σ(logits)" in page
    assert "STABILITY" not in huber.explain()


def test_another_sign_of_a_parameter_gives_another_formula():
    assert "clip" not in huber.explain(delta=-1.0).gradient
    assert "assuming" not in huber.explain(delta=-1.0)
    assert "assuming γ ≠ 0" in focal.explain()
    assert "where(γ = 0" in focal.explain(gamma=0.0)


def test_a_gradient_by_hand_is_shown_beside_the_derived_one():
    @lf.loss
    def weighted(pred, true, w):
        return w * (true - pred) ** 2

    @weighted.gradient
    def by_hand(pred, true, w):
        return -2 * w * (true - pred)

    derived = "  ∂loss/∂pred = 2·w·(pred − true) / count\n"
    assert derived + "    written by hand, and used: −2·w·(true − pred) / count\n" in str(weighted.explain())


def test_a_users_names_never_hide_an_argument():
    @lf.loss
    def rebound(pred, true, *, scale=2.0):
        pred = lf.sigmoid(pred)
        loss = (pred - true) ** 2
        return scale * loss * pred

    page = str(rebound.explain())
    assert "v₁    = σ(pred)" in page
    assert "loss′ = v₂²" in page


def test_entries_that_were_moved_are_moved_back():
    @lf.loss("batch time, batch time -> batch")
    def earth_mover(pred, true):
        first = lf.take(pred, lf.argmax(true, "time"), "time")
        return lf.sum(Traced(cumsum((pred - true).node, "time")) ** 2, "time") + first

    page = str(earth_mover.explain())
    assert "∂loss/∂v₁    = cumsum_backwards(∂loss/∂v₂, time) " in page
    assert "∂loss/∂pred  = ∂loss/∂first·[time = argmax[time](true)] + ∂loss/∂v₁\n" in page


def test_losses_that_are_one_number_have_no_count():
    assert "count" not in dice_of_batch.explain()


# ------------------------------------------------------------------------------------ as an object


def test_an_explanation_is_its_text():
    page = huber.explain()
    assert isinstance(page, str)
    assert repr(page) == str(page) == page
    assert page.gradient == "∂loss/∂pred = clip(pred − true, −δ, δ) / count"
    assert page.gradients == {
        "pred": "clip(pred − true, −δ, δ) / count",
        "delta": "mean(max(|pred − true| − δ, 0))",
    }
    assert page._repr_markdown_() == f"```text\n{HUBER}\n```"
    assert page._repr_latex_() == f"$$\n{page.latex}\n$$"


def test_latex():
    page = huber.explain(latex=True)
    assert page == huber.explain().latex
    clipped = r"\operatorname{clip}\left(\mathrm{pred} - \mathrm{true}, -\delta, \delta\right)"
    left = r"\frac{\partial \mathrm{loss}}{\partial \mathrm{pred}}"
    assert left + r" &= \frac{" + clipped + r"}{\mathrm{count}}" in page


@by_name
def test_pages_are_a_hundred_columns_wide_and_latex_is_well_formed(loss):
    page = loss.explain()
    assert max(map(len, page.splitlines())) <= 100
    assert page.latex.count("{") == page.latex.count("}")
    assert page.latex.count(r"\left") == page.latex.count(r"\right")
    assert page.latex.isascii()


def test_unknown_parameters_are_errors():
    with pytest.raises(ParameterError, match="beta"):
        huber.explain(beta=1.0)
