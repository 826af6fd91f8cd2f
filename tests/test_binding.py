"""Binding from memory: calls of a form that was seen before, and what must not be taken for the same."""

import numpy as np
import pytest

import lossforge as lf

X, Y = np.array([1.0, 2.0, 4.0]), np.array([0.5, 2.5, 3.0])


@pytest.fixture
def squared():
    @lf.loss
    def squared(pred, true, *, scale=1.0):
        if isinstance(scale, bool):
            return (pred - true) ** 2 if scale else lf.abs(pred - true)
        return scale * (pred - true) ** 2

    return squared


def test_one_array_in_two_places_does_not_bind_the_next_call(squared):
    assert squared(X, X) == 0
    assert squared(X, Y) == pytest.approx(0.5)
    assert squared(X, Y, weight=X) != squared(X, Y, weight=Y)


def test_a_number_is_not_taken_for_a_flag(squared):
    assert squared(X, Y, scale=True) == pytest.approx(0.5)
    assert squared(X, Y, scale=2.0) == pytest.approx(1.0)


def test_arguments_by_name_and_scalar_arrays_bind_alike(squared):
    for scale in (2.0, 3.0):
        assert squared(true=Y, pred=X, scale=np.array(scale)) == pytest.approx(0.5 * scale)


def test_a_gradient_by_hand_holds_for_forms_that_were_called_before(squared):
    squared.value_and_grad(X, Y)
    calls = [squared.bind((X, Y), {}).plan.handwritten]
    squared.gradient(lambda pred, true, scale: 2 * scale * (pred - true))
    calls.append(squared.bind((X, Y), {}).plan.handwritten)
    assert [len(hands) for hands in calls] == [0, 1]
