"""How operations and names are written: Unicode text, and LaTeX."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

from lossforge import ir
from lossforge.frontends.signature import ELEMENTWISE
from lossforge.ir import Kind, Node, topological
from lossforge.primitives import PRIMITIVES

# ------------------------------------------------------------------------------------------ names

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eps": "ε", "zeta": "ζ",
    "eta": "η", "theta": "θ", "kappa": "κ", "lambda": "λ", "lam": "λ", "lmbda": "λ", "mu": "μ", "nu": "ν",
    "xi": "ξ", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω",
}  # fmt: skip
_LATEX_GREEK = {"eps": r"\varepsilon", "epsilon": r"\varepsilon", "lam": r"\lambda", "lmbda": r"\lambda"}
SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_PLAIN = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


def unicode_name(name: str) -> str:
    """A variable's name as it is printed: ``delta`` is δ, ``alpha_t`` is α_t."""
    head, rest = _split(name)
    if head not in _GREEK:
        return name
    return _GREEK[head] + (rest.translate(SUBSCRIPT) if rest.isdigit() else "_" + rest if rest else "")


def latex_name(name: str) -> str:
    """A variable's name in LaTeX: ``delta`` is a Greek letter, ``p_t`` a p with an index."""
    stem = name.rstrip("′")
    head, rest = _split(stem)
    if head in _GREEK:
        text = _LATEX_GREEK.get(head, "\\" + head)
    elif len(head) == 1:
        text = head
    else:
        text, rest = r"\mathrm{" + stem.replace("_", r"\_") + "}", ""
    if rest:
        text += (
            "_{" + (rest if len(rest) == 1 or rest.isdigit() else r"\mathrm{" + rest.replace("_", r"\_") + "}") + "}"
        )
    return text + "'" * (len(name) - len(stem))


def _split(name: str) -> tuple[str, str]:
    """A name's stem and its index."""
    found = re.fullmatch(r"([^\W\d_]+)_?(.*?)_*", name.translate(_PLAIN))
    return (found[1], found[2]) if found and (not found[2] or found[1] in _GREEK or len(found[1]) == 1) else (name, "")


def axis_name(axis: str) -> str:
    """An axis's name, without what marks its kind."""
    return axis.removeprefix("*").removeprefix("derived_").replace("'", "′")


# ------------------------------------------------------------------------------------------ notation

_OR, _AND, _RELATION, _SUM, _NEGATIVE, _PRODUCT, _PREFIX, _POWER, _ATOM = range(9)
"""How tightly a text holds together."""

_RELATIONS = {"lt": "<", "le": "≤", "gt": ">", "ge": "≥", "eq": "=", "ne": "≠"}
_FUNCTION_NAMES = {
    "sigmoid": "σ", "maximum": "max", "minimum": "min", "asin": "arcsin", "acos": "arccos", "atan": "arctan",
    "asinh": "arsinh", "acosh": "arcosh", "atanh": "artanh", "digamma": "ψ",
    "lgamma": "log Γ", "log_sigmoid": "log σ",
}  # fmt: skip
_FRACTIONS = {0.5: "½", 0.25: "¼", 0.75: "¾", 0.125: "⅛"}
_CONSTANTS = {
    math.pi: ("π", r"\pi"),
    2 * math.pi: ("2·π", r"2 \pi"),
    math.e: ("e", "e"),
    math.log(2): ("log 2", r"\log 2"),
    math.log(10): ("log 10", r"\log 10"),
    math.log(math.pi): ("log π", r"\log \pi"),
    math.log(2 * math.pi): ("log 2π", r"\log 2\pi"),
    math.log(2 * math.pi) / 2: ("½·log 2π", r"\tfrac{1}{2} \log 2\pi"),
    math.sqrt(2): ("√2", r"\sqrt{2}"),
    math.sqrt(math.pi): ("√π", r"\sqrt{\pi}"),
    2 / math.sqrt(math.pi): ("2 / √π", r"\frac{2}{\sqrt{\pi}}"),
}
"""Numbers that are recognised. They are products, not sums, so that they need no parentheses in one."""


class Notation:
    """Unicode text."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = self._distinct(names)
        self._known: dict[Node, tuple[str, int]] = {}

    def __call__(self, node: Node) -> str:
        """The formula of a graph, all of it."""
        return self.inside(node, _OR)

    def inside(self, node: Node, level: int) -> str:
        """The formula, in parentheses unless it holds together at `level`."""
        for n in topological([node]):
            if n not in self._known:
                self._known[n] = self._spell(n)
        text, own = self._known[node]
        return text if own >= level else self.parentheses(text)

    # ------------------------------------------------------------------ what LaTeX writes in another way

    def parentheses(self, text: str) -> str:
        """The text in parentheses."""
        return f"({text})"

    def spell_name(self, name: str) -> str:
        """A variable."""
        return unicode_name(name)

    def number(self, value: float) -> tuple[str, int]:
        """A number."""
        if abs(value) in _CONSTANTS:
            text = _CONSTANTS[abs(value)][0]
            level = _ATOM if text.isalpha() else _PRODUCT
        elif abs(value) in _FRACTIONS:
            text, level = _FRACTIONS[abs(value)], _ATOM
        else:
            text, level = _decimal(abs(value)), _ATOM
        return ("−" + text, _NEGATIVE) if math.copysign(1, value) < 0 else (text, level)

    def product(self, x: Node, y: Node) -> tuple[str, int]:
        """x·y."""
        left = self.inside(x, _NEGATIVE)
        text = f"{left}·{self.inside(y, _PRODUCT + (y.op == 'div'))}"
        return text, _NEGATIVE if left.startswith("−") else _PRODUCT

    def quotient(self, x: Node, y: Node) -> tuple[str, int]:
        """x / y."""
        left = self.inside(x, _NEGATIVE)
        return f"{left} / {self.inside(y, _PRODUCT + 1)}", _NEGATIVE if left.startswith("−") else _PRODUCT

    def power(self, x: Node, y: Node) -> tuple[str, int]:
        """x to the power y."""
        base = self.inside(x, _ATOM)
        if y.op == "constant" and float(y.attrs[0]).is_integer() and abs(y.attrs[0]) < 100:
            return base + str(int(y.attrs[0])).translate(_SUPERSCRIPT), _POWER
        return f"{base}^{self.inside(y, _ATOM)}", _POWER

    def root(self, x: Node) -> tuple[str, int]:
        """√x."""
        return "√" + self.inside(x, _ATOM), _PREFIX

    def bars(self, x: Node) -> tuple[str, int]:
        """|x|."""
        text = self.inside(x, _OR)
        return (f"abs({text})" if "|" in text else f"|{text}|"), _ATOM

    def call(self, op: str, args: Sequence[Node]) -> tuple[str, int]:
        """op(args)."""
        name = _FUNCTION_NAMES.get(op, op)
        if name in self.names.values():  # a variable σ beside the function σ
            name = op
        return f"{name}({', '.join(self.inside(a, _OR) for a in args)})", _PREFIX if " " in name else _ATOM

    def along(self, op: str, x: Node, axes: Sequence[str]) -> tuple[str, int]:
        """A reduction of x; over all of its axes if none are given."""
        where = f"[{', '.join(map(axis_name, axes))}]" if axes else ""
        return f"{op}{where}({self.inside(x, _OR)})", _ATOM

    def softmax(self, op: str, x: Node, axes: Sequence[str]) -> tuple[str, int]:
        """A softmax along axes, or its logarithm."""
        return f"{op}({', '.join([self.inside(x, _OR), *map(axis_name, axes)])})", _ATOM

    def taken(self, x: Node, axis: str, index: Node) -> tuple[str, int]:
        """Entries of x at an index."""
        return f"{self.inside(x, _ATOM)}[{axis_name(axis)} = {self.inside(index, _SUM)}]", _ATOM

    def renamed(self, x: Node, old: str, new: str) -> tuple[str, int]:
        """x with another name for an axis."""
        return f"{self.inside(x, _ATOM)}[{axis_name(old)}→{axis_name(new)}]", _ATOM

    def window(self, x: Node, old: str, new: str, start: ir.Extent, trim: ir.Extent) -> tuple[str, int]:
        """Entry i along the new axis is that at start + i along the old one; 0 beyond its ends."""
        steps = "".join(
            f" {'+' if n > 0 else self.minus} "
            + ("" if axis and abs(n) == 1 else str(abs(n)))
            + self.size(axis)[0] * bool(axis)
            for axis, n in start
        )
        return self.placed(x, old, f"{axis_name(new)}{steps}")

    def slide(self, x: Node, old: str, new: str, tap: str | None, stencil: ir.Stencil, back: bool) -> tuple[str, int]:
        """Entry i along the new axis, t along the taps, is that of window i at tap t; 0 beyond the ends."""
        taps = [] if tap is None else [(stencil.dilation, self.position(tap)[0])]
        place = self.position(new)[0] if back or stencil.step == 1 else f"{stencil.step} {self.position(new)[0]}"
        for n, name in (*taps, (stencil.start, "")):
            sign = "+" if (n > 0) is not back else self.minus
            place += f" {sign} {name}" if abs(n) == 1 and name else f" {sign} {abs(n)} {name}".rstrip() if n else ""
        return self.placed(x, old, f"({place}) / {stencil.step}" if back and stencil.step > 1 else place)

    def placed(self, x: Node, axis: str, place: str) -> tuple[str, int]:
        """Entries of x at a place that is worked out."""
        return f"{self.inside(x, _ATOM)}[{axis_name(axis)} = {place}]", _ATOM

    def table(self, values: Sequence[float | int | bool]) -> tuple[str, int]:
        """Numbers that are part of the definition."""
        shown = [self.number(float(v))[0] for v in values[:4]] + ["…"] * (len(values) > 4)
        return f"({', '.join(shown)})", _ATOM

    def size(self, axis: str) -> tuple[str, int]:
        """The number of entries along an axis."""
        return ("count" if axis == ELEMENTWISE else f"|{axis_name(axis)}|"), _ATOM

    def position(self, axis: str) -> tuple[str, int]:
        """The position along an axis."""
        return axis_name(axis), _ATOM

    def bracket(self, condition: Node) -> tuple[str, int]:
        """1 where the condition holds, 0 elsewhere."""
        return f"[{self.inside(condition, _OR)}]", _ATOM

    def choice(self, condition: Node, x: Node, y: Node) -> tuple[str, int]:
        """x where the condition holds, y elsewhere."""
        return self.call("where", (condition, x, y))

    relations = _RELATIONS
    minus = "−"
    words = {"and": "and", "or": "or", "not": "not "}

    # ------------------------------------------------------------------ one node

    def _distinct(self, names: Iterable[str]) -> dict[str, str]:
        """How each variable is written; two that would look the same keep their names."""
        spelled = {n: self.spell_name(n) for n in names}
        often = Counter(spelled.values())
        return {n: text if often[text] == 1 else n for n, text in spelled.items()}

    def _spell(self, node: Node) -> tuple[str, int]:
        op, args, attrs = node.op, node.args, node.attrs
        match op:
            case "input":
                return self.names.get(attrs[0]) or self.spell_name(attrs[0]), _ATOM
            case "constant":
                return (str(attrs[0]).lower(), _ATOM) if node.kind is Kind.BOOL else self.number(attrs[0])
            case "size":
                return self.size(attrs[0])
            case "iota":
                return self.position(attrs[0])
            case "add" | "sub":
                sign = self.minus if op == "sub" else "+"
                return f"{self.inside(args[0], _SUM)} {sign} {self.inside(args[1], _PRODUCT)}", _SUM
            case "neg":
                return self.minus + self.inside(args[0], _PRODUCT), _NEGATIVE
            case "mul":
                return self.product(*args)
            case "div":
                return self.quotient(*args)
            case "pow":
                return self.power(*args)
            case "sqrt":
                return self.root(*args)
            case "abs":
                return self.bars(*args)
            case "xlogy":
                return self.product(args[0], ir.elementwise("log", args[1]))
            case "where":
                return self.choice(*args)
            case "cast":
                return self.bracket(*args) if args[0].kind is Kind.BOOL else (self.inside(args[0], _ATOM), _ATOM)
            case "and" | "or":
                level = _AND if op == "and" else _OR
                return f"{self.inside(args[0], level)} {self.words[op]} {self.inside(args[1], level)}", level
            case "not":
                return self.words["not"] + self.inside(args[0], _ATOM), _AND
            case "take":
                return self.taken(args[0], attrs[0], args[1])
            case "rename":
                return self.renamed(args[0], *attrs)
            case "softmax" | "log_softmax":
                return self.softmax(op, args[0], attrs[0])
            case _ if op in self.relations:
                return (
                    f"{self.inside(args[0], _SUM)} {self.relations[op]} {self.inside(args[1], _SUM)}",
                    _RELATION,
                )
            case "window":
                return self.window(args[0], *attrs)
            case "slide":
                return self.slide(args[0], *attrs)
            case "join" | "split":
                old, new = (attrs[0], (attrs[1],)) if op == "join" else ((attrs[0],), attrs[1])
                return self.renamed(args[0], ", ".join(old), ", ".join(new))
            case "flip" | "argsort":
                return self.softmax(op, args[0], attrs)
            case "cumsum":
                return self.softmax("cumsum_backwards" if attrs[1] else "cumsum", args[0], attrs[:1])
            case "table":
                return self.table(attrs[2])
            case _ if attrs:
                return self.along(op, args[0], () if frozenset(attrs[0]) == args[0].axes else attrs[0])
            case _:
                return self.call(op, args)


def _decimal(value: float) -> str:
    """A number that is not negative, to six digits."""
    if float(value).is_integer() and value < 1e6:
        return str(int(value))
    text = f"{value:.6g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


class LaTeX(Notation):
    """LaTeX for mathematics mode."""

    relations = {"lt": "<", "le": r"\le", "gt": ">", "ge": r"\ge", "eq": "=", "ne": r"\ne"}
    minus = "-"
    words = {"and": r"\land", "or": r"\lor", "not": r"\lnot "}

    def parentheses(self, text: str) -> str:
        """The text in parentheses that grow."""
        return rf"\left({text}\right)"

    def spell_name(self, name: str) -> str:
        """A variable."""
        return latex_name(name)

    def number(self, value: float) -> tuple[str, int]:
        """A number."""
        sign, size = ("-" if math.copysign(1, value) < 0 else ""), abs(value)
        if size in _CONSTANTS:
            text = _CONSTANTS[size][1]
        elif size in _FRACTIONS:
            fraction = Fraction(size)
            text = rf"\tfrac{{{fraction.numerator}}}{{{fraction.denominator}}}"
        elif math.isinf(size):
            text = r"\infty"
        else:
            mantissa, e, exponent = _decimal(size).partition("e")
            text = (
                mantissa
                if not e
                else rf"{mantissa} \cdot 10^{{{exponent}}}"
                if mantissa != "1"
                else f"10^{{{exponent}}}"
            )
        return sign + text, _NEGATIVE if sign else _PRODUCT if " " in text else _ATOM

    def product(self, x: Node, y: Node) -> tuple[str, int]:
        """x y."""
        left = self.inside(x, _NEGATIVE)
        dot = r" \cdot " if y.op == "constant" else r" \, "
        return left + dot + self.inside(y, _PRODUCT), _NEGATIVE if left.startswith("-") else _PRODUCT

    def quotient(self, x: Node, y: Node) -> tuple[str, int]:
        """A fraction."""
        return rf"\frac{{{self.inside(x, _OR)}}}{{{self.inside(y, _OR)}}}", _PRODUCT

    def power(self, x: Node, y: Node) -> tuple[str, int]:
        """x to the power y."""
        return f"{self.inside(x, _ATOM)}^{{{self.inside(y, _OR)}}}", _POWER

    def root(self, x: Node) -> tuple[str, int]:
        """A root."""
        return rf"\sqrt{{{self.inside(x, _OR)}}}", _ATOM

    def bars(self, x: Node) -> tuple[str, int]:
        """|x|."""
        return rf"\left|{self.inside(x, _OR)}\right|", _ATOM

    def call(self, op: str, args: Sequence[Node]) -> tuple[str, int]:
        """The row's own template, or an upright name."""
        row = PRIMITIVES.get(op)
        if row is not None and row.latex:
            level = _ATOM if op != "exp" else _POWER
            return row.latex.format(*(self.inside(a, _OR) for a in args)), level
        inner = ", ".join(self.inside(a, _OR) for a in args)
        return rf"\operatorname{{{op}}}\left({inner}\right)", _ATOM

    def along(self, op: str, x: Node, axes: Sequence[str]) -> tuple[str, int]:
        """A reduction of x; over all of its axes if none are given."""
        symbols = {"sum": r"\sum", "prod": r"\prod", "max": r"\max", "min": r"\min"}
        symbol = symbols.get(op, rf"\operatorname*{{{op}}}" if axes else rf"\operatorname{{{op}}}")
        where = f"_{{{', '.join(self._axis(a) for a in axes)}}}" if axes else ""
        if op == "sum":
            return rf"{symbol}{where} {self.inside(x, _PRODUCT)}", _NEGATIVE
        return rf"{symbol}{where} \left({self.inside(x, _OR)}\right)", _PREFIX

    def softmax(self, op: str, x: Node, axes: Sequence[str]) -> tuple[str, int]:
        """A softmax along axes, or its logarithm."""
        name = r"\log\operatorname{softmax}" if op == "log_softmax" else rf"\operatorname{{{op}}}".replace("_", r"\_")
        where = ", ".join(self._axis(a) for a in axes)
        return rf"{name}_{{{where}}} \left({self.inside(x, _OR)}\right)", _PREFIX

    def taken(self, x: Node, axis: str, index: Node) -> tuple[str, int]:
        """Entries of x at an index."""
        return rf"{self.inside(x, _ATOM)}\big|_{{{self._axis(axis)} = {self.inside(index, _SUM)}}}", _PREFIX

    def renamed(self, x: Node, old: str, new: str) -> tuple[str, int]:
        """x with another name for an axis."""
        return rf"{self.inside(x, _ATOM)}\big|_{{{self._axis(old)} \to {self._axis(new)}}}", _PREFIX

    def window(self, x: Node, old: str, new: str, start: ir.Extent, trim: ir.Extent) -> tuple[str, int]:
        """Entries of x moved along an axis."""
        steps = "".join(
            f" {'+' if n > 0 else '-'} "
            + ("" if axis and abs(n) == 1 else str(abs(n)))
            + self.size(axis)[0] * bool(axis)
            for axis, n in start
        )
        return self.placed(x, old, f"{self._axis(new)}{steps}")

    def placed(self, x: Node, axis: str, place: str) -> tuple[str, int]:
        """Entries of x at a place that is worked out."""
        return rf"{self.inside(x, _ATOM)}\big|_{{{self._axis(axis)} = {place}}}", _PREFIX

    def table(self, values: Sequence[float | int | bool]) -> tuple[str, int]:
        """Numbers that are part of the definition."""
        shown = [self.number(float(v))[0] for v in values[:4]] + [r"\dots"] * (len(values) > 4)
        return rf"\left({', '.join(shown)}\right)", _ATOM

    def size(self, axis: str) -> tuple[str, int]:
        """The number of entries along an axis."""
        return ("N" if axis == ELEMENTWISE else rf"\left|{self._axis(axis)}\right|"), _ATOM

    def position(self, axis: str) -> tuple[str, int]:
        """The position along an axis."""
        return self._axis(axis), _ATOM

    def bracket(self, condition: Node) -> tuple[str, int]:
        """Iverson's bracket."""
        return rf"\left[{self.inside(condition, _OR)}\right]", _ATOM

    def choice(self, condition: Node, x: Node, y: Node) -> tuple[str, int]:
        """The row's template: cases."""
        texts = (self.inside(n, _OR) for n in (condition, x, y))
        return PRIMITIVES["where"].latex.format(*texts), _ATOM

    @staticmethod
    def _axis(axis: str) -> str:
        return r"\mathrm{" + axis_name(axis).replace("_", r"\_") + "}"
