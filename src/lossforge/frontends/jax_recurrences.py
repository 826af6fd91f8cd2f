"""Loops of JAX whose rounds can be solved for: sums, extremes and linear recurrences, as returns and moving averages are.

c_t = a_t · c_{t-1} + b_t has the solution c_t = Σ_{s ≤ t} b_s · Π_{s < r ≤ t} a_r + c_0 · Π_{r ≤ t} a_r, in which nothing is
divided by a factor, which may be 0. What is handed on from round to round is solved for value after value, each with those
that it depends on known for all rounds.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
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
    leaves: list[Any]
    tree: Any
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
    body, count = eqn.params["jaxpr"], eqn.params["num_carry"]
    if not eqn.params["length"] or count > _MOST_CARRIED:
        return None
    # Of each new value on the j-th old one.
    ways = [_dependences(body.jaxpr, {eqn.params["num_consts"] + j})[:count] for j in range(count)]
    order = _order(ways)
    if order is None:
        return None
    for k in order:
        if ways[k][k] is _By.ANY or (ways[k][k] is _By.LINEAR and not is_float(body.jaxpr.outvars[k].aval)):
            return None
    loop = _Loop(eqn, tuple(ways[k][k] for k in range(count)), order, _growths(eqn))
    zeros = [np.zeros(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    return jax.make_jaxpr(lambda *values: _Rounds(loop, values).results())(*zeros)


@dataclass(frozen=True)
class _Loop:
    """A `scan` whose rounds can be solved for."""

    eqn: Any
    ways: tuple[_By, ...]
    """How each value that is handed on depends on the one before it."""
    order: Sequence[int]
    """In which they are solved for."""
    growths: Mapping[int, Any]
    """The numbers by which counters grow."""


class _Rounds:
    """The values of all rounds of a loop, as they are solved for."""

    def __init__(self, loop: _Loop, values: Sequence[Any]) -> None:
        given = loop.eqn.params
        self.loop = loop
        self.length, self.reverse, self.body = int(given["length"]), bool(given["reverse"]), given["jaxpr"]
        self.first, count = given["num_consts"], given["num_carry"]
        self.constants, self.arrays = values[: self.first], values[self.first + count :]
        self.start = values[self.first : self.first + count]
        self.before, self.after, self.final = list(self.start), list(self.start), list(self.start)
        """Each value before and after each round, and at the end."""
        self.known = [False] * count
        """Whether `before` holds that of each round; it does not for a value that stays what it is."""

    def results(self) -> list[Any]:
        """What the loop gives."""
        for k in self.loop.order:
            self._solve(k)
        count = len(self.start)
        results = self._of_all(lambda carried, entries: tuple(self._body(carried, entries)[count:]))
        outvars = self.body.jaxpr.outvars
        handed_on = {v: self.after[k] for k, v in enumerate(outvars[:count]) if not isinstance(v, core.Literal)}
        given = zip(outvars[count:], results, strict=True)
        return [*self.final, *(r if isinstance(v, core.Literal) else handed_on.get(v, r) for v, r in given)]

    def _body(self, carried: Sequence[Any], entries: Sequence[Any]) -> Any:
        return core.jaxpr_as_fun(self.body)(*self.constants, *carried, *entries)

    def _of_all(self, act: Callable[..., Any]) -> Any:
        """What a function of the values before a round and of its entries gives for each round."""
        axes = tuple(0 if known else None for known in self.known), (0,) * len(self.arrays)
        return jax.vmap(act, in_axes=axes, axis_size=self.length)(tuple(self.before), tuple(self.arrays))

    def _solve(self, k: int) -> None:
        start, way, reverse = self.start[k], self.loop.ways[k], self.reverse

        def new(c: Any, others: Sequence[Any], entries: Sequence[Any]) -> Any:
            return self._body((*others[:k], c, *others[k + 1 :]), entries)[k]

        def terms(c: Any) -> Any:
            return self._of_all(lambda others, entries: new(c, others, entries))

        nothing = jnp.zeros_like(start)
        if way is _By.ITSELF:
            self.after[k] = jnp.broadcast_to(start, (self.length, *start.shape))
            return
        if way is _By.SUM and k in self.loop.growths:
            literal, growth = self.loop.eqn.invars[self.first + k], self.loop.growths[k]
            begin = literal.val if isinstance(literal, core.Literal) else start
            rounds = _rounds(self.length, reverse, start)
            grown = rounds if growth == 1 else rounds * growth
            self.before[k] = grown if isinstance(begin, int) and begin == 0 else grown + begin
            self.after[k] = self.before[k] + growth
            self.final[k] = begin + self.length * growth
            self.known[k] = True
            return
        if way is _By.NOTHING:
            self.after[k] = terms(start)
            self.final[k] = self.after[k][0 if reverse else self.length - 1]
        elif way is _By.SUM:
            parts = terms(nothing)
            self.after[k] = start + lax.cumsum(parts, axis=0, reverse=reverse)
            self.final[k] = start + jnp.sum(parts, axis=0)
        elif way is _By.LINEAR:

            def slope(others: Sequence[Any], entries: Sequence[Any]) -> Any:
                return jax.jvp(lambda c: new(c, others, entries), (nothing,), (jnp.ones_like(start),))[1]

            example = self.start, [a[0] for a in self.arrays]
            moving = jax.make_jaxpr(slope)(*example).jaxpr
            steady = _dependences(moving, set(range(len(moving.invars))))[0] is _By.NOTHING
            parts, factors = terms(nothing), slope(*example) if steady else self._of_all(slope)
            between, until, onwards = _products(factors, steady, parts, reverse)
            self.after[k] = jnp.sum(between * parts[:, None], axis=0) + until * start
            self.final[k] = jnp.sum(onwards * parts, axis=0) + until[0 if reverse else self.length - 1] * start
        else:
            larger, parts = way is _By.LARGER, terms(start)
            self.after[k] = (lax.cummax if larger else lax.cummin)(parts, axis=0, reverse=reverse)
            self.final[k] = (jnp.max if larger else jnp.min)(parts, axis=0)
        earlier = self.after[k][1:] if reverse else self.after[k][:-1]
        self.before[k] = jnp.concatenate([earlier, start[None]] if reverse else [start[None], earlier])
        self.known[k] = True


def _growths(eqn: Any) -> dict[int, Any]:
    """The numbers by which counters grow, the only ones that are known before the loop is."""
    body, first, count = eqn.params["jaxpr"], eqn.params["num_consts"], eqn.params["num_carry"]
    inputs = range(len(body.jaxpr.invars))
    others = [_dependences(body.jaxpr, {i for i in inputs if i != first + k})[k] for k in range(count)]
    counters = [k for k, way in enumerate(others) if way is _By.NOTHING and not body.jaxpr.outvars[k].aval.ndim]
    if not counters:
        return {}
    found = core.jaxpr_as_fun(body)(*(jnp.zeros(v.aval.shape, v.aval.dtype) for v in body.jaxpr.invars))
    return {k: found[k].item() for k in counters}


def _rounds(length: int, reverse: bool, like: Any) -> Any:
    """The number of each round, over the axes of what it hands on."""
    numbers = jnp.arange(length)
    numbers = length - 1 - numbers if reverse else numbers
    return jnp.reshape(numbers, (length, *(1,) * like.ndim)).astype(like.dtype)


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
