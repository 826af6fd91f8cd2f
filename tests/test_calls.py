"""Calls: what is accepted, what is refused, and how it is said. Each row of a table is one mistake."""

from __future__ import annotations

import re

import numpy as np
import pytest

import lossforge as lf
from lossforge.adapters.numpy import by_operations
from lossforge.errors import (
    AxisError,
    DefinitionError,
    DtypeError,
    FrameworkError,
    IndexRangeError,
    NotDifferentiableError,
    ParameterError,
    ShapeError,
    SignatureError,
    TracingError,
)


@lf.loss
def squared(pred, true, *, scale=1.0):
    return scale * (pred - true) ** 2


@lf.loss("batch class *space, batch *space -> batch *space")
def cross_entropy(logits, target):
    return -lf.take(lf.log_softmax(logits, "class"), target, "class")


X = np.ones((4, 3))

BAD_CALLS = {
    "a column against a vector": (
        lambda: squared(np.ones((4, 1)), np.ones(4)), ShapeError, r"'true' has shape \(4,\), but 'pred' has \(4, 1\)",
    ),
    "an axis of another size": (
        lambda: cross_entropy(np.ones((4, 3, 5)), np.zeros((6, 5), int)), ShapeError, r"axis 'batch' has size 6 .* 4 in",
    ),
    "a starred axis of another size": (
        lambda: cross_entropy(np.ones((4, 3, 5)), np.zeros((4, 7), int)), ShapeError, r"axis '\*space' has size \(7,\)",
    ),
    "too few dimensions": (lambda: cross_entropy(np.ones(4), np.zeros(4, int)), ShapeError, "at least 2 dimensions"),
    "an integer prediction": (lambda: squared(np.ones(3, int), np.ones(3)), DtypeError, "prediction 'pred' must be float"),
    "class indices that are floats": (
        lambda: cross_entropy(np.ones((4, 3)), np.zeros(4)), DtypeError, "'target' holds class indices",
    ),
    "complex numbers": (lambda: squared(np.ones(3), np.ones(3, complex)), DtypeError, "complex128"),
    "strings": (lambda: squared(np.ones(3), np.array(["a", "b", "c"])), DtypeError, "real numbers"),
    "an unknown parameter": (lambda: squared(X, X, delta=2.0), ParameterError, "unknown parameter 'delta'; it has scale"),
    "a parameter that is an array": (lambda: squared(X, X, scale=X), ParameterError, "'scale' must be a number"),
    "an unknown reduction": (lambda: squared(X, X, reduction="avg"), ParameterError, "reduction='avg'"),
    "an argument too many": (lambda: squared(X, X, X), ParameterError, "takes 2"),
    "an argument too few": (lambda: squared(X), ParameterError, "'true' is missing"),
    "an argument twice": (lambda: squared(X, X, pred=X), ParameterError, "given twice"),
    "a class too large": (
        lambda: cross_entropy(np.ones((4, 3)), np.array([0, 1, 2, 3])), IndexRangeError, r"0 to 3, but axis 'class' has size 3",
    ),
    "a negative class": (
        lambda: cross_entropy(np.ones((2, 3)), np.array([0, -1])), IndexRangeError, "classes are 0 … 2",
    ),
    "an empty batch": (lambda: squared(np.ones((0, 3)), np.ones((0, 3))), ShapeError, "mean of nothing"),
    "an empty axis": (
        lambda: cross_entropy(np.ones((0, 3)), np.zeros(0, int)), ShapeError, "axis 'batch' is empty",
    ),
    "a weight that fits nothing": (lambda: squared(X, X, weight=np.ones(3)), ShapeError, r"weight has shape \(3,\)"),
    "a mask of fractions": (lambda: squared(X, X, mask=np.full((4, 3), 0.5)), DtypeError, "For fractions use weight="),
    "something that is no array": (lambda: squared(X, object()), FrameworkError, "argument 'true' is a builtins.object"),
    "a gradient by nothing": (lambda: squared.grad(X, X, wrt="other"), ParameterError, "no gradient with respect to 'other'"),
    "a direction of another shape": (lambda: squared.hvp(X, X, vector=np.ones(3)), ShapeError, "vector has shape"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD_CALLS)
def test_a_bad_call_is_refused(mistake: str) -> None:
    call, error, message = BAD_CALLS[mistake]
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, lf.LossforgeError)
    # The second time the call is bound from memory, where nothing may be forgotten.
    with pytest.raises(error, match=message):
        call()


def test_two_frameworks_in_one_call() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(FrameworkError, match=r"'pred' is of numpy, but 'true' is of torch"):
        squared(X, torch.ones(4, 3))


# ------------------------------------------------------------------------------------------- definitions


def _if(pred, true):
    if pred > true:
        return pred
    return true


def _float(pred, true):
    return pred * float(true)


def _in_place(pred, true):
    pred[0] = 1.0
    return pred - true


def _augmented(pred, true):
    pred += true
    return pred


def _out(pred, true):
    return np.add(pred, true, out=pred)


def _array(pred, true):
    return pred - np.array([1.0, 2.0])


def _loop(pred, true):
    return sum(p for p in pred)


def _length(pred, true):
    return (pred - true) / len(pred)


def _shape(pred, true):
    return (pred - true) / pred.shape[0]


def _unknown_function(pred, true):
    return np.linalg.norm(pred - true)


def _unknown_ufunc(pred, true):
    return np.heaviside(pred, true)


def _nothing(pred, true):
    pred - true


def _number_axis(pred, true):
    return lf.sum(pred - true, 0)


def _keepdims(pred, true):
    return np.sum(pred - true, keepdims=True)


BAD_DEFINITIONS = {
    "if": (_if, TracingError, r"lf\.where"),
    "float()": (_float, TracingError, r"float\(\) of a traced value"),
    "a write": (_in_place, TracingError, "in place"),
    "+=": (_augmented, TracingError, "in-place"),
    "out=": (_out, TracingError, "in place"),
    "a NumPy array": (_array, TracingError, "argument of the loss|converted to a NumPy array"),
    "a loop": (_loop, TracingError, "iterated"),
    "len()": (_length, TracingError, r"lf\.size"),
    ".shape": (_shape, TracingError, r"lf\.size"),
    "a function without a rule": (_unknown_function, TracingError, "np.norm does not work"),
    "a ufunc without a rule": (_unknown_ufunc, TracingError, "np.heaviside has no derivative rule"),
    "no return": (_nothing, DefinitionError, "returned a NoneType.*`return` missing"),
    "a numbered axis": (_number_axis, AxisError, "axes are named"),
    "keepdims": (_keepdims, TracingError, "not needed"),
}


@pytest.mark.parametrize("mistake", BAD_DEFINITIONS)
def test_a_bad_definition_is_refused(mistake: str) -> None:
    function, error, message = BAD_DEFINITIONS[mistake]
    with pytest.raises(error, match=message):
        lf.loss(function)


BAD_SIGNATURES = {
    "an unknown axis": ("batch class, batch -> batch", lambda x, y: lf.sum(x, "klass") - y, AxisError, "'klass'"),
    "an unknown axis of one_hot": (
        "batch class, batch -> batch", lambda x, y: lf.sum(x * lf.one_hot(y, "klass"), "class"), AxisError, "'klass'",
    ),
    "an axis left over": ("batch class, batch -> batch", lambda x, y: x - y, SignatureError, "leaves 'class'"),
    "an axis reduced too many": (
        "batch class, batch -> batch", lambda x, y: lf.sum(x - y), SignatureError, "has reduced 'batch'",
    ),
    "an output axis from nowhere": ("batch, batch -> time", lambda x, y: x - y, SignatureError, "'time' belongs to no"),
    "another number of arguments": ("batch -> batch", lambda x, y: x - y, DefinitionError, "describes 1 arguments|'y'"),
    "an axis twice": ("batch batch, batch -> batch", lambda x, y: x - y, SignatureError, "twice"),
    "two starred axes": ("*a *b, *a -> *a", lambda x, y: x - y, SignatureError, "ambiguous"),
    "a number": ("batch 1, batch -> batch", lambda x, y: x - y, SignatureError, "'1' is not an axis name"),
    "a position along a starred axis": (
        "batch *space, batch -> batch", lambda x, y: lf.take(x, y, "*space"), AxisError, "any number of axes",
    ),
    "a copy under an old name": (
        "batch d, batch -> batch", lambda x, y: lf.rename(x, "d", "batch"), AxisError, "already has an axis",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD_SIGNATURES)
def test_a_bad_signature_is_refused(mistake: str) -> None:
    signature, function, error, message = BAD_SIGNATURES[mistake]

    def definition(x, y):
        return function(x, y)

    with pytest.raises(error, match=message):
        lf.loss(signature)(definition)


FLAT = {
    "round": lambda pred, true: (lf.round(pred) - true) ** 2,
    "sign": lambda pred, true: lf.sign(pred) * true,
    "gt": lambda pred, true: lf.where(pred > 0.5, 1.0 - true, true),
    "floor": lambda pred, true: lf.floor(pred) + true,
    "ceil": lambda pred, true: lf.ceil(pred) * true,
    "stop_gradient": lambda pred, true: (lf.stop_gradient(pred) - true) ** 2,
}


@pytest.mark.parametrize("operation", FLAT)
def test_a_gradient_of_zero_almost_everywhere_is_refused(operation: str) -> None:
    with pytest.raises(NotDifferentiableError, match=rf"{operation}.*lf\.surrogate"):
        lf.loss(FLAT[operation])


def test_an_argmax_is_refused_by_name() -> None:
    with pytest.raises(NotDifferentiableError, match=r"argmax"):

        @lf.loss("batch class, batch -> batch")
        def accuracy(logits, target):
            return lf.where(lf.argmax(logits, "class") == target, 0.0, 1.0)


def test_a_loss_without_its_prediction_is_refused() -> None:
    with pytest.raises(NotDifferentiableError, match="does not depend on 'pred'"):
        lf.loss(lambda pred, true: true**2)


def test_a_surrogate_has_the_hard_value_and_the_soft_gradient() -> None:
    @lf.loss
    def zero_one(pred, true):
        return lf.surrogate(lf.where(pred * true > 0, 0.0, 1.0), lf.softplus(-pred * true))

    pred, true = np.array([0.5, -2.0, 3.0]), np.array([1.0, 1.0, -1.0])
    value, gradient = zero_one.value_and_grad(pred, true, reduction="sum")
    assert value == 2.0
    np.testing.assert_allclose(gradient, -true / (1 + np.exp(pred * true)), rtol=1e-12)


# ------------------------------------------------------------------------------------------- what is accepted


def test_lists_and_numbers_are_numpy() -> None:
    assert squared([1.0, 2.0], [0.0, 0.0]) == 2.5
    assert squared(np.float64(3.0), np.float64(1.0)) == 4.0


def test_a_definition_may_use_names_that_calls_use_too() -> None:
    @lf.loss
    def weighted(pred, true, weight):
        return weight * (pred - true) ** 2

    pred, true, w = np.array([1.0, 2.0]), np.zeros(2), np.array([1.0, 3.0])
    assert weighted(pred, true, w) == weighted(pred, true, weight=w) == 6.5


def test_flags_choose_another_graph() -> None:
    @lf.loss
    def error(pred, true, *, squared=True, kind="plain"):
        e = pred - true if kind == "plain" else lf.log(pred) - lf.log(true)
        return e**2 if squared else lf.abs(e)

    pred, true = np.array([1.0, 3.0]), np.array([2.0, 1.0])
    assert error(pred, true) == 2.5
    assert error(pred, true, squared=False) == 1.5
    assert error(pred, true, kind="log", squared=False) == pytest.approx(np.abs(np.log(pred / true)).mean())


@lf.loss
def focal(pred, true, *, gamma=2.0):
    return true * lf.exp(gamma * lf.log_sigmoid(-pred)) + (1 - true) * lf.exp(gamma * lf.log_sigmoid(pred))


@lf.loss
def exponents(pred, true, *, gamma=2.0, beta=2.0):
    hit = lf.sigmoid(pred)
    return (
        true * lf.exp(gamma * lf.log_sigmoid(-pred))
        + (1 - true) * hit**gamma
        + lf.abs(pred) ** (1 / gamma)
        + beta * pred
    )


@pytest.mark.parametrize("gamma", [-1.0, 0.5, 1.0, 2, 2.0, 3.0, 4.0, 1.7])
def test_a_whole_exponent_changes_how_a_power_is_computed_and_nothing_else(gamma: float, rng) -> None:
    """Against the plan that knows nothing but the sign of it, in float64: rounding alone, 1e-12, may differ."""
    pred, true = rng.normal(size=50), rng.random(50)
    value, gradient = exponents.value_and_grad(pred, true, gamma=gamma)
    by_gamma = exponents.grad(pred, true, gamma=gamma, wrt="gamma")
    generic = exponents.plan(gamma=gamma)
    assert generic.exponents == ()
    got = exponents.bind((pred, true), {"gamma": gamma}).plan
    assert got.exponents == ((("gamma", float(gamma)),) if gamma != 1.7 else ())
    given = [pred, true, gamma, 2.0]
    want = by_operations(generic.value_and_gradient(("pred", "gamma")), given)
    for a, b in zip((value, gradient, by_gamma), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_a_call_that_is_known_heeds_its_exponent(rng) -> None:
    pred, true = rng.normal(size=(2, 50))
    found = [[float(exponents(pred, true, gamma=g)) for g in (2.0, 1.0, 2.5, 3.0, 3.5)] for _ in range(2)]
    assert found[0] == found[1]
    assert len(set(found[0])) == 5


def test_kernels_of_a_whole_exponent_take_no_logarithm() -> None:
    def ours(**parameters: float) -> str:
        return focal.source("numba", **parameters)

    assert "log_sigmoid" not in ours() + ours(gamma=3)
    assert "exp" not in ours() + ours(gamma=3)
    assert "exp_nonpositive" in ours(gamma=1.5)
    assert "gamma" in focal.source("numpy")  # an exported file is for any


def test_predictions_are_found_by_name_or_said() -> None:
    assert lf.loss(lambda y_true, y_pred: (y_true - y_pred) ** 2).predictions == ("y_pred",)
    assert lf.loss(lambda a, b: (a - b) ** 2).predictions == ("a",)
    assert lf.loss(wrt="b")(lambda a, b: (a - b) ** 2).predictions == ("b",)
    assert lf.loss(wrt=("a", "b"))(lambda a, b: (a - b) ** 2).predictions == ("a", "b")
    with pytest.raises(DefinitionError, match="wrt='c'"):
        lf.loss(wrt="c")(lambda a, b: (a - b) ** 2)


def test_masked_entries_may_hold_anything() -> None:
    pred, true = np.array([1.0, np.nan, 3.0]), np.array([0.0, 1.0, np.inf])
    mask = np.array([True, False, False])
    value, gradient = squared.value_and_grad(pred, true, mask=mask)
    assert value == 1.0
    np.testing.assert_array_equal(gradient, [2.0, 0.0, 0.0])
    value, gradient = squared.value_and_grad(pred, true, mask=np.zeros(3, bool))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_classes_behind_a_mask_may_be_out_of_range() -> None:
    logits = np.zeros((3, 4))
    target, mask = np.array([0, 255, -1]), np.array([True, False, False])
    assert cross_entropy(logits, target, mask=mask) == pytest.approx(np.log(4))
    gradient = cross_entropy.grad(logits, target, mask=mask)
    np.testing.assert_allclose(gradient[0], [-0.75, 0.25, 0.25, 0.25])
    np.testing.assert_array_equal(gradient[1:], 0.0)


def test_a_branch_that_is_not_taken_has_no_influence() -> None:
    """Eager frameworks give NaN here, since 0 · ∞ comes back from the other branch."""

    @lf.loss
    def guarded(pred, true):
        return lf.where(pred > 0, lf.log(pred) * true, lf.sqrt(-pred))

    pred = np.array([0.0, 2.0, -4.0])
    value, gradient = guarded.value_and_grad(pred, np.ones(3), reduction="sum")
    assert value == pytest.approx(np.log(2) + 2)
    np.testing.assert_allclose(gradient[1:], [0.5, -0.25])


@pytest.mark.parametrize("derivative", ["sqrt", "log", "power", "norm"])
def test_what_only_masked_entries_use_has_no_influence(derivative: str) -> None:
    """Where a whole row is masked, its infinite derivative meets a sum of zeros, which is not zero but nothing."""
    root = {"sqrt": lf.sqrt, "log": lf.log, "power": lambda x: x**0.5, "norm": lambda x: 1 / x}[derivative]

    @lf.loss("batch, batch class, batch class -> ", wrt="pred")
    def masked(pred, weight, mask):
        return lf.sum(lf.where(mask > 0, weight * root(pred), 0.0))

    weight, mask = np.array([[2.0, 3.0]] * 3), np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    pred = np.array([4.0, 0.0, 1.0])
    slope = {"sqrt": [0.25, 0.5], "log": [0.25, 1.0], "power": [0.25, 0.5], "norm": [-1 / 16, -1.0]}[derivative]
    gradient = masked.grad(pred, weight, mask)
    np.testing.assert_allclose(gradient, [2 * slope[0], 0.0, 5 * slope[1]])
    pred[2] = 0.0  # used, and infinite there
    assert not np.isfinite(masked.grad(pred, weight, mask)[2])


def test_errors_are_one_tree() -> None:
    for name, kind in vars(lf.errors).items():
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Warning):
            assert issubclass(kind, lf.LossforgeError), name
            assert re.search(r"\w", kind.__doc__ or ""), name


def test_a_loss_may_be_defined_under_a_profiler() -> None:
    import cProfile

    with cProfile.Profile() as profiler:
        loss = lf.loss(lambda pred, true: (pred - true) ** 2)
    assert loss(np.array([3.0]), np.array([1.0])) == 4.0
    assert profiler.getstats()
