"""A recording: what a function of another library did with its arrays, step by step, at known shapes.

A function is recorded several times, at other sizes and with other parameters, and the recordings are laid over each
other. Where they hold the same number, it belongs to the formula. Where they differ, the number was worked out from
sizes or parameters, and `fit` finds how. So sizes become symbols whether the library traces symbols or not.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from lossforge import ir
from lossforge.errors import AdoptionError
from lossforge.ir import Node


@dataclass(frozen=True)
class Ref:
    """A value of the recording: an input, or the result of a step."""

    index: int


class Varying:
    """A number that differs between recordings. It has no arithmetic, so that nothing takes it for one number."""

    __slots__ = ("values",)

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = tuple(values)

    def __repr__(self) -> str:
        return f"Varying{self.values}"


@dataclass(frozen=True)
class Step:
    """One operation: its name in the library, arguments (`Ref`, numbers, nested tuples and dicts), results."""

    op: str
    args: tuple[Any, ...]
    attrs: Mapping[str, Any]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    """For each result, its shape in each recording."""
    where: str = ""
    """The line of the user's source."""
    dtypes: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """The operation, and the line, as refusals name them."""
        return f"{self.op}{f', in {self.where}' if self.where else ''}"


@dataclass(frozen=True)
class Recording:
    """A straight program."""

    inputs: tuple[tuple[tuple[int, ...], ...], ...]
    """For each input, its shape in each recording."""
    steps: tuple[Step, ...]
    result: Any
    environment: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """The value of each parameter in each recording."""


def needed(recording: Recording) -> list[Step]:
    """The steps that the result is worked out from, also by the number of entries that a selection has."""
    wanted = {r.index for r in refs(recording.result)}
    numbers: set[tuple[float, ...]] = set()
    steps = []
    for step in reversed(recording.steps):
        selects = step.op == "position.default" and numbers.intersection(_numbers(step.args[3]))
        if selects or not wanted.isdisjoint(step.outputs):
            steps.append(step)
            wanted |= {r.index for r in refs((step.args, step.attrs))}
            numbers |= _numbers(step.args)
    return steps[::-1]


def _numbers(value: Any) -> set[tuple[float, ...]]:
    """The large numbers among the arguments of a step, each as it is in all recordings."""
    if isinstance(value, list | tuple):
        return set().union(*map(_numbers, value))
    each = value.values if isinstance(value, Varying) else (value,)
    return {each} if all(isinstance(v, int | float) and v >= _DRAWN for v in each) else set()


_DRAWN = 1000
"""Numbers of entries that a front end draws for selections are larger, so that they are told from others."""


def refs(value: Any) -> Iterator[Ref]:
    """All values of a recording that something is made of."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple):
        for v in value:
            yield from refs(v)
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from refs(v)


def compact(recording: Recording) -> Recording:
    """The steps that are needed, with results numbered in their order: what was left out leaves no trace."""
    numbers = {i: i for i in range(len(recording.inputs))}
    steps = []

    def renumbered(value: Any) -> Any:
        if isinstance(value, Ref):
            return Ref(numbers[value.index])
        if isinstance(value, list | tuple):
            return type(value)(renumbered(v) for v in value)
        return value

    for step in needed(recording):
        args, attrs = renumbered(step.args), {k: renumbered(v) for k, v in step.attrs.items()}
        for k in step.outputs:
            numbers[k] = len(numbers)
        steps.append(replace(step, args=args, attrs=attrs, outputs=tuple(numbers[k] for k in step.outputs)))
    return replace(recording, steps=tuple(steps), result=renumbered(recording.result))


class FrontEnd(Protocol):
    """One library: how its functions are recorded, what its operations mean, and how they are run."""

    name: str
    rules: Mapping[str, Any]
    traced: int
    """How many steps were recorded so far, on all ways."""
    patience: int
    """How many of them are some seconds: no further sizes are tried then."""

    def record(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Recording:
        """Call the function once with arrays of these shapes and dtypes."""

    def signature(self) -> inspect.Signature:
        """The names of the function's arguments."""

    def attributes(self) -> Mapping[str, float]:
        """Numbers that an object keeps, which may be parameters of the loss."""

    def explain(self, error: Exception) -> str:
        """What an exception while recording means for the user."""

    def run(
        self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any], wrt: Sequence[int]
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """The function's own value, and the gradient of its sum by the library's own differentiation (None: it has none)."""


def kept_numbers(thing: Any) -> dict[str, float]:
    """Numbers that an object keeps as public attributes, or passes on to its function."""
    return {
        k: v
        for k, v in _store(thing).items()
        if not k.startswith("_") and isinstance(v, int | float) and not isinstance(v, bool)
    }


@contextmanager
def kept(thing: Any, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Those of `values` that an object keeps are set there for a while, also if it is frozen; gives the rest."""
    store = _store(thing)
    before = {k: v for k, v in kept_numbers(thing).items() if k in values}
    store.update({k: values[k] for k in before})
    try:
        yield {k: v for k, v in values.items() if k not in before}
    finally:
        store.update(before)


def _store(thing: Any) -> dict[str, Any]:
    if inspect.isroutine(thing):
        return {}
    found: dict[str, Any] = getattr(thing, "_fn_kwargs", None) or getattr(thing, "__dict__", {})  # the former in Keras
    return found


class Different(Exception):
    """Internal: two recordings do not hold the same steps."""


def overlay(recordings: Sequence[Recording], environment: Mapping[str, Sequence[float]]) -> Recording:
    """Several recordings of one function as one.

    Raises:
        Different: they do not hold the same operations in the same order.
    """
    first = recordings[0]
    if len({len(r.steps) for r in recordings}) > 1:
        raise Different(_parting(recordings))
    steps = []
    for group in zip(*(r.steps for r in recordings), strict=True):
        head = group[0]
        if any(s.op != head.op or s.outputs != head.outputs for s in group):
            other = next((s for s in group if s.op != head.op), head)
            raise Different(f"{head.told} in one, {other.told} in the other")
        shapes = tuple(tuple(x for s in group for x in s.shapes[i]) for i in range(len(head.shapes)))
        if any(len({len(x) for x in of}) > 1 for of in shapes):
            raise Different(f"{head.told}: another number of dimensions")
        try:
            args, attrs = _together([s.args for s in group]), _together([dict(s.attrs) for s in group])
        except Different as reason:
            raise Different(f"{head.told}: {reason}") from None
        steps.append(Step(head.op, args, attrs, head.outputs, shapes, head.where, head.dtypes))
    inputs = tuple(tuple(x for r in recordings for x in r.inputs[i]) for i in range(len(first.inputs)))
    result = _together([r.result for r in recordings])
    return Recording(inputs, tuple(steps), result, {k: tuple(v) for k, v in environment.items()})


def _parting(recordings: Sequence[Recording]) -> str:
    """Where recordings of different lengths part."""
    for group in itertools.zip_longest(*(r.steps for r in recordings)):
        step = next(s for s in group if s is not None)
        if any(s is None or s.op != step.op or len(s.args) != len(step.args) for s in group):
            break
    return f"{step.told}: another number of operations"


def _together(values: Sequence[Any]) -> Any:
    head = values[0]
    if isinstance(head, list | tuple):
        if any(type(v) is not type(head) or len(v) != len(head) for v in values):
            raise Different("another number of arguments")
        return type(head)(_together(list(group)) for group in zip(*values, strict=True))
    if isinstance(head, dict):
        if any(not isinstance(v, dict) or v.keys() != head.keys() for v in values):
            raise Different("other options")
        return {k: _together([v[k] for v in values]) for k in head}
    if isinstance(head, np.ndarray):
        if all(isinstance(v, np.ndarray) and v.shape == head.shape and np.array_equal(v, head) for v in values):
            return head
        return Varying(values)
    if all(type(v) is type(head) and (v == head or v is head or _both_nan(v, head)) for v in values):
        return head
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return Varying(values)
    raise Different(f"{head!r} in one, {next((v for v in values if v != head), None)!r} in the other")


def _both_nan(a: Any, b: Any) -> bool:
    return isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)


def rounded(value: float) -> float:
    """A number that a library keeps in float32, as it was written."""
    number = float(str(np.float32(value)))
    return number if abs(number) <= _LARGEST else math.copysign(_LARGEST, number) if math.isfinite(number) else number


_LARGEST = float(np.finfo(np.float32).max)


def as_written(array: np.ndarray) -> np.ndarray:
    """An array that a library keeps in float32, or any other, with the numbers as they were written."""
    if array.dtype != np.float32 or array.size > _MOST_WRITTEN:
        return array
    return np.array([rounded(v) for v in array.flat], dtype=np.float64).reshape(array.shape)


_MOST_WRITTEN = 4096


# ------------------------------------------------------------------------------------- numbers as formulas

_FEW_DIGITS = 3
_APART = 1e-6  # of a number, what tells several of them apart
_ROUNDED = 1.2e-7  # of a number, what float32 may lose of it
_CHANGE = 1e-3  # of what a parameter changes in a number, what may be by chance
_NEAR = 2e-6  # libraries keep some numbers in float32; drawn sizes differ by far more


def fit(
    values: Sequence[float],
    sizes: Mapping[str, tuple[Node, tuple[int, ...]]],
    environment: Mapping[str, tuple[float, ...]],
) -> Node:
    """The formula of sizes and parameters that gives these numbers, one for each recording.

    Recordings 0 and 1 differ by sizes alone; if there are parameters, all of these are others in recordings 2 and 3, at the sizes
    of recording 0, and in the last one, at those of recording 1. A number may depend on one of them: no two change alike.

    Raises:
        AdoptionError: none was found.
    """
    exact = [float(v) for v in values]
    if all(v == exact[0] for v in exact):
        return ir.constant(exact[0])
    by_size = len(exact) > 1 and exact[0] != exact[1]
    moved = any(v != exact[0] for v in exact[2:4])
    if by_size and not moved:
        for node, _ in _of_sizes(exact, sizes):
            return node
    if moved and not by_size:
        of = [f for name, given in environment.items() if (f := _of_parameter(exact, name, given)) is not None]
        if of:
            return min(of, key=lambda f: f[1])[0]
    if moved and by_size and exact[0]:
        at = (0, 2, 3)
        ratio = [exact[i] / exact[0] if i in at else math.nan for i in range(len(exact))]
        factors = [(name, _of_parameter(ratio, name, given, only=at)) for name, given in environment.items()]
        for name, factor in sorted(((n, f) for n, f in factors if f is not None), key=lambda f: f[1][1]):
            scale = [_number(factor[0], name, v) for v in environment[name]]
            rest = [v / s if s else math.nan for v, s in zip(exact, scale, strict=True)]
            for node, _ in _of_sizes(rest, sizes):
                return factor[0] * node
    parts = [*(["the sizes of arrays"] if by_size else []), *(["parameters"] if moved else [])]
    raise AdoptionError(
        f"the number {exact[0]:g} depends on {' and '.join(parts)} in a way that was not recognised; compute it with the "
        f"library's own operations, or make it an argument"
    )


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= _NEAR * max(abs(a), abs(b), 1e-30)


def _of_sizes(values: Sequence[float], sizes: Mapping[str, tuple[Node, tuple[int, ...]]]) -> list[tuple[Node, float]]:
    """Number · product of up to four sizes or their inverses, plus a small whole number; or a logarithm of one."""
    distinct: dict[tuple[float, ...], Node] = {}
    for node, numbers in sizes.values():
        distinct.setdefault(tuple(float(n) for n in numbers), node)
    factors = [(node, [*numbers]) for numbers, node in distinct.items()]
    lessened = [(node - 1.0, [n - 1 for n in numbers]) for node, numbers in factors]
    count = len(values)
    whole = all(float(v).is_integer() for v in values)
    # The simplest first; products without a factor before others, which more numbers are by chance.
    plain = [(terms, 0, True) for terms in (1, 2, 3)]
    others = [(terms, offset, False) for terms, offset in itertools.product((1, 2, 3, 4), (0, -1, 1, -2, 2))]
    for terms, offset, alone in plain + others:
        if offset and not whole:
            continue
        target = [v - offset for v in values]
        found = []
        for chosen in itertools.combinations_with_replacement(factors + (lessened if terms < 4 else []), terms):
            for powers in itertools.product((1, -1), repeat=terms):
                number = (
                    math.prod(f[1][i] ** p if f[1][i] else math.nan for f, p in zip(chosen, powers, strict=True))
                    for i in range(count)
                )
                factor = target[0] / next(number)
                simple = round(factor, 9)
                factor = simple if _close(simple, factor) and simple else factor
                if (alone and abs(factor) != 1) or (offset and factor not in (1, 2, 0.5, -1)):
                    continue
                if all(_close(t, factor * n) for t, n in zip(target[1:], number, strict=True)):
                    found.append((_product(chosen, powers, factor, offset), factor))
        if found:
            return sorted(found, key=lambda f: abs(math.log(abs(f[1]))))
    for (a, m), (b, n) in itertools.permutations(factors, 2):
        for sign in (1, -1):
            if all(_close(v, p + sign * q) for v, p, q in zip(values, m, n, strict=True)):
                return [(a + b if sign == 1 else a - b, 1.0)]
    products = [
        (_product(chosen, (1,) * terms, 1, 0), [math.prod(f[1][i] for f in chosen) for i in range(count)])
        for terms in (1, 2, 3)
        for chosen in itertools.combinations(factors, terms)
    ]
    for node, values_of in products:
        for op, function in (("log", math.log), ("sqrt", math.sqrt)):
            inner: list[float] = [function(n) if n > 0 else 0.0 for n in values_of]
            for sign in (1, -1):
                factor = values[0] / inner[0] ** sign if inner[0] else math.nan
                if all(n and _close(v, factor * n**sign) for v, n in zip(values, inner, strict=True)):
                    made = ir.elementwise(op, node)
                    return [((factor * made if sign == 1 else factor / made), factor)]
    return [(node, 1.0) for node in _shared(values, factors + lessened)]


def _shared(values: Sequence[float], factors: Sequence[tuple[Node, Sequence[float]]]) -> Iterator[Node]:
    """a + b / n with numbers a, b of few digits: what smoothing leaves to a class, beside what it spreads over n of them."""
    for node, numbers in factors:
        if len(set(numbers)) == 1 or not all(numbers):
            continue
        k = next(i for i, n in enumerate(numbers) if n != numbers[0])
        slope = (values[k] - values[0]) / (1 / numbers[k] - 1 / numbers[0])
        a, b = round(values[0] - slope / numbers[0], _FEW_DIGITS), round(slope, _FEW_DIGITS)
        if b and all(_close(v, a + b / n) for v, n in zip(values, numbers, strict=True)):
            yield a + b / node


def _product(chosen: Sequence[Any], powers: Sequence[int], factor: float, offset: int) -> Node:
    over = [f[0] for f, p in zip(chosen, powers, strict=True) if p == 1]
    under = [f[0] for f, p in zip(chosen, powers, strict=True) if p == -1]
    result: Node | None = None if factor == 1 and over else ir.constant(factor)
    for node in over:
        result = node if result is None else result * node
    assert result is not None
    for node in under:
        result = result / node
    return result + float(offset) if offset else result


_FORMS: tuple[tuple[Any, Any], ...] = (
    (lambda p: p, lambda n: n),
    (lambda p: 1 / p, lambda n: 1.0 / n),
    (lambda p: p * p, lambda n: n * n),
    (lambda p: 1 / (p * p), lambda n: 1.0 / (n * n)),
    (lambda p: math.sqrt(p), lambda n: ir.elementwise("sqrt", n)),
    (lambda p: 1 / (1 - p), lambda n: 1.0 / (1.0 - n)),
    (lambda p: 1 / (1 + p), lambda n: 1.0 / (1.0 + n)),
    (lambda p: math.log(p), lambda n: ir.elementwise("log", n)),
    (lambda p: math.exp(p), lambda n: ir.elementwise("exp", n)),
    (lambda p: p * (1 - p), lambda n: n * (1.0 - n)),
)


def _of_parameter(
    values: Sequence[float], name: str, given: Sequence[float], only: Sequence[int] | None = None
) -> tuple[Node, float] | None:
    """a · g(parameter) + b for a g of `_FORMS`, if there is one, and by how much it misses a number."""
    at = range(len(values)) if only is None else only
    if len({given[i] for i in at}) < 3:
        return None
    seen = [values[i] for i in at]
    largest = max(map(abs, seen))
    tolerance = min(_NEAR * largest, max(_ROUNDED * largest, _CHANGE * (max(seen) - min(seen))))
    for form, build in _FORMS:
        try:
            inner = [form(p) for p in given]
        except (ValueError, ZeroDivisionError, OverflowError):
            continue
        if max(inner) - min(inner) < _APART * max(map(abs, inner)):
            continue  # its digits are those of rounding
        i, j = next((i, j) for i in at for j in at if inner[i] != inner[j])
        a = (values[j] - values[i]) / (inner[j] - inner[i])
        b = values[i] - a * inner[i]
        b = 0.0 if abs(b) < 1e-7 * abs(a * inner[i]) else float(f"{b:.7g}")
        a = float(f"{a:.7g}")
        missed = max(abs(values[k] - (a * inner[k] + b)) for k in at)
        if missed <= tolerance:
            node = build(ir.input_(name))
            node = node if a == 1 else a * node
            return node + b if b else node, missed
    return None


def _number(node: Node, name: str, value: float) -> float:
    from lossforge.interpreter import evaluate

    return float(evaluate([node], {ir.Port(ir.input_(name), ()): value})[0])
