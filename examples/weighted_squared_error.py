"""Weighted squared error with a gradient written by hand, in a NumPy training loop and through SciPy.

    pip install "lossforge[demo]" scipy
    python examples/weighted_squared_error.py

The diabetes data ships with scikit-learn: ten measurements of each patient, and how far the disease went in a year.
The patients with the worst course are few, and matter most: they weigh five times as much.
"""

import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes

import lossforge as lf


@lf.loss
def weighted_squared_error(y_true, y_pred, w):
    """The sum of the squared errors, each times a weight."""
    return np.sum(w * (y_true - y_pred) ** 2)


@weighted_squared_error.gradient
def by_hand(y_true, y_pred, w):
    """Verified when it is registered; a wrong sign, a lost 2 or a lost weight would be refused here."""
    return -2 * w * (y_true - y_pred)


def patients() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measurements with a column of ones, standardised targets, and which patients had the worst course."""
    measured, progress = load_diabetes(return_X_y=True)
    inputs = np.column_stack([measured / measured.std(axis=0), np.ones(len(measured))])
    return inputs, (progress - progress.mean()) / progress.std(), progress > np.quantile(progress, 0.85)


def train(w: np.ndarray, steps: int) -> tuple[np.ndarray, float, float]:
    """Gradient descent on a linear model: coefficients, and the loss before and after."""
    inputs, true, _ = patients()
    coefficients = np.zeros(inputs.shape[1])
    first = float(weighted_squared_error(true, inputs @ coefficients, w))
    step = 0.5 / np.linalg.eigvalsh(inputs.T @ (w[:, None] * inputs)).max()
    for _ in range(steps):
        gradient = weighted_squared_error.grad(true, inputs @ coefficients, w)
        coefficients -= step * inputs.T @ gradient
    return coefficients, first, float(weighted_squared_error(true, inputs @ coefficients, w))


def main(steps: int = 2000) -> dict[str, float]:
    """Train with and without weights, in NumPy and through SciPy, and report the errors of the worst cases."""
    inputs, true, worst = patients()
    weight = np.where(worst, 5.0, 1.0)

    def error_of_the_worst(coefficients: np.ndarray) -> float:
        return float(np.abs(true - inputs @ coefficients)[worst].mean())

    plain, *_ = train(np.ones_like(weight), steps)
    weighted, before, after = train(weight, steps)
    objective = weighted_squared_error.scipy(true, weight, design=inputs)
    found = minimize(objective, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B")
    results = {
        "loss before": before,
        "loss after, NumPy": after,
        "loss after, SciPy": float(found.fun),
        "error of the worst cases, unweighted": error_of_the_worst(plain),
        "error of the worst cases, weighted": error_of_the_worst(weighted),
    }
    for name, value in results.items():
        print(f"{name:40} {value:8.3f}")
    return results


if __name__ == "__main__":
    main()
