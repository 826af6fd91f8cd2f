"""The chain rule, from graph to graph: reverse mode (`vjp`) and forward mode (`jvp`).

Over named axes both are short. Elementwise operations broadcast by axis identity, so that the adjoint of an argument
is summed over the axes that the argument lacks; the derivative of a sum is an implicit broadcast. Adjoints may lack
axes that their node has: they are then constant along them.

Products with a partial derivative are formed *inside* a `where`: ``where(c, a, 0) · p`` becomes ``where(c, a·p, 0)``.
An infinite or undefined partial in a branch that was not taken, or behind a mask, therefore never reaches the
gradient; users of eager frameworks have to write a second `where` by hand for that.

References: Griewank & Walther, *Evaluating Derivatives* (2008), chapters 3 and 4; Laue, Mitterreiter & Giesen,
*Computing higher order derivatives of matrix and tensor expressions* (2018), for derivatives over named indices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

from lossforge import matrices
from lossforge.errors import NotDifferentiableError, UnsupportedError
from lossforge.ir import (
    MATRIX,
    STRUCTURAL,
    Axis,
    Kind,
    Node,
    argsort,
    as_kind,
    constant,
    cumsum,
    depends_on,
    elementwise,
    flip,
    iota,
    join,
    kept_branch,
    rebuild,
    reduction,
    rename,
    slide,
    split,
    spread,
    take,
    topological,
    total,
    under,
    where,
    window,
)
from lossforge.primitives import PRIMITIVES, is_elementwise, partial

Delta: TypeAlias = frozenset[tuple[Axis, Axis]]
"""A product of Kronecker deltas, one for each pair (axis, seed axis)."""
Tangent: TypeAlias = Mapping[Delta, Node]
"""A sum of terms delta · coefficient; a plain tangent has the empty product only."""
Gate: TypeAlias = tuple[Node, int]
"""A condition, and which branch of its `where` is not zero."""


@dataclass(frozen=True)
class Contribution:
    """One use of the chain rule: what `node` adds to the adjoint of `argument`."""

    node: Node
    argument: Node
    partial: Node | None
    """∂node/∂argument, for an elementwise node."""
    adjoint: Node
    """The adjoint of `node`."""
    value: Node
    """What is added to the adjoint of `argument`."""


@dataclass(frozen=True)
class HandWritten:
    """A user's own derivative of the sum of `value` with respect to `argument`; it replaces the chain rule between them."""

    value: Node
    argument: Node
    derivative: Node


# ------------------------------------------------------------------------------------- arithmetic of adjoints


def _is(node: Node, number: float) -> bool:
    return node.op == "constant" and node.attrs[0] == number


def times(x: Node, y: Node) -> Node:
    """x · y, with 0, 1 and −1 absorbed and `where` kept outermost."""
    for a, b in ((x, y), (y, x)):
        if _is(a, 0.0) or _is(b, 1.0):
            return a
        if _is(b, -1.0):
            gates, inner = _gates(a)
            return _under(gates, -inner)
    for a, b in ((x, y), (y, x)):
        if a.op == "where" and (_is(a.args[1], 0.0) or _is(a.args[2], 0.0)):
            condition, chosen, other = a.args
            return where(condition, times(chosen, b), times(other, b))
    return x * y


def plus(x: Node | None, y: Node) -> Node:
    """x + y, where None is 0; conditions that both terms stand under stay outermost."""
    if x is None or _is(x, 0.0):
        return y
    if _is(y, 0.0):
        return x
    (gates_x, inner_x), (gates_y, inner_y) = _gates(x), _gates(y)
    common = [g for g in gates_x if g in gates_y]
    if not common:
        return x + y
    rest_x = _under([g for g in gates_x if g not in common], inner_x)
    rest_y = _under([g for g in gates_y if g not in common], inner_y)
    return _under(common, plus(rest_x, rest_y))


def _gates(node: Node) -> tuple[list[Gate], Node]:
    """The conditions that a value stands under, outermost first, and what stands under them."""
    found: list[Gate] = []
    while branch := kept_branch(node):
        found.append((node.args[0], branch))
        node = node.args[branch]
    return found, node


def _under(gates: Sequence[Gate], node: Node) -> Node:
    for condition, branch in reversed(gates):
        node = under(condition, branch, node)
    return node


def _is_unmasked(term: Node) -> Node | None:
    """Whether a term counts that stands under conditions; None if it stands under none."""
    gates, inner = _gates(term)
    told = [g if branch == 1 else elementwise("not", g) for g, branch in gates]
    if (some := _has_unmasked(inner)) is not None:
        told.append(some)
    return reduce(lambda a, b: elementwise("and", a, b), told) if told else None


def gated_total(x: Node, axes: Iterable[Axis]) -> Node:
    """The sum over `axes`, taken inside of the conditions that do not depend on them."""
    wanted = frozenset(axes)
    gates, inner = _gates(x)
    outer = [g for g in gates if not g[0].axes & wanted]
    if not outer:
        return total(x, wanted) if wanted else x
    rest = _under([g for g in gates if g not in outer], inner)
    return _under(outer, total(rest, wanted) if wanted else rest)


def _times_slope(adjoint: Node, slope: Node) -> Node:
    """adjoint · slope, and 0 where the adjoint is a sum of nothing but masked terms and the slope may be infinite."""
    gates, inner = _gates(adjoint)
    if _may_be_infinite(slope) and (some := _has_unmasked(inner)) is not None:
        return _under(gates, where(some, times(inner, slope), 0.0))
    return times(adjoint, slope)


def _may_be_infinite(slope: Node) -> bool:
    return any(
        n.op in ("pow", "log") or (n.op == "div" and n.args[1].op not in ("constant", "size"))
        for n in topological([slope])
    )


def _has_unmasked(adjoint: Node) -> Node | None:
    """Whether a sum of masked terms has one that is not; None if it is not such a sum."""
    if adjoint.op in ("neg", "div"):
        return _has_unmasked(adjoint.args[0])
    if adjoint.op == "mul":
        return next((some for a in adjoint.args if (some := _has_unmasked(a)) is not None), None)
    if adjoint.op in ("add", "sub"):
        first, second = map(_is_unmasked, adjoint.args)
        return None if first is None or second is None else elementwise("or", first, second)
    if adjoint.op != "sum":
        return None
    axes = frozenset(adjoint.attrs[0])
    gates = [g for g in _gates(adjoint.args[0])[0] if g[0].axes & axes]
    return elementwise("gt", total(_under(gates, constant(1.0)), axes), 0.0) if gates else None


def _weight(node: Node) -> Node:
    """∂node/∂x at each entry of x, for a reduction of x."""
    (x,) = node.args
    axes = node.attrs[0]
    if node.op == "sum":
        return constant(1.0)
    if node.op == "logsumexp":
        return elementwise("exp", x - node)
    if node.op in ("max", "min"):
        tied = elementwise("eq", x, node)
        return where(tied, 1.0 / reduction("sum", as_kind(tied, Kind.FLOAT), axes), 0.0)
    if node.op == "prod":
        return _others(x, node, axes)
    raise AssertionError(f"no derivative for the reduction {node.op}")


def _others(x: Node, product: Node, axes: Iterable[Axis]) -> Node:
    """The product of all entries but one, right also where entries are zero."""
    zero = elementwise("eq", x, 0.0)
    zeros = reduction("sum", as_kind(zero, Kind.FLOAT), axes)
    rest = reduction("prod", where(zero, 1.0, x), axes)
    at_zero = where(elementwise("eq", zeros, 1.0), rest, 0.0)
    return where(zero, at_zero, where(elementwise("eq", zeros, 0.0), product / x, 0.0))


# ------------------------------------------------------------------------------------- reverse mode


def vjp(
    outputs: Sequence[tuple[Node, Node]],
    wrt: Sequence[Node],
    handwritten: Sequence[HandWritten] = (),
    record: list[Contribution] | None = None,
) -> list[Node | None]:
    """The adjoints of `wrt`, given pairs of an output and its cotangent.

    None stands for a gradient that is zero because every path is cut (by a flat operation, or `stop_gradient`). A
    hand-written derivative belongs to the *sum* of its value: `compiler` passes it only where that suffices.

    A factor without axes (the upstream gradient of a mean, over the count) is carried beside the adjoint and
    multiplied in at the end, so that it costs one product and stays out of the formula.
    """
    by_hand = {h.argument: h for h in handwritten if h.argument in wrt}
    derived = [w for w in wrt if w not in by_hand]
    opaque = [h.value for h in by_hand.values()]
    active = depends_on([o for o, _ in outputs], [*derived, *opaque])
    adjoints: dict[Node, Scaled] = {}
    for output, cotangent in outputs:
        if output in active:
            seed = (cotangent, _one()) if not cotangent.axes else (_one(), cotangent)
            adjoints[output] = _accumulate(adjoints.get(output), seed)
    for node in reversed(topological([o for o, _ in outputs])):
        if node not in adjoints or node not in active or node.op == "input":
            continue
        scale, adjoint = adjoints[node]
        for argument, slope, value in _pull(node, adjoint, active):
            if record is not None:
                record.append(Contribution(node, argument, slope, times(adjoint, scale), times(value, scale)))
            factor = scale
            if not value.axes and not node.axes:
                factor, value = _times_slope(scale, value), _one()
            adjoints[argument] = _accumulate(adjoints.get(argument), (factor, value))
    result: list[Node | None] = []
    for w in wrt:
        hand = by_hand.get(w)
        source = w if hand is None else hand.value
        if source not in adjoints:
            result.append(None)
            continue
        scale, adjoint = adjoints[source]
        if hand is not None:  # the derivative is summed over the axes that its argument lacks already
            adjoint = times(adjoint, hand.derivative)
        result.append(times(adjoint, scale))
    return result


Scaled: TypeAlias = tuple[Node, Node]
"""An adjoint as (factor without axes, rest)."""


def _one() -> Node:
    return constant(1.0)


def _accumulate(known: Scaled | None, new: Scaled) -> Scaled:
    if known is None:
        return new
    if known[0] is new[0]:
        return known[0], plus(known[1], new[1])
    return _one(), plus(times(*known[::-1]), times(*new[::-1]))


def _pull(node: Node, adjoint: Node, active: set[Node]) -> list[tuple[Node, Node | None, Node]]:
    """What `node` adds to the adjoints of its active arguments: (argument, partial, contribution)."""
    if is_elementwise(node):
        result: list[tuple[Node, Node | None, Node]] = []
        carries = tuple(a in active for a in node.args)
        for i, argument in enumerate(node.args):
            slope = partial(node, i, carries) if carries[i] else None
            if slope is not None:
                value = gated_total(_times_slope(adjoint, slope), node.axes - argument.axes)
                result.append((argument, slope, value))
        return result
    x = node.args[0] if node.args else None
    if x is None or x not in active:
        return []
    if node.op in ("sum", "max", "min", "logsumexp", "prod"):
        weight = _weight(node)
        return [(x, weight, times(adjoint, weight))]
    if node.op in MATRIX - {"detsign"}:
        return [(x, None, matrices.pull(node, adjoint))]
    if node.op in STRUCTURAL and node.op != "argsort":
        return [(x, None, pull_structural(node, adjoint))]
    return []  # argmax, argmin, argsort: flat


def _pull_permuted(node: Node, x: Node, index: Node, axis: Axis, adjoint: Node) -> Node:
    """The adjoint of entries taken at an index that varies along the same axis, as the order of a sort does."""
    if index.op == "argsort":  # a permutation; the order of its own entries is its inverse
        moved = take(adjoint, argsort(index, axis), axis) if axis in adjoint.axes else adjoint
        return gated_total(moved, node.axes - x.axes)
    here = axis + "_sorted"
    chosen = where(elementwise("eq", iota(axis), rename(index, axis, here)), 1.0, 0.0)
    moved = rename(adjoint, axis, here) if axis in adjoint.axes else adjoint
    return gated_total(times(chosen, moved), ((node.axes - {axis}) | {here}) - x.axes)


def pull_structural(node: Node, adjoint: Node) -> Node:
    """The adjoint of the operand of an operation that moves entries along axes: the entries moved back."""
    x = node.args[0]
    if node.op == "take":
        index, axis = node.args[1], node.attrs[0]
        if axis in index.axes:
            return _pull_permuted(node, x, index, axis, adjoint)
        chosen = elementwise("eq", iota(axis), index)
        return gated_total(times(where(chosen, 1.0, 0.0), adjoint), node.axes - x.axes)
    if node.op == "rename":
        old, new = node.attrs
        return _moved(adjoint, lambda n: rename(n, new, old) if new in n.axes else n)
    if node.op == "window":
        old, new, start, trim = node.attrs
        if new not in adjoint.axes:  # constant along it
            adjoint = spread(adjoint, new)
        back = tuple((a, -n) for a, n in start), tuple((a, -n) for a, n in trim)
        return window(adjoint, new, old, *back)
    if node.op == "slide":
        old, new, tap, stencil, forth = node.attrs
        moved = _slide(spread(adjoint, new), new, old, tap, stencil, not forth)
        return moved if tap is None or tap in x.axes else gated_total(moved, {tap})
    if node.op == "join":
        pieces, new = node.attrs
        back_ = _moved(adjoint, lambda n: split(n, new, pieces) if new in n.axes else n)
        return gated_total(back_, frozenset(pieces) - x.axes)
    if node.op == "split":
        axis, pieces = node.attrs
        return _moved(adjoint, lambda n: _joined(n, pieces, axis))
    axis = node.attrs[0]
    if node.op == "flip":
        return _moved(adjoint, lambda n: flip(n, axis) if axis in n.axes else n)
    return cumsum(spread(adjoint, axis), axis, not node.attrs[1])


def _moved(x: Node, move: Callable[[Node], Node]) -> Node:
    """What becomes of a value whose entries are moved, inside of the conditions that it stands under."""
    gates, inner = _gates(x)
    return _under([(move(condition), branch) for condition, branch in gates], move(inner))


def _joined(x: Node, pieces: Sequence[Axis], axis: Axis) -> Node:
    if not x.axes & set(pieces):
        return x
    for piece in pieces:
        x = x if piece in x.axes else spread(x, piece)
    return join(x, pieces, axis)


def _slide(x: Node, old: Axis, *rest: Any) -> Node:
    """`ir.slide`; factors that do not vary along `old` stay outside, so that a convolution's adjoint is one again."""
    if x.op == "neg":
        return -_slide(x.args[0], old, *rest)
    if x.op == "mul":
        for factor, other in (x.args, x.args[::-1]):
            if old not in factor.axes:
                return factor * _slide(other, old, *rest)
    if x.op == "div" and old not in x.args[1].axes:
        return _slide(x.args[0], old, *rest) / x.args[1]
    return slide(x, old, *rest)


# ------------------------------------------------------------------------------------- forward mode


def jvp(
    outputs: Sequence[Node], tangents: Mapping[Node, Tangent], handwritten: Sequence[HandWritten] = ()
) -> list[dict[Delta, Node]]:
    """The tangents of `outputs`, given those of some nodes."""
    known: dict[Node, dict[Delta, Node]] = {n: dict(t) for n, t in tangents.items()}
    by_value: dict[Node, list[HandWritten]] = {}
    for hand in handwritten:
        by_value.setdefault(hand.value, []).append(hand)
    for node in topological(outputs):
        if node in known:
            continue
        result: dict[Delta, Node] = {}

        def add(delta: Delta, value: Node, result: dict[Delta, Node] = result) -> None:
            result[delta] = plus(result.get(delta), value)

        if node in by_value:
            # Entries of the value that a hand-written derivative covers come from it, all others from the chain rule.
            covered = {h.argument: h for h in by_value[node]}
            rest = {n: t for n, t in tangents.items() if n not in covered}
            for delta, value in jvp([node], rest)[0].items():
                add(delta, value)
            for argument, hand in covered.items():
                for delta, value in tangents.get(argument, {}).items():
                    _contract(delta, times(value, hand.derivative), argument.axes - node.axes, add)
        elif is_elementwise(node):
            carries = tuple(bool(known.get(a)) for a in node.args)
            for i, argument in enumerate(node.args):
                slope = partial(node, i, carries) if carries[i] else None
                if slope is not None:
                    for delta, value in known[argument].items():
                        add(delta, times(value, slope))
        elif node.args and known.get(node.args[0]):
            x = node.args[0]
            for delta, value in known[x].items():
                _push(node, delta, value, add)
        known[node] = result
    return [known[o] for o in outputs]


def _push(node: Node, delta: Delta, value: Node, add: Callable[[Delta, Node], None]) -> None:
    """Add the tangent of a reduction or structural node, given one term of its operand's."""
    if node.op in ("sum", "max", "min", "logsumexp", "prod"):
        _contract(delta, times(value, _weight(node)), frozenset(node.attrs[0]), add)
    elif node.op == "take":
        index, axis = node.args[1], node.attrs[0]
        picked = take(value, index, axis) if axis in value.axes else value
        if axis in index.axes and any(a == axis for a, _ in delta):
            raise UnsupportedError("second derivatives of a sorted value entry by entry are not available; use hvp")
        for a, seed in delta:
            if a == axis:
                picked = times(where(elementwise("eq", index, iota(seed)), 1.0, 0.0), picked)
        add(frozenset(p for p in delta if p[0] != axis), picked)
    elif node.op == "rename":
        old, new = node.attrs
        moved = rename(value, old, new) if old in value.axes else value
        add(frozenset((new if a == old else a, s) for a, s in delta), moved)
    elif node.op in MATRIX:
        if any(a in node.attrs[0] for a, _ in delta):
            raise UnsupportedError(f"second derivatives entry by entry through {node.op} are not available; use hvp")
        if node.op != "detsign":
            add(delta, matrices.push(node, value))
    elif node.op in ("window", "slide", "join", "split", "flip", "cumsum"):
        touched = {"window": {node.attrs[0]}, "join": set(node.attrs[0])}.get(node.op, {node.attrs[0]})
        if any(a in touched for a, _ in delta):
            raise UnsupportedError(f"second derivatives entry by entry through {node.op} are not available; use hvp")
        for a in touched & node.args[0].axes:
            value = spread(value, a)
        add(delta, rebuild(node, [value]))


def _contract(delta: Delta, value: Node, axes: frozenset[Axis], add: Callable[[Delta, Node], None]) -> None:
    """Sum delta · value over `axes`; where a delta ties an axis to its seed, the sum is a substitution."""
    for axis, seed in sorted(delta):
        if axis in axes:
            value = identify(value, axis, seed)
    tied = {a for a, _ in delta}
    add(frozenset(p for p in delta if p[0] not in axes), gated_total(value, axes - tied))


def identify(value: Node, axis: Axis, other: Axis) -> Node:
    """`value` at the entries where the positions along `axis` and `other` agree; the result has `other` only."""
    if axis not in value.axes:
        return value
    return take(value, iota(other), axis) if other in value.axes else rename(value, axis, other)


def diagonal_of_hessian(gradient: Node, x: Node) -> Node:
    """∂gradient[i]/∂x[i] for each entry i of `x`.

    Forward mode with the seed δ(i, i′): terms in which the delta survives are local, the others couple entries and
    are read off at i′ = i. Nothing of the size of the full Hessian is formed for losses whose coupling is a reduction.
    """
    seeds = {a: f"{a}'" for a in x.axes}
    (terms,) = jvp([gradient], {x: {frozenset(seeds.items()): constant(1.0)}})
    result: Node | None = None
    for delta, value in terms.items():
        for axis, seed in seeds.items():
            if (axis, seed) not in delta:
                value = identify(value, seed, axis)
        result = plus(result, value)
    return result if result is not None else constant(0.0)


# ------------------------------------------------------------------------------------- what cuts the gradient


def require_gradient(output: Node, prediction: Node, name: str) -> None:
    """Refuse a loss whose gradient with respect to its prediction is zero almost everywhere.

    Raises:
        NotDifferentiableError: with the operations that cut every path, and the way out.
    """
    (adjoint,) = vjp([(output, constant(1.0))], [prediction])
    if adjoint is not None and not _is(adjoint, 0.0):
        return
    active = depends_on([output], [prediction])
    if output not in active:
        raise NotDifferentiableError(f"the loss does not depend on {name!r}, so it has no gradient with respect to it")
    cuts = sorted({n.op for n in active if n is not prediction and _cuts(n, active)})
    raise NotDifferentiableError(
        f"the gradient with respect to {name!r} is zero almost everywhere: every path to it passes through "
        f"{' or '.join(cuts)}. To train with it, give the backward pass a smooth stand-in: "
        f"lf.surrogate(hard, soft) has the value of `hard` and the gradient of `soft`."
    )


def _cuts(node: Node, active: set[Node]) -> bool:
    if node.op in ("argmax", "argmin"):
        return True
    if not is_elementwise(node):
        return False
    rules = PRIMITIVES[node.op].partials
    return all(rules[i] is None for i, a in enumerate(node.args) if a in active)
