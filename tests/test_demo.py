"""The demo: it derives, verifies, trains, draws and reports; what it claims of a loss is so."""

import io
import sys
from unittest import mock

import numpy as np
import pytest

from lossforge.demo import main
from lossforge.errors import FrameworkError, MissingPackageError

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("matplotlib")

from rich.console import Console

from lossforge.demo.trainers import FRAMEWORKS, trainer

FILES = [
    "dice-segmentation.png",
    "dice.png",
    "dice.txt",
    "huber.png",
    "huber.txt",
    "weighted.png",
    "weighted.txt",
]


def shown() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=120), stream


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The whole demo, in NumPy."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    console, stream = shown()
    return main("numpy", folder, console=console), folder, stream.getvalue()


def test_it_leaves_derivations_and_pictures(demo):
    results, folder, _ = demo
    assert sorted(p.name for p in folder.iterdir()) == FILES
    assert sorted(p for r in results for p in r.files) == sorted(folder.iterdir())
    for picture in folder.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert "clip(pred − true, −δ, δ) / count" in (folder / "huber.txt").read_text(encoding="utf-8")


def test_every_loss_decreases_and_beats_its_baseline(demo):
    for result in demo[0]:
        for trained in (result.ours, result.baseline):
            assert trained.losses[-1] < 0.9 * trained.losses[0]
        better = np.sign(result.ours.scores[-1] - result.baseline.scores[-1])
        assert better == (1 if result.story.metrics[0].more_is_better else -1), result.story.key


def test_every_gradient_is_verified_to_float64(demo):
    for result in demo[0]:
        assert result.checked.entries >= 20
        # a few operations on each entry, each rounded to 2^-53
        assert 0 < result.checked.error < 20 * 2**-53, result.story.key


def test_it_says_what_it_did(demo):
    text = " ".join(demo[2].split())
    for part in (
        "def huber(pred, true, *, delta=1.0):",
        "∂loss/∂pred = clip(pred − true, −δ, δ) / count",
        "def by_hand(pred, true, w):",
        "the factor 2 is missing",
        "Trained in NumPy",
        "800/800",
    ):
        assert part in text
    for result in demo[0]:
        assert result.story.metrics[0].show(result.ours.scores[-1]) in text


STEPS = 0.02
"""The share of the demo's steps after which frameworks are compared: enough for a wrong gradient to show."""


def start_of_the_demo(framework, folder):
    """Its first steps, without the pictures, which take longer than these."""
    with mock.patch.multiple("lossforge.demo.run", plot_story=mock.DEFAULT, plot_segmentation=mock.DEFAULT):
        return main(framework, folder, console=shown()[0], effort=STEPS)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return start_of_the_demo("numpy", tmp_path_factory.mktemp("short"))


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f != "numpy"])
def test_other_frameworks_train_to_the_same_end(framework, short, tmp_path):
    pytest.importorskip(framework)
    for found, expected in zip(start_of_the_demo(framework, tmp_path), short, strict=True):
        assert found.checked.error < 20 * 2**-53
        # float32, and some steps of an optimiser that divides by the gradient's size
        np.testing.assert_allclose(found.ours.prediction, expected.ours.prediction, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.ours.losses, expected.ours.losses, rtol=1e-3)
        assert found.ours.losses[-1] < found.ours.losses[0]


def test_the_same_seed_gives_the_same_result(short, tmp_path):
    for first, second in zip(short, start_of_the_demo("numpy", tmp_path), strict=True):
        np.testing.assert_array_equal(first.ours.prediction, second.ours.prediction)


def test_a_framework_that_is_not_known():
    with pytest.raises(FrameworkError, match="'theano'.*numpy, torch, tensorflow, jax"):
        main("theano")


@pytest.mark.parametrize(
    ("missing", "framework", "says"),
    [
        ("skimage", "numpy", 'scikit-image.*pip install "lossforge\\[demo\\]"'),
        ("torch", "torch", 'torch.*pip install "lossforge\\[torch\\]"'),
    ],
)
def test_a_package_that_is_not_installed(missing, framework, says, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingPackageError, match=says):
        main(framework, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numpy_backpropagation_is_the_derivative_of_the_loss(rng):
    """The network's own gradients, which are written out, against central differences."""
    from lossforge.catalogue import huber

    layers = tuple((rng.normal(size=(n, m)), rng.normal(size=m)) for n, m in ((3, 5), (5, 4), (4, 1)))
    features, true = rng.normal(size=(7, 3)), rng.normal(size=7)
    network = trainer("numpy")(layers, huber, rate=0.0)
    found = network.gradients(features, [true])
    step = 1e-6
    for k, weight in enumerate(network.weights):
        for i in np.ndindex(weight.shape):
            values = []
            for sign in (1, -1):
                network.weights[k] = weight.copy()
                network.weights[k][i] += sign * step
                values.append(huber(network.predict(features), true))
            network.weights[k] = weight
            # truncation 1e-12, rounding 2^-53 / step
            assert found[k][i] == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8)
