"""`explain`: a derivation set out as text of 100 columns, and as LaTeX."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from lossforge.compiler import Plan
from lossforge.explain.derivation import Derivation, Gradient, derive
from lossforge.explain.domain import joined
from lossforge.explain.idioms import idiomatic
from lossforge.explain.notation import LaTeX, Notation, axis_name
from lossforge.explain.schedule import schedule_text
from lossforge.frontends.signature import ELEMENTWISE, Signature
from lossforge.ir import input_, size

COLUMNS = 100
_INDENT = "  "


class Explainable(Protocol):
    """What `explain` needs of a loss."""

    @property
    def name(self) -> str:
        """Its name."""

    arguments: tuple[str, ...]
    predictions: tuple[str, ...]
    signature: Signature
    defaults: dict[str, Any]

    def plan(self, reduction: Any = "mean", **parameters: Any) -> Plan:
        """The plan for these parameters."""


class Explanation(str):
    """The derivation of a loss as text; print it. In a notebook it shows itself as LaTeX."""

    latex: str
    """The derivation in LaTeX, for mathematics mode."""
    gradient: str
    """The gradient of the mean, one line for each prediction."""
    gradients: Mapping[str, str]
    """The right-hand side of it, by the name of the prediction or parameter."""
    kinks: tuple[str, ...]
    """Where there is no derivative, and what is used there."""
    domain: tuple[str, ...]
    """The conditions under which value and gradient are finite."""
    sections: Mapping[str, str]
    """The text below each title: LOSS, FORWARD, BACKWARD, GRADIENT (of the predictions alone) …"""

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        return f"```text\n{self}\n```"

    def _repr_latex_(self) -> str:
        return f"$$\n{self.latex}\n$$"


def explain(loss: Explainable, *, latex: bool = False, schedule: bool = False, **parameters: Any) -> Explanation:
    """The derivation of a loss: forward steps, adjoints, simplified gradient, kinks, domain.

    Args:
        loss: the loss.
        latex: whether the text itself is LaTeX; `Explanation.latex` always is.
        schedule: whether the text ends with the sweeps over memory that value and gradient take.
        parameters: values of parameters; their signs decide which simplifications apply.

    Raises:
        ParameterError: a parameter that the loss does not have.
    """
    plan = loss.plan(**parameters)
    values = {k: v for k, v in {**loss.defaults, **parameters}.items() if isinstance(v, int | float)}
    derivation = derive(plan, values)
    text = _Text(loss, derivation, {**loss.defaults, **parameters})
    markup = _latex(derivation)
    body = markup if latex else text.run()
    if schedule:
        body += (
            "\n\nSCHEDULE\n" + textwrap.indent(schedule_text(plan.at({**loss.defaults, **parameters})), _INDENT) + "\n"
        )
    result = Explanation(body)
    result.latex = markup
    result.gradients = {g.name: str(g.formula) for g in (*derivation.gradients, *derivation.parameters)}
    result.gradient = "\n".join(f"{text.partial(g.name)} = {g.formula}" for g in derivation.gradients)
    result.kinks = tuple(" ".join(row) for row in text.kink_rows())
    result.domain = text.domain_rows()
    result.sections = text.sections()
    return result


class _Text:
    """The layout as plain text."""

    def __init__(self, loss: Explainable, derivation: Derivation, values: Mapping[str, Any]) -> None:
        self.loss = loss
        self.d = derivation
        self.values = values
        self.write = Notation(derivation.names)

    def run(self) -> str:
        """The whole text."""
        sections = [
            self._heading(),
            self._section("LOSS", "of each entry", self._loss()),
            self._section("STABILITY", "rewritten first, by identities that lose fewer digits", self._rewrites()),
            self._section("FORWARD", "each step, and its local derivatives", self._forward()),
            self._section(
                "BACKWARD",
                f"the chain rule, from the {self.d.root} back to {self._predictions()}",
                self._backward(),
            ),
            self._section("GRADIENT", self._of_what(), self._gradients(self.d.gradients + self.d.parameters)),
            self._section("KINKS", "where there is no derivative, and what is used there", self._kinks())
            or self._title("KINKS", "none"),
            self._section("DOMAIN", "value and gradient are finite where", self._domain())
            or self._title("DOMAIN", "value and gradient are finite everywhere"),
        ]
        return "\n\n".join(s for s in sections if s)

    # ------------------------------------------------------------------ pieces

    def partial(self, name: str, of: str | None = None) -> str:
        """∂loss/∂name."""
        return f"∂{of or self.d.root}/∂{self.write(input_(name))}"

    def _section(self, title: str, subtitle: str, lines: Sequence[str]) -> str:
        return "\n".join([self._title(title, subtitle), *lines]) if lines else ""

    @staticmethod
    def _title(title: str, subtitle: str) -> str:
        return f"{title:<10}{subtitle}"

    def _predictions(self) -> str:
        return " and ".join(self.write(input_(p)) for p in self.loss.predictions)

    def _heading(self) -> str:
        defaults = [
            f"{k}={v!r}" if isinstance(v, bool | int | float | str | None) else k for k, v in self.values.items()
        ]
        call = ", ".join([*self.loss.arguments, *(["*", *defaults] if defaults else [])])
        lines = [f"{self.loss.name}({call})"]
        signature = self.loss.signature
        if all(axes == (ELEMENTWISE,) for axes in signature.arguments):
            lines.append("elementwise: all arguments have one shape, and so has the loss")
        else:
            shapes = [
                f"{a}: {' '.join(axes) or 'a number'}"
                for a, axes in zip(self.loss.arguments, signature.arguments, strict=True)
            ]
            output = signature.output
            lines.append("; ".join(shapes) + (f" → {' '.join(output) or 'a number'}" if output is not None else ""))
        lines.append(f"differentiated with respect to {self._predictions()}")
        return "\n".join([lines[0], *(_INDENT + line for line in lines[1:])])

    def sections(self) -> dict[str, str]:
        """The text below each title."""
        bodies = {
            "LOSS": self._loss(),
            "STABILITY": self._rewrites(),
            "FORWARD": self._forward(),
            "BACKWARD": self._backward(),
            "GRADIENT": self._gradients(self.d.gradients),
            "KINKS": self._kinks(),
            "DOMAIN": self._domain(),
        }
        return {title: "\n".join(lines) for title, lines in bodies.items()}

    def _loss(self) -> list[str]:
        return self._aligned([(self.d.root, self.d.loss.text), *self.d.loss.where])

    def _aligned(self, rows: Iterable[tuple[str, str]]) -> list[str]:
        """Equations with their signs beneath one another."""
        rows = list(rows)
        width = max(len(left) for left, _ in rows)
        return [line for left, right in rows for line in _wrapped(f"{_INDENT}{left:<{width}} = ", right)]

    def _rewrites(self) -> list[str]:
        rows = [(r.rule.replace("->", "→"), f"{self.write(r.before)} → {self.write(r.after)}") for r in self.d.rewrites]
        width = max((len(rule) for rule, _ in rows), default=0)
        return [t for rule, used in dict.fromkeys(rows) for t in _wrapped(f"{_INDENT}{rule:<{width}}   ", used)]

    def _forward(self) -> list[str]:
        rows = []
        for step in self.d.steps:
            name = self.write(input_(step.name))
            local = [f"{self.partial(a, name)} = {self.write(d)}" for a, d in step.derivatives]
            rows.append((name, self.write(step.node), local))
        left = max(len(name) for name, _, _ in rows)
        middle = min(max(len(text) for _, text, _ in rows), 46)
        lines = []
        for name, text, local in rows:
            head = f"{_INDENT}{name:<{left}} = "
            *before, last = _wrapped(head, text, len(head) + middle)
            lines += before
            for i, derivative in enumerate(local or [""]):
                front = last if i == 0 else ""
                lines += _wrapped(f"{front:<{len(head) + middle}}   ", derivative) if derivative else [front]
        return lines

    def _backward(self) -> list[str]:
        rows = []
        for a in self.d.adjoints:
            chain, value = self.write(a.chain), self.write(a.value)
            rows.append((self.partial(a.name), chain, "" if value == chain or len(value) > 60 else value))
        left = max(len(name) for name, _, _ in rows)
        head_width = len(_INDENT) + left + 3
        middle = min(max(len(chain) for _, chain, _ in rows), (COLUMNS - head_width) * 2 // 3)
        lines = []
        for name, chain, value in rows:
            head = f"{_INDENT}{name:<{left}} = "
            *before, last = _wrapped(head, chain)
            lines += before
            if value and len(last) <= head_width + middle and head_width + middle + 3 + len(value) <= COLUMNS:
                lines.append(f"{last:<{head_width + middle}} = {value}")
            else:
                lines += [last, *(_wrapped(" " * (head_width - 2) + "= ", value) if value else [])]
        return lines

    def _of_what(self) -> str:
        if not self.d.count:
            return "with respect to each entry"
        return f'of the mean; for reduction="sum" leave out "/ {self.d.count}"'

    def _gradients(self, found: Sequence[Gradient]) -> list[str]:
        lines: list[str] = []
        steps: dict[str, str] = {}
        for g in found:
            lines += _wrapped(f"{_INDENT}{self.partial(g.name)} = ", g.formula.text)
            steps |= dict(g.formula.where)
            if g.by_hand is not None:
                lines += _wrapped(f"{_INDENT * 2}written by hand, and used: ", g.by_hand.text)
                steps |= dict(g.by_hand.where)
            if g.assuming:
                facts = " and ".join(self.write(f) for f in g.assuming)
                lines.append(f"{_INDENT * 2}assuming {facts}; otherwise another formula is used")
        steps = _by_appearance(lines, steps)
        if self.d.count:
            steps[self.d.count] = self.write(self.d.size) if self._is_structured() else "the number of entries"
        if not steps:
            return lines
        width = max(map(len, steps))
        where = [line for name, text in steps.items() for line in _wrapped(f"{_INDENT * 2}{name:<{width}} = ", text)]
        return [*lines, f"{_INDENT}where", *where]

    def _is_structured(self) -> bool:
        return self.write(self.d.size) != "count"

    def kink_rows(self) -> list[tuple[str, str]]:
        """What has a kink or is flat, and what is used there."""
        rows = []
        for k in self.d.kinks:
            at = " and ".join(self.write(c) for c in k.at)
            rows.append((self.write(k.node), f"at {at}: {k.used}" if at else k.used))
        return rows

    def _kinks(self) -> list[str]:
        rows = self.kink_rows()
        width = min(max((len(what) for what, _ in rows), default=0), 46)
        lines = []
        for what, used in rows:
            *before, last = _wrapped(_INDENT, what, width + len(_INDENT))
            first, *rest = textwrap.wrap(used, COLUMNS - width - 2 * len(_INDENT))
            lines += [*before, f"{last:<{width + len(_INDENT)}}{_INDENT}{first}"]
            lines += [" " * (width + 2 * len(_INDENT)) + text for text in rest]
        return lines

    def _domain(self) -> list[str]:
        return [line for text in self.domain_rows() for line in _wrapped(_INDENT, text)]

    def domain_rows(self) -> tuple[str, ...]:
        """The conditions."""
        positions = tuple(f"0 ≤ {self.write(n)} < |{axis_name(a)}|" for n, a in self.d.indices)
        return (*positions, *joined(self.d.domain, lambda n: self.write(idiomatic([n])[0])))


def _by_appearance(lines: Iterable[str], steps: Mapping[str, str]) -> dict[str, str]:
    """The definitions of names in the order in which a reader meets these."""
    ordered: dict[str, str] = {}
    texts = list(lines)
    while texts:
        found = re.findall(r"[\w′]+", texts.pop(0))
        new = [name for name in dict.fromkeys(found) if name in steps and name not in ordered]
        ordered |= {name: steps[name] for name in new}
        texts += [steps[name] for name in new]
    return ordered


def _wrapped(head: str, text: str, columns: int = COLUMNS) -> list[str]:
    """`head` and `text`; where it is too wide it goes on under the text's begin, from an operator."""
    room = max(columns - len(head), 24)
    pieces: list[str] = []
    while len(text) > room:
        cut = _break(text, room)
        if cut is None:
            break
        pieces.append(text[:cut].rstrip())
        text = text[cut:]
    pieces.append(text)
    return [head + pieces[0], *(" " * len(head) + p for p in pieces[1:])]


def _break(text: str, room: int) -> int | None:
    """Where to break a line: in front of the outermost operator that fits, the last of several."""
    best: tuple[int, int] | None = None
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if i > room:
            break
        after_comma = text[i - 1 : i + 1] == ", "
        before_operator = text[i : i + 3] in (" + ", " − ", " / ", " = ", " → ") and i > 0
        if (after_comma or before_operator) and (best is None or depth <= best[0]):
            best = (depth, i + 1)
    return None if best is None else best[1]


# ------------------------------------------------------------------------------------------ LaTeX


def _latex(d: Derivation) -> str:
    write = LaTeX(d.names)
    root = write(input_(d.root))

    def partial(name: str, of: str = root) -> str:
        return rf"\frac{{\partial {of}}}{{\partial {write(input_(name))}}}"

    # An adjoint inside of a chain is the variable ∂loss/∂step.
    adjoints = {f"∂{d.root}/∂{s.name}": partial(s.name) for s in d.steps}
    write.names.update(adjoints)
    blocks: list[list[str]] = [[rf"{root} &= {d.loss.latex}", *(rf"{a} &= {b}" for a, b in d.loss.latex_where)]]
    forward = []
    for step in d.steps:
        name = write(input_(step.name))
        local = [rf"{partial(a, name)} &= {write(n)}" for a, n in step.derivatives]
        forward.append(" & ".join([rf"{name} &= {write(step.node)}", *local]))
    blocks.append(forward)
    blocks.append([rf"{partial(a.name)} &= {write(a.chain)}" for a in d.adjoints])
    gradients: list[str] = []
    for g in (*d.gradients, *d.parameters):
        gradients.append(rf"{partial(g.name)} &= {g.formula.latex}" + _assuming(g, write))
        gradients += [rf"{a} &= {b}" for a, b in g.formula.latex_where]
    blocks.append(list(dict.fromkeys(gradients)))
    conditions = [write(idiomatic([c.holds])[0]) for c in d.domain]
    conditions += [rf"0 \le {write(n)} < {write(size(a))}" for n, a in d.indices]
    if conditions:
        blocks.append([rf"& {c}" for c in conditions])
    titles = ["Loss", "Forward", "Backward", "Gradient", "Domain"]
    lines = [r"\begin{aligned}"]
    for title, block in zip(titles, blocks, strict=False):
        lines.append(rf"&\textbf{{{title}}} \\")
        lines += [line + r" \\" for line in block]
    return "\n".join([*lines, r"\end{aligned}"])


def _assuming(g: Gradient, write: LaTeX) -> str:
    if not g.assuming:
        return ""
    return r" & & \text{for } " + r" \text{ and } ".join(write(f) for f in g.assuming)
