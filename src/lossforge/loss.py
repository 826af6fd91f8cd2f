"""The class `Loss`, and the decorator that makes one of a definition."""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast, overload

from lossforge.adapters.base import Adapter, adapter, form_of, framework_of
from lossforge.adapters.registry import LOSSES
from lossforge.compiler import (
    REDUCTIONS,
    WHOLE,
    Definition,
    Plan,
    Reduction,
    indexed,
    require_sizes,
    split_names,
    trace,
)
from lossforge.dtypes import BOOLEANS, FLOATS, INTEGERS
from lossforge.errors import (
    DefinitionError,
    DtypeError,
    IndexRangeError,
    ParameterError,
    ShapeError,
    SignatureError,
)
from lossforge.frontends.language import Traced
from lossforge.frontends.signature import ELEMENTWISE, Signature, check_shapes, lay, parse_signature
from lossforge.gradient import HandWritten
from lossforge.ir import Kind, Port, as_kind, constant, input_, split_axis
from lossforge.launching import function_of_lines
from lossforge.stabilize import stabilize

if TYPE_CHECKING:
    from lossforge.explain import Explanation

PREDICTION_NAMES = (
    "pred", "y_pred", "prediction", "predictions", "preds", "predicted", "y_hat", "yhat", "logits", "logit", "input",
    "inputs", "output", "outputs", "scores", "score", "probs", "prob", "probabilities",
)  # fmt: skip
"""Names by which the prediction is recognised where `wrt` is not given; otherwise it is the first argument."""

_EMPTY = inspect.Parameter.empty


class Call(NamedTuple):
    """A call after all checks: a plan, and arrays for its inputs."""

    plan: Plan
    arrays: tuple[Any, ...]
    adapter: Adapter


class _Recipe(NamedTuple):
    """How calls of one form are bound."""

    plan: Plan
    arrays: Callable[..., tuple[Any, ...]]
    """args, kwargs, weight, mask → an array for each input of the plan."""
    adapter: Adapter


@dataclass(frozen=True)
class IndexCheck:
    """An argument that holds positions along an axis."""

    position: int
    axis: str
    size: int
    masked: bool


_numbers = itertools.count()


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _compilable(method: _Method) -> _Method:
    """Under `torch.compile`, a call of the method is one step of the captured graph."""

    @functools.wraps(method)
    def wrapper(self: Loss, *args: Any, **kwargs: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and torch.compiler.is_compiling():
            from lossforge.adapters.dynamo import call

            return call(self, method.__name__, args, kwargs)
        return method(self, *args, **kwargs)

    return cast(_Method, wrapper)


class Loss:
    """A loss function over named axes, with its derived gradient, for every framework.

    Made by the decorator `loss`. Called with arrays of one framework (NumPy, PyTorch, TensorFlow or JAX) it gives a
    value of the same kind that is differentiable there.
    """

    reduction: Reduction = "mean"
    """What a call does that names no reduction."""

    def __init__(
        self,
        function: Callable[..., Any],
        signature: str | None = None,
        *,
        wrt: str | Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        self._present(function, name)
        self._read(signature, wrt)
        self.definition()  # trace now, so that a faulty definition fails where it is written

    def _present(self, function: Callable[..., Any], name: str | None) -> None:
        """What the loss is called, and empty caches."""
        self.function = function
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))
        self.__name__ = self.name
        self.__qualname__ = getattr(function, "__qualname__", self.name)
        self.__module__ = getattr(function, "__module__", __name__)
        self.__doc__ = getattr(function, "__doc__", None)
        self.__wrapped__ = function
        self._definitions: dict[Any, Definition] = {}
        self._plans: dict[Any, Plan] = {}
        self._by_hand: dict[str, Callable[..., Any]] = {}
        self._recipes: dict[Hashable, _Recipe] = {}
        self._repeated: dict[Hashable, Callable[..., Any]] = {}
        self.static: Mapping[str, Any] = {}
        """Numbers that shape the graph, by parameter."""
        self._hand_written: dict[Any, HandWritten] = {}
        self._whole: dict[int, tuple[Definition, Mapping[str, int]]] = {}
        self.key = f"{self.__module__}.{self.__qualname__} {next(_numbers)}"
        LOSSES[self.key] = self

    # ------------------------------------------------------------------ reading the definition

    def _read(self, signature: str | None, wrt: str | Sequence[str] | None) -> None:
        parsed = parse_signature(signature) if signature is not None else None
        arguments: list[str] = []
        self.defaults: dict[str, Any] = {}
        for p in inspect.signature(self.function).parameters.values():
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise DefinitionError(f"{self.name}: *args and **kwargs have no axes; name every argument")
            positional = p.kind is not p.KEYWORD_ONLY
            declared = parsed is not None and len(arguments) < len(parsed.arguments)
            if positional and (declared or p.default is _EMPTY):
                arguments.append(p.name)
            else:
                self.defaults[p.name] = p.default
        if not arguments:
            raise DefinitionError(f"{self.name}: a loss takes at least one array argument")
        if parsed is None:
            parsed = Signature(((ELEMENTWISE,),) * len(arguments))
        if len(parsed.arguments) != len(arguments):
            raise SignatureError(
                f"{self.name}: the signature {str(parsed)!r} describes {len(parsed.arguments)} arguments, the definition "
                f"has {len(arguments)} ({', '.join(arguments)}); parameters go behind a `*`"
            )
        self.signature = parsed
        self.arguments = tuple(arguments)
        if wrt is None:
            named = [a for a in arguments if a.lower() in PREDICTION_NAMES]
            wrt = named[:1] or arguments[:1]
        self.predictions = (wrt,) if isinstance(wrt, str) else tuple(wrt)
        if unknown := [w for w in self.predictions if w not in arguments]:
            raise DefinitionError(f"{self.name}: wrt={unknown[0]!r} is no argument; there are {', '.join(arguments)}")

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters with their defaults."""
        return dict(self.defaults)

    def definition(self, **options: Any) -> Definition:
        """The traced definition; `options` are values for parameters that are not numbers (flags, names)."""
        static = {k: v for k, v in {**self.defaults, **options}.items() if _is_option(v)}
        key = tuple(sorted(static.items(), key=lambda item: item[0]))
        if key not in self._definitions:
            scalars = [k for k in self.defaults if k not in static]
            self._definitions[key] = self._trace(scalars, static)
        return self._definitions[key]

    def _trace(self, scalars: Sequence[str], options: Mapping[str, Any]) -> Definition:
        """The graph of the function, for these options; a loss that comes from elsewhere has another way to it."""
        return trace(self.function, self.name, self.signature, self.arguments, scalars, options, self.predictions)

    # ------------------------------------------------------------------ binding a call

    def bind(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        weight: Any = None,
        mask: Any = None,
        reduction: Reduction | None = None,
    ) -> Call:
        """Check a call against the signature and find its plan.

        Raises:
            ShapeError, DtypeError, FrameworkError, ParameterError, IndexRangeError: what does not fit, and how to mend it.
        """
        reduction = self.reduction if reduction is None else reduction
        key = self._call_key(args, kwargs, weight, mask, reduction)
        known = self._recipes.get(key)
        if known is not None:
            return Call(known.plan, known.arrays(args, kwargs, weight, mask), known.adapter)
        call, indices = self._check(args, kwargs, weight, mask, reduction)
        if key is not None:
            self._remember(key, call, args, kwargs, weight, mask, indices)
        return call

    def _remember(
        self,
        key: Hashable,
        call: Call,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        weight: Any,
        mask: Any,
        indices: Sequence[IndexCheck],
    ) -> None:
        """Keep how a call of this form is bound: all that is left to check then is the range of class indices."""
        places = {id(a): f"args[{i}]" for i, a in enumerate(args)} | {id(weight): "weight", id(mask): "mask"}
        if len(places) < len(args) + len({id(weight), id(mask)}):
            return  # one array in two places: the next call may have two
        sources: list[str] = []
        namespace: dict[str, Any] = {}
        for i, (port, value) in enumerate(zip(call.plan.inputs, call.arrays, strict=True)):
            if port.name in kwargs:
                sources.append(f"kwargs[{port.name!r}]")
            elif port.name in self.defaults:
                namespace[f"default{i}"] = value
                sources.append(f"default{i}")
            elif id(value) in places:
                sources.append(places[id(value)])
            else:
                return  # converted or reshaped on the way
        laid = function_of_lines(
            "laid", ("args", "kwargs", "weight", "mask"), [f"return {''.join(f'{s}, ' for s in sources)}"], namespace
        )
        used = call.adapter

        def checked(args: Sequence[Any], kwargs: Mapping[str, Any], weight: Any, mask: Any) -> tuple[Any, ...]:
            arrays: tuple[Any, ...] = laid(args, kwargs, weight, mask)
            for check in indices:
                self._check_index(check, used, arrays[check.position], mask if check.masked else None)
            return arrays

        if len(self._recipes) >= _MAX_RECIPES:
            self._forget_calls()
        self._recipes[key] = _Recipe(call.plan, checked if indices else laid, used)

    def _repeat(self, key: Hashable, recipe: _Recipe, call: Call) -> None:
        """Keep how a call of this form is taken, where its framework can say so."""
        lay, ready = recipe.arrays, call.adapter.ready(call.plan, call.arrays)
        if ready is not None:
            self._repeated[key] = lambda args, kwargs, weight, mask: ready(lay(args, kwargs, weight, mask))

    def _forget_calls(self) -> None:
        self._recipes.clear()
        self._repeated.clear()

    def _check(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], weight: Any, mask: Any, reduction: Reduction
    ) -> tuple[Call, list[IndexCheck]]:
        # A definition's own argument of such a name comes first.
        kwargs = dict(kwargs)
        given = {"weight": weight, "mask": mask, "reduction": reduction}
        for name, value in given.items():
            if (name in self.arguments or name in self.defaults) and value is not (
                None if name != "reduction" else self.reduction
            ):
                kwargs.setdefault(name, value)
        weight = None if "weight" in kwargs else weight
        mask = None if "mask" in kwargs else mask
        reduction = self.reduction if "reduction" in kwargs else reduction
        if reduction not in REDUCTIONS:
            raise ParameterError(f'{self.name}: reduction={reduction!r}; expected "mean", "sum" or "none"')
        arrays = self._arguments(args, kwargs)
        parameters = self.parameter_values(kwargs)
        named = [*zip(self.arguments, arrays, strict=True), ("weight", weight), ("mask", mask)]
        used = framework_of(self.name, [*named, *((k, v) for k, v in parameters.items() if not _is_option(v))])
        if used.name == "numpy":
            import numpy as np

            arrays = [np.asarray(a) for a in arrays]
            weight, mask = (None if w is None else np.asarray(w) for w in (weight, mask))
        else:
            weak = [n for n, a in zip(self.arguments, arrays, strict=True) if not used.is_array(a)]
            weak += [n for n, v in (("weight", weight), ("mask", mask)) if isinstance(v, list | tuple)]
            if weak:
                raise ShapeError(f"{self.name}: {weak[0]!r} is a Python number or list; pass a {used.name} array")
        definition = self.definition(**{k: v for k, v in parameters.items() if _is_option(v)})
        self._check_dtypes(used, definition, arrays, weight, mask)
        orders = [p.order for p in definition.arguments]
        sizes = check_shapes(self.name, self.arguments, orders, [used.shape(a) for a in arrays])
        laid = [self._lay(n, used, definition, sizes, v) for n, v in (("weight", weight), ("mask", mask))]
        if None in laid:  # a weight for each sample of an elementwise loss: its axes must be told apart
            definition = self._split(definition, {a: len(s) for a, s in sizes.items() if a.startswith("*")})
            sizes = check_shapes(
                self.name, self.arguments, [p.order for p in definition.arguments], [used.shape(a) for a in arrays]
            )
            laid = [self._lay(n, used, definition, sizes, v) for n, v in (("weight", weight), ("mask", mask))]
        (weight, weight_axes), (mask, mask_axes) = (found or (None, None) for found in laid)
        positive = frozenset(k for k, v in parameters.items() if isinstance(v, int | float) and v >= 0)
        plan = self._plan(definition, reduction, weight_axes, mask_axes, positive).at(parameters)
        require_sizes(plan, sizes)
        indices = self._index_checks(definition, sizes, mask_axes == definition.order)
        for check in indices:
            self._check_index(check, used, arrays[check.position], mask if check.masked else None)
        scalars = [parameters[p.name] for p in definition.parameters]
        extra = [w for w, axes in ((weight, weight_axes), (mask, mask_axes)) if axes is not None]
        return Call(plan, (*arrays, *scalars, *extra), used), indices

    def _arguments(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        if len(args) > len(self.arguments):
            raise ParameterError(
                f"{self.name}: {len(args)} positional arguments given, but it takes {len(self.arguments)} "
                f"({', '.join(self.arguments)}); parameters go by keyword"
            )
        found = dict(zip(self.arguments, args, strict=False))
        for name in self.arguments:
            if name in kwargs:
                if name in found:
                    raise ParameterError(f"{self.name}: argument {name!r} was given twice")
                found[name] = kwargs.pop(name)
        if missing := [a for a in self.arguments if a not in found]:
            raise ParameterError(
                f"{self.name}: argument {missing[0]!r} is missing; it takes {', '.join(self.arguments)}"
            )
        return [found[a] for a in self.arguments]

    def parameter_values(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A value for each parameter: what is given, else its default.

        Raises:
            ParameterError: one is unknown, missing, or no number.
        """
        if unknown := [k for k in kwargs if k not in self.defaults]:
            raise ParameterError(
                f"{self.name}: unknown parameter {unknown[0]!r}; it has {', '.join(self.defaults) or 'none'}"
                f" (and weight, mask, reduction)"
            )
        values = {**self.defaults, **kwargs}
        for name, value in values.items():
            if value is _EMPTY:
                raise ParameterError(f"{self.name}: parameter {name!r} has no default; give it by keyword")
            if isinstance(value, list):
                raise ParameterError(f"{self.name}: parameter {name!r} must be a number, got a list")
            shape = getattr(value, "shape", ())
            if shape is not None and tuple(shape) != ():
                raise ParameterError(
                    f"{self.name}: parameter {name!r} must be a number, got an array of shape {tuple(shape)}"
                )
        return values

    def _check_dtypes(
        self, used: Adapter, definition: Definition, arrays: Sequence[Any], weight: Any, mask: Any
    ) -> None:
        for port, array in zip(definition.arguments, arrays, strict=True):
            dtype = used.dtype(array)
            if port.node.kind is Kind.INDEX and dtype not in INTEGERS:
                raise DtypeError(
                    f"{self.name}: argument {port.name!r} holds class indices and must have an integer dtype, not {dtype}"
                )
            if port.name in definition.predictions and dtype not in FLOATS:
                raise DtypeError(
                    f"{self.name}: the prediction {port.name!r} must be floating point to have a gradient, not {dtype}"
                )
            if dtype not in FLOATS | INTEGERS | BOOLEANS:
                raise DtypeError(f"{self.name}: argument {port.name!r} has dtype {dtype}; expected real numbers")
        if weight is not None and used.is_array(weight) and used.dtype(weight) not in FLOATS | INTEGERS | BOOLEANS:
            raise DtypeError(f"{self.name}: weight has dtype {used.dtype(weight)}; expected real numbers")
        if mask is not None and used.is_array(mask) and used.dtype(mask) not in BOOLEANS | INTEGERS:
            raise DtypeError(
                f"{self.name}: mask has dtype {used.dtype(mask)}; a mask is true or false (mask=m > 0). For fractions use weight="
            )

    def _lay(
        self, name: str, used: Adapter, definition: Definition, sizes: Mapping[str, tuple[int | None, ...]], value: Any
    ) -> tuple[Any, tuple[str, ...] | None] | None:
        """A weight or mask without dimensions it is constant along, and its axes; None if an axis must be split."""
        if value is None:
            return None, None
        shape = used.shape(value) if used.is_array(value) else ()
        found = lay(self.name, name, definition.order, sizes, shape)
        if found is None:
            return None
        axes, dropped = found
        return (used.squeeze(value, dropped) if dropped else value), axes

    def _split(self, definition: Definition, ranks: Mapping[str, int]) -> Definition:
        key = (id(definition), *sorted(ranks.items()))
        if key not in self._definitions:
            split = definition
            for axis, rank in ranks.items():
                split = split.split(axis, rank)
            self._definitions[key] = split
            self._whole[id(split)] = definition, ranks
        return self._definitions[key]

    def _index_checks(
        self, definition: Definition, sizes: Mapping[str, tuple[int | None, ...]], masked: bool
    ) -> list[IndexCheck]:
        """Which arguments hold positions, and below which size; a mask counts where it has the same axes."""
        found = []
        for position, axis in indexed(definition):
            (size,) = sizes[axis]
            if size is not None:
                same_axes = definition.arguments[position].order == definition.order
                found.append(IndexCheck(position, axis, size, masked and same_axes))
        return found

    def _check_index(self, check: IndexCheck, used: Adapter, array: Any, mask: Any) -> None:
        outside = used.out_of_range(array, check.size, mask)
        if outside is not None:
            raise IndexRangeError(
                f"{self.name}: argument {self.arguments[check.position]!r} holds values from {outside[0]} to {outside[1]}, "
                f"but axis {check.axis!r} has size {check.size}: classes are 0 … {check.size - 1}. Leave entries out "
                f"with mask="
            )

    def _plan(
        self,
        definition: Definition,
        reduction: Reduction = "mean",
        weight: tuple[str, ...] | None = None,
        mask: tuple[str, ...] | None = None,
        positive: frozenset[str] = frozenset(),
    ) -> Plan:
        key = (id(definition), reduction, weight, mask, positive, *map(id, self._by_hand.values()))
        if key not in self._plans:
            taken = {p.name for p in (*definition.arguments, *definition.parameters)}
            names = ["weight_" if "weight" in taken else "weight", "mask_" if "mask" in taken else "mask"]
            weight_port = None if weight is None else Port(input_(names[0], weight), weight)
            mask_port = None if mask is None else Port(input_(names[1], mask, Kind.BOOL), mask)
            by_hand = tuple(self._verified(definition, wrt, function) for wrt, function in self._by_hand.items())
            self._plans[key] = Plan(definition, reduction, weight_port, mask_port, positive, by_hand)
        return self._plans[key]

    def plan(self, reduction: Reduction = "mean", **parameters: Any) -> Plan:
        """The plan for plain calls with these parameters (defaults elsewhere): what is explained and exported."""
        values = self.parameter_values({**{k: 1.0 for k, v in self.defaults.items() if v is _EMPTY}, **parameters})
        definition = self.definition(**{k: v for k, v in values.items() if _is_option(v)})
        positive = frozenset(k for k, v in values.items() if isinstance(v, int | float) and v >= 0)
        return self._plan(definition, reduction, positive=positive)

    def _call_key(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], weight: Any, mask: Any, reduction: str
    ) -> Hashable | None:
        """What decides how a call is bound: types and forms of arrays, signs and whole values of parameters.

        None if that is unknown.
        """
        key: list[Any] = [reduction]
        for value in args:
            kind: Any = type(value)
            form = form_of(kind)
            if form is None and value is not None:
                return None
            key.append(value if form is None else form(value))
        if kwargs or weight is not None or mask is not None:
            for name, value in (("weight", weight), ("mask", mask), *kwargs.items()):
                kind = type(value)
                form = form_of(kind)
                if form is not None:
                    key += (name, form(value))
                elif value is None or (name in kwargs and _is_option(value)):
                    key += (name, kind, value)  # apart, as 1 == True
                elif name in kwargs and isinstance(value, int | float):
                    key += (name, value >= 0, value if value in WHOLE or name in self.static else None)
                else:
                    return None
        try:
            hash(result := tuple(key))
        except TypeError:  # sizes that are symbols
            return None
        return result

    # ------------------------------------------------------------------ calling

    @_compilable
    def __call__(
        self, *args: Any, weight: Any = None, mask: Any = None, reduction: Reduction | None = None, **kwargs: Any
    ) -> Any:
        """The loss of arrays of one framework, differentiable there.

        Args:
            args: the array arguments, as the signature says.
            weight: factors for the entries of the loss: all axes of the loss, its leading axes, or a number. A mean
                divides by their sum.
            mask: truth values of such a shape; entries that are masked out count nowhere, whatever they hold.
            reduction: "mean" (the default), "sum", or "none" for the loss of each entry.
            kwargs: parameters of the loss.

        Raises:
            LossforgeError: the call breaks the signature; see `bind`.
        """
        key = self._call_key(args, kwargs, weight, mask, self.reduction if reduction is None else reduction)
        repeated = self._repeated.get(key)
        if repeated is not None:
            return repeated(args, kwargs, weight, mask)
        call = self.bind(args, kwargs, weight=weight, mask=mask, reduction=reduction)
        recipe = self._recipes.get(key)
        if recipe is not None:
            self._repeat(key, recipe, call)
        return call.adapter.call(call.plan, call.arrays)

    @_compilable
    def value_and_grad(
        self,
        *args: Any,
        wrt: str | Sequence[str] | None = None,
        weight: Any = None,
        mask: Any = None,
        reduction: Reduction | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """The loss and its gradient with respect to `wrt` (default: the prediction; a tuple for several names).

        With ``reduction="none"`` the gradient is that of the sum of the losses.
        """
        names, single = self._wrt(wrt)
        reduction = self.reduction if reduction is None else reduction
        call = self.bind(args, kwargs, weight=weight, mask=mask, reduction=reduction)
        self._check_wrt(call.plan, names)
        if reduction == "none":
            (loss,) = call.adapter.run(call.plan.value(), call.arrays)
            gradients = self._summed(call, weight, mask, names, args, kwargs)
        else:
            loss, *gradients = call.adapter.run(call.plan.value_and_gradient(names), call.arrays)
        return loss, gradients[0] if single else tuple(gradients)

    @_compilable
    def grad(
        self,
        *args: Any,
        wrt: str | Sequence[str] | None = None,
        weight: Any = None,
        mask: Any = None,
        reduction: Reduction | None = None,
        **kwargs: Any,
    ) -> Any:
        """The gradient alone; see `value_and_grad`."""
        names, single = self._wrt(wrt)
        reduction = self.reduction if reduction is None else reduction
        call = self.bind(args, kwargs, weight=weight, mask=mask, reduction="sum" if reduction == "none" else reduction)
        self._check_wrt(call.plan, names)
        gradients = call.adapter.run(call.plan.gradient(names), call.arrays)
        return gradients[0] if single else tuple(gradients)

    def _summed(
        self, call: Call, weight: Any, mask: Any, names: tuple[str, ...], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Sequence[Any]:
        total = self.bind(args, kwargs, weight=weight, mask=mask, reduction="sum")
        return total.adapter.run(total.plan.gradient(names), total.arrays)

    @_compilable
    def hessian_diagonal(
        self,
        *args: Any,
        wrt: str | None = None,
        weight: Any = None,
        mask: Any = None,
        reduction: Reduction | None = None,
        **kwargs: Any,
    ) -> Any:
        """∂²loss/∂x² for each entry x of the prediction (or of the argument `wrt`), in its shape."""
        names, _ = self._wrt(wrt)
        reduction = self.reduction if reduction is None else reduction
        call = self.bind(args, kwargs, weight=weight, mask=mask, reduction="sum" if reduction == "none" else reduction)
        self._check_wrt(call.plan, names)
        return call.adapter.run(call.plan.hessian_diagonal(names[0]), call.arrays)[0]

    @_compilable
    def hvp(
        self,
        *args: Any,
        vector: Any,
        wrt: str | None = None,
        weight: Any = None,
        mask: Any = None,
        reduction: Reduction | None = None,
        **kwargs: Any,
    ) -> Any:
        """The Hessian with respect to the prediction (or the argument `wrt`), times `vector`, which has its shape."""
        names, _ = self._wrt(wrt)
        reduction = self.reduction if reduction is None else reduction
        call = self.bind(args, kwargs, weight=weight, mask=mask, reduction="sum" if reduction == "none" else reduction)
        self._check_wrt(call.plan, names)
        position = [p.name for p in call.plan.inputs].index(names[0])
        expected, got = call.adapter.shape(call.arrays[position]), call.adapter.shape(vector)
        if tuple(expected) != tuple(got):
            raise ShapeError(f"{self.name}: vector has shape {tuple(got)}, but {names[0]!r} has {tuple(expected)}")
        return call.adapter.run(call.plan.hvp(names[0]), (*call.arrays, vector))[0]

    def _wrt(self, wrt: str | Sequence[str] | None) -> tuple[tuple[str, ...], bool]:
        if wrt is None:
            return self.predictions, len(self.predictions) == 1
        return ((wrt,), True) if isinstance(wrt, str) else (tuple(wrt), False)

    def _check_wrt(self, plan: Plan, names: Sequence[str]) -> None:
        ports = {p.name: p for p in plan.inputs}
        for name in names:
            if name not in ports or ports[name].node.kind is not Kind.FLOAT:
                legal = [n for n, p in ports.items() if p.node.kind is Kind.FLOAT]
                raise ParameterError(
                    f"{self.name}: no gradient with respect to {name!r}; possible are {', '.join(legal)}"
                )

    # ------------------------------------------------------------------ gradients by hand

    @overload
    def gradient(self, function: Callable[..., Any]) -> Callable[..., Any]: ...
    @overload
    def gradient(self, *, wrt: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...

    def gradient(self, function: Callable[..., Any] | None = None, *, wrt: str | None = None) -> Any:
        """Register a gradient written by hand, as a decorator: ``@loss.gradient`` or ``@loss.gradient(wrt="scale")``.

        The function takes the loss's own arguments and parameters and returns the derivative of the sum of the
        unreduced loss with respect to the prediction (or to `wrt`). It is compared with the derived gradient on points
        of the legal domain, kinks included; a right one is what every framework's backward pass then runs.

        Raises:
            GradientMismatchError: it is wrong; with the point, both values and their ratio.
        """
        if function is None:
            return lambda f: self._register(f, self.predictions[0] if wrt is None else wrt)
        return self._register(function, self.predictions[0])

    def _register(self, function: Callable[..., Any], wrt: str) -> Callable[..., Any]:
        if wrt not in self.arguments and wrt not in self.defaults:
            raise DefinitionError(f"{self.name}: wrt={wrt!r} is neither an argument nor a parameter")
        self._verified(self.definition(), wrt, function)
        self._by_hand[wrt] = function
        self._forget_calls()
        return function

    def _verified(self, definition: Definition, wrt: str, function: Callable[..., Any]) -> HandWritten:
        """A gradient written by hand, for one definition; one for other options is compared before its first use."""
        from lossforge.verify import verify_gradient

        key = (id(definition), wrt, function)
        if key not in self._hand_written:
            if id(definition) in self._whole:
                whole, ranks = self._whole[id(definition)]
                derivative = self._verified(whole, wrt, function).derivative
                for axis, rank in ranks.items():
                    (derivative,) = split_axis([derivative], axis, split_names(axis, rank))
                hand = HandWritten(definition.value, definition.port(wrt).node, derivative)
            else:
                hand = self._trace_by_hand(definition, wrt, function)
                verify_gradient(definition, hand, self.defaults, self._legal(wrt))
            self._hand_written[key] = hand
        return self._hand_written[key]

    def _legal(self, wrt: str) -> Mapping[str, tuple[str, Any]] | None:
        """What is known of the values of inputs but `wrt`; see `verify.verify_gradient`."""
        return None

    def _trace_by_hand(self, definition: Definition, wrt: str, function: Callable[..., Any]) -> HandWritten:
        accepted = inspect.signature(function).parameters
        values = {p.name: Traced(p.node) for p in (*definition.arguments, *definition.parameters)} | dict(
            definition.options
        )
        if missing := [p for p in accepted if p not in values]:
            raise DefinitionError(
                f"{self.name}: the gradient asks for {missing[0]!r}, which is neither an argument nor a parameter of the loss"
            )
        result = function(**{name: value for name, value in values.items() if name in accepted})
        if not isinstance(result, Traced | int | float):
            raise DefinitionError(
                f"{self.name}: the gradient returned a {type(result).__name__}; expected one value computed from its "
                f"arguments" + (" (is a `return` missing?)" if result is None else "")
            )
        node, _ = stabilize(as_kind(result.node if isinstance(result, Traced) else constant(result), Kind.FLOAT))
        target = definition.port(wrt)
        if extra := node.axes - target.node.axes:
            raise DefinitionError(
                f"{self.name}: the gradient with respect to {wrt!r} has the axis {sorted(extra)[0]!r}, which {wrt!r} "
                f"lacks; sum over it, as in lf.sum(…, {sorted(extra)[0]!r})"
            )
        return HandWritten(definition.value, target.node, node)

    # ------------------------------------------------------------------ showing

    def explain(self, *, latex: bool = False, schedule: bool = False, **parameters: Any) -> Explanation:
        """The derivation: forward steps, adjoints, the simplified gradient, kinks and domain. A string; print it.

        With `schedule`, also the sweeps over memory that value and gradient take.
        """
        from lossforge.explain import explain

        return explain(self, latex=latex, schedule=schedule, **parameters)

    def source(self, framework: str = "numpy", **parameters: Any) -> str:
        """The text of a file with value and gradient that needs only `framework`: numpy, torch, tensorflow or jax.

        "numba" gives the kernels that run on the CPU instead, for float32 arrays in C order.
        """
        if framework == "numba":
            from lossforge.kernels import kernel_source

            plan = self.plan(**parameters).at({**self.defaults, **parameters})
            return kernel_source(plan.value_and_gradient(self.predictions))
        from lossforge.codegen.standalone import standalone

        return standalone(self, framework, **parameters)

    # ------------------------------------------------------------------ frameworks

    def torch(self, **options: Any) -> Any:
        """A `torch.nn.Module`; options are parameters of the loss and `reduction`."""
        from lossforge.adapters.torch import LossModule

        return LossModule(self, **options)

    def keras(self, **options: Any) -> Any:
        """A `keras.losses.Loss`; options are parameters of the loss, `reduction` and `name`."""
        from lossforge.adapters.keras import keras_loss

        return keras_loss(self, **options)

    def jax(self, **options: Any) -> Callable[..., Any]:
        """A function of JAX arrays; options are parameters of the loss and `reduction`."""
        from lossforge.adapters.jax import jax_function

        return jax_function(self, **options)

    def scipy(self, *args: Any, **options: Any) -> Callable[..., tuple[float, Any]]:
        """`fun` for ``scipy.optimize.minimize(fun, x0, jac=True)``; see `lossforge.adapters.scipy`."""
        from lossforge.adapters.scipy import objective

        return objective(self, *args, **options)

    # ------------------------------------------------------------------ as an object

    def __repr__(self) -> str:
        parameters = "".join(f", {k}={v!r}" if v is not _EMPTY else f", {k}" for k, v in self.defaults.items())
        return f"<Loss {self.name}({', '.join(self.arguments)}{parameters})>"

    def __reduce__(self) -> str:
        return self.__qualname__  # by reference, as functions are pickled


for _entry in (Loss, Loss.value_and_grad, Loss.grad, Loss.hessian_diagonal, Loss.hvp):
    # TensorFlow's AutoGraph then calls them as they are, rather than rewritten copies of them and all that they call.
    vars_of: Any = _entry
    vars_of.autograph_info__ = {}


_MAX_RECIPES = 256


def _is_option(value: Any) -> bool:
    """Whether a parameter's value shapes the graph (a flag, a name) rather than being a number in it."""
    return value is None or isinstance(value, bool | str | tuple)


@overload
def loss(function: Callable[..., Any], /) -> Loss: ...
@overload
def loss(
    signature: str | None = None, /, *, wrt: str | Sequence[str] | None = None, name: str | None = None
) -> Callable[[Callable[..., Any]], Loss]: ...


def loss(
    target: Callable[..., Any] | str | None = None,
    /,
    *,
    wrt: str | Sequence[str] | None = None,
    name: str | None = None,
) -> Any:
    """Make a `Loss` of a definition.

    ``@loss`` on its own declares an elementwise loss, all of whose arguments share all axes. ``@loss("batch class,
    batch -> batch")`` gives the axes of each argument and of the unreduced loss.

    Args:
        target: the signature, or the definition itself.
        wrt: the predictions, if not recognised by name (`PREDICTION_NAMES`) and not the first argument.
        name: another name than the function's.

    Raises:
        DefinitionError: the definition breaks a rule of the language; see `lossforge.errors`.
    """
    if callable(target):
        return Loss(target, None, wrt=wrt, name=name)
    return lambda function: Loss(function, target, wrt=wrt, name=name)


__all__ = ["Call", "Loss", "adapter", "loss"]
