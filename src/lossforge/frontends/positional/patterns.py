"""Constant arrays whose shape follows sizes, recognised by their entries in several recordings."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

_RELATIONS = {"eq": operator.eq, "le": operator.le, "ge": operator.ge}


def even(arrays: Sequence[np.ndarray]) -> tuple[list[Any], list[float]] | None:
    """The first entry of each array, and by how much entries grow along each dimension, if they do so evenly."""
    if any(a.size == 0 for a in arrays):
        return None
    steps = []
    for d in range(arrays[0].ndim):
        grown = {float(a.take(1, axis=d).flat[0]) - float(a.flat[0]) for a in arrays if a.shape[d] > 1}
        if len(grown) > 1:
            return None
        steps.append(grown.pop() if grown else 0.0)
    for a in arrays:
        found = np.full(a.shape, a.flat[0], np.float64)
        for d, step in enumerate(steps):
            found += step * np.arange(a.shape[d]).reshape([-1 if e == d else 1 for e in range(a.ndim)])
        if not np.array_equal(found, a):
            return None
    return [a.flat[0].item() for a in arrays], steps


def halves(arrays: Sequence[np.ndarray]) -> tuple[str, Any, Any] | None:
    """A relation of row and column, and the entry of matrices where it holds and elsewhere: an identity, a triangle."""
    if any(a.ndim != 2 for a in arrays):
        return None
    for name, relation in _RELATIONS.items():
        inside: set[Any] = set()
        outside: set[Any] = set()
        for a in arrays:
            here = relation(np.arange(a.shape[0])[:, None], np.arange(a.shape[1]))
            inside |= {*a[here].tolist()}
            outside |= {*a[~here].tolist()}
        if len(inside) == len(outside) == 1:
            return name, inside.pop(), outside.pop()
    return None
