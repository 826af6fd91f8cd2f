"""Positional values, and selections of their entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lossforge.ir import Axis, Node

Dim: TypeAlias = tuple[Axis, ...]
Rule: TypeAlias = Callable[..., Any]


class Refused(Exception):
    """Internal: an operation cannot be imported; `Importer.run` adds which one and where."""


@dataclass(frozen=True)
class Unknown:
    """A result that cannot be had; to use it is refused."""

    reason: str


@dataclass
class Tensor:
    """A positional value."""

    node: Node
    dims: tuple[Dim, ...]
    stacked: tuple[int, tuple[Tensor, ...]] | None = field(default=None, kw_only=True)
    """The values that were stacked along a dimension, if this is the result."""
    places: Dim = field(default=(), kw_only=True)
    """The axes whose positions the entries of a selection's index are."""
    within: Dim = field(default=(), kw_only=True)
    """The selection in which these are counted, if it is not the axes themselves."""

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.dims)


@dataclass(frozen=True)
class Selection:
    """The entries of some axes where a mask holds; they lie in one dimension, whose axis is written with an at sign."""

    mask: Node
    axes: Dim
    """Copies of the selected axes, for this selection alone."""
    lead: tuple[int, ...] = ()
    """How many entries at its beginning are selected wherever the others are, in each recording."""
