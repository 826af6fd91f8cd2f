"""From a graph to a formula that a person would write.

Three steps: idioms replace operations by those that are used on paper; long or shared parts get names, those
of the user's own variables first, then t₁, t₂ …; a `Notation` writes down the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from lossforge.explain.idioms import idiomatic
from lossforge.explain.notation import SUBSCRIPT, LaTeX, Notation
from lossforge.explain.tidy import tidy
from lossforge.ir import Kind, Node, input_, intern, substitute, topological

Write: TypeAlias = Callable[[Sequence[Node]], list[Node]]

WIDEST = 64
"""Characters that a formula may have before parts of it are given by name."""
_SHARED = 18  # characters from which a part that occurs twice gets a name
_SHORT = 14  # characters up to which a part that occurs once needs none


@dataclass(frozen=True)
class Formula:
    """A formula, with the parts of it that have names."""

    root: Node
    steps: tuple[tuple[str, Node], ...] = ()
    """What the names stand for, outermost first."""
    names: tuple[str, ...] = ()
    """All variables of the loss, so that no two look the same."""

    @cached_property
    def text(self) -> str:
        """The formula alone."""
        return Notation(self.names)(self.root)

    @cached_property
    def where(self) -> tuple[tuple[str, str], ...]:
        """Each name and its formula, as text."""
        notation = Notation(self.names)
        return tuple((notation(input_(name)), notation(node)) for name, node in self.steps)

    @cached_property
    def latex(self) -> str:
        """The formula alone, in LaTeX."""
        return LaTeX(self.names)(self.root)

    @cached_property
    def latex_where(self) -> tuple[tuple[str, str], ...]:
        """Each name and its formula, in LaTeX."""
        notation = LaTeX(self.names)
        return tuple((notation(input_(name)), notation(node)) for name, node in self.steps)

    def __str__(self) -> str:
        return self.text + "".join(f"\n  {name} = {text}" for name, text in self.where)


def formula(
    node: Node,
    names: Mapping[Node, str] | None = None,
    taken: Iterable[str] = (),
    *,
    width: int = WIDEST,
    neat: bool = False,
    aliases: dict[Node, str] | None = None,
) -> Formula:
    """The formula of `node`; where it would be wider than `width`, parts of it have names.

    Args:
        node: a graph.
        names: the user's names for parts of it.
        taken: names of all variables of the loss.
        width: characters.
        neat: whether sums and products are rearranged (see `tidy`), or left as they are in the graph.
        aliases: the names t₁, t₂ … that were given so far; new ones are added.
    """
    known = {n: name for n, name in (names or {}).items() if n is not node}
    every = tuple(dict.fromkeys([*taken, *known.values()]))
    write = _neatly if neat else idiomatic
    if _tree_size(node) <= 4 * width:
        (root,) = write([node])
        if len(Notation(every)(root)) <= width:
            return Formula(root, (), every)
    return _with_names(node, known, every, write, {} if aliases is None else aliases)


def _neatly(roots: Sequence[Node]) -> list[Node]:
    return idiomatic(tidy(roots))


def _tree_size(node: Node) -> int:
    """The number of operations once every shared part is written out."""
    size: dict[Node, int] = {}
    for n in topological([node]):
        size[n] = 1 + sum(size[a] for a in n.args)
    return size[node]


def symbol(name: str, node: Node) -> Node:
    """A variable that stands for `node`."""
    return input_(name, node.axes, node.kind)


def _with_names(
    node: Node, known: Mapping[Node, str], every: tuple[str, ...], write: Write, aliases: dict[Node, str]
) -> Formula:
    parts: dict[str, Node] = {}
    present = topological([node])
    replaced: dict[Node, Node] = {}
    for n in present:  # arguments first, so that a part's own parts are names already
        if n in known:
            (body,) = _substitute_below(n, replaced)
            replaced[n] = symbol(known[n], n)
            parts[known[n]] = body
    (root,) = substitute([node], replaced)
    top, *bodies = write([root, *parts.values()])
    return _share(top, dict(zip(parts, bodies, strict=True)), every, aliases)


def _substitute_below(node: Node, replaced: Mapping[Node, Node]) -> list[Node]:
    return substitute([node], {n: s for n, s in replaced.items() if n is not node})


def _share(top: Node, bodies: Mapping[str, Node], every: tuple[str, ...], aliases: dict[Node, str]) -> Formula:
    """Drop parts that are not used, and name what is long and still occurs more than once."""
    used: list[str] = []
    queue = [top]
    while queue:
        for leaf in (n for n in topological([queue.pop(0)]) if n.op == "input" and n.attrs[0] in bodies):
            name = leaf.attrs[0]
            if name in used:
                used.remove(name)
            used.append(name)
            queue.append(bodies[name])
    steps = [(name, bodies[name]) for name in used]
    write = Notation(every)
    for name, body in list(steps):  # a short part that is used once needs no name
        if len(write(body)) <= _SHORT and sum(_uses(n, name) for n in (top, *(b for _, b in steps))) == 1:
            steps = [(s, _replace(b, symbol(name, body), body)) for s, b in steps if s != name]
            top = _replace(top, symbol(name, body), body)
    fresh: list[tuple[str, Node]] = []
    while (shared := _to_alias([top, *(b for _, b in (*steps, *fresh))], write, aliases)) is not None:
        name = aliases.setdefault(shared, "t" + str(len(aliases) + 1).translate(SUBSCRIPT))
        alias = symbol(name, shared)
        top = _replace(top, shared, alias)
        steps = [(s, _replace(b, shared, alias)) for s, b in steps]
        fresh = [(s, _replace(b, shared, alias)) for s, b in fresh] + [(name, shared)]
    return Formula(top, (*steps, *reversed(fresh)), (*every, *(n for n, _ in fresh)))


def _replace(node: Node, old: Node, new: Node) -> Node:
    """`node` with `old` replaced; unlike `ir.substitute` it keeps operations that exist on paper only."""
    made: dict[Node, Node] = {}
    for n in topological([node]):
        args = tuple(made[a] for a in n.args)
        made[n] = new if n is old else n if args == n.args else intern(n.op, args, n.attrs, n.axes, n.kind)
    return made[node]


def _uses(node: Node, name: str) -> int:
    return sum(a.op == "input" and a.attrs[0] == name for n in topological([node]) for a in n.args)


def _to_alias(roots: Sequence[Node], write: Notation, aliases: Mapping[Node, str]) -> Node | None:
    """The largest part that has an alias, or that is long and occurs more than once."""
    order = topological(roots)
    uses: Counter[Node] = Counter(roots)
    for n in order:
        uses.update(n.args)
    length: dict[Node, int] = {}
    for n in order:
        length[n] = 2 + len(n.op) + sum(length[a] for a in n.args) if n.args else len(str(n.attrs[0]))

    def is_long(n: Node) -> bool:
        return n.kind is Kind.FLOAT and bool(n.args) and (length[n] > 200 or len(write(n)) >= _SHARED)

    found = [n for n in order if (n in aliases and n not in roots) or (uses[n] > 1 and is_long(n))]
    return max(found, key=lambda n: length[n], default=None)
