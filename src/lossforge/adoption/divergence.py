"""The line of the source at which a function and what was read of it part, or at which that cannot be evaluated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lossforge.adoption.original import Original
from lossforge.errors import LossforgeError
from lossforge.frontends.positional import Importer, Tensor
from lossforge.frontends.positional.axis_table import unprimed
from lossforge.frontends.recording import needed
from lossforge.gradient import vjp
from lossforge.interpreter import evaluate
from lossforge.ir import Axis, Kind, Node, constant, topological

_NEAR = 1e-3
"""Of the largest entry: more than rounding."""
_LOST = 1e-4
"""Of the largest entry: rounding that is too much to compare by."""


def parting(
    original: Original,
    importer: Importer,
    given: Mapping[Any, Any],
    arrays: Sequence[np.ndarray],
    numbers: Mapping[str, float],
) -> str:
    """A sentence on the first line that works out an array which nothing that was read of this line is.

    If there is none, it is on the first line at which float32 loses too many digits. It is empty if there is none of these either,
    or nothing is noted while the front end runs a function.
    """
    noted = getattr(original.front, "noted", None)
    if noted is None:
        return ""
    options = {**original.options, **numbers}
    sizes = {a: n for p, x in zip(importer.ports, arrays, strict=True) for a, n in zip(p.order, x.shape, strict=True)}
    read = [
        (step.where, value)
        for step in needed(importer.recording)
        for index in step.outputs
        if isinstance(value := importer.values.get(index), Tensor) and _is_plain(value, sizes)
    ]
    try:
        found = evaluate([value.node for _, value in read], given)
        lines = noted(arrays, options)
        exact = noted([a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays], options)
    except (LossforgeError, ValueError, LookupError, RuntimeError):
        return ""
    mine: dict[str, list[np.ndarray]] = {}
    for (where, value), array in zip(read, found, strict=True):
        if array.shape == tuple(sizes[unprimed(a)] for a in sorted(value.node.axes)):  # a padded axis is longer
            mine.setdefault(where, []).append(_laid_out(array, value.node, value, sizes))
    for where, theirs in exact:
        alike = [x for x in mine.get(where, ()) if x.shape == theirs.shape]
        if alike and not any(_is_near(x, theirs, _NEAR) for x in alike):
            return f"They differ from this line on: {where}; write it with other operations"
    for (where, rounded), (_, unrounded) in zip(lines, exact, strict=False):
        if rounded.shape == unrounded.shape and not _is_near(rounded, unrounded, _LOST):
            return f"The original loses digits in float32 at this line: {where}; subtract no numbers there that are nearly equal"
    return ""


def unworkable(importer: Importer, given: Mapping[Any, Any]) -> str:
    """The first step that cannot be evaluated with these arrays, and its line; empty if all can."""
    made = [
        (step, value.node)
        for step in needed(importer.recording)
        for index in step.outputs
        if isinstance(value := importer.values.get(index), Tensor)
    ]

    def fails(count: int) -> bool:
        try:
            evaluate([node for _, node in made[:count]], given)
        except (LossforgeError, ValueError, LookupError):
            return True
        return False

    low, high = 0, len(made)  # the first `low` steps can be evaluated, the first `high` cannot
    if not fails(high):
        return ""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    return made[high - 1][0].told


def spoiled(importer: Importer, node: Node, given: Mapping[Any, Any]) -> str:
    """The last step whose gradient is not finite where that of all behind it is, and its line; empty if there is none."""
    made = {
        value.node: step
        for step in needed(importer.recording)
        for index in step.outputs
        if isinstance(value := importer.values.get(index), Tensor) and value.node.kind is Kind.FLOAT
    }
    nodes = [n for n in reversed(topological([node])) if n in made or n.op == "input"]
    slopes = [(n, s) for n, s in zip(nodes, vjp([(node, constant(1.0))], nodes), strict=True) if s is not None]
    _, *found = evaluate([node, *(s for _, s in slopes)], given)
    bad = next((n for (n, _), array in zip(slopes, found, strict=True) if not np.isfinite(array).all()), None)
    if bad is None:
        return ""
    user = next((s for n, s in made.items() if n is not bad and bad in topological([n])), None)
    return "" if user is None else user.told


def _is_plain(value: Tensor, sizes: Mapping[Axis, int]) -> bool:
    """Whether all its axes are those of arguments."""
    axes = [a for dim in value.dims for a in dim]
    return all(unprimed(a) in sizes for a in axes) and value.node.axes <= set(axes)


def _laid_out(array: np.ndarray, node: Node, value: Tensor, sizes: Mapping[Axis, int]) -> np.ndarray:
    names, axes = sorted(node.axes), [a for dim in value.dims for a in dim]
    moved = array.transpose([names.index(a) for a in axes if a in node.axes])
    shape = [sizes[unprimed(a)] for a in axes]
    full = np.broadcast_to(moved.reshape([n if a in node.axes else 1 for a, n in zip(axes, shape, strict=True)]), shape)
    return full.reshape([math.prod(sizes[unprimed(a)] for a in dim) for dim in value.dims])


def _is_near(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    known = np.isfinite(b)
    return bool(
        (np.abs(a[known] - b[known]) <= tolerance * max(float(np.max(np.abs(b[known]), initial=0.0)), 1e-30)).all()
    )
