"""Keras: losses in `compile` and `fit`, beside Keras' own; weights, masks, shapes, saving; every backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import lossforge as lf
from lossforge import errors
from lossforge.catalogue import cross_entropy, dice, gaussian_nll, huber, softmax_dice, squared_error

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="written for that backend")


@lf.loss("batch, batch, batch -> batch")
def between(pred, low, high):
    """How far the prediction lies outside of an interval."""
    return lf.maximum(low - pred, 0.0) + lf.maximum(pred - high, 0.0)


@lf.loss
def powered(pred, true, *, exponent=2.0, symmetric=True):
    error = lf.abs(pred - true) if symmetric else lf.relu(pred - true)
    return error**exponent


RNG = np.random.default_rng(4)
PRED, TRUE = RNG.normal(size=(6, 1)).astype("float32"), RNG.normal(size=(6, 1)).astype("float32")
LOGITS, CLASSES = RNG.normal(size=(6, 3)).astype("float32"), RNG.integers(0, 3, (6, 1))
WEIGHT = RNG.random(6).astype("float32")
REDUCTIONS = ["sum_over_batch_size", "mean_with_sample_weight", "sum", "none"]


def agree(found, expected):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------ beside Keras' own losses

OWN = {
    "huber": (huber, {"delta": 0.7}, keras.losses.Huber, {"delta": 0.7}, TRUE, PRED),
    "cross_entropy": (
        cross_entropy,
        {},
        keras.losses.SparseCategoricalCrossentropy,
        {"from_logits": True},
        CLASSES,
        LOGITS,
    ),
}


@pytest.mark.parametrize("weight", [None, WEIGHT, WEIGHT[:, None]], ids=["unweighted", "(N,)", "(N, 1)"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", OWN)
def test_agrees_with_keras(name, reduction, weight):
    loss, parameters, kind, options, true, pred = OWN[name]
    found = loss.keras(reduction=reduction, **parameters)(true, pred, weight)
    expected = kind(reduction=reduction, **options)(true, pred, weight)
    agree(np.ravel(found), np.ravel(expected))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_a_mask_of_keras_is_honoured(reduction, weight):
    def masked():
        pred = tf.constant(PRED[:, 0])
        pred._keras_mask = tf.constant([True, False, True, True, False, True])
        return pred

    found = huber.keras(reduction=reduction)(TRUE[:, 0], masked(), weight)
    # Keras' loss for vectors is one number; as a column it is one for each entry.
    column = masked()[:, None]
    column._keras_mask = masked()._keras_mask
    expected = keras.losses.Huber(reduction=reduction)(TRUE, column, weight)
    agree(np.ravel(found), np.ravel(expected))


def test_our_mean_divides_by_the_weights():
    error = (PRED - TRUE)[:, 0] ** 2
    agree(squared_error.keras()(TRUE, PRED, WEIGHT), np.sum(WEIGHT * error) / np.sum(WEIGHT))
    agree(squared_error.keras()(TRUE, PRED, np.zeros(6)), 0)


SHAPES = [((6,), (6,)), ((6, 1), (6,)), ((6,), (6, 1)), ((6, 1), (6, 1)), ((3, 2), (3, 2)), ((3, 2, 1), (3, 2))]


@pytest.mark.parametrize(("pred", "true"), SHAPES)
def test_a_last_dimension_of_one_makes_no_difference(pred, true):
    p, t = PRED.reshape(pred), TRUE.reshape(true)
    agree(squared_error.keras()(t, p), keras.losses.MeanSquaredError()(t, p))


@pytest.mark.parametrize(("pred", "true"), [((6,), (3,)), ((3, 2), (2, 3)), ((3, 2), (3,)), ((6, 1), (1, 6))])
def test_nothing_else_is_reshaped(pred, true):
    with pytest.raises(errors.ShapeError, match="squared_error"):
        squared_error.keras()(np.zeros(true), np.zeros(pred, "float32"))


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32", "float64"])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_class_indices(shape, dtype):
    found = cross_entropy.keras()(CLASSES.reshape(shape).astype(dtype), LOGITS)
    agree(found, cross_entropy(LOGITS, CLASSES[:, 0]))


@pytest.mark.parametrize("data_format", [None, "channels_last", "channels_first"])
@pytest.mark.parametrize("loss", [dice, softmax_dice, cross_entropy])
def test_the_class_axis_lies_where_keras_has_it(loss, data_format, rng):
    pred = rng.random((2, 3, 4, 5)).astype("float32")  # batch, class, *space
    true = rng.integers(0, 2, (2, 3, 4, 5) if loss is dice else (2, 4, 5))
    expected = loss(pred, true)
    if data_format != "channels_first":
        pred = np.moveaxis(pred, 1, -1)
        true = np.moveaxis(true, 1, -1) if loss is dice else true[..., None]
    agree(loss.keras(data_format=data_format)(true, pred), expected)


def test_the_dtype_of_the_prediction_decides():
    assert huber.keras()(TRUE.astype("float64"), PRED).dtype == tf.float32
    assert huber.keras()(TRUE, PRED.astype("float64")).dtype == tf.float64
    assert huber.keras()(TRUE, tf.cast(PRED, tf.float16)).dtype == tf.float32
    assert huber.keras()(TRUE > 0, PRED, np.ones(6)).dtype == tf.float32


# ------------------------------------------------------------ several arguments


def test_several_targets_and_predictions():
    pred, low, high = (RNG.normal(size=5).astype("float32") for _ in range(3))
    expected = between(pred, low, high)
    agree(between.keras()((low, high), pred), expected)
    agree(between.keras()({"high": high, "low": low}, pred), expected)
    agree(gaussian_nll.keras()(high, (pred, low)), gaussian_nll(pred, low, high))
    agree(gaussian_nll.keras()(high, {"log_variance": low, "mean": pred}), gaussian_nll(pred, low, high))


@pytest.mark.parametrize("true", [TRUE[:, 0], (TRUE[:, 0],), {"low": TRUE[:, 0]}])
def test_an_argument_that_is_missing_is_named(true):
    with pytest.raises(errors.ShapeError, match=r"y_true stands for 2 arguments \(low, high\)"):
        between.keras()(true, PRED[:, 0])


BAD = [
    ({"detla": 1.0}, "detla"),
    ({"reduction": "average"}, "average"),
    ({"data_format": "NHWC"}, "channels_last"),
    ({"delta": np.ones(2)}, "delta"),
    ({"delta": keras.Variable(1.0)}, "add_loss"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_options(options, message):
    with pytest.raises(errors.ParameterError, match=message):
        huber.keras(**options)


# ------------------------------------------------------------ training

X = RNG.normal(size=(48, 4)).astype("float32")
Y = (X @ np.array([1.0, -2.0, 0.5, 0.0]) + 0.1 * RNG.normal(size=48)).astype("float64")
LABELS = (X[:, 0] > 0).astype("int64") + (X[:, 1] > 0)


def trained(loss, y, units=1, jit_compile=False, epochs=4, **options):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
    model.compile(keras.optimizers.SGD(0.1), loss=loss, jit_compile=jit_compile)
    history = model.fit(X, y, batch_size=20, epochs=epochs, verbose=0, shuffle=False, **options)  # 48 = 20 + 20 + 8
    return model, history.history["loss"]


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize(
    ("ours", "keras_own", "y", "units", "options"),
    [
        (huber.keras(delta=0.5, reduction="sum_over_batch_size"), keras.losses.Huber(0.5), Y, 1, {}),
        (
            cross_entropy.keras(),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
            LABELS,
            3,
            {"sample_weight": np.linspace(0, 1, 48)},
        ),
    ],
    ids=["huber", "cross_entropy"],
)
def test_training_goes_as_with_the_loss_of_keras(ours, keras_own, y, units, options, jit_compile):
    model, history = trained(ours, y, units, jit_compile, **options)
    other, expected = trained(keras_own, y, units, **options)
    agree(history, expected)
    assert history[-1] < 0.9 * history[0]
    for weight, wanted in zip(model.get_weights(), other.get_weights(), strict=True):
        agree(weight, wanted)


def test_class_weights():
    weights = {0: 0.2, 1: 1.0, 2: 3.0}
    _, history = trained(cross_entropy.keras(reduction="sum_over_batch_size"), LABELS, 3, class_weight=weights)
    _, expected = trained(keras.losses.SparseCategoricalCrossentropy(from_logits=True), LABELS, 3, class_weight=weights)
    agree(history, expected)


def test_a_mask_goes_through_a_model():
    tokens = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [4, 5, 6, 0]])
    y = np.random.default_rng(0).normal(size=(3, 4))
    model = keras.Sequential([keras.layers.Embedding(7, 1, mask_zero=True)])
    model.compile("sgd", loss=squared_error.keras())
    found = model.evaluate(tokens, y, verbose=0)
    error = (model.predict(tokens, verbose=0)[..., 0] - y) ** 2
    agree(found, error[tokens > 0].mean())


def test_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, history = trained(huber.keras(), Y)
        assert model.layers[0](X).dtype == tf.float16
    finally:
        keras.config.set_dtype_policy(before)
    _, expected = trained(huber.keras(), Y)
    np.testing.assert_allclose(history, expected, rtol=5e-3)  # float16 keeps three digits


def test_a_training_step_of_ones_own():
    """A learned parameter is a weight of a layer that calls the loss itself."""

    class Robust(keras.layers.Layer):
        def build(self, shape):
            self.delta = self.add_weight(shape=(), initializer="ones")

        def call(self, pred, true):
            self.add_loss(huber(pred, true, delta=self.delta))
            return pred

    inputs, targets = keras.Input((4,)), keras.Input((1,))
    layer = Robust()
    model = keras.Model([inputs, targets], layer(keras.layers.Dense(1)(inputs), targets))
    model.compile(keras.optimizers.SGD(0.1))
    model.fit([X, Y[:, None].astype("float32")], batch_size=48, epochs=1, verbose=0)
    assert layer.delta.numpy() < 1


# ------------------------------------------------------------ saving

SAVED = [
    huber.keras(delta=0.3),
    cross_entropy.keras(reduction="sum", name="entropy"),
    powered.keras(exponent=np.float32(1.5), symmetric=False, data_format="channels_first"),
]


@pytest.mark.parametrize("loss", SAVED, ids=lambda loss: loss.name)
def test_a_configuration_round_trips(loss):
    config = json.loads(json.dumps(keras.losses.serialize(loss)))
    again = keras.losses.deserialize(config)
    assert type(again) is type(loss)
    assert again.loss is loss.loss
    assert again.get_config() == loss.get_config()


def saved(loss, path, y=Y, units=1):
    model, _ = trained(loss, y, units, epochs=1)
    model.save(path)
    return model


@pytest.mark.parametrize("loss", [huber.keras(delta=0.3), powered.keras(exponent=1.5)], ids=lambda loss: loss.name)
def test_a_saved_model_keeps_its_loss(loss, tmp_path):
    model = saved(loss, tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.loss.get_config() == loss.get_config()
    agree(again.evaluate(X, Y, verbose=0), model.evaluate(X, Y, verbose=0))
    again.fit(X, Y, verbose=0)


def test_a_loss_that_cannot_be_imported_is_given_by_name(tmp_path):
    @lf.loss
    def local(pred, true):
        return (pred - true) ** 4

    saved(local.keras(), tmp_path / "model.keras")
    with pytest.raises(errors.DefinitionError, match="custom_objects"):
        keras.models.load_model(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", custom_objects={local.__qualname__: local})
    assert again.loss.loss is local


def test_what_is_not_a_loss_is_refused():
    config = {**huber.keras().get_config(), "loss": "os:system"}
    with pytest.raises(errors.DefinitionError, match="not a Loss"):
        type(huber.keras()).from_config(config)


# ------------------------------------------------------------ other processes, backends and strategies


def start(program, *arguments, **environment):
    """Start a program in an interpreter of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process):
    """What a program printed last, as JSON."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def test_a_saved_model_goes_on_training_on_other_backends(tmp_path):
    """Keras knows the class there without further imports, and the loss is imported by its reference."""
    go_on = """
        import json, sys
        import keras
        import lossforge
        import numpy as np
        given = np.load(sys.argv[1] + "/data.npz")
        found = []
        for name in ("huber", "cross_entropy"):
            model = keras.models.load_model(f"{sys.argv[1]}/{name}.keras")
            options = {"epochs": 3, "verbose": 0, "shuffle": False, "sample_weight": given["weight"]}
            history = model.fit(given["x"], given[name], **options)
            found.append([model.loss.parameters, history.history["loss"]])
        print(json.dumps(found))
        """
    weight = np.linspace(0, 1, 48)
    np.savez(tmp_path / "data.npz", x=X, huber=Y, cross_entropy=LABELS[:, None], weight=weight)
    saved(huber.keras(delta=0.3), tmp_path / "huber.keras")
    saved(cross_entropy.keras(), tmp_path / "cross_entropy.keras", LABELS, 3)
    processes = [start(go_on, tmp_path, KERAS_BACKEND=backend) for backend in ("jax", "torch")]
    expected = []
    for name, y in (("huber", Y), ("cross_entropy", LABELS[:, None])):
        model = keras.models.load_model(tmp_path / f"{name}.keras")
        history = model.fit(X, y, epochs=3, verbose=0, shuffle=False, sample_weight=weight)
        expected.append([model.loss.parameters, history.history["loss"]])
    for process in processes:
        for (parameters, losses), (same, wanted) in zip(result(process), expected, strict=True):
            assert parameters == same
            agree(losses, wanted)


def test_replicas_share_a_batch():
    """Two replicas with half a batch each take the step that one takes with the whole batch."""
    program = """
        import json
        import tensorflow as tf, keras, numpy as np
        from lossforge.catalogue import squared_error
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
        )
        x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
        results = []
        for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
            with tf.distribute.MirroredStrategy(devices).scope():
                model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="ones")])
                model.compile(keras.optimizers.SGD(0.1), loss=squared_error.keras())
            history = model.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0)
            results.append([history.history["loss"], model.get_weights()[0].ravel().tolist()])
        print(json.dumps(results))
        """
    one, two = result(start(program))
    for found, expected in zip(two, one, strict=True):
        agree(found, expected)
