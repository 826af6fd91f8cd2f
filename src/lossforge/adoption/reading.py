"""A function read at given sizes: recorded, laid over each other, imported as a graph over named axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lossforge import ir
from lossforge.adoption.original import Original
from lossforge.adoption.sampling import other_values
from lossforge.errors import AdoptionError
from lossforge.frontends.loops import LOOPS
from lossforge.frontends.positional import AxisTable, Importer, Refused, Restart, Tensor
from lossforge.frontends.recording import Different, Recording, overlay
from lossforge.frontends.rolling import rolled
from lossforge.ir import Axis, Node

_ATTEMPTS = 400
_MOST_STEPS = 120_000
"""That are imported, in all attempts of one loss together: some ten seconds."""
_TOO_LONG = "reading it takes too many steps; use operations on whole arrays in place of loops over entries"


@dataclass
class Read:
    """A successful import."""

    importer: Importer
    result: Tensor
    shapes: tuple[list[tuple[int, ...]], list[tuple[int, ...]]]
    further: list[tuple[int, ...]]
    """Shapes at which nothing was recorded."""

    @property
    def hollow(self) -> bool:
        """Whether an array has no entries at a recorded size, as the windows of a signal have that is too short for any."""
        steps = self.importer.recording.steps
        sizes = (n for step in steps for made in step.shapes for shape in made for n in shape)
        return any(type(n) is int and n == 0 for n in sizes)  # a size that depends on values is no number


class Reader:
    """Reads a function, and keeps what it learns of its axes."""

    def __init__(self, original: Original) -> None:
        self.original = original
        self.table = AxisTable()
        self.numbers: dict[str, float] = {}
        """Those that are parameters of the graph; the others shape it."""
        self.steps = 0
        """How many were imported so far."""

    def imported(self, recording: Recording) -> tuple[Importer, Tensor]:
        """A recording as a graph.

        Raises:
            AdoptionError: a step cannot be imported.
        """
        for _ in range(_ATTEMPTS):
            if self.steps > _MOST_STEPS:
                place = recording.steps[-1].told
                raise AdoptionError(f"{self.original.name}: {place}: {_TOO_LONG}")
            self.steps += len(recording.steps)
            try:
                rules = {**self.original.front.rules, **LOOPS}
                examples = self.example()
                original = self.original
                importer = Importer(
                    recording, original.names, original.kinds, rules, self.table, examples, original.shares
                )
                return importer, importer.run()
            except Restart:
                continue
            except Refused as reason:
                raise AdoptionError(f"{self.original.name}: {reason}") from None
            except AdoptionError as error:
                raise AdoptionError(f"{self.original.name}: {error}") from None
        raise AdoptionError(f"{self.original.name}: the axes of its arrays could not be told apart")

    def roots(self) -> list[list[Axis]]:
        """The axis in each dimension of each argument, as far as is known which are one."""
        return [
            [self.table.root(f"{name}_{d}") for d in range(a.ndim)]
            for name, a in zip(self.original.names, self.original.arrays, strict=True)
        ]

    def shapes(self, sizes: Mapping[Axis, int]) -> list[tuple[int, ...]]:
        """The shapes of all arguments where axes have these sizes."""
        return [tuple(1 if r in self.table.units else sizes[r] for r in of) for of in self.roots()]

    def example(self) -> dict[Axis, int]:
        """The size of each axis in the examples."""
        example: dict[Axis, int] = {}
        for of, shape in zip(self.roots(), self.original.shapes, strict=True):
            for root, n in zip(of, shape, strict=True):
                example[root] = max(n, example.get(root, 1))
        return example

    def at(self, sizes: Sequence[Mapping[Axis, int]], only_sizes: bool = False) -> Read:
        """The import at two sets of sizes, with as many numbers as parameters as can be."""
        shapes = [self.shapes(s) for s in sizes]
        pair = [self.original.record(s) for s in shapes]
        recording = overlaid(pair)
        importer, result = self.imported(recording)
        further = self.shapes({r: n + sizes[1][r] if n != sizes[1][r] else n for r, n in sizes[0].items()})
        read = Read(importer, result, (shapes[0], shapes[1]), further)
        self.numbers = {}
        if only_sizes or self.original.exhausted:
            return read
        names = self._turning_nowhere(shapes[0])
        together = self.with_numbers(shapes, pair, names, further) if names else read
        if together is None and len(names) > 1:
            names = [n for n in names if self._keeps_steps(shapes[0], pair[0], n)]
            together = self.with_numbers(shapes, pair, names, further) if names else read
        if together is not None:
            self.numbers = self._used(names, together)
            return together
        for name in names if len(names) > 1 else ():  # as many as can be
            found = self.with_numbers(shapes, pair, [*self.numbers, name], further)
            if found is not None and name in self._used([name], found):
                self.numbers[name], read = self.original.numbers[name], found
        return read

    def _used(self, names: Sequence[str], read: Read) -> dict[str, float]:
        """Those of some numbers that the result depends on."""
        used = {n.attrs[0] for n in ir.topological([read.result.node]) if n.op == "input"}
        return {n: self.original.numbers[n] for n in names if n in used}

    def _keeps_steps(self, shapes: Sequence[tuple[int, ...]], recording: Recording, name: str) -> bool:
        """Whether the steps are the same for another value of a number."""
        try:
            other = self.original.record(shapes, **{name: other_values(self.original.numbers[name])[0]})
            overlay([recording, other], {})
        except (AdoptionError, Different):
            return False
        return True

    def _turning_nowhere(self, shapes: Sequence[tuple[int, ...]]) -> list[str]:
        """The numbers of which the steps are the same on either side of all that they may be compared with.

        All are changed at once, each to another side, and one by one only if that makes a difference.
        """
        points = {n: self.original.turning_points(n) for n in self.original.numbers}
        try:
            for k in range(max(map(len, points.values()), default=0) if len(points) > 1 else 0):
                changed = {n: of[(k + i) % len(of)] for i, (n, of) in enumerate(points.items()) if of}
                overlay([self.original.usual(shapes), self.original.usual(shapes, **changed)], {})
        except (AdoptionError, Different):
            return [n for n in points if self._turns_nowhere(shapes, n)]
        return [n for n in points if len(points) > 1 or self._turns_nowhere(shapes, n)]

    def _turns_nowhere(self, shapes: Sequence[tuple[int, ...]], name: str) -> bool:
        """Whether the steps are the same on either side of all numbers that this one may be compared with."""
        return not any(self._parts(shapes, name, v) for v in self.original.turning_points(name))

    def _parts(self, shapes: Sequence[tuple[int, ...]], name: str, value: float) -> bool:
        """Whether the function takes other steps for this value of a number."""
        try:
            overlay([self.original.usual(shapes), self.original.usual(shapes, **{name: value})], {})
        except Different:
            return True
        except AdoptionError:  # it does not take the value
            return False
        return False

    def with_numbers(
        self,
        shapes: Sequence[Sequence[tuple[int, ...]]],
        pair: Sequence[Recording],
        names: Sequence[str],
        further: list[tuple[int, ...]],
    ) -> Read | None:
        """The import with these numbers as parameters; None if they shape the graph, or count."""
        recordings = list(pair)
        own = {n: self.original.numbers[n] for n in names}
        others = [other_values(value, place) for place, value in enumerate(own.values())]
        table = AxisTable(dict(self.table.parents), set(self.table.units), dict(self.table.names))
        try:
            for k, at in enumerate((shapes[0], shapes[0], shapes[1])):
                changed = {n: values[k] for n, values in zip(names, others, strict=True)}
                recordings.append(self.original.record(at, **changed))
            environment = {n: [own[n], own[n], *values] for n, values in zip(names, others, strict=True)}
            importer, result = self.imported(overlaid(recordings, environment))
        except (AdoptionError, Different):
            self.table = table
            return None
        if _counts(result.node):
            self.table = table
            return None
        return Read(importer, result, (list(shapes[0]), list(shapes[1])), further)


def _counts(node: Node) -> bool:
    """Whether a parameter tells how many entries there are, which float32, in which it is given, may miss by one."""
    counts = [n for n in ir.topological([node]) if n.op in ("floor", "ceil", "round") and not n.axes]
    beneath = ir.topological(counts)
    return any(n.op == "size" for n in beneath) and any(n.op == "input" for n in beneath)


def overlaid(recordings: Sequence[Recording], environment: Mapping[str, Sequence[float]] | None = None) -> Recording:
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
