"""Adopt a loss that was written for another library: PyTorch, TensorFlow and Keras, JAX, or NumPy.

The function is recorded at drawn sizes (`frontends.recording`), read as a graph over named axes
(`frontends.positional`), and the graph is compared with the function itself, value and gradient, on drawn inputs at
two shapes. What cannot be read, or does not agree, is refused.
"""

from __future__ import annotations

import dis
import functools
import importlib
import inspect
import itertools
import math
import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from lossforge import ir
from lossforge.adapters.base import _root
from lossforge.adapters.numpy import by_operations
from lossforge.compiler import Definition, Reduction
from lossforge.errors import AdoptionError, BroadcastWarning, LossforgeError, NotDifferentiableError
from lossforge.frontends.loops import LOOPS
from lossforge.frontends.positional import AxisTable, Importer, Refused, Restart, Tensor
from lossforge.frontends.recording import Different, FrontEnd, Recording, overlay
from lossforge.frontends.rolling import rolled
from lossforge.frontends.signature import Signature
from lossforge.gradient import HandWritten, require_gradient, vjp
from lossforge.interpreter import evaluate
from lossforge.ir import Axis, Kind, Node, Port
from lossforge.loss import PREDICTION_NAMES, Call, Loss
from lossforge.points import STYLES, Style, distribution, one_hot
from lossforge.stabilize import stabilize

_DRAWS = ((7, 11, 5, 13, 17, 19, 23, 29), (11, 5, 13, 17, 19, 23, 29, 31))
"""Sizes of axes in the two recordings: primes, so that products and sums tell where they come from. No product of some
axes is the same in both, or it would pass for a constant."""
_LARGER = ((3, 5, 23, 29, 19, 31, 37, 41), (5, 7, 29, 37, 23, 41, 43, 47))
"""For losses that cut windows out of images."""
_CHANNELS_LAST = ((3, 23, 29, 5, 19, 31, 37, 41), (5, 29, 37, 7, 23, 41, 43, 47))
"""For such as have the channels behind space."""
_LARGEST = ((23, 29, 19, 31, 37, 41, 43, 47), (29, 31, 23, 37, 41, 43, 47, 53))
"""For losses that cut windows out of their inputs."""
_ATTEMPTS = 400
_LARGEST_FURTHER = 2**16
"""Entries of an array at sizes that nothing was recorded at ..."""
_LARGEST_COMPARED = 2**17
"""... and at the second of those that it was recorded at, where those of the examples can stand for them."""
_LARGEST_RECORDED = 2**20
"""Entries of an array of drawn sizes; a loss that needs more is tried at sizes near those of its examples."""
_TOLERANCE = 1e-4
"""Of the largest entry, in float32, which some libraries compute in throughout."""
_ROUNDING = 1e-3
"""What may be the original's own rounding, if it agrees in float64 ..."""
_EXACT = 1e-6
"""... to this part of the largest entry."""


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
    front = _front_end(fn, example_inputs)
    arrays = [_plain(x) for x in example_inputs]
    names, options, numbers = _arguments(fn, front, len(arrays), parameters)
    return AdoptedLoss(fn, front, arrays, names, numbers, options, wrt, layout, gradient, name)


# ------------------------------------------------------------------------------------- what was given


def _front_end(fn: Any, examples: Sequence[Any]) -> FrontEnd:
    if isinstance(fn, Loss):
        raise AdoptionError(f"{fn.name} is a lossforge loss already")
    if not callable(fn):
        raise AdoptionError(f"a {type(fn).__name__} is not a loss; expected a function or a module")
    if inspect.isclass(fn):
        raise AdoptionError(f"{fn.__name__} is a class; give an instance, as in lf.adopt({fn.__name__}(), …)")
    if not examples:
        raise AdoptionError("lf.adopt needs one example array for each array argument, as in lf.adopt(fn, pred, true)")
    library = _library(fn, examples)
    module = importlib.import_module(f"lossforge.frontends.{library}")
    made: FrontEnd = module.front_end(fn)
    return made


def _library(fn: Any, examples: Sequence[Any]) -> str:
    bases = [b.__module__.partition(".")[0] for b in type(fn).__mro__]
    if "torch" in bases:
        return "torch"
    if {"keras", "tf_keras", "tensorflow"} & {*bases}:
        return "tensorflow"
    kinds: list[Any] = [type(x) for x in examples]
    found = {_root(k) for k in kinds} - {None, "numpy"}
    if len(found) == 1:
        return str(found.pop())
    if len(found) > 1:
        raise AdoptionError(f"the examples are arrays of several libraries: {', '.join(sorted(map(str, found)))}")
    used = _libraries_of(fn)
    return used[0] if used else "numpy"


def _libraries_of(fn: Any) -> list[str]:
    """The libraries that a function's text names, or that of functions which it calls, in their order."""
    found: list[str] = []
    waiting, seen = [fn], set()
    while waiting:
        value = waiting.pop(0)
        while isinstance(value, functools.partial):
            value = value.func
        roots = _roots_of(value)
        found += roots
        if not {*roots} & {*_LIBRARIES, *_NEUTRAL}:
            function, owner = _python_function(value)
            if function is not None and function.__code__ not in seen:
                seen.add(function.__code__)
                used, imported = _used_by(function, owner)
                found += imported
                waiting += used
    return [r for r in dict.fromkeys(found) if r in _LIBRARIES]


_LIBRARIES = ("torch", "tensorflow", "jax")
_NEUTRAL = ("numpy", "scipy", "sklearn", "pandas", *sys.stdlib_module_names)
"""Whose functions work on arrays of NumPy, whatever else they know of."""
_ALIASES = {
    "keras": "tensorflow", "tf_keras": "tensorflow", "optax": "jax", "jaxlib": "jax", "monai": "torch", "kornia": "torch",
    "torchvision": "torch",
}  # fmt: skip


def _package(module: object) -> str:
    name = str(module).partition(".")[0]
    return _ALIASES.get(name, name)


def _roots_of(value: Any) -> list[str]:
    """The packages of a value and of its type."""
    if inspect.ismodule(value):
        return [_package(value.__name__)]
    kinds = [] if inspect.isroutine(value) or inspect.isclass(value) else [type(value)]
    return [_package(getattr(v, "__module__", None)) for v in (value, *kinds)]


def _python_function(value: Any) -> tuple[types.FunctionType | None, Any]:
    """The function behind a wrapped one, a method, or an object that is called; and the object that it belongs to."""
    value = inspect.unwrap(value) if callable(value) else value
    owner = getattr(value, "__self__", None if inspect.isroutine(value) else value)
    function = value if inspect.isroutine(value) else getattr(type(value), "__call__", value)  # noqa: B004
    function = getattr(function, "__func__", function)
    return (function, owner) if inspect.isfunction(function) else (None, owner)


def _used_by(function: types.FunctionType, owner: Any) -> tuple[list[Any], list[str]]:
    """What a function's text names (also of modules and of the object that it belongs to); packages that it imports."""
    names, imported = _names(function.__code__)
    used = [function.__globals__[n] for n in names if n in function.__globals__]
    used += [sys.modules[n] for n in imported if n in sys.modules]
    used += [c.cell_contents for c in function.__closure__ or () if _is_filled(c)]
    homes = [m for m in used if inspect.ismodule(m) and not {*_roots_of(m)} & {*_LIBRARIES, *_NEUTRAL}]
    named = [getattr(home, n) for home in (*homes, type(owner)) for n in names if n in vars(home)]
    return [*used, *filter(callable, named)], [_package(n) for n in imported]


def _names(code: types.CodeType) -> tuple[list[str], list[str]]:
    """The names in a function's text, functions within it included; and the modules that it imports."""
    names = list(code.co_names)
    imported = [i.argval for i in dis.get_instructions(code) if i.opname == "IMPORT_NAME"]
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more = _names(inner)
            names, imported = names + more[0], imported + more[1]
    return names, imported


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _plain(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):
        x = x.detach().cpu()
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        if str(array.dtype) == "bfloat16":
            return array.astype(np.float32)
        raise AdoptionError(f"an example of dtype {array.dtype}; losses take real numbers, integers and truth values")
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    return array if array.dtype.kind == "b" or array.dtype == np.int32 else array.astype(np.int64)


def _arguments(
    fn: Any, front: Any, count: int, given: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any], dict[str, float]]:
    """The names of the array arguments, fixed options, and numbers that may become parameters."""
    try:
        signature = front.signature()
        found = list(signature.parameters.values())
    except (TypeError, ValueError):
        found = []
    positional = [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = positional[:count]
    names += [f"x{i}" for i in range(len(names), count)]
    rest = [p for p in found if p.name not in names and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in rest if p.default is p.empty and p.name not in given]
    if missing:
        raise AdoptionError(
            f"the function also takes {missing[0]!r}; give an example array for it, or its value by keyword"
        )
    options: dict[str, Any] = {}
    numbers: dict[str, float] = dict(front.attributes())
    for p in rest:
        value = given.get(p.name, p.default)
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[p.name] = value
        elif p.name in given:
            options[p.name] = value
    for key, value in given.items():
        if key not in {p.name for p in rest} and key not in numbers:
            options[key] = value
        elif key in numbers:
            numbers[key] = value
    return names, options, numbers


# ------------------------------------------------------------------------------------- the loss


class AdoptedLoss(Loss):
    """A loss that was written for another library; `original` is the function itself."""

    def __init__(
        self,
        fn: Callable[..., Any],
        front: FrontEnd,
        arrays: Sequence[np.ndarray],
        names: Sequence[str],
        numbers: Mapping[str, float],
        options: Mapping[str, Any],
        wrt: Any,
        layout: str | None,
        gradient: Callable[..., Any] | None,
        name: str | None,
    ) -> None:
        self._present(fn, name)
        self.original = fn
        self._recipe = (fn, front, arrays, names, numbers, options, wrt, layout, gradient, name)
        self._variants: dict[Any, AdoptedLoss] = {}
        self.arguments = tuple(names)
        self.predictions = _predictions(names, arrays, wrt)
        given = (self.name, front, arrays, list(names), dict(numbers), dict(options), self.predictions, layout)
        try:
            study = _Study(*given)
            definition, self.reduction = study.definition(whole=gradient is None)
        except _OtherGradient:  # the library's own gradient may not be the derivative
            literal = getattr(front, "literal", None)
            if not literal:
                raise
            front.rules = {**front.rules, **literal}
            study = _Study(*given)
            definition, self.reduction = study.definition(whole=gradient is None)
        self.static = {k: v for k, v in numbers.items() if k not in study.numbers}
        """Numbers that shape the graph: with another value, the function is read again."""
        self.defaults = {**study.numbers, **self.static}
        self._definitions[()] = definition
        self.signature = Signature(tuple(p.order for p in definition.arguments), definition.order)
        self._front, self._study = front, study
        self.library = front.name
        """The library that the loss was written for."""
        if gradient is not None:
            self._register(gradient, self.predictions[0])
        self._try(arrays)
        study.answers.clear()  # compared: no need to keep them as long as the loss

    def _try(self, arrays: Sequence[np.ndarray]) -> None:
        """Run the formula as NumPy's operations once, as every other framework will run it.

        Raises:
            AdoptionError: it cannot be run.
        """
        plan = super().plan("sum" if self.reduction == "none" else self.reduction)
        try:
            by_operations(plan.value_and_gradient(self.predictions), [*arrays, *self._study.numbers.values()])
        except Exception as error:
            raise AdoptionError(
                f"{self.name}: as read, it cannot be run by array operations ({type(error).__name__}: {error}); it is not "
                f"adopted. Please report this loss"
            ) from error

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
            fn, front, arrays, names, numbers, options, wrt, layout, gradient, name = self._recipe
            numbers = {**numbers, **changed}
            self._variants[chosen] = AdoptedLoss(
                fn, front, arrays, names, numbers, options, wrt, layout, gradient, name
            )
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
        return super().bind(args, kwargs, weight=weight, mask=mask, reduction=reduction)

    def plan(self, reduction: Reduction | None = None, **parameters: Any) -> Any:
        """See `Loss.plan`."""
        other = self._variant(parameters)
        rest = {k: v for k, v in parameters.items() if other is self or k not in self.static}
        return super(AdoptedLoss, other).plan(reduction or other.reduction, **rest)

    def _legal(self, wrt: str) -> Mapping[str, tuple[str, Style]]:
        """What the examples show of the other arguments."""
        found = {
            port.name: sampler.legal(port.order)
            for port, sampler in zip(self.definition().arguments, self._study.samplers, strict=True)
            if port.name != wrt and port.node.kind is Kind.FLOAT
        }
        return {name: known for name, known in found.items() if known is not None}

    def _trace_by_hand(self, definition: Definition, wrt: str, function: Callable[..., Any]) -> HandWritten:
        """A gradient written for the same library, read as the loss was."""
        return self._study.by_hand(definition, wrt, function)

    def __reduce__(self) -> Any:
        return AdoptedLoss, self._recipe


def _predictions(names: Sequence[str], arrays: Sequence[np.ndarray], wrt: Any) -> tuple[str, ...]:
    if wrt is not None:
        wanted = [wrt] if isinstance(wrt, str | int) else list(wrt)
        found: list[str] = []
        for w in wanted:
            if (isinstance(w, int) and not -len(names) <= w < len(names)) or (isinstance(w, str) and w not in names):
                raise AdoptionError(f"wrt={w!r} is no argument; there are {', '.join(names)}")
            found.append(names[w] if isinstance(w, int) else w)
        return tuple(found)
    floats = [n for n, a in zip(names, arrays, strict=True) if a.dtype.kind == "f"]
    if not floats:
        raise AdoptionError("no example is an array of floating-point numbers, so there is nothing to differentiate")
    named = [n for n in floats if n.lower() in PREDICTION_NAMES]
    return (named or floats)[:1][0:1] and ((named or floats)[0],)  # type: ignore[return-value]


# ------------------------------------------------------------------------------------- reading it


class _OtherGradient(AdoptionError):
    """The value is that of the original, the gradient is not."""


@dataclass
class _Read:
    """A successful import."""

    importer: Importer
    result: Tensor
    shapes: tuple[list[tuple[int, ...]], list[tuple[int, ...]]]
    further: list[tuple[int, ...]]
    """Shapes at which nothing was recorded."""


_Fits: TypeAlias = Callable[[Mapping[Axis, int], Mapping[Axis, int]], bool]


class _Study:
    """One function, with everything that is found out about it."""

    def __init__(
        self,
        name: str,
        front: FrontEnd,
        arrays: Sequence[np.ndarray],
        names: list[str],
        numbers: dict[str, float],
        options: dict[str, Any],
        predictions: Sequence[str],
        layout: str | None,
    ) -> None:
        self.name, self.front, self.arrays, self.names = name, front, arrays, names
        self.all_numbers, self.options = dict(numbers), options
        self.predictions, self.layout = tuple(predictions), layout
        kinds = {"f": Kind.FLOAT, "b": Kind.BOOL, "i": Kind.INDEX}
        self.kinds = [kinds[a.dtype.kind] for a in arrays]
        self.numbers: dict[str, float] = {}
        self.table = AxisTable()
        self.recordings: dict[Any, Recording | LossforgeError] = {}
        self.answers: dict[Any, tuple[np.ndarray, list[np.ndarray] | None]] = {}
        self.samplers = [_Sampler(a) for a in arrays]
        self.kept: dict[Axis, int] = {}
        """Axes that keep the size of the examples, since the function takes other steps at other sizes."""
        self.stuck: dict[Axis, int] = {}
        self._look()

    def _look(self) -> None:
        """Read the function, as far as it is known which axes have size 1 in every call."""
        own = [tuple(a.shape) for a in self.arrays]
        first = overlay([self._record(own)], {})
        importer, _ = self._import(first)  # which dimensions go together
        fixed = {importer.origin[a] for a in importer.fixed if a in importer.origin}
        self.read = self._generalise(own, fixed)
        self._name_axes()
        self.read = replace(self.read, **self._again(self.read.importer.recording))

    def _look_again(self) -> bool:
        """Whether there are axes of size 1 in the examples that another reading keeps at that size.

        A loss may take another way for one channel than for several, which shows when it is compared at the examples.
        """
        roots = zip((r for of in self._roots() for r in of), (n for a in self.arrays for n in a.shape), strict=True)
        sizes: dict[Axis, int] = {}
        for root, n in roots:
            sizes[root] = max(n, sizes.get(root, 1))
        units = {r for r, n in sizes.items() if n == 1} - self.table.units
        if not units:
            return False
        self.table = AxisTable(dict(self.table.parents), self.table.units | units, {})
        self.stuck = {}
        self._look()
        return True

    def _look_at_sizes(self) -> bool:
        """Whether there is another reading, at the steps of the examples, which one axis of their size brings about.

        A loss may take another way for three channels, say, than for any other number.
        """
        own = [tuple(a.shape) for a in self.arrays]
        if self.kept or self._same_steps(own, self.read.shapes[0]):
            return False
        example = self._example(own)
        free = [r for r in example if r not in self.table.units]
        for root, draws in itertools.product(free, (_DRAWS, _LARGER)):
            other = [n for n in draws[0] if n not in example.values()]
            keeping = self._shapes(_drawn(free, example, other, {root: example[root]}))
            if example[root] > 1 and self._same_steps(own, keeping):
                self.kept = {root: example[root]}
                self.table = AxisTable(dict(self.table.parents), self.table.units, {})
                self.stuck = {}
                self._look()
                return True
        return False

    def _same_steps(self, first: Sequence[tuple[int, ...]], second: Sequence[tuple[int, ...]]) -> bool:
        try:
            overlay([self._record(first), self._record(second)], {})
        except (AdoptionError, Different):
            return False
        return True

    # ------------------------------------------------------------------ recording

    def _record(self, shapes: Sequence[tuple[int, ...]], **changed: float) -> Recording:
        key = (tuple(shapes), tuple(sorted(changed.items())))
        if key not in self.recordings:
            arrays = [s.example(shape) for s, shape in zip(self.samplers, shapes, strict=True)]
            try:
                self.recordings[key] = self.front.record(arrays, {**self.options, **self._given(changed)})
            except LossforgeError as error:
                self.recordings[key] = error
            except Exception as error:
                refusal = AdoptionError(f"{self.name}: {self.front.explain(error)}")
                refusal.__cause__ = error
                self.recordings[key] = refusal
        found = self.recordings[key]
        if isinstance(found, LossforgeError):
            raise found
        return found

    def _given(self, changed: Mapping[str, float]) -> dict[str, float]:
        return {**self.all_numbers, **changed}

    def _import(self, recording: Recording) -> tuple[Importer, Tensor]:
        for _ in range(_ATTEMPTS):
            try:
                rules = {**self.front.rules, **LOOPS}
                examples = self._example([a.shape for a in self.arrays])
                importer = Importer(recording, self.names, self.kinds, rules, self.table, examples)
                return importer, importer.run()
            except Restart:
                continue
            except Refused as reason:
                raise AdoptionError(f"{self.name}: {reason}") from None
            except AdoptionError as error:
                raise AdoptionError(f"{self.name}: {error}") from None
        raise AdoptionError(f"{self.name}: the axes of its arrays could not be told apart")

    def _again(self, recording: Recording) -> dict[str, Any]:
        importer, result = self._import(recording)
        return {"importer": importer, "result": result}

    # ------------------------------------------------------------------ sizes

    def _roots(self) -> list[list[Axis]]:
        return [
            [self.table.root(f"{name}_{d}") for d in range(a.ndim)]
            for name, a in zip(self.names, self.arrays, strict=True)
        ]

    def _shapes(self, sizes: Mapping[Axis, int]) -> list[tuple[int, ...]]:
        return [tuple(1 if r in self.table.units else sizes[r] for r in of) for of in self._roots()]

    def _example(self, own: Sequence[tuple[int, ...]]) -> dict[Axis, int]:
        """The size of each axis in the examples."""
        example: dict[Axis, int] = {}
        for of, shape in zip(self._roots(), own, strict=True):
            for root, n in zip(of, shape, strict=True):
                example[root] = max(n, example.get(root, 1))
        return example

    def _tied(self, own: Sequence[tuple[int, ...]]) -> AxisTable:
        """The table in which arguments of equal shapes have equal axes."""
        parents = dict(self.table.parents)
        for i, shape in enumerate(own):
            like = own.index(shape)
            for d in range(len(shape)):
                a, b = (self.table.root(f"{self.names[k]}_{d}") for k in (like, i))
                table = AxisTable(parents)
                if table.root(a) != table.root(b):
                    parents[table.root(b)] = table.root(a)
        units = {AxisTable(parents).root(u) for u in self.table.units}
        return AxisTable(parents, units, {})

    def _level(self, own: Sequence[tuple[int, ...]]) -> AxisTable:
        """The table in which all axes of one size are one, as in a matrix of a batch with itself."""
        table = AxisTable(dict(self.table.parents), set(self.table.units), {})
        example = self._example(own)
        first: dict[int, Axis] = {}
        for root, n in example.items():
            if root not in table.units and first.setdefault(n, root) != root:
                table.parents[root] = first[n]
        return table

    def _generalise(self, own: Sequence[tuple[int, ...]], fixed: Collection[Axis]) -> _Read:
        """Record at two sets of sizes that are distinct, or as distinct as the function allows.

        `fixed` are axes that constant arrays seem to give their size.
        """
        problem: Exception | None = None
        kept = AxisTable(dict(self.table.parents), set(self.table.units), {})
        tied, level = self._tied(own), self._level(own)
        close = [kept, *([tied] if tied.parents != kept.parents else [])]
        far = [level] if all(level.parents != t.parents for t in close) else []
        draws = (_DRAWS, _LARGER, _CHANNELS_LAST, _LARGEST)
        # Axes that are one for their size alone come last: in a square image they are so by chance.
        for sizes, table in [*itertools.product(draws, close), *itertools.product(draws, far)]:
            self.table = AxisTable(dict(table.parents), set(table.units), {})
            example = self._example(own)
            free = [r for r in example if r not in self.table.units]
            kept_sizes = {self.table.root(r): n for r, n in self.kept.items()}
            pinned = {**kept_sizes, **{r: example[r] for r in free if r in {self.table.root(f) for f in fixed}}}
            for stay in (kept_sizes, pinned) if pinned != kept_sizes else (kept_sizes,):
                chosen = [_drawn(free, example, d, stay) for d in sizes]
                if sizes is _LARGEST and _entries(self._shapes(chosen[0])) > _LARGEST_RECORDED:
                    continue
                try:
                    return self._holding(self._at(chosen), kept_sizes)
                except (AdoptionError, Different) as error:
                    problem = error if problem is None or (sizes is _DRAWS and stay is kept_sizes) else problem
                    self.table = AxisTable(dict(table.parents), set(table.units), {})
        try:  # calls alone, which are far quicker than recordings, tell the sizes of most functions
            return self._restricted(own, kept, problem, self._runs)
        except (AdoptionError, Different):
            return self._restricted(own, kept, problem, self._reads)

    def _restricted(
        self,
        own: Sequence[tuple[int, ...]],
        kept: AxisTable,
        problem: Exception | None,
        fits: _Fits,
    ) -> _Read:
        """Record at two sets of sizes, where some axes have one size only, or some sizes; `fits` tells which.

        Raises:
            AdoptionError: there are none at which the function can be read; for the reason of `problem`.
        """
        self.table = AxisTable(dict(kept.parents), set(kept.units), {})
        example = self._example(own)
        free = [r for r in example if r not in self.table.units]
        # Some axes have one size only: find out which, and which of them only go together.
        singles = [r for r in free if example[r] == 1]
        options = {r: [] if r in self.kept else self._sizes_for(r, free, example, kept, fits) for r in free}
        if self._tie([r for r in free if not options[r] and r not in singles], example):
            together = AxisTable(dict(self.table.parents), set(self.table.units), {})
            free = [r for r in free if self.table.root(r) == r]
            again = {r: self._sizes_for(r, free, example, together, fits) for r in free if not options[r]}
            if any(again.values()):
                options, kept = {**options, **again}, together
            else:
                free = list(options)
        self.table = AxisTable(dict(kept.parents), set(kept.units), {})
        for r in singles:
            if not options[r]:
                self.table.units.add(r)
        kept = AxisTable(dict(self.table.parents), set(self.table.units), {})
        chosen: list[dict[Axis, int]] = [{}, {}]
        stuck = {r: example[r] for r in free if not options[r] and r not in self.table.units}
        if len(stuck) > 1 and self._together(stuck, {r: example[r] for r in free}, kept, fits):
            chosen = [{r: factor * n for r, n in stuck.items()} for factor in (2, 3)]
            stuck = {}
        roots = self._roots()
        main = roots[self.names.index(self.predictions[0])]
        batches = {of[0] for of in roots if of} - {*main[1:]}
        base = {r: example[r] for r in free}
        alike = {r: [q for q in stuck if example[q] == example[r]] for r in stuck if r in batches}
        if any(
            self._runs(base, {**base, **dict.fromkeys(grown, n)})
            for r, others in alike.items()
            for grown in ([r], others)
            for n in (7, 11, 2 * example[r])
        ):
            # The loss holds for other batches; it is the reading that does not.
            raise AdoptionError(
                str(problem)
                if isinstance(problem, AdoptionError)
                else f"{self.name}: its steps depend on the size of the batch ({problem})"
            )
        for r in free:
            if r in self.table.units or r in stuck or r in chosen[0]:
                continue
            for k in (0, 1):
                taken = {*chosen[k].values(), *stuck.values(), *([chosen[0][r]] if k else [])}
                pool = [n for n in options[r][k:] + options[r] + [example[r]] if n not in taken]
                chosen[k][r] = pool[0] if pool else example[r]
        if not any(chosen[0].values()):
            raise AdoptionError(str(problem) if isinstance(problem, AdoptionError) else f"{self.name}: {problem}")
        try:
            read = self._at([{**stuck, **chosen[0]}, {**stuck, **chosen[1]}])
        except Different as error:
            raise AdoptionError(f"{self.name}: its steps depend on the sizes of its inputs ({error})") from None
        except AdoptionError:
            raise
        return self._holding(read, stuck)

    def _holding(self, read: _Read, stuck: Mapping[Axis, int]) -> _Read:
        """`read`, of which some axes have one size only."""
        for axis, origin in read.importer.origin.items():
            if origin in stuck:
                read.importer.fixed[axis] = stuck[origin]
        self.stuck = {**self.stuck, **stuck}
        return read

    def _together(self, stuck: Mapping[Axis, int], base: Mapping[Axis, int], kept: AxisTable, fits: _Fits) -> bool:
        """Whether axes that have one size each can grow together, as halves and their whole do."""
        for factor in (2, 3):
            fit = fits(base, {**base, **{r: factor * n for r, n in stuck.items()}})
            self.table = AxisTable(dict(kept.parents), set(kept.units), {})
            if not fit:
                return False
        return True

    def _runs(self, base: Mapping[Axis, int], sizes: Mapping[Axis, int]) -> bool:
        """Whether the original can be called at these sizes."""
        rng, shapes = np.random.default_rng(0), self._shapes(sizes)
        arrays = [s.draw(rng, shape, None) for s, shape in zip(self.samplers, shapes, strict=True)]
        # Positions may lie beyond the end of an axis, where 0 never does.
        first = [np.zeros_like(a) if a.dtype.kind == "i" else a for a in arrays]
        repeated = [s.repeated(shape) for s, shape in zip(self.samplers, shapes, strict=True)]
        return any(self._takes(given, shapes_only=True) for given in (arrays, first, repeated))

    def _takes(self, arrays: Sequence[np.ndarray], shapes_only: bool = False) -> bool:
        """Whether the original can be called with these arrays; with arrays of these shapes, where that takes less time."""
        call = getattr(self.front, "call", None) if shapes_only else None
        try:
            if call is not None:
                call(arrays, {**self.options, **self.all_numbers})
            else:
                self._run(arrays, self.all_numbers, [self.names.index(p) for p in self.predictions])
        except Exception:  # whatever a function does with what it is not made for
            return False
        return True

    def _reads(self, base: Mapping[Axis, int], sizes: Mapping[Axis, int]) -> bool:
        """Whether it can be read at both sets of sizes."""
        try:
            self._at([base, sizes], only_sizes=True)
        except (AdoptionError, Different):
            return False
        return True

    def _sizes_for(
        self, root: Axis, free: Sequence[Axis], example: Mapping[Axis, int], kept: AxisTable, fits: _Fits
    ) -> list[int]:
        """Some other sizes that one axis may have while all others keep those of the examples."""
        base = {r: example[r] for r in free}
        n = example[root]
        taken = {m for r, m in base.items() if r != root} | {n}
        wanted = [m for m in dict.fromkeys((7, 2 * n, 11, 3 * n, 5, 13, n + 2, 4 * n)) if m not in taken]
        recorded = fits == self._reads
        enough = 2 if recorded else 4  # recordings take their time
        found: list[int] = []
        failures = 0
        for m in wanted:
            if recorded and not self._runs(base, {**base, root: m}):
                continue
            if fits(base, {**base, root: m}):
                found.append(m)
            else:
                failures += 1
            self.table = AxisTable(dict(kept.parents), set(kept.units), {})
            if len(found) == enough or (failures == enough and not found):
                break
        return found if len(found) > 1 else []  # one alone may fit by chance

    def _tie(self, roots: Sequence[Axis], example: Mapping[Axis, int]) -> bool:
        """Take axes of one size for one axis; whether there were any."""
        first: dict[int, Axis] = {}
        found = False
        for root in roots:
            if first.setdefault(example[root], root) != root:
                self.table.parents[root] = first[example[root]]
                found = True
        return found

    def _at(self, sizes: Sequence[Mapping[Axis, int]], only_sizes: bool = False) -> _Read:
        """The import at two sets of sizes, with as many numbers as parameters as can be."""
        shapes = [self._shapes(s) for s in sizes]
        pair = [self._record(s) for s in shapes]
        recording = _overlaid(pair)
        importer, result = self._import(recording)
        further = self._shapes({r: n + sizes[1][r] if n != sizes[1][r] else n for r, n in sizes[0].items()})
        read = _Read(importer, result, (shapes[0], shapes[1]), further)
        self.numbers = {}
        if only_sizes:
            return read
        names = [n for n in self.all_numbers if self._keeps_steps(shapes[0], pair[0], n)]
        together = self._with_numbers(shapes, pair, names, further) if names else read
        if together is not None:
            self.numbers = self._used(names, together)
            return together
        for name in names if len(names) > 1 else ():  # as many as can be
            found = self._with_numbers(shapes, pair, [*self.numbers, name], further)
            if found is not None and name in self._used([name], found):
                self.numbers[name], read = self.all_numbers[name], found
        return read

    def _used(self, names: Sequence[str], read: _Read) -> dict[str, float]:
        """Those of some numbers that the result depends on."""
        used = {n.attrs[0] for n in ir.topological([read.result.node]) if n.op == "input"}
        return {n: self.all_numbers[n] for n in names if n in used}

    def _keeps_steps(self, shapes: Sequence[tuple[int, ...]], recording: Recording, name: str) -> bool:
        """Whether the steps are the same for other values of a number."""
        try:
            others = [self._record(shapes, **{name: v}) for v in _other_values(self.all_numbers[name])[:2]]
            overlay([recording, *others], {})
        except (AdoptionError, Different):
            return False
        return True

    def _with_numbers(
        self,
        shapes: Sequence[Sequence[tuple[int, ...]]],
        pair: Sequence[Recording],
        names: Sequence[str],
        further: list[tuple[int, ...]],
    ) -> _Read | None:
        """The import with these numbers as parameters; None if they shape the graph."""
        recordings = list(pair)
        environment: dict[str, list[float]] = {n: [self.all_numbers[n]] * 2 for n in names}
        table = AxisTable(dict(self.table.parents), set(self.table.units), dict(self.table.names))
        try:
            for n in names:
                for value in _other_values(self.all_numbers[n])[:2]:
                    recordings.append(self._record(shapes[0], **{n: value}))
                    for m in names:
                        environment[m].append(value if m == n else self.all_numbers[m])
            last = {n: _other_values(self.all_numbers[n])[2] for n in names}
            recordings.append(self._record(shapes[1], **last))
            for m in names:
                environment[m].append(last[m])
            importer, result = self._import(_overlaid(recordings, environment))
        except (AdoptionError, Different):
            self.table = table
            return None
        return _Read(importer, result, (list(shapes[0]), list(shapes[1])), further)

    # ------------------------------------------------------------------ names

    def _name_axes(self) -> None:
        """Readable names: from the layout, else batch, class, and the argument's own."""
        roots = self._roots()
        main = roots[self.names.index(self.predictions[0])]
        given = _layout(self.layout, len(main), self.predictions[0]) if self.layout else None
        classes = {
            self.read.importer.origin[n.attrs[0]]
            for n in ir.topological([self.read.result.node])
            if n.op == "take" and n.args[1].op != "constant" and n.attrs[0] in self.read.importer.origin
        }
        classes |= {
            self.read.importer.origin[i.attrs[0]]
            for n in ir.topological([self.read.result.node])
            if n.op == "eq"
            for i in n.args
            if i.op == "iota" and i.attrs[0] in self.read.importer.origin
        }
        taken: set[str] = set(self.names) | set(self.all_numbers) | {"weight", "mask"}
        for d, root in enumerate(main):
            wish = given[d] if given else "class" if root in classes and d else "batch" if d == 0 else f"axis{d}"
            if root in self.table.names:
                continue
            while wish in taken:
                wish += "_"
            taken.add(wish)
            self.table.names[root] = wish
        for of in roots:
            for root in of:
                taken.add(self.table.names.setdefault(root, root))

    # ------------------------------------------------------------------ the definition

    def definition(self, *, whole: bool) -> tuple[Definition, Reduction]:
        """The definition, compared with the original; and what the original does at the end.

        `whole` says that a mean at the end is taken off, so that the loss of each entry is known too.
        """
        importer, result = self.read.importer, self.read.result
        try:
            for d, dim in enumerate(result.dims):  # also where its size is 1, or it holds several axes
                if len(dim) != 1 or dim[0] not in result.node.axes:
                    result = importer.own_axis(result, d)
        except Refused as reason:
            raise AdoptionError(f"{self.name}: its result: {reason}") from None
        node = ir.as_kind(result.node, Kind.FLOAT)
        order = tuple(a for d in result.dims for a in d)
        if any(a.startswith("@") for a in order):
            raise AdoptionError(
                f"{self.name}: the result is a selection by truth values, whose size depends on them; take its sum or mean, "
                f"or use torch.where or its like"
            )
        reduction: Reduction = "none" if order else "mean"
        fixed = tuple((a, n) for a, n in importer.fixed.items() if a in {b for p in importer.ports for b in p.order})
        fixed += tuple((a, n) for r, n in self.stuck.items() for a, o in importer.origin.items() if o == r)
        try:
            self._verify(importer.ports, node, order)
        except AdoptionError:
            if not self._look_again() and not self._look_at_sizes():
                raise
            return self.definition(whole=whole)
        if not order and whole:
            node, order = self._entries(node, importer.ports)
        source = node
        node, rewrites = stabilize(node)
        for p in self.predictions:
            port = next(q for q in importer.ports if q.name == p)
            if port.node.kind is not Kind.FLOAT:
                raise AdoptionError(f"{self.name}: the prediction {p!r} is not floating point")
            try:
                require_gradient(node, port.node, p)
            except NotDifferentiableError as error:
                raise AdoptionError(f"{self.name}: {error}") from None
        if rewrites:
            self._verify(
                importer.ports,
                _reduced(node, order) if reduction == "mean" else node,
                () if reduction == "mean" else order,
            )
        self._warn_of_broadcast(importer.ports, node)
        parameters = tuple(Port(ir.input_(p), ()) for p in self.numbers)
        return (
            Definition(
                self.name, tuple(importer.ports), parameters, node, order, self.predictions, (), rewrites, source,
                fixed=tuple(dict.fromkeys(fixed)),
            ),
            reduction,
        )  # fmt: skip

    def _entries(self, node: Node, ports: Sequence[Port]) -> tuple[Node, tuple[Axis, ...]]:
        """The loss of each entry, if the loss is their mean."""
        found = _before_mean(node, self.read.importer.size)
        order = list(dict.fromkeys(a for p in ports for a in p.order))
        if found is None or not found[1] <= set(order) or found[0].axes != found[1]:
            return node, ()
        main = next(p for p in ports if p.name == self.predictions[0])
        order = [*main.order, *(a for a in order if a not in main.order)]
        if any(a in found[1] and self.read.importer.fixed.get(a) == 1 for a in order):
            return node, ()
        return found[0], tuple(a for a in order if a in found[1])

    def _warn_of_broadcast(self, ports: Sequence[Port], node: Node) -> None:
        """Two dimensions of one size, set against each other by broadcasting alone, may be a mistake."""
        main = next(i for i, p in enumerate(ports) if p.name == self.predictions[0])
        for i, port in enumerate(ports):
            if i == main:
                continue
            for a, n in zip(port.order, self.arrays[i].shape, strict=True):
                for b, m in zip(ports[main].order, self.arrays[main].shape, strict=True):
                    apart = a not in ports[main].order and b not in port.order
                    if apart and frozenset((a, b)) in self.read.importer.outer and n == m and n > 1:
                        warnings.warn(
                            f"{self.name}: a dimension of {port.name!r} and one of {ports[main].name!r} both have size {n} "
                            f"but never meet: shapes {self.arrays[i].shape} and {self.arrays[main].shape} are broadcast "
                            f"against each other, {n}×{m}. Reshape one of them if that is not meant",
                            BroadcastWarning,
                            stacklevel=5,
                        )
                        return

    # ------------------------------------------------------------------ comparison with the original

    def _verify(self, ports: Sequence[Port], node: Node, order: Sequence[Axis]) -> None:
        """Value and gradient against the function itself, at two shapes and with other parameters.

        Raises:
            AdoptionError: they differ.
        """
        rng = np.random.default_rng(20)
        bounds = _bounds(ports, node)
        second = self.read.shapes[1] if _entries(self.read.shapes[1]) <= _LARGEST_COMPARED else self.read.shapes[0]
        cases = [self.read.shapes[0], *([second] if second is not self.read.shapes[0] else [])]
        if _entries(self.read.further) <= _LARGEST_FURTHER:
            cases.append(self.read.further)
        nodes = [p.node for p in ports if p.name in self.predictions]
        pulled = dict(zip(nodes, vjp([(node, ir.constant(1.0))], nodes), strict=True))
        constant = {a: n[0] for a, n in self.read.importer.sizes.items() if len(set(n)) == 1}
        compared = 0

        def drawn(shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
            sizes = {a: n for p, s in zip(ports, shapes, strict=True) for a, n in zip(p.order, s, strict=True)}
            sizes = constant | sizes
            free = [
                s.draw(rng, shape, min([sizes[a] for a in bounds.get(p.name, ()) if a in sizes], default=None))
                for s, shape, p in zip(self.samplers, shapes, ports, strict=True)
            ]
            repeated = [s.repeated(shape) for s, shape in zip(self.samplers, shapes, strict=True)]
            return free if self._takes(free) or not self._takes(repeated) else repeated

        for shapes in cases:
            compared += self._compare(
                ports, node, pulled, order, drawn(shapes), self.all_numbers, beyond=shapes is self.read.further
            )
        arrays = drawn(second)
        for change in (lambda v: _other_values(v)[2], lambda v: 2 * v) if self.numbers else ():
            # The range of data, say, may be enlarged only.
            numbers = {**self.all_numbers, **{n: change(v) for n, v in self.numbers.items()}}
            if self._compare(ports, node, pulled, order, arrays, numbers, beyond=True):
                break
        own = [np.array(a) for a in self.arrays]
        compared += self._compare(ports, node, pulled, order, own, self.all_numbers)
        if not compared:
            raise AdoptionError(
                f"{self.name}: the original gives no finite value on drawn inputs, so it cannot be compared; give examples "
                f"of legal values (probabilities, labels …)"
            )

    def _compare(
        self,
        ports: Sequence[Port],
        node: Node,
        pulled: Mapping[Node, Node | None],
        order: Sequence[Axis],
        arrays: Sequence[np.ndarray],
        numbers: Mapping[str, float],
        beyond: bool = False,
    ) -> bool:
        """Whether they could be compared; `beyond` says that the original may not take these arrays or numbers at all.

        Where the original's own float32 loses more digits than `_TOLERANCE` allows (long cumulative sums do), it is
        compared in float64.

        Raises:
            AdoptionError: they differ.
        """
        compared = partial(self._compared, ports, node, pulled, order)
        try:
            return compared(arrays, numbers, _TOLERANCE, beyond=beyond)
        except AdoptionError:
            if not self._differs_by_rounding(compared, arrays, numbers):
                raise
            return True

    @staticmethod
    def _differs_by_rounding(
        compared: Callable[..., bool], arrays: Sequence[np.ndarray], numbers: Mapping[str, float]
    ) -> bool:
        wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
        try:
            compared(arrays, numbers, _ROUNDING)
            return compared(wide, numbers, _EXACT)
        except AdoptionError:
            return False

    def _compared(
        self,
        ports: Sequence[Port],
        node: Node,
        pulled: Mapping[Node, Node | None],
        order: Sequence[Axis],
        arrays: Sequence[np.ndarray],
        numbers: Mapping[str, float],
        tolerance: float,
        *,
        beside: bool = False,
        beyond: bool = False,
    ) -> bool:
        wrt = [self.names.index(p) for p in self.predictions]
        try:
            value, gradients = self._run(arrays, numbers, wrt)
        except Exception as error:
            if beyond:
                return False
            raise AdoptionError(f"{self.name}: {self.front.explain(error)}") from error
        given = {p: a for p, a in zip(ports, arrays, strict=True)} | {
            Port(ir.input_(n), ()): numbers[n] for n in self.numbers
        }
        slopes = [pulled[ports[i].node] for i in wrt]
        try:
            mine = evaluate([node, *(g if g is not None else ir.constant(0.0) for g in slopes)], given)
        except (LossforgeError, ValueError, LookupError) as error:
            raise AdoptionError(
                f"{self.name}: it was read for some sizes, but not for inputs of shapes {[a.shape for a in arrays]} ({error})"
            ) from error
        found = _ordered(mine[0], node.axes, order)
        if not np.isfinite(value).any():
            return False
        self._agree("value", found, np.asarray(value), arrays, tolerance)
        for i, (g, theirs) in enumerate(zip(slopes, gradients or (), strict=gradients is not None)):
            axes = g.axes if g is not None else frozenset()
            port = ports[wrt[i]]
            full = _spread(mine[1 + i], axes, port.order, theirs.shape)
            finite = np.isfinite(theirs)
            what = f"gradient with respect to {port.name!r}"
            try:
                self._agree(what, np.where(finite, full, 0), np.where(finite, theirs, 0), arrays, tolerance)
            except AdoptionError as error:
                if beside:
                    raise
                # At a kink each side has its own subgradient; beside it there is but one.
                moved = [_beside(a, self.samplers[k]) if k in wrt else a for k, a in enumerate(arrays)]
                try:
                    self._compared(ports, node, pulled, order, moved, numbers, tolerance, beside=True)
                except AdoptionError:
                    raise _OtherGradient(str(error)) from None
        return True

    def _run(
        self, arrays: Sequence[np.ndarray], numbers: Mapping[str, float], wrt: Sequence[int]
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """What the original gives; it is asked once, since its compiler may take seconds."""
        key = tuple((a.shape, a.dtype, a.tobytes()) for a in arrays), tuple(sorted(numbers.items()))
        if key not in self.answers:
            self.answers[key] = self.front.run(arrays, {**self.options, **numbers}, wrt)
        return self.answers[key]

    def _agree(
        self, what: str, mine: np.ndarray, theirs: np.ndarray, arrays: Sequence[np.ndarray], tolerance: float
    ) -> None:
        if mine.shape != theirs.shape:
            raise AdoptionError(
                f"{self.name}: the {what} has shape {theirs.shape}, as read {mine.shape}; it is not adopted"
            )
        finite = np.isfinite(theirs)
        scale = max(float(np.max(np.abs(theirs[finite]), initial=0.0)), 1e-30)
        gap = np.abs(mine[finite] - theirs[finite])
        if not (gap <= tolerance * scale).all() or not np.isfinite(mine[finite]).all():
            worst = int(np.argmax(np.where(np.isnan(gap), np.inf, gap))) if gap.size else 0
            raise AdoptionError(
                f"{self.name}: the {what} of the original is {theirs[finite][worst]:.6g}, as read {mine[finite][worst]:.6g}, "
                f"for inputs of shapes {[a.shape for a in arrays]}; it is not adopted. Please report this loss"
            )

    # ------------------------------------------------------------------ gradients by hand

    def by_hand(self, definition: Definition, wrt: str, function: Callable[..., Any]) -> HandWritten:
        """The graph of a gradient that was written for the same library."""
        front = type(self.front)(function)  # type: ignore[call-arg]
        other = _Study.__new__(_Study)
        other.__dict__.update(self.__dict__)
        other.recordings = {}
        other.front, other.name = front, f"{self.name}: the gradient"
        accepted = list(front.signature().parameters)
        if unknown := [a for a in accepted if a not in self.names and a not in self.all_numbers]:
            raise AdoptionError(
                f"{self.name}: the gradient asks for {unknown[0]!r}, which is neither an argument nor a parameter of the loss"
            )
        places = [self.names.index(a) for a in accepted if a in self.names]
        other.names = [self.names[i] for i in places]
        other.kinds = [self.kinds[i] for i in places]
        other.samplers = [self.samplers[i] for i in places]
        other.all_numbers = {k: v for k, v in self.all_numbers.items() if k in accepted}
        other.arrays = [self.arrays[i] for i in places]
        try:
            shapes = [[s[i] for i in places] for s in self.read.shapes]
            pair = [other._record(s) for s in shapes]
            numbers = [n for n in self.numbers if n in other.all_numbers]
            read = other._with_numbers(shapes, pair, numbers, []) if numbers else None
            if read is None:
                importer, result = other._import(overlay(pair, {}))
            else:
                importer, result = read.importer, read.result
        except Different as error:
            raise AdoptionError(
                f"{self.name}: the gradient's steps depend on the sizes of its inputs ({error})"
            ) from None
        target = definition.port(wrt)
        result = other._along(target, importer, result)
        axes = tuple(a for d in result.dims for a in d)
        node = ir.as_kind(result.node, Kind.FLOAT)
        if (
            len(result.dims) != len(target.order)
            or any(a not in target.order for a in axes)
            or (list(axes) != [a for a in target.order if a in axes])
        ):
            raise AdoptionError(
                f"{self.name}: the gradient has the axes ({', '.join(axes)}), but {wrt!r} has ({', '.join(target.order)})"
            )
        return HandWritten(definition.value, target.node, stabilize(node)[0])

    def _along(self, target: Port, importer: Importer, result: Tensor) -> Tensor:
        """A gradient whose dimensions are those of its argument, also where an operation has made them anew."""
        if len(result.dims) != len(target.order):
            return result
        for i, axis in enumerate(target.order):
            dim = result.dims[i]
            made = [importer.origin[a] for a in dim if a in importer.origin and a != axis]
            if len(dim) == 1 and made and importer.sizes_of(dim[0]) == importer.sizes_of(axis):
                self.table.parents[self.table.root(made[0])] = self.table.root(importer.origin[axis])
                importer, result = self._import(importer.recording)
        return result


def _overlaid(recordings: Sequence[Recording], environment: Mapping[str, Sequence[float]] | None = None) -> Recording:
    """Recordings as one; with their loops rolled up, if they differ in the number of turns.

    Raises:
        Different: they do not hold the same operations in the same order.
    """
    try:
        return overlay(recordings, environment or {})
    except Different:
        once = [rolled(r) for r in recordings]
        if all(a is b for a, b in zip(once, recordings, strict=True)):
            raise
        return overlay(once, environment or {})


def _drawn(
    free: Sequence[Axis], example: Mapping[Axis, int], draws: Sequence[int], stay: Mapping[Axis, int]
) -> dict[Axis, int]:
    """A size for each axis: of `stay`, else of the draws, else of the examples."""
    numbers = [n for n in draws if n not in stay.values()]
    moving = [r for r in free if r not in stay]
    return {**example, **stay, **dict(zip(moving, numbers, strict=False))}


def _beside(array: np.ndarray, sampler: _Sampler) -> np.ndarray:
    """Entries a little off, within what is legal."""
    rng = np.random.default_rng(7)
    if sampler.low >= 0 and sampler.high <= 1:
        return (array + 0.02 * rng.random(array.shape) * (0.5 - array)).astype(array.dtype)
    step = 0.01 * (np.abs(array) + 0.1 * (sampler.high - sampler.low) + 0.01)
    moved = array + step * (rng.random(array.shape) - 0.5)
    return (np.abs(moved) if sampler.low >= 0 else moved).astype(array.dtype)


def _other_values(value: float) -> tuple[float, float, float]:
    """Three other values that a parameter might have: for fractions still fractions, for whole numbers whole."""
    if isinstance(value, int):
        return value + 1, value + 2, value + 3
    if value == 0:
        return 0.125, 0.25, 0.375
    return value * 0.875, value * 0.75, value * 0.625


def _layout(text: str, rank: int, name: str) -> list[str]:
    words = text.split()
    starred = [i for i, w in enumerate(words) if w.startswith("*")]
    if len(starred) > 1 or (not starred and len(words) != rank) or (starred and len(words) - 1 > rank):
        raise AdoptionError(f"layout={text!r} does not fit {name!r}, which has {rank} dimensions")
    if starred:
        (i,) = starred
        stem = words[i][1:]
        count = rank - len(words) + 1
        words[i : i + 1] = [stem] if count == 1 else [f"{stem}_{k}" for k in range(count)]
    if bad := [w for w in words if not w.isidentifier()]:
        raise AdoptionError(f"layout={text!r}: {bad[0]!r} is not an axis name")
    return words


def _entries(shapes: Sequence[tuple[int, ...]]) -> int:
    """Those of the largest array."""
    return max((math.prod(shape) for shape in shapes), default=0)


def _reduced(node: Node, order: Sequence[Axis]) -> Node:
    return ir.total(node, order) / ir.sizes(order) if order else node


def _before_mean(node: Node, size: Callable[[Axis], Node]) -> tuple[Node, frozenset[Axis]] | None:
    """(x, axes) where `node` is the mean of x over the axes."""
    if node.op == "div" and node.args[0].op == "sum":
        over = node.args[0]
        if Counter(_factors(node.args[1])) == Counter(size(a) for a in over.attrs[0]):
            return over.args[0], frozenset(over.attrs[0])
    if node.op == "neg":
        found = _before_mean(node.args[0], size)
        return None if found is None else (-found[0], found[1])
    if node.op in ("add", "sub", "mul", "div"):
        for i, other in ((0, node.args[1]), (1, node.args[0])):
            if node.op == "div" and i == 1:
                continue
            free = all(
                n.op in ("constant", "size") or (n.op == "input" and not n.axes) or n.args
                for n in ir.topological([other])
            )
            arrays = any(n.op == "input" and n.axes for n in ir.topological([other]))
            if other.axes or arrays or not free:
                continue
            found = _before_mean(node.args[i], size)
            if found is not None:
                x = found[0]
                return ir.elementwise(node.op, *((x, other) if i == 0 else (other, x))), found[1]
    return None


def _factors(node: Node) -> list[Node]:
    return [*_factors(node.args[0]), *_factors(node.args[1])] if node.op == "mul" else [node]


def _bounds(ports: Sequence[Port], node: Node) -> dict[str, set[Axis]]:
    """The axes that each integer argument holds positions along."""
    found: dict[str, set[Axis]] = {}
    nodes = ir.topological([node])
    copies = {n.attrs[1]: n.attrs[0] for n in nodes if n.op == "rename"}

    def original(axis: Axis) -> Axis:
        for _ in range(len(copies)):
            if axis not in copies or any(axis in p.order for p in ports):
                break
            axis = copies[axis]
        return axis

    for n in nodes:
        if n.op == "take" and n.args[1].op != "argsort":
            axis, index = original(n.attrs[0]), n.args[1]
        elif n.op == "eq" and any(a.op == "iota" for a in n.args):
            position = next(a for a in n.args if a.op == "iota")
            axis, index = original(position.attrs[0]), next((a for a in n.args if a is not position), n.args[1])
        else:
            continue
        for leaf in ir.topological([index]):
            if leaf.op == "input" and leaf.kind is not Kind.BOOL:
                found.setdefault(str(leaf.attrs[0]), set()).add(axis)
    return found


def _ordered(array: np.ndarray, axes: frozenset[Axis], order: Sequence[Axis]) -> np.ndarray:
    names = sorted(axes)
    return array.transpose([names.index(a) for a in order]) if order else array


def _spread(array: np.ndarray, axes: frozenset[Axis], order: Sequence[Axis], shape: Sequence[int]) -> np.ndarray:
    names = sorted(axes)
    kept = [a for a in order if a in axes]
    moved = array.transpose([names.index(a) for a in kept])
    full = [n if a in axes else 1 for a, n in zip(order, shape, strict=True)]
    return np.broadcast_to(moved.reshape(full), shape)


# ------------------------------------------------------------------------------------- drawing inputs


class _Sampler:
    """Arrays like an example: of its range, and of its special form if it has one."""

    def __init__(self, example: np.ndarray) -> None:
        self.given, self.dtype = example, example.dtype
        flat = np.unique(example)
        finite = flat[np.isfinite(flat)] if example.dtype.kind == "f" else flat
        self.values = finite if finite.size <= 3 else None
        self.low, self.high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        self.simplex = next(
            (
                d - example.ndim
                for d in reversed(range(example.ndim))
                if example.dtype.kind == "f"
                and example.shape[d] > 1
                and self.low >= 0
                and np.allclose(example.sum(axis=d), 1.0, atol=1e-4)
            ),
            None,
        )
        self.norm = None
        self.one_hot = self.simplex is not None and set(np.unique(example)) <= {0.0, 1.0}

    def legal(self, order: Sequence[Axis]) -> tuple[str, Style] | None:
        """What the values have in common, in words and as a style, if they are of a special form."""
        if self.simplex is not None:
            at = len(order) + self.simplex
            return f"sums to 1 along {order[at]!r}", one_hot(at + 1) if self.one_hot else distribution(at + 1)
        for what, values in (("0 or 1", {0.0, 1.0}), ("1 or -1", {1.0, -1.0})):
            if self.values is not None and {*self.values.tolist()} == values:
                return f"is {what}", STYLES[what]
        return None

    def example(self, shape: Sequence[int]) -> np.ndarray:
        """An array for recording, where values do not count."""
        return self.draw(np.random.default_rng(0), shape, None)

    def repeated(self, shape: Sequence[int]) -> np.ndarray:
        """The example once and again: its rows have what no drawn ones have, such as the order of a box's corners."""
        result = self.given
        for d, (n, m) in enumerate(zip(shape, result.shape, strict=True)):
            result = result.take(np.arange(n) % m, axis=d)
        return result

    def draw(self, rng: np.random.Generator, shape: Sequence[int], below: int | None) -> np.ndarray:
        """An array of a shape; positions lie below `below`."""
        shape = tuple(shape)
        if self.dtype.kind == "b":
            return rng.random(shape) < 0.5
        if below is not None:
            return rng.integers(0, below, shape).astype(self.dtype)
        if self.one_hot and self.simplex is not None and -self.simplex <= len(shape):
            at = rng.integers(
                0, shape[self.simplex], tuple(n for i, n in enumerate(shape) if i != len(shape) + self.simplex)
            )
            return np.moveaxis(np.eye(shape[self.simplex])[at], -1, self.simplex).astype(self.dtype)
        if self.values is not None and self.values.size > 1:
            return rng.choice(self.values, shape).astype(self.dtype)
        if self.dtype.kind == "i":
            return rng.integers(int(self.low), int(self.high) + 1, shape).astype(self.dtype)
        if self.simplex is not None:
            x = rng.gamma(2.0, size=shape) + 0.05
            return (x / x.sum(axis=self.simplex, keepdims=True)).astype(self.dtype)
        if self.low >= 0:
            high = self.high if self.high > self.low else self.low + 1.0
            return rng.uniform(self.low + 0.02 * (high - self.low), high - 0.02 * (high - self.low), shape).astype(
                self.dtype
            )
        middle, width = (self.low + self.high) / 2, max((self.high - self.low) / 4, 1e-3)
        within = -1.0 <= self.low and self.high <= 1.0
        x = middle + width * rng.standard_normal(shape)
        return (np.clip(x, self.low, self.high) if within else x).astype(self.dtype)


__all__ = ["AdoptedLoss", "adopt"]
