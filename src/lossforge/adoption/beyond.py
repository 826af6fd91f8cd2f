"""Whether what was read holds at sizes that it was not read at: far from these, beside the examples, and where the function parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lossforge.adoption.original import Original
from lossforge.adoption.reading import Read, overlaid
from lossforge.adoption.sampling import entries
from lossforge.errors import AdoptionError
from lossforge.frontends.recording import Different
from lossforge.ir import Axis

LARGEST_FURTHER = 2**16
"""Entries of an array at sizes that nothing was recorded at."""
_BESIDE = (1, 2, 4, 8)
"""By how much axes are longer than those of the examples, where the function may not take every size."""

Shapes = Sequence[tuple[int, ...]]


class OtherSizes(AdoptionError):
    """It agrees for the examples, and where it was recorded, but not at other sizes."""

    def __init__(self, message: str, shapes: Shapes) -> None:
        super().__init__(message)
        self.shapes = shapes


def beyond(
    original: Original,
    read: Read,
    holds: Callable[[Sequence[np.ndarray]], bool],
    drawn: Callable[[Shapes], Sequence[np.ndarray]],
) -> bool:
    """Whether it could be compared at sizes that nothing was recorded at.

    Even sizes may all have been halved alike; one more row tells. What is drawn may be so unlike the examples that the
    function is the same everywhere, so these are compared too, once and again.

    Args:
        original: the function.
        read: its graph.
        holds: whether they could be compared for some arrays; it raises an AdoptionError where they differ.
        drawn: arrays of some shapes.

    Raises:
        OtherSizes: it differs.
    """
    moving = _Moving(original, read)

    def told(shapes: Shapes, *, examples: bool) -> bool:
        try:
            return holds(drawn(shapes)) | (examples and holds(original.repeated(shapes)))
        except AdoptionError as error:
            raise OtherSizes(str(error), shapes) from None

    further = moving.further()
    found = entries(further) <= LARGEST_FURTHER and told(further, examples=False)
    if not found or moving.all_even():
        beside = (moving.longer(more) for more in _BESIDE)
        found |= any(told(shapes, examples=True) for shapes in beside)
    for shapes in moving.parting():
        found |= told(shapes, examples=True)
    return found


class _Moving:
    """Shapes in which the axes of any size have others than in the examples."""

    def __init__(self, original: Original, read: Read) -> None:
        self.original, self.read = original, read
        self.orders = [p.order for p in read.importer.ports]
        self.own = self._sizes(original.shapes)
        one, other = map(self._sizes, read.shapes)
        self.recorded = {a: (n, other[a]) for a, n in one.items() if a not in read.importer.fixed and n != other[a]}

    def _sizes(self, shapes: Shapes) -> dict[Axis, int]:
        return {a: n for of in zip(self.orders, shapes, strict=True) for a, n in zip(*of, strict=True)}

    def _shapes(self, changed: Mapping[Axis, int]) -> list[tuple[int, ...]]:
        return [
            tuple(changed.get(a, n) for a, n in zip(*of, strict=True))
            for of in zip(self.orders, self.original.shapes, strict=True)
        ]

    def further(self) -> Shapes:
        """Far from what was recorded."""
        return self._shapes({a: n for a, n in self._sizes(self.read.further).items() if a in self.recorded})

    def longer(self, more: int) -> Shapes:
        """Beside the examples."""
        return self._shapes({a: self.own[a] + more for a in self.recorded if self.own[a] > 1})

    def all_even(self) -> bool:
        """Whether there is an axis that was only recorded at even sizes."""
        return any(self.own[a] > 1 and n % 2 == m % 2 == 0 for a, (n, m) in self.recorded.items())

    def parting(self) -> Iterator[Shapes]:
        """Where the function takes other steps than those that were recorded: at sizes that its text compares with."""
        for size in self.original.turning_sizes:
            together = self._shapes(dict.fromkeys(self.recorded, size))
            parts = self._parts(together) if entries(together) <= LARGEST_FURTHER else None
            if parts is None:  # the function does not take it
                alone = (self._shapes({a: size}) for a in self.recorded)
                yield from (s for s in alone if entries(s) <= LARGEST_FURTHER and self._parts(s))
            elif parts:
                yield together

    def _parts(self, shapes: Shapes) -> bool | None:
        """Whether it takes other steps for arrays of these shapes; None if it takes none."""
        try:
            overlaid([self.original.record(self.read.shapes[0]), self.original.record(shapes)])
        except Different:
            return True
        except AdoptionError:
            return None
        return False


__all__ = ["LARGEST_FURTHER", "OtherSizes", "beyond"]
