"""Tangents that a framework may transpose.

Transposition moves a condition to the other side of a product: ``where(c, t · r, 0)`` becomes
``where(c, ct, 0) · r``, which is 0 · ∞ where the guarded factor r is infinite. `transposable` therefore makes each
factor harmless, 1, at the entries where no output depends on the product that it enters.
"""

from __future__ import annotations

from collections.abc import Sequence

from lossforge.gradient import pull_structural
from lossforge.ir import (
    MATRIX,
    STRUCTURAL,
    Axes,
    Kind,
    Node,
    as_kind,
    constant,
    depends_on,
    elementwise,
    rebuild,
    reduction,
    topological,
    where,
)
from lossforge.simplify import simplify


def transposable(roots: Sequence[Node], directions: Sequence[Node]) -> list[Node]:
    """The same tangents, linear in `directions`, with factors that are finite wherever they are of no influence."""
    active = depends_on(roots, directions)
    live = _liveness(roots, active)
    guards: dict[tuple[Node, Node], Node] = {}
    for node in topological(roots):
        if node not in active or node.op not in ("mul", "div"):
            continue
        condition = live[node]
        if condition is not None:
            for factor in node.args:
                if factor not in active and factor.op != "constant":
                    guards[node, factor] = where(condition, factor, 1.0)
    guards = dict(zip(guards, simplify(list(guards.values())), strict=True))
    new: dict[Node, Node] = {}
    for node in topological(roots):
        if node in active and node not in directions:
            new[node] = rebuild(node, [new.get(a, guards.get((node, a), a)) for a in node.args])
    return [new.get(r, r) for r in roots]


def _liveness(roots: Sequence[Node], active: set[Node]) -> dict[Node, Node | None]:
    """Where an output depends on each active node: a truth value for each entry, or None for everywhere."""
    live: dict[Node, Node | None] = {r: None for r in roots if r in active}
    for node in reversed(topological(roots)):
        if node not in live:
            continue
        for position, argument in enumerate(node.args):
            if argument not in active:
                continue
            condition = _somewhere(_passes(node, position, live[node]), argument.axes)
            if argument in live:
                condition = _combine("or", live[argument], condition)
            live[argument] = condition
    return live


def _passes(node: Node, position: int, live: Node | None) -> Node | None:
    """Where `node` reads its argument at `position`, given where it is itself of influence."""
    if node.op == "where":
        condition = node.args[0]
        return _combine("and", live, condition if position == 1 else elementwise("not", condition))
    if node.op in MATRIX:  # every entry of a matrix tells on all of the result
        return None
    if node.op in STRUCTURAL and (live is not None or node.op in ("take", "window", "slide")):
        # The adjoint of 1 where it is live and 0 elsewhere counts the live entries that an entry reaches.
        reached = pull_structural(node, constant(1.0) if live is None else as_kind(live, Kind.FLOAT))
        return as_kind(reached, Kind.BOOL)
    return live


def _combine(op: str, x: Node | None, y: Node | None) -> Node | None:
    if x is None or y is None:
        return None if op == "or" else x if y is None else y
    return x if x is y else elementwise(op, x, y)


def _somewhere(condition: Node | None, axes: Axes) -> Node | None:
    """Whether the condition holds anywhere along the axes that are not among `axes`."""
    if condition is None or condition.axes <= axes:
        return condition
    return as_kind(reduction("max", as_kind(condition, Kind.FLOAT), condition.axes - axes), Kind.BOOL)
