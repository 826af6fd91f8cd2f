"""From a definition to programs: trace, reduce, derive, simplify.

A `Definition` is a traced function; a `Plan` is that loss for one way of calling it (reduction, weight, mask, signs of
the parameters); a `Program` (see `ir`) is one computation that a backend compiles: the value, the value and the
gradient, a vector-Jacobian product, a second derivative. All are made once and kept.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeAlias

from lossforge import ir
from lossforge.errors import AxisError, DefinitionError, ShapeError, SignatureError, UnsupportedError
from lossforge.frontends.language import NeedsIndex, Traced
from lossforge.frontends.signature import Signature
from lossforge.gradient import HandWritten, diagonal_of_hessian, gated_total, jvp, plus, require_gradient, times, vjp
from lossforge.interpreter import derive_lengths
from lossforge.ir import Axis, Kind, Node, Port, Program, constant, input_, where
from lossforge.simplify import exponents, simplify
from lossforge.stabilize import Applied, stabilize

Reduction: TypeAlias = Literal["mean", "sum", "none"]
REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum", "none")

WHOLE = frozenset({-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0})
"""Exponents that need no logarithm: such a power is a few products, or a square root."""

WEIGHT, MASK, COTANGENT, TANGENT = "weight", "mask", "cotangent", "tangent"
"""Names of inputs that a plan adds; they carry a suffix where the definition uses the name itself."""


@dataclass(frozen=True)
class Definition:
    """A loss as it was traced: a value over named axes, before any reduction."""

    name: str
    arguments: tuple[Port, ...]
    parameters: tuple[Port, ...]
    value: Node
    order: tuple[Axis, ...]
    predictions: tuple[str, ...]
    names: tuple[tuple[Node, str], ...] = ()
    """Names that the user's own text gives to intermediate values."""
    rewrites: tuple[Applied, ...] = ()
    """Floating-point identities that were applied to the definition."""
    source: Node | None = None
    """The value as written, before these identities."""
    options: tuple[tuple[str, Any], ...] = ()
    """The parameters that shape the graph (flags, names), with their values."""
    fixed: tuple[tuple[Axis, int], ...] = ()
    """Axes that have one size only, because the definition holds a table over them, or a choice of entries."""
    square: tuple[tuple[Axis, Axis], ...] = ()
    """Axes that have one size in common."""

    def port(self, name: str) -> Port:
        """The argument or parameter called `name`."""
        return next(p for p in (*self.arguments, *self.parameters) if p.name == name)

    @cached_property
    def exponents(self) -> tuple[str, ...]:
        """Parameters that exponents are made of."""
        found = exponents([self.value])
        return tuple(p.name for p in self.parameters if p.node in found)

    def split(self, axis: Axis, rank: int) -> Definition:
        """The definition with a starred axis replaced by `rank` axes of their own."""
        pieces = split_names(axis, rank)

        def wider(order: tuple[Axis, ...]) -> tuple[Axis, ...]:
            return tuple(b for a in order for b in (pieces if a == axis else (a,)))

        roots = [*(p.node for p in self.arguments), self.value, *(n for n, _ in self.names)]
        found = ir.split_axis(roots, axis, pieces)
        arguments = tuple(Port(n, wider(p.order)) for n, p in zip(found, self.arguments, strict=False))
        value, *named = found[len(arguments) :]
        return replace(
            self,
            arguments=arguments,
            value=value,
            order=wider(self.order),
            names=tuple((n, text) for n, (_, text) in zip(named, self.names, strict=True)),
        )


def split_names(axis: Axis, rank: int) -> tuple[Axis, ...]:
    """The axes that a starred axis is replaced by."""
    return tuple(f"{axis.removeprefix('*')}_{i}" for i in range(rank))


def trace(
    function: Callable[..., Any],
    name: str,
    signature: Signature,
    arguments: Sequence[str],
    parameters: Sequence[str],
    options: Mapping[str, Any],
    predictions: Sequence[str],
) -> Definition:
    """Call `function` once with traced values and read off its graph.

    Raises:
        SignatureError: the result does not have the axes that the signature promises.
        AxisError: an axis is used that no argument has.
        NotDifferentiableError: the gradient with respect to a prediction is zero almost everywhere.
    """
    indices: frozenset[str] = frozenset()
    while True:
        ports = tuple(
            Port(input_(a, axes, Kind.INDEX if a in indices else Kind.FLOAT), axes)
            for a, axes in zip(arguments, signature.arguments, strict=True)
        )
        scalars = tuple(Port(input_(p), ()) for p in parameters)
        try:
            value, names = _call(function, ports, scalars, options)
            break
        except NeedsIndex as need:
            indices |= {need.name}
    if indices & set(predictions):
        raise DefinitionError(
            f"{name}: {sorted(indices & set(predictions))[0]!r} is used as an index; it cannot be the prediction"
        )
    _check_axes(name, value, ports)
    order = signature.output
    if order is None:
        order = tuple(dict.fromkeys(a for axes in signature.arguments for a in axes if a in value.axes))
        if extra := value.axes - set(order):
            raise SignatureError(f"{name}: the result still has the renamed axis {sorted(extra)[0]!r}; reduce it")
    elif frozenset(order) != value.axes:
        raise SignatureError(_wrong_axes(name, order, value))
    source = value
    value, rewrites = stabilize(value)
    for p in predictions:
        require_gradient(value, next(q.node for q in ports if q.name == p), p)
    return Definition(
        name, ports, scalars, value, tuple(order), tuple(predictions), names, rewrites, source, tuple(options.items())
    )


def _call(
    function: Callable[..., Any], ports: Sequence[Port], scalars: Sequence[Port], options: Mapping[str, Any]
) -> tuple[Node, tuple[tuple[Node, str], ...]]:
    """The function's result, and the names of its local variables."""
    found: dict[str, Any] = {}
    code = getattr(function, "__code__", None)

    def note(frame: Any, event: str, arg: Any) -> None:
        if event == "return" and frame.f_code is code:
            found.update(frame.f_locals)

    given = {p.name for p in (*ports, *scalars)}
    args = [Traced(p.node) for p in ports]
    kwargs = {p.name: Traced(p.node) for p in scalars} | dict(options)
    if sys.getprofile() is not None:  # a profiler is at work, and one such as cProfile could not be put back
        result = function(*args, **kwargs)
    else:
        sys.setprofile(note)
        try:
            result = function(*args, **kwargs)
        finally:
            sys.setprofile(None)
    if isinstance(result, int | float) and not isinstance(result, bool):
        result = Traced(constant(float(result)))
    if not isinstance(result, Traced):
        raise DefinitionError(
            f"{getattr(function, '__name__', 'the definition')} returned a {type(result).__name__}; a loss returns one "
            f"value computed from its arguments" + (" (is a `return` missing?)" if result is None else "")
        )
    names = tuple(
        (v.node, n)
        for n, v in found.items()
        # A local variable may carry the name of an argument: `x = x / lf.max(x)`. On paper that would be a circle.
        if isinstance(v, Traced) and v.node.op not in ("input", "constant") and n not in given
    )
    return ir.as_kind(result.node, Kind.FLOAT), names


def _check_axes(name: str, value: Node, ports: Sequence[Port]) -> None:
    known = {a for p in ports for a in p.order}
    nodes = ir.topological([value])
    known |= {n.attrs[1] for n in nodes if n.op == "rename"}
    used = {a for n in nodes for a in n.axes} | {n.attrs[0] for n in nodes if n.op == "size"}
    if unknown := sorted(used - known):
        raise AxisError(
            f"{name}: unknown axis {unknown[0]!r}; the arguments have {', '.join(map(repr, sorted(known))) or 'none'}"
        )


def _wrong_axes(name: str, order: Sequence[Axis], value: Node) -> str:
    extra, lacking = sorted(value.axes - set(order)), sorted(set(order) - value.axes)
    says = f"{name}: the signature promises a result with the axes ({', '.join(order)}), but the definition "
    if extra:
        return (
            says + f"leaves {extra[0]!r} as well; reduce it, as in lf.sum(x, {extra[0]!r}), or add it to the signature"
        )
    return (
        says + f"has reduced {lacking[0]!r} already; reduce over the other axes only, or take it out of the signature"
    )


def indexed(definition: Definition) -> list[tuple[int, str]]:
    """Which arguments hold positions along which axes.

    Of those that are only compared with positions, some hold other numbers as well, which the definition itself looks for.
    """
    found: dict[tuple[int, str], None] = {}
    positions: dict[Node, int] = {p.node: i for i, p in enumerate(definition.arguments)}
    axes = {a for p in definition.arguments for a in p.order}
    nodes = ir.topological([definition.value])
    told = {
        a.args[0] if a.op == "cast" else a
        for n in nodes
        if n.op in ir.COMPARISONS and any(map(_is_number, n.args))
        for a in n.args
    }
    for node in nodes:
        if node.op == "take" and node.args[1] in positions and node.attrs[0] in axes:
            found[positions[node.args[1]], node.attrs[0]] = None
        if node.op == "eq" and {a.op for a in node.args} == {"iota", "input"}:
            position, index = node.args if node.args[0].op == "iota" else node.args[::-1]
            if index in positions and index not in told and position.attrs[0] in axes:
                found[positions[index], position.attrs[0]] = None
    return list(found)


def _is_number(node: Node) -> bool:
    """Whether a node is a number that was written, or a parameter."""
    return node.op == "constant" or (node.op == "input" and not node.axes)


# ------------------------------------------------------------------------------------- plans


@dataclass(frozen=True)
class Plan:
    """A definition for one way of calling it."""

    definition: Definition
    reduction: Reduction = "mean"
    weight: Port | None = None
    mask: Port | None = None
    positive: frozenset[str] = frozenset()
    """Parameters that are known to be ≥ 0 in this call."""
    handwritten: tuple[HandWritten, ...] = ()
    exponents: tuple[tuple[str, float], ...] = ()
    """Parameters in exponents whose value in this call is among `WHOLE`, with that value."""
    _programs: dict[Any, Program] = field(default_factory=dict, compare=False, hash=False, repr=False)
    _variants: dict[Any, Plan] = field(default_factory=dict, compare=False, hash=False, repr=False)

    def at(self, values: Mapping[str, Any]) -> Plan:
        """The plan for parameters of these values: powers with a small whole exponent become products.

        Nothing else of it depends on more than the signs of parameters.
        """
        given = ((name, values[name]) for name in self.definition.exponents)
        found = tuple((n, float(v)) for n, v in given if isinstance(v, int | float) and v in WHOLE)
        if not found:
            return self
        if found not in self._variants:
            self._variants[found] = replace(self, exponents=found, _programs={}, _variants={})
        return self._variants[found]

    @cached_property
    def inputs(self) -> tuple[Port, ...]:
        """Everything that the caller supplies, in order: arguments, parameters, weight, mask."""
        extra = tuple(p for p in (self.weight, self.mask) if p is not None)
        return (*self.definition.arguments, *self.definition.parameters, *extra)

    @cached_property
    def output(self) -> Port:
        """The loss after its reduction."""
        d = self.definition
        value = d.value
        if self.reduction == "none":
            return Port(self._masked(self._weighted(value)), d.order)
        weighted = gated_total(self._masked(self._weighted(value)), d.order)
        if self.reduction == "sum":
            return Port(weighted, ())
        if self.weight is None and self.mask is None:
            return Port(weighted / ir.sizes(d.order) if d.order else weighted, ())
        count = ir.total(self._masked(self._weighted(constant(1.0))), d.order)
        empty = ir.elementwise("eq", count, 0.0)
        return Port(where(empty, 0.0, weighted / count), ())

    def _weighted(self, value: Node) -> Node:
        return value if self.weight is None else times(self.weight.node, value)

    def _masked(self, value: Node) -> Node:
        return value if self.mask is None else where(self.mask.node, value, 0.0)

    @property
    def _uniform(self) -> bool:
        """Whether every entry of the unreduced loss has the same upstream gradient."""
        if not self.definition.order:
            return True
        return self.reduction != "none" and self.weight is None and self.mask is None

    @cached_property
    def usable_by_hand(self) -> tuple[HandWritten, ...]:
        """Hand-written derivatives that suffice for this plan.

        A derivative of the sum can be scaled entry by entry only if entry i of the loss depends on nothing but entry
        i of the argument along the loss's own axes; otherwise it serves uniform upstream gradients alone.
        """
        return tuple(h for h in self.handwritten if self._uniform or is_local(h.value, h.argument))

    # ------------------------------------------------------------------ programs

    def value(self) -> Program:
        """inputs → loss."""
        return self._program(("value",), lambda: Program(self.inputs, (self._simple(self.output),), ("loss",), (None,)))

    def value_and_gradient(self, wrt: tuple[str, ...]) -> Program:
        """inputs → loss, gradient for each of `wrt`, for an upstream gradient of 1."""
        return self._program(("value_and_gradient", wrt), lambda: self._build_gradient(wrt, with_value=True))

    def gradient(self, wrt: tuple[str, ...]) -> Program:
        """inputs → gradient for each of `wrt`, for an upstream gradient of 1."""
        return self._program(("gradient", wrt), lambda: self._build_gradient(wrt, with_value=False))

    def vjp(self, wrt: tuple[str, ...]) -> Program:
        """inputs, cotangent of the loss → cotangent for each of `wrt`."""
        return self._program(("vjp", wrt), lambda: self._build_vjp(wrt))

    def jvp(self, wrt: tuple[str, ...]) -> Program:
        """inputs, tangent for each of `wrt` → tangent of the loss."""
        return self._program(("jvp", wrt), lambda: self._build_jvp(wrt))

    def hessian_diagonal(self, wrt: str) -> Program:
        """inputs → ∂²loss/∂x² for each entry x of `wrt`, for an upstream gradient of 1."""

        def build() -> Program:
            x = self._input(wrt)
            (gradient,) = self._simple_gradient((wrt,))
            (diagonal,) = simplify([diagonal_of_hessian(gradient, x.node)], self._assumed())
            return Program(self.inputs, (Port(diagonal, x.order),), (f"hessian_diagonal_{wrt}",), (wrt,))

        return self._program(("hessian_diagonal", wrt), build)

    def hvp(self, wrt: str) -> Program:
        """inputs, a direction `tangent` → Hessian times direction, with respect to `wrt`."""

        def build() -> Program:
            x = self._input(wrt)
            direction = Port(input_(self.fresh(TANGENT), x.order), x.order)
            (gradient,) = self._simple_gradient((wrt,))
            (product,) = vjp([(gradient, direction.node)], [x.node])
            (product,) = simplify([product or constant(0.0)], self._assumed())
            return Program((*self.inputs, direction), (Port(product, x.order),), (f"hvp_{wrt}",), (wrt,))

        return self._program(("hvp", wrt), build)

    def value_raw(self) -> Program:
        """inputs → loss, before simplification (what further derivatives are taken of)."""
        return Program(self.inputs, (self.output,), ("loss",), (None,))

    def fresh(self, name: str) -> str:
        """`name`, or a variant of it that no input has."""
        taken = {p.name for p in self.inputs}
        while name in taken:
            name += "_"
        return name

    def _program(self, key: tuple[Any, ...], build: Callable[[], Program]) -> Program:
        if key not in self._programs:
            self._programs[key] = self._with_exponents(replace(build(), nonnegative=frozenset(self._assumed())))
        return self._programs[key]

    def _with_exponents(self, program: Program) -> Program:
        """The program with the exponents that this call has; all derivatives have been taken before."""
        if not self.exponents:
            return program
        values = {self.definition.port(name).node: constant(value) for name, value in self.exponents}
        nodes = simplify(ir.substitute([o.node for o in program.outputs], values), self._assumed())
        outputs = tuple(Port(n, o.order) for n, o in zip(nodes, program.outputs, strict=True))
        return replace(program, outputs=outputs)

    def _assumed(self) -> tuple[Node, ...]:
        return tuple(p.node for p in self.definition.parameters if p.name in self.positive)

    def _input(self, name: str) -> Port:
        return next(p for p in self.inputs if p.name == name)

    def _simple(self, port: Port) -> Port:
        return Port(simplify([port.node], self._assumed())[0], port.order)

    def _raw_gradient(self, wrt: tuple[str, ...]) -> list[Node]:
        found = vjp([(self.output.node, constant(1.0))], [self._input(w).node for w in wrt], self.usable_by_hand)
        return [g if g is not None else constant(0.0) for g in found]

    def _simple_gradient(self, wrt: tuple[str, ...]) -> list[Node]:
        # Second derivatives are taken of the simplified gradient: fewer kinks that are not the loss's own.
        return simplify(self._raw_gradient(wrt), self._assumed())

    def _build_gradient(self, wrt: tuple[str, ...], *, with_value: bool) -> Program:
        gradients = self._raw_gradient(wrt)
        simple = simplify([self.output.node, *gradients], self._assumed())
        ports = [Port(g, self._input(w).order) for g, w in zip(simple[1:], wrt, strict=True)]
        names = [f"gradient_{w}" for w in wrt]
        if with_value:
            return Program(self.inputs, (Port(simple[0], self.output.order), *ports), ("loss", *names), (None, *wrt))
        return Program(self.inputs, tuple(ports), tuple(names), wrt)

    # Where entry i of the loss depends on entry i alone, the products with its Jacobian are products with the
    # gradient, which on its own simplifies further.

    def _build_vjp(self, wrt: tuple[str, ...]) -> Program:
        program = vjp_program(self.value_raw(), wrt, self.usable_by_hand, self._assumed())
        local = self._local(wrt, self.output.node)
        cotangent = program.inputs[-1].node
        gradients = self._simple_gradient(local)
        products = dict(zip(local, simplify([times(cotangent, g) for g in gradients], self._assumed()), strict=True))
        outputs = tuple(Port(products.get(w, p.node), p.order) for w, p in zip(wrt, program.outputs, strict=True))
        return replace(program, outputs=outputs)

    def _build_jvp(self, wrt: tuple[str, ...]) -> Program:
        program = jvp_program(self.value_raw(), wrt, self._hand_for_jvp(wrt), self._assumed())
        entries = self.definition.value  # along all axes, or the gradient would be more work than the product
        local = tuple(w for w in self._local(wrt, entries) if self._input(w).node.axes <= entries.axes)
        if not local:
            return program
        tangents = {w: t.node for w, t in zip(wrt, program.inputs[-len(wrt) :], strict=True)}
        rest: dict[Node, Any] = {self._input(w).node: {frozenset(): tangents[w]} for w in wrt if w not in local}
        (found,) = jvp([self.output.node], rest, self._hand_for_jvp(wrt))
        total = found.get(frozenset())
        for w, gradient in zip(local, self._simple_gradient(local), strict=True):
            surplus = self._input(w).node.axes - self.output.node.axes
            total = plus(total, gated_total(times(tangents[w], gradient), surplus))
        (tangent,) = simplify([total or constant(0.0)], self._assumed())
        return replace(program, outputs=(Port(tangent, self.output.order),))

    def _local(self, wrt: tuple[str, ...], value: Node) -> tuple[str, ...]:
        return tuple(w for w in wrt if is_local(value, self._input(w).node))

    def _hand_for_jvp(self, wrt: tuple[str, ...]) -> tuple[HandWritten, ...]:
        return tuple(
            h for h in self.usable_by_hand if h.value.axes <= h.argument.axes and is_local(h.value, h.argument)
        )


def is_local(value: Node, argument: Node) -> bool:
    """Whether entry i of `value` depends on `argument` at the same i only, along all axes of `value`."""
    if not value.axes <= argument.axes:
        return False
    for node in ir.depends_on([value], [argument]):
        if node.args and node is not argument:
            if node.op == "rename" or not value.axes <= node.axes:
                return False
            if node.op in ir.STRUCTURAL | ir.MATRIX and node.op != "rename" and _touched(node) & value.axes:
                return False
    return True


def _touched(node: Node) -> frozenset[Axis]:
    """The axes of its operand along which an operation moves entries, or mixes those of matrices."""
    return frozenset(node.attrs[0]) if node.op in ir.MATRIX | {"join"} else frozenset({node.attrs[0]})


# ------------------------------------------------------------------------------------- derivatives of programs


def vjp_program(
    program: Program,
    wrt: tuple[str, ...],
    handwritten: Sequence[HandWritten] = (),
    assumed: Sequence[Node] = (),
) -> Program:
    """The program's inputs and a cotangent for each output → a cotangent for each input of `wrt`.

    It is a program again, so that gradients of gradients are taken by the same road.
    """
    taken = {p.name for p in program.inputs}
    cotangents = []
    for i, out in enumerate(program.outputs):
        name = COTANGENT if len(program.outputs) == 1 else f"{COTANGENT}_{i}"
        while name in taken:
            name += "_"
        taken.add(name)
        cotangents.append(Port(input_(name, out.order), out.order))
    pairs = []
    for out, ct in zip(program.outputs, cotangents, strict=True):
        # An output that is constant along an axis of its array gets the sum of what flows back along it.
        pairs.append((out.node, gated_total(ct.node, frozenset(out.order) - out.node.axes)))
    targets = [program.input(w) for w in wrt]
    found = vjp(pairs, [t.node for t in targets], handwritten)
    nodes = simplify([g if g is not None else constant(0.0) for g in found], assumed)
    outputs = tuple(Port(g, t.order) for g, t in zip(nodes, targets, strict=True))
    return Program((*program.inputs, *cotangents), outputs, tuple(f"gradient_{w}" for w in wrt), wrt)


def jvp_program(
    program: Program,
    wrt: tuple[str, ...],
    handwritten: Sequence[HandWritten] = (),
    assumed: Sequence[Node] = (),
) -> Program:
    """The program's inputs and a tangent for each input of `wrt` → a tangent for each output."""
    taken = {p.name for p in program.inputs}
    seeds: dict[Node, dict[frozenset[tuple[Axis, Axis]], Node]] = {}
    tangents = []
    for w in wrt:
        name = f"{TANGENT}_{w}"
        while name in taken:
            name += "_"
        taken.add(name)
        target = program.input(w)
        port = Port(input_(name, target.order), target.order)
        tangents.append(port)
        seeds[target.node] = {frozenset(): port.node}
    found = jvp([o.node for o in program.outputs], seeds, handwritten)
    nodes = simplify([t.get(frozenset(), constant(0.0)) for t in found], assumed)
    outputs = tuple(Port(n, o.order) for n, o in zip(nodes, program.outputs, strict=True))
    names = tuple(f"tangent_{n}" for n in program.output_names)
    return Program((*program.inputs, *tangents), outputs, names, program.like)


@lru_cache(maxsize=1024)
def program_vjp(program: Program, wrt: tuple[str, ...]) -> Program:
    """`vjp_program`, kept."""
    return vjp_program(program, wrt)


@lru_cache(maxsize=1024)
def program_jvp(program: Program, wrt: tuple[str, ...]) -> Program:
    """`jvp_program`, kept."""
    return jvp_program(program, wrt)


@lru_cache(maxsize=1024)
def batched(program: Program, which: tuple[str, ...], axis: Axis) -> Program:
    """The program with one more, leading axis on the inputs called `which` and on every output: `vmap`.

    Nothing else changes: operations broadcast by axis identity.
    """
    inputs, replacement = [], {}
    for port in program.inputs:
        if port.name in which:
            new = Port(input_(port.name, (axis, *port.order), port.node.kind), (axis, *port.order))
            replacement[port.node] = new.node
            port = new
        inputs.append(port)
    nodes = ir.substitute([o.node for o in program.outputs], replacement)
    outputs = tuple(Port(n, (axis, *o.order)) for n, o in zip(nodes, program.outputs, strict=True))
    return Program(tuple(inputs), outputs, program.output_names, program.like)


@lru_cache(maxsize=1024)
def new_axis(program: Program) -> Axis:
    """An axis for `batched` that the program does not have yet."""
    ports = (*program.inputs, *program.outputs)
    taken = {a for p in ports for a in p.order}
    taken |= {a for n in ir.topological([p.node for p in ports]) for a in n.axes}
    axis = "vmap"
    while axis in taken:
        axis += "_"
    return axis


def require_sizes(plan: Plan, sizes: Mapping[Axis, tuple[int | None, ...]]) -> None:
    """Refuse a mean over nothing, and sizes that the definition does not hold for.

    Raises:
        ShapeError: an axis of the loss is empty, and the reduction is a mean; an axis has another size than the only one
            that is allowed, or than the axis that it is as long as; or a part of an axis is longer than that.
    """
    _require_parts(plan.definition, sizes)
    for axis, size in plan.definition.fixed:
        if axis in sizes and sizes[axis] not in ((size,), (None,)):
            raise ShapeError(
                f"{plan.definition.name}: axis {axis!r} has size {sizes[axis][0]}, but this loss was made for {size} only"
            )
    for axis, other in plan.definition.square:
        here, there = sizes.get(axis, (None,)), sizes.get(other, (None,))
        if here != there and (None,) not in (here, there):
            raise ShapeError(
                f"{plan.definition.name}: axes {axis!r} and {other!r} have sizes {here[0]} and {there[0]}, but this loss was made "
                f"for equal ones"
            )
    if plan.reduction != "mean":
        return
    for axis in plan.definition.order:
        if 0 in sizes.get(axis, ()):
            raise ShapeError(
                f"{plan.definition.name}: axis {axis!r} is empty (size {sizes[axis] if axis[0] == '*' else 0}), and "
                f'the mean of nothing is undefined; skip empty batches, or use reduction="sum"'
            )


def _require_parts(definition: Definition, sizes: Mapping[Axis, tuple[int | None, ...]]) -> None:
    """Refuse an axis that is shorter than what a window leaves out of it."""
    nodes = ir.topological([definition.value])
    windows = [n for n in nodes if n.op == "window"]
    if not windows or any(None in shape for shape in sizes.values()):
        return
    lengths = {axis: math.prod(n for n in shape if n is not None) for axis, shape in sizes.items()}
    derive_lengths(nodes, lengths)
    for axis, part, *_ in (n.attrs for n in windows):
        if lengths.get(part, 0) < 0:
            raise ShapeError(
                f"{definition.name}: axis {axis!r} has size {lengths[axis]}, but this loss takes parts of it that leave out "
                f"{lengths[axis] - lengths[part]} entries; give it more"
            )


__all__ = [
    "REDUCTIONS",
    "WHOLE",
    "Definition",
    "Plan",
    "Reduction",
    "UnsupportedError",
    "batched",
    "indexed",
    "new_axis",
    "is_local",
    "jvp_program",
    "program_jvp",
    "program_vjp",
    "replace",
    "require_sizes",
    "split_names",
    "trace",
    "vjp_program",
]
