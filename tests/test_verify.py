"""Gradients written by hand: right ones are accepted and run, wrong ones are refused with what is wrong."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

import lossforge as lf
from lossforge import points
from lossforge.catalogue import LOSSES
from lossforge.comparison import Case
from lossforge.diagnosis import diagnose
from lossforge.errors import DefinitionError, DomainWarning, GradientMismatchError, StabilityWarning
from lossforge.gradient import HandWritten, vjp
from lossforge.ir import constant, topological
from lossforge.verify import Verdict, compare

pytest.importorskip("mpmath")

KERNELS = False  # what runs is read off the graphs

Gradient = Callable[..., Any]


# ------------------------------------------------------------------------------------------- the losses


def weighted_squared_error() -> lf.Loss:
    """The third example of the article, over an array of any shape."""

    @lf.loss
    def custom_loss(y_true, y_pred, w):
        return w * (y_true - y_pred) ** 2

    return custom_loss


def huber() -> lf.Loss:
    @lf.loss
    def huber(pred, true, *, delta=1.0):
        error = lf.abs(pred - true)
        quadratic = lf.minimum(error, delta)
        return 0.5 * quadratic**2 + delta * (error - quadratic)

    return huber


def absolute() -> lf.Loss:
    @lf.loss
    def absolute(pred, true):
        return lf.abs(pred - true)

    return absolute


def log_cosh() -> lf.Loss:
    @lf.loss
    def log_cosh(pred, true):
        error = lf.abs(pred - true)
        return error + lf.softplus(-2 * error)

    return log_cosh


def cross_entropy() -> lf.Loss:
    @lf.loss("batch class *space, batch *space -> batch *space")
    def cross_entropy(logits, target):
        return -lf.take(lf.log_softmax(logits, "class"), target, "class")

    return cross_entropy


def soft_cross_entropy() -> lf.Loss:
    @lf.loss("batch class, batch class -> batch")
    def soft_cross_entropy(logits, target):
        return -lf.sum(target * lf.log_softmax(logits, "class"), "class")

    return soft_cross_entropy


def probability_cross_entropy() -> lf.Loss:
    @lf.loss
    def probability_cross_entropy(pred, true):
        return -(true * lf.log(pred) + (1 - true) * lf.log(1 - pred))

    return probability_cross_entropy


def dice() -> lf.Loss:
    @lf.loss("batch class *space, batch class *space -> batch class")
    def dice(pred, true, *, smooth=1e-6):
        overlap = lf.sum(pred * true, "*space")
        total = lf.sum(pred, "*space") + lf.sum(true, "*space")
        return 1 - (2 * overlap + smooth) / (total + smooth)

    return dice


def gaussian() -> lf.Loss:
    @lf.loss(wrt=("mean", "log_variance"))
    def gaussian(mean, log_variance, true):
        return 0.5 * (log_variance + (true - mean) ** 2 * lf.exp(-log_variance))

    return gaussian


def rounded() -> lf.Loss:
    @lf.loss
    def rounded(pred, true):
        return lf.sqrt((pred - true) ** 2 + 1e-12)

    return rounded


def info_nce() -> lf.Loss:
    @lf.loss("batch d, batch d -> batch", wrt=("anchor", "positive"))
    def info_nce(anchor, positive, *, temperature=0.1):
        similarity = lf.sum(anchor * lf.rename(positive, "batch", "other"), "d") / temperature
        return lf.logsumexp(similarity, "other") - lf.sum(anchor * positive, "d") / temperature

    return info_nce


def hardest() -> lf.Loss:
    @lf.loss("batch class -> batch")
    def hardest(scores):
        return lf.max(scores, "class")

    return hardest


def dice_by_hand(pred, true, smooth):
    overlap = lf.sum(pred * true, "*space")
    total = lf.sum(pred, "*space") + lf.sum(true, "*space") + smooth
    return ((2 * overlap + smooth) / total - 2 * true) / total


def info_nce_by_hand(anchor, positive, temperature):
    others = lf.rename(positive, "batch", "other")
    chosen = lf.softmax(lf.sum(anchor * others, "d") / temperature, "other")
    return (lf.sum(chosen * others, "other") - positive) / temperature


def info_nce_positive_by_hand(anchor, positive, temperature):
    others = lf.rename(anchor, "batch", "other")
    similarity = lf.sum(others * positive, "d") / temperature
    by_anchor = lf.logsumexp(lf.sum(anchor * lf.rename(positive, "batch", "other"), "d") / temperature, "other")
    chosen = lf.exp(similarity - lf.rename(by_anchor, "batch", "other"))
    return (lf.sum(chosen * others, "other") - anchor) / temperature


# ------------------------------------------------------------------------------------------- right


RIGHT: list[tuple[str, Callable[[], lf.Loss], str | None, Gradient]] = [
    ("article", weighted_squared_error, None, lambda y_true, y_pred, w: -2 * w * (y_true - y_pred)),
    ("weight", weighted_squared_error, "w", lambda y_true, y_pred: (y_true - y_pred) ** 2),
    ("huber clip", huber, None, lambda pred, true, delta: lf.clip(pred - true, -delta, delta)),
    (
        "huber where",
        huber,
        None,
        lambda pred, true, delta: lf.where(lf.abs(pred - true) <= delta, pred - true, delta * lf.sign(pred - true)),
    ),
    ("huber delta", huber, "delta", lambda pred, true, delta: lf.sum(lf.relu(lf.abs(pred - true) - delta))),
    ("numpy", huber, None, lambda pred, true, delta: np.clip(pred - true, -delta, delta)),
    # Every value from −1 to 1 is a subgradient of |x| at 0.
    ("abs, sign", absolute, None, lambda pred, true: lf.sign(pred - true)),
    ("abs, 1 at 0", absolute, None, lambda pred, true: lf.where(pred >= true, 1.0, -1.0)),
    ("abs, -1 at 0", absolute, None, lambda pred, true: lf.where(pred > true, 1.0, -1.0)),
    ("abs, 0.3 at 0", absolute, None, lambda pred, true: lf.where(pred == true, 0.3, lf.sign(pred - true))),
    ("tanh", log_cosh, None, lambda pred, true: lf.tanh(pred - true)),
    ("tanh as sigmoid", log_cosh, None, lambda pred, true: 2 * lf.sigmoid(2 * (pred - true)) - 1),
    (
        "literals rounded",
        log_cosh,
        None,
        lambda pred, true: 3 * lf.tanh((1 / 3) * 3 * (pred - true)) * (1 / 3) * (0.1 * 10),
    ),
    (
        "softmax",
        cross_entropy,
        None,
        lambda logits, target: lf.softmax(logits, "class") - lf.one_hot(target, "class"),
    ),
    (
        "any target",
        soft_cross_entropy,
        None,
        lambda logits, target: lf.softmax(logits, "class") * lf.sum(target, "class") - target,
    ),
    ("probability", probability_cross_entropy, None, lambda pred, true: (pred - true) / (pred * (1 - pred))),
    ("dice", dice, None, dice_by_hand),
    ("mean", gaussian, "mean", lambda mean, log_variance, true: (mean - true) / lf.exp(log_variance)),
    (
        "variance",
        gaussian,
        "log_variance",
        lambda mean, log_variance, true: 0.5 - 0.5 * (true - mean) ** 2 / lf.exp(log_variance),
    ),
    ("info_nce", info_nce, None, info_nce_by_hand),
    ("info_nce, positive", info_nce, "positive", info_nce_positive_by_hand),
    (
        "first of the tied",
        hardest,
        None,
        lambda scores: lf.one_hot(lf.argmax(scores, "class"), "class"),
    ),
]


@pytest.mark.parametrize(("make", "wrt", "gradient"), [r[1:] for r in RIGHT], ids=[r[0] for r in RIGHT])
def test_a_right_gradient_is_accepted(make, wrt, gradient):
    loss = make()
    assert loss.gradient(wrt=wrt or loss.predictions[0])(gradient) is gradient


def test_the_article_verbatim():
    custom_loss = weighted_squared_error()

    @custom_loss.gradient
    def custom_loss_gradient(y_true, y_pred, w):
        grad = -2 * w * (y_true - y_pred)
        return grad

    y_true, y_pred, w = np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.0, 1.0]), np.array([1.0, 2.0, 0.5])
    value, gradient = custom_loss.value_and_grad(y_true, y_pred, w, reduction="sum")
    assert value == np.sum(w * (y_true - y_pred) ** 2)
    np.testing.assert_array_equal(gradient, -2 * w * (y_true - y_pred))


# ------------------------------------------------------------------------------------------- wrong


def without_smooth(pred, true, smooth):
    overlap = lf.sum(pred * true, "*space")
    total = lf.sum(pred, "*space") + lf.sum(true, "*space") + smooth
    return (2 * overlap / total - 2 * true) / total


COUNT = "gradient of the mean, divided by the number of entries"
WRONG: list[tuple[str, Callable[[], lf.Loss], str | None, Gradient, str]] = [
    # the mistakes with a name
    ("sign", weighted_squared_error, None, lambda y_true, y_pred, w: 2 * w * (y_true - y_pred), "wrong sign"),
    (
        "factor",
        weighted_squared_error,
        None,
        lambda y_true, y_pred, w: -w * (y_true - y_pred),
        "the factor 2 is missing",
    ),
    (
        "doubled",
        weighted_squared_error,
        None,
        lambda y_true, y_pred, w: -4 * w * (y_true - y_pred),
        "there is a factor 2 too many",
    ),
    (
        "sign and factor",
        weighted_squared_error,
        None,
        lambda y_true, y_pred, w: w * (y_true - y_pred),
        "wrong sign, and the factor 2 is missing",
    ),
    (
        "weight",
        weighted_squared_error,
        None,
        lambda y_true, y_pred: -2 * (y_true - y_pred),
        "the factor `w` is missing",
    ),
    (
        "weight twice",
        weighted_squared_error,
        None,
        lambda y_true, y_pred, w: -2 * w * w * (y_true - y_pred),
        "there is a factor `w` too many",
    ),
    (
        "mean",
        weighted_squared_error,
        None,
        lambda y_true, y_pred, w: -2 * w * (y_true - y_pred) / lf.size("*shape"),
        COUNT,
    ),
    (
        "mean of a batch",
        cross_entropy,
        None,
        lambda logits, target: (
            (lf.softmax(logits, "class") - lf.one_hot(target, "class")) / lf.size("batch")
        ),
        "the factor the size of 'batch' is missing",
    ),
    (
        "mean of all",
        cross_entropy,
        None,
        lambda logits, target: (
            (lf.softmax(logits, "class") - lf.one_hot(target, "class"))
            / (lf.size("batch") * lf.size("*space"))
        ),
        COUNT,
    ),
    (
        "mean of samples",
        soft_cross_entropy,
        None,
        lambda logits, target: (
            (lf.softmax(logits, "class") * lf.sum(target, "class") - target) / lf.size("batch")
        ),
        "gradient of the mean, divided by the size of 'batch'",
    ),
    (
        "parameter",
        info_nce,
        None,
        lambda anchor, positive, temperature: temperature * info_nce_by_hand(anchor, positive, temperature),
        "there is a factor `temperature` too many",
    ),
    ("zero", absolute, None, lambda pred, true: 0 * pred, "it is 0 at"),
    ("none at all", absolute, None, lambda pred, true: 0.0, "it is 0 at"),
    # one region only
    ("one branch", huber, None, lambda pred, true: lf.clip(pred - true, -1, 1), "by no common factor"),
    (
        "slope of the line",
        huber,
        None,
        lambda pred, true, delta: lf.where(lf.abs(pred - true) <= delta, pred - true, lf.sign(pred - true)),
        "all of them where |pred − true| > δ",
    ),
    ("no target", cross_entropy, None, lambda logits: lf.softmax(logits, "class"), "by no common factor"),
    (
        "tiny term",
        rounded,
        None,
        lambda pred, true: lf.sign(pred - true),
        "by no common factor",
    ),
    ("no smooth", dice, None, without_smooth, "by no common factor"),
    (
        "labels only",
        probability_cross_entropy,
        None,
        lambda pred, true: lf.where(true == 1, -1 / pred, 1 / (1 - pred)),
        "right only where 'true' is 0 or 1",
    ),
    (
        "squared label",
        soft_cross_entropy,
        None,
        lambda logits, target: lf.softmax(logits, "class") * lf.sum(target, "class") - target * target,
        "right only where 'target' is 0 or 1",
    ),
    # kinks
    (
        "0/0",
        absolute,
        None,
        lambda pred, true: (pred - true) / lf.abs(pred - true),
        "at a kink of the loss it is not finite, where -1 … 1 is right",
    ),
    (
        "huber 0/0",
        huber,
        None,
        lambda pred, true, delta: (
            lf.minimum(lf.abs(pred - true), delta) * (pred - true) / lf.abs(pred - true)
        ),
        "not finite",
    ),
    (
        "no subgradient",
        absolute,
        None,
        lambda pred, true: lf.where(pred == true, 1.5, lf.sign(pred - true)),
        "at a kink of the loss it is 1.5, where -1 … 1 is right",
    ),
    (
        "all of the tied",
        hardest,
        None,
        lambda scores: lf.where(scores == lf.max(scores, "class"), 2.0, 0.0) - lf.one_hot(0, "class") * 0,
        "there is a factor 2 too many",
    ),
    (
        "minus one where tied",
        hardest,
        None,
        lambda scores: lf.where(
            lf.sum(lf.where(scores == lf.max(scores, "class"), 1.0, 0.0), "class") > 1,
            -1.0,
            lf.where(scores == lf.max(scores, "class"), 1.0, 0.0),
        ),
        "at a kink of the loss it is -1, where 0 … 1 is right",
    ),
    # where the loss is smooth
    (
        "removable 0/0",
        weighted_squared_error,
        None,
        lambda y_true, y_pred, w: 2 * w * (y_true - y_pred) ** 2 / (y_pred - y_true),
        "not finite",
    ),
]  # fmt: skip


EVERY = [(name, wrt) for name, loss in LOSSES.items() for wrt in loss.predictions]


@pytest.mark.parametrize(("name", "wrt"), EVERY)
def test_the_chain_rule_passes_and_its_negative_does_not(name, wrt):
    """The derivation before any simplification is one more formula for the gradient."""
    loss = LOSSES[name]
    definition = loss.definition()
    argument = definition.port(wrt).node
    (raw,) = vjp([(definition.value, constant(1.0))], [argument])
    right = compare(definition, HandWritten(definition.value, argument, raw), loss.defaults)
    assert right.agreed, right
    assert right.compared >= 100
    assert not right.unstable
    wrong = compare(definition, HandWritten(definition.value, argument, -raw), loss.defaults)
    assert not wrong.agreed
    assert wrong.diagnosis == "wrong sign"


@pytest.mark.parametrize(("make", "wrt", "gradient", "says"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_gradient_is_refused(make, wrt, gradient, says):
    loss = make()
    with pytest.raises(GradientMismatchError) as refusal:
        loss.gradient(wrt=wrt or loss.predictions[0])(gradient)
    assert says in str(refusal.value)


def test_the_refusal_shows_a_point_both_values_and_their_ratio():
    loss = weighted_squared_error()
    definition = loss.definition()
    y_true, y_pred, w = (p.node for p in definition.arguments)
    verdict = compare(definition, HandWritten(definition.value, y_pred, w * (y_pred - y_true)))
    at = {name: float(value) for name, value in verdict.point.items()}
    right = 2 * at["w"] * (at["y_pred"] - at["y_true"])
    assert not verdict.agreed
    assert (verdict.derived, verdict.by_hand, verdict.ratio) == (right, right / 2, 0.5)
    with pytest.raises(GradientMismatchError) as refusal:
        loss.gradient(lambda y_true, y_pred, w: w * (y_pred - y_true))
    assert str(refusal.value) == str(verdict)
    for part in (
        "y_true = ",
        "y_pred = ",
        "w = ",
        f"by hand  {right / 2:.12g}",
        f"derived  {right:.12g}",
        "ratio    0.5",
        "right is 2·w·(y_pred − y_true)",
    ):
        assert part in str(refusal.value)


def test_a_refused_gradient_leaves_the_loss_as_it_was():
    loss = absolute()
    pred, true = np.array([1.0, 2.0, 2.0]), np.array([2.0, 2.0, 1.0])
    loss.gradient(lambda pred, true: lf.where(pred >= true, 1.0, -1.0))
    with pytest.raises(GradientMismatchError):
        loss.gradient(lambda pred, true: 2 * lf.sign(pred - true))
    np.testing.assert_array_equal(loss.grad(pred, true, reduction="sum"), [-1.0, 1.0, 1.0])


# ------------------------------------------------------------------------------------------- warnings


def test_an_unstable_form_is_accepted_with_a_warning_that_says_where():
    loss = log_cosh()
    with pytest.warns(StabilityWarning, match=r"at pred = .*, true = .* it gives nan for -?1"):

        @loss.gradient
        def tanh(pred, true):
            e = lf.exp(2 * (pred - true))
            return (e - 1) / (e + 1)

    x = np.array([0.5, -2.0])
    np.testing.assert_allclose(loss.grad(x, 0 * x, reduction="sum"), np.tanh(x), rtol=1e-12)


def test_a_gradient_for_distributions_is_accepted_with_a_warning_that_says_so():
    loss = soft_cross_entropy()
    with pytest.warns(DomainWarning, match="right only where 'target' sums to 1 along 'class'") as caught:
        loss.gradient(lambda logits, target: lf.softmax(logits, "class") - target)
    assert caught[0].filename == __file__


def test_a_loss_without_legal_points_cannot_be_verified():
    @lf.loss
    def nowhere(pred, true):
        return lf.log(-lf.abs(pred) - 1) * true

    with pytest.raises(DefinitionError, match="no points were found"):
        nowhere.gradient(lambda pred, true: true / pred)


# ------------------------------------------------------------------------------------------- points


def losses() -> list[Callable[[], lf.Loss]]:
    return list(dict.fromkeys(row[1] for row in RIGHT))


@pytest.mark.parametrize("make", losses(), ids=lambda make: make.__name__)
def test_points_are_legal_and_the_same_for_the_same_seed(make):
    loss = make()
    definition = loss.definition()
    hand = HandWritten(definition.value, definition.port(loss.predictions[0]).node, constant(0.0))
    case = Case.of(definition, hand, loss.defaults)
    for lengths in points.sizes(definition):
        first, again = (case.drawn(lengths, loss.defaults, np.random.default_rng(3)) for _ in range(2))
        for part, same in zip(first, again, strict=True):
            assert all(np.array_equal(part[name], same[name]) for name in part)
            assert points.legal(definition, case.derived, part).all()
        assert len(first[0][loss.predictions[0]]) >= 20


def test_kinks_are_hit_exactly():
    loss = huber()
    definition = loss.definition()
    case = Case.of(definition, HandWritten(definition.value, definition.arguments[0].node, constant(0.0)), {})
    _, kinky = case.drawn({"*shape": 2}, loss.defaults, np.random.default_rng(0))
    error = np.abs(kinky["pred"] - kinky["true"])
    assert np.count_nonzero(error == 0) > 20
    assert np.count_nonzero(error == kinky["delta"][:, None]) > 20


def test_kinks_off_the_grid_are_found_by_bisection():
    @lf.loss
    def log_error(pred, true):
        return lf.abs(lf.log(pred) - lf.exp(true))

    definition = log_error.definition()
    case = Case.of(definition, HandWritten(definition.value, definition.arguments[0].node, constant(0.0)), {})
    _, kinky = case.drawn({"*shape": 2}, {}, np.random.default_rng(0))
    distance = np.log(kinky["pred"]) - np.exp(kinky["true"])
    close = (np.abs(distance) < 1e-12).any(axis=1)
    assert np.count_nonzero(close) >= 4
    with pytest.raises(GradientMismatchError, match="at a kink"):
        log_error.gradient(
            lambda pred, true: (
                lf.where(lf.abs(lf.log(pred) - lf.exp(true)) < 1e-11, 3.0, lf.sign(lf.log(pred) - lf.exp(true))) / pred
            )
        )


def test_both_sides_of_a_distant_condition_are_compared():
    @lf.loss
    def capped(pred, true):
        error = lf.abs(pred - true)
        return lf.where(error < 200, error**2, 400 * error - 200**2)

    def right(pred, true):
        return lf.clip(2 * (pred - true), -400, 400)

    assert capped.gradient(right) is right
    with pytest.raises(GradientMismatchError):
        capped.gradient(lambda pred, true: 2 * (pred - true))


def test_a_verdict_is_frozen_and_reports():
    loss = absolute()
    definition = loss.definition()
    pred, true = (p.node for p in definition.arguments)
    verdict = compare(definition, HandWritten(definition.value, pred, lf.sign(lf_traced(pred - true)).node))
    assert isinstance(verdict, Verdict) and verdict.agreed and verdict.compared > 50
    assert "agrees with the derived one" in str(verdict)
    with pytest.raises(FrozenInstanceError):
        verdict.agreed = False


def lf_traced(node):
    from lossforge.frontends.language import Traced

    return Traced(node)


# ------------------------------------------------------------------------------------------- diagnosis


@pytest.mark.parametrize(
    ("ratio", "says"),
    [
        (-1, "wrong sign"),
        (0.5, "the factor 2 is missing"),
        (3, "there is a factor 3 too many"),
        (-0.25, "wrong sign, and the factor 4 is missing"),
        (1 / np.pi, "the factor 3.141592654 is missing"),
        (np.array([1.0, 2.0, 4.0, 8.0]), "there is a factor v too many"),
        (1 / np.array([1.0, 2.0, 4.0, 8.0]), "the factor v is missing"),
        (-3 / np.array([1.0, 2.0, 4.0, 8.0]), "the factor v is missing, and wrong sign"),
        (np.array([1.0, 4.0, 16.0, 64.0]), "there is a factor v² too many"),
        (0, "it is 0 at 4 of 4 points, where it should not be"),
        (np.nan, "it is not finite at 4 of 4 points"),
        (np.array([2.0, 3.0, 5.0, 9.0]), None),
    ],
)  # fmt: skip
def test_mistakes_have_names(ratio, says):
    derived = np.array([1.0, -2.0, 0.5, 3.0])
    by_hand = derived * ratio
    factors = {"v": np.array([1.0, 2.0, 4.0, 8.0])}
    found = diagnose(by_hand, derived, by_hand != derived, np.zeros(4), factors)
    assert found is None if says is None else says in found


# ------------------------------------------------------------------------------------------- what then runs


def runs(loss: lf.Loss, marker: str, wrt: str, arrays: tuple[np.ndarray, ...], **call: Any) -> bool:
    """Whether the programs of a call hold the operation that only the hand-written gradient has."""
    plan = loss.bind(arrays, {}, **call).plan
    programs = (plan.value_and_gradient((wrt,)), plan.gradient((wrt,)), plan.vjp((wrt,)))
    found = {any(n.op == marker for n in topological([o.node for o in p.outputs])) for p in programs}
    assert len(found) == 1
    return found.pop()


MEANS = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"weight": np.array([0.5, 2.0, 1.0])},
    {"mask": np.array([[True, False], [True, True], [False, True]])},
    {"reduction": "none", "weight": np.array([0.5, 2.0, 1.0])},
]


@pytest.mark.parametrize("call", MEANS, ids=str)
def test_a_registered_gradient_is_what_runs(call):
    """The hand-written form goes through atan2, which no derivation of this loss makes."""
    plain, by_hand = absolute(), absolute()
    by_hand.gradient(lambda pred, true: lf.where(pred == true, 0.0, 1 - 2 / np.pi * lf.atan2(0, pred - true)))
    pred, true = (
        np.array([[1.0, 2.0], [0.0, 3.0], [2.0, 2.0]]),
        np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.5]]),
    )
    assert runs(by_hand, "atan2", "pred", (pred, true), **call)
    assert not runs(plain, "atan2", "pred", (pred, true), **call)
    value, gradient = by_hand.value_and_grad(pred, true, **call)
    expected_value, expected = plain.value_and_grad(pred, true, **call)
    np.testing.assert_array_equal(value, expected_value)
    np.testing.assert_allclose(gradient, expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("call", [*MEANS[:4], {"mask": np.array([True, False, True])}], ids=str)
@pytest.mark.parametrize(
    ("wrt", "local", "by_hand"),
    [("anchor", True, info_nce_by_hand), ("positive", False, info_nce_positive_by_hand)],
)
def test_a_gradient_of_a_sum_serves_the_upstream_gradients_that_it_can(call, wrt, local, by_hand):
    """Entry i of InfoNCE depends on one anchor but on all positives, so that theirs is not separable."""
    plain, loss = info_nce(), info_nce()

    @loss.gradient(wrt=wrt)
    def marked(anchor, positive, temperature):
        return by_hand(anchor, positive, temperature) + lf.atan2(0, 1 + anchor**2)

    rng = np.random.default_rng(0)
    arrays = tuple(rng.normal(size=(2, 3, 4)))
    uniform = call in ({}, {"reduction": "sum"})
    assert runs(loss, "atan2", wrt, arrays, **call) is (local or uniform)
    value, gradient = loss.value_and_grad(*arrays, wrt=wrt, **call)
    expected_value, expected = plain.value_and_grad(*arrays, wrt=wrt, **call)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_gradient_of_something_smaller_than_the_loss(reduction):
    """A shared centre and a parameter lack the loss's axes; their gradients are summed over them."""

    @lf.loss("batch d, d -> batch", wrt="centre")
    def distance(x, centre, *, scale=2.0):
        return lf.sum((x - centre) ** 2, "d") * scale

    x, centre = np.random.default_rng(0).normal(size=(4, 3)), np.array([0.5, -1.0, 2.0])
    expected = [distance.grad(x, centre, wrt=w, reduction=reduction) for w in ("centre", "scale")]
    distance.gradient(lambda x, centre, scale: 2 * scale * lf.sum(centre - x, "batch"))
    distance.gradient(wrt="scale")(lambda x, centre: lf.sum((x - centre) ** 2))
    found = [distance.grad(x, centre, wrt=w, reduction=reduction) for w in ("centre", "scale")]
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-12)


def test_a_starred_axis_in_a_gradient_survives_weights_of_a_part_of_it():
    @lf.loss("batch *space, batch *space -> batch *space")
    def centred(pred, true):
        return (pred - true) ** 2

    rng = np.random.default_rng(0)
    pred, true, weight = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4)), rng.random((2, 3))
    expected = centred.grad(pred, true, weight=weight)
    centred.gradient(lambda pred, true: 2 * (pred - true) + 0 * lf.sum(lf.cos(pred), "*space"))
    np.testing.assert_allclose(centred.grad(pred, true, weight=weight), expected, rtol=1e-12)


def test_a_later_gradient_replaces_an_earlier_one():
    loss = absolute()
    pred = true = np.zeros(2)
    loss.gradient(lambda pred, true: lf.where(pred >= true, 1.0, -1.0))
    np.testing.assert_array_equal(loss.grad(pred, true, reduction="sum"), [1.0, 1.0])
    loss.gradient(lambda pred, true: lf.where(pred > true, 1.0, -1.0))
    np.testing.assert_array_equal(loss.grad(pred, true, reduction="sum"), [-1.0, -1.0])


def test_a_gradient_is_compared_again_for_each_option():
    """A flag shapes the graph, so that a gradient may be right for one value of it only."""

    @lf.loss
    def error(pred, true, *, squared=True):
        difference = pred - true
        return difference**2 if squared else lf.log1p(difference**2)

    x = np.array([0.5, -1.0])

    @error.gradient
    def forgetful(pred, true):
        return 2 * (pred - true)

    np.testing.assert_array_equal(error.grad(x, 0 * x, reduction="sum"), 2 * x)
    with pytest.raises(GradientMismatchError):
        error.grad(x, 0 * x, squared=False)

    @error.gradient
    def right(pred, true, squared):
        difference = pred - true
        return 2 * difference if squared else 2 * difference / (1 + difference**2)

    np.testing.assert_allclose(error.grad(x, 0 * x, squared=False, reduction="sum"), 2 * x / (1 + x * x), rtol=1e-15)


@pytest.mark.parametrize(
    ("gradient", "says"),
    [
        (lambda pred, true, w: w, "asks for 'w'"),
        (lambda pred: None, "is a `return` missing"),
        (lambda pred: lf.rename(pred, "*shape", "other"), "has the axis 'other'"),
    ],
    ids=["unknown", "nothing", "axis"],
)
def test_what_is_no_gradient_at_all(gradient, says):
    with pytest.raises(DefinitionError, match=says):
        absolute().gradient(gradient)


def test_second_derivatives_are_those_of_the_registered_gradient():
    loss = log_cosh()
    loss.gradient(lambda pred, true: lf.tanh(pred - true))
    x = np.linspace(-3, 3, 7)
    np.testing.assert_allclose(loss.hessian_diagonal(x, 0 * x, reduction="sum"), 1 - np.tanh(x) ** 2, rtol=1e-12)
