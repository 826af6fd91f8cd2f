"""Huber in Keras, through `model.compile` and `model.fit`: a regression whose records are not all right.

    pip install "lossforge[tensorflow,demo]"
    python examples/huber_keras.py

The diabetes data ships with scikit-learn: ten measurements of each patient, and how far the disease went in a
year (25 to 346 points). In every tenth record for training the decimal point of that number has slipped.
"""

import keras
import numpy as np
from sklearn.datasets import load_diabetes

import lossforge as lf


@lf.loss
def huber(y_true, y_pred, *, delta=1.0):
    """Quadratic for small errors, linear for large ones, so that no single record pulls too hard."""
    error = lf.abs(y_true - y_pred)
    quadratic = lf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


def patients(seed: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], float]:
    """Measurements and targets for training, the same for the test, and the points of disease in a unit of these."""
    rng = np.random.default_rng(seed)
    measured, progress = load_diabetes(return_X_y=True)
    order = rng.permutation(len(progress))
    train, test = order[:300], order[300:]
    recorded = progress.copy()
    recorded[rng.choice(train, 30, replace=False)] *= 10
    centre, unit = np.median(progress), np.std(progress)
    inputs = measured / measured.std(axis=0)
    return (inputs[train], (recorded[train] - centre) / unit), (inputs[test], (progress[test] - centre) / unit), unit


def train(loss: keras.losses.Loss, epochs: int, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """The training loss, and the mean error of the test patients in points, before and after."""
    records, truth, points = patients(seed)
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.005), loss=loss, metrics=["mean_absolute_error"])

    def state() -> tuple[float, float]:
        return model.evaluate(*records, verbose=0)[0], points * model.evaluate(*truth, verbose=0)[1]

    before = state()
    model.fit(*records, epochs=epochs, verbose=0)
    return before, state()


def main(epochs: int = 40, seed: int = 0) -> dict[str, tuple[tuple[float, float], tuple[float, float]]]:
    """Train with Huber and with the squared error; print and return what `train` finds."""
    found = {}
    for loss in (huber.keras(delta=1.0), keras.losses.MeanSquaredError(name="squared_error")):
        found[loss.name] = before, after = train(loss, epochs, seed)
        print(
            f"{loss.name:14}  training loss {before[0]:5.2f} -> {after[0]:5.2f}    "
            f"mean error of the test patients {before[1]:5.1f} -> {after[1]:5.1f} points"
        )
    return found


if __name__ == "__main__":
    main()
