"""The example with a gradient by hand: it trains, and SciPy finds the same minimum."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_numpy_and_scipy_train_to_the_same_minimum() -> None:
    example = load("weighted_squared_error")
    results = example.main()
    assert results["loss after, NumPy"] < 0.6 * results["loss before"]
    # Gradient descent has not quite arrived after 2000 steps: its least curved direction is a thousand times flatter.
    assert results["loss after, NumPy"] == pytest.approx(results["loss after, SciPy"], rel=1e-2)
    assert results["error of the worst cases, weighted"] < 0.8 * results["error of the worst cases, unweighted"]


def test_the_gradient_by_hand_is_what_runs() -> None:
    example = load("weighted_squared_error")
    rng = np.random.default_rng(0)
    true, pred, w = rng.normal(size=(3, 20))
    gradient = example.weighted_squared_error.grad(true, pred, w)
    np.testing.assert_array_equal(gradient, example.by_hand(true, pred, w))
