"""Whether a graph agrees with the function that it was read from, in value and gradient, on drawn inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lossforge import ir
from lossforge.adoption.beyond import LARGEST_FURTHER, beyond
from lossforge.adoption.divergence import parting, spoiled, unworkable
from lossforge.adoption.original import Original
from lossforge.adoption.reading import Read
from lossforge.adoption.sampling import beside, entries, other_values
from lossforge.errors import AdoptionError, LossforgeError
from lossforge.frontends.positional import Importer
from lossforge.frontends.positional.axis_table import unprimed
from lossforge.frontends.sources import names_a_line
from lossforge.gradient import vjp
from lossforge.interpreter import evaluate
from lossforge.ir import Axis, Kind, Node, Port

_LARGEST_COMPARED = 2**17
"""Entries of an array at the second sizes that it was recorded at, where those of the examples can stand for them."""
_LARGEST_WITHIN = 2**24
"""Entries of a value on the way, where many entries along an axis are compared."""
_LONG = 997
"""Entries along which shares and orders are compared."""
_TOLERANCE = 1e-4
"""Of the largest entry, in float32, which some libraries compute in throughout."""
_ROUNDING = 1e-3
"""What may be the original's own rounding, if it agrees in float64 ..."""
_EXACT = 1e-6
"""... to this part of the largest entry."""


class OtherGradient(AdoptionError):
    """The value is that of the original, the gradient is not."""


class OfFew(AdoptionError):
    """It agrees for few entries along an axis, but not for many."""

    def __init__(self, message: str, axis: Axis) -> None:
        super().__init__(message)
        self.axis = axis


def verify(original: Original, read: Read, parameters: Mapping[str, float], node: Node, order: Sequence[Axis]) -> None:
    """Value and gradient against the function itself, at two shapes and with other parameters.

    Raises:
        AdoptionError: they differ.
    """
    comparison = _Comparison.of(original, read.importer, parameters, node, order)
    drawn = _Drawn(original, read, node)
    first, second = read.shapes
    second = second if entries(second) <= _LARGEST_COMPARED else first
    compared = comparison.holds(drawn(first), original.numbers)
    compared |= _at_length(
        read, node, compared, lambda shapes: comparison.holds(drawn(shapes), original.numbers, beyond=True)
    )
    if second is not first:
        compared |= comparison.holds(drawn(second), original.numbers)
    compared |= comparison.holds([np.array(a) for a in original.arrays], original.numbers)
    compared |= beyond(original, read, lambda arrays: comparison.holds(arrays, original.numbers, beyond=True), drawn)
    arrays = drawn(second)
    for change in (lambda v: other_values(v)[2], lambda v: 2 * v) if parameters else ():
        # The range of data, say, may be enlarged only.
        numbers = {**original.numbers, **{n: change(v) for n, v in parameters.items()}}
        if comparison.holds(arrays, numbers, beyond=True):
            break
    comparison.require_slopes(original.arrays)
    if not compared:
        raise AdoptionError(
            f"{original.name}: the original gives no finite value on drawn inputs, so it cannot be compared; give examples "
            f"of legal values (probabilities, labels …)"
        )


def _at_length(read: Read, node: Node, compared: bool, holds: Callable[[Sequence[tuple[int, ...]]], bool]) -> bool:
    """Whether it could be compared along many entries, where these are counted: a share of few may be another of many.

    `compared` says that it was at the sizes of the first recording, which may be enough.

    Raises:
        AdoptionError: it differs, or shares of sizes were guessed and cannot be tried.
    """
    nodes = ir.topological([node])
    counts = [n for n in nodes if n.op == "floor" and n.args[0].op == "mul" and not n.axes]
    of_shares = {n.attrs[0] for n in ir.topological(counts) if n.op == "size"}
    joined = {n.attrs[1]: n.attrs[0] for n in nodes if n.op == "join"}
    sorted_axes = {ir.original(n.attrs[0]) for n in nodes if n.op == "argsort"}
    long = of_shares | {a for axis in sorted_axes for a in joined.get(axis, (axis,))}
    if not long:
        return False
    ports = read.importer.ports
    recorded = {a: n for p, s in zip(ports, read.shapes[0], strict=True) for a, n in zip(p.order, s, strict=True)}
    if compared and math.prod(n for a, n in recorded.items() if a in long) >= _LONG:
        return True
    several = read.importer.sizes
    first = next((a for p in ports for a in p.order if a in long and len(set(several.get(a, ()))) > 1), None)
    for base in (read.further, read.shapes[0]):  # the examples are smaller
        sizes = {a: n for p, s in zip(ports, base, strict=True) for a, n in zip(p.order, s, strict=True)}
        others = math.prod(n for a, n in sizes.items() if a in long and a != first)
        sizes = {a: max(n, _LONG // others) if unprimed(a) == first else n for a, n in sizes.items()}
        shapes = [tuple(sizes[a] for a in p.order) for p in ports]
        if entries(shapes) <= LARGEST_FURTHER:
            break
    try:
        largest = max(math.prod(sizes.get(ir.original(a), _LONG) for a in n.axes) for n in nodes)
        small = entries(shapes) <= LARGEST_FURTHER and largest <= _LARGEST_WITHIN
        compared = first is not None and small and holds(shapes)
    except AdoptionError as error:
        raise OfFew(str(error), str(first)) from None
    if of_shares and not compared:
        raise AdoptionError(
            "it takes a share of its entries, as `int(share * n)` of them, which cannot be told from so few; give larger examples, or "
            "make the number of entries an argument"
        )
    return compared


def square(
    original: Original, read: Read, parameters: Mapping[str, float], node: Node, order: Sequence[Axis]
) -> tuple[tuple[Axis, Axis], ...]:
    """Axes of one argument that were read as one, if the graph does not hold where they have two sizes.

    The height and the width of an image may be read as one if those of the examples are equal.
    """
    ports = read.importer.ports
    pairs = tuple(dict.fromkeys((unprimed(a), a) for p in ports for a in p.order if a != unprimed(a)))
    if not pairs:
        return ()
    other = {a: 3 + i for i, (_, a) in enumerate(pairs)}
    shapes = [
        tuple(n + other.get(a, 0) for a, n in zip(p.order, s, strict=True))
        for p, s in zip(ports, read.shapes[0], strict=True)
    ]
    if entries(shapes) > _LARGEST_COMPARED:
        return pairs
    several = arrays_of(shapes, original, read, node)
    return () if holds_for(several, original, read, parameters, node, order, unless_taken=False) else pairs


def arrays_of(
    shapes: Sequence[tuple[int, ...]], original: Original, read: Read, node: Node
) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
    """Arrays of some shapes to compare with: drawn ones, and the examples once and again."""
    return _Drawn(original, read, node)(shapes), original.repeated(shapes)


def holds_for(
    several: Collection[Sequence[np.ndarray]],
    original: Original,
    read: Read,
    parameters: Collection[str],
    node: Node,
    order: Sequence[Axis],
    *,
    unless_taken: bool,
) -> bool:
    """Whether a graph agrees with the original for certain arrays; `unless_taken` if this takes none of them."""
    comparison = _Comparison.of(original, read.importer, parameters, node, order)
    try:
        return any([comparison.holds(a, original.numbers, beyond=True) for a in several]) or unless_taken
    except AdoptionError:
        return False


class _Drawn:
    """Arrays that the original takes, of any shapes."""

    def __init__(self, original: Original, read: Read, node: Node) -> None:
        self.original, self.ports = original, read.importer.ports
        self.rng = np.random.default_rng(20)
        self.bounds = _bounds(self.ports, node)
        self.constant = {a: n[0] for a, n in read.importer.sizes.items() if len(set(n)) == 1}

    def __call__(self, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        of = zip(self.original.samplers, shapes, self.ports, strict=True)
        sizes = self.constant | {
            a: n for p, s in zip(self.ports, shapes, strict=True) for a, n in zip(p.order, s, strict=True)
        }
        free = [
            s.draw(self.rng, shape, min([sizes[a] for a in self.bounds.get(p.name, ()) if a in sizes], default=None))
            for s, shape, p in of
        ]
        repeated = self.original.repeated(shapes)
        return free if self.original.takes(free) or not self.original.takes(repeated) else repeated


@dataclass(frozen=True)
class _Comparison:
    """A graph beside the function that it was read from."""

    original: Original
    importer: Importer
    ports: tuple[Port, ...]
    parameters: tuple[str, ...]
    node: Node
    order: tuple[Axis, ...]
    slopes: tuple[Node, ...]
    """The gradient of the node's sum with respect to each prediction."""

    @classmethod
    def of(
        cls, original: Original, importer: Importer, parameters: Collection[str], node: Node, order: Sequence[Axis]
    ) -> _Comparison:
        """That of a node; its gradient is derived."""
        ports = importer.ports
        wrt = [ports[original.names.index(p)].node for p in original.predictions]
        slopes = vjp([(node, ir.constant(1.0))], wrt)
        known = tuple(ir.constant(0.0) if s is None else s for s in slopes)
        return cls(original, importer, tuple(ports), tuple(parameters), node, tuple(order), known)

    def holds(self, arrays: Sequence[np.ndarray], numbers: Mapping[str, float], beyond: bool = False) -> bool:
        """Whether they could be compared; `beyond` says that the original may not take these arrays or numbers at all.

        Where the original's own float32 loses more digits than `_TOLERANCE` allows (long cumulative sums do), it is
        compared in float64.

        Raises:
            AdoptionError: they differ.
        """
        try:
            return self._within(_TOLERANCE, arrays, numbers, beyond=beyond)
        except AdoptionError as error:
            if self._differs_by_rounding(arrays, numbers):
                return True
            if names_a_line(str(error)):
                raise
            given = self._given(arrays, numbers)
            told = parting(self.original, self.importer, given, arrays, numbers)
            if not told and isinstance(error, OtherGradient) and (step := spoiled(self.importer, self.node, given)):
                told = f"As read, the gradient is not finite from this step on: {step}; write it with other operations"
            if told:
                raise type(error)(f"{error}. {told}") from None
            raise

    def require_slopes(self, arrays: Sequence[np.ndarray]) -> None:
        """See that the original has a gradient wherever what was read has one.

        Raises:
            AdoptionError: it is undefined there, as that of a root or a logarithm at 0 is times 0, whatever it is masked by afterwards.
        """
        value, gradients = self.original.run(arrays, self.original.numbers)
        by_differences = getattr(self.original.front, "by_differences", False)  # which leave entries out, as NaN
        if by_differences or not np.isfinite(value).all() or not any(np.isnan(g).any() for g in gradients or ()):
            return
        _, *mine = evaluate([self.node, *self.slopes], self._given(arrays, self.original.numbers))
        wrt = [self.original.names.index(p) for p in self.original.predictions]
        for i, slope, found, theirs in zip(wrt, self.slopes, mine, gradients or (), strict=True):
            full = _spread(found, slope.axes, self.ports[i].order, theirs.shape)
            lost = np.isnan(theirs) & np.isfinite(full)
            if lost.any():
                where = getattr(self.original.front, "undefined", lambda *_: "")(
                    arrays, {**self.original.options, **self.original.numbers}, wrt
                )
                raise AdoptionError(
                    f"{self.original.name}: {where}{': ' if where else ''}the gradient with respect to {self.ports[i].name!r} of the "
                    f"original is nan at {int(lost.sum())} of {lost.size} entries of the examples, where it is finite as read; use a "
                    f"`where` before this operation too, or give examples for which it is finite"
                )

    def _given(self, arrays: Sequence[np.ndarray], numbers: Mapping[str, float]) -> dict[Port, np.ndarray | float]:
        values = {Port(ir.input_(n), ()): numbers[n] for n in self.parameters}
        return {**dict(zip(self.ports, arrays, strict=True)), **values}

    def _differs_by_rounding(self, arrays: Sequence[np.ndarray], numbers: Mapping[str, float]) -> bool:
        wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
        try:
            self._within(_ROUNDING, arrays, numbers)
            return self._within(_EXACT, wide, numbers)
        except AdoptionError:
            return False

    def _within(
        self,
        tolerance: float,
        arrays: Sequence[np.ndarray],
        numbers: Mapping[str, float],
        *,
        beside_kinks: bool = False,
        beyond: bool = False,
    ) -> bool:
        """Whether they could be compared.

        Raises:
            AdoptionError: they differ by more than a part of the largest entry.
        """
        original = self.original
        try:
            value, gradients = original.run(arrays, numbers)
        except Exception as error:
            if beyond:
                return False
            raise AdoptionError(f"{original.name}: {original.front.explain(error)}") from error
        try:
            mine = evaluate([self.node, *self.slopes], self._given(arrays, numbers))
        except (LossforgeError, ValueError, LookupError) as error:
            step = unworkable(self.importer, self._given(arrays, numbers))
            raise AdoptionError(
                f"{original.name}: {step}{': ' if step else ''}it was read for some sizes, but not for inputs of shapes "
                f"{[a.shape for a in arrays]} ({error}); write this step in another way"
            ) from error
        if not np.isfinite(value).any():
            return False
        self._agree("value", _ordered(mine[0], self.node.axes, self.order), np.asarray(value), arrays, tolerance)
        wrt = [original.names.index(p) for p in original.predictions]
        for i, slope, found, theirs in zip(wrt, self.slopes, mine[1:], gradients or (), strict=gradients is not None):
            port = self.ports[i]
            full = _spread(found, slope.axes, port.order, theirs.shape)
            finite = np.isfinite(theirs)
            what = f"gradient with respect to {port.name!r}"
            try:
                self._agree(what, np.where(finite, full, 0), np.where(finite, theirs, 0), arrays, tolerance)
            except AdoptionError as error:
                if beside_kinks:
                    raise
                # At a kink each side has its own subgradient; beside it there is but one.
                moved = [beside(a, original.samplers[k]) if k in wrt else a for k, a in enumerate(arrays)]
                try:
                    self._within(tolerance, moved, numbers, beside_kinks=True)
                except AdoptionError:
                    raise OtherGradient(str(error)) from None
        return True

    def _agree(
        self, what: str, mine: np.ndarray, theirs: np.ndarray, arrays: Sequence[np.ndarray], tolerance: float
    ) -> None:
        if mine.shape != theirs.shape:
            raise AdoptionError(
                f"{self.original.name}: the {what} has shape {theirs.shape}, as read {mine.shape}; it is not adopted"
            )
        finite = np.isfinite(theirs)
        scale = max(float(np.max(np.abs(theirs[finite]), initial=0.0)), 1e-30)
        gap = np.abs(mine[finite] - theirs[finite])
        if not (gap <= tolerance * scale).all() or not np.isfinite(mine[finite]).all():
            worst = int(np.argmax(np.where(np.isnan(gap), np.inf, gap))) if gap.size else 0
            raise AdoptionError(
                f"{self.original.name}: the {what} of the original is {theirs[finite][worst]:.6g}, as read {mine[finite][worst]:.6g}, "
                f"for inputs of shapes {[a.shape for a in arrays]}; it is not adopted. Please report this loss"
            )


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
        if n.op == "take":
            axis, index = original(n.attrs[0]), n.args[1]
        elif n.op == "eq" and any(a.op == "iota" for a in n.args):
            position = next(a for a in n.args if a.op == "iota")
            axis, index = original(position.attrs[0]), next((a for a in n.args if a is not position), n.args[1])
        else:
            continue
        pending = [index]
        while pending:
            leaf = pending.pop()
            if leaf.op == "input" and leaf.kind is not Kind.BOOL:
                found.setdefault(str(leaf.attrs[0]), set()).add(axis)
            if leaf.op not in _OF_ANY_VALUES:
                pending += leaf.args
    return found


_OF_ANY_VALUES = ("argsort", "argmax", "argmin")
"""Operations that give positions, whatever their operand holds."""


def _ordered(array: np.ndarray, axes: frozenset[Axis], order: Sequence[Axis]) -> np.ndarray:
    names = sorted(axes)
    return array.transpose([names.index(a) for a in order]) if order else array


def _spread(array: np.ndarray, axes: frozenset[Axis], order: Sequence[Axis], shape: Sequence[int]) -> np.ndarray:
    names = sorted(axes)
    kept = [a for a in order if a in axes]
    moved = array.transpose([names.index(a) for a in kept])
    full = [n if a in axes else 1 for a, n in zip(order, shape, strict=True)]
    return np.broadcast_to(moved.reshape(full), shape)
