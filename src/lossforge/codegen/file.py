"""A file that stands alone: what is the same for all frameworks, in NumPy's spelling.

Two functions are emitted from the graph: the loss of each entry, and its vector-Jacobian product. All else is the
same few lines for every loss: the reduction, a check of shapes, the precision to compute in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from textwrap import dedent, indent
from typing import Any, Protocol

from lossforge._version import __version__
from lossforge.codegen.emitter import Backend, called_helpers, emit
from lossforge.codegen.numpy import numpy_backend
from lossforge.frontends.signature import python_name
from lossforge.ir import Kind, Node, Port, Program
from lossforge.simplify import simplify
from lossforge.stabilize import stabilize


class Exportable(Protocol):
    """What an export needs of a loss; see `lossforge.loss.Loss`."""

    @property
    def name(self) -> Any:
        """Its name."""

    defaults: dict[str, Any]
    predictions: tuple[str, ...]
    reduction: Any

    def plan(self, reduction: Any = "mean", **parameters: Any) -> Any:
        """The plan for these parameters."""

    def explain(self, *, latex: bool = False, **parameters: Any) -> Any:
        """The derivation."""


class File:
    """What all frameworks have in common; NumPy's spelling where they differ."""

    title = "NumPy"
    array = "np.asarray({0})"
    is_float = '{0}.dtype.kind not in "biu"'
    is_no_float = '{0}.dtype.kind in "biu"'
    double = "np.float64 in ({0})"
    dtypes = ("np.float64", "np.float32")
    index = "{0}.astype(np.int64)"
    truth = "{0}.astype(bool)"
    cast = "{0}.astype({1}, copy=False)"
    ones = "np.ones_like(loss)"
    count = "loss.size"
    mean, sum = "loss.mean()", "loss.sum()"
    decorator = ""

    def __init__(self, loss: Exportable, parameters: Mapping[str, Any]) -> None:
        self.loss = loss
        self.given = dict(parameters)
        self.plan = loss.plan("none", **parameters)
        self.definition = self.plan.definition
        self.arguments: tuple[Port, ...] = self.definition.arguments
        self.scalars: tuple[Port, ...] = self.definition.parameters
        self.predictions: tuple[str, ...] = tuple(loss.predictions)
        self.backend: Backend = self.make_backend()
        name = str(loss.name)  # that of a lambda is no identifier
        self.name = self._free_name(python_name(name) if name.isidentifier() else "loss")
        self.names = self._local_names()

    def make_backend(self) -> Backend:
        """The framework's spelling."""
        return numpy_backend()

    # ------------------------------------------------------------------ names

    def _free_name(self, name: str) -> str:
        taken = {*self.backend.helpers, *(python_name(p.name) for p in (*self.arguments, *self.scalars))}
        while name in taken:
            name += "_loss"
        return name

    def _local_names(self) -> dict[Node, str]:
        """The user's names for intermediate values, in all the forms that these take."""
        found: dict[Node, str] = {}
        for node, name in self.definition.names:
            (stable, _) = stabilize(node)
            for form in (node, stable, simplify([stable])[0]):
                if form.args:
                    found.setdefault(form, name)
        return found

    @property
    def inputs(self) -> list[str]:
        """The names of the arguments."""
        return [python_name(p.name) for p in self.arguments]

    @property
    def all_inputs(self) -> str:
        """Arguments and parameters, as they are passed on."""
        return ", ".join([*self.inputs, *(python_name(p.name) for p in self.scalars)])

    @property
    def class_name(self) -> str:
        """The loss's name for a class, which is not that of the function."""
        name = "".join(part[:1].upper() + part[1:] for part in self.name.split("_"))
        return f"{name}Module" if name == self.name else name

    @property
    def reduction(self) -> str:
        """The name of the option."""
        return "reduction_" if "reduction" in {p.name for p in (*self.arguments, *self.scalars)} else "reduction"

    def options(self) -> str:
        """Parameters with their defaults, and the reduction, as in a signature."""
        values = {**self.loss.defaults, **self.given}
        texts = []
        for p in self.scalars:
            known = isinstance(values[p.name], int | float)
            texts.append(python_name(p.name) + (f"={values[p.name]!r}" if known else ""))
        return ", ".join([*texts, f'{self.reduction}="{self.loss.reduction}"'])

    def passed_on(self) -> str:
        """The options, in a call."""
        names = [*(python_name(p.name) for p in self.scalars), self.reduction]
        return ", ".join(f"{n}={n}" for n in names)

    # ------------------------------------------------------------------ the whole

    def text(self) -> str:
        """The file."""
        functions = [self.value(), self.gradient(), self.both(), *self.extras(), self.prepared(), self.reduced()]
        emitted = [self.entries(), self.vjp()]
        body = "\n\n\n".join(f.strip("\n") for f in (*functions, *emitted))
        helpers = called_helpers(self.backend.helpers, body)
        body = "\n\n\n".join([body, *(self.backend.helpers[h].rstrip() for h in helpers)])
        return f"{self.docstring()}\n\n{self._imports(body)}\n\n\n{body}\n"

    def docstring(self) -> str:
        """What the file is, with the formulas."""
        page = self.loss.explain(**self.given).sections
        formulas = indent(dedent(page["LOSS"]), "    ") + "\n\n" + indent(dedent(page["GRADIENT"]), "    ")
        return (
            f'"""{self.loss.name}: a loss and its gradient, for {self.title} alone.\n\n{formulas}\n\n'
            f"{self._shapes()}\nWritten by lossforge {__version__}, which it does not need.\n" + '"""'
        )

    def _shapes(self) -> str:
        orders = {p.order for p in (*self.arguments,)}
        if len(orders) == 1 and len(next(iter(orders))) == 1 and next(iter(orders))[0].startswith("*"):
            return "Shapes: all arguments have one shape, and so has the loss of each entry."
        shapes = ", ".join(f"{python_name(p.name)} ({' '.join(p.order)})" for p in self.arguments)
        return f"Shapes: {shapes}; the loss of each entry ({' '.join(self.definition.order)})."

    def _imports(self, body: str) -> str:
        """The imports that are used."""
        lines = [line for line in self.imports() if not line or self._used(line, body)]
        return "\n".join(lines).strip("\n")

    def imports(self) -> Sequence[str]:
        """Every import that the text may need; an empty line stands between groups."""
        return self.backend.imports

    @staticmethod
    def _used(line: str, body: str) -> bool:
        name = line.split()[-1]
        return re.search(rf"(?<![\w.]){name}\b", body) is not None

    # ------------------------------------------------------------------ functions that are the same for all

    def value(self) -> str:
        """The loss."""
        return f'''
def {self.name}({", ".join(self.inputs)}, *, {self.options()}):
    """The loss as one number; that of each entry for {self.reduction}="none"."""
    {self._prepare()}
    return reduced({self.entries_call()}, {self.reduction})
'''

    def entries_call(self) -> str:
        """The loss of each entry, differentiable by the framework."""
        return f"{self.name}_entries({self.all_inputs})"

    def gradient(self) -> str:
        """The gradient."""
        return f'''
def {self.name}_gradient({", ".join(self.inputs)}, *, {self.options()}):
    """The gradient with respect to {self._wrt()}; that of the sum for {self.reduction}="none"."""
    return {self.name}_value_and_gradient({", ".join(self.inputs)}, {self.passed_on()})[1]
'''

    def both(self) -> str:
        """Value and gradient."""
        predictions = [python_name(p) for p in self.predictions]
        dtypes = [f"{p}.dtype" for p in predictions]
        gradients = [f"{p}_gradient" for p in predictions] if len(predictions) > 1 else ["gradient"]
        cast = [self.cast.format(g, f"{p}_dtype") for g, p in zip(gradients, predictions, strict=True)]
        single = len(predictions) == 1
        return f'''
{self.decorator}def {self.name}_value_and_gradient({", ".join(self.inputs)}, *, {self.options()}):
    """The loss, and its gradient{"" if single else "s"} with respect to {self._wrt()}."""
    {self._dtypes_of(predictions, dtypes)}
    {self._prepare()}
    loss = {self.name}_entries({self.all_inputs})
    cotangent = {self.ones}
    if {self.reduction} == "mean":
        cotangent = cotangent / {self.count}
    {", ".join(gradients)} = {self.name}_vjp({self.all_inputs}, cotangent)
    return reduced(loss, {self.reduction}), {cast[0] if single else "(" + ", ".join(cast) + ")"}
'''

    def _dtypes_of(self, predictions: Sequence[str], dtypes: Sequence[str]) -> str:
        left = ", ".join(f"{p}_dtype" for p in predictions)
        right = ", ".join(f"{self.array.format(p)}.dtype" for p in predictions)
        return f"{left} = {right}"

    def _wrt(self) -> str:
        return " and ".join(python_name(p) for p in self.predictions)

    def _prepare(self) -> str:
        checks = self._sign_checks()
        names = ", ".join(self.inputs)
        comma = "," if len(self.inputs) == 1 else ""
        return "\n    ".join([*checks, f"{names}{comma} = prepared({names})"])

    def _sign_checks(self) -> list[str]:
        """Refusals of parameters for which the formulas, simplified for the others, do not hold."""
        negative = {p.name: -1.0 for p in self.scalars if p.name in self.plan.positive}
        lines = []
        for name in negative:
            other = self.loss.plan("none", **{**self.given, name: -1.0})
            if self._programs(other) != self._programs(self.plan):
                n = python_name(name)
                lines += [
                    f"if {n} < 0:",
                    f'    raise ValueError(f"{n} is {{{n}}}; these formulas hold for {n} >= 0")',
                ]
        return lines

    def _programs(self, plan: Any) -> list[Node]:
        return [o.node for o in (*plan.value().outputs, *plan.vjp(self.predictions).outputs)]

    def extras(self) -> list[str]:
        """What plugs the derivative into the framework's own backward pass."""
        return []

    def prepared(self) -> str:
        """The check of the arguments."""
        lines = [f"{n} = {self.array.format(n)}" for n in self.inputs]
        lines += self._dtype_checks()
        lines += self._shape_checks()
        floats = [python_name(p.name) for p in self.arguments if p.node.kind is Kind.FLOAT]
        among = self.double.format(", ".join(f"{n}.dtype" for n in floats) + ("," if len(floats) == 1 else ""))
        lines.append(f"dtype = {self.dtypes[0]} if {among} else {self.dtypes[1]}")
        ready = {Kind.FLOAT: self.cast, Kind.INDEX: self.index, Kind.BOOL: self.truth}
        results = [ready[p.node.kind].format(python_name(p.name), "dtype") for p in self.arguments]
        comma = "," if len(results) == 1 else ""
        lines.append(f"return {', '.join(results)}{comma}")
        body = "\n".join(lines)
        return (
            f'def prepared({", ".join(self.inputs)}):\n    """The arguments, checked, in the precision to compute in: '
            f'float32 for half precision."""\n{indent(body, "    ")}\n'
        )

    def _dtype_checks(self) -> list[str]:
        lines = []
        for p in self.arguments:
            n = python_name(p.name)
            if p.name in self.predictions:
                lines += [
                    f"if {self.is_no_float.format(n)}:",
                    f'    raise TypeError(f"{n} must be floating point, not {{{n}.dtype}}")',
                ]
            elif p.node.kind is Kind.INDEX:
                lines += [
                    f"if {self.is_float.format(n)}:",
                    f'    raise TypeError(f"{n} holds class indices and must be integer, not {{{n}.dtype}}")',
                ]
        return lines

    def _shape_checks(self) -> list[str]:
        """Comparisons of each shape with what the signature says; nothing is ever broadcast silently."""
        lines: list[str] = []
        known: dict[str, str] = {}
        for p in self.arguments:
            n = python_name(p.name)
            starred = any(a.startswith("*") for a in p.order)
            if not starred and not any(a in known for a in p.order):
                lines += [f"if {self.rank(n)} != {len(p.order)}:", self._refusal(n, p)]
            elif any(a in known for a in p.order):
                lines += [f"if {self.differs(n, self._expected(n, p, known))}:", self._refusal(n, p)]
            for axis, part in _parts(p.order):
                known.setdefault(axis, f"{n}.shape[{part}]")
        pairs = [(a, str(size)) for a, size in self.definition.fixed] + [
            (a, known[b]) for a, b in self.definition.square
        ]
        for axis, expected in pairs:
            if axis in known:
                message = f"axis {axis} has size {{{known[axis]}}}; these formulas hold for {{{expected}}} only"
                lines += [f"if {self.is_other_size(known[axis], expected)}:", f'    raise ValueError(f"{message}")']
        return lines

    def is_other_size(self, size: str, expected: str) -> str:
        """Whether the size of an axis is another than expected."""
        return f"{size} != {expected}"

    def _expected(self, name: str, port: Port, known: Mapping[str, str]) -> str:
        whole = next((python_name(p.name) for p in self.arguments if p.order == port.order and p is not port), None)
        if whole is not None and self.inputs.index(whole) < self.inputs.index(name):
            return f"{whole}.shape"
        parts = []
        for axis, part in _parts(port.order):
            text = known.get(axis, f"{name}.shape[{part}]")
            parts.append("*" + text if axis.startswith("*") else text)
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"

    def rank(self, name: str) -> str:
        """The number of dimensions."""
        return f"{name}.ndim"

    def differs(self, name: str, expected: str) -> str:
        """Whether a shape is another than expected."""
        return f"{name}.shape != {expected}"

    def _refusal(self, name: str, port: Port) -> str:
        first = self.inputs[0]
        beside = f" beside {first} of shape {{{first}.shape}}" if name != first else ""
        axes = (
            "" if len(port.order) == 1 and port.order[0].startswith("*") else f"; its axes are ({' '.join(port.order)})"
        )
        return f'    raise ValueError(f"{name} has shape {{{name}.shape}}{beside}{axes}")'

    def reduced(self) -> str:
        """The reduction."""
        return f'''
def reduced(loss, reduction):
    """The mean or the sum of the loss of each entry, or that itself for "none"."""
    if reduction == "mean":
        return {self.mean}
    if reduction == "sum":
        return {self.sum}
    if reduction == "none":
        return loss
    raise ValueError(f'reduction={{reduction!r}}; expected "mean", "sum" or "none"')
'''

    # ------------------------------------------------------------------ functions that are emitted

    def entries(self) -> str:
        """The loss of each entry."""
        return self._emitted(self.plan.value(), f"{self.name}_entries", "The loss of each entry.")

    def vjp(self) -> str:
        """The vector-Jacobian product."""
        what = "The gradient" if len(self.predictions) == 1 else "The gradients"
        text = f"{what} with respect to {self._wrt()}, given that with respect to the loss of each entry."
        return self._emitted(self.plan.vjp(self.predictions), f"{self.name}_vjp", text)

    def _emitted(self, program: Program, function: str, docstring: str) -> str:
        return emit(program, self.backend, function, names=self.names, docstring=docstring).source


def _parts(order: Sequence[str]) -> list[tuple[str, str]]:
    """Each axis of an array with the subscript of its shape."""
    star = next((i for i, a in enumerate(order) if a.startswith("*")), len(order))
    result = []
    for i, axis in enumerate(order):
        if i == star:
            after = len(order) - 1 - i
            result.append((axis, f"{i or ''}:{-after if after else ''}"))
        else:
            result.append((axis, str(i if i < star else i - len(order))))
    return result
