"""A program's derivative as residuals and a linear map, for a framework that transposes linear maps itself.

`linearize` splits the forward-mode derivative in two programs. One computes the *residuals*: every factor,
condition and index that the tangents meet. The other maps residuals and tangents to the tangents of the outputs;
it holds products, quotients, sums and selections only, so that a framework may transpose it and differentiate it
further by its own rules. What is curved stays in the first.

Residuals are harmless where they are of no influence; see `lossforge.transposition`.

Reference: Radul, Paszke, Frostig, Johnson & Maclaurin, *You Only Linearize Once: Tangents Transpose to
Gradients* (2023), for reverse mode as forward mode, partial evaluation and transposition.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lossforge.compiler import TANGENT, Plan, program_jvp
from lossforge.ir import (
    Kind,
    Node,
    Port,
    Program,
    constant,
    depends_on,
    input_,
    rebuild,
    topological,
    total,
)
from lossforge.simplify import simplify
from lossforge.transposition import transposable


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
    roots = transposable(roots, directions)
    active = depends_on(roots, directions)
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
        new[node] = rebuild(node, [new[a] if a in active else residual(a) for a in node.args])
    simple = simplify(list(ports))
    return [new.get(r, r) for r in roots], list(zip(simple, ports.values(), strict=True))


def _without_derivative(roots: Iterable[Node]) -> set[Node]:
    """The nodes that no float among the inputs reaches: numbers, sizes, positions, masks, indices."""
    found: set[Node] = set()
    for node in topological(roots):
        if all(a in found for a in node.args) and not (node.op == "input" and node.kind is Kind.FLOAT):
            found.add(node)
    return found
