"""Loops of JAX whose rounds can be solved for: sums, extremes and linear recurrences, as returns and moving averages are.

c_t = a_t · c_{t-1} + b_t has the solution c_t = Σ_{s ≤ t} b_s · Π_{s < r ≤ t} a_r + c_0 · Π_{r ≤ t} a_r, in which nothing is
divided by a factor, which may be 0. What is handed on from round to round is solved for value after value, each with those
that it depends on known for all rounds.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
from jax.extend import core

from lossforge.frontends.jax_custom import is_float

INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat": "jaxpr",
           "remat2": "jaxpr", "checkpoint": "jaxpr", "composite": "jaxpr", "custom_lin": "jaxpr"}  # fmt: skip
"""Calls that mean what they call, and the parameter that holds it."""
_MOST_CARRIED = 16


def in_turn(fn: Callable[..., Any], elems: Any, reverse: bool = False, axis: int = 0) -> Any:
    """What `jax.lax.associative_scan` gives, entry after entry: a loop whose rounds can be solved for, if any can."""
    leaves, tree = jax.tree.flatten(elems)
    at = [axis % x.ndim for x in leaves]
    parts = [jnp.expand_dims(jnp.moveaxis(x, d, 0), d + 1) for x, d in zip(leaves, at, strict=True)]
    first = [p[-1] if reverse else p[0] for p in parts]

    def step(so_far: list[Any], entries: list[Any]) -> tuple[list[Any], list[Any]]:
        found = jax.tree.leaves(fn(tree.unflatten(so_far), tree.unflatten(entries)))
        return found, found

    _, rest = lax.scan(step, first, [p[:-1] if reverse else p[1:] for p in parts], reverse=reverse)
    whole = [jnp.concatenate([r, f[None]] if reverse else [f[None], r]) for f, r in zip(first, rest, strict=True)]
    return tree.unflatten([jnp.moveaxis(jnp.squeeze(w, d + 1), 0, d) for w, d in zip(whole, at, strict=True)])


class _By(enum.Enum):
    """How a value depends on another one c, entry by entry."""

    NOTHING = "it does not"
    ITSELF = "c"
    SUM = "c + b"
    LINEAR = "a · c + b"
    LARGER = "max(c, b)"
    SMALLER = "min(c, b)"
    ANY = "in another way"


def all_rounds(eqn: Any) -> Any:
    """A jaxpr of the equation's operands, without a loop; None if the rounds of this `scan` cannot be solved for."""
    given = eqn.params
    body, length, reverse = given["jaxpr"], given["length"], given["reverse"]
    first, count = given["num_consts"], given["num_carry"]
    if not length or count > _MOST_CARRIED:
        return None
    inputs = range(len(body.jaxpr.invars))
    ways = [_dependences(body.jaxpr, {first + j})[:count] for j in range(count)]  # of each new value on the j-th old one
    order = _order(ways)
    handed = body.jaxpr.outvars[:count]
    if order is None or any(
        ways[k][k] is _By.ANY or (ways[k][k] is _By.LINEAR and not is_float(handed[k].aval)) for k in order
    ):
        return None
    function = core.jaxpr_as_fun(body)
    growths = _growths(body, ways, first)

    def every(*values: Any) -> list[Any]:
        constants, state, arrays = values[:first], values[first : first + count], values[first + count :]
        before, after, final, solved = list(state), list(state), list(state), [False] * count

        def of_all(act: Callable[..., Any]) -> Any:
            """What a function of the state and of its entries gives for each round."""
            axes = tuple(0 if s else None for s in solved), (0,) * len(arrays)
            return jax.vmap(act, in_axes=axes, axis_size=length)(tuple(before), tuple(arrays))

        for k in order:
            start = state[k]

            def new(c: Any, others: Sequence[Any], entries: Sequence[Any], k: int = k) -> Any:
                return function(*constants, *others[:k], c, *others[k + 1 :], *entries)[k]

            def slope(others: Sequence[Any], entries: Sequence[Any], new: Any = new, c: Any = start) -> Any:
                return jax.jvp(lambda c: new(c, others, entries), (jnp.zeros_like(c),), (jnp.ones_like(c),))[1]

            entries = [a[0] for a in arrays]
            if ways[k][k] is _By.ITSELF:
                after[k] = jnp.broadcast_to(start, (length, *start.shape))
                continue
            if ways[k][k] is _By.NOTHING:
                after[k] = of_all(lambda *given: new(start, *given))
                final[k] = _end(after[k], reverse)
            elif ways[k][k] is _By.SUM:
                changing = {i for i in inputs[first:] if i != first + k}
                if _dependences(body.jaxpr, changing)[k] is _By.NOTHING:
                    literal = eqn.invars[first + k]
                    begin = literal.val if isinstance(literal, core.Literal) else start
                    growth = growths.get(k, new(jnp.zeros_like(start), state, entries))
                    before[k], after[k], final[k] = _counted(begin, growth, length, reverse)
                    solved[k] = True
                    continue
                terms = of_all(lambda *given: new(jnp.zeros_like(start), *given))
                after[k] = start + lax.cumsum(terms, axis=0, reverse=reverse)
                final[k] = start + jnp.sum(terms, axis=0)
            elif ways[k][k] is _By.LINEAR:
                terms = of_all(lambda *given: new(jnp.zeros_like(start), *given))
                moving = jax.make_jaxpr(slope)(state, entries).jaxpr
                steady = _dependences(moving, set(range(len(moving.invars))))[0] is _By.NOTHING
                factors = slope(state, entries) if steady else of_all(slope)
                between, until, onwards = _products(factors, steady, terms, reverse)
                after[k] = jnp.sum(between * terms[:, None], axis=0) + until * start
                final[k] = jnp.sum(onwards * terms, axis=0) + _end(until, reverse) * start
            else:
                larger = ways[k][k] is _By.LARGER
                terms = of_all(lambda *given: new(start, *given))
                after[k] = (lax.cummax if larger else lax.cummin)(terms, axis=0, reverse=reverse)
                final[k] = (jnp.max if larger else jnp.min)(terms, axis=0)
            before[k] = jnp.concatenate([after[k][1:], start[None]] if reverse else [start[None], after[k][:-1]])
            solved[k] = True
        results = of_all(lambda carried, entries: tuple(function(*constants, *carried, *entries)[count:]))
        kept = {v: after[k] for k, v in enumerate(handed) if not isinstance(v, core.Literal)}
        of_rounds = zip(body.jaxpr.outvars[count:], results, strict=True)
        return [*final, *(r if isinstance(v, core.Literal) else kept.get(v, r) for v, r in of_rounds)]

    return jax.make_jaxpr(every)(*(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars))


def _growths(body: Any, ways: Sequence[Sequence[_By]], first: int) -> dict[int, Any]:
    """The numbers by which counters grow, which are all that is known before the loop is."""
    others = [_dependences(body.jaxpr, {i for i in range(len(body.jaxpr.invars)) if i != first + k})[k] for k in range(len(ways))]
    counters = [k for k, way in enumerate(others) if way is _By.NOTHING and ways[k][k] is _By.SUM]
    if not counters:
        return {}
    found = core.jaxpr_as_fun(body)(*(jnp.zeros(v.aval.shape, v.aval.dtype) for v in body.jaxpr.invars))
    return {k: found[k].item() for k in counters if not found[k].ndim}


def _counted(start: Any, growth: Any, length: int, reverse: bool) -> tuple[Any, Any, Any]:
    """A value that grows alike in each round: before it, after it, and at the end."""
    rounds = _rounds(length, reverse, growth)
    grown = rounds if isinstance(growth, int) and growth == 1 else rounds * growth
    before = grown if isinstance(start, int) and start == 0 else grown + start
    return before, before + growth, start + length * growth


def _rounds(length: int, reverse: bool, like: Any) -> Any:
    """The number of each round, over the axes of what it hands on."""
    numbers = jnp.arange(length)
    numbers = length - 1 - numbers if reverse else numbers
    return jnp.reshape(numbers, (length, *(1,) * jnp.ndim(like))).astype(jnp.asarray(like).dtype)


def _end(values: Any, reverse: bool) -> Any:
    """The entry of the last round."""
    return values[0] if reverse else values[len(values) - 1]


def _products(factors: Any, steady: bool, terms: Any, reverse: bool) -> tuple[Any, Any, Any]:
    """The products of the factors behind round s and up to t, of those up to t, and of those behind s."""
    length = len(terms)
    rounds = jnp.arange(length)
    apart = rounds[:, None] - rounds[None, :] if reverse else rounds[None, :] - rounds[:, None]
    apart = jnp.reshape(apart, (*apart.shape, *(1,) * (terms.ndim - 1)))
    if steady:
        between = factors ** jnp.maximum(apart, 0).astype(factors.dtype)
        until = factors ** (_rounds(length, reverse, terms[0]) + 1)
        onwards = factors ** _rounds(length, not reverse, terms[0])
    else:
        between = lax.cumprod(jnp.where(apart > 0, factors[None], 1.0), axis=1, reverse=reverse)
        until = lax.cumprod(factors, axis=0, reverse=reverse)
        later = lax.cumprod(factors, axis=0, reverse=not reverse)
        last = jnp.ones_like(later[:1])
        onwards = jnp.concatenate([last, later[:-1]] if reverse else [later[1:], last])
    return jnp.where(apart >= 0, between, 0.0), until, onwards


def _order(ways: Sequence[Sequence[_By]]) -> list[int] | None:
    """An order in which each value depends on itself and on those before it; None if there is none."""
    left, order = list(range(len(ways))), list[int]()
    while left:
        free = [k for k in left if all(ways[j][k] is _By.NOTHING for j in left if j != k)]
        if not free:
            return None
        order += free
        left = [k for k in left if k not in free]
    return order


def _dependences(jaxpr: Any, moving: Collection[int]) -> list[_By]:
    """How each result depends on some operands, taken for one value."""
    return _of_results(jaxpr, [_By.ITSELF if i in moving else _By.NOTHING for i in range(len(jaxpr.invars))])


def _of_results(jaxpr: Any, operands: Sequence[_By]) -> list[_By]:
    known = dict(zip(jaxpr.invars, operands, strict=True))

    def read(v: Any) -> _By:
        return _By.NOTHING if isinstance(v, core.Literal) else known.get(v, _By.NOTHING)

    for eqn in jaxpr.eqns:
        ways = [read(v) for v in eqn.invars]
        name = eqn.primitive.name
        if set(ways) <= {_By.NOTHING}:
            found = [_By.NOTHING] * len(eqn.outvars)
        elif name in INLINED:
            inner = eqn.params[INLINED[name]]
            found = _of_results(getattr(inner, "jaxpr", inner), ways)
        else:
            found = [_of_operation(eqn, ways)] * len(eqn.outvars)
        known.update(zip(eqn.outvars, found, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _of_operation(eqn: Any, ways: Sequence[_By]) -> _By:
    """How the result of an operation depends on what its operands depend on."""
    name, alone = eqn.primitive.name, ways.count(_By.NOTHING) == len(ways) - 1
    if name in ("max", "min") and alone and _By.ITSELF in ways:
        return _By.LARGER if name == "max" else _By.SMALLER
    if name in ("copy", "copy_p") or (name == "convert_element_type" and _kind(eqn.invars[0]) == _kind(eqn.outvars[0])):
        return ways[0]
    if any(w not in (_By.NOTHING, _By.ITSELF, _By.SUM, _By.LINEAR) for w in ways):
        return _By.ANY
    simple = (_By.ITSELF, _By.SUM)
    match name:
        case "add" | "add_any":
            return _By.SUM if alone and set(ways) & set(simple) else _By.LINEAR
        case "sub":
            return _By.SUM if ways[0] in simple and alone else _By.LINEAR
        case "neg":
            return _By.LINEAR
        case "mul" if alone:
            return _By.LINEAR
        case "div" if ways[1] is _By.NOTHING:
            return _By.LINEAR
        case "select_n" if ways[0] is _By.NOTHING:
            return _By.LINEAR
        case _:
            return _By.ANY


def _kind(v: Any) -> str:
    return "float" if is_float(v.aval) else str(v.aval.dtype)
