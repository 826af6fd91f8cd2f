"""Statements in nested loops, and where among them a value is best computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from lossforge.ir import Axis, Node

Key: TypeAlias = tuple[Node, tuple[str, ...]]
"""A value at a position: the node, and the index along each of its axes."""


class Block:
    """The body of a loop: statements, some of which are loops."""

    def __init__(self, parent: Block | None = None) -> None:
        self.parent = parent
        self.items: list[str | tuple[str, Block]] = []
        self.known: dict[Key, str] = {}
        """Values that have a name here."""

    def add(self, text: str, *, before: Block | None = None) -> None:
        """Add a statement: at the end, or before the loop that holds the block `before`."""
        if before is None or before is self:
            self.items.append(text)
            return
        while before.parent is not self:
            assert before.parent is not None
            before = before.parent
        place = next(i for i, item in enumerate(self.items) if not isinstance(item, str) and item[1] is before)
        self.items.insert(place, text)

    def open(self, header: str) -> Block:
        """A loop at the end; returns its body."""
        body = Block(self)
        self.items.append((header, body))
        return body

    def find(self, key: Key) -> str | None:
        """The name of a value, here or in a loop around."""
        block: Block | None = self
        while block is not None:
            if key in block.known:
                return block.known[key]
            block = block.parent
        return None

    def lines(self, indent: int = 1) -> Iterator[str]:
        """The text."""
        for item in self.items:
            if isinstance(item, str):
                yield "    " * indent + item
            else:
                yield "    " * indent + item[0]
                yield from item[1].lines(indent + 1)


class Scope:
    """A block, and the position along each axis in it."""

    def __init__(self, block: Block, env: Mapping[Axis, str] | None = None, parent: Scope | None = None) -> None:
        self.block = block
        self.parent = parent
        self.env: dict[Axis, str] = {**(parent.env if parent else {}), **(env or {})}

    def add(self, text: str) -> None:
        """Add a statement at the end of the block."""
        self.block.add(text)

    def open(self, header: str, env: Mapping[Axis, str] | None = None) -> Scope:
        """A loop at the end of the block, with positions along the axes that it runs over."""
        return Scope(self.block.open(header), env, self)

    def at(self, env: Mapping[Axis, str]) -> Scope:
        """The same place with other positions along some axes."""
        return Scope(self.block, env, self) if env else self

    def home(self, axes: Iterable[Axis]) -> Scope:
        """The outermost scope in which the positions along these axes are those of this one."""
        wanted = {a: self.env.get(a) for a in axes}
        scope = self
        while scope.parent is not None and all(scope.parent.env.get(a) == i for a, i in wanted.items()):
            scope = scope.parent
        return scope


__all__ = ["Block", "Key", "Scope"]
