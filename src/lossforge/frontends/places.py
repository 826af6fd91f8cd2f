"""Index arrays whose last dimension counts the dimensions that they point into, and writing at such places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lossforge.frontends.positional import Importer, Tensor


@dataclass
class Stacked(Tensor):
    """A tensor that was put together from `parts` along its last dimension; indices for several dimensions are."""

    parts: tuple[Tensor, ...] = ()


def coordinates(imp: Importer, index: Any) -> list[Tensor]:
    """The parts of an index array whose last dimension counts the dimensions that it points into."""
    t = imp.tensor(index)
    if isinstance(t, Stacked):
        return list(t.parts)
    (count,) = set(imp.extents(t.dims[-1]))
    return [imp.select(t, t.rank - 1, i) for i in range(count)]


def scattered(
    imp: Importer,
    places: Sequence[Tensor],
    updates: Tensor,
    shapes: Sequence[tuple[int, ...]],
    op: str = "sum",
    neutral: float = 0.0,
) -> Tensor:
    """Updates added up, or reduced in another way, where their coordinates say; a comparison with every position."""
    rank, extents = max(p.rank for p in places), list(zip(*shapes, strict=True))
    count = len(places)
    here: Tensor | None = None
    for k, place in enumerate(places):
        position = imp.positions(extents[k], k, count)
        spread = Tensor(place.node, ((),) * (rank - place.rank) + place.dims + ((),) * count)
        equal = imp.elementwise("eq", spread, position)
        here = equal if here is None else imp.elementwise("and", here, equal)
    assert here is not None
    rest = updates.rank - rank
    mask = Tensor(here.node, here.dims + ((),) * rest)
    moved = Tensor(updates.node, updates.dims[:rank] + ((),) * count + updates.dims[rank:])
    return imp.reduce(op, imp.elementwise("where", mask, moved, neutral), list(range(rank)))
