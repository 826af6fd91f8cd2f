"""The derivation of a loss, step by step: what `explain` prints, as graphs.

The forward graph is cut into steps of one operation each; every step has a name (the user's own where there
is one), and stands in later formulas as a variable of that name. The backward pass is read from the record
that the chain rule itself left behind, so that what is shown is what was done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from lossforge import ir
from lossforge.compiler import Definition, Plan
from lossforge.explain.domain import (
    NOT_NEGATIVE,
    POSITIVE,
    Condition,
    conditions,
    indices,
    intervals,
)
from lossforge.explain.formula import Formula, formula, symbol
from lossforge.explain.idioms import idiomatic
from lossforge.explain.kinks import Kink, carrying, kinks
from lossforge.explain.notation import SUBSCRIPT
from lossforge.explain.tidy import tidy
from lossforge.gradient import Contribution, jvp, plus, times, vjp
from lossforge.ir import (
    STRUCTURAL,
    Axes,
    Kind,
    Node,
    constant,
    elementwise,
    input_,
    intern,
    iota,
    substitute,
    topological,
)
from lossforge.primitives import is_elementwise
from lossforge.simplify import erase_gradient_marks, simplify
from lossforge.stabilize import stabilize


@dataclass(frozen=True)
class Step:
    """One operation of the forward graph."""

    name: str
    node: Node
    derivatives: tuple[tuple[str, Node], ...] = ()
    """∂step/∂argument, for each argument that carries a gradient."""


@dataclass(frozen=True)
class Adjoint:
    """The derivative of the loss with respect to one step or prediction."""

    name: str
    chain: Node
    """The chain rule: adjoints of later steps times local derivatives."""
    value: Node
    """What that comes to."""


@dataclass(frozen=True)
class Gradient:
    """The gradient of the reduced loss with respect to a prediction or a parameter."""

    name: str
    formula: Formula
    by_hand: Formula | None = None
    assuming: tuple[Node, ...] = ()
    """Signs of parameters without which the formula would be another."""


@dataclass(frozen=True)
class Rewritten:
    """A floating-point identity that was applied before the derivation."""

    rule: str
    before: Node
    after: Node


@dataclass(frozen=True)
class Derivation:
    """All of it."""

    root: str
    """The name of the unreduced loss."""
    loss: Formula
    rewrites: tuple[Rewritten, ...]
    steps: tuple[Step, ...]
    adjoints: tuple[Adjoint, ...]
    gradients: tuple[Gradient, ...]
    parameters: tuple[Gradient, ...]
    count: str
    """The name of the number of entries of the loss; empty if it is one number."""
    size: Node
    kinks: tuple[Kink, ...]
    domain: tuple[Condition, ...]
    indices: tuple[tuple[Node, str], ...]
    names: tuple[str, ...]
    """Every variable that occurs."""


def derive(plan: Plan, values: Mapping[str, float]) -> Derivation:
    """The derivation of the unreduced loss of `plan`, and the gradients of its mean.

    Args:
        plan: the loss.
        values: the parameters' values, of which the signs are used.
    """
    return _Deriver(plan, values).run()


class _Deriver:
    def __init__(self, plan: Plan, values: Mapping[str, float]) -> None:
        self.plan = plan
        self.definition: Definition = plan.definition
        self.value = self.definition.value
        self.predictions = [self.definition.port(p).node for p in self.definition.predictions]
        self.values = {p.node: values[p.name] for p in self.definition.parameters if p.name in values}
        self.taken = {p.name for p in (*self.definition.arguments, *self.definition.parameters)}
        self.root = self._fresh("loss")
        free = [n for n in ("count", "N", "entries") if n not in self.taken]
        self.count = self._fresh(free[0] if free else "count") if self.definition.order else ""
        self.aliases: dict[Node, str] = {}
        self.user = self._user_names()
        self.names = self._step_names()
        self.symbols = {n: symbol(name, n) for n, name in self.names.items()}
        self.place = {n: i for i, n in enumerate(self.names)}
        self.record: list[Contribution] = []
        self.raw = vjp([(self.value, constant(1.0))], self.predictions, record=self.record)
        self.flowing = carrying(self.record, self.predictions)

    def run(self) -> Derivation:
        """Everything, in the order in which it is shown."""
        d = self.definition
        short = {n: self.symbols[n] for n in self.user if n in self.symbols and n is not self.value}
        return Derivation(
            self.root,
            formula(self.value, self.user, self.taken, aliases=self.aliases),
            tuple(Rewritten(r.rule.text, *idiomatic([r.before, r.after])) for r in d.rewrites),
            tuple(self._step(n) for n in self.names),
            tuple(self._adjoint(n) for n in reversed(topological([self.value])) if self._is_shown(n)),
            tuple(self._gradient(p, g) for p, g in zip(self.predictions, self.raw, strict=True)),
            tuple(self._of_parameter(p.node) for p in d.parameters),
            self.count,
            reduce(lambda x, y: x * y, map(ir.size, d.order)) if d.order else constant(1.0),
            tuple(self._shortened(k, short) for k in kinks(self.value, self.record, self.predictions)),
            conditions(self.value, self.values, short, self.flowing),
            indices(self.value, d.arguments),
            tuple(self.taken),
        )

    # ------------------------------------------------------------------ names

    def _fresh(self, name: str) -> str:
        while name in self.taken:
            name += "′"
        self.taken.add(name)
        return name

    def _user_names(self) -> dict[Node, str]:
        """The user's names for intermediate values, in their stable form."""
        present = set(topological([self.value]))
        found: dict[Node, str] = {}
        for node, name in self.definition.names:
            (stable, _) = stabilize(node)
            for n in (node, stable):
                if n in present and n is not self.value and n.args and n not in found:
                    found[n] = self._fresh(name)
                    break
        return found

    def _step_names(self) -> dict[Node, str]:
        found: dict[Node, str] = {}
        number = 0
        for n in topological([self.value]):
            varies = any(leaf.op in ("input", "iota") for leaf in topological([n]))
            if n is self.value:
                found[n] = self.root
            elif n in self.user:
                found[n] = self.user[n]
            elif n.args and varies and n.kind is Kind.FLOAT and n.op != "cast":
                number += 1
                found[n] = self._fresh("v" + str(number).translate(SUBSCRIPT))
        return found

    def _is_shown(self, node: Node) -> bool:
        return node in self.flowing and node is not self.value and (node in self.names or node.op == "input")

    def _in_steps(self, node: Node, until: Node | None = None) -> Node:
        """`node` over the variables that stand for the steps (up to one of them)."""
        last = len(self.place) if until is None else self.place[until]
        return substitute([node], {n: s for n, s in self.symbols.items() if self.place[n] <= last})[0]

    def _below(self, node: Node) -> Node:
        """`node` over the variables that stand for its arguments."""
        return substitute([node], {n: s for n, s in self.symbols.items() if n is not node})[0]

    def _shortened(self, kink: Kink, short: Mapping[Node, Node]) -> Kink:
        below = {n: s for n, s in short.items() if n is not kink.node}
        node, *at = substitute([kink.node, *kink.at], below)
        return Kink(idiomatic([node])[0], tuple(idiomatic(tidy(at))), kink.used)

    # ------------------------------------------------------------------ forward

    def _step(self, node: Node) -> Step:
        derivatives: dict[Node, Node] = {}
        for c in self.record:
            if c.node is node and c.argument in self.flowing:
                local = self._local(c)
                derivatives[c.argument] = plus(derivatives.get(c.argument), local)
        shown = tuple((self._name(a), self._neat(d)) for a, d in derivatives.items())
        return Step(self._name(node), idiomatic([self._below(node)])[0], shown)

    def _name(self, node: Node) -> str:
        return self.names.get(node) or str(node.attrs[0])

    def _local(self, c: Contribution) -> Node:
        """The local derivative, over the variables that stand for the steps."""
        if c.node.op == "logsumexp":
            x = self._in_steps(c.argument, c.node)
            return intern("softmax", (x,), (c.node.attrs[0],), x.axes, Kind.FLOAT)
        if c.node.op in STRUCTURAL - {"take"} or _is_permuted(c.node):
            return constant(1.0)  # entries are moved; the term of the chain rule moves them back
        if c.node.op in ir.MATRIX:
            return ir.input_("mixes all entries")  # how, is in the term of the chain rule
        if c.node.op == "take":
            at = elementwise("eq", iota(c.node.attrs[0]), self._in_steps(c.node.args[1], c.node))
            return ir.where(at, 1.0, 0.0)
        return self._in_steps(c.partial, c.node) if c.partial is not None else constant(1.0)

    def _neat(self, node: Node) -> Node:
        if any(n.op == "softmax" for n in topological([node])):
            return idiomatic([node])[0]
        simple = self._under(erase_gradient_marks([node])[0], self._facts())
        return idiomatic(tidy([simple]))[0]

    # ------------------------------------------------------------------ backward

    def _adjoint(self, node: Node) -> Adjoint:
        merged: dict[Node, tuple[Contribution, Node]] = {}
        for c in self.record:
            if c.argument is node and c.node in self.flowing:
                known = merged.get(c.node)
                merged[c.node] = c, plus(known[1], self._local(c)) if known else self._local(c)
        chain: Node | None = None
        for c, local in merged.values():
            chain = plus(chain, self._term(c, self._neat(local)))
        assert chain is not None
        return Adjoint(self._name(node), idiomatic([chain])[0], self._neat(self._in_steps(self._total(node))))

    def _term(self, c: Contribution, local: Node) -> Node:
        """One term of the chain rule: what a step gives back to its argument."""
        above = constant(1.0)
        if c.node is not self.value:
            above = input_(f"∂{self.root}/∂{self._name(c.node)}", c.node.axes)
        if c.node.op in (STRUCTURAL - {"take"}) | ir.MATRIX or _is_permuted(c.node):
            (moved,) = vjp([(c.node, above)], [c.argument])
            return self._in_steps(moved if moved is not None else constant(0.0), c.node)
        if not is_elementwise(c.node):
            return _product(above, local)
        gone: Axes = c.node.axes - c.argument.axes
        return _summed(_product(above, local), gone)

    def _total(self, node: Node) -> Node:
        """The adjoint of `node`, all contributions together."""
        if node in self.predictions:
            return self.raw[self.predictions.index(node)] or constant(0.0)
        return next(c.adjoint for c in self.record if c.node is node)

    # ------------------------------------------------------------------ gradients

    def _gradient(self, prediction: Node, raw: Node | None) -> Gradient:
        raw = raw if raw is not None else constant(0.0)
        simple, assuming = self._simplified(raw)
        by_hand = next((h.derivative for h in self.plan.handwritten if h.argument is prediction), None)
        return Gradient(
            str(prediction.attrs[0]),
            self._over_count(simple),
            None if by_hand is None else self._over_count(by_hand, neat=False),
            assuming,
        )

    def _over_count(self, node: Node, *, neat: bool = True) -> Formula:
        """The formula of the gradient of the mean, given that of the sum."""
        found = self._formula(node, neat=neat)
        if not self.count:
            return found
        root, count = found.root, input_(self.count)
        divided = -(root.args[0] / count) if root.op == "neg" else root / count
        return Formula(divided, found.steps, found.names)

    def _of_parameter(self, parameter: Node) -> Gradient:
        tangent = jvp([self.value], {parameter: {frozenset(): constant(1.0)}})[0].get(frozenset(), constant(0.0))
        simple, assuming = self._simplified(tangent)
        by_hand = next((h.derivative for h in self.plan.handwritten if h.argument is parameter), None)
        return Gradient(
            str(parameter.attrs[0]),
            self._mean(self._formula(simple)),
            None if by_hand is None else self._over_count(by_hand, neat=False),
            assuming,
        )

    def _mean(self, entries: Formula) -> Formula:
        """The mean over all entries of the loss."""
        root = entries.root
        axes = tuple(a for a in self.definition.order if a in root.axes)
        if not axes:
            return entries
        inner = root.args[0] if root.op == "neg" else root
        mean = intern("mean", (inner,), (axes,), root.axes - frozenset(axes), Kind.FLOAT)
        return Formula(-mean if root.op == "neg" else mean, entries.steps, entries.names)

    def _formula(self, node: Node, *, neat: bool = True) -> Formula:
        (plain,) = erase_gradient_marks([node])
        named = dict(zip(erase_gradient_marks(list(self.user)), self.user.values(), strict=True))
        return formula(plain, named, self.taken, neat=neat, aliases=self.aliases)

    def _facts(self) -> list[tuple[Node, str]]:
        """What the parameters' values say: (parameter, how it compares to 0)."""
        at_least = [(p, "ge") for p, v in self.values.items() if v >= 0]
        return at_least + [(p, "ne") for p, v in self.values.items() if v != 0]

    @staticmethod
    def _under(node: Node, facts: Sequence[tuple[Node, str]]) -> Node:
        """`node`, simplified under these facts."""
        nonnegative = [p for p, fact in facts if fact == "ge"]
        not_zero = [p for p, fact in facts if fact == "ne"]
        simple = simplify([node], nonnegative)
        tests = [n for n in topological(simple) if n.op == "eq" and n.args[1].op == "constant"]
        ranges = intervals(tests, {p: POSITIVE if p in not_zero else NOT_NEGATIVE for p in nonnegative})
        never = {
            n: constant(False)
            for n in tests
            if ranges[n.args[0]].apart(ranges[n.args[1]]) or (n.args[0] in not_zero and n.args[1].attrs[0] == 0)
        }
        return simplify(substitute(simple, never), nonnegative)[0]

    def _simplified(self, raw: Node) -> tuple[Node, tuple[Node, ...]]:
        """The simplest form for these values of the parameters, and the facts about them that it needs."""
        facts = self._facts()
        best = self._under(raw, facts)
        needed = [f for f in facts if self._under(raw, [g for g in facts if g != f]) is not best]
        signs = {p: "gt" if (p, "ge") in needed and (p, "ne") in needed else fact for p, fact in needed}
        return best, tuple(elementwise(fact, p, 0.0) for p, fact in signs.items())


def _is_permuted(node: Node) -> bool:
    """Whether entries are taken in another order, as in a sort."""
    return node.op == "take" and node.attrs[0] in node.args[1].axes


def _product(x: Node, y: Node) -> Node:
    """x·y as written: adjoints in front."""
    if y.op == "div" and y.args[0].op == "constant" and y.args[0].attrs[0] == 1:
        return x / y.args[1]
    return times(x, y) if "constant" in (x.op, y.op) else x * y


def _summed(x: Node, axes: Sequence[str] | Axes) -> Node:
    present = frozenset(axes) & x.axes
    return ir.reduction("sum", x, present) if present else x
