"""Points of a loss's legal domain, drawn with a seed: what gradients are compared on.

A *sample* is one full set of inputs of a definition; many are drawn at once, with a leading axis of their
own that the graph takes like any other (`compiler.batched`). The domain of a loss is not declared, it
follows from its operations: candidates are drawn in several styles (real numbers of many sizes, positive,
probabilities, labels, distributions along an axis …), and those for which the value and its derivative
exist are kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, TypeAlias

import numpy as np

from lossforge.compiler import Definition, batched, indexed
from lossforge.interpreter import Float64, HighPrecision, evaluate
from lossforge.ir import Axis, Kind, Node, Port, Program, constant, elementwise, reduction, topological, where
from lossforge.primitives import PRIMITIVES

Style: TypeAlias = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
Drawn: TypeAlias = Mapping[str, np.ndarray]
"""An array for each input, samples along its first dimension."""

SAMPLE: Axis = "#"
"""The axis of the samples; it sorts before every name that an axis can have: results have it first."""


# ------------------------------------------------------------------------------------------- styles


def _widths(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A scale for each sample, from 0.1 to 1000: small errors, ordinary ones, and what overflows."""
    return 10.0 ** rng.uniform(-1, 3, (shape[0],) + (1,) * (len(shape) - 1))


def _real(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(rng.normal(size=shape) * _widths(rng, shape))


def _ordinary(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape)


def _grid(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Multiples of 1/4: they collide often, and differ by round numbers, so that kinks are hit exactly."""
    return rng.integers(-8, 9, shape) / 4


def _positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray((0.01 + np.abs(rng.normal(size=shape))) * _widths(rng, shape))


def _positive_grid(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(1, 13, shape) / 4


def _unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.integers(0, 2**20, shape) + 0.5) / 2**20


def _unit_grid(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(1, 8, shape) / 8


def _binary(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 2, shape).astype(float)


def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 2.0 * rng.integers(0, 2, shape) - 1


def _counts(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 7, shape).astype(float)


STYLES: Mapping[str, Style] = {
    "real": _real,
    "of ordinary size": _ordinary,
    "on a grid": _grid,
    "positive": _positive,
    "positive on a grid": _positive_grid,
    "between 0 and 1": _unit,
    "between 0 and 1 on a grid": _unit_grid,
    "0 or 1": _binary,
    "1 or -1": _signs,
    "a whole number": _counts,
}
"""How an input may be drawn, by what can be said of its entries."""


def distribution(dimension: int) -> Style:
    """Positive numbers that sum to 1 along a dimension of the array."""

    def style(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        raw = _unit(rng, shape)
        return np.asarray(raw / raw.sum(axis=dimension, keepdims=True))

    return style


def one_hot(dimension: int) -> Style:
    """One 1 among 0s along a dimension of the array."""

    def style(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        raw = rng.random(shape)
        return np.asarray(raw == raw.max(axis=dimension, keepdims=True), dtype=float)

    return style


def _parameter(default: float) -> Style:
    """The default and other values of its sign; a fraction stays one."""
    if default == 0:
        values = [0.0, 0.25, 0.5]
    elif 0 < abs(default) < 1:
        values = [default, default / 2, np.sign(default) * (1 + abs(default)) / 2]
    else:
        values = [default, default / 2, default * 1.5, default * 2]
    return lambda rng, shape: rng.choice(values, shape)


# ------------------------------------------------------------------------------------------- drawing


def sizes(definition: Definition) -> list[dict[Axis, int]]:
    """Two assignments of small sizes to the axes: what depends on a size is told from a constant."""
    axes = list(dict.fromkeys(a for p in definition.arguments for a in p.order))
    result = []
    for star, others in ((2, cycle((3, 4, 2))), (3, cycle((5, 2, 3)))):
        result.append({a: star if a.startswith("*") else next(others) for a in axes})
    return result


def draw(
    definition: Definition,
    defaults: Mapping[str, Any],
    lengths: Mapping[Axis, int],
    count: int,
    rng: np.random.Generator,
    only: Mapping[str, Style] | None = None,
) -> Drawn:
    """`count` candidates: each input of each sample in a style of its own, legal or not.

    Args:
        definition: whose inputs are drawn.
        defaults: the parameters' defaults.
        lengths: the size of each axis.
        count: the number of samples.
        rng: where the randomness comes from.
        only: styles that some inputs are confined to.
    """
    result: dict[str, np.ndarray] = {}
    for port in (*definition.arguments, *definition.parameters):
        shape = (count, *(lengths[a] for a in port.order))
        default = defaults.get(port.name, inspect.Parameter.empty)
        if port.node.kind is Kind.INDEX:
            result[port.name] = rng.integers(0, _classes(definition, port.name, lengths), shape)
        elif only and port.name in only:
            result[port.name] = only[port.name](rng, shape)
        elif not port.order and isinstance(default, int | float):
            result[port.name] = _parameter(float(default))(rng, shape)
        else:
            styles = [*STYLES.values(), *(distribution(i + 1) for i in range(len(port.order)))]
            chosen = rng.integers(0, len(styles), (count,) + (1,) * len(port.order))
            result[port.name] = np.choose(chosen, [style(rng, shape) for style in styles])
    _collide(definition, result, rng, spared=only or {})
    return result


def _classes(definition: Definition, name: str, lengths: Mapping[Axis, int]) -> int:
    """The number of legal values of an index argument."""
    axes = [a for position, a in indexed(definition) if definition.arguments[position].name == name]
    return min((lengths[a] for a in axes), default=2)


def _collide(
    definition: Definition, arrays: dict[str, np.ndarray], rng: np.random.Generator, spared: Iterable[str]
) -> None:
    """Make a prediction equal to another argument here and there: the commonest place of a kink."""
    for name in definition.predictions:
        order = definition.port(name).order
        for other in definition.arguments:
            if other.name != name and other.order == order and other.node.kind is Kind.FLOAT and name not in spared:
                shape = arrays[name].shape
                here = (rng.random((shape[0],) + (1,) * len(order)) < 0.1) & (rng.random(shape) < 0.5)
                arrays[name] = np.where(here, arrays[other.name], arrays[name])


# ------------------------------------------------------------------------------------------- evaluating


@dataclass(frozen=True)
class Sampled:
    """Nodes of a definition, evaluated for many samples at once."""

    program: Program

    @classmethod
    def of(cls, definition: Definition, nodes: Sequence[Node]) -> Sampled:
        """The nodes, over the definition's inputs."""
        ports = (*definition.arguments, *definition.parameters)
        plain = Program(ports, tuple(Port(n, tuple(sorted(n.axes))) for n in nodes))
        return cls(batched(plain, tuple(p.name for p in ports), SAMPLE))

    def __call__(
        self,
        arrays: Drawn,
        arithmetic: Float64 | HighPrecision | None = None,
        orders: Sequence[Sequence[Axis] | None] | None = None,
    ) -> list[np.ndarray]:
        """The values, samples first; a node's axes follow in alphabetical order, or in that of `orders`."""
        values = {p: arrays[p.name] for p in self.program.inputs}
        count = len(next(iter(arrays.values())))
        lengths = {a: n for p, v in values.items() for a, n in zip(p.order, v.shape, strict=True)}
        found = evaluate([o.node for o in self.program.outputs], values, arithmetic)
        result = []
        for i, (port, array) in enumerate(zip(self.program.outputs, found, strict=True)):
            have = sorted(port.node.axes)
            order = orders[i] if orders is not None else None
            if order is None:
                if SAMPLE not in have:
                    array = np.broadcast_to(array, (count, *array.shape))
            else:
                wanted = [SAMPLE, *order]
                array = array.transpose([have.index(a) for a in wanted if a in have])
                array = array.reshape([lengths[a] if a in have else 1 for a in wanted])
                array = np.broadcast_to(array, [lengths[a] for a in wanted])
            result.append(array)
        return result


def subset(arrays: Drawn, which: np.ndarray) -> Drawn:
    """Some of the samples, by position or by truth value."""
    return {name: array[which] for name, array in arrays.items()}


def joined(first: Drawn, second: Drawn) -> Drawn:
    """The samples of both."""
    return {name: np.concatenate([array, second[name]]) for name, array in first.items()}


def rows(values: np.ndarray) -> np.ndarray:
    """One row for each sample."""
    return values.reshape(len(values), int(np.prod(values.shape[1:])))


def per_sample(condition: np.ndarray, reduce: Callable[..., Any] = np.all) -> np.ndarray:
    """Truth values reduced to one for each sample."""
    return np.asarray(reduce(rows(condition), axis=1), dtype=bool)


# ------------------------------------------------------------------------------------------- domain and kinks


def _unguarded(value: Node) -> list[Node]:
    """The nodes that matter everywhere: those that are reached without entering a branch of a `where`."""
    found: dict[Node, None] = {}
    stack = [value]
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = None
            stack += node.args[:1] if node.op == "where" else node.args
    return list(found)


def domain(value: Node) -> list[Node]:
    """Truth values that must hold for `value` to be defined, but for what a `where` shields."""
    rows = [(PRIMITIVES[n.op], n.args) for n in _unguarded(value) if n.op in PRIMITIVES]
    return list(dict.fromkeys(condition for row, args in rows for condition in row.domain(*args)))


def legal(definition: Definition, derivative: Node, arrays: Drawn) -> np.ndarray:
    """Which samples lie in the domain: its conditions hold, and value and derivative are finite."""
    conditions = domain(definition.value)
    value, slope, *held = Sampled.of(definition, [definition.value, derivative, *conditions])(arrays)
    result: np.ndarray = per_sample(np.isfinite(value)) & per_sample(np.isfinite(slope))
    for condition in held:
        result &= per_sample(condition)
    return result


def kinks(value: Node, argument: Node) -> list[Node]:
    """Expressions that are 0 where `value` may have a kink or a step in `argument`, and not 0 nearby.

    From the operation table, from the conditions that depend on the argument, and from ties in reductions.
    """
    active = {argument}
    found: dict[Node, None] = {}
    for node in topological([value]):
        if not any(a in active for a in node.args):
            continue
        active.add(node)
        expression = _kink(node)
        if expression is not None:
            found[expression] = None
    return list(found)


def _kink(node: Node) -> Node | None:
    args = node.args
    if node.op in ("lt", "le", "gt", "ge", "eq", "ne"):
        return args[0] - args[1] if args[0].kind is Kind.FLOAT else None
    if node.op in ("max", "min", "argmax", "argmin"):
        (x,) = args
        best = reduction("min" if node.op.endswith("min") else "max", x, node.attrs[0])
        tied = reduction("sum", where(elementwise("eq", x, best), 1.0, 0.0), node.attrs[0])
        return where(elementwise("eq", tied, 1.0), 1.0, 0.0)
    if node.op == "sign":
        return args[0]
    if node.op in ("floor", "ceil"):
        return args[0] - elementwise("round", args[0])
    if node.op == "round":
        return args[0] - elementwise("floor", args[0]) - constant(0.5)
    row = PRIMITIVES.get(node.op)
    return row.kink(*args) if row is not None and row.kink is not None else None


@dataclass(frozen=True)
class Kinks:
    """The kinks of a definition in one argument."""

    definition: Definition
    argument: Port
    expressions: tuple[Node, ...]

    @classmethod
    def of(cls, definition: Definition, argument: Port) -> Kinks:
        """All of them."""
        return cls(definition, argument, tuple(kinks(definition.value, argument.node)))

    def distances(self, arrays: Drawn) -> list[np.ndarray]:
        """Each expression's values, as (samples, entries), in units of its typical size."""
        if not self.expressions:
            return []
        result = []
        for found in Sampled.of(self.definition, self.expressions)(arrays):
            values = rows(found).astype(float)
            finite = np.abs(values[np.isfinite(values) & (values != 0)])
            result.append(values / (float(np.median(finite)) if finite.size else 1.0))
        return result

    def bisected(self, arrays: Drawn, which: int, rng: np.random.Generator, count: int = 6) -> Drawn:
        """Samples at both sides of the kink of one expression, between samples where its sign differs."""
        alone = replace(self, expressions=(self.expressions[which],))
        name = self.argument.name
        size = len(arrays[name])
        left, right = rng.integers(0, size, 200), rng.integers(0, size, 200)
        base = subset(arrays, left)
        ends = [arrays[name][left], arrays[name][right]]
        signs = [np.sign(alone.distances({**base, name: end})[0]) for end in ends]
        opposite = signs[0] * signs[1] == -1
        found = np.flatnonzero(opposite.any(axis=1))[:count]
        base, (low, high) = subset(base, found), (end[found] for end in ends)
        if not len(found):
            return base
        entry = (np.arange(len(found)), opposite[found].argmax(axis=1))
        target = signs[0][found][entry].reshape((-1,) + (1,) * (low.ndim - 1))
        for _ in range(64):
            middle = (low + high) / 2
            sign = np.sign(alone.distances({**base, name: middle})[0])[entry].reshape(target.shape)
            low, high = np.where(sign == target, middle, low), np.where(sign == target, high, middle)
        return joined({**base, name: low}, {**base, name: high})


__all__ = [
    "SAMPLE",
    "STYLES",
    "Drawn",
    "Kinks",
    "Sampled",
    "Style",
    "distribution",
    "domain",
    "draw",
    "joined",
    "kinks",
    "legal",
    "per_sample",
    "rows",
    "sizes",
    "subset",
]
