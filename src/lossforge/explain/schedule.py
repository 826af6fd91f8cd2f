"""The schedule as text: which sweeps there are, what each moves, and the least that any schedule must move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lossforge.compiler import Plan
from lossforge.explain.formula import formula
from lossforge.ir import Node, constant, elementwise, rebuild, reduction, transform
from lossforge.schedule import Move, Product, Schedule, Sweep, decompose, is_slice, reads, schedule

BYTES = 4
"""Of an entry in float32, for which the figures are given."""


def schedule_text(plan: Plan) -> str:
    """The schedule of value and gradient with respect to the predictions, in float32."""
    program = plan.value_and_gradient(plan.definition.predictions)
    made = schedule(program)
    names = dict(plan.definition.names)
    outputs = {o: n.replace("gradient_", "∂loss/∂") for o, n in zip(made.outputs, program.output_names, strict=True)}
    names.update({n: text for n, text in outputs.items() if n.axes})
    known = {n: t for n, t in names.items() if n.op != "input"}
    known |= {_recomposed(d): t for d, t in zip(decompose(list(known)), known.values(), strict=True)}

    def write(node: Node) -> str:
        if node in known:
            return known[node]
        if node.op == "input":
            return str(node.attrs[0])
        node = _recomposed(node)
        if node in known:
            return known[node]
        return str(formula(node, {n: t for n, t in known.items() if n is not node}, width=70)).split("\n")[0]

    lines: list[str] = []
    number = 0
    for step in made.steps:
        if isinstance(step, Sweep):
            number += 1
            lines += _sweep(number, step, write)
        elif isinstance(step, Product):
            lines.append(f"matrix product over {', '.join(step.axes)} (BLAS): {write(step.node)}")
        elif isinstance(step, Move):
            lines.append(f"{'slice, a view' if is_slice(step.node) else 'whole array (NumPy)'}: {write(step.node)}")
    lines += _moved(made, plan)
    return "\n".join(lines)


def _recomposed(node: Node) -> Node:
    """A scheduled formula for reading: log-sum-exp and softmax in one piece, without the provisions for infinities."""

    def visit(n: Node, args: tuple[Node, ...]) -> Node:
        if n.op == "where" and args[0].op == "eq" and args[0].args[1] in (constant(math.inf), constant(-math.inf)):
            return args[2]
        match n.op, args:
            case "mul", (powers, Node(op="div", args=(_, Node(op="sum", args=(summed,)) as total))) if powers is summed:
                if x := _above_maximum(powers):
                    return elementwise("exp", x - reduction("logsumexp", x, total.attrs[0]))
            case "sub", (
                Node(op="sub", args=(y, top)),
                Node(op="log", args=(Node(op="sum", args=(powers,)) as total,)),
            ):
                if (x := _above_maximum(powers)) and top is powers.args[0].args[1]:
                    return y - reduction("logsumexp", x, total.attrs[0])
        return rebuild(n, args)

    return transform([node], visit)[0]


def _above_maximum(powers: Node) -> Node | None:
    """x of exp(x − max(x))."""
    match powers:
        case Node(op="exp", args=(Node(op="sub", args=(x, Node(op="max", args=(y,)))),)) if x is y:
            return x
    return None


def _sweep(number: int, sweep: Sweep, write: Callable[[Node], str]) -> list[str]:
    over = " × ".join(sweep.outer)
    inside = f", and inside of it over {' × '.join(sweep.inner)} while that is in cache" if sweep.inner else ""
    lines = [f"sweep {number} over {over}{inside}"]
    for title, nodes in (
        ("reads", reads(sweep)),
        ("reduces inside", sweep.reductions),
        ("accumulates", sweep.totals),
        ("writes", sweep.stores),
    ):
        if nodes:
            lines.append(f"    {title:<15} {', '.join(write(n) for n in nodes)}")
    return lines


def _moved(made: Schedule, plan: Plan) -> list[str]:
    """Bytes for each entry of the prediction, beside the least possible."""
    prediction = plan.definition.port(plan.definition.predictions[0])
    whole = prediction.node.axes

    def full(nodes: Sequence[Node]) -> int:
        return sum(n.axes >= whole for n in nodes)

    moved = BYTES * sum(full(reads(s)) + full(s.stores) for s in made.sweeps)
    inputs = [p.node for p in made.program.inputs]
    floor = BYTES * (full(inputs) + full([o for o in made.outputs if o.axes]))
    return [
        f"moves {moved} bytes for each entry of {prediction.name} in float32; the least is {floor}: every input read "
        f"once, every gradient written once"
    ]
