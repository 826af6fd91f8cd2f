"""`examples/huber_keras.py` trains on real records, and its loss is the article's formula."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
pytest.importorskip("sklearn")

PATH = Path(__file__).parents[1] / "examples/huber_keras.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("huber_keras", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_learns_in_spite_of_wrong_records(example, capsys):
    found = example.main(epochs=25)
    (loss, error), (loss_after, error_after) = found["huber"]
    assert loss_after < loss
    assert error_after < 0.8 * error
    _, (_, misled) = found["squared_error"]
    assert error_after < 0.6 * misled
    printed = capsys.readouterr().out
    assert f"training loss {loss:5.2f} -> {loss_after:5.2f}" in printed
    assert f"test patients {error:5.1f} -> {error_after:5.1f} points" in printed


def test_the_same_seed_gives_the_same_network(example):
    loss = example.huber.keras()
    assert example.train(loss, epochs=1, seed=3) == example.train(loss, epochs=1, seed=3)


def test_its_loss_and_gradient_are_those_of_the_article(example, rng):
    true, pred = (tf.constant(rng.normal(scale=2, size=(5, 3))) for _ in range(2))
    delta = 0.8

    def article(y_true, y_pred):
        error = y_true - y_pred
        quadratic = tf.minimum(tf.abs(error), delta)
        linear = tf.abs(error) - quadratic
        return tf.reduce_mean(0.5 * tf.square(quadratic) + delta * linear)

    results = []
    for loss in (example.huber.keras(delta=delta), article):
        with tf.GradientTape() as tape:
            tape.watch(pred)
            value = loss(true, pred)
        results.append((value, tape.gradient(value, pred)))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-16)  # a few float64 operations
