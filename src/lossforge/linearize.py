"""A program's derivative as residuals and a linear map, for a framework that transposes linear maps itself.

`linearize` splits the forward-mode derivative in two programs. One computes the *residuals*: every factor,
condition and index that the tangents meet. The other maps residuals and tangents to the tangents of the outputs;
it holds products, quotients, sums and selections only, so that a framework may transpose it and differentiate it
further by its own rules. What is curved stays in the first.

Transposition moves a condition to the other side of a product: ``where(c, t · r, 0)`` becomes
``where(c, ct, 0) · r``, which is 0 · ∞ where a guarded residual is infinite. Each residual is therefore made
harmless, 1, at the entries where no output depends on the product that it enters.

Reference: Radul, Paszke, Frostig, Johnson & Maclaurin, *You Only Linearize Once: Tangents Transpose to
Gradients* (2023), for reverse mode as forward mode, partial evaluation and transposition.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lossforge.compiler import TANGENT, Plan, program_jvp
from lossforge.gradient import pull_structural
from lossforge.ir import (
    STRUCTURAL,
    Axes,
    Kind,
    Node,
    Port,
    Program,
    as_kind,
    constant,
    depends_on,
    elementwise,
    input_,
    rebuild,
    reduction,
    topological,
    total,
    where,
)
from lossforge.simplify import simplify


@dataclass(frozen=True)
class Linearized:
    """The derivative of a program."""

    residuals: Program
    """inputs → residuals."""
    linear: Program
    """inputs, residuals, tangents → tangents of the outputs that are floats.

    Of the inputs it takes shapes, masks and indices, and factors that enter as they are."""


@lru_cache(maxsize=1024)
def linearize(what: Plan | Program, wrt: tuple[str, ...]) -> Linearized:
    """The derivative with respect to the inputs called `wrt`, split in two.

    That of a plan with a single value is a product with its gradient (a hand-written one included), which is
    then the only residual.
    """
    if isinstance(what, Plan):
        program = what.value()
        tangent = what.jvp(wrt) if what.output.order else _along_gradient(what, wrt)
    else:
        program, tangent = what, program_jvp(what, wrt)
    directions = tangent.inputs[len(program.inputs) :]
    wanted = tuple(t for o, t in zip(program.outputs, tangent.outputs, strict=True) if o.node.kind is Kind.FLOAT)
    roots, residuals = _separate([t.node for t in wanted], [d.node for d in directions], program.inputs)
    first = Program(program.inputs, tuple(Port(n, p.order) for n, p in residuals))
    linear = Program(
        (*program.inputs, *(p for _, p in residuals), *directions),
        tuple(Port(n, t.order) for n, t in zip(roots, wanted, strict=True)),
    )
    return Linearized(first, linear)


def _along_gradient(plan: Plan, wrt: tuple[str, ...]) -> Program:
    """inputs, tangents → the sum of all entries of gradient · tangent."""
    tangents, terms = [], []
    for gradient, name in zip(plan.gradient(wrt).outputs, wrt, strict=True):
        tangent = Port(input_(plan.fresh(f"{TANGENT}_{name}"), gradient.order), gradient.order)
        tangents.append(tangent)
        if gradient.node is not constant(0.0):
            terms.append(total(gradient.node * tangent.node, gradient.order))
    slope = constant(0.0)
    for i, term in enumerate(terms):
        slope = term if i == 0 else slope + term
    return Program((*plan.inputs, *tangents), (Port(slope, ()),))


# ------------------------------------------------------------------------------------- residuals


def _separate(
    roots: Sequence[Node], directions: Sequence[Node], inputs: Sequence[Port]
) -> tuple[list[Node], list[tuple[Node, Port]]]:
    """The linear graph, and its residuals: what to compute, and the input that it becomes."""
    active = depends_on(roots, directions)
    live = _liveness(roots, active)
    local = _without_derivative(roots)
    taken = {p.name for p in inputs} | {str(d.attrs[0]) for d in directions}
    axes = list(dict.fromkeys(a for p in inputs for a in p.order))
    ports: dict[Node, Port] = {}

    def residual(node: Node) -> Node:
        if node in local or node.op == "input":
            return node
        if node not in ports:
            name = f"residual_{len(ports)}"
            while name in taken:
                name += "_"
            order = tuple(sorted(node.axes, key=lambda a: (axes.index(a) if a in axes else len(axes), a)))
            ports[node] = Port(input_(name, order, node.kind), order)
        return ports[node].node

    new: dict[Node, Node] = {d: d for d in directions}
    for node in topological(roots):
        if node in new or node not in active:
            continue
        args = []
        for argument in node.args:
            if argument in active:
                args.append(new[argument])
                continue
            condition = live[node]
            if node.op in ("mul", "div") and condition is not None and argument.op != "constant":
                argument = where(condition, argument, 1.0)
            args.append(residual(argument))
        new[node] = rebuild(node, args)
    simple = simplify(list(ports))
    return [new.get(r, r) for r in roots], list(zip(simple, ports.values(), strict=True))


def _without_derivative(roots: Iterable[Node]) -> set[Node]:
    """The nodes that no float among the inputs reaches: numbers, sizes, positions, masks, indices."""
    found: set[Node] = set()
    for node in topological(roots):
        if all(a in found for a in node.args) and not (node.op == "input" and node.kind is Kind.FLOAT):
            found.add(node)
    return found


# ------------------------------------------------------------------------------------- liveness


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
