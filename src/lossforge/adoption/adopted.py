"""A loss that was written for another library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lossforge.adapters.numpy import by_operations
from lossforge.adoption.agreement import OtherGradient
from lossforge.adoption.arguments import arguments, as_array, predictions
from lossforge.adoption.by_hand import by_hand
from lossforge.adoption.elsewhere import examples, fits, is_alike, singles, with_values
from lossforge.adoption.library import device_of, front_end, library_of
from lossforge.adoption.original import Original
from lossforge.adoption.study import Study
from lossforge.compiler import Definition, Reduction
from lossforge.errors import AdoptionError, LossforgeError, ShapeError
from lossforge.frontends.signature import Signature
from lossforge.gradient import HandWritten
from lossforge.interpreter import evaluate
from lossforge.ir import Kind
from lossforge.loss import Call, Loss
from lossforge.points import Style

_SIMPLIFIED = 1e-6
"""Of the value: what identities may change in float64, where sums cancel."""


def adopt(
    fn: Callable[..., Any],
    *example_inputs: Any,
    wrt: str | int | Sequence[str | int] | None = None,
    layout: str | None = None,
    gradient: Callable[..., Any] | None = None,
    name: str | None = None,
    **parameters: Any,
) -> AdoptedLoss:
    """A `Loss` of a function or module written for PyTorch, TensorFlow, Keras, JAX or NumPy.

    Arguments keep their order. Numbers that a module keeps as attributes, and arguments with numeric defaults, become
    parameters of the loss, by keyword. A loss that ends in a mean over everything can be called with ``weight=``,
    ``mask=`` and ``reduction="none"``.

    Args:
        fn: the loss; a class with arguments is given as an instance.
        example_inputs: one array for each array argument; they tell rank, dtype, and which values are legal
            (probabilities, labels, signs …). Sizes are kept open.
        wrt: the predictions, by name or position, if not recognised by name and not the first floating argument.
        layout: names for the axes of the prediction, such as ``"batch class *space"``.
        gradient: a gradient written by hand, taking the arguments of `fn`; it is verified as by `Loss.gradient`.
        name: another name than the function's.
        parameters: values for options of the function.

    Raises:
        AdoptionError: an operation cannot be imported, or the result would not agree with the original; with the
            operation, the line of the source where it is known, and what to do.
        GradientMismatchError: `gradient` is wrong.
    """
    library = library_of(fn, example_inputs)
    arrays = [as_array(x) for x in example_inputs]
    device = device_of(library, example_inputs)
    names, options, numbers = arguments(front_end(library, fn, device), len(arrays), parameters)
    return AdoptedLoss(fn, library, arrays, names, numbers, options, wrt, layout, gradient, name, device)


class AdoptedLoss(Loss):
    """A loss that was written for another library; `original` is the function itself."""

    def __init__(
        self,
        fn: Callable[..., Any],
        library: str,
        arrays: Sequence[np.ndarray],
        names: Sequence[str],
        numbers: Mapping[str, float],
        options: Mapping[str, Any],
        wrt: Any,
        layout: str | None,
        gradient: Callable[..., Any] | None,
        name: str | None,
        device: str | None,
    ) -> None:
        self._present(fn, name)
        self.original = fn
        self.library = library
        """The library that the loss was written for."""
        front = front_end(library, fn, device)
        self._recipe = (fn, library, arrays, names, numbers, options, wrt, layout, gradient, name, device)
        self._variants: dict[Any, AdoptedLoss] = {}
        self._elsewhere: dict[Any, AdoptedLoss | LossforgeError] = {}
        self._singles: dict[Any, bool] = {}
        self.arguments = tuple(names)
        self.predictions = predictions(names, arrays, wrt)
        original = Original(self.name, front, arrays, names, numbers, options, self.predictions)
        with original.placing():
            try:
                study = Study(original, layout)
                definition, self.reduction = study.definition(whole=gradient is None)
            except OtherGradient:  # the library's own gradient may not be the derivative
                literal = getattr(front, "literal", None)
                if not literal:
                    raise
                front.rules = {**front.rules, **literal}
                study = Study(original, layout)
                definition, self.reduction = study.definition(whole=gradient is None)
        self.static = {k: v for k, v in numbers.items() if k not in study.numbers}
        """Numbers that shape the graph: with another value, the function is read again."""
        self.defaults = {**study.numbers, **self.static}
        self._definitions[()] = definition
        self.signature = Signature(tuple(p.order for p in definition.arguments), definition.order)
        self._study = study
        if gradient is not None:
            self._register(gradient, self.predictions[0])
        with original.placing():
            self._try(arrays)
        study.original.forget()

    def _try(self, arrays: Sequence[np.ndarray]) -> None:
        """Run the formula as NumPy's operations once, as every other framework will run it: simplified.

        Raises:
            AdoptionError: it cannot be run, or is no longer what was read.
        """
        plan = super().plan("sum" if self.reduction == "none" else self.reduction)
        wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
        given = [*wide, *self._study.numbers.values()]
        try:
            found, *_ = by_operations(plan.value_and_gradient(self.predictions), given)
        except Exception as error:
            raise AdoptionError(
                f"{self.name}: as read, it cannot be run by array operations ({type(error).__name__}: {error}); it is not "
                f"adopted. Please report this loss"
            ) from error
        definition = self._definitions[()]
        ports = (*definition.arguments, *definition.parameters)
        (read,) = evaluate([definition.source or definition.value], dict(zip(ports, given, strict=True)))
        total = np.sum if self.reduction == "none" else np.mean
        value, size = total(read), total(np.abs(read))
        if np.isfinite(size) and not abs(found - value) <= _SIMPLIFIED * max(size, _SIMPLIFIED):
            raise AdoptionError(
                f"{self.name}: simplified, it is {float(found):.6g} for the examples, as read {float(value):.6g}; it is not "
                f"adopted. Please report this loss"
            )

    def definition(self, **options: Any) -> Definition:
        """The imported definition."""
        return self._definitions[()]

    def _variant(self, values: Mapping[str, Any]) -> AdoptedLoss:
        """The loss for other values of numbers that shape its graph."""
        changed = {k: v for k, v in values.items() if k in self.static and v != self.static[k]}
        if not changed:
            return self
        for key, value in changed.items():
            if not isinstance(value, int | float):
                raise AdoptionError(f"{self.name}: {key} shapes the graph of this loss; give a Python number")
        chosen = tuple(sorted(changed.items()))
        if chosen not in self._variants:
            fn, library, arrays, names, numbers, *rest = self._recipe
            self._variants[chosen] = AdoptedLoss(fn, library, arrays, names, {**numbers, **changed}, *rest)
        return self._variants[chosen]

    def bind(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        weight: Any = None,
        mask: Any = None,
        reduction: Reduction | None = None,
    ) -> Call:
        """See `Loss.bind`."""
        other = self._variant(kwargs)
        if other is not self:
            rest = {k: v for k, v in kwargs.items() if k not in self.static}
            return other.bind(args, rest, weight=weight, mask=mask, reduction=reduction)
        known = self._elsewhere.get(_shapes(args)) if self._elsewhere else None
        if isinstance(known, AdoptedLoss):
            return known.bind(args, kwargs, weight=weight, mask=mask, reduction=reduction)
        try:
            return super().bind(args, kwargs, weight=weight, mask=mask, reduction=reduction)
        except ShapeError as error:
            other = self._read_anew(self._arguments(args, dict(kwargs)), error)
        return other.bind(args, kwargs, weight=weight, mask=mask, reduction=reduction)

    def _check(self, args: Any, kwargs: Any, weight: Any, mask: Any, reduction: Reduction) -> Any:
        found = super()._check(args, kwargs, weight, mask, reduction)
        arrays = self._arguments(args, dict(kwargs))
        shapes = _shapes(arrays)
        if shapes is not None and not self._holds(shapes, arrays):
            raise ShapeError(f"{self.name}: of arrays of shapes {list(shapes)}, the original is something else")
        return found

    def _holds(self, shapes: Sequence[tuple[int, ...]], args: Sequence[Any] | None = None) -> bool:
        """Whether the definition holds for arrays of these shapes, as far as is known; where sizes are 1, it is tried."""
        definition = self._definitions[()]
        if not fits(definition, shapes):
            return False
        single = singles(definition, shapes, self._study.original.shapes)
        if single is None:
            return True
        key = tuple(single)
        if key not in self._singles and args is not None and with_values(args) is not None:
            self._singles[key] = self._study.holds_at(key, definition, self.reduction)
        return self._singles.get(key, True)

    def _read_anew(self, args: Sequence[Any], error: ShapeError) -> AdoptedLoss:
        """The loss for arrays of another rank, or of a size that the definition does not hold for.

        Raises:
            ShapeError: `error`, where something else is wrong with the arrays, or the function does not take them either.
        """
        shapes = _shapes(args)
        main = self.arguments.index(self.predictions[0])
        ranks = self._study.original.shapes
        if shapes is None or self._holds(shapes) or not is_alike(shapes, ranks, main):
            raise error
        if shapes not in self._elsewhere:
            given = None if any(0 in shape for shape in shapes) else with_values(args)
            several = [k for k in self._elsewhere.values() if isinstance(k, AdoptedLoss) and k._holds(shapes)]
            read = [k for k in several if given is None or k._agrees(given)]
            if read:
                self._elsewhere[shapes] = read[0]
            elif given is not None:
                self._elsewhere[shapes] = self._read_at(given)
            else:
                raise ShapeError(
                    f"{error}. It is read anew for such arrays where their values are known: call it with some, once, "
                    f"outside of the function that is traced or compiled"
                ) from None
        found = self._elsewhere[shapes]
        if isinstance(found, LossforgeError):
            raise error from found
        return found

    def _read_at(self, given: Sequence[np.ndarray]) -> AdoptedLoss | LossforgeError:
        fn, library, _, names, numbers, options, wrt, layout, gradient, name, device = self._recipe
        same = [a.ndim for a in given] == [len(s) for s in self._study.original.shapes]
        layout = layout if same or (layout and "*" in layout) else None
        failed: LossforgeError | None = None
        for arrays in examples(self._study.original, given):
            try:
                found = AdoptedLoss(fn, library, arrays, names, numbers, options, wrt, layout, gradient, name, device)
            except LossforgeError as error:
                failed = failed or error
            else:
                if found._agrees(given):
                    return found
                failed = failed or AdoptionError(
                    f"{self.name}: as read anew, it differs from the original for these arrays"
                )
        assert failed is not None
        return failed

    def _agrees(self, given: Sequence[np.ndarray]) -> bool:
        """Whether the definition agrees with the original for the arrays of a call."""
        return self._study.holds_for(given, self._definitions[()], self.reduction)

    def plan(self, reduction: Reduction | None = None, **parameters: Any) -> Any:
        """See `Loss.plan`."""
        other = self._variant(parameters)
        rest = {k: v for k, v in parameters.items() if other is self or k not in self.static}
        return super(AdoptedLoss, other).plan(reduction or other.reduction, **rest)

    def _legal(self, wrt: str) -> Mapping[str, tuple[str, Style]]:
        """What the examples show of the other arguments."""
        found = {
            port.name: sampler.legal(port.order)
            for port, sampler in zip(self.definition().arguments, self._study.original.samplers, strict=True)
            if port.name != wrt and port.node.kind is Kind.FLOAT
        }
        return {name: known for name, known in found.items() if known is not None}

    def _trace_by_hand(self, definition: Definition, wrt: str, function: Callable[..., Any]) -> HandWritten:
        """A gradient written for the same library, read as the loss was."""
        return by_hand(self._study, definition, wrt, function)

    def __reduce__(self) -> Any:
        return AdoptedLoss, self._recipe


def _shapes(arrays: Sequence[Any]) -> tuple[tuple[int, ...], ...] | None:
    """Those of a call's arrays; None if one has none, or not yet."""
    try:
        found = tuple(tuple(a.shape) for a in arrays)
        hash(found)
    except (AttributeError, TypeError, ValueError):  # numbers, and TensorFlow's shapes of unknown rank
        return None
    return found
