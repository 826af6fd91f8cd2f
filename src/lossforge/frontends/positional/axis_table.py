"""What an import learns of axes: which are one, which have size 1, how they are called.

Axes of inputs are called as these, by the layout or by their place. Those that an operation makes begin with ``derived_``,
selections with an at sign, dimensions along which a value is constant by construction with a number sign. A second axis of
one size and origin in one value has a prime, further copies of axes a tilde.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from lossforge.ir import Axis

DERIVED = "derived_"
RANGE = DERIVED + "range"
SELECTED = "@"


class Restart(Exception):
    """Internal: the axis table has learnt something; the import begins again."""


@dataclass
class AxisTable:
    """What is known of axes, from one attempt to the next."""

    parents: dict[Axis, Axis] = field(default_factory=dict)
    units: set[Axis] = field(default_factory=set)
    """Dimensions of inputs that are of size 1 and stay so."""
    names: dict[Axis, Axis] = field(default_factory=dict)
    """Readable names."""

    def unnamed(self) -> AxisTable:
        """Another one that knows as much, but no names."""
        return AxisTable(dict(self.parents), set(self.units))

    def of_arguments(self) -> AxisTable:
        """Another one that knows as much of the axes of arguments, and nothing of those that operations make."""
        return AxisTable({a: b for a, b in self.parents.items() if not a.startswith(DERIVED)}, set(self.units))

    def root(self, axis: Axis) -> Axis:
        """The axis that `axis` was merged into."""
        while axis in self.parents:
            axis = self.parents[axis]
        return axis

    def merge(self, a: Axis, b: Axis) -> NoReturn:
        """`a` and `b` are one axis."""
        first, second = self.root(a), self.root(b)
        if any(first.startswith(stem) and not second.startswith(stem) for stem in (DERIVED, RANGE)):
            first, second = second, first
        self.parents[second] = first
        raise Restart

    def unit(self, axis: Axis) -> NoReturn:
        """`axis` has size 1 in every call."""
        self.units.add(self.root(axis))
        raise Restart


def unprimed(axis: Axis) -> Axis:
    """The axis that one with primes is a copy of."""
    return axis.rstrip("'")
