"""Two gradients on the same points: one in question, and the derived one.

`Case` holds both; `Case.trial` draws samples for one choice of sizes and evaluates both in high precision at
those that tell most. What the numbers mean is said in `verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lossforge import points
from lossforge.compiler import Definition, is_local
from lossforge.gradient import HandWritten, vjp
from lossforge.interpreter import Float64, HighPrecision
from lossforge.ir import Axis, Kind, Node, Port, constant, topological
from lossforge.points import Drawn, Kinks, Sampled, Style, subset
from lossforge.simplify import simplify

DIGITS, MORE_DIGITS = 50, 400
"""Decimal digits of the comparison, and of the second look at what differs."""
RELATIVE = 1e-12
"""A difference in units of the larger value. Literals (1/3, pi) that two formulas round make 1e-16."""
ABSOLUTE = 1e-15
"""A difference in units of the gradient's typical size: what is left of a saturated one is no mistake."""
AT_KINK = 1e-10
"""Distance below which a point counts as lying on a kink; two spellings of one condition differ by 1e-16."""
STEP = 1e-7
"""How far from a kink, relative to the point, the gradient is taken on either side: beyond `AT_KINK`."""
SLACK = 1e-5
"""How far outside of the interval at a kink a value may lie: what `STEP` changes at curvatures up to 100."""

_OPERATIONS = 10_000
"""High-precision operations that one comparison may cost, 5 to 20 µs each."""


@dataclass(frozen=True)
class Trial:
    """One choice of sizes: the samples that were drawn, and both gradients at some of them."""

    lengths: Mapping[Axis, int]
    pool: Drawn
    """Legal samples away from kinks."""
    kinky: Drawn
    """Legal samples at kinks."""
    chosen: Drawn
    """The samples of the pool that were compared in high precision."""
    by_hand: np.ndarray
    derived: np.ndarray
    wrong: np.ndarray
    """Where the two differ by more than rounding."""
    typical: float
    """The gradient's usual size."""


@dataclass(frozen=True)
class AtKink:
    """A value at a kink that is no subgradient."""

    sample: int
    entry: tuple[int, ...]
    value: float
    low: float
    high: float

    @property
    def nearest(self) -> float:
        """The subgradient nearest to the value."""
        if not np.isfinite(self.value):
            return (self.low + self.high) / 2
        return min(max(self.value, self.low), self.high)


@dataclass(frozen=True)
class Case:
    """A gradient in question, and the derived one."""

    definition: Definition
    argument: Port
    by_hand: Node
    derived: Node
    both: Sampled
    slope: Sampled
    kinks: Kinks

    @classmethod
    def of(cls, definition: Definition, hand: HandWritten, defaults: Mapping[str, Any]) -> Case:
        """The case of a derivative of the sum of the unreduced loss."""
        inputs = (*definition.arguments, *definition.parameters)
        argument = next(p for p in inputs if p.node is hand.argument)
        (found,) = vjp([(definition.value, constant(1.0))], [argument.node])
        values = ((p, defaults.get(p.name)) for p in definition.parameters)
        positive = [p.node for p, v in values if isinstance(v, int | float) and v >= 0]  # and so are those drawn
        (derived,) = simplify([found if found is not None else constant(0.0)], positive)
        both = Sampled.of(definition, [hand.derivative, derived])
        slope = Sampled.of(definition, [derived])
        return cls(definition, argument, hand.derivative, derived, both, slope, Kinks.of(definition, argument))

    def values(self, arrays: Drawn, arithmetic: Float64 | HighPrecision | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Both gradients, as (samples, … the argument's dimensions)."""
        by_hand, derived = self.both(arrays, arithmetic, [self.argument.order] * 2)
        return by_hand, derived

    # ------------------------------------------------------------------ drawing and comparing

    def drawn(
        self,
        lengths: Mapping[Axis, int],
        defaults: Mapping[str, Any],
        rng: np.random.Generator,
        only: Mapping[str, Style] | None = None,
    ) -> tuple[Drawn, Drawn]:
        """Legal samples away from kinks, and at kinks."""
        entries = sum(int(np.prod([lengths[a] for a in p.order])) for p in self.definition.arguments)
        count = int(np.clip(40_000 // entries, 300, 3000))
        arrays = points.draw(self.definition, defaults, lengths, count, rng, only)
        arrays = subset(arrays, points.legal(self.definition, self.derived, arrays))
        on_kink = np.zeros(len(arrays[self.argument.name]), dtype=bool)
        beside: Drawn | None = None
        for i, distance in enumerate(self.kinks.distances(arrays)):
            hits = points.per_sample(np.abs(distance) <= AT_KINK, np.any)
            on_kink |= hits
            if np.count_nonzero(hits) < 4 and len(hits):
                found = self.kinks.bisected(arrays, i, rng)
                found = subset(found, points.legal(self.definition, self.derived, found))
                beside = found if beside is None else points.joined(beside, found)
        kinky = subset(arrays, on_kink)
        return subset(arrays, ~on_kink), kinky if beside is None else points.joined(kinky, beside)

    def trial(
        self,
        lengths: Mapping[Axis, int],
        defaults: Mapping[str, Any],
        rng: np.random.Generator,
        only: Mapping[str, Style] | None = None,
    ) -> Trial:
        """Draw samples, choose those that tell most, and compare both gradients there in high precision."""
        pool, kinky = self.drawn(lengths, defaults, rng, only)
        by_hand, derived = self.values(pool)
        largest = points.rows(np.abs(derived)).max(axis=1, initial=0.0)
        typical = float(np.median(largest[largest > 0])) if largest.any() else 0.0
        scale = np.maximum(np.abs(by_hand), np.abs(derived)) + ABSOLUTE * typical
        gap = points.rows(relative(by_hand, derived, scale)).max(axis=1, initial=0.0)
        rows = self._telling(pool, gap, lengths, rng)
        chosen = subset(pool, rows)
        by_hand, derived = self.values(chosen, HighPrecision(DIGITS) if len(rows) else Float64())
        wrong = self._confirmed(chosen, _differ(by_hand, derived, typical), typical)
        return Trial(lengths, pool, kinky, chosen, _floats(by_hand), _floats(derived), wrong, typical)

    def _telling(
        self, pool: Drawn, gap: np.ndarray, lengths: Mapping[Axis, int], rng: np.random.Generator
    ) -> np.ndarray:
        """Samples for the slow look: where float64 disagrees most, both sides of kinks, others at random."""
        work = _work([self.by_hand, self.derived], lengths)
        count = min(len(gap), int(np.clip(_OPERATIONS // work, 6, 40)))
        wanted = list(np.argsort(-gap, kind="stable")[: count // 3])
        for distance in self.kinks.distances(pool):
            for side in (distance > 0, distance < 0):
                wanted += list(np.flatnonzero(points.per_sample(side, np.any))[:2])
        wanted += list(rng.permutation(len(gap)))
        return np.array(list(dict.fromkeys(wanted))[:count], dtype=int)

    def _confirmed(self, chosen: Drawn, wrong: np.ndarray, typical: float) -> np.ndarray:
        """The differences that are not rounding: looked at with more digits until one of them stands."""
        wrong = wrong.copy()
        rows = np.flatnonzero(points.per_sample(wrong, np.any))
        for start in range(0, len(rows), 4):
            part = rows[start : start + 4]
            by_hand, derived = self.values(subset(chosen, part), HighPrecision(MORE_DIGITS))
            wrong[part] = _differ(by_hand, derived, typical)
            if wrong[part].any():
                break
        return wrong

    def holds(self, only: Mapping[str, Style], defaults: Mapping[str, Any], rng: np.random.Generator) -> bool:
        """Whether both agree in float64 where some inputs are confined to a style."""
        for lengths in points.sizes(self.definition):
            pool, _ = self.drawn(lengths, defaults, rng, only)
            by_hand, derived = self.values(pool)
            if not derived.size:
                return False
            # Rounding at arguments up to 1000 stays below 1e-6 but for a few points; a mistake shows at most.
            scale = np.maximum(np.abs(derived), np.median(np.abs(derived)))
            if np.mean(relative(by_hand, derived, scale) <= 1e-6) < 0.99:
                return False
        return True

    # ------------------------------------------------------------------ at kinks

    def wrong_at_kink(self, trial: Trial, rng: np.random.Generator) -> AtKink | None:
        """An entry at a kink that is no subgradient, found in float64 and confirmed in high precision."""
        size = len(trial.kinky[self.argument.name])
        rows = rng.permutation(size)[:48]
        if not size:
            return None
        for sample in dict.fromkeys(
            found.sample for found in self._outside(subset(trial.kinky, rows), trial.typical, Float64(), rng)
        ):
            one = subset(trial.kinky, rows[[sample]])
            confirmed = list(self._outside(one, trial.typical, HighPrecision(DIGITS), rng))
            if confirmed:
                return replace(max(confirmed, key=lambda f: f.high - f.low), sample=int(rows[sample]))
        return None

    def _outside(
        self, arrays: Drawn, typical: float, arithmetic: Float64 | HighPrecision, rng: np.random.Generator
    ) -> Iterator[AtKink]:
        """Entries that lie outside of what the derived gradient is nearby."""
        name, x = self.argument.name, arrays[self.argument.name]
        value, derived = map(_floats, self.values(arrays, arithmetic))
        low, high = derived, derived  # next to a kink with an infinite slope the point itself is all that tells
        for _ in range(8):
            # Random directions break every tie; both senses of each put any two entries in either order.
            direction = rng.normal(size=x.shape) * STEP * np.maximum(1.0, np.abs(x))
            for moved in (x + direction, x - direction):
                (nearby,) = self.slope({**arrays, name: moved}, arithmetic, [self.argument.order])
                found = np.where(np.isfinite(_floats(nearby)), _floats(nearby), np.nan)
                low, high = np.fmin(low, found), np.fmax(high, found)
        slack = SLACK * (np.maximum(np.abs(low), np.abs(high)) + typical)
        with np.errstate(invalid="ignore"):
            inside = (value >= low - slack) & (value <= high + slack)
        for position in np.argwhere((low <= high) & ~inside):
            at = tuple(map(int, position))
            yield AtKink(at[0], at[1:], float(value[at]), float(low[at]), float(high[at]))

    # ------------------------------------------------------------------ what a point is

    def factors(self, trial: Trial) -> dict[str, np.ndarray]:
        """What may be missing at each entry: inputs that vary along no other axes, and the sizes."""
        shape, order = trial.by_hand.shape, self.argument.order
        found: dict[str, np.ndarray] = {}
        for port in (*self.definition.arguments, *self.definition.parameters):
            other = port.node is not self.argument.node and port.node.kind is Kind.FLOAT
            if other and set(port.order) <= set(order):
                have = [a for a in order if a in port.order]
                array = trial.chosen[port.name].transpose([0, *(port.order.index(a) + 1 for a in have)])
                wide = array.reshape([len(array), *(trial.lengths[a] if a in have else 1 for a in order)])
                found[f"`{port.name}`"] = np.broadcast_to(wide, shape).ravel()
        count = float(np.prod([trial.lengths[a] for a in self.definition.order]))
        axes = {f"the size of {a!r}": float(n) for a, n in trial.lengths.items() if a != "*shape"}
        for name, value in {self.count: count, **axes}.items():
            found[name] = np.full(trial.by_hand.size, value)
        return found

    @property
    def count(self) -> str:
        """What a mean of the loss divides by, in words."""
        order = self.definition.order
        alone = len(order) == 1 and not order[0].startswith("*")
        return f"the size of {order[0]!r}" if alone else "the number of entries"

    def point(self, arrays: Drawn, sample: int, entry: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """The inputs of a sample: numbers if the loss is elementwise, else arrays and a position."""
        order, value = self.argument.order, self.definition.value
        scalar = is_local(value, self.argument.node) and value.axes == frozenset(order)
        at = dict(zip(order, entry, strict=True))
        found = {}
        for port in (*self.definition.arguments, *self.definition.parameters):
            array = arrays[port.name][sample]
            found[port.name] = array[tuple(at[a] for a in port.order)] if scalar else array
        return found, () if scalar else entry


# ------------------------------------------------------------------------------------------- arithmetic


def relative(x: np.ndarray, y: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """|x − y| in units of `scale`: 0 where they are equal, infinite where one of them is not finite."""
    with np.errstate(all="ignore"):
        gap = np.abs(x - y) / scale
    return np.where(x == y, 0.0, np.where(np.isnan(gap), np.inf, gap))


def _floats(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).astype(np.float64)


def _differ(by_hand: np.ndarray, derived: np.ndarray, typical: float) -> np.ndarray:
    """Where two gradients are not the same number."""
    larger = np.maximum(abs(by_hand), abs(derived))
    same = abs(by_hand - derived) <= RELATIVE * larger + ABSOLUTE * typical
    result: np.ndarray = ~(np.asarray(same, dtype=bool) & np.isfinite(_floats(by_hand)))
    return result


def _work(nodes: Sequence[Node], lengths: Mapping[Axis, int]) -> int:
    """The number of scalar operations that one sample takes, about: operations make axes as long as others."""
    known, usual = dict(lengths), max(lengths.values(), default=1)
    result = 1
    for node in topological(nodes):
        if node.op == "rename":
            known[node.attrs[1]] = known[node.attrs[0]]
        result += int(np.prod([known.get(a, usual) for a in node.axes], dtype=int)) if node.args else 0
    return result
