"""Arrays that a definition was not read for: of another number of dimensions, or of another size of an axis that has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lossforge.adoption.arguments import as_array
from lossforge.adoption.original import Original
from lossforge.compiler import Definition

Shapes = Sequence[tuple[int, ...]]


def fits(definition: Definition, shapes: Shapes) -> bool:
    """Whether the definition holds for arrays of these shapes, as far as dimensions and sizes of single axes go."""
    orders = [p.order for p in definition.arguments]
    if [len(o) for o in orders] != [len(s) for s in shapes]:
        return False
    sizes = {a: n for order, shape in zip(orders, shapes, strict=True) for a, n in zip(order, shape, strict=True)}
    return all(sizes.get(a, n) == n for a, n in definition.fixed) and all(
        sizes.get(a) == sizes.get(b) for a, b in definition.square
    )


def singles(definition: Definition, shapes: Shapes, examples: Shapes) -> Shapes | None:
    """The shapes of the examples, with size 1 for the axes that have it now and had another; None if there are none.

    For one channel, say, a function may take another way than for several.
    """
    orders = [p.order for p in definition.arguments]
    pairs = [
        (a, n, e)
        for order, shape, of in zip(orders, shapes, examples, strict=True)
        for a, n, e in zip(order, shape, of, strict=True)
    ]
    alone = {a for a, n, e in pairs if n == 1 < e}
    if not alone:
        return None
    return [
        tuple(1 if a in alone else e for a, e in zip(order, of, strict=True))
        for order, of in zip(orders, examples, strict=True)
    ]


def is_alike(shapes: Shapes, examples: Shapes, main: int) -> bool:
    """Whether arrays go together as the examples do: those of the prediction's rank still have it.

    A column beside a vector, say, is more often a mistake than meant.
    """
    more = len(shapes[main]) - len(examples[main])
    return all(
        len(s) - len(e) in ({more} if len(e) == len(examples[main]) else {0, more})
        for s, e in zip(shapes, examples, strict=True)
    )


def with_values(arrays: Sequence[Any]) -> list[np.ndarray] | None:
    """The arrays as examples; None if they have no values yet, as within a function that is being traced."""
    try:
        return [as_array(a) for a in arrays]
    except Exception:  # each framework has an error of its own for it
        return None


def examples(original: Original, given: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """What the function may be read with anew: arrays like the first examples, which show more than one call's, and the call's."""
    shapes = [a.shape for a in given]
    found = [list(given)]
    if [len(s) for s in shapes] == [len(s) for s in original.shapes]:
        found.insert(0, [s.example(shape) for s, shape in zip(original.samplers, shapes, strict=True)])
    return found
