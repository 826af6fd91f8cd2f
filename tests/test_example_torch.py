"""`examples/dice_torch.py` trains a network on a real image, and its loss is the article's formula."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("skimage")

PATH = Path(__file__).parents[1] / "examples/dice_torch.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("dice_torch", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_learns_to_find_vessels(example, capsys):
    before, after = example.main(epochs=3)
    printed = capsys.readouterr().out
    assert f"before: Dice coefficient {before:.3f}" in printed
    assert f"after:  Dice coefficient {after:.3f}" in printed
    assert "LossModule(dice, smooth=1.0, reduction='mean')" in printed
    assert before < 0.3 and after > 0.7


def test_the_same_seed_gives_the_same_network(example):
    assert example.main(epochs=1, steps=3) == example.main(epochs=1, steps=3)


def test_its_loss_and_gradient_are_those_of_the_formula(example, rng):
    logits = torch.tensor(rng.normal(size=(3, 4, 5)), requires_grad=True)
    true = torch.tensor((rng.random((3, 4, 5)) < 0.3).astype(float))
    upstream = torch.tensor(rng.normal(size=3))
    (found,) = torch.autograd.grad(example.dice(logits, true, reduction="none"), logits, upstream)
    pred = torch.sigmoid(logits).flatten(1)
    flat = true.flatten(1)
    value = 1 - (2 * (pred * flat).sum(1) + 1) / (pred.sum(1) + flat.sum(1) + 1)
    (expected,) = torch.autograd.grad(value, logits, upstream)
    np.testing.assert_allclose(example.dice(logits, true, reduction="none").detach(), value.detach(), rtol=1e-14)
    # both are a handful of float64 operations on numbers of one magnitude
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
