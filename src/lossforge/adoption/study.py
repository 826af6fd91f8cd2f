"""What is found out about a function: at which sizes it holds, and its definition as a loss."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lossforge import ir
from lossforge.adoption.agreement import OfFew, arrays_of, holds_for, square, verify
from lossforge.adoption.beyond import OtherSizes
from lossforge.adoption.means import before_mean, mean
from lossforge.adoption.naming import name_axes
from lossforge.adoption.original import Original
from lossforge.adoption.reading import Read
from lossforge.adoption.sizes import DRAWS, LARGER, LENGTHS, Sizes, drawn
from lossforge.compiler import Definition, Reduction
from lossforge.errors import AdoptionError, BroadcastWarning, NotDifferentiableError
from lossforge.frontends.positional import SELECTED, AxisTable, Refused
from lossforge.frontends.recording import Different, overlay
from lossforge.frontends.rolling import rolled
from lossforge.gradient import require_gradient
from lossforge.ir import Axis, Kind, Node, Port
from lossforge.stabilize import stabilize

_LONG = 256
"""Steps in which loops are rolled up first, since each of them may tell of axes, and is read again then."""
_MOST_OPERATIONS = 512
"""Of a loss that is read for one size of everything: loops that are written out take long to compile ..."""
_MOST_REDUCTIONS = 16
"""... and those with a reduction in each turn longest."""


class Study(Sizes):
    """One function, with everything that is found out about it."""

    read: Read

    def __init__(self, original: Original, layout: str | None) -> None:
        super().__init__(original)
        self.layout = layout
        self.taken_for_units: set[Axis] = set()
        """Axes of size 1 in the examples that were read as such once."""
        original.check()
        self._look()

    def _look(self) -> None:
        """Read the function, as far as it is known which axes have size 1 in every call."""
        outline = self.original.outlined(self.original.shapes)
        importer, _ = self.imported(
            overlay([rolled(outline) if len(outline.steps) > _LONG else outline], {})
        )  # which dimensions go together
        if 1 in self.example().values():  # what is joined along such an axis is as long as something else by chance
            self.table = self.table.of_arguments()
        table = self.table.unnamed()
        try:
            self.read = self.generalise({importer.origin[a] for a in importer.fixed if a in importer.origin})
        except AdoptionError:
            self.table = table
            if (found := self._read_at_examples()) is None:
                raise
            self.read = found
        self._name()

    def _name(self) -> None:
        """Give axes their names, and read once more with these."""
        name_axes(self, self.read, self.layout)
        importer, result = self.imported(self.read.importer.recording)
        self.read = replace(self.read, importer=importer, result=result)

    def _look_anew(self, *, units: Collection[Axis] = (), kept: Mapping[Axis, int] | None = None) -> None:
        """Read the function once more: some axes have size 1 in every call, others keep the size of the examples."""
        self.table = self.table.unnamed()
        self.table.units |= {*units}
        self.kept |= kept or {}
        self.stuck = {}
        self._look()

    def _look_at_units(self) -> bool:
        """Whether there are axes of size 1 in the examples that another reading keeps at that size.

        A loss may take another way for one channel than for several, which shows when it is compared at the examples.
        """
        units = {r for r, n in self.example().items() if n == 1} - self.table.units
        if units <= self.taken_for_units:
            return False
        self.taken_for_units |= units
        if units:
            self._look_anew(units=units)
        return bool(units)

    def _look_at_rows(self) -> bool:
        """Whether there is another reading in which axes of one size are one, as a loop takes rows of several arguments."""
        level = self._level()
        if self._same_steps(self.original.shapes, self.read.shapes[0]) or level.parents == self.table.parents:
            return False
        self.table = level
        self._look_anew()
        return True

    def _look_at_sizes(self) -> bool:
        """Whether there is another reading, at the steps of the examples, which one axis of their size brings about.

        A loss may take another way for three channels, say, than for any other number.
        """
        own = self.original.shapes
        if self.kept or self._same_steps(own, self.read.shapes[0]):
            return False
        example = self.example()
        free = [r for r in example if r not in self.table.units]
        for root, draws in itertools.product(free, (DRAWS, LARGER)):
            other = [n for n in draws[0] if n not in example.values()]
            keeping = self.shapes(drawn(free, example, other, {root: example[root]}))
            if example[root] > 1 and self._same_steps(own, keeping):
                self._look_anew(kept={root: example[root]})
                return True
        return False

    def _hold(self, shapes: Sequence[tuple[int, ...]], node: Node, order: Sequence[Axis]) -> bool:
        """Whether there are axes that have to keep the size of the examples: at that of `shapes`, the function differs.

        A loss may halve an image again and again, and pad it where its size is odd.
        """
        example = self.example()
        there = {r: n for of in zip(self.roots(), shapes, strict=True) for r, n in zip(*of, strict=True)}
        moved = [r for r, n in example.items() if r not in self.table.units and r not in self.stuck and n != there[r]]
        differs = [
            r for r in moved if not self._agrees(self.shapes({**example, r: there[r]}), node, order, unless_taken=False)
        ]
        self._holding(self.read, {r: example[r] for r in differs or moved})
        return bool(moved)

    def _look_at_examples(self) -> bool:
        """Whether there is another reading, that for the sizes of the examples alone; another size is then read anew."""
        if self.stuck.keys() >= {r for r, n in self.example().items() if r not in self.table.units}:
            return False
        self.table = AxisTable()
        found = self._read_at_examples()
        if found is None:
            return False
        self.read = found
        self._name()
        return True

    def _read_at_examples(self) -> Read | None:
        """The reading in which no axis has another size than in the examples; None if there is none."""
        example = self.example()
        try:
            read = self.at([example, example])
        except (AdoptionError, Different):
            return None
        nodes = ir.topological([read.result.node])
        if len(nodes) > _MOST_OPERATIONS or sum(n.op in ir.REDUCTIONS for n in nodes) > _MOST_REDUCTIONS:
            return None
        return self._holding(read, {r: n for r, n in example.items() if r not in self.table.units})

    def _same_steps(self, first: Sequence[tuple[int, ...]], second: Sequence[tuple[int, ...]]) -> bool:
        try:
            overlay([self.original.record(first), self.original.record(second)], {})
        except (AdoptionError, Different):
            return False
        return True

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
            raise AdoptionError(f"{self.original.name}: its result: {reason}") from None
        node = ir.as_kind(result.node, Kind.FLOAT)
        order = tuple(a for d in result.dims for a in d)
        if any(a.startswith(SELECTED) for a in order):
            raise AdoptionError(
                f"{self.original.name}: the result is a selection by truth values, whose size depends on them; take its sum or mean, "
                f"or use torch.where or its like"
            )
        reduction: Reduction = "none" if order else "mean"
        fixed = tuple((a, n) for a, n in importer.fixed.items() if a in {b for p in importer.ports for b in p.order})
        fixed += tuple((a, n) for r, n in self.stuck.items() for a, o in importer.origin.items() if o == r)
        try:
            self._verify(node, order)
        except OfFew as error:
            root = importer.origin[error.axis]
            if self.lengths or root in self.stuck:
                if not self._look_at_examples():
                    raise
            else:
                self.lengths = {root: LENGTHS}
                self._look_anew()
            return self.definition(whole=whole)
        except OtherSizes as error:
            shapes = error.shapes
            looks = (
                self._look_at_rows, self._look_at_sizes, lambda: self._hold(shapes, node, order), self._look_at_examples,
            )  # fmt: skip
            if not any(look() for look in looks):
                raise
            return self.definition(whole=whole)
        except AdoptionError:
            looks = self._look_at_units, self._look_at_rows, self._look_at_sizes, self._look_at_examples
            if not any(look() for look in looks):
                raise
            return self.definition(whole=whole)
        equal = square(self.original, self.read, self.numbers, node, order)
        if not order and whole:
            node, order = self._entries(node, importer.ports)
        source = node
        node, rewrites = stabilize(node)
        for p in self.original.predictions:
            port = next(q for q in importer.ports if q.name == p)
            if port.node.kind is not Kind.FLOAT:
                raise AdoptionError(f"{self.original.name}: the prediction {p!r} is not floating point")
            try:
                require_gradient(node, port.node, p)
            except NotDifferentiableError as error:
                raise AdoptionError(f"{self.original.name}: {error}") from None
        if rewrites:
            self._verify(*((mean(node, order), ()) if reduction == "mean" else (node, order)))
        self._warn_of_broadcast(importer.ports, node)
        parameters = tuple(Port(ir.input_(p), ()) for p in self.numbers)
        return (
            Definition(
                self.original.name, tuple(importer.ports), parameters, node, order, self.original.predictions, (), rewrites, source,
                fixed=tuple(dict.fromkeys(fixed)), square=equal,
            ),
            reduction,
        )  # fmt: skip

    def _verify(self, node: Node, order: Sequence[Axis]) -> None:
        verify(self.original, self.read, self.numbers, node, order)

    def _agrees(
        self, shapes: Sequence[tuple[int, ...]], node: Node, order: Sequence[Axis], *, unless_taken: bool
    ) -> bool:
        """Whether a graph agrees with the original for arrays of some shapes; `unless_taken` if this does not take them."""
        several = arrays_of(shapes, self.original, self.read, node)
        return holds_for(several, self.original, self.read, self.numbers, node, order, unless_taken=unless_taken)

    def holds_at(self, shapes: Sequence[tuple[int, ...]], definition: Definition, reduction: Reduction) -> bool:
        """Whether the definition agrees with the original for arrays of some shapes, if this takes them at all."""
        found = self._agrees(shapes, *_reduced(definition, reduction), unless_taken=True)
        self.original.forget()
        return found

    def holds_for(self, arrays: Sequence[np.ndarray], definition: Definition, reduction: Reduction) -> bool:
        """Whether the definition agrees with the original for these arrays, if this takes them at all."""
        node, order = _reduced(definition, reduction)
        found = holds_for([arrays], self.original, self.read, self.numbers, node, order, unless_taken=True)
        self.original.forget()
        return found

    def _entries(self, node: Node, ports: Sequence[Port]) -> tuple[Node, tuple[Axis, ...]]:
        """The loss of each entry, if the loss is their mean."""
        found = before_mean(node, self.read.importer.size)
        order = list(dict.fromkeys(a for p in ports for a in p.order))
        if found is None or not found[1] <= set(order) or found[0].axes != found[1]:
            return node, ()
        main = next(p for p in ports if p.name == self.original.predictions[0])
        order = [*main.order, *(a for a in order if a not in main.order)]
        if any(a in found[1] and self.read.importer.fixed.get(a) == 1 for a in order):
            return node, ()
        return found[0], tuple(a for a in order if a in found[1])

    def _warn_of_broadcast(self, ports: Sequence[Port], node: Node) -> None:
        """Two dimensions of one size, set against each other by broadcasting alone, may be a mistake."""
        main = next(i for i, p in enumerate(ports) if p.name == self.original.predictions[0])
        for i, port in enumerate(ports):
            if i == main:
                continue
            for a, n in zip(port.order, self.original.arrays[i].shape, strict=True):
                for b, m in zip(ports[main].order, self.original.arrays[main].shape, strict=True):
                    apart = a not in ports[main].order and b not in port.order
                    if apart and frozenset((a, b)) in self.read.importer.outer and n == m and n > 1:
                        warnings.warn(
                            f"{self.original.name}: a dimension of {port.name!r} and one of {ports[main].name!r} both have size {n} "
                            f"but never meet: shapes {self.original.arrays[i].shape} and {self.original.arrays[main].shape} are broadcast "
                            f"against each other, {n}×{m}. Reshape one of them if that is not meant",
                            BroadcastWarning,
                            stacklevel=5,
                        )
                        return


def _reduced(definition: Definition, reduction: Reduction) -> tuple[Node, tuple[Axis, ...]]:
    """What the original returns, and its axes."""
    value, order = definition.value, definition.order
    return (mean(value, order), ()) if reduction == "mean" else (value, order)
