"""Keras 3: a loss for `model.compile`, on the TensorFlow, JAX and PyTorch backends.

`KerasLoss` brings what Keras passes into the order, rank and kind that the definition asks for, and calls the
loss, which meets the backend's arrays through its own adapter.

`keras.models.load_model` finds the class of a saved loss by the name that it is registered under here.
Importing lossforge after keras is enough for that; otherwise import this module first.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from lossforge.adapters.registry import is_loss
from lossforge.compiler import Reduction
from lossforge.dtypes import FLOATS, INTEGERS, computing
from lossforge.errors import DefinitionError, ParameterError, ShapeError
from lossforge.frontends.signature import dimensions
from lossforge.ir import Axis, Kind

if TYPE_CHECKING:
    from lossforge.loss import Loss

CHANNELS = frozenset({"class", "classes", "channel", "channels"})
"""Axes that Keras keeps last where a definition has them before a starred axis."""

_REDUCTIONS: Mapping[str | None, Reduction] = {
    "mean": "mean",
    "mean_with_sample_weight": "mean",
    "sum_over_batch_size": "sum",  # divided by a count of its own
    "sum": "sum",
    "none": "none",
    None: "none",
}
"""Keras' names of reductions, and ours."""


def keras_loss(loss: Loss, **options: Any) -> KerasLoss:
    """`loss` for Keras; the options are those of `KerasLoss`."""
    return KerasLoss(loss, **options)


@keras.saving.register_keras_serializable(package="lossforge")
class KerasLoss(keras.losses.Loss):
    """A loss of lossforge as a `keras.losses.Loss`.

    `y_pred` is the loss's prediction, `y_true` its other argument. Where there are several others, `y_true`
    is a tuple of them in the order of the definition, or a dictionary by name; so is `y_pred` for several
    predictions. `y_true` is ignored where all arguments are predictions.

    As in Keras, a last dimension of size 1 makes no difference between targets, predictions and weights:
    (N, 1) class indices go with (N, C) logits, and (N,) targets with (N, 1) predictions. Class indices may
    come as floats. `sample_weight` has the shape of the unreduced loss or of its leading axes. A mask that
    a layer has put on `y_pred` is honoured.

    The loss is saved by reference, as "module:qualified.name", with its parameters; nothing of its code is
    in the file. Its module must be importable where the model is loaded, or the loss be given by name, as
    in ``load_model(path, custom_objects={"my_loss": my_loss})``.

    Args:
        loss: the loss.
        reduction: "mean" (also under Keras' name, "mean_with_sample_weight") divides by the sum of the
            weights that count, as everywhere in lossforge. "sum_over_batch_size" divides by the number of
            entries that are not masked out, whatever their weight. "sum"; "none" or None for the loss of
            each entry.
        name: the loss's own by default.
        data_format: "channels_last" or "channels_first": where the arrays of a loss over
            ``batch class *space`` have their class (or channel) axis. By default
            ``keras.config.image_data_format()``.
        parameters: values for the loss's parameters, constant here: Keras trains what belongs to layers.

    Raises:
        ParameterError: an unknown parameter, or no number; an unknown reduction or data format.
    """

    autograph_info__: Mapping[str, Any] = {}  # TensorFlow's AutoGraph then calls it as it is

    def __init__(
        self,
        loss: Loss,
        *,
        reduction: str | None = "mean",
        name: str | None = None,
        data_format: str | None = None,
        **parameters: Any,
    ) -> None:
        data_format = data_format or keras.config.image_data_format()
        _require(loss, "reduction", reduction, tuple(_REDUCTIONS))
        _require(loss, "data_format", data_format, ("channels_last", "channels_first"))
        super().__init__(name=name or loss.name, reduction=reduction)
        self.loss = loss
        self.data_format = data_format
        self.parameters = {k: _plain(loss, k, v) for k, v in loss.parameter_values(parameters).items()}
        self.definition = loss.plan(**self.parameters).definition

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The loss after its reduction."""
        mask = getattr(y_pred, "_keras_mask", None)
        arrays = self._arrays(y_true, y_pred)
        weight = self._weight(sample_weight, arrays)
        value = self._loss(arrays, _REDUCTIONS[self.reduction], weight=weight, mask=mask)
        if self.reduction == "sum_over_batch_size":
            value = ops.divide_no_nan(value, self._count(arrays, mask, value.dtype))
        return value if self.reduction in ("sum", "none", None) else _of_one_replica(value)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each entry."""
        return self._loss(self._arrays(y_true, y_pred), "none")

    def _loss(self, arrays: Sequence[Any], reduction: Reduction, **options: Any) -> Any:
        value = self.loss(*arrays, **options, reduction=reduction, **self.parameters)
        place = self._moved(self.definition.order)
        return value if reduction != "none" or place is None else ops.moveaxis(value, place, -1)

    # ------------------------------------------------------------------ arguments

    def _arrays(self, y_true: Any, y_pred: Any) -> list[Any]:
        """The arguments in the order of the definition."""
        several = isinstance(y_pred, tuple | list | dict)
        predictions = self.loss.predictions if several else self.loss.predictions[:1]
        targets = [a for a in self.loss.arguments if a not in predictions]
        given = self._by_name(y_pred, predictions, "y_pred") | self._by_name(y_true, targets, "y_true")
        tensors = {name: ops.convert_to_tensor(value) for name, value in given.items()}
        real = computing(_dtype(tensors[p]) for p in predictions)
        ports = {p.name: p for p in self.definition.arguments}
        for name in targets:
            if ports[name].node.kind is Kind.INDEX and _dtype(tensors[name]) not in INTEGERS:
                tensors[name] = ops.cast(tensors[name], "int32")
            elif _dtype(tensors[name]) == "float64":  # as NumPy's arrays are; the predictions decide
                tensors[name] = ops.cast(tensors[name], real)
        first, order = predictions[0], ports[predictions[0]].order
        tensors[first] = prediction = _fitted(tensors[first], order, {})
        shape = tuple(prediction.shape)
        widths = {axis: part.stop - part.start for axis, part in dimensions(order, len(shape)).items()}
        for name, tensor in tensors.items():
            if name != first:
                other = ports[name].order
                tensors[name] = _fitted(tensor, other, widths, grow=shape[-1:] == (1,) and other[-1:] == order[-1:])
        return [self._channels_first(tensors[a], ports[a].order) for a in self.loss.arguments]

    def _by_name(self, value: Any, names: Sequence[str], given: str) -> dict[str, Any]:
        if not names:
            return {}
        if isinstance(value, dict) and set(value) == set(names):
            return dict(value)
        if len(names) == 1 and not isinstance(value, dict):
            return {names[0]: value}
        if isinstance(value, tuple | list) and len(value) == len(names):
            return dict(zip(names, value, strict=True))
        raise ShapeError(
            f"{self.loss.name}: {given} stands for {len(names)} arguments ({', '.join(names)}); give a tuple "
            f"in this order or a dictionary. Where Keras passes one array only, as model.fit does for each "
            f"output, stack them along an axis and take them apart in the definition"
        )

    def _weight(self, sample_weight: Any, arrays: Sequence[Any]) -> Any:
        if sample_weight is None:
            return None
        weight = ops.convert_to_tensor(sample_weight)
        if _dtype(weight) == "float64":
            weight = ops.cast(weight, computing(_dtype(a) for a in arrays if _dtype(a) in FLOATS))
        rank = len(self._shape(arrays))
        if len(weight.shape) == rank + 1 and weight.shape[-1] == 1:
            weight = ops.squeeze(weight, -1)
        return self._channels_first(weight, self.definition.order) if len(weight.shape) == rank else weight

    def _channels_first(self, array: Any, order: Sequence[Axis]) -> Any:
        """The array with its class axis where the definition has it."""
        place = self._moved(order)
        return array if place is None else ops.moveaxis(array, -1, place)

    def _moved(self, order: Sequence[Axis]) -> int | None:
        """The place in the definition of an axis that Keras keeps last."""
        before_star = len(order) > 1 and order[-1].startswith("*") and order[-2] in CHANNELS
        return len(order) - 2 if before_star and self.data_format == "channels_last" else None

    # ------------------------------------------------------------------ counts

    def _shape(self, arrays: Sequence[Any]) -> list[Any]:
        """The sizes of the unreduced loss; tensors for those that are not known yet."""
        sizes: dict[Axis, tuple[Any, ...]] = {}
        for port, array in zip(self.definition.arguments, arrays, strict=True):
            shape = tuple(ops.shape(array))
            sizes |= {axis: shape[part] for axis, part in dimensions(port.order, len(shape)).items()}
        return [n for axis in self.definition.order for n in sizes[axis]]

    def _count(self, arrays: Sequence[Any], mask: Any, dtype: Any) -> Any:
        """The number of entries of the loss that are not masked out."""
        entries = ops.cast(math.prod(self._shape(arrays)), dtype)
        return entries if mask is None else entries * ops.mean(ops.cast(mask, dtype))

    # ------------------------------------------------------------------ as an object

    def __repr__(self) -> str:
        parameters = "".join(f", {k}={v!r}" for k, v in self.parameters.items())
        return f"KerasLoss({self.loss.name}{parameters}, reduction={self.reduction!r})"

    def get_config(self) -> dict[str, Any]:
        """A reference to the loss, its parameters, and the options."""
        return {
            **super().get_config(),
            "loss": f"{self.loss.__module__}:{self.loss.__qualname__}",
            "parameters": {k: list(v) if isinstance(v, tuple) else v for k, v in self.parameters.items()},
            "data_format": self.data_format,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> KerasLoss:
        """The loss of a configuration.

        Raises:
            DefinitionError: the loss cannot be found by its reference.
        """
        options = dict(config)
        loss = _find(options.pop("loss"))
        for name, value in options.pop("parameters").items():
            options[name] = tuple(value) if isinstance(value, list) else value
        return cls(loss, **options)


def _find(reference: str) -> Loss:
    module, _, name = reference.partition(":")
    found = keras.saving.get_registered_object(name)
    reason = "it is not a Loss"
    if found is None:
        try:
            found = reduce(getattr, name.split("."), importlib.import_module(module))
        except (ImportError, AttributeError) as error:
            reason = str(error)
    if is_loss(found):
        return found
    raise DefinitionError(
        f"the saved loss {reference!r} cannot be imported here ({reason}); make its module importable, or "
        f"give the loss by name, as in load_model(path, custom_objects={{{name!r}: the_loss}})"
    )


def _require(loss: Loss, option: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        raise ParameterError(f"{loss.name}: {option}={value!r}; expected {' or '.join(map(repr, known))}")


def _plain(loss: Loss, name: str, value: Any) -> Any:
    """A parameter's value as something that can be written to a file."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str | tuple):
        return value
    raise ParameterError(
        f"{loss.name}: parameter {name!r} is a {type(value).__name__}; in Keras it is a number, saved with "
        f"the model. To learn it, call the loss itself in a layer of yours (self.add_loss) or in train_step"
    )


def _dtype(tensor: Any) -> str:
    return str(keras.backend.standardize_dtype(tensor.dtype))


def _fitted(array: Any, order: Sequence[Axis], widths: Mapping[Axis, int], *, grow: bool = False) -> Any:
    """The array without a last dimension of size 1 that its axes do not ask for; with one that they lack.

    Args:
        array: an argument.
        order: its axes.
        widths: how many dimensions the axes of the prediction stand for.
        grow: whether the last axis is the prediction's own, and of size 1 there.
    """
    if any(a.startswith("*") and a not in widths for a in order):
        return array
    surplus = len(array.shape) - sum(widths.get(a, 1) for a in order)
    if surplus == 1 and array.shape[-1] == 1:
        return ops.squeeze(array, -1)
    return ops.expand_dims(array, -1) if surplus == -1 and grow else array


def _of_one_replica(mean: Any) -> Any:
    """A mean as one replica's share: TensorFlow's strategies add up the gradients of their replicas."""
    if keras.backend.backend() != "tensorflow":
        return mean
    import tensorflow as tf

    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return mean / replicas if replicas > 1 else mean
