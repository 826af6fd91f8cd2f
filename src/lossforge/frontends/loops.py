"""Loops whose turns do not follow from each other: one turn, along an axis of turns.

The axis lies in the graph and in no dimension, so that every operation of the turn works on all turns at once. It is a
copy of the axis that the loop goes through, and becomes that axis again where the results are put together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lossforge import ir
from lossforge.frontends.places import Stacked
from lossforge.frontends.positional import Importer, Rule, Tensor
from lossforge.frontends.positional.nodes import renamed
from lossforge.frontends.recording import Step, Varying
from lossforge.ir import Axis, Kind, Node


def _turn(imp: Importer, step: Step) -> Tensor:
    """The number of the turn."""
    turns = step.attrs["turns"]
    return imp.turn(turns.values if isinstance(turns, Varying) else (turns,) * imp.count)


def _place(imp: Importer, step: Step, turn: Any, first: Any) -> Tensor:
    """Whole numbers that grow with the turns."""
    growth = step.attrs["growth"]
    if not isinstance(growth, list):
        place = _grown(turn, imp.tensor(first), imp.integer(growth))
        return imp.cast(place, Kind.FLOAT) if "float" in step.dtypes[0] else place
    starts = first.parts if isinstance(first, Stacked) else [imp.tensor(int(v)) for v in first]
    parts = tuple(_grown(turn, a, imp.integer(b)) for a, b in zip(starts, growth, strict=True))
    whole = imp.concat([imp.unsqueeze(p, 0) for p in parts], 0)
    return Stacked(whole.node, whole.dims, parts)


def _grown(turn: Tensor, first: Tensor, growth: int) -> Tensor:
    if growth == 0:
        return first
    place = turn.node if growth == 1 else turn.node * float(growth)
    none = first.node.op == "constant" and first.node.attrs[0] == 0
    return Tensor(ir.as_kind(place if none else place + ir.as_kind(first.node, Kind.FLOAT), Kind.INDEX), ())


def _entry(imp: Importer, step: Step, x: Any, turn: Any) -> Tensor:
    """The entry that belongs to the turn."""
    t = imp.tensor(x)
    return imp.select(t, imp.dim(t, step.attrs["dim"]), turn)


def _gathered(imp: Importer, step: Step, x: Any, turn: Any) -> Tensor:
    """What all turns gave, along a new dimension; or `joined` along one of the result's own."""
    t, dim = imp.tensor(x), int(step.attrs["dim"])
    axis = _axis(turn)
    if axis is None:
        return t if step.attrs.get("joined") else imp.unsqueeze(t, dim)
    t = imp.unturned(t, axis)
    if step.attrs.get("joined"):
        return Tensor(t.node, (*t.dims[1 : dim + 1], t.dims[0] + t.dims[dim + 1], *t.dims[dim + 2 :]))
    return Tensor(t.node, (*t.dims[1 : dim + 1], t.dims[0], *t.dims[dim + 1 :]))


_COLLECTS = {"sum": ("add", 0.0), "prod": ("mul", 1.0), "max": ("maximum", -math.inf), "min": ("minimum", math.inf),
             "put": ("add", 0.0)}  # fmt: skip
"""For each way of collecting, the operation of two operands, and what changes nothing."""


def _nothing(imp: Importer, step: Step) -> Tensor:
    """What has been collected in the one turn before it."""
    return imp.full(_COLLECTS[step.attrs["op"]][1], step.shapes[0])


def _total(imp: Importer, step: Step, start: Any, x: Any, turn: Any) -> Tensor:
    """What the turns come to together."""
    t, op, axis = imp.tensor(x), str(step.attrs["op"]), _axis(turn)
    if axis is not None and op == "put":
        t = _placed(imp, t, axis)
    elif axis is not None:
        t = imp.reduce(op, imp.unturned(t, axis), [0])
    by, neutral = _COLLECTS[op]
    return t if isinstance(start, float) and start == neutral else imp.elementwise(by, start, t)


def _placed(imp: Importer, x: Tensor, turns: Axis) -> Tensor:
    """What each turn wrote at a place of its own into an array of zeros."""
    node = x.node
    if ir.kept_branch(node) == 1:
        test = node.args[0]
        for here in (test, *(test.args if test.op == "and" else ())):
            place = _place_of_turn(here, turns)
            if place is None or imp.sizes_of(place) != imp.sizes_of(turns):
                continue
            rest = [t for t in test.args if t is not here] if test is not here else []
            found = [renamed(n, turns, place, {}) for n in (node.args[1], *rest)]
            written = [n for n in found if n is not None]
            if len(written) == len(found):
                value = ir.where(written[1], written[0], node.args[2]) if rest else written[0]
                return Tensor(value, x.dims)
    return imp.reduce("sum", imp.unturned(x, turns), [0])


def _place_of_turn(test: Node, turns: Axis) -> Axis | None:
    """The axis of which a test says that the position is the number of the turn."""
    places = {str(a.attrs[0]) for a in test.args if a.op == "iota"} if test.op == "eq" else set()
    others = places - {turns}
    return others.pop() if len(places) == 2 and len(others) == 1 else None


def _axis(turn: Tensor) -> Axis | None:
    return str(turn.node.attrs[0]) if turn.node.op == "iota" else None


LOOPS: Mapping[str, Rule] = {
    "loop.turn": _turn,
    "loop.place": _place,
    "loop.entry": _entry,
    "loop.gathered": _gathered,
    "loop.nothing": _nothing,
    "loop.total": _total,
}
"""What the steps of rolled up loops mean."""
