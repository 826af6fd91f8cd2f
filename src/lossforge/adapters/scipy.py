"""SciPy: a loss as the objective of `scipy.optimize.minimize`, with its gradient and Hessian products.

SciPy itself is not needed here; an `Objective` is a plain function of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lossforge.compiler import Reduction
from lossforge.errors import ParameterError, ShapeError, UnsupportedError
from lossforge.frontends.signature import check_shapes

if TYPE_CHECKING:
    from lossforge.loss import Loss


@dataclass(frozen=True)
class Model:
    """How the prediction comes from the vector that is optimised."""

    predict: Callable[[np.ndarray], np.ndarray]
    """vector → prediction, of any shape with the right number of entries."""
    vjp: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """vector, gradient with respect to the prediction → gradient with respect to the vector."""
    linear: bool
    """Whether the prediction is linear in the vector."""


IDENTITY = Model(lambda x: x, lambda x, g: g, linear=True)
"""The vector is the prediction itself."""


def linear_model(design: Any) -> Model:
    """``design @ x``, for a matrix with a row for each sample: an array, sparse, or a `LinearOperator`.

    With several outputs a sample the vector is a matrix of coefficients (columns × outputs), flattened.
    """
    if not hasattr(design, "ndim"):
        design = np.asarray(design)
    if design.ndim != 2:
        raise ShapeError(f"design has {design.ndim} dimensions; expected a matrix with one row a sample")
    rows, columns = design.shape

    def predict(x: np.ndarray) -> np.ndarray:
        if x.size % columns:
            raise ShapeError(f"x has {x.size} entries, which is no multiple of the {columns} columns of the design")
        return np.asarray(design @ x.reshape(columns, -1))

    def vjp(x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        return np.asarray(design.T @ gradient.reshape(rows, -1))

    return Model(predict, vjp, linear=True)


@dataclass(frozen=True, eq=False)
class Objective:
    """``fun(x) -> (value, gradient)`` for ``minimize(fun, x0, jac=True)``; made by `objective`."""

    loss: Loss
    wrt: str
    bound: Mapping[str, np.ndarray]
    """The arguments other than the prediction."""
    options: dict[str, Any]
    """Weight, mask, reduction and parameters."""
    shape: tuple[int | None, ...]
    """The shape of the prediction; None for the one size that the length of the vector decides."""
    model: Model

    def __call__(self, x: Any) -> tuple[float, np.ndarray]:
        """The loss and its gradient, a float64 vector of the length of `x`.

        Raises:
            ShapeError: the length of `x` does not fit the prediction's shape.
        """
        x = _vector(x)
        value, gradient = self.loss.value_and_grad(**self._arguments(x), wrt=self.wrt, **self.options)
        return float(value), _vector(self.model.vjp(x, gradient))

    def hessp(self, x: Any, p: Any) -> np.ndarray:
        """The Hessian at `x` times `p`: pass it as ``minimize(…, hessp=fun.hessp)`` to the Newton methods.

        Raises:
            UnsupportedError: the model is a function, whose second derivative is not known.
        """
        if not self.model.linear:
            raise UnsupportedError(
                f"{self.loss.name}: hessp needs the second derivative of model=; leave it out (L-BFGS-B and "
                f"CG do without), or give a linear model by design="
            )
        x, p = _vector(x), _vector(p)
        arguments = self._arguments(x)
        direction = self._shaped(self.model.predict(p))
        product = self.loss.hvp(**arguments, vector=direction, wrt=self.wrt, **self.options)
        return _vector(self.model.vjp(x, product))

    def _arguments(self, x: np.ndarray) -> dict[str, Any]:
        return {**self.bound, self.wrt: self._shaped(np.asarray(self.model.predict(x), dtype=np.float64))}

    def _shaped(self, prediction: np.ndarray) -> np.ndarray:
        known = math.prod(n for n in self.shape if n is not None)
        fits = prediction.size % known == 0 if None in self.shape and known else prediction.size == known
        if not fits:
            raise ShapeError(
                f"{self.loss.name}: the prediction has {prediction.size} entries (shape {prediction.shape}), "
                f"but {self.wrt!r} has the shape {self.shape}"
            )
        return prediction.reshape([-1 if n is None else n for n in self.shape])

    def __repr__(self) -> str:
        return f"<objective of {self.loss!r} for scipy.optimize.minimize, {self.wrt!r} of shape {self.shape}>"


def _vector(x: Any) -> np.ndarray:
    return np.asarray(x, dtype=np.float64).reshape(-1)


def objective(
    loss: Loss,
    *arrays: Any,
    design: Any = None,
    model: Callable[[np.ndarray], Any] | None = None,
    vjp: Callable[[np.ndarray, np.ndarray], Any] | None = None,
    wrt: str | None = None,
    shape: Sequence[int] | None = None,
    weight: Any = None,
    mask: Any = None,
    reduction: Reduction = "mean",
    **parameters: Any,
) -> Objective:
    """`loss` as ``fun(x) -> (value, gradient)``, with everything but the prediction bound.

    The vector `x` is the prediction itself, flattened, or what the prediction is computed from::

        fun = loss.scipy(true, delta=2.0)                      # x: the prediction
        fun = loss.scipy(true, design=X)                       # x: coefficients; prediction X @ x
        fun = loss.scipy(true, model=predict, vjp=predict_vjp) # x: whatever `predict` takes

        scipy.optimize.minimize(fun, x0, jac=True)
        scipy.optimize.minimize(fun, x0, jac=True, hessp=fun.hessp, method="Newton-CG")

    Args:
        loss: the loss.
        arrays: its arguments other than the prediction, in their order; they may also go by name.
        design: the matrix of a linear model, with a row for each sample: an array, a sparse matrix or a
            `LinearOperator`. Where a sample has several outputs, `x` is a matrix of coefficients (columns of
            the design × outputs), flattened.
        model: ``x -> prediction``.
        vjp: ``(x, gradient) -> gradient with respect to x``: the transpose of the model's Jacobian times the
            gradient with respect to the prediction, which comes in the prediction's shape.
        wrt: the argument that is predicted, if not the loss's (first) prediction.
        shape: the prediction's shape, if the other arguments leave more than one of its sizes open.
        weight: as for a call of the loss.
        mask: as for a call of the loss.
        reduction: "mean" or "sum".
        parameters: parameters of the loss.

    Raises:
        ParameterError: an unknown parameter, a missing or surplus argument, or contradictory options.
        ShapeError: arguments that disagree, or a prediction whose shape they leave open.
    """
    wrt = loss.predictions[0] if wrt is None else wrt
    if wrt not in loss.arguments:
        raise ParameterError(f"{loss.name}: wrt={wrt!r} is no argument; there are {', '.join(loss.arguments)}")
    if reduction not in ("mean", "sum"):
        raise ParameterError(f'{loss.name}: reduction={reduction!r}; an objective is one number: "mean" or "sum"')
    if (model is None) != (vjp is None) or (model is not None and design is not None):
        raise ParameterError(f"{loss.name}: give model= and vjp= together, or design=, or none of them")
    extra = {"weight": weight, "mask": mask}
    named = {k: v for k, v in {**parameters, **extra}.items() if k in loss.arguments and v is not None}
    bound = _bind(loss, wrt, arrays, named)
    values = {k: v for k, v in parameters.items() if k not in named}
    loss.parameter_values(values)
    options = {"reduction": reduction, **values, **{k: v for k, v in extra.items() if k not in named}}
    if design is not None:
        chosen = linear_model(design)
    else:
        chosen = IDENTITY if model is None or vjp is None else Model(model, vjp, linear=False)
    return Objective(loss, wrt, bound, options, _shape(loss, wrt, bound, shape), chosen)


def _bind(loss: Loss, wrt: str, arrays: Sequence[Any], named: Mapping[str, Any]) -> dict[str, np.ndarray]:
    others = [a for a in loss.arguments if a != wrt and a not in named]
    if wrt in named:
        raise ParameterError(f"{loss.name}: {wrt!r} is what is optimised; it comes from x")
    if len(arrays) != len(others):
        raise ParameterError(
            f"{loss.name}: {len(arrays)} arrays given, but it takes {len(others)} besides the prediction "
            f"{wrt!r} ({', '.join(others) or 'none'})"
        )
    return {k: np.asarray(v) for k, v in {**dict(zip(others, arrays, strict=True)), **named}.items()}


def _shape(
    loss: Loss, wrt: str, bound: Mapping[str, np.ndarray], given: Sequence[int] | None
) -> tuple[int | None, ...]:
    """The prediction's shape, as far as the other arguments tell it."""
    if given is not None:
        return tuple(given)
    orders = dict(zip(loss.arguments, loss.signature.arguments, strict=True))
    sizes = check_shapes(loss.name, list(bound), [orders[a] for a in bound], [a.shape for a in bound.values()])
    shape: list[int | None] = []
    for axis in orders[wrt]:
        shape.extend(sizes.get(axis, (None,)))
    if shape.count(None) > 1:
        unknown = [a for a in orders[wrt] if a not in sizes]
        raise ShapeError(
            f"{loss.name}: the sizes of {', '.join(map(repr, unknown))} of the prediction {wrt!r} are not "
            f"known; give shape="
        )
    return tuple(shape)


__all__ = ["Model", "Objective", "linear_model", "objective"]
