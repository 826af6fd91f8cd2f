"""From positional arrays to named axes: what all front ends share.

A positional value is a node and, for each of its dimensions, the axes that lie in it: none (the dimension has size 1),
one, or several (a flattened dimension, the last running fastest). Every dimension of an input begins with an axis of
its own. Where an operation lines two different axes up, they are *one* axis: they are merged in the `AxisTable`, and
the import begins again, which costs milliseconds. Where a value would get one axis in two dimensions (x[:, None] -
x[None, :]), the second becomes a copy (`ir.rename`), written with a prime.

Reshapes, permutations and broadcasts therefore leave no trace in the graph.

An `Importer` is made in layers, each a class in a file of its own that extends the one beneath it: axes, ranges,
alignment, literals, elementwise, selections, shapes, reductions, orders, slices, lookups, concatenation, writing,
diagonals, matrices. Front ends call its methods from the rules of their library's operations.
"""

from lossforge.frontends.positional.axis_table import SELECTED, AxisTable, Restart
from lossforge.frontends.positional.elementwise import rule_for
from lossforge.frontends.positional.importer import Importer
from lossforge.frontends.positional.literals import LARGEST_TABLE
from lossforge.frontends.positional.slices import slice_ends
from lossforge.frontends.positional.values import Dim, Refused, Rule, Tensor, Unknown

__all__ = [
    "LARGEST_TABLE", "SELECTED", "AxisTable", "Dim", "Importer", "Refused", "Restart", "Rule", "Tensor", "Unknown", "rule_for",
    "slice_ends",
]  # fmt: skip
